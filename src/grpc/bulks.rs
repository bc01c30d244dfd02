//! BulkService over the engine.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::convert::{self, duration, timestamp};
use super::queues::{actor, by};
use super::status::status;
use crate::engine::Engine;
use crate::engine::bulks::{RawBulk, RawCanary, read_id};
use crate::engine::cursor::RawCursor;
use crate::error::{Error, Result};
use crate::job::{Actor, Priority};
use crate::proto as pb;
use crate::store::Bulk;

/// The service.
#[derive(Debug, Clone)]
pub struct Bulks(pub Arc<Engine>);

#[tonic::async_trait]
impl pb::bulk_service_server::BulkService for Bulks {
    async fn start_bulk(
        &self,
        request: Request<pb::StartBulkRequest>,
    ) -> Result<Response<pb::StartBulkResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.start(actor, request.into_inner()).await)
    }

    async fn get_bulk(
        &self,
        request: Request<pb::GetBulkRequest>,
    ) -> Result<Response<pb::GetBulkResponse>, Status> {
        self.answer(self.get(request.into_inner()).await)
    }

    async fn list_bulks(
        &self,
        request: Request<pb::ListBulksRequest>,
    ) -> Result<Response<pb::ListBulksResponse>, Status> {
        self.answer(self.list(request.into_inner()).await)
    }

    async fn abort_bulk(
        &self,
        request: Request<pb::AbortBulkRequest>,
    ) -> Result<Response<pb::AbortBulkResponse>, Status> {
        let actor = actor(request.metadata());
        self.answer(self.abort(actor, request.into_inner()).await)
    }
}

impl Bulks {
    fn answer<T>(&self, result: Result<T>) -> Result<Response<T>, Status> {
        result.map(Response::new).map_err(|error| {
            self.0.metrics().failed_request("grpc", error.code().reason);
            status(error)
        })
    }

    async fn start(
        &self,
        actor: Result<Actor>,
        request: pb::StartBulkRequest,
    ) -> Result<pb::StartBulkResponse> {
        let by = by(actor?, request.reason)?;
        let raw = RawBulk {
            id: request.bulk_id,
            action: request.action,
            filter: request.filter.map(convert::raw_filter),
            priority: convert::priority(request.priority),
            dry_run: request.dry_run,
            rate: request.rate,
            canary: request.canary.map(|canary| RawCanary {
                size: canary.size,
                max_failed_share: canary.max_failed_share,
                within: canary.within.map(convert::raw_span),
            }),
        };
        let fresh = self.0.ids().await.fresh();
        let new = raw.check(by, fresh).map_err(Error::InvalidArgument)?;
        let (started, existed) = self.0.start_bulk(new).await?;
        Ok(pb::StartBulkResponse {
            bulk: Some(bulk(started)),
            existed,
        })
    }

    async fn get(&self, request: pb::GetBulkRequest) -> Result<pb::GetBulkResponse> {
        let found = self.0.bulk(read_id(&request.bulk_id)?).await?;
        Ok(pb::GetBulkResponse {
            bulk: Some(bulk(found)),
        })
    }

    async fn list(&self, request: pb::ListBulksRequest) -> Result<pb::ListBulksResponse> {
        let page = self
            .0
            .bulks(&RawCursor {
                size: request.page_size,
                token: request.page_token,
            })
            .await?;
        Ok(pb::ListBulksResponse {
            bulks: page.items.into_iter().map(bulk).collect(),
            next_page_token: page.next_page_token,
        })
    }

    async fn abort(
        &self,
        actor: Result<Actor>,
        request: pb::AbortBulkRequest,
    ) -> Result<pb::AbortBulkResponse> {
        let id = read_id(&request.bulk_id)?;
        let by = by(actor?, request.reason)?;
        let aborted = self.0.abort_bulk(id, by).await?;
        Ok(pb::AbortBulkResponse {
            bulk: Some(bulk(aborted)),
        })
    }
}

/// A bulk to send.
pub fn bulk(bulk: Bulk) -> pb::Bulk {
    let Bulk {
        id,
        action,
        filter,
        dry_run,
        rate,
        canary,
        state,
        counts,
        stage,
        sample,
        by,
        create_time,
        end_time,
        error,
    } = bulk;
    let has_stage = canary.is_some() && stage.released > 0;
    pb::Bulk {
        id: id.to_string(),
        action: i32::from(action.number()),
        filter: Some(convert::filter(filter)),
        priority: action.priority().map(Priority::number).map_or(0, i32::from),
        dry_run,
        rate: rate.unwrap_or(0),
        canary: canary.map(|canary| pb::Canary {
            size: canary.size,
            max_failed_share: Some(canary.max_failed_share),
            within: Some(duration(canary.within)),
        }),
        state: i32::from(state.number()),
        total: counts.total,
        done: counts.done,
        skipped: counts.skipped,
        failed: counts.failed,
        left: counts.left(),
        stage: has_stage.then_some(pb::CanaryStage {
            size: stage.size,
            released: stage.released,
            settled: stage.settled,
            failed: stage.failed,
        }),
        sample_job_ids: sample.iter().map(ToString::to_string).collect(),
        actor: by.actor.to_string(),
        reason: by.reason,
        create_time: Some(timestamp(create_time)),
        end_time: end_time.map(timestamp),
        error,
    }
}
