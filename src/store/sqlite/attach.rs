//! Sessions that move to a new stream, and what is known of their leases.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::FromRow;
use uuid::Uuid;

use super::fault::{broken, fault};
use super::lease::GrantRow;
use super::progress;
use super::row::{batch, hex, payloads, span, words};
use super::session::{attach as attach_number, rows as session_rows};
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::limits::GRANT_BYTES_MAX;
use crate::job::time::micros;
use crate::job::{HeldLease, JobId, Kind, Lease, QueueName, SessionId, Timestamp};
use crate::store::{Attach, Attached, Attaching, Found};

const ALIVE: &str = "SELECT attach, ttl FROM sessions WHERE id = ?1 AND dead = 0";
const ATTACH: &str = "
UPDATE sessions SET attach = ?2, node = ?3, expire_time = ?4 + ttl WHERE id = ?1 AND dead = 0 AND attach < ?2";
// A session without leases has one row all the same: it is there. A job that started in the future did so before the
// clock went back: it is not young.
const LEASES: &str = "
SELECT s.id AS holder, j.id, j.attempt, j.queue, j.kind, max(j.timeout_time - ?2, 0) AS time_left
  FROM json_each(?1) AS n
  JOIN sessions s ON s.id = unhex(n.value->>'$[0]') AND s.attach = n.value->>'$[1]' AND s.dead = 0
  LEFT JOIN jobs j ON j.session = s.id AND j.state = 3 AND (j.start_time <= ?3 OR j.start_time > ?2)";
const RUNNING: &str = "
SELECT j.session AS holder, j.id, j.attempt, j.queue, j.kind, max(j.timeout_time - ?2, 0) AS time_left
  FROM json_each(?1) AS n
  JOIN jobs j ON j.id = unhex(n.value->>'$[0]') AND j.state = 3 AND j.session = unhex(n.value->>'$[1]')";
const LEASED: &str = "
SELECT j.id, j.queue, j.kind, j.priority, j.attempt, j.failures, j.max_attempts, j.lost_leases, j.releases,
       max(j.timeout_time - ?2, 0) AS timeout, j.run_time, j.session AS holder, j.start_time, j.bytes
  FROM json_each(?1) AS n
  JOIN jobs j ON j.id = unhex(n.value->>'$[0]') AND j.attempt = n.value->>'$[1]' AND j.state = 3
             AND j.session = unhex(n.value->>'$[2]')
 ORDER BY n.key";

/// Moves sessions to new streams, one after the other.
pub(super) async fn attach(store: &SqliteStore, attaches: &[Attach]) -> Result<Vec<Attaching>> {
    let (mut tx, now) = store.write().await?;
    let mut answers = Vec::with_capacity(attaches.len());
    for one in attaches {
        let (session, number) = (one.to.session.uuid(), attach_number(&one.to));
        let alive: Option<(i64, i64)> = sqlx::query_as(ALIVE)
            .bind(session)
            .fetch_optional(&mut *tx)
            .await
            .map_err(fault)?;
        answers.push(match alive {
            None => Attaching::Gone,
            Some((last, _)) if last >= number => Attaching::Superseded,
            Some((_, ttl)) => {
                sqlx::query(ATTACH)
                    .bind(session)
                    .bind(number)
                    .bind(one.node.0)
                    .bind(now.0)
                    .execute(&mut *tx)
                    .await
                    .map_err(fault)?;
                Attaching::Resumed(span(ttl))
            }
        });
    }
    commit(tx).await?;
    Ok(answers)
}

/// The leases of sessions.
pub(super) async fn leases(
    store: &SqliteStore,
    sessions: &[Attached],
    age: Duration,
) -> Result<Vec<Option<Vec<HeldLease>>>> {
    let now = store.clock.now();
    let rows: Vec<HeldRow> = sqlx::query_as(LEASES)
        .bind(batch(&session_rows(sessions))?)
        .bind(now.0)
        .bind(now.0.saturating_sub(micros(age)))
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    let mut found: HashMap<Uuid, Vec<HeldLease>> = HashMap::new();
    for row in rows {
        let held = found.entry(row.holder).or_default();
        held.extend(row.into_held());
    }
    // One session asked for twice is answered twice.
    Ok(sessions
        .iter()
        .map(|one| found.get(&one.session.uuid()).cloned())
        .collect())
}

