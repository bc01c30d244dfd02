//! What each message of the server does to the worker's sessions.

use std::time::Duration;

use super::held::State;
use super::link::{Goodbye, Phase, duration};
use super::timers::Timer;
use super::{
    Action, End, Note, REJECTIONS_MAX, REPORT_FOR, SessionNo, Sessions, StopReason, Ticket, outcome,
};
use crate::proto;
use proto::lease_jobs_response::Message as Response;

/// An unknown kind's jobs are given back for this long the first time, twice as
/// long each time after, up to the limit.
const UNKNOWN_KIND_FIRST: Duration = Duration::from_secs(1);
const UNKNOWN_KIND_MAX: Duration = Duration::from_secs(5 * 60);
/// Unknown kinds that are counted one by one; the rest share the longest wait.
const UNKNOWN_KINDS_MAX: usize = 1_000;

impl Sessions {
    /// A message without a known variant is ignored, and so is one of a stream
    /// that is gone.
    pub(super) fn received(&mut self, no: SessionNo, message: proto::LeaseJobsResponse) {
        let phase = self.links.get(&no).map(|link| link.phase);
        match (phase, message.message) {
            (Some(Phase::Opening), Some(Response::Welcome(welcome))) => self.welcome(no, welcome),
            (Some(Phase::Open | Phase::Closing), Some(message)) => match message {
                Response::Welcome(_) => {}
                Response::Jobs(jobs) => self.jobs(no, jobs),
                Response::Receipts(receipts) => {
                    for receipt in receipts.receipts {
                        self.receipt(no, receipt);
                    }
                }
                Response::Cancels(cancels) => self.cancels(no, cancels),
                Response::Lost(lost) => {
                    for lease in lost.leases {
                        self.stop_lease(no, &lease, StopReason::Lost);
                    }
                }
                Response::HeartbeatAck(ack) => self.renewed_by(no, &ack),
                Response::CapacityApplied(applied) => {
                    if let Some(link) = self.links.get_mut(&no)
                        && applied.goodbye
                        && link.goodbye == Goodbye::Sent
                    {
                        link.goodbye = Goodbye::Applied;
                    }
                }
                Response::Draining(_) => self.draining(no),
            },
            _ => {}
        }
    }

    fn welcome(&mut self, no: SessionNo, welcome: proto::Welcome) {
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        let (session, node) = (welcome.session_id.clone(), welcome.node.clone());
        link.welcome(welcome);
        self.timers.clear(Timer::Welcome(no));
        // At once: the first is written when this event is done.
        self.timers
            .set(Timer::Heartbeat(no), self.now + link.interval);
        self.timers
            .set(Timer::Expiry(no), link.expiry().max(self.now));
        self.note(Note::Connected { session, node });
    }

    fn renewed_by(&mut self, no: SessionNo, ack: &proto::HeartbeatAck) {
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if link.renew(ack) {
            self.timers.set(Timer::Expiry(no), link.expiry());
            if self.current == Some(no) {
                self.tries = 0;
            }
        }
    }

    /// The node takes no more part in hand-out: a new stream for new jobs, and
    /// this one until what it has is done.
    fn draining(&mut self, no: SessionNo) {
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if link.goodbye == Goodbye::No {
            link.goodbye = Goodbye::Due;
        }
        if self.current == Some(no) {
            self.current = None;
            self.note(Note::Draining);
            self.reconnect(&End {
                message: "the node drains".to_owned(),
                ..End::default()
            });
        }
    }

    fn jobs(&mut self, no: SessionNo, frame: proto::Jobs) {
        if let Some(link) = self.links.get_mut(&no) {
            link.last_frame = link.last_frame.max(frame.frame);
        }
        for job in frame.jobs {
            self.job(no, job);
        }
    }

    /// Takes one pushed job: each lease once in its session, whatever is pushed again.
    fn job(&mut self, no: SessionNo, job: proto::LeasedJob) {
        let Some(lease) = job.lease.clone() else {
            return;
        };
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if link.was_done(&lease) || self.book.find(no, &lease).is_some() {
            return;
        }
        let full = self.book.running() >= self.config.concurrency;
        let ticket = self.book.take(no, lease);
        let refusal = if self.current != Some(no) {
            Some(outcome::release(Duration::ZERO, "DRAIN"))
        } else if !self.config.kinds.contains(&job.kind) {
            let delay = self.unknown_kind(&job.kind);
            Some(outcome::release(delay, "UNKNOWN_KIND"))
        } else if full {
            Some(outcome::release(Duration::ZERO, "OVER_WINDOW"))
        } else {
            None
        };
        if let Some(release) = refusal {
            self.book.finish(ticket, release, self.now);
            self.queue(ticket);
            return;
        }
        if let Some(link) = self.links.get_mut(&no) {
            link.running += 1;
        }
        if let Some(time_left) = duration(job.time_left) {
            self.timers
                .set(Timer::Timeout(ticket), self.now.saturating_add(time_left));
        }
        self.actions.push(Action::Run(ticket, Box::new(job)));
    }

