//! What time brings, each at its time and in bounded steps: due jobs, lost leases, the end of a retention; and tidying,
//! which forgets nothing that is needed.

use std::collections::BTreeSet;
use std::time::Duration;

use leasehold::job::draft::RawStart;
use leasehold::job::limits::{LOST_LEASES_MAX, ROW_AGE_MIN};
use leasehold::job::{AttemptOutcome, JobId, JobState, Priority};
use leasehold::store::{Ask, Attached, Enqueued, JobFilter, Unit};

use crate::steps::{
    LONG, TTL, assert_about, assert_recorded, ending, failure, jobs_of, leased, minutes, raw,
    raw_time, release, release_after, secs, success,
};
use crate::world::World;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

on_each_store!(a_job_comes_due_at_its_time_and_not_before);
async fn a_job_comes_due_at_its_time_and_not_before(world: World) {
    let delayed = world.scheduled(secs(60)).await;
    let at = world.now().after(secs(60));
    let timed = world
        .accept(world.job_with(|d| d.start = RawStart::At(raw_time(at))))
        .await;
    let due = world.look(delayed).await.run_time;
    world.advance(secs(55)).await;
    assert_eq!(world.promote().await.changed, 0);
    world.assert_state(delayed, JobState::Scheduled).await;

    world.advance(secs(6)).await;
    let promoted = world.promote().await;
    assert_eq!(promoted.changed, 2);
    let offered: BTreeSet<_> = jobs_of(&promoted.segments).into_iter().collect();
    assert_eq!(offered, [delayed, timed].into());
    let job = world.look(delayed).await;
    assert_eq!((job.state, job.revision), (JobState::Queued, 2));
    assert_eq!(job.run_time, due, "it was due when it was due");
    assert_eq!(world.promote().await.changed, 0, "once");
    world.lease(delayed, world.open().await).await;
}

on_each_store!(jobs_come_due_in_the_order_of_their_times_line_by_line);
async fn jobs_come_due_in_the_order_of_their_times_line_by_line(world: World) {
    let delayed = |seconds: u64, level| {
        world.job_with(|d| {
            d.start = RawStart::Delay(raw(secs(seconds)));
            d.priority = Some(Ok(level));
        })
    };
    let (low, high) = (Priority::Low, Priority::High);
    let third = world.accept(delayed(30, low)).await;
    let first = world.accept(delayed(10, low)).await;
    let second = world.accept(delayed(20, low)).await;
    let other = world.accept(delayed(15, high)).await;
    let later = world.accept(delayed(600, low)).await;
    world.advance(secs(60)).await;
    let mut promoted = world.promote().await;
    promoted.segments.sort_by_key(|s| s.line.priority);
    let lines: Vec<_> = promoted.segments.iter().map(|s| s.line.priority).collect();
    assert_eq!(lines, [low, high]);
    assert_eq!(promoted.segments[0].jobs, [first, second, third]);
    assert_eq!(promoted.segments[1].jobs, [other]);
    world.assert_state(later, JobState::Scheduled).await;
}

on_each_store!(due_jobs_come_in_bounded_steps_the_longest_due_first);
async fn due_jobs_come_in_bounded_steps_the_longest_due_first(world: World) {
    let mut jobs = Vec::new();
    for n in 0..25 {
        jobs.push(world.scheduled(secs(100 - n)).await);
    }
    jobs.reverse();
    world.advance(secs(200)).await;
    for (expected, more) in [
        (&jobs[..10], true),
        (&jobs[10..20], true),
        (&jobs[20..], false),
    ] {
        let step = world.store.promote(10).await.expect("promote answers");
        assert_eq!(jobs_of(&step.segments), expected);
        assert_eq!((step.changed, step.more), (expected.len() as u64, more));
    }
}

on_each_store!(a_due_job_is_promoted_once_by_many);
async fn a_due_job_is_promoted_once_by_many(world: World) {
    let new = (0..300)
        .map(|_| world.job_with(|d| d.start = RawStart::Delay(raw(secs(5)))))
        .collect();
    let jobs: BTreeSet<JobId> = world.accept_all(new).await.into_iter().collect();
    world.advance(secs(10)).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let world = world.clone();
        calls.spawn(async move { world.promote().await });
    }
    let mut offered = Vec::new();
    for swept in calls.join_all().await {
        offered.extend(jobs_of(&swept.segments));
    }
    assert_eq!(offered.len(), 300, "each once");
    assert_eq!(offered.into_iter().collect::<BTreeSet<_>>(), jobs);
}

