//! `leasehold jobs`: enqueue jobs and look after them, over the same gRPC as everybody.

mod enqueue;
mod json;
mod logs;
mod show;
mod watch;

pub(super) use enqueue::{pair, priority};
pub(super) use show::{level, state};

use std::time::{Duration, SystemTime};

use worker_sdk::{Client, Error, JobFilter, ListJobsRequest, Priority, View};

use super::exit::{Exit, Failure};
use super::filter::Filter;
use super::remote::{Output, Remote, failure_of};
use super::terminal;

/// Jobs of one page.
const PAGE: usize = 200;

/// Flags of `leasehold jobs`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Accepts a job; it is durable when this ends
    Enqueue(Box<enqueue::Args>),
    /// Shows a job with its payload, output, attempts and the last lines of its log
    Get {
        /// Id of the job
        id: String,
        /// Wait this long for its end, then show it as it is
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        /// Show each change of state or progress, and end as the job does: 0 succeeded, 1 failed or cancelled
        #[arg(long, conflicts_with = "wait")]
        watch: bool,
    },
    /// Shows what the attempts of a job have said: time, attempt, level and words
    Logs {
        /// Id of the job
        id: String,
        /// Go on with each new line until the job is final
        #[arg(long, short)]
        follow: bool,
    },
    /// Says why a job waits, why it ran more than once, or why it ended so
    Explain {
        /// Id of the job
        id: String,
    },
    /// Lists jobs, newest first
    List {
        #[command(flatten)]
        filter: Box<Filter>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Cancels jobs, at once and finally; a running one is told to stop
    Cancel {
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
        /// Why; kept with the attempt that was running, if one was
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Gives jobs that wait another time
    Reschedule {
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
        /// Due after this time from now
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, required_unless_present = "at")]
        delay: Option<Duration>,
        /// Due at this time, as 2030-01-31T12:00:00Z
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak, conflicts_with = "delay")]
        at: Option<SystemTime>,
    },
    /// Makes jobs due now that wait for their time
    RunNow {
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Gives jobs that wait another priority
    SetPriority {
        /// Low, normal or high
        #[arg(value_name = "LEVEL", value_parser = enqueue::priority)]
        priority: Priority,
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Deletes jobs that are final, with all that they hold
    Delete {
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Brings failed or cancelled jobs back
    Retry {
        /// Ids of the jobs
        #[arg(required = true)]
        ids: Vec<String>,
        /// Wait before they are due
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        delay: Option<Duration>,
        /// Leave them as they are, and enqueue a copy of each with this payload: JSON text, `@FILE`, or `-` for stdin
        #[arg(long, value_name = "JSON")]
        payload: Option<String>,
    },
}

/// `leasehold jobs`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let verb = args.verb;
    args.remote
        .ask(async |client, output| act(client, verb, output).await)
        .await
}

async fn act(client: Client, verb: Verb, output: Output) -> Result<Exit, Failure> {
    match verb {
        Verb::Enqueue(args) => return enqueue::run(&client, *args, output).await,
        Verb::Get {
            id, watch: true, ..
        } => {
            let job = watch::follow(&client, &id).await.map_err(failure_of)?;
            output.one(&job);
            return Ok(watch::exit(&job));
        }
        Verb::Get { id, wait, .. } => {
            output.one(&get(&client, &id, wait).await.map_err(failure_of)?)
        }
        Verb::Logs { id, follow } => {
            let shown = logs::show(&client, &id, follow, output).await;
            shown.map_err(failure_of)?;
        }
        Verb::Explain { id } => {
            let found = client.explain(&id).await.map_err(failure_of)?;
            output.findings(&found);
        }
        Verb::List { filter, limit } => {
            let filter = filter.read()?;
            list(&client, filter, limit as usize, output)
                .await
                .map_err(failure_of)?;
        }
        Verb::Cancel { ids, reason } => {
            let mut rows = output.rows(ids.len() > 1);
            for id in ids {
                rows.add(&client.cancel(&id, &reason).await.map_err(failure_of)?);
            }
        }
        Verb::Reschedule { ids, delay, at } => {
            let mut rows = output.rows(ids.len() > 1);
            for id in ids {
                let job = match at {
                    Some(time) => client.reschedule_at(&id, time).await,
                    None => client.reschedule(&id, delay.unwrap_or_default()).await,
                };
                rows.add(&job.map_err(failure_of)?);
            }
        }
        Verb::RunNow { ids } => {
            let mut rows = output.rows(ids.len() > 1);
            for id in ids {
                let job = client.reschedule(&id, Duration::ZERO).await;
                rows.add(&job.map_err(failure_of)?);
            }
        }
        Verb::SetPriority { priority, ids } => {
            let mut rows = output.rows(ids.len() > 1);
            for id in ids {
                let job = client.set_priority(&id, priority).await;
                rows.add(&job.map_err(failure_of)?);
            }
        }
        Verb::Delete { ids } => {
            for id in ids {
                client.delete(&id).await.map_err(failure_of)?;
                terminal::note(format_args!("{id}: deleted"));
            }
        }
        Verb::Retry {
            ids,
            delay,
            payload,
        } => {
            let payload = payload
                .map(|from| enqueue::json_payload(&from))
                .transpose()?;
            let mut rows = output.rows(ids.len() > 1);
            for id in ids {
                let job = match &payload {
                    None => client.retry(&id, delay).await,
                    Some(payload) => client.retry_copy(&id, delay, payload.clone()).await,
                };
                rows.add(&job.map_err(failure_of)?);
            }
        }
    }
    Ok(Exit::Done)
}

async fn get(client: &Client, id: &str, wait: Option<Duration>) -> Result<worker_sdk::Job, Error> {
    let Some(wait) = wait else {
        return client.get(id).await;
    };
    match client.wait(id, wait).await {
        Err(Error::NotFinal(job)) => Ok(*job),
        other => other,
    }
}

/// Page after page, until there are enough or no more.
async fn list(
    client: &Client,
    filter: JobFilter,
    limit: usize,
    output: Output,
) -> Result<(), Error> {
    let mut rows = output.rows(true);
    let mut left = limit;
    let mut page_token = String::new();
    while left > 0 {
        let page = client.list(ListJobsRequest {
            filter: Some(filter.clone()),
            page_size: u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX),
            page_token,
            view: View::Basic.into(),
        });
        let page = page.await?;
        for job in page.jobs.iter().take(left) {
            rows.add(job);
        }
        left = left.saturating_sub(page.jobs.len());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    rows.end();
    Ok(())
}
