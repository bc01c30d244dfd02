//! Client and worker for leasehold.

/// The wire: messages and clients generated from `proto/leasehold/v1`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated from proto/, whose comments are the reference"
)]
pub mod proto {
    tonic::include_proto!("leasehold.v1");
}
