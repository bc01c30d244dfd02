//! The leases of one session, the slots they take, and when each must have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::job::{AttemptOutcome, HeldLease, Kind, Lease, LeasedJob, QueueName};

/// What is going on with one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its handler runs, as far as is known.
    Running,
    /// The worker was told to stop it: cancelled, timed out or lost. It keeps its slot until the worker says it ended.
    Stopping,
    /// Its end is being recorded, by a result that has arrived or because the worker forgot it. Its slot is free; a
    /// timeout comes too late for it.
    Reported,
}

/// Where a lease is on its way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    /// The worker does not have it; its job is being read to be pushed again.
    Unsent,
    /// In this frame; 0: it had it before this stream began.
    Sent(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    /// `None`: it is not a lease of this session, and its job is not known.
    job: Option<(QueueName, Kind)>,
    since: Duration,
    phase: Phase,
    way: Way,
    /// The last heartbeat did not list it although the worker has received its frame.
    missed: bool,
    timeout: Option<Duration>,
    ending: Option<AttemptOutcome>,
    /// Its result could not be recorded: it is the worker's to send it again.
    unanswered: bool,
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
    /// From its hand-out, or from when this stream began.
    pub ran: Duration,
}

/// The book of leases. In flight are those Running and Stopping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Held {
    leases: BTreeMap<Lease, Entry>,
    timeouts: BTreeSet<(Duration, Lease)>,
    in_flight: u32,
    in_flight_of: BTreeMap<QueueName, u32>,
}

impl Held {
    /// A job that goes to the worker in this frame, for the first time or again.
    pub fn push(&mut self, now: Duration, job: &LeasedJob, frame: u64) {
        let names = (job.queue.clone(), job.kind.clone());
        self.add(
            now,
            job.lease,
            Some(names),
            Phase::Running,
            Way::Sent(frame),
            job.time_left,
        );
    }

    /// A lease that the worker had before this stream began.
    pub fn adopt(&mut self, now: Duration, held: HeldLease) {
        self.add_held(now, held, Way::Sent(0));
    }

    /// A lease that the worker does not have: it takes its slot, and is to be pushed.
    pub fn expect(&mut self, now: Duration, held: HeldLease) {
        self.add_held(now, held, Way::Unsent);
    }

    /// An attempt that the worker runs without a lease of this session. It was told to stop it.
    pub fn stray(&mut self, now: Duration, lease: Lease) {
        self.add(now, lease, None, Phase::Stopping, Way::Sent(0), None);
    }

    /// What to count when the end of a lease is recorded; `outcome` if no result of it has arrived.
    pub fn ended(
        &self,
        now: Duration,
        lease: Lease,
        outcome: Option<AttemptOutcome>,
    ) -> Option<Ended> {
        let entry = self.leases.get(&lease)?;
        let (queue, kind) = entry.job.clone()?;
        Some(Ended {
            lease,
            queue,
            kind,
            outcome: entry.ending.or(outcome)?,
            ran: now.saturating_sub(entry.since),
        })
    }

    /// What is going on with a lease, if it is the session's.
    pub fn phase(&self, lease: Lease) -> Option<Phase> {
        self.leases.get(&lease).map(|entry| entry.phase)
    }

    /// Whether it has been sent to the worker.
    pub fn is_sent(&self, lease: Lease) -> bool {
        self.leases
            .get(&lease)
            .is_some_and(|entry| entry.way != Way::Unsent)
    }

    /// In which frame of this stream it was sent; 0 if in none.
    pub fn frame(&self, lease: Lease) -> u64 {
        match self.leases.get(&lease).map(|entry| entry.way) {
            Some(Way::Sent(frame)) => frame,
            _ => 0,
        }
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

    /// Its end is known: its slot is free from now on.
    pub fn report(&mut self, lease: Lease, ending: AttemptOutcome) {
        let Some(entry) = self.leases.get_mut(&lease) else {
            return;
        };
        entry.unanswered = false;
        if entry.phase != Phase::Reported {
            entry.phase = Phase::Reported;
            entry.ending = Some(ending);
            let queue = entry.job.as_ref().map(|(queue, _)| queue.clone());
            if let Some(at) = entry.timeout.take() {
                self.timeouts.remove(&(at, lease));
            }
            self.leave(queue.as_ref());
        }
    }

    /// Its result has arrived and could not be recorded.
    pub fn unanswered(&mut self, lease: Lease) {
        if let Some(entry) = self.leases.get_mut(&lease) {
            entry.unanswered = true;
        }
    }

    /// It is over.
    pub fn remove(&mut self, lease: Lease) {
        if let Some(entry) = self.leases.remove(&lease) {
            if let Some(at) = entry.timeout {
                self.timeouts.remove(&(at, lease));
            }
            if entry.phase != Phase::Reported {
                self.leave(entry.job.as_ref().map(|(queue, _)| queue));
            }
        }
    }

    /// Compares with what the worker says it has, as of `last_frame`. Returns the leases that it has received and did
    /// not list twice in a row; those that it was told to stop are over by that, the others it forgot.
    pub fn compare(&mut self, last_frame: u64, listed: &BTreeSet<Lease>) -> Vec<Lease> {
        let mut forgotten = Vec::new();
        let mut over = Vec::new();
        for (lease, entry) in &mut self.leases {
            let received = matches!(entry.way, Way::Sent(frame) if frame <= last_frame);
            let is_open = entry.phase != Phase::Reported || entry.unanswered;
            let misses = received && is_open && !listed.contains(lease);
            if misses && entry.missed {
                match entry.phase {
                    Phase::Stopping => over.push(*lease),
                    Phase::Running | Phase::Reported => forgotten.push(*lease),
                }
            }
            entry.missed = misses;
        }
        over.into_iter().for_each(|lease| self.remove(lease));
        forgotten
    }

    /// Jobs in flight of one queue.
    pub fn in_flight_of(&self, queue: &QueueName) -> u32 {
        self.in_flight_of.get(queue).copied().unwrap_or(0)
    }

    /// Jobs in flight of all queues.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// All leases, in order.
    pub fn all(&self) -> Vec<Lease> {
        self.leases.keys().copied().collect()
    }

    /// The leases that the worker has and runs, as far as is known.
    pub fn running(&self) -> impl Iterator<Item = Lease> + '_ {
        self.leases
            .iter()
            .filter(|(_, entry)| entry.phase == Phase::Running && entry.way != Way::Unsent)
            .map(|(lease, _)| *lease)
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

    fn add_held(&mut self, now: Duration, held: HeldLease, way: Way) {
        let names = (held.queue, held.kind);
        self.add(
            now,
            held.lease,
            Some(names),
            Phase::Running,
            way,
            held.time_left,
        );
    }

    fn add(
        &mut self,
        now: Duration,
        lease: Lease,
        job: Option<(QueueName, Kind)>,
        phase: Phase,
        way: Way,
        time_left: Option<Duration>,
    ) {
        self.remove(lease);
        let timeout = time_left.map(|left| now + left);
        if let Some(at) = timeout {
            self.timeouts.insert((at, lease));
        }
        self.in_flight += 1;
        if let Some((queue, _)) = &job {
            *self.in_flight_of.entry(queue.clone()).or_default() += 1;
        }
        self.leases.insert(
            lease,
            Entry {
                job,
                since: now,
                phase,
                way,
                missed: false,
                timeout,
                ending: None,
                unanswered: false,
            },
        );
    }

    fn leave(&mut self, queue: Option<&QueueName>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(queue) = queue
            && let Some(count) = self.in_flight_of.get_mut(queue)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.in_flight_of.remove(queue);
            }
        }
    }
}
