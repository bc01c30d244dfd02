//! A job is accepted once, durably, and comes back as it was given.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use leasehold::job::draft::RawStart;
use leasehold::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, PAYLOAD_BYTES_MAX, SPAN_MAX};
use leasehold::job::{Job, JobState, NewJob, Payload, Priority, Start, Timestamp, View};
use leasehold::store::{Enqueued, Unit};
use proptest::prelude::Rng as _;

use crate::steps::{
    assert_about, assert_same_moment, backoff, created, existed, jobs_of, line_of, minutes, raw,
    raw_time, secs, text,
};
use crate::world::World;

on_each_store!(an_accepted_job_is_queued_and_as_it_was_given);
async fn an_accepted_job_is_queued_and_as_it_was_given(world: World) {
    let new = world.job_with(|d| {
        d.queue = "mails:eu.1_a-b".into();
        d.priority = Some(Ok(Priority::High));
        d.max_attempts = 7;
        d.backoff = backoff(std::time::Duration::from_millis(1_500), minutes(3), 1.75);
        d.timeout = Some(raw(secs(90)));
        d.retention = Some(raw(secs(86_399)));
        d.labels = words(&[("team", "blue"), ("quote", "it's \"5\" \\ {a,b} ☂ NULL")]);
        d.headers = words(&[("traceparent", "00-abc"), ("empty", "")]);
    });
    let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
    let job = created(&answer.jobs[0]);

    assert_about(job.create_time, world.now(), "create_time");
    assert_same_moment(job.run_time, job.create_time, "due at once");
    let expected = Job::accepted(&new, JobState::Queued, job.create_time, job.run_time);
    assert_eq!(*job, expected);
    let basic = world.store.get(vec![new.id], View::Basic).await;
    assert_eq!(
        basic.expect("get answers"),
        vec![Some(expected.clone())],
        "a basic view"
    );
    let full = Job {
        payload: Some(new.payload.clone()),
        ..expected
    };
    assert_eq!(world.look(new.id).await, full);
}

on_each_store!(a_job_without_timeout_or_retention_keeps_it_so);
async fn a_job_without_timeout_or_retention_keeps_it_so(world: World) {
    let id = world
        .accept(world.job_with(|d| {
            d.timeout = Some(raw(secs(0)));
            d.retention = Some(raw(secs(0)));
        }))
        .await;
    let spec = world.look(id).await.spec;
    assert_eq!((spec.timeout, spec.retention), (None, secs(0)));
}

on_each_store!(payload_bytes_come_back_untouched);
async fn payload_bytes_come_back_untouched(world: World) {
    for payload in odd_payloads() {
        let size = payload.data.len();
        let id = world
            .accept(world.job_with(|d| d.payload = Some(payload.clone())))
            .await;
        assert!(
            world.look(id).await.payload == Some(payload),
            "{size} bytes changed"
        );
    }
}

/// Bodies that a store may be tempted to change.
pub fn odd_payloads() -> Vec<Payload> {
    let body = |content_type: &str, data: Bytes, is_text| Payload {
        content_type: content_type.into(),
        data,
        is_text,
    };
    let mut large = vec![0; PAYLOAD_BYTES_MAX];
    proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha)
        .fill_bytes(&mut large);
    vec![
        body("text/plain; charset=utf-8", Bytes::new(), true),
        body("application/octet-stream", Bytes::new(), false),
        body(
            "application/json",
            Bytes::from_static(b" {\"a\" : 1.0}\n"),
            false,
        ),
        body(
            "application/json",
            Bytes::from_static(b"{\"b\":1,\"b\":2}"),
            true,
        ),
        body("text/plain", Bytes::from("☂ 'quoted' \\x00 \u{feff}"), true),
        body(
            "x/y",
            Bytes::from_static(&[0xff, 0xfe, 0x00, 0xc3, 0x28, 0x80]),
            false,
        ),
        body("x/y", Bytes::from_static(b"\\x6869"), false),
        body("x/large", large.into(), false),
    ]
}

on_each_store!(a_repeated_request_is_the_same_job);
async fn a_repeated_request_is_the_same_job(world: World) {
    let new = world.job();
    world.accept(new.clone()).await;
    let (session, id) = (world.open().await, new.id);
    world.lease(id, session).await;

    let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
    let job = existed(&answer.jobs[0]);
    assert_eq!((job.id, job.state, job.attempt), (id, JobState::Running, 1));
    assert_eq!(job.payload, None, "a basic view");
    assert_eq!(answer.segments, [], "there is nothing new to offer");

    let traced = world.job_with(|d| d.headers = words(&[("traceparent", "another")]));
    let traced = NewJob { id, ..traced };
    let answer = world.enqueue(vec![traced], Unit::All).await;
    existed(&answer.jobs[0]);
    assert_eq!(
        world.look(id).await.spec.headers,
        new.spec.headers,
        "the first request's headers stay"
    );
}

