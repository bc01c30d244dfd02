//! The real store behind it, with a clock that stops or breaks.

use std::sync::{Condvar, Mutex};

use uuid::Uuid;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::job::Timestamp;
use crate::job::draft::{Draft, Fields};
use crate::store::sqlite::SqliteStore;

type Calls = Mutex<Vec<(&'static str, Option<&'static str>)>>;

impl StoreMetrics for Calls {
    fn observe(&self, verb: &'static str, _: Duration, failed: Option<&'static str>) {
        self.lock().unwrap().push((verb, failed));
    }
}

/// A clock that the test can stop, with whoever asks it for the time, or break.
#[derive(Default)]
struct Gate {
    is: Mutex<Is>,
    moved: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Is {
    #[default]
    Open,
    Shut,
    Broken,
}

impl Gate {
    fn set(&self, is: Is) {
        *self.is.lock().unwrap() = is;
        self.moved.notify_all();
    }
}

impl Clock for Gate {
    fn now(&self) -> Timestamp {
        let now = self.is.lock().unwrap();
        let is = *self.moved.wait_while(now, |is| *is == Is::Shut).unwrap();
        assert!(is != Is::Broken, "the test broke the clock");
        SystemClock.now()
    }
}

struct Fixture {
    store: Arc<dyn Store>,
    calls: Arc<Calls>,
    gate: Arc<Gate>,
    _folder: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let path = folder.path().join("jobs.db");
    let inner = SqliteStore::open_with_clock(&path, gate.clone()).await;
    let inner = Arc::new(inner.unwrap());
    let calls = Arc::new(Calls::default());
    let store = Observed::new(inner, calls.clone());
    store.migrate().await.unwrap();
    Fixture {
        store,
        calls,
        gate,
        _folder: folder,
    }
}

fn job() -> Arc<[NewJob]> {
    let draft = Draft {
        queue: "q".into(),
        kind: "k".into(),
        ..Draft::default()
    };
    let fields = Fields {
        item: String::new(),
        spec: "",
    };
    let id = JobId::new(Uuid::now_v7()).unwrap();
    vec![draft.check(&fields, id).unwrap()].into()
}

async fn appears(store: &dyn Store, id: JobId) {
    let end = Instant::now() + Duration::from_secs(10);
    while store.get(vec![id], View::Basic).await.unwrap() == [None] {
        assert!(Instant::now() < end, "the job never appears");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_dropped_call_goes_on_to_its_end() {
    let f = fixture().await;
    let jobs = job();
    f.gate.set(Is::Shut);
    let call = f.store.enqueue(jobs.clone(), Unit::Each);
    let dropped = tokio::time::timeout(Duration::from_millis(50), call).await;
    assert!(dropped.is_err());
    f.gate.set(Is::Open);
    appears(&*f.store, jobs[0].id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_late_answer_is_not_waited_for() {
    let f = fixture().await;
    let jobs = job();
    f.gate.set(Is::Shut);
    let answer = f.store.enqueue(jobs.clone(), Unit::Each).await;
    assert!(matches!(answer, Err(Error::OutcomeUnknown)), "{answer:?}");
    f.gate.set(Is::Open);
    appears(&*f.store, jobs[0].id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_panic_is_an_internal_error_and_the_store_goes_on() {
    let f = fixture().await;
    f.gate.set(Is::Broken);
    let answer = f.store.enqueue(job(), Unit::Each).await;
    assert!(matches!(answer, Err(Error::Internal(_))), "{answer:?}");
    f.gate.set(Is::Open);
    let answer = f.store.enqueue(job(), Unit::Each).await;
    assert!(answer.is_ok(), "{answer:?}");
    let calls = f.calls.lock().unwrap().clone();
    assert_eq!(
        calls,
        [
            ("migrate", None),
            ("enqueue", Some("INTERNAL")),
            ("enqueue", None)
        ]
    );
}
