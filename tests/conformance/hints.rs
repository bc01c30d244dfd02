//! A ready-list in a real Redis that is wiped, or comes back with what it held an hour ago, under two nodes that both put
//! it right: every job is handed out, and none twice.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::engine::{Engine, Live, Options};
use leasehold::job::{JobId, JobState, NodeId, View};
use leasehold::ready::redis::{RedisOptions, RedisReady};
use leasehold::session::Event;
use leasehold::session::message::{ClientMessage, Hello, ServerMessage, Subscription};
use leasehold::store::Store;
use leasehold::telemetry::Metrics;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::steps::{QUEUE, queue};
use crate::support::{PrivateRedis, until};
use crate::world::World;

/// How long the nodes may take to put things right.
const WITHIN: Duration = Duration::from_secs(40);

/// Two nodes on one store and one Redis.
struct Nodes {
    redis: PrivateRedis,
    engines: [Arc<Engine>; 2],
    /// How often each job came to a worker.
    got: Arc<Mutex<BTreeMap<JobId, u32>>>,
    workers: Vec<(usize, Arc<Live>, JoinHandle<()>)>,
}

async fn node(store: Arc<dyn Store>, redis: &PrivateRedis) -> Arc<Engine> {
    let node = NodeId(Uuid::new_v4());
    let options = RedisOptions {
        prefix: "t".into(),
        node,
    };
    let ready = RedisReady::connect(&redis.url(), options).expect("the URL is well formed");
    let metrics = Arc::new(Metrics::new().expect("metrics begin"));
    Engine::start(store, Arc::new(ready), node, metrics, Options::default())
}

impl Nodes {
    async fn start(world: &World) -> Self {
        let redis = PrivateRedis::launch().await;
        let engines = [
            node(world.store.clone(), &redis).await,
            node(world.open_again().await, &redis).await,
        ];
        Self {
            redis,
            engines,
            got: Arc::default(),
            workers: Vec::new(),
        }
    }

    async fn enqueue(&self, world: &World, count: usize) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for i in 0..count / 50 {
            let new = (0..50).map(|_| world.job()).collect();
            let engine = &self.engines[i % 2];
            let all = engine.enqueue_batch(new, |_, name| name.to_owned()).await;
            jobs.extend(all.expect("accepted").iter().map(|one| one.job.id));
        }
        jobs
    }

    /// A worker on each node, with room for everything.
    async fn work(&mut self) {
        for (i, engine) in self.engines.iter().enumerate() {
            let hello = Hello {
                protocol: 1,
                worker: format!("worker-{i}"),
                queues: vec![Subscription {
                    queue: queue(QUEUE),
                    max_in_flight: None,
                }],
                max_in_flight: 5_000,
                max_frame_bytes: 4 << 20,
                ..Hello::default()
            };
            let live = engine.open_session(hello).await.expect("a stream begins");
            let (got, reader) = (self.got.clone(), live.clone());
            let reading = tokio::spawn(async move {
                let next = || poll_fn(|context| reader.poll_next(context));
                while let Some(Ok(message)) = next().await {
                    if let ServerMessage::Jobs { jobs, .. } = message {
                        for job in jobs {
                            *got.lock().unwrap().entry(job.lease.job).or_default() += 1;
                        }
                    }
                }
            });
            self.workers.push((i, live, reading));
        }
    }

    /// The workers break off; what they have stays theirs.
    fn rest(&mut self) {
        for (i, live, reading) in self.workers.drain(..) {
            self.engines[i].forget_session(&live);
            live.outbox().close(None);
            reading.abort();
        }
    }

    /// Every one of `jobs` has come to a worker. Those who have them go on to say so.
    async fn all_came(&self, jobs: &[JobId]) {
        let held: Vec<_> = self.workers.iter().map(|(_, live, _)| live).collect();
        until(WITHIN, "every job is handed out", async || {
            for live in &held {
                live.feed(Event::Frame(ClientMessage::Heartbeat {
                    sequence: 1,
                    last_frame: 0,
                    held: live.running(),
                }));
            }
            let got = self.got.lock().unwrap();
            jobs.iter().all(|job| got.contains_key(job)).then_some(())
        })
        .await;
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(self.redis.url()).expect("the URL is well formed");
        let connection = client.get_multiplexed_async_connection().await;
        let mut connection = connection.expect("Redis answers");
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query_async(&mut connection).await.expect("it is run")
    }

    async fn hints(&self) -> u64 {
        let mut all = 0;
        for stream in self.ask::<Vec<String>>(&["KEYS", "t:*:*:*"]).await {
            let entries: Vec<(String, Vec<(String, Vec<u8>)>)> =
                self.ask(&["XRANGE", &stream, "-", "+"]).await;
            let fields = entries.iter().flat_map(|(_, fields)| fields);
            all += fields.map(|(_, ids)| ids.len() as u64 / 16).sum::<u64>();
        }
        all
    }

    /// Each was handed out once, whatever the ready-list said, and nothing old is left in it.
    async fn end(self, world: &World, jobs: &[JobId]) {
        for some in jobs.chunks(1_000) {
            let found = world.store.get(some.to_vec(), View::Basic).await;
            for job in found.expect("get answers") {
                let job = job.expect("it is there");
                assert_eq!((job.state, job.attempt), (JobState::Running, 1), "{job:?}");
            }
        }
        let got = self.got.lock().unwrap().clone();
        assert!(got.values().all(|times| *times == 1), "none came twice");
        assert_eq!(got.len(), jobs.len(), "and none that nobody asked for");
        until(WITHIN, "no hint is left", async || {
            (self.hints().await == 0).then_some(())
        })
        .await;
        for engine in &self.engines {
            engine.stop().await;
        }
    }
}

