//! How far lines were delivered, as far as this node knows without asking: from there its doorbell listens.
//!
//! A place is one that was delivered at some time, so what was added and not delivered is always behind it, and nothing
//! is missed. It may be too early, when another node took what came after: then the doorbell rings once for nothing, and
//! the place is asked for again.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{KNOWN_MAX, lock};
use crate::store::{EntryId, Epoch, Line};

/// For so long a place is used without asking again. Streams and bells that vanish without a trace are found out so.
const FRESH: Duration = Duration::from_secs(2);

/// The places of one epoch.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    epoch: Option<Epoch>,
    lines: HashMap<Line, Place>,
}

#[derive(Debug)]
struct Place {
    delivered: EntryId,
    asked_at: Instant,
    /// The first entry that the doorbell last rang for.
    rang: Option<EntryId>,
}

impl Places {
    /// The places of some lines. `None`: that of one of them is unknown, or was rung for and is where it was.
    pub fn of(&self, epoch: Epoch, lines: &[Line]) -> Option<Vec<EntryId>> {
        let state = lock(&self.0);
        if state.epoch != Some(epoch) {
            return None;
        }
        let known = |line| {
            let place: &Place = state.lines.get(line)?;
            let taken = place.rang.is_none_or(|rang| place.delivered >= rang);
            (taken && place.asked_at.elapsed() < FRESH).then_some(place.delivered)
        };
        lines.iter().map(known).collect()
    }

    /// What the server says.
    pub fn set(&self, epoch: Epoch, lines: &[Line], delivered: &[EntryId]) {
        let mut state = lock(&self.0);
        if state.epoch != Some(epoch) || state.lines.len() + lines.len() > KNOWN_MAX {
            state.lines.clear();
            state.epoch = Some(epoch);
        }
        let asked_at = Instant::now();
        for (line, delivered) in lines.iter().zip(delivered) {
            let place = Place {
                delivered: *delivered,
                asked_at,
                rang: None,
            };
            state.lines.insert(line.clone(), place);
        }
    }

    /// The doorbell rang for an entry.
    pub fn rang(&self, epoch: Epoch, line: &Line, first: EntryId) {
        self.change(epoch, line, |place| place.rang = Some(first));
    }

    /// An entry was delivered to this node.
    pub fn took(&self, epoch: Epoch, line: &Line, last: EntryId) {
        self.change(epoch, line, |place| {
            place.delivered = place.delivered.max(last);
        });
    }

    fn change(&self, epoch: Epoch, line: &Line, change: impl FnOnce(&mut Place)) {
        let mut state = lock(&self.0);
        if state.epoch == Some(epoch)
            && let Some(place) = state.lines.get_mut(line)
        {
            change(place);
        }
    }
}
