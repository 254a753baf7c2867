//! Postgres, seen from this node. All SQL is here and below.

pub mod migrate;
