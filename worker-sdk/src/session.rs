//! The worker's half of LeaseJobs as a pure state machine: `(state, event, now)
//! -> actions`, without a clock, a socket or a task, so that a test or a model
//! checker can drive it. `connection.rs` carries its actions out.
//!
//! A worker has one session that takes new jobs, and perhaps older ones whose
//! handlers are not done: a node that drains, or a stream that was cut, gives
//! way to a new stream with a new session. What must hold over all of them:
//!
//! * handlers that run, old and new together, never exceed the concurrency;
//! * each (job, attempt) of a session is run once, however often it is pushed;
//! * a result is sent again until it has a receipt, on its own session's stream
//!   or by `ReportResults` under its own token, never under another;
//! * no handler runs on untold when its session was not renewed in time.

mod held;
mod link;
mod messages;
mod outcome;
mod receive;
mod streams;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::BTreeMap;
use std::time::Duration;

use held::Book;
pub(crate) use link::duration as wire_duration;
use link::{Goodbye, Link, Phase};
pub use messages::{Action, Config, End, Event, Note, SessionNo, StopReason, Ticket};
pub use outcome::Outcome;
pub(crate) use outcome::RETRY_AFTER_MAX;
use timers::{Timer, Timers};

/// After grace and stopping: for the last receipts.
const RECEIPTS_WAIT: Duration = Duration::from_secs(5);
/// Results of a session that is gone are tried this long.
const REPORT_FOR: Duration = Duration::from_secs(24 * 3600);
/// With so many results, or bytes of them, without a receipt, no new jobs.
const UNRECEIPTED_MAX: usize = 10_000;
const UNRECEIPTED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A result refused more often than this is given up.
const REJECTIONS_MAX: u32 = 3;
/// Largest window of the wire.
const WINDOW_MAX: usize = 10_000;

/// The machine.
pub struct Sessions {
    config: Config,
    now: Duration,
    actions: Vec<Action>,
    timers: Timers,
    book: Book,
    links: BTreeMap<SessionNo, Link>,
    /// The session that takes new jobs.
    current: Option<SessionNo>,
    last_no: u64,
    /// A stream is to be opened as soon as there is a free slot.
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

impl Sessions {
    /// A worker that has done nothing yet; its first deadline is at once.
    pub fn new(config: Config) -> Self {
        let random = config.seed;
        let mut timers = Timers::default();
        timers.set(Timer::Connect, Duration::ZERO);
        Self {
            config,
            now: Duration::ZERO,
            actions: Vec::new(),
            timers,
            book: Book::default(),
            links: BTreeMap::new(),
            current: None,
            last_no: 0,
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
                if let Some(link) = self.links.get_mut(&no) {
                    link.busy = false;
                }
            }
            Event::Ended(no, end) => self.ended(no, end),
            Event::Finished(ticket, outcome) => self.finished(ticket, outcome),
            Event::Reported(no, answer) => self.reported(no, answer),
            Event::Shutdown(grace) => self.leave(grace),
            Event::Hurry if self.leaving => {
                self.timers.set(Timer::Grace, self.now);
                self.give_up_after(Duration::ZERO);
                self.timers
                    .pop(self.now)
                    .into_iter()
                    .for_each(|timer| self.fire(timer));
            }
            Event::Hurry | Event::Tick => {}
        }
        self.settle();
        std::mem::take(&mut self.actions)
    }

    /// When `handle` wants to be called next, whatever happens.
    pub fn deadline(&self) -> Option<Duration> {
        if self.over { None } else { self.timers.next() }
    }

    /// When the heartbeat was sent that was acknowledged last, in the session
    /// that takes new jobs. `None`: there is no such session.
    pub fn renewed(&self) -> Option<Duration> {
        let link = self.links.get(&self.current?)?;
        (link.phase == Phase::Open).then_some(link.renewed)
    }

