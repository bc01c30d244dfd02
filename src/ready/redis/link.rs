//! The one connection that all calls share, but the doorbell's wait.
//!
//! It carries any number of calls at once: none waits for another's answer, and none asks first whether the connection
//! is still good, which would cost each a round trip. The first call that gets no answer drops it, and the next one opens
//! another.

use std::sync::Mutex;

use deadpool_redis::Connection;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, Value};

use super::{RedisReady, away, lock};
use crate::error::Result;

/// What there is of the connection.
#[derive(Default)]
pub(super) struct Link {
    wire: Mutex<State>,
    /// Held by whoever opens one: of many first calls, the others wait for that.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    wire: Option<MultiplexedConnection>,
    /// How many there were. A call that fails drops the one it used, and not one that came after.
    count: u64,
}

impl Link {
    fn present(&self) -> Option<(MultiplexedConnection, u64)> {
        let state = lock(&self.wire);
        Some((state.wire.clone()?, state.count))
    }

    fn put(&self, wire: MultiplexedConnection) {
        let mut state = lock(&self.wire);
        state.wire = Some(wire);
        state.count += 1;
    }

    /// Drops the connection that was there when `count` were. Calls that are under way on it may still be answered.
    fn cut(&self, count: u64) {
        let mut state = lock(&self.wire);
        if state.count == count {
            state.wire = None;
        }
    }

    /// Drops whatever connection there is.
    pub fn cut_any(&self) {
        lock(&self.wire).wire = None;
    }
}

impl RedisReady {
    /// Sends commands in one go on the shared connection. One answer a command, in order; an error of the server is an
    /// answer too. What is between a MULTI and its EXEC here is not mixed with what other calls send.
    pub(super) async fn ask(&self, pipe: &Pipeline) -> Result<Vec<Value>> {
        if pipe.is_empty() {
            return Ok(Vec::new());
        }
        let (mut wire, count) = self.shared().await?;
        let answers = ask(&mut wire, pipe).await;
        if answers.is_err() {
            self.link.cut(count);
            self.forget_marker();
        }
        answers
    }

    /// The shared connection, opened if there is none, and its number.
    pub(super) async fn shared(&self) -> Result<(MultiplexedConnection, u64)> {
        if let Some(wire) = self.link.present() {
            return Ok(wire);
        }
        let _turn = self.link.opening.lock().await;
        if let Some(wire) = self.link.present() {
            return Ok(wire);
        }
        let wire = self.pool.get().await.map_err(|cause| {
            tracing::debug!(%cause, "redis: no connection");
            away()
        })?;
        // Out of the pool, which would ask whether it is good each time it is used.
        self.link.put(Connection::take(wire));
        self.link.present().ok_or_else(away)
    }
}

/// Sends commands in one go. One answer a command, in order; an error of the server is an answer too.
pub(super) async fn ask(
    conn: &mut (impl ConnectionLike + Send),
    pipe: &Pipeline,
) -> Result<Vec<Value>> {
    if pipe.is_empty() {
        return Ok(Vec::new());
    }
    let answers = conn
        .req_packed_commands(pipe, 0, pipe.len())
        .await
        .map_err(|cause| {
            tracing::debug!(%cause, "redis: call failed");
            away()
        })?;
    if answers.len() == pipe.len() {
        Ok(answers)
    } else {
        Err(away())
    }
}
