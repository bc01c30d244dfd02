//! The one place where a driver's error becomes ours.

use sqlx::Error as Fault;

use crate::error::Error;

const WHAT: &str = "postgres";

/// Whether a statement changes something: then a connection that is lost in it leaves the outcome open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Read,
    Write,
}

/// No connection was to be had: nothing was sent.
pub(super) fn no_connection(cause: Fault) -> Error {
    match cause {
        Fault::Database(e) if !is_passing(e.code().as_deref().unwrap_or_default()) => {
            Error::internal(e)
        }
        cause => {
            tracing::debug!(%cause, "no connection to postgres");
            Error::unavailable(WHAT)
        }
    }
}

/// A statement did not answer in time, and its connection is given up.
pub(super) fn silent(effect: Effect) -> Error {
    match effect {
        Effect::Read => Error::unavailable(WHAT),
        Effect::Write => Error::OutcomeUnknown,
    }
}

/// A statement that was sent failed.
pub(super) fn fault(cause: Fault, effect: Effect) -> Error {
    match cause {
        Fault::Io(_) | Fault::Protocol(_) | Fault::Tls(_) | Fault::WorkerCrashed => silent(effect),
        Fault::PoolTimedOut | Fault::PoolClosed => Error::unavailable(WHAT),
        Fault::Database(e) => {
            let code = e.code().unwrap_or_default().into_owned();
            match code.as_str() {
                // The server ended the session: whether the statement was committed before is not known.
                "57P01" | "57P02" | "08006" | "08007" => silent(effect),
                code if is_passing(code) => Error::unavailable(WHAT),
                _ => Error::internal(e),
            }
        }
        other => Error::internal(other),
    }
}

/// What a driver's error says to people who set up a database.
pub(super) fn words(cause: &Fault) -> String {
    match cause {
        Fault::Database(e) => e.message().to_owned(),
        other => other.to_string(),
    }
}

/// The database chose this transaction to give way: it may be run again at once.
pub(super) fn gave_way(cause: &Fault) -> bool {
    matches!(cause, Fault::Database(e) if matches!(e.code().as_deref(), Some("40P01" | "40001")))
}

/// The id or the idempotency key of a job that was to be new is there.
pub(super) fn is_taken(cause: &Fault) -> bool {
    matches!(cause, Fault::Database(e) if e.is_unique_violation()
        && matches!(e.constraint(), Some("jobs_pkey" | "jobs_idempotency_key")))
}

/// The unique key of a job that was to be brought back is held by another.
pub(super) fn is_held(cause: &Fault) -> bool {
    matches!(cause, Fault::Database(e) if e.is_unique_violation() && e.constraint() == Some("jobs_unique_key"))
}

/// A row that says what no row of ours can say.
pub(super) fn broken(what: &'static str) -> Error {
    Error::internal(format!("broken row: {what}"))
}

/// Starting, stopping, full, read-only after a failover, timed out, or not migrated by another node yet.
fn is_passing(code: &str) -> bool {
    code.starts_with("08")
        || code.starts_with("53")
        || code.starts_with("40")
        || matches!(
            code,
            "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "55P03" | "25006" | "25P03" | "3D000"
        )
}
