//! What bounds a figure: the raw statements on a table of the same shape in the same database, the same entries in the
//! same Redis, the disk. Measured in the same run, while the nodes are idle.

mod postgres;
mod sqlite;

use std::collections::BTreeMap;

use super::figure::{Ceiling, Spread};
use super::options::Args;
use super::stage::{Kind, Stage};
use super::{machine, say};
use crate::cli::exit::Failure;

/// Rows of one measurement at most; single rows are a tenth of them.
const ROWS_MAX: u64 = 100_000;

/// Rows a second, and the milliseconds of a commit, by one round of measuring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    /// Single-row INSERTs, a commit each.
    pub(super) single: f64,
    /// The median of a commit of one row, alone.
    pub(super) commit_ms: f64,
    /// INSERTs of a batch of rows each.
    pub(super) batch: f64,
    /// Rows that go through both guarded UPDATEs, by batches: QUEUED to RUNNING, and RUNNING to SUCCEEDED.
    pub(super) grant_and_result: f64,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amount {
    pub(super) singles: u64,
    pub(super) rows: u64,
    pub(super) batch: usize,
    pub(super) payload: usize,
    pub(super) in_flight: usize,
    pub(super) callers: usize,
}

/// The rounds of all ceilings.
#[derive(Debug, Default)]
pub(super) struct Ceilings {
    runs: BTreeMap<&'static str, Vec<f64>>,
}

impl Ceilings {
    /// Measures each once more.
    pub(super) async fn round(&mut self, stage: &Stage, args: &Args) -> Result<(), Failure> {
        say("ceilings");
        let folder = stage.folder.clone();
        let synced = tokio::task::spawn_blocking(move || machine::fdatasync(&folder)).await;
        let synced = synced.map_err(|why| Failure::trouble(why.to_string()))??;
        self.add("fdatasync", synced.p50);
        let jobs = args.suite().into_iter().map(|mode| args.jobs(mode)).max();
        let rows = jobs.unwrap_or(0).clamp(args.batch as u64, ROWS_MAX);
        let amount = Amount {
            singles: (rows / 10).max(100),
            rows,
            batch: args.batch,
            payload: args.payload,
            in_flight: args.in_flight,
            callers: args.callers,
        };
        let rows = match (&stage.database, stage.kind) {
            (Some(database), _) => postgres::measure(database, amount).await?,
            (None, Kind::Embedded) => sqlite::measure(&stage.folder, amount).await?,
            (None, _) => return Ok(()),
        };
        self.add("insert", rows.single);
        self.add("commit", rows.commit_ms);
        self.add("insert_batch", rows.batch);
        self.add("grant_and_result", rows.grant_and_result);
        let both = 1.0 / (1.0 / rows.batch + 1.0 / rows.grant_and_result);
        self.add("whole_life", both);
        if let Some(list) = &stage.list {
            self.add("xadd", list.add(amount.rows, args.batch).await?);
        }
        Ok(())
    }

    fn add(&mut self, name: &'static str, value: f64) {
        self.runs.entry(name).or_default().push(value);
    }

    /// All of them, with what each is.
    pub(super) fn told(&self, stage: &Stage, args: &Args) -> Vec<Ceiling> {
        let Args {
            in_flight,
            callers,
            batch,
            ..
        } = args;
        let (who, callers) = match stage.kind {
            Kind::Embedded => ("one connection, as SQLite has one writer".to_owned(), 1),
            _ => (format!("{in_flight} connections"), *callers),
        };
        let told = |name: &&'static str| -> (String, &'static str) {
            match *name {
                "insert" => (
                    format!("single-row INSERTs, a commit each, from {who}"),
                    "rows/s",
                ),
                "commit" => (
                    "median of an INSERT of one row with its commit, alone".into(),
                    "ms",
                ),
                "insert_batch" => (
                    format!("INSERTs of {batch} rows each, from {callers} connections"),
                    "rows/s",
                ),
                "grant_and_result" => (
                    format!(
                        "rows through two guarded UPDATEs of {batch} rows each, payloads returned by the first, from {callers} connections"
                    ),
                    "rows/s",
                ),
                "whole_life" => (
                    "rows through insert_batch and grant_and_result, one after the other".into(),
                    "rows/s",
                ),
                "xadd" => (
                    format!("XADDs, {batch} in a pipeline, one connection"),
                    "entries/s",
                ),
                _ => (
                    format!(
                        "median fdatasync of 8 KiB in {}",
                        stage.folder.parent().unwrap_or(&stage.folder).display()
                    ),
                    "ms",
                ),
            }
        };
        self.runs
            .iter()
            .map(|(name, runs)| {
                let (what, unit) = told(name);
                Ceiling {
                    name,
                    what,
                    unit,
                    spread: Spread::of(runs.clone()),
                }
            })
            .collect()
    }
}
