//! Accepting jobs: single calls wait with their neighbours for one flush, a batch is its own. OK only after the commit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::debug;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::budget::{Budget, Share};
use super::jobs::Accepted;
use super::offer::Offers;
use super::pressure::{Admitted, Pressure};
use super::tasks::Tasks;
use crate::error::{Error, Limit, Result};
use crate::failpoint;
use crate::job::limits::{
    BATCH_BYTES_MAX, BATCH_MAX, ENQUEUE_BYTES_MAX, ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX,
};
use crate::job::{JobId, NewJob, Step};
use crate::store::{EnqueueAnswer, Enqueued, Unit};

/// How often a flush whose outcome is not known is run again with the same ids.
const TRIES: u32 = 3;

/// So many single jobs are worth a flush beside one that is under way: the flush itself costs as much as they do.
const BESIDE: usize = 100;

/// Where single jobs go.
#[derive(Debug)]
pub struct Enqueues {
    core: Arc<Core>,
    offers: Offers,
    batcher: Batcher<Waiting>,
    budget: Budget,
    pressure: Arc<Pressure>,
}

#[derive(Debug)]
struct Waiting {
    job: NewJob,
    answer: oneshot::Sender<Result<Enqueued>>,
    share: Share,
    admitted: Admitted,
}

impl Enqueues {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>, offers: Offers) -> Self {
        let bounds = Bounds {
            lanes: 2,
            beside: BESIDE,
            linger: Duration::ZERO,
            waiting: 10_000,
            items: BATCH_MAX,
            bytes: BATCH_BYTES_MAX,
        };
        let size = |waiting: &Waiting| waiting.job.size() + 200;
        let (flush_core, flush_offers) = (core.clone(), offers.clone());
        let flush = move |batch| flush(flush_core.clone(), flush_offers.clone(), batch);
        Self {
            core,
            offers,
            batcher: Batcher::start(tasks, bounds, size, flush),
            budget: Budget::new(ENQUEUE_BYTES_MAX),
            pressure: Pressure::new(),
        }
    }

    /// Accepts one job, together with whatever else arrives.
    pub async fn one(&self, job: NewJob, field: impl Fn(&str) -> String) -> Result<Accepted> {
        let id = job.id;
        let (answer, answered) = oneshot::channel();
        let admitted = self.pressure.admit(1).ok_or_else(busy)?;
        let share = self.budget.take(job.size()).ok_or_else(busy)?;
        let waiting = Waiting {
            job,
            answer,
            share,
            admitted,
        };
        self.batcher.push(waiting).map_err(|_| busy())?;
        let enqueued = answered.await.map_err(Error::internal)??;
        accepted(enqueued, id, field)?.ok_or_else(|| Error::internal("a single job was not tried"))
    }

    /// Accepts all jobs or none. `field` names the field of the i-th one.
    pub async fn all(
        &self,
        jobs: Vec<NewJob>,
        field: impl Fn(usize, &str) -> String,
    ) -> Result<Vec<Accepted>> {
        let size = jobs.iter().map(NewJob::size).sum();
        let admitted = self.pressure.admit(jobs.len()).ok_or_else(busy)?;
        let share = self.budget.take(size).ok_or_else(busy)?;
        let jobs: Arc<[NewJob]> = jobs.into();
        let (core, offers, unit) = (self.core.clone(), self.offers.clone(), jobs.clone());
        // In a task of its own: a caller that leaves stops nothing half-way (I10).
        let write = tokio::spawn(async move {
            let answer = write(&core, unit.clone(), Unit::All).await?;
            admitted.answered(unit.len());
            count(&core, &answer.jobs);
            offers.offer(answer.segments);
            drop((share, admitted));
            Ok::<_, Error>(answer.jobs)
        });
        let answers = write.await.map_err(Error::internal)??;
        let mut taken = Vec::with_capacity(jobs.len());
        for (i, (enqueued, job)) in answers.into_iter().zip(jobs.iter()).enumerate() {
            taken.extend(accepted(enqueued, job.id, |name| field(i, name))?);
        }
        match taken.len() == jobs.len() {
            true => Ok(taken),
            false => Err(Error::internal("a batch was refused without a reason")),
        }
    }
}

/// Too much waits already.
pub(super) fn busy() -> Error {
    Error::LimitReached {
        limit: Limit::Busy,
        retry_after: Duration::from_secs(1),
    }
}

