//! The one list of options.

use std::path::PathBuf;
use std::time::Duration;

use super::origins::origins;
use super::{Config, SecretUrl};

/// What an option is an option of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A node of the full service.
    Serve,
    /// The embedded server.
    Dev,
    /// Brings the schema up to date.
    Migrate,
    /// Tries everything.
    Doctor,
    /// Prints what is in force.
    Config,
}

/// One option: its names, its meaning, how it is read and shown.
#[derive(Debug)]
pub struct Opt {
    /// Key in the file.
    pub key: &'static str,
    /// Long flag, without the dashes.
    pub flag: &'static str,
    /// Variable of the environment.
    pub env: &'static str,
    /// Name of its value in help; `None`: a switch, which may stand alone for "true".
    pub value: Option<&'static str>,
    /// What it does, with its unit.
    pub help: &'static str,
    /// Which commands have it.
    pub of: &'static [Command],
    /// Reads a value into the configuration, or says what a value looks like.
    pub set: fn(&mut Config, &str) -> Result<(), &'static str>,
    /// Shows the value in force, without secrets.
    pub get: fn(&Config) -> String,
}

use Command::{Dev, Doctor, Migrate, Serve};

/// All of them, in the order of the documentation.
pub static OPTIONS: &[Opt] = &[
    Opt {
        key: "listen",
        flag: "listen",
        env: "LEASEHOLD_LISTEN",
        value: Some("ADDRESS"),
        help: "Address of the one port for gRPC and HTTP",
        of: &[Serve, Dev, Doctor],
        set: |c, text| {
            put(
                &mut c.listen,
                text.parse().ok(),
                "an address like 127.0.0.1:7070",
            )
        },
        get: |c| c.listen.to_string(),
    },
    Opt {
        key: "allow_insecure",
        flag: "allow-insecure",
        env: "LEASEHOLD_ALLOW_INSECURE",
        value: None,
        help: "Listen beyond loopback although there is no authentication yet: whoever reaches the port may do everything",
        of: &[Serve, Dev],
        set: |c, text| put(&mut c.allow_insecure, switch(text), SWITCH),
        get: |c| c.allow_insecure.to_string(),
    },
    Opt {
        key: "database_url",
        flag: "database-url",
        env: "LEASEHOLD_DATABASE_URL",
        value: Some("URL"),
        help: "Postgres 15 or newer, the truth",
        of: &[Serve, Migrate, Doctor],
        set: |c, text| put(&mut c.database_url, Some(secret(text)), ""),
        get: |c| shown(c.database_url.as_ref()),
    },
    Opt {
        key: "redis_url",
        flag: "redis-url",
        env: "LEASEHOLD_REDIS_URL",
        value: Some("URL"),
        help: "Redis 7.0 or newer, the ready-list",
        of: &[Serve, Doctor],
        set: |c, text| put(&mut c.redis_url, Some(secret(text)), ""),
        get: |c| shown(c.redis_url.as_ref()),
    },
    Opt {
        key: "redis_prefix",
        flag: "redis-prefix",
        env: "LEASEHOLD_REDIS_PREFIX",
        value: Some("NAME"),
        help: "First part of every key in Redis; all nodes of one service have the same",
        of: &[Serve, Doctor],
        set: |c, text| put(&mut c.redis_prefix, Some(text.into()), ""),
        get: |c| c.redis_prefix.clone(),
    },
    Opt {
        key: "migrate",
        flag: "migrate",
        env: "LEASEHOLD_MIGRATE",
        value: Some("true|false"),
        help: "Bring the schema up to date at start; safe with many nodes",
        of: &[Serve],
        set: |c, text| put(&mut c.migrate, switch(text), SWITCH),
        get: |c| c.migrate.to_string(),
    },
    Opt {
        key: "lease_ttl",
        flag: "lease-ttl",
        env: "LEASEHOLD_LEASE_TTL",
        value: Some("DURATION"),
        help: "How long a job stays with a worker that is not heard of, when the worker has no wish; 10s to 10m",
        of: &[Serve, Dev],
        set: |c, text| put(&mut c.lease_ttl, span(text), SPAN),
        get: |c| told(c.lease_ttl),
    },
    Opt {
        key: "web_origins",
        flag: "web-origins",
        env: "LEASEHOLD_WEB_ORIGINS",
        value: Some("ORIGINS"),
        help: "Origins of pages that may call from a browser, between commas; other pages are refused",
        of: &[Serve, Dev],
        set: |c, text| {
            put(
                &mut c.web_origins,
                origins(text),
                "origins like https://jobs.example.org, between commas",
            )
        },
        get: |c| c.web_origins.join(","),
    },
    Opt {
        key: "drain_grace",
        flag: "drain-grace",
        env: "LEASEHOLD_DRAIN_GRACE",
        value: Some("DURATION"),
        help: "How long a stopping node lets its streams and calls end; up to 10m",
        of: &[Serve, Dev],
        set: |c, text| put(&mut c.drain_grace, span(text), SPAN),
        get: |c| told(c.drain_grace),
    },
    Opt {
        key: "data",
        flag: "data",
        env: "LEASEHOLD_DATA",
        value: Some("DIR"),
        help: "Folder of the embedded server",
        of: &[Dev],
        set: |c, text| put(&mut c.data, Some(PathBuf::from(text)), ""),
        get: |c| c.data.display().to_string(),
    },
    Opt {
        key: "ephemeral",
        flag: "ephemeral",
        env: "LEASEHOLD_EPHEMERAL",
        value: None,
        help: "Keep the embedded server's data in a temporary folder that goes with it",
        of: &[Dev],
        set: |c, text| put(&mut c.ephemeral, switch(text), SWITCH),
        get: |c| c.ephemeral.to_string(),
    },
    Opt {
        key: "node",
        flag: "node",
        env: "LEASEHOLD_NODE",
        value: Some("NAME"),
        help: "Name of this node, for people; host:pid when empty",
        of: &[Serve, Dev],
        set: |c, text| put(&mut c.node, Some(text.into()), ""),
        get: |c| c.node.clone(),
    },
    Opt {
        key: "log",
        flag: "log",
        env: "LEASEHOLD_LOG",
        value: Some("FILTER"),
        help: "error, warn, info, debug, trace, or a filter like leasehold=debug,info",
        of: &[Serve, Dev, Migrate, Doctor],
        set: |c, text| put(&mut c.log, Some(text.into()), ""),
        get: |c| c.log.clone(),
    },
];

