//! Rows as Rust values and back, and the reading of jobs by id.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::fault::{broken, fault};
use super::{SqliteStore, log, progress};
use crate::error::{Error, Result};
use crate::job::limits::ATTEMPTS_SHOWN;
use crate::job::{
    AttemptOutcome, AttemptRecord, Failure, IdempotencyKey, Job, JobId, JobSpec, JobState, Kind,
    Payload, Priority, QueueName, RetryPolicy, Timestamp, UniqueKey, View,
};
use crate::store::Version;

const JOBS: &str = "
SELECT j.id, j.queue, j.kind, j.priority, j.state, j.revision, j.attempt, j.failures, j.lost_leases, j.releases,
       j.max_attempts, j.backoff_initial, j.backoff_max, j.backoff_factor, j.timeout, j.retention, j.worker,
       j.create_time, j.run_time, j.start_time, j.finish_time, j.purge_time, j.idempotency_key, j.expire_time, j.unique_key,
       j.replaced_by, j.copied_from, p.labels, p.headers
  FROM jobs j JOIN payloads p ON p.id = j.id
 WHERE j.id IN (SELECT unhex(value) FROM json_each(?1))";
const PAYLOADS: &str = "
SELECT id, headers, content_type, is_text, data FROM payloads
 WHERE id IN (SELECT unhex(value) FROM json_each(?1))";
const OUTPUTS: &str = "
SELECT id, '{}' AS headers, content_type, is_text, data FROM outputs
 WHERE id IN (SELECT unhex(value) FROM json_each(?1))";
const ATTEMPTS: &str = "
SELECT attempt, worker, outcome, failure_kind, message, detail, permanent, retry_after, start_time, end_time
  FROM attempts WHERE job = ?1 ORDER BY attempt DESC LIMIT ?2";
// A lost lease has a failure only when it was one too many.
const LAST_FAILURE: &str = "
SELECT attempt, worker, outcome, failure_kind, message, detail, permanent, retry_after, start_time, end_time
  FROM attempts WHERE job = ?1 AND outcome IN (2, 3, 4, 5) AND failure_kind IS NOT NULL
 ORDER BY attempt DESC LIMIT 1";

const VERSIONS: &str = "
SELECT j.id, j.revision, (SELECT p.revision FROM progress p WHERE p.id = j.id),
       (SELECT l.said FROM job_logs l WHERE l.job = j.id)
  FROM jobs j WHERE j.id IN (SELECT unhex(value) FROM json_each(?1))";

/// Reads jobs, in the order of `ids`, from one snapshot.
pub(super) async fn get(
    store: &SqliteStore,
    ids: &[JobId],
    view: View,
) -> Result<Vec<Option<Job>>> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let mut found = jobs(&mut snapshot, ids).await?;
    match view {
        View::Basic => {}
        View::Progress => {
            let mut progress = progress::read(&mut snapshot, ids, false).await?;
            for (id, job) in &mut found {
                job.progress = progress.remove(id);
            }
            log::count(&mut snapshot, &mut found).await?;
        }
        View::Full => {
            complete(&mut snapshot, &mut found).await?;
            log::count(&mut snapshot, &mut found).await?;
        }
    }
    snapshot.rollback().await.map_err(fault)?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

type VersionRow = (Uuid, i64, Option<i64>, Option<i64>);

/// How new jobs are, in the order of `ids`.
pub(super) async fn versions(store: &SqliteStore, ids: &[JobId]) -> Result<Vec<Option<Version>>> {
    let rows: Vec<VersionRow> = sqlx::query_as(VERSIONS)
        .bind(id_list(ids)?)
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    let of = |(id, revision, progress, lines): VersionRow| {
        let version = Version {
            revision: u64::try_from(revision).unwrap_or(0),
            progress: progress.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            lines: lines.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        };
        (id, version)
    };
    let found: HashMap<Uuid, Version> = rows.into_iter().map(of).collect();
    Ok(ids
        .iter()
        .map(|id| found.get(&id.uuid()).copied())
        .collect())
}

