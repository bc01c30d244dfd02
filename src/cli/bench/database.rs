//! A database of the benchmark's own on the Postgres that it is given, dropped at the end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use super::left::{Left, Thing};
use super::proc;
use crate::cli::exit::Failure;
use crate::config::SecretUrl;

/// Settings that say whether a commit is durable; a figure without them is no figure.
const DURABLE: [&str; 3] = ["fsync", "synchronous_commit", "full_page_writes"];
/// Settings to know a figure by.
const TOLD: [&str; 9] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "max_connections",
    "server_version",
];
/// Connections that are left to others.
const SPARE: i64 = 8;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The database.
pub(super) struct Database {
    name: String,
    /// On the database that the user named, from which ours can be made and dropped.
    outside: PgConnectOptions,
    inside: PgConnectOptions,
    pool: PgPool,
    /// The server's settings by name.
    pub(super) settings: BTreeMap<String, String>,
    /// The process that all of the server's processes belong to, if it is on this machine.
    postmaster: Option<u32>,
    left: Left,
}

/// What was taken of the server until now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) cpu: Option<Duration>,
    pub(super) wal_bytes: Option<f64>,
    pub(super) transactions: Option<f64>,
}

impl Database {
    /// Makes it. Not to be dropped half-way: Postgres would make it all the same.
    pub(super) async fn create(url: &SecretUrl, name: String, left: Left) -> Result<Self, Failure> {
        let outside = PgConnectOptions::from_str(url.expose())
            .map_err(|_| Failure::usage("--postgres must be a postgres:// URL"))?
            .application_name("leasehold-bench")
            .disable_statement_logging();
        let mut connection = connect(&outside).await?;
        let create = format!("CREATE DATABASE {name}");
        left.made(Thing::Database(name.clone()));
        // The name is ours: letters, digits and underscores.
        let created = sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&mut connection)
            .await;
        if let Err(why) = created {
            // Of a connection that broke it is not known, and the name stays.
            if why.as_database_error().is_some() {
                left.removed(&Thing::Database(name));
            }
            return Err(trouble("cannot make a database of its own", &why));
        }
        let _ = connection.close().await;
        let inside = outside.clone().database(&name);
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(CONNECT_WITHIN)
            .connect_lazy_with(inside.clone());
        let mut database = Self {
            name,
            outside,
            inside,
            pool,
            settings: BTreeMap::new(),
            postmaster: None,
            left,
        };
        if let Err(why) = database.look().await {
            // It was made, so it goes, whatever is wrong.
            let _ = database.drop().await;
            return Err(trouble("postgres", &why));
        }
        Ok(database)
    }

    async fn look(&mut self) -> Result<(), sqlx::Error> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY($1)",
        )
        .bind(TOLD.map(str::to_owned).to_vec())
        .fetch_all(&self.pool)
        .await?;
        self.settings = rows.into_iter().collect();
        let (pid, address): (i32, Option<String>) =
            sqlx::query_as("SELECT pg_backend_pid(), host(inet_server_addr())")
                .fetch_one(&self.pool)
                .await?;
        let address: Option<IpAddr> = address.and_then(|address| address.parse().ok());
        // A process of that number and name on another machine could be here by chance only for loopback.
        if address.is_none_or(|address| address.is_loopback()) {
            self.postmaster = u32::try_from(pid)
                .ok()
                .and_then(|pid| proc::parent(pid, "postgres"));
        }
        Ok(())
    }

    /// Settings by which commits would not be durable.
    pub(super) fn not_durable(&self) -> Vec<String> {
        DURABLE
            .iter()
            .filter_map(|name| {
                let value = self.settings.get(*name)?;
                (value == "off").then(|| format!("{name} = {value}"))
            })
            .collect()
    }

    /// The URL of the database, for its nodes.
    pub(super) fn url(&self) -> SecretUrl {
        SecretUrl::new(self.inside.to_url_lossy().to_string())
    }

    /// The way to it with the settings of the nodes' hot connections.
    pub(super) fn hot(&self) -> PgConnectOptions {
        self.inside
            .clone()
            .options([("jit", "off"), ("enable_seqscan", "off")])
    }

    /// To ask it something.
    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How many more connections the server takes, up to this many.
    pub(super) async fn connections(&self, wanted: usize) -> Result<usize, Failure> {
        let free: i64 = sqlx::query_scalar(
            "SELECT current_setting('max_connections')::bigint - (SELECT count(*) FROM pg_stat_activity)",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(|why| trouble("postgres", &why))?;
        let free = usize::try_from((free - SPARE).max(1)).unwrap_or(1);
        Ok(wanted.min(free))
    }

    pub(super) async fn spent(&self) -> Spent {
        let seen: Result<(f64, f64), sqlx::Error> = sqlx::query_as(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8, xact_commit::float8
               FROM pg_stat_database WHERE datname = current_database()",
        )
        .fetch_one(&self.pool)
        .await;
        let (wal_bytes, transactions) = seen.ok().unzip();
        Spent {
            cpu: self.postmaster.and_then(proc::cpu_of_family),
            wal_bytes,
            transactions,
        }
    }

    /// Drops it, whoever is still connected to it.
    pub(super) async fn drop(self) -> Result<(), Failure> {
        self.pool.close().await;
        let mut connection = connect(&self.outside).await?;
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let dropped = sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(&mut connection)
            .await;
        let _ = connection.close().await;
        match dropped {
            Ok(_) => {
                self.left.removed(&Thing::Database(self.name));
                Ok(())
            }
            Err(why) => Err(trouble(&format!("the database {} stays", self.name), &why)),
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Failure> {
    match tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect_with(options)).await {
        Ok(connected) => connected.map_err(|why| trouble("postgres", &why)),
        Err(_) => Err(Failure::trouble(format!(
            "postgres: no answer within {CONNECT_WITHIN:?}"
        ))),
    }
}

/// A driver's error for people; what it says holds no password.
pub(super) fn trouble(what: &str, why: &sqlx::Error) -> Failure {
    Failure::trouble(format!("{what}: {why}"))
}