/// The reference of all options, as a table for the documentation.
pub fn reference_markdown() -> String {
    let defaults = Config::default();
    let mut table = String::from(
        "| Key in the file | Flag | Environment | Default | Meaning |\n|---|---|---|---|---|\n",
    );
    for opt in OPTIONS {
        let Opt {
            key,
            flag,
            env,
            help,
            ..
        } = opt;
        let default = match (opt.get)(&defaults) {
            none if none.is_empty() => String::new(),
            some => format!("`{some}`"),
        };
        let help = help.replace('|', "\\|");
        table.push_str(&format!(
            "| `{key}` | `--{flag}` | `{env}` | {default} | {help} |\n"
        ));
    }
    table
}

const SWITCH: &str = "true or false";
const SPAN: &str = "a duration with its unit, like 30s or 2m";

fn put<T>(into: &mut T, value: Option<T>, shape: &'static str) -> Result<(), &'static str> {
    *into = value.ok_or(shape)?;
    Ok(())
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn span(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok()
}

fn told(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

fn secret(text: &str) -> Option<SecretUrl> {
    // Compose files and unit files set unused variables to nothing.
    (!text.is_empty()).then(|| SecretUrl::new(text))
}

fn shown(url: Option<&SecretUrl>) -> String {
    url.map(ToString::to_string).unwrap_or_default()
}
