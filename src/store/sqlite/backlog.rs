//! Segments: who waits in which line, where that was offered, and what must be offered again.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::iter;
use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::fault::{broken, fault};
use super::row::{batch, hex, id_list, packed, priority, rows_max};
use super::{SqliteStore, Tx, commit};
use crate::error::Result;
use crate::job::{JobId, Priority, QueueName, Timestamp};
use crate::store::{EntryId, Epoch, Line, Offer, Segment};

const APPEND: &str = "
INSERT INTO backlog (queue, priority, create_time, jobs)
SELECT value->>'$[0]', value->>'$[1]', ?3, substr(?2, value->>'$[2]', value->>'$[3]') FROM json_each(?1)
RETURNING id, queue, priority";
const OFFERED: &str = "
UPDATE backlog
   SET epoch = unhex(n.value->>'$[1]'), last_ms = n.value->>'$[2]', last_seq = n.value->>'$[3]',
       offer_time = ?2, claimed_until = 0
  FROM json_each(?1) AS n
 WHERE backlog.id = n.value->>'$[0]'";
// From one incarnation to the next, by the index.
const EPOCHS: &str = "
WITH RECURSIVE e (epoch) AS (
  SELECT (SELECT min(epoch) FROM backlog)
  UNION ALL
  SELECT (SELECT min(b.epoch) FROM backlog b WHERE b.epoch > e.epoch) FROM e WHERE e.epoch IS NOT NULL
)
SELECT epoch FROM e WHERE epoch IS NOT NULL AND epoch <> ?1 LIMIT ?2";
// What was written "later than now" was written before the clock was set back.
const OF_EPOCH: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog
 WHERE epoch IS ?1 AND (create_time <= ?2 OR create_time > ?3) AND claimed_until <= ?3
 ORDER BY id LIMIT ?4";
// A line is offered in order, so that its first entry is its oldest.
const LOST: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog
 WHERE queue = ?1 AND priority = ?2 AND epoch = ?3 AND (offer_time <= ?4 OR offer_time > ?8)
   AND last_ms <= ?5 AND (last_ms < ?5 OR last_seq < ?6)
 ORDER BY last_ms, last_seq LIMIT ?7";
const OF_LINE: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog
 WHERE queue = ?1 AND priority = ?2 AND claimed_until <= ?3
 ORDER BY id LIMIT ?4";
/// Segments of a line, from the oldest on.
pub(super) const OLDEST: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog
 WHERE queue = ?1 AND priority = ?2 AND id > ?3
 ORDER BY id LIMIT ?4";
const QUEUED: &str = "
SELECT id, queue_time FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state = 2";
const LEND: &str = "
UPDATE backlog SET claimed_until = ?2 WHERE id IN (SELECT value FROM json_each(?1))";
const WITHDRAW: &str = "
UPDATE backlog SET epoch = NULL WHERE id IN (SELECT value FROM json_each(?1))";
const DROP: &str = "DELETE FROM backlog WHERE id IN (SELECT value FROM json_each(?1))";

/// Rounds of one call over segments whose jobs have all moved on, before it answers with what it has.
const ROUNDS_MAX: usize = 16;
/// Older incarnations of the ready-list that one call looks at; the rest come when these are done with.
const EPOCHS_MAX: i64 = 16;

/// Segments of a line that are looked at for the oldest, step by step.
const OLDEST_STEPS: [i64; 3] = [1, 19, 180];

