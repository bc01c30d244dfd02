//! What is measured: a server that runs, or one with stores of its own that is started and leaves nothing behind.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use worker_sdk::{Client, ListJobsRequest};

use super::database::Database;
use super::figure::Cost;
use super::left::{Left, Thing};
use super::list::List;
use super::node::Node;
use super::options::Args;
use super::proc;
use crate::cli::exit::Failure;
use crate::cli::remote::failure_of;

/// How patient a benchmark's calls are: a stall is to be seen as one, not as an error.
const CALL_WITHIN: Duration = Duration::from_secs(120);

/// A folder that cannot be removed at once is tried again so often, with such pauses.
const REMOVE_TRIES: u32 = 20;
const REMOVE_AGAIN: Duration = Duration::from_millis(100);

/// The stage.
pub(super) struct Stage {
    /// Makes its queues, its database and its keys its own.
    pub(super) id: String,
    /// Of its database, its keys and its folder.
    name: String,
    pub(super) kind: Kind,
    pub(super) urls: Vec<String>,
    pub(super) folder: PathBuf,
    nodes: Vec<Node>,
    pub(super) database: Option<Database>,
    pub(super) list: Option<List>,
    left: Left,
}

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Embedded,
    Postgres,
    Server,
}

/// What everything together has taken until now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    server: Option<Duration>,
    bench: Option<Duration>,
    database: super::database::Spent,
    list: super::list::Spent,
}

impl Stage {
    /// Begins it: a folder, which is to be taken down from now on.
    pub(super) fn new(args: &Args, left: Left) -> Result<Self, Failure> {
        let id = format!("{:08x}", rand::random::<u32>());
        let name = format!("leasehold_bench_{id}");
        let outer = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = outer.join(&name);
        make(&folder)?;
        left.made(Thing::Folder(folder.clone()));
        Ok(Self {
            id,
            name,
            kind: Kind::Embedded,
            urls: Vec::new(),
            folder,
            nodes: Vec::new(),
            database: None,
            list: None,
            left,
        })
    }

    /// Sets up the rest, until it is interrupted. What was begun is to be taken down in any case.
    pub(super) async fn fill(
        &mut self,
        args: &Args,
        interrupted: &CancellationToken,
    ) -> Result<(), Failure> {
        // A store of its own is made to its end: half-way it could not be said what is there.
        let settings = self.stores(args).await?;
        // Cancel safe: a node that has not come up yet is killed.
        interrupted
            .run_until_cancelled(self.servers(args, &settings))
            .await
            .unwrap_or_else(|| Err(Failure::trouble("interrupted")))
    }

    /// Makes the stores that were asked for, and gives what nodes need to know of them.
    async fn stores(&mut self, args: &Args) -> Result<Vec<(&'static str, String)>, Failure> {
        let (Some(postgres), Some(redis)) = (&args.postgres, &args.redis) else {
            return Ok(Vec::new());
        };
        self.kind = Kind::Postgres;
        let list = List::open(redis, self.name.clone(), self.left.clone()).await?;
        let list = self.list.insert(list);
        let database = Database::create(postgres, self.name.clone(), self.left.clone()).await?;
        let off = database.not_durable();
        let url = database.url();
        self.database = Some(database);
        if !off.is_empty() && !args.not_durable {
            let why = format!(
                "this Postgres may lose what it commits: {}; turn it on, or add --not-durable, by which all figures are marked",
                off.join(", ")
            );
            return Err(Failure::usage(why));
        }
        Ok(vec![
            ("LEASEHOLD_DATABASE_URL", url.expose().to_owned()),
            ("LEASEHOLD_REDIS_URL", redis.expose().to_owned()),
            ("LEASEHOLD_REDIS_PREFIX", list.prefix.clone()),
        ])
    }

