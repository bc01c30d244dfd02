//! Cancel, and what one node tells the others through the store.

use std::time::Duration;

use uuid::Uuid;

use super::admin::get;
use super::pool::Pool;
use super::row::{bound, column, count, job, job_columns};
use crate::error::{Error, Result};
use crate::job::limits::ROW_AGE_MIN;
use crate::job::time::micros;
use crate::job::{AuditAction, By, JobId, JobState, Lease, NodeId, SessionId, View};
use crate::store::{Cancelled, Signal};

const CANCEL: &str = concat!(
    "WITH locked AS MATERIALIZED (
  SELECT id, state AS was, session AS had, attempt AS had_attempt FROM jobs
   WHERE id = $1 AND state IN (1, 2, 3) FOR UPDATE),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
done AS (
  UPDATE jobs j
     SET state = 6, revision = j.revision + 1, session = NULL, due_at = NULL, expire_at = NULL, unique_held = NULL,
         timeout_time = NULL, released_in_row = 0,
         finish_time = c.now, failed_at = c.now, purge_time = greatest(c.now + j.retention, j.create_time + $3)
    FROM clock c, locked l WHERE j.id = l.id AND j.state = l.was
  RETURNING j.*, l.was, l.had, c.now),
history AS (
  INSERT INTO attempts (job, attempt, session, outcome, worker, failure_type, message, detail, start_time, end_time)
  SELECT id, attempt, had, 7, worker, '', $2, '', coalesce(start_time, now), now FROM done WHERE was = 3),
told AS (
  INSERT INTO signals (created_at, job, session, attempt) SELECT now, id, had, attempt FROM done WHERE was = 3),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, purge_time, 1, ARRAY[id] FROM done),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, running, cancelled)
  SELECT queue, -(was = 1)::int, -(was = 2)::int, -(was = 3)::int, 1 FROM done),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, 1, $4, id::text, $5, $2 FROM done WHERE $5 <> '')
SELECT was, had, ",
    job_columns!(),
    " FROM done"
);

const SIGNALS: &str = "
SELECT s.id, s.job, s.attempt, s.session
  FROM signals s JOIN sessions n ON n.id = s.session AND n.node = $1
 WHERE s.created_at >= (SELECT lh_us() - $2) ORDER BY s.created_at DESC LIMIT $3";

/// A job that is seen to move between two looks is looked at again; so often.
const ROUNDS_MAX: u32 = 3;

/// Cancels a job that is not final.
pub(super) async fn cancel(pool: &Pool, id: JobId, by: &By) -> Result<Cancelled> {
    for _ in 0..ROUNDS_MAX {
        let rows = pool
            .write(|| {
                sqlx::query(CANCEL)
                    .bind(id.uuid())
                    .bind(by.reason.clone())
                    .bind(micros(ROW_AGE_MIN))
                    .bind(AuditAction::CancelJob.number())
                    .bind(by.actor.as_str().to_owned())
            })
            .await?;
        if let Some(row) = rows.first() {
            let job = job(row, View::Basic)?;
            let had = column::<Option<Uuid>>(row, "had")?.map(SessionId::from_store);
            let ran = column::<i16>(row, "was")? == JobState::Running.number();
            let lease = Lease {
                job: id,
                attempt: job.attempt,
            };
            return Ok(Cancelled::Done(
                job,
                had.filter(|_| ran).map(|session| (lease, session)),
            ));
        }
        match get(pool, &[id], View::Basic).await?.pop().flatten() {
            None => return Ok(Cancelled::NotFound),
            Some(job) if job.state == JobState::Cancelled => return Ok(Cancelled::Already(job)),
            Some(job) if job.state.is_final() => return Ok(Cancelled::WrongState(job.state)),
            Some(_) => {}
        }
    }
    Err(Error::unavailable("postgres"))
}

/// Signals of the last `window` for sessions attached to `node`, the newest first.
pub(super) async fn signals(
    pool: &Pool,
    node: NodeId,
    window: Duration,
    limit: usize,
) -> Result<Vec<Signal>> {
    let rows = pool
        .read(|| {
            sqlx::query(SIGNALS)
                .bind(node.0)
                .bind(micros(window))
                .bind(bound(limit))
        })
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Signal {
                id: column(row, "id")?,
                lease: Lease {
                    job: JobId::from_store(column(row, "job")?),
                    attempt: count(row, "attempt")?,
                },
                session: SessionId::from_store(column(row, "session")?),
            })
        })
        .collect()
}
