//! What a batch costs depends neither on how many jobs there are nor on what the planner knows of them.
//!
//! One store lives through the growth of its tables, with its connections and their prepared statements: at each size it
//! works first with what the planner knew before, then with what is true.

use std::time::Duration;

use leasehold::job::limits::BULK_STEP_MAX;
use leasehold::job::limits::{LOG_LINES_MAX, LOGS_READ_MAX};
use leasehold::job::{
    BulkAction, BulkId, BulkState, By, Canary, Failure, Flow, IdempotencyKey, JobId, JobState,
    LeasedJob, LogLevel, NewJob, NewLine, NewLines, Outcome, Priority, QueueChange, QueueName,
    Start, Timestamp, UniqueConflict, UniqueKey, Verdict, View,
};
use leasehold::store::{
    Ask, Attach, Attached, Attaching, EntryId, Epoch, Found, Granted, JobFilter, Line, LogReport,
    NewBulk, Offer, QueueSlots, SessionProfile, SessionReport, SessionSlots, SessionState, Started,
    Steer, Steered, Store, Unit,
};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::plan::Bound;
use crate::support::until;
use crate::tables::{RARE, Tables};
use crate::verbs::{QUEUE, Verbs, body, endings, job};
use crate::watched::Watched;

/// Jobs of a full batch, and sessions that they go to.
const BATCH: usize = 1_000;
/// Jobs whose lines an engine writes at once.
const SAID: usize = 200;
/// Rows that one page looks at where no index answers its filter.
const PAGE_ROWS: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_of_a_batch_does_not_grow_with_the_table() {
    let mut stage = Stage::new().await;
    // Statements are planned here, while nothing is there, and keep these plans until the tables are analyzed.
    stage.all("the first job").await;
    stage.widen().await;
    stage.grow(1_000).await;
    stage.grow(20_000).await;
    stage.analyze("20000 jobs").await;
    stage.grow(1_000_000).await;
    stage.analyze("1000000 jobs").await;
}

/// What the planner knows is not always true, and a cached plan is kept until somebody analyzes again: a service that was
/// small when that was done, and grows at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_made_on_a_few_rows_are_soon_made_anew() {
    let mut stage = Stage::new().await;
    stage.all("the first job").await;
    stage.tables.analyze().await;
    stage.all("the second job").await;
    stage.widen().await;
    stage.tables.grow(20_000).await;
    // One that is still planned for few may run into the server's bound of time; the next one does not.
    until(
        Duration::from_secs(60),
        "a full batch is cheap",
        async || {
            let jobs = stage.queued().await;
            let asks = jobs.iter().zip(&stage.sessions);
            let asks = asks.map(|(job, to)| Ask { job: *job, to: *to }).collect();
            let granted = stage.verbs.store.grant(stage.verbs.node, asks).await;
            let renewed = stage.verbs.store.renew(stage.sessions.clone()).await;
            let plans = stage.server.plans().await;
            let is_cheap = plans.iter().all(|plan| plan.rows() <= ids(BATCH).rows);
            (is_cheap && granted.is_ok() && renewed.is_ok()).then_some(())
        },
    )
    .await;
}

/// A store at work, and what it may cost.
struct Stage {
    verbs: Verbs,
    tables: Tables,
    /// Jobs of a batch.
    batch: usize,
    sessions: Vec<Attached>,
    /// Last, as it ends what the others are connected to.
    server: Watched,
}

impl Stage {
    async fn new() -> Self {
        let server = Watched::launch().await;
        let verbs = Verbs::on(&server.url()).await;
        let look = PgConnection::connect(&server.url()).await;
        Self {
            sessions: verbs.sessions(1).await,
            tables: Tables::new(look.expect("it answers")).await,
            batch: 1,
            verbs,
            server,
        }
    }

    /// From now on batches are full.
    async fn widen(&mut self) {
        self.batch = BATCH;
        self.sessions = self.verbs.sessions(BATCH).await;
    }

    /// Works with more rows than the planner knows of.
    async fn grow(&mut self, rows: i64) {
        self.tables.grow(rows).await;
        self.all(&format!("{rows} jobs, not analyzed")).await;
    }

