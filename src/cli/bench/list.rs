//! The part of a Redis that is the benchmark's own: all keys under one prefix.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Client, Pipeline, RedisError, Value, cmd};

use super::left::{Left, Thing};
use crate::cli::exit::Failure;
use crate::config::SecretUrl;

/// Keys looked at in one call.
const SCAN: usize = 1_000;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A connection to it.
pub(super) struct List {
    pub(super) prefix: String,
    connection: MultiplexedConnection,
    pub(super) version: String,
    left: Left,
}

/// What was taken of the server until now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) cpu: Option<Duration>,
    pub(super) commands: Option<f64>,
    pub(super) memory: Option<f64>,
}

impl List {
    pub(super) async fn open(url: &SecretUrl, prefix: String, left: Left) -> Result<Self, Failure> {
        let client = Client::open(url.expose()).map_err(|_| {
            Failure::usage("--redis must be redis://[user:password@]host[:port][/db]")
        })?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(trouble)?;
        let mut list = Self {
            prefix,
            connection,
            version: String::new(),
            left,
        };
        let info = list.info().await.map_err(trouble)?;
        list.left.made(Thing::Keys(list.prefix.clone()));
        list.version = field(&info, "redis_version").unwrap_or("?").to_owned();
        Ok(list)
    }

    async fn info(&self) -> Result<String, RedisError> {
        cmd("INFO").query_async(&mut self.connection.clone()).await
    }

    pub(super) async fn spent(&self) -> Spent {
        let Ok(info) = self.info().await else {
            return Spent::default();
        };
        let number = |name| field(&info, name)?.parse::<f64>().ok();
        let cpu = number("used_cpu_user").zip(number("used_cpu_sys"));
        Spent {
            cpu: cpu.map(|(user, system)| Duration::from_secs_f64(user + system)),
            commands: number("total_commands_processed"),
            memory: number("used_memory"),
        }
    }

    /// The ceiling: entries a second, added as hints are, `batch` in a pipeline.
    pub(super) async fn add(&self, rows: u64, batch: usize) -> Result<f64, Failure> {
        let key = format!("{}:ceiling", self.prefix);
        let mut connection = self.connection.clone();
        let begun = Instant::now();
        let mut added = 0;
        while added < rows {
            let mut pipe = Pipeline::with_capacity(batch);
            for _ in 0..batch {
                pipe.cmd("XADD")
                    .arg(&key)
                    .arg("*")
                    .arg("j")
                    .arg([7_u8; 16].as_slice());
                pipe.ignore();
            }
            pipe.query_async::<Value>(&mut connection)
                .await
                .map_err(trouble)?;
            added += batch as u64;
        }
        let rate = added as f64 / begun.elapsed().as_secs_f64();
        let gone: Result<Value, _> = cmd("UNLINK").arg(&key).query_async(&mut connection).await;
        gone.map_err(trouble)?;
        Ok(rate)
    }

    /// Removes all keys of the prefix.
    pub(super) async fn clear(&self) -> Result<(), Failure> {
        let mut connection = self.connection.clone();
        let mut cursor: u64 = 0;
        loop {
            let (next, keys): (u64, Vec<Vec<u8>>) = cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{}:*", self.prefix))
                .arg("COUNT")
                .arg(SCAN)
                .query_async(&mut connection)
                .await
                .map_err(trouble)?;
            if !keys.is_empty() {
                let gone: Result<Value, _> =
                    cmd("UNLINK").arg(&keys).query_async(&mut connection).await;
                gone.map_err(trouble)?;
            }
            if next == 0 {
                self.left.removed(&Thing::Keys(self.prefix.clone()));
                return Ok(());
            }
            cursor = next;
        }
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn trouble(why: RedisError) -> Failure {
    Failure::trouble(format!("redis: {why}"))
}
