//! Ids for jobs whose callers sent none. They carry the store's time: it refuses those that are too far from its own,
//! and the clock of this machine may be hours off.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tracing::warn;
use uuid::Uuid;

use crate::clock::{Clock, SystemClock};
use crate::job::time::micros;
use crate::job::{JobId, Timestamp};
use crate::store::Store;

/// A machine's clock that is as near as this is right: what is left is the way to the store, and to follow it would have
/// ids go back and forth.
const NEAR: Duration = Duration::from_secs(1);
/// The store was not asked yet.
const UNKNOWN: i64 = i64::MIN;

/// How far the store's clock is ahead of this machine's, in microseconds.
#[derive(Debug)]
pub(super) struct Offset(AtomicI64);

impl Default for Offset {
    fn default() -> Self {
        Self(AtomicI64::new(UNKNOWN))
    }
}

impl Offset {
    /// Learns what the store's clock says now.
    pub(super) fn learn(&self, now: Timestamp) {
        let ahead = now.0.saturating_sub(SystemClock.now().0);
        let known = self.0.load(Ordering::Relaxed);
        let known = if known == UNKNOWN { 0 } else { known };
        let moved = ahead.saturating_sub(known).unsigned_abs() > micros(NEAR).unsigned_abs();
        if moved {
            warn!(
                seconds = ahead / 1_000_000,
                "the store's clock is ahead of this machine's, or behind it"
            );
        }
        let offset = if moved { ahead } else { known };
        self.0.store(offset, Ordering::Relaxed);
    }

    /// A maker of ids by the store's clock.
    pub(super) async fn ids(&self, store: &dyn Store) -> Ids {
        if self.0.load(Ordering::Relaxed) == UNKNOWN
            && let Ok(now) = store.now().await
        {
            self.learn(now);
        }
        match self.0.load(Ordering::Relaxed) {
            // The store is away, and so is what the id is for.
            UNKNOWN => Ids(0),
            ahead => Ids(ahead),
        }
    }
}

/// Makes ids, for a call.
#[derive(Debug, Clone, Copy)]
pub struct Ids(i64);

impl Ids {
    /// A new id of now.
    pub fn fresh(self) -> JobId {
        let id = Uuid::now_v7().as_u128();
        let millis = u64::try_from(id >> 80).unwrap_or(0);
        let moved = millis.saturating_add_signed(self.0 / 1_000);
        // The 48 bits of its time are moved, and what makes it unlike others of the same millisecond stays.
        let bits = u128::from(moved & 0xffff_ffff_ffff) << 80 | id & ((1 << 80) - 1);
        JobId::from_store(Uuid::from_u128(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_the_store_s_time() {
        let hour = 3_600_000_000;
        for ahead in [-hour, 0, hour] {
            let off = Ids(ahead).fresh().time().0 - Ids(0).fresh().time().0 - ahead;
            assert!(off.abs() < 60_000_000, "{off}");
        }
        let (first, second) = (Ids(hour).fresh(), Ids(hour).fresh());
        assert!(first < second && JobId::new(first.uuid()).is_some());
    }

    #[test]
    fn a_clock_that_is_nearly_right_is_left_alone() {
        let offset = Offset::default();
        let at = |us| Timestamp(SystemClock.now().0 + us);
        offset.learn(at(200_000));
        assert_eq!(offset.0.load(Ordering::Relaxed), 0);
        offset.learn(at(3_600_000_000));
        let hour = offset.0.load(Ordering::Relaxed);
        assert!(hour > 3_500_000_000);
        offset.learn(at(3_600_200_000));
        assert_eq!(offset.0.load(Ordering::Relaxed), hour);
    }
}
