//! Whether the worker reads what it is sent. One that sends heartbeats and reads nothing would keep the jobs pushed to it
//! until their timeout: its session is renewed, and nobody runs them.
//!
//! What counts is progress, not the age of a frame: a worker on a slow line confirms frame by frame, and may take the
//! time of a lease for each. Without any for two heartbeats it gets no more jobs; without any for the time of a lease its
//! stream ends, and no lease with it. Whoever resumes has all that it missed pushed again; whoever does not loses its
//! session as one who is silent does. So it costs no second execution, as taking single leases back could: what is on
//! its way may yet arrive, and would run.

use std::time::Duration;

use super::{AGAIN, Action, Session};
use crate::error::{Error, Limit};
use crate::job::Lease;

/// What is known of the worker's reading.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Reading {
    /// The highest frame that the worker is known to have.
    read: u64,
    /// Frames are on their way, and none of them was confirmed since then.
    since: Option<Duration>,
}

impl Reading {
    pub(super) fn since(&self) -> Option<Duration> {
        self.since
    }

    /// A frame goes out.
    pub(super) fn sent(&mut self, now: Duration) {
        self.since = self.since.or(Some(now));
    }
}

/// Why the stream of a worker ends that does not read.
pub(super) fn stalled() -> Error {
    Error::LimitReached {
        limit: Limit::Outbox,
        retry_after: AGAIN,
    }
}

impl Session {
    /// The worker has this frame, and those of these leases: whoever names a lease was told of it.
    pub(super) fn has_read<'a>(
        &mut self,
        now: Duration,
        frame: u64,
        leases: impl Iterator<Item = &'a Lease>,
        out: &mut Vec<Action>,
    ) {
        let frame = leases.fold(frame, |most, lease| most.max(self.held.frame(*lease)));
        if frame <= self.reading.read {
            return;
        }
        if !self.reads(now) {
            out.push(Action::LookForJobs);
        }
        self.reading.read = frame;
        self.reading.since = (frame + 1 < self.next_frame).then_some(now);
    }

    /// The worker has read all that it was sent, or something within two heartbeats.
    pub(super) fn reads(&self, now: Duration) -> bool {
        let patience = 2 * self.heartbeat_interval();
        self.unread_for(now).is_none_or(|span| span <= patience)
    }

    /// It has read nothing for so long that its stream is of no use.
    pub(super) fn is_stalled(&self, now: Duration) -> bool {
        self.unread_for(now).is_some_and(|span| span >= self.ttl)
    }

    fn unread_for(&self, now: Duration) -> Option<Duration> {
        let since = self.reading.since?;
        Some(now.saturating_sub(since))
    }
}
