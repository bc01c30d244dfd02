//! The truth in one file, for `leasehold dev`: SQLite, one writer, durable at each commit.
//!
//! All writes go through one connection, one transaction after the other, so a verb may read rows, decide in Rust and
//! write; each write still carries its guard. Whole batches go in as one JSON parameter, since each statement costs a
//! round trip to the driver's thread. Where every job passes (enqueue, grant, success), SQL takes no JSON apart for each
//! of them: ids and bodies are one blob a batch, what jobs have in common goes in once, and a batch comes out as one row.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Executor, Sqlite, Transaction};

use super::{
    AllSettings, Ask, Attach, Attached, Attaching, Bulk, BulkStep, Cancelled, ClaimedBulk, Deleted,
    Draining, Drains, EnqueueAnswer, Epoch, Expired, FinishAnswer, Found, Granted, JobFilter,
    JobPage, Line, LogReport, MigrationReport, NewBulk, NewSession, NodeReport, NodeView, Offer,
    QueueStats, QueueView, Report, Rescheduled, Retried, Segment, SessionPage, SessionReport,
    SessionRuns, SessionState, Signal, Started, Steer, Steered, Store, Swept, Unit, Version,
    Whereabouts,
};
use crate::clock::{Clock, SystemClock};
use crate::error::Result;
use crate::job::{
    AuditEvent, BulkId, By, Ending, Flow, HeldLease, Job, JobId, Lease, LogLine, NewJob, NodeId,
    Priority, QueueName, SessionId, Start, Timestamp, Verdict, View,
};
use fault::{commit_fault, fault};

mod admin;
mod aging;
mod attach;
mod audit;
mod backlog;
mod bulk_acts;
mod bulks;
mod change;
mod enqueue;
mod fault;
mod flows;
mod lease;
mod log;
mod migrate;
mod nodes;
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

#[cfg(test)]
mod plans;
#[cfg(test)]
mod tests;

/// How long a statement waits for a lock of another process on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call waits for its turn at the writer, or for a free reader.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read beside the writer.
const READERS: u32 = 3;

type Tx = Transaction<'static, Sqlite>;

/// A [`Store`] in one SQLite file.
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    clock: Arc<dyn Clock>,
    /// The segment from which the next tidy goes on, so that no old one holds up the rest.
    tidied: AtomicI64,
}

impl SqliteStore {
    /// Opens the file, or makes it. [`Store::migrate`] is still to be called.
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be opened or written.
    pub async fn open(path: &Path) -> Result<Self> {
        Self::open_with_clock(path, Arc::new(SystemClock)).await
    }

