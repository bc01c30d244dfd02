//! What people and callers look at: jobs and numbers; and the retry by hand.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::fault::is_held;
use super::pool::Pool;
use super::row::{InOrder, attempt, bound, column, job, job_columns, progress, segments, span};
use crate::error::{Error, Result};
use crate::job::limits::ATTEMPTS_SHOWN;
use crate::job::time::micros;
use crate::job::{
    AttemptOutcome, AuditAction, By, Job, JobId, JobState, QueueName, Timestamp, View,
};
use crate::store::{QueueStats, Retried, Version};

const PING: &str = "SELECT 'PostgreSQL ' || current_setting('server_version') AS version";

const GET_BASIC: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs WHERE id = ANY($1) AND state <> 7"
);
/// Lines that a job's attempts have said. Only those jobs are looked for in the other table that have something there.
macro_rules! said {
    () => {
        "CASE WHEN has_log THEN (SELECT l.said FROM job_logs l WHERE l.job = jobs.id) END AS said"
    };
}
const GET_PROGRESS: &str = concat!(
    "SELECT ",
    job_columns!(),
    ", ",
    said!(),
    " FROM jobs WHERE id = ANY($1) AND state <> 7"
);
const GET_FULL: &str = concat!(
    "SELECT ",
    job_columns!(),
    ", ",
    said!(),
    ", payload_type, payload_is_text, payload, output_type, output_is_text, output FROM jobs WHERE id = ANY($1) AND state <> 7"
);
/// The newest of each job, and the newest that says why it failed, which may be older than those. (A lost lease says
/// so only if it was one too many.)
const ATTEMPTS: &str = "
SELECT a.* FROM unnest($1::uuid[]) AS n (job), LATERAL (
  (SELECT * FROM attempts WHERE job = n.job ORDER BY attempt DESC LIMIT $2)
  UNION
  (SELECT * FROM attempts WHERE job = n.job AND (outcome IN (2, 3) OR failure_type = 'LEASES_LOST')
    ORDER BY attempt DESC LIMIT 1)) AS a
 ORDER BY a.job, a.attempt";

const PROGRESS: &str = "
SELECT job, revision, percent, note, CASE WHEN $2 THEN checkpoint END AS checkpoint FROM progress WHERE job = ANY($1)";

/// Only those jobs are looked for in the other tables that have something there.
const VERSIONS: &str = concat!(
    "SELECT id, revision,
       CASE WHEN has_progress THEN (SELECT p.revision FROM progress p WHERE p.job = jobs.id) END AS progress, ",
    said!(),
    " FROM jobs WHERE id = ANY($1) AND state <> 7"
);

const RETRY: &str = concat!(
    "WITH locked AS MATERIALIZED (
  SELECT id, state AS was FROM jobs WHERE id = $1 AND state IN (5, 6) FOR UPDATE),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
done AS (
  UPDATE jobs j
     SET state = CASE WHEN $2 > 0 THEN 1 ELSE 2 END, revision = j.revision + 1, session = NULL,
         failures = 0, lost_leases = 0, released_in_row = 0,
         run_time = c.now + $2, due_at = CASE WHEN $2 > 0 THEN c.now + $2 END,
         queued_time = CASE WHEN $2 > 0 THEN j.queued_time ELSE c.now END,
         finish_time = NULL, purge_time = NULL, failed_at = NULL, timeout_time = NULL, expire_at = NULL,
         unique_held = j.unique_key, replaced_by = NULL
    FROM clock c, locked l WHERE j.id = l.id AND j.state = l.was
  RETURNING j.*, l.was, c.now),
segmented AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, now, now + 5000000, ARRAY[id] FROM done WHERE state = 2 RETURNING id, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, failed, cancelled)
  SELECT queue, (state = 1)::int, (state = 2)::int, -(was = 5)::int, -(was = 6)::int FROM done),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, 1, $3, id::text, $4, $5 FROM done WHERE $4 <> '')
SELECT (SELECT id FROM segmented) AS segment, (SELECT jobs FROM segmented) AS jobs, ",
    job_columns!(),
    " FROM done"
);

/// Who holds the unique key of a job.
const HOLDER: &str = "
SELECT h.id FROM jobs j JOIN jobs h ON h.queue = j.queue AND h.unique_held = j.unique_key AND h.unique_held IS NOT NULL
 WHERE j.id = $1 AND h.state IN (1, 2, 3)";
