//! What time, copies and lost leases make of a job in a file; and that the file is still the same after a restart.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says so by failing"
)]

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::SqliteStore;
use crate::clock::ShiftedClock;
use crate::job::draft::{Draft, Fields};
use crate::job::limits::{LEASE_TTL_DEFAULT, LOST_LEASES_MAX};
use crate::job::{
    AttemptOutcome, Ending, Failure, Job, JobId, JobState, Lease, NewJob, NodeId, Outcome, Payload,
    SessionId, StaleReason, Verdict, View,
};
use crate::store::{
    Ask, Attached, Cancelled, EntryId, Epoch, Granted, JobFilter, NewSession, Offer, Retried,
    Segment, SessionState, Store, Unit,
};

const NOW: Duration = Duration::ZERO;

fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

struct World {
    store: SqliteStore,
    clock: Arc<ShiftedClock>,
    node: NodeId,
    folder: tempfile::TempDir,
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ShiftedClock::default());
    let store = reopen(&folder, &clock).await;
    let node = NodeId(Uuid::new_v4());
    World {
        store,
        clock,
        node,
        folder,
    }
}

async fn reopen(folder: &tempfile::TempDir, clock: &Arc<ShiftedClock>) -> SqliteStore {
    let path = folder.path().join("jobs.db");
    let store = SqliteStore::open_with_clock(&path, clock.clone()).await;
    let store = store.unwrap();
    store.migrate().await.unwrap();
    store
}

impl World {
    async fn queued(&self, change: impl FnOnce(&mut Draft)) -> (JobId, Segment) {
        let mut draft = Draft {
            queue: "q".into(),
            kind: "k".into(),
            ..Draft::default()
        };
        change(&mut draft);
        let fields = Fields {
            item: String::new(),
            spec: "",
        };
        let id = JobId::new(Uuid::now_v7()).unwrap();
        let jobs: Arc<[NewJob]> = vec![draft.check(&fields, id).unwrap()].into();
        let mut answer = self.store.enqueue(jobs, Unit::Each).await.unwrap();
        (id, answer.segments.remove(0))
    }

    async fn session(&self) -> Attached {
        let session = SessionId::of_token(Uuid::new_v4().as_bytes());
        let new = NewSession {
            id: session,
            node: self.node,
            worker: "w".into(),
            sdk: "s".into(),
            ttl: LEASE_TTL_DEFAULT,
        };
        self.store.open_session(new).await.unwrap();
        Attached { session, attach: 1 }
    }

    async fn lease(&self, job: JobId, to: Attached) -> Lease {
        let asks = vec![Ask { job, to }];
        let answer = self.store.grant(self.node, asks).await.unwrap().remove(0);
        match answer {
            Granted::Lease(leased) => leased.lease,
            other => panic!("{other:?}"),
        }
    }

    async fn running(&self) -> (Lease, Attached) {
        let (job, _) = self.queued(|_| {}).await;
        let session = self.session().await;
        (self.lease(job, session).await, session)
    }

    async fn finish(&self, lease: Lease, by: Attached, outcome: Outcome) -> Verdict {
        let ending = Ending {
            lease,
            session: by.session,
            outcome,
            chance: 0.0,
        };
        let mut answer = self.store.finish(vec![ending]).await.unwrap();
        answer.verdicts.remove(0)
    }

    async fn lose(&self, session: Attached) {
        self.store.close_sessions(vec![session]).await.unwrap();
        assert_eq!(self.store.expire(10).await.unwrap().jobs, 1);
    }

    async fn look(&self, id: JobId) -> Job {
        let found = self.store.get(vec![id], View::Full).await.unwrap();
        found.into_iter().next().flatten().unwrap()
    }

    async fn live_through(&self, seconds: u64) {
        for _ in 0..seconds {
            self.clock.advance(secs(1));
            self.store.touch_pulse().await.unwrap();
        }
    }
}

fn success() -> Outcome {
    Outcome::Success(Some(Payload::default()))
}

fn failure() -> Outcome {
    Outcome::Failure(Failure {
        kind: "Broken".into(),
        ..Failure::default()
    })
}

fn release(delay: Duration) -> Outcome {
    Outcome::Release {
        delay,
        reason: "not now".into(),
    }
}

