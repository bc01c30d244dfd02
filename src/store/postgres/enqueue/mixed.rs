//! A batch of which some ids or keys may be there already, or out of their time: what the INSERT leaves out is looked at.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{
    answers, created, expire_in, expire_time, firsts, key, out_of_bounds, place, unique_key,
};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, ROW_AGE_MIN, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{JobId, NewJob, Start, Timestamp, View};
use crate::store::known::Known;
use crate::store::postgres::fault::{Effect, broken, fault, gave_way, silent};
use crate::store::postgres::pool::{ANSWER_WITHIN, Pool, RUNS_MAX, Statement};
use crate::store::postgres::row::{self, DELETED, column, int, job_columns, json, state};
use crate::store::{EnqueueAnswer, Enqueued};

/// Ids out of their time, starts too far ahead and what expires before it begins are left out here, and named by the time
/// that the answer carries. The rows come in the order of [`place`] and are written so. What is read twice is kept aside
/// without payloads. One that is replaced by another of its batch is born CANCELLED.
const INSERT: &str = "
WITH clock AS MATERIALIZED (SELECT coalesce($28::int8, lh_us()) AS now),
created AS (
  INSERT INTO jobs (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout,
                    retention, labels, headers, fingerprint, payload_type, payload_is_text, payload,
                    idempotency_key, expire_time, unique_key, replaced_by, copied_from, state, create_time, run_time, revision,
                    expire_at, unique_held, due_at, queued_time, finish_time, failed_at, purge_time)
  SELECT n.id, n.queue, n.kind, n.priority, n.max_attempts, n.backoff_initial, n.backoff_max, n.backoff_factor,
         n.timeout, n.retention, n.labels::jsonb, n.headers::jsonb, n.fingerprint, n.payload_type, n.payload_is_text,
         n.payload, n.idempotency_key, r.expire_time, n.unique_key, n.replaced_by, n.copied_from, s.state, c.now, r.run_time,
         CASE WHEN s.state = 6 THEN 2 ELSE 1 END,
         CASE WHEN s.state <> 6 THEN r.expire_time END, CASE WHEN s.state <> 6 THEN n.unique_key END,
         CASE WHEN s.state = 1 THEN r.run_time END, CASE WHEN s.state = 2 THEN c.now END,
         CASE WHEN s.state = 6 THEN c.now END, CASE WHEN s.state = 6 THEN c.now END,
         CASE WHEN s.state = 6 THEN c.now + greatest(n.retention, $29) END
    FROM clock c
   CROSS JOIN unnest($1::uuid[], $2::text[], $3::text[], $4::int2[], $5::int4[], $6::int8[], $7::int8[], $8::float8[],
                     $9::int8[], $10::int8[], $11::text[], $12::text[], $13::bytea[], $14::text[], $15::bool[],
                     $16::bytea[], $17::int8[], $18::int8[], $19::int8[], $23::text[], $24::int8[], $25::int8[],
                     $26::text[], $27::uuid[], $30::uuid[])
      AS n (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention,
            labels, headers, fingerprint, payload_type, payload_is_text, payload, delay, start_at, id_time,
            idempotency_key, expire_in, expires_at, unique_key, replaced_by, copied_from)
   CROSS JOIN LATERAL (SELECT greatest(coalesce(n.start_at, c.now + n.delay), c.now) AS run_time,
                              coalesce(n.expires_at, c.now + n.expire_in) AS expire_time) AS r
   CROSS JOIN LATERAL (SELECT CASE WHEN n.replaced_by IS NOT NULL THEN 6
                                   WHEN r.run_time > c.now THEN 1 ELSE 2 END AS state) AS s
   WHERE n.id_time >= c.now - $20 AND n.id_time <= c.now + $21 AND coalesce(n.start_at, 0) <= c.now + $22
     AND (r.expire_time > r.run_time) IS NOT FALSE
  ON CONFLICT DO NOTHING
  RETURNING id, queue, priority, state, purge_time, labels),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT d.queue, d.priority, min(c.now), min(c.now) + 5000000, array_agg(d.id ORDER BY d.id)
    FROM created d CROSS JOIN clock c WHERE d.state = 2 GROUP BY d.queue, d.priority
  RETURNING id, queue, priority, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, cancelled)
  SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 6)
    FROM created GROUP BY queue),
