//! What a user's own tests do with it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::error::Error as StdError;
use std::time::{Duration, Instant};

use leasehold_testing::{Error, TestServer};
use serde::{Deserialize, Serialize};
use worker_sdk::{Codec, JobError, JobState, NewJob, Permanent, TypedJob, WorkerBuilder};

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Welcome {
    to: String,
}

impl TypedJob for Welcome {
    const KIND: &'static str = "welcome";
    const QUEUE: &'static str = "mail";
    type Output = String;
}

fn flaky(server: &TestServer) -> WorkerBuilder {
    server
        .worker()
        .handler("flaky", |ctx, fail: u32| async move {
            match ctx.failures() < fail {
                true => Err(JobError::new("not yet")),
                false => Ok(ctx.attempt()),
            }
        })
}

#[tokio::test]
async fn what_was_enqueued_can_be_looked_at_and_run_in_the_same_test() {
    let server = TestServer::start().await.unwrap();
    let client = server.client().unwrap();
    let welcome = Welcome { to: "Ada".into() };
    client.enqueue(welcome.job().unwrap()).await.unwrap();
    client
        .enqueue(NewJob::new("other", &1).unwrap())
        .await
        .unwrap();
    let jobs = server.jobs_of("welcome").await.unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].payload_as::<Welcome>().unwrap(), welcome);
    assert_eq!(jobs[0].state(), JobState::Queued);
    let worker = server
        .worker()
        .typed(|_, job: Welcome| async move { Ok(format!("hello, {}", job.to)) });
    let ran = server.work_off(worker).await.unwrap();
    assert_eq!(ran.len(), 1, "the other is of another queue");
    assert_eq!(ran[0].output_of::<Welcome>().unwrap(), "hello, Ada");
    assert_eq!(server.jobs().await.unwrap().len(), 2);
}

#[tokio::test]
async fn retries_and_schedules_come_at_once_when_time_passes() {
    let server = TestServer::start().await.unwrap();
    let client = server.client().unwrap();
    let job = NewJob::new("flaky", &3).unwrap().delay(24 * HOUR);
    let id = client.enqueue(job).await.unwrap().job.id;
    assert!(server.work_off(flaky(&server)).await.unwrap().is_empty());
    let start = Instant::now();
    server.pass(23 * HOUR).await.unwrap();
    assert!(server.work_off(flaky(&server)).await.unwrap().is_empty());
    let mut waits = Vec::new();
    while let Some(wait) = server.pass_until_due().await.unwrap() {
        waits.push(wait.as_secs());
        server.work_off(flaky(&server)).await.unwrap();
    }
    let job = client.get(&id).await.unwrap();
    assert_eq!((job.state(), job.failures), (JobState::Succeeded, 3));
    // The rest of the day, then 15 s, 30 s and 60 s less up to a tenth.
    for (wait, most) in waits.iter().zip([3_600, 15, 30, 60]) {
        assert!(*wait <= most && *wait >= most * 8 / 10, "{waits:?}");
    }
    assert!(start.elapsed() < HOUR, "nobody waited for it");
    // New jobs are taken after years, too, and old ones are forgotten.
    server.pass(24 * 365 * HOUR).await.unwrap();
    client
        .enqueue(NewJob::new("flaky", &0).unwrap())
        .await
        .unwrap();
    assert_eq!(server.work_off(flaky(&server)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_job_is_run_inline_as_often_as_a_test_asks() {
    let server = TestServer::start().await.unwrap();
    let client = server.client().unwrap();
    let job = NewJob::new("flaky", &1).unwrap().delay(HOUR);
    let id = client.enqueue(job).await.unwrap().job.id;
    let job = server.run(flaky(&server), &id).await.unwrap();
    assert_eq!((job.state(), job.attempt), (JobState::Scheduled, 1));
    let job = server.run(flaky(&server), &id).await.unwrap();
    assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2));
    assert_eq!(job.output_as::<u32>().unwrap(), 2);
}

#[tokio::test]
async fn what_a_handler_enqueues_is_run_as_well() {
    let server = TestServer::start().await.unwrap();
    let client = server.client().unwrap();
    let children = client.clone();
    let worker = server.worker().handler("split", move |_, depth: u32| {
        let client = children.clone();
        async move {
            for _ in 0..if depth > 0 { 2 } else { 0 } {
                client.enqueue(NewJob::new("split", &(depth - 1))?).await?;
            }
            Ok(())
        }
    });
    client
        .enqueue(NewJob::new("split", &3).unwrap())
        .await
        .unwrap();
    let ran = server.work_off(worker).await.unwrap();
    assert_eq!(ran.len(), 1 + 2 + 4 + 8);
    assert!(ran.iter().all(|job| job.state() == JobState::Succeeded));
}

/// Hides what it is given from nobody but this test.
struct Flip;

impl Codec for Flip {
    fn content_type(&self) -> &str {
        "application/vnd.test.flipped"
    }

    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
        Ok(plain.iter().map(|byte| !byte).collect())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
        self.seal(sealed)
    }
}

#[tokio::test]
async fn the_server_reads_no_payload_of_a_client_that_seals() {
    let server = TestServer::start().await.unwrap();
    let client = server.client().unwrap().codec(Flip);
    let job = NewJob::new("greet", "Ada").unwrap();
    let id = client.enqueue(job).await.unwrap().job.id;
    client.cancel(&id, "").await.unwrap();
    let payload = client.get(&id).await.unwrap().spec.unwrap().payload;
    let copy = client.retry_copy(&id, None, payload.unwrap()).await;
    let copy = client.get(&copy.unwrap().id).await.unwrap();
    assert_eq!(copy.payload_as::<String>().unwrap(), "Ada");
    let kept = server.jobs_of("greet").await.unwrap();
    assert_eq!(kept.len(), 2);
    for job in kept {
        let payload = job.spec.unwrap().payload.unwrap();
        assert_eq!(payload.content_type, Flip.content_type());
    }
}

#[tokio::test]
async fn what_does_not_come_to_rest_is_an_error_and_a_failure_is_none() {
    let server = TestServer::start().await.unwrap();
    let server = server.patience(Duration::from_millis(300));
    let client = server.client().unwrap();
    let worker = || {
        server
            .worker()
            .handler("fail", |_, (): ()| async {
                Err::<(), _>(Permanent("never").into())
            })
            .handler("hang", |_, (): ()| {
                std::future::pending::<Result<(), JobError>>()
            })
    };
    client
        .enqueue(NewJob::new("fail", &()).unwrap())
        .await
        .unwrap();
    let ran = server.work_off(worker()).await.unwrap();
    assert_eq!(ran[0].state(), JobState::Failed);
    assert_eq!(ran[0].last_failure.as_ref().unwrap().message, "never");
    client
        .enqueue(NewJob::new("hang", &()).unwrap())
        .await
        .unwrap();
    let stuck = server.work_off(worker()).await;
    assert!(matches!(stuck, Err(Error::NotAtRest(..))), "{stuck:?}");
}
