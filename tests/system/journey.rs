//! A job's way from the one who enqueued it to its recorded result, over the embedded server and over two nodes.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use worker_sdk::{Client, Job, JobState, ListJobsRequest, NewJob, Priority, UniqueConflict};

use crate::stack::{Dev, Stack, client};
use crate::support::until;
use crate::workers::{Local, runs};

const SOON: Duration = Duration::from_secs(60);

/// Where a journey goes: enqueue here, work there.
struct World {
    enqueue: Client,
    ask: Client,
    worker_url: String,
    log: PathBuf,
    _folder: TempDir,
    _keep: Keep,
}

#[allow(dead_code, reason = "kept alive for the length of the test")]
enum Keep {
    Dev(Dev),
    Stack(Box<Stack>),
}

impl World {
    async fn embedded() -> Self {
        let dev = Dev::start().await;
        let url = dev.node.url();
        Self::of(client(&url), client(&url), url, Keep::Dev(dev))
    }

    async fn two_nodes() -> Self {
        let stack = Stack::start(2).await;
        let (enqueue, ask, url) = (stack.client(0), stack.client(1), stack.nodes[1].url());
        Self::of(enqueue, ask, url, Keep::Stack(Box::new(stack)))
    }

    fn of(enqueue: Client, ask: Client, worker_url: String, keep: Keep) -> Self {
        let folder = TempDir::new().unwrap();
        let log = folder.path().join("runs");
        Self {
            enqueue,
            ask,
            worker_url,
            log,
            _folder: folder,
            _keep: keep,
        }
    }

    fn worker(&self) -> Local {
        Local::start(&self.worker_url, &self.log, 10)
    }

    async fn add(&self, job: NewJob) -> String {
        self.enqueue.enqueue(job.queue("q")).await.unwrap().job.id
    }

    async fn ended(&self, id: &str) -> Job {
        self.ask.wait(id, SOON).await.unwrap()
    }
}

macro_rules! journeys {
    ($($name:ident),* $(,)?) => {
        mod embedded { $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::World::embedded().await).await; }
        )* }
        mod two_nodes { $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::World::two_nodes().await).await; }
        )* }
    };
}

journeys!(
    a_job_is_run_and_its_result_recorded,
    the_same_id_and_request_are_one_job,
    the_same_idempotency_key_is_one_job,
    a_unique_key_has_one_job_at_a_time,
    a_failing_job_is_retried_and_ends_in_the_dead_letter,
    a_handler_says_how_it_ends,
    a_panic_is_a_failure_and_not_the_end_of_the_worker,
    a_scheduled_job_waits_for_its_time,
    a_job_that_has_expired_never_runs,
    a_hand_calls_a_job_forward_and_deletes_it,
    a_cancelled_job_never_runs_and_a_running_one_is_told,
    an_attempt_past_its_timeout_has_failed,
    a_job_of_an_unknown_kind_is_released,
    a_worker_that_leaves_in_order_loses_nothing,
);

async fn a_job_is_run_and_its_result_recorded(world: World) {
    let worker = world.worker();
    let input = serde_json::json!({"name": "Ada", "n": [1, 2, 3]});
    let job = NewJob::new("echo", &input)
        .unwrap()
        .label("team", "a")
        .header("traceparent", "00-1");
    let id = world.add(job).await;
    let job = world.ended(&id).await;
    assert_eq!(job.state(), JobState::Succeeded);
    assert_eq!(job.output_as::<serde_json::Value>().unwrap(), input);
    assert_eq!((job.attempt, job.failures, job.lost_leases), (1, 0, 0));
    let spec = job.spec.as_ref().unwrap();
    assert_eq!(spec.labels["team"], "a");
    assert_eq!(spec.headers["traceparent"], "00-1");
    assert!(job.finish_time.is_some() && job.purge_time.is_some() && !job.worker.is_empty());
    worker.stop().await;
}

async fn the_same_id_and_request_are_one_job(world: World) {
    let id = uuid::Uuid::now_v7().to_string();
    let job = || NewJob::new("echo", &1).unwrap().queue("q").id(&id);
    let calls = (0..16).map(|n| {
        let client = if n % 2 == 0 {
            world.enqueue.clone()
        } else {
            world.ask.clone()
        };
        let job = job();
        tokio::spawn(async move { client.enqueue(job).await.unwrap() })
    });
    let mut new = 0;
    for call in calls.collect::<Vec<_>>() {
        let accepted = call.await.unwrap();
        assert_eq!(accepted.job.id, id);
        new += usize::from(!accepted.existed);
    }
    assert_eq!(new, 1, "only one call made the job");
    let other = NewJob::new("echo", &2).unwrap().queue("q").id(&id);
    let refused = world.ask.enqueue(other).await.unwrap_err();
    assert_eq!(refused.reason(), Some("ID_CONFLICT"));
}

