//! Bulks: what one covers is fixed, each job is acted on once, whoever goes on with it, and its numbers are right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use leasehold::job::draft::Draft;
use leasehold::job::limits::BULKS_LIVE_MAX;
use leasehold::job::{
    Actor, AuditAction, BulkAction, BulkCounts, BulkId, BulkState, By, Canary, Failure, JobId,
    JobState, Outcome, Priority, StaleReason, Verdict,
};
use leasehold::store::observed::Observed;
use leasehold::store::{
    Bulk, BulkStep, ClaimedBulk, Deleted, JobFilter, NewBulk, Retried, Started,
};

use crate::dropped::{Ends, dropped};
use crate::steps::{
    QUEUE, assert_recorded, assert_stale, failure, jobs_of, minutes, queue, secs, success,
};
use crate::world::World;

/// Longer than any claim of a case.
const CLAIM: Duration = Duration::from_secs(15);

impl World {
    pub fn bulk_of(&self, action: BulkAction) -> NewBulk {
        NewBulk {
            id: BulkId::from_store(self.fresh_id().uuid()),
            action,
            filter: JobFilter {
                queues: vec![queue(QUEUE)],
                states: action.states_unsaid().to_vec(),
                ..JobFilter::default()
            },
            dry_run: false,
            rate: None,
            canary: None,
            by: By {
                actor: Actor::from_store("ada"),
                reason: "of a case".into(),
            },
            purges: None,
        }
    }

    async fn try_start(&self, new: NewBulk) -> Started {
        let told = self.store.start_bulk(new).await;
        told.expect("start_bulk answers")
    }

