//! How many bytes of callers' content the node holds at once: with a store that is slow, a bound on their number alone
//! would be one on nothing.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one permit stands for: the semaphore counts no further than a few hundred million.
const UNIT: usize = 1024;

/// A number of bytes that may be held.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Semaphore>);

/// Bytes that are held, until it is dropped.
#[derive(Debug)]
pub struct Share(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Budget {
    /// Of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT)))
    }

    /// Takes a share for so many bytes; `None`: too many are held already.
    pub fn take(&self, bytes: usize) -> Option<Share> {
        let units = u32::try_from(bytes.div_ceil(UNIT).max(1)).ok()?;
        self.0.clone().try_acquire_many_owned(units).ok().map(Share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_free_again_when_it_is_dropped() {
        let budget = Budget::new(10 * UNIT);
        let half = budget.take(5 * UNIT);
        assert!(half.is_some());
        assert!(budget.take(6 * UNIT).is_none());
        let rest: Vec<_> = (0..5).map(|_| budget.take(1)).collect();
        assert!(rest.iter().all(Option::is_some), "a byte takes a unit");
        assert!(budget.take(0).is_none());
        drop(half);
        assert!(budget.take(5 * UNIT).is_some());
    }
}
