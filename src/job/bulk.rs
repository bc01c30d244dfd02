//! A bulk: one action on many jobs. What it may be, and how it goes on from where it is; pure, so that both stores and all
//! nodes go the same way.
//!
//! ```text
//! COLLECTING ──> RUNNING ──────────────────────> DONE        at any time: ABORTED
//!     │  ^──────────┤  of a purge, a million at a time
//!     │             │ ^
//!     │   stage out │ │ its jobs did well: twice as many
//!     v             v │
//!   FAILED        WATCHING ── too many failed ──> STOPPED
//! ```

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use super::limits::{BULK_JOBS_MAX, BULK_STEP_MAX, CANARY_STAGE_MAX};
use super::time::Timestamp;
use super::{JobId, JobState, Priority};

/// Between two looks at the jobs of a stage.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// With a rate, a step acts on what is due until the next one.
const STEPS_PER_SECOND: u32 = 2;

/// Identity of a bulk: a UUIDv7, so that ids sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BulkId(Uuid);

impl BulkId {
    /// Reads the 36-character form of a UUIDv7; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        JobId::parse(text).map(|id| Self(id.uuid()))
    }

    /// Takes a UUID that the store gives back, or that was made as one of version 7.
    pub fn from_store(id: Uuid) -> Self {
        Self(id)
    }

    /// The UUID itself.
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// The time that the id carries, to the millisecond.
    pub fn time(self) -> Timestamp {
        JobId::from_store(self.0).time()
    }
}

impl fmt::Display for BulkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// What is done to each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BulkAction {
    /// It is brought back.
    Retry,
    /// It is cancelled.
    Cancel,
    /// It is deleted, being final.
    Delete,
    /// Its time has come.
    RunNow,
    /// It is given this priority.
    SetPriority(Priority),
    /// It is deleted, while it waits.
    Purge,
}

impl BulkAction {
    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        match self {
            Self::Retry => 1,
            Self::Cancel => 2,
            Self::Delete => 3,
            Self::RunNow => 4,
            Self::SetPriority(_) => 5,
            Self::Purge => 6,
        }
    }

    /// The action of a number; one that sets the priority needs it, and no other has any.
    pub fn from_number(number: i16, priority: Option<Priority>) -> Option<Self> {
        match (number, priority) {
            (1, None) => Some(Self::Retry),
            (2, None) => Some(Self::Cancel),
            (3, None) => Some(Self::Delete),
            (4, None) => Some(Self::RunNow),
            (5, Some(priority)) => Some(Self::SetPriority(priority)),
            (6, None) => Some(Self::Purge),
            _ => None,
        }
    }

    /// Its one name: on the wire, in JSON, logs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "RETRY",
            Self::Cancel => "CANCEL",
            Self::Delete => "DELETE",
            Self::RunNow => "RUN_NOW",
            Self::SetPriority(_) => "SET_PRIORITY",
            Self::Purge => "PURGE",
        }
    }

    /// All names, in the order of their numbers, which begin at 1.
    pub const NAMES: [&'static str; 6] = [
        "RETRY",
        "CANCEL",
        "DELETE",
        "RUN_NOW",
        "SET_PRIORITY",
        "PURGE",
    ];

    /// The priority that it sets.
    pub const fn priority(self) -> Option<Priority> {
        match self {
            Self::SetPriority(priority) => Some(priority),
            _ => None,
        }
    }

    /// States of the jobs that it is for.
    pub const fn states(self) -> &'static [JobState] {
        match self {
            Self::Retry => &[JobState::Failed, JobState::Cancelled],
            Self::Cancel => &[JobState::Scheduled, JobState::Queued, JobState::Running],
            Self::Delete => &[JobState::Succeeded, JobState::Failed, JobState::Cancelled],
            Self::RunNow => &[JobState::Scheduled],
            Self::SetPriority(_) | Self::Purge => &[JobState::Scheduled, JobState::Queued],
        }
    }

    /// A job that has changed since it was collected is left alone. Else it is if it has left the states that were asked for:
    /// what waits is moved on by the service itself.
    pub const fn is_for_unchanged(self) -> bool {
        matches!(self, Self::Retry | Self::Delete | Self::RunNow)
    }

    /// It may cover more than [`BULK_JOBS_MAX`] jobs: it collects as many, acts on them, and goes on. For a flood, of which
    /// all is to go, nobody has another filter.
    const fn has_rounds(self) -> bool {
        matches!(self, Self::Purge)
    }

    /// States of the jobs that it covers when nobody says: what somebody has cancelled does not come back unasked.
    pub const fn states_unsaid(self) -> &'static [JobState] {
        match self {
            Self::Retry => &[JobState::Failed],
            other => other.states(),
        }
    }
}

