//! A worker, a node and a queue that somebody lets run dry, from outside of them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::{self as pb, ReceiptStatus};
use worker_sdk::{AuditAction, Client, JobState, NewJob};

use crate::balancer::Balancer;
use crate::hand::{Hand, again, hello, leases};
use crate::stack::{Dev, Stack, client};
use crate::support::http::request;
use crate::support::{leasehold, until};
use crate::workers::{self, Local, runs};

const SOON: Duration = Duration::from_secs(60);

async fn add(client: &Client, kind: &str, millis: u64) -> String {
    let job = NewJob::new(kind, &millis).unwrap().queue("q");
    client.enqueue(job).await.unwrap().job.id
}

async fn done(client: &Client, ids: &[String]) {
    for id in ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(
            (job.state(), job.attempt),
            (JobState::Succeeded, 1),
            "{job:?}"
        );
    }
}

fn left(message: Response) -> Option<()> {
    matches!(message, Response::Leave(_)).then_some(())
}

async fn the_audit_has(client: &Client, expected: &[(AuditAction, &str)]) {
    let told = client.audit_events(0, "").await.unwrap().events;
    let told: Vec<_> = told
        .iter()
        .map(|e| (e.action(), e.subject.as_str()))
        .collect();
    assert_eq!(told, expected);
}

/// By the node that does not have it: what runs is done, and the worker's process ends by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_drained_from_any_node() {
    let stack = Stack::start(2).await;
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let mut worker = workers::process(&stack.nodes[0].url(), &log);
    let there = stack.client(1);
    let session = until(SOON, "the worker is seen", async || {
        let page = there.sessions(Some("q"), 0, "").await.unwrap();
        page.sessions.into_iter().next()
    })
    .await;
    let long = add(&there, "sleep", 2_000).await;
    until(SOON, "the long one runs", async || {
        runs(&log).contains_key(&long).then_some(())
    })
    .await;
    there
        .drain_session(&session.id, "a bad host")
        .await
        .unwrap();
    there.drain_session(&session.id, "once more").await.unwrap();
    let ended = worker.ended(SOON).await;
    assert!(ended.success(), "{ended}");
    done(&there, &[long]).await;
    let gone = there.drain_session(&session.id, "").await.unwrap_err();
    assert_eq!(gone.reason(), Some("SESSION_NOT_FOUND"));
    the_audit_has(&there, &[(AuditAction::DrainSession, &session.id)]).await;
}

/// It stays so on whichever node its session goes on; its lease lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_drained_gets_nothing_more_wherever_it_goes() {
    let mut stack = Stack::start(2).await;
    let there = stack.client(1);
    let (mut hand, welcome) = Hand::welcome(&stack.nodes[0].url(), hello(10)).await;
    let first = add(&there, "echo", 1).await;
    hand.beat(0, &[]).await;
    let (jobs, _) = hand.take(1).await;
    let has = leases(&jobs);
    there.drain_session(&welcome.session_id, "").await.unwrap();
    hand.until(left).await;
    stack.nodes[0].process.kill();

    let url = stack.nodes[1].url();
    let (mut hand, moved) = Hand::welcome(&url, again(&welcome, 2, &has)).await;
    assert!(moved.resumed);
    hand.renew(0, &has).await;
    hand.until(left).await;
    let second = add(&there, "echo", 2).await;
    let receipts = hand.succeed(&has).await;
    assert_eq!(receipts[0].status(), ReceiptStatus::Recorded);
    done(&there, &[first]).await;
    let waits = there.get(&second).await.unwrap();
    assert_eq!((waits.state(), waits.attempt), (JobState::Queued, 0));
    // One that is not asked to leave gets it.
    let (mut other, _) = Hand::welcome(&url, hello(10)).await;
    other.beat(0, &[]).await;
    let (jobs, _) = other.take(1).await;
    assert_eq!(leases(&jobs)[0].job_id, second);
    hand.send(Request::Goodbye(pb::Goodbye {})).await;
}

