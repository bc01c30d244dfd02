//! Why a job waits, why it ran more than once, why it ended so: what is known of it, from wherever it is known. What is
//! made of that is in `findings.rs`, and has nothing to ask.

mod findings;
mod workers;

use super::Engine;
use crate::error::Result;
use crate::job::limits::PLACE_MAX;
use crate::job::{Job, JobId, JobState, View};
use crate::store::Whereabouts;
use workers::Workers;

/// Something that explains a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable word; the proto lists them.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The field of the job that it is about; empty: none alone.
    pub field: String,
}

/// All that is known of a job.
struct Known<'a> {
    job: &'a Job,
    whereabouts: Whereabouts,
    /// Of a job that is QUEUED.
    workers: Workers,
    /// Its queue is not handed out.
    is_paused: bool,
    /// The ready-list is away or full.
    is_degraded: bool,
}

impl Engine {
    /// Says why a job is where it is: first what holds now, then what became of its attempts, the oldest first.
    ///
    /// # Errors
    /// `JobNotFound`, and the store's.
    pub async fn explain(&self, id: JobId) -> Result<Vec<Finding>> {
        let job = self.read(id, View::Full).await?;
        let whereabouts = self.core.store.whereabouts(id, PLACE_MAX).await?;
        let workers = match job.state {
            JobState::Queued => {
                workers::workers(&self.core, &job.spec.queue, &job.spec.kind).await?
            }
            _ => Workers::default(),
        };
        let known = Known {
            job: &job,
            whereabouts,
            workers,
            is_paused: self.core.queues.is_paused(&job.spec.queue),
            is_degraded: self.core.ready_is_degraded(),
        };
        Ok(findings::of(&known))
    }
}
