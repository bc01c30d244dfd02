//! What one caller who watches a job is told, and when that ends.

use std::sync::Arc;

use super::super::Engine;
use super::board::Seen;
use super::listen::{Listener, Said, SeenJob};
use super::stream::{Told, Waited, Watching, may_begin};
use crate::error::{Error, Result};
use crate::job::{Job, JobId, LogLine, View};
use crate::store::Version;

/// What is new of a job.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "it is told in a box")]
pub enum JobNews {
    /// The job as it is now.
    Job(Job),
    /// New lines of its log, in order; at least one. Those of an attempt come before its end.
    Lines(Vec<LogLine>),
}

/// A job that is watched. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    watching: Watching<JobId, SeenJob>,
    view: View,
    /// The caller knows the job up to this revision.
    after_revision: u64,
    /// What was last seen of it, and what was told then, which may be newer.
    told: Option<(Version, Version)>,
    /// The caller wants to know what is said, and knows it up to this line.
    listens: Option<(Listener, u64)>,
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
        may_begin(&self.core)?;
        let listeners = &self.core.watches.listeners;
        let listens = after_line.map(|line| (listeners.begin(id), line));
        let watcher = self.core.watches.jobs.watch(id)?;
        match Watching::begin(&self.core, watcher).await? {
            Some(watching) => Ok(Watch {
                watching,
                view,
                after_revision,
                told: None,
                listens,
                is_over: false,
            }),
            None => Err(Error::JobNotFound(id.to_string())),
        }
    }
}

impl Watch {
    /// The job is final, and the caller knows that.
    pub fn has_ended(&self) -> bool {
        match &*self.watching.watcher.seen.borrow() {
            Seen::There(seen) => {
                let job = &seen.job;
                job.state.is_final() && !self.is_news(job) && !self.is_unheard(job)
            }
            Seen::Nothing | Seen::Gone => false,
        }
    }

    /// The next word. `None`: the job is final, and that was told. After an error nothing follows: `JobNotFound` when it
    /// was removed, `Draining`, `Unavailable` when the store has not answered for long.
    pub async fn next(&mut self) -> Option<Result<Told<JobNews>>> {
        while !self.is_over {
            match self.watching.look() {
                Seen::Gone => {
                    let id = self.watching.watcher.key.to_string();
                    return self.fail(Error::JobNotFound(id));
                }
                Seen::There(seen) if self.is_unheard(&seen.job) => {
                    match self.listen(&seen.job, &seen.said).await {
                        Ok(lines) if lines.is_empty() => continue,
                        Ok(lines) => {
                            return Some(Ok(Told::News(Box::new(JobNews::Lines(lines)))));
                        }
                        Err(error) => return self.fail(error),
                    }
                }
                Seen::There(seen) if self.is_news(&seen.job) => {
                    return Some(self.tell(seen).await);
                }
                Seen::There(seen) if seen.job.state.is_final() => break,
                Seen::There(_) | Seen::Nothing => {}
            }
            match self.watching.wait().await {
                Ok(Waited::Shown) => {}
                Ok(Waited::Quiet) => return Some(Ok(Told::Quiet)),
                Err(error) => return self.fail(error),
            }
        }
        self.is_over = true;
        None
    }

    /// More was said than the caller knows.
    fn is_unheard(&self, job: &Job) -> bool {
        let last = self.listens.as_ref().map(|(_, last)| *last);
        last.is_some_and(|last| job.lines_said > last)
    }

    /// The lines that the caller does not know. He who has just come, or was slow, reads them for himself.
    async fn listen(&mut self, job: &Job, said: &Said) -> Result<Vec<LogLine>> {
        let Some((_, known)) = &mut self.listens else {
            return Ok(Vec::new());
        };
        let mut lines = match said.after <= *known && said.last() >= job.lines_said {
            true => said.lines.clone(),
            false => {
                let store = &self.watching.core.store;
                let read = store.lines(vec![(job.id, *known)]).await?.pop();
                read.unwrap_or_default()
            }
        };
        lines.retain(|line| line.number > *known);
        let last = lines.last().map_or(0, |line| line.number);
        *known = last.max(job.lines_said);
        Ok(lines)
    }

    async fn tell(&mut self, now: Arc<SeenJob>) -> Result<Told<JobNews>> {
        let seen = Version::of(&now.job);
        let job = match self.view {
            View::Basic | View::Progress => Ok(now.job.clone()),
            View::Full => self.read().await,
        };
        match job {
            Ok(job) => {
                self.told = Some((seen, Version::of(&job)));
                self.is_over = job.state.is_final();
                Ok(Told::News(Box::new(JobNews::Job(job))))
            }
            Err(error) => {
                self.is_over = true;
                Err(error)
            }
        }
    }

    async fn read(&self) -> Result<Job> {
        let id = self.watching.watcher.key;
        let store = &self.watching.core.store;
        let read = store.get(vec![id], View::Full).await?;
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

    fn fail(&mut self, error: Error) -> Option<Result<Told<JobNews>>> {
        self.is_over = true;
        Some(Err(error))
    }
}
