//! Clients in other languages: generated, or made by reflection as grpcurl does it.

use std::path::Path;
use std::process::Command;

use crate::stack::Dev;
use crate::support::{python, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_and_worker_made_by_reflection_do_a_whole_journey() {
    let dev = Dev::start().await;
    let address = dev.node.address.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/journey.py");
        run(Command::new(python()).arg(script).arg(address))
    });
    let output = output.await.unwrap();
    for line in ["serving", "refused", "renewed", "recorded 20", "results 20"] {
        assert!(output.contains(line), "{line}: {output}");
    }
}
