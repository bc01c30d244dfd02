//! What attempts say, in two tables beside the jobs.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::fault::broken;
use super::pool::Pool;
use super::result::Look;
use super::row::{column, count, int, state};
use crate::error::{Error, Result};
use crate::job::limits::{LOG_BYTES_MAX, LOG_LINES_MAX};
use crate::job::time::micros;
use crate::job::{
    JobId, JobState, Lease, LogLevel, LogLine, NewLines, SessionId, Timestamp, Verdict,
};
use crate::store::LogReport;

/// The job's row is locked, so that none is recorded of a job that is removed meanwhile. Whose attempt it is, is said by
/// the row while it runs and if it succeeded, else by its history. What is known of logs is passed on in arrays, not by a join.
/// Numbers come from the newest version of the log's row, whatever the snapshot has seen of it: so copies are known.
const LOG: &str = "
WITH locked AS MATERIALIZED (
  SELECT e.*, j.state, j.has_log, coalesce(j.start_time, j.run_time) AS start_time, lh_us() AS now
    FROM unnest($1::uuid[], $2::int4[], $3::uuid[], $4::int8[], $5::int8[], $6::int8[], $7::text[])
      AS e (job, attempt, session, last, lines, bytes, said)
    JOIN jobs j ON j.id = e.job AND j.attempt = e.attempt AND j.state <> 7
     AND e.session = coalesce(j.session, (SELECT a.session FROM attempts a WHERE a.job = e.job AND a.attempt = e.attempt))
   ORDER BY j.id FOR NO KEY UPDATE OF j),
marked AS (
  UPDATE jobs j SET has_log = true FROM locked l WHERE j.id = l.job AND NOT l.has_log),
headed AS (
  INSERT INTO job_logs AS h (job, base, said, said_before, kept, bytes, attempt)
  SELECT job, 0, last, 0, lines, bytes, attempt FROM locked ORDER BY job
  ON CONFLICT (job) DO UPDATE
     SET base = CASE WHEN excluded.attempt > h.attempt THEN h.said ELSE h.base END,
         said = CASE WHEN excluded.attempt > h.attempt THEN h.said + excluded.said
                     ELSE greatest(h.said, h.base + excluded.said) END,
         said_before = h.said, kept = h.kept + excluded.kept, bytes = h.bytes + excluded.bytes, attempt = excluded.attempt
   WHERE h.attempt <= excluded.attempt
  RETURNING job, base, said_before, kept, bytes),
heads AS MATERIALIZED (
  SELECT array_agg(job) AS jobs, array_agg(base) AS bases, array_agg(said_before) AS befores,
         array_agg(kept > $8 OR bytes > $9) AS fulls FROM headed),
placed AS MATERIALIZED (
  SELECT l.*, (SELECT bases FROM heads)[l.at] AS base, (SELECT befores FROM heads)[l.at] AS said_before,
         (SELECT fulls FROM heads)[l.at] AS is_full
    FROM (SELECT k.*, array_position((SELECT jobs FROM heads), k.job) AS at FROM locked k) AS l WHERE l.at IS NOT NULL),
written AS (
  INSERT INTO log_lines (job, number, time, attempt, level, message)
  SELECT p.job, p.base + n.number, least(p.now, p.start_time + n.elapsed), p.attempt, n.level, n.message
    FROM placed p, LATERAL json_to_recordset(p.said::json) AS n (number int8, elapsed int8, level int2, message text)
   WHERE p.base + n.number > p.said_before
   ORDER BY p.job, n.number)
SELECT job, attempt, session, state, is_full FROM placed";

/// From the newest line of a job back to the first that is kept.
macro_rules! newest {
    ($above:literal) => {
        concat!(
            "(SELECT s.* FROM (
    SELECT n.*, sum(octet_length(n.message)) OVER (ORDER BY n.number DESC) AS upto FROM (
      SELECT * FROM log_lines WHERE job = d.job AND number > ",
            $above,
            " ORDER BY number DESC LIMIT $2) AS n) AS s
   WHERE s.upto <= $3)"
        )
    };
}

const LINES: &str = concat!(
    "SELECT r.job, r.number, r.time, r.attempt, r.level, r.message
  FROM unnest($1::uuid[], $4::int8[]) AS d (job, above), LATERAL ",
    newest!("d.above"),
    " AS r ORDER BY r.job, r.number"
);

/// What is older than the lines that are kept goes; `kept` and `bytes` are exact again.
const TRIM: &str = concat!(
    "WITH due AS MATERIALIZED (
  SELECT job FROM job_logs WHERE job = ANY ($1::uuid[]) AND NOT gone ORDER BY job FOR NO KEY UPDATE),
