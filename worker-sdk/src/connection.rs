//! The async pump of a worker: it carries out what `session.rs` decides and
//! tells it what happened. No decision is made here.
//!
//! It runs on a thread and runtime of its own, so that handlers that spin on
//! the caller's runtime cannot hold up a heartbeat.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::context::{Context, Shared};
use crate::error::{CallError, Error, chain};
use crate::handler::Handlers;
use crate::logger::Logger;
use crate::proto;
use crate::reporter::{Report, Reporter};
use crate::run::Run;
use crate::session::{
    Action, End, Event, Note, Said, Saved, SessionNo, Sessions, StreamNo, Ticket, Waiter,
};
use proto::lease_jobs_response::Message;
use proto::worker_service_client::WorkerServiceClient;

/// Largest message in either direction: the wire's 4 MiB, and room for framing.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;
/// Messages read and not yet looked at, over all streams.
const EVENTS_MAX: usize = 64;
/// Handler ends that are taken in one go before anything else is looked at.
const FINISHED_AT_ONCE: usize = 256;
/// Reports of handlers that wait to be looked at; more progress is dropped, and
/// who saves a checkpoint waits.
const REPORTS_MAX: usize = 1024;
/// Lines of handlers are fetched so long after the first of them was said.
const FETCH_LINES: Duration = Duration::from_millis(250);
/// One call of `ReportResults`.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest sleep; an idle worker wakes up so often for nothing.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// What the owner of a worker tells it.
pub(crate) enum Command {
    Shutdown(Duration),
    Hurry,
}

/// When the session was renewed last, for `Worker::health`.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) start: Instant,
    /// Milliseconds from `start`; `NEVER` while there is no session.
    pub(crate) at: AtomicU64,
}

pub(crate) const NEVER: u64 = u64::MAX;

pub(crate) struct Pump {
    pub(crate) endpoint: Endpoint,
    pub(crate) sessions: Sessions,
    pub(crate) concurrency: usize,
    pub(crate) handlers: Arc<Handlers>,
    pub(crate) shared: Arc<Shared>,
    /// The caller's runtime, where handlers run.
    pub(crate) runtime: Handle,
    pub(crate) renewal: Arc<Renewal>,
}

struct Running {
    endpoint: Endpoint,
    /// For `ReportResults`, apart from the streams' connections.
    reports: Channel,
    handlers: Arc<Handlers>,
    shared: Arc<Shared>,
    runtime: Handle,
    events: mpsc::Sender<Event>,
    finished: mpsc::Sender<Event>,
    progress: mpsc::Sender<Report>,
    /// Takes attempts whose handlers have said something.
    said: mpsc::Sender<Ticket>,
    /// Those that are to be asked what it was, and when.
    talkers: Vec<Ticket>,
    fetch_at: Option<Instant>,
    /// Handlers that wait for a checkpoint to be durable.
    waiters: HashMap<Waiter, oneshot::Sender<Saved>>,
    last_waiter: u64,
    streams: HashMap<StreamNo, Stream>,
    attempts: HashMap<Ticket, Attempt>,
    /// Each completes when a stream's writer has passed its message on.
    written: FuturesUnordered<BoxFuture<'static, StreamNo>>,
    /// Readers, reports and stop timers; all end with the pump.
    tasks: JoinSet<()>,
}

struct Stream {
    /// One message; `None` once half-closed.
    writer: Option<mpsc::Sender<proto::LeaseJobsRequest>>,
    reader: AbortHandle,
}

struct Attempt {
    logger: Logger,
    stop: CancellationToken,
    drop: CancellationToken,
}

