//! How the worker comes to a session, goes on with it, and loses it: Hello,
//! Welcome, and what each answer means for what is held.

use std::time::Duration;

use super::single::Session;
use super::stream::{Goodbye, Stream};
use super::timers::Timer;
use super::{Action, Note, SessionNo, Sessions, StopReason, StreamNo};
use crate::proto;

/// From asking for a stream to its Welcome.
const WELCOME_WAIT: Duration = Duration::from_secs(15);
/// At least so long while there are leases to be saved: a node to which many move at once needs its time.
const WELCOME_WAIT_LEASED_MIN: Duration = Duration::from_secs(1);

impl Sessions {
    /// Asks for a stream: for the session there is, by its token, or for a new
    /// one. Whatever comes of it, this Hello has its own number from now on, and
    /// frames of older streams are not taken any more.
    pub(super) fn open(&mut self, window: u32) {
        self.wanted = false;
        let no = match self.current {
            Some(no) => no,
            None => self.begin_session(),
        };
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        session.attaches += 1;
        self.last_stream += 1;
        // Nothing below 1 can be said here; SetCapacity follows.
        let window = window.max(1);
        let stream = Stream::asked(
            StreamNo(self.last_stream),
            session.attaches,
            self.now,
            window,
        );
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
            resume_token: session.token.clone(),
            held: self.book.leases_of(no),
            sdk: self.config.sdk.clone(),
            labels: self.config.labels.clone().into_iter().collect(),
            attach_sequence: session.attaches,
        };
        // A node that does not answer leaves time to meet another.
        let wait = match self.time_left() {
            Duration::ZERO => WELCOME_WAIT,
            left => (left / 3).clamp(WELCOME_WAIT_LEASED_MIN, WELCOME_WAIT),
        };
        self.timers.set(Timer::Welcome, self.now + wait);
        self.actions.push(Action::Open(
            stream.no,
            super::streams::request(proto::lease_jobs_request::Message::Hello(hello)),
        ));
        self.link.asked = Some(stream);
    }

    fn begin_session(&mut self) -> SessionNo {
        self.last_session += 1;
        let no = SessionNo(self.last_session);
        self.sessions.insert(no, Session::new(self.now));
        self.current = Some(no);
        no
    }

    /// The stream asked for is the one in use from now on.
    pub(super) fn welcome(&mut self, mut stream: Stream, welcome: proto::Welcome) {
        self.timers.clear(Timer::Welcome);
        // Cut before anything else: none of its messages counts any more.
        if let Some(old) = self.link.used.take() {
            self.actions.push(Action::Cut(old.no));
        }
        let asked = self
            .current
            .and_then(|no| self.sessions.get(&no))
            .is_some_and(|session| session.begun);
        if asked && !welcome.resumed {
            let stop = !self.config.finish_unrenewed;
            self.session_over(stop.then_some(StopReason::Lost));
            self.note(Note::SessionOver);
            self.begin_session();
            stream.begins_anew();
        }
        let resumed = asked && welcome.resumed;
        self.note(Note::Connected {
            resumed,
            session: welcome.session_id.clone(),
            node: welcome.node.clone(),
        });
        let Some(no) = self.current else { return };
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        if resumed {
            session.go_on(&welcome, stream.asked_at);
        } else {
            session.begin(welcome, stream.asked_at);
        }
        // The first heartbeat is written when this event is done.
        stream.heartbeat_due = Some(self.now);
        stream.heard = self.now;
        if self.leaving {
            stream.goodbye = Goodbye::Due;
        }
        self.timers
            .set(Timer::Heartbeat, self.now + session.interval);
        self.timers.set(Timer::Expiry, session.expiry());
        self.link.used = Some(stream);
        self.listen();
        self.send_again(no);
    }

    /// The session that takes jobs will have no stream again: what it owes goes
    /// by `ReportResults`, and its handlers are told to stop, if there is a reason.
    pub(super) fn session_over(&mut self, stop: Option<StopReason>) {
        let Some(no) = self.current.take() else {
            return;
        };
        self.timers.clear(Timer::Expiry);
        if let Some(session) = self.sessions.get_mut(&no) {
            session.over = true;
        }
        if let Some(reason) = stop {
            for ticket in self.book.running_of(no) {
                self.stop(ticket, reason);
            }
        }
        self.send_again(no);
    }

    /// Streams will come, or are there: what can go no other way has one.
    pub(super) fn has_streams(&self, no: SessionNo) -> bool {
        let session = self.sessions.get(&no).filter(|session| !session.over);
        session.is_some() && self.current == Some(no)
    }

    /// Puts every result, checkpoint and line without a receipt in line: the way it
    /// went is gone.
    pub(super) fn send_again(&mut self, no: SessionNo) {
        for ticket in self.book.running_of(no) {
            match self.has_streams(no) {
                true => {
                    self.queue_progress(ticket);
                    self.log_again(ticket);
                }
                // There is no other way for these.
                false => self.end_progress(ticket),
            }
        }
        for ticket in self.book.finished_of(no) {
            self.timers.clear(Timer::Resend(ticket));
            self.queue(ticket);
        }
    }
}
