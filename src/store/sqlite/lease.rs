//! Hand-out: QUEUED jobs become RUNNING under leases of sessions that are alive.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::fault::{broken, fault};
use super::progress;
use super::row::{batch, hex, packed, priority, span, words};
use super::session::attach;
use super::{SqliteStore, commit};
use crate::error::{Error, Result};
use crate::job::limits::GRANT_BYTES_MAX;
use crate::job::{JobId, Kind, Lease, LeasedJob, Payload, Progress, QueueName, Timestamp};
use crate::store::{Ask, Granted, SessionState};

const ALIVE: &str = "
SELECT id, attach, expire_time > ?2 FROM sessions
 WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND dead = 0";
const QUEUED: &str = "
SELECT json_group_array(json_array(n.key, j.bytes))
  FROM json_each(?1) AS n CROSS JOIN jobs j ON j.id = substr(?2, 16 * n.key + 1, 16) AND j.state = 2
   AND (j.expire_at IS NULL OR j.attempt > 0 OR j.expire_at > ?3)";
const GRANT: &str = "
UPDATE jobs
   SET state = 3, revision = jobs.revision + 1, attempt = jobs.attempt + 1, session = s.id, worker = s.worker,
       start_time = ?4, timeout_time = ?4 + jobs.timeout
  FROM json_each(?1) AS n JOIN sessions s ON s.id = substr(?3, 16 * n.key + 1, 16)
 WHERE jobs.id = substr(?2, 16 * n.key + 1, 16) AND jobs.state = 2
   AND (jobs.expire_at IS NULL OR jobs.attempt > 0 OR jobs.expire_at > ?4)
   AND s.attach = n.value AND s.dead = 0 AND s.expire_time > ?4";
// All that workers get, as one row: a row for each job costs twice as much, and most of that is the driver's.
const GRANTED: &str = "
SELECT json_group_array(json_array(n.key, j.queue, j.kind, j.priority, j.attempt, j.failures, j.max_attempts,
                                   j.lost_leases, j.releases, j.timeout, j.run_time, p.headers, p.content_type,
                                   p.is_text, length(p.data))),
       coalesce(CAST(group_concat(p.data, '') AS BLOB), x'')
  FROM json_each(?1) AS n CROSS JOIN jobs j ON j.id = substr(?2, 16 * n.key + 1, 16) AND j.state = 3
  JOIN payloads p ON p.id = j.id";

/// Bytes of payloads that one call hands out at most, beyond its first job; the hints of the rest stay.
const BYTES_MAX: i64 = GRANT_BYTES_MAX as i64;

/// Hands jobs out, one answer an ask.
pub(super) async fn grant(store: &SqliteStore, asks: &[Ask]) -> Result<Vec<Granted>> {
    let (mut tx, now) = store.write().await?;
    let plan = plan(&mut tx, now, asks).await?;
    let chosen: Vec<&Ask> = asks
        .iter()
        .zip(&plan)
        .filter(|(_, step)| matches!(step, Step::Grant))
        .map(|(ask, _)| ask)
        .collect();
    let mut leased = HashMap::new();
    if !chosen.is_empty() {
        lend(&mut tx, now, &chosen).await?;
        leased = read(&mut tx, now, &chosen).await?;
        commit(tx).await?;
    }
    Ok(asks
        .iter()
        .zip(plan)
        .map(|(ask, step)| match step {
            Step::Answer(answer) => answer,
            Step::Grant => leased
                .remove(&ask.job)
                .map_or(Granted::NotQueued, |job| Granted::Lease(Box::new(job))),
        })
        .collect())
}

enum Step {
    Grant,
    Answer(Granted),
}

/// Decides each ask, in order. The guards of the UPDATE say the same once more.
async fn plan(
    connection: &mut SqliteConnection,
    now: Timestamp,
    asks: &[Ask],
) -> Result<Vec<Step>> {
    let mut sessions: Vec<String> = asks.iter().map(|ask| hex(ask.to.session.uuid())).collect();
    sessions.sort_unstable();
    sessions.dedup();
    let alive: Vec<(Uuid, i64, bool)> = sqlx::query_as(ALIVE)
        .bind(batch(&sessions)?)
        .bind(now.0)
        .fetch_all(&mut *connection)
        .await
        .map_err(fault)?;
    let alive: HashMap<Uuid, (i64, bool)> = alive
        .into_iter()
        .map(|(id, attach, in_time)| (id, (attach, in_time)))
        .collect();
    let mut queued = queued(connection, now, asks).await?;

    let mut bytes = 0;
    let refused = |state| Step::Answer(Granted::Refused(state));
    let step = |ask: &Ask| {
        match alive.get(&ask.to.session.uuid()) {
            None => return refused(SessionState::Dead),
            Some((number, _)) if *number > attach(&ask.to) => return refused(SessionState::Moved),
            Some((number, _)) if *number < attach(&ask.to) => return refused(SessionState::Behind),
            Some((_, false)) => return refused(SessionState::Lapsed),
            Some((_, true)) => {}
        }
        let Some(&size) = queued.get(&ask.job) else {
            return Step::Answer(Granted::NotQueued);
        };
        if bytes > 0 && bytes + size > BYTES_MAX {
            return Step::Answer(Granted::Locked);
        }
        bytes += size;
        // Whoever asks for it again in this batch comes too late.
        queued.remove(&ask.job);
        Step::Grant
    };
    Ok(asks.iter().map(step).collect())
}

