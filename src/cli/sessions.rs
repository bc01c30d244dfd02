//! `leasehold sessions`: the workers that are there, and one that is to leave.

use std::collections::BTreeMap;

use serde::Serialize;
use worker_sdk::Client;
use worker_sdk::RunningJob;
use worker_sdk::proto::{GetSessionResponse, Session};

use super::exit::{Exit, Failure};
use super::queues::json;
use super::remote::{Output, Remote, failure_of, pages};
use super::terminal::{brief, line, note, plain, table};

/// As many are listed if nobody says.
const LISTED: u32 = 500;

/// Flags of `leasehold sessions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists the sessions of workers; so does no word at all
    List(List),
    /// Shows a session, and the jobs that it runs
    Get {
        /// Id of the session
        id: String,
    },
    /// Asks the worker of a session to leave as by SIGTERM: it gets no more jobs
    Drain {
        /// Id of the session
        session: String,
        /// Why; kept in the server's audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only those that take jobs of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// At most so many [default: 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: Option<u32>,
}

/// `leasehold sessions`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let Args { remote, verb, list } = args;
    if verb.is_some() && (list.queue.is_some() || list.limit.is_some()) {
        return Err(Failure::usage(
            "--queue and --limit come after `list`, or without a word",
        ));
    }
    remote
        .ask(async |client, output| {
            match verb.unwrap_or(Verb::List(list)) {
                Verb::List(List { queue, limit }) => {
                    let found =
                        sessions(&client, queue.as_deref(), limit.unwrap_or(LISTED)).await?;
                    show_all(&found, output)?;
                }
                Verb::Get { id } => {
                    let runs = client.session(&id).await.map_err(failure_of)?;
                    show(&runs, output)?;
                }
                Verb::Drain { session, reason } => {
                    let asked = client.drain_session(&session, &reason).await;
                    asked.map_err(failure_of)?;
                    note(format_args!("session {session} is asked to leave"));
                }
            }
            Ok(Exit::Done)
        })
        .await
}

fn show_all(found: &[Session], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let all: Vec<_> = found.iter().map(SessionJson::of).collect();
            line(json(&all)?);
        }
        Output::Table => table(COLUMNS, found.iter().map(columns).collect()),
    }
    Ok(())
}

fn show(runs: &GetSessionResponse, output: Output) -> Result<(), Failure> {
    let session = runs.session.clone().unwrap_or_default();
    if output == Output::Json {
        let running = runs.running.iter().map(RunningJson::of);
        line(json(&RunsJson {
            session: SessionJson::of(&session),
            running: running.collect(),
            more_running: runs.more_running,
        })?);
        return Ok(());
    }
    for (name, value) in COLUMNS.iter().zip(columns(&session)) {
        line(format_args!("{:<12} {value}", name.to_lowercase()));
    }
    line(format_args!(
        "{:<12} {}",
        "kinds",
        plain(&session.kinds.join(","))
    ));
    let labels = session.labels.iter().map(|(k, v)| format!("{k}={v}"));
    let mut labels: Vec<_> = labels.collect();
    labels.sort();
    line(format_args!(
        "{:<12} {}",
        "labels",
        plain(&labels.join(","))
    ));
    if !runs.running.is_empty() {
        line("");
        let rows = runs.running.iter().map(running).collect();
        table(
            ["JOB", "ATTEMPT", "QUEUE", "KIND", "SINCE", "TIME LEFT"],
            rows,
        );
    }
    if runs.more_running {
        line("and more");
    }
    Ok(())
}

fn running(job: &RunningJob) -> Vec<String> {
    let since = job.start_time.as_ref().map(ToString::to_string);
    vec![
        job.job_id.clone(),
        job.attempt.to_string(),
        plain(&job.queue),
        plain(&job.kind),
        since.unwrap_or_default(),
        job.time_left.as_ref().map(brief).unwrap_or_default(),
    ]
}

pub(super) async fn sessions(
    client: &Client,
    queue: Option<&str>,
    limit: u32,
) -> Result<Vec<Session>, Failure> {
    pages(limit, async |size, token| {
        let page = client.sessions(queue, size, &token).await?;
        Ok((page.sessions, page.next_page_token))
    })
    .await
}

/// What a table of sessions has.
pub(super) const COLUMNS: [&str; 7] = [
    "SESSION",
    "WORKER",
    "NODE",
    "QUEUES",
    "IN FLIGHT",
    "TTL LEFT",
    "SDK",
];

/// A session as its row.
pub(super) fn columns(session: &Session) -> Vec<String> {
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
        session.ttl_left.as_ref().map(brief).unwrap_or_default(),
        plain(&session.sdk),
    ]
}

/// A session in the form of `GET /sessions/{id}`.
#[derive(Serialize)]
struct RunsJson<'a> {
    #[serde(flatten)]
    session: SessionJson<'a>,
    running: Vec<RunningJson<'a>>,
    more_running: bool,
}

#[derive(Serialize)]
struct RunningJson<'a> {
    job_id: &'a str,
    attempt: u32,
    queue: &'a str,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_left: Option<String>,
}

impl<'a> RunningJson<'a> {
    fn of(job: &'a RunningJob) -> Self {
        Self {
            job_id: &job.job_id,
            attempt: job.attempt,
            queue: &job.queue,
            kind: &job.kind,
            start_time: job.start_time.as_ref().map(ToString::to_string),
            time_left: job.time_left.as_ref().map(ToString::to_string),
        }
    }
}

/// A session in the form of `GET /sessions`.
#[derive(Serialize)]
pub(super) struct SessionJson<'a> {
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
    pub(super) fn of(session: &'a Session) -> Self {
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
