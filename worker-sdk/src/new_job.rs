//! What a caller says about a job it enqueues.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;
use crate::handler::json;
use crate::proto;

/// A job to be enqueued. What is not set has the queue's default, or the server's.
///
/// Its id is made with it, so that enqueueing the same `NewJob` again, by the
/// client itself after a lost connection or by you, gives the same job. The
/// server takes an id within an hour of its making.
#[derive(Clone, Debug)]
#[must_use = "a job is enqueued by `Client::enqueue`"]
pub struct NewJob {
    id: String,
    idempotency_key: String,
    unique_conflict: proto::UniqueConflict,
    spec: proto::JobSpec,
    fault: Option<String>,
}

impl NewJob {
    /// A job with this payload as JSON.
    ///
    /// # Errors
    /// [`Error::Encode`] when the payload cannot be written as JSON.
    pub fn new<T: Serialize + ?Sized>(kind: impl Into<String>, payload: &T) -> Result<Self, Error> {
        json(payload)
            .map(|payload| Self::of(kind.into(), payload))
            .map_err(Error::Encode)
    }

    /// A job with these bytes, which nobody interprets.
    pub fn raw(
        kind: impl Into<String>,
        content_type: impl Into<String>,
        data: impl Into<Bytes>,
    ) -> Self {
        let body = Some(proto::payload::Body::Data(data.into()));
        Self::of(
            kind.into(),
            proto::Payload {
                content_type: content_type.into(),
                body,
            },
        )
    }

    fn of(kind: String, payload: proto::Payload) -> Self {
        let spec = proto::JobSpec {
            queue: "default".into(),
            kind,
            payload: Some(payload),
            ..Default::default()
        };
        Self {
            id: Uuid::now_v7().to_string(),
            idempotency_key: String::new(),
            unique_conflict: proto::UniqueConflict::Unspecified,
            spec,
            fault: None,
        }
    }

    /// The line it waits in. Default "default".
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.spec.queue = queue.into();
        self
    }

    /// Order of hand-out within its queue. Default normal.
    pub fn priority(mut self, priority: proto::Priority) -> Self {
        self.spec.set_priority(priority);
        self
    }

    /// Not before this time from now, at most 10 years.
    pub fn delay(mut self, delay: Duration) -> Self {
        let delay = self.wire("delay", delay);
        self.spec.start = delay.map(proto::job_spec::Start::Delay);
        self
    }

    /// Not before this time, at most 10 years ahead.
    pub fn run_time(mut self, time: SystemTime) -> Self {
        self.spec.start = Some(proto::job_spec::Start::RunTime(time.into()));
        self
    }

    /// If it has not begun within this time from now, it never does, and is
    /// FAILED with type `EXPIRED`. Default: no time is too late.
    pub fn expires_in(mut self, span: Duration) -> Self {
        let span = self.wire("expire_in", span);
        self.spec.expiry = span.map(proto::job_spec::Expiry::ExpireIn);
        self
    }

    /// If it has not begun by this time, it never does, and is FAILED with type
    /// `EXPIRED`. Default: no time is too late.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.spec.expiry = Some(proto::job_spec::Expiry::ExpireTime(time.into()));
        self
    }

    /// How many attempts may fail before the job is FAILED. Default 25.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.spec.max_attempts = attempts;
        self
    }

    /// The wait after the first failure, its growth from one failure to the
    /// next, and the longest wait. Default 15 s, 2, 24 h.
    pub fn backoff(mut self, initial: Duration, factor: f64, max: Duration) -> Self {
        let (initial, max) = (
            self.wire("backoff.initial", initial),
            self.wire("backoff.max", max),
        );
        self.spec.backoff = Some(proto::Backoff {
            initial,
            max,
            factor,
        });
        self
    }

    /// How long one attempt may take, up to 30 days; zero: no limit. Default 1 h.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = self.wire("timeout", timeout);
        self
    }

    /// How long the job can be looked up once it is final. Default 7 days.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.spec.retention = self.wire("retention", retention);
        self
    }

    /// Something to list and filter by.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.labels.insert(key.into(), value.into());
        self
    }

    /// Something for the worker, as `traceparent`.
    pub fn header(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.headers.insert(key.into(), value.into());
        self
    }

    /// What the job is about, in your words, at most 255 bytes: as long as a job
    /// of its queue with this key is kept, enqueueing the same thing again gives
    /// that job, and another thing is refused with reason `KEY_CONFLICT`.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = key.into();
        self
    }

    /// What the job works on, in your words, at most 255 bytes: at most one job of
    /// its queue that is not final has it. Enqueueing a second one gives the first,
    /// unless [`unique_conflict`](Self::unique_conflict) says otherwise.
    pub fn unique_key(mut self, key: impl Into<String>) -> Self {
        self.spec.unique_key = key.into();
        self
    }

    /// What becomes of this job when its unique key is held by another one.
    /// Default: there is no new job, and the answer is the one that is there.
    pub fn unique_conflict(mut self, conflict: proto::UniqueConflict) -> Self {
        self.unique_conflict = conflict;
        self
    }

    /// An id of your own, a UUIDv7 of the last hour.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// The id that the job will have, if none with its idempotency key is there, and
    /// none that holds its unique key.
    pub fn job_id(&self) -> &str {
        &self.id
    }

    /// # Errors
    /// [`Error::Config`] when a duration was too long for the wire.
    pub(crate) fn into_request(self) -> Result<proto::EnqueueRequest, Error> {
        match self.fault {
            Some(fault) => Err(Error::Config(fault)),
            None => Ok(proto::EnqueueRequest {
                job_id: self.id,
                idempotency_key: self.idempotency_key,
                job: Some(self.spec),
                unique_conflict: self.unique_conflict.into(),
            }),
        }
    }

    fn wire(&mut self, field: &str, duration: Duration) -> Option<prost_types::Duration> {
        let wire = prost_types::Duration::try_from(duration);
        if wire.is_err() {
            self.fault = Some(format!("{field} {duration:?} is too long"));
        }
        wire.ok()
    }
}
