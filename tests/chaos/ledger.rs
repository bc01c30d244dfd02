//! What handlers did and what workers were told: an append-only file outside the system, a line an event.
//!
//! ```text
//! begin    JOB ATTEMPT WORKER MILLIS
//! end      JOB ATTEMPT WORKER MILLIS ok|error|dropped
//! step     JOB ATTEMPT WORKER MILLIS NAME        its work was begun
//! stepped  JOB ATTEMPT WORKER MILLIS NAME        its record is durable
//! told     JOB ATTEMPT WORKER MILLIS RECORDED|STALE|REJECTED|UNKNOWN STATE
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of the wall clock, which all processes of a run share.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// One worker's way into the file.
#[derive(Clone)]
pub struct Pen {
    file: Arc<File>,
    worker: Arc<str>,
}

impl Pen {
    pub fn open(path: &Path, worker: &str) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self {
            file: Arc::new(file.unwrap()),
            worker: worker.into(),
        }
    }

    /// One write a line, so that lines of several processes do not mix, and a kill leaves none half written.
    pub fn line(&self, what: &str, job: &str, attempt: u32, more: &str) {
        let (worker, now) = (&self.worker, now_ms());
        let line = format!("{what} {job} {attempt} {worker} {now} {more}\n");
        (&*self.file).write_all(line.as_bytes()).unwrap();
    }
}

/// A line of the file.
#[derive(Clone, Debug)]
pub struct Line {
    pub what: What,
    pub attempt: u32,
    pub worker: Arc<str>,
    pub at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Begin,
    Ended { ok: bool },
    Dropped,
    Step(Box<str>),
    Stepped(Box<str>),
    Recorded,
    Stale,
    Unclear(Box<str>),
}

/// All lines of each job, in the order they were written.
pub fn read(path: &Path) -> HashMap<String, Vec<Line>> {
    let mut jobs: HashMap<String, Vec<Line>> = HashMap::new();
    let mut workers: HashMap<String, Arc<str>> = HashMap::new();
    for line in BufReader::new(File::open(path).unwrap()).lines() {
        let line = line.unwrap();
        let parts: Vec<&str> = line.split(' ').collect();
        let [what, job, attempt, worker, at, more @ ..] = &parts[..] else {
            panic!("no line of a ledger: {line:?}");
        };
        let first = more.first().copied().unwrap_or_default();
        let what = match (*what, first) {
            ("begin", _) => What::Begin,
            ("end", "dropped") => What::Dropped,
            ("end", how) => What::Ended { ok: how == "ok" },
            ("step", name) => What::Step(name.into()),
            ("stepped", name) => What::Stepped(name.into()),
            ("told", "RECORDED") => What::Recorded,
            ("told", "STALE") => What::Stale,
            ("told", other) => What::Unclear(other.into()),
            _ => panic!("no line of a ledger: {line:?}"),
        };
        let name = workers.entry((*worker).to_owned());
        let worker = name.or_insert_with(|| (*worker).into()).clone();
        let line = Line {
            what,
            attempt: attempt.parse().unwrap(),
            worker,
            at: at.parse().unwrap(),
        };
        jobs.entry((*job).to_owned()).or_default().push(line);
    }
    jobs
}
