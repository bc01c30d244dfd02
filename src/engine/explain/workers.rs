//! What workers there are for a job, on all nodes.

use std::collections::HashSet;

use crate::engine::Core;
use crate::error::Result;
use crate::job::{Kind, QueueName};
use crate::store::SessionView;

/// Sessions of other nodes that are looked at.
const SESSIONS_MAX: usize = 1_000;

/// The workers that take jobs of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workers {
    /// All of them.
    pub all: usize,
    /// Those that know the kind, or do not say what they know.
    pub with_kind: usize,
    /// Slots of these.
    pub slots: u32,
    /// Those of the slots that are free.
    pub free: u32,
}

/// What one of them has for it.
#[derive(Debug, Clone, Copy)]
pub struct Taker {
    /// It can run them, or does not say what it can run.
    pub knows_kind: bool,
    /// How many at once.
    pub slots: u32,
    /// How many more, now.
    pub free: u32,
}

impl Workers {
    fn count(&mut self, taker: Taker) {
        self.all += 1;
        if taker.knows_kind {
            self.with_kind += 1;
            self.slots = self.slots.saturating_add(taker.slots);
            self.free = self.free.saturating_add(taker.free);
        }
    }
}

/// Counts the workers for jobs of this queue and kind: those of this node as they are, those of others as these last told,
/// some seconds ago.
///
/// # Errors
/// The store's.
pub async fn workers(core: &Core, queue: &QueueName, kind: &Kind) -> Result<Workers> {
    let mut found = Workers::default();
    let mut ours = HashSet::new();
    for live in core.sessions.all() {
        ours.insert(live.attached().session);
        if let Some(taker) = live.takes(queue, kind) {
            found.count(taker);
        }
    }
    let page = core.store.sessions(Some(queue.clone()), None, SESSIONS_MAX);
    let others = page.await?.sessions;
    for session in others.iter().filter(|session| !ours.contains(&session.id)) {
        if let Some(taker) = taker(session, queue, kind) {
            found.count(taker);
        }
    }
    Ok(found)
}

fn taker(session: &SessionView, queue: &QueueName, kind: &Kind) -> Option<Taker> {
    let (profile, slots) = (&session.profile, &session.slots);
    let takes = slots.queues.iter().find(|slots| slots.queue == *queue)?;
    let is_known = |known: &String| known == kind.as_str();
    let own = takes.max_in_flight.unwrap_or(slots.max_in_flight);
    Some(Taker {
        knows_kind: profile.kinds.is_empty() || profile.kinds.iter().any(is_known),
        slots: own.min(slots.max_in_flight),
        free: if slots.draining { 0 } else { takes.free },
    })
}