#[tokio::test]
async fn a_copy_of_an_ending_gets_its_verdict_whatever_came_after() {
    let w = world().await;
    for (outcome, after) in [
        (failure(), JobState::Scheduled),
        (release(NOW), JobState::Queued),
        (success(), JobState::Succeeded),
        (Outcome::TimedOut, JobState::Scheduled),
    ] {
        let (lease, session) = w.running().await;
        for _ in 0..2 {
            let verdict = w.finish(lease, session, outcome.clone()).await;
            assert_eq!(verdict, Verdict::Recorded(after), "{outcome:?}");
        }
        let stranger = w.session().await;
        let verdict = w.finish(lease, stranger, outcome).await;
        assert!(matches!(verdict, Verdict::Stale(..)), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_late_success_of_a_lost_lease_is_taken_once_and_a_late_failure_never() {
    let w = world().await;
    let (lease, session) = w.running().await;
    w.lose(session).await;
    let queued = JobState::Queued;
    let stale = Verdict::Stale(StaleReason::Superseded, queued);
    assert_eq!(w.finish(lease, session, failure()).await, stale);
    let recorded = Verdict::Recorded(JobState::Succeeded);
    assert_eq!(w.finish(lease, session, success()).await, recorded);
    assert_eq!(w.finish(lease, session, success()).await, recorded);
    let gone = Verdict::Unknown;
    w.clock.advance(secs(8 * 24 * 60 * 60));
    assert_eq!(w.store.retain(10).await.unwrap().changed, 1);
    assert_eq!(w.finish(lease, session, success()).await, gone);
}

#[tokio::test]
async fn nothing_is_salvaged_after_another_hand_out_a_cancel_or_a_release() {
    let w = world().await;
    let (lease, session) = w.running().await;
    w.lose(session).await;
    let second = w.lease(lease.job, w.session().await).await;
    assert_eq!(second.attempt, 2);
    let verdict = w.finish(lease, session, success()).await;
    let superseded = Verdict::Stale(StaleReason::Superseded, JobState::Running);
    assert_eq!(verdict, superseded);

    let (lease, session) = w.running().await;
    w.store.cancel(lease.job, "no".into()).await.unwrap();
    w.store.retry(lease.job, NOW, "".into()).await.unwrap();
    let verdict = w.finish(lease, session, success()).await;
    let cancelled = Verdict::Stale(StaleReason::Cancelled, JobState::Queued);
    assert_eq!(verdict, cancelled);

    let (lease, session) = w.running().await;
    w.finish(lease, session, release(NOW)).await;
    let verdict = w.finish(lease, session, success()).await;
    let finished = Verdict::Stale(StaleReason::Finished, JobState::Queued);
    assert_eq!(verdict, finished);
}

#[tokio::test]
async fn one_lost_lease_too_many_fails_the_job_and_a_hand_brings_it_back() {
    let w = world().await;
    let (job, _) = w.queued(|_| {}).await;
    for lost in 1..=LOST_LEASES_MAX + 1 {
        let session = w.session().await;
        assert_eq!(w.lease(job, session).await.attempt, lost);
        w.lose(session).await;
    }
    let failed = w.look(job).await;
    assert_eq!(failed.state, JobState::Failed);
    assert_eq!(failed.last_failure.unwrap().kind, "LEASES_LOST");
    assert!(
        failed
            .attempts
            .iter()
            .all(|a| a.outcome == AttemptOutcome::LeaseLost)
    );
    let back = w.store.retry(job, NOW, "".into()).await.unwrap();
    assert!(matches!(&back, Retried::Done(j, s) if j.lost_leases == 0 && s.len() == 1));
    let again = w.lease(job, w.session().await).await;
    assert_eq!(again.attempt, LOST_LEASES_MAX + 2);
}

#[tokio::test]
async fn failures_use_up_the_budget_and_a_permanent_one_all_of_it() {
    let w = world().await;
    let (job, _) = w.queued(|d| d.max_attempts = 2).await;
    let session = w.session().await;
    let lease = w.lease(job, session).await;
    w.finish(lease, session, failure()).await;
    assert_eq!(w.store.promote(10).await.unwrap().changed, 0);
    w.clock.advance(secs(15));
    assert_eq!(w.store.promote(10).await.unwrap().changed, 1);
    let lease = w.lease(job, session).await;
    let verdict = w.finish(lease, session, failure()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Failed));

    let (lease, session) = w.running().await;
    let permanent = Outcome::Failure(Failure {
        permanent: true,
        ..Failure::default()
    });
    let verdict = w.finish(lease, session, permanent).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Failed));
}

#[tokio::test]
async fn the_second_release_in_a_row_waits() {
    let w = world().await;
    let (lease, session) = w.running().await;
    let verdict = w.finish(lease, session, release(NOW)).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Queued));
    let lease = w.lease(lease.job, session).await;
    let verdict = w.finish(lease, session, release(NOW)).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Scheduled));
    let job = w.look(lease.job).await;
    let ended = job.attempts.last().unwrap().end_time;
    assert_eq!(job.run_time.since(ended), secs(1));
}

