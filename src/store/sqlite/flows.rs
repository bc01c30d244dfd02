//! What went on in queues, as the node tells.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::SqliteConnection;

use super::fault::fault;
use super::row::batch;
use super::{SqliteStore, commit};
use crate::error::Result;
use crate::job::limits::{RATES_LAG, RATES_OVER};
use crate::job::time::micros;
use crate::job::{Flow, QueueName, Rates, Timestamp};

const NOTE: &str = "INSERT INTO queue_flows (end_time, span, flows) VALUES (?1, max(?2, 1), ?3)";
// Of a row counts as much as its span lies within the time over which rates are taken.
const RATES: &str = "
SELECT n.value->>'$[0]', sum(f.share * (n.value->>'$[1]')), sum(f.share * (n.value->>'$[2]')),
       sum(f.share * (n.value->>'$[3]')), sum(f.share * (n.value->>'$[4]'))
  FROM (SELECT flows, max(0, min(end_time, ?3) - max(end_time - span, ?2)) * 1.0 / span AS share
          FROM queue_flows WHERE end_time > ?2) AS f, json_each(f.flows) AS n
 WHERE f.share > 0 AND n.value->>'$[0]' IN (SELECT value FROM json_each(?1))
 GROUP BY 1";

/// Writes down what the node tells: one row.
pub(super) async fn note(
    store: &SqliteStore,
    span: Duration,
    flows: &[(QueueName, Flow)],
) -> Result<()> {
    let rows = flows.iter().map(|(queue, flow)| {
        let Flow {
            enqueued,
            started,
            succeeded,
            failed,
        } = flow;
        (queue.as_str(), enqueued, started, succeeded, failed)
    });
    let rows: Vec<_> = rows.collect();
    let (mut tx, now) = store.write().await?;
    sqlx::query(NOTE)
        .bind(now.0)
        .bind(micros(span))
        .bind(batch(&rows)?)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
    commit(tx).await
}

/// The rates of these queues; of those in which nothing goes on, none.
pub(super) async fn rates(
    connection: &mut SqliteConnection,
    names: &[String],
    now: Timestamp,
) -> Result<HashMap<String, Rates>> {
    let until = now.0.saturating_sub(micros(RATES_LAG));
    let rows: Vec<(String, f64, f64, f64, f64)> = sqlx::query_as(RATES)
        .bind(batch(names)?)
        .bind(until.saturating_sub(micros(RATES_OVER)))
        .bind(until)
        .fetch_all(connection)
        .await
        .map_err(fault)?;
    let rates = |(queue, enqueued, started, succeeded, failed)| {
        (queue, Rates::of([enqueued, started, succeeded, failed]))
    };
    Ok(rows.into_iter().map(rates).collect())
}
