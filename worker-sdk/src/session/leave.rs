//! How a worker ends: no new jobs, time for what runs, and then without.

use std::time::Duration;

use super::stream::Goodbye;
use super::timers::Timer;
use super::{Action, Note, Sessions, StopReason};

/// After grace and stopping: for the last receipts.
const RECEIPTS_WAIT: Duration = Duration::from_secs(5);

impl Sessions {
    pub(super) fn leave(&mut self, grace: Duration) {
        if self.leaving {
            return;
        }
        self.leaving = true;
        self.leave_by(self.now.saturating_add(grace));
        if let Some(used) = &mut self.link.used {
            used.goodbye = Goodbye::Due;
            // It stays here as long as it can, even if the node drains.
            let asked = self.link.asked.take();
            self.actions
                .extend(asked.map(|asked| Action::Cut(asked.no)));
            self.timers.clear(Timer::Welcome);
        }
        if !self.lacks_stream() {
            self.wanted = false;
            self.timers.clear(Timer::Connect);
        }
    }

    /// Ends the grace of a shutdown at this time.
    pub(super) fn leave_by(&mut self, grace_end: Duration) {
        self.timers.set(Timer::Grace, grace_end);
        let last = self.config.stop_grace.saturating_add(RECEIPTS_WAIT);
        self.timers
            .set(Timer::GiveUp, grace_end.saturating_add(last));
    }

    /// The server refuses this worker for good: no stream again, but what runs
    /// may end and be reported.
    pub(super) fn refused(&mut self, why: String) {
        self.fatal.get_or_insert(why);
        self.cut_all();
        if let Some(no) = self.current {
            if let Some(session) = self.sessions.get_mut(&no) {
                session.over = true;
            }
            self.send_again(no);
        }
        self.leave(self.config.grace);
    }

    /// A worker that ends needs no session that it holds nothing of, once the
    /// stream is gone.
    pub(super) fn let_go(&mut self) {
        let Some(no) = self.current.filter(|_| self.link.used.is_none()) else {
            return;
        };
        if self.book.of(no).next().is_none() {
            self.cut_all();
            self.wanted = false;
            self.timers.clear(Timer::Connect);
            self.forget(no);
        }
    }

    pub(super) fn stop_for_shutdown(&mut self) {
        let running: Vec<_> = self
            .book
            .all()
            .filter(|(_, held)| held.is_running())
            .map(|(ticket, _)| ticket)
            .collect();
        for ticket in running {
            self.stop(ticket, StopReason::Shutdown);
        }
    }

    pub(super) fn give_up(&mut self) {
        self.cut_all();
        let held: Vec<_> = self
            .book
            .all()
            .map(|(_, held)| held.lease.clone())
            .collect();
        for lease in held {
            self.note(Note::GaveUp(lease));
        }
        self.finish();
    }

    pub(super) fn finish(&mut self) {
        self.over = true;
        self.actions.push(Action::End(self.fatal.take()));
    }
}