on_each_store!(a_repeated_delay_is_the_same_request_at_any_time);
async fn a_repeated_delay_is_the_same_request_at_any_time(world: World) {
    let new = world.job_with(|d| d.start = RawStart::Delay(raw(minutes(10))));
    world.accept(new.clone()).await;
    let due = world.look(new.id).await.run_time;
    world.advance(minutes(5)).await;
    let answer = world.enqueue(vec![new], Unit::Each).await;
    assert_eq!(existed(&answer.jobs[0]).run_time, due);
}

on_each_store!(an_id_of_another_request_is_a_conflict);
async fn an_id_of_another_request_is_a_conflict(world: World) {
    let first = world.job();
    world.accept(first.clone()).await;
    let before = world.look(first.id).await;
    let other = world.job_with(|d| d.kind = "other".into());
    let other = NewJob {
        id: first.id,
        ..other
    };
    for unit in [Unit::Each, Unit::All] {
        let answer = world.enqueue(vec![other.clone()], unit).await;
        assert_eq!(answer.jobs, [Enqueued::Conflict]);
        assert_eq!(answer.segments, []);
    }
    assert_eq!(world.look(first.id).await, before);
}

on_each_store!(a_conflict_fails_no_neighbour);
async fn a_conflict_fails_no_neighbour(world: World) {
    let taken = world.job();
    world.accept(taken.clone()).await;
    let clash = with_id_of(&taken, world.job_with(|d| d.kind = "other".into()));
    let old = with_id_at(&world, world.now().0 - 2 * us(ID_AGE_MAX));
    let far = world.job_with(|d| d.start = RawStart::At(raw_time(too_far(&world))));
    let (left, right) = (world.job(), world.job());

    let answer = world
        .enqueue(
            vec![left.clone(), clash, old, far, taken.clone(), right.clone()],
            Unit::Each,
        )
        .await;
    assert_eq!(created(&answer.jobs[0]).id, left.id);
    assert_eq!(answer.jobs[1], Enqueued::Conflict);
    assert_eq!(answer.jobs[2], Enqueued::IdOutOfTime);
    assert_eq!(answer.jobs[3], Enqueued::StartTooFar);
    assert_eq!(existed(&answer.jobs[4]).id, taken.id);
    assert_eq!(created(&answer.jobs[5]).id, right.id);
    assert_eq!(jobs_of(&answer.segments), [left.id, right.id]);
}

on_each_store!(a_batch_is_accepted_as_a_whole_or_not_at_all);
async fn a_batch_is_accepted_as_a_whole_or_not_at_all(world: World) {
    let taken = world.job();
    world.accept(taken.clone()).await;
    let clash = with_id_of(&taken, world.job_with(|d| d.kind = "other".into()));
    let old = with_id_at(&world, world.now().0 - 2 * us(ID_AGE_MAX));
    let far = world.job_with(|d| d.start = RawStart::At(raw_time(too_far(&world))));

    for (bad, why) in [
        (clash, Enqueued::Conflict),
        (old, Enqueued::IdOutOfTime),
        (far, Enqueued::StartTooFar),
    ] {
        let (left, right) = (world.job(), world.job());
        let answer = world
            .enqueue(vec![left.clone(), bad, right.clone()], Unit::All)
            .await;
        assert_eq!(answer.jobs, [Enqueued::NotTried, why, Enqueued::NotTried]);
        assert_eq!(answer.segments, []);
        assert_eq!(world.find(left.id).await, None);
        assert_eq!(world.find(right.id).await, None);
    }

    let (left, right) = (world.job(), world.job());
    let answer = world
        .enqueue(vec![left.clone(), taken.clone(), right.clone()], Unit::All)
        .await;
    created(&answer.jobs[0]);
    existed(&answer.jobs[1]);
    created(&answer.jobs[2]);
    assert_eq!(jobs_of(&answer.segments), [left.id, right.id]);
}

