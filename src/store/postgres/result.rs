//! Endings: recorded once under the fence of job, attempt and session; a copy gets the same verdict.

use std::collections::{HashMap, HashSet};

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::fault::broken;
use super::pool::{Pool, Statement};
use super::row::{self, InOrder, column, count, int, state};
use crate::error::{Error, Result};
use crate::job::limits::{LOST_LEASES_MAX, ROW_AGE_MIN};
use crate::job::time::micros;
use crate::job::{
    AttemptOutcome, Ending, JobId, JobState, Lease, Outcome, Payload, SessionId, Standing, Verdict,
};
use crate::store::{FinishAnswer, Segment};

/// `e.outcome` is the number of the attempt's outcome. The rows are locked in the order of their ids, and judged after
/// that as they are then. A success may also find its job QUEUED with its session still in the row: only a lost lease
/// (a forgotten one is such) leaves it there, and only until somebody else has the job (salvage). Success keeps the
/// session, by which a copy is known; every other ending clears it, so that nothing late can undo it. A job that has begun
/// does not expire: with an expire time its ending is not HOT, which is what the sweep would cost later.
const FINISH: &str = "
WITH locked AS MATERIALIZED (
  SELECT e.*, j.state AS was, j.queue, j.priority, j.worker, j.start_time, j.create_time, j.retention, j.failures,
         j.max_attempts, j.lost_leases, j.backoff_initial, j.backoff_max, j.backoff_factor, j.released_in_row
    FROM unnest($1::uuid[], $2::int4[], $3::uuid[], $4::int2[], $5::bytea[], $6::text[], $7::bool[], $8::text[],
                $9::text[], $10::text[], $11::bool[], $12::int8[], $13::float8[])
      AS e (id, attempt, session, outcome, output, output_type, output_is_text, failure_type, message, detail,
            permanent, delay, chance)
    JOIN jobs j ON j.id = e.id AND j.attempt = e.attempt AND j.session = e.session
                AND (j.state = 3 OR (j.state = 2 AND e.outcome = 1))
   ORDER BY j.id
     FOR UPDATE OF j),
clock AS MATERIALIZED (SELECT lh_us() AS now FROM (SELECT count(*) FROM locked) AS l),
waits AS MATERIALIZED (
  SELECT l.*, c.now,
         CASE l.outcome
           WHEN 1 THEN 4
           WHEN 5 THEN CASE WHEN l.lost_leases + 1 > $15 THEN 5 ELSE 2 END
           WHEN 6 THEN CASE WHEN greatest(l.delay, lh_release_floor(l.released_in_row)) > 0 THEN 1 ELSE 2 END
           ELSE CASE WHEN l.permanent OR l.failures + 1 >= l.max_attempts THEN 5 ELSE 1 END END::int2 AS state,
         CASE l.outcome
           WHEN 1 THEN 0
           WHEN 5 THEN 0
           WHEN 6 THEN greatest(l.delay, lh_release_floor(l.released_in_row))
           ELSE coalesce(l.delay,
                         lh_backoff(l.backoff_initial, l.backoff_max, l.backoff_factor, l.failures + 1, l.chance))
         END AS wait
    FROM clock c, locked l),
done AS (
  UPDATE jobs j
     SET state = w.state, revision = j.revision + 1,
         session = CASE WHEN w.outcome = 1 OR (w.outcome = 5 AND w.state = 2) THEN j.session END,
         lost_leases = j.lost_leases + CASE WHEN w.outcome = 5 THEN 1 ELSE 0 END,
         failures = j.failures + CASE WHEN w.outcome IN (2, 3) THEN 1 ELSE 0 END,
         releases = j.releases + CASE WHEN w.outcome = 6 THEN 1 ELSE 0 END,
         released_in_row = CASE WHEN w.outcome = 6 THEN j.released_in_row + 1 ELSE 0 END,
         run_time = CASE WHEN w.state IN (1, 2) THEN w.now + w.wait ELSE j.run_time END,
         due_at = CASE WHEN w.state = 1 THEN w.now + w.wait END,
         queued_time = CASE WHEN w.state = 2 THEN w.now ELSE j.queued_time END,
         timeout_time = NULL,
         finish_time = CASE WHEN w.state IN (4, 5) THEN w.now END,
         purge_time = CASE WHEN w.state IN (4, 5) THEN greatest(w.now + j.retention, j.create_time + $14) END,
         failed_at = CASE WHEN w.state = 5 THEN w.now END, expire_at = NULL,
         unique_held = CASE WHEN w.state IN (1, 2) THEN j.unique_held END,
         output = w.output, output_type = w.output_type, output_is_text = w.output_is_text
    FROM waits w
   WHERE j.id = w.id AND j.attempt = w.attempt AND j.session = w.session AND j.state = w.was
  RETURNING j.id, j.state, j.attempt, w.session, j.queue, j.priority, j.purge_time, w.was, w.now),
