//! The integration tests: one binary, so that it is linked once and starts one Postgres.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod cluster;
mod schema;
mod feed;
mod node;
mod ops;
mod cli;
mod leaks;
mod start;
