//! The sweeper's three steps, each held, beside what would keep a session or its job alive.

use leasehold::job::{JobState, StaleReason, Verdict};
use leasehold::store::{Ask, Attach, Attached, Attaching, Granted, SessionState};

use super::{Gate, Hand, answer, begin, waiting};
use crate::steps::{ANY_AGE, TTL, failure, secs, success};
use crate::world::World;

/// Lets the sessions' time pass, with nobody away: in few steps, as what is held meanwhile gives up after seconds.
async fn lapse(world: &World) {
    world.touch().await;
    for _ in 0..8 {
        world.advance(secs(4)).await;
        world.touch().await;
    }
}

async fn sweep(world: World) -> leasehold::store::Expired {
    world.store.expire(100).await.expect("expire answers")
}

async fn renew(world: World, session: Attached) -> SessionState {
    let states = world.store.renew(vec![session]).await;
    states.expect("renew answers").remove(0)
}

async fn attach(world: World, to: Attached) -> Attaching {
    let node = world.node;
    let answers = world.store.attach(vec![Attach { to, node }]).await;
    answers.expect("attach answers").remove(0)
}

const DIES: &str = "NEW.dead_at IS NOT NULL";
const LIVES: &str = "NEW.dead_at IS NULL";

async fn who_comes_back_behind_the_sweepers_mark_is_told_that_it_is_over(world: World) {
    let (lease, session) = world.running().await;
    lapse(&world).await;
    let mut gate = Gate::shut(&world, "marking", "sessions", "UPDATE", DIES).await;
    let sweeping = begin(&world, sweep);
    gate.holds(1).await;
    // Its renewal does not wait, as others would wait with it: it is to be tried again.
    assert_eq!(renew(world.clone(), session).await, SessionState::Lapsed);
    let resuming = begin(&world, move |world| {
        attach(
            world,
            Attached {
                attach: 2,
                ..session
            },
        )
    });
    waiting(&world, 1).await;
    gate.open().await;
    let swept = answer(sweeping).await;
    assert_eq!((swept.sessions, swept.jobs), (1, 1));
    assert_eq!(renew(world.clone(), session).await, SessionState::Dead);
    assert_eq!(answer(resuming).await, Attaching::Gone);
    // What its handler has done all the same is not lost while nobody else has the job.
    let told = world.finish(lease, session, success()).await;
    assert_eq!(told, Verdict::Recorded(JobState::Succeeded));
}
on_postgres!(who_comes_back_behind_the_sweepers_mark_is_told_that_it_is_over);

async fn the_sweeper_passes_by_a_session_that_is_being_renewed(world: World) {
    let (lease, session) = world.running().await;
    lapse(&world).await;
    let mut gate = Gate::shut(&world, "renewing", "sessions", "UPDATE", LIVES).await;
    let renewing = begin(&world, move |world| renew(world, session));
    gate.holds(1).await;
    let swept = sweep(world.clone()).await;
    assert_eq!((swept.sessions, swept.jobs), (0, 0));
    gate.open().await;
    assert_eq!(answer(renewing).await, SessionState::Alive);
    let swept = sweep(world.clone()).await;
    assert_eq!((swept.sessions, swept.jobs), (0, 0));
    world.assert_state(lease.job, JobState::Running).await;
}
on_postgres!(the_sweeper_passes_by_a_session_that_is_being_renewed);

async fn the_sweeper_passes_by_a_session_that_is_being_resumed(world: World) {
    let (lease, session) = world.running().await;
    lapse(&world).await;
    let mut gate = Gate::shut(&world, "resuming", "sessions", "UPDATE", LIVES).await;
    let to = Attached {
        attach: 2,
        ..session
    };
    let resuming = begin(&world, move |world| attach(world, to));
    gate.holds(1).await;
    let swept = sweep(world.clone()).await;
    assert_eq!((swept.sessions, swept.jobs), (0, 0));
    gate.open().await;
    assert_eq!(answer(resuming).await, Attaching::Resumed(TTL));
    let swept = sweep(world.clone()).await;
    assert_eq!((swept.sessions, swept.jobs), (0, 0));
    let told = world.finish(lease, to, success()).await;
    assert_eq!(told, Verdict::Recorded(JobState::Succeeded));
}
on_postgres!(the_sweeper_passes_by_a_session_that_is_being_resumed);

async fn a_session_is_not_deleted_beside_an_uncommitted_grant(world: World) {
    let (job, session) = (world.queued().await, world.open().await);
    let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
    let granting = begin(&world, move |world| async move {
        world.grant(vec![Ask { job, to: session }]).await.remove(0)
    });
    gate.holds(1).await;
    // Its time passes while the grant is written: the sweeper may neither mark it nor drop it.
    lapse(&world).await;
    for _ in 0..2 {
        let swept = sweep(world.clone()).await;
        assert_eq!((swept.sessions, swept.jobs), (0, 0));
        world.tidy().await;
    }
    // And its end waits.
    let closing = begin(&world, move |world| async move {
        world.store.close_sessions(vec![session]).await
    });
    waiting(&world, 1).await;
    gate.open().await;
    assert!(matches!(answer(granting).await, Granted::Lease(_)));
    answer(closing).await.expect("close answers");
    let swept = sweep(world.clone()).await;
    assert_eq!(swept.jobs, 1, "the lease that nobody heard of is found");
    world.assert_state(job, JobState::Queued).await;
    let left = Hand::of(&world)
        .await
        .count("SELECT count(*) FROM sessions")
        .await;
    assert_eq!(left, 0, "and the session goes after it");
}
on_postgres!(a_session_is_not_deleted_beside_an_uncommitted_grant);

