//! A store of its own for each case: real, empty, with a clock that the case moves, and gone at the end.
//!
//! No case can skip. A service that is missing fails the case with the command that starts it.

#![allow(
    dead_code,
    reason = "each test binary uses its own part of the support code"
)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use leasehold::clock::{Clock, SystemClock};
use leasehold::job::{JobId, NodeId, Timestamp};
use leasehold::store::Store;
use uuid::Uuid;

#[path = "world/postgres.rs"]
pub mod postgres;
#[path = "world/sqlite.rs"]
pub mod sqlite;

/// No case may take longer; a store that hangs fails rather than blocks the run. Who asks for more sequences or drops than
/// by default may ask for more seconds.
fn case_within() -> Duration {
    let asked = std::env::var("LEASEHOLD_TEST_CASE_SECONDS");
    Duration::from_secs(asked.map_or(120, |n| n.parse().expect("a number of seconds")))
}

/// Where a store lives, and how its clock is moved.
#[async_trait::async_trait]
pub trait Place: Send + Sync + 'static {
    /// Moves the store's clock forward.
    async fn advance(&self, by: Duration);
    /// Sets the store's clock back.
    async fn turn_back(&self, by: Duration);
    /// Opens the same store once more, as another node does.
    async fn open(&self) -> Arc<dyn Store>;
    /// Leaves the schema as a newer binary would: with a version that nobody knows yet, and without the table of jobs.
    async fn outdate(&self, version: i64);
    /// All there is to the schema, and the versions that are recorded.
    async fn schema(&self) -> Vec<String>;
    /// Leaves the store as if nobody had ever shown that he is alive: no time that passes is an outage.
    async fn forget_pulse(&self);
    /// Transactions that are open, whoever has them.
    async fn open_transactions(&self) -> i64;
    /// Where a test connects to the store by itself; only Postgres has such a place.
    fn url(&self) -> Option<&str> {
        None
    }
    /// Removes the store and all it holds.
    async fn remove(&self);
}

/// One store, as a case sees it. Cheap to clone: all clones are the same store.
#[derive(Clone)]
pub struct World {
    /// The store under test.
    pub store: Arc<dyn Store>,
    /// The node that the case acts as, where it does not say another.
    pub node: NodeId,
    place: Arc<dyn Place>,
    moved_us: Arc<AtomicI64>,
    ids: Arc<AtomicU64>,
}

impl World {
    /// A world around a store that is migrated and empty.
    pub fn new(store: Arc<dyn Store>, place: Arc<dyn Place>) -> Self {
        Self {
            store,
            node: NodeId(Uuid::new_v4()),
            place,
            moved_us: Arc::default(),
            ids: Arc::default(),
        }
    }

    /// Moves the store's clock forward.
    pub async fn advance(&self, by: Duration) {
        self.place.advance(by).await;
        let us = i64::try_from(by.as_micros()).expect("a case moves by less than 292,000 years");
        self.moved_us.fetch_add(us, Ordering::SeqCst);
    }

    /// Sets the store's clock back.
    pub async fn turn_back(&self, by: Duration) {
        self.place.turn_back(by).await;
        let us = i64::try_from(by.as_micros()).expect("a case moves by less than 292,000 years");
        self.moved_us.fetch_sub(us, Ordering::SeqCst);
    }

    /// The same store once more, as another node opens it.
    pub async fn open_again(&self) -> Arc<dyn Store> {
        self.place.open().await
    }

    /// Leaves the schema as a newer binary would.
    pub async fn outdate(&self, version: i64) {
        self.place.outdate(version).await;
    }

    /// All there is to the schema, and the versions that are recorded.
    pub async fn schema(&self) -> Vec<String> {
        self.place.schema().await
    }

    /// From here on no time that passes is an outage, as long as nobody touches the pulse.
    pub async fn forget_pulse(&self) {
        self.place.forget_pulse().await;
    }

    /// Transactions that are open, whoever has them, while no call is under way.
    pub async fn open_transactions(&self) -> i64 {
        self.place.open_transactions().await
    }

    /// Where a test connects to the store by itself. Only of Postgres.
    pub fn url(&self) -> &str {
        self.place.url().expect("a case for Postgres alone")
    }

    /// About what the store's clock says.
    pub fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + self.moved_us.load(Ordering::SeqCst))
    }

    /// A new id of this moment. Of two ids, the one that was made later is the greater.
    pub fn fresh_id(&self) -> JobId {
        self.id_at(self.now())
    }

    /// A new id that carries the time `at`.
    pub fn id_at(&self, at: Timestamp) -> JobId {
        let count = u128::from(self.ids.fetch_add(1, Ordering::SeqCst) & 0xffff_ffff);
        let ms = u128::try_from(at.0 / 1_000).expect("a case lives after 1970");
        // 48 bits of time, version 7, 12 bits and 20 bits of count around the variant, 42 bits of chance.
        let chance = Uuid::new_v4().as_u128() & ((1 << 42) - 1);
        let bits =
            ms << 80 | 7 << 76 | (count >> 20) << 64 | 2 << 62 | (count & 0xf_ffff) << 42 | chance;
        JobId::new(Uuid::from_u128(bits)).expect("it is a UUIDv7")
    }
}

/// Runs one case in a world of its own, checks at its end what must hold after any history, and removes the world,
/// however the case ended.
pub fn run<C, A>(
    world: impl Future<Output = World>,
    case: impl FnOnce(World) -> C,
    audit: impl FnOnce(World) -> A,
) where
    C: Future<Output = ()>,
    A: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        let world = world.await;
        let whole = async {
            case(world.clone()).await;
            audit(world.clone()).await;
        };
        let ended = AssertUnwindSafe(tokio::time::timeout(case_within(), whole))
            .catch_unwind()
            .await;
        world.place.remove().await;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(_)) => panic!("the case did not end within {:?}", case_within()),
            Err(panic) => resume_unwind(panic),
        }
    });
}
