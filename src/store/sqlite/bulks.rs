//! Bulks: how they come to be, are seen and end, and which step is next. What a step does to jobs is in `bulk_acts.rs`.

use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::admin::walk;
use super::bulk_acts::act;
use super::fault::{broken, fault};
use super::row::{batch, hex, priority, rows_max, span};
use super::{SqliteStore, audit, commit};
use crate::error::{Error, Result};
use crate::job::bulk::{Next, Turn};
use crate::job::limits::{
    BATCH_MAX, BULK_SAMPLE, BULKS_LIVE_MAX, BULKS_MAX, ID_AGE_MAX, ID_AHEAD_MAX,
};
use crate::job::time::micros;
use crate::job::{
    Actor, AuditAction, BulkAction, BulkCounts, BulkId, BulkState, By, Canary, JobId, Priority,
    Stage, Timestamp,
};
use crate::store::bulk::{read_filter, write_filter};
use crate::store::{Bulk, BulkStep, ClaimedBulk, NewBulk, Started};

const KEPT: &str = "SELECT count(*), count(*) FILTER (WHERE end_time IS NULL) FROM bulks";
const LIVE: &str = "SELECT EXISTS (SELECT 1 FROM bulks WHERE end_time IS NULL)";
const START: &str = "
INSERT INTO bulks (id, create_time, due_time, state, action, priority, dry_run, rate, canary_size, canary_share, canary_within,
                   stage_size, filter, actor, reason)
VALUES (?1, ?2, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, coalesce(?7, 0), ?10, ?11, ?12)";
const BULK: &str = "SELECT * FROM bulks WHERE id = ?1";
const BULKS: &str = "SELECT * FROM bulks WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
const ABORT: &str = "
UPDATE bulks SET state = 5, end_time = ?2, claim = claim + 1, claimed_until = 0 WHERE id = ?1 AND end_time IS NULL";
// A time that lies further ahead than any could be set is of a clock that was set back since.
const CLAIM: &str = "
UPDATE bulks SET claim = claim + 1, claimed_until = ?1 + ?2
 WHERE end_time IS NULL AND id = (
   SELECT id FROM bulks
    WHERE end_time IS NULL AND due_time NOT BETWEEN ?1 + 1 AND ?1 + 60000000 AND claimed_until NOT BETWEEN ?1 + 1 AND ?1 + ?2
    ORDER BY due_time LIMIT 1)
RETURNING *";
const TURN: &str = "
UPDATE bulks
   SET state = ?3, stage_size = ?4, stage_released = ?5, stage_settled = ?6, stage_failed = ?7, stage_until = ?8,
       total = total + ?9, before = ?10, error = ?11, sample = CASE sample WHEN '[]' THEN ?12 ELSE sample END,
       end_time = ?13, due_time = ?14, claim = claim + 1, claimed_until = 0
 WHERE id = ?1 AND claim = ?2 AND end_time IS NULL";
const COLLECT: &str = "
INSERT INTO bulk_chunks (bulk, released, number, jobs) VALUES (?1, 0, ?2, ?3)";
const FORGET: &str = "DELETE FROM bulk_chunks WHERE bulk = ?1";
const FORGET_STAGE: &str = "DELETE FROM bulk_chunks WHERE bulk = ?1 AND released = 1";
// Jobs of a stage were brought back without a failure: one that has any has failed again.
const LOOK: &str = "
SELECT count(*) FILTER (WHERE j.id IS NULL OR j.state >= 4 OR j.failures > 0),
       count(*) FILTER (WHERE j.state = 5 OR j.failures > 0)
  FROM bulk_chunks c CROSS JOIN json_each(c.jobs) AS u LEFT JOIN jobs j ON j.id = unhex(u.value)
 WHERE c.bulk = ?1 AND c.released = 1";

/// Starts a bulk.
pub(super) async fn start(store: &SqliteStore, new: &NewBulk) -> Result<Started> {
    let (mut tx, now) = store.write().await?;
    if let Some(bulk) = read(&mut tx, new.id).await? {
        return Ok(match bulk.is_of(new) {
            true => Started::Existed(bulk),
            false => Started::Conflict,
        });
    }
    let time = new.id.time();
    if now.since(time) > ID_AGE_MAX || time.since(now) > ID_AHEAD_MAX {
        return Ok(Started::IdOutOfTime);
    }
    let (kept, live): (i64, i64) = sqlx::query_as(KEPT)
        .fetch_one(&mut *tx)
        .await
        .map_err(fault)?;
    if kept >= rows_max(BULKS_MAX) || live >= rows_max(BULKS_LIVE_MAX) {
        return Ok(Started::TooMany);
    }
    sqlx::query(START)
        .bind(new.id.uuid())
        .bind(now.0)
        .bind(new.action.number())
        .bind(new.action.priority().map(Priority::number))
        .bind(new.dry_run)
        .bind(new.rate)
        .bind(new.canary.map(|canary| canary.size))
        .bind(new.canary.map(|canary| canary.max_failed_share.to_string()))
        .bind(new.canary.map(|canary| micros(canary.within)))
        .bind(write_filter(&new.filter)?)
        .bind(new.by.actor.as_str())
        .bind(&new.by.reason)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    if !new.dry_run {
        let (action, subject) = match &new.purges {
            None => (AuditAction::StartBulk, new.id.to_string()),
            Some(queue) => (AuditAction::PurgeQueue, queue.to_string()),
        };
        audit::note(&mut tx, now, action, &subject, &new.by).await?;
    }
    let bulk = read(&mut tx, new.id).await?;
    commit(tx).await?;
    bulk.map(Started::Created)
        .ok_or_else(|| broken("no bulk after its start"))
}

