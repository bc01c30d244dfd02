//! The session's rules, told as a worker would see them.

mod heal;
mod logging;
mod progress;
mod reading;

use super::message::{
    CancelReason, ClientMessage, Hello, Reported, ServerMessage, Subscription, Welcome,
};
use super::{Action, Event, Session};
use crate::error::Error;
use crate::job::limits::LEASE_TTL_DEFAULT;
use crate::job::{
    AttemptOutcome, JobId, JobState, Kind, Lease, LeasedJob, Outcome, Payload, Priority, QueueName,
    SessionId, StaleReason, Verdict,
};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn queue() -> QueueName {
    QueueName::from_store("q")
}

fn hello() -> Hello {
    Hello {
        protocol: 1,
        worker: "w".into(),
        queues: vec![Subscription {
            queue: queue(),
            max_in_flight: None,
        }],
        max_in_flight: 2,
        max_frame_bytes: 4 << 20,
        ..Hello::default()
    }
}

fn job(n: u128) -> LeasedJob {
    LeasedJob {
        lease: Lease {
            job: JobId::from_store(Uuid::from_u128(n)),
            attempt: 1,
        },
        queue: queue(),
        kind: Kind::from_store("k"),
        payload: Payload::default(),
        headers: BTreeMap::new(),
        priority: Priority::Normal,
        failures: 0,
        max_attempts: 25,
        lost_leases: 0,
        releases: 0,
        time_left: Some(s(5)),
        waited: Duration::ZERO,
        checkpoint: None,
        progress_revision: 0,
        resent: false,
    }
}

fn welcome(resumed: bool) -> Box<Welcome> {
    Box::new(Welcome {
        session: SessionId::of_token(b"t"),
        resume_token: Default::default(),
        resumed,
        node: String::new(),
        heartbeat_interval: LEASE_TTL_DEFAULT / 3,
        lease_ttl: LEASE_TTL_DEFAULT,
        max_in_flight: 2,
    })
}

fn live() -> Session {
    let mut session = Session::open(s(0), hello(), LEASE_TTL_DEFAULT).unwrap();
    session.handle(s(0), Event::Opened(welcome(false)));
    session
}

/// A session that runs job 1.
fn running() -> Session {
    let mut session = live();
    assert!(session.reserve(s(0), &queue()));
    session.handle(
        s(0),
        Event::Granted {
            jobs: vec![job(1)],
            missed: vec![],
        },
    );
    session
}

fn sent(actions: &[Action]) -> Vec<&ServerMessage> {
    let message = |action: &'_ Action| matches!(action, Action::Send(_));
    actions
        .iter()
        .filter(|a| message(a))
        .map(|a| match a {
            Action::Send(message) => message,
            _ => unreachable!(),
        })
        .collect()
}

fn frame(message: ClientMessage) -> Event {
    Event::Frame(message)
}

fn result(n: u128, reported: Reported) -> Event {
    frame(ClientMessage::Results(vec![(job(n).lease, reported)]))
}

fn success() -> Reported {
    Reported::Ended(Outcome::Success(None), None)
}

#[test]
fn no_more_jobs_are_in_flight_than_the_window_allows() {
    let mut session = live();
    assert_eq!(session.free(s(0), &queue()), 2);
    assert!(session.reserve(s(0), &queue()) && session.reserve(s(0), &queue()));
    assert!(!session.reserve(s(0), &queue()));
    let actions = session.handle(
        s(0),
        Event::Granted {
            jobs: vec![job(1)],
            missed: vec![queue()],
        },
    );
    assert!(
        matches!(sent(&actions)[..], [ServerMessage::Jobs { frame: 1, jobs }] if jobs.len() == 1)
    );
    assert_eq!(session.free(s(0), &queue()), 1);
}

#[test]
fn a_result_frees_its_slot_at_once_and_its_verdict_is_passed_on() {
    let mut session = running();
    let actions = session.handle(s(1), result(1, success()));
    assert!(matches!(&actions[0], Action::Record(record, _) if record.len() == 1));
    assert_eq!(session.free(s(1), &queue()), 2);
    let verdict = Verdict::Recorded(JobState::Succeeded);
    let actions = session.handle(s(1), Event::Verdicts(vec![(job(1).lease, verdict)]));
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Ended(ended) if ended.ran == s(1)))
    );
    assert!(matches!(sent(&actions)[..], [ServerMessage::Receipts(_)]));
}

#[test]
fn a_cancelled_handler_keeps_its_slot_until_it_has_stopped() {
    let mut session = running();
    let actions = session.handle(s(1), Event::Cancel(job(1).lease));
    assert!(
        matches!(&sent(&actions)[..], [ServerMessage::Cancels(c)] if c[0].1 == CancelReason::Requested)
    );
    assert_eq!(session.free(s(1), &queue()), 1);
    let actions = session.handle(s(2), result(1, Reported::Stopped(None)));
    assert!(!actions.iter().any(|a| matches!(a, Action::Record(..))));
    assert_eq!(session.free(s(2), &queue()), 2);
}