    async fn servers(
        &mut self,
        args: &Args,
        settings: &[(&'static str, String)],
    ) -> Result<(), Failure> {
        if let Some(url) = &args.server {
            self.kind = Kind::Server;
            self.urls.push(url.clone());
            return self.must_be_empty(args.fill).await;
        }
        let (count, words) = match self.kind {
            Kind::Postgres => (args.nodes, vec!["serve".to_owned()]),
            _ => {
                let data = self.folder.join("data").to_string_lossy().into_owned();
                (1, vec!["dev".to_owned(), "--data".to_owned(), data])
            }
        };
        for n in 0..count {
            let log = self.folder.join(format!("node-{n}.log"));
            let node = Node::start(&words, settings, log, self.left.clone()).await?;
            self.urls.push(node.url.clone());
            self.nodes.push(node);
        }
        Ok(())
    }

    /// A server with jobs is somebody's: it is not filled by mistake.
    async fn must_be_empty(&self, fill: bool) -> Result<(), Failure> {
        let client = self.client(0)?;
        let page = ListJobsRequest {
            page_size: 1,
            ..Default::default()
        };
        let page = client.list(page).await.map_err(failure_of)?;
        match page.jobs.is_empty() || fill {
            true => Ok(()),
            false => Err(Failure::usage(
                "this server holds jobs already; a benchmark fills and loads it: add --fill if that is meant",
            )),
        }
    }

    /// A client with a connection of its own, of the n-th node in turn.
    pub(super) fn client(&self, n: usize) -> Result<Client, Failure> {
        let client = Client::connect_lazy(self.url(n)).map_err(failure_of)?;
        Ok(client.deadline(CALL_WITHIN))
    }

    /// The URL of the n-th node in turn.
    pub(super) fn url(&self, n: usize) -> &str {
        self.urls
            .get(n % self.urls.len().max(1))
            .map_or("", String::as_str)
    }

    /// A queue of its own.
    pub(super) fn queue(&self, what: &str) -> String {
        format!("bench-{}-{what}-{}", self.id, short())
    }

    /// Memory of the nodes, where it can be seen.
    pub(super) fn memory(&self) -> Option<u64> {
        let each: Option<Vec<u64>> = self
            .nodes
            .iter()
            .map(|node| proc::memory(node.pid()))
            .collect();
        each.filter(|each| !each.is_empty())
            .map(|each| each.iter().sum())
    }

    pub(super) async fn spent(&self) -> Spent {
        let server: Option<Vec<Duration>> = self
            .nodes
            .iter()
            .map(|node| proc::cpu(node.pid()))
            .collect();
        Spent {
            server: server
                .filter(|each| !each.is_empty())
                .map(|each| each.iter().sum()),
            bench: proc::cpu(std::process::id()),
            database: match &self.database {
                Some(database) => database.spent().await,
                None => Default::default(),
            },
            list: match &self.list {
                Some(list) => list.spent().await,
                None => Default::default(),
            },
        }
    }

    /// Ends and removes all of its own. All of it is tried; the first failure is told.
    pub(super) async fn take_down(self) -> Result<(), Failure> {
        let Self {
            folder,
            nodes,
            database,
            list,
            left,
            ..
        } = self;
        let mut first = Ok(());
        let mut also = |result: Result<(), Failure>| {
            if first.is_ok() {
                first = result;
            }
        };
        for node in nodes {
            also(node.stop().await);
        }
        if let Some(database) = database {
            also(database.drop().await);
        }
        if let Some(list) = list {
            also(list.clear().await);
        }
        match remove(&folder).await {
            Ok(()) => left.removed(&Thing::Folder(folder)),
            Err(why) => also(Err(at(&folder, &why))),
        }
        first
    }
}

impl Spent {
    /// What a job cost since `before`.
    pub(super) fn a_job(&self, before: &Self, jobs: u64) -> Cost {
        let jobs = jobs.max(1) as f64;
        let us = |now: Option<Duration>, then: Option<Duration>| {
            let (now, then) = now.zip(then)?;
            Some(now.saturating_sub(then).as_secs_f64() * 1e6 / jobs)
        };
        let each = |now: Option<f64>, then: Option<f64>| {
            let (now, then) = now.zip(then)?;
            Some((now - then).max(0.0) / jobs)
        };
        Cost {
            server_us: us(self.server, before.server),
            postgres_us: us(self.database.cpu, before.database.cpu),
            redis_us: us(self.list.cpu, before.list.cpu),
            bench_us: us(self.bench, before.bench),
            wal_bytes: each(self.database.wal_bytes, before.database.wal_bytes),
            transactions: each(self.database.transactions, before.database.transactions),
            redis_commands: each(self.list.commands, before.list.commands),
        }
    }

    /// Bytes that Redis uses in all.
    pub(super) fn list_memory(&self) -> Option<f64> {
        self.list.memory
    }
}

fn short() -> String {
    Uuid::new_v4().simple().to_string().split_off(26)
}

fn make(folder: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    // The embedded server's data is nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|why| at(folder, &why))
}

/// Removes a folder. A measurement that was interrupted may still make a file in it meanwhile.
async fn remove(folder: &Path) -> std::io::Result<()> {
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(folder) {
            Err(why) if why.kind() != ErrorKind::NotFound && tries < REMOVE_TRIES => {
                tries += 1;
                tokio::time::sleep(REMOVE_AGAIN).await;
            }
            Err(why) if why.kind() == ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
}

fn at(folder: &Path, why: &std::io::Error) -> Failure {
    Failure::trouble(format!("folder {}: {why}", folder.display()))
}
