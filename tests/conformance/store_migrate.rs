//! The schema comes to be once, whoever else is at it, and a schema of tomorrow is left alone.

use leasehold::job::View;
use leasehold::store::MigrationReport;

use crate::world::World;

/// As `on_each_store`, in a world whose store has no schema yet, so that there is nothing to audit.
macro_rules! on_each_empty_store {
    ($case:ident) => {
        mod $case {
            #[test]
            fn postgres() {
                crate::world::run(
                    crate::world::postgres::empty(),
                    super::$case,
                    super::nothing,
                );
            }

            #[test]
            fn sqlite() {
                crate::world::run(crate::world::sqlite::empty(), super::$case, super::nothing);
            }
        }
    };
}

async fn nothing(_: World) {}

/// Far ahead of every version that there will be.
const TOMORROW: i64 = 9_000;

async fn pending(world: &World) -> MigrationReport {
    let report = world.store.pending_migrations().await;
    report.expect("a report needs no schema")
}

on_each_empty_store!(an_empty_store_is_told_what_it_lacks_and_gets_it_once);
async fn an_empty_store_is_told_what_it_lacks_and_gets_it_once(world: World) {
    let empty = world.schema().await;
    let planned = pending(&world).await;
    assert_eq!(planned.found, 0);
    assert!(planned.needed > 0);
    assert!(planned.steps[0].starts_with("0001 "), "{planned:?}");
    assert_eq!(world.schema().await, empty, "asking changes nothing");

    let done = world.store.migrate().await.expect("it migrates");
    assert_eq!(done, planned, "it did what it said");
    let up_to_date = MigrationReport {
        found: planned.needed,
        needed: planned.needed,
        steps: Vec::new(),
    };
    assert_eq!(pending(&world).await, up_to_date);
    let job = world.queued().await;

    let schema = world.schema().await;
    for store in [world.store.clone(), world.open_again().await] {
        let again = store.migrate().await.expect("it migrates again");
        assert_eq!(again, up_to_date);
        let found = store.get(vec![job], View::Basic).await;
        assert!(found.expect("get answers")[0].is_some());
    }
    assert_eq!(world.schema().await, schema);
}

on_each_empty_store!(many_nodes_that_start_at_once_make_one_schema);
async fn many_nodes_that_start_at_once_make_one_schema(world: World) {
    let mut stores = vec![world.store.clone(), world.store.clone()];
    for _ in 0..6 {
        stores.push(world.open_again().await);
    }
    let calls = stores.into_iter().map(|store| async move {
        let report = store.migrate().await;
        report.expect("whoever is not the first waits and finds it done")
    });
    let calls: tokio::task::JoinSet<_> = calls.collect();
    let reports = calls.join_all().await;
    let first = reports.iter().filter(|report| !report.steps.is_empty());
    assert_eq!(first.count(), 1, "one did it: {reports:?}");
    world.queued().await;
}

on_each_empty_store!(a_schema_of_a_newer_binary_is_refused_and_left_alone);
async fn a_schema_of_a_newer_binary_is_refused_and_left_alone(world: World) {
    let needed = world.store.migrate().await.expect("it migrates").needed;
    world.outdate(TOMORROW).await;
    let schema = world.schema().await;
    for store in [world.store.clone(), world.open_again().await] {
        let refused = store.migrate().await.expect_err("it is newer");
        let told = format!("{:?}", std::error::Error::source(&refused));
        for word in [&TOMORROW.to_string(), &needed.to_string(), "newer"] {
            assert!(told.contains(word), "{told} does not say {word}");
        }
        let report = store.pending_migrations().await.expect("a report");
        assert_eq!((report.found, report.needed), (TOMORROW, needed));
        assert_eq!(report.steps, Vec::<String>::new());
    }
    assert_eq!(world.schema().await, schema);
}
