//! What a store must do, without a store: the tables of states and verdicts over plain memory. Time is counted in ticks.
//!
//! Everything happens at ticks, and each span is some of them, so that the moments that the test itself takes (far less
//! than a tick) decide nothing: what is due at a tick is due in the store a moment before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasehold::job::limits::{ID_AGE_MAX, LOST_LEASES_MAX, ROW_AGE_MIN};
use leasehold::job::retry::release_floor;
use leasehold::job::{
    AttemptOutcome, JobState, Outcome, Priority, StaleReason, UniqueConflict, Verdict,
};
use leasehold::store::{Attaching, Deleted, SessionState};

/// One tick, longer than any release's floor.
pub const TICK: Duration = Duration::from_secs(100);
/// The TTL of all sessions, in ticks.
pub const TTL: u64 = 10;
/// The wait after the first failure, doubled each time up to four of it.
pub const BACKOFF: u64 = 2;
/// How long a final job is kept.
pub const RETENTION: u64 = 60;

/// Number of a job, or of a session, in the order in which the case made them.
pub type No = usize;

#[derive(Debug, Clone)]
pub struct Job {
    pub state: JobState,
    pub revision: u64,
    pub priority: Priority,
    pub attempt: u32,
    pub failures: u32,
    pub lost: u32,
    pub releases: u32,
    pub released_in_row: u32,
    pub max_attempts: u32,
    pub created: u64,
    /// When it comes due, if it is SCHEDULED.
    pub due: u64,
    /// Its unique key.
    pub unique: Option<u8>,
    /// By which job it was replaced.
    pub replaced_by: Option<No>,
    /// If it has not begun by then, it never does.
    pub expires: Option<u64>,
    pub purge: u64,
    /// The session in its row.
    pub holder: Option<No>,
    /// Attempts that did not succeed.
    pub ended: BTreeMap<u32, (No, AttemptOutcome)>,
    /// Revision and checkpoint of the newest report.
    pub progress: Option<(u64, Option<String>)>,
    /// Number, attempt and words of all its lines.
    pub log: Vec<(u64, u32, String)>,
    /// How many lines were said before the attempt that said the newest, which attempt that was, and how many in all.
    pub said: (u64, u32, u64),
}

#[derive(Debug, Clone)]
pub struct Session {
    pub attach: u64,
    pub expires: u64,
    pub dead: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub now: u64,
    /// `None`: removed.
    pub jobs: Vec<Option<Job>>,
    /// Of the removed ones, those that a hand has removed.
    pub deleted: BTreeSet<No>,
    pub sessions: Vec<Session>,
}

/// What an ask for a job comes to.
#[derive(Debug, PartialEq)]
pub enum Asked {
    Lease(u32),
    NotQueued,
    Refused(SessionState),
}

/// What a new job with a unique key comes to.
#[derive(Debug, PartialEq)]
pub enum Unique {
    New,
    Kept(No),
    Refused(No),
}

/// Why a job is not brought back.
#[derive(Debug, PartialEq)]
pub enum Unretried {
    Gone,
    State(JobState),
    KeyHeld(No),
}

/// Why a job that waits is not steered.
#[derive(Debug, PartialEq)]
pub enum Fault {
    Gone,
    State(JobState),
    Expires,
}

fn ticks(span: Duration) -> u64 {
    span.as_secs().div_ceil(TICK.as_secs())
}

impl Job {
    fn moves(&mut self, to: JobState) {
        self.state = to;
        self.revision += 1;
        self.holder = None;
    }

    fn ends(&mut self, to: JobState, now: u64) {
        self.moves(to);
        self.purge = (now + RETENTION).max(self.created + ticks(ROW_AGE_MIN));
    }

    fn waits(&mut self, delay: u64, now: u64) {
        self.due = now + delay;
        self.moves(match delay {
            0 => JobState::Queued,
            _ => JobState::Scheduled,
        });
    }

    fn ended(&mut self, by: No, outcome: AttemptOutcome) {
        self.ended.insert(self.attempt, (by, outcome));
    }

    fn fails(&mut self, by: No, outcome: AttemptOutcome, permanent: bool, now: u64) {
        self.ended(by, outcome);
        self.failures += 1;
        self.released_in_row = 0;
        match permanent || self.failures >= self.max_attempts {
            true => self.ends(JobState::Failed, now),
            false => self.waits(BACKOFF << (self.failures - 1).min(2), now),
        }
    }

