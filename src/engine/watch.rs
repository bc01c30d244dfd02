//! Who waits on this node for changes: calls that watch a job or a queue, and calls that wait for a job's end.
//!
//! All watchers of a thing share one entry of a [`Board`], and all entries share the looks at the store: while anybody
//! watches, one look at a time asks for all watched jobs how new they are, about ten times a second, and reads those that
//! have changed; another reads all watched queues, once a second. What this node changes itself of jobs is told here
//! ([`Board::changed`]) and read at once. A watcher sees the newest that there is when it looks, and has no queue: one
//! that is slow misses what came between, and never the last.

mod board;
mod job;
mod listen;
mod queue;
mod stream;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

pub use job::{JobNews, Watch};
pub use queue::QueueWatch;
pub use stream::Told;

use super::Core;
use super::tasks::Tasks;
use crate::error::Result;
use crate::job::limits::{BATCH_MAX, LOGS_READ_MAX};
use crate::job::{Job, JobId, QueueName, View};
use crate::store::{QueueView, Version};
use board::{Board, Seen, Watched, Watcher};
use listen::{Listeners, Said, SeenJob};

/// From one look at all watched jobs to the next. One that takes longer than half of this makes the next one wait as long
/// as it took: looks never take more than half of a connection.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Changes of this node that come within this are read together.
const READ_EVERY: Duration = Duration::from_millis(10);
/// The same for queues: a look at one costs about as much as one at all of them.
const LOOK_AT_QUEUES_EVERY: Duration = Duration::from_secs(1);
const READ_QUEUES_EVERY: Duration = Duration::from_millis(100);
/// After a look that failed.
const AFTER_FAULT: Duration = Duration::from_millis(500);

/// All that is watched on this node.
#[derive(Debug)]
pub struct Watches {
    jobs: Arc<Board<JobId, SeenJob>>,
    /// Those who want to know what is said.
    listeners: Arc<Listeners>,
    queues: Arc<Board<QueueName, QueueView>>,
    watchers: Arc<AtomicUsize>,
}

impl Default for Watches {
    fn default() -> Self {
        let watchers = Arc::new(AtomicUsize::new(0));
        Self {
            jobs: Arc::new(Board::new(watchers.clone())),
            listeners: Arc::default(),
            queues: Arc::new(Board::new(watchers.clone())),
            watchers,
        }
    }
}

impl Watches {
    /// Begins to watch a job.
    ///
    /// # Errors
    /// `LimitReached` when the node has all the watchers it takes.
    pub fn watch(&self, job: JobId) -> Result<Watcher<JobId, SeenJob>> {
        self.jobs.watch(job)
    }

    /// This node has changed these jobs, durably.
    pub fn changed(&self, jobs: impl IntoIterator<Item = JobId>) {
        self.jobs.changed(jobs);
    }

    /// How many watchers there are of anything.
    pub fn count(&self) -> usize {
        self.watchers.load(Ordering::SeqCst)
    }
}

impl Watches {
    /// Those of the jobs of which more was said than has been read for who listens, each with the last line that was.
    /// What was said before the first look, each of them reads for himself.
    fn unread(&self, jobs: &[Option<Job>]) -> Vec<(JobId, u64)> {
        let unread = |job: &Job| match self.jobs.seen(&job.id) {
            Some(Seen::There(seen)) if job.lines_said > seen.last_line() => {
                let line = seen.last_line();
                self.listeners.has(job.id).then_some((job.id, line))
            }
            _ => None,
        };
        jobs.iter().flatten().filter_map(unread).collect()
    }
}

impl Watched for SeenJob {
    fn is_same(&self, other: &Self) -> bool {
        Version::of(&self.job) == Version::of(&other.job)
    }

    fn is_over(&self) -> bool {
        self.job.state.is_final()
    }
}

impl Watched for QueueView {
    fn is_same(&self, other: &Self) -> bool {
        let (mut one, mut two) = (self.clone(), other.clone());
        for view in [&mut one, &mut two] {
            // These run on by themselves.
            view.as_of = self.as_of;
            view.stats.oldest_wait = view.stats.oldest_wait.map(|_| Duration::ZERO);
        }
        one == two
    }

    fn is_over(&self) -> bool {
        false
    }
}

impl Watcher<JobId, SeenJob> {
    /// Waits until a look has shown the job to be final, at a later revision than this, or gone. Cancel safe.
    pub async fn ended(&mut self, after_revision: u64) {
        let is_over = |seen: &Seen<SeenJob>| match seen {
            Seen::Nothing => false,
            Seen::There(seen) => seen.job.state.is_final() && seen.job.revision > after_revision,
            Seen::Gone => true,
        };
        // The sending half lives as long as this place.
        let _ = self.seen.wait_for(is_over).await;
    }
}

