//! The modes: what each does, and which of it is timed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use worker_sdk::{Client, JobState};

use super::audit::Audit;
use super::crew::Crew;
use super::figure::Sample;
use super::ledger::Ledger;
use super::options::{Args, Mode};
use super::stage::{Spent, Stage};
use super::{enqueue, overload, pace, soak, streams};
use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;

/// Handlers of the one worker of `idle`.
const IDLE_SLOTS: usize = 8;
/// Between two jobs of `idle`, so that what follows a job is over before the next.
const IDLE_PAUSE: Duration = Duration::from_millis(2);

/// Runs modes on a stage.
pub(super) struct Modes<'a> {
    pub(super) stage: &'a Stage,
    pub(super) args: &'a Args,
    clients: Vec<Client>,
}

/// What was measured, before the audit.
pub(super) struct Taken {
    pub(super) value: f64,
    pub(super) took: Duration,
    /// What everything had taken before and after.
    pub(super) spent: (Spent, Spent),
    pub(super) sample: Parts,
}

/// What else a sample has.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) latencies: BTreeMap<&'static str, super::figure::Latency>,
    pub(super) more: BTreeMap<&'static str, f64>,
    pub(super) series: Vec<BTreeMap<&'static str, f64>>,
}

impl<'a> Modes<'a> {
    pub(super) fn new(stage: &'a Stage, args: &'a Args) -> Result<Self, Failure> {
        let clients: Result<Vec<Client>, Failure> =
            (0..args.connections).map(|n| stage.client(n)).collect();
        Ok(Self {
            stage,
            args,
            clients: clients?,
        })
    }

    /// One run with so many jobs, and its audit.
    pub(super) async fn run(&self, mode: Mode, jobs: u64) -> Result<Sample, Failure> {
        if mode == Mode::Streams {
            return streams::run(self.stage, self.args).await;
        }
        let offer = match mode {
            // What the server can take, so that more can be offered.
            Mode::Overload => Some(overload::Offer::of(
                self.args,
                &Box::pin(self.run(Mode::Enqueue, jobs)).await?,
            )),
            _ => None,
        };
        let jobs = offer.as_ref().map_or(jobs, |offer| offer.jobs);
        let queue = self.stage.queue(mode.name());
        let ledger = Arc::new(Ledger::new(queue, jobs, self.args.payload));
        let (taken, state) = match mode {
            Mode::Enqueue => (
                self.enqueue(&ledger, self.args.in_flight, 1).await?,
                JobState::Queued,
            ),
            Mode::EnqueueBatch => (
                self.enqueue(&ledger, self.args.callers, self.args.batch)
                    .await?,
                JobState::Queued,
            ),
            Mode::Drain => (self.drain(&ledger).await?, JobState::Succeeded),
            Mode::Flow => (self.flow(&ledger).await?, JobState::Succeeded),
            Mode::Idle => (self.idle(&ledger).await?, JobState::Succeeded),
            Mode::Soak => (soak::run(self, &ledger).await?, JobState::Succeeded),
            Mode::Overload => (
                overload::run(self, &ledger, offer.unwrap_or_default()).await?,
                JobState::Queued,
            ),
            _ => (pace::steady(self, &ledger, 1).await?, JobState::Succeeded),
        };
        let client = self.client()?;
        let mut audit = Audit::of(client, &ledger, state).await?;
        // All were accepted, but for those that an overloaded server refused.
        let jobs = match mode {
            Mode::Overload => audit.accepted,
            _ => jobs,
        };
        // (What was not found cannot be waited for.)
        if state == JobState::Queued && audit.clean() {
            // Nothing is left to weigh on the next run, and what was accepted can be run, too.
            self.work_off(&ledger).await?;
            audit = Audit::of(client, &ledger, JobState::Succeeded).await?;
        }
        let (before, after) = taken.spent;
        let Parts {
            latencies,
            mut more,
            series,
        } = taken.sample;
        if let Some(bytes) = self.stage.memory() {
            more.insert("node_mib", mib(bytes as f64));
        }
        if let Some(bytes) = after.list_memory() {
            more.insert("redis_mib", mib(bytes));
        }
        Ok(Sample {
            value: taken.value,
            seconds: taken.took.as_secs_f64(),
            jobs,
            latencies,
            cost: after.a_job(&before, jobs),
            audit,
            more,
            series,
        })
    }

