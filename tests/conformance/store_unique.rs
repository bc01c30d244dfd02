//! Of the jobs of a queue that are not final, at most one has a given unique key, whoever asks and however often.

use std::sync::Arc;
use std::time::Duration;

use leasehold::job::draft::{Draft, RawExpiry, RawStart};
use leasehold::job::limits::LOST_LEASES_MAX;
use leasehold::job::{Job, JobId, JobState, NewJob, UniqueConflict};
use leasehold::store::{Enqueued, Granted, JobFilter, Retried, Store, Unit};
use tokio::task::JoinSet;

use crate::steps::{
    assert_about, assert_recorded, assert_same_moment, created, existed, failure, minutes, raw,
    secs, success,
};
use crate::world::World;

const BOTH: [Unit; 2] = [Unit::Each, Unit::All];
const KEY: &str = "account 7 ☂ '\"{}";

fn unique(world: &World, conflict: UniqueConflict) -> NewJob {
    unique_with(world, KEY, conflict, |_| {})
}

fn unique_with(
    world: &World,
    key: &str,
    conflict: UniqueConflict,
    change: impl FnOnce(&mut Draft),
) -> NewJob {
    world.job_with(|d| {
        d.unique_key = key.into();
        d.unique_conflict = Some(Ok(conflict));
        change(d);
    })
}

use UniqueConflict::{Keep, Refuse, Replace};

impl World {
    async fn one(&self, job: NewJob, unit: Unit) -> Enqueued {
        // Beside one that has nothing to do with it.
        let answer = self.enqueue(vec![self.job(), job], unit).await;
        answer.jobs[1].clone()
    }

    /// Nobody holds the key: a new job gets it. It is cancelled, so that it is free once more.
    async fn assert_free(&self, how: &str) {
        let new = unique(self, Keep);
        let answer = self.one(new.clone(), Unit::Each).await;
        assert!(matches!(answer, Enqueued::Created(_)), "{how}: {answer:?}");
        self.cancel(new.id).await;
    }

    async fn assert_held(&self, by: JobId, how: &str) {
        let answer = self.one(unique(self, Refuse), Unit::Each).await;
        assert_eq!(answer, Enqueued::UniqueConflict(by), "{how}");
    }

    async fn assert_replaced(&self, old: JobId, by: JobId) -> Job {
        let job = self.look(old).await;
        assert_eq!(
            (job.state, job.replaced_by),
            (JobState::Cancelled, Some(by))
        );
        assert_eq!(job.last_failure, None, "it has not failed");
        job
    }
}

on_each_store!(who_finds_the_key_held_gets_the_holder);
async fn who_finds_the_key_held_gets_the_holder(world: World) {
    let first = unique(&world, Keep);
    world.accept(first.clone()).await;
    let shown = world.look(first.id).await;
    assert_eq!(shown.spec.unique_key, first.spec.unique_key);
    for unit in BOTH {
        let second = unique_with(&world, KEY, Keep, |d| d.kind = "other".into());
        let answer = world.enqueue(vec![second.clone()], unit).await;
        assert_eq!(*existed(&answer.jobs[0]), world.basic(first.id).await);
        assert_eq!(answer.segments, [], "there is nothing to offer");
        assert_eq!(world.find(second.id).await, None);
    }
    // The call itself, repeated.
    assert_eq!(
        existed(&world.one(first.clone(), Unit::Each).await).id,
        first.id
    );
}

on_each_store!(who_would_rather_be_refused_is_refused);
async fn who_would_rather_be_refused_is_refused(world: World) {
    let first = world.accept(unique(&world, Refuse)).await;
    let answer = world.one(unique(&world, Refuse), Unit::Each).await;
    assert_eq!(answer, Enqueued::UniqueConflict(first));
    let batch = vec![world.job(), unique(&world, Refuse)];
    let innocent = batch[0].id;
    let answer = world.enqueue(batch, Unit::All).await;
    let refused = Enqueued::UniqueConflict(first);
    assert_eq!(answer.jobs, [Enqueued::NotTried, refused]);
    assert_eq!(world.find(innocent).await, None);
}

