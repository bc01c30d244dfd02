//! A transition as data: what a job's row was, what it becomes, and which log rows come with it. All but the birth,
//! the grant and the coming due of a job are written here, in the same few statements a batch.

use std::collections::HashMap;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::backlog;
use super::fault::{broken, fault};
use super::row::{batch, hex, id_list, policy, priority, span, state};
use crate::error::Result;
use crate::job::limits::{LOST_LEASES_MAX, ROW_AGE_MIN};
use crate::job::time::micros;
use crate::job::{AttemptOutcome, Failure, JobId, JobState, QueueName, RetryPolicy, Timestamp};
use crate::store::{Line, Segment};

const CURRENT: &str = "
SELECT id, queue, priority, state, revision, attempt, failures, lost_leases, releases, released_in_row, max_attempts,
       backoff_initial, backoff_max, backoff_factor, retention, session, worker, create_time, run_time, start_time,
       finish_time, purge_time, bytes, expire_at, replaced_by
  FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1))";
const UPDATE: &str = "
UPDATE jobs
   SET state = n.value->>'$[3]', revision = jobs.revision + 1,
       failures = n.value->>'$[4]', lost_leases = n.value->>'$[5]', releases = n.value->>'$[6]',
       released_in_row = n.value->>'$[7]', session = unhex(n.value->>'$[8]'), run_time = n.value->>'$[9]',
       finish_time = n.value->>'$[10]', purge_time = n.value->>'$[11]', bytes = n.value->>'$[12]',
       expire_at = n.value->>'$[13]', replaced_by = unhex(n.value->>'$[14]'),
       timeout_time = NULL, queue_time = CASE n.value->>'$[3]' WHEN 2 THEN ?2 ELSE queue_time END
  FROM json_each(?1) AS n
 WHERE jobs.id = unhex(n.value->>'$[0]') AND jobs.state = n.value->>'$[1]' AND jobs.revision = n.value->>'$[2]'";
const INSERT_ATTEMPTS: &str = "
INSERT INTO attempts (job, attempt, session, worker, outcome, failure_kind, message, detail, permanent, retry_after,
                      start_time, end_time)
SELECT unhex(value->>'$[0]'), value->>'$[1]', unhex(value->>'$[2]'), value->>'$[3]', value->>'$[4]', value->>'$[5]',
       value->>'$[6]', value->>'$[7]', value->>'$[8]', value->>'$[9]', value->>'$[10]', ?2
  FROM json_each(?1) WHERE true
ON CONFLICT (job, attempt) DO NOTHING";

/// Type of the failure of a job that lost too many leases.
const LEASES_LOST: &str = "LEASES_LOST";

/// A job's row, as far as transitions look at it.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub id: JobId,
    pub line: Line,
    pub state: JobState,
    pub revision: i64,
    pub attempt: u32,
    pub failures: u32,
    pub lost_leases: u32,
    pub releases: u32,
    pub released_in_row: u32,
    pub retry: RetryPolicy,
    pub retention: i64,
    pub session: Option<Uuid>,
    pub worker: String,
    pub create_time: Timestamp,
    pub run_time: Timestamp,
    pub start_time: Option<Timestamp>,
    pub finish_time: Option<Timestamp>,
    pub purge_time: Option<Timestamp>,
    pub bytes: i64,
    pub expire_at: Option<i64>,
    pub replaced_by: Option<Uuid>,
}

/// An attempt that ended without success.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub session: Uuid,
    pub outcome: AttemptOutcome,
    pub failure: Option<Failure>,
}

/// One transition: the row as it was read, the row as it becomes, and the attempt that ends by it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub was: Current,
    pub new: Current,
    pub ended: Option<Ended>,
}

impl Current {
    /// A transition to a state from which the job goes on: it has no end, no holder, and waits for `run_time`.
    pub(super) fn goes_on(&self, to: JobState, run_time: Timestamp) -> Change {
        let new = Self {
            state: to,
            session: None,
            run_time,
            finish_time: None,
            purge_time: None,
            replaced_by: None,
            ..self.clone()
        };
        Change {
            was: self.clone(),
            new,
            ended: None,
        }
    }

    /// A transition to a final state, now. A row outlives the hour in which its id is accepted.
    pub(super) fn ends(&self, to: JobState, now: Timestamp) -> Change {
        let kept = now.after(span(self.retention));
        let new = Self {
            state: to,
            session: None,
            finish_time: Some(now),
            purge_time: Some(kept.max(self.create_time.after(ROW_AGE_MIN))),
            ..self.clone()
        };
        Change {
            was: self.clone(),
            new,
            ended: None,
        }
    }
}

