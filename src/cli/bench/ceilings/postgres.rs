//! The raw rates of a Postgres, on a table of the very shape of `jobs`, with its indexes and its settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Amount, Rows};
use crate::cli::bench::database::{Database, trouble};
use crate::cli::bench::figure::Times;
use crate::cli::exit::Failure;

/// LIKE takes columns, defaults, storage and indexes, but not the table's own settings.
const SETTINGS: &str =
    "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = 'public.jobs'::regclass";
/// What an enqueue fills in, with what is the same in all rows as a constant: no queue could do with less.
macro_rules! insert {
    ($ids:literal) => {
        concat!(
            "INSERT INTO bench.jobs (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor,
               timeout, retention, fingerprint, payload_type, payload_is_text, payload, state, create_time, run_time, queued_time)
             SELECT id, 'bench', 'bench', 2, 25, 15000000, 86400000000, 2, 3600000000, 604800000000, $2,
               'application/octet-stream', false, $3, 2, 1, 1, 1 FROM ",
            $ids
        )
    };
}
const ONE: &str = insert!("(SELECT $1::uuid AS id) AS n");
const MANY: &str = insert!("unnest($1::uuid[]) AS n (id)");
const GRANT: &str = "
UPDATE bench.jobs j SET state = 3, attempt = attempt + 1, revision = revision + 1, session = $2, worker = 'bench', start_time = 2,
       timeout_time = 3
  FROM unnest($1::uuid[]) AS n (id) WHERE j.id = n.id AND j.state = 2
RETURNING j.id, j.attempt, j.payload_type, j.payload";
const RESULT: &str = "
UPDATE bench.jobs j SET state = 4, revision = revision + 1, timeout_time = NULL, finish_time = 4, purge_time = 5
  FROM unnest($1::uuid[]) AS n (id) WHERE j.id = n.id AND j.attempt = 1 AND j.session = $2 AND j.state = 3
RETURNING j.id";
/// Commits that are timed alone.
const ALONE: u64 = 100;

/// Measures each, and removes the table.
pub(super) async fn measure(database: &Database, amount: Amount) -> Result<Rows, Failure> {
    let told = |why: sqlx::Error| trouble("postgres", &why);
    let pool = database.pool();
    make(pool).await.map_err(told)?;
    let hot = database.hot();
    let alone = PgConnection::connect_with(&hot).await.map_err(told)?;
    let commit_ms = alone_ms(alone, amount).await.map_err(told)?;
    let connections = database.connections(amount.in_flight).await?;
    let single = Batches {
        left: Arc::new(AtomicU64::new(amount.singles)),
        size: 1,
        amount,
    };
    let single = single.timed(&hot, connections, Work::One).await?;
    empty(pool).await.map_err(told)?;
    let batches = || Batches {
        left: Arc::new(AtomicU64::new(amount.rows)),
        size: amount.batch as u64,
        amount,
    };
    let connections = database.connections(amount.callers).await?;
    let batch = batches().timed(&hot, connections, Work::Many).await?;
    empty(pool).await.map_err(told)?;
    let grant_and_result = batches()
        .timed(&hot, connections, Work::GrantAndResult)
        .await?;
    sqlx::raw_sql("DROP SCHEMA bench CASCADE")
        .execute(pool)
        .await
        .map_err(told)?;
    Ok(Rows {
        single,
        commit_ms,
        batch,
        grant_and_result,
    })
}

