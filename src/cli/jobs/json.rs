//! A job as JSON, in the form of `GET /jobs/{id}`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;
use worker_sdk::proto::{Attempt, Backoff, Failure, JobSpec, Progress, payload::Body};
use worker_sdk::{Job, LogLine, Payload, Problem};

use super::logs;
use super::show::{bytes, ending, expire_time, level, time, word};
use crate::cli::terminal;

/// The job's JSON, on one line or, `pretty`, on many.
pub(super) fn json(job: &Job, pretty: bool) -> String {
    let job = JobJson::of(job);
    let text = if pretty {
        serde_json::to_string_pretty(&job)
    } else {
        serde_json::to_string(&job)
    };
    text.unwrap_or_else(|why| {
        terminal::note(format_args!("error: {why}"));
        "null".into()
    })
}

/// What explains a job, in the form of `GET /jobs/{id}/explain`.
pub(super) fn findings(found: &[Problem]) -> String {
    let of = |finding: &Problem| {
        serde_json::json!({
            "reason": finding.reason,
            "message": finding.message,
            "field": finding.field,
        })
    };
    let findings: Vec<_> = found.iter().map(of).collect();
    format!("{:#}", serde_json::json!({ "findings": findings }))
}

/// A line of a log, on one line.
pub(super) fn log_line(said: &LogLine) -> String {
    serde_json::to_string(&LineJson::of(said)).unwrap_or_else(|why| {
        terminal::note(format_args!("error: {why}"));
        "null".into()
    })
}

#[derive(Serialize)]
struct JobJson<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<&'a str>,
    queue: &'a str,
    kind: &'a str,
    state: &'static str,
    priority: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_content_type: Option<&'a str>,
    revision: u64,
    attempt: u32,
    failures: u32,
    lost_leases: u32,
    releases: u32,
    max_attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff: Option<BackoffJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retention: Option<String>,
    labels: BTreeMap<&'a str, &'a str>,
    headers: BTreeMap<&'a str, &'a str>,
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purge_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<AttemptJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Vec<LineJson<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_dropped: Option<u64>,
}

#[derive(Serialize)]
struct BackoffJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    initial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<String>,
    factor: f64,
}

#[derive(Serialize)]
struct FailureJson<'a> {
    r#type: &'a str,
    message: &'a str,
    detail: &'a str,
    permanent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<String>,
}

#[derive(Serialize)]
struct ProgressJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    revision: u64,
}

#[derive(Serialize)]
struct AttemptJson<'a> {
    attempt: u32,
    worker: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
}

#[derive(Serialize)]
struct LineJson<'a> {
    number: u64,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    level: &'static str,
    message: &'a str,
}

impl<'a> LineJson<'a> {
    fn of(said: &'a LogLine) -> Self {
        Self {
            number: said.number,
            attempt: said.attempt,
            time: logs::moment(said),
            level: logs::level(said.level()),
            message: &said.message,
        }
    }
}

impl<'a> JobJson<'a> {
    fn of(job: &'a Job) -> Self {
        static ABSENT: LazyLock<JobSpec> = LazyLock::new(JobSpec::default);
        let spec = job.spec.as_ref().unwrap_or(&ABSENT);
        let payload = Shown::of(spec.payload.as_ref());
        let output = Shown::of(job.output.as_ref());
        let has_log = !job.log.is_empty() || job.log_dropped > 0;
        Self {
            id: &job.id,
            idempotency_key: Some(job.idempotency_key.as_str()).filter(|key| !key.is_empty()),
            unique_key: Some(spec.unique_key.as_str()).filter(|key| !key.is_empty()),
            queue: &spec.queue,
            kind: &spec.kind,
            state: word(job.state()),
            priority: level(spec.priority()),
            payload: payload.json,
            payload_text: payload.text,
            payload_base64: payload.base64,
            payload_content_type: payload.media,
            output: output.json,
            output_text: output.text,
            output_base64: output.base64,
            output_content_type: output.media,
            revision: job.revision,
            attempt: job.attempt,
            failures: job.failures,
            lost_leases: job.lost_leases,
            releases: job.releases,
            max_attempts: spec.max_attempts,
            backoff: spec.backoff.as_ref().map(BackoffJson::of),
            timeout: time(spec.timeout.as_ref()),
            retention: time(spec.retention.as_ref()),
            labels: spec
                .labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            headers: spec
                .headers
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            worker: &job.worker,
            replaced_by: Some(job.replaced_by.as_str()).filter(|id| !id.is_empty()),
            copied_from: Some(job.copied_from.as_str()).filter(|id| !id.is_empty()),
            create_time: time(job.create_time.as_ref()),
            run_time: time(job.run_time.as_ref()),
            expire_time: expire_time(spec),
            start_time: time(job.start_time.as_ref()),
            finish_time: time(job.finish_time.as_ref()),
            purge_time: time(job.purge_time.as_ref()),
            last_failure: job.last_failure.as_ref().map(FailureJson::of),
            progress: job.progress.as_ref().map(ProgressJson::of),
            attempts: job.attempts.iter().map(AttemptJson::of).collect(),
            log: has_log.then(|| job.log.iter().map(LineJson::of).collect()),
            log_dropped: has_log.then_some(job.log_dropped),
        }
    }
}

