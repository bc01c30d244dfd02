//! Load at a given rate, whatever the server does: each job is to begin at its time, and what is late because the server
//! stalled counts from then on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use worker_sdk::Error;

use super::enqueue;
use super::figure::Times;
use super::ledger::Ledger;
use super::modes::{Modes, Parts, Taken, rate};
use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;

/// Calls in flight at most: what comes on top waits, and its waiting counts.
const IN_FLIGHT_MAX: usize = 4_096;
/// Jobs whose time has come and that are not taken up yet; more wait, and that counts too.
const DUE_MAX: usize = 65_536;

/// Enqueues the ledger's jobs at the rate of the arguments, `batch` a call, with workers on them. From when each was to
/// begin: to the server's OK (`accepted`), and to the start of its handler (`started`). The figure is the 99th percentile
/// of the latter.
pub(super) async fn steady(
    modes: &Modes<'_>,
    ledger: &Arc<Ledger>,
    batch: usize,
) -> Result<Taken, Failure> {
    let batch = batch as u64;
    let crew = modes.crew(ledger)?;
    let before = modes.stage.spent().await;
    let begun = Instant::now();
    let calls = ledger.jobs().div_ceil(batch);
    let mut due = pacemaker(calls, modes.args.rate / batch as f64, begun)?;
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let accepted = Arc::new(Mutex::new(Times::new()));
    let mut late = Times::new();
    let mut calling = JoinSet::new();
    let mut clients = modes.clients().iter().cycle();
    while let Some((call, at)) = due.recv().await {
        late.record(at.elapsed());
        let numbers = call * batch..((call + 1) * batch).min(ledger.jobs());
        let place = places.clone().acquire_owned().await;
        let client = clients.next().unwrap_or(modes.client()?).clone();
        let (ledger, accepted) = (ledger.clone(), accepted.clone());
        calling.spawn(async move {
            let _place = place;
            let called = match batch {
                1 => {
                    ledger.due_at(numbers.start, at);
                    enqueue::one(&client, &ledger, numbers.start).await
                }
                _ => enqueue::many(&client, &ledger, numbers, at).await,
            };
            let mut times = accepted.lock().unwrap_or_else(PoisonError::into_inner);
            times.record(at.elapsed());
            called
        });
        while let Some(called) = calling.try_join_next() {
            done(called)?;
        }
    }
    while let Some(called) = calling.join_next().await {
        done(called)?;
    }
    ledger.until_ran(ledger.jobs()).await?;
    let took = begun.elapsed();
    let after = modes.stage.spent().await;
    crew.leave().await?;
    let started = ledger.started().summary();
    let accepted = accepted.lock().unwrap_or_else(PoisonError::into_inner);
    let latencies = BTreeMap::from([
        ("accepted", accepted.summary()),
        ("started", started),
        ("bench_late", late.summary()),
    ]);
    Ok(Taken {
        value: started.p99,
        took,
        spent: (before, after),
        sample: Parts {
            latencies,
            more: BTreeMap::from([("jobs_a_second", rate(ledger.jobs(), took))]),
            series: Vec::new(),
        },
    })
}

/// Says the numbers of the calls, each at its time. A thread, since the runtime's timers are a millisecond coarse.
pub(super) fn pacemaker(
    calls: u64,
    rate: f64,
    begun: Instant,
) -> Result<mpsc::Receiver<(u64, Instant)>, Failure> {
    let (say, due) = mpsc::channel(DUE_MAX);
    let pace = move || {
        for number in 0..calls {
            let at = begun + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            // Nobody listens any more: the run was given up.
            if say.blocking_send((number, at)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("leasehold-pace".to_owned())
        .spawn(pace)
        .map_err(|why| Failure::trouble(format!("no thread to keep the pace: {why}")))?;
    Ok(due)
}

fn done(called: Result<Result<(), Error>, JoinError>) -> Result<(), Failure> {
    called
        .map_err(|why| Failure::trouble(format!("a caller: {why}")))?
        .map_err(failure_of)
}
