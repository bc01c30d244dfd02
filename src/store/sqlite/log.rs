//! What attempts say, in two tables beside the jobs.

use std::collections::HashMap;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::change::current;
use super::fault::{broken, fault};
use super::result::{ended, standing};
use super::row::{batch, id_list, rows_max};
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::limits::{LOG_BYTES_MAX, LOG_LINES_MAX};
use crate::job::{Job, JobId, LogLevel, LogLine, NewLine, Timestamp, Verdict};
use crate::store::LogReport;

const HEAD: &str = "SELECT attempt, base, said, kept, bytes FROM job_logs WHERE job = ?1";
const SET_HEAD: &str = "
INSERT INTO job_logs (job, attempt, base, said, kept, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (job) DO UPDATE
   SET attempt = excluded.attempt, base = excluded.base, said = excluded.said, kept = excluded.kept,
       bytes = excluded.bytes";
const WRITE: &str = "
INSERT INTO log_lines (job, number, attempt, time, level, message)
SELECT ?1, value->>'$[0]', ?2, value->>'$[1]', value->>'$[2]', value->>'$[3]' FROM json_each(?3)";
const SIZES: &str =
    "SELECT number, octet_length(message) FROM log_lines WHERE job = ?1 ORDER BY number DESC";
const DROP: &str = "DELETE FROM log_lines WHERE job = ?1 AND number < ?2";
const LINES: &str = "
SELECT number, attempt, time, level, message FROM log_lines
 WHERE job = ?1 AND number > ?2 ORDER BY number DESC LIMIT ?3";

const COUNTS: &str =
    "SELECT job, said FROM job_logs WHERE job IN (SELECT unhex(value) FROM json_each(?1))";

/// A log is longer than it may be by at most this share before what is too old in it is removed: not at each line.
const SLACK: i64 = 4;

/// A job's row in `job_logs`.
#[derive(Default, FromRow)]
struct Head {
    attempt: u32,
    base: i64,
    said: i64,
    kept: i64,
    bytes: i64,
}

/// Records what attempts say, one after the other.
pub(super) async fn log(store: &SqliteStore, reports: &[LogReport]) -> Result<Vec<Verdict>> {
    let (mut tx, now) = store.write().await?;
    let ids: Vec<JobId> = reports.iter().map(|report| report.lease.job).collect();
    let rows = current(&mut tx, &ids).await?;
    let leases: Vec<_> = reports.iter().map(|report| report.lease).collect();
    let ended = ended(&mut tx, &leases).await?;
    let mut verdicts = Vec::with_capacity(reports.len());
    for report in reports {
        let Some(row) = rows.get(&report.lease.job) else {
            verdicts.push(Verdict::Unknown);
            continue;
        };
        let standing = standing(row, ended.get(&report.lease));
        if !standing.may_log(report.lease, report.session) {
            verdicts.push(standing.stale(report.lease, report.session));
            continue;
        }
        let begun = row.start_time.unwrap_or(row.run_time);
        append(&mut tx, report, begun, now).await?;
        verdicts.push(Verdict::Recorded(standing.state));
    }
    commit(tx).await?;
    Ok(verdicts)
}

async fn append(
    connection: &mut SqliteConnection,
    report: &LogReport,
    begun: Timestamp,
    now: Timestamp,
) -> Result<()> {
    let job = report.lease.job.uuid();
    let head: Option<Head> = sqlx::query_as(HEAD)
        .bind(job)
        .fetch_optional(&mut *connection)
        .await
        .map_err(fault)?;
    let mut head = head.unwrap_or_default();
    if head.attempt < report.lease.attempt {
        head.attempt = report.lease.attempt;
        head.base = head.said;
    }
    let mut rows = Vec::new();
    for (number, line) in report.lines.numbered() {
        let number = head.base.saturating_add_unsigned(number);
        // What is not above the newest is a copy.
        if number > head.said {
            head.kept += 1;
            head.bytes += rows_max(line.message.len());
            rows.push(row(number, line, begun, now));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    head.said = head.base.saturating_add_unsigned(report.lines.last());
    sqlx::query(WRITE)
        .bind(job)
        .bind(head.attempt)
        .bind(batch(&rows)?)
        .execute(&mut *connection)
        .await
        .map_err(fault)?;
    let (lines, bytes) = (rows_max(LOG_LINES_MAX), rows_max(LOG_BYTES_MAX));
    if head.kept > lines + lines / SLACK || head.bytes > bytes + bytes / SLACK {
        trim(connection, job, &mut head).await?;
    }
    sqlx::query(SET_HEAD)
        .bind(job)
        .bind(head.attempt)
        .bind(head.base)
        .bind(head.said)
        .bind(head.kept)
        .bind(head.bytes)
        .execute(&mut *connection)
        .await
        .map_err(fault)?;
    Ok(())
}

async fn trim(connection: &mut SqliteConnection, job: Uuid, head: &mut Head) -> Result<()> {
    let sizes: Vec<(i64, i64)> = sqlx::query_as(SIZES)
        .bind(job)
        .fetch_all(&mut *connection)
        .await
        .map_err(fault)?;
    let (mut kept, mut bytes, mut first) = (0, 0, head.said);
    for (number, size) in sizes.into_iter().take(LOG_LINES_MAX) {
        if bytes + size > rows_max(LOG_BYTES_MAX) {
            break;
        }
        kept += 1;
        bytes += size;
        first = number;
    }
    sqlx::query(DROP)
        .bind(job)
        .bind(first)
        .execute(connection)
        .await
        .map_err(fault)?;
    (head.kept, head.bytes) = (kept, bytes);
    Ok(())
}

/// Adds to jobs how many lines their attempts have said.
pub(super) async fn count(
    connection: &mut SqliteConnection,
    jobs: &mut HashMap<JobId, Job>,
) -> Result<()> {
    let ids: Vec<JobId> = jobs.keys().copied().collect();
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(COUNTS)
        .bind(id_list(&ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    for (id, said) in rows {
        if let Some(job) = jobs.get_mut(&JobId::from_store(id)) {
            job.lines_said = u64::try_from(said).unwrap_or(0);
        }
    }
    Ok(())
}

/// Reads the lines of jobs, of each those above a number.
pub(super) async fn lines(
    store: &SqliteStore,
    after: &[(JobId, u64)],
) -> Result<Vec<Vec<LogLine>>> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let mut logs = Vec::with_capacity(after.len());
    for (job, above) in after {
        let rows: Vec<LineRow> = sqlx::query_as(LINES)
            .bind(job.uuid())
            .bind(i64::try_from(*above).unwrap_or(i64::MAX))
            .bind(rows_max(LOG_LINES_MAX))
            .fetch_all(&mut *snapshot)
            .await
            .map_err(fault)?;
        let mut bytes = 0;
        let fits = |row: &LineRow| {
            bytes += row.message.len();
            bytes <= LOG_BYTES_MAX
        };
        let newest = rows.into_iter().take_while(fits);
        let mut lines: Vec<LogLine> = newest.map(LineRow::into_line).collect::<Result<_>>()?;
        lines.reverse();
        logs.push(lines);
    }
    snapshot.rollback().await.map_err(fault)?;
    Ok(logs)
}

fn row(
    number: i64,
    line: &NewLine,
    begun: Timestamp,
    now: Timestamp,
) -> impl serde::Serialize + use<'_> {
    let time = line.elapsed.map_or(now, |elapsed| begun.after(elapsed));
    (
        number,
        time.min(now).0,
        line.level.number(),
        line.message.as_str(),
    )
}

#[derive(FromRow)]
struct LineRow {
    number: i64,
    attempt: u32,
    time: i64,
    level: i16,
    message: String,
}

impl LineRow {
    fn into_line(self) -> Result<LogLine> {
        Ok(LogLine {
            number: u64::try_from(self.number).unwrap_or(0),
            attempt: self.attempt,
            time: Timestamp(self.time),
            level: LogLevel::from_number(self.level).ok_or_else(|| broken("log_lines.level"))?,
            message: self.message,
        })
    }
}
