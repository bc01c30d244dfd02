//! `leasehold jobs enqueue`.

use std::io::Read;
use std::time::{Duration, SystemTime};

use worker_sdk::proto::payload::Body;
use worker_sdk::{Client, NewJob, Payload, Priority, UniqueConflict};

use super::watch;
use crate::cli::exit::{Exit, Failure};
use crate::cli::remote::{Output, failure_of};
use crate::job::limits::PAYLOAD_BYTES_MAX;

const JSON: &str = "application/json";

/// Flags of `leasehold jobs enqueue`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which handler runs it
    kind: String,
    /// JSON text, `@FILE`, or `-` for stdin
    #[arg(default_value = "null")]
    payload: String,
    /// Line it waits in
    #[arg(long, value_name = "NAME", default_value = "default")]
    queue: String,
    /// Media type of the payload; what is not JSON is not looked at
    #[arg(long, value_name = "TYPE", default_value = JSON)]
    content_type: String,
    /// Order of hand-out within the queue: low, normal or high
    #[arg(long, value_name = "LEVEL", value_parser = priority)]
    priority: Option<Priority>,
    /// Wait before it is due
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// When it is due, as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak, conflicts_with = "delay")]
    run_time: Option<SystemTime>,
    /// If it has not begun within this time from now, it never does
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expire_in: Option<Duration>,
    /// If it has not begun by then, it never does
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak, conflicts_with = "expire_in")]
    expire_time: Option<SystemTime>,
    /// How many attempts may fail [default: the server's, 25]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_attempts: Option<u32>,
    /// How long one attempt may take; 0s: no limit [default: the server's, 1h]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// How long it can be looked up once it is final [default: the server's, 7days]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    retention: Option<Duration>,
    /// To list and filter by
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// For the worker
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// Id of the job, a UUIDv7 of the last hour: the same call again gives the same job
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// What the job is about, in your words: as long as it is kept, the same request with this key gives the same job,
    /// and another one is an error
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// What the job works on, in your words: at most one job of the queue that is not final has it
    #[arg(long, value_name = "KEY")]
    unique_key: Option<String>,
    /// If its unique key is held: keep that job and show it, refuse this one, or replace that one if it has not begun
    /// [default: keep]
    #[arg(long, value_name = "WHAT", value_parser = unique_conflict, requires = "unique_key")]
    unique_conflict: Option<UniqueConflict>,
    /// Show each change of state or progress, and end as the job does: 0 succeeded, 1 failed or cancelled
    #[arg(long)]
    wait: bool,
}

/// `leasehold jobs enqueue`.
pub(super) async fn run(client: &Client, args: Args, output: Output) -> Result<Exit, Failure> {
    let wait = args.wait;
    let job = client
        .enqueue(new_job(args)?)
        .await
        .map_err(failure_of)?
        .job;
    if !wait {
        output.rows(false).add(&job);
        return Ok(Exit::Done);
    }
    let job = watch::follow(client, &job.id).await.map_err(failure_of)?;
    output.one(&job);
    Ok(watch::exit(&job))
}

fn new_job(args: Args) -> Result<NewJob, Failure> {
    let payload = read(&args.payload)?;
    if args.content_type == JSON
        && serde_json::from_slice::<&serde_json::value::RawValue>(&payload).is_err()
    {
        return Err(Failure::usage(
            "the payload is not JSON; quote a text as '\"text\"', or say what it is by --content-type",
        ));
    }
    let mut job = NewJob::raw(args.kind, args.content_type, payload).queue(args.queue);
    if let Some(priority) = args.priority {
        job = job.priority(priority);
    }
    if let Some(delay) = args.delay {
        job = job.delay(delay);
    }
    if let Some(time) = args.run_time {
        job = job.run_time(time);
    }
    if let Some(span) = args.expire_in {
        job = job.expires_in(span);
    }
    if let Some(time) = args.expire_time {
        job = job.expires_at(time);
    }
    if let Some(attempts) = args.max_attempts {
        job = job.max_attempts(attempts);
    }
    if let Some(timeout) = args.timeout {
        job = job.timeout(timeout);
    }
    if let Some(retention) = args.retention {
        job = job.retention(retention);
    }
    if let Some(id) = args.id {
        job = job.id(id);
    }
    if let Some(key) = args.idempotency_key {
        if key.is_empty() {
            return Err(Failure::usage("--idempotency-key must not be empty"));
        }
        job = job.idempotency_key(key);
    }
    if let Some(key) = args.unique_key {
        if key.is_empty() {
            return Err(Failure::usage("--unique-key must not be empty"));
        }
        job = job.unique_key(key);
    }
    if let Some(conflict) = args.unique_conflict {
        job = job.unique_conflict(conflict);
    }
    let job = args
        .label
        .into_iter()
        .fold(job, |job, (key, value)| job.label(key, value));
    Ok(args
        .header
        .into_iter()
        .fold(job, |job, (key, value)| job.header(key, value)))
}

/// A payload that must be JSON, from where it is.
pub(super) fn json_payload(from: &str) -> Result<Payload, Failure> {
    let data = read(from)?;
    if serde_json::from_slice::<&serde_json::value::RawValue>(&data).is_err() {
        return Err(Failure::usage(
            "the payload is not JSON; quote a text as '\"text\"'",
        ));
    }
    Ok(Payload {
        content_type: JSON.into(),
        body: Some(Body::Data(data.into())),
    })
}

/// The payload from where it is, as far as a server would take it.
fn read(from: &str) -> Result<Vec<u8>, Failure> {
    let bad = |why: std::io::Error| Failure::usage(format!("payload {from}: {why}"));
    let mut payload = Vec::new();
    let most = PAYLOAD_BYTES_MAX as u64 + 1;
    match from.strip_prefix('@') {
        Some(path) => std::fs::File::open(path)
            .map_err(bad)?
            .take(most)
            .read_to_end(&mut payload),
        None if from == "-" => std::io::stdin().lock().take(most).read_to_end(&mut payload),
        None => return Ok(from.as_bytes().to_vec()),
    }
    .map_err(bad)?;
    match payload.len() > PAYLOAD_BYTES_MAX {
        true => Err(Failure::usage(format!(
            "payload {from}: has more than {PAYLOAD_BYTES_MAX} bytes"
        ))),
        false => Ok(payload),
    }
}

/// A level as it is typed.
pub(in crate::cli) fn priority(word: &str) -> Result<Priority, String> {
    match word.to_ascii_lowercase().as_str() {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err("must be low, normal or high".into()),
    }
}

fn unique_conflict(word: &str) -> Result<UniqueConflict, String> {
    match word.to_ascii_lowercase().as_str() {
        "keep" => Ok(UniqueConflict::Keep),
        "refuse" => Ok(UniqueConflict::Refuse),
        "replace" => Ok(UniqueConflict::Replace),
        _ => Err("must be keep, refuse or replace".into()),
    }
}

pub(in crate::cli) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
