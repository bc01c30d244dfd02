//! Who may record an ending: the attempt's own session, once, and its copies get the same verdict (I2, I4).

use std::time::Duration;

use leasehold::job::limits::LOST_LEASES_MAX;
use leasehold::job::{
    AttemptOutcome, AttemptRecord, Job, JobState, Lease, Outcome, SessionId, StaleReason, Verdict,
};
use leasehold::store::{Attached, Cancelled, Granted, Retried};
use uuid::Uuid;

use crate::steps::{
    ANY_AGE, TTL, assert_recorded, assert_stale, ending, failure, fresh_epoch, jobs_of, line_of,
    minutes, permanent_failure, release, release_after, secs, success, text,
};
use crate::world::World;

fn every_outcome() -> [Outcome; 7] {
    [
        success(),
        failure(),
        permanent_failure(),
        Outcome::TimedOut,
        Outcome::Forgotten,
        release(),
        release_after(secs(30)),
    ]
}

fn stranger() -> Attached {
    Attached {
        session: SessionId::from_store(Uuid::new_v4()),
        attach: 1,
    }
}

/// Whatever this lease and session report, each is STALE and the job stays as it is.
async fn refuses_all(world: &World, lease: Lease, by: Attached, what: &str) {
    let before = world.look(lease.job).await;
    for outcome in every_outcome() {
        refuses(world, &before, lease, by, outcome, what).await;
    }
}

async fn refuses(
    world: &World,
    before: &Job,
    lease: Lease,
    by: Attached,
    outcome: Outcome,
    what: &str,
) {
    let answer = world
        .finish_all(vec![ending(lease, by, outcome.clone())])
        .await;
    match &answer.verdicts[0] {
        Verdict::Stale(_, state) => assert_eq!(*state, before.state, "{what}: {outcome:?}"),
        other => panic!("{what}: {outcome:?} is answered {other:?}"),
    }
    assert_eq!(answer.segments, [], "{what}: {outcome:?}");
    assert_eq!(world.look(lease.job).await, *before, "{what}: {outcome:?}");
}

async fn verdict(world: &World, lease: Lease, by: Attached, outcome: Outcome) -> StaleReason {
    match world.finish(lease, by, outcome).await {
        Verdict::Stale(reason, _) => reason,
        other => panic!("expected STALE, got {other:?}"),
    }
}

on_each_store!(a_stale_result_changes_nothing);
async fn a_stale_result_changes_nothing(world: World) {
    let (lease, session) = world.running().await;
    let other = world.open().await;
    refuses_all(&world, lease, other, "another session").await;
    refuses_all(&world, lease, stranger(), "a session that never was").await;
    for attempt in [0, 2, u32::MAX] {
        let wrong = Lease { attempt, ..lease };
        refuses_all(&world, wrong, session, "an attempt that is not").await;
    }
    assert_recorded(&world.finish(lease, session, success()).await);
    refuses_all(&world, lease, other, "another session, after the end").await;
}

on_each_store!(an_older_attempt_changes_nothing);
async fn an_older_attempt_changes_nothing(world: World) {
    let (first, old) = world.running().await;
    world.lose(old).await;
    let session = world.open().await;
    let second = world.lease(first.job, session).await;
    refuses_all(&world, first, old, "the job runs again").await;
    refuses_all(&world, first, session, "the new session, the old attempt").await;
    refuses_all(&world, second, old, "the old session, the new attempt").await;
    assert_eq!(
        verdict(&world, first, old, success()).await,
        StaleReason::Superseded
    );
    assert_recorded(&world.finish(second, session, success()).await);
    refuses_all(&world, first, old, "the job has its result").await;
}

on_each_store!(a_session_that_holds_an_older_and_a_newer_attempt_is_fenced_by_the_number);
async fn a_session_that_holds_an_older_and_a_newer_attempt_is_fenced_by_the_number(world: World) {
    let (first, session) = world.running().await;
    assert_recorded(&world.finish(first, session, release()).await);
    let second = world.lease(first.job, session).await;
    let before = world.look(first.job).await;
    for outcome in [success(), failure(), Outcome::TimedOut] {
        refuses(&world, &before, first, session, outcome, "released before").await;
    }
    assert_recorded(&world.finish(second, session, success()).await);
}

