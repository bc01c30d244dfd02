//! The examples of worker-sdk are programs that run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use leasehold_testing::TestServer;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use worker_sdk::JobState;

/// Nothing here takes longer.
const SOON: Duration = Duration::from_secs(60);

/// Where they are, once they are built: a run of some tests only does not build them.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = std::process::Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--locked",
            "-p",
            "worker-sdk",
            "--examples",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success(), "the examples can be built");
    let me = std::env::current_exe().unwrap();
    me.parent().unwrap().with_file_name("examples")
});

fn start(example: &str, server: &TestServer) -> Child {
    Command::new(FOLDER.join(example))
        .env("LEASEHOLD_SERVER", server.url())
        .env("PORT", "0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What it says, when it has ended well.
async fn said(example: &str, server: &TestServer) -> String {
    let child = start(example, server);
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await;
    let output = output.expect("it ends").unwrap();
    assert!(output.status.success(), "{example}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn thumbnails_are_made() {
    let server = TestServer::start().await.unwrap();
    let said = said("thumbnails", &server).await;
    // 150 x 100 pixels and a head.
    assert!(said.contains("of 45015 bytes"), "{said}");
    assert_eq!(server.jobs_of("thumbnail").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_webhook_is_delivered_when_its_receiver_is_not_busy_any_more() {
    let server = TestServer::start().await.unwrap();
    let said = said("webhooks", &server).await;
    assert_eq!(said, "204 after 3 attempts\n");
}

#[tokio::test]
async fn an_import_goes_on_from_its_checkpoint() {
    let server = TestServer::start().await.unwrap();
    let said = said("import", &server).await;
    assert_eq!(
        said,
        "attempt 1 worked on 650 lines\nattempt 2 worked on 400 lines\n1000 lines, sum 499500\n\
         attempt 1: goes on after line 0\nattempt 2: goes on after line 600\n"
    );
}

#[tokio::test]
async fn a_report_comes_once_each_night_and_brings_the_next() {
    let server = TestServer::start().await.unwrap();
    let said = said("nightly_report", &server).await;
    assert_eq!(said.matches("mailed: ").count(), 2, "{said}");
    assert_eq!(server.jobs().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_web_server_and_a_worker_live_in_one_process_and_end_by_one_signal() {
    let server = TestServer::start().await.unwrap();
    let mut child = start("beside_axum", &server);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(SOON, lines.next_line()).await;
    let line = line.expect("it starts").unwrap().unwrap();
    let address = line.rsplit(' ').next().unwrap();
    let place = ask(address, "POST", "/orders/17").await;
    assert!(place.starts_with("HTTP/1.1 202"), "{place}");
    let again = ask(address, "POST", "/orders/17").await;
    let path = place.rsplit("\r\n").next().unwrap();
    assert!(again.ends_with(path), "one order is shipped once");
    let shipped = ask(address, "GET", path).await;
    assert!(shipped.ends_with("order 17 is on its way"), "{shipped}");
    let jobs = server.jobs_of("ship").await.unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].state(), JobState::Succeeded);
    let pid = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(kill.unwrap().success());
    let ended = tokio::time::timeout(SOON, child.wait()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

async fn ask(address: &str, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
