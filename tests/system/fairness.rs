//! Who gets the next slot when there is more to do than slots: queues beside each other, levels of one queue, and
//! workers of different sizes. By counts of what is handed out, never by time.

use std::cell::Cell;

use worker_sdk::proto::lease_jobs_request::Message as Request;
use worker_sdk::proto::lease_jobs_response::Message as Response;
use worker_sdk::proto::{self as pb, result::Outcome};
use worker_sdk::{Client, NewJob, Priority};

use crate::hand::{Hand, hello, leases};
use crate::stack::{Dev, Site, client};

/// Jobs of a long line.
const BACKLOG: usize = 10_000;
const BATCH: usize = 1_000;
const PAYLOAD: &str = "x";

/// A worker by hand that reports each job as soon as it has it, so that its slots are always free again.
struct Greedy {
    hand: Hand,
}

impl Greedy {
    async fn start(url: &str, queues: &[&str], slots: u32) -> Self {
        let queues = queues.iter().map(|queue| pb::QueueSubscription {
            queue: (*queue).to_owned(),
            max_in_flight: 0,
        });
        let hello = pb::Hello {
            queues: queues.collect(),
            // Longer than the test: it sends no heartbeats.
            lease_ttl: Some(prost_types::Duration {
                seconds: 300,
                nanos: 0,
            }),
            ..hello(slots)
        };
        let (hand, _) = Hand::welcome(url, hello).await;
        Self { hand }
    }

    /// The next frame of jobs, which are reported as done.
    async fn jobs(&mut self) -> Vec<pb::LeasedJob> {
        let frame = self.hand.until(|message| match message {
            Response::Jobs(frame) => Some(frame.jobs),
            _ => None,
        });
        let jobs = frame.await;
        let results = leases(&jobs).into_iter().map(|lease| pb::Result {
            lease: Some(lease),
            outcome: Some(Outcome::Success(pb::Success::default())),
            log: None,
        });
        let results = results.collect();
        let results = pb::Results { results };
        self.hand.send(Request::Results(results)).await;
        jobs
    }
}

async fn enqueue(client: &Client, queue: &str, priority: Priority, count: usize) {
    let mut left = count;
    while left > 0 {
        let now = left.min(BATCH);
        let job = || NewJob::new("echo", PAYLOAD).unwrap();
        let jobs = (0..now).map(|_| job().queue(queue).priority(priority));
        client.enqueue_batch(jobs).await.unwrap();
        left -= now;
    }
}

/// Waits until what was enqueued before can be handed out: this is the last in line, and is handed out itself.
async fn settled(url: &str, client: &Client) {
    for _ in 0..3 {
        enqueue(client, "last", Priority::Normal, 1).await;
        Greedy::start(url, &["last"], 1).await.jobs().await;
    }
}

/// Jobs of the long line that are handed out until the short one, which is behind it, is done.
async fn a_short_line_beside_a_long_one(url: String) {
    const SHORT: usize = 100;
    let client = client(&url);
    enqueue(&client, "long", Priority::Normal, BACKLOG).await;
    enqueue(&client, "short", Priority::Normal, SHORT).await;
    settled(&url, &client).await;
    let mut worker = Greedy::start(&url, &["long", "short"], 10).await;
    let (mut long, mut short) = (0, 0);
    while short < SHORT {
        for job in worker.jobs().await {
            match job.queue.as_str() {
                "short" => short += 1,
                _ => long += 1,
            }
        }
    }
    println!("{long} jobs of the long line until the short one was done");
    assert!(long <= BACKLOG / 10, "{long} of {BACKLOG}");
}

