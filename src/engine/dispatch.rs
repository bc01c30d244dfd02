//! Hand-out: free slots first, then hints for them, then leases by one guarded write, then frames.
//!
//! One loop per node looks for jobs; grants are written by lanes, to which sessions are hashed, so that two statements
//! under way never lock the same session. Without a ready-list the loop claims segments of the backlog instead.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::batch::{Batcher, Bounds};
use super::candidate::{Candidate, Claims, in_turns, settle};
use super::heal::refused;
use super::hunger::doorbell;
use super::offer::Offers;
use super::sessions::Live;
use super::slots::Free;
use super::tasks::Tasks;
use super::{Core, lines_of, queues};
use crate::error::Error;
use crate::failpoint;
use crate::job::limits::BATCH_MAX;
use crate::job::{LeasedJob, Priority, QueueName, Step};
use crate::ready::{Hint, Want};
use crate::session::Event;
use crate::store::{Ask, Granted, SessionState};

/// Lanes of grants.
const LANES: usize = 2;
/// Grants that may be under way before the loop waits for some to end: then batches form.
const UNDER_WAY_MAX: usize = 2 * LANES * BATCH_MAX;
/// How often to look for work without a ready-list while slots are free.
const DIRECT_EVERY: Duration = Duration::from_millis(200);
/// How long a directly claimed segment is this node's.
const CLAIM_FOR: Duration = Duration::from_secs(5);
/// Segments of one direct claim.
const CLAIM_MAX: usize = 16;
/// Hints of one queue that are taken at once.
const TAKE_MAX: usize = BATCH_MAX;
/// One free slot in so many of a queue begins below the highest level, and so does one direct claim, so that no line is
/// starved for ever by those above it.
const LOWER_ONE_IN: usize = 16;
/// After a fault of the store, how long until the next grants.
const AFTER_FAULT: Duration = Duration::from_millis(500);
/// After a flush that got nothing because others had the rows locked.
const AFTER_LOCKED: Duration = Duration::from_millis(20);
/// Hints that another node has had for so long are taken over.
const STEAL_IDLE: Duration = Duration::from_secs(5);
const STEAL_EVERY: Duration = Duration::from_secs(1);
/// How long a slot counts that time alone has taken, and the other way round.
const RECOUNT_EVERY: Duration = Duration::from_secs(1);

/// A slot that was promised to a candidate.
struct Promise {
    candidate: Candidate,
    to: Arc<Live>,
    /// Freed when the grant has ended.
    _under_way: tokio::sync::OwnedSemaphorePermit,
}

pub(super) fn start(tasks: &Tasks, core: Arc<Core>, offers: Offers) {
    let brake = Arc::new(Brake::default());
    let claims = Arc::new(Claims::new(offers.clone()));
    let lanes = (0..LANES)
        .map(|_| {
            let bounds = Bounds {
                lanes: 1,
                beside: 1,
                linger: Duration::ZERO,
                waiting: UNDER_WAY_MAX,
                items: BATCH_MAX,
                bytes: usize::MAX,
            };
            let (core, brake, claims) = (core.clone(), brake.clone(), claims.clone());
            Batcher::start(
                tasks,
                bounds,
                |_| 0,
                move |batch| grant(core.clone(), brake.clone(), claims.clone(), batch),
            )
        })
        .collect();
    let dispatcher = Dispatcher {
        core: core.clone(),
        offers,
        brake,
        lanes,
        under_way: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
        claims,
        claimed_at: Instant::now(),
        stolen_at: Instant::now(),
        recounted_at: Instant::now(),
    };
    tasks.spawn(dispatcher.run(tasks.clone()));
    tasks.spawn(doorbell(tasks.clone(), core));
}

/// Slows down a loop whose grants come to nothing. What they were for is given back at once, and would be found at once:
/// a store that answers but takes no writes would be asked hundreds of times a second.
#[derive(Debug, Default)]
struct Brake(AtomicU64);

impl Brake {
    fn pull(&self, pause: Duration) {
        let ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_max(ms, Ordering::Relaxed);
    }

    fn release(&self) -> Option<Duration> {
        let ms = self.0.swap(0, Ordering::Relaxed);
        (ms > 0).then(|| Duration::from_millis(ms))
    }
}

struct Dispatcher {
    core: Arc<Core>,
    offers: Offers,
    brake: Arc<Brake>,
    lanes: Vec<Batcher<Promise>>,
    under_way: Arc<Semaphore>,
    claims: Arc<Claims>,
    claimed_at: Instant,
    stolen_at: Instant,
    recounted_at: Instant,
}

