//! A session that resumes, and one that puts itself right.

use super::*;
use crate::job::HeldLease;

fn lease(n: u128) -> Lease {
    job(n).lease
}

fn held(n: u128) -> HeldLease {
    HeldLease {
        lease: lease(n),
        queue: queue(),
        kind: Kind::from_store("k"),
        time_left: Some(s(5)),
    }
}

/// A stream whose Hello lists `listed`, of a session that has `has` by the store.
fn resumed(listed: &[u128], has: &[u128]) -> (Session, Vec<Action>) {
    let hello = Hello {
        max_in_flight: 4,
        held: listed.iter().map(|n| lease(*n)).collect(),
        ..hello()
    };
    let mut session = Session::open(s(0), hello, LEASE_TTL_DEFAULT).unwrap();
    let leases = has.iter().map(|n| held(*n)).collect();
    let actions = session.handle(s(0), Event::Resumed(welcome(true), leases));
    (session, actions)
}

pub(super) fn beat(sequence: u64, last_frame: u64, listed: &[u128]) -> Event {
    frame(ClientMessage::Heartbeat {
        sequence,
        last_frame,
        held: listed.iter().map(|n| lease(*n)).collect(),
    })
}

fn found(n: &[u128]) -> Event {
    Event::Found {
        jobs: n.iter().map(|n| job(*n)).collect(),
        gone: vec![],
    }
}

fn asked(actions: &[Action]) -> Vec<Lease> {
    actions
        .iter()
        .flat_map(|action| match action {
            Action::Find(leases) => leases.clone(),
            _ => vec![],
        })
        .collect()
}

fn forgotten(actions: &[Action]) -> Vec<Lease> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::RecordOwn(lease, Outcome::Forgotten) => Some(*lease),
            _ => None,
        })
        .collect()
}

fn lost(actions: &[Action]) -> Vec<Lease> {
    sent(actions)
        .iter()
        .flat_map(|message| match message {
            ServerMessage::Lost(leases) => leases.clone(),
            _ => vec![],
        })
        .collect()
}

fn pushed(actions: &[Action]) -> Vec<(u64, Lease, bool)> {
    sent(actions)
        .iter()
        .flat_map(|message| match message {
            ServerMessage::Jobs { frame, jobs } => {
                jobs.iter().map(|j| (*frame, j.lease, j.resent)).collect()
            }
            _ => vec![],
        })
        .collect()
}

#[test]
fn a_resumed_session_says_welcome_then_lost_then_what_the_worker_misses() {
    let (mut session, actions) = resumed(&[1, 9], &[1, 2]);
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::Welcome(_), ServerMessage::Lost(_)]
    ));
    assert_eq!(lost(&actions), [lease(9)]);
    assert_eq!(asked(&actions), [lease(2)]);
    let actions = session.handle(s(0), found(&[2]));
    assert_eq!(pushed(&actions), [(1, lease(2), true)]);
    assert_eq!(session.in_flight(), 3, "the lost one until it has stopped");
    assert_eq!(session.free(s(0), &queue()), 1);
    session.handle(s(0), result(9, Reported::Stopped(None)));
    assert_eq!(session.in_flight(), 2);
}

#[test]
fn a_new_session_tells_at_once_that_the_old_leases_are_lost_and_has_all_its_slots() {
    let hello = Hello {
        held: vec![lease(1)],
        ..hello()
    };
    let mut session = Session::open(s(0), hello, LEASE_TTL_DEFAULT).unwrap();
    let actions = session.handle(s(0), Event::Opened(welcome(false)));
    assert_eq!(lost(&actions), [lease(1)]);
    assert_eq!(session.free(s(0), &queue()), 2);
}

#[test]
fn what_could_not_be_read_is_asked_for_again() {
    let (mut session, _) = resumed(&[], &[1, 2]);
    let actions = session.handle(s(0), found(&[1]));
    assert_eq!(asked(&actions), [lease(2)], "there was something: at once");
    let actions = session.handle(s(0), found(&[]));
    assert!(
        asked(&actions).is_empty(),
        "there was nothing: after a while"
    );
    assert!(session.deadline() <= s(1));
    let actions = session.handle(s(1), Event::Tick);
    assert_eq!(asked(&actions), [lease(2)]);
    let actions = session.handle(s(1), found(&[2]));
    assert_eq!(pushed(&actions), [(2, lease(2), true)]);
}

