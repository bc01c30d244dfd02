//! A worker: handlers by kind, and a loop that runs what is pushed to it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Endpoint;

use crate::connection::{Command, NEVER, Pump, Renewal};
use crate::context::Context;
use crate::endpoint::{endpoint, watched};
use crate::error::Error;
use crate::failure::JobError;
use crate::handler::{Handler, Handlers};
use crate::proto;
use crate::session::{Config, Sessions};

const CONCURRENCY_MAX: usize = 10_000;
/// Leases live so long where neither side says otherwise.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Takes jobs from a server and runs them. Made by [`Worker::builder`].
#[must_use = "a worker does nothing until `run`"]
pub struct Worker {
    endpoint: Endpoint,
    config: Config,
    handlers: Arc<Handlers>,
    renewal: Arc<Renewal>,
}

/// What a worker is to be, with a default for all but its handlers.
#[must_use = "a builder makes a worker by `build`"]
pub struct WorkerBuilder {
    url: String,
    queues: Vec<proto::QueueSubscription>,
    handlers: Handlers,
    faults: Vec<String>,
    config: Config,
}

/// How a worker is, to be asked from anywhere. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    renewal: Arc<Renewal>,
}

impl Health {
    /// How long ago the newest heartbeat was sent that the server confirmed;
    /// `None` while there is no session. Below the lease's time (default 30 s)
    /// the worker holds its leases.
    pub fn renewal_age(&self) -> Option<Duration> {
        let at = self.renewal.at.load(Ordering::Relaxed);
        (at != NEVER).then(|| {
            self.renewal
                .start
                .elapsed()
                .saturating_sub(Duration::from_millis(at))
        })
    }
}

impl Worker {
    /// Begins a worker of the server at this URL (`http://host:port`).
    pub fn builder(url: impl Into<String>) -> WorkerBuilder {
        WorkerBuilder {
            url: url.into(),
            queues: Vec::new(),
            handlers: Handlers::new(),
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

    /// To ask how it is while it runs.
    pub fn health(&self) -> Health {
        Health {
            renewal: Arc::clone(&self.renewal),
        }
    }

    /// Runs until SIGTERM or SIGINT, then as [`run_until`](Self::run_until). A
    /// second signal ends the grace at once.
    ///
    /// # Errors
    /// As `run_until`, or [`Error::Config`] when signals cannot be listened to.
    pub async fn run(self) -> Result<(), Error> {
        let mut signals = Signals::listen()?;
        let (sender, commands) = mpsc::channel(4);
        let grace = self.config.grace;
        let done = self.start(commands)?;
        tokio::pin!(done);
        let mut next = Command::Shutdown(grace);
        loop {
            // Cancel safety: signals that are not awaited stay pending; `done` is pinned.
            tokio::select! {
                result = &mut done => return result,
                () = signals.next() => {
                    tracing::info!("signal received, shutting down");
                    // Full or closed: the worker has been told, or is gone.
                    let _ = sender.try_send(std::mem::replace(&mut next, Command::Hurry));
                }
            }
        }
    }

    /// Runs until `shutdown` completes; then takes no new jobs, lets handlers
    /// finish within the grace time, gives the rest back and awaits the
    /// receipts. Dropping this future ends the worker without all that, as a
    /// crash would: its leases run out and its jobs are handed out again.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server refuses this worker for good: a
    /// protocol it does not speak, or a setting it does not take. A server that
    /// is away is no error: the worker goes on trying.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (sender, commands) = mpsc::channel(4);
        let grace = self.config.grace;
        let done = self.start(commands)?;
        tokio::pin!(done, shutdown);
        // Cancel safety: both are pinned, and only the finished one is let go.
        tokio::select! {
            result = &mut done => return result,
            () = &mut shutdown => {}
        }
        let _ = sender.try_send(Command::Shutdown(grace));
        done.await
    }

    /// Starts the pump on its own thread; handlers stay on this runtime.
    fn start(
        self,
        commands: mpsc::Receiver<Command>,
    ) -> Result<impl Future<Output = Result<(), Error>>, Error> {
        let Self {
            endpoint,
            config,
            handlers,
            renewal,
        } = self;
        let concurrency = config.concurrency;
        let runtime = tokio::runtime::Handle::current();
        let (ended, end) = oneshot::channel();
        let work = move || {
            let own = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let result = match own {
                Ok(own) => own.block_on(async {
                    let sessions = Sessions::new(config);
                    Pump {
                        endpoint,
                        sessions,
                        concurrency,
                        handlers,
                        runtime,
                        renewal,
                    }
                    .run(commands)
                    .await
                }),
                Err(error) => Err(Error::Thread(error.to_string())),
            };
            // Nobody waits any more when the owner was dropped.
            let _ = ended.send(result);
        };
        let thread = std::thread::Builder::new()
            .name("leasehold-worker".to_owned())
            .spawn(work);
        thread.map_err(|error| Error::Thread(error.to_string()))?;
        Ok(async {
            end.await
                .unwrap_or_else(|_| Err(Error::Thread("it ended by itself".to_owned())))
        })
    }
}

impl WorkerBuilder {
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

    /// The worker.
    ///
    /// # Errors
    /// [`Error::Config`] names every setting that cannot work.
    pub fn build(mut self) -> Result<Worker, Error> {
        if self.handlers.is_empty() {
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
                queue: "default".to_owned(),
                max_in_flight: 0,
            });
        }
        self.config.queues = self.queues;
        self.config.kinds = self.handlers.keys().cloned().collect();
        let renewal = Arc::new(Renewal {
            start: Instant::now(),
            at: AtomicU64::new(NEVER),
        });
        let ttl = self.config.lease_ttl.unwrap_or(LEASE_TTL);
        Ok(Worker {
            endpoint: watched(endpoint, ttl),
            config: self.config,
            handlers: Arc::new(self.handlers),
            renewal,
        })
    }

    fn register(mut self, kind: String, handler: Handler) -> Self {
        if self.handlers.contains_key(&kind) {
            self.faults.push(format!("kind {kind} has two handlers"));
        }
        self.handlers.insert(kind, handler);
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

/// The signals that end a worker.
struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen =
            |kind| signal(kind).map_err(|error| Error::Config(format!("signals: {error}")));
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        // Cancel safety: a signal that is not taken stays pending.
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Result<Self, Error> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
