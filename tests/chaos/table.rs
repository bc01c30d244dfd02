//! What is printed of a run.

use std::collections::BTreeMap;
use std::fmt::Write;

use worker_sdk::JobState;
use worker_sdk::proto::AttemptOutcome;

use crate::audit::{BROKEN, Evidence, Findings};
use crate::ledger::What;

/// The longest times without a job ending while clients enqueued: with no fault in force, and whatever was.
fn longest_stalls(evidence: &Evidence) -> (u64, u64) {
    let lines = evidence.ledger.values().flatten();
    let ends = lines.filter(|line| matches!(line.what, What::Ended { .. }));
    let mut marks: Vec<(u64, i32)> = ends.map(|line| (line.at, 0)).collect();
    marks.retain(|(at, _)| *at <= evidence.load_until);
    for past in &evidence.faults {
        marks.extend([(past.from, 1), (past.to, -1)]);
    }
    marks.sort_unstable();
    let (mut in_force, mut since, mut ended) = (0, None, None);
    let (mut quiet, mut ever) = (0, 0);
    for (at, change) in marks {
        if in_force == 0 {
            quiet = quiet.max(at - since.unwrap_or(at));
        }
        if change == 0 {
            ever = ever.max(at - ended.unwrap_or(at));
            ended = Some(at);
        }
        in_force += change;
        since = Some(at);
    }
    (quiet, ever)
}

/// The one table.
pub fn table(evidence: &Evidence, findings: &Findings, complaints: usize) -> String {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: usize| rows.push((name.to_owned(), value.to_string()));
    let known = || evidence.jobs.values().flatten();
    row(
        "jobs told OK",
        evidence.told.values().filter(|t| t.accepted).count(),
    );
    row(
        "jobs told nothing",
        evidence.told.values().filter(|t| !t.accepted).count(),
    );
    for state in [JobState::Succeeded, JobState::Failed, JobState::Cancelled] {
        let name = state.as_str_name().trim_start_matches("JOB_STATE_");
        row(
            &format!("  {name}"),
            known().filter(|job| job.state() == state).count(),
        );
    }
    row(
        "kills",
        evidence.faults.iter().filter(|past| past.is_kill()).count(),
    );
    let mut kinds: BTreeMap<(bool, String), usize> = BTreeMap::new();
    for past in &evidence.faults {
        *kinds
            .entry((!past.is_kill(), past.to_string()))
            .or_default() += 1;
    }
    for ((_, kind), count) in kinds.iter().filter(|((other, _), _)| !other) {
        row(&format!("  {kind}"), *count);
    }
    row(
        "other faults",
        evidence
            .faults
            .iter()
            .filter(|past| !past.is_kill())
            .count(),
    );
    for ((_, kind), count) in kinds.iter().filter(|((other, _), _)| *other) {
        row(&format!("  {kind}"), *count);
    }
    let lines = || evidence.ledger.values().flatten();
    row(
        "executions",
        lines().filter(|l| l.what == What::Begin).count(),
    );
    let rows_of = |outcome| {
        known()
            .flat_map(|job| &job.attempts)
            .filter(move |row| row.outcome() == outcome)
            .count()
    };
    row("  leases lost", rows_of(AttemptOutcome::LeaseLost));
    row("  failures", rows_of(AttemptOutcome::Failed));
    row("  timeouts", rows_of(AttemptOutcome::TimedOut));
    row("  releases", rows_of(AttemptOutcome::Released));
    row(
        "told RECORDED",
        lines().filter(|l| l.what == What::Recorded).count(),
    );
    row(
        "told STALE",
        lines().filter(|l| l.what == What::Stale).count(),
    );
    for promise in BROKEN {
        row(promise, findings.broken.get(promise).map_or(0, Vec::len));
    }
    row("complaints about processes and answers", complaints);
    let (quiet, ever) = longest_stalls(evidence);
    rows.push(("longest stall".to_owned(), format!("{quiet} ms")));
    rows.push(("  under faults".to_owned(), format!("{ever} ms")));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        writeln!(text, "| {name:width$} | {value:>9} |").unwrap();
    }
    for (promise, stories) in &findings.broken {
        for story in stories.iter().take(3) {
            writeln!(text, "\nBROKEN, {promise}: {story}").unwrap();
        }
    }
    text
}

/// What was done and what was suffered, five seconds a line.
pub fn timeline(evidence: &Evidence) -> String {
    const STEP: u64 = 5_000;
    let lines = || evidence.ledger.values().flatten();
    let begin = lines().map(|line| line.at).min().unwrap_or(0);
    let mut steps: BTreeMap<u64, (usize, usize, Vec<String>)> = BTreeMap::new();
    for line in lines() {
        let step = steps.entry((line.at - begin) / STEP).or_default();
        match line.what {
            What::Begin => step.0 += 1,
            What::Recorded => step.1 += 1,
            _ => {}
        }
    }
    for past in &evidence.faults {
        let step = steps
            .entry(past.from.saturating_sub(begin) / STEP)
            .or_default();
        let (at, took) = (past.from.saturating_sub(begin), past.to - past.from);
        step.2.push(format!("{at}+{took} {:?} {past}", past.target));
    }
    let mut text = String::new();
    for (step, (begun, recorded, faults)) in steps {
        let at = step * STEP / 1_000;
        writeln!(
            text,
            "{at:>5} s: {begun:>6} begun, {recorded:>6} recorded; {}",
            faults.join(", ")
        )
        .unwrap();
    }
    text
}
