//! Cancel: final at once from wherever the job is, told to whoever runs it, and refused once the job has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use leasehold::job::limits::{REASON_BYTES_MAX, RETENTION_DEFAULT};
use leasehold::job::{AttemptOutcome, Job, JobId, JobState, NodeId};
use leasehold::store::{Cancelled, Granted, Signal};
use uuid::Uuid;

use crate::steps::{
    LONG, TTL, assert_about, assert_recorded, assert_same_moment, failure, jobs_of, minutes,
    release_after, secs,
};
use crate::world::World;

/// Longer than any case takes.
const WINDOW: Duration = Duration::from_secs(60);

async fn signals_of(world: &World, node: NodeId, window: Duration, limit: usize) -> Vec<Signal> {
    let found = world.store.signals(node, window, limit).await;
    found.expect("signals answers")
}

async fn signals(world: &World) -> Vec<Signal> {
    signals_of(world, world.node, WINDOW, 100).await
}

#[track_caller]
fn done(answer: Cancelled) -> Job {
    match answer {
        Cancelled::Done(job, None) => job,
        other => panic!("expected that it waited and is cancelled, got {other:?}"),
    }
}

/// Cancels a job that nobody runs, and sees that it ended there and then.
async fn cancel_waiting(world: &World, id: JobId) {
    let before = world.look(id).await;
    let job = done(world.cancel(id).await);
    assert_eq!(
        job,
        world.basic(id).await,
        "a basic view of it as it is now"
    );
    let finish = job.finish_time.expect("it is final");
    assert_about(finish, world.now(), "its end");
    let purge = job.purge_time.expect("it is final");
    assert_same_moment(purge, finish.after(RETENTION_DEFAULT), "its purge");
    let expected = Job {
        state: JobState::Cancelled,
        revision: before.revision + 1,
        finish_time: job.finish_time,
        purge_time: job.purge_time,
        ..before
    };
    assert_eq!(world.look(id).await, expected, "nothing else changes");
    assert_eq!(signals(world).await, [], "there is nobody to tell");
}

on_each_store!(a_waiting_job_that_is_cancelled_never_runs);
async fn a_waiting_job_that_is_cancelled_never_runs(world: World) {
    let queued = world.queued().await;
    let scheduled = world.scheduled(minutes(5)).await;
    let session = world.open_on(world.node, "long", LONG * 2).await;
    let backing_off = world.queued().await;
    let lease = world.lease(backing_off, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    let put_off = world.queued().await;
    let lease = world.lease(put_off, session).await;
    let later = release_after(minutes(5));
    assert_recorded(&world.finish(lease, session, later).await);
    let (lost, dead) = world.running().await;
    world.lose(dead).await;

    let all = [queued, scheduled, backing_off, put_off, lost.job];
    for job in all {
        cancel_waiting(&world, job).await;
    }
    world.advance(minutes(60)).await;
    assert_eq!(world.promote().await.changed, 0);
    assert_eq!(world.waiting().await, BTreeSet::new());
    let session = world.open().await;
    for job in all {
        assert_eq!(world.ask(job, session).await, Granted::NotQueued);
    }
}

on_each_store!(a_running_job_is_cancelled_with_its_reason_and_its_node_is_told);
async fn a_running_job_is_cancelled_with_its_reason_and_its_node_is_told(world: World) {
    for reason in [
        "",
        "bought the wrong one",
        &"ü".repeat(REASON_BYTES_MAX / 2),
    ] {
        let (lease, session) = world.running().await;
        let before = world.look(lease.job).await;
        let answer = world.store.cancel(lease.job, reason.into()).await;
        let Cancelled::Done(job, Some(held)) = answer.expect("cancel answers") else {
            panic!("it ran");
        };
        assert_eq!(held, (lease, session.session));
        assert_eq!(job, world.basic(lease.job).await);
        let after = world.look(lease.job).await;
        let past = &after.attempts[..];
        assert_eq!(past.len(), 1);
        assert_eq!(past[0].attempt, lease.attempt);
        assert_eq!(past[0].worker, "worker-1");
        assert_eq!(past[0].outcome, AttemptOutcome::Cancelled);
        let told = past[0]
            .failure
            .as_ref()
            .map(|failure| failure.message.as_str());
        assert_eq!(told, Some(reason), "the history keeps it");
        let started = before.start_time.expect("it runs");
        assert_eq!(past[0].start_time, started);
        assert_eq!(Some(past[0].end_time), after.finish_time);
        let expected = Job {
            state: JobState::Cancelled,
            revision: before.revision + 1,
            finish_time: after.finish_time,
            purge_time: after.purge_time,
            attempts: past.to_vec(),
            ..before
        };
        assert_eq!(after, expected, "no failure, no lost lease");

        let told = signals(&world).await;
        assert_eq!((told[0].lease, told[0].session), (lease, session.session));
    }
}

on_each_store!(a_second_cancel_changes_nothing);
async fn a_second_cancel_changes_nothing(world: World) {
    let (lease, _) = world.running().await;
    let waiting = world.queued().await;
    for job in [lease.job, waiting] {
        world.cancel(job).await;
        let before = world.look(job).await;
        let told = signals(&world).await;
        world.advance(secs(20)).await;
        let again = world.store.cancel(job, "another reason".into()).await;
        let Cancelled::Already(job) = again.expect("cancel answers") else {
            panic!("it was cancelled before");
        };
        assert_eq!(job, world.basic(job.id).await);
        assert_eq!(world.look(job.id).await, before);
        assert_eq!(signals(&world).await, told);
    }
}

on_each_store!(a_job_that_ended_is_not_cancelled);
async fn a_job_that_ended_is_not_cancelled(world: World) {
    let succeeded = world.queued().await;
    world.succeed(succeeded).await;
    let failed = world.queued().await;
    world.fail(failed).await;
    for (job, state) in [(succeeded, JobState::Succeeded), (failed, JobState::Failed)] {
        let before = world.look(job).await;
        assert_eq!(world.cancel(job).await, Cancelled::WrongState(state));
        assert_eq!(world.look(job).await, before);
    }
    assert_eq!(world.cancel(world.fresh_id()).await, Cancelled::NotFound);
    assert_eq!(signals(&world).await, []);
}

on_each_store!(of_many_cancels_at_once_one_is_done);
async fn of_many_cancels_at_once_one_is_done(world: World) {
    let (lease, _) = world.running().await;
    let waiting = world.queued().await;
    for job in [lease.job, waiting] {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let world = world.clone();
            calls.spawn(async move { world.cancel(job).await });
        }
        let answers = calls.join_all().await;
        let done = answers.iter().filter(|a| matches!(a, Cancelled::Done(..)));
        assert_eq!(done.count(), 1, "{answers:?}");
        let already = answers
            .iter()
            .filter(|a| matches!(a, Cancelled::Already(_)));
        assert_eq!(already.count(), 7, "{answers:?}");
    }
    assert_eq!(world.look(lease.job).await.attempts.len(), 1);
    assert_eq!(signals(&world).await.len(), 1, "its worker is told once");
}

