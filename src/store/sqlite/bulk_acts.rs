//! What a step of a bulk does to jobs: what the verbs of one job do, to a part of a chunk in one transaction, in which the
//! bulk's counts and its place in the chunk are written too.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::change::{Change, Current, Ended, apply, current};
use super::fault::{broken, fault};
use super::row::{batch, hex, id_list, rows_max};
use super::sweep::PURGE;
use super::{SqliteStore, backlog, commit, signals};
use crate::error::{Error, Result};
use crate::job::limits::ROW_AGE_MIN;
use crate::job::time::micros;
use crate::job::{
    AttemptOutcome, BulkAction, By, Failure, JobId, JobState, Lease, Priority, SessionId, Timestamp,
};
use crate::store::{BulkStep, ClaimedBulk, Line};

const IS_MINE: &str =
    "SELECT count(*) FROM bulks WHERE id = ?1 AND claim = ?2 AND state = 2 AND end_time IS NULL";
const CHUNK: &str = "
SELECT number, used, jobs FROM bulk_chunks WHERE bulk = ?1 AND released = 0 ORDER BY number DESC LIMIT 1";
const SPENT: &str = "DELETE FROM bulk_chunks WHERE bulk = ?1 AND released = 0 AND number = ?2";
const MOVED: &str =
    "UPDATE bulk_chunks SET used = ?3 WHERE bulk = ?1 AND released = 0 AND number = ?2";
const RELEASED: &str = "
INSERT INTO bulk_chunks (bulk, released, number, jobs) VALUES (?1, 1, ?2, ?3)";
const TOLD: &str = "
UPDATE bulks
   SET done = done + ?2, failed = failed + ?3, skipped = skipped + ?4, stage_released = stage_released + ?2,
       claim = claim + 1, claimed_until = 0, due_time = max(due_time, ?5 - 1000000) + ?6
 WHERE id = ?1";
// Jobs with unique keys, and who holds them.
const KEYS: &str = "
SELECT j.id, j.queue, j.unique_key,
       (SELECT h.id FROM jobs h WHERE h.queue = j.queue AND h.unique_key = j.unique_key AND h.unique_key IS NOT NULL
           AND h.state < 4)
  FROM jobs j WHERE j.id IN (SELECT unhex(value) FROM json_each(?1)) AND j.unique_key IS NOT NULL ORDER BY j.id";
const SET_PRIORITY: &str = "
UPDATE jobs SET priority = ?2, revision = revision + 1, queue_time = CASE state WHEN 2 THEN ?3 ELSE queue_time END
 WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state IN (1, 2)";
const PURGE_WAITING: &str = "
DELETE FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state IN (1, 2)";
const KEEP_IDS: &str = "
INSERT INTO deleted (id, purge_time) SELECT unhex(value->>'$[0]'), value->>'$[1]' FROM json_each(?1)";

