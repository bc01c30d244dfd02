//! A node killed between two steps of what it does by itself, and of a result: what it leaves, and who goes on.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use worker_sdk::JobState;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::{self as pb, ReceiptStatus, result::Outcome};

use crate::cases::{case, side_by_side};
use crate::crash::{Helper, died, echo, ended_as, number};
use crate::hand::{Hand, again, hello, leases};
use crate::stack::{Node, Site, client};
use crate::support::until;

const SOON: Duration = Duration::from_secs(90);

async fn execute(site: &Site, sql: &str) {
    let mut db = PgConnection::connect(&site.database.url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
}

async fn after_a_result_s_commit_its_copy_gets_the_receipt() {
    let site = Site::new().await;
    let (mut doomed, node) = (site.doomed("result-committed").await, site.node().await);
    let client = client(&node.url());
    let (mut hand, welcome) = Hand::welcome(&doomed.url(), hello(10)).await;
    hand.renew(0, &[]).await;
    let jobs = (0..2).map(|n| echo(n).backoff(SOON, 1.0, SOON));
    client.enqueue_batch(jobs).await.unwrap();
    let has = leases(&hand.take(2).await.0);
    let outcomes = [
        Outcome::Success(pb::Success::default()),
        Outcome::Failure(pb::Failure {
            r#type: "Broken".into(),
            ..Default::default()
        }),
    ];
    let results = has.iter().zip(outcomes).map(|(lease, outcome)| pb::Result {
        lease: Some(lease.clone()),
        outcome: Some(outcome),
        log: None,
    });
    let results = pb::Results {
        results: results.collect(),
    };
    hand.send(Request::Results(results.clone())).await;
    died(&mut doomed).await;
    let states = async || {
        let done = client.get(&has[0].job_id).await.unwrap();
        let failed = client.get(&has[1].job_id).await.unwrap();
        (
            (done.state(), done.revision),
            (failed.state(), failed.failures, failed.revision),
        )
    };
    let before = states().await;
    assert_eq!(before.0.0, JobState::Succeeded);
    assert_eq!((before.1.0, before.1.1), (JobState::Scheduled, 1));
    let (mut hand, moved) = Hand::welcome(&node.url(), again(&welcome, 2, &has)).await;
    assert!(moved.resumed);
    hand.send(Request::Results(results)).await;
    let receipts = hand
        .until(|message| match message {
            Response::Receipts(receipts) => Some(receipts.receipts),
            _ => None,
        })
        .await;
    assert_eq!(receipts.len(), 2);
    for receipt in &receipts {
        assert_eq!(receipt.status(), ReceiptStatus::Recorded, "{receipt:?}");
    }
    assert_eq!(states().await, before, "a copy changes nothing");
}

/// A node alone, and a worker that is gone: the node sweeps, and dies over it.
async fn dies_over_a_sweep(site: &Site, point: &str) -> (Node, String) {
    let mut doomed = site.doomed(point).await;
    let (mut hand, _) = Hand::welcome(&doomed.url(), hello(10)).await;
    hand.renew(0, &[]).await;
    let id = client(&doomed.url()).enqueue(echo(1)).await.unwrap().job.id;
    hand.take(1).await;
    drop(hand);
    died(&mut doomed).await;
    let dead = "SELECT count(*) FROM sessions WHERE dead_at IS NOT NULL";
    assert_eq!(number(site, dead).await, 1);
    (site.node().await, id)
}

async fn another_sweeper_goes_on(site: &Site, node: &Node, id: &str) {
    let helper = Helper::at(node);
    ended_as(&client(&node.url()), id, 2, 1).await;
    until(SOON, "the dead session is gone", async || {
        let sessions = number(site, "SELECT count(*) FROM sessions").await;
        (sessions == 1).then_some(())
    })
    .await;
    helper.ran_once(&[id.to_owned()]);
    helper.worker.stop().await;
}

async fn after_a_session_was_marked_another_sweeper_takes_its_jobs() {
    let site = Site::new().await;
    let db_state = async |id: &str| {
        let state = format!("SELECT state::bigint FROM jobs WHERE id = '{id}'");
        number(&site, &state).await
    };
    let (node, id) = dies_over_a_sweep(&site, "sweep-marked").await;
    // Whoever started since may have been quicker than this look: RUNNING, or QUEUED again.
    assert!(matches!(db_state(&id).await, 2 | 3));
    another_sweeper_goes_on(&site, &node, &id).await;
}

async fn after_jobs_were_taken_back_they_are_handed_out() {
    let site = Site::new().await;
    let (node, id) = dies_over_a_sweep(&site, "sweep-took-back").await;
    another_sweeper_goes_on(&site, &node, &id).await;
}

async fn after_jobs_came_due_those_that_nobody_was_told_of_run() {
    let site = Site::new().await;
    let mut doomed = site.doomed("promote-committed").await;
    let jobs = (0..200).map(|n| echo(n).delay(Duration::from_secs(1 + n as u64 / 100)));
    let accepted = client(&doomed.url()).enqueue_batch(jobs).await.unwrap();
    let ids: Vec<String> = accepted.into_iter().map(|e| e.job.id).collect();
    died(&mut doomed).await;
    let queued = number(&site, "SELECT count(*) FROM jobs WHERE state = 2").await;
    assert!(queued > 0, "some have come due");
    let node = site.node().await;
    let helper = Helper::at(&node);
    for id in &ids {
        ended_as(&client(&node.url()), id, 1, 0).await;
    }
    helper.ran_once(&ids);
    helper.worker.stop().await;
}

async fn after_jobs_were_removed_what_pointed_at_them_goes() {
    let site = Site::new().await;
    let mut doomed = site.doomed("retain-purged").await;
    let helper = Helper::at(&doomed);
    let client = client(&doomed.url());
    let hour = Duration::from_secs(3_600);
    let mut ids = Vec::new();
    for n in 0..3 {
        let id = client
            .enqueue(echo(n).retention(hour))
            .await
            .unwrap()
            .job
            .id;
        ended_as(&client, &id, 1, 0).await;
        ids.push(id);
    }
    helper.worker.stop().await;
    // All SQL takes the time from this one function.
    execute(
        &site,
        "CREATE OR REPLACE FUNCTION lh_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS
         $$ SELECT clock_timestamp() + interval '2 hours' $$",
    )
    .await;
    died(&mut doomed).await;
    assert_eq!(number(&site, "SELECT count(*) FROM jobs").await, 0);
    let pointers = "SELECT count(*) FROM finished";
    assert!(
        number(&site, pointers).await > 0,
        "what pointed at them is left"
    );
    let _node = site.node().await;
    until(SOON, "nothing points at them", async || {
        (number(&site, pointers).await == 0).then_some(())
    })
    .await;
}

#[test]
fn a_node_killed_between_the_steps_of_what_it_does_by_itself_is_followed_by_another() {
    side_by_side([
        case(after_a_result_s_commit_its_copy_gets_the_receipt),
        case(after_a_session_was_marked_another_sweeper_takes_its_jobs),
        case(after_jobs_were_taken_back_they_are_handed_out),
        case(after_jobs_came_due_those_that_nobody_was_told_of_run),
        case(after_jobs_were_removed_what_pointed_at_them_goes),
    ]);
}
