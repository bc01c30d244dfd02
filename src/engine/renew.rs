//! Renewals of sessions: all heartbeats that arrive while one is being written go into the next statement.

use std::sync::Arc;

use tracing::warn;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::heal::refused;
use super::sessions::Live;
use super::tasks::Tasks;
use crate::job::limits::{BATCH_MAX, STREAMS_MAX};
use crate::session::Event;
use crate::store::SessionState;

/// Where heartbeats go.
#[derive(Debug, Clone)]
pub struct Renewals(Batcher<Arc<Live>>);

impl Renewals {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>) -> Self {
        // A session has one renewal under way at most, so this queue cannot fill.
        let bounds = Bounds {
            lanes: 1,
            waiting: 2 * STREAMS_MAX,
            items: BATCH_MAX,
            bytes: usize::MAX,
        };
        Self(Batcher::start(
            tasks,
            bounds,
            |_| 0,
            move |batch| flush(core.clone(), batch),
        ))
    }

    pub(super) fn renew(&self, live: Arc<Live>) {
        if let Err(live) = self.0.push(live) {
            warn!("too many renewals wait; the worker will try again");
            // Called under the session's lock, so the answer must come from outside of it.
            tokio::spawn(async move { live.feed(Event::RenewFailed) });
        }
    }
}

async fn flush(core: Arc<Core>, batch: Vec<Arc<Live>>) {
    let sessions = batch.iter().map(|live| live.attached()).collect();
    match core.store.renew(sessions).await {
        Ok(states) => {
            for (live, state) in batch.into_iter().zip(states) {
                live.feed(match state {
                    SessionState::Lapsed => Event::RenewFailed,
                    state => refused(state).unwrap_or(Event::Renewed),
                });
            }
        }
        Err(error) => {
            warn!(%error, sessions = batch.len(), "sessions not renewed");
            for live in batch {
                live.feed(Event::RenewFailed);
            }
        }
    }
}
