//! Workers' sessions, as nodes tell of them and people see them. Nothing of this decides anything.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Attached;
use crate::job::{Kind, Lease, QueueName, SessionId, Timestamp};

/// What a node tells of a session whose stream it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReport {
    /// The session, and the number of its stream.
    pub session: Attached,
    /// What does not change as long as the stream lives; `None`: as it was told before.
    pub profile: Option<SessionProfile>,
    /// What does.
    pub slots: SessionSlots,
}

/// What a worker said when its stream began, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionProfile {
    /// Name of the node.
    pub node: String,
    /// What it can run.
    pub kinds: Vec<String>,
    /// About the worker.
    pub labels: BTreeMap<String, String>,
}

/// What a session takes, and how much of that is free.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionSlots {
    /// The queues that it takes jobs of.
    pub queues: Vec<QueueSlots>,
    /// Jobs that it takes at once.
    pub max_in_flight: u32,
    /// Jobs that it has.
    pub in_flight: u32,
    /// It gets no more: its worker or its node is leaving.
    pub draining: bool,
}

/// What a session takes of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSlots {
    /// The queue.
    pub queue: QueueName,
    /// At most so many of it in flight; `None`: only the window binds.
    pub max_in_flight: Option<u32>,
    /// How many it could be given.
    pub free: u32,
}

/// A session, as it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// Its identity.
    pub id: SessionId,
    /// Name of its worker.
    pub worker: String,
    /// Name and version of its SDK.
    pub sdk: String,
    /// What its node has told; nothing yet of one that has just begun.
    pub profile: SessionProfile,
    /// The same.
    pub slots: SessionSlots,
    /// How long it lives if it is not renewed.
    pub ttl_left: Duration,
}

/// A session, and what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRuns {
    /// The session.
    pub view: SessionView,
    /// Jobs that are RUNNING under it, those that began first in front.
    pub running: Vec<RunningJob>,
    /// There are more than these.
    pub more: bool,
}

/// A job that a session runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningJob {
    /// The job, and which attempt it is.
    pub lease: Lease,
    /// Where it waited.
    pub queue: QueueName,
    /// Which handler runs it.
    pub kind: Kind,
    /// When it was handed out.
    pub start_time: Timestamp,
    /// Until the attempt has taken too long; `None`: it may take as long as it likes.
    pub time_left: Option<Duration>,
}

/// One page of sessions, by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionPage {
    /// At most as many as were asked for, perhaps fewer, even when there are more.
    pub sessions: Vec<SessionView>,
    /// The next page begins after this one; `None`: there is no more.
    pub next: Option<SessionId>,
}
