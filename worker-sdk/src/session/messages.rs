//! What goes into the worker's half, and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Outcome, Said};
use crate::proto;

/// The worker's own number of one of its sessions: what it holds is held under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNo(pub u64);

/// The worker's own number of one stream. A session goes through many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamNo(pub u64);

/// The worker's own number of one attempt it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The worker's own number of somebody who waits for a checkpoint to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter(pub u64);

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is durable.
    Durable,
    /// The attempt is not ours any more, or over: it never will be.
    Lost,
    /// The server does not take it, for this reason.
    Refused(String),
}

/// What the worker is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// A name for people.
    pub worker: String,
    /// The lines it takes jobs from.
    pub queues: Vec<proto::QueueSubscription>,
    /// What it can run; anything else is released.
    pub kinds: BTreeSet<String>,
    /// Handlers that may run at once, 1 to 10,000.
    pub concurrency: usize,
    /// Wish for the lease's time; `None`: the server's default.
    pub lease_ttl: Option<Duration>,
    /// About the worker, for people.
    pub labels: BTreeMap<String, String>,
    /// Name and version of the SDK.
    pub sdk: String,
    /// How long a handler that was told to stop may take before it is dropped.
    pub stop_grace: Duration,
    /// How long handlers may go on when the worker must end by itself.
    pub grace: Duration,
    /// Let handlers finish when the session could not be renewed in time: the
    /// fence decides about their results anyway, but the job may run twice at once.
    pub finish_unrenewed: bool,
    /// For jitter.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A message of the server.
    Received(StreamNo, proto::LeaseJobsResponse),
    /// The writer of a stream has passed on the message it was given.
    Written(StreamNo),
    /// The stream ended, or never came to be.
    Ended(StreamNo, End),
    /// A handler says how far it is; somebody may wait for that to be durable.
    Progress(Ticket, proto::Progress, Option<Waiter>),
    /// A handler has said something for people.
    Said(Ticket, Said),
    /// A handler is no more.
    Finished(Ticket, Outcome),
    /// The answer to `Action::Report`; an error says only that there is none.
    Reported(SessionNo, Result<Vec<proto::Receipt>, ()>),
    /// End the worker: no new jobs, and so long for those that run.
    Shutdown(Duration),
    /// A shutdown's grace is over now.
    Hurry,
    /// Nothing; `deadline` has come.
    Tick,
}

/// How a stream ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The server would end every stream of ours so: coming back is of no use.
    pub fatal: bool,
    /// SESSION_MOVED: another Hello has the session.
    pub moved: bool,
    /// For people and logs.
    pub message: String,
    /// The server asked for at least this pause.
    pub retry_after: Option<Duration>,
}

/// Why a handler is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// Somebody cancelled the job.
    Cancelled,
    /// The server counted the attempt as timed out.
    TimedOut,
    /// The lease is not the session's any more.
    Lost,
    /// The attempt's timeout is over, by the worker's own clock.
    Overdue,
    /// The session could not be renewed in time.
    Unrenewed,
    /// The worker ends.
    Shutdown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Open a stream on a fresh connection, with this as its first message.
    Open(StreamNo, proto::LeaseJobsRequest),
    /// Give the stream's writer this; there is room, and `Written` is to follow.
    Send(StreamNo, proto::LeaseJobsRequest),
    /// Say that no more messages come.
    HalfClose(StreamNo),
    /// Drop the stream; no `Ended` is expected.
    Cut(StreamNo),
    /// Start the handler.
    Run(Ticket, Box<proto::LeasedJob>),
    /// Tell the handler to stop; it is dropped when it has not after so long.
    Stop(Ticket, StopReason, Duration),
    /// Call `ReportResults`; `Reported` is to follow.
    Report(SessionNo, proto::ReportResultsRequest),
    /// Answers who waits for a checkpoint.
    Saved(Waiter, Saved),
    /// Something for the log.
    Note(Note),
    /// The worker is done, with the reason when it could not go on.
    End(Option<String>),
}

/// What people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A session began, or goes on.
    Connected {
        /// It is the session that was there before, with all its leases.
        resumed: bool,
        /// The server's name of the session.
        session: String,
        /// The server's node.
        node: String,
    },
    /// A stream ended or failed, and another is tried after the pause.
    Reconnecting {
        /// How it ended.
        why: String,
        /// The pause.
        pause: Duration,
    },
    /// The node will leave; a new stream is opened elsewhere.
    Draining,
    /// Somebody has asked the server that this worker leaves: it ends, as by SIGTERM.
    AskedToLeave,
    /// The server has ended a session: of its leases none is left.
    SessionOver,
    /// Another process has gone on with the session of this one, and so has its
    /// token: a copy. This one begins anew.
    Copied,
    /// A session could not be renewed in time; its handlers are told to stop.
    Unrenewed,
    /// A job came of a kind without a handler; said once for each kind.
    UnknownKind(String),
    /// The server refused a result; a failure is sent instead.
    Rejected(proto::Lease, String),
    /// A result came too late: another attempt counts, or the job was cancelled.
    Stale(proto::Lease, String),
    /// No verdict on a result will be known.
    GaveUp(proto::Lease),
}
