//! Group commit without a timer: whatever arrives while all flushes are under way forms the next batch.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use super::tasks::Tasks;

/// Collects items and hands them to a flush in batches. Bounded: when its queue is full, an item is refused.
#[derive(Debug)]
pub struct Batcher<T> {
    queue: mpsc::Sender<T>,
}

// By hand: a derived one would ask for `T: Clone`.
impl<T> Clone for Batcher<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
        }
    }
}

/// Bounds of one batcher.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Flushes under way at once.
    pub lanes: usize,
    /// Items that may wait.
    pub waiting: usize,
    /// Items in one batch.
    pub items: usize,
    /// Bytes in one batch, by the item's own measure; one item may exceed it alone.
    pub bytes: usize,
}

impl<T: Send + 'static> Batcher<T> {
    /// Starts the lanes. They end when every handle of the batcher is dropped and what waited is flushed.
    pub fn start<F, Fut>(tasks: &Tasks, bounds: Bounds, size: fn(&T) -> usize, flush: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (queue, inbox) = mpsc::channel(bounds.waiting);
        let inbox = Arc::new(Mutex::new(Inbox {
            queue: inbox,
            held_over: None,
        }));
        let flush = Arc::new(flush);
        for _ in 0..bounds.lanes {
            tasks.flusher(lane(inbox.clone(), bounds, size, flush.clone()));
        }
        Self { queue }
    }

    /// Adds an item; gives it back when the queue is full or closed.
    pub fn push(&self, item: T) -> Result<(), T> {
        self.queue.try_send(item).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(item) | mpsc::error::TrySendError::Closed(item) => item,
        })
    }
}

struct Inbox<T> {
    queue: mpsc::Receiver<T>,
    /// Did not fit into the batch before.
    held_over: Option<T>,
}

async fn lane<T, F, Fut>(
    inbox: Arc<Mutex<Inbox<T>>>,
    bounds: Bounds,
    size: fn(&T) -> usize,
    flush: Arc<F>,
) where
    F: Fn(Vec<T>) -> Fut,
    Fut: Future<Output = ()>,
{
    loop {
        // The lock is held over the await on purpose: it is the turn of the one lane that waits for the next item. It
        // must be gone before the flush, or all lanes are one: so not in the head of a `while let`.
        let batch = {
            let mut turn = inbox.lock().await;
            next_batch(&mut turn, bounds, size).await
        };
        match batch {
            Some(batch) => flush(batch).await,
            None => return,
        }
    }
}

async fn next_batch<T>(
    inbox: &mut Inbox<T>,
    bounds: Bounds,
    size: fn(&T) -> usize,
) -> Option<Vec<T>> {
    let first = match inbox.held_over.take() {
        Some(item) => item,
        None => inbox.queue.recv().await?,
    };
    let mut bytes = size(&first);
    let mut batch = vec![first];
    while batch.len() < bounds.items {
        let Ok(item) = inbox.queue.try_recv() else {
            break;
        };
        bytes += size(&item);
        if bytes > bounds.bytes {
            inbox.held_over = Some(item);
            break;
        }
        batch.push(item);
    }
    Some(batch)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn as_many_flushes_are_under_way_as_there_are_lanes() {
        let tasks = Tasks::default();
        let both = Arc::new(Barrier::new(3));
        let bounds = Bounds {
            lanes: 2,
            waiting: 10,
            items: 1,
            bytes: usize::MAX,
        };
        let flush = {
            let both = both.clone();
            move |_: Vec<u8>| {
                let both = both.clone();
                async move {
                    both.wait().await;
                }
            }
        };
        let batcher = Batcher::start(&tasks, bounds, |_| 0, flush);
        assert_eq!((batcher.push(1), batcher.push(2)), (Ok(()), Ok(())));
        let met = tokio::time::timeout(Duration::from_secs(10), both.wait()).await;
        assert!(met.is_ok(), "one flush waits for the end of the other");
    }
}
