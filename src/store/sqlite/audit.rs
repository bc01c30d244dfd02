//! What was changed by hand, as those who changed it have left it.

use sqlx::{FromRow, SqliteConnection};

use super::SqliteStore;
use super::fault::{broken, fault};
use super::row::rows_max;
use crate::error::Result;
use crate::job::{Actor, AuditAction, AuditEvent, By, Timestamp};

const NOTE: &str = "
INSERT INTO audit (create_time, count, action, subject, actor, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const EVENTS: &str = "
SELECT id, create_time, count, action, subject, actor, reason FROM audit
 WHERE id < ?1 ORDER BY id DESC LIMIT ?2";

/// Writes down one change.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    now: Timestamp,
    action: AuditAction,
    subject: &str,
    by: &By,
) -> Result<()> {
    note_many(connection, now, (action, 1), subject, by).await
}

/// Writes down what was done, and to how many.
pub(super) async fn note_many(
    connection: &mut SqliteConnection,
    now: Timestamp,
    (action, count): (AuditAction, i64),
    subject: &str,
    by: &By,
) -> Result<()> {
    sqlx::query(NOTE)
        .bind(now.0)
        .bind(count)
        .bind(action.number())
        .bind(subject)
        .bind(by.actor.as_str())
        .bind(&by.reason)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

/// The newest changes below a number, newest first.
pub(super) async fn events(
    store: &SqliteStore,
    before: Option<i64>,
    size: usize,
) -> Result<Vec<AuditEvent>> {
    #[derive(FromRow)]
    struct EventRow {
        id: i64,
        create_time: i64,
        count: i64,
        action: i16,
        subject: String,
        actor: String,
        reason: String,
    }
    let rows: Vec<EventRow> = sqlx::query_as(EVENTS)
        .bind(before.unwrap_or(i64::MAX))
        .bind(rows_max(size))
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    rows.into_iter()
        .map(|row| {
            Ok(AuditEvent {
                id: row.id,
                time: Timestamp(row.create_time),
                action: AuditAction::from_number(row.action).ok_or_else(|| broken("audit"))?,
                subject: row.subject,
                count: u64::try_from(row.count).unwrap_or(0),
                by: By {
                    actor: Actor::from_store(&row.actor),
                    reason: row.reason,
                },
            })
        })
        .collect()
}
