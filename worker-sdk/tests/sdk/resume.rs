//! Workers whose streams end before they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Notify, mpsc};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use worker_sdk::proto::lease_jobs_request::Message as Sent;
use worker_sdk::proto::lease_jobs_response::Message as Heard;
use worker_sdk::proto::result::Outcome;
use worker_sdk::proto::{Draining, Receipts, ReportResultsResponse};
use worker_sdk::{JobError, Worker, WorkerBuilder};

use crate::peer::{Peer, Stream, Way, recorded, soon};
use crate::workers::{TTL, spawn};

/// What the handlers of "wait" do: each ends when it is let go, or told to stop.
struct Waiting {
    starts: Arc<AtomicU32>,
    started: mpsc::Receiver<String>,
    go: Arc<Notify>,
    stopped: mpsc::Receiver<String>,
}

fn waiting(url: &str) -> (WorkerBuilder, Waiting) {
    let (starts, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let (start, started) = mpsc::channel(16);
    let (stop, stopped) = mpsc::channel(16);
    let waiting = Waiting {
        starts: Arc::clone(&starts),
        started,
        go: Arc::clone(&go),
        stopped,
    };
    let builder = Worker::builder(url)
        .concurrency(2)
        .handler("wait", move |ctx, (): ()| {
            let (starts, go) = (Arc::clone(&starts), Arc::clone(&go));
            let (start, stop) = (start.clone(), stop.clone());
            async move {
                starts.fetch_add(1, Ordering::SeqCst);
                start.send(ctx.job_id().to_owned()).await.unwrap();
                tokio::select! {
                    () = go.notified() => Ok("done"),
                    () = ctx.cancelled() => {
                        stop.send(ctx.job_id().to_owned()).await.unwrap();
                        Err(JobError::new("told to stop"))
                    }
                }
            }
        });
    (builder, waiting)
}

fn held(stream: &Stream) -> Vec<&str> {
    let held = stream.hello.held.iter();
    held.map(|lease| lease.job_id.as_str()).collect()
}

fn session_moved() -> Status {
    let details = ErrorDetails::with_error_info("SESSION_MOVED", "leasehold", []);
    Status::with_error_details(Code::Aborted, "another stream has it", details)
}

#[tokio::test]
async fn a_worker_that_was_cut_off_goes_on_with_its_session_and_its_handlers() {
    let peer = Peer::start();
    let way = Way::to(&peer).await;
    let (builder, mut waiting) = waiting(&way.url);
    let (_stop, _worker) = spawn(builder);
    let mut first = peer.session("secret", TTL).await;
    assert_eq!(first.hello.attach_sequence, 1);
    assert!(first.hello.resume_token.is_empty() && held(&first).is_empty());
    first.push("a", "wait", "null").await;
    first.push("b", "wait", "null").await;
    soon("a handler", waiting.started.recv()).await.unwrap();
    soon("a handler", waiting.started.recv()).await.unwrap();
    waiting.go.notify_one();
    let results = first.results().await;
    let ended = results[0].lease.as_ref().unwrap().job_id.clone();

    way.cut();
    let mut second = peer.resumed("secret", TTL).await;
    assert_eq!(second.hello.resume_token, b"secret"[..]);
    assert_eq!(second.hello.attach_sequence, 2);
    assert_eq!(held(&second), ["a", "b"]);
    assert_eq!(second.results().await, results, "what had no receipt");
    let receipts = results.iter().map(recorded).collect();
    second.say(Heard::Receipts(Receipts { receipts })).await;
    // It does not seem to have it: a frame on the old stream could have been lost.
    second.push(&ended, "wait", "null").await;
    // Its answer shows that all before it was read.
    second.push("c", "strange", "null").await;
    assert!(matches!(
        second.results().await[0].outcome,
        Some(Outcome::Release(_))
    ));

    way.cut();
    let mut third = peer.resumed("secret", TTL).await;
    assert_eq!(third.hello.attach_sequence, 3);
    let runs = if ended == "a" { "b" } else { "a" };
    assert_eq!(held(&third), [runs, "c"]);
    assert_eq!(third.results().await[0].lease.as_ref().unwrap().job_id, "c");
    waiting.go.notify_one();
    let results = third.results().await;
    assert_eq!(results[0].lease.as_ref().unwrap().job_id, runs);
    assert!(matches!(results[0].outcome, Some(Outcome::Success(_))));
    assert_eq!(waiting.starts.load(Ordering::SeqCst), 2, "each ran once");
}

#[tokio::test]
async fn a_copy_keeps_the_session_and_this_process_begins_anew() {
    let mut peer = Peer::start();
    let (builder, mut waiting) = waiting(&peer.url);
    let (_stop, _worker) = spawn(builder);
    let mut first = peer.session("shared", TTL).await;
    first.push("a", "wait", "null").await;
    first.push("b", "wait", "null").await;
    soon("a handler", waiting.started.recv()).await.unwrap();
    soon("a handler", waiting.started.recv()).await.unwrap();
    waiting.go.notify_one();
    let results = first.results().await;
    first.end(session_moved()).await;
    let stopped = soon("an order to stop", waiting.stopped.recv())
        .await
        .unwrap();
    assert_ne!(stopped, results[0].lease.as_ref().unwrap().job_id);
    let (report, answer) = soon("a report", peer.reports.recv()).await.unwrap();
    assert_eq!(report.resume_token, b"shared"[..]);
    assert_eq!(report.results, results);
    let receipts = report.results.iter().map(recorded).collect();
    answer.send(Ok(ReportResultsResponse { receipts })).unwrap();
    let fresh = peer.session("own", TTL).await;
    assert!(fresh.hello.resume_token.is_empty() && held(&fresh).is_empty());
    assert_eq!(fresh.hello.attach_sequence, 1);
}

#[tokio::test]
async fn a_session_that_the_server_has_ended_is_reported_under_its_old_token() {
    let mut peer = Peer::start();
    let (builder, mut waiting) = waiting(&peer.url);
    let (_stop, _worker) = spawn(builder);
    let mut first = peer.session("old", TTL).await;
    first.push("a", "wait", "null").await;
    first.push("b", "wait", "null").await;
    soon("a handler", waiting.started.recv()).await.unwrap();
    soon("a handler", waiting.started.recv()).await.unwrap();
    waiting.go.notify_one();
    first.results().await;
    first.end(Status::unavailable("gone")).await;
    let mut second = peer.session("new", TTL).await;
    assert_eq!(second.hello.resume_token, b"old"[..]);
    soon("an order to stop", waiting.stopped.recv())
        .await
        .unwrap();
    let (report, answer) = soon("a report", peer.reports.recv()).await.unwrap();
    assert_eq!(report.resume_token, b"old"[..]);
    answer.send(Err(Status::unavailable("not yet"))).unwrap();
    let (report, answer) = soon("the report again", peer.reports.recv()).await.unwrap();
    let receipts = report.results.iter().map(recorded).collect();
    answer.send(Ok(ReportResultsResponse { receipts })).unwrap();
    waiting.go.notify_one();
    second.push("c", "wait", "null").await;
    let results = second.results().await;
    assert!(matches!(results[0].outcome, Some(Outcome::Success(_))));
}

#[tokio::test]
async fn a_drain_moves_the_session_while_results_go_on() {
    let peer = Peer::start();
    let (builder, mut waiting) = waiting(&peer.url);
    let (stop, worker) = spawn(builder);
    let mut first = peer.session("secret", TTL).await;
    first.push("a", "wait", "null").await;
    first.push("b", "wait", "null").await;
    soon("a handler", waiting.started.recv()).await.unwrap();
    soon("a handler", waiting.started.recv()).await.unwrap();
    first.say(Heard::Draining(Draining::default())).await;
    let second = peer.stream().await;
    assert_eq!(second.hello.attach_sequence, 2);
    assert_eq!(held(&second), ["a", "b"]);
    waiting.go.notify_one();
    assert!(matches!(first.outcome().await, Outcome::Success(_)));
    second.end(Status::unavailable("drains as well")).await;
    let mut third = peer.resumed("secret", TTL).await;
    assert_eq!(third.hello.attach_sequence, 3);
    waiting.go.notify_one();
    assert!(matches!(
        third.results().await[0].outcome,
        Some(Outcome::Success(_))
    ));
    stop.notify_one();
    assert!(matches!(third.next().await, Some(Sent::Goodbye(_))));
    drop(worker);
}
