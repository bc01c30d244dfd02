//! Stand-in for the engine while the faces are built beside it: jobs in memory, nothing runs. To be replaced.
#![allow(missing_docs)]

pub mod page;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use crate::store::{JobFilter, JobPage};

use crate::error::{Error, Result};
use crate::job::{Job, JobId, JobState, NewJob, Payload, Timestamp, View};
use crate::telemetry::Metrics;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    pub store: bool,
    pub ready_list: bool,
    pub draining: bool,
}

pub struct Engine {
    jobs: Mutex<BTreeMap<JobId, (Job, Payload, [u8; 32])>>,
    metrics: Metrics,
    pub health: Mutex<Health>,
}

impl Engine {
    pub fn stand_in() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            jobs: Mutex::default(),
            metrics: Metrics::new()?,
            health: Mutex::new(Health {
                store: true,
                ready_list: true,
                draining: false,
            }),
        }))
    }

    pub async fn enqueue(&self, job: NewJob) -> Result<(Job, bool)> {
        if !self.health().store {
            return Err(Error::unavailable("the store"));
        }
        let now = now();
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((found, _, fingerprint)) = jobs.get(&job.id) {
            return match *fingerprint == job.fingerprint {
                true => Ok((found.clone(), true)),
                false => Err(Error::IdConflict(job.id)),
            };
        }
        let made = Job::accepted(&job, JobState::Queued, now, now);
        jobs.insert(job.id, (made.clone(), job.payload, job.fingerprint));
        Ok((made, false))
    }

    pub async fn enqueue_batch(&self, batch: Vec<NewJob>) -> Result<Vec<(Job, bool)>> {
        let mut done = Vec::new();
        for job in batch {
            done.push(self.enqueue(job).await?);
        }
        Ok(done)
    }

    pub async fn get(&self, id: JobId, view: View, _wait: Duration) -> Result<Job> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let (job, payload, _) = jobs
            .get(&id)
            .ok_or_else(|| Error::JobNotFound(id.to_string()))?;
        let mut job = job.clone();
        if view == View::Full {
            job.payload = Some(payload.clone());
        }
        Ok(job)
    }

    pub async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        size: usize,
        _view: View,
    ) -> Result<JobPage> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Job> = jobs
            .values()
            .rev()
            .map(|(job, ..)| job)
            .filter(|job| before.is_none_or(|before| job.id < before))
            .filter(|job| filter.queues.is_empty() || filter.queues.contains(&job.spec.queue))
            .filter(|job| filter.states.is_empty() || filter.states.contains(&job.state))
            .take(size + 1)
            .cloned()
            .collect();
        let more = found.len() > size;
        found.truncate(size);
        let next = found.last().map(|job| job.id).filter(|_| more);
        Ok(JobPage { jobs: found, next })
    }

    pub async fn cancel(&self, id: JobId, _reason: String) -> Result<Job> {
        self.change(id, JobState::Cancelled)
    }

    pub async fn retry(&self, id: JobId, _delay: Duration) -> Result<Job> {
        let job = self.get(id, View::Basic, Duration::ZERO).await?;
        if !matches!(job.state, JobState::Failed | JobState::Cancelled) {
            return Err(Error::WrongState {
                job: id,
                is: job.state,
                verb: "retry",
            });
        }
        self.change(id, JobState::Queued)
    }

    pub fn fresh_id(&self) -> JobId {
        JobId::from_store(uuid::Uuid::now_v7())
    }

    pub fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn change(&self, id: JobId, state: JobState) -> Result<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let (job, ..) = jobs
            .get_mut(&id)
            .ok_or_else(|| Error::JobNotFound(id.to_string()))?;
        job.state = state;
        Ok(job.clone())
    }
}

fn now() -> Timestamp {
    let span = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp(crate::job::time::micros(span.unwrap_or_default()))
}
