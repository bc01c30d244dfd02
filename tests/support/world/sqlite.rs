//! A SQLite file in a temporary folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leasehold::clock::ShiftedClock;
use leasehold::store::Store;
use leasehold::store::sqlite::SqliteStore;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use tempfile::TempDir;

use super::{Place, World};

/// Makes a file, brings it to the present schema, and lets the case move its clock.
pub async fn world() -> World {
    let world = empty().await;
    let migrated = world.store.migrate().await;
    migrated.expect("an empty file migrates");
    world
}

/// Makes a file, and leaves it as it is.
pub async fn empty() -> World {
    let place = Folder {
        clock: Arc::new(ShiftedClock::default()),
        folder: TempDir::new().expect("a temporary folder"),
    };
    World::new(place.open().await, Arc::new(place))
}

struct Folder {
    clock: Arc<ShiftedClock>,
    /// Removed when it is dropped, with the last clone of the world.
    folder: TempDir,
}

impl Folder {
    fn file(&self) -> PathBuf {
        self.folder.path().join("leasehold.db")
    }

    async fn connect(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.file());
        options.connect().await.expect("the file opens")
    }
}

#[async_trait::async_trait]
impl Place for Folder {
    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn turn_back(&self, by: Duration) {
        self.clock.turn_back(by);
    }

    async fn open(&self) -> Arc<dyn Store> {
        let store = SqliteStore::open_with_clock(&self.file(), self.clock.clone()).await;
        Arc::new(store.expect("the file opens"))
    }

    async fn outdate(&self, version: i64) {
        let mut db = self.connect().await;
        let outdate = format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({version}, 'of tomorrow', true, x'00', 0);
             ALTER TABLE jobs RENAME TO jobs_of_tomorrow"
        );
        sqlx::raw_sql(AssertSqlSafe(outdate))
            .execute(&mut db)
            .await
            .expect("the schema is there");
        db.close().await.expect("the connection closes");
    }

    async fn schema(&self) -> Vec<String> {
        let mut db = self.connect().await;
        let mut found: Vec<String> =
            sqlx::query_scalar("SELECT concat_ws(' ', name, sql) FROM sqlite_schema ORDER BY name")
                .fetch_all(&mut db)
                .await
                .expect("the catalogue answers");
        if found
            .iter()
            .any(|line| line.starts_with("_sqlx_migrations "))
        {
            let versions = "SELECT concat_ws(' ', version, description, installed_on) FROM _sqlx_migrations ORDER BY version";
            let versions: Vec<String> = sqlx::query_scalar(versions)
                .fetch_all(&mut db)
                .await
                .expect("the versions can be read");
            found.extend(versions);
        }
        db.close().await.expect("the connection closes");
        found
    }

    async fn forget_pulse(&self) {
        let mut db = self.connect().await;
        sqlx::raw_sql("UPDATE pulse SET touch_time = NULL, grace_until = 0")
            .execute(&mut db)
            .await
            .expect("the schema is there");
        db.close().await.expect("the connection closes");
    }

    /// There is one writer: who has the file's lock has the transaction.
    async fn open_transactions(&self) -> i64 {
        let options = SqliteConnectOptions::new()
            .filename(self.file())
            .busy_timeout(Duration::from_millis(100));
        let mut db = options.connect().await.expect("the file opens");
        let taken = sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK")
            .execute(&mut db)
            .await;
        db.close().await.expect("the connection closes");
        i64::from(taken.is_err())
    }

    async fn remove(&self) {}
}
