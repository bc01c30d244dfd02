//! Whole workers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tonic::Status;
use worker_sdk::proto::lease_jobs_request::Message as Sent;
use worker_sdk::proto::lease_jobs_response::Message as Heard;
use worker_sdk::proto::result::Outcome;
use worker_sdk::proto::{CancelAttempt, Cancels, CapacityApplied, Lease, payload};
use worker_sdk::{Error, JobError, Permanent, Retry, Snooze, Worker, WorkerBuilder};

use crate::peer::{Peer, Stream, soon};

pub const TTL: Duration = Duration::from_secs(30);

pub fn spawn(builder: WorkerBuilder) -> (Arc<Notify>, tokio::task::JoinHandle<Result<(), Error>>) {
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let worker = builder.build().unwrap();
    (
        stop,
        tokio::spawn(worker.run_until(async move { stopped.notified().await })),
    )
}

pub fn text(outcome: Outcome) -> String {
    let Outcome::Success(success) = outcome else {
        panic!("a success, not {outcome:?}")
    };
    let Some(payload::Body::Data(data)) = success.output.unwrap().body else {
        panic!("data")
    };
    String::from_utf8(data.to_vec()).unwrap()
}

pub fn failure(outcome: Outcome) -> worker_sdk::proto::Failure {
    if let Outcome::Failure(failure) = outcome {
        failure
    } else {
        panic!("a failure, not {outcome:?}")
    }
}

/// Carries a shutdown to its end, as a server does.
async fn goodbye(stream: &mut Stream) {
    assert!(matches!(stream.next().await, Some(Sent::Goodbye(_))));
    stream
        .say(Heard::CapacityApplied(CapacityApplied {
            goodbye: true,
            ..Default::default()
        }))
        .await;
}

