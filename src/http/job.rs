//! A job as JSON: flat, durations and times as proto3 JSON has them, payload and output as JSON where they are JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::body::depth;
use super::enqueue::{JSON, is_json};
use super::time::{write_span, write_time};
use crate::engine::Finding;
use crate::job::limits::JSON_DEPTH_MAX;
use crate::job::{AttemptRecord, Backoff, Failure, Job, LogLine, Payload, Progress};

/// A job, ready to be written.
#[derive(Serialize)]
pub struct JobJson<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<&'a str>,
    queue: &'a str,
    kind: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    priority: &'static str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    payload: Option<PayloadJson<'a>>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    output: Option<OutputJson<'a>>,
    revision: u64,
    attempt: u32,
    failures: u32,
    lost_leases: u32,
    releases: u32,
    max_attempts: u32,
    backoff: BackoffJson,
    timeout: String,
    retention: String,
    labels: &'a BTreeMap<String, String>,
    headers: &'a BTreeMap<String, String>,
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_from: Option<String>,
    create_time: String,
    run_time: String,
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
struct PayloadJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_content_type: Option<&'a str>,
}

#[derive(Serialize)]
struct OutputJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_content_type: Option<&'a str>,
}

/// The waits after failures.
#[derive(Serialize)]
pub struct BackoffJson {
    initial: String,
    max: String,
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
    start_time: String,
    end_time: String,
}

#[derive(Serialize)]
struct LineJson<'a> {
    number: u64,
    attempt: u32,
    time: String,
    level: &'static str,
    message: &'a str,
}

impl<'a> JobJson<'a> {
    /// The job as answers to an enqueue have it: with whether it was there before.
    pub fn enqueued(job: &'a Job, existed: bool) -> Self {
        Self {
            existed: Some(existed),
            ..Self::of(job)
        }
    }

    /// The job, with as much as its view has.
    pub fn of(job: &'a Job) -> Self {
        let spec = &job.spec;
        Self {
            id: job.id.to_string(),
            idempotency_key: job.idempotency_key.as_ref().map(|key| key.as_str()),
            unique_key: spec.unique_key.as_ref().map(|key| key.as_str()),
            queue: spec.queue.as_str(),
            kind: spec.kind.as_str(),
            state: job.state.name(),
            existed: None,
            priority: spec.priority.name(),
            payload: job.payload.as_ref().map(|payload| {
                let Shown {
                    json,
                    text,
                    base64,
                    media,
                } = Shown::of(payload);
                PayloadJson {
                    payload: json,
                    payload_text: text,
                    payload_base64: base64,
                    payload_content_type: media,
                }
            }),
            output: job.output.as_ref().map(|output| {
                let Shown {
                    json,
                    text,
                    base64,
                    media,
                } = Shown::of(output);
                OutputJson {
                    output: json,
                    output_text: text,
                    output_base64: base64,
                    output_content_type: media,
                }
            }),
            revision: job.revision,
            attempt: job.attempt,
            failures: job.failures,
            lost_leases: job.lost_leases,
            releases: job.releases,
            max_attempts: spec.retry.max_attempts,
            backoff: BackoffJson::of(spec.retry.waits()),
            timeout: write_span(spec.timeout.unwrap_or_default()),
            retention: write_span(spec.retention),
            labels: &spec.labels,
            headers: &spec.headers,
            worker: &job.worker,
            replaced_by: job.replaced_by.map(|id| id.to_string()),
            copied_from: job.copied_from.map(|id| id.to_string()),
            create_time: write_time(job.create_time),
            run_time: write_time(job.run_time),
            expire_time: job.expire_time.map(write_time),
            start_time: job.start_time.map(write_time),
            finish_time: job.finish_time.map(write_time),
            purge_time: job.purge_time.map(write_time),
            last_failure: job.last_failure.as_ref().map(FailureJson::of),
            progress: job.progress.as_ref().map(ProgressJson::of),
            attempts: job.attempts.iter().map(AttemptJson::of).collect(),
            log: job
                .log
                .as_ref()
                .map(|lines| lines.iter().map(LineJson::of).collect()),
            log_dropped: job.log.as_ref().map(|_| job.log_dropped()),
        }
    }
}

