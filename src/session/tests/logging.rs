//! Lines of running attempts, as the rules have them.

use super::*;
use crate::error::Violation;
use crate::job::{LogLevel, NewLine, NewLines, StaleReason};

fn lines(first: u64, count: usize) -> NewLines {
    let line = NewLine {
        elapsed: None,
        level: LogLevel::Info,
        message: "a line".into(),
    };
    NewLines::check("log", first, vec![line; count]).unwrap()
}

fn says(n: u128, lines: NewLines) -> Event {
    let report = (job(n).lease, lines.last(), Ok(lines));
    frame(ClientMessage::Logs(vec![report]))
}

fn logged(actions: &[Action]) -> Vec<(Lease, NewLines)> {
    let of = |action: &Action| match action {
        Action::Log(reports) => reports.clone(),
        _ => vec![],
    };
    actions.iter().flat_map(of).collect()
}

fn receipts(actions: &[Action]) -> Vec<(u64, Verdict)> {
    let of = |message: &&ServerMessage| match message {
        ServerMessage::LogReceipts(receipts) => receipts
            .iter()
            .map(|(_, last, verdict)| (*last, verdict.clone()))
            .collect(),
        _ => vec![],
    };
    sent(actions).iter().flat_map(of).collect()
}

fn judged(last: u64) -> Event {
    let verdict = Verdict::Recorded(JobState::Running);
    Event::Logged(vec![(job(1).lease, last, verdict)])
}

#[test]
fn lines_have_a_receipt_once_they_are_recorded() {
    let mut session = running();
    let actions = session.handle(s(1), says(1, lines(1, 3)));
    assert_eq!(logged(&actions), [(job(1).lease, lines(1, 3))]);
    assert!(receipts(&actions).is_empty());
    let told = Verdict::Recorded(JobState::Running);
    assert_eq!(receipts(&session.handle(s(1), judged(3))), [(3, told)]);
    let actions = session.handle(s(1), says(1, lines(4, 1)));
    assert_eq!(logged(&actions).len(), 1);
}

#[test]
fn of_one_attempt_a_report_is_with_the_store_and_others_are_to_be_sent_again() {
    let mut session = running();
    session.handle(s(1), says(1, lines(1, 3)));
    let actions = session.handle(s(1), says(1, lines(1, 5)));
    assert!(logged(&actions).is_empty() && receipts(&actions).is_empty());
    session.handle(s(1), Event::LogFailed(vec![job(1).lease]));
    let actions = session.handle(s(2), says(1, lines(1, 5)));
    assert_eq!(logged(&actions), [(job(1).lease, lines(1, 5))]);
}

#[test]
fn bad_lines_are_rejected_and_those_of_strangers_stale() {
    let mut session = running();
    let bad = Violation::field("log.lines[0].message", "is too long");
    let report = (job(1).lease, 9, Err(bad.clone()));
    let actions = session.handle(s(1), frame(ClientMessage::Logs(vec![report])));
    assert_eq!(receipts(&actions), [(9, Verdict::Rejected(bad))]);
    let actions = session.handle(s(1), says(2, lines(1, 1)));
    assert!(logged(&actions).is_empty());
    assert!(matches!(
        receipts(&actions)[..],
        [(1, Verdict::Stale(StaleReason::Superseded, _))]
    ));
}

#[test]
fn lines_go_with_a_result_and_without_one_alone() {
    let mut session = running();
    let ended = |lines| Reported::Ended(Outcome::Success(None), Some(lines));
    let actions = session.handle(s(1), result(1, ended(lines(1, 2))));
    assert!(matches!(&actions[0], Action::Record(results, said)
        if results.len() == 1 && *said == [(job(1).lease, lines(1, 2))]));
    assert!(logged(&actions).is_empty());

    let mut session = running();
    session.handle(s(1), Event::Cancel(job(1).lease));
    let actions = session.handle(s(1), result(1, Reported::Stopped(Some(lines(1, 2)))));
    assert_eq!(logged(&actions), [(job(1).lease, lines(1, 2))]);
    assert!(!actions.iter().any(|a| matches!(a, Action::Record(..))));
}
