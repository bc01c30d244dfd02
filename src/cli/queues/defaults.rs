//! What jobs of a queue get whose requests leave it out: as it is typed, and as it is shown.

use std::time::Duration;

use serde::Serialize;
use worker_sdk::{Backoff, Priority, Queue};

use super::span;
use crate::cli::exit::Failure;
use crate::cli::jobs::{level, priority};

/// Flags of `leasehold queues set`: at least one.
#[derive(Debug, clap::Args)]
pub(super) struct Defaults {
    /// Order of hand-out within the queue: low, normal or high
    #[arg(long, value_name = "LEVEL", value_parser = priority)]
    priority: Option<Priority>,
    /// How many attempts may fail
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// Wait after the first failure, its growth from one to the next, and the longest one, as 15s,2,24h
    #[arg(long, value_name = "INITIAL,FACTOR,MAX", value_parser = backoff)]
    backoff: Option<Backoff>,
    /// How long one attempt may take; 0s: no limit
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How long a job can be looked up once it is final
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// How long after it is due a job may still begin
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expire_in: Option<Duration>,
    /// What is to be the server's default again
    #[arg(long, value_name = "WHAT", value_enum)]
    unset: Vec<What>,
}

/// What can be unset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Priority,
    MaxAttempts,
    Backoff,
    Timeout,
    Retention,
    ExpireIn,
}

impl Defaults {
    /// The queue as the call has it, and the fields that are to be set.
    pub(super) fn of(
        self,
        name: String,
        etag: String,
    ) -> Result<(Queue, Vec<&'static str>), Failure> {
        let Self {
            priority,
            max_attempts,
            backoff,
            timeout,
            retention,
            expire_in,
            unset,
        } = self;
        let each = [
            ("default_priority", What::Priority, priority.is_some()),
            (
                "default_max_attempts",
                What::MaxAttempts,
                max_attempts.is_some(),
            ),
            ("default_backoff", What::Backoff, backoff.is_some()),
            ("default_timeout", What::Timeout, timeout.is_some()),
            ("default_retention", What::Retention, retention.is_some()),
            ("default_expire_in", What::ExpireIn, expire_in.is_some()),
        ];
        if each
            .iter()
            .any(|(_, what, set)| *set && unset.contains(what))
        {
            return Err(Failure::usage("--unset names what is set as well"));
        }
        let named = each
            .into_iter()
            .filter(|(_, what, set)| *set || unset.contains(what));
        let fields: Vec<_> = named.map(|(field, ..)| field).collect();
        if fields.is_empty() {
            return Err(Failure::usage("nothing is to be set: see --help"));
        }
        let mut queue = Queue {
            name,
            etag,
            default_max_attempts: max_attempts.unwrap_or(0),
            default_backoff: backoff,
            default_timeout: timeout.map(wire).transpose()?,
            default_retention: retention.map(wire).transpose()?,
            default_expire_in: expire_in.map(wire).transpose()?,
            ..Queue::default()
        };
        if let Some(level) = priority {
            queue.set_default_priority(level);
        }
        Ok((queue, fields))
    }
}

fn wire(span: Duration) -> Result<prost_types::Duration, Failure> {
    prost_types::Duration::try_from(span)
        .map_err(|_| Failure::usage(format!("{span:?} is too long")))
}

/// `15s,2,24h`
fn backoff(typed: &str) -> Result<Backoff, String> {
    let shape = || "must be INITIAL,FACTOR,MAX, as 15s,2,24h".to_owned();
    let parts: Vec<&str> = typed.split(',').collect();
    let [initial, factor, max] = parts.as_slice() else {
        return Err(shape());
    };
    let span = |text: &str| {
        let span = humantime::parse_duration(text).ok()?;
        prost_types::Duration::try_from(span).ok()
    };
    Ok(Backoff {
        initial: Some(span(initial).ok_or_else(shape)?),
        factor: factor.parse().map_err(|_| shape())?,
        max: Some(span(max).ok_or_else(shape)?),
    })
}

/// What is set, for people.
pub(super) fn shown(queue: &Queue) -> Vec<(&'static str, String)> {
    let set = DefaultsJson::of(queue);
    let attempts = set.default_max_attempts.map(|n| n.to_string());
    let backoff = set.default_backoff.map(|backoff| {
        let BackoffJson {
            initial,
            max,
            factor,
        } = backoff;
        format!(
            "{},{factor},{}",
            initial.unwrap_or_default(),
            max.unwrap_or_default()
        )
    });
    [
        ("priority", set.default_priority.map(str::to_owned)),
        ("max attempts", attempts),
        ("backoff", backoff),
        ("timeout", set.default_timeout),
        ("retention", set.default_retention),
        ("expire in", set.default_expire_in),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// What is set, in the form of `GET /queues/{queue}`.
#[derive(Serialize)]
pub(super) struct DefaultsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    default_priority: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_backoff: Option<BackoffJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_retention: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_expire_in: Option<String>,
}

#[derive(Serialize)]
struct BackoffJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    initial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<String>,
    factor: f64,
}

impl DefaultsJson {
    pub(super) fn of(queue: &Queue) -> Self {
        let backoff = queue.default_backoff.as_ref();
        Self {
            default_priority: Some(queue.default_priority())
                .filter(|level| *level != Priority::Unspecified)
                .map(level),
            default_max_attempts: Some(queue.default_max_attempts).filter(|n| *n > 0),
            default_backoff: backoff.map(|backoff| BackoffJson {
                initial: span(backoff.initial.as_ref()),
                max: span(backoff.max.as_ref()),
                factor: backoff.factor,
            }),
            default_timeout: span(queue.default_timeout.as_ref()),
            default_retention: span(queue.default_retention.as_ref()),
            default_expire_in: span(queue.default_expire_in.as_ref()),
        }
    }
}
