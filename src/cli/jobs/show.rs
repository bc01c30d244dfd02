//! How jobs are shown: as tables for people, or as JSON.

use std::collections::BTreeMap;

use worker_sdk::proto::{
    AttemptOutcome, Failure, JobSpec, Progress, job_spec::Expiry, payload::Body,
};
use worker_sdk::{Job, JobState, Payload, Priority, Problem};

use super::json::{findings, json};
use super::logs::words;
use crate::cli::remote::Output;
use crate::cli::terminal::{line, plain, table};

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

    /// What explains a job, a line a finding.
    pub(super) fn findings(self, found: &[Problem]) {
        match self {
            Self::Json => line(findings(found)),
            Self::Table => {
                let width = found.iter().map(|finding| finding.reason.len()).max();
                let width = width.unwrap_or(0);
                for finding in found {
                    let (reason, message) = (plain(&finding.reason), plain(&finding.message));
                    line(format_args!("{reason:<width$}  {message}"));
                }
            }
        }
    }

    /// Jobs that are shown when the rows are dropped, also those before an error. One job that was asked for as one
    /// (not `many`) is an object in JSON, not an array.
    pub(super) fn rows(self, many: bool) -> Rows {
        Rows {
            output: self,
            many,
            rows: Vec::new(),
            complete: false,
        }
    }
}

/// Lines of a job's log that are shown with it, the newest ones. `leasehold jobs logs` shows all.
const LINES_SHOWN: usize = 10;

/// Jobs, one a row.
pub(super) struct Rows {
    output: Output,
    many: bool,
    rows: Vec<Vec<String>>,
    complete: bool,
}

impl Rows {
    pub(super) fn add(&mut self, job: &Job) {
        self.rows.push(match self.output {
            Output::Json => vec![json(job, !self.many)],
            Output::Table => columns(job),
        });
    }

    /// There are no more: an empty answer is an answer.
    pub(super) fn end(mut self) {
        self.complete = true;
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        // An error and an empty table would say two things.
        if rows.is_empty() && !self.complete {
            return;
        }
        match self.output {
            Output::Table => table(COLUMNS, rows),
            Output::Json if self.many => line(format_args!("[{}]", rows.concat().join(",\n "))),
            Output::Json => rows.concat().into_iter().for_each(line),
        }
    }
}

const COLUMNS: [&str; 7] = [
    "ID", "STATE", "QUEUE", "KIND", "ATTEMPT", "FAILURES", "CREATED",
];

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

fn details(job: &Job) -> Vec<(&'static str, String)> {
    let spec = job.spec.clone().unwrap_or_default();
    let mut lines = vec![
        ("id", job.id.clone()),
        ("state", word(job.state()).to_owned()),
        ("queue", plain(&spec.queue)),
        ("kind", plain(&spec.kind)),
        ("priority", level(spec.priority()).to_owned()),
        ("attempt", job.attempt.to_string()),
        (
            "failures",
            format!("{} of {}", job.failures, spec.max_attempts),
        ),
        ("lost leases", job.lost_leases.to_string()),
        ("releases", job.releases.to_string()),
    ];
    let times = [
        ("created", &job.create_time),
        ("due", &job.run_time),
        ("started", &job.start_time),
        ("finished", &job.finish_time),
        ("kept until", &job.purge_time),
    ];
    lines.extend(
        times
            .into_iter()
            .filter_map(|(name, at)| Some((name, time(at.as_ref())?))),
    );
    lines.extend(expire_time(&spec).map(|time| ("expires", time)));
    if !job.idempotency_key.is_empty() {
        lines.push(("key", plain(&job.idempotency_key)));
    }
    if !spec.unique_key.is_empty() {
        lines.push(("unique key", plain(&spec.unique_key)));
    }
    if !job.replaced_by.is_empty() {
        lines.push(("replaced by", plain(&job.replaced_by)));
    }
    if !job.copied_from.is_empty() {
        lines.push(("copied from", plain(&job.copied_from)));
    }
    if !job.worker.is_empty() {
        lines.push(("worker", plain(&job.worker)));
    }
    let sorted: BTreeMap<_, _> = spec.labels.iter().collect();
    lines.extend(
        sorted
            .into_iter()
            .map(|(key, value)| ("label", plain(&format!("{key}={value}")))),
    );
    lines.extend(
        job.progress
            .iter()
            .map(|progress| ("progress", said(progress))),
    );
    let bodies = [("payload", &spec.payload), ("output", &job.output)];
    lines.extend(
        bodies
            .into_iter()
            .filter_map(|(name, body)| Some((name, readable(body.as_ref()?)))),
    );
    lines.extend(
        job.last_failure
            .iter()
            .map(|failure| ("failure", told(failure))),
    );
    for attempt in &job.attempts {
        let failure = attempt.failure.as_ref().map(told).unwrap_or_default();
        let (outcome, worker) = (ending(attempt.outcome()), plain(&attempt.worker));
        lines.push((
            "attempt",
            format!("{} {outcome} on {worker} {failure}", attempt.attempt)
                .trim_end()
                .to_owned(),
        ));
    }
    let (shown, all) = (LINES_SHOWN.min(job.log.len()), job.log.len());
    let newest = job.log.iter().skip(all - shown);
    lines.extend(newest.map(|said| ("log", words(said))));
    if shown < all || job.log_dropped > 0 {
        let more = format!("the last {shown} of {} lines", job.log_dropped + all as u64);
        lines.push(("log", more));
    }
    lines
}

/// How far an attempt is.
pub(super) fn said(progress: &Progress) -> String {
    let percent = progress.percent.map(|percent| format!("{percent} %"));
    let note = progress.note.as_deref().map(plain);
    let parts = [percent, note].into_iter().flatten();
    parts.collect::<Vec<_>>().join("  ")
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
pub(in crate::cli) fn state(typed: &str) -> Result<JobState, String> {
    let name = typed.to_ascii_uppercase();
    let name = name.strip_prefix("JOB_STATE_").unwrap_or(&name);
    let known = JobState::from_str_name(&format!("JOB_STATE_{name}"))
        .filter(|state| *state != JobState::Unspecified);
    known.ok_or_else(|| "must be scheduled, queued, running, succeeded, failed or cancelled".into())
}

pub(in crate::cli) fn level(priority: Priority) -> &'static str {
    short(priority.as_str_name(), "PRIORITY_")
}

pub(super) fn ending(outcome: AttemptOutcome) -> &'static str {
    short(outcome.as_str_name(), "ATTEMPT_OUTCOME_")
}

/// A name without its prefix.
pub(super) fn short(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// Times and spans as proto3 JSON writes them.
pub(super) fn time(at: Option<&impl ToString>) -> Option<String> {
    at.map(ToString::to_string)
}

/// When it expires if it has not begun; a job that is read has it as a time.
pub(super) fn expire_time(spec: &JobSpec) -> Option<String> {
    match &spec.expiry {
        Some(Expiry::ExpireTime(at)) => time(Some(at)),
        Some(Expiry::ExpireIn(_)) | None => None,
    }
}

/// A body as bytes, whatever its form.
pub(super) fn bytes(payload: &Payload) -> &[u8] {
    match &payload.body {
        Some(Body::Data(data)) => data,
        Some(Body::Text(text)) => text.as_bytes(),
        None => &[],
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
}
