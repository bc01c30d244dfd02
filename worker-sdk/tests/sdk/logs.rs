//! What handlers say of their jobs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use worker_sdk::proto::{
    LogReceipt, LogReceipts, ReceiptStatus, Receipts, WatchJobResponse,
    lease_jobs_request::Message as Sent, lease_jobs_response::Message as Heard, log_line::When,
};
use worker_sdk::{Client, Context, Job, JobError, JobState, LogLevel, LogLine, Worker};

use crate::peer::{Peer, Stream, recorded, soon};
use crate::workers::{TTL, spawn};

/// The next report of lines, which gets its receipt: job, first number and words.
async fn said(stream: &mut Stream) -> (String, u64, Vec<String>) {
    loop {
        let Some(Sent::Logs(logs)) = stream.next().await else {
            continue;
        };
        let [report] = &logs.reports[..] else {
            panic!("one report: {logs:?}")
        };
        let log = report.log.clone().unwrap();
        let receipt = LogReceipt {
            lease: report.lease.clone(),
            last: log.first + log.lines.len() as u64 - 1,
            status: ReceiptStatus::Recorded.into(),
            problem: None,
        };
        let receipts = vec![receipt];
        stream
            .say(Heard::LogReceipts(LogReceipts { receipts }))
            .await;
        let words = log.lines.into_iter().map(|line| line.message).collect();
        return (report.lease.clone().unwrap().job_id, log.first, words);
    }
}

#[tokio::test]
async fn lines_are_sent_on_the_way_and_the_last_ones_with_the_result() {
    let peer = Peer::start();
    let (go, going) = mpsc::channel::<()>(1);
    let going = Arc::new(Mutex::new(going));
    let builder = Worker::builder(&peer.url).handler("talk", move |ctx: Context, (): ()| {
        let going = going.clone();
        async move {
            ctx.log(LogLevel::Debug, "one");
            ctx.log(LogLevel::Error, "two\0".repeat(2));
            going.lock().await.recv().await;
            ctx.log(LogLevel::Info, "x".repeat(9_000));
            Ok::<_, JobError>(())
        }
    });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "talk", "null").await;
    let (job, first, words) = said(&mut stream).await;
    assert_eq!((job.as_str(), first), ("a", 1));
    assert_eq!(words, ["one", "two two "]);
    go.send(()).await.unwrap();
    let results = stream.results().await;
    let log = results[0].log.clone().unwrap();
    // With those before it, if their receipt is still on its way.
    assert_eq!(log.first + log.lines.len() as u64, 4);
    let line = log.lines.last().unwrap();
    assert!(line.message.len() <= 8 * 1024, "it is cut");
    assert!(
        line.message.ends_with("more bytes were cut)"),
        "and says so"
    );
    assert!(matches!(line.when, Some(When::Elapsed(_))));
    assert_eq!(line.level(), LogLevel::Info);
}

/// However many there are, the handler does not wait, and the newest are kept.
#[tokio::test]
async fn a_flood_of_lines_holds_up_nobody() {
    let peer = Peer::start();
    let builder =
        Worker::builder(&peer.url).blocking_handler("flood", |ctx: Context, lines: u64| {
            for n in 1..=lines {
                ctx.log(LogLevel::Info, n.to_string());
            }
            Ok::<_, JobError>(())
        });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "flood", "200000").await;
    // A server that never takes any of them.
    let results = stream.results().await;
    let log = results[0].log.clone().unwrap();
    assert_eq!((log.first, log.lines.len()), (199_001, 1_000));
    assert_eq!(log.lines[999].message, "200000");
}

#[tokio::test]
async fn each_job_of_a_batch_says_its_own() {
    let peer = Peer::start();
    let long = Duration::from_secs(600);
    let builder = Worker::builder(&peer.url).batch_handler(
        "talk",
        2,
        long,
        |jobs: Vec<(Context, String)>| async move {
            let one = |(ctx, words): (Context, String)| {
                ctx.log(LogLevel::Info, words);
                Ok::<_, JobError>(())
            };
            jobs.into_iter().map(one).collect()
        },
    );
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "talk", "\"of a\"").await;
    stream.push("b", "talk", "\"of b\"").await;
    let mut all = Vec::new();
    while all.len() < 2 {
        let results = stream.results().await;
        let receipts = results.iter().map(recorded).collect();
        stream.say(Heard::Receipts(Receipts { receipts })).await;
        all.extend(results);
    }
    for result in all {
        let job = result.lease.unwrap().job_id;
        let log = result.log.unwrap();
        assert_eq!(log.lines.len(), 1);
        assert_eq!(log.lines[0].message, format!("of {job}"));
    }
}

fn told(lines: &[u64], revision: u64, state: Option<JobState>) -> WatchJobResponse {
    let line = |number: &u64| LogLine {
        number: *number,
        ..LogLine::default()
    };
    WatchJobResponse {
        job: state.map(|state| Job {
            state: state.into(),
            revision,
            ..Job::default()
        }),
        log: lines.iter().map(line).collect(),
    }
}

#[tokio::test]
async fn who_follows_a_log_goes_on_where_it_broke() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url).unwrap();
    let mut follow = client.follow_log("x", 4);
    let following = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(lines) = follow.next().await {
            seen.extend(lines.unwrap().iter().map(|line| line.number));
        }
        seen
    });
    let leaves = || Err(tonic::Status::unavailable("this node is draining"));
    let streams = [
        (
            (0, 4),
            vec![
                Ok(told(&[5, 6], 0, None)),
                Ok(told(&[], 2, Some(JobState::Running))),
                leaves(),
            ],
        ),
        ((2, 6), vec![leaves()]),
        (
            (2, 6),
            vec![
                Ok(told(&[9], 0, None)),
                Ok(told(&[], 3, Some(JobState::Succeeded))),
            ],
        ),
    ];
    for ((revision, line), telling) in streams {
        let (request, answer) = soon("a watch", peer.watches.recv()).await.unwrap();
        assert!(request.log);
        assert_eq!(
            (request.after_revision, request.after_log),
            (revision, line)
        );
        answer.send(Ok(telling)).unwrap();
    }
    assert_eq!(soon("the end", following).await.unwrap(), [5, 6, 9]);
}
