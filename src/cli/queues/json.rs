//! Queues as the HTTP face has them.

use serde::Serialize;
use worker_sdk::{Queue, QueueRates};

use super::defaults::DefaultsJson;
use super::span;

/// A queue in the form of `GET /queues/{queue}`.
#[derive(Serialize)]
pub(in crate::cli) struct QueueJson<'a> {
    name: &'a str,
    paused: bool,
    #[serde(flatten)]
    defaults: DefaultsJson,
    stats: StatsJson,
    etag: &'a str,
}

#[derive(Serialize)]
struct StatsJson {
    scheduled: u64,
    queued: u64,
    running: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    sessions: u32,
    free_slots: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_wait: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of_time: Option<String>,
    rates: RatesJson,
}

#[derive(Serialize)]
struct RatesJson {
    enqueued_per_second: f64,
    started_per_second: f64,
    succeeded_per_second: f64,
    failed_per_second: f64,
}

impl RatesJson {
    fn of(rates: &QueueRates) -> Self {
        Self {
            enqueued_per_second: rates.enqueued_per_second,
            started_per_second: rates.started_per_second,
            succeeded_per_second: rates.succeeded_per_second,
            failed_per_second: rates.failed_per_second,
        }
    }
}

impl<'a> QueueJson<'a> {
    pub(in crate::cli) fn of(queue: &'a Queue) -> Self {
        let stats = queue.stats.unwrap_or_default();
        Self {
            name: &queue.name,
            paused: queue.paused,
            defaults: DefaultsJson::of(queue),
            stats: StatsJson {
                scheduled: stats.scheduled,
                queued: stats.queued,
                running: stats.running,
                succeeded: stats.succeeded,
                failed: stats.failed,
                cancelled: stats.cancelled,
                sessions: stats.sessions,
                free_slots: stats.free_slots,
                oldest_wait: span(stats.oldest_wait.as_ref()),
                as_of_time: span(stats.as_of_time.as_ref()),
                rates: RatesJson::of(&stats.rates.unwrap_or_default()),
            },
            etag: &queue.etag,
        }
    }
}
