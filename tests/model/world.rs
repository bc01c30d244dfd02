//! Two nodes, two workers and the store between them, with all that is on its way: the state that is explored.
//!
//! Time goes in steps of 5 s, and of 2 s where a worker waits to come back. With a TTL of 10 s a session's worker gives up
//! at the second long step after its last renewal, and the sweeper may end it at the third.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use leasehold::job::{Lease, QueueName};
use leasehold::session::Session;
use worker_sdk::session::{Config as WorkerConfig, Event as Heard, Sessions, StreamNo, Ticket};

use super::broken::Rule;
use super::calls::{By, Call, Kind};
use super::store::Store;
use super::wire::{Down, Id, Up};

pub const LONG: Duration = Duration::from_secs(5);
pub const SHORT: Duration = Duration::from_secs(2);
pub const QUEUE: &str = "q";

pub fn queue() -> &'static QueueName {
    static NAME: OnceLock<QueueName> = OnceLock::new();
    NAME.get_or_init(|| QueueName::from_store(QUEUE))
}

/// What may go wrong, or be done by hand. Each costs one of its own budget and one of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A worker's end of a stream breaks; the node has not noticed yet.
    Cut,
    /// A node's end of a stream breaks; the worker has not noticed yet.
    Sever,
    /// A node dies with all its streams, and is there again.
    Crash,
    /// A worker dies, and another takes its place.
    Kill,
    /// A worker stands still for a while.
    Pause,
    /// All hints are lost.
    Wipe,
    /// A hint is there twice.
    Double,
    Drain,
    /// A worker says goodbye.
    Leave,
    Cancel,
    Retry,
    /// A handler fails.
    Fail,
    /// The store does not answer a call; it may carry it out all the same.
    Lose,
    /// A message comes twice.
    Repeat,
    /// A message is lost on a stream that goes on.
    Miss,
    /// Retention removes a job that is final.
    Purge,
    /// The store is away for a while, and carries out nothing.
    Outage,
    /// A worker's process is there twice, with its token and its handlers.
    Copy,
}

/// The bounds of one exploration.
#[derive(Debug, Clone)]
pub struct Bound {
    pub rule: Rule,
    pub jobs: usize,
    pub workers: usize,
    pub slots: usize,
    /// Jobs are accepted on the way, not before.
    pub enqueue: bool,
    /// All are asked for under one key, the third by another request than the first two.
    pub keyed: bool,
    /// Of an attempt.
    pub timeout: Option<Duration>,
    /// The clock stands still from then on.
    pub end: Duration,
    /// Short steps are taken too: a worker comes back before anything is due.
    pub short: bool,
    /// The clock waits while more messages and calls than this are on their way: so many may be late.
    pub late: usize,
    /// Sessions that are over are tidied away.
    pub tidies: bool,
    pub faults: Vec<(Fault, u8)>,
    pub faults_max: u8,
    /// Calls to the store that others come between; the rest are one step.
    pub split: Vec<Kind>,
    /// Nodes look at the store.
    pub looks: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub now: Duration,
    pub store: Store,
    pub workers: Vec<Worker>,
    pub streams: Vec<Stream>,
    pub calls: Vec<Call>,
    pub hints: Vec<u8>,
    pub draining: [bool; 2],
    /// Cancels that a node is to be told of.
    pub signals: Vec<(Lease, Id)>,
    /// Grants without an answer, by node.
    pub doubts: BTreeSet<(u8, usize, Id)>,
    pub left: BTreeMap<Fault, u8>,
    pub faults_left: u8,
    /// Attempts that were run, by whomever.
    pub ran: BTreeSet<Lease>,
    /// What each enqueue was answered.
    pub accepted: Vec<Option<Named>>,
    /// Whether a worker was copied.
    pub copied: bool,
    /// The store is away.
    pub away: bool,
}

/// The answer to an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Named {
    /// OK, with this job.
    Job(usize),
    /// The key has another request.
    Clash,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Worker {
    pub half: Arc<Sessions>,
    /// How many came before it in its place.
    pub life: u8,
    pub handlers: BTreeMap<Ticket, Handler>,
    pub paused: bool,
    /// It has left in order.
    pub over: bool,
    /// Attempts whose handlers have ended, and of which no verdict has come.
    pub owed: BTreeSet<Lease>,
    /// For [`Rule::HeldReadApart`]: what it held before the newest frame.
    pub before: Vec<Lease>,
    /// For [`Rule::SessionInherited`].
    pub session: Option<Id>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Handler {
    pub lease: Lease,
    pub session: Id,
    /// To stop.
    pub told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stream {
    pub worker: usize,
    pub life: u8,
    pub no: StreamNo,
    pub up: VecDeque<Up>,
    pub down: VecDeque<Down>,
    /// The worker's end is there.
    pub client: bool,
    pub server: Server,
    pub node: u8,
    pub half: Option<Arc<Session>>,
    /// Under which number the node has which session.
    pub attached: Option<(Id, u64)>,
    /// A message was lost in its middle: no real stream goes on then.
    pub holed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Server {
    /// No node has it yet.
    Waiting,
    /// The store is asked for its session.
    Opening,
    Live,
    Gone,
}

impl World {
    pub fn new(bound: &Bound) -> Self {
        let worker = || Worker {
            half: Arc::new(fresh(bound)),
            life: 0,
            handlers: BTreeMap::new(),
            paused: false,
            over: false,
            owed: BTreeSet::new(),
            before: Vec::new(),
            session: None,
        };
        let mut world = Self {
            now: Duration::ZERO,
            store: Store::new(bound.rule, bound.jobs, !bound.enqueue, bound.keyed),
            workers: (0..bound.workers).map(|_| worker()).collect(),
            streams: Vec::new(),
            calls: Vec::new(),
            hints: vec![u8::from(!bound.enqueue); bound.jobs],
            draining: [false; 2],
            signals: Vec::new(),
            doubts: BTreeSet::new(),
            left: bound.faults.iter().copied().collect(),
            faults_left: bound.faults_max,
            ran: BTreeSet::new(),
            accepted: (0..bound.jobs)
                .map(|job| (!bound.enqueue).then_some(Named::Job(job)))
                .collect(),
            copied: false,
            away: false,
        };
        for worker in 0..bound.workers {
            world.hears(worker, Heard::Tick, None);
        }
        world
    }

    pub fn stream(&self, by: By) -> Option<usize> {
        let By::Stream(worker, life, no) = by else {
            return None;
        };
        self.streams
            .iter()
            .position(|s| (s.worker, s.life, s.no) == (worker, life, no))
    }
}

/// A worker that has just started.
pub fn fresh(bound: &Bound) -> Sessions {
    Sessions::new(WorkerConfig {
        worker: String::new(),
        queues: Vec::new(),
        kinds: BTreeSet::from(["k".to_owned()]),
        concurrency: bound.slots,
        lease_ttl: None,
        labels: BTreeMap::new(),
        sdk: String::new(),
        stop_grace: LONG,
        grace: LONG,
        finish_unrenewed: false,
        seed: 1,
    })
}
