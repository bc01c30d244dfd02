//! The usual batch: all its ids are new and in time. One statement writes all of it or nothing, so that it needs no
//! transaction whichever unit it is, and nothing has to come back that the caller knows already.
//!
//! What the jobs have in common is sent once: of each job its id, its payload and its fingerprint, and the number of its
//! shape. Jobs, segments and counts all follow from the arguments under one condition, so they cannot disagree.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::postgres::PgRow;

use super::{expire_in, expire_time, key, place};
use crate::error::Result;
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{Expiry, JobId, NewJob, Priority, QueueName, Start, Timestamp};
use crate::store::postgres::fault::{broken, is_taken};
use crate::store::postgres::pool::{Pool, Statement};
use crate::store::postgres::row::{column, int, json, priority};
use crate::store::{Line, Segment};

/// The rows come in the order of [`place`] and are written so. $29 has the ids of all segments, one after the other.
const INSERT: &str = "
WITH clock AS MATERIALIZED (SELECT now, now BETWEEN $27 AND $28 AS is_time FROM (SELECT lh_us() AS now) AS c),
created AS (
  INSERT INTO jobs (id, fingerprint, payload, labels, headers, queue, kind, priority, max_attempts, backoff_initial,
                    backoff_max, backoff_factor, timeout, retention, payload_type, payload_is_text,
                    state, create_time, run_time, due_at, queued_time, idempotency_key, expire_time, expire_at)
  SELECT n.id, n.fingerprint, n.payload, n.labels::jsonb, n.headers::jsonb, ($9::text[])[n.shape],
         ($10::text[])[n.shape], ($11::int2[])[n.shape], ($12::int4[])[n.shape], ($13::int8[])[n.shape],
         ($14::int8[])[n.shape], ($15::float8[])[n.shape], ($16::int8[])[n.shape], ($17::int8[])[n.shape],
         ($18::text[])[n.shape], ($19::bool[])[n.shape],
         CASE WHEN n.delay IS NULL AND n.start_at IS NULL THEN 2 ELSE 1 END, c.now,
         coalesce(n.start_at, c.now + n.delay, c.now), coalesce(n.start_at, c.now + n.delay),
         CASE WHEN n.delay IS NULL AND n.start_at IS NULL THEN c.now END, n.idempotency_key,
         coalesce(n.expire_time, c.now + n.expire_in), coalesce(n.expire_time, c.now + n.expire_in)
    FROM clock c
   CROSS JOIN unnest($1::uuid[], $2::int4[], $3::bytea[], $4::bytea[], $5::text[], $6::text[], $7::int8[], $8::int8[],
                     $30::text[], $31::int8[], $32::int8[])
      AS n (id, shape, fingerprint, payload, labels, headers, delay, start_at, idempotency_key, expire_in, expire_time)
   WHERE c.is_time),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT l.queue, l.priority, c.now, c.now + 5000000, ($29::uuid[])[l.first:l.last]
    FROM clock c CROSS JOIN unnest($20::text[], $21::int2[], $22::int4[], $23::int4[]) AS l (queue, priority, first, last)
   WHERE c.is_time
  RETURNING id, queue, priority),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued)
  SELECT q.queue, q.scheduled, q.queued
    FROM clock c CROSS JOIN unnest($24::text[], $25::int8[], $26::int8[]) AS q (queue, scheduled, queued)
   WHERE c.is_time),
labelled AS (
  INSERT INTO job_labels (label, job)
  SELECT DISTINCT lh_label(e.key, e.value), ($1::uuid[])[n.place]
    FROM clock c CROSS JOIN unnest($5::text[]) WITH ORDINALITY AS n (labels, place)
   CROSS JOIN LATERAL jsonb_each_text(n.labels::jsonb) AS e WHERE c.is_time)
SELECT now, is_time, NULL::bigint AS id, NULL::text AS queue, NULL::int2 AS priority FROM clock
UNION ALL SELECT NULL, NULL, id, queue, priority FROM segment";

/// The shapes of a batch are looked up by walking along them.
const SHAPES_MAX: usize = 256;

/// A batch that may be written so.
pub(super) struct Batch<'a> {
    /// In the order of [`place`].
    jobs: Vec<&'a NewJob>,
    /// Of each of `jobs`, from 1.
    shapes: Vec<i32>,
    /// A job of each shape.
    samples: Vec<&'a NewJob>,
    /// What becomes QUEUED at once, sorted by id.
    lines: BTreeMap<Line, Vec<JobId>>,
}