impl Dispatcher {
    async fn run(mut self, tasks: Tasks) {
        while !tasks.stopping().is_cancelled() {
            let idle = match self.look().await {
                Looked::Found => continue,
                Looked::Nothing if self.core.ready_is_degraded() => DIRECT_EVERY,
                Looked::Nothing => STEAL_EVERY,
                Looked::Pause(pause) => {
                    // Whatever rings: a pause that every free slot cuts short is none.
                    tasks.sleep(pause).await;
                    continue;
                }
            };
            // Cancel safe: these only wait, and a ring that comes later is kept.
            tokio::select! {
                () = tasks.stopping().cancelled() => {}
                () = self.core.wake.notified() => {}
                () = tokio::time::sleep(idle) => {}
            }
        }
        self.rest();
    }

    /// Nothing is handed out for now: what was fed goes to who can.
    fn rest(&self) {
        self.offers
            .pass_on(self.core.hungry.set(Vec::new(), BTreeMap::new()));
    }

    /// Nothing more is found for these slots.
    fn hunger(&self, free: &Free) {
        let fed = self.core.hungry.set(free.lines(), free.room.clone());
        if !fed.is_empty() {
            self.offers.offer(fed);
        }
    }

    /// One round: as many jobs as there are free slots, if there are as many.
    async fn look(&mut self) -> Looked {
        if self.core.is_draining() || self.core.store_is_away() {
            self.rest();
            return Looked::Pause(AFTER_FAULT);
        }
        if let Some(pause) = self.brake.release() {
            self.rest();
            return Looked::Pause(pause);
        }
        if self.recounted_at.elapsed() >= RECOUNT_EVERY {
            self.core.sessions.recount();
            self.recounted_at = Instant::now();
        }
        if let Err(error) = queues::known(&self.core).await {
            debug!(%error, "no hand-out before it is known what is set of queues");
            self.rest();
            return Looked::Pause(AFTER_FAULT);
        }
        let mut free = self.free();
        if free.queues.is_empty() {
            self.rest();
            return Looked::Nothing;
        }
        let fed = self.core.hungry.fed();
        if !fed.is_empty() {
            let fed = fed.into_iter().flat_map(Candidate::fed).collect();
            let surplus = self.assign(fed).await;
            self.claims.give_back(&self.core, surplus).await;
            free = self.free();
        }
        if self.is_in_vain(&free) {
            return Looked::Nothing;
        }
        let (candidates, all) = match self.candidates(&free).await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "no jobs can be claimed");
                return Looked::Pause(AFTER_FAULT);
            }
        };
        let candidates = in_turns(candidates, free.all);
        let found = !candidates.is_empty();
        if found {
            failpoint::reached("hints-taken");
        }
        let surplus = self.assign(candidates).await;
        let all = all && surplus.is_empty();
        self.claims.give_back(&self.core, surplus).await;
        if found && !all {
            return Looked::Found;
        }
        // Of those that nothing was found for, and not of one that has got its first free slot since.
        let mut still = self.free();
        still
            .queues
            .retain(|queue, _| free.queues.contains_key(queue));
        self.hunger(&still);
        Looked::Nothing
    }

    /// The slots that may be filled: a paused queue has none.
    fn free(&self) -> Free {
        let mut free = self.core.sessions.free();
        free.queues
            .retain(|queue, _| !self.core.queues.is_paused(queue));
        free
    }

    /// Gives candidates the slots there are. Returns those that got none.
    async fn assign(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let mut surplus = Vec::new();
        for candidate in candidates {
            let queue = &candidate.line.queue;
            // It may have been paused since they were asked for.
            let slot = match self.core.queues.is_paused(queue) {
                true => None,
                false => self.core.sessions.reserve(queue),
            };
            match slot {
                Some(to) => self.promise(candidate, to).await,
                None => surplus.push(candidate),
            }
        }
        surplus
    }

    /// Nothing was there at the last look, and the doorbell, which has listened since, heard nothing: a slot that becomes
    /// free is no reason to look again.
    fn is_in_vain(&self, free: &Free) -> bool {
        let shelved = self.core.shelved.swap(false, Ordering::Relaxed);
        !shelved
            && !self.core.ready_is_degraded()
            && self.stolen_at.elapsed() < STEAL_EVERY
            && self.claims.is_empty()
            && self.core.hungry.is_for(&free.lines(), || free.room.clone())
    }

    /// Jobs for free slots. `true`: they are all that there was.
    async fn candidates(&mut self, free: &Free) -> Result<(Vec<Candidate>, bool), Error> {
        let mut wanted = free.queues.clone();
        let mut found = Vec::new();
        self.claims.take(&mut wanted, &mut found);
        if !self.core.ready_is_away() {
            match self.take_hints(&mut wanted).await {
                Ok((hints, all)) => {
                    found.extend(hints.into_iter().map(Candidate::from));
                    // One that takes nothing new still gives what it has, and is emptied by that.
                    if !self.core.ready_is_degraded() {
                        return Ok((found, all));
                    }
                }
                Err(error) => {
                    debug!(%error, "no hints");
                    self.core.ready_failed();
                }
            }
        }
        // Only queues of which nothing is claimed want more here: no line is in the way of another.
        wanted.retain(|_, count| *count > 0);
        let is_time = found.is_empty() || self.claimed_at.elapsed() >= DIRECT_EVERY;
        if is_time && !wanted.is_empty() {
            self.claim(&wanted).await?;
            self.claims.take(&mut wanted, &mut found);
        }
        Ok((found, false))
    }

    /// Hints for what is wanted. `true`: no queue had as many as were asked of it.
    async fn take_hints(
        &mut self,
        wanted: &mut BTreeMap<QueueName, usize>,
    ) -> Result<(Vec<Hint>, bool), Error> {
        let ready = &self.core.ready;
        let mut hints = Vec::new();
        if self.stolen_at.elapsed() >= STEAL_EVERY {
            self.stolen_at = Instant::now();
            let queues = wanted.keys().cloned().collect();
            let most = wanted.values().copied().max().unwrap_or(0).min(TAKE_MAX);
            hints = ready.steal(lines_of(queues), STEAL_IDLE, most).await?;
            count_off(wanted, hints.iter().map(|hint| &hint.line.queue));
        }
        let wants: Vec<_> = wanted
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(queue, count)| want(queue, (*count).min(TAKE_MAX)))
            .collect();
        if wants.is_empty() {
            return Ok((hints, false));
        }
        let mut left: BTreeMap<_, _> = wants
            .iter()
            .map(|want| (want.queue.clone(), want.count))
            .collect();
        let taken = ready.take(wants).await?;
        count_off(wanted, taken.iter().map(|hint| &hint.line.queue));
        count_off(&mut left, taken.iter().map(|hint| &hint.line.queue));
        hints.extend(taken);
        Ok((hints, left.values().all(|left| *left > 0)))
    }

    async fn claim(&mut self, wanted: &BTreeMap<QueueName, usize>) -> Result<(), Error> {
        let total: usize = wanted.values().sum();
        let limit = (2 + total).min(CLAIM_MAX);
        let mut queues: Vec<_> = wanted.keys().cloned().collect();
        let mut segments = Vec::new();
        if lower_of(1) > 0 {
            let lines = lines_of(queues.clone()).into_iter();
            let lower = lines.filter(|line| line.priority != Priority::High);
            segments = self
                .core
                .store
                .claim(lower.collect(), CLAIM_FOR, limit)
                .await?;
            queues.retain(|queue| segments.iter().all(|s| s.line.queue != *queue));
        }
        if !queues.is_empty() {
            let lines = lines_of(queues);
            segments.extend(self.core.store.claim(lines, CLAIM_FOR, limit).await?);
        }
        segments.sort_by_key(|segment| Reverse(segment.line.priority));
        self.core
            .metrics
            .direct_claims(segments.iter().map(|s| s.jobs.len()).sum());
        self.claimed_at = Instant::now();
        let until = self.claimed_at + CLAIM_FOR;
        self.claims.add(segments, until);
        Ok(())
    }

    async fn promise(&self, candidate: Candidate, to: Arc<Live>) {
        let Ok(under_way) = self.under_way.clone().acquire_owned().await else {
            return;
        };
        let lane = self.lanes.get(lane_of(&to));
        let promise = Promise {
            candidate,
            to,
            _under_way: under_way,
        };
        // A lane has room for all that may be under way.
        if let Some(lane) = lane
            && let Err(promise) = lane.push(promise)
        {
            break_promises(&self.core, &self.claims, vec![promise]).await;
        }
    }
}