    /// Works with as many rows as the planner knows of.
    async fn analyze(&mut self, what: &str) {
        self.tables.analyze().await;
        self.all(&format!("{what}, analyzed")).await;
    }

    /// Every verb, in batches as large as they come.
    async fn all(&mut self, when: &str) {
        self.enqueue(when).await;
        self.succeed(when).await;
        self.end_otherwise(when).await;
        self.live(when).await;
        self.hint(when).await;
        self.read(when).await;
        self.steer(when).await;
        self.list(when).await;
        self.bulks(when).await;
        self.sweep(when).await;
    }

    async fn enqueue(&mut self, when: &str) {
        self.forget().await;
        let jobs: Vec<_> = (0..self.batch).map(|_| job(100)).collect();
        self.verbs.accept(jobs.clone()).await;
        self.by_id(when, "enqueue").await;
        let again = self.verbs.store.enqueue(jobs.into(), Unit::All).await;
        again.expect("enqueue answers");
        self.by_id(when, "enqueue of jobs that are there").await;
        let about = Uuid::new_v4();
        for what in ["enqueue with keys", "enqueue with keys that are there"] {
            let keyed = |n| NewJob {
                idempotency_key: IdempotencyKey::parse(&format!("{about} {n}")),
                ..job(100)
            };
            let jobs = (0..self.batch).map(keyed).collect();
            let answer = self.verbs.store.enqueue(jobs, Unit::All).await;
            answer.expect("enqueue answers");
            self.within(when, what, ids(self.batch)).await;
        }
        for (what, conflict) in [
            ("enqueue with unique keys", UniqueConflict::Keep),
            (
                "enqueue with unique keys that are held",
                UniqueConflict::Keep,
            ),
            ("enqueue in the place of others", UniqueConflict::Replace),
        ] {
            let unique = |n| {
                let mut job = job(100);
                job.spec.unique_key = UniqueKey::parse(&format!("{about} {n}"));
                job.unique_conflict = conflict;
                job
            };
            let jobs = (0..self.batch).map(unique).collect();
            let answer = self.verbs.store.enqueue(jobs, Unit::All).await;
            answer.expect("enqueue answers");
            self.within(when, what, ids(self.batch)).await;
        }
    }

    async fn succeed(&mut self, when: &str) {
        let jobs = self.queued().await;
        let leases = self.verbs.lease(&jobs, &self.sessions).await;
        self.by_id(when, "grant").await;
        self.resume(when, &leases).await;
        let late = jobs.iter().zip(self.sessions.iter());
        let late = late.map(|(job, to)| Ask { job: *job, to: *to }).collect();
        let node = self.verbs.node;
        let answers = self.verbs.store.grant(node, late).await;
        let answers = answers.expect("grant answers");
        assert!(answers.iter().all(|a| *a == Granted::NotQueued));
        self.by_id(when, "grant of jobs that are RUNNING").await;
        self.say(when, &leases).await;
        for what in ["success", "a copy of a success"] {
            let success = |_| Outcome::Success(Some(body(20)));
            self.verbs.end(endings(&leases, success)).await;
            self.by_id(when, what).await;
        }
    }

    /// Lines of attempts, with those that are one too many; and who reads them.
    async fn say(&mut self, when: &str, leases: &[(LeasedJob, Attached)]) {
        let leases = &leases[..leases.len().min(SAID)];
        for (what, first, count) in [
            ("log", 1, 1),
            ("a copy of a log", 1, 1),
            ("more of a log", 2, 2),
        ] {
            let reports = leases.iter().map(|lease| said(lease, first, count));
            let verdicts = self.verbs.store.log(reports.collect()).await;
            let verdicts = verdicts.expect("log answers");
            assert!(verdicts.iter().all(|v| matches!(v, Verdict::Recorded(_))));
            self.by_id(when, what).await;
        }
        let one = |first| vec![said(&leases[0], first, LOG_LINES_MAX)];
        for first in [4, 4 + LOG_LINES_MAX as u64] {
            let verdicts = self.verbs.store.log(one(first)).await;
            verdicts.expect("log answers");
        }
        // What is too much is looked at once, and goes.
        let trimmed = ids(3 * LOG_LINES_MAX);
        self.within(when, "a log that is full", trimmed).await;
        let ids: Vec<JobId> = leases.iter().map(|(job, _)| job.lease.job).collect();
        let after = ids.iter().take(LOGS_READ_MAX).map(|id| (*id, 0));
        let lines = self.verbs.store.lines(after.collect()).await;
        let lines = lines.expect("lines answers");
        assert_eq!(lines[0].len(), LOG_LINES_MAX);
        self.within(when, "lines", trimmed).await;
        let versions = self.verbs.store.versions(ids).await;
        assert!(
            versions
                .expect("versions answers")
                .iter()
                .all(Option::is_some)
        );
        self.by_id(when, "versions").await;
    }

