//! A sequence as it is played, on the store and in the model at once.

use std::time::Duration;

use leasehold::job::draft::{RawExpiry, RawStart};
use leasehold::job::{
    By, Ending, JobId, JobState, Lease, NewJob, Outcome, Priority, Start, UniqueConflict,
    UniqueKey, Verdict, View,
};
use leasehold::store::{
    Ask, Attach, Attached, Cancelled, Enqueued, Granted, Line, Rescheduled, Retried, SessionState,
    Unit,
};

mod saying;

use super::Op;
use super::model::{Asked, BACKOFF, Fault, Model, No, RETENTION, TICK, TTL, Unique, Unretried};
use crate::steps::{
    ANY_AGE, backoff, ending, failure, fresh_epoch, jobs_of, line_of, permanent_failure, raw,
    release_after, success,
};
use crate::world::World;

/// A sequence as it is played: what the model calls by numbers, by the names that the store knows.
pub struct Play {
    world: World,
    model: Model,
    jobs: Vec<NewJob>,
    /// When the id was made.
    made: Vec<u64>,
    sessions: Vec<Attached>,
    /// All leases there ever were, of each job, and who had them.
    leases: Vec<Vec<(u32, No)>>,
}

impl Play {
    pub async fn play(world: World, ops: Vec<Op>) {
        let mut play = Self {
            world,
            model: Model::default(),
            jobs: Vec::new(),
            made: Vec::new(),
            sessions: Vec::new(),
            leases: Vec::new(),
        };
        for op in &ops {
            play.step(op).await;
            play.compare().await;
        }
        play.end().await;
    }

    fn new_job(&self, delay: u64, expires_in: Option<u64>, max_attempts: u32) -> NewJob {
        self.world.job_with(|d| {
            d.start = match delay {
                0 => RawStart::Now,
                n => RawStart::Delay(raw(span(n))),
            };
            d.expiry = expires_in.map(|ticks| RawExpiry::In(raw(span(ticks))));
            d.max_attempts = max_attempts;
            d.backoff = backoff(span(BACKOFF), span(4 * BACKOFF), 2.0);
            d.retention = Some(raw(span(RETENTION)));
        })
    }

    fn some_job(&self, no: No) -> Option<No> {
        (!self.jobs.is_empty()).then(|| no % self.jobs.len())
    }

    /// A session, and the number of its present stream, or of another one.
    fn some_session(&self, no: No, is_present: bool) -> Option<(No, Attached)> {
        let no = no.checked_rem(self.sessions.len())?;
        let attach = self.model.sessions[no].attach + u64::from(!is_present);
        Some((
            no,
            Attached {
                attach,
                ..self.sessions[no]
            },
        ))
    }

    /// A lease of a job that was handed out, mostly the newest; else one that never was.
    fn some_lease(&self, job: No, no: usize) -> Option<(u32, No)> {
        let all = &self.leases[job];
        match all.len() {
            0 => (!self.sessions.is_empty()).then(|| (1, no % self.sessions.len())),
            count if no % 4 == 0 => Some(all[no / 4 % count]),
            count => Some(all[count - 1]),
        }
    }

