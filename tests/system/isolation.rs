//! What goes wrong with a worker, or with the time: whose lease it costs, and whose it must not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb, AttemptOutcome, ReceiptStatus, result::Outcome};
use worker_sdk::{Client, Job, JobState, NewJob};

use crate::cases::{case, side_by_side};
use crate::hand::{Hand, hello, leases};
use crate::stack::{Site, client};
use crate::support::http::request;
use crate::support::until;
use crate::wire::Wire;
use crate::workers::{Local, SLOTS, process, process_with};

const SOON: Duration = Duration::from_secs(120);
/// All workers here have leases of 10 s.
const BEYOND_TTL: u64 = 12_000;

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

fn new(kind: &str, millis: u64) -> NewJob {
    NewJob::new(kind, &millis).unwrap().queue("q")
}

/// Where in the log this event of this attempt stands, once it does.
async fn noted(log: &Path, id: &str, attempt: u32, event: &str) -> usize {
    let line = format!("{id} {attempt} {event}");
    until(SOON, &line, async || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.lines().position(|l| l == line)
    })
    .await
}

fn events(log: &Path, id: &str) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let of = |line: &str| line.strip_prefix(&format!("{id} ")).map(str::to_owned);
    text.lines().filter_map(of).collect()
}

async fn ended(client: &Client, id: &str) -> Job {
    let job = client.wait(id, SOON).await.unwrap();
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    job
}

async fn ended_at_once(client: &Client, id: &str) {
    let job = ended(client, id).await;
    assert_eq!((job.attempt, job.lost_leases), (1, 0), "{job:?}");
}

async fn handlers_that_hold_every_thread_of_the_runtime_lose_no_lease() {
    let (site, log) = (Site::new().await, log());
    let node = site.node().await;
    let threads = [("TOKIO_WORKER_THREADS", "2")];
    let _worker = process_with(&node.url(), &log.path, &threads);
    let client = client(&node.url());
    let mut ids = Vec::new();
    for _ in 0..2 {
        // Asleep or spinning, the thread is as lost; the processors are for other tests.
        ids.push(client.enqueue(new("block", 25_000)).await.unwrap().job.id);
    }
    for id in &ids {
        ended_at_once(&client, id).await;
    }
}

async fn a_thousand_slots_on_full_processors_lose_no_lease() {
    let (site, log) = (Site::new().await, log());
    let node = site.node().await;
    let worker = [("TOKIO_WORKER_THREADS", "2"), (SLOTS, "1000")];
    let _worker = process_with(&node.url(), &log.path, &worker);
    let client = client(&node.url());
    let jobs = (0..1_000).map(|_| new("spin", BEYOND_TTL));
    let ids = client.enqueue_batch(jobs).await.unwrap();
    for accepted in &ids {
        ended_at_once(&client, &accepted.job.id).await;
    }
}

async fn a_worker_that_is_cut_off_has_stopped_before_another_begins() {
    let (site, log) = (Site::new().await, log());
    let node = site.node().await;
    let wire = Wire::to(node.address).await;
    let cut_off = Local::start(&wire.url(), &log.path, 50);
    let client = client(&node.url());
    let id = client
        .enqueue(new("watched", 600_000))
        .await
        .unwrap()
        .job
        .id;
    noted(&log.path, &id, 1, "begun").await;
    wire.cut();
    let other = Local::start(&node.url(), &log.path, 50);
    let begun = noted(&log.path, &id, 2, "begun").await;
    assert!(noted(&log.path, &id, 1, "stopped").await < begun);
    let job = ended(&client, &id).await;
    assert_eq!((job.attempt, job.lost_leases), (2, 1), "{job:?}");
    assert_eq!(job.output_as::<u32>().unwrap(), 2);
    other.stop().await;
    // It is a worker again as soon as it can be one.
    wire.mend();
    let id = client.enqueue(new("sleep", 1)).await.unwrap().job.id;
    ended_at_once(&client, &id).await;
    cut_off.stop().await;
}

async fn a_worker_paused_beyond_its_time_stops_its_handlers_when_it_wakes() {
    let (site, log) = (Site::new().await, log());
    let node = site.node().await;
    let paused = process(&node.url(), &log.path);
    let client = client(&node.url());
    let long = client
        .enqueue(new("watched", 600_000))
        .await
        .unwrap()
        .job
        .id;
    // Its time is over while the worker is paused: it ends at the very moment of waking.
    let short = client
        .enqueue(new("sleep-once", 4_000))
        .await
        .unwrap()
        .job
        .id;
    noted(&log.path, &long, 1, "begun").await;
    noted(&log.path, &short, 1, "begun").await;
    paused.signal("STOP");
    let other = Local::start(&node.url(), &log.path, 50);
    let mut recorded = Vec::new();
    for id in [&long, &short] {
        let job = ended(&client, id).await;
        assert_eq!((job.attempt, job.lost_leases), (2, 1), "{job:?}");
        assert_eq!(job.output_as::<u32>().unwrap(), 2);
        recorded.push((job.revision, job.finish_time));
    }
    paused.signal("CONT");
    noted(&log.path, &long, 1, "stopped").await;
    // It is told so, whatever it had to say of them; and takes part again.
    paused.logged("result came too late to count", SOON).await;
    other.stop().await;
    let id = client.enqueue(new("sleep", 1)).await.unwrap().job.id;
    ended_at_once(&client, &id).await;
    for (id, recorded) in [&long, &short].into_iter().zip(recorded) {
        let job = client.get(id).await.unwrap();
        assert_eq!((job.revision, job.finish_time), recorded, "nothing changed");
        assert_eq!(job.attempt, 2, "one more execution, and no other");
    }
    assert_eq!(
        events(&log.path, &long),
        ["1 begun", "2 begun", "1 stopped"]
    );
}

