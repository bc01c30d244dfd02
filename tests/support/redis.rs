//! A Redis of a test's own, to be stopped, killed and wiped.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use redis::{Client, cmd};
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
        let mut redis = Self {
            folder: TempDir::new().expect("make a temporary folder"),
            port: free_port(),
            password: Uuid::new_v4().simple().to_string(),
            process: None,
        };
        redis.start().await;
        redis
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
