//! What those who enqueue can ask: get, list, cancel, retry, reschedule, set the priority, delete.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::{Engine, sessions};
use crate::error::{Error, Result};
use crate::job::draft::DraftCopy;
use crate::job::limits::SPAN_MAX;
use crate::job::{Actor, By, Job, JobId, JobState, NewJob, Priority, Start, View};
use crate::store::{Cancelled, Deleted, JobFilter, JobPage, Rescheduled, Retried};

/// A job that is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The job, in a basic view.
    pub job: Job,
    /// It was there before this call.
    pub existed: bool,
}

impl Engine {
    /// Accepts one job. `field(name)` is what the caller calls a field of it, for errors.
    ///
    /// # Errors
    /// `InvalidArgument` (an id out of its time), `IdConflict`, `KeyConflict`, `UniqueConflict`, `LimitReached`, and the
    /// store's.
    pub async fn enqueue(
        &self,
        mut job: NewJob,
        field: impl Fn(&str) -> String,
    ) -> Result<Accepted> {
        self.complete(std::slice::from_mut(&mut job)).await?;
        self.enqueues.one(job, field).await
    }

    /// Accepts all jobs or none. `field(i, name)` is what the caller calls a field of the i-th, for errors.
    ///
    /// # Errors
    /// As for one.
    pub async fn enqueue_batch(
        &self,
        mut jobs: Vec<NewJob>,
        field: impl Fn(usize, &str) -> String,
    ) -> Result<Vec<Accepted>> {
        self.complete(&mut jobs).await?;
        self.enqueues.all(jobs, field).await
    }

    /// Reads a job; with `wait`, as soon as it is final, or as it is when the wait is over or this node leaves.
    ///
    /// # Errors
    /// `JobNotFound`, `LimitReached` when too many wait, and the store's.
    pub async fn get(&self, id: JobId, view: View, wait: Duration) -> Result<Job> {
        let until = Instant::now() + wait;
        if wait.is_zero() {
            return self.read(id, view).await;
        }
        // Before the first look, so that no change falls between the two.
        let mut watcher = self.core.watches.watch(id)?;
        let mut job = self.read(id, view).await?;
        while !job.state.is_final() {
            // Cancel safe: these only wait.
            tokio::select! {
                () = watcher.ended(job.revision) => {}
                () = self.core.draining.cancelled() => return self.read(id, view).await,
                () = tokio::time::sleep_until(until) => return self.read(id, view).await,
            }
            job = self.read(id, view).await?;
        }
        Ok(job)
    }

    /// In a full view with its log.
    pub(super) async fn read(&self, id: JobId, view: View) -> Result<Job> {
        let found = self.core.store.get(vec![id], view).await?;
        let job = found.into_iter().next().flatten();
        let mut job = job.ok_or_else(|| Error::JobNotFound(id.to_string()))?;
        if job.lines_said > 0 && view == View::Full {
            let lines = self.core.store.lines(vec![(id, 0)]).await?.pop();
            let lines = lines.unwrap_or_default();
            // Of two reads the later one may know more.
            let last = lines.last().map_or(0, |line| line.number);
            job.lines_said = job.lines_said.max(last);
            job.log = Some(lines);
        }
        Ok(job)
    }