/// A node of an earlier version, during an upgrade, ends a job and leaves it its key.
const LET_GO: &str = "
UPDATE jobs h SET unique_held = NULL FROM jobs j
 WHERE j.id = $1 AND h.queue = j.queue AND h.unique_held = j.unique_key AND h.unique_held IS NOT NULL
   AND h.state IN (4, 5, 6)";

/// Of queues `q`, whose QUEUED jobs are `s2`, the oldest segment that still counts. It is looked for among the oldest few
/// of each priority: tidying keeps those short.
macro_rules! oldest {
    () => {
        "LEFT JOIN LATERAL (
    SELECT min(b.created_at) AS oldest FROM (VALUES (1::int2), (2::int2), (3::int2)) AS p (priority), LATERAL (
      SELECT f.created_at FROM (
        SELECT * FROM backlog WHERE queue = q.queue AND priority = p.priority ORDER BY id LIMIT 200) AS f
       WHERE EXISTS (SELECT FROM unnest(f.jobs) AS u (job)
                       JOIN jobs j ON j.id = u.job AND j.state = 2 AND j.queued_time = f.created_at)
       ORDER BY f.id LIMIT 1) AS b
     WHERE q.s2 > 0) AS o ON true"
    };
}
pub(super) use oldest;

const STATS: &str = concat!(
    "WITH q AS MATERIALIZED (
  SELECT queue, sum(scheduled)::bigint AS s1, sum(queued)::bigint AS s2, sum(running)::bigint AS s3,
         sum(succeeded)::bigint AS s4, sum(failed)::bigint AS s5, sum(cancelled)::bigint AS s6
    FROM queue_counts GROUP BY queue ORDER BY queue LIMIT $1)
SELECT q.*, (SELECT lh_us()) - o.oldest AS waited
  FROM q ",
    oldest!(),
    " ORDER BY q.queue"
);

/// A job that is seen to move between two looks is looked at again; so often.
const ROUNDS_MAX: u32 = 3;

/// One cheap round trip.
pub(super) async fn ping(pool: &Pool) -> Result<String> {
    let rows = pool.read(|| sqlx::query(PING)).await?;
    rows.first()
        .map_or(Ok(String::new()), |row| column(row, "version"))
}

/// What the database's clock says.
pub(super) async fn now(pool: &Pool) -> Result<Timestamp> {
    let rows = pool.read(|| sqlx::query("SELECT lh_us() AS now")).await?;
    let row = rows.first().ok_or_else(|| Error::internal("no time"))?;
    Ok(Timestamp(column(row, "now")?))
}

/// Reads jobs.
pub(super) async fn get(pool: &Pool, ids: &[JobId], view: View) -> Result<Vec<Option<Job>>> {
    let mut found = read(pool, ids, view).await?;
    // One id may be asked for twice.
    let mut asked = HashMap::new();
    for id in ids {
        *asked.entry(*id).or_insert(0_usize) += 1;
    }
    Ok(ids
        .iter()
        .map(|id| {
            let left = asked.entry(*id).or_default();
            *left = left.saturating_sub(1);
            match *left {
                0 => found.remove(id),
                _ => found.get(id).cloned(),
            }
        })
        .collect())
}

async fn read(pool: &Pool, ids: &[JobId], view: View) -> Result<HashMap<JobId, Job>> {
    let keys: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let sql = match view {
        View::Basic => GET_BASIC,
        View::Progress => GET_PROGRESS,
        View::Full => GET_FULL,
    };
    let mut found = HashMap::with_capacity(ids.len());
    for row in pool.read(|| sqlx::query(sql).bind(&keys)).await? {
        let job = job(&row, view)?;
        found.insert(job.id, job);
    }
    if view == View::Full {
        let rows = pool
            .read(|| {
                sqlx::query(ATTEMPTS)
                    .bind(&keys)
                    .bind(bound(ATTEMPTS_SHOWN))
            })
            .await?;
        add_attempts(&mut found, &rows)?;
    }
    if view != View::Basic {
        let rows = pool
            .read(|| sqlx::query(PROGRESS).bind(&keys).bind(view == View::Full))
            .await?;
        for row in rows {
            let (id, progress) = progress(&row)?;
            if let Some(job) = found.get_mut(&JobId::from_store(id)) {
                job.progress = Some(progress);
            }
        }
    }
    Ok(found)
}

