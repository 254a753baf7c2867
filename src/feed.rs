//! Stub.
pub mod handle;