on_each_store!(one_id_twice_in_a_batch_is_one_job);
async fn one_id_twice_in_a_batch_is_one_job(world: World) {
    for unit in [Unit::Each, Unit::All] {
        let new = world.job();
        let answer = world.enqueue(vec![new.clone(), new.clone()], unit).await;
        assert_eq!(created(&answer.jobs[0]).id, new.id);
        assert_eq!(existed(&answer.jobs[1]).id, new.id);
        assert_eq!(jobs_of(&answer.segments), [new.id]);
    }

    let new = world.job();
    let other = with_id_of(&new, world.job_with(|d| d.kind = "other".into()));
    let answer = world
        .enqueue(vec![new.clone(), other.clone()], Unit::Each)
        .await;
    created(&answer.jobs[0]);
    assert_eq!(answer.jobs[1], Enqueued::Conflict);
    assert_eq!(world.look(new.id).await.spec.kind, new.spec.kind);

    let new = world.job();
    let other = NewJob {
        id: new.id,
        ..other
    };
    let answer = world.enqueue(vec![new.clone(), other], Unit::All).await;
    assert_eq!(answer.jobs, [Enqueued::NotTried, Enqueued::Conflict]);
    assert_eq!(world.find(new.id).await, None);
}

on_each_store!(sixty_four_callers_with_one_id_make_one_job);
async fn sixty_four_callers_with_one_id_make_one_job(world: World) {
    let new = world.job();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (world, new) = (world.clone(), new.clone());
        calls.spawn(async move { world.enqueue(vec![new], Unit::Each).await });
    }
    let answers = calls.join_all().await;
    let made = answers
        .iter()
        .filter(|a| matches!(a.jobs[0], Enqueued::Created(_)))
        .count();
    assert_eq!(made, 1);
    for answer in &answers {
        match &answer.jobs[0] {
            Enqueued::Created(job) | Enqueued::Existed(job) => assert_eq!(job.id, new.id),
            other => panic!("{other:?}"),
        }
    }
    let offered: Vec<_> = answers.iter().flat_map(|a| jobs_of(&a.segments)).collect();
    assert_eq!(offered, [new.id]);
}

