//! What nodes tell of the sessions whose streams they have, and how sessions are seen.

use std::collections::HashSet;

use sqlx::FromRow;
use uuid::Uuid;

use super::fault::fault;
use super::row::{batch, hex, rows_max, span, words};
use super::session::attach;
use super::{SqliteStore, commit};
use crate::error::{Error, Result};
use crate::job::limits::PAGE_ROWS_MAX;
use crate::job::{JobId, Kind, Lease, QueueName, SessionId, Timestamp};
use crate::store::{
    QueueSlots, RunningJob, SessionPage, SessionProfile, SessionReport, SessionRuns, SessionSlots,
    SessionView,
};

const DESCRIBE: &str = "
UPDATE sessions
   SET node_name = coalesce(n.value->>'$[2]', node_name), kinds = coalesce(n.value->>'$[3]', kinds),
       labels = coalesce(n.value->>'$[4]', labels), queues = n.value->>'$[5]', max_in_flight = n.value->>'$[6]',
       in_flight = n.value->>'$[7]', draining = n.value->>'$[8]'
  FROM json_each(?1) AS n
 WHERE sessions.id = unhex(n.value->>'$[0]') AND sessions.attach = n.value->>'$[1]' AND dead = 0
RETURNING sessions.id";
const SESSIONS: &str = "
SELECT id, dead, worker, sdk, node_name, kinds, labels, queues, max_in_flight, in_flight,
       draining IS TRUE OR drain_time IS NOT NULL AS draining, expire_time
  FROM sessions WHERE id > ?1 ORDER BY id LIMIT ?2";
const SESSION: &str = "
SELECT id, dead, worker, sdk, node_name, kinds, labels, queues, max_in_flight, in_flight, draining, expire_time
  FROM sessions WHERE id = ?1 AND dead = 0";
const RUNNING: &str = "
SELECT id, attempt, queue, kind, start_time, max(timeout_time - ?2, 0) AS time_left
  FROM jobs WHERE session = ?1 AND state = 3 ORDER BY start_time, id LIMIT ?3";

/// A queue as its column has it.
type QueueRow = (String, Option<u32>, u32);

/// Tells of sessions.
pub(super) async fn describe(store: &SqliteStore, reports: &[SessionReport]) -> Result<Vec<bool>> {
    let rows: Vec<_> = reports.iter().map(row).collect();
    let (mut tx, _) = store.write().await?;
    let written: Vec<Uuid> = sqlx::query_scalar(DESCRIBE)
        .bind(batch(&rows)?)
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await?;
    let written: HashSet<Uuid> = written.into_iter().collect();
    let is_written = |report: &SessionReport| written.contains(&report.session.session.uuid());
    Ok(reports.iter().map(is_written).collect())
}

fn row(report: &SessionReport) -> impl serde::Serialize + use<'_> {
    let SessionReport {
        session,
        profile,
        slots,
    } = report;
    let profile = profile.as_ref();
    let queues: Vec<_> = slots
        .queues
        .iter()
        .map(|of| (of.queue.as_str(), of.max_in_flight, of.free))
        .collect();
    (
        hex(session.session.uuid()),
        attach(session),
        profile.map(|profile| &profile.node),
        profile.map(|profile| &profile.kinds),
        profile.map(|profile| &profile.labels),
        queues,
        slots.max_in_flight,
        slots.in_flight,
        slots.draining,
    )
}

