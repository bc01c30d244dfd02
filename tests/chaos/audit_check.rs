//! The audit itself: it finds nothing where nothing is wrong, and each promise that is broken.

use std::collections::HashMap;

use worker_sdk::proto::{Attempt, AttemptOutcome};
use worker_sdk::{Job, JobState, Payload};

use crate::audit::{self, Evidence, audit};
use crate::ledger::{Line, What};
use crate::load::{Seen, Told};
use crate::worker::Done;

const ID: &str = "job";

struct Case {
    told: Told,
    job: Option<Job>,
    before: Option<Seen>,
    lines: Vec<Line>,
}

fn line(what: What, attempt: u32) -> Line {
    Line {
        what,
        attempt,
        worker: "w1.1".into(),
        at: u64::from(attempt),
    }
}

fn output(attempt: u32) -> Option<Payload> {
    let worker = "w1.1".to_owned();
    let json = serde_json::to_vec(&Done { attempt, worker }).unwrap();
    Some(Payload {
        content_type: "application/json".to_owned(),
        body: Some(worker_sdk::proto::payload::Body::Data(json.into())),
    })
}

/// Enqueued, run once, recorded.
fn right() -> Case {
    let job = Job {
        id: ID.to_owned(),
        state: JobState::Succeeded.into(),
        attempt: 1,
        output: output(1),
        ..Default::default()
    };
    let done = [What::Begin, What::Ended { ok: true }, What::Recorded];
    Case {
        told: Told {
            kind: "quick",
            accepted: true,
            cancelled: None,
            retries: 0,
            seen: None,
        },
        before: Some(Seen::of(&job)),
        job: Some(job),
        lines: done.map(|what| line(what, 1)).into(),
    }
}

fn found(case: Case) -> Vec<&'static str> {
    let of = |id: &str| id.to_owned();
    let evidence = Evidence {
        told: HashMap::from([(of(ID), case.told)]),
        jobs: HashMap::from([(of(ID), case.job)]),
        before: case.before.into_iter().map(|seen| (of(ID), seen)).collect(),
        ledger: HashMap::from([(of(ID), case.lines)]),
        faults: Vec::new(),
        load_until: 0,
    };
    audit(&evidence).broken.into_keys().collect()
}

#[test]
fn the_audit_finds_each_promise_that_is_broken_and_nothing_else() {
    assert!(found(right()).is_empty(), "{:?}", found(right()));
    type Break = fn(&mut Case, &mut Job);
    let breaks: &[(&str, Break)] = &[
        (audit::LOST, |_, job| job.set_state(JobState::Queued)),
        (audit::TWICE, |case, _| {
            case.lines.push(line(What::Ended { ok: true }, 2));
            case.lines.push(line(What::Recorded, 2));
        }),
        (audit::CHANGED, |_, job| job.output = output(2)),
        (audit::NOT_RECORDED, |_, job| job.output = output(2)),
        (audit::STALE_RECORDED, |case, _| {
            case.lines.push(line(What::Stale, 1));
        }),
        (audit::NO_VERDICT, |case, _| {
            case.lines.push(line(What::Unclear("UNKNOWN".into()), 1));
        }),
        (audit::NOT_CANCELLED, |case, _| {
            case.told.cancelled = Some(1)
        }),
        (audit::AFTER_CANCEL, |case, _| case.told.cancelled = Some(0)),
        (audit::BEYOND, |case, job| {
            job.attempt = 2;
            case.lines.push(line(What::Begin, 2));
        }),
        (audit::SAME_ATTEMPT, |case, _| {
            case.lines.push(line(What::Begin, 1));
        }),
        (audit::NOT_HANDED_OUT, |_, job| job.attempt = 0),
        (audit::STEP_AGAIN, |case, _| {
            case.lines.push(line(What::Stepped("one".into()), 1));
            case.lines.push(line(What::Step("one".into()), 2));
        }),
        (audit::FORGOTTEN, |_, job| {
            job.attempts = vec![lost(AttemptOutcome::Forgotten)];
        }),
        (audit::NO_CAUSE, |_, job| {
            job.attempts = vec![lost(AttemptOutcome::LeaseLost)];
        }),
        (audit::WRONG_END, |_, job| job.set_state(JobState::Failed)),
    ];
    for (promise, break_it) in breaks {
        let mut case = right();
        let mut job = case.job.take().unwrap();
        break_it(&mut case, &mut job);
        case.job = Some(job);
        let found = found(case);
        assert!(found.contains(promise), "{promise}: found {found:?}");
    }
    let unknown = Case {
        job: None,
        ..right()
    };
    assert_eq!(found(unknown), [audit::UNKNOWN]);
}

fn lost(outcome: AttemptOutcome) -> Attempt {
    Attempt {
        attempt: 1,
        worker: "w1.1".to_owned(),
        outcome: outcome.into(),
        ..Default::default()
    }
}
