//! `leasehold bench`: it measures in every mode, finds every job, says so when one is not as it must be, and leaves
//! nothing behind. No figure is judged here: this is a debug build on a busy machine.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use worker_sdk::{Client, JobState, ListJobsRequest, NewJob};

use crate::stack::{Dev, client};
use crate::support::{PrivatePostgres, PrivateRedis, Process, leasehold, until};

const ENDS_WITHIN: Duration = Duration::from_secs(300);
/// Small, with rates that a debug build beside others keeps up with.
const SMALL: [&str; 14] = [
    "--jobs",
    "300",
    "--rate",
    "50",
    "--duration",
    "1s",
    "--in-flight",
    "16",
    "--batch",
    "100",
    "--workers",
    "2",
    "--slots",
    "50",
];

/// A benchmark with a folder of its own for what it writes.
struct Bench {
    process: Process,
    folder: TempDir,
}

impl Bench {
    fn start(args: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        std::fs::create_dir(path("dir")).unwrap();
        let mut command = leasehold(["bench"].iter().chain(args));
        command.args(["--dir", &path("dir"), "--json", &path("figures.json")]);
        Self {
            process: Process::start("bench", command),
            folder,
        }
    }

    /// Its exit code, once it has ended.
    async fn ended(&mut self) -> Option<i32> {
        let code = self.process.ended(ENDS_WITHIN).await.code();
        assert!(
            self.folder
                .path()
                .join("dir")
                .read_dir()
                .unwrap()
                .next()
                .is_none(),
            "its folder is left behind"
        );
        code
    }

    fn told(&self) -> String {
        let lines = [self.process.output(), self.process.log()].concat();
        lines.join("\n")
    }

    fn figures(&self) -> Value {
        let text = std::fs::read_to_string(self.folder.path().join("figures.json"));
        serde_json::from_str(&text.unwrap_or_else(|_| panic!("no figures: {}", self.told())))
            .unwrap()
    }
}

/// What every report must have.
fn check(report: &Value, modes: &[&str], runs: usize) {
    assert_eq!(report["format"], 1);
    assert_eq!(report["valid"], true);
    assert_eq!(report["build"], "debug");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    assert!(!report["machine"]["cpu"].as_str().unwrap().is_empty());
    let figures = report["figures"].as_array().unwrap();
    let names: Vec<&str> = figures
        .iter()
        .map(|f| f["mode"].as_str().unwrap())
        .collect();
    assert_eq!(names, modes);
    for figure in figures {
        let number = |key: &str| figure[key].as_f64().unwrap();
        assert_eq!(figure["valid"], true, "{figure}");
        assert!(number("median") > 0.0, "{figure}");
        assert!(number("min") <= number("median") && number("median") <= number("max"));
        let samples = figure["samples"].as_array().unwrap();
        assert_eq!(samples.len(), runs, "{figure}");
        for sample in samples {
            let audit = &sample["audit"];
            assert_eq!(audit["accepted"], sample["jobs"], "{figure}");
            assert_eq!(audit["found"], sample["jobs"], "{figure}");
            assert_eq!(audit["right_state"], sample["jobs"], "{figure}");
            assert!(sample["cost"]["bench_us"].as_f64().is_some());
        }
    }
    for ceiling in report["ceilings"].as_array().unwrap() {
        assert!(ceiling["median"].as_f64().unwrap() > 0.0, "{ceiling}");
    }
}

/// Names of the ceilings beside a mode's figure, whose ratio must be that of the two numbers.
fn beside<'a>(report: &'a Value, mode: &str) -> Vec<&'a str> {
    let figures = report["figures"].as_array().unwrap();
    let figure = figures.iter().find(|f| f["mode"] == mode).unwrap();
    let all = figure["beside"].as_array().unwrap();
    all.iter()
        .map(|beside| {
            let ratio = figure["median"].as_f64().unwrap() / beside["value"].as_f64().unwrap();
            let told = beside["ratio"].as_f64().unwrap();
            assert!((ratio - told).abs() <= 1e-9 * ratio.abs(), "{beside}");
            beside["ceiling"].as_str().unwrap()
        })
        .collect()
}

