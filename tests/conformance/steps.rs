//! The steps that cases are made of. A change of the trait is followed here, not in each case.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use leasehold::job::draft::{Draft, Fields, RawBackoff, RawSpan, RawStart};
use leasehold::job::{
    Ending, Failure, Job, JobId, JobState, Lease, LeasedJob, NewJob, NodeId, Outcome, Payload,
    QueueName, SessionId, Timestamp, Verdict, View,
};
use leasehold::store::{
    Ask, Attached, Cancelled, EnqueueAnswer, Enqueued, Epoch, Expired, FinishAnswer, Granted,
    JobFilter, Line, NewSession, Retried, Segment, SessionState, Swept, Unit,
};
use uuid::Uuid;

use crate::world::World;

/// The queue of jobs that do not say another.
pub const QUEUE: &str = "work";
/// The TTL of sessions that do not say another.
pub const TTL: Duration = Duration::from_secs(30);
/// Within the TTL by far: the clock of a case moves by itself, too, as long as its steps take.
pub const SHORT_OF_TTL: Duration = Duration::from_secs(18);
/// Longer than any claim, offer or lease of a case is good for.
pub const LONG: Duration = Duration::from_secs(48 * 60 * 60);
/// Every age.
pub const ANY_AGE: Duration = Duration::ZERO;
/// A claim that lasts through the case.
pub const FOR_LONG: Duration = Duration::from_secs(60 * 60);

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

/// A duration as the wire has it.
pub fn raw(span: Duration) -> RawSpan {
    RawSpan {
        seconds: span.as_secs() as i64,
        nanos: span.subsec_nanos() as i32,
    }
}

/// A time as the wire has it.
pub fn raw_time(time: Timestamp) -> RawSpan {
    RawSpan {
        seconds: time.0.div_euclid(1_000_000),
        nanos: (time.0.rem_euclid(1_000_000) * 1_000) as i32,
    }
}

pub fn queue(name: &str) -> QueueName {
    QueueName::parse(name).expect("a case names queues well")
}

pub fn line_of(job: &NewJob) -> Line {
    Line {
        queue: job.spec.queue.clone(),
        priority: job.spec.priority,
    }
}

pub fn text(body: &str) -> Payload {
    Payload {
        content_type: "text/plain; charset=utf-8".into(),
        data: body.to_owned().into(),
        is_text: true,
    }
}

pub fn success() -> Outcome {
    Outcome::Success(Some(text("done")))
}

pub fn failure() -> Outcome {
    Outcome::Failure(Failure {
        kind: "Broken".into(),
        message: "it broke".into(),
        detail: "at line 1\nat line 2".into(),
        permanent: false,
        retry_after: None,
    })
}

pub fn permanent_failure() -> Outcome {
    Outcome::Failure(Failure {
        kind: "Hopeless".into(),
        message: "no use".into(),
        permanent: true,
        ..Failure::default()
    })
}

pub fn release_after(delay: Duration) -> Outcome {
    Outcome::Release {
        delay,
        reason: "not now".into(),
    }
}

pub fn release() -> Outcome {
    release_after(Duration::ZERO)
}

/// A failed attempt is tried again after exactly `initial`, doubled each time, when the chance is 0.
pub fn backoff(initial: Duration, max: Duration, factor: f64) -> Option<RawBackoff> {
    Some(RawBackoff {
        initial: Some(raw(initial)),
        max: Some(raw(max)),
        factor,
    })
}

/// Two moments by the same clock, read a few statements apart on a busy machine.
pub fn assert_about(actual: Timestamp, expected: Timestamp, what: &str) {
    let apart = actual.since(expected).max(expected.since(actual));
    assert!(
        apart < secs(10),
        "{what}: {actual:?} is {apart:?} from {expected:?}"
    );
}

/// Two moments that one statement wrote.
pub fn assert_same_moment(actual: Timestamp, expected: Timestamp, what: &str) {
    let apart = actual.since(expected).max(expected.since(actual));
    assert!(
        apart < Duration::from_millis(100),
        "{what}: {actual:?} is {apart:?} from {expected:?}"
    );
}

#[track_caller]
pub fn assert_stale(verdict: &Verdict) {
    assert!(
        matches!(verdict, Verdict::Stale(..)),
        "expected STALE, got {verdict:?}"
    );
}