async fn two_nodes_that_put_one_stream_right_hand_each_job_out_once(world: World) {
    let mut nodes = Nodes::start(&world).await;
    let mut jobs = nodes.enqueue(&world, 1_000).await;
    until(WITHIN, "all are offered", async || {
        (nodes.hints().await >= 1_000).then_some(())
    })
    .await;
    let _: () = nodes.ask(&["FLUSHALL"]).await;
    // Both find the wipe, and offer again, while more comes in.
    jobs.extend(nodes.enqueue(&world, 200).await);
    nodes.work().await;
    nodes.all_came(&jobs).await;
    // And once more, with workers that wait for something.
    let _: () = nodes.ask(&["FLUSHALL"]).await;
    jobs.extend(nodes.enqueue(&world, 200).await);
    nodes.all_came(&jobs).await;
    nodes.end(&world, &jobs).await;
}
on_postgres!(two_nodes_that_put_one_stream_right_hand_each_job_out_once);

async fn a_redis_that_comes_back_as_it_was_an_hour_ago_repeats_and_loses_nothing(world: World) {
    let mut nodes = Nodes::start(&world).await;
    let mut jobs = nodes.enqueue(&world, 300).await;
    until(WITHIN, "all are offered", async || {
        (nodes.hints().await >= 300).then_some(())
    })
    .await;
    // The replica stops to follow here, with all these hints.
    nodes.redis.stop().await;
    let behind = std::fs::read(nodes.redis.data()).expect("it has saved its data");
    nodes.redis.start().await;

    nodes.work().await;
    jobs.extend(nodes.enqueue(&world, 100).await);
    nodes.all_came(&jobs).await;
    nodes.rest();
    // Offered to the primary alone, to be handed out later.
    let late = nodes.enqueue(&world, 100).await;
    until(WITHIN, "they are offered", async || {
        (nodes.hints().await >= 100).then_some(())
    })
    .await;
    jobs.extend(late);

    // It becomes the primary.
    nodes.redis.stop().await;
    std::fs::write(nodes.redis.data(), behind).expect("write its data");
    nodes.redis.start().await;
    assert!(nodes.hints().await >= 300, "old hints are back");
    nodes.work().await;
    nodes.all_came(&jobs).await;
    nodes.end(&world, &jobs).await;
}
on_postgres!(a_redis_that_comes_back_as_it_was_an_hour_ago_repeats_and_loses_nothing);
