//! One hand-out of a job: the lease that allows it, how it ends, and the verdict on what its worker reports.

use std::time::Duration;

use bytes::Bytes;

use super::Payload;
use super::id::{JobId, Kind, QueueName, SessionId};
use super::state::JobState;
use super::time::Timestamp;
use crate::error::Violation;

/// The right to run one attempt of a job. Together with the session that holds it, it is the fence (I4): nobody else
/// can record a result for this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The number of this hand-out, from 1; it only grows.
    pub attempt: u32,
}

/// A lease under which its job is RUNNING, with what is to be known to watch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// The lease.
    pub lease: Lease,
    /// Where its job waited.
    pub queue: QueueName,
    /// Which handler runs it.
    pub kind: Kind,
    /// Until the attempt's timeout; `None`: it has none.
    pub time_left: Option<Duration>,
}

/// How far an attempt is, as its worker says. What is `None` in a report stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Progress {
    /// 0 to 100.
    pub percent: Option<u32>,
    /// A word for people.
    pub note: Option<String>,
    /// What the handler wants to have when the job is run again.
    pub checkpoint: Option<Bytes>,
    /// The worker's own count of its reports on the job; of several the highest wins.
    pub revision: u64,
}

impl Progress {
    /// What two reports come to.
    pub fn merge(self, other: Self) -> Self {
        let (older, newer) = match self.revision <= other.revision {
            true => (self, other),
            false => (other, self),
        };
        Self {
            percent: newer.percent.or(older.percent),
            note: newer.note.or(older.note),
            checkpoint: newer.checkpoint.or(older.checkpoint),
            revision: newer.revision,
        }
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        self.checkpoint.as_ref().map_or(0, Bytes::len)
            + self.note.as_ref().map_or(0, String::len)
            + 64
    }
}

/// Why an attempt failed, as its worker said.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Failure {
    /// Class of the error, to group by.
    pub kind: String,
    /// One line for people.
    pub message: String,
    /// A stack trace or the like.
    pub detail: String,
    /// Do not retry, whatever budget is left.
    pub permanent: bool,
    /// Wait before the next attempt; `None`: the job's backoff.
    pub retry_after: Option<Duration>,
}

/// The type of the failure of a job that had not begun by its expire time. Both databases have the word in their lists
/// by failure.
pub const EXPIRED: &str = "EXPIRED";

impl Failure {
    /// Of a job that had not begun by its expire time.
    pub fn expired() -> Self {
        Self {
            kind: EXPIRED.into(),
            message: "the job had not begun by its expire time".into(),
            permanent: true,
            ..Self::default()
        }
    }
}

/// What is to be recorded about an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The handler returned.
    Success(Option<Payload>),
    /// The handler failed.
    Failure(Failure),
    /// The attempt's timeout is over. Counts as a failure; said by the node that watches the session.
    TimedOut,
    /// Its worker had it and does not list it any more. Counts as a lost lease; said by the node that has the session.
    Forgotten,
    /// Given back without a verdict.
    Release {
        /// Wait before it is due again; the floor for releases in a row may make it longer.
        delay: Duration,
        /// For the job's history.
        reason: String,
    },
}

impl Outcome {
    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        64 + match self {
            Self::Success(output) => output.as_ref().map_or(0, |o| o.data.len()),
            Self::Failure(failure) => failure.message.len() + failure.detail.len(),
            Self::Release { reason, .. } => reason.len(),
            Self::TimedOut | Self::Forgotten => 0,
        }
    }
}

/// An attempt's end, asked to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// Which attempt.
    pub lease: Lease,
    /// The session that claims to hold it.
    pub session: SessionId,
    /// How it ended.
    pub outcome: Outcome,
    /// Chance for the backoff, in `0.0..1.0`.
    pub chance: f64,
}

/// The answer to an [`Ending`]. A copy of the ending gets the same one, for as long as the job's row is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Durable, by this copy or an earlier one; the job's state as this verdict found it.
    Recorded(JobState),
    /// It never will be.
    Stale(StaleReason, JobState),
    /// This content cannot be taken; the lease stands.
    Rejected(Violation),
    /// There is no such job (any more): nothing can be said.
    Unknown,
}

/// Why a result will never be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StaleReason {
    /// Another attempt or session has, or had, the job since.
    Superseded,
    /// The job was cancelled.
    Cancelled,
    /// The attempt's timeout was recorded before.
    TimedOut,
    /// Another result of this attempt, or of the job, is recorded.
    Finished,
}