    async fn step(&mut self, op: &Op) {
        match op {
            Op::Enqueue {
                count,
                delay,
                begins_within,
                max_attempts,
                unit,
            } => {
                let expires_in = (*begins_within > 0).then_some(delay + begins_within);
                self.enqueue(*count, *delay, expires_in, *max_attempts, *unit)
                    .await;
            }
            Op::EnqueueUnique {
                key,
                conflict,
                delay,
                all,
            } => self.enqueue_unique(*key, *conflict, *delay, *all).await,
            Op::EnqueueAgain { job, other, all } => self.enqueue_again(*job, *other, *all).await,
            Op::Open => {
                let session = self.world.open_on(self.world.node, "w", span(TTL)).await;
                self.sessions.push(session);
                self.model.open();
            }
            Op::Attach(no, up) => {
                if let Some((no, to)) = self.some_session(*no, true) {
                    let to = Attached {
                        attach: to.attach + up,
                        ..to
                    };
                    let node = self.world.node;
                    let told = self.world.store.attach(vec![Attach { to, node }]).await;
                    assert_eq!(
                        told.expect("attach answers"),
                        [self.model.attach(no, to.attach)]
                    );
                }
            }
            Op::Renew(some) => self.renew(some).await,
            Op::Close(no, is_present) => {
                if let Some((no, of)) = self.some_session(*no, *is_present) {
                    self.world
                        .store
                        .close_sessions(vec![of])
                        .await
                        .expect("close answers");
                    self.model.close(no, of.attach);
                }
            }
            Op::Grant(asks) => self.grant(asks).await,
            Op::Finish(some) => self.finish(some).await,
            Op::Say(job, lease, first, count) => self.say(*job, *lease, *first, *count).await,
            Op::Report(job, lease, revision, has_checkpoint) => {
                self.report(*job, *lease, *revision, *has_checkpoint).await;
            }
            Op::Cancel(job) => self.cancel(*job).await,
            Op::Delete(job) => {
                if let Some(no) = self.some_job(*job) {
                    let told = self
                        .world
                        .store
                        .delete(self.jobs[no].id, By::default())
                        .await;
                    assert_eq!(told.expect("delete answers"), self.model.delete(no));
                }
            }
            Op::Reschedule(job, delay) => {
                if let Some(no) = self.some_job(*job) {
                    let start = Start::After(span(*delay));
                    let told = self
                        .world
                        .store
                        .reschedule(self.jobs[no].id, start, By::default())
                        .await;
                    let expected = self.model.reschedule(no, *delay);
                    steered(told.expect("reschedule answers"), expected);
                }
            }
            Op::SetPriority(job, is_high) => {
                if let Some(no) = self.some_job(*job) {
                    let level = [Priority::Normal, Priority::High][usize::from(*is_high)];
                    let id = self.jobs[no].id;
                    let told = self
                        .world
                        .store
                        .set_priority(id, level, By::default())
                        .await;
                    let expected = self.model.set_priority(no, level);
                    steered(told.expect("set_priority answers"), expected);
                }
            }
            Op::Retry(job, delay) => self.retry(*job, *delay).await,
            Op::Pass(ticks) => self.pass(*ticks).await,
            Op::Promote => {
                self.pass(1).await;
                self.model.promote();
                self.world.promote().await;
            }
            Op::ExpireJobs => {
                self.model.expire_jobs();
                let swept = self.world.store.expire_jobs(1_000).await;
                swept.expect("it answers");
            }
            Op::Expire => {
                self.model.expire();
                self.world.expire().await;
            }
            Op::Retain => {
                self.model.retain();
                self.world.retain().await;
            }
            Op::Tidy => drop(self.world.tidy().await),
            Op::Claim => self.claim().await,
            Op::Leases(no) => self.look_at_leases(*no).await,
        }
    }

    async fn pass(&mut self, ticks: u64) {
        self.model.now += ticks;
        self.world.advance(span(ticks)).await;
    }

    async fn enqueue(
        &mut self,
        count: usize,
        delay: u64,
        expires_in: Option<u64>,
        max_attempts: u32,
        all: bool,
    ) {
        let new: Vec<NewJob> = (0..count)
            .map(|_| self.new_job(delay, expires_in, max_attempts))
            .collect();
        let unit = if all { Unit::All } else { Unit::Each };
        let told = self.world.enqueue(new.clone(), unit).await;
        assert!(
            told.jobs
                .iter()
                .all(|told| matches!(told, Enqueued::Created(_)))
        );
        for job in new {
            self.model.enqueue(delay, expires_in, max_attempts);
            self.jobs.push(job);
            self.made.push(self.model.now);
            self.leases.push(Vec::new());
        }
    }