    /// Lists jobs below `before`, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        size: usize,
        view: View,
    ) -> Result<JobPage> {
        self.core.store.list(filter, before, size, view).await
    }

    /// Cancels a job that is not final, and tells its worker if it runs.
    ///
    /// # Errors
    /// `JobNotFound`, `WrongState`, and the store's.
    pub async fn cancel(&self, id: JobId, by: By) -> Result<Job> {
        let actor = by.actor.clone();
        match self.core.store.cancel(id, by).await? {
            Cancelled::Done(job, running) => {
                info!(job_id = %id, queue = %job.spec.queue, attempt = job.attempt, actor = actor.as_str(), "job cancelled");
                self.core.watches.changed([id]);
                if let Some((lease, session)) = running
                    && !sessions::cancel(&self.core, session, lease)
                    && let Err(error) = self.core.ready.nudge().await
                {
                    debug!(%error, "no nudge; the other nodes look at the signals by themselves");
                }
                Ok(job)
            }
            Cancelled::Already(job) => Ok(job),
            Cancelled::WrongState(is) => Err(Error::WrongState {
                job: id,
                is,
                verb: "cancel",
            }),
            Cancelled::NotFound => Err(Error::JobNotFound(id.to_string())),
        }
    }

    /// Enqueues a copy of a FAILED or CANCELLED job with another payload; the job itself stays as it is. A call that is
    /// repeated gives the same copy, whatever has become of the job since.
    ///
    /// # Errors
    /// As for [`Engine::retry`] and [`Engine::enqueue`].
    pub async fn retry_copy(&self, id: JobId, copy: DraftCopy) -> Result<Accepted> {
        let of = match self.read(id, View::Basic).await {
            Ok(job) if matches!(job.state, JobState::Failed | JobState::Cancelled) => Ok(job),
            Ok(job) => Err(Error::WrongState {
                job: id,
                is: job.state,
                verb: "retry",
            }),
            Err(error) => Err(error),
        };
        let of = match of {
            Ok(of) => of,
            Err(refused @ (Error::WrongState { .. } | Error::JobNotFound(_))) => {
                let made = self.copy_made(id, &copy).await?;
                return made.ok_or(refused);
            }
            Err(error) => return Err(error),
        };
        let fresh = self.ids().await.fresh();
        let copy = copy.check(&of, fresh).map_err(Error::InvalidArgument)?;
        let field = |name: &str| match name {
            "job_id" => "new_job_id".to_owned(),
            name => name.to_owned(),
        };
        match self.enqueues.one(copy, field).await {
            Err(Error::UniqueConflict(holder)) => Err(Error::UniqueKeyHeld { job: id, holder }),
            answer => answer,
        }
    }

    /// The copy that an earlier call like this one has made of a job.
    async fn copy_made(&self, of: JobId, copy: &DraftCopy) -> Result<Option<Accepted>> {
        let Some(id) = JobId::parse(&copy.new_job_id) else {
            return Ok(None);
        };
        let found = self.core.store.get(vec![id], View::Full).await?.pop();
        let is_it = |job: &Job| {
            let payload = job.payload.as_ref().map(|payload| &payload.data);
            job.copied_from == Some(of) && payload == Some(&copy.payload.data)
        };
        if !found.flatten().is_some_and(|job| is_it(&job)) {
            return Ok(None);
        }
        let job = self.read(id, View::Basic).await?;
        Ok(Some(Accepted { job, existed: true }))
    }

    /// Gives a job that waits another time.
    ///
    /// # Errors
    /// `JobNotFound`, `WrongState`, `InvalidArgument` (a time too far ahead, or past the job's expire time), and the store's.
    pub async fn reschedule(&self, id: JobId, start: Start, by: By) -> Result<Job> {
        let actor = by.actor.clone();
        let steered = self.core.store.reschedule(id, start, by).await?;
        self.steered(id, "reschedule", &actor, steered)
    }

    /// Gives a job that waits another priority.
    ///
    /// # Errors
    /// `JobNotFound`, `WrongState`, and the store's.
    pub async fn set_priority(&self, id: JobId, priority: Priority, by: By) -> Result<Job> {
        let actor = by.actor.clone();
        let steered = self.core.store.set_priority(id, priority, by).await?;
        self.steered(id, "prioritize", &actor, steered)
    }

    fn steered(
        &self,
        id: JobId,
        verb: &'static str,
        actor: &Actor,
        steered: Rescheduled,
    ) -> Result<Job> {
        match steered {
            Rescheduled::Done(job, segments) => {
                info!(job_id = %id, queue = %job.spec.queue, actor = actor.as_str(), verb, "job steered by hand");
                self.core.watches.changed([id]);
                self.offers.offer(segments);
                Ok(job)
            }
            Rescheduled::WrongState(is) => Err(Error::WrongState { job: id, is, verb }),
            Rescheduled::NotFound => Err(Error::JobNotFound(id.to_string())),
            Rescheduled::StartTooFar => Err(Error::field(
                "run_time",
                format!("must be at most {SPAN_MAX:?} ahead"),
            )),
            Rescheduled::ExpiresTooSoon => Err(Error::field(
                "run_time",
                "must be before the job's expire_time",
            )),
        }
    }

    /// Deletes a final job.
    ///
    /// # Errors
    /// `JobNotFound`, `WrongState`, and the store's.
    pub async fn delete(&self, id: JobId, by: By) -> Result<()> {
        let actor = by.actor.clone();
        match self.core.store.delete(id, by).await? {
            Deleted::Done => {
                info!(job_id = %id, actor = actor.as_str(), "job deleted");
                self.core.watches.changed([id]);
                Ok(())
            }
            Deleted::WrongState(is) => Err(Error::WrongState {
                job: id,
                is,
                verb: "delete",
            }),
            Deleted::NotFound => Err(Error::JobNotFound(id.to_string())),
        }
    }

    /// Brings a FAILED or CANCELLED job back, due after `delay`.
    ///
    /// # Errors
    /// `JobNotFound`, `WrongState`, `UniqueKeyHeld`, and the store's.
    pub async fn retry(&self, id: JobId, delay: Duration, by: By) -> Result<Job> {
        let actor = by.actor.clone();
        match self.core.store.retry(id, delay, by).await? {
            Retried::Done(job, segments) => {
                info!(job_id = %id, queue = %job.spec.queue, actor = actor.as_str(), "job retried by hand");
                self.core.watches.changed([id]);
                self.offers.offer(segments);
                Ok(job)
            }
            Retried::WrongState(is) => Err(Error::WrongState {
                job: id,
                is,
                verb: "retry",
            }),
            Retried::KeyHeld(holder) => Err(Error::UniqueKeyHeld { job: id, holder }),
            Retried::NotFound => Err(Error::JobNotFound(id.to_string())),
        }
    }
}
