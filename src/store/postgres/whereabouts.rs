//! Where a job is: its place in line, or how its lease stands.

use uuid::Uuid;

use super::pool::Pool;
use super::row::{bound, column, priority};
use crate::error::{Error, Result};
use crate::job::{JobId, Timestamp};
use crate::store::place::{Seen, Walk};
use crate::store::{Ahead, Whereabouts};

const WHEREABOUTS: &str = "
SELECT lh_us() AS now, p.grace_until, s.expires_at, CASE WHEN j.state = 2 THEN j.queue END AS queue, j.priority
  FROM pulse p LEFT JOIN jobs j ON j.id = $1 LEFT JOIN sessions s ON s.id = j.session AND j.state = 3";

/// Some segments of a line, with those of their jobs that they count for.
const LINE: &str = "
WITH front AS MATERIALIZED (
  SELECT id, created_at, jobs, cardinality(jobs) AS named, sum(cardinality(jobs)) OVER (ORDER BY id) AS total
    FROM (SELECT id, created_at, jobs FROM backlog WHERE queue = $1 AND priority = $2 AND id > $3
           ORDER BY id LIMIT $4) AS b)
SELECT id, named,
       ARRAY(SELECT n.job FROM unnest(s.jobs) WITH ORDINALITY AS n (job, place)
               JOIN jobs j ON j.id = n.job AND j.state = 2 AND j.queued_time = s.created_at
              ORDER BY n.place) AS waiting
  FROM front s WHERE total - named < $5 ORDER BY id";

/// Where a job is.
pub(super) async fn whereabouts(pool: &Pool, job: JobId, limit: usize) -> Result<Whereabouts> {
    let rows = pool
        .read(|| sqlx::query(WHEREABOUTS).bind(job.uuid()))
        .await?;
    let row = rows.first().ok_or_else(|| Error::internal("no pulse"))?;
    let ahead = match column::<Option<String>>(row, "queue")? {
        None => None,
        Some(queue) => {
            let level = priority(column(row, "priority")?)?;
            Some(ahead(pool, &queue, Walk::new(job, level, limit)).await?)
        }
    };
    Ok(Whereabouts {
        now: Timestamp(column(row, "now")?),
        ahead,
        lease_until: column::<Option<i64>>(row, "expires_at")?.map(Timestamp),
        grace_until: Timestamp(column(row, "grace_until")?),
    })
}

async fn ahead(pool: &Pool, queue: &str, mut walk: Walk) -> Result<Ahead> {
    while let Some(step) = walk.next() {
        let rows = pool
            .read(|| {
                sqlx::query(LINE)
                    .bind(queue.to_owned())
                    .bind(step.priority.number())
                    .bind(step.after)
                    .bind(bound(step.segments))
                    .bind(bound(step.jobs))
            })
            .await?;
        let seen = rows.iter().map(|row| {
            let waiting: Vec<Uuid> = column(row, "waiting")?;
            Ok(Seen {
                segment: column(row, "id")?,
                named: usize::try_from(column::<i32>(row, "named")?).unwrap_or(0),
                waiting: waiting.into_iter().map(JobId::from_store).collect(),
            })
        });
        walk.take(&seen.collect::<Result<Vec<_>>>()?);
    }
    Ok(walk.ahead())
}