/// Where a bulk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum BulkState {
    /// It looks for what it covers.
    Collecting = 1,
    /// It acts.
    Running = 2,
    /// It waits for what becomes of the jobs of its stage.
    Watching = 3,
    /// Ended: it has come to all jobs, or has counted them.
    Done = 4,
    /// Ended by a hand.
    Aborted = 5,
    /// Ended by its canary.
    Stopped = 6,
    /// Ended before it began: it covers too many.
    Failed = 7,
}

impl BulkState {
    const ALL: [Self; 7] = [
        Self::Collecting,
        Self::Running,
        Self::Watching,
        Self::Done,
        Self::Aborted,
        Self::Stopped,
        Self::Failed,
    ];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The state of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.number() == number)
    }

    /// Its one name: on the wire, in JSON, logs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Collecting => "COLLECTING",
            Self::Running => "RUNNING",
            Self::Watching => "WATCHING",
            Self::Done => "DONE",
            Self::Aborted => "ABORTED",
            Self::Stopped => "STOPPED",
            Self::Failed => "FAILED",
        }
    }

    /// It goes no further.
    pub const fn is_ended(self) -> bool {
        matches!(
            self,
            Self::Done | Self::Aborted | Self::Stopped | Self::Failed
        )
    }
}

/// How many jobs a bulk has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BulkCounts {
    /// Those that it covers.
    pub total: u64,
    /// Those that it has acted on.
    pub done: u64,
    /// Those that had changed since they were collected.
    pub skipped: u64,
    /// Those that could not be acted on.
    pub failed: u64,
}

impl BulkCounts {
    /// Those that it has not come to.
    pub fn left(&self) -> u64 {
        self.total
            .saturating_sub(self.done)
            .saturating_sub(self.skipped)
            .saturating_sub(self.failed)
    }
}

/// How a bulk tries a few jobs first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Canary {
    /// Jobs of the first stage.
    pub size: u32,
    /// Share of a stage that may fail again.
    pub max_failed_share: f64,
    /// How long a stage may take.
    pub within: Duration,
}

/// How far a stage of a canary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stage {
    /// Jobs that it is to release.
    pub size: u32,
    /// Of these, the ones that are released.
    pub released: u32,
    /// Of these, the ones that are final, gone, or have failed again.
    pub settled: u32,
    /// Of these, the ones that have failed again.
    pub failed: u32,
    /// By when they must have settled, once all are released.
    pub until: Option<Timestamp>,
}

/// Where a bulk is, as far as its way depends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// What it does.
    pub action: BulkAction,
    /// Its state.
    pub state: BulkState,
    /// Once it has begun: it has walked through all that there is.
    pub is_walked: bool,
    /// It only counts.
    pub dry_run: bool,
    /// Jobs per second; `None`: no limit.
    pub rate: Option<u32>,
    /// How it tries a few first.
    pub canary: Option<Canary>,
    /// What it has come to.
    pub counts: BulkCounts,
    /// Where its canary is.
    pub stage: Stage,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Collect a page.
    Collect,
    /// Act on at most so many jobs, and then rest for so long.
    Act(usize, Duration),
    /// Look what has become of the jobs of the stage.
    Look,
    /// It is somewhere else now.
    Turn(Turn),
    /// Nothing: it has ended.
    Nothing,
}

/// A bulk comes to another state, or to another stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// The state.
    pub state: BulkState,
    /// The stage.
    pub stage: Stage,
    /// Why it has ended, if it has not come to its end.
    pub error: String,
    /// How long it rests.
    pub rest: Duration,
}

