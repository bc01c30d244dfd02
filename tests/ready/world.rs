//! A ready-list under test, and the Redis below it.

use std::future::Future;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use leasehold::job::{JobId, NodeId, Priority, QueueName};
use leasehold::ready::memory::MemoryReady;
use leasehold::ready::redis::{RedisOptions, RedisReady};
use leasehold::ready::{ReadyList, Want};
use leasehold::store::Line;
use uuid::Uuid;

/// A ready-list, as two nodes see it. In memory both are the same.
pub struct World {
    pub a: Arc<dyn ReadyList>,
    pub b: Arc<dyn ReadyList>,
    _server: Option<Server>,
}

impl World {
    /// Its Redis is that of `LEASEHOLD_TEST_REDIS_URL`, under a prefix of its own, or else one of its own.
    pub async fn redis() -> Self {
        let (url, server) = match std::env::var("LEASEHOLD_TEST_REDIS_URL") {
            Ok(url) => (url, None),
            Err(_) => {
                let server = Server::start().await;
                (server.url(), Some(server))
            }
        };
        let prefix = format!("test-{}", Uuid::new_v4().simple());
        Self {
            a: Arc::new(node(&url, &prefix)),
            b: Arc::new(node(&url, &prefix)),
            _server: server,
        }
    }

    pub fn memory() -> Self {
        let list = Arc::new(MemoryReady::new());
        Self {
            a: list.clone(),
            b: list,
            _server: None,
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

pub fn want(line: &Line, count: usize) -> Vec<Want> {
    vec![Want {
        line: line.clone(),
        count,
    }]
}

pub fn jobs(count: usize) -> Vec<JobId> {
    (0..count)
        .map(|_| JobId::new(Uuid::now_v7()).unwrap())
        .collect()
}

/// Awaits a state, at most ten seconds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut state: impl FnMut() -> F) {
    let start = Instant::now();
    while !state().await {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A private redis-server, that ends with the test.
pub struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    options: Vec<String>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(&["--save", ""]).await
    }

    pub async fn start_with(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        // Another process may take the free port first; then redis-server ends, and the next one is tried.
        for _ in 0..5 {
            let port = free_port();
            let child = spawn(port, dir.path(), &options);
            let mut server = Self {
                child,
                port,
                dir: tempfile::tempdir().unwrap(),
                options: options.clone(),
            };
            if server.answers().await {
                server.dir = dir;
                return server;
            }
        }
        panic!("redis-server does not start; run ./scripts/test, which installs what is missing");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same again, on the same port, with the data that was saved.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.port, self.dir.path(), &self.options);
        assert!(self.answers().await, "redis-server does not start again");
    }

    /// Runs commands for the test itself.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_ask(command).await.unwrap()
    }

    /// Calls that were made of a command so far; the test's own are among them.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats: String = self.ask(&["INFO", "commandstats"]).await;
        stats
            .lines()
            .find_map(|l| l.strip_prefix(&format!("cmdstat_{command}:calls=")))
            .map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Names of all streams that hold hints.
    pub async fn streams(&self) -> Vec<String> {
        let keys: Vec<String> = self.ask(&["KEYS", "t:*:*:*"]).await;
        keys
    }

    async fn try_ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.url())?;
        let mut conn = client.get_multiplexed_async_connection().await?;
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]).query_async(&mut conn).await
    }

    async fn answers(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.try_ask::<String>(&["PING"]).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &std::path::Path, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(dir)
        .args(options)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is missing; run ./scripts/test, which installs it")
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
