//! Counts what goes on in queues on this node, and tells the store of it every few seconds, so that any node knows the
//! rates. What a node that is killed had not told is missing from them; nothing else depends on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::debug;

use super::Core;
use super::tasks::Tasks;
use crate::error::Error;
use crate::job::limits::{BATCH_MAX, FLOWS_EVERY, FLOWS_MAX};
use crate::job::{Flow, QueueName, Step};

/// What went on since it was last told, by queue.
#[derive(Debug, Default)]
pub struct Flows(Mutex<HashMap<QueueName, Flow>>);

impl Flows {
    /// Counts a step of each job of a batch.
    pub fn count<'a>(&self, step: Step, queues: impl Iterator<Item = &'a QueueName>) {
        let mut flows = self.lock();
        for queue in queues {
            if let Some(flow) = flows.get_mut(queue) {
                flow.count(step);
            } else if flows.len() < FLOWS_MAX {
                flows.entry(queue.clone()).or_default().count(step);
            }
        }
    }

    fn take(&self) -> Vec<(QueueName, Flow)> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    /// It could not be told: with what has come since, the next time.
    fn put_back(&self, untold: Vec<(QueueName, Flow)>) {
        let mut flows = self.lock();
        for (queue, flow) in untold {
            if flows.contains_key(&queue) || flows.len() < FLOWS_MAX {
                flows.entry(queue).or_default().add(flow);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Flow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of them until it is time to stop, and then a last time.
pub async fn follow(tasks: Tasks, core: Arc<Core>) {
    let mut since = Instant::now();
    loop {
        let goes_on = tasks.sleep(FLOWS_EVERY).await;
        let until = Instant::now();
        let untold = tell(&core, since, core.flows.take()).await;
        match untold.is_empty() {
            true => since = until,
            // What is told later went on in all that time.
            false => core.flows.put_back(untold),
        }
        if !goes_on {
            return;
        }
    }
}

/// Returns what the store has not taken in.
async fn tell(
    core: &Core,
    since: Instant,
    mut flows: Vec<(QueueName, Flow)>,
) -> Vec<(QueueName, Flow)> {
    while !flows.is_empty() {
        let rest = flows.split_off(flows.len().min(BATCH_MAX));
        let told = core.store.note_flows(since.elapsed(), flows.clone()).await;
        if let Err(error) = told {
            debug!(%error, queues = flows.len() + rest.len(), "what went on in queues is not told");
            // Perhaps it was taken in: better not counted than twice.
            let is_lost = !matches!(error, Error::Unavailable { .. });
            let mut untold = if is_lost { Vec::new() } else { flows };
            untold.extend(rest);
            return untold;
        }
        flows = rest;
    }
    flows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says so by failing")]

    use super::*;
    use crate::clock::ShiftedClock;
    use crate::engine::{Engine, Options};
    use crate::job::NodeId;
    use crate::job::draft::{Draft, Fields};
    use crate::job::limits::RATES_LAG;
    use crate::ready::memory::MemoryReady;
    use crate::store::Store;
    use crate::store::sqlite::SqliteStore;
    use crate::telemetry::Metrics;

    #[test]
    fn what_could_not_be_told_is_told_with_the_next() {
        let flows = Flows::default();
        let queue = QueueName::parse("q").unwrap();
        flows.count(Step::Enqueued, [&queue, &queue].into_iter());
        flows.count(Step::Failed, [&queue].into_iter());
        let untold = flows.take();
        assert_eq!(flows.take(), []);
        flows.count(Step::Enqueued, [&queue].into_iter());
        flows.put_back(untold);
        let expected = Flow {
            enqueued: 3,
            failed: 1,
            ..Flow::default()
        };
        assert_eq!(flows.take(), [(queue, expected)]);
    }

    #[test]
    fn names_beyond_the_bound_are_not_counted() {
        let flows = Flows::default();
        for n in 0..FLOWS_MAX + 5 {
            let queue = QueueName::parse(&format!("q{n}")).unwrap();
            flows.count(Step::Started, [&queue].into_iter());
        }
        let untold = flows.take();
        assert_eq!(untold.len(), FLOWS_MAX);
        flows.count(
            Step::Started,
            [&QueueName::parse("new").unwrap()].into_iter(),
        );
        flows.put_back(untold);
        assert_eq!(flows.take().len(), FLOWS_MAX);
    }

    #[tokio::test]
    async fn a_node_that_stops_in_order_tells_what_it_has_counted() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ShiftedClock::default());
        let path = folder.path().join("db");
        let store = SqliteStore::open_with_clock(&path, clock.clone()).await;
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        store.migrate().await.unwrap();
        let engine = Engine::start(
            store.clone(),
            Arc::new(MemoryReady::new()),
            NodeId(uuid::Uuid::new_v4()),
            Arc::new(Metrics::new().unwrap()),
            Options::default(),
        );
        let fields = Fields {
            item: String::new(),
            spec: "",
        };
        let ids = engine.ids().await;
        for _ in 0..6 {
            let draft = Draft {
                queue: "q".into(),
                kind: "k".into(),
                ..Draft::default()
            };
            let job = draft.check(&fields, ids.fresh()).unwrap();
            engine.enqueue(job, str::to_owned).await.unwrap();
        }
        engine.stop().await;
        clock.advance(RATES_LAG + FLOWS_EVERY);
        let queue = QueueName::parse("q").unwrap();
        let seen = store.queue(queue).await.unwrap().unwrap();
        assert_eq!(seen.rates.enqueued, 0.1);
    }
}