/// A bulk.
pub(super) async fn bulk(store: &SqliteStore, id: BulkId) -> Result<Option<Bulk>> {
    let mut connection = store.readers.acquire().await.map_err(fault)?;
    read(&mut connection, id).await
}

/// Bulks by id, newest first.
pub(super) async fn bulks(
    store: &SqliteStore,
    before: Option<BulkId>,
    size: usize,
) -> Result<Vec<Bulk>> {
    let rows: Vec<BulkRow> = sqlx::query_as(BULKS)
        .bind(before.map_or(Uuid::max(), BulkId::uuid))
        .bind(rows_max(size))
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    rows.into_iter().map(BulkRow::into_bulk).collect()
}

/// Ends a bulk, unless it has ended.
pub(super) async fn abort(
    store: &SqliteStore,
    id: BulkId,
    by: &By,
) -> Result<Option<(Bulk, bool)>> {
    let (mut tx, now) = store.write().await?;
    let done = sqlx::query(ABORT)
        .bind(id.uuid())
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    let is_news = done.rows_affected() > 0;
    let Some(bulk) = read(&mut tx, id).await? else {
        return Ok(None);
    };
    if is_news {
        forget(&mut tx, FORGET, id).await?;
        if !bulk.dry_run {
            let count = rows_max(usize::try_from(bulk.counts.done).unwrap_or(usize::MAX));
            let what = (AuditAction::AbortBulk, count);
            audit::note_many(&mut tx, now, what, &id.to_string(), by).await?;
        }
    }
    commit(tx).await?;
    Ok(Some((bulk, is_news)))
}

/// Takes a bulk that is to be gone on with.
pub(super) async fn claim(store: &SqliteStore, for_span: Duration) -> Result<Option<ClaimedBulk>> {
    // As long as there is none, nobody need wait for the one who looks.
    let live: i64 = sqlx::query_scalar(LIVE)
        .fetch_one(&store.readers)
        .await
        .map_err(fault)?;
    if live == 0 {
        return Ok(None);
    }
    let (mut tx, now) = store.write().await?;
    let row: Option<BulkRow> = sqlx::query_as(CLAIM)
        .bind(now.0)
        .bind(micros(for_span))
        .fetch_optional(&mut *tx)
        .await
        .map_err(fault)?;
    let Some(row) = row else {
        return Ok(None);
    };
    commit(tx).await?;
    Ok(Some(ClaimedBulk {
        claim: row.claim,
        before: row.before.map(JobId::from_store),
        now,
        bulk: row.into_bulk()?,
    }))
}

/// Goes one step on with a claimed bulk.
pub(super) async fn step(store: &SqliteStore, claimed: &ClaimedBulk) -> Result<BulkStep> {
    let progress = claimed.progress();
    let turned = match progress.next(claimed.now) {
        Next::Act(jobs, rest) => return act(store, claimed, jobs, rest).await,
        Next::Collect => {
            let mut connection = store.readers.acquire().await.map_err(fault)?;
            let filter = claimed.bulk.walked();
            let page = walk(&mut connection, &filter, claimed.before, BATCH_MAX).await?;
            drop(connection);
            let (found, before) = page;
            let count = u64::try_from(found.len()).unwrap_or(u64::MAX);
            let to = progress.collected(count, before.is_none());
            turn(store, claimed, &to, &found, before).await?
        }
        Next::Look => {
            let (settled, failed): (u32, u32) = sqlx::query_as(LOOK)
                .bind(claimed.bulk.id.uuid())
                .fetch_one(&store.readers)
                .await
                .map_err(fault)?;
            let to = progress.looked(settled, failed, claimed.now);
            turn(store, claimed, &to, &[], claimed.before).await?
        }
        Next::Turn(to) => turn(store, claimed, &to, &[], claimed.before).await?,
        Next::Nothing => None,
    };
    Ok(BulkStep {
        turned,
        ..BulkStep::default()
    })
}

