//! The ready-list of a single process: `leasehold dev` needs no Redis.
//!
//! It is bounded as a whole (I9). When it is full, the line with the most ids gives way: its newest are forgotten, or,
//! if it is the one that offers, not kept at all. The offer is answered as if they were there: reconcile offers them
//! again as soon as the line has moved past them. To refuse them would turn the whole engine to direct claims because
//! of one long line; and since no line can crowd out another, each one moves on.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Hint, Placed, Probe, ReadyList, Ring, Want};
use crate::error::Result;
use crate::job::limits::BATCH_MAX;
use crate::job::{JobId, Priority};
use crate::store::{EntryId, Epoch, Line};

/// Ids that are kept, over all lines: tens of megabytes, and more than a drain of minutes.
const IDS_MAX: usize = 1_000_000;

/// A ready-list in this process's memory. All who share it are one taker.
#[derive(Debug)]
pub struct MemoryReady {
    epoch: Epoch,
    ids_max: usize,
    state: Mutex<State>,
    bell: Notify,
}

impl Default for MemoryReady {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryReady {
    /// An empty list with room for a million ids.
    pub fn new() -> Self {
        Self::with_room(IDS_MAX)
    }

    /// An empty list with room for `ids_max` ids.
    pub fn with_room(ids_max: usize) -> Self {
        Self {
            epoch: Epoch(Uuid::new_v4()),
            ids_max,
            state: Mutex::default(),
            bell: Notify::new(),
        }
    }

    /// The state is whole between any two statements that may panic, so a poisoned lock is no reason to stop.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hint(&self, line: &Line, entry: EntryId, job: JobId) -> Hint {
        Hint {
            job,
            line: line.clone(),
            entry,
            epoch: self.epoch,
            early: false,
            share: None,
        }
    }

    /// Moves up to `most` of a line to what was taken, and returns how many it moved.
    fn give(&self, state: &mut State, line: &Line, most: usize, hints: &mut Vec<Hint>) -> usize {
        let Some(ids) = state.lines.get_mut(line) else {
            return 0;
        };
        let (now, before) = (Instant::now(), hints.len());
        while hints.len() - before < most
            && let Some((entry, job)) = ids.waiting.pop_first()
        {
            ids.taken.insert(entry, (job, now));
            hints.push(self.hint(line, entry, job));
        }
        hints.len() - before
    }
}

#[async_trait]
impl ReadyList for MemoryReady {
    async fn epoch(&self) -> Result<Epoch> {
        Ok(self.epoch)
    }

    async fn offer(&self, lines: Vec<(Line, Vec<JobId>)>) -> Result<Vec<Placed>> {
        let placed = {
            let mut state = self.state();
            lines
                .into_iter()
                .map(|(line, jobs)| Placed {
                    epoch: self.epoch,
                    last: state.add(line, &jobs, self.ids_max),
                })
                .collect()
        };
        self.bell.notify_waiters();
        Ok(placed)
    }

    // Cancel safe: nothing is taken, and a nudge counts as seen only in the step that returns it.
    async fn doorbell(&self, lines: Vec<Line>, wait: Duration) -> Result<Ring> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let bell = self.bell.notified();
            tokio::pin!(bell);
            // Listen first, then look: what is added in between rings.
            bell.as_mut().enable();
            let ring = self.state().ring(&lines);
            if ring != Ring::default() || tokio::time::timeout_at(until, bell).await.is_err() {
                return Ok(ring);
            }
        }
    }

    async fn take(&self, wants: Vec<Want>) -> Result<Vec<Hint>> {
        let mut state = self.state();
        let mut hints = Vec::new();
        for want in wants {
            let line = |priority| Line {
                queue: want.queue.clone(),
                priority,
            };
            let mut left = want.count.min(BATCH_MAX);
            let mut lower = want.lower.min(left);
            for level in want.lower_levels() {
                let before = hints.len();
                let given = self.give(&mut state, &line(level), lower, &mut hints);
                hints.iter_mut().skip(before).for_each(|h| h.early = true);
                lower -= given;
                left -= given;
            }
            for level in Priority::ALL {
                left -= self.give(&mut state, &line(level), left, &mut hints);
            }
        }
        Ok(hints)
    }

    async fn settle(&self, hints: Vec<Hint>) -> Result<()> {
        let mut state = self.state();
        for hint in hints.iter().filter(|h| h.epoch == self.epoch) {
            state.settle(&hint.line, hint.entry);
        }
        Ok(())
    }

    async fn put_back(&self, hints: Vec<Hint>) -> Result<()> {
        {
            let mut state = self.state();
            for hint in hints.iter().filter(|h| h.epoch == self.epoch) {
                // By its old number it is as old as it was, before all that came later.
                if let Some(ids) = state.lines.get_mut(&hint.line)
                    && let Some((job, _)) = ids.taken.remove(&hint.entry)
                {
                    ids.waiting.insert(hint.entry, job);
                }
            }
        }
        self.bell.notify_waiters();
        Ok(())
    }

    async fn steal(&self, lines: Vec<Line>, idle: Duration, limit: usize) -> Result<Vec<Hint>> {
        let now = Instant::now();
        let mut state = self.state();
        let mut hints = Vec::new();
        for line in lines {
            let Some(ids) = state.lines.get_mut(&line) else {
                continue;
            };
            let left_alone = ids
                .taken
                .iter_mut()
                .filter(|(_, (_, since))| now.duration_since(*since) >= idle);
            for (entry, (job, since)) in left_alone.take(limit) {
                *since = now;
                hints.push(self.hint(&line, *entry, *job));
            }
        }
        Ok(hints)
    }

    async fn probe(&self, lines: Vec<Line>) -> Result<Vec<Probe>> {
        let state = self.state();
        Ok(lines.iter().map(|line| state.probe(line)).collect())
    }

    async fn nudge(&self) -> Result<()> {
        self.state().nudged = true;
        self.bell.notify_waiters();
        Ok(())
    }

    async fn ping(&self) -> Result<String> {
        Ok("in process".into())
    }
}

