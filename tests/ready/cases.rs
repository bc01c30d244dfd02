//! What every ready-list must do.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use leasehold::job::{JobId, Priority};
use leasehold::ready::{Hint, Want};

use crate::support::until;
use crate::world::{WITHIN, World, emails, jobs, line, want};

const LONG: Duration = Duration::from_secs(2);

fn ids(hints: &[Hint]) -> Vec<JobId> {
    hints.iter().map(|hint| hint.job).collect()
}

on_each_list!(hints_come_in_the_order_of_their_offers);
async fn hints_come_in_the_order_of_their_offers(w: World) {
    let line = emails();
    let all = jobs(2_500);
    let placed =
        w.a.offer(vec![(line.clone(), all[..1_500].to_vec())])
            .await
            .unwrap();
    let later =
        w.a.offer(vec![(line.clone(), all[1_500..].to_vec())])
            .await
            .unwrap();
    assert_eq!(placed[0].epoch, w.b.epoch().await.unwrap());
    assert!(placed[0].last < later[0].last);
    let mut got = Vec::new();
    while got.len() < all.len() {
        let hints = w.b.take(want(&line, 700)).await.unwrap();
        assert!(!hints.is_empty() && hints.len() <= 700);
        assert!(
            hints
                .iter()
                .all(|h| h.line == line && h.epoch == placed[0].epoch)
        );
        got.extend(hints);
    }
    assert_eq!(ids(&got), all);
    assert_eq!(got[1_499].entry, placed[0].last);
    assert_eq!(got[2_499].entry, later[0].last);
}

on_each_list!(lines_are_apart);
async fn lines_are_apart(w: World) {
    let (high, low) = (line("a:b", Priority::High), line("a:b", Priority::Low));
    let other = line("a", Priority::High);
    let all = jobs(4);
    let offer = vec![
        (high.clone(), vec![all[0], all[1]]),
        (low.clone(), vec![all[2]]),
        (other.clone(), vec![]),
    ];
    assert_eq!(w.a.offer(offer).await.unwrap().len(), 3);
    assert!(w.a.take(want(&other, 5)).await.unwrap().is_empty());
    let wants = [want(&other, 5), want(&high, 1)].concat();
    assert_eq!(ids(&w.a.take(wants).await.unwrap()), [all[0]]);
    let rest = w.b.take(want(&low, 5)).await.unwrap();
    assert_eq!(ids(&rest), [all[1], all[2]]);
    assert_eq!((&rest[0].line, &rest[1].line), (&high, &low));
    assert!(
        w.a.take(want(&line("unknown", Priority::Low), 5))
            .await
            .unwrap()
            .is_empty()
    );
    assert!(w.a.take(want(&high, 0)).await.unwrap().is_empty());
}

on_each_list!(what_is_wanted_of_a_queue_is_shared_by_its_levels_and_high_comes_first);
async fn what_is_wanted_of_a_queue_is_shared_by_its_levels_and_high_comes_first(w: World) {
    let of =
        |queue: &str| [Priority::Low, Priority::High, Priority::Normal].map(|p| line(queue, p));
    let all = jobs(18);
    for (queue, jobs) in ["a", "b"].iter().zip(all.chunks(9)) {
        let lines = of(queue).into_iter().zip(jobs.chunks(3));
        let offer = lines.map(|(line, jobs)| (line, jobs.to_vec())).collect();
        w.a.offer(offer).await.unwrap();
    }
    let (low, high, normal) = (&all[..3], &all[3..6], &all[6..9]);
    let of_queue = |hints: &[Hint], queue: &str| -> Vec<JobId> {
        let hints = hints.iter().filter(|h| h.line.queue.as_str() == queue);
        hints.map(|hint| hint.job).collect()
    };
    // Each queue has a number of its own, and one that is not asked of gives nothing.
    let (a, b) = (line("a", Priority::Low), line("b", Priority::Low));
    let wants = [want(&a, 4), want(&b, 1)].concat();
    let first = w.a.take(wants).await.unwrap();
    assert_eq!(of_queue(&first, "a"), [high, &normal[..1]].concat());
    assert_eq!(of_queue(&first, "b"), all[12..13]);
    let then = w.b.take(want(&a, 9)).await.unwrap();
    assert_eq!(ids(&then), [&normal[1..], low].concat());
    assert_eq!(w.b.take(want(&b, 99)).await.unwrap().len(), 8);
}

