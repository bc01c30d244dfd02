//! Workers that come back with the token of their session: all that arrive while one move is being written go into the
//! next, as after the end of a node they all come at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::tasks::Tasks;
use crate::error::{Error, Limit, Result};
use crate::job::HeldLease;
use crate::job::limits::BATCH_MAX;
use crate::store::{Attach, Attached, Attaching};

/// Where Hellos with a token go.
#[derive(Debug, Clone)]
pub struct Attaches {
    core: Arc<Core>,
    batcher: Batcher<Waiting>,
}

/// A session that has moved here.
#[derive(Debug)]
pub struct Moved {
    /// How long it lives from now.
    pub ttl: Duration,
    /// All that it has.
    pub leases: Vec<HeldLease>,
}

#[derive(Debug)]
struct Waiting {
    to: Attached,
    answer: oneshot::Sender<Result<Option<Moved>>>,
}

impl Attaches {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>) -> Self {
        let bounds = Bounds {
            lanes: 1,
            beside: 1,
            linger: Duration::ZERO,
            waiting: 10 * BATCH_MAX,
            items: BATCH_MAX,
            bytes: usize::MAX,
        };
        let flusher = core.clone();
        let flush = move |batch| flush(flusher.clone(), batch);
        Self {
            core,
            batcher: Batcher::start(tasks, bounds, |_| 0, flush),
        }
    }

    /// Moves a session to a stream of this node. `None`: it is dead or gone.
    ///
    /// # Errors
    /// `SessionMoved` when a stream with this number or a higher one came before; `Draining`, `LimitReached`, and the
    /// store's.
    pub async fn attach(&self, to: Attached) -> Result<Option<Moved>> {
        if self.core.is_draining() {
            return Err(Error::Draining);
        }
        let (answer, answered) = oneshot::channel();
        self.batcher
            .push(Waiting { to, answer })
            .map_err(|_| Error::LimitReached {
                limit: Limit::Busy,
                retry_after: Duration::from_secs(1),
            })?;
        answered.await.map_err(Error::internal)?
    }
}

async fn flush(core: Arc<Core>, batch: Vec<Waiting>) {
    let mut answers = attach(&core, batch.iter().map(|waiting| waiting.to).collect()).await;
    for (i, waiting) in batch.into_iter().enumerate() {
        let answer = match &mut answers {
            Ok(answers) => answers
                .get_mut(i)
                .and_then(Option::take)
                .unwrap_or_else(|| Err(Error::internal("the store gave too few answers"))),
            Err(error) => Err(error.clone()),
        };
        // A worker that has left comes again with a higher number.
        drop(waiting.answer.send(answer));
    }
}

type Answer = Option<Result<Option<Moved>>>;

async fn attach(core: &Core, sessions: Vec<Attached>) -> Result<Vec<Answer>> {
    let node = core.node;
    let asked = sessions.iter().map(|to| Attach { to: *to, node }).collect();
    let attached = core.store.attach(asked).await?;
    let moved: Vec<Attached> = sessions
        .iter()
        .zip(&attached)
        .filter(|(_, answer)| matches!(answer, Attaching::Resumed(_)))
        .map(|(to, _)| *to)
        .collect();
    // A statement of its own: it sees what grants that the attach waited for have given.
    let mut leases = match moved.is_empty() {
        true => Vec::new(),
        false => core.store.leases(moved, Duration::ZERO).await?,
    }
    .into_iter();
    Ok(attached
        .into_iter()
        .map(|answer| {
            Some(match answer {
                Attaching::Gone => Ok(None),
                Attaching::Superseded => Err(Error::SessionMoved),
                Attaching::Later => Err(Error::unavailable("its row is locked")),
                Attaching::Resumed(ttl) => match leases.next().flatten() {
                    Some(leases) => Ok(Some(Moved { ttl, leases })),
                    // A newer stream was faster.
                    None => Err(Error::SessionMoved),
                },
            })
        })
        .collect())
}
