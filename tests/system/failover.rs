//! Postgres dies under load and a replica takes over: what was acknowledged and is not there, and that all the rest goes
//! on, whatever nodes and workers know that the database has forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use uuid::Uuid;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::worker_service_client::WorkerServiceClient;
use worker_sdk::proto::{self as pb, ReceiptStatus, result::Outcome};
use worker_sdk::{Client, JobState, NewJob};

use crate::balancer::Balancer;
use crate::cases::{case, side_by_side};
use crate::hand::{Hand, again, hello, leases};
use crate::stack::{Node, client};
use crate::support::{PrivatePostgres, shared_redis_url, until};
use crate::wire::Wire;
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(120);

/// Whether a commit is answered before the replica has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replication {
    Asynchronous,
    Synchronous,
}

/// A primary, its replica, and two nodes that reach whichever is the primary at one address.
struct Pair {
    primary: PrivatePostgres,
    replica: PrivatePostgres,
    /// From the replica to the primary.
    link: Wire,
    /// From the nodes to the primary.
    wire: Wire,
    nodes: Vec<Node>,
}

impl Pair {
    async fn start(how: Replication) -> Self {
        let primary = PrivatePostgres::launch().await;
        let link = Wire::to(primary.address()).await;
        let replica = match how {
            Replication::Asynchronous => primary.follower(link.address()).await,
            Replication::Synchronous => primary.standby().await,
        };
        let wire = Wire::to(primary.address()).await;
        let (here, there) = (primary.address().to_string(), wire.address().to_string());
        let database = primary.url().replace(&here, &there);
        let prefix = format!("test-{}", Uuid::new_v4().simple());
        let mut args = vec!["serve".to_owned(), "--database-url".into(), database];
        args.extend(["--redis-url".into(), shared_redis_url()]);
        args.extend(["--redis-prefix".into(), prefix]);
        let nodes = vec![
            Node::start(args.clone()).await,
            Node::start(args.clone()).await,
        ];
        Self {
            primary,
            replica,
            link,
            wire,
            nodes,
        }
    }

    /// Waits until the replica has all that the primary has now.
    async fn caught_up(&self) {
        let mut db = PgConnection::connect(&self.primary.url()).await.unwrap();
        let now: String = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut db)
            .await
            .unwrap();
        until(SOON, "the replica has what the primary has", async || {
            let has = "SELECT replay_lsn >= $1::pg_lsn FROM pg_stat_replication";
            let has: bool = sqlx::query_scalar(has)
                .bind(&now)
                .fetch_one(&mut db)
                .await
                .unwrap();
            has.then_some(())
        })
        .await;
    }

    /// From here on the replica takes the place of the primary.
    async fn fail_over(&mut self) {
        self.primary.kill();
        self.replica.promote().await;
        self.wire.lead_to(self.replica.address());
    }
}

async fn number(db: &PrivatePostgres, sql: &'static str) -> i64 {
    let mut db = PgConnection::connect(&db.url()).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
}

fn log() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("runs");
    (folder, path)
}

pub fn sleep(millis: u64) -> NewJob {
    NewJob::new("sleep", &millis).unwrap().queue("q")
}