    fn loses(&mut self, by: No, outcome: AttemptOutcome, now: u64) {
        self.ended(by, outcome);
        self.lost += 1;
        self.released_in_row = 0;
        match self.lost > LOST_LEASES_MAX {
            true => self.ends(JobState::Failed, now),
            false => {
                self.waits(0, now);
                self.holder = Some(by);
            }
        }
    }

    fn is_expired(&self, now: u64) -> bool {
        self.attempt == 0 && self.expires.is_some_and(|expires| expires <= now)
    }

    fn is_leased(&self, attempt: u32, by: No) -> bool {
        self.state == JobState::Running && self.attempt == attempt && self.holder == Some(by)
    }

    /// Why what `by` says of an attempt is not taken.
    fn stale(&self, attempt: u32, by: No) -> Verdict {
        let own = self.ended.get(&attempt).filter(|(who, _)| *who == by);
        let reason = match own {
            Some((_, AttemptOutcome::TimedOut)) => StaleReason::TimedOut,
            Some((_, AttemptOutcome::Cancelled)) => StaleReason::Cancelled,
            Some((_, AttemptOutcome::Failed | AttemptOutcome::Released)) => StaleReason::Finished,
            _ if attempt != self.attempt => StaleReason::Superseded,
            _ => match self.state {
                JobState::Cancelled => StaleReason::Cancelled,
                JobState::Succeeded | JobState::Failed => StaleReason::Finished,
                _ => StaleReason::Superseded,
            },
        };
        Verdict::Stale(reason, self.state)
    }
}

fn kind(outcome: &Outcome) -> AttemptOutcome {
    match outcome {
        Outcome::Success(_) => AttemptOutcome::Succeeded,
        Outcome::Failure(_) => AttemptOutcome::Failed,
        Outcome::TimedOut => AttemptOutcome::TimedOut,
        Outcome::Forgotten => AttemptOutcome::Forgotten,
        Outcome::Release { .. } => AttemptOutcome::Released,
    }
}

impl Model {
    pub fn job(&self, no: No) -> Option<&Job> {
        self.jobs[no].as_ref()
    }

    pub fn enqueue(&mut self, delay: u64, expires_in: Option<u64>, max_attempts: u32) -> No {
        let mut job = Job {
            state: JobState::Queued,
            revision: 0,
            priority: Priority::Normal,
            attempt: 0,
            failures: 0,
            lost: 0,
            releases: 0,
            released_in_row: 0,
            max_attempts,
            created: self.now,
            due: 0,
            unique: None,
            replaced_by: None,
            expires: expires_in.map(|ticks| self.now + ticks),
            purge: 0,
            holder: None,
            ended: BTreeMap::new(),
            progress: None,
            log: Vec::new(),
            said: (0, 0, 0),
        };
        job.waits(delay, self.now);
        self.jobs.push(Some(job));
        self.jobs.len() - 1
    }

    /// What becomes of a new job with this unique key: it is made, or finds the holder.
    pub fn enqueue_unique(&mut self, key: u8, conflict: UniqueConflict, delay: u64) -> Unique {
        let (no, now) = (self.jobs.len(), self.now);
        if let Some(holder) = self.holder(key) {
            let job = self.jobs[holder].as_mut().expect("it is there");
            match conflict {
                UniqueConflict::Refuse => return Unique::Refused(holder),
                UniqueConflict::Replace if job.attempt == 0 => {
                    job.ends(JobState::Cancelled, now);
                    job.replaced_by = Some(no);
                }
                UniqueConflict::Keep | UniqueConflict::Replace => return Unique::Kept(holder),
            }
        }
        self.enqueue(delay, None, 1);
        self.jobs[no].as_mut().expect("it is there").unique = Some(key);
        Unique::New
    }

    fn holder(&self, key: u8) -> Option<No> {
        let holds = |no: &No| {
            let job = self.job(*no);
            job.is_some_and(|job| job.unique == Some(key) && !job.state.is_final())
        };
        (0..self.jobs.len()).find(holds)
    }

    /// Whether an id that was made with the job is still taken.
    pub fn id_is_young(&self, made: u64) -> bool {
        self.now < made + ticks(ID_AGE_MAX)
    }

    pub fn open(&mut self) -> No {
        self.sessions.push(Session {
            attach: 1,
            expires: self.now + TTL,
            dead: false,
        });
        self.sessions.len() - 1
    }

