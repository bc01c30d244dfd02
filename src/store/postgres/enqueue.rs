//! Accepting jobs: one INSERT for a whole batch, with its segments and its counts.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::fault::{Effect, broken, fault, gave_way, is_taken, no_connection};
use super::pool::{Pool, RUNS_MAX, Statement};
use super::row::{self, column, int, job_columns, json};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{Job, JobId, JobState, NewJob, Start, Timestamp, View};
use crate::store::{EnqueueAnswer, Enqueued, Segment, Unit};

/// Ids out of their time and starts too far ahead are left out here, and named by the time that the answer carries.
/// The rows come sorted by id and are written in that order, so that two batches with the same ids cannot wait for each
/// other in a circle. What is read twice is kept aside without payloads.
macro_rules! enqueue {
    ($on_conflict:literal, $created:literal) => {
        concat!(
            "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
created AS (
  INSERT INTO jobs (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout,
                    retention, labels, headers, fingerprint, payload_type, payload_is_text, payload,
                    state, create_time, run_time, due_at, queued_time)
  SELECT n.id, n.queue, n.kind, n.priority, n.max_attempts, n.backoff_initial, n.backoff_max, n.backoff_factor,
         n.timeout, n.retention, n.labels::jsonb, n.headers::jsonb, n.fingerprint, n.payload_type, n.payload_is_text,
         n.payload, CASE WHEN r.run_time > c.now THEN 1 ELSE 2 END, c.now, r.run_time,
         CASE WHEN r.run_time > c.now THEN r.run_time END, CASE WHEN r.run_time > c.now THEN NULL ELSE c.now END
    FROM clock c
   CROSS JOIN unnest($1::uuid[], $2::text[], $3::text[], $4::int2[], $5::int4[], $6::int8[], $7::int8[], $8::float8[],
                     $9::int8[], $10::int8[], $11::text[], $12::text[], $13::bytea[], $14::text[], $15::bool[],
                     $16::bytea[], $17::int8[], $18::int8[], $19::int8[])
      AS n (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention,
            labels, headers, fingerprint, payload_type, payload_is_text, payload, delay, start_at, id_time)
   CROSS JOIN LATERAL (SELECT greatest(coalesce(n.start_at, c.now + n.delay), c.now) AS run_time) AS r
   WHERE n.id_time >= c.now - $20 AND n.id_time <= c.now + $21 AND coalesce(n.start_at, 0) <= c.now + $22
  ",
            $on_conflict,
            "
  RETURNING id, queue, priority, state),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT d.queue, d.priority, min(c.now), min(c.now) + 5000000, array_agg(d.id ORDER BY d.id)
    FROM created d CROSS JOIN clock c WHERE d.state = 2 GROUP BY d.queue, d.priority
  RETURNING id, queue, priority, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued)
  SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2) FROM created GROUP BY queue)
SELECT now, (SELECT count(*) FROM created) AS created, NULL::uuid AS id,
       NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority, NULL::uuid[] AS jobs FROM clock
UNION ALL SELECT NULL, NULL, NULL, id, queue, priority, jobs FROM segment",
            $created
        )
    };
}

/// When all ids are new, which is to be expected. To look for each of them first would cost a third of the statement.
const ALL_NEW: &str = enqueue!("", "");
const SOME_NEW: &str = enqueue!(
    "ON CONFLICT (id) DO NOTHING",
    "\nUNION ALL SELECT NULL, NULL, id, NULL, NULL, NULL, NULL FROM created"
);

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
        let mut ids = Ids::New;
        let mut runs = 1;
        loop {
            let answer = match unit {
                Unit::Each => attempt(&mut conn, jobs, ids, RUNS_MAX)
                    .await
                    .map(Done::into_answer),
                Unit::All => all(&mut conn, jobs, ids).await,
            };
            match answer {
                Err(Broke::Driver(e)) if ids == Ids::New && is_taken(&e) => ids = Ids::Mixed,
                // Inside of a transaction it is the whole that gives way, and that is run again.
                Err(Broke::Driver(e)) if unit == Unit::All && runs < RUNS_MAX && gave_way(&e) => {
                    runs += 1;
                }
                answer => return answer,
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

/// What is expected of the ids of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// None is there yet: if one is, the statement fails.
    New,
    /// Some may be there.
    Mixed,
}

async fn all(conn: &mut PgConnection, jobs: &[NewJob], ids: Ids) -> Result<EnqueueAnswer, Broke> {
    let mut tx = conn.begin().await?;
    let done = attempt(&mut tx, jobs, ids, 1).await?;
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
async fn attempt(
    conn: &mut PgConnection,
    jobs: &[NewJob],
    mut ids: Ids,
    runs: u32,
) -> Result<Done, Broke> {
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
            match statement(&firsts, ids)?.fetch_all(&mut *conn).await {
                Err(e) if run < runs && gave_way(&e) => run += 1,
                rows => break rows?,
            }
        };
        segments.extend(row::segments(&rows)?);
        now = read_created(&rows, &firsts, ids, &mut known)?;
        ids = Ids::Mixed;
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

/// Notes what was created, and returns the time by which it was judged.
fn read_created(
    rows: &[PgRow],
    firsts: &[&NewJob],
    ids: Ids,
    known: &mut HashMap<JobId, Known>,
) -> Result<Timestamp> {
    let mut clock = None;
    let mut created = HashSet::new();
    for row in rows {
        if let Some(now) = column::<Option<i64>>(row, "now")? {
            clock = Some((Timestamp(now), column::<i64>(row, "created")?));
        } else if let Some(id) = column::<Option<Uuid>>(row, "id")? {
            created.insert(JobId::from_store(id));
        }
    }
    let (now, count) = clock.ok_or_else(|| broken("clock"))?;
    let before = known.len();
    for job in firsts {
        let is_created = match ids {
            Ids::New => out_of_bounds(job, now).is_none(),
            Ids::Mixed => created.contains(&job.id),
        };
        if is_created {
            let run_time = match job.start {
                Start::Now => now,
                Start::After(delay) => now.after(delay),
                Start::At(start) => start.max(now),
            };
            let state = match run_time > now {
                true => JobState::Scheduled,
                false => JobState::Queued,
            };
            let new = Job::accepted(job, state, now, run_time);
            known.insert(job.id, Known::Now(Box::new(new), job.fingerprint, false));
        }
    }
    match i64::try_from(known.len() - before) == Ok(count) {
        true => Ok(now),
        false => Err(broken("created")),
    }
}

fn out_of_bounds(job: &NewJob, now: Timestamp) -> Option<Enqueued> {
    let at = job.id.time();
    if at.0 < now.0 - micros(ID_AGE_MAX) || at > now.after(ID_AHEAD_MAX) {
        return Some(Enqueued::IdOutOfTime);
    }
    matches!(job.start, Start::At(start) if start > now.after(SPAN_MAX))
        .then_some(Enqueued::StartTooFar)
}

fn statement<'q>(jobs: &[&NewJob], ids: Ids) -> Result<Statement<'q>> {
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
    let text = match ids {
        Ids::New => ALL_NEW,
        Ids::Mixed => SOME_NEW,
    };
    Ok(sqlx::query(text)
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
