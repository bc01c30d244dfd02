//! Another time and another priority for a job that waits.

use std::time::Duration;

use leasehold::job::draft::{RawExpiry, RawStart};
use leasehold::job::limits::SPAN_MAX;
use leasehold::job::{Job, JobId, JobState, Priority, StaleReason, Start, Timestamp, Verdict};
use leasehold::store::{Line, Rescheduled, Segment};

use crate::steps::{
    assert_about, assert_recorded, failure, jobs_of, line_of, minutes, queue, raw, secs, success,
};
use crate::world::World;

impl World {
    async fn reschedule(&self, id: JobId, start: Start) -> Rescheduled {
        let told = self.store.reschedule(id, start, "".into()).await;
        told.expect("reschedule answers")
    }

    /// It must be allowed.
    async fn move_to(&self, id: JobId, start: Start) -> (Job, Vec<Segment>) {
        match self.reschedule(id, start).await {
            Rescheduled::Done(job, segments) => {
                assert_eq!(job, self.basic(id).await, "a basic view of it as it is now");
                (job, segments)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn set_priority(&self, id: JobId, priority: Priority) -> Rescheduled {
        let told = self.store.set_priority(id, priority, "".into()).await;
        told.expect("set_priority answers")
    }

    async fn raise(&self, id: JobId, priority: Priority) -> (Job, Vec<Segment>) {
        match self.set_priority(id, priority).await {
            Rescheduled::Done(job, segments) => (job, segments),
            other => panic!("{other:?}"),
        }
    }
}

fn of(priority: Priority) -> Line {
    Line {
        queue: queue(crate::steps::QUEUE),
        priority,
    }
}

on_each_store!(a_scheduled_job_is_put_off_called_forward_and_run_now);
async fn a_scheduled_job_is_put_off_called_forward_and_run_now(world: World) {
    let id = world.scheduled(minutes(60)).await;
    let (job, segments) = world.move_to(id, Start::After(minutes(90))).await;
    assert_eq!((job.state, job.revision), (JobState::Scheduled, 2));
    assert_about(job.run_time, world.now().after(minutes(90)), "later");
    assert_eq!(segments, []);
    let sooner = world.now().after(minutes(5));
    let (job, _) = world.move_to(id, Start::At(sooner)).await;
    assert_eq!((job.state, job.run_time), (JobState::Scheduled, sooner));
    world.advance(minutes(4)).await;
    assert_eq!(world.promote().await.changed, 0);
    world.advance(minutes(2)).await;
    assert_eq!(jobs_of(&world.promote().await.segments), [id]);

    let (job, _) = world.move_to(id, Start::After(minutes(10))).await;
    assert_eq!(job.state, JobState::Scheduled, "also when it was due");
    for now in [
        Start::Now,
        Start::After(Duration::ZERO),
        Start::At(Timestamp(0)),
    ] {
        world.move_to(id, Start::After(minutes(10))).await;
        let (job, segments) = world.move_to(id, now).await;
        assert_eq!(job.state, JobState::Queued);
        assert_about(job.run_time, world.now(), "now");
        assert_eq!(jobs_of(&segments), [id], "to be offered");
        assert_eq!(segments[0].line, line_of(&world.job()));
    }
    world.succeed(id).await;
}

on_each_store!(a_queued_job_that_is_to_run_now_keeps_its_place);
async fn a_queued_job_that_is_to_run_now_keeps_its_place(world: World) {
    let id = world.queued().await;
    let before = world.basic(id).await;
    let (job, segments) = world.move_to(id, Start::Now).await;
    assert_eq!((job, segments), (before, vec![]));
}

on_each_store!(the_backoff_before_a_retry_is_cut_short);
async fn the_backoff_before_a_retry_is_cut_short(world: World) {
    let (lease, session) = world.running().await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    let (job, _) = world.move_to(lease.job, Start::Now).await;
    assert_eq!(
        (job.state, job.failures, job.attempt),
        (JobState::Queued, 1, 1)
    );
    assert_eq!(world.lease(lease.job, session).await.attempt, 2);
}

on_each_store!(a_late_result_cannot_undo_that_a_job_was_put_off);
async fn a_late_result_cannot_undo_that_a_job_was_put_off(world: World) {
    let (lease, session) = world.running().await;
    world.lose(session).await;
    world.move_to(lease.job, Start::After(minutes(5))).await;
    world.move_to(lease.job, Start::Now).await;
    let verdict = world.finish(lease, session, success()).await;
    let stale = Verdict::Stale(StaleReason::Superseded, JobState::Queued);
    assert_eq!(verdict, stale);
}

on_each_store!(a_time_that_cannot_be_is_refused_and_nothing_changes);
async fn a_time_that_cannot_be_is_refused_and_nothing_changes(world: World) {
    let id = world.queued().await;
    let before = world.look(id).await;
    let far = Start::At(world.now().after(SPAN_MAX + minutes(1)));
    assert_eq!(world.reschedule(id, far).await, Rescheduled::StartTooFar);
    assert_eq!(world.look(id).await, before);

    let expiring = world.job_with(|d| {
        d.start = RawStart::Delay(raw(minutes(1)));
        d.expiry = Some(RawExpiry::In(raw(minutes(5))));
    });
    let id = world.accept(expiring).await;
    let late = Start::After(minutes(6));
    assert_eq!(
        world.reschedule(id, late).await,
        Rescheduled::ExpiresTooSoon
    );
    world.move_to(id, Start::After(minutes(4))).await;
    // Once it has begun, its expire time does not count.
    world.move_to(id, Start::Now).await;
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    world.move_to(id, late).await;
}

on_each_store!(only_a_job_that_waits_can_be_steered);
async fn only_a_job_that_waits_can_be_steered(world: World) {
    let (running, _) = world.running().await;
    let [done, failed, cancelled] = [
        world.queued().await,
        world.queued().await,
        world.queued().await,
    ];
    world.succeed(done).await;
    world.fail(failed).await;
    world.cancel(cancelled).await;
    for (id, state) in [
        (running.job, JobState::Running),
        (done, JobState::Succeeded),
        (failed, JobState::Failed),
        (cancelled, JobState::Cancelled),
    ] {
        let before = world.look(id).await;
        let refused = Rescheduled::WrongState(state);
        assert_eq!(world.reschedule(id, Start::Now).await, refused);
        assert_eq!(world.set_priority(id, Priority::High).await, refused);
        assert_eq!(world.look(id).await, before);
    }
    let none = world.fresh_id();
    assert_eq!(
        world.reschedule(none, Start::Now).await,
        Rescheduled::NotFound
    );
    let told = world.set_priority(none, Priority::Low).await;
    assert_eq!(told, Rescheduled::NotFound);
}

on_each_store!(a_job_of_another_priority_waits_in_that_line_alone);
async fn a_job_of_another_priority_waits_in_that_line_alone(world: World) {
    let [id, other] = [world.queued().await, world.queued().await];
    let (job, segments) = world.raise(id, Priority::High).await;
    assert_eq!(job, world.basic(id).await);
    assert_eq!(
        (job.state, job.revision, job.spec.priority),
        (JobState::Queued, 2, Priority::High)
    );
    assert_eq!(segments.len(), 1);
    assert_eq!(
        (&segments[0].line, &segments[0].jobs[..]),
        (&of(Priority::High), &[id][..])
    );
    let claimed = world.claim(&[of(Priority::Normal)], secs(1), 10).await;
    assert_eq!(jobs_of(&claimed), [other], "not in the old one");
    let claimed = world.claim(&[of(Priority::High)], secs(1), 10).await;
    assert_eq!(jobs_of(&claimed), [id]);
    let before = world.look(id).await;
    let (_, again) = world.raise(id, Priority::High).await;
    assert_eq!(again, [], "it keeps its place");
    assert_eq!(world.look(id).await, before);

    // The hint of its old line hands it out once, and then the new one is spent.
    let session = world.open().await;
    world.lease(id, session).await;
    let told = world.ask(id, session).await;
    assert_eq!(told, leasehold::store::Granted::NotQueued);
}

on_each_store!(a_scheduled_job_comes_due_in_the_line_of_its_new_priority);
async fn a_scheduled_job_comes_due_in_the_line_of_its_new_priority(world: World) {
    let id = world.scheduled(minutes(5)).await;
    let (job, segments) = world.raise(id, Priority::Low).await;
    assert_eq!((job.state, job.revision), (JobState::Scheduled, 2));
    assert_eq!(segments, []);
    world.advance(minutes(6)).await;
    let promoted = world.promote().await.segments;
    assert_eq!((&promoted[0].line, promoted.len()), (&of(Priority::Low), 1));
}

on_each_store!(a_late_success_is_still_taken_when_only_the_priority_changed);
async fn a_late_success_is_still_taken_when_only_the_priority_changed(world: World) {
    let (lease, session) = world.running().await;
    world.lose(session).await;
    world.raise(lease.job, Priority::High).await;
    let verdict = world.finish(lease, session, success()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
}
