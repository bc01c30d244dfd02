//! Accepting jobs: one transaction a batch, one answer a job.

use std::collections::HashSet;
use std::hash::Hash;

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::change::{Change, apply, current};
use super::fault::{broken, fault};
use super::row::{Bodies, Shapes, batch, hex, packed, put_number};
use super::{SqliteStore, backlog, commit, row};
use crate::error::{Error, Result};
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{Job, JobId, JobSpec, JobState, NewJob, Payload, Timestamp};
use crate::store::known::Known;
use crate::store::{EnqueueAnswer, Enqueued, Line, Unit};

const FINGERPRINTS: &str = "
SELECT j.id, j.fingerprint
  FROM json_each(?1) AS n CROSS JOIN jobs j ON j.id = substr(?2, 16 * n.key + 1, 16)
UNION ALL
SELECT d.id, NULL FROM json_each(?1) AS n CROSS JOIN deleted d ON d.id = substr(?2, 16 * n.key + 1, 16)";
/// Those whose key was taken under another id.
const KEYED: &str = "
SELECT j.id, j.fingerprint FROM json_each(?1) AS n CROSS JOIN jobs j
    ON j.queue = n.value->>'$[0]' AND j.idempotency_key = n.value->>'$[1]' AND j.idempotency_key IS NOT NULL";
/// Who holds their unique keys.
const HELD: &str = "
SELECT j.id, j.fingerprint FROM json_each(?1) AS n CROSS JOIN jobs j
    ON j.queue = n.value->>'$[0]' AND j.unique_key = n.value->>'$[1]' AND j.unique_key IS NOT NULL AND j.state < 4";
const INSERT_JOBS: &str = "
INSERT INTO jobs (id, queue, kind, priority, state, revision, attempt, failures, lost_leases, releases, released_in_row,
                  max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention, fingerprint, worker,
                  create_time, run_time, queue_time, bytes, idempotency_key, expire_time, expire_at, unique_key,
                  finish_time, purge_time, replaced_by, copied_from)
WITH shapes AS MATERIALIZED (
  SELECT key AS shape, value->>'$[0]' AS queue, value->>'$[1]' AS kind, value->>'$[2]' AS priority,
         value->>'$[3]' AS state, value->>'$[4]' AS max_attempts, value->>'$[5]' AS backoff_initial,
         value->>'$[6]' AS backoff_max, value->>'$[7]' AS backoff_factor, value->>'$[8]' AS timeout,
         value->>'$[9]' AS retention, value->>'$[10]' AS run_time, value->>'$[11]' AS idempotency_key,
         value->>'$[12]' AS expire_time, value->>'$[13]' AS unique_key, value->>'$[14][0]' AS revision,
         value->>'$[14][1]' AS finish_time, value->>'$[15][0]' AS purge_time,
         unhex(value->>'$[15][1]') AS replaced_by, unhex(value->>'$[15][2]') AS copied_from
    FROM json_each(?2))
SELECT substr(?3, 16 * n.key + 1, 16), s.queue, s.kind, s.priority, s.state, s.revision, 0, 0, 0, 0, 0,
       s.max_attempts, s.backoff_initial, s.backoff_max, s.backoff_factor, s.timeout, s.retention,
       substr(?4, 32 * n.key + 1, 32), '', ?6, s.run_time, CASE s.state WHEN 2 THEN ?6 END,
       CAST(substr(?5, 20 * n.key + 1, 20) AS INTEGER), s.idempotency_key, s.expire_time, s.expire_time,
       s.unique_key, s.finish_time, s.purge_time, s.replaced_by, s.copied_from
  FROM json_each(?1) AS n CROSS JOIN shapes s ON s.shape = n.value";
const INSERT_PAYLOADS: &str = "
INSERT INTO payloads (id, labels, headers, content_type, is_text, data)
WITH shapes AS MATERIALIZED (
  SELECT key AS shape, value->>'$[0]' AS labels, value->>'$[1]' AS headers, value->>'$[2]' AS content_type,
         value->>'$[3]' AS is_text
    FROM json_each(?2))
SELECT substr(?3, 16 * n.key + 1, 16), s.labels, s.headers, s.content_type, s.is_text,
       coalesce(substr(?4, CAST(substr(?5, 40 * n.key + 1, 20) AS INTEGER),
                           CAST(substr(?5, 40 * n.key + 21, 20) AS INTEGER)), x'')
  FROM json_each(?1) AS n CROSS JOIN shapes s ON s.shape = n.value";

const INSERT_LABELS: &str = "
INSERT INTO job_labels (key, value, id)
SELECT value->>'$[0]', value->>'$[1]', unhex(value->>'$[2]') FROM json_each(?1)";

