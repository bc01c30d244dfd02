//! How this node is: for those who restart it, for those who send it requests, and for those who draw graphs.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::problem::Problem;
use crate::engine::{Engine, Health};

/// `GET /livez`: the process answers. It says nothing about the stores: a restart does not bring them back.
pub async fn live() -> &'static str {
    "alive\n"
}

/// `GET /readyz`: 200 while this node can do its work, though perhaps slower (`degraded: redis`); 503 while it cannot,
/// or is leaving.
pub async fn ready(State(engine): State<Arc<Engine>>) -> Response {
    let Health {
        store,
        ready_list,
        draining,
    } = engine.health();
    let (status, text) = match (draining, store, ready_list) {
        (true, ..) => (StatusCode::SERVICE_UNAVAILABLE, "not ready: draining\n"),
        (_, false, _) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the store is not available\n",
        ),
        (_, _, false) => (StatusCode::OK, "ready\ndegraded: redis\n"),
        _ => (StatusCode::OK, "ready\n"),
    };
    (status, text).into_response()
}

/// `GET /metrics`, in the Prometheus text format.
pub async fn metrics(State(engine): State<Arc<Engine>>) -> Result<Response, Problem> {
    let text = engine.metrics().render()?;
    let mut response = text.into_response();
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    Ok(response)
}
