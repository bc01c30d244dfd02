//! How the engine reaches a store: each call runs in a task of its own, so that whoever drops the call drops only the
//! answer (I10). Here calls are counted, measured, logged, and their answers bounded in time.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tracing::{Instrument, debug, debug_span, error};

use super::{
    AllSettings, Ask, Attach, Attached, Attaching, Bulk, BulkStep, Cancelled, ClaimedBulk, Deleted,
    Draining, Drains, EnqueueAnswer, EntryId, Epoch, Expired, FinishAnswer, Found, Granted,
    JobFilter, JobPage, Line, LogReport, MigrationReport, NewBulk, NewSession, NodeReport,
    NodeView, Offer, QueueStats, QueueView, Report, Rescheduled, Retried, Segment, SessionPage,
    SessionReport, SessionRuns, SessionState, Signal, Started, Steer, Steered, Store, Swept, Unit,
    Version, Whereabouts,
};
use crate::error::{Error, Result};
use crate::job::{
    AuditEvent, BulkId, By, Ending, Flow, HeldLease, Job, JobId, Lease, LogLine, NewJob, NodeId,
    Priority, QueueName, SessionId, Start, Timestamp, Verdict, View,
};

/// How long a caller waits who has one of their own: its client is still there.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long the engine's own tasks wait. What they lose by not hearing the answer, the sweeps find.
const LOOP_ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Calls of clients under way at once, and as many of the engine's own, with those that nobody waits for any more.
const CALLS_MAX: usize = 1_024;

/// Where the measurements go.
pub trait StoreMetrics: Send + Sync + 'static {
    /// A verb ended, whether or not somebody still waited for it. `failed` is the reason word of its error, `None` if
    /// it went well.
    fn observe(&self, verb: &'static str, elapsed: Duration, failed: Option<&'static str>);
}

/// A store whose calls go to their end whoever drops them.
pub struct Observed {
    inner: Arc<dyn Store>,
    hook: Arc<dyn StoreMetrics>,
    /// Apart from each other: a crowd of clients must not keep the engine from renewing a lease.
    clients: Arc<Semaphore>,
    engine: Arc<Semaphore>,
}

impl Observed {
    /// Watches over `inner` and tells `hook`.
    #[allow(
        clippy::new_ret_no_self,
        reason = "nobody has use for it but as a store"
    )]
    pub fn new(inner: Arc<dyn Store>, hook: Arc<dyn StoreMetrics>) -> Arc<dyn Store> {
        let turns = || Arc::new(Semaphore::new(CALLS_MAX));
        Arc::new(Self {
            inner,
            hook,
            clients: turns(),
            engine: turns(),
        })
    }

    /// Runs `work` in a task of its own and waits for its answer. Cancel safe: the task goes on.
    async fn run<T, F, W>(&self, call: Call, work: W) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
        W: FnOnce(Arc<dyn Store>) -> F,
    {
        let Call {
            verb,
            items,
            by,
            within,
            late,
        } = call;
        let turns = match by {
            Caller::Client => &self.clients,
            Caller::Engine => &self.engine,
        };
        // Behind a store that does not answer, calls must not pile up without end.
        let Ok(turn) = turns.clone().try_acquire_owned() else {
            self.hook
                .observe(verb, Duration::ZERO, Some(away().code().reason));
            return Err(away());
        };
        let hook = self.hook.clone();
        let work = work(self.inner.clone());
        let watched = async move {
            let start = Instant::now();
            // A panic is seen, measured, and ends nothing else.
            let result = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(result) => result,
                Err(_) => Err(Error::internal("a call of the store panicked")),
            };
            let elapsed = start.elapsed();
            let failed = result.as_ref().err().map(|error| error.code().reason);
            hook.observe(verb, elapsed, failed);
            match &result {
                Err(Error::Internal(cause)) => {
                    error!(verb, items, ?elapsed, %cause, "store failed")
                }
                _ => debug!(verb, items, ?elapsed, failed, "store called"),
            }
            drop(turn);
            result
        };
        let task = tokio::spawn(watched.instrument(debug_span!("store", verb)));
        match tokio::time::timeout(within, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(cause)) => Err(Error::internal(cause)),
            Err(_) => {
                debug!(verb, items, ?within, "store is late");
                Err(late)
            }
        }
    }
}

