//! Jobs in every plight, and what is said of them.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

use super::super::workers::Workers;
use super::*;
use crate::job::JobId;
use crate::job::draft::{Draft, Fields};
use crate::store::Ahead;

/// 2030-01-01T00:00:00Z
const START: Timestamp = Timestamp(1_893_456_000_000_000);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn job(state: JobState) -> Job {
    let draft = Draft {
        queue: "q".into(),
        kind: "k".into(),
        ..Draft::default()
    };
    let fields = Fields {
        item: String::new(),
        spec: "",
    };
    let new = draft
        .check(&fields, JobId::from_store(uuid::Uuid::now_v7()))
        .unwrap();
    Job {
        worker: "w".into(),
        ..Job::accepted(&new, state, START, START)
    }
}

fn record(attempt: u32, outcome: AttemptOutcome, failure: Option<Failure>) -> AttemptRecord {
    AttemptRecord {
        attempt,
        worker: "w".into(),
        outcome,
        failure,
        start_time: START,
        end_time: START.after(secs(2)),
    }
}

fn broken() -> Option<Failure> {
    Some(Failure {
        kind: "Broken".into(),
        message: "it broke".into(),
        ..Failure::default()
    })
}

fn whereabouts(now: Timestamp) -> Whereabouts {
    Whereabouts {
        now,
        ahead: None,
        lease_until: None,
        grace_until: Timestamp(0),
    }
}

fn known(job: &Job, now: Timestamp) -> Known<'_> {
    Known {
        is_paused: false,
        job,
        whereabouts: whereabouts(now),
        workers: Workers {
            all: 2,
            with_kind: 2,
            slots: 10,
            free: 3,
        },
        is_degraded: false,
    }
}

fn reasons(found: &[Finding]) -> Vec<&str> {
    found.iter().map(|finding| finding.reason).collect()
}

#[test]
fn a_delay_is_told_from_a_backoff_and_from_a_floor() {
    let now = START.after(secs(3));
    let mut waits = job(JobState::Scheduled);
    waits.run_time = START.after(secs(63));
    let found = of(&known(&waits, now));
    assert_eq!(reasons(&found), ["DELAYED"]);
    assert_eq!(found[0].message, "it is due at 2030-01-01T00:01:03Z, in 1m");
    assert_eq!(found[0].field, "run_time");

    // The second failure: 30 s, less up to a tenth.
    waits.attempt = 2;
    waits.failures = 2;
    waits.attempts = vec![
        record(1, AttemptOutcome::TimedOut, broken()),
        record(2, AttemptOutcome::Failed, broken()),
    ];
    waits.run_time = START.after(secs(2 + 28));
    let found = of(&known(&waits, now));
    assert_eq!(
        reasons(&found),
        ["BACKOFF", "ATTEMPT_TIMED_OUT", "ATTEMPT_FAILED"]
    );
    assert!(found[0].message.contains("after failure 2 of 25"));
    assert!(found[0].message.contains("Broken: it broke"));
    assert_eq!(found[2].field, "attempts[1]");
    // Brought back by hand, for far later.
    waits.run_time = START.after(secs(500));
    assert_eq!(of(&known(&waits, now))[0].reason, "DELAYED");

    let released = |attempt| {
        let reason = Failure {
            message: "UNKNOWN_KIND".into(),
            ..Failure::default()
        };
        record(attempt, AttemptOutcome::Released, Some(reason))
    };
    waits.attempts = vec![released(1), released(2), released(3)];
    waits.attempt = 3;
    waits.run_time = START.after(secs(2 + 2));
    let found = of(&known(&waits, now));
    assert_eq!(found[0].reason, "RELEASE_FLOOR");
    assert!(found[0].message.contains("3 times in a row"));
    assert!(found[1].message.contains("does not know its kind"));
    waits.run_time = START.after(secs(600));
    assert_eq!(of(&known(&waits, now))[0].reason, "RELEASED");
}