#[test]
fn a_job_that_is_cancelled_before_it_is_pushed_again_is_not_pushed() {
    let (mut session, _) = resumed(&[], &[1]);
    let actions = session.handle(s(0), Event::Cancel(lease(1)));
    assert!(sent(&actions).is_empty(), "no Cancels before its Jobs");
    let actions = session.handle(s(0), found(&[1]));
    assert!(pushed(&actions).is_empty());
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn an_attempt_times_out_although_its_worker_does_not_have_it() {
    let (mut session, _) = resumed(&[], &[1]);
    session.handle(s(0), found(&[]));
    let actions = session.handle(s(5), Event::Tick);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::RecordOwn(_, Outcome::TimedOut)))
    );
    assert!(sent(&actions).is_empty());
    session.handle(s(5), Event::OwnRecorded(lease(1), Outcome::TimedOut, true));
    let gone = vec![lease(1)];
    session.handle(s(6), Event::Found { jobs: vec![], gone });
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn a_lease_is_forgotten_when_two_heartbeats_in_a_row_do_not_list_it() {
    let mut session = running();
    for (n, listed, expected) in [
        (1, &[][..], &[][..]),
        (2, &[1], &[]),
        (3, &[], &[]),
        (4, &[], &[lease(1)]),
    ] {
        let actions = session.handle(s(n), beat(n, 1, listed));
        assert_eq!(forgotten(&actions), expected, "{n}");
    }
    assert_eq!(session.in_flight(), 0, "its slot is free");
    let actions = session.handle(s(5), beat(5, 1, &[]));
    assert!(forgotten(&actions).is_empty(), "once");
    let again = Event::OwnRecorded(lease(1), Outcome::Forgotten, false);
    session.handle(s(5), again);
    let actions = session.handle(s(6), Event::Tick);
    assert_eq!(forgotten(&actions), [lease(1)], "until the store knows");
}

#[test]
fn a_lease_whose_frame_is_on_its_way_is_not_forgotten() {
    let mut session = running();
    for n in 1..6 {
        let actions = session.handle(s(n), beat(n, 0, &[]));
        assert!(forgotten(&actions).is_empty());
    }
}

/// Frames begin at 1 on each stream, and a worker may not have noticed yet that this is another one.
#[test]
fn the_last_frame_of_an_older_stream_says_nothing_of_this_one() {
    let (mut session, _) = resumed(&[], &[1]);
    session.handle(s(0), found(&[1]));
    for n in 1..6 {
        let actions = session.handle(s(n), beat(n, 90, &[]));
        assert!(forgotten(&actions).is_empty());
    }
    session.handle(s(6), beat(6, 1, &[]));
    let actions = session.handle(s(7), beat(7, 1, &[]));
    assert_eq!(forgotten(&actions), [lease(1)]);
}

/// The list was read before the frame came, the next one after it: one miss and a hit are no two misses in a row.
#[test]
fn a_list_that_crosses_with_a_frame_counts_from_the_frame_on() {
    let mut session = running();
    session.handle(s(1), beat(1, 0, &[]));
    session.handle(s(2), beat(2, 1, &[]));
    let actions = session.handle(s(3), beat(3, 1, &[1]));
    assert!(forgotten(&actions).is_empty());
    let actions = session.handle(s(4), beat(4, 1, &[]));
    assert!(forgotten(&actions).is_empty(), "it begins anew");
    let actions = session.handle(s(5), beat(5, 1, &[]));
    assert_eq!(forgotten(&actions), [lease(1)]);
}

#[test]
fn a_lease_with_a_result_on_its_way_is_not_forgotten() {
    let mut session = running();
    session.handle(s(0), result(1, success()));
    for n in 1..4 {
        let actions = session.handle(s(n), beat(n, 1, &[]));
        assert!(forgotten(&actions).is_empty());
    }
}

