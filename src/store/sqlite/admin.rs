//! What people ask for: lists, cancel, retry by hand, numbers.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::change::{Current, Ended, apply, current};
use super::fault::{broken, fault};
use super::row::{complete, id_list, job, jobs, rows_max, state, words};
use super::{SqliteStore, audit, backlog, commit, signals};
use crate::error::Result;
use crate::job::limits::{ATTEMPTS_SHOWN, PAGE_ROWS_MAX};
use crate::job::{
    AttemptOutcome, AuditAction, By, Failure, Job, JobId, JobState, Lease, QueueName, SessionId,
    Timestamp, View,
};
use crate::store::{Cancelled, JobFilter, JobPage, QueueStats, Retried};

const PING: &str = "SELECT sqlite_version()";
const WALK: &str = "
SELECT id, revision, queue, kind, state, create_time, finish_time FROM jobs WHERE id < ?1 AND id >= ?2 ORDER BY id DESC LIMIT ?3";
const WALK_QUEUE: &str = "
SELECT id, revision, queue, kind, state, create_time, finish_time FROM jobs
 WHERE queue = ?4 AND id < ?1 AND id >= ?2 ORDER BY id DESC LIMIT ?3";
const WALK_LABEL: &str = "
SELECT j.id, j.revision, j.queue, j.kind, j.state, j.create_time, j.finish_time FROM job_labels l CROSS JOIN jobs j ON j.id = l.id
 WHERE l.key = ?4 AND l.value = ?5 AND l.id < ?1 AND l.id >= ?2 ORDER BY l.id DESC LIMIT ?3";
const HAVING: &str = "
SELECT count(*) FROM (SELECT 1 FROM job_labels WHERE key = ?1 AND value = ?2 AND id < ?3 AND id >= ?4 LIMIT ?5)";
/// Only for filters that ask for them.
const LABELS_AND_FAILURES: &str = "
SELECT j.id, p.labels, CASE WHEN j.state = 5 AND j.attempt = 0 THEN 'EXPIRED' ELSE (
         SELECT failure_kind FROM attempts WHERE job = j.id AND outcome IN (2, 3, 4, 5) AND failure_kind IS NOT NULL
          ORDER BY attempt DESC LIMIT 1) END
  FROM jobs j JOIN payloads p ON p.id = j.id WHERE j.id IN (SELECT unhex(value) FROM json_each(?1))";
const SIZES: &str = "
SELECT j.id, octet_length(p.labels) + octet_length(p.headers)
       + CASE WHEN ?2 THEN j.bytes + coalesce((SELECT length(checkpoint) FROM progress WHERE id = j.id), 0) + (
           SELECT coalesce(sum(octet_length(message) + octet_length(detail)), 0) FROM (
             SELECT message, detail FROM attempts WHERE job = j.id ORDER BY attempt DESC LIMIT ?3))
         ELSE 0 END
  FROM jobs j JOIN payloads p ON p.id = j.id
 WHERE j.id IN (SELECT unhex(value) FROM json_each(?1))";
/// Who holds the unique key of a job.
const HOLDER: &str = "
SELECT h.id FROM jobs j CROSS JOIN jobs h
    ON h.queue = j.queue AND h.unique_key = j.unique_key AND h.unique_key IS NOT NULL AND h.state < 4
 WHERE j.id = ?1";
const COUNTS: &str = "
SELECT queue, state, jobs FROM queue_counts
 WHERE queue IN (SELECT DISTINCT queue FROM queue_counts ORDER BY queue LIMIT ?1)
 ORDER BY queue";

/// Rows that a list reads at once.
const STEP: usize = 500;

/// Asks SQLite for its version.
pub(super) async fn ping(store: &SqliteStore) -> Result<String> {
    let version: String = sqlx::query_scalar(PING)
        .fetch_one(&store.readers)
        .await
        .map_err(fault)?;
    Ok(format!("SQLite {version}"))
}

