//! Sessions: opened once, renewed as long as their worker is heard of, ended for ever.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::fault::fault;
use super::row::{batch, hex};
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::time::micros;
use crate::store::{Attached, NewSession, SessionState};

// A repeated call, after a commit in doubt, finds its own row; no other can have the id.
const OPEN: &str = "
INSERT INTO sessions (id, node, worker, sdk, ttl, attach, expire_time) VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6)
ON CONFLICT (id) DO UPDATE SET expire_time = excluded.expire_time WHERE dead = 0 AND attach = 1";
// Late is not dead: as long as nobody has marked it, its jobs are still its own.
const RENEW: &str = "
UPDATE sessions SET expire_time = ?2 + ttl FROM json_each(?1) AS n
 WHERE sessions.id = unhex(n.value->>'$[0]') AND sessions.attach = n.value->>'$[1]' AND dead = 0
RETURNING sessions.id, sessions.attach";
const ALIVE: &str = "
SELECT id, attach FROM sessions WHERE id IN (SELECT unhex(value->>'$[0]') FROM json_each(?1)) AND dead = 0";
const CLOSE: &str = "
UPDATE sessions SET dead = 1 FROM json_each(?1) AS n
 WHERE sessions.id = unhex(n.value->>'$[0]') AND sessions.attach = n.value->>'$[1]' AND dead = 0";

/// Makes a session.
pub(super) async fn open(store: &SqliteStore, session: &NewSession) -> Result<()> {
    let (mut tx, now) = store.write().await?;
    sqlx::query(OPEN)
        .bind(session.id.uuid())
        .bind(session.node.0)
        .bind(&session.worker)
        .bind(&session.sdk)
        .bind(micros(session.ttl))
        .bind(now.after(session.ttl).0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await
}

/// Renews sessions.
pub(super) async fn renew(store: &SqliteStore, sessions: &[Attached]) -> Result<Vec<SessionState>> {
    let (mut tx, now) = store.write().await?;
    let asked = batch(&rows(sessions))?;
    let renewed: Vec<(Uuid, i64)> = sqlx::query_as(RENEW)
        .bind(&asked)
        .bind(now.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    let mut alive: HashMap<Uuid, i64> = HashMap::new();
    if renewed.len() < sessions.len() {
        let found: Vec<(Uuid, i64)> = sqlx::query_as(ALIVE)
            .bind(&asked)
            .fetch_all(&mut *tx)
            .await
            .map_err(fault)?;
        alive.extend(found);
    }
    commit(tx).await?;
    let renewed: HashSet<_> = renewed.into_iter().collect();
    Ok(sessions
        .iter()
        .map(|one| {
            let id = one.session.uuid();
            match alive.get(&id) {
                _ if renewed.contains(&(id, attach(one))) => SessionState::Alive,
                None => SessionState::Dead,
                Some(last) if *last < attach(one) => SessionState::Behind,
                Some(_) => SessionState::Moved,
            }
        })
        .collect())
}

/// Ends sessions. Their jobs are taken back by the next expiry, which also says what to offer.
pub(super) async fn close(store: &SqliteStore, sessions: &[Attached]) -> Result<()> {
    let (mut tx, _) = store.write().await?;
    sqlx::query(CLOSE)
        .bind(batch(&rows(sessions))?)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await
}

/// Sessions and their attach numbers, as the parameter of a statement.
pub(super) fn rows(sessions: &[Attached]) -> Vec<(String, i64)> {
    sessions
        .iter()
        .map(|one| (hex(one.session.uuid()), attach(one)))
        .collect()
}

/// The count as SQL has it.
pub(super) fn attach(one: &Attached) -> i64 {
    i64::try_from(one.attach).unwrap_or(i64::MAX)
}
