//! How a session is put right: by the Hello that resumes it, by heartbeats that state all that the worker holds, and by
//! looks at what the store knows. Each compares whole states, so that whatever was lost is found, however it was lost.
//!
//! | the store has it | the worker has it | then |
//! |---|---|---|
//! | yes | no, and never got its frame | it is pushed again |
//! | yes | no, though it got its frame | it is taken back: forgotten |
//! | no | yes | the worker is told: Lost |
//!
//! A single look may cross with a frame, a result or a receipt on its way, so what it shows counts when the next one
//! shows it too. A Hello crosses with nothing: the store has moved the session under its lock, and the worker takes
//! nothing of older streams any more.

use std::collections::BTreeSet;
use std::time::Duration;

use super::held::Phase;
use super::message::{ServerMessage, Welcome};
use super::{AGAIN, Action, Session, SessionPhase};
use crate::error::{Error, Violation};
use crate::job::limits::{BATCH_MAX, HELD_MAX};
use crate::job::{HeldLease, Lease, LeasedJob, Outcome};

/// Leases whose jobs are read, to be pushed again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Finding {
    wanted: BTreeSet<Lease>,
    /// The engine has some of them in hand.
    is_asked: bool,
    /// Not before this.
    at: Option<Duration>,
}

impl Finding {
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    pub(super) fn next_try(&self) -> Option<Duration> {
        self.at
            .filter(|_| !self.is_asked && !self.wanted.is_empty())
    }
}

/// What the last look showed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Seen {
    /// Leases that the last heartbeat listed and that are not the session's.
    strangers: BTreeSet<Lease>,
    /// Leases that the store had and the session did not.
    unknown: BTreeSet<Lease>,
    /// Leases that the session had and the store did not.
    vanished: BTreeSet<Lease>,
}

impl Session {
    /// A new session. What the worker holds is of an old one that is over, and takes no slot here.
    pub(super) fn opened(&mut self, welcome: Welcome, out: &mut Vec<Action>) {
        self.phase = SessionPhase::Live;
        out.push(Action::Send(ServerMessage::Welcome(Box::new(welcome))));
        let lost = std::mem::take(&mut self.hello.held);
        self.tell_lost(lost, out);
        out.push(Action::LookForJobs);
    }

    pub(super) fn resumed(
        &mut self,
        now: Duration,
        welcome: Welcome,
        leases: Vec<HeldLease>,
        out: &mut Vec<Action>,
    ) {
        self.phase = SessionPhase::Live;
        self.ttl = welcome.lease_ttl;
        out.push(Action::Send(ServerMessage::Welcome(Box::new(welcome))));
        let mut listed: BTreeSet<Lease> =
            std::mem::take(&mut self.hello.held).into_iter().collect();
        for held in leases {
            match listed.remove(&held.lease) {
                true => self.held.adopt(now, held),
                false => self.expect(now, held),
            }
        }
        for lease in &listed {
            self.held.stray(now, *lease);
        }
        self.tell_lost(listed.into_iter().collect(), out);
        self.find(now, out);
        out.push(Action::LookForJobs);
    }

    pub(super) fn heartbeat(
        &mut self,
        now: Duration,
        sequence: u64,
        last_frame: u64,
        listed: Vec<Lease>,
        out: &mut Vec<Action>,
    ) {
        if listed.len() > HELD_MAX {
            let fault = Violation::field("heartbeat.held", format!("must be at most {HELD_MAX}"));
            return self.close(Some(Error::InvalidArgument(vec![fault])), out);
        }
        let listed: BTreeSet<Lease> = listed.into_iter().collect();
        let stranger = |lease: &&Lease| self.held.phase(**lease).is_none();
        let strangers: BTreeSet<Lease> = listed.iter().filter(stranger).copied().collect();
        let lost = strangers
            .intersection(&self.seen.strangers)
            .copied()
            .collect();
        self.seen.strangers = strangers;
        self.tell_lost(lost, out);
        // A frame that was never sent here is another stream's: nothing is known of what has arrived of this one.
        let last_frame = match last_frame < self.next_frame {
            true => last_frame,
            false => 0,
        };
        self.has_read(now, last_frame, listed.iter(), out);
        for lease in self.held.compare(last_frame, &listed) {
            self.end(lease, Outcome::Forgotten, out);
        }
        // At most one renewal is under way and one waits, however many heartbeats a peer sends.
        match self.renewing {
            None => {
                self.renewing = Some(sequence);
                self.renew_next = None;
                self.renew_at = None;
                out.push(Action::Renew);
            }
            Some(_) => self.renew_next = Some(sequence),
        }
    }

