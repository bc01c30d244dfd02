//! From the JSON of an enqueue to a job: the fields of a JobSpec, flat, with `job_id` beside them.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::members::Members;
use crate::error::Violation;
use crate::job::draft::{Draft, Fields, RawBackoff, RawExpiry, RawStart};
use crate::job::{JobId, NewJob, Payload, Priority, UniqueConflict};

/// Content type of a payload that is given as JSON.
pub const JSON: &str = "application/json";

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Reads one job. `item` is its place: "" or "jobs[17].". `key` is the idempotency key that came beside it.
///
/// # Errors
/// Everything that is wrong with it, by the caller's own names.
pub fn new_job(
    raw: &RawValue,
    item: &str,
    fresh: JobId,
    key: Option<String>,
) -> Result<NewJob, Vec<Violation>> {
    let mut members = Members::of(raw, item);
    let (payload, body_field) = payload(&mut members);
    let draft = Draft {
        id: members.text("job_id").unwrap_or_default(),
        idempotency_key: idempotency_key(&mut members, key),
        unique_key: members.text("unique_key").unwrap_or_default(),
        unique_conflict: unique_conflict(&mut members),
        queue: members.text("queue").unwrap_or_default(),
        kind: members.text("kind").unwrap_or_default(),
        payload,
        priority: priority(&mut members, "priority"),
        start: start(&mut members),
        expiry: expiry(&mut members),
        max_attempts: members.number("max_attempts").unwrap_or_default(),
        backoff: backoff(&mut members, "backoff"),
        timeout: members.span("timeout"),
        retention: members.span("retention"),
        labels: members.words("labels"),
        headers: members.words("headers"),
    };
    let mut faults = members.end();
    let fields = Fields {
        item: item.to_owned(),
        spec: "",
    };
    let checked = draft.check(&fields, fresh);
    match checked {
        Ok(job) if faults.is_empty() => Ok(job),
        Ok(_) => Err(faults),
        Err(more) => {
            // A field that could not be read is empty to the check: once is enough.
            let told: BTreeSet<String> = faults.iter().map(|f| f.field.clone()).collect();
            let renamed = more.into_iter().map(|violation| Violation {
                field: local(&violation.field, item, body_field),
                ..violation
            });
            faults.extend(renamed.filter(|violation| !told.contains(&violation.field)));
            Err(faults)
        }
    }
}

/// The name that a field of the payload has here.
fn local(field: &str, item: &str, body_field: &str) -> String {
    match field.strip_prefix(item) {
        Some("payload") => format!("{item}{body_field}"),
        Some("payload.content_type") => format!("{item}payload_content_type"),
        _ => field.to_owned(),
    }
}

/// The key in the body, or the one beside it; both may be given if they are the same.
fn idempotency_key(members: &mut Members<'_>, beside: Option<String>) -> String {
    let inside = members.text("idempotency_key").unwrap_or_default();
    match beside {
        Some(beside) if inside.is_empty() || inside == beside => beside,
        Some(_) => {
            members.fault(
                "idempotency_key",
                "is not what the header Idempotency-Key says",
            );
            String::new()
        }
        None => inside,
    }
}

/// The payload, and under which name its body came.
pub fn payload(members: &mut Members<'_>) -> (Option<Payload>, &'static str) {
    // Null is a JSON value like any other here.
    let json = members.raw("payload");
    let base64 = members.text("payload_base64");
    let text = members.text("payload_text");
    let content_type = members.text("payload_content_type");
    let given = [json.is_some(), base64.is_some(), text.is_some()];
    if given.iter().filter(|given| **given).count() > 1 {
        let why = "only one of payload, payload_base64 and payload_text may be given";
        members.fault("payload", why);
        return (None, "payload");
    }
    match (json, base64, text) {
        (Some(json), ..) => {
            let content_type = content_type.unwrap_or_else(|| JSON.into());
            if !is_json(&content_type) {
                let why = "must be a JSON type, or the body given as payload_base64";
                members.fault("payload_content_type", why);
            }
            let data = Bytes::copy_from_slice(json.get().as_bytes());
            let payload = Payload {
                content_type,
                data,
                is_text: false,
            };
            (Some(payload), "payload")
        }
        (_, Some(base64), _) => {
            let engine = match base64.contains(['-', '_']) {
                true => URL_SAFE,
                false => STANDARD,
            };
            let data = engine.decode(base64).unwrap_or_else(|_| {
                members.fault("payload_base64", "is not base64");
                Vec::new()
            });
            let payload = Payload {
                content_type: content_type.unwrap_or_default(),
                data: data.into(),
                is_text: false,
            };
            (Some(payload), "payload_base64")
        }
        (_, _, Some(text)) => {
            let payload = Payload {
                content_type: content_type.unwrap_or_default(),
                data: text.into(),
                is_text: true,
            };
            (Some(payload), "payload_text")
        }
        (None, None, None) => {
            let payload = content_type.map(|content_type| Payload {
                content_type,
                ..Payload::default()
            });
            (payload, "payload")
        }
    }
}

