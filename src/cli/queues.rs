//! `leasehold queues`: see queues and steer them.

mod defaults;
mod drain;

use std::time::Duration;

use serde::Serialize;
use worker_sdk::{Client, Queue};

use super::bulk;
use super::exit::{Exit, Failure};
use super::remote::{Output, Remote, failure_of};
use super::terminal::{line, note, plain, table};
use defaults::{Defaults, DefaultsJson};

/// Queues of one page.
const PAGE: u32 = 500;

/// Flags of `leasehold queues`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists queues by name
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Shows a queue with its numbers
    Show {
        /// Name of the queue
        queue: String,
    },
    /// Stops hand-out, on all nodes within a second; running jobs go on, new ones are accepted
    Pause {
        /// Names of the queues
        #[arg(required = true)]
        queues: Vec<String>,
        /// Why; kept in the server's audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Pauses a queue and waits until none of its jobs runs; it stays paused
    Drain {
        /// Name of the queue
        queue: String,
        /// Why; kept in the server's audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// How long to wait
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
        within: Duration,
    },
    /// Sets what jobs get whose requests leave it out; those that are there keep what they have
    Set {
        /// Name of the queue
        queue: String,
        #[command(flatten)]
        defaults: Defaults,
        /// Only if the queue still has this etag
        #[arg(
            long,
            value_name = "ETAG",
            default_value = "",
            hide_default_value = true
        )]
        etag: String,
        /// Why; kept in the server's audit
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
    },
    /// Deletes all jobs that wait in a queue, for ever; those that run go on. Asks for the queue's name first
    Purge {
        /// Name of the queue
        queue: String,
        /// The queue's name once more, in the place of typing it when asked
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        /// Wait until all are gone; the exit code is 1 if something has kept it from that
        #[arg(long)]
        wait: bool,
        /// Why; kept in the server's audit
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
    },
    /// Lets jobs be handed out again
    Resume {
        /// Names of the queues
        #[arg(required = true)]
        queues: Vec<String>,
        /// Why; kept in the server's audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

/// `leasehold queues`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let verb = args.verb;
    args.remote
        .ask(async |client, output| act(client, verb, output).await)
        .await
}

async fn act(client: Client, verb: Verb, output: Output) -> Result<Exit, Failure> {
    match verb {
        Verb::List { limit } => show_all(&list(&client, limit).await?, output)?,
        Verb::Show { queue } => show(&client.queue(&queue).await.map_err(failure_of)?, output)?,
        Verb::Pause { queues, reason } => {
            for queue in queues {
                let paused = client.pause_queue(&queue, &reason).await;
                show(&paused.map_err(failure_of)?, output)?;
            }
        }
        Verb::Drain {
            queue,
            reason,
            within,
        } => show(
            &drain::drain(&client, &queue, &reason, within).await?,
            output,
        )?,
        Verb::Set {
            queue,
            defaults,
            etag,
            reason,
        } => {
            let (queue, fields) = defaults.of(queue, etag)?;
            let updated = client.update_queue(queue, &fields, &reason).await;
            show(&updated.map_err(failure_of)?, output)?;
        }
        Verb::Purge {
            queue,
            confirm,
            wait,
            reason,
        } => {
            confirmed(&client, &queue, confirm).await?;
            let bulk = client.purge_queue(&queue, &reason).await;
            return bulk::follow(&client, bulk.map_err(failure_of)?, wait, output).await;
        }
        Verb::Resume { queues, reason } => {
            for queue in queues {
                let resumed = client.resume_queue(&queue, &reason).await;
                show(&resumed.map_err(failure_of)?, output)?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Goes on if the queue's name was given once more, or is typed now.
async fn confirmed(client: &Client, queue: &str, given: Option<String>) -> Result<(), Failure> {
    let typed = match given {
        Some(given) => given,
        None => {
            let found = client.queue(queue).await.map_err(failure_of)?;
            let stats = found.stats.unwrap_or_default();
            let waiting = stats.scheduled + stats.queued;
            note(format_args!(
                "This deletes the {waiting} jobs that wait in {}, for ever. Type the queue's name to go on:",
                plain(queue)
            ));
            let read = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                // What cannot be read is not the name.
                let _ = std::io::stdin().read_line(&mut line);
                line
            });
            let line = read
                .await
                .map_err(|why| Failure::trouble(why.to_string()))?;
            line.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    match typed == queue {
        true => Ok(()),
        false => Err(Failure::usage(
            "that is not the queue's name: nothing was deleted",
        )),
    }
}

/// Page after page, until there are enough or no more.
async fn list(client: &Client, limit: u32) -> Result<Vec<Queue>, Failure> {
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let page = client.queues(left.min(PAGE), &token).await;
        let page = page.map_err(failure_of)?;
        found.extend(page.queues);
        token = page.next_page_token;
        if token.is_empty() || found.len() >= limit as usize {
            return Ok(found);
        }
    }
}

fn show_all(queues: &[Queue], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let all: Vec<_> = queues.iter().map(QueueJson::of).collect();
            line(json(&all)?);
        }
        Output::Table => table(
            [
                "QUEUE",
                "STATE",
                "QUEUED",
                "RUNNING",
                "SCHEDULED",
                "FAILED",
                "OLDEST",
                "SESSIONS",
                "FREE",
            ],
            queues.iter().map(columns).collect(),
        ),
    }
    Ok(())
}

fn show(queue: &Queue, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => line(json(&QueueJson::of(queue))?),
        Output::Table => {
            for (name, value) in details(queue) {
                line(format_args!("{name:<12} {value}"));
            }
        }
    }
    Ok(())
}

