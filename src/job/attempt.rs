//! One hand-out of a job: the lease that allows it, how it ends, and the verdict on what its worker reports.

use std::time::Duration;

use super::Payload;
use super::id::{JobId, SessionId};
use super::state::JobState;
use super::time::Timestamp;
use crate::error::Violation;

/// The right to run one attempt of a job. Together with the session that holds it, it is the fence (I4): nobody else
/// can record a result for this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The number of this hand-out, from 1; it only grows.
    pub attempt: u32,
}

/// Why an attempt failed, as its worker said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    /// Class of the error, to group by.
    pub kind: String,
    /// One line for people.
    pub message: String,
    /// A stack trace or the like.
    pub detail: String,
    /// Do not retry, whatever budget is left.
    pub permanent: bool,
    /// Wait before the next attempt; `None`: the job's backoff.
    pub retry_after: Option<Duration>,
}

/// What is to be recorded about an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The handler returned.
    Success(Option<Payload>),
    /// The handler failed.
    Failure(Failure),
    /// The attempt's timeout is over. Counts as a failure; said by the node that watches the session.
    TimedOut,
    /// Given back without a verdict.
    Release {
        /// Wait before it is due again; the floor for releases in a row may make it longer.
        delay: Duration,
        /// For the job's history.
        reason: String,
    },
}

/// An attempt's end, asked to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Which attempt.
    pub lease: Lease,
    /// The session that claims to hold it.
    pub session: SessionId,
    /// How it ended.
    pub outcome: Outcome,
    /// Chance for the backoff, in `0.0..1.0`.
    pub chance: f64,
}

/// The answer to an [`Ending`]. A copy of the ending gets the same one, for as long as the job's row is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Durable, by this copy or an earlier one; the job's state as this verdict found it.
    Recorded(JobState),
    /// It never will be.
    Stale(StaleReason, JobState),
    /// This content cannot be taken; the lease stands.
    Rejected(Violation),
    /// There is no such job (any more): nothing can be said.
    Unknown,
}

/// Why a result will never be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StaleReason {
    /// Another attempt or session has, or had, the job since.
    Superseded,
    /// The job was cancelled.
    Cancelled,
    /// The attempt's timeout was recorded before.
    TimedOut,
    /// Another result of this attempt, or of the job, is recorded.
    Finished,
}

impl StaleReason {
    /// The reason's word on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superseded => "SUPERSEDED",
            Self::Cancelled => "CANCELLED",
            Self::TimedOut => "TIMED_OUT",
            Self::Finished => "FINISHED",
        }
    }
}

/// How one hand-out ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum AttemptOutcome {
    /// Its result is the job's result.
    Succeeded = 1,
    /// Its worker reported a failure.
    Failed = 2,
    /// It ran longer than its timeout.
    TimedOut = 3,
    /// Its worker was not heard of within the lease's time.
    LeaseLost = 4,
    /// Its worker gave it back.
    Released = 6,
    /// The job was cancelled while it ran.
    Cancelled = 7,
}

impl AttemptOutcome {
    const ALL: [Self; 6] = [
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::LeaseLost,
        Self::Released,
        Self::Cancelled,
    ];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The outcome of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.number() == number)
    }

    /// The outcome's one name: on the wire, in JSON, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::LeaseLost => "LEASE_LOST",
            Self::Released => "RELEASED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A line of a job's history: an attempt that ended without success. (The success is the job itself.)
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    /// Its number.
    pub attempt: u32,
    /// Name of its worker.
    pub worker: String,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// What its worker said, or the reason of its release or cancel as `message`.
    pub failure: Option<Failure>,
    /// When it was handed out.
    pub start_time: Timestamp,
    /// When its end was recorded.
    pub end_time: Timestamp,
}
