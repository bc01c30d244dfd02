//! More calls than the store takes: the node refuses the rest at once and says when to come again, does not grow by what
//! it refuses, and has what it accepted.
//!
//! The store is held for a moment, so that the node must refuse, however fast the machine is. Where a call is held for
//! longer than a node waits for its store, it may be told that the store is away, or that its outcome is not known: that
//! is no refusal, and passed by.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, SqliteConnection};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;
use worker_sdk::proto::job_service_client::JobServiceClient;
use worker_sdk::proto::{self as pb, payload::Body};
use worker_sdk::{Client, ListJobsRequest, NewJob};

use crate::stack::{Dev, Node, Site, client};
use crate::support::http::{Answer, request};
use crate::support::process_rss;

const SOON: Duration = Duration::from_secs(120);
/// Bytes of a job. A node holds 64 MiB of jobs that are not durable yet: fewer than a wave has.
const PAYLOAD: usize = 900_000;
/// Calls at once.
const WAVE: usize = 100;
const CONNECTIONS: usize = 10;
/// Calls of each wave that are refused at least, even if nothing waited before it.
const REFUSED: usize = WAVE / 5;
/// Waves, as large together as eight times what the node holds.
const WAVES: usize = 6;
/// How much more memory it may have in their second half than in the first.
const GROWTH: f64 = 1.4;
/// Refused calls that are sent again.
const AGAIN: usize = 20;

/// A transaction that writes and does not end: nobody else can meanwhile.
enum Held {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Held {
    async fn postgres(url: &str) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql("BEGIN; LOCK TABLE jobs IN SHARE MODE")
            .execute(&mut connection)
            .await
            .unwrap();
        Self::Postgres(connection)
    }

    async fn sqlite(dev: &Dev) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(dev.folder.path().join("data").join("leasehold.db"))
            .busy_timeout(SOON);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql("BEGIN IMMEDIATE")
            .execute(&mut connection)
            .await
            .unwrap();
        Self::Sqlite(connection)
    }

    async fn free(self) {
        let ended = match self {
            Self::Postgres(connection) => connection.close().await,
            Self::Sqlite(mut connection) => {
                sqlx::raw_sql("ROLLBACK")
                    .execute(&mut connection)
                    .await
                    .unwrap();
                connection.close().await
            }
        };
        ended.unwrap();
    }
}

/// What a call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Accepted,
    Refused,
    /// The store did not answer in time: it may be there or not.
    InDoubt,
}

/// How many calls were refused until now, and what became of each.
struct Flood {
    refused: watch::Receiver<usize>,
    calls: JoinSet<(Uuid, Answered)>,
}

impl Flood {
    /// Starts a wave of calls.
    fn start<F>(call: impl Fn(usize, Uuid) -> F) -> Self
    where
        F: Future<Output = Answered> + Send + 'static,
    {
        let (tell, refused) = watch::channel(0);
        let tell = Arc::new(tell);
        let mut calls = JoinSet::new();
        for n in 0..WAVE {
            let id = Uuid::now_v7();
            let (call, tell) = (call(n, id), tell.clone());
            calls.spawn(async move {
                let answered = call.await;
                if answered == Answered::Refused {
                    tell.send_modify(|count| *count += 1);
                }
                (id, answered)
            });
        }
        Self { refused, calls }
    }

    async fn until_refused(&mut self, count: usize) {
        let refused = self.refused.wait_for(|refused| *refused >= count);
        let waited = tokio::time::timeout(SOON, refused).await;
        waited.expect("calls are refused").unwrap();
    }

    async fn ended(self) -> Vec<(Uuid, Answered)> {
        self.calls.join_all().await
    }
}

async fn channels(url: &str) -> Vec<JobServiceClient<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
        channels.push(JobServiceClient::new(endpoint.connect().await.unwrap()));
    }
    channels
}

async fn by_grpc(mut channel: JobServiceClient<Channel>, id: Uuid) -> Answered {
    let payload = pb::Payload {
        content_type: "application/octet-stream".into(),
        body: Some(Body::Data(vec![b'x'; PAYLOAD].into())),
    };
    let spec = pb::JobSpec {
        queue: "q".into(),
        kind: "echo".into(),
        payload: Some(payload),
        ..Default::default()
    };
    let call = pb::EnqueueRequest {
        job_id: id.to_string(),
        job: Some(spec),
        ..Default::default()
    };
    match channel.enqueue(call).await {
        Ok(_) => Answered::Accepted,
        Err(status) => grpc_refusal(&status),
    }
}

fn grpc_refusal(status: &Status) -> Answered {
    let info = status.get_details_error_info();
    let reason = info.map(|info| info.reason).unwrap_or_default();
    let again = status.get_details_retry_info();
    let pause = again.and_then(|info| info.retry_delay).unwrap_or_default();
    match (status.code(), reason.as_str()) {
        (Code::ResourceExhausted, "OVERLOADED") => {
            assert!(!pause.is_zero(), "no RetryInfo: {status}");
            Answered::Refused
        }
        // A busy machine may also be too slow to bring a whole request in time.
        (Code::Unavailable, _) | (Code::DeadlineExceeded, "UNKNOWN_OUTCOME" | "BODY_TIMEOUT") => {
            Answered::InDoubt
        }
        _ => panic!("{status:?}"),
    }
}