#[track_caller]
pub fn assert_recorded(verdict: &Verdict) {
    assert!(
        matches!(verdict, Verdict::Recorded(_)),
        "expected RECORDED, got {verdict:?}"
    );
}

#[track_caller]
pub fn created(answer: &Enqueued) -> &Job {
    match answer {
        Enqueued::Created(job) => job,
        other => panic!("expected Created, got {other:?}"),
    }
}

#[track_caller]
pub fn existed(answer: &Enqueued) -> &Job {
    match answer {
        Enqueued::Existed(job) => job,
        other => panic!("expected Existed, got {other:?}"),
    }
}

#[track_caller]
pub fn leased(answer: &Granted) -> &LeasedJob {
    match answer {
        Granted::Lease(job) => job,
        other => panic!("expected a lease, got {other:?}"),
    }
}

/// All jobs that segments name.
pub fn jobs_of(segments: &[Segment]) -> Vec<JobId> {
    segments.iter().flat_map(|s| s.jobs.clone()).collect()
}

pub fn fresh_epoch() -> Epoch {
    Epoch(Uuid::new_v4())
}

/// Asking and accepting.
impl World {
    /// A job with the case's changes to the usual one.
    pub fn job_with(&self, change: impl FnOnce(&mut Draft)) -> NewJob {
        let mut draft = Draft {
            queue: QUEUE.into(),
            kind: "greet".into(),
            payload: Some(text("hello")),
            ..Draft::default()
        };
        change(&mut draft);
        let fields = Fields {
            item: String::new(),
            spec: "job.",
        };
        draft
            .check(&fields, self.fresh_id())
            .expect("a case asks for valid jobs")
    }

    pub fn job(&self) -> NewJob {
        self.job_with(|_| {})
    }

    pub async fn enqueue(&self, jobs: Vec<NewJob>, unit: Unit) -> EnqueueAnswer {
        let asked = jobs.len();
        let answer = self
            .store
            .enqueue(jobs.into(), unit)
            .await
            .expect("enqueue answers");
        assert_eq!(answer.jobs.len(), asked, "one answer a job, in order");
        answer
    }

    /// Enqueues one job that must be new.
    pub async fn accept(&self, job: NewJob) -> JobId {
        let id = job.id;
        let answer = self.enqueue(vec![job], Unit::Each).await;
        assert_eq!(created(&answer.jobs[0]).id, id);
        id
    }

    /// Enqueues jobs that must be new, and gives their ids in order.
    pub async fn accept_all(&self, jobs: Vec<NewJob>) -> Vec<JobId> {
        let mut ids = Vec::new();
        for chunk in jobs.chunks(1_000) {
            let answer = self.enqueue(chunk.to_vec(), Unit::Each).await;
            ids.extend(answer.jobs.iter().map(|a| created(a).id));
        }
        ids
    }

    pub async fn queued(&self) -> JobId {
        self.accept(self.job()).await
    }

    pub async fn queued_many(&self, count: usize) -> Vec<JobId> {
        self.accept_all((0..count).map(|_| self.job()).collect())
            .await
    }

    pub async fn scheduled(&self, delay: Duration) -> JobId {
        self.accept(self.job_with(|d| d.start = RawStart::Delay(raw(delay))))
            .await
    }
}

/// Sessions and leases.
impl World {
    pub async fn open_on(&self, node: NodeId, worker: &str, ttl: Duration) -> Attached {
        let session = SessionId::of_token(Uuid::new_v4().as_bytes());
        let new = NewSession {
            id: session,
            node,
            worker: worker.into(),
            sdk: "conformance 1".into(),
            ttl,
        };
        self.store.open_session(new).await.expect("a session opens");
        Attached { session, attach: 1 }
    }

    pub async fn open(&self) -> Attached {
        self.open_on(self.node, "worker-1", TTL).await
    }

    pub async fn grant(&self, asks: Vec<Ask>) -> Vec<Granted> {
        let asked = asks.len();
        let answers = self
            .store
            .grant(self.node, asks)
            .await
            .expect("grant answers");
        assert_eq!(answers.len(), asked, "one answer an ask, in order");
        answers
    }

