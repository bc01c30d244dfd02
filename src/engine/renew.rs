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
use crate::store::{Attach, Attached, Attaching, SessionState};

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
    let sessions: Vec<Attached> = batch.iter().map(|live| live.attached()).collect();
    match core.store.renew(sessions.clone()).await {
        Ok(mut states) => {
            catch_up(&core, &sessions, &mut states).await;
            for (live, state) in batch.into_iter().zip(states) {
                live.feed(match state {
                    SessionState::Lapsed | SessionState::Behind => Event::RenewFailed,
                    state => refused(state).unwrap_or(Event::Renewed),
                });
            }
        }
        Err(error) => {
            warn!(%error, sessions = batch.len(), "sessions not renewed");
            core.doubts.store_failed();
            for live in batch {
                live.feed(Event::RenewFailed);
            }
        }
    }
}

/// Sessions whose move to this node the store has lost move here once more. It is for the number to say who has a
/// session: if a newer stream has begun meanwhile, that one keeps it. Else their workers would take themselves for
/// copies of one that goes on with their session, and leave it to nobody.
async fn catch_up(core: &Core, sessions: &[Attached], states: &mut [SessionState]) {
    let behind = sessions.iter().zip(states.iter_mut());
    let (moves, states): (Vec<Attach>, Vec<&mut SessionState>) = behind
        .filter(|(_, state)| **state == SessionState::Behind)
        .map(|(to, state)| {
            let node = core.node;
            (Attach { to: *to, node }, state)
        })
        .unzip();
    if moves.is_empty() {
        return;
    }
    core.doubts.store_failed();
    warn!(
        sessions = moves.len(),
        "the store has lost what it had committed: it knows older streams of these sessions"
    );
    match core.store.attach(moves).await {
        Ok(answers) => {
            for (state, answer) in states.into_iter().zip(answers) {
                *state = match answer {
                    Attaching::Resumed(_) => SessionState::Alive,
                    Attaching::Superseded => SessionState::Moved,
                    Attaching::Gone => SessionState::Dead,
                    Attaching::Later => SessionState::Lapsed,
                };
            }
        }
        // They are tried again.
        Err(error) => warn!(%error, "sessions not moved again"),
    }
}
