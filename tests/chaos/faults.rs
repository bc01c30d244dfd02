//! Which faults come when: all chosen by the seed, before the run begins. Each target has a lane of its own, so that
//! faults of several meet; within a lane one follows the other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::ledger::now_ms;
use crate::relay::{Flow, Relay};
use crate::stack::Node;
use crate::stage::{CLIENTS, Complaints, NODES, Stage, WORKERS, WorkerSlot};
use crate::support::{PrivatePostgres, PrivateRedis};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Postgres,
    Redis,
    Node(usize),
    Worker(usize),
    /// The way of a worker or client.
    Way(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and started again after so long.
    Kill(Duration),
    /// SIGTERM, its end awaited, and started again.
    Restart,
    /// SIGSTOP, and SIGCONT after so long.
    Pause(Duration),
    /// FLUSHALL.
    Wipe,
    /// All connections end.
    Cut,
    /// So it is for so long.
    Flow(Flow, Duration),
}

impl Fault {
    fn takes(self) -> Duration {
        match self {
            Self::Kill(time) | Self::Pause(time) | Self::Flow(_, time) => time,
            Self::Restart => Duration::from_secs(3),
            Self::Wipe | Self::Cut => Duration::ZERO,
        }
    }
}

/// A fault that was in force.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    pub target: Target,
    pub fault: Fault,
    pub from: u64,
    pub to: u64,
}

impl Past {
    pub fn is_kill(&self) -> bool {
        matches!(self.fault, Fault::Kill(_))
    }
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = match self.target {
            Target::Postgres => "Postgres",
            Target::Redis => "Redis",
            Target::Node(_) => "node",
            Target::Worker(_) => "worker",
            Target::Way(n) if n < WORKERS => "way of a worker",
            Target::Way(_) => "way of a client",
        };
        let fault = match self.fault {
            Fault::Kill(_) => "killed (-9)",
            Fault::Restart => "restarted (in order)",
            Fault::Pause(time) if time > TTL => "stopped beyond its TTL",
            Fault::Pause(_) => "stopped for less than its TTL",
            Fault::Wipe => "FLUSHALL",
            Fault::Cut => "cut",
            Fault::Flow(Flow::Free, _) => "free",
            Fault::Flow(Flow::Stalled, _) => "stalled",
            Fault::Flow(Flow::Deaf, _) => "stalled towards it",
            Fault::Flow(Flow::Slow, _) => "slow reader",
        };
        write!(f, "{target} {fault}")
    }
}

/// Of all workers of the run.
pub const TTL: Duration = Duration::from_secs(10);

/// Faults with their times from the beginning, by lane.
pub struct Plan {
    lanes: BTreeMap<Target, Vec<(Duration, Fault)>>,
}

