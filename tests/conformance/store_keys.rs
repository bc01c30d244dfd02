//! One idempotency key of a queue is one job, whoever asks and however often, for as long as the job's row is there.

use std::collections::BTreeSet;

use leasehold::job::draft::{Draft, RawStart};
use leasehold::job::limits::{ID_AGE_MAX, SPAN_MAX};
use leasehold::job::time::micros;
use leasehold::job::{JobId, NewJob, Timestamp};
use leasehold::store::{Enqueued, Unit};
use tokio::task::JoinSet;

use crate::steps::{created, existed, minutes, raw, raw_time, secs};
use crate::world::World;

const BOTH: [Unit; 2] = [Unit::Each, Unit::All];

fn keyed(world: &World, key: &str) -> NewJob {
    keyed_with(world, key, |_| {})
}

fn keyed_with(world: &World, key: &str, change: impl FnOnce(&mut Draft)) -> NewJob {
    world.job_with(|d| {
        d.idempotency_key = key.into();
        change(d);
    })
}

on_each_store!(the_same_request_with_the_same_key_is_the_same_job);
async fn the_same_request_with_the_same_key_is_the_same_job(world: World) {
    let first = keyed(&world, "order 7 ☂ '\"{}");
    world.accept(first.clone()).await;
    assert_eq!(
        world.look(first.id).await.idempotency_key,
        first.idempotency_key,
        "it is shown"
    );
    for unit in BOTH {
        let traced = keyed_with(&world, "order 7 ☂ '\"{}", |d| {
            d.headers.insert("traceparent".into(), "another".into());
        });
        let answer = world.enqueue(vec![traced.clone()], unit).await;
        assert_eq!(existed(&answer.jobs[0]).id, first.id);
        assert_eq!(answer.segments, [], "there is nothing new to offer");
        assert_eq!(world.find(traced.id).await, None, "no second job");
    }
    // The call itself, repeated.
    let answer = world.enqueue(vec![first.clone()], Unit::Each).await;
    assert_eq!(existed(&answer.jobs[0]).id, first.id);
}

on_each_store!(another_request_with_the_same_key_is_refused);
async fn another_request_with_the_same_key_is_refused(world: World) {
    let first = keyed(&world, "k");
    world.accept(first.clone()).await;
    let other = || keyed_with(&world, "k", |d| d.kind = "other".into());
    let answer = world.enqueue(vec![other(), world.job()], Unit::All).await;
    assert_eq!(
        answer.jobs,
        [Enqueued::KeyConflict(first.id), Enqueued::NotTried]
    );
    let innocent = world.job();
    let answer = world
        .enqueue(vec![other(), innocent.clone()], Unit::Each)
        .await;
    assert_eq!(answer.jobs[0], Enqueued::KeyConflict(first.id));
    assert_eq!(created(&answer.jobs[1]).id, innocent.id);
}

on_each_store!(a_key_is_of_its_queue_alone);
async fn a_key_is_of_its_queue_alone(world: World) {
    world.accept(keyed(&world, "k")).await;
    world
        .accept(keyed_with(&world, "k", |d| d.queue = "another".into()))
        .await;
    world.accept(keyed(&world, "K")).await;
    world.accept(keyed(&world, "k ")).await;
}

on_each_store!(equal_keys_in_a_batch_are_one_job);
async fn equal_keys_in_a_batch_are_one_job(world: World) {
    for (n, unit) in BOTH.into_iter().enumerate() {
        let key = format!("batch {n}");
        let [first, second] = [keyed(&world, &key), keyed(&world, &key)];
        let batch = vec![world.job(), first.clone(), second.clone(), first.clone()];
        let answer = world.enqueue(batch, unit).await;
        created(&answer.jobs[0]);
        assert_eq!(created(&answer.jobs[1]).id, first.id);
        assert_eq!(existed(&answer.jobs[2]).id, first.id);
        assert_eq!(existed(&answer.jobs[3]).id, first.id);
        assert_eq!(world.find(second.id).await, None);
    }
    let batch = vec![
        keyed(&world, "two"),
        keyed_with(&world, "two", |d| d.kind = "other".into()),
    ];
    let first = batch[0].id;
    let answer = world.enqueue(batch, Unit::All).await;
    assert_eq!(
        answer.jobs,
        [Enqueued::NotTried, Enqueued::KeyConflict(first)]
    );
    assert_eq!(world.find(first).await, None);
}