on_each_store!(only_what_is_scheduled_now_comes_due);
async fn only_what_is_scheduled_now_comes_due(world: World) {
    let cancelled = world.scheduled(secs(10)).await;
    world.cancel(cancelled).await;
    let moved = world.scheduled(secs(10)).await;
    world.cancel(moved).await;
    world.retry(moved, secs(100)).await;
    let hurried = world.scheduled(secs(10)).await;
    world.cancel(hurried).await;
    world.retry(hurried, Duration::ZERO).await;
    world.succeed(hurried).await;
    world.advance(secs(50)).await;
    assert_eq!(world.promote().await.changed, 0);
    world.advance(secs(60)).await;
    assert_eq!(jobs_of(&world.promote().await.segments), [moved]);
    world.assert_state(cancelled, JobState::Cancelled).await;
}

on_each_store!(a_job_that_loses_too_many_leases_fails);
async fn a_job_that_loses_too_many_leases_fails(world: World) {
    let id = world.queued().await;
    for lost in 1..=LOST_LEASES_MAX {
        let session = world.open().await;
        world.lease(id, session).await;
        assert_eq!(jobs_of(&world.lose(session).await), [id]);
        let job = world.look(id).await;
        assert_eq!((job.state, job.lost_leases), (JobState::Queued, lost));
    }
    let session = world.open().await;
    world.lease(id, session).await;
    let closes = world.store.close_sessions(vec![session]).await;
    closes.expect("close answers");
    let expired = world.expire().await;
    assert_eq!((expired.jobs, expired.failed), (1, 1));
    assert_eq!(expired.segments, []);

    let job = world.look(id).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!((job.failures, job.lost_leases), (0, LOST_LEASES_MAX + 1));
    assert_about(job.finish_time.expect("final"), world.now(), "the end");
    let last = job.attempts.last().expect("it was lost");
    assert_eq!(last.outcome, AttemptOutcome::LeaseLost);
    let why = last.failure.as_ref().expect("the last loss says why");
    assert_eq!(why.kind, "LEASES_LOST");
    assert!(!why.message.is_empty());

    world.retry(id, Duration::ZERO).await;
    assert_eq!(world.look(id).await.lost_leases, 0, "a budget anew");
    let session = world.open().await;
    world.lease(id, session).await;
    world.lose(session).await;
    world.assert_state(id, JobState::Queued).await;
}

on_each_store!(lost_leases_are_taken_back_in_bounded_steps);
async fn lost_leases_are_taken_back_in_bounded_steps(world: World) {
    let jobs = world.queued_many(25).await;
    let sessions = [world.open().await, world.open().await, world.open().await];
    let asks = jobs.iter().zip(sessions.iter().cycle());
    let asks = asks.map(|(job, to)| Ask { job: *job, to: *to }).collect();
    world.grant(asks).await.iter().for_each(|a| _ = leased(a));
    let closes = world.store.close_sessions(sessions.to_vec()).await;
    closes.expect("close answers");
    let mut back = Vec::new();
    for _ in 0..100 {
        let step = world.store.expire(10).await.expect("expire answers");
        assert!(step.jobs <= 10, "a step is bounded");
        assert_eq!(jobs_of(&step.segments).len() as u64, step.jobs);
        back.extend(jobs_of(&step.segments));
        if !step.more {
            break;
        }
    }
    assert_eq!(back.len(), 25, "each once, and no step forgets the rest");
    let back: BTreeSet<_> = back.into_iter().collect();
    assert_eq!(back, jobs.into_iter().collect());
}

on_each_store!(a_lost_lease_is_taken_back_once_by_many);
async fn a_lost_lease_is_taken_back_once_by_many(world: World) {
    let jobs = world.queued_many(200).await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(world.open().await);
    }
    let asks = jobs.iter().zip(sessions.iter().cycle());
    let asks = asks.map(|(job, to)| Ask { job: *job, to: *to }).collect();
    world.grant(asks).await.iter().for_each(|a| _ = leased(a));
    let closes = world.store.close_sessions(sessions).await;
    closes.expect("close answers");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let world = world.clone();
        calls.spawn(async move { world.expire().await });
    }
    let expired = calls.join_all().await;
    let rest = world.expire().await;
    let mut back = jobs_of(&rest.segments);
    let mut counted = rest.jobs;
    for one in expired {
        counted += one.jobs;
        back.extend(jobs_of(&one.segments));
    }
    assert_eq!((counted, back.len()), (200, 200));
    for job in jobs.into_iter().step_by(17) {
        let job = world.look(job).await;
        assert_eq!((job.lost_leases, job.revision), (1, 3));
    }
}