    pub(super) fn renewed(&mut self, out: &mut Vec<Action>) {
        if std::mem::take(&mut self.lapsed) {
            out.push(Action::LookForJobs);
        }
        if let Some(sequence) = self.renewing.take() {
            out.push(Action::Send(ServerMessage::HeartbeatAck {
                sequence,
                lease_ttl: self.ttl,
            }));
        }
        if let Some(sequence) = self.renew_next.take() {
            self.renewing = Some(sequence);
            out.push(Action::Renew);
        }
    }

    /// The newest heartbeat waits until the store is back: the worker counts from when it was sent, and a store that was
    /// away for less than that is to cost no handler.
    pub(super) fn renew_failed(&mut self, now: Duration) {
        self.renew_next = self.renew_next.or(self.renewing);
        self.renewing = None;
        self.renew_at = Some(now + AGAIN);
    }

    pub(super) fn renew_again(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = None;
            self.renewing = self.renew_next.take();
            out.push(Action::Renew);
        }
    }

    pub(super) fn looked(
        &mut self,
        now: Duration,
        leases: Vec<HeldLease>,
        vanished: Vec<Lease>,
        out: &mut Vec<Action>,
    ) {
        // A node that leaves gives nothing more: the next stream's Hello puts right what is left. A worker that leaves
        // has no next stream: what it never got is given back, see `found`.
        if self.drain_at.is_some() || self.half_closed {
            return;
        }
        let mut unknown = BTreeSet::new();
        for held in leases {
            if self.held.phase(held.lease).is_some() {
                continue;
            }
            match self.seen.unknown.contains(&held.lease) {
                true => self.expect(now, held),
                false => drop(unknown.insert(held.lease)),
            }
        }
        self.seen.unknown = unknown;
        self.find(now, out);

        let mut gone = BTreeSet::new();
        let mut lost = Vec::new();
        for lease in vanished {
            if self.held.phase(lease) != Some(Phase::Running) {
                continue;
            }
            match self.seen.vanished.contains(&lease) && self.held.stop(lease) {
                true => lost.push(lease),
                false => drop(gone.insert(lease)),
            }
        }
        self.seen.vanished = gone;
        self.tell_lost(lost, out);
    }

    pub(super) fn found(
        &mut self,
        now: Duration,
        jobs: Vec<LeasedJob>,
        gone: Vec<Lease>,
        out: &mut Vec<Action>,
    ) {
        self.finding.is_asked = false;
        if jobs.is_empty() && gone.is_empty() {
            self.finding.at = Some(now + AGAIN);
        }
        for lease in gone {
            self.finding.wanted.remove(&lease);
            if !self.held.is_sent(lease) {
                self.held.remove(lease);
            }
        }
        let mut again = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            let lease = job.lease;
            self.finding.wanted.remove(&lease);
            match self.held.phase(lease) {
                _ if self.held.is_sent(lease) => {}
                Some(Phase::Running) if self.phase == SessionPhase::Leaving => {
                    let reason = "DRAIN".to_owned();
                    let delay = Duration::ZERO;
                    self.end(lease, Outcome::Release { delay, reason }, out);
                }
                Some(Phase::Running) if self.drain_at.is_none() => {
                    job.resent = true;
                    again.push(job);
                }
                // Cancelled or timed out meanwhile, or left to the node that the worker moves to.
                _ => self.held.remove(lease),
            }
        }
        self.push(now, again, out);
        self.find(now, out);
    }

    /// Asks for the next jobs to push again, if it is time.
    pub(super) fn find(&mut self, now: Duration, out: &mut Vec<Action>) {
        let finding = &mut self.finding;
        let is_time = finding.at.is_none_or(|at| at <= now);
        if !finding.wanted.is_empty() && !finding.is_asked && is_time {
            finding.is_asked = true;
            finding.at = None;
            out.push(Action::Find(
                finding.wanted.iter().take(BATCH_MAX).copied().collect(),
            ));
        }
    }

    /// The session is over: nothing that its worker has is its own any more.
    pub(super) fn dead(&mut self, out: &mut Vec<Action>) {
        let all = self.held.all();
        self.tell_lost(all, out);
        self.close(Some(Error::HeartbeatMissed), out);
    }

    fn expect(&mut self, now: Duration, held: HeldLease) {
        self.finding.wanted.insert(held.lease);
        self.held.expect(now, held);
    }

    fn tell_lost(&mut self, leases: Vec<Lease>, out: &mut Vec<Action>) {
        if !leases.is_empty() {
            out.push(Action::Send(ServerMessage::Lost(leases)));
        }
    }
}
