//! Browsers: which pages may call this server.
//!
//! A browser lets any page send requests to any server, this one on loopback included, and only keeps the answers from it.
//! It says which page asks, by `Origin`; so one that is neither ours nor named is refused before it can do anything.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONTENT_TYPE, HOST, LOCATION, ORIGIN, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::CorsLayer;

/// How long a browser may go by what it was told.
const TOLD_FOR: Duration = Duration::from_secs(2 * 60 * 60);

/// Pages that may call.
#[derive(Clone)]
pub struct Pages {
    origins: Vec<HeaderValue>,
    cors: CorsLayer,
}

/// Whose page asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// No page does, or one that was loaded from here.
    Ours,
    /// One that is named.
    Named,
    /// Any other.
    Foreign,
}

impl Pages {
    /// Pages of these origins, as `https://jobs.example.org`.
    pub fn of(origins: &[String]) -> Self {
        let origins: Vec<HeaderValue> = origins
            .iter()
            .filter_map(|origin| HeaderValue::try_from(origin).ok())
            .collect();
        let name = HeaderName::from_static;
        let cors = CorsLayer::new()
            .allow_origin(origins.clone())
            .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
            .allow_headers([
                CONTENT_TYPE,
                name("grpc-timeout"),
                name("idempotency-key"),
                name("last-event-id"),
                name("leasehold-actor"),
                name("x-grpc-web"),
                name("x-user-agent"),
            ])
            .expose_headers([
                LOCATION,
                RETRY_AFTER,
                name("grpc-message"),
                name("grpc-status"),
                name("grpc-status-details-bin"),
            ])
            .max_age(TOLD_FOR);
        Self { origins, cors }
    }

    /// Whose page sends this.
    pub fn page<B>(&self, request: &Request<B>) -> Page {
        let Some(origin) = request.headers().get(ORIGIN) else {
            return Page::Ours;
        };
        let host = match request.headers().get(HOST) {
            Some(host) => Some(host.as_bytes()),
            None => request
                .uri()
                .authority()
                .map(|host| host.as_str().as_bytes()),
        };
        let from = origin.as_bytes();
        let from = from
            .strip_prefix(b"http://")
            .or_else(|| from.strip_prefix(b"https://"));
        if from.is_some() && from == host {
            Page::Ours
        } else if self.origins.contains(origin) {
            Page::Named
        } else {
            Page::Foreign
        }
    }

    /// Answers a named page by `face`, with what its browser wants to be told; asks before a call are answered here.
    pub async fn answer<S>(
        &self,
        request: Request<Incoming>,
        face: S,
    ) -> Result<Response<Body>, Infallible>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    {
        self.cors.layer(face).oneshot(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_ours_or_named_or_foreign() {
        let pages = Pages::of(&["https://a.example".into()]);
        let page = |origin: &str, host: &str| {
            let request = Request::builder().header(ORIGIN, origin).header(HOST, host);
            pages.page(&request.body(()).unwrap())
        };
        assert_eq!(page("http://127.0.0.1:7070", "127.0.0.1:7070"), Page::Ours);
        assert_eq!(page("https://a.example", "127.0.0.1:7070"), Page::Named);
        for origin in [
            "https://b.example",
            "null",
            "http://127.0.0.1:7071",
            "file://x",
        ] {
            assert_eq!(page(origin, "127.0.0.1:7070"), Page::Foreign, "{origin}");
        }
        assert_eq!(pages.page(&Request::new(())), Page::Ours);
    }
}
