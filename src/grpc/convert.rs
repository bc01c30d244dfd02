//! Between the wire's messages and the domain. The wire ends here: nothing inside serialises.

use std::time::Duration;

use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

use crate::engine::page::RawPage;
use crate::error::Violation;
use crate::job::draft::{Draft, RawBackoff, RawExpiry, RawSpan, RawStart, is_storable, span};
use crate::job::limits::{
    ATTEMPT_SPAN_MAX, FAILURE_DETAIL_BYTES_MAX, FAILURE_MESSAGE_BYTES_MAX, LOG_LINES_MAX,
    PAYLOAD_BYTES_MAX, REASON_BYTES_MAX, SPAN_MAX, WORD_BYTES_MAX,
};
use crate::job::{
    AttemptRecord, Failure, Job, JobSpec, JobState, Lease, LeasedJob, LogLevel, LogLine, NewLine,
    NewLines, Outcome, Payload, Priority, Progress, RetryPolicy, Timestamp, UniqueConflict,
    Verdict, View,
};
use crate::proto as pb;
use crate::store::JobFilter;

/// An enqueue request, unchecked.
pub fn draft(request: pb::EnqueueRequest) -> Draft {
    let spec = request.job.unwrap_or_default();
    Draft {
        id: request.job_id,
        idempotency_key: request.idempotency_key,
        unique_key: spec.unique_key,
        unique_conflict: match request.unique_conflict {
            0 => None,
            number => Some(UniqueConflict::from_number(number).ok_or(number)),
        },
        queue: spec.queue,
        kind: spec.kind,
        payload: spec.payload.map(payload),
        priority: priority(spec.priority),
        start: match spec.start {
            None => RawStart::Now,
            Some(pb::job_spec::Start::Delay(delay)) => RawStart::Delay(raw_span(delay)),
            Some(pb::job_spec::Start::RunTime(at)) => RawStart::At(raw_time(at)),
        },
        expiry: spec.expiry.map(|expiry| match expiry {
            pb::job_spec::Expiry::ExpireTime(at) => RawExpiry::At(raw_time(at)),
            pb::job_spec::Expiry::ExpireIn(span) => RawExpiry::In(raw_span(span)),
        }),
        max_attempts: spec.max_attempts,
        backoff: spec.backoff.map(raw_backoff),
        timeout: spec.timeout.map(raw_span),
        retention: spec.retention.map(raw_span),
        labels: spec.labels.into_iter().collect(),
        headers: spec.headers.into_iter().collect(),
    }
}

/// A level; `None`: not said. A number that is none is `Err`.
pub fn priority(number: i32) -> Option<Result<Priority, i32>> {
    let level = i16::try_from(number).ok().and_then(Priority::from_number);
    (number != 0).then(|| level.ok_or(number))
}

/// A filter of jobs, for a page of which nothing else is said.
pub fn raw_filter(filter: pb::JobFilter) -> RawPage {
    let state = |number: &i32| i16::try_from(*number).ok().and_then(JobState::from_number);
    RawPage {
        queues: filter.queues,
        kinds: filter.kinds,
        states: filter
            .states
            .iter()
            .map(|n| state(n).ok_or_else(|| n.to_string()))
            .collect(),
        labels: filter.labels.into_iter().collect(),
        created_after: filter.created_after.map(raw_time),
        created_before: filter.created_before.map(raw_time),
        finished_after: filter.finished_after.map(raw_time),
        finished_before: filter.finished_before.map(raw_time),
        failure_type: filter.failure_type,
        ..RawPage::default()
    }
}

/// A filter of jobs to send.
pub fn filter(filter: JobFilter) -> pb::JobFilter {
    pb::JobFilter {
        queues: filter.queues.iter().map(ToString::to_string).collect(),
        kinds: filter.kinds.iter().map(ToString::to_string).collect(),
        states: filter.states.into_iter().map(state).collect(),
        labels: filter.labels.into_iter().collect(),
        created_after: filter.created_after.map(timestamp),
        created_before: filter.created_before.map(timestamp),
        finished_after: filter.finished_after.map(timestamp),
        finished_before: filter.finished_before.map(timestamp),
        failure_type: filter.failure_type.unwrap_or_default(),
    }
}

/// A backoff as it came.
pub fn raw_backoff(backoff: pb::Backoff) -> RawBackoff {
    RawBackoff {
        initial: backoff.initial.map(raw_span),
        max: backoff.max.map(raw_span),
        factor: backoff.factor,
    }
}

