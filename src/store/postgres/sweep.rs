//! The loops' bounded steps: promote, expire_jobs, retain, tidy. Each may be repeated and run by many nodes at once.

use super::pool::{Pool, Statement};
use super::row::{bound, column, segments, unlabelled};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{
    AUDIT_KEPT, BULK_RETENTION, BULKS_KEPT, FLOWS_KEPT, NODE_KEPT, ROW_AGE_MIN,
};
use crate::job::time::micros;
use crate::store::Swept;

/// The second look at the time is none that an index could answer: by it all that is due would be walked for each batch.
const PROMOTE: &str = "
WITH due AS MATERIALIZED (
  SELECT id FROM jobs WHERE due_at <= (SELECT lh_us()) ORDER BY due_at LIMIT $1),
locked AS MATERIALIZED (
  SELECT j.id FROM jobs j WHERE j.id = ANY (ARRAY(SELECT id FROM due)) AND j.state = 1 AND (j.due_at <= (SELECT lh_us())) IS TRUE
   ORDER BY j.id FOR UPDATE SKIP LOCKED),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
done AS (
  UPDATE jobs j SET state = 2, revision = j.revision + 1, due_at = NULL, queued_time = c.now
    FROM clock c, locked l WHERE j.id = l.id AND j.state = 1
  RETURNING j.id, j.queue, j.priority, j.run_time, c.now),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, min(now), min(now) + 5000000, array_agg(id ORDER BY run_time, id)
    FROM done GROUP BY queue, priority
  RETURNING id, queue, priority, jobs),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued) SELECT queue, -count(*), count(*) FROM done GROUP BY queue)
SELECT (SELECT count(*) FROM done) AS changed,
       NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority, NULL::uuid[] AS jobs
UNION ALL SELECT NULL, id, queue, priority, jobs FROM segment";

/// Those that have begun are only forgotten: their column is cleared here and not by the grant, which would not be HOT. (IS
/// TRUE keeps the planner from looking up all that has expired once more, to set it beside the ids.)
const EXPIRE_JOBS: &str = "
WITH due AS MATERIALIZED (
  SELECT id FROM jobs WHERE expire_at <= (SELECT lh_us()) ORDER BY expire_at LIMIT $1),
locked AS MATERIALIZED (
  SELECT j.id, j.state AS was, j.attempt = 0 AND j.state IN (1, 2) AS is_open
    FROM jobs j WHERE j.id = ANY (ARRAY(SELECT id FROM due)) AND (j.expire_at <= (SELECT lh_us())) IS TRUE
   ORDER BY j.id FOR UPDATE SKIP LOCKED),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
forgotten AS (
  UPDATE jobs j SET expire_at = NULL FROM locked l WHERE j.id = l.id AND NOT l.is_open RETURNING j.id),
done AS (
  UPDATE jobs j
     SET state = 5, revision = j.revision + 1, session = NULL, due_at = NULL, expire_at = NULL, unique_held = NULL,
         finish_time = c.now, failed_at = c.now, purge_time = greatest(c.now + j.retention, j.create_time + $2)
    FROM clock c, locked l WHERE j.id = l.id AND l.is_open AND j.state = l.was AND j.attempt = 0
  RETURNING j.id, j.queue, j.purge_time, l.was),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id) FROM done GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, failed)
  SELECT queue, -count(*) FILTER (WHERE was = 1), -count(*) FILTER (WHERE was = 2), count(*) FROM done GROUP BY queue)
SELECT (SELECT count(*) FROM done) + (SELECT count(*) FROM forgotten) AS changed";

