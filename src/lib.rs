//! leasehold, a background-job service: a job that was accepted is never lost, and its result is recorded exactly once.
//!
//! ```text
//! client ─ Enqueue, GetJob, POST /jobs ─> faces ─> engine ─> store (the truth)
//!                                                    │  └──> ready-list (hints; may be lost at any moment)
//! worker <─────── LeaseJobs stream ──────────────> session
//! ```
//!
//! # The map
//! | where | what | may use |
//! |---|---|---|
//! | [`job`] | the domain: states, attempts, retries, bounds. Pure | nothing |
//! | [`session`] | one worker's stream as a state machine. Pure | `job` |
//! | [`store`] | the truth: Postgres, or one SQLite file | `job` |
//! | [`ready`] | what to hand out next: Redis Streams, or memory | `job`, ids of `store` |
//! | [`engine`] | joins them: accept, hand out, record, sweep | all above |
//! | [`grpc`], [`http`], [`cli`] | faces: words in, words out | the engine |
//! | [`error`], [`clock`], [`telemetry`], [`config`], [`failpoint`] | leaves | |
//!
//! # What must always hold
//! - I1 An Enqueue answered OK names a job that reaches a final state, whatever is killed.
//! - I2 At most one result is recorded for a job, and it never changes.
//! - I3 At most one attempt of a job holds a valid lease, by the store's clock.
//! - I4 `attempt` only grows; what an older attempt or another session says changes nothing and is never RECORDED.
//! - I5 A reconnect, a wiped ready-list or a doubled hint adds no execution.
//! - I6 The same id and request give the same job, from any node.
//! - I7 Nothing but the store is needed to go on.
//! - I8 A job cancelled before hand-out never runs; cancelling a running one reaches its worker.
//! - I9 Every wait, buffer, batch, retry and query is bounded (`job::limits`).
//! - I10 No unit of work in the store is dropped in the middle.
//!
//! Start reading at [`job::state`], then [`session`], [`store`], `engine/dispatch.rs`, `grpc/leases.rs`.

pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod error;
pub mod failpoint;
pub mod grpc;
pub mod http;
pub mod job;
pub mod ready;
pub mod server;
pub mod session;
pub mod store;
pub mod telemetry;

/// The wire: messages and services generated from `proto/leasehold/v1`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated from proto/, whose comments are the reference"
)]
pub mod proto {
    tonic::include_proto!("leasehold.v1");
    /// The files' descriptors, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/leasehold.bin"));
}
