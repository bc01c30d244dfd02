//! What workers there are for a job, on all nodes.

use std::collections::HashSet;

use crate::engine::Core;
use crate::error::Result;
use crate::job::{Kind, QueueName};
use crate::store::SessionSlots;

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

impl Workers {
    /// Counts one that knows these kinds and has these slots, if it takes jobs of the queue.
    fn count(&mut self, kinds: &[String], slots: &SessionSlots, queue: &QueueName, kind: &Kind) {
        let Some(takes) = slots.queues.iter().find(|slots| slots.queue == *queue) else {
            return;
        };
        self.all += 1;
        if kinds.is_empty() || kinds.iter().any(|known| known == kind.as_str()) {
            let own = takes.max_in_flight.unwrap_or(slots.max_in_flight);
            let free = if slots.draining { 0 } else { takes.free };
            self.with_kind += 1;
            self.slots = self.slots.saturating_add(own.min(slots.max_in_flight));
            self.free = self.free.saturating_add(free);
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
        found.count(&live.kinds(), &live.slots(), queue, kind);
    }
    let page = core.store.sessions(Some(queue.clone()), None, SESSIONS_MAX);
    let others = page.await?.sessions;
    for session in others.iter().filter(|session| !ours.contains(&session.id)) {
        found.count(&session.profile.kinds, &session.slots, queue, kind);
    }
    Ok(found)
}
