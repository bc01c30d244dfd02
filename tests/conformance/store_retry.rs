//! The retry by hand: the only way out of FAILED and CANCELLED, with budgets anew and an attempt that goes on.

use std::time::Duration;

use leasehold::job::{Job, JobId, JobState, NewJob, Outcome, Priority, StaleReason, Verdict};
use leasehold::store::{Retried, Segment, Unit};

use crate::steps::{
    assert_about, assert_recorded, assert_stale, backoff, created, failure, jobs_of, leased,
    line_of, minutes, permanent_failure, release, release_after, secs, success,
};
use crate::world::World;

on_each_store!(a_copy_names_the_job_that_it_was_made_of);
async fn a_copy_names_the_job_that_it_was_made_of(world: World) {
    let of = world
        .accept(world.job_with(|d| d.unique_key = "k".into()))
        .await;
    world.cancel(of).await;
    let copy = || {
        let copied_from = Some(of);
        NewJob {
            copied_from,
            ..world.job()
        }
    };
    let with_key = NewJob {
        copied_from: Some(of),
        ..world.job_with(|d| d.unique_key = "k".into())
    };
    let mut batch = vec![copy(), world.job(), with_key];
    for unit in [Unit::Each, Unit::All] {
        let answer = world.enqueue(batch.clone(), unit).await;
        for (new, answer) in batch.iter().zip(&answer.jobs) {
            assert_eq!(created(answer).copied_from, new.copied_from);
            assert_eq!(world.look(new.id).await.copied_from, new.copied_from);
        }
        batch = vec![copy(), world.job()];
    }
}

/// Brings a job back, and sees that it is as good as new but for its past.
async fn bring_back(world: &World, id: JobId, delay: Duration) -> Vec<Segment> {
    let before = world.look(id).await;
    let Retried::Done(job, segments) = world.retry(id, delay).await else {
        panic!("{before:?} may be brought back");
    };
    assert_eq!(
        job,
        world.basic(id).await,
        "a basic view of it as it is now"
    );
    let state = match delay.is_zero() {
        true => JobState::Queued,
        false => JobState::Scheduled,
    };
    assert_about(job.run_time, world.now().after(delay), "it is due");
    let expected = Job {
        state,
        revision: before.revision + 1,
        failures: 0,
        lost_leases: 0,
        run_time: job.run_time,
        finish_time: None,
        purge_time: None,
        ..before
    };
    assert_eq!(world.look(id).await, expected, "its past stays");
    segments
}

/// Jobs that are FAILED or CANCELLED, each by another way.
async fn ended(world: &World) -> Vec<JobId> {
    let session = world.open().await;
    let failed = world.accept(world.job_with(|d| d.max_attempts = 2)).await;
    for _ in 0..2 {
        let lease = world.lease(failed, session).await;
        assert_recorded(&world.finish(lease, session, failure()).await);
        world.advance(secs(20)).await;
        world.promote().await;
    }
    let session = world.open().await;
    let never_ran = world.queued().await;
    world.cancel(never_ran).await;
    let ran = world.lease(world.queued().await, session).await.job;
    world.cancel(ran).await;
    let put_off = world.queued().await;
    let lease = world.lease(put_off, session).await;
    let later = release_after(minutes(5));
    assert_recorded(&world.finish(lease, session, later).await);
    world.cancel(put_off).await;
    let unlucky = world.queued().await;
    let dies = world.open().await;
    world.lease(unlucky, dies).await;
    world.lose(dies).await;
    world.fail(unlucky).await;
    vec![failed, never_ran, ran, put_off, unlucky]
}

on_each_store!(a_job_that_failed_or_was_cancelled_is_brought_back_at_once);
async fn a_job_that_failed_or_was_cancelled_is_brought_back_at_once(world: World) {
    for id in ended(&world).await {
        let before = world.look(id).await;
        let segments = bring_back(&world, id, Duration::ZERO).await;
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].jobs, [id]);
        assert_eq!(segments[0].line, line_of(&world.job()));
        let session = world.open().await;
        let again = world.ask(id, session).await;
        let again = leased(&again);
        assert_eq!(
            again.lease.attempt,
            before.attempt + 1,
            "the attempt goes on"
        );
        assert_eq!((again.failures, again.lost_leases), (0, 0));
        assert_recorded(&world.finish(again.lease, session, success()).await);
        world.assert_state(id, JobState::Succeeded).await;
    }
}

on_each_store!(a_job_that_is_brought_back_with_a_delay_waits_for_it);
async fn a_job_that_is_brought_back_with_a_delay_waits_for_it(world: World) {
    let all = ended(&world).await;
    for id in &all {
        assert_eq!(bring_back(&world, *id, minutes(10)).await, []);
    }
    world.advance(minutes(9)).await;
    assert_eq!(world.promote().await.changed, 0);
    world.advance(minutes(2)).await;
    let mut due = jobs_of(&world.promote().await.segments);
    due.sort();
    let mut all = all;
    all.sort();
    assert_eq!(due, all);
}

