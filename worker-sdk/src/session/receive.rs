//! What each message after Welcome does to the session that takes jobs.

use std::time::Duration;

use super::held::State;
use super::progress::Reports;
use super::single::duration;
use super::stream::Goodbye;
use super::timers::Timer;
use super::{Action, End, Note, SessionNo, Sessions, StopReason, StreamNo, Ticket, outcome};
use crate::proto;
use proto::lease_jobs_response::Message as Response;

/// An unknown kind's jobs are given back for this long the first time, twice as
/// long each time after, up to the limit.
const UNKNOWN_KIND_FIRST: Duration = Duration::from_secs(1);
const UNKNOWN_KIND_MAX: Duration = Duration::from_secs(5 * 60);
/// Unknown kinds that are counted one by one; the rest share the longest wait.
const UNKNOWN_KINDS_MAX: usize = 1_000;

/// A result refused more often than this is given up.
const REJECTIONS_MAX: u32 = 3;

impl Sessions {
    /// A message without a known variant is ignored, and so is one of a stream
    /// that is gone, or anything but Welcome on one that is asked for.
    pub(super) fn received(&mut self, no: StreamNo, message: proto::LeaseJobsResponse) {
        let Some(message) = message.message else {
            return;
        };
        if let Response::Welcome(welcome) = message {
            if let Some(stream) = self.link.asked.take_if(|asked| asked.no == no) {
                self.welcome(stream, welcome);
            }
            return;
        }
        let used = self.link.used.as_mut().filter(|used| used.no == no);
        let (Some(stream), Some(no)) = (used, self.current) else {
            return;
        };
        match message {
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
                if applied.goodbye && stream.goodbye == Goodbye::Sent {
                    stream.goodbye = Goodbye::Applied;
                }
            }
            Response::Draining(_) => self.draining(),
            Response::Leave(_) if !self.leaving => {
                self.note(Note::AskedToLeave);
                self.leave(self.config.grace);
            }
            Response::Leave(_) => {}
            Response::LogReceipts(receipts) => {
                for receipt in &receipts.receipts {
                    self.log_receipt(no, receipt);
                }
            }
        }
    }

    fn renewed_by(&mut self, no: SessionNo, ack: &proto::HeartbeatAck) {
        let (Some(stream), Some(session)) = (self.link.used.as_mut(), self.sessions.get_mut(&no))
        else {
            return;
        };
        if let Some(sent) = stream.acked(ack.sequence) {
            session.renew(sent, ack.lease_ttl);
            self.timers.set(Timer::Expiry, session.expiry());
            self.tries = 0;
            self.listen();
        }
    }

    /// The node takes no more part in hand-out: the session moves to another
    /// stream, and stays on this one until then.
    fn draining(&mut self) {
        let Some(stream) = self.link.used.as_mut().filter(|used| !used.draining) else {
            return;
        };
        stream.draining = true;
        self.note(Note::Draining);
        if self.lacks_stream() {
            self.reconnect(&End {
                message: "the node drains".to_owned(),
                ..End::default()
            });
        }
    }

    /// Frames of a stream older than the newest Hello are not taken, and not
    /// counted: what they bring is pushed again on the new one.
    fn jobs(&mut self, no: SessionNo, frame: proto::Jobs) {
        let (Some(stream), Some(session)) = (self.link.used.as_mut(), self.sessions.get(&no))
        else {
            return;
        };
        if stream.attach != session.attaches {
            return;
        }
        stream.last_frame = stream.last_frame.max(frame.frame);
        for job in frame.jobs {
            self.job(no, job);
        }
    }

    /// Takes one pushed job: each lease once in its session, whatever is pushed again.
    fn job(&mut self, no: SessionNo, job: proto::LeasedJob) {
        let Some(lease) = job.lease.clone() else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        if session.was_done(&lease) || self.book.find(no, &lease).is_some() {
            return;
        }
        let unrenewed = self.now >= session.expiry() && !self.config.finish_unrenewed;
        let full = self.book.running() >= self.config.concurrency;
        let reports = Reports::since(job.progress_revision);
        let ticket = self.book.take(no, lease, reports);
        let refusal = if self.leaving {
            Some(outcome::release(Duration::ZERO, "DRAIN"))
        } else if unrenewed {
            // Welcome was too long on its way, and nothing was acknowledged since.
            Some(outcome::release(Duration::ZERO, "LEASE_UNRENEWED"))
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
        if let Some(session) = self.sessions.get_mut(&no) {
            session.running += 1;
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
        if receipt.progress_revision != 0 {
            self.progress_receipt(no, receipt);
            return false;
        }
        let status = receipt.status();
        let Some(lease) = receipt.lease.clone() else {
            return false;
        };
        let Some(ticket) = self.book.find(no, &lease) else {
            return false;
        };
        let Some(held) = self.book.get(ticket) else {
            return false;
        };
        let has_lines = !held.log.lines.is_empty();
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
            proto::ReceiptStatus::Rejected if has_lines && is_of_log(&receipt) => {
                // The outcome is good: it goes without them.
                if let Some(held) = self.book.get_mut(ticket) {
                    held.log.refuse();
                }
                self.queue(ticket);
                return true;
            }
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

    pub(super) fn settled(&mut self, no: SessionNo, ticket: Ticket) {
        self.timers.clear(Timer::Resend(ticket));
        if let (Some(held), Some(session)) = (self.book.remove(ticket), self.sessions.get_mut(&no))
        {
            if self.current == Some(no) {
                self.link.settled(&held.lease);
            }
            session.done(held.lease);
        }
    }
}

/// What was refused are the lines that came with a result.
fn is_of_log(receipt: &proto::Receipt) -> bool {
    let problem = receipt.problem.as_ref();
    problem.is_some_and(|problem| problem.field == "log" || problem.field.starts_with("log."))
}
