//! The truth: every job, session and log of batches, behind one trait.
//!
//! Each verb takes a batch and answers per item in the same order. Each is one atomic unit that may be repeated, and
//! none can be left half done: whoever drops the future of a call drops only the answer, because the engine reaches a
//! store through [`observed`], which runs each call in a task of its own (I10). Time goes in as durations; moments come
//! out, by the store's own clock.

mod bulk;
mod known;
mod list;
mod node;
pub mod observed;
mod place;
pub mod postgres;
mod queue;
mod session;
pub mod sqlite;
mod worker;

pub use bulk::{Bulk, BulkStep, ClaimedBulk, NewBulk, Started};
pub use list::{JobFilter, JobPage};
pub use node::{Draining, Drains, NodeReport, NodeView};
pub use queue::{AllSettings, QueueView, Steer, Steered};
pub use session::{Attach, Attached, Attaching, NewSession, SessionState};
pub use worker::{
    QueueSlots, RunningJob, SessionPage, SessionProfile, SessionReport, SessionRuns, SessionSlots,
    SessionView,
};

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::error::Result;
use crate::job::{
    AuditEvent, BulkId, By, Ending, Flow, HeldLease, Job, JobId, JobState, Lease, LeasedJob,
    LogLine, NewJob, NewLines, NodeId, Priority, Progress, QueueName, SessionId, Start, Timestamp,
    Verdict, View,
};

/// One line of hand-out: a queue at one priority. The ready-list has a stream for each, the backlog its segments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// The queue.
    pub queue: QueueName,
    /// The level.
    pub priority: Priority,
}

/// Jobs of one line that became QUEUED together: a row of the backlog. Whatever makes jobs QUEUED returns the segments
/// it wrote, and the caller offers them to the ready-list; if it dies before, reconcile finds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The row's number.
    pub id: i64,
    /// Where the jobs wait.
    pub line: Line,
    /// The jobs, in the order of hand-out. A pointer, never a fact: any of them may have moved on.
    pub jobs: Vec<JobId>,
}

/// Which incarnation of the ready-list a segment was offered to. A new one holds nothing of the old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub Uuid);

/// Place in a line of the ready-list; a later entry is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds, by the ready-list's clock.
    pub ms: u64,
    /// Count within the millisecond.
    pub seq: u64,
}

/// Where a segment stands in the ready-list: its last job's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The segment.
    pub segment: i64,
    /// Incarnation of the ready-list.
    pub epoch: Epoch,
    /// Entry of the segment's last job.
    pub last: EntryId,
}

/// What belongs together in an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Calls of different callers: each job stands alone.
    Each,
    /// One caller's batch: one conflict, or one id that is out of its time, and none is accepted.
    All,
}

/// Answer to one job of an enqueue.
#[derive(Debug, Clone, PartialEq)]
pub enum Enqueued {
    /// It is durable now. A basic view.
    Created(Job),
    /// The same request was accepted before, under this id or, with its idempotency key, under another; or another one
    /// holds its unique key, and is kept. The job as it is now. A basic view.
    Existed(Job),
    /// The id names a job of another request, or of one with another idempotency key, or one that was deleted.
    Conflict,
    /// The idempotency key is that of this job, which was another request.
    KeyConflict(JobId),
    /// The unique key is held by this job, and was not to be had.
    UniqueConflict(JobId),
    /// The id's own time is more than an hour ago, or minutes ahead, and there is no such job (any more).
    IdOutOfTime,
    /// `run_time` is further ahead than the bound.
    StartTooFar,
    /// It would expire before it could begin.
    ExpiresTooSoon,
    /// Only for [`Unit::All`]: nothing is wrong with this one, but another was refused.
    NotTried,
}

impl Enqueued {
    /// Something is wrong with this very one.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Created(_) | Self::Existed(_) | Self::NotTried => false,
            Self::Conflict
            | Self::KeyConflict(_)
            | Self::UniqueConflict(_)
            | Self::IdOutOfTime
            | Self::StartTooFar
            | Self::ExpiresTooSoon => true,
        }
    }
}

