//! Queues as people see and steer them, and what this node knows of their settings: all of them, at most a second old.
//!
//! A node asks for them in one query, at each nudge and about twice a second, which finds nothing new but after a change.
//! Before it has heard of them once it neither hands out nor accepts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info};
use uuid::Uuid;

use super::cursor::{Listed, Page, RawCursor};
use super::tasks::Tasks;
use super::{Core, Engine};
use crate::error::{Error, Limit, Result};
use crate::job::limits::RUNNING_SHOWN;
use crate::job::{AuditEvent, By, NewJob, QueueChange, QueueName, QueueSettings, SessionId};
use crate::store::{AllSettings, QueueView, SessionRuns, SessionView, Steer, Steered};

/// How often a node asks what is set: what changes must have reached all of them within a second.
const ASK_EVERY: Duration = Duration::from_millis(400);

/// What is set of queues, as far as this node knows.
#[derive(Debug, Default)]
pub struct Queues {
    known: Mutex<Option<Arc<Known>>>,
    /// One question at a time: an older answer must not come after a newer one.
    asking: tokio::sync::Mutex<()>,
    nudged: Notify,
}

/// What was set at some moment.
#[derive(Debug, Default)]
pub struct Known {
    change: u64,
    queues: HashMap<QueueName, QueueSettings>,
}

impl Known {
    /// Whether a queue's jobs are not to be handed out.
    pub fn is_paused(&self, queue: &QueueName) -> bool {
        self.queues.get(queue).is_some_and(|set| set.paused)
    }

    /// Gives a new job what its request left out.
    fn complete(&self, job: &mut NewJob) {
        if let Some(set) = self.queues.get(&job.spec.queue) {
            job.take_defaults(&set.defaults);
        }
    }
}

impl From<AllSettings> for Known {
    fn from(all: AllSettings) -> Self {
        Self {
            change: all.change,
            queues: all.queues.into_iter().collect(),
        }
    }
}

impl Queues {
    /// What is known; `None`: nothing yet.
    fn known(&self) -> Option<Arc<Known>> {
        self.lock().clone()
    }

    /// Whether it is known that a queue's jobs are not to be handed out.
    pub fn is_paused(&self, queue: &QueueName) -> bool {
        self.lock()
            .as_ref()
            .is_some_and(|known| known.is_paused(queue))
    }

    /// Another node may have changed something.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads an etag as a face has got it; empty: none.
///
/// # Errors
/// `EtagMismatch` for what cannot be one: nothing has it.
pub fn etag(text: &str) -> Result<Option<u64>> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| Error::EtagMismatch),
    }
}

/// What is set, as far as this node knows, once it knows.
///
/// # Errors
/// The store's, when it is asked for the first time.
pub(super) async fn known(core: &Core) -> Result<Arc<Known>> {
    loop {
        match core.queues.known() {
            Some(known) => return Ok(known),
            None => ask(core).await?,
        }
    }
}

/// Asks what is set, and looks for jobs if it has changed.
async fn ask(core: &Core) -> Result<()> {
    let _turn = core.queues.asking.lock().await;
    let change = core.queues.known().map(|known| known.change);
    if let Some(all) = core.store.settings(change).await? {
        debug!(
            change = all.change,
            queues = all.queues.len(),
            "settings of queues read"
        );
        *core.queues.lock() = Some(Arc::new(all.into()));
        core.wake.notify_one();
    }
    Ok(())
}

