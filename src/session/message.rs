//! What a worker and the server say to each other, free of any wire format.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::logging::Said;
use crate::error::{Error, Violation};
use crate::job::draft::{check_labels, is_storable};
use crate::job::id::NAME_SHAPE;
use crate::job::limits::{
    ATTACH_SEQUENCE_MAX, FRAME_BYTES_MIN, HELD_MAX, KINDS_MAX, LABELS_BYTES_MAX, LEASE_TTL_MAX,
    LEASE_TTL_MIN, RESUME_TOKEN_BYTES, SUBSCRIPTIONS_MAX, WINDOW_MAX, WORD_BYTES_MAX,
};
use crate::job::{
    Kind, Lease, LeasedJob, NewLines, Outcome, Progress, QueueName, SessionId, Verdict,
};

/// The protocol that is spoken here.
pub const PROTOCOL: u32 = 1;

/// From the worker.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientMessage {
    /// The first message, once.
    Hello(Box<Hello>),
    /// A new window; absolute.
    SetCapacity {
        /// Slots of the session.
        max_in_flight: u32,
        /// Empty: unchanged.
        queues: Vec<Subscription>,
    },
    /// Keeps the session alive, and states all that the worker holds.
    Heartbeat {
        /// Comes back in the acknowledgement.
        sequence: u64,
        /// Highest frame of jobs that the worker got.
        last_frame: u64,
        /// Every lease without a receipt.
        held: Vec<Lease>,
    },
    /// What running attempts have come to.
    Progress(Vec<(Lease, Progress)>),
    /// What attempts say.
    Logs(Vec<Said>),
    /// How attempts ended.
    Results(Vec<(Lease, Reported)>),
    /// No new jobs.
    Goodbye,
}

/// What a worker says of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Reported {
    /// To be recorded, with the lines that it brings along.
    Ended(Outcome, Option<NewLines>),
    /// The handler was stopped as it was told to: frees the slot, records nothing but its last words.
    Stopped(Option<NewLines>),
    /// The face could not take the content, for this reason.
    Unacceptable(Violation),
}

/// A queue that a session takes jobs of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// The queue.
    pub queue: QueueName,
    /// At most so many of it in flight; `None`: only the window binds.
    pub max_in_flight: Option<u32>,
}

/// How a worker introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Hello {
    /// Must be [`PROTOCOL`].
    pub protocol: u32,
    /// A name for people.
    pub worker: String,
    /// What it takes jobs of.
    pub queues: Vec<Subscription>,
    /// What it can run, for people.
    pub kinds: Vec<String>,
    /// Slots.
    pub max_in_flight: u32,
    /// Largest message that it can receive, in bytes.
    pub max_frame_bytes: u32,
    /// Wish; `None`: the server's default.
    pub lease_ttl: Option<Duration>,
    /// The session to go on with; `None`: a new one.
    pub resume: Option<Resume>,
    /// Every attempt without a receipt.
    pub held: Vec<Lease>,
    /// Name and version of its SDK.
    pub sdk: String,
    /// About the worker, for people.
    pub labels: BTreeMap<String, String>,
}

/// Asks to go on with a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resume {
    /// The secret of its Welcome.
    pub token: Bytes,
    /// The worker's own count of the session's Hellos.
    pub attach_sequence: u64,
}

impl Hello {
    /// Judges everything that does not depend on the server's state.
    ///
    /// # Errors
    /// `ProtocolVersion`, `FrameLimitTooSmall`, or `InvalidArgument` with every violation there is.
    pub fn check(&self) -> Result<(), Error> {
        if self.protocol != PROTOCOL {
            return Err(Error::ProtocolVersion {
                got: self.protocol,
                min: PROTOCOL,
                max: PROTOCOL,
            });
        }
        if (self.max_frame_bytes as usize) < FRAME_BYTES_MIN {
            return Err(Error::FrameLimitTooSmall {
                got: self.max_frame_bytes,
                min: FRAME_BYTES_MIN as u32,
            });
        }
        let mut found = Vec::new();
        let mut require = |holds: bool, field: &str, why: String| {
            if !holds {
                found.push(Violation::field(field, why));
            }
        };
        let word = |text: &str| text.len() <= WORD_BYTES_MAX && is_storable(text);
        let word_shape = || format!("must have at most {WORD_BYTES_MAX} bytes and no U+0000");
        require(word(&self.worker), "hello.worker", word_shape());
        require(word(&self.sdk), "hello.sdk", word_shape());
        let kinds =
            self.kinds.len() <= KINDS_MAX && self.kinds.iter().all(|k| Kind::parse(k).is_some());
        require(
            kinds,
            "hello.kinds",
            format!("must be at most {KINDS_MAX}, each matching {NAME_SHAPE}"),
        );
        require(
            self.held.len() <= HELD_MAX,
            "hello.held",
            format!("must be at most {HELD_MAX}"),
        );
        let window = (1..=WINDOW_MAX).contains(&self.max_in_flight);
        require(
            window,
            "hello.max_in_flight",
            format!("must be from 1 to {WINDOW_MAX}"),
        );
        if let Some(resume) = &self.resume {
            let token = RESUME_TOKEN_BYTES.contains(&resume.token.len());
            require(
                token,
                "hello.resume_token",
                "must be the token of a Welcome".into(),
            );
            // The first is the Hello that began the session.
            let sequence = (2..=ATTACH_SEQUENCE_MAX).contains(&resume.attach_sequence);
            require(
                sequence,
                "hello.attach_sequence",
                format!("must be from 2 to {ATTACH_SEQUENCE_MAX} with a resume_token"),
            );
        }
        let ttl = self
            .lease_ttl
            .is_none_or(|ttl| (LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&ttl));
        require(
            ttl,
            "hello.lease_ttl",
            format!("must be a duration from {LEASE_TTL_MIN:?} to {LEASE_TTL_MAX:?}"),
        );
        if let Err(why) = check_labels(&self.labels) {
            require(false, "hello.labels", why);
        }
        let bytes: usize = self.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
        require(
            bytes <= LABELS_BYTES_MAX,
            "hello.labels",
            format!("must have at most {LABELS_BYTES_MAX} bytes"),
        );
        if let Err(why) = check_subscriptions(&self.queues) {
            require(false, "hello.queues", why);
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err(Error::InvalidArgument(found)),
        }
    }
}

