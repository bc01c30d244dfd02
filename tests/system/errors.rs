//! Bad input gets a clear answer, the same over gRPC and HTTP, with the field named; and it harms nobody else.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use prost_types::Duration as ProtoDuration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use worker_sdk::proto::job_service_client::JobServiceClient;
use worker_sdk::proto::lease_jobs_request::Message;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb, job_spec::Start, payload::Body};

use crate::stack::Dev;
use crate::support::http::{request, request_as};
use crate::workers::Local;

const MIB: usize = 1 << 20;

async fn jobs(dev: &Dev) -> JobServiceClient<Channel> {
    JobServiceClient::connect(dev.node.url())
        .await
        .unwrap()
        .max_encoding_message_size(64 * MIB)
}

fn good() -> pb::EnqueueRequest {
    let spec = pb::JobSpec {
        queue: "q".into(),
        kind: "k".into(),
        ..Default::default()
    };
    pb::EnqueueRequest {
        job: Some(spec),
        ..Default::default()
    }
}

fn with(change: impl FnOnce(&mut pb::JobSpec)) -> pb::EnqueueRequest {
    let mut request = good();
    change(request.job.as_mut().unwrap());
    request
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map(|info| info.reason)
        .unwrap_or_default()
}

fn fields(status: &Status) -> Vec<String> {
    let found = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();
    found.into_iter().map(|violation| violation.field).collect()
}

