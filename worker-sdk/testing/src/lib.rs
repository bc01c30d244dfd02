//! Tests for code that enqueues jobs and code that runs them: a real leasehold in
//! the test's own process, with no Redis, no Postgres and nothing to install.
//!
//! ```
//! use std::time::Duration;
//! use leasehold_testing::TestServer;
//! use worker_sdk::{JobError, JobState, NewJob};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), leasehold_testing::Error> {
//! let server = TestServer::start().await?;
//!
//! // The code under test enqueues something.
//! let client = server.client()?;
//! client.enqueue(NewJob::new("mail", "ada@example.org")?.delay(Duration::from_secs(3600))).await?;
//! let mails = server.jobs_of("mail").await?;
//! assert_eq!(mails.len(), 1);
//! assert_eq!(mails[0].payload_as::<String>()?, "ada@example.org");
//!
//! // It is not due yet.
//! let worker = || {
//!     server.worker().handler("mail", |ctx, to: String| async move {
//!         match ctx.failures() {
//!             0 => Err(JobError::new("mailbox full")),
//!             _ => Ok(format!("sent to {to}")),
//!         }
//!     })
//! };
//! assert!(server.work_off(worker()).await?.is_empty());
//!
//! // An hour later it is, and fails; its retry is due when its backoff is over.
//! server.pass(Duration::from_secs(3600)).await?;
//! let ran = server.work_off(worker()).await?;
//! assert_eq!(ran[0].state(), JobState::Scheduled);
//! server.pass_until_due().await?;
//! let ran = server.work_off(worker()).await?;
//! assert_eq!(ran[0].output_as::<String>()?, "sent to ada@example.org");
//! # Ok(())
//! # }
//! ```
//!
//! It is the engine, the store and the wire that a server has, so what a test
//! sees is what will be. The file is in a folder that is removed when the server
//! is dropped. Each test has a server of its own: it takes some 20 ms.

mod server;
mod work;

use std::time::Duration;

pub use server::TestServer;

/// Why a test cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the client or the worker says.
    #[error(transparent)]
    Sdk(#[from] worker_sdk::Error),
    /// The server cannot be started, or has no store any more.
    #[error("the test's server: {0}")]
    Server(String),
    /// Jobs went on running for longer than [`TestServer::patience`].
    #[error("jobs have not come to rest within {0:?}: {1}")]
    NotAtRest(Duration, String),
}

impl From<leasehold::error::Error> for Error {
    fn from(error: leasehold::error::Error) -> Self {
        Self::Server(error.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Server(error.to_string())
    }
}