const SUITE: [&str; 6] = [
    "enqueue",
    "enqueue-batch",
    "drain",
    "flow",
    "idle",
    "steady",
];

#[tokio::test]
async fn an_embedded_server_is_measured_in_every_mode() {
    let mut bench = Bench::start(&[&SMALL[..], &["--runs", "2"]].concat());
    let code = bench.ended().await;
    assert_eq!(code, Some(0), "{}", bench.told());
    let report = bench.figures();
    check(&report, &SUITE, 2);
    assert_eq!(report["stage"], "embedded");
    assert_eq!(beside(&report, "enqueue"), ["insert"]);
    assert_eq!(beside(&report, "enqueue-batch"), ["insert_batch"]);
    assert_eq!(beside(&report, "drain"), ["grant_and_result"]);
    assert_eq!(beside(&report, "idle"), ["commit", "fdatasync"]);
    for mode in SUITE {
        assert!(
            bench.told().contains(&format!("\n{mode} ")),
            "{}",
            bench.told()
        );
    }
}

#[tokio::test]
async fn nodes_on_postgres_and_redis_are_measured_and_nothing_is_left_behind() {
    let (postgres, redis) = (
        PrivatePostgres::launch().await,
        PrivateRedis::launch().await,
    );
    let (database, list) = (postgres.url(), redis.url());
    let urls = [
        "--postgres",
        &database,
        "--redis",
        &list,
        "--nodes",
        "2",
        "--runs",
        "1",
    ];
    let mut bench = Bench::start(&[&["all", "soak"], &urls[..], &SMALL].concat());
    let code = bench.ended().await;
    assert_eq!(code, Some(0), "{}", bench.told());
    let report = bench.figures();
    check(&report, &[&SUITE[..], &["soak"]].concat(), 1);
    assert_eq!(report["nodes"], 2);
    assert_eq!(report["stores"]["postgres.fsync"], "on");
    assert_eq!(report["stores"]["postgres.synchronous_commit"], "on");
    assert_eq!(beside(&report, "enqueue-batch"), ["insert_batch", "xadd"]);
    let drain = &report["figures"][2]["samples"][0];
    for cost in [
        "server_us",
        "postgres_us",
        "redis_us",
        "wal_bytes",
        "redis_commands",
    ] {
        assert!(drain["cost"][cost].as_f64().is_some(), "{cost}: {drain}");
    }
    let soak = &report["figures"][6]["samples"][0]["series"];
    for size in [
        "tables_mib",
        "indexes_mib",
        "redis_mib",
        "node_mib",
        "jobs_a_second",
    ] {
        assert!(soak[0][size].as_f64().is_some(), "{size}: {soak}");
    }
    nothing_left(&database, &list).await;
}

/// Of the benchmark, on stores that nobody else uses.
async fn nothing_left(database: &str, list: &str) {
    let mut postgres = PgConnection::connect(database).await.unwrap();
    let databases: Vec<String> =
        sqlx::query_scalar("SELECT datname FROM pg_database WHERE datname LIKE 'leasehold%'")
            .fetch_all(&mut postgres)
            .await
            .unwrap();
    assert_eq!(databases, Vec::<String>::new());
    let redis = redis::Client::open(list).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(keys, Vec::<String>::new());
    assert_eq!(nodes_of(list), Vec::<i32>::new(), "a node is left");
}

