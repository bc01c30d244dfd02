//! Handlers that take many jobs at once.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::context::Context;
use crate::failure::JobError;
use crate::run::discard;

/// Jobs of one kind that wait for their batch. While one batch is worked off, the
/// next one forms; each job waits in its own slot of the worker.
pub(crate) struct Batches<T, O> {
    line: Mutex<Line<T, O>>,
    /// As many wait as one batch takes.
    full: Notify,
    most: usize,
    linger: Duration,
}

struct Line<T, O> {
    waiting: VecDeque<Waiting<T, O>>,
    /// A task takes from it.
    served: bool,
}

struct Waiting<T, O> {
    context: Context,
    input: T,
    answer: oneshot::Sender<Result<O, JobError>>,
}

impl<T: Send + 'static, O: Send + 'static> Batches<T, O> {
    pub(crate) fn new(most: usize, linger: Duration) -> Arc<Self> {
        Arc::new(Self {
            line: Mutex::new(Line {
                waiting: VecDeque::new(),
                served: false,
            }),
            full: Notify::new(),
            most: most.max(1),
            linger,
        })
    }

    /// Gives this job to the next batch, and what became of it. Dropped in the
    /// middle, the job is left out, or its result is not looked at.
    pub(crate) async fn run<F, Fut>(
        self: Arc<Self>,
        context: Context,
        input: T,
        handle: Arc<F>,
    ) -> Result<O, JobError>
    where
        F: Fn(Vec<(Context, T)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<O, JobError>>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut line = self.lock();
            line.waiting.push_back(Waiting {
                context,
                input,
                answer,
            });
            if line.waiting.len() >= self.most {
                self.full.notify_one();
            }
            !std::mem::replace(&mut line.served, true)
        };
        if is_first {
            // Of its own, as the batch outlives the job that began it. It ends when nobody waits.
            tokio::spawn(Arc::clone(&self).serve(handle));
        }
        // Only a runtime that ends drops the task with the answer.
        answered.await.unwrap_or_else(|_| Err(JobError::dropped()))
    }

    async fn serve<F, Fut>(self: Arc<Self>, handle: Arc<F>)
    where
        F: Fn(Vec<(Context, T)>) -> Fut,
        Fut: Future<Output = Vec<Result<O, JobError>>>,
    {
        loop {
            let end = Instant::now() + self.linger;
            while self.lock().waiting.len() < self.most {
                // Cancel safety: a permit that comes too late lets the next batch look once more.
                if timeout_at(end, self.full.notified()).await.is_err() {
                    break;
                }
            }
            let batch = {
                let mut line = self.lock();
                let count = line.waiting.len().min(self.most);
                if count == 0 {
                    line.served = false;
                    return;
                }
                line.waiting.drain(..count).collect()
            };
            work(batch, &*handle).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line<T, O>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs one batch of those that are still wanted. It is dropped when none of them is any more.
async fn work<T, O, F, Fut>(batch: Vec<Waiting<T, O>>, handle: &F)
where
    F: Fn(Vec<(Context, T)>) -> Fut,
    Fut: Future<Output = Vec<Result<O, JobError>>>,
{
    let (mut jobs, mut answers) = (Vec::with_capacity(batch.len()), Vec::new());
    for one in batch {
        if one.context.is_cancelled() || one.answer.is_closed() {
            // Nobody looks when it was dropped.
            let _ = one.answer.send(Err(JobError::dropped()));
            continue;
        }
        jobs.push((one.context, one.input));
        answers.push(one.answer);
    }
    if jobs.is_empty() {
        return;
    }
    let count = answers.len();
    let work = AssertUnwindSafe(async { handle(jobs).await }).catch_unwind();
    // Cancel safety: each job had its notice and its time.
    let results = tokio::select! {
        biased;
        results = work => results,
        _ = join_all(answers.iter_mut().map(oneshot::Sender::closed)) => return,
    };
    match results {
        Ok(results) if results.len() == count => {
            for (answer, result) in answers.into_iter().zip(results) {
                let _ = answer.send(result);
            }
        }
        Ok(results) => {
            let text = format!("{} results for {count} jobs", results.len());
            for answer in answers {
                let _ = answer.send(Err(JobError::new(&text).with_type("BatchInvalid")));
            }
        }
        Err(thrown) => {
            for answer in answers {
                let _ = answer.send(Err(JobError::panicked(&*thrown)));
            }
            discard(thrown);
        }
    }
}