/// The row that points at a job is a pointer only: the job's own purge time decides, since it may have been brought back
/// and have ended anew. The ids of deleted jobs are among them (7). Rows are taken up to `limit` jobs together, at least one.
const PURGE: &str = concat!(
    "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
ready AS MATERIALIZED (
  SELECT f.id, f.size, f.check_at FROM finished f, clock c WHERE f.check_at <= (SELECT now FROM clock)
   ORDER BY f.check_at LIMIT $1 FOR UPDATE OF f SKIP LOCKED),
taken AS MATERIALIZED (
  SELECT id FROM (SELECT id, size, sum(size) OVER (ORDER BY check_at, id) AS total FROM ready) AS r
   WHERE total <= $1 OR total = size),
named AS MATERIALIZED (
  SELECT DISTINCT u.job FROM taken t JOIN finished f ON f.id = t.id, unnest(f.jobs) AS u (job)),
locked AS MATERIALIZED (
  SELECT j.id, j.has_progress, j.has_log, j.labels FROM jobs j, clock c
   WHERE j.id = ANY (ARRAY(SELECT job FROM named)) AND j.state IN (4, 5, 6, 7) AND j.purge_time <= c.now
   ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
gone AS (
  DELETE FROM jobs j USING locked l WHERE j.id = l.id AND j.state IN (4, 5, 6, 7) RETURNING j.id, j.queue, j.state),
history AS (
  DELETE FROM attempts a USING locked l WHERE a.job = l.id),
progressed AS (
  DELETE FROM progress p USING locked l WHERE l.has_progress AND p.job = l.id),
",
    unlabelled!("locked"),
    "logged AS (
  UPDATE job_logs h SET gone = true FROM locked l WHERE l.has_log AND h.job = l.id),
counted AS (
  INSERT INTO queue_counts (queue, succeeded, failed, cancelled)
  SELECT queue, -count(*) FILTER (WHERE state = 4), -count(*) FILTER (WHERE state = 5), -count(*) FILTER (WHERE state = 6)
    FROM gone WHERE state <> 7 GROUP BY queue)
SELECT (SELECT count(*) FROM gone) AS changed, ARRAY(SELECT id FROM taken) AS rows,
       (SELECT count(*) FROM ready) AS ready"
);

/// With a new snapshot: rows that point at nothing final any more go, the others wait for the next purge among theirs.
const SETTLE: &str = "
WITH taken AS MATERIALIZED (
  SELECT id FROM finished WHERE id = ANY ($1::int8[]) ORDER BY id FOR UPDATE SKIP LOCKED),
clock AS MATERIALIZED (SELECT lh_us() AS now),
looked AS MATERIALIZED (
  SELECT f.id, (SELECT min(j.purge_time) FROM unnest(f.jobs) AS u (job) JOIN jobs j ON j.id = u.job
                 WHERE j.state IN (4, 5, 6, 7)) AS next
    FROM taken t JOIN finished f ON f.id = t.id),
dropped AS (
  DELETE FROM finished f USING looked l WHERE f.id = l.id AND l.next IS NULL)
UPDATE finished f SET check_at = greatest(l.next, c.now + 1000000)
  FROM looked l, clock c WHERE f.id = l.id AND l.next IS NOT NULL";

/// The order by check_at is the cursor that goes round; a row that is still needed comes again later and later, so
/// that a paused queue's old segments hold up nobody. Rows are taken up to ten times `limit` jobs together: of a row that
/// goes, every job is looked at, and a million in one statement outlast its timeout on a slow disk.
macro_rules! drop_rows {
    ($table:literal, $needed:literal) => {
        concat!(
            "WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
ready AS MATERIALIZED (
  SELECT b.id, b.check_at, cardinality(b.jobs) AS size FROM ",
            $table,
            " b WHERE b.check_at <= (SELECT now FROM clock) ORDER BY b.check_at LIMIT $1 FOR UPDATE SKIP LOCKED),
taken AS MATERIALIZED (
  SELECT id FROM (SELECT id, size, sum(size) OVER (ORDER BY check_at, id) AS total FROM ready) AS r
   WHERE total <= 10 * $1 OR total = size),
looked AS MATERIALIZED (
  SELECT b.id, ",
            $needed,
            " AS needed FROM taken t JOIN ",
            $table,
            " b ON b.id = t.id),
dropped AS (
  DELETE FROM ",
            $table,
            " b USING looked l WHERE b.id = l.id AND NOT l.needed RETURNING b.id),
kept AS (
  UPDATE ",
            $table,
            " b SET checks = least(b.checks + 1, 6), check_at = c.now + 5000000 * (1 << least(b.checks + 1, 6))::bigint
    FROM looked l, clock c WHERE b.id = l.id AND l.needed)
SELECT (SELECT count(*) FROM dropped) AS changed,
       (SELECT count(*) FROM ready) > (SELECT count(*) FROM taken) OR (SELECT count(*) FROM ready) >= $1 AS more"
        )
    };
}

const DROP_BACKLOG: &str = drop_rows!(
    "backlog",
    "EXISTS (SELECT FROM unnest(b.jobs) AS u (job)
               JOIN jobs j ON j.id = u.job AND j.state = 2 AND j.queued_time = b.created_at)"
);
const DROP_GRANTS: &str = drop_rows!(
    "grants",
    "EXISTS (SELECT FROM unnest(b.jobs, b.sessions) AS u (job, session)
               JOIN jobs j ON j.id = u.job AND j.state = 3 AND j.session = u.session)"
);

/// Small rows of one hour of purges become one row, of as many jobs as one purge takes: ids are never added to an
/// existing one.
const MERGE_FINISHED: &str = "
WITH busy AS MATERIALIZED (
  SELECT bucket FROM finished WHERE size < 100 GROUP BY bucket HAVING count(*) >= 20 ORDER BY bucket LIMIT 1),
found AS MATERIALIZED (
  SELECT id, size FROM finished WHERE bucket = (SELECT bucket FROM busy) AND size < 100
   ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),
small AS MATERIALIZED (
  SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY id) AS total FROM found) AS f WHERE total <= greatest($1, 100)),
