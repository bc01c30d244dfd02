//! One worker's session, as a pure state machine: an event goes in with the time, actions come out. It does no I/O and
//! knows no clock, so that a model checker can drive the very code that runs.
//!
//! ```text
//! Hello ─> Opening ─opened, resumed─> Live ─ Goodbye ─> Leaving ─ half-close, all recorded ─> Closed
//!                                      └─ drain, silence, dead or moved session, fault ────> Closed
//! ```
//!
//! The loss of the stream is not an event of the lease: whoever drives the session drops it, and its leases live on in
//! the store until their time is over, or until the worker goes on with the session by a new stream, on any node.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | the states, the window, and where each event goes |
//! | `push` | jobs on their way to the worker, in numbered frames |
//! | `ending` | results, verdicts, timeouts, cancels |
//! | `reading` | whether the worker reads what it is sent |
//! | `heal` | resume, and what heartbeats and looks at the store put right |
//! | `progress` | what attempts have come to, with checkpoints |
//! | `logging` | what attempts say |
//! | `held` | the book of leases |
//! | `message` | what the two sides say to each other |

mod ending;
mod heal;
pub mod held;
pub mod logging;
pub mod message;
mod progress;
mod push;
mod reading;
mod reserved;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, Violation};
use crate::job::limits::{HEARTBEATS_PER_TTL, WINDOW_MAX};
use crate::job::{HeldLease, Lease, LeasedJob, NewLines, Outcome, Progress, QueueName, Verdict};
use ending::Recording;
use heal::{Finding, Seen};
use held::{Ended, Held};
use logging::Logging;
use message::{ClientMessage, Hello, ServerMessage, Subscription, Welcome, check_subscriptions};
use progress::Reporting;
use reading::Reading;
use reserved::Reserved;

/// What the store could not do for the session is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The store has a new session: it is alive, under this identity.
    Opened(Box<Welcome>),
    /// The session of the Hello's token has moved to this stream, and has these leases.
    Resumed(Box<Welcome>, Vec<HeldLease>),
    /// A message of the worker.
    Frame(ClientMessage),
    /// Jobs that were granted against slots that [`Session::reserve`] gave, and how many of these got none.
    Granted {
        /// New leases of this session.
        jobs: Vec<LeasedJob>,
        /// Reservations that came to nothing, by queue.
        missed: Vec<QueueName>,
    },
    /// The store's answer to [`Action::Renew`]: the session lives for its TTL from when that was asked.
    Renewed,
    /// The renewal could not be tried; the store is away. The worker's own deadline decides.
    RenewFailed,
    /// The store gives it no jobs: its time is over, though nobody has marked it dead. A renewal may still save it.
    Lapsed,
    /// A newer stream has the session, and its leases.
    Moved,
    /// The store says that the session is dead.
    Dead,
    /// Jobs that [`Action::Find`] asked for, and leases of those that are not held any more. The rest is to be asked for
    /// again: at once if there is something here, after a while if there is nothing.
    Found {
        /// Still held: to be pushed.
        jobs: Vec<LeasedJob>,
        /// Not held any more.
        gone: Vec<Lease>,
    },
    /// A look at the store: leases that it has for the session, some or all, and those of [`Session::running`] that it
    /// does not have.
    Looked {
        /// Known to the store.
        leases: Vec<HeldLease>,
        /// Not known to it.
        vanished: Vec<Lease>,
    },
    /// Verdicts on results of the worker.
    Verdicts(Vec<(Lease, Verdict)>),
    /// These results of the worker could not be recorded now; it will send them again.
    RecordFailed(Vec<Lease>),
    /// Whether the store has judged what [`Action::RecordOwn`] asked for; `false`: it could not be asked.
    OwnRecorded(Lease, Outcome, bool),
    /// Verdicts on reports of the worker.
    ProgressRecorded(Vec<(Lease, Progress, Verdict)>),
    /// Reports on these could not be recorded now; the worker will send what counts again.
    ProgressFailed(Vec<Lease>),
    /// Verdicts on lines of the worker, with the number of the last line of each report.
    Logged(Vec<(Lease, u64, Verdict)>),
    /// Lines of these could not be recorded now; the worker will send them again.
    LogFailed(Vec<Lease>),
    /// The job of this lease was cancelled.
    Cancel(Lease),
    /// Somebody wants this worker to leave. It may be said many times.
    Leave,
    /// This node is leaving; the stream will be closed after this time.
    Drain(Duration),
    /// The worker has closed its side in order.
    HalfClosed,
    /// [`Session::deadline`] has come.
    Tick,
}

