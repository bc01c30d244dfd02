//! What the server says of its HTTP face, tried by a tool that reads it.

use std::process::Command;

use crate::stack::Dev;
use crate::support::{python, run};

/// Schemathesis sends what the document allows and what it forbids, and compares each answer with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_fault() {
    let dev = Dev::start().await;
    let document = format!("http://{}/openapi.json", dev.node.address);
    let reports = tokio::task::spawn_blocking(move || {
        [
            // A watch of a queue has no end, that of a job ends when it does, and nobody runs these; a look at one may wait
            // for a minute.
            &[
                "--phases=examples,coverage,fuzzing",
                "--exclude-operation-id=WatchJob",
                "--exclude-operation-id=WatchQueue",
                "--exclude-operation-id=GetJob",
                // It finds out the server's own id, and lets it leave.
                "--exclude-operation-id=DrainNode",
            ][..],
            // Alone it has no jobs to wait for.
            &[
                "--phases=examples,coverage",
                "--include-operation-id=GetJob",
            ],
        ]
        .map(|which| schemathesis(&document, which))
    });
    for report in reports.await.unwrap() {
        assert!(report.contains(" passed"), "{report}");
    }
}

fn schemathesis(document: &str, which: &[&str]) -> String {
    let mut schemathesis = Command::new(python().with_file_name("schemathesis"));
    // It leaves what it has tried in the folder where it runs.
    schemathesis.current_dir(env!("CARGO_TARGET_TMPDIR"));
    schemathesis.arg("run").arg(document).args(which);
    run(schemathesis.args([
        "--max-examples=20",
        "--seed=7",
        "--no-color",
        // Which values fit together is more than a schema can say: a backoff's max below its initial, two forms of a
        // payload, an id of yesterday.
        "--exclude-checks=positive_data_acceptance",
    ]))
}
