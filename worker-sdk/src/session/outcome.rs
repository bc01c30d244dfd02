//! How a handler's end becomes a result that the server takes.

use std::time::Duration;

use super::StopReason;
use crate::proto;
use proto::result::Outcome as Wire;

/// How an attempt ended, as its handler said.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It did its work; this is its output.
    Success(proto::Payload),
    /// It failed.
    Failure(proto::Failure),
    /// It gives the job back without a verdict, to be run again after `delay`.
    Release {
        /// Wait before the job is due again.
        delay: Duration,
        /// For the job's history.
        reason: String,
    },
    /// It was dropped in the middle, after it had been told to stop.
    Dropped,
}

/// Longest texts of a failure, in bytes, as the wire allows.
const TYPE_BYTES: usize = 255;
const MESSAGE_BYTES: usize = 8 * 1024;
const DETAIL_BYTES: usize = 32 * 1024;
const REASON_BYTES: usize = 1024;
/// Longest waits that the wire allows: 30 days after a failure, 10 years of a release.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const DELAY_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The result to send, or `None` for Stopped: the handler ended because it was
/// told to, and nothing of it is to be recorded.
///
/// A success is always told, whatever came before: the fence decides. All else
/// that follows an order to stop is the order's doing, not the job's.
pub(super) fn resolve(
    outcome: Outcome,
    stop: Option<StopReason>,
    output_bytes_max: usize,
) -> Option<Wire> {
    match (outcome, stop) {
        (Outcome::Success(output), _) => Some(success(output, output_bytes_max)),
        (Outcome::Release { delay, reason }, _) => Some(release(delay, &reason)),
        (Outcome::Failure(failure), None) => Some(Wire::Failure(bounded(failure))),
        (Outcome::Dropped, None) => Some(release(Duration::ZERO, "HANDLER_DROPPED")),
        (_, Some(StopReason::Cancelled | StopReason::TimedOut | StopReason::Lost)) => None,
        (_, Some(StopReason::Overdue)) => Some(failure(
            "Timeout",
            "the handler ran past the attempt's timeout",
            false,
        )),
        (_, Some(StopReason::Unrenewed)) => Some(release(Duration::ZERO, "LEASE_UNRENEWED")),
        (_, Some(StopReason::Shutdown)) => Some(release(Duration::ZERO, "DRAIN")),
    }
}

/// Gives a job back.
pub(super) fn release(delay: Duration, reason: &str) -> Wire {
    let delay = prost_types::Duration::try_from(delay.min(DELAY_MAX)).ok();
    Wire::Release(proto::Release {
        delay,
        reason: text(reason, REASON_BYTES),
    })
}

/// The outcome in the place of one that the server refused: the slot and the
/// lease must come free, and people must see why. The second time says nothing
/// that could be refused again.
pub(super) fn instead_of_rejected(rejections: u32, problem: Option<&proto::Problem>) -> Wire {
    let told = problem.filter(|_| rejections == 0);
    let message = match told {
        Some(problem) => format!(
            "the server refused the result: {} {} {}",
            problem.reason, problem.field, problem.message
        ),
        None => "the server refused the result".to_owned(),
    };
    failure("OutputRejected", &message, true)
}

fn success(output: proto::Payload, bytes_max: usize) -> Wire {
    let bytes = match &output.body {
        Some(proto::payload::Body::Data(data)) => data.len(),
        Some(proto::payload::Body::Text(text)) => text.len(),
        None => 0,
    };
    if bytes > bytes_max {
        return failure(
            "OutputRejected",
            &format!("the output has {bytes} bytes, the server takes {bytes_max}"),
            true,
        );
    }
    Wire::Success(proto::Success {
        output: Some(output),
    })
}

fn failure(kind: &str, message: &str, permanent: bool) -> Wire {
    Wire::Failure(bounded(proto::Failure {
        r#type: kind.to_owned(),
        message: message.to_owned(),
        permanent,
        ..Default::default()
    }))
}

/// Cuts what the server would refuse: a failure must get through, whatever a
/// handler wrote into it.
fn bounded(failure: proto::Failure) -> proto::Failure {
    let retry_after =
        super::single::duration(failure.retry_after).map(|wait| wait.min(RETRY_AFTER_MAX));
    proto::Failure {
        r#type: text(&failure.r#type, TYPE_BYTES),
        message: text(&failure.message, MESSAGE_BYTES),
        detail: text(&failure.detail, DETAIL_BYTES),
        permanent: failure.permanent,
        retry_after: retry_after.and_then(|wait| prost_types::Duration::try_from(wait).ok()),
    }
}

/// At most so many bytes, cut between characters, without U+0000.
fn text(text: &str, bytes_max: usize) -> String {
    let mut cut = text.replace('\0', " ");
    cut.truncate(cut.floor_char_boundary(bytes_max));
    cut
}