/// Sessions by id.
pub(super) async fn sessions(
    store: &SqliteStore,
    queue: Option<&QueueName>,
    after: Option<SessionId>,
    size: usize,
) -> Result<SessionPage> {
    let rows: Vec<SessionRow> = sqlx::query_as(SESSIONS)
        .bind(after.map_or(Uuid::nil(), SessionId::uuid))
        .bind(rows_max(PAGE_ROWS_MAX))
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    let now = store.clock.now();
    let is_end = rows.len() < PAGE_ROWS_MAX;
    let last = rows.last().map(|row| SessionId::from_store(row.id));
    let mut found = Vec::new();
    for row in rows.into_iter().filter(|row| !row.dead) {
        let view = row.into_view(now)?;
        let takes = |of: &QueueSlots| Some(&of.queue) == queue;
        if queue.is_none() || view.slots.queues.iter().any(takes) {
            found.push(view);
        }
        if found.len() > size {
            break;
        }
    }
    let is_more = found.len() > size;
    found.truncate(size);
    let next = match (is_more, is_end) {
        (true, _) => found.last().map(|view| view.id),
        (false, false) => last,
        (false, true) => None,
    };
    Ok(SessionPage {
        sessions: found,
        next,
    })
}

/// One session, and what it runs.
pub(super) async fn session(
    store: &SqliteStore,
    id: SessionId,
    limit: usize,
) -> Result<Option<SessionRuns>> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let now = store.clock.now();
    let row: Option<SessionRow> = sqlx::query_as(SESSION)
        .bind(id.uuid())
        .fetch_optional(&mut *snapshot)
        .await
        .map_err(fault)?;
    let rows: Vec<RunningRow> = sqlx::query_as(RUNNING)
        .bind(id.uuid())
        .bind(now.0)
        .bind(rows_max(limit.saturating_add(1)))
        .fetch_all(&mut *snapshot)
        .await
        .map_err(fault)?;
    snapshot.rollback().await.map_err(fault)?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(SessionRuns {
        view: row.into_view(now)?,
        more: rows.len() > limit,
        running: rows.into_iter().take(limit).map(RunningJob::from).collect(),
    }))
}

#[derive(FromRow)]
struct RunningRow {
    id: Uuid,
    attempt: u32,
    queue: String,
    kind: String,
    start_time: i64,
    time_left: Option<i64>,
}

impl From<RunningRow> for RunningJob {
    fn from(row: RunningRow) -> Self {
        Self {
            lease: Lease {
                job: JobId::from_store(row.id),
                attempt: row.attempt,
            },
            queue: QueueName::from_store(&row.queue),
            kind: Kind::from_store(&row.kind),
            start_time: Timestamp(row.start_time),
            time_left: row.time_left.map(span),
        }
    }
}

#[derive(FromRow)]
struct SessionRow {
    id: Uuid,
    dead: bool,
    worker: String,
    sdk: String,
    node_name: Option<String>,
    kinds: Option<String>,
    labels: Option<String>,
    queues: Option<String>,
    max_in_flight: Option<u32>,
    in_flight: Option<u32>,
    draining: bool,
    expire_time: i64,
}

impl SessionRow {
    fn into_view(self, now: Timestamp) -> Result<SessionView> {
        let queues: Vec<QueueRow> = match &self.queues {
            Some(json) => serde_json::from_str(json).map_err(Error::internal)?,
            None => Vec::new(),
        };
        let kinds = match &self.kinds {
            Some(json) => serde_json::from_str(json).map_err(Error::internal)?,
            None => Vec::new(),
        };
        let queues = queues.iter().map(|(name, max_in_flight, free)| QueueSlots {
            queue: QueueName::from_store(name),
            max_in_flight: *max_in_flight,
            free: *free,
        });
        Ok(SessionView {
            id: SessionId::from_store(self.id),
            worker: self.worker,
            sdk: self.sdk,
            profile: SessionProfile {
                node: self.node_name.unwrap_or_default(),
                kinds,
                labels: self
                    .labels
                    .map_or(Ok(Default::default()), |json| words(&json))?,
            },
            slots: SessionSlots {
                queues: queues.collect(),
                max_in_flight: self.max_in_flight.unwrap_or(0),
                in_flight: self.in_flight.unwrap_or(0),
                draining: self.draining,
            },
            ttl_left: span(self.expire_time.saturating_sub(now.0)),
        })
    }
}
