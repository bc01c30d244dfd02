//! Sessions that move to a new stream, and what is known of their leases.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgRow;
use tracing::debug;
use uuid::Uuid;

use super::lease::{SameAsLast, leased as leased_job};
use super::pool::Pool;
use super::row::{column, count, int, span};
use super::session::{ALIVE, columns, key, running_of};
use crate::error::Result;
use crate::job::limits::GRANT_BYTES_MAX;
use crate::job::time::micros;
use crate::job::{HeldLease, JobId, Kind, Lease, QueueName, SessionId};
use crate::store::{Attach, Attached, Attaching, Found};

/// FOR UPDATE waits for the grants in flight, which have the session FOR KEY SHARE: what they gave is committed, and
/// shows in the next statement. The row is judged again under its lock, as it is then.
macro_rules! attach {
    ($lock:literal) => {
        concat!(
            "WITH asked AS MATERIALIZED (
  SELECT s.id, a.attach, a.node FROM unnest($1::uuid[], $2::int8[], $3::uuid[]) AS a (id, attach, node)
    JOIN sessions s ON s.id = a.id
   ORDER BY s.id FOR UPDATE OF s ",
            $lock,
            "),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM asked) AS l)
UPDATE sessions s
   SET attach = a.attach, node = a.node, expires_at = c.now + s.ttl,
       nodes = CASE WHEN a.node = ANY (s.nodes) THEN s.nodes ELSE s.nodes || a.node END
  FROM clock c, asked a WHERE s.id = a.id AND s.dead_at IS NULL AND s.attach < a.attach
RETURNING s.id, s.attach, s.ttl, cardinality(s.nodes) AS nodes"
        )
    };
}
const ATTACH: &str = attach!("SKIP LOCKED");
/// For those that the first one passed by: locked, or refused. It waits, bounded by lock_timeout.
const ATTACH_WAITING: &str = attach!("");

/// Nodes that a session was attached to and that have no grant of it any more need not be looked at again. Its newest
/// node stays, as a grant of it may not show yet; those of the earlier ones all do, since the attach waited for them.
/// The log is read once for all sessions, and each is then looked up in what it named.
const FORGET_NODES: &str = "
WITH asked AS MATERIALIZED (
  SELECT s.id, s.nodes FROM unnest($1::uuid[], $2::int8[]) AS a (id, attach)
    JOIN sessions s ON s.id = a.id AND s.attach = a.attach),
named AS MATERIALIZED (
  SELECT DISTINCT g.node, u.session FROM grants g, unnest(g.sessions) AS u (session)
   WHERE g.node = ANY (ARRAY(SELECT DISTINCT unnest(nodes) FROM asked))
     AND (u.session IN (SELECT id FROM asked)) IS TRUE)
UPDATE sessions s
   SET nodes = ARRAY(SELECT n.node FROM unnest(s.nodes) AS n (node)
                      WHERE n.node = s.node OR ((n.node, s.id) IN (SELECT node, session FROM named)) IS TRUE)
  FROM unnest($1::uuid[], $2::int8[]) AS a (id, attach)
 WHERE s.id = a.id AND s.attach = a.attach";
/// More nodes of one session than this are looked through.
const NODES_MANY: i32 = 4;

/// A grant from the future was made before the clock went back: it is not young.
const LEASES: &str = concat!(
    "WITH asked AS MATERIALIZED (
  SELECT s.id, s.nodes FROM unnest($1::uuid[], $2::int8[]) AS a (id, attach)
    JOIN sessions s ON s.id = a.id AND s.attach = a.attach AND s.dead_at IS NULL),
clock AS MATERIALIZED (SELECT lh_us() AS now),
",
    running_of!("asked", "(g.created_at <= (SELECT now - $3 FROM clock) OR g.created_at > (SELECT now FROM clock))"),
    "
SELECT id AS holder, NULL::uuid AS id, NULL::int AS attempt, NULL::text AS queue, NULL::text AS kind,
       NULL::bigint AS time_left FROM asked
UNION ALL
SELECT session, id, attempt, queue, kind, timeout_time - (SELECT now FROM clock) FROM running"
);

const RUNNING: &str = "
SELECT j.id, j.attempt, j.session, j.queue, j.kind, j.timeout_time - c.now AS time_left
  FROM (SELECT lh_us() AS now) AS c, unnest($1::uuid[], $2::uuid[]) AS a (job, session)
  JOIN jobs j ON j.id = a.job AND j.state = 3 AND j.session = a.session";

