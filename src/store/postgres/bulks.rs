//! Bulks: how they come to be, are seen and end, and which step is next. What a step does to jobs is in `bulk_acts.rs`.

use std::time::Duration;

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::bulk_acts::act;
use super::fault::broken;
use super::list::walk;
use super::pool::Pool;
use super::row::{bound, column, count, int, priority, span};
use crate::error::{Error, Result};
use crate::job::bulk::{Next, Turn};
use crate::job::limits::{
    BULK_SAMPLE, BULKS_LIVE_MAX, BULKS_MAX, ID_AGE_MAX, ID_AHEAD_MAX, PAGE_ROWS_MAX,
};
use crate::job::time::micros;
use crate::job::{
    Actor, AuditAction, BulkAction, BulkCounts, BulkId, BulkState, By, Canary, JobId, Priority,
    Stage, Timestamp,
};
use crate::store::bulk::{read_filter, write_filter};
use crate::store::{Bulk, BulkStep, ClaimedBulk, NewBulk, Started};

/// Jobs of a chunk. The statement that makes them has it too.
const CHUNK: usize = 1_000;

macro_rules! columns {
    () => {
        "b.id, b.create_time, b.end_time, b.action, b.priority, b.dry_run, b.rate, b.canary_size, b.canary_share, b.canary_within, \
         b.state, b.total, b.done, b.skipped, b.failed, b.stage_size, b.stage_released, b.stage_settled, b.stage_failed, \
         b.stage_until, b.sample, b.filter, b.actor, b.reason, b.error"
    };
}

/// The bounds of the table are looked at without a lock: as many more as are started at the same moment may pass them.
const START: &str = "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
kept AS MATERIALIZED (SELECT count(*) AS bulks, count(*) FILTER (WHERE end_time IS NULL) AS live FROM bulks),
made AS (
  INSERT INTO bulks (id, create_time, due_at, state, action, priority, dry_run, rate, canary_size, canary_share, canary_within,
                     stage_size, filter, actor, reason)
  SELECT $1, c.now, c.now, 1, $2, $3, $4, $5, $6, $7, $8, coalesce($6, 0), $9, $10, $11
    FROM clock c, kept k
   WHERE k.live < $12 AND k.bulks < $13 AND $14 BETWEEN c.now - $15 AND c.now + $16
  ON CONFLICT (id) DO NOTHING RETURNING id, create_time),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT create_time, 1, $17, $18, $10, $11 FROM made WHERE NOT $4)
SELECT EXISTS (SELECT FROM made) AS made, c.now FROM clock c";

const BULK: &str = concat!("SELECT ", columns!(), " FROM bulks b WHERE b.id = $1");
const BULKS: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM bulks b WHERE b.id < $1 ORDER BY b.id DESC LIMIT $2"
);

/// What a step that is under way leaves in the chunks goes with the bulk itself.
const ABORT: &str = "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
ended AS (
  UPDATE bulks b SET state = 5, end_time = c.now, claim = b.claim + 1, claim_until = 0
    FROM clock c WHERE b.id = $1 AND b.end_time IS NULL
  RETURNING b.id, b.done, b.dry_run, c.now),
forgotten AS (
  DELETE FROM bulk_chunks c USING ended e WHERE c.bulk = e.id),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, done, $2, id::text, $3, $4 FROM ended WHERE NOT dry_run)
SELECT EXISTS (SELECT FROM ended) AS ended";

/// A time that lies further ahead than any could be set is of a clock that was set back since.
const CLAIM: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
due AS MATERIALIZED (
  SELECT id FROM bulks
   WHERE end_time IS NULL AND due_at NOT BETWEEN (SELECT now + 1 FROM clock) AND (SELECT now + 60000000 FROM clock)
     AND claim_until NOT BETWEEN (SELECT now + 1 FROM clock) AND (SELECT now + $1 FROM clock)
   ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE bulks b SET claim = b.claim + 1, claim_until = c.now + $1
  FROM clock c, due d WHERE b.id = d.id AND b.end_time IS NULL
RETURNING ",
    columns!(),
    ", b.claim, b.before, c.now"
);

/// $3: where it is then; $9 and $10: what was found, the oldest first, which goes into chunks of [`CHUNK`], whose last one has
/// the number $16. $13: it has ended. $14: its stage is over.
const TURN: &str = "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
turned AS (
  UPDATE bulks b
     SET state = $3, stage_size = $4, stage_released = $5, stage_settled = $6, stage_failed = $7, stage_until = $8,
         total = b.total + cardinality($9::uuid[]), before = $11, error = $12,
         sample = CASE WHEN cardinality(b.sample) = 0 THEN $18 ELSE b.sample END,
         end_time = CASE WHEN $13 THEN c.now END, due_at = c.now + $15, claim = b.claim + 1, claim_until = 0
    FROM clock c WHERE b.id = $1 AND b.claim = $2 AND b.end_time IS NULL
  RETURNING b.id, b.total, b.done, b.dry_run, b.actor, b.reason, c.now),
