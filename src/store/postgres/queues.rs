//! What is set of queues, who changes it, and how queues are seen.

use std::collections::HashMap;

use sqlx::postgres::PgRow;

use super::admin::{oldest, stats_of};
use super::pool::Pool;
use super::row::{bound, column, int, priority, span};
use crate::error::{Error, Result};
use crate::job::limits::{QUEUES_SET_MAX, RATES_LAG, RATES_OVER};
use crate::job::time::micros;
use crate::job::{
    AuditAction, Backoff, Defaultable, Priority, QueueChange, QueueDefaults, QueueName,
    QueueSettings, Rates, Timestamp,
};
use crate::store::{AllSettings, QueueView, Steer, Steered};

macro_rules! settings {
    () => {
        "s.revision, s.paused, s.priority, s.max_attempts, s.backoff_initial, s.backoff_max, s.backoff_factor, s.timeout, s.retention, s.expire_in"
    };
}

/// No row: the number that is known is still the newest. Every node asks this once or twice a second.
const SETTINGS: &str = concat!(
    "SELECT c.number, s.queue, ",
    settings!(),
    " FROM queue_changes c LEFT JOIN queues s ON true WHERE c.number <> $1"
);

/// The change takes its number first, and so waits for any other change. What it writes it makes from the row as that is
/// then (ON CONFLICT looks at it anew), never from this statement's own snapshot. $2 is whether the queue is to be paused;
/// $3 has a bit for each default that is to be set, as `Defaultable::bits` has them.
const STEER: &str = "
WITH turn AS (
  UPDATE queue_changes SET number = number + 1 RETURNING number),
done AS (
  INSERT INTO queues AS q (queue, revision, changed_at, paused, priority, max_attempts, backoff_initial, backoff_max,
                           backoff_factor, timeout, retention, expire_in)
  SELECT $1, t.number, lh_us(), coalesce($2::boolean, false), $4::int2, $5::int4, $6::int8, $7::int8, $8::float8,
         $9::int8, $10::int8, $16::int8
    FROM turn t
   WHERE EXISTS (SELECT FROM queues WHERE queue = $1)
      OR coalesce($11::int8, 0) = 0 AND (SELECT count(*) FROM queues) < $12
         AND ($2::boolean IS TRUE OR num_nonnulls($4::int2, $5::int4, $6::int8, $9::int8, $10::int8, $16::int8) > 0)
  ON CONFLICT (queue) DO UPDATE
     SET revision = excluded.revision, changed_at = excluded.changed_at, paused = coalesce($2::boolean, q.paused),
         priority = CASE WHEN ($3::int4 & 1) > 0 THEN excluded.priority ELSE q.priority END,
         max_attempts = CASE WHEN ($3::int4 & 2) > 0 THEN excluded.max_attempts ELSE q.max_attempts END,
         backoff_initial = CASE WHEN ($3::int4 & 4) > 0 THEN excluded.backoff_initial ELSE q.backoff_initial END,
         backoff_max = CASE WHEN ($3::int4 & 4) > 0 THEN excluded.backoff_max ELSE q.backoff_max END,
         backoff_factor = CASE WHEN ($3::int4 & 4) > 0 THEN excluded.backoff_factor ELSE q.backoff_factor END,
         timeout = CASE WHEN ($3::int4 & 8) > 0 THEN excluded.timeout ELSE q.timeout END,
         retention = CASE WHEN ($3::int4 & 16) > 0 THEN excluded.retention ELSE q.retention END,
         expire_in = CASE WHEN ($3::int4 & 32) > 0 THEN excluded.expire_in ELSE q.expire_in END
   WHERE ($11::int8 IS NULL OR q.revision = $11)
     AND (q.paused IS DISTINCT FROM coalesce($2::boolean, q.paused)
          OR ($3::int4 & 1) > 0 AND q.priority IS DISTINCT FROM excluded.priority
          OR ($3::int4 & 2) > 0 AND q.max_attempts IS DISTINCT FROM excluded.max_attempts
          OR ($3::int4 & 4) > 0 AND (q.backoff_initial, q.backoff_max, q.backoff_factor)
                 IS DISTINCT FROM (excluded.backoff_initial, excluded.backoff_max, excluded.backoff_factor)
          OR ($3::int4 & 8) > 0 AND q.timeout IS DISTINCT FROM excluded.timeout
          OR ($3::int4 & 16) > 0 AND q.retention IS DISTINCT FROM excluded.retention
          OR ($3::int4 & 32) > 0 AND q.expire_in IS DISTINCT FROM excluded.expire_in)
  RETURNING q.queue, q.changed_at),
told AS (
  INSERT INTO audit (create_time, count, action, subject, actor, reason) SELECT changed_at, 1, $13, queue, $14, $15 FROM done)
SELECT EXISTS (SELECT FROM done) AS done";