async fn a_result_after_the_lease_was_lost_counts_if_nobody_has_the_job_again() {
    let site = Site::new().await;
    let node = site.node().await;
    let client = client(&node.url());
    let (mut hand, welcome) = Hand::welcome(&node.url(), hello(10)).await;
    hand.renew(0, &[]).await;
    let jobs = client.enqueue_batch((0..2).map(|_| new("echo", 1))).await;
    assert_eq!(jobs.unwrap().len(), 2);
    let has = leases(&hand.take(2).await.0);
    // Silent for its whole time.
    until(SOON, "both leases are lost", async || {
        for lease in &has {
            let job = client.get(&lease.job_id).await.unwrap();
            if job.state() != JobState::Queued {
                return None;
            }
        }
        Some(())
    })
    .await;
    client.cancel(&has[1].job_id, "not wanted").await.unwrap();
    let results = has.iter().map(|lease| pb::Result {
        lease: Some(lease.clone()),
        outcome: Some(Outcome::Success(pb::Success::default())),
        log: None,
    });
    let report = pb::ReportResultsRequest {
        resume_token: welcome.resume_token.clone(),
        results: results.collect(),
    };
    let mut unary = WorkerServiceClient::connect(node.url()).await.unwrap();
    for _ in 0..2 {
        let answer = unary.report_results(report.clone()).await.unwrap();
        let receipts = answer.into_inner().receipts;
        assert_eq!(receipts[0].status(), ReceiptStatus::Recorded);
        assert_eq!(receipts[1].status(), ReceiptStatus::Stale);
    }
    let job = ended(&client, &has[0].job_id).await;
    assert_eq!((job.attempt, job.lost_leases), (1, 1));
}

#[test]
fn a_worker_that_is_busy_loses_no_lease_and_one_that_is_away_loses_it_in_order() {
    side_by_side([
        case(handlers_that_hold_every_thread_of_the_runtime_lose_no_lease),
        case(a_thousand_slots_on_full_processors_lose_no_lease),
        case(a_worker_that_is_cut_off_has_stopped_before_another_begins),
        case(a_worker_paused_beyond_its_time_stops_its_handlers_when_it_wakes),
        case(a_result_after_the_lease_was_lost_counts_if_nobody_has_the_job_again),
    ]);
}

async fn a_cancel_reaches_the_worker_of_another_node() {
    let (site, log) = (Site::new().await, log());
    let (near, far) = (site.node().await, site.node().await);
    let worker = Local::start(&far.url(), &log.path, 50);
    let client = client(&near.url());
    let heard = client
        .enqueue(new("watched", 600_000))
        .await
        .unwrap()
        .job
        .id;
    let deaf = NewJob::new("deaf", &()).unwrap().queue("q");
    let deaf = client.enqueue(deaf).await.unwrap().job.id;
    for id in [&heard, &deaf] {
        noted(&log.path, id, 1, "begun").await;
    }
    let told = std::time::Instant::now();
    for id in [&heard, &deaf] {
        client.cancel(id, "enough").await.unwrap();
    }
    noted(&log.path, &heard, 1, "stopped").await;
    println!("a cancel by another node took {:?}", told.elapsed());
    noted(&log.path, &deaf, 1, "dropped").await;
    println!("a deaf handler was dropped after {:?}", told.elapsed());
    for id in [&heard, &deaf] {
        let job = client.get(id).await.unwrap();
        assert_eq!((job.state(), job.attempt), (JobState::Cancelled, 1));
        let outcomes: Vec<_> = job.attempts.iter().map(|a| a.outcome()).collect();
        assert_eq!(outcomes, [AttemptOutcome::Cancelled]);
    }
    worker.stop().await;
}

async fn a_result_after_a_cancel_by_another_node_is_stale() {
    let site = Site::new().await;
    let (near, far) = (site.node().await, site.node().await);
    let client = client(&near.url());
    let (mut hand, _) = Hand::welcome(&far.url(), hello(10)).await;
    hand.renew(0, &[]).await;
    let id = client.enqueue(new("echo", 1)).await.unwrap().job.id;
    let has = leases(&hand.take(1).await.0);
    client.cancel(&id, "enough").await.unwrap();
    let cancelled = hand
        .until(|message| match message {
            worker_sdk::proto::lease_jobs_response::Message::Cancels(cancels) => Some(cancels),
            _ => None,
        })
        .await;
    assert_eq!(cancelled.cancels[0].lease, Some(has[0].clone()));
    let receipts = hand.succeed(&has).await;
    assert_eq!(receipts[0].status(), ReceiptStatus::Stale);
    assert_eq!(receipts[0].problem.as_ref().unwrap().reason, "CANCELLED");
}

