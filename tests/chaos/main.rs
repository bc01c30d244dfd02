//! The chaos run: real nodes, workers, Postgres and Redis, faults chosen by a seed, and an audit of every job at the end.
//!
//! ```text
//! clients ── relays ──> nodes ──> Postgres, Redis       all are processes; kill -9, SIGSTOP, SIGTERM, FLUSHALL
//! workers ── relays ──>                                 relays cut, stall and slow what passes
//!    └─ a ledger of their own: what they did, and what they were told
//! ```
//!
//! `./scripts/chaos` runs it at any size; the default run takes five minutes. These say how large it is:
//!
//! | variable | what | default |
//! |---|---|---|
//! | `CHAOS_KILLS` | kill -9; other faults come with them | 100 |
//! | `CHAOS_JOBS` | jobs that clients enqueue meanwhile | 50000 |
//! | `CHAOS_SEED` | chooses faults and jobs | one that is printed |
//! | `CHAOS_SECONDS` | how long faults go on | 1.2 a kill |
//! | `CHAOS_KEEP` | a folder where the ledger and a timeline of faults are left | none |

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by a panic that says what was wrong"
)]

#[path = "../system/stack.rs"]
#[allow(dead_code, reason = "shared with the system's tests")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

mod audit;
mod audit_check;
mod faults;
mod ledger;
mod load;
mod relay;
mod stage;
mod table;
mod worker;

use std::collections::HashMap;
use std::env;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::time::Instant;
use worker_sdk::{Client, Job};

use crate::audit::{Evidence, audit};
use crate::faults::Plan;
use crate::load::Seen;
use crate::stage::Stage;
use crate::table::{table, timeline};
use crate::worker::{LOG, NAME, URL};

/// Jobs that are looked at side by side.
const AT_ONCE: usize = 64;
/// With nothing in the way, no job may take longer than this for its next step: a lease lost to an outage, in a row.
const PATIENCE: Duration = Duration::from_secs(90);

fn given<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    let value = text.parse().ok();
    Some(value.unwrap_or_else(|| panic!("{name} is no number: {text}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_promise_is_broken_whatever_is_killed_stopped_wiped_cut_and_slowed() {
    let kills = given("CHAOS_KILLS").unwrap_or(100);
    let jobs = given("CHAOS_JOBS").unwrap_or(50_000);
    let seed = given("CHAOS_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let seconds = given("CHAOS_SECONDS").unwrap_or(kills as f64 * 1.2);
    let within = Duration::from_secs_f64(seconds);
    eprintln!("chaos: {kills} kills, {jobs} jobs, seed {seed}, {seconds:.0} s of faults");

    let begin = Instant::now();
    let folder = TempDir::new().unwrap();
    let mut stage = Stage::set(folder.path()).await;
    let (urls, complaints) = (stage.client_urls(), stage.complaints.clone());
    let load = tokio::spawn(load::run(urls, complaints, seed, jobs, within));
    let faults = Plan::new(seed, kills, within).play(&mut stage).await;
    eprintln!("chaos: quiet after {:.0?}", begin.elapsed());
    let told = load.await.unwrap().all();
    let load_until = ledger::now_ms();
    eprintln!("chaos: clients done after {:.0?}", begin.elapsed());

    let clients: Vec<Client> = stage
        .stack
        .nodes
        .iter()
        .map(|n| Client::connect_lazy(&n.url()).unwrap().deadline(PATIENCE))
        .collect();
    let before = settled(&clients, told.keys().cloned().collect()).await;
    eprintln!("chaos: settled after {:.0?}", begin.elapsed());
    stage.dismiss_workers().await;
    let evidence = Evidence {
        jobs: look(&clients, told.keys().cloned().collect()).await,
        ledger: ledger::read(&stage.ledger),
        told,
        before,
        faults,
        load_until,
    };
    let findings = audit(&evidence);
    let complaints = stage.complaints.count();
    let text = table(&evidence, &findings, complaints);
    if let Ok(folder) = env::var("CHAOS_KEEP") {
        std::fs::copy(&stage.ledger, Path::new(&folder).join("ledger")).unwrap();
        std::fs::write(Path::new(&folder).join("timeline"), timeline(&evidence)).unwrap();
    }
    println!("\nseed {seed}, {:.0?}\n{text}", begin.elapsed());
    assert_eq!(
        findings.count() + complaints,
        0,
        "broken promises with seed {seed}; see the table above"
    );
}

/// Waits until every job is final, or none has become so for long; gives those that are.
async fn settled(clients: &[Client], mut open: Vec<String>) -> HashMap<String, Seen> {
    let mut done = HashMap::new();
    let mut moved = Instant::now();
    while !open.is_empty() && moved.elapsed() < PATIENCE {
        let looked = look(clients, std::mem::take(&mut open)).await;
        let many = done.len();
        for (id, job) in looked {
            match job {
                Some(job) if job.is_final() => {
                    done.insert(id, Seen::of(&job));
                }
                Some(_) => open.push(id),
                None => {}
            }
        }
        if done.len() > many {
            moved = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    done
}

/// The jobs as they are now.
async fn look(clients: &[Client], ids: Vec<String>) -> HashMap<String, Option<Job>> {
    let each = ids.into_iter().enumerate().map(|(n, id)| {
        let client = &clients[n % clients.len()];
        async move {
            let job = match client.get(&id).await {
                Ok(job) => Some(job),
                Err(error) if error.reason() == Some("JOB_NOT_FOUND") => None,
                Err(error) => panic!("{id}: {error}"),
            };
            (id, job)
        }
    });
    let looks = futures_util::stream::iter(each).buffer_unordered(AT_ONCE);
    looks.collect().await
}

/// Does nothing by itself: the run starts it as a worker, in a process of its own.
#[test]
fn the_worker_of_the_run() {
    let (Ok(url), Ok(log), Ok(name)) = (env::var(URL), env::var(LOG), env::var(NAME)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime
        .unwrap()
        .block_on(worker::run(&url, Path::new(&log), &name));
}
