//! The backlog: where the QUEUED jobs are, which of them the ready-list knows, and loans of them without it.
//!
//! A segment counts for those of its jobs that are QUEUED since it was written (`queued_time` equals `created_at`): a
//! job that became QUEUED again is found in its newest segment alone. A segment that counts for none is dropped on the
//! way; any snapshot that shows the segment also shows that its jobs were QUEUED, so no job is ever without one.

use std::time::Duration;

use uuid::Uuid;

use super::pool::Pool;
use super::row::{bound, segments};
use crate::error::Result;
use crate::job::time::micros;
use crate::store::{EntryId, Epoch, Line, Offer, Segment};

/// By arrays and not by a join: a plan made while there are few segments would compare each with each, and stay.
const OFFERED: &str = "
WITH locked AS MATERIALIZED (
  SELECT id FROM backlog WHERE id = ANY ($1) ORDER BY id FOR UPDATE)
UPDATE backlog
   SET epoch = ($2::uuid[])[array_position($1::int8[], id)], last_ms = ($3::int8[])[array_position($1::int8[], id)],
       last_seq = ($4::int8[])[array_position($1::int8[], id)], offered_at = lh_us(), claim_until = 0
 WHERE id = ANY (ARRAY(SELECT id FROM locked))";

/// What becomes of segments `taken (id)`: those that count for nobody go, the others are marked by the statement's own
/// SET and come back trimmed, in its order.
macro_rules! trimmed {
    ($taken:literal, $set:literal, $order:literal) => {
        concat!(
            "WITH RECURSIVE ",
            $taken,
            ",
trimmed AS MATERIALIZED (
  SELECT t.id, b.queue, b.priority,
         ARRAY(SELECT n.job FROM unnest(b.jobs) WITH ORDINALITY AS n (job, place)
                 JOIN jobs j ON j.id = n.job AND j.state = 2 AND j.queued_time = b.created_at
                ORDER BY n.place) AS jobs
    FROM taken t JOIN backlog b ON b.id = t.id),
dropped AS (
  DELETE FROM backlog b USING trimmed t WHERE b.id = t.id AND cardinality(t.jobs) = 0 RETURNING b.id),
marked AS (
  UPDATE backlog b SET ",
            $set,
            " FROM trimmed t WHERE b.id = t.id AND cardinality(t.jobs) > 0
  RETURNING b.id AS segment, t.queue, t.priority, t.jobs)
SELECT segment, queue, priority, jobs FROM marked
UNION ALL SELECT NULL, NULL, NULL, NULL FROM dropped
ORDER BY ",
            $order
        )
    };
}

/// There are few epochs in the table: they are found by skipping through the index, and of each but the present one
/// the oldest are taken, so that the length of the backlog does not matter. What comes from the future was written before
/// the clock went back, and is as good as old: here and below.
const UNOFFERED: &str = trimmed!(
    "epochs AS (
  (SELECT epoch FROM backlog ORDER BY epoch LIMIT 1)
  UNION ALL
  SELECT (SELECT b.epoch FROM backlog b WHERE b.epoch > e.epoch ORDER BY b.epoch LIMIT 1)
    FROM epochs e WHERE e.epoch IS NOT NULL),
clock AS MATERIALIZED (SELECT lh_us() AS now),
oldest AS MATERIALIZED (
  SELECT o.id FROM clock c, epochs e,
         LATERAL (SELECT b.id FROM backlog b
                   WHERE b.epoch = e.epoch AND b.created_at NOT BETWEEN c.now - $2 + 1 AND c.now AND b.claim_until <= c.now
                   ORDER BY b.id LIMIT $4) AS o
   WHERE e.epoch <> $1 ORDER BY o.id LIMIT $4),
taken AS MATERIALIZED (
  SELECT b.id FROM backlog b, clock c
   WHERE b.id = ANY (ARRAY(SELECT id FROM oldest)) AND b.epoch <> $1 AND b.claim_until <= c.now
   ORDER BY b.id FOR UPDATE OF b SKIP LOCKED)",
    "claim_until = (SELECT now FROM clock) + $3",
    "segment"
);

const LOST_OFFERS: &str = trimmed!(
    "clock AS MATERIALIZED (SELECT lh_us() AS now),
taken AS MATERIALIZED (
  SELECT b.id FROM backlog b, clock c
   WHERE b.queue = $2 AND b.priority = $3 AND b.epoch = $1
     AND (b.last_ms, b.last_seq) < ($4::int8, $5::int8)
     AND b.offered_at NOT BETWEEN c.now - $6 + 1 AND c.now
   ORDER BY b.last_ms, b.last_seq LIMIT $7 FOR UPDATE OF b SKIP LOCKED)",
    "epoch = '00000000-0000-0000-0000-000000000000', offered_at = NULL",
    "segment"
);