async fn by_http(address: SocketAddr, id: Uuid) -> Answered {
    let body = json!({
        "job_id": id.to_string(), "queue": "q", "kind": "echo", "payload": "x".repeat(PAYLOAD),
    });
    let answer = request(address, "POST", "/jobs", body.to_string().as_bytes()).await;
    match answer.status {
        200 | 201 => Answered::Accepted,
        _ => http_refusal(&answer),
    }
}

fn http_refusal(answer: &Answer) -> Answered {
    let again = answer.header("retry-after");
    let pause: u64 = again.and_then(|text| text.parse().ok()).unwrap_or(0);
    match (answer.status, answer.json()["reason"].as_str()) {
        (429, Some("OVERLOADED")) => {
            assert!(pause > 0, "no Retry-After: {}", answer.head);
            Answered::Refused
        }
        (503, _) | (504, Some("UNKNOWN_OUTCOME")) | (408, Some("BODY_TIMEOUT")) => {
            Answered::InDoubt
        }
        _ => panic!("{answer:?}"),
    }
}

/// Ids of all jobs of the node, each of them once.
async fn listed(client: &Client) -> HashSet<Uuid> {
    let mut request = ListJobsRequest {
        page_size: 100,
        ..Default::default()
    };
    let mut ids = HashSet::new();
    loop {
        let page = client.list(request.clone()).await.unwrap();
        for job in &page.jobs {
            assert!(ids.insert(job.id.parse().unwrap()), "twice: {}", job.id);
        }
        if page.next_page_token.is_empty() {
            return ids;
        }
        request.page_token = page.next_page_token;
    }
}

/// What was accepted is there, what was refused is not; and it is accepted when it is sent again.
async fn check(node: &Node, calls: Vec<(Uuid, Answered)>) {
    let client = client(&node.url());
    let of = |wanted| {
        let calls = calls
            .iter()
            .filter(move |(_, answered)| *answered == wanted);
        calls.map(|(id, _)| *id).collect::<HashSet<Uuid>>()
    };
    let (accepted, refused) = (of(Answered::Accepted), of(Answered::Refused));
    assert!(!refused.is_empty(), "{calls:?}");
    let there = listed(&client).await;
    assert!(accepted.is_subset(&there), "lost: {:?}", &accepted - &there);
    assert!(
        refused.is_disjoint(&there),
        "there: {:?}",
        &refused & &there
    );
    let again: HashSet<Uuid> = refused.iter().copied().take(AGAIN).collect();
    for id in &again {
        let job = NewJob::new("echo", &1).unwrap().queue("q");
        let again = client.enqueue(job.id(id.to_string())).await.unwrap();
        assert!(!again.existed, "{id}");
    }
    let there = listed(&client).await;
    assert!(accepted.union(&again).all(|id| there.contains(id)));
}

async fn over_grpc(node: &Node, held: Held) {
    let channels = channels(&node.url()).await;
    let call = |n: usize, id| by_grpc(channels[n % CONNECTIONS].clone(), id);
    let mut waves = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..WAVES {
        let mut wave = Flood::start(call);
        wave.until_refused(REFUSED).await;
        seen.push(process_rss(node.process.id()));
        waves.push(wave);
    }
    held.free().await;
    let mut calls = Vec::new();
    for wave in waves {
        calls.extend(wave.ended().await);
    }
    println!(
        "{:?} MiB",
        seen.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>()
    );
    let most = |part: &[usize]| part.iter().copied().max().unwrap() as f64;
    let (first, second) = seen.split_at(WAVES / 2);
    assert!(most(second) < GROWTH * most(first), "{seen:?}");
    check(node, calls).await;
}

async fn over_http(node: &Node, held: Held) {
    let mut flood = Flood::start(|_, id| by_http(node.address, id));
    flood.until_refused(1).await;
    held.free().await;
    let calls = flood.ended().await;
    check(node, calls).await;
}

/// A node over Postgres whose ready-list and store answer.
async fn served(site: &Site) -> (Node, Held) {
    let node = site.node().await;
    let held = Held::postgres(&site.database.url()).await;
    (node, held)
}

#[tokio::test]
async fn a_flood_over_grpc_is_refused_with_retry_info_by_a_node_on_postgres() {
    let site = Site::new().await;
    let (node, held) = served(&site).await;
    over_grpc(&node, held).await;
}

#[tokio::test]
async fn a_flood_over_grpc_is_refused_with_retry_info_by_the_embedded_server() {
    let dev = Dev::start().await;
    let held = Held::sqlite(&dev).await;
    over_grpc(&dev.node, held).await;
}

#[tokio::test]
async fn a_flood_over_http_is_refused_with_retry_after() {
    let site = Site::new().await;
    let (node, held) = served(&site).await;
    over_http(&node, held).await;
    let dev = Dev::start().await;
    let held = Held::sqlite(&dev).await;
    over_http(&dev.node, held).await;
}
