//! What a step of a bulk does to jobs: what the verbs of one job do, to all of a chunk in one statement, with which the
//! bulk's counts and its place in the chunk are written. So a step that was cut off has not happened, and one that has is
//! not repeated: each job is acted on at most once, and counted as often.

use std::time::Duration;

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::fault::is_held;
use super::pool::{Pool, Statement};
use super::row::{bound, column, segments, unlabelled};
use crate::error::{Error, Result};
use crate::job::limits::ROW_AGE_MIN;
use crate::job::time::micros;
use crate::job::{BulkAction, JobId, Lease, SessionId};
use crate::store::{BulkStep, ClaimedBulk};

/// The next jobs of the chunk that is next, if the claim is still the newest, and of those the ones that are in the states
/// that were asked for ($7) and `$unchanged`, if the action is for those alone.
macro_rules! begin {
    ($columns:literal, $unchanged:expr) => {
        concat!(
            "WITH mine AS MATERIALIZED (
  SELECT id FROM bulks WHERE id = $1 AND claim = $2 AND state = 2 AND end_time IS NULL FOR UPDATE),
picked AS MATERIALIZED (
  SELECT c.number, c.used, cardinality(c.jobs) AS size, c.jobs[c.used + 1 : c.used + $3] AS jobs,
         c.revisions[c.used + 1 : c.used + $3] AS revisions
    FROM mine m JOIN bulk_chunks c ON c.bulk = m.id AND c.released = false
     AND c.number = (SELECT x.number FROM bulk_chunks x WHERE x.bulk = $1 AND x.released = false ORDER BY x.number DESC LIMIT 1)),
asked AS MATERIALIZED (SELECT u.job, u.revision FROM picked p, unnest(p.jobs, p.revisions) AS u (job, revision)),
locked AS MATERIALIZED (
  SELECT j.id, j.queue, j.state AS was",
            $columns,
            " FROM asked a JOIN jobs j ON j.id = a.job
   WHERE j.state = ANY ($7::int2[])",
            $unchanged,
            " ORDER BY j.id FOR UPDATE OF j),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),"
        )
    };
}

/// Their revision is the one at which they were collected.
macro_rules! unchanged {
    () => {
        " AND j.revision = a.revision"
    };
}

/// What is to be done to a locked job is done to it as it is by then: of the row that this statement's snapshot has, only the id
/// is compared, since one that somebody has just moved on (a job that came due) would be passed by for its old state.
///
/// `$done` is how many of the locked jobs were acted on. Should there be no chunk any more, which cannot be, all that is
/// left counts as skipped, so that the bulk comes to its end.
macro_rules! end {
    ($done:literal, $segments:literal) => {
        concat!(
            "sums AS MATERIALIZED (
  SELECT (SELECT count(*) FROM asked) AS asked, (SELECT count(*) FROM locked) AS locked, (SELECT count(*) FROM ",
            $done,
            ") AS done),
spent AS (
  DELETE FROM bulk_chunks c USING picked p
   WHERE c.bulk = $1 AND c.released = false AND c.number = p.number AND p.used + $3 >= p.size),
moved AS (
  UPDATE bulk_chunks c SET used = p.used + $3 FROM picked p
   WHERE c.bulk = $1 AND c.released = false AND c.number = p.number AND p.used + $3 < p.size),
released AS (
  INSERT INTO bulk_chunks (bulk, released, number, jobs, revisions)
  SELECT $1, true, $6, array_agg(id), '{}' FROM done WHERE $5 HAVING count(*) > 0),
told AS (
  UPDATE bulks b
     SET done = b.done + s.done, failed = b.failed + s.locked - s.done,
         skipped = b.skipped + CASE WHEN s.asked > 0 THEN s.asked - s.locked ELSE b.total - b.done - b.skipped - b.failed END,
         stage_released = b.stage_released + s.done::int,
         claim = b.claim + 1, claim_until = 0, due_at = greatest(b.due_at, c.now - 1000000) + $4
    FROM mine m, sums s, clock c WHERE b.id = m.id)
SELECT ARRAY(SELECT id FROM done) AS acted, NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority,
       NULL::uuid[] AS jobs, NULL::uuid[] AS leases, NULL::int[] AS attempts, NULL::uuid[] AS sessions",
            $segments
        )
    };
}

/// What became QUEUED.
macro_rules! segmented {
    () => {
        "segmented AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, min(now), min(now) + 5000000, array_agg(id ORDER BY id)
    FROM done WHERE state = 2 GROUP BY queue, priority
  RETURNING id, queue, priority, jobs),"
    };
}

