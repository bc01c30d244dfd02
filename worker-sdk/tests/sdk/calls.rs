//! The client's calls.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use worker_sdk::proto::{
    EnqueueResponse, GetJobResponse, Job, JobState, Payload, WatchJobResponse, payload,
};
use worker_sdk::{Client, Error, NewJob, View};

use crate::peer::{Peer, soon};

#[tokio::test]
async fn an_unavailable_server_is_asked_again_with_the_same_id() {
    let mut peer = Peer::start();
    let client = Client::connect(&peer.url).await.unwrap();
    let call =
        tokio::spawn(async move { client.enqueue(NewJob::new("greet", "Ada").unwrap()).await });
    let (first, answer) = soon("a call", peer.enqueues.recv()).await.unwrap();
    let wait = ErrorDetails::with_retry_info(Some(Duration::from_millis(300)));
    answer
        .send(Err(Status::with_error_details(
            Code::Unavailable,
            "away",
            wait,
        )))
        .unwrap();
    let asked = std::time::Instant::now();
    let (second, answer) = soon("a second call", peer.enqueues.recv()).await.unwrap();
    assert!(
        asked.elapsed() >= Duration::from_millis(250),
        "the server's pause is honoured"
    );
    assert_eq!(first, second);
    assert_eq!(
        first.job_id.chars().nth(14),
        Some('7'),
        "a UUIDv7: {}",
        first.job_id
    );
    let job = Some(Job {
        id: second.job_id,
        ..Job::default()
    });
    answer
        .send(Ok(EnqueueResponse { job, existed: true }))
        .unwrap();
    assert!(call.await.unwrap().unwrap().existed);
}

#[tokio::test]
async fn a_bad_request_is_not_repeated_and_names_its_fields() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url).unwrap();
    let call = tokio::spawn(async move { client.enqueue(NewJob::raw("no good", "", "x")).await });
    let (_, answer) = soon("a call", peer.enqueues.recv()).await.unwrap();
    let mut details = ErrorDetails::with_error_info(
        "FIELD_INVALID",
        "leasehold",
        [("k".to_owned(), "v".to_owned())],
    );
    details.add_bad_request_violation("job.kind", "has a space");
    answer
        .send(Err(Status::with_error_details(
            Code::InvalidArgument,
            "bad",
            details,
        )))
        .unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some("FIELD_INVALID"));
    assert_eq!(error.call().unwrap().violations[0].field, "job.kind");
    assert_eq!(
        error.to_string(),
        "FIELD_INVALID: bad; job.kind: has a space"
    );
}

#[tokio::test]
async fn nobody_there_is_an_error_within_the_deadline() {
    let client = Client::connect_lazy("127.0.0.1:1")
        .unwrap()
        .deadline(Duration::from_millis(400));
    let error = soon("the deadline", client.get("x")).await.unwrap_err();
    assert_eq!(error.call().unwrap().code, Code::Unavailable, "{error}");
    assert!(Client::connect("https://127.0.0.1:1").await.is_err());
}

#[tokio::test]
async fn wait_asks_until_the_job_is_final_and_reads_its_output() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url).unwrap();
    let call = tokio::spawn(async move { client.wait("x", Duration::from_secs(15)).await });
    for state in [JobState::Running, JobState::Succeeded] {
        let (request, answer) = soon("a call", peer.gets.recv()).await.unwrap();
        assert!(request.wait.is_some());
        let body = Some(payload::Body::Data(b"[1,2]".to_vec().into()));
        let output = Some(Payload {
            content_type: String::new(),
            body,
        });
        answer
            .send(Ok(GetJobResponse {
                job: Some(Job {
                    state: state.into(),
                    output,
                    ..Job::default()
                }),
            }))
            .unwrap();
    }
    assert_eq!(
        call.await.unwrap().unwrap().output_as::<Vec<u8>>().unwrap(),
        vec![1, 2]
    );
}

#[tokio::test]
async fn wait_gives_the_unfinished_job_when_its_time_is_over() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url).unwrap();
    let call = tokio::spawn(async move { client.wait("x", Duration::from_millis(300)).await });
    let answers = async {
        while let Some((_, answer)) = peer.gets.recv().await {
            let _ = answer.send(Ok(GetJobResponse {
                job: Some(Job {
                    state: JobState::Running.into(),
                    ..Job::default()
                }),
            }));
        }
    };
    let result = tokio::select! { result = call => result.unwrap(), () = answers => unreachable!("the server stays") };
    assert!(matches!(result, Err(Error::NotFinal(job)) if job.state() == JobState::Running));
}

