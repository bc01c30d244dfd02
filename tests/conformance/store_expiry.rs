//! A job that has not begun by its expire time never does; once it has begun, the time means nothing.

use std::sync::Arc;
use std::time::Duration;

use leasehold::job::draft::{Draft, Fields, RawExpiry, RawStart};
use leasehold::job::{Job, JobId, JobState, NewJob, Timestamp, Verdict};
use leasehold::store::{Ask, Enqueued, Granted, JobFilter, Retried, Unit};
use tokio::task::JoinSet;

use crate::steps::{
    assert_about, assert_same_moment, backoff, existed, failure, leased, minutes, raw, raw_time,
    secs, success,
};
use crate::world::World;

const BOTH: [Unit; 2] = [Unit::Each, Unit::All];

fn expiring(world: &World, span: Duration) -> NewJob {
    world.job_with(|d| d.expiry = Some(RawExpiry::In(raw(span))))
}

fn expiring_at(world: &World, time: Timestamp, change: impl FnOnce(&mut Draft)) -> NewJob {
    world.job_with(|d| {
        d.expiry = Some(RawExpiry::At(raw_time(time)));
        change(d);
    })
}

impl World {
    /// Ends what has expired, until nothing is left to do.
    async fn expire_jobs(&self) -> u64 {
        let mut changed = 0;
        for _ in 0..10_000 {
            let step = self.store.expire_jobs(100).await.expect("it answers");
            assert_eq!(step.segments, [], "nothing is QUEUED by it");
            changed += step.changed;
            if !step.more {
                return changed;
            }
        }
        panic!("it never ends");
    }

    async fn assert_expired(&self, id: JobId) -> Job {
        let job = self.look(id).await;
        assert_eq!((job.state, job.attempt), (JobState::Failed, 0), "{job:?}");
        let failure = job.last_failure.as_ref().expect("it says why");
        assert_eq!(failure.kind, "EXPIRED");
        assert_eq!(job.attempts, [], "no attempt was made");
        assert_about(job.finish_time.expect("it is final"), self.now(), "its end");
        assert!(job.purge_time.is_some());
        job
    }
}

on_each_store!(a_job_that_has_not_begun_by_its_expire_time_fails_without_any_worker);
async fn a_job_that_has_not_begun_by_its_expire_time_fails_without_any_worker(world: World) {
    let queued = expiring(&world, minutes(5));
    world.accept(queued.clone()).await;
    let scheduled = expiring_at(&world, world.now().after(minutes(5)), |d| {
        d.start = RawStart::Delay(raw(minutes(4)));
        d.queue = "later".into();
    });
    world.accept(scheduled.clone()).await;
    let never = world.queued().await;
    let longer = world.accept(expiring(&world, minutes(60))).await;
    let shown = world.look(queued.id).await.expire_time.expect("it has one");
    assert_about(shown, world.now().after(minutes(5)), "as it is shown");
    assert_eq!(world.look(never).await.expire_time, None);

    world.advance(minutes(4)).await;
    assert_eq!(world.expire_jobs().await, 0, "not before its time");
    world.assert_state(queued.id, JobState::Queued).await;
    world.advance(minutes(2)).await;
    assert_eq!(world.expire_jobs().await, 2);
    for id in [queued.id, scheduled.id] {
        let job = world.assert_expired(id).await;
        assert_eq!(job.revision, 2);
        assert!(job.expire_time.is_some(), "it still says when");
    }
    world.assert_state(never, JobState::Queued).await;
    world.assert_state(longer, JobState::Queued).await;
    assert_eq!(world.promote().await.changed, 0);
    let session = world.open().await;
    assert_eq!(world.ask(queued.id, session).await, Granted::NotQueued);
    assert_eq!(world.expire_jobs().await, 0, "once is enough");
}

on_each_store!(a_job_that_came_due_expires_too);
async fn a_job_that_came_due_expires_too(world: World) {
    let job = expiring_at(&world, world.now().after(minutes(5)), |d| {
        d.start = RawStart::Delay(raw(minutes(4)));
    });
    world.accept(job.clone()).await;
    world.advance(minutes(4)).await;
    assert_eq!(world.promote().await.changed, 1);
    world.advance(minutes(2)).await;
    assert_eq!(world.expire_jobs().await, 1);
    world.assert_expired(job.id).await;
}

on_each_store!(a_grant_past_the_time_hands_nothing_out_however_late_the_sweep_is);
async fn a_grant_past_the_time_hands_nothing_out_however_late_the_sweep_is(world: World) {
    let late = world.accept(expiring(&world, minutes(5))).await;
    let other = world.queued().await;
    world.advance(minutes(6)).await;
    let session = world.open().await;
    let asks = [late, other].map(|job| Ask { job, to: session });
    let answers = world.grant(asks.into()).await;
    assert_eq!(answers[0], Granted::NotQueued, "its hint is spent");
    assert_eq!(leased(&answers[1]).lease.job, other);
    assert_eq!(world.look(late).await.attempt, 0);
    assert_eq!(world.expire_jobs().await, 1);
    world.assert_expired(late).await;
}

