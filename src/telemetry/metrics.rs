//! The numbers of one process, behind plain methods, so that nothing else knows which library keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::instruments::{self as list, Instrument, Shape};
use crate::error::{Error, Result};
use crate::job::limits::METRIC_NAMES_MAX;
use crate::job::{AttemptOutcome, JobState, Kind, QueueName};

/// The label of all names beyond [`METRIC_NAMES_MAX`].
const OTHER: &str = "other";

/// From half a millisecond, the best a commit can do, to ten minutes.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
    300.0, 600.0,
];
const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// All metrics of a process. Methods never fail and never block for long.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    queues: Names,
    kinds: Names,
    enqueued: IntCounterVec,
    started: IntCounterVec,
    finished: IntCounterVec,
    extra_executions: IntCounterVec,
    queue_jobs: IntGaugeVec,
    queue_oldest: IntGaugeVec,
    handout: HistogramVec,
    run: HistogramVec,
    sessions: IntGaugeVec,
    streams: IntGaugeVec,
    in_flight: IntGaugeVec,
    watchers: IntGaugeVec,
    store_seconds: HistogramVec,
    store_errors: IntCounterVec,
    ready_seconds: HistogramVec,
    ready_errors: IntCounterVec,
    ready_degraded: IntGaugeVec,
    direct_claims: IntCounterVec,
    batch_jobs: HistogramVec,
    resent: IntCounterVec,
    reoffered: IntCounterVec,
    sessions_expired: IntCounterVec,
    leases_lost: IntCounterVec,
    failed_requests: IntCounterVec,
}

impl Metrics {
    /// Fresh metrics in a registry of their own.
    ///
    /// # Errors
    /// `Internal` when the list of metrics contradicts itself, which a test rules out.
    pub fn new() -> Result<Self> {
        let into = Registry::new();
        Ok(Self {
            queues: Names::default(),
            kinds: Names::default(),
            enqueued: counter(&into, &list::ENQUEUED)?,
            started: counter(&into, &list::STARTED)?,
            finished: counter(&into, &list::FINISHED)?,
            extra_executions: counter(&into, &list::EXTRA_EXECUTIONS)?,
            queue_jobs: gauge(&into, &list::QUEUE_JOBS)?,
            queue_oldest: gauge(&into, &list::QUEUE_OLDEST)?,
            handout: histogram(&into, &list::HANDOUT)?,
            run: histogram(&into, &list::RUN)?,
            sessions: gauge(&into, &list::SESSIONS)?,
            streams: gauge(&into, &list::STREAMS)?,
            in_flight: gauge(&into, &list::IN_FLIGHT)?,
            watchers: gauge(&into, &list::WATCHERS)?,
            store_seconds: histogram(&into, &list::STORE_SECONDS)?,
            store_errors: counter(&into, &list::STORE_ERRORS)?,
            ready_seconds: histogram(&into, &list::READY_SECONDS)?,
            ready_errors: counter(&into, &list::READY_ERRORS)?,
            ready_degraded: gauge(&into, &list::READY_DEGRADED)?,
            direct_claims: counter(&into, &list::DIRECT_CLAIMS)?,
            batch_jobs: histogram(&into, &list::BATCH_JOBS)?,
            resent: counter(&into, &list::RESENT)?,
            reoffered: counter(&into, &list::REOFFERED)?,
            sessions_expired: counter(&into, &list::SESSIONS_EXPIRED)?,
            leases_lost: counter(&into, &list::LEASES_LOST)?,
            failed_requests: counter(&into, &list::FAILED_REQUESTS)?,
            registry: into,
        })
    }