impl<'a> Batch<'a> {
    /// `None`: the jobs are too different from each other.
    pub fn of(firsts: &[&'a NewJob]) -> Option<Self> {
        let mut batch = Self {
            jobs: firsts.to_vec(),
            shapes: Vec::with_capacity(firsts.len()),
            samples: Vec::new(),
            lines: BTreeMap::new(),
        };
        batch.jobs.sort_by_key(|job| place(job));
        let mut known = HashMap::new();
        let mut before: Option<(Shape<'_>, i32)> = None;
        for job in &batch.jobs {
            let shape = shape(job);
            let number = match before {
                Some((last, number)) if last == shape => number,
                _ => *known.entry(shape).or_insert_with(|| {
                    batch.samples.push(job);
                    index(batch.samples.len())
                }),
            };
            before = Some((shape, number));
            batch.shapes.push(number);
            if is_due(job) {
                let line = Line {
                    queue: job.spec.queue.clone(),
                    priority: job.spec.priority,
                };
                batch.lines.entry(line).or_default().push(job.id);
            }
        }
        batch.lines.values_mut().for_each(|ids| ids.sort_unstable());
        (batch.samples.len() <= SHAPES_MAX).then_some(batch)
    }

    /// Writes all of it, and tells the time by which it was judged. `None`: nothing is written, for an id is there
    /// already, or out of its time.
    pub async fn write(mut self, pool: &Pool) -> Result<Option<(Timestamp, Vec<Segment>)>> {
        let labels = self.words(|job| &job.spec.labels)?;
        let headers = self.words(|job| &job.spec.headers)?;
        let statement = || self.statement(labels.clone(), headers.clone());
        let Some(rows) = pool.write_unless(is_taken, statement).await? else {
            return Ok(None);
        };
        let mut clock = None;
        let mut segments = Vec::with_capacity(self.lines.len());
        for row in &rows {
            match column::<Option<i64>>(row, "now")? {
                Some(now) => clock = Some((Timestamp(now), column::<bool>(row, "is_time")?)),
                None => segments.push(self.segment(row)?),
            }
        }
        match clock {
            Some((now, true)) if self.lines.is_empty() => Ok(Some((now, segments))),
            Some((_, false)) => Ok(None),
            _ => Err(broken("enqueue")),
        }
    }

    /// A segment that was written: its ids go over to it.
    fn segment(&mut self, row: &PgRow) -> Result<Segment> {
        let line = Line {
            queue: QueueName::from_store(column(row, "queue")?),
            priority: priority(column(row, "priority")?)?,
        };
        let jobs = self.lines.remove(&line).ok_or_else(|| broken("backlog"))?;
        let id = column(row, "id")?;
        Ok(Segment { id, line, jobs })
    }

    fn words(&self, of: fn(&NewJob) -> &BTreeMap<String, String>) -> Result<Vec<Option<String>>> {
        let words: Result<_> = self.jobs.iter().map(|job| json(of(job))).collect();
        words.map(none_if_none)
    }

    fn statement<'q>(
        &self,
        labels: Vec<Option<String>>,
        headers: Vec<Option<String>>,
    ) -> Statement<'q> {
        let (jobs, samples) = (&self.jobs, &self.samples);
        let delay = |job: &&NewJob| match job.start {
            Start::After(delay) if !is_due(job) => Some(micros(delay)),
            _ => None,
        };
        let start = |job: &&NewJob| match job.start {
            Start::At(at) => Some(at.0),
            _ => None,
        };
        let counts = self.counts();
        let queues: Vec<&str> = counts.keys().copied().collect();
        let counted = |f: fn(&(i64, i64)) -> i64| counts.values().map(f).collect::<Vec<_>>();
        let (earliest, latest) = self.window();
        let lines: Vec<&Line> = self.lines.keys().collect();
        let lined: Vec<&JobId> = self.lines.values().flatten().collect();
        let mut end = 0;
        let ends: Vec<(i32, i32)> = self
            .lines
            .values()
            .map(|jobs| {
                let first = index(end + 1);
                end += jobs.len();
                (first, index(end))
            })
            .collect();
        sqlx::query(INSERT)
            .bind(each(jobs, |job| job.id.uuid()))
            .bind(self.shapes.clone())
            .bind(each(jobs, |job| job.fingerprint.to_vec()))
            .bind(each(jobs, |job| job.payload.data.to_vec()))
            .bind(labels)
            .bind(headers)
            .bind(none_if_none(each(jobs, delay)))
            .bind(none_if_none(each(jobs, start)))
            .bind(each(samples, |job| job.spec.queue.as_str().to_owned()))
            .bind(each(samples, |job| job.spec.kind.as_str().to_owned()))
            .bind(each(samples, |job| job.spec.priority.number()))
            .bind(each(samples, |job| int(job.spec.retry.max_attempts)))
            .bind(each(samples, |job| micros(job.spec.retry.initial)))
            .bind(each(samples, |job| micros(job.spec.retry.max)))
            .bind(each(samples, |job| job.spec.retry.factor))
            .bind(each(samples, |job| job.spec.timeout.map(micros)))
            .bind(each(samples, |job| micros(job.spec.retention)))
            .bind(each(samples, |job| job.payload.content_type.clone()))
            .bind(each(samples, |job| job.payload.is_text))
            .bind(each(&lines, |line| line.queue.as_str().to_owned()))
            .bind(each(&lines, |line| line.priority.number()))
            .bind(each(&ends, |(first, _)| *first))
            .bind(each(&ends, |(_, last)| *last))
            .bind(each(&queues, |queue| (*queue).to_owned()))
            .bind(counted(|(scheduled, _)| *scheduled))
            .bind(counted(|(_, queued)| *queued))
            .bind(earliest)
            .bind(latest)
            .bind(each(&lined, |id| id.uuid()))
            .bind(none_if_none(each(jobs, key)))
            .bind(none_if_none(each(jobs, expire_in)))
            .bind(none_if_none(each(jobs, expire_time)))
    }

