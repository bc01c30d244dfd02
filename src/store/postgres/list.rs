//! Lists of jobs: a walk by id, along whichever index has what the filter asks for.

use std::collections::HashMap;

use uuid::Uuid;

use super::admin::get;
use super::pool::Pool;
use super::row::{bound, column, json};
use crate::error::Result;
use crate::job::limits::{ATTEMPTS_SHOWN, PAGE_ROWS_MAX};
use crate::job::{JobId, JobState, View};
use crate::store::{JobFilter, JobPage};

/// Lengths are read from the rows, without the bodies.
const SIZES: &str = "
SELECT id, coalesce(octet_length(labels::text), 0)::bigint + coalesce(octet_length(headers::text), 0)
       + CASE WHEN $2 THEN octet_length(payload) + coalesce(octet_length(output), 0) + coalesce((
           SELECT sum(octet_length(message) + octet_length(detail)) FROM (
             SELECT message, detail FROM attempts WHERE job = j.id ORDER BY attempt DESC LIMIT $3) AS a), 0)::bigint
         ELSE 0 END AS bytes
  FROM jobs j WHERE id = ANY ($1)";

/// What a page looks at, by an index that is ordered by id, and what of it passes the filter. Labels and failures are
/// looked at only if the filter has any.
macro_rules! list {
    ($scan:expr) => {
        concat!(
            "WITH scanned AS MATERIALIZED (",
            $scan,
            "), picked AS (
  SELECT id, revision FROM scanned s
   WHERE state <> 7 AND (cardinality($3::text[]) = 0 OR kind = ANY ($3)) AND (cardinality($4::int2[]) = 0 OR state = ANY ($4))
     AND create_time BETWEEN $9 AND $10 AND is_labelled
     AND ($13::int8 IS NULL OR finish_time >= $13) AND ($14::int8 IS NULL OR finish_time < $14)
     AND ($11::text IS NULL OR $11 = CASE WHEN is_expired THEN 'EXPIRED' ELSE (
           SELECT failure_type FROM attempts WHERE job = s.id AND (outcome IN (2, 3) OR failure_type = 'LEASES_LOST')
            ORDER BY attempt DESC LIMIT 1) END)
   ORDER BY id DESC LIMIT $5)
SELECT ARRAY(SELECT id FROM picked ORDER BY id DESC) AS ids,
       ARRAY(SELECT revision FROM picked ORDER BY id DESC) AS revisions, (SELECT count(*) FROM scanned) AS scanned,
       (SELECT id FROM scanned ORDER BY id LIMIT 1) AS last, $12::int8 AS label"
        )
    };
}
/// What is seen of a row.
macro_rules! seen {
    () => {
        "SELECT id, revision, kind, state, create_time, finish_time, state = 5 AND attempt = 0 AS is_expired, ($8::text IS NULL OR coalesce(labels @> $8::text::jsonb, false)) AS is_labelled FROM jobs "
    };
}
const LIST_ALL: &str = list!(concat!(
    seen!(),
    "WHERE id < $1 AND id >= $7 AND cardinality($2::text[]) = 0 ORDER BY id DESC LIMIT $6"
));
/// Rows of one queue are asked for as a range of (queue, id), which the index of that order alone gives. Had they been
/// asked for by `queue = ...`, the planner may walk all ids instead: 120,000 of a million for one page of a rare queue.
const LIST_QUEUES: &str = list!(concat!(
    "SELECT s.* FROM unnest($2::text[]) AS q (queue), LATERAL (",
    seen!(),
    "WHERE (queue, id) >= (q.queue, $7) AND (queue, id) < (q.queue, $1)
        ORDER BY queue DESC, id DESC LIMIT $6) AS s
     ORDER BY s.id DESC LIMIT $6"
));
const LIST_FAILED: &str = list!(concat!(
    seen!(),
    "WHERE failed_at IS NOT NULL AND id < $1 AND id >= $7 AND cardinality($2::text[]) = 0
     ORDER BY id DESC LIMIT $6"
));
const LIST_FAILED_QUEUES: &str = list!(concat!(
    "SELECT s.* FROM unnest($2::text[]) AS q (queue), LATERAL (",
    seen!(),
    "WHERE failed_at IS NOT NULL AND (queue, id) >= (q.queue, $7) AND (queue, id) < (q.queue, $1)
        ORDER BY queue DESC, id DESC LIMIT $6) AS s
     ORDER BY s.id DESC LIMIT $6"
));

/// Those that have a label, of whatever queue.
const LIST_LABELLED: &str = list!(
    "SELECT s.* FROM (
       SELECT job FROM job_labels WHERE label = $12 AND job < $1 AND job >= $7 ORDER BY job DESC LIMIT $6) AS l
     CROSS JOIN LATERAL (
       SELECT id, revision, kind, state, create_time, finish_time, state = 5 AND attempt = 0 AS is_expired,
              coalesce(labels @> $8::text::jsonb, false) AND (cardinality($2::text[]) = 0 OR queue = ANY ($2)) AS is_labelled
         FROM jobs WHERE id = l.job OFFSET 0) AS s"
);
/// How many jobs have each label of the filter, up to a bound: the rarest in front.
const RAREST: &str = "
SELECT l.label, (SELECT count(*) FROM (
         SELECT FROM job_labels WHERE label = l.label AND job < $3 AND job >= $4 ORDER BY job DESC LIMIT $5) AS n) AS jobs
  FROM (SELECT lh_label(key, value) AS label FROM unnest($1::text[], $2::text[]) AS a (key, value)) AS l
 ORDER BY jobs LIMIT 1";

