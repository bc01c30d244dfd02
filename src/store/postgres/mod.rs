//! The place of the store in Postgres, which is not built yet: `serve` says so and ends.

use crate::error::{Error, Result};

/// Stands for a store that cannot be opened in this version.
pub use super::sqlite::SqliteStore as PostgresStore;

/// Refuses: there is no store in Postgres yet.
///
/// # Errors
/// Always `InvalidArgument`, naming what to use instead.
pub async fn connect(_url: &str) -> Result<PostgresStore> {
    Err(Error::field(
        "database_url",
        "cannot be used yet: the Postgres store is not built, use `leasehold dev`",
    ))
}
