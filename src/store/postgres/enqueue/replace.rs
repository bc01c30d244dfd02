//! A batch in which some jobs may take the place of others: who holds a key is locked, judged and moved in one transaction.
//!
//! All who would replace something take their keys first, in one order, so that each finds what the one before has left,
//! and none of them loses a race more than once. A grant passes by the holders that are locked. Whoever else is faster (a
//! key that was free is taken, an id comes twice at once) makes the INSERT leave out a job: then all of it is run again.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::mixed::{self, Broke};
use super::{created, out_of_bounds, place};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::ROW_AGE_MIN;
use crate::job::time::micros;
use crate::job::{JobId, NewJob, Timestamp};
use crate::store::known::Known;
use crate::store::postgres::fault::{broken, gave_way};
use crate::store::postgres::pool::{Pool, RUNS_MAX};
use crate::store::postgres::row::{self, column, job_columns};
use crate::store::{EnqueueAnswer, Enqueued, Unit};

/// In the order in which they come.
const TAKE_KEYS: &str = "SELECT pg_advisory_xact_lock(key) FROM unnest($1::int8[]) AS n (key)";

const NOW: &str = "SELECT lh_us() AS now";

/// Who holds the keys, locked until the end: so none of them begins or ends meanwhile.
const HELD: &str = concat!(
    "SELECT fingerprint, ",
    job_columns!(),
    " FROM unnest($1::text[], $2::text[]) AS n (of_queue, key)
      JOIN jobs ON queue = n.of_queue AND unique_held = n.key AND unique_held IS NOT NULL
     ORDER BY id FOR UPDATE OF jobs"
);

const MAKE_WAY: &str = "
WITH locked AS MATERIALIZED (
  SELECT j.id, j.state AS was, r.by FROM unnest($1::uuid[], $2::uuid[]) AS r (id, by)
    JOIN jobs j ON j.id = r.id AND j.state IN (1, 2) AND j.attempt = 0 AND j.unique_held IS NOT NULL
   ORDER BY j.id FOR UPDATE OF j),
done AS (
  UPDATE jobs j
     SET state = 6, revision = j.revision + 1, session = NULL, due_at = NULL, expire_at = NULL, unique_held = NULL,
         replaced_by = l.by, finish_time = $3, failed_at = $3, purge_time = greatest($3 + j.retention, j.create_time + $4)
    FROM locked l WHERE j.id = l.id AND j.state = l.was
  RETURNING j.id, j.queue, j.purge_time, l.was),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id) FROM done GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, cancelled)
  SELECT queue, -count(*) FILTER (WHERE was = 1), -count(*) FILTER (WHERE was = 2), count(*) FROM done GROUP BY queue)
SELECT count(*) AS changed FROM done";

/// Accepts jobs, each in the place of another if it says so.
pub(super) async fn enqueue(pool: &Pool, jobs: &[NewJob], unit: Unit) -> Result<EnqueueAnswer> {
    mixed::on(pool, async |conn| {
        for run in 1..=RUNS_MAX {
            match attempt(conn, jobs, unit).await {
                Err(Broke::Driver(e)) if run < RUNS_MAX && gave_way(&e) => {}
                Ok(None) => {}
                Ok(Some(answer)) => return Ok(answer),
                Err(broke) => return Err(broke),
            }
        }
        Err(Broke::Ours(Error::unavailable("postgres")))
    })
    .await
}

/// `None`: somebody else was faster, and nothing is done.
async fn attempt(
    conn: &mut PgConnection,
    jobs: &[NewJob],
    unit: Unit,
) -> Result<Option<EnqueueAnswer>, Broke> {
    let all: Vec<&NewJob> = jobs.iter().collect();
    let mut tx = conn.begin().await?;
    sqlx::query(TAKE_KEYS)
        .bind(locks(jobs))
        .fetch_all(&mut *tx)
        .await?;
    let mut known = Known::default();
    mixed::look(&mut tx, &all, HELD, &mut known).await?;
    let now = Timestamp(column(&sqlx::query(NOW).fetch_one(&mut *tx).await?, "now")?);

    let mut fresh: Vec<&NewJob> = Vec::new();
    let mut answers = Vec::with_capacity(jobs.len());
    for new in &all {
        let answer = known.answer(new).or_else(|| out_of_bounds(new, now));
        answers.push(answer.unwrap_or_else(|| {
            let job = created(new, now);
            known.create(job.clone(), new.fingerprint.to_vec(), now);
            fresh.push(new);
            Enqueued::Created(job)
        }));
    }
    known.amend(&mut answers);
    let mut answer = EnqueueAnswer {
        jobs: answers,
        segments: Vec::new(),
    };
    if unit == Unit::All && answer.jobs.iter().any(Enqueued::is_refused) {
        tx.rollback().await?;
        return Ok(Some(mixed::refused(answer)));
    }
    if !fresh.is_empty() {
        fresh.sort_by_key(place);
        let Some(segments) = write(&mut tx, now, &fresh, known.replaced()).await? else {
            tx.rollback().await?;
            return Ok(None);
        };
        answer.segments = segments;
    }
    failpoint::reached("enqueue-uncommitted");
    tx.commit().await?;
    Ok(Some(answer))
}

/// `None`: not all of it could be done.
async fn write(
    tx: &mut PgConnection,
    now: Timestamp,
    fresh: &[&NewJob],
    replaced: &[(JobId, JobId)],
) -> Result<Option<Vec<crate::store::Segment>>, Broke> {
    let ids: HashSet<JobId> = fresh.iter().map(|new| new.id).collect();
    let (young, old): (Vec<_>, Vec<_>) = replaced.iter().partition(|(id, _)| ids.contains(id));
    if !old.is_empty() {
        let (old, by): (Vec<Uuid>, Vec<Uuid>) =
            old.iter().map(|(id, by)| (id.uuid(), by.uuid())).unzip();
        let row = sqlx::query(MAKE_WAY)
            .bind(&old)
            .bind(&by)
            .bind(now.0)
            .bind(micros(ROW_AGE_MIN))
            .fetch_one(&mut *tx)
            .await?;
        let changed = usize::try_from(column::<i64>(&row, "changed")?);
        if changed.map_err(|_| broken("jobs"))? < old.len() {
            return Ok(None);
        }
    }
    let young: HashMap<JobId, JobId> = young.into_iter().collect();
    let rows = mixed::statement(fresh, &young, Some(now))?
        .fetch_all(&mut *tx)
        .await?;
    let (_, inserted) = mixed::inserted(&rows)?;
    match inserted.len() == fresh.len() {
        true => Ok(Some(row::segments(&rows)?)),
        false => Ok(None),
    }
}

/// A number for each of their unique keys, the same on every node, in ascending order.
fn locks(jobs: &[NewJob]) -> Vec<i64> {
    let lock = |job: &NewJob| {
        let (queue, key) = job.unique()?;
        let hash = Sha256::new()
            .chain_update(queue.as_str())
            .chain_update([0])
            .chain_update(key.as_str())
            .finalize();
        hash.first_chunk().copied().map(i64::from_be_bytes)
    };
    let mut locks: Vec<i64> = jobs.iter().filter_map(lock).collect();
    locks.sort_unstable();
    locks.dedup();
    locks
}
