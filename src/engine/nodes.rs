//! The nodes that are there, and those that are asked to leave: each node tells of itself every two seconds, and hears what
//! it is to let go. It hears it again and again, so that nothing depends on one message, or on which node has a session.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};
use uuid::Uuid;

use super::cursor::{Listed, Page, RawCursor};
use super::tasks::Tasks;
use super::{Core, Engine};
use crate::error::{Error, Result};
use crate::job::{By, NodeId, SessionId};
use crate::session::Event;
use crate::store::{Draining, Drains, NodeReport, NodeView};

const TELL_EVERY: Duration = Duration::from_secs(2);

/// Tells of this node until it is time to stop.
pub async fn tell(tasks: Tasks, core: Arc<Core>, name: String) {
    loop {
        let sessions = u32::try_from(core.sessions.count()).unwrap_or(u32::MAX);
        let report = NodeReport {
            id: core.node,
            name: name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            sessions,
            draining: core.is_draining(),
        };
        match core.store.present(report).await {
            Ok(drains) => let_go(&core, drains),
            Err(error) => debug!(%error, "not told that this node is there"),
        }
        if !tasks.sleep(TELL_EVERY).await {
            return;
        }
    }
}

fn let_go(core: &Core, drains: Drains) {
    if drains.node && !core.asked_to_leave.is_cancelled() {
        info!("this node was asked to leave");
        core.asked_to_leave.cancel();
    }
    for session in drains.sessions {
        if let Some(live) = core.sessions.get(session) {
            live.feed(Event::Leave);
        }
    }
}

impl Engine {
    /// Ends when somebody has asked that this node leaves, by any node. Who runs it is to drain and stop it, as when he is
    /// told to himself.
    pub async fn asked_to_leave(&self) {
        self.core.asked_to_leave.cancelled().await;
    }

    /// Nodes by id.
    ///
    /// # Errors
    /// `InvalidArgument` for the token, and the store's.
    pub async fn nodes(&self, page: &RawCursor) -> Result<Page<NodeView>> {
        let read = |place: &[u8]| Some(NodeId(Uuid::from_slice(place).ok()?));
        let (size, after) = Listed::NODES.page(page, read)?;
        let found = self.core.store.nodes(after, size + 1).await?;
        Ok(Listed::NODES.cut(found, size, |node| *node.report.id.0.as_bytes()))
    }

    /// Asks a node to leave.
    ///
    /// # Errors
    /// `NodeNotFound`, and the store's.
    pub async fn drain_node(&self, node: NodeId, by: By) -> Result<()> {
        let actor = by.actor.clone();
        match self.core.store.drain_node(node, by).await? {
            Draining::Done => info!(%node, actor = actor.as_str(), "a node is asked to leave"),
            Draining::Already => {}
            Draining::NotFound => return Err(Error::NodeNotFound(node.to_string())),
        }
        if node == self.core.node {
            let node = true;
            let sessions = Vec::new();
            let_go(&self.core, Drains { node, sessions });
        }
        Ok(())
    }

    /// Asks the worker of a session to leave.
    ///
    /// # Errors
    /// `SessionNotFound`, and the store's.
    pub async fn drain_session(&self, session: SessionId, by: By) -> Result<()> {
        let actor = by.actor.clone();
        match self.core.store.drain_session(session, by).await? {
            Draining::Done => {
                info!(%session, actor = actor.as_str(), "a session is asked to leave")
            }
            Draining::Already => {}
            Draining::NotFound => return Err(Error::SessionNotFound(session.to_string())),
        }
        let sessions = vec![session];
        let node = false;
        let_go(&self.core, Drains { node, sessions });
        Ok(())
    }
}
