//! One struct per table the answer depends on, as this node keeps them, and the feed's cursor.
//!
//! A row here has passed admission (`admit.rs`): its fields are within their limits and well-formed.
//! Ciphertexts stay sealed; nothing in this file holds an opened credential.
//! The serialised form of these structs is what the replica stores and what a revision is a hash of:
//! fields are only ever added, with a default.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::number::E164;

/// A row of `tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Primary key.
    pub id: Uuid,
    /// Display name, at most 255 characters.
    pub name: String,
    /// Unique short name, at most 255 characters.
    pub slug: String,
    /// `active` answers calls; anything else is `tenant_suspended`.
    pub status: String,
}

impl Tenant {
    /// Whether calls to this tenant's numbers are answered.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status == "active"
    }
}

/// A row of `tenant_settings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Language model.
    pub model: String,
    /// Speech-to-text provider; `None` where the column is null.
    pub transcription_provider: Option<String>,
    /// Whether calls are recorded.
    pub recording_enabled: bool,
    /// Opening hours as stored (design section 3); `None` where none are configured.
    pub business_hours: Option<serde_json::Value>,
}

/// A row of `tenant_credentials`, still sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Primary key.
    pub id: Uuid,
    /// Provider, e.g. `openai`.
    pub provider: String,
    /// Name within the provider, e.g. `default`.
    pub name: String,
    /// The sealed form (design section 8).
    pub data_ciphertext: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("id", &self.id)
            .field("provider", &self.provider)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A row of `tenant_phone_numbers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Number {
    /// Primary key; what a binding's `phone_number_id` names.
    pub id: Uuid,
    /// The tenant that owns the number.
    pub tenant_id: Uuid,
    /// The number itself.
    pub e164: E164,
    /// Free text for people.
    pub label: Option<String>,
    /// BCP 47 tag.
    pub default_language: String,
    /// Voice of the text-to-speech provider.
    pub default_voice: Option<String>,
    /// IANA zone name.
    pub timezone: String,
    /// Whether the number answers.
    pub active: bool,
}

/// What a prompt applies to, from general to special: the order of the stack within one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Every call of the tenant, unless its bindings narrow it.
    #[serde(rename = "global")]
    Global,
    /// Calls of an event type.
    #[serde(rename = "event_type")]
    EventType,
    /// Calls about an account.
    #[serde(rename = "account")]
    Account,
    /// Calls to a number.
    #[serde(rename = "phone-number")]
    PhoneNumber,
}

impl Scope {
    /// The spelling of the column `prompts.scope`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::EventType => "event_type",
            Self::Account => "account",
            Self::PhoneNumber => "phone-number",
        }
    }
}

/// A row of `prompts` with its highest version and its bindings.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Primary key.
    pub id: Uuid,
    /// Name for people.
    pub name: String,
    /// What it applies to.
    pub scope: Scope,
    /// Null in the table means `true`.
    pub active: bool,
    /// Higher stands earlier in the stack; null in the table means 0.
    pub priority: i32,
    /// Breaks ties in the stack.
    pub created_at: Timestamp,
    /// The highest version; a prompt without one never applies.
    pub version: Option<Version>,
    /// Every binding of the prompt that was admitted, ordered by id.
    pub bindings: Vec<Binding>,
    /// Bindings the prompt has in Postgres that were not admitted. They still count as bindings: a global prompt
    /// that lost its only one to a bad row must not apply to every call.
    #[serde(default)]
    pub bindings_left_out: u32,
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt")
            .field("id", &self.id)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// The highest row of `prompt_versions` of one prompt. Its content may hold pass phrases.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Primary key.
    pub id: Uuid,
    /// The version's number.
    pub version: i32,
    /// The prompt's text.
    pub content: String,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Version")
            .field("id", &self.id)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A row of `prompt_bindings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Primary key.
    pub id: Uuid,
    /// Equals the call's `account_ref` exactly, where set.
    pub account_ref: Option<String>,
    /// Equals the call's `event_type` ignoring ASCII case, where set.
    pub event_type: Option<String>,
    /// Is the called number, where set.
    pub phone_number_id: Option<Uuid>,
    /// Conditions and effects (design section 3), as stored.
    pub conditions: serde_json::Value,
    /// Of one prompt's matching bindings with equally many columns set the newest acts.
    pub created_at: Timestamp,
}

/// A row of `tenant_credentials` that was not admitted, although what it is for can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// Primary key.
    pub id: Uuid,
    /// Provider, e.g. `openai`.
    pub provider: String,
    /// Name within the provider, e.g. `default`.
    pub name: String,
    /// Why.
    pub reason: Reason,
}

/// Everything of one tenant but its numbers: what a change of kind `tenant` replaces as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// `None` where the row was never good.
    pub tenant: Option<Tenant>,
    /// `None` where the tenant has no settings row, or it was never good.
    pub settings: Option<Settings>,
    /// Ordered by provider, name; no two have both in common.
    pub credentials: Vec<Credential>,
    /// Ordered by id.
    pub prompts: Vec<Prompt>,
    /// Credentials that are named in an answer as withheld, ordered by provider, name.
    #[serde(default)]
    pub withheld: Vec<Withheld>,
}

