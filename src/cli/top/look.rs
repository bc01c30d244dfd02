//! One look at a server: its health, its queues, its workers.

use std::collections::BTreeMap;
use std::time::Duration;

use worker_sdk::proto::Session;
use worker_sdk::{Client, Queue};

use super::super::doctor;
use super::super::exit::Failure;
use super::super::remote::failure_of;

/// As many queues, and as many sessions, are looked at: one page.
const MOST: u32 = 1_000;

/// Whoever looks.
pub(super) struct Looks {
    server: String,
    client: Client,
}

/// What there is to see at some moment.
pub(super) struct Look {
    pub(super) server: String,
    pub(super) health: String,
    /// Those with the most jobs that wait or run in front.
    pub(super) queues: Vec<Queue>,
    pub(super) more_queues: bool,
    /// By worker.
    pub(super) sessions: Vec<Session>,
    pub(super) more_sessions: bool,
}

impl Looks {
    pub(super) fn new(server: String, client: Client) -> Self {
        Self { server, client }
    }

    /// A server that does not answer for so long is away.
    pub(super) fn within(self, span: Duration) -> Self {
        Self {
            client: self.client.deadline(span.max(Duration::from_secs(2))),
            ..self
        }
    }

    pub(super) async fn look(&self) -> Result<Look, Failure> {
        let client = &self.client;
        let (health, queues, sessions) = tokio::join!(
            health(&self.server),
            client.queues(MOST, ""),
            client.sessions(None, MOST, ""),
        );
        let (queues, sessions) = (queues.map_err(failure_of)?, sessions.map_err(failure_of)?);
        let mut look = Look {
            server: self.server.clone(),
            health,
            queues: queues.queues,
            more_queues: !queues.next_page_token.is_empty(),
            sessions: sessions.sessions,
            more_sessions: !sessions.next_page_token.is_empty(),
        };
        let at_work = |queue: &Queue| {
            let stats = queue.stats.unwrap_or_default();
            stats.queued + stats.running
        };
        // The sort keeps the order of the names, so that idle ones do not jump about.
        look.queues
            .sort_by_key(|queue| std::cmp::Reverse(at_work(queue)));
        look.sessions
            .sort_by(|a, b| (&a.worker, &a.id).cmp(&(&b.worker, &b.id)));
        Ok(look)
    }
}

impl Look {
    /// Nodes that have sessions: how many, and how many jobs those have.
    pub(super) fn nodes(&self) -> BTreeMap<&str, (usize, u64)> {
        let mut nodes: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
        for session in &self.sessions {
            let (sessions, in_flight) = nodes.entry(&session.node).or_default();
            *sessions += 1;
            *in_flight += u64::from(session.in_flight);
        }
        nodes
    }
}

/// What the node says of itself.
async fn health(server: &str) -> String {
    let address = server.strip_prefix("http://").unwrap_or(server);
    let address = address.trim_end_matches('/');
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let ready = match has_port {
        true => doctor::ready(address.to_owned()).await,
        false => doctor::ready(format!("{address}:80")).await,
    };
    match ready {
        Ok((_, told)) => told,
        Err(why) => why,
    }
}
