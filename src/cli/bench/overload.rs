//! More than the server can take, for a while: it is to refuse the rest at once and with advice, keep what it accepts,
//! soon, and not grow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;
use worker_sdk::proto::job_service_client::JobServiceClient;

use super::figure::{Sample, Times};
use super::ledger::Ledger;
use super::modes::{Modes, Parts, Taken, mib, rate};
use super::options::Args;
use super::pace;
use crate::cli::exit::Failure;

/// Calls of one connection at once: fewer than a server has places for, so that none waits on this side.
const CALLS_A_CONNECTION: usize = 500;
/// How often the nodes' memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longer than any answer takes: one that does not come is a fault.
const CALL_WITHIN: Duration = Duration::from_secs(120);

/// What is offered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Offer {
    /// What the server took from clients who wait for their answers.
    closed: f64,
    rate: f64,
    /// All in all.
    pub(super) jobs: u64,
}

impl Offer {
    /// Several times what was measured.
    pub(super) fn of(args: &Args, measured: &Sample) -> Self {
        let rate = measured.value * args.times;
        let jobs = (rate * args.duration.as_secs_f64()).ceil().max(1.0);
        Self {
            closed: measured.value,
            rate,
            jobs: jobs as u64,
        }
    }
}

/// What came of the calls.
struct Answers {
    accepted: Times,
    /// From when each was to begin.
    from_due: Times,
    refused: Times,
    /// One of those that should not be, for people.
    bad: Option<String>,
}

/// Calls at the rate of the offer, each once, whatever comes of it. The figure is how many were accepted a second.
pub(super) async fn run(
    modes: &Modes<'_>,
    ledger: &Arc<Ledger>,
    offer: Offer,
) -> Result<Taken, Failure> {
    let outstanding = modes.args.outstanding;
    let mut channels = channels(modes, outstanding.div_ceil(CALLS_A_CONNECTION)).await?;
    let before = modes.stage.memory();
    let spent = modes.stage.spent().await;
    let answers = Arc::new(Mutex::new(Answers {
        accepted: Times::new(),
        from_due: Times::new(),
        refused: Times::new(),
        bad: None,
    }));
    let begun = Instant::now();
    let mut peak = before;
    let offering = offered(modes, ledger, offer, &mut channels, &answers);
    // Cancel safe: it only looks.
    let offered = tokio::select! {
        offered = offering => offered?,
        () = look(modes, &mut peak) => 0,
    };
    let took = begun.elapsed();
    let after = modes.stage.memory();
    let spent = (spent, modes.stage.spent().await);
    ledger.some_were_refused();
    let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bad) = &answers.bad {
        super::say(&format!(
            "overload: {} bad answers, the first: {bad}",
            ledger.bad_answers()
        ));
    }
    let (accepted, refused) = (answers.accepted.summary(), answers.refused.summary());
    let mut more = BTreeMap::from([
        ("closed_jobs_a_second", offer.closed),
        ("aimed_jobs_a_second", offer.rate),
        ("offered_jobs_a_second", rate(offered, took)),
        ("refused_jobs_a_second", rate(refused.count, took)),
        ("bad_answers", ledger.bad_answers() as f64),
    ]);
    let sizes = [
        ("node_mib_before", before),
        ("node_mib_peak", peak),
        ("node_mib_after", after),
    ];
    for (name, bytes) in sizes {
        more.extend(bytes.map(|bytes| (name, mib(bytes as f64))));
    }
    Ok(Taken {
        value: rate(accepted.count, took),
        took,
        spent,
        sample: Parts {
            latencies: BTreeMap::from([
                ("accepted", accepted),
                ("from_due", answers.from_due.summary()),
                ("refused", refused),
            ]),
            more,
            series: Vec::new(),
        },
    })
}

/// Makes the calls, for as long as the run is to take, and returns how many there were when all are answered.
async fn offered(
    modes: &Modes<'_>,
    ledger: &Arc<Ledger>,
    offer: Offer,
    channels: &mut [JobServiceClient<Channel>],
    answers: &Arc<Mutex<Answers>>,
) -> Result<u64, Failure> {
    let begun = Instant::now();
    let mut due = pace::pacemaker(offer.jobs, offer.rate, begun)?;
    let places = Arc::new(Semaphore::new(modes.args.outstanding));
    let mut calling = JoinSet::new();
    let mut count = 0;
    let mut turn = channels.iter().cycle();
    while let Some((number, at)) = due.recv().await {
        let place = places.clone().acquire_owned().await;
        // What could not be offered in time is not offered: the offer's rate would not be what it is said to be.
        if begun.elapsed() > modes.args.duration {
            break;
        }
        let Some(channel) = turn.next() else { break };
        let (mut channel, ledger, answers) = (channel.clone(), ledger.clone(), answers.clone());
        count += 1;
        calling.spawn(async move {
            let _place = place;
            let mut call = tonic::Request::new(ledger.request(number));
            call.set_timeout(CALL_WITHIN);
            let sent = Instant::now();
            let answer = channel.enqueue(call).await;
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(answer) => {
                    let id = answer.into_inner().job.unwrap_or_default().id;
                    ledger.accepted([Uuid::parse_str(&id).unwrap_or_default()]);
                    answers.accepted.record(sent.elapsed());
                    answers.from_due.record(at.elapsed());
                }
                Err(status) if is_advice(&status) => answers.refused.record(sent.elapsed()),
                Err(status) => {
                    ledger.answered_badly();
                    answers.bad.get_or_insert_with(|| status.to_string());
                }
            }
        });
        while let Some(called) = calling.try_join_next() {
            called.map_err(|why| Failure::trouble(format!("a caller: {why}")))?;
        }
    }
    while let Some(called) = calling.join_next().await {
        called.map_err(|why| Failure::trouble(format!("a caller: {why}")))?;
    }
    Ok(count)
}

/// A refusal that says when to come again.
fn is_advice(status: &Status) -> bool {
    let again = status.get_details_retry_info();
    let pause = again.and_then(|info| info.retry_delay);
    status.code() == Code::ResourceExhausted && pause.is_some_and(|pause| !pause.is_zero())
}

async fn channels(
    modes: &Modes<'_>,
    count: usize,
) -> Result<Vec<JobServiceClient<Channel>>, Failure> {
    let mut channels = Vec::with_capacity(count);
    for n in 0..count {
        let endpoint = Endpoint::from_shared(modes.stage.url(n).to_owned())
            .map_err(|why| Failure::usage(format!("the server's URL: {why}")))?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|why| Failure::trouble(format!("{}: {why}", modes.stage.url(n))))?;
        channels.push(JobServiceClient::new(channel));
    }
    Ok(channels)
}

/// Looks at the nodes' memory until it is dropped.
async fn look(modes: &Modes<'_>, peak: &mut Option<u64>) {
    loop {
        *peak = modes.stage.memory().max(*peak);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
