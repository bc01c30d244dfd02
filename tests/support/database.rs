//! A fresh database for one test.

use std::thread;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::runtime;
use uuid::Uuid;

use super::services::shared_database_url;

/// An empty database on the shared Postgres, dropped at the end of the test, whoever is still
/// connected to it.
pub struct TestDatabase {
    name: String,
}

impl TestDatabase {
    /// Creates it.
    pub async fn create() -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        execute(format!("CREATE DATABASE {name}"))
            .await
            .expect("create a test database");
        Self { name }
    }

    /// Its URL, of a superuser.
    pub fn url(&self) -> String {
        let shared = shared_database_url();
        let (server, _) = shared
            .rsplit_once('/')
            .expect("the shared URL names a database");
        format!("{server}/{}", self.name)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A drop cannot await, and the test's own runtime may be ending: a thread has its own. What
        // goes wrong here goes with the whole server soon after.
        let dropped = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(execute(statement)))
        });
        let _ = dropped.join();
    }
}

async fn execute(statement: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(&shared_database_url()).await?;
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&mut connection)
        .await?;
    connection.close().await
}
