//! Compiles the wire protocol without protoc, and keeps its descriptors for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

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
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("leasehold.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::grpc::codec::Lean")
        .bytes(".leasehold.v1.Payload.data")
        .bytes(".leasehold.v1.Progress.checkpoint")
        .bytes(".leasehold.v1.LeasedJob.checkpoint")
        .compile_fds(descriptors)?;
    Ok(())
}
