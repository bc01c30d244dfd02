//! How jobs are shown: as tables for people, or as JSON in the form that the HTTP face has, too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use worker_sdk::proto::{AttemptOutcome, Backoff, Failure, payload::Body};
use worker_sdk::{Job, JobState, Payload, Priority};

use crate::cli::terminal::{self, line, plain};

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Columns, or lines of name and value
    Table,
    /// JSON: an object, or an array of them
    Json,
}

impl Output {
    /// One job with all that is known of it.
    pub(super) fn one(self, job: &Job) {
        match self {
            Self::Json => line(json(job, true)),
            Self::Table => {
                for (name, value) in details(job) {
                    line(format_args!("{name:<12} {value}"));
                }
            }
        }
    }

    /// Jobs that are shown when the rows are dropped, also those before an error. One job that was asked for as one
    /// (not `many`) is an object in JSON, not an array.
    pub(super) fn rows(self, many: bool) -> Rows {
        Rows { output: self, many, rows: Vec::new() }
    }
}

/// Jobs, one a row.
pub(super) struct Rows {
    output: Output,
    many: bool,
    rows: Vec<Vec<String>>,
}

impl Rows {
    pub(super) fn add(&mut self, job: &Job) {
        self.rows.push(match self.output {
            Output::Json => vec![json(job, !self.many)],
            Output::Table => columns(job),
        });
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        match self.output {
            Output::Table => table(rows),
            Output::Json if self.many => line(format_args!("[{}]", rows.concat().join(",\n "))),
            Output::Json => rows.concat().into_iter().for_each(line),
        }
    }
}

const COLUMNS: [&str; 7] = ["ID", "STATE", "QUEUE", "KIND", "ATTEMPT", "FAILURES", "CREATED"];

fn columns(job: &Job) -> Vec<String> {
    let spec = job.spec.clone().unwrap_or_default();
    vec![
        job.id.clone(),
        word(job.state()).to_owned(),
        plain(&spec.queue),
        plain(&spec.kind),
        job.attempt.to_string(),
        job.failures.to_string(),
        time(job.create_time.as_ref()).unwrap_or_default(),
    ]
}

