//! What is set of queues, who changes it, and how queues are seen.

use std::collections::HashMap;

use sqlx::{FromRow, SqliteConnection};

use super::admin::numbers;
use super::fault::{broken, fault};
use super::row::{batch, priority, rows_max, span};
use super::{SqliteStore, audit, commit, flows};
use crate::error::Result;
use crate::job::limits::QUEUES_SET_MAX;
use crate::job::time::micros;
use crate::job::{
    AuditAction, Backoff, Priority, QueueChange, QueueDefaults, QueueName, QueueSettings, Timestamp,
};
use crate::store::{AllSettings, QueueStats, QueueView, Steer, Steered};

const NEWEST: &str = "SELECT number FROM queue_changes";
const NEXT: &str = "UPDATE queue_changes SET number = number + 1 RETURNING number";
const ALL: &str = "
SELECT queue, revision, paused, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention,
       expire_in
  FROM queues";
const SOME: &str = "
SELECT queue, revision, paused, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention,
       expire_in
  FROM queues WHERE queue IN (SELECT value FROM json_each(?1))";
const COUNT: &str = "SELECT count(*) FROM queues";
const SET: &str = "
INSERT OR REPLACE INTO queues (queue, revision, change_time, paused, priority, max_attempts, backoff_initial,
                               backoff_max, backoff_factor, timeout, retention, expire_in)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
// A queue is seen when it has jobs, or had them, or something is set of it, or a session takes jobs of it.
const NAMES: &str = "
SELECT queue FROM (
  SELECT queue FROM queue_counts UNION SELECT queue FROM queues
  UNION SELECT n.value->>'$[0]' FROM sessions s, json_each(s.queues) AS n WHERE s.dead = 0)
 WHERE (?1 IS NULL OR queue IN (SELECT value FROM json_each(?1))) AND queue > ?2 ORDER BY queue LIMIT ?3";
const COUNTS: &str = "
SELECT queue, state, jobs FROM queue_counts WHERE queue IN (SELECT value FROM json_each(?1)) ORDER BY queue";

// Nobody is known to have a free slot past its time.
const SLOTS: &str = "
SELECT n.value->>'$[0]' AS queue, count(*), sum(CASE WHEN s.expire_time > ?2 THEN n.value->>'$[2]' ELSE 0 END)
  FROM sessions s, json_each(s.queues) AS n
 WHERE s.dead = 0 AND n.value->>'$[0]' IN (SELECT value FROM json_each(?1))
 GROUP BY 1";

/// All that is set, if the newest change is not `known`.
pub(super) async fn settings(
    store: &SqliteStore,
    known: Option<u64>,
) -> Result<Option<AllSettings>> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let change: i64 = sqlx::query_scalar(NEWEST)
        .fetch_one(&mut *snapshot)
        .await
        .map_err(fault)?;
    let change = count(change);
    let mut all = None;
    if known != Some(change) {
        let rows: Vec<SettingsRow> = sqlx::query_as(ALL)
            .fetch_all(&mut *snapshot)
            .await
            .map_err(fault)?;
        let queues = rows.into_iter().map(|row| {
            let name = QueueName::from_store(&row.queue);
            Ok((name, row.into_settings()?))
        });
        all = Some(AllSettings {
            change,
            queues: queues.collect::<Result<_>>()?,
        });
    }
    snapshot.rollback().await.map_err(fault)?;
    Ok(all)
}

/// Changes what is set of a queue.
pub(super) async fn steer(store: &SqliteStore, steer: &Steer) -> Result<Steered> {
    let (mut tx, now) = store.write().await?;
    let name = &steer.queue;
    let known = some(&mut tx, &[name.as_str()]).await?.remove(name.as_str());
    let is_there = known.is_some();
    let (settings, revision) = known.unwrap_or_default();
    if steer.expected.is_some_and(|expected| expected != revision) {
        return Ok(Steered::Superseded);
    }
    let new = steer.change.apply(settings);
    if new == settings {
        return Ok(Steered::Unchanged);
    }
    let there: i64 = sqlx::query_scalar(COUNT)
        .fetch_one(&mut *tx)
        .await
        .map_err(fault)?;
    if !is_there && there >= rows_max(QUEUES_SET_MAX) {
        return Ok(Steered::TooMany);
    }
    set(&mut tx, now, name, &new).await?;
    let action = match steer.change {
        QueueChange::Pause => AuditAction::PauseQueue,
        QueueChange::Resume => AuditAction::ResumeQueue,
        QueueChange::Update(..) => AuditAction::UpdateQueue,
    };
    audit::note(&mut tx, now, action, name.as_str(), &steer.by).await?;
    commit(tx).await?;
    Ok(Steered::Done)
}

