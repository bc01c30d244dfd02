//! What one caller who watches a queue is told, and when that ends.

use std::sync::Arc;

use super::super::Engine;
use super::board::{Seen, Watched};
use super::stream::{Told, Waited, Watching, may_begin};
use crate::error::{Error, Result};
use crate::job::QueueName;
use crate::store::QueueView;

/// A queue that is watched. It ends when it is dropped.
#[derive(Debug)]
pub struct QueueWatch {
    watching: Watching<QueueName, QueueView>,
    told: Option<Arc<QueueView>>,
    is_over: bool,
}

impl Engine {
    /// Watches a queue: as it is now, then each time that its numbers or settings have changed. Returns after the first
    /// look at it, which all who watch share.
    ///
    /// # Errors
    /// `QueueNotFound`, `Draining`, `LimitReached`, `Unavailable`.
    pub async fn watch_queue(&self, name: QueueName) -> Result<QueueWatch> {
        may_begin(&self.core)?;
        let watcher = self.core.watches.queues.watch(name.clone())?;
        match Watching::begin(&self.core, watcher).await? {
            Some(watching) => Ok(QueueWatch {
                watching,
                told: None,
                is_over: false,
            }),
            None => Err(Error::QueueNotFound(name.to_string())),
        }
    }
}

impl QueueWatch {
    /// The next word; there is always one but after an error: `QueueNotFound` when it is there no more, `Draining`,
    /// `Unavailable` when the store has not answered for long.
    pub async fn next(&mut self) -> Option<Result<Told<QueueView>>> {
        while !self.is_over {
            match self.watching.look() {
                Seen::Gone => {
                    let name = self.watching.watcher.key.to_string();
                    return self.fail(Error::QueueNotFound(name));
                }
                Seen::There(queue) if self.is_news(&queue) => {
                    self.told = Some(queue.clone());
                    return Some(Ok(Told::News(Box::new(QueueView::clone(&queue)))));
                }
                Seen::There(_) | Seen::Nothing => {}
            }
            match self.watching.wait().await {
                Ok(Waited::Shown) => {}
                Ok(Waited::Quiet) => return Some(Ok(Told::Quiet)),
                Err(error) => return self.fail(error),
            }
        }
        None
    }

    fn is_news(&self, queue: &QueueView) -> bool {
        self.told.as_ref().is_none_or(|told| !told.is_same(queue))
    }

    fn fail(&mut self, error: Error) -> Option<Result<Told<QueueView>>> {
        self.is_over = true;
        Some(Err(error))
    }
}
