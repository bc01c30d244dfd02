//! Endings: recorded once under the fence of job, attempt and session; a copy gets the same verdict.

use std::collections::{HashMap, HashSet};

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::change::{Change, Current, Ended, apply, current, lost};
use super::enqueue::push;
use super::fault::{broken, fault};
use super::row::{batch, hex};
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::retry::release_floor;
use crate::job::{
    AttemptOutcome, Ending, Failure, JobId, JobState, Lease, Outcome, Payload, SessionId, Standing,
    Timestamp, Verdict,
};
use crate::store::FinishAnswer;

const ATTEMPTS: &str = "
SELECT a.job, a.attempt, a.session, a.outcome
  FROM json_each(?1) AS n
  JOIN attempts a ON a.job = unhex(n.value->>'$[0]') AND a.attempt = n.value->>'$[1]'";
const INSERT_OUTPUTS: &str = "
INSERT INTO outputs (id, content_type, is_text, data)
SELECT unhex(value->>'$[0]'), value->>'$[1]', value->>'$[2]',
       coalesce(substr(?2, value->>'$[3]', value->>'$[4]'), x'')
  FROM json_each(?1)";

/// The type of a failure that the timeout was.
const TIMED_OUT: &str = "TIMED_OUT";

/// Records endings, one verdict each.
pub(super) async fn finish(store: &SqliteStore, endings: Vec<Ending>) -> Result<FinishAnswer> {
    let (mut tx, now) = store.write().await?;
    let ids: HashSet<JobId> = endings.iter().map(|ending| ending.lease.job).collect();
    let ids: Vec<JobId> = ids.into_iter().collect();
    let mut rows = current(&mut tx, &ids).await?;
    let leases: Vec<Lease> = endings.iter().map(|ending| ending.lease).collect();
    let mut ended = ended(&mut tx, &leases).await?;
    let mut changes: Vec<Change> = Vec::new();
    let mut changed: HashSet<JobId> = HashSet::new();
    let mut segments = Vec::new();
    let mut outputs = Vec::new();
    let mut verdicts = Vec::with_capacity(endings.len());
    for ending in endings {
        let Some(row) = rows.get_mut(&ending.lease.job) else {
            verdicts.push(Verdict::Unknown);
            continue;
        };
        let standing = standing(row, ended.get(&ending.lease));
        if !standing.lets_in(&ending) {
            verdicts.push(standing.verdict(&ending));
            continue;
        }
        let lease = ending.lease;
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
    if changes.is_empty() {
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
    let mut bodies = Vec::new();
    let mut rows = Vec::with_capacity(outputs.len());
    for (id, output) in outputs {
        let (start, length) = push(&mut bodies, output);
        let Payload {
            content_type,
            is_text,
            ..
        } = output;
        rows.push((hex(id.uuid()), content_type, is_text, start, length));
    }
    sqlx::query(INSERT_OUTPUTS)
        .bind(batch(&rows)?)
        .bind(bodies)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}