on_each_list!(some_of_what_is_wanted_begins_below_the_highest_level);
async fn some_of_what_is_wanted_begins_below_the_highest_level(w: World) {
    let all = jobs(12);
    let [high, normal, low] = [&all[..6], &all[6..9], &all[9..]];
    let lines = Priority::ALL.map(|priority| line("q", priority));
    let offer = lines.iter().cloned().zip([high, normal, low]);
    w.a.offer(offer.map(|(line, jobs)| (line, jobs.to_vec())).collect())
        .await
        .unwrap();
    let take = async |count, lower, first| {
        let [want] = <[Want; 1]>::try_from(want(&lines[0], count)).unwrap();
        let want = Want {
            lower,
            lower_first: first,
            ..want
        };
        let hints = w.a.take(vec![want]).await.unwrap();
        let (early, others): (Vec<_>, Vec<_>) = hints.into_iter().partition(|hint| hint.early);
        (ids(&early), ids(&others), [early, others].concat())
    };
    // One of them looks there first; the others find the rest in the usual order.
    let (early, others, taken) = take(3, 1, Priority::Low).await;
    assert_eq!((&early[..], &others[..]), (&low[..1], &high[..2]));
    // What is put back is early only if it is found so again, and keeps its place.
    w.a.put_back(taken).await.unwrap();
    let (early, others, _) = take(3, 1, Priority::Normal).await;
    assert_eq!((&early[..], &others[..]), (&normal[..1], &high[..2]));
    let (early, others, _) = take(2, 2, Priority::Low).await;
    assert_eq!((&early[..], &others[..]), (&low[..2], &[][..]));
    // When one of the two levels is empty the other one follows, and then all; more than is wanted is as many.
    let (early, others, _) = take(2, 9, Priority::Low).await;
    assert_eq!(early.len(), 2);
    assert!(early.contains(&low[2]) && early.contains(&normal[1]));
    assert!(others.is_empty());
    let (early, others, _) = take(4, 3, Priority::Low).await;
    assert_eq!((&early[..], &others[..]), (&normal[2..], &high[2..5]));
    let (early, others, _) = take(4, 3, Priority::Normal).await;
    assert_eq!((&early[..], &others[..]), (&[][..], &high[5..]));
}

on_each_list!(early_ones_of_some_queues_come_in_the_same_call);
async fn early_ones_of_some_queues_come_in_the_same_call(w: World) {
    let queues = ["a", "b", "c"];
    let mut offer = Vec::new();
    for queue in queues {
        for priority in [Priority::High, Priority::Low] {
            offer.push((line(queue, priority), jobs(3)));
        }
    }
    w.a.offer(offer).await.unwrap();
    let wants = queues.iter().enumerate().flat_map(|(lower, queue)| {
        let wants = want(&line(queue, Priority::High), 2).into_iter();
        wants.map(move |want| Want { lower, ..want })
    });
    let hints = w.b.take(wants.collect()).await.unwrap();
    for (lower, queue) in queues.iter().enumerate() {
        let of = |early, priority| {
            let line = line(queue, priority);
            let of = hints.iter().filter(|h| h.early == early && h.line == line);
            of.count()
        };
        assert_eq!(of(true, Priority::Low), lower, "{queue}");
        assert_eq!(of(false, Priority::High), 2 - lower, "{queue}");
    }
    assert_eq!(hints.len(), 6);
}

on_each_list!(what_was_put_back_comes_before_the_rest_of_its_level_only);
async fn what_was_put_back_comes_before_the_rest_of_its_level_only(w: World) {
    let (high, low) = (line("q", Priority::High), line("q", Priority::Low));
    let all = jobs(6);
    let offer = vec![(low.clone(), all[..3].to_vec())];
    w.a.offer(offer).await.unwrap();
    let taken = w.a.take(want(&low, 2)).await.unwrap();
    w.a.offer(vec![(high.clone(), all[3..].to_vec())])
        .await
        .unwrap();
    let urgent = w.a.take(want(&high, 2)).await.unwrap();
    assert_eq!(ids(&urgent), all[3..5]);
    w.a.put_back(vec![taken[1].clone(), urgent[1].clone(), taken[0].clone()])
        .await
        .unwrap();
    let order = [all[4], all[5], all[0], all[1], all[2]];
    let mut got = Vec::new();
    for count in [1, 2, 9] {
        got.extend(ids(&w.b.take(want(&low, count)).await.unwrap()));
    }
    assert_eq!(got, order);
}

