//! How streams come and go, and what is written on them.

use std::time::Duration;

use super::single::Session;
use super::stream::Goodbye;
use super::timers::Timer;
use super::{Action, End, Note, Sessions, StopReason, StreamNo};
use crate::proto;

/// From our half-close to the end of the stream.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// A result without a receipt is sent again on its stream after this.
const RESEND: Duration = Duration::from_secs(10);
/// Pauses between streams, and between calls of `ReportResults`.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Between streams while the leases can still be saved: a node that was started
/// again, or a load balancer that found another, must be met before they run out.
const BACKOFF_LEASED_MAX: Duration = Duration::from_secs(2);
/// No server can ask for a longer pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

impl Sessions {
    /// True when another stream is to be asked for: there is none, or only one
    /// to a node that drains or does not answer. A worker that ends needs one only to go on with
    /// what it holds, and stays where it is as long as it can.
    pub(super) fn lacks_stream(&self) -> bool {
        let session = self.current.and_then(|no| self.sessions.get(&no));
        let possible = session.map_or(!self.leaving, |session| !session.over);
        let used = self.link.used.as_ref();
        possible
            && self.link.asked.is_none()
            && used.is_none_or(|used| {
                (used.doubted && !used.closing) || (used.draining && !self.leaving)
            })
    }

    /// Gives the writer in use its next message, if it is free. A stream that
    /// has no more use ends: after Goodbye, or when its node drains, which would
    /// wait for it to the end of its time.
    pub(super) fn write(&mut self, window: u32) {
        let (Some(no), Some(stream)) = (self.current, self.link.used.as_mut()) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        if stream.closing || stream.busy {
            return;
        }
        if let Some((message, tickets)) =
            stream.next_message(no, session, &mut self.book, self.now, window)
        {
            stream.busy = true;
            let to = stream.no;
            match &message {
                proto::lease_jobs_request::Message::Progress(_) => self.progress_sent(&tickets),
                proto::lease_jobs_request::Message::Logs(_) => self.log_sent(&tickets),
                _ => {
                    for ticket in tickets {
                        self.timers.set(Timer::Resend(ticket), self.now + RESEND);
                    }
                }
            }
            self.actions.push(Action::Send(to, request(message)));
        } else if self.book.of(no).next().is_some() {
            // Its results and receipts go this way.
        } else if stream.draining && !self.leaving {
            let drained = stream.no;
            self.cut(Some(drained), "the node drains");
        } else if stream.goodbye == Goodbye::Applied {
            stream.closing = true;
            self.timers.clear(Timer::Heartbeat);
            self.timers.set(Timer::Close, self.now + CLOSE_WAIT);
            self.actions.push(Action::HalfClose(stream.no));
        }
    }

    /// Ends a stream from our side.
    pub(super) fn cut(&mut self, no: Option<StreamNo>, why: &str) {
        let Some(no) = no else { return };
        self.actions.push(Action::Cut(no));
        let message = why.to_owned();
        self.ended(
            no,
            End {
                message,
                ..End::default()
            },
        );
    }

    /// Ends all streams from our side, with no other to follow.
    pub(super) fn cut_all(&mut self) {
        for stream in [self.link.used.take(), self.link.asked.take()]
            .into_iter()
            .flatten()
        {
            self.actions.push(Action::Cut(stream.no));
        }
        self.stream_gone();
    }

    /// The stream is no more. The session goes on by the next one: its handlers
    /// run on until its expiry, and its results wait.
    pub(super) fn ended(&mut self, no: StreamNo, end: End) {
        let is_it = |stream: &mut super::stream::Stream| stream.no == no;
        let ended = self.link.asked.take_if(is_it);
        let Some(stream) = ended.or_else(|| self.link.used.take_if(is_it)) else {
            return;
        };
        self.stream_gone();
        let session = self.current.and_then(|no| self.sessions.get(&no));
        let Some(session) = session else { return };
        let (begun, newest) = (session.begun, stream.attach == session.attaches);
        if end.fatal {
            return self.refused(end.message);
        }
        if !begun {
            // Nothing was pushed under it: a new one does as well.
            if let Some(no) = self.current.take() {
                self.sessions.remove(&no);
            }
        } else if end.moved && newest {
            // Whoever sent the higher number has our token. An older Hello of
            // ours ends so as well when a newer one has come through.
            self.cut_all();
            self.session_over(Some(StopReason::Lost));
            self.note(Note::Copied);
        }
        if self.leaving {
            self.let_go();
        }
        if self.lacks_stream() && !self.wanted && !self.timers.is_set(Timer::Connect) {
            self.reconnect(&end);
        }
    }

    /// Clears the timers of streams that are not there any more.
    fn stream_gone(&mut self) {
        if self.link.asked.is_none() {
            self.timers.clear(Timer::Welcome);
        }
        if self.link.used.is_none() {
            self.timers.clear(Timer::Heartbeat);
            self.timers.clear(Timer::Doubt);
            self.timers.clear(Timer::Silence);
            self.timers.clear(Timer::Close);
        }
    }

    /// Sets the times at which the stream in use will have been silent for too long.
    pub(super) fn listen(&mut self) {
        let session = self.current.and_then(|no| self.sessions.get(&no));
        if let (Some(session), Some(stream)) = (session, self.link.used.as_ref()) {
            let heard = stream.heard;
            self.timers.set(Timer::Doubt, heard + session.doubtful());
            self.timers.set(Timer::Silence, heard + session.reliable());
        }
    }

    /// The node in use does not answer, and may be cut off from its stores, or we
    /// from it. It is kept: its answer may be late, and nobody else's may come.
    pub(super) fn doubt(&mut self) {
        let session = self.current.and_then(|no| self.sessions.get(&no));
        let patience = session.map_or(Duration::ZERO, Session::patience);
        if let Some(stream) = self.link.used.as_mut().filter(|used| !used.closing) {
            // A process that stood still has asked nothing yet that could be answered.
            let asked = stream.unanswered().unwrap_or(self.now);
            if asked + patience > self.now {
                return self.timers.set(Timer::Doubt, asked + patience);
            }
            stream.doubted = true;
            if self.lacks_stream() && !self.wanted && !self.timers.is_set(Timer::Connect) {
                self.reconnect(&End {
                    message: "no heartbeat was acknowledged".to_owned(),
                    ..End::default()
                });
            }
        }
    }

    /// Until the leases cannot be relied on any more; zero if there are none.
    pub(super) fn time_left(&self) -> Duration {
        let session = self.current.and_then(|no| self.sessions.get(&no));
        session
            .filter(|session| session.begun)
            .map_or(Duration::ZERO, |session| {
                session.expiry().saturating_sub(self.now)
            })
    }

    pub(super) fn reconnect(&mut self, end: &End) {
        let left = self.time_left();
        // A node that is full asks for a pause of all alike; what runs here does not wait for it until it is lost.
        let (longest, longest_asked) = if left > Duration::ZERO {
            (BACKOFF_LEASED_MAX, left / 4)
        } else {
            (BACKOFF_MAX, RETRY_AFTER_MAX)
        };
        let asked = end.retry_after.unwrap_or_default().min(longest_asked);
        let pause = self.backoff(self.tries).min(longest).max(asked);
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

pub(super) fn request(message: proto::lease_jobs_request::Message) -> proto::LeaseJobsRequest {
    proto::LeaseJobsRequest {
        message: Some(message),
    }
}
