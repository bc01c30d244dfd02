//! What may go wrong, or be done by hand, where, and what it does.

use std::sync::Arc;

use leasehold::job::JobState;
use leasehold::session::Event;
use worker_sdk::session::Event as Heard;

use super::broken::Rule;
use super::calls::By;
use super::steps::{End, Step};
use super::world::{Bound, Fault, LONG, Server, Stream, World, fresh};

impl World {
    /// What may go wrong now.
    pub fn faults(&self, steps: &mut Vec<Step>) {
        for (fault, left) in &self.left {
            // These are done in the store.
            let stored = matches!(fault, Fault::Cancel | Fault::Retry | Fault::Purge);
            if *left == 0 || (stored && self.away) {
                continue;
            }
            let streams = || self.streams.iter().enumerate();
            let places: Vec<usize> = match fault {
                Fault::Cut => streams()
                    .filter(|(_, s)| s.client)
                    .map(|(i, _)| i)
                    .collect(),
                Fault::Sever => streams()
                    .filter(|(_, s)| s.server == Server::Live && s.client)
                    .map(|(i, _)| i)
                    .collect(),
                Fault::Crash | Fault::Drain => (0..2)
                    .filter(|node| {
                        let has = |(_, s): (usize, &Stream)| {
                            s.node == *node as u8
                                && matches!(s.server, Server::Opening | Server::Live)
                        };
                        let drained = *fault == Fault::Drain && self.draining[*node];
                        streams().any(has) && !drained
                    })
                    .collect(),
                Fault::Kill | Fault::Pause | Fault::Leave => (0..self.workers.len())
                    .filter(|at| !self.workers[*at].over && !self.workers[*at].paused)
                    .collect(),
                Fault::Wipe => match self.hints.iter().any(|hints| *hints > 0) {
                    true => vec![0],
                    false => vec![],
                },
                Fault::Double => (0..self.hints.len())
                    .filter(|job| self.store.jobs[*job].state.is_some() && self.hints[*job] < 2)
                    .collect(),
                Fault::Cancel => (0..self.hints.len())
                    .filter(|job| self.store.jobs[*job].state.is_some_and(|s| !s.is_final()))
                    .collect(),
                Fault::Retry => (0..self.hints.len())
                    .filter(|job| {
                        let state = self.store.jobs[*job].state;
                        let is_gone = self.store.jobs[*job].gone;
                        matches!(state, Some(JobState::Failed | JobState::Cancelled)) && !is_gone
                    })
                    .collect(),
                Fault::Fail => (0..self.workers.len())
                    .filter(|at| {
                        let worker = &self.workers[*at];
                        !worker.paused && worker.handlers.values().any(|h| !h.told)
                    })
                    .collect(),
                Fault::Lose => (0..self.calls.len())
                    .filter(|at| self.calls[*at].by != By::Nobody)
                    .collect(),
                Fault::Purge => (0..self.hints.len())
                    .filter(|job| self.store.can_purge(*job))
                    .collect(),
                Fault::Outage => (0..1).filter(|_| !self.away).collect(),
                Fault::Copy => (0..1)
                    .filter(|at| self.workers.len() == 1 && !self.workers[*at].over)
                    .filter(|at| !self.workers[*at].paused)
                    .collect(),
                // Down and up take turns: twice the number, and one more for up.
                Fault::Repeat | Fault::Miss => streams()
                    .flat_map(|(i, s)| {
                        let down = (s.client && !s.down.is_empty()).then_some(2 * i);
                        let up = s.server == Server::Live && !s.up.is_empty();
                        [down, up.then_some(2 * i + 1)]
                    })
                    .flatten()
                    .collect(),
            };
            steps.extend(places.into_iter().map(|at| Step::Fault(*fault, at)));
        }
    }