/// Of jobs of the chunk that have the same unique key, the oldest gets it.
const RETRY: &str = concat!(
    begin!(", j.unique_key", unchanged!()),
    "judged AS MATERIALIZED (
  SELECT l.id, l.was, l.unique_key IS NULL
         OR row_number() OVER (PARTITION BY l.queue, l.unique_key ORDER BY l.id) = 1
            AND (SELECT h.id FROM jobs h WHERE h.queue = l.queue AND h.unique_held = l.unique_key AND h.unique_held IS NOT NULL
                  LIMIT 1) IS NULL AS is_free
    FROM locked l),
done AS (
  UPDATE jobs j
     SET state = 2, revision = j.revision + 1, session = NULL, failures = 0, lost_leases = 0, released_in_row = 0,
         run_time = c.now, due_at = NULL, queued_time = c.now,
         finish_time = NULL, purge_time = NULL, failed_at = NULL, timeout_time = NULL, expire_at = NULL,
         unique_held = j.unique_key, replaced_by = NULL
    FROM clock c, judged l WHERE j.id = l.id AND j.state = l.was AND l.is_free
  RETURNING j.id, j.queue, j.priority, j.state, l.was, c.now),",
    segmented!(),
    "counted AS (
  INSERT INTO queue_counts (queue, queued, failed, cancelled)
  SELECT queue, count(*), -count(*) FILTER (WHERE was = 5), -count(*) FILTER (WHERE was = 6) FROM done GROUP BY queue),",
    end!(
        "done",
        " UNION ALL SELECT NULL, id, queue, priority, jobs, NULL, NULL, NULL FROM segmented"
    )
);

const CANCEL: &str = concat!(
    begin!(", j.session AS had", ""),
    "done AS (
  UPDATE jobs j
     SET state = 6, revision = j.revision + 1, session = NULL, due_at = NULL, expire_at = NULL, unique_held = NULL,
         timeout_time = NULL, released_in_row = 0,
         finish_time = c.now, failed_at = c.now, purge_time = greatest(c.now + j.retention, j.create_time + $9)
    FROM clock c, locked l WHERE j.id = l.id
  RETURNING j.id, j.queue, j.attempt, j.worker, j.start_time, j.purge_time, l.was, l.had, c.now),
history AS (
  INSERT INTO attempts (job, attempt, session, outcome, worker, failure_type, message, detail, start_time, end_time)
  SELECT id, attempt, had, 7, worker, '', $8, '', coalesce(start_time, now), now FROM done WHERE was = 3),
told_nodes AS (
  INSERT INTO signals (created_at, job, session, attempt) SELECT now, id, had, attempt FROM done WHERE was = 3),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id) FROM done GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, running, cancelled)
  SELECT queue, -count(*) FILTER (WHERE was = 1), -count(*) FILTER (WHERE was = 2), -count(*) FILTER (WHERE was = 3), count(*)
    FROM done GROUP BY queue),",
    end!(
        "done",
        " UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, array_agg(id), array_agg(attempt), array_agg(had)
  FROM done WHERE was = 3 HAVING count(*) > 0"
    )
);

/// As of one job: its row stays, empty, until its id is too old to be sent again.
macro_rules! delete {
    ($unchanged:expr) => {
        concat!(
            begin!(", j.labels, j.has_log", $unchanged),
            "done AS (
  UPDATE jobs j
     SET state = 7, revision = j.revision + 1, session = NULL, queue = '', kind = '', worker = '', labels = NULL, headers = NULL,
         fingerprint = '', payload = '', payload_type = '', output = NULL, output_type = NULL, idempotency_key = NULL,
         unique_key = NULL, unique_held = NULL, due_at = NULL,
         failed_at = NULL, expire_at = NULL, has_progress = false, has_log = false,
         purge_time = greatest(c.now, j.create_time + $8)
    FROM clock c, locked l WHERE j.id = l.id
  RETURNING j.id, j.purge_time, l.queue, l.labels, l.has_log, l.was),
history AS (
  DELETE FROM attempts a USING done g WHERE a.job = g.id),
progressed AS (
  DELETE FROM progress p USING done g WHERE p.job = g.id),
logged AS (
  UPDATE job_logs h SET gone = true FROM done g WHERE g.has_log AND h.job = g.id),
",
            unlabelled!("done"),
            "ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id) FROM done GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, succeeded, failed, cancelled)
  SELECT queue, -count(*) FILTER (WHERE was = 1), -count(*) FILTER (WHERE was = 2), -count(*) FILTER (WHERE was = 4),
         -count(*) FILTER (WHERE was = 5), -count(*) FILTER (WHERE was = 6)
    FROM done GROUP BY queue),",
            end!("done", "")
        )
    };
}
const DELETE: &str = delete!(unchanged!());
const PURGE: &str = delete!("");

