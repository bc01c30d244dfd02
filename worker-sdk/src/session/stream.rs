//! One stream: its frames, its heartbeats, and what its writer gets next.
//!
//! Only the session that takes new jobs has streams, and at most two: the one
//! in use, and the one asked for while there is none or the node drains.

use std::collections::VecDeque;
use std::time::Duration;

use super::held::Book;
use super::log::Lines;
use super::single::{BATCH_BYTES, BATCH_RESULTS_MAX, Session};
use super::{SessionNo, StreamNo, Ticket};
use crate::proto;
use proto::lease_jobs_request::Message as Request;

/// Heartbeats without an answer that are remembered.
const BEATS_MAX: usize = 64;

/// The streams of the session that takes new jobs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Link {
    /// Welcome was said. All that is sent goes here.
    pub(super) used: Option<Stream>,
    /// Hello was sent, and there is no Welcome yet.
    pub(super) asked: Option<Stream>,
}

impl Link {
    pub(super) fn get_mut(&mut self, no: StreamNo) -> Option<&mut Stream> {
        let streams = [self.used.as_mut(), self.asked.as_mut()];
        streams.into_iter().flatten().find(|stream| stream.no == no)
    }

    /// Frees the slot of a lease that asks for no more: also on the stream asked
    /// for, whose Hello may list it.
    pub(super) fn stopped(&mut self, lease: &proto::Lease, last_words: Lines) {
        if let Some(used) = &mut self.used
            && !used.closing
        {
            used.stopped.push(Stopped {
                lease: lease.clone(),
                last_words,
            });
        }
        self.settled(lease);
    }

    /// As `stopped`, for one whose verdict freed the slot on the stream in use.
    pub(super) fn settled(&mut self, lease: &proto::Lease) {
        if let Some(asked) = &mut self.asked {
            asked.stopped.push(Stopped {
                lease: lease.clone(),
                last_words: Lines::default(),
            });
        }
    }
}

/// A handler that was told to end, and did.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stopped {
    lease: proto::Lease,
    last_words: Lines,
}

impl Stopped {
    fn result(self) -> proto::Result {
        proto::Result {
            lease: Some(self.lease),
            outcome: Some(proto::result::Outcome::Stopped(proto::Stopped {})),
            log: self.last_words.wire(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Goodbye {
    No,
    Due,
    Sent,
    /// The server said that no more jobs come.
    Applied,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    pub(super) no: StreamNo,
    /// The `attach_sequence` of its Hello.
    pub(super) attach: u64,
    pub(super) asked_at: Duration,
    /// The node takes no more part in hand-out.
    pub(super) draining: bool,
    /// It was silent for so long that another was asked for. It stays so: what
    /// came on it meanwhile was not taken, and is pushed again on the next one.
    pub(super) doubted: bool,
    /// We half-closed; the server ends it.
    pub(super) closing: bool,
    pub(super) goodbye: Goodbye,
    /// The writer has a message that it has not passed on.
    pub(super) busy: bool,
    pub(super) heartbeat_due: Option<Duration>,
    /// The highest frame taken.
    pub(super) last_frame: u64,
    /// When the heartbeat was sent that was acknowledged last; before the first,
    /// when Welcome came.
    pub(super) heard: Duration,
    /// The window that the server was told last.
    window: u32,
    /// Slots to free: said once, never repeated, no receipt awaited.
    stopped: Vec<Stopped>,
    sequence: u64,
    beats: VecDeque<(u64, Duration)>,
}

impl Stream {
    /// A stream that is asked for now, with this window in its Hello.
    pub(super) fn asked(no: StreamNo, attach: u64, now: Duration, window: u32) -> Self {
        Self {
            no,
            attach,
            asked_at: now,
            draining: false,
            doubted: false,
            closing: false,
            goodbye: Goodbye::No,
            busy: true,
            heartbeat_due: None,
            last_frame: 0,
            heard: now,
            window,
            stopped: Vec::new(),
            sequence: 0,
            beats: VecDeque::new(),
        }
    }

    /// Its Hello asked for a session that is over, and began another.
    pub(super) fn begins_anew(&mut self) {
        self.attach = 1;
        self.stopped.clear();
    }

    /// Since when a heartbeat has no answer: sent, or not even that, as the
    /// connection takes nothing more.
    pub(super) fn unanswered(&self) -> Option<Duration> {
        let sent = self.beats.front().map(|(_, sent)| *sent);
        sent.or(self.heartbeat_due)
    }

    /// When the acknowledged heartbeat was sent, if this stream sent it.
    pub(super) fn acked(&mut self, sequence: u64) -> Option<Duration> {
        let mut found = None;
        while let Some((beat, sent)) = self.beats.front().copied()
            && beat <= sequence
        {
            self.beats.pop_front();
            if beat == sequence {
                found = Some(sent);
            }
        }
        self.heard = self.heard.max(found.unwrap_or_default());
        found
    }

    /// The next message for a free writer, with the tickets whose reports or
    /// results it carries. Heartbeats first: nothing may delay a renewal.
    pub(super) fn next_message(
        &mut self,
        no: SessionNo,
        session: &mut Session,
        book: &mut Book,
        now: Duration,
        window: u32,
    ) -> Option<(Request, Vec<Ticket>)> {
        if self.heartbeat_due.take().is_some() {
            self.sequence += 1;
            self.beats.push_back((self.sequence, now));
            if self.beats.len() > BEATS_MAX {
                self.beats.pop_front();
            }
            let heartbeat = proto::Heartbeat {
                sequence: self.sequence,
                last_frame: self.last_frame,
                held: book.leases_of(no),
            };
            return Some((Request::Heartbeat(heartbeat), Vec::new()));
        }
        if self.goodbye == Goodbye::Due {
            self.goodbye = Goodbye::Sent;
            return Some((Request::Goodbye(proto::Goodbye {}), Vec::new()));
        }
        // The window of a node that drains is of no interest.
        if self.goodbye == Goodbye::No && !self.draining && window != self.window {
            self.window = window;
            let capacity = proto::SetCapacity {
                max_in_flight: window,
                queues: Vec::new(),
            };
            return Some((Request::SetCapacity(capacity), Vec::new()));
        }
        // Before results: what an attempt has come to counts only while it lasts.
        let (reports, tickets) = session.take_progress(book);
        if !reports.is_empty() {
            return Some((
                Request::Progress(proto::ProgressReports { reports }),
                tickets,
            ));
        }
        let (reports, tickets) = session.take_logs(book);
        if !reports.is_empty() {
            return Some((Request::Logs(proto::Logs { reports }), tickets));
        }
        let (mut results, tickets) = session.take_batch(book);
        let mut bytes = 0;
        let room = BATCH_RESULTS_MAX.saturating_sub(results.len());
        let fits = |stopped: &&Stopped| {
            bytes += stopped.last_words.size();
            bytes <= BATCH_BYTES
        };
        let room = self.stopped.iter().take(room).take_while(fits).count();
        results.extend(self.stopped.drain(..room).map(Stopped::result));
        if results.is_empty() {
            return None;
        }
        Some((Request::Results(proto::Results { results }), tickets))
    }
}
