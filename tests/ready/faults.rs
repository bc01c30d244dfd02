//! What Redis may suffer without harm.

use std::time::{Duration, Instant};

use leasehold::error::Error;
use leasehold::job::Priority;
use leasehold::ready::ReadyList;
use leasehold::ready::redis::Eviction;

use crate::support::{free_port, until};
use crate::world::{Server, WITHIN, emails, jobs, line, node, want};

const SECOND: Duration = Duration::from_secs(1);

fn away<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
    match result {
        Ok(_) => false,
        Err(Error::Unavailable { .. }) => true,
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn all_calls_fail_fast_while_redis_is_away_and_work_when_it_comes() {
    let mut server = Server::start().await;
    let list = node(&server.url(), "t");
    server.kill();
    let start = Instant::now();
    assert!(away(list.epoch().await));
    assert!(away(list.offer(vec![(emails(), jobs(1))]).await));
    assert!(away(list.take(want(&emails(), 1)).await));
    assert!(away(list.steal(vec![emails()], SECOND, 1).await));
    assert!(away(list.probe(vec![emails()]).await));
    assert!(away(list.nudge().await));
    assert!(away(list.ping().await));
    assert!(away(list.check().await));
    assert!(away(list.doorbell(vec![emails()], SECOND).await));
    assert!(start.elapsed() < 2 * SECOND);
    server.start_again().await;
    until(WITHIN, "it works again", async || {
        list.offer(vec![(emails(), jobs(1))]).await.ok()?;
        let ring = list.doorbell(vec![emails()], SECOND).await.ok()?;
        ring.work.then_some(())
    })
    .await;
    assert!(node("redis://127.0.0.1:1", "t").ping().await.is_err());
}

#[tokio::test]
async fn a_silent_redis_costs_a_second_a_call() {
    let port = free_port();
    let _silent = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let list = node(&format!("redis://127.0.0.1:{port}"), "t");
    let start = Instant::now();
    assert!(away(list.epoch().await));
    assert!(away(
        list.doorbell(vec![emails()], Duration::from_millis(1))
            .await
    ));
    assert!(start.elapsed() < 3 * SECOND, "{:?}", start.elapsed());
}

#[tokio::test]
async fn after_a_wipe_a_new_epoch_begins_and_no_call_fails() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    let mut epoch = a.epoch().await.unwrap();
    for round in 0..6 {
        a.offer(vec![(emails(), jobs(10))]).await.unwrap();
        let held = b.take(want(&emails(), 3)).await.unwrap();
        assert_eq!(held.len(), 3);
        let _: () = server.ask(&["FLUSHALL"]).await;
        // Whatever comes first finds it out.
        match round {
            0 => drop(a.offer(vec![(emails(), jobs(1))]).await.unwrap()),
            1 => assert!(b.take(want(&emails(), 1)).await.unwrap().is_empty()),
            2 => assert!(b.steal(vec![emails()], SECOND, 1).await.unwrap().is_empty()),
            3 => assert_eq!(a.probe(vec![emails()]).await.unwrap()[0].first, None),
            4 => drop(
                b.doorbell(vec![emails()], Duration::from_millis(1))
                    .await
                    .unwrap(),
            ),
            _ => b.settle(held.clone()).await.unwrap(),
        }
        b.settle(held.clone()).await.unwrap();
        b.put_back(held).await.unwrap();
        let new = a.epoch().await.unwrap();
        assert_ne!(new, epoch);
        assert_eq!(b.epoch().await.unwrap(), new);
        epoch = new;
        let rest = b.take(want(&emails(), 99)).await.unwrap();
        assert!(rest.iter().all(|hint| hint.epoch == new));
        b.settle(rest).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_that_find_a_wipe_together_begin_one_epoch() {
    const WIPES: u64 = 20;
    let server = Server::start().await;
    let nodes: Vec<_> = (0..8)
        .map(|_| std::sync::Arc::new(node(&server.url(), "t")))
        .collect();
    for wipe in 0..=WIPES {
        let calls = nodes.iter().enumerate().map(|(n, list)| {
            let list = std::sync::Arc::clone(list);
            tokio::spawn(async move {
                match n % 3 {
                    0 => drop(list.offer(vec![(emails(), jobs(3))]).await.unwrap()),
                    1 => drop(list.take(want(&emails(), 1)).await.unwrap()),
                    _ => drop(list.epoch().await.unwrap()),
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        let epoch = nodes[0].epoch().await.unwrap();
        for list in &nodes {
            assert_eq!(list.epoch().await.unwrap(), epoch);
        }
        assert_eq!(server.calls("set").await, wipe + 1);
        let _: () = server.ask(&["FLUSHALL"]).await;
    }
}

#[tokio::test]
async fn a_wipe_wakes_those_who_wait_for_work() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    a.doorbell(vec![emails()], Duration::ZERO).await.unwrap();
    let (ring, ()) = tokio::join!(a.doorbell(vec![emails()], 2 * SECOND), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _: () = server.ask(&["FLUSHALL"]).await;
        b.offer(vec![(emails(), jobs(1))]).await.unwrap();
    });
    assert!(ring.unwrap().work);
    assert_eq!(a.take(want(&emails(), 1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_that_restarts_with_old_data_begins_a_new_epoch_and_drops_the_old_hints() {
    let mut server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    let old = a.offer(vec![(emails(), jobs(5))]).await.unwrap()[0].epoch;
    b.take(want(&emails(), 2)).await.unwrap();
    server.stop().await;
    server.start_again().await;
    assert_eq!(server.streams().await.len(), Priority::ALL.len());
    until(WITHIN, "both are back", async || {
        a.epoch().await.ok()?;
        b.epoch().await.ok()
    })
    .await;
    assert_ne!(a.epoch().await.unwrap(), old);
    assert_eq!(a.epoch().await.unwrap(), b.epoch().await.unwrap());
    assert_eq!(server.streams().await, Vec::<String>::new());
    assert!(b.take(want(&emails(), 9)).await.unwrap().is_empty());
    a.offer(vec![(emails(), jobs(1))]).await.unwrap();
    assert_eq!(b.take(want(&emails(), 9)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stream_or_group_that_vanishes_begins_a_new_epoch() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    for round in 0..4 {
        let old = a.offer(vec![(emails(), jobs(2))]).await.unwrap()[0].epoch;
        assert_eq!(b.take(want(&emails(), 1)).await.unwrap().len(), 1);
        a.doorbell(vec![emails()], Duration::ZERO).await.unwrap();
        let stream = server.emails().await;
        match round {
            0 => drop(server.ask::<i64>(&["DEL", &stream]).await),
            1 => drop(
                server
                    .ask::<i64>(&["XGROUP", "DESTROY", &stream, "nodes"])
                    .await,
            ),
            2 => drop(
                server
                    .ask::<String>(&["SET", &stream, "not a stream"])
                    .await,
            ),
            // Nobody here knows the line yet, but the list of streams does.
            _ => drop(server.ask::<i64>(&["DEL", &stream]).await),
        }
        match round {
            3 => {
                let c = node(&server.url(), "t");
                c.offer(vec![(emails(), jobs(1))]).await.unwrap();
            }
            _ => assert!(b.take(want(&emails(), 1)).await.unwrap().is_empty()),
        }
        assert_ne!(a.epoch().await.unwrap(), old, "round {round}");
        let ring = a
            .doorbell(vec![emails()], Duration::from_millis(1))
            .await
            .unwrap();
        assert!(ring.work);
        let rest = a.take(want(&emails(), 9)).await.unwrap();
        a.settle(rest).await.unwrap();
    }
}

#[tokio::test]
async fn one_group_of_many_that_vanishes_begins_a_new_epoch() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    let lines = [Priority::High, Priority::Low].map(|level| line("q", level));
    let lines = [lines.to_vec(), vec![emails()]].concat();
    let wants = || [want(&lines[0], 9), want(&emails(), 9)].concat();
    for line in &lines {
        let offer = || lines.iter().map(|line| (line.clone(), jobs(2))).collect();
        let old = a.offer(offer()).await.unwrap()[0].epoch;
        assert_eq!(b.take(wants()).await.unwrap().len(), 6);
        let level = line.priority.number();
        let stream = format!("t:{}:{}:{level}", old.0.simple(), line.queue);
        let destroyed: i64 = server.ask(&["XGROUP", "DESTROY", &stream, "nodes"]).await;
        assert_eq!(destroyed, 1);
        assert!(b.take(wants()).await.unwrap().is_empty());
        let placed = a.offer(offer()).await.unwrap();
        assert_ne!(placed[0].epoch, old);
        let hints = b.take(wants()).await.unwrap();
        assert_eq!(hints.len(), 6);
        assert!(hints.iter().all(|hint| hint.epoch == placed[0].epoch));
        b.settle(hints).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_forgets_its_scripts_is_told_them_again() {
    let server = Server::start().await;
    let list = node(&server.url(), "t");
    for _ in 0..3 {
        let _: () = server.ask(&["SCRIPT", "FLUSH"]).await;
        list.offer(vec![(emails(), jobs(3))]).await.unwrap();
        let _: () = server.ask(&["SCRIPT", "FLUSH"]).await;
        let wants = (0..40).flat_map(|n| want(&line(&format!("q{n}"), Priority::Low), 500));
        let wants = wants.chain(want(&emails(), 5)).collect();
        assert_eq!(list.take(wants).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn nothing_goes_to_streams_of_an_epoch_that_is_over() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    for round in 0..5 {
        let old = a.offer(vec![(emails(), jobs(2))]).await.unwrap()[0].epoch;
        b.take(want(&emails(), 1)).await.unwrap();
        b.probe(vec![emails()]).await.unwrap();
        b.doorbell(vec![emails()], Duration::ZERO).await.unwrap();
        // The marker alone: all streams are still there.
        let _: i64 = server.ask(&["DEL", "t:epoch"]).await;
        match round {
            0 => {
                let placed = a.offer(vec![(emails(), jobs(1))]).await.unwrap();
                assert_ne!(placed[0].epoch, old);
            }
            1 => assert!(b.take(want(&emails(), 9)).await.unwrap().is_empty()),
            2 => assert_eq!(b.probe(vec![emails()]).await.unwrap()[0].first, None),
            3 => {
                let stolen = b.steal(vec![emails()], Duration::ZERO, 9).await.unwrap();
                assert!(stolen.is_empty());
            }
            _ => {
                let quiet = Duration::from_millis(1);
                b.doorbell(vec![emails()], quiet).await.unwrap();
            }
        }
        let new = a.epoch().await.unwrap();
        let name = format!("t:{}:", new.0.simple());
        assert_ne!(new, old);
        assert!(server.streams().await.iter().all(|s| s.starts_with(&name)));
        let rest = b.take(want(&emails(), 9)).await.unwrap();
        assert!(rest.iter().all(|hint| hint.epoch == new));
        b.settle(rest).await.unwrap();
    }
}

#[tokio::test]
async fn keys_of_a_wrong_type_are_replaced() {
    let server = Server::start().await;
    for key in ["t:epoch", "t:streams", "t:bell"] {
        let _: i64 = server.ask(&["HSET", key, "some", "thing"]).await;
    }
    let list = node(&server.url(), "t");
    until(WITHIN, "it works", async || {
        list.nudge().await.ok()?;
        list.offer(vec![(emails(), jobs(1))]).await.ok()?;
        let ring = list.doorbell(vec![emails()], SECOND).await.ok()?;
        ring.work.then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_spins_while_work_is_held_elsewhere_or_streams_are_wiped() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    a.offer(vec![(emails(), jobs(10))]).await.unwrap();
    let held = b.take(want(&emails(), 10)).await.unwrap();
    let before = server.calls("xread").await;
    let start = Instant::now();
    let mut wipes = 0;
    while start.elapsed() < 3 * SECOND {
        if a.doorbell(vec![emails()], SECOND)
            .await
            .is_ok_and(|ring| ring.work)
        {
            a.take(want(&emails(), 5)).await.unwrap();
        }
        if start.elapsed() > SECOND && wipes == 0 {
            let _: () = server.ask(&["FLUSHALL"]).await;
            wipes += 1;
        }
    }
    let reads = server.calls("xread").await - before;
    assert!(reads < 15, "{reads} reads in 3 s");
    assert!(a.put_back(held).await.is_ok());
}

#[tokio::test]
async fn a_doorbell_that_is_called_again_at_once_after_errors_does_not_spin() {
    let list = node(&format!("redis://127.0.0.1:{}", free_port()), "t");
    let start = Instant::now();
    let mut errors = 0;
    while start.elapsed() < 2 * SECOND {
        assert!(away(list.doorbell(vec![emails()], 2 * SECOND).await));
        errors += 1;
    }
    assert!(errors < 20, "{errors} tries in 2 s");
}

#[tokio::test]
async fn when_all_is_settled_nothing_is_left_in_redis() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    a.offer(vec![(emails(), jobs(5_000))]).await.unwrap();
    let mut left = 5_000;
    while left > 0 {
        for list in [&a, &b] {
            let hints = list.take(want(&emails(), 700)).await.unwrap();
            let (done, back) = hints.split_at(hints.len() * 3 / 4 + usize::from(hints.len() < 4));
            list.put_back(back.to_vec()).await.unwrap();
            left -= done.len();
            list.settle(done.to_vec()).await.unwrap();
        }
    }
    let stream = server.emails().await;
    assert_eq!(server.ask::<u64>(&["XLEN", &stream]).await, 0);
    let pending: (u64, redis::Value, redis::Value, redis::Value) =
        server.ask(&["XPENDING", &stream, "nodes"]).await;
    assert_eq!(pending.0, 0);
}

#[tokio::test]
async fn a_thousand_nodes_that_came_and_went_leave_few_consumers() {
    let server = Server::start().await;
    let stays = node(&server.url(), "t");
    stays.offer(vec![(emails(), jobs(1))]).await.unwrap();
    let held = stays.take(want(&emails(), 1)).await.unwrap();
    for _ in 0..1_000 {
        let list = node(&server.url(), "t");
        list.take(want(&emails(), 1)).await.unwrap();
        list.close().await.unwrap();
    }
    let stream = server.emails().await;
    let consumers: Vec<redis::Value> = server.ask(&["XINFO", "CONSUMERS", &stream, "nodes"]).await;
    assert!(consumers.len() <= 2, "{}", consumers.len());
    // Closing with a hint in hand leaves it to be stolen.
    stays.close().await.unwrap();
    let heir = node(&server.url(), "t");
    assert_eq!(
        heir.steal(vec![emails()], Duration::ZERO, 5).await.unwrap(),
        held
    );
}

#[tokio::test]
async fn a_wait_that_is_given_up_does_not_hold_up_the_next() {
    let server = Server::start().await;
    let (a, b) = (node(&server.url(), "t"), node(&server.url(), "t"));
    for _ in 0..50 {
        let wait = a.doorbell(vec![emails()], 2 * SECOND);
        let patience = Duration::from_millis(20);
        assert!(tokio::time::timeout(patience, wait).await.is_err());
    }
    // Work in another line, which would not end the reads that were left behind.
    let other = line("other", Priority::High);
    b.offer(vec![(other.clone(), jobs(1))]).await.unwrap();
    let start = Instant::now();
    assert!(a.doorbell(vec![other], 2 * SECOND).await.unwrap().work);
    assert!(start.elapsed() < SECOND / 2, "{:?}", start.elapsed());
    // The reads were ended, not their connections.
    let connections: String = server.ask(&["INFO", "stats"]).await;
    let received = connections
        .lines()
        .find_map(|l| l.strip_prefix("total_connections_received:"));
    assert!(received.unwrap().parse::<u32>().unwrap() < 20);
}

#[tokio::test]
async fn a_check_names_the_server_and_its_eviction() {
    let server = Server::start().await;
    let list = node(&server.url(), "t");
    let check = list.check().await.unwrap();
    assert!(check.server.starts_with("redis ") || check.server.starts_with("valkey "));
    assert_eq!((check.refusal, check.eviction.warning()), (None, None));
    let _: String = server
        .ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await;
    let eviction = list.check().await.unwrap().eviction;
    assert_eq!(eviction, Eviction::Evicts("allkeys-lru".into()));
    assert!(eviction.warning().unwrap().contains("noeviction"));
}

#[tokio::test]
async fn an_offer_of_a_hundred_batches_is_taken_whole() {
    let server = Server::start().await;
    let list = node(&server.url(), "t");
    let all = (0..100).map(|_| (emails(), jobs(1_000))).collect();
    assert_eq!(list.offer(all).await.unwrap().len(), 100);
    let stream = server.emails().await;
    // Sixteen ids an entry, and the rest of each batch in one more.
    assert_eq!(server.ask::<u64>(&["XLEN", &stream]).await, 100 * 63);
    let hints = list.take(want(&emails(), 1_000)).await.unwrap();
    assert_eq!(hints.len(), 1_000);
}

#[tokio::test]
async fn out_of_memory_is_unavailable_and_passes() {
    let server = Server::start().await;
    let list = node(&server.url(), "t");
    list.offer(vec![(emails(), jobs(1))]).await.unwrap();
    // A line that is new has no room then.
    let levels = Priority::ALL.map(|level| (line("emails", level), Vec::new()));
    list.offer(levels.to_vec()).await.unwrap();
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(away(list.offer(vec![(emails(), jobs(1))]).await));
    assert_eq!(list.take(want(&emails(), 5)).await.unwrap().len(), 1);
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    list.offer(vec![(emails(), jobs(1))]).await.unwrap();
}

#[tokio::test]
async fn a_user_without_dangerous_commands_can_do_all() {
    let server = Server::start().await;
    let _: String = server
        .ask(&[
            "ACL",
            "SETUSER",
            "node",
            "on",
            ">pw",
            "~t:*",
            "+@all",
            "-@dangerous",
            "-@scripting",
            "+eval",
            "+evalsha",
        ])
        .await;
    let url = format!(
        "redis://node:pw@{}",
        server.url().split_once('@').unwrap().1
    );
    let list = node(&url, "t");
    let old = list.offer(vec![(emails(), jobs(2))]).await.unwrap()[0].epoch;
    assert_eq!(list.epoch().await.unwrap(), old);
    let hints = list.take(want(&emails(), 2)).await.unwrap();
    list.put_back(hints[1..].to_vec()).await.unwrap();
    list.settle(hints[..1].to_vec()).await.unwrap();
    list.nudge().await.unwrap();
    list.doorbell(vec![emails()], Duration::ZERO).await.unwrap();
    let wait = list.doorbell(vec![emails()], 2 * SECOND);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), wait)
            .await
            .is_err()
    );
    list.doorbell(vec![emails()], Duration::from_millis(20))
        .await
        .unwrap();
    assert_eq!(list.check().await.unwrap().eviction, Eviction::Unknown);
    assert!(list.ping().await.unwrap().contains("unknown"));
    let _: () = server.ask(&["FLUSHALL"]).await;
    assert!(list.take(want(&emails(), 2)).await.unwrap().is_empty());
    assert_ne!(list.epoch().await.unwrap(), old);
}

#[tokio::test]
async fn a_user_who_may_not_run_scripts_is_told_so_and_the_list_is_unavailable() {
    let server = Server::start().await;
    let setting = ["on", ">pw", "~t:*", "+@all", "-@scripting"];
    let user = [&["ACL", "SETUSER", "node"], &setting[..]].concat();
    let _: String = server.ask(&user).await;
    let host = server.url();
    let host = host.split_once('@').unwrap().1;
    let list = node(&format!("redis://node:pw@{host}"), "t");
    assert!(away(list.take(want(&emails(), 1)).await));
    assert!(away(list.offer(vec![(emails(), jobs(1))]).await));
    // What tells the node that all is well must not say so.
    assert!(away(list.ping().await));
    let check = list.check().await.unwrap();
    assert_eq!(check.refusal, None);
    assert!(check.degraded().unwrap().contains("EVALSHA"));
    let _: String = server.ask(&["ACL", "SETUSER", "node", "+@scripting"]).await;
    assert_eq!(list.check().await.unwrap().degraded(), None);
    list.ping().await.unwrap();
    list.offer(vec![(emails(), jobs(1))]).await.unwrap();
    assert_eq!(list.take(want(&emails(), 1)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_begin_together_share_one_connection() {
    let mut server = Server::start().await;
    let list = std::sync::Arc::new(node(&server.url(), "t"));
    for _ in 0..3 {
        // The test's own asks are among them.
        let before = connections(&server).await;
        let calls: Vec<_> = (0..100)
            .map(|_| {
                let list = list.clone();
                tokio::spawn(async move { list.take(want(&emails(), 1)).await })
            })
            .collect();
        for call in calls {
            // Of those that were sent on the connection of before, none is answered.
            let _ = call.await.unwrap();
        }
        until(WITHIN, "it works", async || {
            list.take(want(&emails(), 1)).await.ok()
        })
        .await;
        assert!(connections(&server).await - before <= 4);
        server.kill();
        server.start_again().await;
    }
}

async fn connections(server: &Server) -> u64 {
    let stats: String = server.ask(&["INFO", "stats"]).await;
    let count = stats
        .lines()
        .find_map(|line| line.strip_prefix("total_connections_received:"));
    count.unwrap().parse().unwrap()
}

/// Of a server that was killed, the connection's end is seen at once; of one behind a cut cable, never.
#[tokio::test]
async fn a_connection_that_hangs_is_given_up_after_the_first_call() {
    let server = Server::start().await;
    let port = free_port();
    let way = tokio::net::TcpListener::bind(("127.0.0.1", port))
        .await
        .unwrap();
    let there = server.url();
    let (secret, there) = there.split_once('@').unwrap();
    let there = there.trim_end_matches('/').to_owned();
    let cut = std::sync::Arc::new(tokio::sync::Notify::new());
    let cutting = cut.clone();
    tokio::spawn(async move {
        loop {
            let (mut here, _) = way.accept().await.unwrap();
            let mut there = tokio::net::TcpStream::connect(&there).await.unwrap();
            let cut = cutting.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                    // Open, and silent for ever.
                    () = cut.notified() => std::future::pending().await,
                }
            });
        }
    });
    let list = node(&format!("{secret}@127.0.0.1:{port}"), "t");
    list.offer(vec![(emails(), jobs(20))]).await.unwrap();
    cut.notify_waiters();
    let start = Instant::now();
    assert!(away(list.take(want(&emails(), 1)).await));
    assert!(start.elapsed() < 2 * SECOND);
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(list.take(want(&emails(), 1)).await.unwrap().len(), 1);
    }
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
}
