//! The product as its users meet it: real processes, real sockets, real stores.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends by a panic that says what was wrong"
)]

#[path = "../support/mod.rs"]
mod support;

mod adversity;
mod balancer;
mod bench;
mod blackhole;
mod bulks;
mod cases;
mod clients;
mod crash;
mod defaults;
mod doctor;
mod drain;
mod errors;
mod explain;
mod failover;
mod fairness;
mod faults;
mod hand;
mod hostile;
mod isolation;
mod journey;
mod logs;
mod openapi;
mod outage;
mod overload;
mod pause;
mod redis_failover;
mod resume;
mod schema;
mod sessions;
mod sight;
mod signals;
mod stack;
mod stalled;
mod streams;
mod sweeps;
mod typed;
mod watch;
mod web;
mod wire;
mod workers;