/// Acts on the next `jobs` of a claimed bulk, which then rests for a while.
pub(super) async fn act(
    store: &SqliteStore,
    claimed: &ClaimedBulk,
    jobs: usize,
    rest: Duration,
) -> Result<BulkStep> {
    let bulk = &claimed.bulk;
    let (mut tx, now) = store.write().await?;
    let mine: i64 = sqlx::query_scalar(IS_MINE)
        .bind(bulk.id.uuid())
        .bind(claimed.claim)
        .fetch_one(&mut *tx)
        .await
        .map_err(fault)?;
    if mine == 0 {
        return Ok(BulkStep::default());
    }
    let asked = take(&mut tx, claimed, jobs).await?;
    let ids: Vec<JobId> = asked.iter().map(|(id, _)| *id).collect();
    let mut found = current(&mut tx, &ids).await?;
    let rows: Vec<Current> = asked
        .iter()
        .filter_map(|(id, revision)| {
            let row = found.remove(id)?;
            let is_unchanged = row.revision == *revision || !bulk.action.is_for_unchanged();
            (is_unchanged && bulk.filter.states.contains(&row.state)).then_some(row)
        })
        .collect();
    let mut step = BulkStep::default();
    let done = match bulk.action {
        BulkAction::Retry => retry(&mut tx, now, &rows, &mut step).await?,
        BulkAction::Cancel => cancel(&mut tx, now, &rows, &bulk.by, &mut step).await?,
        BulkAction::Delete | BulkAction::Purge => {
            delete(&mut tx, now, &rows, bulk.action).await?;
            step.jobs = ids_of(&rows);
            rows.len()
        }
        BulkAction::RunNow => run_now(&mut tx, now, &rows, &mut step).await?,
        BulkAction::SetPriority(priority) => {
            set_priority(&mut tx, now, &rows, priority, &mut step).await?;
            rows.len()
        }
    };
    if bulk.canary.is_some() && !step.jobs.is_empty() {
        let released: Vec<String> = step.jobs.iter().map(|id| hex(id.uuid())).collect();
        sqlx::query(RELEASED)
            .bind(bulk.id.uuid())
            .bind(i64::try_from(bulk.counts.done).map_err(Error::internal)?)
            .bind(batch(&released)?)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
    }
    // Should there be no chunk any more, which cannot be, all that is left counts as skipped, so that the bulk comes to
    // its end.
    let skipped = match asked.len() {
        0 => i64::try_from(bulk.counts.left()).map_err(Error::internal)?,
        asked => rows_max(asked - rows.len()),
    };
    sqlx::query(TOLD)
        .bind(bulk.id.uuid())
        .bind(rows_max(done))
        .bind(rows_max(rows.len() - done))
        .bind(skipped)
        .bind(now.0)
        .bind(micros(rest))
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await?;
    Ok(step)
}

/// The next jobs of the chunk that is next, with the revisions at which they were collected.
async fn take(
    connection: &mut SqliteConnection,
    claimed: &ClaimedBulk,
    jobs: usize,
) -> Result<Vec<(JobId, i64)>> {
    let id = claimed.bulk.id.uuid();
    let chunk: Option<(i64, i64, String)> = sqlx::query_as(CHUNK)
        .bind(id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(fault)?;
    let Some((number, used, chunk)) = chunk else {
        return Ok(Vec::new());
    };
    let chunk: Vec<(String, i64)> = serde_json::from_str(&chunk).map_err(Error::internal)?;
    let begin = usize::try_from(used).map_err(Error::internal)?;
    let end = begin.saturating_add(jobs);
    let statement = match end >= chunk.len() {
        true => sqlx::query(SPENT).bind(id).bind(number),
        false => sqlx::query(MOVED).bind(id).bind(number).bind(rows_max(end)),
    };
    statement.execute(connection).await.map_err(fault)?;
    let taken = chunk.iter().skip(begin).take(jobs);
    taken
        .map(|(id, revision)| {
            let id = Uuid::try_parse(id).map_err(|_| broken("bulk_chunks.jobs"))?;
            Ok((JobId::from_store(id), *revision))
        })
        .collect()
}

fn ids_of(rows: &[Current]) -> Vec<JobId> {
    rows.iter().map(|row| row.id).collect()
}

/// Of jobs that have the same unique key, the oldest gets it.
async fn retry(
    connection: &mut SqliteConnection,
    now: Timestamp,
    rows: &[Current],
    step: &mut BulkStep,
) -> Result<usize> {
    let keys: Vec<(Uuid, String, String, Option<Uuid>)> = sqlx::query_as(KEYS)
        .bind(id_list(&ids_of(rows))?)
        .fetch_all(&mut *connection)
        .await
        .map_err(fault)?;
    let mut taken = HashSet::new();
    let mut held = HashSet::new();
    for (id, queue, key, holder) in keys {
        if holder.is_some() || !taken.insert((queue, key)) {
            held.insert(JobId::from_store(id));
        }
    }
    let changes: Vec<Change> = rows
        .iter()
        .filter(|row| !held.contains(&row.id))
        .map(|row| {
            let mut change = row.goes_on(JobState::Queued, now);
            change.new.failures = 0;
            change.new.lost_leases = 0;
            change.new.released_in_row = 0;
            change.new.expire_at = None;
            change
        })
        .collect();
    write(connection, now, &changes, step).await
}

async fn cancel(
    connection: &mut SqliteConnection,
    now: Timestamp,
    rows: &[Current],
    by: &By,
    step: &mut BulkStep,
) -> Result<usize> {
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        let mut change = row.ends(JobState::Cancelled, now);
        if let (JobState::Running, Some(session)) = (row.state, row.session) {
            change.ended = Some(Ended {
                session,
                outcome: AttemptOutcome::Cancelled,
                failure: Some(Failure {
                    message: by.reason.clone(),
                    ..Failure::default()
                }),
            });
            let lease = Lease {
                job: row.id,
                attempt: row.attempt,
            };
            let session = SessionId::from_store(session);
            signals::send(connection, now, lease, session).await?;
            step.cancelled.push((lease, session));
        }
        changes.push(change);
    }
    write(connection, now, &changes, step).await
}

