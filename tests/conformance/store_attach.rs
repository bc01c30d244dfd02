//! A session moves from stream to stream, and nothing that it has is lost on the way.

use std::time::Duration;

use leasehold::job::{HeldLease, JobState, Lease, NodeId, Outcome, Verdict};
use leasehold::store::{Ask, Attach, Attached, Attaching, Found, Granted, SessionState};
use uuid::Uuid;

use crate::steps::{ANY_AGE, SHORT_OF_TTL, TTL, failure, jobs_of, leased, secs, success};
use crate::world::World;

fn another_node() -> NodeId {
    NodeId(Uuid::new_v4())
}

/// The same session under a later number.
fn later(session: Attached) -> Attached {
    Attached {
        attach: session.attach + 1,
        ..session
    }
}

async fn attach(world: &World, to: Attached, node: NodeId) -> Attaching {
    let answer = world.store.attach(vec![Attach { to, node }]).await;
    answer.expect("attach answers").remove(0)
}

async fn leases(world: &World, session: Attached) -> Option<Vec<HeldLease>> {
    let answer = world.store.leases(vec![session], ANY_AGE).await;
    answer.expect("leases answers").remove(0)
}

async fn lease_list(world: &World, session: Attached) -> Vec<Lease> {
    let held = leases(world, session).await.expect("it is alive");
    let mut leases: Vec<Lease> = held.iter().map(|held| held.lease).collect();
    leases.sort_unstable();
    leases
}

async fn leased_again(world: &World, lease: Lease, by: Attached) -> Found {
    let answer = world.store.leased(vec![(lease, by.session)]).await;
    answer.expect("leased answers").remove(0)
}

async fn renew(world: &World, session: Attached) -> SessionState {
    let answer = world.store.renew(vec![session]).await;
    answer.expect("renew answers").remove(0)
}

on_each_store!(a_session_moves_with_all_its_leases);
async fn a_session_moves_with_all_its_leases(world: World) {
    let (first, session) = world.running().await;
    let second = world.lease(world.queued().await, session).await;
    let done = world.lease(world.queued().await, session).await;
    world.finish(done, session, success()).await;
    let (_, stranger) = world.running().await;
    let moved = later(session);
    let answer = attach(&world, moved, another_node()).await;
    assert_eq!(answer, Attaching::Resumed(TTL));
    let mut expected = [first, second];
    expected.sort_unstable();
    assert_eq!(lease_list(&world, moved).await, expected);
    assert_eq!(lease_list(&world, stranger).await.len(), 1);
    assert_eq!(
        leases(&world, session).await,
        None,
        "the old stream has nothing"
    );
    for lease in expected {
        let verdict = world.finish(lease, moved, success()).await;
        assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
    }
    assert_eq!(leases(&world, moved).await, Some(Vec::new()));
}

on_each_store!(a_lease_says_where_its_job_waited_and_how_long_it_may_run);
async fn a_lease_says_where_its_job_waited_and_how_long_it_may_run(world: World) {
    let bounded = world
        .accept(world.job_with(|d| d.timeout = Some(crate::steps::raw(secs(100)))))
        .await;
    let free = world
        .accept(world.job_with(|d| d.timeout = Some(crate::steps::raw(Duration::ZERO))))
        .await;
    let session = world.open().await;
    let (bounded, free) = (
        world.lease(bounded, session).await,
        world.lease(free, session).await,
    );
    world.advance(secs(40)).await;
    let held = leases(&world, session).await.expect("it is alive");
    let of = |lease| held.iter().find(|h| h.lease == lease).expect("it is held");
    assert_eq!(of(bounded).queue.as_str(), crate::steps::QUEUE);
    let left = of(bounded).time_left.expect("it has a timeout");
    assert!(left <= secs(60) && left > secs(30), "{left:?}");
    assert_eq!(of(free).time_left, None);
    let asked = vec![(bounded.job, session.session), (free.job, session.session)];
    let running = world.store.running(asked).await.expect("running answers");
    assert_eq!(running[1].as_ref().map(|h| h.time_left), Some(None));
    world.advance(secs(100)).await;
    let Found::Job(job) = leased_again(&world, bounded, session).await else {
        panic!("it is held still");
    };
    assert_eq!(job.time_left, Some(Duration::ZERO), "its time is over");
    let Found::Job(job) = leased_again(&world, free, session).await else {
        panic!("it is held still");
    };
    assert_eq!(job.time_left, None);
}