/// Writes the segments of jobs that became QUEUED, one for each line, in their order.
pub(super) async fn append<'a>(
    connection: &mut SqliteConnection,
    now: Timestamp,
    queued: impl Iterator<Item = (&'a Line, JobId)>,
) -> Result<Vec<Segment>> {
    let mut lines: Vec<(&Line, Vec<JobId>)> = Vec::new();
    let mut places: HashMap<&Line, usize> = HashMap::new();
    for (line, id) in queued {
        let place = *places.entry(line).or_insert(lines.len());
        match lines.get_mut(place) {
            Some((_, jobs)) => jobs.push(id),
            None => lines.push((line, vec![id])),
        }
    }
    if lines.is_empty() {
        return Ok(Vec::new());
    }

    let ids = packed(lines.iter().flat_map(|(_, jobs)| jobs).map(|id| id.uuid()));
    let mut start = 1;
    let rows: Vec<_> = lines
        .iter()
        .map(|(line, jobs)| {
            let (at, length) = (start, 16 * jobs.len());
            start += length;
            (line.queue.as_str(), line.priority.number(), at, length)
        })
        .collect();
    let written: Vec<(i64, String, i16)> = sqlx::query_as(APPEND)
        .bind(batch(&rows)?)
        .bind(ids)
        .bind(now.0)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    let numbers: HashMap<(&str, i16), i64> = written
        .iter()
        .map(|(id, queue, priority)| ((queue.as_str(), *priority), *id))
        .collect();
    lines
        .into_iter()
        .map(|(line, jobs)| {
            let key = (line.queue.as_str(), line.priority.number());
            let id = *numbers.get(&key).ok_or_else(|| broken("backlog"))?;
            Ok(Segment {
                id,
                line: line.clone(),
                jobs,
            })
        })
        .collect()
}

/// Remembers where segments stand in the ready-list.
pub(super) async fn offered(store: &SqliteStore, offers: &[Offer]) -> Result<()> {
    let rows: Vec<_> = offers
        .iter()
        .map(|offer| {
            let EntryId { ms, seq } = offer.last;
            (offer.segment, hex(offer.epoch.0), number(ms), number(seq))
        })
        .collect();
    let (mut tx, now) = store.write().await?;
    sqlx::query(OFFERED)
        .bind(batch(&rows)?)
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await
}

/// Takes segments that are not known to be offered under `epoch`.
pub(super) async fn unoffered(
    store: &SqliteStore,
    epoch: Epoch,
    age: Duration,
    claim: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    let (mut tx, now) = store.write().await?;
    let others: Vec<Uuid> = sqlx::query_scalar(EPOCHS)
        .bind(epoch.0)
        .bind(EPOCHS_MAX)
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
    let source = Source::Epochs {
        epochs: iter::once(None)
            .chain(others.into_iter().map(Some))
            .collect(),
        made_before: before(now, age),
    };
    let taken = take(&mut tx, now, &source, Mark::lend(now, claim), limit).await?;
    commit(tx).await?;
    Ok(taken)
}

/// Takes segments of a line whose hints are lost.
pub(super) async fn lost_offers(
    store: &SqliteStore,
    epoch: Epoch,
    line: &Line,
    first: Option<EntryId>,
    age: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    let (mut tx, now) = store.write().await?;
    let source = Source::Offers {
        line,
        epoch,
        first: first.map_or((i64::MAX, i64::MAX), |entry| {
            (number(entry.ms), number(entry.seq))
        }),
        offered_before: before(now, age),
    };
    let taken = take(&mut tx, now, &source, Mark::Withdraw, limit).await?;
    commit(tx).await?;
    Ok(taken)
}

/// Lends segments of lines to one caller.
pub(super) async fn claim(
    store: &SqliteStore,
    lines: &[Line],
    claim: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    // A line that is named twice would be lent twice.
    let lines: BTreeSet<&Line> = lines.iter().collect();
    let (mut tx, now) = store.write().await?;
    let mark = Mark::lend(now, claim);
    let taken = take(&mut tx, now, &Source::Lines(lines), mark, limit).await?;
    commit(tx).await?;
    Ok(taken)
}

