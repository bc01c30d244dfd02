//! The laws: I1 to I6 and I8 of the map in `src/lib.rs`, as they can be judged here. What needs waiting for is in `fair`.

use leasehold::job::state::Cause;
use leasehold::job::{AttemptOutcome, Lease, Outcome};

use super::store::{Job, Store};
use super::wire::{Id, Said, Told, job_of};
use super::world::{Bound, Handler, Named, World};

impl Store {
    /// Remembers the first law that was broken.
    pub fn law(&mut self, holds: bool, law: &'static str) {
        if !holds {
            self.fault.get_or_insert(law);
        }
    }

    /// Every change of a job goes through here, so that none escapes the laws of states and attempts.
    pub fn change(&mut self, job: usize, cause: Cause, change: impl FnOnce(&mut Job)) {
        let old = self.jobs[job].clone();
        change(&mut self.jobs[job]);
        let new = self.jobs[job].clone();
        let (Some(from), Some(to)) = (old.state, new.state) else {
            return self.law(false, "I1: a job's row is there once it was accepted");
        };
        self.law(
            from.allows(cause, to),
            "I2, I8: a job goes only where the table of states allows it",
        );
        self.law(
            new.attempt >= old.attempt,
            "I4: the number of the attempt only grows",
        );
        self.law(
            old.result.is_none() || old.result == new.result,
            "I2: a recorded result never changes",
        );
    }

    /// Before an ending changes a job; whether it is the late success of a lease that was lost.
    pub fn judge_record(&mut self, lease: Lease, session: Id, ending: &Outcome) -> bool {
        let job = job_of(lease);
        let is_own = self.jobs[job].attempt == lease.attempt && self.holder(lease) == Some(session);
        let ended = self.ending(lease);
        let is_salvage = matches!(ending, Outcome::Success(_))
            && matches!(
                ended,
                Some(AttemptOutcome::LeaseLost | AttemptOutcome::Forgotten)
            );
        self.law(
            is_own && (ended.is_none() || is_salvage),
            "I4, I8: only the holder of the newest attempt changes a job, and only while it has not ended",
        );
        let said = match ending {
            Outcome::Success(_) => Said::Success,
            Outcome::Failure(_) => Said::Failure,
            _ => Said::Release,
        };
        let stale = self.stale.contains(&(lease, session, said));
        self.law(!stale, "I4: what was told STALE is never recorded");
        is_salvage
    }

    /// A verdict is on its way to whoever asked for it.
    pub fn tells(&mut self, lease: Lease, session: Id, said: Said, told: Told) {
        let job = &self.jobs[job_of(lease)];
        let has = |outcome| job.ended.contains(&(lease.attempt, session, outcome));
        let recorded = match said {
            Said::Success => job.result == Some((lease.attempt, session)),
            Said::Failure => has(AttemptOutcome::Failed),
            Said::Release | Said::Stopped => has(AttemptOutcome::Released),
        };
        match told {
            Told::Recorded => self.law(recorded, "I2: what is told RECORDED is recorded"),
            Told::Stale => {
                self.law(!recorded, "I2: what is told STALE is not recorded");
                self.stale.insert((lease, session, said));
            }
            Told::Unknown => {
                let gone = self.jobs[job_of(lease)].gone;
                self.law(
                    gone,
                    "I2: no verdict is UNKNOWN while the job's row is there",
                );
            }
            Told::Rejected => self.law(false, "I2: a result that may be recorded is not refused"),
        }
    }

    /// A lease is granted to the stream that has the session, or nobody may know of it.
    pub fn granted_to(&mut self, session: Id, attach: u64) {
        let row = self.row(session);
        let is_its = row.is_some_and(|row| !row.dead && row.attach == attach);
        self.law(
            is_its,
            "I3: a grant commits only for the stream that has its session",
        );
    }

    /// The dead do not come back.
    pub fn lives_again(&self) -> bool {
        let mut rows = self.sessions.iter().flatten();
        rows.any(|row| row.died && !row.dead)
    }
}

impl World {
    /// What must hold in every state.
    pub fn judge(&mut self, bound: &Bound) {
        let mut faults = Vec::new();
        // Copies of a process have handlers of the same leases. Only their results are judged.
        for worker in self.workers.iter().filter(|_| !self.copied) {
            if worker.handlers.len() > bound.slots {
                faults.push("I9: a worker runs no more handlers than it has slots");
            }
            for handler in worker.handlers.values().filter(|h| !h.told) {
                let Handler { lease, session, .. } = *handler;
                let held = self.store.holds(lease, session) && !self.store.is_dead(session);
                // The job may be taken from under a handler by hand and by its timeout, and it is told soon. Else its
                // worker must have stopped it before anybody could have the lease.
                let taken = matches!(
                    self.store.ending(lease),
                    Some(AttemptOutcome::Cancelled | AttemptOutcome::TimedOut)
                );
                if !held && !taken && !worker.paused {
                    faults.push("I3: a handler that nobody told to stop has a valid lease");
                }
            }
        }
        if self.store.lives_again() {
            faults.push("I3: a dead session is dead for ever");
        }
        let mut named = Vec::new();
        for caller in 0..bound.jobs {
            match self.accepted[caller] {
                Some(Named::Job(job)) => named.push((caller, job)),
                Some(Named::Clash) => {
                    let other = |job: usize| {
                        let is_there = self.store.jobs[job].state.is_some();
                        is_there && self.store.request(job) != self.store.request(caller)
                    };
                    if !(0..bound.jobs).any(other) {
                        faults.push("I6: the same request is no error");
                    }
                }
                None => {}
            }
        }
        if named
            .iter()
            .any(|(_, job)| self.store.jobs[*job].state.is_none())
        {
            faults.push("I1: what was answered OK has a row");
        }
        let other = |(caller, job): &(usize, usize)| {
            bound.keyed
                && (*job != named[0].1 || self.store.request(*caller) != self.store.request(*job))
        };
        if named.iter().any(other) {
            faults.push("I6: one key names one job, and one request");
        }
        for fault in faults {
            self.store.law(false, fault);
        }
    }
}
