//! What those who look after queues see, on any node and over each face: rates, what a session runs, a queue as it changes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_types::StatusExt;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::queue_service_client::QueueServiceClient;
use worker_sdk::proto::result::Outcome;
use worker_sdk::proto::{self as pb};
use worker_sdk::{Client, NewJob, Queue, QueueStats, QueueWatch};

use crate::cases::{case, side_by_side};
use crate::hand::{Hand, hello, leases};
use crate::stack::{Dev, Node, Site, client};
use crate::support::http::request;
use crate::support::{Process, leasehold, until};

const SOON: Duration = Duration::from_secs(90);

/// A worker that need not be heard of while a case goes on.
fn patient(slots: u32) -> pb::Hello {
    pb::Hello {
        lease_ttl: Some(prost_types::Duration {
            seconds: 600,
            nanos: 0,
        }),
        ..hello(slots)
    }
}

async fn enqueue(client: &Client, count: usize) {
    for _ in 0..count {
        let job = NewJob::new("echo", &1).unwrap().queue("q");
        client.enqueue(job).await.unwrap();
    }
}

fn stats(queue: &Queue) -> QueueStats {
    queue.stats.unwrap()
}

/// What is told until this is true.
async fn told(watch: &mut QueueWatch, is_it: impl Fn(&Queue) -> bool) -> Queue {
    loop {
        let told = tokio::time::timeout(SOON, watch.next()).await;
        let queue = told.expect("something is told").unwrap().unwrap();
        if is_it(&queue) {
            return queue;
        }
    }
}

/// What comes over HTTP as events, as far as it came.
struct Events(
    tokio::task::JoinHandle<()>,
    std::sync::Arc<std::sync::Mutex<String>>,
);

impl Events {
    async fn of(address: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = std::sync::Arc::<std::sync::Mutex<String>>::default();
        let into = text.clone();
        let reading = tokio::spawn(async move {
            let mut bytes = [0; 4_096];
            while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                let more = String::from_utf8_lossy(&bytes[..read]);
                into.lock().unwrap().push_str(&more);
            }
        });
        Self(reading, text)
    }

    async fn hold(&self, text: &str) {
        until(SOON, text, async || {
            self.1.lock().unwrap().contains(text).then_some(())
        })
        .await;
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How `leasehold` ends with these arguments, and what it writes.
fn typed(node: &Node, args: &[&str]) -> (Option<i32>, String) {
    let url = node.url();
    let output = leasehold(args.iter().chain(&["--server", &url]))
        .env("USER", "ada")
        .output()
        .unwrap();
    let written = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), written)
}

