//! The rules of the worker's half, one by one, and then by a random server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod bench;
mod log;
mod progress;
mod random;
mod resume;

use std::time::Duration;

use super::*;
use crate::proto;
use bench::*;
use proto::lease_jobs_request::Message as Request;
use proto::lease_jobs_response::Message as Response;
use proto::result::Outcome as Wire;

#[test]
fn a_heartbeat_follows_welcome_at_once_and_lists_all_without_a_receipt() {
    let mut bench = Bench::connected(4);
    assert_eq!(bench.heartbeats(1).len(), 1);
    bench.pushed(1, 1, &["a", "b", "c"]);
    bench.finish("a", output(1));
    bench.finish("b", output(1));
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    bench.pass(10 * S);
    let beat = bench.heartbeats(1).pop().unwrap();
    assert_eq!((beat.sequence, beat.last_frame), (2, 1));
    assert_eq!(beat.held, vec![lease("b", 1), lease("c", 1)]);
}

#[test]
fn a_lease_pushed_again_runs_once_even_after_its_receipt() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.pushed(1, 2, &["a"]);
    bench.finish("a", output(1));
    bench.pushed(1, 3, &["a"]);
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    bench.pushed(1, 4, &["a"]);
    assert_eq!(bench.ran.len(), 1);
}

#[test]
fn a_result_is_sent_again_with_the_same_bytes_until_its_receipt() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.finish("a", output(3));
    bench.pass(9 * S);
    assert_eq!(bench.results(1).len(), 1);
    bench.pass(2 * S);
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Unspecified)]);
    bench.pass(4 * S);
    assert_eq!(bench.results(1).len(), 2, "{:?}", bench.sent);
    assert_eq!(bench.results(1)[0], bench.results(1)[1]);
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    bench.pass(14 * S);
    assert_eq!(bench.results(1).len(), 2);
}

#[test]
fn handlers_stop_when_the_last_confirmed_heartbeat_is_too_old() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b"]);
    bench.pass(10 * S); // the second heartbeat leaves
    bench.pass(9 * S);
    bench.acks(1, 2); // confirmed late: what counts is when it left
    bench.pass(15 * S + S / 2);
    assert!(bench.stopped.is_empty());
    bench.pass(S);
    assert_eq!(bench.stopped.len(), 2);
    assert!(
        bench
            .stopped
            .iter()
            .all(|(_, reason)| *reason == StopReason::Unrenewed)
    );
    assert!(bench.cut.contains(&StreamNo(1)));
    bench.finish("a", output(1));
    bench.finish("b", failed());
    bench.pass(10 * S);
    let newest = bench.opened.last().unwrap().0.0;
    bench.hello(newest);
    bench.hears(newest, resumed());
    assert!(
        matches!(
            bench.outcomes(newest)[..],
            [Wire::Success(_), Wire::Release(_)]
        ),
        "work that was done may still count, and an ending on our order is no failure of the job"
    );
}

#[test]
fn a_cancelled_handler_sends_stopped_once_or_its_result_if_it_finished() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b"]);
    let cancel = |job| proto::CancelAttempt {
        lease: Some(lease(job, 1)),
        reason: proto::CancelReason::Requested.into(),
    };
    bench.hears(
        1,
        Response::Cancels(proto::Cancels {
            cancels: vec![cancel("a"), cancel("b")],
        }),
    );
    assert_eq!(bench.stopped.len(), 2);
    bench.finish("a", failed());
    bench.finish("b", output(1));
    assert!(matches!(
        bench.outcomes(1)[..],
        [Wire::Stopped(_), Wire::Success(_)]
    ));
    bench.receipts(1, vec![receipt("b", 1, proto::ReceiptStatus::Stale)]);
    bench.pass(14 * S);
    assert_eq!(bench.results(1).len(), 2);
    assert!(bench.heartbeats(1).last().unwrap().held.is_empty());
}

#[test]
fn a_lost_lease_stops_its_handler_but_not_a_finished_result() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b"]);
    bench.finish("b", output(1));
    bench.hears(
        1,
        Response::Lost(proto::Lost {
            leases: vec![lease("a", 1), lease("b", 1), lease("never", 1)],
        }),
    );
    assert_eq!(bench.stopped, vec![(bench.ticket("a"), StopReason::Lost)]);
    bench.pass(11 * S);
    assert_eq!(
        bench.results(1).len(),
        2,
        "b is sent again until it has its receipt"
    );
}

#[test]
fn a_refused_result_becomes_a_permanent_failure_and_ends_after_a_bound() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.finish("a", output(1));
    for _ in 0..6 {
        bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Rejected)]);
    }
    let sent = bench.outcomes(1);
    let Wire::Failure(failure) = &sent[1] else {
        panic!("{sent:?}")
    };
    assert_eq!(
        (failure.r#type.as_str(), failure.permanent),
        ("OutputRejected", true)
    );
    assert_eq!(sent.len(), 4);
    assert!(bench.notes.contains(&Note::GaveUp(lease("a", 1))));
}

#[test]
fn an_output_that_is_too_large_for_the_server_is_not_sent() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.finish("a", output(1025));
    assert!(matches!(&bench.outcomes(1)[..], [Wire::Failure(failure)] if failure.permanent));
}

