//! The calls about bulks.

use std::collections::BTreeMap;

use axum::extract::{Path, RawQuery, Request, State};
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use super::body::{self, Need};
use super::by::{actor, by, reason};
use super::enqueue::priority;
use super::jobs::{Answer, SMALL_BODY_BYTES, Shared, json};
use super::members::Members;
use super::query;
use super::queues::queue_name;
use super::time::{write_span, write_time};
use crate::engine::bulks::{RawBulk, RawCanary, read_id};
use crate::engine::page::RawPage;
use crate::error::Error;
use crate::job::{BulkAction, By, Priority};
use crate::store::{Bulk, JobFilter};

/// Bytes of the body of a call that has a filter: labels may be 16 KiB.
const BODY_BYTES: usize = 64 * 1024;

/// `POST /bulks`
pub async fn start(State(engine): Shared, RawQuery(asked): RawQuery, request: Request) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Required, BODY_BYTES).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let raw = RawBulk {
        id: members.text("bulk_id").unwrap_or_default(),
        action: action(&mut members),
        filter: members.object("filter").map(|mut inner| {
            let raw = filter(&mut inner);
            members.close(inner);
            raw
        }),
        priority: priority(&mut members, "priority"),
        dry_run: members.flag("dry_run").unwrap_or_default(),
        rate: members.number("rate").unwrap_or_default(),
        canary: members.object("canary").map(|mut inner| {
            let raw = RawCanary {
                size: inner.number("size").unwrap_or_default(),
                max_failed_share: inner.real("max_failed_share"),
                within: inner.span("within"),
            };
            members.close(inner);
            raw
        }),
    };
    let reason = reason(&mut members);
    body::end(members)?;
    let by = By { actor, reason };
    let fresh = engine.ids().await.fresh();
    let new = raw.check(by, fresh).map_err(Error::InvalidArgument)?;
    let (bulk, existed) = engine.start_bulk(new).await?;
    let status = match existed {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    let body = BulkJson {
        existed: Some(existed),
        ..BulkJson::of(&bulk)
    };
    let mut answer = json(status, &body)?;
    if let Ok(place) = HeaderValue::try_from(format!("/bulks/{}", bulk.id)) {
        answer.headers_mut().insert(LOCATION, place);
    }
    Ok(answer)
}

/// `GET /bulks/{id}`
pub async fn get(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let found = engine.bulk(read_id(&id)?).await?;
    json(StatusCode::OK, &BulkJson::of(&found))
}

/// `GET /bulks`
pub async fn list(State(engine): Shared, RawQuery(asked): RawQuery) -> Answer {
    let page = query::page(&asked.unwrap_or_default())?;
    let found = engine.bulks(&page).await?;
    let page = BulksJson {
        bulks: found.items.iter().map(BulkJson::of).collect(),
        next_page_token: &found.next_page_token,
    };
    json(StatusCode::OK, &page)
}

/// `POST /bulks/{id}/abort`
pub async fn abort(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let id = read_id(&id)?;
    let by = by(request).await?;
    let aborted = engine.abort_bulk(id, by).await?;
    json(StatusCode::OK, &BulkJson::of(&aborted))
}

/// `POST /queues/{queue}/purge`
pub async fn purge(
    State(engine): Shared,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let queue = queue_name(&name)?;
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Optional, SMALL_BODY_BYTES).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let id = members.text("bulk_id").unwrap_or_default();
    let reason = reason(&mut members);
    body::end(members)?;
    let (bulk, _) = engine.purge_queue(queue, &id, By { actor, reason }).await?;
    json(StatusCode::OK, &BulkJson::of(&bulk))
}

