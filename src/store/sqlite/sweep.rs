//! What time brings: jobs that come due, leases that are lost, rows that are forgotten. Each call is one bounded step.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::backlog::{self, SegmentRow, drop_spent, trim};
use super::change::{Change, Current, apply, current, lost};
use super::fault::{broken, fault};
use super::row::{id_list, priority, rows_max};
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::limits::{
    AUDIT_KEPT, BULK_RETENTION, BULKS_KEPT, FLOWS_KEPT, LEASE_TTL_DEFAULT, NODE_KEPT, ROW_AGE_MIN,
};
use crate::job::time::micros;
use crate::job::{AttemptOutcome, JobId, JobState, QueueName};
use crate::store::{Expired, Line, Swept};

// The order in which they are handed out is the order in which they came due.
const DUE: &str = "
SELECT id, queue, priority FROM jobs WHERE state = 1 AND run_time <= ?1 ORDER BY run_time, id LIMIT ?2";
const PROMOTE: &str = "
UPDATE jobs SET state = 2, revision = revision + 1, queue_time = ?2
 WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state = 1 AND run_time <= ?2";
const EXPIRED: &str = "
SELECT id FROM jobs
 WHERE expire_at IS NOT NULL AND attempt = 0 AND state < 3 AND expire_at <= ?1 ORDER BY expire_at LIMIT ?2";
const TOUCH: &str = "
UPDATE pulse
   SET grace_until = CASE WHEN ?1 - touch_time NOT BETWEEN 0 AND ?2 THEN ?1 + ?3 ELSE grace_until END,
       touch_time = ?1";
// Nothing is marked in a time of grace, nor while nobody has touched the pulse after a gap: the sweep may wake first.
// A time that lies further ahead than any renewal could set it is of a clock that was set back since.
const BURY: &str = "
UPDATE sessions SET dead = 1
 WHERE dead = 0 AND (SELECT grace_until <= ?1 AND (touch_time IS NULL OR ?1 - touch_time BETWEEN 0 AND ?3) FROM pulse)
   AND id IN (SELECT id FROM sessions WHERE dead = 0 AND expire_time NOT BETWEEN ?1 + 1 AND ?1 + ttl + 2 * ?3
               ORDER BY expire_time LIMIT ?2)";
// CROSS JOIN is SQLite's word for this order: from the few dead sessions to their jobs. A session whose time was over
// before the last time of grace was could not be renewed, for the outage before it.
const LOST: &str = "
SELECT j.id, s.expire_time <= (SELECT grace_until FROM pulse) AS in_outage
  FROM sessions s CROSS JOIN jobs j ON j.session = s.id AND j.state = 3
 WHERE s.dead = 1 LIMIT ?1";
// How many lines they have said comes along: all of them go at once.
const PURGEABLE: &str = "
SELECT j.id, coalesce((SELECT l.kept FROM job_logs l WHERE l.job = j.id), 0) FROM jobs j
 WHERE j.purge_time <= ?1 ORDER BY j.purge_time LIMIT ?2";
/// Lines of logs that one purge removes, or those of one job.
const PURGED_LINES_MAX: i64 = 50_000;
pub(super) const PURGE: [&str; 8] = [
    "DELETE FROM log_lines WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
    "DELETE FROM job_logs WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
    "DELETE FROM job_labels WHERE (key, value, id) IN (
       SELECT e.key, e.value, p.id FROM json_each(?1) AS n CROSS JOIN payloads p ON p.id = unhex(n.value), json_each(p.labels) AS e)",
    "DELETE FROM progress WHERE id IN (SELECT unhex(value) FROM json_each(?1))",
    "DELETE FROM payloads WHERE id IN (SELECT unhex(value) FROM json_each(?1))",
    "DELETE FROM outputs WHERE id IN (SELECT unhex(value) FROM json_each(?1))",
    "DELETE FROM attempts WHERE job IN (SELECT unhex(value) FROM json_each(?1))",
    "DELETE FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND purge_time IS NOT NULL",
];
const FREE_IDS: &str = "
DELETE FROM deleted WHERE id IN (SELECT id FROM deleted WHERE purge_time <= ?1 ORDER BY purge_time LIMIT ?2)";
const OLD_SEGMENTS: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog WHERE id > ?1 ORDER BY id LIMIT ?2";
const DROP_SIGNALS: &str = "
DELETE FROM signals WHERE id IN (SELECT id FROM signals WHERE create_time < ?1 ORDER BY create_time LIMIT ?2)";
const DROP_SESSIONS: &str = "
DELETE FROM sessions WHERE id IN (
  SELECT s.id FROM sessions s
   WHERE s.dead = 1 AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.session = s.id AND j.state = 3)
   LIMIT ?1)";
