//! Handlers that take many jobs by one call.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use worker_sdk::proto::result::Outcome;
use worker_sdk::proto::{
    CancelAttempt, Cancels, Lease, Receipts, lease_jobs_response::Message as Heard,
};
use worker_sdk::{Context, JobError, Worker};

use crate::peer::{Peer, Stream, recorded, soon};
use crate::workers::{TTL, failure, spawn, text};

/// No batch forms by time.
const LONG: Duration = Duration::from_secs(600);

/// The outcomes of so many jobs, however they come.
pub async fn outcomes(stream: &mut Stream, count: usize) -> BTreeMap<String, Outcome> {
    let mut all = BTreeMap::new();
    while all.len() < count {
        let results = stream.results().await;
        let receipts = results.iter().map(recorded).collect();
        stream.say(Heard::Receipts(Receipts { receipts })).await;
        for result in results {
            all.insert(result.lease.unwrap().job_id, result.outcome.unwrap());
        }
    }
    all
}

#[tokio::test]
async fn one_call_takes_a_full_batch_and_gives_each_job_its_own_end() {
    let peer = Peer::start();
    let builder = Worker::builder(&peer.url).batch_handler(
        "double",
        3,
        LONG,
        |jobs: Vec<(Context, u32)>| async move {
            let count = jobs.len();
            let one = |(_, n): (Context, u32)| match n {
                0 => Err(JobError::new("nothing to double")),
                n => Ok(format!("{} of {count}", 2 * n)),
            };
            jobs.into_iter().map(one).collect()
        },
    );
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    for (job, payload) in [("a", "1"), ("b", "0"), ("bad", "\"no\""), ("c", "4")] {
        stream.push(job, "double", payload).await;
    }
    let mut all = outcomes(&mut stream, 4).await;
    assert_eq!(text(all.remove("a").unwrap()), "\"2 of 3\"");
    assert_eq!(text(all.remove("c").unwrap()), "\"8 of 3\"");
    let told = failure(all.remove("b").unwrap());
    assert_eq!(told.message, "nothing to double");
    // What is no input is in no batch.
    assert_eq!(failure(all.remove("bad").unwrap()).r#type, "InputInvalid");
}

#[tokio::test]
async fn a_batch_that_does_not_fill_runs_after_its_time_and_the_next_forms_meanwhile() {
    let peer = Peer::start();
    let (began, mut begun) = mpsc::channel(16);
    let (go, gate) = tokio::sync::watch::channel(false);
    let builder = Worker::builder(&peer.url).batch_handler(
        "wait",
        100,
        Duration::from_millis(1),
        move |jobs: Vec<(Context, ())>| {
            let (began, mut gate) = (began.clone(), gate.clone());
            async move {
                let _ = began.try_send(jobs.len());
                let _ = gate.wait_for(|open| *open).await;
                jobs.iter().map(|_| Ok(())).collect()
            }
        },
    );
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "wait", "null").await;
    assert_eq!(soon("the first batch", begun.recv()).await, Some(1));
    for job in ["b", "c", "d"] {
        stream.push(job, "wait", "null").await;
    }
    // Known to have come: a job of no kind is given back after them.
    stream.push("e", "unknown", "null").await;
    assert!(matches!(stream.outcome().await, Outcome::Release(_)));
    go.send_replace(true);
    assert_eq!(outcomes(&mut stream, 4).await.len(), 4);
    let mut rest = 0;
    while rest < 3 {
        rest += soon("a batch", begun.recv()).await.unwrap();
    }
    assert_eq!(rest, 3);
}

#[tokio::test]
async fn a_job_that_was_cancelled_before_its_batch_began_is_left_out() {
    let peer = Peer::start();
    let (began, mut begun) = mpsc::channel(16);
    let builder = Worker::builder(&peer.url)
        .stop_grace(Duration::from_millis(100))
        .middleware(move |ctx, payload, next| {
            let _ = began.try_send(());
            next.run(ctx, payload)
        })
        .batch_handler("count", 2, LONG, |jobs: Vec<(Context, ())>| async move {
            let count = jobs.len();
            jobs.iter().map(|_| Ok(count)).collect()
        });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "count", "null").await;
    soon("its wait for the batch", begun.recv()).await;
    let lease = Some(Lease {
        job_id: "a".into(),
        attempt: 1,
    });
    let cancels = vec![CancelAttempt { lease, reason: 1 }];
    stream.say(Heard::Cancels(Cancels { cancels })).await;
    assert!(matches!(stream.outcome().await, Outcome::Stopped(_)));
    stream.push("b", "count", "null").await;
    assert_eq!(text(stream.outcome().await), "1");
}

#[tokio::test]
async fn a_panic_or_a_wrong_number_of_results_fails_each_job_and_the_next_batch_runs() {
    let peer = Peer::start();
    let builder = Worker::builder(&peer.url).batch_handler(
        "odd",
        2,
        LONG,
        |jobs: Vec<(Context, String)>| async move {
            match jobs[0].1.as_str() {
                "panic" => panic!("broken"),
                "short" => vec![Ok(0)],
                _ => jobs.iter().map(|_| Ok(1)).collect(),
            }
        },
    );
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    for (how, kind) in [("panic", "Panic"), ("short", "BatchInvalid")] {
        for n in 0..2 {
            let payload = format!("\"{how}\"");
            stream.push(&format!("{how} {n}"), "odd", &payload).await;
        }
        for (_, outcome) in outcomes(&mut stream, 2).await {
            assert_eq!(failure(outcome).r#type, kind);
        }
    }
    for job in ["x", "y"] {
        stream.push(job, "odd", "\"well\"").await;
    }
    for (_, outcome) in outcomes(&mut stream, 2).await {
        assert_eq!(text(outcome), "1");
    }
}