/// A view; `None` for a number that is none.
pub fn view(number: i32, default: View) -> Option<View> {
    match pb::View::try_from(number).ok()? {
        pb::View::Unspecified => Some(default),
        pb::View::Basic => Some(View::Basic),
        pb::View::Full => Some(View::Full),
    }
}

/// A duration as it came.
pub fn raw_span(span: ProtoDuration) -> RawSpan {
    RawSpan {
        seconds: span.seconds,
        nanos: span.nanos,
    }
}

/// A time as it came.
pub fn raw_time(time: ProtoTimestamp) -> RawSpan {
    RawSpan {
        seconds: time.seconds,
        nanos: time.nanos,
    }
}

/// A duration to send. The domain's are all far below the wire's bound.
pub fn duration(span: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

/// A job to send.
pub fn job(job: Job) -> pb::Job {
    let log_dropped = job.log_dropped();
    pb::Job {
        id: job.id.to_string(),
        idempotency_key: job
            .idempotency_key
            .map(|key| key.as_str().to_owned())
            .unwrap_or_default(),
        spec: Some(pb::JobSpec {
            expiry: job
                .expire_time
                .map(|time| pb::job_spec::Expiry::ExpireTime(timestamp(time))),
            ..spec(job.spec, job.payload)
        }),
        state: state(job.state),
        revision: job.revision,
        attempt: job.attempt,
        failures: job.failures,
        lost_leases: job.lost_leases,
        releases: job.releases,
        output: job.output.map(proto_payload),
        last_failure: job.last_failure.map(proto_failure),
        progress: job.progress.map(proto_progress),
        worker: job.worker,
        replaced_by: job.replaced_by.map(|id| id.to_string()).unwrap_or_default(),
        copied_from: job.copied_from.map(|id| id.to_string()).unwrap_or_default(),
        create_time: Some(timestamp(job.create_time)),
        run_time: Some(timestamp(job.run_time)),
        start_time: job.start_time.map(timestamp),
        finish_time: job.finish_time.map(timestamp),
        purge_time: job.purge_time.map(timestamp),
        log_dropped,
        log: job.log.into_iter().flatten().map(log_line).collect(),
        attempts: job.attempts.into_iter().map(attempt).collect(),
    }
}

/// The number of a state.
pub fn state(state: JobState) -> i32 {
    i32::from(state.number())
}

/// A job for its worker.
pub fn leased_job(job: LeasedJob) -> pb::LeasedJob {
    pb::LeasedJob {
        lease: Some(proto_lease(job.lease)),
        queue: job.queue.as_str().to_owned(),
        kind: job.kind.as_str().to_owned(),
        payload: Some(proto_payload(job.payload)),
        headers: job.headers.into_iter().collect(),
        priority: i32::from(job.priority.number()),
        failures: job.failures,
        max_attempts: job.max_attempts,
        lost_leases: job.lost_leases,
        releases: job.releases,
        time_left: job.time_left.map(duration),
        waited: Some(duration(job.waited)),
        resent: job.resent,
        checkpoint: job.checkpoint,
        progress_revision: job.progress_revision,
    }
}

/// A lease to send.
pub fn proto_lease(lease: Lease) -> pb::Lease {
    pb::Lease {
        job_id: lease.job.to_string(),
        attempt: lease.attempt,
    }
}

/// A lease that came; `None` if it cannot be one.
pub fn lease(lease: Option<&pb::Lease>) -> Option<Lease> {
    let lease = lease?;
    Some(Lease {
        job: crate::job::JobId::parse(&lease.job_id)?,
        attempt: lease.attempt,
    })
}

/// What a worker says of a running attempt.
pub fn progress(progress: pb::Progress) -> Progress {
    Progress {
        percent: progress.percent,
        note: progress.note,
        checkpoint: progress.checkpoint,
        revision: progress.revision,
    }
}

/// Lines that a worker says of an attempt. `field` is what it calls them.
///
/// # Errors
/// The bound that is broken.
pub fn new_lines(field: &str, lines: pb::LogLines) -> Result<NewLines, Violation> {
    let line = |(at, line): (usize, pb::LogLine)| {
        let fault = |part: &str, why: String| {
            Err(Violation::field(format!("{field}.lines[{at}].{part}"), why))
        };
        if line.number != 0 || line.attempt != 0 {
            return fault("number", "and attempt are not for workers to say".into());
        }
        let elapsed = match line.when {
            None => None,
            Some(pb::log_line::When::Time(_)) => {
                return fault("time", "is not for workers to say: elapsed is".into());
            }
            Some(pb::log_line::When::Elapsed(elapsed)) => {
                match span(raw_span(elapsed), Duration::ZERO, SPAN_MAX) {
                    Ok(elapsed) => Some(elapsed),
                    Err(why) => return fault("elapsed", why),
                }
            }
        };
        let level = match line.level {
            0 => Some(LogLevel::Info),
            number => i16::try_from(number).ok().and_then(LogLevel::from_number),
        };
        let Some(level) = level else {
            return fault("level", format!("has no value {}", line.level));
        };
        Ok(NewLine {
            elapsed,
            level,
            message: line.message,
        })
    };
    // More are refused; nobody needs to look at them.
    let all = lines.lines.into_iter().take(LOG_LINES_MAX + 1);
    let read = all.enumerate().map(line).collect::<Result<_, _>>()?;
    NewLines::check(field, lines.first, read)
}

/// The lines that come with a result.
///
/// # Errors
/// The bound that is broken.
pub fn last_lines(lines: Option<pb::LogLines>) -> Result<Option<NewLines>, Violation> {
    lines.map(|lines| new_lines("log", lines)).transpose()
}

/// A line to send.
pub fn log_line(line: LogLine) -> pb::LogLine {
    pb::LogLine {
        number: line.number,
        attempt: line.attempt,
        when: Some(pb::log_line::When::Time(timestamp(line.time))),
        level: i32::from(line.level.number()),
        message: line.message,
    }
}

fn proto_progress(progress: Progress) -> pb::Progress {
    pb::Progress {
        percent: progress.percent,
        note: progress.note,
        checkpoint: progress.checkpoint,
        revision: progress.revision,
    }
}

/// What a worker says of an attempt, when it is to be recorded. `None`: nothing, its handler was stopped.
///
/// # Errors
/// What in its content cannot be taken.
pub fn outcome(outcome: Option<pb::result::Outcome>) -> Result<Option<Outcome>, Violation> {
    match outcome {
        None => Err(Violation::field("outcome", "must be set")),
        Some(pb::result::Outcome::Stopped(_)) => Ok(None),
        Some(pb::result::Outcome::Success(success)) => success_outcome(success).map(Some),
        Some(pb::result::Outcome::Failure(failure)) => failure_outcome(failure).map(Some),
        Some(pb::result::Outcome::Release(release)) => {
            text("release.reason", &release.reason, REASON_BYTES_MAX)?;
            let delay = bounded("release.delay", release.delay, SPAN_MAX)?.unwrap_or_default();
            Ok(Some(Outcome::Release {
                delay,
                reason: release.reason,
            }))
        }
    }
}

/// A verdict to send.
pub fn receipt(lease: pb::Lease, verdict: Verdict) -> pb::Receipt {
    use pb::ReceiptStatus::{Recorded, Rejected, Stale, Unknown};
    let problem = |reason: &str, message: String, field: String| {
        Some(pb::Problem {
            reason: reason.into(),
            message,
            field,
        })
    };
    let (status, problem, at) = match verdict {
        Verdict::Recorded(at) => (Recorded, None, Some(at)),
        Verdict::Stale(reason, at) => {
            let message = format!("the job is {}", at.name());
            (
                Stale,
                problem(reason.name(), message, String::new()),
                Some(at),
            )
        }
        Verdict::Rejected(violation) => {
            let error = crate::error::Error::InvalidArgument(vec![violation.clone()]);
            (
                Rejected,
                problem(error.code().reason, violation.why, violation.field),
                None,
            )
        }
        Verdict::Unknown => (
            Unknown,
            problem("UNKNOWN_JOB", "there is no such job".into(), String::new()),
            None,
        ),
    };
    pb::Receipt {
        lease: Some(lease),
        progress_revision: 0,
        status: status.into(),
        problem,
        state: at.map_or(0, state),
    }
}

fn success_outcome(success: pb::Success) -> Result<Outcome, Violation> {
    let Some(output) = success.output.map(payload) else {
        return Ok(Outcome::Success(None));
    };
    if output.data.len() > PAYLOAD_BYTES_MAX {
        return Err(Violation::too_large(
            "success.output",
            output.data.len(),
            PAYLOAD_BYTES_MAX,
        ));
    }
    text(
        "success.output.content_type",
        &output.content_type,
        WORD_BYTES_MAX,
    )?;
    Ok(Outcome::Success(Some(output)))
}

fn failure_outcome(failure: pb::Failure) -> Result<Outcome, Violation> {
    text("failure.type", &failure.r#type, WORD_BYTES_MAX)?;
    text(
        "failure.message",
        &failure.message,
        FAILURE_MESSAGE_BYTES_MAX,
    )?;
    text("failure.detail", &failure.detail, FAILURE_DETAIL_BYTES_MAX)?;
    Ok(Outcome::Failure(Failure {
        retry_after: bounded("failure.retry_after", failure.retry_after, ATTEMPT_SPAN_MAX)?,
        kind: failure.r#type,
        message: failure.message,
        detail: failure.detail,
        permanent: failure.permanent,
    }))
}

fn text(field: &str, text: &str, max: usize) -> Result<(), Violation> {
    match text.len() <= max && is_storable(text) {
        true => Ok(()),
        false => Err(Violation::field(
            field,
            format!("must have at most {max} bytes and no U+0000"),
        )),
    }
}

fn bounded(
    field: &str,
    raw: Option<ProtoDuration>,
    max: Duration,
) -> Result<Option<Duration>, Violation> {
    raw.map(|raw| {
        span(raw_span(raw), Duration::ZERO, max).map_err(|why| Violation::field(field, why))
    })
    .transpose()
}

/// A payload that came.
pub fn payload(payload: pb::Payload) -> Payload {
    let (data, is_text) = match payload.body {
        None => (Default::default(), false),
        Some(pb::payload::Body::Data(data)) => (data, false),
        Some(pb::payload::Body::Text(text)) => (text.into_bytes().into(), true),
    };
    let mut content_type = payload.content_type;
    if content_type.is_empty() {
        content_type = match is_text {
            true => "text/plain; charset=utf-8".into(),
            false => "application/octet-stream".into(),
        };
    }
    Payload {
        content_type,
        data,
        is_text,
    }
}

fn proto_payload(payload: Payload) -> pb::Payload {
    let text = payload
        .is_text
        .then(|| std::str::from_utf8(&payload.data).ok().map(str::to_owned))
        .flatten();
    let body = match text {
        Some(text) => pb::payload::Body::Text(text),
        None => pb::payload::Body::Data(payload.data),
    };
    pb::Payload {
        content_type: payload.content_type,
        body: Some(body),
    }
}

fn spec(spec: JobSpec, payload: Option<Payload>) -> pb::JobSpec {
    pb::JobSpec {
        queue: spec.queue.as_str().to_owned(),
        kind: spec.kind.as_str().to_owned(),
        payload: payload.map(proto_payload),
        priority: i32::from(spec.priority.number()),
        start: None,
        expiry: None,
        max_attempts: spec.retry.max_attempts,
        backoff: Some(backoff(spec.retry)),
        timeout: Some(duration(spec.timeout.unwrap_or_default())),
        retention: Some(duration(spec.retention)),
        labels: spec.labels.into_iter().collect(),
        headers: spec.headers.into_iter().collect(),
        unique_key: spec
            .unique_key
            .map(|key| key.as_str().to_owned())
            .unwrap_or_default(),
    }
}

fn backoff(retry: RetryPolicy) -> pb::Backoff {
    pb::Backoff {
        initial: Some(duration(retry.initial)),
        max: Some(duration(retry.max)),
        factor: retry.factor,
    }
}

fn proto_failure(failure: Failure) -> pb::Failure {
    pb::Failure {
        r#type: failure.kind,
        message: failure.message,
        detail: failure.detail,
        permanent: failure.permanent,
        retry_after: failure.retry_after.map(duration),
    }
}

fn attempt(attempt: AttemptRecord) -> pb::Attempt {
    pb::Attempt {
        attempt: attempt.attempt,
        worker: attempt.worker,
        outcome: i32::from(attempt.outcome.number()),
        failure: attempt.failure.map(proto_failure),
        start_time: Some(timestamp(attempt.start_time)),
        end_time: Some(timestamp(attempt.end_time)),
    }
}

/// A time to send.
pub fn timestamp(at: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp {
        seconds: at.0.div_euclid(1_000_000),
        nanos: i32::try_from(at.0.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
    }
}