    /// Sessions that all come back at once, with what they were granted lately, and what is looked at of it.
    async fn resume(&mut self, when: &str, leases: &[(LeasedJob, Attached)]) {
        let node = self.verbs.node;
        for session in &mut self.sessions {
            session.attach += 1;
        }
        let to = self.sessions.iter();
        let attaches = to.map(|to| Attach { to: *to, node }).collect();
        let moved = self.verbs.store.attach(attaches).await;
        let moved = moved.expect("attach answers");
        assert!(moved.iter().all(|a| matches!(a, Attaching::Resumed(_))));
        self.by_id(when, "attach").await;
        let granted = "SELECT coalesce(sum(cardinality(jobs)), 0)::bigint FROM grants";
        let granted = self.tables.number(granted).await as usize;
        self.forget().await;
        let sessions = self.sessions.clone();
        let held = self.verbs.store.leases(sessions, Duration::ZERO).await;
        let held = held.expect("leases answers");
        let held: usize = held.iter().map(|h| h.as_ref().map_or(0, Vec::len)).sum();
        assert_eq!(held, leases.len());
        self.within(when, "leases", ids(granted + self.batch)).await;
        let of = |(job, by): &(LeasedJob, Attached)| (job.lease.job, by.session);
        let running = self.verbs.store.running(leases.iter().map(of).collect());
        let running = running.await.expect("running answers");
        assert!(running.iter().all(Option::is_some));
        self.by_id(when, "running").await;
        let of = |(job, by): &(LeasedJob, Attached)| (job.lease, by.session);
        let found = self.verbs.store.leased(leases.iter().map(of).collect());
        let found = found.await.expect("leased answers");
        assert!(found.iter().all(|f| matches!(f, Found::Job(_))));
        self.by_id(when, "leased").await;
    }

    async fn end_otherwise(&mut self, when: &str) {
        let jobs = self.queued().await;
        let leases = self.verbs.lease(&jobs, &self.sessions).await;
        self.forget().await;
        for what in ["failure and release", "a copy of a failure or release"] {
            self.verbs.end(endings(&leases, badly)).await;
            self.by_id(when, what).await;
        }
        let one = self.queued().await[0];
        let cancelled = self.verbs.store.cancel(one, "not wanted".into()).await;
        cancelled.expect("cancel answers");
        self.by_id(when, "cancel").await;
        let retried = self
            .verbs
            .store
            .retry(one, Duration::ZERO, "again".into())
            .await;
        retried.expect("retry answers");
        self.by_id(when, "retry").await;
    }

    async fn live(&mut self, when: &str) {
        let renewed = self.verbs.store.renew(self.sessions.clone()).await;
        assert_eq!(
            renewed.expect("renew answers"),
            vec![SessionState::Alive; self.batch]
        );
        self.by_id(when, "renew").await;
        let touched = self.verbs.store.touch_pulse().await;
        touched.expect("the pulse answers");
        self.describe(when).await;
        let (node, window) = (self.verbs.node, Duration::from_secs(10));
        let signals = self.verbs.store.signals(node, window, self.batch).await;
        signals.expect("signals answer");
        self.by_id(when, "pulse and signals").await;
    }

