//! Who asks for a change, and why.

use axum::extract::Request;
use http::{HeaderMap, HeaderValue};

use super::body::{self, Need};
use super::jobs::SMALL_BODY_BYTES;
use super::members::Members;
use super::problem::Problem;
use crate::error::{Error, Result};
use crate::job::audit::{ACTOR_FIELD, is_reason};
use crate::job::limits::REASON_BYTES_MAX;
use crate::job::{Actor, By};

/// Who asks for a change that has nothing but its reason in its body, and why.
///
/// # Errors
/// `InvalidArgument` and what a body can have wrong.
pub async fn by(request: Request) -> Result<By, Problem> {
    let actor = actor(request.headers())?;
    let text = body::read(request, Need::Optional, SMALL_BODY_BYTES).await?;
    let mut members = Members::of(body::document(&text)?, "");
    let reason = reason(&mut members);
    body::end(members)?;
    Ok(By { actor, reason })
}

/// What a caller says of itself.
///
/// # Errors
/// `InvalidArgument`.
pub fn actor(headers: &HeaderMap) -> Result<Actor> {
    let said = headers
        .get_all(ACTOR_FIELD)
        .iter()
        .map(HeaderValue::as_bytes);
    Actor::said(said).map_err(|fault| Error::InvalidArgument(vec![fault]))
}

/// Why somebody wants it.
pub fn reason(members: &mut Members<'_>) -> String {
    let reason = members.text("reason").unwrap_or_default();
    if !is_reason(&reason) {
        let why = format!("must have at most {REASON_BYTES_MAX} bytes and no U+0000");
        members.fault("reason", why);
    }
    reason
}