#[derive(Debug, Default)]
struct State {
    lines: HashMap<Line, Ids>,
    /// Ids in all lines, taken ones too.
    count: usize,
    /// Number of the newest entry of any line.
    last: u64,
    nudged: bool,
}

/// One line. It is dropped when it is empty, since queues come and go.
#[derive(Debug, Default)]
struct Ids {
    waiting: BTreeMap<EntryId, JobId>,
    taken: BTreeMap<EntryId, (JobId, Instant)>,
}

impl State {
    fn add(&mut self, line: Line, jobs: &[JobId], ids_max: usize) -> EntryId {
        let first = self.last + 1;
        self.last += jobs.len() as u64;
        let last = EntryId {
            ms: 0,
            seq: if jobs.is_empty() { 0 } else { self.last },
        };
        let missing = (self.count + jobs.len()).saturating_sub(ids_max);
        let room =
            jobs.len() - missing.min(jobs.len()) + self.make_room(&line, missing.min(jobs.len()));
        if room > 0 {
            let ids = self.lines.entry(line).or_default();
            let entries = (first..).map(|seq| EntryId { ms: 0, seq });
            ids.waiting
                .extend(entries.zip(jobs.iter().copied()).take(room));
            self.count += room;
        }
        last
    }

    /// Makes room for up to `wanted` ids of `line`, at the cost of longer lines only. Returns how many it made.
    fn make_room(&mut self, line: &Line, wanted: usize) -> usize {
        let own = self.lines.get(line).map_or(0, |ids| ids.waiting.len());
        let mut made = 0;
        while made < wanted {
            let Some(longest) = self
                .lines
                .values_mut()
                .max_by_key(|ids| ids.waiting.len())
                .filter(|ids| ids.waiting.len() > own + made + 1)
            else {
                break;
            };
            // Half of the difference makes both equal; the loop runs once for each line that gives way.
            let surplus = (longest.waiting.len() - own - made) / 2;
            for _ in 0..surplus.min(wanted - made) {
                longest.waiting.pop_last();
                self.count -= 1;
                made += 1;
            }
        }
        made
    }

    fn settle(&mut self, line: &Line, entry: EntryId) {
        let Some(ids) = self.lines.get_mut(line) else {
            return;
        };
        if ids.taken.remove(&entry).is_some() {
            self.count -= 1;
        }
        if ids.taken.is_empty() && ids.waiting.is_empty() {
            self.lines.remove(line);
        }
    }

    fn probe(&self, line: &Line) -> Probe {
        let Some(ids) = self.lines.get(line) else {
            return Probe { first: None };
        };
        let waiting = ids.waiting.keys().next();
        let taken = ids.taken.keys().next();
        Probe {
            first: waiting.into_iter().chain(taken).min().copied(),
        }
    }

    fn ring(&mut self, lines: &[Line]) -> Ring {
        let waits = |line| {
            self.lines
                .get(line)
                .is_some_and(|ids| !ids.waiting.is_empty())
        };
        Ring {
            work: lines.iter().any(waits),
            nudge: std::mem::take(&mut self.nudged),
        }
    }
}
