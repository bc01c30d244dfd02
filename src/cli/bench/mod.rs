//! `leasehold bench`: figures that anyone can take again.
//!
//! It meets the server as a user does, through `worker-sdk` and the API, in a process of its own. Beside each figure
//! stands what the same database, Redis and disk do by themselves, and no figure counts whose jobs are not all found.
//! docs/performance.md says what each figure means.
//!
//! | where | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`stage`], [`node`], [`database`], [`list`] | what is measured; made for it, and removed |
//! | [`modes`], [`enqueue`], [`crew`], [`pace`], [`soak`], [`streams`] | the load |
//! | [`ledger`], [`audit`] | what was accepted, and whether it is all there |
//! | [`ceilings`], [`machine`], [`proc`] | what bounds a figure, and what it costs |
//! | [`figure`], [`report`] | what comes out |

mod audit;
mod ceilings;
mod crew;
mod database;
mod enqueue;
mod figure;
mod ledger;
mod list;
mod machine;
mod modes;
mod node;
mod options;
mod pace;
mod proc;
mod report;
mod soak;
mod stage;
mod streams;

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

pub(super) use options::Args;

use super::exit::{Exit, Failure};
use super::{signals, terminal};
use ceilings::Ceilings;
use figure::Figure;
use machine::Machine;
use modes::Modes;
use options::Mode;
use report::Report;
use stage::Stage;

/// A run before the first that counts has this part of its jobs, at most so many.
const WARM_UP_PART: u64 = 10;
const WARM_UP_MAX: u64 = 2_000;

/// `leasehold bench`. 1: an audit was not clean.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    args.check()?;
    let machine = Machine::look();
    let stage = Stage::set_up(&args).await?;
    let pids = stage.pids();
    let shutdown = signals::shutdown(move || kill(&pids))?;
    // Cancel safe: all that is dropped is load; the stage stands, and is taken down.
    let measured = shutdown
        .run_until_cancelled(measure(machine, &stage, &args))
        .await;
    let down = stage.take_down().await;
    let report = measured.unwrap_or_else(|| Err(Failure::trouble("interrupted: no figures")))?;
    tell(&report, args.json.as_deref())?;
    down?;
    Ok(match report.valid {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

async fn measure(machine: Machine, stage: &Stage, args: &Args) -> Result<Report, Failure> {
    let mut report = Report::new(machine, stage, args);
    let mut ceilings = Ceilings::default();
    let modes = Modes::new(stage, args)?;
    let suite = args.suite();
    let mut samples: Vec<Vec<_>> = vec![Vec::new(); suite.len()];
    let alone = suite.contains(&Mode::Streams);
    for (mode, samples) in suite.iter().zip(&mut samples) {
        if matches!(mode, Mode::Streams | Mode::Soak) {
            continue;
        }
        let jobs = args.jobs(*mode);
        say(&format!("{}: warm-up", mode.name()));
        let warm = modes
            .run(*mode, (jobs / WARM_UP_PART).clamp(2, WARM_UP_MAX))
            .await?;
        if !warm.audit.clean() {
            // Told with the others, as it must not be lost; it makes the figure invalid.
            samples.push(warm);
        }
    }
    // Round by round, so that what changes on a busy machine changes for figures and ceilings alike.
    for run in 1..=args.runs() {
        if !alone {
            ceilings.round(stage, args).await?;
        }
        for (mode, samples) in suite.iter().zip(&mut samples) {
            say(&format!("{}: run {run} of {}", mode.name(), args.runs()));
            samples.push(modes.run(*mode, args.jobs(*mode)).await?);
        }
    }
    report.ceilings = ceilings.told(stage, args);
    report.figures = suite
        .into_iter()
        .zip(samples)
        .map(|(mode, samples)| Figure::new(mode, samples, &report.ceilings))
        .collect();
    report.valid = report.figures.iter().all(|figure| figure.valid);
    Ok(report)
}

fn tell(report: &Report, json: Option<&Path>) -> Result<(), Failure> {
    let trouble = |why: &dyn std::fmt::Display| Failure::trouble(format!("the JSON: {why}"));
    let text = serde_json::to_string_pretty(report).map_err(|why| trouble(&why))?;
    let table = report.table();
    match json {
        Some(path) if path == Path::new("-") => {
            terminal::note(table.trim_end());
            terminal::line(text);
        }
        Some(path) => {
            terminal::line(table.trim_end());
            std::fs::write(path, text + "\n").map_err(|why| trouble(&why))?;
        }
        None => terminal::line(table.trim_end()),
    }
    Ok(())
}

/// What it is at: a benchmark takes its time.
fn say(what: &str) {
    terminal::note(format_args!("# {what}"));
}

/// For a benchmark that is ended at once: its servers go with it.
fn kill(pids: &[u32]) {
    for pid in pids {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
        // One that has ended already is what is wanted.
        let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
    }
}
