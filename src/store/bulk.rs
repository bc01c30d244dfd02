//! Bulks, as the store keeps them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{JobFilter, Segment};
use crate::error::{Error, Result};
use crate::job::bulk::Progress;
use crate::job::{
    BulkAction, BulkCounts, BulkId, BulkState, By, Canary, JobId, JobState, Kind, Lease, QueueName,
    SessionId, Stage, Timestamp,
};

/// A bulk to start.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBulk {
    /// Its identity, by the caller or made for it.
    pub id: BulkId,
    /// What is done to each job.
    pub action: BulkAction,
    /// What it covers. It has states, all of which the action is for.
    pub filter: JobFilter,
    /// It only counts.
    pub dry_run: bool,
    /// Jobs per second; `None`: no limit.
    pub rate: Option<u32>,
    /// How it tries a few first; only of a retry.
    pub canary: Option<Canary>,
    /// Who wants it, and why.
    pub by: By,
    /// It is the purge of this queue, and goes into the audit as that.
    pub purges: Option<QueueName>,
}

/// A bulk as it is seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Bulk {
    /// Its identity.
    pub id: BulkId,
    /// What is done to each job.
    pub action: BulkAction,
    /// What it covers.
    pub filter: JobFilter,
    /// It only counts.
    pub dry_run: bool,
    /// Jobs per second; `None`: no limit.
    pub rate: Option<u32>,
    /// How it tries a few first.
    pub canary: Option<Canary>,
    /// Where it is.
    pub state: BulkState,
    /// What it has come to.
    pub counts: BulkCounts,
    /// Where its canary is.
    pub stage: Stage,
    /// Some of the jobs that it covers.
    pub sample: Vec<JobId>,
    /// Who started it, and why.
    pub by: By,
    /// When it was started. It covers nothing that was accepted later.
    pub create_time: Timestamp,
    /// When it ended.
    pub end_time: Option<Timestamp>,
    /// Why it ended, if it did not come to its end.
    pub error: String,
}

impl Bulk {
    fn progress(&self, is_walked: bool) -> Progress {
        Progress {
            action: self.action,
            state: self.state,
            is_walked,
            dry_run: self.dry_run,
            rate: self.rate,
            canary: self.canary,
            counts: self.counts,
            stage: self.stage,
        }
    }

    /// Whether this request has started it.
    pub(super) fn is_of(&self, new: &NewBulk) -> bool {
        self.action == new.action
            && self.filter == new.filter
            && self.dry_run == new.dry_run
            && self.rate == new.rate
            && self.canary == new.canary
    }

    /// What it walks through: of what its filter covers, what was there when it was started.
    pub(super) fn walked(&self) -> JobFilter {
        let before = self.filter.created_before;
        JobFilter {
            created_before: before.into_iter().chain([self.create_time]).min(),
            ..self.filter.clone()
        }
    }
}

/// Answer to the start of a bulk.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one is made a call")]
pub enum Started {
    /// It is there now, and will be gone on with.
    Created(Bulk),
    /// The same request has started it before.
    Existed(Bulk),
    /// The id is that of another request.
    Conflict,
    /// The id's own time is more than an hour ago, or minutes ahead, and there is no such bulk (any more).
    IdOutOfTime,
    /// Too many have not ended, or are kept.
    TooMany,
}

/// A bulk that is a caller's to go on with, for one step. Whoever claims it next, or aborts it, takes it away.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedBulk {
    /// As it is.
    pub bulk: Bulk,
    /// The fence: a step under an older one changes nothing.
    pub claim: i64,
    /// Where its walk goes on: below this id. `None`: it has not begun, or has come to its end.
    pub before: Option<JobId>,
    /// When it was claimed.
    pub now: Timestamp,
}

impl ClaimedBulk {
    /// Where it is, as far as its way depends on it.
    pub(super) fn progress(&self) -> Progress {
        self.bulk.progress(self.before.is_none())
    }
}

/// What a step of a bulk did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BulkStep {
    /// Where the bulk came to by it; `None`: it acted on jobs, or the claim was not the newest.
    pub turned: Option<BulkState>,
    /// The jobs that it acted on.
    pub jobs: Vec<JobId>,
    /// What became QUEUED by it, to offer.
    pub segments: Vec<Segment>,
    /// What was running and is CANCELLED by it; the store has left signals for the nodes that have the sessions.
    pub cancelled: Vec<(Lease, SessionId)>,
}

/// A filter in a row.
#[derive(Serialize, Deserialize)]
struct FilterRow {
    queues: Vec<String>,
    kinds: Vec<String>,
    states: Vec<i16>,
    labels: BTreeMap<String, String>,
    created_after: Option<i64>,
    created_before: Option<i64>,
    finished_after: Option<i64>,
    finished_before: Option<i64>,
    failure_type: Option<String>,
}

pub(super) fn write_filter(filter: &JobFilter) -> Result<String> {
    let JobFilter {
        queues,
        kinds,
        states,
        labels,
        created_after,
        created_before,
        finished_after,
        finished_before,
        failure_type,
    } = filter;
    let row = FilterRow {
        queues: queues.iter().map(ToString::to_string).collect(),
        kinds: kinds.iter().map(ToString::to_string).collect(),
        states: states.iter().map(|state| state.number()).collect(),
        labels: labels.clone(),
        created_after: created_after.map(|time| time.0),
        created_before: created_before.map(|time| time.0),
        finished_after: finished_after.map(|time| time.0),
        finished_before: finished_before.map(|time| time.0),
        failure_type: failure_type.clone(),
    };
    serde_json::to_string(&row).map_err(Error::internal)
}

pub(super) fn read_filter(text: &str) -> Result<JobFilter> {
    let row: FilterRow = serde_json::from_str(text).map_err(Error::internal)?;
    let state = |number: i16| {
        JobState::from_number(number).ok_or_else(|| Error::internal("broken row: bulks.filter"))
    };
    Ok(JobFilter {
        queues: row
            .queues
            .iter()
            .map(|q| QueueName::from_store(q))
            .collect(),
        kinds: row.kinds.iter().map(|k| Kind::from_store(k)).collect(),
        states: row.states.into_iter().map(state).collect::<Result<_>>()?,
        labels: row.labels,
        created_after: row.created_after.map(Timestamp),
        created_before: row.created_before.map(Timestamp),
        finished_after: row.finished_after.map(Timestamp),
        finished_before: row.finished_before.map(Timestamp),
        failure_type: row.failure_type,
    })
}
