//! What can go wrong with a call or a worker. What goes wrong in a handler is
//! `JobError`, in `failure.rs`.

use std::time::Duration;

use tonic_types::StatusExt;

use crate::codec::CodecFailed;
use crate::proto;

/// Why a call, or a whole worker, came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot work, found before anything was sent.
    #[error("{0}")]
    Config(String),
    /// The payload could not be written as JSON.
    #[error("the payload cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// A payload or an output is not the JSON that was expected.
    #[error("the payload or output is not what was expected: {0}")]
    Decode(#[source] serde_json::Error),
    /// A payload could not be sealed, or a payload or output not be opened.
    #[error("{0}")]
    Codec(String),
    /// The server, or the way to it, answered with an error; those worth a
    /// retry were retried until the call's deadline.
    #[error("{0}")]
    Call(Box<CallError>),
    /// The job was not final when the time to wait for it was over. This is it.
    #[error("job {} is not final yet: {}", .0.id, .0.state().as_str_name())]
    NotFinal(Box<proto::Job>),
    /// The worker cannot go on: the server refuses its streams for good.
    #[error("the server refuses this worker: {0}")]
    Refused(String),
    /// The worker's own thread could not be started, or ended by itself.
    #[error("the worker's thread: {0}")]
    Thread(String),
}

/// An error status with what leasehold says about it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{message}{}", prefix(reason), listed(message, violations))]
pub struct CallError {
    /// The gRPC code.
    pub code: tonic::Code,
    /// Stable UPPER_SNAKE_CASE word of the server's ErrorInfo, as `JOB_NOT_FOUND`;
    /// empty when the error came from the way and not from the server.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// The fields that were refused, for INVALID_ARGUMENT.
    pub violations: Vec<FieldViolation>,
    /// How long the server asked to wait.
    pub retry_after: Option<Duration>,
}

/// A field of the request that the server refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its path, as `requests[17].job.queue`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl Error {
    /// The server's stable word for it, where there is one.
    pub fn reason(&self) -> Option<&str> {
        self.call()
            .map(|call| call.reason.as_str())
            .filter(|reason| !reason.is_empty())
    }

    /// The error of the call, if it is one.
    pub fn call(&self) -> Option<&CallError> {
        match self {
            Self::Call(call) => Some(call),
            _ => None,
        }
    }
}

impl From<CodecFailed> for Error {
    fn from(failed: CodecFailed) -> Self {
        Self::Codec(failed.to_string())
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Call(Box::new(CallError::from(&status)))
    }
}

impl From<&tonic::Status> for CallError {
    fn from(status: &tonic::Status) -> Self {
        let violations = status
            .get_details_bad_request()
            .map(|bad| bad.field_violations)
            .unwrap_or_default();
        Self {
            code: status.code(),
            reason: status
                .get_details_error_info()
                .map(|info| info.reason)
                .unwrap_or_default(),
            message: described(status),
            violations: violations
                .into_iter()
                .map(|violation| FieldViolation {
                    field: violation.field,
                    description: violation.description,
                })
                .collect(),
            retry_after: status
                .get_details_retry_info()
                .and_then(|info| info.retry_delay),
        }
    }
}

/// The message with its causes: tonic's own says only "transport error".
fn described(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => {
            let causes = chain(source);
            // Sometimes the message is one of the causes already.
            match causes.contains(status.message()) {
                true => causes,
                false => format!("{}: {causes}", status.message()),
            }
        }
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// An error with all its causes, in one line, none said twice in a row.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    // Causes can be a cycle in bad hands; nobody reads more than this.
    for _ in 0..16 {
        let Some(cause) = next else { break };
        let text = cause.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        next = cause.source();
    }
    line
}

fn prefix(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!("{reason}: ")
    }
}

/// The fields that the message does not name by itself.
fn listed(message: &str, violations: &[FieldViolation]) -> String {
    let unnamed = violations
        .iter()
        .filter(|violation| !message.contains(&violation.field));
    unnamed
        .map(|violation| format!("; {}: {}", violation.field, violation.description))
        .collect()
}