impl Progress {
    /// What is to be done, `now`.
    pub fn next(&self, now: Timestamp) -> Next {
        match self.state {
            BulkState::Collecting => Next::Collect,
            BulkState::Running => self.run(now),
            BulkState::Watching => Next::Look,
            _ => Next::Nothing,
        }
    }

    fn run(&self, now: Timestamp) -> Next {
        let left = self.counts.left();
        let stage = self.stage;
        match self.canary {
            Some(canary) if stage.released > 0 && (left == 0 || stage.released >= stage.size) => {
                let until = Some(now.after(canary.within));
                Next::Turn(self.turn(BulkState::Watching, Stage { until, ..stage }))
            }
            _ if left == 0 && !self.is_walked => {
                Next::Turn(self.turn(BulkState::Collecting, stage))
            }
            _ if left == 0 => Next::Turn(self.turn(BulkState::Done, stage)),
            _ => self.act(),
        }
    }

    fn act(&self) -> Next {
        let mut jobs = BULK_STEP_MAX;
        if self.canary.is_some() {
            let rest = self.stage.size.saturating_sub(self.stage.released);
            jobs = jobs.min(usize::try_from(rest).unwrap_or(usize::MAX));
        }
        let Some(rate) = self.rate else {
            return Next::Act(jobs, Duration::ZERO);
        };
        let due = usize::try_from(rate / STEPS_PER_SECOND).unwrap_or(jobs);
        let jobs = jobs.min(due).max(1);
        let count = u32::try_from(jobs).unwrap_or(u32::MAX);
        let rest = Duration::from_secs(1).saturating_mul(count) / rate.max(1);
        Next::Act(jobs, rest)
    }

    /// So many more jobs were found; `is_end`: there are no others.
    pub fn collected(&self, found: u64, is_end: bool) -> Turn {
        let is_full = self.counts.left().saturating_add(found) > BULK_JOBS_MAX;
        if is_full && self.action.has_rounds() && !self.dry_run {
            return self.turn(BulkState::Running, self.stage);
        }
        if is_full && !self.action.has_rounds() {
            let error = format!("covers more than {BULK_JOBS_MAX} jobs; nothing was done to any");
            return Turn {
                error,
                ..self.turn(BulkState::Failed, self.stage)
            };
        }
        let state = match (is_end, self.dry_run) {
            (false, _) => BulkState::Collecting,
            (true, true) => BulkState::Done,
            (true, false) => BulkState::Running,
        };
        self.turn(state, self.stage)
    }

    /// Of the jobs of the stage so many have settled by `now`, and so many of those have failed again.
    pub fn looked(&self, settled: u32, failed: u32, now: Timestamp) -> Turn {
        let stage = Stage {
            settled,
            failed,
            ..self.stage
        };
        let Some(canary) = self.canary else {
            return self.turn(BulkState::Running, stage);
        };
        let stop = |error: String| Turn {
            error,
            ..self.turn(BulkState::Stopped, stage)
        };
        let Stage { released, .. } = stage;
        if f64::from(failed) > canary.max_failed_share * f64::from(released) {
            let share = canary.max_failed_share;
            return stop(format!(
                "{failed} of {released} jobs failed again, more than a share of {share}"
            ));
        }
        if settled >= released {
            if self.counts.left() == 0 {
                return self.turn(BulkState::Done, stage);
            }
            let size = stage.size.saturating_mul(2).min(CANARY_STAGE_MAX);
            let stage = Stage {
                size,
                ..Stage::default()
            };
            return self.turn(BulkState::Running, stage);
        }
        if stage.until.is_some_and(|until| now >= until) {
            let open = released.saturating_sub(settled);
            let within = canary.within;
            return stop(format!(
                "{open} of {released} jobs had come to nothing within {within:?}"
            ));
        }
        Turn {
            rest: LOOK_EVERY,
            ..self.turn(BulkState::Watching, stage)
        }
    }