/// Whether a media type is JSON: `application/json`, or one that ends with `+json`.
pub fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    media.eq_ignore_ascii_case(JSON) || media.to_ascii_lowercase().ends_with("+json")
}

/// The priority, if one is given, by its name or number. An unknown number is `Err`.
pub fn priority(members: &mut Members<'_>, key: &str) -> Option<Result<Priority, i32>> {
    let raw = members.value(key)?;
    if let Ok(number) = serde_json::from_str::<i32>(raw.get()) {
        let level = i16::try_from(number).ok().and_then(Priority::from_number);
        return (number != 0).then(|| level.ok_or(number));
    }
    let name: String = serde_json::from_str(raw.get()).unwrap_or_default();
    let short = name.strip_prefix("PRIORITY_").unwrap_or(&name);
    if short == "UNSPECIFIED" {
        return None;
    }
    let level = Priority::ALL
        .into_iter()
        .find(|level| level.name() == short);
    if level.is_none() {
        members.fault(key, "must be LOW, NORMAL or HIGH");
    }
    level.map(Ok)
}

fn unique_conflict(members: &mut Members<'_>) -> Option<Result<UniqueConflict, i32>> {
    let raw = members.value("unique_conflict")?;
    if let Ok(number) = serde_json::from_str::<i32>(raw.get()) {
        return (number != 0).then(|| UniqueConflict::from_number(number).ok_or(number));
    }
    let name: String = serde_json::from_str(raw.get()).unwrap_or_default();
    let short = name.strip_prefix("UNIQUE_CONFLICT_").unwrap_or(&name);
    if short == "UNSPECIFIED" {
        return None;
    }
    let known = UniqueConflict::from_name(short);
    if known.is_none() {
        members.fault("unique_conflict", "must be KEEP, REFUSE or REPLACE");
    }
    known.map(Ok)
}

/// When to start.
pub fn start(members: &mut Members<'_>) -> RawStart {
    match (members.span("delay"), members.time("run_time")) {
        (None, None) => RawStart::Now,
        (Some(delay), None) => RawStart::Delay(delay),
        (None, Some(time)) => RawStart::At(time),
        (Some(_), Some(_)) => {
            members.fault("run_time", "must not be given together with delay");
            RawStart::Now
        }
    }
}

fn expiry(members: &mut Members<'_>) -> Option<RawExpiry> {
    match (members.span("expire_in"), members.time("expire_time")) {
        (None, None) => None,
        (Some(span), None) => Some(RawExpiry::In(span)),
        (None, Some(time)) => Some(RawExpiry::At(time)),
        (Some(_), Some(_)) => {
            members.fault("expire_time", "must not be given together with expire_in");
            None
        }
    }
}

