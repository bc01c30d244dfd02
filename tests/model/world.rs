//! Two nodes, two workers and the store between them, with all that is on its way: the state that is explored.
//!
//! Time goes in steps of 5 s, and of 2 s where a worker waits to come back. With a TTL of 10 s a session's worker gives up
//! at the second long step after its last renewal, and the sweeper may end it at the third.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use leasehold::job::{Lease, Outcome, QueueName};
use leasehold::session::Session;
use worker_sdk::session::{
    Config as WorkerConfig, Event as Heard, SessionNo, Sessions, StreamNo, Ticket,
};

use super::broken::Rule;
use super::store::{Attaching, Granted, State, Store};
use super::wire::{Down, Id, Said, Told, Up, job_of};

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

/// The kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Enqueue,
    Open,
    Attach,
    Renew,
    Grant,
    Record,
    Own,
    Find,
    Look,
    End,
    Report,
    Sweep,
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

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Call {
    pub by: By,
    pub op: Op,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    Client,
    Stream(usize, u8, StreamNo),
    Unary(usize, u8, SessionNo),
    /// Whoever asked is gone.
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op {
    Enqueue(usize),
    Open {
        node: u8,
    },
    Attach {
        session: Id,
        number: u64,
        node: u8,
    },
    Renew(Id, u64),
    Grant {
        job: usize,
        session: Id,
        attach: u64,
    },
    Record(Id, Vec<(Lease, Said)>),
    Own(Id, Lease, Outcome),
    Find(Id, Vec<Lease>),
    Look {
        session: Id,
        attach: u64,
        running: Vec<Lease>,
    },
    End(Id, u64),
    Report(Id, Vec<(Lease, Said)>),
    Bury(Id),
    TakeBack(usize),
}

impl Op {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Enqueue(_) => Kind::Enqueue,
            Self::Open { .. } => Kind::Open,
            Self::Attach { .. } => Kind::Attach,
            Self::Renew(..) => Kind::Renew,
            Self::Grant { .. } => Kind::Grant,
            Self::Record(..) => Kind::Record,
            Self::Own(..) => Kind::Own,
            Self::Find(..) => Kind::Find,
            Self::Look { .. } => Kind::Look,
            Self::End(..) => Kind::End,
            Self::Report(..) => Kind::Report,
            Self::Bury(_) | Self::TakeBack(_) => Kind::Sweep,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    Asked,
    /// The first of two statements is done. The leases, if they were read by it.
    Between(Vec<Lease>),
    Done(Answer),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    Nothing,
    Named(Named),
    Opened(Id),
    Attached(Id, u64, Vec<Lease>),
    Moved,
    State(State),
    Granted(Granted),
    Told(Vec<Told>),
    Found(Vec<Lease>, Vec<Lease>),
    Looked(Option<(Vec<Lease>, Vec<Lease>)>),
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

    /// Carries out a call's next statement.
    pub fn serve(&mut self, at: usize, bound: &Bound) {
        if self.away {
            return self.lose(at, bound);
        }
        let now = self.now;
        let store = &mut self.store;
        let rule = store.rule;
        let call = &mut self.calls[at];
        let phase = std::mem::replace(&mut call.phase, Phase::Done(Answer::Nothing));
        let read = match &phase {
            Phase::Between(leases) => Some(leases.clone()),
            _ => None,
        };
        call.phase = match &call.op {
            Op::Enqueue(job) => {
                let known = match (read, rule) {
                    (None, Rule::KeyCheckedApart) => {
                        // What was seen, by the statement that looked for the key.
                        call.phase = Phase::Between(match store.keyed(*job) {
                            Some(first) => vec![Lease {
                                job: super::wire::job_id(first),
                                attempt: 0,
                            }],
                            None => Vec::new(),
                        });
                        return;
                    }
                    (Some(seen), _) => seen.first().map(|lease| job_of(*lease)),
                    _ => store.keyed(*job),
                };
                let named = store.enqueue(*job, known);
                if named == Named::Job(*job) && known.is_none() {
                    self.hints[*job] += 1;
                }
                Phase::Done(Answer::Named(named))
            }
            Op::Open { .. } => Phase::Done(Answer::Opened(store.open_session(now))),
            Op::Attach {
                session,
                number,
                node,
            } => match (read, rule == Rule::LeasesBeforeAttach) {
                (None, true) => Phase::Between(store.leases_of(*session)),
                (Some(leases), true) => match store.attach(*session, *number, now) {
                    Attaching::Resumed => Phase::Done(Answer::Attached(*session, *number, leases)),
                    Attaching::Superseded => Phase::Done(Answer::Moved),
                    Attaching::Gone => Phase::Done(Answer::Opened(store.open_session(now))),
                },
                (None, false) => match store.attach(*session, *number, now) {
                    Attaching::Resumed => Phase::Between(Vec::new()),
                    Attaching::Superseded => Phase::Done(Answer::Moved),
                    Attaching::Gone => {
                        call.op = Op::Open { node: *node };
                        Phase::Asked
                    }
                },
                (Some(_), false) => Phase::Done(match store.leases(*session, *number) {
                    Some(leases) => Answer::Attached(*session, *number, leases),
                    None => Answer::Moved,
                }),
            },
            Op::Renew(session, attach) => {
                Phase::Done(Answer::State(store.renew(*session, *attach, now)))
            }
            Op::Grant {
                job,
                session,
                attach,
            } => {
                let granted = match (rule, read) {
                    (Rule::GrantUnlocked, None) => match store.state(*session, *attach, now) {
                        State::Alive => None,
                        refused => Some(Granted::Refused(refused)),
                    },
                    (Rule::GrantUnlocked, Some(_)) => Some(store.hand_out(*job, *session, now)),
                    _ => Some(store.grant(*job, *session, *attach, now)),
                };
                if let Some(Granted::Lease(_)) = granted {
                    store.granted_to(*session, *attach);
                }
                match granted {
                    None => Phase::Between(Vec::new()),
                    Some(granted) => Phase::Done(Answer::Granted(granted)),
                }
            }
            Op::Record(session, results) | Op::Report(session, results) => {
                let finish = |(lease, said): &(Lease, Said)| {
                    store.finish(*lease, *session, &super::wire::outcome(*said), now)
                };
                Phase::Done(Answer::Told(results.iter().map(finish).collect()))
            }
            Op::Own(session, lease, outcome) => {
                if *outcome == Outcome::Forgotten && store.holds(*lease, *session) {
                    let runs = |worker: &Worker| {
                        let mut handlers = worker.handlers.values();
                        handlers.any(|h| h.lease == *lease && h.session == *session)
                    };
                    let runs = !self.copied && self.workers.iter().any(runs);
                    store.law(!runs, "I5: no lease is taken back whose handler runs");
                }
                store.finish(*lease, *session, outcome, now);
                Phase::Done(Answer::Nothing)
            }
            Op::Find(session, leases) => {
                let held = |lease: &&Lease| store.holds(**lease, *session);
                let (jobs, gone): (Vec<_>, Vec<_>) = leases.iter().partition(held);
                Phase::Done(Answer::Found(jobs, gone))
            }
            Op::Look {
                session,
                attach,
                running,
            } => {
                let (session, attach) = (*session, *attach);
                let doubted = self.doubts.iter().filter(|(_, _, id)| *id == session);
                let asked = running.iter().map(|lease| job_of(*lease));
                let mut known: Vec<Lease> = asked
                    .chain(doubted.map(|(_, job, _)| *job))
                    .filter_map(|job| store.running(job, session))
                    .collect();
                let old = store.old_leases(session, attach, now);
                Phase::Done(Answer::Looked(old.map(|old| {
                    let is_gone = |lease: &&Lease| !known.contains(lease);
                    let mut vanished: Vec<Lease> =
                        running.iter().filter(is_gone).copied().collect();
                    if rule == Rule::CancelUntold {
                        vanished.clear();
                    }
                    known.extend(old);
                    known.sort_unstable();
                    known.dedup();
                    (known, vanished)
                })))
            }
            Op::End(session, attach) => {
                store.close_session(*session, *attach);
                Phase::Done(Answer::Nothing)
            }
            Op::Bury(session) => {
                store.bury(*session);
                Phase::Done(Answer::Nothing)
            }
            Op::TakeBack(job) => {
                store.take_back(*job);
                Phase::Done(Answer::Nothing)
            }
        };
        if call.by == By::Nobody && matches!(call.phase, Phase::Done(_)) {
            self.calls.remove(at);
        }
    }

    /// Whoever asked is gone: what is under way may be carried out all the same.
    pub fn orphan(&mut self, is_gone: impl Fn(&By) -> bool) {
        for call in &mut self.calls {
            if is_gone(&call.by) {
                call.by = By::Nobody;
            }
        }
        // Those that are done and those that only read are of no use to anybody any more; and a session of which nobody
        // knows the token is as good as none.
        self.calls.retain(|call| {
            let writes = !matches!(call.op, Op::Find(..) | Op::Look { .. } | Op::Open { .. });
            call.by != By::Nobody || (writes && !matches!(call.phase, Phase::Done(_)))
        });
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
