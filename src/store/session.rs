//! Workers' sessions, as the store keeps them.

use std::time::Duration;

use crate::job::{NodeId, SessionId};

/// A worker's stream, as it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// From its token.
    pub id: SessionId,
    /// The node that has the stream.
    pub node: NodeId,
    /// Name of the worker, for people; goes into the rows of its jobs.
    pub worker: String,
    /// Name and version of its SDK.
    pub sdk: String,
    /// How long it lives without a renewal.
    pub ttl: Duration,
}

/// A session, and the count of streams that attached to it. A node acts for a session only under the number that it
/// attached with: a newer stream, anywhere, fences it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attached {
    /// The session.
    pub session: SessionId,
    /// 1 for the stream that opened it.
    pub attach: u64,
}

/// A worker that comes back with the token of its session, by a new stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// The session, and the worker's own count of its Hellos: the attach number, if it is higher than the last.
    pub to: Attached,
    /// The node that has the new stream.
    pub node: NodeId,
}

/// Answer to an [`Attach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attaching {
    /// The session has moved to the new stream, and lives for this TTL from now. Grants to the old stream that were
    /// under way are over, one way or the other: [`crate::store::Store::leases`] shows all that it has.
    Resumed(Duration),
    /// A stream with this number or a higher one came before. Nothing has changed.
    Superseded,
    /// Something held its row for too long; it may be tried again.
    Later,
    /// The session is dead or gone.
    Gone,
}

/// How a session stands, for a node that acts for it under an attach number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// Alive.
    Alive,
    /// Its time is over, but nobody has marked it dead: it can be renewed, and gets no jobs until it is.
    Lapsed,
    /// A newer stream has it. Its leases live on there.
    Moved,
    /// The store only knows of an older stream of it: it has lost the commit that moved it, as a replica may that took
    /// the place of its primary. It can be moved once more, to the same stream, and gets no jobs until it is.
    Behind,
    /// Dead or gone, for ever.
    Dead,
}