collected AS (
  INSERT INTO bulk_chunks (bulk, released, number, jobs, revisions)
  SELECT t.id, false, t.total - g.n, ($9::uuid[])[1000 * g.n + 1 : 1000 * g.n + 1000],
         ($10::int8[])[1000 * g.n + 1 : 1000 * g.n + 1000]
    FROM turned t, generate_series(0, $16::int8) AS g (n)
   WHERE NOT t.dry_run AND NOT $13 AND cardinality($9::uuid[]) > 0),
forgotten AS (
  DELETE FROM bulk_chunks c USING turned t WHERE c.bulk = t.id AND (c.released = true AND $14 OR $13)),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT now, done, $17, id::text, actor, reason FROM turned WHERE $13 AND NOT dry_run)
SELECT id FROM turned";

/// What has become of the jobs of a stage. They were brought back without a failure: one that has any has failed again.
const LOOK: &str = "
SELECT count(*) FILTER (WHERE j.id IS NULL OR j.state IN (4, 5, 6, 7) OR j.failures > 0) AS settled,
       count(*) FILTER (WHERE j.state = 5 OR j.state <> 7 AND j.failures > 0) AS failed
  FROM bulk_chunks c, unnest(c.jobs) AS u (job) LEFT JOIN jobs j ON j.id = u.job
 WHERE c.bulk = $1 AND c.released = true";

/// Starts a bulk.
pub(super) async fn start(pool: &Pool, new: &NewBulk) -> Result<Started> {
    let (action, subject) = match &new.purges {
        None => (AuditAction::StartBulk, new.id.to_string()),
        Some(queue) => (AuditAction::PurgeQueue, queue.to_string()),
    };
    let filter = write_filter(&new.filter)?;
    let rows = pool
        .write(|| {
            sqlx::query(START)
                .bind(new.id.uuid())
                .bind(new.action.number())
                .bind(new.action.priority().map(Priority::number))
                .bind(new.dry_run)
                .bind(new.rate.map(int))
                .bind(new.canary.map(|canary| int(canary.size)))
                .bind(new.canary.map(|canary| canary.max_failed_share))
                .bind(new.canary.map(|canary| micros(canary.within)))
                .bind(filter.clone())
                .bind(new.by.actor.as_str().to_owned())
                .bind(new.by.reason.clone())
                .bind(bound(BULKS_LIVE_MAX))
                .bind(bound(BULKS_MAX))
                .bind(new.id.time().0)
                .bind(micros(ID_AGE_MAX))
                .bind(micros(ID_AHEAD_MAX))
                .bind(action.number())
                .bind(subject.clone())
        })
        .await?;
    let row = rows.first().ok_or_else(|| Error::internal("no time"))?;
    let (is_made, now): (bool, i64) = (column(row, "made")?, column(row, "now")?);
    // With a new snapshot.
    Ok(match bulk(pool, new.id).await? {
        Some(bulk) if is_made => Started::Created(bulk),
        Some(bulk) if bulk.is_of(new) => Started::Existed(bulk),
        Some(_) => Started::Conflict,
        None => {
            let (now, time) = (Timestamp(now), new.id.time());
            match now.since(time) > ID_AGE_MAX || time.since(now) > ID_AHEAD_MAX {
                true => Started::IdOutOfTime,
                false => Started::TooMany,
            }
        }
    })
}

/// A bulk.
pub(super) async fn bulk(pool: &Pool, id: BulkId) -> Result<Option<Bulk>> {
    let rows = pool.read(|| sqlx::query(BULK).bind(id.uuid())).await?;
    rows.first().map(read).transpose()
}

/// Bulks by id, newest first.
pub(super) async fn bulks(pool: &Pool, before: Option<BulkId>, size: usize) -> Result<Vec<Bulk>> {
    let before = before.map_or(Uuid::max(), BulkId::uuid);
    let rows = pool
        .read(|| sqlx::query(BULKS).bind(before).bind(bound(size)))
        .await?;
    rows.iter().map(read).collect()
}

/// Ends a bulk, unless it has ended.
pub(super) async fn abort(pool: &Pool, id: BulkId, by: &By) -> Result<Option<(Bulk, bool)>> {
    let rows = pool
        .write(|| {
            sqlx::query(ABORT)
                .bind(id.uuid())
                .bind(AuditAction::AbortBulk.number())
                .bind(by.actor.as_str().to_owned())
                .bind(by.reason.clone())
        })
        .await?;
    let is_news = rows.first().map_or(Ok(false), |row| column(row, "ended"))?;
    Ok(bulk(pool, id).await?.map(|bulk| (bulk, is_news)))
}

/// Takes a bulk that is to be gone on with.
pub(super) async fn claim(pool: &Pool, for_span: Duration) -> Result<Option<ClaimedBulk>> {
    let rows = pool
        .write(|| sqlx::query(CLAIM).bind(micros(for_span)))
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    Ok(Some(ClaimedBulk {
        bulk: read(row)?,
        claim: column(row, "claim")?,
        before: column::<Option<Uuid>>(row, "before")?.map(JobId::from_store),
        now: Timestamp(column(row, "now")?),
    }))
}