on_each_store!(a_copy_gets_the_same_verdict);
async fn a_copy_gets_the_same_verdict(world: World) {
    for outcome in every_outcome() {
        let (lease, session) = world.running().await;
        let first = world.finish(lease, session, outcome.clone()).await;
        assert_recorded(&first);
        let recorded = world.look(lease.job).await;
        for _ in 0..2 {
            let answer = world
                .finish_all(vec![ending(lease, session, outcome.clone())])
                .await;
            assert_eq!(answer.verdicts, [first.clone()], "{outcome:?}");
            assert_eq!(answer.segments, [], "a copy makes nothing QUEUED");
        }
        assert_eq!(world.look(lease.job).await, recorded, "{outcome:?}");
    }
}

on_each_store!(a_copy_is_known_after_later_attempts_and_the_end_of_its_session);
async fn a_copy_is_known_after_later_attempts_and_the_end_of_its_session(world: World) {
    for outcome in [failure(), Outcome::TimedOut, release()] {
        let (lease, session) = world.running().await;
        assert_recorded(&world.finish(lease, session, outcome.clone()).await);
        world.lose(session).await;
        world.advance(minutes(10)).await;
        world.promote().await;
        let copy = || world.finish(lease, session, outcome.clone());
        assert_eq!(copy().await, Verdict::Recorded(JobState::Queued));
        let later = world.open().await;
        let second = world.lease(lease.job, later).await;
        assert_eq!(copy().await, Verdict::Recorded(JobState::Running));
        assert_recorded(&world.finish(second, later, success()).await);
        assert_eq!(copy().await, Verdict::Recorded(JobState::Succeeded));
        assert_eq!(world.look(lease.job).await.output, Some(text("done")));
    }
    let (lease, session) = world.running().await;
    assert_recorded(&world.finish(lease, session, success()).await);
    world.lose(session).await;
    let copy = world.finish(lease, session, success()).await;
    assert_eq!(copy, Verdict::Recorded(JobState::Succeeded));
}

on_each_store!(a_second_ending_of_another_kind_is_stale);
async fn a_second_ending_of_another_kind_is_stale(world: World) {
    for (first, seconds, why) in [
        (
            success(),
            vec![failure(), Outcome::TimedOut, release()],
            StaleReason::Finished,
        ),
        (
            failure(),
            vec![success(), Outcome::TimedOut, release()],
            StaleReason::Finished,
        ),
        (
            release(),
            vec![success(), failure(), Outcome::TimedOut],
            StaleReason::Finished,
        ),
        (
            Outcome::TimedOut,
            vec![success(), failure(), release()],
            StaleReason::TimedOut,
        ),
    ] {
        let (lease, session) = world.running().await;
        assert_recorded(&world.finish(lease, session, first.clone()).await);
        let before = world.look(lease.job).await;
        for second in seconds {
            let reason = verdict(&world, lease, session, second.clone()).await;
            assert_eq!(reason, why, "{second:?} after {first:?}");
        }
        assert_eq!(world.look(lease.job).await, before, "after {first:?}");
    }
}

on_each_store!(a_recorded_output_never_changes);
async fn a_recorded_output_never_changes(world: World) {
    let (lease, session) = world.running().await;
    assert_recorded(&world.finish(lease, session, success()).await);
    let before = world.look(lease.job).await;
    for other in [Some(text("something else")), None] {
        let copy = world.finish(lease, session, Outcome::Success(other)).await;
        assert_eq!(copy, Verdict::Recorded(JobState::Succeeded));
    }
    assert_eq!(world.look(lease.job).await, before);
}

on_each_store!(a_late_result_of_a_cancelled_job_is_stale);
async fn a_late_result_of_a_cancelled_job_is_stale(world: World) {
    let (lease, session) = world.running().await;
    match world.cancel(lease.job).await {
        Cancelled::Done(job, held) => {
            assert_eq!(job.state, JobState::Cancelled);
            assert_eq!(held, Some((lease, session.session)));
        }
        other => panic!("{other:?}"),
    }
    refuses_all(&world, lease, session, "cancelled").await;
    let reason = verdict(&world, lease, session, success()).await;
    assert_eq!(reason, StaleReason::Cancelled);

    world.retry(lease.job, Duration::ZERO).await;
    refuses_all(&world, lease, session, "cancelled and retried").await;
    let reason = verdict(&world, lease, session, success()).await;
    assert_eq!(reason, StaleReason::Cancelled, "that attempt was cancelled");
    let second = world.lease(lease.job, session).await;
    refuses_all(&world, lease, session, "the same session has it again").await;
    assert_recorded(&world.finish(second, session, success()).await);
    let ended = &world.look(lease.job).await.attempts[0];
    assert_eq!(ended.outcome, AttemptOutcome::Cancelled);
}

