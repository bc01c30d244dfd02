//! The store, abstract: what the rules of `store/` say, on a few rows, each verb one step. It keeps what no database
//! does, so that the laws can be judged: to whom each attempt was granted, and how each ended.

use std::collections::BTreeSet;
use std::time::Duration;

use leasehold::job::state::Cause;
use leasehold::job::{
    AttemptOutcome, Ending, JobState, Lease, Outcome, SessionId, Standing, Verdict,
};
use leasehold::store::SessionState;
use uuid::Uuid;

use super::broken::Rule;
use super::wire::{Id, Said, TTL, Told, job_id, job_of, told};

/// Failures that a job may have, and leases that it may lose; one more and it is FAILED.
const FAILURES_MAX: u8 = 2;
const LOST_MAX: u8 = 2;
/// Leases older than this are looked for by a look.
const OLD: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Job {
    /// `None`: it was not accepted yet.
    pub state: Option<JobState>,
    pub attempt: u32,
    pub session: Option<Id>,
    pub granted_at: Duration,
    failures: u8,
    lost: u8,
    releases: u8,
    /// When a SCHEDULED job is due.
    pub due: Duration,
    /// The rows of `attempts`.
    pub ended: Vec<(u32, Id, AttemptOutcome)>,
    /// Whose each attempt was.
    grants: Vec<Id>,
    /// The result that was recorded.
    pub result: Option<(u32, Id)>,
    /// Retention has removed it.
    pub gone: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row {
    pub attach: u64,
    pub expires: Duration,
    pub dead: bool,
    /// It was dead once.
    pub died: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    pub rule: Rule,
    /// All jobs are asked for under one key.
    pub has_key: bool,
    pub jobs: Vec<Job>,
    /// `None`: tidied away.
    pub sessions: Vec<Option<Row>>,
    /// What was told STALE may never be recorded.
    pub stale: BTreeSet<(Lease, Id, Said)>,
    /// The law that was broken.
    pub fault: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attaching {
    Resumed,
    Superseded,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granted {
    Lease(Lease),
    NotQueued,
    Refused(State),
}

/// [`SessionState`], which has no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Alive,
    Lapsed,
    Moved,
    Dead,
}

impl From<State> for SessionState {
    fn from(state: State) -> Self {
        match state {
            State::Alive => Self::Alive,
            State::Lapsed => Self::Lapsed,
            State::Moved => Self::Moved,
            State::Dead => Self::Dead,
        }
    }
}

fn uuid(session: Id) -> SessionId {
    SessionId::from_store(Uuid::from_u128(session.into()))
}

impl Store {
    pub fn new(rule: Rule, jobs: usize, accepted: bool, has_key: bool) -> Self {
        let job = Job {
            state: accepted.then_some(JobState::Queued),
            attempt: 0,
            session: None,
            granted_at: Duration::ZERO,
            failures: 0,
            lost: 0,
            releases: 0,
            due: Duration::ZERO,
            ended: Vec::new(),
            grants: Vec::new(),
            result: None,
            gone: false,
        };
        Self {
            rule,
            has_key,
            jobs: vec![job; jobs],
            sessions: Vec::new(),
            stale: BTreeSet::new(),
            fault: None,
        }
    }

    pub fn is_final(&self, job: usize) -> bool {
        self.jobs[job].state.is_none_or(JobState::is_final)
    }

    pub fn is_queued(&self, job: usize) -> bool {
        self.jobs[job].state == Some(JobState::Queued) && !self.jobs[job].gone
    }

    pub fn open_session(&mut self, now: Duration) -> Id {
        self.sessions.push(Some(Row {
            attach: 1,
            expires: now + TTL,
            dead: false,
            died: false,
        }));
        (self.sessions.len() - 1) as Id
    }

    pub fn row(&self, session: Id) -> Option<&Row> {
        self.sessions[session as usize].as_ref()
    }

    pub fn attach(&mut self, session: Id, attach: u64, now: Duration) -> Attaching {
        let any = self.rule == Rule::AttachAnyNumber;
        let renews = self.rule != Rule::AttachRenewsNothing;
        match &mut self.sessions[session as usize] {
            Some(row) if !row.dead && (row.attach < attach || any) => {
                *row = Row {
                    attach,
                    expires: if renews { now + TTL } else { row.expires },
                    dead: false,
                    died: row.died,
                };
                Attaching::Resumed
            }
            Some(row) if !row.dead => Attaching::Superseded,
            _ => Attaching::Gone,
        }
    }

    pub fn state(&self, session: Id, attach: u64, now: Duration) -> State {
        match self.row(session) {
            Some(row) if row.dead => State::Dead,
            None => State::Dead,
            Some(row) if row.attach != attach && self.rule != Rule::GrantAnyStream => State::Moved,
            Some(row) if row.expires < now => State::Lapsed,
            Some(_) => State::Alive,
        }
    }

    pub fn renew(&mut self, session: Id, attach: u64, now: Duration) -> State {
        let revive = self.rule == Rule::RenewDead;
        match &mut self.sessions[session as usize] {
            Some(row) if row.dead && !revive => State::Dead,
            None => State::Dead,
            Some(row) if row.attach != attach => State::Moved,
            Some(row) => {
                row.dead = false;
                row.expires = now + TTL;
                State::Alive
            }
        }
    }

    pub fn grant(&mut self, job: usize, session: Id, attach: u64, now: Duration) -> Granted {
        match self.state(session, attach, now) {
            State::Alive => self.hand_out(job, session, now),
            refused => Granted::Refused(refused),
        }
    }

    /// The grant's write, once its session is known to be alive.
    pub fn hand_out(&mut self, job: usize, session: Id, now: Duration) -> Granted {
        let running = self.jobs[job].state == Some(JobState::Running);
        let blind = self.rule == Rule::GrantUnguarded && running;
        if !self.is_queued(job) && !blind {
            return Granted::NotQueued;
        }
        let ended = |row: &Job| {
            (1..=row.attempt).all(|attempt| row.ended.iter().any(|(ended, ..)| *ended == attempt))
        };
        let holds = ended(&self.jobs[job]);
        self.law(
            holds,
            "I5: a job is handed out again only when its last attempt has ended",
        );
        self.change(job, Cause::Grant, |row| {
            row.state = Some(JobState::Running);
            row.attempt += 1;
            row.session = Some(session);
            row.granted_at = now;
            row.grants.truncate(row.attempt as usize - 1);
            row.grants.push(session);
        });
        Granted::Lease(Lease {
            job: job_id(job),
            attempt: self.jobs[job].attempt,
        })
    }

    /// Whose an attempt is or was.
    pub fn holder(&self, lease: Lease) -> Option<Id> {
        let grants = &self.jobs[job_of(lease)].grants;
        grants.get(lease.attempt as usize - 1).copied()
    }

    /// How an attempt ended, if it did.
    pub fn ending(&self, lease: Lease) -> Option<AttemptOutcome> {
        let ended = &self.jobs[job_of(lease)].ended;
        let of = ended.iter().rev().find(|(a, ..)| *a == lease.attempt);
        of.map(|(.., outcome)| *outcome)
    }

    pub fn holds(&self, lease: Lease, session: Id) -> bool {
        let job = &self.jobs[job_of(lease)];
        job.state == Some(JobState::Running)
            && !job.gone
            && job.attempt == lease.attempt
            && job.session == Some(session)
    }

    pub fn is_dead(&self, session: Id) -> bool {
        self.row(session).is_none_or(|row| row.dead)
    }

    /// The leases of a session, for a node that has it under this number.
    pub fn leases(&self, session: Id, attach: u64) -> Option<Vec<Lease>> {
        self.row(session)
            .filter(|row| !row.dead && row.attach == attach)?;
        Some(self.leases_of(session))
    }

    pub fn leases_of(&self, session: Id) -> Vec<Lease> {
        (0..self.jobs.len())
            .filter_map(|job| self.running(job, session))
            .collect()
    }

    pub fn old_leases(&self, session: Id, attach: u64, now: Duration) -> Option<Vec<Lease>> {
        let mut leases = self.leases(session, attach)?;
        leases.retain(|lease| self.jobs[job_of(*lease)].granted_at + OLD <= now);
        Some(leases)
    }

    pub fn running(&self, job: usize, session: Id) -> Option<Lease> {
        let row = &self.jobs[job];
        let lease = Lease {
            job: job_id(job),
            attempt: row.attempt,
        };
        self.holds(lease, session).then_some(lease)
    }

    /// What is left of an attempt's time.
    pub fn time_left(&self, lease: Lease, timeout: Duration, now: Duration) -> Duration {
        (self.jobs[job_of(lease)].granted_at + timeout).saturating_sub(now)
    }

    pub fn finish(&mut self, lease: Lease, session: Id, ending: &Outcome, now: Duration) -> Told {
        let row = &self.jobs[job_of(lease)];
        let Some(state) = row.state else {
            return Told::Unknown;
        };
        let rule = self.rule;
        if row.gone && rule != Rule::PurgedIsStale {
            return Told::Unknown;
        }
        if row.gone {
            return Told::Stale;
        }
        let recorded = row.ended.iter().rev().find(|(a, ..)| *a == lease.attempt);
        let standing = Standing {
            state,
            attempt: row.attempt,
            session: row.session.map(uuid),
            recorded: recorded.map(|(_, session, outcome)| (uuid(*session), *outcome)),
        };
        let asked = Ending {
            lease,
            session: uuid(session),
            outcome: ending.clone(),
            chance: 0.0,
        };
        let unfenced = rule == Rule::NoFence && state == JobState::Running;
        if standing.lets_in(&asked) || unfenced {
            self.record(lease, session, ending, now);
            return Told::Recorded;
        }
        match standing.verdict(&asked) {
            Verdict::Recorded(_) if rule == Rule::CopyIsStale => Told::Stale,
            verdict => told(&verdict),
        }
    }

    fn record(&mut self, lease: Lease, session: Id, ending: &Outcome, now: Duration) {
        let job = job_of(lease);
        let is_salvage = self.judge_record(lease, session, ending);
        let cause = match (ending, is_salvage) {
            (Outcome::Success(_), true) => Cause::Salvage,
            (Outcome::Success(_), false) => Cause::Success,
            (Outcome::Failure(_) | Outcome::TimedOut, _) => Cause::Failure,
            (Outcome::Forgotten, _) => Cause::LeaseLost,
            (Outcome::Release { .. }, _) => Cause::Release,
        };
        let keeps = self.rule == Rule::TimeoutKeepsSession;
        self.change(job, cause, |row| match ending {
            Outcome::Success(_) => {
                row.state = Some(JobState::Succeeded);
                row.session = Some(session);
                row.result = Some((lease.attempt, session));
            }
            Outcome::Failure(_) => row.fail(session, AttemptOutcome::Failed),
            Outcome::TimedOut => {
                row.fail(session, AttemptOutcome::TimedOut);
                row.session = keeps.then_some(session);
            }
            Outcome::Forgotten => row.lose(session, AttemptOutcome::Forgotten, false),
            Outcome::Release { .. } => {
                // From the second on they wait: else they would go round without end while the clock stands still.
                (row.state, row.due) = match row.releases {
                    0 => (Some(JobState::Queued), Duration::ZERO),
                    _ => (Some(JobState::Scheduled), now + OLD),
                };
                row.releases = (row.releases + 1).min(2);
                row.session = None;
                row.ended
                    .push((row.attempt, session, AttemptOutcome::Released));
            }
        });
    }

    pub fn is_expired(&self, session: Id, now: Duration) -> bool {
        self.row(session)
            .is_some_and(|row| !row.dead && row.expires < now)
    }

    pub fn bury(&mut self, session: Id) {
        if let Some(row) = &mut self.sessions[session as usize] {
            row.dead = true;
            row.died = true;
        }
    }

    /// The job of a dead session is a lost lease.
    pub fn take_back(&mut self, job: usize) {
        let Some(session) = self.jobs[job].session else {
            return;
        };
        let gives_back = self.rule == Rule::AttemptGivenBack;
        self.change(job, Cause::LeaseLost, |row| {
            row.lose(session, AttemptOutcome::LeaseLost, gives_back);
        });
    }

    /// A RUNNING job whose session is dead.
    pub fn is_lost(&self, job: usize) -> bool {
        let row = &self.jobs[job];
        let runs = row.state == Some(JobState::Running) && !row.gone;
        runs && row.session.is_some_and(|id| self.is_dead(id))
    }

    pub fn can_drop(&self, session: Id) -> bool {
        self.row(session).is_some_and(|row| row.dead) && self.leases_of(session).is_empty()
    }

    pub fn drop_session(&mut self, session: Id) {
        self.sessions[session as usize] = None;
    }

    pub fn close_session(&mut self, session: Id, attach: u64) {
        if self.row(session).is_some_and(|row| row.attach == attach) {
            self.bury(session);
        }
    }

    pub fn promote(&mut self, job: usize) {
        self.change(job, Cause::Due, |row| {
            row.state = Some(JobState::Queued);
            row.due = Duration::ZERO;
        });
    }

    /// The lease that it was running under, to be told of.
    pub fn cancel(&mut self, job: usize) -> Option<(Lease, Id)> {
        let row = &self.jobs[job];
        let running = row
            .session
            .and_then(|id| Some((self.running(job, id)?, id)));
        self.change(job, Cause::Cancel, |row| {
            if let Some((lease, session)) = running {
                row.ended
                    .push((lease.attempt, session, AttemptOutcome::Cancelled));
            }
            row.state = Some(JobState::Cancelled);
            row.due = Duration::ZERO;
            row.session = None;
        });
        running
    }

    pub fn retry(&mut self, job: usize) {
        let keeps = self.rule == Rule::RetryKeepsSession;
        self.change(job, Cause::Retry, |row| {
            row.state = Some(JobState::Queued);
            row.failures = 0;
            row.lost = 0;
            row.session = row.grants.last().copied().filter(|_| keeps);
        });
    }
}

impl Job {
    fn fail(&mut self, session: Id, outcome: AttemptOutcome) {
        self.failures += 1;
        self.state = Some(match self.failures < FAILURES_MAX {
            true => JobState::Scheduled,
            false => JobState::Failed,
        });
        self.session = None;
        self.ended.push((self.attempt, session, outcome));
    }

    fn lose(&mut self, session: Id, outcome: AttemptOutcome, gives_back: bool) {
        self.lost += 1;
        self.ended.push((self.attempt, session, outcome));
        match self.lost <= LOST_MAX {
            true => self.state = Some(JobState::Queued),
            false => {
                self.state = Some(JobState::Failed);
                self.session = None;
            }
        }
        if gives_back {
            self.attempt -= 1;
        }
    }
}
