//! Nodes, as they tell of themselves and people see them, and what they are asked to let go.

use crate::job::{NodeId, SessionId, Timestamp};

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// Its identity, new with each start.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Of the program.
    pub version: String,
    /// Streams of workers that it has.
    pub sessions: u32,
    /// It is leaving.
    pub draining: bool,
}

/// What a node is asked to let go, by hand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drains {
    /// The node itself is to leave.
    pub node: bool,
    /// Of the sessions attached to it, those that are to leave.
    pub sessions: Vec<SessionId>,
}

/// A node, as it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// What it told last; draining also when it was asked to, and has not heard of it.
    pub report: NodeReport,
    /// When it told for the first time.
    pub start: Timestamp,
    /// When it told that.
    pub seen: Timestamp,
}

/// Answer to who asks that something leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    /// It is asked to now.
    Done,
    /// It was before.
    Already,
    /// There is no such thing, or it is gone.
    NotFound,
}
