//! The adapter: feeds the two halves, and carries out what they ask for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use leasehold::error::Error;
use leasehold::job::{HeldLease, Kind as JobKind, Lease, LeasedJob, Outcome};
use leasehold::session::{Action as Do, Event, Session};
use worker_sdk::session::{Action, Event as Heard, Note};

use super::broken::Rule;
use super::calls::{Answer, By, Call, Op, Phase};
use super::store::{Granted, State};
use super::wire::{self, Down, Id, Said, TTL, Told, Up};
use super::world::{Bound, Handler, QUEUE, Server, Stream, World, queue};

impl World {
    /// An event for a worker's half; `session`: of the stream that it came on.
    pub fn hears(&mut self, at: usize, event: Heard, session: Option<Id>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let worker = &mut self.workers[at];
            if worker.over {
                return;
            }
            for action in Arc::make_mut(&mut worker.half).handle(self.now, event) {
                events.extend(self.worker_does(at, action, session));
            }
        }
    }

    fn worker_does(&mut self, at: usize, action: Action, session: Option<Id>) -> Option<Heard> {
        let worker = &mut self.workers[at];
        let life = worker.life;
        match action {
            Action::Open(no, hello) => {
                let mut hello = wire::up(hello);
                if let (Up::Hello { resume, .. }, Rule::SessionInherited, Some(id)) =
                    (&mut hello, self.store.rule, worker.session)
                {
                    *resume = self.store.sessions[id as usize]
                        .as_ref()
                        .map(|row| (id, row.attach + 1));
                }
                self.streams.push(Stream {
                    worker: at,
                    life,
                    no,
                    up: VecDeque::from([hello]),
                    down: VecDeque::new(),
                    client: true,
                    server: Server::Waiting,
                    node: 0,
                    half: None,
                    attached: None,
                    holed: false,
                });
                return Some(Heard::Written(no));
            }
            Action::Send(no, message) => {
                let mut message = wire::up(message);
                if let (Up::Beat { held, .. }, Rule::HeldReadApart) =
                    (&mut message, self.store.rule)
                {
                    held.clone_from(&worker.before);
                }
                if let Some(stream) = self.stream(By::Stream(at, life, no)) {
                    self.streams[stream].up.push_back(message);
                }
                return Some(Heard::Written(no));
            }
            Action::HalfClose(no) => {
                if let Some(stream) = self.stream(By::Stream(at, life, no)) {
                    self.streams[stream].up.push_back(Up::HalfClose);
                }
            }
            Action::Cut(no) => {
                if let Some(stream) = self.stream(By::Stream(at, life, no)) {
                    self.streams[stream].client = false;
                    self.streams[stream].down.clear();
                }
            }
            Action::Run(ticket, job) => {
                let lease = wire::lease(job.lease.as_ref().unwrap());
                let session = session.unwrap();
                let told = false;
                worker.handlers.insert(
                    ticket,
                    Handler {
                        lease,
                        session,
                        told,
                    },
                );
                let own = self.store.holder(lease) == Some(session);
                self.store
                    .law(own, "I8: what runs was granted, and to this session");
                let first = self.ran.insert(lease);
                self.store
                    .law(first || self.copied, "I5: an attempt is run once");
            }
            Action::Stop(ticket, ..) => {
                if let Some(handler) = worker.handlers.get_mut(&ticket) {
                    handler.told = true;
                }
            }
            Action::Report(no, call) => self.calls.push(Call {
                by: By::Unary(at, life, no),
                op: Op::Report(call.resume_token[0], wire::said(&call.results)),
                phase: Phase::Asked,
            }),
            Action::Note(Note::Copied) => self
                .store
                .law(self.copied, "I5: a worker without a copy keeps its session"),
            Action::Note(_) | Action::Saved(..) => {}
            Action::End(_) => {
                worker.over = true;
                worker.handlers.clear();
                worker.owed.clear();
            }
        }
        None
    }

    /// The next message, or the end, of a stream for its worker.
    pub fn deliver_down(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let (worker, no) = (stream.worker, stream.no);
        let Some(message) = stream.down.pop_front() else {
            return;
        };
        match &message {
            Down::End(moved) => {
                stream.client = false;
                let end = worker_sdk::session::End {
                    moved: *moved && self.store.rule != Rule::CopyComesBack,
                    ..Default::default()
                };
                return self.hears(worker, Heard::Ended(no, end), None);
            }
            Down::Receipts(receipts) => {
                for (lease, _) in receipts {
                    self.workers[worker].owed.remove(lease);
                }
            }
            Down::Jobs(..) if self.store.rule == Rule::HeldReadApart => {
                let held = self.workers[worker].handlers.values();
                self.workers[worker].before = held.map(|h| h.lease).collect();
            }
            _ => {}
        }
        let session = self.streams[at].attached.map(|(id, _)| id);
        let session = match message {
            Down::Welcome { session, .. } => {
                if self.store.rule == Rule::SessionInherited {
                    self.workers[worker].session = Some(session);
                }
                Some(session)
            }
            _ => session,
        };
        self.hears(
            worker,
            Heard::Received(no, wire::response(message)),
            session,
        );
    }

    /// The next message of a stream for its node; `node` gets a Hello.
    pub fn deliver_up(&mut self, at: usize, node: u8, bound: &Bound) {
        let Some(message) = self.streams[at].up.pop_front() else {
            return;
        };
        match message {
            Up::Hello {
                window,
                resume,
                held,
            } => {
                if self.draining[node as usize] {
                    return self.end(at, false);
                }
                let hello = wire::hello(window, resume, held, QUEUE);
                let half = Session::open(self.now, hello, TTL).unwrap();
                let stream = &mut self.streams[at];
                stream.server = Server::Opening;
                stream.node = node;
                stream.half = Some(Arc::new(half));
                let op = match resume {
                    None => Op::Open { node },
                    Some((session, number)) => Op::Attach {
                        session,
                        number,
                        node,
                    },
                };
                self.ask(at, op);
            }
            Up::HalfClose => self.node_hears(at, Event::HalfClosed, bound),
            message => {
                let message = wire::client_message(message, QUEUE);
                self.node_hears(at, Event::Frame(message), bound);
            }
        }
    }

    /// Asks the store for a stream.
    pub fn ask(&mut self, at: usize, op: Op) {
        let stream = &self.streams[at];
        let rule = self.store.rule;
        let mut by = By::Stream(stream.worker, stream.life, stream.no);
        let early = match (&op, rule) {
            (Op::Renew(..), Rule::AckBeforeCommit) => Some(Answer::State(State::Alive)),
            (Op::Record(_, results), Rule::ReceiptBeforeCommit) => {
                Some(Answer::Told(vec![Told::Recorded; results.len()]))
            }
            (Op::Grant { job, .. }, Rule::FrameBeforeCommit) => {
                let lease = Lease {
                    job: wire::job_id(*job),
                    attempt: self.store.jobs[*job].attempt + 1,
                };
                Some(Answer::Granted(Granted::Lease(lease)))
            }
            _ => None,
        };
        if let Some(answer) = early {
            let phase = Phase::Done(answer);
            let op = op.clone();
            self.calls.push(Call { by, op, phase });
            by = By::Nobody;
        }
        let phase = Phase::Asked;
        self.calls.push(Call { by, op, phase });
    }

    /// An event for a node's half.
    pub fn node_hears(&mut self, at: usize, event: Event, bound: &Bound) {
        let _ = bound;
        let now = self.now;
        let stream = &mut self.streams[at];
        let Some(half) = &mut stream.half else { return };
        let (session, attach) = stream.attached.unwrap_or_default();
        let actions = Arc::make_mut(half).handle(now, event);
        for action in actions {
            match action {
                Do::Send(message) => {
                    if self.streams[at].client {
                        self.streams[at].down.push_back(wire::down(message));
                    }
                }
                Do::Renew => self.ask(at, Op::Renew(session, attach)),
                Do::Record(endings, _) => {
                    let said = |(lease, outcome): (Lease, Outcome)| match outcome {
                        Outcome::Success(_) => (lease, Said::Success),
                        Outcome::Failure(_) => (lease, Said::Failure),
                        _ => (lease, Said::Release),
                    };
                    let results = endings.into_iter().map(said).collect();
                    self.ask(at, Op::Record(session, results));
                }
                Do::RecordOwn(lease, outcome) => self.ask(at, Op::Own(session, lease, outcome)),
                Do::Find(leases) => self.ask(at, Op::Find(session, leases)),
                Do::EndSession => self.ask(at, Op::End(session, attach)),
                Do::Close(error) => self.end(at, matches!(error, Some(Error::SessionMoved))),
                Do::Report(_) | Do::Log(_) => panic!("not in this model"),
                Do::LookForJobs | Do::Ended(_) => {}
            }
        }
    }

    /// The node ends a stream.
    pub fn end(&mut self, at: usize, moved: bool) {
        let stream = &mut self.streams[at];
        stream.server = Server::Gone;
        stream.half = None;
        stream.up.clear();
        if stream.client {
            stream.down.push_back(Down::End(moved));
        }
    }

    fn held(&self, lease: Lease, bound: &Bound) -> HeldLease {
        HeldLease {
            lease,
            queue: queue().clone(),
            kind: JobKind::from_store("k"),
            time_left: self.time_left(lease, bound),
        }
    }

    fn time_left(&self, lease: Lease, bound: &Bound) -> Option<Duration> {
        let timeout = bound.timeout?;
        Some(self.store.time_left(lease, timeout, self.now))
    }

    fn leased(&self, lease: Lease, bound: &Bound) -> LeasedJob {
        wire::leased(lease, self.time_left(lease, bound), QUEUE)
    }

    /// Gives a call's answer to whoever asked.
    pub fn answer(&mut self, at: usize, bound: &Bound) {
        let call = self.calls.remove(at);
        let Phase::Done(answer) = call.phase else {
            return;
        };
        match call.by {
            By::Nobody => {}
            By::Client => {
                if let (Op::Enqueue(job), Answer::Named(named)) = (call.op, answer) {
                    self.accepted[job] = Some(named);
                }
            }
            By::Unary(worker, life, no) => {
                if let (Op::Report(session, results), Answer::Told(told)) = (call.op, answer)
                    && self.workers[worker].life == life
                {
                    let mut receipts = Vec::new();
                    for ((lease, said), told) in results.into_iter().zip(told) {
                        self.store.tells(lease, session, said, told);
                        receipts.push(wire::receipt(lease, told));
                        self.workers[worker].owed.remove(&lease);
                    }
                    self.hears(worker, Heard::Reported(no, Ok(receipts)), None);
                }
            }
            by => {
                if let Some(stream) = self.stream(by)
                    && self.streams[stream].half.is_some()
                {
                    self.stream_answered(stream, call.op, answer, bound);
                }
            }
        }
    }

    fn stream_answered(&mut self, at: usize, op: Op, answer: Answer, bound: &Bound) {
        match (op, answer) {
            (_, Answer::Moved) => self.end(at, true),
            (_, Answer::Opened(session)) => self.begins(at, session, 1, None, bound),
            (_, Answer::Attached(session, number, leases)) => {
                self.begins(at, session, number, Some(leases), bound)
            }
            (Op::Renew(..), Answer::State(state)) => {
                let event = match state {
                    State::Alive => Event::Renewed,
                    State::Lapsed => Event::RenewFailed,
                    State::Moved => Event::Moved,
                    State::Dead => Event::Dead,
                };
                self.node_hears(at, event, bound);
            }
            (Op::Grant { job, .. }, Answer::Granted(granted)) => {
                let (mut jobs, mut missed) = (Vec::new(), Vec::new());
                match granted {
                    Granted::Lease(lease) => jobs.push(self.leased(lease, bound)),
                    _ => missed.push(queue().clone()),
                }
                self.node_hears(at, Event::Granted { jobs, missed }, bound);
                if let Granted::Refused(state) = granted {
                    self.hints[job] += 1;
                    let event = match state {
                        State::Alive => return,
                        State::Lapsed => Event::Lapsed,
                        State::Moved => Event::Moved,
                        State::Dead => Event::Dead,
                    };
                    self.node_hears(at, event, bound);
                }
            }
            (Op::Record(session, results), Answer::Told(told)) => {
                let mut verdicts = Vec::new();
                for ((lease, said), told) in results.into_iter().zip(told) {
                    self.store.tells(lease, session, said, told);
                    verdicts.push((lease, wire::verdict(told)));
                }
                self.node_hears(at, Event::Verdicts(verdicts), bound);
            }
            (Op::Own(_, lease, outcome), _) => {
                self.node_hears(at, Event::OwnRecorded(lease, outcome, true), bound);
            }
            (Op::Find(..), Answer::Found(jobs, gone)) => {
                let jobs = jobs.into_iter().map(|l| self.leased(l, bound)).collect();
                self.node_hears(at, Event::Found { jobs, gone }, bound);
            }
            (Op::Look { .. }, Answer::Looked(Some((leases, vanished)))) => {
                let leases = leases.into_iter().map(|l| self.held(l, bound)).collect();
                self.node_hears(at, Event::Looked { leases, vanished }, bound);
            }
            _ => {}
        }
    }

    /// A stream has its session.
    fn begins(
        &mut self,
        at: usize,
        session: Id,
        attach: u64,
        leases: Option<Vec<Lease>>,
        bound: &Bound,
    ) {
        let stream = &mut self.streams[at];
        let node = stream.node;
        stream.server = Server::Live;
        stream.attached = Some((session, attach));
        let Some(half) = &stream.half else { return };
        let listed = half.hello().held.clone();
        let welcome = wire::welcome(session, leases.is_some(), half.hello().max_in_flight);
        // The registry of a node has one stream of a session.
        for other in 0..self.streams.len() {
            let older = &self.streams[other];
            let is_of = older.attached.is_some_and(|(id, _)| id == session);
            if other != at && is_of && older.node == node && older.server == Server::Live {
                self.node_hears(other, Event::Moved, bound);
            }
        }
        let event = match leases {
            None => Event::Opened(welcome),
            Some(mut leases) => {
                if self.store.rule == Rule::ResumeListedOnly {
                    leases.retain(|lease| listed.contains(lease));
                }
                let held = leases.into_iter().map(|l| self.held(l, bound)).collect();
                Event::Resumed(welcome, held)
            }
        };
        let resumed = matches!(event, Event::Resumed(..));
        self.node_hears(at, event, bound);
        if resumed && let Some(half) = &self.streams[at].half {
            let known = half.in_flight() as usize;
            let all = self.store.leases_of(session).len();
            self.store.law(
                known >= all,
                "I5: a node knows every lease of a session that resumes there",
            );
        }
        if self.draining[node as usize] {
            self.node_hears(at, Event::Drain(Duration::from_secs(1)), bound);
        }
    }

    /// A call has no answer.
    pub fn lose(&mut self, at: usize, bound: &Bound) {
        let call = self.calls[at].clone();
        match call.phase {
            Phase::Done(_) => drop(self.calls.remove(at)),
            _ if self.away => drop(self.calls.remove(at)),
            _ => self.calls[at].by = By::Nobody,
        }
        if let By::Unary(worker, _, no) = call.by {
            return self.hears(worker, Heard::Reported(no, Err(())), None);
        }
        let Some(stream) = self.stream(call.by) else {
            return;
        };
        if self.streams[stream].half.is_none() {
            return;
        }
        match call.op {
            Op::Open { .. } | Op::Attach { .. } => self.end(stream, false),
            Op::Renew(..) => self.node_hears(stream, Event::RenewFailed, bound),
            Op::Grant { job, session, .. } => {
                self.doubts
                    .insert((self.streams[stream].node, job, session));
                self.hints[job] += 1;
                let (jobs, missed) = (Vec::new(), vec![queue().clone()]);
                self.node_hears(stream, Event::Granted { jobs, missed }, bound);
            }
            Op::Record(session, results)
                if matches!(self.store.rule, Rule::DoubtIsStale | Rule::DoubtIsRecorded) =>
            {
                let told = match self.store.rule {
                    Rule::DoubtIsStale => Told::Stale,
                    _ => Told::Recorded,
                };
                let mut verdicts = Vec::new();
                for (lease, said) in results {
                    self.store.tells(lease, session, said, told);
                    verdicts.push((lease, wire::verdict(told)));
                }
                self.node_hears(stream, Event::Verdicts(verdicts), bound);
            }
            Op::Record(_, results) => {
                let leases = results.iter().map(|(lease, _)| *lease).collect();
                self.node_hears(stream, Event::RecordFailed(leases), bound);
            }
            Op::Own(_, lease, outcome) => {
                self.node_hears(stream, Event::OwnRecorded(lease, outcome, false), bound);
            }
            Op::Find(..) => {
                let (jobs, gone) = (Vec::new(), Vec::new());
                self.node_hears(stream, Event::Found { jobs, gone }, bound);
            }
            _ => {}
        }
    }
}