on_each_list!(many_queues_are_taken_from_in_one_call);
async fn many_queues_are_taken_from_in_one_call(w: World) {
    let lines: Vec<_> = (0..200).map(|n| line_of(&format!("q{n}"))).collect();
    let offer = lines.iter().map(|line| (line.clone(), jobs(12)));
    w.a.offer(offer.collect()).await.unwrap();
    let wants = |count| lines.iter().flat_map(|line| want(line, count)).collect();
    let first = w.a.take(wants(5)).await.unwrap();
    for line in &lines {
        assert_eq!(first.iter().filter(|hint| hint.line == *line).count(), 5);
    }
    assert_eq!(w.b.take(wants(2_000)).await.unwrap().len(), 1_400);
    assert!(w.b.take(wants(0)).await.unwrap().is_empty());
}

on_each_list!(each_hint_goes_to_one_taker);
async fn each_hint_goes_to_one_taker(w: World) {
    let line = emails();
    let all = jobs(1_000);
    w.a.offer(vec![(line.clone(), all.clone())]).await.unwrap();
    let mut takers = Vec::new();
    for list in [&w.a, &w.b, &w.a, &w.b] {
        let (list, line) = (list.clone(), line.clone());
        takers.push(tokio::spawn(async move {
            let mut got = Vec::new();
            loop {
                let hints = list.take(want(&line, 37)).await.unwrap();
                if hints.is_empty() {
                    return got;
                }
                // Some come back, and are taken once more by somebody.
                let (keep, back) = hints.split_at(hints.len() - usize::from(hints.len() > 30));
                list.put_back(back.to_vec()).await.unwrap();
                got.extend(ids(keep));
            }
        }));
    }
    let mut got = Vec::new();
    for taker in takers {
        got.extend(taker.await.unwrap());
    }
    assert_eq!(got.len(), all.len());
    assert_eq!(
        got.into_iter().collect::<HashSet<_>>(),
        all.into_iter().collect()
    );
}