gone AS (
  DELETE FROM finished f USING small s WHERE f.id = s.id RETURNING f.id, f.bucket, f.check_at, f.jobs),
merged AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT min(bucket), min(check_at), count(*), array_agg(job) FROM gone, unnest(jobs) AS u (job) HAVING count(*) > 0)
SELECT count(*) AS changed, count(*) > 0 AS more FROM gone";

/// One compactor at a time: whoever has the lock of the transaction. A queue with one row is left alone, so that this
/// comes to an end.
const SUM_COUNTS: &str = "
WITH alone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(7813572402123471) AS mine),
busy AS MATERIALIZED (
  SELECT queue FROM queue_counts, alone WHERE mine GROUP BY queue HAVING count(*) > 1 LIMIT 1000),
picked AS MATERIALIZED (
  SELECT id FROM queue_counts WHERE (queue IN (SELECT queue FROM busy)) IS TRUE LIMIT 20000),
gone AS (
  DELETE FROM queue_counts q USING picked s WHERE q.id = s.id RETURNING q.*),
summed AS (
  INSERT INTO queue_counts (queue, scheduled, queued, running, succeeded, failed, cancelled)
  SELECT queue, sum(scheduled), sum(queued), sum(running), sum(succeeded), sum(failed), sum(cancelled)
    FROM gone GROUP BY queue)
SELECT count(*) AS changed, false AS more FROM gone, (SELECT $1::bigint) AS ignored";

/// Far older than any window in which signals are read.
const DROP_SIGNALS: &str = "
WITH old AS MATERIALIZED (
  SELECT id FROM signals WHERE created_at < (SELECT lh_us() - 300000000) ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM signals s USING old o WHERE s.id = o.id RETURNING s.id)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM gone";

/// What says nothing but the default is as good as no row, once nobody can have an etag of it in hand.
const DROP_SETTINGS: &str = "
WITH old AS MATERIALIZED (
  SELECT queue FROM queues
   WHERE NOT paused AND num_nonnulls(priority, max_attempts, backoff_initial, timeout, retention, expire_in) = 0
     AND changed_at < (SELECT lh_us() - 3600000000) ORDER BY queue LIMIT $1 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM queues q USING old o WHERE q.queue = o.queue RETURNING q.queue)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM gone";

/// It will not come back: a restart is another node.
const DROP_NODES: &str = "
WITH old AS MATERIALIZED (
  SELECT id FROM nodes WHERE seen_time < (SELECT lh_us() - $2) ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM nodes n USING old o WHERE n.id = o.id RETURNING n.id)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM gone";

/// By number: those that were given to no row only make it keep fewer.
const DROP_AUDIT: &str = "
WITH old AS MATERIALIZED (
  SELECT id FROM audit WHERE id <= (SELECT max(id) FROM audit) - $2 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM audit a USING old o WHERE a.id = o.id RETURNING a.id)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM gone";

const DROP_BULKS: &str = "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
old AS MATERIALIZED (
  SELECT b.id FROM bulks b, clock c
   WHERE b.end_time < c.now - $2
      OR b.end_time < c.now - $3 AND b.id < (SELECT id FROM bulks ORDER BY id DESC OFFSET $4 - 1 LIMIT 1)
   ORDER BY b.id LIMIT $1 FOR UPDATE OF b SKIP LOCKED),
chunks AS (DELETE FROM bulk_chunks k USING old o WHERE k.bulk = o.id),
gone AS (DELETE FROM bulks b USING old o WHERE b.id = o.id RETURNING b.id)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM gone";

/// What their jobs said goes some time after them, and not in the purge: of a thousand jobs it may be a million lines.
const DROP_LOGS: &str = "
WITH old AS MATERIALIZED (
  SELECT job FROM job_logs WHERE gone ORDER BY job LIMIT $1 FOR UPDATE SKIP LOCKED),
