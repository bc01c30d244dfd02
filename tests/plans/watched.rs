//! A server that writes down the plan of every statement that the store runs on it, with what the statement really did.
//!
//! So the plans are those of the store's own connections, with their settings, parameters and prepared statements, and no
//! statement has to be known here: Postgres' module `auto_explain` is loaded into every session.

use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::plan::Plan;
use crate::support::{PrivatePostgres, until};

/// What may be lost with this server is nothing; and nobody but the test looks after its tables.
const SETTINGS: &[(&str, &str)] = &[
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "4GB"),
    ("logging_collector", "on"),
    ("log_destination", "jsonlog"),
    ("log_directory", "log"),
    ("log_filename", "plans"),
    ("log_rotation_age", "0"),
    ("log_rotation_size", "0"),
    ("session_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_buffers", "on"),
    ("auto_explain.log_timing", "off"),
    ("auto_explain.log_format", "json"),
];
/// The pieces that the log is read in.
const PIECE: i64 = 16 * 1024 * 1024;

/// The server.
pub struct Watched {
    server: PrivatePostgres,
    look: PgConnection,
    /// What was read of the log.
    read: i64,
}

impl Watched {
    /// Starts it, empty.
    pub async fn launch() -> Self {
        let mut server = PrivatePostgres::launch().await;
        let mut look = PgConnection::connect(&server.url())
            .await
            .expect("it answers");
        // Its settings are only known where it is loaded.
        sqlx::raw_sql("LOAD 'auto_explain'")
            .execute(&mut look)
            .await
            .expect("Postgres' module auto_explain is installed (some systems have it in postgresql-contrib)");
        for (name, value) in SETTINGS {
            let set = format!("ALTER SYSTEM SET {name} = '{value}'");
            sqlx::raw_sql(AssertSqlSafe(set))
                .execute(&mut look)
                .await
                .unwrap_or_else(|e| panic!("{name} cannot be set: {e}"));
        }
        let _ = look.close().await;
        server.stop().await;
        server.start().await;
        let look = PgConnection::connect(&server.url())
            .await
            .expect("it answers");
        Self {
            server,
            look,
            read: 0,
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The plans of the store's statements since the last call, in order.
    pub async fn plans(&mut self) -> Vec<Plan> {
        // What stands in the log before our word was written before it.
        let word = Uuid::new_v4().simple().to_string();
        let say = format!("DO $$ BEGIN RAISE LOG '{word}'; END $$");
        sqlx::raw_sql(AssertSqlSafe(say))
            .execute(&mut self.look)
            .await
            .expect("the log can be written to");
        let mut text = Vec::new();
        until(Duration::from_secs(30), "the log is written", async || {
            loop {
                let piece = read_log(&mut self.look, self.read, PIECE).await;
                self.read += piece.len() as i64;
                let is_last = (piece.len() as i64) < PIECE;
                text.extend(piece);
                if is_last {
                    break;
                }
            }
            // The word comes in the statement's own line, too; the line after it is left for the next call.
            let end = text.len().saturating_sub(4_096);
            text[end..]
                .windows(word.len())
                .any(|part| part == word.as_bytes())
                .then_some(())
        })
        .await;
        String::from_utf8(text)
            .expect("the log is UTF-8")
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|entry| entry["application_name"] == "leasehold")
            .filter_map(|entry| Plan::of_message(entry["message"].as_str()?))
            .collect()
    }
}

async fn read_log(look: &mut PgConnection, from: i64, size: i64) -> Vec<u8> {
    sqlx::query("SELECT pg_read_binary_file('log/plans.json', $1, $2)")
        .bind(from)
        .bind(size)
        .fetch_one(look)
        .await
        .expect("the log can be read")
        .get(0)
}
