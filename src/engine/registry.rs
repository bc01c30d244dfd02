//! Which sessions this node has, by their id, and who of them has free slots.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::sessions::Live;
use super::slots::{Free, Slots};
use crate::error::{Error, Limit, Result};
use crate::job::{QueueName, SessionId};
use crate::session::Event;
use crate::store::{Attached, Line};

/// All sessions of this node.
#[derive(Debug, Default)]
pub struct Registry {
    sessions: Mutex<Sessions>,
    opening: AtomicUsize,
}

#[derive(Debug, Default)]
struct Sessions {
    live: HashMap<SessionId, Arc<Live>>,
    slots: Slots<Arc<Live>>,
}

impl Registry {
    /// The session, if this node has its stream.
    pub fn get(&self, id: SessionId) -> Option<Arc<Live>> {
        self.lock().live.get(&id).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.lock().live.values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().live.len()
    }

    /// The free slots of all.
    pub fn free(&self) -> Free {
        self.lock().slots.free()
    }

    /// Counts them anew; what time alone has taken from them shows only then.
    pub fn recount(&self) {
        for live in self.all() {
            live.recount();
        }
    }

    /// Promises the next free slot of a queue, going round its sessions.
    pub fn reserve(&self, queue: &QueueName) -> Option<Arc<Live>> {
        // Who has none although it was counted is not counted any more.
        loop {
            let live = self.lock().slots.take(queue)?;
            if live.reserve(queue) {
                return Some(live);
            }
        }
    }

    pub(super) fn count_slots(
        &self,
        live: &Arc<Live>,
        free: Vec<(QueueName, u32)>,
        in_flight: u32,
    ) {
        let mut sessions = self.lock();
        let id = live.attached().session;
        // A stream that is gone, or not the session's newest, gets nothing.
        let is_there = sessions
            .live
            .get(&id)
            .is_some_and(|there| Arc::ptr_eq(there, live));
        if is_there {
            sessions.slots.set(id, live, free, in_flight);
        }
    }

    /// Forgets a stream that is gone, unless a newer one has its session here. The leases live on in the store.
    pub fn remove(&self, attached: Attached) {
        let mut sessions = self.lock();
        if let Some(live) = sessions.live.get(&attached.session)
            && live.attached() == attached
        {
            let live = live.clone();
            sessions.slots.set(attached.session, &live, Vec::new(), 0);
            sessions.live.remove(&attached.session);
        }
    }

    /// Adds a stream, and ends an older one of the same session: that is the one to be added, if it was slower. A worker
    /// whose newest stream ends so would take itself for a copy.
    pub(super) fn add(&self, live: Arc<Live>) {
        let older = {
            let mut sessions = self.lock();
            let is_newer = |there: &Arc<Live>| there.attached().attach > live.attached().attach;
            let id = live.attached().session;
            match sessions.live.get(&id).is_some_and(is_newer) {
                true => Some(live),
                false => {
                    sessions.slots.set(id, &live, Vec::new(), 0);
                    sessions.live.insert(id, live)
                }
            }
        };
        if let Some(older) = older {
            older.feed(Event::Moved);
        }
    }

    /// Every line that some session takes jobs of.
    pub fn lines(&self) -> Vec<Line> {
        let mut queues: Vec<QueueName> = self.all().iter().flat_map(|live| live.queues()).collect();
        queues.sort_unstable();
        queues.dedup();
        super::lines_of(queues)
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the streams of this node, while a session is being opened.
pub struct Turn<'a>(&'a Registry);

impl<'a> Turn<'a> {
    /// Takes one.
    pub fn take(registry: &'a Registry) -> Self {
        registry.opening.fetch_add(1, Ordering::SeqCst);
        Self(registry)
    }

    /// Whether there are at most so many, with this one.
    ///
    /// # Errors
    /// `LimitReached` if there are more.
    pub fn check(&self, most: usize) -> Result<()> {
        match self.0.opening.load(Ordering::SeqCst) + self.0.count() <= most {
            true => Ok(()),
            false => Err(Error::LimitReached {
                limit: Limit::Streams,
                retry_after: Duration::from_secs(5),
            }),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::SeqCst);
    }
}
