//! Everything that may end an attempt, each held in turn, beside what comes late.

use std::time::Duration;

use leasehold::job::{JobState, Lease, Outcome, StaleReason, Verdict};
use leasehold::store::{Ask, Attached, Cancelled, Granted, Retried};
use tokio::task::JoinHandle;

use super::{Gate, answer, begin, waiting};
use crate::steps::{failure, leased, release, secs, success};
use crate::world::World;

const NOW: Duration = Duration::ZERO;

fn finish(world: &World, lease: Lease, by: Attached, outcome: Outcome) -> JoinHandle<Verdict> {
    begin(world, move |world| async move {
        world.finish(lease, by, outcome).await
    })
}

fn cancel(world: &World, lease: Lease) -> JoinHandle<Cancelled> {
    begin(
        world,
        move |world| async move { world.cancel(lease.job).await },
    )
}

/// Every ending that a worker may report.
fn endings() -> [Outcome; 5] {
    [
        success(),
        failure(),
        release(),
        Outcome::TimedOut,
        Outcome::Forgotten,
    ]
}

async fn a_result_behind_a_cancel_is_stale_and_stays_so_when_the_job_is_brought_back(world: World) {
    for outcome in endings() {
        let (lease, session) = world.running().await;
        let mut gate = Gate::shut(&world, "cancelling", "attempts", "INSERT", "true").await;
        let cancelling = cancel(&world, lease);
        gate.holds(1).await;
        let late = finish(&world, lease, session, outcome.clone());
        waiting(&world, 1).await;
        gate.open().await;
        assert!(
            matches!(answer(cancelling).await, Cancelled::Done(_, Some(had)) if had.0 == lease)
        );
        let stale = |state| Verdict::Stale(StaleReason::Cancelled, state);
        assert_eq!(answer(late).await, stale(JobState::Cancelled));

        // Brought back by hand: not while that is written, nor after it, nor beside the next attempt.
        let mut gate = Gate::shut(&world, "retrying", "backlog", "INSERT", "true").await;
        let job = lease.job;
        let retrying = begin(
            &world,
            move |world| async move { world.retry(job, NOW).await },
        );
        gate.holds(1).await;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, stale(JobState::Cancelled));
        gate.open().await;
        assert!(matches!(answer(retrying).await, Retried::Done(..)));
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, stale(JobState::Queued));
        let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
        // The same worker may get it again: its session alone is no fence.
        let granting = begin(&world, move |world| async move {
            world.grant(vec![Ask { job, to: session }]).await.remove(0)
        });
        gate.holds(1).await;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, stale(JobState::Queued));
        gate.open().await;
        let again = leased(&answer(granting).await).lease;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, stale(JobState::Running));
        let told = world.finish(again, session, success()).await;
        assert_eq!(told, Verdict::Recorded(JobState::Succeeded));
    }
}
on_postgres!(a_result_behind_a_cancel_is_stale_and_stays_so_when_the_job_is_brought_back);

async fn a_cancel_behind_a_result_says_what_the_result_made_of_the_job(world: World) {
    for outcome in endings() {
        let (lease, session) = world.running().await;
        let table = match outcome {
            Outcome::Success(_) => "finished",
            _ => "attempts",
        };
        let mut gate = Gate::shut(&world, "finishing", table, "INSERT", "true").await;
        let finishing = finish(&world, lease, session, outcome.clone());
        gate.holds(1).await;
        let cancelling = cancel(&world, lease);
        waiting(&world, 1).await;
        gate.open().await;
        assert!(matches!(answer(finishing).await, Verdict::Recorded(_)));
        let cancelled = answer(cancelling).await;
        match outcome {
            Outcome::Success(_) => {
                assert_eq!(cancelled, Cancelled::WrongState(JobState::Succeeded));
            }
            // It goes on, and is not running any more: nobody is to be told.
            _ => assert!(
                matches!(cancelled, Cancelled::Done(_, None)),
                "{cancelled:?}"
            ),
        }
        let told = world.finish(lease, session, outcome.clone()).await;
        assert!(matches!(told, Verdict::Recorded(_)), "a copy: {told:?}");
    }
}
on_postgres!(a_cancel_behind_a_result_says_what_the_result_made_of_the_job);

/// The reason that whoever comes second is told, of two endings of one attempt.
fn reason(first: &Outcome) -> StaleReason {
    match first {
        Outcome::TimedOut => StaleReason::TimedOut,
        // A lost lease: somebody else may have it any moment.
        Outcome::Forgotten => StaleReason::Superseded,
        _ => StaleReason::Finished,
    }
}

async fn of_two_endings_of_an_attempt_the_first_is_recorded_and_a_copy_is_told_so(world: World) {
    for first in endings() {
        for second in endings() {
            let (lease, session) = world.running().await;
            let table = match first {
                Outcome::Success(_) => "finished",
                _ => "attempts",
            };
            let mut gate = Gate::shut(&world, "finishing", table, "INSERT", "true").await;
            let one = finish(&world, lease, session, first.clone());
            gate.holds(1).await;
            let other = finish(&world, lease, session, second.clone());
            waiting(&world, 1).await;
            gate.open().await;
            let Verdict::Recorded(state) = answer(one).await else {
                panic!("{first:?} was first");
            };
            let expected = match (&first, &second) {
                // Saved: the lease was lost, and nobody has had the job since.
                (Outcome::Forgotten, Outcome::Success(_)) => Verdict::Recorded(JobState::Succeeded),
                _ if first == second => Verdict::Recorded(state),
                _ => Verdict::Stale(reason(&first), state),
            };
            assert_eq!(answer(other).await, expected, "{second:?} behind {first:?}");
        }
    }
}
on_postgres!(of_two_endings_of_an_attempt_the_first_is_recorded_and_a_copy_is_told_so);

