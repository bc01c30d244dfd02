//! How fast it is: figures to read, and a bound that only a broken build misses.

use std::time::Instant;

use leasehold::ready::ReadyList;

use crate::world::{Server, World, emails, jobs, node, want};

const BATCH: usize = 1_000;
const BATCHES: usize = 50;

on_each_list!(batches_of_a_thousand);
async fn batches_of_a_thousand(w: World) {
    let line = emails();
    let start = Instant::now();
    for _ in 0..BATCHES {
        w.a.offer(vec![(line.clone(), jobs(BATCH))]).await.unwrap();
    }
    let offered = start.elapsed();
    let start = Instant::now();
    let mut left = BATCHES * BATCH;
    while left > 0 {
        let hints = w.a.take(want(&line, BATCH)).await.unwrap();
        left -= hints.len();
        w.a.settle(hints).await.unwrap();
    }
    let taken = start.elapsed();
    let name = w.a.ping().await.unwrap();
    let rate = |span: std::time::Duration| (BATCHES * BATCH) as f64 / span.as_secs_f64();
    println!(
        "{name}: {:.0} offers/s, {:.0} taken and settled/s",
        rate(offered),
        rate(taken)
    );
    assert!(rate(offered) > 1_000.0 && rate(taken) > 1_000.0);
}

/// What a job costs Redis and this side from offer to settle, in large batches and alone: figures to read, and a bound on
/// the commands that only a round trip too many misses.
#[tokio::test]
async fn what_a_job_costs() {
    for (batch, batches, commands_max) in [(BATCH, 40, 0.1), (1, 2_000, 13.0)] {
        let server = Server::start().await;
        let list = node(&server.url(), "t");
        // What is done once is not a job's cost.
        one_batch(&list, 1).await;
        let before = Cost::now(&server).await;
        for _ in 0..batches {
            one_batch(&list, batch).await;
        }
        let after = Cost::now(&server).await;
        let share = |now: f64, then: f64| (now - then) / (batch * batches) as f64;
        let commands = share(after.commands, before.commands);
        println!(
            "{batch} a batch: {commands:.3} commands a job beside its XADD, XACK and XDEL; CPU us a job: Redis {:.2}, here {:.2}; {:.0} us a batch",
            share(after.redis_us, before.redis_us),
            share(after.own_us, before.own_us),
            (after.at - before.at).as_secs_f64() * 1e6 / batches as f64,
        );
        assert!(commands < commands_max, "{}", after.stats);
    }
}

async fn one_batch(list: &impl ReadyList, size: usize) {
    list.offer(vec![(emails(), jobs(size))]).await.unwrap();
    let hints = list.take(want(&emails(), size)).await.unwrap();
    assert_eq!(hints.len(), size);
    list.settle(hints).await.unwrap();
}

/// What was used so far.
struct Cost {
    at: Instant,
    commands: f64,
    redis_us: f64,
    own_us: f64,
    stats: String,
}

impl Cost {
    async fn now(server: &Server) -> Self {
        let cpu: String = server.ask(&["INFO", "cpu"]).await;
        let redis_us = ["used_cpu_user:", "used_cpu_sys:"]
            .iter()
            .filter_map(|name| cpu.lines().find_map(|l| l.strip_prefix(name)))
            .map(|seconds| seconds.trim().parse::<f64>().unwrap() * 1e6)
            .sum();
        let stats: String = server.ask(&["INFO", "commandstats"]).await;
        let commands = stats
            .lines()
            .filter_map(|l| l.strip_prefix("cmdstat_")?.split_once(":calls="))
            .filter(|(name, _)| !["xadd", "xack", "xdel", "info"].contains(name))
            .map(|(_, rest)| rest.split(',').next().unwrap().parse::<f64>().unwrap())
            .sum();
        // User and system time in hundredths of a second, after the name in brackets.
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = own.rsplit_once(") ").unwrap().1;
        let ticks = fields.split(' ').skip(11).take(2);
        Self {
            at: Instant::now(),
            commands,
            redis_us,
            own_us: ticks.map(|t| t.parse::<f64>().unwrap() * 1e4).sum(),
            stats,
        }
    }
}
