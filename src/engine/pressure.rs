//! How many jobs may wait to be accepted: about as many as the store accepts within [`AIM`], so that whoever is accepted
//! was not kept waiting for long, and the rest is told at once to come again.
//!
//! How fast the store is shows in what it has just done: while the oldest job of a flush waited, all that were before it were
//! answered, and its whole flush. That is about right too while two flushes are under way at once, and a flush is never
//! larger than what may wait, so that a slow store's are small without a bound of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a job should wait for its answer when more come than the store takes.
const AIM: Duration = Duration::from_millis(300);
/// While jobs wait no longer, the store keeps up.
const KEEPS_UP: Duration = Duration::from_millis(150);
/// However slow the store seems, so many may wait: one stall is no reason to refuse a few callers.
const LEAST: usize = 256;
/// However fast it is; callers' bytes are bounded beside it.
const MOST: usize = 100_000;
/// Before anything is known of the store. More than some callers with a full batch each; if it is too much, the first
/// answer that was long in coming corrects it.
const FIRST: usize = 10_000;

/// The jobs that were let in and are not answered yet.
#[derive(Debug)]
pub struct Pressure {
    open: AtomicUsize,
    limit: AtomicUsize,
}

/// Some jobs that were let in together. They count until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    pressure: Arc<Pressure>,
    jobs: usize,
    /// How many were open when they came.
    before: usize,
    since: Instant,
}

impl Pressure {
    /// With nobody let in.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(FIRST),
        })
    }

    /// Lets jobs in, all of them if there is room for one: a batch may be larger than what may wait. `None`: too many are
    /// open already.
    pub fn admit(self: &Arc<Self>, jobs: usize) -> Option<Admitted> {
        let limit = self.limit.load(Ordering::Relaxed);
        let before = self
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < limit).then(|| open.saturating_add(jobs))
            })
            .ok()?;
        Some(Admitted {
            pressure: self.clone(),
            jobs,
            before,
            since: Instant::now(),
        })
    }
}

impl Admitted {
    /// Learns from the oldest of `flushed` jobs that are answered together: this one.
    pub fn answered(&self, flushed: usize) {
        let waited = self.since.elapsed();
        let next = |limit| Some(next_limit(limit, self.before, flushed, waited));
        // It always has a next one.
        let _ = self
            .pressure
            .limit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.pressure.open.fetch_sub(self.jobs, Ordering::Relaxed);
    }
}

