//! Small pools with bounds of time on everything, and pinned plans.

use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres};
use tokio::sync::{Semaphore, SemaphorePermit};

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
/// A plan that is so old is made anew. A cached one knows how large the tables were when it was made, and keeps on until
/// somebody analyzes them: made on a few rows, it walks through all of what are many now, once for each item of a batch.
/// Making all plans of a connection anew takes some milliseconds.
const PLANS_FOR: Duration = Duration::from_secs(5);
/// After a statement that took so long they are made anew at once.
const SLOW: Duration = Duration::from_millis(500);
/// A connection that is so old is closed instead of used.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
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

/// One pool. Connections that have just answered are kept here, the last one on top: it has the statements prepared and
/// its server process is warm, while the driver would take the one that rests longest, and ask each one after each
/// statement whether it is good: one more round trip.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    driver: PgPool,
    turns: Arc<Semaphore>,
    /// `None`: what comes back must be rolled back, which the driver's pool does.
    kept: Option<Arc<Mutex<Kept>>>,
}

#[derive(Debug, Default)]
struct Kept {
    closed: bool,
    idle: Vec<Wire>,
}

/// A connection, since when it is here, the age of its plans if they are any good, and since when it rests.
#[derive(Debug)]
struct Wire {
    conn: PoolConnection<Postgres>,
    had_since: Instant,
    planned_since: Option<Instant>,
    idle_since: Instant,
}

/// A connection and the turn to use one. What is not put back, goes to the driver's pool, which tries it or closes it.
pub(super) struct Taken<'a> {
    pub conn: PoolConnection<Postgres>,
    had_since: Instant,
    planned_since: Option<Instant>,
    _turn: SemaphorePermit<'a>,
}

impl Pool {
    pub(super) fn new(base: &PgConnectOptions, size: u32, transactions: Transactions) -> Self {
        let size = size.max(1);
        let options = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(CONNECT_WITHIN)
            // The driver would warn of each call that waited: a line for every one of a crowd. Metrics tell of it.
            .acquire_slow_threshold(Duration::from_secs(60))
            .max_lifetime(AGE_MAX)
            .test_before_acquire(false)
            .before_acquire(|conn, meta| {
                Box::pin(async move { Ok(meta.idle_for < TRY_AFTER_IDLE || answers(conn).await) })
            });
        let kept = match transactions {
            Transactions::None => Some(Arc::default()),
            Transactions::RolledBack => None,
        };
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
        Self {
            driver: options.connect_lazy_with(base.clone()),
            turns: Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(1))),
            kept,
        }
    }

    pub(super) async fn close(&self) {
        let idle = self.kept().map(|mut kept| {
            kept.closed = true;
            std::mem::take(&mut kept.idle)
        });
        drop(idle);
        self.driver.close().await;
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

    /// A connection, for more than one statement. It is to be put back only if all were answered to their end.
    pub(super) async fn take(&self) -> Result<Taken<'_>> {
        tokio::time::timeout(CONNECT_WITHIN, self.take_in_turn())
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))
            .map_err(no_connection)
    }

    // Cancel safe: what is dropped on the way goes to the driver's pool.
    async fn take_in_turn(&self) -> Result<Taken<'_>, sqlx::Error> {
        let turn = self.turns.acquire().await;
        let turn = turn.map_err(|_| sqlx::Error::PoolClosed)?;
        while let Some(mut wire) = self.kept().and_then(|mut kept| kept.idle.pop()) {
            let is_young = wire.had_since.elapsed() < AGE_MAX;
            let is_fresh = wire
                .planned_since
                .is_some_and(|at| at.elapsed() < PLANS_FOR);
            let is_good = match is_fresh {
                _ if !is_young => false,
                true => wire.idle_since.elapsed() < TRY_AFTER_IDLE || answers(&mut wire.conn).await,
                false => plans_anew(&mut wire.conn).await,
            };
            if is_good {
                return Ok(Taken {
                    conn: wire.conn,
                    had_since: wire.had_since,
                    planned_since: wire
                        .planned_since
                        .filter(|_| is_fresh)
                        .or(Some(Instant::now())),
                    _turn: turn,
                });
            }
            wire.conn.close_on_drop();
            if is_young {
                // It does not answer, and so perhaps do those below, which have rested longer.
                let below = self.kept().map(|mut kept| std::mem::take(&mut kept.idle));
                for mut wire in below.into_iter().flatten() {
                    wire.conn.close_on_drop();
                }
            }
        }
        let mut conn = self.driver.acquire().await?;
        // What has come back to the driver may be one on which a statement took too long.
        if !plans_anew(&mut conn).await {
            conn.close_on_drop();
            return Err(sqlx::Error::PoolTimedOut);
        }
        Ok(Taken {
            conn,
            had_since: Instant::now(),
            planned_since: Some(Instant::now()),
            _turn: turn,
        })
    }

    /// Keeps a connection whose statements were answered to their end.
    pub(super) fn put_back(&self, taken: Taken<'_>) {
        if let Some(mut kept) = self.kept()
            && !kept.closed
        {
            kept.idle.push(Wire {
                conn: taken.conn,
                had_since: taken.had_since,
                planned_since: taken.planned_since,
                idle_since: Instant::now(),
            });
        }
    }

    fn kept(&self) -> Option<MutexGuard<'_, Kept>> {
        let kept = self.kept.as_ref()?;
        Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run<'q>(
        &self,
        effect: Effect,
        excused: fn(&sqlx::Error) -> bool,
        make: impl Fn() -> Statement<'q>,
    ) -> Result<Option<Vec<PgRow>>> {
        let mut taken = self.take().await?;
        for run in 1.. {
            let asked = Instant::now();
            let answer = make().fetch_all(&mut *taken.conn);
            match tokio::time::timeout(ANSWER_WITHIN, answer).await {
                Ok(Ok(rows)) => {
                    taken.planned_since = taken.planned_since.filter(|_| asked.elapsed() < SLOW);
                    self.put_back(taken);
                    return Ok(Some(rows));
                }
                Ok(Err(e)) if excused(&e) => return Ok(None),
                Ok(Err(e)) if run < RUNS_MAX && gave_way(&e) => {}
                Ok(Err(e)) => return Err(fault(e, effect)),
                Err(_) => {
                    taken.conn.close_on_drop();
                    return Err(silent(effect));
                }
            }
        }
        Err(silent(effect))
    }
}

/// Forgets the plans of a connection; false if it does not answer.
async fn plans_anew(conn: &mut PgConnection) -> bool {
    let answer = tokio::time::timeout(CONNECT_WITHIN / 2, conn.execute("DISCARD PLANS")).await;
    answer.is_ok_and(|answer| answer.is_ok())
}

/// Whether a connection that has rested is still one.
async fn answers(conn: &mut PgConnection) -> bool {
    let answer = tokio::time::timeout(CONNECT_WITHIN / 2, conn.ping()).await;
    answer.is_ok_and(|answer| answer.is_ok())
}