    /// Asks for one job. `Locked` says nothing, so it is asked again.
    pub async fn ask(&self, job: JobId, to: Attached) -> Granted {
        let end = Instant::now() + secs(10);
        loop {
            let answer = self.grant(vec![Ask { job, to }]).await.remove(0);
            if answer != Granted::Locked {
                return answer;
            }
            assert!(Instant::now() < end, "{job} stays locked");
            tokio::task::yield_now().await;
        }
    }

    /// Hands one job out; it must be QUEUED.
    pub async fn lease(&self, job: JobId, to: Attached) -> Lease {
        let answer = self.ask(job, to).await;
        let lease = leased(&answer).lease;
        assert_eq!(lease.job, job);
        lease
    }

    /// A new job, and the session that runs it.
    pub async fn running(&self) -> (Lease, Attached) {
        let (job, session) = (self.queued().await, self.open().await);
        (self.lease(job, session).await, session)
    }

    pub async fn renew(&self, session: Attached) -> bool {
        let alive = self
            .store
            .renew(vec![session])
            .await
            .expect("renew answers");
        assert_eq!(alive.len(), 1);
        alive[0] == SessionState::Alive
    }

    pub async fn finish_all(&self, endings: Vec<Ending>) -> FinishAnswer {
        let asked = endings.len();
        let answer = self.store.finish(endings).await.expect("finish answers");
        assert_eq!(
            answer.verdicts.len(),
            asked,
            "one verdict an ending, in order"
        );
        answer
    }

    pub async fn finish(&self, lease: Lease, by: Attached, outcome: Outcome) -> Verdict {
        let answer = self.finish_all(vec![ending(lease, by, outcome)]).await;
        answer.verdicts[0].clone()
    }

    /// Ends a session and takes back what it had, as if its worker had died long ago.
    pub async fn lose(&self, session: Attached) -> Vec<Segment> {
        self.store
            .close_sessions(vec![session])
            .await
            .expect("close answers");
        self.expire().await.segments
    }

    /// Runs the job to its success.
    pub async fn succeed(&self, job: JobId) {
        let session = self.open().await;
        let lease = self.lease(job, session).await;
        let verdict = self.finish(lease, session, success()).await;
        assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
    }

    /// Runs the job to its final failure.
    pub async fn fail(&self, job: JobId) {
        let session = self.open().await;
        let lease = self.lease(job, session).await;
        let verdict = self.finish(lease, session, permanent_failure()).await;
        assert_eq!(verdict, Verdict::Recorded(JobState::Failed));
    }
}

/// An ending whose backoff gets no jitter.
pub fn ending(lease: Lease, by: Attached, outcome: Outcome) -> Ending {
    Ending {
        lease,
        session: by.session,
        outcome,
        chance: 0.0,
    }
}

/// Looking and steering.
impl World {
    pub async fn find(&self, id: JobId) -> Option<Job> {
        let mut found = self
            .store
            .get(vec![id], View::Full)
            .await
            .expect("get answers");
        assert_eq!(found.len(), 1, "one answer an id");
        found.remove(0)
    }

    pub async fn look(&self, id: JobId) -> Job {
        self.find(id)
            .await
            .unwrap_or_else(|| panic!("job {id} is gone"))
    }

    /// A basic view of a job that is there.
    pub async fn basic(&self, id: JobId) -> Job {
        let found = self.store.get(vec![id], View::Basic).await;
        let found = found.expect("get answers").remove(0);
        found.unwrap_or_else(|| panic!("job {id} is gone"))
    }

    pub async fn state(&self, id: JobId) -> JobState {
        self.look(id).await.state
    }

    pub async fn assert_state(&self, id: JobId, state: JobState) {
        assert_eq!(self.state(id).await, state, "state of {id}");
    }

    pub async fn cancel(&self, id: JobId) -> Cancelled {
        self.store
            .cancel(id, "not wanted".into())
            .await
            .expect("cancel answers")
    }

    pub async fn retry(&self, id: JobId, delay: Duration) -> Retried {
        self.store
            .retry(id, delay, "again".into())
            .await
            .expect("retry answers")
    }

