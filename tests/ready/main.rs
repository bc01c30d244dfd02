//! What every ready-list must do, over Redis and over memory; and what Redis may suffer without harm.
//!
//! `./scripts/test --test ready order` shows one case on both. `rates` prints figures with `--nocapture`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

/// Makes `case::redis` and `case::memory` of an async function that takes a `World`.
macro_rules! on_each_list {
    ($case:ident) => {
        mod $case {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn redis() {
                super::$case(crate::world::World::redis().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn memory() {
                super::$case(crate::world::World::memory()).await;
            }
        }
    };
}

#[path = "../support/mod.rs"]
mod support;

mod cases;
mod faults;
mod rates;
mod world;
