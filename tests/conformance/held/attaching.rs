//! A session that moves to another stream, beside what its old stream has under way.

use leasehold::job::{JobId, JobState, Lease, NodeId, Progress, SessionId, Verdict};
use leasehold::store::{Ask, Attach, Attached, Attaching, Granted, Report, SessionState};
use uuid::Uuid;

use super::{Gate, Hand, answer, begin, waiting};
use crate::steps::{ANY_AGE, TTL, leased, release, success};
use crate::world::World;

fn next(old: Attached, attach: u64) -> Attached {
    Attached { attach, ..old }
}

async fn attach_on(world: World, to: Attached, node: NodeId) -> Attaching {
    let answers = world.store.attach(vec![Attach { to, node }]).await;
    answers.expect("attach answers").remove(0)
}

async fn attach(world: World, to: Attached) -> Attaching {
    attach_on(world, to, NodeId(Uuid::new_v4())).await
}

async fn grant(world: World, job: JobId, to: Attached) -> Granted {
    world.grant(vec![Ask { job, to }]).await.remove(0)
}

async fn leases(world: &World, of: Attached) -> Vec<Lease> {
    let leases = world.store.leases(vec![of], ANY_AGE).await;
    let leases = leases.expect("leases answers").remove(0);
    let mut leases: Vec<Lease> = leases.expect("it is its").iter().map(|h| h.lease).collect();
    leases.sort_unstable();
    leases
}

async fn is_open(world: &World, session: SessionId) -> bool {
    let sessions = format!(
        "SELECT count(*) FROM sessions WHERE id = '{}'",
        session.uuid()
    );
    Hand::of(world).await.count(&sessions).await == 1
}

async fn an_attach_waits_for_a_grant_to_the_old_stream_and_then_knows_of_it(world: World) {
    let (job, old) = (world.queued().await, world.open().await);
    let mut gate = Gate::shut(&world, "granting", "grants", "INSERT", "true").await;
    let granting = begin(&world, |world| grant(world, job, old));
    gate.holds(1).await;
    let new = next(old, 2);
    let attaching = begin(&world, |world| attach(world, new));
    waiting(&world, 1).await;
    world.assert_state(job, JobState::Queued).await;
    gate.open().await;
    let lease = leased(&answer(granting).await).lease;
    assert_eq!(answer(attaching).await, Attaching::Resumed(TTL));
    assert_eq!(leases(&world, new).await, [lease]);
    let told = world.finish(lease, new, success()).await;
    assert_eq!(told, Verdict::Recorded(JobState::Succeeded));
}
on_postgres!(an_attach_waits_for_a_grant_to_the_old_stream_and_then_knows_of_it);

async fn a_grant_behind_an_attach_is_refused_and_its_job_stays_in_the_line(world: World) {
    let (job, old) = (world.queued().await, world.open().await);
    let mut gate = Gate::shut(&world, "attaching", "sessions", "UPDATE", "true").await;
    let new = next(old, 2);
    let attaching = begin(&world, |world| attach(world, new));
    gate.holds(1).await;
    let granting = begin(&world, |world| grant(world, job, old));
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(answer(attaching).await, Attaching::Resumed(TTL));
    assert_eq!(
        answer(granting).await,
        Granted::Refused(SessionState::Moved)
    );
    assert!(leases(&world, new).await.is_empty());
    assert_eq!(world.lease(job, new).await.attempt, 1);
}
on_postgres!(a_grant_behind_an_attach_is_refused_and_its_job_stays_in_the_line);

/// The late one may have the lower number and come last, or be the first of two.
async fn a_late_hello_loses_whichever_of_the_two_holds_the_session(world: World) {
    for (first, second, first_wins) in [(3, 2, true), (3, 3, true), (2, 3, false)] {
        let old = world.open().await;
        let mut gate = Gate::shut(&world, "attaching", "sessions", "UPDATE", "true").await;
        let one = begin(&world, |world| attach(world, next(old, first)));
        gate.holds(1).await;
        let other = begin(&world, |world| attach(world, next(old, second)));
        waiting(&world, 1).await;
        gate.open().await;
        assert_eq!(answer(one).await, Attaching::Resumed(TTL));
        let expected = match first_wins {
            true => Attaching::Superseded,
            false => Attaching::Resumed(TTL),
        };
        assert_eq!(answer(other).await, expected, "{second} behind {first}");
        assert!(world.renew(next(old, 3)).await);
        assert!(!world.renew(next(old, 2)).await);
    }
}
on_postgres!(a_late_hello_loses_whichever_of_the_two_holds_the_session);

async fn an_end_of_the_old_stream_behind_an_attach_ends_nothing(world: World) {
    let (lease, old) = world.running().await;
    let mut gate = Gate::shut(&world, "attaching", "sessions", "UPDATE", "true").await;
    let new = next(old, 2);
    let attaching = begin(&world, |world| attach(world, new));
    gate.holds(1).await;
    let closing = begin(&world, move |world| async move {
        world.store.close_sessions(vec![old]).await
    });
    waiting(&world, 1).await;
    assert!(!world.renew(old).await, "it does not wait");
    gate.open().await;
    assert_eq!(answer(attaching).await, Attaching::Resumed(TTL));
    answer(closing).await.expect("close answers");
    assert_eq!(
        world.store.renew(vec![old]).await.expect("renew answers"),
        [SessionState::Moved]
    );
    assert_eq!(world.expire().await.jobs, 0, "its leases live on");
    assert_eq!(leases(&world, new).await, [lease]);
}
on_postgres!(an_end_of_the_old_stream_behind_an_attach_ends_nothing);

