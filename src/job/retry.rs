//! How long a job waits before it is tried again.

use std::time::Duration;

use super::limits::{
    BACKOFF_FACTOR, BACKOFF_INITIAL, BACKOFF_JITTER, BACKOFF_MAX, MAX_ATTEMPTS_DEFAULT,
    RELEASE_FLOOR, RELEASE_FLOOR_MAX,
};
use super::queue::Backoff;

/// How often an attempt may fail, and the wait after each failure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Attempts that may fail or time out before the job is FAILED.
    pub max_attempts: u32,
    /// Wait after the first failure.
    pub initial: Duration,
    /// No wait is longer.
    pub max: Duration,
    /// Growth from one failure to the next.
    pub factor: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: MAX_ATTEMPTS_DEFAULT,
            initial: BACKOFF_INITIAL,
            max: BACKOFF_MAX,
            factor: BACKOFF_FACTOR,
        }
    }
}

impl RetryPolicy {
    /// The waits alone.
    pub fn waits(&self) -> Backoff {
        Backoff {
            initial: self.initial,
            max: self.max,
            factor: self.factor,
        }
    }

    /// The wait after the `failures`-th failure (from 1), for a `chance` in `0.0..1.0`:
    /// `min(max, initial * factor^(failures-1))`, less up to a tenth.
    ///
    /// Both databases compute the same in SQL, where the count of failures is; the conformance suite compares them
    /// with this.
    pub fn backoff(&self, failures: u32, chance: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.factor.powi(exponent);
        let capped = grown.min(self.max.as_secs_f64());
        Duration::from_secs_f64(capped * (1.0 - BACKOFF_JITTER * chance))
    }
}

/// The shortest delay of a release, when `before` releases in a row came before it: none for the first, then 1 s,
/// 2 s, 4 s up to 1 min. It keeps a job that nobody can run from going round as fast as the network allows.
pub fn release_floor(before: u32) -> Duration {
    match before {
        0 => Duration::ZERO,
        n => RELEASE_FLOOR
            .saturating_mul(1 << (n - 1).min(6))
            .min(RELEASE_FLOOR_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_from_15_s_to_a_day() {
        let policy = RetryPolicy::default();
        let secs = |n| policy.backoff(n, 0.0).as_secs();
        assert_eq!(
            [
                secs(1),
                secs(2),
                secs(3),
                secs(13),
                secs(14),
                secs(4_000_000_000)
            ],
            [15, 30, 60, 61_440, 86_400, 86_400]
        );
    }

    #[test]
    fn chance_takes_off_a_tenth_at_most() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.backoff(1, 1.0), Duration::from_millis(13_500));
    }

    #[test]
    fn the_floor_of_releases_grows_to_a_minute() {
        let secs: Vec<u64> = [0, 1, 2, 3, 6, 7, 8, 4_000_000_000]
            .map(|n| release_floor(n).as_secs())
            .into();
        assert_eq!(secs, [0, 1, 2, 4, 32, 60, 60, 60]);
    }
}
