//! Client and worker for leasehold.
pub mod session;
/// The wire: messages and clients generated from `proto/leasehold/v1`.
#[allow(missing_docs, clippy::all, reason = "generated from proto/, whose comments are the reference")]
pub mod proto {
    tonic::include_proto!("leasehold.v1");
}