/// With a new snapshot: why nothing was changed.
const REVISION: &str = "SELECT revision FROM queues WHERE queue = $1";

/// A queue is seen when it has jobs, or had them, or something is set of it, or a session takes jobs of it. By one pass over
/// all that name one: the deltas of the counters are few, and nodes tell in rows of many queues what went on. Of such a row
/// counts as much as its span lies within the time over which rates are taken. Nobody is known to have a free slot past its
/// time.
const QUEUES: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT now, now - $4 AS until FROM (SELECT lh_us() AS now) AS c),
flows AS MATERIALIZED (
  SELECT f.queues, f.enqueued, f.started, f.succeeded, f.failed,
         greatest(0, least(f.ended_at, c.until) - greatest(f.ended_at - f.span, c.until - $5))::float8 / f.span AS share
    FROM clock c, queue_flows f WHERE f.ended_at > (SELECT until - $5 FROM clock)),
q AS MATERIALIZED (
  SELECT queue, sum(s1)::bigint AS s1, sum(s2)::bigint AS s2, sum(s3)::bigint AS s3, sum(s4)::bigint AS s4,
         sum(s5)::bigint AS s5, sum(s6)::bigint AS s6, sum(sessions)::bigint AS sessions, sum(free)::bigint AS free,
         sum(f1) AS f1, sum(f2) AS f2, sum(f3) AS f3, sum(f4) AS f4
    FROM (
      SELECT queue, scheduled AS s1, queued AS s2, running AS s3, succeeded AS s4, failed AS s5, cancelled AS s6,
             0 AS sessions, 0 AS free, 0::float8 AS f1, 0::float8 AS f2, 0::float8 AS f3, 0::float8 AS f4, true AS is_seen
        FROM queue_counts
      UNION ALL SELECT queue, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, true FROM queues
      UNION ALL
      SELECT u.queue, 0, 0, 0, 0, 0, 0, 1, CASE WHEN s.expires_at > (SELECT now FROM clock) THEN u.free ELSE 0 END, 0, 0, 0, 0, true
        FROM sessions s CROSS JOIN LATERAL unnest(s.queues, s.queue_free) AS u (queue, free)
       WHERE s.dead_at IS NULL
      UNION ALL
      SELECT u.queue, 0, 0, 0, 0, 0, 0, 0, 0, f.share * u.enqueued, f.share * u.started, f.share * u.succeeded, f.share * u.failed, false
        FROM flows f CROSS JOIN LATERAL unnest(f.queues, f.enqueued, f.started, f.succeeded, f.failed)
          AS u (queue, enqueued, started, succeeded, failed)
       WHERE f.share > 0) AS named
   WHERE ($1::text[] IS NULL OR (queue IN (SELECT unnest($1::text[]))) IS TRUE) AND queue > $2::text COLLATE \"C\"
   GROUP BY queue HAVING bool_or(is_seen) ORDER BY queue COLLATE \"C\" LIMIT $3)
SELECT q.*, c.now, c.now - o.oldest AS waited, ",
    settings!(),
    " FROM clock c CROSS JOIN q LEFT JOIN queues s ON s.queue = q.queue ",
    oldest!(),
    " ORDER BY q.queue COLLATE \"C\""
);

/// All that is set, if the newest change is not `known`.
pub(super) async fn settings(pool: &Pool, known: Option<u64>) -> Result<Option<AllSettings>> {
    let known = known.map_or(-1, number);
    let rows = pool.read(|| sqlx::query(SETTINGS).bind(known)).await?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let mut all = AllSettings {
        change: count(column(first, "number")?),
        queues: Vec::with_capacity(rows.len()),
    };
    for row in &rows {
        if let Some(queue) = column::<Option<&str>>(row, "queue")? {
            let (settings, _) = settings_of(row)?;
            all.queues.push((QueueName::from_store(queue), settings));
        }
    }
    Ok(Some(all))
}

