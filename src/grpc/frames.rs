//! The messages of LeaseJobs, from the wire to the session and back.

use std::sync::Arc;
use std::time::Duration;

use super::convert;
use crate::engine::Live;
use crate::error::{Error, Limit, Result};
use crate::job::id::NAME_SHAPE;
use crate::job::limits::{
    BATCH_MAX, CHECKPOINT_BYTES_MAX, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, SPAN_MAX,
};
use crate::job::{Lease, Progress, QueueName, Verdict};
use crate::proto as pb;
use crate::proto::lease_jobs_request::Message as In;
use crate::proto::lease_jobs_response::Message as Out;
use crate::session::Event;
use crate::session::logging::Said;
use crate::session::message::{
    CancelReason, ClientMessage, Hello, Reported, Resume, ServerMessage, Subscription, Welcome,
};

/// What a worker can receive when it does not say.
const FRAME_BYTES_DEFAULT: u32 = 4 << 20;

/// Passes a message of the worker on to its session.
pub(super) fn take(live: &Arc<Live>, message: In) {
    let message = match message {
        In::Hello(_) => ClientMessage::Hello(Box::default()),
        In::Goodbye(_) => ClientMessage::Goodbye,
        In::Heartbeat(beat) => ClientMessage::Heartbeat {
            sequence: beat.sequence,
            last_frame: beat.last_frame,
            held: beat
                .held
                .iter()
                .filter_map(|raw| convert::lease(Some(raw)))
                .collect(),
        },
        In::SetCapacity(set) => match subscriptions("set_capacity.queues", set.queues) {
            Ok(queues) => ClientMessage::SetCapacity {
                max_in_flight: set.max_in_flight,
                queues,
            },
            Err(error) => return live.outbox().close(Some(error)),
        },
        In::Progress(progress) if progress.reports.len() > BATCH_MAX => {
            return too_many(live, "progress.reports");
        }
        In::Progress(progress) => ClientMessage::Progress(progressed(live, progress.reports)),
        In::Logs(logs) if logs.reports.len() > BATCH_MAX => {
            return too_many(live, "logs.reports");
        }
        In::Logs(logs) => ClientMessage::Logs(logs.reports.into_iter().filter_map(said).collect()),
        In::Results(pb::Results { results }) if results.len() > BATCH_MAX => {
            return too_many(live, "results.results");
        }
        In::Results(pb::Results { results }) => ClientMessage::Results(reported(live, results)),
    };
    live.feed(Event::Frame(message));
}

/// A batch over its bound is a fault of protocol; nothing of it is looked at.
fn too_many(live: &Live, field: &str) {
    let error = Error::field(field, format!("must be at most {BATCH_MAX}"));
    live.outbox().close(Some(error));
}

/// Results that name a lease. One that cannot name any is answered here: there is nothing to ask about.
fn reported(live: &Live, results: Vec<pb::Result>) -> Vec<(Lease, Reported)> {
    let mut named = Vec::with_capacity(results.len());
    for result in results {
        let Some(lease) = convert::lease(result.lease.as_ref()) else {
            match unreadable(live, result.lease, 0) {
                true => continue,
                false => return named,
            }
        };
        let lines = convert::last_lines(result.log);
        let reported = match (convert::outcome(result.outcome), lines) {
            (Ok(Some(outcome)), Ok(lines)) => Reported::Ended(outcome, lines),
            // Nobody awaits a receipt.
            (Ok(None), lines) => Reported::Stopped(lines.ok().flatten()),
            (Err(violation), _) | (_, Err(violation)) => Reported::Unacceptable(violation),
        };
        named.push((lease, reported));
    }
    named
}

/// As for results. A report of no checkpoint has no receipt, whatever becomes of it.
fn progressed(live: &Live, reports: Vec<pb::ProgressReport>) -> Vec<(Lease, Progress)> {
    let mut named = Vec::with_capacity(reports.len());
    for report in reports {
        let progress = convert::progress(report.progress.unwrap_or_default());
        match convert::lease(report.lease.as_ref()) {
            Some(lease) => named.push((lease, progress)),
            None if progress.checkpoint.is_none() => {}
            None if unreadable(live, report.lease, progress.revision) => {}
            None => return named,
        }
    }
    named
}

/// What an attempt says. A report that names no lease has no receipt: lines are not owed one.
fn said(report: pb::LogReport) -> Option<Said> {
    let lease = convert::lease(report.lease.as_ref())?;
    let log = report.log.unwrap_or_default();
    let last = log
        .first
        .saturating_add(log.lines.len() as u64)
        .saturating_sub(1);
    Some((lease, last, convert::new_lines("log", log)))
}

/// Answers what names no lease. `false`: the stream is over, as its worker does not read.
fn unreadable(live: &Live, raw: Option<pb::Lease>, revision: u64) -> bool {
    let shown = raw.map(|raw| (cut(raw.job_id), raw.attempt));
    let taken = live
        .outbox()
        .push(ServerMessage::Unreadable(shown, revision));
    if !taken {
        live.outbox().close(Some(Error::LimitReached {
            limit: Limit::Outbox,
            retry_after: Duration::from_secs(1),
        }));
    }
    taken
}

/// What names no lease is sent back so that its worker knows it again, but no more of it than an id could be: it waits
/// in memory until the worker reads it.
fn cut(mut id: String) -> String {
    id.truncate(id.floor_char_boundary(NAME_BYTES_MAX));
    id.shrink_to_fit();
    id
}

