//! Handing out: QUEUED jobs become RUNNING under new leases, in one guarded statement.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::pool::Pool;
use super::row::{InOrder, column, priority, span, words};
use crate::error::Result;
use crate::job::limits::GRANT_BYTES_MAX;
use crate::job::{JobId, Kind, Lease, LeasedJob, NodeId, Payload, QueueName};
use crate::store::{Ask, Attached, Granted, SessionState};

/// The sessions are locked FOR KEY SHARE, which lets renewals pass and makes sweeper and attach wait, and in the order of
/// their ids, as by those; the jobs are skipped when somebody else has them, so nothing is waited for out of that order.
/// The asks come by session, `[first:last]` of the jobs: so a session is looked at and locked once, whatever it gets.
/// All is walked by key in nested loops: joining two batches with each other would be quadratic, and nothing here joins
/// `jobs` in any other way. The rows of `fit` are QUEUED and stay so until this statement itself changes them, since it has
/// locked them: so what is logged and counted is what is granted, and the wide rows of the answer are not kept aside.
/// What has expired without having begun is left out by the clock that is read once all is locked.
const GRANT: &str = "
WITH look AS MATERIALIZED (SELECT lh_us() AS now),
held AS MATERIALIZED (
  SELECT s.id, s.worker, a.first, a.last
    FROM unnest($2::uuid[], $3::int8[], $6::int4[], $7::int4[]) AS a (session, attach, first, last)
   CROSS JOIN look t
    JOIN sessions s ON s.id = a.session AND s.attach = a.attach AND s.dead_at IS NULL AND s.expires_at > t.now
   ORDER BY s.id
     FOR KEY SHARE OF s),
locked AS MATERIALIZED (
  SELECT j.id, j.queue, s.id AS session, s.worker, octet_length(j.payload) AS size,
         CASE WHEN j.attempt = 0 THEN j.expire_at END AS expire_at
    FROM held s CROSS JOIN LATERAL unnest(($1::uuid[])[s.first:s.last]) AS a (job)
    JOIN jobs j ON j.id = a.job AND j.state = 2
     FOR UPDATE OF j SKIP LOCKED),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
fit AS MATERIALIZED (
  SELECT id, queue, session, worker FROM locked
   WHERE (expire_at IS NULL OR expire_at > (SELECT now FROM clock))
     AND ((SELECT sum(size) FROM locked) <= $5
          OR id = ANY (ARRAY(SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM locked) AS l
                              WHERE before < $5)))),
logged AS (
  INSERT INTO grants (node, created_at, check_at, jobs, sessions)
  SELECT $4, min(c.now), min(c.now) + 30000000, array_agg(l.id), array_agg(l.session)
    FROM fit l, clock c HAVING count(*) > 0),
counted AS (
  INSERT INTO queue_counts (queue, queued, running) SELECT queue, -count(*), count(*) FROM fit GROUP BY queue)
UPDATE jobs j
   SET state = 3, attempt = j.attempt + 1, revision = j.revision + 1, session = l.session, worker = l.worker,
       start_time = c.now, timeout_time = c.now + j.timeout
  FROM clock c, fit l
 WHERE j.id = l.id AND j.state = 2
RETURNING j.id, j.attempt, j.queue, j.kind, j.priority, j.failures, j.max_attempts, j.lost_leases, j.releases, j.timeout,
          j.start_time - j.run_time AS waited, j.headers::text AS headers, j.has_progress, j.payload_type,
          j.payload_is_text, j.payload";

/// With a new snapshot, and only for jobs that have any: the grant may have waited for a session while another attempt
/// began, reported and ended, and its own snapshot is from before that. From now on nobody but its leases' holders writes.
const PROGRESS: &str = "SELECT job, checkpoint, revision FROM progress WHERE job = ANY($1)";

/// With a new snapshot: what the grant left out and is still to be had.
const JOBS: &str = "
SELECT id FROM jobs
 WHERE id = ANY($1) AND state = 2 AND (attempt > 0 OR expire_at IS NULL OR expire_at > (SELECT lh_us()))";
const SESSIONS: &str = "SELECT id, attach, expires_at > (SELECT lh_us()) AS in_time FROM sessions WHERE id = ANY($1) AND dead_at IS NULL";

/// Hands jobs out.
pub(super) async fn grant(pool: &Pool, node: NodeId, asks: &[Ask]) -> Result<Vec<Granted>> {
    let mut seen = HashSet::with_capacity(asks.len());
    let firsts: Vec<&Ask> = asks.iter().filter(|ask| seen.insert(ask.job)).collect();
    if firsts.is_empty() {
        return Ok(Vec::new());
    }
    let asked = Asked::of(firsts);
    let rows = pool
        .write(|| {
            sqlx::query(GRANT)
                .bind(&asked.jobs)
                .bind(&asked.sessions)
                .bind(&asked.attaches)
                .bind(node.0)
                .bind(i64::try_from(GRANT_BYTES_MAX).unwrap_or(i64::MAX))
                .bind(&asked.firsts)
                .bind(&asked.lasts)
        })
        .await?;
    let mut leases = HashMap::with_capacity(rows.len());
    let mut progressed: Vec<Uuid> = Vec::new();
    let mut last = SameAsLast::default();
    for row in &rows {
        let (leased, has_progress) = leased(row, &mut last)?;
        if has_progress {
            progressed.push(leased.lease.job.uuid());
        }
        leases.insert(leased.lease.job, leased);
    }
    if !progressed.is_empty() {
        for row in pool
            .read(|| sqlx::query(PROGRESS).bind(&progressed))
            .await?
        {
            if let Some(leased) = leases.get_mut(&JobId::from_store(column(&row, "job")?)) {
                leased.checkpoint = column::<Option<Vec<u8>>>(&row, "checkpoint")?.map(Into::into);
                leased.progress_revision =
                    u64::try_from(column::<i64>(&row, "revision")?).unwrap_or(0);
            }
        }
    }
    let mut left_out = LeftOut::default();
    if leases.len() < asks.len() {
        left_out = LeftOut::look(pool, asks, &leases).await?;
    }
    Ok(asks
        .iter()
        .map(|ask| match leases.remove(&ask.job) {
            Some(leased) => Granted::Lease(Box::new(leased)),
            None => left_out.answer(ask),
        })
        .collect())
}

