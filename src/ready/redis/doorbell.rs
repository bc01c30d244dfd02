//! Waits for something to do: the one blocking read of a node, on a connection of its own.
//!
//! It reads each line's stream from an entry that was delivered, if it can be told the last one. So what was added before
//! the read begins rings at once, nothing that came in between is missed, and what is merely held by some node rings at
//! most once. How far a line was delivered is asked of the server only when this node cannot know it: see `places`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, Value, pipe};

use super::reply::{self, Fault};
use super::{CALL_MAX, GROUP, RedisReady, Ring, TRIES, ask, away, lock};
use crate::error::Result;
use crate::store::{EntryId, Epoch, Line};

/// The longest BLOCK.
const BLOCK_MAX: Duration = Duration::from_secs(2);
/// What the connection waits for an answer: longer than any BLOCK.
const RESPONSE_MAX: Duration = Duration::from_secs(4);
/// Entries of the bell, and of each line, that one read looks at.
const BELL_COUNT: usize = 20;
/// How often a read that was left behind is told to end.
const UNBLOCK_TRIES: usize = 2;
/// A read that has ended lets the next command be answered within that time.
const ENDED_WITHIN: Duration = Duration::from_millis(20);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What lasts from one call to the next.
#[derive(Default)]
pub(super) struct Doorbell(Mutex<State>);

#[derive(Default)]
struct State {
    line: Option<Wire>,
    /// Last entry of the bell that was heard; `None`: the node has just come.
    heard: Option<EntryId>,
    /// When the newest entry of the bell was last asked for.
    asked_at: Option<Instant>,
    failures: u32,
    failed_at: Option<Instant>,
}

/// The connection, and its number at the server.
#[derive(Clone)]
struct Wire {
    conn: MultiplexedConnection,
    id: i64,
    /// A read was sent on it whose answer nobody has waited for.
    busy: bool,
}

impl RedisReady {
    // Cancel safe: nothing is taken, and what was heard of the bell is noted in the step that returns it. A read that
    // is left behind is ended by the next call.
    pub(super) async fn wait_for_ring(&self, lines: &[Line], wait: Duration) -> Result<Ring> {
        let until = Instant::now() + wait.min(BLOCK_MAX);
        if let Some(pause) = self.doorbell.pause() {
            // Whoever calls without a pause after an error gets one here.
            tokio::time::sleep(pause.min(wait)).await;
        }
        let result = self.listen(lines, until).await;
        let mut state = lock(&self.doorbell.0);
        match &result {
            Ok(_) => state.failures = 0,
            Err(_) => {
                state.failures = state.failures.saturating_add(1);
                state.failed_at = Some(Instant::now());
                state.line = None;
            }
        }
        result
    }

