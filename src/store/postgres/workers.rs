//! What nodes tell of the sessions whose streams they have, and how sessions are seen.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::pool::Pool;
use super::row::{bound, column, count as number, int, span, words};
use super::session::{columns, running_of};
use crate::error::{Error, Result};
use crate::job::limits::PAGE_ROWS_MAX;
use crate::job::{JobId, Kind, Lease, QueueName, SessionId, Timestamp};
use crate::store::{
    QueueSlots, RunningJob, SessionPage, SessionProfile, SessionReport, SessionRuns, SessionSlots,
    SessionView,
};

/// By arrays and not by a join, as a plan made for few sessions would compare each with each; of each report the rest is a
/// document. A session whose row is locked is passed by, as by a renewal, and told of again later.
const DESCRIBE: &str = "
WITH locked AS MATERIALIZED (
  SELECT s.id, array_position($1::uuid[], s.id) AS place FROM sessions s
   WHERE s.id = ANY ($1) AND s.attach = ($2::int8[])[array_position($1::uuid[], s.id)] AND s.dead_at IS NULL
   ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED)
UPDATE sessions s
   SET node_name = coalesce(t.node_name, s.node_name), kinds = coalesce(t.kinds, s.kinds),
       labels = coalesce(t.labels, s.labels), queues = t.queues, queue_max = t.queue_max, queue_free = t.queue_free,
       max_in_flight = t.max_in_flight, in_flight = t.in_flight, draining = t.draining
  FROM locked l, LATERAL jsonb_to_record(($3::text[])[l.place]::jsonb)
    AS t (node_name text, kinds text[], labels jsonb, queues text[], queue_max int4[], queue_free int4[],
          max_in_flight int4, in_flight int4, draining boolean)
 WHERE s.id = l.id AND s.dead_at IS NULL
RETURNING s.id";

/// What a page looks at, and which of it passes.
const PICK: &str = "
WITH scanned AS MATERIALIZED (
  SELECT id, dead_at, queues FROM sessions WHERE id > $1 ORDER BY id LIMIT $3),
picked AS MATERIALIZED (
  SELECT id FROM scanned WHERE dead_at IS NULL AND ($2::text IS NULL OR $2 = ANY (queues)) ORDER BY id LIMIT $4)
SELECT ARRAY(SELECT id FROM picked ORDER BY id) AS ids, (SELECT count(*) FROM scanned) AS scanned,
       (SELECT id FROM scanned ORDER BY id DESC LIMIT 1) AS last";
const SESSIONS: &str = "
SELECT id, worker, sdk, node_name, kinds, labels::text AS labels, queues, queue_max, queue_free, max_in_flight, in_flight,
       draining IS TRUE OR drain_time IS NOT NULL AS draining, expires_at - (SELECT lh_us()) AS ttl_left
  FROM sessions WHERE id = ANY ($1) AND dead_at IS NULL ORDER BY id";

/// A job that was given to a session twice is in two grants.
const RUNS: &str = concat!(
    "WITH asked AS MATERIALIZED (SELECT id, nodes FROM sessions WHERE id = $1 AND dead_at IS NULL),
",
    running_of!("asked", "true"),
    "
SELECT DISTINCT start_time, id, attempt, queue, kind, timeout_time - (SELECT lh_us()) AS time_left
  FROM running ORDER BY start_time, id LIMIT $2"
);

/// Tells of sessions.
pub(super) async fn describe(pool: &Pool, reports: &[SessionReport]) -> Result<Vec<bool>> {
    let (ids, attaches) = columns(reports.iter().map(|report| &report.session));
    let told = reports.iter().map(|report| {
        let told = serde_json::to_string(&Told::of(report));
        told.map_err(Error::internal)
    });
    let told: Vec<String> = told.collect::<Result<_>>()?;
    let rows = pool
        .write(|| sqlx::query(DESCRIBE).bind(&ids).bind(&attaches).bind(&told))
        .await?;
    let mut written: HashSet<Uuid> = HashSet::with_capacity(rows.len());
    for row in &rows {
        written.insert(column(row, "id")?);
    }
    let is_written = |report: &SessionReport| written.contains(&report.session.session.uuid());
    Ok(reports.iter().map(is_written).collect())
}