on_each_store!(the_first_of_a_key_that_is_refused_is_in_nobody_s_way);
async fn the_first_of_a_key_that_is_refused_is_in_nobody_s_way(world: World) {
    let taken = world.job();
    world.accept(taken.clone()).await;
    let long_ago = ID_AGE_MAX + secs(60);
    let before = Timestamp(world.now().0 - micros(long_ago));
    let old = NewJob {
        id: world.id_at(before),
        ..keyed(&world, "k")
    };
    let of_another = NewJob {
        id: taken.id,
        ..keyed(&world, "k")
    };
    let far = world.now().after(SPAN_MAX + minutes(1));
    let far = keyed_with(&world, "k", |d| d.start = RawStart::At(raw_time(far)));
    let good = keyed(&world, "k");
    let batch = vec![old.clone(), of_another, far, old, good.clone()];
    let answer = world.enqueue(batch, Unit::Each).await;
    assert_eq!(
        answer.jobs[..4],
        [
            Enqueued::IdOutOfTime,
            Enqueued::Conflict,
            Enqueued::StartTooFar,
            Enqueued::IdOutOfTime
        ]
    );
    assert_eq!(created(&answer.jobs[4]).id, good.id);
}

on_each_store!(a_key_belongs_to_its_id);
async fn a_key_belongs_to_its_id(world: World) {
    let first = keyed(&world, "one");
    world.accept(first.clone()).await;
    for key in ["two", ""] {
        let other = NewJob {
            id: first.id,
            ..keyed(&world, key)
        };
        let answer = world.enqueue(vec![other], Unit::Each).await;
        assert_eq!(answer.jobs, [Enqueued::Conflict], "{key:?}");
    }
}

on_each_store!(a_key_is_free_again_when_its_job_is_forgotten);
async fn a_key_is_free_again_when_its_job_is_forgotten(world: World) {
    let brief = |d: &mut Draft| d.retention = Some(raw(secs(0)));
    let first = keyed_with(&world, "k", brief);
    world.accept(first.clone()).await;
    world.cancel(first.id).await;
    let again = world
        .enqueue(vec![keyed_with(&world, "k", brief)], Unit::Each)
        .await;
    assert_eq!(
        existed(&again.jobs[0]).id,
        first.id,
        "also when it is final"
    );
    world.advance(minutes(80)).await;
    assert_eq!(world.retain().await, 1);
    let second = keyed_with(&world, "k", brief);
    assert_eq!(world.accept(second.clone()).await, second.id);
}

on_each_store!(whoever_asks_at_once_with_one_key_gets_one_job);
async fn whoever_asks_at_once_with_one_key_gets_one_job(world: World) {
    let mut asking = JoinSet::new();
    for n in 0..64 {
        let (world, unit) = (world.clone(), BOTH[n % 2]);
        asking.spawn(async move {
            let new = keyed(&world, "all at once");
            world.enqueue(vec![world.job(), new], unit).await
        });
    }
    let answers = asking.join_all().await;
    let mut news = 0;
    let ids: BTreeSet<JobId> = answers
        .iter()
        .map(|answer| match &answer.jobs[1] {
            Enqueued::Created(job) => {
                news += 1;
                job.id
            }
            other => existed(other).id,
        })
        .collect();
    assert_eq!((ids.len(), news), (1, 1));
}

on_each_store!(batches_with_the_same_keys_in_any_order_do_not_stop_each_other);
async fn batches_with_the_same_keys_in_any_order_do_not_stop_each_other(world: World) {
    let mut asking = JoinSet::new();
    for n in 0..8 {
        let world = world.clone();
        asking.spawn(async move {
            for round in 0..20 {
                let mut batch: Vec<NewJob> = (0..20)
                    .map(|k| keyed(&world, &format!("{round} {k}")))
                    .collect();
                if n % 2 == 1 {
                    batch.reverse();
                }
                let answer = world.enqueue(batch, BOTH[n / 2 % 2]).await;
                for answer in &answer.jobs {
                    assert!(
                        matches!(answer, Enqueued::Created(_) | Enqueued::Existed(_)),
                        "{answer:?}"
                    );
                }
            }
        });
    }
    asking.join_all().await;
}
