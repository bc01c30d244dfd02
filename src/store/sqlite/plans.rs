//! No statement of this folder may scan the jobs: what is fast with a hundred rows must be fast with a million.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says so by failing"
)]

use sqlx::{AssertSqlSafe, Row};

use super::SqliteStore;
use crate::store::Store;

const SOURCES: [&str; 18] = [
    include_str!("admin.rs"),
    include_str!("audit.rs"),
    include_str!("backlog.rs"),
    include_str!("bulk_acts.rs"),
    include_str!("bulks.rs"),
    include_str!("change.rs"),
    include_str!("enqueue.rs"),
    include_str!("flows.rs"),
    include_str!("lease.rs"),
    include_str!("nodes.rs"),
    include_str!("queues.rs"),
    include_str!("result.rs"),
    include_str!("row.rs"),
    include_str!("signals.rs"),
    include_str!("steer.rs"),
    include_str!("sweep.rs"),
    include_str!("whereabouts.rs"),
    include_str!("workers.rs"),
];
/// Tables that grow with the jobs.
const LARGE: [&str; 6] = [
    "jobs",
    "payloads",
    "outputs",
    "attempts",
    "backlog",
    "job_labels",
];

/// Every statement that stands in the sources as a text.
fn statements() -> Vec<&'static str> {
    let verbs = ["SELECT ", "INSERT ", "UPDATE ", "DELETE "];
    SOURCES
        .iter()
        .flat_map(|source| source.split('"').skip(1).step_by(2))
        .map(str::trim_start)
        .filter(|text| verbs.iter().any(|verb| text.starts_with(verb)))
        .collect()
}

#[tokio::test]
async fn no_statement_scans_a_large_table() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("jobs.db"))
        .await
        .unwrap();
    store.migrate().await.unwrap();
    let statements = statements();
    assert!(
        statements.len() > 30,
        "the sources have {}",
        statements.len()
    );
    for statement in statements {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let plan = sqlx::raw_sql(explain)
            .fetch_all(&store.writer)
            .await
            .unwrap();
        for step in plan {
            let step: String = step.get("detail");
            let scans = LARGE.iter().any(|table| is_scan(&step, statement, table));
            assert!(!scans, "{step} in {statement}");
        }
    }
}

/// A scan of the whole table, by its name or by its alias in the statement. Walking it in the order of its ids, behind
/// a LIMIT, is no such thing: SQLite calls that a search.
fn is_scan(step: &str, statement: &str, table: &str) -> bool {
    let Some(scanned) = step.strip_prefix("SCAN ") else {
        return false;
    };
    let name = scanned.split_whitespace().next().unwrap_or_default();
    name == table
        || statement.contains(&format!("{table} {name} "))
        || statement.contains(&format!("{table} {name}\n"))
}