/// The first of those that fit into the bytes of one answer, in the order in which they are asked for.
const LEASED: &str = "
WITH held AS MATERIALIZED (
  SELECT a.place, j.id, octet_length(j.payload) AS size
    FROM unnest($1::uuid[], $2::int4[], $3::uuid[]) WITH ORDINALITY AS a (job, attempt, session, place)
    JOIN jobs j ON j.id = a.job AND j.attempt = a.attempt AND j.state = 3 AND j.session = a.session),
fit AS MATERIALIZED (
  SELECT id, place, before < $4 AS fits
    FROM (SELECT h.*, sum(size) OVER (ORDER BY place) - size AS before FROM held h) AS h),
clock AS MATERIALIZED (SELECT lh_us() AS now)
SELECT j.id, j.attempt, j.queue, j.kind, j.priority, j.failures, j.max_attempts, j.lost_leases, j.releases,
       j.timeout_time - c.now AS timeout, j.start_time - j.run_time AS waited, j.headers::text AS headers, j.has_progress,
       j.payload_type, j.payload_is_text, CASE WHEN f.fits THEN j.payload ELSE '' END AS payload, j.session, f.fits,
       CASE WHEN j.has_progress THEN (SELECT p.checkpoint FROM progress p WHERE p.job = j.id) END AS checkpoint,
       CASE WHEN j.has_progress THEN (SELECT p.revision FROM progress p WHERE p.job = j.id) END AS progress_revision
  FROM clock c, fit f JOIN jobs j ON j.id = f.id AND j.state = 3";

/// Moves sessions to new streams.
pub(super) async fn attach(pool: &Pool, attaches: &[Attach]) -> Result<Vec<Attaching>> {
    let newest = newest(attaches);
    let mut moved = HashMap::new();
    read_moved(&run(pool, ATTACH, &newest).await?, &mut moved)?;
    let rest: Vec<Attach> = newest
        .iter()
        .copied()
        .filter(|one| !moved.contains_key(&key(one.to)))
        .collect();
    let mut held_up = false;
    if !rest.is_empty() {
        match run(pool, ATTACH_WAITING, &rest).await {
            Ok(rows) => read_moved(&rows, &mut moved)?,
            // What the first statement has moved is moved, whatever holds the others.
            Err(_) if rest.len() < newest.len() => held_up = true,
            Err(error) => return Err(error),
        }
    }
    let many = moved.iter().filter(|(_, (_, nodes))| *nodes > NODES_MANY);
    let (ids, numbers): (Vec<_>, Vec<_>) = many.map(|(one, _)| *one).unzip();
    if !ids.is_empty() {
        let forgot = pool.write(|| sqlx::query(FORGET_NODES).bind(&ids).bind(&numbers));
        if let Err(error) = forgot.await {
            // The next move tries again; this one stands.
            debug!(%error, "nodes of sessions not forgotten");
        }
    }
    let mut alive: HashSet<Uuid> = HashSet::new();
    if moved.len() < attaches.len() {
        let (ids, _) = columns(newest.iter().map(|one| &one.to));
        for row in pool.read(|| sqlx::query(ALIVE).bind(&ids)).await? {
            alive.insert(column(&row, "id")?);
        }
    }
    Ok(attaches
        .iter()
        .map(|one| match moved.get(&key(one.to)) {
            Some((ttl, _)) => Attaching::Resumed(*ttl),
            None if held_up => Attaching::Later,
            None if alive.contains(&one.to.session.uuid()) => Attaching::Superseded,
            None => Attaching::Gone,
        })
        .collect())
}

async fn run(pool: &Pool, statement: &'static str, attaches: &[Attach]) -> Result<Vec<PgRow>> {
    let (ids, numbers) = columns(attaches.iter().map(|one| &one.to));
    let nodes: Vec<Uuid> = attaches.iter().map(|one| one.node.0).collect();
    pool.write(|| {
        sqlx::query(statement)
            .bind(&ids)
            .bind(&numbers)
            .bind(&nodes)
    })
    .await
}

/// Of each session that has moved, its TTL and how many nodes it names.
fn read_moved(rows: &[PgRow], moved: &mut HashMap<(Uuid, i64), (Duration, i32)>) -> Result<()> {
    for row in rows {
        let one = (column(row, "id")?, column(row, "attach")?);
        moved.insert(one, (span(column(row, "ttl")?), column(row, "nodes")?));
    }
    Ok(())
}