    /// How a session stands for a stream with this number.
    pub fn stands(&self, no: No, attach: u64) -> SessionState {
        let session = &self.sessions[no];
        match () {
            () if session.dead => SessionState::Dead,
            () if session.attach > attach => SessionState::Moved,
            () if session.attach < attach => SessionState::Behind,
            () if session.expires <= self.now => SessionState::Lapsed,
            () => SessionState::Alive,
        }
    }

    pub fn renew(&mut self, no: No, attach: u64) -> SessionState {
        match self.stands(no, attach) {
            SessionState::Lapsed | SessionState::Alive => {
                self.sessions[no].expires = self.now + TTL;
                SessionState::Alive
            }
            other => other,
        }
    }

    pub fn attach(&mut self, no: No, attach: u64) -> Attaching {
        let session = &mut self.sessions[no];
        match () {
            () if session.dead => Attaching::Gone,
            () if session.attach >= attach => Attaching::Superseded,
            () => {
                session.attach = attach;
                session.expires = self.now + TTL;
                Attaching::Resumed(TICK * u32::try_from(TTL).expect("it is small"))
            }
        }
    }

    pub fn close(&mut self, no: No, attach: u64) {
        let session = &mut self.sessions[no];
        session.dead |= session.attach == attach;
    }

    pub fn grant(&mut self, no: No, to: No, attach: u64) -> Asked {
        match self.stands(to, attach) {
            SessionState::Alive => {}
            other => return Asked::Refused(other),
        }
        match &mut self.jobs[no] {
            Some(job) if job.state == JobState::Queued && !job.is_expired(self.now) => {
                job.moves(JobState::Running);
                job.attempt += 1;
                job.holder = Some(to);
                Asked::Lease(job.attempt)
            }
            _ => Asked::NotQueued,
        }
    }

    pub fn finish(&mut self, no: No, attempt: u32, by: No, outcome: &Outcome) -> Verdict {
        let now = self.now;
        let Some(job) = &mut self.jobs[no] else {
            return Verdict::Unknown;
        };
        let is_holder = job.attempt == attempt && job.holder == Some(by);
        let is_success = matches!(outcome, Outcome::Success(_));
        let is_salvage = is_holder && is_success && job.state == JobState::Queued;
        if job.is_leased(attempt, by) || is_salvage {
            match outcome {
                Outcome::Success(_) => {
                    job.ends(JobState::Succeeded, now);
                    job.holder = Some(by);
                }
                Outcome::Failure(f) => job.fails(by, kind(outcome), f.permanent, now),
                Outcome::TimedOut => job.fails(by, kind(outcome), false, now),
                Outcome::Forgotten => job.loses(by, kind(outcome), now),
                Outcome::Release { delay, .. } => {
                    job.ended(by, kind(outcome));
                    let delay = (*delay).max(release_floor(job.released_in_row));
                    job.releases += 1;
                    job.released_in_row += 1;
                    job.waits(ticks(delay), now);
                }
            }
            return Verdict::Recorded(job.state);
        }
        let is_copy = match is_success {
            true => is_holder && job.state == JobState::Succeeded,
            false => job.ended.get(&attempt) == Some(&(by, kind(outcome))),
        };
        match is_copy {
            true => Verdict::Recorded(job.state),
            false => job.stale(attempt, by),
        }
    }

    pub fn report(
        &mut self,
        no: No,
        attempt: u32,
        by: No,
        revision: u64,
        checkpoint: Option<&str>,
    ) -> Verdict {
        let Some(job) = &mut self.jobs[no] else {
            return Verdict::Unknown;
        };
        if !job.is_leased(attempt, by) {
            return job.stale(attempt, by);
        }
        let (last, before) = job.progress.take().unwrap_or_default();
        job.progress = Some(match last < revision {
            true => (revision, checkpoint.map(Into::into).or(before)),
            false => (last, before),
        });
        Verdict::Recorded(job.state)
    }

    /// Lines of an attempt that is the newest, and was handed to this session.
    pub fn say(&mut self, no: No, attempt: u32, by: No, first: u64, count: u64) -> Verdict {
        let Some(job) = &mut self.jobs[no] else {
            return Verdict::Unknown;
        };
        let had = job.ended.get(&attempt).map(|(by, _)| *by);
        if job.attempt != attempt || job.holder.or(had) != Some(by) {
            return job.stale(attempt, by);
        }
        let (mut base, of, said) = job.said;
        if of < attempt {
            base = said;
        }
        for number in (first..first + count).filter(|n| base + n > said) {
            job.log.push((base + number, attempt, number.to_string()));
        }
        job.said = (base, attempt, said.max(base + first + count - 1));
        Verdict::Recorded(job.state)
    }

