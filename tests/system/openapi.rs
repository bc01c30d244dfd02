//! What the server says of its HTTP face, tried by a tool that reads it.

use std::process::Command;

use crate::stack::Dev;
use crate::support::{python, run};

/// Schemathesis sends what the document allows and what it forbids, and compares each answer with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_fault() {
    let dev = Dev::start().await;
    let document = format!("http://{}/openapi.json", dev.node.address);
    let report = tokio::task::spawn_blocking(move || {
        let mut schemathesis = Command::new(python().with_file_name("schemathesis"));
        // It leaves what it has tried in the folder where it runs.
        schemathesis.current_dir(env!("CARGO_TARGET_TMPDIR"));
        run(schemathesis.arg("run").arg(document).args([
            "--max-examples=20",
            "--seed=7",
            "--no-color",
            // A call may wait for a minute by itself. Following what answers point at would do that again and again.
            "--request-timeout=70",
            "--phases=examples,coverage,fuzzing",
            // It ends when the job does, and nobody runs these.
            "--exclude-operation-id=WatchJob",
            // Which values fit together is more than a schema can say: a backoff's max below its initial, two forms of a
            // payload, an id of yesterday.
            "--exclude-checks=positive_data_acceptance",
        ]))
    });
    let report = report.await.unwrap();
    assert!(report.contains(" passed"), "{report}");
}
