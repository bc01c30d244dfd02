//! What is watched: one stream after another, each going on where the last one broke.

use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::{Client, Repeat, TRY_TIMEOUT, backoff, worth_a_retry};
use crate::error::{CallError, Error};
use crate::proto::{self, Job, LogLine, Queue, View};

/// A server says something every 20 s; one that has been silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What becomes of a job; made by [`Client::watch`]. A [`Stream`], which can also be read
/// by [`next`](Self::next) alone.
pub struct Watch(Told<Job>);

/// What the attempts of a job say; made by [`Client::follow_log`]. A [`Stream`], which can
/// also be read by [`next`](Self::next) alone.
pub struct LogFollow(Told<Vec<LogLine>>);

/// What becomes of a queue; made by [`Client::watch_queue`]. A [`Stream`], which can also
/// be read by [`next`](Self::next) alone.
pub struct QueueWatch(Told<Queue>);

type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>;

impl Client {
    /// The job as it is now, and as it is after each change of its state or
    /// progress, until it is final; what changes fast may be told together. A basic view
    /// has no payload, output, last failure or attempts.
    ///
    /// A stream that breaks, or whose node leaves, is begun again where it was, for as
    /// long as the client's deadline allows without a word from a server. A connection
    /// carries 1,000 calls at once, watches among them.
    pub fn watch(&self, id: &str, view: View) -> Watch {
        let request = proto::WatchJobRequest {
            job_id: id.to_owned(),
            view: view.into(),
            ..Default::default()
        };
        Watch(Box::pin(self.watching(request).filter_map(|news| {
            ready(news.map(|news| news.job).transpose())
        })))
    }

    /// The lines of a job's log with higher numbers than this (0: all there are), then
    /// each new one, until the job is final: in order, and each once. Otherwise as
    /// [`watch`](Self::watch).
    pub fn follow_log(&self, id: &str, after: u64) -> LogFollow {
        let request = proto::WatchJobRequest {
            job_id: id.to_owned(),
            log: true,
            after_log: after,
            ..Default::default()
        };
        LogFollow(Box::pin(self.watching(request).filter_map(|news| {
            let lines = news.map(|news| Some(news.log).filter(|lines| !lines.is_empty()));
            ready(lines.transpose())
        })))
    }

    /// The queue as it is now, and again whenever its numbers or what is set of it have
    /// changed, about once a second at most; without end. As for [`watch`](Self::watch),
    /// a stream that breaks is begun again.
    pub fn watch_queue(&self, name: &str) -> QueueWatch {
        QueueWatch(self.watching(proto::WatchQueueRequest { queue: name.into() }))
    }

    fn watching<R: Watchable>(&self, request: R) -> Told<R::Thing> {
        let watching = Watching {
            client: self.clone(),
            request,
            stream: None,
            heard: Instant::now(),
            tries: 0,
            is_over: false,
        };
        Box::pin(stream::unfold(watching, Watching::next))
    }
}

impl Watch {
    /// The job after the next change; `None` once it was final. After an error nothing
    /// follows.
    ///
    /// # Errors
    /// [`Error::Call`], among others with reason `JOB_NOT_FOUND`, also when the job is
    /// removed while it is watched.
    pub async fn next(&mut self) -> Option<Result<Job, Error>> {
        poll_fn(|context| self.0.as_mut().poll_next(context)).await
    }
}

impl LogFollow {
    /// The next lines, at least one; `None` once the job is final and all were told. After
    /// an error nothing follows.
    ///
    /// # Errors
    /// As for [`Watch::next`].
    pub async fn next(&mut self) -> Option<Result<Vec<LogLine>, Error>> {
        poll_fn(|context| self.0.as_mut().poll_next(context)).await
    }
}

impl QueueWatch {
    /// The queue after the next change. After an error nothing follows.
    ///
    /// # Errors
    /// [`Error::Call`], among others with reason `QUEUE_NOT_FOUND`.
    pub async fn next(&mut self) -> Option<Result<Queue, Error>> {
        poll_fn(|context| self.0.as_mut().poll_next(context)).await
    }
}

impl Stream for Watch {
    type Item = Result<Job, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl Stream for LogFollow {
    type Item = Result<Vec<LogLine>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl Stream for QueueWatch {
    type Item = Result<Queue, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl std::fmt::Debug for LogFollow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogFollow")
    }
}

impl std::fmt::Debug for QueueWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueWatch")
    }
}