on_each_store!(a_retry_by_hand_cannot_be_undone_by_a_late_result);
async fn a_retry_by_hand_cannot_be_undone_by_a_late_result(world: World) {
    let (lease, session) = world.running().await;
    let hopeless = || world.finish(lease, session, permanent_failure());
    assert_eq!(hopeless().await, Verdict::Recorded(JobState::Failed));
    for delay in [Duration::ZERO, minutes(1)] {
        let Retried::Done(job, _) = world.retry(lease.job, delay).await else {
            panic!("a FAILED job is brought back");
        };
        for outcome in [success(), Outcome::TimedOut, release()] {
            let late = world.finish(lease, session, outcome).await;
            assert_eq!(late, Verdict::Stale(StaleReason::Finished, job.state));
        }
        let copy = hopeless().await;
        assert_eq!(copy, Verdict::Recorded(job.state), "it was recorded");
        let now = world.look(lease.job).await;
        assert_eq!((now.state, now.revision), (job.state, job.revision));
        assert_eq!(now.failures, 0);
        world.cancel(lease.job).await;
    }
}

on_each_store!(a_late_success_of_a_lost_lease_is_taken);
async fn a_late_success_of_a_lost_lease_is_taken(world: World) {
    let (lease, session) = world.running().await;
    assert_eq!(jobs_of(&world.lose(session).await), [lease.job]);
    let answer = world
        .finish_all(vec![ending(lease, session, success())])
        .await;
    assert_eq!(answer.verdicts, [Verdict::Recorded(JobState::Succeeded)]);
    let job = world.look(lease.job).await;
    assert_eq!(job.output, Some(text("done")));
    assert_eq!((job.attempt, job.lost_leases, job.revision), (1, 1, 4));
    assert_eq!(job.attempts[0].outcome, AttemptOutcome::LeaseLost);

    let copy = world.finish(lease, session, success()).await;
    assert_eq!(copy, Verdict::Recorded(JobState::Succeeded));
    let asked = world.ask(lease.job, world.open().await).await;
    assert_eq!(asked, Granted::NotQueued, "its hint is spent");
    world.advance(secs(60)).await;
    let line = line_of(&world.job());
    let waiting = world.claim(&[line], secs(1), 10).await;
    assert_eq!(waiting, [], "it waits nowhere");
}

on_each_store!(a_late_ending_that_is_no_success_does_not_touch_a_job_that_waits_again);
async fn a_late_ending_that_is_no_success_does_not_touch_a_job_that_waits_again(world: World) {
    let (lease, session) = world.running().await;
    world.lose(session).await;
    let before = world.look(lease.job).await;
    for outcome in [failure(), permanent_failure(), Outcome::TimedOut, release()] {
        refuses(&world, &before, lease, session, outcome, "lost").await;
    }
    let reason = verdict(&world, lease, session, failure()).await;
    assert_eq!(reason, StaleReason::Superseded);
    assert_recorded(&world.finish(lease, session, success()).await);
}

on_each_store!(a_lost_lease_is_salvaged_by_its_own_session_only);
async fn a_lost_lease_is_salvaged_by_its_own_session_only(world: World) {
    let (lease, session) = world.running().await;
    world.lose(session).await;
    refuses_all(&world, lease, world.open().await, "another session").await;
    for attempt in [0, 2] {
        let wrong = Lease { attempt, ..lease };
        refuses_all(&world, wrong, session, "another attempt").await;
    }
    assert_recorded(&world.finish(lease, session, success()).await);
}

on_each_store!(nothing_is_salvaged_once_somebody_else_had_the_job);
async fn nothing_is_salvaged_once_somebody_else_had_the_job(world: World) {
    let (lease, session) = world.running().await;
    world.lose(session).await;
    let other = world.open().await;
    let second = world.lease(lease.job, other).await;
    refuses_all(&world, lease, session, "it runs again").await;
    world.lose(other).await;
    refuses_all(&world, lease, session, "it was lost again").await;
    assert_recorded(&world.finish(second, other, success()).await);

    let (lease, session) = world.running().await;
    world.lose(session).await;
    let other = world.open().await;
    let second = world.lease(lease.job, other).await;
    assert_recorded(&world.finish(second, other, release()).await);
    refuses_all(&world, lease, session, "the other one gave it back").await;
    let released = world.look(lease.job).await;
    refuses(&world, &released, second, other, success(), "given back").await;
}

