//! What a second signal does: it ends the wait that the first one began.

use std::time::Duration;

use tempfile::TempDir;
use worker_sdk::{Context, JobError, JobState, NewJob, Worker};

use crate::stack::{Dev, START_WITHIN, client};
use crate::support::{Process, free_port, http_status, leasehold, until};

const URL: &str = "TEST_PATIENT_WORKER_URL";
const SOON: Duration = Duration::from_secs(60);
/// Nobody waits for so long: what ends sooner was ended.
const LONG: Duration = Duration::from_secs(3600);

/// A worker in a process of its own, with a handler that never ends and a grace that is as long.
fn patient_worker(url: &str) -> Process {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let test = "signals::the_patient_worker_of_another_test";
    command.args(["--exact", test, "--nocapture"]).env(URL, url);
    Process::start("patient worker", command)
}

/// Does nothing by itself: [`patient_worker`] starts it as a worker.
#[test]
fn the_patient_worker_of_another_test() {
    let Ok(url) = std::env::var(URL) else { return };
    let worker = Worker::builder(url).queue("q").grace(LONG);
    let worker = worker.handler("endless", |_: Context, (): ()| async {
        tokio::time::sleep(LONG).await;
        Ok::<_, JobError>(())
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { worker.build().unwrap().run().await.unwrap() });
}

/// Enqueues a job that never ends, and waits until it runs.
async fn running(url: &str) -> String {
    let job = NewJob::new("endless", &()).unwrap().queue("q");
    let id = client(url).enqueue(job).await.unwrap().job.id;
    until(SOON, "the job runs", async || {
        let job = client(url).get(&id).await.unwrap();
        (job.state() == JobState::Running).then_some(())
    })
    .await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_draining_server_at_once_and_its_temporary_folder_with_it() {
    let temporary = TempDir::new().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listen = address.to_string();
    let mut command = leasehold([
        "dev",
        "--ephemeral",
        "--drain-grace",
        "10m",
        "--listen",
        &listen,
    ]);
    command.env("TMPDIR", temporary.path());
    let mut server = Process::start("dev", command);
    server.ready(address, START_WITHIN).await;
    let url = format!("http://{address}");
    let _worker = patient_worker(&url);
    running(&url).await;

    server.terminate();
    until(SOON, "the server drains", async || {
        (http_status(address, "/readyz").await == Some(503)).then_some(())
    })
    .await;
    server.signal("INT");
    assert_eq!(server.ended(SOON).await.code(), Some(130));
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_to_a_worker_gives_its_jobs_back_at_once() {
    let dev = Dev::start().await;
    let mut worker = patient_worker(&dev.node.url());
    let id = running(&dev.node.url()).await;

    // Two kinds: two of one kind that come together are one.
    worker.signal("TERM");
    worker.signal("INT");
    assert!(worker.ended(SOON).await.success());
    let job = client(&dev.node.url()).get(&id).await.unwrap();
    assert_eq!((job.state(), job.releases), (JobState::Queued, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_when_the_node_has_left_and_asks_no_other_program() {
    let mut dev = Dev::start().await;
    let pid = dev.node.process.id().to_string();
    let mut drain = Process::start("drain", leasehold(["drain", &pid]));
    let status = dev.node.process.ended(SOON).await;
    assert!(status.success(), "the node left in order");
    assert!(drain.ended(SOON).await.success());

    let own = std::process::id().to_string();
    for other in [own.as_str(), "0", "-1", "2147483647"] {
        let mut refused = Process::start("drain", leasehold(["drain", "--", other]));
        assert_eq!(refused.ended(SOON).await.code(), Some(2), "{other}");
    }
}
