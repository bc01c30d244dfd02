//! QueueService over the engine.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use super::bulks::bulk;
use super::convert::{self, duration, timestamp};
use super::status::status;
use crate::engine::cursor::RawCursor;
use crate::engine::queues::etag;
use crate::engine::{Engine, Told};
use crate::error::{Error, Result};
use crate::job::audit::{ACTOR_FIELD, is_reason};
use crate::job::id::{ID_SHAPE, NAME_SHAPE};
use crate::job::limits::REASON_BYTES_MAX;
use crate::job::queue::RawDefaults;
use crate::job::{Actor, AuditEvent, By, Defaultable, NodeId, QueueChange, QueueName, SessionId};
use crate::proto as pb;
use crate::store::{NodeView, QueueView, RunningJob, SessionView};

/// What a mask must be, for messages.
const MASK_SHAPE: &str = "must name some of default_priority, default_max_attempts, default_backoff, default_timeout, \
     default_retention and default_expire_in, and nothing else";

/// The service.
#[derive(Debug, Clone)]
pub struct Queues(pub Arc<Engine>);

#[tonic::async_trait]
impl pb::queue_service_server::QueueService for Queues {
    async fn get_queue(
        &self,
        request: Request<pb::GetQueueRequest>,
    ) -> Result<Response<pb::GetQueueResponse>, Status> {
        self.answer(self.get(request.into_inner()).await)
    }

    type WatchQueueStream = Watching;

    async fn watch_queue(
        &self,
        request: Request<pb::WatchQueueRequest>,
    ) -> Result<Response<Watching>, Status> {
        self.answer(self.watch(request.into_inner()).await)
    }

    async fn list_queues(
        &self,
        request: Request<pb::ListQueuesRequest>,
    ) -> Result<Response<pb::ListQueuesResponse>, Status> {
        self.answer(self.list(request.into_inner()).await)
    }

    async fn pause_queue(
        &self,
        request: Request<pb::PauseQueueRequest>,
    ) -> Result<Response<pb::PauseQueueResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.pause(actor, request.into_inner()).await)
    }

    async fn resume_queue(
        &self,
        request: Request<pb::ResumeQueueRequest>,
    ) -> Result<Response<pb::ResumeQueueResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.resume(actor, request.into_inner()).await)
    }

    async fn update_queue(
        &self,
        request: Request<pb::UpdateQueueRequest>,
    ) -> Result<Response<pb::UpdateQueueResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.update(actor, request.into_inner()).await)
    }

    async fn purge_queue(
        &self,
        request: Request<pb::PurgeQueueRequest>,
    ) -> Result<Response<pb::PurgeQueueResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.purge(actor, request.into_inner()).await)
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        self.answer(self.session(request.into_inner()).await)
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        self.answer(self.sessions(request.into_inner()).await)
    }

    async fn drain_session(
        &self,
        request: Request<pb::DrainSessionRequest>,
    ) -> Result<Response<pb::DrainSessionResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.drain_session(actor, request.into_inner()).await)
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        self.answer(self.nodes(request.into_inner()).await)
    }

    async fn drain_node(
        &self,
        request: Request<pb::DrainNodeRequest>,
    ) -> Result<Response<pb::DrainNodeResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.drain_node(actor, request.into_inner()).await)
    }

    async fn list_audit_events(
        &self,
        request: Request<pb::ListAuditEventsRequest>,
    ) -> Result<Response<pb::ListAuditEventsResponse>, Status> {
        self.answer(self.audit(request.into_inner()).await)
    }
}

/// What goes to who watches a queue.
pub type Watching = Pin<Box<dyn Stream<Item = Result<pb::WatchQueueResponse, Status>> + Send>>;

impl Queues {
    fn answer<T>(&self, result: Result<T>) -> Result<Response<T>, Status> {
        result
            .map(Response::new)
            .map_err(|error| self.refuse(error))
    }

    fn refuse(&self, error: Error) -> Status {
        self.0.metrics().failed_request("grpc", error.code().reason);
        status(error)
    }

    async fn get(&self, request: pb::GetQueueRequest) -> Result<pb::GetQueueResponse> {
        let found = self.0.queue(queue_name("queue", &request.queue)?).await?;
        Ok(pb::GetQueueResponse {
            queue: Some(queue(found)),
        })
    }

    async fn watch(&self, request: pb::WatchQueueRequest) -> Result<Watching> {
        let name = queue_name("queue", &request.queue)?;
        let watch = self.0.watch_queue(name).await?;
        let told = stream::unfold(watch, |mut watch| async move {
            let told = watch.next().await?;
            Some((told, watch))
        });
        let queues = self.clone();
        Ok(Box::pin(told.map(move |told| match told {
            Ok(Told::News(view)) => Ok(pb::WatchQueueResponse {
                queue: Some(queue(*view)),
            }),
            Ok(Told::Quiet) => Ok(pb::WatchQueueResponse { queue: None }),
            Err(error) => Err(queues.refuse(error)),
        })))
    }

