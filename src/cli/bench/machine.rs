//! The machine that everything runs on, and how long its disk takes to keep a write.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::figure::{Latency, Times};
use crate::cli::exit::Failure;

/// Writes of the disk test.
const SYNCS: usize = 200;
/// Bytes of each: a page of the database's log.
const SYNC_BYTES: usize = 8192;

/// What a reader must know of the machine to judge a figure.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
    memory_mib: u64,
    /// Load average of the minute before: above 0 means that others were at work.
    pub(super) load_before: f64,
}

impl Machine {
    pub(super) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        let unknown = || "unknown".to_owned();
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let kernel = read("/proc/sys/kernel/osrelease");
        Self {
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            kernel: match kernel.trim() {
                "" => std::env::consts::OS.to_owned(),
                release => format!("Linux {release}"),
            },
            memory_mib: kib.unwrap_or(0) / 1024,
            load_before: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cores,
            cpu,
            kernel,
            memory_mib,
            load_before,
        } = self;
        write!(
            f,
            "{cores} cores of {cpu}, {memory_mib} MiB, {kernel}; load average {load_before} before"
        )
    }
}

/// Writes to a file in `folder` and makes each write durable. What a commit at least costs, if the database is there.
pub(super) fn fdatasync(folder: &Path) -> Result<Latency, Failure> {
    let path = folder.join("fdatasync");
    let measure = || -> std::io::Result<Times> {
        let mut file = std::fs::File::create(&path)?;
        let page = [0x5a; SYNC_BYTES];
        let mut times = Times::new();
        for _ in 0..SYNCS {
            file.write_all(&page)?;
            let begun = Instant::now();
            file.sync_data()?;
            times.record(begun.elapsed());
        }
        Ok(times)
    };
    let times = measure();
    // It goes with its folder anyway.
    let _ = std::fs::remove_file(&path);
    times
        .map(|times| times.summary())
        .map_err(|why| Failure::trouble(format!("fdatasync in {}: {why}", folder.display())))
}