on_each_store!(once_begun_a_job_goes_on_whatever_the_time_is);
async fn once_begun_a_job_goes_on_whatever_the_time_is(world: World) {
    let brief = |d: &mut Draft| {
        d.expiry = Some(RawExpiry::In(raw(minutes(5))));
        d.backoff = backoff(minutes(1), minutes(1), 1.0);
    };
    let failing = world.accept(world.job_with(brief)).await;
    let lost = world.accept(world.job_with(brief)).await;
    let [one, two] = [world.open().await, world.open().await];
    let first = world.lease(failing, one).await;
    let gone = world.lease(lost, two).await;
    world.lose(two).await;
    world.live_through(minutes(6), &[one]).await;
    world.expire_jobs().await;
    world.assert_state(failing, JobState::Running).await;
    world.assert_state(lost, JobState::Queued).await;
    let verdict = world.finish(gone, two, success()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded), "salvage");

    let verdict = world.finish(first, one, failure()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Scheduled));
    world.live_through(minutes(2), &[one]).await;
    world.expire_jobs().await;
    world.promote().await;
    let again = world.lease(failing, one).await;
    assert_eq!(again.attempt, 2);
    let verdict = world.finish(again, one, success()).await;
    assert_eq!(verdict, Verdict::Recorded(JobState::Succeeded));
    assert_eq!(world.expire_jobs().await, 0);
}

on_each_store!(what_ended_before_its_time_stays_as_it_ended);
async fn what_ended_before_its_time_stays_as_it_ended(world: World) {
    let cancelled = world.accept(expiring(&world, minutes(5))).await;
    world.cancel(cancelled).await;
    let [done, failed] = [
        world.accept(expiring(&world, minutes(5))).await,
        world.accept(expiring(&world, minutes(5))).await,
    ];
    world.succeed(done).await;
    world.fail(failed).await;
    let before = [
        world.look(cancelled).await,
        world.look(done).await,
        world.look(failed).await,
    ];
    world.advance(minutes(6)).await;
    world.expire_jobs().await;
    for job in before {
        assert_eq!(world.look(job.id).await, job);
    }
}

on_each_store!(a_retry_by_hand_asks_for_the_job_now_whatever_its_expire_time_was);
async fn a_retry_by_hand_asks_for_the_job_now_whatever_its_expire_time_was(world: World) {
    let expired = world.accept(expiring(&world, minutes(5))).await;
    let cancelled = world.accept(expiring(&world, minutes(9))).await;
    world.cancel(cancelled).await;
    world.advance(minutes(6)).await;
    assert_eq!(world.expire_jobs().await, 1);
    for id in [expired, cancelled] {
        let retried = world.retry(id, Duration::ZERO).await;
        assert!(matches!(retried, Retried::Done(..)), "{retried:?}");
        assert_eq!(world.look(id).await.last_failure, None, "it waits again");
    }
    world.advance(minutes(60)).await;
    assert_eq!(world.expire_jobs().await, 0);
    for id in [expired, cancelled] {
        world.succeed(id).await;
    }
}

on_each_store!(a_job_that_would_expire_before_it_begins_is_refused);
async fn a_job_that_would_expire_before_it_begins_is_refused(world: World) {
    let now = world.now();
    let ago = |d: &mut Draft| d.start = RawStart::At(raw_time(Timestamp(now.0 - 60_000_000)));
    let bad = |n: usize| match n {
        0 => expiring_at(&world, Timestamp(now.0 - 1_000_000), |_| {}),
        1 => expiring_at(&world, Timestamp(now.0 - 1_000_000), ago),
        2 => expiring_at(&world, now.after(minutes(5)), |d| {
            d.start = RawStart::Delay(raw(minutes(6)));
        }),
        _ => world.job_with(|d| {
            d.start = RawStart::At(raw_time(now.after(minutes(6))));
            d.expiry = Some(RawExpiry::In(raw(minutes(5))));
        }),
    };
    for n in 0..4 {
        for unit in BOTH {
            let (refused, good) = (bad(n), world.job());
            let answer = world.enqueue(vec![refused.clone(), good], unit).await;
            assert_eq!(answer.jobs[0], Enqueued::ExpiresTooSoon, "{n}");
            assert_eq!(world.find(refused.id).await, None);
            match unit {
                Unit::All => assert_eq!(answer.jobs[1], Enqueued::NotTried),
                Unit::Each => assert!(matches!(answer.jobs[1], Enqueued::Created(_))),
            }
        }
    }
    // What is only a second longer is taken.
    for good in [
        expiring_at(&world, now.after(secs(30)), ago),
        expiring_at(&world, now.after(minutes(7)), |d| {
            d.start = RawStart::Delay(raw(minutes(6)));
        }),
        world.job_with(|d| {
            d.start = RawStart::At(raw_time(now.after(minutes(6))));
            d.expiry = Some(RawExpiry::In(raw(minutes(7))));
        }),
    ] {
        world.accept(good).await;
    }
}

