//! What handlers report of their attempts on the way: progress, which may be
//! overtaken by newer, and checkpoints, which are sent until they have a receipt.
//!
//! Of each attempt one report waits to be sent, merged from all that came since,
//! and one was sent. Reports are numbered; a receipt counts for all lower numbers.

use std::time::Duration;

use prost::Message;

use super::held::Book;
use super::single::{BATCH_BYTES, BATCH_RESULTS_MAX, Session};
use super::timers::Timer;
use super::{Action, Saved, SessionNo, Sessions, StopReason, Ticket, Waiter};
use crate::proto;

/// A checkpoint without a receipt is sent again on its stream after this.
const RESEND: Duration = Duration::from_secs(10);

/// The reports of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Reports {
    /// Of the newest report on the job, by whatever attempt.
    revision: u64,
    unsent: Option<proto::Progress>,
    /// Kept if it has a checkpoint, until there is a receipt.
    sent: Option<proto::Progress>,
    /// It waits in the outbox of its session.
    queued: bool,
    /// Who waits for which number to be durable.
    waiting: Vec<(u64, Waiter)>,
}

impl Reports {
    /// Of an attempt whose job has reports up to this one.
    pub(super) fn since(revision: u64) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    fn add(&mut self, mut report: proto::Progress, waiter: Option<Waiter>) {
        self.revision += 1;
        report.revision = self.revision;
        self.waiting
            .extend(waiter.map(|waiter| (self.revision, waiter)));
        self.unsent = Some(merged(self.unsent.take(), report));
    }

    /// What was sent and has no receipt is to be sent again, with what came since.
    fn again(&mut self) -> bool {
        if let Some(sent) = self.sent.take() {
            self.unsent = Some(match self.unsent.take() {
                Some(newer) => merged(Some(sent), newer),
                None => sent,
            });
        }
        self.unsent.is_some()
    }

    fn send(&mut self) -> Option<proto::Progress> {
        self.again();
        self.queued = false;
        let report = self.unsent.take()?;
        self.sent = Some(report.clone()).filter(|report| report.checkpoint.is_some());
        Some(report)
    }

    /// Takes out those who waited for this number or a lower one.
    fn answered(&mut self, revision: u64) -> Vec<Waiter> {
        self.sent.take_if(|sent| sent.revision <= revision);
        let (done, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(wanted, _)| *wanted <= revision);
        self.waiting = waiting;
        done.into_iter().map(|(_, waiter)| waiter).collect()
    }
}

impl Sessions {
    /// A handler reports; a report with a checkpoint has somebody who waits.
    pub(super) fn report_progress(
        &mut self,
        ticket: Ticket,
        report: proto::Progress,
        waiter: Option<Waiter>,
    ) {
        let held = self.book.get(ticket).filter(|held| held.is_running());
        // A session that will have no stream again can record nothing.
        let open = held.is_some_and(|held| self.has_streams(held.session));
        match self.book.get_mut(ticket).filter(|_| open) {
            Some(held) => {
                held.reports.add(report, waiter);
                self.queue_progress(ticket);
            }
            _ => self
                .actions
                .extend(waiter.map(|waiter| Action::Saved(waiter, Saved::Lost))),
        }
    }

    pub(super) fn queue_progress(&mut self, ticket: Ticket) {
        let Some(held) = self.book.get_mut(ticket) else {
            return;
        };
        if held.reports.again()
            && !held.reports.queued
            && let Some(session) = self.sessions.get_mut(&held.session)
        {
            held.reports.queued = true;
            session.progress.push_back(ticket);
        }
    }

    /// The verdict on a checkpoint, or that a report was refused.
    pub(super) fn progress_receipt(&mut self, no: SessionNo, receipt: proto::Receipt) {
        let status = receipt.status();
        let found = receipt.lease.as_ref().and_then(|l| self.book.find(no, l));
        let Some(ticket) = found else { return };
        let saved = match status {
            proto::ReceiptStatus::Unspecified => return,
            proto::ReceiptStatus::Recorded => Saved::Durable,
            proto::ReceiptStatus::Rejected => {
                let problem = receipt.problem.unwrap_or_default();
                Saved::Refused(format!("{} {}", problem.field, problem.message))
            }
            proto::ReceiptStatus::Stale | proto::ReceiptStatus::Unknown => Saved::Lost,
        };
        if saved == Saved::Lost {
            self.stop(ticket, StopReason::Lost);
        }
        if let Some(held) = self.book.get_mut(ticket) {
            let waiters = held.reports.answered(receipt.progress_revision);
            if held.reports.sent.is_none() {
                self.timers.clear(Timer::Progress(ticket));
            }
            self.answer(waiters, &saved);
        }
    }

    /// Nothing of this attempt can be recorded any more.
    pub(super) fn end_progress(&mut self, ticket: Ticket) {
        self.timers.clear(Timer::Progress(ticket));
        if let Some(held) = self.book.get_mut(ticket) {
            let waiters = held.reports.answered(u64::MAX);
            held.reports = Reports::default();
            self.answer(waiters, &Saved::Lost);
        }
    }

    /// Notes when what has just been written is to be sent again.
    pub(super) fn progress_sent(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            let sent = self.book.get(*ticket).and_then(|h| h.reports.sent.as_ref());
            if sent.is_some() {
                self.timers.set(Timer::Progress(*ticket), self.now + RESEND);
            }
        }
    }

    fn answer(&mut self, waiters: Vec<Waiter>, saved: &Saved) {
        let answers = waiters.into_iter();
        self.actions
            .extend(answers.map(|waiter| Action::Saved(waiter, saved.clone())));
    }
}

impl Session {
    /// Takes reports out of their outbox, at least one and then as many as fit.
    pub(super) fn take_progress(
        &mut self,
        book: &mut Book,
    ) -> (Vec<proto::ProgressReport>, Vec<Ticket>) {
        let (mut reports, mut tickets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while reports.len() < BATCH_RESULTS_MAX && bytes < BATCH_BYTES {
            let Some(ticket) = self.progress.pop_front() else {
                break;
            };
            let Some(held) = book.get_mut(ticket).filter(|held| held.is_running()) else {
                continue;
            };
            if let Some(progress) = held.reports.send() {
                let report = proto::ProgressReport {
                    lease: Some(held.lease.clone()),
                    progress: Some(progress),
                };
                bytes += report.encoded_len();
                reports.push(report);
                tickets.push(ticket);
            }
        }
        (reports, tickets)
    }
}

/// What an older report and a newer one come to.
fn merged(older: Option<proto::Progress>, newer: proto::Progress) -> proto::Progress {
    let older = older.unwrap_or_default();
    proto::Progress {
        percent: newer.percent.or(older.percent),
        note: newer.note.or(older.note),
        checkpoint: newer.checkpoint.or(older.checkpoint),
        revision: newer.revision,
    }
}
