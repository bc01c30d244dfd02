//! A session that outlives its streams: cut, resumed, drained, lost and copied.

use super::*;

fn draining() -> Response {
    Response::Draining(proto::Draining::default())
}

fn lost(jobs: &[&str]) -> Response {
    let leases = jobs.iter().map(|job| lease(job, 1)).collect();
    Response::Lost(proto::Lost { leases })
}

fn resume_of(hello: &proto::Hello) -> (&[u8], u64, Vec<&str>) {
    let held = hello.held.iter().map(|lease| lease.job_id.as_str());
    (&hello.resume_token, hello.attach_sequence, held.collect())
}

#[test]
fn after_a_cut_the_session_goes_on_with_all_it_holds() {
    let mut bench = Bench::connected(4);
    assert_eq!(resume_of(&bench.opened[0].1), (&b""[..], 1, vec![]));
    bench.pushed(1, 7, &["a", "b", "c"]);
    bench.finish("a", output(3));
    bench.finish("b", output(1));
    bench.receipts(1, vec![receipt("b", 1, proto::ReceiptStatus::Recorded)]);
    bench.cut_by_network(1);
    bench.pass(S / 10);
    let hello = bench.hello(2);
    assert_eq!(resume_of(&hello), (&b"one"[..], 2, vec!["a", "c"]));
    assert_eq!(hello.max_in_flight, 4);
    bench.hears(2, resumed());
    assert_eq!((bench.stopped.len(), bench.reports.len()), (0, 0));
    let beat = bench.heartbeats(2).pop().expect("at once");
    assert_eq!((beat.sequence, beat.last_frame, beat.held.len()), (1, 0, 2));
    assert_eq!(bench.results(2), bench.results(1)[..1], "the same bytes");
    bench.pushed(2, 1, &["a", "b", "c", "missed"]);
    assert_eq!(bench.ran.len(), 4, "what was had is not run again");
    bench.finish("c", output(1));
    assert_eq!(bench.results(2).len(), 2);
    let connected = |note: &&Note| matches!(note, Note::Connected { resumed: true, .. });
    assert_eq!(bench.notes.iter().filter(connected).count(), 1);
}

#[test]
fn each_hello_has_a_higher_number_also_when_it_comes_to_nothing() {
    let mut bench = Bench::connected(4);
    bench.cut_by_network(1);
    for no in 2..=5 {
        bench.pass(2 * S);
        assert_eq!(bench.hello(no).attach_sequence, no);
        if no == 3 {
            bench.pass(7 * S);
            assert_eq!(bench.cut, vec![StreamNo(3)], "no Welcome came");
        } else {
            bench.cut_by_network(no);
        }
    }
    bench.pass(2 * S);
    bench.hello(6);
    bench.hears(6, welcome(b"two"));
    bench.cut_by_network(6);
    bench.pass(2 * S);
    let hello = bench.hello(7);
    assert_eq!(
        resume_of(&hello),
        (&b"two"[..], 2, vec![]),
        "a session counts from the Hello that began it"
    );
}

#[test]
fn while_leases_can_be_saved_a_stream_is_tried_every_two_seconds() {
    let mut bench = Bench::connected(4);
    bench.cut_by_network(1);
    let mut tried = vec![];
    while bench.now < 60 * S {
        bench.pass(S / 10);
        if bench.opened.len() > tried.len() + 1 {
            tried.push(bench.now);
            bench.cut_by_network(bench.opened.len() as u64);
        }
    }
    let pauses: Vec<_> = tried
        .windows(2)
        .map(|two| (two[0], two[1] - two[0]))
        .collect();
    assert!(tried[0] <= S / 10, "the first at once");
    for (at, pause) in &pauses {
        let lease_runs = *at < 25 * S;
        assert_eq!(*pause <= 2 * S + S / 10, lease_runs, "{pauses:?}");
    }
}

