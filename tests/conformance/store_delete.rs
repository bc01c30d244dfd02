//! A delete: a final job goes at once, with all that it held; its id does not come to life twice.

use leasehold::job::draft::Draft;
use leasehold::job::{JobId, JobState, NewJob, Verdict};
use leasehold::store::{Cancelled, Deleted, Enqueued, Granted, JobFilter, Retried, Unit};
use std::time::Duration;

use crate::steps::{assert_recorded, failure, minutes, success};
use crate::world::World;

fn with_keys(d: &mut Draft) {
    d.idempotency_key = "order 7".into();
    d.unique_key = "account 7".into();
}

impl World {
    async fn delete(&self, id: JobId) -> Deleted {
        self.store
            .delete(id, "".into())
            .await
            .expect("delete answers")
    }
}

on_each_store!(a_final_job_is_gone_at_once_with_all_that_it_held);
async fn a_final_job_is_gone_at_once_with_all_that_it_held(world: World) {
    let session = world.open().await;
    let new = world.job_with(with_keys);
    let id = world.accept(new.clone()).await;
    let first = world.lease(id, session).await;
    assert_recorded(&world.finish(first, session, failure()).await);
    world.advance(minutes(1)).await;
    world.promote().await;
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    assert_recorded(&world.finish(lease, session, success()).await);
    let [failed, cancelled] = [world.queued().await, world.queued().await];
    world.fail(failed).await;
    world.cancel(cancelled).await;
    let other = world.queued().await;

    for gone in [id, failed, cancelled] {
        assert_eq!(world.delete(gone).await, Deleted::Done);
        assert_eq!(world.find(gone).await, None);
        assert_eq!(world.delete(gone).await, Deleted::NotFound);
        assert_eq!(world.cancel(gone).await, Cancelled::NotFound);
        let retried = world.retry(gone, Duration::ZERO).await;
        assert_eq!(retried, Retried::NotFound);
        assert_eq!(world.ask(gone, session).await, Granted::NotQueued);
    }
    let listed = world.walk(JobFilter::default(), 1).await;
    let listed: Vec<JobId> = listed.iter().map(|job| job.id).collect();
    assert_eq!(listed, [other]);
    let dead = JobFilter {
        states: vec![JobState::Failed, JobState::Cancelled],
        ..JobFilter::default()
    };
    assert_eq!(world.walk(dead, 10).await, []);
    // A copy of its result, and of an ending before it.
    for (lease, outcome) in [(lease, success()), (first, failure())] {
        let verdict = world.finish(lease, session, outcome).await;
        assert_eq!(verdict, Verdict::Unknown);
    }
    // Its keys are free.
    world.accept(world.job_with(with_keys)).await;
}

on_each_store!(only_a_final_job_can_be_deleted);
async fn only_a_final_job_can_be_deleted(world: World) {
    let (running, _) = world.running().await;
    for (id, state) in [
        (world.queued().await, JobState::Queued),
        (world.scheduled(minutes(5)).await, JobState::Scheduled),
        (running.job, JobState::Running),
    ] {
        let before = world.look(id).await;
        assert_eq!(world.delete(id).await, Deleted::WrongState(state));
        assert_eq!(world.look(id).await, before);
    }
    assert_eq!(world.delete(world.fresh_id()).await, Deleted::NotFound);
}

on_each_store!(the_id_of_a_deleted_job_is_taken_until_it_is_too_old);
async fn the_id_of_a_deleted_job_is_taken_until_it_is_too_old(world: World) {
    let new = world.job_with(with_keys);
    world.accept(new.clone()).await;
    world.cancel(new.id).await;
    assert_eq!(world.delete(new.id).await, Deleted::Done);
    let taken = async |when: &str| {
        for unit in [Unit::Each, Unit::All] {
            let plain = NewJob {
                id: new.id,
                ..world.job()
            };
            for again in [new.clone(), plain] {
                let answer = world.enqueue(vec![again], unit).await;
                assert_eq!(answer.jobs, [Enqueued::Conflict], "{when}");
            }
        }
    };
    taken("at once").await;
    world.advance(minutes(50)).await;
    assert_eq!(world.retain().await, 0);
    taken("as long as it can be sent").await;
    world.advance(minutes(25)).await;
    assert_eq!(world.retain().await, 1, "nothing is left of it");
    let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
    assert_eq!(answer.jobs, [Enqueued::IdOutOfTime]);
    assert_eq!(world.retain().await, 0);
}

on_each_store!(an_old_job_that_is_deleted_leaves_nothing);
async fn an_old_job_that_is_deleted_leaves_nothing(world: World) {
    let id = world.queued().await;
    world.succeed(id).await;
    world.advance(minutes(120)).await;
    assert_eq!(world.delete(id).await, Deleted::Done);
    assert_eq!(world.find(id).await, None);
    assert_eq!(world.retain().await, 1);
}
