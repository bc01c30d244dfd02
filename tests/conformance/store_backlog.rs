//! The backlog: what a ready-list does not have is found again, and without one hand-out goes on by loans. Whoever asks,
//! a segment goes to one caller at a time, and names only jobs that wait.

use std::collections::BTreeSet;
use std::time::Duration;

use leasehold::job::{JobId, NewJob, Priority};
use leasehold::store::{EntryId, Epoch, Line, Offer, Segment, Unit};

use crate::steps::{
    ANY_AGE, FOR_LONG, LONG, assert_recorded, fresh_epoch, jobs_of, line_of, minutes, queue,
    release, secs,
};
use crate::world::World;

const A_CLAIM: Duration = Duration::from_secs(30);

fn ids(segments: &[Segment]) -> Vec<i64> {
    segments.iter().map(|segment| segment.id).collect()
}

fn line(name: &str, priority: Priority) -> Line {
    Line {
        queue: queue(name),
        priority,
    }
}

fn work() -> Line {
    line("work", Priority::Normal)
}

fn of(world: &World, line: &Line) -> NewJob {
    world.job_with(|d| {
        d.queue = line.queue.as_str().into();
        d.priority = Some(Ok(line.priority));
    })
}

/// One flush: a segment of so many jobs.
async fn segment_of(world: &World, line: &Line, jobs: usize) -> Segment {
    let jobs = (0..jobs).map(|_| of(world, line)).collect();
    let mut segments = world.enqueue(jobs, Unit::Each).await.segments;
    assert_eq!(segments.len(), 1);
    segments.remove(0)
}

async fn segments(world: &World, count: usize) -> Vec<Segment> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(segment_of(world, &work(), 2).await);
    }
    all
}

async fn offer(world: &World, epoch: Epoch, segments: &[Segment], first_ms: u64) {
    let places = segments.iter().zip(first_ms..);
    let offers = places.map(|(segment, ms)| Offer {
        segment: segment.id,
        epoch,
        last: EntryId { ms, seq: 5 },
    });
    let offered = world.store.offered(offers.collect()).await;
    offered.expect("offered answers");
}

async fn lost(world: &World, epoch: Epoch, line: Line, first: Option<EntryId>) -> Vec<Segment> {
    let lost = world
        .store
        .lost_offers(epoch, line, first, ANY_AGE, 100)
        .await;
    lost.expect("lost_offers answers")
}

async fn cancel_all(world: &World, jobs: &[JobId]) {
    for job in jobs {
        world.cancel(*job).await;
    }
}

on_each_store!(what_was_never_offered_is_found_oldest_first_once_it_is_old_enough);
async fn what_was_never_offered_is_found_oldest_first_once_it_is_old_enough(world: World) {
    let epoch = fresh_epoch();
    let mut made = Vec::new();
    for name in ["b", "a", "b"] {
        made.push(segment_of(&world, &line(name, Priority::Low), 2).await);
        world.advance(secs(10)).await;
    }
    let found = async |age, limit| world.unoffered(epoch, secs(age), A_CLAIM, limit).await;
    assert_eq!(found(40, 10).await, [], "none is so old");
    assert_eq!(found(15, 1).await, made[..1], "the oldest first");
    assert_eq!(
        found(15, 10).await,
        made[1..2],
        "the first is taken, the third too young"
    );
    assert_eq!(found(5, 10).await, made[2..]);
    assert_eq!(found(0, 10).await, [], "all are taken");
    world.advance(A_CLAIM + secs(1)).await;
    assert_eq!(found(0, 2).await, made[..2], "whoever took them has died");
    assert_eq!(found(0, 2).await, made[2..]);
}

on_each_store!(what_is_offered_is_not_found_again_until_the_ready_list_is_another_one);
async fn what_is_offered_is_not_found_again_until_the_ready_list_is_another_one(world: World) {
    let (one, two) = (fresh_epoch(), fresh_epoch());
    let made = segments(&world, 5).await;
    let unoffered = async |epoch| world.unoffered(epoch, ANY_AGE, A_CLAIM, 100).await;
    // Some were taken before they were offered, some not.
    assert_eq!(world.unoffered(one, ANY_AGE, A_CLAIM, 2).await, made[..2]);
    offer(&world, one, &made[..4], 1).await;
    assert_eq!(unoffered(one).await, made[4..]);
    assert_eq!(
        unoffered(two).await,
        made[..4],
        "the new one has nothing of the old"
    );
    assert_eq!(unoffered(two).await, []);
    offer(&world, two, &made, 1).await;
    world.advance(LONG).await;
    assert_eq!(unoffered(two).await, []);
    assert_eq!(unoffered(one).await, made);
    // Many incarnations of it have been there, one segment each.
    for segment in &made {
        offer(&world, fresh_epoch(), std::slice::from_ref(segment), 1).await;
    }
    assert_eq!(world.unoffered(two, ANY_AGE, A_CLAIM, 3).await, made[..3]);
    assert_eq!(unoffered(two).await, made[3..]);
}

