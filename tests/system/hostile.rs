//! Peers that take what they can get: connections, memory, time. None of them gets it at the cost of the others.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use worker_sdk::proto::job_service_client::JobServiceClient;
use worker_sdk::proto::lease_jobs_request::Message;
use worker_sdk::proto::lease_jobs_response::Message as Answer;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb, payload::Body};

use crate::stack::{Dev, START_WITHIN};
use crate::support::http::request;
use crate::support::{Process, free_port, leasehold};

const MIB: usize = 1 << 20;
/// The server ends what does not go on after 30 s; this is only so that a failing test ends.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

fn fields(status: &Status) -> Vec<String> {
    let bad = status.get_details_bad_request();
    let violations = bad.map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|v| v.field).collect()
}

fn spec() -> pb::JobSpec {
    pb::JobSpec {
        queue: "q".into(),
        kind: "k".into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_never_says_what_it_speaks_is_closed() {
    let dev = Dev::start().await;
    let hold = async |first: &[u8]| {
        let mut connection = TcpStream::connect(dev.node.address).await.unwrap();
        connection.write_all(first).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(ENDS_WITHIN, connection.read_to_end(&mut answer))
            .await
            .expect("the connection is closed")
            .unwrap();
        assert!(answer.is_empty());
    };
    // Nothing, and the beginning of what HTTP/2 begins with.
    tokio::join!(
        hold(b""),
        hold(b"P"),
        hold(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_message_never_comes_is_ended() {
    let dev = Dev::start().await;
    let channel = Channel::from_shared(dev.node.url()).unwrap();
    let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
    let call = async {
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::EnqueueRequest, pb::EnqueueResponse>::default();
        let path = "/leasehold.v1.JobService/Enqueue".parse().unwrap();
        let nothing = Request::new(tokio_stream::pending());
        client.client_streaming(nothing, path, codec).await
    };
    let answer = tokio::time::timeout(ENDS_WITHIN, call).await;
    let status = answer.expect("the call ends").unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::DeadlineExceeded, "BODY_TIMEOUT")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_s_limit_of_open_files_does_not_let_idle_clients_lock_out_others() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let dev = leasehold(["dev", "--ephemeral", "--listen", &address.to_string()]);
    // What a login shell on most systems gives.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", r#"ulimit -Sn 1024 && exec "$0" "$@""#])
        .arg(dev.get_program())
        .args(dev.get_args());
    let mut process = Process::start("dev", limited);
    process.ready(address, START_WITHIN).await;
    let mut idle = Vec::new();
    for _ in 0..1_200 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let answer = request(address, "POST", "/jobs", br#"{"queue":"q","kind":"k"}"#).await;
    assert_eq!(answer.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_name_no_lease_cost_the_server_no_more_than_others() {
    let dev = Dev::start().await;
    let queues = vec![pb::QueueSubscription {
        queue: "q".into(),
        max_in_flight: 0,
    }];
    let hello = pb::Hello {
        protocol: 1,
        queues,
        max_in_flight: 1,
        ..Default::default()
    };
    let unreadable = |size: usize| pb::Result {
        lease: Some(pb::Lease {
            job_id: "x".repeat(size),
            attempt: 7,
        }),
        outcome: None,
        log: None,
    };
    let long = pb::Results {
        results: vec![unreadable(4 * MIB)],
    };
    let many = pb::Results {
        results: vec![unreadable(1); 1_001],
    };
    let messages = [
        Message::Hello(hello),
        Message::Results(long),
        Message::Results(many),
    ];
    let messages = messages.map(|message| pb::LeaseJobsRequest {
        message: Some(message),
    });
    let mut client = WorkerServiceClient::connect(dev.node.url()).await.unwrap();
    let sent = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let mut answers = client.lease_jobs(sent).await.unwrap().into_inner();
    let mut receipts = Vec::new();
    let end = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                if let Some(Answer::Receipts(some)) = answer.message {
                    receipts.extend(some.receipts);
                }
            }
            Ok(None) => panic!("the stream ends with its reason"),
            Err(status) => break status,
        }
    };
    let [receipt] = receipts.as_slice() else {
        panic!("one receipt, not {}", receipts.len());
    };
    assert_eq!(receipt.status(), pb::ReceiptStatus::Unknown);
    let lease = receipt.lease.as_ref().unwrap();
    assert_eq!((lease.job_id.len(), lease.attempt), (128, 7));
    assert_eq!(
        (reason(&end).as_str(), fields(&end)),
        ("FIELD_INVALID", vec!["results.results".to_owned()])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_name_of_an_unknown_field_does_not_come_back() {
    let dev = Dev::start().await;
    let long = "x".repeat(100_000);
    let body = format!(r#"{{"queue":"q","kind":"k","{long}":1}}"#);
    let answer = request(dev.node.address, "POST", "/jobs", body.as_bytes()).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.len() < 1_000, "{} bytes", answer.body.len());
}

/// The bound of a batch is one number, by whichever face it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_measured_alike_on_both_faces() {
    let dev = Dev::start().await;
    let mut client = JobServiceClient::connect(dev.node.url())
        .await
        .unwrap()
        .max_encoding_message_size(64 * MIB);
    for (jobs, payload, label, fits) in [
        (4, MIB, 0, true),
        (4, MIB, 1, false),
        (263, 0, 15_000, true),
        (280, 0, 15_000, false),
    ] {
        let labels = [("a".to_owned(), "x".repeat(label))];
        let mut spec = pb::JobSpec {
            payload: Some(pb::Payload {
                content_type: String::new(),
                body: Some(Body::Text("x".repeat(payload))),
            }),
            ..spec()
        };
        let mut json =
            serde_json::json!({"queue": "q", "kind": "k", "payload_text": "x".repeat(payload)});
        if label > 0 {
            json["labels"] = serde_json::json!({"a": "x".repeat(label)});
            spec.labels = labels.into();
        }
        let one = pb::EnqueueRequest {
            job: Some(spec),
            ..Default::default()
        };
        let requests = vec![one; jobs];
        let over_grpc = client
            .enqueue_batch(pb::EnqueueBatchRequest { requests })
            .await
            .map_err(|status| reason(&status));
        let body = serde_json::json!({ "jobs": vec![json; jobs] }).to_string();
        let over_http = request(dev.node.address, "POST", "/jobs/batch", body.as_bytes()).await;
        let case = format!("{jobs} jobs of {payload} and {label} bytes");
        match fits {
            true => {
                assert_eq!(
                    over_grpc.map(|answer| answer.into_inner().responses.len()),
                    Ok(jobs),
                    "{case}"
                );
                assert_eq!(over_http.status, 201, "{case}");
            }
            false => {
                assert_eq!(over_grpc.unwrap_err(), "PAYLOAD_TOO_LARGE", "{case}");
                assert_eq!(over_http.status, 413, "{case}");
                assert_eq!(over_http.json()["errors"][0]["field"], "jobs", "{case}");
            }
        }
    }
}
