//! The domain: what a job is, what may happen to it, and every bound. Pure: no I/O, no clock, no wire or row format.

pub mod attempt;
pub mod audit;
pub mod bulk;
pub mod draft;
pub mod flow;
pub mod id;
pub mod limits;
pub mod log;
pub mod queue;
pub mod retry;
pub mod state;
pub mod time;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

pub use attempt::{
    AttemptOutcome, AttemptRecord, Ending, Failure, HeldLease, Lease, Outcome, Progress,
    StaleReason, Standing, Verdict,
};
pub use audit::{Actor, AuditAction, AuditEvent, By};
pub use bulk::{BulkAction, BulkCounts, BulkId, BulkState, Canary, Stage};
pub use flow::{Flow, Rates, Step};
pub use id::{IdempotencyKey, JobId, Kind, NodeId, QueueName, SessionId, UniqueKey};
pub use log::{LogLevel, LogLine, NewLine, NewLines};
pub use queue::{Backoff, Defaultable, QueueChange, QueueDefaults, QueueSettings};
pub use retry::RetryPolicy;
pub use state::JobState;
pub use time::Timestamp;

/// Bytes that leasehold carries and never interprets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Payload {
    /// Media type, for people and handlers.
    pub content_type: String,
    /// The body.
    pub data: Bytes,
    /// It was given as text, and is given back so. Then `data` is UTF-8.
    pub is_text: bool,
}

/// Order of hand-out within a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum Priority {
    /// After everything else.
    Low = 1,
    /// The default.
    Normal = 2,
    /// Before everything else.
    High = 3,
}

impl Priority {
    /// All levels, in the order of hand-out.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The level of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.number() == number)
    }

    /// The level's one name: on the wire, in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "LOW",
            Self::Normal => "NORMAL",
            Self::High => "HIGH",
        }
    }
}

/// What the caller chose about a job, with all defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// The line it waits in.
    pub queue: QueueName,
    /// Which handler runs it.
    pub kind: Kind,
    /// Order within the queue.
    pub priority: Priority,
    /// Budget of failures, and the waits between.
    pub retry: RetryPolicy,
    /// Of one attempt, from hand-out; `None`: no limit.
    pub timeout: Option<Duration>,
    /// How long it is kept once it is final.
    pub retention: Duration,
    /// At most one job of the queue that is not final has it.
    pub unique_key: Option<UniqueKey>,
    /// To list and filter by.
    pub labels: BTreeMap<String, String>,
    /// For the worker, untouched.
    pub headers: BTreeMap<String, String>,
}

/// When a new job may run first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// So long after it was accepted.
    After(Duration),
    /// At this time; at once if it is past.
    At(Timestamp),
}

impl Start {
    /// When it may run first, of a job that is accepted `now`.
    pub fn of(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Now => now,
            Self::After(delay) => now.after(delay),
            Self::At(time) => time,
        }
    }
}

/// Until when a new job is worth beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// So long after it was accepted.
    After(Duration),
    /// Until this time.
    At(Timestamp),
}

impl Expiry {
    /// The time from which on a job that was accepted `now` is not begun any more.
    pub fn of(self, now: Timestamp) -> Timestamp {
        match self {
            Self::After(span) => now.after(span),
            Self::At(time) => time,
        }
    }
}

/// What becomes of a new job whose unique key is held by another one, which is not final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(i16)]
pub enum UniqueConflict {
    /// There is no new job; the answer is the one that is there.
    #[default]
    Keep = 1,
    /// It is refused.
    Refuse = 2,
    /// It takes the place of the one that is there, which is CANCELLED; but one that has begun is kept.
    Replace = 3,
}

impl UniqueConflict {
    const ALL: [Self; 3] = [Self::Keep, Self::Refuse, Self::Replace];

    /// What a number of the wire stands for, if for anything.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|it| *it as i32 == number)
    }

    /// What its name in JSON stands for, if for anything.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Its one name: on the wire, in JSON and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "KEEP",
            Self::Refuse => "REFUSE",
            Self::Replace => "REPLACE",
        }
    }
}

