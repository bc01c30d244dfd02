//! The node as it tells of itself, and what is asked to leave.

use sqlx::FromRow;
use uuid::Uuid;

use super::fault::fault;
use super::row::rows_max;
use super::{SqliteStore, audit, commit};
use crate::error::Result;
use crate::job::limits::BATCH_MAX;
use crate::job::{AuditAction, By, NodeId, SessionId, Timestamp};
use crate::store::{Draining, Drains, NodeReport, NodeView};

const PRESENT: &str = "
INSERT INTO nodes (id, start_time, seen_time, sessions, draining, name, version) VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (id) DO UPDATE
   SET seen_time = excluded.seen_time, sessions = excluded.sessions, draining = excluded.draining
RETURNING drain_time IS NOT NULL";
const LEAVING: &str =
    "SELECT id FROM sessions WHERE drain_time IS NOT NULL AND node = ?1 AND dead = 0 LIMIT ?2";
const GONE: &str = "DELETE FROM nodes WHERE id = ?1";
const NODES: &str = "
SELECT id, name, version, sessions, draining OR drain_time IS NOT NULL AS draining, start_time, seen_time
  FROM nodes WHERE id > ?1 ORDER BY id LIMIT ?2";
/// Whether it was asked before; no row: it is not there.
const SESSION: &str = "SELECT drain_time IS NOT NULL FROM sessions WHERE id = ?1 AND dead = 0";
const DRAIN_SESSION: &str = "UPDATE sessions SET drain_time = ?2 WHERE id = ?1";
const NODE: &str = "SELECT drain_time IS NOT NULL FROM nodes WHERE id = ?1";
const DRAIN_NODE: &str = "UPDATE nodes SET drain_time = ?2 WHERE id = ?1";

/// Tells of a node, and asks what it is to let go.
pub(super) async fn present(store: &SqliteStore, report: &NodeReport) -> Result<Drains> {
    let (mut tx, now) = store.write().await?;
    let node = sqlx::query_scalar(PRESENT)
        .bind(report.id.0)
        .bind(now.0)
        .bind(report.sessions)
        .bind(report.draining)
        .bind(&report.name)
        .bind(&report.version)
        .fetch_one(&mut *tx)
        .await
        .map_err(fault)?;
    let sessions: Vec<Uuid> = sqlx::query_scalar(LEAVING)
        .bind(report.id.0)
        .bind(rows_max(BATCH_MAX))
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await?;
    Ok(Drains {
        node,
        sessions: sessions.into_iter().map(SessionId::from_store).collect(),
    })
}

/// Forgets a node that has left.
pub(super) async fn gone(store: &SqliteStore, node: NodeId) -> Result<()> {
    let (mut tx, _) = store.write().await?;
    sqlx::query(GONE)
        .bind(node.0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await
}

/// Nodes by id.
pub(super) async fn nodes(
    store: &SqliteStore,
    after: Option<NodeId>,
    size: usize,
) -> Result<Vec<NodeView>> {
    #[derive(FromRow)]
    struct NodeRow {
        id: Uuid,
        name: String,
        version: String,
        sessions: u32,
        draining: bool,
        start_time: i64,
        seen_time: i64,
    }
    let rows: Vec<NodeRow> = sqlx::query_as(NODES)
        .bind(after.map_or(Uuid::nil(), |node| node.0))
        .bind(rows_max(size))
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    let view = |row: NodeRow| NodeView {
        report: NodeReport {
            id: NodeId(row.id),
            name: row.name,
            version: row.version,
            sessions: row.sessions,
            draining: row.draining,
        },
        start: Timestamp(row.start_time),
        seen: Timestamp(row.seen_time),
    };
    Ok(rows.into_iter().map(view).collect())
}

/// Asks a session to leave.
pub(super) async fn drain_session(
    store: &SqliteStore,
    session: SessionId,
    by: &By,
) -> Result<Draining> {
    let statements = (SESSION, DRAIN_SESSION, AuditAction::DrainSession);
    ask(store, statements, session.uuid(), &session.to_string(), by).await
}

/// Asks a node to leave.
pub(super) async fn drain_node(store: &SqliteStore, node: NodeId, by: &By) -> Result<Draining> {
    let statements = (NODE, DRAIN_NODE, AuditAction::DrainNode);
    ask(store, statements, node.0, &node.to_string(), by).await
}

async fn ask(
    store: &SqliteStore,
    (look, drain, action): (&'static str, &'static str, AuditAction),
    id: Uuid,
    subject: &str,
    by: &By,
) -> Result<Draining> {
    let (mut tx, now) = store.write().await?;
    let before: Option<bool> = sqlx::query_scalar(look)
        .bind(id)
        .fetch_optional(&mut *tx)
        .await
        .map_err(fault)?;
    match before {
        None => return Ok(Draining::NotFound),
        Some(true) => return Ok(Draining::Already),
        Some(false) => {}
    }
    sqlx::query(drain)
        .bind(id)
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    audit::note(&mut tx, now, action, subject, by).await?;
    commit(tx).await?;
    Ok(Draining::Done)
}