history AS (
  INSERT INTO attempts (job, attempt, session, outcome, worker, failure_type, message, detail, permanent, retry_after,
                        start_time, end_time)
  SELECT id, attempt, session, outcome, worker,
         CASE WHEN outcome = 5 AND state = 5 THEN 'LEASES_LOST' ELSE failure_type END,
         CASE WHEN outcome = 5 AND state = 5 THEN 'more than ' || $15 || ' of its leases were lost' ELSE message END,
         CASE WHEN outcome = 5 AND state = 5 THEN '' ELSE detail END, permanent,
         CASE WHEN outcome = 2 THEN delay END, coalesce(start_time, now), now
    FROM waits WHERE outcome <> 1),
segment AS (
  INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
  SELECT queue, priority, min(now), min(now) + 5000000, array_agg(id) FROM done WHERE state = 2 GROUP BY queue, priority
  RETURNING id, queue, priority, jobs),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id)
    FROM done WHERE state IN (4, 5) GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, scheduled, queued, running, succeeded, failed)
  SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2) - count(*) FILTER (WHERE was = 2),
         -count(*) FILTER (WHERE was = 3), count(*) FILTER (WHERE state = 4), count(*) FILTER (WHERE state = 5)
    FROM done GROUP BY queue)
SELECT id, attempt, session, state,
       NULL::bigint AS segment, NULL::text AS queue, NULL::int2 AS priority, NULL::uuid[] AS jobs FROM done
UNION ALL SELECT NULL, NULL, NULL, NULL, id, queue, priority, jobs FROM segment";

/// Successes of RUNNING jobs, most of all there is to record, at half the cost. The rows come sorted by id and are locked
/// in that order, as above; a row that another has changed meanwhile is judged as it is then, for the update itself has
/// the whole fence. What it leaves is looked at by the statement above. It answers nothing when it recorded all, as it
/// does nearly always, and else the fences of those that it did.
const SUCCEED: &str = "
WITH clock AS MATERIALIZED (SELECT lh_us() AS now),
done AS (
  UPDATE jobs j
     SET state = 4, revision = j.revision + 1, released_in_row = 0, due_at = NULL, timeout_time = NULL,
         finish_time = c.now, purge_time = greatest(c.now + j.retention, j.create_time + $7), failed_at = NULL,
         expire_at = NULL, unique_held = NULL,
         output = e.output, output_type = e.output_type, output_is_text = e.output_is_text
    FROM clock c
   CROSS JOIN unnest($1::uuid[], $2::int4[], $3::uuid[], $4::bytea[], $5::text[], $6::bool[])
      AS e (id, attempt, session, output, output_type, output_is_text)
   WHERE j.id = e.id AND j.attempt = e.attempt AND j.session = e.session AND j.state = 3
  RETURNING j.id, j.state, j.attempt, j.session, j.queue, j.purge_time),
ended AS (
  INSERT INTO finished (bucket, check_at, size, jobs)
  SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id) FROM done GROUP BY purge_time / 3600000000),
counted AS (
  INSERT INTO queue_counts (queue, running, succeeded) SELECT queue, -count(*), count(*) FROM done GROUP BY queue)
SELECT array_agg(id), array_agg(attempt), array_agg(session) FROM done HAVING count(*) < cardinality($1::uuid[])";

