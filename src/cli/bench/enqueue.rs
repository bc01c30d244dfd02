//! Those who enqueue: one job a call, or many.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;
use uuid::Uuid;
use worker_sdk::{Client, Enqueued, Error};

use super::figure::Times;
use super::ledger::Ledger;
use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;

/// Enqueues all jobs of the ledger by `callers`, each with `batch` jobs a call (1: unary calls). Returns how long each
/// call took.
pub(super) async fn all(
    clients: &[Client],
    ledger: &Arc<Ledger>,
    callers: usize,
    batch: usize,
) -> Result<Times, Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let mut calling = JoinSet::new();
    for client in clients.iter().cycle().take(callers) {
        calling.spawn(caller(client.clone(), ledger.clone(), next.clone(), batch));
    }
    let mut times = Times::new();
    while let Some(called) = calling.join_next().await {
        let called = called.map_err(|why| Failure::trouble(format!("a caller: {why}")))?;
        times.merge(&called.map_err(failure_of)?);
    }
    Ok(times)
}

async fn caller(
    client: Client,
    ledger: Arc<Ledger>,
    next: Arc<AtomicU64>,
    batch: usize,
) -> Result<Times, Error> {
    let mut times = Times::new();
    let step = batch as u64;
    loop {
        let from = next.fetch_add(step, Ordering::Relaxed);
        let to = (from + step).min(ledger.jobs());
        if from >= to {
            return Ok(times);
        }
        let begun = Instant::now();
        if batch == 1 {
            one(&client, &ledger, from).await?;
        } else {
            many(&client, &ledger, from..to, begun).await?;
        }
        times.record(begun.elapsed());
    }
}

/// Enqueues the jobs of these numbers by one call. They were to begin at `due`.
pub(super) async fn many(
    client: &Client,
    ledger: &Ledger,
    numbers: Range<u64>,
    due: Instant,
) -> Result<(), Error> {
    let jobs = numbers.map(|number| {
        ledger.due_at(number, due);
        ledger.job(number)
    });
    let answers = client.enqueue_batch(jobs).await?;
    ledger.accepted(answers.iter().filter_map(id));
    Ok(())
}

/// Enqueues the job of this number.
pub(super) async fn one(client: &Client, ledger: &Ledger, number: u64) -> Result<(), Error> {
    let answer = client.enqueue(ledger.job(number)).await?;
    ledger.accepted(id(&answer));
    Ok(())
}

/// The id that the server gave as accepted. One that is none would be missed by the audit, as it should.
fn id(answer: &Enqueued) -> Option<Uuid> {
    Some(Uuid::parse_str(&answer.job.id).unwrap_or_default())
}
