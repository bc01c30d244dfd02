//! A session lives as long as it is renewed, and once it is dead it stays so.

use std::collections::BTreeSet;

use leasehold::job::{AttemptOutcome, JobState, SessionId, Verdict};
use leasehold::store::{Attached, NewSession, SessionState};
use uuid::Uuid;

use crate::steps::{SHORT_OF_TTL, TTL, assert_about, failure, jobs_of, minutes, secs, success};
use crate::world::World;

async fn close(world: &World, sessions: &[Attached]) {
    let answer = world.store.close_sessions(sessions.to_vec()).await;
    answer.expect("close answers");
}

async fn renew_all(world: &World, sessions: &[Attached]) -> Vec<bool> {
    let answer = world.store.renew(sessions.to_vec()).await;
    let states = answer.expect("renew answers");
    states.iter().map(|s| *s == SessionState::Alive).collect()
}

on_each_store!(a_session_that_is_renewed_keeps_its_jobs);
async fn a_session_that_is_renewed_keeps_its_jobs(world: World) {
    let (lease, session) = world.running().await;
    for _ in 0..3 {
        world.outlive_grace(&[session]).await;
        let expired = world.expire().await;
        assert_eq!((expired.sessions, expired.jobs), (0, 0));
    }
    let job = world.look(lease.job).await;
    assert_eq!((job.state, job.revision), (JobState::Running, 2));
    let verdict = world.finish(lease, session, success()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
}

on_each_store!(a_session_that_is_not_renewed_loses_its_jobs);
async fn a_session_that_is_not_renewed_loses_its_jobs(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, lapsed) = world.running().await;
    let second = world.lease(world.queued().await, lapsed).await;
    let (kept, alive) = world.running().await;
    world.live_through(SHORT_OF_TTL, &[alive]).await;
    assert_eq!(world.expire().await.jobs, 0, "not before its time");
    world.assert_state(lease.job, JobState::Running).await;

    world
        .live_through(TTL - SHORT_OF_TTL + secs(2), &[alive])
        .await;
    let expired = world.expire().await;
    assert_eq!((expired.sessions, expired.jobs, expired.failed), (1, 2, 0));
    let back: BTreeSet<_> = jobs_of(&expired.segments).into_iter().collect();
    assert_eq!(back, [lease.job, second.job].into());
    let job = world.look(lease.job).await;
    assert_eq!((job.state, job.revision), (JobState::Queued, 3));
    assert_eq!((job.attempt, job.lost_leases, job.failures), (1, 1, 0));
    assert_about(job.run_time, world.now(), "it is due since the loss");
    assert_eq!((job.finish_time, job.last_failure), (None, None));
    let ended = &job.attempts[0];
    assert_eq!((ended.attempt, &*ended.worker), (1, "worker-1"));
    assert_eq!(ended.outcome, AttemptOutcome::LeaseLost);
    assert_about(ended.end_time, world.now(), "the loss");
    world.assert_state(kept.job, JobState::Running).await;

    assert_eq!(world.expire().await.jobs, 0, "it is lost once");
    let again = world.open().await;
    assert_eq!(world.lease(lease.job, again).await.attempt, 2);
}

on_each_store!(a_renewal_counts_from_its_own_time);
async fn a_renewal_counts_from_its_own_time(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, session) = world.running().await;
    for _ in 0..3 {
        world.live_through(SHORT_OF_TTL, &[]).await;
        assert!(world.renew(session).await);
    }
    world.live_through(SHORT_OF_TTL, &[]).await;
    assert_eq!(world.expire().await.jobs, 0);
    world.live_through(TTL - SHORT_OF_TTL + secs(2), &[]).await;
    assert_eq!(jobs_of(&world.expire().await.segments), [lease.job]);
}

on_each_store!(each_session_has_its_own_ttl);
async fn each_session_has_its_own_ttl(world: World) {
    world.outlive_grace(&[]).await;
    let short = world.open_on(world.node, "short", secs(10)).await;
    let long = world.open_on(world.node, "long", minutes(10)).await;
    let brief = world.lease(world.queued().await, short).await;
    let lasting = world.lease(world.queued().await, long).await;
    world.live_through(secs(12), &[]).await;
    assert_eq!(jobs_of(&world.expire().await.segments), [brief.job]);
    world.live_through(secs(60), &[]).await;
    assert_eq!(world.expire().await.jobs, 0);
    assert!(world.renew(long).await);
    world.assert_state(lasting.job, JobState::Running).await;
}

on_each_store!(a_late_renewal_counts_as_long_as_nobody_has_ended_the_session);
async fn a_late_renewal_counts_as_long_as_nobody_has_ended_the_session(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, session) = world.running().await;
    world.live_through(TTL + secs(10), &[]).await;
    assert!(world.renew(session).await, "nobody has taken its jobs");
    assert_eq!(world.expire().await.sessions, 0);
    world.assert_state(lease.job, JobState::Running).await;
    let job = world.queued().await;
    world.lease(job, session).await;
}

on_each_store!(dead_stays_dead);
async fn dead_stays_dead(world: World) {
    world.outlive_grace(&[]).await;
    let lapsed = world.open().await;
    world.live_through(TTL + secs(2), &[]).await;
    assert_eq!(world.expire().await.sessions, 1);
    let closed = world.open().await;
    close(&world, &[closed]).await;
    for _ in 0..3 {
        assert_eq!(renew_all(&world, &[lapsed, closed]).await, [false, false]);
        world.expire().await;
        world.tidy().await;
        world.live_through(secs(2), &[]).await;
    }
}