on_each_store!(an_offer_of_what_is_gone_is_no_error);
async fn an_offer_of_what_is_gone_is_no_error(world: World) {
    let made = segments(&world, 2).await;
    cancel_all(&world, &made[0].jobs).await;
    world.advance(minutes(10)).await;
    world.tidy().await;
    let nobody = Segment {
        id: i64::MAX,
        ..made[0].clone()
    };
    offer(
        &world,
        fresh_epoch(),
        &[nobody, made[0].clone(), made[1].clone()],
        1,
    )
    .await;
}

on_each_store!(a_segment_names_only_jobs_that_wait_and_none_that_waits_elsewhere);
async fn a_segment_names_only_jobs_that_wait_and_none_that_waits_elsewhere(world: World) {
    let made = segment_of(&world, &work(), 6).await;
    let epoch = fresh_epoch();
    let session = world.open().await;
    world.lease(made.jobs[0], session).await;
    world.succeed(made.jobs[1]).await;
    world.cancel(made.jobs[2]).await;
    let again = world.lease(made.jobs[3], session).await;
    assert_recorded(&world.finish(again, session, release()).await);
    let rest = &made.jobs[4..];

    offer(&world, epoch, std::slice::from_ref(&made), 1).await;
    let found = lost(&world, epoch, work(), None).await;
    assert_eq!(jobs_of(&found), rest, "in their order");
    let found = world
        .unoffered(epoch, ANY_AGE, Duration::from_secs(1), 10)
        .await;
    assert_eq!(found[0].jobs, rest);
    assert_eq!(
        found[1].jobs,
        [again.job],
        "it waits in its newest segment alone"
    );
    assert_eq!(found.len(), 2);
    world.advance(secs(2)).await;
    let found = world.claim(&[work()], A_CLAIM, 10).await;
    assert_eq!((found[0].id, &found[0].jobs[..]), (made.id, rest));
    cancel_all(&world, rest).await;
    world.advance(LONG).await;
    assert_eq!(
        jobs_of(&world.claim(&[work()], A_CLAIM, 10).await),
        [again.job]
    );
}

on_each_store!(hints_that_are_lost_are_found_by_where_they_stood);
async fn hints_that_are_lost_are_found_by_where_they_stood(world: World) {
    let epoch = fresh_epoch();
    let made = segments(&world, 4).await;
    // They stand at 10-5, 11-5, 12-5; the fourth is not offered.
    offer(&world, epoch, &made[..3], 10).await;
    let other = segment_of(&world, &line("work", Priority::High), 1).await;
    offer(&world, epoch, std::slice::from_ref(&other), 10).await;
    let at = |ms, seq| Some(EntryId { ms, seq });
    assert_eq!(
        lost(&world, epoch, work(), at(10, 5)).await,
        [],
        "the first is there"
    );
    assert_eq!(lost(&world, epoch, work(), at(9, 99)).await, []);
    assert_eq!(lost(&world, fresh_epoch(), work(), None).await, []);
    assert_eq!(
        lost(&world, epoch, line("nobody", Priority::Normal), None).await,
        []
    );
    assert_eq!(lost(&world, epoch, work(), at(11, 5)).await, made[..1]);
    assert_eq!(lost(&world, epoch, work(), at(11, 5)).await, [], "once");
    assert_eq!(lost(&world, epoch, work(), at(11, 6)).await, made[1..2]);
    assert_eq!(
        lost(&world, epoch, work(), None).await,
        made[2..3],
        "the line is empty"
    );
    let unoffered = world.unoffered(epoch, ANY_AGE, A_CLAIM, 10).await;
    assert_eq!(
        unoffered, made,
        "not offered, until somebody says where they are"
    );
    offer(&world, epoch, &made, 20).await;
    assert_eq!(lost(&world, epoch, work(), at(20, 6)).await, made[..1]);
}