/// Changes what is set of a queue.
pub(super) async fn steer(pool: &Pool, steer: &Steer) -> Result<Steered> {
    let (paused, which, to) = match steer.change {
        QueueChange::Pause => (Some(true), Defaultable::default(), QueueDefaults::default()),
        QueueChange::Resume => (
            Some(false),
            Defaultable::default(),
            QueueDefaults::default(),
        ),
        QueueChange::Update(which, to) => (None, which, to),
    };
    // What is not to be set must not be written where the queue has no row yet.
    let to = QueueChange::Update(which, to)
        .apply(QueueSettings::default())
        .defaults;
    let action = match steer.change {
        QueueChange::Pause => AuditAction::PauseQueue,
        QueueChange::Resume => AuditAction::ResumeQueue,
        QueueChange::Update(..) => AuditAction::UpdateQueue,
    };
    let rows = pool
        .write(|| {
            sqlx::query(STEER)
                .bind(steer.queue.as_str().to_owned())
                .bind(paused)
                .bind(i32::from(which.bits()))
                .bind(to.priority.map(Priority::number))
                .bind(to.max_attempts.map(int))
                .bind(to.backoff.map(|backoff| micros(backoff.initial)))
                .bind(to.backoff.map(|backoff| micros(backoff.max)))
                .bind(to.backoff.map(|backoff| backoff.factor))
                .bind(to.timeout.map(micros))
                .bind(to.retention.map(micros))
                .bind(steer.expected.map(number))
                .bind(bound(QUEUES_SET_MAX))
                .bind(action.number())
                .bind(steer.by.actor.as_str().to_owned())
                .bind(steer.by.reason.clone())
                .bind(to.expire_in.map(micros))
        })
        .await?;
    if rows.first().map_or(Ok(false), |row| column(row, "done"))? {
        return Ok(Steered::Done);
    }
    let found = pool
        .read(|| sqlx::query(REVISION).bind(steer.queue.as_str().to_owned()))
        .await?;
    let revision = found
        .first()
        .map(|row| column(row, "revision").map(count))
        .transpose()?;
    let is_news = steer.change.apply(QueueSettings::default()) != QueueSettings::default();
    Ok(match (steer.expected, revision) {
        (Some(expected), revision) if expected != revision.unwrap_or(0) => Steered::Superseded,
        (_, None) if is_news => Steered::TooMany,
        _ => Steered::Unchanged,
    })
}

/// One queue, if it was ever seen.
pub(super) async fn queue(pool: &Pool, name: &QueueName) -> Result<Option<QueueView>> {
    let views = views(pool, Some(std::slice::from_ref(name)), None, 1).await?;
    Ok(views.into_iter().next())
}

/// These queues, those of them that were ever seen.
pub(super) async fn named(pool: &Pool, names: &[QueueName]) -> Result<Vec<Option<QueueView>>> {
    let views = views(pool, Some(names), None, names.len()).await?;
    let views = views
        .into_iter()
        .map(|view| (view.stats.queue.clone(), view));
    let found: HashMap<QueueName, QueueView> = views.collect();
    Ok(names.iter().map(|name| found.get(name).cloned()).collect())
}

/// Queues by name, after one of them.
pub(super) async fn queues(
    pool: &Pool,
    after: Option<&QueueName>,
    size: usize,
) -> Result<Vec<QueueView>> {
    views(pool, None, after, size).await
}

async fn views(
    pool: &Pool,
    names: Option<&[QueueName]>,
    after: Option<&QueueName>,
    size: usize,
) -> Result<Vec<QueueView>> {
    let names: Option<Vec<String>> =
        names.map(|names| names.iter().map(ToString::to_string).collect());
    let rows = pool
        .read(|| {
            sqlx::query(QUEUES)
                .bind(names.clone())
                .bind(after.map_or("", QueueName::as_str).to_owned())
                .bind(bound(size))
                .bind(micros(RATES_LAG))
                .bind(micros(RATES_OVER))
        })
        .await?;
    rows.iter()
        .map(|row| {
            let set: Option<i64> = column(row, "revision")?;
            let (settings, revision) = match set {
                Some(_) => settings_of(row)?,
                None => Default::default(),
            };
            Ok(QueueView {
                settings,
                revision,
                stats: stats_of(row)?,
                sessions: small(column(row, "sessions")?),
                free_slots: small(column(row, "free")?),
                rates: Rates::of([
                    column(row, "f1")?,
                    column(row, "f2")?,
                    column(row, "f3")?,
                    column(row, "f4")?,
                ]),
                as_of: Timestamp(column(row, "now")?),
            })
        })
        .collect()
}

/// Reads what is set of a queue, and by which change.
fn settings_of(row: &PgRow) -> Result<(QueueSettings, u64)> {
    let backoff = match column::<Option<i64>>(row, "backoff_initial")? {
        None => None,
        Some(initial) => Some(Backoff {
            initial: span(initial),
            max: span(column(row, "backoff_max")?),
            factor: column(row, "backoff_factor")?,
        }),
    };
    let max_attempts = column::<Option<i32>>(row, "max_attempts")?;
    let defaults = QueueDefaults {
        priority: column::<Option<i16>>(row, "priority")?
            .map(priority)
            .transpose()?,
        max_attempts: max_attempts
            .map(|n| u32::try_from(n).map_err(Error::internal))
            .transpose()?,
        backoff,
        timeout: column::<Option<i64>>(row, "timeout")?.map(span),
        retention: column::<Option<i64>>(row, "retention")?.map(span),
        expire_in: column::<Option<i64>>(row, "expire_in")?.map(span),
    };
    let paused = column(row, "paused")?;
    Ok((
        QueueSettings { paused, defaults },
        count(column(row, "revision")?),
    ))
}

fn small(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
