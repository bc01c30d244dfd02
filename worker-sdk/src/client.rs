//! For those who enqueue jobs and ask how they went.

mod watch;

use std::future::Future;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use uuid::Uuid;

pub use watch::{LogFollow, QueueWatch, Watch};

use crate::codec::{Codec, Sealer};
use crate::endpoint::endpoint;
use crate::error::{CallError, Error};
use crate::handler::from_json;
use crate::new_job::NewJob;
use crate::proto;
use proto::bulk_service_client::BulkServiceClient;
use proto::job_service_client::JobServiceClient;
use proto::queue_service_client::QueueServiceClient;
use proto::{Job, JobState};

/// One try of a call; a server that has not answered by then is asked again.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// One call of GetJob waits at most this long for the final state.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Between calls of GetJob when the server answers before the job is final.
const WAIT_PAUSE: Duration = Duration::from_millis(200);
/// No deadline lies further ahead: a hundred years.
const SPAN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// A page of 1,000 jobs with payloads is large.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A client of one server. Cheap to clone: all clones share the connection,
/// which is made again whenever it breaks.
///
/// Each call is repeated while the server is away (UNAVAILABLE, no answer in
/// time, a lost connection), with growing pauses that honour what the server
/// asks for, until the client's deadline is over. Enqueueing is safe to repeat
/// because each job carries its id.
#[derive(Clone, Debug)]
pub struct Client {
    jobs: JobServiceClient<Channel>,
    pub(crate) queues: QueueServiceClient<Channel>,
    pub(crate) bulks: BulkServiceClient<Channel>,
    pub(crate) deadline: Duration,
    actor: Option<AsciiMetadataValue>,
    sealer: Sealer,
}

/// An accepted job.
#[derive(Clone, Debug)]
pub struct Enqueued {
    /// The job as it is now, without payload and output.
    pub job: Job,
    /// It was there before: this call, or an earlier one with the same id, was repeated;
    /// or it is the one that holds the unique key.
    pub existed: bool,
}

/// May a call be repeated when it is not known whether it was carried out?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Yes,
    /// Only when the server itself says that it was not.
    IfRefused,
}