/// Sessions by id.
pub(super) async fn sessions(
    pool: &Pool,
    queue: Option<&QueueName>,
    after: Option<SessionId>,
    size: usize,
) -> Result<SessionPage> {
    let rows = pool
        .read(|| {
            sqlx::query(PICK)
                .bind(after.map_or(Uuid::nil(), SessionId::uuid))
                .bind(queue.map(|queue| queue.as_str().to_owned()))
                .bind(bound(PAGE_ROWS_MAX))
                .bind(bound(size.saturating_add(1)))
        })
        .await?;
    let Some(row) = rows.first() else {
        return Ok(SessionPage::default());
    };
    let mut ids: Vec<Uuid> = column(row, "ids")?;
    let is_more = ids.len() > size;
    ids.truncate(size);
    let next = match (
        is_more,
        column::<i64>(row, "scanned")? >= bound(PAGE_ROWS_MAX),
    ) {
        (true, _) => ids.last().copied(),
        (false, true) => column(row, "last")?,
        (false, false) => None,
    };
    let rows = pool.read(|| sqlx::query(SESSIONS).bind(&ids)).await?;
    Ok(SessionPage {
        sessions: rows.iter().map(view).collect::<Result<_>>()?,
        next: next.map(SessionId::from_store),
    })
}

/// One session, and what it runs.
pub(super) async fn session(
    pool: &Pool,
    id: SessionId,
    limit: usize,
) -> Result<Option<SessionRuns>> {
    let ids = vec![id.uuid()];
    let rows = pool.read(|| sqlx::query(SESSIONS).bind(&ids)).await?;
    let Some(view) = rows.first().map(view).transpose()? else {
        return Ok(None);
    };
    let most = bound(limit.saturating_add(1));
    let rows = pool
        .read(|| sqlx::query(RUNS).bind(id.uuid()).bind(most))
        .await?;
    Ok(Some(SessionRuns {
        view,
        running: rows
            .iter()
            .take(limit)
            .map(running)
            .collect::<Result<_>>()?,
        more: rows.len() > limit,
    }))
}

fn running(row: &PgRow) -> Result<RunningJob> {
    Ok(RunningJob {
        lease: Lease {
            job: JobId::from_store(column(row, "id")?),
            attempt: number(row, "attempt")?,
        },
        queue: QueueName::from_store(column(row, "queue")?),
        kind: Kind::from_store(column(row, "kind")?),
        start_time: Timestamp(column(row, "start_time")?),
        time_left: column::<Option<i64>>(row, "time_left")?.map(span),
    })
}

fn view(row: &PgRow) -> Result<SessionView> {
    let names: Vec<String> = column::<Option<_>>(row, "queues")?.unwrap_or_default();
    let most: Vec<i32> = column::<Option<_>>(row, "queue_max")?.unwrap_or_default();
    let free: Vec<i32> = column::<Option<_>>(row, "queue_free")?.unwrap_or_default();
    let queues = names
        .iter()
        .zip(most)
        .zip(free)
        .map(|((name, most), free)| QueueSlots {
            queue: QueueName::from_store(name),
            max_in_flight: Some(count(most)).filter(|most| *most > 0),
            free: count(free),
        });
    let number = |name| Ok::<_, Error>(column::<Option<i32>>(row, name)?.map_or(0, count));
    Ok(SessionView {
        id: SessionId::from_store(column(row, "id")?),
        worker: column(row, "worker")?,
        sdk: column(row, "sdk")?,
        profile: SessionProfile {
            node: column::<Option<_>>(row, "node_name")?.unwrap_or_default(),
            kinds: column::<Option<_>>(row, "kinds")?.unwrap_or_default(),
            labels: words(column(row, "labels")?)?,
        },
        slots: SessionSlots {
            queues: queues.collect(),
            max_in_flight: number("max_in_flight")?,
            in_flight: number("in_flight")?,
            draining: column(row, "draining")?,
        },
        ttl_left: span(column(row, "ttl_left")?),
    })
}

fn count(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

/// A report as the statement takes it apart.
#[derive(Serialize)]
struct Told<'a> {
    node_name: Option<&'a str>,
    kinds: Option<&'a [String]>,
    labels: Option<&'a BTreeMap<String, String>>,
    queues: Vec<&'a str>,
    queue_max: Vec<i32>,
    queue_free: Vec<i32>,
    max_in_flight: i32,
    in_flight: i32,
    draining: bool,
}

impl<'a> Told<'a> {
    fn of(report: &'a SessionReport) -> Self {
        let SessionReport { profile, slots, .. } = report;
        let profile = profile.as_ref();
        let queues = &slots.queues;
        Self {
            node_name: profile.map(|profile| profile.node.as_str()),
            kinds: profile.map(|profile| profile.kinds.as_slice()),
            labels: profile.map(|profile| &profile.labels),
            queues: queues.iter().map(|of| of.queue.as_str()).collect(),
            queue_max: queues
                .iter()
                .map(|of| int(of.max_in_flight.unwrap_or(0)))
                .collect(),
            queue_free: queues.iter().map(|of| int(of.free)).collect(),
            max_in_flight: int(slots.max_in_flight),
            in_flight: int(slots.in_flight),
            draining: slots.draining,
        }
    }
}
