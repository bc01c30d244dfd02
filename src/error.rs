//! The one error type, and the one table that says what each error is over gRPC and over HTTP.
//!
//! Expected answers are values ([`crate::job::Verdict`], [`crate::store::Enqueued`]), not errors.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::job::{BulkId, JobId, JobState};

/// Result of a call that may fail as a whole.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its path, as the caller wrote it: `job.payload`, `requests[17].job.queue`.
    pub field: String,
    /// What it must be. Lower case, no full stop, with the bound; never the value itself.
    pub why: String,
    /// The stable word for it.
    pub reason: ViolationReason,
}

/// Bytes of a field's path that are kept: the name of an unknown field is the caller's own text.
const FIELD_BYTES_MAX: usize = 200;

/// The stable word for a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViolationReason {
    /// Missing, ill-formed or out of bounds.
    FieldInvalid,
    /// A body over its limit.
    PayloadTooLarge,
}

impl Violation {
    /// A field that is missing, ill-formed or out of bounds.
    pub fn field(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            field: cut(field.into()),
            why: why.into(),
            reason: ViolationReason::FieldInvalid,
        }
    }

    /// A body of `size` bytes where `max` are allowed.
    pub fn too_large(field: impl Into<String>, size: usize, max: usize) -> Self {
        let why = format!("has {size} bytes, more than {max}");
        Self {
            field: cut(field.into()),
            why,
            reason: ViolationReason::PayloadTooLarge,
        }
    }
}

fn cut(mut field: String) -> String {
    field.truncate(field.floor_char_boundary(FIELD_BYTES_MAX));
    field
}

/// Why a call failed. Cheap to clone: all callers of a failed batch get the same one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request cannot be taken as it is; every violation that was found.
    #[error("{}", Violations(.0))]
    InvalidArgument(Vec<Violation>),
    /// There is no such job, or it is not there any more.
    #[error("no job {0}")]
    JobNotFound(String),
    /// Nothing was ever enqueued in such a queue, set of it, or takes jobs of it.
    #[error("no queue {0}")]
    QueueNotFound(String),
    /// There is no such session, or its worker has left or is lost.
    #[error("no session {0}")]
    SessionNotFound(String),
    /// There is no such node, or it has left.
    #[error("no node {0}")]
    NodeNotFound(String),
    /// There is no such bulk, or it is not kept any more.
    #[error("no bulk {0}")]
    BulkNotFound(String),
    /// The id is that of a bulk of another request.
    #[error("bulk {0} was another request")]
    BulkConflict(BulkId),
    /// What is to be changed is not what the caller has read.
    #[error("the queue has changed since this etag was read")]
    EtagMismatch,
    /// The id is that of a job of another request, or of one that was deleted.
    #[error("job {0} was another request, or was deleted")]
    IdConflict(JobId),
    /// The idempotency key is that of a job of another request.
    #[error("the idempotency key is that of job {0}, which was another request")]
    KeyConflict(JobId),
    /// The unique key is held by this job, which is not final.
    #[error("the unique key is held by job {0}")]
    UniqueConflict(JobId),
    /// The job cannot be brought back while another one holds its unique key.
    #[error("job {job} cannot come back: its unique key is held by job {holder}")]
    UniqueKeyHeld {
        /// The job.
        job: JobId,
        /// Who has its key.
        holder: JobId,
    },
    /// The job is in a state in which this cannot be done.
    #[error("job {job} is {}, which does not allow to {verb} it", .is.name())]
    WrongState {
        /// The job.
        job: JobId,
        /// Its state.
        is: JobState,
        /// What was asked for, as a verb.
        verb: &'static str,
    },
    /// A limit of this node is reached.
    #[error("{limit}; try again later")]
    LimitReached {
        /// Which one.
        limit: Limit,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// A store is away, or too busy to answer in time. Nothing is known to have happened.
    #[error("{what} is not available")]
    Unavailable {
        /// Which part.
        what: &'static str,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// This node is leaving.
    #[error("this node is draining")]
    Draining,
    /// The call may or may not have taken effect. Safe to repeat with the same id.
    #[error("the outcome is not known; repeat the call with the same id")]
    OutcomeUnknown,
    /// A request whose message or body does not end.
    #[error("the request did not end within {0:?}")]
    BodyTimeout(Duration),
    /// A stream that does not say Hello in time.
    #[error("no Hello within 5 s")]
    HelloMissed,
    /// A session that was not renewed in time.
    #[error("no heartbeat within the lease's time")]
    HeartbeatMissed,
    /// A newer stream has this session.
    #[error("the session moved to a newer stream")]
    SessionMoved,
    /// A message that the protocol does not allow here.
    #[error("{0}")]
    ProtocolViolation(String),
    /// A worker that could not receive the largest job allowed.
    #[error("max_frame_bytes {got} is below {min}, the largest job would not fit")]
    FrameLimitTooSmall {
        /// What its Hello says.
        got: u32,
        /// The least that is needed.
        min: u32,
    },
    /// A protocol that this server does not speak.
    #[error("protocol {got} is not spoken here, only {min} to {max}")]
    ProtocolVersion {
        /// What the Hello says.
        got: u32,
        /// Oldest that is spoken.
        min: u32,
        /// Newest that is spoken.
        max: u32,
    },
    /// Our bug, or a broken row. The cause goes to the log only.
    #[error("internal error")]
    Internal(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

/// A bound that keeps a node from being overrun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Calls that wait for the store.
    Busy,
    /// Streams on this node.
    Streams,
    /// Bytes that wait for a worker that does not read.
    Outbox,
    /// Queues of which something is set.
    Queues,
    /// Bulks that have not ended, or are kept.
    Bulks,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "too many calls wait for the store",
            Self::Streams => "too many streams on this node",
            Self::Outbox => "the worker does not read what it is sent",
            Self::Queues => "something is set of too many queues",
            Self::Bulks => "too many bulks have not ended, or are kept",
        })
    }
}

