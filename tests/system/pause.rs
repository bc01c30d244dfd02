//! A queue that is paused and resumed: within a second on every node, and nothing is lost or run twice by it.

use std::time::Duration;

use prost_types::Timestamp;
use tempfile::TempDir;
use worker_sdk::{AuditAction, Client, Job, JobState, NewJob, Priority, Queue};

use crate::stack::{Dev, Stack, client};
use crate::support::http::request;
use crate::support::{leasehold, until};
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(60);
/// What the server promises.
const WITHIN: Duration = Duration::from_secs(1);
/// How long the queue stays paused.
const PAUSED_FOR: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_reaches_both_nodes() {
    let stack = Stack::start(2).await;
    paused_and_resumed(&stack.nodes[0].url(), &stack.nodes[1].url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_reaches_both_nodes_without_a_redis() {
    let mut stack = Stack::start(2).await;
    stack.redis.kill();
    paused_and_resumed(&stack.nodes[0].url(), &stack.nodes[1].url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_reaches_the_embedded_server() {
    let dev = Dev::start().await;
    paused_and_resumed(&dev.node.url(), &dev.node.url()).await;
}

/// Paused through one node while jobs come through the other. All moments are by the store's clock.
async fn paused_and_resumed(here: &str, there: &str) {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let queues = ["q", "busy"];
    let workers = [here, there].map(|url| Local::start_on(url, &queues, &log, 4));
    let (here, there) = (client(here), client(there));
    let mut ids = Vec::new();
    for _ in 0..60 {
        ids.push(add(&there, "q", 50).await);
    }
    let paused = here.pause_queue("q", "to see").await.unwrap();
    assert!(paused.paused);
    let paused_at = as_of(&paused);

    // A long line, which holds up nobody.
    for _ in 0..2 {
        let added = here.enqueue_batch((0..500).map(|_| job("q", 1))).await;
        ids.extend(added.unwrap().into_iter().map(|added| added.job.id));
    }
    // Meanwhile jobs are accepted by both nodes, one by one and as batches, and the other queue is served as ever.
    let mut waits = Vec::new();
    loop {
        ids.push(add(&there, "q", 1).await);
        ids.push(add(&here, "q", 1).await);
        let batch = (0..3).map(|_| job("q", 1));
        let added = there.enqueue_batch(batch).await.unwrap();
        ids.extend(added.into_iter().map(|added| added.job.id));
        let busy = done(&there, &add(&here, "busy", 1).await).await;
        waits.push(us(busy.start_time) - us(busy.run_time));
        if us(busy.finish_time) > paused_at + PAUSED_FOR.as_micros() as i64 {
            break;
        }
    }
    waits.sort_unstable();
    let median = Duration::from_micros(waits[waits.len() / 2] as u64);
    println!("{} jobs of the other queue waited {median:?}", waits.len());
    assert!(median < WITHIN, "the other queue goes on");
    let seen = there.queue("q").await.unwrap();
    assert!(seen.paused && seen.stats.unwrap().queued > 10, "{seen:?}");

    // It is resumed between the one moment and the other.
    let still_at = as_of(&seen);
    let resumed = there.resume_queue("q", "").await.unwrap();
    assert!(!resumed.paused);
    let resumed_at = as_of(&resumed);
    let mut first = i64::MAX;
    for id in &ids {
        let job = done(&here, id).await;
        assert_eq!(job.attempt, 1, "{job:?}");
        let after = us(job.start_time) - paused_at;
        if us(job.start_time) < still_at {
            let late = after > WITHIN.as_micros() as i64;
            assert!(!late, "{id} was handed out {after} us after the pause");
        } else {
            first = first.min(us(job.start_time));
        }
    }
    let after = Duration::from_micros((first - resumed_at).max(0) as u64);
    println!("the first job was handed out {after:?} after it was resumed");
    assert!(after < WITHIN, "{after:?}");
    let runs = runs(&log);
    assert!(ids.iter().all(|id| runs[id] == 1), "each ran once");
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_queue_goes_on_in_its_order_also_after_a_restart() {
    let mut dev = Dev::start().await;
    let url = dev.node.url();
    client(&url).pause_queue("q", "").await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(add(&client(&url), "q", 1).await);
    }
    dev.node.kill_and_restart().await;
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let worker = Local::start_on(&url, &["q", "other"], &log, 1);
    until(SOON, "its ready-list has the line again", async || {
        let metrics = request(dev.node.address, "GET", "/metrics", b"").await.body;
        let lines = metrics.lines();
        let reoffered = lines.filter_map(|l| l.strip_prefix("leasehold_reoffered_total "));
        let reoffered: f64 = reoffered.filter_map(|n| n.parse::<f64>().ok()).sum();
        (reoffered >= 20.0).then_some(())
    })
    .await;
    for other in 1..=2 {
        let id = add(&client(&url), "other", 1).await;
        done(&client(&url), &id).await;
        let begun = runs(&log).len();
        assert_eq!(begun, other, "a node that has just begun knows of it");
    }
    client(&url).resume_queue("q", "").await.unwrap();
    let mut started = Vec::new();
    for id in &ids {
        started.push(us(done(&client(&url), id).await.start_time));
    }
    assert!(started.is_sorted(), "{started:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_jobs_go_on_and_their_retries_wait() {
    let dev = Dev::start().await;
    let client = client(&dev.node.url());
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let worker = Local::start(&dev.node.url(), &log, 4);
    let long = add(&client, "q", 700).await;
    let flaky = NewJob::new("flaky", &2).unwrap().queue("q");
    let brief = Duration::from_millis(1);
    let flaky = flaky.backoff(brief, 1.0, brief);
    until(SOON, "the long one runs", async || {
        runs(&log).contains_key(&long).then_some(())
    })
    .await;
    client.pause_queue("q", "").await.unwrap();
    let flaky = client.enqueue(flaky).await.unwrap().job.id;
    assert_eq!(done(&client, &long).await.attempt, 1);
    let waits = client.get(&flaky).await.unwrap();
    assert_eq!((waits.state(), waits.attempt), (JobState::Queued, 0));
    client.resume_queue("q", "").await.unwrap();
    assert_eq!(done(&client, &flaky).await.attempt, 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_paused_what_is_told_over_each_face() {
    let dev = Dev::start().await;
    let ada = client(&dev.node.url()).actor("ada@ops").unwrap();
    add(&ada, "q", 1).await;
    ada.pause_queue("q", "too many mails").await.unwrap();
    let path = "/queues/q/resume";
    let resumed = request(dev.node.address, "POST", path, br#"{"reason":"all well"}"#).await;
    assert_eq!(
        (resumed.status, &resumed.json()["paused"]),
        (200, &false.into())
    );
    let told = ada.audit_events(0, "").await.unwrap();
    let told: Vec<_> = told
        .events
        .iter()
        .map(|e| {
            let action = e.action().as_str_name();
            (
                action,
                e.actor.as_str(),
                e.subject.as_str(),
                e.reason.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("AUDIT_ACTION_RESUME_QUEUE", "", "q", "all well"),
            ("AUDIT_ACTION_PAUSE_QUEUE", "ada@ops", "q", "too many mails")
        ]
    );
    let never = ada.queue("never").await.unwrap_err();
    assert_eq!(never.reason(), Some("QUEUE_NOT_FOUND"));
    let never = ada.resume_queue("never", "").await.unwrap_err();
    assert_eq!(never.reason(), Some("QUEUE_NOT_FOUND"));
    let listed = ada.queues(0, "").await.unwrap();
    let names: Vec<_> = listed.queues.iter().map(|q| q.name.as_str()).collect();
    assert_eq!(names, ["q"]);
    let long = client(&dev.node.url()).actor(&"x".repeat(256)).unwrap();
    let refused = long.pause_queue("q", "").await.unwrap_err();
    assert!(refused.to_string().contains("leasehold-actor"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancelled_a_job_is_told_if_he_says_who_he_is() {
    let dev = Dev::start().await;
    let nobody = client(&dev.node.url());
    let ada = nobody.clone().actor("ada").unwrap();
    let id = add(&nobody, "q", 1).await;
    nobody.cancel(&id, "mine").await.unwrap();
    nobody.retry(&id, None).await.unwrap();
    ada.cancel(&id, "not wanted").await.unwrap();
    let (code, _) = typed(&dev, &["jobs", "retry", &id]);
    assert_eq!(code, Some(0));
    ada.reschedule(&id, Duration::from_secs(60)).await.unwrap();
    ada.set_priority(&id, Priority::High).await.unwrap();
    // Nothing changes by it.
    ada.set_priority(&id, Priority::High).await.unwrap();
    nobody.cancel(&id, "").await.unwrap();
    ada.delete(&id).await.unwrap();
    let told = nobody.audit_events(0, "").await.unwrap().events;
    let told: Vec<_> = told
        .iter()
        .map(|e| (e.action(), e.actor.as_str(), e.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (AuditAction::DeleteJob, "ada", ""),
            (AuditAction::SetJobPriority, "ada", ""),
            (AuditAction::RescheduleJob, "ada", ""),
            (AuditAction::RetryJob, "ada", ""),
            (AuditAction::CancelJob, "ada", "not wanted")
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_seen_and_steered_on_the_command_line() {
    let dev = Dev::start().await;
    let client = client(&dev.node.url());
    add(&client, "q", 1).await;
    let (code, shown) = typed(&dev, &["queues", "pause", "q", "--reason", "mails"]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("PAUSED"), "{shown}");
    let (_, listed) = typed(&dev, &["queues", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["paused"]),
        (&"q".into(), &true.into())
    );
    assert_eq!(listed[0]["stats"]["queued"], 1);
    let told = client.audit_events(1, "").await.unwrap().events;
    assert_eq!(
        (told[0].actor.as_str(), told[0].reason.as_str()),
        ("ada", "mails")
    );
    let (code, _) = typed(&dev, &["queues", "resume", "q"]);
    assert_eq!(code, Some(0));
    let (code, _) = typed(&dev, &["queues", "show", "never"]);
    assert_eq!(code, Some(3));
}

/// How `leasehold` ends with these arguments, and what it writes.
fn typed(dev: &Dev, args: &[&str]) -> (Option<i32>, String) {
    let url = dev.node.url();
    let mut command = leasehold(args.iter().chain(&["--server", &url]));
    let output = command.env("USER", "ada").output().unwrap();
    let written = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), written)
}

fn job(queue: &str, millis: u64) -> NewJob {
    NewJob::new("sleep", &millis).unwrap().queue(queue)
}

async fn add(client: &Client, queue: &str, millis: u64) -> String {
    client.enqueue(job(queue, millis)).await.unwrap().job.id
}

async fn done(client: &Client, id: &str) -> Job {
    let job = client.wait(id, SOON).await.unwrap();
    assert_eq!(job.state(), JobState::Succeeded, "{id}");
    job
}

fn as_of(queue: &Queue) -> i64 {
    us(queue.stats.unwrap().as_of_time)
}

/// Microseconds since 1970.
fn us(time: Option<Timestamp>) -> i64 {
    let time = time.unwrap();
    time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000
}
