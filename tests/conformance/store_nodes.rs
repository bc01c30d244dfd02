//! Nodes as they tell of themselves, and sessions and nodes that are asked to leave.

use leasehold::job::{AuditAction, By, NodeId, SessionId};
use leasehold::store::{Attach, Attached, Attaching, Draining, Drains, NodeReport, NodeView};
use uuid::Uuid;

use crate::steps::*;
use crate::world::World;

fn report(id: NodeId, sessions: u32) -> NodeReport {
    NodeReport {
        id,
        name: format!("it's \"{sessions}\", \\ and ä"),
        version: "1.2.3".into(),
        sessions,
        draining: false,
    }
}

fn by(actor: &str) -> By {
    By {
        actor: leasehold::job::Actor::from_store(actor),
        reason: "why".into(),
    }
}

async fn present(world: &World, report: NodeReport) -> Drains {
    world.store.present(report).await.expect("present answers")
}

async fn nodes(world: &World) -> Vec<NodeView> {
    let found = world.store.nodes(None, 100).await;
    found.expect("nodes answers")
}

async fn drain(world: &World, session: Attached) -> Draining {
    let asked = world.store.drain_session(session.session, by("ada")).await;
    asked.expect("drain_session answers")
}

async fn subjects(world: &World, action: AuditAction) -> Vec<String> {
    let events = world
        .store
        .audit(None, 100)
        .await
        .expect("the audit answers");
    let of = events.into_iter().filter(|event| event.action == action);
    of.inspect(|event| assert_eq!((event.count, &event.by), (1, &by("ada"))))
        .map(|event| event.subject)
        .collect()
}

on_each_store!(a_node_is_seen_as_it_tells);
async fn a_node_is_seen_as_it_tells(world: World) {
    let (one, other) = (NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2)));
    let begun = world.now();
    assert_eq!(present(&world, report(one, 3)).await, Drains::default());
    present(&world, report(other, 0)).await;
    world.advance(secs(5)).await;
    let later = NodeReport {
        draining: true,
        ..report(one, 4)
    };
    let told = NodeReport {
        name: report(one, 3).name,
        ..later.clone()
    };
    present(&world, later).await;
    let found = nodes(&world).await;
    let reports: Vec<_> = found.iter().map(|view| view.report.clone()).collect();
    assert_eq!(reports, [told, report(other, 0)]);
    assert_about(found[0].start, begun, "when it began");
    assert_about(found[0].seen, begun.after(secs(5)), "when it told last");
    assert_same_moment(found[1].start, found[1].seen, "it told once");

    let page = world.store.nodes(Some(one), 100).await.expect("it answers");
    assert_eq!(page, found[1..]);
    let page = world.store.nodes(None, 1).await.expect("it answers");
    assert_eq!(page, found[..1]);

    world.store.gone(one).await.expect("gone answers");
    world.store.gone(one).await.expect("gone answers again");
    assert_eq!(nodes(&world).await, found[1..]);
}

on_each_store!(a_node_that_tells_nothing_is_forgotten);
async fn a_node_that_tells_nothing_is_forgotten(world: World) {
    let (one, other) = (NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2)));
    present(&world, report(one, 0)).await;
    world.advance(minutes(40)).await;
    present(&world, report(other, 0)).await;
    world.tidy().await;
    assert_eq!(nodes(&world).await.len(), 2);
    world.advance(minutes(30)).await;
    assert_eq!(world.tidy().await, 1);
    assert_eq!(nodes(&world).await[0].report.id, other);
    // It was only away: it is there again.
    present(&world, report(one, 0)).await;
    assert_eq!(nodes(&world).await.len(), 2);
}

on_each_store!(a_node_is_asked_to_leave_once);
async fn a_node_is_asked_to_leave_once(world: World) {
    let (one, other) = (NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2)));
    present(&world, report(one, 0)).await;
    present(&world, report(other, 0)).await;
    let ask = async |node| world.store.drain_node(node, by("ada")).await;
    assert_eq!(ask(one).await.ok(), Some(Draining::Done));
    assert_eq!(ask(one).await.ok(), Some(Draining::Already));
    let nobody = NodeId(Uuid::from_u128(3));
    assert_eq!(ask(nobody).await.ok(), Some(Draining::NotFound));
    let found = nodes(&world).await;
    let draining: Vec<_> = found.iter().map(|view| view.report.draining).collect();
    assert_eq!(draining, [true, false], "before it has heard of it");
    assert!(present(&world, report(one, 0)).await.node);
    assert!(!present(&world, report(other, 0)).await.node);
    assert!(nodes(&world).await[0].report.draining);
    assert_eq!(
        subjects(&world, AuditAction::DrainNode).await,
        [one.to_string()]
    );
}

on_each_store!(a_session_is_asked_to_leave_wherever_it_goes);
async fn a_session_is_asked_to_leave_wherever_it_goes(world: World) {
    let other = NodeId(Uuid::new_v4());
    let session = world.open().await;
    let stays = world.open().await;
    assert_eq!(drain(&world, session).await, Draining::Done);
    assert_eq!(drain(&world, session).await, Draining::Already);
    let leaving = |drains: Drains| drains.sessions;
    let told = leaving(present(&world, report(world.node, 2)).await);
    assert_eq!(told, [session.session]);
    assert_eq!(leaving(present(&world, report(other, 0)).await), []);
    let page = world
        .store
        .sessions(None, None, 10)
        .await
        .expect("it answers");
    for view in page.sessions {
        let is_asked = view.id == session.session;
        assert_eq!(
            view.slots.draining, is_asked,
            "before the node has heard of it"
        );
    }

    // Asked again and again, and by whatever node has the stream; a renewal changes nothing of it.
    assert!(world.renew(session).await && world.renew(stays).await);
    let to = Attached {
        attach: 2,
        ..session
    };
    let attach = Attach { to, node: other };
    let moved = world
        .store
        .attach(vec![attach])
        .await
        .expect("attach answers");
    assert_eq!(moved, [Attaching::Resumed(TTL)]);
    assert_eq!(leaving(present(&world, report(world.node, 1)).await), []);
    let told = leaving(present(&world, report(other, 1)).await);
    assert_eq!(told, [session.session]);
    assert_eq!(
        subjects(&world, AuditAction::DrainSession).await,
        [session.session.to_string()]
    );
}

on_each_store!(what_is_gone_cannot_leave);
async fn what_is_gone_cannot_leave(world: World) {
    let session = world.open().await;
    let closed = world.store.close_sessions(vec![session]).await;
    closed.expect("close answers");
    assert_eq!(drain(&world, session).await, Draining::NotFound);
    let nobody = Attached {
        session: SessionId::of_token(b"nobody"),
        attach: 1,
    };
    assert_eq!(drain(&world, nobody).await, Draining::NotFound);
    assert_eq!(
        subjects(&world, AuditAction::DrainSession).await,
        Vec::<String>::new()
    );
    assert_eq!(present(&world, report(world.node, 0)).await.sessions, []);
}

// It takes what is granted to it: who decides is the node, which must hear of it before, and a job on its way is run.
on_each_store!(a_session_that_leaves_keeps_its_jobs);
async fn a_session_that_leaves_keeps_its_jobs(world: World) {
    let (lease, session) = world.running().await;
    assert_eq!(drain(&world, session).await, Draining::Done);
    assert!(world.renew(session).await);
    assert_recorded(&world.finish(lease, session, success()).await);
}
