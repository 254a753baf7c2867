//! One number, ready to answer calls: resolved, compiled, credentials opened. How it was built is not here.
//!
//! A profile never changes after it is made; a change to its rows makes a new one.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::condition::Rules;
use crate::hours::BusinessHours;
use crate::row::{Fault, Number, Scope, Tenant};
use crate::seal::Secret;
use crate::stack::{Layer, Stacks};

/// Everything about a number that does not depend on the call: the number's own part, and what all numbers of the
/// tenant share. Both are of one commit.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The number's own part.
    pub number: Arc<NumberProfile>,
    /// What all numbers of the tenant share.
    pub tenant: Arc<TenantProfile>,
    /// Postgres no longer calls the tenant active, and the row that says so waits behind a large batch.
    pub suspended_ahead: bool,
}

impl Profile {
    /// Joins the two parts.
    #[must_use]
    pub fn new(number: Arc<NumberProfile>, tenant: Arc<TenantProfile>) -> Self {
        Self {
            number,
            tenant,
            suspended_ahead: false,
        }
    }

    /// Equal on every node that holds the same rows, different whenever they differ. Sixteen hexadecimal digits.
    #[must_use]
    pub fn revision(&self) -> RowRevision {
        revision(&self.number.hash, &self.tenant.hash)
    }
}

/// The revision of answers made from a number and a tenant with these hashes.
#[must_use]
pub fn revision(number: &[u8; 32], tenant: &[u8; 32]) -> RowRevision {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sidetone answer 1\0");
    hasher.update(number);
    hasher.update(tenant);
    RowRevision::start_of(hasher.finalize().as_bytes())
}

/// What answers say of one thing however they are asked, as it stands in them: written by the first answer that says it.
#[derive(Default)]
pub struct Once(OnceLock<Box<[u8]>>);

impl Once {
    /// The bytes.
    pub fn written(&self, write: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.0.get_or_init(|| write().into_boxed_slice())
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once")
    }
}

/// A number's own part of a profile.
#[derive(Debug)]
pub struct NumberProfile {
    /// Who is called.
    pub called: Once,
    /// Language, voice and zone, where no binding decides them.
    pub speech: Once,
    /// The number's row in force.
    pub row: Number,
    /// `row.timezone`, looked up.
    pub zone: TimeZone,
    /// What is wrong with the newest row of the number; the row above is then the last good one.
    pub faults: Vec<Fault>,
    /// Hash of the row in force.
    pub hash: [u8; 32],
}

impl NumberProfile {
    /// Estimate of the memory this takes, for the cache's bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = text(&self.row.label)
            .saturating_add(text(&self.row.default_voice))
            .saturating_add(self.row.default_language.len())
            .saturating_add(self.row.timezone.len());
        size_of::<Self>()
            .saturating_add(ENTRY_OVERHEAD)
            .saturating_add(texts)
            // Once more in answers, where they may take more.
            .saturating_add(texts.saturating_mul(2).saturating_add(WRITTEN_KEYS))
            .saturating_add(
                self.faults
                    .iter()
                    .map(|fault| fault.detail.len().saturating_add(size_of::<Fault>()))
                    .sum(),
            )
    }
}

/// What stands around the texts of a number in an answer.
const WRITTEN_KEYS: usize = 128;

/// What the cache itself and the allocator spend on an entry, as measured (`tests/allocations.rs`).
pub const ENTRY_OVERHEAD: usize = 512;

/// Everything of a tenant that its numbers share. In a box: whoever knows one weakly keeps no more of it in memory than
/// the pointer.
#[derive(Debug)]
pub struct TenantProfile(Box<TenantParts>);

impl From<TenantParts> for TenantProfile {
    fn from(parts: TenantParts) -> Self {
        Self(Box::new(parts))
    }
}

impl Deref for TenantProfile {
    type Target = TenantParts;

    fn deref(&self) -> &TenantParts {
        &self.0
    }
}