#[test]
fn a_resume_renews_from_the_time_its_hello_was_sent() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.pass(14 * S);
    bench.cut_by_network(1);
    // Nobody answers until the lease's last seconds.
    let mut cut = 1;
    let newest = loop {
        bench.pass(S / 10);
        let opened = bench.opened.len() as u64;
        if opened > cut && bench.now >= 22 * S {
            break opened;
        }
        if opened > cut {
            bench.cut_by_network(opened);
            cut = opened;
        }
    };
    bench.hello(newest);
    let hello_sent = bench.now;
    bench.pass(S / 2); // Welcome is some time on its way
    bench.hears(newest, resumed());
    let renewed = bench.half.renewed().unwrap();
    assert!(renewed >= 22 * S && renewed <= hello_sent, "{renewed:?}");
    bench.pass(14 * S);
    bench.pushed(newest, 1, &["b"]);
    assert_eq!(bench.ran.len(), 2, "and gives no job back");
    bench.pass(10 * S);
    assert_eq!(
        bench.stopped,
        vec![],
        "a resume in the lease's last seconds stops no handler"
    );
    bench.pass(2 * S);
    assert_eq!(bench.stopped.len(), 2, "it is one renewal, not two");
}

#[test]
fn a_welcome_that_comes_later_than_a_lease_lasts_starts_nothing() {
    let mut bench = Bench::connected(4);
    let short = || match resumed() {
        Response::Welcome(welcome) => Response::Welcome(proto::Welcome {
            lease_ttl: Some(prost_types::Duration {
                seconds: 6,
                nanos: 0,
            }),
            ..welcome
        }),
        other => other,
    };
    bench.cut_by_network(1);
    bench.pass(S);
    bench.hello(2);
    bench.pass(7 * S);
    bench.hears(2, short());
    bench.pushed(2, 1, &["a"]);
    assert_eq!(bench.ran.len(), 0, "its Hello was sent too long ago");
    bench.acks(2, 1);
    bench.pushed(2, 2, &["b"]);
    assert_eq!(bench.ran.len(), 1);
}

#[test]
fn a_hello_without_welcome_and_an_ack_of_an_older_stream_renew_nothing() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.pass(14 * S);
    bench.cut_by_network(1);
    bench.pass(S);
    bench.hello(2);
    bench.acks(1, 2);
    bench.cut_by_network(2);
    assert_eq!(bench.half.renewed(), Some(Duration::ZERO));
    bench.pass(10 * S);
    assert_eq!(
        bench.stopped,
        vec![(bench.ticket("a"), StopReason::Unrenewed)]
    );
}

#[test]
fn a_stream_that_is_never_acknowledged_is_given_up() {
    let mut bench = Bench::connected(4);
    bench.pass(14 * S);
    bench.cut_by_network(1);
    bench.pass(S);
    bench.hello(2);
    bench.hears(2, resumed());
    bench.pass(23 * S);
    assert!(!bench.cut.contains(&StreamNo(2)));
    bench.pass(2 * S);
    assert!(bench.cut.contains(&StreamNo(2)));
    bench.pass(2 * S);
    let newest = bench.opened.len() as u64;
    assert_eq!(resume_of(&bench.hello(newest)).1, newest);
}

#[test]
fn a_node_that_acknowledges_nothing_is_left_while_there_is_time_to_meet_others() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.pass(14 * S);
    assert_eq!(bench.opened.len(), 1);
    bench.pass(2 * S);
    bench.hello(2);
    bench.pushed(1, 2, &["late"]);
    assert_eq!(bench.ran.len(), 1, "it will be pushed on the new stream");
    assert!(bench.cut.is_empty(), "the answer may yet come");
    // The next one answers as little.
    bench.pass(4 * S);
    assert_eq!(bench.cut, vec![StreamNo(2)], "no Welcome came");
    bench.acks(1, 2);
    bench.hello(3);
    bench.hears(3, resumed());
    assert_eq!(bench.cut, vec![StreamNo(2), StreamNo(1)]);
    bench.acks(3, 1);
    bench.pass(10 * S);
    assert!(bench.stopped.is_empty());
}

