//! Accepting jobs: one INSERT for a whole batch, with its segments and its counts.

mod fresh;
mod mixed;

use std::collections::HashSet;

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{
    Expiry, IdempotencyKey, Job, JobId, JobState, NewJob, QueueName, Start, Timestamp,
};
use crate::store::known::Known;
use crate::store::{EnqueueAnswer, Enqueued, Unit};

/// Accepts jobs: as a batch of which nothing is known yet, which is to be expected, and only if that is refused with a
/// look at each. To look for each id first would cost a third of the whole.
///
/// `single` is for statements that stand alone, `units` for those in a transaction.
pub(super) async fn enqueue(
    single: &Pool,
    units: &Pool,
    jobs: &[NewJob],
    unit: Unit,
) -> Result<EnqueueAnswer> {
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

/// One id twice is one job, and so is one key: the first is tried, the others are compared with what became of it.
fn firsts<'a>(jobs: impl ExactSizeIterator<Item = &'a NewJob>) -> Vec<&'a NewJob> {
    let (mut ids, mut keys) = (HashSet::with_capacity(jobs.len()), HashSet::new());
    let mut firsts = Vec::with_capacity(jobs.len());
    for job in jobs {
        let key = job.key();
        if key.is_none_or(|key| !keys.contains(&key)) && ids.insert(job.id) {
            keys.extend(key);
            firsts.push(job);
        }
    }
    firsts
}

/// Rows are written in this order, so that two batches with the same ids or the same keys cannot wait for each other in a
/// circle.
fn place<'a>(job: &&'a NewJob) -> (Option<(&'a QueueName, &'a IdempotencyKey)>, JobId) {
    (job.key(), job.id)
}

fn key(job: &&NewJob) -> Option<String> {
    job.idempotency_key
        .as_ref()
        .map(|key| key.as_str().to_owned())
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
