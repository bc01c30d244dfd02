//! What is killed, wiped and stopped: no job is lost, and each is recorded once.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use worker_sdk::{Client, JobState, NewJob};

use crate::stack::{Dev, Stack, client};
use crate::support::{http_status, until};
use crate::workers::{Local, process, runs};

const SOON: Duration = Duration::from_secs(90);

struct Log {
    _folder: TempDir,
    path: PathBuf,
}

fn log() -> Log {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("runs");
    Log {
        _folder: folder,
        path,
    }
}

/// Enqueues `count` jobs by batches of 500, every other batch to the other client.
async fn enqueue(clients: &[&Client], count: usize, kind: &str, payload: u64) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let client = clients[(ids.len() / 500) % clients.len()];
        let batch = (ids.len()..count)
            .take(500)
            .map(|_| NewJob::new(kind, &payload).unwrap().queue("q"));
        ids.extend(
            client
                .enqueue_batch(batch)
                .await
                .unwrap()
                .into_iter()
                .map(|e| e.job.id),
        );
    }
    ids
}

async fn all_succeed(client: &Client, ids: &[String]) {
    for id in ids {
        let job = client.wait(id, SOON).await.unwrap();
        assert_eq!(job.state(), JobState::Succeeded, "{id}");
    }
}

fn each_ran(log: &Log, ids: &[String]) {
    let runs = runs(&log.path);
    assert!(ids.iter().all(|id| runs.contains_key(id)), "every job ran");
}

fn each_ran_once(log: &Log, ids: &[String]) {
    each_ran(log, ids);
    let twice: Vec<_> = runs(&log.path)
        .into_iter()
        .filter(|(_, times)| *times > 1)
        .collect();
    assert!(
        twice.is_empty(),
        "{} jobs ran more than once, as {:?}",
        twice.len(),
        twice.first()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_killed_and_restarted_goes_on_where_it_was() {
    let (mut dev, log) = (Dev::start().await, log());
    let client = client(&dev.node.url());
    let ids = enqueue(&[&client], 500, "echo", 1).await;
    let scheduled = NewJob::new("echo", &2)
        .unwrap()
        .queue("q")
        .delay(Duration::from_secs(1));
    let scheduled = client.enqueue(scheduled).await.unwrap().job.id;
    dev.node.kill_and_restart().await;
    let worker = Local::start(&dev.node.url(), &log.path, 20);
    until(SOON, "some jobs ran", async || {
        (runs(&log.path).len() > 50).then_some(())
    })
    .await;
    dev.node.kill_and_restart().await;
    all_succeed(&client, &ids).await;
    all_succeed(&client, &[scheduled]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_dev_on_the_same_folder_is_refused() {
    let dev = Dev::start().await;
    let data = dev.folder.path().join("data");
    let args = ["dev", "--listen", "127.0.0.1:0", "--data"].map(Into::into);
    let command = crate::support::leasehold(args.into_iter().chain([data.into_os_string()]));
    let mut second = crate::support::Process::start("second dev", command);
    let status = second.ended(Duration::from_secs(30)).await;
    assert!(!status.success());
    assert!(
        second.log().join("\n").contains("in use"),
        "it says why: {:?}",
        second.log()
    );
}
