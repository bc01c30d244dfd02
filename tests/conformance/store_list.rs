//! Lists: page by page all that a filter lets through and nothing else, whatever happens between two pages.

use std::collections::BTreeSet;
use std::time::Duration;

use leasehold::job::limits::{LOST_LEASES_MAX, PAGE_MAX, PAGE_ROWS_MAX};
use leasehold::job::{By, Failure, Job, JobId, JobState, Kind, NewJob, Outcome, Timestamp, View};
use leasehold::store::{Ask, Deleted, JobFilter, JobPage};

use crate::steps::{
    assert_recorded, ending, failure, jobs_of, leased, minutes, queue, raw, secs, success,
};
use crate::world::World;

fn kind(name: &str) -> Kind {
    Kind::parse(name).expect("a case names kinds well")
}

pub fn filter(queues: &[&str], kinds: &[&str], states: &[JobState]) -> JobFilter {
    JobFilter {
        queues: queues.iter().map(|name| queue(name)).collect(),
        kinds: kinds.iter().map(|name| kind(name)).collect(),
        states: states.to_vec(),
        ..JobFilter::default()
    }
}

fn lets(filter: &JobFilter, job: &Job) -> bool {
    (filter.queues.is_empty() || filter.queues.contains(&job.spec.queue))
        && (filter.kinds.is_empty() || filter.kinds.contains(&job.spec.kind))
        && (filter.states.is_empty() || filter.states.contains(&job.state))
}

fn of(world: &World, queue: &str, kind: &str) -> NewJob {
    world.job_with(|d| {
        d.queue = queue.into();
        d.kind = kind.into();
    })
}

pub fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

pub async fn page(
    world: &World,
    filter: &JobFilter,
    before: Option<JobId>,
    size: usize,
    view: View,
) -> JobPage {
    let page = world.store.list(filter.clone(), before, size, view).await;
    page.expect("list answers")
}

