//! The server of a test.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use leasehold::engine::{Engine, Options};
use leasehold::job::NodeId;
use leasehold::ready::memory::MemoryReady;
use leasehold::store::Store;
use leasehold::store::sqlite::SqliteStore;
use leasehold::telemetry::Metrics;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use worker_sdk::{Client, Job, JobFilter, JobState, ListJobsRequest, View, Worker, WorkerBuilder};

use crate::Error;

/// Jobs of a page of a list.
const PAGE: u32 = 1_000;

/// A leasehold of this test's own. It has a thread of its own, so that no handler
/// disturbs it, and is gone when this is dropped.
pub struct TestServer {
    url: String,
    store: Arc<SqliteStore>,
    pub(crate) patience: Duration,
    /// Ends the thread when it is dropped.
    _end: oneshot::Sender<()>,
}

impl TestServer {
    /// Starts it, empty.
    ///
    /// # Errors
    /// [`Error::Server`] when there can be no file, thread or port.
    pub async fn start() -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        let (ready, readied) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    runtime.block_on(serve(&folder, ready, ended));
                    // What it still does is of no use to anybody.
                    runtime.shutdown_background();
                }
                Err(why) => drop(ready.send(Err(why.into()))),
            }
        };
        std::thread::Builder::new()
            .name("leasehold-test-server".to_owned())
            .spawn(serve)?;
        let started = readied.await;
        let (url, store) = started.map_err(|_| Error::Server("it did not start".into()))??;
        Ok(Self {
            url,
            store,
            patience: Duration::from_secs(30),
            _end: end,
        })
    }

    /// How long jobs may take to come to rest, in the time of the wall. Default
    /// 30 s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Where it listens, as `http://127.0.0.1:40123`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of it. Call it within a tokio runtime.
    ///
    /// # Errors
    /// None that a test would cause.
    pub fn client(&self) -> Result<Client, Error> {
        Ok(Client::connect_lazy(&self.url)?)
    }

    /// Begins a worker of it, to be given to [`work_off`](Self::work_off) or
    /// [`run`](Self::run), or to be built and run beside the test.
    pub fn worker(&self) -> WorkerBuilder {
        Worker::builder(&self.url)
    }

    /// All jobs, oldest first, with their payloads.
    ///
    /// # Errors
    /// The client's.
    pub async fn jobs(&self) -> Result<Vec<Job>, Error> {
        self.list(JobFilter::default()).await
    }

    /// The jobs of a kind, oldest first, with their payloads.
    ///
    /// # Errors
    /// The client's.
    pub async fn jobs_of(&self, kind: &str) -> Result<Vec<Job>, Error> {
        let kinds = vec![kind.to_owned()];
        self.list(JobFilter {
            kinds,
            ..JobFilter::default()
        })
        .await
    }

    /// Lets time pass for all jobs at once: what is scheduled within it becomes
    /// due (some 200 ms later by the wall, or when it is worked off), what is to
    /// be forgotten is forgotten. Ids stay as they are, workers go on, and an
    /// attempt under way has no less time left.
    ///
    /// # Errors
    /// [`Error::Server`].
    pub async fn pass(&self, time: Duration) -> Result<(), Error> {
        Ok(self.store.age(time).await?)
    }

    /// Lets time pass until the next scheduled job is due, and says how long that
    /// was; `None`, and no time passes, if none is scheduled.
    ///
    /// # Errors
    /// The client's; [`Error::Server`].
    pub async fn pass_until_due(&self) -> Result<Option<Duration>, Error> {
        let next = self.list(in_states(&[JobState::Scheduled])).await?;
        let Some(due) = next.iter().filter_map(due).min() else {
            return Ok(None);
        };
        self.pass_until(due).await.map(Some)
    }

    /// Says how long that was.
    pub(crate) async fn pass_until(&self, due: i64) -> Result<Duration, Error> {
        let left = due.saturating_sub(self.now().await?);
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        self.pass(left).await?;
        Ok(left)
    }

    pub(crate) async fn now(&self) -> Result<i64, Error> {
        Ok(self.store.now().await?.0)
    }

    pub(crate) async fn list(&self, filter: JobFilter) -> Result<Vec<Job>, Error> {
        let client = self.client()?;
        let mut request = ListJobsRequest {
            filter: Some(filter),
            page_size: PAGE,
            view: View::Full.into(),
            ..ListJobsRequest::default()
        };
        let mut jobs = Vec::new();
        loop {
            let page = client.list(request.clone()).await?;
            jobs.extend(page.jobs);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        jobs.reverse();
        Ok(jobs)
    }
}

pub(crate) fn in_states(states: &[JobState]) -> JobFilter {
    JobFilter {
        states: states.iter().map(|state| i32::from(*state)).collect(),
        ..JobFilter::default()
    }
}

/// When it is due, in microseconds since 1970.
pub(crate) fn due(job: &Job) -> Option<i64> {
    let time = job.run_time?;
    time.seconds
        .checked_mul(1_000_000)?
        .checked_add(i64::from(time.nanos) / 1_000)
}

type Started = Result<(String, Arc<SqliteStore>), Error>;

/// Serves until it is ended, or nobody waits for it.
async fn serve(
    folder: &tempfile::TempDir,
    ready: oneshot::Sender<Started>,
    ended: oneshot::Receiver<()>,
) {
    let (server, started) = match prepare(folder).await {
        Ok((server, started)) => (server, started),
        Err(why) => return drop(ready.send(Err(why))),
    };
    if ready.send(Ok(started)).is_err() {
        return;
    }
    // Cancel safety: nothing of it is needed once it is ended.
    tokio::select! {
        _ = server => {}
        _ = ended => {}
    }
}

async fn prepare(
    folder: &tempfile::TempDir,
) -> Result<
    (
        impl Future<Output = leasehold::error::Result<()>> + use<>,
        (String, Arc<SqliteStore>),
    ),
    Error,
> {
    let store = Arc::new(SqliteStore::open(&folder.path().join("leasehold.db")).await?);
    store.migrate().await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let metrics = Arc::new(Metrics::new()?);
    let engine = Engine::start(
        store.clone(),
        Arc::new(MemoryReady::new()),
        NodeId(Uuid::new_v4()),
        metrics,
        Options::default(),
    );
    let shutdown = CancellationToken::new();
    let options = leasehold::server::Options {
        drain_grace: Duration::ZERO,
        web_origins: Vec::new(),
    };
    let server = leasehold::server::serve(listener, engine, options, shutdown);
    Ok((server, (url, store)))
}
