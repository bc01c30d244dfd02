//! WorkerService over the engine. It only moves messages: what they mean is decided in `session/`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::convert;
use super::status::status;
use crate::engine::{Engine, Live};
use crate::error::{Error, Limit, Result, Violation};
use crate::job::id::NAME_SHAPE;
use crate::job::limits::{
    BATCH_MAX, CHECKPOINT_BYTES_MAX, HELLO_WITHIN, MESSAGE_BYTES_MAX, NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX, RESUME_TOKEN_BYTES, SPAN_MAX,
};
use crate::job::{Lease, QueueName, Verdict};
use crate::proto as pb;
use crate::proto::lease_jobs_request::Message as In;
use crate::proto::lease_jobs_response::Message as Out;
use crate::session::Event;
use crate::session::message::{
    CancelReason, ClientMessage, Hello, Reported, Resume, ServerMessage, Subscription, Welcome,
};

/// What a worker can receive when it does not say.
const FRAME_BYTES_DEFAULT: u32 = 4 << 20;

/// The service.
#[derive(Debug, Clone)]
pub struct Leases(pub Arc<Engine>);

#[tonic::async_trait]
impl pb::worker_service_server::WorkerService for Leases {
    type LeaseJobsStream = Outbound;

    async fn lease_jobs(
        &self,
        request: Request<Streaming<pb::LeaseJobsRequest>>,
    ) -> Result<Response<Outbound>, Status> {
        // The answer's headers go out at once, as many clients wait for them before they send.
        let (opened, opening) = oneshot::channel();
        tokio::spawn(read(self.0.clone(), request.into_inner(), opened));
        Ok(Response::new(Outbound::Opening(opening)))
    }

    async fn report_results(
        &self,
        request: Request<pb::ReportResultsRequest>,
    ) -> Result<Response<pb::ReportResultsResponse>, Status> {
        let receipts = self.report(request.into_inner()).await;
        let receipts = receipts.map_err(|error| {
            self.0.metrics().failed_request("grpc", error.code().reason);
            status(error)
        })?;
        Ok(Response::new(pb::ReportResultsResponse { receipts }))
    }
}

impl Leases {
    async fn report(&self, request: pb::ReportResultsRequest) -> Result<Vec<pb::Receipt>> {
        if request.results.len() > BATCH_MAX {
            return Err(Error::field(
                "results",
                format!("must be at most {BATCH_MAX}"),
            ));
        }
        if !RESUME_TOKEN_BYTES.contains(&request.resume_token.len()) {
            return Err(Error::field(
                "resume_token",
                "must be the token of a Welcome",
            ));
        }
        // A verdict that needs no store stands at once; the others are filled in by order.
        let mut receipts = Vec::with_capacity(request.results.len());
        let mut asked = Vec::new();
        let mut places = Vec::new();
        for result in request.results {
            let raw = result.lease.unwrap_or_default();
            let verdict = match (convert::lease(Some(&raw)), convert::outcome(result.outcome)) {
                (None, _) => Some(Verdict::Unknown),
                (_, Err(violation)) => Some(Verdict::Rejected(violation)),
                (_, Ok(None)) => Some(Verdict::Rejected(Violation::field(
                    "outcome",
                    "stopped is said on the stream only",
                ))),
                (Some(lease), Ok(Some(outcome))) => {
                    places.push(receipts.len());
                    asked.push((lease, outcome));
                    None
                }
            };
            receipts.push((raw, verdict));
        }
        let judged = match asked.is_empty() {
            true => Vec::new(),
            false => self.0.report(&request.resume_token, asked).await?,
        };
        for (place, verdict) in places.into_iter().zip(judged) {
            if let Some((_, slot)) = receipts.get_mut(place) {
                *slot = Some(verdict);
            }
        }
        let missing = || Error::internal("the store gave too few verdicts");
        receipts
            .into_iter()
            .map(|(raw, verdict)| Ok(convert::receipt(raw, verdict.ok_or_else(missing)?)))
            .collect()
    }
}

