//! A worker's half on the bench: what it asked for is kept, its writers are
//! always free, and time passes when the test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::*;
use crate::proto;
use proto::lease_jobs_request::Message as Request;
use proto::lease_jobs_response::Message as Response;
use proto::result::Outcome as Wire;

pub const S: Duration = Duration::from_secs(1);

pub fn config(concurrency: usize) -> Config {
    Config {
        worker: "test".into(),
        queues: vec![proto::QueueSubscription {
            queue: "default".into(),
            max_in_flight: 0,
        }],
        kinds: BTreeSet::from(["known".to_owned()]),
        concurrency,
        lease_ttl: None,
        labels: BTreeMap::new(),
        sdk: "test".into(),
        stop_grace: 5 * S,
        grace: 25 * S,
        finish_unrenewed: false,
        seed: 7,
    }
}

pub fn lease(job: &str, attempt: u32) -> proto::Lease {
    proto::Lease {
        job_id: job.into(),
        attempt,
    }
}

pub fn leased(job: &str, attempt: u32, kind: &str) -> proto::LeasedJob {
    proto::LeasedJob {
        lease: Some(lease(job, attempt)),
        kind: kind.into(),
        ..Default::default()
    }
}

pub fn welcome(token: &[u8]) -> Response {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    Response::Welcome(proto::Welcome {
        resume_token: token.to_vec(),
        heartbeat_interval: seconds(10),
        lease_ttl: seconds(30),
        max_output_bytes: 1024,
        ..Default::default()
    })
}

/// The answer of a node to which the session moves; its token is not asked for.
pub fn resumed() -> Response {
    let Response::Welcome(mut welcome) = welcome(b"") else {
        unreachable!()
    };
    welcome.resumed = true;
    Response::Welcome(welcome)
}

pub fn moved() -> End {
    End {
        moved: true,
        ..End::default()
    }
}

pub fn receipt(job: &str, attempt: u32, status: proto::ReceiptStatus) -> proto::Receipt {
    proto::Receipt {
        lease: Some(lease(job, attempt)),
        status: status.into(),
        ..Default::default()
    }
}

pub fn output(bytes: usize) -> Outcome {
    let body = Some(proto::payload::Body::Data(vec![b'x'; bytes].into()));
    Outcome::Success(proto::Payload {
        content_type: String::new(),
        body,
    })
}

pub fn failed() -> Outcome {
    Outcome::Failure(proto::Failure {
        r#type: "T".into(),
        message: "m".into(),
        ..Default::default()
    })
}

/// A worker's half with what it has asked for so far. Writers are always free.
pub struct Bench {
    pub half: Sessions,
    pub now: Duration,
    pub opened: Vec<(StreamNo, proto::Hello)>,
    pub sent: Vec<(StreamNo, Request)>,
    pub ran: Vec<(Ticket, String)>,
    pub stopped: Vec<(Ticket, StopReason)>,
    pub reports: Vec<(SessionNo, proto::ReportResultsRequest)>,
    pub saved: Vec<(Waiter, Saved)>,
    pub notes: Vec<Note>,
    pub half_closed: Vec<StreamNo>,
    pub cut: Vec<StreamNo>,
    pub end: Option<Option<String>>,
}

impl Bench {
    /// With a first session that is welcome and renewed.
    pub fn connected(concurrency: usize) -> Self {
        Self::new(config(concurrency))
    }

    pub fn new(config: Config) -> Self {
        let mut bench = Self {
            half: Sessions::new(config),
            now: Duration::ZERO,
            opened: vec![],
            sent: vec![],
            ran: vec![],
            stopped: vec![],
            reports: vec![],
            saved: vec![],
            notes: vec![],
            half_closed: vec![],
            cut: vec![],
            end: None,
        };
        bench.event(Event::Tick);
        bench.event(Event::Written(StreamNo(1)));
        bench.hears(1, welcome(b"one"));
        bench.acks(1, 1);
        bench
    }

