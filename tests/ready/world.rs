//! A ready-list under test, and a Redis to be harmed.

use std::sync::Arc;
use std::time::Duration;

use leasehold::job::{JobId, NodeId, Priority, QueueName};
use leasehold::ready::memory::MemoryReady;
use leasehold::ready::redis::{RedisOptions, RedisReady};
use leasehold::ready::{ReadyList, Want};
use leasehold::store::Line;
use uuid::Uuid;

use crate::support::{PrivateRedis, shared_redis_url};

/// How long a state is awaited.
pub const WITHIN: Duration = Duration::from_secs(10);

/// A ready-list, as two nodes see it. In memory both are the same.
pub struct World {
    pub a: Arc<dyn ReadyList>,
    pub b: Arc<dyn ReadyList>,
}

impl World {
    /// On the Redis that all tests share, under a prefix of its own.
    pub async fn redis() -> Self {
        let url = shared_redis_url();
        let prefix = format!("test-{}", Uuid::new_v4().simple());
        Self {
            a: Arc::new(node(&url, &prefix)),
            b: Arc::new(node(&url, &prefix)),
        }
    }

    pub fn memory() -> Self {
        let list = Arc::new(MemoryReady::new());
        Self {
            a: list.clone(),
            b: list,
        }
    }
}

/// A new node at a Redis.
pub fn node(url: &str, prefix: &str) -> RedisReady {
    let options = RedisOptions {
        prefix: prefix.into(),
        node: NodeId(Uuid::new_v4()),
    };
    RedisReady::connect(url, options).unwrap()
}

pub fn line(queue: &str, priority: Priority) -> Line {
    Line {
        queue: QueueName::parse(queue).unwrap(),
        priority,
    }
}

pub fn emails() -> Line {
    line("emails", Priority::Normal)
}

/// So many of the queue of a line.
pub fn want(line: &Line, count: usize) -> Vec<Want> {
    vec![Want {
        queue: line.queue.clone(),
        count,
        lower: 0,
        lower_first: Priority::Low,
    }]
}

pub fn jobs(count: usize) -> Vec<JobId> {
    (0..count)
        .map(|_| JobId::new(Uuid::now_v7()).unwrap())
        .collect()
}

/// A private Redis, with the test's own look inside.
pub struct Server(PrivateRedis);

impl Server {
    pub async fn start() -> Self {
        Self(PrivateRedis::launch().await)
    }

    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Ends it; it has saved its data.
    pub async fn stop(&mut self) {
        self.0.stop().await;
    }

    /// kill -9: nothing was saved.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// The same again, with the data that was saved.
    pub async fn start_again(&mut self) {
        self.0.start().await;
    }

    /// Runs a command for the test itself.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(self.url()).unwrap();
        let mut conn = client.get_multiplexed_async_connection().await.unwrap();
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]).query_async(&mut conn).await.unwrap()
    }

    /// Calls that were made of a command so far; the test's own are among them.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]).await;
        stats
            .lines()
            .find_map(|l| l.strip_prefix(&format!("cmdstat_{command}:calls=")))
            .map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Name of the stream of [`emails`].
    pub async fn emails(&self) -> String {
        let name = format!(":emails:{}", emails().priority.number());
        let streams = self.streams().await;
        streams.into_iter().find(|s| s.ends_with(&name)).unwrap()
    }

    /// Names of all streams that hold hints.
    pub async fn streams(&self) -> Vec<String> {
        self.ask(&["KEYS", "t:*:*:*"]).await
    }
}
