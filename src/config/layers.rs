//! The sources of a configuration, one on top of the other.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{Config, Fault, OPTIONS, Opt};

/// Where a value comes from. A later one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Source {
    /// Nobody said anything.
    #[default]
    Default,
    /// The file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// What the sources say, before anything is read. A test makes its own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Path and text of the file, if there is one.
    pub file: Option<(PathBuf, String)>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// Flags: key of the option and value.
    pub flags: Vec<(&'static str, String)>,
}

/// Variables that are no options: of this and other commands.
const OTHER_VARIABLES: &[&str] = &["LEASEHOLD_CONFIG", "LEASEHOLD_SERVER"];

impl Sources {
    /// Reads the file (`config`, else LEASEHOLD_CONFIG) and takes the process's environment.
    ///
    /// # Errors
    /// A file that was named and cannot be read.
    pub fn of_process(
        config: Option<&Path>,
        flags: Vec<(&'static str, String)>,
    ) -> Result<Self, Fault> {
        let named = match config {
            Some(path) => Some(path.to_owned()),
            None => std::env::var_os("LEASEHOLD_CONFIG")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        };
        let file = named
            .map(|path| match std::fs::read_to_string(&path) {
                Ok(text) => Ok((path, text)),
                Err(why) => Err(Fault {
                    key: path.display().to_string(),
                    what: format!("cannot be read: {why}"),
                    cure: "another --config, or none".into(),
                }),
            })
            .transpose()?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok()?;
                name.starts_with("LEASEHOLD_")
                    .then(|| (name, value.to_string_lossy().into_owned()))
            })
            .collect();
        Ok(Self {
            file,
            environment,
            flags,
        })
    }
}

/// A configuration, and where each value is from.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Source by key; what is not here is a default.
    pub sources: BTreeMap<&'static str, Source>,
    /// Worth a line in the log, but no reason to refuse. The environment is shared with others (an orchestrator that
    /// has a service called "leasehold" sets LEASEHOLD_PORT), so an unknown variable is here rather than a fault.
    pub warnings: Vec<String>,
    /// Every value that cannot be read, where what lies below it stands, and every unknown key.
    pub faults: Vec<Fault>,
}

/// Puts the sources on top of each other. What is wrong is told beside the rest, which can then be checked, too.
pub fn load(sources: &Sources) -> Loaded {
    let mut loaded = Loaded::default();
    let mut faults = Vec::new();

    if let Some((path, text)) = &sources.file {
        match text.parse::<toml::Table>() {
            Ok(table) => {
                for (key, value) in &table {
                    match (OPTIONS.iter().find(|opt| opt.key == key), plain(value)) {
                        (Some(opt), Some(value)) => {
                            loaded.set(opt, Source::File, &value, &mut faults);
                        }
                        (Some(opt), None) => faults.push(Fault {
                            key: opt.key.into(),
                            what: format!("is no plain value in {}", path.display()),
                            cure: format!("{} = \"...\"", opt.key),
                        }),
                        (None, _) => faults.push(Fault {
                            key: key.clone(),
                            what: format!("is not known, in {}", path.display()),
                            cure: format!("one of {}", keys()),
                        }),
                    }
                }
            }
            Err(why) => {
                let line = why
                    .span()
                    .and_then(|span| text.get(..span.start))
                    .map_or(1, |before| before.matches('\n').count() + 1);
                faults.push(Fault {
                    key: format!("{}:{line}", path.display()),
                    // Only the parser's own words: its full message quotes the line, which may hold a password.
                    what: format!("is not TOML: {}", why.message()),
                    cure: "key = \"value\" lines".into(),
                });
            }
        }
    }
    for (name, value) in &sources.environment {
        match OPTIONS.iter().find(|opt| opt.env == name) {
            Some(opt) => loaded.set(opt, Source::Environment, value, &mut faults),
            None if OTHER_VARIABLES.contains(&name.as_str()) => {}
            None => loaded
                .warnings
                .push(format!("{name} is set, but no option has this name")),
        }
    }
    for (key, value) in &sources.flags {
        if let Some(opt) = OPTIONS.iter().find(|opt| opt.key == *key) {
            loaded.set(opt, Source::Flag, value, &mut faults);
        }
    }
    loaded.faults = faults;
    loaded
}