impl BackoffJson {
    /// As it is written.
    pub fn of(backoff: Backoff) -> Self {
        Self {
            initial: write_span(backoff.initial),
            max: write_span(backoff.max),
            factor: backoff.factor,
        }
    }
}

impl<'a> FailureJson<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self {
            r#type: &failure.kind,
            message: &failure.message,
            detail: &failure.detail,
            permanent: failure.permanent,
            retry_after: failure.retry_after.map(write_span),
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
    fn of(record: &'a AttemptRecord) -> Self {
        Self {
            attempt: record.attempt,
            worker: &record.worker,
            outcome: record.outcome.name(),
            failure: record.failure.as_ref().map(FailureJson::of),
            start_time: write_time(record.start_time),
            end_time: write_time(record.end_time),
        }
    }
}

/// New lines of a job's log.
#[derive(Serialize)]
pub struct LinesJson<'a> {
    log: Vec<LineJson<'a>>,
}

impl<'a> LinesJson<'a> {
    /// As they are told.
    pub fn of(lines: &'a [LogLine]) -> Self {
        Self {
            log: lines.iter().map(LineJson::of).collect(),
        }
    }
}

impl<'a> LineJson<'a> {
    fn of(line: &'a LogLine) -> Self {
        Self {
            number: line.number,
            attempt: line.attempt,
            time: write_time(line.time),
            level: line.level.name(),
            message: &line.message,
        }
    }
}

/// A body in the form in which it is best read.
struct Shown<'a> {
    json: Option<&'a RawValue>,
    text: Option<&'a str>,
    base64: Option<String>,
    media: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(payload: &'a Payload) -> Self {
        let media = payload.content_type.as_str();
        let mut shown = Self {
            json: None,
            text: None,
            base64: None,
            media: Some(media),
        };
        let text = std::str::from_utf8(&payload.data).ok();
        if let Some(json) = text.filter(|_| is_json(media)).and_then(json) {
            shown.json = Some(json);
            // That a JSON value is JSON goes without saying.
            shown.media = Some(media).filter(|media| *media != JSON);
        } else if payload.is_text && text.is_some() {
            shown.text = text;
        } else {
            shown.base64 = Some(STANDARD.encode(&payload.data));
        }
        shown
    }
}

/// The text as a value, if it is one that readers can be expected to bear.
fn json(text: &str) -> Option<&RawValue> {
    let bearable = depth(text.as_bytes()) <= JSON_DEPTH_MAX;
    bearable.then(|| serde_json::from_str(text).ok()).flatten()
}

/// One page of a list.
#[derive(Serialize)]
pub struct PageJson<'a> {
    /// Newest first.
    pub jobs: Vec<JobJson<'a>>,
    /// Empty: there is no more.
    pub next_page_token: Cow<'a, str>,
}

/// The answer to a batch.
#[derive(Serialize)]
pub struct BatchJson<'a> {
    /// In the order of the request.
    pub jobs: Vec<JobJson<'a>>,
}

/// What explains a job.
#[derive(Serialize)]
pub struct FindingsJson<'a> {
    findings: Vec<FindingJson<'a>>,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    reason: &'static str,
    message: &'a str,
    field: &'a str,
}

impl<'a> FindingsJson<'a> {
    /// As many as there are.
    pub fn of(findings: &'a [Finding]) -> Self {
        let of = |finding: &'a Finding| FindingJson {
            reason: finding.reason,
            message: &finding.message,
            field: &finding.field,
        };
        Self {
            findings: findings.iter().map(of).collect(),
        }
    }
}
