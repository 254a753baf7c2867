//! The integration tests: one binary, so that it is linked once and starts one Postgres.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod access;
mod admin_tcp;
mod answers;
mod cli;
mod cluster;
mod desk;
mod faults;
mod feed;
mod history;
mod node;
mod proxy;
mod rows;
mod schema;
mod worlds;