labelled AS (
  INSERT INTO job_labels (label, job)
  SELECT DISTINCT lh_label(e.key, e.value), d.id
    FROM created d CROSS JOIN LATERAL jsonb_each_text(d.labels) AS e WHERE d.labels IS NOT NULL),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id)
    FROM created WHERE state = 6 GROUP BY purge_time / 3600000000)
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
/// The same for those whose key was taken under another id.
const KEYED: &str = concat!(
    "SELECT fingerprint, ",
    job_columns!(),
    " FROM unnest($1::text[], $2::text[]) AS n (of_queue, key)
      JOIN jobs ON queue = n.of_queue AND idempotency_key = n.key AND idempotency_key IS NOT NULL"
);

/// The same for those whose unique key is held by another job.
const HELD: &str = concat!(
    "SELECT fingerprint, ",
    job_columns!(),
    " FROM unnest($1::text[], $2::text[]) AS n (of_queue, key)
      JOIN jobs ON queue = n.of_queue AND unique_held = n.key AND unique_held IS NOT NULL"
);

/// A node of an earlier version, during an upgrade, ends a job and leaves it its key.
const LET_GO: &str = "
UPDATE jobs SET unique_held = NULL
 WHERE id = ANY (ARRAY(SELECT id FROM jobs WHERE id = ANY ($1) ORDER BY id FOR UPDATE)) AND state IN (4, 5, 6)";

/// A job that was in the way and is gone at the second look is tried again; so often.
const ROUNDS_MAX: u32 = 5;

/// Accepts those that nothing is said against.
pub(super) async fn each(pool: &Pool, jobs: &[NewJob]) -> Result<EnqueueAnswer> {
    on(pool, async |conn| attempt(conn, jobs, RUNS_MAX).await).await
}

