//! What stands around handlers: types, middleware, state, limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use worker_sdk::proto::result::Outcome;
use worker_sdk::proto::{CancelAttempt, Cancels, Lease, lease_jobs_response::Message as Heard};
use worker_sdk::{Client, JobError, NewJob, TypedJob, Worker};

use crate::batches::outcomes;
use crate::peer::{Peer, soon};
use crate::workers::{TTL, failure, spawn, text};

#[derive(Serialize, Deserialize)]
struct Thumbnail {
    image: String,
    width: u32,
}

impl TypedJob for Thumbnail {
    const KIND: &'static str = "thumbnail";
    const QUEUE: &'static str = "images";
    type Output = String;

    fn options(&self, job: NewJob) -> NewJob {
        job.max_attempts(5).label("width", self.width.to_string())
    }
}

#[tokio::test]
async fn a_typed_job_brings_its_kind_queue_and_options_and_its_worker_takes_its_queue() {
    let mut peer = Peer::start();
    let cat = Thumbnail {
        image: "cat".into(),
        width: 64,
    };
    let client = Client::connect(&peer.url).await.unwrap();
    let call = tokio::spawn(async move { client.enqueue(cat.job().unwrap()).await });
    let (request, answer) = soon("the call", peer.enqueues.recv()).await.unwrap();
    let spec = request.job.unwrap();
    assert_eq!(
        (spec.queue.as_str(), spec.kind.as_str(), spec.max_attempts),
        ("images", "thumbnail", 5)
    );
    assert_eq!(spec.labels["width"], "64");
    let _ = answer.send(Ok(Default::default()));
    call.await.unwrap().unwrap();

    let builder = Worker::builder(&peer.url)
        .typed(|_, job: Thumbnail| async move { Ok(format!("{}-{}", job.image, job.width)) });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    assert_eq!(stream.hello.queues.len(), 1);
    assert_eq!(stream.hello.queues[0].queue, "images");
    let payload = r#"{"image":"cat","width":64}"#;
    stream.push("a", "thumbnail", payload).await;
    assert_eq!(text(stream.outcome().await), "\"cat-64\"");
}

#[tokio::test]
async fn middleware_is_passed_from_the_outside_in_and_may_change_the_end() {
    let peer = Peer::start();
    let (said, mut heard) = mpsc::channel(16);
    let (outer, inner) = (said.clone(), said.clone());
    let builder = Worker::builder(&peer.url)
        .state(said)
        .middleware(move |ctx, payload, next| {
            let outer = outer.clone();
            async move {
                let _ = outer.try_send("outer in");
                let answer = next.run(ctx, payload).await;
                let _ = outer.try_send("outer out");
                answer.map_err(|error| error.with_type("Renamed"))
            }
        })
        .middleware(move |ctx, payload, next| {
            let inner = inner.clone();
            async move {
                let _ = inner.try_send("inner in");
                match ctx.headers().is_empty() {
                    true => next.run(ctx, payload).await,
                    false => Err(JobError::new("not wanted")),
                }
            }
        })
        .handler("fail", |ctx, (): ()| async move {
            let said = ctx.state::<mpsc::Sender<&str>>()?;
            let _ = said.try_send("handler");
            Err::<(), _>(JobError::new("broken"))
        })
        .blocking_handler("block", |ctx, (): ()| {
            ctx.state::<String>()?;
            Ok(())
        });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "fail", "null").await;
    assert_eq!(failure(stream.outcome().await).r#type, "Renamed");
    let mut order = Vec::new();
    heard.recv_many(&mut order, 10).await;
    assert_eq!(order, ["outer in", "inner in", "handler", "outer out"]);
    stream.push("b", "block", "null").await;
    let told = failure(stream.outcome().await);
    assert!(told.message.contains("String"), "{}", told.message);
}

#[tokio::test]
async fn a_kind_has_at_most_its_own_number_of_handlers_at_once() {
    let peer = Peer::start();
    let (began, mut begun) = mpsc::channel(16);
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let builder = Worker::builder(&peer.url)
        .stop_grace(Duration::from_millis(100))
        .kind_concurrency("heavy", 1)
        .handler("heavy", move |ctx, (): ()| {
            let (began, gate) = (began.clone(), Arc::clone(&gate));
            async move {
                let _ = began.try_send(ctx.job_id().to_owned());
                gate.acquire().await?.forget();
                Ok(())
            }
        })
        .handler("light", |_, (): ()| async { Ok(()) });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    for job in ["a", "b", "c"] {
        stream.push(job, "heavy", "null").await;
    }
    // Another kind is not held up, and its end comes after the others could have begun.
    stream.push("d", "light", "null").await;
    assert!(matches!(stream.outcome().await, Outcome::Success(_)));
    let first = soon("the first", begun.recv()).await.unwrap();
    assert!(begun.try_recv().is_err(), "only one has begun");
    // One that waits for its turn can be cancelled: it has no turn to wait for.
    let waits = ["a", "b", "c"].into_iter().rfind(|job| *job != first);
    let lease = Some(Lease {
        job_id: waits.unwrap().into(),
        attempt: 1,
    });
    let cancels = vec![CancelAttempt { lease, reason: 1 }];
    stream.say(Heard::Cancels(Cancels { cancels })).await;
    assert!(matches!(stream.outcome().await, Outcome::Stopped(_)));
    go.add_permits(2);
    let ended = outcomes(&mut stream, 2).await;
    assert!(ended.values().all(|end| matches!(end, Outcome::Success(_))));
    assert!(soon("the second", begun.recv()).await.is_some());
}

