//! Load and faults that are uneven: who is in somebody's way, and who must not be.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use worker_sdk::{Client, JobState, NewJob};

use crate::stack::Stack;
use crate::support::http::request;
use crate::support::until;
use crate::workers::Local;

const SOON: Duration = Duration::from_secs(90);

/// Enqueues by batches of 100, so that no single batch is all there is.
async fn enqueue(client: &Client, queue: &str, count: usize, millis: u64) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let batch = (ids.len()..count)
            .take(100)
            .map(|_| NewJob::new("sleep", &millis).unwrap().queue(queue));
        let accepted = client.enqueue_batch(batch).await.unwrap();
        ids.extend(accepted.into_iter().map(|e| e.job.id));
    }
    ids
}

fn log() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("runs");
    (folder, path)
}

/// One worker with one slot, on a queue with a long line and on one with a short line that came later.
async fn a_short_line_gets_its_turns(stack: &Stack) {
    let (_folder, runs) = log();
    let client = stack.client(0);
    let long = enqueue(&client, "a-long-line", 3_000, 5).await;
    let short = enqueue(&client, "short", 100, 5).await;
    let worker = Local::start_on(&stack.nodes[0].url(), &["a-long-line", "short"], &runs, 1);
    for id in &short {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded);
    }
    let last = client.get(long.last().unwrap()).await.unwrap();
    assert_eq!(
        last.state(),
        JobState::Queued,
        "the short line did not wait for the whole long one"
    );
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_two_queues_serves_the_short_one_while_the_other_has_a_long_line() {
    let stack = Stack::start(1).await;
    a_short_line_gets_its_turns(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_queue_with_a_long_line_is_not_in_the_way_of_another() {
    let mut stack = Stack::start(1).await;
    stack.redis.kill();
    a_short_line_gets_its_turns(&stack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_what_is_urgent_goes_before_a_long_line_that_is_not() {
    let mut stack = Stack::start(1).await;
    stack.redis.kill();
    let (_folder, runs) = log();
    let client = stack.client(0);
    let line = enqueue(&client, "q", 3_000, 5).await;
    let urgent = NewJob::new("sleep", &5)
        .unwrap()
        .queue("q")
        .priority(worker_sdk::Priority::High);
    let urgent = client.enqueue(urgent).await.unwrap().job.id;
    let worker = Local::start(&stack.nodes[0].url(), &runs, 1);
    let job = client.wait(&urgent, SOON).await.unwrap();
    assert_eq!(job.state(), JobState::Succeeded);
    let last = client.get(line.last().unwrap()).await.unwrap();
    assert_eq!(last.state(), JobState::Queued);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_full_holds_up_no_job() {
    let stack = Stack::start(1).await;
    let (_folder, runs) = log();
    let client = stack.client(0);
    let redis = redis::Client::open(stack.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut limit = async |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        set.query_async::<()>(&mut redis).await.unwrap();
    };
    let worker = Local::start(&stack.nodes[0].url(), &runs, 2);
    // Its line is known to Redis, so that taking works, and there are some hints in it.
    let mut ids = enqueue(&client, "q", 200, 5).await;
    limit("1").await;
    ids.extend(enqueue(&client, "q", 3_000, 5).await);
    for id in &ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded);
    }
    let address = stack.nodes[0].address;
    let degraded = async || {
        let ready = request(address, "GET", "/readyz", b"").await;
        ready.body.contains("degraded")
    };
    assert!(degraded().await, "readyz says so");
    limit("0").await;
    until(SOON, "readyz no longer says so", async || {
        (!degraded().await).then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forbids_scripts_holds_up_no_job() {
    let stack = Stack::start(1).await;
    let (_folder, runs) = log();
    let client = stack.client(0);
    let address = stack.nodes[0].address;
    let degraded = async || {
        let ready = request(address, "GET", "/readyz", b"").await;
        ready.body.contains("degraded")
    };
    let worker = Local::start(&stack.nodes[0].url(), &runs, 20);
    let mut ids = enqueue(&client, "q", 100, 5).await;
    let may = async |what: &str| {
        let rule = ["ACL", "SETUSER", "default", what];
        stack.redis.run::<()>(&rule).await;
    };
    may("-@scripting").await;
    ids.extend(enqueue(&client, "q", 300, 5).await);
    for id in &ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded);
    }
    until(SOON, "readyz says so", async || {
        degraded().await.then_some(())
    })
    .await;
    may("+@scripting").await;
    until(SOON, "readyz no longer says so", async || {
        (!degraded().await).then_some(())
    })
    .await;
    let ids = enqueue(&client, "q", 20, 5).await;
    client.wait(&ids[19], SOON).await.unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_became_read_only_is_not_asked_again_and_again() {
    let stack = Stack::start(1).await;
    let (_folder, runs) = log();
    let (client, node) = (stack.client(0), &stack.nodes[0]);
    let worker = Local::start(&node.url(), &runs, 20);
    let ids = enqueue(&client, "q", 400, 50).await;
    let mut db = PgConnection::connect(&stack.postgres.url()).await.unwrap();
    let mut run = async |sql: &'static str| {
        sqlx::query(sql).execute(&mut db).await.unwrap();
    };
    run("ALTER SYSTEM SET default_transaction_read_only = on").await;
    run("SELECT pg_reload_conf()").await;
    let errors = async |verb: &str| {
        let metrics = request(node.address, "GET", "/metrics", b"").await.body;
        let name = format!("reason=\"STORE_UNAVAILABLE\",verb=\"{verb}\"}} ");
        let count = metrics.lines().find_map(|line| line.split_once(&name));
        count.map_or(0, |(_, count)| count.parse::<u64>().unwrap())
    };
    // The pulse is touched every second, and less and less often while that fails.
    until(SOON, "some beats were missed", async || {
        (errors("touch_pulse").await >= 3).then_some(())
    })
    .await;
    let grants = errors("grant").await;
    run("SET default_transaction_read_only = off").await;
    run("ALTER SYSTEM RESET default_transaction_read_only").await;
    run("SELECT pg_reload_conf()").await;
    assert!(grants < 100, "{grants} grants were tried in vain");
    for id in &ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_stands_still_a_node_holds_a_bounded_number_of_bytes_and_says_so() {
    let stack = Stack::start(1).await;
    let address = stack.nodes[0].address;
    let mut db = PgConnection::connect(&stack.postgres.url()).await.unwrap();
    let mut lock = db.begin().await.unwrap();
    sqlx::query("LOCK TABLE jobs")
        .execute(&mut *lock)
        .await
        .unwrap();
    // 75 megabytes that cannot be written now: most of it is held, the rest is refused at once.
    let payload = "x".repeat(1_000_000);
    let body = format!(r#"{{"queue":"q","kind":"k","payload":"{payload}"}}"#);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..75 {
        let body = body.clone();
        calls.spawn(async move { request(address, "POST", "/jobs", body.as_bytes()).await });
    }
    let mut answers = Vec::new();
    while let Some(answer) = calls.join_next().await {
        answers.push(answer.unwrap());
    }
    lock.rollback().await.unwrap();
    let refused: Vec<_> = answers.iter().filter(|a| a.status == 429).collect();
    assert!(!refused.is_empty() && refused.len() < 75);
    for answer in refused {
        assert_eq!(answer.json()["reason"], "OVERLOADED");
        assert!(answer.header("retry-after").is_some());
    }
    // What was held is free again: as much is taken once the database goes on.
    until(SOON, "jobs are accepted again", async || {
        let answer = request(address, "POST", "/jobs", body.as_bytes()).await;
        (answer.status == 201).then_some(())
    })
    .await;
}