impl Loaded {
    /// Lines of key, value and source, for people.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for opt in OPTIONS {
            let value = (opt.get)(&self.config);
            let source = self.sources.get(opt.key).copied().unwrap_or_default();
            text.push_str(&format!("{:<15} {value:<40} ({source})\n", opt.key));
        }
        text
    }

    fn set(&mut self, opt: &Opt, source: Source, value: &str, faults: &mut Vec<Fault>) {
        match (opt.set)(&mut self.config, value) {
            Ok(()) => {
                self.sources.insert(opt.key, source);
            }
            Err(shape) => {
                let name = match source {
                    Source::Flag => format!("--{}", opt.flag),
                    Source::Environment => opt.env.to_owned(),
                    Source::File | Source::Default => opt.key.to_owned(),
                };
                faults.push(Fault {
                    key: name,
                    what: format!("{value:?} cannot be read"),
                    cure: shape.into(),
                });
            }
        }
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

fn keys() -> String {
    let keys: Vec<_> = OPTIONS.iter().map(|opt| opt.key).collect();
    keys.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::reference_markdown;

    fn sources(
        file: &str,
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Sources {
        Sources {
            file: Some(("conf.toml".into(), file.into())),
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            flags: flags.iter().map(|(k, v)| (*k, (*v).into())).collect(),
        }
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        let loaded = load(&sources(
            "lease_ttl = \"20s\"\nlog = \"warn\"\nnode = \"file\"\nmigrate = false",
            &[("LEASEHOLD_LOG", "debug"), ("LEASEHOLD_NODE", "env")],
            &[("node", "flag")],
        ));
        assert_eq!(loaded.config.lease_ttl.as_secs(), 20);
        assert_eq!(loaded.config.log, "debug");
        assert_eq!(loaded.config.node, "flag");
        assert!(!loaded.config.migrate);
        assert_eq!(loaded.sources.get("node"), Some(&Source::Flag));
        let told = loaded.describe();
        assert!(
            told.contains("(environment)") && told.contains("(default)"),
            "{told}"
        );
    }

    #[test]
    fn unknown_keys_and_unreadable_values_are_told_together() {
        let faults = load(&sources(
            "lissten = \"x\"\nlease_ttl = 30\ndata = [1]",
            &[("LEASEHOLD_LISTEN", "here")],
            &[("migrate", "maybe")],
        ))
        .faults;
        let keys: Vec<_> = faults.iter().map(|f| f.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "data",
                "lease_ttl",
                "lissten",
                "LEASEHOLD_LISTEN",
                "--migrate"
            ]
        );
    }

    #[test]
    fn a_broken_file_is_told_with_its_line_and_without_its_text() {
        let faults = load(&sources("log = \"info\"\nredis_url = hunter2", &[], &[])).faults;
        let told = faults.first().unwrap().to_string();
        assert!(told.starts_with("conf.toml:2"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn a_stranger_in_the_environment_is_a_warning() {
        let loaded = load(&sources(
            "",
            &[("LEASEHOLD_PORT_7070_TCP", "tcp://10.0.0.1:7070")],
            &[],
        ));
        assert_eq!((loaded.warnings.len(), loaded.faults.len()), (1, 0));
    }

    #[test]
    fn the_names_of_an_option_agree() {
        for opt in OPTIONS {
            assert_eq!(opt.flag, opt.key.replace('_', "-"));
            assert_eq!(opt.env, format!("LEASEHOLD_{}", opt.key.to_uppercase()));
            assert!(reference_markdown().contains(opt.env));
        }
    }

    #[test]
    fn what_an_option_shows_it_also_reads() {
        let mut config = Config::default();
        for opt in OPTIONS {
            let shown = (opt.get)(&config);
            assert_eq!((opt.set)(&mut config, &shown), Ok(()), "{}", opt.key);
        }
        assert_eq!(config, Config::default());
    }
}
