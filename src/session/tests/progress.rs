//! Reports of running attempts, as the rules have them.

use super::*;
use crate::job::{Progress, StaleReason};
use crate::session::message::ClientMessage;

fn report(revision: u64, checkpoint: &[u8]) -> Progress {
    Progress {
        percent: Some(revision as u32),
        note: None,
        checkpoint: (!checkpoint.is_empty()).then(|| checkpoint.to_vec().into()),
        revision,
    }
}

fn reports(n: u128, report: Progress) -> Event {
    frame(ClientMessage::Progress(vec![(job(n).lease, report)]))
}

fn recorded(actions: &[Action]) -> Vec<Progress> {
    actions
        .iter()
        .flat_map(|action| match action {
            Action::Report(reports) => reports.iter().map(|(_, report)| report.clone()).collect(),
            _ => vec![],
        })
        .collect()
}

fn receipts(actions: &[Action]) -> Vec<(u64, Verdict)> {
    sent(actions)
        .iter()
        .flat_map(|message| match message {
            ServerMessage::ProgressReceipts(receipts) => receipts
                .iter()
                .map(|(_, revision, verdict)| (*revision, verdict.clone()))
                .collect(),
            _ => vec![],
        })
        .collect()
}

fn judged(report: Progress) -> Event {
    let verdict = Verdict::Recorded(JobState::Running);
    Event::ProgressRecorded(vec![(job(1).lease, report, verdict)])
}

#[test]
fn a_checkpoint_has_a_receipt_and_plain_progress_has_none() {
    let mut session = running();
    let told = Verdict::Recorded(JobState::Running);
    for (revision, checkpoint, expected) in [(1, &b""[..], vec![]), (2, b"c", vec![(2, told)])] {
        let report = report(revision, checkpoint);
        let actions = session.handle(s(1), reports(1, report.clone()));
        assert_eq!(recorded(&actions), [report.clone()]);
        assert_eq!(receipts(&session.handle(s(1), judged(report))), expected);
    }
}

#[test]
fn of_many_reports_one_is_with_the_store_and_the_rest_is_one() {
    let mut session = running();
    session.handle(s(1), reports(1, report(1, b"")));
    for (revision, checkpoint) in [(2, &b"two"[..]), (3, b"three"), (4, b"")] {
        let actions = session.handle(s(1), reports(1, report(revision, checkpoint)));
        assert!(recorded(&actions).is_empty());
    }
    let actions = session.handle(s(1), judged(report(1, b"")));
    assert_eq!(recorded(&actions), [report(4, b"three")]);
    let actions = session.handle(s(1), judged(report(4, b"three")));
    assert_eq!(receipts(&actions)[0].0, 4, "it counts for 2 and 3");
    let actions = session.handle(s(1), reports(1, report(5, b"")));
    assert_eq!(recorded(&actions), [report(5, b"")]);
}

#[test]
fn a_report_that_could_not_be_recorded_is_taken_again() {
    let mut session = running();
    session.handle(s(1), reports(1, report(1, b"c")));
    session.handle(s(1), Event::ProgressFailed(vec![job(1).lease]));
    let actions = session.handle(s(2), reports(1, report(1, b"c")));
    assert_eq!(recorded(&actions).len(), 1);
}

#[test]
fn what_breaks_a_bound_is_rejected_and_what_is_not_held_is_stale() {
    let mut session = running();
    let bad = [
        Progress {
            percent: Some(101),
            ..report(1, b"")
        },
        Progress {
            note: Some("a\0".into()),
            ..report(1, b"")
        },
        Progress {
            note: Some("n".repeat(1025)),
            ..report(1, b"")
        },
        report(1, &[0; 64 * 1024 + 1]),
    ];
    for report in bad {
        let actions = session.handle(s(1), reports(1, report));
        assert!(recorded(&actions).is_empty());
        assert!(matches!(
            receipts(&actions)[..],
            [(1, Verdict::Rejected(_))]
        ));
    }
    let actions = session.handle(s(1), reports(2, report(1, b"c")));
    assert!(matches!(
        receipts(&actions)[..],
        [(1, Verdict::Stale(StaleReason::Superseded, _))]
    ));
    assert!(sent(&session.handle(s(1), reports(2, report(1, b"")))).is_empty());
    let actions = session.handle(s(1), reports(1, report(0, b"c")));
    assert!(matches!(
        actions.last(),
        Some(Action::Close(Some(Error::InvalidArgument(_))))
    ));
}