/// The limit after a flush of so many jobs, the oldest of which had so many `before` it and `waited` so long.
fn next_limit(limit: usize, before: usize, flushed: usize, waited: Duration) -> usize {
    if waited <= KEEPS_UP {
        return limit.saturating_add(flushed).min(MOST);
    }
    let answered = before.saturating_add(flushed) as u128;
    let within_aim = answered * AIM.as_micros() / waited.as_micros();
    usize::try_from(within_aim)
        .unwrap_or(MOST)
        .clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says so by failing")]

    use std::collections::VecDeque;

    use super::*;

    /// One flush takes up to so many.
    const FLUSH: usize = 1_000;
    /// Milliseconds that a flush takes beside its jobs.
    const EACH_FLUSH: f64 = 2.0;

    /// A store of a fixed rate, one flush at a time, whose jobs come at another one. Time is in milliseconds.
    struct Server {
        now: f64,
        a_ms: f64,
        /// When each came, and how many were before it.
        waiting: VecDeque<(f64, usize)>,
        limit: usize,
        /// What became of those that came.
        waits: Vec<f64>,
        refused: usize,
    }

    impl Server {
        fn of_rate(jobs_a_second: f64) -> Self {
            Self {
                now: 0.0,
                a_ms: jobs_a_second / 1_000.0,
                waiting: VecDeque::new(),
                limit: FIRST,
                waits: Vec::new(),
                refused: 0,
            }
        }

        /// One flush, and what comes while it is under way.
        fn flush(&mut self, came_a_second: f64, stall: f64) {
            let batch: Vec<_> = self
                .waiting
                .drain(..self.waiting.len().min(FLUSH))
                .collect();
            let took = EACH_FLUSH + batch.len() as f64 / self.a_ms + stall;
            let come = (took * came_a_second / 1_000.0).round() as usize;
            for n in 0..come {
                let open = batch.len() + self.waiting.len();
                match open < self.limit {
                    true => {
                        let at = self.now + took * n as f64 / come as f64;
                        self.waiting.push_back((at, open));
                    }
                    false => self.refused += 1,
                }
            }
            self.now += took;
            self.waits
                .extend(batch.iter().map(|(came, _)| self.now - came));
            if let Some((came, before)) = batch.first() {
                let waited = Duration::from_secs_f64((self.now - came) / 1_000.0);
                self.limit = next_limit(self.limit, *before, batch.len(), waited);
            }
        }

        fn run(&mut self, ms: f64, came_a_second: f64) {
            let until = self.now + ms;
            while self.now < until {
                self.flush(came_a_second, 0.0);
            }
        }

        /// The wait that so many of a hundred did not exceed.
        fn percentile(&self, of_hundred: usize) -> f64 {
            let mut waits = self.waits.clone();
            waits.sort_by(f64::total_cmp);
            waits[waits.len() * of_hundred / 100]
        }
    }

    #[test]
    fn three_times_the_load_comes_to_rest_near_the_aim() {
        for rate in [2_000.0, 10_000.0, 50_000.0] {
            let mut server = Server::of_rate(rate);
            server.run(3_000.0, 3.0 * rate);
            let worst = server.percentile(99);
            assert!(worst < 1_000.0, "at first, {rate}/s: {worst} ms");
            server.waits.clear();
            server.run(10_000.0, 3.0 * rate);
            let (half, worst) = (server.percentile(50), server.percentile(99));
            println!("{rate}/s: p50 {half:.0} ms, p99 {worst:.0} ms");
            assert!((200.0..400.0).contains(&half), "{rate}/s: {half} ms");
            assert!(worst < 500.0, "{rate}/s: {worst} ms");
            assert!(server.refused > 0);
            // The store is never without work: nothing is lost but what it could not take.
            let done = server.waits.len() as f64 / 10.0;
            assert!(done > 0.9 * rate, "{done} of {rate}/s");
        }
    }

    #[test]
    fn one_stall_does_not_leave_it_low() {
        let mut server = Server::of_rate(10_000.0);
        server.run(1_000.0, 5_000.0);
        server.flush(5_000.0, 5_000.0);
        server.flush(5_000.0, 0.0);
        server.run(3_000.0, 5_000.0);
        server.refused = 0;
        server.run(5_000.0, 5_000.0);
        assert_eq!(server.refused, 0);
        assert!(server.limit >= 3_000, "{}", server.limit);
    }

    #[test]
    fn a_slow_store_with_little_to_do_refuses_nobody() {
        let mut server = Server::of_rate(10_000.0);
        for _ in 0..100 {
            server.flush(100.0, 400.0);
        }
        assert_eq!((server.limit, server.refused), (LEAST, 0));
    }

    #[test]
    fn what_is_open_is_counted_until_it_is_dropped_and_a_batch_is_let_in_whole() {
        let pressure = Pressure::new();
        let batch = pressure.admit(FIRST - 1).unwrap();
        let over = pressure.admit(1_000).unwrap();
        assert_eq!((batch.before, over.before), (0, FIRST - 1));
        assert!(pressure.admit(1).is_none());
        drop(batch);
        let one = pressure.admit(1).unwrap();
        assert_eq!(one.before, 1_000);
        one.answered(5);
        drop((over, one));
        assert_eq!(pressure.open.load(Ordering::Relaxed), 0);
        assert_eq!(pressure.limit.load(Ordering::Relaxed), FIRST + 5);
    }

    #[test]
    fn the_limit_has_bounds() {
        let long = Duration::from_secs(5);
        assert_eq!(next_limit(10_000, 0, 1, long), LEAST);
        assert_eq!(next_limit(MOST, 0, 1_000, Duration::ZERO), MOST);
        let moment = KEEPS_UP + Duration::from_millis(1);
        assert_eq!(next_limit(LEAST, usize::MAX, 1, moment), MOST);
    }
}
