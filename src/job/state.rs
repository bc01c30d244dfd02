//! The life of a job: its states, and the whole table of what may lead from one to another.

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub enum JobState {
    /// Its time has not come: a delay, or the backoff before a retry.
    Scheduled = 1,
    /// Waits for a free worker.
    Queued = 2,
    /// A session holds a lease for it.
    Running = 3,
    /// Final: its result is recorded.
    Succeeded = 4,
    /// Final unless retried by hand: the dead letter. Among them are those that had expired before they began.
    Failed = 5,
    /// Final unless retried by hand.
    Cancelled = 6,
}

impl JobState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The number that rows and the wire use.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The state of a number, if there is one.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// The state's one name: on the wire, in JSON, SQL, logs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "SCHEDULED",
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// No worker and no clock moves it on from here.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether `cause` may lead from this state to `to`. Everything that is not listed is refused.
    pub fn allows(self, cause: Cause, to: Self) -> bool {
        TRANSITIONS.contains(&(Some(self), cause, to))
    }
}

/// What moves a job from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It was accepted.
    Enqueue,
    /// Its time has come.
    Due,
    /// It was handed out; the attempt grows by one.
    Grant,
    /// Its worker reported a success, under the fence.
    Success,
    /// Its worker reported a failure, or its timeout passed.
    Failure,
    /// Its worker gave it back.
    Release,
    /// The session that held it is over.
    LeaseLost,
    /// A late success of the lease that was lost, while nobody else has had the job.
    Salvage,
    /// It had not begun by its expire time.
    Expiry,
    /// Somebody cancelled it, or it made way for another one of its unique key.
    Cancel,
    /// Somebody brought it back by hand.
    Retry,
    /// Somebody gave it another time.
    Reschedule,
}

/// Every transition there is: from (nothing, for a new job), cause, to.
pub const TRANSITIONS: &[(Option<JobState>, Cause, JobState)] = {
    use Cause::*;
    use JobState::*;
    &[
        (None, Enqueue, Scheduled),
        (None, Enqueue, Queued),
        (Some(Scheduled), Due, Queued),
        (Some(Queued), Grant, Running),
        (Some(Running), Success, Succeeded),
        (Some(Running), Failure, Scheduled),
        (Some(Running), Failure, Failed),
        (Some(Running), Release, Queued),
        (Some(Running), Release, Scheduled),
        (Some(Running), LeaseLost, Queued),
        (Some(Running), LeaseLost, Failed),
        (Some(Queued), Salvage, Succeeded),
        (Some(Scheduled), Expiry, Failed),
        (Some(Queued), Expiry, Failed),
        (Some(Scheduled), Cancel, Cancelled),
        (Some(Queued), Cancel, Cancelled),
        (Some(Running), Cancel, Cancelled),
        (Some(Failed), Retry, Queued),
        (Some(Failed), Retry, Scheduled),
        (Some(Cancelled), Retry, Queued),
        (Some(Cancelled), Retry, Scheduled),
        (Some(Scheduled), Reschedule, Scheduled),
        (Some(Scheduled), Reschedule, Queued),
        (Some(Queued), Reschedule, Scheduled),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_has_no_way_out() {
        assert!(
            TRANSITIONS
                .iter()
                .all(|(from, ..)| *from != Some(JobState::Succeeded))
        );
    }

    #[test]
    fn only_a_hand_brings_a_final_job_back() {
        for (from, cause, _) in TRANSITIONS {
            if from.is_some_and(JobState::is_final) {
                assert_eq!(*cause, Cause::Retry);
            }
        }
    }

    #[test]
    fn numbers_and_states_are_one_to_one() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_number(state.number()), Some(state));
        }
        assert_eq!(JobState::from_number(0), None);
        assert_eq!(JobState::from_number(7), None);
    }
}
