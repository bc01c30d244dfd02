//! The node's loops: each does a bounded step, again at once while there is more, then waits. One list of all of them.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::offer::{Offers, offer_now};
use super::tasks::Tasks;
use super::{Core, bulks, heal, queues};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::JobId;
use crate::job::limits::{BATCH_MAX, METRIC_NAMES_MAX};
use crate::session::Event;
use crate::store::{Segment, Swept};

/// Segments younger than this are still being offered by whoever wrote them.
const UNOFFERED_AGE: Duration = Duration::from_secs(2);
/// How long a segment that is to be offered again is this node's.
const REOFFER_CLAIM: Duration = Duration::from_secs(5);
/// Segments that one step offers.
const REOFFER_MAX: usize = 100;
/// Between two steps that take back a whole batch of jobs of dead sessions: 5,000 jobs a second and node.
const TAKE_BACK_PACE: Duration = Duration::from_millis(200);
/// How far back signals are read; they commit out of order, and a node may be slow.
const SIGNALS_WINDOW: Duration = Duration::from_secs(10);
/// Longest wait after a step that failed.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

pub(super) fn start(tasks: &Tasks, core: Arc<Core>, offers: &Offers) {
    let ms = Duration::from_millis;
    let step = |core: &Arc<Core>| core.clone();
    macro_rules! start {
        ($name:literal, $every:expr, $run:expr) => {{
            let (core, offers) = (step(&core), offers.clone());
            tasks.spawn(supervise(tasks.clone(), $name, $every, move || {
                $run(core.clone(), offers.clone())
            }));
        }};
    }
    start!("promote", ms(200), promote);
    start!("expire_jobs", ms(500), expire_jobs);
    start!("pulse", ms(1_000), pulse);
    start!("expire", ms(1_000), expire);
    start!("reconcile", ms(1_000), reconcile);
    start!("retain", ms(5_000), retain);
    start!("tidy", ms(2_000), tidy);
    start!("bulk", ms(500), bulks::step);
    start!("health", ms(1_000), health);
    start!("heal", heal::LOOK_EVERY, heal::look);
    start!("stats", ms(5_000), stats);
    tasks.spawn(queues::follow(tasks.clone(), core.clone()));
    tasks.spawn(signals(tasks.clone(), core));
}

/// Whether a step stopped at its bound.
type More = bool;

/// Runs a step every so often, with jitter so that nodes do not march in step; after a failure, less and less often.
async fn supervise<F, Fut>(tasks: Tasks, name: &'static str, every: Duration, step: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<More>>,
{
    let mut wait = every;
    loop {
        if !tasks
            .sleep(wait.mul_f64(rand::random_range(0.8..1.2)))
            .await
        {
            return;
        }
        wait = match step().await {
            Ok(true) => Duration::ZERO,
            Ok(false) => every,
            Err(error) => {
                match error {
                    Error::Unavailable { .. } => debug!(name, %error, "loop waits"),
                    _ => warn!(name, %error, "loop failed"),
                }
                (wait * 2).clamp(every, BACKOFF_MAX.max(every))
            }
        };
    }
}

async fn promote(core: Arc<Core>, offers: Offers) -> Result<More> {
    let promoted = core.store.promote(BATCH_MAX).await?;
    if promoted.changed > 0 {
        failpoint::reached("promote-committed");
    }
    core.watches.changed(jobs_of(&promoted.segments));
    Ok(swept(&offers, promoted))
}

/// Ends what has expired before it began. The grant has the same guard, so nothing depends on how late this is.
async fn expire_jobs(core: Arc<Core>, offers: Offers) -> Result<More> {
    Ok(swept(&offers, core.store.expire_jobs(BATCH_MAX).await?))
}

async fn pulse(core: Arc<Core>, _: Offers) -> Result<More> {
    core.store.touch_pulse().await?;
    Ok(false)
}

async fn expire(core: Arc<Core>, offers: Offers) -> Result<More> {
    let expired = core.store.expire(BATCH_MAX).await?;
    if expired.sessions > 0 || expired.jobs > 0 {
        info!(
            sessions = expired.sessions,
            jobs = expired.jobs,
            failed = expired.failed,
            "leases lost"
        );
        core.metrics.expired(expired.sessions, expired.jobs);
        let again = expired.jobs.saturating_sub(expired.failed);
        core.metrics
            .extra_executions(usize::try_from(again).unwrap_or(usize::MAX));
    }
    core.watches.changed(jobs_of(&expired.segments));
    offers.offer(expired.segments);
    if expired.more {
        // Whatever died, its jobs come back at a bounded rate: the store has other work, and a worker that only seemed
        // to be dead may still come with results, which save a run each if they come first.
        tokio::time::sleep(TAKE_BACK_PACE).await;
    }
    Ok(expired.more)
}

async fn retain(core: Arc<Core>, offers: Offers) -> Result<More> {
    Ok(swept(&offers, core.store.retain(BATCH_MAX).await?))
}

async fn tidy(core: Arc<Core>, offers: Offers) -> Result<More> {
    Ok(swept(&offers, core.store.tidy(BATCH_MAX).await?))
}

fn jobs_of(segments: &[Segment]) -> impl Iterator<Item = JobId> + '_ {
    segments
        .iter()
        .flat_map(|segment| segment.jobs.iter().copied())
}

