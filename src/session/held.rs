//! The leases of one session, the slots they take, and when each must have ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::job::{AttemptOutcome, Kind, Lease, LeasedJob, QueueName};

/// What is going on with one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Pushed; its handler runs, as far as is known.
    Running,
    /// The worker was told to stop it: cancelled, timed out or lost. It keeps its slot until the worker says it ended.
    Stopping,
    /// A result has arrived and is being recorded. Its slot is free; a timeout comes too late for it.
    Reported,
}

#[derive(Debug, Clone)]
struct Entry {
    queue: QueueName,
    kind: Kind,
    since: Duration,
    phase: Phase,
    timeout: Option<Duration>,
    ending: Option<AttemptOutcome>,
}

/// An attempt whose end is recorded, for those who count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which attempt.
    pub lease: Lease,
    /// Where its job waited.
    pub queue: QueueName,
    /// Which handler ran it.
    pub kind: Kind,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// From its hand-out.
    pub ran: Duration,
}

/// The book of leases. In flight are those Running and Stopping.
#[derive(Debug, Default)]
pub struct Held {
    leases: HashMap<Lease, Entry>,
    timeouts: BTreeSet<(Duration, Lease)>,
    in_flight: BTreeMap<QueueName, u32>,
}

impl Held {
    /// A job that is on its way to the worker.
    pub fn push(&mut self, now: Duration, job: &LeasedJob) {
        let (lease, queue) = (job.lease, job.queue.clone());
        self.remove(lease);
        let timeout = job.time_left.map(|left| now + left);
        if let Some(at) = timeout {
            self.timeouts.insert((at, lease));
        }
        *self.in_flight.entry(queue.clone()).or_default() += 1;
        let (kind, phase) = (job.kind.clone(), Phase::Running);
        self.leases.insert(
            lease,
            Entry {
                queue,
                kind,
                since: now,
                phase,
                timeout,
                ending: None,
            },
        );
    }

    /// What to count when the end of a lease is recorded; `outcome` if no result of it has arrived.
    pub fn ended(
        &self,
        now: Duration,
        lease: Lease,
        outcome: Option<AttemptOutcome>,
    ) -> Option<Ended> {
        let entry = self.leases.get(&lease)?;
        Some(Ended {
            lease,
            queue: entry.queue.clone(),
            kind: entry.kind.clone(),
            outcome: entry.ending.or(outcome)?,
            ran: now.saturating_sub(entry.since),
        })
    }

    /// What is going on with a lease, if it is the session's.
    pub fn phase(&self, lease: Lease) -> Option<Phase> {
        self.leases.get(&lease).map(|entry| entry.phase)
    }

    /// The worker is told to stop it. `false` if it was not running.
    pub fn stop(&mut self, lease: Lease) -> bool {
        match self.leases.get_mut(&lease) {
            Some(entry) if entry.phase == Phase::Running => {
                entry.phase = Phase::Stopping;
                if let Some(at) = entry.timeout.take() {
                    self.timeouts.remove(&(at, lease));
                }
                true
            }
            _ => false,
        }
    }

    /// A result has arrived: its slot is free from now on.
    pub fn report(&mut self, lease: Lease, ending: AttemptOutcome) {
        let Some(entry) = self.leases.get_mut(&lease) else {
            return;
        };
        if entry.phase != Phase::Reported {
            entry.phase = Phase::Reported;
            entry.ending = Some(ending);
            let queue = entry.queue.clone();
            if let Some(at) = entry.timeout.take() {
                self.timeouts.remove(&(at, lease));
            }
            self.leave(&queue);
        }
    }

    /// It is over.
    pub fn remove(&mut self, lease: Lease) {
        if let Some(entry) = self.leases.remove(&lease) {
            if let Some(at) = entry.timeout {
                self.timeouts.remove(&(at, lease));
            }
            if entry.phase != Phase::Reported {
                self.leave(&entry.queue);
            }
        }
    }

    /// Jobs in flight of one queue.
    pub fn in_flight_of(&self, queue: &QueueName) -> u32 {
        self.in_flight.get(queue).copied().unwrap_or(0)
    }

    /// Jobs in flight of all queues.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.values().sum()
    }

    /// All leases, in order.
    pub fn all(&self) -> Vec<Lease> {
        let mut all: Vec<Lease> = self.leases.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// The next time at which an attempt is over.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.timeouts.first().map(|(at, _)| *at)
    }

    /// Running leases whose time is over at `now`.
    pub fn timed_out(&self, now: Duration) -> Vec<Lease> {
        self.timeouts
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, lease)| *lease)
            .collect()
    }

    fn leave(&mut self, queue: &QueueName) {
        if let Some(count) = self.in_flight.get_mut(queue) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.in_flight.remove(queue);
            }
        }
    }
}
