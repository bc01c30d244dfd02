//! The server as a browser meets it: gRPC-Web, and pages that may call or may not.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leasehold::proto;
use prost::Message;
use worker_sdk::NewJob;

use crate::stack::{Dev, Node, client};
use crate::support::http::{Answer, request_with};
use crate::support::until;

const PAGE: &str = "http://app.example:3000";

/// A call as a page makes it, in its form for old browsers: base64, message and trailers in one body.
async fn call(address: SocketAddr, method: &str, message: &impl Message) -> (Vec<u8>, String) {
    call_of(address, "JobService", method, message).await
}

async fn call_of(
    address: SocketAddr,
    service: &str,
    method: &str,
    message: &impl Message,
) -> (Vec<u8>, String) {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let frame = [&[0][..], &length, &message].concat();
    let path = format!("/leasehold.v1.{service}/{method}");
    let headers = [
        ("content-type", "application/grpc-web-text+proto"),
        ("accept", "application/grpc-web-text+proto"),
        ("x-grpc-web", "1"),
    ];
    let body = STANDARD.encode(frame);
    let answer = request_with(address, "POST", &path, &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    let (message, trailers) = frames(&answer.body);
    // Where there is no message the trailers are among the headers.
    let all = answer.head.replace(": ", ":") + &trailers;
    (message, all)
}

/// The last message and the trailers of a body, whose parts are padded one by one.
fn frames(text: &str) -> (Vec<u8>, String) {
    let parts = text.split_inclusive("=").collect::<String>();
    let mut bytes = Vec::new();
    for part in parts.split('=').filter(|part| !part.is_empty()) {
        let padding = "=".repeat((4 - part.len() % 4) % 4);
        bytes.extend(STANDARD.decode(format!("{part}{padding}")).unwrap());
    }
    let (mut message, mut trailers) = (Vec::new(), String::new());
    while let Some((head, rest)) = bytes.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..5].try_into().unwrap()) as usize;
        let (body, rest) = rest.split_at(length);
        match head[0] {
            0 => message = body.to_vec(),
            _ => trailers = String::from_utf8(body.to_vec()).unwrap(),
        }
        bytes = rest.to_vec();
    }
    (message, trailers)
}

#[tokio::test]
async fn a_page_enqueues_reads_and_is_told_what_is_wrong_by_grpc_web() {
    let dev = Dev::start().await;
    let address = dev.node.address;
    let spec = proto::JobSpec {
        queue: "web".into(),
        kind: "greet".into(),
        payload: Some(proto::Payload {
            content_type: "text/plain".into(),
            body: Some(proto::payload::Body::Text("Ada".into())),
        }),
        ..Default::default()
    };
    let enqueue = proto::EnqueueRequest {
        job: Some(spec),
        ..Default::default()
    };
    let (message, trailers) = call(address, "Enqueue", &enqueue).await;
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let accepted = proto::EnqueueResponse::decode(&message[..]).unwrap();
    let id = accepted.job.unwrap().id;
    let get = |job_id: &str| proto::GetJobRequest {
        job_id: job_id.into(),
        ..Default::default()
    };
    let (message, _) = call(address, "GetJob", &get(&id)).await;
    let job = proto::GetJobResponse::decode(&message[..]).unwrap().job;
    assert_eq!(job.unwrap().spec.unwrap().kind, "greet");
    let (message, trailers) = call(address, "GetJob", &get("nonsense")).await;
    assert!(message.is_empty());
    assert!(trailers.contains("grpc-status:3"), "{trailers}");
    assert!(trailers.contains("job_id"), "{trailers}");
}

#[tokio::test]
async fn a_page_watches_a_queue_until_the_node_leaves() {
    let dev = Dev::start().await;
    let address = dev.node.address;
    let job = NewJob::new("greet", "Ada").unwrap().queue("web");
    client(&dev.node.url()).enqueue(job).await.unwrap();
    let watching = tokio::spawn(async move {
        let queue = "web".to_owned();
        let request = proto::WatchQueueRequest { queue };
        call_of(address, "QueueService", "WatchQueue", &request).await
    });
    until(Duration::from_secs(60), "it watches", async || {
        let metrics = request_with(address, "GET", "/metrics", &[], b"").await;
        metrics
            .body
            .contains("leasehold_watchers 1\n")
            .then_some(())
    })
    .await;
    dev.node.process.terminate();
    let (message, trailers) = watching.await.unwrap();
    let told = proto::WatchQueueResponse::decode(&message[..]).unwrap();
    let queue = told.queue.unwrap();
    assert_eq!(
        (queue.name.as_str(), queue.stats.unwrap().queued),
        ("web", 1)
    );
    assert!(trailers.contains("grpc-status:14"), "{trailers}");
}

#[tokio::test]
async fn a_page_from_elsewhere_may_call_only_if_it_is_named() {
    let args = ["dev", "--ephemeral", "--web-origins", PAGE];
    let node = Node::start(args.map(str::to_owned).into()).await;
    let client = client(&node.url());
    let job = NewJob::new("greet", "Ada").unwrap();
    let job = job.delay(Duration::from_secs(3_600));
    let id = client.enqueue(job).await.unwrap().job.id;
    let cancel = async |origin: &str| {
        // What a page can send without asking first: no body, no header of its own.
        let path = format!("/jobs/{id}/cancel");
        request_with(node.address, "POST", &path, &[("origin", origin)], b"").await
    };
    for foreign in ["https://evil.example", "null", "http://app.example:3001"] {
        let refused = cancel(foreign).await;
        assert_eq!(refused.status, 403);
        assert_eq!(refused.json()["reason"], "ORIGIN_FORBIDDEN");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    assert_eq!(
        client.get(&id).await.unwrap().state().as_str_name(),
        "JOB_STATE_SCHEDULED"
    );

    let asked = ask_first(&node, PAGE).await;
    assert_eq!(asked.status, 200);
    assert_eq!(asked.header("access-control-allow-origin"), Some(PAGE));
    let methods = asked.header("access-control-allow-methods").unwrap();
    assert!(methods.contains("POST"), "{methods}");
    let headers = asked.header("access-control-allow-headers").unwrap();
    for needed in ["content-type", "idempotency-key", "x-grpc-web"] {
        assert!(headers.contains(needed), "{headers}");
    }
    assert_eq!(ask_first(&node, "https://evil.example").await.status, 403);

    let done = cancel(PAGE).await;
    assert_eq!(done.status, 200);
    assert_eq!(done.header("access-control-allow-origin"), Some(PAGE));
    let exposed = done.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("grpc-status"), "{exposed}");
    // A page that the server itself might have sent.
    assert_eq!(cancel(&node.url()).await.status, 200);
}

/// What a browser asks before a call that is not plain.
async fn ask_first(node: &Node, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,x-grpc-web"),
    ];
    let path = "/leasehold.v1.JobService/Enqueue";
    request_with(node.address, "OPTIONS", path, &headers, b"").await
}
