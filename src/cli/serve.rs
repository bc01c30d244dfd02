//! `leasehold serve`, and what every server has in common: this is the only place that opens backends.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::exit::{Exit, Failure, told};
use super::migrate::{self, Refusal};
use super::settings::Given;
use super::signals;
use crate::config::{Command, Config};
use crate::engine::{Engine, Options};
use crate::error::{Error, Result as StoreResult};
use crate::job::NodeId;
use crate::ready::ReadyList;
use crate::ready::memory::MemoryReady;
use crate::ready::observed::{Observed as ObservedReady, ReadyMetrics};
use crate::ready::redis::{RedisOptions, RedisReady};
use crate::server;
use crate::store::Store;
use crate::store::observed::{Observed as ObservedStore, StoreMetrics};
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::sqlite::SqliteStore;
use crate::telemetry::Metrics;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;
/// Between two looks for a store that is away, first and at most.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// Flags of `leasehold serve` beside the configuration's.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave the schema as it is: the same as --migrate=false
    #[arg(long)]
    no_migrate: bool,
}

/// `leasehold serve`: runs until SIGTERM.
pub(super) async fn run(args: Args, given: Given) -> Result<Exit, Failure> {
    let given = if args.no_migrate {
        given.with("migrate", "false")
    } else {
        given
    };
    let config = given.config(Command::Serve)?;
    if !config.listen.ip().is_loopback() {
        warn!(listen = %config.listen, "no authentication: whoever reaches this address may do everything");
    }
    // Taken now, so that a second node on one port is known at once; open only when there is a store behind it.
    let door = Door::bind(config.listen)?;
    let shutdown = signals::shutdown(|| {})?;
    let backends = Backends::new()?;
    let Some(store) = until_there(&config, &shutdown).await? else {
        return Ok(Exit::Done);
    };
    let ready = redis(&config, backends.node).await?;
    let engine = backends.engine(Arc::new(store), ready, &config);
    let listener = door.open()?;
    info!("listening on http://{}", address(&listener)?);
    leave_when_asked(engine.clone(), shutdown.clone());
    server::serve(listener, engine, options(&config), shutdown).await?;
    Ok(Exit::Done)
}

/// Ends the server as by SIGTERM when somebody asks by a call that this node leaves.
pub(super) fn leave_when_asked(engine: Arc<Engine>, shutdown: CancellationToken) {
    // Ends with the process: whoever is not asked stays.
    tokio::spawn(async move {
        engine.asked_to_leave().await;
        shutdown.cancel();
    });
}

/// How the configured node serves.
pub(super) fn options(config: &Config) -> server::Options {
    server::Options {
        drain_grace: config.drain_grace,
        web_origins: config.web_origins.clone(),
    }
}

/// Opens the Postgres of the configuration.
pub(super) async fn postgres(config: &Config) -> StoreResult<PostgresStore> {
    let url = config
        .database_url
        .as_ref()
        .ok_or_else(|| Error::field("database_url", "is required"))?;
    PostgresStore::connect(url.expose(), &PostgresOptions::default()).await
}

/// Why a call to the Postgres of the configuration failed: the reason that no connection is to be had, if none is.
pub(super) async fn why(config: &Config, error: &Error) -> String {
    match trouble(config).await {
        Some(trouble) => format!("postgres: {trouble}"),
        None => told(error),
    }
}

/// Why no connection to the Postgres of the configuration is to be had; `None`: one is.
pub(super) async fn trouble(config: &Config) -> Option<String> {
    let url = config.database_url.as_ref()?.expose();
    let trouble = PostgresStore::trouble(url, &PostgresOptions::default()).await;
    trouble.unwrap_or_else(|error| Some(told(&error)))
}

/// Prepares for the Redis of the configuration; nothing is sent yet.
pub(super) fn redis_of(config: &Config, node: NodeId) -> StoreResult<RedisReady> {
    let url = config
        .redis_url
        .as_ref()
        .ok_or_else(|| Error::field("redis_url", "is required"))?;
    RedisReady::connect(
        url.expose(),
        RedisOptions {
            prefix: config.redis_prefix.clone(),
            node,
        },
    )
}

