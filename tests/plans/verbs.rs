//! A store on an empty database, and its verbs in batches as an engine sends them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use leasehold::job::draft::{Draft, Fields};
use leasehold::job::{
    Ending, JobId, JobState, LeasedJob, NewJob, NodeId, Outcome, Payload, SessionId, Verdict,
};
use leasehold::store::postgres::{PostgresOptions, PostgresStore};
use leasehold::store::{Ask, Attached, Enqueued, Granted, NewSession, Store, Unit};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

/// The queue of all jobs here.
pub const QUEUE: &str = "work";

/// A store, and a connection of the test's own to look behind it.
pub struct Verbs {
    pub store: PostgresStore,
    pub node: NodeId,
    pub look: PgConnection,
}

impl Verbs {
    /// Opens the store on the empty database at `url`, and makes its tables.
    pub async fn on(url: &str) -> Self {
        let store = PostgresStore::connect(url, &PostgresOptions::default())
            .await
            .expect("the store opens");
        store.migrate().await.expect("an empty database migrates");
        Self {
            store,
            node: NodeId(Uuid::new_v4()),
            look: PgConnection::connect(url).await.expect("it answers"),
        }
    }

    /// Opens sessions on this node that outlive the test.
    pub async fn sessions(&self, count: usize) -> Vec<Attached> {
        let mut opened = Vec::with_capacity(count);
        for n in 0..count {
            let session = NewSession {
                id: SessionId::of_token(Uuid::new_v4().as_bytes()),
                node: self.node,
                worker: format!("worker-{n}"),
                sdk: "plans 1".into(),
                ttl: Duration::from_secs(60 * 60),
            };
            let id = session.id;
            self.store
                .open_session(session)
                .await
                .expect("a session opens");
            opened.push(Attached {
                session: id,
                attach: 1,
            });
        }
        opened
    }

    /// Enqueues jobs that must all be new.
    pub async fn accept(&self, jobs: Vec<NewJob>) -> Vec<JobId> {
        let answer = self
            .store
            .enqueue(jobs.into(), Unit::Each)
            .await
            .expect("enqueue answers");
        answer
            .jobs
            .iter()
            .map(|answer| match answer {
                Enqueued::Created(job) => job.id,
                other => panic!("expected a new job, got {other:?}"),
            })
            .collect()
    }

    /// Hands jobs, which must all be QUEUED, to these sessions in turn.
    pub async fn lease(&self, jobs: &[JobId], sessions: &[Attached]) -> Vec<(LeasedJob, Attached)> {
        let asks: Vec<Ask> = jobs
            .iter()
            .zip(sessions.iter().cycle())
            .map(|(job, to)| Ask { job: *job, to: *to })
            .collect();
        let to: Vec<Attached> = asks.iter().map(|ask| ask.to).collect();
        let answers = self
            .store
            .grant(self.node, asks)
            .await
            .expect("grant answers");
        answers
            .into_iter()
            .zip(to)
            .map(|(answer, to)| match answer {
                Granted::Lease(job) => (*job, to),
                other => panic!("expected a lease, got {other:?}"),
            })
            .collect()
    }

    /// Records endings that must all count.
    pub async fn end(&self, endings: Vec<Ending>) -> Vec<JobState> {
        let answer = self.store.finish(endings).await.expect("finish answers");
        answer
            .verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Recorded(state) => state,
                other => panic!("expected RECORDED, got {other:?}"),
            })
            .collect()
    }
}

/// The usual job with a payload of so many bytes.
pub fn job(bytes: usize) -> NewJob {
    let draft = Draft {
        queue: QUEUE.into(),
        kind: "greet".into(),
        payload: Some(body(bytes)),
        ..Draft::default()
    };
    let fields = Fields {
        item: String::new(),
        spec: "job.",
    };
    draft.check(&fields, fresh_id()).expect("the job is valid")
}

/// So many bytes of text.
pub fn body(bytes: usize) -> Payload {
    Payload {
        content_type: "text/plain; charset=utf-8".into(),
        data: "x".repeat(bytes).into(),
        is_text: true,
    }
}

/// A UUIDv7 of this moment.
fn fresh_id() -> JobId {
    let ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970")
        .as_millis();
    let chance = Uuid::new_v4().as_u128();
    let bits =
        ms << 80 | 7 << 76 | (chance >> 64 & 0xfff) << 64 | 2 << 62 | chance & ((1 << 62) - 1);
    JobId::new(Uuid::from_u128(bits)).expect("it is a UUIDv7")
}

/// How these leases end, each the same way.
pub fn endings(
    leases: &[(LeasedJob, Attached)],
    outcome: impl Fn(usize) -> Outcome,
) -> Vec<Ending> {
    leases
        .iter()
        .enumerate()
        .map(|(n, (job, by))| Ending {
            lease: job.lease,
            session: by.session,
            outcome: outcome(n),
            chance: 0.0,
        })
        .collect()
}
