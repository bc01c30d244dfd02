//! Tells the ready-list of jobs that became QUEUED, and the store where they stand there. Only speed depends on it:
//! what is not offered now, reconcile offers later.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::tasks::Tasks;
use crate::failpoint;
use crate::store::{Offer, Segment};

/// How long a place may wait for others to be marked with it: well below the age at which a segment that has none is
/// offered again.
const MARK_WITHIN: Duration = Duration::from_millis(100);

/// Where new segments go.
#[derive(Debug, Clone)]
pub struct Offers {
    core: Arc<Core>,
    batcher: Batcher<Segment>,
}

impl Offers {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>) -> Self {
        let marks = Bounds {
            lanes: 1,
            beside: 1,
            linger: MARK_WITHIN,
            waiting: 10_000,
            items: 1_000,
            bytes: usize::MAX,
        };
        let marker = core.clone();
        let marks = Batcher::start(
            tasks,
            marks,
            |_| 0,
            move |batch| mark(marker.clone(), batch),
        );
        let bounds = Bounds {
            lanes: 2,
            beside: 1,
            linger: Duration::ZERO,
            waiting: 1_000,
            items: 100,
            bytes: 4_000,
        };
        let offerer = core.clone();
        let flush = move |batch| offer_batch(offerer.clone(), marks.clone(), batch);
        Self {
            core,
            batcher: Batcher::start(tasks, bounds, |segment: &Segment| segment.jobs.len(), flush),
        }
    }

    /// Passes new segments on: to free slots of this node's own if their lines are known to be empty, else to the
    /// ready-list.
    pub fn offer(&self, segments: Vec<Segment>) {
        let mut rest = Vec::new();
        for segment in segments {
            match self.core.hungry.feed(segment) {
                Ok(()) => self.core.wake.notify_one(),
                Err(segment) => rest.push(segment),
            }
        }
        self.pass_on(rest);
    }

    /// Passes segments on to the ready-list. Without it, or when too many wait, they are left to direct claims and
    /// reconcile.
    pub fn pass_on(&self, segments: Vec<Segment>) {
        let away = self.core.ready_is_degraded();
        for segment in segments {
            if away || self.batcher.push(segment).is_err() {
                self.core.wake.notify_one();
            }
        }
    }
}

/// Offers segments now and returns whether the ready-list took them.
pub async fn offer_now(core: &Core, segments: Vec<Segment>) -> Option<Vec<Offer>> {
    let lines = segments
        .iter()
        .map(|s| (s.line.clone(), s.jobs.clone()))
        .collect();
    match core.ready.offer(lines).await {
        Ok(placed) => {
            failpoint::reached("offer-unmarked");
            core.ready_took(true);
            let offers = segments.iter().zip(placed);
            Some(
                offers
                    .map(|(s, p)| Offer {
                        segment: s.id,
                        epoch: p.epoch,
                        last: p.last,
                    })
                    .collect(),
            )
        }
        Err(error) => {
            debug!(%error, segments = segments.len(), "segments not offered");
            core.ready_took(false);
            None
        }
    }
}

async fn offer_batch(core: Arc<Core>, marks: Batcher<Offer>, segments: Vec<Segment>) {
    match offer_now(&core, segments).await {
        // A mark that is lost only makes reconcile offer a segment twice, and guards drop the copies.
        Some(offers) => {
            for offer in offers {
                let _ = marks.push(offer);
            }
        }
        None => core.wake.notify_one(),
    }
}

async fn mark(core: Arc<Core>, offers: Vec<Offer>) {
    if let Err(error) = core.store.offered(offers).await {
        debug!(%error, "offers not marked");
    }
}