/// What is to be done now, in this order.
#[derive(Debug)]
pub enum Action {
    /// Send to the worker.
    Send(ServerMessage),
    /// Renew the session in the store.
    Renew,
    /// Record how attempts ended, as the worker said; answer with `Verdicts` or `RecordFailed`. The lines that some of
    /// them bring are recorded before, if they can be.
    Record(Vec<(Lease, Outcome)>, Vec<(Lease, NewLines)>),
    /// Record what attempts have come to; answer with `ProgressRecorded` or `ProgressFailed`.
    Report(Vec<(Lease, Progress)>),
    /// Record what attempts say; answer with `Logged` or `LogFailed`.
    Log(Vec<(Lease, NewLines)>),
    /// Record how an attempt ended, as the session itself found; answer with `OwnRecorded`.
    RecordOwn(Lease, Outcome),
    /// Read the jobs of these leases, at most a batch, to push them again; answer with `Found`.
    Find(Vec<Lease>),
    /// Slots may be free: look for jobs.
    LookForJobs,
    /// An end of an attempt is recorded: count it.
    Ended(Ended),
    /// Drop the session in the store: its worker has left in order.
    EndSession,
    /// End the stream; `None`: OK. Nothing follows.
    Close(Option<Error>),
}

/// One worker's session. A value that can be copied and compared, which is what a model checker asks of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    hello: Hello,
    ttl: Duration,
    phase: SessionPhase,
    held: Held,
    /// Slots that are promised to grants under way.
    reserved: Reserved,
    window: u32,
    next_frame: u64,
    reading: Reading,
    heard: Duration,
    drain_at: Option<Duration>,
    /// The worker was asked to leave: it gets nothing more, on this stream or the next.
    asked_to_leave: bool,
    /// A new window or a Goodbye, to be confirmed when the grants under way have come.
    unconfirmed: bool,
    renewing: Option<u64>,
    renew_next: Option<u64>,
    /// When to try again what could not be renewed.
    renew_at: Option<Duration>,
    /// Its time is over by the store's clock: it gets nothing until it is renewed.
    lapsed: bool,
    recording: Recording,
    reporting: Reporting,
    logging: Logging,
    finding: Finding,
    seen: Seen,
    /// Cancels that came before their lease did.
    early_cancels: BTreeSet<Lease>,
    half_closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SessionPhase {
    Opening,
    Live,
    Leaving,
    Closed,
}

impl Session {
    /// Begins with a Hello. The store is to be asked next, and answers with [`Event::Opened`].
    ///
    /// # Errors
    /// What [`Hello::check`] says.
    pub fn open(now: Duration, hello: Hello, default_ttl: Duration) -> Result<Self, Error> {
        hello.check()?;
        Ok(Self {
            ttl: hello.lease_ttl.unwrap_or(default_ttl),
            window: hello.max_in_flight,
            phase: SessionPhase::Opening,
            held: Held::default(),
            reserved: Reserved::default(),
            next_frame: 1,
            reading: Reading::default(),
            heard: now,
            drain_at: None,
            asked_to_leave: false,
            unconfirmed: false,
            renewing: None,
            renew_next: None,
            renew_at: None,
            lapsed: false,
            recording: Recording::default(),
            reporting: Reporting::default(),
            logging: Logging::default(),
            finding: Finding::default(),
            seen: Seen::default(),
            early_cancels: BTreeSet::new(),
            half_closed: false,
            hello,
        })
    }

    /// How long the session lives without a heartbeat.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How often the worker is to send a heartbeat.
    pub fn heartbeat_interval(&self) -> Duration {
        self.ttl / HEARTBEATS_PER_TTL
    }

    /// What the worker said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The leases that the worker runs, as far as is known: to be compared with what the store knows.
    pub fn running(&self) -> Vec<Lease> {
        self.held.running().collect()
    }

    /// Jobs pushed and not finished, for metrics.
    pub fn in_flight(&self) -> u32 {
        self.held.in_flight()
    }

