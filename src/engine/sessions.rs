//! The sessions whose streams this node has. Runs each one's state machine: feeds it events, carries out its actions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info};

use super::attach::Attaches;
use super::heal;
use super::outbox::Outbox;
use super::progress::Reports;
use super::renew::Renewals;
use super::results::{RecordRequest, Results};
use super::{Core, Options};
use crate::error::{Error, Limit, Result};
use crate::job::limits::{HEARTBEATS_PER_TTL, STREAMS_MAX, STREAMS_SPARE};
use crate::job::{HeldLease, Lease, QueueName, SessionId};
use crate::session::message::{Hello, Welcome};
use crate::session::{Action, Event, Session};
use crate::store::{Attached, Line, NewSession};

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

    /// Slots that are free for a queue. None while the worker is behind with reading.
    pub fn free(&self, queue: &QueueName) -> u32 {
        match self.is_behind() {
            true => 0,
            false => self.lock().free(self.now(), queue),
        }
    }

    /// The worker lets what it was sent pile up.
    pub fn is_behind(&self) -> bool {
        self.outbox.is_behind()
    }

    /// Promises a slot to a grant.
    pub fn reserve(&self, queue: &QueueName) -> bool {
        self.lock().reserve(self.now(), queue)
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
            Action::Record(endings) => self
                .outlets
                .results
                .record(RecordRequest::worker(self.clone(), endings)),
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

/// All sessions of this node.
#[derive(Debug, Default)]
pub struct Registry {
    live: Mutex<HashMap<SessionId, Arc<Live>>>,
    opening: AtomicUsize,
}

impl Registry {
    /// The session, if this node has its stream.
    pub fn get(&self, id: SessionId) -> Option<Arc<Live>> {
        self.lock().get(&id).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.lock().values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Forgets a stream that is gone, unless a newer one has its session here. The leases live on in the store.
    pub fn remove(&self, attached: Attached) {
        let mut live = self.lock();
        if live
            .get(&attached.session)
            .is_some_and(|live| live.attached == attached)
        {
            live.remove(&attached.session);
        }
    }

    /// Adds a stream, and ends an older one of the same session: that is the one to be added, if it was slower. A worker
    /// whose newest stream ends so would take itself for a copy.
    fn add(&self, live: Arc<Live>) {
        let older = {
            let mut sessions = self.lock();
            let is_newer = |there: &Arc<Live>| there.attached.attach > live.attached.attach;
            match sessions.get(&live.attached.session).is_some_and(is_newer) {
                true => Some(live),
                false => sessions.insert(live.attached.session, live),
            }
        };
        if let Some(older) = older {
            older.feed(Event::Moved);
        }
    }

    /// Every line that some session takes jobs of.
    pub fn lines(&self) -> Vec<Line> {
        let mut queues: Vec<QueueName> = self.all().iter().flat_map(|live| live.queues()).collect();
        queues.sort_unstable();
        queues.dedup();
        super::lines_of(queues)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
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

/// A place among the streams of this node, while a session is being opened.
struct Turn<'a>(&'a Registry);

impl<'a> Turn<'a> {
    fn take(registry: &'a Registry) -> Self {
        registry.opening.fetch_add(1, Ordering::SeqCst);
        Self(registry)
    }

    /// Whether there are at most so many, with this one.
    fn check(&self, most: usize) -> Result<()> {
        match self.0.opening.load(Ordering::SeqCst) + self.0.count() <= most {
            true => Ok(()),
            false => Err(Error::LimitReached {
                limit: Limit::Streams,
                retry_after: Duration::from_secs(5),
            }),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::SeqCst);
    }
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