async fn a_copy_of_a_release_is_recorded_whatever_the_next_attempt_is_at(world: World) {
    for outcome in [release(), failure()] {
        let (lease, session) = world.running().await;
        assert!(matches!(
            world.finish(lease, session, outcome.clone()).await,
            Verdict::Recorded(_)
        ));
        world.advance(secs(60)).await;
        let session = match world.renew(session).await {
            true => session,
            false => world.open().await,
        };
        world.promote().await;
        let (job, by) = (lease.job, session);
        let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
        let granting = begin(&world, move |world| async move {
            world.grant(vec![Ask { job, to: by }]).await.remove(0)
        });
        gate.holds(1).await;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, Verdict::Recorded(JobState::Queued));
        gate.open().await;
        let next = leased(&answer(granting).await).lease;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, Verdict::Recorded(JobState::Running));

        let mut gate = Gate::shut(&world, "finishing", "finished", "INSERT", "true").await;
        let finishing = finish(&world, next, session, success());
        gate.holds(1).await;
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, Verdict::Recorded(JobState::Running));
        gate.open().await;
        assert_eq!(
            answer(finishing).await,
            Verdict::Recorded(JobState::Succeeded)
        );
        let told = world.finish(lease, session, outcome.clone()).await;
        assert_eq!(told, Verdict::Recorded(JobState::Succeeded));
    }
}
on_postgres!(a_copy_of_a_release_is_recorded_whatever_the_next_attempt_is_at);

async fn a_cancel_and_a_coming_due_of_one_job_end_in_its_cancel(world: World) {
    // The coming due first.
    let job = world.scheduled(secs(1)).await;
    world.advance(secs(2)).await;
    let mut gate = Gate::shut(&world, "promoting", "backlog", "INSERT", "true").await;
    let promoting = begin(&world, |world| async move { world.promote().await });
    gate.holds(1).await;
    let lease = Lease { job, attempt: 0 };
    let cancelling = cancel(&world, lease);
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(answer(promoting).await.changed, 1);
    assert!(matches!(answer(cancelling).await, Cancelled::Done(_, None)));
    let session = world.open().await;
    assert_eq!(world.ask(job, session).await, Granted::NotQueued);

    // The cancel first.
    let job = world.scheduled(secs(1)).await;
    world.advance(secs(2)).await;
    let mut gate = Gate::shut(&world, "cancelling", "finished", "INSERT", "true").await;
    let cancelling = cancel(&world, Lease { job, attempt: 0 });
    gate.holds(1).await;
    assert_eq!(world.promote().await.changed, 0);
    gate.open().await;
    assert!(matches!(answer(cancelling).await, Cancelled::Done(_, None)));
    assert_eq!(world.promote().await.changed, 0);
    world.assert_state(job, JobState::Cancelled).await;
}
on_postgres!(a_cancel_and_a_coming_due_of_one_job_end_in_its_cancel);

async fn a_cancel_and_a_grant_of_one_job_end_in_its_cancel_and_its_worker_is_told(world: World) {
    // The grant first: the cancel waits for it, and names the lease.
    let (job, session) = (world.queued().await, world.open().await);
    let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
    let granting = begin(&world, move |world| async move {
        world.grant(vec![Ask { job, to: session }]).await.remove(0)
    });
    gate.holds(1).await;
    let cancelling = cancel(&world, Lease { job, attempt: 0 });
    waiting(&world, 1).await;
    gate.open().await;
    let lease = leased(&answer(granting).await).lease;
    let cancelled = answer(cancelling).await;
    assert!(
        matches!(&cancelled, Cancelled::Done(job, Some(had))
            if *had == (lease, session.session) && job.state == JobState::Cancelled),
        "{cancelled:?}"
    );
    let told = world.store.signals(world.node, secs(60), 10).await;
    let told = told.expect("signals answers");
    assert_eq!(told.iter().map(|s| s.lease).collect::<Vec<_>>(), [lease]);

    // The cancel first.
    let job = world.queued().await;
    let mut gate = Gate::shut(&world, "cancelling", "finished", "INSERT", "true").await;
    let cancelling = cancel(&world, Lease { job, attempt: 0 });
    gate.holds(1).await;
    let ask = || vec![Ask { job, to: session }];
    assert_eq!(world.grant(ask()).await, [Granted::Locked]);
    gate.open().await;
    assert!(matches!(answer(cancelling).await, Cancelled::Done(_, None)));
    assert_eq!(world.grant(ask()).await, [Granted::NotQueued]);
}
on_postgres!(a_cancel_and_a_grant_of_one_job_end_in_its_cancel_and_its_worker_is_told);