    /// The window in force.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// It gets no more jobs, since its worker or its node is leaving.
    pub fn is_leaving(&self) -> bool {
        self.phase == SessionPhase::Leaving || self.drain_at.is_some() || self.asked_to_leave
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn deadline(&self) -> Duration {
        let silence = self.heard + self.ttl;
        let again = self.recording.next_try();
        let find = self.finding.next_try();
        let timeout = self.held.next_timeout();
        let unread = self.reading.since().map(|since| since + self.ttl);
        [self.drain_at, timeout, again, find, self.renew_at, unread]
            .into_iter()
            .flatten()
            .fold(silence, Duration::min)
    }

    /// How many jobs of `queue` it can take now. None when the worker was not heard from within two heartbeats, or has
    /// read nothing of what it was sent for so long: it may be gone already.
    pub fn free(&self, now: Duration, queue: &QueueName) -> u32 {
        let subscription = self.hello.queues.iter().find(|s| s.queue == *queue);
        subscription.map_or(0, |subscription| {
            self.free_of(subscription, self.free_of_all(now))
        })
    }

    /// The same of each queue that it takes jobs of.
    pub fn free_slots(&self, now: Duration) -> Vec<(QueueName, u32)> {
        let all = self.free_of_all(now);
        let queues = self.hello.queues.iter();
        queues
            .map(|subscription| (subscription.queue.clone(), self.free_of(subscription, all)))
            .collect()
    }

    /// How many jobs it can take, whatever their queue.
    fn free_of_all(&self, now: Duration) -> u32 {
        let is_open = self.phase == SessionPhase::Live
            && self.drain_at.is_none()
            && !self.asked_to_leave
            && !self.unconfirmed
            && !self.lapsed
            && self.is_lively(now)
            && self.reads(now);
        if !is_open {
            return 0;
        }
        let free = self.window.saturating_sub(self.held.in_flight());
        free.saturating_sub(self.reserved.all())
    }

    fn free_of(&self, subscription: &Subscription, all: u32) -> u32 {
        let queue = &subscription.queue;
        subscription.max_in_flight.map_or(all, |max| {
            let free = max.saturating_sub(self.held.in_flight_of(queue));
            all.min(free.saturating_sub(self.reserved.of(queue)))
        })
    }

    /// The worker was heard of within two heartbeats.
    fn is_lively(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) <= 2 * self.heartbeat_interval()
    }

    /// Promises a slot to a grant. It is paid back by [`Event::Granted`].
    pub fn reserve(&mut self, now: Duration, queue: &QueueName) -> bool {
        let free = self.free(now, queue) > 0;
        if free {
            self.reserved.add(queue);
        }
        free
    }

