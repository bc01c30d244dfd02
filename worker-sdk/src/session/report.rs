//! The other way of results: `ReportResults`, under the token of a session that
//! is over.

use std::time::Duration;

use super::timers::Timer;
use super::{Action, Note, SessionNo, Sessions};
use crate::proto;

/// Results of a session that is over are tried this long.
const REPORT_FOR: Duration = Duration::from_secs(24 * 3600);

impl Sessions {
    pub(super) fn report(&mut self, no: SessionNo) {
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        if let Some(call) = session.next_report(&mut self.book) {
            self.actions.push(Action::Report(no, call));
        }
    }

    /// The answer of `ReportResults`, or that there was none: what has no
    /// verdict is tried again after a pause, for a day.
    pub(super) fn reported(&mut self, no: SessionNo, answer: Result<Vec<proto::Receipt>, ()>) {
        let Some(sent) = self
            .sessions
            .get_mut(&no)
            .and_then(|session| session.reporting.take())
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
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        if answered && !open {
            session.report_failures = 0;
            return;
        }
        let failures = session.report_failures;
        session.report_failures = failures.saturating_add(1);
        session.report_paused = true;
        let pause = self.backoff(failures);
        self.timers.set(Timer::Report(no), self.now + pause);
    }

    /// Forgets a session that is over and that nothing is owed for.
    pub(super) fn retire(&mut self, no: SessionNo) {
        let over = self
            .sessions
            .get(&no)
            .is_some_and(|session| session.over && session.reporting.is_none());
        if over && self.book.of(no).next().is_none() {
            self.forget(no);
        }
    }

    pub(super) fn forget(&mut self, no: SessionNo) {
        self.sessions.remove(&no);
        self.timers.clear(Timer::Report(no));
        if self.current == Some(no) {
            self.current = None;
            self.timers.clear(Timer::Expiry);
        }
    }
}
