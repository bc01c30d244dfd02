//! Sessions: opened, renewed, ended; and what becomes of the jobs of those that are dead.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::lease::attach_number;
use super::pool::Pool;
use super::row::{bound, column, segments};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::job::limits::{LEASE_TTL_DEFAULT, LOST_LEASES_MAX, ROW_AGE_MIN};
use crate::job::time::micros;
use crate::store::{Attached, Expired, NewSession, SessionState};

const OPEN: &str = "
INSERT INTO sessions (id, attach, ttl, expires_at, opened_at, node, nodes, worker, sdk)
SELECT $1, 1, $2, now + $2, now, $3, ARRAY[$3], $4, $5 FROM (SELECT lh_us() AS now) AS clock
ON CONFLICT (id) DO NOTHING";

/// A session past its time that nobody has marked dead is renewed: after an outage all are past it. One whose row is
/// locked is passed by, and not waited for: all others of the batch, and of the next ones, would wait for it, too.
const RENEW: &str = "
WITH alive AS MATERIALIZED (
  SELECT s.id FROM unnest($1::uuid[], $2::int8[]) AS a (id, attach)
    JOIN sessions s ON s.id = a.id AND s.attach = a.attach AND s.dead_at IS NULL
   ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM alive) AS l)
UPDATE sessions s SET expires_at = c.now + s.ttl
  FROM clock c, alive a WHERE s.id = a.id AND s.dead_at IS NULL
RETURNING s.id, s.attach";

/// With a new snapshot: of those that were not renewed, or not moved, the ones that a newer stream has. An attach number
/// never goes back, so one that was not found is not there any more. (But with the database itself, see `Behind`.)
pub(super) const ALIVE: &str =
    "SELECT id, attach FROM sessions WHERE id = ANY($1) AND dead_at IS NULL";

/// FOR UPDATE waits for the grants in flight, which have the session FOR KEY SHARE; a plain UPDATE would not.
const CLOSE: &str = "
WITH alive AS MATERIALIZED (
  SELECT s.id FROM unnest($1::uuid[], $2::int8[]) AS a (id, attach)
    JOIN sessions s ON s.id = a.id AND s.attach = a.attach AND s.dead_at IS NULL
   ORDER BY s.id FOR UPDATE OF s)
UPDATE sessions s SET dead_at = lh_us() FROM alive a WHERE s.id = a.id AND s.dead_at IS NULL";

/// The gap is judged by the very UPDATE that ends it: no second node can sweep in between.
const TOUCH: &str = "
UPDATE pulse p
   SET touched_at = c.now,
       gap_from = CASE WHEN c.now - p.touched_at NOT BETWEEN 0 AND $1 THEN least(p.touched_at, c.now) ELSE p.gap_from END,
       grace_until = CASE WHEN c.now - p.touched_at NOT BETWEEN 0 AND $1 THEN c.now + $2
                          WHEN p.grace_until > c.now + $2 THEN c.now + $2
                          ELSE p.grace_until END
  FROM (SELECT lh_us() AS now) AS c";

/// (a) Nothing is marked in a time of grace, nor while nobody has touched the pulse after a gap. The row is judged again
/// under its lock, as a renewal may have come first. A time that lies further ahead than any renewal could set it is of
/// a clock that was set back since: whoever is alive was renewed in the time of grace that followed. (By two gaps, so
/// that no sweep comes before a touch has seen it.)
const MARK_DEAD: &str = "
WITH clock AS MATERIALIZED (
  SELECT c.now, p.gap_from, p.grace_until FROM pulse p, (SELECT lh_us() AS now) AS c
   WHERE c.now > p.grace_until AND (p.touched_at IS NULL OR c.now - p.touched_at BETWEEN 0 AND $2)),
lapsed AS MATERIALIZED (
  SELECT s.id FROM sessions s, clock c
   WHERE s.dead_at IS NULL AND s.expires_at NOT BETWEEN c.now + 1 AND c.now + s.ttl + 2 * $2
   LIMIT $1 FOR UPDATE OF s SKIP LOCKED)
UPDATE sessions s
   SET dead_at = c.now, lost_in_outage = s.expires_at BETWEEN c.gap_from AND c.grace_until
  FROM clock c, lapsed l
 WHERE s.id = l.id AND s.dead_at IS NULL AND s.expires_at NOT BETWEEN c.now + 1 AND c.now + s.ttl + 2 * $2
RETURNING s.id";

