//! A job that is watched: one stream after another, each going on where the last one broke.

use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::{Instant, timeout};
use tonic::{Request, Status, Streaming};

use super::{Client, Repeat, TRY_TIMEOUT, backoff, worth_a_retry};
use crate::error::{CallError, Error};
use crate::proto::{self, Job, LogLine, View};

/// A server says something every 20 s; one that has been silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What becomes of a job; made by [`Client::watch`]. A [`Stream`], which can also be read
/// by [`next`](Self::next) alone.
pub struct Watch(Pin<Box<dyn Stream<Item = Result<Job, Error>> + Send>>);

/// What the attempts of a job say; made by [`Client::follow_log`]. A [`Stream`], which can
/// also be read by [`next`](Self::next) alone.
pub struct LogFollow(Pin<Box<dyn Stream<Item = Result<Vec<LogLine>, Error>> + Send>>);

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
        let told = stream::unfold(self.watching(request), Watching::next);
        Watch(Box::pin(told.filter_map(|told| {
            ready(told.map(|told| told.job).transpose())
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
        let told = stream::unfold(self.watching(request), Watching::next);
        LogFollow(Box::pin(told.filter_map(|told| {
            let lines = told.map(|told| Some(told.log).filter(|lines| !lines.is_empty()));
            ready(lines.transpose())
        })))
    }

    fn watching(&self, request: proto::WatchJobRequest) -> Watching {
        Watching {
            client: self.clone(),
            request,
            stream: None,
            heard: Instant::now(),
            tries: 0,
            is_over: false,
        }
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

impl Stream for LogFollow {
    type Item = Result<Vec<LogLine>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for LogFollow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogFollow")
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

impl Stream for Watch {
    type Item = Result<Job, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// What one message says.
struct Told {
    job: Option<Job>,
    log: Vec<LogLine>,
}

struct Watching {
    client: Client,
    /// For the next stream.
    request: proto::WatchJobRequest,
    stream: Option<Streaming<proto::WatchJobResponse>>,
    /// When a server last said something.
    heard: Instant,
    tries: u32,
    is_over: bool,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<Told, Error>, Self)> {
        while !self.is_over {
            match self.message().await {
                Ok(Some(response)) => {
                    (self.heard, self.tries) = (Instant::now(), 0);
                    let log = response.log;
                    if let Some(line) = log.last() {
                        self.request.after_log = line.number;
                    }
                    let Some(job) = response.job else {
                        if log.is_empty() {
                            continue;
                        }
                        return Some((Ok(Told { job: None, log }), self));
                    };
                    self.request.after_revision = job.revision;
                    self.is_over = job.is_final();
                    let job = self.client.opened(Some(job));
                    self.is_over |= job.is_err();
                    let told = job.map(|job| Told {
                        job: Some(job),
                        log,
                    });
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
    async fn message(&mut self) -> Result<Option<proto::WatchJobResponse>, Status> {
        if self.stream.is_none() {
            let mut jobs = self.client.jobs.clone();
            let opening = jobs.watch_job(Request::new(self.request.clone()));
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
