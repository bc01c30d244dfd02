//! Jobs that are steered by hand while they come due.

use leasehold::job::{By, JobId, JobState, Priority, Start};
use leasehold::store::Rescheduled;

use super::{Gate, answer, begin, waiting};
use crate::steps::secs;
use crate::world::World;

/// What is told of a job that is steered while a promote that has it is under way.
async fn steered<F>(world: &World, id: JobId, steer: impl FnOnce(World) -> F) -> Rescheduled
where
    F: Future<Output = Rescheduled> + Send + 'static,
{
    world.reschedule_after(id, secs(60)).await;
    world.advance(secs(61)).await;
    let mut gate = Gate::shut(world, "promoting", "backlog", "INSERT", "true").await;
    let promoting = begin(world, |w| async move { w.promote().await });
    gate.holds(1).await;
    let steering = begin(world, steer);
    waiting(world, 1).await;
    gate.open().await;
    answer(promoting).await;
    answer(steering).await
}

impl World {
    async fn reschedule_after(&self, id: JobId, delay: std::time::Duration) -> Rescheduled {
        let start = Start::After(delay);
        let told = self.store.reschedule(id, start, By::default()).await;
        told.unwrap()
    }
}

on_postgres!(a_job_that_is_put_off_while_it_comes_due_is_put_off);
async fn a_job_that_is_put_off_while_it_comes_due_is_put_off(world: World) {
    let id = world.accept(world.job()).await;
    let put_off = move |w: World| async move { w.reschedule_after(id, secs(3_600)).await };
    let Rescheduled::Done(told, _) = steered(&world, id, put_off).await else {
        panic!("it waits")
    };
    assert_eq!(told.state, JobState::Scheduled);
    assert_eq!(world.look(id).await.state, JobState::Scheduled);
    world.advance(secs(3_601)).await;
    world.promote().await;
    assert_eq!(world.look(id).await.state, JobState::Queued);
}

on_postgres!(a_job_that_is_raised_while_it_comes_due_is_raised);
async fn a_job_that_is_raised_while_it_comes_due_is_raised(world: World) {
    let id = world.accept(world.job()).await;
    let raise = move |w: World| async move {
        let told = w.store.set_priority(id, Priority::High, By::default());
        told.await.unwrap()
    };
    let Rescheduled::Done(told, segments) = steered(&world, id, raise).await else {
        panic!("it waits")
    };
    assert_eq!(
        (told.state, told.spec.priority),
        (JobState::Queued, Priority::High)
    );
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0].line.priority, Priority::High);
}
