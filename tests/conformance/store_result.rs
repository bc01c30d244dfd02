//! What each ending makes of its job, and what of it is kept.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use leasehold::job::draft::RawBackoff;
use leasehold::job::limits::{ATTEMPTS_SHOWN, FAILURE_DETAIL_BYTES_MAX, RELEASE_FLOOR_MAX};
use leasehold::job::retry::release_floor;
use leasehold::job::{
    AttemptOutcome, Ending, Failure, Job, JobId, JobState, Outcome, Payload, Priority, Verdict,
};
use leasehold::store::{Ask, Granted};

use crate::steps::{
    assert_about, assert_recorded, assert_same_moment, backoff, ending, failure, jobs_of, leased,
    line_of, minutes, permanent_failure, raw, release, release_after, secs, success, text,
};
use crate::store_enqueue::odd_payloads;
use crate::world::World;

const RECORDED_SCHEDULED: Verdict = Verdict::Recorded(JobState::Scheduled);
const RECORDED_FAILED: Verdict = Verdict::Recorded(JobState::Failed);

on_each_store!(a_success_ends_the_job_with_its_output);
async fn a_success_ends_the_job_with_its_output(world: World) {
    let retention = minutes(2 * 24 * 60);
    let new = world.job_with(|d| d.retention = Some(raw(retention)));
    let id = world.accept(new.clone()).await;
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    let answer = world
        .finish_all(vec![ending(lease, session, success())])
        .await;
    assert_eq!(answer.verdicts, [Verdict::Recorded(JobState::Succeeded)]);
    assert_eq!(answer.segments, [], "nobody waits because of it");

    let job = world.look(id).await;
    assert_eq!((job.state, job.revision), (JobState::Succeeded, 3));
    assert_eq!((job.attempt, job.failures, job.releases), (1, 0, 0));
    assert_eq!(job.output, Some(text("done")));
    assert_eq!(job.payload, Some(new.payload));
    assert_eq!(job.worker, "worker-1");
    assert_eq!(
        (job.last_failure, job.attempts),
        (None, vec![]),
        "the success is the job itself"
    );
    let finished = job.finish_time.expect("it is final");
    assert_about(finished, world.now(), "finish_time");
    let purged = job.purge_time.expect("it is final");
    assert_same_moment(purged, finished.after(retention), "purge_time");
}

on_each_store!(output_bytes_come_back_untouched);
async fn output_bytes_come_back_untouched(world: World) {
    for body in odd_payloads() {
        let size = body.data.len();
        let new = world.job_with(|d| d.payload = Some(body.clone()));
        let (id, session) = (world.accept(new).await, world.open().await);
        let answer = world.ask(id, session).await;
        assert!(
            leased(&answer).payload == body,
            "{size} bytes changed on the way out"
        );
        let outcome = Outcome::Success(Some(body.clone()));
        assert_recorded(&world.finish(leased(&answer).lease, session, outcome).await);
        let job = world.look(id).await;
        assert!(job.output.as_ref() == Some(&body), "{size} bytes changed");
        assert!(job.payload == Some(body), "{size} bytes of the payload");
    }
}

on_each_store!(no_output_and_an_empty_one_are_told_apart);
async fn no_output_and_an_empty_one_are_told_apart(world: World) {
    let empty = Payload {
        content_type: "x/y".into(),
        data: Bytes::new(),
        is_text: false,
    };
    for output in [None, Some(empty)] {
        let (lease, session) = world.running().await;
        let outcome = Outcome::Success(output.clone());
        assert_recorded(&world.finish(lease, session, outcome).await);
        assert_eq!(world.look(lease.job).await.output, output);
    }
}

/// The wait that the last attempt's end was answered with: both moments are of one statement.
fn waits(job: &Job) -> Duration {
    let ended = job.attempts.last().expect("an attempt ended").end_time;
    job.run_time.since(ended)
}

fn assert_waits(job: &Job, expected: Duration, what: &str) {
    let actual = waits(job);
    let apart = actual.max(expected) - actual.min(expected);
    let rounding = Duration::from_micros(2) + expected.mul_f64(1e-9);
    assert!(apart <= rounding, "{what}: {actual:?}, not {expected:?}");
}

on_each_store!(a_failure_is_tried_again_after_its_backoff);
async fn a_failure_is_tried_again_after_its_backoff(world: World) {
    let policies = [
        None,
        backoff(Duration::from_millis(1), secs(1), 1.0),
        backoff(Duration::from_micros(1_234_567), minutes(90), 1.75),
        backoff(secs(7), secs(40), 100.0),
        backoff(minutes(2), minutes(40_000), 3.3),
    ];
    for policy in policies {
        follow_backoff(&world, policy).await;
    }
}

