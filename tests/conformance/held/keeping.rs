//! What removes and merges rows, held, beside those who still need them.

use std::time::Duration;

use leasehold::job::{JobId, JobState, Verdict};
use leasehold::store::{Granted, Retried, Swept};

use super::{Gate, Hand, answer, begin, waiting};
use crate::steps::{
    assert_stale, failure, fresh_epoch, jobs_of, line_of, permanent_failure, release, secs, success,
};
use crate::world::World;

/// Longer than any job is kept.
const AGES: Duration = Duration::from_secs(30 * 24 * 60 * 60);

async fn retain(world: World) -> Swept {
    world.store.retain(100).await.expect("retain answers")
}

async fn a_copy_of_a_result_beside_the_removal_of_its_job_is_recorded_or_unknown(world: World) {
    for outcome in [success(), permanent_failure()] {
        let (lease, session) = world.running().await;
        world.finish(lease, session, outcome.clone()).await;
        world.advance(AGES).await;
        let mut gate = Gate::shut(&world, "removing", "jobs", "DELETE", "true").await;
        let removing = begin(&world, retain);
        gate.holds(1).await;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert!(matches!(told, Verdict::Recorded(_)), "{told:?}");
        gate.open().await;
        assert_eq!(answer(removing).await.changed, 1);
        // Nothing can be said: STALE would be a lie, to a worker whose result was recorded.
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, Verdict::Unknown);
    }
}
on_postgres!(a_copy_of_a_result_beside_the_removal_of_its_job_is_recorded_or_unknown);

async fn a_job_that_is_brought_back_beside_its_removal_is_gone_or_stays_whole(world: World) {
    // The removal first.
    let (lease, session) = world.running().await;
    world.finish(lease, session, permanent_failure()).await;
    let job = lease.job;
    world.advance(AGES).await;
    let mut gate = Gate::shut(&world, "removing", "jobs", "DELETE", "true").await;
    let removing = begin(&world, retain);
    gate.holds(1).await;
    let retrying = begin(&world, move |world| async move {
        world.retry(job, Duration::ZERO).await
    });
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(answer(removing).await.changed, 1);
    assert_eq!(answer(retrying).await, Retried::NotFound);

    // The retry first.
    let session = world.open().await;
    let lease = world.lease(world.queued().await, session).await;
    world.finish(lease, session, permanent_failure()).await;
    let job = lease.job;
    world.advance(AGES).await;
    let mut gate = Gate::shut(&world, "retrying", "backlog", "INSERT", "true").await;
    let retrying = begin(&world, move |world| async move {
        world.retry(job, Duration::ZERO).await
    });
    gate.holds(1).await;
    assert_eq!(retain(world.clone()).await.changed, 0);
    gate.open().await;
    assert!(matches!(answer(retrying).await, Retried::Done(..)));
    for _ in 0..3 {
        world.advance(secs(10)).await;
        assert_eq!(world.retain().await, 0);
    }
    let job = world.look(job).await;
    assert_eq!((job.state, job.attempts.len()), (JobState::Queued, 1));
    // It ends anew, and is found by that end.
    world.succeed(job.id).await;
    world.advance(AGES).await;
    assert_eq!(world.retain().await, 1);
}
on_postgres!(a_job_that_is_brought_back_beside_its_removal_is_gone_or_stays_whole);

/// All that tidying, removing and merging do, while an end is written that nobody sees yet: afterwards it is found.
async fn no_sweep_drops_the_row_of_an_end_that_is_being_written(world: World) {
    // Enough small rows of one hour to be merged, and one job whose end is held.
    let session = world.open().await;
    let mut leases = Vec::new();
    for job in world.queued_many(41).await {
        leases.push(world.lease(job, session).await);
    }
    let last = leases.pop().expect("there are some");
    for lease in leases {
        world.finish(lease, session, success()).await;
    }
    let mut gate = Gate::shut(&world, "finishing", "finished", "INSERT", "NEW.size = 1").await;
    let finishing = begin(&world, move |world| async move {
        world.finish(last, session, success()).await
    });
    gate.holds(1).await;
    for _ in 0..3 {
        world.tidy().await;
        world.retain().await;
        world.expire().await;
        world.advance(secs(10)).await;
    }
    gate.open().await;
    let told = answer(finishing).await;
    assert_eq!(told, Verdict::Recorded(JobState::Succeeded));
    world.tidy().await;
    world.advance(AGES).await;
    assert_eq!(world.retain().await, 41);
}
on_postgres!(no_sweep_drops_the_row_of_an_end_that_is_being_written);