async fn an_attempt_past_its_timeout_is_stopped_and_counted_and_the_job_runs_again() {
    let (site, log) = (Site::new().await, log());
    let (near, far) = (site.node().await, site.node().await);
    let worker = Local::start(&far.url(), &log.path, 50);
    let client = client(&near.url());
    let short = Duration::from_millis(500);
    let job = new("watched", 600_000)
        .timeout(short)
        .backoff(short, 1.0, short);
    let id = client.enqueue(job).await.unwrap().job.id;
    let job = ended(&client, &id).await;
    assert_eq!((job.attempt, job.failures, job.lost_leases), (2, 1, 0));
    let outcomes: Vec<_> = job.attempts.iter().map(|a| a.outcome()).collect();
    assert_eq!(outcomes, [AttemptOutcome::TimedOut]);
    assert_eq!(events(&log.path, &id), ["1 begun", "1 stopped", "2 begun"]);
    worker.stop().await;
}

async fn number(site: &Site, sql: &'static str) -> i64 {
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    let number = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    db.close().await.unwrap();
    number
}

/// Sets the clock from which all SQL takes its time, as far off as this.
async fn set_the_database_s_clock(site: &Site, off: &str) {
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    let set = format!(
        "CREATE OR REPLACE FUNCTION lh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS
         $$ SELECT clock_timestamp() + interval '{off}' $$"
    );
    let set = AssertSqlSafe(set);
    sqlx::raw_sql(set).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

/// The library that gives a process another time of day. Its monotonic clock stays what it is, as on a real machine.
fn clock_that_is_off(by: &'static str) -> [(&'static str, String); 3] {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let library = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
        .expect("libfaketime is not installed: ./scripts/test --install does it");
    [
        ("LD_PRELOAD", library.to_string_lossy().into_owned()),
        ("FAKETIME", by.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

fn pairs<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    environment
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect()
}

async fn clocks_of_nodes_and_workers_that_are_an_hour_off_change_nothing() {
    let (site, log) = (Site::new().await, log());
    let (ahead, behind) = (clock_that_is_off("+1h"), clock_that_is_off("-1h"));
    let nodes = [
        site.node_with(&pairs(&ahead)).await,
        site.node_with(&pairs(&behind)).await,
    ];
    let _workers = [
        process_with(&nodes[0].url(), &log.path, &pairs(&behind)),
        process_with(&nodes[1].url(), &log.path, &pairs(&ahead)),
    ];
    let client = client(&nodes[0].url());
    let mut ids = Vec::new();
    for n in 0..20 {
        let late = new("sleep", BEYOND_TTL).delay(Duration::from_millis(n * 50));
        ids.push(client.enqueue(late).await.unwrap().job.id);
    }
    // Those that a node names itself, too.
    for node in &nodes {
        let body = br#"{"queue":"q","kind":"sleep","payload":1}"#;
        let answer = request(node.address, "POST", "/jobs", body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        ended_at_once(&client, id).await;
    }
}

async fn a_database_whose_clock_jumps_costs_no_lease(off: &str) {
    let (site, log) = (Site::new().await, log());
    let node = site.node().await;
    let worker = Local::start(&node.url(), &log.path, 50);
    let client = client(&node.url());
    let id = client
        .enqueue(new("sleep", BEYOND_TTL))
        .await
        .unwrap()
        .job
        .id;
    until(SOON, "it runs", async || {
        let job = client.get(&id).await.unwrap();
        let pulses = "SELECT count(touched_at) FROM pulse";
        let is_watched = number(&site, pulses).await == 1;
        (job.state() == JobState::Running && is_watched).then_some(())
    })
    .await;
    set_the_database_s_clock(&site, off).await;
    ended_at_once(&client, &id).await;
    worker.stop().await;
}

async fn a_database_whose_clock_jumps_ahead_costs_no_lease() {
    a_database_whose_clock_jumps_costs_no_lease("1 hour").await;
}

async fn a_database_whose_clock_jumps_back_costs_no_lease() {
    a_database_whose_clock_jumps_costs_no_lease("-1 hour").await;
}

#[test]
fn cancels_and_timeouts_reach_a_worker_on_any_node_and_clocks_that_are_wrong_reach_nobody() {
    side_by_side([
        case(a_cancel_reaches_the_worker_of_another_node),
        case(a_result_after_a_cancel_by_another_node_is_stale),
        case(an_attempt_past_its_timeout_is_stopped_and_counted_and_the_job_runs_again),
        case(clocks_of_nodes_and_workers_that_are_an_hour_off_change_nothing),
        case(a_database_whose_clock_jumps_ahead_costs_no_lease),
        case(a_database_whose_clock_jumps_back_costs_no_lease),
    ]);
}
