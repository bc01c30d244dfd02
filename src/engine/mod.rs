//! The engine joins the store and the ready-list, and is the only place that has both. Faces call it; it calls nobody.
//!
//! ```text
//! enqueue ─> store ─> offer ─> ready-list ─> dispatch ─> store (grant) ─> sessions ─> worker
//!                       └─ if hungry here ─────^           results, renewals <─ sessions
//! loops: promote, expire_jobs, expire, reconcile, retain, tidy, bulk, signals, settings, health, flows, nodes
//! watch: looks at the jobs and queues that callers wait for
//! ```

mod attach;
mod batch;
mod budget;
pub mod bulks;
mod candidate;
pub mod cursor;
mod describe;
mod dispatch;
mod enqueue;
mod explain;
mod flows;
mod heal;
mod hunger;
mod ids;
mod jobs;
mod logs;
mod loops;
mod nodes;
mod offer;
mod outbox;
pub mod page;
mod pressure;
mod progress;
pub mod queues;
mod registry;
mod renew;
mod results;
mod sessions;
mod slots;
mod tasks;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use explain::Finding;
pub use ids::Ids;
pub use jobs::Accepted;
pub use outbox::Outbox;
pub use sessions::Live;
pub use watch::{JobNews, QueueWatch, Told, Watch};

use crate::error::{Error, Result};
use crate::job::limits::LEASE_TTL_DEFAULT;
use crate::job::{
    Ending, Lease, NewLines, NodeId, Outcome, Priority, QueueName, SessionId, Verdict,
};
use crate::ready::ReadyList;
use crate::session::Event;
use crate::session::message::Hello;
use crate::store::{Line, Store};
use crate::telemetry::Metrics;
use attach::Attaches;
use enqueue::Enqueues;
use flows::Flows;
use heal::Doubts;
use hunger::Hungry;
use logs::Logs;
use offer::Offers;
use progress::Reports;
use queues::Queues;
use registry::Registry;
use renew::Renewals;
use results::Results;
use sessions::Outlets;
use tasks::Tasks;
use watch::Watches;

/// How long the engine's own tasks may take to end once they are told to.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Calls of [`Engine::report`] that are being recorded at once: a crowd of them must leave connections for the sessions.
const REPORTS_MAX: usize = 2;
/// So many more may wait for that: each holds what it has to say.
const REPORTS_WAITING_MAX: usize = 30;

/// What a user may choose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node, for people.
    pub node_name: String,
    /// How long a lease lives when its worker has no wish.
    pub lease_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_name: "leasehold".into(),
            lease_ttl: LEASE_TTL_DEFAULT,
        }
    }
}

/// How the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The store answers. Without it nothing is accepted or handed out.
    pub store: bool,
    /// The ready-list answers. Without it hand-out goes on by direct claims, slower.
    pub ready_list: bool,
    /// The node is leaving.
    pub draining: bool,
}

/// One server node.
pub struct Engine {
    core: Arc<Core>,
    options: Options,
    tasks: Tasks,
    enqueues: Enqueues,
    offers: Offers,
    outlets: Outlets,
    reports: Arc<Semaphore>,
    /// Places of those that are recorded or wait.
    reporters: Semaphore,
}

