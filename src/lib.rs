//! Sidetone follows the platform's Postgres and tells the processes of one telephony node how each
//! call is to be handled, with Postgres there or gone.

pub mod condition;
pub mod hours;
pub mod number;
