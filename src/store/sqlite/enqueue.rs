//! Accepting jobs: one transaction a batch, one answer a job.

use std::collections::{HashMap, HashSet};

use sqlx::{FromRow, SqliteConnection};
use uuid::Uuid;

use super::fault::{broken, fault};
use super::row::{batch, hex, id_list};
use super::{SqliteStore, backlog, commit, row};
use crate::error::{Error, Result};
use crate::job::Start;
use crate::job::limits::{ID_AGE_MAX, ID_AHEAD_MAX, SPAN_MAX};
use crate::job::time::micros;
use crate::job::{
    IdempotencyKey, Job, JobId, JobState, NewJob, Payload, QueueName, Timestamp,
};
use crate::store::{EnqueueAnswer, Enqueued, Line, Unit};

const FINGERPRINTS: &str = "
SELECT id, fingerprint FROM jobs WHERE id IN (SELECT unhex(value) FROM json_each(?1))";
/// Those whose key was taken under another id.
const KEYED: &str = "
SELECT j.id, j.fingerprint FROM json_each(?1) n CROSS JOIN jobs j
    ON j.queue = n.value->>'$[0]' AND j.idempotency_key = n.value->>'$[1]' AND j.idempotency_key IS NOT NULL";
const INSERT_JOBS: &str = "
INSERT INTO jobs (id, queue, kind, priority, state, revision, attempt, failures, lost_leases, releases, released_in_row,
                  max_attempts, backoff_initial, backoff_max, backoff_factor, timeout, retention, fingerprint, worker,
                  create_time, run_time, queue_time, bytes, idempotency_key)
SELECT unhex(value->>'$[0]'), value->>'$[1]', value->>'$[2]', value->>'$[3]', value->>'$[4]', 1, 0, 0, 0, 0, 0,
       value->>'$[5]', value->>'$[6]', value->>'$[7]', value->>'$[8]', value->>'$[9]', value->>'$[10]',
       unhex(value->>'$[11]'), '', ?2, value->>'$[12]', CASE value->>'$[4]' WHEN 2 THEN ?2 END, value->>'$[13]',
       value->>'$[14]'
  FROM json_each(?1)";
const INSERT_PAYLOADS: &str = "
INSERT INTO payloads (id, labels, headers, content_type, is_text, data)
SELECT unhex(value->>'$[0]'), value->>'$[1]', value->>'$[2]', value->>'$[3]', value->>'$[4]',
       coalesce(substr(?2, value->>'$[5]', value->>'$[6]'), x'')
  FROM json_each(?1)";

