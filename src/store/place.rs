//! Who is before a job in its queue, counted through the segments of the backlog, a bounded step at a time. What a step
//! is to read is said here, and made of it what was read; the reading is the stores'.

use super::Ahead;
use crate::job::{JobId, Priority};

/// Segments that one step looks at.
const STEP_SEGMENTS: usize = 200;
/// Jobs that they may name together, the last segment aside.
const STEP_JOBS: usize = 2_000;
/// Jobs that are looked at for each one that may be counted: segments also name jobs that have moved on.
const LOOKED_AT: usize = 4;
/// Steps of one count: single jobs in a segment each take the most.
const STEPS_MAX: usize = 100;

/// A count that is under way.
#[derive(Debug)]
pub(super) struct Walk {
    job: JobId,
    /// The levels that are still to be walked, the job's own at last; the next one is at the end.
    levels: Vec<Priority>,
    after: i64,
    limit: usize,
    ahead: usize,
    looked_at: usize,
    steps: usize,
}

/// What the next step is to read: segments of the queue at this level behind this one, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) priority: Priority,
    pub(super) after: i64,
    /// At most so many segments.
    pub(super) segments: usize,
    /// None after those that name so many jobs together.
    pub(super) jobs: usize,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) segment: i64,
    /// Jobs that it names.
    pub(super) named: usize,
    /// Those of them that are QUEUED by it, in the order of hand-out.
    pub(super) waiting: Vec<JobId>,
}

impl Walk {
    /// Counts up to about `limit` jobs.
    pub(super) fn new(job: JobId, priority: Priority, limit: usize) -> Self {
        let levels = Priority::ALL.into_iter().rev();
        Self {
            job,
            levels: levels.filter(|level| *level >= priority).collect(),
            after: 0,
            limit,
            ahead: 0,
            looked_at: 0,
            steps: 0,
        }
    }

    /// What to read next; `None`: the count is done.
    pub(super) fn next(&self) -> Option<Step> {
        let priority = *self.levels.last()?;
        (!self.is_at_its_bound()).then_some(Step {
            priority,
            after: self.after,
            segments: STEP_SEGMENTS,
            jobs: STEP_JOBS,
        })
    }

    /// Takes what was read.
    pub(super) fn take(&mut self, seen: &[Seen]) {
        self.steps += 1;
        let Some(last) = seen.last() else {
            self.levels.pop();
            self.after = 0;
            return;
        };
        self.after = last.segment;
        for segment in seen {
            self.looked_at += segment.named;
            match segment.waiting.iter().position(|job| *job == self.job) {
                Some(place) => {
                    self.ahead += place;
                    self.levels.clear();
                    return;
                }
                None => self.ahead += segment.waiting.len(),
            }
        }
    }

    /// What was counted.
    pub(super) fn ahead(&self) -> Ahead {
        Ahead {
            jobs: self.ahead,
            more: !self.levels.is_empty(),
        }
    }

    fn is_at_its_bound(&self) -> bool {
        self.ahead >= self.limit
            || self.looked_at >= LOOKED_AT * self.limit
            || self.steps >= STEPS_MAX
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> JobId {
        JobId::from_store(Uuid::from_u128(n))
    }

    fn seen(segment: i64, waiting: &[u128]) -> Seen {
        Seen {
            segment,
            named: 10,
            waiting: waiting.iter().map(|n| id(*n)).collect(),
        }
    }

    #[test]
    fn the_levels_above_come_first_and_the_job_s_own_ends_it() {
        let mut walk = Walk::new(id(5), Priority::Normal, 100);
        let at = |walk: &Walk| walk.next().map(|step| (step.priority, step.after));
        assert_eq!(at(&walk), Some((Priority::High, 0)));
        walk.take(&[seen(3, &[1, 2])]);
        assert_eq!(at(&walk), Some((Priority::High, 3)));
        walk.take(&[]);
        assert_eq!(at(&walk), Some((Priority::Normal, 0)));
        walk.take(&[seen(1, &[]), seen(2, &[3, 4, 5, 6]), seen(4, &[7])]);
        assert_eq!(at(&walk), None);
        let four = Ahead {
            jobs: 4,
            more: false,
        };
        assert_eq!(walk.ahead(), four);
    }

    #[test]
    fn a_long_line_is_counted_up_to_its_bound() {
        for (waiting, jobs) in [(&[1_u128, 2][..], 4), (&[], 0)] {
            let mut walk = Walk::new(id(9), Priority::High, 3);
            let mut segment = 0;
            while walk.next().is_some() {
                segment += 1;
                walk.take(&[seen(segment, waiting)]);
            }
            assert_eq!(walk.ahead(), Ahead { jobs, more: true });
            assert!(segment <= 2);
        }
    }
}
