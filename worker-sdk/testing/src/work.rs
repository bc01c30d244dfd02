//! Running what was enqueued.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use worker_sdk::{Job, JobState, WorkerBuilder};

use crate::Error;
use crate::server::{TestServer, due, in_states};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl TestServer {
    /// Runs this worker until no job is due or running, and gives those that it
    /// has run, oldest first, as they are then: one that failed and is to be
    /// retried is SCHEDULED. What its handlers enqueue is run, too. Jobs of queues
    /// that the worker does not take, and of kinds that it does not know, are
    /// left where they are.
    ///
    /// # Errors
    /// What keeps the worker from being built or from running;
    /// [`Error::NotAtRest`] when it takes longer than [`patience`](Self::patience).
    pub async fn work_off(&self, worker: WorkerBuilder) -> Result<Vec<Job>, Error> {
        self.work(worker, |_| true).await
    }

    /// Runs this worker until this very job has come to rest: it is final, or
    /// waits for its next attempt. If it waits for its time, time passes until
    /// then; others that are due are run beside it.
    ///
    /// # Errors
    /// As [`work_off`](Self::work_off).
    pub async fn run(&self, worker: WorkerBuilder, job_id: &str) -> Result<Job, Error> {
        let job = self.client()?.get(job_id).await?;
        if job.state() == JobState::Scheduled {
            self.pass_until(due(&job).unwrap_or(0)).await?;
        }
        self.work(worker, |job| job.id == job_id).await?;
        Ok(self.client()?.get(job_id).await?)
    }

    async fn work(
        &self,
        worker: WorkerBuilder,
        matters: impl Fn(&Job) -> bool,
    ) -> Result<Vec<Job>, Error> {
        let before = self.attempts().await?;
        let takes: HashSet<String> = worker.queues().map(str::to_owned).collect();
        let knows: HashSet<String> = worker.kinds().map(str::to_owned).collect();
        let leave = CancellationToken::new();
        let worker = worker.name("test").build()?;
        let mut running = tokio::spawn(worker.run_until(leave.clone().cancelled_owned()));
        let is_ours = |job: &Job| {
            let spec = job.spec.clone().unwrap_or_default();
            takes.contains(&spec.queue) && knows.contains(&spec.kind) && matters(job)
        };
        let end = Instant::now() + self.patience;
        loop {
            let busy = self.busy().await?;
            let busy: Vec<&Job> = busy.iter().filter(|job| is_ours(job)).collect();
            let Some(one) = busy.first() else { break };
            if running.is_finished() {
                break;
            }
            if Instant::now() >= end {
                let state = one.state().as_str_name();
                let text = format!("{} of them, {} is {state}", busy.len(), one.id);
                return Err(Error::NotAtRest(self.patience, text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        leave.cancel();
        let ended = (&mut running).await;
        ended.map_err(|why| Error::Server(format!("the worker: {why}")))??;
        let ran = |job: &Job| before.get(&job.id).copied().unwrap_or(0) < job.attempt;
        let jobs = self.jobs().await?;
        Ok(jobs
            .into_iter()
            .filter(|job| ran(job) && is_ours(job))
            .collect())
    }

    async fn attempts(&self) -> Result<BTreeMap<String, u32>, Error> {
        let jobs = self.jobs().await?.into_iter();
        Ok(jobs.map(|job| (job.id, job.attempt)).collect())
    }

    /// What is due, or runs.
    async fn busy(&self) -> Result<Vec<Job>, Error> {
        use JobState::{Queued, Running, Scheduled};
        let now = self.now().await?;
        let mut jobs = self.list(in_states(&[Queued, Running, Scheduled])).await?;
        jobs.retain(|job| job.state() != Scheduled || due(job).is_some_and(|due| due <= now));
        Ok(jobs)
    }
}
