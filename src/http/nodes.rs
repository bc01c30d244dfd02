//! The calls about nodes.

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::IntoResponse;
use http::StatusCode;
use serde::Serialize;

use super::by::by;
use super::jobs::{Answer, Shared, json};
use super::query;
use super::time::write_time;
use crate::error::Error;
use crate::job::NodeId;
use crate::job::id::ID_SHAPE;
use crate::store::NodeView;

/// `GET /nodes`
pub async fn list(State(engine): Shared, RawQuery(asked): RawQuery) -> Answer {
    let page = query::page(&asked.unwrap_or_default())?;
    let found = engine.nodes(&page).await?;
    let page = NodesJson {
        nodes: found.items.iter().map(NodeJson::of).collect(),
        next_page_token: &found.next_page_token,
    };
    json(StatusCode::OK, &page)
}

/// `POST /nodes/{id}/drain`
pub async fn drain(
    State(engine): Shared,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
    request: Request,
) -> Answer {
    query::none(&asked.unwrap_or_default())?;
    let by = by(request).await?;
    let node = NodeId::parse(&id).ok_or_else(|| Error::field("node_id", ID_SHAPE))?;
    engine.drain_node(node, by).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Serialize)]
struct NodesJson<'a> {
    nodes: Vec<NodeJson<'a>>,
    next_page_token: &'a str,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    id: String,
    name: &'a str,
    version: &'a str,
    sessions: u32,
    draining: bool,
    start_time: String,
    seen_time: String,
}

impl<'a> NodeJson<'a> {
    fn of(view: &'a NodeView) -> Self {
        let NodeView {
            report,
            start,
            seen,
        } = view;
        Self {
            id: report.id.to_string(),
            name: &report.name,
            version: &report.version,
            sessions: report.sessions,
            draining: report.draining,
            start_time: write_time(*start),
            seen_time: write_time(*seen),
        }
    }
}