/// Nobody touched the pulse for `span`, and nobody was renewed.
async fn outage(world: &World, span: Duration) {
    world.advance(span).await;
}

on_each_store!(after_an_outage_sessions_have_time_to_come_back);
async fn after_an_outage_sessions_have_time_to_come_back(world: World) {
    world.outlive_grace(&[]).await;
    let (kept, back) = world.running().await;
    let (lost, gone) = world.running().await;
    outage(&world, minutes(5)).await;
    world.touch().await;
    assert_eq!(world.expire().await.sessions, 0, "a time of grace");
    world.live_through(secs(20), &[]).await;
    assert_eq!(world.expire().await.sessions, 0, "still");
    assert!(world.renew(back).await, "it comes back in time");
    world.live_through(secs(14), &[back]).await;

    let expired = world.expire().await;
    assert_eq!((expired.sessions, expired.jobs), (1, 1));
    assert_eq!(jobs_of(&expired.segments), [lost.job]);
    assert!(!world.renew(gone).await);
    assert!(world.renew(back).await);
    world.assert_state(kept.job, JobState::Running).await;
}

on_each_store!(a_sweep_before_the_first_touch_after_an_outage_takes_nothing);
async fn a_sweep_before_the_first_touch_after_an_outage_takes_nothing(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, session) = world.running().await;
    outage(&world, minutes(5)).await;
    assert_eq!(
        world.expire().await.sessions,
        0,
        "it may be the first to wake"
    );
    assert!(world.renew(session).await);
    world.assert_state(lease.job, JobState::Running).await;
}

on_each_store!(a_lease_lost_to_an_outage_does_not_count);
async fn a_lease_lost_to_an_outage_does_not_count(world: World) {
    world.outlive_grace(&[]).await;
    let id = world.queued().await;
    for _ in 0..=LOST_LEASES_MAX {
        world.lease(id, world.open().await).await;
        outage(&world, minutes(5)).await;
        world.touch().await;
        world.live_through(secs(34), &[]).await;
        assert_eq!(world.expire().await.jobs, 1);
    }
    let job = world.look(id).await;
    assert_eq!((job.state, job.lost_leases), (JobState::Queued, 0));
    let lost = job.attempts.iter();
    let lost = lost.filter(|a| a.outcome == AttemptOutcome::LeaseLost);
    assert_eq!(lost.count() as u32, LOST_LEASES_MAX + 1, "history tells it");

    let session = world.open().await;
    world.lease(id, session).await;
    world.live_through(TTL + secs(2), &[]).await;
    assert_eq!(world.expire().await.jobs, 1);
    assert_eq!(world.look(id).await.lost_leases, 1, "this one does");
}

on_each_store!(a_pulse_that_stumbles_is_no_outage);
async fn a_pulse_that_stumbles_is_no_outage(world: World) {
    world.outlive_grace(&[]).await;
    let (lease, _) = world.running().await;
    for _ in 0..8 {
        world.advance(secs(4)).await;
        world.touch().await;
    }
    assert_eq!(jobs_of(&world.expire().await.segments), [lease.job]);
    assert_eq!(world.look(lease.job).await.lost_leases, 1);
}

/// A job whose retention is `kept`, brought to each final state.
async fn one_of_each_end(world: &World, kept: Duration) -> [JobId; 3] {
    let new = || world.job_with(|d| d.retention = Some(raw(kept)));
    let succeeded = world.accept(new()).await;
    world.succeed(succeeded).await;
    let failed = world.accept(new()).await;
    world.fail(failed).await;
    let cancelled = world.accept(new()).await;
    world.cancel(cancelled).await;
    [succeeded, failed, cancelled]
}

on_each_store!(a_final_job_is_kept_for_its_retention_and_then_gone);
async fn a_final_job_is_kept_for_its_retention_and_then_gone(world: World) {
    world.advance(HOUR).await;
    let jobs = one_of_each_end(&world, HOUR * 5).await;
    let bystander = world.queued().await;
    world.advance(HOUR * 5 - minutes(1)).await;
    assert_eq!(world.retain().await, 0);
    for job in jobs {
        assert!(world.find(job).await.is_some());
    }
    world.advance(minutes(2)).await;
    assert_eq!(world.retain().await, 3);
    for job in jobs {
        assert_eq!(world.find(job).await, None);
    }
    let left = world.walk(JobFilter::default(), 10).await;
    let left: Vec<_> = left.iter().map(|j| j.id).collect();
    assert_eq!(left, [bystander]);
    assert_eq!(world.retain().await, 0);
}

