//! One session: the token, the renewals, and the results that are owed. It
//! outlives its streams, which `stream.rs` has; a worker goes on with it by its
//! token until it is over, and then its results go by `ReportResults`.

use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::Ticket;
use super::held::Book;
use crate::proto;

/// Results in one message, as the wire allows.
pub(super) const BATCH_RESULTS_MAX: usize = 1_000;
/// A message of results is filled up to this; a larger result goes alone.
pub(super) const BATCH_BYTES: usize = 1024 * 1024;
/// Size of a message or an output where the server names none.
const FRAME_BYTES: usize = 4 * 1024 * 1024;
const OUTPUT_BYTES: usize = 1024 * 1024;
/// Room for what surrounds a result in its message.
const ENVELOPE_BYTES: usize = 1024;
/// Leases with a receipt that are remembered, so that a copy of their frame is
/// not run again. Larger than any window.
const DONE_MAX: usize = 16_384;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Session {
    /// Welcome was said to it: it has a token.
    pub(super) begun: bool,
    pub(super) token: Vec<u8>,
    /// Hellos sent for it, also those that came to nothing: the
    /// `attach_sequence` of the newest.
    pub(super) attaches: u64,
    /// No stream will have it again.
    pub(super) over: bool,
    /// Finished results to be sent, on whatever way there is.
    pub(super) outbox: VecDeque<Ticket>,
    /// Attempts with a report to be sent.
    pub(super) progress: VecDeque<Ticket>,
    /// Attempts with lines to be sent.
    pub(super) logs: VecDeque<Ticket>,
    /// When the newest message was sent of which the server said that it renewed
    /// the session: a heartbeat that was acknowledged, or a Hello that was
    /// welcome, on any stream.
    pub(super) renewed: Duration,
    pub(super) ttl: Duration,
    pub(super) interval: Duration,
    /// Its handlers that have not ended.
    pub(super) running: usize,
    /// What the `ReportResults` call under way carries.
    pub(super) reporting: Option<Vec<Ticket>>,
    pub(super) report_failures: u32,
    pub(super) report_paused: bool,
    max_output: usize,
    max_frame: usize,
    done: Done,
}

/// Leases that need no more from us, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Done {
    order: VecDeque<proto::Lease>,
    all: HashSet<proto::Lease>,
}

/// The set holds what the line holds.
impl Hash for Done {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.order.hash(state);
    }
}

impl Session {
    /// A session that is asked for, or was given, with what was asked for at
    /// this time: the server cannot have begun it earlier.
    pub(super) fn new(asked_at: Duration) -> Self {
        Self {
            begun: false,
            token: Vec::new(),
            attaches: 0,
            over: false,
            outbox: VecDeque::new(),
            progress: VecDeque::new(),
            logs: VecDeque::new(),
            renewed: asked_at,
            ttl: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            running: 0,
            reporting: None,
            report_failures: 0,
            report_paused: false,
            max_output: OUTPUT_BYTES,
            max_frame: FRAME_BYTES,
            done: Done::default(),
        }
    }

    /// Takes over what the server decided about a session that begins with this
    /// Welcome, to the Hello that was asked for at this time.
    pub(super) fn begin(&mut self, welcome: proto::Welcome, asked_at: Duration) {
        self.begun = true;
        self.attaches = 1;
        self.renewed = asked_at;
        self.go_on(&welcome, asked_at);
        self.token = welcome.resume_token;
    }

    /// Takes over what the node says to which the session has moved. The move
    /// renewed it, in the same transaction: what counts is when its Hello was
    /// sent, as for a heartbeat. Absurd times are bounded, so that no server can
    /// make the worker spin.
    pub(super) fn go_on(&mut self, welcome: &proto::Welcome, asked_at: Duration) {
        self.renew(asked_at, welcome.lease_ttl);
        let interval = duration(welcome.heartbeat_interval).unwrap_or(self.ttl / 3);
        self.interval = interval.clamp(Duration::from_millis(100), self.ttl / 2);
        if welcome.max_output_bytes > 0 {
            self.max_output = welcome.max_output_bytes as usize;
        }
        if welcome.max_frame_bytes > 0 {
            self.max_frame = welcome.max_frame_bytes as usize;
        }
    }

    /// Counts a renewal from the moment its heartbeat or Hello was *sent*: the
    /// server cannot have read it earlier.
    pub(super) fn renew(&mut self, sent: Duration, ttl: Option<prost_types::Duration>) {
        self.renewed = self.renewed.max(sent);
        if let Some(ttl) = duration(ttl) {
            self.ttl = ttl.max(Duration::from_secs(1));
        }
    }

    /// How long after its last renewal the leases may still be relied on.
    pub(super) fn reliable(&self) -> Duration {
        self.ttl - self.ttl / 6
    }

    /// How long no heartbeat may be acknowledged before another node is looked
    /// for: one is overdue by half an interval, and there is time
    /// for a node or two that do not answer either.
    pub(super) fn doubtful(&self) -> Duration {
        self.ttl / 2
    }

    /// How long a heartbeat may go without its answer before that.
    pub(super) fn patience(&self) -> Duration {
        self.ttl / 6
    }

    /// When handlers must stop: before the server may give their jobs away.
    pub(super) fn expiry(&self) -> Duration {
        self.renewed + self.reliable()
    }

    /// An output of more bytes would be refused, or end the stream.
    pub(super) fn output_bytes_max(&self) -> usize {
        self.max_output
            .min(self.max_frame.saturating_sub(ENVELOPE_BYTES))
    }

    /// Remembers a lease that needs no more from us.
    pub(super) fn done(&mut self, lease: proto::Lease) {
        let done = &mut self.done;
        if done.all.insert(lease.clone()) {
            done.order.push_back(lease);
        }
        while done.order.len() > DONE_MAX {
            if let Some(oldest) = done.order.pop_front() {
                done.all.remove(&oldest);
            }
        }
    }

    pub(super) fn was_done(&self, lease: &proto::Lease) -> bool {
        self.done.all.contains(lease)
    }

    /// The next `ReportResults` call of a session that is over.
    pub(super) fn next_report(&mut self, book: &mut Book) -> Option<proto::ReportResultsRequest> {
        if !self.over || self.reporting.is_some() || self.report_paused {
            return None;
        }
        let (results, tickets) = self.take_batch(book);
        if results.is_empty() {
            return None;
        }
        self.reporting = Some(tickets);
        Some(proto::ReportResultsRequest {
            resume_token: self.token.clone(),
            results,
        })
    }

    /// Takes finished results out of the outbox, at least one and then as many
    /// as fit.
    pub(super) fn take_batch(&mut self, book: &mut Book) -> (Vec<proto::Result>, Vec<Ticket>) {
        let (mut results, mut tickets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(ticket) = self.outbox.front().copied() {
            let Some(held) = book.get_mut(ticket).filter(|held| !held.is_running()) else {
                self.outbox.pop_front();
                continue;
            };
            let result = held.result();
            let (Some(result), Some(finished)) = (result, held.finished_mut()) else {
                break;
            };
            let full = results.len() >= BATCH_RESULTS_MAX || bytes + finished.bytes > BATCH_BYTES;
            if full && !results.is_empty() {
                break;
            }
            bytes += finished.bytes;
            finished.queued = false;
            results.push(result);
            tickets.push(ticket);
            self.outbox.pop_front();
        }
        (results, tickets)
    }
}

/// A duration of the wire; negative ones count as absent.
pub(crate) fn duration(wire: Option<prost_types::Duration>) -> Option<Duration> {
    wire.and_then(|wire| Duration::try_from(wire).ok())
}
