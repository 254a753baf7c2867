//! Sidetone follows the platform's Postgres and tells the processes of one telephony node how each
//! call is to be handled, with Postgres there or gone.
//!
//! Read down: each file uses only files below it.

pub mod cli;
pub mod daemon;
pub mod manager;
pub mod example;
pub mod http;
pub mod log;
pub mod feed;
pub mod engine;
pub mod cache;
pub mod replica;
pub mod source;
pub mod explain;
pub mod answer;
pub mod watch;
pub mod select;
pub mod resolve;
pub mod admit;
pub mod change;
pub mod seal;
pub mod profile;
pub mod stack;
pub mod trace;
pub mod metrics;
pub mod health;
pub mod access;
pub mod config;
pub mod condition;
pub mod hours;
pub mod row;
pub mod certificate;
pub mod number;
pub mod cause;
#[cfg(test)]
mod sample;