/// What an enqueue did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnqueueAnswer {
    /// One a job, in order.
    pub jobs: Vec<Enqueued>,
    /// What to offer.
    pub segments: Vec<Segment>,
}

/// How new what is known of a job is: as long as it stays the same, nothing has changed that a caller sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The job's revision.
    pub revision: u64,
    /// The revision of its progress; 0: it has none.
    pub progress: u64,
    /// Lines that its attempts have said.
    pub lines: u64,
}

impl Version {
    /// Of a job in a view that shows its progress.
    pub fn of(job: &Job) -> Self {
        Self {
            revision: job.revision,
            progress: job.progress.as_ref().map_or(0, |p| p.revision),
            lines: job.lines_said,
        }
    }

    /// The same, whatever has been said.
    pub fn but_for_lines(self) -> Self {
        Self { lines: 0, ..self }
    }
}

/// Answer to a cancel.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// It is CANCELLED now. With the lease it was running under, if it was; the store has left a signal for the node
    /// that has the session. A basic view.
    Done(Job, Option<(Lease, SessionId)>),
    /// It was CANCELLED before. A basic view.
    Already(Job),
    /// Its state does not allow it.
    WrongState(JobState),
    /// There is no such job.
    NotFound,
}

/// Answer to a retry by hand.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one is made a call")]
pub enum Retried {
    /// It is QUEUED or SCHEDULED now. A basic view, and what to offer.
    Done(Job, Vec<Segment>),
    /// This job holds its unique key.
    KeyHeld(JobId),
    /// Its state does not allow it.
    WrongState(JobState),
    /// There is no such job.
    NotFound,
}

/// Answer to a change of a job that waits.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one is made a call")]
pub enum Rescheduled {
    /// It is as was asked for. A basic view, and what to offer.
    Done(Job, Vec<Segment>),
    /// Its state does not allow it.
    WrongState(JobState),
    /// There is no such job.
    NotFound,
    /// The time is further ahead than the bound.
    StartTooFar,
    /// It would expire before it could begin.
    ExpiresTooSoon,
}

/// Answer to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone now.
    Done,
    /// Its state does not allow it.
    WrongState(JobState),
    /// There is no such job.
    NotFound,
}

/// Asks that a job be handed to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// A hint: which job.
    pub job: JobId,
    /// Who is to have it.
    pub to: Attached,
}

/// Answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq)]
pub enum Granted {
    /// RUNNING, durably, under a new lease.
    Lease(Box<LeasedJob>),
    /// Seen not QUEUED, or gone: the hint is spent.
    NotQueued,
    /// Somebody else had the row locked: nothing is known, the hint stays.
    Locked,
    /// The session is not [`SessionState::Alive`], but this: the hint stays.
    Refused(SessionState),
}

/// Answer to the question for the job of a lease.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// It is RUNNING under this lease.
    Job(Box<LeasedJob>),
    /// It is not, or not any more.
    NotHeld,
    /// The bytes of one answer are used up: to be asked again.
    Later,
}

/// What a call that records endings did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FinishAnswer {
    /// One an ending, in order.
    pub verdicts: Vec<Verdict>,
    /// What became QUEUED by it, to offer.
    pub segments: Vec<Segment>,
}

/// What a worker says of an attempt that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The attempt.
    pub lease: Lease,
    /// The session that claims to hold it.
    pub session: SessionId,
    /// What it has come to.
    pub progress: Progress,
}

/// What a worker's attempt has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogReport {
    /// The attempt.
    pub lease: Lease,
    /// The session that claims to have it.
    pub session: SessionId,
    /// The lines.
    pub lines: NewLines,
}

