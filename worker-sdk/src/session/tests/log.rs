//! What handlers say.

use super::*;
use proto::ReceiptStatus::{Recorded, Rejected, Stale};
use proto::log_line::When;

impl Bench {
    /// A handler says lines; `lines` is what it has said before.
    fn logs(&mut self, job: &str, lines: &mut Lines, messages: &[&str]) {
        for message in messages {
            lines.push(Line {
                elapsed: self.now,
                level: proto::LogLevel::Warn,
                message: (*message).to_owned(),
            });
        }
        let ticket = self.ticket(job);
        self.event(Event::Said(ticket, Said(lines.take())));
    }

    fn logged(&self, no: u64) -> Vec<proto::LogReport> {
        let of = self.sent.iter().filter(|(sent, _)| *sent == StreamNo(no));
        of.filter_map(|(_, message)| match message {
            Request::Logs(logs) => Some(logs.reports.clone()),
            _ => None,
        })
        .flatten()
        .collect()
    }

    fn log_receipt(&mut self, no: u64, job: &str, last: u64, status: proto::ReceiptStatus) {
        let receipt = proto::LogReceipt {
            lease: Some(lease(job, 1)),
            last,
            status: status.into(),
            problem: None,
        };
        let receipts = vec![receipt];
        self.hears(no, Response::LogReceipts(proto::LogReceipts { receipts }));
    }
}

fn words(log: Option<&proto::LogLines>) -> (u64, Vec<&str>) {
    log.map_or((0, vec![]), |log| {
        let messages = log.lines.iter().map(|line| line.message.as_str());
        (log.first, messages.collect())
    })
}

#[test]
fn lines_are_sent_until_their_receipt_one_report_at_a_time() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    let mut said = Lines::default();
    bench.logs("a", &mut said, &["one", "two"]);
    bench.logs("a", &mut said, &["three"]);
    let sent = bench.logged(1);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(words(sent[0].log.as_ref()), (1, vec!["one", "two"]));
    let line = &sent[0].log.as_ref().unwrap().lines[0];
    assert_eq!(line.level(), proto::LogLevel::Warn);
    assert!(matches!(line.when, Some(When::Elapsed(_))));
    assert_eq!((line.number, line.attempt), (0, 0), "the server knows them");
    bench.log_receipt(1, "a", 2, Recorded);
    let sent = bench.logged(1);
    assert_eq!(words(sent[1].log.as_ref()), (3, vec!["three"]));
    bench.pass(11 * S);
    let sent = bench.logged(1);
    assert_eq!(sent[2], sent[1], "no receipt came");
    bench.log_receipt(1, "a", 3, Recorded);
    bench.pass(60 * S);
    assert_eq!(bench.logged(1).len(), 3);
}

#[test]
fn a_result_takes_along_what_has_no_receipt() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b", "c"]);
    let mut said = Lines::default();
    bench.logs("a", &mut said, &["one"]);
    bench.log_receipt(1, "a", 1, Recorded);
    bench.logs("a", &mut said, &["two"]);
    bench.logs("a", &mut said, &["three"]);
    bench.finish("a", output(1));
    bench.finish("b", failed());
    let results = bench.results(1);
    assert_eq!(words(results[0].log.as_ref()), (2, vec!["two", "three"]));
    assert_eq!(results[1].log, None);
    // Nothing more of it is sent alone, and the same again without a receipt.
    let sent = bench.logged(1).len();
    bench.pass(11 * S);
    assert_eq!(bench.logged(1).len(), sent);
    assert_eq!(bench.results(1)[2], results[0]);
    bench.receipts(1, vec![receipt("a", 1, Recorded)]);
    // One that was told to stop says why.
    bench.hears(
        1,
        Response::Cancels(proto::Cancels {
            cancels: vec![proto::CancelAttempt {
                lease: Some(lease("c", 1)),
                reason: proto::CancelReason::Requested.into(),
            }],
        }),
    );
    bench.logs("c", &mut Lines::default(), &["rolled back"]);
    bench.log_receipt(1, "c", 1, proto::ReceiptStatus::Unspecified);
    bench.finish("c", failed());
    let last = bench.results(1).pop().unwrap();
    assert!(matches!(last.outcome, Some(Wire::Stopped(_))));
    assert_eq!(words(last.log.as_ref()), (1, vec!["rolled back"]));
}

