//! `leasehold queues`: see queues and steer them.

mod defaults;
mod drain;

use std::time::Duration;
mod json;

use serde::Serialize;
use worker_sdk::{Client, Queue};

use super::bulk;
use super::exit::{Exit, Failure};
use super::remote::{Output, Remote, failure_of, pages};
use super::terminal::{brief, line, note, plain, table, told};
use defaults::Defaults;
pub(super) use json::QueueJson;

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
    #[command(alias = "show")]
    Get {
        /// Name of the queue
        queue: String,
        /// Show it as it is, and a line whenever it has changed, until it is interrupted
        #[arg(long)]
        watch: bool,
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
        Verb::Get { queue, watch: true } => watch(&client, &queue, output).await?,
        Verb::Get { queue, .. } => show(&client.queue(&queue).await.map_err(failure_of)?, output)?,
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

async fn list(client: &Client, limit: u32) -> Result<Vec<Queue>, Failure> {
    pages(limit, async |size, token| {
        let page = client.queues(size, &token).await?;
        Ok((page.queues, page.next_page_token))
    })
    .await
}

/// A line whenever it has changed. It ends by an error, or when nobody reads it any more, or somebody interrupts it.
async fn watch(client: &Client, queue: &str, output: Output) -> Result<(), Failure> {
    let mut changes = client.watch_queue(queue);
    while let Some(queue) = changes.next().await {
        let queue = queue.map_err(failure_of)?;
        let text = match output {
            Output::Json => one_line(&QueueJson::of(&queue))?,
            Output::Table => change(&queue),
        };
        if !told(text) {
            break;
        }
    }
    Ok(())
}

/// What a queue has come to.
fn change(queue: &Queue) -> String {
    let stats = queue.stats.unwrap_or_default();
    let rates = stats.rates.unwrap_or_default();
    let time = stats.as_of_time.as_ref().map(ToString::to_string);
    let time = time.unwrap_or_default();
    let time = time.get(11..19).unwrap_or_default();
    let mut text = format!(
        "{time}  {}  {}  {} queued  {} running  {} scheduled  {} succeeded  {} failed  {} cancelled  {} free slots of {} sessions",
        plain(&queue.name),
        state(queue),
        stats.queued,
        stats.running,
        stats.scheduled,
        stats.succeeded,
        stats.failed,
        stats.cancelled,
        stats.free_slots,
        stats.sessions,
    );
    for (what, rate) in [
        ("enqueued", rates.enqueued_per_second),
        ("succeeded", rates.succeeded_per_second),
        ("failed", rates.failed_per_second),
    ] {
        if rate > 0.0 {
            text.push_str(&format!("  {} {what}/s", per_second(rate)));
        }
    }
    text
}

fn show_all(queues: &[Queue], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let all: Vec<_> = queues.iter().map(QueueJson::of).collect();
            line(json(&all)?);
        }
        Output::Table => table(COLUMNS, queues.iter().map(columns).collect()),
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

/// On one line.
pub(super) fn one_line(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|why| Failure::trouble(why.to_string()))
}

/// What a table of queues has.
pub(super) const COLUMNS: [&str; 13] = [
    "QUEUE",
    "STATE",
    "QUEUED",
    "RUNNING",
    "SCHEDULED",
    "FAILED",
    "OLDEST",
    "SESSIONS",
    "FREE",
    "ENQUEUED/S",
    "STARTED/S",
    "SUCCEEDED/S",
    "FAILED/S",
];

/// A queue as its row.
pub(super) fn columns(queue: &Queue) -> Vec<String> {
    let stats = queue.stats.unwrap_or_default();
    let rates = stats.rates.unwrap_or_default();
    vec![
        plain(&queue.name),
        state(queue).to_owned(),
        stats.queued.to_string(),
        stats.running.to_string(),
        stats.scheduled.to_string(),
        stats.failed.to_string(),
        stats.oldest_wait.as_ref().map(brief).unwrap_or_default(),
        stats.sessions.to_string(),
        stats.free_slots.to_string(),
        per_second(rates.enqueued_per_second),
        per_second(rates.started_per_second),
        per_second(rates.succeeded_per_second),
        per_second(rates.failed_per_second),
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
    let rates = stats.rates.unwrap_or_default();
    let rates = [
        ("enqueued/s", rates.enqueued_per_second),
        ("started/s", rates.started_per_second),
        ("succeeded/s", rates.succeeded_per_second),
        ("failed/s", rates.failed_per_second),
    ];
    lines.extend(rates.map(|(name, rate)| (name, per_second(rate))));
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

/// A rate, to about three digits.
pub(super) fn per_second(rate: f64) -> String {
    match rate {
        0.0 => "0".into(),
        rate if rate < 10.0 => format!("{rate:.2}"),
        rate if rate < 100.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

/// A span as proto3 JSON writes it.
fn span(span: Option<&impl ToString>) -> Option<String> {
    span.map(ToString::to_string)
}