on_each_store!(batches_that_overlap_do_not_hinder_each_other);
async fn batches_that_overlap_do_not_hinder_each_other(world: World) {
    let jobs: Vec<NewJob> = (0..100).map(|_| world.job()).collect();
    let mut calls = tokio::task::JoinSet::new();
    for turn in 0..8 {
        let (world, mut jobs) = (world.clone(), jobs.clone());
        jobs.rotate_left(turn * 13);
        if turn % 2 == 0 {
            jobs.reverse();
        }
        let unit = if turn % 3 == 0 { Unit::All } else { Unit::Each };
        calls.spawn(async move { world.enqueue(jobs, unit).await });
    }
    let answers = calls.join_all().await;
    let made: Vec<_> = answers
        .iter()
        .flat_map(|a| &a.jobs)
        .filter_map(|a| match a {
            Enqueued::Created(job) => Some(job.id),
            Enqueued::Existed(_) => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(made.len(), 100, "each is made once");
    let ids: BTreeSet<_> = made.into_iter().collect();
    assert_eq!(ids, jobs.iter().map(|j| j.id).collect());
    let offered: Vec<_> = answers.iter().flat_map(|a| jobs_of(&a.segments)).collect();
    assert_eq!(offered.len(), 100, "each is offered once");
}

on_each_store!(an_id_is_accepted_only_near_its_own_time);
async fn an_id_is_accepted_only_near_its_own_time(world: World) {
    let now = world.now().0;
    for (offset, fits) in [
        (-us(ID_AGE_MAX) + us(minutes(1)), true),
        (us(ID_AHEAD_MAX) - us(minutes(1)), true),
        (-us(ID_AGE_MAX) - us(minutes(1)), false),
        (us(ID_AHEAD_MAX) + us(minutes(1)), false),
    ] {
        for unit in [Unit::Each, Unit::All] {
            let new = with_id_at(&world, now + offset);
            let answer = world.enqueue(vec![new.clone()], unit).await;
            match fits {
                true => assert_eq!(created(&answer.jobs[0]).id, new.id),
                false => assert_eq!(answer.jobs, [Enqueued::IdOutOfTime]),
            }
        }
    }
}

on_each_store!(a_job_that_is_there_is_found_again_by_an_old_id);
async fn a_job_that_is_there_is_found_again_by_an_old_id(world: World) {
    let new = world.job();
    world.accept(new.clone()).await;
    world.advance(minutes(24 * 60)).await;
    let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
    assert_eq!(existed(&answer.jobs[0]).id, new.id);
    let other = with_id_of(&new, world.job_with(|d| d.kind = "other".into()));
    let answer = world.enqueue(vec![other], Unit::Each).await;
    assert_eq!(answer.jobs, [Enqueued::Conflict]);
}

on_each_store!(a_delayed_job_is_scheduled_for_its_time);
async fn a_delayed_job_is_scheduled_for_its_time(world: World) {
    let new = world.job_with(|d| d.start = RawStart::Delay(raw(minutes(90))));
    let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
    let job = created(&answer.jobs[0]);
    assert_eq!(job.state, JobState::Scheduled);
    assert_same_moment(job.run_time, job.create_time.after(minutes(90)), "run_time");
    assert_eq!(answer.segments, [], "it is not to be offered yet");
    assert_eq!(world.look(new.id).await.run_time, job.run_time);

    let at = Timestamp(world.now().0 + us(minutes(5)) + 123_456);
    let new = world.job_with(|d| d.start = RawStart::At(raw_time(at)));
    assert_eq!(new.start, Start::At(at));
    let id = world.accept(new).await;
    let job = world.look(id).await;
    assert_eq!((job.state, job.run_time), (JobState::Scheduled, at));
}

on_each_store!(a_start_in_the_past_is_now);
async fn a_start_in_the_past_is_now(world: World) {
    let at = Timestamp(world.now().0 - us(minutes(5)));
    for start in [
        RawStart::At(raw_time(at)),
        RawStart::At(raw_time(Timestamp(-1_000_000_000_000_000))),
        RawStart::Delay(raw(secs(0))),
    ] {
        let new = world.job_with(|d| d.start = start);
        let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
        assert_eq!(created(&answer.jobs[0]).state, JobState::Queued);
        assert_eq!(jobs_of(&answer.segments), [new.id]);
    }
}

on_each_store!(segments_name_each_queued_job_once_in_its_own_line);
async fn segments_name_each_queued_job_once_in_its_own_line(world: World) {
    let mut jobs = Vec::new();
    for n in 0..60 {
        let priority = Priority::ALL[n % 3];
        let name = ["a", "b", "c", "d"][n % 4];
        jobs.push(world.job_with(|d| {
            d.queue = name.into();
            d.priority = Some(Ok(priority));
        }));
    }
    let answer = world.enqueue(jobs.clone(), Unit::All).await;
    let mut expected: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for job in &jobs {
        expected.entry(line_of(job)).or_default().push(job.id);
    }
    let mut told = BTreeMap::new();
    for segment in answer.segments {
        let jobs: Vec<_> = segment.jobs.clone();
        assert!(
            told.insert(segment.line.clone(), jobs).is_none(),
            "one segment a line and flush: {segment:?}"
        );
    }
    assert_eq!(told, expected, "in the order in which they came");
}

on_each_store!(a_full_batch_is_accepted);
async fn a_full_batch_is_accepted(world: World) {
    let jobs: Vec<_> = (0..1_000).map(|_| world.job()).collect();
    let answer = world.enqueue(jobs.clone(), Unit::All).await;
    assert_eq!(
        answer
            .jobs
            .iter()
            .map(|a| created(a).id)
            .collect::<Vec<_>>(),
        jobs.iter().map(|j| j.id).collect::<Vec<_>>()
    );
    assert_eq!(jobs_of(&answer.segments).len(), 1_000);
}

on_each_store!(nothing_asked_is_nothing_done);
async fn nothing_asked_is_nothing_done(world: World) {
    for unit in [Unit::Each, Unit::All] {
        let answer = world.enqueue(Vec::new(), unit).await;
        assert_eq!(answer.segments, []);
    }
    assert_eq!(world.grant(Vec::new()).await, []);
    assert_eq!(world.finish_all(Vec::new()).await.segments, []);
    let none = world.store.get(Vec::new(), View::Full).await;
    assert_eq!(none.expect("get answers"), []);
    let none = world.store.renew(Vec::new()).await;
    assert_eq!(none.expect("renew answers"), []);
    let none = world.store.close_sessions(Vec::new()).await;
    none.expect("close answers");
    world.store.offered(Vec::new()).await.expect("it answers");
}

on_each_store!(reading_answers_each_id_in_order);
async fn reading_answers_each_id_in_order(world: World) {
    let first = world.queued().await;
    let second = world
        .accept(world.job_with(|d| d.payload = Some(text("two"))))
        .await;
    let nobody = world.fresh_id();
    let ids = vec![second, nobody, first, second];
    let found = world.store.get(ids, View::Full).await.expect("get answers");
    let found: Vec<_> = found.iter().map(|j| j.as_ref().map(|j| j.id)).collect();
    assert_eq!(found, [Some(second), None, Some(first), Some(second)]);
}

fn us(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_micros()).expect("a span of sense")
}

fn too_far(world: &World) -> Timestamp {
    Timestamp(world.now().0 + us(SPAN_MAX) + us(minutes(24 * 60)))
}

fn with_id_of(taken: &NewJob, other: NewJob) -> NewJob {
    NewJob {
        id: taken.id,
        ..other
    }
}

fn with_id_at(world: &World, at_us: i64) -> NewJob {
    NewJob {
        id: world.id_at(Timestamp(at_us)),
        ..world.job()
    }
}

fn words(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}
