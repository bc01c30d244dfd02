//! The numbers of queues are what a scan of all jobs would give, after every step of a job's life.

use std::time::Duration;

use leasehold::job::limits::LOST_LEASES_MAX;
use leasehold::job::{JobId, JobState, Outcome, Priority};
use leasehold::store::QueueStats;

use crate::steps::{
    LONG, assert_recorded, failure, minutes, permanent_failure, queue, release, release_after,
    secs, success,
};
use crate::world::World;

async fn stats(world: &World, limit: usize) -> Vec<QueueStats> {
    world.store.stats(limit).await.expect("stats answers")
}

/// Compares the numbers with the jobs themselves, and the state of one with what the case expects.
async fn assert_counted(world: &World, jobs: &[JobId], state: JobState) {
    let mut counts = [0; 6];
    for (n, id) in jobs.iter().enumerate() {
        let found = world.find(*id).await;
        if n == 0 {
            assert_eq!(found.as_ref().map(|job| job.state), Some(state));
        }
        let Some(job) = found else { continue };
        let at = JobState::ALL.iter().position(|s| *s == job.state);
        counts[at.expect("all states are listed")] += 1;
    }
    let found = stats(world, 10).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].queue, queue("work"));
    assert_eq!(found[0].counts, counts, "after it became {state:?}");
}

on_each_store!(each_step_of_a_life_is_counted);
async fn each_step_of_a_life_is_counted(world: World) {
    use JobState::{Cancelled, Failed, Queued, Running, Scheduled, Succeeded};
    let id = world.scheduled(secs(5)).await;
    // Bystanders, so that no count is right by being zero.
    let (bystander, holder) = world.running().await;
    let mut jobs = vec![
        id,
        bystander.job,
        world.queued().await,
        world.scheduled(LONG).await,
    ];
    for end in [Succeeded, Failed, Cancelled] {
        let job = world.queued().await;
        match end {
            Succeeded => world.succeed(job).await,
            Failed => world.fail(job).await,
            _ => drop(world.cancel(job).await),
        }
        jobs.push(job);
    }
    let counted = async |state| assert_counted(&world, &jobs, state).await;
    counted(Scheduled).await;
    world.cancel(id).await;
    counted(Cancelled).await;
    world.retry(id, secs(5)).await;
    counted(Scheduled).await;
    world.advance(secs(6)).await;
    world.promote().await;
    counted(Queued).await;
    world.cancel(id).await;
    counted(Cancelled).await;
    world.retry(id, Duration::ZERO).await;
    counted(Queued).await;

    let session = world.open().await;
    let lease = world.lease(id, session).await;
    counted(Running).await;
    assert_recorded(&world.finish(lease, session, release()).await);
    counted(Queued).await;
    let lease = world.lease(id, session).await;
    let later = release_after(secs(5));
    assert_recorded(&world.finish(lease, session, later).await);
    counted(Scheduled).await;
    world.advance(secs(6)).await;
    world.promote().await;
    for ends in [failure(), Outcome::TimedOut] {
        let lease = world.lease(id, session).await;
        assert_recorded(&world.finish(lease, session, ends).await);
        counted(Scheduled).await;
        world.cancel(id).await;
        world.retry(id, Duration::ZERO).await;
    }
    let lease = world.lease(id, session).await;
    let ends = permanent_failure();
    assert_recorded(&world.finish(lease, session, ends).await);
    counted(Failed).await;
    world.retry(id, secs(5)).await;
    counted(Scheduled).await;
    world.cancel(id).await;
    world.retry(id, Duration::ZERO).await;

    world.lease(id, session).await;
    world.cancel(id).await;
    counted(Cancelled).await;
    world.retry(id, Duration::ZERO).await;
    for lost in 0..=LOST_LEASES_MAX {
        let dies = world.open().await;
        world.lease(id, dies).await;
        counted(Running).await;
        world.lose(dies).await;
        counted(if lost < LOST_LEASES_MAX {
            Queued
        } else {
            Failed
        })
        .await;
    }
    world.retry(id, Duration::ZERO).await;
    counted(Queued).await;
    let lost = world.open().await;
    let lease = world.lease(id, lost).await;
    world.lose(lost).await;
    assert_recorded(&world.finish(lease, lost, success()).await);
    counted(Succeeded).await;
    world.tidy().await;
    counted(Succeeded).await;

    // What asked for the impossible, or came too late, is not counted.
    world.cancel(id).await;
    world.retry(id, Duration::ZERO).await;
    world.finish(lease, lost, failure()).await;
    counted(Succeeded).await;
    assert_recorded(&world.finish(bystander, holder, success()).await);
    counted(Succeeded).await;
    world.advance(minutes(60 * 24 * 9)).await;
    assert!(world.retain().await > 0);
    let kept = world.find(id).await;
    assert_eq!(kept, None);
    let found = stats(&world, 10).await;
    assert_eq!(
        found[0].counts,
        [1, 1, 0, 0, 0, 0],
        "what is gone is not counted"
    );
}

