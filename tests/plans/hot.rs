//! Grant and success write a new version of the job's row and nothing else: no index is touched.

use std::time::Duration;

use leasehold::job::{Expiry, JobId, JobState, Outcome, UniqueKey};
use leasehold::store::{Attached, Store};
use sqlx::{PgConnection, Row};

use crate::growth::report;
use crate::support::{PrivatePostgres, until};
use crate::verbs::{Verbs, body, endings, job};

const JOBS: usize = 5_000;
const BATCH: usize = 500;
/// Share of the updates that must be HOT. Not all are: a page may be full for a moment.
const HOT_MIN: f64 = 0.95;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_and_success_are_hot_updates() {
    updates_are_hot(100, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_and_success_of_jobs_of_a_kilobyte_are_hot_updates() {
    updates_are_hot(1_024, 1).await;
}

/// A payload beyond 2 KB lies out of line, so the row is a small one again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_and_success_of_large_jobs_are_hot_updates() {
    updates_are_hot(10_240, 1).await;
}

/// While others write, the version that a grant left behind cannot be removed by the success that follows at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grant_and_success_are_hot_updates_while_others_write() {
    updates_are_hot(100, 4).await;
}

/// A session's row has no index but its key, and what is told of it is for people: renewals and reports write nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_and_what_is_told_of_sessions_are_hot_updates() {
    const ROUNDS: usize = 20;
    let server = PrivatePostgres::launch().await;
    let mut verbs = Verbs::on(&server.url()).await;
    let sessions = verbs.sessions(BATCH).await;
    let told: i64 = (2 * ROUNDS * BATCH) as i64;
    for _ in 0..ROUNDS {
        let renewed = verbs.store.renew(sessions.clone()).await;
        assert!(renewed.expect("renew answers").len() == BATCH);
        let reports = sessions.iter().map(|session| report(*session));
        let written = verbs.store.describe(reports.collect()).await;
        assert_eq!(written.expect("describe answers"), vec![true; BATCH]);
    }
    verbs.store.close().await;
    let (updates, hot) = updates_of(&mut verbs.look, "sessions", told).await;
    println!("{hot} of {updates} updates of sessions are HOT");
    assert!(hot as f64 / updates as f64 >= HOT_MIN, "{hot} of {updates}");
}

/// What ends such a job is none: it clears what an index names. But it is handed out like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grant_of_jobs_with_unique_keys_and_expire_times_is_a_hot_update() {
    let server = PrivatePostgres::launch().await;
    let mut verbs = Verbs::on(&server.url()).await;
    let sessions = verbs.sessions(20).await;
    for batch in 0..JOBS / BATCH {
        let with_both = |n| {
            let mut job = job(100);
            job.expiry = Some(Expiry::After(Duration::from_secs(60 * 60)));
            job.spec.unique_key = UniqueKey::parse(&format!("{batch} {n}"));
            job
        };
        let ids = verbs.accept((0..BATCH).map(with_both).collect()).await;
        verbs.lease(&ids, &sessions).await;
    }
    verbs.store.close().await;
    let (updates, hot) = updates_of(&mut verbs.look, "jobs", JOBS as i64).await;
    assert_eq!(updates, JOBS as i64, "one update a grant");
    let share = hot as f64 / updates as f64;
    assert!(share >= HOT_MIN, "only {hot} of {updates} grants are HOT");
}

/// The server is its own: transactions in other databases, too, keep a page's old versions alive.
async fn updates_are_hot(payload_bytes: usize, clients: usize) {
    let server = PrivatePostgres::launch().await;
    let mut verbs = Verbs::on(&server.url()).await;
    let sessions = verbs.sessions(20).await;
    let mut queued = Vec::new();
    for _ in 0..JOBS / BATCH {
        let jobs = (0..BATCH).map(|_| job(payload_bytes)).collect();
        queued.extend(verbs.accept(jobs).await);
    }
    let lanes: Vec<Vec<&[JobId]>> = (0..clients)
        .map(|lane| queued.chunks(BATCH).skip(lane).step_by(clients).collect())
        .collect();
    let all = lanes.iter().map(|lane| run(&verbs, lane, &sessions));
    futures_util::future::join_all(all).await;
    // Its connections report what they did at the latest when they end.
    verbs.store.close().await;
    let (updates, hot) = updates_of(&mut verbs.look, "jobs", 2 * JOBS as i64).await;
    let share = hot as f64 / updates as f64;
    println!(
        "payloads of {payload_bytes} B, {clients} clients: {hot} of {updates} updates are HOT"
    );
    assert_eq!(
        updates,
        2 * JOBS as i64,
        "one update a grant, one a success"
    );
    assert!(
        share >= HOT_MIN,
        "only {hot} of {updates} updates are HOT: an index names a column that grant or success changes, or the \
         fillfactor leaves no room on the page"
    );
}

/// Hands out and ends batch after batch.
async fn run(verbs: &Verbs, batches: &[&[JobId]], sessions: &[Attached]) {
    for batch in batches {
        let leases = verbs.lease(batch, sessions).await;
        let states = verbs
            .end(endings(&leases, |_| Outcome::Success(Some(body(20)))))
            .await;
        assert!(states.iter().all(|state| *state == JobState::Succeeded));
    }
}

/// All updates of a table and the HOT ones among them, once `expected` are known: statistics arrive late.
async fn updates_of(look: &mut PgConnection, table: &str, expected: i64) -> (i64, i64) {
    until(
        Duration::from_secs(30),
        "the updates are counted",
        async || {
            let row = sqlx::query(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = $1",
            )
            .bind(table)
            .fetch_one(&mut *look)
            .await
            .expect("the statistics can be read");
            let (updates, hot): (i64, i64) = (row.get(0), row.get(1));
            (updates >= expected).then_some((updates, hot))
        },
    )
    .await
}
