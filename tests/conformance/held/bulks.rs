//! Steps of bulks, and who comes while one is under way.

use std::time::Duration;

use leasehold::job::{BulkAction, BulkState, JobState, Priority};
use leasehold::store::{BulkStep, Retried, Unit};

use super::{Gate, answer, begin, waiting};
use crate::steps::created;
use crate::store_bulks::counts;
use crate::world::World;

on_postgres!(an_abort_comes_before_or_after_a_step_and_not_into_it);
async fn an_abort_comes_before_or_after_a_step_and_not_into_it(world: World) {
    let jobs = world.queued_many(3).await;
    let id = world.start(world.bulk_of(BulkAction::Cancel)).await;
    world.collect(id).await;
    let claimed = world.claim_bulk().await.expect("it is to be gone on with");
    // The jobs are CANCELLED, and the bulk does not say so yet.
    let mut gate = Gate::shut(&world, "acting", "finished", "INSERT", "true").await;
    let late = claimed.clone();
    let step = begin(&world, |w| async move { w.step_bulk(claimed).await });
    gate.holds(1).await;
    assert_eq!(world.claim_bulk().await, None, "nobody else goes on");
    let abort = begin(&world, move |w| async move { w.abort(id).await });
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(answer(step).await.jobs, jobs);
    let (bulk, is_news) = answer(abort).await;
    assert!(is_news);
    assert_eq!(
        (bulk.state, bulk.counts),
        (BulkState::Aborted, counts(3, 3, 0, 0))
    );
    assert_eq!(world.step_bulk(late).await, BulkStep::default());
    assert_eq!(world.bulk(id).await, bulk);
}

on_postgres!(a_job_that_is_just_being_changed_is_looked_at_as_it_is_then);
async fn a_job_that_is_just_being_changed_is_looked_at_as_it_is_then(world: World) {
    let jobs = world.failed_many(2).await;
    let (changed, other) = (jobs[0], jobs[1]);
    let id = world.start(world.bulk_of(BulkAction::Retry)).await;
    world.collect(id).await;
    let claimed = world.claim_bulk().await.expect("it is to be gone on with");
    let mut gate = Gate::shut(&world, "retrying", "backlog", "INSERT", "true").await;
    let by_hand = begin(&world, move |w| async move {
        w.retry(changed, Duration::ZERO).await
    });
    gate.holds(1).await;
    let step = begin(&world, |w| async move { w.step_bulk(claimed).await });
    waiting(&world, 1).await;
    gate.open().await;
    assert!(matches!(answer(by_hand).await, Retried::Done(..)));
    assert_eq!(answer(step).await.jobs, [other]);
    assert_eq!(world.bulk(id).await.counts, counts(2, 1, 1, 0));
    let job = world.look(changed).await;
    let once = world.look(other).await.revision;
    assert_eq!((job.state, job.revision), (JobState::Queued, once));
}

on_postgres!(a_unique_key_that_is_just_being_taken_fails_no_step);
async fn a_unique_key_that_is_just_being_taken_fails_no_step(world: World) {
    let keyed = || world.job_with(|d| d.unique_key = "account 7".into());
    let old = world.accept(keyed()).await;
    world.fail(old).await;
    let other = world.failed_many(1).await[0];
    let id = world.start(world.bulk_of(BulkAction::Retry)).await;
    world.collect(id).await;
    let claimed = world.claim_bulk().await.expect("it is to be gone on with");
    let mut gate = Gate::shut(&world, "taking", "backlog", "INSERT", "true").await;
    let new = keyed();
    let taking = begin(
        &world,
        |w| async move { w.enqueue(vec![new], Unit::Each).await },
    );
    gate.holds(1).await;
    // It sees nobody who holds the key, and finds out when it takes it.
    let step = begin(&world, |w| async move { w.step_bulk(claimed).await });
    waiting(&world, 1).await;
    gate.open().await;
    created(&answer(taking).await.jobs[0]);
    assert_eq!(answer(step).await.jobs, [other]);
    assert_eq!(world.bulk(id).await.counts, counts(2, 1, 0, 1));
    world.assert_state(old, JobState::Failed).await;
}

on_postgres!(jobs_that_come_due_in_the_middle_are_acted_on);
async fn jobs_that_come_due_in_the_middle_are_acted_on(world: World) {
    for action in [
        BulkAction::Cancel,
        BulkAction::SetPriority(Priority::High),
        BulkAction::Purge,
    ] {
        let id = world.scheduled(Duration::from_secs(60)).await;
        let bulk = world.start(world.bulk_of(action)).await;
        world.collect(bulk).await;
        world.advance(Duration::from_secs(61)).await;
        let claimed = world.claim_bulk().await.expect("it is to be gone on with");
        let mut gate = Gate::shut(&world, "promoting", "backlog", "INSERT", "true").await;
        let promoting = begin(&world, |w| async move { w.promote().await });
        gate.holds(1).await;
        let step = begin(&world, |w| async move { w.step_bulk(claimed).await });
        waiting(&world, 1).await;
        gate.open().await;
        answer(promoting).await;
        assert_eq!(answer(step).await.jobs, [id], "{action:?}");
        assert_eq!(world.bulk(bulk).await.counts, counts(1, 1, 0, 0));
        let job = world.find(id).await;
        match action {
            BulkAction::Cancel => assert_eq!(job.unwrap().state, JobState::Cancelled),
            BulkAction::Purge => assert_eq!(job, None),
            _ => assert_eq!(job.unwrap().spec.priority, Priority::High),
        }
        if let BulkAction::SetPriority(_) = action {
            world.cancel(id).await;
        }
    }
}