/// What is known of a call beside its work.
struct Call {
    verb: &'static str,
    items: usize,
    by: Caller,
    within: Duration,
    /// What its caller is told when the answer takes too long.
    late: Error,
}

/// Who waits for a call.
#[derive(Clone, Copy)]
enum Caller {
    Client,
    Engine,
}

fn away() -> Error {
    Error::unavailable("the store")
}

/// A read for a client. Nothing can have happened.
fn read(verb: &'static str, items: usize) -> Call {
    Call {
        verb,
        items,
        by: Caller::Client,
        within: ANSWER_WITHIN,
        late: away(),
    }
}

/// A write for a client, who may repeat it.
fn write(verb: &'static str, items: usize) -> Call {
    Call {
        late: Error::OutcomeUnknown,
        ..read(verb, items)
    }
}

/// A look of the engine.
fn glance(verb: &'static str, items: usize) -> Call {
    Call {
        by: Caller::Engine,
        ..read(verb, items)
    }
}

/// A write of the engine.
fn step(verb: &'static str, items: usize) -> Call {
    Call {
        by: Caller::Engine,
        within: LOOP_ANSWER_WITHIN,
        ..write(verb, items)
    }
}

/// A schema change takes what it takes; whoever started it waits for it.
fn change(verb: &'static str) -> Call {
    Call {
        within: Duration::MAX,
        ..write(verb, 0)
    }
}

#[async_trait]
impl Store for Observed {
    async fn migrate(&self) -> Result<MigrationReport> {
        let work = |store: Arc<dyn Store>| async move { store.migrate().await };
        self.run(change("migrate"), work).await
    }

    async fn pending_migrations(&self) -> Result<MigrationReport> {
        let work = |store: Arc<dyn Store>| async move { store.pending_migrations().await };
        self.run(read("pending_migrations", 0), work).await
    }

    async fn ping(&self) -> Result<String> {
        let work = |store: Arc<dyn Store>| async move { store.ping().await };
        self.run(glance("ping", 0), work).await
    }

    async fn now(&self) -> Result<Timestamp> {
        let work = |store: Arc<dyn Store>| async move { store.now().await };
        self.run(glance("now", 0), work).await
    }

    async fn enqueue(&self, jobs: Arc<[NewJob]>, unit: Unit) -> Result<EnqueueAnswer> {
        let call = write("enqueue", jobs.len());
        let work = move |store: Arc<dyn Store>| async move { store.enqueue(jobs, unit).await };
        self.run(call, work).await
    }

    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<Vec<Option<Job>>> {
        let call = read("get", ids.len());
        let work = move |store: Arc<dyn Store>| async move { store.get(ids, view).await };
        self.run(call, work).await
    }

    async fn versions(&self, ids: Vec<JobId>) -> Result<Vec<Option<Version>>> {
        let call = glance("versions", ids.len());
        let work = move |store: Arc<dyn Store>| async move { store.versions(ids).await };
        self.run(call, work).await
    }

    async fn whereabouts(&self, job: JobId, limit: usize) -> Result<Whereabouts> {
        let work = move |store: Arc<dyn Store>| async move { store.whereabouts(job, limit).await };
        self.run(read("whereabouts", 1), work).await
    }

