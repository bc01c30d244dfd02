//! Accepting jobs: one INSERT for a whole batch, with its segments and its counts.

mod fresh;
mod mixed;

use std::collections::{HashMap, HashSet};

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{Job, JobId, JobState, NewJob, Start, Timestamp};
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
    // One id twice is one job: the first is accepted, the others are compared with it.
    let mut seen = HashSet::with_capacity(jobs.len());
    let firsts: Vec<&NewJob> = jobs.iter().filter(|job| seen.insert(job.id)).collect();
    if firsts.len() == jobs.len()
        && let Some(batch) = fresh::Batch::of(&firsts)
        && let Some((now, segments)) = batch.write(single).await?
    {
        let created = |job: &NewJob| Enqueued::Created(created(job, now));
        let jobs = jobs.iter().map(created).collect();
        return Ok(EnqueueAnswer { jobs, segments });
    }
    match unit {
        Unit::Each => mixed::each(single, jobs, firsts).await,
        Unit::All => mixed::all(units, jobs, firsts).await,
    }
}

/// What is known of an id.
struct Known {
    job: Job,
    /// Of the request that it was created for.
    fingerprint: Vec<u8>,
    /// Created by this call, and its first asker does not have its answer yet.
    is_news: bool,
}

impl Known {
    fn new(job: &NewJob, now: Timestamp) -> (JobId, Self) {
        let known = Self {
            job: created(job, now),
            fingerprint: job.fingerprint.to_vec(),
            is_news: true,
        };
        (job.id, known)
    }
}

/// One answer a job. Errors: `Unavailable` when it is not known what became of one.
fn answers(
    jobs: &[NewJob],
    mut known: HashMap<JobId, Known>,
    now: Timestamp,
) -> Result<Vec<Enqueued>> {
    let answer = |job: &NewJob| {
        let Some(known) = known.get_mut(&job.id) else {
            return out_of_bounds(job, now).ok_or_else(|| Error::unavailable("postgres"));
        };
        Ok(match std::mem::take(&mut known.is_news) {
            true => Enqueued::Created(known.job.clone()),
            false if known.fingerprint == job.fingerprint => Enqueued::Existed(known.job.clone()),
            false => Enqueued::Conflict,
        })
    };
    jobs.iter().map(answer).collect()
}

/// A job that was accepted `now`.
fn created(job: &NewJob, now: Timestamp) -> Job {
    let run_time = match job.start {
        Start::Now => now,
        Start::After(delay) => now.after(delay),
        Start::At(start) => start.max(now),
    };
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
    matches!(job.start, Start::At(start) if start > now.after(SPAN_MAX))
        .then_some(Enqueued::StartTooFar)
}
