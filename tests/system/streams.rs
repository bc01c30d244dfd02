//! Thousands of workers that wait: what each costs a node, and that all of them are renewed.

use std::time::Duration;

use crate::hand::{Hand, hello};
use crate::stack::{Dev, client};
use crate::support::process_rss;
use worker_sdk::NewJob;
use worker_sdk::proto as pb;
use worker_sdk::proto::lease_jobs_response::Message as Response;

/// Streams in the default run; LEASEHOLD_TEST_STREAMS asks for more.
const STREAMS: usize = 300;
/// What an idle stream may cost a node that is built for release.
const BYTES_A_STREAM_MAX: usize = 64 * 1024;

fn streams() -> usize {
    let asked = std::env::var("LEASEHOLD_TEST_STREAMS");
    asked.map_or(STREAMS, |n| n.parse().expect("a number of streams"))
}

/// A worker whose turn to beat may come late in this test.
fn patient() -> pb::Hello {
    pb::Hello {
        lease_ttl: Some(prost_types::Duration {
            seconds: 300,
            nanos: 0,
        }),
        ..hello(1)
    }
}

async fn open(url: &str, count: usize) -> Vec<Hand> {
    let mut hands = Vec::with_capacity(count);
    while hands.len() < count {
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..50.min(count - hands.len()) {
            let url = url.to_owned();
            opening.spawn(async move { Hand::welcome(&url, patient()).await.0 });
        }
        hands.extend(opening.join_all().await);
    }
    hands
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_workers_cost_little_and_every_heartbeat_is_confirmed() {
    let dev = Dev::start().await;
    let url = dev.node.url();
    // What a node takes once and for all is there before it is weighed.
    let warm = open(&url, 50).await;
    let before = process_rss(dev.node.process.id());
    let count = streams();
    let mut hands = open(&url, count).await;
    for _ in 0..3 {
        let mut beating = tokio::task::JoinSet::new();
        for mut hand in hands.drain(..) {
            beating.spawn(async move {
                hand.renew(0, &[]).await;
                hand
            });
        }
        hands = beating.join_all().await;
    }
    let each = process_rss(dev.node.process.id()).saturating_sub(before) / count;
    println!("{count} idle streams: {each} bytes each");
    if !cfg!(debug_assertions) {
        assert!(each <= BYTES_A_STREAM_MAX, "{each} bytes a stream");
    }
    // None of them is in another's way.
    let job = NewJob::new("echo", &1).unwrap().queue("q");
    client(&url).enqueue(job).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for mut hand in hands.into_iter().chain(warm) {
        waiting.spawn(async move {
            hand.until(|message| match message {
                Response::Jobs(frame) => Some(frame.jobs.len()),
                _ => None,
            })
            .await
        });
    }
    let got = tokio::time::timeout(Duration::from_secs(30), waiting.join_next()).await;
    assert_eq!(got.expect("one of them gets the job").unwrap().unwrap(), 1);
}
