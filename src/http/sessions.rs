//! The calls about sessions.

use std::collections::BTreeMap;

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::IntoResponse;
use http::StatusCode;
use serde::Serialize;

use super::by::by;
use super::jobs::{Answer, Shared, json};
use super::query;
use super::queues::queue_name;
use super::time::{write_span, write_time};
use crate::error::Error;
use crate::job::SessionId;
use crate::job::id::ID_SHAPE;
use crate::store::{RunningJob, SessionRuns, SessionView};

/// `GET /sessions`
pub async fn list(State(engine): Shared, RawQuery(asked): RawQuery) -> Answer {
    let (queue, page) = query::sessions(&asked.unwrap_or_default())?;
    let queue = queue.map(|name| queue_name(&name)).transpose()?;
    let found = engine.sessions(queue, &page).await?;
    let page = SessionsJson {
        sessions: found.items.iter().map(SessionJson::of).collect(),
        next_page_token: &found.next_page_token,
    };
    json(StatusCode::OK, &page)
}

/// `POST /sessions/{id}/drain`
pub async fn drain(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let by = by(request).await?;
    engine.drain_session(session_id(&id)?, by).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /sessions/{id}`
pub async fn get(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let found = engine.session(session_id(&id)?).await?;
    json(StatusCode::OK, &RunsJson::of(&found))
}

fn session_id(text: &str) -> Result<SessionId, Error> {
    SessionId::parse(text).ok_or_else(|| Error::field("session_id", ID_SHAPE))
}

#[derive(Serialize)]
struct RunsJson<'a> {
    #[serde(flatten)]
    session: SessionJson<'a>,
    running: Vec<RunningJson<'a>>,
    more_running: bool,
}

#[derive(Serialize)]
struct RunningJson<'a> {
    job_id: String,
    attempt: u32,
    queue: &'a str,
    kind: &'a str,
    start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_left: Option<String>,
}

impl<'a> RunsJson<'a> {
    fn of(runs: &'a SessionRuns) -> Self {
        let running = |job: &'a RunningJob| RunningJson {
            job_id: job.lease.job.to_string(),
            attempt: job.lease.attempt,
            queue: job.queue.as_str(),
            kind: job.kind.as_str(),
            start_time: write_time(job.start_time),
            time_left: job.time_left.map(write_span),
        };
        Self {
            session: SessionJson::of(&runs.view),
            running: runs.running.iter().map(running).collect(),
            more_running: runs.more,
        }
    }
}

#[derive(Serialize)]
struct SessionsJson<'a> {
    sessions: Vec<SessionJson<'a>>,
    next_page_token: &'a str,
}

#[derive(Serialize)]
struct SessionJson<'a> {
    id: String,
    worker: &'a str,
    sdk: &'a str,
    node: &'a str,
    queues: Vec<SubscriptionJson<'a>>,
    kinds: &'a [String],
    max_in_flight: u32,
    in_flight: u32,
    ttl_left: String,
    draining: bool,
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct SubscriptionJson<'a> {
    queue: &'a str,
    max_in_flight: u32,
}

impl<'a> SessionJson<'a> {
    fn of(view: &'a SessionView) -> Self {
        let SessionView { profile, slots, .. } = view;
        let queues = slots.queues.iter().map(|of| SubscriptionJson {
            queue: of.queue.as_str(),
            max_in_flight: of.max_in_flight.unwrap_or(0),
        });
        Self {
            id: view.id.to_string(),
            worker: &view.worker,
            sdk: &view.sdk,
            node: &profile.node,
            queues: queues.collect(),
            kinds: &profile.kinds,
            max_in_flight: slots.max_in_flight,
            in_flight: slots.in_flight,
            ttl_left: write_span(view.ttl_left),
            draining: slots.draining,
            labels: &profile.labels,
        }
    }
}
