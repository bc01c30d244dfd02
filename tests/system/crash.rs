//! A node killed at one very point of an enqueue or a grant: what it leaves, and who repairs it. The lines of "What
//! happens at each failure", each by a failpoint of the real process; those of the node's own work are in `sweeps.rs`.
//! What is killed at no point in particular is in `faults.rs`.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use worker_sdk::proto::{self as pb, AttemptOutcome, ReceiptStatus};
use worker_sdk::{Client, Job, JobState, NewJob};

use crate::balancer::Balancer;
use crate::cases::{case, side_by_side};
use crate::hand::{Hand, again, hello, leases};
use crate::stack::{Node, Site, client};
use crate::support::{shared_redis_url, until};
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(90);

pub fn echo(n: usize) -> NewJob {
    NewJob::new("echo", &n).unwrap().queue("q")
}

/// It was killed at its point.
pub async fn died(node: &mut Node) {
    let status = node.process.ended(SOON).await;
    assert_eq!(status.signal(), Some(9), "{status}");
}

/// One number out of the database.
pub async fn number(site: &Site, sql: &str) -> i64 {
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    let number = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
    let number = number.fetch_one(&mut db).await.unwrap();
    db.close().await.unwrap();
    number
}

pub async fn ended_as(client: &Client, id: &str, attempt: u32, lost: u32) -> Job {
    let job = client.wait(id, SOON).await.unwrap();
    assert_eq!(
        (job.state(), job.attempt, job.lost_leases),
        (JobState::Succeeded, attempt, lost),
        "{job:?}"
    );
    job
}

/// A worker of the SDK, and the log of its runs.
pub struct Helper {
    pub worker: Local,
    folder: TempDir,
}

impl Helper {
    pub fn at(node: &Node) -> Self {
        let folder = TempDir::new().unwrap();
        let worker = Local::start(&node.url(), &folder.path().join("runs"), 50);
        Self { worker, folder }
    }

    /// Each of these ran, and once.
    pub fn ran_once(&self, ids: &[String]) {
        let runs = runs(&self.folder.path().join("runs"));
        for id in ids {
            assert_eq!(runs.get(id), Some(&1), "{id}");
        }
    }
}

/// Enqueues at a node that will not answer, and waits until it is dead.
async fn enqueue_in_vain(doomed: &mut Node, jobs: Vec<NewJob>, as_batch: bool) {
    let asking = client(&doomed.url());
    let asked = tokio::spawn(async move {
        match as_batch {
            true => drop(asking.enqueue_batch(jobs).await),
            false => drop(asking.enqueue(jobs[0].clone()).await),
        }
    });
    died(doomed).await;
    assert!(!asked.is_finished(), "nobody was told anything");
    asked.abort();
}

async fn before_the_commit_of_an_enqueue_nothing_is_left() {
    let site = Site::new().await;
    let (mut doomed, node) = (site.doomed("enqueue-uncommitted").await, site.node().await);
    let jobs: Vec<NewJob> = (0..3).map(echo).collect();
    let client = client(&node.url());
    // Only a batch of which an id is there is written in a transaction of several statements.
    client.enqueue(jobs[0].clone()).await.unwrap();
    enqueue_in_vain(&mut doomed, jobs.clone(), true).await;
    assert_eq!(number(&site, "SELECT count(*) FROM jobs").await, 1);
    let accepted = client.enqueue_batch(jobs.clone()).await.unwrap();
    for (n, (accepted, job)) in accepted.iter().zip(&jobs).enumerate() {
        assert_eq!(
            (&*accepted.job.id, accepted.existed),
            (job.job_id(), n == 0)
        );
    }
}

async fn after_the_commit_of_an_enqueue_the_job_runs_and_the_retry_gets_the_same() {
    let site = Site::new().await;
    let (mut doomed, node) = (site.doomed("enqueue-committed").await, site.node().await);
    let helper = Helper::at(&node);
    let job = echo(1);
    enqueue_in_vain(&mut doomed, vec![job.clone()], false).await;
    let client = client(&node.url());
    ended_as(&client, job.job_id(), 1, 0).await;
    let again = client.enqueue(job.clone()).await.unwrap();
    assert_eq!((&*again.job.id, again.existed), (job.job_id(), true));
    helper.ran_once(&[job.job_id().to_owned()]);
    helper.worker.stop().await;
}