impl StaleReason {
    /// The reason's word on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superseded => "SUPERSEDED",
            Self::Cancelled => "CANCELLED",
            Self::TimedOut => "TIMED_OUT",
            Self::Finished => "FINISHED",
        }
    }
}

/// What is known of a job when its ending was not taken, for the verdict on it.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// The job's state now.
    pub state: JobState,
    /// Its newest attempt.
    pub attempt: u32,
    /// The session in its row, if there is one.
    pub session: Option<SessionId>,
    /// How the attempt of the ending is recorded to have ended, and under which session.
    pub recorded: Option<(SessionId, AttemptOutcome)>,
}

impl Standing {
    /// Whether the fence lets `ending` in: its attempt is its session's and runs, or its lease was lost, nobody has had
    /// the job since, and it is a success (salvage).
    pub fn lets_in(&self, ending: &Ending) -> bool {
        let is_same = self.attempt == ending.lease.attempt && self.session == Some(ending.session);
        let is_salvage =
            self.state == JobState::Queued && matches!(ending.outcome, Outcome::Success(_));
        is_same && (self.state == JobState::Running || is_salvage)
    }

    /// Whether the lines that `session` says of this lease are taken: it has, or had, that attempt, and there is none that
    /// is newer. A handler that was told to stop may say why, and the last words of one that has ended may come late.
    pub fn may_log(&self, lease: Lease, session: SessionId) -> bool {
        let holder = self.session.or(self.recorded.map(|(holder, _)| holder));
        self.attempt == lease.attempt && holder == Some(session)
    }

    /// The verdict on an ending that the fence does not let in: RECORDED for a copy of what is recorded.
    pub fn verdict(&self, ending: &Ending) -> Verdict {
        let is_same_attempt = self.attempt == ending.lease.attempt;
        let is_holder = is_same_attempt && self.session == Some(ending.session);
        let is_success = matches!(ending.outcome, Outcome::Success(_));
        if is_success && self.state == JobState::Succeeded && is_holder {
            return Verdict::Recorded(self.state);
        }
        match (self.own(ending.session), &ending.outcome) {
            (Some(AttemptOutcome::Failed), Outcome::Failure(_))
            | (Some(AttemptOutcome::TimedOut), Outcome::TimedOut)
            | (Some(AttemptOutcome::Forgotten), Outcome::Forgotten)
            | (Some(AttemptOutcome::Released), Outcome::Release { .. }) => {
                Verdict::Recorded(self.state)
            }
            _ => self.stale(ending.lease, ending.session),
        }
    }

    /// Why nothing that `session` says of this lease is recorded any more.
    pub fn stale(&self, lease: Lease, session: SessionId) -> Verdict {
        let is_same_attempt = self.attempt == lease.attempt;
        let reason = match self.own(session) {
            Some(AttemptOutcome::TimedOut) => StaleReason::TimedOut,
            Some(AttemptOutcome::Cancelled) => StaleReason::Cancelled,
            Some(AttemptOutcome::Failed | AttemptOutcome::Released) => StaleReason::Finished,
            // Its lease was lost, or it never had one.
            _ if !is_same_attempt => StaleReason::Superseded,
            _ => match self.state {
                JobState::Cancelled => StaleReason::Cancelled,
                JobState::Succeeded | JobState::Failed => StaleReason::Finished,
                _ => StaleReason::Superseded,
            },
        };
        Verdict::Stale(reason, self.state)
    }

    /// How the attempt ended, if it was this session's.
    fn own(&self, session: SessionId) -> Option<AttemptOutcome> {
        self.recorded
            .filter(|(holder, _)| *holder == session)
            .map(|(_, outcome)| outcome)
    }
}

/// How one hand-out ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum AttemptOutcome {
    /// Its result is the job's result.
    Succeeded = 1,
    /// Its worker reported a failure.
    Failed = 2,
    /// It ran longer than its timeout.
    TimedOut = 3,
    /// Its worker was not heard of within the lease's time.
    LeaseLost = 4,
    /// Its worker had it and does not list it any more: counted as a lost lease.
    Forgotten = 5,
    /// Its worker gave it back.
    Released = 6,
    /// The job was cancelled while it ran.
    Cancelled = 7,
}

