//! What goes on in queues, as nodes tell of it and people see it.

use std::time::Duration;

use leasehold::job::limits::{FLOWS_EVERY, FLOWS_KEPT, RATES_LAG, RATES_OVER};
use leasehold::job::{Flow, Rates};
use leasehold::store::QueueView;

use crate::steps::*;
use crate::world::World;

/// Time passes by itself, too, on a busy machine.
const NEAR: f64 = 0.2;

async fn note(world: &World, span: Duration, flows: &[(&str, Flow)]) {
    let flows = flows.iter().map(|(name, flow)| (queue(name), *flow));
    let noted = world.store.note_flows(span, flows.collect()).await;
    noted.expect("note_flows answers");
}

fn flow(enqueued: u64, started: u64, succeeded: u64, failed: u64) -> Flow {
    Flow {
        enqueued,
        started,
        succeeded,
        failed,
    }
}

async fn rates(world: &World, name: &str) -> Rates {
    let view = world.store.queue(queue(name)).await;
    view.expect("queue answers").expect("it is seen").rates
}

fn assert_near(actual: f64, expected: f64, what: &str) {
    let bound = expected * NEAR;
    assert!(
        (actual - expected).abs() <= bound,
        "{what}: {actual}, not about {expected}"
    );
}

on_each_store!(what_goes_on_evenly_is_seen_as_it_is);
async fn what_goes_on_evenly_is_seen_as_it_is(world: World) {
    world.queued().await;
    assert_eq!(rates(&world, "work").await, Rates::default());
    // Two nodes, for two minutes.
    for _ in 0..24 {
        world.advance(FLOWS_EVERY).await;
        for _ in 0..2 {
            note(&world, FLOWS_EVERY, &[("work", flow(50, 40, 30, 10))]).await;
        }
    }
    let seen = rates(&world, "work").await;
    assert_near(seen.enqueued, 20.0, "enqueued");
    assert_near(seen.started, 16.0, "started");
    assert_near(seen.succeeded, 12.0, "succeeded");
    assert_near(seen.failed, 4.0, "failed");
    let listed = world.store.queues(None, 10).await.expect("queues answers");
    assert_near(listed[0].rates.enqueued, 20.0, "in a list");

    // It ends, and is forgotten bit by bit.
    world.advance(RATES_LAG + RATES_OVER / 2).await;
    assert_near(
        rates(&world, "work").await.enqueued,
        10.0,
        "half a minute later",
    );
    world.advance(RATES_OVER / 2 + secs(1)).await;
    assert_eq!(rates(&world, "work").await, Rates::default());
}

on_each_store!(what_was_told_late_went_on_in_all_its_span);
async fn what_was_told_late_went_on_in_all_its_span(world: World) {
    world.queued().await;
    // After an outage of ten minutes: 6,000 in 600 s.
    note(&world, minutes(10), &[("work", flow(6_000, 0, 0, 0))]).await;
    world.advance(RATES_LAG).await;
    assert_near(
        rates(&world, "work").await.enqueued,
        10.0,
        "of a minute of it",
    );
    // A span of nothing is no division by zero.
    note(&world, Duration::ZERO, &[("work", flow(60, 0, 0, 0))]).await;
    world.advance(RATES_LAG + RATES_OVER / 2).await;
    assert!(rates(&world, "work").await.enqueued >= 1.0);
}

on_each_store!(each_queue_has_its_own_rates_and_they_make_none);
async fn each_queue_has_its_own_rates_and_they_make_none(world: World) {
    for name in ["a", "b", "c"] {
        world
            .accept(world.job_with(|d| d.queue = name.into()))
            .await;
    }
    let told = [
        ("a", flow(60, 0, 0, 0)),
        ("b", flow(0, 120, 0, 0)),
        ("never", flow(0, 0, 0, 60)),
    ];
    note(&world, FLOWS_EVERY, &told).await;
    world.advance(RATES_LAG + FLOWS_EVERY).await;
    let (a, b) = (rates(&world, "a").await, rates(&world, "b").await);
    assert_eq!((a.enqueued, a.started), (1.0, 0.0));
    assert_eq!((b.enqueued, b.started), (0.0, 2.0));
    assert_eq!(rates(&world, "c").await, Rates::default());

    let names = ["c", "never", "a", "c"].map(queue).to_vec();
    let views = world.store.queues_named(names).await.expect("it answers");
    let seen = |view: &Option<QueueView>| {
        let view = view.as_ref()?;
        Some((
            view.stats.queue.to_string(),
            view.stats.counts[1],
            view.rates.enqueued,
        ))
    };
    let c = Some(("c".to_owned(), 1, 0.0));
    let expected = [c.clone(), None, Some(("a".to_owned(), 1, 1.0)), c];
    assert_eq!(views.iter().map(seen).collect::<Vec<_>>(), expected);
    let listed = world.store.queues(None, 10).await.expect("queues answers");
    assert_eq!(
        listed.len(),
        3,
        "that something went on in it makes no queue"
    );
    let none = world.store.queues_named(Vec::new()).await;
    assert_eq!(none.expect("it answers"), []);
    for view in views.into_iter().flatten() {
        let alone = world.store.queue(view.stats.queue.clone()).await;
        let alone = alone.expect("queue answers").expect("it is seen");
        assert_eq!(
            (alone.stats.counts, alone.rates),
            (view.stats.counts, view.rates)
        );
    }
}

on_each_store!(what_nodes_have_told_is_forgotten);
async fn what_nodes_have_told_is_forgotten(world: World) {
    world.queued().await;
    note(&world, FLOWS_EVERY, &[("work", flow(1, 1, 1, 1))]).await;
    world.tidy().await;
    world.advance(FLOWS_KEPT + secs(1)).await;
    note(&world, FLOWS_EVERY, &[("work", flow(600, 0, 0, 0))]).await;
    assert_eq!(world.tidy().await, 1, "the first of them goes");
    world.advance(RATES_LAG + FLOWS_EVERY).await;
    assert_eq!(
        rates(&world, "work").await.enqueued,
        10.0,
        "the other is there"
    );

    // What a clock has written that was set back since is no more than what comes after it.
    world.turn_back(2 * FLOWS_KEPT).await;
    assert_eq!(rates(&world, "work").await, Rates::default());
    assert_eq!(world.tidy().await, 1);
}