#[test]
fn a_session_that_is_over_is_stopped_and_reported_under_its_old_token() {
    let mut bench = Bench::connected(3);
    bench.pushed(1, 1, &["a", "b", "c"]);
    bench.finish("a", output(1));
    bench.cut_by_network(1);
    bench.pass(S);
    bench.hello(2);
    bench.hears(2, welcome(b"two"));
    assert_eq!(bench.stopped.len(), 2);
    assert!(
        bench
            .stopped
            .iter()
            .all(|(_, why)| *why == StopReason::Lost)
    );
    assert_eq!(bench.reports[0].1.resume_token, b"one");
    assert!(bench.heartbeats(2)[0].held.is_empty());
    assert_eq!(bench.windows(2), vec![1], "old handlers keep their slots");
    bench.event(Event::Reported(SessionNo(1), Err(())));
    bench.finish("b", output(1));
    bench.finish("c", failed());
    bench.pass(S);
    assert_eq!(bench.windows(2).last(), Some(&3));
    let again = &bench.reports[1].1;
    assert_eq!(
        (again.results.len(), &again.resume_token[..]),
        (2, &b"one"[..])
    );
    let recorded = vec![
        receipt("a", 1, proto::ReceiptStatus::Recorded),
        receipt("b", 1, proto::ReceiptStatus::Unknown),
    ];
    bench.event(Event::Reported(SessionNo(1), Ok(recorded)));
    bench.pass(5 * S);
    assert_eq!(bench.reports.len(), 2);
    bench.pushed(2, 1, &["a"]);
    assert_eq!(
        bench.ran.len(),
        4,
        "another session's lease is another lease"
    );
}

#[test]
fn handlers_may_finish_after_their_session_if_they_were_let() {
    let mut bench = Bench::new(Config {
        finish_unrenewed: true,
        ..config(2)
    });
    bench.pushed(1, 1, &["a"]);
    bench.cut_by_network(1);
    bench.pass(60 * S);
    bench.hello(bench.opened.len() as u64);
    bench.hears(bench.opened.len() as u64, welcome(b"two"));
    assert!(bench.stopped.is_empty());
    bench.finish("a", output(1));
    assert_eq!(bench.reports[0].1.resume_token, b"one");
}

#[test]
fn a_drained_stream_carries_all_but_jobs_until_the_session_has_moved() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b", "c", "d"]);
    bench.pass(5 * S);
    bench.hears(1, draining());
    bench.pass(S);
    let hello = bench.hello(2);
    assert_eq!(
        resume_of(&hello),
        (&b"one"[..], 2, vec!["a", "b", "c", "d"])
    );
    bench.pushed(1, 2, &["late"]);
    assert_eq!(bench.ran.len(), 4, "it will be pushed on the new stream");
    bench.finish("a", output(1));
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    bench.finish("b", output(1));
    bench.hears(1, lost(&["c"]));
    bench.finish("c", failed());
    bench.pass(4 * S);
    let beat = bench.heartbeats(1).pop().unwrap();
    assert_eq!(
        (beat.last_frame, &beat.held[..]),
        (1, &[lease("b", 1), lease("d", 1)][..])
    );
    assert_eq!(bench.results(1).len(), 3);
    assert!(bench.sent.iter().all(|(no, _)| *no == StreamNo(1)));
    bench.hears(2, resumed());
    assert_eq!(bench.cut, vec![StreamNo(1)]);
    let told: Vec<_> = bench
        .results(2)
        .into_iter()
        .map(|result| {
            let stopped = matches!(result.outcome, Some(Wire::Stopped(_)));
            (result.lease.unwrap().job_id, stopped)
        })
        .collect();
    let told: Vec<_> = told
        .iter()
        .map(|(job, stopped)| (job.as_str(), *stopped))
        .collect();
    assert_eq!(
        told,
        [("b", false), ("a", true), ("c", true)],
        "the new node frees the slots of what ended meanwhile"
    );
    bench.pushed(2, 1, &["late"]);
    bench.pushed(1, 3, &["never"]);
    assert_eq!(bench.ran.len(), 5);
}

