//! Who waits for a job on this node. What this node records wakes them at once; what other nodes record is found by one
//! query for all of them, twice a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::job::JobId;

/// The jobs that are waited for.
#[derive(Debug, Default)]
pub struct Watches {
    jobs: Mutex<HashMap<JobId, Arc<Watched>>>,
}

#[derive(Debug, Default)]
struct Watched {
    changed: Notify,
}

/// One wait. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch<'a> {
    watches: &'a Watches,
    job: JobId,
    watched: Arc<Watched>,
}

impl Watches {
    /// Begins to wait for changes of a job.
    pub fn watch(&self, job: JobId) -> Watch<'_> {
        let watched = self.lock().entry(job).or_default().clone();
        Watch {
            watches: self,
            job,
            watched,
        }
    }

    /// Wakes who waits for this job.
    pub fn changed(&self, job: JobId) {
        if let Some(watched) = self.lock().get(&job) {
            watched.changed.notify_waiters();
            watched.changed.notify_one();
        }
    }

    /// All jobs that are waited for: at most one a call that is open.
    pub fn all(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Watched>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch<'_> {
    /// Returns when the job may have changed. Cancel safe.
    pub async fn next(&self) {
        self.watched.changed.notified().await;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut jobs = self.watches.lock();
        // This one, and the map's.
        if Arc::strong_count(&self.watched) <= 2 {
            jobs.remove(&self.job);
        }
    }
}
