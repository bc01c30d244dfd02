//! The truth in Postgres 15 or newer: one row a job with HOT updates, and logs of batches beside it.
//!
//! Every verb is one statement (a second one, with a new snapshot, looks at what the first one skipped), so that there
//! is no transaction that a dropped future could leave open. Only an enqueue that is one caller's unit and has an id that
//! is there already, and the migrations, use BEGIN; their pool rolls back whatever comes back to it.
//!
//! Plans are pinned: connections run with jit, sequential scans, hash joins and merge joins off and with generic plans,
//! since a plan chosen by the statistics of a moment once read the whole table for a batch of ids.

mod admin;
mod attach;
mod audit;
mod backlog;
mod bulk_acts;
mod bulks;
mod enqueue;
mod fault;
mod flows;
mod lease;
mod list;
mod log;
mod migrate;
mod nodes;
mod pool;
mod progress;
mod queues;
mod result;
mod row;
mod session;
mod signals;
mod steer;
mod sweep;
mod whereabouts;
mod workers;

use std::time::Duration;

use async_trait::async_trait;

pub use pool::PostgresOptions;

use crate::error::Result;
use crate::job::{
    AuditEvent, BulkId, By, Ending, Flow, HeldLease, Job, JobId, Lease, LogLine, NewJob, NodeId,
    Priority, QueueName, SessionId, Start, Timestamp, Verdict, View,
};
use crate::store::{
    AllSettings, Ask, Attach, Attached, Attaching, Bulk, BulkStep, Cancelled, ClaimedBulk, Deleted,
    Draining, Drains, EnqueueAnswer, EntryId, Epoch, Expired, FinishAnswer, Found, Granted,
    JobFilter, JobPage, Line, LogReport, MigrationReport, NewBulk, NewSession, NodeReport,
    NodeView, Offer, QueueStats, QueueView, Report, Rescheduled, Retried, Segment, SessionPage,
    SessionReport, SessionRuns, SessionState, Signal, Started, Steer, Steered, Store, Swept, Unit,
    Version, Whereabouts,
};
use pool::{Pool, Transactions};

/// The store in Postgres. It holds pools that connect when they are needed: it comes up while the database is down.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    /// Leases, results, renewals: what must never queue behind callers.
    hot: Pool,
    /// Enqueue.
    entry: Pool,
    /// What uses BEGIN.
    units: Pool,
    /// Reads of callers, cancel and retry by hand.
    reads: Pool,
    /// The loops.
    loops: Pool,
}

impl PostgresStore {
    /// Prepares the pools for `url` (`postgres://user:password@host:port/database`). It does not connect yet.
    ///
    /// # Errors
    /// `InvalidArgument` when the URL cannot be read.
    pub async fn connect(url: &str, options: &PostgresOptions) -> Result<Self> {
        let base = options.connect_options(url)?;
        Ok(Self {
            hot: Pool::new(&base, options.hot_connections, Transactions::None),
            entry: Pool::new(&base, options.enqueue_connections, Transactions::None),
            units: Pool::new(&base, options.enqueue_connections, Transactions::RolledBack),
            reads: Pool::new(&base, options.read_connections, Transactions::None),
            loops: Pool::new(&base, options.loop_connections, Transactions::None),
        })
    }

    /// Why no connection to `url` is to be had, in the driver's words, for people; `None`: one is.
    ///
    /// # Errors
    /// `InvalidArgument` when the URL cannot be read.
    pub async fn trouble(url: &str, options: &PostgresOptions) -> Result<Option<String>> {
        Ok(pool::trouble(&options.connect_options(url)?).await)
    }