/// The server answers when the wait that it was asked for is over, and never before.
#[tokio::test]
async fn a_wait_longer_than_the_client_s_deadline_gives_the_unfinished_job() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url)
        .unwrap()
        .deadline(Duration::from_secs(5));
    let call = tokio::spawn(async move { client.wait("x", Duration::from_secs(6)).await });
    let answers = async {
        while let Some((request, answer)) = peer.gets.recv().await {
            let wait = request.wait.and_then(|wait| Duration::try_from(wait).ok());
            tokio::time::sleep(wait.unwrap_or_default() + Duration::from_millis(20)).await;
            let job = Job {
                state: JobState::Running.into(),
                ..Job::default()
            };
            let _ = answer.send(Ok(GetJobResponse { job: Some(job) }));
        }
    };
    let result = tokio::select! { result = call => result.unwrap(), () = answers => unreachable!("the server stays") };
    assert!(matches!(result, Err(Error::NotFinal(_))), "{result:?}");
}

#[tokio::test]
async fn the_longest_of_all_deadlines_is_a_deadline() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url)
        .unwrap()
        .deadline(Duration::MAX);
    let call = tokio::spawn(async move { client.wait("x", Duration::MAX).await });
    let (_, answer) = soon("a call", peer.gets.recv()).await.unwrap();
    let job = Job {
        state: JobState::Succeeded.into(),
        ..Job::default()
    };
    answer.send(Ok(GetJobResponse { job: Some(job) })).unwrap();
    assert!(soon("the job", call).await.unwrap().is_ok());
}

fn told(state: JobState, revision: u64) -> Result<WatchJobResponse, Status> {
    let job = Job {
        state: state.into(),
        revision,
        ..Job::default()
    };
    Ok(WatchJobResponse {
        job: Some(job),
        log: vec![],
    })
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url).unwrap();
    let mut watch = client.watch("x", View::Basic);
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(job) = watch.next().await {
            seen.push(job.unwrap().revision);
        }
        seen
    });
    let quiet = Ok(WatchJobResponse::default());
    let leaves = Err(Status::unavailable("this node is draining"));
    let streams = [
        (0, vec![told(JobState::Queued, 1), quiet, leaves.clone()]),
        (1, vec![leaves]),
        (
            1,
            vec![told(JobState::Running, 2), told(JobState::Succeeded, 3)],
        ),
    ];
    for (after, telling) in streams {
        let (request, answer) = soon("a watch", peer.watches.recv()).await.unwrap();
        assert_eq!(request.job_id, "x");
        assert_eq!(
            (request.after_revision, request.view()),
            (after, View::Basic)
        );
        answer.send(Ok(telling)).unwrap();
    }
    assert_eq!(soon("the end", watching).await.unwrap(), [1, 2, 3]);
}

#[tokio::test]
async fn a_watch_ends_by_what_no_other_try_can_mend() {
    let mut peer = Peer::start();
    let client = Client::connect_lazy(&peer.url).unwrap();
    let mut watch = client.watch("x", View::Basic);
    let watching = tokio::spawn(async move { (watch.next().await, watch.next().await) });
    let (_, answer) = soon("a watch", peer.watches.recv()).await.unwrap();
    answer.send(Err(Status::not_found("no job x"))).unwrap();
    let (first, second) = soon("the end", watching).await.unwrap();
    assert_eq!(
        first.unwrap().unwrap_err().call().unwrap().code,
        Code::NotFound
    );
    assert!(second.is_none());
}

#[tokio::test]
async fn a_delay_that_cannot_be_sent_is_refused_and_not_left_out() {
    let client = Client::connect_lazy("http://127.0.0.1:1").unwrap();
    let (delay, payload) = (Some(Duration::MAX), Payload::default());
    let again = client.retry("a", delay).await;
    let copy = client.retry_copy("a", delay, payload).await;
    for told in [again, copy] {
        assert!(matches!(told, Err(Error::Config(_))), "{told:?}");
    }
}