// What says nothing but the default is as good as no row, once nobody can have an etag of it in hand.
const DROP_SETTINGS: &str = "
DELETE FROM queues WHERE queue IN (
  SELECT queue FROM queues
   WHERE paused = 0 AND change_time < ?1
     AND coalesce(priority, max_attempts, backoff_initial, timeout, retention, expire_in) IS NULL
   LIMIT ?2)";
// It will not come back: a restart is another node.
const DROP_NODES: &str = "
DELETE FROM nodes WHERE id IN (SELECT id FROM nodes WHERE seen_time < ?1 LIMIT ?2)";
// By number: those that were given to no row only make it keep fewer.
const DROP_AUDIT: &str = "
DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1 ORDER BY id LIMIT ?2)";

const DROP_BULKS: &str = "
DELETE FROM bulks WHERE id IN (
  SELECT id FROM bulks
   WHERE end_time < ?1 OR end_time < ?2 AND id < (SELECT id FROM bulks ORDER BY id DESC LIMIT 1 OFFSET ?3 - 1)
   LIMIT ?4)";

// And those of a clock that was set back since.
const DROP_FLOWS: &str = "
DELETE FROM queue_flows WHERE id IN (
  SELECT id FROM queue_flows WHERE end_time < ?1 UNION ALL SELECT id FROM queue_flows WHERE end_time > ?2 LIMIT ?3)";

/// Nobody touched the pulse for longer: the store or every node was away.
const GAP_MAX: Duration = Duration::from_secs(5);
/// How long settings are kept that say nothing but the default.
const SETTINGS_KEPT: Duration = Duration::from_secs(60 * 60);
/// Signals are read by a window of seconds; this is far outside.
const SIGNALS_KEPT: Duration = Duration::from_secs(10 * 60);

