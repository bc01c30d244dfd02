//! One worker's session, as a pure state machine: an event goes in with the time, actions come out. It does no I/O and
//! knows no clock, so that a model checker can drive the very code that runs.
//!
//! ```text
//! Hello ─> Opening ─opened─> Live ─ Goodbye ─> Leaving ─ half-close, all recorded ─> Closed
//!                              └─ drain, silence, lost session, fault ─────────────> Closed
//! ```
//!
//! The loss of the stream is not an event of the lease: whoever drives the session drops it, and its leases live on in
//! the store until their time is over.

pub mod held;
pub mod message;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, Limit, Violation};
use crate::job::limits::{BATCH_MAX, FRAME_BYTES, HEARTBEATS_PER_TTL, HELD_MAX, WINDOW_MAX};
use crate::job::{AttemptOutcome, Lease, LeasedJob, Outcome, QueueName, Verdict};
use held::{Ended, Held, Phase};
use message::{
    CancelReason, ClientMessage, Hello, Reported, ServerMessage, Subscription, Welcome,
    check_subscriptions,
};

/// After a verdict on a timeout could not be had, how long until it is asked again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);
/// Results of one worker that are being recorded at once; more are to be sent again later.
const RECORDING_MAX: usize = HELD_MAX;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The store has the session: it is alive, under this identity.
    Opened(Box<Welcome>),
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
    /// The store says that the session is dead or has moved.
    SessionLost,
    /// Verdicts on results of the worker.
    Verdicts(Vec<(Lease, Verdict)>),
    /// These results of the worker could not be recorded now; it will send them again.
    RecordFailed(Vec<Lease>),
    /// Whether the store has judged the timeout that this session asked for; `false`: it could not be asked.
    TimeoutRecorded(Lease, bool),
    /// The job of this lease was cancelled.
    Cancel(Lease),
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
    /// Record how attempts ended, as the worker said; answer with `Verdicts` or `RecordFailed`.
    Record(Vec<(Lease, Outcome)>),
    /// Record that an attempt's time is over; answer with `TimeoutRecorded`.
    RecordTimeout(Lease),
    /// Slots may be free: look for jobs.
    LookForJobs,
    /// An end of an attempt is recorded: count it.
    Ended(Ended),
    /// Drop the session in the store: its worker has left in order.
    EndSession,
    /// End the stream; `None`: OK. Nothing follows.
    Close(Option<Error>),
}

/// One worker's session.
#[derive(Debug)]
pub struct Session {
    hello: Hello,
    ttl: Duration,
    phase: SessionPhase,
    held: Held,
    /// Slots that are promised to grants under way, by queue.
    reserved: Vec<QueueName>,
    window: u32,
    next_frame: u64,
    heard: Duration,
    drain_at: Option<Duration>,
    /// A new window or a Goodbye, to be confirmed when the grants under way have come.
    unconfirmed: bool,
    renewing: Option<u64>,
    renew_next: Option<u64>,
    recording: usize,
    /// Leases that the last heartbeat listed and that are not ours.
    strangers: BTreeSet<Lease>,
    /// Cancels that came before their lease did.
    early_cancels: BTreeSet<Lease>,
    /// Timeouts that could not be recorded, and when to try again.
    unrecorded: BTreeSet<(Duration, Lease)>,
    half_closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
            reserved: Vec::new(),
            next_frame: 1,
            heard: now,
            drain_at: None,
            unconfirmed: false,
            renewing: None,
            renew_next: None,
            recording: 0,
            strangers: BTreeSet::new(),
            early_cancels: BTreeSet::new(),
            unrecorded: BTreeSet::new(),
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