on_each_store!(who_replaces_takes_the_key_of_one_that_has_not_begun);
async fn who_replaces_takes_the_key_of_one_that_has_not_begun(world: World) {
    let late = |d: &mut Draft| d.start = RawStart::Delay(raw(minutes(5)));
    let first = world.accept(unique_with(&world, KEY, Keep, late)).await;
    let mut last = first;
    for unit in BOTH {
        for change in [late as fn(&mut Draft), |_: &mut Draft| {}] {
            let new = unique_with(&world, KEY, Replace, change);
            let answer = world.one(new.clone(), unit).await;
            assert_eq!(*created(&answer), world.basic(new.id).await);
            let old = world.assert_replaced(last, new.id).await;
            assert_eq!((old.revision, old.attempt), (2, 0));
            let ended = old.finish_time.expect("it is final");
            assert_same_moment(ended, world.look(new.id).await.create_time, "at once");
            assert_about(
                old.purge_time.expect("it is forgotten some time"),
                ended.after(old.spec.retention),
                "as any other",
            );
            world.assert_held(new.id, "by the new one").await;
            last = new.id;
        }
    }
    let session = world.open().await;
    assert_eq!(world.ask(first, session).await, Granted::NotQueued);
    world.succeed(last).await;
}

on_each_store!(one_that_has_begun_is_not_replaced);
async fn one_that_has_begun_is_not_replaced(world: World) {
    let (first, session) = (unique(&world, Keep), world.open().await);
    world.accept(first.clone()).await;
    let lease = world.lease(first.id, session).await;
    let kept = async |how: &str| {
        for unit in BOTH {
            let answer = world.one(unique(&world, Replace), unit).await;
            assert_eq!(existed(&answer).id, first.id, "{how}");
        }
    };
    kept("it runs").await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    world.assert_state(first.id, JobState::Scheduled).await;
    kept("it waits for its second attempt").await;
    assert_eq!(world.look(first.id).await.replaced_by, None);
    world.advance(minutes(1)).await;
    world.promote().await;
    kept("it is due again").await;
}

on_each_store!(a_unique_key_is_of_its_queue_alone);
async fn a_unique_key_is_of_its_queue_alone(world: World) {
    world.accept(unique(&world, Refuse)).await;
    let elsewhere = |d: &mut Draft| d.queue = "another".into();
    for other in [
        unique_with(&world, KEY, Refuse, elsewhere),
        unique_with(&world, "account 8", Refuse, |_| {}),
        world.job_with(|d| d.idempotency_key = KEY.into()),
    ] {
        world.accept(other).await;
    }
}

on_each_store!(whatever_ends_a_job_frees_its_key);
async fn whatever_ends_a_job_frees_its_key(world: World) {
    let add = async || world.accept(unique(&world, Keep)).await;
    let id = add().await;
    world.assert_held(id, "while it waits").await;
    world.succeed(id).await;
    world.assert_free("success").await;
    world.fail(add().await).await;
    world.assert_free("failure").await;
    world.cancel(add().await).await;
    world.assert_free("cancel").await;

    let (id, session) = (add().await, world.open().await);
    world.lease(id, session).await;
    world.assert_held(id, "while it runs").await;
    world.cancel(id).await;
    world.assert_free("cancel of a running one").await;

    let brief = |d: &mut Draft| d.expiry = Some(RawExpiry::In(raw(minutes(1))));
    let id = world.accept(unique_with(&world, KEY, Keep, brief)).await;
    world.advance(minutes(2)).await;
    world.assert_held(id, "until it is swept").await;
    world.store.expire_jobs(100).await.expect("it answers");
    world.assert_state(id, JobState::Failed).await;
    world.assert_free("expiry").await;

    let (id, session) = (add().await, world.open().await);
    let lease = world.lease(id, session).await;
    world.lose(session).await;
    world.assert_held(id, "when its lease was lost").await;
    assert_recorded(&world.finish(lease, session, success()).await);
    world.assert_free("salvage").await;

    let id = add().await;
    for _ in 0..=LOST_LEASES_MAX {
        world.assert_held(id, "as long as it comes back").await;
        let session = world.open().await;
        world.lease(id, session).await;
        world.lose(session).await;
    }
    world.assert_state(id, JobState::Failed).await;
    world.assert_free("too many lost leases").await;
}