/// Of three lines of a queue, enqueued from the lowest to the highest level.
async fn the_highest_level_first(url: String) {
    const EACH: usize = 500;
    let client = client(&url);
    for level in [Priority::Low, Priority::Normal, Priority::High] {
        enqueue(&client, "q", level, EACH).await;
    }
    settled(&url, &client).await;
    let mut worker = Greedy::start(&url, &["q"], 10).await;
    let mut levels = Vec::new();
    while levels.len() < 3 * EACH {
        levels.extend(worker.jobs().await.iter().map(pb::LeasedJob::priority));
    }
    // Some of a lower level may go before its time: it is not starved for ever either.
    let share = |part: &[Priority], level| {
        let of = part.iter().filter(|one| **one == level).count();
        of as f64 / part.len() as f64
    };
    let (first, rest) = levels.split_at(EACH);
    let second = &rest[..EACH];
    let (high, normal) = (
        share(first, Priority::High),
        share(second, Priority::Normal),
    );
    println!("{high} of the first third are HIGH, {normal} of the second NORMAL");
    assert!(high >= 0.8, "{high}");
    assert!(normal >= 0.6, "{normal}");
}

/// The line of HIGH never ends while the LOW jobs wait.
async fn low_is_not_starved_by_high(url: String) {
    const LOW: usize = 20;
    let client = client(&url);
    enqueue(&client, "q", Priority::Low, LOW).await;
    enqueue(&client, "q", Priority::High, 2 * BATCH).await;
    settled(&url, &client).await;
    let mut worker = Greedy::start(&url, &["q"], 10).await;
    let (mut low, mut high, mut enqueued) = (0, 0, 2 * BATCH);
    while low < LOW {
        for job in worker.jobs().await {
            match job.priority() {
                Priority::Low => low += 1,
                _ => high += 1,
            }
        }
        // Always a full batch of them that waits.
        if enqueued - high <= BATCH {
            enqueue(&client, "q", Priority::High, BATCH).await;
            enqueued += BATCH;
        }
        assert!(
            high <= BACKLOG,
            "{low} of {LOW} LOW jobs beside {high} HIGH ones"
        );
    }
    println!("{high} HIGH jobs until {LOW} LOW ones were done");
}

/// Both take what they can while there is a backlog: each time that the one slot is free it is filled again, while the
/// large one gets two windows at most.
async fn one_slot_beside_a_thousand(url: String) {
    const SLOTS: u32 = 1_000;
    let client = client(&url);
    enqueue(&client, "q", Priority::Normal, 2 * BACKLOG).await;
    settled(&url, &client).await;
    let mut large = Greedy::start(&url, &["q"], SLOTS).await;
    let mut small = Greedy::start(&url, &["q"], 1).await;
    let (of_large, of_small) = (Cell::new(0), Cell::new(0));
    let work = async |worker: &mut Greedy, count: &Cell<usize>| {
        while of_large.get() + of_small.get() < 2 * BACKLOG {
            count.set(count.get() + worker.jobs().await.len());
        }
    };
    // The first one that sees the end of the backlog is enough: nothing comes to the other any more.
    tokio::select! {
        () = work(&mut large, &of_large) => {}
        () = work(&mut small, &of_small) => {}
    }
    let (of_large, of_small) = (of_large.get(), of_small.get());
    println!("{of_small} jobs by the one slot, {of_large} by the {SLOTS}");
    let least = of_large / (2 * SLOTS as usize);
    assert!(of_small >= least, "{of_small} beside {of_large}");
}

/// Over SQLite and the list in memory, then over Postgres and Redis.
async fn on_both(case: impl AsyncFn(String)) {
    let dev = Dev::start().await;
    case(dev.node.url()).await;
    let site = Site::new().await;
    case(site.node().await.url()).await;
}

#[tokio::test]
async fn a_backlog_does_not_starve_another_queue_of_the_same_worker() {
    on_both(a_short_line_beside_a_long_one).await;
}

#[tokio::test]
async fn high_goes_before_normal_and_normal_before_low() {
    on_both(the_highest_level_first).await;
}

#[tokio::test]
async fn low_is_not_starved_for_ever_by_a_steady_stream_of_high() {
    on_both(low_is_not_starved_by_high).await;
}

#[tokio::test]
async fn a_worker_of_one_slot_beside_one_of_a_thousand_gets_its_share() {
    on_both(one_slot_beside_a_thousand).await;
}