impl LogReport {
    /// One a lease and session, with the lines of all.
    pub fn merged(reports: &[Self]) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::with_capacity(reports.len());
        let mut places = std::collections::HashMap::with_capacity(reports.len());
        for report in reports {
            let place = *places
                .entry((report.lease, report.session))
                .or_insert(merged.len());
            match merged.get_mut(place) {
                Some(one) => one.lines = one.lines.clone().joined(&report.lines),
                None => merged.push(report.clone()),
            }
        }
        merged
    }
}

/// What one bounded step of a sweep did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Swept {
    /// Rows that it changed.
    pub changed: u64,
    /// It stopped at its bound: there is more to do at once.
    pub more: bool,
    /// What became QUEUED by it, to offer.
    pub segments: Vec<Segment>,
}

/// What one step of the expiry of leases did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expired {
    /// Sessions that were marked dead by it.
    pub sessions: u64,
    /// Jobs that were taken back: each is a lost lease.
    pub jobs: u64,
    /// Of these, the ones that are FAILED now, because they lost too many.
    pub failed: u64,
    /// There is more to do at once.
    pub more: bool,
    /// What became QUEUED by it, to offer.
    pub segments: Vec<Segment>,
}

/// What one node tells the others through the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// The row's number. They commit out of order: readers look at a window and drop what they have seen.
    pub id: i64,
    /// The attempt whose job was cancelled.
    pub lease: Lease,
    /// The session that has it.
    pub session: SessionId,
}

/// What is known of a job beside itself, for people who ask why it waits or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// What the store's clock says.
    pub now: Timestamp,
    /// Of a QUEUED job.
    pub ahead: Option<Ahead>,
    /// Of a RUNNING job: when its lease is over, unless it is renewed.
    pub lease_until: Option<Timestamp>,
    /// Nobody's lease is taken before: the store, or all nodes, had been away.
    pub grace_until: Timestamp,
}

/// Jobs of a job's queue that are to be handed out before it: of higher levels, or earlier in its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// As many were counted.
    pub jobs: usize,
    /// The count came to its bound: there may be more.
    pub more: bool,
}

/// The numbers of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// The queue.
    pub queue: QueueName,
    /// Jobs in each state, in the order of [`JobState::ALL`]. Counted from deltas, not by a scan.
    pub counts: [u64; 6],
    /// How long the oldest segment of its backlog has waited.
    pub oldest_wait: Option<Duration>,
}