#[test]
fn a_cancel_never_comes_before_its_job() {
    let mut session = live();
    assert!(session.reserve(s(0), &queue()));
    assert!(sent(&session.handle(s(0), Event::Cancel(job(1).lease))).is_empty());
    let actions = session.handle(
        s(0),
        Event::Granted {
            jobs: vec![job(1)],
            missed: vec![],
        },
    );
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::Jobs { .. }, ServerMessage::Cancels(_)]
    ));
}

#[test]
fn an_attempt_past_its_time_is_a_failure_unless_its_result_has_arrived() {
    let mut session = running();
    assert_eq!(session.deadline(), s(5));
    let actions = session.handle(s(5), Event::Tick);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::RecordOwn(_, Outcome::TimedOut)))
    );
    assert!(
        matches!(&sent(&actions)[..], [ServerMessage::Cancels(c)] if c[0].1 == CancelReason::Timeout)
    );

    let mut session = running();
    session.handle(s(4), result(1, success()));
    assert!(session.handle(s(5), Event::Tick).is_empty());
}

#[test]
fn a_result_that_comes_after_the_timeout_does_not_overtake_it() {
    let mut session = running();
    // The timer has not woken yet: the message itself is late.
    let actions = session.handle(s(5), result(1, success()));
    let lease = job(1).lease;
    assert!(
        matches!(&actions[0], Action::RecordOwn(of, Outcome::TimedOut) if *of == lease),
        "{actions:?}"
    );
    assert!(!actions.iter().any(|a| matches!(a, Action::Record(..))));
    assert_eq!(session.free(s(5), &queue()), 1, "it may run on");

    let recorded = Event::OwnRecorded(lease, Outcome::TimedOut, true);
    let actions = session.handle(s(5), recorded);
    assert!(
        matches!(&actions[..], [Action::Ended(ended), Action::Record(late, _), Action::LookForJobs]
            if ended.outcome == AttemptOutcome::TimedOut && late[0].0 == lease),
        "{actions:?}"
    );
    assert_eq!(session.free(s(5), &queue()), 2);
    let stale = Verdict::Stale(StaleReason::TimedOut, JobState::Failed);
    let actions = session.handle(s(5), Event::Verdicts(vec![(lease, stale)]));
    assert!(matches!(sent(&actions)[..], [ServerMessage::Receipts(_)]));
}

#[test]
fn a_timeout_that_the_store_could_not_take_is_recorded_later() {
    let mut session = running();
    session.handle(s(5), Event::Tick);
    session.handle(
        s(5),
        Event::OwnRecorded(job(1).lease, Outcome::TimedOut, false),
    );
    assert_eq!(session.deadline(), s(6));
    let actions = session.handle(s(6), Event::Tick);
    assert!(matches!(
        actions[..],
        [Action::RecordOwn(_, Outcome::TimedOut)]
    ));
}

#[test]
fn a_silent_worker_gets_no_jobs_and_loses_its_stream() {
    let mut session = live();
    assert_eq!(session.free(s(20), &queue()), 2);
    assert_eq!(session.free(s(21), &queue()), 0);
    assert_eq!(session.deadline(), s(30));
    let actions = session.handle(s(30), Event::Tick);
    assert!(matches!(
        actions[..],
        [Action::Close(Some(Error::HeartbeatMissed))]
    ));
}

#[test]
fn a_worker_that_was_silent_is_looked_after_when_it_is_heard_of_again() {
    let mut session = live();
    assert_eq!(session.free(s(21), &queue()), 0);
    let actions = session.handle(s(21), result(9, success()));
    assert!(matches!(actions.first(), Some(Action::LookForJobs)));
    assert_eq!(session.free(s(21), &queue()), 2);
}

#[test]
fn an_acknowledgement_follows_the_renewal_and_floods_do_not_pile_up() {
    let mut session = live();
    let beat = |sequence| {
        frame(ClientMessage::Heartbeat {
            sequence,
            last_frame: 0,
            held: vec![],
        })
    };
    assert!(matches!(session.handle(s(1), beat(1))[..], [Action::Renew]));
    for sequence in 2..10 {
        assert!(session.handle(s(1), beat(sequence)).is_empty());
    }
    let actions = session.handle(s(1), Event::Renewed);
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::HeartbeatAck { sequence: 1, .. }]
    ));
    let actions = session.handle(s(1), Event::Renewed);
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::HeartbeatAck { sequence: 9, .. }]
    ));
}

#[test]
fn a_lease_that_is_not_ours_is_called_lost_when_it_is_listed_twice() {
    let mut session = live();
    let beat = |sequence| {
        frame(ClientMessage::Heartbeat {
            sequence,
            last_frame: 0,
            held: vec![job(7).lease],
        })
    };
    assert!(sent(&session.handle(s(1), beat(1))).is_empty());
    assert!(matches!(
        sent(&session.handle(s(2), beat(2)))[..],
        [ServerMessage::Lost(_)]
    ));
}