/// A backoff with the parts that it has.
pub fn backoff(members: &mut Members<'_>, key: &str) -> Option<RawBackoff> {
    let mut inner = members.object(key)?;
    let backoff = RawBackoff {
        initial: inner.span("initial"),
        max: inner.span("max"),
        factor: inner.real("factor").unwrap_or_default(),
    };
    members.close(inner);
    Some(backoff)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::http::body::document;
    use crate::job::Start;
    use std::time::Duration;

    fn read(text: &str) -> Result<NewJob, Vec<(String, String)>> {
        let fresh = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        new_job(document(text).unwrap(), "", fresh, None)
            .map_err(|faults| faults.into_iter().map(|f| (f.field, f.why)).collect())
    }

    fn faults(text: &str) -> Vec<String> {
        let faults = read(text).unwrap_err();
        faults.into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn a_full_job_is_read_with_all_its_fields() {
        let job = read(
            r#"{"queue":"q","kind":"k","payload":{"b": 1.0,"a":[1e400,"\u0000"]},"priority":"HIGH","delay":"1.5s",
            "max_attempts":"7","backoff":{"initial":"1s","max":"60s","factor":3},"timeout":"0s","retention":null,
            "labels":{"a":"b"},"headers":{"traceparent":"00-1"}}"#,
        )
        .unwrap();
        // Byte for byte: neither the spaces, nor 1.0, nor a number that no float can hold.
        assert_eq!(job.payload.data, r#"{"b": 1.0,"a":[1e400,"\u0000"]}"#);
        assert_eq!(job.payload.content_type, JSON);
        assert_eq!(job.spec.priority, Priority::High);
        assert_eq!(job.start, Start::After(Duration::from_millis(1500)));
        assert_eq!(job.spec.retry.max_attempts, 7);
        assert_eq!(job.spec.retry.initial, Duration::from_secs(1));
        assert_eq!(job.spec.timeout, None);
        assert_eq!(job.spec.labels.get("a").map(String::as_str), Some("b"));
    }

    #[test]
    fn payloads_that_are_not_json_come_as_base64_or_text() {
        let body = |text: &str| {
            let whole = format!(r#"{{"queue":"q","kind":"k",{text}}}"#);
            read(&whole).map(|job| {
                (
                    job.payload.content_type,
                    job.payload.data,
                    job.payload.is_text,
                )
            })
        };
        let (media, data, _) =
            body(r#""payload_base64":"_-8","payload_content_type":"x/y""#).unwrap();
        assert_eq!((media.as_str(), data.as_ref()), ("x/y", &[0xff, 0xef][..]));
        let (media, data, text) = body(r#""payload_text":"hä\u0000""#).unwrap();
        assert_eq!((media.as_str(), text), ("text/plain; charset=utf-8", true));
        assert_eq!(data, "hä\0");
        assert_eq!(body(r#""payload":null"#).unwrap().1, "null");
        assert!(body(r#""payload":1,"payload_text":"1""#).is_err());
        assert!(body(r#""payload":1,"payload_content_type":"text/plain""#).is_err());
        assert!(body(r#""payload_base64":"!""#).is_err());
    }

    #[test]
    fn whatever_is_wrong_is_named_at_once() {
        assert_eq!(
            faults(
                r#"{"queue":5,"kind":"a b","qeue":"x","kind":"k","labels":{"a":"1","a":"2","b":3},"delay":"-1s",
                "max_attempts":-1,"priority":"URGENT","backoff":{"factr":2},"job_id":"7","headers":[],"timeout":"1m"}"#
            ),
            [
                "kind",
                "queue",
                "priority",
                "max_attempts",
                "backoff.factr",
                "timeout",
                "labels",
                "labels",
                "headers",
                "qeue",
                "job_id",
                "delay"
            ]
        );
        assert_eq!(faults("[]"), ["body", "queue", "kind"]);
        assert_eq!(
            faults(r#"{"queue":"q","kind":"k","priority":9,"labels":{"a":"\u0000"}}"#),
            ["priority", "labels"]
        );
        let lone = r#"{"queue":"q","kind":"k","labels":{"a":"\ud800"}}"#;
        assert_eq!(faults(lone), ["labels"]);
    }

    #[test]
    fn too_large_a_payload_is_named_as_it_came() {
        let text = format!(
            r#"{{"queue":"q","kind":"k","payload_text":"{}"}}"#,
            "x".repeat(1_048_577)
        );
        assert_eq!(faults(&text), ["payload_text"]);
    }

    #[test]
    fn no_number_of_members_fills_the_memory() {
        let many: String = (0..5_000).map(|n| format!(r#","{n}":0"#)).collect();
        let found = faults(&format!(r#"{{"queue":"q"{many}}}"#));
        assert_eq!((found.len() < 210, found[0].as_str()), (true, "body"));
    }
}