/// A Hello, as the session has it.
///
/// # Errors
/// A field that cannot be read at all; the rest is judged by [`Hello::check`].
pub(super) fn hello(message: pb::Hello) -> Result<Hello> {
    let lease_ttl = match message.lease_ttl {
        None => None,
        Some(raw) => {
            let span =
                crate::job::draft::span(convert::raw_span(raw), Default::default(), SPAN_MAX);
            Some(span.map_err(|why| Error::field("hello.lease_ttl", why))?)
        }
    };
    Ok(Hello {
        protocol: message.protocol,
        worker: message.worker,
        queues: subscriptions("hello.queues", message.queues)?,
        kinds: message.kinds,
        max_in_flight: message.max_in_flight,
        max_frame_bytes: match message.max_frame_bytes {
            0 => FRAME_BYTES_DEFAULT,
            bytes => bytes,
        },
        lease_ttl,
        resume: (!message.resume_token.is_empty()).then(|| Resume {
            token: message.resume_token.into(),
            attach_sequence: message.attach_sequence,
        }),
        held: message
            .held
            .iter()
            .filter_map(|raw| convert::lease(Some(raw)))
            .collect(),
        sdk: message.sdk,
        labels: message.labels.into_iter().collect(),
    })
}

fn subscriptions(field: &str, queues: Vec<pb::QueueSubscription>) -> Result<Vec<Subscription>> {
    let one = |(i, subscription): (usize, pb::QueueSubscription)| {
        let queue = QueueName::parse(&subscription.queue).ok_or_else(|| {
            Error::field(
                format!("{field}[{i}].queue"),
                format!("must match {NAME_SHAPE}"),
            )
        })?;
        let max_in_flight = (subscription.max_in_flight > 0).then_some(subscription.max_in_flight);
        Ok(Subscription {
            queue,
            max_in_flight,
        })
    };
    queues.into_iter().enumerate().map(one).collect()
}

/// A message of the session, as the worker gets it.
pub(super) fn response(message: ServerMessage) -> pb::LeaseJobsResponse {
    let message = match message {
        ServerMessage::Welcome(welcome) => Out::Welcome(proto_welcome(*welcome)),
        ServerMessage::Jobs { frame, jobs } => Out::Jobs(pb::Jobs {
            frame,
            jobs: jobs.into_iter().map(convert::leased_job).collect(),
        }),
        ServerMessage::Receipts(receipts) => {
            let receipt = |(lease, verdict)| convert::receipt(convert::proto_lease(lease), verdict);
            Out::Receipts(pb::Receipts {
                receipts: receipts.into_iter().map(receipt).collect(),
            })
        }
        ServerMessage::ProgressReceipts(receipts) => {
            let receipt = |(lease, progress_revision, verdict)| pb::Receipt {
                progress_revision,
                ..convert::receipt(convert::proto_lease(lease), verdict)
            };
            Out::Receipts(pb::Receipts {
                receipts: receipts.into_iter().map(receipt).collect(),
            })
        }
        ServerMessage::LogReceipts(receipts) => {
            let receipt = |(lease, last, verdict)| {
                let judged = convert::receipt(convert::proto_lease(lease), verdict);
                pb::LogReceipt {
                    lease: judged.lease,
                    last,
                    status: judged.status,
                    problem: judged.problem,
                }
            };
            Out::LogReceipts(pb::LogReceipts {
                receipts: receipts.into_iter().map(receipt).collect(),
            })
        }
        ServerMessage::Unreadable(raw, progress_revision) => {
            let (job_id, attempt) = raw.unwrap_or_default();
            let receipt = pb::Receipt {
                progress_revision,
                ..convert::receipt(pb::Lease { job_id, attempt }, Verdict::Unknown)
            };
            Out::Receipts(pb::Receipts {
                receipts: vec![receipt],
            })
        }
        ServerMessage::Cancels(cancels) => {
            let cancel = |(lease, reason)| pb::CancelAttempt {
                lease: Some(convert::proto_lease(lease)),
                reason: match reason {
                    CancelReason::Requested => pb::CancelReason::Requested,
                    CancelReason::Timeout => pb::CancelReason::Timeout,
                }
                .into(),
            };
            Out::Cancels(pb::Cancels {
                cancels: cancels.into_iter().map(cancel).collect(),
            })
        }
        ServerMessage::Lost(leases) => Out::Lost(pb::Lost {
            leases: leases.into_iter().map(convert::proto_lease).collect(),
        }),
        ServerMessage::HeartbeatAck {
            sequence,
            lease_ttl,
        } => Out::HeartbeatAck(pb::HeartbeatAck {
            sequence,
            lease_ttl: Some(convert::duration(lease_ttl)),
        }),
        ServerMessage::CapacityApplied {
            max_in_flight,
            last_frame,
            goodbye,
        } => Out::CapacityApplied(pb::CapacityApplied {
            max_in_flight,
            last_frame,
            goodbye,
        }),
        ServerMessage::Leave => Out::Leave(pb::Leave {}),
        ServerMessage::Draining {
            close_after,
            reason,
        } => Out::Draining(pb::Draining {
            close_after: Some(convert::duration(close_after)),
            reason,
        }),
    };
    pb::LeaseJobsResponse {
        message: Some(message),
    }
}

fn proto_welcome(welcome: Welcome) -> pb::Welcome {
    pb::Welcome {
        session_id: welcome.session.to_string(),
        resume_token: welcome.resume_token.to_vec(),
        resumed: welcome.resumed,
        node: welcome.node,
        server_version: env!("CARGO_PKG_VERSION").into(),
        heartbeat_interval: Some(convert::duration(welcome.heartbeat_interval)),
        lease_ttl: Some(convert::duration(welcome.lease_ttl)),
        max_in_flight: welcome.max_in_flight,
        max_frame_bytes: u32::try_from(MESSAGE_BYTES_MAX).unwrap_or(u32::MAX),
        max_output_bytes: u32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX),
        max_checkpoint_bytes: u32::try_from(CHECKPOINT_BYTES_MAX).unwrap_or(u32::MAX),
    }
}
