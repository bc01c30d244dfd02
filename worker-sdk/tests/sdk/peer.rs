//! A real gRPC server whose every answer is given by the test.

use std::future::Future;
use std::pin::Pin;
use std::result::Result;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use worker_sdk::proto::job_service_server::{JobService, JobServiceServer};
use worker_sdk::proto::lease_jobs_request::Message as Sent;
use worker_sdk::proto::lease_jobs_response::Message as Heard;
use worker_sdk::proto::worker_service_server::{WorkerService, WorkerServiceServer};
use worker_sdk::proto::{self, *};

/// Nothing a test waits for takes longer, or it fails.
pub async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"))
}

type Outgoing = mpsc::Sender<Result<LeaseJobsResponse, Status>>;
type Answer<T> = oneshot::Sender<Result<T, Status>>;

struct Service {
    streams: mpsc::Sender<(Streaming<LeaseJobsRequest>, Outgoing)>,
    reports: mpsc::Sender<(ReportResultsRequest, Answer<ReportResultsResponse>)>,
    enqueues: mpsc::Sender<(EnqueueRequest, Answer<EnqueueResponse>)>,
    gets: mpsc::Sender<(GetJobRequest, Answer<GetJobResponse>)>,
    watches: mpsc::Sender<(WatchJobRequest, Answer<Telling>)>,
}

/// What a stream of a watch tells; it ends well if it does not end by an error.
type Telling = Vec<Result<WatchJobResponse, Status>>;

/// The server, as the test sees it.
pub struct Peer {
    pub url: String,
    streams: Mutex<mpsc::Receiver<(Streaming<LeaseJobsRequest>, Outgoing)>>,
    pub reports: mpsc::Receiver<(ReportResultsRequest, Answer<ReportResultsResponse>)>,
    pub enqueues: mpsc::Receiver<(EnqueueRequest, Answer<EnqueueResponse>)>,
    pub gets: mpsc::Receiver<(GetJobRequest, Answer<GetJobResponse>)>,
    pub watches: mpsc::Receiver<(WatchJobRequest, Answer<Telling>)>,
}

/// What lies between a worker and its server.
pub struct Way {
    pub url: String,
    cut: watch::Sender<()>,
}

impl Way {
    pub async fn to(peer: &Peer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = peer.url.trim_start_matches("http://").to_owned();
        let (cut, cuts) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(&server).await.unwrap();
                let mut cuts = cuts.clone();
                cuts.borrow_and_update();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { url, cut }
    }

    /// Ends all connections of now, without a word of HTTP/2.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

/// One stream of a worker.
pub struct Stream {
    pub hello: Hello,
    incoming: Streaming<LeaseJobsRequest>,
    outgoing: Outgoing,
    frame: u64,
}

impl Peer {
    /// A server on a thread of its own, so that no test's handlers disturb it.
    pub fn start() -> Self {
        let (streams, streams_in) = mpsc::channel(16);
        let (reports, reports_in) = mpsc::channel(16);
        let (enqueues, enqueues_in) = mpsc::channel(16);
        let (gets, gets_in) = mpsc::channel(16);
        let (watches, watches_in) = mpsc::channel(16);
        let (ready, address) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                let service = std::sync::Arc::new(Service {
                    streams,
                    reports,
                    enqueues,
                    gets,
                    watches,
                });
                Server::builder()
                    .add_service(WorkerServiceServer::from_arc(service.clone()))
                    .add_service(JobServiceServer::from_arc(service))
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .unwrap();
            });
        });
        let url = format!("http://{}", address.recv().unwrap());
        Self {
            url,
            streams: Mutex::new(streams_in),
            reports: reports_in,
            enqueues: enqueues_in,
            gets: gets_in,
            watches: watches_in,
        }
    }

    /// The next stream that a worker opens, up to its Hello.
    pub async fn stream(&self) -> Stream {
        let (mut incoming, outgoing) =
            soon("a stream", async { self.streams.lock().await.recv().await })
                .await
                .unwrap();
        let first = soon("Hello", incoming.message()).await.unwrap().unwrap();
        let Some(Sent::Hello(hello)) = first.message else {
            panic!("Hello first: {first:?}")
        };
        Stream {
            hello,
            incoming,
            outgoing,
            frame: 0,
        }
    }

    /// A stream that is welcome to a new session, with a lease of so long.
    pub async fn session(&self, token: &str, ttl: Duration) -> Stream {
        self.welcome(token, ttl, false).await
    }

    /// A stream whose session goes on.
    pub async fn resumed(&self, token: &str, ttl: Duration) -> Stream {
        self.welcome(token, ttl, true).await
    }

    async fn welcome(&self, token: &str, ttl: Duration, resumed: bool) -> Stream {
        let stream = self.stream().await;
        let wire = |duration: Duration| prost_types::Duration::try_from(duration).ok();
        let welcome = Welcome {
            resume_token: token.into(),
            resumed,
            heartbeat_interval: wire(ttl / 3),
            lease_ttl: wire(ttl),
            ..Default::default()
        };
        stream.say(Heard::Welcome(welcome)).await;
        stream
    }
}

impl Stream {
    pub async fn say(&self, message: Heard) {
        self.outgoing
            .send(Ok(LeaseJobsResponse {
                message: Some(message),
            }))
            .await
            .unwrap();
    }