impl Pump {
    /// Runs until the sessions are over, or at once to nothing when the owner
    /// has gone (its end of `commands` is dropped).
    pub(crate) async fn run(self, mut commands: mpsc::Receiver<Command>) -> Result<(), Error> {
        let Self {
            endpoint,
            mut sessions,
            concurrency,
            handlers,
            shared,
            runtime,
            renewal,
        } = self;
        let (events, mut received) = mpsc::channel(EVENTS_MAX);
        // Room for every handler that can run: none ever waits to be heard.
        let (finished, mut ends) = mpsc::channel(concurrency.max(1));
        let (progress, mut reports) = mpsc::channel(REPORTS_MAX);
        let (said, mut talkers) = mpsc::channel(concurrency.max(1));
        let mut running = Running {
            reports: endpoint.connect_lazy(),
            endpoint,
            handlers,
            shared,
            runtime,
            events,
            finished,
            progress,
            said,
            talkers: Vec::new(),
            fetch_at: None,
            waiters: HashMap::new(),
            last_waiter: 0,
            streams: HashMap::new(),
            attempts: HashMap::new(),
            written: FuturesUnordered::new(),
            tasks: JoinSet::new(),
        };
        let start = renewal.start;
        let mut event = Event::Tick;
        loop {
            // What has ended meanwhile comes along, so that results share a message.
            let (mut next, mut taken) = (Some(event), 0);
            while let Some(event) = next {
                let mut before = running.fetched();
                if let Event::Finished(ticket, _) = &event {
                    // Its last words come before its end.
                    before.extend(
                        running
                            .attempts
                            .remove(ticket)
                            .and_then(|a| a.said(*ticket)),
                    );
                }
                for event in before.into_iter().chain([event]) {
                    for action in sessions.handle(start.elapsed(), event) {
                        if let Action::End(why) = action {
                            renewal.at.store(NEVER, Ordering::Relaxed);
                            return why.map_or(Ok(()), |why| Err(Error::Refused(why)));
                        }
                        running.perform(action);
                    }
                }
                taken += 1;
                next = if taken < FINISHED_AT_ONCE {
                    ends.try_recv().ok()
                } else {
                    None
                };
            }
            let renewed = sessions
                .renewed()
                .map_or(NEVER, |at| u64::try_from(at.as_millis()).unwrap_or(NEVER));
            renewal.at.store(renewed, Ordering::Relaxed);
            let wake = sessions
                .deadline()
                .unwrap_or(SLEEP_MAX)
                .saturating_sub(start.elapsed())
                .min(SLEEP_MAX);
            let fetch_in = running
                .fetch_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            let wake = fetch_in.map_or(wake, |fetch_in| wake.min(fetch_in));
            // Cancel safety: receiving from a channel, the next of a set and a
            // sleep all lose nothing when another branch wins.
            event = tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Shutdown(grace)) => Event::Shutdown(grace),
                    Some(Command::Hurry) => Event::Hurry,
                    None => return Ok(()),
                },
                Some(event) = ends.recv() => event,
                Some(event) = received.recv() => event,
                Some(no) = running.written.next(), if !running.written.is_empty() => Event::Written(no),
                Some(report) = reports.recv() => running.reported(report),
                Some(ticket) = talkers.recv() => {
                    running.talkers.push(ticket);
                    running.fetch_at.get_or_insert_with(|| Instant::now() + FETCH_LINES);
                    Event::Tick
                }
                Some(_) = running.tasks.join_next(), if !running.tasks.is_empty() => Event::Tick,
                () = tokio::time::sleep(wake) => Event::Tick,
            };
            if let Event::Ended(no, _) = &event {
                running.streams.remove(no);
            }
        }
    }
}

impl Attempt {
    fn said(&self, ticket: Ticket) -> Option<Event> {
        let lines = self.logger.fetch()?;
        Some(Event::Said(ticket, Said(lines)))
    }
}