    /// Takes one event and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == SessionPhase::Closed {
            return actions;
        }
        let out = &mut actions;
        match event {
            Event::Opened(welcome) => self.opened(*welcome, out),
            Event::Resumed(welcome, leases) => self.resumed(now, *welcome, leases, out),
            Event::Frame(message) => self.frame(now, message, out),
            Event::Granted { jobs, missed } => self.granted(now, jobs, &missed, out),
            Event::Renewed => self.renewed(out),
            Event::RenewFailed => self.renew_failed(now),
            Event::Lapsed => self.lapsed = true,
            Event::Moved => self.close(Some(Error::SessionMoved), out),
            Event::Dead => self.dead(out),
            Event::Found { jobs, gone } => self.found(now, jobs, gone, out),
            Event::Looked { leases, vanished } => self.looked(now, leases, vanished, out),
            Event::Verdicts(verdicts) => self.verdicts(now, verdicts, out),
            Event::RecordFailed(leases) => self.record_failed(&leases),
            Event::OwnRecorded(lease, outcome, recorded) => {
                self.own_recorded(now, lease, outcome, recorded, out)
            }
            Event::ProgressRecorded(verdicts) => self.progress_recorded(verdicts, out),
            Event::ProgressFailed(leases) => self.progress_failed(&leases),
            Event::Logged(verdicts) => self.logged(verdicts, out),
            Event::LogFailed(leases) => self.log_failed(&leases),
            Event::Cancel(lease) => self.cancel(lease, out),
            Event::Leave => self.ask_to_leave(out),
            Event::Drain(close_after) => self.drain(now, close_after, out),
            Event::HalfClosed => self.half_closed = true,
            Event::Tick => self.tick(now, out),
        }
        self.finish_if_left(out);
        actions
    }

    fn frame(&mut self, now: Duration, message: ClientMessage, out: &mut Vec<Action>) {
        // It may have been silent for so long that it got no jobs.
        if !self.is_lively(now) {
            out.push(Action::LookForJobs);
        }
        self.heard = now;
        match message {
            ClientMessage::Hello(_) => {
                self.close(
                    Some(Error::ProtocolViolation("Hello came twice".into())),
                    out,
                );
            }
            ClientMessage::SetCapacity {
                max_in_flight,
                queues,
            } => self.set_capacity(max_in_flight, queues, out),
            ClientMessage::Heartbeat {
                sequence,
                last_frame,
                held,
            } => self.heartbeat(now, sequence, last_frame, held, out),
            ClientMessage::Progress(reports) => self.progress(reports, out),
            ClientMessage::Logs(reports) => self.said(reports, out),
            ClientMessage::Results(results) => self.results(now, results, out),
            ClientMessage::Goodbye => {
                if self.phase == SessionPhase::Live {
                    self.phase = SessionPhase::Leaving;
                }
                self.unconfirmed = true;
                self.confirm(out);
            }
        }
    }

    fn set_capacity(
        &mut self,
        max_in_flight: u32,
        queues: Vec<Subscription>,
        out: &mut Vec<Action>,
    ) {
        let fault = match max_in_flight <= WINDOW_MAX {
            false => Some(Violation::field(
                "set_capacity.max_in_flight",
                format!("must be at most {WINDOW_MAX}"),
            )),
            true if queues.is_empty() => None,
            true => check_subscriptions(&queues)
                .err()
                .map(|why| Violation::field("set_capacity.queues", why)),
        };
        if let Some(fault) = fault {
            return self.close(Some(Error::InvalidArgument(vec![fault])), out);
        }
        self.window = max_in_flight;
        if !queues.is_empty() {
            self.hello.queues = queues;
        }
        self.unconfirmed = true;
        self.confirm(out);
    }

    /// Confirms a new window once no grant of the old one is under way.
    fn confirm(&mut self, out: &mut Vec<Action>) {
        if self.unconfirmed && self.reserved.is_empty() {
            self.unconfirmed = false;
            out.push(Action::Send(ServerMessage::CapacityApplied {
                max_in_flight: self.window,
                last_frame: self.next_frame - 1,
                goodbye: self.phase == SessionPhase::Leaving,
            }));
            out.push(Action::LookForJobs);
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        if now >= self.heard + self.ttl {
            return self.close(Some(Error::HeartbeatMissed), out);
        }
        if self.drain_at.is_some_and(|at| now >= at) {
            return self.close(Some(Error::Draining), out);
        }
        if self.is_stalled(now) {
            return self.close(Some(reading::stalled()), out);
        }
        self.renew_again(now, out);
        self.time_passed(now, out);
        self.find(now, out);
    }

    /// Before Welcome it is early: it is said again.
    fn ask_to_leave(&mut self, out: &mut Vec<Action>) {
        if self.phase == SessionPhase::Live && !self.asked_to_leave {
            self.asked_to_leave = true;
            out.push(Action::Send(ServerMessage::Leave));
        }
    }

    fn drain(&mut self, now: Duration, close_after: Duration, out: &mut Vec<Action>) {
        let at = now + close_after;
        if self.drain_at.is_none_or(|earlier| at < earlier) {
            self.drain_at = Some(at);
            let reason = "the node is leaving".to_owned();
            out.push(Action::Send(ServerMessage::Draining {
                close_after,
                reason,
            }));
        }
    }

    /// After Goodbye and the worker's half-close, the session ends as soon as every result has its receipt.
    fn finish_if_left(&mut self, out: &mut Vec<Action>) {
        let settled =
            self.recording.is_empty() && self.finding.is_empty() && self.reserved.is_empty();
        if self.half_closed && settled && self.phase != SessionPhase::Closed {
            if self.phase == SessionPhase::Leaving {
                out.push(Action::EndSession);
            }
            self.close(None, out);
        }
    }

    fn close(&mut self, error: Option<Error>, out: &mut Vec<Action>) {
        self.phase = SessionPhase::Closed;
        out.push(Action::Close(error));
    }
}