/// Accepts jobs, durably.
pub(super) async fn enqueue(
    store: &SqliteStore,
    jobs: &[NewJob],
    unit: Unit,
) -> Result<EnqueueAnswer> {
    let (mut tx, now) = store.write().await?;
    let mut known = known(&mut tx, jobs).await?;
    let mut fresh: Vec<(&NewJob, Job)> = Vec::new();
    let mut answers: Vec<Enqueued> = Vec::with_capacity(jobs.len());
    for new in jobs {
        let answer = known.answer(new).unwrap_or_else(|| judge(new, now));
        if let Enqueued::Created(job) = &answer {
            known.create(job.clone(), new.fingerprint.to_vec(), now);
            fresh.push((new, job.clone()));
        }
        answers.push(answer);
    }

    if unit == Unit::All && answers.iter().any(Enqueued::is_refused) {
        // The transaction has written nothing; dropping it ends it.
        let innocent: HashSet<JobId> = fresh.iter().map(|(new, _)| new.id).collect();
        for (new, answer) in jobs.iter().zip(&mut answers) {
            if innocent.contains(&new.id) && !answer.is_refused() {
                *answer = Enqueued::NotTried;
            }
        }
        return Ok(EnqueueAnswer {
            jobs: answers,
            segments: Vec::new(),
        });
    }

    known.amend(&mut answers);
    let mut segments = Vec::new();
    if !fresh.is_empty() {
        make_way(&mut tx, now, &known, &fresh).await?;
        // Some of them may have made way for others.
        fresh.iter_mut().for_each(|(_, job)| known.update(job));
        insert(&mut tx, now, &fresh).await?;
        let lines: Vec<(Line, JobId)> = fresh
            .iter()
            .filter(|(_, job)| job.state == JobState::Queued)
            .map(|(_, job)| {
                let queue = job.spec.queue.clone();
                let priority = job.spec.priority;
                (Line { queue, priority }, job.id)
            })
            .collect();
        let queued = lines.iter().map(|(line, id)| (line, *id));
        segments = backlog::append(&mut tx, now, queued).await?;
        commit(tx).await?;
    }
    Ok(EnqueueAnswer {
        jobs: answers,
        segments,
    })
}

/// What is there under the ids and under the keys of these jobs.
async fn known(connection: &mut SqliteConnection, jobs: &[NewJob]) -> Result<Known> {
    #[derive(FromRow)]
    struct Print {
        id: Uuid,
        /// `None`: the job was deleted.
        fingerprint: Option<Vec<u8>>,
    }
    let mut prints: Vec<Print> = sqlx::query_as(FINGERPRINTS)
        .bind(batch(&vec![0; jobs.len()])?)
        .bind(packed(jobs.iter().map(|new| new.id.uuid())))
        .fetch_all(&mut *connection)
        .await
        .map_err(fault)?;
    let keys: Vec<(&str, &str)> = jobs
        .iter()
        .filter_map(NewJob::key)
        .map(|(queue, key)| (queue.as_str(), key.as_str()))
        .collect();
    if !keys.is_empty() {
        let keyed: Vec<Print> = sqlx::query_as(KEYED)
            .bind(batch(&keys)?)
            .fetch_all(&mut *connection)
            .await
            .map_err(fault)?;
        prints.extend(keyed);
    }
    let unique: Vec<(&str, &str)> = jobs
        .iter()
        .filter_map(NewJob::unique)
        .map(|(queue, key)| (queue.as_str(), key.as_str()))
        .collect();
    if !unique.is_empty() {
        let held: Vec<Print> = sqlx::query_as(HELD)
            .bind(batch(&unique)?)
            .fetch_all(&mut *connection)
            .await
            .map_err(fault)?;
        prints.extend(held);
    }
    let mut known = Known::default();
    if prints.is_empty() {
        return Ok(known);
    }
    let ids: Vec<JobId> = prints.iter().map(|p| JobId::from_store(p.id)).collect();
    let found = row::jobs(connection, &ids).await?;
    for print in prints {
        let id = JobId::from_store(print.id);
        let Some(fingerprint) = print.fingerprint else {
            known.add_deleted(id);
            continue;
        };
        // One that is asked for twice is found twice.
        let job = found.get(&id).ok_or_else(|| broken("no payload"))?;
        known.add(job.clone(), fingerprint);
    }
    Ok(known)
}

/// Cancels those jobs that were there before and make way for some of these.
async fn make_way(
    connection: &mut SqliteConnection,
    now: Timestamp,
    known: &Known,
    fresh: &[(&NewJob, Job)],
) -> Result<()> {
    let fresh: HashSet<JobId> = fresh.iter().map(|(new, _)| new.id).collect();
    let old = known
        .replaced()
        .iter()
        .filter(|(id, _)| !fresh.contains(id));
    let old: Vec<(JobId, JobId)> = old.copied().collect();
    if old.is_empty() {
        return Ok(());
    }
    let ids: Vec<JobId> = old.iter().map(|(id, _)| *id).collect();
    let rows = current(connection, &ids).await?;
    let change = |(id, by): &(JobId, JobId)| {
        let mut change = rows.get(id)?.ends(JobState::Cancelled, now);
        change.new.replaced_by = Some(by.uuid());
        Some(change)
    };
    let changes: Vec<Change> = old.iter().filter_map(change).collect();
    apply(connection, now, &changes).await.map(drop)
}