    /// Scheduled and queued jobs of each queue.
    fn counts(&self) -> BTreeMap<&str, (i64, i64)> {
        let mut counts = BTreeMap::<&str, (i64, i64)>::new();
        for job in &self.jobs {
            let (scheduled, queued) = counts.entry(job.spec.queue.as_str()).or_default();
            match is_due(job) {
                true => *queued += 1,
                false => *scheduled += 1,
            }
        }
        counts
    }

    /// Between which times nothing is to be said against any of the jobs, and all that have a time of their own are
    /// SCHEDULED. None is so late that one expires before it may begin, nor so early that one that may begin at a time of
    /// its own has expired by then.
    fn window(&self) -> (i64, i64) {
        let mut window = (i64::MIN, i64::MAX);
        for job in &self.jobs {
            let made = job.id.time().0;
            window.0 = window.0.max(made - micros(ID_AHEAD_MAX));
            window.1 = window.1.min(made + micros(ID_AGE_MAX));
            if let Start::At(at) = job.start {
                window.0 = window.0.max(at.0 - micros(SPAN_MAX));
                window.1 = window.1.min(at.0 - 1);
            }
            match (job.expiry, job.start) {
                (Some(Expiry::At(end)), Start::After(delay)) => {
                    window.1 = window.1.min(end.0.saturating_sub(micros(delay)) - 1);
                }
                (Some(Expiry::At(end)), _) => window.1 = window.1.min(end.0 - 1),
                (Some(Expiry::After(span)), Start::At(at)) => {
                    window.0 = window.0.max(at.0.saturating_sub(micros(span)) + 1);
                }
                (Some(Expiry::After(_)) | None, _) => {}
            }
        }
        window
    }
}

/// QUEUED from the first, at whatever time.
fn is_due(job: &NewJob) -> bool {
    match job.start {
        Start::Now => true,
        Start::After(delay) => micros(delay) == 0,
        Start::At(_) => false,
    }
}

/// What many jobs have in common.
type Shape<'a> = (
    &'a str,
    &'a str,
    Priority,
    (u32, Duration, Duration, u64),
    Option<Duration>,
    Duration,
    &'a str,
    bool,
);

fn shape(job: &NewJob) -> Shape<'_> {
    let spec = &job.spec;
    let retry = &spec.retry;
    (
        spec.queue.as_str(),
        spec.kind.as_str(),
        spec.priority,
        (
            retry.max_attempts,
            retry.initial,
            retry.max,
            retry.factor.to_bits(),
        ),
        spec.timeout,
        spec.retention,
        &job.payload.content_type,
        job.payload.is_text,
    )
}

fn each<T, U>(items: &[T], f: impl Fn(&T) -> U) -> Vec<U> {
    items.iter().map(f).collect()
}

fn index(place: usize) -> i32 {
    i32::try_from(place).unwrap_or(i32::MAX)
}

/// An array in which nothing is need not be sent: what is missing at the end of one is NULL.
fn none_if_none<T>(array: Vec<Option<T>>) -> Vec<Option<T>> {
    match array.iter().all(Option::is_none) {
        true => Vec::new(),
        false => array,
    }
}