/// A lost lease, `counted` or not. The session stays in a row that is QUEUED by it, so that a late success can still be
/// taken.
pub(super) fn lost(
    row: &Current,
    session: Uuid,
    outcome: AttemptOutcome,
    counted: bool,
    now: Timestamp,
) -> Change {
    let lost_leases = row.lost_leases.saturating_add(u32::from(counted));
    let is_one_too_many = lost_leases > LOST_LEASES_MAX;
    let mut change = match is_one_too_many {
        true => row.ends(JobState::Failed, now),
        false => {
            let mut change = row.goes_on(JobState::Queued, now);
            change.new.session = Some(session);
            change
        }
    };
    change.new.lost_leases = lost_leases;
    change.new.released_in_row = 0;
    change.ended = Some(Ended {
        session,
        outcome,
        failure: is_one_too_many.then(|| Failure {
            kind: LEASES_LOST.into(),
            message: format!("more than {LOST_LEASES_MAX} of its leases were lost"),
            ..Failure::default()
        }),
    });
    change
}

/// Reads the rows of jobs.
pub(super) async fn current(
    connection: &mut SqliteConnection,
    ids: &[JobId],
) -> Result<HashMap<JobId, Current>> {
    let rows: Vec<CurrentRow> = sqlx::query_as(CURRENT)
        .bind(id_list(ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    rows.into_iter()
        .map(|row| Ok((JobId::from_store(row.id), row.into_current()?)))
        .collect()
}

/// Writes transitions, at most one a job, with their attempts and the segments of what became QUEUED.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    now: Timestamp,
    changes: &[Change],
) -> Result<Vec<Segment>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<_> = changes.iter().map(update_row).collect();
    let done = sqlx::query(UPDATE)
        .bind(batch(&rows)?)
        .bind(now.0)
        .execute(&mut *connection)
        .await
        .map_err(fault)?;
    // One writer: what was read in this transaction cannot have moved. If it has, nothing of this may stay.
    if usize::try_from(done.rows_affected()) != Ok(changes.len()) {
        return Err(broken("a guard refused what was read under it"));
    }
    insert_attempts(connection, now, changes).await?;
    let queued = changes
        .iter()
        .filter(|change| change.new.state == JobState::Queued)
        .map(|change| (&change.new.line, change.new.id));
    backlog::append(connection, now, queued).await
}

async fn insert_attempts(
    connection: &mut SqliteConnection,
    now: Timestamp,
    changes: &[Change],
) -> Result<()> {
    let rows: Vec<_> = changes.iter().filter_map(attempt_row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(INSERT_ATTEMPTS)
        .bind(batch(&rows)?)
        .bind(now.0)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

fn update_row(change: &Change) -> impl serde::Serialize + use<> {
    let Change { was, new, .. } = change;
    (
        hex(was.id.uuid()),
        was.state.number(),
        was.revision,
        new.state.number(),
        new.failures,
        new.lost_leases,
        new.releases,
        new.released_in_row,
        new.session.map(hex),
        new.run_time.0,
        new.finish_time.map(|at| at.0),
        new.purge_time.map(|at| at.0),
        new.bytes,
        new.expire_at,
        new.replaced_by.map(hex),
    )
}

fn attempt_row(change: &Change) -> Option<impl serde::Serialize + use<'_>> {
    let Change { was, ended, .. } = change;
    let ended = ended.as_ref()?;
    let failure = ended.failure.as_ref();
    Some((
        hex(was.id.uuid()),
        was.attempt,
        hex(ended.session),
        &was.worker,
        ended.outcome.number(),
        failure.map(|f| &f.kind),
        failure.map(|f| &f.message),
        failure.map(|f| &f.detail),
        failure.map(|f| f.permanent),
        failure.and_then(|f| f.retry_after).map(micros),
        was.start_time.unwrap_or(was.run_time).0,
    ))
}

#[derive(FromRow)]
struct CurrentRow {
    id: Uuid,
    queue: String,
    priority: i16,
    state: i16,
    revision: i64,
    attempt: u32,
    failures: u32,
    lost_leases: u32,
    releases: u32,
    released_in_row: u32,
    max_attempts: u32,
    backoff_initial: i64,
    backoff_max: i64,
    backoff_factor: String,
    retention: i64,
    session: Option<Uuid>,
    worker: String,
    create_time: i64,
    run_time: i64,
    start_time: Option<i64>,
    finish_time: Option<i64>,
    purge_time: Option<i64>,
    bytes: i64,
    expire_at: Option<i64>,
    replaced_by: Option<Uuid>,
}

impl CurrentRow {
    fn into_current(self) -> Result<Current> {
        Ok(Current {
            id: JobId::from_store(self.id),
            line: Line {
                queue: QueueName::from_store(&self.queue),
                priority: priority(self.priority)?,
            },
            state: state(self.state)?,
            revision: self.revision,
            attempt: self.attempt,
            failures: self.failures,
            lost_leases: self.lost_leases,
            releases: self.releases,
            released_in_row: self.released_in_row,
            retry: policy(
                self.max_attempts,
                self.backoff_initial,
                self.backoff_max,
                &self.backoff_factor,
            )?,
            retention: self.retention,
            session: self.session,
            worker: self.worker,
            create_time: Timestamp(self.create_time),
            run_time: Timestamp(self.run_time),
            start_time: self.start_time.map(Timestamp),
            finish_time: self.finish_time.map(Timestamp),
            purge_time: self.purge_time.map(Timestamp),
            bytes: self.bytes,
            expire_at: self.expire_at,
            replaced_by: self.replaced_by,
        })
    }
}
