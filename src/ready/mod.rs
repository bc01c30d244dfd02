//! The ready-list: which QUEUED jobs to hand out next, fast. It holds ids, never payloads, and no authority: a hint may
//! be lost, doubled or stale, and the store's guards decide. Everything in it can be lost at any moment.

pub mod memory;
pub mod observed;
pub mod redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::job::{JobId, Priority, QueueName};
use crate::store::{EntryId, Epoch, Line};

/// One id taken from a line, to be settled or put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Which job may be handed out.
    pub job: JobId,
    /// Where it came from.
    pub line: Line,
    /// Its entry there, by which it is settled.
    pub entry: EntryId,
    /// The incarnation it belongs to; in a later one it means nothing.
    pub epoch: Epoch,
    /// It was found below the highest level by a want that looks there first: its turn is before that of higher levels.
    pub early: bool,
    /// Its share of an entry that holds other ids too.
    pub share: Option<Share>,
}

/// A hint's share of an entry that holds several ids. Only the list looks into it.
#[derive(Debug, Clone)]
pub struct Share {
    /// Its number in the entry, below 31.
    number: u8,
    /// What this taker has of the entry and has not settled, a bit each, and [`GIVEN_UP`]: one for all that were taken
    /// together. `None`: the entry is not this taker's, and others see to it.
    left: Option<Arc<AtomicU32>>,
}

/// The entry went back with some of its ids, and others see to it.
const GIVEN_UP: u32 = 1 << 31;

/// The same share of an entry, whatever became of the others.
impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Share {}

impl Share {
    fn bit(&self) -> u32 {
        1 << (self.number % 31)
    }

    /// It is settled. `true`: it was the last one, and the entry is to go.
    fn settle(&self) -> bool {
        let bit = self.bit();
        let left = self.left.as_ref();
        left.is_some_and(|left| left.fetch_and(!bit, Ordering::AcqRel) == bit)
    }

    /// It goes back, and the others that were taken with it see to the entry no more. `None`: it is settled; `true`: the
    /// entry was this taker's until now.
    fn give_up(&self) -> Option<bool> {
        let Some(left) = &self.left else {
            return Some(false);
        };
        let bit = self.bit();
        if left.load(Ordering::Acquire) & bit == 0 {
            return None;
        }
        let before = left.fetch_or(GIVEN_UP, Ordering::AcqRel);
        left.fetch_and(!bit, Ordering::AcqRel);
        Some(before & GIVEN_UP == 0)
    }
}

/// How many hints are wanted of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The queue, each one once.
    pub queue: QueueName,
    /// At most so many over all its levels; of more than 1,000, so many.
    pub count: usize,
    /// So many of them look at the levels below the highest first, and only then at all.
    pub lower: usize,
    /// At which of these levels first: `Low` or `Normal`.
    pub lower_first: Priority,
}

impl Want {
    /// The levels that [`lower`](Self::lower) of them look at first, in that order.
    pub fn lower_levels(&self) -> impl Iterator<Item = Priority> {
        let (first, rest): (Vec<_>, Vec<_>) = Priority::ALL
            .into_iter()
            .skip(1)
            .partition(|level| *level == self.lower_first);
        first.into_iter().chain(rest)
    }
}

/// Where the jobs of one offer stand now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The incarnation that took them.
    pub epoch: Epoch,
    /// Entry of the last one.
    pub last: EntryId,
}

/// Why the doorbell rang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ring {
    /// Something was added to one of the lines.
    pub work: bool,
    /// Another node asks to look at the signals in the store.
    pub nudge: bool,
}

/// State of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The lowest entry that is still there, taken or not; `None`: there is none.
    pub first: Option<EntryId>,
}

/// The ready-list. Errors of every verb: `Unavailable` when it is away; then the engine goes on without it.
#[async_trait]
pub trait ReadyList: Send + Sync + 'static {
    /// The present incarnation. A new one begins when the list finds that it was wiped, restarted without its data, or
    /// replaced; whatever was offered before is then to be offered again.
    async fn epoch(&self) -> Result<Epoch>;
    /// Adds jobs at the ends of their lines, in order. One answer a line; for one without jobs the lowest place. After
    /// an error some may have been added.
    async fn offer(&self, lines: Vec<(Line, Vec<JobId>)>) -> Result<Vec<Placed>>;
    /// Waits until something is added to one of `lines`, a nudge comes, or `wait` (at most 2 s) is over. It may ring
    /// for nothing; it misses nothing that was added after the last `take` found a line empty. One call at a time.
    /// Cancel safe: it takes nothing.
    async fn doorbell(&self, lines: Vec<Line>, wait: Duration) -> Result<Ring>;
    /// Takes hints without waiting, of all queues in one go. Of each queue high levels give first, and lower ones what is
    /// still wanted then, but for as many as its [`Want`] says look at the lower ones before that, whose hints are `early`;
    /// a line gives its oldest first. A queue that gives less than was wanted had no more in that
    /// moment. The hints stay this node's until they are settled or put back.
    async fn take(&self, wants: Vec<Want>) -> Result<Vec<Hint>>;
    /// Forgets hints: their jobs were handed out, or seen not QUEUED.
    async fn settle(&self, hints: Vec<Hint>) -> Result<()>;
    /// Gives hints back for anybody to take, at the places they had. It rings the other takers' doorbells.
    async fn put_back(&self, hints: Vec<Hint>) -> Result<()>;
    /// Takes over hints that a taker has had for `idle` without settling them, at most `limit` a line, oldest first.
    /// Its own are among them, since it may have lost them with a call that was dropped: who still holds such a hint
    /// gets it a second time, with the same entry.
    async fn steal(&self, lines: Vec<Line>, idle: Duration, limit: usize) -> Result<Vec<Hint>>;
    /// Looks at lines.
    async fn probe(&self, lines: Vec<Line>) -> Result<Vec<Probe>>;
    /// Asks all nodes to look at the signals now.
    async fn nudge(&self) -> Result<()>;
    /// One cheap round trip. The answer names the server and its version.
    async fn ping(&self) -> Result<String>;
    /// The taker leaves: what it has should be settled or put back before. Without it, nothing is lost either.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
