//! The HTTP face: the same calls as over gRPC, as JSON by hand. It does no I/O of its own; the server gives it requests,
//! and it asks the engine.
//!
//! | call | is |
//! |---|---|
//! | `POST /jobs` | Enqueue; 201 with Location, 200 when the job was there before |
//! | `POST /jobs/batch` | EnqueueBatch: `{"jobs": [...]}` |
//! | `GET /jobs/{id}?wait=10s&view=` | GetJob |
//! | `GET /jobs/{id}/events?view=` | WatchJob, as server-sent events (`events.rs`) |
//! | `GET /jobs/{id}/explain` | ExplainJob: `{"findings": [{"reason", "message", "field"}]}` |
//! | `GET /jobs?queue=&kind=&state=&page_size=&page_token=&view=` | ListJobs |
//! | `POST /jobs/{id}/cancel` | CancelJob, `{"reason": "..."}` if there is one |
//! | `POST /jobs/{id}/reschedule` | RescheduleJob, `{"delay": "10s"}`, `{"run_time": "..."}`, or nothing: now |
//! | `POST /jobs/{id}/priority` | SetJobPriority, `{"priority": "HIGH"}` |
//! | `DELETE /jobs/{id}` | DeleteJob; 204 |
//! | `POST /jobs/{id}/retry` | RetryJob, `{"delay": "10s"}` if there is one; with a `payload` a copy, 201 |
//! | `GET /openapi.json` | all of this, for tools |
//! | `GET /queues?page_size=&page_token=`, `GET /queues/{queue}` | ListQueues, GetQueue |
//! | `POST /queues/{queue}/pause`, `/resume` | PauseQueue, ResumeQueue, `{"reason": "..."}` if there is one |
//! | `PATCH /queues/{queue}` | UpdateQueue: what the body names, as `{"default_timeout": "60s", "default_backoff": null}` |
//! | `POST /queues/{queue}/purge` | PurgeQueue, `{"reason": "..."}` if there is one; the answer is the bulk |
//! | `POST /bulks` | StartBulk: `{"action": "RETRY", "filter": {"queues": ["emails"], "failure_type": "Timeout"}}`; 201 with Location, 200 when it was there before |
//! | `GET /bulks?page_size=&page_token=`, `GET /bulks/{id}` | ListBulks, GetBulk |
//! | `POST /bulks/{id}/abort` | AbortBulk, `{"reason": "..."}` if there is one |
//! | `GET /queues/{queue}/events` | WatchQueue, as server-sent events (`events.rs`) |
//! | `GET /sessions?queue=&page_size=&page_token=`, `GET /sessions/{id}` | ListSessions, GetSession |
//! | `POST /sessions/{id}/drain` | DrainSession, `{"reason": "..."}` if there is one; 204 |
//! | `GET /nodes?page_size=&page_token=`, `POST /nodes/{id}/drain` | ListNodes, DrainNode |
//! | `GET /audit?page_size=&page_token=` | ListAuditEvents |
//! | `GET /livez`, `/readyz`, `/metrics` | how this node is |

mod body;
mod bulks;
mod by;
mod enqueue;
mod events;
mod health;
mod job;
mod jobs;
mod members;
mod nodes;
mod openapi;
mod problem;
mod query;
mod queues;
mod sessions;
#[cfg(test)]
mod tests;
mod time;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::header::{ALLOW, CONTENT_TYPE};

use crate::engine::Engine;
use problem::{Problem, Reason, Refusal};

/// All paths of this face. An unknown path is its to answer too, so calls of gRPC must be told apart before.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/jobs", post(jobs::enqueue).get(jobs::list))
        .route("/jobs/batch", post(jobs::enqueue_batch))
        .route("/jobs/{id}", get(jobs::get).delete(jobs::delete))
        .route("/jobs/{id}/events", get(events::watch))
        .route("/jobs/{id}/explain", get(jobs::explain))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/retry", post(jobs::retry))
        .route("/jobs/{id}/reschedule", post(jobs::reschedule))
        .route("/jobs/{id}/priority", post(jobs::set_priority))
        .route("/openapi.json", get(openapi::openapi))
        .route("/queues", get(queues::list))
        .route("/queues/{queue}", get(queues::get).patch(queues::update))
        .route("/queues/{queue}/events", get(events::watch_queue))
        .route("/queues/{queue}/pause", post(queues::pause))
        .route("/queues/{queue}/resume", post(queues::resume))
        .route("/queues/{queue}/purge", post(bulks::purge))
        .route("/bulks", post(bulks::start).get(bulks::list))
        .route("/bulks/{id}", get(bulks::get))
        .route("/bulks/{id}/abort", post(bulks::abort))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{id}/drain", post(sessions::drain))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}/drain", post(nodes::drain))
        .route("/sessions/{id}", get(sessions::get))
        .route("/audit", get(queues::audit))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .layer(from_fn_with_state(Arc::clone(&engine), finish))
        .with_state(engine)
}

/// The answer to a page that may not call.
pub fn refuse_page() -> Response {
    Problem::from(Refusal::PageForeign).into_response()
}

/// Gives the router's own refusals the form of all others, and counts what failed.
async fn finish(State(engine): State<Arc<Engine>>, request: Request, next: Next) -> Response {
    let answer = shaped(next.run(request).await);
    if let Some(Reason(reason)) = answer.extensions().get() {
        engine.metrics().failed_request("http", reason);
    }
    answer
}

fn shaped(answer: Response) -> Response {
    let ours = answer.extensions().get::<Reason>().is_some();
    let refusal = match answer.status() {
        StatusCode::NOT_FOUND if !ours => Refusal::PathUnknown,
        StatusCode::METHOD_NOT_ALLOWED if !ours => Refusal::MethodNotAllowed,
        // A path that is not UTF-8 is refused by the router with a text of its own.
        StatusCode::BAD_REQUEST if !ours => Refusal::PathUnknown,
        _ => return answer,
    };
    let mut shaped = Problem::from(refusal).into_response();
    if let Some(allow) = answer.headers().get(ALLOW) {
        shaped.headers_mut().insert(ALLOW, allow.clone());
    }
    debug_assert!(shaped.headers().contains_key(CONTENT_TYPE));
    shaped
}
