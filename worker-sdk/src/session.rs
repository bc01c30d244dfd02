//! The worker's half of LeaseJobs as a pure state machine: `(state, event, now)
//! -> actions`, without a clock, a socket or a task, so that a test or a model
//! checker can drive it. `connection.rs` carries its actions out.
//!
//! A worker has one session that takes new jobs. Its stream may end, or its
//! node may drain: it goes on by its token on the next stream, on any node, and
//! what runs under it runs on.
//!
//! ```text
//!             Hello             Welcome
//! no stream ────────> asked for ────────> in use
//!  ^     ^               │                 │  │ ^
//!  │     └─── failed ────┘            cut  │  │ │ Welcome, or the move failed
//!  └───────────────────────────────────────┘  │ │
//!                                   Draining  v │
//!                            in use, another asked for
//! ```
//!
//! Each Hello but the first asks to go on. If Welcome denies it, the server has
//! ended the session; if SESSION_MOVED answers the newest Hello, a copy of this
//! process has it. Then it is over: another begins, its handlers are told to
//! stop, and its results go by `ReportResults`. What must hold over all:
//!
//! * handlers that run, old and new together, never exceed the concurrency;
//! * each (job, attempt) of a session is run once, however often it is pushed;
//! * a result is sent again until it has a receipt, on its own session's stream
//!   or by `ReportResults` under its own token, never under another;
//! * no handler runs on untold when its session was not renewed in time;
//! * frames of an older stream are not taken once a newer Hello was said;
//! * a copy is never fought: its session is left to it.

mod attach;
mod held;
mod leave;
mod log;
mod messages;
mod outcome;
mod progress;
mod receive;
mod report;
mod single;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use held::Book;
pub(crate) use log::Lines;
pub use log::{Line, Said};
pub use messages::{
    Action, Config, End, Event, Note, Saved, SessionNo, StopReason, StreamNo, Ticket, Waiter,
};
pub use outcome::Outcome;
pub(crate) use outcome::RETRY_AFTER_MAX;
use single::Session;
pub(crate) use single::duration as wire_duration;
use stream::Link;
use timers::{Timer, Timers};

/// With so many results, or bytes of them, without a receipt, no new jobs.
const UNRECEIPTED_MAX: usize = 10_000;
const UNRECEIPTED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest window of the wire.
const WINDOW_MAX: usize = 10_000;

/// The machine. A value that can be copied and compared, which is what a model
/// checker asks of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sessions {
    config: Config,
    now: Duration,
    actions: Pending,
    timers: Timers,
    book: Book,
    sessions: BTreeMap<SessionNo, Session>,
    /// The session that takes new jobs, and its streams. All others are over.
    current: Option<SessionNo>,
    link: Link,
    last_session: u64,
    last_stream: u64,
    /// A stream is to be asked for; one for a new session waits for a free slot.
    wanted: bool,
    /// Streams in a row that came to nothing.
    tries: u32,
    /// Releases so far, by unknown kind.
    unknown: BTreeMap<String, u32>,
    leaving: bool,
    fatal: Option<String>,
    over: bool,
    random: u64,
}

/// What the event in hand has called for so far. Between events it is empty, and
/// no part of the state.
#[derive(Debug, Default)]
struct Pending(Vec<Action>);

impl Clone for Pending {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Pending {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Pending {}

impl Hash for Pending {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Pending {
    fn push(&mut self, action: Action) {
        self.0.push(action);
    }

    fn extend(&mut self, actions: impl IntoIterator<Item = Action>) {
        self.0.extend(actions);
    }
}

impl Sessions {
    /// A worker that has done nothing yet; its first deadline is at once.
    pub fn new(config: Config) -> Self {
        let random = config.seed;
        let mut timers = Timers::default();
        timers.set(Timer::Connect, Duration::ZERO);
        Self {
            config,
            now: Duration::ZERO,
            actions: Pending::default(),
            timers,
            book: Book::default(),
            sessions: BTreeMap::new(),
            current: None,
            link: Link::default(),
            last_session: 0,
            last_stream: 0,
            wanted: false,
            tries: 0,
            unknown: BTreeMap::new(),
            leaving: false,
            fatal: None,
            over: false,
            random,
        }
    }

    /// Takes one event in and says what is to be done, in order. `now` counts
    /// from a start of the caller's choice and never runs backwards.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        self.now = self.now.max(now);
        while let Some(timer) = self.timers.pop(self.now) {
            self.fire(timer);
        }
        match event {
            Event::Received(no, message) => self.received(no, message),
            Event::Written(no) => {
                if let Some(stream) = self.link.get_mut(no) {
                    stream.busy = false;
                }
            }
            Event::Ended(no, end) => self.ended(no, end),
            Event::Progress(ticket, report, waiter) => self.report_progress(ticket, report, waiter),
            Event::Said(ticket, said) => self.said(ticket, said.0),
            Event::Finished(ticket, outcome) => self.finished(ticket, outcome),
            Event::Reported(no, answer) => self.reported(no, answer),
            Event::Shutdown(grace) => self.leave(grace),
            Event::Hurry if self.leaving => {
                self.leave_by(self.now);
                self.timers
                    .pop(self.now)
                    .into_iter()
                    .for_each(|timer| self.fire(timer));
            }
            Event::Hurry | Event::Tick => {}
        }
        self.settle();
        std::mem::take(&mut self.actions.0)
    }

    /// When `handle` wants to be called next, whatever happens.
    pub fn deadline(&self) -> Option<Duration> {
        if self.over { None } else { self.timers.next() }
    }

