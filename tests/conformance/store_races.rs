//! Everybody at once on the same few jobs: whoever wins, nothing is lost, recorded twice or miscounted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::job::draft::Draft;
use leasehold::job::{JobId, JobState, Lease, NodeId, Outcome, Progress, Verdict};
use leasehold::store::{
    Ask, Attach, Attached, Attaching, Granted, JobFilter, Report, SessionState, Unit,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::steps::{
    ANY_AGE, backoff, ending, failure, fresh_epoch, line_of, permanent_failure, release, secs,
    success,
};
use crate::world::World;

/// Rounds of each of those who take part.
const ROUNDS: usize = 120;
/// Jobs that they meet on, at most: few, so that they meet.
const JOBS: usize = 150;

/// The wait after a failure.
const MOMENT: Duration = Duration::from_millis(1);

/// What all of them know.
#[derive(Clone)]
struct Race {
    world: World,
    jobs: Arc<Mutex<Vec<JobId>>>,
    /// How often a success of a job was called recorded for the first time, by lease.
    successes: Arc<Mutex<BTreeMap<JobId, Lease>>>,
}

impl Race {
    fn some(&self, count: usize) -> Vec<JobId> {
        let jobs = self.jobs.lock().unwrap();
        let mut some: Vec<JobId> = (0..count.min(jobs.len()))
            .map(|_| jobs[rand::random_range(0..jobs.len())])
            .collect();
        some.sort_unstable();
        some.dedup();
        some
    }

    async fn enqueuer(self) {
        for _ in 0..ROUNDS {
            let room = JOBS.saturating_sub(self.jobs.lock().unwrap().len());
            // A failure comes due at once, so that they meet there too.
            let soon = |d: &mut Draft| d.backoff = backoff(MOMENT, MOMENT, 1.0);
            let new: Vec<_> = (0..room.min(5))
                .map(|_| self.world.job_with(soon))
                .collect();
            if !new.is_empty() {
                let ids: Vec<JobId> = new.iter().map(|job| job.id).collect();
                let unit = match rand::random_bool(0.5) {
                    true => Unit::Each,
                    false => Unit::All,
                };
                self.world.enqueue(new, unit).await;
                self.jobs.lock().unwrap().extend(ids);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn worker(self) {
        let (mut node, mut session) = (self.world.node, self.world.open().await);
        // Those it was told of, of this session and of ones that it lost.
        let mut held: Vec<(Lease, Attached)> = Vec::new();
        for round in 0..ROUNDS {
            let asks: Vec<Ask> = self
                .some(20)
                .into_iter()
                .map(|job| Ask { job, to: session })
                .collect();
            for answer in self.world.store.grant(node, asks).await.unwrap() {
                match answer {
                    Granted::Lease(job) => held.push((job.lease, session)),
                    Granted::Refused(state) => {
                        panic!("nobody has ended this session, and it is {state:?}")
                    }
                    Granted::NotQueued | Granted::Locked => {}
                }
            }
            if round % 7 == 6 {
                self.world
                    .store
                    .close_sessions(vec![session])
                    .await
                    .unwrap();
                (node, session) = (self.world.node, self.world.open().await);
            }
            if round % 5 == 4 {
                (node, session) = self.move_on(session).await;
            }
            self.progress(&held, round).await;
            let some: Vec<_> = held
                .iter()
                .copied()
                .filter(|_| rand::random_bool(0.5))
                .collect();
            self.report(&some).await;
            if rand::random_bool(0.5) {
                held.retain(|one| !some.contains(one));
            }
        }
        self.world
            .store
            .close_sessions(vec![session])
            .await
            .unwrap();
    }

    /// Its stream breaks, and it comes back elsewhere; the late renewal of the old stream changes nothing.
    async fn move_on(&self, old: Attached) -> (NodeId, Attached) {
        let new = Attached {
            attach: old.attach + 1,
            ..old
        };
        let node = NodeId(Uuid::new_v4());
        let attach = vec![Attach { to: new, node }];
        let answer = self.world.store.attach(attach).await.unwrap();
        assert!(matches!(answer[..], [Attaching::Resumed(_)]), "{answer:?}");
        let states = self.world.store.renew(vec![old, new]).await.unwrap();
        assert_eq!(states, [SessionState::Moved, SessionState::Alive]);
        (node, new)
    }

    async fn progress(&self, held: &[(Lease, Attached)], round: usize) {
        let progress = Progress {
            checkpoint: Some(format!("round {round}").into()),
            revision: round as u64 + 1,
            ..Progress::default()
        };
        let report = |(lease, by): &(Lease, Attached)| Report {
            lease: *lease,
            session: by.session,
            progress: progress.clone(),
        };
        let reports: Vec<Report> = held.iter().rev().take(10).map(report).collect();
        self.world.store.report(reports).await.unwrap();
    }

    async fn report(&self, held: &[(Lease, Attached)]) {
        let endings: Vec<_> = held
            .iter()
            .map(|(lease, by)| {
                let outcome = match rand::random_range(0..8) {
                    0 => failure(),
                    1 => permanent_failure(),
                    2 | 3 => release(),
                    4 => Outcome::TimedOut,
                    5 => Outcome::Forgotten,
                    _ => success(),
                };
                let copies = rand::random_range(1..3);
                vec![ending(*lease, *by, outcome); copies]
            })
            .flatten()
            .collect();
        let answer = self.world.finish_all(endings.clone()).await;
        for (ending, verdict) in endings.iter().zip(answer.verdicts) {
            if verdict == Verdict::Recorded(JobState::Succeeded) && ending.outcome == success() {
                let mut successes = self.successes.lock().unwrap();
                let first = *successes.entry(ending.lease.job).or_insert(ending.lease);
                assert_eq!(
                    first, ending.lease,
                    "two attempts were told that theirs is the result"
                );
            }
        }
    }

    async fn hand(self) {
        for _ in 0..ROUNDS {
            for job in self.some(2) {
                self.world.cancel(job).await;
            }
            for job in self.some(5) {
                let delay = Duration::from_millis(rand::random_range(0..2));
                self.world.retry(job, delay).await;
            }
        }
    }

    async fn sweeper(self) {
        let store = &self.world.store;
        let line = line_of(&self.world.job());
        for _ in 0..ROUNDS {
            store.touch_pulse().await.unwrap();
            store.promote(50).await.unwrap();
            store.expire(20).await.unwrap();
            store.tidy(10).await.unwrap();
            store.retain(10).await.unwrap();
            store
                .unoffered(fresh_epoch(), ANY_AGE, ANY_AGE, 10)
                .await
                .unwrap();
            store.claim(vec![line.clone()], ANY_AGE, 10).await.unwrap();
        }
    }
}

/// However they met, each job is where its row and its logs say, and can be brought to its end.
async fn everybody_at_once_loses_nothing_and_records_nothing_twice(world: World) {
    let race = Race {
        world: world.clone(),
        jobs: Arc::default(),
        successes: Arc::default(),
    };
    let mut all = JoinSet::new();
    all.spawn(race.clone().enqueuer());
    for _ in 0..3 {
        all.spawn(race.clone().worker());
    }
    for _ in 0..2 {
        all.spawn(race.clone().hand());
        all.spawn(race.clone().sweeper());
    }
    while let Some(ended) = all.join_next().await {
        ended.unwrap();
    }

    // All sessions are dead: what is RUNNING is found by the log of grants.
    world.expire().await;
    let jobs = world.walk(JobFilter::default(), 500).await;
    assert_eq!(jobs.len(), race.jobs.lock().unwrap().len(), "none is lost");
    let running = jobs
        .iter()
        .filter(|job| job.state == JobState::Running)
        .count();
    assert_eq!(running, 0, "RUNNING implies a grant that is found");
    let succeeded: BTreeMap<_, _> = jobs
        .iter()
        .filter(|job| job.state == JobState::Succeeded)
        .map(|job| (job.id, job.attempt))
        .collect();
    let told: BTreeMap<_, _> = {
        let successes = race.successes.lock().unwrap();
        successes
            .iter()
            .map(|(id, lease)| (*id, lease.attempt))
            .collect()
    };
    assert_eq!(succeeded, told, "RECORDED is what is recorded, and by whom");
    crate::audit::audit(world.clone()).await;

    // What is final is found by its log, however often it was brought back and ended.
    for job in &jobs {
        if !job.state.is_final() {
            world.cancel(job.id).await;
        }
    }
    world.advance(secs(60 * 24 * 60 * 60)).await;
    for _ in 0..3 {
        world.retain().await;
        world.advance(secs(10)).await;
    }
    let left = world.walk(JobFilter::default(), 500).await;
    assert_eq!(left.len(), 0, "final implies a row of the log of endings");
}
on_each_store!(everybody_at_once_loses_nothing_and_records_nothing_twice);
