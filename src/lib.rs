//! leasehold.

pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod error;
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
