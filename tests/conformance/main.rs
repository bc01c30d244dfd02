//! What every store, and every ready-list, must do: one suite, run over each of them. The cases are written from the
//! traits' pages and the rules, and know nothing of how a store is built.
//!
//! `./scripts/test --test conformance` runs all; `cargo test lease_is_exclusive` style names pick one on all stores.

#[path = "../support/world.rs"]
mod world;

#[path = "../support/mod.rs"]
mod support;

/// Makes `case::postgres` and `case::sqlite` of an async function that takes a `World`.
macro_rules! on_each_store {
    ($case:ident) => {
        mod $case {
            #[test]
            fn postgres() {
                crate::world::run(
                    crate::world::postgres::world(),
                    super::$case,
                    crate::audit::audit,
                );
            }

            #[test]
            fn sqlite() {
                crate::world::run(
                    crate::world::sqlite::world(),
                    super::$case,
                    crate::audit::audit,
                );
            }
        }
    };
}

/// Makes a test of an async function that takes a `World` in Postgres: its own connections hold what the case names.
macro_rules! on_postgres {
    ($case:ident) => {
        mod $case {
            #[test]
            fn postgres() {
                crate::world::run(
                    crate::world::postgres::world(),
                    super::$case,
                    crate::audit::audit,
                );
            }
        }
    };
}

mod audit;
mod dropped;
mod held;
mod hints;
mod random;
mod steps;

mod store_attach;
mod store_backlog;
mod store_bulks;
mod store_cancel;
mod store_clock;
mod store_delete;
mod store_enqueue;
mod store_expiry;
mod store_fence;
mod store_flows;
mod store_keys;
mod store_lease;
mod store_list;
mod store_log;
mod store_migrate;
mod store_nodes;
mod store_progress;
mod store_queues;
mod store_races;
mod store_result;
mod store_retry;
mod store_session;
mod store_stats;
mod store_steer;
mod store_sweep;
mod store_unique;
mod store_unlike;
mod store_view;
mod store_whereabouts;
mod store_workers;