    /// Closes all connections once they are idle.
    pub async fn close(&self) {
        for pool in [
            &self.hot,
            &self.entry,
            &self.units,
            &self.reads,
            &self.loops,
        ] {
            pool.close().await;
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> Result<MigrationReport> {
        migrate::migrate(&self.units).await
    }
    async fn pending_migrations(&self) -> Result<MigrationReport> {
        migrate::pending(&self.units).await
    }
    async fn ping(&self) -> Result<String> {
        // Of the pool that must work: a crowd of readers makes them wait, and is no outage.
        admin::ping(&self.hot).await
    }
    async fn now(&self) -> Result<Timestamp> {
        admin::now(&self.hot).await
    }
    async fn enqueue(&self, jobs: std::sync::Arc<[NewJob]>, unit: Unit) -> Result<EnqueueAnswer> {
        enqueue::enqueue(&self.entry, &self.units, &jobs, unit).await
    }
    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<Vec<Option<Job>>> {
        admin::get(&self.reads, &ids, view).await
    }
    async fn versions(&self, ids: Vec<JobId>) -> Result<Vec<Option<Version>>> {
        admin::versions(&self.loops, &ids).await
    }
    async fn whereabouts(&self, job: JobId, limit: usize) -> Result<Whereabouts> {
        whereabouts::whereabouts(&self.reads, job, limit).await
    }
    async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        size: usize,
        view: View,
    ) -> Result<JobPage> {
        list::list(&self.reads, &filter, before, size, view).await
    }
    async fn cancel(&self, job: JobId, by: By) -> Result<Cancelled> {
        signals::cancel(&self.reads, job, &by).await
    }
    async fn retry(&self, job: JobId, delay: Duration, by: By) -> Result<Retried> {
        admin::retry(&self.reads, job, delay, &by).await
    }
    async fn reschedule(&self, job: JobId, start: Start, by: By) -> Result<Rescheduled> {
        steer::reschedule(&self.reads, job, start, &by).await
    }
    async fn set_priority(&self, job: JobId, priority: Priority, by: By) -> Result<Rescheduled> {
        steer::set_priority(&self.reads, job, priority, &by).await
    }
    async fn delete(&self, job: JobId, by: By) -> Result<Deleted> {
        steer::delete(&self.reads, job, &by).await
    }
    async fn open_session(&self, session: NewSession) -> Result<()> {
        session::open(&self.hot, &session).await
    }
    async fn attach(&self, attaches: Vec<Attach>) -> Result<Vec<Attaching>> {
        attach::attach(&self.hot, &attaches).await
    }
    async fn renew(&self, sessions: Vec<Attached>) -> Result<Vec<SessionState>> {
        session::renew(&self.hot, &sessions).await
    }
    async fn leases(
        &self,
        sessions: Vec<Attached>,
        age: Duration,
    ) -> Result<Vec<Option<Vec<HeldLease>>>> {
        attach::leases(&self.hot, &sessions, age).await
    }
    async fn running(&self, jobs: Vec<(JobId, SessionId)>) -> Result<Vec<Option<HeldLease>>> {
        attach::running(&self.loops, &jobs).await
    }
    async fn leased(&self, leases: Vec<(Lease, SessionId)>) -> Result<Vec<Found>> {
        attach::leased(&self.hot, &leases).await
    }
    async fn close_sessions(&self, sessions: Vec<Attached>) -> Result<()> {
        session::close(&self.hot, &sessions).await
    }
    async fn grant(&self, node: NodeId, asks: Vec<Ask>) -> Result<Vec<Granted>> {
        lease::grant(&self.hot, node, &asks).await
    }
    async fn finish(&self, endings: Vec<Ending>) -> Result<FinishAnswer> {
        result::finish(&self.hot, &endings).await
    }
    async fn report(&self, reports: Vec<Report>) -> Result<Vec<Verdict>> {
        progress::report(&self.hot, &reports).await
    }
    async fn log(&self, reports: Vec<LogReport>) -> Result<Vec<Verdict>> {
        log::log(&self.hot, &reports).await
    }
    async fn lines(&self, after: Vec<(JobId, u64)>) -> Result<Vec<Vec<LogLine>>> {
        log::lines(&self.reads, &after).await
    }
    async fn offered(&self, offers: Vec<Offer>) -> Result<()> {
        backlog::offered(&self.loops, &offers).await
    }
    async fn unoffered(
        &self,
        epoch: Epoch,
        age: Duration,
        claim: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>> {
        backlog::unoffered(&self.loops, epoch, age, claim, limit).await
    }
    async fn lost_offers(
        &self,
        epoch: Epoch,
        line: Line,
        first: Option<EntryId>,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>> {
        backlog::lost_offers(&self.loops, epoch, &line, first, age, limit).await
    }
    async fn claim(&self, lines: Vec<Line>, claim: Duration, limit: usize) -> Result<Vec<Segment>> {
        backlog::claim(&self.loops, &lines, claim, limit).await
    }
    async fn promote(&self, limit: usize) -> Result<Swept> {
        sweep::promote(&self.loops, limit).await
    }
    async fn expire_jobs(&self, limit: usize) -> Result<Swept> {
        sweep::expire_jobs(&self.loops, limit).await
    }
    async fn touch_pulse(&self) -> Result<()> {
        session::touch_pulse(&self.hot).await
    }
    async fn expire(&self, limit: usize) -> Result<Expired> {
        session::expire(&self.loops, limit).await
    }
    async fn retain(&self, limit: usize) -> Result<Swept> {
        sweep::retain(&self.loops, limit).await
    }
    async fn tidy(&self, limit: usize) -> Result<Swept> {
        sweep::tidy(&self.loops, limit).await
    }
    async fn signals(&self, node: NodeId, window: Duration, limit: usize) -> Result<Vec<Signal>> {
        signals::signals(&self.loops, node, window, limit).await
    }
    async fn stats(&self, limit: usize) -> Result<Vec<QueueStats>> {
        admin::stats(&self.reads, limit).await
    }
    async fn settings(&self, known: Option<u64>) -> Result<Option<AllSettings>> {
        // Of the pool that hands out: as long as that works, a pause is heard of.
        queues::settings(&self.hot, known).await
    }
    async fn steer(&self, steer: Steer) -> Result<Steered> {
        queues::steer(&self.reads, &steer).await
    }
    async fn queue(&self, name: QueueName) -> Result<Option<QueueView>> {
        queues::queue(&self.reads, &name).await
    }
    async fn queues_named(&self, names: Vec<QueueName>) -> Result<Vec<Option<QueueView>>> {
        queues::named(&self.reads, &names).await
    }
    async fn note_flows(&self, span: Duration, flows: Vec<(QueueName, Flow)>) -> Result<()> {
        flows::note(&self.loops, span, &flows).await
    }
    async fn queues(&self, after: Option<QueueName>, size: usize) -> Result<Vec<QueueView>> {
        queues::queues(&self.reads, after.as_ref(), size).await
    }
    async fn describe(&self, reports: Vec<SessionReport>) -> Result<Vec<bool>> {
        workers::describe(&self.loops, &reports).await
    }
    async fn session(&self, id: SessionId, limit: usize) -> Result<Option<SessionRuns>> {
        workers::session(&self.reads, id, limit).await
    }
    async fn sessions(
        &self,
        queue: Option<QueueName>,
        after: Option<SessionId>,
        size: usize,
    ) -> Result<SessionPage> {
        workers::sessions(&self.reads, queue.as_ref(), after, size).await
    }
    async fn present(&self, node: NodeReport) -> Result<Drains> {
        nodes::present(&self.loops, &node).await
    }
    async fn gone(&self, node: NodeId) -> Result<()> {
        nodes::gone(&self.loops, node).await
    }
    async fn nodes(&self, after: Option<NodeId>, size: usize) -> Result<Vec<NodeView>> {
        nodes::nodes(&self.reads, after, size).await
    }
    async fn drain_session(&self, session: SessionId, by: By) -> Result<Draining> {
        nodes::drain_session(&self.reads, session, &by).await
    }
    async fn drain_node(&self, node: NodeId, by: By) -> Result<Draining> {
        nodes::drain_node(&self.reads, node, &by).await
    }
    async fn start_bulk(&self, new: NewBulk) -> Result<Started> {
        bulks::start(&self.reads, &new).await
    }
    async fn bulk(&self, id: BulkId) -> Result<Option<Bulk>> {
        bulks::bulk(&self.reads, id).await
    }
    async fn bulks(&self, before: Option<BulkId>, size: usize) -> Result<Vec<Bulk>> {
        bulks::bulks(&self.reads, before, size).await
    }
    async fn abort_bulk(&self, id: BulkId, by: By) -> Result<Option<(Bulk, bool)>> {
        bulks::abort(&self.reads, id, &by).await
    }
    async fn claim_bulk(&self, span: Duration) -> Result<Option<ClaimedBulk>> {
        bulks::claim(&self.loops, span).await
    }
    async fn step_bulk(&self, claimed: ClaimedBulk) -> Result<BulkStep> {
        bulks::step(&self.loops, &claimed).await
    }
    async fn audit(&self, before: Option<i64>, size: usize) -> Result<Vec<AuditEvent>> {
        audit::events(&self.reads, before, size).await
    }
}
