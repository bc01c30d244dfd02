//! What was changed by hand, as those who changed it have left it.

use super::fault::broken;
use super::pool::Pool;
use super::row::{bound, column};
use crate::error::Result;
use crate::job::{Actor, AuditAction, AuditEvent, By, Timestamp};

const EVENTS: &str = "
SELECT id, create_time, count, action, subject, actor, reason FROM audit
 WHERE id < $1 ORDER BY id DESC LIMIT $2";

/// The newest changes below a number, newest first.
pub(super) async fn events(
    pool: &Pool,
    before: Option<i64>,
    size: usize,
) -> Result<Vec<AuditEvent>> {
    let before = before.unwrap_or(i64::MAX);
    let rows = pool
        .read(|| sqlx::query(EVENTS).bind(before).bind(bound(size)))
        .await?;
    rows.iter()
        .map(|row| {
            Ok(AuditEvent {
                id: column(row, "id")?,
                time: Timestamp(column(row, "create_time")?),
                action: AuditAction::from_number(column(row, "action")?)
                    .ok_or_else(|| broken("audit.action"))?,
                subject: column(row, "subject")?,
                count: u64::try_from(column::<i64>(row, "count")?).unwrap_or(0),
                by: By {
                    actor: Actor::from_store(column(row, "actor")?),
                    reason: column(row, "reason")?,
                },
            })
        })
        .collect()
}
