//! What a handler knows about the attempt it runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::codec::Sealer;
use crate::failure::JobError;
use crate::logger::Logger;
use crate::proto::{self, LogLevel};
use crate::reporter::Reporter;
use crate::run::Thread;
use crate::session::{Saved, wire_duration};
use crate::state::States;
use crate::steps::Steps;

/// As the wire allows.
const NOTE_BYTES_MAX: usize = 1024;
const CHECKPOINT_BYTES_MAX: usize = 64 * 1024;

/// What all attempts of a worker have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) states: States,
    pub(crate) sealer: Sealer,
}

/// The attempt a handler runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    job: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lease: proto::Lease,
    queue: String,
    kind: String,
    headers: HashMap<String, String>,
    failures: u32,
    max_attempts: u32,
    waited: Duration,
    deadline: Option<Instant>,
    token: CancellationToken,
    reporter: Reporter,
    logger: Logger,
    shared: Arc<Shared>,
    checkpoint: Mutex<Option<Bytes>>,
    steps: tokio::sync::Mutex<Option<Steps>>,
    thread: Thread,
}

impl Context {
    pub(crate) fn new(
        job: &mut proto::LeasedJob,
        token: CancellationToken,
        reporter: Reporter,
        logger: Logger,
        shared: Arc<Shared>,
    ) -> Self {
        let deadline =
            wire_duration(job.time_left).and_then(|left| Instant::now().checked_add(left));
        Self {
            job: Arc::new(Inner {
                lease: job.lease.take().unwrap_or_default(),
                queue: std::mem::take(&mut job.queue),
                kind: std::mem::take(&mut job.kind),
                headers: std::mem::take(&mut job.headers),
                failures: job.failures,
                max_attempts: job.max_attempts,
                waited: wire_duration(job.waited).unwrap_or_default(),
                deadline,
                token,
                reporter,
                logger,
                shared,
                checkpoint: Mutex::new(job.checkpoint.take()),
                steps: tokio::sync::Mutex::new(None),
                thread: Thread::default(),
            }),
        }
    }

    /// The job's id, a UUIDv7 in its 36-character form.
    pub fn job_id(&self) -> &str {
        &self.job.lease.job_id
    }

    /// Which hand-out of the job this is, from 1. It only grows, so it is a
    /// **fencing number**: a worker that was cut off may run an old attempt while
    /// another runs a newer one, and a system downstream can tell them apart.
    /// Keep the highest number seen beside what the job writes, and let the
    /// write refuse a lower one:
    ///
    /// ```sql
    /// UPDATE invoices SET pdf = $1, written_by_attempt = $2
    ///  WHERE job_id = $3 AND written_by_attempt <= $2
    /// ```
    pub fn attempt(&self) -> u32 {
        self.job.lease.attempt
    }

    /// The line it waited in.
    pub fn queue(&self) -> &str {
        &self.job.queue
    }

    /// Its kind: the name this handler is registered under.
    pub fn kind(&self) -> &str {
        &self.job.kind
    }

    /// What the caller sent along, as `traceparent`.
    pub fn headers(&self) -> &HashMap<String, String> {
        &self.job.headers
    }

    /// Attempts that failed or timed out before this one.
    pub fn failures(&self) -> u32 {
        self.job.failures
    }

    /// With so many failures the job is FAILED for good.
    pub fn max_attempts(&self) -> u32 {
        self.job.max_attempts
    }

    /// From the time the job was due to the moment it was handed out.
    pub fn waited(&self) -> Duration {
        self.job.waited
    }

    /// When this attempt times out; `None`: never.
    pub fn deadline(&self) -> Option<Instant> {
        self.job.deadline
    }

