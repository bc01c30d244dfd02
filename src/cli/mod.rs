//! The face that is typed: `leasehold serve`, `dev`, `jobs` and the rest.
//!
//! It is the only place that opens backends, and hands them to the engine ([`serve`]). What a command has to say goes
//! to stdout when it is the result, and to stderr when it is about the result; logs go to stderr.
//!
//! | exit code | means |
//! |---|---|
//! | 0 | done; of `enqueue --wait` and `get --watch`: the job succeeded |
//! | 1 | a job failed or was cancelled; a bulk that was waited for did not come to its end; `doctor` found something; the audit of `bench` was not clean |
//! | 2 | the command line, the configuration or the request cannot be taken as it is |
//! | 3 | a server or a store is away, or answered with an error; `bench` was interrupted, and told what it had |
//! | 130 | a second signal came while a server was stopping; `bench` was stopped before it had removed all of its own, and named the rest |

mod audit;
mod bench;
mod bulk;
mod demo;
mod demo_worker;
mod dev;
mod doctor;
mod drain;
mod exit;
mod filter;
mod folder;
mod jobs;
mod migrate;
mod nodes;
mod queues;
mod remote;
mod serve;
mod sessions;
mod settings;
mod signals;
mod terminal;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Command;
use exit::{Exit, Failure};
use settings::Given;

/// Threads that block (a hash, a read of stdin) are not waited for longer than this at the end.
const LINGER: Duration = Duration::from_secs(2);

const EXIT_CODES: &str = "Exit codes: 0 done (or: the job succeeded), 1 the job failed or was cancelled, \
2 bad command line, configuration or request, 3 server or store away or in error.";

/// A background-job service: jobs are never lost, and each result is recorded exactly once.
#[derive(Debug, Parser)]
#[command(name = "leasehold", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    /// TOML file with options [env: LEASEHOLD_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs a node on Postgres and Redis
    Serve(serve::Args),
    /// Runs the embedded server: one file, nothing to install
    Dev(dev::Args),
    /// Runs a worker that hashes files (kind `sha256-file`)
    DemoWorker(demo_worker::Args),
    /// Asks a node on this machine to leave in order, and waits until it has
    Drain(drain::Args),
    /// Enqueues jobs and looks after them
    Jobs(jobs::Args),
    /// One action on many jobs: starts it, looks at it, aborts it
    Bulk(Box<bulk::Args>),
    /// Looks after queues: their numbers, and whether they are handed out
    Queues(queues::Args),
    /// Lists the sessions of workers, shows what one of them runs, and asks one to leave
    Sessions(sessions::Args),
    /// Lists nodes, and asks one to leave
    Nodes(nodes::Args),
    /// Shows queues with their rates, and workers, on one screen that is kept up to date
    Top(top::Args),
    /// Lists what was changed by hand, newest first: who, what and why
    Audit(audit::Args),
    /// Brings the database's schema up to date
    Migrate(migrate::Args),
    /// Prints the configuration in force and where each value is from, without secrets
    Config,
    /// Tries what a node needs, and says what is wrong and how to mend it
    Doctor(doctor::Args),
    /// Prints what makes a shell complete this command: `source <(leasehold completions bash)`
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Measures a server, beside what its database, Redis and disk do by themselves
    Bench(Box<bench::Args>),
}

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    // Clap itself answers --help, and ends with 2 when it cannot read the line.
    let matches = command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(why) => why.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(why) => return Failure::trouble(format!("cannot start: {why}")).report(),
    };
    let options = matches
        .subcommand()
        .map(|(_, options)| options.clone())
        .unwrap_or_default();
    let exit = runtime.block_on(run(cli, &options));
    runtime.shutdown_timeout(LINGER);
    match exit {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

/// The command line: what is derived above, and for each command the options that the configuration has for it.
fn command() -> clap::Command {
    let with = [
        ("serve", Command::Serve),
        ("dev", Command::Dev),
        ("migrate", Command::Migrate),
        ("config", Command::Config),
        ("doctor", Command::Doctor),
    ];
    with.into_iter().fold(Cli::command(), |all, (name, of)| {
        all.mut_subcommand(name, |one| one.args(settings::arguments(of)))
    })
}

async fn run(cli: Cli, options: &ArgMatches) -> Result<Exit, Failure> {
    let given = Given::new(cli.config, options);
    match cli.verb {
        Verb::Serve(args) => serve::run(args, given).await,
        Verb::Dev(args) => dev::run(args, given).await,
        Verb::DemoWorker(args) => demo_worker::run(args).await,
        Verb::Drain(args) => drain::run(args).await,
        Verb::Jobs(args) => jobs::run(args).await,
        Verb::Bulk(args) => bulk::run(*args).await,
        Verb::Queues(args) => queues::run(args).await,
        Verb::Sessions(args) => sessions::run(args).await,
        Verb::Nodes(args) => nodes::run(args).await,
        Verb::Top(args) => top::run(args).await,
        Verb::Audit(args) => audit::run(args).await,
        Verb::Migrate(args) => migrate::run(args, given).await,
        Verb::Config => settings::show(given),
        Verb::Doctor(args) => doctor::run(args, given).await,
        Verb::Completions { shell } => {
            let mut whole = Vec::new();
            clap_complete::generate(shell, &mut command(), "leasehold", &mut whole);
            terminal::line(String::from_utf8_lossy(&whole).trim_end());
            Ok(Exit::Done)
        }
        Verb::Bench(args) => bench::run(*args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn completions_know_the_commands_and_the_options_of_the_configuration() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut whole = Vec::new();
            clap_complete::generate(*shell, &mut command(), "leasehold", &mut whole);
            let whole = String::from_utf8(whole).unwrap();
            for word in ["doctor", "drain-grace"] {
                assert!(whole.contains(word), "{shell}: {word}");
            }
        }
    }
}
