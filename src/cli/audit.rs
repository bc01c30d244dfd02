//! `leasehold audit`: what was changed by hand.

use std::time::Duration;

use serde::Serialize;
use worker_sdk::{AuditEvent, Client};

use super::exit::{Exit, Failure};
use super::queues::{json, one_line};
use super::remote::{Output, Remote, pages};
use super::terminal::{line, plain, table, told};

/// How often it is asked whether there are new ones.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Of so many, the newest, whether they are new; or of NEW_MAX, if fewer than OVERLAP of these are known. Of changes that
/// come faster than that, some are not shown.
const LOOKED_AT: u32 = 100;
const OVERLAP: usize = 50;
const NEW_MAX: u32 = 1_000;

/// Flags of `leasehold audit`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    /// At most so many; the server keeps the newest 10,000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Show them oldest first, and then each new one within about a second, until it is interrupted
    #[arg(long)]
    watch: bool,
}

/// `leasehold audit`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let Args {
        remote,
        limit,
        watch,
    } = args;
    remote
        .ask(async |client, output| {
            match watch {
                true => follow(&client, limit, output).await?,
                false => show_all(&list(&client, limit).await?, output)?,
            }
            Ok(Exit::Done)
        })
        .await
}

/// Newest first.
async fn list(client: &Client, limit: u32) -> Result<Vec<AuditEvent>, Failure> {
    pages(limit, async |size, token| {
        let page = client.audit_events(size, &token).await?;
        Ok((page.events, page.next_page_token))
    })
    .await
}

/// Shows the last so many and what comes after them.
async fn follow(client: &Client, limit: u32, output: Output) -> Result<(), Failure> {
    // Of more than are shown it must be known that they are not new.
    let mut known = list(client, limit.max(NEW_MAX)).await?;
    let mut is_read = show_lines(known.get(..limit as usize).unwrap_or(&known), output)?;
    while is_read {
        tokio::time::sleep(ASK_EVERY).await;
        let mut size = LOOKED_AT;
        let news = loop {
            let newest = list(client, size).await?;
            let is_all = newest.len() < size as usize || size >= NEW_MAX;
            let (old, new): (Vec<_>, Vec<_>) =
                newest.into_iter().partition(|event| known.contains(event));
            // Numbers are not committed in their order: behind one that is known there may be one that is not, but not
            // behind many.
            if is_all || old.len() >= OVERLAP {
                break new;
            }
            size = NEW_MAX;
        };
        is_read = show_lines(&news, output)?;
        known.splice(0..0, news);
        known.truncate(2 * NEW_MAX as usize);
    }
    Ok(())
}

/// A line each, oldest first. `false`: nobody reads them any more.
fn show_lines(events: &[AuditEvent], output: Output) -> Result<bool, Failure> {
    for event in events.iter().rev() {
        let text = match output {
            Output::Json => one_line(&EventJson::of(event))?,
            Output::Table => {
                let mut cells = columns(event);
                cells.retain(|cell| !cell.is_empty());
                cells.join("  ")
            }
        };
        if !told(text) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn show_all(events: &[AuditEvent], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let all: Vec<_> = events.iter().map(EventJson::of).collect();
            line(json(&all)?);
        }
        Output::Table => table(
            ["TIME", "ACTION", "SUBJECT", "COUNT", "ACTOR", "REASON"],
            events.iter().map(columns).collect(),
        ),
    }
    Ok(())
}

fn columns(event: &AuditEvent) -> Vec<String> {
    let time = event.time.as_ref().map(ToString::to_string);
    vec![
        time.unwrap_or_default(),
        action(event).to_owned(),
        plain(&event.subject),
        event.count.to_string(),
        plain(&event.actor),
        plain(&event.reason),
    ]
}

fn action(event: &AuditEvent) -> &'static str {
    let name = event.action().as_str_name();
    name.strip_prefix("AUDIT_ACTION_").unwrap_or(name)
}

/// A change in the form of `GET /audit`.
#[derive(Serialize)]
struct EventJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    actor: &'a str,
    action: &'static str,
    subject: &'a str,
    count: u64,
    reason: &'a str,
}

impl<'a> EventJson<'a> {
    fn of(event: &'a AuditEvent) -> Self {
        Self {
            time: event.time.as_ref().map(ToString::to_string),
            actor: &event.actor,
            action: action(event),
            subject: &event.subject,
            count: event.count,
            reason: &event.reason,
        }
    }
}
