//! Group commit without a timer: whatever arrives while a flush is under way forms the next batch.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, mpsc};

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
    /// A batch of fewer items does not begin beside a flush that is under way: it gathers until that has ended. What a
    /// flush costs by itself is then paid for many.
    pub beside: usize,
    /// How long the first item of a batch waits for others; zero where somebody waits for the answer.
    pub linger: Duration,
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
        let under_way = Arc::new(UnderWay::default());
        for _ in 0..bounds.lanes {
            let lane = Lane {
                inbox: inbox.clone(),
                under_way: under_way.clone(),
                bounds,
                size,
            };
            tasks.flusher(lane.run(flush.clone()));
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

/// Flushes of a batcher that are under way.
#[derive(Default)]
struct UnderWay {
    count: AtomicUsize,
    ended: Notify,
}

/// One of them. It counts until it is dropped, so that one that panics is not waited for.
struct OneMore(Arc<UnderWay>);

impl OneMore {
    fn of(all: &Arc<UnderWay>) -> Self {
        all.count.fetch_add(1, Ordering::AcqRel);
        Self(all.clone())
    }
}

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_one();
    }
}

struct Lane<T> {
    inbox: Arc<Mutex<Inbox<T>>>,
    under_way: Arc<UnderWay>,
    bounds: Bounds,
    size: fn(&T) -> usize,
}

impl<T> Lane<T> {
    async fn run<F, Fut>(self, flush: Arc<F>)
    where
        F: Fn(Vec<T>) -> Fut,
        Fut: Future<Output = ()>,
    {
        loop {
            // The lock is held over the await on purpose: it is the turn of the one lane that waits for the next item.
            // It must be gone before the flush, or all lanes are one: so not in the head of a `while let`.
            let batch = {
                let mut turn = self.inbox.lock().await;
                self.next_batch(&mut turn).await
            };
            let Some((batch, under_way)) = batch else {
                return;
            };
            flush(batch).await;
            drop(under_way);
        }
    }

    async fn next_batch(&self, inbox: &mut Inbox<T>) -> Option<(Vec<T>, OneMore)> {
        let first = match inbox.held_over.take() {
            Some(item) => item,
            None => inbox.queue.recv().await?,
        };
        let mut batch = Filling {
            bytes: (self.size)(&first),
            items: vec![first],
        };
        if !self.bounds.linger.is_zero() {
            // Cancel safe: an item that is received goes into the batch in the same step.
            let linger = tokio::time::timeout(self.bounds.linger, async {
                while self.add(&mut batch, inbox, self.bounds.items).await {}
            });
            // It is over, or the batch is full, or there will be no more: all the same.
            let _ = linger.await;
        }
        loop {
            let ended = self.under_way.ended.notified();
            if self.under_way.count.load(Ordering::Acquire) == 0
                || batch.items.len() >= self.bounds.beside
            {
                break;
            }
            // Cancel safe: an item that is received goes into the batch in the same step.
            tokio::select! {
                () = ended => {}
                more = self.add(&mut batch, inbox, self.bounds.beside) => if !more { break },
            }
        }
        while self.has_room(&batch, inbox, self.bounds.items)
            && let Ok(item) = inbox.queue.try_recv()
        {
            self.put(&mut batch, inbox, item);
        }
        Some((batch.items, OneMore::of(&self.under_way)))
    }

    /// Waits for one more item. `false`: the batch is to go.
    async fn add(&self, batch: &mut Filling<T>, inbox: &mut Inbox<T>, most: usize) -> bool {
        if !self.has_room(batch, inbox, most.min(self.bounds.items)) {
            return false;
        }
        let item = inbox.queue.recv().await;
        let more = item.is_some();
        if let Some(item) = item {
            self.put(batch, inbox, item);
        }
        more
    }

    /// Whether one more may be received: there is one place only for what is held over.
    fn has_room(&self, batch: &Filling<T>, inbox: &Inbox<T>, most: usize) -> bool {
        inbox.held_over.is_none() && batch.items.len() < most
    }

    fn put(&self, batch: &mut Filling<T>, inbox: &mut Inbox<T>, item: T) {
        batch.bytes += (self.size)(&item);
        match batch.bytes <= self.bounds.bytes {
            true => batch.items.push(item),
            false => inbox.held_over = Some(item),
        }
    }
}

struct Filling<T> {
    items: Vec<T>,
    bytes: usize,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says so by failing")]