    /// Jobs pushed and not finished, for metrics.
    pub fn in_flight(&self) -> u32 {
        self.held.in_flight()
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn deadline(&self) -> Duration {
        let silence = self.heard + self.ttl;
        let again = self.unrecorded.first().map(|(at, _)| *at);
        [self.drain_at, self.held.next_timeout(), again]
            .into_iter()
            .flatten()
            .fold(silence, Duration::min)
    }

    /// How many jobs of `queue` it can take now. None when the worker was not heard from within two heartbeats: it may
    /// be gone already.
    pub fn free(&self, now: Duration, queue: &QueueName) -> u32 {
        let open = self.phase == SessionPhase::Live && self.drain_at.is_none() && !self.unconfirmed;
        let lively = now.saturating_sub(self.heard) <= 2 * self.heartbeat_interval();
        let Some(subscription) = self
            .hello
            .queues
            .iter()
            .find(|s| s.queue == *queue)
            .filter(|_| open && lively)
        else {
            return 0;
        };
        let reserved = u32::try_from(self.reserved.len()).unwrap_or(u32::MAX);
        let of_queue =
            u32::try_from(self.reserved.iter().filter(|q| *q == queue).count()).unwrap_or(u32::MAX);
        let free = self
            .window
            .saturating_sub(self.held.in_flight())
            .saturating_sub(reserved);
        match subscription.max_in_flight {
            None => free,
            Some(max) => free.min(
                max.saturating_sub(self.held.in_flight_of(queue))
                    .saturating_sub(of_queue),
            ),
        }
    }

    /// Promises a slot to a grant. It is paid back by [`Event::Granted`].
    pub fn reserve(&mut self, now: Duration, queue: &QueueName) -> bool {
        let free = self.free(now, queue) > 0;
        if free {
            self.reserved.push(queue.clone());
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
            Event::Frame(message) => self.frame(now, message, out),
            Event::Granted { jobs, missed } => self.granted(now, jobs, &missed, out),
            Event::Renewed => self.renewed(out),
            Event::RenewFailed => self.renewing = None,
            Event::SessionLost => self.lost(out),
            Event::Verdicts(verdicts) => self.verdicts(now, verdicts, out),
            Event::RecordFailed(leases) => {
                self.recording = self.recording.saturating_sub(leases.len())
            }
            Event::TimeoutRecorded(lease, recorded) => {
                self.timeout_recorded(now, lease, recorded, out)
            }
            Event::Cancel(lease) => self.cancel(lease, out),
            Event::Drain(close_after) => self.drain(now, close_after, out),
            Event::HalfClosed => self.half_closed = true,
            Event::Tick => self.tick(now, out),
        }
        self.finish_if_left(out);
        actions
    }

    fn opened(&mut self, welcome: Welcome, out: &mut Vec<Action>) {
        self.phase = SessionPhase::Live;
        out.push(Action::Send(ServerMessage::Welcome(Box::new(welcome))));
        out.push(Action::LookForJobs);
    }

    fn frame(&mut self, now: Duration, message: ClientMessage, out: &mut Vec<Action>) {
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
            ClientMessage::Heartbeat { sequence, held, .. } => self.heartbeat(sequence, &held, out),
            ClientMessage::Results(results) => self.results(results, out),
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

    fn heartbeat(&mut self, sequence: u64, held: &[Lease], out: &mut Vec<Action>) {
        if held.len() > HELD_MAX {
            let fault = Violation::field("heartbeat.held", format!("must be at most {HELD_MAX}"));
            return self.close(Some(Error::InvalidArgument(vec![fault])), out);
        }
        // A receipt may have crossed with this list, so only what is listed twice in a row is called lost.
        let strangers: BTreeSet<Lease> = held
            .iter()
            .copied()
            .filter(|l| self.held.phase(*l).is_none())
            .collect();
        let lost: Vec<Lease> = strangers.intersection(&self.strangers).copied().collect();
        self.strangers = strangers;
        if !lost.is_empty() {
            out.push(Action::Send(ServerMessage::Lost(lost)));
        }
        // At most one renewal is under way and one waits, however many heartbeats a peer sends.
        match self.renewing {
            None => {
                self.renewing = Some(sequence);
                out.push(Action::Renew);
            }
            Some(_) => self.renew_next = Some(sequence),
        }
        // The worker may have been silent for so long that it got no jobs.
        out.push(Action::LookForJobs);
    }

    fn renewed(&mut self, out: &mut Vec<Action>) {
        if let Some(sequence) = self.renewing.take() {
            out.push(Action::Send(ServerMessage::HeartbeatAck {
                sequence,
                lease_ttl: self.ttl,
            }));
        }
        if let Some(sequence) = self.renew_next.take() {
            self.renewing = Some(sequence);
            out.push(Action::Renew);
        }
    }

    fn results(&mut self, results: Vec<(Lease, Reported)>, out: &mut Vec<Action>) {
        if results.len() > BATCH_MAX {
            let fault = Violation::field("results.results", format!("must be at most {BATCH_MAX}"));
            return self.close(Some(Error::InvalidArgument(vec![fault])), out);
        }
        if self.recording + results.len() > RECORDING_MAX {
            let error = Error::LimitReached {
                limit: Limit::Busy,
                retry_after: RECORD_AGAIN,
            };
            return self.close(Some(error), out);
        }
        let mut record = Vec::new();
        let mut refused = Vec::new();
        for (lease, reported) in results {
            match (reported, self.held.phase(lease)) {
                (Reported::Ended(outcome), _) => record.push((lease, outcome)),
                (Reported::Unacceptable(violation), _) => {
                    // The lease stands, with its slot and its timeout, until another outcome comes.
                    refused.push((lease, Verdict::Rejected(violation)));
                    continue;
                }
                // Nobody runs it any more and nobody told the worker to stop it: then it is given back.
                (Reported::Stopped, Some(Phase::Running)) => {
                    let reason = "STOPPED".to_owned();
                    record.push((
                        lease,
                        Outcome::Release {
                            delay: Duration::ZERO,
                            reason,
                        },
                    ));
                }
                (Reported::Stopped, Some(Phase::Stopping)) => self.held.remove(lease),
                (Reported::Stopped, _) => {}
            }
        }
        for (lease, outcome) in &record {
            self.held.report(*lease, ending(outcome));
        }
        if !record.is_empty() {
            self.recording += record.len();
            out.push(Action::Record(record));
        }
        if !refused.is_empty() {
            out.push(Action::Send(ServerMessage::Receipts(refused)));
        }
        out.push(Action::LookForJobs);
    }

    fn verdicts(&mut self, now: Duration, verdicts: Vec<(Lease, Verdict)>, out: &mut Vec<Action>) {
        self.recording = self.recording.saturating_sub(verdicts.len());
        for (lease, verdict) in &verdicts {
            if matches!(verdict, Verdict::Recorded(_)) {
                out.extend(self.held.ended(now, *lease, None).map(Action::Ended));
            }
            if !matches!(verdict, Verdict::Rejected(_)) {
                self.held.remove(*lease);
            }
        }
        out.push(Action::Send(ServerMessage::Receipts(verdicts)));
    }

    fn granted(
        &mut self,
        now: Duration,
        jobs: Vec<LeasedJob>,
        missed: &[QueueName],
        out: &mut Vec<Action>,
    ) {
        for queue in missed.iter().chain(jobs.iter().map(|job| &job.queue)) {
            if let Some(at) = self.reserved.iter().position(|reserved| reserved == queue) {
                self.reserved.swap_remove(at);
            }
        }
        let mut cancels = Vec::new();
        for job in &jobs {
            self.held.push(now, job);
            if self.early_cancels.remove(&job.lease) && self.held.stop(job.lease) {
                cancels.push((job.lease, CancelReason::Requested));
            }
        }
        for jobs in frames(jobs, (self.hello.max_frame_bytes as usize).min(FRAME_BYTES)) {
            out.push(Action::Send(ServerMessage::Jobs {
                frame: self.next_frame,
                jobs,
            }));
            self.next_frame += 1;
        }
        if !cancels.is_empty() {
            out.push(Action::Send(ServerMessage::Cancels(cancels)));
        }
        if self.reserved.is_empty() {
            self.early_cancels.clear();
        }
        self.confirm(out);
        if !missed.is_empty() {
            out.push(Action::LookForJobs);
        }
    }

    fn cancel(&mut self, lease: Lease, out: &mut Vec<Action>) {
        if self.held.stop(lease) {
            out.push(Action::Send(ServerMessage::Cancels(vec![(
                lease,
                CancelReason::Requested,
            )])));
        } else if self.held.phase(lease).is_none() && self.early_cancels.len() < self.reserved.len()
        {
            // Its grant may be under way: no Cancels comes before its Jobs frame.
            self.early_cancels.insert(lease);
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        if now >= self.heard + self.ttl {
            return self.close(Some(Error::HeartbeatMissed), out);
        }
        if self.drain_at.is_some_and(|at| now >= at) {
            return self.close(Some(Error::Draining), out);
        }
        while let Some((at, lease)) = self
            .unrecorded
            .first()
            .copied()
            .filter(|(at, _)| *at <= now)
        {
            self.unrecorded.remove(&(at, lease));
            out.push(Action::RecordTimeout(lease));
        }
        let mut cancels = Vec::new();
        for lease in self.held.timed_out(now) {
            if self.held.stop(lease) {
                cancels.push((lease, CancelReason::Timeout));
                out.push(Action::RecordTimeout(lease));
            }
        }
        if !cancels.is_empty() {
            out.push(Action::Send(ServerMessage::Cancels(cancels)));
        }
    }

    fn timeout_recorded(
        &mut self,
        now: Duration,
        lease: Lease,
        recorded: bool,
        out: &mut Vec<Action>,
    ) {
        match recorded {
            true => out.extend(
                self.held
                    .ended(now, lease, Some(AttemptOutcome::TimedOut))
                    .map(Action::Ended),
            ),
            false => drop(self.unrecorded.insert((now + RECORD_AGAIN, lease))),
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

    fn lost(&mut self, out: &mut Vec<Action>) {
        let all = self.held.all();
        if !all.is_empty() {
            out.push(Action::Send(ServerMessage::Lost(all)));
        }
        self.close(Some(Error::HeartbeatMissed), out);
    }

    /// After Goodbye and the worker's half-close, the session ends as soon as every result has its receipt.
    fn finish_if_left(&mut self, out: &mut Vec<Action>) {
        let settled = self.recording == 0 && self.reserved.is_empty();
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

fn ending(outcome: &Outcome) -> AttemptOutcome {
    match outcome {
        Outcome::Success(_) => AttemptOutcome::Succeeded,
        Outcome::Failure(_) => AttemptOutcome::Failed,
        Outcome::TimedOut => AttemptOutcome::TimedOut,
        Outcome::Release { .. } => AttemptOutcome::Released,
    }
}

/// Cuts jobs into frames of at most `bytes`; a larger job goes alone.
fn frames(jobs: Vec<LeasedJob>, bytes: usize) -> Vec<Vec<LeasedJob>> {
    let mut frames: Vec<Vec<LeasedJob>> = Vec::new();
    let mut filled = 0;
    for job in jobs {
        let size = job.size();
        match frames.last_mut() {
            Some(frame) if filled + size <= bytes && frame.len() < BATCH_MAX => {
                filled += size;
                frame.push(job);
            }
            _ => {
                filled = size;
                frames.push(vec![job]);
            }
        }
    }
    frames
}
