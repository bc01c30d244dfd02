//! Server-sent events, line by line.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;

use super::*;

/// An answer that goes on.
struct Open(Lines<BufReader<TcpStream>>);

impl Open {
    async fn get(address: std::net::SocketAddr, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(BufReader::new(stream).lines())
    }

    /// The next line that begins so, and the rest of it.
    async fn line(&mut self, beginning: &str) -> String {
        let search = async {
            while let Some(line) = self.0.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return rest.to_owned();
                }
            }
            unreachable!("the answer ended before {beginning:?}")
        };
        let found = tokio::time::timeout(Duration::from_secs(20), search);
        found.await.expect("it comes")
    }

    /// The next event's name, and its id if it has one.
    async fn event(&mut self) -> (String, Option<String>, serde_json::Value) {
        let name = self.line("event: ").await;
        let id = match name.as_str() {
            "job" => Some(self.line("id: ").await),
            _ => None,
        };
        let data = self.line("data: ").await;
        (name, id, serde_json::from_str(&data).unwrap())
    }
}

async fn job(address: std::net::SocketAddr) -> String {
    let made = post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    made.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_job_s_events_end_with_it_and_a_client_that_comes_back_is_told_so() {
    let (address, _node) = serve().await;
    let id = job(address).await;
    let path = format!("/jobs/{id}/events");
    let mut open = Open::get(address, &path, "").await;
    open.line("HTTP/1.1 200").await;
    open.line("content-type: text/event-stream").await;
    let (name, revision, data) = open.event().await;
    assert_eq!((name.as_str(), revision.as_deref()), ("job", Some("1")));
    assert_eq!(
        (&data["id"], &data["state"]),
        (&json!(id), &json!("QUEUED"))
    );
    assert!(data.get("payload").is_none(), "a basic view");

    // Who knows the first event is told the second.
    let mut later = Open::get(address, &path, "last-event-id: 1\r\n").await;
    later.line("HTTP/1.1 200").await;
    post(address, &format!("/jobs/{id}/cancel"), "").await;
    for open in [&mut open, &mut later] {
        let (name, revision, data) = open.event().await;
        assert_eq!((name.as_str(), revision.as_deref()), ("job", Some("2")));
        assert_eq!(data["state"], "CANCELLED");
        assert_eq!(open.event().await, ("end".to_owned(), None, json!({})));
    }
    let known = "last-event-id: 2\r\n";
    let back = call(address, &format!("GET {path}"), known, b"").await;
    assert_eq!((back.status, back.text.as_str()), (204, ""));
    // Who comes for the first time is told how it ended.
    let whole = fetch(address, &format!("{path}?view=FULL")).await;
    assert!(whole.text.contains("event: end"), "{}", whole.text);
}

#[tokio::test]
async fn events_that_cannot_be_told_are_refused() {
    let (address, node) = serve().await;
    let id = job(address).await;
    let path = format!("/jobs/{id}/events");
    let bad = call(address, &format!("GET {path}"), "last-event-id: x\r\n", b"").await;
    assert_eq!(bad.problem().2, ["Last-Event-ID"]);
    let bad = fetch(address, &format!("{path}?view=ALL&wait=1s")).await;
    assert_eq!(bad.problem().2, ["view", "wait"]);
    let bad = fetch(address, &format!("{path}?log=perhaps&after_log=x")).await;
    assert_eq!(bad.problem().2, ["log", "after_log"]);
    let nobody = uuid::Uuid::now_v7();
    let missing = fetch(address, &format!("/jobs/{nobody}/events")).await;
    assert_eq!(missing.problem(), (404, "JOB_NOT_FOUND".into(), vec![]));

    let mut open = Open::get(address, &path, "").await;
    open.event().await;
    node.engine.drain(Duration::ZERO).await;
    let (name, _, data) = open.event().await;
    assert_eq!(
        (name.as_str(), &data["reason"]),
        ("problem", &json!("DRAINING"))
    );
    let leaving = fetch(address, &path).await;
    assert_eq!(leaving.problem(), (503, "DRAINING".into(), vec![]));
}

#[tokio::test]
async fn who_leaves_is_not_waited_for() {
    let (address, node) = serve().await;
    let id = job(address).await;
    let mut open = Open::get(address, &format!("/jobs/{id}/events"), "").await;
    open.event().await;
    let waiting = Open::get(address, &format!("/jobs/{id}?wait=60s"), "").await;
    let watchers = async |count: usize| {
        let line = format!("leasehold_watchers {count}\n");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !node.engine.metrics().render().unwrap().contains(&line) {
            assert!(Instant::now() < deadline, "never {count} watchers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    watchers(2).await;
    drop((open, waiting));
    watchers(0).await;
}

#[tokio::test]
async fn a_queue_s_events_tell_its_numbers_and_settings_until_the_node_leaves() {
    let (address, node) = serve().await;
    let never = fetch(address, "/queues/q/events").await;
    assert_eq!(never.problem(), (404, "QUEUE_NOT_FOUND".into(), vec![]));
    job(address).await;
    let mut open = Open::get(address, "/queues/q/events", "").await;
    open.line("HTTP/1.1 200").await;
    open.line("content-type: text/event-stream").await;
    let (name, _, first) = open.event().await;
    assert_eq!(name, "queue");
    assert_eq!(
        (&first["name"], &first["paused"]),
        (&json!("q"), &json!(false))
    );
    assert_eq!(first["stats"]["queued"], 1);

    job(address).await;
    post(address, "/queues/q/pause", "{}").await;
    loop {
        let (name, _, data) = open.event().await;
        assert_eq!(name, "queue");
        if data["stats"]["queued"] == 2 && data["paused"] == true {
            assert_ne!(data["etag"], first["etag"]);
            break;
        }
    }
    node.engine.drain(Duration::ZERO).await;
    let last = loop {
        let (name, _, data) = open.event().await;
        if name != "queue" {
            break (name, data["reason"].clone());
        }
    };
    assert_eq!(last, ("problem".to_owned(), json!("DRAINING")));
}
