//! Flags that say which jobs are meant.

use std::collections::HashMap;
use std::time::SystemTime;

use worker_sdk::{JobFilter, JobState};

use super::exit::Failure;
use super::jobs::{pair, state};

/// Each that is given must hold; within one that may be given more than once, any value.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Only these queues
    #[arg(long, value_name = "NAME")]
    queue: Vec<String>,
    /// Only these kinds
    #[arg(long, value_name = "NAME")]
    kind: Vec<String>,
    /// Only these states; `failed` is the dead letter
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Vec<JobState>,
    /// Only those with this label; with several, those that have all of them
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Only those accepted at this time or later, as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub(super) created_after: Option<SystemTime>,
    /// Only those accepted before this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    created_before: Option<SystemTime>,
    /// Only those that became final at this time or later
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub(super) finished_after: Option<SystemTime>,
    /// Only those that became final before this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    finished_before: Option<SystemTime>,
    /// Only those whose last failure is of this type
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "",
        hide_default_value = true
    )]
    failure_type: String,
}

impl Filter {
    /// As it is sent.
    pub(super) fn read(self) -> Result<JobFilter, Failure> {
        let given = self.label.len();
        let labels: HashMap<String, String> = self.label.into_iter().collect();
        if labels.len() < given {
            return Err(Failure::usage("--label has a key twice"));
        }
        Ok(JobFilter {
            queues: self.queue,
            kinds: self.kind,
            states: self.state.into_iter().map(i32::from).collect(),
            labels,
            created_after: self.created_after.map(Into::into),
            created_before: self.created_before.map(Into::into),
            finished_after: self.finished_after.map(Into::into),
            finished_before: self.finished_before.map(Into::into),
            failure_type: self.failure_type,
        })
    }
}
