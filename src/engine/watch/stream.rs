//! What whoever watches a thing has in common, whatever it is.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Core;
use super::board::{Seen, Watcher};
use crate::error::{Error, Result};
use crate::job::limits::{WATCH_BLIND_MAX, WATCH_KEEPALIVE};

/// The first look comes within this, however many begin to watch with this one.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile whether the store is away: then there is nothing to wait for.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// A word to who watches a thing.
#[derive(Debug, Clone)]
pub enum Told<T> {
    /// The thing as it is now.
    News(Box<T>),
    /// Nothing has changed for a while; the watch goes on.
    Quiet,
}

/// A thing that is watched, since when.
#[derive(Debug)]
pub struct Watching<K: Eq + Hash, V> {
    pub core: Arc<Core>,
    pub watcher: Watcher<K, V>,
    begun: Instant,
}

/// Why a wait has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Something was shown.
    Shown,
    /// Nothing was, for so long that a word is due.
    Quiet,
}

/// Whether this node takes anybody who watches.
///
/// # Errors
/// `Draining`, `Unavailable`.
pub fn may_begin(core: &Core) -> Result<()> {
    if core.is_draining() {
        return Err(Error::Draining);
    }
    match core.store_is_away() {
        true => Err(Error::unavailable("the store")),
        false => Ok(()),
    }
}

impl<K: Eq + Hash, V> Watching<K, V> {
    /// Begins with the first look. `None`: there is no such thing.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn begin(core: &Arc<Core>, mut watcher: Watcher<K, V>) -> Result<Option<Self>> {
        let begun = Instant::now();
        let is_there = loop {
            let shown = watcher.seen.wait_for(|seen| !matches!(seen, Seen::Nothing));
            // Cancel safe: it only waits.
            match tokio::time::timeout(ASK_AGAIN, shown).await {
                Ok(Ok(seen)) => break matches!(*seen, Seen::There(_)),
                _ if core.store_is_away() || begun.elapsed() >= FIRST_WITHIN => {
                    return Err(Error::unavailable("the store"));
                }
                _ => {}
            }
        };
        Ok(is_there.then(|| Self {
            core: core.clone(),
            watcher,
            begun,
        }))
    }

    /// What is seen now. What is shown later ends the next wait.
    pub fn look(&mut self) -> Seen<V> {
        self.watcher.seen.borrow_and_update().clone()
    }

    /// Waits for what is shown next, or until a word is due. Cancel safe.
    ///
    /// # Errors
    /// `Draining`; `Unavailable` when the store has not answered for long.
    pub async fn wait(&mut self) -> Result<Waited> {
        // Cancel safe: these only wait, and a change that comes later is kept.
        tokio::select! {
            _ = self.watcher.seen.changed() => Ok(Waited::Shown),
            () = self.core.draining.cancelled() => Err(Error::Draining),
            () = tokio::time::sleep(WATCH_KEEPALIVE) => {
                match self.watcher.blind_for(self.begun) > WATCH_BLIND_MAX {
                    true => Err(Error::unavailable("the store")),
                    false => Ok(Waited::Quiet),
                }
            }
        }
    }
}
