//! Who waits for jobs while there are none: the lines that are hungry, and the doorbell that ends it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

use super::Core;
use super::tasks::Tasks;
use crate::store::Line;

/// Longest wait for the doorbell; a missed ring costs no more.
const DOORBELL_WAIT: Duration = Duration::from_secs(2);

/// The lines with free slots that nothing was found for: only for these is the doorbell of any use. It would ring at
/// once, and for nothing, for a line whose sessions are full.
#[derive(Debug, Default)]
pub struct Hungry {
    lines: Mutex<Vec<Line>>,
    changed: Notify,
}

impl Hungry {
    /// Says which lines they are now.
    pub fn set(&self, lines: Vec<Line>) {
        let mut now = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != lines {
            *now = lines;
            self.changed.notify_one();
        }
    }

    fn get(&self) -> Vec<Line> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Waits at the ready-list's door for as long as there is hunger, and for nudges always.
pub async fn doorbell(tasks: Tasks, core: Arc<Core>, hungry: Arc<Hungry>) {
    while !tasks.stopping().is_cancelled() {
        let lines = hungry.get();
        // Cancel safe: a doorbell takes nothing, and the other branches only wait.
        let ring = tokio::select! {
            () = tasks.stopping().cancelled() => return,
            () = hungry.changed.notified() => continue,
            ring = core.ready.doorbell(lines, DOORBELL_WAIT) => ring,
        };
        match ring {
            Ok(ring) => {
                if ring.work {
                    // Quiet until the loop has looked and found that it is still hungry.
                    hungry.set(Vec::new());
                    core.wake.notify_one();
                }
                if ring.nudge {
                    core.nudged.notify_one();
                }
            }
            Err(error) => {
                debug!(%error, "no doorbell");
                core.ready_failed();
                if !tasks
                    .sleep(Duration::from_millis(500 + rand::random_range(0..500)))
                    .await
                {
                    return;
                }
            }
        }
    }
}