/// Writes where a bulk is then; `found` are the jobs of a page of its walk, the newest first.
async fn turn(
    store: &SqliteStore,
    claimed: &ClaimedBulk,
    to: &Turn,
    found: &[(JobId, i64)],
    before: Option<JobId>,
) -> Result<Option<BulkState>> {
    let (mut tx, now) = store.write().await?;
    let bulk = &claimed.bulk;
    let is_ended = to.state.is_ended();
    let sample: Vec<String> = found
        .iter()
        .take(BULK_SAMPLE)
        .map(|(id, _)| hex(id.uuid()))
        .collect();
    let done = sqlx::query(TURN)
        .bind(bulk.id.uuid())
        .bind(claimed.claim)
        .bind(to.state.number())
        .bind(to.stage.size)
        .bind(to.stage.released)
        .bind(to.stage.settled)
        .bind(to.stage.failed)
        .bind(to.stage.until.map(|time| time.0))
        .bind(rows_max(found.len()))
        .bind(before.map(JobId::uuid))
        .bind(&to.error)
        .bind(batch(&sample)?)
        .bind(is_ended.then_some(now.0))
        .bind(now.after(to.rest).0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    if !found.is_empty() && !bulk.dry_run && !is_ended {
        let jobs: Vec<(String, i64)> = found
            .iter()
            .rev()
            .map(|(id, revision)| (hex(id.uuid()), *revision))
            .collect();
        let number = usize::try_from(bulk.counts.total).unwrap_or(usize::MAX);
        sqlx::query(COLLECT)
            .bind(bulk.id.uuid())
            .bind(rows_max(number))
            .bind(batch(&jobs)?)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
    }
    if is_ended {
        forget(&mut tx, FORGET, bulk.id).await?;
        if !bulk.dry_run {
            let count = rows_max(usize::try_from(bulk.counts.done).unwrap_or(usize::MAX));
            let (what, subject) = ((AuditAction::EndBulk, count), bulk.id.to_string());
            audit::note_many(&mut tx, now, what, &subject, &bulk.by).await?;
        }
    } else if to.state != BulkState::Watching {
        forget(&mut tx, FORGET_STAGE, bulk.id).await?;
    }
    commit(tx).await?;
    Ok(Some(to.state))
}

async fn forget(
    connection: &mut SqliteConnection,
    statement: &'static str,
    id: BulkId,
) -> Result<()> {
    sqlx::query(statement)
        .bind(id.uuid())
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

async fn read(connection: &mut SqliteConnection, id: BulkId) -> Result<Option<Bulk>> {
    let row: Option<BulkRow> = sqlx::query_as(BULK)
        .bind(id.uuid())
        .fetch_optional(connection)
        .await
        .map_err(fault)?;
    row.map(BulkRow::into_bulk).transpose()
}

#[derive(FromRow)]
struct BulkRow {
    id: Uuid,
    create_time: i64,
    end_time: Option<i64>,
    claim: i64,
    action: i16,
    priority: Option<i16>,
    dry_run: bool,
    rate: Option<u32>,
    canary_size: Option<u32>,
    canary_share: Option<String>,
    canary_within: Option<i64>,
    state: i16,
    total: i64,
    done: i64,
    skipped: i64,
    failed: i64,
    stage_size: u32,
    stage_released: u32,
    stage_settled: u32,
    stage_failed: u32,
    stage_until: Option<i64>,
    before: Option<Uuid>,
    sample: String,
    filter: String,
    actor: String,
    reason: String,
    error: String,
}

impl BulkRow {
    fn into_bulk(self) -> Result<Bulk> {
        let level = self.priority.map(priority).transpose()?;
        let canary = match (self.canary_size, self.canary_share, self.canary_within) {
            (Some(size), Some(share), Some(within)) => Some(Canary {
                size,
                max_failed_share: share.parse().map_err(|_| broken("bulks.canary_share"))?,
                within: span(within),
            }),
            _ => None,
        };
        let many = |number: i64| u64::try_from(number).unwrap_or(0);
        let sample: Vec<String> = serde_json::from_str(&self.sample).map_err(Error::internal)?;
        let sample = sample.iter().map(|id| {
            let id = Uuid::try_parse(id).map_err(|_| broken("bulks.sample"))?;
            Ok(JobId::from_store(id))
        });
        Ok(Bulk {
            id: BulkId::from_store(self.id),
            action: BulkAction::from_number(self.action, level)
                .ok_or_else(|| broken("bulks.action"))?,
            filter: read_filter(&self.filter)?,
            dry_run: self.dry_run,
            rate: self.rate,
            canary,
            state: BulkState::from_number(self.state).ok_or_else(|| broken("bulks.state"))?,
            counts: BulkCounts {
                total: many(self.total),
                done: many(self.done),
                skipped: many(self.skipped),
                failed: many(self.failed),
            },
            stage: Stage {
                size: self.stage_size,
                released: self.stage_released,
                settled: self.stage_settled,
                failed: self.stage_failed,
                until: self.stage_until.map(Timestamp),
            },
            sample: sample.collect::<Result<_>>()?,
            by: By {
                actor: Actor::from_store(&self.actor),
                reason: self.reason,
            },
            create_time: Timestamp(self.create_time),
            end_time: self.end_time.map(Timestamp),
            error: self.error,
        })
    }
}