/// How new jobs are.
pub(super) async fn versions(pool: &Pool, ids: &[JobId]) -> Result<Vec<Option<Version>>> {
    let keys: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let rows = pool.read(|| sqlx::query(VERSIONS).bind(&keys)).await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let mut row = InOrder::of(row);
        let id = row.next::<Uuid>()?;
        let revision = row.next::<i64>()?;
        let progress = row.next::<Option<i64>>()?.unwrap_or(0);
        let lines = row.next::<Option<i64>>()?.unwrap_or(0);
        let version = Version {
            lines: u64::try_from(lines).unwrap_or(0),
            revision: u64::try_from(revision).unwrap_or(0),
            progress: u64::try_from(progress).unwrap_or(0),
        };
        found.insert(id, version);
    }
    Ok(keys.iter().map(|id| found.get(id).copied()).collect())
}

fn add_attempts(found: &mut HashMap<JobId, Job>, rows: &[PgRow]) -> Result<()> {
    for row in rows {
        let (id, record) = attempt(row)?;
        let Some(job) = found.get_mut(&JobId::from_store(id)) else {
            continue;
        };
        // An id that was asked for twice has its rows twice.
        if job
            .attempts
            .last()
            .is_some_and(|last| last.attempt >= record.attempt)
        {
            continue;
        }
        let is_failure = match record.outcome {
            AttemptOutcome::Failed | AttemptOutcome::TimedOut => true,
            // One too many.
            AttemptOutcome::LeaseLost | AttemptOutcome::Forgotten => record.failure.is_some(),
            _ => false,
        };
        if is_failure {
            job.last_failure.clone_from(&record.failure);
        }
        job.attempts.push(record);
    }
    for job in found.values_mut() {
        if job.last_failure.is_none() {
            job.last_failure = job.failed_unbegun();
        }
        let extra = job.attempts.len().saturating_sub(ATTEMPTS_SHOWN);
        job.attempts.drain(..extra);
    }
    Ok(())
}

/// Brings a FAILED or CANCELLED job back.
pub(super) async fn retry(pool: &Pool, id: JobId, delay: Duration, by: &By) -> Result<Retried> {
    for _ in 0..ROUNDS_MAX {
        let retry = || {
            sqlx::query(RETRY)
                .bind(id.uuid())
                .bind(micros(delay))
                .bind(AuditAction::RetryJob.number())
                .bind(by.actor.as_str().to_owned())
                .bind(by.reason.clone())
        };
        let Some(rows) = pool.write_unless(is_held, retry).await? else {
            let holder = pool.read(|| sqlx::query(HOLDER).bind(id.uuid())).await?;
            match holder.first() {
                Some(row) => return Ok(Retried::KeyHeld(JobId::from_store(column(row, "id")?))),
                // It has let go of it since, or is made to.
                None => {
                    pool.write(|| sqlx::query(LET_GO).bind(id.uuid())).await?;
                    continue;
                }
            }
        };
        if let Some(row) = rows.first() {
            return Ok(Retried::Done(job(row, View::Basic)?, segments(&rows)?));
        }
        match get(pool, &[id], View::Basic).await?.pop().flatten() {
            None => return Ok(Retried::NotFound),
            Some(job) if matches!(job.state, JobState::Failed | JobState::Cancelled) => {}
            Some(job) => return Ok(Retried::WrongState(job.state)),
        }
    }
    Err(Error::unavailable("postgres"))
}

/// Numbers of queues.
pub(super) async fn stats(pool: &Pool, limit: usize) -> Result<Vec<QueueStats>> {
    let rows = pool.read(|| sqlx::query(STATS).bind(bound(limit))).await?;
    rows.iter().map(stats_of).collect()
}

/// Reads the numbers of one queue.
pub(super) fn stats_of(row: &PgRow) -> Result<QueueStats> {
    let mut counts = [0; 6];
    for (count, name) in counts.iter_mut().zip(["s1", "s2", "s3", "s4", "s5", "s6"]) {
        *count = u64::try_from(column::<i64>(row, name)?).unwrap_or(0);
    }
    Ok(QueueStats {
        queue: QueueName::from_store(column(row, "queue")?),
        counts,
        oldest_wait: column::<Option<i64>>(row, "waited")?.map(span),
    })
}
