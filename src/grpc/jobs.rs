//! JobService over the engine.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::convert;
use super::queues::{actor, by};
use super::status::status;
use crate::engine::page::{Names, RawPage, write_token};
use crate::engine::{Accepted, Engine, JobNews, Told};
use crate::error::{Error, Result, Violation};
use crate::job::draft::{DraftCopy, Fields, RawStart, span, start};
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_MAX, SPAN_MAX, WAIT_MAX};
use crate::job::{Actor, JobId, NewJob, Priority, View};
use crate::proto as pb;

/// The service.
#[derive(Debug, Clone)]
pub struct Jobs(pub Arc<Engine>);

#[tonic::async_trait]
impl pb::job_service_server::JobService for Jobs {
    async fn enqueue(
        &self,
        request: Request<pb::EnqueueRequest>,
    ) -> Result<Response<pb::EnqueueResponse>, Status> {
        self.answer(self.enqueue_one(request.into_inner()).await)
    }

    async fn enqueue_batch(
        &self,
        request: Request<pb::EnqueueBatchRequest>,
    ) -> Result<Response<pb::EnqueueBatchResponse>, Status> {
        self.answer(self.enqueue_all(request.into_inner().requests).await)
    }

    async fn get_job(
        &self,
        request: Request<pb::GetJobRequest>,
    ) -> Result<Response<pb::GetJobResponse>, Status> {
        self.answer(self.get(request.into_inner()).await)
    }

    type WatchJobStream = Watching;

    async fn watch_job(
        &self,
        request: Request<pb::WatchJobRequest>,
    ) -> Result<Response<Watching>, Status> {
        self.answer(self.watch(request.into_inner()).await)
    }

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Result<Response<pb::ListJobsResponse>, Status> {
        self.answer(self.list(request.into_inner()).await)
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Result<Response<pb::CancelJobResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.cancel(actor, request.into_inner()).await)
    }

    async fn retry_job(
        &self,
        request: Request<pb::RetryJobRequest>,
    ) -> Result<Response<pb::RetryJobResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.retry(actor, request.into_inner()).await)
    }

    async fn explain_job(
        &self,
        request: Request<pb::ExplainJobRequest>,
    ) -> Result<Response<pb::ExplainJobResponse>, Status> {
        self.answer(self.explain(request.into_inner()).await)
    }

    async fn reschedule_job(
        &self,
        request: Request<pb::RescheduleJobRequest>,
    ) -> Result<Response<pb::RescheduleJobResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.reschedule(actor, request.into_inner()).await)
    }

    async fn set_job_priority(
        &self,
        request: Request<pb::SetJobPriorityRequest>,
    ) -> Result<Response<pb::SetJobPriorityResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.set_priority(actor, request.into_inner()).await)
    }

    async fn delete_job(
        &self,
        request: Request<pb::DeleteJobRequest>,
    ) -> Result<Response<pb::DeleteJobResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.delete(actor, request.into_inner()).await)
    }
}

/// What goes to who watches a job.
pub type Watching = Pin<Box<dyn Stream<Item = Result<pb::WatchJobResponse, Status>> + Send>>;

impl Jobs {
    fn answer<T>(&self, result: Result<T>) -> Result<Response<T>, Status> {
        result
            .map(Response::new)
            .map_err(|error| self.refuse(error))
    }

    fn refuse(&self, error: Error) -> Status {
        self.0.metrics().failed_request("grpc", error.code().reason);
        status(error)
    }

    async fn enqueue_one(&self, request: pb::EnqueueRequest) -> Result<pb::EnqueueResponse> {
        let fields = Fields {
            item: String::new(),
            spec: "job.",
        };
        let job = convert::draft(request)
            .check(&fields, self.0.ids().await.fresh())
            .map_err(Error::InvalidArgument)?;
        Ok(enqueued(self.0.enqueue(job, fields_of).await?))
    }