/// The RUNNING jobs of some sessions, through the grants of the nodes that they were attached to. `$sessions` is a table
/// expression with their ids and nodes. The test for a session is a hashed lookup, and a job is looked up by its id,
/// whatever the planner thinks of joins: planned on empty tables, a plain one walks through all jobs.
macro_rules! running_of {
    ($sessions:literal, $which:literal) => {
        concat!(
            "given AS (
  SELECT u.job, u.session FROM grants g, unnest(g.jobs, g.sessions) AS u (job, session)
   WHERE g.node = ANY (ARRAY(SELECT DISTINCT unnest(nodes) FROM ",
            $sessions,
            ")) AND ",
            $which,
            "
     AND (u.session IN (SELECT id FROM ",
            $sessions,
            ")) IS TRUE),
running AS (
  SELECT j.* FROM given u CROSS JOIN LATERAL (
    SELECT id, session, attempt, queue, kind, start_time, timeout_time FROM jobs
     WHERE id = u.job AND state = 3 AND session = u.session LIMIT 1) AS j)"
        )
    };
}
pub(super) use running_of;

macro_rules! running_of_dead {
    () => {
        concat!(
            "dead AS MATERIALIZED (
  SELECT id, nodes FROM sessions WHERE dead_at IS NOT NULL ORDER BY id LIMIT 1000),
",
            running_of!("dead", "true")
        )
    };
}

/// (b) The session stays in the row that becomes QUEUED, and only there: by it a late success is known (salvage).
const TAKE_BACK: &str = concat!(
    "WITH ",
    running_of_dead!(),
    ",
picked AS MATERIALIZED (SELECT id FROM running LIMIT $1),
locked AS MATERIALIZED (
  SELECT j.id, s.id AS had, s.lost_in_outage FROM jobs j JOIN sessions s ON s.id = j.session AND s.dead_at IS NOT NULL
   WHERE j.id = ANY (ARRAY(SELECT id FROM picked)) AND j.state = 3
   ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
judged AS MATERIALIZED (
  SELECT l.id, l.had, c.now, CASE WHEN l.lost_in_outage THEN 0 ELSE 1 END AS lost FROM locked l, clock c),
done AS (
  UPDATE jobs j
     SET state = CASE WHEN j.lost_leases + d.lost > $2 THEN 5 ELSE 2 END, revision = j.revision + 1,
         lost_leases = j.lost_leases + d.lost, released_in_row = 0, timeout_time = NULL,
         session = CASE WHEN j.lost_leases + d.lost > $2 THEN NULL ELSE j.session END,
         run_time = CASE WHEN j.lost_leases + d.lost > $2 THEN j.run_time ELSE d.now END,
         queued_time = CASE WHEN j.lost_leases + d.lost > $2 THEN j.queued_time ELSE d.now END,
         finish_time = CASE WHEN j.lost_leases + d.lost > $2 THEN d.now END,
         failed_at = CASE WHEN j.lost_leases + d.lost > $2 THEN d.now END,
         unique_held = CASE WHEN j.lost_leases + d.lost > $2 THEN NULL ELSE j.unique_held END,
         purge_time = CASE WHEN j.lost_leases + d.lost > $2 THEN greatest(d.now + j.retention, j.create_time + $3) END
    FROM judged d WHERE j.id = d.id AND j.state = 3
  RETURNING j.id, j.state, j.queue, j.priority, j.attempt, d.had, j.worker, j.start_time, j.purge_time, d.now),
history AS (
  INSERT INTO attempts (job, attempt, session, outcome, worker, failure_type, message, detail, start_time, end_time)
  SELECT d.id, d.attempt, d.had, 4, d.worker,
         CASE WHEN d.state = 5 THEN 'LEASES_LOST' END,
         CASE WHEN d.state = 5 THEN 'more than ' || $2 || ' of its leases were lost' END,
         CASE WHEN d.state = 5 THEN '' END, coalesce(d.start_time, d.now), d.now
    FROM done d),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, min(now), min(now) + 5000000, array_agg(id ORDER BY id)
    FROM done WHERE state = 2 GROUP BY queue, priority
  RETURNING id, queue, priority, jobs),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id)
    FROM done WHERE state = 5 GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, queued, running, failed)
  SELECT queue, count(*) FILTER (WHERE state = 2), -count(*), count(*) FILTER (WHERE state = 5)
    FROM done GROUP BY queue)
SELECT (SELECT count(*) FROM picked) AS found, (SELECT count(*) FROM done) AS taken,
       (SELECT count(*) FROM done WHERE state = 5) AS failed,
       NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority, NULL::uuid[] AS jobs
UNION ALL SELECT NULL, NULL, NULL, id, queue, priority, jobs FROM segment"
);

/// (c) Its snapshot is younger than the mark, and a dead session gets no grant: what it does not see is not there.
const DROP_DEAD: &str = concat!(
    "WITH ",
    running_of_dead!(),
    "
DELETE FROM sessions WHERE dead_at IS NOT NULL AND id = ANY (ARRAY(SELECT id FROM dead))
   AND (id NOT IN (SELECT session FROM running)) IS TRUE"
);

