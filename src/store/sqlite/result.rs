//! Endings: recorded once under the fence of job, attempt and session; a copy gets the same verdict.

use std::collections::{HashMap, HashSet};

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::change::{Change, Current, Ended, apply, current, lost};
use super::fault::{broken, fault};
use super::row::{Bodies, Shapes, batch, hex, packed, put_number};
use super::{SqliteStore, Tx, commit};
use crate::error::Result;
use crate::job::limits::ROW_AGE_MIN;
use crate::job::retry::release_floor;
use crate::job::time::micros;
use crate::job::{
    AttemptOutcome, Ending, Failure, JobId, JobState, Lease, Outcome, Payload, SessionId, Standing,
    Timestamp, Verdict,
};
use crate::store::FinishAnswer;

const ATTEMPTS: &str = "
SELECT a.job, a.attempt, a.session, a.outcome
  FROM json_each(?1) AS n
  JOIN attempts a ON a.job = unhex(n.value->>'$[0]') AND a.attempt = n.value->>'$[1]'";
// What most endings are, for a third of what the way of all others costs. Each moves its job as `Current::ends` does.
const SUCCEED: &str = "
UPDATE jobs
   SET state = 4, revision = jobs.revision + 1, finish_time = ?5, timeout_time = NULL,
       purge_time = max(?5 + jobs.retention, jobs.create_time + ?6),
       bytes = jobs.bytes + CAST(substr(?4, 20 * n.key + 1, 20) AS INTEGER)
  FROM json_each(?1) AS n
 WHERE jobs.id = substr(?2, 16 * n.key + 1, 16) AND jobs.state = 3 AND jobs.attempt = n.value
   AND jobs.session = substr(?3, 16 * n.key + 1, 16)";
const INSERT_OUTPUTS: &str = "
INSERT INTO outputs (id, content_type, is_text, data)
WITH shapes AS MATERIALIZED (
  SELECT key AS shape, value->>'$[0]' AS content_type, value->>'$[1]' AS is_text FROM json_each(?2))
SELECT substr(?3, 16 * n.key + 1, 16), s.content_type, s.is_text,
       coalesce(substr(?4, CAST(substr(?5, 40 * n.key + 1, 20) AS INTEGER),
                           CAST(substr(?5, 40 * n.key + 21, 20) AS INTEGER)), x'')
  FROM json_each(?1) AS n CROSS JOIN shapes s ON s.shape = n.value";

/// The type of a failure that the timeout was.
const TIMED_OUT: &str = "TIMED_OUT";

/// Records endings, one verdict each.
pub(super) async fn finish(store: &SqliteStore, endings: Vec<Ending>) -> Result<FinishAnswer> {
    let (mut tx, now) = store.write().await?;
    let plain = plain(&endings);
    let count = plain.iter().filter(|is_plain| **is_plain).count();
    if count > 0 && succeed(&mut tx, now, &endings, &plain).await? != count {
        // One of them is late, or a copy: each is looked at by itself, after nothing was changed.
        tx.rollback().await.map_err(fault)?;
        let (tx, now) = store.write().await?;
        let none = vec![false; endings.len()];
        return record(tx, now, endings, &none).await;
    }
    record(tx, now, endings, &plain).await
}

/// Which are successes, and the only ending of their job in this batch.
fn plain(endings: &[Ending]) -> Vec<bool> {
    let mut counts: HashMap<JobId, usize> = HashMap::with_capacity(endings.len());
    for ending in endings {
        *counts.entry(ending.lease.job).or_default() += 1;
    }
    let is_plain = |ending: &Ending| {
        matches!(ending.outcome, Outcome::Success(_)) && counts.get(&ending.lease.job) == Some(&1)
    };
    endings.iter().map(is_plain).collect()
}