fn judge(new: &NewJob, now: Timestamp) -> Enqueued {
    let made = new.id.time();
    if made.after(ID_AGE_MAX) < now || made > now.after(ID_AHEAD_MAX) {
        return Enqueued::IdOutOfTime;
    }
    let run_time = new.start.of(now);
    if run_time > now.after(SPAN_MAX) {
        return Enqueued::StartTooFar;
    }
    if new.expires_too_soon(now) {
        return Enqueued::ExpiresTooSoon;
    }
    let state = match run_time <= now {
        true => JobState::Queued,
        false => JobState::Scheduled,
    };
    Enqueued::Created(Job::accepted(new, state, now, run_time))
}

async fn insert(
    connection: &mut SqliteConnection,
    now: Timestamp,
    fresh: &[(&NewJob, Job)],
) -> Result<()> {
    let ids = packed(fresh.iter().map(|(new, _)| new.id.uuid()));
    insert_jobs(connection, now, fresh, &ids).await?;
    insert_payloads(connection, fresh, &ids).await?;
    insert_labels(connection, fresh).await
}

async fn insert_jobs(
    connection: &mut SqliteConnection,
    now: Timestamp,
    fresh: &[(&NewJob, Job)],
    ids: &[u8],
) -> Result<()> {
    let shapes = Shapes::of(fresh.iter().map(|(_, job)| job_shape(job)));
    let samples = shapes.samples(fresh).map(|(_, job)| job_row(job));
    let samples: Vec<_> = samples.collect();
    let mut prints = Vec::with_capacity(32 * fresh.len());
    let mut sizes = Vec::with_capacity(20 * fresh.len());
    for (new, _) in fresh {
        prints.extend_from_slice(&new.fingerprint);
        put_number(&mut sizes, new.payload.data.len());
    }
    sqlx::query(INSERT_JOBS)
        .bind(batch(&shapes.of)?)
        .bind(batch(&samples)?)
        .bind(ids)
        .bind(prints)
        .bind(sizes)
        .bind(now.0)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

async fn insert_payloads(
    connection: &mut SqliteConnection,
    fresh: &[(&NewJob, Job)],
    ids: &[u8],
) -> Result<()> {
    let shapes = Shapes::of(fresh.iter().map(|(new, _)| {
        let (spec, payload) = (&new.spec, &new.payload);
        let content_type = payload.content_type.as_str();
        (&spec.labels, &spec.headers, content_type, payload.is_text)
    }));
    let samples: Vec<_> = shapes
        .samples(fresh)
        .map(|(new, _)| payload_row(new))
        .collect::<Result<_>>()?;
    let bodies = Bodies::of(fresh.iter().map(|(new, _)| &new.payload));
    sqlx::query(INSERT_PAYLOADS)
        .bind(batch(&shapes.of)?)
        .bind(batch(&samples)?)
        .bind(ids)
        .bind(bodies.data)
        .bind(bodies.places)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

async fn insert_labels(connection: &mut SqliteConnection, fresh: &[(&NewJob, Job)]) -> Result<()> {
    let rows: Vec<_> = fresh
        .iter()
        .flat_map(|(new, _)| {
            new.spec
                .labels
                .iter()
                .map(|(k, v)| (k, v, hex(new.id.uuid())))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(INSERT_LABELS)
        .bind(batch(&rows)?)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

/// All that [`job_row`] looks at.
fn job_shape(job: &Job) -> impl Eq + Hash + use<'_> {
    let JobSpec { retry, .. } = &job.spec;
    (
        (&job.spec.queue, &job.spec.kind, job.spec.priority),
        (retry.max_attempts, retry.initial, retry.max),
        retry.factor.to_bits(),
        (job.spec.timeout, job.spec.retention),
        (job.state.number(), job.run_time, job.expire_time),
        (&job.idempotency_key, &job.spec.unique_key),
        (job.replaced_by, job.copied_from),
    )
}

fn job_row(job: &Job) -> impl serde::Serialize + use<> {
    let spec = &job.spec;
    (
        spec.queue.as_str().to_owned(),
        spec.kind.as_str().to_owned(),
        spec.priority.number(),
        job.state.number(),
        spec.retry.max_attempts,
        micros(spec.retry.initial),
        micros(spec.retry.max),
        spec.retry.factor.to_string(),
        spec.timeout.map(micros),
        micros(spec.retention),
        job.run_time.0,
        job.idempotency_key
            .as_ref()
            .map(|key| key.as_str().to_owned()),
        job.expire_time.map(|time| time.0),
        spec.unique_key.as_ref().map(|key| key.as_str().to_owned()),
        (job.revision, job.finish_time.map(|time| time.0)),
        (
            job.purge_time.map(|time| time.0),
            job.replaced_by.map(|id| hex(id.uuid())),
            job.copied_from.map(|id| hex(id.uuid())),
        ),
    )
}

fn payload_row(new: &NewJob) -> Result<impl serde::Serialize + use<'_>> {
    let json = |words| serde_json::to_string(words).map_err(Error::internal);
    let Payload {
        content_type,
        is_text,
        ..
    } = &new.payload;
    let (labels, headers) = (json(&new.spec.labels)?, json(&new.spec.headers)?);
    Ok((labels, headers, content_type, is_text))
}
