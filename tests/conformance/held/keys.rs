//! Unique keys while they go over from one job to another.

use std::time::Duration;

use leasehold::job::{NewJob, UniqueConflict};
use leasehold::store::{Ask, Granted, Retried, Unit};

use super::{Gate, Hand, answer, begin, waiting};
use crate::steps::{created, existed};
use crate::world::World;

fn unique(world: &World, conflict: UniqueConflict) -> NewJob {
    world.job_with(|d| {
        d.unique_key = "account 7".into();
        d.unique_conflict = Some(Ok(conflict));
    })
}

on_postgres!(whoever_comes_while_a_job_is_replaced_finds_the_new_one);
async fn whoever_comes_while_a_job_is_replaced_finds_the_new_one(world: World) {
    let old = world.accept(unique(&world, UniqueConflict::Keep)).await;
    let session = world.open().await;
    // The old one has let go of the key, and the new one is not there yet.
    let mut gate = Gate::shut(&world, "replacing", "finished", "INSERT", "true").await;
    let new = unique(&world, UniqueConflict::Replace);
    let id = new.id;
    let replacing = begin(
        &world,
        |w| async move { w.enqueue(vec![new], Unit::Each).await },
    );
    gate.holds(1).await;
    let asked = world
        .grant(vec![Ask {
            job: old,
            to: session,
        }])
        .await;
    assert_eq!(asked, [Granted::Locked]);
    let keeping = begin(&world, |w| async move {
        let new = unique(&w, UniqueConflict::Keep);
        w.enqueue(vec![new], Unit::Each).await
    });
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(created(&answer(replacing).await.jobs[0]).id, id);
    assert_eq!(existed(&answer(keeping).await.jobs[0]).id, id);
    assert_eq!(world.ask(old, session).await, Granted::NotQueued);
    assert_eq!(world.look(old).await.replaced_by, Some(id));
}

on_postgres!(a_job_does_not_come_back_to_a_key_that_is_just_being_taken);
async fn a_job_does_not_come_back_to_a_key_that_is_just_being_taken(world: World) {
    let old = world.accept(unique(&world, UniqueConflict::Keep)).await;
    world.cancel(old).await;
    let mut gate = Gate::shut(&world, "taking", "backlog", "INSERT", "true").await;
    let new = unique(&world, UniqueConflict::Refuse);
    let id = new.id;
    let taking = begin(
        &world,
        |w| async move { w.enqueue(vec![new], Unit::Each).await },
    );
    gate.holds(1).await;
    let retrying = begin(
        &world,
        |w| async move { w.retry(old, Duration::ZERO).await },
    );
    waiting(&world, 1).await;
    gate.open().await;
    created(&answer(taking).await.jobs[0]);
    assert_eq!(answer(retrying).await, Retried::KeyHeld(id));
}

on_postgres!(a_final_job_that_an_older_node_left_its_key_blocks_nobody);
async fn a_final_job_that_an_older_node_left_its_key_blocks_nobody(world: World) {
    let mut hand = Hand::of(&world).await;
    let retried = world.accept(unique(&world, UniqueConflict::Keep)).await;
    world.cancel(retried).await;
    for (n, conflict) in [
        UniqueConflict::Keep,
        UniqueConflict::Refuse,
        UniqueConflict::Replace,
    ]
    .into_iter()
    .enumerate()
    {
        let old = world.accept(unique(&world, UniqueConflict::Keep)).await;
        world.succeed(old).await;
        let leave = format!("UPDATE jobs SET unique_held = unique_key WHERE id = '{old}'");
        hand.run(&leave).await;
        let new = unique(&world, conflict);
        let id = new.id;
        let unit = [Unit::Each, Unit::All][n % 2];
        let told = world.enqueue(vec![new], unit).await;
        assert_eq!(created(&told.jobs[0]).id, id);
        world.cancel(id).await;
        hand.run(&leave).await;
        let told = world.retry(retried, Duration::ZERO).await;
        assert!(matches!(told, Retried::Done(..)), "{told:?}");
        world.cancel(retried).await;
    }
}