    /// It goes wrong.
    pub fn fails(&mut self, fault: Fault, at: usize, bound: &Bound) {
        match fault {
            Fault::Cut => self.cut(at),
            Fault::Sever => {
                self.streams[at].server = Server::Gone;
                self.streams[at].half = None;
                self.streams[at].up.clear();
            }
            Fault::Crash => self.crash(at),
            Fault::Kill => self.kill(at, bound),
            Fault::Pause => self.workers[at].paused = true,
            Fault::Wipe => self.hints.iter_mut().for_each(|hints| *hints = 0),
            Fault::Double => self.hints[at] += 1,
            Fault::Drain => {
                self.draining[at] = true;
                for stream in 0..self.streams.len() {
                    let s = &self.streams[stream];
                    if s.node as usize == at && s.server == Server::Live {
                        self.node_hears(stream, Event::Drain(2 * LONG), bound);
                    }
                }
            }
            Fault::Leave => self.hears(at, Heard::Shutdown(LONG), None),
            Fault::Cancel => {
                let running = self.store.cancel(at);
                let told = self.store.rule != Rule::CancelUntold;
                self.signals.extend(running.filter(|_| told));
            }
            Fault::Retry => self.store.retry(at),
            Fault::Fail => {
                let handlers = &self.workers[at].handlers;
                if let Some(ticket) = handlers.iter().find(|(_, h)| !h.told).map(|(t, _)| *t) {
                    self.finish(at, ticket, End::Failure);
                }
            }
            Fault::Lose => self.lose(at, bound),
            Fault::Purge => self.store.purge(at),
            Fault::Outage => self.away = true,
            Fault::Copy => self.copy(at),
            Fault::Repeat | Fault::Miss => {
                let stream = &mut self.streams[at / 2];
                let is_miss = fault == Fault::Miss;
                stream.holed |= is_miss;
                match (at.is_multiple_of(2), is_miss) {
                    (true, true) => drop(stream.down.pop_front()),
                    (false, true) => drop(stream.up.pop_front()),
                    (true, false) => stream.down.extend(stream.down.front().cloned()),
                    (false, false) => stream.up.extend(stream.up.front().cloned()),
                }
            }
        }
    }

    pub fn cut(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        stream.client = false;
        stream.down.clear();
        let (worker, no) = (stream.worker, stream.no);
        self.hears(worker, Heard::Ended(no, Default::default()), None);
    }

    /// The copy has no connection of its own.
    fn copy(&mut self, at: usize) {
        let copy = self.workers[at].clone();
        self.copied = true;
        self.workers.push(copy);
        let of = |s: &&Stream| s.worker == at && s.client;
        let streams: Vec<_> = self.streams.iter().filter(of).map(|s| s.no).collect();
        for no in streams {
            self.hears(
                self.workers.len() - 1,
                Heard::Ended(no, Default::default()),
                None,
            );
        }
        let calls: Vec<_> = self.calls.iter().map(|call| call.by).collect();
        for by in calls {
            if let By::Unary(worker, _, no) = by
                && worker == at
            {
                self.hears(self.workers.len() - 1, Heard::Reported(no, Err(())), None);
            }
        }
    }

    pub fn crash(&mut self, node: usize) {
        self.draining[node] = false;
        let node = node as u8;
        self.doubts.retain(|(of, ..)| *of != node);
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            if stream.node != node || !matches!(stream.server, Server::Opening | Server::Live) {
                continue;
            }
            let by = By::Stream(stream.worker, stream.life, stream.no);
            stream.down.clear();
            self.end(at, false);
            self.orphan(|asked| *asked == by);
        }
    }

    pub fn kill(&mut self, at: usize, bound: &Bound) {
        let worker = &mut self.workers[at];
        let life = worker.life;
        worker.life += 1;
        worker.half = Arc::new(fresh(bound));
        worker.handlers.clear();
        worker.paused = false;
        worker.over = false;
        worker.owed.clear();
        worker.before.clear();
        for stream in &mut self.streams {
            if stream.worker == at && stream.life == life {
                stream.client = false;
                stream.down.clear();
            }
        }
        self.orphan(|by| matches!(by, By::Unary(worker, ..) if *worker == at));
        self.hears(at, Heard::Tick, None);
    }
}