fn swept(offers: &Offers, swept: Swept) -> More {
    offers.offer(swept.segments);
    swept.more
}

/// Offers again what the ready-list has lost, or was never told.
async fn reconcile(core: Arc<Core>, _: Offers) -> Result<More> {
    if core.ready_is_degraded() {
        // What it took to offer would be kept from direct claims.
        return Ok(false);
    }
    let Ok(epoch) = core.ready.epoch().await else {
        // The doorbell and the health loop report it.
        return Ok(false);
    };
    let unoffered = core
        .store
        .unoffered(epoch, UNOFFERED_AGE, REOFFER_CLAIM, REOFFER_MAX)
        .await?;
    let mut more = unoffered.len() == REOFFER_MAX;
    more &= offer_again(&core, unoffered).await?;

    let lines = core.sessions.lines();
    let Ok(probes) = core.ready.probe(lines.clone()).await else {
        return Ok(false);
    };
    for (line, probe) in lines.into_iter().zip(probes) {
        let lost = core
            .store
            .lost_offers(epoch, line, probe.first, UNOFFERED_AGE, REOFFER_MAX)
            .await?;
        more |= lost.len() == REOFFER_MAX;
        more &= offer_again(&core, lost).await?;
    }
    Ok(more)
}

/// `false`: the ready-list did not take them.
async fn offer_again(core: &Core, segments: Vec<Segment>) -> Result<bool> {
    if segments.is_empty() {
        return Ok(true);
    }
    let jobs: usize = segments.iter().map(|s| s.jobs.len()).sum();
    info!(segments = segments.len(), jobs, "offered again");
    core.metrics.reoffered(jobs);
    match offer_now(core, segments).await {
        Some(offers) => {
            core.store.offered(offers).await?;
            Ok(true)
        }
        None => Ok(false),
    }
}

async fn health(core: Arc<Core>, _: Offers) -> Result<More> {
    match core.ready.ping().await {
        Ok(_) => core.ready_answered(),
        Err(_) => core.ready_failed(),
    }
    // It may answer and take nothing: a nudge is the smallest thing to add.
    if core.ready_is_degraded() && !core.ready_is_away() {
        core.ready_took(core.ready.nudge().await.is_ok());
    }
    let now = core.store.now().await;
    core.store_answered(now.is_ok());
    if let Ok(now) = now {
        core.clock.learn(now);
    }
    let sessions = core.sessions.all();
    core.metrics.sessions(sessions.len());
    core.metrics.streams(sessions.len());
    core.metrics.watchers(core.watches.count());
    core.metrics
        .in_flight(sessions.iter().map(|live| live.in_flight() as usize).sum());
    // A store that is away is looked at as often as one that is not.
    Ok(false)
}

async fn stats(core: Arc<Core>, _: Offers) -> Result<More> {
    let stats = core.store.stats(METRIC_NAMES_MAX).await?;
    core.metrics
        .queues(stats.iter().map(|s| (&s.queue, s.counts, s.oldest_wait)));
    Ok(false)
}

/// Passes on what other nodes have cancelled: at each nudge, and at least twice a second.
async fn signals(tasks: Tasks, core: Arc<Core>) {
    // With the stream that was told: a session that is just moving here, or from one stream to another, may have read
    // its leases before the cancel, and is told by its new stream.
    let mut told = HashSet::new();
    loop {
        // Cancel safe: these only wait, and a nudge that comes later is kept.
        tokio::select! {
            () = tasks.stopping().cancelled() => return,
            () = core.nudged.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        if core.sessions.count() == 0 {
            continue;
        }
        match core
            .store
            .signals(core.node, SIGNALS_WINDOW, BATCH_MAX)
            .await
        {
            Ok(signals) => {
                let mut window = HashSet::with_capacity(signals.len());
                for signal in signals {
                    let Some(live) = core.sessions.get(signal.session) else {
                        continue;
                    };
                    let telling = (signal.id, live.attached());
                    if !told.contains(&telling) {
                        live.feed(Event::Cancel(signal.lease));
                    }
                    window.insert(telling);
                }
                told = window;
            }
            Err(error) => debug!(%error, "signals not read"),
        }
    }
}
