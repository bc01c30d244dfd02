//! Small pools with bounds of time on everything, and pinned plans.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres};

use super::fault::{Effect, fault, gave_way, no_connection, silent, words};
use crate::error::{Error, Result};

/// A statement with its arguments.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// A caller is told that the database is away within this.
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);
/// A connection that does not answer a statement within this is given up; longer than the server's own bound.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A connection that was idle for so long is tried before it is used.
const TRY_AFTER_IDLE: Duration = Duration::from_secs(1);
/// A statement that gave way to another is run so often.
pub(super) const RUNS_MAX: u32 = 5;

/// How to reach Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// Connections for leases, results and renewals. Default 6.
    pub hot_connections: u32,
    /// Connections for enqueue, and as many again, which are opened only if they are needed, for batches of which an
    /// id is there already. Default 4.
    pub enqueue_connections: u32,
    /// Connections for reads and single changes by hand. Default 4.
    pub read_connections: u32,
    /// Connections for the loops. Default 3.
    pub loop_connections: u32,
    /// Prepared statements kept by a connection. Default 100; 0 for a PgBouncer in transaction mode, which must also
    /// have `options` and `extra_float_digits` among its `ignore_startup_parameters` and the settings of
    /// `postgres/pool.rs` on the role instead.
    pub statement_cache: usize,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            hot_connections: 6,
            enqueue_connections: 4,
            read_connections: 4,
            loop_connections: 3,
            statement_cache: 100,
        }
    }
}

impl PostgresOptions {
    /// Reads the URL and adds what every connection of ours runs with.
    pub(super) fn connect_options(&self, url: &str) -> Result<PgConnectOptions> {
        let base = PgConnectOptions::from_str(url)
            .map_err(|_| Error::field("database_url", "must be a postgres:// URL"))?;
        Ok(base
            .application_name("leasehold")
            .statement_cache_capacity(self.statement_cache)
            .disable_statement_logging()
            .options([
                ("jit", "off"),
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                // While a table is small, a loop over all of it, kept aside, looks cheaper than a look by key; the plan
                // stays when the table has grown, and the batch is quadratic.
                ("enable_material", "off"),
                ("plan_cache_mode", "force_generic_plan"),
                ("synchronous_commit", "on"),
                ("default_transaction_isolation", "read committed"),
                // A BEGIN where something is open is no news: see the pools below.
                ("client_min_messages", "error"),
                ("statement_timeout", "10000"),
                ("lock_timeout", "5000"),
                ("idle_in_transaction_session_timeout", "10000"),
            ]))
    }
}

/// Whether a pool is used with BEGIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transactions {
    /// Single statements only.
    None,
    /// What comes back is rolled back.
    RolledBack,
}

/// Why no connection is to be had: a pool only says that it has waited.
pub(super) async fn trouble(base: &PgConnectOptions) -> Option<String> {
    match tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect_with(base)).await {
        Ok(Ok(conn)) => {
            // It has told what was asked of it, however it ends.
            let _ = conn.close().await;
            None
        }
        Ok(Err(cause)) => Some(words(&cause)),
        Err(_) => Some(format!("no answer within {CONNECT_WITHIN:?}")),
    }
}

/// One pool.
#[derive(Debug, Clone)]
pub(super) struct Pool(PgPool);

impl Pool {
    pub(super) fn new(base: &PgConnectOptions, size: u32, transactions: Transactions) -> Self {
        let options = PgPoolOptions::new()
            .max_connections(size.max(1))
            .acquire_timeout(CONNECT_WITHIN)
            // The driver would warn of each call that waited: a line for every one of a crowd. Metrics tell of it.
            .acquire_slow_threshold(Duration::from_secs(60))
            .max_lifetime(Duration::from_secs(30 * 60))
            .test_before_acquire(false)
            .before_acquire(|conn, meta| {
                Box::pin(async move {
                    if meta.idle_for < TRY_AFTER_IDLE {
                        return Ok(true);
                    }
                    Ok(tokio::time::timeout(CONNECT_WITHIN / 2, conn.ping())
                        .await
                        .is_ok_and(|answer| answer.is_ok()))
                })
            });
        let options = match transactions {
            Transactions::None => options,
            // A begin() that was dropped can come back with its transaction open (sqlx #4385): what others then
            // "commit" would vanish. The driver's own count of open transactions is what goes wrong, so it is not asked.
            // BEGIN first: a ROLLBACK where nothing is open is a warning in the server's log, at every flush. In a
            // transaction that has failed BEGIN fails too, and the connection is thrown away.
            Transactions::RolledBack => options.after_release(|conn, _| {
                Box::pin(async move {
                    conn.execute("BEGIN; ROLLBACK").await?;
                    Ok(true)
                })
            }),
        };
        Self(options.connect_lazy_with(base.clone()))
    }

    pub(super) async fn close(&self) {
        self.0.close().await;
    }

    /// The driver's pool, for what needs a transaction.
    pub(super) fn inner(&self) -> &PgPool {
        &self.0
    }

    /// Runs one statement that only reads.
    pub(super) async fn read<'q>(&self, make: impl Fn() -> Statement<'q>) -> Result<Vec<PgRow>> {
        let rows = self.run(Effect::Read, |_| false, make).await?;
        rows.ok_or_else(|| silent(Effect::Read))
    }

    /// Runs one statement that changes something, again if it gave way to another.
    pub(super) async fn write<'q>(&self, make: impl Fn() -> Statement<'q>) -> Result<Vec<PgRow>> {
        let rows = self.run(Effect::Write, |_| false, make).await?;
        rows.ok_or_else(|| silent(Effect::Write))
    }

    /// The same; `None` when it failed in the way that is `excused`, and so changed nothing.
    pub(super) async fn write_unless<'q>(
        &self,
        excused: fn(&sqlx::Error) -> bool,
        make: impl Fn() -> Statement<'q>,
    ) -> Result<Option<Vec<PgRow>>> {
        self.run(Effect::Write, excused, make).await
    }

    async fn run<'q>(
        &self,
        effect: Effect,
        excused: fn(&sqlx::Error) -> bool,
        make: impl Fn() -> Statement<'q>,
    ) -> Result<Option<Vec<PgRow>>> {
        let mut conn = self.0.acquire().await.map_err(no_connection)?;
        for run in 1.. {
            match tokio::time::timeout(ANSWER_WITHIN, make().fetch_all(&mut *conn)).await {
                Ok(Ok(rows)) => return Ok(Some(rows)),
                Ok(Err(e)) if excused(&e) => return Ok(None),
                Ok(Err(e)) if run < RUNS_MAX && gave_way(&e) => {}
                Ok(Err(e)) => return Err(fault(e, effect)),
                Err(_) => {
                    conn.close_on_drop();
                    return Err(silent(effect));
                }
            }
        }
        Err(silent(effect))
    }
}
