//! What handlers say of their attempts, line by line. Lines wait here until they
//! have a receipt; those without one go with the attempt's result.
//!
//! Of each attempt one report is on the way at a time. When there is no room the
//! oldest lines are dropped, sent or not: the server counts what it never gets.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message;

use super::held::Book;
use super::single::{BATCH_BYTES, BATCH_RESULTS_MAX, Session};
use super::timers::Timer;
use super::{SessionNo, Sessions, StopReason, Ticket};
use crate::proto;

/// Lines without a receipt are sent again on their stream after this.
const RESEND: Duration = Duration::from_secs(10);
/// As many lines, and bytes of them, of one attempt are kept: what a job's log keeps.
pub(crate) const LINES_MAX: usize = 1_000;
pub(crate) const LINES_BYTES_MAX: usize = 256 * 1024;
/// The wire's highest number of a first line; whoever said so many says no more.
const NUMBER_MAX: u64 = 1_000_000_000;

/// One line, as its handler said it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    /// How long after its attempt began.
    pub elapsed: Duration,
    /// How much it matters.
    pub level: proto::LogLevel,
    /// The words; at most 8 KiB.
    pub message: String,
}

/// What a handler has said since it was asked last.
#[derive(Debug, Default)]
pub struct Said(pub(crate) Lines);

impl FromIterator<Line> for Said {
    /// The first lines of an attempt.
    fn from_iter<T: IntoIterator<Item = Line>>(said: T) -> Self {
        let mut lines = Lines::default();
        said.into_iter().for_each(|line| lines.push(line));
        Self(lines)
    }
}

/// Lines in order and without a gap. The oldest make room.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Lines {
    /// How many came before those that are here.
    before: u64,
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Lines {
    pub(crate) fn push(&mut self, line: Line) {
        self.bytes += line.message.len();
        self.lines.push_back(line);
        while self.lines.len() > LINES_MAX || self.bytes > LINES_BYTES_MAX {
            self.pop();
        }
    }

    /// All of them, leaving room; the next one is the next number.
    pub(crate) fn take(&mut self) -> Self {
        let next = Self {
            before: self.last(),
            ..Self::default()
        };
        std::mem::replace(self, next)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The number of the newest, here or not.
    fn last(&self) -> u64 {
        self.before + self.lines.len() as u64
    }

    /// What came between was dropped where these come from, and all that is older
    /// goes with it.
    fn append(&mut self, newer: Self) {
        if newer.before != self.last() {
            self.lines.clear();
            (self.before, self.bytes) = (newer.before, 0);
        }
        newer.lines.into_iter().for_each(|line| self.push(line));
    }

    /// Forgets those up to a number.
    fn settle(&mut self, last: u64) {
        while self.before < last && !self.lines.is_empty() {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(line) = self.lines.pop_front() {
            self.before += 1;
            self.bytes = self.bytes.saturating_sub(line.message.len());
        }
    }

    /// As the wire has them; `None`: there are none.
    pub(super) fn wire(&self) -> Option<proto::LogLines> {
        let line = |line: &Line| proto::LogLine {
            when: prost_types::Duration::try_from(line.elapsed)
                .ok()
                .map(proto::log_line::When::Elapsed),
            level: line.level.into(),
            message: line.message.clone(),
            ..Default::default()
        };
        let first = self.before + 1;
        (!self.is_empty() && first <= NUMBER_MAX).then(|| proto::LogLines {
            first,
            lines: self.lines.iter().map(line).collect(),
        })
    }

    /// About the size of that.
    pub(super) fn size(&self) -> usize {
        self.bytes + 32 * self.lines.len()
    }
}

/// The log of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Log {
    /// Without a receipt.
    pub(super) lines: Lines,
    /// The last line of the report that is on the way; 0: none is.
    sent: u64,
    /// It waits in the outbox of its session.
    queued: bool,
    /// Nothing more is taken.
    refused: bool,
}

impl Log {
    /// Nothing of it is sent again, nor anything that is said from now on.
    pub(super) fn refuse(&mut self) {
        self.lines.take();
        (self.sent, self.refused) = (0, true);
    }
}

impl Sessions {
    /// A handler has said something.
    pub(super) fn said(&mut self, ticket: Ticket, lines: Lines) {
        let held = self.book.get_mut(ticket).filter(|held| held.is_running());
        if let Some(held) = held.filter(|held| !held.log.refused) {
            held.log.lines.append(lines);
            self.queue_log(ticket);
        }
    }

    /// Puts its lines in line to be sent, if none are on the way.
    pub(super) fn queue_log(&mut self, ticket: Ticket) {
        let Some(held) = self.book.get_mut(ticket).filter(|held| held.is_running()) else {
            return;
        };
        let is_due = held.log.sent == 0 && !held.log.queued && !held.log.lines.is_empty();
        if is_due && let Some(session) = self.sessions.get_mut(&held.session) {
            held.log.queued = true;
            session.logs.push_back(ticket);
        }
    }

    /// What was sent went a way that is gone, or no receipt came: it is sent again.
    pub(super) fn log_again(&mut self, ticket: Ticket) {
        self.timers.clear(Timer::Log(ticket));
        if let Some(held) = self.book.get_mut(ticket) {
            held.log.sent = 0;
            self.queue_log(ticket);
        }
    }

    /// The verdict on a report of lines. All are final: none is sent again.
    pub(super) fn log_receipt(&mut self, no: SessionNo, receipt: &proto::LogReceipt) {
        let found = receipt.lease.as_ref().and_then(|l| self.book.find(no, l));
        let Some(ticket) = found else { return };
        let Some(held) = self.book.get_mut(ticket) else {
            return;
        };
        match receipt.status() {
            proto::ReceiptStatus::Unspecified => return,
            proto::ReceiptStatus::Recorded | proto::ReceiptStatus::Rejected => {
                held.log.lines.settle(receipt.last);
            }
            proto::ReceiptStatus::Stale | proto::ReceiptStatus::Unknown => {
                held.log.refuse();
                self.stop(ticket, StopReason::Lost);
            }
        }
        let answered = |held: &&mut super::held::Held| held.log.sent <= receipt.last;
        if self.book.get_mut(ticket).filter(answered).is_some() {
            self.log_again(ticket);
        }
    }

    /// Notes when what has just been written is to be sent again.
    pub(super) fn log_sent(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            self.timers.set(Timer::Log(*ticket), self.now + RESEND);
        }
    }
}

impl Session {
    /// Takes reports out of their outbox, at least one and then as many as fit.
    pub(super) fn take_logs(&mut self, book: &mut Book) -> (Vec<proto::LogReport>, Vec<Ticket>) {
        let (mut reports, mut tickets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while reports.len() < BATCH_RESULTS_MAX && bytes < BATCH_BYTES {
            let Some(ticket) = self.logs.pop_front() else {
                break;
            };
            let Some(held) = book.get_mut(ticket).filter(|held| held.is_running()) else {
                continue;
            };
            held.log.queued = false;
            let log = held.log.lines.wire().filter(|_| held.log.sent == 0);
            let Some(log) = log else { continue };
            held.log.sent = held.log.lines.last();
            let report = proto::LogReport {
                lease: Some(held.lease.clone()),
                log: Some(log),
            };
            bytes += report.encoded_len();
            reports.push(report);
            tickets.push(ticket);
        }
        (reports, tickets)
    }
}
