//! Nodes as they tell of themselves, and what is asked to leave.

use uuid::Uuid;

use super::pool::Pool;
use super::row::{bound, column, int};
use crate::error::Result;
use crate::job::limits::BATCH_MAX;
use crate::job::{AuditAction, By, NodeId, SessionId, Timestamp};
use crate::store::{Draining, Drains, NodeReport, NodeView};

const PRESENT: &str = "
WITH told AS (
  INSERT INTO nodes AS n (id, start_time, seen_time, sessions, draining, name, version)
  SELECT $1, now, now, $2, $3, $4, $5 FROM (SELECT lh_us() AS now) AS c
  ON CONFLICT (id) DO UPDATE
     SET seen_time = excluded.seen_time, sessions = excluded.sessions, draining = excluded.draining
  RETURNING drain_time IS NOT NULL AS asked),
leaving AS (
  SELECT id FROM sessions WHERE drain_time IS NOT NULL AND node = $1 AND dead_at IS NULL LIMIT $6)
SELECT asked, ARRAY(SELECT id FROM leaving) AS sessions FROM told";
const GONE: &str = "DELETE FROM nodes WHERE id = $1";
const NODES: &str = "
SELECT id, name, version, sessions, draining OR drain_time IS NOT NULL AS draining, start_time, seen_time
  FROM nodes WHERE id > $1 ORDER BY id LIMIT $2";

/// $1 is asked to leave, if it is there and was not asked before.
macro_rules! drain {
    ($table:literal, $is_there:literal) => {
        concat!(
            "WITH done AS (
  UPDATE ",
            $table,
            " SET drain_time = lh_us() WHERE id = $1 AND drain_time IS NULL AND ",
            $is_there,
            " RETURNING id, drain_time),
audited AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason)
  SELECT drain_time, 1, $2, $3, $4, $5 FROM done)
SELECT EXISTS (SELECT FROM done) AS done,
       EXISTS (SELECT FROM ",
            $table,
            " WHERE id = $1 AND drain_time IS NOT NULL AND ",
            $is_there,
            ") AS before"
        )
    };
}
const DRAIN_SESSION: &str = drain!("sessions", "dead_at IS NULL");
const DRAIN_NODE: &str = drain!("nodes", "true");

/// Tells of a node, and asks what it is to let go.
pub(super) async fn present(pool: &Pool, report: &NodeReport) -> Result<Drains> {
    let rows = pool
        .write(|| {
            sqlx::query(PRESENT)
                .bind(report.id.0)
                .bind(int(report.sessions))
                .bind(report.draining)
                .bind(report.name.clone())
                .bind(report.version.clone())
                .bind(bound(BATCH_MAX))
        })
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Drains::default());
    };
    let sessions: Vec<Uuid> = column(row, "sessions")?;
    Ok(Drains {
        node: column(row, "asked")?,
        sessions: sessions.into_iter().map(SessionId::from_store).collect(),
    })
}

/// Forgets a node that has left.
pub(super) async fn gone(pool: &Pool, node: NodeId) -> Result<()> {
    pool.write(|| sqlx::query(GONE).bind(node.0)).await?;
    Ok(())
}

/// Nodes by id.
pub(super) async fn nodes(
    pool: &Pool,
    after: Option<NodeId>,
    size: usize,
) -> Result<Vec<NodeView>> {
    let after = after.map_or(Uuid::nil(), |node| node.0);
    let rows = pool
        .read(|| sqlx::query(NODES).bind(after).bind(bound(size)))
        .await?;
    rows.iter()
        .map(|row| {
            Ok(NodeView {
                report: NodeReport {
                    id: NodeId(column(row, "id")?),
                    name: column(row, "name")?,
                    version: column(row, "version")?,
                    sessions: u32::try_from(column::<i32>(row, "sessions")?).unwrap_or(0),
                    draining: column(row, "draining")?,
                },
                start: Timestamp(column(row, "start_time")?),
                seen: Timestamp(column(row, "seen_time")?),
            })
        })
        .collect()
}

/// Asks a session to leave.
pub(super) async fn drain_session(pool: &Pool, session: SessionId, by: &By) -> Result<Draining> {
    let action = AuditAction::DrainSession;
    let id = session.uuid();
    ask(pool, DRAIN_SESSION, id, action, &session.to_string(), by).await
}

/// Asks a node to leave.
pub(super) async fn drain_node(pool: &Pool, node: NodeId, by: &By) -> Result<Draining> {
    let action = AuditAction::DrainNode;
    ask(pool, DRAIN_NODE, node.0, action, &node.to_string(), by).await
}

async fn ask(
    pool: &Pool,
    statement: &'static str,
    id: Uuid,
    action: AuditAction,
    subject: &str,
    by: &By,
) -> Result<Draining> {
    let rows = pool
        .write(|| {
            sqlx::query(statement)
                .bind(id)
                .bind(action.number())
                .bind(subject.to_owned())
                .bind(by.actor.as_str().to_owned())
                .bind(by.reason.clone())
        })
        .await?;
    let is = |name| rows.first().map_or(Ok(false), |row| column(row, name));
    Ok(match (is("done")?, is("before")?) {
        (true, _) => Draining::Done,
        (false, true) => Draining::Already,
        (false, false) => Draining::NotFound,
    })
}
