//! Payloads that the server cannot read.

use std::error::Error as StdError;

use tokio::sync::mpsc;
use worker_sdk::proto::result::Outcome;
use worker_sdk::proto::{
    self, EnqueueResponse, GetJobResponse, Receipts, lease_jobs_request::Message as Sent,
    lease_jobs_response::Message as Heard, payload::Body,
};
use worker_sdk::{Client, Codec, Error, Job, NewJob, Worker};

use crate::peer::{Peer, soon};
use crate::workers::{TTL, failure, spawn};

/// Hides what it is given from nobody but this test.
struct Flip;

const SEALED: &str = "application/vnd.test.flipped";

impl Codec for Flip {
    fn content_type(&self) -> &str {
        SEALED
    }

    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
        Ok(plain.iter().map(|byte| !byte).chain([7]).collect())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
        let plain = sealed.strip_suffix(&[7]).ok_or("it was changed")?;
        Ok(plain.iter().map(|byte| !byte).collect())
    }
}

fn data(payload: &proto::Payload) -> Vec<u8> {
    match &payload.body {
        Some(Body::Data(data)) => data.to_vec(),
        other => panic!("data, not {other:?}"),
    }
}

fn flipped(text: &str) -> proto::Payload {
    let plain = [&[0, 16][..], b"application/json", text.as_bytes()].concat();
    proto::Payload {
        content_type: SEALED.into(),
        body: Some(Body::Data(Flip.seal(&plain).unwrap().into())),
    }
}

#[tokio::test]
async fn a_client_seals_what_it_enqueues_and_opens_what_it_reads() {
    let mut peer = Peer::start();
    let client = Client::connect(&peer.url).await.unwrap().codec(Flip);
    let asks = client.clone();
    let call =
        tokio::spawn(async move { asks.enqueue(NewJob::new("greet", "Ada").unwrap()).await });
    let (request, answer) = soon("the call", peer.enqueues.recv()).await.unwrap();
    let payload = request.job.unwrap().payload.unwrap();
    assert_eq!(payload, flipped("\"Ada\""));
    let _ = answer.send(Ok(EnqueueResponse::default()));
    call.await.unwrap().unwrap();

    for (output, opens) in [(flipped("5"), true), (broken(), false)] {
        let asks = client.clone();
        let call = tokio::spawn(async move { asks.get("a").await });
        let (_, answer) = soon("the call", peer.gets.recv()).await.unwrap();
        let job = Some(Job {
            output: Some(output),
            ..Default::default()
        });
        let _ = answer.send(Ok(GetJobResponse { job }));
        match call.await.unwrap() {
            Ok(job) if opens => assert_eq!(job.output_as::<u32>().unwrap(), 5),
            Err(Error::Codec(why)) if !opens => assert!(why.contains("it was changed"), "{why}"),
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn broken() -> proto::Payload {
    proto::Payload {
        content_type: SEALED.into(),
        body: Some(Body::Data(b"junk".to_vec().into())),
    }
}

#[tokio::test]
async fn a_worker_opens_payloads_and_seals_outputs_and_checkpoints() {
    let peer = Peer::start();
    let (said, mut heard) = mpsc::channel(16);
    let builder =
        Worker::builder(&peer.url)
            .codec(Flip)
            .handler("add", move |ctx, numbers: (u32, u32)| {
                let said = said.clone();
                async move {
                    let _ = said.try_send(ctx.checkpoint());
                    ctx.save_checkpoint("half").await?;
                    let _ = said.try_send(ctx.checkpoint());
                    Ok(numbers.0 + numbers.1)
                }
            });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    let kept_as = |plain: &[u8]| [SEALED.as_bytes(), &[0], &Flip.seal(plain).unwrap()].concat();
    stream
        .push_payload("a", "add", flipped("[2,3]"), Some(kept_as(b"earlier")))
        .await;
    let Some(Sent::Progress(reports)) = stream.next().await else {
        panic!("a checkpoint")
    };
    let report = &reports.reports[0];
    let progress = report.progress.as_ref().unwrap();
    let kept = progress.checkpoint.as_ref().unwrap();
    assert_eq!(kept[..], kept_as(b"half"));
    let receipts = vec![proto::Receipt {
        progress_revision: progress.revision,
        lease: report.lease.clone(),
        status: proto::ReceiptStatus::Recorded.into(),
        ..Default::default()
    }];
    stream.say(Heard::Receipts(Receipts { receipts })).await;
    let Outcome::Success(success) = stream.outcome().await else {
        panic!("a success")
    };
    assert_eq!(data(&success.output.unwrap()), data(&flipped("5")));
    for plain in ["earlier", "half"] {
        let seen = soon("a look", heard.recv()).await.unwrap();
        assert_eq!(seen.as_deref(), Some(plain.as_bytes()));
    }

    // From before there was a codec, as its checkpoint is.
    let plain = proto::Payload {
        content_type: "application/json".into(),
        body: Some(Body::Data("[1,1]".into())),
    };
    stream
        .push_payload("b", "add", plain, Some(b"plain".to_vec()))
        .await;
    assert!(matches!(stream.next().await, Some(Sent::Progress(_))));
    let seen = soon("a look", heard.recv()).await.unwrap();
    assert_eq!(seen.as_deref(), Some(&b"plain"[..]));
    stream.push_payload("c", "add", broken(), None).await;
    let told = failure(stream.outcome().await);
    assert_eq!(
        (told.r#type.as_str(), told.permanent),
        ("CodecFailed", true)
    );
}
