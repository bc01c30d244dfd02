//! The attempts this worker has and owes a verdict for: running, or finished
//! without a receipt.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use prost::Message;

use super::log::Log;
use super::progress::Reports;
use super::{SessionNo, StopReason, Ticket};
use crate::proto;

/// One attempt, from its Jobs frame to its receipt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) session: SessionNo,
    pub(super) lease: proto::Lease,
    pub(super) state: State,
    pub(super) reports: Reports,
    pub(super) log: Log,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// Its handler runs; `stop` is why it was told to end, if it was.
    Running { stop: Option<StopReason> },
    /// Its result waits for a receipt.
    Finished(Finished),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Finished {
    pub(super) outcome: proto::result::Outcome,
    /// Encoded size of the result, with the lines that go with it.
    pub(super) bytes: usize,
    /// When the handler ended.
    pub(super) since: Duration,
    /// How many of its results were refused.
    pub(super) rejections: u32,
    /// It waits in the outbox of its session.
    pub(super) queued: bool,
}

/// All held attempts, in the order in which they came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Book {
    /// Boxed: a tree moves what it holds.
    held: BTreeMap<Ticket, Box<Held>>,
    by_lease: HashMap<SessionNo, HashMap<proto::Lease, Ticket>>,
    last: u64,
    running: usize,
    finished_bytes: usize,
}

/// The index follows from what is held.
impl Hash for Book {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.held, self.last, self.running, self.finished_bytes).hash(state);
    }
}

impl Book {
    /// Takes a lease in as running.
    pub(super) fn take(
        &mut self,
        session: SessionNo,
        lease: proto::Lease,
        reports: Reports,
    ) -> Ticket {
        self.last += 1;
        let ticket = Ticket(self.last);
        let of_session = self.by_lease.entry(session).or_default();
        of_session.insert(lease.clone(), ticket);
        self.running += 1;
        let state = State::Running { stop: None };
        let held = Held {
            session,
            lease,
            state,
            reports,
            log: Log::default(),
        };
        self.held.insert(ticket, Box::new(held));
        ticket
    }

    pub(super) fn find(&self, session: SessionNo, lease: &proto::Lease) -> Option<Ticket> {
        self.by_lease.get(&session)?.get(lease).copied()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Held> {
        self.held.get(&ticket).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Held> {
        self.held.get_mut(&ticket).map(Box::as_mut)
    }

    /// Puts a result in the place of the handler, or of an earlier result.
    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        outcome: proto::result::Outcome,
        now: Duration,
    ) {
        let Some(held) = self.held.get_mut(&ticket) else {
            return;
        };
        let bytes = held.lease.encoded_len() + outcome.encoded_len() + held.log.lines.size();
        let (since, rejections) = match &held.state {
            State::Running { .. } => {
                self.running = self.running.saturating_sub(1);
                (now, 0)
            }
            State::Finished(old) => {
                self.finished_bytes = self.finished_bytes.saturating_sub(old.bytes);
                (old.since, old.rejections + 1)
            }
        };
        self.finished_bytes = self.finished_bytes.saturating_add(bytes);
        held.state = State::Finished(Finished {
            outcome,
            bytes,
            since,
            rejections,
            queued: false,
        });
    }

    /// Forgets an attempt, with whatever state it is in.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Held> {
        let held = *self.held.remove(&ticket)?;
        if let Some(of_session) = self.by_lease.get_mut(&held.session) {
            of_session.remove(&held.lease);
            if of_session.is_empty() {
                self.by_lease.remove(&held.session);
            }
        }
        match &held.state {
            State::Running { .. } => self.running = self.running.saturating_sub(1),
            State::Finished(finished) => {
                self.finished_bytes = self.finished_bytes.saturating_sub(finished.bytes);
            }
        }
        Some(held)
    }

    /// Handlers that have not ended, told to stop or not.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Results without a receipt, and their size.
    pub(super) fn finished(&self) -> (usize, usize) {
        (self.held.len() - self.running, self.finished_bytes)
    }

    /// Everything a session holds.
    pub(super) fn of(&self, session: SessionNo) -> impl Iterator<Item = (Ticket, &Held)> {
        self.held
            .iter()
            .filter(move |(_, held)| held.session == session)
            .map(|(ticket, held)| (*ticket, held.as_ref()))
    }

    /// What a session holds, as the wire lists it.
    pub(super) fn leases_of(&self, session: SessionNo) -> Vec<proto::Lease> {
        self.of(session)
            .map(|(_, held)| held.lease.clone())
            .collect()
    }

    /// A session's handlers that have not ended.
    pub(super) fn running_of(&self, session: SessionNo) -> Vec<Ticket> {
        self.of(session)
            .filter(|(_, held)| held.is_running())
            .map(|(ticket, _)| ticket)
            .collect()
    }

    /// Those of them that nobody told to stop.
    pub(super) fn undisturbed(&self, session: SessionNo) -> Vec<Ticket> {
        self.of(session)
            .filter(|(_, held)| matches!(held.state, State::Running { stop: None }))
            .map(|(ticket, _)| ticket)
            .collect()
    }

    /// A session's results, in the order in which their leases came.
    pub(super) fn finished_of(&self, session: SessionNo) -> Vec<Ticket> {
        self.of(session)
            .filter(|(_, held)| !held.is_running())
            .map(|(ticket, _)| ticket)
            .collect()
    }

    /// Everything, in whatever session.
    pub(super) fn all(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.held
            .iter()
            .map(|(ticket, held)| (*ticket, held.as_ref()))
    }
}

impl Held {
    /// The result, as it is sent, with the lines that have no receipt.
    pub(super) fn result(&self) -> Option<proto::Result> {
        Some(proto::Result {
            lease: Some(self.lease.clone()),
            outcome: Some(self.finished()?.outcome.clone()),
            log: self.log.lines.wire(),
        })
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    pub(super) fn finished(&self) -> Option<&Finished> {
        match &self.state {
            State::Finished(finished) => Some(finished),
            State::Running { .. } => None,
        }
    }

    pub(super) fn finished_mut(&mut self) -> Option<&mut Finished> {
        match &mut self.state {
            State::Finished(finished) => Some(finished),
            State::Running { .. } => None,
        }
    }
}