async fn a_merge_of_ends_and_a_removal_share_no_job_and_lose_none(world: World) {
    let session = world.open().await;
    for job in world.queued_many(40).await {
        let lease = world.lease(job, session).await;
        world.finish(lease, session, success()).await;
    }
    world.advance(AGES).await;
    let mut gate = Gate::shut(&world, "merging", "finished", "INSERT", "true").await;
    let merging = begin(&world, |world| async move {
        world.store.tidy(100).await.expect("tidy answers")
    });
    gate.holds(1).await;
    let removed = retain(world.clone()).await.changed;
    gate.open().await;
    answer(merging).await;
    let mut left = 0;
    for _ in 0..3 {
        left += world.retain().await;
        world.advance(secs(10)).await;
    }
    assert_eq!(removed + left, 40);
    let rows = Hand::of(&world)
        .await
        .count("SELECT count(*) FROM finished")
        .await;
    assert_eq!(rows, 0, "and nothing points at what is gone");
}
on_postgres!(a_merge_of_ends_and_a_removal_share_no_job_and_lose_none);

/// One becomes QUEUED or RUNNING while the logs are tidied: its row is not there yet, and is not missed.
async fn no_tidying_drops_the_row_of_a_job_that_is_on_its_way(world: World) {
    let due = world.scheduled(secs(1)).await;
    world.advance(secs(60)).await;
    let mut gate = Gate::shut(&world, "promoting", "backlog", "INSERT", "true").await;
    let promoting = begin(&world, |world| async move { world.promote().await });
    gate.holds(1).await;
    world.trim().await;
    gate.open().await;
    let segments = answer(promoting).await.segments;
    assert_eq!(jobs_of(&segments), [due]);
    world.advance(secs(60)).await;
    world.tidy().await;
    assert_eq!(world.waiting().await, [due].into());

    let session = world.open().await;
    let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
    let granting = begin(
        &world,
        move |world| async move { world.ask(due, session).await },
    );
    gate.holds(1).await;
    world.trim().await;
    gate.open().await;
    let Granted::Lease(job) = answer(granting).await else {
        panic!("it was QUEUED");
    };
    world.advance(secs(60)).await;
    world.tidy().await;
    assert_eq!(
        jobs_held(&world, session).await,
        [job.lease.job],
        "its grant is there"
    );
    let told = world.finish(job.lease, session, failure()).await;
    assert!(matches!(told, Verdict::Recorded(_)), "{told:?}");
    let late = world.finish(job.lease, session, release()).await;
    assert_stale(&late);
}
on_postgres!(no_tidying_drops_the_row_of_a_job_that_is_on_its_way);

async fn jobs_held(world: &World, by: leasehold::store::Attached) -> Vec<JobId> {
    let leases = world.store.leases(vec![by], Duration::ZERO).await;
    let leases = leases.expect("leases answers").remove(0);
    let leases = leases.expect("it is its");
    leases.iter().map(|held| held.lease.job).collect()
}

impl World {
    /// Whatever drops rows of the logs, once, with claims that are over at once.
    async fn trim(&self) {
        let line = line_of(&self.job());
        self.claim(&[line], Duration::ZERO, 100).await;
        self.unoffered(fresh_epoch(), Duration::ZERO, Duration::ZERO, 100)
            .await;
        self.store.tidy(100).await.expect("tidy answers");
    }
}

/// Two nodes sum up the counters at once, and somebody reads them.
async fn counters_that_are_summed_up_are_never_seen_twice_or_not_at_all(world: World) {
    world.queued_many(5).await;
    world.queued_many(5).await;
    let mut gate = Gate::shut(&world, "summing", "queue_counts", "INSERT", "true").await;
    let summing = begin(&world, |world| async move {
        world.store.tidy(100).await.expect("tidy answers")
    });
    gate.holds(1).await;
    let seen = world.store.stats(10).await.expect("stats answers");
    assert_eq!(seen[0].counts[1], 10);
    let again = world.store.tidy(100).await.expect("tidy answers");
    assert_eq!(again.changed, 0, "the other one is at it");
    gate.open().await;
    assert_eq!(answer(summing).await.changed, 2);
    let seen = world.store.stats(10).await.expect("stats answers");
    assert_eq!(seen[0].counts[1], 10);
}
on_postgres!(counters_that_are_summed_up_are_never_seen_twice_or_not_at_all);
