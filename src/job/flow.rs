//! What goes on in a queue: steps of its jobs, counted, and as so many a second.

use super::attempt::AttemptOutcome;
use super::limits::RATES_OVER;

/// A step of a job that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It was accepted, and is new.
    Enqueued,
    /// An attempt was handed out.
    Started,
    /// It succeeded.
    Succeeded,
    /// An attempt failed, or took too long.
    Failed,
}

impl Step {
    /// What the end of an attempt is, if that is counted.
    pub fn of(outcome: AttemptOutcome) -> Option<Self> {
        match outcome {
            AttemptOutcome::Succeeded => Some(Self::Succeeded),
            AttemptOutcome::Failed | AttemptOutcome::TimedOut => Some(Self::Failed),
            AttemptOutcome::LeaseLost
            | AttemptOutcome::Forgotten
            | AttemptOutcome::Released
            | AttemptOutcome::Cancelled => None,
        }
    }
}

/// How often each step was taken in one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// Jobs that were accepted.
    pub enqueued: u64,
    /// Attempts that were handed out.
    pub started: u64,
    /// Jobs that succeeded.
    pub succeeded: u64,
    /// Attempts that failed, or took too long.
    pub failed: u64,
}

impl Flow {
    /// One more.
    pub fn count(&mut self, step: Step) {
        match step {
            Step::Enqueued => self.enqueued += 1,
            Step::Started => self.started += 1,
            Step::Succeeded => self.succeeded += 1,
            Step::Failed => self.failed += 1,
        }
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.enqueued += other.enqueued;
        self.started += other.started;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
    }
}

/// The same per second, over [`RATES_OVER`], to a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Jobs that were accepted.
    pub enqueued: f64,
    /// Attempts that were handed out.
    pub started: f64,
    /// Jobs that succeeded.
    pub succeeded: f64,
    /// Attempts that failed, or took too long.
    pub failed: f64,
}

impl Rates {
    /// Of how often each step was taken in [`RATES_OVER`], in the order of [`Flow`]'s fields.
    pub fn of(counts: [f64; 4]) -> Self {
        let [enqueued, started, succeeded, failed] =
            counts.map(|count| (count / RATES_OVER.as_secs_f64() * 1_000.0).round() / 1_000.0);
        Self {
            enqueued,
            started,
            succeeded,
            failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_per_second_and_to_a_thousandth() {
        let rates = Rates::of([60.0, 1.0, 0.01, 6_000_000.0]);
        let expected = Rates {
            enqueued: 1.0,
            started: 0.017,
            succeeded: 0.0,
            failed: 100_000.0,
        };
        assert_eq!(rates, expected);
    }
}