/// The number of an action that is given by its name or its number; 0: it is not given.
fn action(members: &mut Members<'_>) -> i32 {
    let Some(raw) = members.value("action") else {
        return 0;
    };
    if let Ok(number) = serde_json::from_str(raw.get()) {
        return number;
    }
    let name: String = serde_json::from_str(raw.get()).unwrap_or_default();
    let short = name.strip_prefix("BULK_ACTION_").unwrap_or(&name);
    let numbers = (1..).zip(BulkAction::NAMES);
    numbers
        .filter(|(_, name)| *name == short)
        .map(|(number, _)| number)
        .next()
        .unwrap_or(0)
}

fn filter(members: &mut Members<'_>) -> RawPage {
    RawPage {
        queues: members.texts("queues"),
        kinds: members.texts("kinds"),
        states: members
            .texts("states")
            .into_iter()
            .map(query::state)
            .collect(),
        labels: members.words("labels"),
        created_after: members.time("created_after"),
        created_before: members.time("created_before"),
        finished_after: members.time("finished_after"),
        finished_before: members.time("finished_before"),
        failure_type: members.text("failure_type").unwrap_or_default(),
        ..RawPage::default()
    }
}

#[derive(Serialize)]
struct BulksJson<'a> {
    bulks: Vec<BulkJson<'a>>,
    next_page_token: &'a str,
}

#[derive(Serialize)]
struct BulkJson<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    action: &'static str,
    filter: FilterJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<&'static str>,
    dry_run: bool,
    rate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<CanaryJson>,
    state: &'static str,
    total: u64,
    done: u64,
    skipped: u64,
    failed: u64,
    left: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<StageJson>,
    sample_job_ids: Vec<String>,
    actor: &'a str,
    reason: &'a str,
    create_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct FilterJson<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    queues: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<&'a str>,
    states: Vec<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_type: Option<&'a str>,
}

#[derive(Serialize)]
struct CanaryJson {
    size: u32,
    max_failed_share: f64,
    within: String,
}

#[derive(Serialize)]
struct StageJson {
    size: u32,
    released: u32,
    settled: u32,
    failed: u32,
}

impl<'a> BulkJson<'a> {
    fn of(bulk: &'a Bulk) -> Self {
        let (counts, stage) = (bulk.counts, bulk.stage);
        let has_stage = bulk.canary.is_some() && stage.released > 0;
        Self {
            id: bulk.id.to_string(),
            existed: None,
            action: bulk.action.name(),
            filter: FilterJson::of(&bulk.filter),
            priority: bulk.action.priority().map(Priority::name),
            dry_run: bulk.dry_run,
            rate: bulk.rate.unwrap_or(0),
            canary: bulk.canary.map(|canary| CanaryJson {
                size: canary.size,
                max_failed_share: canary.max_failed_share,
                within: write_span(canary.within),
            }),
            state: bulk.state.name(),
            total: counts.total,
            done: counts.done,
            skipped: counts.skipped,
            failed: counts.failed,
            left: counts.left(),
            stage: has_stage.then_some(StageJson {
                size: stage.size,
                released: stage.released,
                settled: stage.settled,
                failed: stage.failed,
            }),
            sample_job_ids: bulk.sample.iter().map(ToString::to_string).collect(),
            actor: bulk.by.actor.as_str(),
            reason: &bulk.by.reason,
            create_time: write_time(bulk.create_time),
            end_time: bulk.end_time.map(write_time),
            error: &bulk.error,
        }
    }
}

impl<'a> FilterJson<'a> {
    fn of(filter: &'a JobFilter) -> Self {
        Self {
            queues: filter.queues.iter().map(|name| name.as_str()).collect(),
            kinds: filter.kinds.iter().map(|name| name.as_str()).collect(),
            states: filter.states.iter().map(|state| state.name()).collect(),
            labels: &filter.labels,
            created_after: filter.created_after.map(write_time),
            created_before: filter.created_before.map(write_time),
            finished_after: filter.finished_after.map(write_time),
            finished_before: filter.finished_before.map(write_time),
            failure_type: filter.failure_type.as_deref(),
        }
    }
}