/// With a new snapshot: what the fence refused.
const ROWS: &str = "SELECT id, state, attempt, session FROM jobs WHERE id = ANY($1) AND state <> 7";
const ATTEMPTS: &str = "
SELECT a.job, a.attempt, a.session, a.outcome
  FROM unnest($1::uuid[], $2::int4[]) AS e (job, attempt) JOIN attempts a ON a.job = e.job AND a.attempt = e.attempt";

/// The type of a failure that the timeout was.
const TIMED_OUT: &str = "TIMED_OUT";
/// An ending that the first look refused and the second finds open (its lease was lost in between) is tried again.
const ROUNDS_MAX: usize = 3;

type Fence = (Lease, SessionId);

/// Records endings, one verdict each.
pub(super) async fn finish(pool: &Pool, endings: &[Ending]) -> Result<FinishAnswer> {
    let mut verdicts: Vec<Option<Verdict>> = vec![None; endings.len()];
    let mut segments = Vec::new();
    for round in 0..ROUNDS_MAX {
        // The first ending of an attempt is tried, the others are compared with what became of it.
        let mut seen: HashSet<Fence> = HashSet::new();
        let open: Vec<(usize, &Ending)> = endings
            .iter()
            .enumerate()
            .filter(|(i, e)| {
                verdicts.get(*i).is_some_and(Option::is_none) && seen.insert((e.lease, e.session))
            })
            .collect();
        if open.is_empty() {
            break;
        }
        segments.extend(match round {
            0 => apart(pool, &open, &mut verdicts).await?,
            _ => finish_all(pool, &open, &mut verdicts).await?,
        });
        if verdicts.iter().all(Option::is_some) {
            break;
        }
        let rest: Vec<Lease> = endings
            .iter()
            .zip(&verdicts)
            .filter_map(|(ending, verdict)| verdict.is_none().then_some(ending.lease))
            .collect();
        let look = Look::at(pool, &rest).await?;
        for (ending, slot) in endings.iter().zip(&mut verdicts) {
            if slot.is_none() {
                *slot = look.judge(ending);
            }
        }
    }
    let verdicts: Option<Vec<Verdict>> = verdicts.into_iter().collect();
    Ok(FinishAnswer {
        verdicts: verdicts.ok_or_else(|| Error::unavailable("postgres"))?,
        segments,
    })
}

/// An ending and its place among all.
type Open<'a> = (usize, &'a Ending);

