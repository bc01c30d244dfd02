//! What workers there are for a job: the one place that knows of how many nodes.

use crate::engine::Core;
use crate::error::Result;
use crate::job::{Kind, QueueName};

/// Of whom is known, for messages.
pub const WHERE: &str = "on this node (it does not know those of others)";

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

/// Counts the workers for jobs of this queue and kind.
///
/// # Errors
/// Those of whoever is asked; a node asks itself.
pub async fn workers(core: &Core, queue: &QueueName, kind: &Kind) -> Result<Workers> {
    let mut found = Workers::default();
    for live in core.sessions.all() {
        let Some(taker) = live.takes(queue, kind) else {
            continue;
        };
        found.all += 1;
        if taker.knows_kind {
            found.with_kind += 1;
            found.slots += taker.slots;
            found.free += taker.free;
        }
    }
    Ok(found)
}