    pub fn event(&mut self, event: Event) {
        let mut actions: VecDeque<_> = self.half.handle(self.now, event).into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Open(
                    no,
                    proto::LeaseJobsRequest {
                        message: Some(Request::Hello(hello)),
                    },
                ) => self.opened.push((no, hello)),
                Action::Open(..) => panic!("a stream begins with Hello"),
                Action::Send(no, message) => {
                    self.sent.push((no, message.message.unwrap()));
                    actions.extend(self.half.handle(self.now, Event::Written(no)));
                }
                Action::HalfClose(no) => self.half_closed.push(no),
                Action::Cut(no) => self.cut.push(no),
                Action::Run(ticket, job) => self.ran.push((ticket, job.lease.unwrap().job_id)),
                Action::Stop(ticket, reason, _) => self.stopped.push((ticket, reason)),
                Action::Report(no, call) => self.reports.push((no, call)),
                Action::Saved(waiter, saved) => self.saved.push((waiter, saved)),
                Action::Note(note) => self.notes.push(note),
                Action::End(why) => self.end = Some(why),
            }
        }
    }

    pub fn hears(&mut self, no: u64, message: Response) {
        self.event(Event::Received(
            StreamNo(no),
            proto::LeaseJobsResponse {
                message: Some(message),
            },
        ));
    }

    pub fn acks(&mut self, no: u64, sequence: u64) {
        self.hears(
            no,
            Response::HeartbeatAck(proto::HeartbeatAck {
                sequence,
                lease_ttl: None,
            }),
        );
    }

    pub fn pushed(&mut self, no: u64, frame: u64, jobs: &[&str]) {
        let jobs = jobs.iter().map(|job| leased(job, 1, "known")).collect();
        self.hears(no, Response::Jobs(proto::Jobs { frame, jobs }));
    }

    pub fn receipts(&mut self, no: u64, receipts: Vec<proto::Receipt>) {
        self.hears(no, Response::Receipts(proto::Receipts { receipts }));
    }

    /// Lets time pass, waking the half whenever it asks for it.
    pub fn pass(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.half.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.event(Event::Tick);
        }
        self.now = end;
    }

    pub fn finish(&mut self, job: &str, outcome: Outcome) {
        let ticket = self.ticket(job);
        self.event(Event::Finished(ticket, outcome));
    }

    pub fn ticket(&self, job: &str) -> Ticket {
        self.ran
            .iter()
            .rev()
            .find(|(_, ran)| ran == job)
            .expect("it ran")
            .0
    }

    pub fn results(&self, no: u64) -> Vec<proto::Result> {
        let of = self.sent.iter().filter(|(sent, _)| *sent == StreamNo(no));
        of.filter_map(|(_, message)| {
            if let Request::Results(results) = message {
                Some(results.results.clone())
            } else {
                None
            }
        })
        .flatten()
        .collect()
    }

    pub fn outcomes(&self, no: u64) -> Vec<Wire> {
        self.results(no)
            .into_iter()
            .map(|result| result.outcome.unwrap())
            .collect()
    }

    pub fn heartbeats(&self, no: u64) -> Vec<proto::Heartbeat> {
        let of = self.sent.iter().filter(|(sent, _)| *sent == StreamNo(no));
        of.filter_map(|(_, message)| {
            if let Request::Heartbeat(beat) = message {
                Some(beat.clone())
            } else {
                None
            }
        })
        .collect()
    }

    /// The windows that were told after Hello.
    pub fn windows(&self, no: u64) -> Vec<u32> {
        let of = self.sent.iter().filter(|(sent, _)| *sent == StreamNo(no));
        of.filter_map(|(_, message)| {
            if let Request::SetCapacity(set) = message {
                Some(set.max_in_flight)
            } else {
                None
            }
        })
        .collect()
    }

    /// The newest stream, which must have this number, with its Hello written.
    pub fn hello(&mut self, no: u64) -> proto::Hello {
        let (newest, hello) = self.opened.last().cloned().expect("a Hello");
        assert_eq!(newest, StreamNo(no));
        self.event(Event::Written(newest));
        hello
    }

    pub fn ends(&mut self, no: u64, end: End) {
        self.event(Event::Ended(StreamNo(no), end));
    }

    pub fn cut_by_network(&mut self, no: u64) {
        self.event(Event::Ended(
            StreamNo(no),
            End {
                message: "cut".into(),
                ..End::default()
            },
        ));
    }
}
