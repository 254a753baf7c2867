//! Stub.
use serde::{Deserialize, Serialize};
/// Stub.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct E164(std::sync::Arc<str>);
/// Stub.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Dialling {
    /// x
    pub international_prefix: String,
    /// x
    pub country_code: String,
    /// x
    pub trunk_prefix: String,
}