on_each_store!(nothing_is_salvaged_after_a_cancel_even_if_it_was_taken_back);
async fn nothing_is_salvaged_after_a_cancel_even_if_it_was_taken_back(world: World) {
    for delay in [Duration::ZERO, secs(40)] {
        let (lease, session) = world.running().await;
        world.lose(session).await;
        assert!(
            matches!(world.cancel(lease.job).await, Cancelled::Done(_, None)),
            "nobody had it"
        );
        refuses_all(&world, lease, session, "cancelled").await;
        let reason = verdict(&world, lease, session, success()).await;
        assert_eq!(reason, StaleReason::Cancelled);
        world.retry(lease.job, delay).await;
        refuses_all(&world, lease, session, "retried").await;
        world.advance(secs(41)).await;
        world.promote().await;
        refuses_all(&world, lease, session, "retried and due").await;
        let reason = verdict(&world, lease, session, success()).await;
        assert_eq!(reason, StaleReason::Superseded);
    }
}

on_each_store!(a_job_that_lost_too_many_leases_is_not_salvaged);
async fn a_job_that_lost_too_many_leases_is_not_salvaged(world: World) {
    let id = world.queued().await;
    for _ in 0..LOST_LEASES_MAX {
        let session = world.open().await;
        world.lease(id, session).await;
        world.lose(session).await;
    }
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    world.lose(session).await;
    world.assert_state(id, JobState::Failed).await;
    refuses_all(&world, lease, session, "FAILED").await;
    world.retry(id, Duration::ZERO).await;
    refuses_all(&world, lease, session, "retried").await;
}

on_each_store!(a_session_may_report_until_its_jobs_are_taken_back);
async fn a_session_may_report_until_its_jobs_are_taken_back(world: World) {
    world.outlive_grace(&[]).await;
    let (late, slow) = world.running().await;
    world.live_through(TTL + secs(5), &[]).await;
    let verdict = world.finish(late, slow, success()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded), "not swept");

    let (lease, closed) = world.running().await;
    let closes = world.store.close_sessions(vec![closed]).await;
    closes.expect("close answers");
    assert_recorded(&world.finish(lease, closed, failure()).await);
    assert_eq!(world.expire().await.jobs, 0, "nothing is left to take back");
    assert_eq!(world.look(lease.job).await.lost_leases, 0);
}

on_each_store!(nothing_can_be_said_of_jobs_that_are_not_there);
async fn nothing_can_be_said_of_jobs_that_are_not_there(world: World) {
    let nobody = Lease {
        job: world.fresh_id(),
        attempt: 1,
    };
    let session = world.open().await;
    for outcome in every_outcome() {
        let verdict = world.finish(nobody, session, outcome).await;
        assert_eq!(verdict, Verdict::Unknown);
    }

    let (gone, session) = world.running().await;
    assert_recorded(&world.finish(gone, session, success()).await);
    world.advance(minutes(8 * 24 * 60)).await;
    assert_eq!(world.retain().await, 1);
    let verdict = world.finish(gone, session, success()).await;
    assert_eq!(verdict, Verdict::Unknown, "its row is gone");
}

on_each_store!(one_result_twice_in_a_batch_is_recorded_once);
async fn one_result_twice_in_a_batch_is_recorded_once(world: World) {
    for outcome in every_outcome() {
        let (lease, session) = world.running().await;
        let one = ending(lease, session, outcome.clone());
        let answer = world
            .finish_all(vec![one.clone(), one.clone(), one.clone()])
            .await;
        assert_recorded(&answer.verdicts[0]);
        let same = vec![answer.verdicts[0].clone(); 3];
        assert_eq!(answer.verdicts, same, "{outcome:?}");
        let job = world.look(lease.job).await;
        assert_eq!(job.revision, 3, "{outcome:?}");
        let back = usize::from(job.state == JobState::Queued);
        assert_eq!(jobs_of(&answer.segments).len(), back, "{outcome:?}");
    }
}

on_each_store!(of_two_endings_in_a_batch_the_first_counts);
async fn of_two_endings_in_a_batch_the_first_counts(world: World) {
    let (lease, session) = world.running().await;
    let both = [failure(), success()].map(|o| ending(lease, session, o));
    let answer = world.finish_all(both.to_vec()).await;
    assert_recorded(&answer.verdicts[0]);
    assert_stale(&answer.verdicts[1]);
    let job = world.look(lease.job).await;
    assert_eq!((job.state, job.output), (JobState::Scheduled, None));

    let (lease, session) = world.running().await;
    world.lose(session).await;
    let both = [failure(), success()].map(|o| ending(lease, session, o));
    let answer = world.finish_all(both.to_vec()).await;
    assert_stale(&answer.verdicts[0]);
    assert_eq!(
        answer.verdicts[1],
        Verdict::Recorded(JobState::Succeeded),
        "a late failure does not stand in the way of a late success"
    );
}