#[test]
fn a_drained_stream_is_left_as_soon_as_nothing_is_held() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.hears(1, draining());
    bench.finish("a", output(1));
    assert!(bench.cut.is_empty());
    bench.receipts(1, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    assert_eq!(bench.cut, vec![StreamNo(1)]);
    bench.pass(S);
    assert_eq!(resume_of(&bench.hello(2)), (&b"one"[..], 2, vec![]));
}

#[test]
fn a_move_that_fails_is_tried_again_from_the_drained_stream() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.hears(1, draining());
    bench.pass(S);
    bench.hello(2);
    bench.cut_by_network(2);
    bench.pushed(1, 2, &["late"]);
    bench.finish("a", output(1));
    assert_eq!((bench.ran.len(), bench.results(1).len()), (1, 1));
    bench.pass(S);
    assert_eq!(resume_of(&bench.hello(3)), (&b"one"[..], 3, vec!["a"]));
    bench.cut_by_network(1);
    bench.pass(5 * S);
    assert_eq!(bench.opened.len(), 3, "the move is under way");
    bench.hears(3, resumed());
    assert_eq!(bench.results(3).len(), 1);
}

#[test]
fn a_stream_moved_by_our_own_newer_hello_is_a_cut_like_any_other() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.hears(1, draining());
    bench.pass(S);
    bench.hello(2);
    bench.cut_by_network(2); // after the server had read its Hello
    bench.ends(1, moved());
    assert!(bench.stopped.is_empty());
    bench.pass(S);
    assert_eq!(resume_of(&bench.hello(3)), (&b"one"[..], 3, vec!["a"]));
}

#[test]
fn a_copy_is_left_the_session() {
    for newest in [1, 2] {
        let mut bench = Bench::connected(3);
        bench.pushed(1, 1, &["a", "b"]);
        bench.finish("b", output(1));
        if newest == 2 {
            bench.hears(1, draining());
            bench.pass(S);
            bench.hello(2);
        }
        bench.ends(newest, moved());
        assert_eq!(bench.stopped, vec![(bench.ticket("a"), StopReason::Lost)]);
        assert_eq!(bench.reports[0].1.resume_token, b"one");
        assert!(bench.notes.contains(&Note::Copied));
        if newest == 2 {
            assert_eq!(bench.cut, vec![StreamNo(1)], "it is the copy's as well");
        }
        bench.pass(S);
        let hello = bench.hello(newest + 1);
        assert_eq!(resume_of(&hello), (&b""[..], 1, vec![]));
        assert_eq!(hello.max_in_flight, 2);
    }
}

#[test]
fn a_new_session_waits_for_a_slot_and_one_that_goes_on_does_not() {
    let mut bench = Bench::connected(1);
    bench.pushed(1, 1, &["a"]);
    bench.cut_by_network(1);
    bench.pass(S);
    assert_eq!(bench.hello(2).max_in_flight, 1);
    bench.ends(2, moved());
    bench.pass(5 * S);
    assert_eq!(bench.opened.len(), 2);
    bench.finish("a", output(1));
    assert_eq!(bench.opened.len(), 3);
}

#[test]
fn with_too_many_results_unsettled_a_session_goes_on_without_new_jobs() {
    let mut bench = Bench::connected(4);
    for frame in 1..=UNRECEIPTED_MAX as u64 {
        let job = format!("job-{frame}");
        bench.pushed(1, frame, &[&job]);
        bench.finish(&job, failed());
    }
    bench.cut_by_network(1);
    bench.pass(S);
    let hello = bench.hello(2);
    assert_eq!(
        (hello.max_in_flight, hello.held.len()),
        (1, UNRECEIPTED_MAX)
    );
    bench.hears(2, resumed());
    assert_eq!(bench.windows(2), vec![0]);
}