    async fn listen(&self, lines: &[Line], until: Instant) -> Result<Ring> {
        let mut wire = self.bounded(self.wire()).await?;
        for _ in 0..TRIES {
            let Some((epoch, from)) = self.bounded(self.positions(lines)).await? else {
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            lock(&self.doorbell.0).line = Some(Wire {
                busy: true,
                ..wire.clone()
            });
            let read = self.read_from(epoch, lines, &from, left);
            let answer = ask(&mut wire.conn, &read).await?.pop().unwrap_or_default();
            lock(&self.doorbell.0).line = Some(wire.clone());
            if reply::fault(&answer) == Some(Fault::Gone) {
                self.bounded(self.vanished(epoch)).await?;
                self.bounded(self.nudge_all()).await?;
                continue;
            }
            // A read that was ended from outside is like one that heard nothing.
            if !matches!(&answer, Value::ServerError(e) if e.code() == "UNBLOCKED") {
                reply::refuse_other(&answer)?;
            }
            return Ok(self.heard(&answer, epoch, lines, from.bell));
        }
        Err(away())
    }

    /// The connection of the last call if it is free, else a new one.
    async fn wire(&self) -> Result<Wire> {
        let old = lock(&self.doorbell.0).line.take();
        if let Some(mut wire) = old
            && (!wire.busy || self.unblock(&mut wire).await)
        {
            wire.busy = false;
            return Ok(wire);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CALL_MAX))
            .set_response_timeout(Some(RESPONSE_MAX));
        let mut conn = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|cause| {
                tracing::debug!(%cause, "redis: no connection for the doorbell");
                away()
            })?;
        let mut id = pipe();
        id.cmd("CLIENT").arg("ID");
        let id = match ask(&mut conn, &id).await?.pop() {
            Some(Value::Int(id)) => id,
            // Not allowed to ask: then a read that is left behind costs a connection.
            _ => -1,
        };
        Ok(Wire {
            conn,
            id,
            busy: false,
        })
    }

    /// Ends a read that was left behind. `false`: it is not known to have ended, and may still be on its way.
    async fn unblock(&self, wire: &mut Wire) -> bool {
        if wire.id < 0 {
            return false;
        }
        for _ in 0..UNBLOCK_TRIES {
            let mut unblock = pipe();
            unblock.cmd("CLIENT").arg("UNBLOCK").arg(wire.id);
            match self.ask(&unblock).await.as_deref() {
                Ok([Value::Int(1)]) => return true,
                Ok([Value::Int(0)]) => {}
                _ => return false,
            }
            // It has ended by itself, or has not begun. What is answered behind it says that it has ended.
            let mut behind = pipe();
            behind.cmd("PING");
            let answer = tokio::time::timeout(ENDED_WITHIN, ask(&mut wire.conn, &behind)).await;
            if matches!(answer, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }

    /// Where to read on. `None`: the epoch is over, begin again.
    async fn positions(&self, lines: &[Line]) -> Result<Option<(Epoch, Positions)>> {
        let epoch = self.epoch_seen().await?;
        if let Some(known) = self.known(epoch, lines) {
            return Ok(Some((epoch, known)));
        }
        if !self.make_sure(epoch, lines.iter()).await? {
            return Ok(None);
        }
        let mut look = Pipeline::with_capacity(lines.len() + 2);
        for line in lines {
            look.cmd("XINFO")
                .arg("GROUPS")
                .arg(self.keys.line(epoch, line));
        }
        look.cmd("XREVRANGE")
            .arg(self.keys.bell())
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1);
        look.cmd("GET").arg(self.keys.marker());
        let mut answers = self.ask(&look).await?;
        if !self.still(epoch, answers.pop().as_ref()) {
            return Ok(None);
        }
        let bell = answers.pop().unwrap_or_default();
        let mut delivered = Vec::with_capacity(lines.len());
        for answer in &answers {
            reply::refuse_other(answer)?;
            let group = reply::items(answer)
                .iter()
                .find(|group| reply::named(group, "name").and_then(reply::text) == Some(GROUP));
            let Some(last) = group
                .and_then(|group| reply::named(group, "last-delivered-id"))
                .and_then(reply::entry_id)
            else {
                self.vanished(epoch).await?;
                return Ok(None);
            };
            delivered.push(last);
        }
        let newest = reply::items(&bell)
            .first()
            .and_then(|entry| reply::entry_id(reply::items(entry).first()?))
            .unwrap_or(EntryId { ms: 0, seq: 0 });
        self.places.set(epoch, lines, &delivered);
        let mut state = lock(&self.doorbell.0);
        state.asked_at = Some(Instant::now());
        // A newest entry below what was heard: the bell is another one, of which nothing was heard.
        let heard = match state.heard {
            None => newest,
            Some(heard) if newest < heard => EntryId { ms: 0, seq: 0 },
            Some(heard) => heard,
        };
        state.heard = Some(heard);
        Ok(Some((
            epoch,
            Positions {
                delivered,
                bell: heard,
            },
        )))
    }

    /// Where to read on, if that is known without asking.
    fn known(&self, epoch: Epoch, lines: &[Line]) -> Option<Positions> {
        let bell = {
            let state = lock(&self.doorbell.0);
            let fresh = state.asked_at?.elapsed() < BLOCK_MAX;
            state.heard.filter(|_| fresh)?
        };
        let delivered = self.places.of(epoch, lines)?;
        Some(Positions { delivered, bell })
    }

    fn read_from(
        &self,
        epoch: Epoch,
        lines: &[Line],
        from: &Positions,
        left: Duration,
    ) -> Pipeline {
        let mut pipe = pipe();
        let read = pipe.cmd("XREAD").arg("COUNT").arg(BELL_COUNT);
        let block = left.as_millis();
        // 0 would mean for ever.
        if block > 0 {
            read.arg("BLOCK").arg(u64::try_from(block).unwrap_or(1));
        }
        read.arg("STREAMS").arg(self.keys.bell());
        for line in lines {
            read.arg(self.keys.line(epoch, line));
        }
        read.arg(reply::written(from.bell));
        for last in &from.delivered {
            read.arg(reply::written(*last));
        }
        pipe
    }

    fn heard(&self, answer: &Value, epoch: Epoch, lines: &[Line], mut last: EntryId) -> Ring {
        let bell = self.keys.bell();
        let own = self.consumer();
        let mut ring = Ring::default();
        for (name, entries) in reply::streams(answer) {
            let name = reply::text(name);
            if name != Some(bell.as_str()) {
                let line = lines
                    .iter()
                    .find(|line| name == Some(self.keys.line(epoch, line).as_str()));
                let first = reply::items(entries)
                    .first()
                    .and_then(|entry| reply::entry_id(reply::items(entry).first()?));
                if let (Some(line), Some(first)) = (line, first) {
                    self.places.rang(epoch, line, first);
                }
                ring.work |= !reply::items(entries).is_empty();
                continue;
            }
            for entry in reply::items(entries) {
                let [place, fields] = reply::items(entry) else {
                    continue;
                };
                last = last.max(reply::entry_id(place).unwrap_or(last));
                ring.nudge |= reply::named(fields, "nudge").is_some();
                ring.work |= reply::named(fields, "epoch").is_some();
                // What this node put back itself is no news to it.
                let by = reply::named(fields, "work").and_then(reply::text);
                ring.work |= by.is_some_and(|by| by != own);
            }
        }
        lock(&self.doorbell.0).heard = Some(last);
        ring
    }
}

/// From where a read goes on.
struct Positions {
    delivered: Vec<EntryId>,
    bell: EntryId,
}

impl Doorbell {
    /// How long to wait before the next try, with jitter; `None`: the last one went well.
    fn pause(&self) -> Option<Duration> {
        let state = lock(&self.0);
        let failed_at = state.failed_at.filter(|_| state.failures > 0)?;
        let full = BACKOFF_MIN
            .saturating_mul(1 << state.failures.min(10))
            .min(BACKOFF_MAX);
        let pause = full.mul_f64(rand::random_range(0.5..1.0));
        pause.checked_sub(failed_at.elapsed())
    }
}