async fn set(
    connection: &mut SqliteConnection,
    now: Timestamp,
    queue: &QueueName,
    settings: &QueueSettings,
) -> Result<()> {
    let number: i64 = sqlx::query_scalar(NEXT)
        .fetch_one(&mut *connection)
        .await
        .map_err(fault)?;
    let QueueSettings { paused, defaults } = settings;
    let backoff = defaults.backoff;
    sqlx::query(SET)
        .bind(queue.as_str())
        .bind(number)
        .bind(now.0)
        .bind(paused)
        .bind(defaults.priority.map(Priority::number))
        .bind(defaults.max_attempts)
        .bind(backoff.map(|backoff| micros(backoff.initial)))
        .bind(backoff.map(|backoff| micros(backoff.max)))
        .bind(backoff.map(|backoff| backoff.factor.to_string()))
        .bind(defaults.timeout.map(micros))
        .bind(defaults.retention.map(micros))
        .bind(defaults.expire_in.map(micros))
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

/// One queue, if it was ever seen.
pub(super) async fn queue(store: &SqliteStore, name: &QueueName) -> Result<Option<QueueView>> {
    let views = views(store, Some(std::slice::from_ref(name)), None, 1).await?;
    Ok(views.into_iter().next())
}

/// These queues, those of them that were ever seen.
pub(super) async fn named(
    store: &SqliteStore,
    names: &[QueueName],
) -> Result<Vec<Option<QueueView>>> {
    let views = views(store, Some(names), None, names.len()).await?;
    let views = views
        .into_iter()
        .map(|view| (view.stats.queue.clone(), view));
    let found: HashMap<QueueName, QueueView> = views.collect();
    Ok(names.iter().map(|name| found.get(name).cloned()).collect())
}

/// Queues by name, after one of them.
pub(super) async fn queues(
    store: &SqliteStore,
    after: Option<&QueueName>,
    size: usize,
) -> Result<Vec<QueueView>> {
    views(store, None, after, size).await
}

async fn views(
    store: &SqliteStore,
    only: Option<&[QueueName]>,
    after: Option<&QueueName>,
    size: usize,
) -> Result<Vec<QueueView>> {
    let only = only
        .map(|names| batch(&names.iter().map(QueueName::as_str).collect::<Vec<_>>()))
        .transpose()?;
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let names: Vec<String> = sqlx::query_scalar(NAMES)
        .bind(only)
        .bind(after.map_or("", QueueName::as_str))
        .bind(rows_max(size))
        .fetch_all(&mut *snapshot)
        .await
        .map_err(fault)?;
    let counts: Vec<(String, i16, i64)> = sqlx::query_as(COUNTS)
        .bind(batch(&names)?)
        .fetch_all(&mut *snapshot)
        .await
        .map_err(fault)?;
    let now = store.clock.now();
    let stats = numbers(&mut snapshot, counts, now).await?;
    let mut stats: HashMap<QueueName, QueueStats> = stats
        .into_iter()
        .map(|stats| (stats.queue.clone(), stats))
        .collect();
    let slots: Vec<(String, u32, u32)> = sqlx::query_as(SLOTS)
        .bind(batch(&names)?)
        .bind(now.0)
        .fetch_all(&mut *snapshot)
        .await
        .map_err(fault)?;
    let mut slots: HashMap<String, (u32, u32)> = slots
        .into_iter()
        .map(|(queue, sessions, free)| (queue, (sessions, free)))
        .collect();
    let mut rates = flows::rates(&mut snapshot, &names, now).await?;
    let listed: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut set = some(&mut snapshot, &listed).await?;
    snapshot.rollback().await.map_err(fault)?;
    Ok(names
        .iter()
        .map(|name| {
            let (settings, revision) = set.remove(name).unwrap_or_default();
            let queue = QueueName::from_store(name);
            let none = QueueStats {
                queue: queue.clone(),
                counts: [0; 6],
                oldest_wait: None,
            };
            let (sessions, free_slots) = slots.remove(name).unwrap_or_default();
            QueueView {
                settings,
                revision,
                stats: stats.remove(&queue).unwrap_or(none),
                sessions,
                free_slots,
                rates: rates.remove(name).unwrap_or_default(),
                as_of: now,
            }
        })
        .collect())
}

/// What is set of these queues, and by which change.
async fn some(
    connection: &mut SqliteConnection,
    names: &[&str],
) -> Result<HashMap<String, (QueueSettings, u64)>> {
    let rows: Vec<SettingsRow> = sqlx::query_as(SOME)
        .bind(batch(names)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    rows.into_iter()
        .map(|row| {
            let (name, revision) = (row.queue.clone(), count(row.revision));
            Ok((name, (row.into_settings()?, revision)))
        })
        .collect()
}

#[derive(FromRow)]
struct SettingsRow {
    queue: String,
    revision: i64,
    paused: bool,
    priority: Option<i16>,
    max_attempts: Option<u32>,
    backoff_initial: Option<i64>,
    backoff_max: Option<i64>,
    backoff_factor: Option<String>,
    timeout: Option<i64>,
    retention: Option<i64>,
    expire_in: Option<i64>,
}

impl SettingsRow {
    fn into_settings(self) -> Result<QueueSettings> {
        let backoff = match (self.backoff_initial, self.backoff_max, self.backoff_factor) {
            (Some(initial), Some(max), Some(factor)) => Some(Backoff {
                initial: span(initial),
                max: span(max),
                factor: factor
                    .parse()
                    .map_err(|_| broken("queues.backoff_factor"))?,
            }),
            _ => None,
        };
        let defaults = QueueDefaults {
            priority: self.priority.map(priority).transpose()?,
            max_attempts: self.max_attempts,
            backoff,
            timeout: self.timeout.map(span),
            retention: self.retention.map(span),
            expire_in: self.expire_in.map(span),
        };
        Ok(QueueSettings {
            paused: self.paused,
            defaults,
        })
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