/// Lists jobs below `before`, newest first.
pub(super) async fn list(
    store: &SqliteStore,
    filter: &JobFilter,
    before: Option<JobId>,
    size: usize,
    view: View,
) -> Result<JobPage> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let (found, mut next) = walk(&mut snapshot, filter, before, size).await?;
    let mut ids: Vec<JobId> = found.into_iter().map(|(id, _)| id).collect();
    let sizes = sizes(&mut snapshot, &ids, view).await?;
    JobPage::cut(&mut ids, &mut next, |id| {
        sizes.get(id).copied().unwrap_or_default()
    });
    let mut found = jobs(&mut snapshot, &ids).await?;
    if view == View::Full {
        complete(&mut snapshot, &mut found).await?;
    }
    snapshot.rollback().await.map_err(fault)?;
    let jobs = ids.iter().filter_map(|id| found.remove(id)).collect();
    Ok(JobPage { jobs, next })
}

/// Walks by id and keeps what the filter lets through, with the revisions at which it does; says from where the next page
/// walks on.
pub(super) async fn walk(
    connection: &mut SqliteConnection,
    filter: &JobFilter,
    before: Option<JobId>,
    size: usize,
) -> Result<(Vec<(JobId, i64)>, Option<JobId>)> {
    let (first, end) = filter.ids();
    let below = before.into_iter().chain(end).min();
    let mut below = below.map_or(Uuid::max(), JobId::uuid);
    let mut kept = Vec::new();
    let along = along(connection, filter, first.uuid()..below).await?;
    let mut looked_at = 0;
    while looked_at < PAGE_ROWS_MAX {
        let rows = step(connection, along, first.uuid()..below).await?;
        let is_end = rows.len() < STEP;
        let passed = passing(connection, filter, &rows).await?;
        for row in rows {
            if !passed.contains(&row.id) {
                below = row.id;
                continue;
            }
            if kept.len() >= size {
                // There is at least this one more.
                return Ok((kept, Some(JobId::from_store(below))));
            }
            below = row.id;
            kept.push((JobId::from_store(row.id), row.revision));
        }
        if is_end {
            return Ok((kept, None));
        }
        looked_at += STEP;
    }
    Ok((kept, Some(JobId::from_store(below))))
}

/// By which index a list is walked.
#[derive(Clone, Copy)]
enum Along<'a> {
    All,
    Queue(&'a QueueName),
    Label(&'a str, &'a str),
}

/// A label that few have leads to them at once. One that many have is left to a narrower walk, if there is one.
async fn along<'a>(
    connection: &mut SqliteConnection,
    filter: &'a JobFilter,
    ids: Range<Uuid>,
) -> Result<Along<'a>> {
    let mut rarest: Option<(i64, &str, &str)> = None;
    for (key, value) in &filter.labels {
        let having: i64 = sqlx::query_scalar(HAVING)
            .bind(key)
            .bind(value)
            .bind(ids.end)
            .bind(ids.start)
            .bind(rows_max(PAGE_ROWS_MAX))
            .fetch_one(&mut *connection)
            .await
            .map_err(fault)?;
        if rarest.is_none_or(|(least, ..)| having < least) {
            rarest = Some((having, key, value));
        }
    }
    Ok(match (rarest, filter.queues.as_slice()) {
        (Some((having, key, value)), _) if having < rows_max(PAGE_ROWS_MAX) => {
            Along::Label(key, value)
        }
        (_, [queue]) => Along::Queue(queue),
        (Some((_, key, value)), _) => Along::Label(key, value),
        (None, _) => Along::All,
    })
}

async fn step(
    connection: &mut SqliteConnection,
    along: Along<'_>,
    ids: Range<Uuid>,
) -> Result<Vec<WalkRow>> {
    let rows = match along {
        Along::Label(key, value) => {
            sqlx::query_as(WALK_LABEL)
                .bind(ids.end)
                .bind(ids.start)
                .bind(rows_max(STEP))
                .bind(key)
                .bind(value)
                .fetch_all(connection)
                .await
        }
        Along::Queue(queue) => {
            sqlx::query_as(WALK_QUEUE)
                .bind(ids.end)
                .bind(ids.start)
                .bind(rows_max(STEP))
                .bind(queue.as_str())
                .fetch_all(connection)
                .await
        }
        Along::All => {
            sqlx::query_as(WALK)
                .bind(ids.end)
                .bind(ids.start)
                .bind(rows_max(STEP))
                .fetch_all(connection)
                .await
        }
    };
    rows.map_err(fault)
}