/// Looks at jobs for as long as the node lives.
pub(super) async fn look_at_jobs(tasks: Tasks, core: Arc<Core>) {
    let board = &core.watches.jobs;
    let mut pace = Pace::new(LOOK_EVERY, READ_EVERY);
    while let Some(look) = pace.next(&tasks, board).await {
        let looked = match look {
            Look::AtAll => look_at_all_jobs(&core).await,
            Look::AtDue => read_jobs(&core, &board.due()).await,
        };
        pace.looked(look, looked);
    }
}

/// Looks at queues for as long as the node lives.
pub(super) async fn look_at_queues(tasks: Tasks, core: Arc<Core>) {
    let board = &core.watches.queues;
    let mut pace = Pace::new(LOOK_AT_QUEUES_EVERY, READ_QUEUES_EVERY);
    while let Some(look) = pace.next(&tasks, board).await {
        let looked = match look {
            Look::AtAll => look_at_all_queues(&core).await,
            Look::AtDue => read_queues(&core, &board.due()).await,
        };
        pace.looked(look, looked);
    }
}

/// When to look, and at what.
struct Pace {
    every: Duration,
    /// Things that are due within this are read together.
    at_once: Duration,
    began: Instant,
    ended: Option<Instant>,
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    AtAll,
    AtDue,
}

impl Pace {
    fn new(every: Duration, at_once: Duration) -> Self {
        Self {
            every,
            at_once,
            began: Instant::now(),
            ended: None,
            next: Instant::now(),
        }
    }

    /// Waits for the next look: at all things every so often, at those that are due at once, and at nothing while nobody
    /// watches. `None`: it is time to stop.
    async fn next<K: Eq + Hash + Clone, V: Watched>(
        &mut self,
        tasks: &Tasks,
        board: &Board<K, V>,
    ) -> Option<Look> {
        // Cancel safe: these only wait, and a ring that comes later is kept.
        tokio::select! {
            () = tasks.stopping().cancelled() => return None,
            () = board.rung.notified() => {}
            () = tokio::time::sleep_until(self.next), if board.count() > 0 => {}
        }
        let rest = self
            .ended
            .map(|at| self.at_once.saturating_sub(at.elapsed()));
        if !tasks.sleep(rest.unwrap_or_default()).await {
            return None;
        }
        self.began = Instant::now();
        Some(match self.began >= self.next {
            true => Look::AtAll,
            false => Look::AtDue,
        })
    }

    /// How it went.
    fn looked(&mut self, look: Look, how: Result<()>) {
        let took = self.began.elapsed();
        self.ended = Some(Instant::now());
        match how {
            Ok(()) if look == Look::AtAll => self.next = self.began + self.every.max(2 * took),
            Ok(()) => {}
            Err(error) => {
                debug!(%error, "no look at what is watched");
                self.next = Instant::now() + AFTER_FAULT.max(self.every);
            }
        }
    }
}

async fn look_at_all_jobs(core: &Core) -> Result<()> {
    let board = &core.watches.jobs;
    read_jobs(core, &board.due()).await?;
    for ids in board.all().chunks(BATCH_MAX) {
        let versions = core.store.versions(ids.to_vec()).await?;
        let pairs = ids.iter().zip(versions);
        let changed = pairs.filter(|(id, now)| match board.seen(id) {
            Some(Seen::There(seen)) => *now != Some(Version::of(&seen.job)),
            Some(Seen::Gone) => now.is_some(),
            Some(Seen::Nothing) => true,
            None => false,
        });
        let changed: Vec<JobId> = changed.map(|(id, _)| *id).collect();
        read_jobs(core, &changed).await?;
    }
    board.looked();
    Ok(())
}

async fn read_jobs(core: &Core, ids: &[JobId]) -> Result<()> {
    for ids in ids.chunks(BATCH_MAX) {
        let jobs = core.store.get(ids.to_vec(), View::Progress).await?;
        // Whatever is said before a change is in the store before it: so lines are read after the job, and told before it.
        let unread = core.watches.unread(&jobs);
        let mut said: HashMap<JobId, Said> = HashMap::with_capacity(unread.len());
        for unread in unread.chunks(LOGS_READ_MAX) {
            let lines = core.store.lines(unread.to_vec()).await?;
            for ((id, after), lines) in unread.iter().zip(lines) {
                let after = *after;
                said.insert(*id, Said { after, lines });
            }
        }
        for (id, job) in ids.iter().zip(jobs) {
            let said = said.remove(id).unwrap_or_default();
            core.watches
                .jobs
                .show(id, job.map(|job| SeenJob { job, said }));
        }
    }
    Ok(())
}

async fn look_at_all_queues(core: &Core) -> Result<()> {
    let board = &core.watches.queues;
    // Those that are due are among them.
    drop(board.due());
    read_queues(core, &board.all()).await?;
    board.looked();
    Ok(())
}

async fn read_queues(core: &Core, names: &[QueueName]) -> Result<()> {
    for names in names.chunks(BATCH_MAX) {
        let queues = core.store.queues_named(names.to_vec()).await?;
        for (name, queue) in names.iter().zip(queues) {
            core.watches.queues.show(name, queue);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