/// Successes by the statement that is for them, all else by the other, side by side.
async fn apart(
    pool: &Pool,
    open: &[Open<'_>],
    verdicts: &mut [Option<Verdict>],
) -> Result<Vec<Segment>> {
    let (mut successes, others): (Vec<Open<'_>>, Vec<Open<'_>>) = open
        .iter()
        .partition(|(_, ending)| matches!(ending.outcome, Outcome::Success(_)));
    successes.sort_by_key(|(_, ending)| ending.lease.job);
    let mut others_verdicts = vec![None; verdicts.len()];
    // Not the first error at once: a statement is not dropped in the middle.
    let (succeeded, finished) = tokio::join!(
        succeed_all(pool, &successes, verdicts),
        finish_all(pool, &others, &mut others_verdicts),
    );
    succeeded?;
    let segments = finished?;
    for (verdict, other) in verdicts.iter_mut().zip(others_verdicts) {
        *verdict = verdict.take().or(other);
    }
    Ok(segments)
}

async fn succeed_all(
    pool: &Pool,
    open: &[Open<'_>],
    verdicts: &mut [Option<Verdict>],
) -> Result<()> {
    if open.is_empty() {
        return Ok(());
    }
    let endings: Vec<&Ending> = open.iter().map(|(_, ending)| *ending).collect();
    let rows = pool.write(|| success_statement(&endings)).await?;
    let left_some = rows.first().map(fences).transpose()?;
    for (i, ending) in open {
        let is_recorded = left_some
            .as_ref()
            .is_none_or(|recorded| recorded.contains(&fence(ending)));
        if is_recorded && let Some(verdict) = verdicts.get_mut(*i) {
            *verdict = Some(Verdict::Recorded(JobState::Succeeded));
        }
    }
    Ok(())
}

async fn finish_all(
    pool: &Pool,
    open: &[Open<'_>],
    verdicts: &mut [Option<Verdict>],
) -> Result<Vec<Segment>> {
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let endings: Vec<&Ending> = open.iter().map(|(_, ending)| *ending).collect();
    let rows = pool.write(|| statement(&endings)).await?;
    let mut recorded = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(id) = column::<Option<Uuid>>(row, "id")? {
            let fence = (id, column(row, "attempt")?, column(row, "session")?);
            recorded.insert(fence, state(column(row, "state")?)?);
        }
    }
    for (i, ending) in open {
        if let (Some(verdict), Some(state)) = (verdicts.get_mut(*i), recorded.get(&fence(ending))) {
            *verdict = Some(Verdict::Recorded(*state));
        }
    }
    row::segments(&rows)
}

fn fence(ending: &Ending) -> (Uuid, i32, Uuid) {
    let attempt = int(ending.lease.attempt);
    (ending.lease.job.uuid(), attempt, ending.session.uuid())
}

/// The fences of an answer, which has their parts in three arrays.
fn fences(row: &PgRow) -> Result<HashSet<(Uuid, i32, Uuid)>> {
    let mut row = InOrder::of(row);
    let jobs: Option<Vec<Uuid>> = row.next()?;
    let attempts: Option<Vec<i32>> = row.next()?;
    let sessions: Option<Vec<Uuid>> = row.next()?;
    let parts = jobs
        .into_iter()
        .flatten()
        .zip(attempts.into_iter().flatten());
    Ok(parts
        .zip(sessions.into_iter().flatten())
        .map(|((job, attempt), session)| (job, attempt, session))
        .collect())
}

/// `text` with the fences of the endings as its first three parameters: job, attempt, session.
fn fenced<'q>(text: &'static str, endings: &[&Ending]) -> Statement<'q> {
    sqlx::query(text)
        .bind(
            endings
                .iter()
                .map(|e| e.lease.job.uuid())
                .collect::<Vec<_>>(),
        )
        .bind(
            endings
                .iter()
                .map(|e| int(e.lease.attempt))
                .collect::<Vec<_>>(),
        )
        .bind(endings.iter().map(|e| e.session.uuid()).collect::<Vec<_>>())
}

fn success_statement<'q>(endings: &[&Ending]) -> Statement<'q> {
    let output = |ending: &&Ending| match &ending.outcome {
        Outcome::Success(body) => body.clone(),
        _ => None,
    };
    let outputs: Vec<Option<Payload>> = endings.iter().map(output).collect();
    let each = || outputs.iter().map(Option::as_ref);
    fenced(SUCCEED, endings)
        .bind(
            each()
                .map(|o| o.map(|o| o.data.to_vec()))
                .collect::<Vec<_>>(),
        )
        .bind(
            each()
                .map(|o| o.map(|o| o.content_type.clone()))
                .collect::<Vec<_>>(),
        )
        .bind(each().map(|o| o.map(|o| o.is_text)).collect::<Vec<_>>())
        .bind(micros(ROW_AGE_MIN))
}

