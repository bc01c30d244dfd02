//! A batch of which some ids may be there already, or out of their time: what the INSERT leaves out is looked at.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Known, answers, out_of_bounds};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{JobId, NewJob, Start, Timestamp, View};
use crate::store::postgres::fault::{Effect, broken, fault, gave_way, silent};
use crate::store::postgres::pool::{ANSWER_WITHIN, Pool, RUNS_MAX, Statement};
use crate::store::postgres::row::{self, column, int, job_columns, json};
use crate::store::{EnqueueAnswer, Enqueued};

/// Ids out of their time and starts too far ahead are left out here, and named by the time that the answer carries.
/// The rows come sorted by id and are written in that order, so that two batches with the same ids cannot wait for each
/// other in a circle. What is read twice is kept aside without payloads.
const INSERT: &str = "
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
  ON CONFLICT (id) DO NOTHING
  RETURNING id, queue, priority, state),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT d.queue, d.priority, min(c.now), min(c.now) + 5000000, array_agg(d.id ORDER BY d.id)
    FROM created d CROSS JOIN clock c WHERE d.state = 2 GROUP BY d.queue, d.priority
  RETURNING id, queue, priority, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued)
  SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2) FROM created GROUP BY queue)
SELECT now, NULL::uuid AS id,
       NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority, NULL::uuid[] AS jobs FROM clock
UNION ALL SELECT NULL, NULL, id, queue, priority, jobs FROM segment
UNION ALL SELECT NULL, id, NULL, NULL, NULL, NULL FROM created";

/// With a new snapshot: what the INSERT skipped.
const EXISTING: &str = concat!(
    "SELECT fingerprint, ",
    job_columns!(),
    " FROM jobs WHERE id = ANY($1)"
);

/// A job that was in the way and is gone at the second look is tried again; so often.
const ROUNDS_MAX: u32 = 3;

/// Accepts those that nothing is said against.
pub(super) async fn each(
    pool: &Pool,
    jobs: &[NewJob],
    firsts: Vec<&NewJob>,
) -> Result<EnqueueAnswer> {
    on(pool, async |conn| {
        attempt(conn, jobs, &firsts, RUNS_MAX).await
    })
    .await
}

/// Accepts all or none.
pub(super) async fn all(
    pool: &Pool,
    jobs: &[NewJob],
    firsts: Vec<&NewJob>,
) -> Result<EnqueueAnswer> {
    on(pool, async |conn| {
        for run in 1.. {
            match unit(conn, jobs, &firsts).await {
                // It is the whole that gives way, and that is run again.
                Err(Broke::Driver(e)) if run < RUNS_MAX && gave_way(&e) => {}
                answer => return answer,
            }
        }
        Err(Broke::Ours(Error::unavailable("postgres")))
    })
    .await
}

/// Runs something on a connection, within the time that all of it may take.
async fn on(
    pool: &Pool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<EnqueueAnswer, Broke>,
) -> Result<EnqueueAnswer> {
    let mut taken = pool.take().await?;
    match tokio::time::timeout(ANSWER_WITHIN, work(&mut taken.conn)).await {
        Ok(Ok(answer)) => {
            pool.put_back(taken);
            Ok(answer)
        }
        Ok(Err(Broke::Driver(e))) => Err(fault(e, Effect::Write)),
        Ok(Err(Broke::Ours(e))) => Err(e),
        Err(_) => {
            taken.conn.close_on_drop();
            Err(silent(Effect::Write))
        }
    }
}

async fn unit(
    conn: &mut PgConnection,
    jobs: &[NewJob],
    firsts: &[&NewJob],
) -> Result<EnqueueAnswer, Broke> {
    let mut tx = conn.begin().await?;
    let answer = attempt(&mut tx, jobs, firsts, 1).await?;
    if answer.jobs.iter().any(is_refused) {
        tx.rollback().await?;
        return Ok(refused(answer));
    }
    failpoint::reached("enqueue-uncommitted");
    tx.commit().await?;
    Ok(answer)
}

fn is_refused(answer: &Enqueued) -> bool {
    matches!(
        answer,
        Enqueued::Conflict | Enqueued::IdOutOfTime | Enqueued::StartTooFar
    )
}

/// Nothing was accepted: what was not refused itself was not tried.
fn refused(answer: EnqueueAnswer) -> EnqueueAnswer {
    let jobs = answer
        .jobs
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

/// `runs`: how often a statement is run that gives way to another.
async fn attempt(
    conn: &mut PgConnection,
    jobs: &[NewJob],
    firsts: &[&NewJob],
    runs: u32,
) -> Result<EnqueueAnswer, Broke> {
    let mut open = firsts.to_vec();
    open.sort_by_key(|job| job.id);
    let mut known: HashMap<JobId, Known> = HashMap::with_capacity(open.len());
    let mut segments = Vec::new();
    let mut now = Timestamp(0);
    for _ in 0..ROUNDS_MAX {
        let mut run = 1;
        let rows = loop {
            match statement(&open)?.fetch_all(&mut *conn).await {
                Err(e) if run < runs && gave_way(&e) => run += 1,
                rows => break rows?,
            }
        };
        segments.extend(row::segments(&rows)?);
        let created: HashSet<JobId>;
        (now, created) = inserted(&rows)?;
        known.extend(
            open.iter()
                .filter(|job| created.contains(&job.id))
                .map(|job| Known::new(job, now)),
        );
        open.retain(|job| !known.contains_key(&job.id));
        if open.is_empty() {
            break;
        }
        let ids: Vec<Uuid> = open.iter().map(|job| job.id.uuid()).collect();
        let found = sqlx::query(EXISTING).bind(&ids);
        for row in found.fetch_all(&mut *conn).await? {
            let before = Known {
                job: row::job(&row, View::Basic)?,
                fingerprint: column(&row, "fingerprint")?,
                is_news: false,
            };
            known.insert(before.job.id, before);
        }
        open.retain(|job| !known.contains_key(&job.id));
        if open.iter().all(|job| out_of_bounds(job, now).is_some()) {
            break;
        }
    }
    Ok(EnqueueAnswer {
        jobs: answers(jobs, known, now)?,
        segments,
    })
}

/// The time by which the ids were judged, and those that were new.
fn inserted(rows: &[PgRow]) -> Result<(Timestamp, HashSet<JobId>)> {
    let mut clock = None;
    let mut created = HashSet::new();
    for row in rows {
        if let Some(now) = column::<Option<i64>>(row, "now")? {
            clock = Some(Timestamp(now));
        } else if let Some(id) = column::<Option<Uuid>>(row, "id")? {
            created.insert(JobId::from_store(id));
        }
    }
    Ok((clock.ok_or_else(|| broken("clock"))?, created))
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
    Ok(sqlx::query(INSERT)
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
