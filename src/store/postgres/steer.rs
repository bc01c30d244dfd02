//! What a hand does to one job, cancel and retry aside: another time, another priority, and delete.

use super::admin::get;
use super::pool::{Pool, Statement};
use super::row::{column, segments, unlabelled};
use crate::error::{Error, Result};
use crate::job::limits::{ROW_AGE_MIN, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{AuditAction, By, JobId, JobState, Priority, Start, View};
use crate::store::{Deleted, Rescheduled};

/// `fault`: 1 for a time that is too far ahead, 2 for one past the time at which the job expires. A session that is in the
/// row of a QUEUED job goes, as with any other way out of that state. A QUEUED job that is due at once is left as it is: it
/// would lose its place. `again`: somebody else has changed the job since this statement's snapshot, which the UPDATE goes
/// by, so nothing is done.
const RESCHEDULE: &str = "
WITH locked AS MATERIALIZED (
  SELECT id, state AS was, CASE WHEN attempt = 0 THEN expire_at END AS expires
    FROM jobs WHERE id = $1 AND state IN (1, 2) FOR UPDATE),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
judged AS MATERIALIZED (
  SELECT l.id, l.was, c.now, r.run_time, r.run_time > c.now AS is_later,
         CASE WHEN r.run_time > c.now + $4 THEN 1 WHEN l.expires <= r.run_time THEN 2 ELSE 0 END AS fault
    FROM locked l, clock c, LATERAL (SELECT greatest(coalesce($3, c.now + $2), c.now) AS run_time) AS r),
done AS (
  UPDATE jobs j
     SET state = CASE WHEN w.is_later THEN 1 ELSE 2 END, revision = j.revision + 1, session = NULL,
         run_time = w.run_time, due_at = CASE WHEN w.is_later THEN w.run_time END,
         queued_time = CASE WHEN w.is_later THEN j.queued_time ELSE w.now END
    FROM judged w WHERE j.id = w.id AND j.state = w.was AND w.fault = 0 AND (w.is_later OR w.was = 1)
  RETURNING j.id, j.queue, j.priority, j.state, w.was, w.now),
segmented AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, now, now + 5000000, ARRAY[id] FROM done WHERE state = 2
  RETURNING id, queue, priority, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued)
  SELECT queue, (state = 1)::int - (was = 1)::int, (state = 2)::int - (was = 2)::int FROM done WHERE state <> was),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, 1, $5, id::text, $6, $7 FROM done WHERE $6 <> '')
SELECT w.fault, w.fault = 0 AND (w.is_later OR w.was = 1) AND NOT EXISTS (SELECT FROM done) AS again,
       s.id AS segment, s.queue, s.priority, s.jobs FROM judged w LEFT JOIN segmented s ON true";

const SET_PRIORITY: &str = "
WITH locked AS MATERIALIZED (
  SELECT id, state AS was, priority <> $2 AS is_other FROM jobs WHERE id = $1 AND state IN (1, 2) FOR UPDATE),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
done AS (
  UPDATE jobs j
     SET priority = $2, revision = j.revision + 1, queued_time = CASE WHEN l.was = 2 THEN c.now ELSE j.queued_time END
    FROM clock c, locked l WHERE j.id = l.id AND j.state = l.was AND j.priority <> $2
  RETURNING j.id, j.queue, j.priority, j.state, c.now),
segmented AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, now, now + 5000000, ARRAY[id] FROM done WHERE state = 2
  RETURNING id, queue, priority, jobs),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, 1, $3, id::text, $4, $5 FROM done WHERE $4 <> '')
SELECT 0 AS fault, l.is_other AND NOT EXISTS (SELECT FROM done) AS again,
       s.id AS segment, s.queue, s.priority, s.jobs FROM locked l LEFT JOIN segmented s ON true";

/// All that the job held goes at once. Its row stays, empty and in a state that nothing looks for, by which its id is known
/// until that is too old to be sent again: so no id comes to life twice.
const DELETE: &str = concat!(
    "
WITH locked AS MATERIALIZED (
  SELECT id, queue, labels, state AS was FROM jobs WHERE id = $1 AND state IN (4, 5, 6) FOR UPDATE),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
gone AS (
  UPDATE jobs j
     SET state = 7, session = NULL, queue = '', kind = '', worker = '', labels = NULL, headers = NULL, fingerprint = '',
         payload = '', payload_type = '', output = NULL, output_type = NULL, idempotency_key = NULL, unique_key = NULL,
         unique_held = NULL,
         failed_at = NULL, expire_at = NULL, has_progress = false, has_log = false,
         purge_time = greatest(c.now, j.create_time + $2)
    FROM clock c, locked l WHERE j.id = l.id AND j.state = l.was
  RETURNING j.id, j.purge_time, l.queue, l.labels, l.was, c.now),
history AS (
  DELETE FROM attempts a USING gone g WHERE a.job = g.id),
progressed AS (
  DELETE FROM progress p USING gone g WHERE p.job = g.id),
",
    unlabelled!("gone"),
    "logged AS (
  DELETE FROM job_logs l USING gone g WHERE l.job = g.id),