impl BackoffJson {
    fn of(backoff: &Backoff) -> Self {
        let (initial, max) = (time(backoff.initial.as_ref()), time(backoff.max.as_ref()));
        Self {
            initial,
            max,
            factor: backoff.factor,
        }
    }
}

impl<'a> FailureJson<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self {
            r#type: &failure.r#type,
            message: &failure.message,
            detail: &failure.detail,
            permanent: failure.permanent,
            retry_after: time(failure.retry_after.as_ref()),
        }
    }
}

impl<'a> ProgressJson<'a> {
    fn of(progress: &'a Progress) -> Self {
        Self {
            percent: progress.percent,
            note: progress.note.as_deref(),
            checkpoint: progress
                .checkpoint
                .as_ref()
                .map(|data| STANDARD.encode(data)),
            revision: progress.revision,
        }
    }
}

impl<'a> AttemptJson<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            worker: &attempt.worker,
            outcome: ending(attempt.outcome()),
            failure: attempt.failure.as_ref().map(FailureJson::of),
            start_time: time(attempt.start_time.as_ref()),
            end_time: time(attempt.end_time.as_ref()),
        }
    }
}

/// A body in the form in which it is best read.
#[derive(Default)]
struct Shown<'a> {
    json: Option<&'a RawValue>,
    text: Option<&'a str>,
    base64: Option<String>,
    media: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(payload: Option<&'a Payload>) -> Self {
        let Some(payload) = payload else {
            return Self::default();
        };
        let media = payload.content_type.as_str();
        let kind = media.split(';').next().unwrap_or_default().trim();
        let kind = kind.to_ascii_lowercase();
        let is_json = kind == "application/json" || kind.ends_with("+json");
        let mut shown = Self {
            media: Some(media),
            ..Self::default()
        };
        if let Some(json) = is_json
            .then(|| serde_json::from_slice(bytes(payload)).ok())
            .flatten()
        {
            shown.json = Some(json);
            // That a JSON value is JSON goes without saying.
            shown.media = Some(media).filter(|media| *media != "application/json");
            return shown;
        }
        match &payload.body {
            Some(Body::Text(text)) => shown.text = Some(text),
            _ => shown.base64 = Some(STANDARD.encode(bytes(payload))),
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_body_is_shown_byte_for_byte() {
        let body = Some(Body::Data(br#"{"a": 1.00}"#.to_vec().into()));
        let payload = Payload {
            content_type: "application/json".into(),
            body,
        };
        let shown = Shown::of(Some(&payload));
        assert_eq!(shown.json.map(RawValue::get), Some(r#"{"a": 1.00}"#));
        assert_eq!((shown.base64, shown.media), (None, None));

        let media = "application/CloudEvents+JSON; charset=utf-8";
        let payload = Payload {
            content_type: media.into(),
            ..payload
        };
        let shown = Shown::of(Some(&payload));
        assert_eq!(shown.json.map(RawValue::get), Some(r#"{"a": 1.00}"#));
        assert_eq!((shown.base64, shown.media), (None, Some(media)));
    }
}
