//! Workers that take jobs and then read nothing: what that costs the node, the other workers, and their own jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb};
use worker_sdk::{Client, JobState, NewJob};

use crate::hand::hello;
use crate::stack::Stack;
use crate::support::{process_rss, until};
use crate::workers::Local;

const SOON: Duration = Duration::from_secs(240);
const MIB: usize = 1 << 20;

const STALLED: usize = 100;
/// Jobs that each of them could have at once.
const WINDOW: usize = 4;
/// How long their leases last.
const TTL: Duration = Duration::from_secs(20);
/// Bytes of a job in the default run; with LEASEHOLD_TEST_PAYLOAD=1000000 all of them together could take more than the
/// node lets wait for all its workers.
const PAYLOAD: usize = 150_000;
const SMALL: usize = 20_000;
/// `OUTBOXES_BYTES_SOFT`: what waits to be sent to all workers of a node before only those get jobs that read.
const WAITING_MAX: usize = 256 * MIB;
/// Grants that were under way when that was reached, of 8 MiB each, and what is in the windows and on the wire.
const GRANTS: usize = 32 * MIB;
/// What calls, grants and the allocator hold besides.
const SLACK: usize = 128 * MIB;

/// Jobs in each measurement.
const SAMPLES: usize = 400;
const CALLERS: usize = 4;
/// Below this a latency says more of the machine than of the product.
const FLOOR: Duration = Duration::from_millis(50);

fn payload() -> usize {
    let asked = std::env::var("LEASEHOLD_TEST_PAYLOAD");
    asked.map_or(PAYLOAD, |bytes| bytes.parse().expect("a number of bytes"))
}

/// One that reads its Welcome and no more. Its stream's window is HTTP/2's smallest, and full after the first frame.
struct Stalled {
    _unread: Streaming<pb::LeaseJobsResponse>,
    _open: mpsc::Sender<pb::LeaseJobsRequest>,
    beating: Option<AbortHandle>,
}

impl Stalled {
    async fn open(url: String, queue: String, beats: bool) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(url).unwrap();
        let endpoint = endpoint.initial_stream_window_size(Some(65_535));
        let mut client = WorkerServiceClient::new(endpoint.connect().await.unwrap());
        let (outgoing, sent) = mpsc::channel(4);
        let hello = pb::Hello {
            queues: vec![pb::QueueSubscription {
                queue,
                max_in_flight: 0,
            }],
            lease_ttl: Some(prost_types::Duration {
                seconds: TTL.as_secs() as i64,
                nanos: 0,
            }),
            ..hello(WINDOW as u32)
        };
        let say = |message| pb::LeaseJobsRequest {
            message: Some(message),
        };
        outgoing.send(say(Request::Hello(hello))).await.unwrap();
        let stream = client.lease_jobs(ReceiverStream::new(sent)).await?;
        let mut unread = stream.into_inner();
        let first = unread.message().await?.and_then(|m| m.message);
        assert!(matches!(first, Some(Response::Welcome(_))));
        let beating = beats.then(|| {
            let outgoing = outgoing.clone();
            let beating = tokio::spawn(async move {
                let mut beat = pb::Heartbeat::default();
                loop {
                    beat.sequence += 1;
                    // Ends when the node has ended the stream.
                    if outgoing
                        .send(say(Request::Heartbeat(beat.clone())))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    tokio::time::sleep(TTL / 5).await;
                }
            });
            beating.abort_handle()
        });
        Ok(Self {
            _unread: unread,
            _open: outgoing,
            beating,
        })
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        if let Some(beating) = &self.beating {
            beating.abort();
        }
    }
}

/// Every fourth is silent, the others beat. Some at a time: a busy machine refuses a hundred at once for a while.
async fn stall(url: &str, queue: &str) -> Vec<Stalled> {
    let mut stalled = Vec::new();
    while stalled.len() < STALLED {
        let mut opening = JoinSet::new();
        for n in stalled.len()..STALLED.min(stalled.len() + 10) {
            opening.spawn(Stalled::open(url.to_owned(), queue.to_owned(), n % 4 != 0));
        }
        stalled.extend(opening.join_all().await.into_iter().flatten());
    }
    stalled
}

async fn enqueue(client: &Client, queue: &str, bytes: usize) -> Vec<String> {
    let text = "x".repeat(bytes);
    let mut ids = Vec::new();
    while ids.len() < STALLED * WINDOW {
        let jobs = (0..4).map(|_| NewJob::new("weigh", &text).unwrap().queue(queue));
        let accepted = client.enqueue_batch(jobs).await.unwrap();
        ids.extend(accepted.into_iter().map(|e| e.job.id));
    }
    ids
}

/// How long jobs take from the call to the known result: one at each of these nodes, in turns, so that
/// whatever else the machine does at a moment meets them alike.
async fn latencies(nodes: &[Client; 2]) -> [Vec<Duration>; 2] {
    let mut calling = JoinSet::new();
    for _ in 0..CALLERS {
        let nodes = nodes.clone();
        calling.spawn(async move {
            let mut took = [Vec::new(), Vec::new()];
            for _ in 0..SAMPLES / CALLERS {
                for (client, took) in nodes.iter().zip(&mut took) {
                    let begun = Instant::now();
                    let job = NewJob::new("echo", &1).unwrap().queue("healthy");
                    let id = client.enqueue(job).await.unwrap().job.id;
                    let job = client.wait(&id, SOON).await.unwrap();
                    assert_eq!(job.state(), JobState::Succeeded);
                    took.push(begun.elapsed());
                }
            }
            took
        });
    }
    let mut all = [Vec::new(), Vec::new()];
    while let Some(took) = calling.join_next().await {
        for (all, took) in all.iter_mut().zip(took.unwrap()) {
            all.extend(took);
        }
    }
    all
}

