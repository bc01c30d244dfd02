//! The sessions whose streams this node has. Runs each one's state machine: feeds it events, carries out its actions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info};

use super::attach::Attaches;
use super::heal;
use super::logs::Logs;
use super::outbox::Outbox;
use super::progress::Reports;
use super::registry::Turn;
use super::renew::Renewals;
use super::results::{RecordRequest, Results};
use super::{Core, Options};
use crate::error::{Error, Limit, Result};
use crate::job::limits::{HEARTBEATS_PER_TTL, STREAMS_MAX, STREAMS_SPARE};
use crate::job::{HeldLease, Lease, QueueName, SessionId, Step};
use crate::session::message::{Hello, ServerMessage, Subscription, Welcome};
use crate::session::{Action, Event, Session};
use crate::store::{Attached, NewSession, QueueSlots, SessionProfile, SessionSlots};

/// A session whose stream this node has.
#[derive(Debug)]
pub struct Live {
    attached: Attached,
    started: Instant,
    session: Mutex<Session>,
    outbox: Outbox,
    /// The session's deadline may have moved.
    moved: Notify,
    outlets: Outlets,
    core: Arc<Core>,
}

/// Where the actions of sessions go.
#[derive(Debug, Clone)]
pub struct Outlets {
    pub(super) results: Results,
    pub(super) renewals: Renewals,
    pub(super) reports: Reports,
    pub(super) logs: Logs,
    pub(super) attaches: Attaches,
}

impl Live {
    /// Its identity and the number of its stream.
    pub fn attached(&self) -> Attached {
        self.attached
    }

    /// What is to be sent to its worker.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Feeds one event and carries out what follows, in order. Never waits: actions go into bounded queues.
    pub fn feed(self: &Arc<Self>, event: Event) {
        let mut session = self.lock();
        let before = session.deadline();
        let mut look = false;
        for action in session.handle(self.now(), event) {
            look |= self.carry_out(action);
        }
        let moved = session.deadline() < before;
        self.count(&session);
        drop(session);
        if moved {
            self.moved.notify_one();
        }
        if look {
            self.core.wake.notify_one();
        }
    }

