//! The configuration's options as flags, and the configuration that follows from flags, environment and file.

use std::path::PathBuf;

use clap::{Arg, ArgMatches};

use super::exit::{Exit, Failure};
use super::terminal;
use crate::config::{Command, Config, Fault, Loaded, OPTIONS, Opt, Sources, load};
use crate::telemetry::start_logs;

/// What the embedded server logs when nobody said: it has its own words for the rest.
const DEV_LOG: &str = "warn";

/// What was typed that is for the configuration.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
}

impl Given {
    /// Takes the options out of what clap read.
    pub(super) fn new(file: Option<PathBuf>, matches: &ArgMatches) -> Self {
        // An option that this command does not have is an error to clap, and absent to us.
        let value = |opt: &Opt| {
            matches
                .try_get_one::<String>(opt.key)
                .ok()
                .flatten()
                .cloned()
        };
        let flags = OPTIONS
            .iter()
            .filter_map(|opt| value(opt).map(|value| (opt.key, value)))
            .collect();
        Self { file, flags }
    }

    /// As if this had been typed, too.
    pub(super) fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.flags.push((key, value.into()));
        self
    }

    /// The configuration for `command`, checked, with logs started as it says.
    pub(super) fn config(self, command: Command) -> Result<Config, Failure> {
        let Loaded {
            mut config,
            sources,
            warnings,
            mut faults,
        } = self.read()?;
        faults.extend(config.check(command));
        if !faults.is_empty() {
            return Err(refused(&faults));
        }
        if command == Command::Dev && !sources.contains_key("log") {
            DEV_LOG.clone_into(&mut config.log);
        }
        start_logs(&config.log)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }

    /// What the sources say, without a check of whether a command could start with it.
    pub(super) fn load(self) -> Result<Loaded, Failure> {
        let loaded = self.read()?;
        match loaded.faults.is_empty() {
            true => Ok(loaded),
            false => Err(refused(&loaded.faults)),
        }
    }

    fn read(self) -> Result<Loaded, Failure> {
        let sources = Sources::of_process(self.file.as_deref(), self.flags);
        Ok(load(&sources.map_err(|fault| refused(&[fault]))?))
    }
}

/// The options of `command` as flags; of `config`, all there are.
pub(super) fn arguments(command: Command) -> impl Iterator<Item = Arg> {
    let defaults = Config::default();
    let of = move |opt: &&Opt| command == Command::Config || opt.of.contains(&command);
    OPTIONS.iter().filter(of).map(move |opt| {
        let default = match (opt.get)(&defaults) {
            none if none.is_empty() => String::new(),
            some => format!(" [default: {some}]"),
        };
        let arg = Arg::new(opt.key)
            .long(opt.flag)
            .help(format!("{} [env: {}]{default}", opt.help, opt.env));
        match opt.value {
            Some(name) => arg.value_name(name),
            // A switch: it stands alone, or says `=false` against the environment or the file.
            None => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_name("true|false"),
        }
    })
}

/// `leasehold config`.
pub(super) fn show(given: Given) -> Result<Exit, Failure> {
    let loaded = given.load()?;
    terminal::line(loaded.describe().trim_end());
    for warning in &loaded.warnings {
        terminal::note(format_args!("warning: {warning}"));
    }
    // `dev` needs the least: what stops even that is wrong whatever is started.
    let faults = loaded.config.check(Command::Dev);
    for fault in &faults {
        terminal::note(format_args!("wrong: {fault}"));
    }
    Ok(if faults.is_empty() {
        Exit::Done
    } else {
        Exit::Usage
    })
}

fn refused(faults: &[Fault]) -> Failure {
    let lines: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    Failure::usage(format!("the configuration cannot be used:{lines}"))
}