async fn a_result_behind_the_sweeper_that_takes_its_job_back_is_saved(world: World) {
    for is_success in [true, false] {
        let (lease, session) = world.running().await;
        world
            .store
            .close_sessions(vec![session])
            .await
            .expect("close answers");
        let mut gate = Gate::shut(&world, "taking_back", "attempts", "INSERT", "true").await;
        let sweeping = begin(&world, sweep);
        gate.holds(1).await;
        let outcome = if is_success { success() } else { failure() };
        let reporting = begin(&world, move |world| async move {
            world.finish(lease, session, outcome).await
        });
        waiting(&world, 1).await;
        gate.open().await;
        assert_eq!(answer(sweeping).await.jobs, 1);
        let (verdict, state) = match is_success {
            true => (Verdict::Recorded(JobState::Succeeded), JobState::Succeeded),
            false => (
                Verdict::Stale(StaleReason::Superseded, JobState::Queued),
                JobState::Queued,
            ),
        };
        assert_eq!(answer(reporting).await, verdict);
        world.assert_state(lease.job, state).await;
    }
}
on_postgres!(a_result_behind_the_sweeper_that_takes_its_job_back_is_saved);

async fn the_sweeper_leaves_a_job_whose_result_is_being_written(world: World) {
    let (lease, session) = world.running().await;
    world
        .store
        .close_sessions(vec![session])
        .await
        .expect("close answers");
    let mut gate = Gate::shut(&world, "finishing", "finished", "INSERT", "true").await;
    let reporting = begin(&world, move |world| async move {
        world.finish(lease, session, success()).await
    });
    gate.holds(1).await;
    assert_eq!(sweep(world.clone()).await.jobs, 0);
    gate.open().await;
    assert_eq!(
        answer(reporting).await,
        Verdict::Recorded(JobState::Succeeded)
    );
    assert_eq!(sweep(world.clone()).await.jobs, 0);
    let job = world.look(lease.job).await;
    assert_eq!((job.lost_leases, job.state), (0, JobState::Succeeded));
}
on_postgres!(the_sweeper_leaves_a_job_whose_result_is_being_written);

/// A lost lease, whose late success and whose next grant meet.
async fn of_a_late_success_and_the_next_grant_one_wins_and_the_other_is_told(world: World) {
    // The success first: the hint must stay, as nothing is known.
    let (lease, session) = world.running().await;
    world.lose(session).await;
    let next = world.open().await;
    let mut gate = Gate::shut(&world, "finishing", "finished", "INSERT", "true").await;
    let saving = begin(&world, move |world| async move {
        world.finish(lease, session, success()).await
    });
    gate.holds(1).await;
    let ask = || {
        vec![Ask {
            job: lease.job,
            to: next,
        }]
    };
    assert_eq!(world.grant(ask()).await, [Granted::Locked]);
    gate.open().await;
    assert_eq!(answer(saving).await, Verdict::Recorded(JobState::Succeeded));
    assert_eq!(world.grant(ask()).await, [Granted::NotQueued]);

    // The grant first.
    let (lease, session) = world.running().await;
    world.lose(session).await;
    let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
    let job = lease.job;
    let granting = begin(&world, move |world| async move {
        world.grant(vec![Ask { job, to: next }]).await.remove(0)
    });
    gate.holds(1).await;
    let late = begin(&world, move |world| async move {
        world.finish(lease, session, success()).await
    });
    waiting(&world, 1).await;
    gate.open().await;
    assert!(matches!(answer(granting).await, Granted::Lease(_)));
    let stale = Verdict::Stale(StaleReason::Superseded, JobState::Running);
    assert_eq!(answer(late).await, stale);
}
on_postgres!(of_a_late_success_and_the_next_grant_one_wins_and_the_other_is_told);

/// The database's clock goes back by an hour, and everybody gets one TTL of grace; after that, nobody has an hour more.
async fn a_clock_that_goes_back_loses_no_lease_and_keeps_none_of_the_dead(world: World) {
    world.outlive_grace(&[]).await;
    let (lost, dead) = world.running().await;
    let (kept, alive) = world.running().await;
    Hand::of(&world)
        .await
        .run("UPDATE test_shift SET shift = shift - interval '1 hour'")
        .await;
    world.touch().await;
    // The leases of a session that moves are known whatever the clock says.
    let to = Attached { attach: 2, ..alive };
    assert_eq!(attach(world.clone(), to).await, Attaching::Resumed(TTL));
    let leases = world.store.leases(vec![to], ANY_AGE).await;
    let leases = leases.expect("leases answers").remove(0);
    let leases = leases.expect("it is its");
    assert_eq!(
        leases.iter().map(|h| h.lease).collect::<Vec<_>>(),
        [kept],
        "granted in what is the future now"
    );
    assert_eq!(sweep(world.clone()).await.sessions, 0, "a time of grace");
    world.live_through(2 * TTL, &[to]).await;
    let swept = sweep(world.clone()).await;
    assert_eq!((swept.sessions, swept.jobs), (1, 1));
    world.assert_state(lost.job, JobState::Queued).await;
    world.assert_state(kept.job, JobState::Running).await;
    assert!(!world.renew(dead).await);
}
on_postgres!(a_clock_that_goes_back_loses_no_lease_and_keeps_none_of_the_dead);
