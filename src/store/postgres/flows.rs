//! What went on in queues, as nodes tell.

use std::time::Duration;

use super::pool::Pool;
use crate::error::Result;
use crate::job::time::micros;
use crate::job::{Flow, QueueName};

const NOTE: &str = "
INSERT INTO queue_flows (ended_at, span, queues, enqueued, started, succeeded, failed)
SELECT lh_us(), greatest($1, 1), $2, $3, $4, $5, $6";

/// Writes down what one node tells: one row.
pub(super) async fn note(pool: &Pool, span: Duration, flows: &[(QueueName, Flow)]) -> Result<()> {
    let queues: Vec<String> = flows.iter().map(|(queue, _)| queue.to_string()).collect();
    let counts = |of: fn(&Flow) -> u64| -> Vec<i64> {
        let counts = flows.iter().map(|(_, flow)| of(flow));
        counts
            .map(|count| i64::try_from(count).unwrap_or(i64::MAX))
            .collect()
    };
    let (enqueued, started) = (counts(|flow| flow.enqueued), counts(|flow| flow.started));
    let (succeeded, failed) = (counts(|flow| flow.succeeded), counts(|flow| flow.failed));
    pool.write(|| {
        sqlx::query(NOTE)
            .bind(micros(span))
            .bind(&queues)
            .bind(&enqueued)
            .bind(&started)
            .bind(&succeeded)
            .bind(&failed)
    })
    .await
    .map(drop)
}