/// Reads jobs, in a basic view.
pub(super) async fn jobs(
    connection: &mut SqliteConnection,
    ids: &[JobId],
) -> Result<HashMap<JobId, Job>> {
    let rows: Vec<JobRow> = sqlx::query_as(JOBS)
        .bind(id_list(ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    rows.into_iter()
        .map(|row| Ok((JobId::from_store(row.id), row.into_job()?)))
        .collect()
}

/// Reads one job, in a basic view.
pub(super) async fn job(connection: &mut SqliteConnection, id: JobId) -> Result<Option<Job>> {
    Ok(jobs(connection, &[id]).await?.remove(&id))
}

/// Reads the bodies of payloads with the headers beside them.
pub(super) async fn payloads(
    connection: &mut SqliteConnection,
    ids: &[JobId],
) -> Result<HashMap<JobId, BodyRow>> {
    let rows: Vec<BodyRow> = sqlx::query_as(PAYLOADS)
        .bind(id_list(ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    Ok(by_id(rows))
}

/// Adds to basic views what a full one has.
pub(super) async fn complete(
    connection: &mut SqliteConnection,
    jobs: &mut HashMap<JobId, Job>,
) -> Result<()> {
    let ids: Vec<JobId> = jobs.keys().copied().collect();
    let mut payloads = payloads(connection, &ids).await?;
    let outputs: Vec<BodyRow> = sqlx::query_as(OUTPUTS)
        .bind(id_list(&ids)?)
        .fetch_all(&mut *connection)
        .await
        .map_err(fault)?;
    let mut outputs = by_id(outputs);
    let mut progress = progress::read(connection, &ids, true).await?;
    for (id, job) in jobs {
        job.progress = progress.remove(id);
        job.payload = payloads.remove(id).map(BodyRow::into_payload);
        job.output = outputs.remove(id).map(BodyRow::into_payload);
        let newest: Vec<AttemptRow> = sqlx::query_as(ATTEMPTS)
            .bind(id.uuid())
            .bind(i64::try_from(ATTEMPTS_SHOWN).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await
            .map_err(fault)?;
        job.attempts = newest
            .into_iter()
            .rev()
            .map(AttemptRow::into_record)
            .collect::<Result<_>>()?;
        let failed: Option<AttemptRow> = sqlx::query_as(LAST_FAILURE)
            .bind(id.uuid())
            .fetch_optional(&mut *connection)
            .await
            .map_err(fault)?;
        job.last_failure = failed
            .and_then(AttemptRow::into_failure)
            .or_else(|| job.failed_unbegun());
    }
    Ok(())
}

fn by_id(rows: Vec<BodyRow>) -> HashMap<JobId, BodyRow> {
    rows.into_iter()
        .map(|row| (JobId::from_store(row.id), row))
        .collect()
}

/// The parameter of a statement over many rows: read by `json_each`.
pub(super) fn batch<T: serde::Serialize>(rows: &[T]) -> Result<String> {
    serde_json::to_string(rows).map_err(Error::internal)
}

/// Ids as such a parameter, in hex: JSON has no bytes.
pub(super) fn id_list(ids: &[JobId]) -> Result<String> {
    let ids: Vec<String> = ids.iter().map(|id| hex(id.uuid())).collect();
    batch(&ids)
}

/// Ids as one blob, for the statements that many rows go through: it costs a quarter of ids in hex. Beside it stands a
/// list with a number for each, whose key says where its id is: `substr(?, 16 * key + 1, 16)`.
pub(super) fn packed(ids: impl Iterator<Item = Uuid>) -> Vec<u8> {
    let mut blob = Vec::with_capacity(16 * ids.size_hint().0);
    for id in ids {
        blob.extend_from_slice(id.as_bytes());
    }
    blob
}

/// Adds a number to such a blob, in 20 digits: `CAST(substr(?, 20 * key + 1, 20) AS INTEGER)`.
pub(super) fn put_number(blob: &mut Vec<u8>, number: usize) {
    // Into memory: it cannot fail.
    let _ = write!(blob, "{number:020}");
}

/// Bodies of payloads, as parameters: one blob of all, and where in it each one is, as two numbers.
#[derive(Default)]
pub(super) struct Bodies {
    pub(super) data: Vec<u8>,
    pub(super) places: Vec<u8>,
}

impl Bodies {
    pub(super) fn of<'a>(payloads: impl Iterator<Item = &'a Payload>) -> Self {
        let mut all = Self::default();
        for payload in payloads {
            put_number(&mut all.places, all.data.len() + 1);
            put_number(&mut all.places, payload.data.len());
            all.data.extend_from_slice(&payload.data);
        }
        all
    }
}

/// What many items of a batch have in common goes to the database once.
pub(super) struct Shapes {
    /// Of each item, the number of its shape.
    pub(super) of: Vec<usize>,
    /// Of each shape, the first item that has it.
    pub(super) firsts: Vec<usize>,
}

impl Shapes {
    /// Tells items apart by what makes a shape of them.
    pub(super) fn of<K: Eq + Hash>(items: impl Iterator<Item = K>) -> Self {
        let mut known: HashMap<K, usize> = HashMap::new();
        let (mut of, mut firsts) = (Vec::new(), Vec::new());
        for (place, key) in items.enumerate() {
            let shape = *known.entry(key).or_insert_with(|| {
                firsts.push(place);
                firsts.len() - 1
            });
            of.push(shape);
        }
        Self { of, firsts }
    }

    /// One item of each shape, in the order of their numbers.
    pub(super) fn samples<'a, T>(&'a self, items: &'a [T]) -> impl Iterator<Item = &'a T> {
        self.firsts.iter().filter_map(|place| items.get(*place))
    }
}

/// An id as text in such a parameter.
pub(super) fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

/// A limit as SQL takes it.
pub(super) fn rows_max(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

pub(super) fn state(number: i16) -> Result<JobState> {
    JobState::from_number(number).ok_or_else(|| broken("jobs.state"))
}

pub(super) fn priority(number: i16) -> Result<Priority> {
    Priority::from_number(number).ok_or_else(|| broken("priority"))
}

pub(super) fn words(json: &str) -> Result<BTreeMap<String, String>> {
    serde_json::from_str(json).map_err(Error::internal)
}

/// The retry policy as its columns have it.
pub(super) fn policy(
    max_attempts: u32,
    initial: i64,
    max: i64,
    factor: &str,
) -> Result<RetryPolicy> {
    Ok(RetryPolicy {
        max_attempts,
        initial: span(initial),
        max: span(max),
        factor: factor.parse().map_err(|_| broken("jobs.backoff_factor"))?,
    })
}

#[derive(FromRow)]
struct JobRow {
    id: Uuid,
    queue: String,
    kind: String,
    priority: i16,
    state: i16,
    revision: i64,
    attempt: u32,
    failures: u32,
    lost_leases: u32,
    releases: u32,
    max_attempts: u32,
    backoff_initial: i64,
    backoff_max: i64,
    backoff_factor: String,
    timeout: Option<i64>,
    retention: i64,
    worker: String,
    create_time: i64,
    run_time: i64,
    start_time: Option<i64>,
    finish_time: Option<i64>,
    purge_time: Option<i64>,
    idempotency_key: Option<String>,
    expire_time: Option<i64>,
    unique_key: Option<String>,
    replaced_by: Option<Uuid>,
    copied_from: Option<Uuid>,
    labels: String,
    headers: String,
}

impl JobRow {
    fn into_job(self) -> Result<Job> {
        let spec = JobSpec {
            queue: QueueName::from_store(&self.queue),
            kind: Kind::from_store(&self.kind),
            priority: priority(self.priority)?,
            retry: policy(
                self.max_attempts,
                self.backoff_initial,
                self.backoff_max,
                &self.backoff_factor,
            )?,
            timeout: self.timeout.map(span),
            retention: span(self.retention),
            unique_key: self.unique_key.as_deref().map(UniqueKey::from_store),
            labels: words(&self.labels)?,
            headers: words(&self.headers)?,
        };
        Ok(Job {
            id: JobId::from_store(self.id),
            idempotency_key: self
                .idempotency_key
                .as_deref()
                .map(IdempotencyKey::from_store),
            spec,
            payload: None,
            state: state(self.state)?,
            revision: u64::try_from(self.revision).unwrap_or(0),
            attempt: self.attempt,
            failures: self.failures,
            lost_leases: self.lost_leases,
            releases: self.releases,
            output: None,
            last_failure: None,
            progress: None,
            worker: self.worker,
            replaced_by: self.replaced_by.map(JobId::from_store),
            copied_from: self.copied_from.map(JobId::from_store),
            create_time: Timestamp(self.create_time),
            run_time: Timestamp(self.run_time),
            expire_time: self.expire_time.map(Timestamp),
            start_time: self.start_time.map(Timestamp),
            finish_time: self.finish_time.map(Timestamp),
            purge_time: self.purge_time.map(Timestamp),
            attempts: Vec::new(),
            lines_said: 0,
            log: None,
        })
    }
}

/// A body of a payload or an output.
#[derive(FromRow)]
pub(super) struct BodyRow {
    id: Uuid,
    pub(super) headers: String,
    content_type: String,
    is_text: bool,
    data: Vec<u8>,
}

impl BodyRow {
    pub(super) fn into_payload(self) -> Payload {
        Payload {
            content_type: self.content_type,
            data: Bytes::from(self.data),
            is_text: self.is_text,
        }
    }
}

#[derive(FromRow)]
struct AttemptRow {
    attempt: u32,
    worker: String,
    outcome: i16,
    failure_kind: Option<String>,
    message: Option<String>,
    detail: Option<String>,
    permanent: Option<bool>,
    retry_after: Option<i64>,
    start_time: i64,
    end_time: i64,
}

impl AttemptRow {
    fn into_record(self) -> Result<AttemptRecord> {
        Ok(AttemptRecord {
            attempt: self.attempt,
            worker: self.worker.clone(),
            outcome: AttemptOutcome::from_number(self.outcome)
                .ok_or_else(|| broken("attempts.outcome"))?,
            start_time: Timestamp(self.start_time),
            end_time: Timestamp(self.end_time),
            failure: self.into_failure(),
        })
    }

    fn into_failure(self) -> Option<Failure> {
        Some(Failure {
            kind: self.failure_kind?,
            message: self.message.unwrap_or_default(),
            detail: self.detail.unwrap_or_default(),
            permanent: self.permanent.unwrap_or_default(),
            retry_after: self.retry_after.map(span),
        })
    }
}
