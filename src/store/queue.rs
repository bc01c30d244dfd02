//! Queues, as the store tells of them.

use super::QueueStats;
use crate::job::{By, QueueChange, QueueName, QueueSettings, Rates, Timestamp};

/// A queue, as it is seen.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueView {
    /// What is set of it.
    pub settings: QueueSettings,
    /// Number of the change that set it; 0: nothing is set.
    pub revision: u64,
    /// Its name and numbers.
    pub stats: QueueStats,
    /// Sessions that take jobs of it.
    pub sessions: u32,
    /// Jobs that they could be given, as their nodes last told.
    pub free_slots: u32,
    /// What goes on in it.
    pub rates: Rates,
    /// When it was so.
    pub as_of: Timestamp,
}

/// All that is set of queues at some moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AllSettings {
    /// Number of the newest change.
    pub change: u64,
    /// Those of which something is set.
    pub queues: Vec<(QueueName, QueueSettings)>,
}

/// A change of what is set of a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Steer {
    /// Of which queue. It need not have been seen before.
    pub queue: QueueName,
    /// What is to be.
    pub change: QueueChange,
    /// Only if this is its revision; `None`: whatever it is.
    pub expected: Option<u64>,
    /// Who wants it; goes into the audit.
    pub by: By,
}

/// Answer to a [`Steer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// It is so now, and the audit has it.
    Done,
    /// It was so before.
    Unchanged,
    /// Its revision is another. Nothing has changed.
    Superseded,
    /// Something is set of too many queues. Nothing has changed.
    TooMany,
}