/// Which of the rows the filter lets through.
async fn passing(
    connection: &mut SqliteConnection,
    filter: &JobFilter,
    rows: &[WalkRow],
) -> Result<HashSet<Uuid>> {
    let mut passed = HashSet::with_capacity(rows.len());
    for row in rows {
        if row.passes(filter)? {
            passed.insert(row.id);
        }
    }
    if passed.is_empty() || filter.labels.is_empty() && filter.failure_type.is_none() {
        return Ok(passed);
    }
    let ids: Vec<JobId> = passed.iter().copied().map(JobId::from_store).collect();
    let details: Vec<(Uuid, String, Option<String>)> = sqlx::query_as(LABELS_AND_FAILURES)
        .bind(id_list(&ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    for (id, labels, failure_type) in details {
        if !filter.lets(&words(&labels)?, failure_type.as_deref()) {
            passed.remove(&id);
        }
    }
    Ok(passed)
}

#[derive(FromRow)]
struct WalkRow {
    id: Uuid,
    revision: i64,
    queue: String,
    kind: String,
    state: i16,
    create_time: i64,
    finish_time: Option<i64>,
}

impl WalkRow {
    /// By what the row itself says.
    fn passes(&self, filter: &JobFilter) -> Result<bool> {
        let JobFilter {
            queues,
            kinds,
            states,
            created_after,
            created_before,
            finished_after,
            finished_before,
            ..
        } = filter;
        let created = Timestamp(self.create_time);
        let finished = self.finish_time.map(Timestamp);
        Ok(
            (queues.is_empty() || queues.iter().any(|q| q.as_str() == self.queue))
                && (kinds.is_empty() || kinds.iter().any(|k| k.as_str() == self.kind))
                && (states.is_empty() || states.contains(&state(self.state)?))
                && created_after.is_none_or(|after| created >= after)
                && created_before.is_none_or(|before| created < before)
                && finished_after.is_none_or(|after| finished.is_some_and(|at| at >= after))
                && finished_before.is_none_or(|before| finished.is_some_and(|at| at < before)),
        )
    }
}

async fn sizes(
    connection: &mut SqliteConnection,
    ids: &[JobId],
    view: View,
) -> Result<HashMap<JobId, usize>> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(SIZES)
        .bind(id_list(ids)?)
        .bind(view == View::Full)
        .bind(rows_max(ATTEMPTS_SHOWN))
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    Ok(rows
        .into_iter()
        .map(|(id, bytes)| (JobId::from_store(id), usize::try_from(bytes).unwrap_or(0)))
        .collect())
}

/// Cancels a job that is not final.
pub(super) async fn cancel(store: &SqliteStore, id: JobId, by: By) -> Result<Cancelled> {
    let (mut tx, now) = store.write().await?;
    let Some(row) = current(&mut tx, &[id]).await?.remove(&id) else {
        return Ok(Cancelled::NotFound);
    };
    match row.state {
        JobState::Cancelled => return Ok(Cancelled::Already(known(&mut tx, id).await?)),
        JobState::Succeeded | JobState::Failed => return Ok(Cancelled::WrongState(row.state)),
        JobState::Scheduled | JobState::Queued | JobState::Running => {}
    }
    let mut change = row.ends(JobState::Cancelled, now);
    let running = holder(&row);
    if let Some((lease, session)) = running {
        change.ended = Some(Ended {
            session: session.uuid(),
            outcome: AttemptOutcome::Cancelled,
            failure: Some(Failure {
                message: by.reason.clone(),
                ..Failure::default()
            }),
        });
        signals::send(&mut tx, now, lease, session).await?;
    }
    apply(&mut tx, now, &[change]).await?;
    note(&mut tx, now, AuditAction::CancelJob, id, &by).await?;
    let job = known(&mut tx, id).await?;
    commit(tx).await?;
    Ok(Cancelled::Done(job, running))
}

/// Brings a FAILED or CANCELLED job back.
pub(super) async fn retry(
    store: &SqliteStore,
    id: JobId,
    delay: Duration,
    by: &By,
) -> Result<Retried> {
    let (mut tx, now) = store.write().await?;
    let Some(row) = current(&mut tx, &[id]).await?.remove(&id) else {
        return Ok(Retried::NotFound);
    };
    if !matches!(row.state, JobState::Failed | JobState::Cancelled) {
        return Ok(Retried::WrongState(row.state));
    }
    let to = match delay.is_zero() {
        true => JobState::Queued,
        false => JobState::Scheduled,
    };
    let mut change = row.goes_on(to, now.after(delay));
    change.new.failures = 0;
    change.new.lost_leases = 0;
    change.new.released_in_row = 0;
    change.new.expire_at = None;
    let holder: Option<Uuid> = sqlx::query_scalar(HOLDER)
        .bind(id.uuid())
        .fetch_optional(&mut *tx)
        .await
        .map_err(fault)?;
    if let Some(holder) = holder {
        return Ok(Retried::KeyHeld(JobId::from_store(holder)));
    }
    let segments = apply(&mut tx, now, &[change]).await?;
    note(&mut tx, now, AuditAction::RetryJob, id, by).await?;
    let job = known(&mut tx, id).await?;
    commit(tx).await?;
    Ok(Retried::Done(job, segments))
}

/// Writes down what was done to a job, but only of somebody who says who he is.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    now: Timestamp,
    action: AuditAction,
    job: JobId,
    by: &By,
) -> Result<()> {
    match by.actor.as_str() {
        "" => Ok(()),
        _ => audit::note(connection, now, action, &job.to_string(), by).await,
    }
}

