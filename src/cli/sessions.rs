//! `leasehold sessions`: the workers that are there, and one that is to leave.

use std::collections::BTreeMap;

use serde::Serialize;
use worker_sdk::Client;
use worker_sdk::proto::Session;

use super::exit::{Exit, Failure};
use super::queues::json;
use super::remote::{Output, Remote, failure_of};
use super::terminal::{line, note, plain, table};

/// Sessions of one page.
const PAGE: u32 = 500;

/// Flags of `leasehold sessions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only those that take jobs of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Asks the worker of a session to leave as by SIGTERM: it gets no more jobs
    Drain {
        /// Id of the session
        session: String,
        /// Why; kept in the server's audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

/// `leasehold sessions`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let Args {
        remote,
        verb,
        queue,
        limit,
    } = args;
    remote
        .ask(async |client, output| {
            if let Some(Verb::Drain { session, reason }) = verb {
                if queue.is_some() {
                    return Err(Failure::usage("--queue is for the list alone"));
                }
                let asked = client.drain_session(&session, &reason).await;
                asked.map_err(failure_of)?;
                note(format_args!("session {session} is asked to leave"));
                return Ok(Exit::Done);
            }
            let found = list(&client, queue.as_deref(), limit).await?;
            match output {
                Output::Json => {
                    let all: Vec<_> = found.iter().map(SessionJson::of).collect();
                    line(json(&all)?);
                }
                Output::Table => table(
                    [
                        "SESSION",
                        "WORKER",
                        "NODE",
                        "QUEUES",
                        "IN FLIGHT",
                        "TTL LEFT",
                        "SDK",
                    ],
                    found.iter().map(columns).collect(),
                ),
            }
            Ok(Exit::Done)
        })
        .await
}

/// Page after page, until there are enough or no more.
async fn list(client: &Client, queue: Option<&str>, limit: u32) -> Result<Vec<Session>, Failure> {
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let page = client.sessions(queue, left.min(PAGE), &token).await;
        let page = page.map_err(failure_of)?;
        found.extend(page.sessions);
        token = page.next_page_token;
        if token.is_empty() || found.len() >= limit as usize {
            return Ok(found);
        }
    }
}

fn columns(session: &Session) -> Vec<String> {
    let queues = session.queues.iter().map(|of| match of.max_in_flight {
        0 => of.queue.clone(),
        most => format!("{}:{most}", of.queue),
    });
    let mut slots = format!("{} of {}", session.in_flight, session.max_in_flight);
    if session.draining {
        slots.push_str(", draining");
    }
    vec![
        session.id.clone(),
        plain(&session.worker),
        plain(&session.node),
        plain(&queues.collect::<Vec<_>>().join(",")),
        slots,
        session
            .ttl_left
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        plain(&session.sdk),
    ]
}

/// A session in the form of `GET /sessions`.
#[derive(Serialize)]
struct SessionJson<'a> {
    id: &'a str,
    worker: &'a str,
    sdk: &'a str,
    node: &'a str,
    queues: Vec<SubscriptionJson<'a>>,
    kinds: &'a [String],
    max_in_flight: u32,
    in_flight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left: Option<String>,
    draining: bool,
    labels: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct SubscriptionJson<'a> {
    queue: &'a str,
    max_in_flight: u32,
}

impl<'a> SessionJson<'a> {
    fn of(session: &'a Session) -> Self {
        let queues = session.queues.iter().map(|of| SubscriptionJson {
            queue: &of.queue,
            max_in_flight: of.max_in_flight,
        });
        let labels = session.labels.iter();
        Self {
            id: &session.id,
            worker: &session.worker,
            sdk: &session.sdk,
            node: &session.node,
            queues: queues.collect(),
            kinds: &session.kinds,
            max_in_flight: session.max_in_flight,
            in_flight: session.in_flight,
            ttl_left: session.ttl_left.as_ref().map(ToString::to_string),
            draining: session.draining,
            labels: labels.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        }
    }
}