async fn the_same_idempotency_key_is_one_job(world: World) {
    let worker = world.worker();
    // Each has an id of its own, and so has each call over HTTP.
    let job = |n: i32| {
        NewJob::new("echo", &n)
            .unwrap()
            .queue("q")
            .idempotency_key("order 7")
    };
    let calls = (0..64).map(|n| {
        let client = match n % 2 {
            0 => world.enqueue.clone(),
            _ => world.ask.clone(),
        };
        tokio::spawn(async move { client.enqueue(job(1)).await.unwrap() })
    });
    let (mut ids, mut new) = (HashSet::new(), 0);
    for call in calls.collect::<Vec<_>>() {
        let accepted = call.await.unwrap();
        assert_eq!(accepted.job.idempotency_key, "order 7");
        ids.insert(accepted.job.id);
        new += usize::from(!accepted.existed);
    }
    assert_eq!((ids.len(), new), (1, 1), "{ids:?}");
    let id = ids.into_iter().next().unwrap();
    assert_eq!(world.ended(&id).await.state(), JobState::Succeeded);
    // Also of a job that is over.
    assert_eq!(world.ask.enqueue(job(1)).await.unwrap().job.id, id);

    let refused = world.ask.enqueue(job(2)).await.unwrap_err();
    assert_eq!(refused.reason(), Some("KEY_CONFLICT"));
    assert!(refused.to_string().contains(&id), "{refused}");
    let batch = [NewJob::new("echo", &3).unwrap().queue("q"), job(2)];
    let refused = world.enqueue.enqueue_batch(batch).await.unwrap_err();
    assert_eq!(refused.reason(), Some("KEY_CONFLICT"));
    assert_eq!(runs(&world.log).len(), 1, "what was refused never ran");
    worker.stop().await;
}

async fn a_unique_key_has_one_job_at_a_time(world: World) {
    let job = |n: i32| {
        let job = NewJob::new("echo", &n).unwrap().queue("q");
        job.unique_key("account 7").delay(Duration::from_secs(3600))
    };
    // Of many calls only the last one counts.
    let first = world.enqueue.enqueue(job(1)).await.unwrap();
    let last = job(2).unique_conflict(UniqueConflict::Replace);
    let last = world.ask.enqueue(last).await.unwrap();
    assert!(!last.existed);
    let old = world.ended(&first.job.id).await;
    assert_eq!(
        (old.state(), &old.replaced_by),
        (JobState::Cancelled, &last.job.id)
    );
    let kept = world.enqueue.enqueue(job(3)).await.unwrap();
    assert_eq!((kept.existed, &kept.job.id), (true, &last.job.id));
    assert_eq!(kept.job.spec.unwrap().unique_key, "account 7");

    let refused = job(4).unique_conflict(UniqueConflict::Refuse);
    let refused = world.enqueue.enqueue(refused).await.unwrap_err();
    assert_eq!(refused.reason(), Some("UNIQUE_CONFLICT"));
    assert!(refused.to_string().contains(&last.job.id), "{refused}");
    let held = world.ask.retry(&first.job.id, None).await.unwrap_err();
    assert_eq!(held.reason(), Some("UNIQUE_KEY_HELD"));
    assert!(held.to_string().contains(&last.job.id), "{held}");

    world.ask.cancel(&last.job.id, "").await.unwrap();
    let worker = world.worker();
    let now = job(5).delay(Duration::ZERO);
    let now = world.enqueue.enqueue(now).await.unwrap();
    assert_eq!(world.ended(&now.job.id).await.state(), JobState::Succeeded);
    world.ask.retry(&first.job.id, None).await.unwrap();
    let old = world.ended(&first.job.id).await;
    assert_eq!(
        (old.state(), old.replaced_by),
        (JobState::Succeeded, String::new())
    );
    worker.stop().await;
}