/// What goes to the worker. Its end, or its drop, is the end of the stream.
#[derive(Debug)]
pub enum Outbound {
    /// Hello is awaited, and the session opened.
    Opening(oneshot::Receiver<Result<Arc<Live>>>),
    /// The session sends.
    Open(Guard),
    /// Nothing follows.
    Ended,
}

/// Forgets the session when the stream's sending half is gone.
#[derive(Debug)]
pub struct Guard(Arc<Live>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.outbox().close(None);
    }
}

impl Stream for Outbound {
    type Item = Result<pb::LeaseJobsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Self::Opening(opened) = &mut *self {
            match std::task::ready!(Pin::new(opened).poll(context)) {
                Ok(Ok(live)) => *self = Self::Open(Guard(live)),
                Ok(Err(error)) => {
                    *self = Self::Ended;
                    return Poll::Ready(Some(Err(status(error))));
                }
                Err(_) => *self = Self::Ended,
            }
        }
        let Self::Open(Guard(live)) = &*self else {
            return Poll::Ready(None);
        };
        let next = std::task::ready!(live.outbox().poll_next(context));
        if !matches!(next, Some(Ok(_))) {
            *self = Self::Ended;
        }
        Poll::Ready(next.map(|message| message.map(response).map_err(status)))
    }
}

/// Reads from the worker until its stream is over. Never waits for what is sent to it.
async fn read(
    engine: Arc<Engine>,
    mut inbound: Streaming<pb::LeaseJobsRequest>,
    opened: oneshot::Sender<Result<Arc<Live>>>,
) {
    let live = match open(&engine, &mut inbound).await {
        Ok(live) => live,
        Err(error) => {
            // A worker that is gone already needs no answer.
            drop(opened.send(Err(error)));
            return;
        }
    };
    if opened.send(Ok(live.clone())).is_ok() {
        pump(&live, &mut inbound).await;
    }
    engine.forget_session(&live);
}

async fn open(engine: &Engine, inbound: &mut Streaming<pb::LeaseJobsRequest>) -> Result<Arc<Live>> {
    let first = tokio::time::timeout(HELLO_WITHIN, next_known(inbound))
        .await
        .map_err(|_| Error::HelloMissed)?;
    match first.transpose().map_err(broken)? {
        Some(In::Hello(message)) => engine.open_session(hello(message)?).await,
        Some(_) => Err(Error::ProtocolViolation(
            "the first message must be Hello".into(),
        )),
        None => Err(Error::HelloMissed),
    }
}

async fn pump(live: &Arc<Live>, inbound: &mut Streaming<pb::LeaseJobsRequest>) {
    let mut half_closed = false;
    loop {
        // Cancel safe: a message that is not whole yet stays in the decoder, and the others only wait.
        tokio::select! {
            biased;
            () = poll_fn(|context| live.outbox().poll_closed(context)) => return,
            message = next_known(inbound), if !half_closed => match message {
                Some(Ok(message)) => take(live, message),
                Some(Err(error)) => {
                    debug!(session = %live.attached().session, %error, "stream broke");
                    live.outbox().close(Some(broken(error)));
                    return;
                }
                None => {
                    half_closed = true;
                    live.feed(Event::HalfClosed);
                }
            },
            () = live.deadline() => live.feed(Event::Tick),
        }
    }
}

/// The next message with a variant that is known here; others are ignored, as newer clients may send them.
async fn next_known(inbound: &mut Streaming<pb::LeaseJobsRequest>) -> Option<Result<In, Status>> {
    loop {
        match inbound.next().await? {
            Ok(pb::LeaseJobsRequest {
                message: Some(message),
            }) => return Some(Ok(message)),
            Ok(_) => debug!("message of no known variant ignored"),
            Err(error) => return Some(Err(error)),
        }
    }
}

/// What tonic could not decode, or the peer has reset.
fn broken(error: Status) -> Error {
    Error::ProtocolViolation(format!("the stream broke: {}", error.message()))
}