/// Process ids of the nodes on this Redis.
fn nodes_of(list: &str) -> Vec<i32> {
    let setting = format!("LEASEHOLD_REDIS_URL={list}");
    let processes = Path::new("/proc").read_dir().unwrap().flatten();
    processes
        .filter(|process| {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&setting)
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn idle_streams_are_weighed() {
    let mut bench = Bench::start(&["streams", "--streams", "60"]);
    let code = bench.ended().await;
    assert_eq!(code, Some(0), "{}", bench.told());
    let report = bench.figures();
    let figure = &report["figures"][0];
    assert_eq!(figure["unit"], "KiB");
    // The first half only shows what a node takes once and for all.
    assert_eq!(figure["samples"][0]["audit"]["found"], 30);
}

/// A benchmark in the middle of its first run, on stores of its own.
async fn enqueueing() -> (PrivatePostgres, PrivateRedis, Bench) {
    let (postgres, redis) = (
        PrivatePostgres::launch().await,
        PrivateRedis::launch().await,
    );
    let (database, list) = (postgres.url(), redis.url());
    let urls = ["--postgres", &database, "--redis", &list];
    let bench = Bench::start(&[&["enqueue", "--jobs", "1000000"], &urls[..]].concat());
    bench.process.logged("# enqueue: run 1", ENDS_WITHIN).await;
    (postgres, redis, bench)
}

#[tokio::test]
async fn a_benchmark_that_is_interrupted_removes_what_it_made() {
    let (postgres, redis, mut bench) = enqueueing().await;
    let (database, list) = (postgres.url(), redis.url());
    bench.process.signal("INT");
    let code = bench.ended().await;
    assert_eq!(code, Some(3), "{}", bench.told());
    assert!(bench.told().contains("interrupted"), "{}", bench.told());
    nothing_left(&database, &list).await;
}

#[tokio::test]
async fn a_benchmark_that_is_interrupted_tells_the_figures_that_it_has() {
    let args = [&["enqueue", "idle"], &SMALL[..], &["--runs", "1000"]].concat();
    let mut bench = Bench::start(&args);
    bench.process.logged("# idle: run 2", ENDS_WITHIN).await;
    bench.process.signal("TERM");
    let code = bench.ended().await;
    assert_eq!(code, Some(3), "{}", bench.told());
    assert!(bench.told().contains("INCOMPLETE"), "{}", bench.told());
    let report = bench.figures();
    assert_eq!(report["incomplete"], "interrupted");
    assert_eq!(report["valid"], true);
    let runs = |n: usize| report["figures"][n]["samples"].as_array().unwrap().len();
    assert!(runs(0) >= 2 && runs(1) >= 1, "{report}");
    assert!(runs(0) < 1_000, "{report}");
}

#[tokio::test]
async fn a_second_interruption_removes_all_the_same() {
    let (postgres, redis, mut bench) = enqueueing().await;
    let (database, list) = (postgres.url(), redis.url());
    let nodes = nodes_of(&list);
    assert_eq!(nodes.len(), 1);
    // A node that does not leave when it is asked to.
    let node = rustix::process::Pid::from_raw(nodes[0]).unwrap();
    rustix::process::kill_process(node, rustix::process::Signal::STOP).unwrap();
    bench.process.signal("INT");
    bench.process.logged("# interrupted;", ENDS_WITHIN).await;
    bench.process.signal("INT");
    let code = bench.ended().await;
    assert_eq!(code, Some(3), "{}", bench.told());
    nothing_left(&database, &list).await;
}

#[tokio::test]
async fn what_cannot_be_removed_is_named() {
    let (mut postgres, _redis, mut bench) = enqueueing().await;
    postgres.kill();
    bench.process.signal("INT");
    let code = bench.ended().await;
    assert_eq!(code, Some(3), "{}", bench.told());
    let told = bench.told();
    let left = told.lines().find(|line| line.starts_with("left behind: "));
    let left = left.unwrap_or_else(|| panic!("nothing is named: {told}"));
    assert!(left.contains("the database leasehold_bench_"), "{left}");
    assert!(!left.contains("node") && !left.contains("keys"), "{left}");
}

#[tokio::test]
async fn an_overloaded_server_is_measured() {
    let more = ["--runs", "1", "--outstanding", "2000", "--times", "4"];
    let mut bench = Bench::start(&[&["overload"], &SMALL[..], &more].concat());
    let code = bench.ended().await;
    assert_eq!(code, Some(0), "{}", bench.told());
    let report = bench.figures();
    check(&report, &["overload"], 1);
    let sample = &report["figures"][0]["samples"][0];
    let more = |name: &str| sample["more"][name].as_f64().unwrap();
    assert_eq!(more("bad_answers"), 0.0);
    assert!(more("closed_jobs_a_second") > 0.0, "{sample}");
    assert!(more("node_mib_peak") >= more("node_mib_before"), "{sample}");
    let latency = |name: &str| sample["latencies"][name]["count"].as_u64().unwrap();
    assert_eq!(latency("accepted"), sample["jobs"].as_u64().unwrap());
    assert!(latency("refused") < u64::MAX, "{sample}");
}

#[tokio::test]
async fn a_postgres_that_may_lose_commits_is_refused() {
    let (postgres, redis) = (
        PrivatePostgres::launch().await,
        PrivateRedis::launch().await,
    );
    let (database, list) = (postgres.url(), redis.url());
    let mut connection = PgConnection::connect(&database).await.unwrap();
    for statement in [
        "ALTER SYSTEM SET synchronous_commit = off",
        "SELECT pg_reload_conf()",
    ] {
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    until(ENDS_WITHIN, "the setting is in force", async || {
        let mut fresh = PgConnection::connect(&database).await.ok()?;
        let value: String = sqlx::query_scalar("SHOW synchronous_commit")
            .fetch_one(&mut fresh)
            .await
            .ok()?;
        (value == "off").then_some(())
    })
    .await;
    let urls = ["--postgres", &database, "--redis", &list];
    let mut bench = Bench::start(&[&["enqueue"], &urls[..], &SMALL].concat());
    let code = bench.ended().await;
    assert_eq!(code, Some(2), "{}", bench.told());
    assert!(
        bench.told().contains("synchronous_commit"),
        "{}",
        bench.told()
    );
    nothing_left(&database, &list).await;
    let marked = ["--not-durable", "--runs", "1"];
    let mut bench = Bench::start(&[&["enqueue"], &urls[..], &SMALL, &marked].concat());
    let code = bench.ended().await;
    assert_eq!(code, Some(0), "{}", bench.told());
    assert_eq!(
        bench.figures()["not_durable"][0],
        "synchronous_commit = off"
    );
    assert!(bench.told().contains("NOT DURABLE"), "{}", bench.told());
    nothing_left(&database, &list).await;
}

#[tokio::test]
async fn a_server_with_jobs_is_not_filled_by_mistake_and_a_job_gone_wrong_makes_the_figure_invalid()
{
    let dev = Dev::start().await;
    let url = dev.node.url();
    let client = client(&url);
    client
        .enqueue(NewJob::new("mine", &1).unwrap())
        .await
        .unwrap();
    let mut bench = Bench::start(&["enqueue", "--server", &url]);
    let code = bench.ended().await;
    assert_eq!(code, Some(2), "{}", bench.told());
    assert!(bench.told().contains("--fill"), "{}", bench.told());

    let args = [
        "enqueue", "--server", &url, "--fill", "--runs", "1", "--jobs", "3000",
    ];
    let mut bench = Bench::start(&args);
    cancel_one(&client).await;
    let code = bench.ended().await;
    assert_eq!(code, Some(1), "{}", bench.told());
    assert!(bench.told().contains("NOT CLEAN"), "{}", bench.told());
    let report = bench.figures();
    assert_eq!(report["valid"], false);
    assert_eq!(report["figures"][0]["valid"], false);
}

/// Cancels a job of the benchmark while it is at work.
async fn cancel_one(client: &Client) {
    until(
        ENDS_WITHIN,
        "a job of the benchmark is cancelled",
        async || {
            let page = client.list(ListJobsRequest::default()).await.unwrap();
            let theirs = page.jobs.into_iter().find(|job| {
                let queue = job.spec.as_ref().map(|spec| spec.queue.as_str());
                queue.is_some_and(|queue| queue.starts_with("bench-"))
                    && job.state() == JobState::Queued
            })?;
            client.cancel(&theirs.id, "to be missed").await.ok()
        },
    )
    .await;
}
