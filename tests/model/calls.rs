//! Calls to the store: who asked, what for, and how far it has come. Each statement of it is a step of its own where a
//! bound says so.

use leasehold::job::{Lease, Outcome};
use worker_sdk::session::{SessionNo, StreamNo};

use super::broken::Rule;
use super::store::{Attaching, Granted, State};
use super::wire::{Id, Said, Told, job_of};
use super::world::{Bound, Named, Worker, World};

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
}