fn take(live: &Arc<Live>, message: In) {
    let message = match message {
        In::Hello(_) => ClientMessage::Hello(Box::default()),
        In::Goodbye(_) => ClientMessage::Goodbye,
        In::Heartbeat(beat) => ClientMessage::Heartbeat {
            sequence: beat.sequence,
            last_frame: beat.last_frame,
            held: beat
                .held
                .iter()
                .filter_map(|raw| convert::lease(Some(raw)))
                .collect(),
        },
        In::SetCapacity(set) => match subscriptions("set_capacity.queues", set.queues) {
            Ok(queues) => ClientMessage::SetCapacity {
                max_in_flight: set.max_in_flight,
                queues,
            },
            Err(error) => return live.outbox().close(Some(error)),
        },
        In::Progress(progress) if progress.reports.len() > BATCH_MAX => {
            return too_many(live, "progress.reports");
        }
        In::Progress(progress) => {
            let reports = progress.reports.into_iter();
            ClientMessage::Progress(reports.filter_map(convert::report).collect())
        }
        In::Results(pb::Results { results }) if results.len() > BATCH_MAX => {
            return too_many(live, "results.results");
        }
        In::Results(pb::Results { results }) => ClientMessage::Results(reported(live, results)),
    };
    live.feed(Event::Frame(message));
}

/// A batch over its bound is a fault of protocol; nothing of it is looked at.
fn too_many(live: &Live, field: &str) {
    let error = Error::field(field, format!("must be at most {BATCH_MAX}"));
    live.outbox().close(Some(error));
}

/// Results that name a lease. One that cannot name any is answered here: there is nothing to ask about.
fn reported(live: &Live, results: Vec<pb::Result>) -> Vec<(Lease, Reported)> {
    let mut named = Vec::with_capacity(results.len());
    for result in results {
        let Some(lease) = convert::lease(result.lease.as_ref()) else {
            let shown = result.lease.map(|raw| (cut(raw.job_id), raw.attempt));
            if !live.outbox().push(ServerMessage::Unreadable(shown)) {
                live.outbox().close(Some(Error::LimitReached {
                    limit: Limit::Outbox,
                    retry_after: Duration::from_secs(1),
                }));
                return named;
            }
            continue;
        };
        let reported = match convert::outcome(result.outcome) {
            Ok(Some(outcome)) => Reported::Ended(outcome),
            Ok(None) => Reported::Stopped,
            Err(violation) => Reported::Unacceptable(violation),
        };
        named.push((lease, reported));
    }
    named
}

/// What names no lease is sent back so that its worker knows it again, but no more of it than an id could be: it waits
/// in memory until the worker reads it.
fn cut(mut id: String) -> String {
    id.truncate(id.floor_char_boundary(NAME_BYTES_MAX));
    id.shrink_to_fit();
    id
}

fn hello(message: pb::Hello) -> Result<Hello> {
    let lease_ttl = match message.lease_ttl {
        None => None,
        Some(raw) => {
            let span =
                crate::job::draft::span(convert::raw_span(raw), Default::default(), SPAN_MAX);
            Some(span.map_err(|why| Error::field("hello.lease_ttl", why))?)
        }
    };
    Ok(Hello {
        protocol: message.protocol,
        worker: message.worker,
        queues: subscriptions("hello.queues", message.queues)?,
        kinds: message.kinds,
        max_in_flight: message.max_in_flight,
        max_frame_bytes: match message.max_frame_bytes {
            0 => FRAME_BYTES_DEFAULT,
            bytes => bytes,
        },
        lease_ttl,
        resume: (!message.resume_token.is_empty()).then(|| Resume {
            token: message.resume_token.into(),
            attach_sequence: message.attach_sequence,
        }),
        held: message
            .held
            .iter()
            .filter_map(|raw| convert::lease(Some(raw)))
            .collect(),
        sdk: message.sdk,
        labels: message.labels.into_iter().collect(),
    })
}