/// A job in each state, and some that came to theirs by another way.
async fn in_every_state(world: &World, queue: &str, kind: &str) {
    let new = || of(world, queue, kind);
    world.accept(new()).await;
    let scheduled = world.job_with(|d| {
        (d.queue, d.kind) = (queue.into(), kind.into());
        d.start = leasehold::job::draft::RawStart::Delay(raw(minutes(60)));
    });
    world.accept(scheduled).await;
    let running = world.accept(new()).await;
    world.lease(running, world.open().await).await;
    let succeeded = world.accept(new()).await;
    world.succeed(succeeded).await;
    let failed = world.accept(new()).await;
    world.fail(failed).await;
    let cancelled = world.accept(new()).await;
    world.cancel(cancelled).await;
    let retried = world.accept(new()).await;
    world.fail(retried).await;
    world.retry(retried, Duration::ZERO).await;
    let backing_off = world.accept(new()).await;
    let session = world.open().await;
    let lease = world.lease(backing_off, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
}

on_each_store!(a_list_is_all_that_its_filter_lets_through_newest_first);
async fn a_list_is_all_that_its_filter_lets_through_newest_first(world: World) {
    // One name begins another one, and one sorts before it by its bytes but not by its letters.
    for (queue, kind) in [("a", "x"), ("a", "y"), ("a.b", "x"), ("B", "y")] {
        in_every_state(&world, queue, kind).await;
    }
    let mut all = world.walk(JobFilter::default(), 1_000).await;
    assert_eq!(all.len(), 32);
    all.sort_by_key(|job| std::cmp::Reverse(job.id));
    let states: Vec<Vec<JobState>> = [vec![]]
        .into_iter()
        .chain(JobState::ALL.map(|state| vec![state]))
        .chain([
            vec![JobState::Failed, JobState::Cancelled],
            vec![JobState::Queued, JobState::Running],
            vec![JobState::Failed, JobState::Failed],
            JobState::ALL.to_vec(),
        ])
        .collect();
    let queues: [&[&str]; 6] = [
        &[],
        &["a"],
        &["B", "a"],
        &["a.b", "a", "a.b"],
        &["nobody"],
        &["nobody", "B"],
    ];
    let kinds: [&[&str]; 4] = [&[], &["x"], &["y", "x"], &["z"]];
    for states in &states {
        for queues in queues {
            for kinds in kinds {
                let filter = filter(queues, kinds, states);
                let expected: Vec<_> = all.iter().filter(|job| lets(&filter, job)).collect();
                for size in [3, 1_000] {
                    let found = world.walk(filter.clone(), size).await;
                    let found: Vec<_> = found.iter().collect();
                    assert_eq!(found, expected, "{filter:?} by {size}");
                }
            }
        }
    }
}

on_each_store!(a_list_lets_through_by_labels_time_and_failure);
async fn a_list_lets_through_by_labels_time_and_failure(world: World) {
    let labelled = |labels: &[(&str, &str)], kind: &str| {
        world.job_with(|d| {
            d.kind = kind.into();
            d.labels = labels
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect();
        })
    };
    let none = world.accept(labelled(&[], "x")).await;
    let blue = world
        .accept(labelled(
            &[("team", "blue"), ("quote", "it's \"5\" \\ ☂")],
            "x",
        ))
        .await;
    world.advance(minutes(10)).await;
    let between = world.now();
    let red = world.accept(labelled(&[("team", "red")], "x")).await;
    let both = world
        .accept(labelled(&[("team", "blue"), ("tier", "")], "y"))
        .await;
    let fail = async |job, with: &str| {
        let session = world.open().await;
        let lease = world.lease(job, session).await;
        let failure = Outcome::Failure(Failure {
            kind: with.into(),
            message: "no".into(),
            permanent: true,
            ..Failure::default()
        });
        assert_recorded(&world.finish(lease, session, failure).await);
    };
    fail(red, "Timeout").await;
    fail(blue, "Timeout").await;
    fail(both, "Refused").await;
    // Only the last failure counts, whatever came of the job since.
    world.retry(blue, Duration::ZERO).await;
    fail(blue, "Refused").await;
    world.retry(both, Duration::ZERO).await;

    let labels = |labels: &[(&str, &str)]| JobFilter {
        labels: labels
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
        ..JobFilter::default()
    };
    let after = |filter: JobFilter| JobFilter {
        created_after: Some(between),
        ..filter
    };
    let before = |filter: JobFilter| JobFilter {
        created_before: Some(between),
        ..filter
    };
    let failed = |filter: JobFilter, with: &str| JobFilter {
        failure_type: Some(with.into()),
        ..filter
    };
    let any = JobFilter::default;
    let dead = || filter(&[], &[], &[JobState::Failed]);
    let (created, one) = (world.look(red).await.create_time, 1);
    let exactly = JobFilter {
        created_after: Some(created),
        created_before: Some(Timestamp(created.0 + one)),
        ..any()
    };
    for (filter, expected) in [
        (labels(&[("team", "blue")]), vec![both, blue]),
        (labels(&[("team", "blue"), ("tier", "")]), vec![both]),
        (labels(&[("quote", "it's \"5\" \\ ☂")]), vec![blue]),
        (labels(&[("team", "")]), vec![]),
        (labels(&[("tea", "blue")]), vec![]),
        (after(any()), vec![both, red]),
        (before(any()), vec![blue, none]),
        (before(after(any())), vec![]),
        (exactly, vec![red]),
        (after(labels(&[("team", "blue")])), vec![both]),
        (failed(any(), "Refused"), vec![both, blue]),
        (failed(any(), "Timeout"), vec![red]),
        (failed(dead(), "Refused"), vec![blue]),
        (failed(filter(&["a"], &[], &[]), "Refused"), vec![]),
        (before(failed(dead(), "Refused")), vec![blue]),
        (
            after(failed(labels(&[("team", "blue")]), "Refused")),
            vec![both],
        ),
    ] {
        for queues in [vec![], vec![queue(crate::steps::QUEUE)]] {
            let is_elsewhere = !filter.queues.is_empty();
            let filter = JobFilter {
                queues: if is_elsewhere {
                    filter.queues.clone()
                } else {
                    queues
                },
                ..filter.clone()
            };
            for size in [1, 100] {
                let found = ids(&world.walk(filter.clone(), size).await);
                assert_eq!(found, expected, "{filter:?} by {size}");
            }
        }
    }
}

on_each_store!(pages_of_any_size_chain_to_the_whole);
async fn pages_of_any_size_chain_to_the_whole(world: World) {
    let mut expected = world.queued_many(24).await;
    expected.reverse();
    for filter in [
        filter(&[], &[], &[]),
        filter(&["work"], &[], &[]),
        filter(&[], &["greet"], &[JobState::Queued]),
        filter(&["work"], &["greet"], &[JobState::Queued]),
    ] {
        for size in [1, 2, 5, 23, 24, 25, PAGE_MAX] {
            assert_eq!(ids(&world.walk(filter.clone(), size).await), expected);
            let first = page(&world, &filter, None, size, View::Basic).await;
            assert_eq!(
                first.jobs.len(),
                size.min(24),
                "no page is short for nothing"
            );
            assert_eq!(
                first.next.is_some(),
                size < 24,
                "nor names one that is empty"
            );
        }
        let last = page(&world, &filter, expected.last().copied(), 5, View::Basic).await;
        assert_eq!(last, JobPage::default());
    }
}

on_each_store!(a_page_begins_below_any_id_whether_there_is_such_a_job_or_not);
async fn a_page_begins_below_any_id_whether_there_is_such_a_job_or_not(world: World) {
    let older = world.queued_many(3).await;
    let between = world.fresh_id();
    world.queued_many(3).await;
    let below = page(
        &world,
        &JobFilter::default(),
        Some(between),
        10,
        View::Basic,
    )
    .await;
    assert_eq!(ids(&below.jobs), [older[2], older[1], older[0]]);
    assert_eq!(below.next, None);
}

on_each_store!(pages_have_no_gaps_or_repeats_while_jobs_come_and_move);
async fn pages_have_no_gaps_or_repeats_while_jobs_come_and_move(world: World) {
    let jobs = world.queued_many(40).await;
    let all = filter(&["work"], &[], &[]);
    let waiting = filter(&["work"], &[], &[JobState::Queued]);
    for filter in [&all, &waiting] {
        let stood: BTreeSet<_> = ids(&world.walk(filter.clone(), 100).await)
            .into_iter()
            .collect();
        let mut seen = Vec::new();
        let mut moved = BTreeSet::new();
        let mut before = None;
        loop {
            let page = page(&world, filter, before, 3, View::Basic).await;
            seen.extend(ids(&page.jobs));
            // One from each end leaves its state, one comes, and one comes late with an id of an hour's first minute.
            for job in [jobs.first(), jobs.last()].into_iter().flatten() {
                if world.state(*job).await == JobState::Queued {
                    world.cancel(*job).await;
                    moved.insert(*job);
                }
            }
            if let Some(job) = jobs
                .iter()
                .rev()
                .find(|job| !moved.contains(job) && stood.contains(job))
            {
                if world.state(*job).await == JobState::Queued {
                    world.succeed(*job).await;
                }
                moved.insert(*job);
            }
            world.queued().await;
            let late = Timestamp(world.now().0 - 50 * 60 * 1_000_000);
            let late = NewJob {
                id: world.id_at(late),
                ..world.job()
            };
            world.accept(late).await;
            match page.next {
                Some(next) => before = Some(next),
                None => break,
            }
        }
        let once: BTreeSet<_> = seen.iter().copied().collect();
        assert_eq!(once.len(), seen.len(), "none comes twice");
        assert!(
            seen.is_sorted_by(|a, b| a > b),
            "newest first, across pages"
        );
        let must = stood
            .iter()
            .filter(|job| filter == &all || !moved.contains(*job));
        for job in must {
            assert!(once.contains(job), "{job} was there all the time");
        }
    }
}

on_each_store!(a_page_of_a_state_has_no_job_of_another_while_jobs_run);
async fn a_page_of_a_state_has_no_job_of_another_while_jobs_run(world: World) {
    let jobs = world.queued_many(400).await;
    let to = world.open().await;
    let working = world.clone();
    let work = tokio::spawn(async move {
        for chunk in jobs.chunks(10) {
            let asks = chunk.iter().map(|job| Ask { job: *job, to }).collect();
            let leases = working.grant(asks).await;
            let endings = leases.iter().map(|granted| {
                let lease = leased(granted).lease;
                ending(lease, to, success())
            });
            working.finish_all(endings.collect()).await;
        }
    });
    while !work.is_finished() {
        for state in [JobState::Queued, JobState::Running] {
            for view in [View::Basic, View::Full] {
                let filter = filter(&[], &[], &[state]);
                let page = page(&world, &filter, None, 400, view).await;
                for job in page.jobs {
                    assert_eq!(job.state, state);
                }
            }
        }
    }
    work.await.expect("the work ends");
}

on_each_store!(a_page_that_looked_at_its_bound_is_short_and_goes_on);
async fn a_page_that_looked_at_its_bound_is_short_and_goes_on(world: World) {
    let mut rare = Vec::new();
    for _ in 0..3 {
        rare.push(world.accept(of(&world, "work", "rare")).await);
    }
    world.cancel(rare[0]).await;
    world.succeed(rare[2]).await;
    world.queued_many(PAGE_ROWS_MAX + 600).await;
    for (filter, expected) in [
        (filter(&[], &["rare"], &[]), vec![rare[2], rare[1], rare[0]]),
        (
            filter(&["work"], &["rare"], &[]),
            vec![rare[2], rare[1], rare[0]],
        ),
        (filter(&[], &[], &[JobState::Succeeded]), vec![rare[2]]),
        (
            filter(&["work", "nobody"], &[], &[JobState::Succeeded]),
            vec![rare[2]],
        ),
    ] {
        let first = page(&world, &filter, None, 2, View::Basic).await;
        assert_eq!(first.jobs, [], "{filter:?}");
        assert!(first.next.is_some(), "it has not seen all of {filter:?}");
        assert_eq!(
            ids(&world.walk(filter.clone(), 2).await),
            expected,
            "{filter:?}"
        );
    }
}

on_each_store!(each_way_to_the_dead_letter_is_listed_there_until_it_is_brought_back);
async fn each_way_to_the_dead_letter_is_listed_there_until_it_is_brought_back(world: World) {
    let mut dead = Vec::new();
    let permanent = world.queued().await;
    world.fail(permanent).await;
    dead.push(permanent);
    let last = world.accept(world.job_with(|d| d.max_attempts = 1)).await;
    let session = world.open().await;
    let lease = world.lease(last, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    dead.push(last);
    let slow = world.accept(world.job_with(|d| d.max_attempts = 1)).await;
    let lease = world.lease(slow, session).await;
    assert_recorded(&world.finish(lease, session, Outcome::TimedOut).await);
    dead.push(slow);
    let deadly = world.queued().await;
    for _ in 0..=LOST_LEASES_MAX {
        let session = world.open().await;
        world.lease(deadly, session).await;
        world.lose(session).await;
    }
    dead.push(deadly);
    let cancelled = world.queued().await;
    world.cancel(cancelled).await;
    world.queued_many(3).await;

    let listed = async |states: &[JobState], queues: &[&str]| {
        let found = world.walk(filter(queues, &[], states), 2).await;
        ids(&found).into_iter().rev().collect::<Vec<_>>()
    };
    for queues in [&[][..], &["work"]] {
        assert_eq!(listed(&[JobState::Failed], queues).await, dead);
        assert_eq!(listed(&[JobState::Cancelled], queues).await, [cancelled]);
    }
    for job in &dead {
        let job = world.look(*job).await;
        assert!(
            job.last_failure.is_some(),
            "the dead letter says why: {job:?}"
        );
    }
    world.retry(dead.remove(0), Duration::ZERO).await;
    world.retry(dead.remove(0), secs(60)).await;
    world.retry(cancelled, Duration::ZERO).await;
    for queues in [&[][..], &["work"]] {
        assert_eq!(listed(&[JobState::Failed], queues).await, dead);
        assert_eq!(listed(&[JobState::Cancelled], queues).await, []);
    }
    world.advance(minutes(2)).await;
    assert_eq!(jobs_of(&world.promote().await.segments).len(), 1);
}

// Far more jobs than a page looks at have the one label, a few the other; and one is final, deleted or purged in the end.
on_each_store!(a_rare_label_leads_to_its_jobs_at_once);
async fn a_rare_label_leads_to_its_jobs_at_once(world: World) {
    let labelled = |labels: &[(&str, String)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
        let labels: std::collections::BTreeMap<_, _> = labels.collect();
        world.job_with(|draft| draft.labels = labels)
    };
    let long = "x".repeat(10_000);
    let mut rare = Vec::new();
    for n in 0..3 {
        let labels = [
            ("env", "prod".into()),
            ("run", "7".into()),
            ("long", long.clone()),
        ];
        rare.push(world.accept(labelled(&labels)).await);
        let other = [
            ("env", "prod".into()),
            ("run", format!("{n}0")),
            ("n", "7".into()),
        ];
        world.accept(labelled(&other)).await;
    }
    for _ in 0..11 {
        let jobs = (0..1_000).map(|_| labelled(&[("env", "prod".into())]));
        world.accept_all(jobs.collect()).await;
    }
    let of = |labels: &[(&str, &str)]| JobFilter {
        labels: labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..JobFilter::default()
    };
    let first = async |filter: JobFilter| {
        let page = world.store.list(filter, None, 10, View::Basic).await;
        let page = page.expect("list answers");
        let ids: Vec<_> = page.jobs.iter().map(|job| job.id).collect();
        (ids, page.next.is_some())
    };
    let newest: Vec<_> = rare.iter().rev().copied().collect();
    for labels in [
        &[("run", "7")][..],
        &[("env", "prod"), ("run", "7")],
        &[("long", &long)],
    ] {
        assert_eq!(
            first(of(labels)).await,
            (newest.clone(), false),
            "{labels:?}"
        );
    }
    let nobody = of(&[("run", "7"), ("n", "7")]);
    assert_eq!(first(nobody).await, (vec![], false));
    let elsewhere = JobFilter {
        queues: vec![queue("elsewhere")],
        ..of(&[("run", "7")])
    };
    assert_eq!(first(elsewhere).await, (vec![], false));
    let (all, is_more) = first(of(&[("env", "prod")])).await;
    assert_eq!((all.len(), is_more), (10, true));

    for id in &rare[..2] {
        world.succeed(*id).await;
    }
    let done = JobFilter {
        states: vec![JobState::Succeeded],
        ..of(&[("run", "7")])
    };
    assert_eq!(first(done.clone()).await, (newest[1..].to_vec(), false));
    let deleted = world.store.delete(rare[0], By::default()).await;
    assert_eq!(deleted.ok(), Some(Deleted::Done));
    assert_eq!(first(done).await, (vec![rare[1]], false));
    world.advance(minutes(60 * 24 * 30)).await;
    while world.retain().await > 0 {}
    assert_eq!(first(of(&[("run", "7")])).await, (vec![rare[2]], false));
}
