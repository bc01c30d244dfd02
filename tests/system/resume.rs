//! A session goes on by a new stream, on any node, with all its leases; and it puts itself right.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Code;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::{self as pb, AttemptOutcome, ReceiptStatus};
use worker_sdk::{Client, JobState, NewJob};

use crate::hand::{Hand, again, hello, leases};
use crate::stack::{Dev, Stack, client};
use crate::support::until;

const SOON: Duration = Duration::from_secs(60);

async fn enqueue(client: &Client, count: usize) -> Vec<String> {
    let jobs = (0..count).map(|n| NewJob::new("echo", &n).unwrap().queue("q"));
    let accepted = client.enqueue_batch(jobs).await.unwrap();
    accepted.into_iter().map(|e| e.job.id).collect()
}

fn lost(message: Response) -> Option<Vec<pb::Lease>> {
    match message {
        Response::Lost(lost) => Some(lost.leases),
        _ => None,
    }
}

fn all_recorded(receipts: &[pb::Receipt], count: usize) {
    assert_eq!(receipts.len(), count);
    for receipt in receipts {
        assert_eq!(receipt.status(), ReceiptStatus::Recorded, "{receipt:?}");
    }
}

/// Each ran once, and its result is there.
async fn succeeded_at_once(client: &Client, ids: &[String]) {
    for id in ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(
            (job.state(), job.attempt, job.lost_leases),
            (JobState::Succeeded, 1, 0)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_node_was_killed_goes_on_with_its_session_on_another() {
    let mut stack = Stack::start(2).await;
    let ids = enqueue(&stack.client(0), 3).await;
    let (mut hand, welcome) = Hand::welcome(&stack.nodes[0].url(), hello(10)).await;
    assert!(!welcome.resumed);
    hand.beat(0, &[]).await;
    let (jobs, _) = hand.take(3).await;
    let has = leases(&jobs);
    stack.nodes[0].process.kill();

    // As if the frame with the third had never come.
    let url = stack.nodes[1].url();
    let (mut hand, moved) = Hand::welcome(&url, again(&welcome, 2, &has[..2])).await;
    assert!(moved.resumed);
    assert_eq!(moved.session_id, welcome.session_id);
    assert_eq!(moved.resume_token, welcome.resume_token);
    let (resent, frame) = hand.take(1).await;
    assert_eq!((frame, resent[0].resent), (1, true));
    assert_eq!(resent[0].lease.as_ref(), Some(&has[2]));
    assert_eq!(resent[0].payload, jobs[2].payload);
    hand.renew(1, &has).await;
    all_recorded(&hand.succeed(&has).await, 3);
    succeeded_at_once(&stack.client(1), &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_stream_has_the_session_on_whatever_node_and_the_others_are_told() {
    let stack = Stack::start(2).await;
    let (here, there) = (stack.nodes[0].url(), stack.nodes[1].url());
    let ids = enqueue(&stack.client(0), 1).await;
    let (mut first, welcome) = Hand::welcome(&here, hello(10)).await;
    first.beat(0, &[]).await;
    let has = leases(&first.take(1).await.0);
    let moved = (Code::Aborted, "SESSION_MOVED".to_owned());

    // On the same node: at once.
    let (mut second, _) = Hand::welcome(&here, again(&welcome, 2, &has)).await;
    assert_eq!(first.refused().await, moved);
    // On another: the old one is told at its next heartbeat.
    let (mut third, _) = Hand::welcome(&there, again(&welcome, 3, &has)).await;
    second.beat(0, &has).await;
    assert_eq!(second.refused().await, moved);

    // One that comes late changes nothing, wherever it comes.
    for (url, sequence) in [(&here, 2), (&there, 2), (&here, 3), (&there, 3)] {
        let mut late = Hand::open(url, again(&welcome, sequence, &[])).await;
        assert_eq!(late.refused().await, moved, "{url} {sequence}");
    }
    third.renew(0, &has).await;
    all_recorded(&third.succeed(&has).await, 1);
    succeeded_at_once(&stack.client(1), &ids).await;
    let more = enqueue(&stack.client(0), 5).await;
    let more_leases = leases(&third.take(5).await.0);
    all_recorded(&third.succeed(&more_leases).await, 5);
    succeeded_at_once(&stack.client(0), &more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_unknown_begins_a_new_session_and_its_leases_are_lost() {
    let dev = Dev::start().await;
    let unknown = pb::Welcome {
        resume_token: vec![7; 32],
        ..Default::default()
    };
    let held = [pb::Lease {
        job_id: "0199ffff-0000-7000-8000-000000000000".into(),
        attempt: 1,
    }];
    let (mut hand, welcome) = Hand::welcome(&dev.node.url(), again(&unknown, 2, &held)).await;
    assert!(!welcome.resumed);
    assert_ne!(welcome.resume_token, unknown.resume_token);
    assert_eq!(hand.until(lost).await, held);
    let ids = enqueue(&client(&dev.node.url()), 10).await;
    hand.beat(0, &[]).await;
    let has = leases(&hand.take(10).await.0);
    all_recorded(&hand.succeed(&has).await, 10);
    succeeded_at_once(&client(&dev.node.url()), &ids).await;

    // A token without a count of its Hellos could throw out its own successor.
    let mut careless = Hand::open(&dev.node.url(), again(&welcome, 0, &[])).await;
    let refused = careless.refused().await;
    assert_eq!(refused, (Code::InvalidArgument, "FIELD_INVALID".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_the_worker_forgot_is_handed_out_again_and_one_it_never_had_is_lost() {
    let stack = Stack::start(1).await;
    let client = stack.client(0);
    let ids = enqueue(&client, 2).await;
    let (mut hand, _) = Hand::welcome(&stack.nodes[0].url(), hello(2)).await;
    hand.beat(0, &[]).await;
    let (jobs, frame) = hand.take(2).await;
    let has = leases(&jobs);
    let stranger = pb::Lease {
        job_id: ids[0].clone(),
        attempt: 9,
    };
    let listed = [has[0].clone(), stranger.clone()];
    hand.renew(frame, &listed).await;
    hand.beat(frame, &listed).await;
    assert_eq!(hand.until(lost).await, [stranger]);
    let (again, _) = hand.take(1).await;
    let lease = again[0].lease.clone().unwrap();
    assert_eq!((&lease.job_id, lease.attempt), (&has[1].job_id, 2));
    assert_eq!((again[0].lost_leases, again[0].resent), (1, false));
    all_recorded(&hand.succeed(&[has[0].clone(), lease]).await, 2);
    let job = client.wait(&has[1].job_id, SOON).await.unwrap();
    let outcomes: Vec<_> = job.attempts.iter().map(|a| a.outcome()).collect();
    assert_eq!(outcomes, [AttemptOutcome::Forgotten]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_nobody_has_the_stream_reaches_the_worker_when_it_comes_back() {
    let mut stack = Stack::start(2).await;
    let ids = enqueue(&stack.client(0), 2).await;
    let (mut hand, welcome) = Hand::welcome(&stack.nodes[0].url(), hello(10)).await;
    hand.beat(0, &[]).await;
    let has = leases(&hand.take(2).await.0);
    stack.nodes[0].process.kill();
    stack.client(1).cancel(&ids[0], "not wanted").await.unwrap();
    let url = stack.nodes[1].url();
    let (mut hand, _) = Hand::welcome(&url, again(&welcome, 2, &has)).await;
    let gone = hand.until(lost).await;
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].job_id, ids[0]);
    let receipts = hand.succeed(&has).await;
    let by_id = |id: &String| {
        let of = |r: &&pb::Receipt| r.lease.as_ref().is_some_and(|l| l.job_id == *id);
        receipts.iter().find(of).unwrap()
    };
    assert_eq!(by_id(&ids[1]).status(), ReceiptStatus::Recorded);
    let stale = by_id(&ids[0]);
    assert_eq!(stale.status(), ReceiptStatus::Stale);
    assert_eq!(stale.problem.as_ref().unwrap().reason, "CANCELLED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_of_a_node_that_was_killed_come_again_to_their_worker() {
    let mut stack = Stack::start(2).await;
    let ids = enqueue(&stack.client(0), 1_000).await;
    let wide = pb::Hello {
        max_in_flight: 1_000,
        ..hello(1_000)
    };
    let (mut hand, welcome) = Hand::welcome(&stack.nodes[0].url(), wide.clone()).await;
    hand.beat(0, &[]).await;
    let client = stack.client(1);
    let last = ids.last().unwrap();
    until(SOON, "all are handed out", async || {
        let job = client.get(last).await.unwrap();
        (job.state() == JobState::Running).then_some(())
    })
    .await;
    // The worker has read none of its frames.
    stack.nodes[0].process.kill();
    drop(hand);
    let url = stack.nodes[1].url();
    let back = pb::Hello {
        resume_token: welcome.resume_token.clone(),
        attach_sequence: 2,
        ..wide
    };
    let (mut hand, _) = Hand::welcome(&url, back).await;
    let (jobs, _) = hand.take(1_000).await;
    assert!(jobs.iter().all(|job| job.resent));
    let has = leases(&jobs);
    let distinct: BTreeSet<_> = has.iter().map(|l| l.job_id.clone()).collect();
    assert_eq!(distinct.len(), 1_000);
    all_recorded(&hand.succeed(&has).await, 1_000);
    succeeded_at_once(&client, &ids).await;
}
