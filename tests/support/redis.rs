//! A Redis of a test's own, to be stopped, killed and wiped.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use redis::{Client, FromRedisValue, cmd};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Process, free_port, until};

/// A private server on a port of its own, gone when dropped.
pub struct PrivateRedis {
    folder: TempDir,
    port: u16,
    password: String,
    process: Option<Process>,
}

impl PrivateRedis {
    /// Starts it, empty; returns when it answers.
    pub async fn launch() -> Self {
        Self::launch_with(Uuid::new_v4().simple().to_string()).await
    }

    async fn launch_with(password: String) -> Self {
        let mut redis = Self {
            folder: TempDir::new().expect("make a temporary folder"),
            port: free_port(),
            password,
            process: None,
        };
        redis.start().await;
        redis
    }

    /// A replica of it, with the same password, which has what it has. It follows through `way`, which leads here.
    pub async fn replica(&self, way: SocketAddr) -> Self {
        let replica = Self::launch_with(self.password.clone()).await;
        let port = way.port().to_string();
        for command in [
            ["CONFIG", "SET", "masterauth", &self.password].as_slice(),
            &["REPLICAOF", "127.0.0.1", &port],
        ] {
            replica.run::<()>(command).await;
        }
        replica.has_all_of(self).await;
        replica
    }

    /// Waits until a replica has all that its primary has now.
    pub async fn has_all_of(&self, primary: &Self) {
        let sent = primary.replicated("master_repl_offset:").await;
        until(Duration::from_secs(60), "the replica has it", async || {
            let here = self.replicated("slave_repl_offset:").await;
            (here.is_some() && here >= sent).then_some(())
        })
        .await;
    }

    async fn replicated(&self, what: &str) -> Option<u64> {
        let info: String = self.run(&["INFO", "replication"]).await;
        let up = info.contains("role:master") || info.contains("master_link_status:up");
        let line = info.lines().find_map(|line| line.strip_prefix(what));
        line.filter(|_| up)?.parse().ok()
    }

    /// Makes a replica the primary.
    pub async fn promote(&self) {
        self.run::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    }

    /// Runs a command.
    pub async fn run<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let client = Client::open(self.url()).expect("the URL is well formed");
        let connection = client.get_multiplexed_async_connection().await;
        let mut connection = connection.expect("Redis answers");
        let mut run = cmd(command[0]);
        run.arg(&command[1..]);
        run.query_async(&mut connection).await.expect("it is run")
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/", self.password, self.port)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The file that it saves its data to, and starts with.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("dump.rdb")
    }

    /// Starts it on the same port and data, after [`Self::stop`] or [`Self::kill`]; returns when it
    /// answers. After a stop it has all it had; after a kill what it last saved, mostly nothing.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "this Redis is running");
        let mut process = self.spawn();
        let client = Client::open(self.url()).expect("the URL is well formed");
        until(
            Duration::from_secs(30),
            "a private Redis answers",
            async || {
                if process.exit_status().is_some() {
                    process = self.spawn();
                }
                // Only ours knows the password, so the answer is ours.
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                cmd("PING").query_async::<()>(&mut connection).await.ok()
            },
        )
        .await;
        self.process = Some(process);
    }

    /// Stops it in an orderly way, which saves its data; returns when it has ended.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("this Redis is running");
        process.terminate();
        process.ended(Duration::from_secs(30)).await;
    }

    /// Ends it as a crash would: kill -9.
    pub fn kill(&mut self) {
        self.process.take().expect("this Redis is running").kill();
    }

    fn spawn(&self) -> Process {
        let file = self.folder.path().join("redis.conf");
        let settings = format!(
            "bind 127.0.0.1\nport {}\nrequirepass {}\ndir {}\nsave 3600 1\nmaxmemory-policy noeviction\n",
            self.port,
            self.password,
            self.folder.path().display(),
        );
        fs::write(&file, settings).expect("write redis.conf");
        let mut command = Command::new("redis-server");
        command.arg(file);
        Process::start("private Redis", command)
    }
}
