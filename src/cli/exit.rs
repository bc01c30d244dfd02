//! How a command ends.

use std::error::Error as _;
use std::process::ExitCode;

use super::terminal;
use crate::error::Error;

/// What the shell is told. The table is on the page of the module above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Trouble = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command came to nothing, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) why: String,
}

impl Failure {
    /// What was asked for cannot be done as it is.
    pub(super) fn usage(why: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            why: why.into(),
        }
    }

    /// Something that is needed is away or in error.
    pub(super) fn trouble(why: impl Into<String>) -> Self {
        Self {
            exit: Exit::Trouble,
            why: why.into(),
        }
    }

    /// Says it, and gives the code to end with.
    pub(super) fn report(self) -> ExitCode {
        terminal::note(format_args!("error: {}", self.why));
        self.exit.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error {
            Error::InvalidArgument(_) => Exit::Usage,
            _ => Exit::Trouble,
        };
        Self {
            exit,
            why: told(&error),
        }
    }
}

/// The error with its cause: who types commands here is the operator, from whom nothing is hidden.
pub(super) fn told(error: &Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
