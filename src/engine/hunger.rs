//! Who waits for jobs while there are none: the lines that are hungry, the doorbell that ends it, and what this node feeds
//! them itself.
//!
//! A job that becomes QUEUED here, for a line in which nothing waits and whose sessions here have room, need not go through
//! the ready-list to come back: its segment waits at this table until the loop that hands out has seen it, microseconds
//! later. Who has no slot for it then passes it on to the ready-list, and a node that dies before that leaves a segment
//! that was never offered, which reconcile finds. It is no way round the line, as nothing is in it; and it is open only
//! while at most half of the slots here are taken, so that the workers of other nodes get their share of the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::debug;

use super::Core;
use super::tasks::Tasks;
use crate::job::QueueName;
use crate::store::{Line, Segment};

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
    /// How many jobs of each queue may be fed.
    room: BTreeMap<QueueName, usize>,
    /// What was.
    fed: Vec<Segment>,
    /// The doorbell rang, and waits to be told what is wanted now.
    rang: bool,
}

impl Hungry {
    /// Says which lines they are now, and for how many jobs of each queue there is room. Returns what was fed meanwhile.
    pub fn set(&self, lines: Vec<Line>, room: BTreeMap<QueueName, usize>) -> Vec<Segment> {
        let mut state = self.lock();
        let changed = state.lines != lines || state.rang;
        let before = std::mem::replace(
            &mut *state,
            State {
                lines,
                room,
                fed: Vec::new(),
                rang: false,
            },
        );
        if changed {
            self.changed.notify_one();
        }
        before.fed
    }

    /// What was fed.
    pub fn fed(&self) -> Vec<Segment> {
        std::mem::take(&mut self.lock().fed)
    }

    /// Feeds a new segment to a hungry line; gives it back when that is not hungry, or has not room for all of it.
    pub fn feed(&self, segment: Segment) -> Result<(), Segment> {
        let mut state = self.lock();
        let is_hungry = state.lines.contains(&segment.line);
        match state.room.get_mut(&segment.line.queue) {
            Some(room) if is_hungry && *room >= segment.jobs.len() => {
                *room -= segment.jobs.len();
                state.fed.push(segment);
                Ok(())
            }
            _ => Err(segment),
        }
    }

    /// Whether these lines are listened for, and nothing was heard: then there is nothing in them. If so, says how much
    /// room there is now.
    pub fn is_for(
        &self,
        lines: &[Line],
        room: impl FnOnce() -> BTreeMap<QueueName, usize>,
    ) -> bool {
        let mut state = self.lock();
        let is_so = !state.rang && state.lines == lines;
        if is_so && state.fed.is_empty() {
            state.room = room();
        }
        is_so
    }

    fn get(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// Something was added: quiet until the loop has looked and found that it is still hungry.
    fn rang(&self) {
        let mut state = self.lock();
        state.lines.clear();
        state.room.clear();
        state.rang = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits at the ready-list's door for as long as there is hunger, and for nudges always.
pub async fn doorbell(tasks: Tasks, core: Arc<Core>) {
    let hungry = &core.hungry;
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
                    core.queues.nudge();
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::job::{JobId, Priority};

    fn line(queue: &str) -> Line {
        Line {
            queue: QueueName::from_store(queue),
            priority: Priority::Normal,
        }
    }

    fn segment(id: i64, queue: &str, jobs: usize) -> Segment {
        Segment {
            id,
            line: line(queue),
            jobs: vec![JobId::from_store(Uuid::nil()); jobs],
        }
    }

    fn room(jobs: usize) -> BTreeMap<QueueName, usize> {
        BTreeMap::from([(line("q").queue, jobs)])
    }

    #[test]
    fn a_hungry_line_is_fed_as_many_jobs_as_there_is_room_for() {
        let hungry = Hungry::default();
        assert_eq!(hungry.feed(segment(1, "q", 1)), Err(segment(1, "q", 1)));
        hungry.set(vec![line("q")], room(3));
        assert_eq!(
            hungry.feed(segment(2, "other", 1)),
            Err(segment(2, "other", 1))
        );
        assert_eq!(hungry.feed(segment(3, "q", 2)), Ok(()));
        assert_eq!(hungry.feed(segment(4, "q", 2)), Err(segment(4, "q", 2)));
        assert_eq!(hungry.feed(segment(5, "q", 1)), Ok(()));
        assert_eq!(hungry.fed(), [segment(3, "q", 2), segment(5, "q", 1)]);
        assert!(hungry.is_for(&[line("q")], || room(1)));
        assert_eq!(hungry.feed(segment(6, "q", 1)), Ok(()));
    }

    #[test]
    fn what_was_fed_is_not_lost_when_the_doorbell_rings_or_the_hunger_ends() {
        let hungry = Hungry::default();
        hungry.set(vec![line("q")], room(9));
        assert_eq!(hungry.feed(segment(1, "q", 1)), Ok(()));
        hungry.rang();
        assert!(!hungry.is_for(&[line("q")], || room(9)));
        assert_eq!(hungry.feed(segment(2, "q", 1)), Err(segment(2, "q", 1)));
        assert_eq!(
            hungry.set(Vec::new(), BTreeMap::new()),
            [segment(1, "q", 1)]
        );
        assert_eq!(hungry.feed(segment(3, "q", 1)), Err(segment(3, "q", 1)));
    }
}
