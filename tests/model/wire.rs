//! What travels between the two halves, small enough to be copied a million times, and its translation into the words of
//! either half. The two are told apart on purpose: each is given its own type, as it is by its own decoder.

use leasehold::job::{
    Failure, JobId, JobState, Lease, LeasedJob, Outcome, Payload, Priority, StaleReason, Verdict,
};
use leasehold::session::message::{
    CancelReason, ClientMessage, Hello, Reported, Resume, ServerMessage, Subscription, Welcome,
};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;
use worker_sdk::proto as sdk;

/// The shortest lease that there is: a session lives for two long steps of the clock, and at the third it may be ended.
pub const TTL: Duration = Duration::from_secs(10);
/// A worker's heartbeats.
pub const INTERVAL: Duration = Duration::from_millis(3_333);

/// A session, by the order in which the store made them.
pub type Id = u8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Up {
    Hello {
        window: u32,
        resume: Option<(Id, u64)>,
        held: Vec<Lease>,
    },
    Capacity(u32),
    Beat {
        sequence: u64,
        last_frame: u64,
        held: Vec<Lease>,
    },
    Results(Vec<(Lease, Said)>),
    Goodbye,
    HalfClose,
}

/// How an attempt ended, without the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    Success,
    Failure,
    Release,
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Down {
    Welcome {
        session: Id,
        resumed: bool,
    },
    Jobs(u64, Vec<(Lease, Option<Duration>)>),
    Receipts(Vec<(Lease, Told)>),
    Cancels(Vec<(Lease, bool)>),
    Lost(Vec<Lease>),
    Ack(u64),
    Applied {
        frame: u64,
        goodbye: bool,
    },
    Draining,
    /// The end of the stream; true: SESSION_MOVED.
    End(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Told {
    Recorded,
    Stale,
    Rejected,
    Unknown,
}

pub fn job_id(job: usize) -> JobId {
    JobId::from_store(Uuid::from_u128(job as u128))
}

pub fn job_of(lease: Lease) -> usize {
    lease.job.uuid().as_u128() as usize
}

pub fn told(verdict: &Verdict) -> Told {
    match verdict {
        Verdict::Recorded(_) => Told::Recorded,
        Verdict::Stale(..) => Told::Stale,
        Verdict::Rejected(_) => Told::Rejected,
        Verdict::Unknown => Told::Unknown,
    }
}

pub fn verdict(told: Told) -> Verdict {
    match told {
        Told::Recorded => Verdict::Recorded(JobState::Running),
        Told::Stale => Verdict::Stale(StaleReason::Superseded, JobState::Running),
        Told::Rejected | Told::Unknown => Verdict::Unknown,
    }
}

pub fn outcome(said: Said) -> Outcome {
    match said {
        Said::Success => Outcome::Success(None),
        Said::Failure => Outcome::Failure(Failure::default()),
        Said::Release | Said::Stopped => Outcome::Release {
            delay: Duration::ZERO,
            reason: String::new(),
        },
    }
}

pub fn token(session: Id) -> Vec<u8> {
    vec![session; 32]
}

/// To the server's half.
pub fn client_message(up: Up, queue: &str) -> ClientMessage {
    match up {
        Up::Hello {
            window,
            resume,
            held,
        } => ClientMessage::Hello(Box::new(hello(window, resume, held, queue))),
        Up::Capacity(max_in_flight) => ClientMessage::SetCapacity {
            max_in_flight,
            queues: Vec::new(),
        },
        Up::Beat {
            sequence,
            last_frame,
            held,
        } => ClientMessage::Heartbeat {
            sequence,
            last_frame,
            held,
        },
        Up::Results(results) => {
            let reported = |(lease, said)| match said {
                Said::Stopped => (lease, Reported::Stopped(None)),
                said => (lease, Reported::Ended(outcome(said), None)),
            };
            ClientMessage::Results(results.into_iter().map(reported).collect())
        }
        Up::Goodbye | Up::HalfClose => ClientMessage::Goodbye,
    }
}

pub fn hello(window: u32, resume: Option<(Id, u64)>, held: Vec<Lease>, queue: &str) -> Hello {
    Hello {
        protocol: 1,
        queues: vec![Subscription {
            queue: leasehold::job::QueueName::from_store(queue),
            max_in_flight: None,
        }],
        max_in_flight: window,
        max_frame_bytes: 4 << 20,
        resume: resume.map(|(session, attach_sequence)| Resume {
            token: token(session).into(),
            attach_sequence,
        }),
        held,
        ..Hello::default()
    }
}

/// Of the server's half.
pub fn down(message: ServerMessage) -> Down {
    match message {
        ServerMessage::Welcome(welcome) => Down::Welcome {
            session: welcome.resume_token[0],
            resumed: welcome.resumed,
        },
        ServerMessage::Jobs { frame, jobs } => {
            Down::Jobs(frame, jobs.iter().map(|j| (j.lease, j.time_left)).collect())
        }
        ServerMessage::Receipts(receipts) => Down::Receipts(
            receipts
                .iter()
                .map(|(lease, verdict)| (*lease, told(verdict)))
                .collect(),
        ),
        ServerMessage::Cancels(cancels) => {
            let cancel = |(lease, reason)| (lease, reason == CancelReason::Timeout);
            Down::Cancels(cancels.into_iter().map(cancel).collect())
        }
        ServerMessage::Lost(leases) => Down::Lost(leases),
        ServerMessage::HeartbeatAck { sequence, .. } => Down::Ack(sequence),
        ServerMessage::CapacityApplied {
            last_frame,
            goodbye,
            ..
        } => Down::Applied {
            frame: last_frame,
            goodbye,
        },
        ServerMessage::Draining { .. } => Down::Draining,
        other => panic!("not in this model: {other:?}"),
    }
}

pub fn welcome(session: Id, resumed: bool, window: u32) -> Box<Welcome> {
    Box::new(Welcome {
        session: leasehold::job::SessionId::from_store(Uuid::from_u128(session.into())),
        resume_token: token(session).into(),
        resumed,
        node: String::new(),
        heartbeat_interval: INTERVAL,
        lease_ttl: TTL,
        max_in_flight: window,
    })
}

pub fn leased(lease: Lease, time_left: Option<Duration>, queue: &str) -> LeasedJob {
    LeasedJob {
        lease,
        queue: leasehold::job::QueueName::from_store(queue),
        kind: leasehold::job::Kind::from_store("k"),
        payload: Payload::default(),
        headers: BTreeMap::new(),
        priority: Priority::Normal,
        failures: 0,
        max_attempts: 2,
        lost_leases: 0,
        releases: 0,
        time_left,
        waited: Duration::ZERO,
        checkpoint: None,
        progress_revision: 0,
        resent: false,
    }
}

fn sdk_lease(lease: Lease) -> sdk::Lease {
    sdk::Lease {
        job_id: job_of(lease).to_string(),
        attempt: lease.attempt,
    }
}

pub fn lease(lease: &sdk::Lease) -> Lease {
    Lease {
        job: job_id(lease.job_id.parse().unwrap()),
        attempt: lease.attempt,
    }
}

fn leases(leases: &[sdk::Lease]) -> Vec<Lease> {
    leases.iter().map(lease).collect()
}

/// Of the worker's half.
pub fn up(message: sdk::LeaseJobsRequest) -> Up {
    use sdk::lease_jobs_request::Message;
    match message.message.unwrap() {
        Message::Hello(hello) => Up::Hello {
            window: hello.max_in_flight,
            resume: (hello.resume_token.first()).map(|id| (*id, hello.attach_sequence)),
            held: leases(&hello.held),
        },
        Message::SetCapacity(set) => Up::Capacity(set.max_in_flight),
        Message::Heartbeat(beat) => Up::Beat {
            sequence: beat.sequence,
            last_frame: beat.last_frame,
            held: leases(&beat.held),
        },
        Message::Results(results) => Up::Results(said(&results.results)),
        Message::Goodbye(_) => Up::Goodbye,
        Message::Progress(_) | Message::Logs(_) => panic!("not in this model"),
    }
}

pub fn said(results: &[sdk::Result]) -> Vec<(Lease, Said)> {
    use sdk::result::Outcome;
    let one = |result: &sdk::Result| {
        let said = match result.outcome.as_ref().unwrap() {
            Outcome::Success(_) => Said::Success,
            Outcome::Failure(_) => Said::Failure,
            Outcome::Release(_) => Said::Release,
            Outcome::Stopped(_) => Said::Stopped,
        };
        (lease(result.lease.as_ref().unwrap()), said)
    };
    results.iter().map(one).collect()
}

pub fn receipt(at: Lease, told: Told) -> sdk::Receipt {
    let status = match told {
        Told::Recorded => sdk::ReceiptStatus::Recorded,
        Told::Stale => sdk::ReceiptStatus::Stale,
        Told::Rejected => sdk::ReceiptStatus::Rejected,
        Told::Unknown => sdk::ReceiptStatus::Unknown,
    };
    sdk::Receipt {
        lease: Some(sdk_lease(at)),
        status: status.into(),
        ..Default::default()
    }
}

/// To the worker's half. The end of a stream is none of these.
pub fn response(down: Down) -> sdk::LeaseJobsResponse {
    use sdk::lease_jobs_response::Message;
    let span = |span| prost_types::Duration::try_from(span).ok();
    let message = match down {
        Down::Welcome { session, resumed } => Message::Welcome(sdk::Welcome {
            resume_token: token(session),
            resumed,
            heartbeat_interval: span(INTERVAL),
            lease_ttl: span(TTL),
            ..Default::default()
        }),
        Down::Jobs(frame, jobs) => {
            let job = |(lease, time_left): (Lease, Option<Duration>)| sdk::LeasedJob {
                lease: Some(sdk_lease(lease)),
                kind: "k".into(),
                time_left: time_left.and_then(span),
                ..Default::default()
            };
            Message::Jobs(sdk::Jobs {
                frame,
                jobs: jobs.into_iter().map(job).collect(),
            })
        }
        Down::Receipts(receipts) => Message::Receipts(sdk::Receipts {
            receipts: receipts
                .into_iter()
                .map(|(lease, told)| receipt(lease, told))
                .collect(),
        }),
        Down::Cancels(cancels) => {
            let cancel = |(lease, timeout): (Lease, bool)| sdk::CancelAttempt {
                lease: Some(sdk_lease(lease)),
                reason: match timeout {
                    true => sdk::CancelReason::Timeout,
                    false => sdk::CancelReason::Requested,
                }
                .into(),
            };
            Message::Cancels(sdk::Cancels {
                cancels: cancels.into_iter().map(cancel).collect(),
            })
        }
        Down::Lost(leases) => Message::Lost(sdk::Lost {
            leases: leases.into_iter().map(sdk_lease).collect(),
        }),
        Down::Ack(sequence) => Message::HeartbeatAck(sdk::HeartbeatAck {
            sequence,
            lease_ttl: span(TTL),
        }),
        Down::Applied { frame, goodbye } => Message::CapacityApplied(sdk::CapacityApplied {
            max_in_flight: 0,
            last_frame: frame,
            goodbye,
        }),
        Down::Draining => Message::Draining(sdk::Draining::default()),
        Down::End(_) => return sdk::LeaseJobsResponse::default(),
    };
    sdk::LeaseJobsResponse {
        message: Some(message),
    }
}