    /// Everything in the Prometheus text format.
    ///
    /// # Errors
    /// `Internal` when the library cannot write what it gathered.
    pub fn render(&self) -> Result<String> {
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&self.registry.gather(), &mut text)
            .map_err(Error::internal)?;
        Ok(text)
    }

    /// `jobs` of `queue` were accepted anew.
    pub fn enqueued(&self, queue: &QueueName, jobs: usize) {
        let queue = self.queues.label(queue.as_str());
        self.enqueued.with_label_values(&[queue]).inc_by(many(jobs));
    }

    /// One attempt was handed out, `waited` after its job was due.
    pub fn started(&self, queue: &QueueName, waited: Duration) {
        let queue = self.queues.label(queue.as_str());
        self.started.with_label_values(&[queue]).inc();
        self.handout
            .with_label_values(&[queue])
            .observe(waited.as_secs_f64());
    }

    /// One attempt ended, `ran` after its hand-out; `None`: that is not known here.
    pub fn finished(
        &self,
        queue: &QueueName,
        kind: &Kind,
        outcome: AttemptOutcome,
        ran: Option<Duration>,
    ) {
        let queue = self.queues.label(queue.as_str());
        self.finished
            .with_label_values(&[queue, outcome.name()])
            .inc();
        if let Some(ran) = ran {
            let kind = self.kinds.label(kind.as_str());
            self.run
                .with_label_values(&[kind])
                .observe(ran.as_secs_f64());
        }
    }

    /// `jobs` were taken back from a lost lease and go to another attempt.
    pub fn extra_executions(&self, jobs: usize) {
        plain(&self.extra_executions, many(jobs));
    }

    /// The numbers of all queues: jobs in each state in the order of [`JobState::ALL`], and the longest wait. What is
    /// not among them is empty.
    pub fn queues<'a>(
        &self,
        all: impl IntoIterator<Item = (&'a QueueName, [u64; 6], Option<Duration>)>,
    ) {
        let mut sums: BTreeMap<&str, ([u64; 6], Duration)> = self.queues.known();
        for (queue, counts, oldest) in all {
            let label = self.queues.label(queue.as_str());
            let (sum, longest) = sums.entry(label).or_default();
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum = sum.saturating_add(count);
            }
            *longest = (*longest).max(oldest.unwrap_or_default());
        }
        for (queue, (counts, oldest)) in sums {
            for (state, count) in JobState::ALL.iter().zip(counts) {
                self.queue_jobs
                    .with_label_values(&[queue, state.name()])
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            self.queue_oldest
                .with_label_values(&[queue])
                .set(i64::try_from(oldest.as_secs()).unwrap_or(i64::MAX));
        }
    }

    /// Sessions of this node, now.
    pub fn sessions(&self, count: usize) {
        level(&self.sessions, count);
    }

    /// Streams of this node, now.
    pub fn streams(&self, count: usize) {
        level(&self.streams, count);
    }

    /// Leases of this node's sessions, now.
    pub fn in_flight(&self, count: usize) {
        level(&self.in_flight, count);
    }

    /// Calls that watch a job or a queue, or wait for a job's end, now.
    pub fn watchers(&self, count: usize) {
        level(&self.watchers, count);
    }

    /// One call of the store; `failed` is the error's stable word.
    pub fn observe_store(
        &self,
        verb: &'static str,
        elapsed: Duration,
        failed: Option<&'static str>,
    ) {
        observe(
            &self.store_seconds,
            &self.store_errors,
            verb,
            elapsed,
            failed,
        );
    }

    /// One call of the ready-list; `failed` is the error's stable word.
    pub fn observe_ready(
        &self,
        verb: &'static str,
        elapsed: Duration,
        failed: Option<&'static str>,
    ) {
        observe(
            &self.ready_seconds,
            &self.ready_errors,
            verb,
            elapsed,
            failed,
        );
    }

    /// Whether the ready-list is away.
    pub fn ready_list_degraded(&self, away: bool) {
        level(&self.ready_degraded, usize::from(away));
    }

    /// `jobs` were claimed from the store.
    pub fn direct_claims(&self, jobs: usize) {
        plain(&self.direct_claims, many(jobs));
    }

    /// One write of `items`; `batch` says of what: "enqueue", "grant", "finish", "log", "renew".
    pub fn batch(&self, batch: &'static str, items: usize) {
        #[allow(clippy::cast_precision_loss, reason = "batches are small")]
        self.batch_jobs
            .with_label_values(&[batch])
            .observe(items as f64);
    }

    /// Jobs were pushed again under their old leases.
    pub fn resent(&self, jobs: usize) {
        plain(&self.resent, many(jobs));
    }

    /// `jobs` were offered again by reconcile.
    pub fn reoffered(&self, jobs: usize) {
        plain(&self.reoffered, many(jobs));
    }

    /// One step of the expiry ended `sessions` and took `jobs` back.
    pub fn expired(&self, sessions: u64, jobs: u64) {
        plain(&self.sessions_expired, sessions);
        plain(&self.leases_lost, jobs);
    }

    /// A call was answered with an error; `face` is "grpc" or "http", `reason` the error's stable word.
    pub fn failed_request(&self, face: &'static str, reason: &'static str) {
        self.failed_requests
            .with_label_values(&[face, reason])
            .inc();
    }
}