/// Accepts all or none.
pub(super) async fn all(pool: &Pool, jobs: &[NewJob]) -> Result<EnqueueAnswer> {
    on(pool, async |conn| {
        for run in 1.. {
            match unit(conn, jobs).await {
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
pub(super) async fn on(
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

async fn unit(conn: &mut PgConnection, jobs: &[NewJob]) -> Result<EnqueueAnswer, Broke> {
    let mut tx = conn.begin().await?;
    let answer = attempt(&mut tx, jobs, 1).await?;
    if answer.jobs.iter().any(Enqueued::is_refused) {
        tx.rollback().await?;
        return Ok(refused(answer));
    }
    failpoint::reached("enqueue-uncommitted");
    tx.commit().await?;
    Ok(answer)
}

/// Nothing was accepted: what was not refused itself was not tried.
pub(super) fn refused(answer: EnqueueAnswer) -> EnqueueAnswer {
    let jobs = answer
        .jobs
        .into_iter()
        .map(|answer| match answer.is_refused() {
            true => answer,
            false => Enqueued::NotTried,
        });
    EnqueueAnswer {
        jobs: jobs.collect(),
        segments: Vec::new(),
    }
}

/// What went wrong inside: ours, or the driver's.
pub(super) enum Broke {
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
    runs: u32,
) -> Result<EnqueueAnswer, Broke> {
    let mut open: Vec<&NewJob> = jobs.iter().collect();
    let mut known = Known::default();
    let mut segments = Vec::new();
    let mut now = Timestamp(0);
    for _ in 0..ROUNDS_MAX {
        // What comes after the first of a key may be the first at the next round: that one may be refused for its id.
        let mut firsts = firsts(open.iter().copied());
        firsts.sort_by_key(place);
        let mut run = 1;
        let rows = loop {
            match statement(&firsts, &HashMap::new(), None)?
                .fetch_all(&mut *conn)
                .await
            {
                Err(e) if run < runs && gave_way(&e) => run += 1,
                rows => break rows?,
            }
        };
        segments.extend(row::segments(&rows)?);
        let inserted_ids: HashSet<JobId>;
        (now, inserted_ids) = inserted(&rows)?;
        for new in firsts.iter().filter(|new| inserted_ids.contains(&new.id)) {
            known.add_news(created(new, now), new.fingerprint.to_vec());
        }
        open.retain(|new| !known.has(new));
        if open.is_empty() {
            break;
        }
        look(conn, &open, HELD, &mut known).await?;
        open.retain(|new| !known.has(new) && out_of_bounds(new, now).is_none());
        if open.is_empty() {
            break;
        }
    }
    Ok(EnqueueAnswer {
        jobs: answers(jobs, known, now)?,
        segments,
    })
}

/// Looks at what is there under the ids, and under the keys, of jobs that were not created. `held` is the statement by which
/// it looks for who holds their unique keys.
pub(super) async fn look(
    conn: &mut PgConnection,
    open: &[&NewJob],
    held: &'static str,
    known: &mut Known,
) -> Result<(), Broke> {
    let ids: Vec<Uuid> = open.iter().map(|new| new.id.uuid()).collect();
    let mut rows = sqlx::query(EXISTING)
        .bind(&ids)
        .fetch_all(&mut *conn)
        .await?;
    let keys = open.iter().filter_map(|new| new.key());
    let (queues, keys): (Vec<&str>, Vec<&str>) = keys
        .map(|(queue, key)| (queue.as_str(), key.as_str()))
        .unzip();
    if !keys.is_empty() {
        let keyed = sqlx::query(KEYED).bind(&queues).bind(&keys);
        rows.extend(keyed.fetch_all(&mut *conn).await?);
    }
    // Last, as who holds a key is what changes most.
    let (queues, keys) = unique_keys(open);
    if !keys.is_empty() {
        let held = sqlx::query(held).bind(&queues).bind(&keys);
        let held = held.fetch_all(&mut *conn).await?;
        let_go(conn, &held).await?;
        rows.extend(held);
    }
    for row in &rows {
        if column::<i16>(row, "state")? == DELETED {
            known.add_deleted(JobId::from_store(column(row, "id")?));
            continue;
        }
        known.add(row::job(row, View::Basic)?, column(row, "fingerprint")?);
    }
    Ok(())
}

/// Lets go of keys for jobs that are final and hold them nevertheless.
async fn let_go(conn: &mut PgConnection, held: &[PgRow]) -> Result<(), Broke> {
    let mut ended: Vec<Uuid> = Vec::new();
    for row in held {
        if state(column(row, "state")?)?.is_final() {
            ended.push(column(row, "id")?);
        }
    }
    if !ended.is_empty() {
        sqlx::query(LET_GO).bind(&ended).execute(conn).await?;
    }
    Ok(())
}

fn unique_keys<'a>(jobs: &[&'a NewJob]) -> (Vec<&'a str>, Vec<&'a str>) {
    let keys = jobs.iter().filter_map(|new| new.unique());
    keys.map(|(queue, key)| (queue.as_str(), key.as_str()))
        .unzip()
}

/// The time by which the ids were judged, and those that were new.
pub(super) fn inserted(rows: &[PgRow]) -> Result<(Timestamp, HashSet<JobId>)> {
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

/// `replaced`: those of them that are replaced by others, and by which. `now`: the time, if it is not to be looked at.
pub(super) fn statement<'q>(
    jobs: &[&NewJob],
    replaced: &HashMap<JobId, JobId>,
    now: Option<Timestamp>,
) -> Result<Statement<'q>> {
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
        .bind(micros(SPAN_MAX))
        .bind(jobs.iter().map(key).collect::<Vec<_>>())
        .bind(jobs.iter().map(expire_in).collect::<Vec<_>>())
        .bind(jobs.iter().map(expire_time).collect::<Vec<_>>())
        .bind(jobs.iter().map(unique_key).collect::<Vec<_>>())
        .bind(
            jobs.iter()
                .map(|job| replaced.get(&job.id).map(|by| by.uuid()))
                .collect::<Vec<_>>(),
        )
        .bind(now.map(|now| now.0))
        .bind(micros(ROW_AGE_MIN))
        .bind(
            jobs.iter()
                .map(|job| job.copied_from.map(|of| of.uuid()))
                .collect::<Vec<_>>(),
        ))
}