/// Judges a list of subscriptions.
///
/// # Errors
/// A text that says what it must be.
pub fn check_subscriptions(queues: &[Subscription]) -> Result<(), String> {
    let names: BTreeSet<_> = queues.iter().map(|s| &s.queue).collect();
    if !(1..=SUBSCRIPTIONS_MAX).contains(&queues.len()) {
        return Err(format!("must be from 1 to {SUBSCRIPTIONS_MAX}"));
    }
    match names.len() == queues.len() {
        true => Ok(()),
        false => Err("must not name a queue twice".into()),
    }
}

/// To the worker.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerMessage {
    /// Answers Hello, before anything else.
    Welcome(Box<Welcome>),
    /// Jobs that were handed out.
    Jobs {
        /// 1, 2, 3... on each stream.
        frame: u64,
        /// At least one.
        jobs: Vec<LeasedJob>,
    },
    /// Verdicts on results.
    Receipts(Vec<(Lease, Verdict)>),
    /// Verdicts on checkpoints, by the revisions of their reports.
    ProgressReceipts(Vec<(Lease, u64, Verdict)>),
    /// Verdicts on lines, with the number of the last line of each report.
    LogReceipts(Vec<(Lease, u64, Verdict)>),
    /// Verdict on a result, or on the report of that revision, whose lease names no job: it is sent back as it came.
    Unreadable(Option<(String, u32)>, u64),
    /// Tells handlers to stop.
    Cancels(Vec<(Lease, CancelReason)>),
    /// These leases are not the session's.
    Lost(Vec<Lease>),
    /// The renewal is durable.
    HeartbeatAck {
        /// Of the heartbeat.
        sequence: u64,
        /// How long the session lives from it.
        lease_ttl: Duration,
    },
    /// Nothing above `last_frame` goes out under the old window.
    CapacityApplied {
        /// The window in force.
        max_in_flight: u32,
        /// The last frame of the old one.
        last_frame: u64,
        /// It answers a Goodbye: no more jobs at all.
        goodbye: bool,
    },
    /// Somebody wants the worker to leave: it gets no more jobs.
    Leave,
    /// This node is leaving.
    Draining {
        /// The stream is closed then.
        close_after: Duration,
        /// For people.
        reason: String,
    },
}

/// Answer to a Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// For people and logs.
    pub session: SessionId,
    /// Secret of the session.
    pub resume_token: Bytes,
    /// The session of the Hello's token goes on.
    pub resumed: bool,
    /// Name of the node.
    pub node: String,
    /// How often to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// How long the session lives without.
    pub lease_ttl: Duration,
    /// The window in force.
    pub max_in_flight: u32,
}

/// Why a handler is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Somebody cancelled the job.
    Requested,
    /// The attempt's timeout is over.
    Timeout,
}

impl ServerMessage {
    /// About how many bytes it takes on the wire.
    pub fn size(&self) -> usize {
        const LEASE: usize = 48;
        match self {
            Self::Jobs { jobs, .. } => jobs.iter().map(LeasedJob::size).sum(),
            Self::ProgressReceipts(receipts) | Self::LogReceipts(receipts) => {
                receipts.len() * (LEASE + 80)
            }
            Self::Receipts(receipts) => receipts.len() * (LEASE + 80),
            Self::Cancels(cancels) => cancels.len() * LEASE,
            Self::Lost(leases) => leases.len() * LEASE,
            _ => 200,
        }
    }
}
