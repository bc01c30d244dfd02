//! Who watches what, and what the last look has shown of it. All watchers of a thing share one entry.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::error::{Error, Limit, Result};
use crate::job::limits::WATCHERS_MAX;

/// A node with too many watchers may have fewer by then.
const FULL_FOR: Duration = Duration::from_secs(5);

/// A thing that is watched, as it was at some moment.
pub trait Watched {
    /// Whether a watcher of the one need not be told the other.
    fn is_same(&self, other: &Self) -> bool;
    /// Whether it stays so, unless a hand changes it.
    fn is_over(&self) -> bool;
}

/// The things of one kind that are watched on this node.
#[derive(Debug)]
pub struct Board<K, V> {
    entries: Mutex<Entries<K, V>>,
    /// Watchers; beside the lock, as whoever changes jobs asks for it each time.
    watchers: AtomicUsize,
    /// Watchers of all kinds together.
    of_all: Arc<AtomicUsize>,
    /// Rings when a thing is to be read at once.
    pub rung: Notify,
    /// When a look at all of them last came to its end.
    looked_at: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Entries<K, V> {
    watched: HashMap<K, Entry<V>>,
    /// Those that are to be read at once.
    due: HashSet<K>,
}

#[derive(Debug)]
struct Entry<V> {
    watchers: usize,
    seen: watch::Sender<Seen<V>>,
}

/// What the last look at a thing has shown.
#[derive(Debug)]
pub enum Seen<V> {
    /// There was none yet.
    Nothing,
    /// It.
    There(Arc<V>),
    /// There is no such thing, or not any more.
    Gone,
}

impl<V> Clone for Seen<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::There(thing) => Self::There(thing.clone()),
            Self::Gone => Self::Gone,
        }
    }
}

/// A place among those who watch a thing. It ends when it is dropped.
#[derive(Debug)]
pub struct Watcher<K: Eq + Hash, V> {
    board: Arc<Board<K, V>>,
    /// What is watched.
    pub key: K,
    /// What is seen of it.
    pub seen: watch::Receiver<Seen<V>>,
}

impl<K: Eq + Hash + Clone, V: Watched> Board<K, V> {
    /// An empty one, whose watchers are counted with others.
    pub fn new(of_all: Arc<AtomicUsize>) -> Self {
        Self {
            entries: Mutex::new(Entries {
                watched: HashMap::new(),
                due: HashSet::new(),
            }),
            watchers: AtomicUsize::new(0),
            of_all,
            rung: Notify::new(),
            looked_at: Mutex::new(None),
        }
    }

    /// Begins to watch a thing.
    ///
    /// # Errors
    /// `LimitReached` when the node has all the watchers it takes.
    pub fn watch(self: &Arc<Self>, key: K) -> Result<Watcher<K, V>> {
        let place = self.of_all.fetch_add(1, Ordering::SeqCst);
        if place >= WATCHERS_MAX {
            self.of_all.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::LimitReached {
                limit: Limit::Streams,
                retry_after: FULL_FOR,
            });
        }
        let mut entries = self.lock();
        let Entries { watched, due } = &mut *entries;
        let entry = watched.entry(key.clone()).or_insert_with(|| Entry {
            watchers: 0,
            seen: watch::Sender::new(Seen::Nothing),
        });
        // What others have seen as its end may not be that any more: a hand may have brought it back. Nor may one that was
        // not there be still to come.
        let is_over = match &*entry.seen.borrow() {
            Seen::Nothing => false,
            Seen::There(thing) => thing.is_over(),
            Seen::Gone => true,
        };
        if is_over {
            entry.seen.send_replace(Seen::Nothing);
        }
        if matches!(&*entry.seen.borrow(), Seen::Nothing) {
            due.insert(key.clone());
            self.rung.notify_one();
        }
        entry.watchers += 1;
        self.watchers.fetch_add(1, Ordering::SeqCst);
        let seen = entry.seen.subscribe();
        Ok(Watcher {
            board: self.clone(),
            key,
            seen,
        })
    }

    /// How many watchers there are.
    pub fn count(&self) -> usize {
        self.watchers.load(Ordering::SeqCst)
    }

    /// This node has changed these things, durably.
    pub fn changed(&self, keys: impl IntoIterator<Item = K>) {
        // Who begins to watch after this reads what is so by then.
        if self.count() == 0 {
            return;
        }
        let mut entries = self.lock();
        let Entries { watched, due } = &mut *entries;
        due.extend(keys.into_iter().filter(|key| watched.contains_key(key)));
        if !due.is_empty() {
            self.rung.notify_one();
        }
    }

    /// Takes the things that are to be read at once. Should that fail, the next look at all of them finds them.
    pub fn due(&self) -> Vec<K> {
        self.lock().due.drain().collect()
    }

    /// Everything that is watched.
    pub fn all(&self) -> Vec<K> {
        self.lock().watched.keys().cloned().collect()
    }

    /// What was last seen of a thing that is watched.
    pub fn seen(&self, key: &K) -> Option<Seen<V>> {
        let entries = self.lock();
        entries
            .watched
            .get(key)
            .map(|entry| entry.seen.borrow().clone())
    }

    /// Shows what was read of a thing to those who watch it.
    pub fn show(&self, key: &K, now: Option<V>) {
        let entries = self.lock();
        let Some(entry) = entries.watched.get(key) else {
            return;
        };
        let is_known = match (&*entry.seen.borrow(), &now) {
            (Seen::There(before), Some(now)) => before.is_same(now),
            (Seen::Gone, None) => true,
            _ => false,
        };
        if !is_known {
            entry.seen.send_replace(match now {
                Some(thing) => Seen::There(Arc::new(thing)),
                None => Seen::Gone,
            });
        }
    }

    /// A look at all of them has come to its end.
    pub fn looked(&self) {
        *self.last_look() = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Entries<K, V>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Board<K, V> {
    fn last_look(&self) -> MutexGuard<'_, Option<Instant>> {
        self.looked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V> Watcher<K, V> {
    /// How long nobody has looked at the things of this kind, since this moment.
    pub fn blind_for(&self, since: Instant) -> Duration {
        let last = *self.board.last_look();
        last.map_or(since, |last| last.max(since)).elapsed()
    }
}

impl<K: Eq + Hash, V> Drop for Watcher<K, V> {
    fn drop(&mut self) {
        let mut entries = self
            .board
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.watched.get_mut(&self.key) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                entries.watched.remove(&self.key);
            }
        }
        self.board.watchers.fetch_sub(1, Ordering::SeqCst);
        self.board.of_all.fetch_sub(1, Ordering::SeqCst);
    }
}