/// The store with its schema in place, however long it takes to be there. `None`: told to stop before.
async fn until_there(
    config: &Config,
    shutdown: &CancellationToken,
) -> Result<Option<PostgresStore>, Failure> {
    let mut pause = AGAIN_FIRST;
    loop {
        // Cancel safe: a migration that is dropped is rolled back, or taken up by the next start.
        let opened = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            opened = open_postgres(config) => opened,
        };
        match opened {
            Ok(store) => return Ok(Some(store)),
            Err(Refusal::Store(error @ (Error::Unavailable { .. } | Error::OutcomeUnknown))) => {
                let error = why(config, &error).await;
                warn!(error, again_in = ?pause, "the database does not answer");
            }
            Err(Refusal::Store(error)) => {
                return Err(Failure {
                    why: why(config, &error).await,
                    ..Failure::from(error)
                });
            }
            Err(Refusal::Schema(failure)) => return Err(failure),
        }
        if shutdown
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_none()
        {
            return Ok(None);
        }
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

async fn open_postgres(config: &Config) -> Result<PostgresStore, Refusal> {
    let store = postgres(config).await?;
    let server = store.ping().await?;
    info!(server, "the database answers");
    bring_up(&store, config.migrate).await?;
    Ok(store)
}

/// Brings the schema up to date, or checks that it is.
async fn bring_up(store: &dyn Store, migrate: bool) -> Result<(), Refusal> {
    if migrate {
        let report = migrate::migrate(store).await?;
        for step in &report.steps {
            info!(step, "migrated");
        }
        return Ok(());
    }
    let report = store.pending_migrations().await?;
    migrate::verdict(&report).map_err(|why| Refusal::Schema(Failure::usage(why)))
}

/// The ready-list in Redis. It may be away now or at any time; one that is there and will not do is refused.
async fn redis(config: &Config, node: NodeId) -> Result<RedisReady, Failure> {
    let ready = redis_of(config, node)?;
    match ready.check().await {
        Ok(check) => {
            if let Some(why) = check.refusal {
                return Err(Failure::trouble(format!("redis: {why}")));
            }
            if let Some(why) = check.degraded() {
                warn!("redis: {why}");
            }
            info!(server = check.server, "redis answers");
            if let Some(warning) = check.eviction.warning() {
                warn!("redis: {warning}");
            }
        }
        Err(error) => warn!(
            error = ready.trouble().await.unwrap_or_else(|| told(&error)),
            "redis does not answer, going on without until it does"
        ),
    }
    Ok(ready)
}

/// What backends are opened for: the node's identity and its numbers.
pub(super) struct Backends {
    node: NodeId,
    metrics: Arc<Metrics>,
}

impl Backends {
    /// A node with a new identity: a restart is another node.
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            node: NodeId(Uuid::new_v4()),
            metrics: Arc::new(Metrics::new()?),
        })
    }

    /// Starts the engine of an embedded server on the file at `path`.
    pub(super) async fn embedded(
        self,
        path: &std::path::Path,
        config: &Config,
    ) -> Result<Arc<Engine>, Failure> {
        let store = SqliteStore::open(path).await?;
        bring_up(&store, true).await?;
        Ok(self.engine(Arc::new(store), MemoryReady::new(), config))
    }

    fn engine(self, store: Arc<dyn Store>, ready: impl ReadyList, config: &Config) -> Arc<Engine> {
        let store = ObservedStore::new(store, Arc::new(Hook(self.metrics.clone())));
        let ready = Arc::new(ObservedReady::new(ready, Hook(self.metrics.clone())));
        let node_name = if config.node.is_empty() {
            name()
        } else {
            config.node.clone()
        };
        let options = Options {
            node_name,
            lease_ttl: config.lease_ttl,
        };
        Engine::start(store, ready, self.node, self.metrics, options)
    }
}

/// Carries what the decorators measure to the metrics.
struct Hook(Arc<Metrics>);

impl StoreMetrics for Hook {
    fn observe(&self, verb: &'static str, elapsed: Duration, failed: Option<&'static str>) {
        self.0.observe_store(verb, elapsed, failed);
    }
}

impl ReadyMetrics for Hook {
    fn observe(&self, verb: &'static str, elapsed: Duration, failed: Option<&'static str>) {
        self.0.observe_ready(verb, elapsed, failed);
    }
}

/// An address that is taken, and refuses connections until it is opened.
pub(super) struct Door {
    socket: TcpSocket,
    wanted: SocketAddr,
}

impl Door {
    pub(super) fn bind(wanted: SocketAddr) -> Result<Self, Failure> {
        let bind = || -> std::io::Result<TcpSocket> {
            let socket = if wanted.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            // On Windows it would mean something else: to share the port.
            #[cfg(unix)]
            socket.set_reuseaddr(true)?;
            socket.bind(wanted)?;
            Ok(socket)
        };
        Ok(Self {
            socket: bind().map_err(|why| taken(wanted, &why))?,
            wanted,
        })
    }

    pub(super) fn open(self) -> Result<TcpListener, Failure> {
        self.socket
            .listen(BACKLOG)
            .map_err(|why| taken(self.wanted, &why))
    }
}

fn taken(wanted: SocketAddr, why: &impl Display) -> Failure {
    Failure::trouble(format!(
        "cannot listen on {wanted}: {why}; choose another address by --listen"
    ))
}

/// Where it really listens, as port 0 lets the system choose.
pub(super) fn address(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener
        .local_addr()
        .map_err(|why| Failure::trouble(why.to_string()))
}

/// `host:pid`, where the host has a name.
fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!(
        "{}:{}",
        if host.is_empty() { "node" } else { host },
        std::process::id()
    )
}
