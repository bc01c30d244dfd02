//! What a hand does to one job, cancel and retry aside: delete.

use super::admin::get;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::job::limits::ROW_AGE_MIN;
use crate::job::time::micros;
use crate::job::{JobId, View};
use crate::store::Deleted;

/// All that the job held goes at once. Its row stays, empty and in a state that nothing looks for, by which its id is known
/// until that is too old to be sent again: so no id comes to life twice.
const DELETE: &str = "
WITH locked AS MATERIALIZED (
  SELECT id, queue, state AS was FROM jobs WHERE id = $1 AND state IN (4, 5, 6) FOR UPDATE),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
gone AS (
  UPDATE jobs j
     SET state = 7, session = NULL, queue = '', kind = '', worker = '', labels = NULL, headers = NULL, fingerprint = '',
         payload = '', payload_type = '', output = NULL, output_type = NULL, idempotency_key = NULL, unique_key = NULL,
         unique_held = NULL,
         failed_at = NULL, expire_at = NULL, has_progress = false, purge_time = greatest(c.now, j.create_time + $2)
    FROM clock c, locked l WHERE j.id = l.id AND j.state = l.was
  RETURNING j.id, j.purge_time, l.queue, l.was),
history AS (
  DELETE FROM attempts a USING gone g WHERE a.job = g.id),
progressed AS (
  DELETE FROM progress p USING gone g WHERE p.job = g.id),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, purge_time, 1, ARRAY[id] FROM gone),
counted AS (
  INSERT INTO queue_counts (queue, succeeded, failed, cancelled)
  SELECT queue, -(was = 4)::int, -(was = 5)::int, -(was = 6)::int FROM gone)
SELECT id FROM gone";

/// A job that is seen to move between two looks is looked at again; so often.
const ROUNDS_MAX: u32 = 3;

/// Deletes a final job.
pub(super) async fn delete(pool: &Pool, id: JobId) -> Result<Deleted> {
    for _ in 0..ROUNDS_MAX {
        let delete = || {
            sqlx::query(DELETE)
                .bind(id.uuid())
                .bind(micros(ROW_AGE_MIN))
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