on_each_store!(only_a_higher_number_moves_a_session);
async fn only_a_higher_number_moves_a_session(world: World) {
    let (lease, session) = world.running().await;
    let fifth = Attached {
        attach: 5,
        ..session
    };
    assert!(matches!(
        attach(&world, fifth, world.node).await,
        Attaching::Resumed(_)
    ));
    for number in [0, 1, 4, 5] {
        let late = Attached {
            attach: number,
            ..session
        };
        let answer = attach(&world, late, another_node()).await;
        assert_eq!(answer, Attaching::Superseded, "{number}");
    }
    assert_eq!(lease_list(&world, fifth).await, [lease]);
    assert_eq!(renew(&world, fifth).await, SessionState::Alive);
}

on_each_store!(of_many_streams_the_highest_number_has_the_session);
async fn of_many_streams_the_highest_number_has_the_session(world: World) {
    let (lease, session) = world.running().await;
    let numbered = move |attach| Attached { attach, ..session };
    let mut all = tokio::task::JoinSet::new();
    for number in 2..12 {
        let world = world.clone();
        all.spawn(async move {
            let answer = attach(&world, numbered(number), another_node()).await;
            (number, matches!(answer, Attaching::Resumed(_)))
        });
    }
    let answers = all.join_all().await;
    assert!(answers.contains(&(11, true)), "{answers:?}");
    assert_eq!(lease_list(&world, numbered(11)).await, [lease]);
    for number in 1..11 {
        assert_eq!(renew(&world, numbered(number)).await, SessionState::Moved);
    }

    // In one batch as well.
    let node = world.node;
    let batch = [13, 12].map(|number| Attach {
        to: numbered(number),
        node,
    });
    let answers = world.store.attach(batch.to_vec()).await;
    let answers = answers.expect("attach answers");
    assert_eq!(answers, [Attaching::Resumed(TTL), Attaching::Superseded]);
}

on_each_store!(a_session_that_is_over_does_not_move);
async fn a_session_that_is_over_does_not_move(world: World) {
    let (lease, session) = world.running().await;
    let never = Attached {
        session: leasehold::job::SessionId::from_store(Uuid::new_v4()),
        attach: 2,
    };
    assert_eq!(attach(&world, never, world.node).await, Attaching::Gone);
    let freed = world.lose(session).await;
    assert_eq!(jobs_of(&freed), [lease.job]);
    let answer = attach(&world, later(session), world.node).await;
    assert_eq!(answer, Attaching::Gone);
    assert_eq!(leases(&world, session).await, None);
}

on_each_store!(a_move_renews_and_the_old_number_is_good_for_nothing);
async fn a_move_renews_and_the_old_number_is_good_for_nothing(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, session) = world.running().await;
    world.live_through(SHORT_OF_TTL, &[]).await;
    let moved = later(session);
    attach(&world, moved, another_node()).await;
    world.live_through(SHORT_OF_TTL, &[]).await;
    assert_eq!(world.expire().await.jobs, 0, "it was renewed by the move");
    assert_eq!(renew(&world, session).await, SessionState::Moved);
    let job = world.queued().await;
    let ask = Ask { job, to: session };
    assert_eq!(
        world.grant(vec![ask]).await,
        [Granted::Refused(SessionState::Moved)]
    );
    let closes = world.store.close_sessions(vec![session]).await;
    closes.expect("close answers");
    assert_eq!(world.expire().await.jobs, 0);
    assert_eq!(lease_list(&world, moved).await, [lease]);
}