async fn run_now(
    connection: &mut SqliteConnection,
    now: Timestamp,
    rows: &[Current],
    step: &mut BulkStep,
) -> Result<usize> {
    let is_open = |row: &&Current| {
        let expires = row.expire_at.filter(|_| row.attempt == 0);
        expires.is_none_or(|expires| expires > now.0)
    };
    let changes: Vec<Change> = rows
        .iter()
        .filter(is_open)
        .map(|row| row.goes_on(JobState::Queued, now))
        .collect();
    write(connection, now, &changes, step).await
}

async fn write(
    connection: &mut SqliteConnection,
    now: Timestamp,
    changes: &[Change],
    step: &mut BulkStep,
) -> Result<usize> {
    step.segments = apply(connection, now, changes).await?;
    step.jobs = changes.iter().map(|change| change.was.id).collect();
    Ok(changes.len())
}

/// A job that has this priority keeps its place.
async fn set_priority(
    connection: &mut SqliteConnection,
    now: Timestamp,
    rows: &[Current],
    priority: Priority,
    step: &mut BulkStep,
) -> Result<()> {
    let moved: Vec<&Current> = rows
        .iter()
        .filter(|row| row.line.priority != priority)
        .collect();
    step.jobs = moved.iter().map(|row| row.id).collect();
    sqlx::query(SET_PRIORITY)
        .bind(id_list(&step.jobs)?)
        .bind(priority.number())
        .bind(now.0)
        .execute(&mut *connection)
        .await
        .map_err(fault)?;
    let lines: HashMap<JobId, Line> = moved
        .iter()
        .filter(|row| row.state == JobState::Queued)
        .map(|row| {
            let queue = row.line.queue.clone();
            (row.id, Line { queue, priority })
        })
        .collect();
    let queued = moved
        .iter()
        .filter_map(|row| Some((lines.get(&row.id)?, row.id)));
    step.segments = backlog::append(connection, now, queued).await?;
    Ok(())
}

/// Ids are kept until they are too old to be sent again: so none comes to life twice.
async fn delete(
    connection: &mut SqliteConnection,
    now: Timestamp,
    rows: &[Current],
    action: BulkAction,
) -> Result<()> {
    let list = id_list(&ids_of(rows))?;
    let [bodies @ .., last] = PURGE;
    let last = match action {
        BulkAction::Purge => PURGE_WAITING,
        _ => last,
    };
    for statement in bodies.into_iter().chain([last]) {
        sqlx::query(statement)
            .bind(&list)
            .execute(&mut *connection)
            .await
            .map_err(fault)?;
    }
    let kept: Vec<(String, i64)> = rows
        .iter()
        .map(|row| {
            let until = row.create_time.after(ROW_AGE_MIN).max(now);
            (hex(row.id.uuid()), until.0)
        })
        .collect();
    sqlx::query(KEEP_IDS)
        .bind(batch(&kept)?)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}
