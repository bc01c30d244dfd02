//! The raw rates of SQLite, in a file of its own with the embedded server's tables. It has one writer, so there is one
//! connection; batches go in as one JSON parameter, since each statement is a round trip to the driver's thread.

use std::path::Path;
use std::time::Instant;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use uuid::Uuid;

use super::{Amount, Rows};
use crate::cli::bench::database::trouble;
use crate::cli::bench::figure::Times;
use crate::cli::exit::Failure;
use crate::store::Store;
use crate::store::sqlite::SqliteStore;

const JOBS: &str = "
INSERT INTO jobs (id, queue, kind, priority, state, revision, attempt, failures, lost_leases, releases, released_in_row,
                  max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention, fingerprint, worker,
                  create_time, run_time, queue_time, bytes)
SELECT unhex(value), 'bench', 'bench', 2, 2, 1, 0, 0, 0, 0, 0, 25, 15000000, 86400000000, '2', 3600000000, 604800000000,
       ?2, '', 1, 1, 1, 100
  FROM json_each(?1)";
const PAYLOADS: &str = "
INSERT INTO payloads (id, labels, headers, content_type, is_text, data)
SELECT unhex(value), '{}', '{}', 'application/octet-stream', 0, ?2 FROM json_each(?1)";
const GRANT: &str = "
UPDATE jobs SET state = 3, attempt = attempt + 1, revision = revision + 1, session = ?2, worker = 'bench', start_time = 2, timeout_time = 3
 WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state = 2 RETURNING id, attempt";
const READ: &str =
    "SELECT id, data FROM payloads WHERE id IN (SELECT unhex(value) FROM json_each(?1))";
const RESULT: &str = "
UPDATE jobs SET state = 4, revision = revision + 1, timeout_time = NULL, finish_time = 4, purge_time = 5
 WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state = 3 AND attempt = 1 AND session = ?2 RETURNING id";

/// Measures each, and removes the file.
pub(super) async fn measure(folder: &Path, amount: Amount) -> Result<Rows, Failure> {
    let folder = folder.join("ceiling");
    let gone = |why: std::io::Error| Failure::trouble(format!("{}: {why}", folder.display()));
    std::fs::create_dir(&folder).map_err(gone)?;
    let path = folder.join("ceiling.db");
    let store = SqliteStore::open(&path).await?;
    store.migrate().await?;
    store.close().await;
    let measured = on(&path, amount).await;
    std::fs::remove_dir_all(&folder).map_err(gone)?;
    measured.map_err(|why| trouble("sqlite", &why))
}

async fn on(path: &Path, amount: Amount) -> Result<Rows, sqlx::Error> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await?;
    let mut times = Times::new();
    let begun = Instant::now();
    for _ in 0..amount.singles {
        let begun = Instant::now();
        insert(&mut connection, &ids(1), amount.payload).await?;
        times.record(begun.elapsed());
    }
    let single = amount.singles as f64 / begun.elapsed().as_secs_f64();
    let mut batches = Vec::new();
    let mut left = amount.rows;
    let begun = Instant::now();
    while left > 0 {
        let rows = left.min(amount.batch as u64);
        let ids = ids(rows);
        insert(&mut connection, &ids, amount.payload).await?;
        batches.push(ids);
        left -= rows;
    }
    let batch = amount.rows as f64 / begun.elapsed().as_secs_f64();
    let session = Uuid::now_v7();
    let begun = Instant::now();
    for ids in &batches {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let granted = sqlx::query(GRANT).bind(ids).bind(session);
        granted.fetch_all(&mut *tx).await?;
        sqlx::query(READ).bind(ids).fetch_all(&mut *tx).await?;
        tx.commit().await?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let ended = sqlx::query(RESULT).bind(ids).bind(session);
        ended.fetch_all(&mut *tx).await?;
        tx.commit().await?;
    }
    let grant_and_result = amount.rows as f64 / begun.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(Rows {
        single,
        commit_ms: times.summary().p50,
        batch,
        grant_and_result,
    })
}

async fn insert(
    connection: &mut SqliteConnection,
    ids: &str,
    payload: usize,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(JOBS)
        .bind(ids)
        .bind(vec![1_u8; 32])
        .execute(&mut *tx)
        .await?;
    sqlx::query(PAYLOADS)
        .bind(ids)
        .bind(vec![b'.'; payload])
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

/// Ids of so many jobs, as a JSON array of hex.
fn ids(count: u64) -> String {
    let ids: Vec<String> = (0..count)
        .map(|_| format!("\"{}\"", Uuid::now_v7().simple()))
        .collect();
    format!("[{}]", ids.join(","))
}