on_each_store!(hints_are_given_time_to_be_seen_before_they_count_as_lost);
async fn hints_are_given_time_to_be_seen_before_they_count_as_lost(world: World) {
    let epoch = fresh_epoch();
    let made = segments(&world, 5).await;
    offer(&world, epoch, &made[..3], 1).await;
    world.advance(secs(10)).await;
    offer(&world, epoch, &made[3..], 4).await;
    let lost = async |age, limit| {
        let lost = world
            .store
            .lost_offers(epoch, work(), None, secs(age), limit)
            .await;
        lost.expect("lost_offers answers")
    };
    assert_eq!(lost(15, 10).await, []);
    assert_eq!(lost(5, 2).await, made[..2], "oldest first");
    assert_eq!(
        lost(5, 2).await,
        made[2..3],
        "the others were offered a moment ago"
    );
    cancel_all(&world, &made[3].jobs).await;
    assert_eq!(
        lost(0, 1).await,
        made[4..],
        "what nobody waits in is passed over"
    );
}

on_each_store!(a_loan_is_for_one_and_ends);
async fn a_loan_is_for_one_and_ends(world: World) {
    let made = segments(&world, 3).await;
    let claim = async |limit| world.claim(&[work()], A_CLAIM, limit).await;
    assert_eq!(claim(2).await, made[..2]);
    assert_eq!(claim(2).await, made[2..]);
    assert_eq!(claim(2).await, []);
    let unoffered = world.unoffered(fresh_epoch(), ANY_AGE, A_CLAIM, 10).await;
    assert_eq!(unoffered, [], "lent is lent");
    world.advance(A_CLAIM - secs(5)).await;
    assert_eq!(claim(10).await, []);
    world.advance(secs(6)).await;
    assert_eq!(claim(10).await, made);
    world.advance(A_CLAIM * 2).await;
    assert_eq!(
        world.unoffered(fresh_epoch(), ANY_AGE, A_CLAIM, 10).await,
        made
    );
    assert_eq!(claim(10).await, [], "and the other way round");
}

on_each_store!(a_loan_outlives_the_loss_of_its_hints);
async fn a_loan_outlives_the_loss_of_its_hints(world: World) {
    let epoch = fresh_epoch();
    let made = segments(&world, 1).await;
    offer(&world, epoch, &made, 1).await;
    assert_eq!(world.claim(&[work()], A_CLAIM, 10).await, made);
    lost(&world, epoch, work(), None).await;
    assert_eq!(
        world.claim(&[work()], A_CLAIM, 10).await,
        [],
        "it is still lent"
    );
    assert_eq!(world.unoffered(epoch, ANY_AGE, A_CLAIM, 10).await, []);
    world.advance(A_CLAIM + secs(1)).await;
    assert_eq!(world.unoffered(epoch, ANY_AGE, A_CLAIM, 10).await, made);
}

fn set(segments: &[Segment]) -> BTreeSet<i64> {
    ids(segments).into_iter().collect()
}

on_each_store!(loans_go_round_the_queues_that_were_asked_for_the_highest_priority_first);
async fn loans_go_round_the_queues_that_were_asked_for_the_highest_priority_first(world: World) {
    let mut made = Vec::new();
    for (name, priority) in [
        ("a", Priority::Low),
        ("b", Priority::Normal),
        ("a", Priority::Normal),
        ("c", Priority::High),
        ("b", Priority::High),
        ("a", Priority::High),
    ] {
        made.push(segment_of(&world, &line(name, priority), 2).await);
        world.advance(secs(1)).await;
    }
    let asked: Vec<_> = ["b", "a", "nobody", "a"]
        .into_iter()
        .flat_map(|name| Priority::ALL.map(|priority| line(name, priority)))
        .collect();
    // One of each queue, its most urgent and oldest; then the rest.
    let first = world.claim(&asked, A_CLAIM, 2).await;
    assert_eq!(set(&first), [made[4].id, made[5].id].into());
    let second = world.claim(&asked, A_CLAIM, 2).await;
    assert_eq!(set(&second), [made[1].id, made[2].id].into());
    let rest = world.claim(&asked, A_CLAIM, 10).await;
    assert_eq!(ids(&rest), [made[0].id]);
    assert_eq!(world.claim(&[], A_CLAIM, 10).await, []);
    assert_eq!(
        world.claim(&[line("a", Priority::Low)], A_CLAIM, 0).await,
        []
    );
    let other = world.claim(&[line("c", Priority::High)], A_CLAIM, 10).await;
    assert_eq!(other, made[3..4]);
}

