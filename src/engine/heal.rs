//! Keeps what the node's sessions have and what the store knows of them the same: looks at both every few seconds, and
//! reads jobs that are to be pushed again. What to make of a look is for the session to decide.
//!
//! A look asks for the sessions' leases by id, which costs a look-up each, and for leases that the session may not know
//! of: those of grants whose outcome is in doubt, by id as well, and any that are older than all that a tidy keeps for a
//! short while, through the log of grants. (Young ones, known to be granted, are on their way to the worker.) After a
//! fault of the store it asks for all of them a few times: a store that comes back may have lost what it had committed,
//! and have jobs RUNNING whose results the session knows to be recorded.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::sessions::Live;
use super::{Core, Offers};
use crate::error::Result;
use crate::job::limits::{BATCH_MAX, LEASE_TTL_MIN};
use crate::job::{HeldLease, JobId, Lease, SessionId};
use crate::session::Event;
use crate::store::{Found, SessionState};

/// Two looks show what is wrong within the shortest TTL.
pub const LOOK_EVERY: Duration = Duration::from_millis(LEASE_TTL_MIN.as_millis() as u64 / 3);
/// Leases older than this are looked for in the log of grants: by then it holds little but jobs that run for long.
const OLD: Duration = Duration::from_secs(60);
/// After a fault, so many looks are at all leases, however young: two must agree, and the first may be too early.
const LOOKS_AT_ALL: u32 = 3;
/// A grant in doubt is looked for so long: no statement takes longer.
const DOUBT_FOR: Duration = Duration::from_secs(45);
/// Grants in doubt that are remembered. Older ones show by their age.
const DOUBTS_MAX: usize = 20_000;
/// While a worker is behind with reading, how often it is looked whether it still is.
const BEHIND: Duration = Duration::from_millis(50);

/// What the store may have that the sessions do not know of.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Grants that it did not answer: they may have been committed all the same.
    grants: Mutex<VecDeque<(Instant, JobId, SessionId)>>,
    /// Looks still to come that are at all leases.
    looks_at_all: AtomicU32,
}

impl Doubts {
    /// Remembers that these jobs may be these sessions' now.
    pub fn add(&self, asks: impl Iterator<Item = (JobId, SessionId)>) {
        let now = Instant::now();
        let mut doubts = self.lock();
        doubts.extend(asks.map(|(job, session)| (now, job, session)));
        let surplus = doubts.len().saturating_sub(DOUBTS_MAX);
        doubts.drain(..surplus);
    }

    /// The store failed: whatever it has when it is back is looked at.
    pub fn store_failed(&self) {
        self.looks_at_all.store(LOOKS_AT_ALL, Ordering::Relaxed);
    }

    /// How old leases must be that a look asks for which begins now. One that fails has had its turn all the same: a
    /// store that is too slow to show all leases must not keep the old ones from being looked at.
    fn age(&self) -> Duration {
        let less = |left: u32| left.checked_sub(1);
        let order = Ordering::Relaxed;
        match self.looks_at_all.fetch_update(order, order, less) {
            Ok(_) => Duration::ZERO,
            Err(_) => OLD,
        }
    }

    fn all(&self) -> Vec<(JobId, SessionId)> {
        let doubts = self.lock();
        doubts.iter().map(|(_, job, id)| (*job, *id)).collect()
    }

    /// After a look that began `at` this moment.
    fn looked(&self, at: Instant) {
        self.lock().retain(|(since, ..)| *since + DOUBT_FOR > at);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, JobId, SessionId)>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One look at everything that the node's sessions have.
pub async fn look(core: Arc<Core>, _: Offers) -> Result<bool> {
    let sessions = core.sessions.all();
    let begun = Instant::now();
    let doubts = core.doubts.all();
    let age = core.doubts.age();
    for batch in sessions.chunks(BATCH_MAX) {
        look_at(&core, batch, &doubts, age).await?;
    }
    core.doubts.looked(begun);
    Ok(false)
}

async fn look_at(
    core: &Core,
    sessions: &[Arc<Live>],
    doubts: &[(JobId, SessionId)],
    age: Duration,
) -> Result<()> {
    let ids: HashMap<SessionId, usize> = sessions
        .iter()
        .enumerate()
        .map(|(i, live)| (live.attached().session, i))
        .collect();
    let mut looks: Vec<Look> = sessions.iter().map(|live| Look::at(live)).collect();
    let mut asked: Vec<(JobId, SessionId)> = Vec::new();
    for (live, look) in sessions.iter().zip(&looks) {
        let id = live.attached().session;
        asked.extend(look.running.iter().map(|lease| (lease.job, id)));
    }
    asked.extend(doubts.iter().filter(|(_, id)| ids.contains_key(id)));
    for chunk in asked.chunks(BATCH_MAX) {
        let answers = core.store.running(chunk.to_vec()).await?;
        for ((_, id), held) in chunk.iter().zip(answers) {
            if let (Some(held), Some(look)) = (held, ids.get(id).and_then(|i| looks.get_mut(*i))) {
                look.known.push(held);
            }
        }
    }
    let attached = sessions.iter().map(|live| live.attached()).collect();
    let old = core.store.leases(attached, age).await?;
    for ((live, look), old) in sessions.iter().zip(looks).zip(old) {
        // A session that is not this stream's any more is told so by its next renewal.
        if let Some(old) = old {
            live.feed(look.event(old));
        }
    }
    Ok(())
}

/// What a look shows of one session.
struct Look {
    running: Vec<Lease>,
    known: Vec<HeldLease>,
}

impl Look {
    fn at(live: &Live) -> Self {
        Self {
            running: live.running(),
            known: Vec::new(),
        }
    }

    fn event(self, old: Vec<HeldLease>) -> Event {
        let known: HashSet<Lease> = self.known.iter().map(|held| held.lease).collect();
        let vanished = self
            .running
            .into_iter()
            .filter(|lease| !known.contains(lease))
            .collect();
        let mut leases = self.known;
        leases.extend(old.into_iter().filter(|held| !known.contains(&held.lease)));
        Event::Looked { leases, vanished }
    }
}

/// Reads jobs that are to be pushed again, once their worker is not behind with reading.
pub async fn find(core: Arc<Core>, live: Arc<Live>, leases: Vec<Lease>) {
    while live.is_behind() && !live.outbox().is_closed() {
        tokio::time::sleep(BEHIND).await;
    }
    let session = live.attached().session;
    let asked = leases.iter().map(|lease| (*lease, session)).collect();
    let (mut jobs, mut gone) = (Vec::new(), Vec::new());
    match core.store.leased(asked).await {
        Ok(found) => {
            for (lease, found) in leases.into_iter().zip(found) {
                match found {
                    Found::Job(job) => jobs.push(*job),
                    Found::NotHeld => gone.push(lease),
                    Found::Later => {}
                }
            }
        }
        Err(error) => debug!(%session, %error, "jobs not read again yet"),
    }
    for job in &jobs {
        let lease = job.lease;
        debug!(job_id = %lease.job, attempt = lease.attempt, queue = %job.queue, %session, "pushed again");
    }
    core.metrics.resent(jobs.len());
    live.feed(Event::Found { jobs, gone });
}

/// The event of a session that the store does not call alive.
pub fn refused(state: SessionState) -> Option<Event> {
    match state {
        SessionState::Alive => None,
        // Its next renewal puts it right.
        SessionState::Lapsed | SessionState::Behind => Some(Event::Lapsed),
        SessionState::Moved => Some(Event::Moved),
        SessionState::Dead => Some(Event::Dead),
    }
}
