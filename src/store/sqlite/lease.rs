//! Hand-out: QUEUED jobs become RUNNING under leases of sessions that are alive.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::fault::{broken, fault};
use super::progress;
use super::row::{BodyRow, batch, hex, id_list, payloads, priority, span, words};
use super::session::attach;
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::limits::GRANT_BYTES_MAX;
use crate::job::{JobId, Kind, Lease, LeasedJob, Progress, QueueName, Timestamp};
use crate::store::{Ask, Granted, SessionState};

const ALIVE: &str = "
SELECT id, attach, expire_time > ?2 FROM sessions
 WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND dead = 0";
const QUEUED: &str = "
SELECT id, bytes FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state = 2";
const GRANT: &str = "
UPDATE jobs
   SET state = 3, revision = jobs.revision + 1, attempt = jobs.attempt + 1, session = s.id, worker = s.worker,
       start_time = ?2, timeout_time = ?2 + jobs.timeout
  FROM json_each(?1) AS n JOIN sessions s ON s.id = unhex(n.value->>'$[1]')
 WHERE jobs.id = unhex(n.value->>'$[0]') AND jobs.state = 2
   AND s.attach = n.value->>'$[2]' AND s.dead = 0 AND s.expire_time > ?2
RETURNING jobs.id, jobs.queue, jobs.kind, jobs.priority, jobs.attempt, jobs.failures, jobs.max_attempts,
          jobs.lost_leases, jobs.releases, jobs.timeout, jobs.run_time";

/// Bytes of payloads that one call hands out at most, beyond its first job; the hints of the rest stay.
const BYTES_MAX: i64 = GRANT_BYTES_MAX as i64;

/// Hands jobs out, one answer an ask.
pub(super) async fn grant(store: &SqliteStore, asks: &[Ask]) -> Result<Vec<Granted>> {
    let (mut tx, now) = store.write().await?;
    let plan = plan(&mut tx, now, asks).await?;
    let rows: Vec<_> = asks
        .iter()
        .zip(&plan)
        .filter(|(_, step)| matches!(step, Step::Grant))
        .map(|(ask, _)| {
            let session = hex(ask.to.session.uuid());
            (hex(ask.job.uuid()), session, attach(&ask.to))
        })
        .collect();
    let granted: Vec<GrantRow> = sqlx::query_as(GRANT)
        .bind(batch(&rows)?)
        .bind(now.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    let ids: Vec<JobId> = granted.iter().map(|g| JobId::from_store(g.id)).collect();
    let mut bodies = payloads(&mut tx, &ids).await?;
    let mut reports = progress::read(&mut tx, &ids).await?;
    let mut leased = HashMap::with_capacity(granted.len());
    for row in granted {
        let id = JobId::from_store(row.id);
        let body = bodies.remove(&id).ok_or_else(|| broken("no payload"))?;
        leased.insert(id, row.into_job(body, reports.remove(&id), now)?);
    }
    commit(tx).await?;

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
    let ids: Vec<JobId> = asks.iter().map(|ask| ask.job).collect();
    let queued: Vec<(Uuid, i64)> = sqlx::query_as(QUEUED)
        .bind(id_list(&ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    let mut queued: HashMap<Uuid, i64> = queued.into_iter().collect();

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
        let Some(&size) = queued.get(&ask.job.uuid()) else {
            return Step::Answer(Granted::NotQueued);
        };
        if bytes > 0 && bytes + size > BYTES_MAX {
            return Step::Answer(Granted::Locked);
        }
        bytes += size;
        // Whoever asks for it again in this batch comes too late.
        queued.remove(&ask.job.uuid());
        Step::Grant
    };
    Ok(asks.iter().map(step).collect())
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
        body: BodyRow,
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
            headers: words(&body.headers)?,
            payload: body.into_payload(),
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