    async fn enqueue_unique(&mut self, key: u8, conflict: UniqueConflict, delay: u64, all: bool) {
        let mut new = self.new_job(delay, None, 1);
        new.spec.unique_key = UniqueKey::parse(&format!("key {key}"));
        new.unique_conflict = conflict;
        let unit = if all { Unit::All } else { Unit::Each };
        let told = self.world.enqueue(vec![new.clone()], unit).await;
        match (
            self.model.enqueue_unique(key, conflict, delay),
            &told.jobs[0],
        ) {
            (Unique::New, Enqueued::Created(_)) => {
                self.jobs.push(new);
                self.made.push(self.model.now);
                self.leases.push(Vec::new());
            }
            (Unique::Kept(no), Enqueued::Existed(job)) => assert_eq!(job.id, self.jobs[no].id),
            (Unique::Refused(no), Enqueued::UniqueConflict(id)) => {
                assert_eq!(*id, self.jobs[no].id);
            }
            (expected, told) => panic!("{told:?} instead of {expected:?}"),
        }
    }

    async fn enqueue_again(&mut self, job: No, other: bool, all: bool) {
        let Some(no) = self.some_job(job) else { return };
        let mut again = self.jobs[no].clone();
        if again.spec.unique_key.is_some() {
            // Once it is forgotten, it is another job by now that is found under its key.
            return;
        }
        if other {
            again.fingerprint = [7; 32];
        }
        let unit = if all { Unit::All } else { Unit::Each };
        // Beside a new one, which an All must not let in when the other is refused.
        let new = self.new_job(0, None, 1);
        let told = self
            .world
            .enqueue(vec![again, new.clone()], unit)
            .await
            .jobs;
        let is_refused = match (&told[0], self.model.job(no)) {
            (Enqueued::Existed(found), Some(job)) if !other => {
                assert_eq!((found.state, found.revision), (job.state, job.revision));
                false
            }
            (Enqueued::Conflict, Some(_)) if other => true,
            (Enqueued::Conflict, None) if self.model.deleted.contains(&no) => true,
            (Enqueued::IdOutOfTime, None) if !self.model.id_is_young(self.made[no]) => true,
            (told, job) => panic!("told {told:?} of {job:?}"),
        };
        match (&told[1], is_refused && all) {
            (Enqueued::NotTried, true) => {}
            (Enqueued::Created(_), false) => {
                self.model.enqueue(0, None, 1);
                self.jobs.push(new);
                self.made.push(self.model.now);
                self.leases.push(Vec::new());
            }
            (told, _) => panic!("{told:?}"),
        }
    }

    async fn renew(&mut self, some: &[(No, bool)]) {
        let mut asked: Vec<(No, Attached)> = Vec::new();
        for (no, is_present) in some {
            if let Some(one) = self.some_session(*no, *is_present)
                && asked.iter().all(|(no, _)| *no != one.0)
            {
                asked.push(one);
            }
        }
        let told = self
            .world
            .store
            .renew(asked.iter().map(|(_, of)| *of).collect())
            .await;
        let expected: Vec<SessionState> = asked
            .iter()
            .map(|(no, of)| self.model.renew(*no, of.attach))
            .collect();
        assert_eq!(told.expect("renew answers"), expected);
    }

    async fn grant(&mut self, asks: &[(No, No, bool)]) {
        let mut asked: Vec<(No, No, Attached)> = Vec::new();
        for (job, session, is_present) in asks {
            if let (Some(job), Some((no, to))) = (
                self.some_job(*job),
                self.some_session(*session, *is_present),
            ) && asked.iter().all(|(other, ..)| *other != job)
            {
                asked.push((job, no, to));
            }
        }
        let all = asked.iter().map(|(job, _, to)| Ask {
            job: self.jobs[*job].id,
            to: *to,
        });
        let told = self.world.grant(all.collect()).await;
        for ((job, session, to), told) in asked.into_iter().zip(told) {
            match (self.model.grant(job, session, to.attach), told) {
                (Asked::Lease(attempt), Granted::Lease(leased)) => {
                    assert_eq!(leased.lease.attempt, attempt);
                    let known = self.model.job(job).expect("it is there");
                    let (revision, checkpoint) = known.progress.clone().unwrap_or_default();
                    assert_eq!(leased.progress_revision, revision);
                    assert_eq!(leased.checkpoint, checkpoint.map(Into::into));
                    assert_eq!(
                        (leased.failures, leased.lost_leases, leased.releases),
                        (known.failures, known.lost, known.releases)
                    );
                    self.leases[job].push((attempt, session));
                }
                (Asked::NotQueued, Granted::NotQueued) => {}
                (Asked::Refused(expected), Granted::Refused(state)) => assert_eq!(state, expected),
                (expected, told) => panic!("{told:?} instead of {expected:?}"),
            }
        }
    }

