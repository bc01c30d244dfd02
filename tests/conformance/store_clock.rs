//! A store's clock that is set back: what was to last for seconds must not last for as long as that.

use std::time::Duration;

use leasehold::job::JobState;
use leasehold::job::Priority;
use leasehold::store::{EntryId, Line, Offer};

use crate::steps::{FOR_LONG, fresh_epoch, jobs_of, secs};
use crate::world::World;

const HOUR: Duration = Duration::from_secs(60 * 60);

on_each_store!(a_lease_does_not_last_longer_when_the_clock_is_set_back);
async fn a_lease_does_not_last_longer_when_the_clock_is_set_back(world: World) {
    world.outlive_grace(&[]).await;
    let (kept, alive) = world.running().await;
    let (lost, _) = world.running().await;
    world.turn_back(HOUR).await;
    assert_eq!(world.expire().await.sessions, 0, "nobody had time to come");
    world.touch().await;
    assert_eq!(world.expire().await.sessions, 0, "a time of grace");
    world.outlive_grace(&[alive]).await;
    let expired = world.expire().await;
    assert_eq!((expired.sessions, expired.jobs), (1, 1));
    assert_eq!(jobs_of(&expired.segments), [lost.job]);
    world.assert_state(kept.job, JobState::Running).await;
    world.lease(lost.job, alive).await;
}

on_each_store!(a_clock_that_is_set_back_a_little_costs_no_lease);
async fn a_clock_that_is_set_back_a_little_costs_no_lease(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, session) = world.running().await;
    for back in [1, 4, 6, 11] {
        world.touch().await;
        assert!(world.renew(session).await);
        world.turn_back(secs(back)).await;
        assert_eq!(world.expire().await.sessions, 0, "{back} s");
    }
    world.assert_state(lease.job, JobState::Running).await;
}

on_each_store!(hints_that_are_lost_when_the_clock_was_set_back_come_again_at_once);
async fn hints_that_are_lost_when_the_clock_was_set_back_come_again_at_once(world: World) {
    let (old, epoch) = (fresh_epoch(), fresh_epoch());
    let (age, claim) = (secs(2), secs(5));
    let offered = world.queued().await;
    let segments = world.unoffered(old, secs(0), claim, 10).await;
    let last = EntryId { ms: 5, seq: 5 };
    let offers = segments.iter().map(|segment| Offer {
        segment: segment.id,
        epoch: old,
        last,
    });
    world.store.offered(offers.collect()).await.unwrap();
    world.turn_back(HOUR).await;
    // Its stream begins behind it.
    let line = Line {
        queue: segments[0].line.queue.clone(),
        priority: Priority::Normal,
    };
    let lost = world.store.lost_offers(old, line, None, age, 10).await;
    assert_eq!(jobs_of(&lost.unwrap()), [offered]);
    // All streams are gone.
    let found = world.unoffered(epoch, age, FOR_LONG, 10).await;
    assert_eq!(jobs_of(&found), [offered]);
    let none = world.unoffered(epoch, age, FOR_LONG, 10).await;
    assert!(none.is_empty(), "it is claimed");
}