on_each_store!(a_grant_and_a_move_at_once_lose_no_lease);
async fn a_grant_and_a_move_at_once_lose_no_lease(world: World) {
    for _ in 0..20 {
        let session = world.open().await;
        let jobs = world.queued_many(50).await;
        let to = session;
        let asks: Vec<_> = jobs.into_iter().map(|job| Ask { job, to }).collect();
        let granting = world.clone();
        let grant = tokio::spawn(async move { granting.grant(asks).await });
        let moved = later(session);
        let answer = attach(&world, moved, another_node()).await;
        assert!(matches!(answer, Attaching::Resumed(_)));
        let seen = lease_list(&world, moved).await;
        let answers = grant.await.expect("the grant ends");
        let given = answers.iter().filter(|a| matches!(a, Granted::Lease(_)));
        let mut given: Vec<Lease> = given.map(|a| leased(a).lease).collect();
        given.sort_unstable();
        assert_eq!(
            seen, given,
            "what was given shows, and nothing is given after"
        );
        world.lose(moved).await;
    }
}

on_each_store!(leases_of_nodes_long_left_are_still_the_sessions);
async fn leases_of_nodes_long_left_are_still_the_sessions(world: World) {
    let (first, mut session) = world.running().await;
    let mut expected = vec![first];
    for n in 0..12 {
        session = later(session);
        let node = another_node();
        attach(&world, session, node).await;
        if n % 3 == 0 {
            let asks = vec![Ask {
                job: world.queued().await,
                to: session,
            }];
            let answers = world.store.grant(node, asks).await;
            let answers = answers.expect("grant answers");
            expected.push(leased(&answers[0]).lease);
        }
        world.tidy().await;
    }
    expected.sort_unstable();
    assert_eq!(lease_list(&world, session).await, expected);
    let freed = world.lose(session).await;
    assert_eq!(jobs_of(&freed).len(), expected.len());
}

on_each_store!(jobs_are_read_again_by_their_lease_alone);
async fn jobs_are_read_again_by_their_lease_alone(world: World) {
    let id = world
        .accept(world.job_with(|d| {
            d.headers.insert("trace".into(), "1".into());
        }))
        .await;
    let session = world.open().await;
    let granted = world.ask(id, session).await;
    let lease = leased(&granted).lease;
    let Found::Job(again) = leased_again(&world, lease, session).await else {
        panic!("it is held");
    };
    let mut first = leased(&granted).clone();
    first.time_left = again.time_left;
    assert_eq!(*again, first, "as it was handed out");
    let stranger = world.open().await;
    let older = Lease {
        attempt: lease.attempt + 1,
        ..lease
    };
    for (lease, by) in [(lease, stranger), (older, session)] {
        assert_eq!(leased_again(&world, lease, by).await, Found::NotHeld);
    }
    world.finish(lease, session, success()).await;
    assert_eq!(leased_again(&world, lease, session).await, Found::NotHeld);
}

on_each_store!(large_jobs_are_read_again_bit_by_bit);
async fn large_jobs_are_read_again_bit_by_bit(world: World) {
    let session = world.open().await;
    let mut wanted = Vec::new();
    for _ in 0..20 {
        let id = world
            .accept(world.job_with(|d| {
                d.payload = Some(leasehold::job::Payload {
                    data: vec![7; 1 << 20].into(),
                    ..Default::default()
                });
            }))
            .await;
        wanted.push((world.lease(id, session).await, session.session));
    }
    let mut rounds = 0;
    while !wanted.is_empty() {
        let found = world.store.leased(wanted.clone()).await;
        let found = found.expect("leased answers");
        let jobs = found.iter().filter(|f| matches!(f, Found::Job(_))).count();
        assert!((1..=9).contains(&jobs), "{jobs}");
        wanted = wanted
            .into_iter()
            .zip(found)
            .filter(|(_, f)| *f == Found::Later)
            .map(|(asked, _)| asked)
            .collect();
        rounds += 1;
    }
    assert!(rounds > 1);
}

