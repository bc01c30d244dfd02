//! What one caller who watches a job is told, and when that ends.

use std::sync::Arc;

use super::super::Engine;
use super::board::Seen;
use super::stream::{Told, Waited, Watching, may_begin};
use crate::error::{Error, Result};
use crate::job::{Job, JobId, View};
use crate::store::Version;

/// A job that is watched. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    watching: Watching<JobId, Job>,
    view: View,
    /// The caller knows the job up to this revision.
    after_revision: u64,
    /// What was last seen of it, and what was told then, which may be newer.
    told: Option<(Version, Version)>,
    is_over: bool,
}

impl Engine {
    /// Watches a job: what is newer than `after_revision` now, then each change. Returns after the first look at it. A
    /// basic view shows the progress too, its checkpoint aside; it is shared by all who watch, while a full one is read
    /// for each of them.
    ///
    /// # Errors
    /// `JobNotFound`, `Draining`, `LimitReached`, `Unavailable`.
    pub async fn watch(&self, id: JobId, after_revision: u64, view: View) -> Result<Watch> {
        may_begin(&self.core)?;
        let watcher = self.core.watches.jobs.watch(id)?;
        match Watching::begin(&self.core, watcher).await? {
            Some(watching) => Ok(Watch {
                watching,
                view,
                after_revision,
                told: None,
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
            Seen::There(job) => job.state.is_final() && !self.is_news(job),
            Seen::Nothing | Seen::Gone => false,
        }
    }

    /// The next word. `None`: the job is final, and that was told. After an error nothing follows: `JobNotFound` when it
    /// was removed, `Draining`, `Unavailable` when the store has not answered for long.
    pub async fn next(&mut self) -> Option<Result<Told<Job>>> {
        while !self.is_over {
            match self.watching.look() {
                Seen::Gone => {
                    let id = self.watching.watcher.key.to_string();
                    return self.fail(Error::JobNotFound(id));
                }
                Seen::There(job) if self.is_news(&job) => return Some(self.tell(job).await),
                Seen::There(job) if job.state.is_final() => break,
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

    async fn tell(&mut self, job: Arc<Job>) -> Result<Told<Job>> {
        let seen = Version::of(&job);
        let job = match self.view {
            View::Basic | View::Progress => Ok(Arc::unwrap_or_clone(job)),
            View::Full => self.read().await,
        };
        match job {
            Ok(job) => {
                self.told = Some((seen, Version::of(&job)));
                self.is_over = job.state.is_final();
                Ok(Told::News(Box::new(job)))
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
            Some((seen, told)) => ![seen, told].contains(&Version::of(job)),
            None if job.revision == self.after_revision => {
                job.progress.is_some() && !job.state.is_final()
            }
            None => job.revision > self.after_revision,
        }
    }

    fn fail(&mut self, error: Error) -> Option<Result<Told<Job>>> {
        self.is_over = true;
        Some(Err(error))
    }
}
