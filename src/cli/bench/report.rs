//! The figures as a table for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::figure::{Ceiling, Cost, Figure, Latency, Sample, Spread};
use super::machine::Machine;
use super::options::{Args, Mode};
use super::stage::{Kind, Stage};

/// The form of the JSON: a change that would mislead its readers changes it.
const FORMAT: u32 = 1;

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    format: u32,
    version: &'static str,
    /// `release`, or `debug`: such figures say nothing.
    build: &'static str,
    machine: Machine,
    stage: Kind,
    nodes: usize,
    /// Versions and settings of the stores.
    stores: BTreeMap<String, String>,
    /// Settings by which what is committed may be lost. No figure is to be compared then.
    not_durable: Vec<String>,
    options: BTreeMap<&'static str, f64>,
    pub(super) ceilings: Vec<Ceiling>,
    pub(super) figures: Vec<Figure>,
    /// All audits were clean.
    pub(super) valid: bool,
    /// Why not all runs were finished, as `interrupted`: only those that were are told.
    pub(super) incomplete: Option<String>,
}

impl Report {
    pub(super) fn new(machine: Machine, stage: &Stage, args: &Args) -> Self {
        let mut stores = BTreeMap::new();
        let mut not_durable = Vec::new();
        if let Some(database) = &stage.database {
            for (name, value) in &database.settings {
                stores.insert(format!("postgres.{name}"), value.clone());
            }
            not_durable = database.not_durable();
        }
        if let Some(list) = &stage.list {
            stores.insert("redis.version".into(), list.version.clone());
        }
        if stage.kind == Kind::Embedded {
            // As its store opens it; a file keeps no such setting that could be read back.
            stores.insert("sqlite.synchronous".into(), "FULL".into());
            stores.insert("sqlite.journal_mode".into(), "WAL".into());
        }
        let Args {
            in_flight,
            callers,
            batch,
            payload,
            connections,
            workers,
            slots,
            rate,
            ..
        } = *args;
        let options = [
            ("runs", args.runs()),
            ("in_flight", in_flight),
            ("callers", callers),
            ("batch", batch),
            ("payload", payload),
            ("connections", connections),
            ("workers", workers),
            ("slots", slots),
        ];
        let mut options: BTreeMap<_, _> = options
            .into_iter()
            .map(|(name, value)| (name, value as f64))
            .collect();
        options.insert("rate", rate);
        options.insert("duration_seconds", args.duration.as_secs_f64());
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            build: match cfg!(debug_assertions) {
                true => "debug",
                false => "release",
            },
            machine,
            stage: stage.kind,
            nodes: stage.urls.len(),
            stores,
            not_durable,
            options,
            ceilings: Vec::new(),
            figures: Vec::new(),
            valid: true,
            incomplete: None,
        }
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = self.head();
        if !self.ceilings.is_empty() {
            text.push_str("\nceilings, by themselves in the same run\n");
            for ceiling in &self.ceilings {
                let Ceiling {
                    name,
                    what,
                    unit,
                    spread,
                } = ceiling;
                let _ = writeln!(text, "  {name:<17}{}   {what}", told(spread, unit));
            }
        }
        for figure in &self.figures {
            figure_lines(figure, &mut text);
        }
        if let Some(why) = &self.incomplete {
            let _ = writeln!(
                text,
                "\nINCOMPLETE ({why}): only the runs that were finished are told"
            );
        }
        if !self.valid {
            text.push_str("\nINVALID: an audit was not clean\n");
        }
        text
    }

    fn head(&self) -> String {
        let stage = match self.stage {
            Kind::Embedded => "embedded server (SQLite)".to_owned(),
            Kind::Postgres => format!("{} node(s) on Postgres and Redis", self.nodes),
            Kind::Server => "a server that ran already".to_owned(),
        };
        let mut text = format!(
            "leasehold {} ({}), {stage}\nmachine   {}\n",
            self.version, self.build, self.machine
        );
        let pairs = |pairs: Vec<String>| pairs.join(" ");
        let stores = self
            .stores
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let options = self
            .options
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let _ = writeln!(text, "stores    {}", pairs(stores.collect()));
        let _ = writeln!(text, "options   {}", pairs(options.collect()));
        if cfg!(debug_assertions) {
            text.push_str("NOTE      a debug build: its figures say nothing\n");
        }
        if !self.not_durable.is_empty() {
            let _ = writeln!(
                text,
                "NOT DURABLE: {}; these figures are not to be compared",
                self.not_durable.join(", ")
            );
        }
        text
    }
}