#[test]
fn spans_that_cannot_agree_are_refused_before_any_store_is_asked() {
    let refused = |start, expiry| {
        let draft = Draft {
            queue: "q".into(),
            kind: "k".into(),
            start,
            expiry: Some(expiry),
            ..Draft::default()
        };
        let fields = Fields {
            item: String::new(),
            spec: "job.",
        };
        let id = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let found = draft.check(&fields, id).expect_err("it is refused");
        found.into_iter().map(|v| v.field).collect::<Vec<_>>()
    };
    let time = |s: i64| raw_time(Timestamp(s * 1_000_000));
    let zero = RawExpiry::In(raw(secs(0)));
    assert_eq!(refused(RawStart::Now, zero), ["job.expire_in"]);
    let delay = RawStart::Delay(raw(secs(5)));
    let same = RawExpiry::In(raw(secs(5)));
    assert_eq!(refused(delay, same), ["job.expire_in"]);
    let at = RawStart::At(time(1_000));
    assert_eq!(refused(at, RawExpiry::At(time(1_000))), ["job.expire_time"]);
}

on_each_store!(an_expire_time_is_part_of_the_request);
async fn an_expire_time_is_part_of_the_request(world: World) {
    let first = expiring(&world, minutes(5));
    world.accept(first.clone()).await;
    let same = NewJob {
        id: first.id,
        ..expiring(&world, minutes(5))
    };
    let other = NewJob {
        id: first.id,
        ..expiring(&world, minutes(6))
    };
    let none = NewJob {
        id: first.id,
        ..world.job()
    };
    let answer = world.enqueue(vec![same, other, none], Unit::Each).await;
    assert_eq!(existed(&answer.jobs[0]).id, first.id);
    assert_eq!(answer.jobs[1..], [Enqueued::Conflict, Enqueued::Conflict]);
}

on_each_store!(what_expired_is_found_in_the_dead_letter_by_that);
async fn what_expired_is_found_in_the_dead_letter_by_that(world: World) {
    let expired = world.accept(expiring(&world, minutes(5))).await;
    world.fail(world.queued().await).await;
    world.advance(minutes(6)).await;
    world.expire_jobs().await;
    for states in [vec![], vec![JobState::Failed]] {
        let filter = JobFilter {
            states,
            failure_type: Some("EXPIRED".into()),
            ..JobFilter::default()
        };
        let found = world.walk(filter, 10).await;
        let found: Vec<JobId> = found.iter().map(|job| job.id).collect();
        assert_eq!(found, [expired]);
    }
}

on_each_store!(grants_and_sweeps_at_the_time_itself_agree_about_each_job);
async fn grants_and_sweeps_at_the_time_itself_agree_about_each_job(world: World) {
    const JOBS: usize = 400;
    let end = world.now().after(secs(2));
    let jobs = (0..JOBS).map(|_| expiring_at(&world, end, |_| {}));
    let ids: Arc<[JobId]> = world.accept_all(jobs.collect()).await.into();
    let mut racing = JoinSet::new();
    for worker in 0..4 {
        let (world, ids) = (world.clone(), ids.clone());
        racing.spawn(async move {
            let to = world.open().await;
            let mut mine = ids.iter().skip(worker).step_by(4);
            while world.now() < end.after(secs(1)) {
                // A few at a time, so that some are left when the time comes.
                let asks: Vec<Ask> = mine
                    .by_ref()
                    .take(1)
                    .map(|id| Ask { job: *id, to })
                    .collect();
                world.grant(asks).await;
                world.store.expire_jobs(50).await.expect("it answers");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    racing.join_all().await;
    world.expire_jobs().await;
    let mut began = 0;
    for id in ids.iter() {
        let job = world.look(*id).await;
        match job.state {
            JobState::Running => {
                began += 1;
                assert!(job.start_time < job.expire_time, "{job:?}");
            }
            _ => drop(world.assert_expired(*id).await),
        }
        let shown = job.expire_time.expect("it has one");
        assert_same_moment(shown, end, "as it was asked for");
    }
    assert!(began > 0, "some were in time");
}
