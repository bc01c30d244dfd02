//! A node that is cut off so that nobody is told: from its workers, or from its stores. Workers go on at the other node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use worker_sdk::{Client, JobState, NewJob};

use crate::balancer::Balancer;
use crate::cases::{case, side_by_side};
use crate::stack::{Node, Site, Stack, client};
use crate::support::http::request;
use crate::support::until;
use crate::wire::Wire;
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(150);
const WORKERS: usize = 4;
const SLOTS: usize = 10;
/// How long their leases last. A worker may meet the node that is cut off once or twice more before it meets the other;
/// on a machine that is busy with other tests, the shortest TTL would leave it too little time for that.
const TTL: Duration = Duration::from_secs(20);
/// Longer than a lease lasts: if one were lost, its job would be run again.
const LONG: u64 = 26_000;
/// Ends while the node is cut off.
const SHORT: u64 = 4_000;

fn log() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("runs");
    (folder, path)
}

async fn enqueue(client: &Client, count: usize, millis: u64) -> Vec<String> {
    let jobs = (0..count).map(|_| NewJob::new("sleep", &millis).unwrap().queue("q"));
    let accepted = client.enqueue_batch(jobs).await.unwrap();
    accepted.into_iter().map(|e| e.job.id).collect()
}

async fn sessions(address: SocketAddr) -> usize {
    let metrics = request(address, "GET", "/metrics", b"").await.body;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("leasehold_sessions "));
    value.map_or(0, |value| value.parse::<f64>().unwrap() as usize)
}

/// Workers at both nodes run long jobs and short ones when `cut` cuts off the first; then more jobs come. All of it is
/// done at the second, before `mend`, and what was held up changes nothing when it comes through after that.
async fn all_goes_on_at_the_other(
    what: &str,
    doors: [SocketAddr; 2],
    other: &Node,
    cut: impl FnOnce(),
    mend: impl FnOnce(),
) {
    let (_folder, log) = log();
    let client = client(&other.url());
    let balancer = Balancer::to(doors.to_vec()).await;
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| Local::start_for(&balancer.url(), &["q"], &log, SLOTS, TTL))
        .collect();
    until(SOON, "half of the workers are at each node", async || {
        (sessions(other.address).await == WORKERS / 2).then_some(())
    })
    .await;
    let mut ids = enqueue(&client, WORKERS * SLOTS / 2, LONG).await;
    ids.extend(enqueue(&client, WORKERS * SLOTS / 2, SHORT).await);
    until(SOON, "all of them run", async || {
        (runs(&log).len() == WORKERS * SLOTS).then_some(())
    })
    .await;
    cut();
    let begun = Instant::now();
    let more = enqueue(&client, 200, 20).await;
    until(SOON, "all workers are at the other node", async || {
        (sessions(other.address).await == WORKERS).then_some(())
    })
    .await;
    let moved = begun.elapsed();
    let mut stall = Duration::ZERO;
    for id in ids.iter().chain(&more) {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(
            (job.state(), job.attempt, job.lost_leases, job.failures),
            (JobState::Succeeded, 1, 0, 0),
            "{job:?}"
        );
        let millis: u64 = job.output_as().unwrap();
        let took = |time: Option<prost_types::Timestamp>| {
            let time = time.unwrap();
            Duration::new(time.seconds as u64, time.nanos as u32)
        };
        let ran = took(job.finish_time) - took(job.start_time);
        stall = stall.max(ran.saturating_sub(Duration::from_millis(millis)));
    }
    mend();
    // What was held up has come through once the node is heard of again; then workers leave in order.
    for worker in workers {
        worker.stop().await;
    }
    let runs = runs(&log);
    for id in ids.iter().chain(&more) {
        assert_eq!(runs.get(id), Some(&1), "{id}");
        let job = client.get(id).await.unwrap();
        assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 1));
    }
    println!(
        "{what}: all workers had moved after {moved:?}; the longest stall of a job was {stall:?}"
    );
}

async fn a_node_that_nobody_hears_any_more() {
    let site = Site::new().await;
    let (node, other) = (site.node().await, site.node().await);
    let wire = Wire::to(node.address).await;
    let doors = [wire.address(), other.address];
    let what = "cut off from its workers";
    all_goes_on_at_the_other(what, doors, &other, || wire.cut(), || wire.mend()).await;
}

/// Its workers can reach it, and it answers none of them.
async fn a_node_that_hears_its_stores_no_more() {
    let stack = Stack::start(1).await;
    let postgres = Wire::to(stack.postgres.address()).await;
    let redis = Wire::to(stack.redis.address()).await;
    let through = |url: String, from: SocketAddr, wire: &Wire| {
        url.replace(&from.to_string(), &wire.address().to_string())
    };
    let database = through(stack.postgres.url(), stack.postgres.address(), &postgres);
    let list = through(stack.redis.url(), stack.redis.address(), &redis);
    let args = ["serve", "--database-url", &database, "--redis-url", &list];
    let node = Node::start(args.map(str::to_owned).to_vec()).await;
    let other = &stack.nodes[0];
    let cut = || {
        postgres.cut();
        redis.cut();
    };
    let mend = || {
        postgres.mend();
        redis.mend();
    };
    let doors = [node.address, other.address];
    all_goes_on_at_the_other("cut off from its stores", doors, other, cut, mend).await;
    until(SOON, "it is ready again", async || {
        let ready = request(node.address, "GET", "/readyz", b"").await;
        (ready.status == 200).then_some(())
    })
    .await;
}

#[test]
fn a_node_that_is_cut_off_without_a_word_costs_no_execution() {
    side_by_side([
        case(a_node_that_nobody_hears_any_more),
        case(a_node_that_hears_its_stores_no_more),
    ]);
}
