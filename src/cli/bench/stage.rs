//! What is measured: a server that runs, or one with stores of its own that is started and leaves nothing behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;
use worker_sdk::{Client, ListJobsRequest};

use super::database::Database;
use super::figure::Cost;
use super::list::List;
use super::node::Node;
use super::options::Args;
use super::proc;
use crate::cli::exit::Failure;
use crate::cli::jobs::failure_of;

/// How patient a benchmark's calls are: a stall is to be seen as one, not as an error.
const CALL_WITHIN: Duration = Duration::from_secs(120);

/// The stage.
pub(super) struct Stage {
    /// Makes its queues, its database and its keys its own.
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) urls: Vec<String>,
    pub(super) folder: PathBuf,
    nodes: Vec<Node>,
    pub(super) database: Option<Database>,
    pub(super) list: Option<List>,
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
    /// Sets it up. What was begun is taken down again if that fails.
    pub(super) async fn set_up(args: &Args) -> Result<Self, Failure> {
        let id = format!("{:08x}", rand::random::<u32>());
        let name = format!("leasehold_bench_{id}");
        let outer = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = outer.join(&name);
        make(&folder)?;
        let mut stage = Self {
            id,
            kind: Kind::Embedded,
            urls: Vec::new(),
            folder,
            nodes: Vec::new(),
            database: None,
            list: None,
        };
        match stage.fill(args, name).await {
            Ok(()) => Ok(stage),
            Err(failure) => {
                if let Err(also) = stage.take_down().await {
                    crate::cli::terminal::note(format_args!("error: {}", also.why));
                }
                Err(failure)
            }
        }
    }

    async fn fill(&mut self, args: &Args, name: String) -> Result<(), Failure> {
        if let Some(url) = &args.server {
            self.kind = Kind::Server;
            self.urls.push(url.clone());
            return self.must_be_empty(args.fill).await;
        }
        if let (Some(postgres), Some(redis)) = (&args.postgres, &args.redis) {
            self.kind = Kind::Postgres;
            let list = self.list.insert(List::open(redis, name.clone()).await?);
            let database = Database::create(postgres, name).await?;
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
            let settings = [
                ("LEASEHOLD_DATABASE_URL", url.expose()),
                ("LEASEHOLD_REDIS_URL", redis.expose()),
                ("LEASEHOLD_REDIS_PREFIX", &list.prefix),
            ];
            for n in 0..args.nodes {
                let log = self.folder.join(format!("node-{n}.log"));
                self.nodes
                    .push(Node::start(&["serve"], &settings, log).await?);
            }
        } else {
            let data = self.folder.join("data");
            let data = data.to_string_lossy();
            let log = self.folder.join("node-0.log");
            let node = Node::start(&["dev", "--data", &data], &[], log).await?;
            self.nodes.push(node);
        }
        self.urls = self.nodes.iter().map(|node| node.url.clone()).collect();
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
        also(std::fs::remove_dir_all(&folder).map_err(|why| at(&folder, &why)));
        first
    }

    /// Process ids of its nodes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(Node::pid).collect()
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

fn at(folder: &Path, why: &std::io::Error) -> Failure {
    Failure::trouble(format!("folder {}: {why}", folder.display()))
}
