//! All deadlines of the worker's half, as one table from what to when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{SessionNo, Ticket};

/// What is to be done at a time. Each exists at most once in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    /// The pause before the next stream is over.
    Connect,
    /// A stream was asked for and has not said Welcome.
    Welcome,
    /// The next heartbeat is due.
    Heartbeat,
    /// The session that takes jobs was not renewed in time: its leases may be
    /// another's soon.
    Expiry,
    /// The stream in use has acknowledged no heartbeat for so long that another
    /// is asked for, while there is time to meet a node that does.
    Doubt,
    /// The stream in use has acknowledged no heartbeat for too long.
    Silence,
    /// The attempt's own timeout.
    Timeout(Ticket),
    /// A result that was sent has no receipt yet.
    Resend(Ticket),
    /// A checkpoint that was sent has no receipt yet.
    Progress(Ticket),
    /// Lines that were sent have no receipt yet.
    Log(Ticket),
    /// The pause before the next `ReportResults` of a session is over.
    Report(SessionNo),
    /// The half-closed stream should have ended by now.
    Close,
    /// The time for running handlers to finish after a shutdown is over.
    Grace,
    /// The time for everything after a shutdown is over.
    GiveUp,
}

/// The table. Setting a timer again moves it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Duration, Timer)>,
    by_name: BTreeMap<Timer, Duration>,
}

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Duration) {
        self.clear(timer);
        self.by_time.insert((at, timer));
        self.by_name.insert(timer, at);
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.by_name.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.by_name.contains_key(&timer)
    }

    /// The time of the earliest, if any.
    pub(super) fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the earliest out, if it is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Timer> {
        let (at, timer) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }
}
