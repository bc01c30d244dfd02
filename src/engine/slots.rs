//! The free slots of the node's sessions, for one round of hand-out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::sessions::Live;
use super::{Core, lines_of};
use crate::job::QueueName;
use crate::store::Line;

/// Free slots at the beginning of a round, by queue.
pub struct Slots {
    queues: BTreeMap<QueueName, Takers>,
}

struct Takers {
    sessions: Vec<(Arc<Live>, u32)>,
    next: usize,
}

impl Slots {
    /// Counts those of all sessions; `turn` says which session of a queue is asked first.
    pub fn count(core: &Core, turn: usize) -> Self {
        let mut queues: BTreeMap<QueueName, Takers> = BTreeMap::new();
        for live in core.sessions.all() {
            for queue in live.queues() {
                let free = live.free(&queue);
                if free > 0 {
                    let takers = queues.entry(queue).or_insert(Takers {
                        sessions: Vec::new(),
                        next: turn,
                    });
                    takers.sessions.push((live.clone(), free));
                }
            }
        }
        Self { queues }
    }

    /// No session can take anything.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// The lines of the queues that have free slots.
    pub fn lines(&self) -> Vec<Line> {
        let free = self.wanted().into_iter().filter(|(_, count)| *count > 0);
        lines_of(free.map(|(queue, _)| queue).collect())
    }

    /// How many jobs of each queue could be placed.
    pub fn wanted(&self) -> BTreeMap<QueueName, usize> {
        let free = |takers: &Takers| takers.sessions.iter().map(|(_, free)| *free as usize).sum();
        self.queues
            .iter()
            .map(|(queue, takers)| (queue.clone(), free(takers)))
            .collect()
    }

    /// How many jobs of each queue this node may feed to itself: as many as leave half of what its sessions take in free.
    pub fn room(&self) -> BTreeMap<QueueName, usize> {
        let room = |takers: &Takers| {
            let of = |(live, free): &(Arc<Live>, u32)| {
                free.saturating_sub(live.in_flight()).div_ceil(2) as usize
            };
            takers.sessions.iter().map(of).sum()
        };
        self.queues
            .iter()
            .map(|(queue, takers)| (queue.clone(), room(takers)))
            .collect()
    }

    /// How many jobs could be placed. A session's slots that each of its queues may have count once.
    pub fn count_all(&self) -> usize {
        let mut sessions: HashMap<*const Live, u32> = HashMap::new();
        for (live, free) in self.queues.values().flat_map(|takers| &takers.sessions) {
            let most = sessions.entry(Arc::as_ptr(live)).or_default();
            *most = (*free).max(*most);
        }
        sessions.values().map(|free| *free as usize).sum()
    }

    /// Reserves the next free slot of a queue, going round its sessions.
    pub fn assign(&mut self, queue: &QueueName) -> Option<Arc<Live>> {
        let takers = self.queues.get_mut(queue)?;
        while !takers.sessions.is_empty() {
            let at = takers.next % takers.sessions.len();
            let (live, free) = takers.sessions.get_mut(at)?;
            // What was free a moment ago may be taken: a session can subscribe to several queues.
            if *free > 0 && live.reserve(queue) {
                *free -= 1;
                takers.next = at + 1;
                return Some(live.clone());
            }
            takers.sessions.swap_remove(at);
        }
        None
    }
}