impl Plan {
    /// So many kills within this time, and the other faults between them.
    pub fn new(seed: u64, kills: usize, within: Duration) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut plan = Self {
            lanes: BTreeMap::new(),
        };
        // Postgres and Redis seldom: while they are away little else can be seen.
        let postgres = kills.div_ceil(25);
        let redis = kills.div_ceil(12).min(kills - postgres);
        for n in 0..kills {
            let (target, away) = if n < postgres {
                (Target::Postgres, ms(&mut dice, 0, 3_000))
            } else if n < postgres + redis {
                (Target::Redis, ms(&mut dice, 0, 5_000))
            } else if dice.random_bool(0.45) {
                (node(&mut dice), ms(&mut dice, 0, 2_000))
            } else {
                (worker(&mut dice), Duration::ZERO)
            };
            plan.add(&mut dice, within, target, Fault::Kill(away));
        }
        for _ in 0..kills.div_ceil(30) {
            plan.add(&mut dice, within, Target::Postgres, Fault::Restart);
            let (target, pause) = (node(&mut dice), ms(&mut dice, 1_000, 14_000));
            plan.add(&mut dice, within, target, Fault::Pause(pause));
        }
        for _ in 0..kills.div_ceil(10) {
            plan.add(&mut dice, within, Target::Redis, Fault::Wipe);
            let (target, pause) = (worker(&mut dice), ms(&mut dice, 11_000, 15_000));
            plan.add(&mut dice, within, target, Fault::Pause(pause));
            let (target, pause) = (worker(&mut dice), ms(&mut dice, 500, 5_000));
            plan.add(&mut dice, within, target, Fault::Pause(pause));
        }
        // Rolling restarts: one node after the other.
        for _ in 0..kills.div_ceil(12) {
            let at = within.mul_f64(dice.random_range(0.0..1.0));
            for n in 0..NODES {
                let at = at + Duration::from_secs(3) * u32::try_from(n).unwrap();
                let lane = plan.lanes.entry(Target::Node(n)).or_default();
                lane.push((at.min(within), Fault::Restart));
            }
        }
        for _ in 0..kills.div_ceil(2) {
            let target = Target::Way(dice.random_range(0..WORKERS + CLIENTS));
            let most = if dice.random_bool(0.15) {
                15_000
            } else {
                4_000
            };
            let time = ms(&mut dice, 200, most);
            let fault = match dice.random_range(0..5) {
                0 | 1 => Fault::Cut,
                2 => Fault::Flow(Flow::Stalled, time),
                3 => Fault::Flow(Flow::Deaf, time),
                _ => Fault::Flow(Flow::Slow, time),
            };
            plan.add(&mut dice, within, target, fault);
        }
        for lane in plan.lanes.values_mut() {
            lane.sort_unstable();
        }
        plan
    }

    fn add(&mut self, dice: &mut StdRng, within: Duration, target: Target, fault: Fault) {
        // Over before the time is, where it can be.
        let within = within.saturating_sub(fault.takes());
        let at = within.mul_f64(dice.random_range(0.0..1.0));
        self.lanes.entry(target).or_default().push((at, fault));
    }

    /// Plays all lanes at once; returns what came of it when every fault is over.
    pub async fn play(mut self, stage: &mut Stage) -> Vec<Past> {
        let (begin, past) = (Instant::now(), History::default());
        let mut lane = |target| self.lanes.remove(&target).unwrap_or_default();
        let complaints = &stage.complaints;
        let postgres = on_postgres(
            &mut stage.stack.postgres,
            begin,
            lane(Target::Postgres),
            &past,
        );
        let redis = on_redis(&mut stage.stack.redis, begin, lane(Target::Redis), &past);
        let nodes = stage.stack.nodes.iter_mut().enumerate().map(|(n, node)| {
            let faults = lane(Target::Node(n));
            on_node(node, n, begin, faults, &past, complaints)
        });
        let nodes: Vec<_> = nodes.collect();
        let workers = stage.workers.iter_mut().enumerate().map(|(n, worker)| {
            let faults = lane(Target::Worker(n));
            on_worker(worker, n, begin, faults, &past, complaints)
        });
        let workers: Vec<_> = workers.collect();
        let ways = stage.relays.iter().enumerate().map(|(n, relay)| {
            let faults = lane(Target::Way(n));
            on_way(relay, n, begin, faults, &past)
        });
        let ways: Vec<_> = ways.collect();
        tokio::join!(
            postgres,
            redis,
            futures_util::future::join_all(nodes),
            futures_util::future::join_all(workers),
            futures_util::future::join_all(ways),
        );
        past.all()
    }
}

fn ms(dice: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(dice.random_range(from..to))
}

fn node(dice: &mut StdRng) -> Target {
    Target::Node(dice.random_range(0..NODES))
}

fn worker(dice: &mut StdRng) -> Target {
    Target::Worker(dice.random_range(0..WORKERS))
}

type Lane = Vec<(Duration, Fault)>;

#[derive(Clone, Default)]
struct History(Arc<Mutex<Vec<Past>>>);