/// The leases under which jobs are RUNNING.
pub(super) async fn running(
    store: &SqliteStore,
    jobs: &[(JobId, SessionId)],
) -> Result<Vec<Option<HeldLease>>> {
    let asked: Vec<_> = jobs
        .iter()
        .map(|(job, session)| (hex(job.uuid()), hex(session.uuid())))
        .collect();
    let rows: Vec<HeldRow> = sqlx::query_as(RUNNING)
        .bind(batch(&asked)?)
        .bind(store.clock.now().0)
        .fetch_all(&store.readers)
        .await
        .map_err(fault)?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        let holder = SessionId::from_store(row.holder);
        if let Some(held) = row.into_held() {
            found.insert((held.lease.job, holder), held);
        }
    }
    Ok(jobs.iter().map(|asked| found.get(asked).cloned()).collect())
}

/// Reads jobs by their leases, the first of those that fit into the bytes of one answer.
pub(super) async fn leased(
    store: &SqliteStore,
    leases: &[(Lease, SessionId)],
) -> Result<Vec<Found>> {
    let asked: Vec<_> = leases
        .iter()
        .map(|(lease, session)| {
            let job = hex(lease.job.uuid());
            (job, lease.attempt, hex(session.uuid()))
        })
        .collect();
    // Two reads that must agree: no writer comes between them. Nothing is written.
    let (mut tx, now) = store.write().await?;
    let rows: Vec<LeasedRow> = sqlx::query_as(LEASED)
        .bind(batch(&asked)?)
        .bind(now.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    let mut bytes = 0;
    let fits = |row: &LeasedRow| {
        let fits = bytes < GRANT_BYTES_MAX as i64;
        bytes += row.bytes;
        fits
    };
    let (now_rows, later): (Vec<_>, Vec<_>) = rows.into_iter().partition(fits);
    let ids: Vec<JobId> = now_rows.iter().map(LeasedRow::job).collect();
    let mut bodies = payloads(&mut tx, &ids).await?;
    let mut reports = progress::read(&mut tx, &ids, true).await?;
    commit(tx).await?;
    let mut found = HashMap::with_capacity(leases.len());
    for row in later {
        found.insert((row.job(), row.holder), Found::Later);
    }
    for row in now_rows {
        let place = (row.job(), row.holder);
        let body = bodies
            .remove(&row.job())
            .ok_or_else(|| broken("no payload"))?;
        let progress = reports.remove(&row.job());
        let granted = Timestamp(row.start_time);
        let headers = words(&body.headers)?;
        let payload = body.into_payload();
        let job = row.granted.into_job(headers, payload, progress, granted)?;
        found.insert(place, Found::Job(Box::new(job)));
    }
    Ok(leases
        .iter()
        .map(|(lease, session)| {
            found
                .get(&(lease.job, session.uuid()))
                .cloned()
                .unwrap_or(Found::NotHeld)
        })
        .collect())
}

#[derive(FromRow)]
struct HeldRow {
    holder: Uuid,
    id: Option<Uuid>,
    attempt: Option<u32>,
    queue: Option<String>,
    kind: Option<String>,
    time_left: Option<i64>,
}

impl HeldRow {
    /// `None`: a session without leases.
    fn into_held(self) -> Option<HeldLease> {
        Some(HeldLease {
            lease: Lease {
                job: JobId::from_store(self.id?),
                attempt: self.attempt?,
            },
            queue: QueueName::from_store(&self.queue?),
            kind: Kind::from_store(&self.kind?),
            time_left: self.time_left.map(span),
        })
    }
}

#[derive(FromRow)]
struct LeasedRow {
    #[sqlx(flatten)]
    granted: GrantRow,
    holder: Uuid,
    start_time: i64,
    bytes: i64,
}

impl LeasedRow {
    fn job(&self) -> JobId {
        JobId::from_store(self.granted.id)
    }
}