/// What is wanted of a queue for so many slots. Chance says how many of them begin at which lower level, so that nothing is
/// to be remembered of a queue.
fn want(queue: &QueueName, count: usize) -> Want {
    Want {
        queue: queue.clone(),
        count,
        lower: lower_of(count),
        lower_first: match rand::random() {
            true => Priority::Low,
            false => Priority::Normal,
        },
    }
}

/// How many of so many are the one in [`LOWER_ONE_IN`], on average just that.
fn lower_of(count: usize) -> usize {
    let one_more = rand::random_range(0..LOWER_ONE_IN) < count % LOWER_ONE_IN;
    count / LOWER_ONE_IN + usize::from(one_more)
}

enum Looked {
    Found,
    Nothing,
    Pause(Duration),
}

fn count_off<'a>(
    wanted: &mut BTreeMap<QueueName, usize>,
    queues: impl Iterator<Item = &'a QueueName>,
) {
    for queue in queues {
        if let Some(count) = wanted.get_mut(queue) {
            *count = count.saturating_sub(1);
        }
    }
}

fn lane_of(live: &Live) -> usize {
    let mut hasher = DefaultHasher::new();
    live.attached().session.hash(&mut hasher);
    usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0)
}

/// One flush of a lane: leases by one guarded write, then a frame for each session that got some.
async fn grant(core: Arc<Core>, brake: Arc<Brake>, claims: Arc<Claims>, batch: Vec<Promise>) {
    // How large the jobs are shows only now: who fell behind since the slot was promised gets none. Nor does any job go out
    // whose queue was paused since then.
    let (late, batch): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .partition(|p| p.to.is_behind() || core.queues.is_paused(&p.candidate.line.queue));
    break_promises(&core, &claims, late).await;
    if batch.is_empty() {
        return;
    }
    let asks = batch
        .iter()
        .map(|p| Ask {
            job: p.candidate.job,
            to: p.to.attached(),
        })
        .collect();
    let answers = match core.store.grant(core.node, asks).await {
        Ok(answers) => answers,
        Err(error) => {
            warn!(%error, jobs = batch.len(), "no leases granted");
            // It may have been committed all the same: then the sessions have leases that they do not know of.
            let asked = |p: &Promise| (p.candidate.job, p.to.attached().session);
            core.doubts.add(batch.iter().map(asked));
            brake.pull(AFTER_FAULT);
            batch.iter().map(|_| Granted::Locked).collect()
        }
    };
    let granted = answers
        .iter()
        .any(|answer| matches!(answer, Granted::Lease(_)));
    if granted {
        failpoint::reached("grant-committed");
    }
    let leased = answers.iter().filter_map(|answer| match answer {
        Granted::Lease(job) => Some(job),
        _ => None,
    });
    core.watches
        .changed(leased.clone().map(|job| job.lease.job));
    core.flows
        .count(Step::Started, leased.map(|job| &job.queue));
    core.metrics.batch("grant", batch.len());
    if answers.iter().all(|answer| *answer == Granted::Locked) {
        brake.pull(AFTER_LOCKED);
    }
    let mut sessions: BTreeMap<crate::job::SessionId, (Arc<Live>, Outcome)> = BTreeMap::new();
    let mut spent = Vec::new();
    let mut returned = Vec::new();
    for (promise, answer) in batch.into_iter().zip(answers) {
        let id = promise.to.attached().session;
        let (_, outcome) = sessions
            .entry(id)
            .or_insert_with(|| (promise.to.clone(), Outcome::default()));
        let queue = promise.candidate.line.queue.clone();
        match answer {
            Granted::Lease(job) => {
                core.metrics.started(&queue, job.waited);
                debug!(job_id = %job.lease.job, attempt = job.lease.attempt, %queue, session = %id, "granted");
                outcome.jobs.push(*job);
                spent.push(promise.candidate);
            }
            Granted::NotQueued => {
                outcome.missed.push(queue);
                spent.push(promise.candidate);
            }
            Granted::Locked => {
                outcome.missed.push(queue);
                returned.push(promise.candidate);
            }
            Granted::Refused(state) => {
                outcome.missed.push(queue);
                outcome.refused = Some(state);
                returned.push(promise.candidate);
            }
        }
    }
    for (live, outcome) in sessions.into_values() {
        live.feed(Event::Granted {
            jobs: outcome.jobs,
            missed: outcome.missed,
        });
        if let Some(event) = outcome.refused.and_then(refused) {
            live.feed(event);
        }
    }
    if granted {
        failpoint::reached("grant-unsettled");
    }
    settle(&core, spent).await;
    give_back(&core, &claims, returned).await;
}

async fn break_promises(core: &Core, claims: &Claims, promises: Vec<Promise>) {
    let mut returned = Vec::with_capacity(promises.len());
    for promise in promises {
        let missed = vec![promise.candidate.line.queue.clone()];
        promise.to.feed(Event::Granted {
            jobs: Vec::new(),
            missed,
        });
        returned.push(promise.candidate);
    }
    give_back(core, claims, returned).await;
}

/// Puts back what was not granted, and looks again: the slots rang when they were free, which was before it was there.
async fn give_back(core: &Core, claims: &Claims, returned: Vec<Candidate>) {
    if returned.is_empty() {
        return;
    }
    claims.give_back(core, returned).await;
    core.wake.notify_one();
}

#[derive(Default)]
struct Outcome {
    jobs: Vec<LeasedJob>,
    missed: Vec<QueueName>,
    refused: Option<SessionState>,
}