async fn hints_that_are_there_twice_run_nothing_twice() {
    let site = Site::new().await;
    let (mut doomed, node) = (site.doomed("offer-unmarked").await, site.node().await);
    let jobs: Vec<NewJob> = (0..20).map(echo).collect();
    let ids: Vec<String> = jobs.iter().map(|job| job.job_id().to_owned()).collect();
    let asking = client(&doomed.url());
    let asked = tokio::spawn(async move { asking.enqueue_batch(jobs).await.map(drop) });
    died(&mut doomed).await;
    asked.abort();
    // The hints are in the stream, and nobody knows: they come again.
    until(SOON, "each hint is there twice", async || {
        (line(&site).await == (40, 0)).then_some(())
    })
    .await;
    let helper = Helper::at(&node);
    for id in &ids {
        ended_as(&client(&node.url()), id, 1, 0).await;
    }
    helper.ran_once(&ids);
    line_is_empty(&site).await;
    helper.worker.stop().await;
}

/// Entries of the stream of "q", and those that are with a consumer.
async fn line(site: &Site) -> (u64, u64) {
    let redis = redis::Client::open(shared_redis_url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let mut keys = redis::cmd("KEYS");
    keys.arg(format!("{}:*:q:*", site.prefix));
    let keys: Vec<String> = keys.query_async(&mut redis).await.unwrap();
    let mut sum = (0, 0);
    for key in keys {
        let length: u64 = redis::cmd("XLEN")
            .arg(&key)
            .query_async(&mut redis)
            .await
            .unwrap();
        let mut groups = redis::cmd("XINFO");
        groups.arg("GROUPS").arg(&key);
        let groups: Vec<std::collections::HashMap<String, redis::Value>> =
            groups.query_async(&mut redis).await.unwrap();
        for group in groups {
            if let Some(redis::Value::Int(pending)) = group.get("pending") {
                sum.1 += u64::try_from(*pending).unwrap();
            }
        }
        sum.0 += length;
    }
    sum
}

async fn line_is_empty(site: &Site) {
    until(SOON, "no hint is left", async || {
        (line(site).await == (0, 0)).then_some(())
    })
    .await;
}

#[test]
fn a_node_killed_around_the_commit_of_an_enqueue_leaves_all_or_nothing() {
    side_by_side([
        case(before_the_commit_of_an_enqueue_nothing_is_left),
        case(after_the_commit_of_an_enqueue_the_job_runs_and_the_retry_gets_the_same),
        case(hints_that_are_there_twice_run_nothing_twice),
    ]);
}

/// A worker by hand at a node that dies over the first job it gets; the job is enqueued at another node.
async fn dies_over_a_job(site: &Site, point: &str) -> (Node, pb::Welcome, String) {
    let (mut doomed, node) = (site.doomed(point).await, site.node().await);
    let (mut hand, welcome) = Hand::welcome(&doomed.url(), hello(10)).await;
    hand.renew(0, &[]).await;
    let id = client(&node.url()).enqueue(echo(1)).await.unwrap().job.id;
    died(&mut doomed).await;
    (node, welcome, id)
}

/// The worker comes back at this node with nothing in its hands, and gets the job again, as the same attempt.
async fn is_pushed_again(node: &Node, welcome: &pb::Welcome) -> Hand {
    let (mut hand, moved) = Hand::welcome(&node.url(), again(welcome, 2, &[])).await;
    assert!(moved.resumed);
    let (jobs, frame) = hand.take(1).await;
    assert!(jobs[0].resent);
    let has = leases(&jobs);
    hand.renew(frame, &has).await;
    let receipts = hand.succeed(&has).await;
    assert_eq!(receipts[0].status(), ReceiptStatus::Recorded);
    hand
}

async fn after_hints_were_read_another_node_takes_them_over() {
    let site = Site::new().await;
    let (node, _, id) = dies_over_a_job(&site, "hints-taken").await;
    let left = client(&node.url()).get(&id).await.unwrap();
    assert_eq!((left.state(), left.attempt), (JobState::Queued, 0));
    assert_eq!(
        line(&site).await,
        (1, 1),
        "its hint is with a dead consumer"
    );
    let helper = Helper::at(&node);
    ended_as(&client(&node.url()), &id, 1, 0).await;
    line_is_empty(&site).await;
    helper.worker.stop().await;
}

async fn after_a_grant_s_commit_its_worker_gets_the_job_on_another_node() {
    let site = Site::new().await;
    let (node, welcome, id) = dies_over_a_job(&site, "grant-committed").await;
    let left = client(&node.url()).get(&id).await.unwrap();
    assert_eq!((left.state(), left.attempt), (JobState::Running, 1));
    is_pushed_again(&node, &welcome).await;
    ended_as(&client(&node.url()), &id, 1, 0).await;
}

async fn after_a_grant_s_commit_a_worker_that_never_returns_costs_one_lease() {
    let site = Site::new().await;
    let (node, _, id) = dies_over_a_job(&site, "grant-committed").await;
    let helper = Helper::at(&node);
    let job = ended_as(&client(&node.url()), &id, 2, 1).await;
    let outcomes: Vec<_> = job.attempts.iter().map(|a| a.outcome()).collect();
    assert_eq!(outcomes, [AttemptOutcome::LeaseLost]);
    helper.ran_once(&[id]);
    helper.worker.stop().await;
}

async fn after_a_grant_the_hint_that_was_not_settled_goes() {
    let site = Site::new().await;
    let (node, welcome, id) = dies_over_a_job(&site, "grant-unsettled").await;
    assert_eq!(
        line(&site).await,
        (1, 1),
        "its hint is with a dead consumer"
    );
    let hand = is_pushed_again(&node, &welcome).await;
    ended_as(&client(&node.url()), &id, 1, 0).await;
    let helper = Helper::at(&node);
    line_is_empty(&site).await;
    helper.ran_once(&[]);
    drop(hand);
    helper.worker.stop().await;
}

/// The frame is late by as long as the node was stopped; meanwhile its worker has gone on elsewhere.
async fn a_frame_that_comes_late_runs_nothing() {
    let site = Site::new().await;
    let stop = [("LEASEHOLD_FAILPOINT", "grant-committed=stop")];
    let nodes = [site.node_with(&stop).await, site.node().await];
    let balancer = Balancer::over(&nodes).await;
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("runs");
    let worker = Local::start(&balancer.url(), &log, 50);
    until(SOON, "it is at the first node", async || {
        let sessions = number(&site, "SELECT count(*) FROM sessions").await;
        (sessions == 1).then_some(())
    })
    .await;
    let client = client(&nodes[1].url());
    let id = client.enqueue(echo(1)).await.unwrap().job.id;
    let late = client.wait(&id, SOON).await.unwrap();
    // Also if the worker came back in the last second of its lease: a resume renews it.
    assert_eq!(
        (late.state(), late.attempt, late.lost_leases, late.releases),
        (JobState::Succeeded, 1, 0, 0)
    );
    nodes[0].process.signal("CONT");
    until(SOON, "the node that was stopped answers", async || {
        let ready = crate::support::http_status(nodes[0].address, "/readyz").await;
        (ready == Some(200)).then_some(())
    })
    .await;
    let more: Vec<String> = client
        .enqueue_batch((0..20).map(echo))
        .await
        .unwrap()
        .into_iter()
        .map(|accepted| accepted.job.id)
        .collect();
    for id in &more {
        ended_as(&client, id, 1, 0).await;
    }
    let runs = runs(&log);
    assert_eq!(runs.len(), 21);
    assert!(runs.values().all(|times| *times == 1), "{runs:?}");
    worker.stop().await;
}

#[test]
fn a_node_killed_around_a_grant_costs_no_job_and_no_execution() {
    side_by_side([
        case(after_hints_were_read_another_node_takes_them_over),
        case(after_a_grant_s_commit_its_worker_gets_the_job_on_another_node),
        case(after_a_grant_s_commit_a_worker_that_never_returns_costs_one_lease),
        case(after_a_grant_the_hint_that_was_not_settled_goes),
        case(a_frame_that_comes_late_runs_nothing),
    ]);
}