on_each_store!(a_look_by_job_shows_only_what_runs_for_that_session);
async fn a_look_by_job_shows_only_what_runs_for_that_session(world: World) {
    let (lease, session) = world.running().await;
    let (other, stranger) = world.running().await;
    let queued = world.queued().await;
    let asked = vec![
        (lease.job, session.session),
        (lease.job, stranger.session),
        (queued, session.session),
        (other.job, stranger.session),
    ];
    let found = world.store.running(asked).await.expect("running answers");
    let found: Vec<_> = found.iter().map(|f| f.as_ref().map(|h| h.lease)).collect();
    assert_eq!(found, [Some(lease), None, None, Some(other)]);
    let none = world.store.running(Vec::new()).await;
    assert_eq!(none.expect("running answers"), []);
}

on_each_store!(young_leases_are_left_out_of_a_look_at_old_ones);
async fn young_leases_are_left_out_of_a_look_at_old_ones(world: World) {
    let (old, session) = world.running().await;
    world.advance(secs(20)).await;
    world.lease(world.queued().await, session).await;
    let aged = world.store.leases(vec![session], secs(10)).await;
    let aged = aged.expect("leases answers").remove(0);
    let aged: Vec<_> = aged.expect("it is alive").iter().map(|h| h.lease).collect();
    assert_eq!(aged, [old]);
    assert_eq!(lease_list(&world, session).await.len(), 2);
}

on_each_store!(a_forgotten_lease_is_a_lost_one);
async fn a_forgotten_lease_is_a_lost_one(world: World) {
    let (lease, session) = world.running().await;
    let verdict = world.finish(lease, session, Outcome::Forgotten).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Queued));
    let job = world.look(lease.job).await;
    assert_eq!((job.lost_leases, job.failures, job.releases), (1, 0, 0));
    assert_eq!(job.attempts[0].outcome.name(), "FORGOTTEN");
    assert_eq!(job.attempts[0].failure, None);
    let copy = world.finish(lease, session, Outcome::Forgotten).await;
    assert_eq!(copy, Verdict::Recorded(JobState::Queued));
    // As long as nobody has it since, its work is not thrown away.
    let late = world.finish(lease, session, failure()).await;
    assert!(matches!(late, Verdict::Stale(..)), "{late:?}");
    let verdict = world.finish(lease, session, success()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
}

on_each_store!(a_job_that_is_forgotten_too_often_has_failed);
async fn a_job_that_is_forgotten_too_often_has_failed(world: World) {
    let id = world.queued().await;
    let session = world.open().await;
    for n in 1..=6 {
        let lease = world.lease(id, session).await;
        let verdict = world.finish(lease, session, Outcome::Forgotten).await;
        let expected = match n {
            6 => JobState::Failed,
            _ => JobState::Queued,
        };
        assert_eq!(verdict, Verdict::Recorded(expected));
    }
    let job = world.look(id).await;
    let failure = job.attempts[5].failure.as_ref().expect("it says why");
    assert_eq!(failure.kind, "LEASES_LOST");
    assert_eq!(job.lost_leases, 6);
}

on_each_store!(a_stream_that_the_store_has_forgotten_is_behind_and_moves_once_more);
async fn a_stream_that_the_store_has_forgotten_is_behind_and_moves_once_more(world: World) {
    let (lease, session) = world.running().await;
    // As after a fail-over to a replica that did not have the moves yet.
    let third = later(later(session));
    assert_eq!(renew(&world, third).await, SessionState::Behind);
    let job = world.queued().await;
    let ask = Ask { job, to: third };
    assert_eq!(
        world.grant(vec![ask]).await,
        [Granted::Refused(SessionState::Behind)]
    );
    assert_eq!(leases(&world, third).await, None);
    let answer = attach(&world, third, world.node).await;
    assert!(matches!(answer, Attaching::Resumed(_)), "{answer:?}");
    assert_eq!(renew(&world, third).await, SessionState::Alive);
    assert_eq!(lease_list(&world, third).await, [lease]);
    assert!(matches!(
        world.grant(vec![ask]).await[..],
        [Granted::Lease(_)]
    ));
}
