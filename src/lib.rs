//! Sidetone follows the platform's Postgres and tells the processes of one telephony node how each
//! call is to be handled, with Postgres there or gone.
//!
//! Read down: each file uses only files below it.

pub mod example;
pub mod feed;
pub mod source;
pub mod change;
pub mod seal;
pub mod metrics;
pub mod health;
pub mod config;
pub mod condition;
pub mod hours;
pub mod row;
pub mod number;