fn subscriptions(field: &str, queues: Vec<pb::QueueSubscription>) -> Result<Vec<Subscription>> {
    let one = |(i, subscription): (usize, pb::QueueSubscription)| {
        let queue = QueueName::parse(&subscription.queue).ok_or_else(|| {
            Error::field(
                format!("{field}[{i}].queue"),
                format!("must match {NAME_SHAPE}"),
            )
        })?;
        let max_in_flight = (subscription.max_in_flight > 0).then_some(subscription.max_in_flight);
        Ok(Subscription {
            queue,
            max_in_flight,
        })
    };
    queues.into_iter().enumerate().map(one).collect()
}

fn response(message: ServerMessage) -> pb::LeaseJobsResponse {
    let message = match message {
        ServerMessage::Welcome(welcome) => Out::Welcome(proto_welcome(*welcome)),
        ServerMessage::Jobs { frame, jobs } => Out::Jobs(pb::Jobs {
            frame,
            jobs: jobs.into_iter().map(convert::leased_job).collect(),
        }),
        ServerMessage::Receipts(receipts) => {
            let receipt = |(lease, verdict)| convert::receipt(convert::proto_lease(lease), verdict);
            Out::Receipts(pb::Receipts {
                receipts: receipts.into_iter().map(receipt).collect(),
            })
        }
        ServerMessage::ProgressReceipts(receipts) => {
            let receipt = |(lease, progress_revision, verdict)| pb::Receipt {
                progress_revision,
                ..convert::receipt(convert::proto_lease(lease), verdict)
            };
            Out::Receipts(pb::Receipts {
                receipts: receipts.into_iter().map(receipt).collect(),
            })
        }
        ServerMessage::Unreadable(raw) => {
            let (job_id, attempt) = raw.unwrap_or_default();
            let receipt = convert::receipt(pb::Lease { job_id, attempt }, Verdict::Unknown);
            Out::Receipts(pb::Receipts {
                receipts: vec![receipt],
            })
        }
        ServerMessage::Cancels(cancels) => {
            let cancel = |(lease, reason)| pb::CancelAttempt {
                lease: Some(convert::proto_lease(lease)),
                reason: match reason {
                    CancelReason::Requested => pb::CancelReason::Requested,
                    CancelReason::Timeout => pb::CancelReason::Timeout,
                }
                .into(),
            };
            Out::Cancels(pb::Cancels {
                cancels: cancels.into_iter().map(cancel).collect(),
            })
        }
        ServerMessage::Lost(leases) => Out::Lost(pb::Lost {
            leases: leases.into_iter().map(convert::proto_lease).collect(),
        }),
        ServerMessage::HeartbeatAck {
            sequence,
            lease_ttl,
        } => Out::HeartbeatAck(pb::HeartbeatAck {
            sequence,
            lease_ttl: Some(convert::duration(lease_ttl)),
        }),
        ServerMessage::CapacityApplied {
            max_in_flight,
            last_frame,
            goodbye,
        } => Out::CapacityApplied(pb::CapacityApplied {
            max_in_flight,
            last_frame,
            goodbye,
        }),
        ServerMessage::Draining {
            close_after,
            reason,
        } => Out::Draining(pb::Draining {
            close_after: Some(convert::duration(close_after)),
            reason,
        }),
    };
    pb::LeaseJobsResponse {
        message: Some(message),
    }
}

fn proto_welcome(welcome: Welcome) -> pb::Welcome {
    pb::Welcome {
        session_id: welcome.session.to_string(),
        resume_token: welcome.resume_token.to_vec(),
        resumed: welcome.resumed,
        node: welcome.node,
        server_version: env!("CARGO_PKG_VERSION").into(),
        heartbeat_interval: Some(convert::duration(welcome.heartbeat_interval)),
        lease_ttl: Some(convert::duration(welcome.lease_ttl)),
        max_in_flight: welcome.max_in_flight,
        max_frame_bytes: u32::try_from(MESSAGE_BYTES_MAX).unwrap_or(u32::MAX),
        max_output_bytes: u32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX),
        max_checkpoint_bytes: u32::try_from(CHECKPOINT_BYTES_MAX).unwrap_or(u32::MAX),
    }
}