    async fn enqueue_all(
        &self,
        requests: Vec<pb::EnqueueRequest>,
    ) -> Result<pb::EnqueueBatchResponse> {
        if !(1..=BATCH_MAX).contains(&requests.len()) {
            return Err(Error::field(
                "requests",
                format!("must be from 1 to {BATCH_MAX}"),
            ));
        }
        let ids = self.0.ids().await;
        let mut jobs = Vec::with_capacity(requests.len());
        let mut found = Vec::new();
        for (i, request) in requests.into_iter().enumerate() {
            let fields = Fields {
                item: format!("requests[{i}]."),
                spec: "job.",
            };
            match convert::draft(request).check(&fields, ids.fresh()) {
                Ok(job) => jobs.push(job),
                Err(violations) => found.extend(violations),
            }
        }
        let bytes = jobs.iter().map(NewJob::size).sum();
        if bytes > BATCH_BYTES_MAX {
            found.push(Violation::too_large("requests", bytes, BATCH_BYTES_MAX));
        }
        if !found.is_empty() {
            return Err(Error::InvalidArgument(found));
        }
        let field = |i: usize, name: &str| format!("requests[{i}].{}", fields_of(name));
        let accepted = self.0.enqueue_batch(jobs, field).await?;
        Ok(pb::EnqueueBatchResponse {
            responses: accepted.into_iter().map(enqueued).collect(),
        })
    }

    async fn get(&self, request: pb::GetJobRequest) -> Result<pb::GetJobResponse> {
        let id = job_id(&request.job_id)?;
        let view = view(request.view, View::Full)?;
        let wait = match request.wait {
            None => Duration::ZERO,
            Some(raw) => span(convert::raw_span(raw), Duration::ZERO, WAIT_MAX)
                .map_err(|why| Error::field("wait", why))?,
        };
        let job = self.0.get(id, view, wait).await?;
        Ok(pb::GetJobResponse {
            job: Some(convert::job(job)),
        })
    }

    async fn watch(&self, request: pb::WatchJobRequest) -> Result<Watching> {
        let id = job_id(&request.job_id)?;
        let view = view(request.view, View::Basic)?;
        let lines = request.log.then_some(request.after_log);
        let watch = self
            .0
            .watch(id, request.after_revision, view, lines)
            .await?;
        let told = stream::unfold(watch, |mut watch| async move {
            let told = watch.next().await?;
            Some((told, watch))
        });
        let jobs = self.clone();
        Ok(Box::pin(told.map(move |told| match told {
            Ok(Told::News(news)) => Ok(match *news {
                JobNews::Job(job) => pb::WatchJobResponse {
                    job: Some(convert::job(job)),
                    log: Vec::new(),
                },
                JobNews::Lines(lines) => pb::WatchJobResponse {
                    job: None,
                    log: lines.into_iter().map(convert::log_line).collect(),
                },
            }),
            Ok(Told::Quiet) => Ok(pb::WatchJobResponse::default()),
            Err(error) => Err(jobs.refuse(error)),
        })))
    }

    async fn list(&self, request: pb::ListJobsRequest) -> Result<pb::ListJobsResponse> {
        let view = view(request.view, View::Basic)?;
        let raw = RawPage {
            size: request.page_size,
            token: request.page_token,
            ..convert::raw_filter(request.filter.unwrap_or_default())
        };
        let page = raw.check(Names::OF_PROTO).map_err(Error::InvalidArgument)?;
        let listed = self
            .0
            .list(page.filter.clone(), page.before, page.size, view)
            .await?;
        Ok(pb::ListJobsResponse {
            next_page_token: listed
                .next
                .map(|next| write_token(next, &page.filter))
                .unwrap_or_default(),
            jobs: listed.jobs.into_iter().map(convert::job).collect(),
        })
    }

    async fn cancel(
        &self,
        actor: Result<Actor>,
        request: pb::CancelJobRequest,
    ) -> Result<pb::CancelJobResponse> {
        let id = job_id(&request.job_id)?;
        let by = by(actor?, request.reason)?;
        let job = self.0.cancel(id, by).await?;
        Ok(pb::CancelJobResponse {
            job: Some(convert::job(job)),
        })
    }

