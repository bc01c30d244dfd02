//! Slots that are promised to grants under way.

use std::collections::BTreeMap;

use crate::job::QueueName;

/// How many of each queue. Looked at for every job that is handed out, so nothing here is walked through.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Reserved {
    of: BTreeMap<QueueName, u32>,
    all: u32,
}

impl Reserved {
    /// Promises one more.
    pub fn add(&mut self, queue: &QueueName) {
        *self.of.entry(queue.clone()).or_default() += 1;
        self.all += 1;
    }

    /// Takes a promise back, if there is one.
    pub fn remove(&mut self, queue: &QueueName) {
        let Some(count) = self.of.get_mut(queue) else {
            return;
        };
        *count -= 1;
        self.all -= 1;
        if *count == 0 {
            self.of.remove(queue);
        }
    }

    /// Those of one queue.
    pub fn of(&self, queue: &QueueName) -> u32 {
        self.of.get(queue).copied().unwrap_or(0)
    }

    /// Those of all queues.
    pub fn all(&self) -> u32 {
        self.all
    }

    /// Nothing is promised.
    pub fn is_empty(&self) -> bool {
        self.all == 0
    }
}