    /// What a node tells of its sessions, and what people see of them.
    async fn describe(&mut self, when: &str) {
        self.forget().await;
        let reports = self.sessions.iter().map(|session| report(*session));
        let written = self.verbs.store.describe(reports.collect()).await;
        assert_eq!(written.expect("describe answers"), vec![true; self.batch]);
        self.by_id(when, "describe").await;
        for of in [None, Some(queue(QUEUE)), Some(queue(RARE))] {
            let page = self.verbs.store.sessions(of, None, 50).await;
            page.expect("sessions answers");
            self.within(when, "sessions", ids(2 * BATCH)).await;
        }
        let granted = "SELECT coalesce(sum(cardinality(jobs)), 0)::bigint FROM grants";
        let granted = self.tables.number(granted).await as usize;
        let one = self.sessions[0].session;
        let runs = self.verbs.store.session(one, BATCH).await;
        runs.expect("session answers");
        self.within(when, "session", ids(granted + BATCH)).await;
        self.flow(when).await;
    }

    /// What a node tells of a batch of queues, as it does every few seconds, and what that makes of a look at them.
    async fn flow(&mut self, when: &str) {
        let flow = Flow {
            enqueued: 1,
            ..Flow::default()
        };
        let flows = (0..BATCH).map(|n| (queue(&format!("q{n}")), flow));
        let flows: Vec<_> = flows.collect();
        for _ in 0..12 {
            let noted = self
                .verbs
                .store
                .note_flows(Duration::from_secs(5), flows.clone());
            noted.await.expect("note_flows answers");
        }
        self.by_id(when, "note_flows").await;
        let names = flows.into_iter().map(|(name, _)| name).collect();
        let named = self.verbs.store.queues_named(names).await;
        named.expect("queues_named answers");
        // Each row names them all.
        self.within(when, "queues_named", ids(20 * BATCH)).await;
        self.tables.run("DELETE FROM queue_flows").await;
    }

    /// Segments are trimmed to what is QUEUED: each of their jobs is looked at, once.
    async fn hint(&mut self, when: &str) {
        const SEGMENTS: usize = 100;
        let (epoch, store) = (Epoch(Uuid::new_v4()), &self.verbs.store);
        let now = Duration::ZERO;
        let taken = store.unoffered(epoch, now, now, SEGMENTS).await;
        let taken = taken.expect("unoffered answers");
        self.within(when, "unoffered", ids(SEGMENTS * self.batch))
            .await;
        let offer = |(n, segment): (usize, i64)| Offer {
            segment,
            epoch,
            last: EntryId {
                ms: 1 + n as u64,
                seq: 0,
            },
        };
        let offers = taken.iter().map(|s| s.id).enumerate().map(offer).collect();
        let told = self.verbs.store.offered(offers).await;
        told.expect("offered answers");
        self.within(when, "offered", ids(2 * SEGMENTS)).await;
        let store = &self.verbs.store;
        let lost = store.lost_offers(epoch, line(QUEUE), None, now, SEGMENTS);
        lost.await.expect("lost_offers answers");
        let bound = ids(SEGMENTS * self.batch);
        self.within(when, "lost offers", bound).await;
        let lines = vec![line(QUEUE), line(RARE)];
        let claimed = self.verbs.store.claim(lines, now, 10).await;
        claimed.expect("claim answers");
        self.within(when, "claim", ids(10 * self.batch)).await;
    }

    async fn read(&mut self, when: &str) {
        let jobs = self.queued().await;
        for view in [View::Basic, View::Progress, View::Full] {
            let read = self.verbs.store.get(jobs.clone(), view).await;
            assert!(read.expect("get answers").iter().all(Option::is_some));
        }
        self.by_id(when, "get").await;
        let versions = self.verbs.store.versions(jobs.clone()).await;
        assert!(
            versions
                .expect("versions answers")
                .iter()
                .all(Option::is_some)
        );
        self.by_id(when, "versions").await;
        // A step looks at 2,000 jobs and the rest of a segment.
        let place = self.verbs.store.whereabouts(jobs[0], 10 * BATCH).await;
        assert!(place.expect("whereabouts answers").ahead.is_some());
        self.within(when, "whereabouts", ids(3 * BATCH)).await;
        let stats = self.verbs.store.stats(200).await;
        stats.expect("stats answer");
        self.within(when, "stats", ids(20 * self.batch)).await;
        let listed = self.verbs.store.queues(None, 200).await;
        listed.expect("queues answers");
        let one = self.verbs.store.queue(queue(RARE)).await;
        one.expect("queue answers");
        let names = vec![queue(QUEUE), queue(RARE)];
        let named = self.verbs.store.queues_named(names).await;
        named.expect("queues_named answers");
        self.within(when, "queues", ids(20 * self.batch)).await;
    }

