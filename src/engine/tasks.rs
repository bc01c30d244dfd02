//! The engine's tasks: who owns them, how they are told to stop, and that they have.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owner of every task that the engine starts.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    stop: CancellationToken,
    loops: TaskTracker,
    flushers: TaskTracker,
}

impl Tasks {
    /// Cancelled when the loops are to end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Runs a loop that ends by itself soon after [`Tasks::stopping`] is cancelled.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.loops.spawn(task);
    }

    /// Runs a flusher, which ends when there is nothing left to flush.
    pub fn flusher(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.flushers.spawn(task);
    }

    /// Waits, unless it is time to stop. `false`: stop.
    pub async fn sleep(&self, span: Duration) -> bool {
        // Both branches are cancel safe: neither holds anything.
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(span) => true,
        }
    }

    /// Tells the loops to end and waits until they have, at most `bound`. `false`: some have not.
    pub async fn stop(&self, bound: Duration) -> bool {
        self.stop.cancel();
        self.loops.close();
        tokio::time::timeout(bound, self.loops.wait()).await.is_ok()
    }
}