cut AS MATERIALIZED (
  SELECT d.job, r.* FROM due d, LATERAL (
    SELECT min(number) AS first, count(*) AS kept, coalesce(sum(octet_length(message)), 0) AS bytes FROM ",
    newest!("0"),
    " AS k) AS r),
dropped AS (
  DELETE FROM log_lines x USING cut c WHERE x.job = c.job AND x.number < c.first)
UPDATE job_logs h SET kept = c.kept, bytes = c.bytes FROM cut c WHERE h.job = c.job"
);

/// A log is longer than it may be by at most this share before what is too old in it is removed: not at each line.
const SLACK: usize = 4;

/// An attempt that ends just then is seen as it was before by one half of the statement, and as it is by the other: it is
/// looked at again. So often.
const ROUNDS_MAX: usize = 3;

/// Records what attempts say.
pub(super) async fn log(pool: &Pool, reports: &[LogReport]) -> Result<Vec<Verdict>> {
    let merged = LogReport::merged(reports);
    let mut rounds = 0;
    loop {
        rounds += 1;
        let recorded = record(pool, &merged).await?;
        let refused: HashSet<Lease> = merged
            .iter()
            .filter(|r| !recorded.contains_key(&(r.lease, r.session)))
            .map(|r| r.lease)
            .collect();
        if refused.is_empty() {
            return verdicts(reports, &recorded, None);
        }
        let look = Look::at(pool, &refused.into_iter().collect::<Vec<_>>()).await?;
        let is_taken = |r: &LogReport| {
            let standing = look.standing(r.lease);
            standing.is_some_and(|at| at.may_log(r.lease, r.session))
        };
        if rounds == ROUNDS_MAX || !merged.iter().any(is_taken) {
            return verdicts(reports, &recorded, Some(&look));
        }
    }
}

type Recorded = HashMap<(Lease, SessionId), JobState>;

/// Records what is taken, and trims the logs that are too long by it.
async fn record(pool: &Pool, reports: &[LogReport]) -> Result<Recorded> {
    let said: Vec<String> = reports
        .iter()
        .map(|report| written(&report.lines))
        .collect::<Result<_>>()?;
    let rows = pool
        .write(|| {
            let of = || reports.iter();
            sqlx::query(LOG)
                .bind(of().map(|r| r.lease.job.uuid()).collect::<Vec<_>>())
                .bind(of().map(|r| int(r.lease.attempt)).collect::<Vec<_>>())
                .bind(of().map(|r| r.session.uuid()).collect::<Vec<_>>())
                .bind(of().map(|r| big(r.lines.last())).collect::<Vec<_>>())
                .bind(
                    of().map(|r| size(r.lines.numbered().count()))
                        .collect::<Vec<_>>(),
                )
                .bind(of().map(|r| size(r.lines.bytes())).collect::<Vec<_>>())
                .bind(&said)
                .bind(size(LOG_LINES_MAX + LOG_LINES_MAX / SLACK))
                .bind(size(LOG_BYTES_MAX + LOG_BYTES_MAX / SLACK))
        })
        .await?;
    let mut recorded = Recorded::new();
    let mut full: Vec<Uuid> = Vec::new();
    for row in &rows {
        let job: Uuid = column(row, "job")?;
        let lease = Lease {
            job: JobId::from_store(job),
            attempt: count(row, "attempt")?,
        };
        let session = SessionId::from_store(column::<Uuid>(row, "session")?);
        recorded.insert((lease, session), state(column(row, "state")?)?);
        if column(row, "is_full")? {
            full.push(job);
        }
    }
    if !full.is_empty() {
        // The lines are recorded, whatever becomes of this; the next ones try it again.
        let trimmed = pool
            .write(|| {
                sqlx::query(TRIM)
                    .bind(&full)
                    .bind(size(LOG_LINES_MAX))
                    .bind(size(LOG_BYTES_MAX))
            })
            .await;
        if let Err(error) = trimmed {
            tracing::debug!(%error, jobs = full.len(), "logs not trimmed");
        }
    }
    Ok(recorded)
}

fn verdicts(
    reports: &[LogReport],
    recorded: &Recorded,
    look: Option<&Look>,
) -> Result<Vec<Verdict>> {
    reports
        .iter()
        .map(|r| match (recorded.get(&(r.lease, r.session)), look) {
            (Some(state), _) => Ok(Verdict::Recorded(*state)),
            (None, Some(look)) => Ok(look
                .standing(r.lease)
                .map_or(Verdict::Unknown, |at| at.stale(r.lease, r.session))),
            (None, None) => Err(Error::unavailable("postgres")),
        })
        .collect()
}

/// Reads the lines of jobs, of each those above a number.
pub(super) async fn lines(pool: &Pool, after: &[(JobId, u64)]) -> Result<Vec<Vec<LogLine>>> {
    let jobs: Vec<Uuid> = after.iter().map(|(job, _)| job.uuid()).collect();
    let above: Vec<i64> = after.iter().map(|(_, above)| big(*above)).collect();
    let rows = pool
        .read(|| {
            sqlx::query(LINES)
                .bind(&jobs)
                .bind(size(LOG_LINES_MAX))
                .bind(size(LOG_BYTES_MAX))
                .bind(&above)
        })
        .await?;
    let mut found: HashMap<Uuid, Vec<LogLine>> = HashMap::with_capacity(jobs.len());
    for row in &rows {
        found
            .entry(column(row, "job")?)
            .or_default()
            .push(line(row)?);
    }
    Ok(jobs
        .iter()
        .map(|job| found.remove(job).unwrap_or_default())
        .collect())
}

fn line(row: &PgRow) -> Result<LogLine> {
    Ok(LogLine {
        number: u64::try_from(column::<i64>(row, "number")?).unwrap_or(0),
        attempt: count(row, "attempt")?,
        time: Timestamp(column(row, "time")?),
        level: LogLevel::from_number(column(row, "level")?)
            .ok_or_else(|| broken("log_lines.level"))?,
        message: column(row, "message")?,
    })
}

/// Lines as the statement reads them.
fn written(lines: &NewLines) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Row<'a> {
        number: u64,
        elapsed: Option<i64>,
        level: i16,
        message: &'a str,
    }
    let rows = lines.numbered().map(|(number, line)| Row {
        number,
        elapsed: line.elapsed.map(micros),
        level: line.level.number(),
        message: &line.message,
    });
    let rows: Vec<Row<'_>> = rows.collect();
    serde_json::to_string(&rows).map_err(Error::internal)
}

fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn size(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
