//! Tells the store of the sessions whose streams this node has, for people on any node: what they take, and how much of it
//! is free. What a session takes is told as soon as it is seen to have changed; its free slots, which change with every
//! job, every few seconds. Of idle sessions nothing is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::Core;
use super::tasks::Tasks;
use crate::job::SessionId;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_MAX};
use crate::store::{Attached, QueueSlots, SessionReport, SessionSlots};

/// How often the sessions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often free slots are told of one session.
const SLOTS_EVERY: Duration = Duration::from_secs(2);

/// What was told of a session.
struct Told {
    session: Attached,
    slots: SessionSlots,
    at: Instant,
}

impl Told {
    /// Whether it is time to tell of it again.
    fn is_due(&self, slots: &SessionSlots, now: Instant) -> bool {
        self.slots != *slots && (takes(&self.slots) != takes(slots) || now - self.at >= SLOTS_EVERY)
    }
}

/// What it takes, whatever of it is free.
fn takes(slots: &SessionSlots) -> SessionSlots {
    let of = |of: &QueueSlots| QueueSlots {
        free: 0,
        ..of.clone()
    };
    SessionSlots {
        queues: slots.queues.iter().map(of).collect(),
        in_flight: 0,
        ..*slots
    }
}

/// Tells of them until it is time to stop.
pub async fn follow(tasks: Tasks, core: Arc<Core>, node: String) {
    let mut told = HashMap::new();
    while tasks.sleep(LOOK_EVERY).await {
        look(&core, &node, &mut told).await;
    }
}

async fn look(core: &Core, node: &str, told: &mut HashMap<SessionId, Told>) {
    let now = Instant::now();
    let mut kept = HashMap::with_capacity(told.len());
    let mut reports = Vec::new();
    for live in core.sessions.all() {
        let (session, slots) = (live.attached(), live.slots());
        let before = told.remove(&session.session);
        match before.filter(|before| before.session == session) {
            Some(before) if !before.is_due(&slots, now) => {
                kept.insert(session.session, before);
            }
            before => reports.push(SessionReport {
                session,
                profile: before.is_none().then(|| live.profile(node)),
                slots,
            }),
        }
    }
    // What is not written is forgotten here, and told as if it were new.
    *told = kept;
    for batch in batches(reports) {
        match core.store.describe(batch.clone()).await {
            Ok(written) => {
                let written = batch.into_iter().zip(written).filter(|(_, is)| *is);
                told.extend(written.map(|(SessionReport { session, slots, .. }, _)| {
                    let at = now;
                    (session.session, Told { session, slots, at })
                }));
            }
            Err(error) => return debug!(%error, "sessions not told of"),
        }
    }
}

/// As many in one call as are bounded in number and size.
fn batches(reports: Vec<SessionReport>) -> Vec<Vec<SessionReport>> {
    let mut batches: Vec<Vec<SessionReport>> = Vec::new();
    let mut bytes = 0;
    for report in reports {
        bytes += size(&report);
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_MAX && bytes <= BATCH_BYTES_MAX => {
                batch.push(report)
            }
            _ => {
                bytes = size(&report);
                batches.push(vec![report]);
            }
        }
    }
    batches
}

/// About how many bytes it takes.
fn size(report: &SessionReport) -> usize {
    let profile = report.profile.as_ref().map_or(0, |profile| {
        let kinds: usize = profile.kinds.iter().map(|kind| kind.len() + 4).sum();
        let labels = profile.labels.iter();
        kinds + labels.map(|(k, v)| k.len() + v.len() + 8).sum::<usize>()
    });
    let queues = report.slots.queues.iter();
    200 + profile + queues.map(|of| of.queue.as_str().len() + 20).sum::<usize>()
}