pub(super) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|why| Failure::trouble(why.to_string()))
}

fn columns(queue: &Queue) -> Vec<String> {
    let stats = queue.stats.unwrap_or_default();
    vec![
        plain(&queue.name),
        state(queue).to_owned(),
        stats.queued.to_string(),
        stats.running.to_string(),
        stats.scheduled.to_string(),
        stats.failed.to_string(),
        span(stats.oldest_wait.as_ref()).unwrap_or_default(),
        stats.sessions.to_string(),
        stats.free_slots.to_string(),
    ]
}

fn details(queue: &Queue) -> Vec<(&'static str, String)> {
    let stats = queue.stats.unwrap_or_default();
    let counts = [
        ("scheduled", stats.scheduled),
        ("queued", stats.queued),
        ("running", stats.running),
        ("succeeded", stats.succeeded),
        ("failed", stats.failed),
        ("cancelled", stats.cancelled),
    ];
    let mut lines = vec![
        ("queue", plain(&queue.name)),
        ("state", state(queue).to_owned()),
    ];
    lines.extend(counts.map(|(name, count)| (name, count.to_string())));
    lines.push(("sessions", stats.sessions.to_string()));
    lines.push(("free slots", stats.free_slots.to_string()));
    lines.extend(span(stats.oldest_wait.as_ref()).map(|wait| ("oldest wait", wait)));
    lines.extend(defaults::shown(queue));
    lines
}

fn state(queue: &Queue) -> &'static str {
    match queue.paused {
        true => "PAUSED",
        false => "ACTIVE",
    }
}

/// A span as proto3 JSON writes it.
fn span(span: Option<&impl ToString>) -> Option<String> {
    span.map(ToString::to_string)
}

/// A queue in the form of `GET /queues/{queue}`.
#[derive(Serialize)]
struct QueueJson<'a> {
    name: &'a str,
    paused: bool,
    #[serde(flatten)]
    defaults: DefaultsJson,
    stats: StatsJson,
    etag: &'a str,
}

#[derive(Serialize)]
struct StatsJson {
    scheduled: u64,
    queued: u64,
    running: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    sessions: u32,
    free_slots: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_wait: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of_time: Option<String>,
}

impl<'a> QueueJson<'a> {
    fn of(queue: &'a Queue) -> Self {
        let stats = queue.stats.unwrap_or_default();
        Self {
            name: &queue.name,
            paused: queue.paused,
            defaults: DefaultsJson::of(queue),
            stats: StatsJson {
                scheduled: stats.scheduled,
                queued: stats.queued,
                running: stats.running,
                succeeded: stats.succeeded,
                failed: stats.failed,
                cancelled: stats.cancelled,
                sessions: stats.sessions,
                free_slots: stats.free_slots,
                oldest_wait: span(stats.oldest_wait.as_ref()),
                as_of_time: span(stats.as_of_time.as_ref()),
            },
            etag: &queue.etag,
        }
    }
}