    pub async fn start(&self, new: NewBulk) -> BulkId {
        match self.try_start(new).await {
            Started::Created(bulk) => {
                assert_eq!(bulk.state, BulkState::Collecting);
                bulk.id
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn bulk(&self, id: BulkId) -> Bulk {
        let found = self.store.bulk(id).await.expect("bulk answers");
        found.unwrap_or_else(|| panic!("bulk {id} is gone"))
    }

    pub async fn claim_bulk(&self) -> Option<ClaimedBulk> {
        let told = self.store.claim_bulk(CLAIM).await;
        told.expect("claim_bulk answers")
    }

    pub async fn step_bulk(&self, claimed: ClaimedBulk) -> BulkStep {
        let told = self.store.step_bulk(claimed).await;
        told.expect("step_bulk answers")
    }

    /// Goes on with whatever is to be gone on with, until there is nothing.
    async fn go_on(&self) -> BulkStep {
        let mut all = BulkStep::default();
        for _ in 0..10_000 {
            let Some(claimed) = self.claim_bulk().await else {
                return all;
            };
            let step = self.step_bulk(claimed).await;
            all.turned = step.turned.or(all.turned);
            all.jobs.extend(step.jobs);
            all.segments.extend(step.segments);
            all.cancelled.extend(step.cancelled);
        }
        panic!("bulks never end");
    }

    /// Goes on until it is RUNNING: all that it covers is collected, and nothing is done.
    pub async fn collect(&self, id: BulkId) {
        while self.bulk(id).await.state == BulkState::Collecting {
            let claimed = self.claim_bulk().await.expect("it is to be gone on with");
            self.step_bulk(claimed).await;
        }
    }

    pub async fn failed_many(&self, count: usize) -> Vec<JobId> {
        let mut jobs = Vec::with_capacity(count);
        for _ in 0..count {
            let id = self.queued().await;
            self.fail(id).await;
            jobs.push(id);
        }
        jobs
    }

    pub async fn abort(&self, id: BulkId) -> (Bulk, bool) {
        let by = By {
            actor: Actor::from_store("bob"),
            reason: "enough".into(),
        };
        let told = self.store.abort_bulk(id, by).await;
        told.expect("abort_bulk answers").expect("it is there")
    }

    /// What was changed by hand, the oldest first: action, subject, count, actor.
    async fn audited(&self) -> Vec<(AuditAction, String, u64, String)> {
        let mut events = self.store.audit(None, 100).await.expect("audit answers");
        events.reverse();
        let of = |event: leasehold::job::AuditEvent| {
            let actor = event.by.actor.to_string();
            (event.action, event.subject, event.count, actor)
        };
        events.into_iter().map(of).collect()
    }
}

pub fn counts(total: u64, done: u64, skipped: u64, failed: u64) -> BulkCounts {
    BulkCounts {
        total,
        done,
        skipped,
        failed,
    }
}

on_each_store!(a_bulk_acts_on_what_its_filter_covers_and_on_nothing_else);
async fn a_bulk_acts_on_what_its_filter_covers_and_on_nothing_else(world: World) {
    let covered = world.failed_many(3).await;
    let (lease, session) = world.running().await;
    let other = Outcome::Failure(Failure {
        kind: "Other".into(),
        permanent: true,
        ..Failure::default()
    });
    assert_recorded(&world.finish(lease, session, other).await);
    let cancelled = world.queued().await;
    world.cancel(cancelled).await;
    let elsewhere = world.accept(world.job_with(|d| d.queue = "else".into()));
    let elsewhere = elsewhere.await;
    world.fail(elsewhere).await;

    let mut new = world.bulk_of(BulkAction::Retry);
    new.filter.failure_type = Some("Hopeless".into());
    let id = world.start(new.clone()).await;
    let done = world.go_on().await;
    assert_eq!(done.turned, Some(BulkState::Done));
    assert_eq!(done.jobs, covered, "the oldest first");
    assert_eq!(jobs_of(&done.segments), covered, "to be offered");
    for id in &covered {
        let job = world.look(*id).await;
        assert_eq!((job.state, job.failures), (JobState::Queued, 0));
    }
    world.assert_state(lease.job, JobState::Failed).await;
    world.assert_state(cancelled, JobState::Cancelled).await;
    world.assert_state(elsewhere, JobState::Failed).await;

    let bulk = world.bulk(id).await;
    assert_eq!(
        (bulk.state, bulk.counts),
        (BulkState::Done, counts(3, 3, 0, 0))
    );
    assert_eq!(
        (bulk.action, &bulk.filter, &bulk.by),
        (new.action, &new.filter, &new.by)
    );
    assert!(bulk.end_time >= Some(bulk.create_time));
    let newest: Vec<JobId> = covered.iter().rev().copied().collect();
    assert_eq!(bulk.sample, newest);
    for job in covered {
        world.succeed(job).await;
    }
}

on_each_store!(what_a_bulk_covers_is_fixed_before_it_acts);
async fn what_a_bulk_covers_is_fixed_before_it_acts(world: World) {
    let [again, deleted, untouched] = world.failed_many(3).await[..] else {
        panic!("three");
    };
    let id = world.start(world.bulk_of(BulkAction::Retry)).await;
    world.collect(id).await;
    assert_eq!(world.bulk(id).await.counts, counts(3, 0, 0, 0));
    let late = world.failed_many(1).await[0];
    world.retry(again, Duration::ZERO).await;
    world.fail(again).await;
    let gone = world.store.delete(deleted, "".into()).await;
    assert_eq!(gone.expect("delete answers"), Deleted::Done);

    assert_eq!(world.go_on().await.jobs, [untouched]);
    assert_eq!(world.bulk(id).await.counts, counts(3, 1, 2, 0));
    world.assert_state(again, JobState::Failed).await;
    world.assert_state(late, JobState::Failed).await;
}

on_each_store!(what_the_service_moves_on_is_acted_on_as_long_as_its_state_is_asked_for);
async fn what_the_service_moves_on_is_acted_on_as_long_as_its_state_is_asked_for(world: World) {
    let [a, b] = [world.queued().await, world.queued().await];
    let mut waiting = world.bulk_of(BulkAction::Cancel);
    waiting.filter.states = vec![JobState::Scheduled, JobState::Queued];
    let all = world.start(world.bulk_of(BulkAction::Cancel)).await;
    world.collect(all).await;
    let session = world.open().await;
    let lease = world.lease(a, session).await;
    let done = world.go_on().await;
    assert_eq!(done.jobs, [a, b]);
    assert_eq!(done.cancelled, [(lease, session.session)]);

    let [a, b] = [world.queued().await, world.scheduled(minutes(5)).await];
    let some = world.start(waiting).await;
    world.collect(some).await;
    world.lease(a, session).await;
    world.advance(minutes(6)).await;
    world.promote().await;
    assert_eq!(world.go_on().await.jobs, [b], "which has come due");
    assert_eq!(world.bulk(some).await.counts, counts(2, 1, 1, 0));
    world.assert_state(a, JobState::Running).await;
}

on_each_store!(what_is_accepted_after_the_start_is_not_covered);
async fn what_is_accepted_after_the_start_is_not_covered(world: World) {
    let before = world.queued().await;
    let id = world.start(world.bulk_of(BulkAction::Cancel)).await;
    let after = world.queued().await;
    assert_eq!(world.go_on().await.jobs, [before]);
    assert_eq!(world.bulk(id).await.counts, counts(1, 1, 0, 0));
    world.assert_state(after, JobState::Queued).await;
}

on_each_store!(a_step_under_an_older_claim_changes_nothing);
async fn a_step_under_an_older_claim_changes_nothing(world: World) {
    let jobs = world.failed_many(2).await;
    let id = world.start(world.bulk_of(BulkAction::Retry)).await;
    let collect = world.claim_bulk().await.expect("it is to be gone on with");
    assert_eq!(world.claim_bulk().await, None, "it is somebody's");
    world.advance(CLAIM + secs(1)).await;
    let taken_over = world.claim_bulk().await.expect("whose time is over");
    assert_eq!(world.step_bulk(collect.clone()).await, BulkStep::default());
    assert_eq!(world.bulk(id).await.counts.total, 0);
    world.step_bulk(taken_over.clone()).await;
    // Repeated, and by the one who was late.
    world.step_bulk(taken_over).await;
    world.step_bulk(collect).await;
    assert_eq!(world.bulk(id).await.counts, counts(2, 0, 0, 0));

    let act = world.claim_bulk().await.expect("it is to be gone on with");
    world.advance(CLAIM + secs(1)).await;
    let taken_over = world.claim_bulk().await.expect("whose time is over");
    assert_eq!(world.step_bulk(act.clone()).await, BulkStep::default());
    world.assert_state(jobs[0], JobState::Failed).await;
    assert_eq!(world.step_bulk(taken_over.clone()).await.jobs, jobs);
    assert_eq!(world.step_bulk(taken_over).await, BulkStep::default());
    assert_eq!(world.step_bulk(act).await, BulkStep::default());
    world.go_on().await;
    assert_eq!(world.bulk(id).await.counts, counts(2, 2, 0, 0));
    for job in jobs {
        assert_eq!(world.look(job).await.attempt, 1);
        world.assert_state(job, JobState::Queued).await;
    }
}

on_each_store!(many_who_go_on_at_once_act_on_each_job_once);
async fn many_who_go_on_at_once_act_on_each_job_once(world: World) {
    let mut jobs = BTreeSet::new();
    for _ in 0..3 {
        jobs.extend(world.queued_many(900).await);
    }
    let id = world.start(world.bulk_of(BulkAction::Cancel)).await;
    let worker = || {
        let world = world.clone();
        tokio::spawn(async move {
            let mut acted = Vec::new();
            while !world.bulk(id).await.state.is_ended() {
                if let Some(claimed) = world.claim_bulk().await {
                    // The same step twice at once: as after an answer that was lost.
                    let (one, two) =
                        tokio::join!(world.step_bulk(claimed.clone()), world.step_bulk(claimed));
                    acted.extend(one.jobs);
                    acted.extend(two.jobs);
                }
            }
            acted
        })
    };
    let mut acted = Vec::new();
    for worker in [worker(), worker(), worker()] {
        acted.extend(worker.await.expect("it ends"));
    }
    assert_eq!(acted.len(), 2_700);
    assert_eq!(acted.into_iter().collect::<BTreeSet<_>>(), jobs);
    assert_eq!(world.bulk(id).await.counts, counts(2_700, 2_700, 0, 0));
}

on_each_store!(a_bulk_cancels_what_waits_and_what_runs);
async fn a_bulk_cancels_what_waits_and_what_runs(world: World) {
    let (lease, session) = world.running().await;
    let [queued, scheduled] = [world.queued().await, world.scheduled(minutes(5)).await];
    let id = world.start(world.bulk_of(BulkAction::Cancel)).await;
    let done = world.go_on().await;
    assert_eq!(done.jobs, [lease.job, queued, scheduled]);
    assert_eq!(done.cancelled, [(lease, session.session)]);
    assert_eq!(world.bulk(id).await.counts, counts(3, 3, 0, 0));
    for job in [lease.job, queued, scheduled] {
        let job = world.look(job).await;
        assert_eq!(job.state, JobState::Cancelled);
        assert!(job.purge_time.is_some() && job.finish_time.is_some());
    }
    let signals = world.store.signals(world.node, minutes(1), 10).await;
    let signals = signals.expect("signals answers");
    let told: Vec<_> = signals.iter().map(|s| (s.lease, s.session)).collect();
    assert_eq!(told, [(lease, session.session)]);
    let attempts = world.look(lease.job).await.attempts;
    let reason = attempts[0].failure.as_ref().map(|f| f.message.as_str());
    assert_eq!(reason, Some("of a case"));
    let late = world.finish(lease, session, success()).await;
    assert_eq!(
        late,
        Verdict::Stale(StaleReason::Cancelled, JobState::Cancelled)
    );
    world.advance(minutes(6)).await;
    assert_eq!(world.promote().await.changed, 0);
}

on_each_store!(a_bulk_deletes_what_is_final);
async fn a_bulk_deletes_what_is_final(world: World) {
    let [succeeded, cancelled, waits] = [
        world.queued().await,
        world.queued().await,
        world.queued().await,
    ];
    world.succeed(succeeded).await;
    world.cancel(cancelled).await;
    let failed = world.failed_many(1).await[0];
    let id = world.start(world.bulk_of(BulkAction::Delete)).await;
    world.go_on().await;
    assert_eq!(world.bulk(id).await.counts, counts(3, 3, 0, 0));
    for gone in [succeeded, cancelled, failed] {
        assert_eq!(world.find(gone).await, None);
    }
    world.succeed(waits).await;
    world.advance(minutes(80)).await;
    assert_eq!(world.retain().await, 3, "nothing is left of them");
}

on_each_store!(a_purge_deletes_what_waits_and_nothing_else);
async fn a_purge_deletes_what_waits_and_nothing_else(world: World) {
    let keyed = |d: &mut Draft| {
        d.idempotency_key = "order 7".into();
        d.unique_key = "account 7".into();
    };
    let (running, session) = world.running().await;
    let new = world.job_with(keyed);
    let queued = world.accept(new.clone()).await;
    let scheduled = world.scheduled(minutes(5)).await;
    let (lost, dead) = world.running().await;
    world.lose(dead).await;
    let failed = world.failed_many(1).await[0];
    let purge = NewBulk {
        purges: Some(queue(QUEUE)),
        ..world.bulk_of(BulkAction::Purge)
    };
    let id = world.start(purge).await;
    world.go_on().await;
    assert_eq!(world.bulk(id).await.counts, counts(3, 3, 0, 0));
    for gone in [queued, scheduled, lost.job] {
        assert_eq!(world.find(gone).await, None);
    }
    world.assert_state(failed, JobState::Failed).await;
    let unknown = world.finish(lost, dead, success()).await;
    assert_eq!(unknown, Verdict::Unknown);
    // What runs goes on; the keys are free; the id is not.
    assert_recorded(&world.finish(running, session, success()).await);
    let again = world
        .enqueue(vec![new], leasehold::store::Unit::Each)
        .await
        .jobs;
    assert_eq!(again, [leasehold::store::Enqueued::Conflict]);
    world.accept(world.job_with(keyed)).await;
    world.advance(minutes(80)).await;
    assert_eq!(world.promote().await.changed, 0);
    assert_eq!(world.retain().await, 3, "nothing is left of them");
}

on_each_store!(a_bulk_runs_now_what_waits_for_its_time);
async fn a_bulk_runs_now_what_waits_for_its_time(world: World) {
    let scheduled = world.scheduled(minutes(5)).await;
    let (lease, session) = world.running().await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    let id = world.start(world.bulk_of(BulkAction::RunNow)).await;
    let done = world.go_on().await;
    assert_eq!(jobs_of(&done.segments), [scheduled, lease.job]);
    assert_eq!(world.bulk(id).await.counts, counts(2, 2, 0, 0));
    assert_eq!(world.look(lease.job).await.failures, 1);
    world.succeed(scheduled).await;
    world.succeed(lease.job).await;
}

on_each_store!(what_has_expired_is_not_run_now);
async fn what_has_expired_is_not_run_now(world: World) {
    let expiring = world.job_with(|d| {
        d.start = leasehold::job::draft::RawStart::Delay(crate::steps::raw(minutes(2)));
        d.expiry = Some(leasehold::job::draft::RawExpiry::In(crate::steps::raw(
            minutes(3),
        )));
    });
    let job = world.accept(expiring).await;
    let id = world.start(world.bulk_of(BulkAction::RunNow)).await;
    world.collect(id).await;
    world.advance(minutes(4)).await;
    world.go_on().await;
    assert_eq!(world.bulk(id).await.counts, counts(1, 0, 0, 1));
    world.assert_state(job, JobState::Scheduled).await;
    let expired = world.store.expire_jobs(10).await.expect("it answers");
    assert_eq!(expired.changed, 1);
}

on_each_store!(a_bulk_gives_what_waits_another_priority);
async fn a_bulk_gives_what_waits_another_priority(world: World) {
    let high = world.job_with(|d| d.priority = Some(Ok(Priority::High)));
    let high = world.accept(high).await;
    let [queued, scheduled] = [world.queued().await, world.scheduled(minutes(5)).await];
    let new = world.bulk_of(BulkAction::SetPriority(Priority::High));
    let id = world.start(new).await;
    let before = world.look(high).await;
    let done = world.go_on().await;
    assert_eq!(jobs_of(&done.segments), [queued]);
    assert_eq!(done.segments[0].line.priority, Priority::High);
    assert_eq!(world.bulk(id).await.counts, counts(3, 3, 0, 0));
    assert_eq!(world.look(high).await, before, "it keeps its place");
    for job in [queued, scheduled] {
        let job = world.look(job).await;
        assert_eq!((job.spec.priority, job.revision), (Priority::High, 2));
    }
}

on_each_store!(of_jobs_with_one_unique_key_one_comes_back);
async fn of_jobs_with_one_unique_key_one_comes_back(world: World) {
    let keyed = |key: &'static str| move |d: &mut Draft| d.unique_key = key.into();
    let mut jobs = Vec::new();
    for key in ["a", "a", "b", "c"] {
        let id = world.accept(world.job_with(keyed(key))).await;
        world.fail(id).await;
        jobs.push(id);
    }
    let holder = world.accept(world.job_with(keyed("b"))).await;
    let id = world.start(world.bulk_of(BulkAction::Retry)).await;
    world.go_on().await;
    assert_eq!(world.bulk(id).await.counts, counts(4, 2, 0, 2));
    for (job, state) in [
        (jobs[0], JobState::Queued),
        (jobs[1], JobState::Failed),
        (jobs[2], JobState::Failed),
        (jobs[3], JobState::Queued),
        (holder, JobState::Queued),
    ] {
        world.assert_state(job, state).await;
    }
    let held = world.retry(jobs[1], Duration::ZERO).await;
    assert_eq!(held, Retried::KeyHeld(jobs[0]), "it holds its key again");
}

on_each_store!(a_dry_run_counts_and_changes_nothing);
async fn a_dry_run_counts_and_changes_nothing(world: World) {
    let jobs = world.failed_many(2).await;
    let new = NewBulk {
        dry_run: true,
        ..world.bulk_of(BulkAction::Retry)
    };
    let id = world.start(new).await;
    assert_eq!(world.go_on().await.jobs, []);
    let bulk = world.bulk(id).await;
    assert_eq!(
        (bulk.state, bulk.counts),
        (BulkState::Done, counts(2, 0, 0, 0))
    );
    assert_eq!(bulk.sample, [jobs[1], jobs[0]]);
    for job in jobs {
        world.assert_state(job, JobState::Failed).await;
    }
    assert_eq!(world.audited().await, []);
}

on_each_store!(an_aborted_bulk_leaves_the_rest_alone);
async fn an_aborted_bulk_leaves_the_rest_alone(world: World) {
    let jobs = world.failed_many(3).await;
    let new = NewBulk {
        rate: Some(1),
        ..world.bulk_of(BulkAction::Retry)
    };
    let id = world.start(new).await;
    world.collect(id).await;
    let claimed = world.claim_bulk().await.expect("it is to be gone on with");
    assert_eq!(world.step_bulk(claimed).await.jobs, jobs[..1]);
    world.advance(secs(2)).await;
    let claimed = world.claim_bulk().await.expect("its rest is over");
    let (bulk, is_news) = world.abort(id).await;
    assert!(is_news);
    assert_eq!(
        (bulk.state, bulk.counts, bulk.counts.left()),
        (BulkState::Aborted, counts(3, 1, 0, 0), 2)
    );
    // Also not by who had it just then.
    assert_eq!(world.step_bulk(claimed).await, BulkStep::default());
    world.advance(minutes(1)).await;
    assert_eq!(world.claim_bulk().await, None);
    assert_eq!(world.abort(id).await, (bulk, false));
    world.assert_state(jobs[1], JobState::Failed).await;
    let nobody = BulkId::from_store(world.fresh_id().uuid());
    let told = world.store.abort_bulk(nobody, "".into()).await;
    assert_eq!(told.expect("abort_bulk answers"), None);
    let ended = (AuditAction::AbortBulk, id.to_string(), 1, "bob".to_owned());
    assert_eq!(world.audited().await.pop(), Some(ended));
}

on_each_store!(a_rate_is_kept);
async fn a_rate_is_kept(world: World) {
    let jobs: Vec<JobId> = world.queued_many(50).await;
    let new = NewBulk {
        rate: Some(10),
        ..world.bulk_of(BulkAction::Cancel)
    };
    let id = world.start(new).await;
    world.collect(id).await;
    let mut done = Vec::new();
    for _ in 0..9 {
        done.extend(world.go_on().await.jobs);
        world.advance(Duration::from_millis(500)).await;
    }
    // The case's clock goes on by itself too: half a second's worth each time, and what it took.
    assert!((45..=50).contains(&done.len()), "{}", done.len());
    assert_eq!(done, jobs[..done.len()], "part by part, the oldest first");
    world.advance(secs(5)).await;
    world.go_on().await;
    assert_eq!(world.bulk(id).await.counts, counts(50, 50, 0, 0));
}

fn canary(size: u32) -> Option<Canary> {
    Some(Canary {
        size,
        max_failed_share: 0.4,
        within: minutes(10),
    })
}

on_each_store!(a_canary_releases_more_and_more_as_long_as_they_do_well);
async fn a_canary_releases_more_and_more_as_long_as_they_do_well(world: World) {
    let jobs = world.failed_many(8).await;
    let new = NewBulk {
        canary: canary(2),
        ..world.bulk_of(BulkAction::Retry)
    };
    let id = world.start(new).await;
    let mut from = 0;
    for stage in [2, 4, 2] {
        let released = world.go_on().await.jobs;
        assert_eq!(released, jobs[from..from + stage]);
        from += stage;
        let bulk = world.bulk(id).await;
        assert_eq!(bulk.state, BulkState::Watching);
        assert_eq!(bulk.stage.released as usize, stage);
        // One of each four may fail again.
        for (n, job) in released.into_iter().enumerate() {
            match n {
                3 => world.fail(job).await,
                _ => world.succeed(job).await,
            }
        }
        world.advance(secs(2)).await;
    }
    world.go_on().await;
    let bulk = world.bulk(id).await;
    assert_eq!(
        (bulk.state, bulk.counts, bulk.error.as_str()),
        (BulkState::Done, counts(8, 8, 0, 0), "")
    );
    assert_eq!((bulk.stage.settled, bulk.stage.failed), (2, 0));
}

on_each_store!(a_canary_stops_when_too_many_fail_again);
async fn a_canary_stops_when_too_many_fail_again(world: World) {
    let jobs = world.failed_many(5).await;
    let new = NewBulk {
        canary: canary(2),
        ..world.bulk_of(BulkAction::Retry)
    };
    let id = world.start(new).await;
    assert_eq!(world.go_on().await.jobs, jobs[..2]);
    // It need not be final: it waits for its next attempt.
    let session = world.open().await;
    let lease = world.lease(jobs[1], session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    world.advance(secs(2)).await;
    assert_eq!(world.go_on().await.turned, Some(BulkState::Stopped));
    let bulk = world.bulk(id).await;
    assert_eq!((bulk.counts, bulk.counts.left()), (counts(5, 2, 0, 0), 3));
    assert_eq!(
        bulk.error,
        "1 of 2 jobs failed again, more than a share of 0.4"
    );
    for job in &jobs[2..] {
        world.assert_state(*job, JobState::Failed).await;
    }
    world.advance(minutes(20)).await;
    assert_eq!(world.claim_bulk().await, None);
    let ended = (AuditAction::EndBulk, id.to_string(), 2, "ada".to_owned());
    assert_eq!(world.audited().await.pop(), Some(ended));
}

on_each_store!(a_canary_whose_jobs_come_to_nothing_stops);
async fn a_canary_whose_jobs_come_to_nothing_stops(world: World) {
    let jobs = world.failed_many(3).await;
    let new = NewBulk {
        canary: canary(2),
        ..world.bulk_of(BulkAction::Retry)
    };
    let id = world.start(new).await;
    world.go_on().await;
    world.succeed(jobs[0]).await;
    for _ in 0..9 {
        world.advance(minutes(1)).await;
        assert_eq!(world.go_on().await.turned, Some(BulkState::Watching));
    }
    world.advance(minutes(2)).await;
    world.go_on().await;
    let bulk = world.bulk(id).await;
    assert_eq!(bulk.state, BulkState::Stopped);
    assert_eq!(bulk.error, "1 of 2 jobs had come to nothing within 600s");
    world.assert_state(jobs[2], JobState::Failed).await;
}

on_each_store!(a_start_may_be_repeated);
async fn a_start_may_be_repeated(world: World) {
    world.failed_many(1).await;
    let new = NewBulk {
        canary: canary(3),
        rate: Some(7),
        ..world.bulk_of(BulkAction::Retry)
    };
    let id = world.start(new.clone()).await;
    let bulk = world.bulk(id).await;
    assert_eq!(world.try_start(new.clone()).await, Started::Existed(bulk));
    let other = NewBulk {
        rate: None,
        ..new.clone()
    };
    assert_eq!(world.try_start(other).await, Started::Conflict);
    world.advance(minutes(70)).await;
    let late = world.try_start(new.clone()).await;
    assert!(matches!(late, Started::Existed(_)), "{late:?}");
    let old = NewBulk {
        id: BulkId::from_store(
            world
                .id_at(leasehold::job::Timestamp(world.now().0 - 4_000_000_000))
                .uuid(),
        ),
        ..new
    };
    assert_eq!(world.try_start(old).await, Started::IdOutOfTime);
    let starts = world.audited().await;
    assert_eq!(
        starts,
        [(AuditAction::StartBulk, id.to_string(), 1, "ada".to_owned())]
    );
}

on_each_store!(only_so_many_bulks_may_be_under_way);
async fn only_so_many_bulks_may_be_under_way(world: World) {
    let mut ids = Vec::new();
    for _ in 0..BULKS_LIVE_MAX {
        ids.push(world.start(world.bulk_of(BulkAction::Cancel)).await);
    }
    let more = world.bulk_of(BulkAction::Cancel);
    assert_eq!(world.try_start(more).await, Started::TooMany);
    world.abort(ids[0]).await;
    ids.push(world.start(world.bulk_of(BulkAction::Cancel)).await);

    ids.sort_unstable_by(|a, b| b.cmp(a));
    let mut listed = Vec::new();
    let mut before = None;
    loop {
        let page = world.store.bulks(before, 20).await.expect("bulks answers");
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        listed.extend(page.iter().map(|bulk| bulk.id));
    }
    assert_eq!(listed, ids);
    // None of them holds up the others.
    assert_eq!(world.go_on().await.turned, Some(BulkState::Done));
    for id in ids {
        assert!(world.bulk(id).await.state.is_ended());
    }
}

on_each_store!(a_bulk_is_kept_for_a_week_after_its_end);
async fn a_bulk_is_kept_for_a_week_after_its_end(world: World) {
    let job = world.queued().await;
    let id = world.start(world.bulk_of(BulkAction::Cancel)).await;
    world.go_on().await;
    world.assert_state(job, JobState::Cancelled).await;
    world.advance(minutes(60 * 24 * 6)).await;
    world.tidy().await;
    let bulk = world.bulk(id).await;
    assert_eq!(bulk.counts, counts(1, 1, 0, 0));
    world.advance(minutes(60 * 24 * 2)).await;
    world.tidy().await;
    assert_eq!(world.store.bulk(id).await.expect("bulk answers"), None);
}

on_each_store!(a_bulk_over_a_time_span_covers_what_failed_in_it);
async fn a_bulk_over_a_time_span_covers_what_failed_in_it(world: World) {
    let [old, new] = [world.queued().await, world.queued().await];
    world.fail(old).await;
    world.advance(minutes(30)).await;
    let since = world.now();
    world.fail(new).await;
    world.advance(minutes(1)).await;
    let until = world.now();
    world.advance(minutes(1)).await;
    world.failed_many(1).await;
    let span = JobFilter {
        finished_after: Some(since),
        finished_before: Some(until),
        ..JobFilter::default()
    };
    let listed = world.walk(span.clone(), 10).await;
    let listed: Vec<JobId> = listed.iter().map(|job| job.id).collect();
    assert_eq!(listed, [new]);
    let mut bulk = world.bulk_of(BulkAction::Retry);
    bulk.filter.finished_after = span.finished_after;
    bulk.filter.finished_before = span.finished_before;
    world.start(bulk).await;
    assert_eq!(world.go_on().await.jobs, [new]);
}

on_each_store!(a_late_result_cannot_undo_a_bulk);
async fn a_late_result_cannot_undo_a_bulk(world: World) {
    let (lease, session) = world.running().await;
    world.lose(session).await;
    let new = world.bulk_of(BulkAction::Cancel);
    world.start(new).await;
    world.go_on().await;
    let mut retry = world.bulk_of(BulkAction::Retry);
    retry.filter.states = vec![JobState::Cancelled];
    world.start(retry).await;
    world.go_on().await;
    world.assert_state(lease.job, JobState::Queued).await;
    assert_stale(&world.finish(lease, session, success()).await);
}

on_each_store!(who_leaves_in_the_middle_of_a_step_leaves_it_whole);
async fn who_leaves_in_the_middle_of_a_step_leaves_it_whole(mut world: World) {
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.extend(world.queued_many(1_000).await);
    }
    let observed = Observed::new(world.store.clone(), Arc::new(Ends::default()));
    world.store = observed;
    let id = world.start(world.bulk_of(BulkAction::Cancel)).await;
    while !world.bulk(id).await.state.is_ended() {
        // A step whose caller has left goes on, and lets go of the bulk when it has ended.
        match world.claim_bulk().await {
            Some(claimed) => {
                let depth = rand::random_range(0..4);
                dropped(depth, world.store.step_bulk(claimed)).await;
            }
            // Also one that was claimed and never gone on with is taken over, or whose step takes long.
            None => world.advance(secs(1)).await,
        }
    }
    assert_eq!(world.bulk(id).await.counts, counts(3_000, 3_000, 0, 0));
    for job in jobs {
        let job = world.basic(job).await;
        assert_eq!((job.state, job.revision), (JobState::Cancelled, 2));
    }
    let ends = world.audited().await;
    let ends = ends.iter().filter(|event| event.0 == AuditAction::EndBulk);
    assert_eq!(ends.count(), 1);
}
