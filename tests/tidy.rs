//! The rules of the house that a compiler does not know: which part may use which, and what stands nowhere.
//! Each message names the cure and the reason.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends by a panic that says what was wrong"
)]

use std::path::{Path, PathBuf};

/// A source file: its path from the repository's root, and its text without tests at its end.
struct Source {
    path: String,
    text: String,
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            found.push(Source {
                path,
                text: text
                    .split("#[cfg(test)]\nmod tests {")
                    .next()
                    .unwrap()
                    .to_owned(),
            });
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// Lines of code that have `word` on its own, comments left out.
fn uses<'a>(source: &'a Source, word: &'a str) -> impl Iterator<Item = String> + 'a {
    let has = move |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !part(before) && !part(after)
        })
    };
    source
        .text
        .lines()
        .enumerate()
        .filter_map(move |(n, line)| {
            let code = line.split("//").next().unwrap_or("");
            has(code).then(|| format!("{}:{}: {}", source.path, n + 1, line.trim()))
        })
}

fn forbid(sources: &[Source], words: &[&str], except: impl Fn(&str) -> bool, cure: &str) {
    let found: Vec<String> = sources
        .iter()
        .filter(|source| !except(&source.path))
        .flat_map(|source| {
            words
                .iter()
                .flat_map(|word| uses(source, word))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(found.is_empty(), "{cure}\n{}", found.join("\n"));
}

fn within<'a>(folders: &'a [&'a str]) -> impl Fn(&str) -> bool + 'a {
    move |path| folders.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn drivers_and_wire_types_stay_in_their_rooms() {
    let all = sources("src");
    forbid(
        &all,
        &["sqlx"],
        // The benchmark sets our figures beside what the database does without us.
        within(&["src/store/", "src/cli/bench/"]),
        "sqlx is used outside store/: ask the store for a verb instead",
    );
    forbid(
        &all,
        &["redis::"],
        within(&["src/ready/redis", "src/cli/", "src/http/tests"]),
        "redis is used outside ready/redis/: ask the ready-list for a verb instead",
    );
    forbid(
        &all,
        &["tonic", "prost", "prost_types", "tonic_types"],
        // What HTTP says of itself is read from the proto's descriptors, which are no messages of the wire.
        within(&[
            "src/grpc/",
            "src/lib.rs",
            "src/cli/",
            "src/http/openapi/descriptors.rs",
        ]),
        "the wire's types are used outside grpc/: convert at the edge, in grpc/convert.rs",
    );
}

#[test]
fn the_domain_is_pure() {
    let mut domain = sources("src/job");
    domain.extend(sources("src/session"));
    let impure = [
        "async",
        "await",
        "tokio",
        "Instant",
        "SystemTime",
        "rand",
        "tracing",
        "serde",
    ];
    let cure = "the domain does no I/O and knows no clock: time and chance come in as arguments, so that it can be model-checked";
    forbid(&domain, &impure, |_| false, cure);
}

#[test]
fn arrows_point_inward() {
    let arrows: &[(&str, &[&str])] = &[
        (
            "src/job",
            &[
                "session",
                "store",
                "ready",
                "engine",
                "grpc",
                "http",
                "cli",
                "server",
                "config",
                "telemetry",
            ],
        ),
        (
            "src/session",
            &[
                "store",
                "ready",
                "engine",
                "grpc",
                "http",
                "cli",
                "server",
                "config",
                "telemetry",
            ],
        ),
        (
            "src/store",
            &[
                "session",
                "ready",
                "engine",
                "grpc",
                "http",
                "cli",
                "server",
                "config",
                "telemetry",
            ],
        ),
        (
            "src/ready",
            &[
                "session",
                "engine",
                "grpc",
                "http",
                "cli",
                "server",
                "config",
                "telemetry",
            ],
        ),
        ("src/engine", &["grpc", "http", "cli", "server", "config"]),
        ("src/grpc", &["http", "cli", "server", "config"]),
        ("src/http", &["grpc", "cli", "server", "config"]),
    ];
    for (from, outward) in arrows {
        for to in *outward {
            let word = format!("crate::{to}");
            let cure = format!(
                "{from} uses {to}: arrows are cli, http, grpc -> engine -> store, ready, session -> job"
            );
            forbid(
                &sources(from),
                &[&word],
                |path| path.ends_with("tests.rs") || path.contains("/tests/"),
                &cure,
            );
        }
    }
}

#[test]
fn every_queue_has_a_bound() {
    let mut all = sources("src");
    all.extend(sources("worker-sdk/src"));
    forbid(
        &all,
        &["unbounded_channel", "UnboundedSender"],
        |_| false,
        "a queue without a bound: use mpsc::channel with one from limits.rs",
    );
}

#[test]
fn no_file_holds_more_than_one_idea() {
    let mut all = sources("src");
    all.extend(sources("worker-sdk/src"));
    let long: Vec<String> = all
        .iter()
        .map(|source| (source.text.lines().count(), &source.path))
        .filter(|(lines, path)| *lines > 620 && !path.ends_with("tests.rs"))
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert!(
        long.is_empty(),
        "cut these where their first doc line would need an \"and\":\n{}",
        long.join("\n")
    );
}

#[test]
fn the_sdk_can_be_used_alone() {
    let manifest = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("worker-sdk/Cargo.toml"),
    )
    .unwrap();
    for crate_name in ["sqlx", "redis", "leasehold"] {
        let depends = manifest.lines().any(|line| line.starts_with(crate_name));
        assert!(
            !depends,
            "worker-sdk depends on {crate_name}: whoever links a worker would build a server"
        );
    }
}

#[test]
fn the_readme_lists_every_option_and_metric_as_it_is() {
    let readme =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for (name, table) in [
        ("configuration", leasehold::config::reference_markdown()),
        ("metrics", leasehold::telemetry::reference_markdown()),
    ] {
        let begin = format!("<!-- {name}: made from the source -->\n");
        let at = readme
            .find(&begin)
            .unwrap_or_else(|| panic!("README.md has no place for {name}: {begin}"));
        let rest = &readme[at + begin.len()..];
        let shown = rest.split("<!-- end -->").next().unwrap();
        assert_eq!(
            shown.trim(),
            table.trim(),
            "README.md is behind: put this table of {name} there\n{table}"
        );
    }
}