/// The bytes of those jobs that are QUEUED, and have not expired.
async fn queued(
    connection: &mut SqliteConnection,
    now: Timestamp,
    asks: &[Ask],
) -> Result<HashMap<JobId, i64>> {
    let found: String = sqlx::query_scalar(QUEUED)
        .bind(batch(&vec![0; asks.len()])?)
        .bind(packed(asks.iter().map(|ask| ask.job.uuid())))
        .bind(now.0)
        .fetch_one(connection)
        .await
        .map_err(fault)?;
    let found: Vec<(usize, i64)> = serde_json::from_str(&found).map_err(Error::internal)?;
    let job = |(key, bytes): (usize, i64)| Some((asks.get(key)?.job, bytes));
    Ok(found.into_iter().filter_map(job).collect())
}

/// Makes jobs RUNNING under the leases that were asked for.
async fn lend(connection: &mut SqliteConnection, now: Timestamp, asks: &[&Ask]) -> Result<()> {
    let attaches: Vec<i64> = asks.iter().map(|ask| attach(&ask.to)).collect();
    let done = sqlx::query(GRANT)
        .bind(batch(&attaches)?)
        .bind(packed(asks.iter().map(|ask| ask.job.uuid())))
        .bind(packed(asks.iter().map(|ask| ask.to.session.uuid())))
        .bind(now.0)
        .execute(connection)
        .await
        .map_err(fault)?;
    // One writer: what was read in this transaction cannot have moved. If it has, nothing of this may stay.
    match usize::try_from(done.rows_affected()) == Ok(asks.len()) {
        true => Ok(()),
        false => Err(broken("a guard refused what was read under it")),
    }
}

/// Reads what was just lent.
async fn read(
    connection: &mut SqliteConnection,
    now: Timestamp,
    asks: &[&Ask],
) -> Result<HashMap<JobId, LeasedJob>> {
    let (rows, bodies): (String, Vec<u8>) = sqlx::query_as(GRANTED)
        .bind(batch(&vec![0; asks.len()])?)
        .bind(packed(asks.iter().map(|ask| ask.job.uuid())))
        .fetch_one(&mut *connection)
        .await
        .map_err(fault)?;
    let rows: Vec<LentRow> = serde_json::from_str(&rows).map_err(Error::internal)?;
    let id = |row: &LentRow| asks.get(row.key).map(|ask| ask.job);
    // Reports come from attempts, so a job of which this is the first has none.
    let again = rows.iter().filter(|row| row.attempt > 1).filter_map(id);
    let again: Vec<JobId> = again.collect();
    let mut reports = HashMap::new();
    if !again.is_empty() {
        reports = progress::read(connection, &again, true).await?;
    }
    let mut bodies = bodies.as_slice();
    let mut leased = HashMap::with_capacity(rows.len());
    for row in rows {
        let id = id(&row).ok_or_else(|| broken("json_each"))?;
        let body;
        (body, bodies) = bodies
            .split_at_checked(row.length)
            .ok_or_else(|| broken("payloads.data"))?;
        let headers = words(&row.headers)?;
        let payload = Payload {
            content_type: row.content_type.clone(),
            // Copied, so that one of them does not keep the bodies of all.
            data: Bytes::copy_from_slice(body),
            is_text: row.is_text != 0,
        };
        let job = row
            .into_row(id)
            .into_job(headers, payload, reports.remove(&id), now)?;
        leased.insert(id, job);
    }
    match leased.len() == asks.len() {
        true => Ok(leased),
        false => Err(broken("no payload")),
    }
}

/// A job of [`GRANTED`].
#[derive(Deserialize)]
struct LentRow {
    key: usize,
    queue: String,
    kind: String,
    priority: i16,
    attempt: u32,
    failures: u32,
    max_attempts: u32,
    lost_leases: u32,
    releases: u32,
    timeout: Option<i64>,
    run_time: i64,
    headers: String,
    content_type: String,
    is_text: u8,
    /// Of the body.
    length: usize,
}

impl LentRow {
    fn into_row(self, id: JobId) -> GrantRow {
        GrantRow {
            id: id.uuid(),
            queue: self.queue,
            kind: self.kind,
            priority: self.priority,
            attempt: self.attempt,
            failures: self.failures,
            max_attempts: self.max_attempts,
            lost_leases: self.lost_leases,
            releases: self.releases,
            timeout: self.timeout,
            run_time: self.run_time,
        }
    }
}

/// A job as its worker gets it, all but its body.
#[derive(FromRow)]
pub(super) struct GrantRow {
    pub id: Uuid,
    queue: String,
    kind: String,
    priority: i16,
    attempt: u32,
    failures: u32,
    max_attempts: u32,
    lost_leases: u32,
    releases: u32,
    timeout: Option<i64>,
    run_time: i64,
}

impl GrantRow {
    /// `granted`: when it was.
    pub(super) fn into_job(
        self,
        headers: BTreeMap<String, String>,
        payload: Payload,
        progress: Option<Progress>,
        granted: Timestamp,
    ) -> Result<LeasedJob> {
        let progress = progress.unwrap_or_default();
        let time_left: Option<Duration> = self.timeout.map(span);
        Ok(LeasedJob {
            lease: Lease {
                job: JobId::from_store(self.id),
                attempt: self.attempt,
            },
            queue: QueueName::from_store(&self.queue),
            kind: Kind::from_store(&self.kind),
            headers,
            payload,
            priority: priority(self.priority)?,
            failures: self.failures,
            max_attempts: self.max_attempts,
            lost_leases: self.lost_leases,
            releases: self.releases,
            time_left,
            waited: granted.since(Timestamp(self.run_time)),
            checkpoint: progress.checkpoint,
            progress_revision: progress.revision,
            resent: false,
        })
    }
}
