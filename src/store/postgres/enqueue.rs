//! Accepting jobs: one INSERT for a whole batch, with its segments and its counts.

mod fresh;
mod mixed;
mod replace;

use std::collections::HashSet;

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{
    Expiry, IdempotencyKey, Job, JobId, JobState, NewJob, QueueName, Start, Timestamp,
    UniqueConflict, UniqueKey,
};
use crate::store::known::Known;
use crate::store::{EnqueueAnswer, Enqueued, Unit};

/// Accepts jobs. Those with a unique key go their own way: that it is held is to be expected, and is not the others' affair.
/// So do copies, of which there are few: the others need not say that they are none.
///
/// `single` is for statements that stand alone, `units` for those in a transaction.
pub(super) async fn enqueue(
    single: &Pool,
    units: &Pool,
    jobs: &[NewJob],
    unit: Unit,
) -> Result<EnqueueAnswer> {
    let is_rare = |job: &NewJob| job.spec.unique_key.is_some() || job.copied_from.is_some();
    match (unit, jobs.iter().filter(|job| is_rare(job)).count()) {
        (_, 0) => usual(single, units, jobs, unit).await,
        (Unit::Each, count) if count < jobs.len() => {
            let (few, many): (Vec<NewJob>, Vec<NewJob>) = jobs.iter().cloned().partition(is_rare);
            let mut answer = usual(single, units, &many, unit).await?;
            let more = rare(single, units, &few, unit).await.map_err(half_done)?;
            answer.segments.extend(more.segments);
            let (mut many, mut few) = (answer.jobs.into_iter(), more.jobs.into_iter());
            let next = |job: &NewJob| match is_rare(job) {
                true => few.next(),
                false => many.next(),
            };
            answer.jobs = jobs.iter().filter_map(next).collect();
            Ok(answer)
        }
        _ => rare(single, units, jobs, unit).await,
    }
}

/// Some jobs are there when others could not be written: the whole is to be run again, and finds them.
fn half_done(error: Error) -> Error {
    match error {
        Error::Unavailable { .. } => Error::OutcomeUnknown,
        other => other,
    }
}

async fn rare(single: &Pool, units: &Pool, jobs: &[NewJob], unit: Unit) -> Result<EnqueueAnswer> {
    let replaces = |job: &NewJob| job.unique_conflict == UniqueConflict::Replace;
    match unit {
        _ if jobs.iter().any(replaces) => replace::enqueue(units, jobs, unit).await,
        Unit::Each => mixed::each(single, jobs).await,
        Unit::All => mixed::all(units, jobs).await,
    }
}

/// Accepts jobs: as a batch of which nothing is known yet, which is to be expected, and only if that is refused with a
/// look at each. To look for each id first would cost a third of the whole.
async fn usual(single: &Pool, units: &Pool, jobs: &[NewJob], unit: Unit) -> Result<EnqueueAnswer> {
    if jobs.is_empty() {
        return Ok(EnqueueAnswer::default());
    }
    let firsts = firsts(jobs.iter());
    if firsts.len() == jobs.len()
        && let Some(batch) = fresh::Batch::of(&firsts)
        && let Some((now, segments)) = batch.write(single).await?
    {
        let created = |job: &NewJob| Enqueued::Created(created(job, now));
        let jobs = jobs.iter().map(created).collect();
        return Ok(EnqueueAnswer { jobs, segments });
    }
    match unit {
        Unit::Each => mixed::each(single, jobs).await,
        Unit::All => mixed::all(units, jobs).await,
    }
}

/// One id twice is one job, and so is one key, of either kind: the first is tried, the others are compared with what
/// became of it.
fn firsts<'a>(jobs: impl ExactSizeIterator<Item = &'a NewJob>) -> Vec<&'a NewJob> {
    let mut ids = HashSet::with_capacity(jobs.len());
    let (mut keys, mut unique_keys) = (HashSet::new(), HashSet::new());
    let mut firsts = Vec::with_capacity(jobs.len());
    for job in jobs {
        let (key, unique) = (job.key(), job.unique());
        let is_first = key.is_none_or(|key| !keys.contains(&key))
            && unique.is_none_or(|key| !unique_keys.contains(&key));
        if is_first && ids.insert(job.id) {
            keys.extend(key);
            unique_keys.extend(unique);
            firsts.push(job);
        }
    }
    firsts
}

/// Where a row is written among others.
type Place<'a> = (
    Option<(&'a QueueName, &'a UniqueKey)>,
    Option<(&'a QueueName, &'a IdempotencyKey)>,
    JobId,
);

/// Rows are written in this order, so that two batches with the same ids or the same keys cannot wait for each other in a
/// circle. (Batches of jobs that have both kinds of keys can: one gives way then, and is run again.)
fn place<'a>(job: &&'a NewJob) -> Place<'a> {
    (job.unique(), job.key(), job.id)
}

fn key(job: &&NewJob) -> Option<String> {
    job.idempotency_key
        .as_ref()
        .map(|key| key.as_str().to_owned())
}

fn unique_key(job: &&NewJob) -> Option<String> {
    job.unique().map(|(_, key)| key.as_str().to_owned())
}

fn expire_in(job: &&NewJob) -> Option<i64> {
    match job.expiry {
        Some(Expiry::After(span)) => Some(micros(span)),
        _ => None,
    }
}

fn expire_time(job: &&NewJob) -> Option<i64> {
    match job.expiry {
        Some(Expiry::At(time)) => Some(time.0),
        _ => None,
    }
}

/// One answer a job. Errors: `Unavailable` when it is not known what became of one.
fn answers(jobs: &[NewJob], mut known: Known, now: Timestamp) -> Result<Vec<Enqueued>> {
    let answer = |new: &NewJob| {
        let answer = known.answer(new).or_else(|| out_of_bounds(new, now));
        answer.ok_or_else(|| Error::unavailable("postgres"))
    };
    jobs.iter().map(answer).collect()
}

/// A job that was accepted `now`.
fn created(job: &NewJob, now: Timestamp) -> Job {
    let run_time = job.start.of(now).max(now);
    let state = match run_time > now {
        true => JobState::Scheduled,
        false => JobState::Queued,
    };
    Job::accepted(job, state, now, run_time)
}

fn out_of_bounds(job: &NewJob, now: Timestamp) -> Option<Enqueued> {
    let at = job.id.time();
    if at.0 < now.0 - micros(ID_AGE_MAX) || at > now.after(ID_AHEAD_MAX) {
        return Some(Enqueued::IdOutOfTime);
    }
    if matches!(job.start, Start::At(start) if start > now.after(SPAN_MAX)) {
        return Some(Enqueued::StartTooFar);
    }
    job.expires_too_soon(now)
        .then_some(Enqueued::ExpiresTooSoon)
}