/// Accepts jobs, durably.
pub(super) async fn enqueue(
    store: &SqliteStore,
    jobs: &[NewJob],
    unit: Unit,
) -> Result<EnqueueAnswer> {
    let (mut tx, now) = store.write().await?;
    let mut known = Known::of(&mut tx, jobs).await?;
    let mut fresh: Vec<(&NewJob, Job)> = Vec::new();
    let mut answers: Vec<Enqueued> = Vec::with_capacity(jobs.len());
    for new in jobs {
        let answer = known.answer(new).unwrap_or_else(|| judge(new, now));
        if let Enqueued::Created(job) = &answer {
            known.add(job.clone(), new.fingerprint.to_vec());
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

    let mut segments = Vec::new();
    if !fresh.is_empty() {
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

/// What is there under ids and under keys.
#[derive(Default)]
struct Known {
    /// With the fingerprints of the requests that they were created for.
    jobs: HashMap<JobId, (Job, Vec<u8>)>,
    keys: HashMap<(QueueName, IdempotencyKey), JobId>,
}

impl Known {
    async fn of(connection: &mut SqliteConnection, jobs: &[NewJob]) -> Result<Self> {
        #[derive(FromRow)]
        struct Print {
            id: Uuid,
            fingerprint: Vec<u8>,
        }
        let ids: Vec<JobId> = jobs.iter().map(|new| new.id).collect();
        let mut prints: Vec<Print> = sqlx::query_as(FINGERPRINTS)
            .bind(id_list(&ids)?)
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
        let mut known = Self::default();
        if prints.is_empty() {
            return Ok(known);
        }
        let ids: Vec<JobId> = prints.iter().map(|p| JobId::from_store(p.id)).collect();
        let found = row::jobs(connection, &ids).await?;
        for print in prints {
            let job = found.get(&JobId::from_store(print.id));
            let job = job.ok_or_else(|| broken("no payload"))?;
            known.add(job.clone(), print.fingerprint);
        }
        Ok(known)
    }

    fn add(&mut self, job: Job, fingerprint: Vec<u8>) {
        if let Some(key) = &job.idempotency_key {
            let key = (job.spec.queue.clone(), key.clone());
            self.keys.insert(key, job.id);
        }
        self.jobs.insert(job.id, (job, fingerprint));
    }

    /// The answer to a job when one is there; `None`: nothing is.
    fn answer(&self, new: &NewJob) -> Option<Enqueued> {
        if let Some((job, fingerprint)) = self.jobs.get(&new.id) {
            let is_same = *fingerprint == new.fingerprint
                && job.idempotency_key == new.idempotency_key;
            return Some(match is_same {
                true => Enqueued::Existed(job.clone()),
                false => Enqueued::Conflict,
            });
        }
        let (queue, key) = new.key()?;
        let id = self.keys.get(&(queue.clone(), key.clone()))?;
        let (job, fingerprint) = self.jobs.get(id)?;
        Some(match *fingerprint == new.fingerprint {
            true => Enqueued::Existed(job.clone()),
            false => Enqueued::KeyConflict(*id),
        })
    }
}

fn judge(new: &NewJob, now: Timestamp) -> Enqueued {
    let made = new.id.time();
    if made.after(ID_AGE_MAX) < now || made > now.after(ID_AHEAD_MAX) {
        return Enqueued::IdOutOfTime;
    }
    let run_time = match new.start {
        Start::Now => now,
        Start::After(delay) => now.after(delay),
        Start::At(time) => time,
    };
    if run_time > now.after(SPAN_MAX) {
        return Enqueued::StartTooFar;
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
    let rows: Vec<_> = fresh.iter().map(|(new, job)| job_row(new, job)).collect();
    sqlx::query(INSERT_JOBS)
        .bind(batch(&rows)?)
        .bind(now.0)
        .execute(&mut *connection)
        .await
        .map_err(fault)?;

    let mut bodies = Vec::new();
    let mut rows = Vec::with_capacity(fresh.len());
    for (new, _) in fresh {
        let JobSpecWords { labels, headers } = spec_words(new)?;
        let (start, length) = push(&mut bodies, &new.payload);
        let Payload {
            content_type,
            is_text,
            ..
        } = &new.payload;
        rows.push((
            hex(new.id.uuid()),
            labels,
            headers,
            content_type,
            is_text,
            start,
            length,
        ));
    }
    sqlx::query(INSERT_PAYLOADS)
        .bind(batch(&rows)?)
        .bind(bodies)
        .execute(connection)
        .await
        .map_err(fault)?;
    Ok(())
}

fn job_row(new: &NewJob, job: &Job) -> impl serde::Serialize + use<> {
    let spec = &new.spec;
    (
        hex(new.id.uuid()),
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
        new.fingerprint
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
        job.run_time.0,
        new.payload.data.len(),
        new.idempotency_key.as_ref().map(|key| key.as_str().to_owned()),
    )
}

struct JobSpecWords {
    labels: String,
    headers: String,
}

fn spec_words(new: &NewJob) -> Result<JobSpecWords> {
    let json = |words| serde_json::to_string(words).map_err(Error::internal);
    Ok(JobSpecWords {
        labels: json(&new.spec.labels)?,
        headers: json(&new.spec.headers)?,
    })
}

/// Adds a body to the blob of the batch; says where SQL's `substr` finds it.
pub(super) fn push(bodies: &mut Vec<u8>, payload: &Payload) -> (usize, usize) {
    let start = bodies.len() + 1;
    bodies.extend_from_slice(&payload.data);
    (start, payload.data.len())
}