async fn follow_backoff(world: &World, policy: Option<RawBackoff>) {
    let new = world.job_with(|d| d.backoff = policy);
    let retry = new.spec.retry;
    let id = world.accept(new).await;
    for (failures, chance) in (1..).zip([0.0, 0.5, 0.999_999, 0.25, 0.0]) {
        let session = world.open().await;
        let lease = world.lease(id, session).await;
        let failed = Ending {
            chance,
            ..ending(lease, session, failure())
        };
        let answer = world.finish_all(vec![failed]).await;
        assert_eq!(answer.verdicts, [RECORDED_SCHEDULED]);
        assert_eq!(answer.segments, []);
        let job = world.look(id).await;
        assert_eq!((job.state, job.failures), (JobState::Scheduled, failures));
        assert_eq!((job.finish_time, job.purge_time), (None, None));
        let expected = retry.backoff(failures, chance);
        assert_waits(&job, expected, &format!("{retry:?}, failure {failures}"));
        world.advance(expected + secs(1)).await;
        world.promote().await;
    }
}

on_each_store!(a_very_late_backoff_is_the_longest_one);
async fn a_very_late_backoff_is_the_longest_one(world: World) {
    let new = world.job_with(|d| {
        d.max_attempts = 1_000_000;
        d.backoff = backoff(Duration::from_millis(1), minutes(10), 100.0);
    });
    let id = world.accept(new).await;
    for _ in 0..40 {
        let session = world.open().await;
        let lease = world.lease(id, session).await;
        let again_at_once = Outcome::Failure(Failure {
            retry_after: Some(Duration::ZERO),
            ..Failure::default()
        });
        assert_recorded(&world.finish(lease, session, again_at_once).await);
        assert_eq!(world.promote().await.changed, 1, "no wait was asked for");
    }
    let session = world.open().await;
    let lease = world.lease(id, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    assert_waits(&world.look(id).await, minutes(10), "the 41st");
}

on_each_store!(retry_after_stands_before_the_backoff);
async fn retry_after_stands_before_the_backoff(world: World) {
    for wait in [Duration::from_micros(1_500_001), minutes(60 * 24 * 30)] {
        let (lease, session) = world.running().await;
        let outcome = Outcome::Failure(Failure {
            kind: "Busy".into(),
            retry_after: Some(wait),
            ..Failure::default()
        });
        let verdict = world.finish(lease, session, outcome).await;
        assert_eq!(verdict, RECORDED_SCHEDULED);
        let job = world.look(lease.job).await;
        assert_waits(&job, wait, "as it was asked");
        let said = job.last_failure.expect("it failed");
        assert_eq!(said.retry_after, Some(wait));
    }
}

on_each_store!(a_permanent_failure_is_final_whatever_budget_is_left);
async fn a_permanent_failure_is_final_whatever_budget_is_left(world: World) {
    let (lease, session) = world.running().await;
    let outcome = Outcome::Failure(Failure {
        permanent: true,
        retry_after: Some(secs(1)),
        ..Failure::default()
    });
    let verdict = world.finish(lease, session, outcome).await;
    assert_eq!(verdict, RECORDED_FAILED);
    let job = world.look(lease.job).await;
    assert_eq!((job.failures, job.attempt, job.revision), (1, 1, 3));
    assert_about(job.finish_time.expect("final"), world.now(), "finish_time");
    assert!(job.last_failure.expect("it failed").permanent);
    world.advance(minutes(60)).await;
    assert_eq!(world.promote().await.changed, 0, "it does not come back");
}

on_each_store!(only_failures_and_timeouts_use_up_the_budget);
async fn only_failures_and_timeouts_use_up_the_budget(world: World) {
    let id = world.accept(world.job_with(|d| d.max_attempts = 3)).await;
    let rounds = [
        (Some(failure()), JobState::Scheduled),
        (Some(release()), JobState::Queued),
        (None, JobState::Queued),
        (Some(Outcome::TimedOut), JobState::Scheduled),
        (Some(release()), JobState::Queued),
        (None, JobState::Queued),
        (Some(failure()), JobState::Failed),
    ];
    for (outcome, after) in rounds {
        let session = world.open().await;
        let lease = world.lease(id, session).await;
        match outcome {
            None => drop(world.lose(session).await),
            Some(outcome) => {
                let verdict = world.finish(lease, session, outcome).await;
                assert_eq!(verdict, Verdict::Recorded(after));
            }
        }
        world.assert_state(id, after).await;
        world.advance(minutes(60)).await;
        world.promote().await;
    }
    let job = world.look(id).await;
    assert_eq!((job.failures, job.lost_leases, job.releases), (3, 2, 2));
    assert_eq!((job.attempt, job.state), (7, JobState::Failed));
    let history: Vec<_> = job
        .attempts
        .iter()
        .map(|a| (a.attempt, a.outcome))
        .collect();
    use AttemptOutcome::{Failed, LeaseLost, Released, TimedOut};
    let expected = [
        Failed, Released, LeaseLost, TimedOut, Released, LeaseLost, Failed,
    ];
    assert_eq!(history, (1..).zip(expected).collect::<Vec<_>>());
}

on_each_store!(a_job_with_one_attempt_fails_at_once);
async fn a_job_with_one_attempt_fails_at_once(world: World) {
    for outcome in [failure(), Outcome::TimedOut] {
        let id = world.accept(world.job_with(|d| d.max_attempts = 1)).await;
        let session = world.open().await;
        let lease = world.lease(id, session).await;
        let verdict = world.finish(lease, session, outcome).await;
        assert_eq!(verdict, RECORDED_FAILED);
    }
}

on_each_store!(a_timeout_is_a_failure_that_says_so);
async fn a_timeout_is_a_failure_that_says_so(world: World) {
    let (lease, session) = world.running().await;
    let verdict = world.finish(lease, session, Outcome::TimedOut).await;
    assert_eq!(verdict, RECORDED_SCHEDULED);
    let job = world.look(lease.job).await;
    assert_eq!(job.failures, 1);
    assert_waits(&job, job.spec.retry.backoff(1, 0.0), "like any failure");
    assert_eq!(job.attempts[0].outcome, AttemptOutcome::TimedOut);
    let failure = job.last_failure.expect("a timeout is a failure");
    assert_eq!(failure.kind, "TIMED_OUT");
    assert_eq!(job.attempts[0].failure.as_ref(), Some(&failure));
}

on_each_store!(a_first_release_puts_the_job_back_into_its_line_at_once);
async fn a_first_release_puts_the_job_back_into_its_line_at_once(world: World) {
    let new = world.job_with(|d| d.priority = Some(Ok(Priority::High)));
    let line = line_of(&new);
    let (id, session) = (world.accept(new).await, world.open().await);
    let lease = world.lease(id, session).await;
    world.advance(secs(90)).await;
    let answer = world
        .finish_all(vec![ending(lease, session, release())])
        .await;
    assert_eq!(answer.verdicts, [Verdict::Recorded(JobState::Queued)]);
    assert_eq!(jobs_of(&answer.segments), [id]);
    assert_eq!(answer.segments[0].line, line);

    let job = world.look(id).await;
    assert_eq!((job.state, job.revision), (JobState::Queued, 3));
    assert_eq!((job.attempt, job.releases, job.failures), (1, 1, 0));
    assert_about(job.run_time, world.now(), "it is due since its release");
    assert_eq!(job.last_failure, None);
    let ended = &job.attempts[0];
    assert_eq!(ended.outcome, AttemptOutcome::Released);
    let reason = ended.failure.as_ref().map(|f| f.message.as_str());
    assert_eq!(reason, Some("not now"));
    assert_eq!(world.lease(id, world.open().await).await.attempt, 2);
}

on_each_store!(releases_in_a_row_wait_longer_and_longer);
async fn releases_in_a_row_wait_longer_and_longer(world: World) {
    let (id, session) = (world.queued().await, world.open().await);
    let give_back = async |delay| {
        let lease = world.lease(id, session).await;
        let outcome = release_after(delay);
        assert_recorded(&world.finish(lease, session, outcome).await);
        let job = world.look(id).await;
        world.advance(waits(&job)).await;
        world.promote().await;
        assert!(world.renew(session).await);
        job
    };
    for before in 0..9 {
        let job = give_back(Duration::ZERO).await;
        let floor = release_floor(before);
        assert_waits(&job, floor, &format!("after {before} in a row"));
        let state = match floor.is_zero() {
            true => JobState::Queued,
            false => JobState::Scheduled,
        };
        assert_eq!((job.state, job.releases), (state, before + 1));
    }
    let longer = RELEASE_FLOOR_MAX + secs(1);
    assert_waits(&give_back(longer).await, longer, "a longer wish stands");

    let lease = world.lease(id, session).await;
    assert_recorded(&world.finish(lease, session, failure()).await);
    world.advance(minutes(1)).await;
    world.promote().await;
    assert!(world.renew(session).await);
    let job = give_back(Duration::ZERO).await;
    assert_waits(&job, Duration::ZERO, "a failure ends the row");
    let delayed = secs(5);
    assert_waits(&give_back(delayed).await, delayed, "above the floor");
}

on_each_store!(an_attempt_is_remembered_as_it_was_told);
async fn an_attempt_is_remembered_as_it_was_told(world: World) {
    let (id, session) = (
        world.queued().await,
        world
            .open_on(world.node, "host 'a' \\ \"b\"", secs(300))
            .await,
    );
    let lease = world.lease(id, session).await;
    let started = world.now();
    world.advance(secs(100)).await;
    let said = Failure {
        kind: "sql::Fehler<'ß'>".into(),
        message: "it's {broken}, \"☂\" \\n NULL".into(),
        detail: "ü\n".repeat(FAILURE_DETAIL_BYTES_MAX / 3),
        permanent: true,
        retry_after: None,
    };
    let outcome = Outcome::Failure(said.clone());
    assert_recorded(&world.finish(lease, session, outcome).await);
    let job = world.look(id).await;
    assert_eq!(job.last_failure.as_ref(), Some(&said));
    let ended = &job.attempts[0];
    assert_eq!(ended.failure.as_ref(), Some(&said));
    assert_eq!((ended.attempt, &*ended.worker), (1, "host 'a' \\ \"b\""));
    assert_about(ended.start_time, started, "start_time");
    assert_about(ended.end_time, world.now(), "end_time");
    assert_eq!(Some(ended.start_time), job.start_time);
}

on_each_store!(a_long_history_shows_its_newest_part_and_the_last_failure);
async fn a_long_history_shows_its_newest_part_and_the_last_failure(world: World) {
    let (id, session) = (world.queued().await, world.open().await);
    let lease = world.lease(id, session).await;
    assert_recorded(&world.finish(lease, session, permanent_failure()).await);
    let others = u32::try_from(ATTEMPTS_SHOWN).expect("a small number") + 2;
    for _ in 0..others {
        world.retry(id, Duration::ZERO).await;
        world.lease(id, session).await;
        world.cancel(id).await;
    }
    let job = world.look(id).await;
    let shown: Vec<u32> = job.attempts.iter().map(|a| a.attempt).collect();
    assert_eq!(shown, (4..=others + 1).collect::<Vec<_>>());
    let last = job.last_failure.expect("the first attempt failed");
    assert_eq!(last.kind, "Hopeless");
}

on_each_store!(a_thousand_endings_of_all_kinds_are_recorded_in_one_batch);
async fn a_thousand_endings_of_all_kinds_are_recorded_in_one_batch(world: World) {
    let new = (0..1_000)
        .map(|n| world.job_with(|d| d.queue = format!("q{}", n % 3)))
        .collect();
    let jobs = world.accept_all(new).await;
    let to = world.open().await;
    let asks = jobs.iter().map(|job| Ask { job: *job, to }).collect();
    let outcomes = [
        (success(), JobState::Succeeded),
        (failure(), JobState::Scheduled),
        (release(), JobState::Queued),
        (permanent_failure(), JobState::Failed),
        (Outcome::TimedOut, JobState::Scheduled),
        (release_after(secs(9)), JobState::Scheduled),
        (Outcome::Success(None), JobState::Succeeded),
    ];
    let granted: Vec<Granted> = world.grant(asks).await;
    let mut endings: Vec<Ending> = granted
        .iter()
        .zip(outcomes.iter().cycle())
        .map(|(answer, (outcome, _))| ending(leased(answer).lease, to, outcome.clone()))
        .collect();
    // Not in the order of their ids: a store must put its locks in order by itself.
    endings.reverse();
    let answer = world.finish_all(endings).await;
    let states: Vec<JobState> = outcomes
        .iter()
        .map(|(_, s)| *s)
        .cycle()
        .take(1_000)
        .collect();
    let recorded = |s: &JobState| Verdict::Recorded(*s);
    let verdicts: Vec<_> = states.iter().rev().map(recorded).collect();
    assert_eq!(answer.verdicts, verdicts);

    let back: BTreeSet<JobId> = jobs
        .iter()
        .zip(&states)
        .filter_map(|(job, state)| (*state == JobState::Queued).then_some(*job))
        .collect();
    let offered = jobs_of(&answer.segments);
    assert_eq!(offered.len(), back.len(), "each once");
    assert_eq!(offered.into_iter().collect::<BTreeSet<_>>(), back);
    assert_eq!(answer.segments.len(), 3, "one a line");
    for (job, state) in jobs.iter().zip(states).step_by(61) {
        world.assert_state(*job, state).await;
    }
}

on_each_store!(a_lease_is_forgotten_and_its_success_recorded_in_one_batch);
/// A worker forgot a lease, so it seemed; and its result comes while that is being recorded.
async fn a_lease_is_forgotten_and_its_success_recorded_in_one_batch(world: World) {
    let (lease, session) = world.running().await;
    let (other, holder) = world.running().await;
    let told = world
        .finish_all(vec![
            ending(lease, session, Outcome::Forgotten),
            ending(other, holder, success()),
            ending(lease, session, success()),
        ])
        .await;
    assert_eq!(
        told.verdicts,
        [
            Verdict::Recorded(JobState::Queued),
            Verdict::Recorded(JobState::Succeeded),
            Verdict::Recorded(JobState::Succeeded)
        ]
    );
    let job = world.look(lease.job).await;
    assert_eq!((job.revision, job.lost_leases), (4, 1));
    assert!(job.output.is_some());
}