impl Client {
    /// Connects to the server at this URL (`http://host:port`).
    ///
    /// # Errors
    /// [`Error::Config`] for a bad URL; [`Error::Call`] when nobody answers there.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let connected = endpoint(url)?.connect().await;
        let channel =
            connected.map_err(|error| Error::from(Status::from_error(Box::new(error))))?;
        Ok(Self::of(channel))
    }

    /// A client that connects with its first call. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Config`] for a bad URL.
    pub fn connect_lazy(url: &str) -> Result<Self, Error> {
        Ok(Self::of(endpoint(url)?.connect_lazy()))
    }

    fn of(channel: Channel) -> Self {
        let jobs = JobServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self {
            jobs,
            queues: QueueServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
            bulks: BulkServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
            deadline: Duration::from_secs(30),
            actor: None,
            sealer: Sealer::default(),
        }
    }

    /// How long one call may take with all its tries. Default 30 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Seals payloads that are enqueued, and opens the payloads and outputs of jobs
    /// that are read. Default: none.
    #[must_use]
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.sealer = Sealer::new(codec);
        self
    }

    /// Who changes what this client changes, for the server's audit: at most 255
    /// bytes. Nobody checks that it is so. Default: nobody.
    ///
    /// # Errors
    /// [`Error::Config`] for what cannot be sent: a line break, for one.
    pub fn actor(mut self, name: &str) -> Result<Self, Error> {
        let name = AsciiMetadataValue::try_from(name.as_bytes());
        self.actor = Some(name.map_err(|error| Error::Config(format!("actor: {error}")))?);
        Ok(self)
    }

    /// Accepts a job. When this returns `Ok`, the job is durable and will reach
    /// a final state.
    ///
    /// # Errors
    /// [`Error::Call`], among others with reason `FIELD_INVALID`, `PAYLOAD_TOO_LARGE`,
    /// `ID_CONFLICT` or `KEY_CONFLICT` (the id or the idempotency key is that of another request), `UNIQUE_CONFLICT` or
    /// `STORE_UNAVAILABLE`.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued, Error> {
        let request = self.sealed(job)?;
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.enqueue(request).await
        });
        self.enqueued(answer.await?)
    }

    /// Accepts up to 1,000 jobs and 4 MiB, all or none, in the order given.
    ///
    /// # Errors
    /// As for [`enqueue`](Self::enqueue); a bad item is named by its index, as
    /// `requests[17].job.queue`.
    pub async fn enqueue_batch(
        &self,
        batch: impl IntoIterator<Item = NewJob>,
    ) -> Result<Vec<Enqueued>, Error> {
        let requests = batch
            .into_iter()
            .map(|job| self.sealed(job))
            .collect::<Result<_, _>>()?;
        let request = proto::EnqueueBatchRequest { requests };
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.enqueue_batch(request).await
        });
        let answers = answer.await?.responses.into_iter();
        answers.map(|answer| self.enqueued(answer)).collect()
    }

    /// The job as it is now, with payload, output and attempts.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`.
    pub async fn get(&self, id: &str) -> Result<Job, Error> {
        self.look(id, Duration::ZERO, self.deadline).await
    }

    /// The job as soon as it is final.
    ///
    /// # Errors
    /// [`Error::NotFinal`] with the job when it is not within `deadline`; else as
    /// [`get`](Self::get).
    pub async fn wait(&self, id: &str, deadline: Duration) -> Result<Job, Error> {
        let end = later(deadline);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = left.min(WAIT_MAX);
            let asked = Instant::now();
            // The answer comes when the wait is over, so the call has its own time beyond it.
            let time = wait.saturating_add(self.deadline);
            let job = self.look(id, wait, time).await?;
            if job.is_final() {
                return Ok(job);
            }
            if Instant::now() >= end {
                return Err(Error::NotFinal(Box::new(job)));
            }
            // A server that is about to leave answers at once: do not spin.
            if asked.elapsed() < wait {
                tokio::time::sleep(WAIT_PAUSE.min(end.saturating_duration_since(Instant::now())))
                    .await;
            }
        }
    }

    async fn look(&self, id: &str, wait: Duration, deadline: Duration) -> Result<Job, Error> {
        let request = proto::GetJobRequest {
            job_id: id.to_owned(),
            view: proto::View::Full.into(),
            wait: prost_types::Duration::try_from(wait)
                .ok()
                .filter(|_| !wait.is_zero()),
        };
        let answer = self.call_within(
            Repeat::Yes,
            deadline,
            wait + TRY_TIMEOUT,
            request,
            |mut jobs, request| async move { jobs.get_job(request).await },
        );
        self.opened(answer.await?.job)
    }

    /// Why a job waits, why it ran more than once, why it ended so: first what
    /// holds now, then what became of its attempts.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`.
    pub async fn explain(&self, id: &str) -> Result<Vec<proto::Problem>, Error> {
        let request = proto::ExplainJobRequest {
            job_id: id.to_owned(),
        };
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.explain_job(request).await
        });
        Ok(answer.await?.findings)
    }

    /// One page of jobs, newest first, with the token of the next page. A page
    /// may be short, or empty, and still have a next one.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub async fn list(
        &self,
        request: proto::ListJobsRequest,
    ) -> Result<proto::ListJobsResponse, Error> {
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.list_jobs(request).await
        });
        let mut page = answer.await?;
        for job in &mut page.jobs {
            self.sealer.open_job(job)?;
        }
        Ok(page)
    }

    /// Cancels a job, at once and finally. If it runs, its handler is told to
    /// stop. Cancelling a cancelled job is fine.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`, or `JOB_STATE` when it has
    /// succeeded or failed.
    pub async fn cancel(&self, id: &str, reason: &str) -> Result<Job, Error> {
        let request = proto::CancelJobRequest {
            job_id: id.to_owned(),
            reason: reason.to_owned(),
        };
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.cancel_job(request).await
        });
        self.opened(answer.await?.job)
    }

    /// Brings a failed or cancelled job back under its own id. Not repeated when
    /// the outcome of a try is unknown: look at the job then.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`, `JOB_STATE` in any other state, or
    /// `UNIQUE_KEY_HELD` while another job holds its unique key; [`Error::Config`] for
    /// a delay that is too long to be sent.
    pub async fn retry(&self, id: &str, delay: Option<Duration>) -> Result<Job, Error> {
        let delay = delay.map(wire).transpose()?;
        let request = proto::RetryJobRequest {
            job_id: id.to_owned(),
            delay,
            ..Default::default()
        };
        let answer = self.call(Repeat::IfRefused, request, |mut jobs, request| async move {
            jobs.retry_job(request).await
        });
        self.opened(answer.await?.job)
    }

    fn sealed(&self, job: NewJob) -> Result<proto::EnqueueRequest, Error> {
        let mut request = job.into_request()?;
        let payload = request.job.as_mut().and_then(|job| job.payload.as_mut());
        if let Some(payload) = payload {
            *payload = self.sealer.seal(std::mem::take(payload))?;
        }
        Ok(request)
    }

    fn opened(&self, job: Option<Job>) -> Result<Job, Error> {
        let mut job = job.unwrap_or_default();
        self.sealer.open_job(&mut job)?;
        Ok(job)
    }

    fn enqueued(&self, answer: proto::EnqueueResponse) -> Result<Enqueued, Error> {
        Ok(Enqueued {
            job: self.opened(answer.job)?,
            existed: answer.existed,
        })
    }

    /// Enqueues a copy of a failed or cancelled job with this payload, and leaves the
    /// job as it is. The copy's `copied_from` names it.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry) and [`enqueue`](Self::enqueue).
    pub async fn retry_copy(
        &self,
        id: &str,
        delay: Option<Duration>,
        payload: proto::Payload,
    ) -> Result<Job, Error> {
        let delay = delay.map(wire).transpose()?;
        let request = proto::RetryJobRequest {
            job_id: id.to_owned(),
            delay,
            payload: Some(self.sealer.seal(payload)?),
            // Made here, so that the call can be repeated.
            new_job_id: Uuid::now_v7().to_string(),
        };
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.retry_job(request).await
        });
        self.opened(answer.await?.job)
    }

    /// Gives a job that waits another time: after this delay from now, or now.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`, `JOB_STATE` when it does not wait,
    /// or `FIELD_INVALID`.
    pub async fn reschedule(&self, id: &str, delay: Duration) -> Result<Job, Error> {
        let delay = proto::reschedule_job_request::Start::Delay(wire(delay)?);
        self.reschedule_to(id, delay).await
    }

    /// Gives a job that waits this time.
    ///
    /// # Errors
    /// As for [`reschedule`](Self::reschedule).
    pub async fn reschedule_at(&self, id: &str, time: SystemTime) -> Result<Job, Error> {
        let time = proto::reschedule_job_request::Start::RunTime(time.into());
        self.reschedule_to(id, time).await
    }

    async fn reschedule_to(
        &self,
        id: &str,
        start: proto::reschedule_job_request::Start,
    ) -> Result<Job, Error> {
        let request = proto::RescheduleJobRequest {
            job_id: id.to_owned(),
            start: Some(start),
        };
        let answer = self.call(Repeat::IfRefused, request, |mut jobs, request| async move {
            jobs.reschedule_job(request).await
        });
        self.opened(answer.await?.job)
    }

    /// Gives a job that waits another priority.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`, or `JOB_STATE` when it does not wait.
    pub async fn set_priority(&self, id: &str, priority: proto::Priority) -> Result<Job, Error> {
        let request = proto::SetJobPriorityRequest {
            job_id: id.to_owned(),
            priority: priority.into(),
        };
        let answer = self.call(Repeat::Yes, request, |mut jobs, request| async move {
            jobs.set_job_priority(request).await
        });
        self.opened(answer.await?.job)
    }

    /// Deletes a final job before its time, with all that it holds. Not repeated when
    /// the outcome of a try is unknown: look for the job then.
    ///
    /// # Errors
    /// [`Error::Call`] with reason `JOB_NOT_FOUND`, or `JOB_STATE` when it is not final.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let request = proto::DeleteJobRequest {
            job_id: id.to_owned(),
        };
        let answer = self.call(Repeat::IfRefused, request, |mut jobs, request| async move {
            jobs.delete_job(request).await
        });
        answer.await.map(drop)
    }

    /// One call with its tries, until it is answered, refused or out of the client's time.
    async fn call<Q, A, F, Fut>(&self, repeat: Repeat, request: Q, ask: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(JobServiceClient<Channel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.call_within(repeat, self.deadline, TRY_TIMEOUT, request, ask)
            .await
    }

    /// The same in another time.
    async fn call_within<Q, A, F, Fut>(
        &self,
        repeat: Repeat,
        deadline: Duration,
        each: Duration,
        request: Q,
        ask: F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(JobServiceClient<Channel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let jobs = &self.jobs;
        self.tried(repeat, deadline, each, request, |request| {
            ask(jobs.clone(), request)
        })
        .await
    }

    /// A call that may be repeated when it is not known whether it was carried out.
    pub(crate) async fn ask<Q, A, F, Fut>(&self, request: Q, ask: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.tried(Repeat::Yes, self.deadline, TRY_TIMEOUT, request, ask)
            .await
    }

    /// One call with its tries, until it is answered, refused or out of time.
    pub(crate) async fn tried<Q, A, F, Fut>(
        &self,
        repeat: Repeat,
        deadline: Duration,
        each: Duration,
        request: Q,
        ask: F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let end = later(deadline);
        let mut tries = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(each.min(left).max(Duration::from_millis(1)));
            if let Some(actor) = &self.actor {
                attempt
                    .metadata_mut()
                    .insert("leasehold-actor", actor.clone());
            }
            let status = match ask(attempt).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let error = CallError::from(&status);
            let pause = backoff(tries).max(error.retry_after.unwrap_or_default());
            if !worth_a_retry(&status, &error, repeat) || Instant::now() + pause >= end {
                return Err(Error::Call(Box::new(error)));
            }
            tracing::debug!(%error, ?pause, "call failed, trying again");
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }
}

impl Job {
    /// True when it will not run any more, unless retried by hand.
    pub fn is_final(&self) -> bool {
        matches!(
            self.state(),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled
        )
    }

    /// What it was enqueued with, read as JSON; no payload is `null`.
    ///
    /// # Errors
    /// [`Error::Decode`] when it is something else.
    pub fn payload_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let payload = self.spec.as_ref().and_then(|spec| spec.payload.as_ref());
        from_json(payload.unwrap_or(&proto::Payload::default())).map_err(Error::Decode)
    }

    /// What its handler returned, read as JSON; no output is `null`.
    ///
    /// # Errors
    /// [`Error::Decode`] when it is something else.
    pub fn output_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        from_json(self.output.as_ref().unwrap_or(&proto::Payload::default())).map_err(Error::Decode)
    }
}

/// So long from now; a span that no clock can add, as `Duration::MAX`, ends after everything else.
fn later(span: Duration) -> Instant {
    Instant::now() + span.min(SPAN_MAX)
}

/// A delay as it is sent.
fn wire(delay: Duration) -> Result<prost_types::Duration, Error> {
    prost_types::Duration::try_from(delay)
        .map_err(|_| Error::Config(format!("delay {delay:?} is too long")))
}

/// A status with a source was made on this side: the connection broke.
fn worth_a_retry(status: &Status, error: &CallError, repeat: Repeat) -> bool {
    let refused = error.retry_after.is_some()
        && matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
    let lost = std::error::Error::source(status).is_some()
        && matches!(
            status.code(),
            Code::Unknown | Code::Internal | Code::Cancelled
        );
    refused
        || repeat == Repeat::Yes
            && (lost || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded))
}

/// Half of the exponential step, and as much again at random.
fn backoff(tries: u32) -> Duration {
    let step = BACKOFF_FIRST
        .saturating_mul(1 << tries.min(10))
        .min(BACKOFF_MAX);
    step / 2 + (step / 2).mul_f64(rand::random::<f64>())
}