#[test]
fn a_stopped_handler_that_is_not_listed_any_more_frees_its_slot() {
    let mut session = running();
    session.handle(s(0), Event::Cancel(lease(1)));
    for n in 1..3 {
        assert_eq!(session.in_flight(), 1);
        let actions = session.handle(s(n), beat(n, 1, &[]));
        assert!(forgotten(&actions).is_empty(), "it has ended already");
    }
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn a_lease_that_only_the_store_knows_is_pushed_when_two_looks_show_it() {
    let mut session = running();
    let look = |n: &[u128]| Event::Looked {
        leases: n.iter().map(|n| held(*n)).collect(),
        vanished: vec![],
    };
    for (seen, expected) in [
        (&[1, 2][..], &[][..]),
        (&[1], &[]),
        (&[1, 2], &[]),
        (&[1, 2], &[lease(2)]),
    ] {
        let actions = session.handle(s(1), look(seen));
        assert_eq!(asked(&actions), expected);
    }
    let actions = session.handle(s(1), found(&[2]));
    assert_eq!(pushed(&actions), [(2, lease(2), true)]);
    assert_eq!(session.free(s(1), &queue()), 0);
}

#[test]
fn a_lease_that_the_store_does_not_know_is_lost_when_two_looks_show_it() {
    let mut session = running();
    let look = || Event::Looked {
        leases: vec![],
        vanished: vec![lease(1)],
    };
    assert!(lost(&session.handle(s(1), look())).is_empty());
    assert_eq!(lost(&session.handle(s(6), look())), [lease(1)]);
    assert!(lost(&session.handle(s(9), look())).is_empty(), "told once");
    assert_eq!(session.in_flight(), 1, "until its handler has stopped");
}

#[test]
fn a_result_that_crosses_with_a_look_is_not_lost() {
    let mut session = running();
    session.handle(s(1), result(1, success()));
    for n in 2..4 {
        let look = Event::Looked {
            leases: vec![],
            vanished: vec![lease(1)],
        };
        assert!(lost(&session.handle(s(n), look)).is_empty());
    }
}

#[test]
fn a_moved_session_ends_the_old_stream_and_tells_nothing_lost() {
    let actions = running().handle(s(1), Event::Moved);
    assert!(matches!(
        actions[..],
        [Action::Close(Some(Error::SessionMoved))]
    ));
}

#[test]
fn a_session_whose_time_is_over_gets_nothing_until_it_is_renewed() {
    let mut session = running();
    session.handle(s(1), beat(1, 1, &[1]));
    session.handle(s(1), Event::Lapsed);
    assert_eq!(session.free(s(1), &queue()), 0);
    let actions = session.handle(s(2), Event::Renewed);
    assert!(actions.iter().any(|a| matches!(a, Action::LookForJobs)));
    assert_eq!(session.free(s(2), &queue()), 1);
}

#[test]
fn what_a_leaving_worker_never_got_is_given_back() {
    let (mut session, _) = resumed(&[], &[1]);
    session.handle(s(0), frame(ClientMessage::Goodbye));
    session.handle(s(0), Event::HalfClosed);
    let actions = session.handle(s(0), found(&[1]));
    assert!(pushed(&actions).is_empty());
    let [Action::RecordOwn(_, release @ Outcome::Release { .. })] = &actions[..] else {
        panic!("{actions:?}")
    };
    let recorded = Event::OwnRecorded(lease(1), release.clone(), true);
    let actions = session.handle(s(0), recorded);
    assert!(actions.iter().any(|a| matches!(a, Action::EndSession)));
    assert!(matches!(actions.last(), Some(Action::Close(None))));
}

#[test]
fn a_draining_node_pushes_nothing_again() {
    let (mut session, _) = resumed(&[], &[1]);
    session.handle(s(0), Event::Drain(s(30)));
    let actions = session.handle(s(0), found(&[1]));
    assert!(pushed(&actions).is_empty(), "the next node does");
}

#[test]
fn a_result_that_could_not_be_recorded_and_is_not_listed_any_more_is_forgotten() {
    let mut session = running();
    session.handle(s(1), result(1, success()));
    session.handle(s(2), Event::RecordFailed(vec![lease(1)]));
    assert!(forgotten(&session.handle(s(10), beat(1, 1, &[]))).is_empty());
    assert_eq!(
        forgotten(&session.handle(s(20), beat(2, 1, &[]))),
        [lease(1)],
        "else it is RUNNING for as long as its worker lives"
    );
    session.handle(
        s(21),
        Event::OwnRecorded(lease(1), Outcome::Forgotten, true),
    );
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn a_result_that_is_to_be_sent_again_is_not_forgotten_while_it_is_listed() {
    let mut session = running();
    session.handle(s(1), result(1, success()));
    session.handle(s(2), Event::RecordFailed(vec![lease(1)]));
    for n in 1..5 {
        assert!(forgotten(&session.handle(s(10 * n), beat(n, 1, &[1]))).is_empty());
    }
}

#[test]
fn a_lease_that_a_leaving_worker_never_got_is_found_by_looks_and_given_back() {
    let mut session = running();
    session.handle(s(1), frame(ClientMessage::Goodbye));
    let look = || Event::Looked {
        leases: vec![held(1), held(2)],
        vanished: vec![],
    };
    session.handle(s(2), look());
    assert_eq!(asked(&session.handle(s(3), look())), [lease(2)]);
    let actions = session.handle(s(4), found(&[2]));
    assert!(pushed(&actions).is_empty());
    assert!(matches!(
        &actions[..],
        [Action::RecordOwn(of, Outcome::Release { .. })] if *of == lease(2)
    ));
}

#[test]
fn a_heartbeat_that_could_not_be_renewed_is_renewed_as_soon_as_the_store_is_back() {
    let mut session = running();
    let renews = |actions: &[Action]| {
        actions
            .iter()
            .filter(|a| matches!(a, Action::Renew))
            .count()
    };
    assert_eq!(renews(&session.handle(s(10), beat(1, 1, &[1]))), 1);
    assert_eq!(renews(&session.handle(s(11), beat(2, 1, &[1]))), 0);
    session.handle(s(12), Event::RenewFailed);
    for n in 13..16 {
        assert!(session.deadline() <= s(n));
        assert_eq!(renews(&session.handle(s(n), Event::Tick)), 1, "once");
        assert_eq!(renews(&session.handle(s(n), Event::Tick)), 0, "once");
        session.handle(s(n), Event::RenewFailed);
    }
    session.handle(s(16), Event::Tick);
    let actions = session.handle(s(16), Event::Renewed);
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::HeartbeatAck { sequence: 2, .. }]
    ));
    assert_eq!(renews(&actions), 0);
    // A newer heartbeat is tried at once and takes the place of the one that waits.
    session.handle(s(20), beat(3, 1, &[1]));
    session.handle(s(21), Event::RenewFailed);
    assert_eq!(renews(&session.handle(s(21), beat(4, 1, &[1]))), 1);
    let actions = session.handle(s(21), Event::Renewed);
    assert!(matches!(
        sent(&actions)[..],
        [ServerMessage::HeartbeatAck { sequence: 4, .. }]
    ));
    assert_eq!(renews(&session.handle(s(22), Event::Tick)), 0);
}

#[test]
fn a_stopped_is_no_result_its_lease_is_given_back_and_it_has_no_receipt() {
    // The worker had the verdict on another stream after it said Hello on this one.
    let (mut session, _) = resumed(&[1], &[1]);
    assert_eq!(session.free(s(1), &queue()), 3);
    let actions = session.handle(s(1), result(1, Reported::Stopped(None)));
    assert!(
        !actions.iter().any(|a| matches!(a, Action::Record(..))),
        "{actions:?}"
    );
    let given_back = Outcome::Release {
        delay: Duration::ZERO,
        reason: "STOPPED".to_owned(),
    };
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::RecordOwn(l, o) if *l == lease(1) && *o == given_back)),
        "{actions:?}"
    );
    assert_eq!(session.free(s(1), &queue()), 4, "its slot is free at once");
    // Said while the store is away, it is recorded when that is back: the worker says it once.
    session.handle(s(2), Event::OwnRecorded(lease(1), given_back, false));
    let again = session.handle(s(10), Event::Tick);
    assert!(
        again
            .iter()
            .any(|a| matches!(a, Action::RecordOwn(l, _) if *l == lease(1))),
        "{again:?}"
    );
}