    /// Waits until the session's deadline has come. Cancel safe.
    pub async fn deadline(&self) {
        loop {
            let at = self.started + self.lock().deadline();
            if at <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = self.moved.notified() => {}
            }
        }
    }

    /// The worker lets what it was sent pile up.
    pub fn is_behind(&self) -> bool {
        self.outbox.is_behind()
    }

    /// The next message for its worker, as [`Outbox::poll_next`] gives it.
    pub fn poll_next(
        self: &Arc<Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ServerMessage>>> {
        let (next, caught_up) = self.outbox.poll_next(context);
        if caught_up {
            self.recount();
            self.core.wake.notify_one();
        }
        next
    }

    /// Promises a slot to a grant. None is left while the worker is behind with reading.
    pub(super) fn reserve(self: &Arc<Self>, queue: &QueueName) -> bool {
        let mut session = self.lock();
        let reserved = !self.is_behind() && session.reserve(self.now(), queue);
        // One queue's slot was counted off when its turn came. Those of others may be the same, or there was none.
        if !reserved || session.hello().queues.len() > 1 {
            self.count(&session);
        }
        reserved
    }

    /// Counts its free slots anew: some are lost by time alone, as when nothing is heard of the worker.
    pub(super) fn recount(self: &Arc<Self>) {
        self.count(&self.lock());
    }

    /// Tells the registry which slots are free. Under the session's lock, so that the last word is the last state.
    fn count(self: &Arc<Self>, session: &Session) {
        let now = self.now();
        let free = match self.is_behind() {
            true => Vec::new(),
            false => session.free_slots(now),
        };
        self.core
            .sessions
            .count_slots(self, free, session.in_flight());
    }

    /// What its worker said when the stream began, to the node of this name.
    pub(super) fn profile(&self, node: &str) -> SessionProfile {
        let session = self.lock();
        let hello = session.hello();
        SessionProfile {
            node: node.into(),
            kinds: hello.kinds.clone(),
            labels: hello.labels.clone(),
        }
    }

    /// What it takes, and how much of it is free.
    pub(super) fn slots(&self) -> SessionSlots {
        let session = self.lock();
        let is_behind = self.is_behind();
        let free = session.free_slots(self.now());
        let of = |(subscription, (queue, free)): (&Subscription, (QueueName, u32))| QueueSlots {
            queue,
            max_in_flight: subscription.max_in_flight,
            free: if is_behind { 0 } else { free },
        };
        let subscriptions = session.hello().queues.iter();
        SessionSlots {
            queues: subscriptions.zip(free).map(of).collect(),
            max_in_flight: session.window(),
            in_flight: session.in_flight(),
            draining: session.is_leaving(),
        }
    }

    /// The leases that its worker runs, as far as is known.
    pub fn running(&self) -> Vec<Lease> {
        self.lock().running()
    }

    /// Jobs in flight, for metrics.
    pub fn in_flight(&self) -> u32 {
        self.lock().in_flight()
    }

    /// Jobs that will be handed out again although their attempt may have run.
    pub(super) fn count_extra_executions(&self, jobs: usize) {
        self.core.metrics.extra_executions(jobs);
    }

    fn carry_out(self: &Arc<Self>, action: Action) -> bool {
        match action {
            Action::Send(message) => {
                if !self.outbox.push(message) {
                    let error = Error::LimitReached {
                        limit: Limit::Outbox,
                        retry_after: Duration::from_secs(1),
                    };
                    self.close(Some(error));
                }
            }
            Action::Renew => self.outlets.renewals.renew(self.clone()),
            Action::Record(endings, said) => {
                self.outlets
                    .results
                    .record(RecordRequest::worker(self.clone(), endings, said))
            }
            Action::Log(reports) => self.outlets.logs.log(self.clone(), reports),
            Action::RecordOwn(lease, outcome) => self
                .outlets
                .results
                .record(RecordRequest::session(self.clone(), lease, outcome)),
            Action::Report(reports) => self.outlets.reports.report(self.clone(), reports),
            Action::Find(leases) => {
                // Ends by itself once the store has answered, or the stream is over.
                tokio::spawn(heal::find(self.core.clone(), self.clone(), leases));
            }
            Action::LookForJobs => return true,
            Action::Ended(ended) => {
                debug!(
                    job_id = %ended.lease.job, attempt = ended.lease.attempt, queue = %ended.queue, kind = %ended.kind,
                    session = %self.attached.session, outcome = ended.outcome.name(), "attempt ended"
                );
                self.core.metrics.finished(
                    &ended.queue,
                    &ended.kind,
                    ended.outcome,
                    Some(ended.ran),
                );
                if let Some(step) = Step::of(ended.outcome) {
                    self.core.flows.count(step, [&ended.queue].into_iter());
                }
            }
            Action::EndSession => {
                let (core, attached) = (self.core.clone(), self.attached);
                tokio::spawn(async move {
                    if let Err(error) = core.store.close_sessions(vec![attached]).await {
                        debug!(session = %attached.session, %error, "session not dropped, it will expire");
                    }
                });
            }
            Action::Close(error) => self.close(error),
        }
        false
    }

    /// Ends the stream without a word: there is nobody at the other end.
    pub(super) fn abandon(&self) {
        self.close(None);
    }

    fn close(&self, error: Option<Error>) {
        let reason = error.as_ref().map_or("OK", |error| error.code().reason);
        info!(session = %self.attached.session, reason, "stream ends");
        self.outbox.close(error);
        self.core.sessions.remove(self.attached);
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// What its worker can run, as it says; empty: it does not.
    pub(super) fn kinds(&self) -> Vec<String> {
        self.lock().hello().kinds.clone()
    }

    /// The queues that it takes jobs of.
    pub fn queues(&self) -> Vec<QueueName> {
        self.lock()
            .hello()
            .queues
            .iter()
            .map(|s| s.queue.clone())
            .collect()
    }
}

/// Opens a stream for a worker that said Hello: durably, then in the registry, then Welcome. It goes on with the session
/// of the Hello's token, if that is alive, and begins a new one otherwise.
///
/// # Errors
/// What the Hello's check says; `SessionMoved`; `LimitReached` when the node has all the streams it takes; the store's.
pub async fn open(
    core: &Arc<Core>,
    outlets: Outlets,
    options: &Options,
    hello: Hello,
) -> Result<Arc<Live>> {
    let started = Instant::now();
    let resume = hello.resume.clone();
    let session = Session::open(Duration::ZERO, hello, options.lease_ttl)?;
    let turn = Turn::take(&core.sessions);
    // A node that is full has room for sessions that move to it: their leases are at stake.
    turn.check(match resume {
        Some(_) => STREAMS_MAX + STREAMS_SPARE,
        None => STREAMS_MAX,
    })?;
    let mut begun = None;
    if let Some(resume) = resume {
        let to = Attached {
            session: SessionId::of_token(&resume.token),
            attach: resume.attach_sequence,
        };
        let moved = outlets.attaches.attach(to).await?;
        begun = moved.map(|moved| (to, resume.token, moved.ttl, Some(moved.leases)));
    }
    let (attached, token, ttl, leases) = match begun {
        Some(resumed) => resumed,
        None => {
            turn.check(STREAMS_MAX)?;
            begin(core, &session).await?
        }
    };
    let name = &session.hello().worker;
    let resumed = leases.is_some();
    info!(session = %attached.session, worker = name, sdk = session.hello().sdk, resumed, attach = attached.attach, "stream begins");
    let welcome = Box::new(Welcome {
        session: attached.session,
        resume_token: token,
        resumed,
        node: options.node_name.clone(),
        heartbeat_interval: ttl / HEARTBEATS_PER_TTL,
        lease_ttl: ttl,
        max_in_flight: session.hello().max_in_flight,
    });
    let live = Arc::new(Live {
        attached,
        started,
        session: Mutex::new(session),
        outbox: Outbox::new(core.clone()),
        moved: Notify::new(),
        outlets,
        core: core.clone(),
    });
    core.sessions.add(live.clone());
    live.feed(match leases {
        Some(leases) => Event::Resumed(welcome, leases),
        None => Event::Opened(welcome),
    });
    Ok(live)
}

type Begun = (Attached, Bytes, Duration, Option<Vec<HeldLease>>);

async fn begin(core: &Core, session: &Session) -> Result<Begun> {
    let token: [u8; 32] = rand::random();
    let id = SessionId::of_token(&token);
    let new = NewSession {
        id,
        node: core.node,
        worker: session.hello().worker.clone(),
        sdk: session.hello().sdk.clone(),
        ttl: session.ttl(),
    };
    core.store.open_session(new).await?;
    let attached = Attached {
        session: id,
        attach: 1,
    };
    Ok((
        attached,
        Bytes::copy_from_slice(&token),
        session.ttl(),
        None,
    ))
}

/// Passes a cancel on to the session that runs the attempt, if this node has it. `false`: it does not.
pub fn cancel(core: &Core, session: SessionId, lease: Lease) -> bool {
    match core.sessions.get(session) {
        Some(live) => {
            live.feed(Event::Cancel(lease));
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
