//! Which workers there are, as any node tells, and what a queue can count on.

use std::time::Duration;

use tempfile::TempDir;
use worker_sdk::NewJob;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::{self as pb, Session};

use crate::hand::{Hand, hello};
use crate::stack::{Dev, Stack, client};
use crate::support::http::request;
use crate::support::until;
use crate::workers::Local;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn any_node_knows_what_the_sessions_of_the_others_take() {
    let stack = Stack::start(2).await;
    let folder = TempDir::new().unwrap();
    let worker = Local::start(&stack.nodes[0].url(), &folder.path().join("runs"), 7);
    seen(&stack.nodes[1].url(), stack.nodes[1].address).await;
    worker.stop().await;
    let there = stack.client(1);
    until(SOON, "it has left", async || {
        let page = there.sessions(None, 0, "").await.unwrap();
        page.sessions.is_empty().then_some(())
    })
    .await;
    let stats = there.queue("q").await.unwrap().stats.unwrap();
    assert_eq!((stats.sessions, stats.free_slots), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_server_knows_its_sessions() {
    let dev = Dev::start().await;
    let folder = TempDir::new().unwrap();
    let worker = Local::start(&dev.node.url(), &folder.path().join("runs"), 7);
    seen(&dev.node.url(), dev.node.address).await;
    worker.stop().await;
}

/// A worker of 7 slots, as this server sees it, idle and with jobs.
async fn seen(url: &str, address: std::net::SocketAddr) {
    let client = client(url);
    let session = until(SOON, "the worker is seen", async || {
        let page = client.sessions(Some("q"), 0, "").await.unwrap();
        page.sessions.into_iter().next()
    })
    .await;
    assert_eq!((session.max_in_flight, session.in_flight), (7, 0));
    assert_eq!(session.queues[0].queue, "q");
    assert!(session.kinds.contains(&"sleep".to_owned()), "{session:?}");
    assert!(!session.worker.is_empty() && !session.sdk.is_empty() && !session.node.is_empty());
    assert!(session.ttl_left.unwrap().seconds <= 10 && !session.draining);
    let stats = client.queue("q").await.unwrap().stats.unwrap();
    assert_eq!((stats.sessions, stats.free_slots), (1, 7));
    let none = client.sessions(Some("other"), 0, "").await.unwrap();
    assert_eq!(none.sessions, []);

    let over_http = request(address, "GET", "/sessions?queue=q", b"").await;
    let over_http = &over_http.json()["sessions"][0];
    assert_eq!(over_http["id"], session.id.as_str());
    assert_eq!(over_http["queues"][0]["queue"], "q");

    for _ in 0..3 {
        let job = NewJob::new("sleep", &8_000).unwrap().queue("q");
        client.enqueue(job).await.unwrap();
    }
    until(SOON, "its jobs are seen", async || {
        let page = client.sessions(Some("q"), 0, "").await.unwrap();
        let stats = client.queue("q").await.unwrap().stats.unwrap();
        (page.sessions[0].in_flight == 3 && stats.free_slots == 4).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_later_is_seen_too() {
    let dev = Dev::start().await;
    let url = dev.node.url();
    let client = client(&url);
    let (hand, welcome) = Hand::welcome(&url, hello(10)).await;
    let look = async |holds: &dyn Fn(&Session) -> bool| {
        until(SOON, "the session is seen so", async || {
            let page = client.sessions(None, 0, "").await.unwrap();
            page.sessions.into_iter().find(|session| holds(session))
        })
        .await
    };
    let first = look(&|session| session.max_in_flight == 10).await;
    assert_eq!(first.id, welcome.session_id);
    let capacity = pb::SetCapacity {
        max_in_flight: 4,
        queues: vec![pb::QueueSubscription {
            queue: "r".into(),
            max_in_flight: 2,
        }],
    };
    hand.send(Request::SetCapacity(capacity)).await;
    let next = look(&|session| session.max_in_flight == 4).await;
    assert_eq!(
        (next.queues[0].queue.as_str(), next.queues[0].max_in_flight),
        ("r", 2)
    );
    let stats = client.queue("r").await.unwrap().stats.unwrap();
    assert_eq!((stats.sessions, stats.free_slots), (1, 2));
    let gone = client.queue("q").await.unwrap_err();
    assert_eq!(
        gone.reason(),
        Some("QUEUE_NOT_FOUND"),
        "nobody takes jobs of it"
    );
    hand.send(Request::Goodbye(pb::Goodbye {})).await;
    let left = look(&|session| session.draining).await;
    assert!(left.ttl_left.unwrap().seconds > 0);
}