/// The leases of sessions.
pub(super) async fn leases(
    pool: &Pool,
    sessions: &[Attached],
    age: Duration,
) -> Result<Vec<Option<Vec<HeldLease>>>> {
    let (ids, numbers) = columns(sessions);
    let rows = pool
        .read(|| {
            sqlx::query(LEASES)
                .bind(&ids)
                .bind(&numbers)
                .bind(micros(age))
        })
        .await?;
    let mut found: HashMap<Uuid, HashMap<Lease, HeldLease>> = HashMap::new();
    for row in &rows {
        let held = found.entry(column(row, "holder")?).or_default();
        // A job that was given to a session twice is in two grants.
        if column::<Option<Uuid>>(row, "id")?.is_some() {
            let lease = held_lease(row)?;
            held.insert(lease.lease, lease);
        }
    }
    Ok(sessions
        .iter()
        .map(|one| found.get(&one.session.uuid()))
        .map(|held| held.map(|held| held.values().cloned().collect()))
        .collect())
}

/// The leases under which jobs are RUNNING.
pub(super) async fn running(
    pool: &Pool,
    jobs: &[(JobId, SessionId)],
) -> Result<Vec<Option<HeldLease>>> {
    let ids: Vec<Uuid> = jobs.iter().map(|(job, _)| job.uuid()).collect();
    let sessions: Vec<Uuid> = jobs.iter().map(|(_, session)| session.uuid()).collect();
    let rows = pool
        .read(|| sqlx::query(RUNNING).bind(&ids).bind(&sessions))
        .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let held = held_lease(row)?;
        let session = SessionId::from_store(column(row, "session")?);
        found.insert((held.lease.job, session), held);
    }
    Ok(jobs.iter().map(|asked| found.get(asked).cloned()).collect())
}

/// Reads jobs by their leases.
pub(super) async fn leased(pool: &Pool, leases: &[(Lease, SessionId)]) -> Result<Vec<Found>> {
    let jobs: Vec<Uuid> = leases.iter().map(|(lease, _)| lease.job.uuid()).collect();
    let attempts: Vec<i32> = leases.iter().map(|(lease, _)| int(lease.attempt)).collect();
    let sessions: Vec<Uuid> = leases.iter().map(|(_, session)| session.uuid()).collect();
    let rows = pool
        .read(|| {
            sqlx::query(LEASED)
                .bind(&jobs)
                .bind(&attempts)
                .bind(&sessions)
                .bind(i64::try_from(GRANT_BYTES_MAX).unwrap_or(i64::MAX))
        })
        .await?;
    let mut found = HashMap::with_capacity(rows.len());
    let mut last = SameAsLast::default();
    for row in &rows {
        let (mut job, _) = leased_job(row, &mut last)?;
        job.checkpoint = column::<Option<Vec<u8>>>(row, "checkpoint")?.map(Into::into);
        job.progress_revision = column::<Option<i64>>(row, "progress_revision")?
            .map_or(0, |n| u64::try_from(n).unwrap_or(0));
        let asked = (job.lease, SessionId::from_store(column(row, "session")?));
        let answer = match column(row, "fits")? {
            true => Found::Job(Box::new(job)),
            false => Found::Later,
        };
        found.insert(asked, answer);
    }
    Ok(leases
        .iter()
        .map(|asked| found.get(asked).cloned().unwrap_or(Found::NotHeld))
        .collect())
}

/// One a session: of several in a batch the highest number wins, as it would one after the other.
fn newest(attaches: &[Attach]) -> Vec<Attach> {
    let mut newest: HashMap<SessionId, Attach> = HashMap::with_capacity(attaches.len());
    for one in attaches {
        let best = newest.entry(one.to.session).or_insert(*one);
        if best.to.attach < one.to.attach {
            *best = *one;
        }
    }
    newest.into_values().collect()
}

fn held_lease(row: &PgRow) -> Result<HeldLease> {
    Ok(HeldLease {
        lease: Lease {
            job: JobId::from_store(column(row, "id")?),
            attempt: count(row, "attempt")?,
        },
        queue: QueueName::from_store(column(row, "queue")?),
        kind: Kind::from_store(column(row, "kind")?),
        time_left: column::<Option<i64>>(row, "time_left")?.map(span),
    })
}