/// What a [`TenantProfile`] is made of.
#[derive(Debug)]
pub struct TenantParts {
    /// Whose the number is.
    pub owner: Once,
    /// Model, transcription and recording, where no binding decides them.
    pub models: Once,
    /// The tenant's row in force.
    pub tenant: Tenant,
    /// `""` where the tenant has no settings row.
    pub model: String,
    /// `""` where null or no settings row.
    pub transcription_provider: String,
    /// `false` where the tenant has no settings row.
    pub recording_enabled: bool,
    /// Of the tenant's row.
    pub tenant_revision: RowRevision,
    /// Of the settings row; `None` where the tenant has none in force.
    pub settings_revision: Option<RowRevision>,
    /// `None` where none are configured.
    pub hours: Option<BusinessHours>,
    /// Every prompt, chosen or not, in the order of the stack (design section 3.5).
    pub prompts: Vec<CompiledPrompt>,
    /// What can be told of each prompt before a call, in the same order: most are passed without a look at themselves.
    pub gates: Box<[Gate]>,
    /// What calls were answered with of them.
    pub stacks: Stacks,
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

/// What can be told of a prompt before a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// To which calls it applies.
    pub opens: Opens,
    /// Length of its text; 0 where it has none.
    pub content_bytes: usize,
}

/// To which calls a prompt applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// To none: it is inactive, has no version, or lacks the bindings that it needs.
    Never,
    /// To all: it is global and has no bindings.
    Always,
    /// To those that a binding of it matches.
    ToBindings,
}

impl CompiledPrompt {
    /// What can be told of it before a call.
    #[must_use]
    pub fn gate(&self) -> Gate {
        let bound = self.has_bindings() || self.scope != Scope::Global;
        let opens = match &self.version {
            Some(_) if self.active && !bound => Opens::Always,
            Some(_) if self.active && !self.bindings.is_empty() => Opens::ToBindings,
            _ => Opens::Never,
        };
        let layer = self.version.as_ref().map(|version| &version.layer);
        Gate {
            opens,
            content_bytes: layer.map_or(0, Layer::content_bytes),
        }
    }

    /// Whether Postgres has a binding of it, good or bad.
    #[must_use]
    pub fn has_bindings(&self) -> bool {
        !self.bindings.is_empty() || self.bindings_left_out > 0
    }
}

/// The start of a row's hash, for people to compare; shown as sixteen hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRevision(pub [u8; 8]);

impl RowRevision {
    /// The start of a hash.
    #[must_use]
    pub fn start_of(hash: &[u8; 32]) -> Self {
        let mut start = [0; 8];
        start
            .iter_mut()
            .zip(hash)
            .for_each(|(to, from)| *to = *from);
        Self(start)
    }
}

impl RowRevision {
    /// Its digits.
    #[must_use]
    pub fn hex(self) -> [u8; 16] {
        let mut digits = [b'0'; 16];
        let nibbles = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        for (digit, nibble) in digits.iter_mut().zip(nibbles) {
            *digit = if nibble < 10 {
                b'0'.saturating_add(nibble)
            } else {
                b'a'.saturating_add(nibble.saturating_sub(10))
            };
        }
        digits
    }
}

impl fmt::Display for RowRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.hex()))
    }
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
    /// Of the row of `prompts` alone.
    pub revision: RowRevision,
    /// `None` where the prompt has no version and never applies.
    pub version: Option<CompiledVersion>,
    /// Its bindings, the most special first: most columns set, then the newest, then the lowest id.
    pub bindings: Vec<CompiledBinding>,
    /// Bindings that were left out as bad rows. They never match and still make the prompt one with bindings.
    pub bindings_left_out: u32,
}

/// The version in force.
pub struct CompiledVersion {
    /// Primary key of the version's row.
    pub id: Uuid,
    /// The version's number.
    pub version: i32,
    /// The prompt in an answer.
    pub layer: Layer,
    /// Of the version's row.
    pub revision: RowRevision,
}

impl fmt::Debug for CompiledVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledVersion")
            .field("version", &self.version)
            .finish_non_exhaustive()
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
    /// The zone of `timezone_override`, looked up.
    pub zone: Option<TimeZone>,
    /// Of the binding's row.
    pub revision: RowRevision,
}

impl CompiledBinding {
    /// How many columns it is bound by: the more, the more special.
    #[must_use]
    pub fn columns_set(&self) -> u8 {
        let set = [
            self.account_ref.is_some(),
            self.event_type.is_some(),
            self.phone_number_id.is_some(),
        ];
        set.into_iter().map(u8::from).sum()
    }
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
    /// The opened value as it stands in an answer: compact JSON where it opens to JSON, else a JSON string.
    pub json: Secret,
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
    #[error(
        "the number's rows cannot be used and no earlier good ones are known; see status on the admin socket"
    )]
    NoGoodRow,
    /// The replica cannot be read.
    #[error("the replica cannot be read; see the log")]
    Unreadable,
    /// Too many questions are waiting for Postgres.
    #[error("too many questions at once; retry")]
    Overloaded,
}