pub(super) fn attach_number(to: Attached) -> i64 {
    i64::try_from(to.attach).unwrap_or(i64::MAX)
}

/// What is asked for, by session: the jobs of each are `firsts..=lasts` of all, counted from 1.
#[derive(Default)]
struct Asked {
    jobs: Vec<Uuid>,
    sessions: Vec<Uuid>,
    attaches: Vec<i64>,
    firsts: Vec<i32>,
    lasts: Vec<i32>,
}

impl Asked {
    fn of(mut asks: Vec<&Ask>) -> Self {
        asks.sort_by_key(|ask| (ask.to.session, ask.to.attach, ask.job));
        let mut asked = Self::default();
        for asks in asks.chunk_by(|one, next| one.to == next.to) {
            let place = |count| i32::try_from(count).unwrap_or(i32::MAX);
            asked.firsts.push(place(asked.jobs.len() + 1));
            asked.jobs.extend(asks.iter().map(|ask| ask.job.uuid()));
            asked.lasts.push(place(asked.jobs.len()));
            for ask in asks.iter().take(1) {
                asked.sessions.push(ask.to.session.uuid());
                asked.attaches.push(attach_number(ask.to));
            }
        }
        asked
    }
}

/// What was seen of the asks that got nothing.
#[derive(Default)]
struct LeftOut {
    queued: HashSet<JobId>,
    /// Attach numbers of the sessions that are not dead, and whether their time is not over.
    alive: HashMap<Uuid, (i64, bool)>,
}

impl LeftOut {
    async fn look(pool: &Pool, asks: &[Ask], leases: &HashMap<JobId, LeasedJob>) -> Result<Self> {
        let rest = || asks.iter().filter(|ask| !leases.contains_key(&ask.job));
        let ids: Vec<Uuid> = rest().map(|ask| ask.job.uuid()).collect();
        let sessions: HashSet<Uuid> = asks.iter().map(|ask| ask.to.session.uuid()).collect();
        let sessions: Vec<Uuid> = sessions.into_iter().collect();
        let mut seen = Self::default();
        for row in pool.read(|| sqlx::query(JOBS).bind(&ids)).await? {
            seen.queued.insert(JobId::from_store(column(&row, "id")?));
        }
        for row in pool.read(|| sqlx::query(SESSIONS).bind(&sessions)).await? {
            let stands = (column(&row, "attach")?, column(&row, "in_time")?);
            seen.alive.insert(column(&row, "id")?, stands);
        }
        Ok(seen)
    }

    fn answer(&self, ask: &Ask) -> Granted {
        match self.alive.get(&ask.to.session.uuid()) {
            None => Granted::Refused(SessionState::Dead),
            Some((attach, _)) if *attach > attach_number(ask.to) => {
                Granted::Refused(SessionState::Moved)
            }
            Some((attach, _)) if *attach < attach_number(ask.to) => {
                Granted::Refused(SessionState::Behind)
            }
            Some((_, false)) => Granted::Refused(SessionState::Lapsed),
            Some((_, true)) if self.queued.contains(&ask.job) => Granted::Locked,
            Some((_, true)) => Granted::NotQueued,
        }
    }
}

/// Reads a job as its worker gets it from the first columns of a row, in the order of [`GRANT`], and whether it has
/// progress, which is not in it yet.
pub(super) fn leased(row: &PgRow, last: &mut SameAsLast) -> Result<(LeasedJob, bool)> {
    let mut row = InOrder::of(row);
    let lease = Lease {
        job: JobId::from_store(row.next()?),
        attempt: row.count()?,
    };
    let (queue, kind) = last.names(row.next()?, row.next()?);
    let mut leased = LeasedJob {
        lease,
        queue,
        kind,
        priority: priority(row.next()?)?,
        failures: row.count()?,
        max_attempts: row.count()?,
        lost_leases: row.count()?,
        releases: row.count()?,
        time_left: row.next::<Option<i64>>()?.map(span),
        waited: span(row.next()?),
        headers: words(row.next()?)?,
        payload: Payload::default(),
        checkpoint: None,
        progress_revision: 0,
        resent: false,
    };
    let has_progress = row.next()?;
    leased.payload = Payload {
        content_type: row.next()?,
        is_text: row.next()?,
        data: row.next::<Vec<u8>>()?.into(),
    };
    Ok((leased, has_progress))
}

/// Queue and kind of the row before: most often the next one has the same, and need not have copies.
#[derive(Default)]
pub(super) struct SameAsLast(Option<(QueueName, Kind)>);

impl SameAsLast {
    fn names(&mut self, queue: &str, kind: &str) -> (QueueName, Kind) {
        match &self.0 {
            Some(last) if last.0.as_str() == queue && last.1.as_str() == kind => last.clone(),
            _ => {
                let names = (QueueName::from_store(queue), Kind::from_store(kind));
                self.0.insert(names).clone()
            }
        }
    }
}