    /// What every node asks all the time, and what a hand does now and then.
    async fn steer(&mut self, when: &str) {
        let known = self.verbs.store.settings(None).await;
        let known = known.expect("settings answers").map(|all| all.change);
        let news = self.verbs.store.settings(known).await;
        assert_eq!(news.expect("settings answers"), None);
        for change in [QueueChange::Pause, QueueChange::Resume] {
            let steer = Steer {
                queue: queue(RARE),
                change,
                expected: None,
                by: By::default(),
            };
            let steered = self.verbs.store.steer(steer).await;
            assert_eq!(steered.expect("steer answers"), Steered::Done);
        }
        let audit = self.verbs.store.audit(None, 50).await;
        assert!(audit.expect("audit answers").len() >= 2);
        self.within(when, "steer", ids(50)).await;
    }

    async fn list(&mut self, when: &str) {
        use JobState::{Cancelled, Failed, Running};
        let page = ids(200);
        let walk = Bound {
            rows: PAGE_ROWS + 100,
            ..ids(PAGE_ROWS as usize)
        };
        let dead = [Failed, Cancelled];
        for (queues, states, bound) in [
            (&[][..], &[][..], page),
            (&[RARE], &[], page),
            (&[QUEUE, RARE, "other"], &[], page),
            (&[], &dead, page),
            (&[QUEUE], &dead, page),
            (&[RARE], &dead, page),
            (&[], &[Running], walk),
            (&[QUEUE], &[Running], walk),
            (&[RARE], &[Running], walk),
            (&[QUEUE], &[Failed], walk),
        ] {
            let filter = JobFilter {
                queues: queues.iter().map(|name| queue(name)).collect(),
                states: states.to_vec(),
                ..JobFilter::default()
            };
            let page = self.verbs.store.list(filter, None, 50, View::Basic).await;
            page.expect("list answers");
            let what = format!("list of {queues:?} {states:?}");
            self.within(when, &what, bound).await;
        }
        let labelled = |key: &str, value: &str, queues: &[&str]| JobFilter {
            labels: [(key.to_owned(), value.to_owned())].into(),
            queues: queues.iter().map(|name| queue(name)).collect(),
            ..JobFilter::default()
        };
        // Who has a label is counted up to the rows of a page.
        let counted = Bound {
            rows: 2 * PAGE_ROWS + 300,
            ..ids(PAGE_ROWS as usize)
        };
        let by_failure = JobFilter {
            failure_type: Some("Broken".into()),
            states: dead.to_vec(),
            ..JobFilter::default()
        };
        let long_ago = JobFilter {
            queues: vec![queue(QUEUE)],
            created_before: Some(Timestamp(1_000_000)),
            ..JobFilter::default()
        };
        // Each row that is looked at may have its attempts looked at.
        let failures = Bound {
            rows: 3 * PAGE_ROWS,
            ..ids(2 * PAGE_ROWS as usize)
        };
        for (what, filter, bound) in [
            ("no label", labelled("team", "blue", &[]), page),
            ("rare label", labelled("run", "1", &[]), page),
            ("rare label and queue", labelled("run", "1", &[QUEUE]), page),
            ("common label", labelled("env", "prod", &[]), counted),
            (
                "common label and queue",
                labelled("env", "prod", &[RARE]),
                counted,
            ),
            ("failure", by_failure, failures),
            ("time", long_ago, page),
        ] {
            let page = self.verbs.store.list(filter, None, 50, View::Basic).await;
            page.expect("list answers");
            self.within(when, &format!("list by {what}"), bound).await;
        }
    }