on_each_store!(a_job_that_is_forgotten_has_no_key);
async fn a_job_that_is_forgotten_has_no_key(world: World) {
    let brief = |d: &mut Draft| d.retention = Some(raw(secs(0)));
    let id = world.accept(unique_with(&world, KEY, Keep, brief)).await;
    world.cancel(id).await;
    world.advance(minutes(80)).await;
    assert_eq!(world.retain().await, 1);
    world.assert_free("purge").await;
}

on_each_store!(a_job_comes_back_by_hand_only_while_its_key_is_free);
async fn a_job_comes_back_by_hand_only_while_its_key_is_free(world: World) {
    let cancelled = world.accept(unique(&world, Keep)).await;
    world.cancel(cancelled).await;
    let failed = world.accept(unique(&world, Keep)).await;
    let retried = world.retry(cancelled, Duration::ZERO).await;
    assert_eq!(retried, Retried::KeyHeld(failed));
    world.fail(failed).await;
    let retried = world.retry(cancelled, minutes(5)).await;
    assert!(matches!(retried, Retried::Done(..)), "{retried:?}");
    world
        .assert_held(cancelled, "by the one that came back")
        .await;
    let retried = world.retry(failed, Duration::ZERO).await;
    assert_eq!(retried, Retried::KeyHeld(cancelled));
    // One that was replaced may come back, too, and is what it was before.
    let new = unique(&world, Keep);
    world.cancel(cancelled).await;
    world.accept(new.clone()).await;
    let newer = unique(&world, Replace);
    world.accept(newer.clone()).await;
    world.assert_replaced(new.id, newer.id).await;
    world.succeed(newer.id).await;
    let Retried::Done(job, _) = world.retry(new.id, Duration::ZERO).await else {
        panic!("its key is free");
    };
    assert_eq!((job.state, job.replaced_by), (JobState::Queued, None));
    world.succeed(new.id).await;
}

on_each_store!(of_equal_keys_in_a_batch_the_second_finds_the_first);
async fn of_equal_keys_in_a_batch_the_second_finds_the_first(world: World) {
    for (n, unit) in BOTH.into_iter().enumerate() {
        let key = |k| format!("{n} {k}");
        let of = |k, conflict| unique_with(&world, &key(k), conflict, |_| {});
        let batch = vec![of(1, Replace), world.job(), of(1, Keep)];
        let answer = world.enqueue(batch.clone(), unit).await;
        assert_eq!(created(&answer.jobs[0]).id, batch[0].id);
        assert_eq!(existed(&answer.jobs[2]).id, batch[0].id);
        assert_eq!(world.find(batch[2].id).await, None);

        let batch = vec![of(2, Keep), of(2, Replace), of(3, Keep), of(2, Replace)];
        let answer = world.enqueue(batch.clone(), unit).await;
        for (new, answer) in batch.iter().zip(&answer.jobs) {
            assert_eq!(*created(answer), world.basic(new.id).await, "as it is now");
        }
        world.assert_replaced(batch[0].id, batch[1].id).await;
        world.assert_replaced(batch[1].id, batch[3].id).await;
        world.assert_state(batch[3].id, JobState::Queued).await;
        let offered: Vec<JobId> = answer
            .segments
            .iter()
            .flat_map(|s| s.jobs.clone())
            .collect();
        assert!(!offered.contains(&batch[1].id), "it is never offered");

        let batch = vec![of(4, Refuse), of(4, Refuse)];
        let first = batch[0].id;
        let answer = world.enqueue(batch, unit).await;
        assert_eq!(answer.jobs[1], Enqueued::UniqueConflict(first));
        assert_eq!(world.find(first).await.is_some(), unit == Unit::Each);
    }
}