#[test]
fn lines_go_on_by_another_stream_and_by_report_results() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    let mut said = Lines::default();
    bench.logs("a", &mut said, &["one"]);
    bench.cut_by_network(1);
    bench.logs("a", &mut said, &["two"]);
    bench.pass(S);
    bench.event(Event::Written(StreamNo(2)));
    bench.hears(2, resumed());
    let sent = bench.logged(2);
    assert_eq!(words(sent[0].log.as_ref()), (1, vec!["one", "two"]));
    bench.cut_by_network(2);
    bench.pass(S);
    bench.event(Event::Written(StreamNo(3)));
    // The session is over.
    bench.hears(3, welcome(b"two"));
    bench.logs("a", &mut said, &["three"]);
    bench.finish("a", output(1));
    let (_, call) = bench.reports.last().expect("it is reported");
    let log = call.results[0].log.as_ref();
    assert_eq!(words(log), (1, vec!["one", "two", "three"]));
}

#[test]
fn what_is_refused_is_not_sent_again() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a", "b", "c"]);
    let mut said = Lines::default();
    bench.logs("a", &mut said, &["bad"]);
    bench.log_receipt(1, "a", 1, Rejected);
    bench.logs("a", &mut said, &["good"]);
    assert_eq!(
        words(bench.logged(1)[1].log.as_ref()),
        (2, vec!["good"]),
        "the gap is counted"
    );
    bench.logs("b", &mut Lines::default(), &["x"]);
    bench.log_receipt(1, "b", 1, Stale);
    assert_eq!(bench.stopped, [(bench.ticket("b"), StopReason::Lost)]);
    // A result that was refused for its lines goes without them.
    bench.logs("c", &mut Lines::default(), &["y"]);
    bench.finish("c", output(7));
    let refused = proto::Receipt {
        problem: Some(proto::Problem {
            field: "log.lines[0].message".into(),
            ..Default::default()
        }),
        ..receipt("c", 1, Rejected)
    };
    bench.receipts(1, vec![refused]);
    let results = bench.results(1);
    assert_eq!(results.len(), 2, "{results:?}");
    assert_eq!(results[0].outcome, results[1].outcome);
    assert_eq!(results[1].log, None);
}

#[test]
fn without_a_server_the_newest_lines_are_kept() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.cut_by_network(1);
    let mut said = Lines::default();
    let many = vec!["x"; 900];
    for _ in 0..3 {
        bench.logs("a", &mut said, &many);
    }
    bench.logs("a", &mut said, &["last"]);
    bench.finish("a", output(1));
    bench.pass(S);
    bench.event(Event::Written(StreamNo(2)));
    bench.hears(2, resumed());
    let results = bench.results(2);
    let log = results[0].log.as_ref().unwrap();
    assert_eq!((log.first, log.lines.len()), (1_702, 1_000));
    assert_eq!(log.lines[999].message, "last");
}

#[test]
fn what_was_dropped_before_it_came_here_is_a_gap() {
    let mut bench = Bench::connected(4);
    bench.pushed(1, 1, &["a"]);
    bench.cut_by_network(1);
    let mut said = Lines::default();
    bench.logs("a", &mut said, &["first"]);
    let long = "x".repeat(200 * 1024);
    bench.logs("a", &mut said, &["lost", &long, &long]);
    bench.finish("a", output(1));
    bench.pass(S);
    bench.event(Event::Written(StreamNo(2)));
    bench.hears(2, resumed());
    let log = bench.results(2)[0].log.clone().unwrap();
    assert_eq!((log.first, log.lines.len()), (4, 1));
}