impl Running {
    fn perform(&mut self, action: Action) {
        match action {
            Action::Open(no, hello) => self.open(no, hello),
            Action::Send(no, message) => self.send(no, message),
            Action::HalfClose(no) => {
                if let Some(stream) = self.streams.get_mut(&no) {
                    stream.writer = None;
                }
            }
            Action::Cut(no) => {
                if let Some(stream) = self.streams.remove(&no) {
                    stream.reader.abort();
                }
            }
            Action::Run(ticket, job) => self.start(ticket, *job),
            Action::Stop(ticket, reason, grace) => {
                tracing::debug!(?reason, "handler told to stop");
                if let Some(attempt) = self.attempts.get(&ticket) {
                    attempt.stop.cancel();
                    let drop = attempt.drop.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(grace).await;
                        drop.cancel();
                    });
                }
            }
            Action::Report(no, request) => self.report(no, request),
            Action::Saved(waiter, saved) => {
                // A handler that was dropped does not wait any more.
                if let Some(waiter) = self.waiters.remove(&waiter) {
                    let _ = waiter.send(saved);
                }
            }
            Action::Note(note) => log(note),
            Action::End(_) => {}
        }
    }

    /// Each stream has a connection of its own: a node that drains is left by it.
    fn open(&mut self, no: StreamNo, hello: proto::LeaseJobsRequest) {
        let (writer, outgoing) = mpsc::channel(1);
        let (endpoint, events) = (self.endpoint.clone(), self.events.clone());
        let reader = self.tasks.spawn(async move {
            let end = match read(no, &endpoint, outgoing, &events).await {
                Ok(()) => End {
                    message: "the server ended the stream".to_owned(),
                    ..End::default()
                },
                Err(end) => end,
            };
            // Fails only when the pump is gone.
            let _ = events.send(Event::Ended(no, end)).await;
        });
        self.streams.insert(
            no,
            Stream {
                writer: Some(writer),
                reader,
            },
        );
        self.send(no, hello);
    }

    fn send(&mut self, no: StreamNo, message: proto::LeaseJobsRequest) {
        let Some(writer) = self
            .streams
            .get(&no)
            .and_then(|stream| stream.writer.clone())
        else {
            return;
        };
        // There is room: the sessions send only after `Written`. A closed
        // channel means that the stream ended, which its reader tells.
        if writer.try_send(message).is_ok() {
            self.written.push(Box::pin(async move {
                let _ = writer.reserve().await;
                no
            }));
        }
    }

    fn start(&mut self, ticket: Ticket, mut job: proto::LeasedJob) {
        let Some((handler, next)) = self.handlers.of(&job.kind) else {
            return;
        };
        let logger = Logger::new(ticket, self.said.clone());
        let attempt = Attempt {
            logger: logger.clone(),
            stop: CancellationToken::new(),
            drop: CancellationToken::new(),
        };
        let reporter = Reporter::new(ticket, self.progress.clone());
        let run = Run {
            ticket,
            handler,
            next,
            payload: job.payload.take().unwrap_or_default(),
            context: Context::new(
                &mut job,
                attempt.stop.clone(),
                reporter,
                logger,
                Arc::clone(&self.shared),
            ),
            drop: attempt.drop.clone(),
            finished: self.finished.clone(),
        };
        self.attempts.insert(ticket, attempt);
        // Owned by the sessions: they count it until it has reported its end.
        self.runtime.spawn(run.run());
    }

    /// What handlers have said, if it is time to ask.
    fn fetched(&mut self) -> Vec<Event> {
        if self.fetch_at.is_none_or(|at| at > Instant::now()) {
            return Vec::new();
        }
        self.fetch_at = None;
        let talkers = std::mem::take(&mut self.talkers).into_iter();
        let said = |ticket| self.attempts.get(&ticket)?.said(ticket);
        talkers.filter_map(said).collect()
    }

    /// What a handler says on the way, and who waits for it.
    fn reported(&mut self, report: Report) -> Event {
        let Report {
            ticket,
            progress,
            saved,
        } = report;
        let waiter = saved.map(|saved| {
            self.last_waiter += 1;
            let waiter = Waiter(self.last_waiter);
            self.waiters.insert(waiter, saved);
            waiter
        });
        Event::Progress(ticket, progress, waiter)
    }

    fn report(&mut self, no: SessionNo, request: proto::ReportResultsRequest) {
        let mut client = client(self.reports.clone());
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let answer = tokio::time::timeout(REPORT_TIMEOUT, client.report_results(request)).await;
            let answer = match answer {
                Ok(Ok(response)) => {
                    let receipts = response.into_inner().receipts;
                    trace(&receipts);
                    Ok(receipts)
                }
                Ok(Err(status)) => {
                    tracing::debug!(error = %CallError::from(&status), "results not reported yet");
                    Err(())
                }
                Err(_) => Err(()),
            };
            let _ = events.send(Event::Reported(no, answer)).await;
        });
    }
}

