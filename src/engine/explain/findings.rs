//! What is made of what is known of a job, in words.

use std::time::{Duration, UNIX_EPOCH};

use super::{Finding, Known};
use crate::job::attempt::EXPIRED;
use crate::job::limits::{BACKOFF_JITTER, LOST_LEASES_MAX};
use crate::job::retry::release_floor;
use crate::job::{AttemptOutcome, AttemptRecord, Failure, Job, JobState, Timestamp};
use crate::store::Whereabouts;

/// Two spans that were meant to be the same.
const ABOUT: Duration = Duration::from_millis(100);
/// Characters of a failure's message that are repeated here.
const MESSAGE_MAX: usize = 300;

/// What holds now, then the attempts.
pub(super) fn of(known: &Known<'_>) -> Vec<Finding> {
    let job = known.job;
    let mut found = match job.state {
        JobState::Scheduled => vec![scheduled(known)],
        JobState::Queued => queued(known),
        JobState::Running => running(known),
        JobState::Succeeded => vec![succeeded(job)],
        JobState::Failed => vec![failed(job)],
        JobState::Cancelled => vec![cancelled(job)],
    };
    found.extend(history(job));
    found
}

fn finding(reason: &'static str, field: impl Into<String>, message: String) -> Finding {
    Finding {
        reason,
        message,
        field: field.into(),
    }
}

/// What it waits for before it is due.
fn scheduled(known: &Known<'_>) -> Finding {
    let job = known.job;
    let left = job.run_time.since(known.whereabouts.now);
    let when = match left.is_zero() {
        true => format!("at {}: it is queued within a second", at(job.run_time)),
        false => format!("at {}, in {}", at(job.run_time), span(left)),
    };
    match job
        .attempts
        .last()
        .filter(|last| last.attempt == job.attempt)
    {
        Some(last) if is_backoff(job, last) => {
            let asked = last.failure.as_ref().and_then(|f| f.retry_after);
            let wait = match asked {
                Some(_) => "the wait that its handler asked for ends".to_owned(),
                None => format!(
                    "the wait after failure {} of {} ends",
                    job.failures, job.spec.retry.max_attempts
                ),
            };
            let message = format!("attempt {} {}; {wait} {when}", last.attempt, verb(last));
            finding("BACKOFF", "run_time", message)
        }
        Some(last) if last.outcome == AttemptOutcome::Released => {
            let in_a_row = released_in_a_row(job);
            let floor = release_floor(in_a_row.saturating_sub(1));
            let waits = job.run_time.since(last.end_time);
            // It was put there by the floor if it is there: a delay that was asked for is seldom the same.
            if !floor.is_zero() && waits <= floor + ABOUT {
                let message = format!(
                    "it was given back {in_a_row} times in a row, so it rests for {} before it is due {when}",
                    span(floor)
                );
                return finding("RELEASE_FLOOR", "run_time", message);
            }
            let message = format!(
                "attempt {} was given back by its worker with a delay; it is due {when}",
                last.attempt
            );
            finding("RELEASED", "run_time", message)
        }
        _ => finding("DELAYED", "run_time", format!("it is due {when}")),
    }
}

/// The job rests because of this failure, and not because somebody brought it back by hand.
fn is_backoff(job: &Job, last: &AttemptRecord) -> bool {
    let is_failure = matches!(
        last.outcome,
        AttemptOutcome::Failed | AttemptOutcome::TimedOut
    );
    if !is_failure || job.failures == 0 {
        return false;
    }
    let asked = last.failure.as_ref().and_then(|f| f.retry_after);
    let longest = asked.unwrap_or_else(|| job.spec.retry.backoff(job.failures, 0.0));
    let shortest = longest.mul_f64(1.0 - BACKOFF_JITTER);
    let waits = job.run_time.since(last.end_time);
    waits + ABOUT >= shortest && waits <= longest + ABOUT
}

fn released_in_a_row(job: &Job) -> u32 {
    let newest = job.attempts.iter().rev();
    let released = newest.take_while(|a| a.outcome == AttemptOutcome::Released);
    u32::try_from(released.count()).unwrap_or(u32::MAX)
}

