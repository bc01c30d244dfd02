//! Bulks as their users meet them: nodes that are killed in the middle of one, canaries, a purge, over every face.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use worker_sdk::{
    AuditAction, Bulk, BulkAction, BulkState, Canary, Client, JobFilter, JobState, NewJob,
    StartBulkRequest,
};

use crate::crash::{died, number};
use crate::stack::{Dev, Node, Site, client};
use crate::support::http::request;
use crate::support::{leasehold, until};
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(90);
const JOBS: usize = 1_500;

/// Fails the first time, for good, and succeeds when it is brought back.
fn flaky() -> NewJob {
    NewJob::new("flaky", &2).unwrap().queue("q").max_attempts(1)
}

/// Fails each time.
fn hopeless() -> NewJob {
    NewJob::new("doomed", "permanent").unwrap().queue("q")
}

/// Jobs that have failed, by a worker that has left then.
async fn failed(client: &Client, url: &str, log: &TempDir, jobs: Vec<NewJob>) -> Vec<String> {
    let worker = Local::start(url, &log.path().join("runs"), 100);
    let mut ids = Vec::new();
    let mut jobs = jobs.into_iter().peekable();
    while jobs.peek().is_some() {
        let batch: Vec<NewJob> = jobs.by_ref().take(500).collect();
        let accepted = client.enqueue_batch(batch).await.unwrap();
        ids.extend(accepted.into_iter().map(|one| one.job.id));
    }
    until(SOON, "all have failed", async || {
        let stats = client.queue("q").await.ok()?.stats?;
        (stats.failed == ids.len() as u64).then_some(())
    })
    .await;
    worker.stop().await;
    ids
}

fn retry() -> StartBulkRequest {
    StartBulkRequest {
        action: BulkAction::Retry.into(),
        filter: Some(JobFilter {
            queues: vec!["q".into()],
            ..Default::default()
        }),
        reason: "the bug is mended".into(),
        ..Default::default()
    }
}

async fn ended(client: &Client, id: &str) -> Bulk {
    until(SOON, "the bulk has ended", async || {
        let bulk = client.bulk(id).await.ok()?;
        bulk.is_ended().then_some(bulk)
    })
    .await
}

/// It has acted on some, and not on all.
async fn in_the_middle(client: &Client, id: &str) {
    until(SOON, "it is in the middle", async || {
        let bulk = client.bulk(id).await.ok()?;
        assert!(!bulk.is_ended(), "{bulk:?}");
        (bulk.done > 0 && bulk.left > 0).then_some(())
    })
    .await;
}

fn counts(bulk: &Bulk) -> (BulkState, u64, u64, u64, u64, u64) {
    let Bulk {
        total,
        done,
        skipped,
        failed,
        left,
        ..
    } = bulk;
    (bulk.state(), *total, *done, *skipped, *failed, *left)
}