    use tokio::sync::Barrier;

    use super::*;

    fn bounds(lanes: usize, beside: usize, linger: Duration) -> Bounds {
        Bounds {
            lanes,
            beside,
            linger,
            waiting: 10,
            items: 3,
            bytes: usize::MAX,
        }
    }

    /// What the next flush got.
    async fn next(flushes: &mut mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
        let flush = tokio::time::timeout(Duration::from_secs(10), flushes.recv());
        flush.await.unwrap().unwrap()
    }

    /// A batcher whose flushes say what they got and then wait to be let go.
    fn held(bounds: Bounds) -> (Batcher<u8>, mpsc::Receiver<Vec<u8>>, Arc<Notify>) {
        held_by(bounds, |_| 0)
    }

    fn held_by(
        bounds: Bounds,
        size: fn(&u8) -> usize,
    ) -> (Batcher<u8>, mpsc::Receiver<Vec<u8>>, Arc<Notify>) {
        let (told, flushes) = mpsc::channel(10);
        let go = Arc::new(Notify::new());
        let flush = {
            let go = go.clone();
            move |batch| {
                let (told, go) = (told.clone(), go.clone());
                async move {
                    told.send(batch).await.unwrap();
                    go.notified().await;
                }
            }
        };
        let batcher = Batcher::start(&Tasks::default(), bounds, size, flush);
        (batcher, flushes, go)
    }

    #[tokio::test]
    async fn as_many_flushes_are_under_way_as_there_are_lanes() {
        let both = Arc::new(Barrier::new(3));
        let flush = {
            let both = both.clone();
            move |_: Vec<u8>| {
                let both = both.clone();
                async move {
                    both.wait().await;
                }
            }
        };
        let bounds = Bounds {
            items: 1,
            ..bounds(2, 1, Duration::ZERO)
        };
        let batcher = Batcher::start(&Tasks::default(), bounds, |_| 0, flush);
        assert_eq!((batcher.push(1), batcher.push(2)), (Ok(()), Ok(())));
        let met = tokio::time::timeout(Duration::from_secs(10), both.wait()).await;
        assert!(met.is_ok(), "one flush waits for the end of the other");
    }

    #[tokio::test]
    async fn a_small_batch_waits_for_the_flush_before_it_and_a_large_one_does_not() {
        let (batcher, mut flushes, go) = held(bounds(2, 2, Duration::ZERO));
        batcher.push(1).unwrap();
        assert_eq!(next(&mut flushes).await, vec![1]);
        batcher.push(2).unwrap();
        tokio::task::yield_now().await;
        assert!(flushes.try_recv().is_err(), "a small one went beside");
        batcher.push(3).unwrap();
        assert_eq!(next(&mut flushes).await, vec![2, 3]);
        batcher.push(4).unwrap();
        go.notify_waiters();
        assert_eq!(next(&mut flushes).await, vec![4]);
    }

    #[tokio::test]
    async fn what_does_not_fit_into_a_batch_that_gathers_is_the_first_of_the_next() {
        for linger in [Duration::ZERO, Duration::from_secs(100)] {
            let bounds = Bounds {
                items: 10,
                bytes: 10,
                ..bounds(2, 10, linger)
            };
            let (batcher, mut flushes, go) = held_by(bounds, |size| usize::from(*size));
            for size in [9, 4, 5, 6, 7, 8] {
                batcher.push(size).unwrap();
            }
            drop(batcher);
            let mut all = Vec::new();
            while all.len() < 6 {
                all.extend(next(&mut flushes).await);
                go.notify_one();
            }
            assert_eq!(all, [9, 4, 5, 6, 7, 8]);
        }
    }

    #[tokio::test]
    async fn a_batch_that_lingers_goes_when_it_is_full_or_its_time_is_over_or_no_more_can_come() {
        let (batcher, mut flushes, go) = held(bounds(1, 1, Duration::from_secs(100)));
        for item in 1..=4 {
            batcher.push(item).unwrap();
        }
        assert_eq!(next(&mut flushes).await, vec![1, 2, 3]);
        drop(batcher);
        go.notify_one();
        assert_eq!(next(&mut flushes).await, vec![4]);

        let (batcher, mut flushes, _go) = held(bounds(1, 1, Duration::from_millis(1)));
        batcher.push(5).unwrap();
        assert_eq!(next(&mut flushes).await, vec![5]);
    }
}
