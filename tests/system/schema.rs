//! A schema that a newer program has made is refused, and left as it is.

use std::time::Duration;

use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::stack::Dev;
use crate::support::{Process, TestDatabase, leasehold, shared_redis_url};

const NEWER: i64 = 9_999;

/// Runs a command that must end by itself; its exit code and all it says.
async fn ends(args: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(args[0], leasehold(args));
    let status = process.ended(Duration::from_secs(60)).await;
    let told = [process.output(), process.log()].concat().join("\n");
    (status.code(), told)
}

#[tokio::test]
async fn an_older_program_refuses_a_newer_schema_in_postgres() {
    let database = TestDatabase::create().await;
    let (url, redis) = (database.url(), shared_redis_url());
    let (code, told) = ends(&["migrate", "--database-url", &url]).await;
    assert_eq!(code, Some(0), "{told}");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let newer = "INSERT INTO leasehold_migrations (version, name) VALUES ($1, 'from the future')";
    let newer = sqlx::query(newer).bind(NEWER).execute(&mut connection);
    assert_eq!(newer.await.unwrap().rows_affected(), 1);

    let both = ["--database-url", &url, "--redis-url", &redis];
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    for (args, fails_with) in [
        (vec!["migrate", "--database-url", &url], 2),
        (vec!["migrate", "--dry-run", "--database-url", &url], 2),
        ([&serve[..], &both].concat(), 2),
        ([&serve[..], &["--no-migrate"], &both].concat(), 2),
        ([&["doctor"][..], &both].concat(), 1),
    ] {
        let (code, told) = ends(&args).await;
        assert_eq!(code, Some(fails_with), "{args:?}: {told}");
        assert!(told.contains("use a newer program"), "{args:?}: {told}");
    }
}

#[tokio::test]
async fn an_older_program_refuses_a_newer_file_of_dev() {
    let mut dev = Dev::start().await;
    dev.node.process.terminate();
    dev.node.process.ended(Duration::from_secs(60)).await;
    let data = dev.folder.path().join("data");
    let file = format!("sqlite://{}", data.join("leasehold.db").display());
    let mut connection = SqliteConnection::connect(&file).await.unwrap();
    let newer =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES ($1, 'from the future', 1, x'00', 0)";
    let newer = sqlx::query(newer).bind(NEWER).execute(&mut connection);
    assert_eq!(newer.await.unwrap().rows_affected(), 1);
    connection.close().await.unwrap();

    let data = data.to_string_lossy();
    let (code, told) = ends(&["dev", "--listen", "127.0.0.1:0", "--data", &data]).await;
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("use a newer program"), "{told}");
}
