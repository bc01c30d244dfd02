//! Where a job is: its place in line, or how its lease stands.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::backlog::{OLDEST, SegmentRow, trim};
use super::fault::fault;
use super::row::{priority, rows_max};
use crate::error::Result;
use crate::job::{JobId, Timestamp};
use crate::store::place::{Seen, Walk};
use crate::store::{Ahead, Whereabouts};

const WHEREABOUTS: &str = "
SELECT p.grace_until, s.expire_time, CASE WHEN j.state = 2 THEN j.queue END, j.priority
  FROM pulse p LEFT JOIN jobs j ON j.id = ?1 LEFT JOIN sessions s ON s.id = j.session AND j.state = 3";

/// Where a job is.
pub(super) async fn whereabouts(
    store: &SqliteStore,
    job: JobId,
    limit: usize,
) -> Result<Whereabouts> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let row: (i64, Option<i64>, Option<String>, Option<i16>) = sqlx::query_as(WHEREABOUTS)
        .bind(job.uuid())
        .fetch_one(&mut *snapshot)
        .await
        .map_err(fault)?;
    let (grace_until, lease_until, queue, level) = row;
    let ahead = match (queue, level) {
        (Some(queue), Some(level)) => {
            let walk = Walk::new(job, priority(level)?, limit);
            Some(ahead(&mut snapshot, &queue, walk).await?)
        }
        _ => None,
    };
    snapshot.rollback().await.map_err(fault)?;
    Ok(Whereabouts {
        now: store.clock.now(),
        ahead,
        lease_until: lease_until.map(Timestamp),
        grace_until: Timestamp(grace_until),
    })
}

async fn ahead(connection: &mut SqliteConnection, queue: &str, mut walk: Walk) -> Result<Ahead> {
    while let Some(step) = walk.next() {
        let mut rows: Vec<SegmentRow> = sqlx::query_as(OLDEST)
            .bind(queue)
            .bind(step.priority.number())
            .bind(step.after)
            .bind(rows_max(step.segments))
            .fetch_all(&mut *connection)
            .await
            .map_err(fault)?;
        let mut before = 0;
        rows.retain(|row| {
            let fits = before < step.jobs;
            before += row.named();
            fits
        });
        let mut seen: Vec<Seen> = rows
            .iter()
            .map(|row| Seen {
                segment: row.id,
                named: row.named(),
                waiting: Vec::new(),
            })
            .collect();
        let (live, _) = trim(connection, rows).await?;
        let mut live: HashMap<i64, Vec<JobId>> = live
            .into_iter()
            .map(|segment| (segment.id, segment.jobs))
            .collect();
        for segment in &mut seen {
            segment.waiting = live.remove(&segment.segment).unwrap_or_default();
        }
        walk.take(&seen);
    }
    Ok(walk.ahead())
}