/// When the oldest segment of a queue was made that still has QUEUED jobs. It is looked for among the oldest few of each
/// priority, nearly always the first: tidying keeps the others short.
pub(super) async fn oldest(
    connection: &mut SqliteConnection,
    queue: &QueueName,
) -> Result<Option<Timestamp>> {
    let mut oldest: Option<Timestamp> = None;
    for priority in Priority::ALL {
        let mut after = 0;
        for limit in OLDEST_STEPS {
            let rows: Vec<SegmentRow> = sqlx::query_as(OLDEST)
                .bind(queue.as_str())
                .bind(priority.number())
                .bind(after)
                .bind(limit)
                .fetch_all(&mut *connection)
                .await
                .map_err(fault)?;
            let made: HashMap<i64, i64> =
                rows.iter().map(|row| (row.id, row.create_time)).collect();
            let Some(last) = rows.last().map(|row| row.id) else {
                break;
            };
            after = last;
            let (live, _) = trim(connection, rows).await?;
            let first = live.first().and_then(|segment| made.get(&segment.id));
            if let Some(at) = first.map(|at| Timestamp(*at)) {
                oldest = Some(oldest.map_or(at, |other| other.min(at)));
                break;
            }
        }
    }
    Ok(oldest)
}

/// Where segments are taken from.
enum Source<'a> {
    /// Those last offered under these incarnations; `None`: never offered, or withdrawn.
    Epochs {
        epochs: Vec<Option<Uuid>>,
        made_before: Timestamp,
    },
    /// Those of a line that were offered below an entry.
    Offers {
        line: &'a Line,
        epoch: Epoch,
        first: (i64, i64),
        offered_before: Timestamp,
    },
    /// Those of these lines.
    Lines(BTreeSet<&'a Line>),
}

/// What is written into a segment that is taken, and keeps it from being taken again.
#[derive(Clone, Copy)]
enum Mark {
    Lend(Timestamp),
    Withdraw,
}

/// Takes segments that have QUEUED jobs, in the order of their source, and drops those that have none on the way.
async fn take(
    tx: &mut Tx,
    now: Timestamp,
    source: &Source<'_>,
    mark: Mark,
    limit: usize,
) -> Result<Vec<Segment>> {
    let mut taken: Vec<Segment> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let rest = limit.saturating_sub(taken.len());
        let rows = source.read(tx, now, rest).await?;
        let is_end = rows.len() < rest;
        let (live, spent) = trim(tx, rows).await?;
        drop_spent(tx, &spent).await?;
        mark.write(tx, &live).await?;
        taken.extend(live);
        if is_end || taken.len() >= limit {
            break;
        }
    }
    Ok(taken)
}

impl Source<'_> {
    /// Reads the first rows that are there to take, of all parts of the source together.
    async fn read(&self, tx: &mut Tx, now: Timestamp, limit: usize) -> Result<Vec<SegmentRow>> {
        let mut rows: Vec<SegmentRow> = Vec::new();
        match self {
            Self::Epochs {
                epochs,
                made_before,
            } => {
                for epoch in epochs {
                    let query = sqlx::query_as(OF_EPOCH)
                        .bind(*epoch)
                        .bind(made_before.0)
                        .bind(now.0)
                        .bind(rows_max(limit));
                    rows.extend(query.fetch_all(&mut **tx).await.map_err(fault)?);
                }
            }
            Self::Offers {
                line,
                epoch,
                first,
                offered_before,
            } => {
                let query = sqlx::query_as(LOST)
                    .bind(line.queue.as_str())
                    .bind(line.priority.number())
                    .bind(epoch.0)
                    .bind(offered_before.0)
                    .bind(first.0)
                    .bind(first.1)
                    .bind(rows_max(limit))
                    .bind(now.0);
                rows.extend(query.fetch_all(&mut **tx).await.map_err(fault)?);
            }
            Self::Lines(lines) => {
                // The most urgent first, so that a queue's turns follow that order.
                for line in lines.iter().rev() {
                    let query = sqlx::query_as(OF_LINE)
                        .bind(line.queue.as_str())
                        .bind(line.priority.number())
                        .bind(now.0)
                        .bind(rows_max(limit));
                    rows.extend(query.fetch_all(&mut **tx).await.map_err(fault)?);
                }
                return Ok(in_turns(rows, limit));
            }
        }
        match self {
            Self::Lines(_) => rows.sort_unstable_by_key(|row| (Reverse(row.priority), row.id)),
            Self::Epochs { .. } | Self::Offers { .. } => rows.sort_unstable_by_key(|row| row.id),
        }
        rows.truncate(limit);
        Ok(rows)
    }
}

