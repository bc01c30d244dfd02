//! What running attempts have come to, in a table beside the jobs.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::pool::Pool;
use super::result::Look;
use super::row::{column, count, int, state};
use crate::error::{Error, Result};
use crate::job::{JobId, JobState, Lease, SessionId, Verdict};
use crate::store::Report;

/// The job's row is locked as an ending would lock it: what is recorded here is recorded before that, or not at all.
const REPORT: &str = "
WITH locked AS MATERIALIZED (
  SELECT e.*, j.state, j.has_progress
    FROM unnest($1::uuid[], $2::int4[], $3::uuid[], $4::int8[], $5::int2[], $6::text[], $7::bytea[])
      AS e (job, attempt, session, revision, percent, note, checkpoint)
    JOIN jobs j ON j.id = e.job AND j.attempt = e.attempt AND j.session = e.session AND j.state = 3
   ORDER BY j.id FOR NO KEY UPDATE OF j),
marked AS (
  UPDATE jobs j SET has_progress = true FROM locked l WHERE j.id = l.job AND NOT l.has_progress),
written AS (
  INSERT INTO progress AS p (job, revision, percent, note, checkpoint)
  SELECT job, revision, percent, note, checkpoint FROM locked ORDER BY job
  ON CONFLICT (job) DO UPDATE
     SET revision = excluded.revision, percent = coalesce(excluded.percent, p.percent),
         note = coalesce(excluded.note, p.note), checkpoint = coalesce(excluded.checkpoint, p.checkpoint)
   WHERE p.revision < excluded.revision)
SELECT job, attempt, session, state FROM locked";

/// Records reports.
pub(super) async fn report(pool: &Pool, reports: &[Report]) -> Result<Vec<Verdict>> {
    let merged = merged(reports);
    let rows = pool
        .write(|| {
            let of = || merged.iter();
            sqlx::query(REPORT)
                .bind(of().map(|r| r.lease.job.uuid()).collect::<Vec<_>>())
                .bind(of().map(|r| int(r.lease.attempt)).collect::<Vec<_>>())
                .bind(of().map(|r| r.session.uuid()).collect::<Vec<_>>())
                .bind(
                    of().map(|r| number(r.progress.revision))
                        .collect::<Vec<_>>(),
                )
                .bind(
                    of().map(|r| r.progress.percent.map(small))
                        .collect::<Vec<_>>(),
                )
                .bind(of().map(|r| r.progress.note.clone()).collect::<Vec<_>>())
                .bind(
                    of().map(|r| r.progress.checkpoint.as_ref().map(|c| c.to_vec()))
                        .collect::<Vec<_>>(),
                )
        })
        .await?;
    let mut recorded: HashMap<(Lease, SessionId), JobState> = HashMap::new();
    for row in &rows {
        let lease = Lease {
            job: JobId::from_store(column(row, "job")?),
            attempt: count(row, "attempt")?,
        };
        let session = SessionId::from_store(column::<Uuid>(row, "session")?);
        recorded.insert((lease, session), state(column(row, "state")?)?);
    }
    let refused: HashSet<Lease> = reports
        .iter()
        .filter(|r| !recorded.contains_key(&(r.lease, r.session)))
        .map(|r| r.lease)
        .collect();
    let look = match refused.is_empty() {
        true => None,
        false => Some(Look::at(pool, &refused.into_iter().collect::<Vec<_>>()).await?),
    };
    reports
        .iter()
        .map(|r| match (recorded.get(&(r.lease, r.session)), &look) {
            (Some(state), _) => Ok(Verdict::Recorded(*state)),
            (None, Some(look)) => Ok(look
                .standing(r.lease)
                .map_or(Verdict::Unknown, |at| at.stale(r.lease, r.session))),
            (None, None) => Err(Error::unavailable("postgres")),
        })
        .collect()
}

/// One a lease and session, as one statement cannot write a row twice.
fn merged(reports: &[Report]) -> Vec<Report> {
    let mut merged: HashMap<(Lease, SessionId), Report> = HashMap::with_capacity(reports.len());
    for report in reports {
        let key = (report.lease, report.session);
        let report = match merged.remove(&key) {
            None => report.clone(),
            Some(other) => Report {
                progress: other.progress.merge(report.progress.clone()),
                ..other
            },
        };
        merged.insert(key, report);
    }
    merged.into_values().collect()
}

fn number(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn small(percent: u32) -> i16 {
    i16::try_from(percent).unwrap_or(i16::MAX)
}
