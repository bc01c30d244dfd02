//! A request's body: bounded in size and time before anything is read of it, then text, then JSON.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use serde_json::value::RawValue;

use super::members::{Members, items};
use super::problem::{Problem, Refusal};
use crate::error::{Error, Violation};
use crate::job::limits::{BATCH_MAX, BODY_WITHIN, JSON_DEPTH_MAX};

/// Bytes beyond the limit that are read and dropped.
const DISCARDED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Dropping them takes no longer.
const DISCARD_WITHIN: Duration = Duration::from_secs(2);

/// Whether a call can do without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It cannot.
    Required,
    /// No body, or an empty one, is an empty object.
    Optional,
}

/// Reads a JSON body of at most `max` bytes as text.
///
/// # Errors
/// 415, 413, 408, or 400 with what is wrong with the text.
pub async fn read(request: Request, need: Need, max: usize) -> Result<String, Problem> {
    let (parts, body) = request.into_parts();
    let json = is_json(&parts.headers);
    if !json && need == Need::Required {
        return Err(Refusal::ContentType.into());
    }
    let bytes = collect(body, max, BODY_WITHIN).await?;
    if bytes.is_empty() && need == Need::Optional {
        return Ok("{}".into());
    }
    if !json {
        return Err(Refusal::ContentType.into());
    }
    String::from_utf8(bytes).map_err(|broken| {
        let at = broken.utf8_error().valid_up_to();
        let field = field_at(&String::from_utf8_lossy(broken.as_bytes()), at);
        Error::field(field, "is not UTF-8").into()
    })
}

/// The document in a body's text.
///
/// # Errors
/// `InvalidArgument` for `body`: not JSON, or nested too deeply.
pub fn document(text: &str) -> Result<&RawValue, Error> {
    if depth(text.as_bytes()) > JSON_DEPTH_MAX {
        let why = format!("is nested deeper than {JSON_DEPTH_MAX}");
        return Err(Error::field("body", why));
    }
    serde_json::from_str(text).map_err(|why| Error::field("body", format!("is not JSON: {why}")))
}

/// Ends the reading of an object.
///
/// # Errors
/// `InvalidArgument` when anything was wrong with it.
pub fn end(members: Members<'_>) -> Result<(), Error> {
    let faults: Vec<Violation> = members.end();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Error::InvalidArgument(faults)),
    }
}

/// How deep brackets are nested in something that may be JSON. Brackets in texts do not count.
pub fn depth(json: &[u8]) -> usize {
    let (mut now, mut most) = (0_usize, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => {
                now += 1;
                most = most.max(now);
            }
            b'}' | b']' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

async fn collect(body: Body, max: usize, within: Duration) -> Result<Vec<u8>, Problem> {
    // A body that says how long it is need not be read to be refused.
    let said = axum::body::HttpBody::size_hint(&body).lower();
    if usize::try_from(said).is_ok_and(|said| said > max + DISCARDED_BYTES_MAX) {
        return Err(Refusal::BodyTooLarge(max).into());
    }
    // Cancel safe: what was read of the body belongs to this call alone.
    match tokio::time::timeout(within, up_to(body, max)).await {
        Ok(read) => Ok(read?),
        Err(_) => Err(Error::BodyTimeout(within).into()),
    }
}

async fn up_to(mut body: Body, max: usize) -> Result<Vec<u8>, Refusal> {
    // Grows with what has come, not with what was announced.
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::BodyBroken)?;
        let data = frame.into_data().unwrap_or_default();
        if whole.len().saturating_add(data.len()) > max {
            drop(whole);
            discard(body).await;
            return Err(Refusal::BodyTooLarge(max));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

/// Lets a client that sends somewhat too much come to its end: one that is cut off in the middle often loses the answer
/// that says why.
async fn discard(mut body: Body) {
    let rest = async {
        let mut left = DISCARDED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(size) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    // Whether it came to its end or not, the answer is the same.
    let _ = tokio::time::timeout(DISCARD_WITHIN, rest).await;
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

/// The path of the field at byte `at`, as far as it can be told from the text; "body" when it cannot.
fn field_at(text: &str, at: usize) -> String {
    let Ok(root) = document(text) else {
        return "body".into();
    };
    let start = text.as_ptr().addr();
    let covers = |raw: &RawValue| {
        let from = raw.get().as_ptr().addr() - start;
        (from..from + raw.get().len()).contains(&at)
    };
    let mut path = String::new();
    let mut here = root;
    // Body, jobs, job, labels: nothing lies deeper but payloads, which are one field.
    for _ in 0..4 {
        let inside = match here.get().as_bytes().first() {
            Some(b'{') => Members::of(here, "").find(covers),
            Some(b'[') => items(here, BATCH_MAX)
                .unwrap_or_default()
                .into_iter()
                .enumerate()
                .find(|(_, raw)| covers(raw))
                .map(|(index, raw)| (format!("[{index}]"), raw)),
            _ => None,
        };
        let Some((name, raw)) = inside else { break };
        if !path.is_empty() && !name.starts_with('[') {
            path.push('.');
        }
        path.push_str(&name);
        here = raw;
        if name == "payload" {
            break;
        }
    }
    match path.is_empty() {
        true => "body".into(),
        false => path,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_texts() {
        assert_eq!(depth(br#"{"a":[[1],[2]]}"#), 3);
        assert_eq!(depth(br#""[[[[\"[[""#), 0);
        assert_eq!(depth(b"]]]]"), 0);
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        assert!(document(&deep).is_err());
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let endless = Body::from_stream(futures_util::stream::pending::<Result<Bytes, Error>>());
        let given_up = collect(endless, 10, Duration::from_millis(1)).await;
        assert!(matches!(
            given_up,
            Err(Problem::Service(Error::BodyTimeout(_)))
        ));
    }

    #[test]
    fn the_field_with_broken_text_is_found() {
        let at = |text: &str| field_at(text, text.find('#').unwrap());
        assert_eq!(at(r##"{"queue":"a#"}"##), "queue");
        assert_eq!(at(r##"{"labels":{"a":"b","c":"#"}}"##), "labels.c");
        assert_eq!(
            at(r##"{"jobs":[{"queue":"a"},{"kind":"#"}]}"##),
            "jobs[1].kind"
        );
        assert_eq!(at(r##"{"payload":{"deep":"#"}}"##), "payload");
        assert_eq!(at(r##"{"a#":1}"##), "body");
        assert_eq!(at("#"), "body");
    }
}