/// The queues in turns, each in the order of its rows: no line keeps out another, however long it is.
fn in_turns(rows: Vec<SegmentRow>, limit: usize) -> Vec<SegmentRow> {
    let mut turns: HashMap<String, usize> = HashMap::new();
    let mut rows: Vec<(usize, SegmentRow)> = rows
        .into_iter()
        .map(|row| {
            let turn = turns.entry(row.queue.clone()).or_default();
            *turn += 1;
            (*turn, row)
        })
        .collect();
    rows.sort_by_key(|(turn, row)| (*turn, row.id));
    rows.truncate(limit);
    rows.into_iter().map(|(_, row)| row).collect()
}

impl Mark {
    /// Lends for at least so long that the same call does not take it twice.
    fn lend(now: Timestamp, claim: Duration) -> Self {
        Self::Lend(now.after(claim.max(Duration::from_micros(1))))
    }

    async fn write(self, connection: &mut SqliteConnection, segments: &[Segment]) -> Result<()> {
        let ids: Vec<i64> = segments.iter().map(|segment| segment.id).collect();
        let ids = batch(&ids)?;
        let query = match self {
            Self::Lend(until) => sqlx::query(LEND).bind(ids).bind(until.0),
            Self::Withdraw => sqlx::query(WITHDRAW).bind(ids),
        };
        query.execute(connection).await.map_err(fault)?;
        Ok(())
    }
}

/// Splits segments into those that still have QUEUED jobs, trimmed to them, and the numbers of the others. A job that
/// was QUEUED again has a newer segment, and counts there alone.
pub(super) async fn trim(
    connection: &mut SqliteConnection,
    rows: Vec<SegmentRow>,
) -> Result<(Vec<Segment>, Vec<i64>)> {
    let segments = rows
        .into_iter()
        .map(SegmentRow::into_segment)
        .collect::<Result<Vec<_>>>()?;
    let ids: Vec<JobId> = segments
        .iter()
        .flat_map(|(segment, _)| segment.jobs.iter().copied())
        .collect();
    let queued: Vec<(Uuid, i64)> = sqlx::query_as(QUEUED)
        .bind(id_list(&ids)?)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    let queued: HashMap<Uuid, i64> = queued.into_iter().collect();
    let mut live = Vec::new();
    let mut spent = Vec::new();
    for (mut segment, made) in segments {
        segment
            .jobs
            .retain(|id| queued.get(&id.uuid()) == Some(&made));
        match segment.jobs.is_empty() {
            true => spent.push(segment.id),
            false => live.push(segment),
        }
    }
    Ok((live, spent))
}

/// Drops segments that have no QUEUED job.
pub(super) async fn drop_spent(connection: &mut SqliteConnection, spent: &[i64]) -> Result<()> {
    if spent.is_empty() {
        return Ok(());
    }
    sqlx::query(DROP)
        .bind(batch(spent)?)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

/// Part of an entry's place as SQL has it.
fn number(part: u64) -> i64 {
    i64::try_from(part).unwrap_or(i64::MAX)
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(crate::job::time::micros(age)))
}

/// A row of the backlog.
#[derive(FromRow)]
pub(super) struct SegmentRow {
    pub(super) id: i64,
    queue: String,
    priority: i16,
    create_time: i64,
    jobs: Vec<u8>,
}

impl SegmentRow {
    /// Jobs that it names.
    pub(super) fn named(&self) -> usize {
        self.jobs.len() / 16
    }

    /// The segment, and when it was made.
    fn into_segment(self) -> Result<(Segment, i64)> {
        let (ids, []) = self.jobs.as_chunks::<16>() else {
            return Err(broken("backlog.jobs"));
        };
        let segment = Segment {
            id: self.id,
            line: Line {
                queue: QueueName::from_store(&self.queue),
                priority: priority(self.priority)?,
            },
            jobs: ids
                .iter()
                .map(|id| JobId::from_store(Uuid::from_bytes(*id)))
                .collect(),
        };
        Ok((segment, self.create_time))
    }
}
