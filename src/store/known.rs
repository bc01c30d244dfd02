//! What an enqueue finds under its ids and idempotency keys, and what that makes of a request: the same for every store.

use std::collections::HashMap;

use super::Enqueued;
use crate::job::{IdempotencyKey, Job, JobId, NewJob, QueueName};

/// What is known of ids and of keys.
#[derive(Default)]
pub(super) struct Known {
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
    /// A job that was there before, with the fingerprint of its request, or one whose asker has been answered.
    pub(super) fn add(&mut self, job: Job, fingerprint: Vec<u8>) {
        self.insert(job, fingerprint, false);
    }

    /// A job that was created by this call: its first asker is still to be told so.
    pub(super) fn add_news(&mut self, job: Job, fingerprint: Vec<u8>) {
        self.insert(job, fingerprint, true);
    }

    fn insert(&mut self, job: Job, fingerprint: Vec<u8>, is_news: bool) {
        if let Some(key) = &job.idempotency_key {
            let key = (job.spec.queue.clone(), key.clone());
            self.keys.insert(key, job.id);
        }
        let standing = Standing {
            job,
            fingerprint,
            is_news,
        };
        self.jobs.insert(standing.job.id, standing);
    }

    /// Whether a job is there under the request's id or its key.
    pub(super) fn has(&self, new: &NewJob) -> bool {
        self.jobs.contains_key(&new.id) || self.by_key(new).is_some()
    }

    /// The answer to one request; `None` when nothing is known of it.
    pub(super) fn answer(&mut self, new: &NewJob) -> Option<Enqueued> {
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

    fn by_key(&self, new: &NewJob) -> Option<JobId> {
        let (queue, key) = new.key()?;
        self.keys.get(&(queue.clone(), key.clone())).copied()
    }
}
