//! Who watches a job, or waits for its end, on whatever node, is told; and nobody is kept who has left.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tonic::Code;
use tonic_types::StatusExt;
use worker_sdk::proto::job_service_client::JobServiceClient;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::{self as pb};
use worker_sdk::{Client, Job, JobState, NewJob, View, Watch};

use crate::cases::{case, side_by_side};
use crate::hand::{Hand, hello, leases};
use crate::stack::{Dev, Node, Site, Stack, client};
use crate::support::http::request;
use crate::support::{Process, leasehold, until};

const SOON: Duration = Duration::from_secs(60);

/// A worker of one slot that need not be heard of while a case goes on.
fn patient() -> pb::Hello {
    pb::Hello {
        lease_ttl: Some(prost_types::Duration {
            seconds: 600,
            nanos: 0,
        }),
        ..hello(1)
    }
}

async fn enqueue(client: &Client) -> String {
    let job = NewJob::new("echo", &1).unwrap().queue("q");
    client.enqueue(job).await.unwrap().job.id
}

async fn next(watch: &mut Watch) -> Option<Job> {
    let told = tokio::time::timeout(SOON, watch.next()).await;
    told.expect("something is told").map(Result::unwrap)
}

/// Everything that is told until this is true.
async fn told(watch: &mut Watch, is_it: impl Fn(&Job) -> bool) -> Job {
    loop {
        let job = next(watch).await.expect("the watch goes on");
        if is_it(&job) {
            return job;
        }
    }
}