on_each_store!(a_row_outlives_the_hour_in_which_its_id_is_accepted);
async fn a_row_outlives_the_hour_in_which_its_id_is_accepted(world: World) {
    let new = world.job_with(|d| d.retention = Some(raw(Duration::ZERO)));
    let id = world.accept(new.clone()).await;
    world.succeed(id).await;
    let others = one_of_each_end(&world, minutes(1)).await;
    world.advance(ROW_AGE_MIN - minutes(1)).await;
    assert_eq!(world.retain().await, 0);
    let answer = world.enqueue(vec![new.clone()], Unit::Each).await;
    assert!(matches!(answer.jobs[0], Enqueued::Existed(_)));

    world.advance(minutes(2)).await;
    assert_eq!(world.retain().await, 1 + others.len() as u64);
    let answer = world.enqueue(vec![new], Unit::Each).await;
    assert_eq!(answer.jobs, [Enqueued::IdOutOfTime], "never twice");
}

on_each_store!(a_short_retention_after_a_long_life_is_short);
async fn a_short_retention_after_a_long_life_is_short(world: World) {
    let new = world.job_with(|d| d.retention = Some(raw(minutes(1))));
    let id = world.accept(new).await;
    world.advance(HOUR * 3).await;
    world.succeed(id).await;
    assert_eq!(world.retain().await, 0);
    world.advance(minutes(2)).await;
    assert_eq!(world.retain().await, 1);
}

on_each_store!(a_job_brought_back_is_kept_until_its_new_end_is_old);
async fn a_job_brought_back_is_kept_until_its_new_end_is_old(world: World) {
    let [_, failed, cancelled] = one_of_each_end(&world, HOUR * 2).await;
    world.retry(failed, Duration::ZERO).await;
    world.retry(cancelled, DAY).await;
    world.advance(HOUR * 3).await;
    assert_eq!(world.retain().await, 1, "only the one that succeeded");
    world.assert_state(failed, JobState::Queued).await;
    assert_eq!(world.look(failed).await.purge_time, None);
    world.fail(failed).await;
    world.cancel(cancelled).await;
    world.advance(minutes(60)).await;
    assert_eq!(world.retain().await, 0, "they ended an hour ago");
    world.tidy().await;
    world.advance(minutes(61)).await;
    assert_eq!(world.retain().await, 2);
}

