//! A program that is older than its database does not touch it, and says what to do.

use std::path::Path;
use std::process::ExitStatus;

use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::stack::{Dev, START_WITHIN};
use crate::support::{Process, TestDatabase, free_port, leasehold, shared_redis_url};

/// How the refusal begins and ends, around the version that this program knows.
const REFUSAL: [&str; 2] = [
    "error: the schema is at version 9000, newer than the ",
    " that this program knows; use a newer program",
];

/// Runs a command that ends by itself; how, and what it said.
async fn end_of(args: &[&str]) -> (ExitStatus, Vec<String>) {
    let mut process = Process::start(args[0], leasehold(args));
    let status = process.ended(START_WITHIN).await;
    (status, [process.output(), process.log()].concat())
}

async fn assert_refused(args: &[&str]) {
    let (status, said) = end_of(args).await;
    assert_eq!(status.code(), Some(2), "{args:?} said {said:?}");
    let [begin, end] = REFUSAL;
    assert!(
        said.last()
            .is_some_and(|last| last.starts_with(begin) && last.ends_with(end)),
        "{args:?} said {said:?}"
    );
}

/// What there is in the database, as far as anybody could have touched it.
async fn postgres_content(url: &str) -> Vec<String> {
    let mut db = PgConnection::connect(url).await.unwrap();
    let content = sqlx::query_scalar(
        "SELECT concat_ws(' ', c.relname, a.attname) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
          WHERE c.relnamespace = 'public'::regnamespace
         UNION ALL SELECT concat_ws(' ', version, name, applied_at) FROM leasehold_migrations
         UNION ALL SELECT pulse::text FROM pulse ORDER BY 1",
    );
    let content = content.fetch_all(&mut db).await.unwrap();
    db.close().await.unwrap();
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_a_database_of_a_newer_program_and_leaves_it_alone() {
    let database = TestDatabase::create().await;
    let url = database.url();
    let (status, said) = end_of(&["migrate", "--database-url", &url]).await;
    assert!(status.success(), "{said:?}");
    let mut db = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        "INSERT INTO leasehold_migrations (version, name) VALUES (9000, 'of tomorrow');
         ALTER TABLE jobs RENAME TO jobs_of_tomorrow",
    )
    .execute(&mut db)
    .await
    .unwrap();
    db.close().await.unwrap();

    let before = postgres_content(&url).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let redis = shared_redis_url();
    let serve = [
        "serve",
        "--listen",
        &listen,
        "--database-url",
        &url,
        "--redis-url",
        &redis,
        "--redis-prefix",
        "of-an-older-program",
    ];
    assert_refused(&serve).await;
    assert_refused(&[&serve[..], &["--no-migrate"]].concat()).await;
    assert_refused(&["migrate", "--database-url", &url]).await;
    assert_refused(&["migrate", "--dry-run", "--database-url", &url]).await;
    assert_eq!(postgres_content(&url).await, before);
}

async fn sqlite(file: &Path, sql: &'static str) {
    let url = format!("sqlite://{}", file.display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_refuses_a_file_of_a_newer_program_and_leaves_it_alone() {
    let mut dev = Dev::start().await;
    dev.node.process.terminate();
    assert!(dev.node.process.ended(START_WITHIN).await.success());
    let data = dev.folder.path().join("data");
    let file = data.join("leasehold.db");
    sqlite(
        &file,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9000, 'of tomorrow', true, x'00', 0);
         ALTER TABLE jobs RENAME TO jobs_of_tomorrow",
    )
    .await;

    let before = std::fs::read(&file).unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let data = data.to_string_lossy().into_owned();
    assert_refused(&["dev", "--listen", &listen, "--data", &data]).await;
    assert_eq!(std::fs::read(&file).unwrap(), before, "not a byte of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_that_may_not_migrate_says_how_to() {
    let database = TestDatabase::create().await;
    let listen = format!("127.0.0.1:{}", free_port());
    let redis = shared_redis_url();
    let (status, said) = end_of(&[
        "serve",
        "--no-migrate",
        "--listen",
        &listen,
        "--database-url",
        &database.url(),
        "--redis-url",
        &redis,
    ])
    .await;
    assert_eq!(status.code(), Some(2), "{said:?}");
    let last = said.last().unwrap();
    assert!(last.contains("run `leasehold migrate`"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_thing_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("leasehold.db");
    std::fs::write(
        &file,
        "this is no database, whatever its name says\n".repeat(200),
    )
    .unwrap();
    let before = std::fs::read(&file).unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let data = folder.path().to_string_lossy().into_owned();
    let (status, said) = end_of(&["dev", "--listen", &listen, "--data", &data]).await;
    assert_eq!(status.code(), Some(3), "{said:?}");
    assert_eq!(std::fs::read(&file).unwrap(), before, "not a byte of it");
}
