//! What the run is played on: a Postgres, a Redis, nodes and workers, each a process; and the relays between them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::relay::Relay;
use crate::stack::Stack;
use crate::support::{Process, python};
use crate::worker::{LOG, NAME, URL};

/// Two at most are away at once by a plan; all are, by chance.
pub const NODES: usize = 3;
/// By the SDK; one more is in Python.
pub const RUST_WORKERS: usize = 4;
pub const WORKERS: usize = RUST_WORKERS + 1;
/// Ways of clients to the nodes.
pub const CLIENTS: usize = 4;

/// What went otherwise than it should, beside what the audit finds in jobs.
#[derive(Clone, Default)]
pub struct Complaints(Arc<Mutex<Vec<String>>>);

impl Complaints {
    pub fn add(&self, complaint: String) {
        eprintln!("chaos: {complaint}");
        self.0.lock().unwrap().push(complaint);
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub struct Stage {
    pub stack: Stack,
    pub workers: Vec<WorkerSlot>,
    /// Of the workers, in their order, and then of the clients.
    pub relays: Vec<Arc<Relay>>,
    pub ledger: PathBuf,
    pub complaints: Complaints,
}

impl Stage {
    pub async fn set(folder: &Path) -> Self {
        let python = tokio::task::spawn_blocking(python).await.unwrap();
        let stack = Stack::start_with(NODES, &["--drain-grace", "3s", "--lease-ttl", "10s"]).await;
        let nodes: Vec<SocketAddr> = stack.nodes.iter().map(|node| node.address).collect();
        let ledger = folder.join("ledger");
        let (mut relays, mut workers) = (Vec::new(), Vec::new());
        for n in 0..WORKERS + CLIENTS {
            relays.push(Arc::new(Relay::to(nodes.clone(), n).await));
        }
        for (n, relay) in relays.iter().enumerate().take(WORKERS) {
            workers.push(WorkerSlot::start(n, relay, &ledger, &python));
        }
        Self {
            stack,
            workers,
            relays,
            ledger,
            complaints: Complaints::default(),
        }
    }

    /// Ways for the clients.
    pub fn client_urls(&self) -> Vec<String> {
        self.relays[WORKERS..].iter().map(|r| r.url()).collect()
    }

    /// Lets the workers leave in order: all they did has its verdict then.
    pub async fn dismiss_workers(&mut self) {
        for worker in &self.workers {
            worker.process.terminate();
        }
        for worker in &mut self.workers {
            let status = worker.process.ended(Duration::from_secs(60)).await;
            if !status.success() {
                let log = worker.process.log();
                let tail = &log[log.len().saturating_sub(10)..];
                let why = format!("worker {} left with {status}: {tail:#?}", worker.name());
                self.complaints.add(why);
            }
        }
        for node in &mut self.stack.nodes {
            if let Some(status) = node.process.exit_status() {
                let why = format!("node {} ended by itself: {status}", node.address);
                self.complaints.add(why);
            }
        }
    }
}

/// A place of a worker: it is filled again whenever its process is killed.
pub struct WorkerSlot {
    number: usize,
    generation: usize,
    url: String,
    ledger: PathBuf,
    python: PathBuf,
    pub process: Process,
}

impl WorkerSlot {
    fn start(number: usize, relay: &Relay, ledger: &Path, python: &Path) -> Self {
        let (url, ledger, python) = (relay.url(), ledger.to_owned(), python.to_owned());
        let process = spawn(number, 1, &url, &ledger, &python);
        Self {
            number,
            generation: 1,
            url,
            ledger,
            python,
            process,
        }
    }

    pub fn name(&self) -> String {
        name(self.number, self.generation)
    }

    /// kill -9, and another one in its place.
    pub fn kill_and_replace(&mut self) {
        self.process.kill();
        self.generation += 1;
        self.process = spawn(
            self.number,
            self.generation,
            &self.url,
            &self.ledger,
            &self.python,
        );
    }
}

/// No two processes of a run have one name.
fn name(number: usize, generation: usize) -> String {
    format!("w{number}.{generation}")
}

fn spawn(number: usize, generation: usize, url: &str, ledger: &Path, python: &Path) -> Process {
    let name = name(number, generation);
    let command = if number < RUST_WORKERS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_worker_of_the_run", "--nocapture"]);
        command
            .env(URL, url)
            .env(LOG, ledger)
            .env(NAME, name.as_str());
        command
    } else {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/chaos_worker.py");
        let mut command = Command::new(python);
        let address = url.trim_start_matches("http://");
        command.arg(script).arg(address).arg(ledger).arg(&name);
        command
    };
    Process::start(&name, command)
}