lines AS (DELETE FROM log_lines l USING old o WHERE l.job = o.job),
dropped AS (DELETE FROM job_logs h USING old o WHERE h.job = o.job RETURNING h.job)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM dropped";

/// A job's log is counted as so many rows of other kinds.
const LOG_ROWS: i64 = 20;

/// And those of a clock that was set back since.
const DROP_FLOWS: &str = "
WITH old AS MATERIALIZED (
  SELECT id FROM queue_flows WHERE ended_at < (SELECT lh_us() - $2) OR ended_at > (SELECT lh_us() + $2)
   ORDER BY ended_at LIMIT $1 FOR UPDATE SKIP LOCKED),
gone AS (DELETE FROM queue_flows f USING old o WHERE f.id = o.id RETURNING f.id)
SELECT count(*) AS changed, count(*) >= $1 AS more FROM gone";

/// Makes due jobs QUEUED.
pub(super) async fn promote(pool: &Pool, limit: usize) -> Result<Swept> {
    let rows = pool
        .write(|| sqlx::query(PROMOTE).bind(bound(limit)))
        .await?;
    let mut changed = 0;
    for row in &rows {
        changed += column::<Option<i64>>(row, "changed")?.unwrap_or(0);
    }
    Ok(Swept {
        changed: u64::try_from(changed).map_err(Error::internal)?,
        more: changed >= bound(limit),
        segments: segments(&rows)?,
    })
}

/// Ends what has expired before it began.
pub(super) async fn expire_jobs(pool: &Pool, limit: usize) -> Result<Swept> {
    let rows = pool
        .write(|| {
            sqlx::query(EXPIRE_JOBS)
                .bind(bound(limit))
                .bind(micros(ROW_AGE_MIN))
        })
        .await?;
    let changed = rows.first().map_or(Ok(0), |row| column(row, "changed"))?;
    Ok(Swept {
        changed: u64::try_from(changed).map_err(Error::internal)?,
        more: changed >= bound(limit),
        segments: Vec::new(),
    })
}

/// Removes final jobs whose time is past.
pub(super) async fn retain(pool: &Pool, limit: usize) -> Result<Swept> {
    let rows = pool.write(|| sqlx::query(PURGE).bind(bound(limit))).await?;
    let Some(row) = rows.first() else {
        return Ok(Swept::default());
    };
    let taken: Vec<i64> = column(row, "rows")?;
    let ready = column::<i64>(row, "ready")?;
    if !taken.is_empty() {
        failpoint::reached("retain-purged");
        pool.write(|| sqlx::query(SETTLE).bind(&taken)).await?;
    }
    Ok(Swept {
        changed: u64::try_from(column::<i64>(row, "changed")?).map_err(Error::internal)?,
        more: bound(taken.len()) < ready || ready >= bound(limit),
        segments: Vec::new(),
    })
}

/// Drops log rows that point at nothing, logs of jobs that are gone, sums up counts.
pub(super) async fn tidy(pool: &Pool, limit: usize) -> Result<Swept> {
    let mut swept = Swept::default();
    let steps: [fn(i64) -> Statement<'static>; 11] = [
        |limit| sqlx::query(DROP_BACKLOG).bind(limit),
        |limit| sqlx::query(DROP_GRANTS).bind(limit),
        |limit| sqlx::query(MERGE_FINISHED).bind(limit),
        |limit| sqlx::query(DROP_SIGNALS).bind(limit),
        |limit| sqlx::query(SUM_COUNTS).bind(limit),
        |limit| sqlx::query(DROP_LOGS).bind((limit / LOG_ROWS).max(1)),
        |limit| sqlx::query(DROP_SETTINGS).bind(limit),
        |limit| sqlx::query(DROP_NODES).bind(limit).bind(micros(NODE_KEPT)),
        |limit| sqlx::query(DROP_AUDIT).bind(limit).bind(bound(AUDIT_KEPT)),
        |limit| {
            sqlx::query(DROP_BULKS)
                .bind(limit)
                .bind(micros(BULK_RETENTION))
                .bind(micros(ROW_AGE_MIN))
                .bind(bound(BULKS_KEPT))
        },
        |limit| sqlx::query(DROP_FLOWS).bind(limit).bind(micros(FLOWS_KEPT)),
    ];
    for step in steps {
        for row in pool.write(|| step(bound(limit))).await? {
            swept.changed += u64::try_from(column::<i64>(&row, "changed")?).unwrap_or(0);
            swept.more |= column::<bool>(&row, "more")?;
        }
    }
    Ok(swept)
}
