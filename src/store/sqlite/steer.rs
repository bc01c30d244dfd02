//! What a hand does to one job, cancel and retry aside: another time, another priority, and delete.

use sqlx::SqliteConnection;

use super::admin::{known, note};
use super::change::{Change, Current, apply, current};
use super::fault::fault;
use super::row::id_list;
use super::sweep::PURGE;
use super::{SqliteStore, backlog, commit};
use crate::error::Result;
use crate::job::limits::{ROW_AGE_MIN, SPAN_MAX};
use crate::job::{AuditAction, By, JobId, JobState, Priority, Start};
use crate::store::{Deleted, Line, Rescheduled};

const SET_PRIORITY: &str = "
UPDATE jobs SET priority = ?2, revision = revision + 1, queue_time = CASE state WHEN 2 THEN ?3 ELSE queue_time END
 WHERE id = ?1 AND state IN (1, 2)";
const KEEP_ID: &str = "INSERT INTO deleted (id, purge_time) VALUES (?1, ?2)";

/// Gives a job that waits another time.
pub(super) async fn reschedule(
    store: &SqliteStore,
    id: JobId,
    start: Start,
    by: &By,
) -> Result<Rescheduled> {
    let (mut tx, now) = store.write().await?;
    let row = match waiting(&mut tx, id).await? {
        Ok(row) => row,
        Err(answer) => return Ok(answer),
    };
    let run_time = start.of(now).max(now);
    if run_time > now.after(SPAN_MAX) {
        return Ok(Rescheduled::StartTooFar);
    }
    let expires = row.expire_at.filter(|_| row.attempt == 0);
    if expires.is_some_and(|expires| expires <= run_time.0) {
        return Ok(Rescheduled::ExpiresTooSoon);
    }
    let change = match (run_time > now, row.state) {
        (true, _) => Some(row.goes_on(JobState::Scheduled, run_time)),
        (false, JobState::Scheduled) => Some(row.goes_on(JobState::Queued, now)),
        // It would lose its place.
        (false, _) => None,
    };
    let changes: Vec<Change> = change.into_iter().collect();
    let segments = apply(&mut tx, now, &changes).await?;
    if !changes.is_empty() {
        note(&mut tx, now, AuditAction::RescheduleJob, id, by).await?;
    }
    let job = known(&mut tx, id).await?;
    commit(tx).await?;
    Ok(Rescheduled::Done(job, segments))
}

/// Gives a job that waits another priority.
pub(super) async fn set_priority(
    store: &SqliteStore,
    id: JobId,
    priority: Priority,
    by: &By,
) -> Result<Rescheduled> {
    let (mut tx, now) = store.write().await?;
    let row = match waiting(&mut tx, id).await? {
        Ok(row) => row,
        Err(answer) => return Ok(answer),
    };
    let mut segments = Vec::new();
    if row.line.priority != priority {
        sqlx::query(SET_PRIORITY)
            .bind(id.uuid())
            .bind(priority.number())
            .bind(now.0)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        let line = Line {
            priority,
            ..row.line
        };
        let queued = (row.state == JobState::Queued).then_some((&line, id));
        segments = backlog::append(&mut tx, now, queued.into_iter()).await?;
        note(&mut tx, now, AuditAction::SetJobPriority, id, by).await?;
    }
    let job = known(&mut tx, id).await?;
    commit(tx).await?;
    Ok(Rescheduled::Done(job, segments))
}

/// The row of a job that waits, or what is to be said of one that does not.
async fn waiting(
    connection: &mut SqliteConnection,
    id: JobId,
) -> Result<std::result::Result<Current, Rescheduled>> {
    Ok(match current(connection, &[id]).await?.remove(&id) {
        None => Err(Rescheduled::NotFound),
        Some(row) if matches!(row.state, JobState::Scheduled | JobState::Queued) => Ok(row),
        Some(row) => Err(Rescheduled::WrongState(row.state)),
    })
}

/// Deletes a final job. Its id is kept until that is too old to be sent again: so no id comes to life twice.
pub(super) async fn delete(store: &SqliteStore, id: JobId, by: &By) -> Result<Deleted> {
    let (mut tx, now) = store.write().await?;
    let Some(row) = current(&mut tx, &[id]).await?.remove(&id) else {
        return Ok(Deleted::NotFound);
    };
    if !row.state.is_final() {
        return Ok(Deleted::WrongState(row.state));
    }
    let list = id_list(&[id])?;
    for statement in PURGE {
        sqlx::query(statement)
            .bind(&list)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
    }
    sqlx::query(KEEP_ID)
        .bind(id.uuid())
        .bind(row.create_time.after(ROW_AGE_MIN).max(now).0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    note(&mut tx, now, AuditAction::DeleteJob, id, by).await?;
    commit(tx).await?;
    Ok(Deleted::Done)
}
