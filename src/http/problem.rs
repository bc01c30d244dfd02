//! Errors as `application/problem+json` (RFC 9457). The one place where an error becomes an HTTP answer.

use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use uuid::Uuid;

use crate::error::{Error, Violation};

/// Violations that one answer lists. A batch of 1,000 bad jobs is clear after the first.
const VIOLATIONS_SHOWN: usize = 50;

/// A call that is answered with an error.
#[derive(Debug)]
pub enum Problem {
    /// An error of the service, by its table of codes.
    Service(Error),
    /// Something that only HTTP knows.
    Refused(Refusal),
}

/// What is refused before the service has a say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is served at this path.
    PathUnknown,
    /// The path does not know this method.
    MethodNotAllowed,
    /// A browser sends it for a page from elsewhere.
    PageForeign,
    /// The body is not said to be JSON.
    ContentType,
    /// The body is larger than this many bytes.
    BodyTooLarge(usize),
    /// The body ended before it was complete.
    BodyBroken,
}

impl Refusal {
    fn row(self) -> (StatusCode, &'static str, String) {
        match self {
            Self::PathUnknown => (
                StatusCode::NOT_FOUND,
                "PATH_UNKNOWN",
                "nothing is served at this path".into(),
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "this path does not know this method; the header Allow lists those it does".into(),
            ),
            Self::PageForeign => (
                StatusCode::FORBIDDEN,
                "ORIGIN_FORBIDDEN",
                "pages of this origin may not call: see the option web_origins".into(),
            ),
            Self::ContentType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "CONTENT_TYPE_UNSUPPORTED",
                "the body must be sent with content-type: application/json".into(),
            ),
            Self::BodyTooLarge(max) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "PAYLOAD_TOO_LARGE",
                format!("the body has more than {max} bytes"),
            ),
            Self::BodyBroken => (
                StatusCode::BAD_REQUEST,
                "BODY_INCOMPLETE",
                "the body ended before it was complete".into(),
            ),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Service(error)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The stable word of the error that an answer carries, for the counter.
#[derive(Debug, Clone, Copy)]
pub struct Reason(pub &'static str);

#[derive(Serialize)]
struct Body<'a> {
    // The title says no more than the status, and for that RFC 9457 has this type; `reason` tells errors apart.
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Item<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

#[derive(Serialize)]
struct Item<'a> {
    field: &'a str,
    message: &'a str,
}

/// A problem as it is sent.
pub struct Written {
    status: StatusCode,
    reason: &'static str,
    /// The body.
    pub text: String,
}

impl Problem {
    /// Writes it down. The cause of an internal error goes to the log, under the id that is told.
    pub fn written(&self) -> Written {
        let (status, reason, detail) = match self {
            Self::Refused(refusal) => refusal.row(),
            Self::Service(error) => {
                let code = error.code();
                let status = StatusCode::from_u16(code.http);
                let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, code.reason, error.to_string())
            }
        };
        let (errors, request_id) = match self {
            Self::Service(Error::InvalidArgument(violations)) => (items(violations), None),
            Self::Service(Error::Internal(cause)) => {
                let id = Uuid::new_v4().simple().to_string();
                tracing::error!(request_id = id, error = %cause, "internal error");
                (Vec::new(), Some(id))
            }
            _ => (Vec::new(), None),
        };
        let body = Body {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail,
            reason,
            errors,
            request_id,
        };
        Written {
            status,
            reason,
            text: serde_json::to_string(&body).unwrap_or_default(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Written {
            status,
            reason,
            text,
        } = self.written();
        let mut response = (status, text).into_response();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match &self {
            // The rest of such a body is not read, so nothing can follow it.
            Self::Refused(Refusal::BodyTooLarge(_)) | Self::Service(Error::BodyTimeout(_)) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Service(error) => {
                if let Some(after) = error.retry_after() {
                    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
                    headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
                }
            }
            Self::Refused(_) => {}
        }
        response.extensions_mut().insert(Reason(reason));
        response
    }
}

fn items(violations: &[Violation]) -> Vec<Item<'_>> {
    violations
        .iter()
        .take(VIOLATIONS_SHOWN)
        .map(|violation| Item {
            field: &violation.field,
            message: &violation.why,
        })
        .collect()
}
