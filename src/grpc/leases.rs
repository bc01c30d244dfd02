//! WorkerService over the engine. It only moves messages: what they mean is decided in `session/`.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::convert;
use super::frames::{hello, response, take};
use super::status::status;
use crate::engine::{Engine, Live};
use crate::error::{Error, Result, Violation};
use crate::job::Verdict;
use crate::job::limits::{BATCH_MAX, HELLO_WITHIN, RESUME_TOKEN_BYTES};
use crate::proto as pb;
use crate::proto::lease_jobs_request::Message as In;
use crate::session::Event;

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
        let mut said = Vec::new();
        let mut places = Vec::new();
        for result in request.results {
            let raw = result.lease.unwrap_or_default();
            let outcome = convert::outcome(result.outcome);
            let outcome = outcome.and_then(|o| Ok((o, convert::last_lines(result.log)?)));
            let verdict = match (convert::lease(Some(&raw)), outcome) {
                (None, _) => Some(Verdict::Unknown),
                (_, Err(violation)) => Some(Verdict::Rejected(violation)),
                (_, Ok((None, _))) => Some(Verdict::Rejected(Violation::field(
                    "outcome",
                    "stopped is said on the stream only",
                ))),
                (Some(lease), Ok((Some(outcome), lines))) => {
                    said.extend(lines.map(|lines| (lease, lines)));
                    places.push(receipts.len());
                    asked.push((lease, outcome));
                    None
                }
            };
            receipts.push((raw, verdict));
        }
        let judged = match asked.is_empty() {
            true => Vec::new(),
            false => self.0.report(&request.resume_token, asked, said).await?,
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
        let next = std::task::ready!(live.poll_next(context));
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
    // In a box of its own: what it takes to open a session is not kept for as long as the stream lives.
    let live = match Box::pin(open(&engine, &mut inbound)).await {
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
