//! `leasehold queues drain`: pauses a queue and waits until none of its jobs runs.

use std::time::Duration;

use tokio::time::Instant;
use worker_sdk::{Client, Queue};

use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;
use crate::cli::terminal::note;

/// How often it is looked what runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Every node knows of a pause within a second; what it has handed out by then counts soon after.
const PAUSED_AFTER: Duration = Duration::from_secs(2);

/// Pauses the queue; gives it as it is when nothing of it runs any more.
pub(super) async fn drain(
    client: &Client,
    name: &str,
    reason: &str,
    within: Duration,
) -> Result<Queue, Failure> {
    let paused = client.pause_queue(name, reason).await.map_err(failure_of)?;
    let (since, until) = (as_of(&paused), Instant::now() + within);
    note(format_args!(
        "queue {name} is paused; waiting for its running jobs"
    ));
    loop {
        let queue = client.queue(name).await.map_err(failure_of)?;
        let running = queue.stats.unwrap_or_default().running;
        if !queue.paused {
            let why = format!("queue {name} was resumed meanwhile, {running} jobs run");
            return Err(Failure::trouble(why));
        }
        if running == 0 && as_of(&queue).saturating_sub(since) >= PAUSED_AFTER {
            return Ok(queue);
        }
        if Instant::now() >= until {
            let why = format!("queue {name} stays paused, {running} jobs run after {within:?}");
            return Err(Failure::trouble(why));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// When its numbers were so, by the store's clock.
fn as_of(queue: &Queue) -> Duration {
    let time = queue.stats.and_then(|stats| stats.as_of_time);
    let time = time.unwrap_or_default();
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.nanos).unwrap_or(0))
}
