//! Accepting jobs: one INSERT for a whole batch, with its segments and its counts.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::fault::{Effect, fault, gave_way, no_connection};
use super::pool::{Pool, RUNS_MAX, Statement};
use super::row::{self, column, int, job_columns, json, state};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{Job, JobId, NewJob, Start, Timestamp, View};
use crate::store::{EnqueueAnswer, Enqueued, Segment, Unit};

/// Ids out of their time and starts too far ahead are left out here, and named by the time that the answer carries.
/// The rows come sorted by id, so that two batches with the same ids cannot wait for each other in a circle.
const ENQUEUE: &str = "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
given AS MATERIALIZED (
  SELECT n.*, clock.now,
         CASE WHEN n.start_at IS NOT NULL THEN greatest(n.start_at, clock.now) ELSE clock.now + n.delay END AS run_time
    FROM clock, unnest($1::uuid[], $2::text[], $3::text[], $4::int2[], $5::int4[], $6::int8[], $7::int8[], $8::float8[],
                $9::int8[], $10::int8[], $11::text[], $12::text[], $13::bytea[], $14::text[], $15::bool[], $16::bytea[],
                $17::int8[], $18::int8[], $19::int8[])
      AS n (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention,
            labels, headers, fingerprint, payload_type, payload_is_text, payload, delay, start_at, id_time)
   WHERE n.id_time >= clock.now - $20 AND n.id_time <= clock.now + $21
     AND coalesce(n.start_at, 0) <= clock.now + $22),
created AS (
  INSERT INTO jobs (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout,
                    retention, labels, headers, fingerprint, payload_type, payload_is_text, payload,
                    state, create_time, run_time, due_at, queued_time)
  SELECT id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention,
         labels::jsonb, headers::jsonb, fingerprint, payload_type, payload_is_text, payload,
         CASE WHEN run_time > now THEN 1 ELSE 2 END, now, run_time,
         CASE WHEN run_time > now THEN run_time END, CASE WHEN run_time > now THEN NULL ELSE now END
    FROM given ORDER BY id
  ON CONFLICT (id) DO NOTHING
  RETURNING id, queue, priority, state, create_time, run_time),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, min(create_time), min(create_time) + 5000000, array_agg(id ORDER BY id)
    FROM created WHERE state = 2 GROUP BY queue, priority
  RETURNING id, queue, priority, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued)
  SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2) FROM created GROUP BY queue)
SELECT id, state, create_time, run_time,
       NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority, NULL::uuid[] AS jobs FROM created
UNION ALL SELECT NULL, NULL, now, NULL, NULL, NULL, NULL, NULL FROM clock
UNION ALL SELECT NULL, NULL, NULL, NULL, id, queue, priority, jobs FROM segment";

/// With a new snapshot: what the INSERT skipped.
const EXISTING: &str = concat!(
    "SELECT fingerprint, ",
    job_columns!(),
    " FROM jobs WHERE id = ANY($1)"
);

/// A job that was in the way and is gone at the second look is tried again; so often.
const ROUNDS_MAX: u32 = 3;

/// Accepts jobs.
pub(super) async fn enqueue(pool: &Pool, jobs: &[NewJob], unit: Unit) -> Result<EnqueueAnswer> {
    if jobs.is_empty() {
        return Ok(EnqueueAnswer::default());
    }
    let mut conn = pool.inner().acquire().await.map_err(no_connection)?;
    let work = async {
        match unit {
            Unit::Each => Ok(attempt(&mut conn, jobs, RUNS_MAX).await?.into_answer()),
            // Inside of a transaction it is the whole that gives way, and that is run again.
            Unit::All => {
                let mut runs = 1;
                loop {
                    match all(&mut conn, jobs).await {
                        Err(Broke::Driver(e)) if runs < RUNS_MAX && gave_way(&e) => runs += 1,
                        answer => return answer,
                    }
                }
            }
        }
    };
    let within = super::pool::ANSWER_WITHIN;
    let answer: Result<EnqueueAnswer, Broke> = match tokio::time::timeout(within, work).await {
        Ok(answer) => answer,
        Err(_) => {
            conn.close_on_drop();
            return Err(Error::OutcomeUnknown);
        }
    };
    answer.map_err(|broke| match broke {
        Broke::Driver(e) => fault(e, Effect::Write),
        Broke::Ours(e) => e,
    })
}

