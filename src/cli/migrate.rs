//! `leasehold migrate`.

use super::exit::{Exit, Failure};
use super::settings::Given;
use super::{serve, terminal};
use crate::config::Command;
use crate::store::{MigrationReport, Store};

/// Flags of `leasehold migrate` beside the configuration's.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Brings the schema of the configured database up to date.
pub(super) async fn run(args: Args, given: Given) -> Result<Exit, Failure> {
    let config = given.config(Command::Migrate)?;
    let store = serve::postgres(&config).await?;
    let (report, done) = match args.dry_run {
        true => (store.pending_migrations().await, "would run"),
        false => (store.migrate().await, "ran"),
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            return Err(Failure {
                why: serve::why(&config, &error).await,
                ..Failure::from(error)
            });
        }
    };
    not_newer(&report)?;
    for step in &report.steps {
        terminal::line(format_args!("{done} {step}"));
    }
    terminal::line(match report.steps.is_empty() {
        true => format!("nothing to do: the schema is at version {}", report.found),
        false => format!("from version {} to {}", report.found, report.needed),
    });
    Ok(Exit::Done)
}

/// Refuses a schema that a newer binary has made.
pub(super) fn not_newer(report: &MigrationReport) -> Result<(), Failure> {
    match report.found > report.needed {
        true => Err(Failure::usage(newer(report))),
        false => Ok(()),
    }
}

/// Whether this binary can work on that schema, and if not, what to do.
pub(super) fn verdict(report: &MigrationReport) -> Result<(), String> {
    match report.found.cmp(&report.needed) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(newer(report)),
        std::cmp::Ordering::Less => Err(format!(
            "the schema is at version {}, this program needs {}; run `leasehold migrate`",
            report.found, report.needed
        )),
    }
}

fn newer(report: &MigrationReport) -> String {
    format!(
        "the schema is at version {}, newer than the {} that this program knows; use a newer program",
        report.found, report.needed
    )
}