on_each_store!(a_job_comes_back_to_its_own_line);
async fn a_job_comes_back_to_its_own_line(world: World) {
    let new = world.job_with(|d| {
        d.queue = "other".into();
        d.priority = Some(Ok(Priority::High));
    });
    let line = line_of(&new);
    let id = world.accept(new).await;
    world.cancel(id).await;
    let segments = bring_back(&world, id, Duration::ZERO).await;
    assert_eq!((&segments[0].line, &segments[0].jobs), (&line, &vec![id]));
}

on_each_store!(a_job_in_any_other_state_is_not_brought_back);
async fn a_job_in_any_other_state_is_not_brought_back(world: World) {
    let queued = world.queued().await;
    let scheduled = world.scheduled(minutes(5)).await;
    let (lease, _) = world.running().await;
    let succeeded = world.queued().await;
    world.succeed(succeeded).await;
    for (id, state) in [
        (queued, JobState::Queued),
        (scheduled, JobState::Scheduled),
        (lease.job, JobState::Running),
        (succeeded, JobState::Succeeded),
    ] {
        let before = world.look(id).await;
        for delay in [Duration::ZERO, secs(5)] {
            assert_eq!(world.retry(id, delay).await, Retried::WrongState(state));
        }
        assert_eq!(world.look(id).await, before);
    }
    let nobody = world.fresh_id();
    assert_eq!(world.retry(nobody, secs(1)).await, Retried::NotFound);
}

on_each_store!(all_budgets_begin_anew);
async fn all_budgets_begin_anew(world: World) {
    let id = world
        .accept(world.job_with(|d| {
            d.max_attempts = 2;
            d.backoff = backoff(secs(10), minutes(60), 3.0);
        }))
        .await;
    let session = world.open_on(world.node, "long", minutes(600)).await;
    let run = async |outcome| {
        let lease = world.lease(id, session).await;
        assert_recorded(&world.finish(lease, session, outcome).await);
        world.look(id).await
    };
    for round in 0..2 {
        // Many releases in a row make the next one wait; a retry ends the row.
        let released = run(release()).await;
        assert_eq!(released.state, JobState::Queued, "round {round}");
        let failed = run(failure()).await;
        assert_eq!((failed.state, failed.failures), (JobState::Scheduled, 1));
        let wait = failed.run_time.since(world.now());
        assert!(
            wait <= secs(10) && wait > Duration::ZERO,
            "the first backoff: {wait:?}"
        );
        world.advance(secs(11)).await;
        world.promote().await;
        let failed = run(failure()).await;
        assert_eq!((failed.state, failed.failures), (JobState::Failed, 2));
        bring_back(&world, id, Duration::ZERO).await;
    }
    for _ in 0..2 {
        run(release()).await;
        world.advance(secs(2)).await;
        world.promote().await;
    }
    world.cancel(id).await;
    bring_back(&world, id, Duration::ZERO).await;
    assert_eq!(
        run(release()).await.state,
        JobState::Queued,
        "the first in a row"
    );
}

on_each_store!(nothing_late_reaches_a_job_that_was_brought_back);
async fn nothing_late_reaches_a_job_that_was_brought_back(world: World) {
    for delay in [Duration::ZERO, secs(30)] {
        let (lease, session) = world.running().await;
        world.cancel(lease.job).await;
        bring_back(&world, lease.job, delay).await;
        let before = world.look(lease.job).await;
        for late in [
            success(),
            failure(),
            permanent_failure(),
            release(),
            Outcome::TimedOut,
        ] {
            let verdict = world.finish(lease, session, late).await;
            assert_stale(&verdict);
            assert_eq!(
                verdict,
                Verdict::Stale(StaleReason::Cancelled, before.state)
            );
        }
        world.lose(session).await;
        assert_stale(&world.finish(lease, session, success()).await);
        assert_eq!(world.look(lease.job).await, before);
    }
}

on_each_store!(of_many_retries_at_once_one_is_done);
async fn of_many_retries_at_once_one_is_done(world: World) {
    for fails in [true, false] {
        let id = world.queued().await;
        match fails {
            true => world.fail(id).await,
            false => drop(world.cancel(id).await),
        }
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let world = world.clone();
            calls.spawn(async move { world.retry(id, Duration::ZERO).await });
        }
        let answers = calls.join_all().await;
        let done = answers.iter().filter(|a| matches!(a, Retried::Done(..)));
        assert_eq!(done.count(), 1, "{answers:?}");
        let late = Retried::WrongState(JobState::Queued);
        assert_eq!(answers.iter().filter(|a| **a == late).count(), 7);
    }
}

on_each_store!(a_retry_meets_a_cancel_and_each_undoes_the_other_whole);
async fn a_retry_meets_a_cancel_and_each_undoes_the_other_whole(world: World) {
    let id = world.queued().await;
    world.cancel(id).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..6 {
        let world = world.clone();
        calls.spawn(async move {
            for _ in 0..10 {
                // A store may say that it is too busy with this one.
                match n % 2 {
                    0 => drop(world.store.retry(id, secs(n), "".into()).await),
                    _ => drop(world.store.cancel(id, "".into()).await),
                }
            }
        });
    }
    calls.join_all().await;
    // The audit finds it in exactly one place of the backlog, or in none, and counted once.
    let job = world.look(id).await;
    assert_eq!(job.finish_time.is_some(), job.state == JobState::Cancelled);
}
