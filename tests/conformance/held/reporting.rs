//! Progress and checkpoints of an attempt, beside its end.

use leasehold::job::{
    JobState, Lease, LogLevel, NewLine, NewLines, Progress, StaleReason, Verdict,
};
use leasehold::store::{Attached, Cancelled, LogReport, Report};
use tokio::task::JoinHandle;

use super::{Gate, answer, begin, waiting};
use crate::steps::{leased, release, success};
use crate::world::World;

fn report(world: &World, lease: Lease, by: Attached, revision: u64) -> JoinHandle<Verdict> {
    let progress = Progress {
        checkpoint: Some(format!("number {revision}").into()),
        revision,
        ..Progress::default()
    };
    let report = Report {
        lease,
        session: by.session,
        progress,
    };
    begin(world, move |world| async move {
        let answers = world.store.report(vec![report]).await;
        answers.expect("report answers").remove(0)
    })
}

async fn an_end_waits_for_a_checkpoint_that_is_being_written(world: World) {
    let (lease, session) = world.running().await;
    let mut gate = Gate::shut(&world, "reporting", "progress", "INSERT", "true").await;
    let reporting = report(&world, lease, session, 1);
    gate.holds(1).await;
    let releasing = begin(&world, move |world| async move {
        world.finish(lease, session, release()).await
    });
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(
        answer(reporting).await,
        Verdict::Recorded(JobState::Running)
    );
    assert_eq!(answer(releasing).await, Verdict::Recorded(JobState::Queued));
    let next = world.ask(lease.job, session).await;
    let next = leased(&next);
    assert_eq!(next.checkpoint.as_deref(), Some(&b"number 1"[..]));
    assert_eq!(next.progress_revision, 1);
}
on_postgres!(an_end_waits_for_a_checkpoint_that_is_being_written);

async fn a_checkpoint_behind_the_end_of_its_attempt_is_stale_and_changes_nothing(world: World) {
    let (lease, session) = world.running().await;
    assert_eq!(
        answer(report(&world, lease, session, 1)).await,
        Verdict::Recorded(JobState::Running)
    );
    let mut gate = Gate::shut(&world, "finishing", "finished", "INSERT", "true").await;
    let finishing = begin(&world, move |world| async move {
        world.finish(lease, session, success()).await
    });
    gate.holds(1).await;
    let late = report(&world, lease, session, 2);
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(
        answer(finishing).await,
        Verdict::Recorded(JobState::Succeeded)
    );
    let stale = Verdict::Stale(StaleReason::Finished, JobState::Succeeded);
    assert_eq!(answer(late).await, stale);
    let progress = world.look(lease.job).await.progress;
    assert_eq!(progress.map(|p| p.revision), Some(1));

    let (lease, session) = world.running().await;
    let mut gate = Gate::shut(&world, "cancelling", "attempts", "INSERT", "true").await;
    let cancelling = begin(
        &world,
        move |world| async move { world.cancel(lease.job).await },
    );
    gate.holds(1).await;
    let late = report(&world, lease, session, 1);
    waiting(&world, 1).await;
    gate.open().await;
    assert!(matches!(answer(cancelling).await, Cancelled::Done(..)));
    let stale = Verdict::Stale(StaleReason::Cancelled, JobState::Cancelled);
    assert_eq!(answer(late).await, stale);
    assert_eq!(world.look(lease.job).await.progress, None);
}
on_postgres!(a_checkpoint_behind_the_end_of_its_attempt_is_stale_and_changes_nothing);

async fn the_last_words_of_an_attempt_whose_end_is_being_written_are_taken(world: World) {
    for is_cancelled in [true, false] {
        let (lease, session) = world.running().await;
        let mut gate = Gate::shut(&world, "ending", "attempts", "INSERT", "true").await;
        let ending = begin(&world, move |world| async move {
            match is_cancelled {
                true => drop(world.cancel(lease.job).await),
                false => drop(world.finish(lease, session, release()).await),
            }
        });
        gate.holds(1).await;
        let line = NewLine {
            elapsed: None,
            level: LogLevel::Info,
            message: "good bye".into(),
        };
        let report = LogReport {
            lease,
            session: session.session,
            lines: NewLines::check("log", 1, vec![line]).expect("within bounds"),
        };
        let late = begin(&world, move |world| async move {
            let answers = world.store.log(vec![report]).await;
            answers.expect("log answers").remove(0)
        });
        waiting(&world, 1).await;
        gate.open().await;
        answer(ending).await;
        assert!(matches!(answer(late).await, Verdict::Recorded(_)));
        let lines = world.store.lines(vec![(lease.job, 0)]).await;
        assert_eq!(lines.expect("lines answers")[0].len(), 1);
    }
}
on_postgres!(the_last_words_of_an_attempt_whose_end_is_being_written_are_taken);

async fn of_two_checkpoints_that_cross_the_newer_stays(world: World) {
    for (first, second) in [(1, 2), (2, 1)] {
        let (lease, session) = world.running().await;
        let mut gate = Gate::shut(&world, "reporting", "progress", "INSERT", "true").await;
        let one = report(&world, lease, session, first);
        gate.holds(1).await;
        let other = report(&world, lease, session, second);
        waiting(&world, 1).await;
        gate.open().await;
        for told in [one, other] {
            assert_eq!(answer(told).await, Verdict::Recorded(JobState::Running));
        }
        let progress = world.look(lease.job).await.progress;
        let progress = progress.expect("there is one");
        assert_eq!(progress.revision, 2);
        assert_eq!(progress.checkpoint.as_deref(), Some(&b"number 2"[..]));
    }
}
on_postgres!(of_two_checkpoints_that_cross_the_newer_stays);
