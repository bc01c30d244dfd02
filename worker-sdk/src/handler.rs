//! The handlers of a worker, and how one of them is run.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::context::Context;
use crate::failure::JobError;
use crate::proto;
use crate::session::{Event, Outcome, Ticket};

type Answer = Result<proto::Payload, JobError>;

#[derive(Clone)]
pub(crate) enum Handler {
    Async(Arc<dyn Fn(Context, proto::Payload) -> BoxFuture<'static, Answer> + Send + Sync>),
    Blocking(Arc<dyn Fn(Context, proto::Payload) -> Answer + Send + Sync>),
}

pub(crate) type Handlers = HashMap<String, Handler>;

impl Handler {
    pub(crate) fn typed<T, O, F, Fut>(handle: F) -> Self
    where
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, JobError>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
    {
        let handle = Arc::new(handle);
        Self::Async(Arc::new(move |context, payload| {
            let handle = Arc::clone(&handle);
            Box::pin(async move {
                let output = handle(context, decode(&payload)?).await?;
                encode(&output)
            })
        }))
    }

    pub(crate) fn raw<F, Fut>(handle: F) -> Self
    where
        F: Fn(Context, proto::Payload) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let handle = Arc::new(handle);
        Self::Async(Arc::new(move |context, payload| {
            let handle = Arc::clone(&handle);
            // Called inside the future, so that a panic before its first await is caught too.
            Box::pin(async move { handle(context, payload).await })
        }))
    }

    pub(crate) fn blocking<T, O, F>(handle: F) -> Self
    where
        F: Fn(Context, T) -> Result<O, JobError> + Send + Sync + 'static,
        T: DeserializeOwned,
        O: Serialize,
    {
        Self::Blocking(Arc::new(move |context, payload| {
            encode(&handle(context, decode(&payload)?)?)
        }))
    }
}

/// One attempt that is to run: its answer goes to `finished`, whatever happens.
pub(crate) struct Run {
    pub(crate) ticket: Ticket,
    pub(crate) handler: Handler,
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
            context,
            payload,
            drop,
            finished,
        } = self;
        let report = Report {
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
        let answer = match handler {
            Handler::Async(handle) => {
                asynchronous(&handle, context, payload, &drop)
                    .instrument(span)
                    .await
            }
            Handler::Blocking(handle) => {
                let work = move || {
                    let _entered = span.entered();
                    catch_unwind(AssertUnwindSafe(|| handle(context, payload)))
                        .unwrap_or_else(panicked)
                };
                // A thread cannot be dropped: its slot is taken until it ends.
                on_own_thread(work).await
            }
        };
        report.send(answer);
    }
}

async fn asynchronous(
    handle: &Arc<dyn Fn(Context, proto::Payload) -> BoxFuture<'static, Answer> + Send + Sync>,
    context: Context,
    payload: proto::Payload,
    drop: &CancellationToken,
) -> Option<Answer> {
    let work = AssertUnwindSafe(async { handle(context, payload).await }).catch_unwind();
    // Cancel safety: dropping the handler in the middle is what this is for; it
    // had its notice and its time.
    tokio::select! {
        biased;
        answer = work => Some(answer.unwrap_or_else(panicked)),
        () = drop.cancelled() => None,
    }
}

/// Runs it on a thread of its own, within the runtime; `None` when there can be no thread. Not on the runtime's blocking
/// pool: a runtime that ends waits for that without end, so one handler that hangs would keep a process from ending that
/// was told to. A pool also has fewer threads than a worker may have handlers.
async fn on_own_thread(work: impl FnOnce() -> Answer + Send + 'static) -> Option<Answer> {
    let (answer, answered) = oneshot::channel();
    let runtime = Handle::current();
    let thread = std::thread::Builder::new()
        .name("leasehold-job".to_owned())
        .spawn(move || {
            let _entered = runtime.enter();
            // Nobody waits for it any more when its worker is gone.
            let _ = answer.send(work());
        });
    if let Err(error) = thread {
        tracing::error!(%error, "no thread for a blocking handler, giving its job back");
    }
    answered.await.ok()
}

/// Sends its outcome when it is dropped, so that no way out forgets a slot.
struct Report {
    ticket: Ticket,
    outcome: Outcome,
    finished: mpsc::Sender<Event>,
}

impl Report {
    fn send(mut self, answer: Option<Answer>) {
        self.outcome = match answer {
            Some(Ok(output)) => Outcome::Success(output),
            Some(Err(error)) => error.into_outcome(),
            None => Outcome::Dropped,
        };
    }
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

/// What was thrown may itself panic when it is dropped: even so the attempt has failed, with what was said first.
fn panicked(payload: Box<dyn Any + Send>) -> Answer {
    let error = JobError::panicked(&*payload);
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
    Err(error)
}

/// The payload's bytes, whichever way they came.
pub(crate) fn body(payload: &proto::Payload) -> Bytes {
    match &payload.body {
        Some(proto::payload::Body::Data(data)) => data.clone(),
        Some(proto::payload::Body::Text(text)) => Bytes::copy_from_slice(text.as_bytes()),
        None => Bytes::new(),
    }
}

/// A value as a JSON payload.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<proto::Payload, serde_json::Error> {
    let data = serde_json::to_vec(value)?;
    Ok(proto::Payload {
        content_type: "application/json".to_owned(),
        body: Some(proto::payload::Body::Data(Bytes::from(data))),
    })
}

/// A value of a JSON payload; none at all is `null`.
pub(crate) fn from_json<T: DeserializeOwned>(
    payload: &proto::Payload,
) -> Result<T, serde_json::Error> {
    let data = body(payload);
    serde_json::from_slice(if data.is_empty() { b"null" } else { &data })
}

/// The same bytes will not become another input, so the failure is permanent.
fn decode<T: DeserializeOwned>(payload: &proto::Payload) -> Result<T, JobError> {
    from_json(payload).map_err(|error| JobError::new(error).with_type("InputInvalid").permanent())
}

fn encode<O: Serialize>(output: &O) -> Answer {
    json(output).map_err(|error| JobError::new(error).with_type("OutputInvalid").permanent())
}
