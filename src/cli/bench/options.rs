//! What to measure, on what, and how much of it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::exit::Failure;
use crate::config::SecretUrl;
use crate::job::limits::BATCH_MAX;

/// The first bytes of a payload number the job.
const PAYLOAD_MIN: usize = 8;
/// Jobs of one run: each is remembered.
const JOBS_MAX: u64 = 50_000_000;

/// Flags of `leasehold bench`.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Args {
    /// What to measure, in this order
    #[arg(value_enum, default_value = "all")]
    pub(super) modes: Vec<Mode>,
    /// Measure an embedded server that is started for it, in a folder of its own (this is the default)
    #[arg(long, group = "what")]
    embedded: bool,
    /// Measure nodes that are started for it on this Postgres, in a database of their own that is dropped at the end;
    /// the user needs the right to create one
    #[arg(long, value_name = "URL", group = "what", requires = "redis", value_parser = secret)]
    pub(super) postgres: Option<SecretUrl>,
    /// The Redis of those nodes: under a prefix of their own, removed at the end
    #[arg(long, value_name = "URL", requires = "postgres", value_parser = secret)]
    pub(super) redis: Option<SecretUrl>,
    /// How many nodes to start on --postgres and --redis
    #[arg(long, default_value_t = 1, requires = "postgres")]
    pub(super) nodes: usize,
    /// Measure this server, which runs already: its raw ceilings and most costs cannot be seen then
    #[arg(long, value_name = "URL", group = "what")]
    pub(super) server: Option<String>,
    /// With --server: go on although it holds jobs of others. Those of the benchmark stay there for an hour
    #[arg(long, requires = "server")]
    pub(super) fill: bool,
    /// Counted runs of each mode; the median and the range are told [default: 3; streams and soak 1]
    #[arg(long)]
    runs: Option<usize>,
    /// Jobs of a run [default: 25000 enqueue, 100000 enqueue-batch, drain and flow, 500 idle]
    #[arg(long)]
    pub(super) jobs: Option<u64>,
    /// Twice the jobs of a run: 50000 enqueue, 200000 enqueue-batch, drain and flow, 1000 idle. All modes take some ten
    /// minutes on two cores then, instead of less than four
    #[arg(long, conflicts_with = "jobs")]
    long: bool,
    /// Unary calls in flight (enqueue), and connections of the raw INSERTs beside it
    #[arg(long, default_value_t = 64)]
    pub(super) in_flight: usize,
    /// Callers of EnqueueBatch, and connections of the raw batches beside it
    #[arg(long, default_value_t = 4)]
    pub(super) callers: usize,
    /// Jobs of an EnqueueBatch (enqueue-batch, drain, flow, soak), and rows of a raw batch
    #[arg(long, default_value_t = 1000)]
    pub(super) batch: usize,
    /// Bytes of a payload
    #[arg(long, default_value_t = 100)]
    pub(super) payload: usize,
    /// Connections of those who enqueue
    #[arg(long, default_value_t = 4)]
    pub(super) connections: usize,
    /// Workers (drain, flow, steady, soak)
    #[arg(long, default_value_t = 4)]
    pub(super) workers: usize,
    /// Handlers that a worker runs at once
    #[arg(long, default_value_t = 500)]
    pub(super) slots: usize,
    /// Jobs a second (steady, soak)
    #[arg(long, default_value_t = 500.0)]
    pub(super) rate: f64,
    /// How many times what it can take the server is offered (overload)
    #[arg(long, default_value_t = 3.0)]
    pub(super) times: f64,
    /// Calls that wait for an answer at once, at most (overload)
    #[arg(long, default_value_t = 6_000)]
    pub(super) outstanding: usize,
    /// How long a run of steady, overload or soak takes
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,
    /// Idle workers (streams)
    #[arg(long, default_value_t = 1000)]
    pub(super) streams: usize,
    /// Write all figures to this file as JSON; - is stdout, and the table goes to stderr then
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Where the embedded server's data and the file of the fdatasync test are put [default: the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// Measure although fsync, synchronous_commit or full_page_writes is off: every figure is marked
    #[arg(long)]
    pub(super) not_durable: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    /// Enqueue, one job a call, many calls in flight
    Enqueue,
    /// EnqueueBatch, some callers
    EnqueueBatch,
    /// A prepared backlog is worked off by handlers that do nothing
    Drain,
    /// Batches are enqueued and worked off at the same time
    Flow,
    /// One job at a time: from the call to the start of its handler
    Idle,
    /// Jobs at a given rate, whatever the server does; latencies from when each was to begin
    Steady,
    /// Workers that wait: memory that each costs the node
    Streams,
    /// Jobs at a given rate for long, in batches, with sizes of tables and of Redis over time
    Soak,
    /// Single jobs at several times the rate that the server can take: what it accepts, what it refuses, and its memory
    Overload,
    /// All but streams, soak and overload
    All,
}

