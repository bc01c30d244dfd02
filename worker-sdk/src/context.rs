//! What a handler knows about the attempt it runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::proto;
use crate::session::wire_duration;

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
}

impl Context {
    pub(crate) fn new(job: &mut proto::LeasedJob, token: CancellationToken) -> Self {
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