#[tokio::test]
async fn a_worker_runs_what_is_pushed_and_ends_well() {
    let peer = Peer::start();
    let builder = Worker::builder(&peer.url)
        .queue("q")
        .handler("greet", |ctx, name: String| async move {
            Ok(format!("{} {name}", ctx.attempt()))
        })
        .blocking_handler("sum", |_, numbers: Vec<u32>| {
            Ok(numbers.iter().sum::<u32>())
        })
        .raw_handler("echo", |_, payload| async move { Ok(payload) });
    let (stop, worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    assert_eq!(
        (
            stream.hello.queues[0].queue.as_str(),
            stream.hello.max_in_flight
        ),
        ("q", 8)
    );
    assert_eq!(stream.hello.kinds, ["echo", "greet", "sum"]);
    stream.push("a", "greet", "\"Ada\"").await;
    assert_eq!(text(stream.outcome().await), "\"1 Ada\"");
    stream.push("b", "sum", "[1,2,3]").await;
    assert_eq!(text(stream.outcome().await), "6");
    stream.push("c", "echo", "as it is").await;
    assert!(matches!(stream.outcome().await, Outcome::Success(_)));
    stop.notify_one();
    goodbye(&mut stream).await;
    assert!(stream.next().await.is_none(), "half-closed");
    drop(stream);
    soon("the end", worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn every_way_to_fail_is_told_as_it_is() {
    let peer = Peer::start();
    let builder = Worker::builder(&peer.url).handler("fail", |_, how: String| async move {
        match how.as_str() {
            "panic" => panic!("broken {how}"),
            "error" => Ok(how.parse::<u32>()?),
            "retry" => Err(Retry::after(Duration::from_secs(7)).because("later").into()),
            "permanent" => Err(Permanent("never").into()),
            "own" => Err(JobError::new("mine").with_type("Own").with_detail("trace")),
            _ => Err(Snooze(Duration::from_secs(3)).into()),
        }
    });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    let mut fail = async |job: &str, how: &str| {
        stream.push(job, "fail", how).await;
        stream.outcome().await
    };
    let told = failure(fail("1", "\"panic\"").await);
    assert_eq!(
        (told.r#type.as_str(), told.message.as_str(), told.permanent),
        ("Panic", "broken panic", false)
    );
    let told = failure(fail("2", "\"error\"").await);
    assert_eq!(
        (told.r#type.as_str(), told.permanent),
        ("core::num::error::ParseIntError", false)
    );
    let told = failure(fail("3", "\"retry\"").await);
    assert_eq!(
        (told.message.as_str(), told.retry_after.unwrap().seconds),
        ("later", 7)
    );
    assert!(failure(fail("4", "\"permanent\"").await).permanent);
    let told = failure(fail("5", "\"own\"").await);
    assert_eq!(
        (told.r#type.as_str(), told.detail.as_str()),
        ("Own", "trace")
    );
    let told = failure(fail("6", "not json").await);
    assert_eq!(
        (told.r#type.as_str(), told.permanent),
        ("InputInvalid", true)
    );
    let Outcome::Release(release) = fail("7", "\"snooze\"").await else {
        panic!("a release")
    };
    assert_eq!(
        (release.reason.as_str(), release.delay.unwrap().seconds),
        ("SNOOZE", 3)
    );
}

#[tokio::test]
async fn a_handler_that_spins_does_not_starve_the_heartbeat() {
    let peer = Peer::start();
    // The worker's handlers have this one thread, and one of them takes it whole.
    let url = peer.url.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let worker = Worker::builder(url).handler("spin", |_, (): ()| async {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(3) {
                std::hint::spin_loop();
            }
            Ok(())
        });
        runtime
            .block_on(worker.build().unwrap().run_until(std::future::pending()))
            .unwrap();
    });
    let mut stream = peer.session("t", Duration::from_millis(900)).await;
    let beat = stream.heartbeat().await;
    stream.confirm(&beat).await;
    stream.push("a", "spin", "null").await;
    for _ in 0..6 {
        let beat = stream.heartbeat().await;
        assert_eq!(beat.held.len(), 1);
        stream.confirm(&beat).await;
    }
    assert!(matches!(stream.outcome().await, Outcome::Success(_)));
}

#[tokio::test]
async fn a_cancelled_handler_sees_it_and_one_that_does_not_look_is_dropped() {
    let peer = Peer::start();
    let builder = Worker::builder(&peer.url)
        .stop_grace(Duration::from_millis(200))
        .handler("polite", |ctx, (): ()| async move {
            ctx.cancelled().await;
            Err::<(), _>(JobError::new("cancelled"))
        })
        .handler("deaf", |_, (): ()| {
            std::future::pending::<Result<(), JobError>>()
        });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    for kind in ["polite", "deaf"] {
        stream.push(kind, kind, "null").await;
        let lease = Some(Lease {
            job_id: kind.into(),
            attempt: 1,
        });
        stream
            .say(Heard::Cancels(Cancels {
                cancels: vec![CancelAttempt { lease, reason: 1 }],
            }))
            .await;
        assert!(matches!(stream.outcome().await, Outcome::Stopped(_)));
    }
}

#[tokio::test]
async fn sigterm_gives_back_what_does_not_end_in_time() {
    let peer = Peer::start();
    let started = Arc::new(Notify::new());
    let running = Arc::clone(&started);
    let builder = Worker::builder(&peer.url)
        .grace(Duration::from_millis(100))
        .stop_grace(Duration::from_millis(100))
        .handler("long", move |_, (): ()| {
            running.notify_one();
            std::future::pending::<Result<(), JobError>>()
        });
    let worker = tokio::spawn(builder.build().unwrap().run());
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "long", "null").await;
    soon("the handler", started.notified()).await;
    let killed = std::process::Command::new("kill")
        .args(["-TERM", &std::process::id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    goodbye(&mut stream).await;
    let Outcome::Release(release) = stream.outcome().await else {
        panic!("a release")
    };
    assert_eq!(release.reason, "DRAIN");
    assert!(stream.next().await.is_none());
    drop(stream);
    soon("the end", worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_refuses_the_worker_for_good_ends_it_with_the_reason() {
    let peer = Peer::start();
    let (_stop, worker) =
        spawn(Worker::builder(&peer.url).handler("k", |_, (): ()| async { Ok(()) }));
    peer.stream()
        .await
        .end(Status::failed_precondition("frames too small"))
        .await;
    let error = soon("the end", worker).await.unwrap().unwrap_err();
    assert!(
        matches!(&error, Error::Refused(why) if why.contains("frames too small")),
        "{error}"
    );
}

#[tokio::test]
async fn health_tells_the_age_of_the_last_confirmed_heartbeat() {
    let peer = Peer::start();
    let worker = Worker::builder(&peer.url)
        .handler("k", |_, (): ()| async { Ok(()) })
        .build()
        .unwrap();
    let health = worker.health();
    assert_eq!(health.renewal_age(), None);
    let _running = tokio::spawn(worker.run_until(std::future::pending()));
    let mut stream = peer.session("t", Duration::from_secs(1)).await;
    for _ in 0..4 {
        let beat = stream.heartbeat().await;
        stream.confirm(&beat).await;
    }
    let age = health.renewal_age().expect("a session");
    assert!(age < Duration::from_secs(1), "{age:?}");
}

#[test]
fn a_worker_that_cannot_work_is_refused_with_every_fault() {
    let error = Worker::builder("https://x")
        .concurrency(0)
        .build()
        .err()
        .unwrap()
        .to_string();
    for fault in ["no handler", "concurrency 0", "https"] {
        assert!(error.contains(fault), "{error}");
    }
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("thrown away");
    }
}

#[tokio::test]
async fn a_panic_that_panics_when_it_is_dropped_is_a_failure_too() {
    let peer = Peer::start();
    let throw = || -> Result<(), JobError> { std::panic::panic_any(Bomb) };
    let builder = Worker::builder(&peer.url)
        .handler("async", move |_, (): ()| async move { throw() })
        .blocking_handler("blocking", move |_, (): ()| throw());
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    for kind in ["async", "blocking"] {
        stream.push(kind, kind, "null").await;
        assert_eq!(failure(stream.outcome().await).r#type, "Panic");
    }
}

#[tokio::test]
async fn a_wait_longer_than_any_is_the_longest_there_is() {
    let peer = Peer::start();
    let builder = Worker::builder(&peer.url)
        .grace(Duration::MAX)
        .stop_grace(Duration::MAX)
        .handler("later", |_, (): ()| async {
            Err::<(), _>(Retry::after(Duration::MAX).into())
        });
    let (stop, worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "later", "null").await;
    let wait = failure(stream.outcome().await).retry_after.unwrap();
    assert_eq!(wait.seconds, 30 * 24 * 3600);
    stop.notify_one();
    goodbye(&mut stream).await;
    assert!(stream.next().await.is_none());
    drop(stream);
    soon("the end", worker).await.unwrap().unwrap();
}

#[test]
fn a_blocking_handler_that_hangs_does_not_keep_the_process() {
    let (ended, end) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let peer = Peer::start();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let started = Arc::new(Notify::new());
            let running = Arc::clone(&started);
            let builder = Worker::builder(&peer.url)
                .grace(Duration::ZERO)
                .stop_grace(Duration::ZERO)
                .blocking_handler("hang", move |_, (): ()| -> Result<(), JobError> {
                    running.notify_one();
                    loop {
                        std::thread::park();
                    }
                });
            let (stop, worker) = spawn(builder);
            let mut stream = peer.session("t", TTL).await;
            stream.push("a", "hang", "null").await;
            soon("the handler", started.notified()).await;
            stop.notify_one();
            soon("the end", worker).await.unwrap().unwrap();
        });
        // As at the end of `main`.
        drop(runtime);
        ended.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(60))
        .expect("the runtime ends");
}
