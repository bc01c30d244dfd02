//! `leasehold bulk`: one action on many jobs, on the server.

mod show;

use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use worker_sdk::{Bulk, BulkAction, BulkState, Canary, Client, Priority, StartBulkRequest};

use super::exit::{Exit, Failure};
use super::filter::Filter;
use super::jobs::priority;
use super::remote::{Output, Remote, failure_of, pages};
use super::terminal::note;

pub(super) use show::show;

use crate::clock::{Clock, SystemClock};

/// Between two looks at a bulk that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Flags of `leasehold bulk`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Brings failed jobs back; cancelled ones too, with `--state cancelled`
    Retry {
        #[command(flatten)]
        start: Start,
        /// Release so many first, watch what becomes of them, then twice as many, and so on
        #[arg(long, value_name = "N")]
        canary: Option<u32>,
        /// Stop when more than this share of those that were released at a time fails again, from 0 to 1 [default: 0.1]
        #[arg(long, value_name = "SHARE", requires = "canary")]
        max_failed_share: Option<f64>,
        /// Stop when those that were released at a time have come to nothing within this time [default: 1h]
        #[arg(long, value_name = "DURATION", requires = "canary", value_parser = humantime::parse_duration)]
        canary_within: Option<Duration>,
    },
    /// Cancels jobs that are not final; running ones are told to stop
    Cancel {
        #[command(flatten)]
        start: Start,
    },
    /// Deletes jobs that are final, with all that they hold
    Delete {
        #[command(flatten)]
        start: Start,
    },
    /// Makes jobs due now that wait for their time
    RunNow {
        #[command(flatten)]
        start: Start,
    },
    /// Gives jobs that wait another priority
    SetPriority {
        /// Low, normal or high
        #[arg(value_name = "LEVEL", value_parser = priority)]
        priority: Priority,
        #[command(flatten)]
        start: Start,
    },
    /// Shows a bulk
    Get {
        /// Id of the bulk
        id: String,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Lists bulks, newest first
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Stops a bulk before its next step; what is done stays done
    Abort {
        /// Id of the bulk
        id: String,
        /// Why; kept in the server's audit
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        reason: String,
    },
}

/// What all that start one have in common.
#[derive(Debug, clap::Args)]
struct Start {
    #[command(flatten)]
    filter: Filter,
    /// Only those that became final (retry, delete) or were accepted (the others) within this time until now
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with_all = ["created_after", "finished_after"])]
    since: Option<Duration>,
    /// Only say how many there are
    #[arg(long)]
    dry_run: bool,
    /// Jobs per second [default: as fast as the server can]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    rate: u32,
    /// Wait until it has ended; the exit code is 1 unless it has come to all jobs
    #[arg(long)]
    wait: bool,
    /// Why; kept with the bulk and in the server's audit
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
}

/// `leasehold bulk`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let verb = args.verb;
    args.remote
        .ask(async |client, output| act(client, verb, output).await)
        .await
}

async fn act(client: Client, verb: Verb, output: Output) -> Result<Exit, Failure> {
    let (action, start) = match verb {
        Verb::Retry {
            start,
            canary,
            max_failed_share,
            canary_within,
        } => {
            let within = canary_within
                .map(|span| {
                    span.try_into()
                        .map_err(|_| Failure::usage("--canary-within is too long"))
                })
                .transpose()?;
            let canary = canary.map(|size| Canary {
                size,
                max_failed_share,
                within,
            });
            let wait = start.wait || start.dry_run;
            let request = StartBulkRequest {
                canary,
                ..start.read(BulkAction::Retry)?
            };
            return begin(&client, request, wait, output).await;
        }
        Verb::SetPriority { priority, start } => {
            let wait = start.wait || start.dry_run;
            let request = StartBulkRequest {
                priority: priority.into(),
                ..start.read(BulkAction::SetPriority)?
            };
            return begin(&client, request, wait, output).await;
        }
        Verb::Cancel { start } => (BulkAction::Cancel, start),
        Verb::Delete { start } => (BulkAction::Delete, start),
        Verb::RunNow { start } => (BulkAction::RunNow, start),
        Verb::Get { id, wait } => {
            let bulk = client.bulk(&id).await.map_err(failure_of)?;
            return follow(&client, bulk, wait, output).await;
        }
        Verb::List { limit } => {
            show::show_all(&list(&client, limit).await?, output)?;
            return Ok(Exit::Done);
        }
        Verb::Abort { id, reason } => {
            show(
                &client.abort_bulk(&id, &reason).await.map_err(failure_of)?,
                output,
            )?;
            return Ok(Exit::Done);
        }
    };
    let wait = start.wait || start.dry_run;
    begin(&client, start.read(action)?, wait, output).await
}

impl Start {
    fn read(mut self, action: BulkAction) -> Result<StartBulkRequest, Failure> {
        if let Some(since) = self.since {
            let now = u64::try_from(SystemClock.now().0).unwrap_or_default();
            let from = Duration::from_micros(now)
                .checked_sub(since)
                .ok_or_else(|| Failure::usage("--since is too long"))?;
            let from = SystemTime::UNIX_EPOCH + from;
            match action {
                BulkAction::Retry | BulkAction::Delete => self.filter.finished_after = Some(from),
                _ => self.filter.created_after = Some(from),
            }
        }
        Ok(StartBulkRequest {
            action: action.into(),
            filter: Some(self.filter.read()?),
            dry_run: self.dry_run,
            rate: self.rate,
            reason: self.reason,
            ..Default::default()
        })
    }
}

async fn begin(
    client: &Client,
    request: StartBulkRequest,
    wait: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let bulk = client.start_bulk(request).await.map_err(failure_of)?;
    follow(client, bulk, wait, output).await
}

/// Shows a bulk, at once or when it has ended.
pub(super) async fn follow(
    client: &Client,
    mut bulk: Bulk,
    wait: bool,
    output: Output,
) -> Result<Exit, Failure> {
    if !wait {
        show(&bulk, output)?;
        return Ok(Exit::Done);
    }
    if !bulk.is_ended() {
        // Who stops waiting must know how to ask for it.
        note(format_args!("bulk {} goes on", bulk.id));
    }
    while !bulk.is_ended() {
        sleep(LOOK_EVERY).await;
        bulk = client.bulk(&bulk.id).await.map_err(failure_of)?;
    }
    show(&bulk, output)?;
    Ok(match bulk.state() {
        BulkState::Done => Exit::Done,
        _ => Exit::Failed,
    })
}

async fn list(client: &Client, limit: u32) -> Result<Vec<Bulk>, Failure> {
    pages(limit, async |size, token| {
        let page = client.bulks(size, &token).await?;
        Ok((page.bulks, page.next_page_token))
    })
    .await
}
