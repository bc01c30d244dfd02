//! What the benchmark itself knows of its jobs: which were accepted, when each was to begin, and which have run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;
use worker_sdk::proto::payload::Body;
use worker_sdk::proto::{EnqueueRequest, JobSpec};
use worker_sdk::{NewJob, Payload};

use super::figure::Times;
use crate::cli::exit::Failure;

/// Kind of all jobs.
pub(super) const KIND: &str = "bench";
const CONTENT_TYPE: &str = "application/octet-stream";
/// A benchmark that comes no further for so long has failed.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// The shortest retention that a server keeps to: who measures a server of others leaves no more than that.
pub(super) const RETENTION: Duration = Duration::from_secs(3600);
const NOT_TIMED: u64 = u64::MAX;

/// The jobs of one run, numbered from 0.
pub(super) struct Ledger {
    queue: String,
    payload: usize,
    begun: Instant,
    /// Microseconds after `begun` at which the job was to begin.
    due: Vec<AtomicU64>,
    /// A bit a job.
    ran: Vec<AtomicU64>,
    runs: AtomicU64,
    again: AtomicU64,
    bad_answers: AtomicU64,
    progress: Notify,
    accepted: Mutex<Vec<Uuid>>,
    refused: AtomicBool,
    started: Mutex<Times>,
}

impl Ledger {
    pub(super) fn new(queue: String, jobs: u64, payload: usize) -> Self {
        let jobs = usize::try_from(jobs).unwrap_or(usize::MAX);
        Self {
            queue,
            payload,
            begun: Instant::now(),
            due: (0..jobs).map(|_| AtomicU64::new(NOT_TIMED)).collect(),
            ran: (0..jobs.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            runs: AtomicU64::new(0),
            again: AtomicU64::new(0),
            bad_answers: AtomicU64::new(0),
            progress: Notify::new(),
            accepted: Mutex::new(Vec::with_capacity(jobs)),
            refused: AtomicBool::new(false),
            started: Mutex::new(Times::new()),
        }
    }

    pub(super) fn queue(&self) -> &str {
        &self.queue
    }

    /// How many jobs there are to be.
    pub(super) fn jobs(&self) -> u64 {
        self.due.len() as u64
    }

    /// How many jobs are to run: those that there are to be, or fewer if some were refused.
    pub(super) fn expected(&self) -> u64 {
        match self.refused.load(Ordering::Acquire) {
            true => lock(&self.accepted).len() as u64,
            false => self.jobs(),
        }
    }

    /// From now on only what was accepted is awaited.
    pub(super) fn some_were_refused(&self) {
        self.refused.store(true, Ordering::Release);
    }

    /// The job of this number.
    pub(super) fn job(&self, number: u64) -> NewJob {
        NewJob::raw(KIND, CONTENT_TYPE, self.content(number))
            .queue(&self.queue)
            .retention(RETENTION)
    }

    /// The same as a bare request, for a call that nobody repeats.
    pub(super) fn request(&self, number: u64) -> EnqueueRequest {
        let payload = Payload {
            content_type: CONTENT_TYPE.into(),
            body: Some(Body::Data(self.content(number).into())),
        };
        EnqueueRequest {
            job: Some(JobSpec {
                queue: self.queue.clone(),
                kind: KIND.into(),
                payload: Some(payload),
                retention: prost_types::Duration::try_from(RETENTION).ok(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn content(&self, number: u64) -> Vec<u8> {
        let mut content = vec![b'.'; self.payload];
        for (byte, of) in content.iter_mut().zip(number.to_le_bytes()) {
            *byte = of;
        }
        content
    }

    /// The moment from which the job's latency counts.
    pub(super) fn due_at(&self, number: u64, at: Instant) {
        if let Some(due) = slot(&self.due, number) {
            let after = at.saturating_duration_since(self.begun);
            due.store(micros(after), Ordering::Relaxed);
        }
    }

    /// The server said that it has these.
    pub(super) fn accepted(&self, ids: impl IntoIterator<Item = Uuid>) {
        lock(&self.accepted).extend(ids);
    }

    /// A call failed as none should.
    pub(super) fn answered_badly(&self) {
        self.bad_answers.fetch_add(1, Ordering::Relaxed);
    }

    /// How many did.
    pub(super) fn bad_answers(&self) -> u64 {
        self.bad_answers.load(Ordering::Relaxed)
    }

    /// Ids of all that were accepted.
    pub(super) fn ids(&self) -> Vec<Uuid> {
        lock(&self.accepted).clone()
    }

    /// A handler starts with this payload.
    pub(super) fn starts(&self, payload: &Payload) {
        let Some(number) = number_in(payload) else {
            return;
        };
        if let Some(due) = slot(&self.due, number).map(|due| due.load(Ordering::Relaxed))
            && due != NOT_TIMED
        {
            let late = micros(self.begun.elapsed()).saturating_sub(due);
            lock(&self.started).record(Duration::from_micros(late));
        }
        let bit = 1 << (number % 64);
        let before = slot(&self.ran, number / 64).map(|word| word.fetch_or(bit, Ordering::Relaxed));
        match before {
            Some(before) if before & bit == 0 => {
                let runs = self.runs.fetch_add(1, Ordering::AcqRel) + 1;
                if runs == self.jobs() {
                    self.progress.notify_waiters();
                }
            }
            _ => {
                self.again.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Jobs that ran at least once.
    pub(super) fn ran(&self) -> u64 {
        self.runs.load(Ordering::Acquire)
    }

    /// Runs beyond the first of a job.
    pub(super) fn again(&self) -> u64 {
        self.again.load(Ordering::Relaxed)
    }

    /// From when a job was to begin to the start of its handler.
    pub(super) fn started(&self) -> Times {
        lock(&self.started).clone()
    }

    /// Waits until so many jobs have run.
    pub(super) async fn until_ran(&self, jobs: u64) -> Result<(), Failure> {
        let mut seen = self.ran();
        let mut at = Instant::now();
        while self.ran() < jobs {
            let told = self.progress.notified();
            // Only the last job tells; short waits in between cost nothing that is measured.
            let pause = match jobs == self.jobs() {
                true => Duration::from_millis(50),
                false => Duration::from_millis(1),
            };
            if self.ran() < jobs {
                let _ = tokio::time::timeout(pause, told).await;
            }
            let ran = self.ran();
            if ran > seen {
                (seen, at) = (ran, Instant::now());
            } else if at.elapsed() > STALLED_AFTER {
                return Err(Failure::trouble(format!(
                    "{ran} of {jobs} jobs of queue {} have run, and none for {STALLED_AFTER:?}",
                    self.queue
                )));
            }
        }
        Ok(())
    }
}

fn number_in(payload: &Payload) -> Option<u64> {
    let Some(Body::Data(data)) = &payload.body else {
        return None;
    };
    let bytes = data.get(..8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn slot(all: &[AtomicU64], number: u64) -> Option<&AtomicU64> {
    all.get(usize::try_from(number).ok()?)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(NOT_TIMED - 1)
}

/// Nothing panics while it is held.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