on_each_store!(a_job_that_is_not_final_is_never_forgotten);
async fn a_job_that_is_not_final_is_never_forgotten(world: World) {
    let soon = |d: &mut leasehold::job::draft::Draft| d.retention = Some(raw(Duration::ZERO));
    let queued = world.accept(world.job_with(soon)).await;
    let scheduled = world
        .accept(world.job_with(|d| {
            soon(d);
            d.start = RawStart::Delay(raw(DAY * 900));
        }))
        .await;
    let running = world.accept(world.job_with(soon)).await;
    world.lease(running, world.open().await).await;
    let tried = world.accept(world.job_with(soon)).await;
    let session = world.open().await;
    let lease = world.lease(tried, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    for _ in 0..4 {
        world.advance(DAY * 100).await;
        assert_eq!(world.retain().await, 0);
        world.tidy().await;
    }
    for job in [queued, scheduled, running, tried] {
        assert!(world.find(job).await.is_some());
    }
}

on_each_store!(old_jobs_go_in_bounded_steps_the_oldest_first);
async fn old_jobs_go_in_bounded_steps_the_oldest_first(world: World) {
    let mut jobs = Vec::new();
    for n in 0..9 {
        let new = world.job_with(|d| d.retention = Some(raw(DAY * (20 - n))));
        jobs.push(world.accept(new).await);
        world.succeed(jobs[n as usize]).await;
    }
    jobs.reverse();
    world.advance(DAY * 30).await;
    for gone in [4, 8] {
        let step = world.store.retain(4).await.expect("retain answers");
        assert_eq!((step.changed, step.more), (4, true));
        for (n, job) in jobs.iter().enumerate() {
            assert_eq!(world.find(*job).await.is_none(), n < gone, "{n}");
        }
    }
    assert_eq!(world.retain().await, 1);
}

on_each_store!(old_jobs_go_once_by_many);
async fn old_jobs_go_once_by_many(world: World) {
    let jobs = world.queued_many(300).await;
    let to = world.open().await;
    for chunk in jobs.chunks(7) {
        finish_chunk(&world, chunk, to).await;
    }
    world.tidy().await;
    world.advance(DAY * 8).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..6 {
        let world = world.clone();
        calls.spawn(async move {
            match n % 3 {
                0 => world.tidy().await * 0,
                _ => world.retain().await,
            }
        });
    }
    let gone: u64 = calls.join_all().await.into_iter().sum();
    world.advance(minutes(1)).await;
    assert_eq!(gone + world.retain().await, 300);
    assert_eq!(world.walk(JobFilter::default(), 100).await, []);
}

async fn finish_chunk(world: &World, jobs: &[JobId], to: Attached) {
    let asks = jobs.iter().map(|job| Ask { job: *job, to }).collect();
    let endings = world
        .grant(asks)
        .await
        .iter()
        .map(|answer| ending(leased(answer).lease, to, success()))
        .collect();
    world
        .finish_all(endings)
        .await
        .verdicts
        .iter()
        .for_each(assert_recorded);
}

on_each_store!(tidying_never_drops_a_jobs_only_pointer);
async fn tidying_never_drops_a_jobs_only_pointer(world: World) {
    let mut waiting: BTreeSet<JobId> = world.queued_many(3).await.into_iter().collect();
    // Each of these has been in a segment that is spent now, and stands in a newer one.
    let session = world.open_on(world.node, "long", DAY * 30).await;
    let released = world.queued().await;
    let lease = world.lease(released, session).await;
    assert_recorded(&world.finish(lease, session, release()).await);
    let (lost, dead) = world.running().await;
    world.lose(dead).await;
    let retried = world.queued().await;
    world.cancel(retried).await;
    world.retry(retried, Duration::ZERO).await;
    let delayed = world.queued().await;
    let lease = world.lease(delayed, session).await;
    let later = release_after(secs(9));
    assert_recorded(&world.finish(lease, session, later).await);
    world.advance(secs(10)).await;
    world.promote().await;
    waiting.extend([released, lost.job, retried, delayed]);

    let runs = world.lease(world.queued().await, session).await;
    let mut ended = Vec::new();
    for _ in 0..30 {
        ended.push(world.queued().await);
        world.succeed(ended[ended.len() - 1]).await;
    }
    for _ in 0..8 {
        world.advance(minutes(10)).await;
        world.tidy().await;
    }
    assert_eq!(world.waiting().await, waiting);
    assert!(world.renew(session).await);
    world.assert_state(runs.job, JobState::Running).await;
    assert_eq!(jobs_of(&world.lose(session).await), [runs.job]);
    world.advance(DAY * 8).await;
    assert_eq!(world.retain().await, ended.len() as u64);
    world.advance(LONG).await;
}

on_each_store!(everything_at_once_loses_nothing);
async fn everything_at_once_loses_nothing(world: World) {
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..4_u64 {
        let world = world.clone();
        calls.spawn(async move { work(&world, n).await });
    }
    let sweeping = world.clone();
    let sweeper = tokio::spawn(async move {
        for _ in 0..25 {
            sweeping.promote().await;
            sweeping.expire().await;
            sweeping.tidy().await;
            sweeping.retain().await;
        }
    });
    let mut jobs = Vec::new();
    for some in calls.join_all().await {
        jobs.extend(some);
    }
    sweeper.await.expect("the sweeps end");
    world.advance(minutes(10)).await;
    world.promote().await;
    world.expire().await;
    let found = world.walk(JobFilter::default(), 100).await;
    let found: BTreeSet<_> = found.iter().map(|j| j.id).collect();
    assert_eq!(found, jobs.into_iter().collect());
    // The audit compares the backlog and the counters with the rows.
}

/// Runs a few jobs to all sorts of ends.
async fn work(world: &World, seed: u64) -> Vec<JobId> {
    let mut all = Vec::new();
    for round in 0..6 {
        let jobs = world.queued_many(12).await;
        let session = world.open().await;
        for (n, job) in (seed + round..).zip(&jobs) {
            let lease = world.lease(*job, session).await;
            match n % 6 {
                0 => assert_recorded(&world.finish(lease, session, success()).await),
                1 => assert_recorded(&world.finish(lease, session, failure()).await),
                2 => assert_recorded(&world.finish(lease, session, release()).await),
                3 => drop(world.cancel(*job).await),
                4 => {
                    world.cancel(*job).await;
                    world.retry(*job, Duration::ZERO).await;
                }
                _ => {}
            }
        }
        let closes = world.store.close_sessions(vec![session]).await;
        closes.expect("close answers");
        all.extend(jobs);
    }
    all
}
