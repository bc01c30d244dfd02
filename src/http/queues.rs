//! The calls about queues, and about what was changed by hand.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, Request, State};
use http::StatusCode;
use serde::Serialize;

use super::body::{self, Need};
use super::by::{actor, by, reason};
use super::enqueue::{backoff, priority};
use super::job::BackoffJson;
use super::jobs::{Answer, SMALL_BODY_BYTES, Shared, json};
use super::members::Members;
use super::query;
use super::time::{write_span, write_time};
use crate::engine::Engine;
use crate::engine::queues::etag;
use crate::error::{Error, Result};
use crate::job::id::NAME_SHAPE;
use crate::job::queue::RawDefaults;
use crate::job::{AuditEvent, By, Defaultable, Priority, QueueChange, QueueName};
use crate::store::QueueView;

/// `GET /queues/{queue}`
pub async fn get(
    State(engine): Shared,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let found = engine.queue(queue_name(&name)?).await?;
    json(StatusCode::OK, &QueueJson::of(&found))
}

/// `GET /queues`
pub async fn list(State(engine): Shared, RawQuery(asked): RawQuery) -> Answer {
    let page = query::page(&asked.unwrap_or_default())?;
    let found = engine.queues(&page).await?;
    let page = QueuesJson {
        queues: found.items.iter().map(QueueJson::of).collect(),
        next_page_token: &found.next_page_token,
    };
    json(StatusCode::OK, &page)
}

/// `POST /queues/{queue}/pause`
pub async fn pause(
    State(engine): Shared,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    steer(&engine, QueueChange::Pause, &name, asked, request).await
}

/// `POST /queues/{queue}/resume`
pub async fn resume(
    State(engine): Shared,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    steer(&engine, QueueChange::Resume, &name, asked, request).await
}

/// `PATCH /queues/{queue}`: what the body names is changed; null is the service's default again.
pub async fn update(
    State(engine): Shared,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let queue = queue_name(&name)?;
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Required, SMALL_BODY_BYTES).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let which = Defaultable {
        priority: members.has("default_priority"),
        max_attempts: members.has("default_max_attempts"),
        backoff: members.has("default_backoff"),
        timeout: members.has("default_timeout"),
        retention: members.has("default_retention"),
        expire_in: members.has("default_expire_in"),
    };
    let raw = RawDefaults {
        priority: priority(&mut members, "default_priority"),
        max_attempts: members.number("default_max_attempts").unwrap_or_default(),
        backoff: backoff(&mut members, "default_backoff"),
        timeout: members.span("default_timeout"),
        retention: members.span("default_retention"),
        expire_in: members.span("default_expire_in"),
    };
    let expected = members.text("etag").unwrap_or_default();
    let reason = reason(&mut members);
    if which == Defaultable::default() {
        let why = "must have some of default_priority, default_max_attempts, default_backoff, default_timeout, \
                   default_retention and default_expire_in";
        members.fault_of_all(why);
    }
    body::end(members)?;
    let to = raw.check("").map_err(Error::InvalidArgument)?;
    let (change, by) = (QueueChange::Update(which, to), By { actor, reason });
    let found = engine.steer(queue, change, etag(&expected)?, by).await?;
    json(StatusCode::OK, &QueueJson::of(&found))
}

/// `GET /audit`
pub async fn audit(State(engine): Shared, RawQuery(asked): RawQuery) -> Answer {
    let page = query::page(&asked.unwrap_or_default())?;
    let found = engine.audit(&page).await?;
    let page = AuditJson {
        events: found.items.iter().map(EventJson::of).collect(),
        next_page_token: &found.next_page_token,
    };
    json(StatusCode::OK, &page)
}

async fn steer(
    engine: &Arc<Engine>,
    change: QueueChange,
    name: &str,
    asked: Option<String>,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let queue = queue_name(name)?;
    let by = by(request).await?;
    let found = engine.steer(queue, change, None, by).await?;
    json(StatusCode::OK, &QueueJson::of(&found))
}

/// A name as it came in an address.
///
/// # Errors
/// `InvalidArgument`.
pub fn queue_name(text: &str) -> Result<QueueName> {
    QueueName::parse(text).ok_or_else(|| Error::field("queue", format!("must match {NAME_SHAPE}")))
}

/// A queue, as `GET /queues/{queue}` has it.
#[derive(Serialize)]
pub struct QueueJson<'a> {
    name: &'a str,
    paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_priority: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_backoff: Option<BackoffJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_retention: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_expire_in: Option<String>,
    stats: StatsJson,
    etag: String,
}

#[derive(Serialize)]
struct StatsJson {
    scheduled: u64,
    queued: u64,
    running: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    sessions: u32,
    free_slots: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_wait: Option<String>,
    as_of_time: String,
    rates: RatesJson,
}

#[derive(Serialize)]
struct RatesJson {
    enqueued_per_second: f64,
    started_per_second: f64,
    succeeded_per_second: f64,
    failed_per_second: f64,
}

#[derive(Serialize)]
struct QueuesJson<'a> {
    queues: Vec<QueueJson<'a>>,
    next_page_token: &'a str,
}

impl<'a> QueueJson<'a> {
    /// Of what is seen of it.
    pub fn of(view: &'a QueueView) -> Self {
        let (stats, defaults) = (&view.stats, view.settings.defaults);
        let [scheduled, queued, running, succeeded, failed, cancelled] = stats.counts;
        Self {
            name: stats.queue.as_str(),
            paused: view.settings.paused,
            default_priority: defaults.priority.map(Priority::name),
            default_max_attempts: defaults.max_attempts,
            default_backoff: defaults.backoff.map(BackoffJson::of),
            default_timeout: defaults.timeout.map(write_span),
            default_retention: defaults.retention.map(write_span),
            default_expire_in: defaults.expire_in.map(write_span),
            stats: StatsJson {
                scheduled,
                queued,
                running,
                succeeded,
                failed,
                cancelled,
                sessions: view.sessions,
                free_slots: view.free_slots,
                oldest_wait: stats.oldest_wait.map(write_span),
                as_of_time: write_time(view.as_of),
                rates: RatesJson {
                    enqueued_per_second: view.rates.enqueued,
                    started_per_second: view.rates.started,
                    succeeded_per_second: view.rates.succeeded,
                    failed_per_second: view.rates.failed,
                },
            },
            etag: view.revision.to_string(),
        }
    }
}

#[derive(Serialize)]
struct EventJson<'a> {
    time: String,
    actor: &'a str,
    action: &'static str,
    subject: &'a str,
    count: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct AuditJson<'a> {
    events: Vec<EventJson<'a>>,
    next_page_token: &'a str,
}

impl<'a> EventJson<'a> {
    fn of(event: &'a AuditEvent) -> Self {
        Self {
            time: write_time(event.time),
            actor: event.by.actor.as_str(),
            action: event.action.name(),
            subject: &event.subject,
            count: event.count,
            reason: &event.by.reason,
        }
    }
}
