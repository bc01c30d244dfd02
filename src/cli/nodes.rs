//! `leasehold nodes`: the nodes that are there, and one that is to leave.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use worker_sdk::Client;
use worker_sdk::proto::Node;

use super::exit::{Exit, Failure};
use super::queues::json;
use super::remote::{Output, Remote, failure_of, pages};
use super::terminal::{line, note, plain, table};

/// How often it is looked whether a node is still there.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Flags of `leasehold nodes`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists nodes by id; one that was killed stays for an hour
    List,
    /// Asks a node to leave as by SIGTERM, and waits until it has: its workers go on by other nodes
    Drain {
        /// Id of the node, or its name if no other has that
        node: String,
        /// Why; kept in the server's audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// How long to wait for its end; more than its drain_grace
        #[arg(long, value_name = "DURATION", default_value = "45s", value_parser = humantime::parse_duration)]
        within: Duration,
    },
}

/// `leasehold nodes`.
pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let verb = args.verb;
    args.remote
        .ask(async |client, output| match verb {
            Verb::List => show(&all(&client).await?, output),
            Verb::Drain {
                node,
                reason,
                within,
            } => drain(&client, &node, &reason, within).await,
        })
        .await
}

async fn drain(
    client: &Client,
    wanted: &str,
    reason: &str,
    within: Duration,
) -> Result<Exit, Failure> {
    let nodes = all(client).await?;
    let id = id_of(&nodes, wanted)?;
    client.drain_node(&id, reason).await.map_err(failure_of)?;
    note(format_args!(
        "node {id} was asked to leave; waiting for its end"
    ));
    let until = Instant::now() + within;
    loop {
        let nodes = all(client).await.map_err(|failure| {
            let why = format!("whether it has left cannot be asked here: {}", failure.why);
            Failure::trouble(why)
        })?;
        if nodes.iter().all(|node| node.id != id) {
            note(format_args!("node {id} has left"));
            return Ok(Exit::Done);
        }
        if Instant::now() >= until {
            let why = format!("node {id} is still there after {within:?}");
            return Err(Failure::trouble(why));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A name may be that of several: of one, and one that was killed before it.
fn id_of(nodes: &[Node], wanted: &str) -> Result<String, Failure> {
    if nodes.iter().any(|node| node.id == wanted) {
        return Ok(wanted.to_owned());
    }
    let mut of_name = nodes.iter().filter(|node| node.name == wanted);
    match (of_name.next(), of_name.next()) {
        (Some(node), None) => Ok(node.id.clone()),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "several nodes are called {wanted}: name one by its id"
        ))),
        (None, _) => Err(Failure::usage(format!("there is no node {wanted}"))),
    }
}

async fn all(client: &Client) -> Result<Vec<Node>, Failure> {
    pages(u32::MAX, async |size, token| {
        let page = client.nodes(size, &token).await?;
        Ok((page.nodes, page.next_page_token))
    })
    .await
}

fn show(nodes: &[Node], output: Output) -> Result<Exit, Failure> {
    match output {
        Output::Json => {
            let all: Vec<_> = nodes.iter().map(NodeJson::of).collect();
            line(json(&all)?);
        }
        Output::Table => table(
            ["NODE", "NAME", "VERSION", "SESSIONS", "STATE", "SEEN"],
            nodes.iter().map(columns).collect(),
        ),
    }
    Ok(Exit::Done)
}

fn columns(node: &Node) -> Vec<String> {
    vec![
        node.id.clone(),
        plain(&node.name),
        plain(&node.version),
        node.sessions.to_string(),
        match node.draining {
            true => "DRAINING".to_owned(),
            false => "ACTIVE".to_owned(),
        },
        node.seen_time
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    ]
}

/// A node in the form of `GET /nodes`.
#[derive(Serialize)]
struct NodeJson<'a> {
    id: &'a str,
    name: &'a str,
    version: &'a str,
    sessions: u32,
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_time: Option<String>,
}

impl<'a> NodeJson<'a> {
    fn of(node: &'a Node) -> Self {
        Self {
            id: &node.id,
            name: &node.name,
            version: &node.version,
            sessions: node.sessions,
            draining: node.draining,
            start_time: node.start_time.as_ref().map(ToString::to_string),
            seen_time: node.seen_time.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_enough_if_it_is_one_nodes() {
        let node = |id: &str, name: &str| Node {
            id: id.into(),
            name: name.into(),
            ..Node::default()
        };
        let nodes = [node("1", "a"), node("2", "b"), node("3", "b")];
        assert_eq!(id_of(&nodes, "a"), Ok("1".into()));
        assert_eq!(id_of(&nodes, "3"), Ok("3".into()));
        assert!(id_of(&nodes, "b").unwrap_err().why.contains("several"));
        assert!(id_of(&nodes, "c").is_err());
    }
}