/// What all parts of the engine share.
pub(crate) struct Core {
    store: Arc<dyn Store>,
    ready: Arc<dyn ReadyList>,
    node: NodeId,
    metrics: Arc<Metrics>,
    sessions: Registry,
    watches: Watches,
    /// What goes on in queues here.
    flows: Flows,
    /// What the store may have that the sessions do not know of: grants that it did not answer.
    doubts: Doubts,
    /// The store's clock against this machine's.
    clock: ids::Offset,
    /// Rings when there may be a job for a free slot.
    wake: Notify,
    /// The lines in which nothing is for them.
    hungry: Hungry,
    /// What is set of queues.
    queues: Queues,
    /// Rings when other nodes may have something to say.
    nudged: Notify,
    /// Bytes that wait to be sent to workers, over all streams.
    outbox_bytes: AtomicUsize,
    store_away: AtomicBool,
    /// This node has put hints back since it last looked.
    shelved: AtomicBool,
    /// The ready-list does not answer.
    ready_away: AtomicBool,
    /// It does not take new hints; full, perhaps.
    ready_refuses: AtomicBool,
    draining: CancellationToken,
    /// Somebody wants this node to leave.
    asked_to_leave: CancellationToken,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("node", &self.core.node)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts a node over a store whose schema is in place. `node` is its identity in both stores.
    pub fn start(
        store: Arc<dyn Store>,
        ready: Arc<dyn ReadyList>,
        node: NodeId,
        metrics: Arc<Metrics>,
        options: Options,
    ) -> Arc<Self> {
        let core = Arc::new(Core {
            store,
            ready,
            node,
            metrics,
            sessions: Registry::default(),
            watches: Watches::default(),
            flows: Flows::default(),
            doubts: Doubts::default(),
            clock: ids::Offset::default(),
            wake: Notify::new(),
            hungry: Hungry::default(),
            queues: Queues::default(),
            nudged: Notify::new(),
            outbox_bytes: AtomicUsize::new(0),
            store_away: AtomicBool::new(false),
            shelved: AtomicBool::new(false),
            ready_away: AtomicBool::new(false),
            ready_refuses: AtomicBool::new(false),
            draining: CancellationToken::new(),
            asked_to_leave: CancellationToken::new(),
        });
        let tasks = Tasks::default();
        let offers = Offers::start(&tasks, core.clone());
        let enqueues = Enqueues::start(&tasks, core.clone(), offers.clone());
        let results = Results::start(&tasks, core.clone(), offers.clone());
        let renewals = Renewals::start(&tasks, core.clone());
        let reports = Reports::start(&tasks, core.clone());
        let logs = Logs::start(&tasks, core.clone());
        let attaches = Attaches::start(&tasks, core.clone());
        dispatch::start(&tasks, core.clone(), offers.clone());
        loops::start(&tasks, core.clone(), &offers);
        tasks.spawn(watch::look_at_jobs(tasks.clone(), core.clone()));
        tasks.spawn(watch::look_at_queues(tasks.clone(), core.clone()));
        tasks.spawn(flows::follow(tasks.clone(), core.clone()));
        let name = options.node_name.clone();
        tasks.spawn(describe::follow(tasks.clone(), core.clone(), name.clone()));
        tasks.spawn(nodes::tell(tasks.clone(), core.clone(), name));
        info!(node = %node, name = options.node_name, "node starts");
        Arc::new(Self {
            core,
            options,
            tasks,
            enqueues,
            offers,
            outlets: Outlets {
                results,
                renewals,
                reports,
                logs,
                attaches,
            },
            reports: Arc::new(Semaphore::new(REPORTS_MAX)),
            reporters: Semaphore::new(REPORTS_MAX + REPORTS_WAITING_MAX),
        })
    }

    /// Makes ids for jobs whose callers sent none.
    pub async fn ids(&self) -> Ids {
        self.core.clock.ids(&*self.core.store).await
    }

    /// How the node is, as of about a second ago.
    pub fn health(&self) -> Health {
        Health {
            store: !self.core.store_away.load(Ordering::Relaxed),
            ready_list: !self.core.ready_is_degraded(),
            draining: self.core.is_draining(),
        }
    }

    /// The node's numbers.
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Opens a session for a worker's stream.
    ///
    /// # Errors
    /// What is wrong with the Hello; `Draining`; `LimitReached`; the store's.
    pub async fn open_session(&self, hello: Hello) -> Result<Arc<Live>> {
        if self.core.is_draining() {
            return Err(Error::Draining);
        }
        // In a task of its own: a caller that leaves must not leave half a session behind.
        let (core, outlets, options) = (
            self.core.clone(),
            self.outlets.clone(),
            self.options.clone(),
        );
        let opening = tokio::spawn(async move {
            let live = sessions::open(&core, outlets, &options, hello).await?;
            Ok::<_, Error>(Unclaimed(Some(live)))
        });
        let live = opening.await.map_err(Error::internal)??.claim()?;
        if self.core.is_draining() {
            live.feed(Event::Drain(Duration::from_secs(1)));
        }
        Ok(live)
    }

    /// Forgets a session whose stream is gone. Its leases live on until their time is over.
    pub fn forget_session(&self, live: &Live) {
        self.core.sessions.remove(live.attached());
    }