impl History {
    async fn note(&self, target: Target, fault: Fault, play: impl Future<Output = ()>) {
        let from = now_ms();
        play.await;
        let to = now_ms();
        self.0.lock().unwrap().push(Past {
            target,
            fault,
            from,
            to,
        });
    }

    fn all(&self) -> Vec<Past> {
        self.0.lock().unwrap().clone()
    }
}

async fn on_postgres(postgres: &mut PrivatePostgres, begin: Instant, lane: Lane, past: &History) {
    for (at, fault) in lane {
        tokio::time::sleep_until(begin + at).await;
        let play = async {
            match fault {
                Fault::Kill(away) => {
                    postgres.kill();
                    tokio::time::sleep(away).await;
                }
                _ => postgres.stop().await,
            }
            postgres.start().await;
        };
        past.note(Target::Postgres, fault, play).await;
    }
}

async fn on_redis(redis: &mut PrivateRedis, begin: Instant, lane: Lane, past: &History) {
    for (at, fault) in lane {
        tokio::time::sleep_until(begin + at).await;
        let play = async {
            match fault {
                Fault::Kill(away) => {
                    redis.kill();
                    tokio::time::sleep(away).await;
                    redis.start().await;
                }
                _ => {
                    let client = redis::Client::open(redis.url()).unwrap();
                    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
                    let wipe = redis::cmd("FLUSHALL");
                    wipe.query_async::<()>(&mut connection).await.unwrap();
                }
            }
        };
        past.note(Target::Redis, fault, play).await;
    }
}

async fn on_node(
    node: &mut Node,
    n: usize,
    begin: Instant,
    lane: Lane,
    past: &History,
    complaints: &Complaints,
) {
    for (at, fault) in lane {
        tokio::time::sleep_until(begin + at).await;
        if let Some(status) = node.process.exit_status() {
            let log = node.process.log();
            complaints.add(format!("node {n} ended by itself: {status}: {log:#?}"));
        }
        let play = async {
            match fault {
                Fault::Kill(away) => {
                    node.process.kill();
                    tokio::time::sleep(away).await;
                    node.restart().await;
                }
                Fault::Pause(time) => {
                    node.process.signal("STOP");
                    tokio::time::sleep(time).await;
                    node.process.signal("CONT");
                }
                _ => {
                    node.process.terminate();
                    let status = node.process.ended(Duration::from_secs(30)).await;
                    if !status.success() {
                        let log = node.process.log();
                        let tail = &log[log.len().saturating_sub(10)..];
                        complaints.add(format!("node {n} was told to leave: {status}: {tail:#?}"));
                    }
                    node.restart().await;
                }
            }
        };
        past.note(Target::Node(n), fault, play).await;
    }
}

async fn on_worker(
    worker: &mut WorkerSlot,
    n: usize,
    begin: Instant,
    lane: Lane,
    past: &History,
    complaints: &Complaints,
) {
    for (at, fault) in lane {
        tokio::time::sleep_until(begin + at).await;
        if let Some(status) = worker.process.exit_status() {
            let (name, log) = (worker.name(), worker.process.log());
            complaints.add(format!("{name} ended by itself: {status}: {log:#?}"));
        }
        let play = async {
            match fault {
                Fault::Pause(time) => {
                    worker.process.signal("STOP");
                    tokio::time::sleep(time).await;
                    worker.process.signal("CONT");
                }
                _ => worker.kill_and_replace(),
            }
        };
        past.note(Target::Worker(n), fault, play).await;
    }
}

async fn on_way(relay: &Relay, n: usize, begin: Instant, lane: Lane, past: &History) {
    for (at, fault) in lane {
        tokio::time::sleep_until(begin + at).await;
        let play = async {
            match fault {
                Fault::Flow(flow, time) => {
                    relay.flow(flow);
                    tokio::time::sleep(time).await;
                    relay.flow(Flow::Free);
                }
                _ => relay.cut(),
            }
        };
        past.note(Target::Way(n), fault, play).await;
    }
}
