//! One session as the wire shows it: its stream, its renewals, and what is
//! still to be written. It says *what* the next message is; `Sessions` decides
//! everything that concerns more than one session.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::held::Book;
use super::{SessionNo, Ticket};
use crate::proto;
use proto::lease_jobs_request::Message as Request;

/// Results in one message, as the wire allows.
const BATCH_RESULTS_MAX: usize = 1_000;
/// A message of results is filled up to this; a larger result goes alone.
const BATCH_BYTES: usize = 1024 * 1024;
/// Size of a message or an output where the server names none.
const FRAME_BYTES: usize = 4 * 1024 * 1024;
const OUTPUT_BYTES: usize = 1024 * 1024;
/// Room for what surrounds a result in its message.
const ENVELOPE_BYTES: usize = 1024;
/// Leases with a receipt that are remembered, so that a copy of their frame is
/// not run again. Larger than any window.
const DONE_MAX: usize = 16_384;
/// Heartbeats without an answer that are remembered.
const BEATS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Asked for; no Welcome yet.
    Opening,
    Open,
    /// We half-closed; the server ends it.
    Closing,
    /// No stream. What is left goes by `ReportResults`.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    No,
    Due,
    Sent,
    /// The server said that no more jobs come.
    Applied,
}

pub(super) struct Link {
    pub(super) phase: Phase,
    pub(super) goodbye: Goodbye,
    pub(super) token: Vec<u8>,
    /// The writer has a message that it has not passed on.
    pub(super) busy: bool,
    pub(super) heartbeat_due: bool,
    /// The window that the server was told last.
    pub(super) window: u32,
    pub(super) outbox: VecDeque<Ticket>,
    /// Stopped handlers to tell of: sent once, never repeated, no receipt awaited.
    pub(super) stopped: Vec<proto::Lease>,
    pub(super) last_frame: u64,
    pub(super) renewed: Duration,
    pub(super) ttl: Duration,
    pub(super) interval: Duration,
    /// Handlers of this session that have not ended.
    pub(super) running: usize,
    /// What the `ReportResults` call under way carries.
    pub(super) reporting: Option<Vec<Ticket>>,
    pub(super) report_failures: u32,
    pub(super) report_paused: bool,
    max_output: usize,
    max_frame: usize,
    sequence: u64,
    beats: VecDeque<(u64, Duration)>,
    done: HashSet<proto::Lease>,
    done_order: VecDeque<proto::Lease>,
}

impl Link {
    /// A stream that is asked for now, with this window in its Hello.
    pub(super) fn opening(now: Duration, window: u32) -> Self {
        Self {
            phase: Phase::Opening,
            goodbye: Goodbye::No,
            token: Vec::new(),
            busy: true,
            heartbeat_due: false,
            window,
            outbox: VecDeque::new(),
            stopped: Vec::new(),
            last_frame: 0,
            renewed: now,
            ttl: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            running: 0,
            reporting: None,
            report_failures: 0,
            report_paused: false,
            max_output: OUTPUT_BYTES,
            max_frame: FRAME_BYTES,
            sequence: 0,
            beats: VecDeque::new(),
            done: HashSet::new(),
            done_order: VecDeque::new(),
        }
    }

    /// Takes over what the server decided. Absurd times are bounded, so that no
    /// server can make the worker spin.
    pub(super) fn welcome(&mut self, welcome: proto::Welcome) {
        self.phase = Phase::Open;
        self.token = welcome.resume_token;
        self.heartbeat_due = true;
        if let Some(ttl) = duration(welcome.lease_ttl) {
            self.ttl = ttl.max(Duration::from_secs(1));
        }
        let interval = duration(welcome.heartbeat_interval).unwrap_or(self.ttl / 3);
        self.interval = interval.clamp(Duration::from_millis(100), self.ttl / 2);
        if welcome.max_output_bytes > 0 {
            self.max_output = welcome.max_output_bytes as usize;
        }
        if welcome.max_frame_bytes > 0 {
            self.max_frame = welcome.max_frame_bytes as usize;
        }
    }

    /// An output of more bytes would be refused, or end the stream.
    pub(super) fn output_bytes_max(&self) -> usize {
        self.max_output
            .min(self.max_frame.saturating_sub(ENVELOPE_BYTES))
    }

