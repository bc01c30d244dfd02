//! What one node tells the others: attempts whose job was cancelled.

use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::SqliteStore;
use super::fault::fault;
use super::row::rows_max;
use crate::error::Result;
use crate::job::time::micros;
use crate::job::{JobId, Lease, NodeId, SessionId, Timestamp};
use crate::store::Signal;

const SEND: &str =
    "INSERT INTO signals (create_time, job, attempt, session) VALUES (?1, ?2, ?3, ?4)";
const READ: &str = "
SELECT g.id, g.job, g.attempt, g.session
  FROM signals g JOIN sessions s ON s.id = g.session AND s.node = ?1
 WHERE g.create_time >= ?2
 ORDER BY g.create_time DESC LIMIT ?3";

/// Leaves a signal for the node that has the session.
pub(super) async fn send(
    connection: &mut SqliteConnection,
    now: Timestamp,
    lease: Lease,
    session: SessionId,
) -> Result<()> {
    sqlx::query(SEND)
        .bind(now.0)
        .bind(lease.job.uuid())
        .bind(lease.attempt)
        .bind(session.uuid())
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

/// Reads the newest signals for the sessions of a node.
pub(super) async fn read(
    store: &SqliteStore,
    node: NodeId,
    window: Duration,
    limit: usize,
) -> Result<Vec<Signal>> {
    #[derive(FromRow)]
    struct SignalRow {
        id: i64,
        job: Uuid,
        attempt: u32,
        session: Uuid,
    }
    let since = store.clock.now().0.saturating_sub(micros(window));
    let rows: Vec<SignalRow> = sqlx::query_as(READ)
        .bind(node.0)
        .bind(since)
        .bind(rows_max(limit))
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    Ok(rows
        .into_iter()
        .map(|row| Signal {
            id: row.id,
            lease: Lease {
                job: JobId::from_store(row.job),
                attempt: row.attempt,
            },
            session: SessionId::from_store(row.session),
        })
        .collect())
}
