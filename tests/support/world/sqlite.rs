//! A SQLite file in a temporary folder.

use std::sync::Arc;
use std::time::Duration;

use leasehold::clock::ShiftedClock;
use leasehold::store::Store;
use leasehold::store::sqlite::SqliteStore;
use tempfile::TempDir;

use super::{Place, World};

/// Makes a file, brings it to the present schema, and lets the case move its clock.
pub async fn world() -> World {
    let folder = TempDir::new().expect("a temporary folder");
    let clock = Arc::new(ShiftedClock::default());
    let store = SqliteStore::open_with_clock(&folder.path().join("leasehold.db"), clock.clone())
        .await
        .expect("a new file opens");
    store.migrate().await.expect("an empty file migrates");
    let place = Folder {
        clock,
        _folder: folder,
    };
    World::new(Arc::new(store), Arc::new(place))
}

struct Folder {
    clock: Arc<ShiftedClock>,
    /// Removed when it is dropped, with the last clone of the world.
    _folder: TempDir,
}

#[async_trait::async_trait]
impl Place for Folder {
    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    async fn remove(&self) {}
}
