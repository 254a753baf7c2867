//! sidetone: an edge configuration daemon for telephony. Read down: each file uses only files below it.

pub mod cli;
pub mod example;
pub mod feed;
pub mod change;
pub mod source;
pub mod health;
pub mod seal;
pub mod metrics;
pub mod config;
pub mod row;
pub mod number;