/// Goes one step on with a claimed bulk.
pub(super) async fn step(pool: &Pool, claimed: &ClaimedBulk) -> Result<BulkStep> {
    let progress = claimed.progress();
    let nothing = Collected {
        found: Vec::new(),
        before: claimed.before,
    };
    let turned = match progress.next(claimed.now) {
        Next::Act(jobs, rest) => return act(pool, claimed, jobs, rest).await,
        Next::Collect => {
            let filter = claimed.bulk.walked();
            // All that one look at the rows can find: what it looked at beyond a smaller page would be looked at again.
            let (mut found, next) = walk(pool, &filter, claimed.before, PAGE_ROWS_MAX).await?;
            found.reverse();
            let count = u64::try_from(found.len()).unwrap_or(u64::MAX);
            let page = Collected {
                found,
                before: next,
            };
            turn(
                pool,
                claimed,
                &progress.collected(count, next.is_none()),
                &page,
            )
            .await?
        }
        Next::Look => {
            let id = claimed.bulk.id.uuid();
            let rows = pool.read(|| sqlx::query(LOOK).bind(id)).await?;
            let row = rows.first().ok_or_else(|| Error::internal("no count"))?;
            let few = |name| u32::try_from(column::<i64>(row, name)?).map_err(Error::internal);
            let looked = progress.looked(few("settled")?, few("failed")?, claimed.now);
            turn(pool, claimed, &looked, &nothing).await?
        }
        Next::Turn(to) => turn(pool, claimed, &to, &nothing).await?,
        Next::Nothing => None,
    };
    Ok(BulkStep {
        turned,
        ..BulkStep::default()
    })
}

/// What a page of the walk gave.
struct Collected {
    /// Jobs with their revisions, the oldest first.
    found: Vec<(JobId, i64)>,
    /// Where it goes on.
    before: Option<JobId>,
}

async fn turn(
    pool: &Pool,
    claimed: &ClaimedBulk,
    to: &Turn,
    page: &Collected,
) -> Result<Option<BulkState>> {
    let Stage {
        size,
        released,
        settled,
        failed,
        until,
    } = to.stage;
    let jobs: Vec<Uuid> = page.found.iter().map(|(id, _)| id.uuid()).collect();
    let revisions: Vec<i64> = page.found.iter().map(|(_, revision)| *revision).collect();
    let sample: Vec<Uuid> = jobs.iter().rev().take(BULK_SAMPLE).copied().collect();
    let is_stage_over = to.state != BulkState::Watching;
    let turned = pool
        .write(|| {
            sqlx::query(TURN)
                .bind(claimed.bulk.id.uuid())
                .bind(claimed.claim)
                .bind(to.state.number())
                .bind(int(size))
                .bind(int(released))
                .bind(int(settled))
                .bind(int(failed))
                .bind(until.map(|time| time.0))
                .bind(&jobs)
                .bind(&revisions)
                .bind(page.before.map(JobId::uuid))
                .bind(to.error.clone())
                .bind(to.state.is_ended())
                .bind(is_stage_over)
                .bind(micros(to.rest))
                .bind(bound(jobs.len().saturating_sub(1) / CHUNK))
                .bind(AuditAction::EndBulk.number())
                .bind(&sample)
        })
        .await?;
    Ok((!turned.is_empty()).then_some(to.state))
}

fn read(row: &PgRow) -> Result<Bulk> {
    let level = column::<Option<i16>>(row, "priority")?;
    let action = BulkAction::from_number(column(row, "action")?, level.map(priority).transpose()?);
    let canary = match column::<Option<i32>>(row, "canary_size")? {
        None => None,
        Some(_) => Some(Canary {
            size: count(row, "canary_size")?,
            max_failed_share: column(row, "canary_share")?,
            within: span(column(row, "canary_within")?),
        }),
    };
    let many = |name| Ok(u64::try_from(column::<i64>(row, name)?).unwrap_or(0));
    let sample = column::<Vec<Uuid>>(row, "sample")?.into_iter();
    Ok(Bulk {
        id: BulkId::from_store(column(row, "id")?),
        action: action.ok_or_else(|| broken("bulks.action"))?,
        filter: read_filter(column(row, "filter")?)?,
        dry_run: column(row, "dry_run")?,
        rate: column::<Option<i32>>(row, "rate")?.and_then(|rate| u32::try_from(rate).ok()),
        canary,
        state: BulkState::from_number(column(row, "state")?)
            .ok_or_else(|| broken("bulks.state"))?,
        counts: BulkCounts {
            total: many("total")?,
            done: many("done")?,
            skipped: many("skipped")?,
            failed: many("failed")?,
        },
        stage: Stage {
            size: count(row, "stage_size")?,
            released: count(row, "stage_released")?,
            settled: count(row, "stage_settled")?,
            failed: count(row, "stage_failed")?,
            until: column::<Option<i64>>(row, "stage_until")?.map(Timestamp),
        },
        sample: sample.map(JobId::from_store).collect(),
        by: By {
            actor: Actor::from_store(column(row, "actor")?),
            reason: column(row, "reason")?,
        },
        create_time: Timestamp(column(row, "create_time")?),
        end_time: column::<Option<i64>>(row, "end_time")?.map(Timestamp),
        error: column(row, "error")?,
    })
}