async fn make(pool: &PgPool) -> Result<(), sqlx::Error> {
    let settings: String = sqlx::query_scalar(SETTINGS).fetch_one(pool).await?;
    let create = format!(
        "CREATE SCHEMA bench; CREATE TABLE bench.jobs (LIKE public.jobs INCLUDING ALL) WITH ({settings})"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(pool).await?;
    Ok(())
}

async fn empty(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("TRUNCATE bench.jobs").execute(pool).await?;
    Ok(())
}

async fn alone_ms(mut connection: PgConnection, amount: Amount) -> Result<f64, sqlx::Error> {
    let mut times = Times::new();
    for _ in 0..ALONE {
        let begun = Instant::now();
        one(&mut connection, amount).await?;
        times.record(begun.elapsed());
    }
    connection.close().await?;
    Ok(times.summary().p50)
}

async fn one(connection: &mut PgConnection, amount: Amount) -> Result<(), sqlx::Error> {
    sqlx::query(ONE)
        .bind(Uuid::now_v7())
        .bind(vec![1_u8; 32])
        .bind(vec![b'.'; amount.payload])
        .execute(connection)
        .await?;
    Ok(())
}

async fn many(
    connection: &mut PgConnection,
    ids: &[Uuid],
    bytes: usize,
) -> Result<(), sqlx::Error> {
    sqlx::query(MANY)
        .bind(ids)
        .bind(vec![1_u8; 32])
        .bind(vec![b'.'; bytes])
        .execute(connection)
        .await?;
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    One,
    Many,
    GrantAndResult,
}

/// So many rows, in batches, shared by some connections.
#[derive(Clone)]
struct Batches {
    left: Arc<AtomicU64>,
    size: u64,
    amount: Amount,
}

impl Batches {
    /// Rows a second, from when all connections are ready until the last one is done.
    async fn timed(
        &self,
        options: &PgConnectOptions,
        connections: usize,
        work: Work,
    ) -> Result<f64, Failure> {
        let rows = self.left.load(Ordering::Relaxed);
        let barrier = Arc::new(Barrier::new(connections));
        let mut working = JoinSet::new();
        for _ in 0..connections {
            // One after the other: a server takes only so many at once.
            let connection = PgConnection::connect_with(options)
                .await
                .map_err(|why| trouble("postgres", &why))?;
            working.spawn(self.clone().run(connection, barrier.clone(), work));
        }
        let (mut first, mut last) = (None, None);
        while let Some(worked) = working.join_next().await {
            let (begun, ended) = worked
                .map_err(|why| Failure::trouble(why.to_string()))?
                .map_err(|why| trouble("postgres", &why))?;
            first = Some(first.map_or(begun, |first: Instant| first.min(begun)));
            last = Some(last.map_or(ended, |last: Instant| last.max(ended)));
        }
        let took = last
            .zip(first)
            .map_or(0.0, |(last, first)| (last - first).as_secs_f64());
        Ok(rows as f64 / took.max(1e-9))
    }

    async fn run(
        self,
        mut connection: PgConnection,
        barrier: Arc<Barrier>,
        work: Work,
    ) -> Result<(Instant, Instant), sqlx::Error> {
        let session = Uuid::now_v7();
        let mut prepared: Vec<Vec<Uuid>> = Vec::new();
        if work == Work::GrantAndResult {
            // What is granted is enqueued before the clock runs.
            while let Some(ids) = self.take() {
                many(&mut connection, &ids, self.amount.payload).await?;
                prepared.push(ids);
            }
        }
        barrier.wait().await;
        let begun = Instant::now();
        match work {
            Work::One => {
                while self.take().is_some() {
                    one(&mut connection, self.amount).await?;
                }
            }
            Work::Many => {
                while let Some(ids) = self.take() {
                    many(&mut connection, &ids, self.amount.payload).await?;
                }
            }
            Work::GrantAndResult => {
                for ids in prepared {
                    for statement in [GRANT, RESULT] {
                        let rows = sqlx::query(statement)
                            .bind(&ids)
                            .bind(session)
                            .fetch_all(&mut connection)
                            .await?;
                        if rows.len() != ids.len() {
                            return Err(sqlx::Error::RowNotFound);
                        }
                    }
                }
            }
        }
        let ended = Instant::now();
        connection.close().await?;
        Ok((begun, ended))
    }

    /// Ids of the next batch.
    fn take(&self) -> Option<Vec<Uuid>> {
        let take = |left: u64| (left > 0).then(|| left.saturating_sub(self.size));
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()?;
        Some((0..left.min(self.size)).map(|_| Uuid::now_v7()).collect())
    }
}