fn seconds(seconds: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds, nanos: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_field_is_named_over_grpc() {
    let dev = Dev::start().await;
    let mut client = jobs(&dev).await;
    let label = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let many = || (0..65).map(|n| (n.to_string(), String::new())).collect();
    let cases = [
        (with(|job| job.queue = String::new()), "job.queue"),
        (with(|job| job.queue = "x".repeat(129)), "job.queue"),
        (with(|job| job.queue = "a b".into()), "job.queue"),
        (with(|job| job.kind = "ä".into()), "job.kind"),
        (with(|job| job.kind = "a\0".into()), "job.kind"),
        (with(|job| job.priority = 9), "job.priority"),
        (
            with(|job| job.start = Some(Start::Delay(seconds(-1).unwrap()))),
            "job.delay",
        ),
        (
            with(|job| job.start = Some(Start::Delay(seconds(i64::MAX).unwrap()))),
            "job.delay",
        ),
        (with(|job| job.timeout = seconds(-5)), "job.timeout"),
        (
            with(|job| {
                job.timeout = Some(ProtoDuration {
                    seconds: 1,
                    nanos: -1,
                })
            }),
            "job.timeout",
        ),
        (
            with(|job| job.retention = seconds(i64::MIN)),
            "job.retention",
        ),
        (with(|job| job.max_attempts = u32::MAX), "job.max_attempts"),
        (
            with(|job| job.expiry = seconds(0).map(pb::job_spec::Expiry::ExpireIn)),
            "job.expire_in",
        ),
        (
            with(|job| job.expiry = Some(pb::job_spec::Expiry::ExpireTime(Default::default()))),
            "job.expire_time",
        ),
        (
            with(|job| {
                job.backoff = Some(pb::Backoff {
                    factor: f64::NAN,
                    ..Default::default()
                })
            }),
            "job.backoff.factor",
        ),
        (
            with(|job| {
                job.backoff = Some(pb::Backoff {
                    initial: seconds(0),
                    ..Default::default()
                })
            }),
            "job.backoff.initial",
        ),
        (with(|job| job.labels = label("a b", "")), "job.labels"),
        (with(|job| job.labels = label("a", "\0")), "job.labels"),
        (with(|job| job.headers = many()), "job.headers"),
        (
            with(|job| job.headers = label("a", &"x".repeat(17 * 1024))),
            "job.labels",
        ),
        (
            with(|job| {
                job.payload = Some(pb::Payload {
                    content_type: "x".repeat(256),
                    body: None,
                })
            }),
            "job.payload.content_type",
        ),
        (
            pb::EnqueueRequest {
                job_id: "no-uuid".into(),
                ..good()
            },
            "job_id",
        ),
        (
            pb::EnqueueRequest {
                job_id: uuid::Uuid::new_v4().to_string(),
                ..good()
            },
            "job_id",
        ),
        (
            pb::EnqueueRequest {
                idempotency_key: "x".repeat(256),
                ..good()
            },
            "idempotency_key",
        ),
        (
            with(|job| job.unique_key = "x".repeat(256)),
            "job.unique_key",
        ),
        (
            pb::EnqueueRequest {
                unique_conflict: pb::UniqueConflict::Replace.into(),
                ..good()
            },
            "unique_conflict",
        ),
        // A UUIDv7 of the year 2020.
        (
            pb::EnqueueRequest {
                job_id: "016f6000-0000-7000-8000-000000000000".into(),
                ..good()
            },
            "job_id",
        ),
    ];
    for (request, field) in cases {
        let status = client.enqueue(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert_eq!(
            (reason(&status).as_str(), fields(&status)),
            ("FIELD_INVALID", vec![field.to_owned()])
        );
    }
    let large = pb::Payload {
        content_type: String::new(),
        body: Some(Body::Data(vec![0; MIB + 1].into())),
    };
    let status = client
        .enqueue(with(|job| job.payload = Some(large)))
        .await
        .unwrap_err();
    assert_eq!(
        (reason(&status).as_str(), fields(&status)),
        ("PAYLOAD_TOO_LARGE", vec!["job.payload".to_owned()])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_or_a_watch_that_cannot_be_is_refused() {
    let dev = Dev::start().await;
    let mut client = jobs(&dev).await;
    let job = client.enqueue(good()).await.unwrap().into_inner().job;
    let job_id = job.unwrap().id;
    let get = pb::GetJobRequest {
        job_id: job_id.clone(),
        wait: seconds(61),
        ..Default::default()
    };
    let status = client.get_job(get).await.unwrap_err();
    assert_eq!(fields(&status), ["wait"]);
    let watch = |job_id: &str, view| pb::WatchJobRequest {
        job_id: job_id.to_owned(),
        view,
        ..Default::default()
    };
    for (request, field) in [(watch("7", 0), "job_id"), (watch(&job_id, 9), "view")] {
        let status = client.watch_job(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert_eq!(fields(&status), [field]);
    }
    let nobody = uuid::Uuid::now_v7().to_string();
    let status = client.watch_job(watch(&nobody, 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(&status), "JOB_NOT_FOUND");
    let explain = pb::ExplainJobRequest { job_id: "7".into() };
    let status = client.explain_job(explain).await.unwrap_err();
    assert_eq!(fields(&status), ["job_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_of_a_batch_is_named_by_its_index_and_nothing_is_accepted() {
    let dev = Dev::start().await;
    let mut client = jobs(&dev).await;
    let mut requests = vec![good(); 20];
    requests[17].job.as_mut().unwrap().queue = "not a name".into();
    let status = client
        .enqueue_batch(pb::EnqueueBatchRequest { requests })
        .await
        .unwrap_err();
    assert_eq!(fields(&status), ["requests[17].job.queue"]);
    for count in [0, 1_001] {
        let status = client
            .enqueue_batch(pb::EnqueueBatchRequest {
                requests: vec![good(); count],
            })
            .await
            .unwrap_err();
        assert_eq!(fields(&status), ["requests"], "{count}");
    }
    let half = pb::Payload {
        content_type: String::new(),
        body: Some(Body::Data(vec![0; MIB / 2].into())),
    };
    let requests = vec![with(|job| job.payload = Some(half)); 9];
    let status = client
        .enqueue_batch(pb::EnqueueBatchRequest { requests })
        .await
        .unwrap_err();
    assert_eq!(
        (reason(&status).as_str(), fields(&status)),
        ("PAYLOAD_TOO_LARGE", vec!["requests".to_owned()])
    );
    let listed = client
        .list_jobs(pb::ListJobsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(listed.jobs.is_empty(), "all or nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_not_possible_says_so_on_both_faces() {
    let dev = Dev::start().await;
    let (mut client, address) = (jobs(&dev).await, dev.node.address);
    let unknown = uuid::Uuid::now_v7().to_string();
    let get = pb::GetJobRequest {
        job_id: unknown.clone(),
        ..Default::default()
    };
    let status = client.get_job(get).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "JOB_NOT_FOUND")
    );
    let answer = request(address, "GET", &format!("/jobs/{unknown}"), b"").await;
    assert_eq!(
        (answer.status, answer.json()["reason"].as_str()),
        (404, Some("JOB_NOT_FOUND"))
    );

    let job = client
        .enqueue(good())
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    let retry = pb::RetryJobRequest {
        job_id: job.id.clone(),
        delay: None,
        ..Default::default()
    };
    let status = client.retry_job(retry).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "JOB_STATE")
    );
    let answer = request(address, "POST", &format!("/jobs/{}/retry", job.id), b"{}").await;
    assert_eq!(
        (answer.status, answer.json()["reason"].as_str()),
        (409, Some("JOB_STATE"))
    );

    let other = pb::EnqueueRequest {
        job_id: job.id.clone(),
        ..with(|spec| spec.kind = "other".into())
    };
    let status = client.enqueue(other).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::AlreadyExists, "ID_CONFLICT")
    );
    let body = format!(r#"{{"job_id":"{}","queue":"q","kind":"other"}}"#, job.id);
    let answer = request(address, "POST", "/jobs", body.as_bytes()).await;
    assert_eq!(
        (answer.status, answer.json()["reason"].as_str()),
        (409, Some("ID_CONFLICT"))
    );

    for token in ["x", "AQ", "!!"] {
        let list = pb::ListJobsRequest {
            page_token: token.into(),
            ..Default::default()
        };
        let status = client.list_jobs(list).await.unwrap_err();
        assert_eq!(fields(&status), ["page_token"]);
    }
    let wait = pb::GetJobRequest {
        job_id: job.id,
        wait: seconds(61),
        ..Default::default()
    };
    assert_eq!(fields(&client.get_job(wait).await.unwrap_err()), ["wait"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_body_is_refused_over_http_with_its_field() {
    let dev = Dev::start().await;
    let address = dev.node.address;
    let cases: &[(&[u8], u16, Option<&str>)] = &[
        (br#"{"queue":"a b","kind":"k"}"#, 400, Some("queue")),
        (br#"{"queue":"q"}"#, 400, Some("kind")),
        (
            br#"{"queue":"q","kind":"k","nonsense":1}"#,
            400,
            Some("nonsense"),
        ),
        (
            br#"{"queue":"q","queue":"q","kind":"k"}"#,
            400,
            Some("queue"),
        ),
        (
            br#"{"queue":"q","kind":"k","labels":{"a":"1","a":"2"}}"#,
            400,
            Some("labels"),
        ),
        (
            br#"{"queue":"q","kind":"k","labels":{"a":"\u0000"}}"#,
            400,
            Some("labels"),
        ),
        (
            br#"{"queue":"q","kind":"k","delay":"-1s"}"#,
            400,
            Some("delay"),
        ),
        (
            br#"{"queue":"q","kind":"k","delay":"soon"}"#,
            400,
            Some("delay"),
        ),
        (
            br#"{"queue":"q","kind":"k","priority":"URGENT"}"#,
            400,
            Some("priority"),
        ),
        (
            br#"{"queue":"q","kind":"k","job_id":"x"}"#,
            400,
            Some("job_id"),
        ),
        (b"{\"queue\":\"\xff\",\"kind\":\"k\"}", 400, None),
        (br#"{"queue":"q","kind""#, 400, None),
        (b"[]", 400, None),
    ];
    for (body, status, field) in cases {
        let answer = request(address, "POST", "/jobs", body).await;
        let shown = String::from_utf8_lossy(body);
        assert_eq!(answer.status, *status, "{shown}: {}", answer.body);
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{shown}"
        );
        if let Some(field) = field {
            let errors = answer.json()["errors"].clone();
            let named = errors
                .as_array()
                .unwrap()
                .iter()
                .any(|e| e["field"] == *field);
            assert!(named, "{shown}: {}", answer.body);
        }
    }
    let deep = format!(
        r#"{{"queue":"q","kind":"k","payload":{}{}}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    assert_eq!(
        request(address, "POST", "/jobs", deep.as_bytes())
            .await
            .status,
        400
    );
    let large = format!(
        r#"{{"queue":"q","kind":"k","payload":"{}"}}"#,
        "x".repeat(MIB)
    );
    let answer = request(address, "POST", "/jobs", large.as_bytes()).await;
    assert_eq!(
        (answer.status, answer.json()["reason"].as_str()),
        (413, Some("PAYLOAD_TOO_LARGE"))
    );
    let answer = request(address, "POST", "/jobs", &vec![b' '; 16 * MIB]).await;
    assert_eq!(answer.status, 413);
    assert_eq!(
        request_as(address, "POST", "/jobs", "text/plain", b"{}")
            .await
            .status,
        415
    );
    let answer = request(address, "DELETE", "/jobs", b"").await;
    assert_eq!(answer.status, 405);
    assert!(
        answer
            .header("allow")
            .is_some_and(|allow| allow.contains("POST"))
    );
    assert_eq!(request(address, "GET", "/nowhere", b"").await.status, 404);
    assert_eq!(
        request(address, "GET", "/jobs/no-uuid", b"").await.status,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn json_in_is_json_out_byte_for_byte() {
    let dev = Dev::start().await;
    let address = dev.node.address;
    let payload = r#"{"b": 1.0e2,  "a":[ 1,2 ], "big":12345678901234567890123}"#;
    let body = format!(
        r#"{{"queue":"q","kind":"k","payload":{payload},"delay":"90s","timeout":"1.5s","max_attempts":"3"}}"#
    );
    let answer = request(address, "POST", "/jobs", body.as_bytes()).await;
    assert_eq!(answer.status, 201, "{}", answer.body);
    let location = answer.header("location").unwrap().to_owned();
    let answer = request(address, "GET", &location, b"").await;
    assert!(answer.body.contains(payload), "{}", answer.body);
    let job = answer.json();
    assert_eq!(
        (job["state"].as_str(), job["timeout"].as_str()),
        (Some("SCHEDULED"), Some("1.500s"))
    );
    let again = body.replacen('{', &format!(r#"{{"job_id":{},"#, job["id"]), 1);
    let answer = request(address, "POST", "/jobs", again.as_bytes()).await;
    assert_eq!(
        answer.status, 200,
        "the same id and request: {}",
        answer.body
    );
    let answer = request(address, "POST", &format!("{location}/cancel"), b"").await;
    assert_eq!(
        (answer.status, answer.json()["state"].as_str()),
        (200, Some("CANCELLED"))
    );
    let batch = br#"{"jobs":[{"queue":"q","kind":"k"},{"queue":"q","kind":"no kind"}]}"#;
    let answer = request(address, "POST", "/jobs/batch", batch).await;
    assert_eq!(
        (answer.status, answer.json()["errors"][0]["field"].as_str()),
        (400, Some("jobs[1].kind"))
    );
    let answer = request(address, "GET", "/jobs?state=CANCELLED&queue=q", b"").await;
    assert_eq!(answer.json()["jobs"].as_array().unwrap().len(), 1);
}

async fn stream(dev: &Dev, messages: Vec<Message>) -> Status {
    let mut client = WorkerServiceClient::connect(dev.node.url()).await.unwrap();
    let requests = messages.into_iter().map(|message| pb::LeaseJobsRequest {
        message: Some(message),
    });
    let sent = tokio_stream::StreamExt::chain(
        tokio_stream::iter(requests.collect::<Vec<_>>()),
        tokio_stream::pending(),
    );
    let mut answers = client.lease_jobs(sent).await.unwrap().into_inner();
    loop {
        match tokio::time::timeout(Duration::from_secs(30), answers.message())
            .await
            .expect("the stream ends")
        {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

fn hello() -> pb::Hello {
    let queue = pb::QueueSubscription {
        queue: "q".into(),
        max_in_flight: 0,
    };
    pb::Hello {
        protocol: 1,
        queues: vec![queue],
        max_in_flight: 1,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_the_protocol_ends_with_its_reason() {
    let dev = Dev::start().await;
    let beat = || Message::Heartbeat(pb::Heartbeat::default());
    let cases = [
        (vec![], Code::DeadlineExceeded, "HELLO_MISSED"),
        (vec![beat()], Code::InvalidArgument, "PROTOCOL_VIOLATION"),
        (
            vec![Message::Hello(hello()), Message::Hello(hello())],
            Code::InvalidArgument,
            "PROTOCOL_VIOLATION",
        ),
        (
            vec![Message::Hello(pb::Hello {
                protocol: 9,
                ..hello()
            })],
            Code::Unimplemented,
            "PROTOCOL_VERSION",
        ),
        (
            vec![Message::Hello(pb::Hello {
                max_frame_bytes: 1_000,
                ..hello()
            })],
            Code::FailedPrecondition,
            "FRAME_LIMIT_TOO_SMALL",
        ),
        (
            vec![Message::Hello(pb::Hello {
                queues: vec![],
                ..hello()
            })],
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (
            vec![Message::Hello(pb::Hello {
                lease_ttl: seconds(1),
                ..hello()
            })],
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (
            vec![Message::Hello(pb::Hello {
                kinds: vec!["a\0".into()],
                ..hello()
            })],
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (
            vec![Message::Hello(pb::Hello {
                labels: HashMap::from([("a".into(), "x".repeat(17 * 1024))]),
                ..hello()
            })],
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
    ];
    for (messages, code, word) in cases {
        let status = stream(&dev, messages).await;
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, word),
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_for_jobs_never_held_get_verdicts() {
    let dev = Dev::start().await;
    let job = jobs(&dev)
        .await
        .enqueue(good())
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    let result = |job_id: String, outcome| pb::Result {
        lease: Some(pb::Lease { job_id, attempt: 1 }),
        outcome,
        log: None,
    };
    let success = |size: usize| {
        let output = pb::Payload {
            content_type: String::new(),
            body: Some(Body::Data(vec![0; size].into())),
        };
        Some(pb::result::Outcome::Success(pb::Success {
            output: Some(output),
        }))
    };
    let results = vec![
        result(uuid::Uuid::now_v7().to_string(), success(1)),
        result("nonsense".into(), success(1)),
        result(job.id.clone(), success(1)),
        result(job.id.clone(), success(MIB + 1)),
        result(job.id, None),
    ];
    let mut client = WorkerServiceClient::connect(dev.node.url()).await.unwrap();
    let request = pb::ReportResultsRequest {
        resume_token: vec![7; 32].into(),
        results,
    };
    let receipts = client
        .report_results(request)
        .await
        .unwrap()
        .into_inner()
        .receipts;
    let statuses: Vec<_> = receipts.iter().map(pb::Receipt::status).collect();
    use pb::ReceiptStatus::{Rejected, Stale, Unknown};
    assert_eq!(statuses, [Unknown, Unknown, Stale, Rejected, Rejected]);
    assert_eq!(
        receipts[3].problem.as_ref().unwrap().reason,
        "PAYLOAD_TOO_LARGE"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_and_a_body_that_never_ends_harm_nobody() {
    let dev = Dev::start().await;
    let address: SocketAddr = dev.node.address;
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let mut endless = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /jobs HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    endless.write_all(head.as_bytes()).await.unwrap();
    let mut client = jobs(&dev).await;
    for _ in 0..50 {
        client.enqueue(good()).await.unwrap();
    }
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_does_not_read_gets_no_more_jobs_and_slows_nobody() {
    let dev = Dev::start().await;
    let mut client = jobs(&dev).await;
    let body = || pb::Payload {
        content_type: String::new(),
        body: Some(Body::Data(vec![0; MIB / 4].into())),
    };
    for _ in 0..20 {
        let requests = vec![with(|job| job.payload = Some(body())); 15];
        client
            .enqueue_batch(pb::EnqueueBatchRequest { requests })
            .await
            .unwrap();
    }
    let mut stalled = WorkerServiceClient::connect(dev.node.url()).await.unwrap();
    let first = pb::LeaseJobsRequest {
        message: Some(Message::Hello(pb::Hello {
            max_in_flight: 1_000,
            ..hello()
        })),
    };
    let sent = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
    let unread = stalled.lease_jobs(sent).await.unwrap();

    let folder = tempfile::TempDir::new().unwrap();
    let worker = Local::start_on(&dev.node.url(), &["other"], &folder.path().join("runs"), 10);
    let other = crate::stack::client(&dev.node.url());
    for n in 0..50 {
        let job = worker_sdk::NewJob::new("echo", &n).unwrap().queue("other");
        let id = other.enqueue(job).await.unwrap().job.id;
        let job = other.wait(&id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(job.state(), pb::JobState::Succeeded);
    }
    let filter = pb::JobFilter {
        queues: vec!["q".into()],
        states: vec![pb::JobState::Running.into()],
        ..Default::default()
    };
    let request = pb::ListJobsRequest {
        filter: Some(filter),
        page_size: 1_000,
        ..Default::default()
    };
    let running = client
        .list_jobs(request)
        .await
        .unwrap()
        .into_inner()
        .jobs
        .len();
    assert!(
        (1..100).contains(&running),
        "{running} of 300 jobs, 75 MiB, wait for a worker that reads none"
    );
    drop(unread);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_call_harms_nobody() {
    let dev = Dev::start().await;
    let mut client = jobs(&dev).await;
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let mut client = client.clone();
            let call = tokio::spawn(async move { client.enqueue(good()).await.map(drop) });
            if n % 2 == 0 {
                call.abort();
            }
            call
        })
        .collect();
    let mut told = 0;
    for call in calls {
        told += usize::from(call.await.is_ok_and(|answer| answer.is_ok()));
    }
    let request = pb::ListJobsRequest {
        page_size: 1_000,
        ..Default::default()
    };
    let listed = client
        .list_jobs(request)
        .await
        .unwrap()
        .into_inner()
        .jobs
        .len();
    assert!(
        (100..=200).contains(&told) && (told..=200).contains(&listed),
        "told {told}, listed {listed}"
    );
}