on_each_store!(what_is_refused_as_a_whole_replaces_nothing);
async fn what_is_refused_as_a_whole_replaces_nothing(world: World) {
    let holder = world.accept(unique(&world, Keep)).await;
    let taken = world.queued().await;
    let other_under_its_id = |job: NewJob| NewJob {
        id: taken,
        fingerprint: [7; 32],
        ..job
    };
    let before = world.look(holder).await;
    let batch = vec![unique(&world, Replace), other_under_its_id(world.job())];
    let answer = world.enqueue(batch, Unit::All).await;
    assert_eq!(answer.jobs, [Enqueued::NotTried, Enqueued::Conflict]);
    assert_eq!(world.look(holder).await, before);
    // Nor does one that is refused itself.
    let refused = other_under_its_id(unique(&world, Replace));
    let answer = world.enqueue(vec![refused], Unit::Each).await;
    assert_eq!(answer.jobs, [Enqueued::Conflict]);
    assert_eq!(world.look(holder).await, before);
}

on_each_store!(a_replacing_call_that_is_repeated_replaces_once);
async fn a_replacing_call_that_is_repeated_replaces_once(world: World) {
    let holder = world.accept(unique(&world, Keep)).await;
    let new = unique(&world, Replace);
    world.accept(new.clone()).await;
    for unit in BOTH {
        let again = world.one(new.clone(), unit).await;
        assert_eq!(existed(&again).id, new.id);
    }
    world.assert_replaced(holder, new.id).await;
    assert_eq!(world.look(new.id).await.revision, 1);
}

/// The jobs of the key that are not final, and all that there are.
async fn holders(world: &World) -> (Vec<JobId>, Vec<Job>) {
    let mut all = world.walk(JobFilter::default(), 500).await;
    all.retain(|job| job.spec.unique_key.is_some());
    let open = all.iter().filter(|job| !job.state.is_final());
    (open.map(|job| job.id).collect(), all)
}

/// Everybody at once, from two nodes.
async fn ask_at_once(world: &World, conflict: UniqueConflict) -> Vec<Enqueued> {
    let nodes: [Arc<dyn Store>; 2] = [world.store.clone(), world.open_again().await];
    let mut asking = JoinSet::new();
    for n in 0..64 {
        let (world, node, unit) = (world.clone(), nodes[n % 2].clone(), BOTH[n / 2 % 2]);
        asking.spawn(async move {
            let batch = vec![world.job(), unique(&world, conflict)];
            let answer = node.enqueue(batch.into(), unit).await;
            answer.expect("enqueue answers").jobs.remove(1)
        });
    }
    asking.join_all().await
}

on_each_store!(whoever_keeps_at_once_gets_one_job);
async fn whoever_keeps_at_once_gets_one_job(world: World) {
    let answers = ask_at_once(&world, Keep).await;
    let (open, all) = holders(&world).await;
    assert_eq!((open.len(), all.len()), (1, 1));
    let mut news = 0;
    for answer in &answers {
        match answer {
            Enqueued::Created(job) => {
                news += 1;
                assert_eq!(job.id, open[0]);
            }
            other => assert_eq!(existed(other).id, open[0]),
        }
    }
    assert_eq!(news, 1);
}

on_each_store!(of_those_who_would_be_refused_one_at_once_is_taken);
async fn of_those_who_would_be_refused_one_at_once_is_taken(world: World) {
    let answers = ask_at_once(&world, Refuse).await;
    let (open, all) = holders(&world).await;
    assert_eq!((open.len(), all.len()), (1, 1));
    let refused = Enqueued::UniqueConflict(open[0]);
    let refusals = answers.iter().filter(|answer| **answer == refused);
    assert_eq!(refusals.count(), 63);
}