/// Calls that go on until they are told to end.
pub struct Load {
    accepted: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(url: &str) -> Self {
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let end = Arc::new(AtomicBool::new(false));
        let callers = (0..4).map(|_| {
            let (client, accepted, end) = (client(url), accepted.clone(), end.clone());
            tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    let enqueued = client.enqueue(sleep(5)).await.unwrap();
                    accepted.lock().unwrap().push(enqueued.job.id);
                    // Load, not as much as possible of it.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        });
        let callers = callers.collect();
        Self {
            accepted,
            end,
            callers,
        }
    }

    pub fn accepted(&self) -> Vec<String> {
        self.accepted.lock().unwrap().clone()
    }

    /// Waits until so many more are accepted.
    pub async fn goes_on(&self, more: usize) {
        let least = self.accepted().len() + more;
        until(SOON, "more is accepted", async || {
            (self.accepted.lock().unwrap().len() >= least).then_some(())
        })
        .await;
    }

    pub async fn end(self) -> Vec<String> {
        self.end.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        let accepted = self.accepted.lock().unwrap();
        accepted.clone()
    }
}

/// The jobs in the database, with what each has come to.
async fn jobs(db: &PrivatePostgres) -> BTreeMap<String, (i16, i32)> {
    let mut db = PgConnection::connect(&db.url()).await.unwrap();
    let rows: Vec<(Uuid, i16, i32)> = sqlx::query_as("SELECT id, state, attempt FROM jobs")
        .fetch_all(&mut db)
        .await
        .unwrap();
    let rows = rows.into_iter();
    rows.map(|(id, state, attempt)| (id.to_string(), (state, attempt)))
        .collect()
}

const SUCCEEDED: i16 = 4;

async fn under_load(how: Replication) {
    let ((_folder, log), mut pair) = (log(), Pair::start(how).await);
    let entry = Balancer::over(&pair.nodes).await;
    // Its first connection goes to the first node, which dies: then its session has moved, and the replica does not know.
    let worker = Local::start(&entry.url(), &log, 50);
    let client = client(&pair.nodes[1].url());
    let accepted = client.enqueue_batch([sleep(1)]).await.unwrap();
    client.wait(&accepted[0].job.id, SOON).await.unwrap();
    let load = Load::start(&pair.nodes[1].url());
    load.goes_on(100).await;
    // Four times what the worker has room for: when the replica is cut off, some run and some wait.
    let known = client.enqueue_batch((0..200).map(|_| sleep(1_000))).await;
    let known: Vec<String> = known.unwrap().into_iter().map(|e| e.job.id).collect();
    let early = load.accepted();
    pair.caught_up().await;
    if how == Replication::Asynchronous {
        pair.link.cut();
    }
    pair.nodes[0].process.kill();
    for id in &known {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 1));
    }
    let moved = "SELECT count(*) FROM sessions WHERE dead_at IS NULL AND attach > 1";
    assert_eq!(number(&pair.primary, moved).await, 1, "it has moved");
    load.goes_on(100).await;

    let acknowledged = load.accepted();
    let before = jobs(&pair.primary).await;
    let failed = Instant::now();
    pair.fail_over().await;
    let after = jobs(&pair.replica).await;
    load.goes_on(1).await;
    let stall = failed.elapsed();
    let over = load.accepted().len();
    load.goes_on(200).await;
    let all = load.end().await;
    until(SOON * 2, "all that the database has is done", async || {
        let open = "SELECT count(*) FROM jobs WHERE state <> 4";
        (number(&pair.replica, open).await == 0).then_some(())
    })
    .await;
    let settled = failed.elapsed();

    let (there, runs) = (jobs(&pair.replica).await, runs(&log));
    let lost = acknowledged.iter().filter(|id| !there.contains_key(*id));
    let lost: Vec<&String> = lost.collect();
    let undone = before.iter().filter(|(id, (state, _))| {
        *state == SUCCEEDED && after.get(*id).is_some_and(|(state, _)| *state != SUCCEEDED)
    });
    let undone = undone.count();
    let again: usize = there.keys().map(|id| runs[id] - 1).sum();
    println!(
        "{how:?}: {} jobs acknowledged before the primary died, {} of them lost, {undone} results lost, {again} executions again; \
         accepted again after {stall:?}, all done after {settled:?}",
        acknowledged.len() + known.len(),
        lost.len()
    );
    for (id, (_, attempt)) in &there {
        // A hand-out that is lost gives its number to another.
        assert!(runs[id] <= *attempt as usize + 1, "{id}: {}", runs[id]);
    }
    for id in early.iter().chain(&known).chain(&all[over..]) {
        assert!(there.contains_key(id), "{id} was not the replica's to lose");
    }
    for id in &all[over..] {
        assert_eq!(runs.get(id), Some(&1), "{id} came afterwards");
    }
    match how {
        Replication::Asynchronous => {
            assert!(!lost.is_empty() && undone > 0, "else nothing was tried");
            // A job is told from one that never was by nobody.
            let error = client.get(lost[0]).await.unwrap_err();
            assert!(error.to_string().contains("JOB_NOT_FOUND"), "{error}");
        }
        Replication::Synchronous => assert_eq!((lost.len(), undone, again), (0, 0, 0)),
    }
    let sessions = "SELECT count(*) FROM sessions WHERE dead_at IS NULL";
    assert_eq!(number(&pair.replica, sessions).await, 1);
    let moves = "SELECT max(attach) FROM sessions WHERE dead_at IS NULL";
    assert!(number(&pair.replica, moves).await > 1, "the same session");
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'
                   AND now() - state_change > interval '5 seconds'";
    assert_eq!(number(&pair.replica, open).await, 0);
    worker.stop().await;
}