/// All were brought back, and each ran once more.
async fn each_was_retried_once(client: &Client, url: &str, log: &TempDir, ids: &[String]) {
    let worker = Local::start(url, &log.path().join("runs"), 100);
    for id in ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(
            (job.state(), job.attempt, job.lost_leases),
            (JobState::Succeeded, 2, 0),
            "{job:?}"
        );
    }
    worker.stop().await;
    let runs = runs(&log.path().join("runs"));
    for id in ids {
        assert_eq!(runs.get(id), Some(&2), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_killed_leave_a_bulk_to_the_others() {
    let site = Site::new().await;
    let mut first = site.node().await;
    let log = TempDir::new().unwrap();
    let asking = client(&first.url());
    let jobs = (0..JOBS).map(|_| flaky()).collect();
    let ids = failed(&asking, &first.url(), &log, jobs).await;
    let bulk = StartBulkRequest {
        rate: 250,
        ..retry()
    };
    let bulk = asking.start_bulk(bulk).await.unwrap();
    in_the_middle(&asking, &bulk.id).await;
    first.process.kill();
    // The next one dies when it has acted on a part, and before it has told anybody.
    let mut doomed = site.doomed("bulk-stepped").await;
    died(&mut doomed).await;
    let second = site.node().await;
    let asking = client(&second.url());
    let seen = asking.bulk(&bulk.id).await.unwrap();
    assert!(seen.left > 0, "{seen:?}");

    let all = JOBS as u64;
    let bulk = ended(&asking, &bulk.id).await;
    assert_eq!(counts(&bulk), (BulkState::Done, all, all, 0, 0, 0));
    let twice = "SELECT count(*) FROM jobs WHERE state = 2 AND revision = 4";
    assert_eq!(number(&site, twice).await, JOBS as i64, "each once");
    let left = "SELECT count(*) FROM bulk_chunks";
    assert_eq!(number(&site, left).await, 0);
    each_was_retried_once(&asking, &second.url(), &log, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_server_goes_on_with_a_bulk_after_it_was_killed() {
    let mut dev = Dev::start().await;
    let url = dev.node.url();
    let asking = client(&url);
    let log = TempDir::new().unwrap();
    let jobs = (0..300).map(|_| flaky()).collect();
    let ids = failed(&asking, &url, &log, jobs).await;
    let bulk = StartBulkRequest {
        rate: 100,
        ..retry()
    };
    let bulk = asking.start_bulk(bulk).await.unwrap();
    in_the_middle(&asking, &bulk.id).await;
    dev.node.kill_and_restart().await;
    let bulk = ended(&asking, &bulk.id).await;
    assert_eq!(counts(&bulk), (BulkState::Done, 300, 300, 0, 0, 0));
    each_was_retried_once(&asking, &url, &log, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_stops_or_goes_on_as_its_jobs_do_on_nodes() {
    let site = Site::new().await;
    let node = site.node().await;
    a_canary_stops_or_goes_on(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_stops_or_goes_on_as_its_jobs_do_on_the_embedded_server() {
    let dev = Dev::start().await;
    a_canary_stops_or_goes_on(&dev.node).await;
}

async fn a_canary_stops_or_goes_on(node: &Node) {
    let (url, log) = (node.url(), TempDir::new().unwrap());
    let asking = client(&url).actor("ada").unwrap();
    // The oldest do well, and the rest does not.
    let jobs = (0..12).map(|_| flaky()).chain((0..48).map(|_| hopeless()));
    let ids = failed(&asking, &url, &log, jobs.collect()).await;
    let worker = Local::start(&url, &log.path().join("runs"), 100);
    let bulk = StartBulkRequest {
        canary: Some(Canary {
            size: 4,
            max_failed_share: Some(0.25),
            within: None,
        }),
        ..retry()
    };
    let bulk = asking.start_bulk(bulk).await.unwrap();
    let bulk = ended(&asking, &bulk.id).await;
    // 4 of 4 and 8 of 8 do well, then 16 of 16 fail again.
    assert_eq!(counts(&bulk), (BulkState::Stopped, 60, 28, 0, 0, 32));
    let stage = bulk.stage.unwrap();
    assert_eq!((stage.size, stage.released), (16, 16));
    assert!(stage.failed > 4, "{stage:?}");
    let said = bulk
        .error
        .contains("of 16 jobs failed again, more than a share of 0.25");
    assert!(said, "{}", bulk.error);
    for id in &ids[28..] {
        assert_eq!(asking.get(id).await.unwrap().attempt, 1, "not touched");
    }
    for id in &ids[..12] {
        let job = asking.get(id).await.unwrap();
        assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2));
    }
    worker.stop().await;
    let events = asking.audit_events(10, "").await.unwrap().events;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.action(), event.subject.as_str(), event.count))
        .collect();
    assert_eq!(
        told,
        [
            (AuditAction::EndBulk, bulk.id.as_str(), 28),
            (AuditAction::StartBulk, bulk.id.as_str(), 1),
        ]
    );
    assert!(events.iter().all(|event| event.actor == "ada"));
}

#[tokio::test(flavor = "multi_thread")]
async fn running_jobs_on_other_nodes_are_told_of_a_bulk_cancel() {
    let site = Site::new().await;
    let [here, there] = [site.node().await, site.node().await];
    let log = TempDir::new().unwrap();
    let workers =
        [&here, &there].map(|node| Local::start(&node.url(), &log.path().join("runs"), 10));
    let asking = client(&here.url());
    let job = || NewJob::new("until-cancelled", &()).unwrap().queue("q");
    let accepted = asking.enqueue_batch((0..20).map(|_| job())).await.unwrap();
    until(SOON, "all run", async || {
        let stats = asking.queue("q").await.ok()?.stats?;
        (stats.running == 20).then_some(())
    })
    .await;
    let cancel = StartBulkRequest {
        action: BulkAction::Cancel.into(),
        ..retry()
    };
    let bulk = asking.start_bulk(cancel).await.unwrap();
    let bulk = ended(&asking, &bulk.id).await;
    assert_eq!(counts(&bulk), (BulkState::Done, 20, 20, 0, 0, 0));
    for one in accepted {
        let job = asking.get(&one.job.id).await.unwrap();
        assert_eq!(job.state(), JobState::Cancelled);
    }
    // A worker leaves when its handlers have ended, and these only end when they are told.
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_over_http() {
    let dev = Dev::start().await;
    let (url, address) = (dev.node.url(), dev.node.address);
    let (asking, log) = (client(&url), TempDir::new().unwrap());
    let ids = failed(&asking, &url, &log, (0..3).map(|_| hopeless()).collect()).await;
    let post = async |path: &str, body: Value| {
        request(address, "POST", path, body.to_string().as_bytes()).await
    };
    let failure = asking.get(&ids[0]).await.unwrap().last_failure.unwrap();
    let filter = json!({ "queues": ["q"], "failure_type": failure.r#type });

    let dry = json!({ "action": "RETRY", "filter": filter, "dry_run": true });
    let dry = post("/bulks", dry).await;
    assert_eq!(dry.status, 201, "{}", dry.body);
    let place = dry.header("location").unwrap().to_owned();
    let dry = until(SOON, "it has counted", async || {
        let seen = request(address, "GET", &place, b"").await.json();
        (seen["state"] == "DONE").then_some(seen)
    })
    .await;
    assert_eq!((&dry["total"], &dry["done"]), (&json!(3), &json!(0)));
    assert_eq!(dry["sample_job_ids"], json!([ids[2], ids[1], ids[0]]));
    assert_eq!(asking.get(&ids[0]).await.unwrap().state(), JobState::Failed);

    let id = uuid::Uuid::now_v7().to_string();
    let real = json!({
        "bulk_id": id, "action": 1, "filter": filter, "rate": 1, "reason": "mended",
    });
    let [made, again] = [
        post("/bulks", real.clone()).await,
        post("/bulks", real).await,
    ];
    assert_eq!((made.status, again.status), (201, 200), "{}", again.body);
    assert_eq!(
        (&made.json()["existed"], &again.json()["existed"]),
        (&json!(false), &json!(true))
    );
    let other = json!({ "bulk_id": id, "action": "CANCEL", "filter": { "queues": ["q"] } });
    let other = post("/bulks", other).await;
    assert_eq!(
        (other.status, &other.json()["reason"]),
        (409, &json!("BULK_CONFLICT"))
    );
    let aborted = post(&format!("/bulks/{id}/abort"), json!({ "reason": "no" })).await;
    assert_eq!(
        (aborted.status, &aborted.json()["state"]),
        (200, &json!("ABORTED"))
    );
    let again = request(address, "POST", &format!("/bulks/{id}/abort"), b"").await;
    assert_eq!(again.json(), aborted.json());
    let listed = request(address, "GET", "/bulks?page_size=1", b"")
        .await
        .json();
    assert_eq!(listed["bulks"][0], aborted.json());
    let next = listed["next_page_token"].as_str().unwrap();
    let next = format!("/bulks?page_size=1&page_token={next}");
    let next = request(address, "GET", &next, b"").await.json();
    assert_eq!(next["bulks"], json!([dry]));

    let nobody = uuid::Uuid::now_v7();
    for (method, path) in [
        ("GET", format!("/bulks/{nobody}")),
        ("POST", format!("/bulks/{nobody}/abort")),
        ("POST", "/queues/never-seen/purge".to_owned()),
    ] {
        assert_eq!(
            request(address, method, &path, b"").await.status,
            404,
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_bulk_is_named() {
    let dev = Dev::start().await;
    let of_q = json!({ "queues": ["q"] });
    for (body, field) in [
        (json!({ "filter": of_q }), "action"),
        (json!({ "action": "MEND", "filter": of_q }), "action"),
        (json!({ "action": 7, "filter": of_q }), "action"),
        (json!({ "action": "RETRY" }), "filter"),
        (json!({ "action": "RETRY", "filter": {} }), "filter"),
        (
            json!({ "action": "RETRY", "filter": { "states": ["FAILED"] } }),
            "filter",
        ),
        (
            json!({ "action": "RETRY", "filter": { "queues": ["a b"] } }),
            "filter.queues",
        ),
        (
            json!({ "action": "RETRY", "filter": { "queues": "q" } }),
            "filter.queues",
        ),
        (
            json!({ "action": "RETRY", "filter": { "queue": "q" } }),
            "filter.queue",
        ),
        (
            json!({ "action": "RETRY", "filter": { "queues": ["q"], "states": ["QUEUED"] } }),
            "filter.states",
        ),
        (
            json!({ "action": "CANCEL", "filter": { "queues": ["q"], "states": ["LOST"] } }),
            "filter.states",
        ),
        (
            json!({ "action": "SET_PRIORITY", "filter": of_q }),
            "priority",
        ),
        (
            json!({ "action": "CANCEL", "priority": "HIGH", "filter": of_q }),
            "priority",
        ),
        (
            json!({ "action": "RETRY", "rate": 1_000_001, "filter": of_q }),
            "rate",
        ),
        (
            json!({ "action": "RETRY", "dry_run": "yes", "filter": of_q }),
            "dry_run",
        ),
        (
            json!({ "action": "CANCEL", "canary": { "size": 1 }, "filter": of_q }),
            "canary",
        ),
        (
            json!({ "action": "RETRY", "canary": {}, "filter": of_q }),
            "canary.size",
        ),
        (
            json!({ "action": "RETRY", "canary": { "size": 1, "max_failed_share": 1.1 }, "filter": of_q }),
            "canary.max_failed_share",
        ),
        (
            json!({ "action": "RETRY", "canary": { "size": 1, "within": "0.5s" }, "filter": of_q }),
            "canary.within",
        ),
        (
            json!({ "action": "RETRY", "bulk_id": "7", "filter": of_q }),
            "bulk_id",
        ),
        (
            json!({ "action": "RETRY", "bulk_id": "01890a5d-ac96-774b-bcce-b302099a8057", "filter": of_q }),
            "bulk_id",
        ),
    ] {
        let body = body.to_string();
        let answer = request(dev.node.address, "POST", "/bulks", body.as_bytes()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        assert_eq!(answer.json()["errors"][0]["field"], field, "{body}");
    }
    let over_grpc = client(&dev.node.url());
    let refused = over_grpc.start_bulk(StartBulkRequest::default()).await;
    let Err(worker_sdk::Error::Call(error)) = refused else {
        panic!("it is refused");
    };
    let fields: Vec<_> = error.violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["action", "filter"]);
}

/// Runs a command to its end, with this typed into it.
async fn run(url: &str, args: &[&str], typed: &str) -> Output {
    let server = ["--server", url, "--actor", "ada"];
    let mut command = leasehold(args.iter().chain(&server));
    let typed = typed.to_owned();
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It need not read it.
        let _ = stdin.write_all(typed.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    });
    running.await.unwrap()
}

fn said(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{output:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_from_the_command_line() {
    let dev = Dev::start().await;
    let (url, log) = (dev.node.url(), TempDir::new().unwrap());
    let asking = client(&url);
    let ids = failed(&asking, &url, &log, (0..3).map(|_| flaky()).collect()).await;
    let failure = asking.get(&ids[0]).await.unwrap().last_failure.unwrap();
    let which = [
        "--queue",
        "q",
        "--failure-type",
        &failure.r#type,
        "--since",
        "1d",
        "-o",
        "json",
    ];

    let dry = [&["bulk", "retry", "--dry-run"], &which[..]].concat();
    let dry = run(&url, &dry, "").await;
    assert_eq!(dry.status.code(), Some(0), "{dry:?}");
    let dry = said(&dry);
    assert_eq!((&dry["state"], &dry["total"]), (&json!("DONE"), &json!(3)));

    let none = [
        "bulk",
        "retry",
        "--queue",
        "q",
        "--failure-type",
        "Other",
        "--wait",
        "-o",
        "json",
    ];
    assert_eq!(said(&run(&url, &none, "").await)["total"], 0);

    let real = [
        &["bulk", "retry", "--wait", "--reason", "mended"],
        &which[..],
    ]
    .concat();
    let real = run(&url, &real, "").await;
    assert_eq!(real.status.code(), Some(0), "{real:?}");
    let bulk = said(&real);
    assert_eq!(
        (
            &bulk["state"],
            &bulk["done"],
            &bulk["actor"],
            &bulk["reason"]
        ),
        (&json!("DONE"), &json!(3), &json!("ada"), &json!("mended"))
    );
    let id = bulk["id"].as_str().unwrap();
    let seen = run(&url, &["bulk", "get", id, "-o", "json"], "").await;
    assert_eq!(said(&seen), bulk);
    // The very form of HTTP.
    let path = format!("/bulks/{id}");
    let over_http = request(dev.node.address, "GET", &path, b"").await.json();
    assert_eq!(over_http, bulk);
    let listed = run(&url, &["bulk", "list", "-o", "json"], "").await;
    assert_eq!(said(&listed)[0], bulk);
    let aborted = run(&url, &["bulk", "abort", id], "").await;
    assert_eq!(aborted.status.code(), Some(0), "{aborted:?}");
    each_was_retried_once(&asking, &url, &log, &ids).await;

    let wrong = run(
        &url,
        &["bulk", "cancel", "--state", "failed", "--queue", "q"],
        "",
    )
    .await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_asks_for_the_queue_s_name() {
    let dev = Dev::start().await;
    let url = dev.node.url();
    let asking = client(&url);
    let job = || NewJob::new("sleep", &1).unwrap().queue("q");
    asking.enqueue_batch((0..20).map(|_| job())).await.unwrap();
    let later = job().delay(Duration::from_secs(3600));
    asking.enqueue(later).await.unwrap();
    let kept = NewJob::new("sleep", &1).unwrap().queue("kept");
    let kept = asking.enqueue(kept).await.unwrap().job.id;

    for typed in ["", "\n", "kept\n"] {
        let no = run(&url, &["queues", "purge", "q"], typed).await;
        assert_eq!(no.status.code(), Some(2), "{no:?}");
        let asked = String::from_utf8_lossy(&no.stderr).into_owned();
        assert!(asked.contains("the 21 jobs that wait in q"), "{asked}");
    }
    let no = run(&url, &["queues", "purge", "q", "--confirm", "Q"], "q\n").await;
    assert_eq!(no.status.code(), Some(2), "{no:?}");
    let unseen = run(
        &url,
        &["queues", "purge", "never-seen", "--confirm", "never-seen"],
        "",
    )
    .await;
    assert_eq!(unseen.status.code(), Some(3), "{unseen:?}");
    assert_eq!(asking.queue("q").await.unwrap().stats.unwrap().queued, 20);

    let args = [
        "queues", "purge", "q", "--wait", "--reason", "flood", "-o", "json",
    ];
    let yes = run(&url, &args, "q\n").await;
    assert_eq!(yes.status.code(), Some(0), "{yes:?}");
    let bulk = said(&yes);
    assert_eq!(
        (&bulk["action"], &bulk["done"]),
        (&json!("PURGE"), &json!(21))
    );
    let stats = asking.queue("q").await.unwrap().stats.unwrap();
    assert_eq!((stats.queued, stats.scheduled, stats.cancelled), (0, 0, 0));
    assert_eq!(asking.get(&kept).await.unwrap().state(), JobState::Queued);
    let again = run(
        &url,
        &["queues", "purge", "q", "--confirm", "q", "--wait"],
        "",
    )
    .await;
    assert_eq!(again.status.code(), Some(0), "{again:?}");

    let events = asking.audit_events(4, "").await.unwrap().events;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.action(), event.count, event.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (AuditAction::EndBulk, 0, ""),
            (AuditAction::PurgeQueue, 1, ""),
            (AuditAction::EndBulk, 21, "flood"),
            (AuditAction::PurgeQueue, 1, "flood"),
        ]
    );
    assert_eq!(events[3].subject, "q");
}
