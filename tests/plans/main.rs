//! What Postgres does for the statements of the store: that the two hot updates stay HOT, that no plan reads what a
//! batch does not name, and how many rows a second come of it.
//!
//! `./scripts/test --test plans` runs all; `./scripts/test --release --test plans rates -- --nocapture` prints figures.

#[path = "../support/mod.rs"]
mod support;

mod growth;
mod hot;
mod plan;
mod tables;
mod verbs;
mod watched;