fn table(mut rows: Vec<Vec<String>>) {
    rows.insert(0, COLUMNS.map(str::to_owned).to_vec());
    let mut widths = [0; COLUMNS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn details(job: &Job) -> Vec<(&'static str, String)> {
    let spec = job.spec.clone().unwrap_or_default();
    let mut lines = vec![
        ("id", job.id.clone()),
        ("state", word(job.state()).to_owned()),
        ("queue", plain(&spec.queue)),
        ("kind", plain(&spec.kind)),
        ("priority", level(spec.priority()).to_owned()),
        ("attempt", job.attempt.to_string()),
        ("failures", format!("{} of {}", job.failures, spec.max_attempts)),
        ("lost leases", job.lost_leases.to_string()),
        ("releases", job.releases.to_string()),
    ];
    let times = [
        ("created", &job.create_time),
        ("due", &job.run_time),
        ("started", &job.start_time),
        ("finished", &job.finish_time),
        ("forgotten", &job.purge_time),
    ];
    lines.extend(times.into_iter().filter_map(|(name, at)| Some((name, time(at.as_ref())?))));
    if !job.worker.is_empty() {
        lines.push(("worker", plain(&job.worker)));
    }
    let sorted: BTreeMap<_, _> = spec.labels.iter().collect();
    lines.extend(sorted.into_iter().map(|(key, value)| ("label", plain(&format!("{key}={value}")))));
    let bodies = [("payload", &spec.payload), ("output", &job.output)];
    lines.extend(bodies.into_iter().filter_map(|(name, body)| Some((name, readable(body.as_ref()?)))));
    lines.extend(job.last_failure.iter().map(|failure| ("failure", told(failure))));
    for attempt in &job.attempts {
        let failure = attempt.failure.as_ref().map(told).unwrap_or_default();
        let (outcome, worker) = (ending(attempt.outcome()), plain(&attempt.worker));
        lines.push(("attempt", format!("{} {outcome} on {worker} {failure}", attempt.attempt).trim_end().to_owned()));
    }
    lines
}

fn told(failure: &Failure) -> String {
    plain(&format!("{}: {}", failure.r#type, failure.message))
}

/// A body as text where it is text, else its size.
fn readable(payload: &Payload) -> String {
    let data = bytes(payload);
    match std::str::from_utf8(data) {
        Ok(text) if text.chars().all(|c| !c.is_control() || c.is_whitespace()) => plain(text),
        _ => format!("{} bytes of {}", data.len(), plain(&payload.content_type)),
    }
}

/// A state without the prefix that it has on the wire.
pub(super) fn word(state: JobState) -> &'static str {
    short(state.as_str_name(), "JOB_STATE_")
}

/// A state as it is typed, with or without the prefix.
pub(super) fn state(typed: &str) -> Result<JobState, String> {
    let name = typed.to_ascii_uppercase();
    let name = name.strip_prefix("JOB_STATE_").unwrap_or(&name);
    let known = JobState::from_str_name(&format!("JOB_STATE_{name}")).filter(|state| *state != JobState::Unspecified);
    known.ok_or_else(|| "must be scheduled, queued, running, succeeded, failed or cancelled".into())
}

fn level(priority: Priority) -> &'static str {
    short(priority.as_str_name(), "PRIORITY_")
}

fn ending(outcome: AttemptOutcome) -> &'static str {
    short(outcome.as_str_name(), "ATTEMPT_OUTCOME_")
}

fn short(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn time(at: Option<&prost_types::Timestamp>) -> Option<String> {
    at.map(ToString::to_string)
}

fn span(length: Option<&prost_types::Duration>) -> Option<String> {
    length.map(ToString::to_string)
}

fn bytes(payload: &Payload) -> &[u8] {
    match &payload.body {
        Some(Body::Data(data)) => data,
        Some(Body::Text(text)) => text.as_bytes(),
        None => &[],
    }
}

fn json(job: &Job, pretty: bool) -> String {
    let job = JobJson::of(job);
    let text = if pretty { serde_json::to_string_pretty(&job) } else { serde_json::to_string(&job) };
    text.unwrap_or_else(|why| {
        terminal::note(format_args!("error: {why}"));
        "null".into()
    })
}

/// A job in the form of `GET /jobs/{id}`.
#[derive(Serialize)]
struct JobJson<'a> {
    id: &'a str,
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
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purge_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<AttemptJson<'a>>,
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

impl<'a> JobJson<'a> {
    fn of(job: &'a Job) -> Self {
        static ABSENT: std::sync::LazyLock<worker_sdk::proto::JobSpec> = std::sync::LazyLock::new(Default::default);
        let spec = job.spec.as_ref().unwrap_or(&ABSENT);
        let payload = Shown::of(spec.payload.as_ref());
        let output = Shown::of(job.output.as_ref());
        Self {
            id: &job.id,
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
            timeout: span(spec.timeout.as_ref()),
            retention: span(spec.retention.as_ref()),
            labels: spec.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            headers: spec.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            worker: &job.worker,
            create_time: time(job.create_time.as_ref()),
            run_time: time(job.run_time.as_ref()),
            start_time: time(job.start_time.as_ref()),
            finish_time: time(job.finish_time.as_ref()),
            purge_time: time(job.purge_time.as_ref()),
            last_failure: job.last_failure.as_ref().map(FailureJson::of),
            attempts: job.attempts.iter().map(AttemptJson::of).collect(),
        }
    }
}

impl BackoffJson {
    fn of(backoff: &Backoff) -> Self {
        let (initial, max) = (span(backoff.initial.as_ref()), span(backoff.max.as_ref()));
        Self { initial, max, factor: backoff.factor }
    }
}

impl<'a> FailureJson<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self {
            r#type: &failure.r#type,
            message: &failure.message,
            detail: &failure.detail,
            permanent: failure.permanent,
            retry_after: span(failure.retry_after.as_ref()),
        }
    }
}

impl<'a> AttemptJson<'a> {
    fn of(attempt: &'a worker_sdk::proto::Attempt) -> Self {
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
        let is_json = media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"));
        let mut shown = Self { media: Some(media), ..Self::default() };
        if let Some(json) = is_json.then(|| serde_json::from_slice(bytes(payload)).ok()).flatten() {
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
    fn a_state_is_typed_in_any_way() {
        assert_eq!(state("failed"), Ok(JobState::Failed));
        assert_eq!(state("JOB_STATE_QUEUED"), Ok(JobState::Queued));
        assert!(state("unspecified").is_err() && state("lost").is_err());
    }

    #[test]
    fn a_json_body_is_shown_byte_for_byte() {
        let body = Some(Body::Data(br#"{"a": 1.00}"#.to_vec().into()));
        let payload = Payload { content_type: "application/json".into(), body };
        let shown = Shown::of(Some(&payload));
        assert_eq!(shown.json.map(RawValue::get), Some(r#"{"a": 1.00}"#));
        assert_eq!((shown.base64, shown.media), (None, None));
    }
}
