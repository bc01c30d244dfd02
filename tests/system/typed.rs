//! What is typed about one job: `leasehold jobs`, as a person or a script uses it.

use serde_json::Value;

use crate::stack::{Dev, START_WITHIN};
use crate::support::{Process, leasehold};

/// Runs `leasehold jobs` with these words; its exit code, and what it wrote to stdout and stderr.
async fn jobs(dev: &Dev, words: &[&str]) -> (Option<i32>, String, String) {
    let mut args = vec!["jobs".to_owned(), "--server".to_owned(), dev.node.url()];
    args.extend(["-o".to_owned(), "json".to_owned()]);
    args.extend(words.iter().map(|word| (*word).to_owned()));
    let mut process = Process::start("jobs", leasehold(args));
    let status = process.ended(START_WITHIN).await;
    let (out, log) = (process.output(), process.log());
    (status.code(), out.join("\n"), log.join("\n"))
}

/// The job that it shows.
async fn shown(dev: &Dev, words: &[&str]) -> Value {
    let (code, out, log) = jobs(dev, words).await;
    assert_eq!(code, Some(0), "{words:?}: {log}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{words:?}: {e}: {out}"))
}

fn id(job: &Value) -> String {
    job["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_says_when() {
    let dev = Dev::start().await;
    let job = shown(&dev, &["enqueue", "k", "--expire-in", "1h"]).await;
    assert!(job["expire_time"].is_string(), "{job}");
    let time = "2090-01-31T12:00:00Z";
    let job = shown(&dev, &["enqueue", "k", "--expire-time", time]).await;
    assert_eq!(job["expire_time"], time);
    let late = ["enqueue", "k", "--expire-in", "1s", "--delay", "2s"];
    let (code, _, log) = jobs(&dev, &late).await;
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("expire_in"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_is_kept_refused_or_taken_over() {
    let dev = Dev::start().await;
    let with = |conflict: &'static str| {
        let words = ["enqueue", "k", "--unique-key", "a", "--unique-conflict"];
        [&words[..], &[conflict]].concat()
    };
    let first = shown(&dev, &["enqueue", "k", "--unique-key", "a"]).await;
    assert_eq!(first["unique_key"], "a");
    assert_eq!(id(&shown(&dev, &with("keep")).await), id(&first));
    let (code, _, log) = jobs(&dev, &with("refuse")).await;
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains(&id(&first)), "it names the holder: {log}");
    let new = shown(&dev, &with("replace")).await;
    let old = shown(&dev, &["get", &id(&first)]).await;
    assert_eq!(
        (&old["state"], &old["replaced_by"]),
        (&"CANCELLED".into(), &new["id"])
    );
    let (code, _, log) = jobs(&dev, &["retry", &id(&first)]).await;
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains(&id(&new)), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_retried_with_another_payload_as_a_copy() {
    let dev = Dev::start().await;
    let job = shown(&dev, &["enqueue", "k", "1", "--label", "a=b"]).await;
    shown(&dev, &["cancel", &id(&job)]).await;
    let copy = shown(&dev, &["retry", &id(&job), "--payload", "[2]"]).await;
    assert_eq!(copy["copied_from"], job["id"]);
    let copy = shown(&dev, &["get", &id(&copy)]).await;
    assert_eq!(copy["payload"], serde_json::json!([2]));
    assert_eq!(copy["labels"]["a"], "b");
    let (code, _, log) = jobs(&dev, &["retry", &id(&job), "--payload", "{"]).await;
    assert_eq!(code, Some(2), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_is_moved_and_one_that_is_final_deleted() {
    let dev = Dev::start().await;
    let job = shown(&dev, &["enqueue", "k", "--delay", "1h"]).await;
    let id = id(&job);
    let moved = shown(&dev, &["reschedule", &id, "--delay", "2h"]).await;
    assert_ne!(moved["run_time"], job["run_time"]);
    let time = "2030-01-31T12:00:00Z";
    let moved = shown(&dev, &["reschedule", &id, "--at", time]).await;
    assert_eq!(
        (&moved["state"], &moved["run_time"]),
        (&"SCHEDULED".into(), &time.into())
    );
    let moved = shown(&dev, &["set-priority", "high", &id]).await;
    assert_eq!(moved["priority"], "HIGH");
    assert_eq!(shown(&dev, &["run-now", &id]).await["state"], "QUEUED");
    let (code, _, log) = jobs(&dev, &["delete", &id]).await;
    assert_eq!(code, Some(3), "{log}");
    assert_eq!(shown(&dev, &["cancel", &id]).await["state"], "CANCELLED");
    let (code, _, log) = jobs(&dev, &["delete", &id]).await;
    assert_eq!(code, Some(0), "{log}");
    let (code, _, log) = jobs(&dev, &["get", &id]).await;
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("JOB_NOT_FOUND") || log.contains(&id), "{log}");
}
