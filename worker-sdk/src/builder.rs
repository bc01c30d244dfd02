//! What a worker is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{Codec, Sealer};
use crate::context::{Context, Shared};
use crate::endpoint::{endpoint, watched};
use crate::error::Error;
use crate::failure::JobError;
use crate::handler::{Handler, Handlers};
use crate::middleware::{Middleware, Next};
use crate::proto;
use crate::session::Config;
use crate::typed::TypedJob;
use crate::worker::Worker;

const DEFAULT_QUEUE: &str = "default";
const CONCURRENCY_MAX: usize = 10_000;
/// Leases live so long where neither side says otherwise.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// What a worker is to be, with a default for all but its handlers.
#[must_use = "a builder makes a worker by `build`"]
pub struct WorkerBuilder {
    url: String,
    queues: Vec<proto::QueueSubscription>,
    handlers: Handlers,
    around: Vec<Middleware>,
    limits: Vec<(String, usize)>,
    shared: Shared,
    faults: Vec<String>,
    config: Config,
}

impl WorkerBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            queues: Vec::new(),
            handlers: Handlers::default(),
            around: Vec::new(),
            limits: Vec::new(),
            shared: Shared::default(),
            faults: Vec::new(),
            config: Config {
                worker: default_name(),
                queues: Vec::new(),
                kinds: BTreeSet::new(),
                concurrency: 8,
                lease_ttl: None,
                labels: BTreeMap::new(),
                sdk: concat!("leasehold worker-sdk ", env!("CARGO_PKG_VERSION"), " rust")
                    .to_owned(),
                stop_grace: Duration::from_secs(5),
                grace: Duration::from_secs(25),
                finish_unrenewed: false,
                seed: rand::random(),
            },
        }
    }

    /// Takes jobs from this queue; may be called for several. Without any:
    /// "default". All jobs of a queue come to its workers, whatever their kind.
    pub fn queue(self, name: impl Into<String>) -> Self {
        self.queue_limited(name, 0)
    }

    /// As [`queue`](Self::queue), with at most so many of its jobs at once; 0:
    /// only the worker's concurrency counts.
    pub fn queue_limited(mut self, name: impl Into<String>, at_once: u32) -> Self {
        self.queues.push(proto::QueueSubscription {
            queue: name.into(),
            max_in_flight: at_once,
        });
        self
    }

    /// Handlers that run at once, 1 to 10,000. Default 8.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.config.concurrency = handlers;
        self
    }

    /// Name of the worker, for people. Default: the host's name and the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.worker = name.into();
        self
    }

    /// Something about the worker, for people.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    /// How long leases live unrenewed, 10 s to 10 min: jobs of a worker that
    /// died are handed out again after it. Default: the server's, 30 s.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.config.lease_ttl = Some(ttl);
        self
    }

    /// How long handlers may go on after a shutdown began. Default 25 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.config.grace = grace;
        self
    }

    /// How long a handler may take to end after it was told to stop, before it
    /// is dropped. Default 5 s.
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.config.stop_grace = grace;
        self
    }

    /// Lets handlers finish although their leases could not be renewed in time.
    /// A result is recorded only if nobody else has the job by then, but until
    /// then the job may run twice at once. Default: they are told to stop.
    pub fn finish_unrenewed(mut self, finish: bool) -> Self {
        self.config.finish_unrenewed = finish;
        self
    }

    /// Runs jobs of this kind by an async function of a JSON payload, whose
    /// output is kept as JSON. A payload that does not fit fails the job for good.
    /// What computes for long without an await belongs into a
    /// [`blocking_handler`](Self::blocking_handler): nothing can stop it here, and
    /// the runtime's end waits for it.
    pub fn handler<T, O, F, Fut>(self, kind: impl Into<String>, handle: F) -> Self
    where
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, JobError>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
    {
        self.register(kind.into(), Handler::typed(handle))
    }

    /// Runs jobs of this kind by a function that blocks or computes for long, on
    /// a thread of its own. It cannot be dropped in the middle: it should look at
    /// [`Context::is_cancelled`]. One that does not end is left behind when the
    /// worker ends, and its job is handed out again once its lease has run out.
    pub fn blocking_handler<T, O, F>(self, kind: impl Into<String>, handle: F) -> Self
    where
        F: Fn(Context, T) -> Result<O, JobError> + Send + Sync + 'static,
        T: DeserializeOwned,
        O: Serialize,
    {
        self.register(kind.into(), Handler::blocking(handle))
    }

    /// Runs jobs of this kind by an async function from bytes to bytes.
    pub fn raw_handler<F, Fut>(self, kind: impl Into<String>, handle: F) -> Self
    where
        F: Fn(Context, proto::Payload) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<proto::Payload, JobError>> + Send + 'static,
    {
        self.register(kind.into(), Handler::raw(handle))
    }

    /// Runs the jobs of a [`TypedJob`], and takes jobs from its queue.
    pub fn typed<T, F, Fut>(mut self, handle: F) -> Self
    where
        T: TypedJob,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T::Output, JobError>> + Send + 'static,
    {
        if self.queues.iter().all(|queue| queue.queue != T::QUEUE) {
            self = self.queue(T::QUEUE);
        }
        self.handler(T::KIND, handle)
    }

    /// Runs jobs of this kind many at a time: by one call for up to `most` of them,
    /// which gives one result for each, in their order. Each job keeps a slot of
    /// the worker's concurrency until its batch is done, so that should be larger
    /// than `most`.
    ///
    /// One batch of the kind runs at a time. While it runs the next one forms;
    /// when none runs, it waits for `linger` to fill up. Jobs that are cancelled
    /// before their batch begins are left out of it. A panic, or another number of
    /// results (`BatchInvalid`), is a failure of each job.
    pub fn batch_handler<T, O, F, Fut>(
        self,
        kind: impl Into<String>,
        most: usize,
        linger: Duration,
        handle: F,
    ) -> Self
    where
        F: Fn(Vec<(Context, T)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<O, JobError>>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
    {
        self.register(kind.into(), Handler::batch(most, linger, handle))
    }

    /// At most so many handlers of this kind at once, 1 or more. Others of the kind
    /// that were handed out wait in their slots, and the timeout of their attempt
    /// runs: for kinds that fill the worker, a queue of their own with
    /// [`queue_limited`](Self::queue_limited) is better.
    pub fn kind_concurrency(mut self, kind: impl Into<String>, at_once: usize) -> Self {
        self.limits.push((kind.into(), at_once));
        self
    }

    /// Puts this around every handler. The first one given is the outermost. It is
    /// for what all kinds have in common: to measure, to open a span from the
    /// headers, to turn some errors into others.
    ///
    /// ```
    /// # use std::time::Instant;
    /// # let builder = worker_sdk::Worker::builder("http://127.0.0.1:7070");
    /// builder.middleware(|ctx, payload, next| async move {
    ///     let (kind, start) = (ctx.kind().to_owned(), Instant::now());
    ///     let answer = next.run(ctx, payload).await;
    ///     println!("{kind} took {:?}, ok: {}", start.elapsed(), answer.is_ok());
    ///     answer
    /// });
    /// ```
    pub fn middleware<F, Fut>(mut self, around: F) -> Self
    where
        F: Fn(Context, proto::Payload, Next) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<proto::Payload, JobError>> + Send + 'static,
    {
        self.around.push(Arc::new(move |context, payload, next| {
            Box::pin(around(context, payload, next))
        }));
        self
    }

    /// Shares a value with all handlers, one of each type; they find it by
    /// [`Context::state`].
    pub fn state<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        if !self.shared.states.put(value) {
            let name = std::any::type_name::<T>();
            self.faults.push(format!("state {name} is given twice"));
        }
        self
    }

    /// Opens sealed payloads and checkpoints, and seals outputs and checkpoints.
    /// Default: none.
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.shared.sealer = Sealer::new(codec);
        self
    }

    /// The queues that it takes jobs from.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        let default = self.queues.is_empty().then_some(DEFAULT_QUEUE);
        let named = self.queues.iter().map(|queue| queue.queue.as_str());
        named.chain(default)
    }

    /// The kinds that it runs.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.handlers.kinds().map(String::as_str)
    }

    /// The worker.
    ///
    /// # Errors
    /// [`Error::Config`] names every setting that cannot work.
    pub fn build(mut self) -> Result<Worker, Error> {
        for (kind, at_once) in self.limits {
            if at_once == 0 {
                self.faults.push(format!("kind {kind} may never run"));
            }
            if !self.handlers.limit(&kind, at_once) {
                self.faults
                    .push(format!("kind {kind} has a limit and no handler"));
            }
        }
        self.handlers.surround(self.around);
        if self.handlers.kinds().next().is_none() {
            self.faults.push("no handler is registered".to_owned());
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.config.concurrency) {
            self.faults.push(format!(
                "concurrency {} is not 1 to {CONCURRENCY_MAX}",
                self.config.concurrency
            ));
        }
        let endpoint = endpoint(&self.url).map_err(|error| self.faults.push(error.to_string()));
        let (Ok(endpoint), true) = (endpoint, self.faults.is_empty()) else {
            return Err(Error::Config(self.faults.join("; ")));
        };
        if self.queues.is_empty() {
            self.queues.push(proto::QueueSubscription {
                queue: DEFAULT_QUEUE.to_owned(),
                max_in_flight: 0,
            });
        }
        self.config.queues = self.queues;
        self.config.kinds = self.handlers.kinds().cloned().collect();
        let ttl = self.config.lease_ttl.unwrap_or(LEASE_TTL);
        let endpoint = watched(endpoint, ttl);
        Ok(Worker::new(
            endpoint,
            self.config,
            self.handlers,
            self.shared,
        ))
    }

    fn register(mut self, kind: String, handler: Handler) -> Self {
        if !self.handlers.put(kind.clone(), handler) {
            self.faults.push(format!("kind {kind} has two handlers"));
        }
        self
    }
}

/// Host and process, where they can be told.
fn default_name() -> String {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok());
    let host = host
        .map(|host| host.trim().to_owned())
        .filter(|host| !host.is_empty());
    format!(
        "{}-{}",
        host.as_deref().unwrap_or("worker"),
        std::process::id()
    )
}
