//! What handlers report on the way.

use super::*;

fn percent(percent: u32) -> proto::Progress {
    proto::Progress {
        percent: Some(percent),
        ..Default::default()
    }
}

fn checkpoint(data: &'static [u8]) -> proto::Progress {
    proto::Progress {
        checkpoint: Some(data.into()),
        ..Default::default()
    }
}

fn told(job: &str, revision: u64, status: proto::ReceiptStatus) -> proto::Receipt {
    proto::Receipt {
        progress_revision: revision,
        ..receipt(job, 1, status)
    }
}

impl Bench {
    fn says(&mut self, job: &str, report: proto::Progress, waiter: Option<u64>) {
        let ticket = self.ticket(job);
        self.event(Event::Progress(ticket, report, waiter.map(Waiter)));
    }

    fn progress(&self, no: u64) -> Vec<proto::Progress> {
        let of = self.sent.iter().filter(|(sent, _)| *sent == StreamNo(no));
        of.filter_map(|(_, message)| match message {
            Request::Progress(reports) => Some(reports.reports.clone()),
            _ => None,
        })
        .flatten()
        .flat_map(|report| report.progress)
        .collect()
    }
}

#[test]
fn a_checkpoint_is_sent_until_its_receipt_and_progress_once() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b"]);
    bench.says("a", checkpoint(b"c"), Some(7));
    bench.says("b", percent(5), None);
    bench.pass(11 * S);
    let sent = bench.progress(1);
    assert_eq!(sent.len(), 3, "{sent:?}");
    assert_eq!((sent[0].revision, &sent[2]), (1, &sent[0]));
    assert!(bench.saved.is_empty());
    bench.receipts(1, vec![told("a", 1, proto::ReceiptStatus::Recorded)]);
    assert_eq!(bench.saved, [(Waiter(7), Saved::Durable)]);
    bench.pass(30 * S);
    assert_eq!(bench.progress(1).len(), 3);
}

#[test]
fn reports_are_numbered_on_from_those_of_earlier_attempts_and_merged() {
    let mut bench = Bench::connected(4);
    let job = proto::LeasedJob {
        progress_revision: 41,
        ..leased("a", 1, "known")
    };
    let (frame, jobs) = (1, vec![job]);
    bench.hears(1, Response::Jobs(proto::Jobs { frame, jobs }));
    bench.says("a", checkpoint(b"one"), Some(1));
    bench.cut_by_network(1);
    bench.says("a", percent(50), None);
    bench.says("a", checkpoint(b"two"), Some(2));
    bench.pass(S);
    bench.event(Event::Written(StreamNo(2)));
    bench.hears(2, resumed());
    let sent = bench.progress(2);
    assert_eq!(sent.len(), 1, "at once, in one: {sent:?}");
    assert_eq!((sent[0].revision, sent[0].percent), (44, Some(50)));
    assert_eq!(sent[0].checkpoint.as_deref(), Some(&b"two"[..]));
    bench.receipts(2, vec![told("a", 44, proto::ReceiptStatus::Recorded)]);
    let durable = [1, 2].map(|n| (Waiter(n), Saved::Durable));
    assert_eq!(bench.saved, durable, "it counts for all before it");
}

#[test]
fn a_receipt_of_an_older_checkpoint_leaves_the_newer_to_be_sent() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.says("a", checkpoint(b"one"), Some(1));
    bench.says("a", checkpoint(b"two"), Some(2));
    bench.receipts(1, vec![told("a", 1, proto::ReceiptStatus::Recorded)]);
    assert_eq!(bench.saved, [(Waiter(1), Saved::Durable)]);
    bench.pass(11 * S);
    let sent = bench.progress(1);
    assert_eq!(sent.last().map(|report| report.revision), Some(2));
    assert!(sent.len() >= 3, "two came again: {sent:?}");
}

#[test]
fn a_stale_checkpoint_stops_its_handler_and_a_refused_one_does_not() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b"]);
    bench.says("a", checkpoint(b"c"), Some(1));
    bench.says("b", checkpoint(b"c"), Some(2));
    let receipts = vec![
        told("a", 1, proto::ReceiptStatus::Stale),
        told("b", 1, proto::ReceiptStatus::Rejected),
    ];
    bench.receipts(1, receipts);
    assert_eq!(bench.stopped, [(bench.ticket("a"), StopReason::Lost)]);
    assert!(matches!(
        bench.saved[..],
        [(Waiter(1), Saved::Lost), (Waiter(2), Saved::Refused(_))]
    ));
}

#[test]
fn a_receipt_of_a_checkpoint_is_none_of_a_result() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.says("a", checkpoint(b"c"), Some(1));
    bench.finish("a", output(1));
    assert_eq!(bench.saved, [(Waiter(1), Saved::Lost)], "it has ended");
    bench.receipts(1, vec![told("a", 1, proto::ReceiptStatus::Recorded)]);
    bench.pass(11 * S);
    assert_eq!(bench.results(1).len(), 2, "the result is owed still");
}

#[test]
fn nobody_waits_for_ever_for_a_session_that_is_over() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.says("a", checkpoint(b"c"), Some(1));
    bench.cut_by_network(1);
    bench.pass(S);
    bench.event(Event::Written(StreamNo(2)));
    bench.hears(2, welcome(b"two"));
    assert_eq!(bench.saved, [(Waiter(1), Saved::Lost)]);
    bench.says("a", checkpoint(b"d"), Some(2));
    assert_eq!(bench.saved[1], (Waiter(2), Saved::Lost));
    assert!(bench.progress(2).is_empty());
}

#[test]
fn who_waits_for_a_checkpoint_is_answered_when_the_worker_is_refused_for_good() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.says("a", checkpoint(b"c"), Some(7));
    let end = End {
        fatal: true,
        ..End::default()
    };
    bench.event(Event::Ended(StreamNo(1), end));
    assert_eq!(bench.saved, [(Waiter(7), Saved::Lost)]);
    bench.says("a", checkpoint(b"d"), Some(8));
    assert_eq!(bench.saved[1..], [(Waiter(8), Saved::Lost)]);
}