    /// Until the attempt times out, zero when it has; `None`: it has no timeout.
    pub fn time_left(&self) -> Option<Duration> {
        self.job
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// What was given to the worker by
    /// [`WorkerBuilder::state`](crate::WorkerBuilder::state): a pool of connections, a
    /// client, the configuration.
    ///
    /// # Errors
    /// `StateMissing`, when it was given nothing of this type.
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, JobError> {
        self.job.shared.states.get().ok_or_else(|| {
            let name = std::any::type_name::<T>();
            JobError::new(format!("the worker has no state of type {name}"))
                .with_type("StateMissing")
        })
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.job.shared.sealer
    }

    /// Tells people how far the attempt is: 0 to 100 percent, and a word, at most
    /// 1 KiB of it. It shows in GetJob, and costs next to nothing: of many
    /// reports the newest is sent, and one that comes right before the end of the
    /// attempt may be overtaken by it.
    pub fn progress(&self, percent: u32, note: impl Into<String>) {
        let mut note = note.into().replace('\0', " ");
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
        self.job.reporter.say(proto::Progress {
            percent: Some(percent.min(100)),
            note: Some(note),
            ..Default::default()
        });
    }

    /// Says something for people who look at the job: GetJob, `leasehold jobs logs` and
    /// `GET /jobs/{id}` show it, and who watches the job sees it within a second. It is
    /// for a few lines that tell how an attempt went, not for all that a program logs:
    /// of a job's lines the newest 1,000, and 256 KiB of them, are kept, over all its
    /// attempts.
    ///
    /// It never waits. Lines are sent a few times a second, and the last ones with the
    /// result, so that none is missed by who sees that; what is said after the handler has
    /// returned is lost. While no server can be reached,
    /// as many as a job keeps are kept here, the newest ones; what is dropped is counted
    /// in the job. A line longer than 8 KiB is cut, and says so.
    ///
    /// **Not sealed**: unlike payloads and checkpoints, lines are never sealed by a
    /// [`Codec`](crate::Codec), as people are to read them. Leave out what the server
    /// must not know.
    pub fn log(&self, level: LogLevel, message: impl Into<String>) {
        self.job.logger.say(level, message.into());
    }

    /// The newest checkpoint of this job: of this attempt, or of an earlier one.
    pub fn checkpoint(&self) -> Option<Bytes> {
        self.lock().clone()
    }

    /// Keeps these bytes, at most 64 KiB, for the next attempt of the job, should
    /// there be one, in the place of those kept before. Returns when they are
    /// durable. Cancel safe, but then it is not known whether they are kept.
    ///
    /// Not to be mixed with [`step`](Self::step) in one handler, which keeps its
    /// own checkpoint.
    ///
    /// # Errors
    /// `CheckpointTooLarge`, permanent; `CheckpointRefused`, permanent, with the
    /// server's reason; `LeaseLost` when the attempt is not this worker's any
    /// more: the handler should end.
    pub async fn save_checkpoint(&self, data: impl Into<Bytes>) -> Result<(), JobError> {
        let data = data.into();
        let sealed = self.sealer().seal_bytes(data.clone())?;
        if sealed.len() > CHECKPOINT_BYTES_MAX {
            let text = format!(
                "the checkpoint has {} bytes, more than {CHECKPOINT_BYTES_MAX}",
                sealed.len()
            );
            return Err(JobError::new(text)
                .with_type("CheckpointTooLarge")
                .permanent());
        }
        let report = proto::Progress {
            checkpoint: Some(sealed),
            ..Default::default()
        };
        match self.job.reporter.save(report).await.await {
            Ok(Saved::Durable) => {
                *self.lock() = Some(data);
                Ok(())
            }
            Ok(Saved::Refused(why)) => Err(JobError::new(why)
                .with_type("CheckpointRefused")
                .permanent()),
            Ok(Saved::Lost) | Err(_) => {
                Err(JobError::new("the attempt is not ours any more").with_type("LeaseLost"))
            }
        }
    }

    /// Makes a sealed checkpoint of an earlier attempt readable, before the handler runs.
    pub(crate) fn open_checkpoint(&self) -> Result<(), JobError> {
        let mut checkpoint = self.lock();
        if let Some(sealed) = checkpoint.take() {
            *checkpoint = Some(self.sealer().open_bytes(sealed)?);
        }
        Ok(())
    }

    pub(crate) fn thread(&self) -> &Thread {
        &self.job.thread
    }

    pub(crate) async fn steps(&self) -> tokio::sync::MutexGuard<'_, Option<Steps>> {
        self.job.steps.lock().await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Bytes>> {
        let checkpoint = self.job.checkpoint.lock();
        checkpoint.unwrap_or_else(PoisonError::into_inner)
    }

    /// True once the handler should end: the job was cancelled or timed out, the
    /// lease is lost or could not be renewed, or the worker shuts down. An async
    /// handler that does not end by itself within the worker's stop grace is
    /// dropped at its next await; a blocking one has only this to go by.
    pub fn is_cancelled(&self) -> bool {
        self.job.token.is_cancelled()
    }

    /// Completes once the handler should end, as [`is_cancelled`](Self::is_cancelled) says.
    /// Cancel safe.
    pub async fn cancelled(&self) {
        self.job.token.cancelled().await;
    }

    /// The token itself, to be passed on.
    pub fn cancellation_token(&self) -> &CancellationToken {
        &self.job.token
    }
}
