//! What an operator chooses: flags over environment over file over defaults.
//!
//! [`options`] is the one list of all options. From it come the flags, the environment's names, the keys of the file,
//! the table in the documentation and what `leasehold config` prints. [`layers`] puts the sources on top of each other.

pub mod layers;
pub mod options;
mod origins;
pub mod secret;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use layers::{Loaded, Source, Sources, load};
pub use options::{Command, OPTIONS, Opt, reference_markdown};
pub use secret::SecretUrl;

use crate::job::limits::{LEASE_TTL_DEFAULT, LEASE_TTL_MAX, LEASE_TTL_MIN, WORD_BYTES_MAX};

/// Everything that can be chosen. Reading it has no effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address of the one port. Default 127.0.0.1:7070.
    pub listen: SocketAddr,
    /// Listen beyond loopback although nobody is asked who they are. Default false.
    pub allow_insecure: bool,
    /// Postgres, the truth. Required by `serve`.
    pub database_url: Option<SecretUrl>,
    /// Redis, the ready-list. Required by `serve`.
    pub redis_url: Option<SecretUrl>,
    /// First part of every key in Redis. Default "leasehold".
    pub redis_prefix: String,
    /// Bring the schema up to date at start. Default true.
    pub migrate: bool,
    /// Lease of workers that have no wish. Default 30 s.
    pub lease_ttl: Duration,
    /// Origins of pages that may call from a browser, beside the server's own. Default none.
    pub web_origins: Vec<String>,
    /// How long a stopping node lets its streams and calls end. Default 30 s.
    pub drain_grace: Duration,
    /// Folder of the embedded server. Default `.leasehold`.
    pub data: PathBuf,
    /// Let the embedded server forget everything at its end. Default false.
    pub ephemeral: bool,
    /// Name of this node, for people. Default `host:pid`.
    pub node: String,
    /// Level or filter of the logs. Default "info".
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            allow_insecure: false,
            database_url: None,
            redis_url: None,
            redis_prefix: "leasehold".into(),
            migrate: true,
            lease_ttl: LEASE_TTL_DEFAULT,
            web_origins: Vec::new(),
            drain_grace: Duration::from_secs(30),
            data: PathBuf::from(".leasehold"),
            ephemeral: false,
            node: String::new(),
            log: "info".into(),
        }
    }
}

/// Longest time that a stopping node may be told to wait.
const DRAIN_GRACE_MAX: Duration = Duration::from_secs(600);

impl Config {
    /// Every reason why `command` cannot start with this, each with its cure.
    pub fn check(&self, command: Command) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut need = |holds: bool, key: &'static str, what: String, cure: &str| {
            if !holds {
                faults.push(Fault {
                    key: key.into(),
                    what,
                    cure: cure.into(),
                });
            }
        };
        let ttl = self.lease_ttl;
        need(
            (LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(&ttl),
            "lease_ttl",
            format!("{ttl:?} is not from {LEASE_TTL_MIN:?} to {LEASE_TTL_MAX:?}"),
            "30s",
        );
        let grace = self.drain_grace;
        need(
            grace <= DRAIN_GRACE_MAX,
            "drain_grace",
            format!("{grace:?} is more than {DRAIN_GRACE_MAX:?}"),
            "30s",
        );
        need(
            crate::job::QueueName::parse(&self.redis_prefix).is_some(),
            "redis_prefix",
            format!("must match {}", crate::job::id::NAME_SHAPE),
            "leasehold",
        );
        let word = &self.node;
        need(
            word.len() <= WORD_BYTES_MAX && !word.chars().any(char::is_control),
            "node",
            format!("must have at most {WORD_BYTES_MAX} bytes and no control characters"),
            "node-1",
        );
        need(
            tracing_subscriber::EnvFilter::try_new(&self.log).is_ok(),
            "log",
            "is neither a level nor a filter".into(),
            "info, or leasehold=debug,info",
        );
        if matches!(command, Command::Serve | Command::Dev) {
            need(
                self.listen.ip().is_loopback() || self.allow_insecure,
                "listen",
                format!(
                    "{} is not loopback, and there is no authentication yet",
                    self.listen
                ),
                "127.0.0.1:7070, or allow_insecure = true where only friends can reach it",
            );
        }
        if matches!(command, Command::Serve | Command::Doctor | Command::Migrate) {
            url(
                &mut need,
                "database_url",
                self.database_url.as_ref(),
                &["postgres://", "postgresql://"],
                "postgres://user:password@host:5432/leasehold",
            );
        }
        if matches!(command, Command::Serve | Command::Doctor) {
            url(
                &mut need,
                "redis_url",
                self.redis_url.as_ref(),
                &["redis://", "redis+unix://", "unix://"],
                "redis://host:6379",
            );
        }
        faults
    }
}

fn url(
    need: &mut impl FnMut(bool, &'static str, String, &str),
    key: &'static str,
    given: Option<&SecretUrl>,
    schemes: &[&str],
    cure: &str,
) {
    let Some(given) = given else {
        return need(false, key, "is required".into(), cure);
    };
    let known = schemes
        .iter()
        .any(|scheme| given.expose().starts_with(scheme));
    need(
        known,
        key,
        format!("must begin with {}", schemes.join(" or ")),
        cure,
    );
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which option, or where it was found.
    pub key: String,
    /// What is wrong. Never shows a secret.
    pub what: String,
    /// A value that would do.
    pub cure: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, what, cure } = self;
        write!(f, "{key}: {what}; try {cure}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keys(config: &Config, command: Command) -> Vec<String> {
        config.check(command).into_iter().map(|f| f.key).collect()
    }

    #[test]
    fn dev_starts_with_the_defaults_and_serve_asks_for_its_stores() {
        let config = Config::default();
        assert!(config.check(Command::Dev).is_empty());
        assert_eq!(keys(&config, Command::Serve), ["database_url", "redis_url"]);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let config = Config {
            listen: "0.0.0.0:7070".parse().unwrap(),
            database_url: Some(SecretUrl::new("mysql://root:hunter2@host/db")),
            redis_prefix: "a b".into(),
            lease_ttl: Duration::from_secs(1),
            drain_grace: Duration::from_secs(6000),
            node: "x".repeat(300),
            log: "leasehold=loud".into(),
            ..Config::default()
        };
        assert_eq!(
            keys(&config, Command::Serve),
            [
                "lease_ttl",
                "drain_grace",
                "redis_prefix",
                "node",
                "log",
                "listen",
                "database_url",
                "redis_url"
            ]
        );
        let told: String = config
            .check(Command::Serve)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(!told.contains("hunter2"));
    }

    #[test]
    fn beyond_loopback_only_on_purpose() {
        let mut config = Config {
            listen: "[::]:7070".parse().unwrap(),
            ..Config::default()
        };
        assert_eq!(keys(&config, Command::Dev), ["listen"]);
        config.allow_insecure = true;
        assert!(config.check(Command::Dev).is_empty());
    }
}