/// A job to accept. [`draft::Draft`] is the only way to make one from what a client sent.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Its identity, by the client or made for it.
    pub id: JobId,
    /// What it is about, in the caller's words.
    pub idempotency_key: Option<IdempotencyKey>,
    /// What it is.
    pub spec: JobSpec,
    /// What its handler gets.
    pub payload: Payload,
    /// When it may run first.
    pub start: Start,
    /// Until when it is worth beginning; `None`: for ever.
    pub expiry: Option<Expiry>,
    /// What is to be done if its unique key is held.
    pub unique_conflict: UniqueConflict,
    /// The job that it is a copy of.
    pub copied_from: Option<JobId>,
    /// What makes two requests under one id or key the same request: SHA-256 over the request's fields, those two aside.
    pub fingerprint: [u8; 32],
    /// What its request did not say, and its queue may have a default for.
    pub left_out: Defaultable,
}

impl NewJob {
    /// Bytes of its payload and words, as the bounds of a batch count them.
    pub fn size(&self) -> usize {
        let words = self.spec.labels.iter().chain(&self.spec.headers);
        let key = self
            .idempotency_key
            .as_ref()
            .map_or(0, |key| key.as_str().len());
        let unique = self.unique().map_or(0, |(_, key)| key.as_str().len());
        self.payload.data.len()
            + key
            + unique
            + words.map(|(k, v)| k.len() + v.len()).sum::<usize>()
    }

    /// Where its unique key is held by at most one.
    pub fn unique(&self) -> Option<(&QueueName, &UniqueKey)> {
        let key = self.spec.unique_key.as_ref()?;
        Some((&self.spec.queue, key))
    }

    /// When it expires if it is accepted `now`.
    pub fn expire_time(&self, now: Timestamp) -> Option<Timestamp> {
        self.expiry.map(|expiry| expiry.of(now))
    }

    /// Accepted `now`, it would expire before it could begin.
    pub fn expires_too_soon(&self, now: Timestamp) -> bool {
        let begins = self.start.of(now).max(now);
        self.expire_time(now).is_some_and(|end| end <= begins)
    }

    /// Where its idempotency key is the only one of its kind.
    pub fn key(&self) -> Option<(&QueueName, &IdempotencyKey)> {
        self.idempotency_key
            .as_ref()
            .map(|key| (&self.spec.queue, key))
    }
}

/// A job as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its identity.
    pub id: JobId,
    /// With which it was enqueued.
    pub idempotency_key: Option<IdempotencyKey>,
    /// What the caller chose.
    pub spec: JobSpec,
    /// What its handler gets. `None` in a basic view.
    pub payload: Option<Payload>,
    /// Where it is in its life.
    pub state: JobState,
    /// Grows by one at each change of state.
    pub revision: u64,
    /// Hand-outs so far.
    pub attempt: u32,
    /// Attempts that failed or timed out.
    pub failures: u32,
    /// Attempts whose worker was lost.
    pub lost_leases: u32,
    /// Attempts that were given back.
    pub releases: u32,
    /// What the handler returned. `None` in a basic view.
    pub output: Option<Payload>,
    /// Of the newest attempt that failed or timed out, or whose lost lease was one too many; of a job that is FAILED and
    /// never began, that it expired. `None` in a basic view.
    pub last_failure: Option<Failure>,
    /// Of the newest attempt that reported any. `None` in a basic view.
    pub progress: Option<Progress>,
    /// Name of the worker that has it, or had it last; empty before the first hand-out.
    pub worker: String,
    /// It is CANCELLED because this job took over its unique key.
    pub replaced_by: Option<JobId>,
    /// It was made as a copy of this job.
    pub copied_from: Option<JobId>,
    /// When it was accepted.
    pub create_time: Timestamp,
    /// When it is, or was, due.
    pub run_time: Timestamp,
    /// If it has not begun by then, it never does. `None`: no time is too late.
    pub expire_time: Option<Timestamp>,
    /// When the current or last attempt was handed out.
    pub start_time: Option<Timestamp>,
    /// When it became final.
    pub finish_time: Option<Timestamp>,
    /// When it will be forgotten.
    pub purge_time: Option<Timestamp>,
    /// Attempts that did not succeed, oldest first, the last [`limits::ATTEMPTS_SHOWN`]. Empty in a basic view.
    pub attempts: Vec<AttemptRecord>,
    /// Lines that its attempts have said, with those that were dropped. 0 in a basic view.
    pub lines_said: u64,
    /// Its log. Stores leave it out; the engine adds it for who asks for one job. `None`: it was not read.
    pub log: Option<Vec<LogLine>>,
}

