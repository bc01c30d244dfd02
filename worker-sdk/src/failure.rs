//! What a handler may end with besides its output.

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::time::Duration;

use crate::error::chain;
use crate::proto;
use crate::session::{Outcome, RETRY_AFTER_MAX};

/// How an attempt ends without an output: as a failure, or given back.
///
/// `?` makes one of any error; its type name becomes the failure's type, and its
/// causes the detail. [`Retry`], [`Permanent`] and [`Snooze`] say more:
///
/// ```
/// use std::time::Duration;
/// use worker_sdk::{JobError, Permanent, Retry, Snooze};
///
/// fn charge(card: &str, busy: bool) -> Result<u32, JobError> {
///     let amount: u32 = card.parse()?; // retried with the job's backoff
///     if amount == 0 {
///         return Err(Permanent("nothing to charge").into()); // never retried
///     }
///     if amount > 9000 {
///         return Err(Retry::after(Duration::from_secs(60)).because("limit reached").into());
///     }
///     if busy {
///         return Err(Snooze(Duration::from_secs(5)).into()); // counts as no failure
///     }
///     Ok(amount)
/// }
/// # assert!(charge("12", false).is_ok());
/// ```
// Like anyhow's, it is no `std::error::Error` itself: else the blanket `From` could not be.
pub struct JobError {
    ending: Ending,
}

enum Ending {
    Failure(proto::Failure),
    Release(Duration),
    Dropped,
}

impl JobError {
    /// A failure with this message, of type `Error`.
    pub fn new(message: impl Display) -> Self {
        Self::failure("Error", message.to_string(), String::new())
    }

    /// Names the class of the failure, to group by; at most 255 bytes are kept.
    /// Of no effect on a [`Snooze`].
    #[must_use]
    pub fn with_type(mut self, name: impl Into<String>) -> Self {
        if let Ending::Failure(failure) = &mut self.ending {
            failure.r#type = name.into();
        }
        self
    }

    /// Adds a stack trace or the like; at most 32 KiB are kept. Of no effect on
    /// a [`Snooze`].
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        if let Ending::Failure(failure) = &mut self.ending {
            failure.detail = detail.into();
        }
        self
    }

    /// The job is not retried, whatever budget it has. Of no effect on a [`Snooze`].
    #[must_use]
    pub fn permanent(mut self) -> Self {
        if let Ending::Failure(failure) = &mut self.ending {
            failure.permanent = true;
        }
        self
    }

    /// The next attempt waits so long, in place of the job's backoff; at most 30
    /// days. Of no effect on a [`Snooze`].
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        if let Ending::Failure(failure) = &mut self.ending {
            failure.retry_after = prost_types::Duration::try_from(wait.min(RETRY_AFTER_MAX)).ok();
        }
        self
    }

    fn failure(kind: &str, message: String, detail: String) -> Self {
        let failure = proto::Failure {
            r#type: kind.to_owned(),
            message,
            detail,
            ..Default::default()
        };
        Self {
            ending: Ending::Failure(failure),
        }
    }

    /// A handler that panicked with this.
    pub(crate) fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::failure(
            "Panic",
            text.unwrap_or("the handler panicked").to_owned(),
            String::new(),
        )
    }

    /// It was not run to its end, for no fault of its own.
    pub(crate) fn dropped() -> Self {
        Self {
            ending: Ending::Dropped,
        }
    }

    pub(crate) fn into_outcome(self) -> Outcome {
        match self.ending {
            Ending::Dropped => Outcome::Dropped,
            Ending::Failure(failure) => Outcome::Failure(failure),
            Ending::Release(delay) => Outcome::Release {
                delay,
                reason: "SNOOZE".to_owned(),
            },
        }
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for JobError {
    fn from(error: E) -> Self {
        let detail = error.source().map(chain).unwrap_or_default();
        Self::failure(std::any::type_name::<E>(), error.to_string(), detail)
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ending {
            Ending::Failure(failure) => write!(f, "{}: {}", failure.r#type, failure.message),
            Ending::Release(delay) => write!(f, "given back for {delay:?}"),
            Ending::Dropped => f.write_str("not run to its end"),
        }
    }
}

/// A failure whose next attempt comes after a chosen wait.
#[derive(Clone, Debug)]
pub struct Retry {
    wait: Duration,
    message: String,
}

impl Retry {
    /// Fail now, and be run again after this wait, if the job's budget allows.
    pub fn after(wait: Duration) -> Self {
        Self {
            wait,
            message: "asked to be retried".to_owned(),
        }
    }

    /// The failure's message.
    #[must_use]
    pub fn because(mut self, message: impl Display) -> Self {
        self.message = message.to_string();
        self
    }
}

impl From<Retry> for JobError {
    fn from(retry: Retry) -> Self {
        Self::failure("Retry", retry.message, String::new()).retry_after(retry.wait)
    }
}

/// A failure that no retry can mend, with its message.
#[derive(Clone, Debug)]
pub struct Permanent<D>(pub D);

impl<D: Display> From<Permanent<D>> for JobError {
    fn from(permanent: Permanent<D>) -> Self {
        Self::failure("Permanent", permanent.0.to_string(), String::new()).permanent()
    }
}

/// Gives the job back, to be run again after this time. It counts as no failure;
/// from the second time in a row the server waits at least 1 s, 2 s, 4 s .. 1 min.
#[derive(Clone, Copy, Debug)]
pub struct Snooze(pub Duration);

impl From<Snooze> for JobError {
    fn from(snooze: Snooze) -> Self {
        Self {
            ending: Ending::Release(snooze.0),
        }
    }
}