/// A pulse that was not touched for so long was away.
const GAP_US: i64 = 5_000_000;

/// Makes a session.
pub(super) async fn open(pool: &Pool, session: &NewSession) -> Result<()> {
    pool.write(|| {
        sqlx::query(OPEN)
            .bind(session.id.uuid())
            .bind(micros(session.ttl))
            .bind(session.node.0)
            .bind(session.worker.clone())
            .bind(session.sdk.clone())
    })
    .await
    .map(drop)
}

/// Renews sessions.
pub(super) async fn renew(pool: &Pool, sessions: &[Attached]) -> Result<Vec<SessionState>> {
    let (ids, attaches) = columns(sessions);
    let rows = pool
        .write(|| sqlx::query(RENEW).bind(&ids).bind(&attaches))
        .await?;
    let mut renewed: HashSet<(Uuid, i64)> = HashSet::with_capacity(sessions.len());
    for row in &rows {
        renewed.insert((column(row, "id")?, column(row, "attach")?));
    }
    let rest = sessions.iter().filter(|s| !renewed.contains(&key(**s)));
    let (ids, _) = columns(rest);
    let mut alive: HashMap<Uuid, i64> = HashMap::new();
    if !ids.is_empty() {
        for row in pool.read(|| sqlx::query(ALIVE).bind(&ids)).await? {
            alive.insert(column(&row, "id")?, column(&row, "attach")?);
        }
    }
    Ok(sessions
        .iter()
        .map(|s| {
            if renewed.contains(&key(*s)) {
                return SessionState::Alive;
            }
            match alive.get(&s.session.uuid()) {
                None => SessionState::Dead,
                Some(last) => match last.cmp(&attach_number(*s)) {
                    Ordering::Greater => SessionState::Moved,
                    // Somebody has its row.
                    Ordering::Equal => SessionState::Lapsed,
                    Ordering::Less => SessionState::Behind,
                },
            }
        })
        .collect())
}

/// Ends sessions.
pub(super) async fn close(pool: &Pool, sessions: &[Attached]) -> Result<()> {
    let (ids, attaches) = columns(sessions);
    pool.write(|| sqlx::query(CLOSE).bind(&ids).bind(&attaches))
        .await
        .map(drop)
}

/// Shows that somebody is alive.
pub(super) async fn touch_pulse(pool: &Pool) -> Result<()> {
    pool.write(|| {
        sqlx::query(TOUCH)
            .bind(GAP_US)
            .bind(micros(LEASE_TTL_DEFAULT))
    })
    .await
    .map(drop)
}

/// Ends lapsed sessions, takes back what dead ones have RUNNING, and forgets those that have nothing left. Each step
/// may be repeated, and stands for itself.
pub(super) async fn expire(pool: &Pool, limit: usize) -> Result<Expired> {
    let marked = pool
        .write(|| sqlx::query(MARK_DEAD).bind(bound(limit)).bind(GAP_US))
        .await?
        .len();
    if marked > 0 {
        failpoint::reached("sweep-marked");
    }
    let rows = pool
        .write(|| {
            sqlx::query(TAKE_BACK)
                .bind(bound(limit))
                .bind(super::row::int(LOST_LEASES_MAX))
                .bind(micros(ROW_AGE_MIN))
        })
        .await?;
    let mut expired = Expired {
        sessions: marked as u64,
        more: marked >= limit,
        ..Expired::default()
    };
    let mut found = 0;
    for row in &rows {
        if let Some(n) = column::<Option<i64>>(row, "found")? {
            found = n;
            expired.jobs = total(row, "taken")?;
            expired.failed = total(row, "failed")?;
        }
    }
    expired.segments = segments(&rows)?;
    if expired.jobs > 0 {
        failpoint::reached("sweep-took-back");
    }
    match found >= bound(limit) && expired.jobs > 0 {
        true => expired.more = true,
        false => drop(pool.write(|| sqlx::query(DROP_DEAD)).await?),
    }
    Ok(expired)
}

fn total(row: &PgRow, name: &str) -> Result<u64> {
    u64::try_from(column::<i64>(row, name)?).map_err(Error::internal)
}

/// A session and its attach number, as the database has them.
pub(super) fn key(session: Attached) -> (Uuid, i64) {
    (session.session.uuid(), attach_number(session))
}

/// Sessions as the two parameters of a statement.
pub(super) fn columns<'a>(
    sessions: impl IntoIterator<Item = &'a Attached>,
) -> (Vec<Uuid>, Vec<i64>) {
    sessions.into_iter().map(|session| key(*session)).unzip()
}
