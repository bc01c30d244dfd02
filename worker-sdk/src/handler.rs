//! The handlers of a worker, by the kind of job that they run.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::batch::Batches;
use crate::context::Context;
use crate::failure::JobError;
use crate::middleware::{Middleware, Next};
use crate::proto;
use crate::run::on_own_thread;

pub(crate) type Answer = Result<proto::Payload, JobError>;
pub(crate) type Handle =
    Arc<dyn Fn(Context, proto::Payload) -> BoxFuture<'static, Answer> + Send + Sync>;

/// All handlers, and what is around them.
#[derive(Default)]
pub(crate) struct Handlers {
    by_kind: HashMap<String, Handler>,
    around: Arc<[Middleware]>,
}

/// One of them.
#[derive(Clone)]
pub(crate) struct Handler {
    handle: Handle,
    turns: Option<Arc<Semaphore>>,
}

impl Handlers {
    /// False: there was one of this kind already.
    pub(crate) fn put(&mut self, kind: String, handler: Handler) -> bool {
        self.by_kind.insert(kind, handler).is_none()
    }

    pub(crate) fn surround(&mut self, around: Vec<Middleware>) {
        self.around = around.into();
    }

    /// At most so many of this kind run at once. False: there is no such kind.
    pub(crate) fn limit(&mut self, kind: &str, at_once: usize) -> bool {
        let turns = Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
        let handler = self.by_kind.get_mut(kind);
        handler.map(|handler| handler.turns = Some(turns)).is_some()
    }

    pub(crate) fn kinds(&self) -> impl Iterator<Item = &String> {
        self.by_kind.keys()
    }

    /// The handler of this kind, and the way to it.
    pub(crate) fn of(&self, kind: &str) -> Option<(Handler, Next)> {
        let handler = self.by_kind.get(kind)?.clone();
        let next = Next::new(Arc::clone(&self.around), Arc::clone(&handler.handle));
        Some((handler, next))
    }
}

impl Handler {
    pub(crate) fn typed<T, O, F, Fut>(handle: F) -> Self
    where
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, JobError>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
    {
        let handle = Arc::new(handle);
        Self::new(move |context, payload| {
            let handle = Arc::clone(&handle);
            // Called inside the future, so that a panic before its first await is caught too.
            Box::pin(async move { encode(&handle(context, decode(&payload)?).await?) })
        })
    }

    pub(crate) fn raw<F, Fut>(handle: F) -> Self
    where
        F: Fn(Context, proto::Payload) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let handle = Arc::new(handle);
        Self::new(move |context, payload| {
            let handle = Arc::clone(&handle);
            Box::pin(async move { handle(context, payload).await })
        })
    }

    pub(crate) fn batch<T, O, F, Fut>(most: usize, linger: Duration, handle: F) -> Self
    where
        F: Fn(Vec<(Context, T)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<O, JobError>>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
    {
        let (batches, handle) = (Batches::new(most, linger), Arc::new(handle));
        Self::new(move |context, payload| {
            let (batches, handle) = (Arc::clone(&batches), Arc::clone(&handle));
            Box::pin(async move {
                let input = decode(&payload)?;
                encode(&batches.run(context, input, handle).await?)
            })
        })
    }

    pub(crate) fn blocking<T, O, F>(handle: F) -> Self
    where
        F: Fn(Context, T) -> Result<O, JobError> + Send + Sync + 'static,
        T: DeserializeOwned,
        O: Serialize,
    {
        let handle = Arc::new(handle);
        Self::new(move |context, payload| {
            let handle = Arc::clone(&handle);
            Box::pin(async move {
                let thread = context.thread().clone();
                on_own_thread(&thread, move || {
                    encode(&handle(context, decode(&payload)?)?)
                })
                .await
            })
        })
    }

    fn new(
        handle: impl Fn(Context, proto::Payload) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        Self {
            handle: Arc::new(handle),
            turns: None,
        }
    }

    /// Waits until one more of its kind may run.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        match &self.turns {
            // It is never closed.
            Some(turns) => Arc::clone(turns).acquire_owned().await.ok(),
            None => None,
        }
    }
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
