//! What one caller who watches a job is told, and when that ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Core, Engine};
use super::{Said, Seen, Watcher};
use crate::error::{Error, Result};
use crate::job::limits::{WATCH_BLIND_MAX, WATCH_KEEPALIVE};
use crate::job::{Job, JobId, LogLine, View};
use crate::store::Version;

/// The first look comes within this, however many begin to watch with this one.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile whether the store is away: then there is nothing to wait for.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// A word to who watches a job.
#[derive(Debug, Clone)]
pub enum Told {
    /// The job as it is now.
    Job(Box<Job>),
    /// New lines of its log, in order; at least one. Those of an attempt come before its end.
    Lines(Vec<LogLine>),
    /// Nothing has changed for a while; the watch goes on.
    Quiet,
}

/// A job that is watched. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    core: Arc<Core>,
    watcher: Watcher,
    view: View,
    /// The caller knows the job up to this revision.
    after_revision: u64,
    /// What was last seen of it, and what was told then, which may be newer.
    told: Option<(Version, Version)>,
    /// The caller wants to know what is said, and knows it up to this line.
    last_line: Option<u64>,
    begun: Instant,
    is_over: bool,
}

impl Engine {
    /// Watches a job: what is newer than `after_revision` now, then each change. Returns after the first look at it. A
    /// basic view shows the progress too, its checkpoint aside; it is shared by all who watch, while a full one is read
    /// for each of them. With `after_line`, also the lines of its log that are above this number.
    ///
    /// # Errors
    /// `JobNotFound`, `Draining`, `LimitReached`, `Unavailable`.
    pub async fn watch(
        &self,
        id: JobId,
        after_revision: u64,
        view: View,
        after_line: Option<u64>,
    ) -> Result<Watch> {
        let core = &self.core;
        if core.is_draining() {
            return Err(Error::Draining);
        }
        if core.store_is_away() {
            return Err(Error::unavailable("the store"));
        }
        let mut watcher = core.watches.watch(id, after_line.is_some())?;
        let begun = Instant::now();
        let is_there = loop {
            let shown = watcher.seen.wait_for(|seen| !matches!(seen, Seen::Nothing));
            // Cancel safe: it only waits.
            match tokio::time::timeout(ASK_AGAIN, shown).await {
                Ok(Ok(seen)) => break matches!(*seen, Seen::Job(..)),
                _ if core.store_is_away() || begun.elapsed() >= FIRST_WITHIN => {
                    return Err(Error::unavailable("the store"));
                }
                _ => {}
            }
        };
        match is_there {
            true => Ok(Watch {
                core: core.clone(),
                watcher,
                view,
                after_revision,
                told: None,
                last_line: after_line,
                begun,
                is_over: false,
            }),
            false => Err(Error::JobNotFound(id.to_string())),
        }
    }
}

impl Watch {
    /// The job is final, and the caller knows that.
    pub fn has_ended(&self) -> bool {
        match &*self.watcher.seen.borrow() {
            Seen::Job(job, _) => {
                job.state.is_final() && !self.is_news(job) && !self.is_unheard(job)
            }
            Seen::Nothing | Seen::Gone => false,
        }
    }

    /// The next word. `None`: the job is final, and that was told. After an error nothing follows: `JobNotFound` when it
    /// was removed, `Draining`, `Unavailable` when the store has not answered for long.
    pub async fn next(&mut self) -> Option<Result<Told>> {
        while !self.is_over {
            let seen = self.watcher.seen.borrow_and_update().clone();
            match seen {
                Seen::Gone => return self.fail(Error::JobNotFound(self.watcher.job.to_string())),
                Seen::Job(job, said) if self.is_unheard(&job) => {
                    match self.listen(&job, &said).await {
                        Ok(lines) if lines.is_empty() => continue,
                        Ok(lines) => return Some(Ok(Told::Lines(lines))),
                        Err(error) => return self.fail(error),
                    }
                }
                Seen::Job(job, _) if self.is_news(&job) => return Some(self.tell(job).await),
                Seen::Job(job, _) if job.state.is_final() => break,
                Seen::Job(..) | Seen::Nothing => {}
            }
            let draining = self.core.draining.clone();
            // Cancel safe: these only wait, and a change that comes later is kept.
            tokio::select! {
                _ = self.watcher.seen.changed() => {}
                () = draining.cancelled() => return self.fail(Error::Draining),
                () = tokio::time::sleep(WATCH_KEEPALIVE) => {
                    if self.blind_for() > WATCH_BLIND_MAX {
                        return self.fail(Error::unavailable("the store"));
                    }
                    return Some(Ok(Told::Quiet));
                }
            }
        }
        self.is_over = true;
        None
    }

    /// More was said than the caller knows.
    fn is_unheard(&self, job: &Job) -> bool {
        self.last_line.is_some_and(|last| job.lines_said > last)
    }

    /// The lines that the caller does not know. He who has just come, or was slow, reads them for himself.
    async fn listen(&mut self, job: &Job, said: &Said) -> Result<Vec<LogLine>> {
        let known = self.last_line.unwrap_or_default();
        let last = said.lines.last().map_or(0, |line| line.number);
        let mut lines = match said.after <= known && last >= job.lines_said {
            true => said.lines.clone(),
            false => {
                let read = self.core.store.lines(vec![(job.id, known)]).await?.pop();
                read.unwrap_or_default()
            }
        };
        lines.retain(|line| line.number > known);
        let last = lines.last().map_or(0, |line| line.number);
        self.last_line = Some(last.max(job.lines_said));
        Ok(lines)
    }

    async fn tell(&mut self, job: Arc<Job>) -> Result<Told> {
        let seen = Version::of(&job);
        let job = match self.view {
            View::Basic | View::Progress => Ok(Arc::unwrap_or_clone(job)),
            View::Full => self.read().await,
        };
        match job {
            Ok(job) => {
                self.told = Some((seen, Version::of(&job)));
                self.is_over = job.state.is_final();
                Ok(Told::Job(Box::new(job)))
            }
            Err(error) => {
                self.is_over = true;
                Err(error)
            }
        }
    }

    async fn read(&self) -> Result<Job> {
        let id = self.watcher.job;
        let read = self.core.store.get(vec![id], View::Full).await?;
        let job = read.into_iter().next().flatten();
        job.ok_or_else(|| Error::JobNotFound(id.to_string()))
    }

    /// Of the revision that the caller says he knows, he may not know the newest progress.
    fn is_news(&self, job: &Job) -> bool {
        match self.told {
            Some((seen, told)) => {
                let now = Version::of(job).but_for_lines();
                ![seen, told].map(Version::but_for_lines).contains(&now)
            }
            None if job.revision == self.after_revision => {
                job.progress.is_some() && !job.state.is_final()
            }
            None => job.revision > self.after_revision,
        }
    }

    /// How long nobody has looked at the jobs that are watched here.
    fn blind_for(&self) -> Duration {
        let last = *self.watcher.watches.last_look();
        last.map_or(self.begun, |last| last.max(self.begun))
            .elapsed()
    }

    fn fail(&mut self, error: Error) -> Option<Result<Told>> {
        self.is_over = true;
        Some(Err(error))
    }
}
