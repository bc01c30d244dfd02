//! What handlers say of their jobs is seen by whoever looks, on every face, once and in order, whatever is killed.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb, LogLevel, ReceiptStatus, log_line::When, result::Outcome};
use worker_sdk::{Client, Context, Error, Job, JobError, JobState, NewJob, Worker};

use crate::cases::{case, side_by_side};
use crate::crash::died;
use crate::hand::{Hand, again, hello, leases};
use crate::stack::{Dev, Node, Site, client};
use crate::support::http::request;
use crate::support::{Process, leasehold};

const SOON: Duration = Duration::from_secs(60);

/// Fails once, and talks.
async fn talk(ctx: Context, lines: u32) -> Result<u32, JobError> {
    if ctx.attempt() == 1 {
        ctx.log(LogLevel::Warn, "this will not do");
        return Err(JobError::new("not yet"));
    }
    for n in 1..=lines {
        ctx.log(LogLevel::Info, format!("step {n}"));
        if n % 4 == 0 {
            // So that some are sent on the way.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }
    ctx.log(LogLevel::Debug, "done");
    Ok(lines)
}

struct Talker {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), Error>>,
}

impl Talker {
    fn at(node: &Node) -> Self {
        let worker = Worker::builder(node.url())
            .queue("q")
            .handler("talk", talk)
            .handler("hang", |ctx: Context, (): ()| async move {
                ctx.log(LogLevel::Info, "waiting");
                ctx.cancelled().await;
                ctx.log(LogLevel::Error, "told to stop");
                Ok::<_, JobError>(())
            })
            .build()
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let until = async move { drop(stopped.await) };
        Self {
            stop,
            running: tokio::spawn(async move { worker.run_until(until).await }),
        }
    }

    async fn stop(self) {
        drop(self.stop);
        self.running.await.unwrap().unwrap();
    }
}

async fn enqueue(client: &Client, kind: &str, input: Value) -> String {
    let job = NewJob::new(kind, &input).unwrap().queue("q");
    let wait = Duration::from_millis(10);
    let job = job.backoff(wait, 1.0, wait);
    client.enqueue(job).await.unwrap().job.id
}

/// What a talk of so many lines leaves: the attempt, level and words of each.
fn expected(lines: u32) -> Vec<(u32, LogLevel, String)> {
    let first = (1, LogLevel::Warn, "this will not do".to_owned());
    let steps = (1..=lines).map(|n| (2, LogLevel::Info, format!("step {n}")));
    let last = (2, LogLevel::Debug, "done".to_owned());
    [first].into_iter().chain(steps).chain([last]).collect()
}

fn seen(lines: &[pb::LogLine]) -> Vec<(u32, LogLevel, String)> {
    let lines = lines.iter();
    lines
        .map(|line| (line.attempt, line.level(), line.message.clone()))
        .collect()
}

async fn events(address: SocketAddr, id: String) -> String {
    let path = format!("/jobs/{id}/events?log=true");
    let answer = request(address, "GET", &path, b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn typed(node: &Node, args: &[&str]) -> String {
    let url = node.url();
    let mut all = vec!["jobs", "--server", &url];
    all.extend(args);
    let mut process = Process::start("typed", leasehold(all));
    assert!(process.ended(SOON).await.success(), "{:?}", process.log());
    process.output().join("\n")
}

async fn every_face_shows_what_a_handler_says(near: &Node, far: &Node) {
    let client = client(&near.url());
    let id = enqueue(&client, "talk", 10.into()).await;
    let streaming = tokio::spawn(events(near.address, id.clone()));
    let mut follow = client.follow_log(&id, 0);
    let url = near.url();
    let args = ["jobs", "--server", &url, "logs", &id, "--follow"];
    let mut followed = Process::start("follow", leasehold(args));
    let talker = Talker::at(far);

    let mut told = Vec::new();
    while let Some(lines) = tokio::time::timeout(SOON, follow.next()).await.unwrap() {
        told.extend(lines.unwrap());
    }
    assert_eq!(seen(&told), expected(10));
    let job: Job = client.wait(&id, SOON).await.unwrap();
    assert_eq!((job.state(), job.log_dropped), (JobState::Succeeded, 0));
    assert_eq!(job.log, told, "the same, whoever asks");
    let numbers: Vec<u64> = job.log.iter().map(|line| line.number).collect();
    assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
    let times: Vec<_> = job.log.iter().map(|line| line.when.clone()).collect();
    for pair in times.windows(2) {
        let [Some(When::Time(one)), Some(When::Time(next))] = pair else {
            panic!("{times:?}");
        };
        assert!(
            (one.seconds, one.nanos) <= (next.seconds, next.nanos),
            "{times:?}"
        );
    }

    let path = format!("/jobs/{id}");
    let answer = request(near.address, "GET", &path, b"").await.body;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["log_dropped"], 0);
    let log = answer["log"].as_array().unwrap();
    assert_eq!((log.len(), &log[0]["level"]), (12, &Value::from("WARN")));
    assert_eq!(log[11]["message"], "done");
    assert!(log[11]["time"].as_str().unwrap().ends_with('Z'));
    let basic = request(near.address, "GET", &format!("{path}?view=BASIC"), b"").await;
    assert!(!basic.body.contains("\"log"), "{}", basic.body);

    let events = tokio::time::timeout(SOON, streaming)
        .await
        .unwrap()
        .unwrap();
    for n in 1..=10 {
        let line = format!("\"step {n}\"");
        assert_eq!(events.matches(&line).count(), 1, "{events}");
    }
    let (before, last) = events.rsplit_once("event: job\n").unwrap();
    assert!(before.contains("\"done\""), "{events}");
    assert!(
        last.contains("-12\n") && last.contains("SUCCEEDED"),
        "{events}"
    );
    assert!(last.ends_with("event: end\ndata: {}\n\n"), "{events}");
    // Who knows a part of it is told the rest.
    let path = format!("{path}/events?log=true&after_log=11");
    let rest = request(near.address, "GET", &path, b"").await.body;
    assert_eq!(rest.matches("\"number\"").count(), 1, "{rest}");

    assert!(followed.ended(SOON).await.success());
    for output in [
        followed.output().join("\n"),
        typed(near, &["logs", &id]).await,
    ] {
        assert_eq!(output.lines().count(), 12, "{output}");
        assert!(output.contains("  1  WARN   this will not do"), "{output}");
        assert!(output.ends_with("  2  DEBUG  done"), "{output}");
    }
    let shown = typed(near, &["get", &id]).await;
    assert!(shown.contains("INFO   step 10"), "{shown}");
    assert!(shown.contains("the last 10 of 12 lines"), "{shown}");
    talker.stop().await;
}

/// He who is told to stop may say why.
async fn what_a_cancelled_handler_says_is_seen(node: &Node) {
    let client = client(&node.url());
    let talker = Talker::at(node);
    let id = enqueue(&client, "hang", Value::Null).await;
    let mut follow = client.follow_log(&id, 0);
    let first = tokio::time::timeout(SOON, follow.next()).await.unwrap();
    assert_eq!(first.unwrap().unwrap()[0].message, "waiting");
    client.cancel(&id, "enough").await.unwrap();
    let words = crate::support::until(SOON, "it says why", async || {
        let log = client.get(&id).await.unwrap().log;
        (log.len() == 2).then_some(log)
    })
    .await;
    assert_eq!(words[1].message, "told to stop");
    talker.stop().await;
}

async fn logs_on_the_embedded_server() {
    let dev = Dev::start().await;
    every_face_shows_what_a_handler_says(&dev.node, &dev.node).await;
    what_a_cancelled_handler_says_is_seen(&dev.node).await;
}

async fn logs_of_another_node() {
    let site = Site::new().await;
    let (near, far) = (site.node().await, site.node().await);
    every_face_shows_what_a_handler_says(&near, &far).await;
    what_a_cancelled_handler_says_is_seen(&far).await;
}

fn said(lease: &pb::Lease, first: u64, words: &[&str]) -> pb::LogLines {
    assert!(lease.attempt > 0);
    let line = |message: &&str| pb::LogLine {
        message: (*message).to_owned(),
        ..Default::default()
    };
    pb::LogLines {
        first,
        lines: words.iter().map(line).collect(),
    }
}

fn success(lease: &pb::Lease, log: pb::LogLines) -> pb::Result {
    pb::Result {
        lease: Some(lease.clone()),
        log: Some(log),
        outcome: Some(Outcome::Success(pb::Success::default())),
    }
}

async fn receipt(hand: &mut Hand) -> pb::Receipt {
    hand.until(|message| match message {
        Response::Receipts(receipts) => receipts.receipts.into_iter().next(),
        _ => None,
    })
    .await
}

/// A node dies between the lines, the result and its receipt: the worker sends both again, by whatever way.
async fn a_node_that_dies_over_a_result_leaves_its_lines_once(point: &str, by_call: bool) {
    let site = Site::new().await;
    let (mut doomed, node) = (site.doomed(point).await, site.node().await);
    let client = client(&node.url());
    let (mut hand, welcome) = Hand::welcome(&doomed.url(), hello(1)).await;
    hand.renew(0, &[]).await;
    let id = enqueue(&client, "echo", 1.into()).await;
    let has = leases(&hand.take(1).await.0);
    let result = success(&has[0], said(&has[0], 1, &["one", "two"]));
    let results = vec![result];
    let sent = pb::Results {
        results: results.clone(),
    };
    hand.send(Request::Results(sent)).await;
    died(&mut doomed).await;
    let told = match by_call {
        true => {
            let mut calls = WorkerServiceClient::connect(node.url()).await.unwrap();
            let request = pb::ReportResultsRequest {
                resume_token: welcome.resume_token.to_vec(),
                results,
            };
            let answer = calls.report_results(request).await.unwrap().into_inner();
            answer.receipts[0].clone()
        }
        false => {
            let (mut hand, _) = Hand::welcome(&node.url(), again(&welcome, 2, &has)).await;
            hand.send(Request::Results(pb::Results { results })).await;
            receipt(&mut hand).await
        }
    };
    assert_eq!(told.status(), ReceiptStatus::Recorded);
    let job = client.get(&id).await.unwrap();
    assert_eq!((job.state(), job.log_dropped), (JobState::Succeeded, 0));
    let words: Vec<&str> = job.log.iter().map(|line| line.message.as_str()).collect();
    assert_eq!(words, ["one", "two"]);
}

async fn a_node_dies_after_the_lines() {
    a_node_that_dies_over_a_result_leaves_its_lines_once("lines-committed", false).await;
}

async fn a_node_dies_after_the_result() {
    a_node_that_dies_over_a_result_leaves_its_lines_once("result-committed", false).await;
}

async fn a_node_dies_after_the_result_and_its_worker_calls() {
    a_node_that_dies_over_a_result_leaves_its_lines_once("result-committed", true).await;
}

/// Lines are a comfort, results are the truth.
async fn a_result_is_recorded_though_its_lines_cannot_be() {
    let site = Site::new().await;
    let node = site.node().await;
    let client = client(&node.url());
    let (mut hand, _) = Hand::welcome(&node.url(), hello(1)).await;
    hand.renew(0, &[]).await;
    let id = enqueue(&client, "echo", 1.into()).await;
    let has = leases(&hand.take(1).await.0);
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    let mut run = async |sql: &'static str| sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    run("ALTER TABLE log_lines RENAME TO nowhere").await;
    let results = vec![success(&has[0], said(&has[0], 1, &["one", "two"]))];
    let mut told = async || {
        let results = results.clone();
        hand.send(Request::Results(pb::Results { results })).await;
        receipt(&mut hand).await.status()
    };
    assert_eq!(told().await, ReceiptStatus::Recorded);
    run("ALTER TABLE nowhere RENAME TO log_lines").await;
    let job = client.get(&id).await.unwrap();
    assert_eq!((job.state(), job.log.len()), (JobState::Succeeded, 0));
    // A copy of it brings them.
    assert_eq!(told().await, ReceiptStatus::Recorded);
    assert_eq!(client.get(&id).await.unwrap().log.len(), 2);
}

async fn a_worker_in_any_language_may_say_lines() {
    let dev = Dev::start().await;
    let client = client(&dev.node.url());
    let (mut hand, _) = Hand::welcome(&dev.node.url(), hello(2)).await;
    hand.renew(0, &[]).await;
    let id = enqueue(&client, "echo", 1.into()).await;
    let has = leases(&hand.take(1).await.0);
    let report = |log| pb::LogReport {
        lease: Some(has[0].clone()),
        log: Some(log),
    };
    let mut judged = async |log: pb::LogLines| {
        let reports = vec![report(log)];
        hand.send(Request::Logs(pb::Logs { reports })).await;
        let told = hand.until(|message| match message {
            Response::LogReceipts(receipts) => receipts.receipts.into_iter().next(),
            _ => None,
        });
        let told = told.await;
        (told.last, told.status(), told.problem.map(|p| p.field))
    };
    let fine = judged(said(&has[0], 1, &["a", "b"])).await;
    assert_eq!(fine, (2, ReceiptStatus::Recorded, None));
    let copy = judged(said(&has[0], 2, &["b", "c"])).await;
    assert_eq!(copy, (3, ReceiptStatus::Recorded, None));
    let long = "x".repeat(8 * 1024 + 1);
    for (bad, field) in [
        (said(&has[0], 0, &["x"]), "log.first"),
        (said(&has[0], 4, &[]), "log.lines"),
        (said(&has[0], 4, &["x", &long]), "log.lines[1].message"),
        (said(&has[0], 4, &["a\0"]), "log.lines[0].message"),
        (
            pb::LogLines {
                first: 4,
                lines: vec![pb::LogLine {
                    level: 9,
                    ..Default::default()
                }],
            },
            "log.lines[0].level",
        ),
        (
            pb::LogLines {
                first: 4,
                lines: vec![pb::LogLine {
                    when: Some(When::Elapsed(prost_types::Duration {
                        seconds: -1,
                        nanos: 0,
                    })),
                    ..Default::default()
                }],
            },
            "log.lines[0].elapsed",
        ),
    ] {
        let (_, status, named) = judged(bad).await;
        assert_eq!(
            (status, named.as_deref()),
            (ReceiptStatus::Rejected, Some(field))
        );
    }
    // So is a result for its lines, and its lease stands.
    let bad = success(&has[0], said(&has[0], 4, &[&long]));
    let good = success(&has[0], said(&has[0], 9, &["the end"]));
    let mut told = Vec::new();
    for result in [bad, good] {
        let results = vec![result];
        hand.send(Request::Results(pb::Results { results })).await;
        told.push(receipt(&mut hand).await);
    }
    assert_eq!(told[0].status(), ReceiptStatus::Rejected);
    assert_eq!(
        told[0].problem.as_ref().unwrap().field,
        "log.lines[0].message"
    );
    assert_eq!(told[1].status(), ReceiptStatus::Recorded);
    let job = client.get(&id).await.unwrap();
    let numbers: Vec<u64> = job.log.iter().map(|line| line.number).collect();
    assert_eq!((numbers, job.log_dropped), (vec![1, 2, 3, 9], 5));
    assert_eq!(job.log[0].level(), LogLevel::Info, "if it does not say");
}

#[test]
fn what_handlers_say_is_seen() {
    side_by_side([
        case(logs_on_the_embedded_server),
        case(logs_of_another_node),
        case(a_node_dies_after_the_lines),
        case(a_node_dies_after_the_result),
        case(a_node_dies_after_the_result_and_its_worker_calls),
        case(a_result_is_recorded_though_its_lines_cannot_be),
        case(a_worker_in_any_language_may_say_lines),
    ]);
}
