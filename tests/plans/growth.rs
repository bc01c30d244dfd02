//! What a batch costs depends neither on how many jobs there are nor on what the planner knows of them.
//!
//! One store lives through the growth of its tables, with its connections and their prepared statements: at each size it
//! works first with what the planner knew before, then with what is true.

use std::time::Duration;

use leasehold::job::{
    Failure, IdempotencyKey, JobId, JobState, LeasedJob, NewJob, Outcome, Priority, QueueName,
    Timestamp, UniqueConflict, UniqueKey, View,
};
use leasehold::store::{
    Ask, Attach, Attached, Attaching, EntryId, Epoch, Found, Granted, JobFilter, Line, Offer,
    SessionState, Store, Unit,
};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::plan::Bound;
use crate::tables::{RARE, Tables};
use crate::verbs::{QUEUE, Verbs, body, endings, job};
use crate::watched::Watched;

/// Jobs of a batch, and sessions that they go to.
const BATCH: usize = 1_000;
/// Rows that one page looks at where no index answers its filter.
const PAGE_ROWS: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_of_a_batch_does_not_grow_with_the_table() {
    let mut stage = Stage::new().await;
    for rows in [1_000, 20_000, 1_000_000] {
        stage.tables.grow(rows).await;
        stage.all(&format!("{rows} jobs, not analyzed")).await;
        stage.tables.analyze().await;
        stage.all(&format!("{rows} jobs, analyzed")).await;
    }
}

/// A store at work, and what it may cost.
struct Stage {
    verbs: Verbs,
    tables: Tables,
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
            sessions: verbs.sessions(BATCH).await,
            tables: Tables::new(look.expect("it answers")).await,
            verbs,
            server,
        }
    }

    /// Every verb, in batches as large as they come.
    async fn all(&mut self, when: &str) {
        self.enqueue(when).await;
        self.succeed(when).await;
        self.end_otherwise(when).await;
        self.live(when).await;
        self.hint(when).await;
        self.read(when).await;
        self.list(when).await;
        self.sweep(when).await;
    }

    async fn enqueue(&mut self, when: &str) {
        self.forget().await;
        let jobs: Vec<_> = (0..BATCH).map(|_| job(100)).collect();
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
            let jobs = (0..BATCH).map(keyed).collect();
            let answer = self.verbs.store.enqueue(jobs, Unit::All).await;
            answer.expect("enqueue answers");
            self.within(when, what, ids(BATCH)).await;
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
            let jobs = (0..BATCH).map(unique).collect();
            let answer = self.verbs.store.enqueue(jobs, Unit::All).await;
            answer.expect("enqueue answers");
            self.within(when, what, ids(BATCH)).await;
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
        for what in ["success", "a copy of a success"] {
            let success = |_| Outcome::Success(Some(body(20)));
            self.verbs.end(endings(&leases, success)).await;
            self.by_id(when, what).await;
        }
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
        self.within(when, "leases", ids(granted + BATCH)).await;
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
        let retried = self.verbs.store.retry(one, Duration::ZERO).await;
        retried.expect("retry answers");
        self.by_id(when, "retry").await;
    }

    async fn live(&mut self, when: &str) {
        let renewed = self.verbs.store.renew(self.sessions.clone()).await;
        assert_eq!(
            renewed.expect("renew answers"),
            vec![SessionState::Alive; BATCH]
        );
        self.by_id(when, "renew").await;
        let touched = self.verbs.store.touch_pulse().await;
        touched.expect("the pulse answers");
        let (node, window) = (self.verbs.node, Duration::from_secs(10));
        let signals = self.verbs.store.signals(node, window, BATCH).await;
        signals.expect("signals answer");
        self.by_id(when, "pulse and signals").await;
    }

    /// Segments are trimmed to what is QUEUED: each of their jobs is looked at, once.
    async fn hint(&mut self, when: &str) {
        const SEGMENTS: usize = 100;
        let (epoch, store) = (Epoch(Uuid::new_v4()), &self.verbs.store);
        let now = Duration::ZERO;
        let taken = store.unoffered(epoch, now, now, SEGMENTS).await;
        let taken = taken.expect("unoffered answers");
        self.within(when, "unoffered", ids(SEGMENTS * BATCH)).await;
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
        let bound = ids(SEGMENTS * BATCH);
        self.within(when, "lost offers", bound).await;
        let lines = vec![line(QUEUE), line(RARE)];
        let claimed = self.verbs.store.claim(lines, now, 10).await;
        claimed.expect("claim answers");
        self.within(when, "claim", ids(10 * BATCH)).await;
    }

    async fn read(&mut self, when: &str) {
        let jobs = self.queued().await;
        for view in [View::Basic, View::Full] {
            let read = self.verbs.store.get(jobs.clone(), view).await;
            assert!(read.expect("get answers").iter().all(Option::is_some));
        }
        self.by_id(when, "get").await;
        let stats = self.verbs.store.stats(200).await;
        stats.expect("stats answer");
        self.within(when, "stats", ids(20 * BATCH)).await;
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
        let labels = [("team".to_owned(), "blue".to_owned())].into();
        let by_label = JobFilter {
            labels,
            ..JobFilter::default()
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
            ("label", by_label, walk),
            ("failure", by_failure, failures),
            ("time", long_ago, page),
        ] {
            let page = self.verbs.store.list(filter, None, 50, View::Basic).await;
            page.expect("list answers");
            self.within(when, &format!("list by {what}"), bound).await;
        }
    }

    async fn sweep(&mut self, when: &str) {
        let promoted = self.verbs.store.promote(BATCH).await;
        promoted.expect("promote answers");
        self.within(when, "promote", ids(BATCH)).await;
        let expired = self.verbs.store.expire_jobs(BATCH).await;
        expired.expect("expire_jobs answers");
        self.within(when, "expire_jobs", ids(BATCH)).await;
        self.expire(when).await;
        let retained = self.verbs.store.retain(BATCH).await;
        retained.expect("retain answers");
        self.within(when, "retain", ids(BATCH)).await;
        let tidied = self.verbs.store.tidy(BATCH).await;
        tidied.expect("tidy answers");
        self.within(when, "tidy", ids(10 * BATCH)).await;
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
        let expired = self.verbs.store.expire(BATCH).await;
        assert_eq!(expired.expect("expire answers").jobs, BATCH as u64);
        self.within(when, "expire", ids(granted + BATCH)).await;
    }

    /// A batch of QUEUED jobs from all over the table, topped up with new ones.
    async fn queued(&mut self) -> Vec<JobId> {
        let mut jobs = self.tables.scattered(BATCH as i64).await;
        if jobs.len() < BATCH {
            let new = (jobs.len()..BATCH).map(|_| job(100)).collect();
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
            plan.check(ids(BATCH), &format!("{when}: {what}"));
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
        rows: 2 * count + 200,
        blocks: 30 * count + 1_000,
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