    /// Every action, on jobs of a queue of their own.
    async fn bulks(&mut self, when: &str) {
        let name = format!("bulk-{}", Uuid::new_v4().simple());
        let about = Uuid::new_v4();
        let waiting = (0..self.batch).map(|n| {
            let mut job = job(100);
            job.spec.queue = queue(&name);
            if n % 2 == 0 {
                job.spec.unique_key = UniqueKey::parse(&format!("{about} {n}"));
            }
            if n % 3 == 0 {
                job.start = Start::After(Duration::from_secs(60));
            }
            job
        });
        let waiting = waiting.collect();
        self.verbs.accept(waiting).await;
        let canary = Canary {
            size: 1_000,
            max_failed_share: 0.1,
            within: Duration::from_secs(60),
        };
        for (action, canary) in [
            (BulkAction::RunNow, None),
            (BulkAction::SetPriority(Priority::High), None),
            (BulkAction::Cancel, None),
            (BulkAction::Retry, None),
            (BulkAction::Cancel, None),
            (BulkAction::Retry, Some(canary)),
            (BulkAction::Purge, None),
        ] {
            let filter = JobFilter {
                queues: vec![queue(&name)],
                states: action.states().to_vec(),
                ..JobFilter::default()
            };
            self.bulk(
                &format!("{when}: {}", action.name()),
                action,
                filter,
                canary,
            )
            .await;
        }
        let dead = JobFilter {
            queues: vec![queue(QUEUE)],
            states: vec![JobState::Failed],
            failure_type: Some("Never".into()),
            ..JobFilter::default()
        };
        self.bulk(when, BulkAction::Delete, dead, None).await;
        let listed = self.verbs.store.bulks(None, 50).await;
        assert!(!listed.expect("bulks answers").is_empty());
        self.within(when, "bulks", ids(50)).await;
    }

    /// One bulk, from its start to its end, or to where it watches its canary.
    async fn bulk(
        &mut self,
        when: &str,
        action: BulkAction,
        filter: JobFilter,
        canary: Option<Canary>,
    ) {
        self.forget().await;
        let new = NewBulk {
            id: BulkId::from_store(job(0).id.uuid()),
            action,
            filter,
            dry_run: false,
            rate: None,
            canary,
            by: By::default(),
            purges: None,
        };
        let id = new.id;
        let started = self.verbs.store.start_bulk(new).await;
        let started = started.expect("start_bulk answers");
        assert!(matches!(started, Started::Created(_)), "{started:?}");
        self.within(when, "start of a bulk", ids(BATCH)).await;
        // A page looks at no more rows, and at the last failure of each.
        let page = Bound {
            rows: 3 * PAGE_ROWS,
            ..ids(2 * PAGE_ROWS as usize)
        };
        loop {
            let claimed = self.verbs.store.claim_bulk(Duration::from_secs(15)).await;
            let claimed = claimed.expect("claim_bulk answers");
            self.within(when, "claim of a bulk", ids(50)).await;
            let Some(claimed) = claimed else { break };
            let bound = match claimed.bulk.state {
                BulkState::Collecting => page,
                _ => ids(BULK_STEP_MAX),
            };
            let done = self.verbs.store.step_bulk(claimed).await;
            done.expect("step_bulk answers");
            self.within(when, "step of a bulk", bound).await;
        }
        let aborted = self.verbs.store.abort_bulk(id, By::default()).await;
        let (bulk, _) = aborted.expect("abort_bulk answers").expect("it is there");
        assert_eq!(bulk.counts.left(), 0, "{bulk:?}");
        self.within(when, "abort of a bulk", ids(50)).await;
    }

    async fn sweep(&mut self, when: &str) {
        let promoted = self.verbs.store.promote(self.batch).await;
        promoted.expect("promote answers");
        self.within(when, "promote", ids(self.batch)).await;
        let expired = self.verbs.store.expire_jobs(self.batch).await;
        expired.expect("expire_jobs answers");
        self.within(when, "expire_jobs", ids(self.batch)).await;
        self.expire(when).await;
        let retained = self.verbs.store.retain(self.batch).await;
        retained.expect("retain answers");
        self.within(when, "retain", ids(self.batch)).await;
        let tidied = self.verbs.store.tidy(self.batch).await;
        tidied.expect("tidy answers");
        self.within(when, "tidy", ids(10 * self.batch)).await;
    }