#[tokio::test]
async fn a_cancel_of_a_running_job_reaches_its_node_alone() {
    let w = world().await;
    let (lease, session) = w.running().await;
    let done = w.store.cancel(lease.job, "no".into()).await.unwrap();
    let held = Some((lease, session.session));
    assert!(matches!(&done, Cancelled::Done(_, by) if *by == held));
    let again = w.store.cancel(lease.job, "no".into()).await.unwrap();
    assert!(matches!(again, Cancelled::Already(_)));
    let signals = w.store.signals(w.node, secs(5), 10).await.unwrap();
    assert_eq!(signals.len(), 1);
    assert_eq!(signals[0].lease, lease);
    let other = NodeId(Uuid::new_v4());
    assert_eq!(w.store.signals(other, secs(5), 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_lease_is_lost_only_when_its_time_was_not_an_outage() {
    let w = world().await;
    let (lease, session) = w.running().await;
    w.live_through(29).await;
    assert_eq!(w.store.expire(10).await.unwrap().sessions, 0);
    // The process is down, longer than the lease lives, and comes back.
    w.store.close().await;
    w.clock.advance(secs(60));
    let w = World {
        store: reopen(&w.folder, &w.clock).await,
        ..w
    };
    assert_eq!(w.store.expire(10).await.unwrap().sessions, 0);
    assert_eq!(
        w.store.renew(vec![session]).await.unwrap(),
        [SessionState::Alive]
    );
    w.live_through(29).await;
    assert_eq!(
        w.store.renew(vec![session]).await.unwrap(),
        [SessionState::Alive]
    );
    w.live_through(29).await;
    assert_eq!(w.store.expire(10).await.unwrap().sessions, 0);
    w.live_through(2).await;
    let expired = w.store.expire(10).await.unwrap();
    assert_eq!((expired.sessions, expired.jobs), (1, 1));
    assert_eq!(expired.segments[0].jobs, [lease.job]);
    assert_eq!(
        w.store.renew(vec![session]).await.unwrap(),
        [SessionState::Dead]
    );
}

#[tokio::test]
async fn a_segment_is_found_until_it_is_offered_and_again_when_its_hints_are_lost() {
    let w = world().await;
    let (job, segment) = w.queued(|_| {}).await;
    let epoch = Epoch(Uuid::new_v4());
    let unoffered = |epoch| w.store.unoffered(epoch, NOW, secs(2), 10);
    assert_eq!(unoffered(epoch).await.unwrap(), [segment.clone()]);
    assert_eq!(unoffered(epoch).await.unwrap(), [], "somebody has it");
    let last = EntryId { ms: 7, seq: 3 };
    let offer = Offer {
        segment: segment.id,
        epoch,
        last,
    };
    w.store.offered(vec![offer]).await.unwrap();
    assert_eq!(unoffered(epoch).await.unwrap(), []);

    let line = || segment.line.clone();
    let lost = |first| w.store.lost_offers(epoch, line(), first, NOW, 10);
    assert_eq!(lost(Some(last)).await.unwrap(), [], "it is still there");
    let above = EntryId { ms: 7, seq: 4 };
    let found = std::slice::from_ref(&segment);
    assert_eq!(lost(Some(above)).await.unwrap(), found);
    assert_eq!(lost(Some(above)).await.unwrap(), []);
    w.store.offered(vec![offer]).await.unwrap();
    assert_eq!(lost(None).await.unwrap(), found);
    w.store.offered(vec![offer]).await.unwrap();
    let newer = Epoch(Uuid::new_v4());
    assert_eq!(unoffered(newer).await.unwrap(), found);

    w.clock.advance(secs(3));
    let claim = || w.store.claim(vec![line(), line()], secs(2), 10);
    assert_eq!(claim().await.unwrap(), found);
    assert_eq!(claim().await.unwrap(), []);
    w.lease(job, w.session().await).await;
    w.clock.advance(secs(3));
    assert_eq!(claim().await.unwrap(), [], "it has no QUEUED job any more");
}

#[tokio::test]
async fn a_job_that_waits_again_waits_in_its_newest_segment_alone() {
    let w = world().await;
    let (lease, session) = w.running().await;
    w.finish(lease, session, release(NOW)).await;
    let epoch = Epoch(Uuid::new_v4());
    let found = w.store.unoffered(epoch, NOW, secs(2), 10).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].jobs, [lease.job]);
}

#[tokio::test]
async fn pages_follow_each_other_to_the_end() {
    let w = world().await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let queue = if number % 2 == 0 { "even" } else { "odd" };
        ids.push(w.queued(|d| d.queue = queue.into()).await.0);
    }
    ids.reverse();
    let list = |filter, before| w.store.list(filter, before, 4, View::Full);
    let first = list(JobFilter::default(), None).await.unwrap();
    assert_eq!(first.next, Some(ids[3]));
    let second = list(JobFilter::default(), first.next).await.unwrap();
    assert_eq!(second.next, None);
    let walked: Vec<JobId> = first
        .jobs
        .iter()
        .chain(&second.jobs)
        .map(|j| j.id)
        .collect();
    assert_eq!(walked, ids);
    let even = JobFilter {
        queues: vec![first.jobs[0].spec.queue.clone()],
        states: vec![JobState::Queued],
        ..JobFilter::default()
    };
    let page = list(even, None).await.unwrap();
    assert_eq!((page.jobs.len(), page.next), (4, None));
}