async fn all(conn: &mut PgConnection, jobs: &[NewJob]) -> Result<EnqueueAnswer, Broke> {
    let mut tx = conn.begin().await?;
    let done = attempt(&mut tx, jobs, 1).await?;
    if done.answers.iter().any(is_refused) {
        tx.rollback().await?;
        return Ok(done.refused());
    }
    failpoint::reached("enqueue-uncommitted");
    tx.commit().await?;
    Ok(done.into_answer())
}

/// What went wrong inside: ours, or the driver's.
enum Broke {
    Driver(sqlx::Error),
    Ours(Error),
}

impl From<sqlx::Error> for Broke {
    fn from(cause: sqlx::Error) -> Self {
        Self::Driver(cause)
    }
}

impl From<Error> for Broke {
    fn from(cause: Error) -> Self {
        Self::Ours(cause)
    }
}

struct Done {
    answers: Vec<Enqueued>,
    segments: Vec<Segment>,
}

impl Done {
    fn into_answer(self) -> EnqueueAnswer {
        EnqueueAnswer {
            jobs: self.answers,
            segments: self.segments,
        }
    }

    /// Nothing was accepted: what was not refused itself was not tried.
    fn refused(self) -> EnqueueAnswer {
        let jobs = self
            .answers
            .into_iter()
            .map(|answer| match is_refused(&answer) {
                true => answer,
                false => Enqueued::NotTried,
            });
        EnqueueAnswer {
            jobs: jobs.collect(),
            segments: Vec::new(),
        }
    }
}

fn is_refused(answer: &Enqueued) -> bool {
    matches!(
        answer,
        Enqueued::Conflict | Enqueued::IdOutOfTime | Enqueued::StartTooFar
    )
}

/// `runs`: how often a statement is run that gives way to another.
async fn attempt(conn: &mut PgConnection, jobs: &[NewJob], runs: u32) -> Result<Done, Broke> {
    // One id twice is one job: the first is accepted, the others are compared with it.
    let mut firsts: Vec<&NewJob> = Vec::with_capacity(jobs.len());
    let mut seen = HashSet::with_capacity(jobs.len());
    for job in jobs {
        if seen.insert(job.id) {
            firsts.push(job);
        }
    }
    firsts.sort_by_key(|job| job.id);
    let mut known: HashMap<JobId, Known> = HashMap::with_capacity(firsts.len());
    let mut segments = Vec::new();
    let mut now = Timestamp(0);
    for _ in 0..ROUNDS_MAX {
        let mut run = 1;
        let rows = loop {
            match statement(&firsts)?.fetch_all(&mut *conn).await {
                Err(e) if run < runs && gave_way(&e) => run += 1,
                rows => break rows?,
            }
        };
        segments.extend(row::segments(&rows)?);
        now = read_created(&rows, &firsts, &mut known)?.unwrap_or(now);
        firsts.retain(|job| !known.contains_key(&job.id));
        if firsts.is_empty() {
            break;
        }
        let ids: Vec<Uuid> = firsts.iter().map(|job| job.id.uuid()).collect();
        for found in sqlx::query(EXISTING)
            .bind(&ids)
            .fetch_all(&mut *conn)
            .await?
        {
            let job = row::job(&found, View::Basic)?;
            let print: Vec<u8> = column(&found, "fingerprint")?;
            known.insert(job.id, Known::Before(Box::new(job), print));
        }
        firsts.retain(|job| !known.contains_key(&job.id));
        if firsts.iter().all(|job| out_of_bounds(job, now).is_some()) {
            break;
        }
    }
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        answers.push(match known.get_mut(&job.id) {
            Some(Known::Now(created, print, told)) => match (*told, *print == job.fingerprint) {
                (false, _) => {
                    *told = true;
                    Enqueued::Created(created.as_ref().clone())
                }
                (true, true) => Enqueued::Existed(created.as_ref().clone()),
                (true, false) => Enqueued::Conflict,
            },
            Some(Known::Before(found, print)) => match *print == job.fingerprint {
                true => Enqueued::Existed(found.as_ref().clone()),
                false => Enqueued::Conflict,
            },
            None => match out_of_bounds(job, now) {
                Some(refusal) => refusal,
                None => return Err(Broke::Ours(Error::unavailable("postgres"))),
            },
        });
    }
    Ok(Done { answers, segments })
}

