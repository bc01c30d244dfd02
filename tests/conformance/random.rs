//! Random sequences of verbs, against a small model in memory: whatever is asked for, in whatever order, the store
//! answers and is as the model says. A sequence that does not is shrunk to a short one, and printed.
//!
//! `LEASEHOLD_TEST_SEQUENCES` is how many are played on each store (default 25).

use leasehold::job::UniqueConflict;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::world::World;
use model::{No, RETENTION, TTL};
use play::Play;

mod model;
mod play;

/// Verbs in one sequence, at most.
const STEPS: usize = 60;

/// One call. Numbers point at what there is by then, round and round.
#[derive(Debug, Clone)]
enum Op {
    Enqueue {
        count: usize,
        delay: u64,
        /// Ticks beyond its delay within which it must begin; 0: none.
        begins_within: u64,
        max_attempts: u32,
        unit: bool,
    },
    /// A job with one of a few unique keys.
    EnqueueUnique {
        key: u8,
        conflict: UniqueConflict,
        delay: u64,
        all: bool,
    },
    /// The same request once more, or another one under the same id.
    EnqueueAgain {
        job: No,
        other: bool,
        all: bool,
    },
    Open,
    Attach(No, u64),
    Renew(Vec<(No, bool)>),
    Close(No, bool),
    Grant(Vec<(No, No, bool)>),
    Finish(Vec<(No, usize, u8)>),
    Report(No, usize, u64, bool),
    Say(No, usize, u64, usize),
    Cancel(No),
    Delete(No),
    Retry(No, u64),
    Reschedule(No, u64),
    SetPriority(No, bool),
    Pass(u64),
    Promote,
    ExpireJobs,
    Expire,
    Retain,
    Tidy,
    Claim,
    Leases(No),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let no = || 0..64_usize;
    // Mostly the present stream; at times one that is over.
    let is_present = || prop::bool::weighted(0.9);
    let conflict = prop_oneof![
        Just(UniqueConflict::Keep),
        Just(UniqueConflict::Refuse),
        Just(UniqueConflict::Replace),
    ];
    let op = prop_oneof![
        4 => (1..4_usize, prop_oneof![3 => Just(0), 1 => 1..5_u64], prop_oneof![3 => Just(0), 1 => 1..5_u64], 1..4_u32, any::<bool>())
            .prop_map(|(count, delay, begins_within, max_attempts, unit)| Op::Enqueue { count, delay, begins_within, max_attempts, unit }),
        3 => (0..3_u8, conflict, prop_oneof![Just(0), 1..5_u64], any::<bool>())
            .prop_map(|(key, conflict, delay, all)| Op::EnqueueUnique { key, conflict, delay, all }),
        1 => (no(), any::<bool>(), any::<bool>()).prop_map(|(job, other, all)| Op::EnqueueAgain { job, other, all }),
        2 => Just(Op::Open),
        2 => (no(), 0..3_u64).prop_map(|(s, up)| Op::Attach(s, up)),
        2 => prop::collection::vec((no(), is_present()), 1..4).prop_map(Op::Renew),
        1 => (no(), is_present()).prop_map(|(s, is)| Op::Close(s, is)),
        8 => prop::collection::vec((no(), no(), is_present()), 1..6).prop_map(Op::Grant),
        8 => prop::collection::vec((no(), no(), 0..8_u8), 1..6).prop_map(Op::Finish),
        3 => (no(), no(), 1..6_u64, any::<bool>()).prop_map(|(j, l, r, c)| Op::Report(j, l, r, c)),
        3 => (no(), no(), 1..6_u64, 1..4_usize).prop_map(|(j, l, f, c)| Op::Say(j, l, f, c)),
        2 => no().prop_map(Op::Cancel),
        1 => no().prop_map(Op::Delete),
        2 => (no(), prop_oneof![Just(0), 1..4_u64]).prop_map(|(j, d)| Op::Retry(j, d)),
        2 => (no(), prop_oneof![Just(0), 1..4_u64]).prop_map(|(j, d)| Op::Reschedule(j, d)),
        1 => (no(), any::<bool>()).prop_map(|(j, is_high)| Op::SetPriority(j, is_high)),
        3 => prop_oneof![4 => 1..4_u64, 2 => Just(TTL), 1 => Just(RETENTION)].prop_map(Op::Pass),
        2 => Just(Op::Promote),
        2 => Just(Op::ExpireJobs),
        3 => Just(Op::Expire),
        1 => Just(Op::Retain),
        1 => Just(Op::Tidy),
        1 => Just(Op::Claim),
        1 => no().prop_map(Op::Leases),
    ];
    prop::collection::vec(op, 1..STEPS)
}

fn sequences() -> u32 {
    let asked = std::env::var("LEASEHOLD_TEST_SEQUENCES");
    asked.map_or(25, |n| {
        n.parse().expect("LEASEHOLD_TEST_SEQUENCES is a number")
    })
}

async fn random_verbs_do_what_the_model_says(world: World) {
    world.forget_pulse().await;
    let config = Config {
        cases: sequences(),
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    let runtime = tokio::runtime::Handle::current();
    let played = tokio::task::block_in_place(|| {
        TestRunner::new(config).run(&ops(), |ops| {
            runtime.block_on(Play::play(world.clone(), ops));
            Ok(())
        })
    });
    if let Err(broken) = played {
        panic!("{broken}");
    }
}
on_each_store!(random_verbs_do_what_the_model_says);
