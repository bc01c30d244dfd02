//! Batches of jobs and endings that have little in common: each keeps what is its own, and none pays for another.

use leasehold::job::draft::RawStart;
use leasehold::job::{JobState, NewJob, Outcome, Payload, Priority, StaleReason, Verdict};
use leasehold::store::{Ask, Unit};

use crate::steps::{created, ending, existed, failure, leased, minutes, raw, success};
use crate::store_enqueue::odd_payloads;
use crate::world::World;

/// One job for each odd body, no two of them alike.
fn unlike(world: &World) -> Vec<NewJob> {
    let job = |(place, body): (usize, Payload)| {
        world.job_with(|d| {
            d.kind = format!("kind-{}", place % 3);
            d.priority = Some(Ok([Priority::Low, Priority::High][place % 2]));
            d.timeout = Some(raw(minutes(1 + place as u64 % 4)));
            d.max_attempts = 1 + u32::try_from(place).expect("it is small");
            d.labels = [("place".into(), place.to_string())].into();
            d.headers = [("half".into(), (place / 2).to_string())].into();
            d.payload = Some(body);
        })
    };
    odd_payloads().into_iter().enumerate().map(job).collect()
}

on_each_store!(unlike_jobs_of_a_batch_keep_what_is_their_own);
async fn unlike_jobs_of_a_batch_keep_what_is_their_own(world: World) {
    let mut jobs = unlike(&world);
    let later = world.job_with(|d| d.start = RawStart::Delay(raw(minutes(5))));
    jobs.insert(3, later.clone());
    let answer = world.enqueue(jobs.clone(), Unit::Each).await;
    for (new, answer) in jobs.iter().zip(&answer.jobs) {
        let job = created(answer);
        assert_eq!((job.id, &job.spec), (new.id, &new.spec));
    }
    let later = jobs.remove(
        jobs.iter()
            .position(|job| job.id == later.id)
            .expect("it is there"),
    );
    world.assert_state(later.id, JobState::Scheduled).await;

    // Two sessions, so that not all leases of the batch are one's own.
    let sessions = [world.open().await, world.open().await];
    let ask = |(place, job): (usize, &NewJob)| Ask {
        job: job.id,
        to: sessions[place % 2],
    };
    let granted = world
        .grant(jobs.iter().enumerate().map(ask).collect())
        .await;
    let mut endings = Vec::new();
    for (place, (new, answer)) in jobs.iter().zip(&granted).enumerate() {
        let job = leased(answer);
        assert_eq!((job.lease.job, job.lease.attempt), (new.id, 1));
        assert!(job.payload == new.payload, "the body of {place}");
        assert_eq!(
            (&job.kind, &job.headers),
            (&new.spec.kind, &new.spec.headers)
        );
        assert_eq!(
            (job.priority, job.time_left),
            (new.spec.priority, new.spec.timeout)
        );
        assert_eq!(job.max_attempts, new.spec.retry.max_attempts);
        let other = &jobs[(place + 1) % jobs.len()].payload;
        let outcome = Outcome::Success((place != 2).then(|| other.clone()));
        endings.push(ending(job.lease, sessions[place % 2], outcome));
    }
    let verdicts = world.finish_all(endings).await.verdicts;
    let recorded = Verdict::Recorded(JobState::Succeeded);
    assert_eq!(verdicts, vec![recorded; jobs.len()]);
    for (place, new) in jobs.iter().enumerate() {
        let job = world.look(new.id).await;
        let other = &jobs[(place + 1) % jobs.len()].payload;
        let output = (place != 2).then_some(other);
        assert!(job.output.as_ref() == output, "the output of {place}");
        assert!(
            job.payload.as_ref() == Some(&new.payload),
            "the body of {place}"
        );
        assert_eq!(job.spec, new.spec);
    }
}

on_each_store!(endings_of_a_batch_are_judged_one_by_one);
async fn endings_of_a_batch_are_judged_one_by_one(world: World) {
    let session = world.open().await;
    let mut leases = Vec::new();
    for job in world.queued_many(5).await {
        leases.push(world.lease(job, session).await);
    }
    let copy = leases[1];
    world.finish(copy, session, success()).await;
    let (late, before) = world.running().await;
    world.lose(before).await;
    world.lease(late.job, world.open().await).await;

    let verdicts = world
        .finish_all(vec![
            ending(leases[0], session, success()),
            ending(copy, session, success()),
            ending(late, before, success()),
            ending(leases[2], session, failure()),
            ending(leases[3], session, success()),
            ending(leases[3], session, failure()),
            ending(leases[4], before, success()),
        ])
        .await
        .verdicts;
    let succeeded = Verdict::Recorded(JobState::Succeeded);
    let expected = [
        succeeded.clone(),
        succeeded.clone(),
        Verdict::Stale(StaleReason::Superseded, JobState::Running),
        Verdict::Recorded(JobState::Scheduled),
        succeeded,
        Verdict::Stale(StaleReason::Finished, JobState::Succeeded),
        Verdict::Stale(StaleReason::Superseded, JobState::Running),
    ];
    assert_eq!(verdicts, expected);
    for (lease, state) in [
        (leases[0], JobState::Succeeded),
        (copy, JobState::Succeeded),
        (late, JobState::Running),
        (leases[2], JobState::Scheduled),
        (leases[3], JobState::Succeeded),
        (leases[4], JobState::Running),
    ] {
        world.assert_state(lease.job, state).await;
    }
    assert_eq!(world.look(leases[0].job).await.revision, 3);
}

on_each_store!(an_id_that_exists_may_be_in_a_batch_twice);
async fn an_id_that_exists_may_be_in_a_batch_twice(world: World) {
    let old = world.job();
    world.accept(old.clone()).await;
    let new = world.job();
    let batch = vec![old.clone(), new.clone(), old, new];
    let answer = world.enqueue(batch, Unit::Each).await;
    existed(&answer.jobs[0]);
    created(&answer.jobs[1]);
    existed(&answer.jobs[2]);
    existed(&answer.jobs[3]);
}
