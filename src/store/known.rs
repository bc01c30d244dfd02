//! What an enqueue finds under its ids, idempotency keys and unique keys, and what that makes of a request: the same for
//! every store.

use std::collections::{HashMap, HashSet};

use super::Enqueued;
use crate::job::{
    IdempotencyKey, Job, JobId, NewJob, QueueName, Timestamp, UniqueConflict, UniqueKey,
};

/// What is known of ids and of keys.
#[derive(Default)]
pub(super) struct Known {
    jobs: HashMap<JobId, Standing>,
    keys: HashMap<(QueueName, IdempotencyKey), JobId>,
    /// Who holds a unique key: a job that is not final.
    holders: HashMap<(QueueName, UniqueKey), JobId>,
    /// Ids of jobs that were deleted.
    deleted: HashSet<JobId>,
    /// Jobs that made way, each with the one that took over its unique key, in that order.
    replaced: Vec<(JobId, JobId)>,
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

    /// The id of a job that was deleted.
    pub(super) fn add_deleted(&mut self, id: JobId) {
        self.deleted.insert(id);
    }

    /// A job that was created by this call: its first asker is still to be told so.
    pub(super) fn add_news(&mut self, job: Job, fingerprint: Vec<u8>) {
        self.insert(job, fingerprint, true);
    }

    /// A job that this call creates `now`, whose asker is answered. Whoever holds its unique key makes way.
    pub(super) fn create(&mut self, job: Job, fingerprint: Vec<u8>, now: Timestamp) {
        if let Some(key) = holding(&job)
            && let Some(holder) = self.holders.get(&key)
            && let Some(standing) = self.jobs.get_mut(holder)
        {
            standing.job.make_way(job.id, now);
            self.replaced.push((*holder, job.id));
        }
        self.add(job, fingerprint);
    }

    fn insert(&mut self, job: Job, fingerprint: Vec<u8>, is_news: bool) {
        if let Some(key) = &job.idempotency_key {
            let key = (job.spec.queue.clone(), key.clone());
            self.keys.insert(key, job.id);
        }
        if let Some(key) = holding(&job) {
            self.holders.insert(key, job.id);
        }
        let standing = Standing {
            job,
            fingerprint,
            is_news,
        };
        self.jobs.insert(standing.job.id, standing);
    }

    /// Whether a job is there under the request's id or its keys.
    pub(super) fn has(&self, new: &NewJob) -> bool {
        self.jobs.contains_key(&new.id)
            || self.deleted.contains(&new.id)
            || self.by_key(new).is_some()
            || self.by_unique_key(new).is_some()
    }

    /// The answer to one request; `None` when nothing is known of it, or it is to take the place of another.
    pub(super) fn answer(&mut self, new: &NewJob) -> Option<Enqueued> {
        if self.deleted.contains(&new.id) {
            return Some(Enqueued::Conflict);
        }
        let id = match self.jobs.contains_key(&new.id) {
            true => new.id,
            false => match self.by_key(new) {
                Some(id) => id,
                None => return self.held(new),
            },
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

    /// The answer to one of which only the unique key is known. Who has begun is never replaced.
    fn held(&self, new: &NewJob) -> Option<Enqueued> {
        let holder = self.by_unique_key(new)?;
        let Standing { job, is_news, .. } = self.jobs.get(&holder)?;
        match new.unique_conflict {
            _ if *is_news => None,
            UniqueConflict::Refuse => Some(Enqueued::UniqueConflict(holder)),
            UniqueConflict::Replace if job.attempt == 0 => None,
            UniqueConflict::Keep | UniqueConflict::Replace => Some(Enqueued::Existed(job.clone())),
        }
    }

    /// Jobs that made way for others, and for which.
    pub(super) fn replaced(&self) -> &[(JobId, JobId)] {
        &self.replaced
    }

    /// Brings answers that were given before up to what has become of their jobs.
    pub(super) fn amend(&self, answers: &mut [Enqueued]) {
        for answer in answers {
            if let Enqueued::Created(job) | Enqueued::Existed(job) = answer {
                self.update(job);
            }
        }
    }

    /// Brings one of those jobs up to what has become of it.
    pub(super) fn update(&self, job: &mut Job) {
        if !self.replaced.is_empty()
            && let Some(standing) = self.jobs.get(&job.id)
        {
            job.clone_from(&standing.job);
        }
    }

    fn by_key(&self, new: &NewJob) -> Option<JobId> {
        let (queue, key) = new.key()?;
        self.keys.get(&(queue.clone(), key.clone())).copied()
    }

    fn by_unique_key(&self, new: &NewJob) -> Option<JobId> {
        let (queue, key) = new.unique()?;
        self.holders.get(&(queue.clone(), key.clone())).copied()
    }
}

/// The unique key that a job holds: it has it until it is final.
fn holding(job: &Job) -> Option<(QueueName, UniqueKey)> {
    let key = job.spec.unique_key.clone()?;
    (!job.state.is_final()).then(|| (job.spec.queue.clone(), key))
}