    pub(super) fn client(&self) -> Result<&Client, Failure> {
        self.clients
            .first()
            .ok_or_else(|| Failure::usage("no connections"))
    }

    pub(super) fn clients(&self) -> &[Client] {
        &self.clients
    }

    pub(super) fn crew(&self, ledger: &Arc<Ledger>) -> Result<Crew, Failure> {
        let Args { workers, slots, .. } = *self.args;
        Crew::start(self.stage, ledger, workers, slots)
    }

    async fn enqueue(
        &self,
        ledger: &Arc<Ledger>,
        callers: usize,
        batch: usize,
    ) -> Result<Taken, Failure> {
        let before = self.stage.spent().await;
        let begun = Instant::now();
        let calls = enqueue::all(&self.clients, ledger, callers, batch).await?;
        let took = begun.elapsed();
        let mut sample = Parts::default();
        sample.latencies.insert("call", calls.summary());
        Ok(Taken {
            value: rate(ledger.jobs(), took),
            took,
            spent: (before, self.stage.spent().await),
            sample,
        })
    }

    async fn prepare(&self, ledger: &Arc<Ledger>) -> Result<(), Failure> {
        let Args { callers, batch, .. } = *self.args;
        enqueue::all(&self.clients, ledger, callers, batch.max(2)).await?;
        Ok(())
    }

    /// From the start of the workers until the last has its receipts and has left.
    async fn drain(&self, ledger: &Arc<Ledger>) -> Result<Taken, Failure> {
        self.prepare(ledger).await?;
        let before = self.stage.spent().await;
        let begun = Instant::now();
        self.work_off(ledger).await?;
        let took = begun.elapsed();
        Ok(Taken {
            value: rate(ledger.jobs(), took),
            took,
            spent: (before, self.stage.spent().await),
            sample: Parts::default(),
        })
    }

    async fn work_off(&self, ledger: &Arc<Ledger>) -> Result<(), Failure> {
        let crew = self.crew(ledger)?;
        ledger.until_ran(ledger.expected()).await?;
        crew.leave().await
    }

    /// From the first call until the last worker has its receipts and has left.
    async fn flow(&self, ledger: &Arc<Ledger>) -> Result<Taken, Failure> {
        let before = self.stage.spent().await;
        let crew = self.crew(ledger)?;
        let begun = Instant::now();
        self.prepare(ledger).await?;
        let enqueued = begun.elapsed();
        ledger.until_ran(ledger.jobs()).await?;
        crew.leave().await?;
        let took = begun.elapsed();
        let mut sample = Parts::default();
        sample
            .latencies
            .insert("started", ledger.started().summary());
        sample
            .more
            .insert("enqueued_jobs_a_second", rate(ledger.jobs(), enqueued));
        Ok(Taken {
            value: rate(ledger.jobs(), took),
            took,
            spent: (before, self.stage.spent().await),
            sample,
        })
    }

    /// From the call to the start of the handler, while nothing else is under way.
    async fn idle(&self, ledger: &Arc<Ledger>) -> Result<Taken, Failure> {
        let client = self.client()?;
        let crew = Crew::start(self.stage, ledger, 1, IDLE_SLOTS)?;
        let mut calls = super::figure::Times::new();
        // The first one waits for the worker to connect, and is not counted.
        enqueue::one(client, ledger, 0).await.map_err(failure_of)?;
        ledger.until_ran(1).await?;
        tokio::time::sleep(IDLE_PAUSE).await;
        let before = self.stage.spent().await;
        let begun = Instant::now();
        for number in 1..ledger.jobs() {
            let at = Instant::now();
            ledger.due_at(number, at);
            enqueue::one(client, ledger, number)
                .await
                .map_err(failure_of)?;
            calls.record(at.elapsed());
            ledger.until_ran(number + 1).await?;
            tokio::time::sleep(IDLE_PAUSE).await;
        }
        let took = begun.elapsed();
        let after = self.stage.spent().await;
        crew.leave().await?;
        let mut sample = Parts::default();
        let started = ledger.started().summary();
        sample.latencies.insert("accepted", calls.summary());
        sample.latencies.insert("started", started);
        Ok(Taken {
            value: started.p50,
            took,
            spent: (before, after),
            sample,
        })
    }
}

pub(super) fn rate(jobs: u64, took: Duration) -> f64 {
    jobs as f64 / took.as_secs_f64().max(1e-9)
}

pub(super) fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
