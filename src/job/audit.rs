//! Who has steered what: a record of the few changes that people and their tools make by hand.

use std::fmt;
use std::sync::Arc;

use super::draft::is_storable;
use super::limits::{REASON_BYTES_MAX, WORD_BYTES_MAX};
use super::time::Timestamp;
use crate::error::Violation;

/// Who asks for a change, as his face knows it: what the caller says of itself. Empty: it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Actor(Arc<str>);

/// Where a caller says who it is: metadata over gRPC, a header over HTTP.
pub const ACTOR_FIELD: &str = "leasehold-actor";

impl Actor {
    /// Reads what a caller says of itself: nothing, or one word.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn said<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<Self, Violation> {
        let Some(value) = values.next() else {
            return Ok(Self::default());
        };
        let text = std::str::from_utf8(value).ok();
        match (text.and_then(Self::parse), values.next()) {
            (Some(actor), None) => Ok(actor),
            _ => {
                let why =
                    format!("must be given once, with at most {WORD_BYTES_MAX} bytes of UTF-8");
                Err(Violation::field(ACTOR_FIELD, why))
            }
        }
    }

    /// Takes a word; `None` if it is longer than [`WORD_BYTES_MAX`] or has U+0000 in it.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() <= WORD_BYTES_MAX && is_storable(text)).then(|| Self(text.into()))
    }

    /// Takes a word that the store gives back.
    pub fn from_store(text: &str) -> Self {
        Self(text.into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text can be the reason of a change.
pub fn is_reason(text: &str) -> bool {
    text.len() <= REASON_BYTES_MAX && is_storable(text)
}

/// Who wants a change, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct By {
    /// Who.
    pub actor: Actor,
    /// Why, in his words; empty: he does not say. [`is_reason`] holds.
    pub reason: String,
}

/// For a reason alone, by nobody who says who he is.
impl From<&str> for By {
    fn from(reason: &str) -> Self {
        Self {
            actor: Actor::default(),
            reason: reason.into(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum AuditAction {
    /// A queue was paused.
    PauseQueue = 1,
    /// A queue was resumed.
    ResumeQueue = 2,
    /// Defaults of a queue were changed.
    UpdateQueue = 3,
    /// A job was cancelled.
    CancelJob = 4,
    /// A job was brought back.
    RetryJob = 5,
    /// A job was given another time.
    RescheduleJob = 6,
    /// A job was given another priority.
    SetJobPriority = 7,
    /// A job was deleted.
    DeleteJob = 8,
    /// A session was asked to leave.
    DrainSession = 13,
    /// A node was asked to leave.
    DrainNode = 14,
    /// A bulk was started.
    StartBulk = 9,
    /// A bulk was aborted.
    AbortBulk = 10,
    /// A bulk has ended by itself.
    EndBulk = 11,
    /// A bulk was started that purges a queue.
    PurgeQueue = 12,
}

impl AuditAction {
    const ALL: [Self; 14] = [
        Self::PauseQueue,
        Self::ResumeQueue,
        Self::UpdateQueue,
        Self::CancelJob,
        Self::RetryJob,
        Self::RescheduleJob,
        Self::SetJobPriority,
        Self::DeleteJob,
        Self::DrainSession,
        Self::DrainNode,
        Self::StartBulk,
        Self::AbortBulk,
        Self::EndBulk,
        Self::PurgeQueue,
    ];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The action of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.number() == number)
    }

    /// Its one name: on the wire, in JSON, logs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PauseQueue => "PAUSE_QUEUE",
            Self::ResumeQueue => "RESUME_QUEUE",
            Self::UpdateQueue => "UPDATE_QUEUE",
            Self::CancelJob => "CANCEL_JOB",
            Self::RetryJob => "RETRY_JOB",
            Self::RescheduleJob => "RESCHEDULE_JOB",
            Self::SetJobPriority => "SET_JOB_PRIORITY",
            Self::DeleteJob => "DELETE_JOB",
            Self::DrainSession => "DRAIN_SESSION",
            Self::DrainNode => "DRAIN_NODE",
            Self::StartBulk => "START_BULK",
            Self::AbortBulk => "ABORT_BULK",
            Self::EndBulk => "END_BULK",
            Self::PurgeQueue => "PURGE_QUEUE",
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// Its number; a later one is greater, but for those made at the same moment.
    pub id: i64,
    /// When it was made.
    pub time: Timestamp,
    /// What was done.
    pub action: AuditAction,
    /// To what: the name of a queue, or the id of a job, a bulk, a session or a node.
    pub subject: String,
    /// How many things were changed.
    pub count: u64,
    /// By whom, and why.
    pub by: By,
}
