//! How bulks are shown: as tables for people, or as JSON in the form of `GET /bulks/{id}`.

use std::collections::BTreeMap;

use serde::Serialize;
use worker_sdk::proto::CanaryStage;
use worker_sdk::{Bulk, BulkAction, BulkState, JobFilter, JobState, Priority};

use crate::cli::exit::Failure;
use crate::cli::jobs::level;
use crate::cli::queues::json;
use crate::cli::remote::Output;
use crate::cli::terminal::{line, plain, table};

/// One bulk with all that is known of it.
pub(in crate::cli) fn show(bulk: &Bulk, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => line(json(&BulkJson::of(bulk))?),
        Output::Table => {
            for (name, value) in details(bulk) {
                line(format_args!("{name:<12} {value}"));
            }
        }
    }
    Ok(())
}

/// Bulks, one a row.
pub(super) fn show_all(bulks: &[Bulk], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let all: Vec<_> = bulks.iter().map(BulkJson::of).collect();
            line(json(&all)?);
        }
        Output::Table => table(
            [
                "ID", "ACTION", "STATE", "TOTAL", "DONE", "SKIPPED", "FAILED", "LEFT", "ACTOR",
                "CREATED",
            ],
            bulks.iter().map(columns).collect(),
        ),
    }
    Ok(())
}

fn columns(bulk: &Bulk) -> Vec<String> {
    vec![
        bulk.id.clone(),
        action(bulk.action()).to_owned(),
        state(bulk.state()).to_owned(),
        bulk.total.to_string(),
        bulk.done.to_string(),
        bulk.skipped.to_string(),
        bulk.failed.to_string(),
        bulk.left.to_string(),
        plain(&bulk.actor),
        text(bulk.create_time.as_ref()).unwrap_or_default(),
    ]
}

fn details(bulk: &Bulk) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("id", bulk.id.clone()),
        ("action", action(bulk.action()).to_owned()),
        ("state", state(bulk.state()).to_owned()),
    ];
    if bulk.dry_run {
        lines.push(("dry run", "nothing is changed".to_owned()));
    }
    if bulk.action() == BulkAction::SetPriority {
        lines.push(("priority", level(bulk.priority()).to_owned()));
    }
    let filter = FilterJson::of(bulk.filter.as_ref());
    // It is made of texts alone.
    lines.push((
        "filter",
        plain(&serde_json::to_string(&filter).unwrap_or_default()),
    ));
    let counts = [
        ("total", bulk.total),
        ("done", bulk.done),
        ("skipped", bulk.skipped),
        ("failed", bulk.failed),
        ("left", bulk.left),
    ];
    lines.extend(counts.map(|(name, count)| (name, count.to_string())));
    if bulk.rate > 0 {
        lines.push(("rate", format!("{} jobs a second", bulk.rate)));
    }
    if let Some(stage) = bulk.stage {
        lines.push(("stage", staged(&stage)));
    }
    let sample = bulk.sample_job_ids.iter().take(3);
    lines.extend(sample.map(|id| ("sample", plain(id))));
    for (name, said) in [
        ("actor", &bulk.actor),
        ("reason", &bulk.reason),
        ("error", &bulk.error),
    ] {
        if !said.is_empty() {
            lines.push((name, plain(said)));
        }
    }
    let times = [("created", &bulk.create_time), ("ended", &bulk.end_time)];
    lines.extend(
        times
            .into_iter()
            .filter_map(|(name, at)| Some((name, text(at.as_ref())?))),
    );
    lines
}

fn staged(stage: &CanaryStage) -> String {
    let CanaryStage {
        size,
        released,
        settled,
        failed,
    } = stage;
    format!("{released} of {size} released, {settled} settled, {failed} failed again")
}

fn action(action: BulkAction) -> &'static str {
    short(action.as_str_name(), "BULK_ACTION_")
}

fn state(state: BulkState) -> &'static str {
    short(state.as_str_name(), "BULK_STATE_")
}

fn short(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn text(value: Option<&impl ToString>) -> Option<String> {
    value.map(ToString::to_string)
}

#[derive(Serialize)]
struct BulkJson<'a> {
    id: &'a str,
    action: &'static str,
    filter: FilterJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<&'static str>,
    dry_run: bool,
    rate: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<CanaryJson>,
    state: &'static str,
    total: u64,
    done: u64,
    skipped: u64,
    failed: u64,
    left: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<StageJson>,
    sample_job_ids: &'a [String],
    actor: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct FilterJson<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    queues: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    kinds: &'a [String],
    states: Vec<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_before: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    failure_type: &'a str,
}

#[derive(Serialize)]
struct CanaryJson {
    size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_failed_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    within: Option<String>,
}

#[derive(Serialize)]
struct StageJson {
    size: u32,
    released: u32,
    settled: u32,
    failed: u32,
}

impl<'a> BulkJson<'a> {
    fn of(bulk: &'a Bulk) -> Self {
        let has_priority = bulk.priority() != Priority::Unspecified;
        Self {
            id: &bulk.id,
            action: action(bulk.action()),
            filter: FilterJson::of(bulk.filter.as_ref()),
            priority: has_priority.then(|| level(bulk.priority())),
            dry_run: bulk.dry_run,
            rate: bulk.rate,
            canary: bulk.canary.as_ref().map(|canary| CanaryJson {
                size: canary.size,
                max_failed_share: canary.max_failed_share,
                within: text(canary.within.as_ref()),
            }),
            state: state(bulk.state()),
            total: bulk.total,
            done: bulk.done,
            skipped: bulk.skipped,
            failed: bulk.failed,
            left: bulk.left,
            stage: bulk.stage.map(|stage| StageJson {
                size: stage.size,
                released: stage.released,
                settled: stage.settled,
                failed: stage.failed,
            }),
            sample_job_ids: &bulk.sample_job_ids,
            actor: &bulk.actor,
            reason: &bulk.reason,
            create_time: text(bulk.create_time.as_ref()),
            end_time: text(bulk.end_time.as_ref()),
            error: &bulk.error,
        }
    }
}

impl<'a> FilterJson<'a> {
    fn of(filter: Option<&'a JobFilter>) -> Self {
        let of = |filter: &'a JobFilter| Self {
            queues: &filter.queues,
            kinds: &filter.kinds,
            states: filter
                .states()
                .map(|state: JobState| short(state.as_str_name(), "JOB_STATE_"))
                .collect(),
            labels: filter
                .labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            created_after: text(filter.created_after.as_ref()),
            created_before: text(filter.created_before.as_ref()),
            finished_after: text(filter.finished_after.as_ref()),
            finished_before: text(filter.finished_before.as_ref()),
            failure_type: &filter.failure_type,
        };
        filter.map(of).unwrap_or(Self {
            queues: &[],
            kinds: &[],
            states: Vec::new(),
            labels: BTreeMap::new(),
            created_after: None,
            created_before: None,
            finished_after: None,
            finished_before: None,
            failure_type: "",
        })
    }
}
