//! `leasehold migrate`.

use super::exit::{Exit, Failure};
use super::settings::Given;
use super::{serve, terminal};
use crate::config::Command;
use crate::error::Error;
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
        true => (pending(&store).await, "would run"),
        false => (migrate(&store).await, "ran"),
    };
    let report = match report {
        Ok(report) => report,
        Err(Refusal::Schema(failure)) => return Err(failure),
        Err(Refusal::Store(error)) => {
            return Err(Failure {
                why: serve::why(&config, &error).await,
                ..Failure::from(error)
            });
        }
    };
    for step in &report.steps {
        terminal::line(format_args!("{done} {step}"));
    }
    terminal::line(match report.steps.is_empty() {
        true => format!("nothing to do: the schema is at version {}", report.found),
        false => format!("from version {} to {}", report.found, report.needed),
    });
    Ok(Exit::Done)
}

/// Brings the schema up to date. That it is newer than this binary is the operator's matter; the store would call its
/// own refusal an internal error.
pub(super) async fn migrate(store: &dyn Store) -> Result<MigrationReport, Refusal> {
    pending(store).await?;
    Ok(store.migrate().await?)
}

async fn pending(store: &dyn Store) -> Result<MigrationReport, Refusal> {
    let report = store.pending_migrations().await?;
    match report.refusal() {
        Some(why) => Err(Refusal::Schema(Failure::usage(why))),
        None => Ok(report),
    }
}

/// Whether this binary can work on that schema, and if not, what to do.
pub(super) fn verdict(report: &MigrationReport) -> Result<(), String> {
    if let Some(why) = report.refusal() {
        return Err(why);
    }
    if report.found == report.needed {
        return Ok(());
    }
    Err(format!(
        "the schema is at version {}, this program needs {}; run `leasehold migrate`",
        report.found, report.needed
    ))
}

/// Why a store cannot be used.
pub(super) enum Refusal {
    /// It does not answer, or not as it should.
    Store(Error),
    /// Its schema will not do.
    Schema(Failure),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Store(error) => error.into(),
            Refusal::Schema(failure) => failure,
        }
    }
}
