//! The ready-list in Redis: a stream for each line, one consumer group, a consumer for each node.
//!
//! | key | holds |
//! |---|---|
//! | `{prefix}:epoch` | the marker: the epoch, and the run id of the server that it began on |
//! | `{prefix}:{epoch}:{queue}:{priority}` | a line: entries with up to 16 job ids each |
//! | `{prefix}:streams` | names of all streams there are, so that those of old epochs can be removed |
//! | `{prefix}:bell` | wakes doorbells: nudges, hints put back, a new epoch |
//!
//! Redis may be away, wiped or replaced at any moment. No call panics, waits long or goes on trying: it says
//! `Unavailable`, and the next one starts afresh. Nothing blocks but the doorbell.
//!
//! A large batch has several ids in an entry, which is most of what a hint costs Redis. An entry of which not all is wanted
//! goes to the shelf at once, with what is handed out of it; whoever takes the last of it sees to the entry. What a node
//! has of an entry that others see to is lost with that node, and offered again by reconcile.
//!
//! `offer`, `take`, `steal`, `put_back` and the beginning of an epoch are scripts, each of them one command: what is on the
//! shelf decides what is read from the stream, and what a high line gives decides what is asked of a low one, so that
//! without a script a take would be two round trips for each level. A script call is bounded: it moves at most a thousand hints, about a millisecond in which Redis serves
//! nobody else. A user who may not run scripts (EVALSHA and EVAL) makes the list `Unavailable`: then jobs are claimed
//! directly, and `leasehold doctor` says why. There is no second way without scripts: it would be slow, and seldom tried.

mod check;
mod doorbell;
mod epoch;
mod link;
mod offer;
mod places;
mod probe;
mod reply;
mod script;
mod steal;
mod take;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use deadpool_redis::{Hook, Manager, Pool, Runtime, Timeouts};
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo};

pub use check::{Check, Eviction};

use self::epoch::Marker;
use self::link::{Link, ask};
use self::script::Scripts;
use super::{Hint, Placed, Probe, ReadyList, Ring, Want};
use crate::error::{Error, Result};
use crate::job::{JobId, NodeId};
use crate::store::{Epoch, Line};

/// No call takes longer, but the doorbell and those that send many batches; nor does one that finds Redis away.
const CALL_MAX: Duration = Duration::from_secs(1);
/// Connections that are being opened at once. Those that are open have left the pool.
const CONNECTIONS: usize = 2;
/// Commands of one MULTI, and ids of one command or script: a millisecond or two in which Redis serves nobody else.
const CHUNK: usize = 1_000;
/// Lines that are remembered as known to Redis; past it, they are made sure of again.
const KNOWN_MAX: usize = 10_000;
/// A call that finds a stream or the epoch gone begins again so often, then it is `Unavailable`.
const TRIES: usize = 3;
/// The one consumer group.
const GROUP: &str = "nodes";
/// The consumer that holds what was put back.
const SHELF: &str = "put-back";

/// What a node must know of its Redis.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// All keys begin with it; nodes that share a database share it. Default by convention: `leasehold`.
    pub prefix: String,
    /// Whose hints these are.
    pub node: NodeId,
}

/// A ready-list in Redis 7.0 or newer, or Valkey.
pub struct RedisReady {
    keys: Keys,
    node: NodeId,
    client: Client,
    pool: Pool,
    link: Link,
    scripts: Scripts,
    seen: Arc<Mutex<Seen>>,
    doorbell: doorbell::Doorbell,
    places: places::Places,
    reaped: Mutex<Option<Instant>>,
}

/// What this node last saw of Redis. Forgotten with each new connection, since another server may be behind it.
#[derive(Debug, Default)]
struct Seen {
    marker: Option<Marker>,
    /// Lines whose stream and group exist under the epoch `known_in`.
    known: HashSet<Line>,
    known_in: Option<Epoch>,
}

