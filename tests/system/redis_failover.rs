//! Redis dies under load and a replica that was behind takes over at its address: with hints of jobs that are done,
//! without those that came since, and perhaps of an epoch that is over.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use worker_sdk::JobState;

use crate::cases::{case, side_by_side};
use crate::failover::{Load, sleep};
use crate::stack::{Node, client};
use crate::support::http::request;
use crate::support::{PrivateRedis, TestDatabase, until};
use crate::wire::Wire;
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(120);

/// What the primary does while its replica is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    GoesOn,
    /// It is wiped: a new epoch begins, of which the replica knows nothing.
    BeginsAnew,
}

async fn a_replica_takes_over(meanwhile: Meanwhile) {
    let (folder, database) = (TempDir::new().unwrap(), TestDatabase::create().await);
    let log = folder.path().join("runs");
    let mut primary = PrivateRedis::launch().await;
    let link = Wire::to(primary.address()).await;
    let replica = primary.replica(link.address()).await;
    let wire = Wire::to(primary.address()).await;
    let (here, there) = (primary.address().to_string(), wire.address().to_string());
    let (database, list) = (database.url(), primary.url().replace(&here, &there));
    let args = [
        "serve",
        "--database-url",
        &database,
        "--redis-url",
        &list,
        "--redis-prefix",
        "t",
    ];
    let args = args.map(str::to_owned).to_vec();
    let nodes = [Node::start(args.clone()).await, Node::start(args).await];
    let workers = [0, 1].map(|n: usize| Local::start(&nodes[n].url(), &log, 10));
    let client = client(&nodes[0].url());
    let load = Load::start(&nodes[1].url());
    load.goes_on(50).await;

    // More than the workers have room for: their hints wait in the list when the replica is cut off.
    let line = async || {
        let jobs = (0..100).map(|_| sleep(200));
        let accepted = client.enqueue_batch(jobs).await.unwrap();
        accepted.into_iter().map(|e| e.job.id).collect::<Vec<_>>()
    };
    let hints = async |redis: &PrivateRedis| {
        let mut all = 0;
        for stream in redis.run::<Vec<String>>(&["KEYS", "t:*:*:*"]).await {
            all += redis.run::<u64>(&["XLEN", &stream]).await;
        }
        all
    };
    let early = line().await;
    until(SOON, "they are in the list", async || {
        (hints(&primary).await >= 20).then_some(())
    })
    .await;
    replica.has_all_of(&primary).await;
    link.cut();
    let stale = hints(&replica).await;
    if meanwhile == Meanwhile::BeginsAnew {
        primary.run::<()>(&["FLUSHALL"]).await;
    }
    for id in &early {
        client.wait(id, SOON).await.unwrap();
    }
    // These only the primary is told of.
    let late = line().await;
    until(SOON, "they are in the list", async || {
        (hints(&primary).await >= 20).then_some(())
    })
    .await;

    primary.kill();
    let died = Instant::now();
    // It is reached before it is promoted, as happens: then it takes no writes.
    wire.lead_to(replica.address());
    load.goes_on(50).await;
    replica.promote().await;
    let back = load.accepted().len();
    load.goes_on(200).await;
    let all = load.end().await;
    for id in all.iter().chain(&early).chain(&late) {
        let job = client.wait(id, SOON).await.unwrap();
        let came_to = (job.state(), job.attempt);
        assert_eq!(came_to, (JobState::Succeeded, 1), "{job:?}");
    }
    let runs = runs(&log);
    assert_eq!(runs.len(), all.len() + early.len() + late.len());
    assert!(runs.values().all(|count| *count == 1), "none ran twice");

    let mut db = PgConnection::connect(&database).await.unwrap();
    let waits = "SELECT id, start_time - create_time FROM jobs ORDER BY 2 DESC";
    let waits: Vec<(uuid::Uuid, i64)> = sqlx::query_as(waits).fetch_all(&mut db).await.unwrap();
    let wait = |ids: &[String]| {
        let of = waits.iter().find(|(id, _)| ids.contains(&id.to_string()));
        Duration::from_micros(u64::try_from(of.unwrap().1).unwrap())
    };
    println!(
        "{meanwhile:?}: {} jobs over a fail-over of Redis, {stale} old hints; the longest that one waited for its worker: \
         {:?} of all, {:?} of those in line when it died, {:?} after the replica was promoted; all done {:?} after it died",
        runs.len(),
        wait(&all),
        wait(&late),
        wait(&all[back..]),
        died.elapsed()
    );
    until(SOON, "nothing is left in the list", async || {
        (hints(&replica).await == 0).then_some(())
    })
    .await;
    for node in &nodes {
        until(SOON, "it is the list again", async || {
            let ready = request(node.address, "GET", "/readyz", b"").await;
            (!ready.body.contains("degraded")).then_some(())
        })
        .await;
    }
    for worker in workers {
        worker.stop().await;
    }
}

async fn with_old_hints() {
    a_replica_takes_over(Meanwhile::GoesOn).await;
}

async fn with_an_old_epoch() {
    a_replica_takes_over(Meanwhile::BeginsAnew).await;
}

#[test]
fn a_replica_of_redis_that_was_behind_takes_over_and_every_job_runs_once() {
    side_by_side([case(with_old_hints), case(with_an_old_epoch)]);
}
