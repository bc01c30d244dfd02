//! How jobs come, each under its key, and go when they were kept for long enough.

use leasehold::job::JobState;

use super::broken::Rule;
use super::store::Store;
use super::world::Named;

impl Store {
    /// The job that has the key of this one, or is this one itself.
    pub fn keyed(&self, job: usize) -> Option<usize> {
        let is_there = |other: &usize| self.jobs[*other].state.is_some();
        let mut all = 0..self.jobs.len();
        match self.has_key {
            true => all.find(is_there),
            false => Some(job).filter(is_there),
        }
    }

    /// Which request a job was asked for by: those of one key are the same two by two.
    pub fn request(&self, job: usize) -> usize {
        if self.has_key { job / 2 } else { job }
    }

    pub fn enqueue(&mut self, job: usize, known: Option<usize>) -> Named {
        let same = known.is_none_or(|first| self.request(first) == self.request(job));
        if !same && self.rule != Rule::KeyIgnoresRequest {
            return Named::Clash;
        }
        let named = known.unwrap_or(job);
        self.jobs[named].state.get_or_insert(JobState::Queued);
        Named::Job(named)
    }

    /// Retention removes a job's row; what it was is kept here for the laws.
    pub fn purge(&mut self, job: usize) {
        self.jobs[job].gone = true;
    }

    pub fn can_purge(&self, job: usize) -> bool {
        let row = &self.jobs[job];
        let unseen = self.rule == Rule::PurgedUnseen && !row.ended.is_empty();
        let is_final = row.state.is_some_and(JobState::is_final);
        !row.gone && (is_final || unseen)
    }
}