async fn a_replica_that_was_behind_takes_over() {
    under_load(Replication::Asynchronous).await;
}

async fn a_replica_that_has_every_commit_takes_over() {
    under_load(Replication::Synchronous).await;
}

fn succeeded(lease: &pb::Lease) -> pb::Result {
    pb::Result {
        lease: Some(lease.clone()),
        outcome: Some(Outcome::Success(pb::Success::default())),
        log: None,
    }
}

async fn enqueue(client: &Client, queue: &str) -> String {
    let job = NewJob::new("echo", &1).unwrap().queue(queue);
    client.enqueue(job).await.unwrap().job.id
}

/// A worker as the protocol has it: it runs each attempt once, and states what it holds.
struct Honest {
    hand: Hand,
    frame: u64,
    known: BTreeSet<(String, u32)>,
    held: Vec<pb::Lease>,
}

impl Honest {
    fn new(hand: Hand) -> Self {
        Self {
            hand,
            frame: 0,
            known: BTreeSet::new(),
            held: Vec::new(),
        }
    }

    /// Takes so many jobs.
    async fn take(&mut self, count: usize) -> Vec<pb::Lease> {
        let (jobs, frame) = self.hand.take(count).await;
        let taken = leases(&jobs);
        self.frame = frame;
        self.known
            .extend(taken.iter().map(|l| (l.job_id.clone(), l.attempt)));
        self.held.extend(taken.iter().cloned());
        taken
    }

    async fn succeed(&mut self, lease: &pb::Lease) -> ReceiptStatus {
        let receipts = self.hand.succeed(std::slice::from_ref(lease)).await;
        self.held.retain(|held| held != lease);
        receipts[0].status()
    }