#[test]
fn a_shutdown_without_a_stream_goes_on_with_what_is_held() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.cut_by_network(1);
    bench.event(Event::Shutdown(20 * S));
    assert_eq!(bench.end, None);
    bench.pass(S);
    bench.hello(2);
    bench.hears(2, resumed());
    let goodbye = |(no, sent): &(StreamNo, Request)| {
        *no == StreamNo(2) && matches!(sent, Request::Goodbye(_))
    };
    assert!(bench.sent.iter().any(goodbye));
    bench.hears(
        2,
        Response::CapacityApplied(proto::CapacityApplied {
            goodbye: true,
            ..Default::default()
        }),
    );
    bench.finish("a", output(1));
    bench.receipts(2, vec![receipt("a", 1, proto::ReceiptStatus::Recorded)]);
    assert_eq!(bench.half_closed, vec![StreamNo(2)]);
    bench.ends(2, End::default());
    assert_eq!(bench.end, Some(None));
}

#[test]
fn a_shutdown_without_a_stream_and_with_nothing_held_ends_at_once() {
    let mut bench = Bench::connected(4);
    bench.cut_by_network(1);
    bench.event(Event::Shutdown(20 * S));
    assert_eq!(bench.end, Some(None));

    let mut bench = Bench::connected(4);
    bench.cut_by_network(1);
    bench.pass(S);
    bench.hello(2);
    bench.event(Event::Shutdown(20 * S));
    assert_eq!(
        (&bench.cut[..], bench.end),
        (&[StreamNo(2)][..], Some(None))
    );
}

#[test]
fn a_worker_that_ends_stays_on_a_drained_stream_as_long_as_it_can() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.hears(1, draining());
    bench.pass(S);
    bench.hello(2);
    bench.event(Event::Shutdown(20 * S));
    assert_eq!(bench.cut, vec![StreamNo(2)]);
    bench.pass(2 * S);
    assert_eq!(bench.opened.len(), 2);
    bench.ends(1, moved()); // the server had read that Hello
    bench.pass(S);
    assert_eq!(resume_of(&bench.hello(3)), (&b"one"[..], 3, vec!["a"]));
    assert!(bench.stopped.is_empty());
}

#[test]
fn a_session_that_is_over_while_the_worker_ends_is_still_reported() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.finish("a", output(1));
    bench.cut_by_network(1);
    bench.event(Event::Shutdown(20 * S));
    bench.pass(S);
    bench.hello(2);
    bench.hears(2, welcome(b"two"));
    assert_eq!(bench.reports[0].1.resume_token, b"one");
    let recorded = vec![receipt("a", 1, proto::ReceiptStatus::Recorded)];
    bench.event(Event::Reported(SessionNo(1), Ok(recorded)));
    bench.ends(2, End::default());
    assert_eq!(bench.end, Some(None));
}

#[test]
fn health_counts_from_the_last_renewal_and_a_resume_is_one() {
    let mut bench = Bench::connected(4);
    bench.pass(12 * S);
    bench.acks(1, 2);
    bench.cut_by_network(1);
    assert_eq!(bench.half.renewed(), Some(10 * S));
    bench.pass(S);
    bench.hello(2);
    assert_eq!(bench.half.renewed(), Some(10 * S));
    bench.hears(2, resumed());
    assert!(bench.half.renewed() >= Some(12 * S));
}

#[test]
fn a_pause_that_a_full_node_asks_for_costs_no_leases() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    let end = End {
        retry_after: Some(60 * S),
        ..End::default()
    };
    bench.event(Event::Ended(StreamNo(1), end));
    bench.pass(7 * S);
    assert_eq!(bench.hello(2).attach_sequence, 2);
    assert!(bench.stopped.is_empty());
}