#[tokio::test]
async fn what_is_told_to_stop_before_its_turn_is_not_begun() {
    let peer = Peer::start();
    let (began, mut begun) = mpsc::channel(16);
    let (go, gate) = std::sync::mpsc::sync_channel(4);
    let gate = std::sync::Mutex::new(gate);
    let builder = Worker::builder(&peer.url)
        .stop_grace(Duration::from_secs(600))
        .kind_concurrency("heavy", 1)
        .blocking_handler("heavy", move |ctx, (): ()| {
            let _ = began.try_send(ctx.job_id().to_owned());
            let _ = gate.lock().unwrap().recv();
            Ok(())
        });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "heavy", "null").await;
    assert_eq!(soon("the first", begun.recv()).await.unwrap(), "a");
    stream.push("b", "heavy", "null").await;
    let lease = Some(Lease {
        job_id: "b".into(),
        attempt: 1,
    });
    let cancels = vec![CancelAttempt { lease, reason: 1 }];
    stream.say(Heard::Cancels(Cancels { cancels })).await;
    // Known to have been heard: a job of no kind is given back after it.
    stream.push("c", "unknown", "null").await;
    let mut ended = BTreeMap::new();
    while !ended.contains_key("c") {
        ended.extend(outcomes(&mut stream, 1).await);
    }
    for _ in 0..2 {
        go.send(()).unwrap();
    }
    while ended.len() < 3 {
        ended.extend(outcomes(&mut stream, 1).await);
    }
    assert!(matches!(ended["a"], Outcome::Success(_)));
    assert!(matches!(ended["b"], Outcome::Stopped(_)), "{ended:?}");
    assert!(begun.try_recv().is_err(), "it has begun nevertheless");
}

#[tokio::test]
async fn a_middleware_that_hangs_is_dropped_around_whatever_handler() {
    let peer = Peer::start();
    let (go, gate) = std::sync::mpsc::sync_channel(4);
    let gate = std::sync::Mutex::new(gate);
    let (began, mut begun) = mpsc::channel(16);
    let around = began.clone();
    let builder = Worker::builder(&peer.url)
        .stop_grace(Duration::from_millis(10))
        .middleware(move |ctx, payload, next| {
            let hangs = ctx.job_id() == "a";
            let _ = around.try_send(());
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                next.run(ctx, payload).await
            }
        })
        .blocking_handler("block", move |_, (): ()| {
            let _ = began.try_send(());
            let _ = gate.lock().unwrap().recv();
            Ok(())
        });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "block", "null").await;
    soon("the middleware", begun.recv()).await;
    let cancel = |job: &str| {
        let lease = Some(Lease {
            job_id: job.into(),
            attempt: 1,
        });
        let cancels = vec![CancelAttempt { lease, reason: 1 }];
        Heard::Cancels(Cancels { cancels })
    };
    stream.say(cancel("a")).await;
    assert!(matches!(stream.outcome().await, Outcome::Stopped(_)));

    // A thread is not: it keeps its slot, and what it says counts.
    stream.push("b", "block", "null").await;
    for _ in 0..2 {
        soon("the handler", begun.recv()).await;
    }
    stream.say(cancel("b")).await;
    stream.push("c", "unknown", "null").await;
    assert!(matches!(stream.outcome().await, Outcome::Release(_)));
    go.send(()).unwrap();
    assert!(matches!(stream.outcome().await, Outcome::Success(_)));
}

#[tokio::test]
async fn settings_that_contradict_each_other_are_all_named() {
    let builder = Worker::builder("http://127.0.0.1:1")
        .state(1_u8)
        .state(2_u8)
        .kind_concurrency("a", 0)
        .kind_concurrency("b", 1)
        .handler("a", |_, (): ()| async { Ok(()) });
    let fault = builder.build().err().unwrap().to_string();
    for part in [
        "state u8 is given twice",
        "kind a may never run",
        "kind b has a limit and no handler",
    ] {
        assert!(fault.contains(part), "{fault}");
    }
}