/// The events of a job over HTTP, to their end.
async fn events(address: SocketAddr, id: String) -> String {
    let answer = request(address, "GET", &format!("/jobs/{id}/events"), b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// All faces of one node tell what the worker of another does.
async fn a_job_is_watched_here_and_run_there(near: &Node, far: &Node) {
    let (here, there) = (client(&near.url()), client(&far.url()));
    let id = enqueue(&there).await;
    let mut watch = here.watch(&id, View::Basic);
    let job = next(&mut watch).await.unwrap();
    assert_eq!((job.state(), job.revision), (JobState::Queued, 1));
    let waiting = tokio::spawn({
        let (here, id) = (here.clone(), id.clone());
        async move { here.wait(&id, SOON).await.unwrap() }
    });
    let streaming = tokio::spawn(events(near.address, id.clone()));
    let url = near.url();
    let typed = ["jobs", "--server", &url, "get", &id, "--watch"];
    let mut typed = Process::start("watch", leasehold(typed));
    typed.logged("QUEUED", SOON).await;

    let (mut hand, _) = Hand::welcome(&far.url(), patient()).await;
    hand.beat(0, &[]).await;
    let has = leases(&hand.take(1).await.0);
    let job = told(&mut watch, |job| job.state() == JobState::Running).await;
    assert_eq!((job.attempt, job.worker.as_str()), (1, "hand"));
    let progress = pb::Progress {
        percent: Some(40),
        note: Some("on its way".into()),
        checkpoint: Some(vec![7; 1_000].into()),
        revision: 1,
    };
    let reports = vec![pb::ProgressReport {
        lease: Some(has[0].clone()),
        progress: Some(progress),
    }];
    hand.send(Request::Progress(pb::ProgressReports { reports }))
        .await;
    let job = told(&mut watch, |job| job.progress.is_some()).await;
    let progress = job.progress.unwrap();
    assert_eq!((progress.percent, progress.checkpoint), (Some(40), None));
    typed.logged("40 %  on its way", SOON).await;
    // A full view has it all.
    let full = next(&mut here.watch(&id, View::Full)).await.unwrap();
    assert!(full.progress.unwrap().checkpoint.is_some());
    assert!(full.spec.unwrap().payload.is_some());

    hand.succeed(&has).await;
    let job = told(&mut watch, |job| job.is_final()).await;
    assert_eq!(job.state(), JobState::Succeeded);
    assert!(next(&mut watch).await.is_none());
    let waited = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(waited.state(), JobState::Succeeded);
    let events = tokio::time::timeout(SOON, streaming)
        .await
        .unwrap()
        .unwrap();
    let last = events.rsplit("event: job\n").next().unwrap();
    assert!(last.contains("\"SUCCEEDED\""), "{events}");
    assert!(events.ends_with("event: end\ndata: {}\n\n"), "{events}");
    assert!(typed.ended(SOON).await.success());
    typed.logged("SUCCEEDED", SOON).await;
    let output = typed.output().join("\n");
    for word in ["SUCCEEDED", "40 %  on its way"] {
        assert!(output.contains(word), "{output}");
    }
}

async fn a_job_is_watched_on_the_embedded_server() {
    let dev = Dev::start().await;
    a_job_is_watched_here_and_run_there(&dev.node, &dev.node).await;
}

async fn a_job_is_watched_on_another_node() {
    let site = Site::new().await;
    a_job_is_watched_here_and_run_there(&site.node().await, &site.node().await).await;
}

async fn a_job_that_is_removed_ends_its_watch() {
    let site = Site::new().await;
    let node = site.node().await;
    let client = client(&node.url());
    let id = enqueue(&client).await;
    let mut watch = client.watch(&id, View::Basic);
    next(&mut watch).await.unwrap();
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    let delete = sqlx::query("DELETE FROM jobs").execute(&mut db).await;
    assert_eq!(delete.unwrap().rows_affected(), 1);
    db.close().await.unwrap();
    let ended = tokio::time::timeout(SOON, watch.next()).await.unwrap();
    let error = ended.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some("JOB_NOT_FOUND"));
    assert!(watch.next().await.is_none());
}

async fn a_node_that_leaves_answers_who_waits_and_sends_who_watches_elsewhere() {
    let site = Site::new().await;
    let node = site.node().await;
    let id = enqueue(&client(&node.url())).await;
    let mut jobs = JobServiceClient::connect(node.url()).await.unwrap();
    let watched = pb::WatchJobRequest {
        job_id: id.clone(),
        ..Default::default()
    };
    let mut watch = jobs.watch_job(watched).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let waiting = tokio::spawn(async move {
        let wait = prost_types::Duration {
            seconds: 60,
            nanos: 0,
        };
        let request = pb::GetJobRequest {
            job_id: id,
            wait: Some(wait),
            ..Default::default()
        };
        jobs.get_job(request).await
    });
    until(SOON, "both wait", async || {
        let metrics = request(node.address, "GET", "/metrics", b"").await.body;
        metrics.contains("leasehold_watchers 2\n").then_some(())
    })
    .await;
    let begun = std::time::Instant::now();
    node.process.terminate();
    let answer = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    let job = answer.unwrap().into_inner().job.unwrap();
    assert_eq!(job.state(), JobState::Queued);
    let ended = tokio::time::timeout(SOON, watch.message()).await.unwrap();
    let status = ended.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    assert!(begun.elapsed() < Duration::from_secs(20), "not by its end");
}

async fn a_watch_outlives_an_outage_of_the_store() {
    let mut stack = Stack::start(1).await;
    let client = stack.client(0);
    let id = enqueue(&client).await;
    let mut watch = client.watch(&id, View::Basic);
    next(&mut watch).await.unwrap();
    stack.postgres.stop().await;
    until(SOON, "the node sees it", async || {
        let ready = request(stack.nodes[0].address, "GET", "/readyz", b"").await;
        (ready.status == 503).then_some(())
    })
    .await;
    // Who comes now is not kept waiting for it.
    let mut late = client
        .clone()
        .deadline(Duration::ZERO)
        .watch(&id, View::Basic);
    let refused = tokio::time::timeout(SOON, late.next()).await.unwrap();
    let refused = refused.unwrap().unwrap_err();
    assert_eq!(refused.reason(), Some("STORE_UNAVAILABLE"));
    stack.postgres.start().await;
    client.cancel(&id, "enough").await.unwrap();
    let job = next(&mut watch).await.unwrap();
    assert_eq!((job.state(), job.revision), (JobState::Cancelled, 2));
}

#[test]
fn who_watches_a_job_is_told_what_becomes_of_it() {
    side_by_side([
        case(a_job_is_watched_on_the_embedded_server),
        case(a_job_is_watched_on_another_node),
        case(a_job_that_is_removed_ends_its_watch),
        case(a_node_that_leaves_answers_who_waits_and_sends_who_watches_elsewhere),
        case(a_watch_outlives_an_outage_of_the_store),
    ]);
}
