//! Time that passes at once, for tests of those who use leasehold.

use sqlx::{AssertSqlSafe, Row};

use super::fault::fault;
use super::{SqliteStore, Tx, commit};
use crate::error::Result;
use crate::job::time::micros;

/// What grows older. Sessions do not: their workers are alive, and are heard of as the clock on the wall goes.
const TABLES: [&str; 4] = ["jobs", "attempts", "backlog", "deleted"];

impl SqliteStore {
    /// Makes all jobs older, as if so much time had passed for them: what waits for its time is due, what expires has
    /// expired, what was kept long enough is forgotten. Sessions, and attempts under way, do not notice; ids stay as they
    /// are. For tests: nothing else has a reason to.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn age(&self, by: std::time::Duration) -> Result<()> {
        let (mut tx, _) = self.write().await?;
        for table in TABLES {
            let moments = moments(&mut tx, table).await?;
            let moved: Vec<String> = moments.iter().map(|m| format!("{m} = {m} - ?1")).collect();
            // Names of our own tables and columns, none of anybody's words.
            let update = AssertSqlSafe(format!("UPDATE {table} SET {}", moved.join(", ")));
            let update = sqlx::query(update).bind(micros(by));
            update.execute(&mut *tx).await.map_err(fault)?;
        }
        commit(tx).await
    }
}

/// The columns that hold moments, by their names.
async fn moments(tx: &mut Tx, table: &str) -> Result<Vec<String>> {
    let columns = sqlx::query("SELECT name FROM pragma_table_info(?1)").bind(table);
    let columns = columns.fetch_all(&mut **tx).await.map_err(fault)?;
    let names = columns.iter().map(|row| row.try_get::<String, _>(0));
    let names: Vec<String> = names
        .collect::<std::result::Result<_, _>>()
        .map_err(fault)?;
    let is_moment = |name: &String| name.ends_with("_time") || name.ends_with("_at");
    Ok(names.into_iter().filter(is_moment).collect())
}
