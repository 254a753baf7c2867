//! The integration tests: one binary, so that it is linked once and starts one Postgres.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what repeats it"
)]

mod access;
mod admin_tcp;
mod api;
mod answers;
mod browser;
mod callers;
mod cli;
mod clients;
mod clock;
mod cluster;
mod commands;
mod corpus;
mod desk;
mod disk;
mod docs;
mod faults;
mod feed;
mod history;
mod hostile;
mod leaks;
mod manager;
mod markdown;
mod node;
mod ops;
mod page;
mod prometheus;
mod proxy;
mod rows;
mod schema;
mod soak;
mod start;
mod storms;
mod terminal;
mod tls;
mod traces;
mod watch;
mod worlds;