    async fn list(&self, request: pb::ListQueuesRequest) -> Result<pb::ListQueuesResponse> {
        let page = self
            .0
            .queues(&RawCursor {
                size: request.page_size,
                token: request.page_token,
            })
            .await?;
        Ok(pb::ListQueuesResponse {
            queues: page.items.into_iter().map(queue).collect(),
            next_page_token: page.next_page_token,
        })
    }

    async fn pause(
        &self,
        actor: Result<Actor>,
        request: pb::PauseQueueRequest,
    ) -> Result<pb::PauseQueueResponse> {
        let name = queue_name("queue", &request.queue)?;
        let by = by(actor?, request.reason)?;
        let found = self.0.steer(name, QueueChange::Pause, None, by).await?;
        Ok(pb::PauseQueueResponse {
            queue: Some(queue(found)),
        })
    }

    async fn resume(
        &self,
        actor: Result<Actor>,
        request: pb::ResumeQueueRequest,
    ) -> Result<pb::ResumeQueueResponse> {
        let name = queue_name("queue", &request.queue)?;
        let by = by(actor?, request.reason)?;
        let found = self.0.steer(name, QueueChange::Resume, None, by).await?;
        Ok(pb::ResumeQueueResponse {
            queue: Some(queue(found)),
        })
    }

    async fn update(
        &self,
        actor: Result<Actor>,
        request: pb::UpdateQueueRequest,
    ) -> Result<pb::UpdateQueueResponse> {
        let set = request.queue.unwrap_or_default();
        let name = queue_name("queue.name", &set.name)?;
        let by = by(actor?, request.reason)?;
        let which = mask(&request.update_mask.unwrap_or_default().paths)?;
        let raw = RawDefaults {
            priority: convert::priority(set.default_priority),
            max_attempts: set.default_max_attempts,
            backoff: set.default_backoff.map(convert::raw_backoff),
            timeout: set.default_timeout.map(convert::raw_span),
            retention: set.default_retention.map(convert::raw_span),
            expire_in: set.default_expire_in.map(convert::raw_span),
        };
        let to = raw.check("queue.").map_err(Error::InvalidArgument)?;
        let change = QueueChange::Update(which, to);
        let found = self.0.steer(name, change, etag(&set.etag)?, by).await?;
        Ok(pb::UpdateQueueResponse {
            queue: Some(queue(found)),
        })
    }

    async fn purge(
        &self,
        actor: Result<Actor>,
        request: pb::PurgeQueueRequest,
    ) -> Result<pb::PurgeQueueResponse> {
        let name = queue_name("queue", &request.queue)?;
        let by = by(actor?, request.reason)?;
        let (started, _) = self.0.purge_queue(name, &request.bulk_id, by).await?;
        Ok(pb::PurgeQueueResponse {
            bulk: Some(bulk(started)),
        })
    }

    async fn session(&self, request: pb::GetSessionRequest) -> Result<pb::GetSessionResponse> {
        let runs = self.0.session(session_id(&request.session_id)?).await?;
        Ok(pb::GetSessionResponse {
            session: Some(session(runs.view)),
            running: runs.running.into_iter().map(running).collect(),
            more_running: runs.more,
        })
    }

    async fn sessions(&self, request: pb::ListSessionsRequest) -> Result<pb::ListSessionsResponse> {
        let queue = match request.queue.as_str() {
            "" => None,
            name => Some(queue_name("queue", name)?),
        };
        let page = RawCursor {
            size: request.page_size,
            token: request.page_token,
        };
        let page = self.0.sessions(queue, &page).await?;
        Ok(pb::ListSessionsResponse {
            sessions: page.items.into_iter().map(session).collect(),
            next_page_token: page.next_page_token,
        })
    }

    async fn drain_session(
        &self,
        actor: Result<Actor>,
        request: pb::DrainSessionRequest,
    ) -> Result<pb::DrainSessionResponse> {
        let by = by(actor?, request.reason)?;
        self.0
            .drain_session(session_id(&request.session_id)?, by)
            .await?;
        Ok(pb::DrainSessionResponse {})
    }

    async fn nodes(&self, request: pb::ListNodesRequest) -> Result<pb::ListNodesResponse> {
        let page = self
            .0
            .nodes(&RawCursor {
                size: request.page_size,
                token: request.page_token,
            })
            .await?;
        Ok(pb::ListNodesResponse {
            nodes: page.items.into_iter().map(node).collect(),
            next_page_token: page.next_page_token,
        })
    }

    async fn drain_node(
        &self,
        actor: Result<Actor>,
        request: pb::DrainNodeRequest,
    ) -> Result<pb::DrainNodeResponse> {
        let by = by(actor?, request.reason)?;
        let node =
            NodeId::parse(&request.node_id).ok_or_else(|| Error::field("node_id", ID_SHAPE))?;
        self.0.drain_node(node, by).await?;
        Ok(pb::DrainNodeResponse {})
    }

    async fn audit(
        &self,
        request: pb::ListAuditEventsRequest,
    ) -> Result<pb::ListAuditEventsResponse> {
        let page = self
            .0
            .audit(&RawCursor {
                size: request.page_size,
                token: request.page_token,
            })
            .await?;
        Ok(pb::ListAuditEventsResponse {
            events: page.items.into_iter().map(event).collect(),
            next_page_token: page.next_page_token,
        })
    }
}