/// Makes SCHEDULED jobs QUEUED whose time has come.
pub(super) async fn promote(store: &SqliteStore, limit: usize) -> Result<Swept> {
    #[derive(FromRow)]
    struct DueRow {
        id: Uuid,
        queue: String,
        priority: i16,
    }
    let (mut tx, now) = store.write().await?;
    let due: Vec<DueRow> = sqlx::query_as(DUE)
        .bind(now.0)
        .bind(rows_max(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    if due.is_empty() {
        return Ok(Swept::default());
    }
    let ids: Vec<JobId> = due.iter().map(|row| JobId::from_store(row.id)).collect();
    let done = sqlx::query(PROMOTE)
        .bind(id_list(&ids)?)
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    if usize::try_from(done.rows_affected()) != Ok(ids.len()) {
        return Err(broken("a guard refused what was read under it"));
    }
    let lines = due
        .iter()
        .map(|row| {
            Ok(Line {
                queue: QueueName::from_store(&row.queue),
                priority: priority(row.priority)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let segments = backlog::append(&mut tx, now, lines.iter().zip(ids.iter().copied())).await?;
    commit(tx).await?;
    Ok(Swept {
        changed: done.rows_affected(),
        more: ids.len() >= limit,
        segments,
    })
}

/// Ends what has expired before it began.
pub(super) async fn expire_jobs(store: &SqliteStore, limit: usize) -> Result<Swept> {
    let (mut tx, now) = store.write().await?;
    let found: Vec<Uuid> = sqlx::query_scalar(EXPIRED)
        .bind(now.0)
        .bind(rows_max(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    if found.is_empty() {
        return Ok(Swept::default());
    }
    let ids: Vec<JobId> = found.into_iter().map(JobId::from_store).collect();
    let rows = current(&mut tx, &ids).await?;
    let end = |row: &Current| row.ends(JobState::Failed, now);
    let changes: Vec<Change> = rows.values().map(end).collect();
    let segments = apply(&mut tx, now, &changes).await?;
    commit(tx).await?;
    Ok(Swept {
        changed: count(changes.len()),
        more: ids.len() >= limit,
        segments,
    })
}

/// Shows that somebody is alive. A long or negative gap since the last time gives every lease one TTL of grace.
pub(super) async fn touch_pulse(store: &SqliteStore) -> Result<()> {
    let (mut tx, now) = store.write().await?;
    sqlx::query(TOUCH)
        .bind(now.0)
        .bind(micros(GAP_MAX))
        .bind(micros(LEASE_TTL_DEFAULT))
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await
}

/// Ends sessions that were not renewed, and takes back the jobs of all that are over.
pub(super) async fn expire(store: &SqliteStore, limit: usize) -> Result<Expired> {
    let (mut tx, now) = store.write().await?;
    let sessions = sqlx::query(BURY)
        .bind(now.0)
        .bind(rows_max(limit))
        .bind(micros(GAP_MAX))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let found: Vec<(Uuid, bool)> = sqlx::query_as(LOST)
        .bind(rows_max(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    if sessions == 0 && found.is_empty() {
        return Ok(Expired::default());
    }
    let found: Vec<(JobId, bool)> = found
        .into_iter()
        .map(|(id, in_outage)| (JobId::from_store(id), in_outage))
        .collect();
    let ids: Vec<JobId> = found.iter().map(|(id, _)| *id).collect();
    let rows = current(&mut tx, &ids).await?;
    let changes: Vec<Change> = found
        .iter()
        .filter_map(|(id, in_outage)| {
            // One that was lost to an outage of the store is not the handler's fault, and does not count.
            let row = rows.get(id)?;
            Some(lost(
                row,
                row.session?,
                AttemptOutcome::LeaseLost,
                !in_outage,
                now,
            ))
        })
        .collect();
    let segments = apply(&mut tx, now, &changes).await?;
    commit(tx).await?;
    let is_failed = |change: &&Change| change.new.state == JobState::Failed;
    Ok(Expired {
        sessions,
        jobs: count(changes.len()),
        failed: count(changes.iter().filter(is_failed).count()),
        more: ids.len() >= limit || sessions >= count(limit),
        segments,
    })
}

/// Removes final jobs whose purge time is past, and what is left of deleted ones.
pub(super) async fn retain(store: &SqliteStore, limit: usize) -> Result<Swept> {
    let (mut tx, now) = store.write().await?;
    let found: Vec<(Uuid, i64)> = sqlx::query_as(PURGEABLE)
        .bind(now.0)
        .bind(rows_max(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    let is_full = found.len() >= limit;
    let mut lines = 0;
    let all = found.len();
    let fits = |(_, said): &(Uuid, i64)| {
        let is_first = lines == 0;
        lines += said;
        is_first || lines <= PURGED_LINES_MAX
    };
    let taken = found.into_iter().take_while(fits);
    let ids: Vec<JobId> = taken.map(|(id, _)| JobId::from_store(id)).collect();
    let more = is_full || ids.len() < all;
    let freed = sqlx::query(FREE_IDS)
        .bind(now.0)
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    if ids.is_empty() && freed == 0 {
        return Ok(Swept::default());
    }
    let list = id_list(&ids)?;
    for statement in PURGE {
        sqlx::query(statement)
            .bind(&list)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
    }
    commit(tx).await?;
    Ok(Swept {
        changed: count(ids.len()) + freed,
        more: more || freed >= count(limit),
        segments: Vec::new(),
    })
}

/// Drops segments without QUEUED jobs, sessions that nothing names any more, old signals, settings, nodes, bulks, audit and
/// flows.
pub(super) async fn tidy(store: &SqliteStore, limit: usize) -> Result<Swept> {
    let (mut tx, now) = store.write().await?;
    let rows: Vec<SegmentRow> = sqlx::query_as(OLD_SEGMENTS)
        .bind(store.tidied.load(Ordering::Relaxed))
        .bind(rows_max(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    let is_round = rows.len() < limit;
    let next = rows.last().filter(|_| !is_round).map_or(0, |row| row.id);
    let (_, spent) = trim(&mut tx, rows).await?;
    drop_spent(&mut tx, &spent).await?;

    let old = now.0.saturating_sub(micros(SIGNALS_KEPT));
    let signals = sqlx::query(DROP_SIGNALS)
        .bind(old)
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let sessions = sqlx::query(DROP_SESSIONS)
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let settings = sqlx::query(DROP_SETTINGS)
        .bind(now.0.saturating_sub(micros(SETTINGS_KEPT)))
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let nodes = sqlx::query(DROP_NODES)
        .bind(now.0.saturating_sub(micros(NODE_KEPT)))
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let audit = sqlx::query(DROP_AUDIT)
        .bind(rows_max(AUDIT_KEPT))
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let bulks = sqlx::query(DROP_BULKS)
        .bind(now.0.saturating_sub(micros(BULK_RETENTION)))
        .bind(now.0.saturating_sub(micros(ROW_AGE_MIN)))
        .bind(rows_max(BULKS_KEPT))
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    let flows = sqlx::query(DROP_FLOWS)
        .bind(now.0.saturating_sub(micros(FLOWS_KEPT)))
        .bind(now.0.saturating_add(micros(FLOWS_KEPT)))
        .bind(rows_max(limit))
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
    commit(tx).await?;
    store.tidied.store(next, Ordering::Relaxed);
    let all = count(limit);
    Ok(Swept {
        changed: count(spent.len()) + signals + sessions + settings + nodes + audit + bulks + flows,
        more: !is_round
            || [signals, sessions, settings, nodes, audit, bulks, flows]
                .iter()
                .any(|n| *n >= all),
        segments: Vec::new(),
    })
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}
