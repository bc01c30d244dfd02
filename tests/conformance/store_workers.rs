//! Sessions as their nodes tell of them, and queues by the sessions that take jobs of them.

use leasehold::job::SessionId;
use leasehold::store::{
    Attach, Attached, QueueSlots, SessionPage, SessionProfile, SessionReport, SessionSlots,
    SessionView,
};

use crate::steps::*;
use crate::world::World;

fn slots(queues: &[(&str, Option<u32>, u32)]) -> SessionSlots {
    let of = |(name, max_in_flight, free): &(&str, Option<u32>, u32)| QueueSlots {
        queue: queue(name),
        max_in_flight: *max_in_flight,
        free: *free,
    };
    SessionSlots {
        queues: queues.iter().map(of).collect(),
        max_in_flight: 8,
        in_flight: 3,
        draining: false,
    }
}

fn profile() -> SessionProfile {
    SessionProfile {
        node: "node-1".into(),
        kinds: vec!["mail".into(), "it's \"{quoted}\", \\ and more".into()],
        labels: [("zone".to_owned(), "ä'\"{}".to_owned())].into(),
    }
}

async fn describe(
    world: &World,
    session: Attached,
    profile: Option<SessionProfile>,
    slots: SessionSlots,
) -> bool {
    let report = SessionReport {
        session,
        profile,
        slots,
    };
    let written = world.store.describe(vec![report]).await;
    written.expect("describe answers") == [true]
}

async fn page(
    world: &World,
    of: Option<&str>,
    after: Option<SessionId>,
    size: usize,
) -> SessionPage {
    let page = world.store.sessions(of.map(queue), after, size).await;
    page.expect("sessions answers")
}

async fn ids(world: &World, of: Option<&str>) -> Vec<SessionId> {
    let page = page(world, of, None, 100).await;
    assert_eq!(page.next, None);
    page.sessions.iter().map(|view| view.id).collect()
}

async fn see(world: &World, session: Attached) -> SessionView {
    let page = page(world, None, None, 100).await;
    let mut all = page.sessions.into_iter();
    all.find(|view| view.id == session.session)
        .expect("it is there")
}

async fn takers(world: &World, name: &str) -> (u32, u32) {
    let view = world.store.queue(queue(name)).await.expect("queue answers");
    view.map_or((0, 0), |view| (view.sessions, view.free_slots))
}

on_each_store!(a_session_is_seen_as_its_node_tells);
async fn a_session_is_seen_as_its_node_tells(world: World) {
    let session = world.open_on(world.node, "pod-7", TTL).await;
    let new = see(&world, session).await;
    assert_eq!(
        (new.worker.as_str(), new.sdk.as_str()),
        ("pod-7", "conformance 1")
    );
    assert_eq!(
        (new.profile, new.slots),
        Default::default(),
        "nothing was told"
    );
    assert!(
        new.ttl_left <= TTL && new.ttl_left > TTL / 2,
        "{:?}",
        new.ttl_left
    );

    let first = slots(&[("a", Some(2), 1), ("b", None, 5)]);
    assert!(describe(&world, session, Some(profile()), first.clone()).await);
    let told = see(&world, session).await;
    assert_eq!((told.profile, told.slots), (profile(), first));

    let next = SessionSlots {
        max_in_flight: 4,
        in_flight: 0,
        draining: true,
        ..slots(&[("c", None, 0)])
    };
    assert!(describe(&world, session, None, next.clone()).await);
    let told = see(&world, session).await;
    assert_eq!(
        (told.profile, told.slots),
        (profile(), next),
        "the rest stays"
    );
    assert!(world.renew(session).await);
    assert_eq!(see(&world, session).await.slots.max_in_flight, 4);
}

on_each_store!(only_the_node_that_has_the_stream_tells);
async fn only_the_node_that_has_the_stream_tells(world: World) {
    let old = world.open().await;
    let new = Attached { attach: 2, ..old };
    let attach = Attach {
        to: new,
        node: world.node,
    };
    world.store.attach(vec![attach]).await.expect("it attaches");
    assert!(!describe(&world, old, Some(profile()), slots(&[("a", None, 1)])).await);
    assert_eq!(takers(&world, "a").await, (0, 0));
    assert!(describe(&world, new, Some(profile()), slots(&[("b", None, 1)])).await);
    assert_eq!(takers(&world, "b").await, (1, 1));

    world.lose(new).await;
    assert!(
        !describe(&world, new, None, slots(&[("c", None, 1)])).await,
        "it is dead"
    );
    assert_eq!(takers(&world, "b").await, (0, 0));
    assert_eq!(ids(&world, None).await, []);
}

