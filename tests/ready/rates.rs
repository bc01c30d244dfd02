//! How fast it is: figures to read, and a bound that only a broken build misses.

use std::time::Instant;

use crate::world::{World, emails, jobs, want};

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
