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
mod outcome;
mod receive;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::proto;
use held::Book;
use link::{Goodbye, Link, Phase};
pub(crate) use link::duration as wire_duration;
pub use outcome::Outcome;
use timers::{Timer, Timers};

/// A result without a receipt is sent again on its stream after this.
const RESEND: Duration = Duration::from_secs(10);
/// From asking for a stream to its Welcome.
const WELCOME_WAIT: Duration = Duration::from_secs(15);
/// From our half-close to the end of the stream.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// After grace and stopping: for the last receipts.
const RECEIPTS_WAIT: Duration = Duration::from_secs(5);
/// Pauses between streams, and between calls of `ReportResults`.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// No server can ask for a longer pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Results of a session that is gone are tried this long.
const REPORT_FOR: Duration = Duration::from_secs(24 * 3600);
/// With so many results, or bytes of them, without a receipt, no new jobs.
const UNRECEIPTED_MAX: usize = 10_000;
const UNRECEIPTED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A result refused more often than this is given up.
const REJECTIONS_MAX: u32 = 3;
/// Largest window of the wire.
const WINDOW_MAX: usize = 10_000;

/// The worker's own number of one of its sessions, and of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNo(pub u64);

/// The worker's own number of one attempt it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What the worker is.
#[derive(Clone, Debug)]
pub struct Config {
    /// A name for people.
    pub worker: String,
    /// The lines it takes jobs from.
    pub queues: Vec<proto::QueueSubscription>,
    /// What it can run; anything else is released.
    pub kinds: BTreeSet<String>,
    /// Handlers that may run at once, 1 to 10,000.
    pub concurrency: usize,
    /// Wish for the lease's time; `None`: the server's default.
    pub lease_ttl: Option<Duration>,
    /// About the worker, for people.
    pub labels: BTreeMap<String, String>,
    /// Name and version of the SDK.
    pub sdk: String,
    /// How long a handler that was told to stop may take before it is dropped.
    pub stop_grace: Duration,
    /// How long handlers may go on when the worker must end by itself.
    pub grace: Duration,
    /// Let handlers finish when the session could not be renewed in time: the
    /// fence decides about their results anyway, but the job may run twice at once.
    pub finish_unrenewed: bool,
    /// For jitter.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A message of the server.
    Received(SessionNo, proto::LeaseJobsResponse),
    /// The writer of a stream has passed on the message it was given.
    Written(SessionNo),
    /// The stream ended, or never came to be.
    Ended(SessionNo, End),
    /// A handler is no more.
    Finished(Ticket, Outcome),
    /// The answer to `Action::Report`; an error says only that there is none.
    Reported(SessionNo, Result<Vec<proto::Receipt>, ()>),
    /// End the worker: no new jobs, and so long for those that run.
    Shutdown(Duration),
    /// A shutdown's grace is over now.
    Hurry,
    /// Nothing; `deadline` has come.
    Tick,
}

/// How a stream ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The server would end every stream of ours so: coming back is of no use.
    pub fatal: bool,
    /// For people and logs.
    pub message: String,
    /// The server asked for at least this pause.
    pub retry_after: Option<Duration>,
}

/// Why a handler is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody cancelled the job.
    Cancelled,
    /// The server counted the attempt as timed out.
    TimedOut,
    /// The lease is not the session's any more.
    Lost,
    /// The attempt's timeout is over, by the worker's own clock.
    Overdue,
    /// The session could not be renewed in time.
    Unrenewed,
    /// The worker ends.
    Shutdown,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Open a stream on a fresh connection, with this as its first message.
    Open(SessionNo, proto::LeaseJobsRequest),
    /// Give the stream's writer this; there is room, and `Written` is to follow.
    Send(SessionNo, proto::LeaseJobsRequest),
    /// Say that no more messages come.
    HalfClose(SessionNo),
    /// Drop the stream; no `Ended` is expected.
    Cut(SessionNo),
    /// Start the handler.
    Run(Ticket, Box<proto::LeasedJob>),
    /// Tell the handler to stop; it is dropped when it has not after so long.
    Stop(Ticket, StopReason, Duration),
    /// Call `ReportResults`; `Reported` is to follow.
    Report(SessionNo, proto::ReportResultsRequest),
    /// Something for the log.
    Note(Note),
    /// The worker is done, with the reason when it could not go on.
    End(Option<String>),
}