on_each_store!(a_cancel_meets_a_grant_and_one_of_them_is_first);
async fn a_cancel_meets_a_grant_and_one_of_them_is_first(world: World) {
    let session = world.open().await;
    let mut told = BTreeSet::new();
    for _ in 0..30 {
        let job = world.queued().await;
        let cancelling = world.clone();
        let cancel = tokio::spawn(async move { cancelling.cancel(job).await });
        let granted = world.ask(job, session).await;
        let Cancelled::Done(_, held) = cancel.await.expect("it ends") else {
            panic!("nothing else ends it");
        };
        let ran = matches!(granted, Granted::Lease(_));
        assert_eq!(held.is_some(), ran, "who runs it is known: {granted:?}");
        if ran {
            told.insert(job);
        }
        world.assert_state(job, JobState::Cancelled).await;
    }
    let found: BTreeSet<_> = signals(&world).await.iter().map(|s| s.lease.job).collect();
    assert_eq!(found, told);
}

on_each_store!(a_signal_is_for_the_node_of_its_session_alone);
async fn a_signal_is_for_the_node_of_its_session_alone(world: World) {
    let nodes = [NodeId(Uuid::new_v4()), NodeId(Uuid::new_v4())];
    let mut expected = Vec::new();
    for node in nodes {
        let session = world.open_on(node, "worker-1", TTL).await;
        let mut own = BTreeSet::new();
        for _ in 0..3 {
            let lease = world.lease(world.queued().await, session).await;
            world.cancel(lease.job).await;
            own.insert((lease, session.session));
        }
        expected.push(own);
    }
    for (node, expected) in nodes.into_iter().zip(expected) {
        for _ in 0..2 {
            let found = signals_of(&world, node, WINDOW, 100).await;
            let ids: BTreeSet<_> = found.iter().map(|signal| signal.id).collect();
            assert_eq!(ids.len(), 3, "each has a number of its own");
            let found: BTreeSet<_> = found.iter().map(|s| (s.lease, s.session)).collect();
            assert_eq!(found, expected, "reading takes nothing away");
        }
    }
    assert_eq!(signals(&world).await, [], "another node has no part in it");
}

on_each_store!(signals_are_read_by_a_window_and_a_bound_the_newest_first);
async fn signals_are_read_by_a_window_and_a_bound_the_newest_first(world: World) {
    let session = world.open_on(world.node, "long", LONG * 2).await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        let lease = world.lease(world.queued().await, session).await;
        world.cancel(lease.job).await;
        jobs.push(lease.job);
        world.advance(secs(10)).await;
    }
    jobs.reverse();
    for (window, limit, expected) in [
        (15, 100, &jobs[..1]),
        (35, 100, &jobs[..3]),
        (600, 100, &jobs[..]),
        (600, 2, &jobs[..2]),
        (5, 100, &[]),
    ] {
        let found = signals_of(&world, world.node, secs(window), limit).await;
        let found: Vec<_> = found.iter().map(|signal| signal.lease.job).collect();
        assert_eq!(found, expected, "the last {window} s, at most {limit}");
    }
    world.tidy().await;
    assert_eq!(
        signals_of(&world, world.node, secs(600), 100).await.len(),
        5
    );
    world.advance(minutes(60)).await;
    world.tidy().await;
    assert_eq!(
        signals_of(&world, world.node, LONG, 100).await,
        [],
        "old ones go"
    );
}

on_each_store!(a_cancelled_job_is_not_taken_back_when_its_session_ends);
async fn a_cancelled_job_is_not_taken_back_when_its_session_ends(world: World) {
    let (lease, session) = world.running().await;
    let other = world.lease(world.queued().await, session).await;
    world.cancel(lease.job).await;
    assert_eq!(jobs_of(&world.lose(session).await), [other.job]);
    let job = world.look(lease.job).await;
    assert_eq!((job.state, job.lost_leases), (JobState::Cancelled, 0));
    assert_eq!(job.attempts.len(), 1);
}