fn statement<'q>(endings: &[&Ending]) -> Statement<'q> {
    let size = endings.len();
    let mut outcomes: Vec<i16> = Vec::with_capacity(size);
    let mut outputs: Vec<Option<Vec<u8>>> = Vec::with_capacity(size);
    let mut types: Vec<Option<String>> = Vec::with_capacity(size);
    let mut texts: Vec<Option<bool>> = Vec::with_capacity(size);
    let mut kinds: Vec<Option<String>> = Vec::with_capacity(size);
    let mut messages: Vec<Option<String>> = Vec::with_capacity(size);
    let mut details: Vec<Option<String>> = Vec::with_capacity(size);
    let mut permanent: Vec<bool> = Vec::with_capacity(size);
    let mut delays: Vec<Option<i64>> = Vec::with_capacity(size);
    for ending in endings {
        let mut output: Option<&Payload> = None;
        let mut failure: Option<(&str, &str, &str)> = None;
        let mut is_permanent = false;
        let mut delay = None;
        let outcome = match &ending.outcome {
            Outcome::Success(body) => {
                output = body.as_ref();
                AttemptOutcome::Succeeded
            }
            Outcome::Failure(f) => {
                failure = Some((&f.kind, &f.message, &f.detail));
                is_permanent = f.permanent;
                delay = f.retry_after.map(micros);
                AttemptOutcome::Failed
            }
            Outcome::TimedOut => {
                failure = Some((TIMED_OUT, "the attempt ran longer than its timeout", ""));
                AttemptOutcome::TimedOut
            }
            Outcome::Forgotten => AttemptOutcome::Forgotten,
            Outcome::Release { delay: d, reason } => {
                failure = Some(("", reason, ""));
                delay = Some(micros(*d));
                AttemptOutcome::Released
            }
        };
        outcomes.push(outcome.number());
        outputs.push(output.map(|o| o.data.to_vec()));
        types.push(output.map(|o| o.content_type.clone()));
        texts.push(output.map(|o| o.is_text));
        kinds.push(failure.map(|f| f.0.to_owned()));
        messages.push(failure.map(|f| f.1.to_owned()));
        details.push(failure.map(|f| f.2.to_owned()));
        permanent.push(is_permanent);
        delays.push(delay);
    }
    fenced(FINISH, endings)
        .bind(outcomes)
        .bind(outputs)
        .bind(types)
        .bind(texts)
        .bind(kinds)
        .bind(messages)
        .bind(details)
        .bind(permanent)
        .bind(delays)
        .bind(endings.iter().map(|e| e.chance).collect::<Vec<_>>())
        .bind(micros(ROW_AGE_MIN))
        .bind(int(LOST_LEASES_MAX))
}

/// What a second look shows of the endings that were refused.
pub(super) struct Look {
    rows: HashMap<JobId, (JobState, u32, Option<Uuid>)>,
    ended: HashMap<Lease, (Uuid, AttemptOutcome)>,
}

impl Look {
    pub(super) async fn at(pool: &Pool, leases: &[Lease]) -> Result<Self> {
        let ids: Vec<Uuid> = leases.iter().map(|lease| lease.job.uuid()).collect();
        let attempts: Vec<i32> = leases.iter().map(|lease| int(lease.attempt)).collect();
        // The rows after the attempts: an attempt that ended between the two looks is then seen as moved on, never as
        // open and ended.
        let mut ended = HashMap::new();
        for row in pool
            .read(|| sqlx::query(ATTEMPTS).bind(&ids).bind(&attempts))
            .await?
        {
            let lease = Lease {
                job: JobId::from_store(column(&row, "job")?),
                attempt: count(&row, "attempt")?,
            };
            let outcome = AttemptOutcome::from_number(column(&row, "outcome")?)
                .ok_or_else(|| broken("attempts.outcome"))?;
            ended.insert(lease, (column(&row, "session")?, outcome));
        }
        let mut rows = HashMap::new();
        for row in pool.read(|| sqlx::query(ROWS).bind(&ids)).await? {
            rows.insert(
                JobId::from_store(column(&row, "id")?),
                (
                    state(column(&row, "state")?)?,
                    count(&row, "attempt")?,
                    column(&row, "session")?,
                ),
            );
        }
        Ok(Self { rows, ended })
    }

    /// `None`: it looks open, and is to be tried again.
    fn judge(&self, ending: &Ending) -> Option<Verdict> {
        let Some(standing) = self.standing(ending.lease) else {
            return Some(Verdict::Unknown);
        };
        (!standing.lets_in(ending)).then(|| standing.verdict(ending))
    }

    /// `None`: there is no such job.
    pub(super) fn standing(&self, lease: Lease) -> Option<Standing> {
        let (state, attempt, holder) = self.rows.get(&lease.job).copied()?;
        let recorded = self.ended.get(&lease);
        Some(Standing {
            state,
            attempt,
            session: holder.map(SessionId::from_store),
            recorded: recorded.map(|(holder, outcome)| (SessionId::from_store(*holder), *outcome)),
        })
    }
}
