//! sidetone: an edge configuration daemon for telephony. Read down: each file uses only files below it.

pub mod feed;
pub mod health;
pub mod condition;
pub mod hours;
pub mod metrics;
pub mod config;
pub mod row;
pub mod number;
