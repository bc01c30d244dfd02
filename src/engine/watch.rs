//! Who waits for changes of jobs on this node: calls that watch a job, and calls that wait for its end.
//!
//! All watchers of a job share one entry, and all entries share the looks at the store: while anybody watches, one look
//! at a time asks for the versions of all watched jobs, about ten times a second, and reads those that have changed. What
//! this node changes itself is told here ([`Watches::changed`]) and read at once. A watcher sees the newest row there is
//! when it looks, and has no queue: one that is slow misses what came between, and never the last.

mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::debug;

pub use stream::{Told, Watch};

use super::Core;
use super::tasks::Tasks;
use crate::error::{Error, Limit, Result};
use crate::job::limits::{BATCH_MAX, WATCHERS_MAX};
use crate::job::{Job, JobId, View};
use crate::store::Version;

/// From one look at all watched jobs to the next. One that takes longer than half of this makes the next one wait as long
/// as it took: looks never take more than half of a connection.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Changes of this node that come within this are read together.
const READ_EVERY: Duration = Duration::from_millis(10);
/// After a look that failed.
const AFTER_FAULT: Duration = Duration::from_millis(500);
/// A node with too many watchers may have fewer by then.
const FULL_FOR: Duration = Duration::from_secs(5);

/// The jobs that are watched on this node.
#[derive(Debug, Default)]
pub struct Watches {
    jobs: Mutex<Watched>,
    /// Watchers; beside the lock, as whoever changes jobs asks for it each time.
    watchers: AtomicUsize,
    /// Rings when a job is to be read at once.
    rung: Notify,
    /// When a look at all of them last came to its end.
    looked_at: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Watched {
    entries: HashMap<JobId, Entry>,
    /// Those that are to be read at once.
    due: HashSet<JobId>,
}

/// A job that is watched.
#[derive(Debug)]
struct Entry {
    watchers: usize,
    seen: watch::Sender<Seen>,
    version: Option<Version>,
}

/// What the last look at a job has shown.
#[derive(Debug, Clone)]
enum Seen {
    /// There was none yet.
    Nothing,
    /// The job, in [`View::Progress`].
    Job(Arc<Job>),
    /// There is no such job, or not any more.
    Gone,
}

/// A place among those who watch a job. It ends when it is dropped.
#[derive(Debug)]
pub struct Watcher {
    watches: Arc<Watches>,
    job: JobId,
    seen: watch::Receiver<Seen>,
}

impl Watches {
    /// Begins to watch a job.
    ///
    /// # Errors
    /// `LimitReached` when the node has all the watchers it takes.
    pub fn watch(self: &Arc<Self>, job: JobId) -> Result<Watcher> {
        let mut watched = self.lock();
        if self.count() >= WATCHERS_MAX {
            return Err(Error::LimitReached {
                limit: Limit::Streams,
                retry_after: FULL_FOR,
            });
        }
        let Watched { entries, due } = &mut *watched;
        let entry = entries.entry(job).or_insert_with(|| Entry {
            watchers: 0,
            seen: watch::Sender::new(Seen::Nothing),
            version: None,
        });
        // What others have seen as its end may not be that any more: a hand may have brought it back. Nor may one that was
        // not there be still to come.
        let is_over = match &*entry.seen.borrow() {
            Seen::Nothing => false,
            Seen::Job(job) => job.state.is_final(),
            Seen::Gone => true,
        };
        if is_over {
            entry.version = None;
            entry.seen.send_replace(Seen::Nothing);
        }
        if entry.version.is_none() {
            due.insert(job);
            self.rung.notify_one();
        }
        entry.watchers += 1;
        self.watchers.fetch_add(1, Ordering::SeqCst);
        let seen = entry.seen.subscribe();
        Ok(Watcher {
            watches: self.clone(),
            job,
            seen,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.watchers.load(Ordering::SeqCst)
    }

    /// This node has changed these jobs, durably.
    pub fn changed(&self, jobs: impl IntoIterator<Item = JobId>) {
        // Who begins to watch after this reads what is so by then.
        if self.count() == 0 {
            return;
        }
        let mut watched = self.lock();
        let Watched { entries, due } = &mut *watched;
        due.extend(jobs.into_iter().filter(|job| entries.contains_key(job)));
        if !due.is_empty() {
            self.rung.notify_one();
        }
    }

    /// Takes the jobs that are to be read at once. Should that fail, the next look at all of them finds them.
    fn due(&self) -> Vec<JobId> {
        self.lock().due.drain().collect()
    }

    fn all(&self) -> Vec<JobId> {
        self.lock().entries.keys().copied().collect()
    }

    /// Those of them that are not what was last seen of them.
    fn changed_since(&self, ids: &[JobId], now: &[Option<Version>]) -> Vec<JobId> {
        let watched = self.lock();
        let is_news = |id: &JobId, now: &Option<Version>| {
            watched.entries.get(id).is_some_and(|entry| match now {
                Some(_) => entry.version != *now,
                None => !matches!(*entry.seen.borrow(), Seen::Gone),
            })
        };
        let pairs = ids.iter().zip(now);
        pairs
            .filter(|(id, now)| is_news(id, now))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Shows what was read to those who watch it.
    fn show(&self, id: JobId, job: Option<Job>) {
        let mut watched = self.lock();
        let Some(entry) = watched.entries.get_mut(&id) else {
            return;
        };
        let version = job.as_ref().map(Version::of);
        if version.is_some() && version == entry.version {
            return;
        }
        entry.version = version;
        entry.seen.send_replace(match job {
            Some(job) => Seen::Job(Arc::new(job)),
            None => Seen::Gone,
        });
    }

    fn looked(&self) {
        *self.last_look() = Some(Instant::now());
    }

    fn last_look(&self) -> MutexGuard<'_, Option<Instant>> {
        self.looked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Waits until a look has shown the job to be final, at a later revision than this, or gone. Cancel safe.
    pub async fn ended(&mut self, after_revision: u64) {
        let is_over = |seen: &Seen| match seen {
            Seen::Nothing => false,
            Seen::Job(job) => job.state.is_final() && job.revision > after_revision,
            Seen::Gone => true,
        };
        // The sending half lives as long as this place.
        let _ = self.seen.wait_for(is_over).await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let entries = &mut self.watches.lock().entries;
        if let Some(entry) = entries.get_mut(&self.job) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                entries.remove(&self.job);
            }
        }
        self.watches.watchers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Looks for as long as the node lives: at all watched jobs every so often, at those that this node has changed at once,
/// and not at all while nobody watches.
pub(super) async fn look(tasks: Tasks, core: Arc<Core>) {
    let watches = &core.watches;
    let mut read_at: Option<Instant> = None;
    let mut next = Instant::now();
    loop {
        // Cancel safe: these only wait, and a ring that comes later is kept.
        tokio::select! {
            () = tasks.stopping().cancelled() => return,
            () = watches.rung.notified() => {}
            () = tokio::time::sleep_until(next), if watches.count() > 0 => {}
        }
        let rest = read_at.map(|at| READ_EVERY.saturating_sub(at.elapsed()));
        if !tasks.sleep(rest.unwrap_or_default()).await {
            return;
        }
        let began = Instant::now();
        let is_at_all = began >= next;
        let looked = match is_at_all {
            true => look_at_all(&core).await,
            false => read(&core, &watches.due()).await,
        };
        let took = began.elapsed();
        read_at = Some(Instant::now());
        match looked {
            Ok(()) if is_at_all => next = began + LOOK_EVERY.max(2 * took),
            Ok(()) => {}
            Err(error) => {
                debug!(%error, "no look at the jobs that are watched");
                next = Instant::now() + AFTER_FAULT;
            }
        }
    }
}

async fn look_at_all(core: &Core) -> Result<()> {
    let watches = &core.watches;
    read(core, &watches.due()).await?;
    for ids in watches.all().chunks(BATCH_MAX) {
        let versions = core.store.versions(ids.to_vec()).await?;
        read(core, &watches.changed_since(ids, &versions)).await?;
    }
    watches.looked();
    Ok(())
}

async fn read(core: &Core, ids: &[JobId]) -> Result<()> {
    for ids in ids.chunks(BATCH_MAX) {
        let jobs = core.store.get(ids.to_vec(), View::Progress).await?;
        for (id, job) in ids.iter().zip(jobs) {
            core.watches.show(*id, job);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