/// What keeps a job from being handed out: first what holds up its whole queue, then who could run it, then its place.
fn queued(known: &Known<'_>) -> Vec<Finding> {
    let (job, workers) = (known.job, known.workers);
    let (queue, kind) = (&job.spec.queue, &job.spec.kind);
    let mut found = Vec::new();
    if known.is_paused {
        let message = format!("queue {queue} is paused: none of its jobs is handed out");
        found.push(finding("QUEUE_PAUSED", "queue", message));
    }
    if workers.all == 0 {
        let message = format!("no worker takes jobs of queue {queue}");
        found.push(finding("NO_SESSION", "queue", message));
    } else if workers.with_kind == 0 {
        let message = format!(
            "{} of queue {queue}, and none knows kind {kind}",
            count(workers.all, "worker takes jobs", "workers take jobs")
        );
        found.push(finding("UNKNOWN_KIND", "kind", message));
    } else if workers.free == 0 {
        let message = format!(
            "all slots ({}) of {} for it are taken",
            workers.slots,
            count(workers.with_kind, "worker", "workers")
        );
        found.push(finding("NO_FREE_SLOT", "queue", message));
    }
    if let Some(ahead) = known.whereabouts.ahead.filter(|a| a.jobs > 0 || a.more) {
        let more = if ahead.more { "more than " } else { "" };
        let message = format!(
            "{more}{} to be handed out before it",
            count(
                ahead.jobs,
                &format!("job of queue {queue} is"),
                &format!("jobs of queue {queue} are")
            )
        );
        found.push(finding("IN_LINE", "priority", message));
    }
    if known.is_degraded {
        let message =
            "the ready-list is away or full: jobs are claimed from the store, which is slower";
        found.push(finding("READY_LIST_DEGRADED", "", message.into()));
    }
    if found.is_empty() {
        let message = "nothing keeps it: it is handed out within moments";
        found.push(finding("READY", "state", message.into()));
    }
    found
}

fn running(known: &Known<'_>) -> Vec<Finding> {
    let job = known.job;
    let Whereabouts {
        now,
        lease_until,
        grace_until,
        ..
    } = known.whereabouts;
    let since = job.start_time.unwrap_or(now);
    let limit = match job.spec.timeout {
        Some(timeout) => format!("it has until {}", at(since.after(timeout))),
        None => "it has no limit of time".into(),
    };
    let message = format!(
        "attempt {} runs on worker {} since {} ({}); {limit}",
        job.attempt,
        job.worker,
        at(since),
        span(now.since(since))
    );
    let mut found = vec![finding("RUNNING", "state", message)];
    if let Some(over) = lease_until.filter(|until| *until <= now) {
        found.push(match grace_until > now {
            true => {
                let message = format!(
                    "its worker was last known to be alive until {}, but the store or all nodes were away: no lease is taken before {}",
                    at(over),
                    at(grace_until)
                );
                finding("OUTAGE_GRACE", "worker", message)
            }
            false => {
                let message = format!(
                    "its worker was not heard of before {}: the job is taken from it within seconds",
                    at(over)
                );
                finding("LEASE_LAPSED", "worker", message)
            }
        });
    }
    found
}

fn succeeded(job: &Job) -> Finding {
    let message = format!(
        "attempt {} succeeded on worker {}{}",
        job.attempt,
        job.worker,
        ended(job.start_time, job.finish_time)
    );
    finding("SUCCEEDED", "state", message)
}

fn failed(job: &Job) -> Finding {
    let last = job.attempts.last();
    let why = job.last_failure.as_ref();
    let told = why.map(|failure| format!(": {}", told(failure)));
    let told = told.unwrap_or_default();
    if let Some(last) = last.filter(|last| is_lost(last) && last.failure.is_some()) {
        let message = format!(
            "its workers were lost under it {} times, the last one with attempt {}, and {LOST_LEASES_MAX} are allowed: its handler seems to end them",
            job.lost_leases, last.attempt
        );
        return finding("LEASES_LOST", "lost_leases", message);
    }
    if let Some(expired) = why.filter(|failure| failure.kind == EXPIRED) {
        let message = format!("it had not begun by its expire time: {}", expired.message);
        return finding("EXPIRED", "spec.expire_time", message);
    }
    if why.is_some_and(|failure| failure.permanent) {
        let message = format!("attempt {} failed for good{told}", job.attempt);
        return finding("FAILED_PERMANENTLY", "last_failure", message);
    }
    if job.failures >= job.spec.retry.max_attempts {
        let message = format!("all {} attempts failed{told}", job.failures);
        return finding("ATTEMPTS_USED_UP", "failures", message);
    }
    finding("FAILED", "last_failure", format!("it has failed{told}"))
}

fn cancelled(job: &Job) -> Finding {
    let last = job.attempts.last().filter(|last| {
        last.outcome == AttemptOutcome::Cancelled && Some(last.end_time) >= job.finish_time
    });
    let when = job.finish_time.map(at).unwrap_or_default();
    if let Some(by) = job.replaced_by {
        let message = format!("it made way at {when} for job {by}, which took over its unique key");
        return finding("CANCELLED", "replaced_by", message);
    }
    let message = match last {
        Some(last) => format!(
            "it was cancelled at {when}, while attempt {} ran{}",
            last.attempt,
            why(last)
        ),
        None => format!("it was cancelled at {when}, while it waited"),
    };
    finding("CANCELLED", "state", message)
}