async fn flush(core: Arc<Core>, offers: Offers, batch: Vec<Waiting>) {
    let (mut jobs, mut answers, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for waiting in batch {
        jobs.push(waiting.job);
        answers.push(waiting.answer);
        // Held to the end of this flush.
        held.push((waiting.share, waiting.admitted));
    }
    let (flushed, mut was_written) = (held.len(), false);
    let mut open = vec![(Arc::<[NewJob]>::from(jobs), answers)];
    while let Some((jobs, mut answers)) = open.pop() {
        match write(&core, jobs.clone(), Unit::Each).await {
            Ok(answer) => {
                was_written = true;
                count(&core, &answer.jobs);
                for (enqueued, waiting) in answer.jobs.into_iter().zip(answers) {
                    // Its caller may have left; the job stays.
                    drop(waiting.send(Ok(enqueued)));
                }
                offers.offer(answer.segments);
            }
            // Something in the data that no check foresaw must fail its own caller only: halve until it is alone.
            Err(Error::Internal(cause)) if jobs.len() > 1 => {
                debug!(%cause, jobs = jobs.len(), "batch is split");
                let half = answers.split_off(jobs.len() / 2);
                let (front, back) = jobs.split_at(jobs.len() / 2);
                open.push((back.into(), half));
                open.push((front.into(), answers));
            }
            Err(error) => answers
                .into_iter()
                .for_each(|waiting| drop(waiting.send(Err(error.clone())))),
        }
    }
    // A store that refuses at once says nothing about how much it can take.
    if let Some((_, oldest)) = held.first()
        && was_written
    {
        oldest.answered(flushed);
    }
}

async fn write(core: &Core, jobs: Arc<[NewJob]>, unit: Unit) -> Result<EnqueueAnswer> {
    let mut tries = 1;
    loop {
        match core.store.enqueue(jobs.clone(), unit).await {
            // The ids make it safe to run again: what was committed answers as existing.
            Err(Error::OutcomeUnknown) if tries < TRIES => tries += 1,
            Ok(mut answer) => {
                failpoint::reached("enqueue-committed");
                if tries > 1 {
                    mark_created(&jobs, &mut answer);
                }
                return Ok(answer);
            }
            refused => return refused,
        }
    }
}

/// After a run in doubt, what exists untouched was most likely created by that run: its caller asked once, so tell it
/// that the job is new.
fn mark_created(asked: &[NewJob], answer: &mut EnqueueAnswer) {
    for (new, enqueued) in asked.iter().zip(&mut answer.jobs) {
        if let Enqueued::Existed(job) = enqueued
            && (job.id, job.revision) == (new.id, 1)
        {
            *enqueued = Enqueued::Created(job.clone());
        }
    }
}

fn count(core: &Core, answers: &[Enqueued]) {
    core.metrics.batch("enqueue", answers.len());
    let created = answers.iter().filter_map(|answer| match answer {
        Enqueued::Created(job) => Some(&job.spec.queue),
        _ => None,
    });
    for queue in created.clone() {
        core.metrics.enqueued(queue, 1);
    }
    core.flows.count(Step::Enqueued, created);
}

fn accepted(
    enqueued: Enqueued,
    id: JobId,
    field: impl Fn(&str) -> String,
) -> Result<Option<Accepted>> {
    match enqueued {
        Enqueued::Created(job) => Ok(Some(Accepted {
            job,
            existed: false,
        })),
        Enqueued::Existed(job) => Ok(Some(Accepted { job, existed: true })),
        Enqueued::Conflict => Err(Error::IdConflict(id)),
        Enqueued::KeyConflict(job) => Err(Error::KeyConflict(job)),
        Enqueued::UniqueConflict(job) => Err(Error::UniqueConflict(job)),
        Enqueued::IdOutOfTime => {
            let why = format!(
                "must have been made within the last {ID_AGE_MAX:?} and not {ID_AHEAD_MAX:?} ahead"
            );
            Err(Error::field(field("job_id"), why))
        }
        Enqueued::StartTooFar => Err(Error::field(
            field("run_time"),
            format!("must be at most {SPAN_MAX:?} ahead"),
        )),
        Enqueued::ExpiresTooSoon => Err(Error::field(
            field("expire_time"),
            "must lie ahead, and after the time at which the job may run first",
        )),
        Enqueued::NotTried => Ok(None),
    }
}