/// Connects and reads one stream to its end. It never waits for the writer.
async fn read(
    no: StreamNo,
    endpoint: &Endpoint,
    outgoing: mpsc::Receiver<proto::LeaseJobsRequest>,
    events: &mpsc::Sender<Event>,
) -> Result<(), End> {
    let channel = endpoint.connect().await.map_err(|error| End {
        message: chain(&error),
        ..End::default()
    })?;
    let answer = client(channel)
        .lease_jobs(ReceiverStream::new(outgoing))
        .await;
    let mut stream = answer.map_err(|status| end(&status))?.into_inner();
    while let Some(message) = stream.message().await.map_err(|status| end(&status))? {
        if let Some(Message::Receipts(receipts)) = &message.message {
            trace(&receipts.receipts);
        }
        if events.send(Event::Received(no, message)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn client(channel: Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn end(status: &tonic::Status) -> End {
    use tonic::Code;
    let error = CallError::from(status);
    let fatal = matches!(
        error.code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::Unauthenticated
            | Code::PermissionDenied
    );
    End {
        fatal,
        moved: error.code == Code::Aborted && error.reason == "SESSION_MOVED",
        message: error.to_string(),
        retry_after: error.retry_after,
    }
}

/// For who wants to know all that a worker was told, as it came.
fn trace(receipts: &[proto::Receipt]) {
    for receipt in receipts.iter().filter(|r| r.progress_revision == 0) {
        let lease = receipt.lease.as_ref();
        tracing::trace!(
            job_id = lease.map_or("", |lease| &lease.job_id),
            attempt = lease.map_or(0, |lease| lease.attempt),
            status = receipt.status().as_str_name(),
            state = receipt.state().as_str_name(),
            "receipt"
        );
    }
}

fn log(note: Note) {
    match note {
        Note::Connected {
            resumed: true,
            session,
            node,
        } => tracing::info!(session, node, "session goes on"),
        Note::Connected { session, node, .. } => tracing::info!(session, node, "session began"),
        Note::Reconnecting { why, pause } => {
            tracing::warn!(why, ?pause, "opening another stream")
        }
        Note::Draining => tracing::info!("the node drains"),
        Note::AskedToLeave => {
            tracing::info!("somebody has asked that this worker leaves, shutting down")
        }
        Note::SessionOver => tracing::warn!("the server has ended the session"),
        Note::Copied => tracing::warn!(
            "another process goes on with this session: is this one a copy? beginning anew"
        ),
        Note::Unrenewed => tracing::warn!("session not renewed in time, stopping its handlers"),
        Note::UnknownKind(kind) => {
            tracing::warn!(kind, "no handler for this kind, giving its jobs back")
        }
        Note::Rejected(lease, why) => {
            tracing::error!(
                job_id = lease.job_id,
                attempt = lease.attempt,
                why,
                "result refused, failing the job"
            );
        }
        Note::Stale(lease, why) => {
            tracing::info!(
                job_id = lease.job_id,
                attempt = lease.attempt,
                why,
                "result came too late to count"
            );
        }
        Note::GaveUp(lease) => {
            tracing::error!(
                job_id = lease.job_id,
                attempt = lease.attempt,
                "no verdict on this attempt"
            );
        }
    }
}