/// The queues in turns, and of each the most urgent and oldest first. To take the oldest of all would let one long line
/// keep out every other; which queue begins is left to chance, so that no call after call leaves out the same one.
const CLAIM: &str = trimmed!(
    "clock AS MATERIALIZED (SELECT lh_us() AS now),
oldest AS MATERIALIZED (
  SELECT id FROM (
    SELECT o.id, row_number() OVER (PARTITION BY l.queue ORDER BY l.priority DESC, o.id) AS turn
      FROM clock c, (SELECT DISTINCT * FROM unnest($1::text[], $2::int2[])) AS l (queue, priority),
           LATERAL (SELECT b.id FROM backlog b
                     WHERE b.queue = l.queue AND b.priority = l.priority AND b.claim_until <= c.now
                     ORDER BY b.id LIMIT $4) AS o) AS o
   ORDER BY turn, random() LIMIT $4),
taken AS MATERIALIZED (
  SELECT b.id FROM backlog b, clock c
   WHERE b.id = ANY (ARRAY(SELECT id FROM oldest)) AND b.claim_until <= c.now
   ORDER BY b.id FOR UPDATE OF b SKIP LOCKED)",
    "claim_until = (SELECT now FROM clock) + $3",
    "priority DESC, segment"
);

/// Segments that count for nobody make room for others that may; so often in one call.
const PASSES_MAX: usize = 20;

/// Remembers where segments stand in the ready-list.
pub(super) async fn offered(pool: &Pool, offers: &[Offer]) -> Result<()> {
    let ids: Vec<i64> = offers.iter().map(|o| o.segment).collect();
    let epochs: Vec<Uuid> = offers.iter().map(|o| o.epoch.0).collect();
    let ms: Vec<i64> = offers.iter().map(|o| number(o.last.ms)).collect();
    let seq: Vec<i64> = offers.iter().map(|o| number(o.last.seq)).collect();
    pool.write(|| {
        sqlx::query(OFFERED)
            .bind(&ids)
            .bind(&epochs)
            .bind(&ms)
            .bind(&seq)
    })
    .await
    .map(drop)
}

/// Takes segments that are not known to be offered under `epoch`.
pub(super) async fn unoffered(
    pool: &Pool,
    epoch: Epoch,
    age: Duration,
    claim: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    collect(pool, limit, |room| {
        sqlx::query(UNOFFERED)
            .bind(epoch.0)
            .bind(micros(age))
            .bind(micros(claim))
            .bind(bound(room))
    })
    .await
}

/// Takes segments whose hints are lost.
pub(super) async fn lost_offers(
    pool: &Pool,
    epoch: Epoch,
    line: &Line,
    first: Option<EntryId>,
    age: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    let (ms, seq) = first.map_or((i64::MAX, i64::MAX), |e| (number(e.ms), number(e.seq)));
    collect(pool, limit, |room| {
        sqlx::query(LOST_OFFERS)
            .bind(epoch.0)
            .bind(line.queue.as_str().to_owned())
            .bind(line.priority.number())
            .bind(ms)
            .bind(seq)
            .bind(micros(age))
            .bind(bound(room))
    })
    .await
}

/// Lends segments of lines.
pub(super) async fn claim(
    pool: &Pool,
    lines: &[Line],
    claim: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    let queues: Vec<String> = lines.iter().map(|l| l.queue.as_str().to_owned()).collect();
    let priorities: Vec<i16> = lines.iter().map(|l| l.priority.number()).collect();
    collect(pool, limit, |room| {
        sqlx::query(CLAIM)
            .bind(&queues)
            .bind(&priorities)
            .bind(micros(claim))
            .bind(bound(room))
    })
    .await
}

async fn collect<'q>(
    pool: &Pool,
    limit: usize,
    make: impl Fn(usize) -> super::pool::Statement<'q>,
) -> Result<Vec<Segment>> {
    let mut taken = Vec::new();
    for _ in 0..PASSES_MAX {
        let room = limit.saturating_sub(taken.len());
        if room == 0 {
            break;
        }
        let rows = pool.write(|| make(room)).await?;
        let some = segments(&rows)?;
        let is_last = rows.len() < room || some.len() == rows.len();
        taken.extend(some);
        if is_last {
            break;
        }
    }
    Ok(taken)
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