/// The attempts that did not succeed, each with its end and the cause of that.
fn history(job: &Job) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(first) = job.attempts.first().filter(|first| first.attempt > 1) {
        let message = format!("how attempts before {} ended is not shown", first.attempt);
        found.push(finding("OLDER_ATTEMPTS", "attempts", message));
    }
    for (place, record) in job.attempts.iter().enumerate() {
        let message = format!(
            "attempt {} {}{}",
            record.attempt,
            verb(record),
            ended(Some(record.start_time), Some(record.end_time))
        );
        let reason = match record.outcome {
            AttemptOutcome::Succeeded => "ATTEMPT_SUCCEEDED",
            AttemptOutcome::Failed => "ATTEMPT_FAILED",
            AttemptOutcome::TimedOut => "ATTEMPT_TIMED_OUT",
            AttemptOutcome::LeaseLost => "ATTEMPT_LEASE_LOST",
            AttemptOutcome::Forgotten => "ATTEMPT_FORGOTTEN",
            AttemptOutcome::Released => "ATTEMPT_RELEASED",
            AttemptOutcome::Cancelled => "ATTEMPT_CANCELLED",
        };
        found.push(finding(reason, format!("attempts[{place}]"), message));
    }
    let lost = job.attempts.iter().filter(|record| is_lost(record)).count();
    let uncounted = lost.saturating_sub(job.lost_leases as usize);
    if uncounted > 0 {
        let message = format!(
            "{} not count against the {LOST_LEASES_MAX} that are allowed: the store or all nodes had been away, or the job was brought back by hand since",
            count(uncounted, "lost lease does", "lost leases do")
        );
        found.push(finding("LEASES_NOT_COUNTED", "lost_leases", message));
    }
    found
}

fn is_lost(record: &AttemptRecord) -> bool {
    matches!(
        record.outcome,
        AttemptOutcome::LeaseLost | AttemptOutcome::Forgotten
    )
}

/// What became of an attempt.
fn verb(record: &AttemptRecord) -> String {
    let worker = &record.worker;
    match record.outcome {
        AttemptOutcome::Succeeded => format!("succeeded on worker {worker}"),
        AttemptOutcome::Failed => format!("failed on worker {worker}{}", why(record)),
        AttemptOutcome::TimedOut => format!("ran longer than its timeout on worker {worker}"),
        AttemptOutcome::LeaseLost => format!(
            "was taken from worker {worker}, which was not heard of within the lease's time and may have done some of it"
        ),
        AttemptOutcome::Forgotten => {
            format!("was taken from worker {worker}, which had it and does not list it any more")
        }
        AttemptOutcome::Released if has_unknown_kind(record) => {
            format!("was given back by worker {worker}, which does not know its kind")
        }
        AttemptOutcome::Released => format!("was given back by worker {worker}{}", why(record)),
        AttemptOutcome::Cancelled => {
            format!("was stopped on worker {worker} by a cancel{}", why(record))
        }
    }
}

/// What a worker is to say that has no handler for the job.
fn has_unknown_kind(record: &AttemptRecord) -> bool {
    let said = record.failure.as_ref().map(|said| said.message.as_str());
    said == Some("UNKNOWN_KIND")
}

/// The reason that somebody gave, if any.
fn why(record: &AttemptRecord) -> String {
    match record.failure.as_ref().map(told) {
        Some(told) if !told.is_empty() => format!(" ({told})"),
        _ => String::new(),
    }
}

fn told(failure: &Failure) -> String {
    let mut message: String = failure.message.chars().take(MESSAGE_MAX).collect();
    if message.len() < failure.message.len() {
        message.push_str("...");
    }
    match failure.kind.is_empty() {
        true => message,
        false => format!("{}: {message}", failure.kind),
    }
}

fn ended(start: Option<Timestamp>, end: Option<Timestamp>) -> String {
    match (start, end) {
        (Some(start), Some(end)) => format!(", at {} after {}", at(end), span(end.since(start))),
        (None, Some(end)) => format!(", at {}", at(end)),
        _ => String::new(),
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    }
}

/// A time, to the second.
fn at(time: Timestamp) -> String {
    let since = Duration::from_micros(u64::try_from(time.0).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// A span to the second; a short one to the millisecond.
fn span(span: Duration) -> String {
    let rounded = match span.as_secs() {
        0..10 => Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(0)),
        secs => Duration::from_secs(secs),
    };
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests;
