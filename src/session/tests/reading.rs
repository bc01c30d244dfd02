//! A worker that is heard of and does not read.

use super::heal::beat;
use super::*;
use crate::error::Limit;

/// A session with so many slots.
fn wide(slots: u32) -> Session {
    let hello = Hello {
        max_in_flight: slots,
        ..hello()
    };
    let mut session = Session::open(s(0), hello, LEASE_TTL_DEFAULT).unwrap();
    session.handle(s(0), Event::Opened(welcome(false)));
    session
}

/// Sends job `n`, which has no timeout, in a frame of its own.
fn send(session: &mut Session, at: u64, n: u128) {
    assert!(session.reserve(s(at), &queue()), "it has a free slot");
    let jobs = vec![LeasedJob {
        time_left: None,
        ..job(n)
    }];
    session.handle(
        s(at),
        Event::Granted {
            jobs,
            missed: vec![],
        },
    );
}

fn looks(actions: &[Action]) -> bool {
    actions
        .iter()
        .any(|action| matches!(action, Action::LookForJobs))
}

fn stalled(actions: &[Action]) -> bool {
    let slow = |error: &Option<Error>| {
        matches!(
            error,
            Some(Error::LimitReached {
                limit: Limit::Outbox,
                ..
            })
        )
    };
    let [Action::Close(error)] = actions else {
        return false;
    };
    slow(error)
}

#[test]
fn a_worker_that_beats_and_reads_nothing_gets_no_more_and_then_its_stream_ends() {
    let mut session = wide(2);
    send(&mut session, 1, 1);
    session.handle(s(11), beat(1, 0, &[]));
    session.handle(s(20), beat(2, 0, &[]));
    assert_eq!(session.free(s(21), &queue()), 1);
    assert_eq!(session.free(s(22), &queue()), 0, "for two heartbeats");
    assert_eq!(session.deadline(), s(31));
    session.handle(s(30), beat(3, 0, &[]));
    assert!(session.handle(s(30), Event::Tick).is_empty());
    assert!(stalled(&session.handle(s(31), Event::Tick)));
}

#[test]
fn a_worker_that_reads_slowly_keeps_its_stream_as_long_as_it_comes_on() {
    let mut session = wide(4);
    for n in 1..=3 {
        send(&mut session, 0, n);
    }
    assert!(!looks(&session.handle(s(20), beat(1, 0, &[]))));
    let actions = session.handle(s(29), beat(2, 1, &[1]));
    assert!(looks(&actions), "it may have more again");
    assert_eq!(session.free(s(30), &queue()), 1);
    session.handle(s(57), beat(3, 2, &[1, 2]));
    assert!(session.handle(s(58), Event::Tick).is_empty());
    session.handle(s(86), beat(4, 2, &[1, 2]));
    assert!(session.handle(s(86), Event::Tick).is_empty());
    assert!(stalled(&session.handle(s(87), Event::Tick)));
}

#[test]
fn a_worker_that_has_read_all_may_be_sent_nothing_for_ever() {
    let mut session = wide(2);
    send(&mut session, 0, 1);
    for sequence in 1..20 {
        session.handle(s(10 * sequence), beat(sequence, 1, &[1]));
        assert!(session.handle(s(10 * sequence), Event::Tick).is_empty());
    }
    assert_eq!(session.deadline(), s(220), "only silence would end it");
}

/// One by hand may not count the frames: what it says of their jobs shows that it has them.
#[test]
fn whoever_names_a_lease_has_read_its_frame() {
    let mut session = wide(3);
    send(&mut session, 0, 1);
    send(&mut session, 0, 2);
    session.handle(s(25), beat(1, 0, &[1]));
    assert!(session.handle(s(30), Event::Tick).is_empty());
    session.handle(s(50), result(2, success()));
    assert!(session.handle(s(55), Event::Tick).is_empty());
    assert_eq!(session.deadline(), s(80));
    assert_eq!(session.free(s(51), &queue()), 2);
}
