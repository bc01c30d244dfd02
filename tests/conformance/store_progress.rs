//! What running attempts have come to: fenced, kept for the next attempt, and gone with the job.

use leasehold::job::{JobState, Lease, Progress, StaleReason, Verdict, View};
use leasehold::store::{Attached, Found, Report};

use crate::steps::{LONG, failure, leased, minutes, secs, success};
use crate::world::World;

fn progress(revision: u64, percent: u32, checkpoint: Option<&str>) -> Progress {
    Progress {
        percent: Some(percent),
        note: Some(format!("step {revision}")),
        checkpoint: checkpoint.map(|text| text.as_bytes().to_vec().into()),
        revision,
    }
}

async fn report(world: &World, lease: Lease, by: Attached, progress: Progress) -> Verdict {
    let session = by.session;
    let report = Report {
        lease,
        session,
        progress,
    };
    let answer = world.store.report(vec![report]).await;
    answer.expect("report answers").remove(0)
}

const TAKEN: Verdict = Verdict::Recorded(JobState::Running);

on_each_store!(the_newest_report_is_seen_and_what_it_leaves_out_stays);
async fn the_newest_report_is_seen_and_what_it_leaves_out_stays(world: World) {
    let (lease, session) = world.running().await;
    assert_eq!(world.look(lease.job).await.progress, None);
    let first = progress(3, 10, Some("c"));
    assert_eq!(report(&world, lease, session, first.clone()).await, TAKEN);
    assert_eq!(world.look(lease.job).await.progress, Some(first.clone()));
    let second = Progress {
        percent: Some(20),
        note: None,
        checkpoint: None,
        revision: 5,
    };
    report(&world, lease, session, second).await;
    let expected = Progress {
        percent: Some(20),
        revision: 5,
        ..first
    };
    for late in [4, 5] {
        let late = progress(late, 1, Some("late"));
        assert_eq!(report(&world, lease, session, late).await, TAKEN);
        assert_eq!(world.look(lease.job).await.progress, Some(expected.clone()));
    }
    let basic = world.store.get(vec![lease.job], View::Basic).await;
    let basic = basic.expect("get answers").remove(0).expect("it is there");
    assert_eq!(basic.progress, None);
    assert_eq!(basic.revision, 2, "progress is no change of state");
}

on_each_store!(the_next_attempt_is_given_the_checkpoint);
async fn the_next_attempt_is_given_the_checkpoint(world: World) {
    let id = world.accept(world.job()).await;
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    report(&world, lease, session, progress(7, 50, Some("here"))).await;
    let again = world.store.leased(vec![(lease, session.session)]).await;
    let Found::Job(again) = again.expect("leased answers").remove(0) else {
        panic!("it is held");
    };
    assert_eq!(again.progress_revision, 7);
    assert_eq!(again.checkpoint.as_deref(), Some(&b"here"[..]));
    world.finish(lease, session, failure()).await;
    world.advance(minutes(1)).await;
    world.promote().await;
    let session = world.open().await;
    let granted = world.ask(id, session).await;
    let job = leased(&granted);
    assert_eq!((job.lease.attempt, job.progress_revision), (2, 7));
    assert_eq!(job.checkpoint.as_deref(), Some(&b"here"[..]));
    // The new attempt goes on from there.
    let next = progress(8, 60, None);
    assert_eq!(report(&world, job.lease, session, next).await, TAKEN);
    let seen = world.look(id).await.progress.expect("it has some");
    assert_eq!((seen.percent, seen.revision), (Some(60), 8));
    assert_eq!(seen.checkpoint.as_deref(), Some(&b"here"[..]));
}

on_each_store!(only_the_holder_of_the_lease_reports);
async fn only_the_holder_of_the_lease_reports(world: World) {
    let (lease, session) = world.running().await;
    let stranger = world.open().await;
    let later = Lease {
        attempt: lease.attempt + 1,
        ..lease
    };
    for (lease, by) in [(lease, stranger), (later, session)] {
        let verdict = report(&world, lease, by, progress(1, 1, None)).await;
        let stale = Verdict::Stale(StaleReason::Superseded, JobState::Running);
        assert_eq!(verdict, stale);
    }
    let unknown = Lease {
        job: world.job().id,
        attempt: 1,
    };
    let verdict = report(&world, unknown, session, progress(1, 1, None)).await;
    assert_eq!(verdict, Verdict::Unknown);
    world.finish(lease, session, success()).await;
    let verdict = report(&world, lease, session, progress(1, 1, Some("late"))).await;
    let stale = Verdict::Stale(StaleReason::Finished, JobState::Succeeded);
    assert_eq!(verdict, stale);
    assert_eq!(world.look(lease.job).await.progress, None);
}

on_each_store!(reports_of_one_batch_are_answered_one_by_one);
async fn reports_of_one_batch_are_answered_one_by_one(world: World) {
    let (one, session) = world.running().await;
    let two = world.lease(world.queued().await, session).await;
    let gone = world.lease(world.queued().await, session).await;
    world.finish(gone, session, success()).await;
    let of = |lease, progress| Report {
        lease,
        session: session.session,
        progress,
    };
    let reports = vec![
        of(one, progress(2, 2, None)),
        of(gone, progress(1, 1, None)),
        of(two, progress(1, 1, Some("two"))),
        of(one, progress(1, 1, Some("one"))),
    ];
    let verdicts = world.store.report(reports).await.expect("report answers");
    assert!(matches!(
        verdicts[..],
        [TAKEN, Verdict::Stale(..), TAKEN, TAKEN]
    ));
    let seen = world.look(one.job).await.progress.expect("it has some");
    assert_eq!((seen.percent, seen.revision), (Some(2), 2));
    assert_eq!(world.store.report(vec![]).await.expect("it answers"), []);
}

on_each_store!(a_report_and_an_ending_at_once_leave_one_truth);
async fn a_report_and_an_ending_at_once_leave_one_truth(world: World) {
    for _ in 0..20 {
        let (lease, session) = world.running().await;
        let (reporting, ending) = (world.clone(), world.clone());
        let reports = tokio::spawn(async move {
            report(&reporting, lease, session, progress(1, 1, Some("c"))).await
        });
        let ends = tokio::spawn(async move { ending.finish(lease, session, success()).await });
        let verdict = reports.await.expect("the report ends");
        ends.await.expect("the ending ends");
        let seen = world.look(lease.job).await.progress;
        assert_eq!(seen.is_some(), verdict == TAKEN, "{verdict:?}");
    }
}

on_each_store!(progress_goes_with_its_job);
async fn progress_goes_with_its_job(world: World) {
    let id = world
        .accept(world.job_with(|d| d.retention = Some(crate::steps::raw(secs(1)))))
        .await;
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    report(&world, lease, session, progress(1, 1, Some("c"))).await;
    world.finish(lease, session, success()).await;
    world.advance(LONG).await;
    assert_eq!(world.retain().await, 1);
    // A job of the same id, which only a store can make, would not find it.
    let there = world.store.get(vec![id], View::Full).await;
    assert_eq!(there.expect("get answers"), [None]);
}
