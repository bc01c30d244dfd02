//! The face through a real socket, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::engine::Engine;

/// The one place that knows how an engine is made.
async fn engine() -> Arc<Engine> {
    Engine::stand_in().unwrap()
}

struct Answer {
    status: u16,
    head: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect(&self.text)
    }

    /// Status, reason and fields of a problem, after checking that it is one.
    fn problem(&self) -> (u16, String, Vec<String>) {
        assert!(
            self.head.contains("content-type: application/problem+json"),
            "{}{}",
            self.head,
            self.text
        );
        let body = self.json();
        assert_eq!(body["status"], self.status);
        assert_eq!(body["type"], "about:blank");
        assert!(body["title"].is_string() && body["detail"].is_string());
        let fields = body["errors"].as_array().into_iter().flatten();
        let fields = fields.map(|e| e["field"].as_str().unwrap().to_owned());
        (
            self.status,
            body["reason"].as_str().unwrap().to_owned(),
            fields.collect(),
        )
    }
}

async fn serve() -> (SocketAddr, Arc<Engine>) {
    let engine = engine().await;
    let router = super::router(Arc::clone(&engine));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, engine)
}

/// Sends bytes as they are and reads the answer to its end.
async fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A refused body may be answered before all of it is taken.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer");
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        text: text.to_owned(),
    }
}

async fn call(address: SocketAddr, line: &str, headers: &str, body: &[u8]) -> Answer {
    let mut bytes =
        format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}").into_bytes();
    if !body.is_empty() {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    raw(address, &bytes).await
}

async fn post(address: SocketAddr, path: &str, body: impl AsRef<[u8]>) -> Answer {
    let json = "content-type: application/json\r\n";
    call(address, &format!("POST {path}"), json, body.as_ref()).await
}

async fn fetch(address: SocketAddr, path: &str) -> Answer {
    call(address, &format!("GET {path}"), "", b"").await
}

