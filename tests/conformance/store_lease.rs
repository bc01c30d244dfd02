//! A lease is exclusive, goes to a living session only, and its attempt only grows.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::job::draft::RawStart;
use leasehold::job::{JobId, JobState, Lease, Priority, Verdict};
use leasehold::store::{Ask, Attached, Granted, SessionState};
use uuid::Uuid;

use crate::steps::{
    TTL, assert_about, ending, failure, leased, minutes, raw, release, secs, success, text,
};
use crate::world::World;

on_each_store!(a_queued_job_is_handed_out_whole);
async fn a_queued_job_is_handed_out_whole(world: World) {
    let new = world.job_with(|d| {
        d.queue = "mails".into();
        d.kind = "send".into();
        d.payload = Some(text("to you"));
        d.headers = [("traceparent".to_owned(), "00-abc".to_owned())].into();
        d.priority = Some(Ok(Priority::Low));
        d.max_attempts = 3;
        d.timeout = Some(raw(secs(90)));
    });
    let id = world.accept(new.clone()).await;
    world.advance(secs(20)).await;
    let session = world.open_on(world.node, "wörker 'one'", TTL).await;
    let answer = world.ask(id, session).await;
    let job = leased(&answer);

    assert_eq!(
        job.lease,
        Lease {
            job: id,
            attempt: 1
        }
    );
    assert_eq!((&job.queue, &job.kind), (&new.spec.queue, &new.spec.kind));
    assert_eq!(job.payload, new.payload);
    assert_eq!(job.headers, new.spec.headers);
    assert_eq!(job.priority, Priority::Low);
    assert_eq!((job.failures, job.max_attempts), (0, 3));
    assert_eq!((job.lost_leases, job.releases), (0, 0));
    let left = job.time_left.expect("it has a timeout");
    assert!(left <= secs(90) && left > secs(80), "{left:?}");
    assert!(
        job.waited >= secs(20) && job.waited < secs(30),
        "{:?}",
        job.waited
    );

    let job = world.look(id).await;
    assert_eq!((job.state, job.attempt), (JobState::Running, 1));
    assert_eq!(job.revision, 2);
    assert_eq!(job.worker, "wörker 'one'");
    assert_about(job.start_time.expect("it started"), world.now(), "start");
    assert_eq!(job.attempts, [], "an attempt is history when it has ended");
}

on_each_store!(a_job_without_timeout_has_all_the_time);
async fn a_job_without_timeout_has_all_the_time(world: World) {
    let new = world.job_with(|d| d.timeout = Some(raw(secs(0))));
    let id = world.accept(new).await;
    let answer = world.ask(id, world.open().await).await;
    assert_eq!(leased(&answer).time_left, None);
}

on_each_store!(only_a_queued_job_is_handed_out);
async fn only_a_queued_job_is_handed_out(world: World) {
    let session = world.open().await;
    let (running, _) = world.running().await;
    let succeeded = world.queued().await;
    world.succeed(succeeded).await;
    let failed = world.queued().await;
    world.fail(failed).await;
    let cancelled = world.queued().await;
    world.cancel(cancelled).await;
    let scheduled = world
        .accept(world.job_with(|d| d.start = RawStart::Delay(raw(minutes(1)))))
        .await;
    let nobody = world.fresh_id();
    for job in [running.job, succeeded, failed, cancelled, scheduled, nobody] {
        assert_eq!(world.ask(job, session).await, Granted::NotQueued, "{job}");
    }
    assert_eq!(world.look(running.job).await.attempt, 1);
}

on_each_store!(one_job_asked_for_twice_in_a_batch_is_leased_once);
async fn one_job_asked_for_twice_in_a_batch_is_leased_once(world: World) {
    let job = world.queued().await;
    let (one, two) = (world.open().await, world.open().await);
    let asks = [one, two, one].map(|to| Ask { job, to }).to_vec();
    let answers = world.grant(asks).await;
    let leases = answers
        .iter()
        .filter(|a| matches!(a, Granted::Lease(_)))
        .count();
    assert_eq!(leases, 1, "{answers:?}");
    assert_eq!(world.look(job).await.attempt, 1);
}