#[test]
fn a_new_window_is_confirmed_when_the_grants_of_the_old_one_have_come() {
    let mut session = live();
    assert!(session.reserve(s(0), &queue()));
    let smaller = ClientMessage::SetCapacity {
        max_in_flight: 1,
        queues: vec![],
    };
    assert!(sent(&session.handle(s(0), frame(smaller))).is_empty());
    assert_eq!(session.free(s(0), &queue()), 0);
    let actions = session.handle(
        s(0),
        Event::Granted {
            jobs: vec![job(1)],
            missed: vec![],
        },
    );
    assert!(matches!(
        sent(&actions)[..],
        [
            ServerMessage::Jobs { frame: 1, .. },
            ServerMessage::CapacityApplied {
                max_in_flight: 1,
                last_frame: 1,
                ..
            }
        ]
    ));
}

#[test]
fn after_goodbye_the_session_ends_when_every_result_has_its_receipt() {
    let mut session = running();
    let actions = session.handle(s(1), frame(ClientMessage::Goodbye));
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::CapacityApplied { goodbye: true, .. }]
    ));
    assert_eq!(session.free(s(1), &queue()), 0);
    session.handle(s(1), result(1, success()));
    assert!(session.handle(s(1), Event::HalfClosed).is_empty());
    let verdict = Verdict::Recorded(JobState::Succeeded);
    let actions = session.handle(s(1), Event::Verdicts(vec![(job(1).lease, verdict)]));
    assert!(matches!(
        actions[actions.len() - 2..],
        [Action::EndSession, Action::Close(None)]
    ));
}

#[test]
fn a_drain_stops_hand_out_and_closes_in_its_time() {
    let mut session = running();
    let actions = session.handle(s(1), Event::Drain(s(2)));
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::Draining { .. }]
    ));
    assert_eq!(session.free(s(1), &queue()), 0);
    let actions = session.handle(s(3), Event::Tick);
    assert!(matches!(
        actions[..],
        [Action::Close(Some(Error::Draining))]
    ));
}

#[test]
fn a_worker_that_is_asked_to_leave_gets_nothing_more_and_keeps_what_it_has() {
    let mut session = running();
    let actions = session.handle(s(1), Event::Leave);
    assert!(matches!(sent(&actions)[..], [ServerMessage::Leave]));
    assert!(session.handle(s(1), Event::Leave).is_empty(), "once");
    assert_eq!(session.free(s(1), &queue()), 0);
    assert!(session.is_leaving());
    // A new window changes nothing of it.
    let window = ClientMessage::SetCapacity {
        max_in_flight: 9,
        queues: Vec::new(),
    };
    session.handle(s(1), frame(window));
    assert_eq!(session.free(s(1), &queue()), 0);
    session.handle(s(1), result(1, success()));
    let verdict = Verdict::Recorded(JobState::Succeeded);
    let actions = session.handle(s(1), Event::Verdicts(vec![(job(1).lease, verdict)]));
    assert!(
        !actions.iter().any(|a| matches!(a, Action::Close(_))),
        "it is for the worker to end it"
    );
    session.handle(s(1), frame(ClientMessage::Goodbye));
    let actions = session.handle(s(1), Event::HalfClosed);
    assert!(matches!(
        actions[..],
        [Action::EndSession, Action::Close(None)]
    ));
}

#[test]
fn nobody_is_asked_to_leave_before_welcome() {
    let mut session = Session::open(s(0), hello(), LEASE_TTL_DEFAULT).unwrap();
    assert!(session.handle(s(0), Event::Leave).is_empty());
}

#[test]
fn a_second_hello_ends_the_stream() {
    let actions = live().handle(s(0), frame(ClientMessage::Hello(Box::default())));
    assert!(matches!(
        actions[..],
        [Action::Close(Some(Error::ProtocolViolation(_)))]
    ));
}

#[test]
fn a_lost_session_stops_its_handlers() {
    let actions = running().handle(s(1), Event::Dead);
    assert!(matches!(sent(&actions)[..], [ServerMessage::Lost(_)]));
    assert!(matches!(
        actions.last(),
        Some(Action::Close(Some(Error::HeartbeatMissed)))
    ));
}

#[test]
fn content_that_cannot_be_taken_leaves_the_lease_and_its_timeout() {
    let mut session = running();
    let fault = crate::error::Violation::field("success.output", "is too large");
    let actions = session.handle(s(1), result(1, Reported::Unacceptable(fault)));
    assert!(
        matches!(&sent(&actions)[..], [ServerMessage::Receipts(r)] if matches!(r[0].1, Verdict::Rejected(_)))
    );
    assert_eq!(session.deadline(), s(5));
    assert_eq!(session.free(s(1), &queue()), 1);
}

#[test]
fn a_hello_that_could_not_take_the_largest_job_is_refused() {
    let narrow = Hello {
        max_frame_bytes: 1 << 20,
        ..hello()
    };
    let refused = Session::open(s(0), narrow, LEASE_TTL_DEFAULT);
    assert!(matches!(refused, Err(Error::FrameLimitTooSmall { .. })));
    let newer = Hello {
        protocol: 2,
        ..hello()
    };
    assert!(matches!(
        Session::open(s(0), newer, LEASE_TTL_DEFAULT),
        Err(Error::ProtocolVersion { .. })
    ));
}
