//! Renewals of sessions: all heartbeats that arrive while one is being written go into the next statement.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::Core;
use super::batch::{Batcher, Bounds};
use super::heal::refused;
use super::sessions::Live;
use super::tasks::Tasks;
use crate::job::limits::{BATCH_MAX, STREAMS_MAX};
use crate::session::Event;
use crate::store::{Attach, Attaching, SessionState};

/// Where heartbeats go.
#[derive(Debug, Clone)]
pub struct Renewals(Batcher<Arc<Live>>);

impl Renewals {
    pub(super) fn start(tasks: &Tasks, core: Arc<Core>) -> Self {
        // A session has one renewal under way at most, so this queue cannot fill.
        let bounds = Bounds {
            lanes: 1,
            beside: 1,
            linger: Duration::ZERO,
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
            let (behind, others): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .zip(states)
                .partition(|(_, state)| *state == SessionState::Behind);
            for (live, state) in others {
                tell(&live, state);
            }
            if !behind.is_empty() {
                // It may wait for locks, and the heartbeats of all others must not. It ends by itself, as its call does.
                let behind = behind.into_iter().map(|(live, _)| live).collect();
                tokio::spawn(catch_up(core, behind));
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

fn tell(live: &Arc<Live>, state: SessionState) {
    live.feed(match state {
        SessionState::Lapsed | SessionState::Behind => Event::RenewFailed,
        state => refused(state).unwrap_or(Event::Renewed),
    });
}

/// Sessions whose move to this node the store has lost move here once more. It is for the number to say who has a
/// session: if a newer stream has begun meanwhile, that one keeps it. Else their workers would take themselves for
/// copies of one that goes on with their session, and leave it to nobody.
async fn catch_up(core: Arc<Core>, behind: Vec<Arc<Live>>) {
    core.doubts.store_failed();
    warn!(
        sessions = behind.len(),
        "the store has lost what it had committed: it knows older streams of these sessions"
    );
    let move_here = |live: &Arc<Live>| Attach {
        to: live.attached(),
        node: core.node,
    };
    let answers = match core
        .store
        .attach(behind.iter().map(move_here).collect())
        .await
    {
        Ok(answers) => answers,
        Err(error) => {
            warn!(%error, "sessions not moved again");
            // They are tried again.
            return behind
                .iter()
                .for_each(|live| tell(live, SessionState::Lapsed));
        }
    };
    for (live, answer) in behind.iter().zip(answers) {
        tell(
            live,
            match answer {
                Attaching::Resumed(_) => SessionState::Alive,
                // By a newer stream, or by this one: a try without an answer may have come to pass. The next renewal
                // tells which.
                Attaching::Superseded | Attaching::Later => SessionState::Lapsed,
                Attaching::Gone => SessionState::Dead,
            },
        );
    }
}
