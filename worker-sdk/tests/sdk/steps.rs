//! Steps of a handler.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use worker_sdk::Worker;
use worker_sdk::proto::{
    self, Receipts, lease_jobs_request::Message as Sent, lease_jobs_response::Message as Heard,
};

use crate::peer::{Peer, Stream, soon};
use crate::workers::{TTL, spawn, text};

/// The next thing said is a checkpoint; with the receipt that would confirm it.
async fn checkpoint(stream: &mut Stream) -> (String, proto::Receipt) {
    let Some(Sent::Progress(reports)) = stream.next().await else {
        panic!("a checkpoint")
    };
    let report = &reports.reports[0];
    let progress = report.progress.clone().unwrap();
    let receipt = proto::Receipt {
        progress_revision: progress.revision,
        lease: report.lease.clone(),
        status: proto::ReceiptStatus::Recorded.into(),
        ..Default::default()
    };
    let kept = progress.checkpoint.unwrap().to_vec();
    (String::from_utf8(kept).unwrap(), receipt)
}

#[tokio::test]
async fn a_step_that_was_given_up_while_it_was_recorded_is_recorded_before_it_is_relied_on() {
    let peer = Peer::start();
    let (said, mut heard) = mpsc::channel(16);
    let no_patience = Arc::new(Notify::new());
    let gate = Arc::clone(&no_patience);
    let builder = Worker::builder(&peer.url).handler("order", move |ctx, (): ()| {
        let (said, gate) = (said.clone(), Arc::clone(&gate));
        async move {
            let charge = |paid: u32| {
                let _ = said.try_send(paid);
                async move { Ok(paid) }
            };
            tokio::select! {
                _ = ctx.step("charge", || charge(7)) => {}
                () = gate.notified() => {}
            }
            ctx.step("charge", || charge(8)).await
        }
    });
    let (_stop, _worker) = spawn(builder);
    let mut stream = peer.session("t", TTL).await;
    stream.push("a", "order", "null").await;
    let (first, _) = checkpoint(&mut stream).await;
    assert_eq!(first, r#"{"steps":{"charge":7}}"#);
    no_patience.notify_one();
    let (again, receipt) = checkpoint(&mut stream).await;
    assert_eq!(again, first);
    let receipts = vec![receipt];
    stream.say(Heard::Receipts(Receipts { receipts })).await;
    assert_eq!(text(stream.outcome().await), "7");
    assert_eq!(soon("the charge", heard.recv()).await, Some(7));
    assert!(heard.try_recv().is_err(), "it was charged twice");
}