/// Its workers go on by the other node, nothing is lost and nothing runs twice, and its process ends well.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_from_another() {
    let mut stack = Stack::start(2).await;
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let there = stack.client(1);
    let names: HashMap<String, String> = until(SOON, "both nodes are seen", async || {
        let nodes = there.nodes(0, "").await.unwrap().nodes;
        let named = nodes.into_iter().map(|node| (node.name, node.id));
        let named: HashMap<_, _> = named.collect();
        (named.len() == 2).then_some(named)
    })
    .await;
    let of = |node: usize| format!(":{}", stack.nodes[node].process.id());
    let of = of(0);
    let name = names.keys().find(|name| name.ends_with(&of)).unwrap();
    let balanced = Balancer::over(&stack.nodes).await;
    let worker = Local::start(&balanced.url(), &log, 20);
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(add(&there, "sleep", 100).await);
    }
    let (code, _) = typed(
        &stack.nodes[1].url(),
        &["nodes", "drain", name, "--reason", "an upgrade"],
    );
    assert_eq!(code, Some(0));
    let ended = stack.nodes[0].process.ended(SOON).await;
    assert!(ended.success(), "{ended}");
    for _ in 0..20 {
        ids.push(add(&there, "sleep", 10).await);
    }
    done(&there, &ids).await;
    let runs = runs(&log);
    assert!(ids.iter().all(|id| runs[id] == 1), "each ran once");
    let nodes = there.nodes(0, "").await.unwrap().nodes;
    assert_eq!(nodes.len(), 1);
    let gone = there.drain_node(&names[name], "").await.unwrap_err();
    assert_eq!(gone.reason(), Some("NODE_NOT_FOUND"));
    the_audit_has(&there, &[(AuditAction::DrainNode, &names[name])]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_drained_on_the_command_line() {
    let dev = Dev::start().await;
    let client = client(&dev.node.url());
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let worker = Local::start(&dev.node.url(), &log, 2);
    let long = add(&client, "sleep", 3_000).await;
    until(SOON, "the long one runs", async || {
        runs(&log).contains_key(&long).then_some(())
    })
    .await;
    let short = ["queues", "drain", "q", "--within", "10ms"];
    let (code, _) = typed(&dev.node.url(), &short);
    assert_eq!(code, Some(3), "it still runs");
    let (code, shown) = typed(&dev.node.url(), &["queues", "drain", "q", "-o", "json"]);
    assert_eq!(code, Some(0), "{shown}");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["paused"], &shown["stats"]["running"]),
        (&true.into(), &0.into())
    );
    done(&client, &[long]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_server_is_drained_over_http() {
    let mut dev = Dev::start().await;
    let address = dev.node.address;
    let (mut hand, welcome) = Hand::welcome(&dev.node.url(), hello(10)).await;
    let path = format!("/sessions/{}/drain", welcome.session_id);
    let asked = request(address, "POST", &path, br#"{"reason":"to see"}"#).await;
    assert_eq!(asked.status, 204, "{}", asked.body);
    hand.until(left).await;
    let listed = request(address, "GET", "/sessions", b"").await;
    assert_eq!(listed.json()["sessions"][0]["draining"], true);
    let (code, listed) = typed(&dev.node.url(), &["sessions", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((code, &listed[0]["draining"]), (Some(0), &true.into()));
    let (code, _) = typed(&dev.node.url(), &["sessions", "drain", &welcome.session_id]);
    assert_eq!(code, Some(0));
    let (code, _) = typed(
        &dev.node.url(),
        &["sessions", "--queue", "q", "drain", &welcome.session_id],
    );
    assert_eq!(code, Some(2), "a flag that means nothing here");

    let nobody = "0".repeat(32);
    for (id, status) in [("x", 400), (&nobody[..], 404)] {
        for of in ["sessions", "nodes"] {
            let path = format!("/{of}/{id}/drain");
            let never = request(address, "POST", &path, b"").await;
            assert_eq!(never.status, status, "{path}");
        }
    }
    let nodes = request(address, "GET", "/nodes", b"").await.json();
    let node = &nodes["nodes"][0];
    assert_eq!(
        (&node["draining"], &node["version"]),
        (&false.into(), &env!("CARGO_PKG_VERSION").into())
    );
    let (code, listed) = typed(&dev.node.url(), &["nodes", "list"]);
    assert_eq!(code, Some(0));
    assert!(listed.contains("ACTIVE"), "{listed}");
    let path = format!("/nodes/{}/drain", node["id"].as_str().unwrap());
    let asked = request(address, "POST", &path, b"").await;
    assert_eq!(asked.status, 204, "{}", asked.body);
    hand.send(Request::Goodbye(pb::Goodbye {})).await;
    drop(hand);
    let ended = dev.node.process.ended(SOON).await;
    assert!(ended.success(), "{ended}");
}

/// How `leasehold` ends with these arguments, and what it writes.
fn typed(url: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut command = leasehold(args.iter().chain(&["--server", &url]));
    let output = command.env("USER", "ada").output().unwrap();
    let written = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), written)
}