#[test]
fn all_that_keeps_a_queued_job_is_named() {
    let waits = job(JobState::Queued);
    let mut known = known(&waits, START);
    assert_eq!(reasons(&of(&known)), ["READY"]);
    known.whereabouts.ahead = Some(Ahead {
        jobs: 5_000,
        more: true,
    });
    known.is_degraded = true;
    known.workers.free = 0;
    let found = of(&known);
    let expected = ["NO_FREE_SLOT", "IN_LINE", "READY_LIST_DEGRADED"];
    assert_eq!(reasons(&found), expected);
    assert_eq!(
        found[1].message,
        "more than 5000 jobs of queue q are to be handed out before it"
    );
    known.workers.with_kind = 0;
    assert_eq!(of(&known)[0].reason, "UNKNOWN_KIND");
    known.workers = Workers::default();
    assert_eq!(of(&known)[0].reason, "NO_SESSION");
}

#[test]
fn a_running_job_whose_worker_is_silent_says_what_becomes_of_it() {
    let mut runs = job(JobState::Running);
    runs.attempt = 1;
    runs.start_time = Some(START);
    let mut known = known(&runs, START.after(secs(40)));
    known.whereabouts.lease_until = Some(START.after(secs(70)));
    let found = of(&known);
    assert_eq!(reasons(&found), ["RUNNING"]);
    let until = "it has until 2030-01-01T01:00:00Z";
    assert!(found[0].message.contains(until), "{}", found[0].message);
    known.whereabouts.lease_until = Some(START.after(secs(30)));
    assert_eq!(reasons(&of(&known)), ["RUNNING", "LEASE_LAPSED"]);
    known.whereabouts.grace_until = START.after(secs(50));
    assert_eq!(reasons(&of(&known)), ["RUNNING", "OUTAGE_GRACE"]);
}

#[test]
fn how_a_job_ended_and_why_it_ran_again_is_told_in_words() {
    let end = START.after(secs(9));
    let mut ended = Job {
        attempt: 2,
        start_time: Some(START),
        finish_time: Some(end),
        attempts: vec![record(1, AttemptOutcome::LeaseLost, None)],
        ..job(JobState::Succeeded)
    };
    let found = of(&known(&ended, end));
    let expected = ["SUCCEEDED", "ATTEMPT_LEASE_LOST", "LEASES_NOT_COUNTED"];
    assert_eq!(reasons(&found), expected);
    assert_eq!(
        found[0].message,
        "attempt 2 succeeded on worker w, at 2030-01-01T00:00:09Z after 9s"
    );
    ended.lost_leases = 1;
    let found = of(&known(&ended, end));
    assert_eq!(reasons(&found), ["SUCCEEDED", "ATTEMPT_LEASE_LOST"]);

    ended.state = JobState::Failed;
    ended.last_failure = broken();
    ended.failures = 25;
    assert_eq!(of(&known(&ended, end))[0].reason, "ATTEMPTS_USED_UP");
    ended.failures = 1;
    assert_eq!(of(&known(&ended, end))[0].reason, "FAILED");
    ended.last_failure.as_mut().unwrap().permanent = true;
    assert_eq!(of(&known(&ended, end))[0].reason, "FAILED_PERMANENTLY");
    ended.attempts = vec![record(7, AttemptOutcome::Forgotten, broken())];
    ended.lost_leases = 6;
    let found = of(&known(&ended, end));
    let expected = ["LEASES_LOST", "OLDER_ATTEMPTS", "ATTEMPT_FORGOTTEN"];
    assert_eq!(reasons(&found), expected);

    ended.state = JobState::Cancelled;
    ended.attempts = Vec::new();
    let found = of(&known(&ended, end));
    assert!(found[0].message.ends_with("while it waited"));
    let by = JobId::from_store(uuid::Uuid::from_u128(7));
    ended.replaced_by = Some(by);
    let found = of(&known(&ended, end));
    let (told, field) = (&found[0].message, found[0].field.as_str());
    assert!(told.contains(&format!("for job {by}")), "{told}");
    assert_eq!((found[0].reason, field), ("CANCELLED", "replaced_by"));
    ended.replaced_by = None;
    let reason = Failure {
        message: "enough".into(),
        ..Failure::default()
    };
    ended.finish_time = Some(START.after(secs(2)));
    ended.attempts = vec![record(2, AttemptOutcome::Cancelled, Some(reason))];
    let found = of(&known(&ended, end));
    assert!(found[0].message.ends_with("while attempt 2 ran (enough)"));
}