on_each_store!(a_closed_session_loses_its_jobs_at_once);
async fn a_closed_session_loses_its_jobs_at_once(world: World) {
    let (lease, session) = world.running().await;
    let (kept, other) = world.running().await;
    let done = world.queued().await;
    let ended = world.lease(done, session).await;
    world.finish(ended, session, success()).await;
    let failed = world.queued().await;
    let ended = world.lease(failed, session).await;
    world.finish(ended, session, failure()).await;

    close(&world, &[session]).await;
    assert!(!world.renew(session).await);
    let expired = world.expire().await;
    assert_eq!((expired.jobs, expired.failed), (1, 0));
    assert_eq!(jobs_of(&expired.segments), [lease.job]);
    let job = world.look(lease.job).await;
    assert_eq!((job.state, job.lost_leases), (JobState::Queued, 1));
    world.assert_state(kept.job, JobState::Running).await;
    world.assert_state(done, JobState::Succeeded).await;
    world.assert_state(failed, JobState::Scheduled).await;
    assert!(world.renew(other).await);
}

on_each_store!(a_session_is_closed_only_under_its_present_attach_number);
async fn a_session_is_closed_only_under_its_present_attach_number(world: World) {
    let (lease, session) = world.running().await;
    let unknown = Attached {
        session: SessionId::from_store(Uuid::new_v4()),
        attach: 1,
    };
    for attach in [0, 2] {
        close(&world, &[Attached { attach, ..session }, unknown]).await;
    }
    assert!(world.renew(session).await);
    assert_eq!(world.expire().await.jobs, 0);
    close(&world, &[session, session]).await;
    close(&world, &[session]).await;
    assert_eq!(jobs_of(&world.expire().await.segments), [lease.job]);
    close(&world, &[session]).await;
    assert_eq!(world.expire().await.jobs, 0);
}

on_each_store!(renewals_are_answered_one_by_one);
async fn renewals_are_answered_one_by_one(world: World) {
    let (one, two, closed) = (world.open().await, world.open().await, world.open().await);
    close(&world, &[closed]).await;
    let moved = Attached { attach: 2, ..two };
    let unknown = Attached {
        session: SessionId::from_store(Uuid::new_v4()),
        attach: 1,
    };
    let answer = renew_all(&world, &[closed, one, moved, two, unknown, one]).await;
    assert_eq!(answer, [false, true, false, true, false, true]);
    assert_eq!(renew_all(&world, &[]).await, [false; 0]);
}

on_each_store!(a_thousand_sessions_are_renewed_and_closed_in_one_batch);
async fn a_thousand_sessions_are_renewed_and_closed_in_one_batch(world: World) {
    let mut sessions = Vec::new();
    for _ in 0..1_000 {
        sessions.push(world.open().await);
    }
    sessions.reverse();
    assert_eq!(renew_all(&world, &sessions).await, vec![true; 1_000]);
    close(&world, &sessions[..500]).await;
    let answer = renew_all(&world, &sessions).await;
    let expected: Vec<bool> = (0..1_000).map(|n| n >= 500).collect();
    assert_eq!(answer, expected);
}

on_each_store!(opening_again_in_doubt_is_harmless);
async fn opening_again_in_doubt_is_harmless(world: World) {
    let session = SessionId::of_token(Uuid::new_v4().as_bytes());
    let new = NewSession {
        id: session,
        node: world.node,
        worker: "w".into(),
        sdk: "s".into(),
        ttl: TTL,
    };
    for _ in 0..2 {
        let answer = world.store.open_session(new.clone()).await;
        answer.expect("a session opens");
    }
    let attached = Attached { session, attach: 1 };
    let lease = world.lease(world.queued().await, attached).await;
    close(&world, &[attached]).await;
    let answer = world.store.open_session(new).await;
    answer.expect("open answers");
    assert!(!world.renew(attached).await, "a dead one is not woken");
    assert_eq!(jobs_of(&world.expire().await.segments), [lease.job]);
}

on_each_store!(a_session_ends_while_its_jobs_are_handed_out);
async fn a_session_ends_while_its_jobs_are_handed_out(world: World) {
    // Whatever the order, no job may stay with a session that is dead.
    for _ in 0..6 {
        let jobs = world.queued_many(20).await;
        let session = world.open().await;
        let mut calls = tokio::task::JoinSet::new();
        for job in jobs.clone() {
            let world = world.clone();
            calls.spawn(async move { drop(world.ask(job, session).await) });
        }
        let closing = world.clone();
        calls.spawn(async move { close(&closing, &[session]).await });
        for _ in 0..2 {
            let sweeping = world.clone();
            calls.spawn(async move { drop(sweeping.expire().await) });
        }
        calls.join_all().await;
        world.expire().await;
        for job in jobs {
            let job = world.look(job).await;
            assert_eq!(job.state, JobState::Queued, "{job:?}");
            assert_eq!(job.attempt, job.lost_leases, "{job:?}");
        }
    }
    assert_eq!(world.expire().await.jobs, 0);
}