impl AttemptOutcome {
    const ALL: [Self; 7] = [
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::LeaseLost,
        Self::Forgotten,
        Self::Released,
        Self::Cancelled,
    ];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The outcome of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.number() == number)
    }

    /// The outcome's one name: on the wire, in JSON, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::LeaseLost => "LEASE_LOST",
            Self::Forgotten => "FORGOTTEN",
            Self::Released => "RELEASED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A line of a job's history: an attempt that ended without success. (The success is the job itself.)
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    /// Its number.
    pub attempt: u32,
    /// Name of its worker.
    pub worker: String,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// What its worker said, or the reason of its release or cancel as `message`.
    pub failure: Option<Failure>,
    /// When it was handed out.
    pub start_time: Timestamp,
    /// When its end was recorded.
    pub end_time: Timestamp,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    fn session(n: u8) -> SessionId {
        SessionId::of_token(&[n])
    }

    fn ending(attempt: u32, by: u8, outcome: Outcome) -> Ending {
        let job = JobId::from_store(Uuid::nil());
        Ending {
            lease: Lease { job, attempt },
            session: session(by),
            outcome,
            chance: 0.0,
        }
    }

    fn standing(state: JobState, attempt: u32, holder: Option<u8>) -> Standing {
        Standing {
            state,
            attempt,
            session: holder.map(session),
            recorded: None,
        }
    }

    const OK: Outcome = Outcome::Success(None);

    #[test]
    fn only_the_holder_of_the_newest_attempt_is_let_in() {
        let running = standing(JobState::Running, 2, Some(1));
        assert!(running.lets_in(&ending(2, 1, OK)));
        for (attempt, by) in [(1, 1), (3, 1), (2, 2)] {
            let late = ending(attempt, by, OK);
            assert!(!running.lets_in(&late));
            assert!(matches!(running.verdict(&late), Verdict::Stale(..)));
        }
    }

    #[test]
    fn a_lost_lease_is_salvaged_by_a_success_alone_and_only_while_its_session_is_in_the_row() {
        let lost = standing(JobState::Queued, 1, Some(1));
        assert!(lost.lets_in(&ending(1, 1, OK)));
        let failure = ending(1, 1, Outcome::Failure(Failure::default()));
        assert!(!lost.lets_in(&failure));
        let superseded = Verdict::Stale(StaleReason::Superseded, JobState::Queued);
        assert_eq!(lost.verdict(&failure), superseded);
        let cleared = standing(JobState::Queued, 1, None);
        assert!(!cleared.lets_in(&ending(1, 1, OK)));
    }

    #[test]
    fn a_copy_gets_the_verdict_of_its_original_even_after_a_later_attempt() {
        let recorded = |outcome| Standing {
            recorded: Some((session(1), outcome)),
            ..standing(JobState::Running, 2, Some(2))
        };
        let failure = || Outcome::Failure(Failure::default());
        let release = || Outcome::Release {
            delay: Duration::ZERO,
            reason: String::new(),
        };
        let told = Verdict::Recorded(JobState::Running);
        assert_eq!(
            recorded(AttemptOutcome::Failed).verdict(&ending(1, 1, failure())),
            told
        );
        assert_eq!(
            recorded(AttemptOutcome::Released).verdict(&ending(1, 1, release())),
            told
        );
        let succeeded = standing(JobState::Succeeded, 1, Some(1));
        let told = Verdict::Recorded(JobState::Succeeded);
        assert_eq!(succeeded.verdict(&ending(1, 1, OK)), told);
        let other = Verdict::Stale(StaleReason::Finished, JobState::Succeeded);
        assert_eq!(succeeded.verdict(&ending(1, 2, OK)), other);
    }

    #[test]
    fn what_was_cancelled_or_timed_out_says_so() {
        for (outcome, reason) in [
            (AttemptOutcome::Cancelled, StaleReason::Cancelled),
            (AttemptOutcome::TimedOut, StaleReason::TimedOut),
            (AttemptOutcome::Failed, StaleReason::Finished),
        ] {
            let state = JobState::Scheduled;
            let standing = Standing {
                recorded: Some((session(1), outcome)),
                ..standing(state, 1, None)
            };
            assert_eq!(
                standing.verdict(&ending(1, 1, OK)),
                Verdict::Stale(reason, state)
            );
        }
    }
}