/// One node tells what a worker does that another one has.
async fn it_is_seen_here_and_done_there(near: &Node, far: &Node) {
    let (here, there) = (client(&near.url()), client(&far.url()));
    let never = here.queue("q").await.unwrap_err();
    assert_eq!(never.reason(), Some("QUEUE_NOT_FOUND"));
    enqueue(&there, 12).await;
    let mut watch = here.watch_queue("q");
    assert_eq!(stats(&told(&mut watch, |_| true).await).queued, 12);
    let events = Events::of(near.address, "/queues/q/events").await;
    events.hold("\"queued\":12").await;
    let url = near.url();
    let lines = ["queues", "--server", &url, "get", "q", "--watch"];
    let lines = Process::start("watch", leasehold(lines));
    let typing = async |text: &str| {
        until(SOON, text, async || {
            lines.output().join("\n").contains(text).then_some(())
        })
        .await;
    };
    typing("12 queued").await;

    let (mut hand, welcome) = Hand::welcome(&far.url(), patient(6)).await;
    hand.beat(0, &[]).await;
    let has = leases(&hand.take(6).await.0);
    let seen = told(&mut watch, |queue| stats(queue).running == 6).await;
    assert_eq!(stats(&seen).queued, 6);
    told(&mut watch, |queue| stats(queue).sessions == 1).await;
    events.hold("\"running\":6").await;
    typing("6 running").await;
    here.pause_queue("q", "a look").await.unwrap();
    told(&mut watch, |queue| queue.paused).await;
    typing("PAUSED").await;

    what_it_runs(near, &here, &welcome.session_id, &has).await;

    let failure = pb::Failure {
        r#type: "Broken".into(),
        message: "it broke".into(),
        ..Default::default()
    };
    let results = has[4..].iter().map(|lease| pb::Result {
        lease: Some(lease.clone()),
        outcome: Some(Outcome::Failure(failure.clone())),
        ..Default::default()
    });
    let results = results.collect();
    hand.send(Request::Results(pb::Results { results })).await;
    hand.succeed(&has[..4]).await;
    let seen = told(&mut watch, |queue| stats(queue).scheduled == 2).await;
    assert!(stats(&seen).succeeded <= 4);

    // Once the other node has told.
    let seen = told(&mut watch, |queue| {
        let rates = stats(queue).rates.unwrap();
        let all = [
            rates.enqueued_per_second,
            rates.started_per_second,
            rates.succeeded_per_second,
            rates.failed_per_second,
        ];
        all.iter().all(|rate| *rate > 0.0)
    })
    .await;
    let rates = stats(&seen).rates.unwrap();
    assert!(
        rates.enqueued_per_second <= 12.0 / 60.0 + 0.001,
        "{rates:?}"
    );
    assert!(rates.failed_per_second <= 2.0 / 60.0 + 0.001, "{rates:?}");
    events.hold("\"enqueued_per_second\":0.").await;
    typing("enqueued/s").await;
    let (code, listed) = typed(near, &["queues", "list", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let rate = &listed[0]["stats"]["rates"]["enqueued_per_second"];
    assert!(code == Some(0) && rate.as_f64().unwrap() > 0.0, "{listed}");
}

async fn what_it_runs(near: &Node, here: &Client, id: &str, has: &[pb::Lease]) {
    let runs = here.session(id).await.unwrap();
    let session = runs.session.unwrap();
    assert_eq!((session.id.as_str(), session.worker.as_str()), (id, "hand"));
    assert!(!runs.more_running);
    let attempts = |lease: &pb::Lease| (lease.job_id.clone(), lease.attempt);
    let expected: BTreeSet<_> = has.iter().map(attempts).collect();
    let seen = runs.running.iter();
    let seen: BTreeSet<_> = seen.map(|job| (job.job_id.clone(), job.attempt)).collect();
    assert_eq!(seen, expected);
    let first = &runs.running[0];
    assert_eq!((first.queue.as_str(), first.kind.as_str()), ("q", "echo"));
    assert!(first.start_time.is_some() && first.time_left.unwrap().seconds > 3_000);

    let over_http = request(near.address, "GET", &format!("/sessions/{id}"), b"").await;
    let over_http = over_http.json();
    assert_eq!(
        (&over_http["id"], &over_http["worker"]),
        (&id.into(), &"hand".into())
    );
    assert_eq!(over_http["running"].as_array().unwrap().len(), has.len());
    assert_eq!(over_http["running"][0]["job_id"], first.job_id.as_str());

    let (code, shown) = typed(near, &["sessions", "get", id]);
    assert!(code == Some(0) && shown.contains(&first.job_id), "{shown}");
    let (_, json) = typed(near, &["sessions", "get", id, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["running"][0]["kind"], "echo");
    let (_, listed) = typed(near, &["sessions", "list", "--queue", "q"]);
    assert!(listed.contains(id), "{listed}");

    let never = here.session(&"0".repeat(32)).await.unwrap_err();
    assert_eq!(never.reason(), Some("SESSION_NOT_FOUND"));
    let bad = here.session("x").await.unwrap_err();
    assert_eq!(bad.reason(), Some("FIELD_INVALID"));
    assert!(bad.to_string().contains("session_id"), "{bad}");
    let (code, _) = typed(near, &["sessions", "get", "x"]);
    assert_eq!(code, Some(2));
}

async fn on_the_embedded_server() {
    let dev = Dev::start().await;
    it_is_seen_here_and_done_there(&dev.node, &dev.node).await;
}

async fn on_another_node() {
    let site = Site::new().await;
    it_is_seen_here_and_done_there(&site.node().await, &site.node().await).await;
}

/// Somebody looks, and types Ctrl-C.
async fn in_a_terminal(node: &Node) {
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/terminal.py");
    let top = ["top", "--interval", "100ms", "--server"];
    let url = node.url();
    let mut python = std::process::Command::new("python3");
    python.args([helper, "60", "12", "WORKER"]);
    python.arg(env!("CARGO_BIN_EXE_leasehold"));
    let looked = tokio::task::spawn_blocking(move || python.args(top).arg(url).output());
    let looked = looked.await.unwrap().unwrap();
    let text = String::from_utf8(looked.stdout).unwrap();
    assert_eq!(looked.status.code(), Some(0), "{text:?}");
    // The other screen without a cursor, pages that begin at its top, and back again.
    let inside = text.strip_prefix("\u{1b}[?1049h\u{1b}[?25l").unwrap();
    let (inside, _) = inside.split_once("\u{1b}[?25h\u{1b}[?1049l").unwrap();
    let mut pages = inside.split("\u{1b}[H");
    assert_eq!(pages.next(), Some(""));
    let page = pages.next().unwrap();
    // Without what moves the cursor, and what the terminal itself shows of Ctrl-C.
    let page = page.replace("\u{1b}[K", "").replace("\u{1b}[J", "");
    let page = page.replace("^C", "");
    let lines: Vec<_> = page.lines().collect();
    assert!(lines.len() <= 12, "{page}");
    assert!(
        lines.iter().all(|line| line.trim_end().len() < 60),
        "{page}"
    );
    assert!(page.contains("QUEUE") && page.contains("WORKER"), "{page}");
}

/// How often a node has read the queues that are watched, and how many seconds that took.
async fn reads(node: &Node) -> (u64, f64) {
    let metrics = request(node.address, "GET", "/metrics", b"").await.body;
    let value = |name: &str| {
        let line = format!("leasehold_store_seconds_{name}{{verb=\"queues_named\"}} ");
        let value = metrics.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or("0").to_owned()
    };
    (
        value("count").parse().unwrap(),
        value("sum").parse().unwrap(),
    )
}

async fn a_thousand_who_watch_cost_no_query_each() {
    let site = Site::new().await;
    let (near, far) = (site.node().await, site.node().await);
    enqueue(&client(&far.url()), 1).await;
    let mut watches = Vec::new();
    for _ in 0..10 {
        let mut queues = QueueServiceClient::connect(near.url()).await.unwrap();
        for _ in 0..100 {
            let request = pb::WatchQueueRequest { queue: "q".into() };
            watches.push(queues.watch_queue(request).await.unwrap().into_inner());
        }
    }
    let mut next = async |is_it: &dyn Fn(&Queue) -> bool| {
        for watch in &mut watches {
            loop {
                let told = tokio::time::timeout(SOON, watch.message()).await;
                let told = told.expect("something is told").unwrap().unwrap();
                if told.queue.is_some_and(|queue| is_it(&queue)) {
                    break;
                }
            }
        }
    };
    next(&|queue| stats(queue).queued == 1).await;
    until(SOON, "all of them are counted", async || {
        let metrics = request(near.address, "GET", "/metrics", b"").await.body;
        metrics.contains("leasehold_watchers 1000\n").then_some(())
    })
    .await;
    let (before, begun) = (reads(&near).await.0, Instant::now());
    // What another node changes is told to all of them.
    enqueue(&client(&far.url()), 1).await;
    next(&|queue| stats(queue).queued == 2).await;
    client(&far.url()).pause_queue("q", "").await.unwrap();
    next(&|queue| queue.paused).await;
    let (all, seconds) = reads(&near).await;
    let (cost, took) = (all - before, begun.elapsed());
    let looks = took.as_secs() + 2;
    assert!(
        cost <= looks,
        "{cost} reads within {took:?} for 1,000 who watch"
    );
    assert_eq!(reads(&far).await.0, 0, "nobody watches there");
    let each = seconds * 1_000.0 / all as f64;
    println!("1,000 watchers of a queue: {cost} reads within {took:?}, of {each:.1} ms each");
}

async fn a_node_that_leaves_sends_who_watches_a_queue_elsewhere() {
    let site = Site::new().await;
    let node = site.node().await;
    enqueue(&client(&node.url()), 1).await;
    let mut queues = QueueServiceClient::connect(node.url()).await.unwrap();
    let request = pb::WatchQueueRequest { queue: "q".into() };
    let mut watch = queues.watch_queue(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let begun = Instant::now();
    node.process.terminate();
    let status = loop {
        match tokio::time::timeout(SOON, watch.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    assert!(begun.elapsed() < Duration::from_secs(20), "not by its end");
}

async fn a_client_goes_on_to_watch_after_its_node_was_killed() {
    let site = Site::new().await;
    let mut node = site.node().await;
    let client = client(&node.url());
    enqueue(&client, 1).await;
    let mut watch = client.watch_queue("q");
    told(&mut watch, |queue| stats(queue).queued == 1).await;
    node.kill_and_restart().await;
    enqueue(&client, 1).await;
    told(&mut watch, |queue| stats(queue).queued == 2).await;
    let mut never = client.watch_queue("never");
    let refused = tokio::time::timeout(SOON, never.next()).await.unwrap();
    assert_eq!(
        refused.unwrap().unwrap_err().reason(),
        Some("QUEUE_NOT_FOUND")
    );
    assert!(never.next().await.is_none());
}

async fn top_and_audit_show_it_all_on_the_command_line() {
    let dev = Dev::start().await;
    let node = &dev.node;
    let (code, empty) = typed(node, &["top"]);
    assert!(code == Some(0) && empty.contains("no workers"), "{empty}");
    enqueue(&client(&node.url()), 3).await;
    let (_hand, welcome) = Hand::welcome(&node.url(), patient(1)).await;
    until(SOON, "the session is told of", async || {
        let sessions = client(&node.url()).sessions(None, 0, "").await.unwrap();
        (!sessions.sessions[0].queues.is_empty()).then_some(())
    })
    .await;
    // What it writes here is no terminal: one page, in plain text.
    let (code, page) = typed(node, &["top", "--interval", "1s"]);
    assert_eq!(code, Some(0), "{page}");
    assert!(!page.contains('\u{1b}'), "{page:?}");
    let first = page.lines().next().unwrap();
    assert!(
        first.contains(&node.url()) && first.ends_with("ready"),
        "{page}"
    );
    for word in ["QUEUE", "ENQUEUED/S", "WORKER", "hand", &welcome.session_id] {
        assert!(page.contains(word), "{word} is not in\n{page}");
    }
    in_a_terminal(node).await;
    let (_, json) = typed(node, &["top", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["health"], "ready");
    assert_eq!(json["nodes"][0]["sessions"], 1);
    assert_eq!(json["queues"][0]["name"], "q");
    assert_eq!(json["sessions"][0]["id"], welcome.session_id.as_str());
    let (code, _) = typed(node, &["top", "--interval", "1ms"]);
    assert_eq!(code, Some(2));
    let away = leasehold(["top", "--server", "http://127.0.0.1:1", "--deadline", "1s"]).output();
    assert_eq!(away.unwrap().status.code(), Some(3));

    for verb in ["pause", "resume", "pause"] {
        typed(node, &["queues", verb, "q", "--reason", "a\u{1b}[2J"]);
    }
    let (code, audit) = typed(node, &["audit"]);
    assert_eq!(code, Some(0));
    let actions = audit
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    let expected = ["ACTION", "PAUSE_QUEUE", "RESUME_QUEUE", "PAUSE_QUEUE"];
    assert_eq!(actions.collect::<Vec<_>>(), expected, "{audit}");
    assert!(
        audit.contains("ada") && !audit.contains('\u{1b}'),
        "{audit}"
    );
    let (_, json) = typed(node, &["audit", "--limit", "2", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(
        (&json[1]["action"], &json[1]["subject"]),
        (&"RESUME_QUEUE".into(), &"q".into())
    );

    // Who has read enough is not written to for ever.
    let url = node.url();
    let watching = ["queues", "get", "q", "--watch", "--server", &url];
    let mut watching = leasehold(watching)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(watching.stdout.take());
    until(SOON, "it ends by itself", async || {
        let ended = watching.try_wait().unwrap();
        enqueue(&client(&node.url()), 1).await;
        ended
    })
    .await;

    let following = ["audit", "--watch", "-o", "json", "--server", &url];
    let following = Process::start("audit", leasehold(following));
    let count = async |count: usize| {
        until(SOON, "it is told of", async || {
            (following.output().len() >= count).then_some(())
        })
        .await;
    };
    count(3).await;
    typed(node, &["queues", "resume", "q"]);
    count(4).await;
    typed(node, &["queues", "pause", "r"]);
    count(5).await;
    let output = following.output();
    let last: serde_json::Value = serde_json::from_str(&output[4]).unwrap();
    assert_eq!(
        (output.len(), &last["subject"]),
        (5, &"r".into()),
        "{output:?}"
    );
}

#[test]
fn what_goes_on_is_seen() {
    side_by_side([
        case(on_the_embedded_server),
        case(on_another_node),
        case(a_thousand_who_watch_cost_no_query_each),
        case(a_node_that_leaves_sends_who_watches_a_queue_elsewhere),
        case(a_client_goes_on_to_watch_after_its_node_was_killed),
        case(top_and_audit_show_it_all_on_the_command_line),
    ]);
}