    /// How long a job of a kind without handler is to wait, and a word about it
    /// the first time.
    fn unknown_kind(&mut self, kind: &str) -> Duration {
        let Some(count) = self.unknown.get_mut(kind) else {
            if self.unknown.len() >= UNKNOWN_KINDS_MAX {
                return UNKNOWN_KIND_MAX;
            }
            self.unknown.insert(kind.to_owned(), 1);
            self.note(Note::UnknownKind(kind.to_owned()));
            return UNKNOWN_KIND_FIRST;
        };
        let delay = UNKNOWN_KIND_FIRST
            .saturating_mul(1 << (*count).min(16))
            .min(UNKNOWN_KIND_MAX);
        *count = count.saturating_add(1);
        delay
    }

    fn cancels(&mut self, no: SessionNo, cancels: proto::Cancels) {
        for cancel in cancels.cancels {
            let reason = match cancel.reason() {
                proto::CancelReason::Timeout => StopReason::TimedOut,
                proto::CancelReason::Requested | proto::CancelReason::Unspecified => {
                    StopReason::Cancelled
                }
            };
            if let Some(lease) = cancel.lease {
                self.stop_lease(no, &lease, reason);
            }
        }
    }

    fn stop_lease(&mut self, no: SessionNo, lease: &proto::Lease, reason: StopReason) {
        if let Some(ticket) = self.book.find(no, lease) {
            self.stop(ticket, reason);
        }
    }

    /// The verdict on one result. True: nothing more is owed for it, or
    /// something else is sent in its place.
    pub(super) fn receipt(&mut self, no: SessionNo, receipt: proto::Receipt) -> bool {
        let status = receipt.status();
        let Some(lease) = receipt.lease else {
            return false;
        };
        let Some(ticket) = self.book.find(no, &lease) else {
            return false;
        };
        let Some(held) = self.book.get(ticket) else {
            return false;
        };
        let State::Finished(finished) = &held.state else {
            // A verdict on something this handler has not said yet: the lease is not ours.
            if status == proto::ReceiptStatus::Stale {
                self.stop(ticket, StopReason::Lost);
            }
            return false;
        };
        let rejections = finished.rejections;
        let why = receipt
            .problem
            .as_ref()
            .map(|problem| problem.reason.clone())
            .unwrap_or_default();
        match status {
            proto::ReceiptStatus::Unspecified => return false,
            proto::ReceiptStatus::Recorded => {}
            proto::ReceiptStatus::Stale => self.note(Note::Stale(lease, why)),
            proto::ReceiptStatus::Unknown => self.note(Note::GaveUp(lease)),
            proto::ReceiptStatus::Rejected if rejections >= REJECTIONS_MAX => {
                self.note(Note::GaveUp(lease))
            }
            proto::ReceiptStatus::Rejected => {
                self.note(Note::Rejected(lease, why));
                let instead = outcome::instead_of_rejected(rejections, receipt.problem.as_ref());
                self.timers.clear(Timer::Resend(ticket));
                self.book.finish(ticket, instead, self.now);
                self.queue(ticket);
                return true;
            }
        }
        self.settled(no, ticket);
        true
    }

    fn settled(&mut self, no: SessionNo, ticket: Ticket) {
        self.timers.clear(Timer::Resend(ticket));
        if let (Some(held), Some(link)) = (self.book.remove(ticket), self.links.get_mut(&no)) {
            link.done(held.lease);
        }
    }

    /// The answer of `ReportResults`, or that there was none: what has no
    /// verdict is tried again after a pause, for a day.
    pub(super) fn reported(&mut self, no: SessionNo, answer: Result<Vec<proto::Receipt>, ()>) {
        let Some(sent) = self
            .links
            .get_mut(&no)
            .and_then(|link| link.reporting.take())
        else {
            return;
        };
        let answered = answer.is_ok();
        for receipt in answer.unwrap_or_default() {
            self.receipt(no, receipt);
        }
        let mut open = false;
        for ticket in sent {
            let Some(finished) = self.book.get(ticket).and_then(|held| held.finished()) else {
                continue;
            };
            if self.now.saturating_sub(finished.since) > REPORT_FOR {
                if let Some(held) = self.book.get(ticket) {
                    let lease = held.lease.clone();
                    self.note(Note::GaveUp(lease));
                }
                self.settled(no, ticket);
            } else if !finished.queued {
                open = true;
                self.queue(ticket);
            }
        }
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if answered && !open {
            link.report_failures = 0;
            return;
        }
        let failures = link.report_failures;
        link.report_failures = failures.saturating_add(1);
        link.report_paused = true;
        let pause = self.backoff(failures);
        self.timers.set(Timer::Report(no), self.now + pause);
    }
}
