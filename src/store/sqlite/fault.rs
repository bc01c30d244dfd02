//! From what the driver says to what it means for the caller. The one place that knows SQLite's numbers.

use sqlx::Error as Driver;

use crate::error::Error;

const WHAT: &str = "the database file";

// https://www.sqlite.org/rescode.html: busy, locked, out of memory, read-only, interrupted, I/O, full, cannot open,
// the locking protocol. They pass, or somebody repairs the disk; nothing is wrong with the statement.
const PASSING: [i32; 9] = [5, 6, 7, 8, 9, 10, 13, 14, 15];

/// What went wrong before anything was committed.
pub(super) fn fault(error: Driver) -> Error {
    match is_passing(&error) {
        true => {
            tracing::warn!(%error, "the database file cannot be used");
            Error::unavailable(WHAT)
        }
        false => Error::internal(error),
    }
}

/// What went wrong in a commit: it may or may not be on disk.
pub(super) fn commit_fault(error: Driver) -> Error {
    tracing::warn!(%error, "a commit ended in doubt");
    Error::OutcomeUnknown
}

/// A row that this code cannot have written.
pub(super) fn broken(what: &'static str) -> Error {
    Error::internal(format!("a broken row: {what}"))
}

fn is_passing(error: &Driver) -> bool {
    match error {
        Driver::Database(cause) => cause
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            // The low byte is the primary code.
            .is_some_and(|code| PASSING.contains(&(code & 0xff))),
        Driver::Io(_) | Driver::PoolTimedOut | Driver::PoolClosed | Driver::WorkerCrashed => true,
        _ => false,
    }
}
