//! Much at once: stores that are away, or come back with an older state; all workers dead.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::{Client, JobState, NewJob};

use crate::cases::{case, side_by_side};
use crate::hand::{Hand, hello, leases};
use crate::stack::{Site, Stack, client};
use crate::support::http::request;
use crate::support::{Process, until};
use crate::workers::{Local, SLOTS, process_with, runs};

const SOON: Duration = Duration::from_secs(120);

fn log() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("runs");
    (folder, path)
}

async fn enqueue(client: &Client, count: usize) -> Vec<String> {
    let jobs = (0..count).map(|n| NewJob::new("echo", &n).unwrap().queue("q"));
    let accepted = client.enqueue_batch(jobs).await.unwrap();
    accepted.into_iter().map(|e| e.job.id).collect()
}

async fn all_succeed(client: &Client, ids: &[String]) {
    for id in ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    }
}

/// As a replica that is promoted after it was cut off for a while: it has hints of jobs that are done, and none of those
/// that came since.
async fn a_redis_that_comes_back_with_an_old_state_runs_nothing_twice_and_loses_nothing() {
    let (mut stack, (_folder, log)) = (Stack::start(2).await, log());
    let clients = [stack.client(0), stack.client(1)];
    let done = enqueue(&clients[0], 200).await;
    let redis = redis::Client::open(stack.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let save = redis::cmd("SAVE");
    save.query_async::<()>(&mut redis).await.unwrap();
    let worker = Local::start(&stack.nodes[0].url(), &log, 50);
    all_succeed(&clients[1], &done).await;
    worker.stop().await;
    let later = enqueue(&clients[1], 200).await;
    stack.redis.kill();
    stack.redis.start().await;
    let worker = Local::start(&stack.nodes[1].url(), &log, 50);
    all_succeed(&clients[0], &later).await;
    let more = enqueue(&clients[0], 200).await;
    all_succeed(&clients[1], &more).await;
    let runs = runs(&log);
    for id in done.iter().chain(&later).chain(&more) {
        assert_eq!(runs.get(id), Some(&1), "{id}");
    }
    worker.stop().await;
}

async fn a_postgres_that_is_away_for_longer_than_a_lease_lasts_costs_none() {
    let mut stack = Stack::start(1).await;
    let (client, address) = (stack.client(0), stack.nodes[0].address);
    let (mut hand, welcome) = Hand::welcome(&stack.nodes[0].url(), hello(10)).await;
    hand.renew(0, &[]).await;
    let ids = enqueue(&client, 2).await;
    let (jobs, frame) = hand.take(2).await;
    let has = leases(&jobs);
    stack.postgres.kill();
    let away = Instant::now();
    // Its heartbeats are heard, and none is confirmed. The time itself is what is tried here.
    while away.elapsed() < Duration::from_secs(12) {
        hand.beat(frame, &has).await;
        let body = br#"{"queue":"q","kind":"echo","payload":1}"#;
        let refused = request(address, "POST", "/jobs", body).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.json()["reason"], "STORE_UNAVAILABLE");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stack.postgres.start().await;
    let beats = until(SOON, "it is renewed again", async || {
        hand.beat(frame, &has).await;
        match hand.next().await.unwrap() {
            Some(Response::HeartbeatAck(ack)) => Some(ack.sequence),
            _ => None,
        }
    })
    .await;
    assert!(beats > 1, "in the same session, {}", welcome.session_id);
    hand.succeed(&has).await;
    for id in &ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(
            (job.state(), job.attempt, job.lost_leases),
            (JobState::Succeeded, 1, 0)
        );
    }
}

/// What is taken back may be handed out at once, so this is what bounds the hand-outs after a mass expiry.
async fn the_leases_of_workers_that_all_died_at_once_come_back_in_steps() {
    let (site, (_folder, log)) = (Site::new().await, log());
    let node = site.node().await;
    let client = client(&node.url());
    let mut workers = [(); 2].map(|()| process_with(&node.url(), &log, &[(SLOTS, "1500")]));
    let mut last = String::new();
    for _ in 0..3 {
        let jobs = (0..1_000).map(|_| NewJob::new("sleep", &600_000).unwrap().queue("q"));
        let mut accepted = client.enqueue_batch(jobs).await.unwrap();
        last = accepted.pop().unwrap().job.id;
    }
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    until(SOON, "all run", async || {
        let running = "SELECT count(*) FROM jobs WHERE state = 3";
        let count: i64 = sqlx::query_scalar(running)
            .fetch_one(&mut db)
            .await
            .unwrap();
        (count == 3_000).then_some(())
    })
    .await;
    workers.iter_mut().for_each(Process::kill);
    let mut ends: Vec<i64> = Vec::new();
    until(SOON, "all are taken back", async || {
        let counts = "SELECT end_time FROM attempts WHERE outcome = 4 ORDER BY end_time";
        ends = sqlx::query_scalar(counts).fetch_all(&mut db).await.unwrap();
        (ends.len() == 3_000).then_some(())
    })
    .await;
    // The two may die in two sweeps, and a sweep takes a thousand at most before it waits.
    let steps: Vec<&[i64]> = ends.chunk_by(|a, b| a == b).collect();
    assert!(steps.iter().all(|step| step.len() <= 1_000));
    for pair in steps.windows(2) {
        let pause = pair[1][0] - pair[0][0];
        assert!(pair[0].len() < 1_000 || pause >= 200_000, "{pause} us");
    }
    let job = client.get(&last).await.unwrap();
    assert_eq!((job.state(), job.lost_leases), (JobState::Queued, 1));
}

#[test]
fn stores_that_were_away_and_workers_that_all_died_cost_no_job_and_no_stampede() {
    side_by_side([
        case(a_redis_that_comes_back_with_an_old_state_runs_nothing_twice_and_loses_nothing),
        case(a_postgres_that_is_away_for_longer_than_a_lease_lasts_costs_none),
        case(the_leases_of_workers_that_all_died_at_once_come_back_in_steps),
    ]);
}