said AS (
  DELETE FROM log_lines l USING gone g WHERE l.job = g.id),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, purge_time, 1, ARRAY[id] FROM gone),
counted AS (
  INSERT INTO queue_counts (queue, succeeded, failed, cancelled)
  SELECT queue, -(was = 4)::int, -(was = 5)::int, -(was = 6)::int FROM gone),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, 1, $3, id::text, $4, $5 FROM gone WHERE $4 <> '')
SELECT id FROM gone"
);

/// A job that is seen to move between two looks is looked at again; so often.
const ROUNDS_MAX: u32 = 3;

/// Gives a job that waits another time.
pub(super) async fn reschedule(
    pool: &Pool,
    id: JobId,
    start: Start,
    by: &By,
) -> Result<Rescheduled> {
    let (delay, at) = match start {
        Start::Now => (0, None),
        Start::After(delay) => (micros(delay), None),
        Start::At(time) => (0, Some(time.0)),
    };
    steer(pool, id, || {
        sqlx::query(RESCHEDULE)
            .bind(id.uuid())
            .bind(delay)
            .bind(at)
            .bind(micros(SPAN_MAX))
            .bind(AuditAction::RescheduleJob.number())
            .bind(by.actor.as_str().to_owned())
            .bind(by.reason.clone())
    })
    .await
}

/// Gives a job that waits another priority.
pub(super) async fn set_priority(
    pool: &Pool,
    id: JobId,
    priority: Priority,
    by: &By,
) -> Result<Rescheduled> {
    steer(pool, id, || {
        sqlx::query(SET_PRIORITY)
            .bind(id.uuid())
            .bind(priority.number())
            .bind(AuditAction::SetJobPriority.number())
            .bind(by.actor.as_str().to_owned())
            .bind(by.reason.clone())
    })
    .await
}

/// Runs a statement that answers nothing when the job's state does not allow it, and is to be run again when it says so.
async fn steer<'q>(
    pool: &Pool,
    id: JobId,
    make: impl Fn() -> Statement<'q>,
) -> Result<Rescheduled> {
    for _ in 0..ROUNDS_MAX {
        let rows = pool.write(&make).await?;
        let again = rows.first().map(|row| column::<bool>(row, "again"));
        if again.transpose()? == Some(true) {
            continue;
        }
        match rows
            .first()
            .map(|row| column::<i32>(row, "fault"))
            .transpose()?
        {
            Some(1) => return Ok(Rescheduled::StartTooFar),
            Some(2) => return Ok(Rescheduled::ExpiresTooSoon),
            Some(_) | None => {}
        }
        let job = get(pool, &[id], View::Basic).await?.pop().flatten();
        match job {
            None => return Ok(Rescheduled::NotFound),
            Some(job) if !rows.is_empty() => return Ok(Rescheduled::Done(job, segments(&rows)?)),
            Some(job) if matches!(job.state, JobState::Scheduled | JobState::Queued) => {}
            Some(job) => return Ok(Rescheduled::WrongState(job.state)),
        }
    }
    Err(Error::unavailable("postgres"))
}

/// Deletes a final job.
pub(super) async fn delete(pool: &Pool, id: JobId, by: &By) -> Result<Deleted> {
    for _ in 0..ROUNDS_MAX {
        let delete = || {
            sqlx::query(DELETE)
                .bind(id.uuid())
                .bind(micros(ROW_AGE_MIN))
                .bind(AuditAction::DeleteJob.number())
                .bind(by.actor.as_str().to_owned())
                .bind(by.reason.clone())
        };
        if !pool.write(delete).await?.is_empty() {
            return Ok(Deleted::Done);
        }
        match get(pool, &[id], View::Basic).await?.pop().flatten() {
            None => return Ok(Deleted::NotFound),
            Some(job) if job.state.is_final() => {}
            Some(job) => return Ok(Deleted::WrongState(job.state)),
        }
    }
    Err(Error::unavailable("postgres"))
}