/// What people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A session began.
    Connected {
        /// The server's name of the session.
        session: String,
        /// The server's node.
        node: String,
    },
    /// A stream ended or failed, and another is tried after the pause.
    Reconnecting {
        /// How it ended.
        why: String,
        /// The pause.
        pause: Duration,
    },
    /// The node will leave; a new stream is opened elsewhere.
    Draining,
    /// A session could not be renewed in time; its handlers are told to stop.
    Unrenewed,
    /// A job came of a kind without a handler; said once for each kind.
    UnknownKind(String),
    /// The server refused a result; a failure is sent instead.
    Rejected(proto::Lease, String),
    /// A result came too late: another attempt counts, or the job was cancelled.
    Stale(proto::Lease, String),
    /// No verdict on a result will be known.
    GaveUp(proto::Lease),
}

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
                self.timers.set(Timer::GiveUp, self.now + self.config.stop_grace + RECEIPTS_WAIT);
                self.timers.pop(self.now).into_iter().for_each(|timer| self.fire(timer));
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
            let running: Vec<_> = self.book.of(no).filter(|(_, held)| held.is_running()).map(|(ticket, _)| ticket).collect();
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
        self.timers.set(Timer::Grace, self.now + grace);
        self.timers.set(Timer::GiveUp, self.now + grace + self.config.stop_grace + RECEIPTS_WAIT);
        if let Some(no) = self.current.take() {
            match self.links.get_mut(&no) {
                Some(link) if link.phase == Phase::Open => link.goodbye = Goodbye::Due,
                _ => self.cut(no, "the worker ends"),
            }
        }
    }

    fn give_up(&mut self) {
        let open: Vec<_> = self.links.iter().filter(|(_, link)| link.phase != Phase::Gone).map(|(no, _)| *no).collect();
        for no in open {
            self.actions.push(Action::Cut(no));
        }
        let held: Vec<_> = self.links.keys().flat_map(|no| self.book.of(*no)).map(|(_, held)| held.lease.clone()).collect();
        for lease in held {
            self.note(Note::GaveUp(lease));
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.over = true;
        self.actions.push(Action::End(self.fatal.take()));
    }

    /// Ends a stream from our side.
    fn cut(&mut self, no: SessionNo, why: &str) {
        if self.links.get(&no).is_some_and(|link| link.phase != Phase::Gone) {
            self.actions.push(Action::Cut(no));
            self.ended(no, End { message: why.to_owned(), ..End::default() });
        }
    }

    /// The stream is no more. Its handlers run on until the session's expiry,
    /// and its results take the other way.
    fn ended(&mut self, no: SessionNo, end: End) {
        let Some(link) = self.links.get_mut(&no) else { return };
        if link.phase == Phase::Gone {
            return;
        }
        link.phase = Phase::Gone;
        link.busy = false;
        link.stopped.clear();
        self.timers.clear(Timer::Welcome(no));
        self.timers.clear(Timer::Heartbeat(no));
        self.timers.clear(Timer::Close(no));
        let finished: Vec<_> = self.book.of(no).filter(|(_, held)| !held.is_running()).map(|(ticket, _)| ticket).collect();
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

    fn reconnect(&mut self, end: &End) {
        if self.leaving {
            return;
        }
        let asked = end.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let pause = self.backoff(self.tries).max(asked);
        self.tries = self.tries.saturating_add(1);
        self.timers.set(Timer::Connect, self.now + pause);
        self.note(Note::Reconnecting { why: end.message.clone(), pause });
    }

    fn finished(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(held) = self.book.get(ticket) else { return };
        let held::State::Running { stop } = held.state else { return };
        let (no, lease) = (held.session, held.lease.clone());
        self.timers.clear(Timer::Timeout(ticket));
        let Some(link) = self.links.get_mut(&no) else { return };
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
        let Some(held) = self.book.get_mut(ticket) else { return };
        let no = held.session;
        if let (Some(finished), Some(link)) = (held.finished_mut(), self.links.get_mut(&no))
            && !finished.queued
        {
            finished.queued = true;
            link.outbox.push_back(ticket);
        }
    }

    fn stop(&mut self, ticket: Ticket, reason: StopReason) {
        let Some(held) = self.book.get_mut(ticket) else { return };
        let held::State::Running { stop } = &mut held.state else { return };
        let first = stop.is_none();
        // The server's word tells more than our own clock's.
        if first || matches!(reason, StopReason::Cancelled | StopReason::TimedOut | StopReason::Lost) {
            *stop = Some(reason);
        }
        if first {
            // Unrenewed leases are another's after the margin: half of it is for the handler to end by itself.
            let margin = self.links.get(&held.session).map_or(self.config.stop_grace, |link| link.ttl / 12);
            let grace = if reason == StopReason::Unrenewed { margin.min(self.config.stop_grace) } else { self.config.stop_grace };
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
        let own = self.current.and_then(|no| self.links.get(&no)).map_or(0, |link| link.running);
        let others = self.book.running().saturating_sub(own);
        let free = self.config.concurrency.saturating_sub(others).min(WINDOW_MAX);
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

    fn open(&mut self, window: u32) {
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
            lease_ttl: self.config.lease_ttl.and_then(|ttl| prost_types::Duration::try_from(ttl).ok()),
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
        self.actions.push(Action::Open(no, request(proto::lease_jobs_request::Message::Hello(hello))));
    }

    fn write(&mut self, no: SessionNo, window: u32) {
        let Some(link) = self.links.get_mut(&no) else { return };
        if link.phase != Phase::Open || link.busy {
            return;
        }
        // The window of a session that takes no new jobs is of no interest.
        let window = if self.current == Some(no) { window } else { link.window };
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

    fn report(&mut self, no: SessionNo) {
        let Some(link) = self.links.get_mut(&no) else { return };
        if let Some(call) = link.next_report(&mut self.book) {
            self.actions.push(Action::Report(no, call));
        }
    }

    /// Forgets a session that nothing is owed for.
    fn retire(&mut self, no: SessionNo) {
        let gone = self.links.get(&no).is_some_and(|link| link.phase == Phase::Gone && link.reporting.is_none());
        if gone && self.book.of(no).next().is_none() {
            self.links.remove(&no);
            self.timers.clear(Timer::Expiry(no));
            self.timers.clear(Timer::Report(no));
        }
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    /// Half of the exponential step, and as much again at random.
    fn backoff(&mut self, tries: u32) -> Duration {
        let step = BACKOFF_FIRST.saturating_mul(1 << tries.min(10)).min(BACKOFF_MAX);
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
    proto::LeaseJobsRequest { message: Some(message) }
}