/// What 99 of 100 stay below.
fn p99(took: &mut [Duration]) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// The node's largest size between its start and [`Weight::most`].
struct Weight {
    over: Arc<AtomicBool>,
    weighing: Option<std::thread::JoinHandle<usize>>,
}

impl Weight {
    fn of(process: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let weighing = std::thread::spawn(move || {
            let mut most = 0;
            while !until.load(Ordering::Relaxed) {
                most = most.max(process_rss(process));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let weighing = Some(weighing);
        Self { over, weighing }
    }

    fn most(mut self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.weighing.take().unwrap().join().unwrap()
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

async fn count(db: &mut PgConnection, sql: &'static str, queue: &str) -> i64 {
    sqlx::query_scalar(sql)
        .bind(queue)
        .fetch_one(db)
        .await
        .unwrap()
}

const RUNNING: &str = "SELECT count(*) FROM jobs WHERE queue = $1 AND state = 3";
const HOLDERS: &str = "SELECT count(DISTINCT session) FROM jobs WHERE queue = $1 AND state = 3";
const LOST: &str =
    "SELECT count(*) FROM jobs WHERE queue = $1 AND (attempt <> 1 OR lost_leases <> 0)";
/// The longest lease that was lost, in microseconds.
const LONGEST: &str = "SELECT coalesce(max(a.end_time - a.start_time), 0) FROM attempts a JOIN jobs j ON j.id = a.job \
                       WHERE j.queue = $1 AND a.outcome = 4";

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_workers_that_read_nothing_cost_the_others_nothing_and_get_to_keep_no_job() {
    let stack = Stack::start(1).await;
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let (url, client) = (stack.nodes[0].url(), stack.client(0));
    let process = stack.nodes[0].process.id();
    let mut db = PgConnection::connect(&stack.postgres.url()).await.unwrap();
    let healthy = Local::start_on(&url, &["healthy"], &log, 32);
    // The same on stores of its own, without those that read nothing.
    let control = Stack::start(1).await;
    let beside = Local::start_on(&control.nodes[0].url(), &["healthy"], &log, 32);
    let nodes = [control.client(0), client.clone()];
    // These hold their leases through all of it.
    let jobs = (0..8).map(|_| NewJob::new("sleep", &20_000).unwrap().queue("healthy"));
    let long = client.enqueue_batch(jobs).await.unwrap();
    let [mut one, mut other] = latencies(&nodes).await;
    println!("p99 {:?} and {:?} before", p99(&mut one), p99(&mut other));

    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut last = None;
    let payload = payload();
    for size in [SMALL, payload] {
        let queue = format!("stalled-{size}");
        let ids = enqueue(&client, &queue, size).await;
        let before = process_rss(process);
        let weight = Weight::of(process);
        let stalled = stall(&url, &queue).await;
        until(SOON, "each of them has jobs", async || {
            (count(&mut db, HOLDERS, &queue).await == STALLED as i64).then_some(())
        })
        .await;
        let [mut one, mut other] = latencies(&nodes).await;
        let running = count(&mut db, RUNNING, &queue).await as usize;
        println!(
            "p99 {:?} without, {:?} with {STALLED} workers that read nothing and have {running} jobs of {size} bytes",
            p99(&mut one),
            p99(&mut other)
        );
        without.extend(one);
        with.extend(other);
        // Those of the first turn leave without a word.
        last = Some((queue, ids, before, weight, stalled, running));
    }
    let (queue, ids, before, weight, stalled, running) = last.unwrap();
    let handed_out = running * payload;
    assert!(
        handed_out <= WAITING_MAX + GRANTS,
        "{handed_out} bytes handed out"
    );

    // Whoever reads gets their jobs, although they never close their streams.
    let rescuer = Local::start_on(&url, &[queue.as_str()], &log, 8);
    for id in &ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        assert!(job.lost_leases <= 1, "{job:?}");
    }
    let most = weight.most();
    let grown = most.saturating_sub(before);
    println!(
        "the node grew from {before} by {grown} bytes at most, {} after it",
        process_rss(process)
    );
    let bound = WAITING_MAX.min(ids.len() * payload) + SLACK;
    assert!(grown <= bound, "it grew by {grown} bytes");
    let longest = Duration::from_micros(count(&mut db, LONGEST, &queue).await as u64);
    println!("the longest of their leases lasted {longest:?}, with a TTL of {TTL:?}");
    // Its stream ends after one TTL, its session after another; a sweep comes every second.
    let bound = 2 * TTL + Duration::from_secs(10);
    assert!(longest >= TTL && longest <= bound, "{longest:?}");

    for job in long {
        assert_eq!(
            client.wait(&job.job.id, SOON).await.unwrap().state(),
            JobState::Succeeded
        );
    }
    assert_eq!(
        count(&mut db, LOST, "healthy").await,
        0,
        "no other lease was lost"
    );
    let (without, with) = (p99(&mut without), p99(&mut with));
    println!("p99 {without:?} without them, {with:?} with them");
    assert!(
        with <= (2 * without).max(without + FLOOR),
        "{with:?} with them, {without:?} without"
    );
    drop(stalled);
    healthy.stop().await;
    rescuer.stop().await;
    beside.stop().await;
}
