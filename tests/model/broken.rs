//! The rules, one at a time, broken. Each is a switch of the abstract store or of the adapter around the two halves; the
//! halves themselves stay what they are. A model in which none of these is found would prove nothing.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Nothing is broken.
    None,
    /// Enqueue is answered OK before the row is durable.
    AcceptBeforeCommit,
    /// A result is answered RECORDED before it is.
    ReceiptBeforeCommit,
    /// The frame leaves before the grant is known to be durable.
    FrameBeforeCommit,
    /// The heartbeat is acknowledged before the renewal is durable.
    AckBeforeCommit,
    /// A result needs only a job that is RUNNING.
    NoFence,
    /// The sweeper selects what it takes back and then updates it by id, without looking again.
    RescueById,
    /// The sweeper marks a session dead that was renewed since it looked.
    SweepUnchecked,
    /// A dead session is renewed, and lives, while its jobs are being taken back.
    RenewDead,
    /// Nothing finds a job whose hint is lost.
    NoReconcile,
    /// A hint is authority: whatever it names is handed out.
    GrantUnguarded,
    /// A grant looks at its session and commits later, without the session's lock.
    GrantUnlocked,
    /// A grant does not ask for the number of its stream.
    GrantAnyStream,
    /// A lost lease gives its attempt back.
    AttemptGivenBack,
    /// A copy of a recorded result is judged as a late one.
    CopyIsStale,
    /// Retry by hand leaves the old session in the row, as a lost lease does: salvage undoes the cancel.
    RetryKeepsSession,
    /// A timeout leaves the old session in the row, as a lost lease does.
    TimeoutKeepsSession,
    /// A Hello needs no number higher than the last.
    AttachAnyNumber,
    /// A resume tells the node only of leases that the Hello lists.
    ResumeListedOnly,
    /// The leases of a resume are read before the session moves.
    LeasesBeforeAttach,
    /// A worker reads what it holds at another time than its last frame.
    HeldReadApart,
    /// A process that was started again goes on with the session of the one before, whose handlers are gone.
    SessionInherited,
    /// Nobody is told of a cancel.
    CancelUntold,
    /// A move does not renew its session, and the worker counts on it.
    AttachRenewsNothing,
    /// The key is looked for, and the job inserted by another statement.
    KeyCheckedApart,
    /// Whoever comes with a known key is given its job, whatever was asked.
    KeyIgnoresRequest,
    /// A result of a job that retention removed is judged as a late one.
    PurgedIsStale,
    /// Retention follows its log and does not look at the job, which was retried by hand.
    PurgedUnseen,
    /// A worker whose session was moved by a copy of its process comes back with the same token.
    CopyComesBack,
    /// What a call without an answer was to record is answered STALE.
    DoubtIsStale,
    /// What a call without an answer was to record is answered RECORDED.
    DoubtIsRecorded,
    /// A Hello may lose the jobs of dead sessions: the sweeper leaves them.
    NoTakeBack,
}

impl Rule {
    /// It breaks no law at once; something that must come does not.
    pub fn breaks_a_promise(self) -> bool {
        matches!(
            self,
            Self::NoReconcile
                | Self::CancelUntold
                | Self::NoTakeBack
                | Self::PurgedUnseen
                | Self::CopyComesBack
        )
    }

    pub const ALL: [Self; 31] = [
        Self::AcceptBeforeCommit,
        Self::ReceiptBeforeCommit,
        Self::FrameBeforeCommit,
        Self::AckBeforeCommit,
        Self::NoFence,
        Self::RescueById,
        Self::SweepUnchecked,
        Self::RenewDead,
        Self::NoReconcile,
        Self::GrantUnguarded,
        Self::GrantUnlocked,
        Self::GrantAnyStream,
        Self::AttemptGivenBack,
        Self::CopyIsStale,
        Self::RetryKeepsSession,
        Self::TimeoutKeepsSession,
        Self::AttachAnyNumber,
        Self::ResumeListedOnly,
        Self::LeasesBeforeAttach,
        Self::HeldReadApart,
        Self::SessionInherited,
        Self::CancelUntold,
        Self::NoTakeBack,
        Self::AttachRenewsNothing,
        Self::KeyCheckedApart,
        Self::KeyIgnoresRequest,
        Self::PurgedIsStale,
        Self::PurgedUnseen,
        Self::CopyComesBack,
        Self::DoubtIsStale,
        Self::DoubtIsRecorded,
    ];
}
