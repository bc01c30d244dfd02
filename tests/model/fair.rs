//! What must come in the end: from here on nothing fails, all that waits is done, and time passes. Then every accepted job
//! becomes final, and every handler whose lease is gone is told (I1, I7, I8).
//!
//! One such path is walked from a state, not all of them; it stands for any fair one, since whatever it does may be done
//! by another in another order.

use leasehold::job::JobState;

use super::calls::Phase;
use super::steps::{End, Step};
use super::world::{Bound, Named, Server, World};

/// Long steps of the clock until all must be done.
const STEPS_MAX: usize = 60;
/// Steps without the clock, until nothing is left to do.
const BUSY_MAX: usize = 2_000;

impl World {
    /// The promise that is not kept on the way, if there is one.
    pub fn owes(&self, bound: &Bound) -> Option<&'static str> {
        let mut world = self.clone();
        world.calm(bound);
        for _ in 0..STEPS_MAX {
            if let Err(fault) = world.work(bound) {
                return Some(fault);
            }
            if world.is_done() {
                return match world.copied {
                    true => world.takes_turns(bound),
                    false => None,
                };
            }
            world.take(Step::Time(true), bound);
        }
        Some(match world.is_settled() {
            true => "I8: a handler whose job is gone is told to stop",
            false => "I1: every accepted job becomes final",
        })
    }

    /// Two copies of a process each have a session of their own soon, and keep it.
    fn takes_turns(&mut self, bound: &Bound) -> Option<&'static str> {
        let mut opened = Vec::new();
        for _ in 0..20 {
            self.take(Step::Time(true), bound);
            if let Err(fault) = self.work(bound) {
                return Some(fault);
            }
            opened.push(self.streams.iter().map(|s| s.no.0).sum::<u64>());
        }
        (opened[10] != opened[19]).then_some("I9: two copies of a process do not take turns")
    }

    fn is_settled(&self) -> bool {
        self.accepted.iter().all(|named| match named {
            Some(Named::Job(job)) => {
                self.store.jobs[*job].state.is_some() && self.store.is_final(*job)
            }
            Some(Named::Clash) => true,
            None => false,
        })
    }

    fn is_done(&self) -> bool {
        let mut handlers = self.workers.iter().flat_map(|w| w.handlers.values());
        self.is_settled() && handlers.all(|h| self.store.holds(h.lease, h.session))
    }

    /// The end of all faults: what stood still goes on, what left is there again, and what no real stream survives is cut.
    fn calm(&mut self, bound: &Bound) {
        self.away = false;
        while let Some(at) = self.workers.iter().position(|worker| worker.paused) {
            self.take(Step::Wake(at), bound);
        }
        for node in 0..2 {
            if self.draining[node] {
                self.crash(node);
            }
        }
        for at in 0..self.streams.len() {
            if self.streams[at].holed && self.streams[at].client {
                self.cut(at);
            }
        }
    }

    /// All that can be done without the clock.
    fn work(&mut self, bound: &Bound) -> Result<(), &'static str> {
        let mut looks = 0;
        for turn in 0..BUSY_MAX {
            if let Some(fault) = self.store.fault {
                return Err(fault);
            }
            for at in 0..self.workers.len() {
                if self.workers[at].over {
                    self.kill(at, bound);
                }
            }
            let mut steps = Vec::new();
            self.life(bound, &mut steps);
            let wanted = |step: &&Step| match step {
                Step::Look(_) => false,
                // Those that nobody needs any more run until they are told.
                Step::Finish(at, ticket, end) => {
                    let handler = &self.workers[*at].handlers[ticket];
                    match end {
                        End::Stopped => true,
                        _ => !handler.told && self.store.holds(handler.lease, handler.session),
                    }
                }
                Step::Up(at, node) => {
                    let waits = self.streams[*at].server == Server::Waiting;
                    !waits || *node as usize == turn % 2 || steps.len() == 1
                }
                Step::Dispatch(_, job) => self.store.jobs[*job].state == Some(JobState::Queued),
                _ => true,
            };
            let waits = steps.iter().any(|step| matches!(step, Step::Up(..)));
            match steps.iter().find(wanted) {
                Some(step) => self.take(*step, bound),
                None if waits => {}
                // Two looks of each stream, one after the other.
                None if looks < 2 => {
                    looks += 1;
                    for at in 0..self.streams.len() {
                        if self.streams[at].server == Server::Live {
                            self.take(Step::Look(at), bound);
                            self.answered(bound);
                        }
                    }
                }
                None => return Ok(()),
            }
        }
        Err("I9: the halves go round without end")
    }

    fn answered(&mut self, bound: &Bound) {
        while let Some(call) = self.calls.first() {
            let step = match call.phase {
                Phase::Done(_) => Step::Answer(0),
                _ => Step::Serve(0),
            };
            self.take(step, bound);
        }
    }
}
