//! Batches that name the same rows in opposite orders: whoever is second waits, and when the database must choose a
//! victim, no caller hears of it.

use leasehold::job::{JobState, NewJob, Verdict};
use leasehold::store::{Ask, Attach, Attached, Attaching, Enqueued, Granted, SessionState, Unit};

use super::{Gate, Hand, answer, begin, waiting};
use crate::steps::{TTL, assert_recorded, ending, release, success};
use crate::world::World;

async fn results_in_opposite_orders_wait_for_each_other_in_one_direction(world: World) {
    let session = world.open().await;
    let mut endings = Vec::new();
    for job in world.queued_many(20).await {
        endings.push(ending(world.lease(job, session).await, session, success()));
    }
    let back: Vec<_> = endings.iter().rev().cloned().collect();
    let mut gate = Gate::shut(&world, "finishing", "finished", "INSERT", "true").await;
    let one = begin(
        &world,
        |world| async move { world.finish_all(endings).await },
    );
    gate.holds(1).await;
    let other = begin(&world, |world| async move { world.finish_all(back).await });
    waiting(&world, 1).await;
    gate.open().await;
    for told in [answer(one).await, answer(other).await] {
        for verdict in told.verdicts {
            assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
        }
    }
}
on_postgres!(results_in_opposite_orders_wait_for_each_other_in_one_direction);

async fn moves_in_opposite_orders_wait_for_each_other_in_one_direction_and_renewals_do_not_wait(
    world: World,
) {
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(world.open().await);
    }
    let node = world.node;
    let moves = |attach: u64, sessions: &[Attached]| -> Vec<Attach> {
        let to = |s: &Attached| Attach {
            to: Attached { attach, ..*s },
            node,
        };
        sessions.iter().map(to).collect()
    };
    let there = moves(2, &sessions);
    sessions.reverse();
    let back = moves(3, &sessions);
    let mut gate = Gate::shut(&world, "attaching", "sessions", "UPDATE", "true").await;
    let one = begin(&world, |world| async move {
        world.store.attach(there).await.expect("attach answers")
    });
    gate.holds(1).await;
    let other = begin(&world, |world| async move {
        world.store.attach(back).await.expect("attach answers")
    });
    waiting(&world, 1).await;
    let renew = async || {
        let renewed = world.store.renew(sessions.clone()).await;
        renewed.expect("renew answers")
    };
    // Renewals wait for nobody.
    assert_eq!(renew().await, vec![SessionState::Lapsed; 20]);
    gate.open().await;
    assert_eq!(answer(one).await, vec![Attaching::Resumed(TTL); 20]);
    assert_eq!(answer(other).await, vec![Attaching::Resumed(TTL); 20]);
    assert_eq!(renew().await, vec![SessionState::Moved; 20]);
}
on_postgres!(
    moves_in_opposite_orders_wait_for_each_other_in_one_direction_and_renewals_do_not_wait
);

/// By whoever it is: a hand, or a statement that takes long.
async fn a_session_whose_row_is_held_up_holds_up_no_other(world: World) {
    let (held, other) = (world.open().await, world.open().await);
    let mut hand = Hand::of(&world).await;
    let id = held.session.uuid();
    hand.run(&format!(
        "BEGIN; SELECT FROM sessions WHERE id = '{id}' FOR UPDATE"
    ))
    .await;
    let renew = async |sessions: &[Attached]| {
        let renewed = world.store.renew(sessions.to_vec()).await;
        renewed.expect("renew answers")
    };
    let (late, alive) = (SessionState::Lapsed, SessionState::Alive);
    let begun = std::time::Instant::now();
    assert_eq!(renew(&[held, other]).await, [late, alive]);
    // The row is not waited for until the database gives up, which would be an error here.
    assert_eq!(renew(&[held]).await, [late]);
    println!("two renewals beside a held row took {:?}", begun.elapsed());
    hand.run("COMMIT").await;
    assert_eq!(renew(&[held, other]).await, [alive, alive]);
}
on_postgres!(a_session_whose_row_is_held_up_holds_up_no_other);

