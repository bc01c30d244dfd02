//! What is killed, wiped and stopped: no job is lost, and each is recorded once.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use worker_sdk::{Client, JobState, NewJob};

use crate::balancer::Balancer;
use crate::stack::{Dev, Stack, client};
use crate::support::http::request;
use crate::support::{http_status, until};
use crate::workers::{Local, process, runs};

const SOON: Duration = Duration::from_secs(90);

struct Log {
    _folder: TempDir,
    path: PathBuf,
}

fn log() -> Log {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("runs");
    Log {
        _folder: folder,
        path,
    }
}

/// Enqueues `count` jobs by batches of 500, every other batch to the other client.
async fn enqueue(clients: &[&Client], count: usize, kind: &str, payload: u64) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let client = clients[(ids.len() / 500) % clients.len()];
        let batch = (ids.len()..count)
            .take(500)
            .map(|_| NewJob::new(kind, &payload).unwrap().queue("q"));
        ids.extend(
            client
                .enqueue_batch(batch)
                .await
                .unwrap()
                .into_iter()
                .map(|e| e.job.id),
        );
    }
    ids
}

async fn all_succeed(client: &Client, ids: &[String]) {
    for id in ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded, "{id}");
    }
}

fn each_ran(log: &Log, ids: &[String]) {
    let runs = runs(&log.path);
    assert!(ids.iter().all(|id| runs.contains_key(id)), "every job ran");
}

