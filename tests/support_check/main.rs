//! The tests' own tools, tried: a tool that does not stop what it says it stopped would make other
//! tests believe in recoveries that never were.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

#[path = "../support/mod.rs"]
mod support;

use std::{process::Command, time::Duration};

use sqlx::{Connection, PgConnection};
use support::{PrivatePostgres, PrivateRedis, Process, TestDatabase, leasehold, until};

const SOON: Duration = Duration::from_secs(10);

async fn count(url: &str) -> Result<i64, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query_scalar("SELECT count(*) FROM kept")
        .fetch_one(&mut connection)
        .await
}

async fn create(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE kept AS SELECT 1")
        .execute(&mut connection)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_test_database_is_empty_and_goes_with_its_test() {
    let (one, other) = (TestDatabase::create().await, TestDatabase::create().await);
    let (one_url, other_url) = (one.url(), other.url());
    create(&one_url).await;
    count(&other_url)
        .await
        .expect_err("the other one has no such table");
    let _still_connected = PgConnection::connect(&one_url).await.unwrap();
    drop(one);
    PgConnection::connect(&one_url)
        .await
        .expect_err("it was dropped");
    count(&other_url)
        .await
        .expect_err("the other one has no such table");
}

#[tokio::test]
async fn a_private_postgres_comes_back_with_its_data_after_a_stop_and_a_kill() {
    let mut postgres = PrivatePostgres::launch().await;
    let url = postgres.url();
    create(&url).await;
    let _still_connected = PgConnection::connect(&url).await.unwrap();
    postgres.stop().await;
    count(&url).await.expect_err("it is stopped");
    postgres.start().await;
    assert_eq!(count(&url).await.unwrap(), 1);
    let _still_connected = PgConnection::connect(&url).await.unwrap();
    postgres.kill();
    count(&url).await.expect_err("it is killed");
    postgres.start().await;
    assert_eq!(postgres.url(), url);
    assert_eq!(count(&url).await.unwrap(), 1);
}

#[tokio::test]
async fn a_private_redis_keeps_its_data_over_a_stop_and_loses_it_by_a_kill() {
    let mut redis = PrivateRedis::launch().await;
    let client = redis::Client::open(redis.url()).unwrap();
    let get = async || -> redis::RedisResult<Option<i64>> {
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("GET")
            .arg("kept")
            .query_async(&mut connection)
            .await
    };
    let set = async |value: i64| {
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("SET")
            .arg("kept")
            .arg(value)
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
    };
    set(1).await;
    redis.stop().await;
    get().await.expect_err("it is stopped");
    redis.start().await;
    assert_eq!(get().await.unwrap(), Some(1));
    set(2).await;
    redis.kill();
    get().await.expect_err("it is killed");
    redis.start().await;
    assert_eq!(get().await.unwrap(), Some(1));
}

#[tokio::test]
async fn a_process_can_be_read_terminated_and_killed() {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap 'echo bye; exit 7' TERM; echo up >&2; while :; do sleep 0.05; done",
    ]);
    let mut process = Process::start("a shell", command);
    assert_eq!(process.logged("up", SOON).await, "up");
    process.terminate();
    assert_eq!(process.ended(SOON).await.code(), Some(7));
    assert_eq!(process.output(), ["bye"]);

    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' TERM; echo up >&2; while :; do sleep 0.05; done",
    ]);
    let mut deaf = Process::start("a deaf shell", command);
    deaf.logged("up", SOON).await;
    deaf.terminate();
    deaf.kill();
    assert_eq!(deaf.exit_status().unwrap().code(), None);
}

#[tokio::test]
#[should_panic(expected = "until pigs fly")]
async fn a_wait_in_vain_says_what_it_waited_for() {
    until(Duration::from_millis(50), "pigs fly", async || None::<()>).await;
}

#[tokio::test]
async fn the_binary_sees_none_of_the_settings_around_the_test() {
    let removed: Vec<_> = leasehold(["--version"])
        .get_envs()
        .filter(|(_, value)| value.is_none())
        .map(|(key, _)| key.to_string_lossy().into_owned())
        .collect();
    assert!(removed.contains(&"LEASEHOLD_TEST_DATABASE_URL".to_owned()));
}