on_each_store!(each_queue_has_its_own_numbers_and_the_first_are_given_by_name);
async fn each_queue_has_its_own_numbers_and_the_first_are_given_by_name(world: World) {
    for (n, name) in ["c", "a", "b", "a.b"].into_iter().enumerate() {
        for _ in 0..=n {
            world
                .accept(world.job_with(|d| d.queue = name.into()))
                .await;
        }
    }
    for limit in [1, 3, 4, 100] {
        let found = stats(&world, limit).await;
        let found: Vec<_> = found
            .iter()
            .map(|s| (s.queue.as_str(), s.counts[1]))
            .collect();
        let all = [("a", 2), ("a.b", 4), ("b", 3), ("c", 1)];
        assert_eq!(found, all[..limit.min(4)]);
    }
}

/// How long the oldest job of the only queue waits, to the second.
async fn oldest(world: &World) -> Option<u64> {
    let found = stats(world, 10).await;
    let wait = found.first().and_then(|s| s.oldest_wait);
    wait.map(|wait| (wait + secs(3)).as_secs() / 10 * 10)
}

on_each_store!(the_oldest_wait_is_that_of_a_job_that_still_waits);
async fn the_oldest_wait_is_that_of_a_job_that_still_waits(world: World) {
    assert_eq!(oldest(&world).await, None);
    let session = world.open_on(world.node, "long", LONG).await;
    let priority = |level| world.job_with(|d| d.priority = Some(Ok(level)));
    let mut jobs = Vec::new();
    for level in [
        Priority::Normal,
        Priority::High,
        Priority::Normal,
        Priority::Low,
    ] {
        jobs.push(world.accept(priority(level)).await);
        world.advance(secs(100)).await;
    }
    assert_eq!(oldest(&world).await, Some(400));
    let first = world.lease(jobs[0], session).await;
    assert_eq!(oldest(&world).await, Some(300), "the first one runs");
    world.cancel(jobs[1]).await;
    assert_eq!(oldest(&world).await, Some(200));
    world.succeed(jobs[2]).await;
    assert_eq!(oldest(&world).await, Some(100));
    assert_recorded(&world.finish(first, session, release()).await);
    world.cancel(jobs[3]).await;
    assert_eq!(
        oldest(&world).await,
        Some(0),
        "it waits since it was given back"
    );
    world.advance(secs(50)).await;
    assert_eq!(oldest(&world).await, Some(50));
    world.tidy().await;
    assert_eq!(oldest(&world).await, Some(50));
    world.cancel(jobs[0]).await;
    assert_eq!(oldest(&world).await, None);

    let soon = world.scheduled(secs(30)).await;
    assert_eq!(oldest(&world).await, None, "its time has not come");
    world.advance(secs(31)).await;
    world.promote().await;
    world.advance(secs(20)).await;
    assert_eq!(oldest(&world).await, Some(20));
    world.lease(soon, session).await;
    assert_eq!(oldest(&world).await, None);
}

on_each_store!(the_oldest_wait_is_found_behind_many_that_do_not_wait_any_more);
async fn the_oldest_wait_is_found_behind_many_that_do_not_wait_any_more(world: World) {
    for _ in 0..120 {
        let job = world.queued().await;
        world.cancel(job).await;
    }
    world.advance(secs(100)).await;
    world.queued_many(20).await;
    world.advance(secs(50)).await;
    assert_eq!(oldest(&world).await, Some(50));
}
