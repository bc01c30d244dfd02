//! A database of its own on the Postgres that `./scripts/test` starts.

use std::sync::Arc;
use std::time::Duration;

use leasehold::store::Store;
use leasehold::store::postgres::{PostgresOptions, PostgresStore};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

use super::{Place, World};

/// Names the server that the tests may make databases on.
const URL: &str = "LEASEHOLD_TEST_DATABASE_URL";

/// Makes a database, brings it to the present schema, and lets the case move its clock.
pub async fn world() -> World {
    let place = Database::create().await;
    let store = place.open().await;
    store.migrate().await.expect("an empty database migrates");
    place.make_clock_movable().await;
    World::new(store, Arc::new(place))
}

/// Makes a database, and leaves it as it is.
pub async fn empty() -> World {
    let place = Database::create().await;
    World::new(place.open().await, Arc::new(place))
}

struct Database {
    server: PgConnectOptions,
    name: String,
    url: String,
}

impl Database {
    async fn create() -> Self {
        let Ok(server_url) = std::env::var(URL) else {
            panic!("{URL} is not set: run ./scripts/test, which starts a private Postgres");
        };
        let server: PgConnectOptions = server_url
            .parse()
            .unwrap_or_else(|e| panic!("{URL} is not a Postgres URL: {e}"));
        let name = format!("leasehold_{}", Uuid::new_v4().simple());
        let (base, query) = match server_url.split_once('?') {
            Some((base, query)) => (base, format!("?{query}")),
            None => (server_url.as_str(), String::new()),
        };
        let address = base.rsplit_once('/').map_or(base, |(address, _)| address);
        let url = format!("{address}/{name}{query}");
        let place = Self { server, name, url };
        let create = format!("CREATE DATABASE {}", place.name);
        sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&mut place.connect_to_server().await)
            .await
            .expect("the test's user may create databases");
        place
    }

    async fn connect_to_server(&self) -> PgConnection {
        self.server.clone().connect().await.unwrap_or_else(|e| {
            panic!("no Postgres at {URL} ({e}): run ./scripts/test, which starts a private one")
        })
    }

    async fn connect(&self) -> PgConnection {
        self.server
            .clone()
            .database(&self.name)
            .connect()
            .await
            .expect("the new database answers")
    }

    async fn shift(&self, us: i64) {
        let mut db = self.connect().await;
        sqlx::query("UPDATE test_shift SET shift = shift + $1 * interval '1 microsecond'")
            .bind(us)
            .execute(&mut db)
            .await
            .expect("the clock moves");
        db.close().await.expect("the connection closes");
    }

    /// All SQL of the store takes the time from `lh_now()`. Here, and only here, it is replaced by one with an offset.
    async fn make_clock_movable(&self) {
        let mut db = self.connect().await;
        sqlx::raw_sql(
            "CREATE TABLE test_shift (shift interval NOT NULL);
             INSERT INTO test_shift VALUES ('0');
             CREATE OR REPLACE FUNCTION lh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS
             $$ SELECT clock_timestamp() + (SELECT shift FROM public.test_shift) $$;",
        )
        .execute(&mut db)
        .await
        .expect("the schema has a function lh_now()");
        db.close().await.expect("the connection closes");
    }
}

#[async_trait::async_trait]
impl Place for Database {
    async fn advance(&self, by: Duration) {
        self.shift(i64::try_from(by.as_micros()).expect("a case moves by a span of sense"))
            .await;
    }

    async fn turn_back(&self, by: Duration) {
        self.shift(-i64::try_from(by.as_micros()).expect("a case moves by a span of sense"))
            .await;
    }

    async fn open(&self) -> Arc<dyn Store> {
        let store = PostgresStore::connect(&self.url, &PostgresOptions::default()).await;
        Arc::new(store.expect("the store connects"))
    }

    async fn outdate(&self, version: i64) {
        let mut db = self.connect().await;
        let outdate = format!(
            "INSERT INTO leasehold_migrations (version, name) VALUES ({version}, 'of tomorrow');
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
        let mut found: Vec<String> = sqlx::query_scalar(
            "SELECT concat_ws(' ', c.relname, a.attname, a.atttypid::regtype)
               FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
              WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1",
        )
        .fetch_all(&mut db)
        .await
        .expect("the catalogue answers");
        if found
            .iter()
            .any(|line| line.starts_with("leasehold_migrations "))
        {
            let versions = "SELECT concat_ws(' ', version, name, applied_at) FROM leasehold_migrations ORDER BY version";
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
        sqlx::raw_sql("UPDATE pulse SET touched_at = NULL, grace_until = 0")
            .execute(&mut db)
            .await
            .expect("the schema is there");
        db.close().await.expect("the connection closes");
    }

    async fn open_transactions(&self) -> i64 {
        let mut db = self.connect().await;
        let open = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
              WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
                AND (xact_start IS NOT NULL OR state <> 'idle')",
        )
        .fetch_one(&mut db)
        .await
        .expect("the server answers");
        db.close().await.expect("the connection closes");
        open
    }

    fn url(&self) -> Option<&str> {
        Some(&self.url)
    }

    async fn remove(&self) {
        let mut db = self.connect_to_server().await;
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // A case that failed is to be seen, rather than what went wrong with removing what it left.
        if let Err(e) = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut db).await {
            eprintln!("database {} is left behind: {e}", self.name);
        }
    }
}
