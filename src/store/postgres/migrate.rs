//! The schema's versions: embedded, applied in order, each in its own transaction, one node at a time.

use sqlx::{Connection, PgConnection, Row};

use super::fault::{Effect, fault};
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::store::MigrationReport;

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "jobs and their logs",
        include_str!("migrations/0001_jobs.sql"),
    ),
    (
        2,
        "idempotency keys",
        include_str!("migrations/0002_idempotency_keys.sql"),
    ),
    (
        3,
        "ids of batches as they are",
        include_str!("migrations/0003_plain_ids.sql"),
    ),
    (
        4,
        "queues and the audit",
        include_str!("migrations/0004_queues.sql"),
    ),
    (
        5,
        "sessions as they are seen",
        include_str!("migrations/0005_sessions_seen.sql"),
    ),
    (
        6,
        "expire times",
        include_str!("migrations/0006_expire_time.sql"),
    ),
    (
        7,
        "unique keys",
        include_str!("migrations/0007_unique_keys.sql"),
    ),
    (
        8,
        "logs of jobs",
        include_str!("migrations/0008_job_logs.sql"),
    ),
    (9, "bulks", include_str!("migrations/0009_bulks.sql")),
    (
        10,
        "what goes on in queues",
        include_str!("migrations/0010_queue_flows.sql"),
    ),
    (
        11,
        "nodes and what is to leave",
        include_str!("migrations/0011_nodes.sql"),
    ),
    (
        12,
        "labels of jobs",
        include_str!("migrations/0012_job_labels.sql"),
    ),
    (
        13,
        "when jobs of a queue expire",
        include_str!("migrations/0013_queue_expire_in.sql"),
    ),
];

/// Any number that nobody else locks.
const LOCK: i64 = 0x6c65_6173_6568_6f6c;

const TAKE_LOCK: &str = "SELECT pg_advisory_xact_lock($1)";
const HAS_VERSIONS: &str = "SELECT to_regclass('leasehold_migrations') IS NOT NULL AS there";
const CREATE_VERSIONS: &str = "
CREATE TABLE IF NOT EXISTS leasehold_migrations (
  version bigint PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())";
const FOUND: &str = "SELECT coalesce(max(version), 0) AS found FROM leasehold_migrations";
const RECORD: &str = "INSERT INTO leasehold_migrations (version, name) VALUES ($1, $2)";
/// Building an index may take longer than any statement of the service.
const NO_TIMEOUT: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0";

/// Brings the schema to this binary's version.
pub(super) async fn migrate(pool: &Pool) -> Result<MigrationReport> {
    let mut taken = pool.take().await?;
    let mut tx = taken.conn.begin().await.map_err(write_fault)?;
    sqlx::raw_sql(NO_TIMEOUT)
        .execute(&mut *tx)
        .await
        .map_err(write_fault)?;
    // Nodes that start at once queue here; those that come later find nothing to do.
    sqlx::query(TAKE_LOCK)
        .bind(LOCK)
        .execute(&mut *tx)
        .await
        .map_err(write_fault)?;
    let report = report(&mut tx).await?;
    if let Some(why) = report.refusal() {
        return Err(Error::internal(why));
    }
    if report.steps.is_empty() {
        return Ok(report);
    }
    sqlx::query(CREATE_VERSIONS)
        .execute(&mut *tx)
        .await
        .map_err(write_fault)?;
    for (version, name, sql) in MIGRATIONS.iter().filter(|(v, ..)| *v > report.found) {
        sqlx::raw_sql(*sql)
            .execute(&mut *tx)
            .await
            .map_err(write_fault)?;
        sqlx::query(RECORD)
            .bind(version)
            .bind(*name)
            .execute(&mut *tx)
            .await
            .map_err(write_fault)?;
    }
    tx.commit().await.map_err(write_fault)?;
    Ok(report)
}

/// Says what [`migrate`] would do.
pub(super) async fn pending(pool: &Pool) -> Result<MigrationReport> {
    let mut taken = pool.take().await?;
    report(&mut taken.conn).await
}

async fn report(conn: &mut PgConnection) -> Result<MigrationReport> {
    let needed = MIGRATIONS.iter().map(|(v, ..)| *v).max().unwrap_or(0);
    let there: bool = sqlx::query(HAS_VERSIONS)
        .fetch_one(&mut *conn)
        .await
        .and_then(|row| row.try_get("there"))
        .map_err(read_fault)?;
    let found: i64 = match there {
        false => 0,
        true => sqlx::query(FOUND)
            .fetch_one(&mut *conn)
            .await
            .and_then(|row| row.try_get("found"))
            .map_err(read_fault)?,
    };
    let steps = MIGRATIONS
        .iter()
        .filter(|(v, ..)| *v > found)
        .map(|(v, name, _)| format!("{v:04} {name}"))
        .collect();
    Ok(MigrationReport {
        found,
        needed,
        steps,
    })
}

fn read_fault(cause: sqlx::Error) -> Error {
    fault(cause, Effect::Read)
}

fn write_fault(cause: sqlx::Error) -> Error {
    fault(cause, Effect::Write)
}
