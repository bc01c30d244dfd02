//! `leasehold dev`: the whole server in one process and one file, and a demonstration on request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use worker_sdk::Client;

use super::demo_worker::{self, KIND, QUEUE};
use super::exit::{Exit, Failure};
use super::folder::Folder;
use super::remote::failure_of;
use super::serve::{self, Backends, Door};
use super::settings::Given;
use super::terminal::{line, quoted};
use super::{demo, signals};
use crate::config::Command;
use crate::error::Result as ServerResult;
use crate::server;

/// Flags of `leasehold dev` beside the configuration's.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hash the files below this folder by jobs, and show the results
    #[arg(long, value_name = "DIR")]
    demo: Option<PathBuf>,
    /// End after the demonstration, with 1 if a job failed
    #[arg(long, requires = "demo")]
    exit: bool,
}

/// `leasehold dev`: runs until SIGINT or SIGTERM, or the end of the demonstration.
pub(super) async fn run(args: Args, given: Given) -> Result<Exit, Failure> {
    let config = given.config(Command::Dev)?;
    let demo = args.demo.as_deref().map(demo_worker::folder).transpose()?;
    // Before the address: who starts it twice by mistake is told so, and not to choose another address.
    let folder = if config.ephemeral {
        Folder::temporary()?
    } else {
        Folder::open(&config.data)?
    };
    let door = Door::bind(config.listen)?;
    let shutdown = signals::shutdown(folder.removal())?;
    let engine = Backends::new()?
        .embedded(&folder.database(), &config)
        .await?;
    let listener = door.open()?;
    let address = reachable(serve::address(&listener)?);
    if !config.listen.ip().is_loopback() {
        warn!(listen = %config.listen, "no authentication: whoever reaches this address may do everything");
    }
    line(format_args!("# listening on http://{address}"));

    serve::leave_when_asked(engine.clone(), shutdown.clone());
    let closing = CancellationToken::new();
    let mut server = tokio::spawn(server::serve(
        listener,
        engine,
        serve::options(&config),
        closing.clone(),
    ));
    // Cancel safe: the server's task goes on by itself, and what is dropped here is only a client and a worker.
    let exit = tokio::select! {
        exit = attend(demo, args.exit, address, &shutdown) => exit,
        ended = &mut server => return ended_by_itself(ended),
    };
    closing.cancel();
    joined(server.await)?;
    exit
}

/// What happens while the server is up.
async fn attend(
    demo: Option<PathBuf>,
    exit: bool,
    address: SocketAddr,
    shutdown: &CancellationToken,
) -> Result<Exit, Failure> {
    let Some(root) = demo else {
        line(without_demo(address));
        shutdown.cancelled().await;
        return Ok(Exit::Done);
    };
    let url = format!("http://{address}");
    let worker = demo_worker::worker(&url, root.clone(), QUEUE, demo_worker::at_once())
        .map_err(failure_of)?;
    let leaving = CancellationToken::new();
    let worker = tokio::spawn(worker.run_until(leaving.clone().cancelled_owned()));
    let client = Client::connect(&url).await.map_err(failure_of)?;
    let result = match shutdown.run_until_cancelled(demo::run(&client, root)).await {
        // Interrupted: what it has enqueued stays, and is done by the next start.
        None => Ok(Exit::Failed),
        Some(Err(failure)) => Err(failure),
        Some(Ok(report)) => {
            if !exit {
                line(after_demo(address, report.example.as_ref()));
                shutdown.cancelled().await;
                Ok(Exit::Done)
            } else {
                Ok(if report.failed == 0 {
                    Exit::Done
                } else {
                    Exit::Failed
                })
            }
        }
    };
    // The worker says goodbye while there is a server to say it to.
    leaving.cancel();
    left(worker).await?;
    result
}

async fn left(worker: JoinHandle<Result<(), worker_sdk::Error>>) -> Result<(), Failure> {
    match worker.await {
        Ok(ended) => ended.map_err(failure_of),
        Err(why) => Err(Failure::trouble(format!("the worker: {why}"))),
    }
}

type Ended = Result<ServerResult<()>, tokio::task::JoinError>;

fn joined(ended: Ended) -> Result<(), Failure> {
    match ended {
        Ok(ended) => Ok(ended?),
        Err(why) => Err(Failure::trouble(format!("the server: {why}"))),
    }
}

fn ended_by_itself(ended: Ended) -> Result<Exit, Failure> {
    joined(ended)?;
    Err(Failure::trouble("the server ended by itself"))
}

/// Where a client on this machine finds a server that listens there.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// What to try on a server that has no worker yet.
fn without_demo(address: SocketAddr) -> String {
    let (me, url) = (program(), quoted(&format!("http://{address}")));
    format!(
        "
The server runs until Ctrl-C. To try, in another terminal:

  # a worker that hashes files of this folder
  {me} demo-worker --server {url} --root .

  # a job for it, and its result
  {me} jobs enqueue {KIND} '{{\"path\":\"README.md\"}}' --queue {QUEUE} --wait --server {url}

  # how the server is
  curl -s {}
",
        quoted(&format!("http://{address}/readyz"))
    )
}

/// What to try on a server whose worker waits for more; `example` is a file and its job.
fn after_demo(address: SocketAddr, example: Option<&(String, String)>) -> String {
    let (me, url) = (program(), quoted(&format!("http://{address}")));
    let jobs = quoted(&format!("http://{address}/jobs"));
    let Some((path, job)) = example else {
        return without_demo(address);
    };
    // Written as JSON by the same code that the demonstration sends it by.
    let payload = serde_json::json!({ "path": path }).to_string();
    let http = serde_json::json!({ "queue": QUEUE, "kind": KIND, "payload": { "path": path } })
        .to_string();
    let body = serde_json::json!({ "content_type": "application/json", "text": payload });
    let grpc =
        serde_json::json!({ "job": { "queue": QUEUE, "kind": KIND, "payload": body } }).to_string();
    let (payload, http, grpc) = (quoted(&payload), quoted(&http), quoted(&grpc));
    let look = quoted(&format!("http://{address}/jobs/{job}?wait=10s"));
    let target = quoted(&address.to_string());
    format!(
        "
The server and its worker run on until Ctrl-C. To try, in another terminal:

  # a job of before, with its result
  curl -s {look}

  # one more job, over HTTP
  curl -s {jobs} -H 'Content-Type: application/json' -d {http}

  # and over gRPC
  grpcurl -plaintext -d {grpc} {target} leasehold.v1.JobService/Enqueue

  # and by this program, which waits for the result
  {me} jobs enqueue {KIND} {payload} --queue {QUEUE} --wait --server {url}
  {me} jobs list --queue {QUEUE} --limit 5 --server {url}
"
    )
}

/// This program as one would type it here.
fn program() -> String {
    let typed = std::env::args()
        .next()
        .unwrap_or_else(|| "leasehold".into());
    // A bare name was found on the PATH; a path is shown as it was typed, since it worked.
    match (
        typed.contains('/'),
        Path::new(&typed).strip_prefix(std::env::current_dir().unwrap_or_default()),
    ) {
        (true, Ok(below)) if below.components().count() > 1 => quoted(&below.to_string_lossy()),
        _ => quoted(&typed),
    }
}