fn figure_lines(figure: &Figure, text: &mut String) {
    let invalid = if figure.valid { "" } else { "   INVALID" };
    let what = match figure.mode {
        Mode::Idle => " p50 to the handler's start",
        Mode::Steady => " p99 to the handler's start",
        Mode::Streams => " of node memory a stream",
        Mode::Overload => " accepted",
        _ => "",
    };
    let _ = write!(
        text,
        "\n{:<19}{}{what}, {} run(s){invalid}\n",
        figure.mode.name(),
        told(&figure.spread, figure.unit),
        figure.samples.len()
    );
    for beside in &figure.beside {
        let ratio = match figure.unit {
            "ms" => format!("{:.1} x", beside.ratio),
            _ => format!("{:.0} % of", beside.ratio * 100.0),
        };
        let _ = writeln!(
            text,
            "  {ratio:<17}{} ({})",
            beside.ceiling,
            number(beside.value)
        );
    }
    let Some(sample) = middle(figure) else {
        return;
    };
    for (name, latency) in &sample.latencies {
        let Latency {
            p50,
            p90,
            p99,
            p999,
            max,
            ..
        } = latency;
        let _ = writeln!(
            text,
            "  {name:<17}p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms"
        );
    }
    let _ = writeln!(text, "  {:<17}{}", "a job costs", cost(&sample.cost));
    for (name, value) in &sample.more {
        let _ = writeln!(text, "  {name:<17} {}", number(*value));
    }
    for line in over_time(&sample.series) {
        let _ = writeln!(text, "  {line}");
    }
    let bad = figure.samples.iter().find(|sample| !sample.audit.clean());
    let _ = writeln!(text, "  {:<17}{}", "audit", bad.unwrap_or(sample).audit);
}

/// The first, middle and last look of a soak.
fn over_time(series: &[BTreeMap<&'static str, f64>]) -> Vec<String> {
    let at = [0, series.len() / 2, series.len().saturating_sub(1)];
    let looks: Vec<_> = at.iter().filter_map(|at| series.get(*at)).collect();
    let Some(first) = looks.first() else {
        return Vec::new();
    };
    first
        .keys()
        .map(|name| {
            let values = looks.iter().filter_map(|look| look.get(name));
            let values: Vec<String> = values.map(|value| number(*value)).collect();
            format!("{name:<17}{}", values.join(" -> "))
        })
        .collect()
}

/// The run whose value is the median, or next to it.
fn middle(figure: &Figure) -> Option<&Sample> {
    let off = |sample: &Sample| (sample.value - figure.spread.median).abs();
    figure
        .samples
        .iter()
        .min_by(|one, other| off(one).total_cmp(&off(other)))
}

/// What cannot be seen is left out.
fn cost(cost: &Cost) -> String {
    let Cost {
        server_us,
        postgres_us,
        redis_us,
        bench_us,
        wal_bytes,
        transactions,
        redis_commands,
    } = *cost;
    let parts = [
        ("server", server_us, " us of CPU"),
        ("Postgres", postgres_us, " us"),
        ("Redis", redis_us, " us"),
        ("bench", bench_us, " us"),
        ("WAL", wal_bytes, " B"),
        ("transactions", transactions, ""),
        ("Redis commands", redis_commands, ""),
    ];
    let seen = parts
        .into_iter()
        .filter_map(|(name, value, unit)| Some(format!("{name} {}{unit}", number(value?))));
    seen.collect::<Vec<_>>().join(", ")
}

fn told(spread: &Spread, unit: &str) -> String {
    let Spread {
        median, min, max, ..
    } = spread;
    format!(
        "{} {unit} ({} to {})",
        number(*median),
        number(*min),
        number(*max)
    )
}

/// Three digits or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        below if below < 10.0 => format!("{value:.2}"),
        below if below < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