on_each_store!(a_queue_counts_its_sessions_and_their_free_slots);
async fn a_queue_counts_its_sessions_and_their_free_slots(world: World) {
    let (one, two) = (
        world.open().await,
        world.open_on(world.node, "long", LONG).await,
    );
    describe(
        &world,
        one,
        Some(profile()),
        slots(&[("a", None, 5), ("b", Some(2), 2)]),
    )
    .await;
    describe(&world, two, Some(profile()), slots(&[("b", None, 3)])).await;
    world.accept(world.job_with(|d| d.queue = "b".into())).await;
    assert_eq!(takers(&world, "a").await, (1, 5));
    assert_eq!(takers(&world, "b").await, (2, 5));
    let listed = world.store.queues(None, 10).await.expect("queues answers");
    let listed: Vec<_> = listed
        .iter()
        .map(|view| {
            (
                view.stats.queue.as_str(),
                view.stats.counts[1],
                view.sessions,
            )
        })
        .collect();
    assert_eq!(
        listed,
        [("a", 0, 1), ("b", 1, 2)],
        "one without jobs is seen"
    );

    world.advance(2 * TTL).await;
    assert_eq!(
        takers(&world, "b").await,
        (2, 3),
        "past its time it is given nothing"
    );
    assert_eq!(see(&world, one).await.ttl_left, secs(0));
    assert!(world.renew(one).await);
    assert_eq!(takers(&world, "b").await, (2, 5));
}

on_each_store!(sessions_come_page_by_page_of_all_queues_or_one);
async fn sessions_come_page_by_page_of_all_queues_or_one(world: World) {
    let mut all = Vec::new();
    let mut of_a = Vec::new();
    for n in 0..9 {
        let session = world.open().await;
        all.push(session.session);
        let name = if n % 3 == 0 { "a" } else { "b" };
        describe(&world, session, None, slots(&[(name, None, 1)])).await;
        if n % 3 == 0 {
            of_a.push(session.session);
        }
    }
    all.sort_unstable();
    of_a.sort_unstable();
    for (of, expected) in [(None, &all), (Some("a"), &of_a), (Some("c"), &Vec::new())] {
        assert_eq!(ids(&world, of).await, *expected);
        let mut walked = Vec::new();
        let mut after = None;
        loop {
            let page = page(&world, of, after, 2).await;
            assert!(page.sessions.len() <= 2);
            walked.extend(page.sessions.iter().map(|view| view.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(walked, *expected);
    }
}

on_each_store!(a_session_that_is_told_of_lives_no_longer);
async fn a_session_that_is_told_of_lives_no_longer(world: World) {
    let session = world.open().await;
    world.advance(SHORT_OF_TTL).await;
    let left = see(&world, session).await.ttl_left;
    describe(&world, session, Some(profile()), slots(&[])).await;
    assert!(see(&world, session).await.ttl_left <= left);
}

on_each_store!(a_session_shows_what_it_runs);
async fn a_session_shows_what_it_runs(world: World) {
    let session = world.open_on(world.node, "pod-7", TTL).await;
    let runs = async |limit| {
        let found = world.store.session(session.session, limit).await;
        found.expect("session answers").expect("it is there")
    };
    let idle = runs(10).await;
    assert_eq!((idle.view.worker.as_str(), idle.more), ("pod-7", false));
    assert_eq!(idle.running, []);

    let mut leases = Vec::new();
    for name in ["a", "b", "a"] {
        let job = world.job_with(|d| {
            d.queue = name.into();
            d.timeout = (name == "a").then(|| raw(minutes(5)));
        });
        let job = world.accept(job).await;
        leases.push(world.lease(job, session).await);
        world.advance(secs(1)).await;
    }
    // Bystanders: another's, and one that is over.
    world.running().await;
    let over = world.queued().await;
    let over = world.lease(over, session).await;
    assert_recorded(&world.finish(over, session, success()).await);

    describe(&world, session, Some(profile()), slots(&[("a", None, 1)])).await;
    let busy = runs(10).await;
    assert_eq!(
        (&busy.view.profile, busy.view.slots.in_flight),
        (&profile(), 3)
    );
    let seen = busy.running.iter().map(|job| job.lease);
    assert_eq!(
        seen.collect::<Vec<_>>(),
        leases,
        "those that began first in front"
    );
    for (job, lease) in busy.running.iter().zip(&leases) {
        let known = world.look(lease.job).await;
        assert_eq!(Some(job.start_time), known.start_time);
        assert_eq!(
            (&job.queue, &job.kind),
            (&known.spec.queue, &known.spec.kind)
        );
        match job.queue.as_str() {
            "a" => assert!(job.time_left.is_some_and(|left| left < minutes(5))),
            _ => assert!(job.time_left.is_some_and(|left| left > minutes(5))),
        }
    }
    let two = runs(2).await;
    assert!(two.more);
    let seen = two.running.iter().map(|job| job.lease);
    assert_eq!(seen.collect::<Vec<_>>(), leases[..2]);

    // On another node, with another stream: they are its own still, and later ones, too.
    let other = leasehold::job::NodeId(uuid::Uuid::new_v4());
    let moved = Attached {
        attach: 2,
        ..session
    };
    let attach = Attach {
        to: moved,
        node: other,
    };
    world.store.attach(vec![attach]).await.expect("it attaches");
    let later = world.queued().await;
    let asks = vec![leasehold::store::Ask {
        job: later,
        to: moved,
    }];
    let granted = world.store.grant(other, asks).await.expect("grant answers");
    leases.push(leased(&granted[0]).lease);
    let seen = runs(10).await.running;
    assert_eq!(seen.iter().map(|job| job.lease).collect::<Vec<_>>(), leases);

    world.lose(moved).await;
    let gone = world.store.session(session.session, 10).await;
    assert_eq!(gone.expect("session answers"), None, "it is dead");
    let never = SessionId::of_token(b"nobody's");
    let never = world.store.session(never, 10).await;
    assert_eq!(never.expect("session answers"), None);
}