/// Records successes of leases that are held, and says how many were.
async fn succeed(
    connection: &mut SqliteConnection,
    now: Timestamp,
    endings: &[Ending],
    plain: &[bool],
) -> Result<usize> {
    let chosen = endings.iter().zip(plain).filter(|(_, is_plain)| **is_plain);
    let plain: Vec<&Ending> = chosen.map(|(ending, _)| ending).collect();
    let attempts: Vec<u32> = plain.iter().map(|ending| ending.lease.attempt).collect();
    let mut sizes = Vec::with_capacity(20 * plain.len());
    for ending in &plain {
        let size = match &ending.outcome {
            Outcome::Success(Some(output)) => output.data.len(),
            _ => 0,
        };
        put_number(&mut sizes, size);
    }
    let done = sqlx::query(SUCCEED)
        .bind(batch(&attempts)?)
        .bind(packed(plain.iter().map(|ending| ending.lease.job.uuid())))
        .bind(packed(plain.iter().map(|ending| ending.session.uuid())))
        .bind(sizes)
        .bind(now.0)
        .bind(micros(ROW_AGE_MIN))
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// Records all but those that are `done`, and the outputs of all.
async fn record(
    mut tx: Tx,
    now: Timestamp,
    endings: Vec<Ending>,
    done: &[bool],
) -> Result<FinishAnswer> {
    let rest = endings.iter().zip(done).filter(|(_, is_done)| !**is_done);
    let leases: Vec<Lease> = rest.map(|(ending, _)| ending.lease).collect();
    let ids: HashSet<JobId> = leases.iter().map(|lease| lease.job).collect();
    let ids: Vec<JobId> = ids.into_iter().collect();
    let (mut rows, mut ended) = match ids.is_empty() {
        true => (HashMap::new(), HashMap::new()),
        false => (
            current(&mut tx, &ids).await?,
            ended(&mut tx, &leases).await?,
        ),
    };
    let mut changes: Vec<Change> = Vec::new();
    let mut changed: HashSet<JobId> = HashSet::new();
    let mut segments = Vec::new();
    let mut outputs = Vec::new();
    let mut verdicts = Vec::with_capacity(endings.len());
    for (ending, is_done) in endings.into_iter().zip(done) {
        let lease = ending.lease;
        if *is_done {
            verdicts.push(Verdict::Recorded(JobState::Succeeded));
            if let Outcome::Success(Some(output)) = ending.outcome {
                outputs.push((lease.job, output));
            }
            continue;
        }
        let Some(row) = rows.get_mut(&ending.lease.job) else {
            verdicts.push(Verdict::Unknown);
            continue;
        };
        let standing = standing(row, ended.get(&ending.lease));
        if !standing.lets_in(&ending) {
            verdicts.push(standing.verdict(&ending));
            continue;
        }
        if !changed.insert(lease.job) {
            // A lost lease, and in the same batch its late success: one statement moves a job once.
            segments.extend(apply(&mut tx, now, &changes).await?);
            changes.clear();
            changed = HashSet::from([lease.job]);
        }
        let (change, output) = change(row, ending, now);
        verdicts.push(Verdict::Recorded(change.new.state));
        if let Some(end) = &change.ended {
            ended.insert(lease, (end.session, end.outcome));
        }
        outputs.extend(output.map(|body| (lease.job, body)));
        *row = change.new.clone();
        row.revision += 1;
        changes.push(change);
    }
    if changes.is_empty() && !done.contains(&true) {
        return Ok(FinishAnswer {
            verdicts,
            segments: Vec::new(),
        });
    }
    segments.extend(apply(&mut tx, now, &changes).await?);
    insert_outputs(&mut tx, &outputs).await?;
    commit(tx).await?;
    Ok(FinishAnswer { verdicts, segments })
}

/// What is known of a job, for a verdict.
pub(super) fn standing(row: &Current, recorded: Option<&(Uuid, AttemptOutcome)>) -> Standing {
    Standing {
        state: row.state,
        attempt: row.attempt,
        session: row.session.map(SessionId::from_store),
        recorded: recorded.map(|(holder, outcome)| (SessionId::from_store(*holder), *outcome)),
    }
}

/// What the ending makes of the job, and the output that it brings.
fn change(row: &Current, ending: Ending, now: Timestamp) -> (Change, Option<Payload>) {
    let session = ending.session.uuid();
    match ending.outcome {
        Outcome::Success(output) => {
            let mut change = row.ends(JobState::Succeeded, now);
            // By which a copy is known again.
            change.new.session = Some(session);
            let size = output.as_ref().map_or(0, |body| body.data.len());
            change.new.bytes += i64::try_from(size).unwrap_or(0);
            (change, output)
        }
        Outcome::Failure(failure) => {
            let outcome = AttemptOutcome::Failed;
            (
                failed(row, session, outcome, failure, ending.chance, now),
                None,
            )
        }
        Outcome::TimedOut => {
            let outcome = AttemptOutcome::TimedOut;
            let failure = Failure {
                kind: TIMED_OUT.into(),
                message: "the attempt ran longer than its timeout".into(),
                ..Failure::default()
            };
            (
                failed(row, session, outcome, failure, ending.chance, now),
                None,
            )
        }
        Outcome::Forgotten => (
            lost(row, session, AttemptOutcome::Forgotten, true, now),
            None,
        ),
        Outcome::Release { delay, reason } => {
            let delay = delay.max(release_floor(row.released_in_row));
            let to = match delay.is_zero() {
                true => JobState::Queued,
                false => JobState::Scheduled,
            };
            let mut change = row.goes_on(to, now.after(delay));
            change.new.releases += 1;
            change.new.released_in_row += 1;
            change.ended = Some(Ended {
                session,
                outcome: AttemptOutcome::Released,
                failure: Some(Failure {
                    message: reason,
                    ..Failure::default()
                }),
            });
            (change, None)
        }
    }
}

fn failed(
    row: &Current,
    session: Uuid,
    outcome: AttemptOutcome,
    failure: Failure,
    chance: f64,
    now: Timestamp,
) -> Change {
    let failures = row.failures.saturating_add(1);
    let mut change = match failure.permanent || failures >= row.retry.max_attempts {
        true => row.ends(JobState::Failed, now),
        false => {
            let wait = failure
                .retry_after
                .unwrap_or_else(|| row.retry.backoff(failures, chance));
            row.goes_on(JobState::Scheduled, now.after(wait))
        }
    };
    change.new.failures = failures;
    change.new.released_in_row = 0;
    change.ended = Some(Ended {
        session,
        outcome,
        failure: Some(failure),
    });
    change
}

/// How attempts are recorded to have ended, and under which session.
pub(super) async fn ended(
    connection: &mut SqliteConnection,
    leases: &[Lease],
) -> Result<HashMap<Lease, (Uuid, AttemptOutcome)>> {
    #[derive(FromRow)]
    struct EndedRow {
        job: Uuid,
        attempt: u32,
        session: Uuid,
        outcome: i16,
    }
    let leases: Vec<_> = leases
        .iter()
        .map(|lease| (hex(lease.job.uuid()), lease.attempt))
        .collect();
    let rows: Vec<EndedRow> = sqlx::query_as(ATTEMPTS)
        .bind(batch(&leases)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    rows.into_iter()
        .map(|row| {
            let lease = Lease {
                job: JobId::from_store(row.job),
                attempt: row.attempt,
            };
            let outcome = AttemptOutcome::from_number(row.outcome)
                .ok_or_else(|| broken("attempts.outcome"))?;
            Ok((lease, (row.session, outcome)))
        })
        .collect()
}

async fn insert_outputs(
    connection: &mut SqliteConnection,
    outputs: &[(JobId, Payload)],
) -> Result<()> {
    if outputs.is_empty() {
        return Ok(());
    }
    let shape = |(_, output): &(JobId, Payload)| (output.content_type.clone(), output.is_text);
    let shapes = Shapes::of(outputs.iter().map(shape));
    let samples: Vec<_> = shapes.samples(outputs).map(shape).collect();
    let bodies = Bodies::of(outputs.iter().map(|(_, output)| output));
    sqlx::query(INSERT_OUTPUTS)
        .bind(batch(&shapes.of)?)
        .bind(batch(&samples)?)
        .bind(packed(outputs.iter().map(|(id, _)| id.uuid())))
        .bind(bodies.data)
        .bind(bodies.places)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}