    /// When the heartbeat that was acknowledged last was sent, or the Hello that
    /// was welcome last if that was later, in the session that takes new jobs,
    /// with or without a stream just now. `None`: there is no such session.
    pub fn renewed(&self) -> Option<Duration> {
        let session = self.sessions.get(&self.current?)?;
        (session.begun && !session.over).then_some(session.renewed)
    }

    /// Handlers that have not ended, over all sessions.
    pub fn running(&self) -> usize {
        self.book.running()
    }

    fn fire(&mut self, timer: Timer) {
        let used = self.link.used.as_ref().map(|stream| stream.no);
        match timer {
            Timer::Connect => self.wanted = self.lacks_stream(),
            Timer::Welcome => {
                let asked = self.link.asked.as_ref().map(|stream| stream.no);
                self.cut(asked, "no Welcome came");
            }
            Timer::Heartbeat => {
                let session = self.current.and_then(|no| self.sessions.get(&no));
                if let (Some(stream), Some(session)) = (self.link.used.as_mut(), session) {
                    stream.heartbeat_due.get_or_insert(self.now);
                    self.timers.set(timer, self.now + session.interval);
                }
            }
            Timer::Expiry => self.expire(),
            Timer::Doubt => self.doubt(),
            Timer::Silence => self.cut(used, "no heartbeat was acknowledged in time"),
            Timer::Timeout(ticket) => self.stop(ticket, StopReason::Overdue),
            Timer::Resend(ticket) => self.queue(ticket),
            Timer::Progress(ticket) => self.queue_progress(ticket),
            Timer::Log(ticket) => self.log_again(ticket),
            Timer::Report(no) => {
                if let Some(session) = self.sessions.get_mut(&no) {
                    session.report_paused = false;
                }
            }
            Timer::Close => self.cut(used, "the server did not end the stream"),
            Timer::Grace => self.stop_for_shutdown(),
            Timer::GiveUp => self.give_up(),
        }
    }

    /// The session was not renewed in time: the server may give its jobs to
    /// others soon. Whether it has done so is asked by its token all the same.
    fn expire(&mut self) {
        let Some(no) = self.current.filter(|_| !self.config.finish_unrenewed) else {
            return;
        };
        let undisturbed = self.book.undisturbed(no);
        if !undisturbed.is_empty() {
            self.note(Note::Unrenewed);
        }
        for ticket in undisturbed {
            self.stop(ticket, StopReason::Unrenewed);
        }
    }

    fn finished(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(held) = self.book.get(ticket) else {
            return;
        };
        let held::State::Running { stop } = held.state else {
            return;
        };
        let no = held.session;
        self.end_progress(ticket);
        self.timers.clear(Timer::Timeout(ticket));
        self.timers.clear(Timer::Log(ticket));
        let Some(session) = self.sessions.get_mut(&no) else {
            return;
        };
        session.running = session.running.saturating_sub(1);
        match outcome::resolve(outcome, stop, session.output_bytes_max()) {
            Some(result) => {
                self.book.finish(ticket, result, self.now);
                self.queue(ticket);
            }
            None => {
                if let Some(held) = self.book.remove(ticket) {
                    if self.current == Some(no) {
                        self.link.stopped(&held.lease, held.log.lines);
                    }
                    session.done(held.lease);
                }
            }
        }
    }

    /// Puts a finished result in line to be sent, on whatever way its session has.
    fn queue(&mut self, ticket: Ticket) {
        let Some(held) = self.book.get_mut(ticket) else {
            return;
        };
        let no = held.session;
        if let (Some(finished), Some(session)) = (held.finished_mut(), self.sessions.get_mut(&no))
            && !finished.queued
        {
            finished.queued = true;
            session.outbox.push_back(ticket);
        }
    }

    fn stop(&mut self, ticket: Ticket, reason: StopReason) {
        let Some(held) = self.book.get_mut(ticket) else {
            return;
        };
        let held::State::Running { stop } = &mut held.state else {
            return;
        };
        let first = stop.is_none();
        // The server's word tells more than our own clock's.
        if first
            || matches!(
                reason,
                StopReason::Cancelled | StopReason::TimedOut | StopReason::Lost
            )
        {
            *stop = Some(reason);
        }
        if first {
            // Unrenewed leases are another's after the margin: half of it is for the handler to end by itself.
            let margin = self
                .sessions
                .get(&held.session)
                .map_or(self.config.stop_grace, |session| session.ttl / 12);
            let grace = if reason == StopReason::Unrenewed {
                margin.min(self.config.stop_grace)
            } else {
                self.config.stop_grace
            };
            self.actions.push(Action::Stop(ticket, reason, grace));
        }
    }

    /// How many jobs the session that takes new ones may have in flight: old
    /// sessions' handlers still use their slots.
    fn window(&self) -> u32 {
        let (results, bytes) = self.book.finished();
        if results >= UNRECEIPTED_MAX || bytes >= UNRECEIPTED_BYTES_MAX {
            return 0;
        }
        let own = self
            .current
            .and_then(|no| self.sessions.get(&no))
            .map_or(0, |session| session.running);
        let others = self.book.running().saturating_sub(own);
        let free = self
            .config
            .concurrency
            .saturating_sub(others)
            .min(WINDOW_MAX);
        u32::try_from(free).unwrap_or(0)
    }

    /// What follows from the state alone, after every event.
    fn settle(&mut self) {
        if self.over {
            return;
        }
        let window = self.window();
        if self.wanted && (window > 0 || self.current.is_some()) {
            self.open(window);
        }
        self.write(window);
        let numbers: Vec<_> = self.sessions.keys().copied().collect();
        for no in numbers {
            self.report(no);
            self.retire(no);
        }
        if self.leaving {
            self.let_go();
            if self.sessions.is_empty() {
                self.finish();
            }
        }
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }
}