/// A request whose answer goes on.
trait Watchable: Clone + Send + Sync + 'static {
    type Message: Send;
    type Thing: Send;

    fn open(
        self,
        client: Client,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Message>>, Status>> + Send;

    /// What a message has to tell, and whether that was the last; `None`: nothing. The
    /// request is made to go on after it.
    fn read(
        &mut self,
        client: &Client,
        message: Self::Message,
    ) -> Option<(Result<Self::Thing, Error>, bool)>;
}

/// What one message says of a job.
struct JobNews {
    job: Option<Job>,
    log: Vec<LogLine>,
}

impl Watchable for proto::WatchJobRequest {
    type Message = proto::WatchJobResponse;
    type Thing = JobNews;

    async fn open(self, client: Client) -> Result<Response<Streaming<Self::Message>>, Status> {
        client.jobs.clone().watch_job(Request::new(self)).await
    }

    fn read(
        &mut self,
        client: &Client,
        message: Self::Message,
    ) -> Option<(Result<JobNews, Error>, bool)> {
        let log = message.log;
        if let Some(line) = log.last() {
            self.after_log = line.number;
        }
        let Some(job) = message.job else {
            return (!log.is_empty()).then(|| (Ok(JobNews { job: None, log }), false));
        };
        self.after_revision = job.revision;
        let is_final = job.is_final();
        let job = client.opened(Some(job)).map(Some);
        Some((job.map(|job| JobNews { job, log }), is_final))
    }
}

impl Watchable for proto::WatchQueueRequest {
    type Message = proto::WatchQueueResponse;
    type Thing = Queue;

    async fn open(self, client: Client) -> Result<Response<Streaming<Self::Message>>, Status> {
        client.queues.clone().watch_queue(Request::new(self)).await
    }

    fn read(&mut self, _: &Client, message: Self::Message) -> Option<(Result<Queue, Error>, bool)> {
        message.queue.map(|queue| (Ok(queue), false))
    }
}

struct Watching<R: Watchable> {
    client: Client,
    /// For the next stream.
    request: R,
    stream: Option<Streaming<R::Message>>,
    /// When a server last said something.
    heard: Instant,
    tries: u32,
    is_over: bool,
}

impl<R: Watchable> Watching<R> {
    async fn next(mut self) -> Option<(Result<R::Thing, Error>, Self)> {
        while !self.is_over {
            match self.message().await {
                Ok(Some(message)) => {
                    (self.heard, self.tries) = (Instant::now(), 0);
                    let Some((told, is_last)) = self.request.read(&self.client, message) else {
                        continue;
                    };
                    self.is_over = is_last || told.is_err();
                    return Some((told, self));
                }
                Ok(None) => self.is_over = true,
                Err(status) => {
                    self.stream = None;
                    if let Err(error) = self.pause(&status).await {
                        self.is_over = true;
                        return Some((Err(error), self));
                    }
                }
            }
        }
        None
    }

    /// The next message of the stream, which is opened if there is none.
    async fn message(&mut self) -> Result<Option<R::Message>, Status> {
        if self.stream.is_none() {
            let opening = self.request.clone().open(self.client.clone());
            let opened = timeout(TRY_TIMEOUT, opening).await;
            let opened = opened.map_err(|_| Status::unavailable("no answer in time"))??;
            self.stream = Some(opened.into_inner());
        }
        let Some(stream) = self.stream.as_mut() else {
            return Ok(None);
        };
        let message = timeout(SILENCE_MAX, stream.message()).await;
        message.map_err(|_| Status::unavailable("the stream is silent"))?
    }

    /// Waits until it is time for another try, if there is one.
    async fn pause(&mut self, status: &Status) -> Result<(), Error> {
        let error = CallError::from(status);
        let pause = backoff(self.tries).max(error.retry_after.unwrap_or_default());
        let is_late = self.heard.elapsed().saturating_add(pause) >= self.client.deadline;
        if !worth_a_retry(status, &error, Repeat::Yes) || is_late {
            return Err(Error::Call(Box::new(error)));
        }
        tracing::debug!(%error, ?pause, "a watch broke, trying again");
        tokio::time::sleep(pause).await;
        self.tries += 1;
        Ok(())
    }
}
