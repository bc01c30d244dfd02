//! What comes out: figures of several runs, latencies by percentiles, costs of a job.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::audit::Audit;
use super::options::Mode;

/// Latencies up to an hour, in microseconds, exact to three digits.
const LONGEST_US: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

/// Latencies as they are recorded.
#[derive(Debug, Clone)]
pub(super) struct Times(Option<Histogram<u64>>);

impl Times {
    pub(super) fn new() -> Self {
        // The bounds are valid, so it is always there.
        Self(Histogram::new_with_bounds(1, LONGEST_US, DIGITS).ok())
    }

    pub(super) fn record(&mut self, time: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Both have the same bounds.
            let _ = histogram.add(other);
        }
    }

    pub(super) fn summary(&self) -> Latency {
        let Some(histogram) = &self.0 else {
            return Latency::default();
        };
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Latency {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

/// What one job costs; `None` where it cannot be seen.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Cost {
    /// CPU time in microseconds: of the nodes, of Postgres (the whole server), of Redis, of the benchmark itself.
    pub(super) server_us: Option<f64>,
    pub(super) postgres_us: Option<f64>,
    pub(super) redis_us: Option<f64>,
    pub(super) bench_us: Option<f64>,
    /// Bytes of write-ahead log, of the whole Postgres server.
    pub(super) wal_bytes: Option<f64>,
    /// Transactions of the benchmark's database.
    pub(super) transactions: Option<f64>,
    pub(super) redis_commands: Option<f64>,
}

/// What one run gave.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// In the figure's unit.
    pub(super) value: f64,
    pub(super) seconds: f64,
    pub(super) jobs: u64,
    pub(super) latencies: BTreeMap<&'static str, Latency>,
    pub(super) cost: Cost,
    /// The audit of this run.
    pub(super) audit: Audit,
    /// What else was seen, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) more: BTreeMap<&'static str, f64>,
    /// Samples over time (soak).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) series: Vec<BTreeMap<&'static str, f64>>,
}

/// Several values of one thing.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) runs: Vec<f64>,
}

impl Spread {
    /// Of no values: zeros.
    pub(super) fn of(runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |n: usize| sorted.get(n).copied().unwrap_or_default();
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (at(middle.saturating_sub(1)) + at(middle)) / 2.0,
            _ => at(middle),
        };
        Self {
            median,
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            runs,
        }
    }
}

/// A ceiling: what the same database, list or disk does by itself.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Ceiling {
    pub(super) name: &'static str,
    /// What it is, for people.
    pub(super) what: String,
    pub(super) unit: &'static str,
    #[serde(flatten)]
    pub(super) spread: Spread,
}

/// A ceiling beside a figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Beside {
    pub(super) ceiling: &'static str,
    pub(super) value: f64,
    /// Of the figure's median to the ceiling's.
    pub(super) ratio: f64,
}

/// One mode's figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    pub(super) mode: Mode,
    pub(super) unit: &'static str,
    #[serde(flatten)]
    pub(super) spread: Spread,
    pub(super) beside: Vec<Beside>,
    /// All its audits were clean.
    pub(super) valid: bool,
    pub(super) samples: Vec<Sample>,
}

/// The unit of a mode's figure.
pub(super) fn unit(mode: Mode) -> &'static str {
    match mode {
        Mode::Idle | Mode::Steady => "ms",
        Mode::Streams => "KiB",
        _ => "jobs/s",
    }
}

impl Figure {
    /// The figure of a mode's runs, beside those of the ceilings that bound it.
    pub(super) fn new(mode: Mode, samples: Vec<Sample>, ceilings: &[Ceiling]) -> Self {
        let spread = Spread::of(samples.iter().map(|sample| sample.value).collect());
        let beside = ceilings
            .iter()
            .filter(|ceiling| bounds(ceiling.name, mode) && ceiling.spread.median > 0.0)
            .map(|ceiling| Beside {
                ceiling: ceiling.name,
                value: ceiling.spread.median,
                ratio: spread.median / ceiling.spread.median,
            })
            .collect();
        Self {
            mode,
            unit: unit(mode),
            beside,
            valid: samples.iter().all(|sample| sample.audit.clean()),
            spread,
            samples,
        }
    }
}

/// Which ceiling stands beside which figure.
fn bounds(ceiling: &str, mode: Mode) -> bool {
    match mode {
        Mode::Enqueue => ceiling == "insert",
        Mode::EnqueueBatch => matches!(ceiling, "insert_batch" | "xadd"),
        Mode::Drain => ceiling == "grant_and_result",
        Mode::Flow => ceiling == "whole_life",
        Mode::Idle | Mode::Steady => matches!(ceiling, "commit" | "fdatasync"),
        Mode::Overload | Mode::Streams | Mode::Soak | Mode::All => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of(Vec::new()).median, 0.0);
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let mut times = Times::new();
        (1..=100).for_each(|n| times.record(Duration::from_millis(n)));
        let told = times.summary();
        assert!((told.p50 - 50.0).abs() < 0.1, "{told:?}");
        assert!((told.p99 - 99.0).abs() < 0.1, "{told:?}");
        assert_eq!(told.count, 100);
    }
}
