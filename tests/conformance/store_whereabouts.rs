//! Where a job is: its place in line, or how its lease stands.

use leasehold::job::{JobId, Priority};
use leasehold::store::{Ahead, Whereabouts};

use crate::steps::{TTL, assert_about, minutes, release, secs};
use crate::world::World;

const MANY: usize = 5_000;

async fn whereabouts(world: &World, job: JobId, limit: usize) -> Whereabouts {
    let answer = world.store.whereabouts(job, limit).await;
    answer.expect("whereabouts answers")
}

/// How many are before it, when they can all be counted.
async fn ahead(world: &World, job: JobId) -> Option<usize> {
    let ahead = whereabouts(world, job, MANY).await.ahead?;
    assert!(!ahead.more, "{ahead:?}");
    Some(ahead.jobs)
}

async fn of(world: &World, level: Priority) -> JobId {
    let new = world.job_with(|d| d.priority = Some(Ok(level)));
    world.accept(new).await
}

on_each_store!(a_place_in_line_is_behind_what_is_higher_or_earlier_and_still_waits);
async fn a_place_in_line_is_behind_what_is_higher_or_earlier_and_still_waits(world: World) {
    use Priority::{High, Low, Normal};
    let low = of(&world, Low).await;
    let first = of(&world, Normal).await;
    let others = world.queued_many(3).await;
    let job = of(&world, Normal).await;
    let urgent = of(&world, High).await;
    of(&world, Normal).await;
    world
        .accept(world.job_with(|d| d.queue = "other".into()))
        .await;
    assert_eq!(ahead(&world, job).await, Some(5));
    assert_eq!(ahead(&world, low).await, Some(7));
    assert_eq!(ahead(&world, urgent).await, Some(0));
    world.cancel(others[1]).await;
    assert_eq!(ahead(&world, job).await, Some(4));
    let session = world.open().await;
    let lease = world.lease(first, session).await;
    assert_eq!(ahead(&world, first).await, None, "it waits no more");
    assert_eq!(ahead(&world, job).await, Some(3));
    // What is given back stands at the end of its line.
    world.finish(lease, session, release()).await;
    assert_eq!(ahead(&world, job).await, Some(3));
    assert_eq!(ahead(&world, first).await, Some(5));
    let later = world.scheduled(minutes(1)).await;
    assert_eq!(ahead(&world, later).await, None);
}

on_each_store!(a_long_line_is_counted_as_far_as_was_asked);
async fn a_long_line_is_counted_as_far_as_was_asked(world: World) {
    world.queued_many(3_000).await;
    // Each in a segment of its own.
    for _ in 0..10 {
        world.queued().await;
    }
    let job = world.queued().await;
    assert_eq!(ahead(&world, job).await, Some(3_010));
    let some = whereabouts(&world, job, 1_000).await.ahead;
    let some = some.expect("it waits");
    assert!(some.more && some.jobs >= 1_000, "{some:?}");
    let none = whereabouts(&world, job, 0).await.ahead;
    let none = none.expect("it waits");
    assert_eq!(
        none,
        Ahead {
            jobs: 0,
            more: true
        }
    );
}

on_each_store!(a_running_job_shows_its_lease_and_an_outage_its_grace);
async fn a_running_job_shows_its_lease_and_an_outage_its_grace(world: World) {
    let (lease, session) = world.running().await;
    let at = whereabouts(&world, lease.job, MANY).await;
    assert_about(at.now, world.now(), "what time it is");
    let until = at.lease_until.expect("it is held");
    assert_about(until, world.now().after(TTL), "the lease's end");
    assert_eq!(at.ahead, None);
    world.touch().await;
    world.advance(minutes(60)).await;
    world.touch().await;
    let at = whereabouts(&world, lease.job, MANY).await;
    assert_eq!(at.lease_until, Some(until));
    assert_about(at.grace_until, world.now().after(secs(30)), "the grace");
    world.renew(session).await;
    let renewed = whereabouts(&world, lease.job, MANY).await.lease_until;
    assert!(renewed > Some(until));
    let nobody = whereabouts(&world, world.fresh_id(), MANY).await;
    assert_eq!((nobody.ahead, nobody.lease_until), (None, None));
}