on_each_list!(what_is_settled_is_gone);
async fn what_is_settled_is_gone(w: World) {
    let line = emails();
    let all = jobs(3);
    w.a.offer(vec![(line.clone(), all.clone())]).await.unwrap();
    let hints = w.a.take(want(&line, 3)).await.unwrap();
    w.a.settle(hints[..2].to_vec()).await.unwrap();
    // Once more, which is nothing; and what is settled cannot be put back.
    w.a.settle(hints[..2].to_vec()).await.unwrap();
    w.a.put_back(hints[..1].to_vec()).await.unwrap();
    assert_eq!(
        w.a.steal(vec![line.clone()], Duration::ZERO, 10)
            .await
            .unwrap(),
        hints[2..]
    );
    w.a.settle(hints).await.unwrap();
    assert!(
        w.b.steal(vec![line.clone()], Duration::ZERO, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(w.b.take(want(&line, 3)).await.unwrap().is_empty());
}

on_each_list!(one_call_settles_hints_of_many_lines);
async fn one_call_settles_hints_of_many_lines(w: World) {
    let lines: Vec<_> = (0..60).map(|n| line_of(&format!("q{n}"))).collect();
    let offer = lines.iter().map(|line| (line.clone(), jobs(50)));
    assert_eq!(w.a.offer(offer.collect()).await.unwrap().len(), 60);
    let wants = lines.iter().flat_map(|line| want(line, 50)).collect();
    let hints = w.a.take(wants).await.unwrap();
    assert_eq!(hints.len(), 3_000);
    w.a.settle(hints).await.unwrap();
    let probes = w.a.probe(lines).await.unwrap();
    assert!(probes.iter().all(|probe| probe.first.is_none()));
}

on_each_list!(what_is_put_back_keeps_its_place);
async fn what_is_put_back_keeps_its_place(w: World) {
    let line = emails();
    let all = jobs(6);
    w.a.offer(vec![(line.clone(), all.clone())]).await.unwrap();
    let hints = w.a.take(want(&line, 4)).await.unwrap();
    w.a.put_back(vec![hints[3].clone(), hints[1].clone()])
        .await
        .unwrap();
    let again = w.b.take(want(&line, 3)).await.unwrap();
    assert_eq!(ids(&again), [all[1], all[3], all[4]]);
    assert_eq!(again[0], hints[1]);
    assert_eq!(ids(&w.b.take(want(&line, 3)).await.unwrap()), [all[5]]);
}

on_each_list!(what_is_put_back_of_a_large_batch_keeps_its_place);
async fn what_is_put_back_of_a_large_batch_keeps_its_place(w: World) {
    let line = emails();
    let all = jobs(256);
    w.a.offer(vec![(line.clone(), all.clone())]).await.unwrap();
    let mut hints = w.a.take(want(&line, 20)).await.unwrap();
    let late = hints.split_off(19);
    let back = vec![hints.remove(17), hints.remove(3)];
    w.a.settle(hints[..9].to_vec()).await.unwrap();
    w.a.put_back(back).await.unwrap();
    let again = w.b.take(want(&line, 5)).await.unwrap();
    assert_eq!(ids(&again), [all[3], all[17], all[20], all[21], all[22]]);
    w.a.settle(hints.split_off(9)).await.unwrap();
    w.b.settle(again).await.unwrap();
    w.a.put_back(late).await.unwrap();
    let rest = w.b.take(want(&line, 256)).await.unwrap();
    assert_eq!(ids(&rest), [&all[19..20], &all[23..]].concat());
    w.b.settle(rest).await.unwrap();
    let probe = w.a.probe(vec![line]).await.unwrap();
    assert_eq!(probe[0].first, None);
}

on_each_list!(hints_left_alone_are_taken_over_oldest_first);
async fn hints_left_alone_are_taken_over_oldest_first(w: World) {
    let line = emails();
    w.a.offer(vec![(line.clone(), jobs(3))]).await.unwrap();
    let hints = w.a.take(want(&line, 3)).await.unwrap();
    let hour = Duration::from_secs(3_600);
    assert!(
        w.b.steal(vec![line.clone()], hour, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let idle = Duration::from_millis(50);
    let mut stolen = Vec::new();
    until(WITHIN, "two are idle", async || {
        let got = w.b.steal(vec![line.clone()], idle, 2).await.unwrap();
        stolen.extend(got);
        (stolen.len() >= 2).then_some(())
    })
    .await;
    assert_eq!(stolen[..2], hints[..2]);
    let none = line_of("nobody");
    assert!(
        w.b.steal(vec![none], Duration::ZERO, 2)
            .await
            .unwrap()
            .is_empty()
    );
}

fn line_of(queue: &str) -> leasehold::store::Line {
    line(queue, Priority::Normal)
}

on_each_list!(a_probe_shows_the_lowest_entry_that_is_not_settled);
async fn a_probe_shows_the_lowest_entry_that_is_not_settled(w: World) {
    let (line, none) = (emails(), line_of("nobody"));
    w.a.offer(vec![(line.clone(), jobs(3))]).await.unwrap();
    let hints = w.a.take(want(&line, 2)).await.unwrap();
    let first = async || {
        let probes = w.b.probe(vec![none.clone(), line.clone()]).await.unwrap();
        assert_eq!(probes[0].first, None);
        probes[1].first
    };
    assert_eq!(first().await, Some(hints[0].entry));
    w.a.settle(hints[..1].to_vec()).await.unwrap();
    assert_eq!(first().await, Some(hints[1].entry));
    w.a.put_back(hints[1..].to_vec()).await.unwrap();
    assert_eq!(first().await, Some(hints[1].entry));
    let rest = w.a.take(want(&line, 9)).await.unwrap();
    w.a.settle(rest).await.unwrap();
    assert_eq!(first().await, None);
}

on_each_list!(a_doorbell_rings_when_work_comes);
async fn a_doorbell_rings_when_work_comes(w: World) {
    let (line, other) = (emails(), line_of("other"));
    let start = Instant::now();
    let quiet = Duration::from_millis(100);
    let ring = w.a.doorbell(vec![line.clone()], quiet).await.unwrap();
    assert!(!ring.work && !ring.nudge && start.elapsed() >= quiet);
    let (a, lines) = (w.a.clone(), vec![other.clone(), line.clone()]);
    let bell = tokio::spawn(async move { a.doorbell(lines, LONG).await.unwrap() });
    tokio::time::sleep(quiet).await;
    let start = Instant::now();
    w.b.offer(vec![(line.clone(), jobs(1))]).await.unwrap();
    let ring = bell.await.unwrap();
    assert!(ring.work && !ring.nudge && start.elapsed() < Duration::from_secs(1));
    // It is there and not taken: it goes on ringing. Once it is held, or in another line, it does not.
    assert!(w.b.doorbell(vec![line.clone()], LONG).await.unwrap().work);
    assert!(!w.b.doorbell(vec![other], quiet).await.unwrap().work);
    w.a.take(want(&line, 1)).await.unwrap();
    assert!(!w.b.doorbell(vec![line.clone()], quiet).await.unwrap().work);
    assert!(!w.a.doorbell(vec![line], Duration::ZERO).await.unwrap().work);
}

on_each_list!(a_nudge_rings_once);
async fn a_nudge_rings_once(w: World) {
    let quiet = Duration::from_millis(100);
    w.a.doorbell(vec![], Duration::ZERO).await.unwrap();
    w.b.nudge().await.unwrap();
    let ring = w.a.doorbell(vec![], LONG).await.unwrap();
    assert!(ring.nudge && !ring.work);
    assert!(!w.a.doorbell(vec![], quiet).await.unwrap().nudge);
    let a = w.a.clone();
    let bell = tokio::spawn(async move { a.doorbell(vec![emails()], LONG).await.unwrap() });
    tokio::time::sleep(quiet).await;
    w.b.nudge().await.unwrap();
    assert!(bell.await.unwrap().nudge);
}

on_each_list!(what_another_puts_back_rings);
async fn what_another_puts_back_rings(w: World) {
    let line = emails();
    w.a.doorbell(vec![line.clone()], Duration::ZERO)
        .await
        .unwrap();
    w.b.offer(vec![(line.clone(), jobs(1))]).await.unwrap();
    let hints = w.b.take(want(&line, 1)).await.unwrap();
    w.a.doorbell(vec![line.clone()], Duration::ZERO)
        .await
        .unwrap();
    w.b.put_back(hints).await.unwrap();
    assert!(w.a.doorbell(vec![line.clone()], LONG).await.unwrap().work);
    assert_eq!(w.a.take(want(&line, 1)).await.unwrap().len(), 1);
}

on_each_list!(a_doorbell_misses_nothing);
async fn a_doorbell_misses_nothing(w: World) {
    const ROUNDS: usize = 300;
    let line = emails();
    let (b, offered) = (w.b.clone(), line.clone());
    let all = jobs(ROUNDS);
    let mut left: HashSet<JobId> = all.iter().copied().collect();
    let offers = tokio::spawn(async move {
        for (n, job) in all.into_iter().enumerate() {
            b.offer(vec![(offered.clone(), vec![job])]).await.unwrap();
            // Now in the middle of a take, now before a doorbell, now in it.
            tokio::time::sleep(Duration::from_micros((n as u64 * 97) % 2_000)).await;
        }
    });
    let start = Instant::now();
    while !left.is_empty() {
        let hints = w.a.take(want(&line, 5)).await.unwrap();
        for hint in &hints {
            assert!(left.remove(&hint.job), "taken twice");
        }
        if hints.is_empty() {
            let waited = Instant::now();
            // Sometimes the wait is given up for something else.
            let bell = w.a.doorbell(vec![line.clone()], LONG);
            let patience = match left.len() % 4 {
                0 => Duration::from_micros(300),
                _ => 2 * LONG,
            };
            if let Ok(ring) = tokio::time::timeout(patience, bell).await {
                assert!(
                    ring.unwrap().work,
                    "slept {:?} beside {}",
                    waited.elapsed(),
                    left.len()
                );
            }
        }
        w.a.settle(hints).await.unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} left",
            left.len()
        );
    }
    offers.await.unwrap();
}

on_each_list!(it_says_what_it_is);
async fn it_says_what_it_is(w: World) {
    let name = w.a.ping().await.unwrap();
    assert!(name.starts_with("redis 7") || name.starts_with("valkey") || name == "in process");
}

/// A line that is longer than the room does not crowd out another, and what was forgotten is below what comes later.
#[tokio::test]
async fn a_full_memory_forgets_the_newest_of_the_longest_line() {
    use leasehold::ready::{ReadyList, memory::MemoryReady};
    let list = MemoryReady::with_room(100);
    let (long, short) = (line_of("long"), line_of("short"));
    let all = jobs(200);
    let placed = list
        .offer(vec![(long.clone(), all[..150].to_vec())])
        .await
        .unwrap();
    list.offer(vec![(short.clone(), all[150..170].to_vec())])
        .await
        .unwrap();
    assert_eq!(
        ids(&list.take(want(&short, 99)).await.unwrap()),
        all[150..170]
    );
    let taken = list.take(want(&long, 999)).await.unwrap();
    assert_eq!(ids(&taken), all[..80]);
    list.settle(taken).await.unwrap();
    assert_eq!(list.probe(vec![long.clone()]).await.unwrap()[0].first, None);
    list.offer(vec![(long.clone(), all[80..90].to_vec())])
        .await
        .unwrap();
    assert!(list.probe(vec![long]).await.unwrap()[0].first > Some(placed[0].last));
}
