//! Segments: who waits in which line, where that was offered, and what must be offered again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::fault::{broken, fault};
use super::row::{batch, hex, id_list, priority, rows_max};
use super::{SqliteStore, Tx, commit};
use crate::error::Result;
use crate::job::{JobId, QueueName, Timestamp};
use crate::store::{EntryId, Epoch, Line, Offer, Segment};

const APPEND: &str = "
INSERT INTO backlog (queue, priority, create_time, jobs)
SELECT value->>'$[0]', value->>'$[1]', ?2, unhex(value->>'$[2]') FROM json_each(?1)
RETURNING id, queue, priority";
const OFFERED: &str = "
UPDATE backlog
   SET epoch = unhex(n.value->>'$[1]'), last_ms = n.value->>'$[2]', last_seq = n.value->>'$[3]',
       offer_time = ?2, claimed_until = 0
  FROM json_each(?1) AS n
 WHERE backlog.id = n.value->>'$[0]'";
const UNOFFERED: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog
 WHERE id > ?1 AND create_time <= ?2 AND claimed_until <= ?3 AND epoch IS NOT ?4
 ORDER BY id LIMIT ?5";
const LOST: &str = "
SELECT id, queue, priority, create_time, jobs FROM backlog
 WHERE queue = ?1 AND priority = ?2 AND id > ?3 AND epoch = ?4 AND offer_time <= ?5
   AND (?6 IS NULL OR (last_ms, last_seq) < (?6, ?7))
 ORDER BY id LIMIT ?8";
const CLAIMABLE: &str = "
SELECT b.id, b.queue, b.priority, b.create_time, b.jobs
  FROM json_each(?1) AS n
  JOIN backlog b ON b.queue = n.value->>'$[0]' AND b.priority = n.value->>'$[1]'
 WHERE b.id > ?2 AND b.claimed_until <= ?3
 ORDER BY b.id LIMIT ?4";
const QUEUED: &str = "
SELECT id, queue_time FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1)) AND state = 2";
const LEND: &str = "
UPDATE backlog SET claimed_until = ?2 WHERE id IN (SELECT value FROM json_each(?1))";
const WITHDRAW: &str = "
UPDATE backlog SET epoch = NULL WHERE id IN (SELECT value FROM json_each(?1))";
const DROP: &str = "DELETE FROM backlog WHERE id IN (SELECT value FROM json_each(?1))";

/// Rounds of one call over segments whose jobs have all moved on, before it answers with what it has.
const ROUNDS_MAX: usize = 16;

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

    let rows: Vec<_> = lines
        .iter()
        .map(|(line, jobs)| {
            let ids: String = jobs.iter().map(|id| hex(id.uuid())).collect();
            (line.queue.as_str(), line.priority.number(), ids)
        })
        .collect();
    let written: Vec<(i64, String, i16)> = sqlx::query_as(APPEND)
        .bind(batch(&rows)?)
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
    let mut taken = Taken::new(limit);
    while let Some(rest) = taken.rest() {
        let rows = sqlx::query_as(UNOFFERED)
            .bind(taken.after)
            .bind(before(now, age).0)
            .bind(now.0)
            .bind(epoch.0)
            .bind(rest)
            .fetch_all(&mut *tx)
            .await
            .map_err(fault)?;
        taken.add(&mut tx, rows).await?;
    }
    mark(&mut tx, LEND, &taken.segments, Some(now.after(claim))).await?;
    commit(tx).await?;
    Ok(taken.segments)
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
    let mut taken = Taken::new(limit);
    while let Some(rest) = taken.rest() {
        let rows = sqlx::query_as(LOST)
            .bind(line.queue.as_str())
            .bind(line.priority.number())
            .bind(taken.after)
            .bind(epoch.0)
            .bind(before(now, age).0)
            .bind(first.map(|entry| number(entry.ms)))
            .bind(first.map(|entry| number(entry.seq)))
            .bind(rest)
            .fetch_all(&mut *tx)
            .await
            .map_err(fault)?;
        taken.add(&mut tx, rows).await?;
    }
    mark(&mut tx, WITHDRAW, &taken.segments, None).await?;
    commit(tx).await?;
    Ok(taken.segments)
}

/// Lends segments of lines to one caller.
pub(super) async fn claim(
    store: &SqliteStore,
    lines: &[Line],
    claim: Duration,
    limit: usize,
) -> Result<Vec<Segment>> {
    // A line that is named twice would be lent twice.
    let lines: HashSet<_> = lines
        .iter()
        .map(|line| (line.queue.as_str(), line.priority.number()))
        .collect();
    let lines = batch(&lines.into_iter().collect::<Vec<_>>())?;
    let (mut tx, now) = store.write().await?;
    let mut taken = Taken::new(limit);
    while let Some(rest) = taken.rest() {
        let rows = sqlx::query_as(CLAIMABLE)
            .bind(&lines)
            .bind(taken.after)
            .bind(now.0)
            .bind(rest)
            .fetch_all(&mut *tx)
            .await
            .map_err(fault)?;
        taken.add(&mut tx, rows).await?;
    }
    mark(&mut tx, LEND, &taken.segments, Some(now.after(claim))).await?;
    commit(tx).await?;
    Ok(taken.segments)
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

/// What a call has taken so far, and from where it goes on.
struct Taken {
    segments: Vec<Segment>,
    after: i64,
    limit: usize,
    rounds: usize,
    is_end: bool,
}

impl Taken {
    fn new(limit: usize) -> Self {
        Self {
            segments: Vec::new(),
            after: 0,
            limit,
            rounds: 0,
            is_end: false,
        }
    }

    /// How many rows the next round reads; `None`: it was the last.
    fn rest(&self) -> Option<i64> {
        let rest = self.limit.saturating_sub(self.segments.len());
        (rest > 0 && self.rounds < ROUNDS_MAX && !self.is_end).then(|| rows_max(rest))
    }

    async fn add(&mut self, tx: &mut Tx, rows: Vec<SegmentRow>) -> Result<()> {
        self.rounds += 1;
        self.is_end = rows.len() < self.limit.saturating_sub(self.segments.len());
        self.after = rows.last().map_or(self.after, |row| row.id);
        let (live, spent) = trim(tx, rows).await?;
        drop_spent(tx, &spent).await?;
        self.segments.extend(live);
        Ok(())
    }
}

async fn mark(
    connection: &mut SqliteConnection,
    statement: &'static str,
    segments: &[Segment],
    until: Option<Timestamp>,
) -> Result<()> {
    let ids: Vec<i64> = segments.iter().map(|segment| segment.id).collect();
    let mut query = sqlx::query(statement).bind(batch(&ids)?);
    if let Some(until) = until {
        query = query.bind(until.0);
    }
    query.execute(connection).await.map_err(fault)?;
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
