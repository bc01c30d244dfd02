//! Tables as they are after a long time, made in seconds.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use leasehold::job::JobId;

/// A queue with one job in a thousand.
pub const RARE: &str = "rare";

/// Ids a millisecond apart, from 40 minutes ago on: row `i` is found by its number.
const PREPARE: &str = "
CREATE TABLE test_start AS SELECT (lh_us() / 1000 - 40 * 60 * 1000) AS ms;
CREATE FUNCTION test_id(i bigint) RETURNS uuid LANGUAGE sql STABLE AS $$
  SELECT (lpad(to_hex(ms + i), 12, '0') || '7' || lpad(to_hex(i % 4096), 3, '0') || '8' || lpad(to_hex(i), 15, '0'))::uuid
    FROM test_start $$";

/// Of ten jobs, six are QUEUED, two SUCCEEDED (one of them past its purge time), one FAILED and one SCHEDULED (half of
/// those are due, the others have expired). Those of one of the SUCCEEDED and of the FAILED have labels.
const JOBS: &str = "
INSERT INTO jobs (id, queue, kind, priority, max_attempts, backoff_initial, backoff_max, backoff_factor, retention,
                  fingerprint, payload_type, payload_is_text, payload, state, attempt, create_time, run_time, queued_time,
                  start_time, finish_time, purge_time, failed_at, due_at, expire_at, labels)
SELECT (lpad(to_hex(t.ms + i), 12, '0') || '7' || lpad(to_hex(i % 4096), 3, '0') || '8' || lpad(to_hex(i), 15, '0'))::uuid,
       CASE WHEN i % 1000 = 5 THEN 'rare' WHEN i % 10 = 5 THEN 'other' ELSE 'work' END, 'greet', 2, 25, 15000000,
       86400000000, 2, 604800000000, '\\x00', 'text/plain', true, '\\x78', s.state, (s.state > 3)::int, t.now, t.now,
       CASE WHEN s.state > 1 THEN t.now END, CASE WHEN s.state > 3 THEN t.now END, CASE WHEN s.state > 3 THEN t.now END,
       CASE WHEN s.state > 3 THEN t.now + CASE WHEN i % 10 = 6 THEN 0 ELSE 86400000000 END END,
       CASE WHEN s.state = 5 THEN t.now END,
       CASE WHEN s.state = 1 THEN t.now + CASE WHEN i % 20 = 9 THEN 0 ELSE 86400000000 END END,
       CASE WHEN i % 20 = 19 THEN t.now END,
       CASE WHEN i % 10 IN (6, 8) THEN jsonb_build_object('env', 'prod', 'run', (i / 100)::text) END
  FROM (SELECT ms, ms * 1000 AS now FROM test_start OFFSET 0) AS t, generate_series($1::bigint, $2::bigint) AS i,
       LATERAL (SELECT (CASE WHEN i % 10 <= 5 THEN 2 WHEN i % 10 <= 7 THEN 4 WHEN i % 10 = 8 THEN 5 ELSE 1 END)::int2 AS state) AS s";
const BACKLOG: &str = "
INSERT INTO backlog (queue, priority, created_at, check_at, jobs)
SELECT queue, 2, min(queued_time), min(queued_time), array_agg(id ORDER BY id)
  FROM (SELECT queue, id, queued_time, row_number() OVER (PARTITION BY queue ORDER BY id) AS n
          FROM jobs WHERE state = 2 AND id >= test_id($1) AND id <= test_id($2)) AS j
 GROUP BY queue, n / 1000";
const FINISHED: &str = "
INSERT INTO finished (bucket, check_at, size, jobs)
SELECT purge_time / 3600000000, min(purge_time), count(*), array_agg(id)
  FROM (SELECT purge_time, id, row_number() OVER (PARTITION BY purge_time ORDER BY id) AS n
          FROM jobs WHERE state > 3 AND id >= test_id($1) AND id <= test_id($2)) AS j
 GROUP BY purge_time, n / 1000";
const LABELS: &str = "
INSERT INTO job_labels (label, job)
SELECT lh_label(e.key, e.value), j.id FROM jobs j CROSS JOIN jsonb_each_text(j.labels) AS e
 WHERE j.labels IS NOT NULL AND j.id >= test_id($1) AND j.id <= test_id($2)";
const COUNTS: &str = "
INSERT INTO queue_counts (queue, scheduled, queued, running, succeeded, failed, cancelled)
SELECT queue, count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), 0,
       count(*) FILTER (WHERE state = 4), count(*) FILTER (WHERE state = 5), 0
  FROM jobs WHERE id >= test_id($1) AND id <= test_id($2) GROUP BY queue";

/// Jobs that are QUEUED, from all over the table.
const SCATTERED: &str = "
SELECT j.id FROM jobs j
 WHERE j.id = ANY (ARRAY(SELECT test_id((random() * $1)::bigint * 10) FROM generate_series(1, 2 * $2))) AND j.state = 2
 LIMIT $2";

/// The tables of one database, and how many jobs were put there.
pub struct Tables {
    look: PgConnection,
    rows: i64,
}

impl Tables {
    /// The tables, empty.
    pub async fn new(mut look: PgConnection) -> Self {
        sqlx::raw_sql(PREPARE)
            .execute(&mut look)
            .await
            .expect("there is a schema");
        Self { look, rows: 0 }
    }

    /// Puts jobs there, with their logs, until so many were put there. The planner is not told.
    pub async fn grow(&mut self, rows: i64) {
        for statement in [JOBS, BACKLOG, FINISHED, LABELS, COUNTS] {
            sqlx::query(statement)
                .bind(self.rows + 1)
                .bind(rows)
                .execute(&mut self.look)
                .await
                .unwrap_or_else(|e| panic!("{e}: {statement}"));
        }
        self.rows = rows;
    }

    /// Tells the planner what is there.
    pub async fn analyze(&mut self) {
        self.run("ANALYZE").await;
    }

    /// At most so many QUEUED jobs, scattered over the table.
    pub async fn scattered(&mut self, most: i64) -> Vec<JobId> {
        sqlx::query(SCATTERED)
            .bind(self.rows / 10)
            .bind(most)
            .fetch_all(&mut self.look)
            .await
            .expect("jobs can be read")
            .iter()
            .map(|row| JobId::new(row.get::<Uuid, _>(0)).expect("it is a UUIDv7"))
            .collect()
    }

    /// Runs a statement of the test's own.
    pub async fn run(&mut self, statement: &'static str) {
        sqlx::raw_sql(statement)
            .execute(&mut self.look)
            .await
            .unwrap_or_else(|e| panic!("{e}: {statement}"));
    }

    /// One number.
    pub async fn number(&mut self, statement: &'static str) -> i64 {
        sqlx::query(statement)
            .fetch_one(&mut self.look)
            .await
            .unwrap_or_else(|e| panic!("{e}: {statement}"))
            .get(0)
    }
}
