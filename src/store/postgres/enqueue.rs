//! Accepting jobs: one INSERT for a whole batch, with its segments and its counts.

mod fresh;
mod mixed;

use std::collections::{HashMap, HashSet};

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{IdempotencyKey, Job, JobId, JobState, NewJob, QueueName, Start, Timestamp};
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

/// What is known of ids and of keys.
#[derive(Default)]
struct Known {
    jobs: HashMap<JobId, Standing>,
    keys: HashMap<(QueueName, IdempotencyKey), JobId>,
}

/// A job that is there.
struct Standing {
    job: Job,
    /// Of the request that it was created for.
    fingerprint: Vec<u8>,
    /// Created by this call, and its first asker does not have its answer yet.
    is_news: bool,
}

impl Known {
    /// A job that was created by this call.
    fn add_created(&mut self, new: &NewJob, now: Timestamp) {
        self.add(Standing {
            job: created(new, now),
            fingerprint: new.fingerprint.to_vec(),
            is_news: true,
        });
    }

    fn add(&mut self, standing: Standing) {
        let job = &standing.job;
        if let Some(key) = &job.idempotency_key {
            let key = (job.spec.queue.clone(), key.clone());
            self.keys.insert(key, job.id);
        }
        self.jobs.insert(job.id, standing);
    }

    fn has(&self, new: &NewJob) -> bool {
        self.jobs.contains_key(&new.id) || self.by_key(new).is_some()
    }

    fn by_key(&self, new: &NewJob) -> Option<JobId> {
        let (queue, key) = new.key()?;
        self.keys.get(&(queue.clone(), key.clone())).copied()
    }

    /// The answer to one job; `None` when nothing is known of it.
    fn answer(&mut self, new: &NewJob) -> Option<Enqueued> {
        let id = match self.jobs.contains_key(&new.id) {
            true => new.id,
            false => self.by_key(new)?,
        };
        let standing = self.jobs.get_mut(&id)?;
        let job = &standing.job;
        let is_same = standing.fingerprint == new.fingerprint;
        Some(if id != new.id {
            match is_same {
                // Its own asker comes later in the batch: this one was judged before.
                _ if standing.is_news => return None,
                true => Enqueued::Existed(job.clone()),
                false => Enqueued::KeyConflict(id),
            }
        } else if std::mem::take(&mut standing.is_news) {
            Enqueued::Created(job.clone())
        } else if is_same && job.idempotency_key == new.idempotency_key {
            Enqueued::Existed(job.clone())
        } else {
            Enqueued::Conflict
        })
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