    /// Beats, and does what it is told until that is acknowledged. What is new to it succeeds at once.
    async fn turn(&mut self) {
        self.hand.beat(self.frame, &self.held).await;
        loop {
            match self.hand.next().await.expect("the session goes on") {
                Some(Response::HeartbeatAck(_)) => return,
                Some(Response::Jobs(frame)) => {
                    self.frame = frame.frame;
                    for lease in leases(&frame.jobs) {
                        if self.known.insert((lease.job_id.clone(), lease.attempt)) {
                            let results = vec![succeeded(&lease)];
                            let results = pb::Results { results };
                            let message = pb::lease_jobs_request::Message::Results(results);
                            self.hand.send(message).await;
                        }
                    }
                }
                Some(Response::Lost(lost)) => self.held.retain(|l| !lost.leases.contains(l)),
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    async fn turns_until(&mut self, client: &Client, id: &str) -> worker_sdk::Job {
        until(SOON, "it is done", async || {
            self.turn().await;
            let job = client.get(id).await.unwrap();
            job.is_final().then_some(job)
        })
        .await
    }
}

/// One worker goes on with a session that the replica knows of, at an older stream; another's is lost.
async fn what_the_replica_lacks_is_told_from_what_it_has() {
    let mut pair = Pair::start(Replication::Asynchronous).await;
    let (url, client) = (pair.nodes[1].url(), client(&pair.nodes[1].url()));
    let (hand, welcome) = Hand::welcome(&pair.nodes[0].url(), hello(2)).await;
    let mut worker = Honest::new(hand);
    let (kept, done) = (enqueue(&client, "q").await, enqueue(&client, "q").await);
    let first = worker.take(2).await;
    let of = |id: &str| first.iter().find(|lease| lease.job_id == id).unwrap();
    // Its slots are taken: these wait, as far as the replica knows.
    let (running, recorded) = (enqueue(&client, "q").await, enqueue(&client, "q").await);
    let fenced = enqueue(&client, "x").await;
    pair.caught_up().await;
    pair.link.cut();

    pair.nodes[0].process.kill();
    let (hand, moved) = Hand::welcome(&url, again(&welcome, 2, &worker.held)).await;
    assert!(moved.resumed);
    worker.hand = hand;
    let more = worker.take(2).await;
    let of_more = |id: &str| more.iter().find(|lease| lease.job_id == id).unwrap();
    worker.turn().await;
    for lease in [of(&done), of_more(&recorded)] {
        assert_eq!(worker.succeed(lease).await, ReceiptStatus::Recorded);
    }
    let own = NewJob::new("echo", &1).unwrap().queue("q");
    let gone = client.enqueue(own.clone()).await.unwrap().job.id;
    let unknown = worker.take(1).await.remove(0);
    let mut other = hello(1);
    other.queues[0].queue = "x".into();
    let (mut lost, lost_welcome) = Hand::welcome(&url, other.clone()).await;
    let lost_lease = leases(&lost.take(1).await.0).remove(0);
    assert_eq!(
        (lost_lease.job_id.as_str(), lost_lease.attempt),
        (&*fenced, 1)
    );

    pair.fail_over().await;
    // Its stream is one that the database has forgotten: nobody else has the session, so it goes on.
    worker.turn().await;
    assert_eq!(worker.succeed(of(&kept)).await, ReceiptStatus::Recorded);
    assert_eq!(worker.succeed(&unknown).await, ReceiptStatus::Unknown);
    let job = client.get(&kept).await.unwrap();
    let came_to = (job.state(), job.attempt, job.lost_leases);
    assert_eq!(came_to, (JobState::Succeeded, 1, 0));
    // The number of the attempt went back with the database: the session tells the two apart.
    lost.beat(1, std::slice::from_ref(&lost_lease)).await;
    let (_, why) = lost.refused().await;
    assert_eq!(why, "HEARTBEAT_MISSED");
    let (next, _) = Hand::welcome(&url, other).await;
    let mut next = Honest::new(next);
    let lease = next.take(1).await.remove(0);
    assert_eq!(lease, lost_lease);
    let mut unary = WorkerServiceClient::connect(url.clone()).await.unwrap();
    let report = pb::ReportResultsRequest {
        resume_token: lost_welcome.resume_token,
        results: vec![succeeded(&lost_lease)],
    };
    let answer = unary.report_results(report).await.unwrap().into_inner();
    assert_eq!(answer.receipts[0].status(), ReceiptStatus::Stale);
    assert_eq!(next.succeed(&lease).await, ReceiptStatus::Recorded);
    // Its result was RECORDED, and is lost: it is pushed again, the worker has no such job any more, and another attempt
    // is made.
    let job = worker.turns_until(&client, &done).await;
    assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2));
    // Handed out again under the same number, to one who runs it: it is his. Or he was told before that it is not.
    if worker.held.contains(of_more(&running)) {
        let status = worker.succeed(of_more(&running)).await;
        assert!(matches!(
            status,
            ReceiptStatus::Recorded | ReceiptStatus::Stale
        ));
    }
    for id in [&recorded, &running] {
        let job = worker.turns_until(&client, id).await;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        assert!((1..=2).contains(&job.attempt), "{job:?}");
    }
    let error = client.get(&gone).await.unwrap_err();
    assert!(error.to_string().contains("JOB_NOT_FOUND"), "{error}");
    let repeated = client.enqueue(own).await.unwrap();
    assert_eq!((&repeated.job.id, repeated.existed), (&gone, false));

    // This one was new to the database, so its first number is its own.
    worker.known.retain(|(id, _)| *id != gone);
    let job = worker.turns_until(&client, &gone).await;
    assert_eq!(job.state(), JobState::Succeeded);
}

#[test]
fn a_replica_of_postgres_takes_over_and_all_it_has_is_finished() {
    side_by_side([
        case(a_replica_that_was_behind_takes_over),
        case(a_replica_that_has_every_commit_takes_over),
        case(what_the_replica_lacks_is_told_from_what_it_has),
    ]);
}