    /// Everything that the filter lets through, page by page, in the order of the pages.
    pub async fn walk(&self, filter: JobFilter, size: usize) -> Vec<Job> {
        let mut all: Vec<Job> = Vec::new();
        let mut before = None;
        for _ in 0..100_000 {
            let page = self
                .store
                .list(filter.clone(), before, size, View::Basic)
                .await
                .expect("list answers");
            assert!(page.jobs.len() <= size, "a page is no larger than asked");
            all.extend(page.jobs);
            match page.next {
                None => return all,
                Some(next) => {
                    assert!(
                        before.is_none_or(|b| next < b),
                        "each page begins below the last one"
                    );
                    before = Some(next);
                }
            }
        }
        panic!("the list does not end");
    }
}

/// The loops, each run until it has nothing left to do.
impl World {
    pub async fn promote(&self) -> Swept {
        let mut all = Swept::default();
        for _ in 0..10_000 {
            let step = self.store.promote(100).await.expect("promote answers");
            all.changed += step.changed;
            all.segments.extend(step.segments);
            if !step.more {
                return all;
            }
        }
        panic!("promote never ends");
    }

    pub async fn expire(&self) -> Expired {
        let mut all = Expired::default();
        for _ in 0..10_000 {
            let step = self.store.expire(100).await.expect("expire answers");
            all.sessions += step.sessions;
            all.jobs += step.jobs;
            all.failed += step.failed;
            all.segments.extend(step.segments);
            if !step.more {
                return all;
            }
        }
        panic!("expire never ends");
    }

    pub async fn retain(&self) -> u64 {
        let mut changed = 0;
        for _ in 0..10_000 {
            let step = self.store.retain(100).await.expect("retain answers");
            changed += step.changed;
            if !step.more {
                return changed;
            }
        }
        panic!("retain never ends");
    }

    pub async fn tidy(&self) -> u64 {
        let mut changed = 0;
        for _ in 0..10_000 {
            let step = self.store.tidy(100).await.expect("tidy answers");
            changed += step.changed;
            if !step.more {
                return changed;
            }
        }
        panic!("tidy never ends");
    }

    pub async fn touch(&self) {
        self.store.touch_pulse().await.expect("the pulse answers");
    }

    /// Lets `span` pass as it does when all is well: the pulse is touched each second, and `alive` are renewed.
    pub async fn live_through(&self, span: Duration, alive: &[Attached]) {
        self.touch().await;
        for second in 0..span.as_secs() {
            self.advance(secs(1)).await;
            self.touch().await;
            if second % 3 == 0 && !alive.is_empty() {
                let renewed = self
                    .store
                    .renew(alive.to_vec())
                    .await
                    .expect("renew answers");
                assert_eq!(
                    renewed,
                    vec![SessionState::Alive; alive.len()],
                    "they were renewed in time"
                );
            }
        }
    }

    /// Lives on until no time of grace can be left, whatever happened before.
    pub async fn outlive_grace(&self, alive: &[Attached]) {
        self.live_through(secs(40), alive).await;
    }

    /// The jobs that a new ready-list would be offered: what reconcile finds. Each is found once.
    pub async fn waiting(&self) -> BTreeSet<JobId> {
        let mut found = BTreeSet::new();
        for segment in self.unoffered_all(fresh_epoch()).await {
            for job in segment.jobs {
                assert!(found.insert(job), "{job} is in two segments");
            }
        }
        found
    }

    /// All segments that are not offered under `epoch`, whoever took them before. They are claimed for an hour then.
    pub async fn unoffered_all(&self, epoch: Epoch) -> Vec<Segment> {
        self.advance(LONG).await;
        let mut all: Vec<Segment> = Vec::new();
        for _ in 0..10_000 {
            let some = self.unoffered(epoch, ANY_AGE, FOR_LONG, 50).await;
            if some.is_empty() {
                return all;
            }
            all.extend(some);
        }
        panic!("segments that were taken come again at once");
    }

    pub async fn unoffered(
        &self,
        epoch: Epoch,
        age: Duration,
        claim: Duration,
        limit: usize,
    ) -> Vec<Segment> {
        self.store
            .unoffered(epoch, age, claim, limit)
            .await
            .expect("unoffered answers")
    }

    pub async fn claim(&self, lines: &[Line], claim: Duration, limit: usize) -> Vec<Segment> {
        self.store
            .claim(lines.to_vec(), claim, limit)
            .await
            .expect("claim answers")
    }
}
