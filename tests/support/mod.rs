//! What the test binaries share: real services, real processes, and waiting for a state.
//!
//! A test binary takes it in with `#[path = "../support/mod.rs"] mod support;`. The services come
//! from `./scripts/test`; where they are missing a test fails and says so. Nothing is ever skipped.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of this module"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by a panic that says what was wrong"
)]

mod database;
pub mod http;
mod ports;
mod postgres;
mod process;
mod python;
mod redis;
mod services;
mod until;

pub use database::TestDatabase;
pub use ports::free_port;
pub use postgres::PrivatePostgres;
pub use process::{Process, http_status, leasehold, process_rss};
pub use python::{python, run};
pub use redis::PrivateRedis;
pub use services::{shared_database_url, shared_redis_url};
pub use until::until;
