//! One name for what is the same: states that differ only in which node is called the first, in the order in which calls
//! were asked, or in times that nobody reads any more, are one state. Whatever follows from one of them follows from the
//! others, under their names; so nothing is left out that could break a law.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use leasehold::job::JobState;

use super::broken::Rule;
use super::calls::{By, Op};
use super::wire::Down;
use super::world::{Bound, Fault, Named, Server, World};

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

impl World {
    pub fn rename(&mut self, bound: &Bound) {
        self.forget_times(bound);
        for stream in &mut self.streams {
            if matches!(stream.server, Server::Gone | Server::Waiting) {
                stream.node = 0;
            }
            let ends = |message: &Down| matches!(message, Down::End(_));
            if stream.server == Server::Gone && stream.down.iter().all(ends) {
                stream.attached = None;
            }
        }
        if self.workers.len() == 2 && self.name_of(1) < self.name_of(0) {
            self.swap_workers();
        }
        self.streams.sort_by_key(|s| (s.worker, s.life, s.no));
        let has = |s: &&super::world::Stream| matches!(s.server, Server::Opening | Server::Live);
        let first = self.streams.iter().find(has).map(|s| s.node);
        let is_second = match first {
            Some(node) => node == 1,
            None => {
                let of = |node: u8| {
                    let doubts = self.doubts.iter().filter(|(of, ..)| *of == node);
                    let doubts: Vec<_> = doubts.map(|(_, job, id)| (job, id)).collect();
                    hash((self.draining[node as usize], doubts))
                };
                of(1) < of(0)
            }
        };
        if is_second {
            self.swap_nodes();
        }
        if self.calls.len() > 1 {
            self.calls.sort_by_cached_key(|call| hash(call));
        }
        self.signals.sort_unstable();
    }

    fn forget_times(&mut self, bound: &Bound) {
        for row in self.store.sessions.iter_mut().flatten() {
            if row.dead && self.store.rule != Rule::RenewDead {
                row.expires = Duration::ZERO;
                row.attach = 0;
            }
        }
        for job in &mut self.store.jobs {
            let is_read = bound.looks || bound.timeout.is_some();
            if !is_read || job.state != Some(JobState::Running) {
                job.granted_at = Duration::ZERO;
            }
        }
    }

    fn swap_nodes(&mut self) {
        self.draining.swap(0, 1);
        for stream in &mut self.streams {
            if matches!(stream.server, Server::Opening | Server::Live) {
                stream.node = 1 - stream.node;
            }
        }
        for call in &mut self.calls {
            if let Op::Open { node } | Op::Attach { node, .. } = &mut call.op {
                *node = 1 - *node;
            }
        }
        let doubts = std::mem::take(&mut self.doubts).into_iter();
        self.doubts = doubts.map(|(node, job, id)| (1 - node, job, id)).collect();
    }

    fn name_of(&self, worker: usize) -> u64 {
        let streams = self.streams.iter().filter(|s| s.worker == worker);
        let streams: Vec<_> = streams.map(|s| (s.life, s.no, s.attached)).collect();
        hash((&self.workers[worker], streams))
    }

    fn swap_workers(&mut self) {
        self.workers.swap(0, 1);
        for stream in &mut self.streams {
            stream.worker = 1 - stream.worker;
        }
        for call in &mut self.calls {
            match &mut call.by {
                By::Stream(worker, ..) | By::Unary(worker, ..) => *worker = 1 - *worker,
                By::Client | By::Nobody => {}
            }
        }
    }

    /// Nothing can become of any job any more.
    pub fn is_idle(&self) -> bool {
        let retries = self.left.get(&Fault::Retry).copied().unwrap_or(0) > 0;
        let is_final = |job: usize| {
            let is_there = self.store.jobs[job].state.is_some();
            is_there && self.store.is_final(job)
        };
        let brings = |s: &super::world::Stream| {
            s.down
                .iter()
                .any(|m| !matches!(m, Down::Ack(_) | Down::End(_) | Down::Welcome { .. }))
                || s.up
                    .iter()
                    .any(|m| matches!(m, super::wire::Up::Results(_)))
        };
        (self.faults_left == 0 || !retries)
            && !self.away
            && self.accepted.iter().all(|named| match named {
                Some(Named::Job(job)) => is_final(*job),
                Some(Named::Clash) => true,
                None => false,
            })
            && self
                .workers
                .iter()
                .all(|w| w.handlers.is_empty() && w.owed.is_empty())
            && self.calls.is_empty()
            && self.signals.is_empty()
            && !self.streams.iter().any(brings)
    }
}
