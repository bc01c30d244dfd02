//! The SDK over real sockets, against a small server that does as each test says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod around;
mod batches;
mod calls;
mod logs;
mod peer;
mod resume;
mod sealed;
mod steps;
mod workers;
