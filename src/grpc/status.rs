//! Renders an error as a gRPC status with its google.rpc details. What is said is decided in `error.rs`.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt};
use tracing::error;
use uuid::Uuid;

use crate::error::Error;

const DOMAIN: &str = "leasehold";
/// Violations that one status names; the whole trailer must stay below 8 KiB.
const VIOLATIONS_MAX: usize = 20;

/// The status of an error.
pub fn status(failed: Error) -> Status {
    let code = failed.code();
    let mut details = ErrorDetails::new();
    if let Error::Internal(cause) = &failed {
        let id = Uuid::new_v4().simple().to_string();
        error!(request_id = id, error = %cause, "internal error");
        details.set_request_info(id, "");
    }
    details.set_error_info(code.reason, DOMAIN, metadata(&failed));
    match &failed {
        Error::InvalidArgument(violations) => {
            let shown = violations.iter().take(VIOLATIONS_MAX);
            let violations: Vec<_> = shown
                .map(|v| FieldViolation::new(&v.field, cut(&v.why)))
                .collect();
            details.set_bad_request(violations);
        }
        Error::JobNotFound(id) => {
            details.set_resource_info("job", cut(id), "", "");
        }
        Error::QueueNotFound(name) => {
            details.set_resource_info("queue", cut(name), "", "");
        }
        Error::SessionNotFound(id) => {
            details.set_resource_info("session", cut(id), "", "");
        }
        Error::NodeNotFound(id) => {
            details.set_resource_info("node", cut(id), "", "");
        }
        Error::BulkNotFound(id) => {
            details.set_resource_info("bulk", cut(id), "", "");
        }
        Error::BulkConflict(id) => {
            details.set_resource_info("bulk", id.to_string(), "", "");
        }
        Error::IdConflict(id) | Error::KeyConflict(id) | Error::UniqueConflict(id) => {
            details.set_resource_info("job", id.to_string(), "", "");
        }
        Error::WrongState { job, is, .. } => {
            details.add_precondition_failure_violation("JOB_STATE", job.to_string(), is.name());
        }
        Error::UniqueKeyHeld { job, holder } => {
            let (job, holder) = (job.to_string(), holder.to_string());
            details.add_precondition_failure_violation("UNIQUE_KEY_HELD", job, &holder);
            details.set_resource_info("job", holder, "", "");
        }
        Error::LimitReached { limit, .. } => {
            details.set_quota_failure(vec![QuotaViolation::new("node", limit.to_string())]);
        }
        _ => {}
    }
    if failed.retry_after().is_some() {
        details.set_retry_info(failed.retry_after());
    }
    Status::with_error_details(Code::from_i32(code.grpc), failed.to_string(), details)
}

fn metadata(failed: &Error) -> HashMap<String, String> {
    match failed {
        Error::ProtocolVersion { min, max, .. } => HashMap::from([
            ("min".into(), min.to_string()),
            ("max".into(), max.to_string()),
        ]),
        Error::WrongState { is, .. } => HashMap::from([("state".into(), is.name().into())]),
        Error::Unavailable { what, .. } => HashMap::from([("part".into(), (*what).into())]),
        _ => HashMap::new(),
    }
}

/// A peer's own text comes back no longer than this.
fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_internal_error_tells_a_request_id_and_nothing_of_its_cause() {
        let status = status(Error::internal("the cause"));
        assert_eq!(
            (status.code(), status.message()),
            (Code::Internal, "internal error")
        );
        assert_eq!(
            status.get_details_request_info().unwrap().request_id.len(),
            32
        );
        assert!(!status.details().windows(9).any(|part| part == b"the cause"));
    }
}
