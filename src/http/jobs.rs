//! The calls about jobs.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use super::body::{self, Need};
use super::by::{actor, by};
use super::enqueue::{self as asked_for, JSON, new_job};
use super::job::{BatchJson, FindingsJson, JobJson, PageJson};
use super::members::{Members, items};
use super::problem::Problem;
use super::query;
use crate::engine::page::{PageRequest, write_token};
use crate::engine::{Accepted, Engine, Ids};
use crate::error::{Error, Result, Violation};
use crate::job::draft::{DraftCopy, span, start};
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_MAX, BODY_BYTES_MAX, SPAN_MAX};
use crate::job::{Actor, By, JobId, NewJob, Start};

/// What a call gives.
pub type Answer = std::result::Result<Response, Problem>;
/// What all calls share.
pub type Shared = State<Arc<Engine>>;

const KEY_HEADER: &str = "Idempotency-Key";
/// Bytes of the body of a call that has few fields.
pub const SMALL_BODY_BYTES: usize = 16 * 1024;

/// `POST /jobs`
pub async fn enqueue(State(engine): Shared, RawQuery(asked): RawQuery, request: Request) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let key = idempotency_key(request.headers())?;
    let text = body::read(request, Need::Required, BODY_BYTES_MAX).await?;
    let id = engine.ids().await.fresh();
    let job = new_job(body::document(&text)?, "", id, key);
    // The body is not needed while the call waits for the store.
    drop(text);
    let job = job.map_err(Error::InvalidArgument)?;
    let Accepted { job, existed } = engine.enqueue(job, str::to_owned).await?;
    let status = match existed {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    let mut answer = json(status, &JobJson::of(&job))?;
    if let Ok(place) = HeaderValue::try_from(format!("/jobs/{}", job.id)) {
        answer.headers_mut().insert(LOCATION, place);
    }
    Ok(answer)
}

/// `POST /jobs/batch`
pub async fn enqueue_batch(
    State(engine): Shared,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    if idempotency_key(request.headers())?.is_some() {
        let why = "is for one job; in a batch each job may have an idempotency_key";
        return Err(Error::field(KEY_HEADER, why).into());
    }
    let text = body::read(request, Need::Required, BODY_BYTES_MAX).await?;
    let jobs = batch(&text, engine.ids().await)?;
    drop(text);
    let field = |index: usize, name: &str| format!("jobs[{index}].{name}");
    let done = engine.enqueue_batch(jobs, field).await?;
    let status = match done.iter().all(|accepted| accepted.existed) {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    let jobs = done
        .iter()
        .map(|Accepted { job, existed }| JobJson::enqueued(job, *existed))
        .collect();
    json(status, &BatchJson { jobs })
}

/// `GET /jobs/{id}`
pub async fn get(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
) -> Answer {
    let (view, wait) = query::get(&asked.unwrap_or_default())?;
    let job = engine.get(job_id(&id)?, view, wait).await?;
    json(StatusCode::OK, &JobJson::of(&job))
}

/// `GET /jobs/{id}/explain`
pub async fn explain(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let found = engine.explain(job_id(&id)?).await?;
    json(StatusCode::OK, &FindingsJson::of(&found))
}

/// `GET /jobs`
pub async fn list(State(engine): Shared, RawQuery(asked): RawQuery) -> Answer {
    let (
        PageRequest {
            filter,
            before,
            size,
        },
        view,
    ) = query::list(&asked.unwrap_or_default())?;
    let found = engine.list(filter.clone(), before, size, view).await?;
    let token = found.next.map(|next| write_token(next, &filter));
    let page = PageJson {
        jobs: found.jobs.iter().map(JobJson::of).collect(),
        next_page_token: token.unwrap_or_default().into(),
    };
    json(StatusCode::OK, &page)
}

/// `POST /jobs/{id}/cancel`
pub async fn cancel(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let id = job_id(&id)?;
    let by = by(request).await?;
    let job = engine.cancel(id, by).await?;
    json(StatusCode::OK, &JobJson::of(&job))
}

/// `POST /jobs/{id}/reschedule`
pub async fn reschedule(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let id = job_id(&id)?;
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Optional, SMALL_BODY_BYTES).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let start = start(asked_for::start(&mut members)).unwrap_or_else(|(field, why)| {
        members.fault(field, why);
        Start::Now
    });
    body::end(members)?;
    let job = engine.reschedule(id, start, unsaid(actor)).await?;
    json(StatusCode::OK, &JobJson::of(&job))
}

