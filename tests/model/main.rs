//! The proof of the lease protocol: the server's half and the worker's half, the very code that runs, against an abstract
//! store, in every order that the bounds below allow.
//!
//! ```text
//! ./scripts/test --test model                                              the small bounds, and every broken rule
//! LEASEHOLD_MODEL=large cargo test --release --test model -- --nocapture   the large ones, with their figures
//! ```
//!
//! `LEASEHOLD_MODEL_SECONDS` is the time for each bound, 300 if it is not said; `LEASEHOLD_MODEL_ONLY` chooses by a part of
//! a bound's or a rule's name, and shows the steps by which a rule is found.
//!
//! | file | holds |
//! |---|---|
//! | `world` | the state: two nodes, two workers, the store, and all that is on its way |
//! | `calls` | what the store is asked, statement by statement |
//! | `store`, `keep` | the rules of the store |
//! | `laws` | what must hold: about every change of a job, every verdict, and every state |
//! | `halves` | the adapter: events into the two halves, their actions carried out |
//! | `steps`, `faults` | what may happen next |
//! | `names` | what is the same state under another name |
//! | `fair` | what must come in the end, once nothing fails any more |
//! | `wire` | messages, and their translation for either half |
//! | `bounds` | how far is explored |
//! | `broken` | the rules, one at a time, broken: each must be found |
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod bounds;
mod broken;
mod calls;
mod fair;
mod faults;
mod halves;
mod keep;
mod laws;
mod names;
mod steps;
mod store;
mod wire;
mod world;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use broken::Rule;
use stateright::report::WriteReporter;
use stateright::{Checker, Model, Property};
use steps::Step;
use world::{Bound, World};

/// Of so many states one is asked what must come in the end.
struct Explored {
    bound: Bound,
    ask_every: u64,
}

impl Model for Explored {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.bound)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        steps.extend(world.steps(&self.bound));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(step, &self.bound);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        // One property, so that the search ends with the first state that breaks it.
        vec![Property::always(
            "laws and promises",
            |model: &Self, world: &World| {
                world.store.fault.is_none()
                    && (!model.asks(world) || world.owes(&model.bound).is_none())
            },
        )]
    }
}

impl Explored {
    fn asks(&self, world: &World) -> bool {
        let mut hasher = DefaultHasher::new();
        (&world.store, &world.calls, &world.now, world.streams.len()).hash(&mut hasher);
        hasher.finish().is_multiple_of(self.ask_every)
    }
}

/// Explores all of a bound, if its time is enough, and returns how many states were seen.
fn exhaust(name: &str, bound: Bound, ask_every: u64) -> usize {
    let begun = Instant::now();
    let model = Explored { bound, ask_every };
    let limit = std::env::var("LEASEHOLD_MODEL_SECONDS").ok();
    let limit = Duration::from_secs(limit.and_then(|s| s.parse().ok()).unwrap_or(300));
    let checker = model.checker().threads(2).timeout(limit).spawn_dfs();
    let checker = match std::env::var("LEASEHOLD_MODEL").is_ok() {
        true => checker.report(&mut WriteReporter::new(&mut std::io::stdout())),
        false => checker.join(),
    };
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let world = path.last_state();
        let why = world
            .store
            .fault
            .or_else(|| world.owes(&checker.model().bound));
        for (at, step) in path.clone().into_actions().iter().enumerate() {
            eprintln!("{at:3} {step:?}");
        }
        eprintln!("{world:#?}");
        panic!("{name}: {property}: {why:?}");
    }
    println!(
        "{name}: {} distinct states, {} steps, depth {}, in {:.1?}, {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed(),
        if begun.elapsed() < limit {
            "exhausted"
        } else {
            "cut off by its time"
        }
    );
    checker.unique_state_count()
}

#[test]
fn no_law_is_broken_in_any_order_within_the_bounds() {
    let large = std::env::var("LEASEHOLD_MODEL").is_ok_and(|size| size == "large");
    let only = std::env::var("LEASEHOLD_MODEL_ONLY").ok();
    let mut states = 0;
    for (name, bound) in bounds::all(large) {
        if only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
        {
            states += exhaust(name, bound, if large { 1_024 } else { 256 });
        }
    }
    println!("{states} distinct states in all");
}

#[test]
fn every_broken_rule_is_found() {
    let only = std::env::var("LEASEHOLD_MODEL_ONLY").ok();
    let mut missed = Vec::new();
    for rule in Rule::ALL {
        let name = format!("{rule:?}");
        if only
            .as_ref()
            .is_some_and(|only| !name.contains(only.as_str()))
        {
            continue;
        }
        let begun = Instant::now();
        let bound = Bound {
            rule,
            ..bounds::for_rule(rule)
        };
        let ask_every = if rule.breaks_a_promise() { 1 } else { u64::MAX };
        let model = Explored { bound, ask_every };
        let checker = model
            .checker()
            .target_state_count(400_000)
            .spawn_bfs()
            .join();
        let found = checker.discoveries().into_iter().next();
        let Some((_, path)) = found else {
            println!(
                "{name}: NOT FOUND in {} states",
                checker.unique_state_count()
            );
            missed.push(name);
            continue;
        };
        let world = path.last_state().clone();
        let why = world
            .store
            .fault
            .or_else(|| world.owes(&checker.model().bound));
        let steps = path.into_actions();
        println!(
            "{name}: {} steps, {} states, {:.1?}: {}",
            steps.len(),
            checker.unique_state_count(),
            begun.elapsed(),
            why.unwrap_or_default()
        );
        if only.is_some() {
            steps
                .iter()
                .enumerate()
                .for_each(|(at, step)| println!("{at:3} {step:?}"));
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