    /// The jobs of a dead session are found through what its node was granted lately.
    async fn expire(&mut self, when: &str) {
        let jobs = self.queued().await;
        let dying = self.verbs.sessions(100).await;
        self.verbs.lease(&jobs, &dying).await;
        self.forget().await;
        let closed = self.verbs.store.close_sessions(dying).await;
        closed.expect("close answers");
        self.by_id(when, "close").await;
        let granted = "SELECT coalesce(sum(cardinality(jobs)), 0)::bigint FROM grants";
        let granted = self.tables.number(granted).await as usize;
        let expired = self.verbs.store.expire(self.batch).await;
        assert_eq!(expired.expect("expire answers").jobs, self.batch as u64);
        self.within(when, "expire", ids(granted + self.batch)).await;
    }

    /// A batch of QUEUED jobs from all over the table, topped up with new ones.
    async fn queued(&mut self) -> Vec<JobId> {
        let mut jobs = self.tables.scattered(self.batch as i64).await;
        if jobs.len() < self.batch {
            let new = (jobs.len()..self.batch).map(|_| job(100)).collect();
            jobs.extend(self.verbs.accept(new).await);
        }
        self.forget().await;
        jobs
    }

    /// What was done since the last look is no matter of the test.
    async fn forget(&mut self) {
        self.server.plans().await;
    }

    /// What was done since the last look went by the jobs' ids, a batch of them.
    async fn by_id(&mut self, when: &str, what: &str) {
        let plans = self.server.plans().await;
        assert!(!plans.is_empty(), "{what} ran statements");
        for plan in plans {
            plan.check(ids(self.batch), &format!("{when}: {what}"));
            plan.check_by_id(&format!("{when}: {what}"));
        }
    }

    /// What was done since the last look was no more than this.
    async fn within(&mut self, when: &str, what: &str, bound: Bound) {
        let plans = self.server.plans().await;
        assert!(!plans.is_empty(), "{what} ran statements");
        for plan in plans {
            plan.check(bound, &format!("{when}: {what}"));
        }
    }
}

/// Looking up so many ids, and writing their rows. A node may see each twice, and a row's indexes are a few levels deep.
pub fn ids(count: usize) -> Bound {
    let count = count as u64;
    Bound {
        rows: 2 * count + 1_000,
        blocks: 30 * count + 1_000,
    }
}

/// What a node tells of a session with a few kinds and queues.
pub fn report(session: Attached) -> SessionReport {
    let of = |name: &str| QueueSlots {
        queue: queue(name),
        max_in_flight: None,
        free: rand::random_range(0..100),
    };
    SessionReport {
        session,
        profile: Some(SessionProfile {
            node: "node-1".into(),
            kinds: (0..10).map(|n| format!("kind-{n}")).collect(),
            ..SessionProfile::default()
        }),
        slots: SessionSlots {
            queues: [QUEUE, "other"].map(of).into(),
            max_in_flight: 100,
            in_flight: rand::random_range(0..100),
            draining: false,
        },
    }
}

fn said((job, by): &(LeasedJob, Attached), first: u64, count: usize) -> LogReport {
    let line = NewLine {
        elapsed: None,
        level: LogLevel::Info,
        message: "a line of a log".into(),
    };
    LogReport {
        lease: job.lease,
        session: by.session,
        lines: NewLines::check("log", first, vec![line; count]).expect("within bounds"),
    }
}

fn badly(n: usize) -> Outcome {
    let failure = Failure {
        kind: "Broken".into(),
        message: "it broke".into(),
        permanent: n % 3 == 1,
        ..Failure::default()
    };
    match n % 3 {
        0 => Outcome::Release {
            delay: Duration::ZERO,
            reason: "not now".into(),
        },
        _ => Outcome::Failure(failure),
    }
}

fn queue(name: &str) -> QueueName {
    QueueName::parse(name).expect("it is a name")
}

fn line(name: &str) -> Line {
    Line {
        queue: queue(name),
        priority: Priority::Normal,
    }
}
