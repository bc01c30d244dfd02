//! Who waits for jobs while there are none: the lines that are hungry, and the doorbell that ends it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

use super::Core;
use super::tasks::Tasks;
use crate::store::Line;

/// Longest wait for the doorbell; a missed ring costs no more.
const DOORBELL_WAIT: Duration = Duration::from_secs(2);

/// After a ring, how long until the doorbell listens again at the latest: mostly the loop has looked by then, and it is
/// known for which lines.
const LOOKED_WITHIN: Duration = Duration::from_millis(50);

/// The lines with free slots that nothing was found for: only for these is the doorbell of any use. It would ring at
/// once, and for nothing, for a line whose sessions are full.
#[derive(Debug, Default)]
pub struct Hungry {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    /// The doorbell rang, and waits to be told what is wanted now.
    rang: bool,
}

impl Hungry {
    /// Says which lines they are now.
    pub fn set(&self, lines: Vec<Line>) {
        let mut state = self.lock();
        if state.lines != lines || state.rang {
            *state = State { lines, rang: false };
            self.changed.notify_one();
        }
    }

    /// Whether these lines are listened for, and nothing was heard: then there is nothing in them.
    pub fn is_for(&self, lines: &[Line]) -> bool {
        let state = self.lock();
        !state.rang && state.lines == lines
    }

    fn get(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// Something was added: quiet until the loop has looked and found that it is still hungry.
    fn rang(&self) {
        *self.lock() = State {
            lines: Vec::new(),
            rang: true,
        };
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
                if ring.nudge {
                    core.nudged.notify_one();
                }
                if ring.work {
                    hungry.rang();
                    core.wake.notify_one();
                    // Cancel safe: all of these only wait. To listen for nudges alone in between would cost a read that
                    // is given up at once.
                    tokio::select! {
                        () = tasks.stopping().cancelled() => return,
                        () = hungry.changed.notified() => {}
                        () = tokio::time::sleep(LOOKED_WITHIN) => {}
                    }
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