/// Names that became labels. The first [`METRIC_NAMES_MAX`] keep theirs for the life of the process, so that nobody who
/// invents names can fill the memory of this process or of whoever scrapes it.
#[derive(Debug, Default)]
struct Names(RwLock<BTreeSet<&'static str>>);

impl Names {
    /// The label of a name. A new name is leaked, at most [`METRIC_NAMES_MAX`] of them.
    fn label(&self, name: &str) -> &'static str {
        let seen = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = seen.get(name) {
            return known;
        }
        if seen.len() >= METRIC_NAMES_MAX {
            return OTHER;
        }
        drop(seen);
        let mut seen = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match seen.get(name) {
            Some(known) => known,
            None if seen.len() >= METRIC_NAMES_MAX => OTHER,
            None => {
                let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
                seen.insert(kept);
                kept
            }
        }
    }

    fn known<T: Default>(&self) -> BTreeMap<&'static str, T> {
        let seen = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let overflow = (seen.len() >= METRIC_NAMES_MAX).then_some(OTHER);
        seen.iter()
            .copied()
            .chain(overflow)
            .map(|name| (name, T::default()))
            .collect()
    }
}

fn counter(into: &Registry, what: &Instrument) -> Result<IntCounterVec> {
    let counter = register(into, IntCounterVec::new(opts(what), what.labels), what)?;
    if what.labels.is_empty() {
        // There from the start, at 0: what appears with its first event cannot be watched for a rise.
        let _ = counter.with_label_values::<&str>(&[]);
    }
    Ok(counter)
}

fn gauge(into: &Registry, what: &Instrument) -> Result<IntGaugeVec> {
    let gauge = register(into, IntGaugeVec::new(opts(what), what.labels), what)?;
    if what.labels.is_empty() {
        level(&gauge, 0);
    }
    Ok(gauge)
}

fn histogram(into: &Registry, what: &Instrument) -> Result<HistogramVec> {
    let buckets = match what.shape {
        Shape::Sizes => SIZES,
        _ => SECONDS,
    };
    let opts = HistogramOpts::from(opts(what)).buckets(buckets.to_vec());
    register(into, HistogramVec::new(opts, what.labels), what)
}

fn opts(what: &Instrument) -> Opts {
    Opts::new(what.name, what.help)
}

fn register<T: Collector + Clone + 'static>(
    into: &Registry,
    made: prometheus::Result<T>,
    what: &Instrument,
) -> Result<T> {
    made.and_then(|one| into.register(Box::new(one.clone())).map(|()| one))
        .map_err(|why| Error::internal(format!("metric {}: {why}", what.name)))
}

fn observe(
    seconds: &HistogramVec,
    errors: &IntCounterVec,
    verb: &'static str,
    elapsed: Duration,
    failed: Option<&'static str>,
) {
    seconds
        .with_label_values(&[verb])
        .observe(elapsed.as_secs_f64());
    if let Some(reason) = failed {
        errors.with_label_values(&[verb, reason]).inc();
    }
}

fn plain(counter: &IntCounterVec, by: u64) {
    counter.with_label_values::<&str>(&[]).inc_by(by);
}

fn level(gauge: &IntGaugeVec, count: usize) {
    gauge
        .with_label_values::<&str>(&[])
        .set(i64::try_from(count).unwrap_or(i64::MAX));
}

fn many(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    #[test]
    fn what_is_told_is_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.enqueued(&queue("emails"), 3);
        metrics.started(&queue("emails"), Duration::from_millis(3));
        metrics.queues([(&queue("emails"), [1, 2, 3, 4, 5, 6], None)]);
        metrics.observe_store("enqueue", Duration::ZERO, Some("STORE_UNAVAILABLE"));
        metrics.ready_list_degraded(true);
        let text = metrics.render().unwrap();
        for line in [
            "leasehold_jobs_enqueued_total{queue=\"emails\"} 3",
            "leasehold_handout_seconds_bucket{queue=\"emails\",le=\"0.005\"} 1",
            "leasehold_queue_jobs{queue=\"emails\",state=\"QUEUED\"} 2",
            "leasehold_store_errors_total{reason=\"STORE_UNAVAILABLE\",verb=\"enqueue\"} 1",
            "leasehold_ready_list_degraded 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        metrics.queues([]);
        let emptied = "leasehold_queue_jobs{queue=\"emails\",state=\"QUEUED\"} 0";
        assert!(metrics.render().unwrap().contains(emptied));
    }

    #[test]
    fn what_has_no_labels_is_there_from_the_start() {
        let text = Metrics::new().unwrap().render().unwrap();
        for line in [
            "leasehold_ready_list_degraded 0",
            "leasehold_leases_lost_total 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_beyond_the_bound_are_counted_together() {
        let metrics = Metrics::new().unwrap();
        for n in 0..METRIC_NAMES_MAX + 50 {
            metrics.enqueued(&queue(&format!("q{n}")), 1);
        }
        let text = metrics.render().unwrap();
        assert!(text.contains("leasehold_jobs_enqueued_total{queue=\"other\"} 50"));
        let lines = text.matches("leasehold_jobs_enqueued_total{").count();
        assert_eq!(lines, METRIC_NAMES_MAX + 1);
    }
}