/// What is known of an id.
enum Known {
    /// Created by this call, from a request with this fingerprint; whether its first asker has its answer.
    Now(Box<Job>, [u8; 32], bool),
    /// It was there, from a request with this fingerprint.
    Before(Box<Job>, Vec<u8>),
}

fn read_created(
    rows: &[PgRow],
    firsts: &[&NewJob],
    known: &mut HashMap<JobId, Known>,
) -> Result<Option<Timestamp>> {
    let by_id: HashMap<JobId, &NewJob> = firsts.iter().map(|job| (job.id, *job)).collect();
    let mut now = None;
    for row in rows {
        let id = column::<Option<Uuid>>(row, "id")?.map(JobId::from_store);
        let at = column::<Option<i64>>(row, "create_time")?.map(Timestamp);
        match (id, at) {
            (Some(id), Some(at)) => {
                if let Some(new) = by_id.get(&id) {
                    let run_time = Timestamp(column(row, "run_time")?);
                    let job = Job::accepted(new, state(column(row, "state")?)?, at, run_time);
                    known.insert(id, Known::Now(Box::new(job), new.fingerprint, false));
                }
            }
            (None, Some(at)) => now = Some(at),
            _ => {}
        }
    }
    Ok(now)
}

fn out_of_bounds(job: &NewJob, now: Timestamp) -> Option<Enqueued> {
    let at = job.id.time();
    if at.0 < now.0 - micros(ID_AGE_MAX) || at > now.after(ID_AHEAD_MAX) {
        return Some(Enqueued::IdOutOfTime);
    }
    matches!(job.start, Start::At(start) if start > now.after(SPAN_MAX))
        .then_some(Enqueued::StartTooFar)
}

fn statement<'q>(jobs: &[&NewJob]) -> Result<Statement<'q>> {
    let mut labels = Vec::with_capacity(jobs.len());
    let mut headers = Vec::with_capacity(jobs.len());
    for job in jobs {
        labels.push(json(&job.spec.labels)?);
        headers.push(json(&job.spec.headers)?);
    }
    let (delays, starts): (Vec<i64>, Vec<Option<i64>>) = jobs
        .iter()
        .map(|job| match job.start {
            Start::Now => (0, None),
            Start::After(delay) => (micros(delay), None),
            Start::At(at) => (0, Some(at.0)),
        })
        .unzip();
    let each = |f: fn(&NewJob) -> i64| jobs.iter().map(|job| f(job)).collect::<Vec<i64>>();
    let words = |f: fn(&NewJob) -> &str| {
        jobs.iter()
            .map(|job| f(job).to_owned())
            .collect::<Vec<String>>()
    };
    Ok(sqlx::query(ENQUEUE)
        .bind(jobs.iter().map(|j| j.id.uuid()).collect::<Vec<_>>())
        .bind(words(|j| j.spec.queue.as_str()))
        .bind(words(|j| j.spec.kind.as_str()))
        .bind(
            jobs.iter()
                .map(|j| j.spec.priority.number())
                .collect::<Vec<_>>(),
        )
        .bind(
            jobs.iter()
                .map(|j| int(j.spec.retry.max_attempts))
                .collect::<Vec<_>>(),
        )
        .bind(each(|j| micros(j.spec.retry.initial)))
        .bind(each(|j| micros(j.spec.retry.max)))
        .bind(jobs.iter().map(|j| j.spec.retry.factor).collect::<Vec<_>>())
        .bind(
            jobs.iter()
                .map(|j| j.spec.timeout.map(micros))
                .collect::<Vec<_>>(),
        )
        .bind(each(|j| micros(j.spec.retention)))
        .bind(labels)
        .bind(headers)
        .bind(
            jobs.iter()
                .map(|j| j.fingerprint.to_vec())
                .collect::<Vec<_>>(),
        )
        .bind(words(|j| j.payload.content_type.as_str()))
        .bind(jobs.iter().map(|j| j.payload.is_text).collect::<Vec<_>>())
        .bind(
            jobs.iter()
                .map(|j| j.payload.data.to_vec())
                .collect::<Vec<_>>(),
        )
        .bind(delays)
        .bind(starts)
        .bind(each(|j| j.id.time().0))
        .bind(micros(ID_AGE_MAX))
        .bind(micros(ID_AHEAD_MAX))
        .bind(micros(SPAN_MAX)))
}
