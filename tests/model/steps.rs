//! What may happen next without any fault, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use leasehold::job::JobState;
use leasehold::session::Event;
use worker_sdk::proto;
use worker_sdk::session::{Event as Heard, Outcome, Ticket};

use super::broken::Rule;
use super::calls::{By, Call, Op, Phase};
use super::world::{Bound, Fault, LONG, Named, SHORT, Server, Stream, Worker, World, queue};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    Enqueue(usize),
    /// A call's next statement.
    Serve(usize),
    Answer(usize),
    /// To the node, if it is a Hello.
    Up(usize, u8),
    Down(usize),
    /// The node sees that the worker's end is gone.
    Notice(usize),
    Finish(usize, Ticket, End),
    /// The clock, by a long step or a short one.
    Time(bool),
    Dispatch(usize, usize),
    Look(usize),
    Bury(u8),
    TakeBack(usize),
    Forget(u8),
    Promote(usize),
    Reconcile(usize),
    Signal(usize),
    Wake(usize),
    /// The store is there again.
    Return,
    Fault(Fault, usize),
}

/// How a handler ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    Success,
    Failure,
    /// As it was told to.
    Stopped,
}

impl World {
    pub fn steps(&self, bound: &Bound) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.store.fault.is_some() || self.is_idle() {
            return steps;
        }
        self.life(bound, &mut steps);
        self.clock(bound, &mut steps);
        if self.faults_left > 0 {
            self.faults(&mut steps);
        }
        steps
    }

    /// What happens without any fault, the clock standing still.
    pub fn life(&self, bound: &Bound, steps: &mut Vec<Step>) {
        for (i, call) in self.calls.iter().enumerate() {
            steps.push(match call.phase {
                Phase::Done(_) => Step::Answer(i),
                _ => Step::Serve(i),
            });
        }
        for (i, stream) in self.streams.iter().enumerate() {
            if !stream.down.is_empty() && !self.workers[stream.worker].paused {
                steps.push(Step::Down(i));
            }
            match stream.server {
                Server::Waiting => {
                    steps.push(Step::Up(i, 0));
                    if !(self.is_blank(0) && self.is_blank(1)) {
                        steps.push(Step::Up(i, 1));
                    }
                }
                Server::Live if !stream.up.is_empty() => steps.push(Step::Up(i, stream.node)),
                _ => {}
            }
            if !stream.client && stream.server != Server::Gone {
                steps.push(Step::Notice(i));
            }
            if stream.server == Server::Live
                && let Some(half) = &stream.half
            {
                if !self.draining[stream.node as usize] && half.free(self.now, queue()) > 0 {
                    let hinted =
                        (0..bound.jobs).filter(|job| self.hints[*job] > 0 && self.is_first(*job));
                    steps.extend(hinted.map(|job| Step::Dispatch(i, job)));
                }
                let by = By::Stream(stream.worker, stream.life, stream.no);
                let looks = |call: &Call| call.by == by && matches!(call.op, Op::Look { .. });
                if bound.looks && !self.calls.iter().any(looks) {
                    steps.push(Step::Look(i));
                }
            }
        }
        for (i, worker) in self.workers.iter().enumerate() {
            if worker.paused {
                steps.push(Step::Wake(i));
                continue;
            }
            for (ticket, handler) in &worker.handlers {
                steps.push(Step::Finish(i, *ticket, End::Success));
                if handler.told {
                    steps.push(Step::Finish(i, *ticket, End::Stopped));
                }
            }
        }
        self.store_life(bound, steps);
    }

    /// What nodes do with the store, whoever is connected.
    fn store_life(&self, bound: &Bound, steps: &mut Vec<Step>) {
        if self.away {
            return steps.push(Step::Return);
        }
        for job in 0..bound.jobs {
            let row = &self.store.jobs[job];
            let under_way = |call: &Call| call.op == Op::Enqueue(job) && call.by == By::Client;
            if self.accepted[job].is_none() && !self.calls.iter().any(under_way) {
                steps.push(Step::Enqueue(job));
            }
            if self.store.is_queued(job)
                && self.hints[job] == 0
                && self.store.rule != Rule::NoReconcile
            {
                steps.push(Step::Reconcile(job));
            }
            if row.state == Some(JobState::Scheduled) && row.due <= self.now && !row.gone {
                steps.push(Step::Promote(job));
            }
            let rescues = |call: &Call| call.op == Op::TakeBack(job);
            let is_free = self.store.rule != Rule::NoTakeBack && !self.calls.iter().any(rescues);
            if self.store.is_lost(job) && is_free {
                steps.push(Step::TakeBack(job));
            }
        }
        for session in 0..self.store.sessions.len() as u8 {
            let buries = |call: &Call| call.op == Op::Bury(session);
            if self.store.is_expired(session, self.now) && !self.calls.iter().any(buries) {
                steps.push(Step::Bury(session));
            }
            if bound.tidies && self.store.can_drop(session) {
                steps.push(Step::Forget(session));
            }
        }
        steps.extend((0..self.signals.len()).map(Step::Signal));
    }

    fn clock(&self, bound: &Bound, steps: &mut Vec<Step>) {
        let messages = |s: &Stream| s.up.len() + s.down.len();
        let late: usize = self.streams.iter().map(messages).sum();
        if late + self.calls.len() > bound.late {
            return;
        }
        if self.after(true) <= bound.end {
            steps.push(Step::Time(true));
        }
        // Only where a worker waits to come back, and once.
        let soon = |deadline: Duration| deadline > self.now && deadline <= self.after(false);
        let waits = |worker: &Worker| worker.half.deadline().is_some_and(soon);
        let is_round = self.now.as_secs().is_multiple_of(LONG.as_secs());
        let fits = bound.short && is_round && self.after(false) <= bound.end;
        if fits && self.workers.iter().any(waits) {
            steps.push(Step::Time(false));
        }
    }

    /// The time after a step of the clock.
    fn after(&self, long: bool) -> Duration {
        let step = LONG.as_secs();
        match long {
            true => Duration::from_secs((self.now.as_secs() / step + 1) * step),
            false => self.now + SHORT,
        }
    }

    /// Nodes of which nothing is known yet are as good as each other.
    fn is_blank(&self, node: usize) -> bool {
        let has = |s: &Stream| s.node as usize == node && s.server != Server::Waiting;
        let doubts = |(of, ..): &(u8, usize, u8)| *of as usize == node;
        !self.draining[node] && !self.streams.iter().any(has) && !self.doubts.iter().any(doubts)
    }

    /// Of jobs of which nothing was ever different, only the first goes.
    fn is_first(&self, job: usize) -> bool {
        let same = |other: usize| {
            let of = |at: usize| (&self.store.jobs[at], self.hints[at], self.accepted[at]);
            let asked = |call: &Call| matches!(call.op, Op::Grant { job, .. } if job == other);
            of(other) == of(job)
                && !self.calls.iter().any(asked)
                && !self.doubts.iter().any(|(_, doubted, _)| *doubted == other)
        };
        self.store.jobs[job].attempt > 0 || !(0..job).any(same)
    }

    /// One step, and what follows at once from it.
    pub fn take(&mut self, step: Step, bound: &Bound) {
        match step {
            Step::Enqueue(job) => {
                let early = self.store.rule == Rule::AcceptBeforeCommit;
                if early {
                    self.accepted[job] = Some(Named::Job(job));
                }
                self.calls.push(Call {
                    by: if early { By::Nobody } else { By::Client },
                    op: Op::Enqueue(job),
                    phase: Phase::Asked,
                });
            }
            Step::Serve(at) => self.serve(at, bound),
            Step::Answer(at) => self.answer(at, bound),
            Step::Up(at, node) => self.deliver_up(at, node, bound),
            Step::Down(at) => self.deliver_down(at),
            Step::Notice(at) => {
                self.streams[at].server = Server::Gone;
                self.streams[at].half = None;
                self.streams[at].up.clear();
            }
            Step::Finish(at, ticket, end) => self.finish(at, ticket, end),
            Step::Time(long) => self.time_passes(long, bound),
            Step::Dispatch(at, job) => self.dispatch(at, job),
            Step::Look(at) => self.look(at),
            Step::Bury(session) => match self.store.rule {
                Rule::SweepUnchecked => self.orphan_call(Op::Bury(session)),
                _ => self.store.bury(session),
            },
            Step::TakeBack(job) => match self.store.rule {
                Rule::RescueById => self.orphan_call(Op::TakeBack(job)),
                _ => self.store.take_back(job),
            },
            Step::Forget(session) => self.store.drop_session(session),
            Step::Promote(job) => self.store.promote(job),
            Step::Reconcile(job) => self.hints[job] += 1,
            Step::Signal(at) => {
                let (lease, session) = self.signals.remove(at);
                for stream in 0..self.streams.len() {
                    let of = self.streams[stream].attached.map(|(id, _)| id);
                    if of == Some(session) && self.streams[stream].server == Server::Live {
                        self.node_hears(stream, Event::Cancel(lease), bound);
                    }
                }
            }
            Step::Wake(at) => {
                self.workers[at].paused = false;
                self.hears(at, Heard::Tick, None);
            }
            Step::Return => self.away = false,
            Step::Fault(fault, at) => {
                *self.left.get_mut(&fault).unwrap() -= 1;
                self.faults_left -= 1;
                self.fails(fault, at, bound);
            }
        }
        self.at_once(bound);
        self.judge(bound);
        self.rename(bound);
    }

    fn orphan_call(&mut self, op: Op) {
        self.calls.push(Call {
            by: By::Nobody,
            op,
            phase: Phase::Asked,
        });
    }

    /// Calls that nothing comes between, and what nobody can see any more.
    fn at_once(&mut self, bound: &Bound) {
        let whole = |call: &Call| !bound.split.contains(&call.op.kind());
        while let Some(at) = self.calls.iter().position(whole) {
            match self.calls[at].phase {
                Phase::Done(_) => self.answer(at, bound),
                _ => self.serve(at, bound),
            }
        }
        let over = |s: &Stream| !s.client && s.server == Server::Gone;
        while let Some(at) = self.streams.iter().position(over) {
            let gone = self.streams.remove(at);
            let by = By::Stream(gone.worker, gone.life, gone.no);
            self.orphan(|asked| *asked == by);
        }
    }

    /// A handler ends.
    pub fn finish(&mut self, at: usize, ticket: Ticket, end: End) {
        if let Some(handler) = self.workers[at].handlers.remove(&ticket) {
            self.workers[at].owed.insert(handler.lease);
        }
        let outcome = match end {
            End::Success => Outcome::Success(proto::Payload::default()),
            End::Failure => Outcome::Failure(proto::Failure::default()),
            End::Stopped => Outcome::Dropped,
        };
        self.hears(at, Heard::Finished(ticket, outcome), None);
    }

    pub fn time_passes(&mut self, long: bool, bound: &Bound) {
        self.now = self.after(long);
        // Workers first: each stops what it must by its own clock, before anybody can take it.
        for at in 0..self.workers.len() {
            // Also of those for which nothing is due: what time it was when they last heard of something is no difference.
            if !self.workers[at].paused {
                self.hears(at, Heard::Tick, None);
            }
        }
        for at in 0..self.streams.len() {
            let half = self.streams[at].half.as_ref();
            let is_due = half.is_some_and(|half| half.deadline() <= self.now);
            if is_due && self.streams[at].server == Server::Live {
                self.node_hears(at, Event::Tick, bound);
            }
        }
    }

    fn dispatch(&mut self, at: usize, job: usize) {
        let now = self.now;
        let stream = &mut self.streams[at];
        let (Some(half), Some((session, attach))) = (&mut stream.half, stream.attached) else {
            return;
        };
        if Arc::make_mut(half).reserve(now, queue()) {
            self.hints[job] -= 1;
            self.ask(
                at,
                Op::Grant {
                    job,
                    session,
                    attach,
                },
            );
        }
    }

    fn look(&mut self, at: usize) {
        let stream = &self.streams[at];
        if let (Some(half), Some((session, attach))) = (&stream.half, stream.attached) {
            let running = half.running();
            self.ask(
                at,
                Op::Look {
                    session,
                    attach,
                    running,
                },
            );
        }
    }
}