async fn a_failing_job_is_retried_and_ends_in_the_dead_letter(world: World) {
    let worker = world.worker();
    let short =
        |job: NewJob| job.backoff(Duration::from_millis(20), 2.0, Duration::from_millis(100));
    let saved = world.add(short(NewJob::new("flaky", &3).unwrap())).await;
    let lost = world
        .add(short(NewJob::new("flaky", &9).unwrap()).max_attempts(3))
        .await;
    let saved = world.ended(&saved).await;
    assert_eq!(
        (saved.state(), saved.attempt, saved.failures),
        (JobState::Succeeded, 3, 2)
    );
    assert_eq!(saved.attempts.len(), 2);
    let job = world.ended(&lost).await;
    assert_eq!(
        (job.state(), job.attempt, job.failures),
        (JobState::Failed, 3, 3)
    );
    assert!(
        job.last_failure
            .as_ref()
            .unwrap()
            .message
            .contains("not yet")
    );
    assert_eq!(dead_letter(&world.ask).await, [lost.clone()]);

    let job = world.enqueue.retry(&lost, None).await.unwrap();
    assert_eq!((job.failures, job.attempt), (0, 3));
    let job = world.ended(&lost).await;
    assert_eq!((job.state(), job.attempt), (JobState::Failed, 6));
    worker.stop().await;
}

async fn dead_letter(client: &Client) -> Vec<String> {
    let filter = worker_sdk::JobFilter {
        states: vec![JobState::Failed.into()],
        ..Default::default()
    };
    let request = ListJobsRequest {
        filter: Some(filter),
        ..Default::default()
    };
    client
        .list(request)
        .await
        .unwrap()
        .jobs
        .into_iter()
        .map(|job| job.id)
        .collect()
}

async fn a_handler_says_how_it_ends(world: World) {
    let worker = world.worker();
    let doomed = |how: &str| NewJob::new("doomed", how).unwrap();
    let permanent = world.add(doomed("permanent")).await;
    let later = world.add(doomed("later").max_attempts(2)).await;
    let snoozed = world.add(doomed("snooze")).await;
    let job = world.ended(&permanent).await;
    assert_eq!((job.state(), job.attempt), (JobState::Failed, 1));
    assert!(job.last_failure.unwrap().permanent);
    let job = world.ended(&later).await;
    assert_eq!((job.state(), job.attempt), (JobState::Failed, 2));
    let job = world.ended(&snoozed).await;
    assert_eq!(
        (job.state(), job.attempt, job.failures, job.releases),
        (JobState::Succeeded, 2, 0, 1)
    );
    worker.stop().await;
}

async fn a_panic_is_a_failure_and_not_the_end_of_the_worker(world: World) {
    let worker = world.worker();
    let job = NewJob::new("panics", &()).unwrap();
    let id = world
        .add(job.backoff(Duration::from_millis(20), 1.0, Duration::from_millis(20)))
        .await;
    let job = world.ended(&id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Succeeded, 2));
    assert!(
        job.attempts[0]
            .failure
            .as_ref()
            .unwrap()
            .message
            .contains("the first attempt panics")
    );
    worker.stop().await;
}

async fn a_scheduled_job_waits_for_its_time(world: World) {
    let worker = world.worker();
    let id = world
        .add(
            NewJob::new("echo", &1)
                .unwrap()
                .delay(Duration::from_secs(2)),
        )
        .await;
    assert_eq!(
        world.ask.get(&id).await.unwrap().state(),
        JobState::Scheduled
    );
    let job = world.ended(&id).await;
    assert_eq!(job.state(), JobState::Succeeded);
    let (due, began) = (job.run_time.unwrap(), job.start_time.unwrap());
    assert!(
        (began.seconds, began.nanos) >= (due.seconds, due.nanos),
        "not before its time"
    );
    worker.stop().await;
}

async fn a_hand_calls_a_job_forward_and_deletes_it(world: World) {
    let worker = world.worker();
    let hour = Duration::from_secs(3600);
    let id = world
        .add(NewJob::new("echo", &1).unwrap().delay(hour))
        .await;
    let job = world.ask.set_priority(&id, Priority::High).await.unwrap();
    assert_eq!(job.spec.unwrap().priority(), Priority::High);
    let due = job.run_time.unwrap();
    let early = world.ask.delete(&id).await.unwrap_err();
    assert_eq!(early.reason(), Some("JOB_STATE"));
    let due = SystemTime::try_from(due).unwrap();
    let job = world.ask.reschedule_at(&id, due + hour).await.unwrap();
    assert_eq!(job.state(), JobState::Scheduled);
    world.ask.reschedule(&id, Duration::ZERO).await.unwrap();
    assert_eq!(world.ended(&id).await.state(), JobState::Succeeded);
    world.ask.delete(&id).await.unwrap();
    for gone in [
        world.enqueue.get(&id).await.map(drop),
        world.enqueue.delete(&id).await,
    ] {
        assert_eq!(gone.unwrap_err().reason(), Some("JOB_NOT_FOUND"));
    }
    worker.stop().await;
}

