//! What must hold after any history, whatever the case did. Run at the end of each.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::job::{Job, JobState, QueueName};
use leasehold::store::JobFilter;

use crate::world::World;

/// The backlog names every QUEUED job, the counters say what is there, and tidying changes neither.
pub async fn audit(world: World) {
    let jobs = world.walk(JobFilter::default(), 500).await;
    check(&world, &jobs).await;
    world.tidy().await;
    check(&world, &jobs).await;
    world.tidy().await;
    let again = world.tidy().await;
    assert_eq!(again, 0, "tidy comes to an end when nothing happens");
    check(&world, &jobs).await;
}

async fn check(world: &World, jobs: &[Job]) {
    for job in jobs {
        a_job_makes_sense(job);
    }
    let queued: BTreeSet<_> = jobs
        .iter()
        .filter(|j| j.state == JobState::Queued)
        .map(|j| j.id)
        .collect();
    assert_eq!(
        world.waiting().await,
        queued,
        "reconcile finds the QUEUED jobs, and only those"
    );
    assert_eq!(
        counted(world).await,
        real_counts(jobs),
        "the counters against the rows"
    );
}

fn a_job_makes_sense(job: &Job) {
    let is = |state| job.state == state;
    assert!(job.revision >= 1, "{job:?}");
    assert_eq!(job.finish_time.is_some(), job.state.is_final(), "{job:?}");
    assert_eq!(job.purge_time.is_some(), job.state.is_final(), "{job:?}");
    assert!(
        job.start_time.is_some() || !is(JobState::Running),
        "{job:?}"
    );
    assert!(
        job.attempt > 0 || !(is(JobState::Running) || is(JobState::Succeeded)),
        "{job:?}"
    );
    assert!(
        u64::from(job.failures) + u64::from(job.lost_leases) <= u64::from(job.attempt),
        "{job:?}"
    );
}

type Counts = BTreeMap<QueueName, [u64; 6]>;

fn real_counts(jobs: &[Job]) -> Counts {
    let mut counts = Counts::new();
    for job in jobs {
        let at = JobState::ALL
            .iter()
            .position(|s| *s == job.state)
            .expect("all states are listed");
        counts.entry(job.spec.queue.clone()).or_default()[at] += 1;
    }
    counts
}

async fn counted(world: &World) -> Counts {
    let stats = world.store.stats(1_000).await.expect("stats answers");
    let named = stats.len();
    let counts: Counts = stats.into_iter().map(|s| (s.queue, s.counts)).collect();
    assert_eq!(counts.len(), named, "a queue has its numbers once");
    // A queue whose jobs are all gone may still be named.
    counts
        .into_iter()
        .filter(|(_, c)| c.iter().any(|n| *n > 0))
        .collect()
}