    /// Records results that come without a stream, under the session of `token`, and before them the lines that they bring.
    ///
    /// # Errors
    /// The store's; `LimitReached` when too many wait already.
    pub async fn report(
        &self,
        token: &[u8],
        results: Vec<(Lease, Outcome)>,
        said: Vec<(Lease, NewLines)>,
    ) -> Result<Vec<Verdict>> {
        let _place = self.reporters.try_acquire().map_err(|_| enqueue::busy())?;
        let session = SessionId::of_token(token);
        let endings: Vec<Ending> = results
            .into_iter()
            .map(|(lease, outcome)| results::ending(lease, session, outcome))
            .collect();
        let said = results::reports(session, said);
        let (core, offers) = (self.core.clone(), self.offers.clone());
        let turn = self.reports.clone().acquire_owned().await;
        let recording = tokio::spawn(async move {
            let _turn = turn.map_err(Error::internal)?;
            results::record_saying(&core, &offers, endings, &said).await
        });
        recording.await.map_err(Error::internal)?
    }

    /// Takes no more workers, tells those that are here to move, and waits until they have, at most `grace`. Who waits for
    /// a job is told at once.
    pub async fn drain(&self, grace: Duration) {
        self.core.draining.cancel();
        let sessions = self.core.sessions.all();
        info!(sessions = sessions.len(), ?grace, "node drains");
        for live in sessions {
            live.feed(Event::Drain(grace));
        }
        let until = tokio::time::Instant::now() + grace;
        while self.core.sessions.count() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for live in self.core.sessions.all() {
            live.outbox().close(Some(Error::Draining));
            self.forget_session(&live);
        }
    }

    /// Ends the node's loops. Everything that was accepted is durable before this returns.
    pub async fn stop(&self) {
        if !self.tasks.stop(STOP_WITHIN).await {
            warn!("some tasks did not end in time");
        }
        if let Err(error) = self.core.store.gone(self.core.node).await {
            debug!(%error, "the store was not told; it forgets this node by itself");
        }
        if let Err(error) = self.core.ready.close().await {
            debug!(%error, "the ready-list was not told; it forgets this node by itself");
        }
        info!(node = %self.core.node, "node stopped");
    }
}

/// A stream that has begun, until its caller has it: when he has left before, nobody will read what it is sent, and it
/// must get no jobs. Its session lives on in the store until its time is over, as with any stream that breaks.
struct Unclaimed(Option<Arc<Live>>);

impl Unclaimed {
    fn claim(mut self) -> Result<Arc<Live>> {
        self.0
            .take()
            .ok_or_else(|| Error::internal("a stream was claimed twice"))
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(live) = &self.0 {
            live.abandon();
        }
    }
}

impl Core {
    fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    fn ready_is_away(&self) -> bool {
        self.ready_away.load(Ordering::Relaxed)
    }

    fn store_is_away(&self) -> bool {
        self.store_away.load(Ordering::Relaxed)
    }

    fn store_answered(&self, answered: bool) {
        if !answered {
            self.doubts.store_failed();
        }
        if self.store_away.swap(!answered, Ordering::Relaxed) == answered {
            match answered {
                true => info!("the store is back"),
                false => warn!("the store is away: nothing is accepted or handed out"),
            }
        }
    }

    /// It is away or takes nothing new: then not all that is QUEUED is in it, and direct claims take over.
    fn ready_is_degraded(&self) -> bool {
        self.ready_is_away() || self.ready_refuses.load(Ordering::Relaxed)
    }

    fn ready_failed(&self) {
        self.note_ready(&self.ready_away, true);
    }

    fn ready_answered(&self) {
        self.note_ready(&self.ready_away, false);
    }

    fn ready_took(&self, took: bool) {
        self.note_ready(&self.ready_refuses, !took);
    }

    fn note_ready(&self, fault: &AtomicBool, is_so: bool) {
        let before = self.ready_is_degraded();
        fault.store(is_so, Ordering::Relaxed);
        let after = self.ready_is_degraded();
        if before != after {
            match after {
                true => {
                    warn!("degraded: the ready-list is away or full, jobs are claimed directly")
                }
                false => info!("the ready-list is back"),
            }
        }
        self.metrics.ready_list_degraded(after);
    }
}

/// The lines of some queues, those that are handed out first in front.
fn lines_of(queues: Vec<QueueName>) -> Vec<Line> {
    let of = |priority: Priority| {
        queues.iter().map(move |queue| Line {
            queue: queue.clone(),
            priority,
        })
    };
    Priority::ALL.into_iter().flat_map(of).collect()
}