    /// Handlers that have not ended, over all sessions.
    pub fn running(&self) -> usize {
        self.book.running()
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Connect => self.wanted = !self.leaving && self.current.is_none(),
            Timer::Welcome(no) => self.cut(no, "no Welcome came"),
            Timer::Heartbeat(no) => {
                if let Some(link) = self.links.get_mut(&no) {
                    link.heartbeat_due = true;
                    self.timers.set(timer, self.now + link.interval);
                }
            }
            Timer::Expiry(no) => self.expire(no),
            Timer::Timeout(ticket) => self.stop(ticket, StopReason::Overdue),
            Timer::Resend(ticket) => self.queue(ticket),
            Timer::Report(no) => {
                if let Some(link) = self.links.get_mut(&no) {
                    link.report_paused = false;
                }
            }
            Timer::Close(no) => self.cut(no, "the server did not end the stream"),
            Timer::Grace => {
                for ticket in self.book.all_running() {
                    self.stop(ticket, StopReason::Shutdown);
                }
            }
            Timer::GiveUp => self.give_up(),
        }
    }

    /// The session was not renewed in time: the server may give its jobs to
    /// others soon. A stream that carries no renewals is of no use either.
    fn expire(&mut self, no: SessionNo) {
        if !self.config.finish_unrenewed {
            let running: Vec<_> = self
                .book
                .of(no)
                .filter(|(_, held)| held.is_running())
                .map(|(ticket, _)| ticket)
                .collect();
            if !running.is_empty() {
                self.note(Note::Unrenewed);
            }
            for ticket in running {
                self.stop(ticket, StopReason::Unrenewed);
            }
        }
        self.cut(no, "no heartbeat was acknowledged in time");
    }

    fn leave(&mut self, grace: Duration) {
        if self.leaving {
            return;
        }
        self.leaving = true;
        self.wanted = false;
        self.timers.clear(Timer::Connect);
        self.timers
            .set(Timer::Grace, self.now.saturating_add(grace));
        self.give_up_after(grace);
        if let Some(no) = self.current.take() {
            match self.links.get_mut(&no) {
                Some(link) if link.phase == Phase::Open => link.goodbye = Goodbye::Due,
                _ => self.cut(no, "the worker ends"),
            }
        }
    }

    /// After the grace handlers are stopped, which takes its own time, and then the last receipts come.
    fn give_up_after(&mut self, grace: Duration) {
        let last = self.config.stop_grace.saturating_add(RECEIPTS_WAIT);
        let at = self.now.saturating_add(grace).saturating_add(last);
        self.timers.set(Timer::GiveUp, at);
    }

    fn give_up(&mut self) {
        let open: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| link.phase != Phase::Gone)
            .map(|(no, _)| *no)
            .collect();
        for no in open {
            self.actions.push(Action::Cut(no));
        }
        let held: Vec<_> = self
            .links
            .keys()
            .flat_map(|no| self.book.of(*no))
            .map(|(_, held)| held.lease.clone())
            .collect();
        for lease in held {
            self.note(Note::GaveUp(lease));
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.over = true;
        self.actions.push(Action::End(self.fatal.take()));
    }

    fn finished(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(held) = self.book.get(ticket) else {
            return;
        };
        let held::State::Running { stop } = held.state else {
            return;
        };
        let (no, lease) = (held.session, held.lease.clone());
        self.timers.clear(Timer::Timeout(ticket));
        let Some(link) = self.links.get_mut(&no) else {
            return;
        };
        link.running = link.running.saturating_sub(1);
        match outcome::resolve(outcome, stop, link.output_bytes_max()) {
            Some(result) => {
                self.book.finish(ticket, result, self.now);
                self.queue(ticket);
            }
            None => {
                if link.phase == Phase::Open {
                    link.stopped.push(lease.clone());
                }
                link.done(lease);
                self.book.remove(ticket);
            }
        }
    }

    /// Puts a finished result in line to be sent, on whatever way its session has.
    fn queue(&mut self, ticket: Ticket) {
        let Some(held) = self.book.get_mut(ticket) else {
            return;
        };
        let no = held.session;
        if let (Some(finished), Some(link)) = (held.finished_mut(), self.links.get_mut(&no))
            && !finished.queued
        {
            finished.queued = true;
            link.outbox.push_back(ticket);
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
                .links
                .get(&held.session)
                .map_or(self.config.stop_grace, |link| link.ttl / 12);
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
            .and_then(|no| self.links.get(&no))
            .map_or(0, |link| link.running);
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
        if self.wanted && window > 0 {
            self.open(window);
        }
        let numbers: Vec<_> = self.links.keys().copied().collect();
        for no in numbers {
            self.write(no, window);
            self.report(no);
            self.retire(no);
        }
        if self.leaving && self.links.is_empty() {
            self.finish();
        }
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }
}