    async fn finish(&mut self, some: &[(No, usize, u8)]) {
        let mut endings: Vec<Ending> = Vec::new();
        let mut expected: Vec<Verdict> = Vec::new();
        for (job, lease, how) in some {
            let Some(job) = self.some_job(*job) else {
                continue;
            };
            let Some((attempt, by)) = self.some_lease(job, *lease) else {
                continue;
            };
            let outcome = outcome(*how);
            let lease = Lease {
                job: self.jobs[job].id,
                attempt,
            };
            expected.push(self.model.finish(job, attempt, by, &outcome));
            endings.push(ending(lease, self.sessions[by], outcome));
        }
        let told = self.world.finish_all(endings.clone()).await.verdicts;
        for ((told, expected), ending) in told.into_iter().zip(expected).zip(&endings) {
            let same = endings.iter().filter(|e| e.lease.job == ending.lease.job);
            match (same.count(), &told, &expected) {
                // Several of one job in a batch: in which order they were looked at, nobody can tell.
                (2.., Verdict::Stale(..), Verdict::Stale(..))
                | (2.., Verdict::Recorded(_), Verdict::Recorded(_)) => {}
                _ => assert_eq!(told, expected, "of {ending:?} in {endings:?}"),
            }
        }
    }

    async fn cancel(&mut self, job: No) {
        let Some(no) = self.some_job(job) else { return };
        match (
            self.model.cancel(no),
            self.world.cancel(self.jobs[no].id).await,
        ) {
            (Ok(ran), Cancelled::Done(job, had)) => {
                let lease = Lease {
                    job: job.id,
                    attempt: job.attempt,
                };
                assert_eq!(had, ran.map(|by| (lease, self.sessions[by].session)));
            }
            (Err(Some(JobState::Cancelled)), Cancelled::Already(_)) => {}
            (Err(Some(state)), Cancelled::WrongState(told)) => assert_eq!(told, state),
            (Err(None), Cancelled::NotFound) => {}
            (expected, told) => panic!("{told:?} instead of {expected:?}"),
        }
    }

    async fn retry(&mut self, job: No, delay: u64) {
        let Some(no) = self.some_job(job) else { return };
        let told = self.world.retry(self.jobs[no].id, span(delay)).await;
        match (self.model.retry(no, delay), told) {
            (Ok(()), Retried::Done(..)) | (Err(Unretried::Gone), Retried::NotFound) => {}
            (Err(Unretried::State(state)), Retried::WrongState(told)) => assert_eq!(told, state),
            (Err(Unretried::KeyHeld(by)), Retried::KeyHeld(told)) => {
                assert_eq!(told, self.jobs[by].id);
            }
            (expected, told) => panic!("{told:?} instead of {expected:?}"),
        }
    }

    /// What is lent is QUEUED, and nothing twice.
    async fn claim(&mut self) {
        let line = line_of(&self.new_job(0, None, 1));
        let lines = [Priority::Normal, Priority::High].map(|priority| Line {
            priority,
            ..line.clone()
        });
        let lent = self.world.claim(&lines, ANY_AGE, 1_000).await;
        let lost = self
            .world
            .unoffered(fresh_epoch(), ANY_AGE, ANY_AGE, 1_000)
            .await;
        for segments in [lent, lost] {
            let mut named: Vec<JobId> = jobs_of(&segments);
            named.sort_unstable();
            assert_eq!(named, self.in_state(JobState::Queued));
        }
    }

    fn in_state(&self, state: JobState) -> Vec<JobId> {
        let is_so = |no: &No| self.model.job(*no).is_some_and(|job| job.state == state);
        let mut ids: Vec<JobId> = (0..self.jobs.len())
            .filter(is_so)
            .map(|no| self.jobs[no].id)
            .collect();
        ids.sort_unstable();
        ids
    }