async fn a_job_that_has_expired_never_runs(world: World) {
    // Nobody works yet.
    let brief = NewJob::new("echo", &1).unwrap();
    let expired = world
        .add(brief.expires_in(Duration::from_millis(300)))
        .await;
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let timely = NewJob::new("echo", &2).unwrap().expires_at(later);
    let timely = world.add(timely).await;
    let job = world.ended(&expired).await;
    assert_eq!((job.state(), job.attempt), (JobState::Failed, 0));
    assert_eq!(job.last_failure.unwrap().r#type, "EXPIRED");

    let worker = world.worker();
    assert_eq!(world.ended(&timely).await.state(), JobState::Succeeded);
    assert_eq!(runs(&world.log).len(), 1, "the other one never ran");
    // By hand it does.
    world.ask.retry(&expired, None).await.unwrap();
    assert_eq!(world.ended(&expired).await.state(), JobState::Succeeded);
    worker.stop().await;
}

async fn a_cancelled_job_never_runs_and_a_running_one_is_told(world: World) {
    let waiting = world.add(NewJob::new("echo", &1).unwrap()).await;
    assert_eq!(
        world
            .ask
            .cancel(&waiting, "not needed")
            .await
            .unwrap()
            .state(),
        JobState::Cancelled
    );
    assert_eq!(
        world.ask.cancel(&waiting, "again").await.unwrap().state(),
        JobState::Cancelled
    );

    let worker = world.worker();
    let running = world
        .add(NewJob::new("until-cancelled", &()).unwrap())
        .await;
    until(SOON, "the job runs", async || {
        (world.ask.get(&running).await.unwrap().state() == JobState::Running).then_some(())
    })
    .await;
    let job = world.enqueue.cancel(&running, "enough").await.unwrap();
    assert_eq!(job.state(), JobState::Cancelled);
    // Its handler ends only when it is told; then the slot is free and the worker can leave at once.
    worker.stop().await;
    let job = world.ask.get(&running).await.unwrap();
    assert_eq!(
        job.state(),
        JobState::Cancelled,
        "a late result changes nothing"
    );
    assert!(job.output.is_none());
    assert!(
        !runs(&world.log).contains_key(&waiting),
        "a cancelled job never runs"
    );
}

async fn an_attempt_past_its_timeout_has_failed(world: World) {
    let worker = world.worker();
    let job = NewJob::new("until-cancelled", &()).unwrap();
    let id = world
        .add(job.timeout(Duration::from_millis(300)).max_attempts(1))
        .await;
    let job = world.ended(&id).await;
    assert_eq!((job.state(), job.failures), (JobState::Failed, 1));
    assert_eq!(
        job.attempts[0].outcome(),
        worker_sdk::proto::AttemptOutcome::TimedOut
    );
    worker.stop().await;
}

async fn a_job_of_an_unknown_kind_is_released(world: World) {
    let worker = world.worker();
    let id = world.add(NewJob::new("nobody-knows-it", &1).unwrap()).await;
    let job = until(SOON, "the job is released", async || {
        let job = world.ask.get(&id).await.unwrap();
        (job.releases > 0).then_some(job)
    })
    .await;
    assert_eq!(job.failures, 0);
    assert_eq!(
        job.attempts[0].failure.as_ref().unwrap().message,
        "UNKNOWN_KIND"
    );
    worker.stop().await;
}

async fn a_worker_that_leaves_in_order_loses_nothing(world: World) {
    let jobs: Vec<_> = (0..100)
        .map(|_| NewJob::new("sleep", &20).unwrap().queue("q"))
        .collect();
    let ids: Vec<_> = world
        .enqueue
        .enqueue_batch(jobs)
        .await
        .unwrap()
        .into_iter()
        .map(|e| e.job.id)
        .collect();
    let worker = world.worker();
    until(SOON, "some jobs ran", async || {
        (runs(&world.log).len() > 20).then_some(())
    })
    .await;
    worker.stop().await;
    let worker = world.worker();
    for id in &ids {
        let job = world.ended(id).await;
        assert_eq!(job.state(), JobState::Succeeded);
        assert_eq!(
            job.lost_leases, 0,
            "a worker that leaves in order gives back what it has"
        );
    }
    worker.stop().await;
    let runs = runs(&world.log);
    assert_eq!(runs.keys().collect::<HashSet<_>>().len(), ids.len());
    assert!(runs.values().all(|times| *times == 1), "nothing ran twice");
}