/// The tables the answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// `tenants`
    Tenants,
    /// `tenant_settings`
    TenantSettings,
    /// `tenant_credentials`
    TenantCredentials,
    /// `tenant_phone_numbers`
    TenantPhoneNumbers,
    /// `prompts`
    Prompts,
    /// `prompt_versions`
    PromptVersions,
    /// `prompt_bindings`
    PromptBindings,
}

impl Table {
    /// Every table, in the order of the data model.
    pub const ALL: [Self; 7] = [
        Self::Tenants,
        Self::TenantSettings,
        Self::TenantCredentials,
        Self::TenantPhoneNumbers,
        Self::Prompts,
        Self::PromptVersions,
        Self::PromptBindings,
    ];

    /// The table's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::TenantSettings => "tenant_settings",
            Self::TenantCredentials => "tenant_credentials",
            Self::TenantPhoneNumbers => "tenant_phone_numbers",
            Self::Prompts => "prompts",
            Self::PromptVersions => "prompt_versions",
            Self::PromptBindings => "prompt_bindings",
        }
    }
}

/// Why a row is in quarantine: few and stable, a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A column is missing, of a wrong type or cannot be read at all.
    Malformed,
    /// The number is not E.164.
    Number,
    /// The zone is not in the IANA database.
    Timezone,
    /// The language tag is not well-formed BCP 47.
    Language,
    /// A control character stands in anything but prompt content.
    ControlCharacter,
    /// A field is longer than its limit.
    TooLong,
    /// The tenant has more rows than `limits.rows_per_tenant`.
    TooMany,
    /// `conditions_json` is not understood.
    Conditions,
    /// `business_hours` is not understood.
    BusinessHours,
    /// `data_ciphertext` does not open for this row with any key of the keyring.
    Ciphertext,
    /// The number's tenant is not there.
    NoTenant,
    /// The process died with it in hand: it is tried once more, and after a second death waits for another content.
    Deadly,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::Malformed,
        Self::Number,
        Self::Timezone,
        Self::Language,
        Self::ControlCharacter,
        Self::TooLong,
        Self::TooMany,
        Self::Conditions,
        Self::BusinessHours,
        Self::Ciphertext,
        Self::NoTenant,
        Self::Deadly,
    ];

    /// The reason as a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Number => "number",
            Self::Timezone => "timezone",
            Self::Language => "language",
            Self::ControlCharacter => "control_character",
            Self::TooLong => "too_long",
            Self::TooMany => "too_many",
            Self::Conditions => "conditions",
            Self::BusinessHours => "business_hours",
            Self::Ciphertext => "ciphertext",
            Self::NoTenant => "no_tenant",
            Self::Deadly => "deadly",
        }
    }
}

impl Reason {
    /// The reason as the caller of an answer may read it.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "the row cannot be read",
            Self::Number => "the number is not E.164",
            Self::Timezone => "the timezone is unknown",
            Self::Language => "the language tag is ill-formed",
            Self::ControlCharacter => "a column holds a control character",
            Self::TooLong => "a column is over its limit",
            Self::TooMany => "the tenant has too many rows",
            Self::Conditions => "conditions_json is not understood",
            Self::BusinessHours => "business_hours is not understood",
            Self::Ciphertext => "the sealed value does not open",
            Self::NoTenant => "the tenant is not there",
            Self::Deadly => "the program died on the row",
        }
    }
}

/// A row that could not be used as it stands in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fault {
    /// The table the row stands in.
    pub table: Table,
    /// The row's primary key, or the number for `tenant_phone_numbers`.
    pub key: String,
    /// Why, for a metric.
    pub reason: Reason,
    /// Why, for a person: names the column and what is wrong; never a secret or prompt content.
    pub detail: String,
    /// Whether the last good row of the same key is in force instead; else the row is left out.
    pub last_good: bool,
}

/// The hash of a row's document as Postgres wrote it: equal hashes, equal rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DocHash(pub [u8; 32]);

impl DocHash {
    /// SHA-256 of a document's text, the same that `source` computes in SQL.
    #[must_use]
    pub fn of(document: &str) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, document.as_bytes());
        let mut bytes = [0; 32];
        bytes
            .iter_mut()
            .zip(digest.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self(bytes)
    }

    /// Sixty-four lower-case hexadecimal digits, as `encode(…, 'hex')` writes them.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The reverse of [`DocHash::to_hex`].
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 32];
        for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl From<DocHash> for String {
    fn from(hash: DocHash) -> Self {
        hash.to_hex()
    }
}

impl TryFrom<String> for DocHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_hex(&text).ok_or("not 64 hexadecimal digits")
    }
}

impl fmt::Debug for DocHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the replica keeps of a number: the row in force, and what is wrong with the newest one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberRecord {
    /// Of the newest document, good or bad.
    pub hash: DocHash,
    /// The row in force; `None` where no version was ever good.
    pub row: Option<Number>,
    /// Why the newest document is not the one in force.
    pub faults: Vec<Fault>,
    /// The good row that was in force before this one, should this one turn out to be deadly; `None` where it never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<Number>>,
}

/// What the replica keeps of a tenant: the rows in force, and what is wrong with the newest ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// Of the newest document, good or bad.
    pub hash: DocHash,
    /// The rows in force.
    pub bundle: Bundle,
    /// Rows left out or held at their last good state. Ciphertexts are judged when they are opened, not here.
    pub faults: Vec<Fault>,
    /// The rows that were in force before these; `None` where they never changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<Bundle>>,
}
