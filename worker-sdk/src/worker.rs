//! A worker: handlers by kind, and a loop that runs what is pushed to it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tonic::transport::Endpoint;

use crate::builder::WorkerBuilder;
use crate::connection::{Command, NEVER, Pump, Renewal};
use crate::context::Shared;
use crate::error::Error;
use crate::handler::Handlers;
use crate::session::{Config, Sessions};

/// Takes jobs from a server and runs them. Made by [`Worker::builder`].
#[must_use = "a worker does nothing until `run`"]
pub struct Worker {
    endpoint: Endpoint,
    config: Config,
    handlers: Arc<Handlers>,
    shared: Arc<Shared>,
    renewal: Arc<Renewal>,
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
        WorkerBuilder::new(url.into())
    }

    pub(crate) fn new(
        endpoint: Endpoint,
        config: Config,
        handlers: Handlers,
        shared: Shared,
    ) -> Self {
        let renewal = Renewal {
            start: Instant::now(),
            at: AtomicU64::new(NEVER),
        };
        Self {
            endpoint,
            config,
            handlers: Arc::new(handlers),
            shared: Arc::new(shared),
            renewal: Arc::new(renewal),
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
            shared,
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
                        shared,
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