    async fn look_at_leases(&mut self, no: No) {
        let Some((no, of)) = self.some_session(no, true) else {
            return;
        };
        let told = self
            .world
            .store
            .leases(vec![of], ANY_AGE)
            .await
            .expect("leases answers")
            .remove(0);
        let told = told.map(|held| {
            let mut leases: Vec<Lease> = held.iter().map(|held| held.lease).collect();
            leases.sort_unstable();
            leases
        });
        let is_dead = self.model.sessions[no].dead;
        let mut held: Vec<Lease> = Vec::new();
        for (i, job) in self.model.jobs.iter().enumerate() {
            if let Some(job) = job
                && job.state == JobState::Running
                && job.holder == Some(no)
            {
                held.push(Lease {
                    job: self.jobs[i].id,
                    attempt: job.attempt,
                });
            }
        }
        held.sort_unstable();
        assert_eq!(told, (!is_dead).then_some(held));
    }

    /// Each job against the model's.
    async fn compare(&self) {
        if self.jobs.is_empty() {
            return;
        }
        let ids = self.jobs.iter().map(|job| job.id).collect();
        let found = self
            .world
            .store
            .get(ids, View::Full)
            .await
            .expect("get answers");
        for (no, found) in found.into_iter().enumerate() {
            let (Some(found), Some(job)) = (&found, self.model.job(no)) else {
                assert_eq!(
                    found.is_some(),
                    self.model.job(no).is_some(),
                    "is job {no} there? {found:?}"
                );
                continue;
            };
            assert_eq!(
                (found.state, found.revision, found.attempt),
                (job.state, job.revision, job.attempt),
                "{found:?}"
            );
            let replaced_by = job.replaced_by.map(|by| self.jobs[by].id);
            assert_eq!(found.replaced_by, replaced_by, "{found:?}");
            assert_eq!(
                (found.failures, found.lost_leases, found.releases),
                (job.failures, job.lost, job.releases),
                "{found:?}"
            );
            let history: Vec<_> = found
                .attempts
                .iter()
                .map(|a| (a.attempt, a.outcome))
                .collect();
            let expected: Vec<_> = job
                .ended
                .iter()
                .map(|(n, (_, outcome))| (*n, *outcome))
                .collect();
            assert_eq!(history, expected);
            let progress = found.progress.clone().map(|p| (p.revision, p.checkpoint));
            let expected = job
                .progress
                .clone()
                .map(|(n, checkpoint)| (n, checkpoint.map(Into::into)));
            assert_eq!(progress, expected);
            assert_eq!(found.output.is_some(), job.state == JobState::Succeeded);
        }
    }

    /// The audit of any case; then everything is brought to its end, and must be forgotten in time.
    async fn end(mut self) {
        crate::audit::audit(self.world.clone()).await;
        for no in 0..self.jobs.len() {
            self.cancel(no).await;
        }
        self.world
            .advance(Duration::from_secs(7 * 24 * 60 * 60))
            .await;
        for _ in 0..3 {
            self.world.expire().await;
            self.world.retain().await;
            self.world.advance(TICK).await;
        }
        let ids = self.jobs.iter().map(|job| job.id).collect();
        let left = self
            .world
            .store
            .get(ids, View::Basic)
            .await
            .expect("get answers");
        assert!(
            left.iter().all(Option::is_none),
            "final implies a row by which it is removed: {left:?}"
        );
    }
}

fn steered(told: Rescheduled, expected: Result<(), Fault>) {
    match (told, expected) {
        (Rescheduled::Done(..), Ok(()))
        | (Rescheduled::NotFound, Err(Fault::Gone))
        | (Rescheduled::ExpiresTooSoon, Err(Fault::Expires)) => {}
        (Rescheduled::WrongState(is), Err(Fault::State(state))) => assert_eq!(is, state),
        (told, expected) => panic!("{told:?} instead of {expected:?}"),
    }
}

fn span(ticks: u64) -> Duration {
    TICK * u32::try_from(ticks).expect("a case lives for less")
}

fn outcome(how: u8) -> Outcome {
    match how {
        0 => failure(),
        1 => permanent_failure(),
        2 => Outcome::TimedOut,
        3 => Outcome::Forgotten,
        4 => release_after(Duration::ZERO),
        5 => release_after(span(2)),
        _ => success(),
    }
}