#[tokio::test]
async fn a_job_is_accepted_found_and_accepted_again_as_the_same() {
    let (address, _) = serve().await;
    let id = uuid::Uuid::now_v7().to_string();
    let body = format!(r#"{{"job_id":"{id}","queue":"q","kind":"k","payload":{{"n": 1.0}}}}"#);
    let made = post(address, "/jobs", &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert!(made.head.contains(&format!("location: /jobs/{id}")));
    assert_eq!(made.json()["state"], "QUEUED");

    let again = post(address, "/jobs", &body).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(id)));

    let other = post(address, "/jobs", body.replace("1.0", "2")).await;
    assert_eq!(other.problem(), (409, "ID_CONFLICT".into(), vec![]));

    let found = fetch(address, &format!("/jobs/{id}?wait=0s")).await;
    // Byte for byte, with its space.
    assert!(
        found.text.contains(r#""payload":{"n": 1.0}"#),
        "{}",
        found.text
    );
    let job = found.json();
    assert_eq!(
        (&job["timeout"], &job["retention"], &job["priority"]),
        (&json!("3600s"), &json!("604800s"), &json!("NORMAL"))
    );
    assert!(job["create_time"].as_str().unwrap().ends_with('Z'));

    let basic = fetch(address, &format!("/jobs/{id}?view=BASIC")).await;
    assert!(basic.json().get("payload").is_none());
}

#[tokio::test]
async fn a_batch_is_all_or_none_and_names_the_bad_one() {
    let (address, _) = serve().await;
    let bad = post(
        address,
        "/jobs/batch",
        r#"{"jobs":[{"queue":"q","kind":"k"},{"queue":"","kind":"k"}]}"#,
    )
    .await;
    let expected = (400, "FIELD_INVALID".into(), vec!["jobs[1].queue".into()]);
    assert_eq!(bad.problem(), expected);
    assert_eq!(fetch(address, "/jobs").await.json()["jobs"], json!([]));

    let good = post(
        address,
        "/jobs/batch",
        r#"{"jobs":[{"queue":"q","kind":"k"},{"queue":"q","kind":"k"}]}"#,
    )
    .await;
    assert_eq!(good.status, 201);
    assert_eq!(good.json()["jobs"][1]["existed"], false);

    for (body, field) in [
        ("{}".to_owned(), "jobs"),
        (r#"{"jobs":[]}"#.to_owned(), "jobs"),
        (r#"{"jobs":{}}"#.to_owned(), "jobs"),
        (format!(r#"{{"jobs":[{}0]}}"#, "0,".repeat(1000)), "jobs"),
        (r#"{"jobs":[0]}"#.to_owned(), "jobs[0]"),
    ] {
        let (status, _, fields) = post(address, "/jobs/batch", &body).await.problem();
        assert_eq!((status, fields[0].as_str()), (400, field));
    }
    let payload = "x".repeat(900_000);
    let large = format!(r#"{{"queue":"q","kind":"k","payload":"{payload}"}}"#);
    let large = format!(r#"{{"jobs":[{}]}}"#, [large.as_str(); 5].join(","));
    let expected = (413, "PAYLOAD_TOO_LARGE".into(), vec!["jobs".into()]);
    assert_eq!(
        post(address, "/jobs/batch", large).await.problem(),
        expected
    );
}

#[tokio::test]
async fn a_list_goes_on_where_its_page_ended() {
    let (address, _) = serve().await;
    for _ in 0..5 {
        post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    }
    post(address, "/jobs", r#"{"queue":"other","kind":"k"}"#).await;
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/jobs?queue=q&state=QUEUED&page_size=2&page_token={token}");
        let page = fetch(address, &path).await.json();
        let jobs = page["jobs"].as_array().unwrap();
        seen.extend(
            jobs.iter()
                .map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
        let elsewhere = fetch(address, &format!("/jobs?page_token={token}")).await;
        assert_eq!(elsewhere.problem().2, ["page_token"]);
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by(|a, b| a > b));
}

#[tokio::test]
async fn a_job_is_cancelled_and_brought_back() {
    let (address, _) = serve().await;
    let made = post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let retry = post(address, &format!("/jobs/{id}/retry"), "").await;
    assert_eq!(retry.problem(), (409, "JOB_STATE".into(), vec![]));
    // Neither call needs a body, nor a content type without one.
    let cancelled = call(address, &format!("POST /jobs/{id}/cancel"), "", b"").await;
    assert_eq!(cancelled.json()["state"], "CANCELLED");
    let back = post(address, &format!("/jobs/{id}/retry"), r#"{"delay":"0s"}"#).await;
    assert_eq!(back.json()["state"], "QUEUED");

    for (path, body, field) in [
        ("cancel", r#"{"reason":"\u0000"}"#, "reason"),
        ("cancel", r#"{"why":"x"}"#, "why"),
        ("retry", r#"{"delay":"-1s"}"#, "delay"),
        ("retry", r#"{"delay":"999999999999s"}"#, "delay"),
    ] {
        let answer = post(address, &format!("/jobs/{id}/{path}"), body).await;
        assert_eq!(answer.problem().2, [field]);
    }
    let nobody = uuid::Uuid::now_v7();
    let missing = post(address, &format!("/jobs/{nobody}/cancel"), "").await;
    assert_eq!(missing.problem(), (404, "JOB_NOT_FOUND".into(), vec![]));
    let no_id = fetch(address, "/jobs/7").await.problem();
    assert_eq!(no_id, (400, "FIELD_INVALID".into(), vec!["job_id".into()]));
}

#[tokio::test]
async fn what_is_no_request_is_refused_as_a_problem() {
    let (address, engine) = serve().await;
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    let answer = call(address, "POST /jobs", form, b"{}").await.problem();
    assert_eq!(
        (answer.0, answer.1.as_str()),
        (415, "CONTENT_TYPE_UNSUPPORTED")
    );

    let answer = call(address, "DELETE /jobs", "", b"").await;
    assert_eq!(answer.problem().0, 405);
    assert!(
        answer.head.contains("allow: post,get,head")
            || answer.head.contains("allow: get,head,post")
    );
    assert_eq!(fetch(address, "/nothing").await.problem().1, "PATH_UNKNOWN");
    assert_eq!(
        fetch(address, "/jobs/%ff").await.problem().1,
        "PATH_UNKNOWN"
    );

    for (body, fields) in [
        (&b"{"[..], &["body"][..]),
        (b"", &["body"]),
        (b"{\"queue\":\"a\xff\",\"kind\":\"k\"}", &["queue"]),
        (
            br#"{"queue":"q","kind":"k","kind":"l","x":1}"#,
            &["kind", "x"],
        ),
        (br#"{"queue":"q\u0000","kind":"k"}"#, &["queue"]),
    ] {
        let (status, reason, found) = post(address, "/jobs", body).await.problem();
        assert_eq!(
            (status, reason.as_str(), found.as_slice()),
            (
                400,
                "FIELD_INVALID",
                &*fields.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>()
            )
        );
    }
    let deep = format!(
        r#"{{"queue":"q","kind":"k","payload":{}{}}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    assert_eq!(post(address, "/jobs", deep).await.problem().2, ["body"]);

    let key = "content-type: application/json\r\nidempotency-key: 1\r\n";
    let answer = call(address, "POST /jobs", key, br#"{"queue":"q","kind":"k"}"#).await;
    assert_eq!(answer.problem().2, ["Idempotency-Key"]);

    let counted = engine.metrics().render().unwrap();
    for line in [
        r#"leasehold_failed_requests_total{face="http",reason="METHOD_NOT_ALLOWED"} 1"#,
        r#"leasehold_failed_requests_total{face="http",reason="PATH_UNKNOWN"} 2"#,
        r#"leasehold_failed_requests_total{face="http",reason="CONTENT_TYPE_UNSUPPORTED"} 1"#,
    ] {
        assert!(counted.contains(line), "{line} is not in\n{counted}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_unread_and_while_it_is_read() {
    let (address, _) = serve().await;
    let head = "POST /jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let said = format!("{head}content-length: 99999999999\r\n\r\n{{");
    let answer = raw(address, said.as_bytes()).await;
    assert_eq!(answer.problem().0, 413);
    assert!(answer.head.contains("connection: close"));

    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..7 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend(std::iter::repeat_n(b' ', 0x10_0000));
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(raw(address, &chunked).await.problem().0, 413);
}

#[tokio::test]
async fn the_node_tells_how_it_is() {
    let (address, engine) = serve().await;
    assert_eq!(fetch(address, "/livez").await.status, 200);
    assert_eq!(fetch(address, "/readyz").await.text, "ready\n");
    let metrics = fetch(address, "/metrics").await;
    assert!(metrics.head.contains("text/plain; version=0.0.4"));

    engine.health.lock().unwrap().ready_list = false;
    let degraded = fetch(address, "/readyz").await;
    assert_eq!(degraded.status, 200);
    assert!(degraded.text.contains("degraded: redis"));

    engine.health.lock().unwrap().store = false;
    assert_eq!(fetch(address, "/readyz").await.status, 503);
    let down = post(address, "/jobs", r#"{"queue":"q","kind":"k"}"#).await;
    assert_eq!(down.problem(), (503, "STORE_UNAVAILABLE".into(), vec![]));
    assert!(down.head.contains("retry-after: 1"));
    assert_eq!(fetch(address, "/livez").await.status, 200);
}
