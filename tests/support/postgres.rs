//! A Postgres of a test's own, to be stopped and killed.

use std::{
    fs::{self, Permissions},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    process::{Command, Stdio},
    time::Duration,
};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::{
    Process, free_port,
    services::{as_postgres_user, postgres_bin, postgres_template, shared_database_url},
    until,
};

/// A private server on a port of its own, gone when dropped.
pub struct PrivatePostgres {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl PrivatePostgres {
    /// Makes its data and starts it; returns when it answers.
    pub async fn launch() -> Self {
        let folder = TempDir::new().expect("make a temporary folder");
        // The user `postgres` has to walk through it.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("open the folder");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(postgres_template())
            .arg(folder.path().join("data"))
            .status();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "cannot copy the data template"
        );
        let mut postgres = Self {
            folder,
            port: free_port(),
            process: None,
        };
        postgres.start().await;
        postgres
    }

    /// The URL of its database `postgres`, of a superuser.
    pub fn url(&self) -> String {
        // The template's superuser is the shared server's.
        let shared = shared_database_url();
        let (user, _) = shared.split_once('@').expect("the shared URL names a user");
        format!("{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// A standby of it, which has what it has: from now on a commit is answered once it is there too.
    pub async fn standby(&self) -> Self {
        let standby = self.follower(self.address()).await;
        let mut db = PgConnection::connect(&self.url()).await.expect("connect");
        for statement in [
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
            "SELECT pg_reload_conf()",
        ] {
            let done = sqlx::query(statement).execute(&mut db).await;
            done.expect("a superuser may do so");
        }
        self.followed("sync").await;
        standby
    }

    /// A standby of it, as they are by default: a commit is answered before it is there. It follows through `way`,
    /// which leads here.
    pub async fn follower(&self, way: SocketAddr) -> Self {
        let folder = TempDir::new().expect("make a temporary folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("open the folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("make its folder");
        let owner = fs::metadata(postgres_template()).expect("the template is there");
        chown(&data, Some(owner.uid()), Some(owner.gid())).expect("give it to its owner");
        fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("close its folder");
        let mut copy = as_postgres_user(postgres_bin().join("pg_basebackup"));
        copy.current_dir(folder.path());
        copy.args([
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
            "-D",
        ]);
        let through = self
            .url()
            .replace(&self.address().to_string(), &way.to_string());
        copy.arg(&data).arg("-d").arg(through);
        let copied = copy.stderr(Stdio::inherit()).status();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "cannot copy the primary"
        );
        let mut standby = Self {
            folder,
            port: free_port(),
            process: None,
        };
        standby.start().await;
        self.followed("async").await;
        standby
    }

    /// Waits until a standby follows in this way.
    async fn followed(&self, how: &str) {
        until(Duration::from_secs(60), "the standby follows", async || {
            let following = "SELECT count(*) FROM pg_stat_replication
                             WHERE state = 'streaming' AND sync_state = $1";
            let mut db = PgConnection::connect(&self.url()).await.ok()?;
            let count: i64 = sqlx::query_scalar(following)
                .bind(how)
                .fetch_one(&mut db)
                .await
                .ok()?;
            (count == 1).then_some(())
        })
        .await;
    }

    /// Makes a standby the primary.
    pub async fn promote(&self) {
        let mut db = PgConnection::connect(&self.url()).await.expect("connect");
        let done = sqlx::query("SELECT pg_promote()").execute(&mut db).await;
        done.expect("a superuser may do so");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Starts it on the same port and data, after [`Self::stop`] or [`Self::kill`]; returns when it
    /// answers.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "this Postgres is running");
        let mut process = self.spawn();
        let url = self.url();
        until(
            Duration::from_secs(60),
            "a private Postgres answers",
            async || {
                if process.exit_status().is_some() {
                    // The last processes of a killed server may hold its memory for a moment, and a port
                    // may be taken for one.
                    process = self.spawn();
                }
                PgConnection::connect(&url).await.ok()?.close().await.ok()
            },
        )
        .await;
        self.process = Some(process);
    }

    /// Stops it in an orderly way, which ends all its connections; returns when it has ended.
    pub async fn stop(&mut self) {
        let mut process = self.process.take().expect("this Postgres is running");
        process.signal("INT");
        process.ended(Duration::from_secs(60)).await;
    }

    /// Ends it as a crash would: kill -9.
    pub fn kill(&mut self) {
        self.process
            .take()
            .expect("this Postgres is running")
            .kill();
    }

    fn spawn(&self) -> Process {
        let mut command = as_postgres_user(postgres_bin().join("postgres"));
        command.current_dir(self.folder.path());
        command.arg("-D").arg(self.folder.path().join("data"));
        command.args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "shared_buffers=32MB",
        ] {
            command.args(["-c", setting]);
        }
        Process::start("private Postgres", command)
    }
}
