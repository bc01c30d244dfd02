//! Compiles the wire protocol without protoc. `proto` is a link to the server's, so that a published package is whole.
//!
//! The server's traits are generated too: they cost nothing, and let the tests (and a user's) be a real server.

use std::error::Error;

const FILES: [&str; 5] = [
    "leasehold/v1/bulks.proto",
    "leasehold/v1/job.proto",
    "leasehold/v1/jobs.proto",
    "leasehold/v1/leases.proto",
    "leasehold/v1/queues.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".leasehold.v1.Payload.data")
        .bytes(".leasehold.v1.Progress.checkpoint")
        .bytes(".leasehold.v1.LeasedJob.checkpoint")
        .compile_fds(descriptors)?;
    Ok(())
}