const RUN_NOW: &str = concat!(
    begin!(
        ", CASE WHEN j.attempt = 0 THEN j.expire_time END AS expires",
        unchanged!()
    ),
    "done AS (
  UPDATE jobs j
     SET state = 2, revision = j.revision + 1, session = NULL, run_time = c.now, due_at = NULL, queued_time = c.now
    FROM clock c, locked l WHERE j.id = l.id AND j.state = l.was AND (l.expires IS NULL OR l.expires > c.now)
  RETURNING j.id, j.queue, j.priority, j.state, c.now),",
    segmented!(),
    "counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued) SELECT queue, -count(*), count(*) FROM done GROUP BY queue),",
    end!(
        "done",
        " UNION ALL SELECT NULL, id, queue, priority, jobs, NULL, NULL, NULL FROM segmented"
    )
);

/// A job that has this priority keeps its place.
const SET_PRIORITY: &str = concat!(
    begin!("", ""),
    "done AS (
  UPDATE jobs j
     SET priority = $8, revision = j.revision + 1, queued_time = CASE WHEN l.was = 2 THEN c.now ELSE j.queued_time END
    FROM clock c, locked l WHERE j.id = l.id AND j.priority <> $8
  RETURNING j.id, j.queue, j.priority, j.state, c.now),",
    segmented!(),
    end!(
        "locked",
        " UNION ALL SELECT NULL, id, queue, priority, jobs, NULL, NULL, NULL FROM segmented"
    )
);

/// Somebody may take a unique key between the look for it and its use: then the step is tried anew, so often.
const ROUNDS_MAX: u32 = 3;

/// Acts on the next `jobs` of a claimed bulk, which then rests for a while.
pub(super) async fn act(
    pool: &Pool,
    claimed: &ClaimedBulk,
    jobs: usize,
    rest: Duration,
) -> Result<BulkStep> {
    let bulk = &claimed.bulk;
    let number = i64::try_from(bulk.counts.done).map_err(Error::internal)?;
    let states: Vec<i16> = bulk.filter.states.iter().map(|s| s.number()).collect();
    let begin = |sql: &'static str| -> Statement<'static> {
        sqlx::query(sql)
            .bind(bulk.id.uuid())
            .bind(claimed.claim)
            .bind(i32::try_from(bound(jobs)).unwrap_or(i32::MAX))
            .bind(micros(rest))
            .bind(bulk.canary.is_some())
            .bind(number)
            .bind(states.clone())
    };
    let statement = || match bulk.action {
        BulkAction::Retry => begin(RETRY),
        BulkAction::Cancel => begin(CANCEL)
            .bind(bulk.by.reason.clone())
            .bind(micros(ROW_AGE_MIN)),
        BulkAction::Delete => begin(DELETE).bind(micros(ROW_AGE_MIN)),
        BulkAction::Purge => begin(PURGE).bind(micros(ROW_AGE_MIN)),
        BulkAction::RunNow => begin(RUN_NOW),
        BulkAction::SetPriority(priority) => begin(SET_PRIORITY).bind(priority.number()),
    };
    for _ in 0..ROUNDS_MAX {
        if let Some(rows) = pool.write_unless(is_held, statement).await? {
            return done(&rows);
        }
    }
    Err(Error::unavailable("postgres"))
}

fn done(rows: &[PgRow]) -> Result<BulkStep> {
    let mut step = BulkStep {
        segments: segments(rows)?,
        ..BulkStep::default()
    };
    for row in rows {
        let acted = column::<Option<Vec<Uuid>>>(row, "acted")?.unwrap_or_default();
        step.jobs.extend(acted.into_iter().map(JobId::from_store));
        let jobs = column::<Option<Vec<Uuid>>>(row, "leases")?.unwrap_or_default();
        let attempts = column::<Option<Vec<i32>>>(row, "attempts")?.unwrap_or_default();
        let sessions = column::<Option<Vec<Uuid>>>(row, "sessions")?.unwrap_or_default();
        for ((job, attempt), session) in jobs.into_iter().zip(attempts).zip(sessions) {
            let lease = Lease {
                job: JobId::from_store(job),
                attempt: u32::try_from(attempt).map_err(Error::internal)?,
            };
            step.cancelled.push((lease, SessionId::from_store(session)));
        }
    }
    Ok(step)
}