on_each_store!(a_batch_of_asks_is_answered_one_by_one);
async fn a_batch_of_asks_is_answered_one_by_one(world: World) {
    let jobs = world.queued_many(20).await;
    let (alive, dead) = (world.open().await, world.open().await);
    world.lose(dead).await;
    let taken = world.queued().await;
    world.lease(taken, alive).await;
    let mut asks: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(n, job)| Ask {
            job: *job,
            to: if n % 2 == 0 { alive } else { dead },
        })
        .collect();
    asks.insert(
        7,
        Ask {
            job: taken,
            to: alive,
        },
    );
    let answers = world.grant(asks.clone()).await;
    for (ask, answer) in asks.iter().zip(&answers) {
        match (ask.job == taken, ask.to == dead) {
            (true, _) => assert_eq!(*answer, Granted::NotQueued),
            (_, true) => assert_eq!(*answer, Granted::Refused(SessionState::Dead)),
            _ => assert_eq!(leased(answer).lease.job, ask.job),
        }
    }
    for ask in asks.iter().filter(|a| a.to == dead) {
        let job = world.look(ask.job).await;
        assert_eq!(
            (job.state, job.attempt, job.revision),
            (JobState::Queued, 0, 1)
        );
    }
}

on_each_store!(a_full_batch_is_handed_out_to_many_sessions);
async fn a_full_batch_is_handed_out_to_many_sessions(world: World) {
    let jobs = world.queued_many(1_000).await;
    let mut sessions = Vec::new();
    for _ in 0..50 {
        sessions.push(world.open().await);
    }
    let asks: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(n, job)| Ask {
            job: *job,
            to: sessions[n % 50],
        })
        .collect();
    let answers = world.grant(asks.clone()).await;
    let endings: Vec<_> = answers
        .iter()
        .zip(&asks)
        .map(|(answer, ask)| ending(leased(answer).lease, ask.to, success()))
        .collect();
    let answer = world.finish_all(endings).await;
    assert_eq!(
        answer.verdicts,
        vec![Verdict::Recorded(JobState::Succeeded); 1_000]
    );
}

on_each_store!(a_lease_is_exclusive);
async fn a_lease_is_exclusive(world: World) {
    let jobs = world.queued_many(200).await;
    let mut takers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (world, mut jobs) = (world.clone(), jobs.clone());
        jobs.rotate_left(n * 25);
        takers.spawn(async move {
            let session = world.open().await;
            take_all(&world, &jobs, session).await
        });
    }
    let leases: Vec<_> = takers.join_all().await.into_iter().flatten().collect();
    assert_eq!(leases.len(), 200, "each job is leased once");
    let distinct: BTreeSet<_> = leases.iter().map(|l| l.job).collect();
    assert_eq!(distinct, jobs.iter().copied().collect());
    assert!(leases.iter().all(|l| l.attempt == 1));
}

/// Asks for every job until each is known to be leased, by this session or another.
async fn take_all(world: &World, jobs: &[JobId], to: Attached) -> Vec<Lease> {
    let mut leases = Vec::new();
    let mut open: Vec<JobId> = jobs.to_vec();
    for _ in 0..10_000 {
        let mut locked = Vec::new();
        for chunk in open.chunks(30) {
            let asks = chunk.iter().map(|job| Ask { job: *job, to }).collect();
            for (job, answer) in chunk.iter().zip(world.grant(asks).await) {
                match answer {
                    Granted::Lease(job) => leases.push(job.lease),
                    Granted::NotQueued => {}
                    Granted::Locked => locked.push(*job),
                    Granted::Refused(_) => panic!("the session is alive"),
                }
            }
        }
        if locked.is_empty() {
            return leases;
        }
        open = locked;
        tokio::task::yield_now().await;
    }
    panic!("{} jobs stay locked", open.len());
}

on_each_store!(each_attempt_is_leased_once_and_they_only_grow);
async fn each_attempt_is_leased_once_and_they_only_grow(world: World) {
    const ROUNDS: u32 = 6;
    let jobs = world.queued_many(30).await;
    let mut takers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (world, jobs) = (world.clone(), jobs.clone());
        takers.spawn(async move {
            let mut leases = Vec::new();
            let mut session = world.open().await;
            for _ in 0..ROUNDS {
                let got = take_all(&world, &jobs, session).await;
                // Half are lost with the session, so that others get them at once.
                leases.extend(got);
                world.lose(session).await;
                session = world.open().await;
            }
            leases
        });
    }
    let leases: Vec<_> = takers.join_all().await.into_iter().flatten().collect();
    let distinct: BTreeSet<_> = leases.iter().copied().collect();
    assert_eq!(distinct.len(), leases.len(), "no attempt is leased twice");
    let mut newest: BTreeMap<JobId, u32> = BTreeMap::new();
    for lease in &leases {
        let attempt = newest.entry(lease.job).or_default();
        *attempt = (*attempt).max(lease.attempt);
    }
    for job in jobs {
        let given = leases.iter().filter(|l| l.job == job).count() as u32;
        let attempt = newest.get(&job).copied().unwrap_or(0);
        assert_eq!(attempt, given, "attempts of {job} are 1, 2, 3 ...");
        assert_eq!(world.look(job).await.attempt, attempt);
    }
}