/// Lists jobs, newest first.
pub(super) async fn list(
    pool: &Pool,
    filter: &JobFilter,
    before: Option<JobId>,
    size: usize,
    view: View,
) -> Result<JobPage> {
    let (found, mut next) = walk(pool, filter, before, size).await?;
    let mut ids: Vec<JobId> = found.into_iter().map(|(id, _)| id).collect();
    let sizes = sizes(pool, &ids, view).await?;
    JobPage::cut(&mut ids, &mut next, |id| {
        sizes.get(id).copied().unwrap_or_default()
    });
    let found = get(pool, &ids, view).await?.into_iter().flatten();
    // Read by a later statement than the one that picked it, a job may have moved on.
    let jobs = found
        .filter(|job| filter.states.is_empty() || filter.states.contains(&job.state))
        .collect();
    Ok(JobPage { jobs, next })
}

/// What passes the filter below an id, with the revisions at which it does; and where the walk goes on.
pub(super) async fn walk(
    pool: &Pool,
    filter: &JobFilter,
    before: Option<JobId>,
    size: usize,
) -> Result<(Vec<(JobId, i64)>, Option<JobId>)> {
    let is_dead_letter = !filter.states.is_empty()
        && filter
            .states
            .iter()
            .all(|s| matches!(s, JobState::Failed | JobState::Cancelled));
    let (first, end) = filter.ids();
    let below = before.into_iter().chain(end).min();
    let below = below.map_or(Uuid::max(), JobId::uuid);
    // A label that few have leads to them at once. One that many have is left to a narrower walk, if there is one.
    let (label, having) = rarest(pool, filter, below, first.uuid()).await?.unzip();
    let is_rare = having.is_some_and(|jobs| jobs < bound(PAGE_ROWS_MAX));
    let is_label_alone =
        filter.labels.len() == 1 && filter.queues.is_empty() && filter.states.is_empty();
    let sql = match (filter.queues.is_empty(), is_dead_letter) {
        _ if is_rare => LIST_LABELLED,
        (true, false) if label.is_some() => LIST_LABELLED,
        (true, false) => LIST_ALL,
        (false, false) => LIST_QUEUES,
        (true, true) => LIST_FAILED,
        (false, true) => LIST_FAILED_QUEUES,
    };
    let mut queues: Vec<String> = filter.queues.iter().map(ToString::to_string).collect();
    queues.sort();
    queues.dedup();
    let kinds: Vec<String> = filter.kinds.iter().map(ToString::to_string).collect();
    let states: Vec<i16> = filter.states.iter().map(|s| s.number()).collect();
    let labels = json(&filter.labels)?;
    let is_by_index = kinds.is_empty()
        && (states.is_empty() || is_dead_letter && states.len() == 2)
        && (labels.is_none() || is_label_alone)
        && filter.failure_type.is_none()
        && filter.created_after.is_none()
        && filter.created_before.is_none()
        && filter.finished_after.is_none()
        && filter.finished_before.is_none();
    // Nothing else in the filter: the first rows pass, so no more need be looked at.
    let rows_max = match is_by_index {
        true => PAGE_ROWS_MAX.min(size.saturating_add(1)),
        false => PAGE_ROWS_MAX,
    };
    let rows = pool
        .read(|| {
            sqlx::query(sql)
                .bind(below)
                .bind(&queues)
                .bind(&kinds)
                .bind(&states)
                .bind(bound(size.saturating_add(1)))
                .bind(bound(rows_max))
                .bind(first.uuid())
                .bind(&labels)
                .bind(filter.created_after.map_or(i64::MIN, |time| time.0))
                .bind(filter.created_before.map_or(i64::MAX, |time| time.0 - 1))
                .bind(&filter.failure_type)
                .bind(label)
                .bind(filter.finished_after.map(|time| time.0))
                .bind(filter.finished_before.map(|time| time.0))
        })
        .await?;
    let Some(row) = rows.first() else {
        return Ok((Vec::new(), None));
    };
    let ids = column::<Vec<Uuid>>(row, "ids")?.into_iter();
    let revisions: Vec<i64> = column(row, "revisions")?;
    let mut found: Vec<(JobId, i64)> = ids.map(JobId::from_store).zip(revisions).collect();
    let is_full = found.len() > size;
    found.truncate(size);
    let next = match (is_full, column::<i64>(row, "scanned")? >= bound(rows_max)) {
        (true, _) => found.last().map(|(id, _)| *id),
        (false, true) => column::<Option<Uuid>>(row, "last")?.map(JobId::from_store),
        (false, false) => None,
    };
    Ok((found, next))
}

/// The label of the filter that the fewest jobs between these ids have, and how many that are.
async fn rarest(
    pool: &Pool,
    filter: &JobFilter,
    below: Uuid,
    first: Uuid,
) -> Result<Option<(i64, i64)>> {
    if filter.labels.is_empty() {
        return Ok(None);
    }
    let (keys, values): (Vec<&str>, Vec<&str>) = filter
        .labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .unzip();
    let rows = pool
        .read(|| {
            sqlx::query(RAREST)
                .bind(&keys)
                .bind(&values)
                .bind(below)
                .bind(first)
                .bind(bound(PAGE_ROWS_MAX))
        })
        .await?;
    let row = rows.first();
    row.map(|row| Ok((column(row, "label")?, column(row, "jobs")?)))
        .transpose()
}

async fn sizes(pool: &Pool, ids: &[JobId], view: View) -> Result<HashMap<JobId, usize>> {
    let keys: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let rows = pool
        .read(|| {
            sqlx::query(SIZES)
                .bind(&keys)
                .bind(view == View::Full)
                .bind(bound(ATTEMPTS_SHOWN))
        })
        .await?;
    rows.iter()
        .map(|row| {
            let bytes = usize::try_from(column::<i64>(row, "bytes")?).unwrap_or(0);
            Ok((JobId::from_store(column(row, "id")?), bytes))
        })
        .collect()
}