    /// Counts the renewal from the moment its heartbeat was *sent*: the server
    /// cannot have read it earlier.
    pub(super) fn renew(&mut self, ack: &proto::HeartbeatAck) -> bool {
        let mut known = false;
        while let Some((sequence, sent)) = self.beats.front().copied() {
            if sequence > ack.sequence {
                break;
            }
            self.beats.pop_front();
            if sequence == ack.sequence {
                self.renewed = self.renewed.max(sent);
                known = true;
            }
        }
        if known && let Some(ttl) = duration(ack.lease_ttl) {
            self.ttl = ttl.max(Duration::from_secs(1));
        }
        known
    }

    /// When handlers must stop: before the server may give their jobs away.
    pub(super) fn expiry(&self) -> Duration {
        self.renewed + self.ttl - self.ttl / 6
    }

    /// Remembers a lease that needs no more from us.
    pub(super) fn done(&mut self, lease: proto::Lease) {
        if self.done.insert(lease.clone()) {
            self.done_order.push_back(lease);
        }
        while self.done_order.len() > DONE_MAX {
            if let Some(oldest) = self.done_order.pop_front() {
                self.done.remove(&oldest);
            }
        }
    }

    pub(super) fn was_done(&self, lease: &proto::Lease) -> bool {
        self.done.contains(lease)
    }

    /// The next message for a free writer, with the tickets whose results it
    /// carries. Heartbeats first: nothing may delay a renewal.
    pub(super) fn next_message(
        &mut self,
        no: SessionNo,
        book: &mut Book,
        now: Duration,
        window: u32,
    ) -> Option<(Request, Vec<Ticket>)> {
        if self.heartbeat_due {
            self.heartbeat_due = false;
            self.sequence += 1;
            self.beats.push_back((self.sequence, now));
            if self.beats.len() > BEATS_MAX {
                self.beats.pop_front();
            }
            let held = book.of(no).map(|(_, held)| held.lease.clone()).collect();
            let heartbeat = proto::Heartbeat {
                sequence: self.sequence,
                last_frame: self.last_frame,
                held,
            };
            return Some((Request::Heartbeat(heartbeat), Vec::new()));
        }
        if self.goodbye == Goodbye::Due {
            self.goodbye = Goodbye::Sent;
            return Some((Request::Goodbye(proto::Goodbye {}), Vec::new()));
        }
        if self.goodbye == Goodbye::No && window != self.window {
            self.window = window;
            let capacity = proto::SetCapacity {
                max_in_flight: window,
                queues: Vec::new(),
            };
            return Some((Request::SetCapacity(capacity), Vec::new()));
        }
        let (mut results, tickets) = self.take_batch(book, BATCH_BYTES);
        let room = BATCH_RESULTS_MAX
            .saturating_sub(results.len())
            .min(self.stopped.len());
        results.extend(self.stopped.drain(..room).map(|lease| proto::Result {
            lease: Some(lease),
            outcome: Some(proto::result::Outcome::Stopped(proto::Stopped {})),
        }));
        if results.is_empty() {
            return None;
        }
        Some((Request::Results(proto::Results { results }), tickets))
    }

    /// The next `ReportResults` call, when the stream is gone.
    pub(super) fn next_report(&mut self, book: &mut Book) -> Option<proto::ReportResultsRequest> {
        if self.phase != Phase::Gone || self.reporting.is_some() || self.report_paused {
            return None;
        }
        let (results, tickets) = self.take_batch(book, BATCH_BYTES);
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
    fn take_batch(
        &mut self,
        book: &mut Book,
        bytes_max: usize,
    ) -> (Vec<proto::Result>, Vec<Ticket>) {
        let (mut results, mut tickets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(ticket) = self.outbox.front().copied() {
            let Some(finished) = book.get_mut(ticket).and_then(|held| held.finished_mut()) else {
                self.outbox.pop_front();
                continue;
            };
            let full = results.len() >= BATCH_RESULTS_MAX || bytes + finished.bytes > bytes_max;
            if full && !results.is_empty() {
                break;
            }
            bytes += finished.bytes;
            finished.queued = false;
            results.push(finished.result.clone());
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