    async fn retry(
        &self,
        actor: Result<Actor>,
        request: pb::RetryJobRequest,
    ) -> Result<pb::RetryJobResponse> {
        let id = job_id(&request.job_id)?;
        let delay = match request.delay {
            None => Duration::ZERO,
            Some(raw) => span(convert::raw_span(raw), Duration::ZERO, SPAN_MAX)
                .map_err(|why| Error::field("delay", why))?,
        };
        let job = match request.payload {
            None if !request.new_job_id.is_empty() => {
                return Err(Error::field(
                    "new_job_id",
                    "is for a copy, which needs a payload",
                ));
            }
            None => self.0.retry(id, delay, by(actor?, String::new())?).await?,
            Some(payload) => {
                let copy = DraftCopy {
                    new_job_id: request.new_job_id,
                    payload: convert::payload(payload),
                    delay,
                };
                self.0.retry_copy(id, copy).await?.job
            }
        };
        Ok(pb::RetryJobResponse {
            job: Some(convert::job(job)),
        })
    }

    async fn reschedule(
        &self,
        actor: Result<Actor>,
        request: pb::RescheduleJobRequest,
    ) -> Result<pb::RescheduleJobResponse> {
        use pb::reschedule_job_request::Start::{Delay, RunTime};
        let id = job_id(&request.job_id)?;
        let raw = match request.start {
            None => RawStart::Now,
            Some(Delay(delay)) => RawStart::Delay(convert::raw_span(delay)),
            Some(RunTime(at)) => RawStart::At(convert::raw_time(at)),
        };
        let start = start(raw).map_err(|(field, why)| Error::field(field, why))?;
        let by = by(actor?, String::new())?;
        let job = self.0.reschedule(id, start, by).await?;
        Ok(pb::RescheduleJobResponse {
            job: Some(convert::job(job)),
        })
    }

    async fn set_priority(
        &self,
        actor: Result<Actor>,
        request: pb::SetJobPriorityRequest,
    ) -> Result<pb::SetJobPriorityResponse> {
        let id = job_id(&request.job_id)?;
        let level = i16::try_from(request.priority).ok();
        let level = level.and_then(Priority::from_number);
        let level = level.ok_or_else(|| Error::field("priority", "must be LOW, NORMAL or HIGH"))?;
        let by = by(actor?, String::new())?;
        let job = self.0.set_priority(id, level, by).await?;
        Ok(pb::SetJobPriorityResponse {
            job: Some(convert::job(job)),
        })
    }

    async fn delete(
        &self,
        actor: Result<Actor>,
        request: pb::DeleteJobRequest,
    ) -> Result<pb::DeleteJobResponse> {
        let by = by(actor?, String::new())?;
        self.0.delete(job_id(&request.job_id)?, by).await?;
        Ok(pb::DeleteJobResponse {})
    }
}

impl Jobs {
    async fn explain(&self, request: pb::ExplainJobRequest) -> Result<pb::ExplainJobResponse> {
        let found = self.0.explain(job_id(&request.job_id)?).await?;
        let findings = found.into_iter().map(|finding| pb::Problem {
            reason: finding.reason.into(),
            message: finding.message,
            field: finding.field,
        });
        Ok(pb::ExplainJobResponse {
            findings: findings.collect(),
        })
    }
}

/// Where a field of the domain's job is in an EnqueueRequest.
fn fields_of(name: &str) -> String {
    match name {
        "job_id" => name.to_owned(),
        spec => format!("job.{spec}"),
    }
}

fn enqueued(accepted: Accepted) -> pb::EnqueueResponse {
    pb::EnqueueResponse {
        job: Some(convert::job(accepted.job)),
        existed: accepted.existed,
    }
}

fn job_id(text: &str) -> Result<JobId> {
    JobId::parse(text)
        .ok_or_else(|| Error::field("job_id", "must be a UUIDv7 in its 36-character form"))
}

fn view(number: i32, default: View) -> Result<View> {
    convert::view(number, default)
        .ok_or_else(|| Error::field("view", format!("has no value {number}")))
}