async fn an_attach_behind_the_end_of_its_session_finds_it_gone(world: World) {
    let (lease, old) = world.running().await;
    let mut gate = Gate::shut(&world, "closing", "sessions", "UPDATE", "true").await;
    let closing = begin(&world, move |world| async move {
        world.store.close_sessions(vec![old]).await
    });
    gate.holds(1).await;
    let attaching = begin(&world, |world| attach(world, next(old, 2)));
    waiting(&world, 1).await;
    gate.open().await;
    answer(closing).await.expect("close answers");
    assert_eq!(answer(attaching).await, Attaching::Gone);
    assert_eq!(world.expire().await.jobs, 1);
    world.assert_state(lease.job, JobState::Queued).await;
    assert!(
        !is_open(&world, old.session).await,
        "nothing of it is left behind"
    );
}
on_postgres!(an_attach_behind_the_end_of_its_session_finds_it_gone);

/// Forgetting the nodes where a session has nothing any more, held with its mind made up, beside a grant of the newest
/// node, an attach elsewhere, and a grant there.
async fn a_node_that_grants_is_not_forgotten(world: World) {
    let session = world.open_on(world.node, "worker-1", TTL).await;
    let early = world.lease(world.queued().await, session).await;
    let nodes: Vec<NodeId> = (0..5).map(|_| NodeId(Uuid::new_v4())).collect();
    for (i, node) in nodes.iter().enumerate().take(3) {
        let to = next(session, i as u64 + 2);
        assert_eq!(
            attach_on(world.clone(), to, *node).await,
            Attaching::Resumed(TTL)
        );
    }
    let forgets = "cardinality(NEW.nodes) < cardinality(OLD.nodes)";
    let mut gate = Gate::shut(&world, "forgetting", "sessions", "UPDATE", forgets).await;
    let (fifth, sixth) = (next(session, 5), next(session, 6));
    let attaching = begin(&world, {
        let node = nodes[3];
        move |world| attach_on(world, fifth, node)
    });
    gate.holds(1).await;
    // The attach itself is committed; its worker gets its first job there.
    let job = world.queued().await;
    let asks = vec![Ask { job, to: fifth }];
    let granted = world.store.grant(nodes[3], asks).await.expect("it answers");
    let lease = leased(&granted[0]).lease;
    let moving = begin(&world, {
        let node = nodes[4];
        move |world| attach_on(world, sixth, node)
    });
    waiting(&world, 1).await;
    gate.open().await;
    assert_eq!(answer(attaching).await, Attaching::Resumed(TTL));
    assert_eq!(answer(moving).await, Attaching::Resumed(TTL));
    let job = world.queued().await;
    let asks = vec![Ask { job, to: sixth }];
    let granted = world.store.grant(nodes[4], asks).await.expect("it answers");
    let mut all = vec![early, lease, leased(&granted[0]).lease];
    all.sort_unstable();
    assert_eq!(leases(&world, sixth).await, all);
    world.lose(sixth).await;
    for lease in all {
        world.assert_state(lease.job, JobState::Queued).await;
    }
}
on_postgres!(a_node_that_grants_is_not_forgotten);

/// The other attempt leaves a checkpoint behind: who waited for its session must not hand the job out as it was before.
async fn a_grant_that_waited_hands_out_the_checkpoint_of_the_meantime(world: World) {
    let (job, slow, quick) = (world.queued().await, world.open().await, world.open().await);
    // As an attach, or the sweeper, has it.
    let mut hand = Hand::of(&world).await;
    hand.run(&format!(
        "BEGIN; SELECT FROM sessions WHERE id = '{}' FOR UPDATE",
        slow.session.uuid()
    ))
    .await;
    let granting = begin(&world, |world| grant(world, job, slow));
    waiting(&world, 1).await;
    let first = world.lease(job, quick).await;
    let progress = Progress {
        checkpoint: Some("half way".into()),
        revision: 7,
        ..Progress::default()
    };
    let report = Report {
        lease: first,
        session: quick.session,
        progress,
    };
    let told = world.store.report(vec![report]).await;
    assert_eq!(
        told.expect("report answers"),
        [Verdict::Recorded(JobState::Running)]
    );
    world.finish(first, quick, release()).await;
    hand.run("ROLLBACK").await;
    let second = answer(granting).await;
    let second = leased(&second);
    assert_eq!(second.lease.attempt, 2);
    assert_eq!(second.checkpoint.as_deref(), Some(&b"half way"[..]));
    assert_eq!(second.progress_revision, 7);
}
on_postgres!(a_grant_that_waited_hands_out_the_checkpoint_of_the_meantime);
