//! What a user has started: `dev`, or nodes over a Postgres and a Redis of the test's own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tempfile::TempDir;
use worker_sdk::Client;

use crate::support::http::request;
use crate::support::{
    PrivatePostgres, PrivateRedis, Process, TestDatabase, free_port, leasehold, shared_redis_url,
};

/// Long enough for a machine that is busy compiling; a test that needs it is not waiting for time.
pub const START_WITHIN: Duration = Duration::from_secs(60);

/// A server process and where it listens.
pub struct Node {
    pub process: Process,
    pub address: SocketAddr,
    args: Vec<String>,
}

impl Node {
    /// Starts it and waits until it is ready.
    pub async fn start(args: Vec<String>) -> Self {
        Self::start_with(args, &[]).await
    }

    /// With more in its environment; not when it is started again.
    pub async fn start_with(args: Vec<String>, environment: &[(&str, &str)]) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        Self::start_at(address, args, environment).await
    }

    async fn start_at(
        address: SocketAddr,
        args: Vec<String>,
        environment: &[(&str, &str)],
    ) -> Self {
        let listen = ["--listen".to_owned(), address.to_string()];
        let mut command = leasehold(args.iter().chain(&listen));
        command.envs(environment.iter().copied());
        let mut process = Process::start("node", command);
        process.ready(address, START_WITHIN).await;
        Self {
            process,
            address,
            args,
        }
    }

    /// Kills it with -9 and starts it again at the same address, on the same data.
    pub async fn kill_and_restart(&mut self) {
        self.process.kill();
        *self = Self::start_at(self.address, self.args.clone(), &[]).await;
    }

    /// Starts it again after it has ended.
    pub async fn restart(&mut self) {
        *self = Self::start_at(self.address, self.args.clone(), &[]).await;
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The embedded server and its folder.
pub struct Dev {
    pub node: Node,
    pub folder: TempDir,
}

impl Dev {
    pub async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let data = folder.path().join("data").to_string_lossy().into_owned();
        let node = Node::start(vec!["dev".into(), "--data".into(), data]).await;
        Self { node, folder }
    }
}

/// A database and a ready-list of a test's own, on the servers that all tests share: for nodes that are started and
/// killed one by one. Nothing of it but the nodes may be harmed.
pub struct Site {
    pub database: TestDatabase,
    pub prefix: String,
}

impl Site {
    pub async fn new() -> Self {
        Self {
            database: TestDatabase::create().await,
            prefix: format!("test-{}", uuid::Uuid::new_v4().simple()),
        }
    }

    /// One more node.
    pub async fn node(&self) -> Node {
        self.node_with(&[]).await
    }

    /// One more node, which is killed when it comes to this point.
    pub async fn doomed(&self, point: &str) -> Node {
        let kill = format!("{point}=kill");
        self.node_with(&[("LEASEHOLD_FAILPOINT", &kill)]).await
    }

    pub async fn node_with(&self, environment: &[(&str, &str)]) -> Node {
        let (database, list) = (self.database.url(), shared_redis_url());
        let args = [
            "serve",
            "--database-url",
            &database,
            "--redis-url",
            &list,
            "--redis-prefix",
            &self.prefix,
        ];
        Node::start_with(args.map(str::to_owned).to_vec(), environment).await
    }
}

/// Nodes over one Postgres and one Redis.
pub struct Stack {
    pub nodes: Vec<Node>,
    pub redis: PrivateRedis,
    pub postgres: PrivatePostgres,
}

impl Stack {
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, &[]).await
    }

    /// With more arguments for each node.
    pub async fn start_with(nodes: usize, more: &[&str]) -> Self {
        let postgres = PrivatePostgres::launch().await;
        let redis = PrivateRedis::launch().await;
        let (database, list) = (postgres.url(), redis.url());
        let urls = ["serve", "--database-url", &database, "--redis-url", &list];
        let args: Vec<String> = urls.iter().chain(more).map(|s| (*s).to_owned()).collect();
        let mut started = Vec::new();
        for _ in 0..nodes {
            started.push(Node::start(args.clone()).await);
        }
        Self {
            nodes: started,
            redis,
            postgres,
        }
    }

    /// The node that has the most sessions.
    pub async fn busiest(&self) -> usize {
        let mut most = (0, 0.0);
        for (n, node) in self.nodes.iter().enumerate() {
            let answer = request(node.address, "GET", "/metrics", b"").await;
            let text = answer.body;
            let line = text
                .lines()
                .find(|l| l.starts_with("leasehold_jobs_in_flight "));
            let value = line.and_then(|l| l.split(' ').nth(1)?.parse().ok());
            let value: f64 = value.unwrap_or(0.0);
            if value > most.1 {
                most = (n, value);
            }
        }
        most.0
    }

    /// A client of the n-th node.
    pub fn client(&self, n: usize) -> Client {
        client(&self.nodes[n].url())
    }
}

pub fn client(url: &str) -> Client {
    Client::connect_lazy(url)
        .unwrap()
        .deadline(Duration::from_secs(60))
}