impl Job {
    /// The job that comes to life when `new` is accepted; its revision is 1. As in a basic view, it has no payload.
    pub fn accepted(
        new: &NewJob,
        state: JobState,
        create_time: Timestamp,
        run_time: Timestamp,
    ) -> Self {
        Self {
            id: new.id,
            idempotency_key: new.idempotency_key.clone(),
            spec: new.spec.clone(),
            payload: None,
            state,
            revision: 1,
            attempt: 0,
            failures: 0,
            lost_leases: 0,
            releases: 0,
            output: None,
            last_failure: None,
            progress: None,
            worker: String::new(),
            replaced_by: None,
            copied_from: new.copied_from,
            create_time,
            run_time,
            expire_time: new.expire_time(create_time),
            start_time: None,
            finish_time: None,
            purge_time: None,
            attempts: Vec::new(),
            lines_said: 0,
            log: None,
        }
    }

    /// Lines that are not in the log that was read: older than what it holds, or never said.
    pub fn log_dropped(&self) -> u64 {
        let shown = self.log.as_ref().map(|lines| lines.len() as u64);
        shown.map_or(0, |shown| self.lines_said.saturating_sub(shown))
    }

    /// Makes way, `now`, for the job that takes over its unique key.
    pub fn make_way(&mut self, by: JobId, now: Timestamp) {
        let kept = now.after(self.spec.retention);
        self.state = JobState::Cancelled;
        self.revision += 1;
        self.replaced_by = Some(by);
        self.finish_time = Some(now);
        self.purge_time = Some(kept.max(self.create_time.after(limits::ROW_AGE_MIN)));
    }

    /// Why it is FAILED though none of its attempts says so: it never began.
    pub fn failed_unbegun(&self) -> Option<Failure> {
        (self.state == JobState::Failed && self.attempt == 0).then(Failure::expired)
    }
}

/// A job that was handed out, as its worker gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct LeasedJob {
    /// The right to run it.
    pub lease: Lease,
    /// The line it waited in.
    pub queue: QueueName,
    /// Which handler runs it.
    pub kind: Kind,
    /// What the handler gets.
    pub payload: Payload,
    /// For the handler, untouched.
    pub headers: BTreeMap<String, String>,
    /// Its level.
    pub priority: Priority,
    /// Attempts that failed before.
    pub failures: u32,
    /// How many may.
    pub max_attempts: u32,
    /// Attempts whose worker was lost before.
    pub lost_leases: u32,
    /// Attempts that were given back before.
    pub releases: u32,
    /// Until this attempt's timeout, at the time of the grant; `None`: it has none.
    pub time_left: Option<Duration>,
    /// Since it was due, at the time of the grant.
    pub waited: Duration,
    /// The newest checkpoint that was recorded of this job.
    pub checkpoint: Option<Bytes>,
    /// Revision of the newest report on this job; 0: there is none.
    pub progress_revision: u64,
    /// It is pushed again under the same lease, because its worker does not seem to have it.
    pub resent: bool,
}

impl LeasedJob {
    /// About how many bytes it takes in a frame.
    pub fn size(&self) -> usize {
        let words: usize = self
            .headers
            .iter()
            .map(|(k, v)| k.len() + v.len() + 8)
            .sum();
        let checkpoint = self.checkpoint.as_ref().map_or(0, Bytes::len);
        self.payload.data.len() + self.payload.content_type.len() + checkpoint + words + 400
    }
}

/// How much of a job is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// No payload, output, last failure, progress, attempts or log.
    #[default]
    Basic,
    /// A basic view with the progress, its checkpoint aside: what is told of a job while it is watched.
    Progress,
    /// Everything.
    Full,
}
