//! Many who watch, and what they cost.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says so by failing"
)]

mod lines;

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::engine::{Engine, Options};
use crate::error::Error;
use crate::job::draft::{Draft, Fields};
use crate::job::limits::{WAIT_MAX, WATCHERS_MAX};
use crate::job::{By, JobState, NodeId, QueueChange};
use crate::ready::memory::MemoryReady;
use crate::store::Store;
use crate::store::observed::{Observed, StoreMetrics};
use crate::store::sqlite::SqliteStore;
use crate::telemetry::Metrics;

/// Far longer than anything here takes.
const SOON: Duration = Duration::from_secs(60);

/// How often each verb of the store was called.
#[derive(Default)]
struct Calls(Mutex<HashMap<&'static str, usize>>);

impl StoreMetrics for Calls {
    fn observe(&self, verb: &'static str, _: Duration, _: Option<&'static str>) {
        *self.0.lock().unwrap().entry(verb).or_default() += 1;
    }
}

impl Calls {
    fn of(&self, verb: &str) -> usize {
        self.0.lock().unwrap().get(verb).copied().unwrap_or(0)
    }

    async fn until(&self, verb: &str, count: usize) {
        let end = Instant::now() + SOON;
        while self.of(verb) < count {
            assert!(
                Instant::now() < end,
                "{verb} was called {} times",
                self.of(verb)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Node {
    engine: Arc<Engine>,
    calls: Arc<Calls>,
    _folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("db")).await.unwrap();
        store.migrate().await.unwrap();
        let calls = Arc::new(Calls::default());
        let engine = Engine::start(
            Observed::new(Arc::new(store), calls.clone()),
            Arc::new(MemoryReady::new()),
            NodeId(uuid::Uuid::new_v4()),
            Arc::new(Metrics::new().unwrap()),
            Options::default(),
        );
        Self {
            engine,
            calls,
            _folder: folder,
        }
    }

    async fn jobs(&self, count: usize) -> Vec<JobId> {
        let fields = Fields {
            item: String::new(),
            spec: "",
        };
        let ids = self.engine.ids().await;
        let new = || {
            let draft = Draft {
                queue: "q".into(),
                kind: "k".into(),
                ..Draft::default()
            };
            draft.check(&fields, ids.fresh()).unwrap()
        };
        let new = (0..count).map(|_| new()).collect();
        let accepted = self.engine.enqueue_batch(new, |_, name| name.to_owned());
        let accepted = accepted.await.unwrap();
        accepted
            .into_iter()
            .map(|accepted| accepted.job.id)
            .collect()
    }

    async fn watch(&self, id: JobId) -> Watch {
        self.engine.watch(id, 0, View::Basic, None).await.unwrap()
    }
}

/// The next job that is told, within reason.
async fn next(watch: &mut Watch) -> Option<Job> {
    let told = tokio::time::timeout(SOON, watch.next()).await.unwrap();
    told.map(|told| match told.unwrap() {
        Told::News(news) => match *news {
            JobNews::Job(job) => job,
            told => panic!("it has changed, {told:?}"),
        },
        Told::Quiet => panic!("it has changed"),
    })
}

#[tokio::test]
async fn a_job_that_somebody_waited_for_too_early_can_be_watched_once_it_is_there() {
    let node = Node::start().await;
    let id = node.engine.ids().await.fresh();
    let mut early = node.engine.core.watches.watch(id).unwrap();
    tokio::time::timeout(SOON, early.ended(0)).await.unwrap();
    let draft = Draft {
        id: id.to_string(),
        queue: "q".into(),
        kind: "k".into(),
        ..Draft::default()
    };
    let fields = Fields {
        item: String::new(),
        spec: "",
    };
    let new = draft.check(&fields, id).unwrap();
    node.engine.enqueue(new, str::to_owned).await.unwrap();
    assert_eq!(next(&mut node.watch(id).await).await.unwrap().id, id);
}

#[tokio::test]
async fn a_thousand_watchers_share_ten_looks_a_second_and_nobody_causes_none() {
    let node = Node::start().await;
    let ids = node.jobs(500).await;
    // Two of each job.
    let begun = ids.iter().chain(&ids).map(|id| node.watch(*id));
    let mut watches = futures_util::future::join_all(begun).await;
    for watch in &mut watches {
        assert_eq!(next(watch).await.unwrap().state, JobState::Queued);
    }
    assert_eq!(node.engine.core.watches.count(), 1_000);
    let reads = node.calls.of("get");
    assert!(reads < 100, "{reads} reads for 1,000 watchers");

    let (looks, begun) = (node.calls.of("versions"), Instant::now());
    node.calls.until("versions", looks + 6).await;
    let took = begun.elapsed();
    assert!(took >= 5 * LOOK_EVERY / 2, "six looks within {took:?}");
    assert_eq!(node.calls.of("get"), reads, "nothing has changed");

    node.engine.cancel(ids[7], By::default()).await.unwrap();
    for n in [7, 507] {
        let watch = &mut watches[n];
        assert_eq!(next(watch).await.unwrap().state, JobState::Cancelled);
        assert!(next(watch).await.is_none());
    }

    drop(watches);
    assert_eq!(node.engine.core.watches.count(), 0);
    let looks = node.calls.of("versions");
    node.calls
        .until("promote", node.calls.of("promote") + 4)
        .await;
    // One may have been under way.
    assert!(node.calls.of("versions") <= looks + 1);
}

#[tokio::test]
async fn a_slow_reader_is_told_the_newest_and_always_the_last() {
    let node = Node::start().await;
    let id = node.jobs(1).await[0];
    let mut watch = node.watch(id).await;
    assert_eq!(next(&mut watch).await.unwrap().revision, 1);
    for _ in 0..3 {
        node.engine.cancel(id, By::default()).await.unwrap();
        node.engine
            .retry(id, Duration::ZERO, By::default())
            .await
            .unwrap();
    }
    node.engine.cancel(id, By::default()).await.unwrap();
    let seen = || match node.engine.core.watches.jobs.seen(&id) {
        Some(Seen::There(seen)) => seen.job.revision,
        _ => 0,
    };
    let end = Instant::now() + SOON;
    while seen() < 8 {
        assert!(Instant::now() < end, "{:?}", seen());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let job = next(&mut watch).await.unwrap();
    assert_eq!((job.revision, job.state), (8, JobState::Cancelled));
    assert!(next(&mut watch).await.is_none());
}

#[tokio::test]
async fn a_watch_goes_on_after_the_revision_that_is_known() {
    let node = Node::start().await;
    let id = node.jobs(1).await[0];
    let known = async |revision| {
        node.engine
            .watch(id, revision, View::Full, None)
            .await
            .unwrap()
    };
    let mut watch = known(1).await;
    assert!(!watch.has_ended());
    node.engine.cancel(id, By::default()).await.unwrap();
    let job = next(&mut watch).await.unwrap();
    assert_eq!((job.revision, job.state), (2, JobState::Cancelled));
    assert!(job.payload.is_some(), "it is a full view");
    for (revision, told) in [(0, Some(2)), (1, Some(2)), (2, None), (9, None)] {
        let mut watch = known(revision).await;
        assert_eq!(watch.has_ended(), told.is_none());
        assert_eq!(next(&mut watch).await.map(|job| job.revision), told);
    }
    let nobody = node.engine.ids().await.fresh();
    let refused = node.engine.watch(nobody, 0, View::Basic, None).await;
    assert!(matches!(refused, Err(Error::JobNotFound(_))));
}

#[tokio::test]
async fn a_node_that_leaves_ends_every_wait_and_watch_at_once() {
    let node = Node::start().await;
    let id = node.jobs(1).await[0];
    let mut watch = node.watch(id).await;
    next(&mut watch).await.unwrap();
    let waiting = node.engine.get(id, View::Basic, WAIT_MAX);
    let begun = Instant::now();
    let (waited, ended, ()) =
        tokio::join!(waiting, watch.next(), node.engine.drain(Duration::ZERO));
    assert_eq!(waited.unwrap().state, JobState::Queued);
    assert!(matches!(ended, Some(Err(Error::Draining))));
    assert!(watch.next().await.is_none());
    let refused = node.engine.watch(id, 0, View::Basic, None).await;
    assert!(matches!(refused, Err(Error::Draining)));
    assert!(begun.elapsed() < SOON);
}

#[tokio::test]
async fn a_node_takes_so_many_watchers_and_no_more() {
    let watches = Watches::default();
    let id = |n: u128| JobId::from_store(uuid::Uuid::from_u128(n));
    let mut places: Vec<_> = (0..WATCHERS_MAX)
        .map(|n| watches.watch(id(n as u128 % 10)).unwrap())
        .collect();
    let refused = watches.watch(id(0)).unwrap_err();
    assert_eq!(refused.code().reason, "TOO_MANY_STREAMS");
    assert!(refused.retry_after().is_some());
    // Those of queues have no others.
    let queue = || QueueName::parse("q").unwrap();
    let refused = watches.queues.watch(queue()).unwrap_err();
    assert_eq!(refused.code().reason, "TOO_MANY_STREAMS");
    places.pop();
    let place = watches.queues.watch(queue()).unwrap();
    assert!(watches.watch(id(0)).is_err());
    drop(place);
    places.push(watches.watch(id(0)).unwrap());
    drop(places);
    assert_eq!(watches.count(), 0);
    assert_eq!(watches.jobs.all(), []);
    assert_eq!(watches.queues.all(), []);
}

/// What is told next of a queue, within reason.
async fn next_of(watch: &mut QueueWatch) -> QueueView {
    let told = tokio::time::timeout(SOON, watch.next()).await.unwrap();
    match told.unwrap().unwrap() {
        Told::News(queue) => *queue,
        Told::Quiet => panic!("it has changed"),
    }
}

#[tokio::test]
async fn a_thousand_watchers_of_queues_share_one_look_a_second_and_nobody_causes_none() {
    let node = Node::start().await;
    let name = |n: usize| QueueName::parse(&format!("q{n}")).unwrap();
    for n in 0..50 {
        let pause = QueueChange::Pause;
        let steered = node.engine.steer(name(n), pause, None, By::default());
        steered.await.unwrap();
    }
    let begun = (0..1_000).map(|n| node.engine.watch_queue(name(n % 50)));
    let begun = futures_util::future::join_all(begun).await;
    let mut watches: Vec<QueueWatch> = begun.into_iter().map(Result::unwrap).collect();
    for watch in &mut watches {
        assert!(next_of(watch).await.settings.paused);
    }
    assert_eq!(node.engine.core.watches.count(), 1_000);
    let reads = node.calls.of("queues_named");
    assert!(reads < 20, "{reads} reads for 1,000 watchers");
    // Of those that come to watch what is watched already, no read is heard.
    let (looks, begun) = (node.calls.of("queues_named"), Instant::now());
    node.calls.until("queues_named", looks + 4).await;
    let took = begun.elapsed();
    assert!(
        took >= 5 * LOOK_AT_QUEUES_EVERY / 2,
        "four looks within {took:?}"
    );

    let resume = QueueChange::Resume;
    let steered = node.engine.steer(name(7), resume, None, By::default());
    steered.await.unwrap();
    for watch in watches.iter_mut().skip(7).step_by(50) {
        assert!(!next_of(watch).await.settings.paused);
    }

    drop(watches);
    assert_eq!(node.engine.core.watches.count(), 0);
    let looks = node.calls.of("queues_named");
    let promotes = node.calls.of("promote");
    node.calls.until("promote", promotes + 12).await;
    // One may have been under way.
    assert!(node.calls.of("queues_named") <= looks + 1);
}

#[tokio::test]
async fn a_queue_s_watch_tells_its_numbers_as_they_change_and_ends_with_the_node() {
    let node = Node::start().await;
    let queue = QueueName::parse("q").unwrap();
    let none = node.engine.watch_queue(queue.clone()).await;
    assert!(matches!(none, Err(Error::QueueNotFound(_))));
    let id = node.jobs(3).await[0];
    // What was seen to be missing is looked at anew.
    let mut watch = node.engine.watch_queue(queue.clone()).await.unwrap();
    assert_eq!(next_of(&mut watch).await.stats.counts[1], 3);
    node.engine.cancel(id, By::default()).await.unwrap();
    while next_of(&mut watch).await.stats.counts != [0, 2, 0, 0, 0, 1] {}
    // That they were enqueued shows later in the rates, once the node has told.
    while next_of(&mut watch).await.rates.enqueued == 0.0 {}
    let leaving = tokio::spawn({
        let engine = node.engine.clone();
        async move { engine.drain(Duration::ZERO).await }
    });
    let last = loop {
        match tokio::time::timeout(SOON, watch.next()).await.unwrap() {
            Some(Ok(_)) => {}
            last => break last,
        }
    };
    leaving.await.unwrap();
    assert!(matches!(last, Some(Err(Error::Draining))));
    assert!(watch.next().await.is_none());
    let refused = node.engine.watch_queue(queue).await;
    assert!(matches!(refused, Err(Error::Draining)));
}

#[test]
fn what_runs_on_by_itself_is_no_news() {
    let view = QueueView {
        settings: Default::default(),
        revision: 0,
        stats: crate::store::QueueStats {
            queue: QueueName::parse("q").unwrap(),
            counts: [0; 6],
            oldest_wait: Some(Duration::from_secs(1)),
        },
        sessions: 1,
        free_slots: 1,
        rates: Default::default(),
        as_of: crate::job::Timestamp(1),
    };
    let mut later = view.clone();
    later.as_of.0 += 1_000_000;
    later.stats.oldest_wait = Some(Duration::from_secs(2));
    assert!(view.is_same(&later));
    later.stats.oldest_wait = None;
    assert!(!view.is_same(&later));
    let mut freed = view.clone();
    freed.free_slots = 2;
    assert!(!view.is_same(&freed));
}
