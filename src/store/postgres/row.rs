//! Rows to values and back.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::fault::broken;
use crate::error::{Error, Result};
use crate::job::{
    AttemptOutcome, AttemptRecord, Failure, IdempotencyKey, Job, JobId, JobSpec, JobState, Kind,
    Payload, Priority, Progress, QueueName, RetryPolicy, Timestamp, UniqueKey, View,
};
use crate::store::{Line, Segment};

/// The columns of a basic view.
macro_rules! job_columns {
    () => {
        "id, revision, create_time, run_time, start_time, finish_time, purge_time, timeout, retention, backoff_initial, \
         backoff_max, backoff_factor, attempt, failures, lost_leases, releases, max_attempts, state, priority, queue, \
         kind, worker, idempotency_key, expire_time, unique_key, replaced_by, copied_from, labels::text AS labels, headers::text AS headers"
    };
}
pub(super) use job_columns;

/// Removes what is written of the labels of jobs that go: `$jobs` has their ids and labels. They are looked up one by one,
/// whatever the planner knows of their number (OFFSET 0 holds it to that).
macro_rules! unlabelled {
    ($jobs:literal) => {
        concat!(
            "unlabelled AS (
  DELETE FROM job_labels WHERE ctid = ANY (ARRAY(
    SELECT x.ctid FROM ",
            $jobs,
            " k CROSS JOIN LATERAL jsonb_each_text(k.labels) AS e
     CROSS JOIN LATERAL (
       SELECT l.ctid FROM job_labels l WHERE l.label = lh_label(e.key, e.value) AND l.job = k.id OFFSET 0) AS x))),
"
        )
    };
}
pub(super) use unlabelled;

/// The state in the row of a job that was deleted, of which only the id is left. Whoever looks for jobs by id leaves it out.
pub(super) const DELETED: i16 = 7;

/// Reads one column.
pub(super) fn column<'r, T>(row: &'r PgRow, name: &str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(name).map_err(Error::internal)
}

/// Reads the columns of a row one after the other, for the few statements whose rows are as many as the jobs: to find
/// each by its name and compare its type again costs as much as to read it.
pub(super) struct InOrder<'r> {
    row: &'r PgRow,
    at: usize,
}

impl<'r> InOrder<'r> {
    /// From the first column.
    pub(super) fn of(row: &'r PgRow) -> Self {
        Self { row, at: 0 }
    }

    /// The next column; it is of the type that the statement gives it.
    pub(super) fn next<T: sqlx::Decode<'r, sqlx::Postgres>>(&mut self) -> Result<T> {
        let column = self.row.try_get_unchecked(self.at).map_err(Error::internal);
        self.at += 1;
        column
    }

    /// The next column, a count that is never negative.
    pub(super) fn count(&mut self) -> Result<u32> {
        u32::try_from(self.next::<i32>()?).map_err(Error::internal)
    }
}

/// Reads a job; of a full view, all but its attempts.
pub(super) fn job(row: &PgRow, view: View) -> Result<Job> {
    let (payload, output) = match view {
        View::Basic | View::Progress => (None, None),
        View::Full => (Some(payload(row)?), output(row)?),
    };
    let said = match view {
        View::Basic => None,
        View::Progress | View::Full => column::<Option<i64>>(row, "said")?,
    };
    Ok(Job {
        id: JobId::from_store(column(row, "id")?),
        idempotency_key: column::<Option<&str>>(row, "idempotency_key")?
            .map(IdempotencyKey::from_store),
        spec: JobSpec {
            queue: QueueName::from_store(column(row, "queue")?),
            kind: Kind::from_store(column(row, "kind")?),
            priority: priority(column(row, "priority")?)?,
            retry: RetryPolicy {
                max_attempts: count(row, "max_attempts")?,
                initial: span(column(row, "backoff_initial")?),
                max: span(column(row, "backoff_max")?),
                factor: column(row, "backoff_factor")?,
            },
            timeout: column::<Option<i64>>(row, "timeout")?.map(span),
            retention: span(column(row, "retention")?),
            unique_key: column::<Option<&str>>(row, "unique_key")?.map(UniqueKey::from_store),
            labels: words(column(row, "labels")?)?,
            headers: words(column(row, "headers")?)?,
        },
        payload,
        state: state(column(row, "state")?)?,
        revision: u64::try_from(column::<i64>(row, "revision")?).unwrap_or(0),
        attempt: count(row, "attempt")?,
        failures: count(row, "failures")?,
        lost_leases: count(row, "lost_leases")?,
        releases: count(row, "releases")?,
        output,
        last_failure: None,
        progress: None,
        worker: column(row, "worker")?,
        replaced_by: column::<Option<Uuid>>(row, "replaced_by")?.map(JobId::from_store),
        copied_from: column::<Option<Uuid>>(row, "copied_from")?.map(JobId::from_store),
        create_time: Timestamp(column(row, "create_time")?),
        run_time: Timestamp(column(row, "run_time")?),
        expire_time: column::<Option<i64>>(row, "expire_time")?.map(Timestamp),
        start_time: column::<Option<i64>>(row, "start_time")?.map(Timestamp),
        finish_time: column::<Option<i64>>(row, "finish_time")?.map(Timestamp),
        purge_time: column::<Option<i64>>(row, "purge_time")?.map(Timestamp),
        attempts: Vec::new(),
        lines_said: said.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        log: None,
    })
}