    /// Opens the file with another clock than the machine's; every moment in the file comes from it.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn open_with_clock(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(TURN_TIMEOUT)
            .test_before_acquire(false)
            // A `begin` whose caller went away can leave its transaction open in the pool (sqlx #4385, #4393), and
            // what is "committed" in it later would be gone. A connection that is in none answers with an error; one
            // that still believes in a transaction afterwards is closed.
            .after_release(|connection, _| {
                Box::pin(async move {
                    let _ = connection.execute("ROLLBACK").await;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options.clone())
            .await
            .map_err(fault)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(TURN_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self {
            writer,
            readers,
            clock,
            tidied: AtomicI64::new(0),
        })
    }

    /// Closes the file, after the calls that are under way.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Takes the writer. The moment is read once the turn has come, so that moments do not run against the commits.
    async fn write(&self) -> Result<(Tx, Timestamp)> {
        let tx = self
            .writer
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(fault)?;
        Ok((tx, self.clock.now()))
    }
}

/// Durable when it returns.
async fn commit(tx: Tx) -> Result<()> {
    tx.commit().await.map_err(commit_fault)
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<MigrationReport> {
        let report = migrate::run(self).await?;
        // Whatever time the process was down is an outage to its workers; nobody must be able to sweep before this.
        self.touch_pulse().await?;
        Ok(report)
    }

    async fn pending_migrations(&self) -> Result<MigrationReport> {
        migrate::pending(self).await
    }

    async fn ping(&self) -> Result<String> {
        admin::ping(self).await
    }

    async fn now(&self) -> Result<Timestamp> {
        // Whether it answers counts too.
        admin::ping(self).await?;
        Ok(self.clock.now())
    }

    async fn enqueue(&self, jobs: Arc<[NewJob]>, unit: Unit) -> Result<EnqueueAnswer> {
        enqueue::enqueue(self, &jobs, unit).await
    }

    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<Vec<Option<Job>>> {
        row::get(self, &ids, view).await
    }

    async fn versions(&self, ids: Vec<JobId>) -> Result<Vec<Option<Version>>> {
        row::versions(self, &ids).await
    }

    async fn whereabouts(&self, job: JobId, limit: usize) -> Result<Whereabouts> {
        whereabouts::whereabouts(self, job, limit).await
    }

    async fn list(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        size: usize,
        view: View,
    ) -> Result<JobPage> {
        admin::list(self, &filter, before, size, view).await
    }

    async fn cancel(&self, job: JobId, by: By) -> Result<Cancelled> {
        admin::cancel(self, job, by).await
    }

    async fn retry(&self, job: JobId, delay: Duration, by: By) -> Result<Retried> {
        admin::retry(self, job, delay, &by).await
    }

    async fn reschedule(&self, job: JobId, start: Start, by: By) -> Result<Rescheduled> {
        steer::reschedule(self, job, start, &by).await
    }

    async fn set_priority(&self, job: JobId, priority: Priority, by: By) -> Result<Rescheduled> {
        steer::set_priority(self, job, priority, &by).await
    }

    async fn delete(&self, job: JobId, by: By) -> Result<Deleted> {
        steer::delete(self, job, &by).await
    }

    async fn open_session(&self, session: NewSession) -> Result<()> {
        session::open(self, &session).await
    }

    async fn attach(&self, attaches: Vec<Attach>) -> Result<Vec<Attaching>> {
        attach::attach(self, &attaches).await
    }

    async fn renew(&self, sessions: Vec<Attached>) -> Result<Vec<SessionState>> {
        session::renew(self, &sessions).await
    }

    async fn leases(
        &self,
        sessions: Vec<Attached>,
        age: Duration,
    ) -> Result<Vec<Option<Vec<HeldLease>>>> {
        attach::leases(self, &sessions, age).await
    }

    async fn running(&self, jobs: Vec<(JobId, SessionId)>) -> Result<Vec<Option<HeldLease>>> {
        attach::running(self, &jobs).await
    }

    async fn leased(&self, leases: Vec<(Lease, SessionId)>) -> Result<Vec<Found>> {
        attach::leased(self, &leases).await
    }

    async fn close_sessions(&self, sessions: Vec<Attached>) -> Result<()> {
        session::close(self, &sessions).await
    }

    async fn grant(&self, _node: NodeId, asks: Vec<Ask>) -> Result<Vec<Granted>> {
        lease::grant(self, &asks).await
    }

    async fn finish(&self, endings: Vec<Ending>) -> Result<FinishAnswer> {
        result::finish(self, endings).await
    }

    async fn report(&self, reports: Vec<Report>) -> Result<Vec<Verdict>> {
        progress::report(self, reports).await
    }

    async fn log(&self, reports: Vec<LogReport>) -> Result<Vec<Verdict>> {
        log::log(self, &reports).await
    }

    async fn lines(&self, after: Vec<(JobId, u64)>) -> Result<Vec<Vec<LogLine>>> {
        log::lines(self, &after).await
    }

    async fn offered(&self, offers: Vec<Offer>) -> Result<()> {
        backlog::offered(self, &offers).await
    }

    async fn unoffered(
        &self,
        epoch: Epoch,
        age: Duration,
        claim: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>> {
        backlog::unoffered(self, epoch, age, claim, limit).await
    }

    async fn lost_offers(
        &self,
        epoch: Epoch,
        line: Line,
        first: Option<super::EntryId>,
        age: Duration,
        limit: usize,
    ) -> Result<Vec<Segment>> {
        backlog::lost_offers(self, epoch, &line, first, age, limit).await
    }

    async fn claim(&self, lines: Vec<Line>, claim: Duration, limit: usize) -> Result<Vec<Segment>> {
        backlog::claim(self, &lines, claim, limit).await
    }

    async fn promote(&self, limit: usize) -> Result<Swept> {
        sweep::promote(self, limit).await
    }

    async fn expire_jobs(&self, limit: usize) -> Result<Swept> {
        sweep::expire_jobs(self, limit).await
    }

    async fn touch_pulse(&self) -> Result<()> {
        sweep::touch_pulse(self).await
    }

    async fn expire(&self, limit: usize) -> Result<Expired> {
        sweep::expire(self, limit).await
    }

    async fn retain(&self, limit: usize) -> Result<Swept> {
        sweep::retain(self, limit).await
    }

    async fn tidy(&self, limit: usize) -> Result<Swept> {
        sweep::tidy(self, limit).await
    }

    async fn signals(&self, node: NodeId, window: Duration, limit: usize) -> Result<Vec<Signal>> {
        signals::read(self, node, window, limit).await
    }

    async fn stats(&self, limit: usize) -> Result<Vec<QueueStats>> {
        admin::stats(self, limit).await
    }

    async fn settings(&self, known: Option<u64>) -> Result<Option<AllSettings>> {
        queues::settings(self, known).await
    }

    async fn steer(&self, steer: Steer) -> Result<Steered> {
        queues::steer(self, &steer).await
    }

    async fn queue(&self, name: QueueName) -> Result<Option<QueueView>> {
        queues::queue(self, &name).await
    }

    async fn queues_named(&self, names: Vec<QueueName>) -> Result<Vec<Option<QueueView>>> {
        queues::named(self, &names).await
    }

    async fn note_flows(&self, span: Duration, flows: Vec<(QueueName, Flow)>) -> Result<()> {
        flows::note(self, span, &flows).await
    }

    async fn queues(&self, after: Option<QueueName>, size: usize) -> Result<Vec<QueueView>> {
        queues::queues(self, after.as_ref(), size).await
    }

    async fn describe(&self, reports: Vec<SessionReport>) -> Result<Vec<bool>> {
        workers::describe(self, &reports).await
    }

    async fn session(&self, id: SessionId, limit: usize) -> Result<Option<SessionRuns>> {
        workers::session(self, id, limit).await
    }

    async fn sessions(
        &self,
        queue: Option<QueueName>,
        after: Option<SessionId>,
        size: usize,
    ) -> Result<SessionPage> {
        workers::sessions(self, queue.as_ref(), after, size).await
    }

    async fn present(&self, node: NodeReport) -> Result<Drains> {
        nodes::present(self, &node).await
    }

    async fn gone(&self, node: NodeId) -> Result<()> {
        nodes::gone(self, node).await
    }

    async fn nodes(&self, after: Option<NodeId>, size: usize) -> Result<Vec<NodeView>> {
        nodes::nodes(self, after, size).await
    }

    async fn drain_session(&self, session: SessionId, by: By) -> Result<Draining> {
        nodes::drain_session(self, session, &by).await
    }

    async fn drain_node(&self, node: NodeId, by: By) -> Result<Draining> {
        nodes::drain_node(self, node, &by).await
    }

    async fn start_bulk(&self, new: NewBulk) -> Result<Started> {
        bulks::start(self, &new).await
    }

    async fn bulk(&self, id: BulkId) -> Result<Option<Bulk>> {
        bulks::bulk(self, id).await
    }

    async fn bulks(&self, before: Option<BulkId>, size: usize) -> Result<Vec<Bulk>> {
        bulks::bulks(self, before, size).await
    }

    async fn abort_bulk(&self, id: BulkId, by: By) -> Result<Option<(Bulk, bool)>> {
        bulks::abort(self, id, &by).await
    }

    async fn claim_bulk(&self, span: Duration) -> Result<Option<ClaimedBulk>> {
        bulks::claim(self, span).await
    }

    async fn step_bulk(&self, claimed: ClaimedBulk) -> Result<BulkStep> {
        bulks::step(self, &claimed).await
    }

    async fn audit(&self, before: Option<i64>, size: usize) -> Result<Vec<AuditEvent>> {
        audit::events(self, before, size).await
    }
}
