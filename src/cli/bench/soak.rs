//! Jobs through their whole lives for long, retention included, with a look at all sizes every so often: whether
//! throughput and sizes come to a plateau.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::modes::{Modes, Taken, mib, rate};
use super::pace;
use crate::cli::exit::Failure;

/// Looks in a run, and the shortest time between two.
const LOOKS: u32 = 60;
const EVERY_MIN: Duration = Duration::from_millis(500);
const SIZES: &str = "
SELECT coalesce(sum(pg_table_size(c.oid)), 0)::float8, coalesce(sum(pg_indexes_size(c.oid)), 0)::float8,
       coalesce(sum(pg_stat_get_dead_tuples(c.oid)), 0)::float8
  FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace";

/// Steady load by batches, looked at; the last look is when it is over.
pub(super) async fn run(modes: &Modes<'_>, ledger: &Arc<Ledger>) -> Result<Taken, Failure> {
    let mut looks = Looks {
        modes,
        ledger,
        begun: Instant::now(),
        before: (Duration::ZERO, 0),
        series: Vec::new(),
    };
    // Cancel safe: what was seen until then is kept outside.
    let taken = tokio::select! {
        taken = pace::steady(modes, ledger, modes.args.batch) => taken,
        () = looks.go_on() => Err(Failure::trouble("the looks at the sizes ended by themselves")),
    };
    let mut taken = taken?;
    looks.look().await;
    taken.value = rate(ledger.jobs(), taken.took);
    taken.sample.series = looks.series;
    Ok(taken)
}

struct Looks<'a> {
    modes: &'a Modes<'a>,
    ledger: &'a Ledger,
    begun: Instant,
    /// When the last look was, and how many jobs had run then.
    before: (Duration, u64),
    series: Vec<BTreeMap<&'static str, f64>>,
}

impl Looks<'_> {
    /// Until it is dropped.
    async fn go_on(&mut self) {
        let every = (self.modes.args.duration / LOOKS).max(EVERY_MIN);
        loop {
            tokio::time::sleep(every).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let stage = self.modes.stage;
        let (at, ran) = (self.begun.elapsed(), self.ledger.ran());
        let mut seen = BTreeMap::from([
            ("seconds", at.as_secs_f64()),
            ("jobs", ran as f64),
            (
                "jobs_a_second",
                rate(ran - self.before.1, at - self.before.0),
            ),
        ]);
        self.before = (at, ran);
        if let Some(bytes) = stage.memory() {
            seen.insert("node_mib", mib(bytes as f64));
        }
        if let Some(list) = &stage.list
            && let Some(bytes) = list.spent().await.memory
        {
            seen.insert("redis_mib", mib(bytes));
        }
        match &stage.database {
            Some(database) => {
                let sizes: Result<(f64, f64, f64), _> =
                    sqlx::query_as(SIZES).fetch_one(database.pool()).await;
                if let Ok((tables, indexes, dead)) = sizes {
                    seen.insert("tables_mib", mib(tables));
                    seen.insert("indexes_mib", mib(indexes));
                    seen.insert("dead_rows", dead);
                }
            }
            None => {
                if let Some(bytes) = files(&stage.folder.join("data")) {
                    seen.insert("files_mib", mib(bytes));
                }
            }
        }
        self.series.push(seen);
    }
}

/// Bytes of all files in a folder.
fn files(folder: &Path) -> Option<f64> {
    let sizes = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.metadata().ok());
    Some(sizes.map(|file| file.len() as f64).sum())
}