/// What a caller says of itself.
///
/// # Errors
/// `InvalidArgument`.
pub fn actor(metadata: &MetadataMap) -> Result<Actor> {
    let said = metadata
        .get_all(ACTOR_FIELD)
        .iter()
        .map(MetadataValue::as_bytes);
    Actor::said(said).map_err(|fault| Error::InvalidArgument(vec![fault]))
}

/// Who wants something, and why.
///
/// # Errors
/// `InvalidArgument`.
pub fn by(actor: Actor, reason: String) -> Result<By> {
    match is_reason(&reason) {
        true => Ok(By { actor, reason }),
        false => Err(Error::field(
            "reason",
            format!("must have at most {REASON_BYTES_MAX} bytes and no U+0000"),
        )),
    }
}

fn mask(paths: &[String]) -> Result<Defaultable> {
    let mut which = Defaultable::default();
    for path in paths {
        match path.as_str() {
            "default_priority" => which.priority = true,
            "default_max_attempts" => which.max_attempts = true,
            "default_backoff" => which.backoff = true,
            "default_timeout" => which.timeout = true,
            "default_retention" => which.retention = true,
            "default_expire_in" => which.expire_in = true,
            _ => return Err(Error::field("update_mask", MASK_SHAPE)),
        }
    }
    match which == Defaultable::default() {
        true => Err(Error::field("update_mask", MASK_SHAPE)),
        false => Ok(which),
    }
}

fn session_id(text: &str) -> Result<SessionId> {
    SessionId::parse(text).ok_or_else(|| Error::field("session_id", ID_SHAPE))
}

fn queue_name(field: &str, text: &str) -> Result<QueueName> {
    QueueName::parse(text).ok_or_else(|| Error::field(field, format!("must match {NAME_SHAPE}")))
}

fn queue(view: QueueView) -> pb::Queue {
    let QueueView {
        settings,
        revision,
        stats,
        sessions,
        free_slots,
        rates,
        as_of,
    } = view;
    let [scheduled, queued, running, succeeded, failed, cancelled] = stats.counts;
    let defaults = settings.defaults;
    pb::Queue {
        name: stats.queue.to_string(),
        paused: settings.paused,
        default_max_attempts: defaults.max_attempts.unwrap_or(0),
        default_backoff: defaults.backoff.map(|backoff| pb::Backoff {
            initial: Some(duration(backoff.initial)),
            max: Some(duration(backoff.max)),
            factor: backoff.factor,
        }),
        default_timeout: defaults.timeout.map(duration),
        default_retention: defaults.retention.map(duration),
        default_expire_in: defaults.expire_in.map(duration),
        default_priority: defaults
            .priority
            .map_or(0, |level| i32::from(level.number())),
        stats: Some(pb::QueueStats {
            scheduled,
            queued,
            running,
            succeeded,
            failed,
            cancelled,
            sessions,
            free_slots,
            oldest_wait: stats.oldest_wait.map(duration),
            as_of_time: Some(timestamp(as_of)),
            rates: Some(pb::QueueRates {
                enqueued_per_second: rates.enqueued,
                started_per_second: rates.started,
                succeeded_per_second: rates.succeeded,
                failed_per_second: rates.failed,
            }),
        }),
        etag: revision.to_string(),
    }
}

fn session(view: SessionView) -> pb::Session {
    let SessionView {
        id,
        worker,
        sdk,
        profile,
        slots,
        ttl_left,
    } = view;
    let queues = slots.queues.into_iter().map(|of| pb::QueueSubscription {
        queue: of.queue.to_string(),
        max_in_flight: of.max_in_flight.unwrap_or(0),
    });
    pb::Session {
        id: id.to_string(),
        worker,
        sdk,
        node: profile.node,
        queues: queues.collect(),
        kinds: profile.kinds,
        max_in_flight: slots.max_in_flight,
        in_flight: slots.in_flight,
        ttl_left: Some(duration(ttl_left)),
        draining: slots.draining,
        labels: profile.labels.into_iter().collect(),
    }
}

fn node(view: NodeView) -> pb::Node {
    let NodeView {
        report,
        start,
        seen,
    } = view;
    pb::Node {
        id: report.id.to_string(),
        name: report.name,
        version: report.version,
        sessions: report.sessions,
        draining: report.draining,
        start_time: Some(timestamp(start)),
        seen_time: Some(timestamp(seen)),
    }
}

fn running(job: RunningJob) -> pb::RunningJob {
    pb::RunningJob {
        job_id: job.lease.job.to_string(),
        attempt: job.lease.attempt,
        queue: job.queue.to_string(),
        kind: job.kind.to_string(),
        start_time: Some(timestamp(job.start_time)),
        time_left: job.time_left.map(duration),
    }
}

fn event(event: AuditEvent) -> pb::AuditEvent {
    pb::AuditEvent {
        time: Some(timestamp(event.time)),
        actor: event.by.actor.to_string(),
        action: i32::from(event.action.number()),
        subject: event.subject,
        count: event.count,
        reason: event.by.reason,
    }
}
