//! `leasehold bench`: figures that anyone can take again.
//!
//! It meets the server as a user does, through `worker-sdk` and the API, in a process of its own. Beside each figure
//! stands what the same database, Redis and disk do by themselves, and no figure counts whose jobs are not all found.
//! docs/performance.md says what each figure means.
//!
//! | where | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`stage`], [`node`], [`database`], [`list`], [`left`] | what is measured; made for it, and removed, also when interrupted |
//! | [`modes`], [`enqueue`], [`crew`], [`pace`], [`overload`], [`soak`], [`streams`] | the load |
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
mod left;
mod list;
mod machine;
mod modes;
mod node;
mod options;
mod overload;
mod pace;
mod proc;
mod report;
mod soak;
mod stage;
mod streams;

use std::path::Path;

pub(super) use options::Args;

use super::exit::{Exit, Failure};
use super::terminal;
use ceilings::Ceilings;
use figure::{Figure, Sample};
use left::Left;
use machine::Machine;
use modes::Modes;
use options::Mode;
use report::Report;
use stage::Stage;

/// A run before the first that counts has this part of its jobs, at most so many.
const WARM_UP_PART: u64 = 10;
const WARM_UP_MAX: u64 = 2_000;

/// `leasehold bench`. 1: an audit was not clean. 3: it was interrupted, or could not go on; what had been measured is told.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    args.check()?;
    let machine = Machine::look();
    let left = Left::default();
    let interrupted = left::interruption(left.clone())?;
    let mut stage = Stage::new(&args, left.clone())?;
    let mut finished = Finished::new(&args);
    let ended = match stage.fill(&args, &interrupted).await {
        // Cancel safe: all that is dropped is load; the stage stands, and what was finished is kept outside.
        Ok(()) => interrupted
            .run_until_cancelled(measure(&stage, &args, &mut finished))
            .await
            .unwrap_or(Ok(())),
        Err(failure) => Err(failure),
    };
    let incomplete = match &ended {
        _ if interrupted.is_cancelled() => Some("interrupted".to_owned()),
        Err(failure) => Some(failure.why.clone()),
        Ok(()) => None,
    };
    // Before anything is removed: that may take longer than the one who waits for it likes.
    let told = match finished.report(machine, &stage, &args, incomplete.clone()) {
        Some(report) => tell(&report, args.json.as_deref()).map(|()| report.valid),
        None => Ok(true),
    };
    let down = stage.take_down().await;
    if let Some(left) = left.told() {
        terminal::note(left);
    }
    if interrupted.is_cancelled() {
        if let Err(failure) = down {
            terminal::note(format_args!("error: {}", failure.why));
        }
        let runs = finished.runs();
        return Err(Failure::trouble(format!(
            "interrupted: {runs} of {} runs were finished",
            args.suite().len() * args.runs()
        )));
    }
    ended?;
    let valid = told?;
    down?;
    Ok(match valid {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

/// What was measured until now.
struct Finished {
    ceilings: Ceilings,
    modes: Vec<(Mode, Vec<Sample>)>,
}

impl Finished {
    fn new(args: &Args) -> Self {
        Self {
            ceilings: Ceilings::default(),
            modes: args
                .suite()
                .into_iter()
                .map(|mode| (mode, Vec::new()))
                .collect(),
        }
    }

    /// Runs of all modes.
    fn runs(&self) -> usize {
        self.modes.iter().map(|(_, samples)| samples.len()).sum()
    }

    /// `None`: nothing is finished.
    fn report(
        &self,
        machine: Machine,
        stage: &Stage,
        args: &Args,
        incomplete: Option<String>,
    ) -> Option<Report> {
        if self.runs() == 0 {
            return None;
        }
        let mut report = Report::new(machine, stage, args);
        report.ceilings = self.ceilings.told(stage, args);
        report.figures = self
            .modes
            .iter()
            .filter(|(_, samples)| !samples.is_empty())
            .map(|(mode, samples)| Figure::new(*mode, samples.clone(), &report.ceilings))
            .collect();
        report.valid = report.figures.iter().all(|figure| figure.valid);
        report.incomplete = incomplete;
        Some(report)
    }
}

async fn measure(stage: &Stage, args: &Args, finished: &mut Finished) -> Result<(), Failure> {
    let modes = Modes::new(stage, args)?;
    let alone = args.suite().contains(&Mode::Streams);
    for (mode, samples) in &mut finished.modes {
        if matches!(mode, Mode::Streams | Mode::Soak | Mode::Overload) {
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
            finished.ceilings.round(stage, args).await?;
        }
        for (mode, samples) in &mut finished.modes {
            say(&format!("{}: run {run} of {}", mode.name(), args.runs()));
            samples.push(modes.run(*mode, args.jobs(*mode)).await?);
        }
    }
    Ok(())
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
