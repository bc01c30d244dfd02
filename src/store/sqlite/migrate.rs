//! The schema and its versions. Forward only; a file that a newer binary has migrated is refused.

use sqlx::SqliteConnection;
use sqlx::migrate::Migrator;

use super::fault::fault;
use super::{SqliteStore, commit};
use crate::error::{Error, Result};
use crate::store::MigrationReport;

static MIGRATOR: Migrator = sqlx::migrate!("src/store/sqlite/migrations");

const TABLE_EXISTS: &str =
    "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'";
const VERSION: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations";

/// Brings the file to this binary's version. Whoever comes while it is done waits for the file, and finds it done.
pub(super) async fn run(store: &SqliteStore) -> Result<MigrationReport> {
    let (mut tx, _) = store.write().await?;
    let report = report(&mut tx).await?;
    if let Some(why) = report.refusal() {
        return Err(Error::internal(why));
    }
    if !report.steps.is_empty() {
        MIGRATOR
            .run_direct(None, &mut *tx, false)
            .await
            .map_err(Error::internal)?;
        commit(tx).await?;
    }
    Ok(report)
}

/// Says what [`run`] would do.
pub(super) async fn pending(store: &SqliteStore) -> Result<MigrationReport> {
    let mut connection = store.readers.acquire().await.map_err(fault)?;
    report(&mut connection).await
}

async fn report(connection: &mut SqliteConnection) -> Result<MigrationReport> {
    let tables: i64 = sqlx::query_scalar(TABLE_EXISTS)
        .fetch_one(&mut *connection)
        .await
        .map_err(fault)?;
    let found = match tables {
        0 => 0,
        _ => sqlx::query_scalar(VERSION)
            .fetch_one(&mut *connection)
            .await
            .map_err(fault)?,
    };
    let steps = MIGRATOR
        .iter()
        .filter(|step| step.version > found)
        .map(|step| format!("{:04} {}", step.version, step.description))
        .collect();
    let needed = MIGRATOR.iter().map(|step| step.version).max().unwrap_or(0);
    Ok(MigrationReport {
        found,
        needed,
        steps,
    })
}