#[test]
fn a_shutdown_finishes_within_grace_releases_the_rest_and_ends_well() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b"]);
    bench.event(Event::Shutdown(20 * S));
    assert!(
        bench
            .sent
            .iter()
            .any(|(_, message)| matches!(message, Request::Goodbye(_)))
    );
    bench.pushed(1, 2, &["late"]);
    assert_eq!(
        bench.ran.len(),
        2,
        "a job that crossed Goodbye is given back"
    );
    bench.hears(
        1,
        Response::CapacityApplied(proto::CapacityApplied {
            goodbye: true,
            ..Default::default()
        }),
    );
    bench.finish("a", output(1));
    bench.pass(15 * S);
    bench.acks(1, 2);
    bench.pass(6 * S);
    assert_eq!(
        bench.stopped,
        vec![(bench.ticket("b"), StopReason::Shutdown)]
    );
    bench.finish("b", Outcome::Dropped);
    let Some(Wire::Release(release)) = bench.outcomes(1).pop() else {
        panic!("b is given back")
    };
    assert_eq!(
        (release.reason.as_str(), release.delay),
        ("DRAIN", Some(prost_types::Duration::default()))
    );
    bench.receipts(
        1,
        ["a", "b", "late"]
            .map(|job| receipt(job, 1, proto::ReceiptStatus::Recorded))
            .to_vec(),
    );
    assert_eq!(bench.half_closed, vec![StreamNo(1)]);
    bench.event(Event::Ended(StreamNo(1), End::default()));
    assert_eq!(bench.end, Some(None));
    assert_eq!(bench.half.deadline(), None);
}

#[test]
fn a_worker_that_is_asked_to_leave_does_so_as_by_a_shutdown() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    for _ in 0..2 {
        bench.hears(1, Response::Leave(proto::Leave {}));
    }
    let asked = |note: &&Note| **note == Note::AskedToLeave;
    assert_eq!(bench.notes.iter().filter(asked).count(), 1);
    assert!(bench.stopped.is_empty(), "it may finish");
    bench.hears(
        1,
        Response::CapacityApplied(proto::CapacityApplied {
            goodbye: true,
            ..Default::default()
        }),
    );
    bench.finish("a", output(1));
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    assert_eq!(bench.half_closed, vec![StreamNo(1)]);
    bench.event(Event::Ended(StreamNo(1), End::default()));
    assert_eq!(bench.end, Some(None));
}

#[test]
fn a_shutdown_ends_within_its_bound_when_nobody_answers() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.event(Event::Shutdown(20 * S));
    bench.event(Event::Hurry);
    assert_eq!(bench.stopped.len(), 1);
    bench.pass(10 * S);
    assert_eq!(bench.end, Some(None));
}

#[test]
fn a_timeout_by_the_own_clock_is_a_failure() {
    let mut bench = Bench::connected(4);
    let time_left = Some(prost_types::Duration {
        seconds: 5,
        nanos: 0,
    });
    let job = proto::LeasedJob {
        time_left,
        ..leased("a", 1, "known")
    };
    bench.hears(
        1,
        Response::Jobs(proto::Jobs {
            frame: 1,
            jobs: vec![job],
        }),
    );
    bench.pass(5 * S);
    assert_eq!(
        bench.stopped,
        vec![(bench.ticket("a"), StopReason::Overdue)]
    );
    bench.finish("a", Outcome::Dropped);
    assert!(
        matches!(&bench.outcomes(1)[..], [Wire::Failure(failure)] if failure.r#type == "Timeout")
    );
}

#[test]
fn unknown_kinds_are_given_back_with_growing_delay_and_one_note() {
    let mut bench = Bench::connected(4);
    for attempt in 1..=12 {
        let jobs = vec![leased("a", attempt, "strange")];
        bench.hears(
            1,
            Response::Jobs(proto::Jobs {
                frame: attempt.into(),
                jobs,
            }),
        );
    }
    let delays: Vec<_> = bench
        .outcomes(1)
        .into_iter()
        .map(|outcome| {
            if let Wire::Release(release) = outcome {
                release.delay.unwrap().seconds
            } else {
                panic!()
            }
        })
        .collect();
    assert_eq!(
        delays,
        vec![1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    );
    assert_eq!(
        bench
            .notes
            .iter()
            .filter(|note| matches!(note, Note::UnknownKind(_)))
            .count(),
        1
    );
}

#[test]
fn a_refusal_for_good_ends_the_worker_with_its_reason() {
    let mut bench = Bench::connected(4);
    let end = End {
        fatal: true,
        message: "PROTOCOL_VIOLATION".into(),
        ..End::default()
    };
    bench.event(Event::Ended(StreamNo(1), end));
    assert_eq!(bench.end, Some(Some("PROTOCOL_VIOLATION".into())));
}

#[test]
fn streams_that_fail_are_tried_again_for_ever_with_growing_pauses() {
    let mut bench = Bench::connected(4);
    let mut pauses = vec![];
    for no in 1..=20 {
        bench.cut_by_network(no);
        let Some(Note::Reconnecting { pause, .. }) = bench.notes.last() else {
            panic!("{:?}", bench.notes)
        };
        pauses.push(*pause);
        bench.pass(10 * S);
    }
    assert!(pauses[0] >= Duration::from_millis(50) && pauses[0] <= Duration::from_millis(100));
    assert!(pauses.iter().all(|pause| *pause <= 10 * S));
    assert!(pauses[19] >= 5 * S);
}

#[test]
fn more_jobs_than_slots_are_given_back() {
    let mut bench = Bench::connected(1);
    bench.pushed(1, 1, &["a", "b"]);
    assert_eq!(bench.ran.len(), 1);
    assert!(
        matches!(&bench.outcomes(1)[..], [Wire::Release(release)] if release.reason == "OVER_WINDOW")
    );
}