/// Reads `payload`, `payload_type` and `payload_is_text`.
pub(super) fn payload(row: &PgRow) -> Result<Payload> {
    Ok(Payload {
        content_type: column(row, "payload_type")?,
        data: column::<Vec<u8>>(row, "payload")?.into(),
        is_text: column(row, "payload_is_text")?,
    })
}

fn output(row: &PgRow) -> Result<Option<Payload>> {
    let Some(data) = column::<Option<Vec<u8>>>(row, "output")? else {
        return Ok(None);
    };
    Ok(Some(Payload {
        content_type: column::<Option<String>>(row, "output_type")?.unwrap_or_default(),
        data: data.into(),
        is_text: column::<Option<bool>>(row, "output_is_text")?.unwrap_or_default(),
    }))
}

/// Reads a row of `attempts`, and the job that it belongs to.
pub(super) fn attempt(row: &PgRow) -> Result<(Uuid, AttemptRecord)> {
    let failure = match column::<Option<String>>(row, "failure_type")? {
        None => None,
        Some(kind) => Some(Failure {
            kind,
            message: column::<Option<String>>(row, "message")?.unwrap_or_default(),
            detail: column::<Option<String>>(row, "detail")?.unwrap_or_default(),
            permanent: column(row, "permanent")?,
            retry_after: column::<Option<i64>>(row, "retry_after")?.map(span),
        }),
    };
    let record = AttemptRecord {
        attempt: count(row, "attempt")?,
        worker: column(row, "worker")?,
        outcome: AttemptOutcome::from_number(column(row, "outcome")?)
            .ok_or_else(|| broken("attempts.outcome"))?,
        failure,
        start_time: Timestamp(column(row, "start_time")?),
        end_time: Timestamp(column(row, "end_time")?),
    };
    Ok((column(row, "job")?, record))
}

/// Reads a row of `progress`, and the job that it belongs to.
pub(super) fn progress(row: &PgRow) -> Result<(Uuid, Progress)> {
    let progress = Progress {
        percent: column::<Option<i16>>(row, "percent")?.and_then(|n| u32::try_from(n).ok()),
        note: column(row, "note")?,
        checkpoint: column::<Option<Vec<u8>>>(row, "checkpoint")?.map(Into::into),
        revision: u64::try_from(column::<i64>(row, "revision")?).unwrap_or(0),
    };
    Ok((column(row, "job")?, progress))
}

/// Reads a segment from `segment`, `queue`, `priority` and `jobs`; `None` where the row of a mixed answer has none.
pub(super) fn segment(row: &PgRow) -> Result<Option<Segment>> {
    let Some(id) = column::<Option<i64>>(row, "segment")? else {
        return Ok(None);
    };
    Ok(Some(Segment {
        id,
        line: Line {
            queue: QueueName::from_store(column(row, "queue")?),
            priority: priority(column(row, "priority")?)?,
        },
        jobs: column::<Vec<Uuid>>(row, "jobs")?
            .into_iter()
            .map(JobId::from_store)
            .collect(),
    }))
}

/// The segments of an answer.
pub(super) fn segments(rows: &[PgRow]) -> Result<Vec<Segment>> {
    rows.iter()
        .filter_map(|row| segment(row).transpose())
        .collect()
}

/// A count that is never negative.
pub(super) fn count(row: &PgRow, name: &str) -> Result<u32> {
    u32::try_from(column::<i32>(row, name)?).map_err(Error::internal)
}

/// A number that Rust has as u32 and the row as int.
pub(super) fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// A bound as LIMIT takes it.
pub(super) fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn state(number: i16) -> Result<JobState> {
    JobState::from_number(number).ok_or_else(|| broken("jobs.state"))
}

pub(super) fn priority(number: i16) -> Result<Priority> {
    Priority::from_number(number).ok_or_else(|| broken("jobs.priority"))
}

pub(super) fn span(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

/// Labels or headers as JSON; NULL when there are none.
pub(super) fn json(words: &BTreeMap<String, String>) -> Result<Option<String>> {
    match words.is_empty() {
        true => Ok(None),
        false => serde_json::to_string(words)
            .map(Some)
            .map_err(Error::internal),
    }
}

pub(super) fn words(json: Option<&str>) -> Result<BTreeMap<String, String>> {
    match json {
        None => Ok(BTreeMap::new()),
        Some(json) => serde_json::from_str(json).map_err(Error::internal),
    }
}