    /// Pushes a job whose payload is this text.
    pub async fn push(&mut self, job: &str, kind: &str, payload: &str) {
        let payload = Payload {
            content_type: String::new(),
            body: Some(payload::Body::Text(payload.into())),
        };
        self.push_payload(job, kind, payload, None).await;
    }

    /// Pushes a job with what an earlier attempt has kept.
    pub async fn push_payload(
        &mut self,
        job: &str,
        kind: &str,
        payload: Payload,
        checkpoint: Option<Vec<u8>>,
    ) {
        self.frame += 1;
        let lease = Some(Lease {
            job_id: job.into(),
            attempt: 1,
        });
        let job = LeasedJob {
            lease,
            kind: kind.into(),
            payload: Some(payload),
            checkpoint: checkpoint.map(Into::into),
            ..Default::default()
        };
        self.say(Heard::Jobs(Jobs {
            frame: self.frame,
            jobs: vec![job],
        }))
        .await;
    }

    /// The next message of the worker, `None` at its half-close. Heartbeats are
    /// confirmed on the way, unless the test asked for them.
    pub async fn next(&mut self) -> Option<Sent> {
        loop {
            let message = soon("a message", self.incoming.message())
                .await
                .unwrap()?
                .message
                .unwrap();
            if let Sent::Heartbeat(beat) = &message {
                self.confirm(beat).await;
                continue;
            }
            return Some(message);
        }
    }

    pub async fn heartbeat(&mut self) -> Heartbeat {
        match soon("a heartbeat", self.incoming.message())
            .await
            .unwrap()
            .unwrap()
            .message
        {
            Some(Sent::Heartbeat(beat)) => beat,
            other => panic!("a heartbeat, not {other:?}"),
        }
    }

    pub async fn confirm(&self, beat: &Heartbeat) {
        self.say(Heard::HeartbeatAck(HeartbeatAck {
            sequence: beat.sequence,
            lease_ttl: None,
        }))
        .await;
    }

    /// The next outcome, with a RECORDED receipt given.
    pub async fn outcome(&mut self) -> result::Outcome {
        let Some(Sent::Results(results)) = self.next().await else {
            panic!("a result")
        };
        let [result] = &results.results[..] else {
            panic!("one result: {results:?}")
        };
        self.say(Heard::Receipts(Receipts {
            receipts: vec![recorded(result)],
        }))
        .await;
        result.outcome.clone().unwrap()
    }

    /// The next results, whatever comes before them.
    pub async fn results(&mut self) -> Vec<proto::Result> {
        loop {
            match self.next().await {
                Some(Sent::Results(results)) => return results.results,
                Some(_) => {}
                None => panic!("results, not a half-close"),
            }
        }
    }

    pub async fn end(self, status: Status) {
        self.outgoing.send(Err(status)).await.unwrap();
    }
}

pub fn recorded(result: &proto::Result) -> Receipt {
    Receipt {
        lease: result.lease.clone(),
        status: ReceiptStatus::Recorded.into(),
        ..Default::default()
    }
}

async fn asked<Q, A>(
    to: &mpsc::Sender<(Q, Answer<A>)>,
    request: Request<Q>,
) -> Result<Response<A>, Status> {
    let (answer, answered) = oneshot::channel();
    let asked = to.send((request.into_inner(), answer)).await;
    asked.map_err(|_| Status::unavailable("the test is over"))?;
    answered
        .await
        .unwrap_or_else(|_| Err(Status::unavailable("no answer")))
        .map(Response::new)
}

#[tonic::async_trait]
impl WorkerService for Service {
    type LeaseJobsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<LeaseJobsResponse, Status>> + Send>>;

    async fn lease_jobs(
        &self,
        request: Request<Streaming<LeaseJobsRequest>>,
    ) -> Result<Response<Self::LeaseJobsStream>, Status> {
        let (outgoing, messages) = mpsc::channel(16);
        let opened = self.streams.send((request.into_inner(), outgoing)).await;
        opened.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn report_results(
        &self,
        request: Request<ReportResultsRequest>,
    ) -> Result<Response<ReportResultsResponse>, Status> {
        asked(&self.reports, request).await
    }
}

#[tonic::async_trait]
impl JobService for Service {
    async fn enqueue(
        &self,
        request: Request<EnqueueRequest>,
    ) -> Result<Response<EnqueueResponse>, Status> {
        asked(&self.enqueues, request).await
    }

    async fn get_job(
        &self,
        request: Request<GetJobRequest>,
    ) -> Result<Response<GetJobResponse>, Status> {
        asked(&self.gets, request).await
    }

    type WatchJobStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let told = asked(&self.watches, request).await?.into_inner();
        Ok(Response::new(Box::pin(tokio_stream::iter(told))))
    }

    async fn enqueue_batch(
        &self,
        _: Request<EnqueueBatchRequest>,
    ) -> Result<Response<EnqueueBatchResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn list_jobs(
        &self,
        _: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn cancel_job(
        &self,
        _: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn retry_job(
        &self,
        _: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn explain_job(
        &self,
        _: Request<ExplainJobRequest>,
    ) -> Result<Response<ExplainJobResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn delete_job(
        &self,
        _: Request<proto::DeleteJobRequest>,
    ) -> Result<Response<proto::DeleteJobResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn reschedule_job(
        &self,
        _: Request<proto::RescheduleJobRequest>,
    ) -> Result<Response<proto::RescheduleJobResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn set_job_priority(
        &self,
        _: Request<proto::SetJobPriorityRequest>,
    ) -> Result<Response<proto::SetJobPriorityResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}