    fn turn(&self, state: BulkState, stage: Stage) -> Turn {
        Turn {
            state,
            stage,
            error: String::new(),
            rest: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn running(left: u64) -> Progress {
        Progress {
            action: BulkAction::Retry,
            state: BulkState::Running,
            is_walked: true,
            dry_run: false,
            rate: None,
            canary: None,
            counts: BulkCounts {
                total: left,
                ..BulkCounts::default()
            },
            stage: Stage::default(),
        }
    }

    fn canary(size: u32, released: u32) -> Progress {
        Progress {
            canary: Some(Canary {
                size: 10,
                max_failed_share: 0.1,
                within: Duration::from_secs(60),
            }),
            stage: Stage {
                size,
                released,
                until: Some(NOW.after(Duration::from_secs(60))),
                ..Stage::default()
            },
            ..running(100)
        }
    }

    fn acts(progress: &Progress) -> (usize, u64) {
        match progress.next(NOW) {
            Next::Act(jobs, rest) => (jobs, u64::try_from(rest.as_millis()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rate_is_kept_by_small_steps_and_rests() {
        let at = |rate| {
            acts(&Progress {
                rate: Some(rate),
                ..running(1_000)
            })
        };
        assert_eq!(acts(&running(1_000)), (500, 0));
        assert_eq!(
            [at(1), at(3), at(100), at(5_000)],
            [(1, 1_000), (1, 333), (50, 500), (500, 100)]
        );
    }

    #[test]
    fn a_canary_releases_a_stage_and_watches_it() {
        assert_eq!(acts(&canary(10, 4)).0, 6);
        let Next::Turn(turn) = canary(10, 10).next(NOW) else {
            panic!("a turn");
        };
        assert_eq!(turn.state, BulkState::Watching);
        let watching = Progress {
            state: BulkState::Watching,
            ..canary(10, 10)
        };
        let states = [(9, 1), (10, 1), (2, 2), (10, 0)].map(|(settled, failed)| {
            let turn = watching.looked(settled, failed, NOW);
            (turn.state, turn.stage.size)
        });
        assert_eq!(
            states,
            [
                (BulkState::Watching, 10),
                (BulkState::Running, 20),
                (BulkState::Stopped, 10),
                (BulkState::Running, 20)
            ]
        );
        let late = watching.looked(9, 0, NOW.after(Duration::from_secs(61)));
        assert_eq!(late.state, BulkState::Stopped);
        assert_eq!(late.error, "1 of 10 jobs had come to nothing within 60s");
    }

    #[test]
    fn a_stage_without_a_job_is_not_watched() {
        let mut none = canary(10, 0);
        none.counts.skipped = none.counts.total;
        let Next::Turn(turn) = none.next(NOW) else {
            panic!("a turn");
        };
        assert_eq!(turn.state, BulkState::Done);
    }

    #[test]
    fn a_bulk_over_too_many_jobs_is_not_begun() {
        let collecting = Progress {
            state: BulkState::Collecting,
            ..running(BULK_JOBS_MAX - 1)
        };
        assert_eq!(collecting.collected(1, true).state, BulkState::Running);
        assert_eq!(collecting.collected(2, false).state, BulkState::Failed);
    }

    #[test]
    fn a_purge_of_more_goes_on_in_rounds() {
        let purge = Progress {
            action: BulkAction::Purge,
            state: BulkState::Collecting,
            is_walked: false,
            ..running(BULK_JOBS_MAX - 1)
        };
        assert_eq!(purge.collected(1, false).state, BulkState::Collecting);
        assert_eq!(purge.collected(2, false).state, BulkState::Running);
        let mut round = Progress {
            state: BulkState::Running,
            ..purge
        };
        round.counts.done = round.counts.total;
        let state = |progress: &Progress| match progress.next(NOW) {
            Next::Turn(turn) => turn.state,
            other => panic!("{other:?}"),
        };
        assert_eq!(state(&round), BulkState::Collecting);
        round.is_walked = true;
        assert_eq!(state(&round), BulkState::Done);
        let counting = Progress {
            dry_run: true,
            ..purge
        };
        assert_eq!(counting.collected(2, false).state, BulkState::Collecting);
    }
}
