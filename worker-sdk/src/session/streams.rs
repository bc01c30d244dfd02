//! How streams come and go, and what is written on them.

use std::time::Duration;

use super::link::{Goodbye, Link, Phase};
use super::timers::Timer;
use super::{Action, End, Note, SessionNo, Sessions};
use crate::proto;

/// From asking for a stream to its Welcome.
const WELCOME_WAIT: Duration = Duration::from_secs(15);
/// From our half-close to the end of the stream.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// A result without a receipt is sent again on its stream after this.
const RESEND: Duration = Duration::from_secs(10);
/// Pauses between streams, and between calls of `ReportResults`.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// No server can ask for a longer pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

impl Sessions {
    pub(super) fn open(&mut self, window: u32) {
        self.wanted = false;
        self.last_no += 1;
        let no = SessionNo(self.last_no);
        let hello = proto::Hello {
            protocol: 1,
            worker: self.config.worker.clone(),
            queues: self.config.queues.clone(),
            kinds: self.config.kinds.iter().cloned().collect(),
            max_in_flight: window,
            max_frame_bytes: 0,
            lease_ttl: self
                .config
                .lease_ttl
                .and_then(|ttl| prost_types::Duration::try_from(ttl).ok()),
            // Always a new session: old ones end by their own streams or by ReportResults.
            resume_token: Vec::new(),
            held: Vec::new(),
            sdk: self.config.sdk.clone(),
            labels: self.config.labels.clone().into_iter().collect(),
            attach_sequence: 1,
        };
        self.links.insert(no, Link::opening(self.now, window));
        self.current = Some(no);
        self.timers.set(Timer::Welcome(no), self.now + WELCOME_WAIT);
        self.actions.push(Action::Open(
            no,
            request(proto::lease_jobs_request::Message::Hello(hello)),
        ));
    }

    pub(super) fn write(&mut self, no: SessionNo, window: u32) {
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if link.phase != Phase::Open || link.busy {
            return;
        }
        // The window of a session that takes no new jobs is of no interest.
        let window = if self.current == Some(no) {
            window
        } else {
            link.window
        };
        if let Some((message, tickets)) = link.next_message(no, &mut self.book, self.now, window) {
            link.busy = true;
            for ticket in tickets {
                self.timers.set(Timer::Resend(ticket), self.now + RESEND);
            }
            self.actions.push(Action::Send(no, request(message)));
        } else if link.goodbye == Goodbye::Applied && self.book.of(no).next().is_none() {
            link.phase = Phase::Closing;
            self.timers.clear(Timer::Heartbeat(no));
            self.timers.set(Timer::Close(no), self.now + CLOSE_WAIT);
            self.actions.push(Action::HalfClose(no));
        }
    }

    pub(super) fn report(&mut self, no: SessionNo) {
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if let Some(call) = link.next_report(&mut self.book) {
            self.actions.push(Action::Report(no, call));
        }
    }

    /// Forgets a session that nothing is owed for.
    pub(super) fn retire(&mut self, no: SessionNo) {
        let gone = self
            .links
            .get(&no)
            .is_some_and(|link| link.phase == Phase::Gone && link.reporting.is_none());
        if gone && self.book.of(no).next().is_none() {
            self.links.remove(&no);
            self.timers.clear(Timer::Expiry(no));
            self.timers.clear(Timer::Report(no));
        }
    }

    /// Ends a stream from our side.
    pub(super) fn cut(&mut self, no: SessionNo, why: &str) {
        if self
            .links
            .get(&no)
            .is_some_and(|link| link.phase != Phase::Gone)
        {
            self.actions.push(Action::Cut(no));
            self.ended(
                no,
                End {
                    message: why.to_owned(),
                    ..End::default()
                },
            );
        }
    }

    /// The stream is no more. Its handlers run on until the session's expiry,
    /// and its results take the other way.
    pub(super) fn ended(&mut self, no: SessionNo, end: End) {
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        if link.phase == Phase::Gone {
            return;
        }
        link.phase = Phase::Gone;
        link.busy = false;
        link.stopped.clear();
        self.timers.clear(Timer::Welcome(no));
        self.timers.clear(Timer::Heartbeat(no));
        self.timers.clear(Timer::Close(no));
        let finished: Vec<_> = self
            .book
            .of(no)
            .filter(|(_, held)| !held.is_running())
            .map(|(ticket, _)| ticket)
            .collect();
        for ticket in finished {
            self.timers.clear(Timer::Resend(ticket));
            self.queue(ticket);
        }
        if end.fatal && self.fatal.is_none() {
            self.fatal = Some(end.message.clone());
            self.current = None;
            self.leave(self.config.grace);
        }
        if self.current == Some(no) {
            self.current = None;
            self.reconnect(&end);
        }
    }

    pub(super) fn reconnect(&mut self, end: &End) {
        if self.leaving {
            return;
        }
        let asked = end.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let pause = self.backoff(self.tries).max(asked);
        self.tries = self.tries.saturating_add(1);
        self.timers.set(Timer::Connect, self.now + pause);
        self.note(Note::Reconnecting {
            why: end.message.clone(),
            pause,
        });
    }

    /// Half of the exponential step, and as much again at random.
    pub(super) fn backoff(&mut self, tries: u32) -> Duration {
        let step = BACKOFF_FIRST
            .saturating_mul(1 << tries.min(10))
            .min(BACKOFF_MAX);
        // splitmix64: small, and the same in every test.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (mixed >> 40) as f64 / (1u64 << 24) as f64;
        step / 2 + (step / 2).mul_f64(share)
    }
}

fn request(message: proto::lease_jobs_request::Message) -> proto::LeaseJobsRequest {
    proto::LeaseJobsRequest {
        message: Some(message),
    }
}
