//! `leasehold top`: queues and workers on one screen.

mod look;
mod page;

use std::time::Duration;

use serde::Serialize;

use super::exit::{Exit, Failure};
use super::queues::{QueueJson, json};
use super::remote::{Output, Remote};
use super::sessions::SessionJson;
use super::signals::Signals;
use super::terminal::{self, Screen, line};
use look::{Look, Looks};

/// Flags of `leasehold top`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    /// From one look to the next
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// Write what there is now, all of it, and end; so it does when it does not write to a terminal, and as JSON
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|why| why.to_string())?;
    let fits = (Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&span);
    match fits {
        true => Ok(span),
        false => Err("must be from 100ms to 1h".into()),
    }
}

/// `leasehold top`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let Args {
        remote,
        interval,
        once,
    } = args;
    let server = remote.server().to_owned();
    remote
        .ask(async |client, output| {
            let looks = Looks::new(server, client);
            match output {
                Output::Json => line(json(&LookJson::of(&looks.look().await?))?),
                Output::Table if once || terminal::size().is_none() => {
                    let look = looks.look().await?;
                    page::whole(&look).iter().for_each(line);
                }
                Output::Table => follow(looks.within(interval), interval).await?,
            }
            Ok(Exit::Done)
        })
        .await
}

/// Shows it again and again until somebody interrupts it. A server that is away for a while is no reason to end.
async fn follow(looks: Looks, interval: Duration) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let screen = Screen::enter();
    let mut last = None;
    loop {
        // Cancel safe: what a look has asked for may be thrown away.
        let looked = tokio::select! {
            () = signals.next() => return Ok(()),
            looked = looks.look() => looked,
        };
        let trouble = match looked {
            Ok(look) => {
                last = Some(look);
                None
            }
            Err(failure) => Some(failure.why),
        };
        let (columns, lines) = terminal::size().unwrap_or((80, 24));
        // In the last column some terminals would wrap, or clear what stands there with the rest of the line.
        let size = (columns.saturating_sub(1), lines);
        screen.show(&page::fitted(last.as_ref(), trouble.as_deref(), size));
        // Cancel safe: these only wait.
        tokio::select! {
            () = signals.next() => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

#[derive(Serialize)]
struct LookJson<'a> {
    server: &'a str,
    /// What the node says of itself.
    health: &'a str,
    nodes: Vec<NodeJson<'a>>,
    queues: Vec<QueueJson<'a>>,
    more_queues: bool,
    sessions: Vec<SessionJson<'a>>,
    more_sessions: bool,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    node: &'a str,
    sessions: usize,
    in_flight: u64,
}

impl<'a> LookJson<'a> {
    fn of(look: &'a Look) -> Self {
        let nodes = look.nodes().into_iter();
        Self {
            server: &look.server,
            health: &look.health,
            nodes: nodes
                .map(|(node, (sessions, in_flight))| NodeJson {
                    node,
                    sessions,
                    in_flight,
                })
                .collect(),
            queues: look.queues.iter().map(QueueJson::of).collect(),
            more_queues: look.more_queues,
            sessions: look.sessions.iter().map(SessionJson::of).collect(),
            more_sessions: look.more_sessions,
        }
    }
}