impl RedisReady {
    /// Prepares for the Redis at `url` (`redis://[user:password@]host[:port][/db]`, or `unix:` and a path). Connects
    /// only when it is first used, so a server starts while Redis is away. Errors: `InvalidArgument` for the URL.
    pub fn connect(url: &str, options: RedisOptions) -> Result<Self> {
        let info = url.into_connection_info().map_err(|_| bad_url())?;
        // A small call must not wait for the answer to the one before it.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(tcp);
        let client = Client::open(info.clone()).map_err(|_| bad_url())?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CALL_MAX))
            .set_response_timeout(Some(CALL_MAX));
        let manager = Manager::new_with_config(info, config).map_err(|_| bad_url())?;
        let seen = Arc::<Mutex<Seen>>::default();
        let forget = Arc::clone(&seen);
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(CALL_MAX),
                create: Some(CALL_MAX),
                recycle: Some(CALL_MAX),
            })
            .post_create(Hook::sync_fn(move |_, _| {
                lock(&forget).marker = None;
                Ok(())
            }))
            .build()
            .map_err(Error::internal)?;
        Ok(Self {
            keys: Keys {
                prefix: options.prefix,
            },
            node: options.node,
            client,
            pool,
            link: Link::default(),
            scripts: Scripts::default(),
            seen,
            doorbell: doorbell::Doorbell::default(),
            places: places::Places::default(),
            reaped: Mutex::default(),
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    fn consumer(&self) -> String {
        self.node.to_string()
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.bounded_by(1, call).await
    }

    /// Each batch has its time; the connection sees to it that the first one that is not answered ends the call.
    async fn bounded_by<T>(&self, ids: usize, call: impl Future<Output = Result<T>>) -> Result<T> {
        let batches = u32::try_from(ids.div_ceil(CHUNK)).unwrap_or(u32::MAX);
        let within = CALL_MAX.saturating_mul(batches.max(1));
        match tokio::time::timeout(within, call).await {
            Ok(result) => result,
            Err(_) => {
                // It hangs, as far as anybody can tell: the next call must not hang with it.
                self.link.cut_any();
                self.forget_marker();
                Err(away())
            }
        }
    }
}

/// A lock is never held while something may panic, so a poisoned one is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl ReadyList for RedisReady {
    async fn epoch(&self) -> Result<Epoch> {
        self.bounded(self.epoch_now()).await
    }

    async fn offer(&self, lines: Vec<(Line, Vec<JobId>)>) -> Result<Vec<Placed>> {
        let jobs = lines.iter().map(|(_, jobs)| jobs.len()).sum();
        self.bounded_by(jobs, self.offer_lines(&lines)).await
    }

    async fn doorbell(&self, lines: Vec<Line>, wait: Duration) -> Result<Ring> {
        self.wait_for_ring(&lines, wait).await
    }

    async fn take(&self, wants: Vec<Want>) -> Result<Vec<Hint>> {
        self.bounded(self.take_hints(&wants)).await
    }

    async fn settle(&self, hints: Vec<Hint>) -> Result<()> {
        self.bounded_by(hints.len(), self.settle_hints(&hints))
            .await
    }

    async fn put_back(&self, hints: Vec<Hint>) -> Result<()> {
        self.bounded(self.put_hints_back(&hints)).await
    }

    async fn steal(&self, lines: Vec<Line>, idle: Duration, limit: usize) -> Result<Vec<Hint>> {
        self.bounded(self.steal_hints(&lines, idle, limit)).await
    }

    async fn probe(&self, lines: Vec<Line>) -> Result<Vec<Probe>> {
        self.bounded(self.probe_lines(&lines)).await
    }

    async fn nudge(&self) -> Result<()> {
        self.bounded(self.nudge_all()).await
    }

    async fn ping(&self) -> Result<String> {
        self.bounded(async { Ok(self.look().await?.server) }).await
    }

    async fn close(&self) -> Result<()> {
        self.bounded(self.leave()).await
    }
}

/// The names of the keys.
#[derive(Debug)]
struct Keys {
    prefix: String,
}

impl Keys {
    fn marker(&self) -> String {
        format!("{}:epoch", self.prefix)
    }

    fn streams(&self) -> String {
        format!("{}:streams", self.prefix)
    }

    fn bell(&self) -> String {
        format!("{}:bell", self.prefix)
    }

    fn line(&self, epoch: Epoch, line: &Line) -> String {
        let level = line.priority.number();
        format!("{}{}:{level}", self.of_epoch(epoch), line.queue)
    }

    /// What the names of all streams of an epoch begin with.
    fn of_epoch(&self, epoch: Epoch) -> String {
        format!("{}:{}:", self.prefix, epoch.0.simple())
    }
}

fn away() -> Error {
    Error::unavailable("redis")
}

fn bad_url() -> Error {
    Error::field(
        "redis_url",
        "must be redis://[user:password@]host[:port][/db]",
    )
}