on_each_store!(what_nobody_waits_in_holds_up_nothing);
async fn what_nobody_waits_in_holds_up_nothing(world: World) {
    let old = segments(&world, 12).await;
    for segment in &old {
        cancel_all(&world, &segment.jobs).await;
    }
    let made = segments(&world, 3).await;
    assert_eq!(
        world.claim(&[work()], Duration::from_secs(1), 2).await,
        made[..2]
    );
    world.advance(secs(2)).await;
    let more = segments(&world, 12).await;
    for segment in &more {
        cancel_all(&world, &segment.jobs).await;
    }
    let last = segments(&world, 1).await;
    let found = world.unoffered(fresh_epoch(), ANY_AGE, FOR_LONG, 4).await;
    assert_eq!(found, [&made[..], &last[..]].concat());
}

on_each_store!(many_callers_never_have_one_segment_between_them);
async fn many_callers_never_have_one_segment_between_them(world: World) {
    let epoch = fresh_epoch();
    let mut made = BTreeSet::new();
    for segment in segments(&world, 60).await {
        made.insert(segment.id);
    }
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..6 {
        let world = world.clone();
        calls.spawn(async move {
            let mut found = Vec::new();
            let mut idle = 0;
            // A call may pass over what another one has in its hands, so that one empty answer says nothing.
            while idle < 5 {
                let some = match n % 2 {
                    0 => world.claim(&[work()], FOR_LONG, 3).await,
                    _ => world.unoffered(epoch, ANY_AGE, FOR_LONG, 3).await,
                };
                idle = if some.is_empty() { idle + 1 } else { 0 };
                found.extend(some);
            }
            found
        });
    }
    let mut found = Vec::new();
    for some in calls.join_all().await {
        found.extend(ids(&some));
    }
    assert_eq!(found.len(), 60, "each once");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), made);
}

on_each_store!(hints_that_are_lost_are_found_once_by_many);
async fn hints_that_are_lost_are_found_once_by_many(world: World) {
    let epoch = fresh_epoch();
    let made = segments(&world, 40).await;
    offer(&world, epoch, &made, 1).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let world = world.clone();
        calls.spawn(async move {
            let mut found = Vec::new();
            for _ in 0..10 {
                let some = world
                    .store
                    .lost_offers(epoch, work(), None, ANY_AGE, 7)
                    .await;
                found.extend(some.expect("lost_offers answers"));
            }
            found
        });
    }
    let mut found = ids(&calls.join_all().await.concat());
    found.extend(ids(&lost(&world, epoch, work(), None).await));
    found.sort_unstable();
    assert_eq!(found, ids(&made));
}

on_each_store!(each_way_into_its_line_is_found_by_a_new_ready_list);
async fn each_way_into_its_line_is_found_by_a_new_ready_list(world: World) {
    let epoch = fresh_epoch();
    let line = line("rare", Priority::High);
    assert_eq!(line_of(&of(&world, &line)), line);
    let made = segment_of(&world, &line, 4).await;
    offer(&world, epoch, std::slice::from_ref(&made), 1).await;
    assert_eq!(world.unoffered(epoch, ANY_AGE, A_CLAIM, 10).await, []);
    let session = world.open().await;
    let lease = world.lease(made.jobs[0], session).await;
    assert_recorded(&world.finish(lease, session, release()).await);
    world.lease(made.jobs[1], session).await;
    world.lose(session).await;
    world.cancel(made.jobs[2]).await;
    world.retry(made.jobs[2], Duration::ZERO).await;
    world.cancel(made.jobs[3]).await;
    world.retry(made.jobs[3], secs(5)).await;
    world.advance(secs(6)).await;
    world.promote().await;
    let found = world.unoffered(epoch, ANY_AGE, A_CLAIM, 10).await;
    assert!(found.iter().all(|segment| segment.line == line));
    assert_eq!(
        jobs_of(&found),
        made.jobs,
        "in the order in which they came back"
    );
}