on_each_store!(whoever_replaces_at_once_is_taken_and_the_last_one_stays);
async fn whoever_replaces_at_once_is_taken_and_the_last_one_stays(world: World) {
    let answers = ask_at_once(&world, Replace).await;
    let news = answers.iter().filter(|a| matches!(a, Enqueued::Created(_)));
    assert_eq!(news.count(), 64);
    let (open, all) = holders(&world).await;
    assert_eq!((open.len(), all.len()), (1, 64));
    let mut replacing: Vec<JobId> = all.iter().filter_map(|job| job.replaced_by).collect();
    replacing.sort();
    replacing.dedup();
    assert_eq!(replacing.len(), 63, "each was replaced by another");
}

on_each_store!(batches_with_unique_keys_in_any_order_do_not_stop_each_other);
async fn batches_with_unique_keys_in_any_order_do_not_stop_each_other(world: World) {
    let nodes: [Arc<dyn Store>; 2] = [world.store.clone(), world.open_again().await];
    let mut asking = JoinSet::new();
    for n in 0..8 {
        let (world, node) = (world.clone(), nodes[n % 2].clone());
        let conflict = [Keep, Replace][n / 2 % 2];
        asking.spawn(async move {
            for round in 0..15 {
                let of = |k| unique_with(&world, &format!("{round} {k}"), conflict, |_| {});
                let mut batch: Vec<NewJob> = (0..10).map(of).collect();
                if n / 4 == 1 {
                    batch.reverse();
                }
                let unit = BOTH[round % 2];
                let answer = node.enqueue(batch.into(), unit).await;
                for answer in answer.expect("enqueue answers").jobs {
                    let is_taken = matches!(answer, Enqueued::Created(_) | Enqueued::Existed(_));
                    assert!(is_taken, "{answer:?}");
                }
            }
        });
    }
    asking.join_all().await;
    let (open, _) = holders(&world).await;
    assert_eq!(open.len(), 150, "one of each key");
}

on_each_store!(a_job_is_granted_or_replaced_never_both);
async fn a_job_is_granted_or_replaced_never_both(world: World) {
    let session = world.open().await;
    let other = world.open_again().await;
    let (mut granted, mut replaced) = (0, 0);
    for round in 0..40 {
        let key = format!("round {round}");
        let of = |conflict| unique_with(&world, &key, conflict, |_| {});
        let old = world.accept(of(Keep)).await;
        let new = of(Replace);
        let (asked, told) = tokio::join!(
            world.ask(old, session),
            other.enqueue(vec![new.clone()].into(), Unit::Each)
        );
        let told = told.expect("enqueue answers").jobs.remove(0);
        match (asked, told) {
            (Granted::Lease(_), Enqueued::Existed(job)) => {
                granted += 1;
                assert_eq!(job.id, old);
                world.assert_state(old, JobState::Running).await;
                assert_eq!(world.find(new.id).await, None);
            }
            (Granted::NotQueued, Enqueued::Created(_)) => {
                replaced += 1;
                world.assert_replaced(old, new.id).await;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{granted} were granted, {replaced} replaced");
}

on_each_store!(who_comes_back_by_hand_and_who_is_new_never_both_hold_a_key);
async fn who_comes_back_by_hand_and_who_is_new_never_both_hold_a_key(world: World) {
    let other = world.open_again().await;
    for _ in 0..30 {
        let old = world.accept(unique(&world, Keep)).await;
        world.cancel(old).await;
        let new = unique(&world, Keep);
        let (retried, told) = tokio::join!(
            world.retry(old, Duration::ZERO),
            other.enqueue(vec![new.clone()].into(), Unit::Each)
        );
        let told = told.expect("enqueue answers").jobs.remove(0);
        let holder = match (&retried, &told) {
            (Retried::Done(..), Enqueued::Existed(job)) => {
                assert_eq!(job.id, old);
                old
            }
            (Retried::KeyHeld(by), Enqueued::Created(_)) => {
                assert_eq!(*by, new.id);
                new.id
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(holders(&world).await.0, [holder]);
        world.cancel(holder).await;
    }
}
