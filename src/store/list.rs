//! What a list of jobs is asked for, and what comes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::job::limits::{BATCH_BYTES_MAX, ID_AGE_MAX, ID_AHEAD_MAX};
use crate::job::time::micros;
use crate::job::{Job, JobId, JobState, Kind, QueueName, Timestamp};

/// Conditions of a list; each that is not empty must hold, when the job is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobFilter {
    /// Any of these queues.
    pub queues: Vec<QueueName>,
    /// Any of these kinds.
    pub kinds: Vec<Kind>,
    /// Any of these states.
    pub states: Vec<JobState>,
    /// All of these labels.
    pub labels: BTreeMap<String, String>,
    /// Accepted at this time or later.
    pub created_after: Option<Timestamp>,
    /// Accepted before this time.
    pub created_before: Option<Timestamp>,
    /// Became final at this time or later.
    pub finished_after: Option<Timestamp>,
    /// Became final before this time.
    pub finished_before: Option<Timestamp>,
    /// Type of the last failure.
    pub failure_type: Option<String>,
}

impl JobFilter {
    /// Ids that jobs accepted in its span of time can have: from the first, below the second (`None`: any). An id carries
    /// the time of its making, up to [`ID_AGE_MAX`] before its job was accepted or [`ID_AHEAD_MAX`] after that.
    pub fn ids(&self) -> (JobId, Option<JobId>) {
        let first = self
            .created_after
            .map_or(0, |time| time.0.saturating_sub(micros(ID_AGE_MAX)));
        let end = self
            .created_before
            .map(|time| JobId::earliest(time.after(ID_AHEAD_MAX + Duration::from_millis(1))));
        (JobId::earliest(Timestamp(first)), end)
    }

    /// Whether a job of these labels and this last failure passes: what no index knows.
    pub(super) fn lets(
        &self,
        labels: &BTreeMap<String, String>,
        failure_type: Option<&str>,
    ) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .failure_type
                .as_deref()
                .is_none_or(|wanted| failure_type == Some(wanted))
    }
}

/// One page of a list, newest job first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct JobPage {
    /// At most as many as were asked for, perhaps fewer, even when there are more: it also ends before
    /// [`crate::job::limits::BATCH_BYTES_MAX`] of bodies and words, but not before its first job.
    pub jobs: Vec<Job>,
    /// Where the next page begins: it holds ids below this. `None`: there is no more.
    pub next: Option<JobId>,
}

impl JobPage {
    /// Ends the page before it is more than one message carries, but not before its first job. `size` is asked for
    /// each job: the bytes of its words, and of a full view those of its bodies and attempts.
    pub(super) fn cut(
        ids: &mut Vec<JobId>,
        next: &mut Option<JobId>,
        size: impl Fn(&JobId) -> usize,
    ) {
        let mut bytes = 0_usize;
        let fits = ids.iter().take_while(|id| {
            bytes = bytes.saturating_add(size(id));
            bytes <= BATCH_BYTES_MAX
        });
        let fitting = fits.count().max(1);
        if fitting < ids.len() {
            ids.truncate(fitting);
            *next = ids.last().copied();
        }
    }
}
