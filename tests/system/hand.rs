//! A worker by hand: one stream, one message at a time, as any generated client could do it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;
use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb, result::Outcome};

/// Far longer than any answer takes.
const SOON: Duration = Duration::from_secs(60);

/// One stream.
pub struct Hand {
    outgoing: mpsc::Sender<pb::LeaseJobsRequest>,
    incoming: Streaming<pb::LeaseJobsResponse>,
    beats: u64,
}

/// A Hello of a worker of the queue "q".
pub fn hello(slots: u32) -> pb::Hello {
    pb::Hello {
        protocol: 1,
        worker: "hand".into(),
        queues: vec![pb::QueueSubscription {
            queue: "q".into(),
            max_in_flight: 0,
        }],
        kinds: vec!["echo".into()],
        max_in_flight: slots,
        lease_ttl: Some(prost_types::Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..Default::default()
    }
}

/// The n-th Hello of the session of this Welcome, with what the worker still has.
pub fn again(welcome: &pb::Welcome, sequence: u64, held: &[pb::Lease]) -> pb::Hello {
    pb::Hello {
        resume_token: welcome.resume_token.clone(),
        attach_sequence: sequence,
        held: held.to_vec(),
        ..hello(10)
    }
}

impl Hand {
    /// Opens a stream at this address.
    pub async fn open(url: &str, hello: pb::Hello) -> Self {
        let mut client = WorkerServiceClient::connect(url.to_owned()).await.unwrap();
        let (outgoing, sent) = mpsc::channel(64);
        let hand = pb::LeaseJobsRequest {
            message: Some(Request::Hello(hello)),
        };
        outgoing.send(hand).await.unwrap();
        let stream = client.lease_jobs(ReceiverStream::new(sent)).await.unwrap();
        Self {
            outgoing,
            incoming: stream.into_inner(),
            beats: 0,
        }
    }

    /// Opens a stream and awaits its Welcome.
    pub async fn welcome(url: &str, hello: pb::Hello) -> (Self, pb::Welcome) {
        let mut hand = Self::open(url, hello).await;
        match hand.next().await {
            Ok(Some(Response::Welcome(welcome))) => (hand, welcome),
            other => panic!("expected Welcome, got {other:?}"),
        }
    }

    pub async fn send(&self, message: Request) {
        let message = Some(message);
        let sent = self.outgoing.send(pb::LeaseJobsRequest { message }).await;
        sent.expect("the stream is open");
    }

    /// The next message; `None` when the stream ended well.
    pub async fn next(&mut self) -> Result<Option<Response>, Status> {
        let next = tokio::time::timeout(SOON, self.incoming.message());
        let message = next.await.expect("something comes")?;
        Ok(message.and_then(|message| message.message))
    }

    /// The next message that `pick` takes; others are passed by.
    pub async fn until<T>(&mut self, pick: impl Fn(Response) -> Option<T>) -> T {
        loop {
            match self.next().await {
                Ok(Some(message)) => {
                    if let Some(picked) = pick(message) {
                        return picked;
                    }
                }
                other => panic!("the stream ended: {other:?}"),
            }
        }
    }

    /// Takes so many jobs, in as many frames as they come; gives them and the last frame's number.
    pub async fn take(&mut self, count: usize) -> (Vec<pb::LeasedJob>, u64) {
        let (mut jobs, mut last) = (Vec::new(), 0);
        while jobs.len() < count {
            let frame = self
                .until(|message| match message {
                    Response::Jobs(frame) => Some(frame),
                    _ => None,
                })
                .await;
            last = frame.frame;
            jobs.extend(frame.jobs);
        }
        (jobs, last)
    }

    pub async fn beat(&mut self, last_frame: u64, held: &[pb::Lease]) {
        self.beats += 1;
        let beat = pb::Heartbeat {
            sequence: self.beats,
            last_frame,
            held: held.to_vec(),
        };
        self.send(Request::Heartbeat(beat)).await;
    }

    /// Beats and awaits the acknowledgement.
    pub async fn renew(&mut self, last_frame: u64, held: &[pb::Lease]) {
        self.beat(last_frame, held).await;
        let beats = self.beats;
        self.until(|message| match message {
            Response::HeartbeatAck(ack) if ack.sequence == beats => Some(()),
            _ => None,
        })
        .await;
    }

    /// Reports successes, and gives their receipts.
    pub async fn succeed(&mut self, leases: &[pb::Lease]) -> Vec<pb::Receipt> {
        let results = leases.iter().map(|lease| pb::Result {
            lease: Some(lease.clone()),
            outcome: Some(Outcome::Success(pb::Success::default())),
            log: None,
        });
        let results = results.collect();
        self.send(Request::Results(pb::Results { results })).await;
        self.until(|message| match message {
            Response::Receipts(receipts) => Some(receipts.receipts),
            _ => None,
        })
        .await
    }

    /// Awaits the end of the stream by an error, and gives its code and reason.
    pub async fn refused(&mut self) -> (Code, String) {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(status) => return (status.code(), reason(&status)),
            }
        }
    }
}

/// The leases of jobs, in their order.
pub fn leases(jobs: &[pb::LeasedJob]) -> Vec<pb::Lease> {
    jobs.iter().flat_map(|job| job.lease.clone()).collect()
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}
