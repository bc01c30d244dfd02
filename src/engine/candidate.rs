//! A job that may be handed out, where that was learned, and how it goes back there when nobody takes it: to the
//! ready-list, or to the segments that this node has claimed directly. What this node has just made QUEUED goes to the
//! ready-list.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::debug;

use super::Core;
use super::offer::Offers;
use crate::job::{JobId, Priority, QueueName};
use crate::ready::Hint;
use crate::store::{Line, Segment};

/// A job that may be handed out.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub(super) job: JobId,
    pub(super) line: Line,
    source: Source,
    /// A level below the highest had this turn.
    early: bool,
}

#[derive(Debug, Clone)]
enum Source {
    /// From the ready-list: to be settled or put back.
    Hint(Hint),
    /// From a segment that is this node's until then.
    Claim(Instant),
    /// From this new segment, which nobody was told of.
    Fed(i64),
}

impl From<Hint> for Candidate {
    fn from(hint: Hint) -> Self {
        Self {
            job: hint.job,
            line: hint.line.clone(),
            early: hint.early,
            source: Source::Hint(hint),
        }
    }
}

impl Candidate {
    /// Those of a new segment.
    pub fn fed(segment: Segment) -> impl Iterator<Item = Self> {
        let Segment { id, line, jobs } = segment;
        jobs.into_iter().map(move |job| Self {
            job,
            line: line.clone(),
            source: Source::Fed(id),
            early: false,
        })
    }
}

/// What is claimed directly and has no slot yet. No more than what a few calls of the store give: only queues of which
/// nothing is here ask for more.
#[derive(Debug)]
pub struct Claims {
    waiting: Mutex<VecDeque<Candidate>>,
    offers: Offers,
}

impl Claims {
    /// None yet. What was fed goes back to the `offers`.
    pub fn new(offers: Offers) -> Self {
        Self {
            waiting: Mutex::default(),
            offers,
        }
    }

    /// Takes in segments that are this node's `until` then.
    pub fn add(&self, segments: Vec<Segment>, until: Instant) {
        let mut claimed = self.lock();
        for Segment { line, jobs, .. } in segments {
            claimed.extend(jobs.into_iter().map(|job| Candidate {
                job,
                line: line.clone(),
                source: Source::Claim(until),
                early: false,
            }));
        }
    }

    /// Moves as many as are wanted of each queue from here to what was found; what is not this node's any more goes.
    pub fn take(&self, wanted: &mut BTreeMap<QueueName, usize>, found: &mut Vec<Candidate>) {
        let now = Instant::now();
        let mut claimed = self.lock();
        let mut kept = VecDeque::with_capacity(claimed.len());
        for candidate in claimed.drain(..).filter(|c| c.is_ours(now)) {
            match wanted.get_mut(&candidate.line.queue) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    found.push(candidate);
                }
                _ => kept.push_back(candidate),
            }
        }
        *claimed = kept;
    }

    /// Gives candidates back to where they came from, to the front of it.
    pub async fn give_back(&self, core: &Core, candidates: Vec<Candidate>) {
        let mut hints = Vec::new();
        let mut claims = Vec::new();
        let mut fed: BTreeMap<i64, Segment> = BTreeMap::new();
        for candidate in candidates {
            match candidate.source {
                Source::Hint(hint) => hints.push(hint),
                Source::Claim(_) => claims.push(candidate),
                Source::Fed(id) => {
                    let segment = fed.entry(id).or_insert_with(|| Segment {
                        id,
                        line: candidate.line,
                        jobs: Vec::new(),
                    });
                    segment.jobs.push(candidate.job);
                }
            }
        }
        self.offers.pass_on(fed.into_values().collect());
        if !claims.is_empty() {
            let mut claimed = self.lock();
            for candidate in claims.into_iter().rev() {
                claimed.push_front(candidate);
            }
        }
        if !hints.is_empty() {
            if let Err(error) = core.ready.put_back(hints).await {
                debug!(%error, "hints not put back; they will be taken over or offered again");
                core.ready_failed();
            }
            // The node's own doorbell does not ring for them.
            core.shelved.store(true, Ordering::Relaxed);
        }
    }

    /// Whether nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Candidate>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Candidate {
    fn is_ours(&self, now: Instant) -> bool {
        match self.source {
            Source::Hint(_) | Source::Fed(_) => true,
            Source::Claim(until) => until > now,
        }
    }
}

/// In which order they get one of `slots`: the early ones, then what is urgent. Within a level the queues take turns, and
/// chance says which begins: a slot that serves several queues would else be the first one's for as long as that has a
/// line.
pub fn in_turns(mut candidates: Vec<Candidate>, slots: usize) -> Vec<Candidate> {
    // A slot that serves several queues was asked for by each of them. An early one keeps its turn as often as others
    // find a slot: else such slots would mostly be for lower levels.
    let all = candidates.len();
    if slots < all {
        for candidate in candidates.iter_mut().filter(|c| c.early) {
            candidate.early = rand::random_range(0..all) < slots;
        }
    }
    let (early, rest): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.early);
    let mut ordered = by_level(early);
    ordered.extend(by_level(rest));
    ordered
}

fn by_level(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut lines: BTreeMap<Line, VecDeque<Candidate>> = BTreeMap::new();
    let mut ordered = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let line = lines.entry(candidate.line.clone()).or_default();
        line.push_back(candidate);
    }
    for level in Priority::ALL {
        let mut queues: Vec<_> = lines
            .iter_mut()
            .filter(|(line, _)| line.priority == level)
            .map(|(_, waiting)| waiting)
            .collect();
        if !queues.is_empty() {
            let first = rand::random_range(0..queues.len());
            queues.rotate_left(first);
        }
        while !queues.is_empty() {
            queues.retain_mut(|waiting| {
                ordered.extend(waiting.pop_front());
                !waiting.is_empty()
            });
        }
    }
    ordered
}

/// Candidates that need not be looked at again: handed out, or seen not QUEUED.
pub async fn settle(core: &Core, spent: Vec<Candidate>) {
    let hint = |candidate: Candidate| match candidate.source {
        Source::Hint(hint) => Some(hint),
        Source::Claim(_) | Source::Fed(_) => None,
    };
    let hints: Vec<Hint> = spent.into_iter().filter_map(hint).collect();
    if !hints.is_empty()
        && let Err(error) = core.ready.settle(hints).await
    {
        debug!(%error, "hints not settled; the guards will drop them");
        core.ready_failed();
    }
}
