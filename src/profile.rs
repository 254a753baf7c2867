//! One number, ready to answer calls: resolved, compiled, credentials opened. How it was built is not here.
//!
//! A profile never changes after it is made; a change to its rows makes a new one.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::condition::Rules;
use crate::hours::BusinessHours;
use crate::row::{Fault, Number, Scope, Tenant};
use crate::seal::Secret;

/// Everything about a number that does not depend on the call.
#[derive(Debug)]
pub struct Profile {
    /// The number's row in force.
    pub number: Number,
    /// `number.timezone`, looked up.
    pub zone: TimeZone,
    /// What is wrong with the newest row of the number; the row above is then the last good one.
    pub faults: Vec<Fault>,
    /// What all numbers of the tenant share.
    pub tenant: Arc<TenantProfile>,
    /// Sixteen hexadecimal digits: equal on every node that holds the same rows, different whenever they differ.
    pub revision: String,
}

/// Everything of a tenant that its numbers share.
#[derive(Debug)]
pub struct TenantProfile {
    /// The tenant's row in force.
    pub tenant: Tenant,
    /// `""` where the tenant has no settings row.
    pub model: String,
    /// `""` where null or no settings row.
    pub transcription_provider: String,
    /// `false` where the tenant has no settings row.
    pub recording_enabled: bool,
    /// Whether a settings row is in force.
    pub has_settings: bool,
    /// `None` where none are configured.
    pub hours: Option<BusinessHours>,
    /// Every prompt, chosen or not, in the order of the stack (design section 3.5).
    pub prompts: Vec<CompiledPrompt>,
    /// Credentials that opened, ordered by provider and name.
    pub credentials: Vec<OpenedCredential>,
    /// Credentials that did not, ordered by provider and name.
    pub withheld: Vec<WithheldCredential>,
    /// Quarantined rows of the tenant, credentials that do not open included.
    pub faults: Vec<Fault>,
    /// Hash of the rows in force.
    pub hash: [u8; 32],
    /// Estimate of the memory this takes, for the cache's bound.
    pub bytes: usize,
}

/// A prompt with its bindings compiled.
#[derive(Debug)]
pub struct CompiledPrompt {
    /// Primary key.
    pub id: Uuid,
    /// Name for people.
    pub name: String,
    /// What it applies to.
    pub scope: Scope,
    /// Inactive prompts are kept so that explain can name them.
    pub active: bool,
    /// Higher stands earlier.
    pub priority: i32,
    /// Breaks ties.
    pub created_at: Timestamp,
    /// `None` where the prompt has no version and never applies.
    pub version: Option<CompiledVersion>,
    /// Its bindings, the most special first: most columns set, then the newest, then by id.
    pub bindings: Vec<CompiledBinding>,
}

/// The version in force.
pub struct CompiledVersion {
    /// Primary key of the version's row.
    pub id: Uuid,
    /// The version's number.
    pub version: i32,
    /// The prompt's text.
    pub content: String,
}

impl std::fmt::Debug for CompiledVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledVersion").field("version", &self.version).finish_non_exhaustive()
    }
}

/// A binding with its conditions understood.
#[derive(Debug)]
pub struct CompiledBinding {
    /// Primary key.
    pub id: Uuid,
    /// Equals the call's exactly, where set.
    pub account_ref: Option<String>,
    /// Equals the call's ignoring ASCII case, where set.
    pub event_type: Option<String>,
    /// Is the called number, where set.
    pub phone_number_id: Option<Uuid>,
    /// Newest first among equally special ones.
    pub created_at: Timestamp,
    /// Conditions and effects.
    pub rules: Rules,
}

/// A credential in the clear: memory only, wiped on drop.
#[derive(Debug)]
pub struct OpenedCredential {
    /// Primary key of the row.
    pub id: Uuid,
    /// Provider, e.g. `openai`.
    pub provider: String,
    /// Name within the provider.
    pub name: String,
    /// The opened value.
    pub value: Secret,
}

/// A credential that could not be opened.
#[derive(Debug)]
pub struct WithheldCredential {
    /// Primary key of the row.
    pub id: Uuid,
    /// Provider, e.g. `openai`.
    pub provider: String,
    /// Name within the provider.
    pub name: String,
    /// Why, without anything secret.
    pub why: String,
}

/// Why a call gets no answer although the question was well-formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The replica holds no such number.
    #[error("no such number")]
    UnknownNumber,
    /// The number's `active` is false.
    #[error("the number is not active")]
    InactiveNumber,
    /// The tenant's status is not `active`.
    #[error("the tenant is not active")]
    TenantSuspended,
    /// This node has never completed a synchronisation and cannot ask Postgres.
    #[error("this node has not synchronised yet and cannot reach Postgres; retry")]
    NeverSynced,
    /// The number's or tenant's row cannot be used and there was never a good one.
    #[error("the number's rows cannot be used and no earlier good ones are known; see status on the admin socket")]
    NoGoodRow,
    /// The replica cannot be read.
    #[error("the replica cannot be read; see the log")]
    Unreadable,
    /// Too many questions are waiting for Postgres.
    #[error("too many questions at once; retry")]
    Overloaded,
}
