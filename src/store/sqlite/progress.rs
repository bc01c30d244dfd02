//! What running attempts have come to, in a table beside the jobs.

use std::collections::HashMap;

use bytes::Bytes;
use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::change::current;
use super::fault::fault;
use super::result::{ended, standing};
use super::row::id_list;
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::{JobId, JobState, Progress, Verdict};
use crate::store::Report;

const REPORT: &str = "
INSERT INTO progress (id, revision, percent, note, checkpoint) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (id) DO UPDATE
   SET revision = excluded.revision, percent = coalesce(excluded.percent, percent),
       note = coalesce(excluded.note, note), checkpoint = coalesce(excluded.checkpoint, checkpoint)
 WHERE revision < excluded.revision";
const READ: &str = "
SELECT id, revision, percent, note, CASE WHEN ?2 THEN checkpoint END AS checkpoint
  FROM progress WHERE id IN (SELECT unhex(value) FROM json_each(?1))";

/// Records reports, one after the other.
pub(super) async fn report(store: &SqliteStore, reports: Vec<Report>) -> Result<Vec<Verdict>> {
    let (mut tx, _) = store.write().await?;
    let ids: Vec<JobId> = reports.iter().map(|report| report.lease.job).collect();
    let rows = current(&mut tx, &ids).await?;
    let leases: Vec<_> = reports.iter().map(|report| report.lease).collect();
    let ended = ended(&mut tx, &leases).await?;
    let mut verdicts = Vec::with_capacity(reports.len());
    for report in reports {
        let Some(row) = rows.get(&report.lease.job) else {
            verdicts.push(Verdict::Unknown);
            continue;
        };
        let standing = standing(row, ended.get(&report.lease));
        let is_held = standing.state == JobState::Running
            && standing.attempt == report.lease.attempt
            && standing.session == Some(report.session);
        if !is_held {
            verdicts.push(standing.stale(report.lease, report.session));
            continue;
        }
        let progress = report.progress;
        sqlx::query(REPORT)
            .bind(report.lease.job.uuid())
            .bind(i64::try_from(progress.revision).unwrap_or(i64::MAX))
            .bind(progress.percent)
            .bind(progress.note)
            .bind(progress.checkpoint.map(|data| data.to_vec()))
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        verdicts.push(Verdict::Recorded(standing.state));
    }
    commit(tx).await?;
    Ok(verdicts)
}

/// Reads what is known of jobs, with their checkpoints or without.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    ids: &[JobId],
    with_checkpoints: bool,
) -> Result<HashMap<JobId, Progress>> {
    #[derive(FromRow)]
    struct ProgressRow {
        id: Uuid,
        revision: i64,
        percent: Option<u32>,
        note: Option<String>,
        checkpoint: Option<Vec<u8>>,
    }
    let rows: Vec<ProgressRow> = sqlx::query_as(READ)
        .bind(id_list(ids)?)
        .bind(with_checkpoints)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let progress = Progress {
                percent: row.percent,
                note: row.note,
                checkpoint: row.checkpoint.map(Bytes::from),
                revision: u64::try_from(row.revision).unwrap_or(0),
            };
            (JobId::from_store(row.id), progress)
        })
        .collect())
}