/// `POST /jobs/{id}/priority`
pub async fn set_priority(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let id = job_id(&id)?;
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Required, SMALL_BODY_BYTES).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let asked = asked_for::priority(&mut members, "priority").and_then(Result::ok);
    body::end(members)?;
    let level = asked.ok_or_else(|| Error::field("priority", "must be LOW, NORMAL or HIGH"))?;
    let job = engine.set_priority(id, level, unsaid(actor)).await?;
    json(StatusCode::OK, &JobJson::of(&job))
}

/// `DELETE /jobs/{id}`
pub async fn delete(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    headers: HeaderMap,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let by = unsaid(actor(&headers)?);
    engine.delete(job_id(&id)?, by).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /jobs/{id}/retry`
pub async fn retry(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let id = job_id(&id)?;
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Optional, BODY_BYTES_MAX).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let mut delay = std::time::Duration::ZERO;
    if let Some(raw) = members.span("delay") {
        match span(raw, delay, SPAN_MAX) {
            Ok(read) => delay = read,
            Err(why) => members.fault("delay", why),
        }
    }
    let (payload, _) = asked_for::payload(&mut members);
    let new_job_id = members.text("new_job_id").unwrap_or_default();
    if payload.is_none() && !new_job_id.is_empty() {
        members.fault("new_job_id", "is for a copy, which needs a payload");
    }
    body::end(members)?;
    let Some(payload) = payload else {
        let by = unsaid(actor);
        let job = engine.retry(id, delay, by).await?;
        return json(StatusCode::OK, &JobJson::of(&job));
    };
    let copy = DraftCopy {
        new_job_id,
        payload,
        delay,
    };
    let Accepted { job, existed } = engine.retry_copy(id, copy).await?;
    let status = match existed {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    json(status, &JobJson::of(&job))
}

fn batch(text: &str, ids: Ids) -> Result<Vec<NewJob>> {
    let mut members = Members::of(body::document(text)?, "");
    let listed = members.value("jobs").map(|raw| items(raw, BATCH_MAX));
    let listed = match listed {
        None => Err("must hold 1 to 1,000 jobs".into()),
        Some(Ok(none)) if none.is_empty() => Err("must hold 1 to 1,000 jobs".into()),
        Some(listed) => listed,
    };
    let listed = listed.unwrap_or_else(|why: String| {
        members.fault("jobs", why);
        Vec::new()
    });
    body::end(members)?;

    let mut jobs = Vec::with_capacity(listed.len());
    let mut faults = Vec::new();
    let mut bytes = 0_usize;
    for (index, raw) in listed.into_iter().enumerate() {
        match new_job(raw, &format!("jobs[{index}]."), ids.fresh(), None) {
            Ok(job) => {
                bytes = bytes.saturating_add(job.size());
                jobs.push(job);
            }
            Err(more) => faults.extend(more),
        }
        // What is wrong with the first fifty is enough to know, and bounds what one call can cost.
        if faults.len() >= 50 {
            break;
        }
    }
    if bytes > BATCH_BYTES_MAX {
        faults.push(Violation::too_large("jobs", bytes, BATCH_BYTES_MAX));
    }
    match faults.is_empty() {
        true => Ok(jobs),
        false => Err(Error::InvalidArgument(faults)),
    }
}

/// The key that came as a header.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value.to_str().ok().filter(|key| !key.is_empty());
    match (key, values.next()) {
        (Some(key), None) => Ok(Some(key.to_owned())),
        _ => Err(Error::field(
            KEY_HEADER,
            "must be given once, in visible ASCII",
        )),
    }
}

/// Somebody who does not say why.
fn unsaid(actor: Actor) -> By {
    By {
        actor,
        ..By::default()
    }
}

pub(super) fn job_id(text: &str) -> Result<JobId> {
    JobId::parse(text)
        .ok_or_else(|| Error::field("job_id", "must be a UUIDv7 in its 36-character form"))
}

/// An answer in JSON.
pub fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let text = serde_json::to_string(body).map_err(Error::internal)?;
    let mut response = (status, text).into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    Ok(response)
}
