//! What is shown of a job, alone or in a page: little or all of it, and never more than one message carries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leasehold::job::limits::{
    BATCH_BYTES_MAX, FAILURE_DETAIL_BYTES_MAX, FAILURE_MESSAGE_BYTES_MAX, PAGE_MAX,
};
use leasehold::job::{Failure, Job, JobId, JobState, Outcome, Payload, Progress, View};
use leasehold::store::{JobFilter, Report, Version};

use crate::steps::{assert_recorded, failure, minutes, text};
use crate::store_list::{filter, ids, page};
use crate::world::World;

async fn get(world: &World, ids: &[JobId], view: View) -> Vec<Option<Job>> {
    let found = world.store.get(ids.to_vec(), view).await;
    found.expect("get answers")
}

/// A job that has everything that a view can show.
async fn with_a_past(world: &World) -> JobId {
    let job = world.queued().await;
    let session = world.open().await;
    let lease = world.lease(job, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    world.advance(minutes(60)).await;
    world.promote().await;
    world.succeed(job).await;
    job
}

on_each_store!(a_basic_view_has_no_bodies_and_no_past_and_a_full_one_has_all);
async fn a_basic_view_has_no_bodies_and_no_past_and_a_full_one_has_all(world: World) {
    let job = with_a_past(&world).await;
    let full = get(&world, &[job], View::Full)
        .await
        .remove(0)
        .expect("it is there");
    assert_eq!(full.payload, Some(text("hello")));
    assert_eq!(full.output, Some(text("done")));
    assert_eq!(full.attempts.len(), 1);
    let last = full.last_failure.as_ref().expect("it failed once");
    assert_eq!(last.kind, "Broken");
    let basic = Job {
        payload: None,
        output: None,
        last_failure: None,
        attempts: Vec::new(),
        ..full.clone()
    };
    assert_eq!(
        get(&world, &[job], View::Basic).await,
        [Some(basic.clone())]
    );
    for (view, expected) in [(View::Basic, basic), (View::Full, full)] {
        for filter in [
            filter(&[], &[], &[]),
            filter(&["work"], &[], &[JobState::Succeeded]),
        ] {
            assert_eq!(
                page(&world, &filter, None, 5, view).await.jobs,
                [expected.clone()]
            );
        }
    }
}

on_each_store!(many_jobs_are_read_in_the_order_that_they_were_asked_for);
async fn many_jobs_are_read_in_the_order_that_they_were_asked_for(world: World) {
    let mut there = world.queued_many(300).await;
    there.push(with_a_past(&world).await);
    // Every third is nobody's, the order is shuffled, and each is asked for twice.
    let mut asked = Vec::new();
    for (n, job) in there.iter().enumerate() {
        asked.push(*job);
        if n % 3 == 0 {
            asked.push(world.fresh_id());
        }
    }
    let by_chance: BTreeMap<_, _> = asked
        .iter()
        .map(|id| (id.uuid().as_u128().rotate_left(90), *id))
        .collect();
    let asked: Vec<_> = by_chance
        .values()
        .chain(by_chance.values().rev())
        .copied()
        .collect();
    let there: BTreeSet<_> = there.into_iter().collect();
    for view in [View::Basic, View::Full] {
        let found = get(&world, &asked, view).await;
        assert_eq!(found.len(), asked.len());
        for (id, job) in asked.iter().zip(&found) {
            assert_eq!(
                job.as_ref().map(|job| job.id),
                there.contains(id).then_some(*id)
            );
        }
        let (once, again) = found.split_at(asked.len() / 2);
        assert!(once.iter().eq(again.iter().rev()), "a copy is the same");
    }
}

async fn version(world: &World, id: JobId) -> Version {
    let found = world.store.versions(vec![id]).await;
    found
        .expect("versions answers")
        .remove(0)
        .expect("it is there")
}

on_each_store!(whatever_changes_a_job_changes_its_version);
async fn whatever_changes_a_job_changes_its_version(world: World) {
    let job = world.scheduled(minutes(1)).await;
    let mut seen = vec![version(&world, job).await];
    let mut note = async || {
        let now = version(&world, job).await;
        assert_eq!(now, Version::of(&world.look(job).await));
        assert_eq!(
            now,
            version(&world, job).await,
            "it rests while nothing changes"
        );
        assert!(!seen.contains(&now), "{now:?} is not new: {seen:?}");
        seen.push(now);
    };
    world.advance(minutes(2)).await;
    world.promote().await;
    note().await;
    let session = world.open().await;
    let lease = world.lease(job, session).await;
    note().await;
    for revision in [3, 4] {
        let progress = Progress {
            percent: Some(50),
            checkpoint: Some("c".into()),
            revision,
            ..Progress::default()
        };
        let report = Report {
            lease,
            session: session.session,
            progress,
        };
        let told = world.store.report(vec![report]).await;
        assert_recorded(&told.expect("report answers")[0]);
        note().await;
    }
    assert_recorded(&world.finish(lease, session, failure()).await);
    note().await;
    world.cancel(job).await;
    note().await;
    world.retry(job, Duration::ZERO).await;
    note().await;
    let session = world.open().await;
    world.lease(job, session).await;
    note().await;
    world.lose(session).await;
    note().await;
}

on_each_store!(a_view_of_progress_is_a_basic_one_with_the_progress_and_no_checkpoint);
async fn a_view_of_progress_is_a_basic_one_with_the_progress_and_no_checkpoint(world: World) {
    let (lease, session) = world.running().await;
    let silent = world.queued().await;
    let progress = Progress {
        percent: Some(50),
        note: Some("half".into()),
        checkpoint: Some("c".into()),
        revision: 7,
    };
    let report = Report {
        lease,
        session: session.session,
        progress: progress.clone(),
    };
    let told = world.store.report(vec![report]).await;
    assert_recorded(&told.expect("report answers")[0]);
    let expected = Job {
        progress: Some(Progress {
            checkpoint: None,
            ..progress
        }),
        ..world.basic(lease.job).await
    };
    let seen = get(&world, &[silent, lease.job], View::Progress).await;
    assert_eq!(seen, [Some(world.basic(silent).await), Some(expected)]);
}

on_each_store!(versions_come_in_the_order_that_they_were_asked_for);
async fn versions_come_in_the_order_that_they_were_asked_for(world: World) {
    let one = world.queued().await;
    let two = world.queued().await;
    world.cancel(two).await;
    let nobody = world.fresh_id();
    let found = world.store.versions(vec![two, nobody, one, two]).await;
    let revisions: Vec<_> = found
        .expect("versions answers")
        .into_iter()
        .map(|version| version.map(|v| (v.revision, v.progress)))
        .collect();
    assert_eq!(revisions, [Some((2, 0)), None, Some((1, 0)), Some((2, 0))]);
    let none = world.store.versions(vec![]).await;
    assert_eq!(none.expect("versions answers"), []);
}

/// Bytes of all that a caller or a worker has written into a job.
fn bytes_of(job: &Job) -> usize {
    let words = [&job.spec.labels, &job.spec.headers].into_iter().flatten();
    let bodies = [&job.payload, &job.output].into_iter().flatten();
    let attempts = job.attempts.iter().filter_map(|a| a.failure.as_ref());
    words.map(|(k, v)| k.len() + v.len()).sum::<usize>()
        + bodies.map(|body| body.data.len()).sum::<usize>()
        + attempts
            .map(|f| f.message.len() + f.detail.len())
            .sum::<usize>()
}

/// Walks through all pages, none of which may be larger than a message.
async fn assert_bounded(world: &World, view: View, expected: &[JobId]) {
    for filter in [filter(&[], &[], &[]), filter(&["work"], &["greet"], &[])] {
        let mut seen = Vec::new();
        let mut before = None;
        loop {
            let page = page(world, &filter, before, PAGE_MAX, view).await;
            let bytes: usize = page.jobs.iter().map(bytes_of).sum();
            assert!(bytes <= BATCH_BYTES_MAX, "{bytes} bytes in a page");
            seen.extend(ids(&page.jobs));
            match page.next {
                Some(next) => before = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, expected);
        assert!(
            page(world, &filter, None, PAGE_MAX, view).await.jobs.len() > 1,
            "it is used"
        );
    }
}

on_each_store!(a_page_of_large_bodies_is_no_larger_than_a_message);
async fn a_page_of_large_bodies_is_no_larger_than_a_message(world: World) {
    let large = || Payload {
        data: vec![7; 1 << 20].into(),
        ..text("")
    };
    let mut expected = Vec::new();
    for _ in 0..7 {
        let new = world.job_with(|d| d.payload = Some(large()));
        expected.push(world.accept(new).await);
    }
    let session = world.open().await;
    let lease = world.lease(expected[3], session).await;
    let output = Outcome::Success(Some(large()));
    assert_recorded(&world.finish(lease, session, output).await);
    expected.reverse();
    assert_bounded(&world, View::Full, &expected).await;
    let basic = page(&world, &JobFilter::default(), None, 10, View::Basic).await;
    assert_eq!(ids(&basic.jobs), expected, "a basic view has none of it");
}

on_each_store!(a_page_of_long_words_is_no_larger_than_a_message);
async fn a_page_of_long_words_is_no_larger_than_a_message(world: World) {
    let new = || {
        world.job_with(|d| {
            d.labels = [("label".into(), "l".repeat(8_000))].into();
            d.headers = [("header".into(), "h".repeat(8_000))].into();
        })
    };
    let mut expected = world.accept_all((0..300).map(|_| new()).collect()).await;
    expected.reverse();
    for view in [View::Basic, View::Full] {
        assert_bounded(&world, view, &expected).await;
    }
}

on_each_store!(a_page_of_long_histories_is_no_larger_than_a_message);
async fn a_page_of_long_histories_is_no_larger_than_a_message(world: World) {
    let broken = || {
        Outcome::Failure(Failure {
            kind: "Broken".into(),
            message: "ü".repeat(FAILURE_MESSAGE_BYTES_MAX / 2),
            detail: "d".repeat(FAILURE_DETAIL_BYTES_MAX),
            permanent: true,
            retry_after: None,
        })
    };
    let mut expected = Vec::new();
    let session = world.open().await;
    for _ in 0..12 {
        let job = world.queued().await;
        for _ in 0..12 {
            let lease = world.lease(job, session).await;
            assert_recorded(&world.finish(lease, session, broken()).await);
            world.retry(job, Duration::ZERO).await;
        }
        expected.push(job);
    }
    expected.reverse();
    assert_bounded(&world, View::Full, &expected).await;
}
