//! Who wants to know what the attempts of a job say, and what was read for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::job::{Job, JobId, LogLine};

/// A job as a look has shown it.
#[derive(Debug)]
pub struct SeenJob {
    /// In [`crate::job::View::Progress`].
    pub job: Job,
    /// The newest of its lines, for those who listen.
    pub said: Said,
}

impl SeenJob {
    /// The last line that is known by this.
    pub fn last_line(&self) -> u64 {
        self.said.last().max(self.job.lines_said)
    }
}

/// Lines that were read together.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// There are none but these above this number.
    pub after: u64,
    /// In order.
    pub lines: Vec<LogLine>,
}

impl Said {
    /// The number of the last one; 0: there is none.
    pub fn last(&self) -> u64 {
        self.lines.last().map_or(0, |line| line.number)
    }
}

/// How many listen to each job.
#[derive(Debug, Default)]
pub struct Listeners(Mutex<HashMap<JobId, usize>>);

/// One who listens. It ends when it is dropped.
#[derive(Debug)]
pub struct Listener {
    listeners: Arc<Listeners>,
    job: JobId,
}

impl Listeners {
    /// Begins to listen.
    pub fn begin(self: &Arc<Self>, job: JobId) -> Listener {
        *self.lock().entry(job).or_default() += 1;
        Listener {
            listeners: self.clone(),
            job,
        }
    }

    /// Whether anybody listens.
    pub fn has(&self, job: JobId) -> bool {
        self.lock().contains_key(&job)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut all = self.listeners.lock();
        if let Some(count) = all.get_mut(&self.job) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.job);
            }
        }
    }
}