/// What an error is called outside: a row of the table in [`Error::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// Number of the gRPC status.
    pub grpc: i32,
    /// Status of the HTTP answer.
    pub http: u16,
    /// Stable word: ErrorInfo.reason, problem+json `reason`, label of metrics.
    pub reason: &'static str,
}

impl Error {
    /// One violation.
    pub fn field(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::InvalidArgument(vec![Violation::field(field, why)])
    }

    /// Our bug: keeps the cause for the log.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(Arc::from(cause.into()))
    }

    /// A part that is away for now.
    pub fn unavailable(what: &'static str) -> Self {
        Self::Unavailable {
            what,
            retry_after: Duration::from_secs(1),
        }
    }

    /// The table of errors.
    pub fn code(&self) -> Code {
        let (grpc, http, reason) = match self {
            Self::InvalidArgument(violations) => {
                match violations
                    .iter()
                    .any(|v| v.reason == ViolationReason::PayloadTooLarge)
                {
                    true => (3, 413, "PAYLOAD_TOO_LARGE"),
                    false => (3, 400, "FIELD_INVALID"),
                }
            }
            Self::ProtocolViolation(_) => (3, 400, "PROTOCOL_VIOLATION"),
            Self::OutcomeUnknown => (4, 504, "UNKNOWN_OUTCOME"),
            Self::BodyTimeout(_) => (4, 408, "BODY_TIMEOUT"),
            Self::HelloMissed => (4, 408, "HELLO_MISSED"),
            Self::HeartbeatMissed => (4, 408, "HEARTBEAT_MISSED"),
            Self::JobNotFound(_) => (5, 404, "JOB_NOT_FOUND"),
            Self::QueueNotFound(_) => (5, 404, "QUEUE_NOT_FOUND"),
            Self::SessionNotFound(_) => (5, 404, "SESSION_NOT_FOUND"),
            Self::NodeNotFound(_) => (5, 404, "NODE_NOT_FOUND"),
            Self::BulkNotFound(_) => (5, 404, "BULK_NOT_FOUND"),
            Self::BulkConflict(_) => (6, 409, "BULK_CONFLICT"),
            Self::IdConflict(_) => (6, 409, "ID_CONFLICT"),
            Self::KeyConflict(_) => (6, 409, "KEY_CONFLICT"),
            Self::UniqueConflict(_) => (6, 409, "UNIQUE_CONFLICT"),
            Self::LimitReached { limit, .. } => match limit {
                Limit::Streams => (8, 429, "TOO_MANY_STREAMS"),
                Limit::Busy => (8, 429, "OVERLOADED"),
                Limit::Outbox => (8, 429, "SLOW_READER"),
                Limit::Queues => (8, 429, "TOO_MANY_QUEUES"),
                Limit::Bulks => (8, 429, "TOO_MANY_BULKS"),
            },
            Self::WrongState { .. } => (9, 409, "JOB_STATE"),
            Self::UniqueKeyHeld { .. } => (9, 409, "UNIQUE_KEY_HELD"),
            Self::FrameLimitTooSmall { .. } => (9, 400, "FRAME_LIMIT_TOO_SMALL"),
            Self::EtagMismatch => (10, 409, "ETAG_MISMATCH"),
            Self::SessionMoved => (10, 409, "SESSION_MOVED"),
            Self::ProtocolVersion { .. } => (12, 501, "PROTOCOL_VERSION"),
            Self::Internal(_) => (13, 500, "INTERNAL"),
            Self::Unavailable { .. } => (14, 503, "STORE_UNAVAILABLE"),
            Self::Draining => (14, 503, "DRAINING"),
        };
        Code { grpc, http, reason }
    }

    /// When it is worth trying again, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::LimitReached { retry_after, .. } | Self::Unavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::Draining => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

struct Violations<'a>(&'a [Violation]);

impl fmt::Display for Violations<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("the request is not valid"),
            [first, rest @ ..] => {
                write!(f, "{} {}", first.field, first.why)?;
                match rest.len() {
                    0 => Ok(()),
                    n => write!(f, ", and {n} more"),
                }
            }
        }
    }
}
