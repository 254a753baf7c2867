//! Sidetone follows the platform's Postgres and tells the processes of one telephony node how each
//! call is to be handled, with Postgres there or gone.
//!
//! Read down: each file uses only files below it.

pub mod change;
pub mod condition;
pub mod config;
pub mod feed;
pub mod health;
pub mod hours;
pub mod metrics;
pub mod number;
pub mod row;
pub mod seal;
pub mod source;
