//! Client and worker for leasehold, the background-job service.
//!
//! A whole worker:
//!
//! ```no_run
//! use worker_sdk::{Error, Worker};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     Worker::builder("http://127.0.0.1:7070")
//!         .queue("default")
//!         .concurrency(8)
//!         .handler("greet", |ctx, name: String| async move {
//!             println!("attempt {} of job {}", ctx.attempt(), ctx.job_id());
//!             Ok(format!("hello, {name}"))
//!         })
//!         .build()?
//!         .run()
//!         .await
//! }
//! ```
//!
//! Enqueue a job and wait for its result:
//!
//! ```no_run
//! # async fn example() -> Result<(), worker_sdk::Error> {
//! use std::time::Duration;
//! use worker_sdk::{Client, NewJob};
//!
//! let client = Client::connect("http://127.0.0.1:7070").await?;
//! let accepted = client.enqueue(NewJob::new("greet", "Ada")?.queue("default")).await?;
//! let job = client.wait(&accepted.job.id, Duration::from_secs(60)).await?;
//! println!("{}", job.output_as::<String>()?);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//! A job that was accepted runs at least once, and exactly one result of it is
//! recorded. A worker whose connection breaks, or whose node dies or drains, goes
//! on with its session on another stream: its handlers run on, and nothing runs
//! twice. A job may run more than once when a worker was away for longer than its
//! lease: its handlers are told to stop, but what they did until then they did.
//! [`Context::attempt`] is a fencing number by which a system downstream can
//! refuse the older attempt.
//!
//! # The map
//! | where | what |
//! |---|---|
//! | [`TypedJob`] | a type for the jobs of a kind, with its queue and options |
//! | [`Client`], [`NewJob`] | enqueue, get, list, wait, watch, explain, cancel, retry, reschedule, set the priority, delete; see, watch and steer queues; see and drain sessions and nodes; bulks: one action on many jobs |
//! | [`Worker`], [`WorkerBuilder`] | handlers by kind; run, shut down, health |
//! | [`Context`] | what a handler knows and says: attempt, deadline, cancellation, progress, log lines, checkpoints, steps |
//! | [`Next`] | what a middleware around the handlers goes on with |
//! | [`Codec`] | seals payloads, so that the server cannot read them |
//! | [`JobError`], [`Retry`], [`Permanent`], [`Snooze`] | how a handler ends without an output |
//! | [`session`] | the worker's half of the lease stream: a pure state machine, all decisions |
//! | `connection.rs` | the pump that carries them out, on a thread of its own |
//! | [`proto`] | the wire |

mod batch;
mod builder;
mod bulks;
mod client;
mod codec;
mod connection;
mod context;
mod endpoint;
mod error;
mod failure;
mod handler;
mod logger;
mod middleware;
mod new_job;
mod queues;
mod reporter;
mod run;
pub mod session;
mod state;
mod steps;
mod typed;
mod worker;

pub use builder::WorkerBuilder;
pub use client::{Client, Enqueued, LogFollow, QueueWatch, Watch};
pub use codec::Codec;
pub use context::Context;
pub use error::{CallError, Error, FieldViolation};
pub use failure::{JobError, Permanent, Retry, Snooze};
pub use middleware::Next;
pub use new_job::NewJob;
pub use proto::{
    AuditAction, AuditEvent, Backoff, Bulk, BulkAction, BulkState, Canary, Job, JobFilter,
    JobState, ListAuditEventsResponse, ListJobsRequest, ListJobsResponse, ListQueuesResponse,
    LogLevel, LogLine, Payload, Priority, Problem, Queue, QueueRates, QueueStats, RunningJob,
    StartBulkRequest, UniqueConflict, View,
};
pub use typed::TypedJob;
pub use worker::{Health, Worker};

/// The wire: messages and clients generated from `proto/leasehold/v1`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated from proto/, whose comments are the reference"
)]
pub mod proto {
    tonic::include_proto!("leasehold.v1");
}
