//! What a hand does to one job, cancel and retry aside: delete.

use super::change::current;
use super::fault::fault;
use super::row::id_list;
use super::sweep::PURGE;
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::JobId;
use crate::job::limits::ROW_AGE_MIN;
use crate::store::Deleted;

const KEEP_ID: &str = "INSERT INTO deleted (id, purge_time) VALUES (?1, ?2)";

/// Deletes a final job. Its id is kept until that is too old to be sent again: so no id comes to life twice.
pub(super) async fn delete(store: &SqliteStore, id: JobId) -> Result<Deleted> {
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
    commit(tx).await?;
    Ok(Deleted::Done)
}