fn each_ran_once(log: &Log, ids: &[String]) {
    each_ran(log, ids);
    let twice: Vec<_> = runs(&log.path)
        .into_iter()
        .filter(|(_, times)| *times > 1)
        .collect();
    assert!(
        twice.is_empty(),
        "{} jobs ran more than once, as {:?}",
        twice.len(),
        twice.first()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_jobs_over_two_nodes_and_four_workers_run_once_each() {
    let (stack, log) = (Stack::start(2).await, log());
    let workers: Vec<_> = (0..4)
        .map(|n| Local::start(&stack.nodes[n % 2].url(), &log.path, 100))
        .collect();
    let ids = enqueue(&[&stack.client(0), &stack.client(1)], 10_000, "echo", 1).await;
    all_succeed(&stack.client(0), &ids).await;
    each_ran_once(&log, &ids);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_with_jobs_running_loses_none() {
    let (stack, log) = (Stack::start(1).await, log());
    let ids = enqueue(&[&stack.client(0)], 60, "sleep", 300).await;
    let mut doomed = process(&stack.nodes[0].url(), &log.path);
    until(SOON, "the worker has begun", async || {
        (runs(&log.path).len() >= 40).then_some(())
    })
    .await;
    doomed.kill();
    let worker = Local::start(&stack.nodes[0].url(), &log.path, 50);
    all_succeed(&stack.client(0), &ids).await;
    each_ran(&log, &ids);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_recorded_is_not_done_again_when_its_worker_dies() {
    let (stack, log) = (Stack::start(1).await, log());
    let url = stack.nodes[0].url();
    let mut doomed = process(&url, &log.path);
    let job = NewJob::new("steps", &2).unwrap().queue("q");
    let id = stack.client(0).enqueue(job).await.unwrap().job.id;
    doomed.ended(SOON).await;
    let seen = stack.client(0).get(&id).await.unwrap();
    assert_eq!(seen.state(), JobState::Running, "nobody was told");
    let worker = Local::start(&url, &log.path, 1);
    let job = stack.client(0).wait(&id, SOON).await.unwrap();
    assert_eq!(job.output_as::<u32>().unwrap(), 2, "by the second attempt");
    let progress = job.progress.unwrap();
    assert!(progress.percent >= Some(66), "{progress:?}");
    for step in 1..=3 {
        let times = runs(&log.path).get(&format!("{id} {step}")).copied();
        assert_eq!(times, Some(1), "step {step} was done once");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_with_jobs_running_loses_none_and_runs_none_twice() {
    let (mut stack, log) = (Stack::start(2).await, log());
    let balancer = Balancer::over(&stack.nodes).await;
    let worker = Local::start(&balancer.url(), &log.path, 20);
    // Longer than a handler may take to stop: if its lease were lost, it would be run again.
    let ids = enqueue(&[&stack.client(1)], 40, "sleep", 8_000).await;
    until(SOON, "the worker has begun", async || {
        (runs(&log.path).len() >= 20).then_some(())
    })
    .await;
    let at = stack.busiest().await;
    stack.nodes[at].process.kill();
    all_succeed(&stack.client(1 - at), &ids).await;
    each_ran_once(&log, &ids);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_nodes_under_load_runs_nothing_twice() {
    // Handlers outlast the node's own time to leave.
    let (mut stack, log) = (Stack::start_with(2, &["--drain-grace", "3s"]).await, log());
    let balancer = Balancer::over(&stack.nodes).await;
    let workers: Vec<_> = (0..3)
        .map(|_| Local::start(&balancer.url(), &log.path, 10))
        .collect();
    let mut ids = enqueue(&[&stack.client(0)], 60, "sleep", 7_000).await;
    ids.extend(enqueue(&[&stack.client(1)], 600, "sleep", 50).await);
    for n in [0, 1, 0, 1] {
        stack.nodes[n].process.terminate();
        let status = stack.nodes[n].process.ended(Duration::from_secs(30)).await;
        assert!(status.success());
        stack.nodes[n].restart().await;
    }
    all_succeed(&stack.client(0), &ids).await;
    each_ran_once(&log, &ids);
    let first = stack.client(0).get(&ids[0]).await.unwrap();
    assert_eq!(
        (first.attempt, first.lost_leases, first.releases),
        (1, 0, 0)
    );
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_wiped_stopped_and_started_costs_no_job() {
    let (mut stack, log) = (Stack::start(2).await, log());
    let ids = enqueue(&[&stack.client(0)], 2_000, "echo", 1).await;
    // Nobody works yet: all hints are in Redis.
    let redis = redis::Client::open(stack.redis.url()).unwrap();
    let mut connection = redis.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL")
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
    let worker = Local::start(&stack.nodes[0].url(), &log.path, 100);
    all_succeed(&stack.client(1), &ids).await;
    each_ran_once(&log, &ids);

    stack.redis.kill();
    let more = enqueue(&[&stack.client(0)], 1_000, "echo", 2).await;
    all_succeed(&stack.client(1), &more).await;
    assert_eq!(
        http_status(stack.nodes[0].address, "/readyz").await,
        Some(200)
    );

    stack.redis.start().await;
    let again = enqueue(&[&stack.client(0)], 1_000, "echo", 3).await;
    all_succeed(&stack.client(1), &again).await;
    each_ran_once(&log, &more);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_stopped_and_started_costs_no_job() {
    let (mut stack, log) = (Stack::start(1).await, log());
    let worker = Local::start(&stack.nodes[0].url(), &log.path, 50);
    let ids = enqueue(&[&stack.client(0)], 500, "sleep", 10).await;
    stack.postgres.kill();
    let address = stack.nodes[0].address;
    let body = br#"{"queue":"q","kind":"echo","payload":1}"#;
    let refused = request(address, "POST", "/jobs", body).await;
    assert_eq!(
        (refused.status, refused.json()["reason"].as_str()),
        (503, Some("STORE_UNAVAILABLE")),
        "{refused:?}"
    );
    assert!(refused.header("retry-after").is_some());
    until(SOON, "readyz says 503", async || {
        (http_status(address, "/readyz").await == Some(503)).then_some(())
    })
    .await;
    stack.postgres.start().await;
    until(SOON, "readyz says 200", async || {
        (http_status(address, "/readyz").await == Some(200)).then_some(())
    })
    .await;
    all_succeed(&stack.client(0), &ids).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_to_each_node_in_turn_costs_no_job() {
    let (mut stack, log) = (Stack::start(2).await, log());
    let workers: Vec<_> = (0..2)
        .map(|n| Local::start(&stack.nodes[n].url(), &log.path, 10))
        .collect();
    let ids = enqueue(&[&stack.client(0), &stack.client(1)], 400, "sleep", 50).await;
    for n in 0..2 {
        stack.nodes[n].process.terminate();
        let status = stack.nodes[n].process.ended(Duration::from_secs(60)).await;
        assert!(status.success(), "a node that is told to leave ends with 0");
        stack.nodes[n].restart().await;
    }
    all_succeed(&stack.client(0), &ids).await;
    each_ran_once(&log, &ids);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_killed_and_restarted_goes_on_where_it_was() {
    let (mut dev, log) = (Dev::start().await, log());
    let client = client(&dev.node.url());
    let ids = enqueue(&[&client], 500, "echo", 1).await;
    let scheduled = NewJob::new("echo", &2)
        .unwrap()
        .queue("q")
        .delay(Duration::from_secs(1));
    let scheduled = client.enqueue(scheduled).await.unwrap().job.id;
    dev.node.kill_and_restart().await;
    let worker = Local::start(&dev.node.url(), &log.path, 20);
    until(SOON, "some jobs ran", async || {
        (runs(&log.path).len() > 50).then_some(())
    })
    .await;
    dev.node.kill_and_restart().await;
    all_succeed(&client, &ids).await;
    all_succeed(&client, &[scheduled]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_dev_on_the_same_folder_is_refused() {
    let dev = Dev::start().await;
    let data = dev.folder.path().join("data");
    let args = ["dev", "--listen", "127.0.0.1:0", "--data"].map(Into::into);
    let command = crate::support::leasehold(args.into_iter().chain([data.into_os_string()]));
    let mut second = crate::support::Process::start("second dev", command);
    let status = second.ended(Duration::from_secs(30)).await;
    assert!(!status.success());
    assert!(
        second.log().join("\n").contains("in use"),
        "it says why: {:?}",
        second.log()
    );
}