async fn enqueues_in_opposite_orders_make_each_job_once(world: World) {
    for unit in [Unit::Each, Unit::All] {
        let jobs: Vec<_> = (0..20).map(|_| world.job()).collect();
        let back: Vec<_> = jobs.iter().rev().cloned().collect();
        let last = jobs.iter().map(|job| job.id).max().unwrap();
        let last = format!("NEW.id = '{}'", last.uuid());
        let mut gate = Gate::shut(&world, "enqueueing", "jobs", "INSERT", &last).await;
        let one = begin(&world, move |world| async move {
            world.enqueue(jobs, unit).await
        });
        gate.holds(1).await;
        let other = begin(&world, move |world| async move {
            world.enqueue(back, unit).await
        });
        waiting(&world, 1).await;
        gate.open().await;
        let is_new = |told: &Enqueued| matches!(told, Enqueued::Created(_));
        assert!(answer(one).await.jobs.iter().all(is_new));
        let is_old = |told: &Enqueued| matches!(told, Enqueued::Existed(_));
        assert!(answer(other).await.jobs.iter().all(is_old));
    }
}
on_postgres!(enqueues_in_opposite_orders_make_each_job_once);

/// Two nodes hand the same jobs out to the same two sessions, named in opposite orders: nobody waits for a job.
async fn grants_in_opposite_orders_share_the_jobs(world: World) {
    let jobs = world.queued_many(20).await;
    let (a, b) = (world.open().await, world.open().await);
    let asks: Vec<Ask> = jobs
        .iter()
        .enumerate()
        .map(|(i, job)| Ask {
            job: *job,
            to: if i % 2 == 0 { a } else { b },
        })
        .collect();
    let back: Vec<Ask> = asks.iter().rev().copied().collect();
    let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
    let one = begin(&world, |world| async move { world.grant(asks).await });
    gate.holds(1).await;
    assert!(
        world
            .grant(back)
            .await
            .iter()
            .all(|told| *told == Granted::Locked)
    );
    gate.open().await;
    let told = answer(one).await;
    assert!(told.iter().all(|told| matches!(told, Granted::Lease(_))));
}
on_postgres!(grants_in_opposite_orders_share_the_jobs);

/// No two verbs of the store make one: so a hand does, which insists.
async fn no_deadlock_reaches_a_caller(world: World) {
    let session = world.open().await;
    let mut jobs = world.queued_many(2).await;
    jobs.sort_unstable();
    let mut endings = Vec::new();
    for job in &jobs {
        endings.push(ending(world.lease(*job, session).await, session, release()));
    }
    let mut hand = Hand::of(&world).await;
    let lock = |i: usize| {
        format!(
            "SELECT FROM jobs WHERE id = '{}' FOR UPDATE",
            jobs[i].uuid()
        )
    };
    // By itself: together with BEGIN it would go with the first ROLLBACK.
    hand.run("SET deadlock_timeout = '1h'").await;
    hand.run("BEGIN").await;
    hand.run(&lock(1)).await;
    let finishing = begin(
        &world,
        |world| async move { world.finish_all(endings).await },
    );
    waiting(&world, 1).await;
    // The circle is closed here; the store's statement is the one that gives way, and runs again.
    hand.run(&lock(0)).await;
    hand.run("ROLLBACK").await;
    for verdict in answer(finishing).await.verdicts {
        assert_recorded(&verdict);
    }
    for job in &jobs {
        let job = world.look(*job).await;
        assert_eq!((job.state, job.releases), (JobState::Queued, 1));
    }

    // An enqueue, beside a hand that inserts the same two ids the other way round.
    for unit in [Unit::Each, Unit::All] {
        let new = [world.job(), world.job()];
        let copy = |job: &NewJob| {
            format!(
                "INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', '{}'))).*
                   FROM jobs j WHERE id = '{}'",
                job.id.uuid(),
                jobs[0].uuid()
            )
        };
        hand.run("BEGIN").await;
        hand.run(&copy(&new[1])).await;
        let asked = new.to_vec();
        let enqueueing = begin(&world, move |world| async move {
            world.store.enqueue(asked.into(), unit).await
        });
        waiting(&world, 1).await;
        hand.run(&copy(&new[0])).await;
        hand.run("ROLLBACK").await;
        let told = answer(enqueueing).await;
        let told = told.unwrap_or_else(|e| panic!("{unit:?}: {e}")).jobs;
        let is_new = |told: &Enqueued| matches!(told, Enqueued::Created(_));
        assert!(told.iter().all(is_new), "{told:?}");
    }
}
on_postgres!(no_deadlock_reaches_a_caller);