/// The truth. See the module's page for what all verbs have in common.
///
/// Errors of every verb: `Unavailable` when the store is away or too busy, `OutcomeUnknown` when the connection was lost
/// while a write was being committed, `Internal` for our own bugs. Bounds are the caller's: a batch has at most
/// [`crate::job::limits::BATCH_MAX`] items.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Brings the schema to this binary's version; safe to run from many nodes at once. A newer schema is
    /// refused, and left as it is.
    async fn migrate(&self) -> Result<MigrationReport>;
    /// Says what [`Store::migrate`] would do. Of a newer schema it says its version.
    async fn pending_migrations(&self) -> Result<MigrationReport>;
    /// One cheap round trip. The answer names the server and its version.
    async fn ping(&self) -> Result<String>;
    /// What its clock says: one cheap round trip.
    async fn now(&self) -> Result<Timestamp>;

    /// Accepts jobs, durably. One id, or one idempotency key of a queue, twice in a
    /// batch is one job (the second: `Existed` or a conflict). Of one unique key twice in a batch, the second finds it held
    /// by the first.
    async fn enqueue(&self, jobs: std::sync::Arc<[NewJob]>, unit: Unit) -> Result<EnqueueAnswer>;
    /// Reads jobs; `None` where there is none.
    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<Vec<Option<Job>>>;
    /// How new jobs are; `None` where there is none. Far cheaper than to read them.
    async fn versions(&self, ids: Vec<JobId>) -> Result<Vec<Option<Version>>>;
    /// Where a job is: its place in line is counted up to about `limit`. Of a job that is not there, what time it is.
    async fn whereabouts(&self, job: JobId, limit: usize) -> Result<Whereabouts>;
    /// Lists jobs below `before`, newest first. Looks at a bounded number of rows.
    async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        size: usize,
        view: View,
    ) -> Result<JobPage>;
    /// Cancels a job that is not final. The audit has it if somebody says who he is: programs that cancel thousands of
    /// their own jobs leave the room there to people.
    async fn cancel(&self, job: JobId, by: By) -> Result<Cancelled>;
    /// Brings a FAILED or CANCELLED job back, due after `delay`. Its expire time does not count any more. Of the audit the same holds.
    async fn retry(&self, job: JobId, delay: Duration, by: By) -> Result<Retried>;

    /// Gives a SCHEDULED or QUEUED job another time. One that is QUEUED and due at once keeps its place.
    async fn reschedule(&self, job: JobId, start: Start, by: By) -> Result<Rescheduled>;
    /// Gives a SCHEDULED or QUEUED job another priority. One that is QUEUED goes to the end of that line; the hint in its old
    /// line is worth no less than before, and may still hand it out.
    async fn set_priority(&self, job: JobId, priority: Priority, by: By) -> Result<Rescheduled>;
    /// Deletes a final job: with all that it holds, its keys too. Its id stays taken for as long as it could be sent once
    /// more; [`Store::retain`] frees it then.
    async fn delete(&self, job: JobId, by: By) -> Result<Deleted>;

    /// Makes a session, alive for its TTL from now, attached once.
    async fn open_session(&self, session: NewSession) -> Result<()>;
    /// Moves sessions to new streams and renews them, if they are alive and the attach number is higher than the last.
    /// Waits for grants to them that are under way.
    async fn attach(&self, attaches: Vec<Attach>) -> Result<Vec<Attaching>>;
    /// Renews sessions for their TTL from now: `Alive`, or why not. `Moved` and `Dead` stay so; `Lapsed` could not be
    /// renewed now, as somebody has its row: to be tried again; `Behind` is to be attached again.
    async fn renew(&self, sessions: Vec<Attached>) -> Result<Vec<SessionState>>;
    /// The leases of sessions that were granted at least `age` ago; `None`: it is dead, gone or has moved.
    async fn leases(
        &self,
        sessions: Vec<Attached>,
        age: Duration,
    ) -> Result<Vec<Option<Vec<HeldLease>>>>;
    /// The lease under which each job is RUNNING for that session; `None`: it is not.
    async fn running(&self, jobs: Vec<(JobId, SessionId)>) -> Result<Vec<Option<HeldLease>>>;
    /// Reads jobs by their leases, to be pushed again. Once [`crate::job::limits::GRANT_BYTES_MAX`] of payload are read,
    /// the rest is answered `Later`.
    async fn leased(&self, leases: Vec<(Lease, SessionId)>) -> Result<Vec<Found>>;
    /// Ends sessions: what they still have RUNNING is a lost lease, at once instead of after the TTL.
    async fn close_sessions(&self, sessions: Vec<Attached>) -> Result<()>;

    /// Hands jobs out: each QUEUED one becomes RUNNING, attempt + 1, if its session is alive under that attach number. One
    /// that has expired without having begun is answered `NotQueued`.
    /// Once [`crate::job::limits::GRANT_BYTES_MAX`] of payload are handed out, the rest is answered `Locked`.
    async fn grant(&self, node: NodeId, asks: Vec<Ask>) -> Result<Vec<Granted>>;
    /// Records how attempts ended, fenced by job, attempt and session (I2, I4).
    async fn finish(&self, endings: Vec<Ending>) -> Result<FinishAnswer>;

    /// Records what running attempts have come to, under the same fence; a report whose revision is not above the
    /// newest one's changes nothing, and is `Recorded` all the same.
    async fn report(&self, reports: Vec<Report>) -> Result<Vec<Verdict>>;

    /// Records what attempts say: after the lines that are known of them, under the fence of
    /// [`crate::job::Standing::may_log`]. Of each job the newest [`crate::job::limits::LOG_LINES_MAX`] lines are kept, and
    /// [`crate::job::limits::LOG_BYTES_MAX`] of their words.
    async fn log(&self, reports: Vec<LogReport>) -> Result<Vec<Verdict>>;
    /// The logs of jobs, of each the lines above a number, oldest first; at most
    /// [`crate::job::limits::LOGS_READ_MAX`] jobs.
    async fn lines(&self, after: Vec<(JobId, u64)>) -> Result<Vec<Vec<LogLine>>>;

    /// Remembers where segments stand in the ready-list.
    async fn offered(&self, offers: Vec<Offer>) -> Result<()>;
    /// Takes, oldest first, segments older than `age` that are not known to be offered under `epoch` (nor by somebody
    /// who took them within `claim`), trimmed to their jobs that are QUEUED. What has none is dropped on the way.
    async fn unoffered(
        &self,
        epoch: Epoch,
        age: Duration,
        claim: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>>;
    /// Takes, oldest first, segments of `line` that were offered under `epoch` with their last entry below `first`
    /// (`None`: the line is empty), at least `age` ago, and still have QUEUED jobs, trimmed to those: their hints are
    /// lost. They count as not offered until [`Store::offered`] says where they are. A loan goes on.
    async fn lost_offers(
        &self,
        epoch: Epoch,
        line: Line,
        first: Option<EntryId>,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>>;
    /// Lends segments of these lines to one caller for `claim`, trimmed to their QUEUED jobs: hand-out without a
    /// ready-list. The queues take turns, and each begins with its most urgent and oldest.
    async fn claim(&self, lines: Vec<Line>, claim: Duration, limit: usize) -> Result<Vec<Segment>>;

    /// Makes SCHEDULED jobs QUEUED whose time has come.
    async fn promote(&self, limit: usize) -> Result<Swept>;
    /// Makes jobs FAILED whose expire time has come and that have not begun. `changed` also counts those that have begun,
    /// and of which it forgets that they could expire.
    async fn expire_jobs(&self, limit: usize) -> Result<Swept>;
    /// Shows that somebody is alive; by the gaps between these touches the store knows when it, or everybody, was away.
    async fn touch_pulse(&self) -> Result<()>;
    /// Ends sessions that were not renewed and takes their jobs back, unless it is a time of grace after an outage.
    async fn expire(&self, limit: usize) -> Result<Expired>;
    /// Removes final jobs whose purge time is past.
    async fn retain(&self, limit: usize) -> Result<Swept>;
    /// Drops log rows (backlog, grants, finished, signals, sessions' remains) that point at nothing any more, what is set
    /// of queues but says nothing, what bulks have left, nodes that are gone, the oldest of the audit and of what went on, and
    /// sums up the deltas of the counters.
    async fn tidy(&self, limit: usize) -> Result<Swept>;

    /// Signals of the last `window`, at most `limit`, for sessions attached to `node`.
    async fn signals(&self, node: NodeId, window: Duration, limit: usize) -> Result<Vec<Signal>>;
    /// Numbers of queues, at most `limit`.
    async fn stats(&self, limit: usize) -> Result<Vec<QueueStats>>;

    /// All that is set of queues; `None`: the newest change is still the one that is `known`.
    async fn settings(&self, known: Option<u64>) -> Result<Option<AllSettings>>;
    /// Changes what is set of a queue, and leaves a record of it in the audit.
    async fn steer(&self, steer: Steer) -> Result<Steered>;
    /// A queue; `None`: it has and had no jobs, and nothing is set of it.
    async fn queue(&self, name: QueueName) -> Result<Option<QueueView>>;
    /// These queues, in the same order; `None` where [`Store::queue`] finds none.
    async fn queues_named(&self, names: Vec<QueueName>) -> Result<Vec<Option<QueueView>>>;
    /// Tells what went on in queues on one node, in the `span` that ends now. If it is not known whether that was taken in,
    /// it must not be told once more.
    async fn note_flows(&self, span: Duration, flows: Vec<(QueueName, Flow)>) -> Result<()>;
    /// Queues by name, those `after` one, at most `size`.
    async fn queues(&self, after: Option<QueueName>, size: usize) -> Result<Vec<QueueView>>;
    /// Tells of sessions whose streams a node has, for those who look. `false`: that one was not to be had now, or not under
    /// that attach number.
    async fn describe(&self, reports: Vec<SessionReport>) -> Result<Vec<bool>>;
    /// A session that is not dead, and at most `limit` of the jobs that it runs.
    async fn session(&self, id: SessionId, limit: usize) -> Result<Option<SessionRuns>>;
    /// Sessions by id that are not dead, those `after` one: all, or those that take jobs of a queue. Looks at a bounded
    /// number of rows.
    async fn sessions(
        &self,
        queue: Option<QueueName>,
        after: Option<SessionId>,
        size: usize,
    ) -> Result<SessionPage>;
    /// Tells of a node that is there, and asks what it is to let go: again and again, for as long as it is there.
    async fn present(&self, node: NodeReport) -> Result<Drains>;
    /// Forgets a node that has left.
    async fn gone(&self, node: NodeId) -> Result<()>;
    /// Nodes by id, those `after` one, at most `size`. One that has told nothing for [`crate::job::limits::NODE_KEPT`] goes.
    async fn nodes(&self, after: Option<NodeId>, size: usize) -> Result<Vec<NodeView>>;
    /// Asks a session to leave: the node that has its stream, now or later, is told by [`Store::present`].
    async fn drain_session(&self, session: SessionId, by: By) -> Result<Draining>;
    /// Asks a node to leave.
    async fn drain_node(&self, node: NodeId, by: By) -> Result<Draining>;
    /// Starts a bulk, and leaves a record of it in the audit, unless it only counts.
    async fn start_bulk(&self, new: NewBulk) -> Result<Started>;
    /// A bulk.
    async fn bulk(&self, id: BulkId) -> Result<Option<Bulk>>;
    /// Bulks by id, newest first: those below one, at most `size`.
    async fn bulks(&self, before: Option<BulkId>, size: usize) -> Result<Vec<Bulk>>;
    /// Ends a bulk before its next step, unless it has ended; the answer is as it is then, and whether this has ended it.
    /// The audit has it.
    async fn abort_bulk(&self, id: BulkId, by: By) -> Result<Option<(Bulk, bool)>>;
    /// Takes a bulk that is to be gone on with, for `span`, or until [`Store::step_bulk`].
    async fn claim_bulk(&self, span: Duration) -> Result<Option<ClaimedBulk>>;
    /// Goes one bounded step on with a claimed bulk, and lets go of it: collects a page, acts on some jobs, looks what has
    /// become of those of its stage, or comes to another state. A step whose claim is not the newest changes nothing.
    async fn step_bulk(&self, claimed: ClaimedBulk) -> Result<BulkStep>;
    /// What was changed by hand, newest first: the changes below a number, at most `size`. The newest
    /// [`crate::job::limits::AUDIT_KEPT`] are kept.
    async fn audit(&self, before: Option<i64>, size: usize) -> Result<Vec<AuditEvent>>;
}

/// What the schema is and what a migration would do, or did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MigrationReport {
    /// Version of the schema that was found; 0: none.
    pub found: i64,
    /// Version that this binary needs.
    pub needed: i64,
    /// What is between, one line each: "0002 add labels".
    pub steps: Vec<String>,
}

impl MigrationReport {
    /// Why this binary must leave the schema alone, if it is newer.
    pub fn refusal(&self) -> Option<String> {
        let Self { found, needed, .. } = self;
        (found > needed).then(|| {
            format!("the schema is at version {found}, newer than the {needed} that this program knows; use a newer program")
        })
    }
}