/// Keeps what is known up to date.
pub(super) async fn follow(tasks: Tasks, core: Arc<Core>) {
    loop {
        if let Err(error) = ask(&core).await {
            debug!(%error, "settings of queues not read");
        }
        // Cancel safe: these only wait, and a nudge that comes later is kept.
        tokio::select! {
            () = tasks.stopping().cancelled() => return,
            () = core.queues.nudged.notified() => {}
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

impl Engine {
    /// One queue.
    ///
    /// # Errors
    /// `QueueNotFound`, and the store's.
    pub async fn queue(&self, name: QueueName) -> Result<QueueView> {
        let found = self.core.store.queue(name.clone()).await?;
        found.ok_or_else(|| Error::QueueNotFound(name.to_string()))
    }

    /// Queues by name.
    ///
    /// # Errors
    /// `InvalidArgument` for the token, and the store's.
    pub async fn queues(&self, page: &RawCursor) -> Result<Page<QueueView>> {
        let read = |place: &[u8]| QueueName::parse(std::str::from_utf8(place).ok()?);
        let (size, after) = Listed::QUEUES.page(page, read)?;
        let found = self.core.store.queues(after, size + 1).await?;
        let place = |queue: &QueueView| queue.stats.queue.to_string();
        Ok(Listed::QUEUES.cut(found, size, place))
    }

    /// Changes what is set of a queue: only if its revision is the one that is `expected`, if one is. All nodes know of it
    /// within a second.
    ///
    /// # Errors
    /// `QueueNotFound` when nothing was to be changed of a queue that was never seen, `EtagMismatch`, `LimitReached`, and
    /// the store's.
    pub async fn steer(
        &self,
        queue: QueueName,
        change: QueueChange,
        expected: Option<u64>,
        by: By,
    ) -> Result<QueueView> {
        let actor = by.actor.clone();
        let steer = Steer {
            queue: queue.clone(),
            change,
            expected,
            by,
        };
        match self.core.store.steer(steer).await? {
            Steered::Done => {
                let done = match change {
                    QueueChange::Pause => "queue paused",
                    QueueChange::Resume => "queue resumed",
                    QueueChange::Update(..) => "queue updated",
                };
                info!(%queue, actor = actor.as_str(), "{done}");
                if let Err(error) = ask(&self.core).await {
                    debug!(%error, "settings of queues not read");
                }
                if let Err(error) = self.core.ready.nudge().await {
                    debug!(%error, "no nudge; the other nodes ask by themselves");
                }
            }
            Steered::Unchanged => {}
            Steered::Superseded => return Err(Error::EtagMismatch),
            Steered::TooMany => {
                return Err(Error::LimitReached {
                    limit: Limit::Queues,
                    retry_after: Duration::from_secs(60 * 60),
                });
            }
        }
        self.queue(queue).await
    }

    /// A session, and what it runs.
    ///
    /// # Errors
    /// `SessionNotFound`, and the store's.
    pub async fn session(&self, id: SessionId) -> Result<SessionRuns> {
        let found = self.core.store.session(id, RUNNING_SHOWN).await?;
        found.ok_or_else(|| Error::SessionNotFound(id.to_string()))
    }

    /// Sessions by id: all, or those that take jobs of a queue.
    ///
    /// # Errors
    /// `InvalidArgument` for the token, and the store's.
    pub async fn sessions(
        &self,
        queue: Option<QueueName>,
        page: &RawCursor,
    ) -> Result<Page<SessionView>> {
        let listed = Listed {
            name: "sessions",
            filter: &queue.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let read = |place: &[u8]| Some(SessionId::from_store(Uuid::from_slice(place).ok()?));
        let (size, after) = listed.page(page, read)?;
        let found = self.core.store.sessions(queue.clone(), after, size).await?;
        let next = found.next.map(SessionId::uuid);
        let next = next.as_ref().map(|id| id.as_bytes().as_slice());
        Ok(listed.of(found.sessions, next))
    }

    /// What was changed by hand, newest first.
    ///
    /// # Errors
    /// `InvalidArgument` for the token, and the store's.
    pub async fn audit(&self, page: &RawCursor) -> Result<Page<AuditEvent>> {
        let read = |place: &[u8]| Some(i64::from_be_bytes(place.try_into().ok()?));
        let (size, before) = Listed::AUDIT.page(page, read)?;
        let found = self.core.store.audit(before, size + 1).await?;
        Ok(Listed::AUDIT.cut(found, size, |event| event.id.to_be_bytes()))
    }

    /// Gives new jobs what their requests left out and their queues have defaults for.
    pub(super) async fn complete(&self, jobs: &mut [NewJob]) -> Result<()> {
        let known = known(&self.core).await?;
        jobs.iter_mut().for_each(|job| known.complete(job));
        Ok(())
    }
}