    async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        size: usize,
        view: View,
    ) -> Result<JobPage> {
        let work = move |store: Arc<dyn Store>| async move {
            store.list(filter, before, size, view).await
        };
        self.run(read("list", size), work).await
    }

    async fn cancel(&self, job: JobId, by: By) -> Result<Cancelled> {
        let work = move |store: Arc<dyn Store>| async move { store.cancel(job, by).await };
        self.run(write("cancel", 1), work).await
    }

    async fn retry(&self, job: JobId, delay: Duration, by: By) -> Result<Retried> {
        let work = move |store: Arc<dyn Store>| async move { store.retry(job, delay, by).await };
        self.run(write("retry", 1), work).await
    }

    async fn reschedule(&self, job: JobId, start: Start, by: By) -> Result<Rescheduled> {
        let work =
            move |store: Arc<dyn Store>| async move { store.reschedule(job, start, by).await };
        self.run(write("reschedule", 1), work).await
    }

    async fn set_priority(&self, job: JobId, priority: Priority, by: By) -> Result<Rescheduled> {
        let work =
            move |store: Arc<dyn Store>| async move { store.set_priority(job, priority, by).await };
        self.run(write("set_priority", 1), work).await
    }

    async fn delete(&self, job: JobId, by: By) -> Result<Deleted> {
        let work = move |store: Arc<dyn Store>| async move { store.delete(job, by).await };
        self.run(write("delete", 1), work).await
    }

    async fn open_session(&self, session: NewSession) -> Result<()> {
        let work = move |store: Arc<dyn Store>| async move { store.open_session(session).await };
        self.run(step("open_session", 1), work).await
    }

    async fn attach(&self, attaches: Vec<Attach>) -> Result<Vec<Attaching>> {
        let call = step("attach", attaches.len());
        let work = move |store: Arc<dyn Store>| async move { store.attach(attaches).await };
        self.run(call, work).await
    }

    async fn leases(
        &self,
        sessions: Vec<Attached>,
        age: Duration,
    ) -> Result<Vec<Option<Vec<HeldLease>>>> {
        let call = step("leases", sessions.len());
        let work = move |store: Arc<dyn Store>| async move { store.leases(sessions, age).await };
        self.run(call, work).await
    }

    async fn running(&self, jobs: Vec<(JobId, SessionId)>) -> Result<Vec<Option<HeldLease>>> {
        let call = step("running", jobs.len());
        let work = move |store: Arc<dyn Store>| async move { store.running(jobs).await };
        self.run(call, work).await
    }

    async fn leased(&self, leases: Vec<(Lease, SessionId)>) -> Result<Vec<Found>> {
        let call = step("leased", leases.len());
        let work = move |store: Arc<dyn Store>| async move { store.leased(leases).await };
        self.run(call, work).await
    }

    async fn renew(&self, sessions: Vec<Attached>) -> Result<Vec<SessionState>> {
        let call = step("renew", sessions.len());
        let work = move |store: Arc<dyn Store>| async move { store.renew(sessions).await };
        self.run(call, work).await
    }

    async fn close_sessions(&self, sessions: Vec<Attached>) -> Result<()> {
        let call = step("close_sessions", sessions.len());
        let work = move |store: Arc<dyn Store>| async move { store.close_sessions(sessions).await };
        self.run(call, work).await
    }

    async fn grant(&self, node: NodeId, asks: Vec<Ask>) -> Result<Vec<Granted>> {
        let call = step("grant", asks.len());
        let work = move |store: Arc<dyn Store>| async move { store.grant(node, asks).await };
        self.run(call, work).await
    }

    async fn finish(&self, endings: Vec<Ending>) -> Result<FinishAnswer> {
        let call = step("finish", endings.len());
        let work = move |store: Arc<dyn Store>| async move { store.finish(endings).await };
        self.run(call, work).await
    }

    async fn report(&self, reports: Vec<Report>) -> Result<Vec<Verdict>> {
        let call = step("report", reports.len());
        let work = move |store: Arc<dyn Store>| async move { store.report(reports).await };
        self.run(call, work).await
    }

    async fn log(&self, reports: Vec<LogReport>) -> Result<Vec<Verdict>> {
        // Results wait behind it: not for long.
        let call = Call {
            within: ANSWER_WITHIN,
            ..step("log", reports.len())
        };
        let work = move |store: Arc<dyn Store>| async move { store.log(reports).await };
        self.run(call, work).await
    }

    async fn lines(&self, after: Vec<(JobId, u64)>) -> Result<Vec<Vec<LogLine>>> {
        let call = read("lines", after.len());
        let work = move |store: Arc<dyn Store>| async move { store.lines(after).await };
        self.run(call, work).await
    }

    async fn offered(&self, offers: Vec<Offer>) -> Result<()> {
        let call = step("offered", offers.len());
        let work = move |store: Arc<dyn Store>| async move { store.offered(offers).await };
        self.run(call, work).await
    }

    async fn unoffered(
        &self,
        epoch: Epoch,
        age: Duration,
        claim: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>> {
        let work = move |store: Arc<dyn Store>| async move {
            store.unoffered(epoch, age, claim, limit).await
        };
        self.run(step("unoffered", limit), work).await
    }

    async fn lost_offers(
        &self,
        epoch: Epoch,
        line: Line,
        first: Option<EntryId>,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>> {
        let work = move |store: Arc<dyn Store>| async move {
            store.lost_offers(epoch, line, first, age, limit).await
        };
        self.run(step("lost_offers", limit), work).await
    }

    async fn claim(&self, lines: Vec<Line>, claim: Duration, limit: usize) -> Result<Vec<Segment>> {
        let work =
            move |store: Arc<dyn Store>| async move { store.claim(lines, claim, limit).await };
        self.run(step("claim", limit), work).await
    }

    async fn promote(&self, limit: usize) -> Result<Swept> {
        let work = move |store: Arc<dyn Store>| async move { store.promote(limit).await };
        self.run(step("promote", limit), work).await
    }

    async fn expire_jobs(&self, limit: usize) -> Result<Swept> {
        let work = move |store: Arc<dyn Store>| async move { store.expire_jobs(limit).await };
        self.run(step("expire_jobs", limit), work).await
    }

    async fn touch_pulse(&self) -> Result<()> {
        let work = |store: Arc<dyn Store>| async move { store.touch_pulse().await };
        self.run(step("touch_pulse", 1), work).await
    }

    async fn expire(&self, limit: usize) -> Result<Expired> {
        let work = move |store: Arc<dyn Store>| async move { store.expire(limit).await };
        self.run(step("expire", limit), work).await
    }

    async fn retain(&self, limit: usize) -> Result<Swept> {
        let work = move |store: Arc<dyn Store>| async move { store.retain(limit).await };
        self.run(step("retain", limit), work).await
    }

    async fn tidy(&self, limit: usize) -> Result<Swept> {
        let work = move |store: Arc<dyn Store>| async move { store.tidy(limit).await };
        self.run(step("tidy", limit), work).await
    }

    async fn signals(&self, node: NodeId, window: Duration, limit: usize) -> Result<Vec<Signal>> {
        let work =
            move |store: Arc<dyn Store>| async move { store.signals(node, window, limit).await };
        self.run(glance("signals", limit), work).await
    }

    async fn stats(&self, limit: usize) -> Result<Vec<QueueStats>> {
        let work = move |store: Arc<dyn Store>| async move { store.stats(limit).await };
        self.run(glance("stats", limit), work).await
    }

    async fn settings(&self, known: Option<u64>) -> Result<Option<AllSettings>> {
        let work = move |store: Arc<dyn Store>| async move { store.settings(known).await };
        self.run(glance("settings", 0), work).await
    }

    async fn steer(&self, steer: Steer) -> Result<Steered> {
        let work = move |store: Arc<dyn Store>| async move { store.steer(steer).await };
        self.run(write("steer", 1), work).await
    }

    async fn queue(&self, name: QueueName) -> Result<Option<QueueView>> {
        let work = move |store: Arc<dyn Store>| async move { store.queue(name).await };
        self.run(read("queue", 1), work).await
    }

    async fn queues_named(&self, names: Vec<QueueName>) -> Result<Vec<Option<QueueView>>> {
        let call = glance("queues_named", names.len());
        let work = move |store: Arc<dyn Store>| async move { store.queues_named(names).await };
        self.run(call, work).await
    }

    async fn note_flows(&self, span: Duration, flows: Vec<(QueueName, Flow)>) -> Result<()> {
        let call = step("note_flows", flows.len());
        let work = move |store: Arc<dyn Store>| async move { store.note_flows(span, flows).await };
        self.run(call, work).await
    }

    async fn queues(&self, after: Option<QueueName>, size: usize) -> Result<Vec<QueueView>> {
        let work = move |store: Arc<dyn Store>| async move { store.queues(after, size).await };
        self.run(read("queues", size), work).await
    }

    async fn describe(&self, reports: Vec<SessionReport>) -> Result<Vec<bool>> {
        let call = step("describe", reports.len());
        let work = move |store: Arc<dyn Store>| async move { store.describe(reports).await };
        self.run(call, work).await
    }

    async fn session(&self, id: SessionId, limit: usize) -> Result<Option<SessionRuns>> {
        let work = move |store: Arc<dyn Store>| async move { store.session(id, limit).await };
        self.run(read("session", 1), work).await
    }

    async fn sessions(
        &self,
        queue: Option<QueueName>,
        after: Option<SessionId>,
        size: usize,
    ) -> Result<SessionPage> {
        let work =
            move |store: Arc<dyn Store>| async move { store.sessions(queue, after, size).await };
        self.run(read("sessions", size), work).await
    }

    async fn present(&self, node: NodeReport) -> Result<Drains> {
        let work = move |store: Arc<dyn Store>| async move { store.present(node).await };
        self.run(step("present", 1), work).await
    }

    async fn gone(&self, node: NodeId) -> Result<()> {
        let work = move |store: Arc<dyn Store>| async move { store.gone(node).await };
        self.run(step("gone", 1), work).await
    }

    async fn nodes(&self, after: Option<NodeId>, size: usize) -> Result<Vec<NodeView>> {
        let work = move |store: Arc<dyn Store>| async move { store.nodes(after, size).await };
        self.run(read("nodes", size), work).await
    }

    async fn drain_session(&self, session: SessionId, by: By) -> Result<Draining> {
        let work =
            move |store: Arc<dyn Store>| async move { store.drain_session(session, by).await };
        self.run(write("drain_session", 1), work).await
    }

    async fn drain_node(&self, node: NodeId, by: By) -> Result<Draining> {
        let work = move |store: Arc<dyn Store>| async move { store.drain_node(node, by).await };
        self.run(write("drain_node", 1), work).await
    }

    async fn start_bulk(&self, new: NewBulk) -> Result<Started> {
        let work = move |store: Arc<dyn Store>| async move { store.start_bulk(new).await };
        self.run(write("start_bulk", 1), work).await
    }

    async fn bulk(&self, id: BulkId) -> Result<Option<Bulk>> {
        let work = move |store: Arc<dyn Store>| async move { store.bulk(id).await };
        self.run(read("bulk", 1), work).await
    }

    async fn bulks(&self, before: Option<BulkId>, size: usize) -> Result<Vec<Bulk>> {
        let work = move |store: Arc<dyn Store>| async move { store.bulks(before, size).await };
        self.run(read("bulks", size), work).await
    }

    async fn abort_bulk(&self, id: BulkId, by: By) -> Result<Option<(Bulk, bool)>> {
        let work = move |store: Arc<dyn Store>| async move { store.abort_bulk(id, by).await };
        self.run(write("abort_bulk", 1), work).await
    }

    async fn claim_bulk(&self, span: Duration) -> Result<Option<ClaimedBulk>> {
        let work = move |store: Arc<dyn Store>| async move { store.claim_bulk(span).await };
        self.run(step("claim_bulk", 1), work).await
    }

    async fn step_bulk(&self, claimed: ClaimedBulk) -> Result<BulkStep> {
        let work = move |store: Arc<dyn Store>| async move { store.step_bulk(claimed).await };
        self.run(step("step_bulk", 1), work).await
    }

    async fn audit(&self, before: Option<i64>, size: usize) -> Result<Vec<AuditEvent>> {
        let work = move |store: Arc<dyn Store>| async move { store.audit(before, size).await };
        self.run(read("audit", size), work).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says so by failing")]
mod tests;