on_each_store!(a_dead_session_gets_nothing);
async fn a_dead_session_gets_nothing(world: World) {
    let job = world.queued().await;
    let closed = world.open().await;
    world
        .store
        .close_sessions(vec![closed])
        .await
        .expect("close answers");
    refused(&world, job, closed, SessionState::Dead).await;
    world.expire().await;
    refused(&world, job, closed, SessionState::Dead).await;

    let unknown = Attached {
        session: leasehold::job::SessionId::from_store(Uuid::new_v4()),
        attach: 1,
    };
    refused(&world, job, unknown, SessionState::Dead).await;

    world.outlive_grace(&[]).await;
    let lapsed = world.open().await;
    world.live_through(TTL + secs(2), &[]).await;
    refused(&world, job, lapsed, SessionState::Lapsed).await;
    world.expire().await;
    refused(&world, job, lapsed, SessionState::Dead).await;
}

on_each_store!(a_session_whose_time_is_over_gets_jobs_again_once_it_is_renewed);
async fn a_session_whose_time_is_over_gets_jobs_again_once_it_is_renewed(world: World) {
    let job = world.queued().await;
    let session = world.open().await;
    // As in an outage: nobody was there to sweep it, nor to renew it.
    world.advance(2 * TTL).await;
    refused(&world, job, session, SessionState::Lapsed).await;
    assert!(world.renew(session).await);
    world.lease(job, session).await;
}

on_each_store!(a_session_gets_jobs_only_under_its_present_attach_number);
async fn a_session_gets_jobs_only_under_its_present_attach_number(world: World) {
    let job = world.queued().await;
    let session = world.open().await;
    let states = [
        (0, SessionState::Moved),
        (2, SessionState::Behind),
        (7, SessionState::Behind),
    ];
    for (attach, state) in states {
        let another = Attached { attach, ..session };
        refused(&world, job, another, state).await;
    }
    world.lease(job, session).await;
}

async fn refused(world: &World, job: JobId, to: Attached, state: SessionState) {
    assert_eq!(world.ask(job, to).await, Granted::Refused(state));
    let job = world.look(job).await;
    assert_eq!((job.state, job.attempt), (JobState::Queued, 0), "{state:?}");
}

on_each_store!(an_attempt_is_never_given_back);
async fn an_attempt_is_never_given_back(world: World) {
    let id = world.accept(world.job_with(|d| d.max_attempts = 100)).await;
    let mut expected = 0;
    for outcome in [failure(), release(), failure()] {
        let session = world.open().await;
        let lease = world.lease(id, session).await;
        expected += 1;
        assert_eq!(lease.attempt, expected);
        world.finish(lease, session, outcome).await;
        world.advance(minutes(60)).await;
        world.promote().await;
    }
    let session = world.open().await;
    expected += 1;
    assert_eq!(world.lease(id, session).await.attempt, expected);
    world.lose(session).await;
    let session = world.open().await;
    expected += 1;
    assert_eq!(world.lease(id, session).await.attempt, expected);
    world.cancel(id).await;
    world.retry(id, secs(0)).await;
    let session = world.open().await;
    expected += 1;
    assert_eq!(world.lease(id, session).await.attempt, expected);
    assert_eq!(world.look(id).await.attempt, expected);
}

on_each_store!(grants_and_renewals_of_the_same_sessions_do_not_hinder_each_other);
async fn grants_and_renewals_of_the_same_sessions_do_not_hinder_each_other(world: World) {
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(world.open().await);
    }
    let mut work = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (world, sessions) = (world.clone(), sessions.clone());
        work.spawn(async move {
            for round in 0..10 {
                let jobs = world.queued_many(20).await;
                let asks: Vec<_> = jobs
                    .iter()
                    .enumerate()
                    .map(|(i, job)| Ask {
                        job: *job,
                        to: sessions[(i + n + round) % 10],
                    })
                    .collect();
                let answers = world.grant(asks.clone()).await;
                let endings = answers
                    .iter()
                    .zip(&asks)
                    .map(|(answer, ask)| ending(leased(answer).lease, ask.to, success()))
                    .collect();
                let verdicts = world.finish_all(endings).await.verdicts;
                assert_eq!(verdicts, vec![Verdict::Recorded(JobState::Succeeded); 20]);
            }
        });
    }
    // As by two nodes: a session is renewed by the one that has its stream.
    for sessions in sessions.chunks(5) {
        let (world, sessions) = (world.clone(), sessions.to_vec());
        work.spawn(async move {
            for _ in 0..20 {
                let alive = world.store.renew(sessions.clone()).await;
                assert_eq!(alive.expect("renew answers"), [SessionState::Alive; 5]);
            }
        });
    }
    work.join_all().await;
}
