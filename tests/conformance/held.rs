//! Named interleavings: two things that meet, one of them held at the point in question, on a real Postgres.
//!
//! The store's verbs are single statements, so nothing of theirs can be awaited in the middle from outside. A [`Gate`] is
//! a trigger that the case puts on a table: the verb's own statement runs up to the row that it writes there, with all
//! the locks and changes that it has by then, and waits until the case opens the gate. [`Hand`] is a plain connection,
//! for what no verb does. Both are seen to hold, and others to wait, in `pg_locks`: nothing here sleeps and hopes.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinHandle;

use crate::steps::secs;
use crate::world::World;

mod attaching;
mod batches;
mod bulks;
mod ending;
mod keeping;
mod keys;
mod reporting;
mod steering;
mod sweeping;

/// How long a state is awaited. The store gives up a lock after five seconds.
const WITHIN: Duration = Duration::from_secs(20);

/// A connection of the case's own.
pub struct Hand(PgConnection);

impl Hand {
    pub async fn of(world: &World) -> Self {
        let connected = PgConnection::connect(world.url()).await;
        Self(connected.expect("the database answers"))
    }

    pub async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.0)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    pub async fn count(&mut self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut self.0)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Waits until `sql` counts `count`.
    async fn until(&mut self, what: &str, sql: &str, count: i64) {
        let end = tokio::time::Instant::now() + WITHIN;
        while self.count(sql).await != count {
            assert!(tokio::time::Instant::now() < end, "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Waits until `count` of the store's statements wait for a row that another transaction has.
pub async fn waiting(world: &World, count: i64) {
    const ROWS: &str = "SELECT count(*) FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = 'leasehold'
        AND wait_event_type = 'Lock' AND wait_event IN ('transactionid', 'tuple')";
    let mut hand = Hand::of(world).await;
    hand.until(&format!("{count} wait for a row"), ROWS, count)
        .await;
}

/// A place in a statement of the store where it is held.
pub struct Gate {
    hand: Hand,
    name: &'static str,
    table: &'static str,
}

/// The advisory locks of gates, beside the store's own.
const GATES: i64 = 4_242;

impl Gate {
    /// Shuts a gate before each row of `table` that `event` writes `when`. The row is written, and others are locked,
    /// only by who has passed.
    pub async fn shut(
        world: &World,
        name: &'static str,
        table: &'static str,
        event: &str,
        when: &str,
    ) -> Self {
        let mut hand = Hand::of(world).await;
        let row = if event == "DELETE" { "OLD" } else { "NEW" };
        hand.run(&format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_advisory_xact_lock_shared({GATES}, hashtext('{name}')); RETURN {row}; END $$;
             CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {name}();
             SELECT pg_advisory_lock({GATES}, hashtext('{name}'))"
        ))
        .await;
        Self { hand, name, table }
    }

    /// Waits until `count` statements are at the gate.
    pub async fn holds(&mut self, count: i64) {
        let held = format!(
            "SELECT count(*) FROM pg_locks
              WHERE locktype = 'advisory' AND NOT granted AND classid = {GATES}
                AND objid = hashtext('{}')::bigint & 4294967295",
            self.name
        );
        let what = format!("{count} at the gate {}", self.name);
        self.hand.until(&what, &held, count).await;
    }

    /// Lets all go on, those that come later too.
    pub async fn open(mut self) {
        let Self { name, table, .. } = self;
        self.hand
            .run(&format!(
                "SELECT pg_advisory_unlock({GATES}, hashtext('{name}'))"
            ))
            .await;
        self.hand
            .run(&format!(
                "DROP TRIGGER {name} ON {table}; DROP FUNCTION {name}"
            ))
            .await;
    }
}

/// A verb under way, on a clone of the case's world.
pub fn begin<T, F>(world: &World, verb: impl FnOnce(World) -> F) -> JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    tokio::spawn(verb(world.clone()))
}

/// Its answer, within the time that any verb may take.
pub async fn answer<T>(verb: JoinHandle<T>) -> T {
    let ended = tokio::time::timeout(secs(30), verb).await;
    ended
        .expect("the verb answers")
        .expect("and without a panic")
}