fn holder(row: &Current) -> Option<(Lease, SessionId)> {
    let lease = Lease {
        job: row.id,
        attempt: row.attempt,
    };
    row.session
        .filter(|_| row.state == JobState::Running)
        .map(|session| (lease, SessionId::from_store(session)))
}

pub(super) async fn known(connection: &mut SqliteConnection, id: JobId) -> Result<Job> {
    job(connection, id)
        .await?
        .ok_or_else(|| broken("no payload"))
}

/// Reads the numbers of queues, by name.
pub(super) async fn stats(store: &SqliteStore, limit: usize) -> Result<Vec<QueueStats>> {
    let mut snapshot = store.readers.begin().await.map_err(fault)?;
    let rows: Vec<(String, i16, i64)> = sqlx::query_as(COUNTS)
        .bind(rows_max(limit))
        .fetch_all(&mut *snapshot)
        .await
        .map_err(fault)?;
    let queues = numbers(&mut snapshot, rows, store.clock.now()).await?;
    snapshot.rollback().await.map_err(fault)?;
    Ok(queues)
}

/// Makes the numbers of queues of their counts, which come queue by queue: the state's number, and how many jobs.
pub(super) async fn numbers(
    connection: &mut SqliteConnection,
    counts: Vec<(String, i16, i64)>,
    now: Timestamp,
) -> Result<Vec<QueueStats>> {
    let mut queues: Vec<QueueStats> = Vec::new();
    for (queue, number, jobs) in counts {
        let state = state(number)?;
        if queues.last().is_none_or(|q| q.queue.as_str() != queue) {
            queues.push(QueueStats {
                queue: QueueName::from_store(&queue),
                counts: [0; 6],
                oldest_wait: None,
            });
        }
        let Some(stats) = queues.last_mut() else {
            continue;
        };
        let place = JobState::ALL.iter().position(|one| *one == state);
        if let Some(count) = place.and_then(|place| stats.counts.get_mut(place)) {
            *count = u64::try_from(jobs).unwrap_or(0);
        }
        if state == JobState::Queued && jobs > 0 {
            let oldest = backlog::oldest(connection, &stats.queue).await?;
            stats.oldest_wait = oldest.map(|at| now.since(at));
        }
    }
    Ok(queues)
}
