//! What a batch costs does not depend on how many jobs there are, nor on what the planner knows of them.

use std::time::Duration;

use leasehold::job::draft::RawStart;
use leasehold::job::{Failure, JobId, Outcome, View};
use leasehold::store::{
    Ask, Attached, EntryId, Epoch, JobFilter, Line, Offer, Store, Unit,
};
use leasehold::job::{JobState, Priority, QueueName};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::plan::{Bound, Plan};
use crate::tables::{RARE, Tables};
use crate::verbs::{QUEUE, Verbs, body, endings, job};
use crate::watched::Watched;

const BATCH: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explore() {
    let t = std::time::Instant::now();
    let mut server = Watched::launch().await;
    let verbs = Verbs::on(&server.url()).await;
    let mut tables = Tables::new(PgConnection::connect(&server.url()).await.unwrap()).await;
    println!("up {:?}", t.elapsed());
    let sessions = verbs.sessions(BATCH).await;
    println!("sessions {:?}", t.elapsed());
    for rows in [1_000, 20_000, 1_000_000] {
        tables.grow(rows).await;
        println!("{rows} {:?}", t.elapsed());
        for known in [false, true] {
            if known { tables.analyze().await; }
            server.plans().await;
            let mut stage = Stage { verbs: &verbs, tables: &mut tables, server: &mut server, sessions: &sessions, name: format!("{rows} {known}") };
            stage.run().await;
            println!("{rows} {known} {:?}", t.elapsed());
        }
    }
}

struct Stage<'t> { verbs: &'t Verbs, tables: &'t mut Tables, server: &'t mut Watched, sessions: &'t [Attached], name: String }

impl Stage<'_> {
    async fn batch(&mut self) -> Vec<JobId> {
        let mut ids = self.tables.scattered(BATCH as i64).await;
        if ids.len() < BATCH {
            let n = BATCH - ids.len();
            ids.extend(self.verbs.accept((0..n).map(|_| job(100)).collect()).await);
        }
        self.server.plans().await;
        ids
    }
    async fn show(&mut self, what: &str) {
        for plan in self.server.plans().await {
            let w = plan.work();
            println!("{} {what}: rows {} blocks {} | {}", self.name, w.rows, w.blocks, &plan.query().lines().take(2).collect::<Vec<_>>().join(" ").chars().take(80).collect::<String>());
            println!("PLAN {} {what} {plan}", self.name);
        }
    }
    async fn run(&mut self) {
        let v = self.verbs;
        let jobs: Vec<_> = (0..BATCH).map(|_| job(100)).collect();
        v.accept(jobs.clone()).await;
        self.show("enqueue").await;
        v.store.enqueue(jobs.into(), Unit::Each).await.unwrap();
        self.show("enqueue again").await;
        let ids = self.batch().await;
        let leases = v.lease(&ids, self.sessions).await;
        self.show("grant").await;
        let asks: Vec<Ask> = ids.iter().zip(self.sessions.iter().cycle()).map(|(job, to)| Ask { job: *job, to: *to }).collect();
        v.store.grant(v.node, asks).await.unwrap();
        self.show("grant again").await;
        v.end(endings(&leases, |_| Outcome::Success(Some(body(20))))).await;
        self.show("success").await;
        v.end(endings(&leases, |_| Outcome::Success(Some(body(20))))).await;
        self.show("success again").await;
        let ids = self.batch().await;
        let leases = v.lease(&ids, self.sessions).await;
        self.server.plans().await;
        let how = |n: usize| match n % 3 {
            0 => Outcome::Release { delay: Duration::ZERO, reason: "r".into() },
            1 => Outcome::Failure(Failure { kind: "k".into(), message: "m".into(), permanent: true, ..Failure::default() }),
            _ => Outcome::Failure(Failure { kind: "k".into(), message: "m".into(), ..Failure::default() }),
        };
        v.end(endings(&leases, how)).await;
        self.show("mixed").await;
        v.end(endings(&leases, how)).await;
        self.show("mixed again").await;
        v.store.renew(self.sessions.to_vec()).await.unwrap();
        self.show("renew").await;
        v.store.get(ids.clone(), View::Full).await.unwrap();
        self.show("get").await;
        v.store.promote(BATCH).await.unwrap();
        self.show("promote").await;
        let epoch = Epoch(Uuid::new_v4());
        let s = v.store.unoffered(epoch, Duration::ZERO, Duration::from_secs(0), 100).await.unwrap();
        self.show("unoffered").await;
        let offers = s.iter().enumerate().map(|(n, s)| Offer { segment: s.id, epoch, last: EntryId { ms: 1 + n as u64, seq: 0 } }).collect();
        v.store.offered(offers).await.unwrap();
        self.show("offered").await;
        let line = |q: &str| Line { queue: QueueName::parse(q).unwrap(), priority: Priority::Normal };
        v.store.lost_offers(epoch, line(QUEUE), None, Duration::ZERO, 100).await.unwrap();
        self.show("lost").await;
        v.store.claim(vec![line(QUEUE), line(RARE)], Duration::ZERO, 10).await.unwrap();
        self.show("claim").await;
        for (name, queues, states) in [("all", vec![], vec![]), ("queue", vec![RARE], vec![]), ("queues", vec![QUEUE, RARE, "other"], vec![]), ("queue state", vec![QUEUE], vec![JobState::Running]), ("dead", vec![], vec![JobState::Failed]), ("queue dead", vec![QUEUE], vec![JobState::Failed, JobState::Cancelled]), ("state", vec![], vec![JobState::Running])] {
            let filter = JobFilter { queues: queues.iter().map(|q| QueueName::parse(q).unwrap()).collect(), states, ..JobFilter::default() };
            v.store.list(filter, None, 100, View::Basic).await.unwrap();
            self.show(&format!("list {name}")).await;
        }
        v.store.stats(200).await.unwrap();
        self.show("stats").await;
        v.store.signals(v.node, Duration::from_secs(5), 1000).await.unwrap();
        self.show("signals").await;
        let ids = self.batch().await;
        let extra = v.sessions(100).await;
        let _ = v.lease(&ids, &extra).await;
        self.server.plans().await;
        v.store.close_sessions(extra).await.unwrap();
        self.show("close").await;
        v.store.touch_pulse().await.unwrap();
        self.show("touch").await;
        v.store.expire(BATCH).await.unwrap();
        self.show("expire").await;
        v.store.expire(BATCH).await.unwrap();
        self.show("expire").await;
        v.store.retain(BATCH).await.unwrap();
        self.show("retain").await;
        v.store.tidy(BATCH).await.unwrap();
        self.show("tidy").await;
        let id = self.batch().await[0];
        v.store.cancel(id, "x".into()).await.unwrap();
        self.show("cancel").await;
        v.store.retry(id, Duration::ZERO).await.unwrap();
        self.show("retry").await;
    }
}