impl Mode {
    const SUITE: [Self; 6] = [
        Self::Enqueue,
        Self::EnqueueBatch,
        Self::Drain,
        Self::Flow,
        Self::Idle,
        Self::Steady,
    ];

    /// As it is typed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::EnqueueBatch => "enqueue-batch",
            Self::Drain => "drain",
            Self::Flow => "flow",
            Self::Idle => "idle",
            Self::Steady => "steady",
            Self::Streams => "streams",
            Self::Soak => "soak",
            Self::Overload => "overload",
            Self::All => "all",
        }
    }
}

impl Args {
    /// The modes to run, each once.
    pub(super) fn suite(&self) -> Vec<Mode> {
        let mut suite = Vec::new();
        for mode in &self.modes {
            let these = match mode {
                Mode::All => Mode::SUITE.to_vec(),
                one => vec![*one],
            };
            suite.extend(these);
        }
        let mut seen = std::collections::HashSet::new();
        suite.retain(|mode| seen.insert(*mode));
        suite
    }

    /// Counted runs of each mode.
    pub(super) fn runs(&self) -> usize {
        let long = |mode: &Mode| matches!(mode, Mode::Streams | Mode::Soak);
        let default = if self.suite().iter().any(long) { 1 } else { 3 };
        self.runs.unwrap_or(default)
    }

    /// Jobs of one run.
    pub(super) fn jobs(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Steady | Mode::Soak => (self.rate * self.duration.as_secs_f64()).ceil() as u64,
            Mode::Streams => self.streams as u64,
            _ => self.jobs.unwrap_or({
                let jobs = match mode {
                    Mode::Enqueue | Mode::Overload => 25_000,
                    Mode::Idle => 500,
                    _ => 100_000,
                };
                if self.long { 2 * jobs } else { jobs }
            }),
        }
    }

    /// What cannot be done as it was typed.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let refuse = |why: String| Err(Failure::usage(why));
        for (name, value, most) in [
            ("--runs", self.runs(), 1_000),
            ("--nodes", self.nodes, 64),
            ("--in-flight", self.in_flight, 10_000),
            ("--callers", self.callers, 1_000),
            ("--batch", self.batch, BATCH_MAX),
            ("--connections", self.connections, 1_000),
            ("--workers", self.workers, 1_000),
            ("--slots", self.slots, 10_000),
            ("--streams", self.streams, 100_000),
            ("--outstanding", self.outstanding, 200_000),
        ] {
            if !(1..=most).contains(&value) {
                return refuse(format!("{name} must be 1 to {most}"));
            }
        }
        if !(PAYLOAD_MIN..=1 << 20).contains(&self.payload) {
            return refuse(format!("--payload must be {PAYLOAD_MIN} to {}", 1 << 20));
        }
        if !(self.rate > 0.0 && self.rate <= 1_000_000.0) {
            return refuse("--rate must be above 0, up to 1000000".to_owned());
        }
        if !(self.times > 0.0 && self.times <= 100.0) {
            return refuse("--times must be above 0, up to 100".to_owned());
        }
        if self.suite().contains(&Mode::Streams) && (self.suite().len() > 1 || self.runs() > 1) {
            return refuse(
                "streams is measured alone and once: memory that was freed before would hide what a stream takes"
                    .to_owned(),
            );
        }
        match self
            .suite()
            .iter()
            .all(|mode| (1..=JOBS_MAX).contains(&self.jobs(*mode)))
        {
            true => Ok(()),
            false => refuse(format!("a run must have 1 to {JOBS_MAX} jobs")),
        }
    }
}

fn secret(text: &str) -> Result<SecretUrl, Infallible> {
    Ok(SecretUrl::new(text))
}
