//! How one attempt is run to its end, whatever its handler does.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::context::Context;
use crate::failure::JobError;
use crate::handler::{Answer, Handler};
use crate::middleware::Next;
use crate::proto;
use crate::session::{Event, Outcome, Ticket};

/// One attempt that is to run: its answer goes to `finished`, whatever happens.
pub(crate) struct Run {
    pub(crate) ticket: Ticket,
    pub(crate) handler: Handler,
    /// The handler and all that is around it.
    pub(crate) next: Next,
    pub(crate) context: Context,
    pub(crate) payload: proto::Payload,
    /// The handler is dropped when this is cancelled.
    pub(crate) drop: CancellationToken,
    pub(crate) finished: mpsc::Sender<Event>,
}

impl Run {
    /// Runs the handler to its end. A panic is a failure. When the runtime goes
    /// away in the middle, the attempt still ends, as dropped.
    pub(crate) async fn run(self) {
        let Self {
            ticket,
            handler,
            next,
            context,
            payload,
            drop,
            finished,
        } = self;
        let mut report = Report {
            ticket,
            outcome: Outcome::Dropped,
            finished,
        };
        let span = tracing::info_span!(
            "job",
            job_id = context.job_id(),
            queue = context.queue(),
            kind = context.kind(),
            attempt = context.attempt()
        );
        // Who was told to stop before it began is not begun: its job may be cancelled, or another's already.
        // Cancel safety: a turn that is not taken goes to who waits next.
        let _turn = tokio::select! {
            biased;
            () = context.cancelled() => return,
            turn = handler.turn() => turn,
        };
        let thread = context.thread().clone();
        let work = async {
            context.open_checkpoint()?;
            let sealer = context.sealer().clone();
            let payload = sealer.open(payload)?;
            Ok(sealer.seal(next.run(context, payload).await?)?)
        };
        let work = AssertUnwindSafe(work.instrument(span)).catch_unwind();
        // A thread cannot be dropped: until it has ended its slot is taken, and what it says is told.
        let given_up = async {
            drop.cancelled().await;
            thread.turn().await
        };
        // Cancel safety: dropping the handler in the middle is what this is for;
        // it had its notice and its time.
        let answer = tokio::select! {
            biased;
            answer = work => answer,
            _ = given_up => return,
        };
        report.outcome = match answer.unwrap_or_else(panicked) {
            Ok(output) => Outcome::Success(output),
            Err(error) => error.into_outcome(),
        };
    }
}

/// Sends its outcome when it is dropped, so that no way out forgets a slot.
struct Report {
    ticket: Ticket,
    outcome: Outcome,
    finished: mpsc::Sender<Event>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Outcome::Dropped);
        // The channel has room for every handler that can run, so this fails
        // only when the worker is gone.
        if self
            .finished
            .try_send(Event::Finished(self.ticket, outcome))
            .is_err()
        {
            tracing::debug!("a handler ended after its worker");
        }
    }
}

/// The thread that an attempt has, if its handler is a blocking one: whoever has the turn is it.
#[derive(Clone, Debug)]
pub(crate) struct Thread(Arc<Semaphore>);

impl Default for Thread {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Thread {
    /// Waits until there is none.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// Runs it on a thread of its own, within the runtime and the span; the job is given back when there can be no thread. Not
/// on the runtime's blocking pool: a runtime that ends waits for that without end, so one handler that hangs would keep a
/// process from ending that was told to. A pool also has fewer threads than a worker may have handlers.
pub(crate) async fn on_own_thread(
    turn: &Thread,
    work: impl FnOnce() -> Answer + Send + 'static,
) -> Answer {
    let (answer, answered) = oneshot::channel();
    let (runtime, span) = (Handle::current(), tracing::Span::current());
    let turn = turn.turn().await;
    let thread = std::thread::Builder::new()
        .name("leasehold-job".to_owned())
        .spawn(move || {
            let _runtime = runtime.enter();
            let _span = span.enter();
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked);
            // Nobody waits for it any more when its worker is gone.
            let _ = answer.send(result);
            // After that, so that what it said is heard first.
            drop(turn);
        });
    if let Err(error) = thread {
        tracing::error!(%error, "no thread for a blocking handler, giving its job back");
    }
    answered.await.unwrap_or_else(|_| Err(JobError::dropped()))
}

/// What was thrown may itself panic when it is dropped: even so the attempt has failed, with what was said first.
fn panicked(payload: Box<dyn Any + Send>) -> Answer {
    let error = JobError::panicked(&*payload);
    discard(payload);
    Err(error)
}

/// Drops what was thrown.
pub(crate) fn discard(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
}