    /// All lines of a job, and how many were said.
    pub fn log(&self, no: No) -> (Vec<(u64, u32, String)>, u64) {
        let job = self.jobs[no].as_ref();
        job.map_or_else(Default::default, |job| (job.log.clone(), job.said.2))
    }

    /// `Ok`: with the session that ran it. Else the state that does not allow it.
    pub fn cancel(&mut self, no: No) -> Result<Option<No>, Option<JobState>> {
        let now = self.now;
        let job = self.jobs[no].as_mut().ok_or(None)?;
        if job.state.is_final() {
            return Err(Some(job.state));
        }
        let ran = job.holder.filter(|_| job.state == JobState::Running);
        if let Some(by) = ran {
            job.ended(by, AttemptOutcome::Cancelled);
        }
        job.released_in_row = 0;
        job.ends(JobState::Cancelled, now);
        Ok(ran)
    }

    pub fn retry(&mut self, no: No, delay: u64) -> Result<(), Unretried> {
        let now = self.now;
        let job = self.job(no).ok_or(Unretried::Gone)?;
        if !matches!(job.state, JobState::Failed | JobState::Cancelled) {
            return Err(Unretried::State(job.state));
        }
        if let Some(holder) = job.unique.and_then(|key| self.holder(key)) {
            return Err(Unretried::KeyHeld(holder));
        }
        let job = self.jobs[no].as_mut().ok_or(Unretried::Gone)?;
        job.replaced_by = None;
        (job.failures, job.lost, job.released_in_row) = (0, 0, 0);
        job.expires = None;
        job.waits(delay, now);
        Ok(())
    }

    /// `Ok`: it is as was asked for.
    pub fn reschedule(&mut self, no: No, delay: u64) -> Result<(), Fault> {
        let now = self.now;
        let job = self.waiting(no)?;
        if job.is_expired(now + delay) {
            return Err(Fault::Expires);
        }
        if delay > 0 || job.state == JobState::Scheduled {
            job.waits(delay, now);
        }
        Ok(())
    }

    pub fn set_priority(&mut self, no: No, priority: Priority) -> Result<(), Fault> {
        let job = self.waiting(no)?;
        job.revision += u64::from(job.priority != priority);
        job.priority = priority;
        Ok(())
    }

    fn waiting(&mut self, no: No) -> Result<&mut Job, Fault> {
        let job = self.jobs[no].as_mut().ok_or(Fault::Gone)?;
        match job.state {
            JobState::Scheduled | JobState::Queued => Ok(job),
            other => Err(Fault::State(other)),
        }
    }

    pub fn delete(&mut self, no: No) -> Deleted {
        match self.job(no).map(|job| job.state) {
            None => Deleted::NotFound,
            Some(state) if !state.is_final() => Deleted::WrongState(state),
            Some(_) => {
                self.jobs[no] = None;
                self.deleted.insert(no);
                Deleted::Done
            }
        }
    }

    pub fn promote(&mut self) {
        let now = self.now;
        for job in self.jobs.iter_mut().flatten() {
            if job.state == JobState::Scheduled && job.due <= now {
                job.moves(JobState::Queued);
            }
        }
    }

    pub fn expire_jobs(&mut self) {
        let now = self.now;
        for job in self.jobs.iter_mut().flatten() {
            let is_open = matches!(job.state, JobState::Scheduled | JobState::Queued);
            if is_open && job.is_expired(now) {
                job.ends(JobState::Failed, now);
            }
        }
    }

    pub fn expire(&mut self) {
        let now = self.now;
        for session in &mut self.sessions {
            session.dead |= session.expires <= now;
        }
        for job in self.jobs.iter_mut().flatten() {
            let Some(by) = job.holder.filter(|_| job.state == JobState::Running) else {
                continue;
            };
            if self.sessions[by].dead {
                job.loses(by, AttemptOutcome::LeaseLost, now);
            }
        }
    }

    pub fn retain(&mut self) {
        for job in &mut self.jobs {
            if job
                .as_ref()
                .is_some_and(|job| job.state.is_final() && job.purge <= self.now)
            {
                *job = None;
            }
        }
    }
}