on_each_store!(a_batch_is_answered_one_by_one);
async fn a_batch_is_answered_one_by_one(world: World) {
    let (good, session) = world.running().await;
    let (lost, dead) = world.running().await;
    world.lose(dead).await;
    let (cancelled, its) = world.running().await;
    world.cancel(cancelled.job).await;
    let nobody = Lease {
        job: world.fresh_id(),
        attempt: 1,
    };
    let answer = world
        .finish_all(vec![
            ending(nobody, session, success()),
            ending(good, dead, success()),
            ending(good, session, success()),
            ending(cancelled, its, success()),
            ending(lost, session, success()),
            ending(lost, dead, success()),
            ending(good, session, success()),
        ])
        .await;
    let recorded = Verdict::Recorded(JobState::Succeeded);
    assert_eq!(answer.verdicts[0], Verdict::Unknown);
    assert_stale(&answer.verdicts[1]);
    assert_eq!(answer.verdicts[2], recorded);
    let reason = Verdict::Stale(StaleReason::Cancelled, JobState::Cancelled);
    assert_eq!(answer.verdicts[3], reason);
    assert_stale(&answer.verdicts[4]);
    assert_eq!(answer.verdicts[5..], [recorded.clone(), recorded]);
    assert_eq!(world.finish_all(vec![]).await.verdicts, []);
}

on_each_store!(of_many_results_at_once_one_is_recorded);
async fn of_many_results_at_once_one_is_recorded(world: World) {
    for _ in 0..10 {
        let (lease, session) = world.running().await;
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..14 {
            let (world, outcome) = (world.clone(), every_outcome()[n % 7].clone());
            calls.spawn(async move {
                let verdict = world.finish(lease, session, outcome.clone()).await;
                (outcome, verdict)
            });
        }
        let answers = calls.join_all().await;
        let job = world.look(lease.job).await;
        // What was forgotten may still succeed.
        let forgotten = job.attempts.iter().any(is(AttemptOutcome::Forgotten));
        let moves = match (forgotten, job.state) {
            (true, JobState::Succeeded) => 2,
            _ => 1,
        };
        assert_eq!(job.revision, 2 + moves, "{answers:?}");
        for (outcome, verdict) in answers {
            let is_same = match &outcome {
                Outcome::Success(_) => job.state == JobState::Succeeded,
                Outcome::Failure(_) => job.attempts.iter().any(is(AttemptOutcome::Failed)),
                Outcome::TimedOut => job.attempts.iter().any(is(AttemptOutcome::TimedOut)),
                Outcome::Forgotten => job.attempts.iter().any(is(AttemptOutcome::Forgotten)),
                Outcome::Release { .. } => job.attempts.iter().any(is(AttemptOutcome::Released)),
            };
            let is_recorded = matches!(verdict, Verdict::Recorded(_));
            assert_eq!(is_recorded, is_same, "{outcome:?}: {verdict:?}, {job:?}");
        }
    }
}

fn is(outcome: AttemptOutcome) -> impl Fn(&AttemptRecord) -> bool {
    move |record| record.outcome == outcome
}

on_each_store!(results_cancels_and_lost_leases_at_once_leave_one_truth);
async fn results_cancels_and_lost_leases_at_once_leave_one_truth(world: World) {
    let line = line_of(&world.job());
    for _ in 0..8 {
        let mut leases = Vec::new();
        for _ in 0..6 {
            leases.push(world.running().await);
        }
        let mut calls = tokio::task::JoinSet::new();
        for (lease, session) in leases.clone() {
            let one = world.clone();
            calls.spawn(async move {
                let verdict = one.finish(lease, session, success()).await;
                let state = one.state(lease.job).await;
                match verdict {
                    Verdict::Recorded(_) => assert_eq!(state, JobState::Succeeded),
                    other => assert_stale(&other),
                }
            });
            let one = world.clone();
            calls.spawn(async move {
                let done = matches!(one.cancel(lease.job).await, Cancelled::Done(..));
                let state = one.state(lease.job).await;
                assert_eq!(done, state == JobState::Cancelled, "{state:?}");
            });
            let one = world.clone();
            calls.spawn(async move { drop(one.lose(session).await) });
        }
        calls.join_all().await;
        for (lease, _) in leases {
            let state = world.state(lease.job).await;
            assert!(matches!(state, JobState::Succeeded | JobState::Cancelled));
        }
    }
    let waiting = world.unoffered(fresh_epoch(), ANY_AGE, secs(1), 100).await;
    assert_eq!(waiting, []);
    assert_eq!(world.claim(&[line], secs(1), 100).await, []);
}
