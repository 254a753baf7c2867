//! Why an answer is what it is, as JSON: each field and the row it came from, each prompt and binding and why it is
//! chosen or not, the reckoning of business hours, credentials by name, bad rows.
//!
//! Decided by the functions that decide an answer; only the sentences are made here. Never a credential, never prompt
//! content, never null. The length is bounded: what is not listed is counted.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use uuid::Uuid;

use crate::answer::LocalTime;
use crate::condition::{Attribute, Condition, OUTSIDE_BUSINESS_HOURS};
use crate::number::E164;
use crate::profile::{CompiledBinding, CompiledPrompt, Profile, Refusal, RowRevision};
use crate::row::{Fault, Table};
use crate::select::{
    Call, Effective, Facts, Hours, Miss, Origin, Selection, Verdict, choose, names_scope, refusal,
};

/// Most bindings that are listed, over all prompts.
pub const MAX_BINDINGS: usize = 1000;

/// Most characters of a condition, or of what the call says, in a sentence.
const SHOWN_CHARS: usize = 160;

/// An explanation, and why there is no answer if there is none.
#[derive(Debug)]
pub struct Explained {
    /// JSON.
    pub body: Vec<u8>,
    /// What a call gets instead of an answer. The explanation is there all the same.
    pub refusal: Option<Refusal>,
}

/// Explains the answer to a call, or the refusal of it.
#[must_use]
pub fn explain(profile: &Profile, call: &Call, at: Timestamp, stack_bytes: usize) -> Explained {
    let refusal = refusal(profile);
    let selection = choose(profile, call, at, stack_bytes);
    let facts = Facts::new(profile, call, at);
    let number = &profile.number.row;
    let tenant = &*profile.tenant;
    let page = Page {
        status: match refusal {
            None => "ok",
            Some(Refusal::InactiveNumber) => "inactive_number",
            Some(Refusal::TenantSuspended) => "tenant_suspended",
            Some(_) => "not_ready",
        },
        message: refusal
            .map(|refusal| refusal.to_string())
            .unwrap_or_default(),
        number: number.e164.as_str(),
        at: LocalTime::new(at, &TimeZone::UTC).to_string(),
        revision: profile.revision().to_string(),
        tenant: TenantPage {
            id: tenant.tenant.id,
            slug: &tenant.tenant.slug,
            name: &tenant.tenant.name,
            status: &tenant.tenant.status,
            revision: tenant.tenant_revision.to_string(),
        },
        call: CallPage {
            account_ref: selection.account_ref,
            event_type: selection.event_type,
            attributes: &call.attributes,
        },
        fields: Fields::of(&selection),
        business_hours: HoursPage::of(&facts, profile, at),
        prompts: prompts(&selection, &facts),
        credentials: credentials(profile),
        faults: profile.number.faults.iter().chain(&tenant.faults).collect(),
    };
    // Writing maps of text into memory does not fail.
    Explained {
        body: serde_json::to_vec(&page).unwrap_or_default(),
        refusal,
    }
}

/// Explains why a number has no answer: none of its rows was ever good.
#[must_use]
pub fn never_good(number: &E164, faults: &[Fault]) -> Vec<u8> {
    let page = NeverGood {
        status: "not_ready",
        message: Refusal::NoGoodRow.to_string(),
        number: number.as_str(),
        faults,
    };
    serde_json::to_vec(&page).unwrap_or_default()
}

#[derive(Serialize)]
struct NeverGood<'a> {
    status: &'static str,
    message: String,
    number: &'a str,
    faults: &'a [Fault],
}

/// The explanation in the order in which it is written.
#[derive(Serialize)]
struct Page<'a> {
    status: &'static str,
    message: String,
    number: &'a str,
    at: String,
    revision: String,
    tenant: TenantPage<'a>,
    call: CallPage<'a>,
    fields: Fields<'a>,
    business_hours: HoursPage<'a>,
    prompts: Vec<PromptPage<'a>>,
    credentials: Vec<CredentialPage<'a>>,
    faults: Vec<&'a Fault>,
}

#[derive(Serialize)]
struct TenantPage<'a> {
    id: Uuid,
    slug: &'a str,
    name: &'a str,
    status: &'a str,
    revision: String,
}

#[derive(Serialize)]
struct CallPage<'a> {
    account_ref: &'a str,
    event_type: &'a str,
    attributes: &'a BTreeMap<String, Vec<String>>,
}

/// The fields of an answer that rows decide.
#[derive(Serialize)]
struct Fields<'a> {
    label: FieldPage<&'a str>,
    language: FieldPage<&'a str>,
    voice: FieldPage<&'a str>,
    timezone: FieldPage<&'a str>,
    model: FieldPage<&'a str>,
    transcription_provider: FieldPage<&'a str>,
    recording_enabled: FieldPage<bool>,
}

/// A value, the row and column it came from, and the revision of that row: `""` where there is no such row.
#[derive(Serialize)]
struct FieldPage<T> {
    value: T,
    table: &'static str,
    id: Uuid,
    column: &'static str,
    revision: String,
    why: String,
}

impl<'a> Fields<'a> {
    fn of(selection: &Selection<'a>) -> Self {
        let profile = selection.profile;
        let label = Effective {
            value: profile.number.row.label.as_deref().unwrap_or_default(),
            from: Origin::Number,
        };
        Self {
            label: field(profile, label, "label", ""),
            language: field(
                profile,
                selection.language,
                "default_language",
                "language_override",
            ),
            voice: field(profile, selection.voice, "default_voice", "voice_override"),
            timezone: field(profile, selection.timezone, "timezone", "timezone_override"),
            model: field(profile, selection.model, "model", "model_override"),
            transcription_provider: field(
                profile,
                selection.transcription_provider,
                "transcription_provider",
                "transcription_provider_override",
            ),
            recording_enabled: field(
                profile,
                selection.recording_enabled,
                "recording_enabled",
                "recording_enabled_override",
            ),
        }
    }
}

fn field<T>(
    profile: &Profile,
    field: Effective<'_, T>,
    column: &'static str,
    effect: &'static str,
) -> FieldPage<T> {
    let shown = |revision: RowRevision| revision.to_string();
    let (table, id, column, revision, why) = match field.from {
        Origin::Number => (
            Table::TenantPhoneNumbers,
            profile.number.row.id,
            column,
            shown(RowRevision::start_of(&profile.number.hash)),
            format!("{column} of the number; no binding that acts overrides it"),
        ),
        Origin::Settings => (
            Table::TenantSettings,
            profile.tenant.tenant.id,
            column,
            profile
                .tenant
                .settings_revision
                .map(shown)
                .unwrap_or_default(),
            match profile.tenant.settings_revision {
                Some(_) => {
                    format!("{column} of the tenant's settings; no binding that acts overrides it")
                }
                None => "no settings row of the tenant is in force".to_owned(),
            },
        ),
        Origin::Binding(prompt, binding) => (
            Table::PromptBindings,
            binding.id,
            effect,
            shown(binding.revision),
            format!(
                "{effect} of binding {}, which acts for prompt {}, the last in the stack with this override",
                binding.id, prompt.id
            ),
        ),
    };
    FieldPage {
        value: field.value,
        table: table.as_str(),
        id,
        column,
        revision,
        why,
    }
}

#[derive(Serialize)]
struct HoursPage<'a> {
    value: &'static str,
    /// The number's own.
    timezone: &'a str,
    local_time: String,
    /// What conditions go by.
    outside_business_hours: bool,
    why: &'static str,
}

impl<'a> HoursPage<'a> {
    fn of(facts: &Facts<'_>, profile: &'a Profile, at: Timestamp) -> Self {
        let said = facts
            .call
            .attributes
            .get(OUTSIDE_BUSINESS_HOURS)
            .filter(|said| !said.is_empty());
        let by_caller =
            Condition::OutsideBusinessHours(true).holds(facts.call, facts.outside_business_hours());
        Self {
            value: facts.hours.as_str(),
            timezone: &profile.number.row.timezone,
            local_time: LocalTime::new(at, &profile.number.zone).to_string(),
            outside_business_hours: by_caller,
            why: match (said, facts.hours) {
                (Some(_), _) => "the call says itself whether it is outside business hours",
                (None, Hours::NotConfigured) => "the tenant has no business hours",
                (None, Hours::Open) => "the tenant is open at this local time",
                (None, Hours::Closed) => "the tenant is closed at this local time",
            },
        }
    }
}

#[derive(Serialize)]
struct PromptPage<'a> {
    id: Uuid,
    name: &'a str,
    scope: &'static str,
    priority: i32,
    /// 0 where there is none.
    version: i32,
    content_bytes: usize,
    revision: String,
    /// `""` where there is no version.
    version_revision: String,
    chosen: bool,
    why: String,
    bindings: Vec<BindingPage<'a>>,
    bindings_left_out: u32,
    bindings_not_listed: usize,
}

#[derive(Serialize)]
struct BindingPage<'a> {
    id: Uuid,
    account_ref: &'a str,
    event_type: &'a str,
    phone_number_id: String,
    revision: String,
    matches: bool,
    acts: bool,
    /// Overrides it makes when it acts.
    effects: Vec<&'static str>,
    why: String,
}

/// Every prompt in the order of the stack.
fn prompts<'a>(selection: &Selection<'a>, facts: &Facts<'a>) -> Vec<PromptPage<'a>> {
    let mut room = MAX_BINDINGS;
    // Chosen prompts stand in the order of all prompts, so one pass finds them.
    let mut chosen = selection.prompts.iter().peekable();
    let each = |prompt: &'a CompiledPrompt| {
        let fits = chosen
            .next_if(|chosen| std::ptr::eq(chosen.prompt, prompt))
            .is_some();
        let verdict = facts.judge(prompt);
        let listed = prompt.bindings.len().min(room);
        room = room.saturating_sub(listed);
        let acting = match verdict {
            Verdict::Applies(Some(binding)) if fits => Some(binding.id),
            _ => None,
        };
        let bindings = prompt.bindings.iter().take(listed);
        PromptPage {
            id: prompt.id,
            name: &prompt.name,
            scope: prompt.scope.as_str(),
            priority: prompt.priority,
            version: prompt.version.as_ref().map_or(0, |version| version.version),
            content_bytes: prompt
                .version
                .as_ref()
                .map_or(0, |version| version.layer.content_bytes()),
            revision: prompt.revision.to_string(),
            version_revision: prompt
                .version
                .as_ref()
                .map(|version| version.revision.to_string())
                .unwrap_or_default(),
            chosen: fits,
            why: prompt_sentence(prompt, verdict, fits),
            bindings: bindings
                .map(|binding| binding_page(prompt, binding, facts, acting))
                .collect(),
            bindings_left_out: prompt.bindings_left_out,
            bindings_not_listed: prompt.bindings.len().saturating_sub(listed),
        }
    };
    selection.profile.tenant.prompts.iter().map(each).collect()
}

fn prompt_sentence(prompt: &CompiledPrompt, verdict: Verdict<'_>, fits: bool) -> String {
    let scope = prompt.scope.as_str();
    match verdict {
        Verdict::Applies(_) if !fits => {
            "left out: it applies, but does not fit into limits.stack_bytes after those before it"
                .into()
        }
        Verdict::Applies(None) => "chosen: it is global and has no bindings".into(),
        Verdict::Applies(Some(binding)) => {
            format!("chosen: binding {} matches", binding.id)
        }
        Verdict::Inactive => "not chosen: it is not active".into(),
        Verdict::NoVersion => "not chosen: it has no version".into(),
        Verdict::NoMatch if !prompt.bindings.is_empty() => {
            "not chosen: none of its bindings matches".into()
        }
        Verdict::NoMatch if prompt.has_bindings() => {
            "not chosen: all of its bindings are bad rows, which never match".into()
        }
        Verdict::NoMatch => format!("not chosen: its scope is {scope} and it has no binding"),
        Verdict::NotNamed => {
            let column = scope_column(prompt);
            format!("not chosen: its scope is {scope} and no binding that matches sets {column}")
        }
    }
}

fn scope_column(prompt: &CompiledPrompt) -> &'static str {
    use crate::row::Scope;
    match prompt.scope {
        Scope::Global => "anything",
        Scope::EventType => "event_type",
        Scope::Account => "account_ref",
        Scope::PhoneNumber => "phone_number_id",
    }
}

fn binding_page<'a>(
    prompt: &CompiledPrompt,
    binding: &'a CompiledBinding,
    facts: &Facts<'a>,
    acting: Option<Uuid>,
) -> BindingPage<'a> {
    let miss = facts.miss(binding);
    let acts = acting == Some(binding.id);
    let effects = &binding.rules.effects;
    let set = [
        ("language_override", effects.language.is_some()),
        ("voice_override", effects.voice.is_some()),
        ("timezone_override", effects.timezone.is_some()),
        ("model_override", effects.model.is_some()),
        (
            "transcription_provider_override",
            effects.transcription_provider.is_some(),
        ),
        (
            "recording_enabled_override",
            effects.recording_enabled.is_some(),
        ),
    ];
    let id = binding.id;
    let why = match miss {
        Some(miss) => format!("binding {id}: {}", miss_sentence(miss, facts)),
        None if acts => format!("binding {id}: matches and acts, the most special that does"),
        None if !names_scope(binding, prompt.scope) => {
            format!(
                "binding {id}: matches, but does not set {}",
                scope_column(prompt)
            )
        }
        None => format!("binding {id}: matches and does not act"),
    };
    BindingPage {
        id,
        account_ref: binding.account_ref.as_deref().unwrap_or_default(),
        event_type: binding.event_type.as_deref().unwrap_or_default(),
        phone_number_id: binding
            .phone_number_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        revision: binding.revision.to_string(),
        matches: miss.is_none(),
        acts,
        effects: set
            .into_iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| name)
            .collect(),
        why,
    }
}

fn miss_sentence(miss: Miss<'_>, facts: &Facts<'_>) -> String {
    let call = facts.call;
    match miss {
        Miss::AccountRef(wanted) => {
            let said = said("account_ref", call.account_ref.as_slice());
            format!("account_ref {wanted} is not the call's: {said}")
        }
        Miss::EventType(wanted) => {
            let said = said("event_type", call.event_type.as_slice());
            format!("event_type {wanted} is not the call's: {said}")
        }
        Miss::PhoneNumber => "phone_number_id is not the called number's".into(),
        Miss::Condition(condition) => {
            let shown = clipped(&condition.to_string());
            format!(
                "condition {shown} does not hold: {}",
                condition_sentence(condition, facts)
            )
        }
    }
}

fn condition_sentence(condition: &Condition, facts: &Facts<'_>) -> String {
    let call = facts.call;
    let given = |name: &str| call.attributes.get(name).map_or(&[][..], Vec::as_slice);
    match condition {
        Condition::Equals { attribute, .. }
        | Condition::In { attribute, .. }
        | Condition::NotIn { attribute, .. } => match attribute {
            Attribute::AccountRef => said("account_ref", call.account_ref.as_slice()),
            Attribute::EventType => said("event_type", call.event_type.as_slice()),
            Attribute::Other(name) => said(name, given(name)),
        },
        Condition::OutsideBusinessHours(_) => match (given(OUTSIDE_BUSINESS_HOURS), facts.hours) {
            ([], Hours::Open) => "the tenant is open at this local time".into(),
            ([], Hours::Closed) => "the tenant is closed at this local time".into(),
            ([], Hours::NotConfigured) => "the tenant has no business hours".into(),
            (said_by_call, _) => said(OUTSIDE_BUSINESS_HOURS, said_by_call),
        },
    }
}

/// What the call says of an attribute.
fn said(name: &str, values: &[String]) -> String {
    match values {
        [] => format!("the call has no {name}"),
        [value] => format!("the call's {name} is {}", clipped(value)),
        values => format!("the call's {name} are {}", clipped(&values.join(", "))),
    }
}

fn clipped(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[derive(Serialize)]
struct CredentialPage<'a> {
    provider: &'a str,
    name: &'a str,
    status: &'static str,
    /// Why it is withheld.
    why: &'a str,
}

fn credentials(profile: &Profile) -> Vec<CredentialPage<'_>> {
    let tenant = &profile.tenant;
    let opened = tenant.credentials.iter().map(|one| CredentialPage {
        provider: &one.provider,
        name: &one.name,
        status: "ok",
        why: "",
    });
    let withheld = tenant.withheld.iter().map(|one| CredentialPage {
        provider: &one.provider,
        name: &one.name,
        status: "withheld",
        why: &one.why,
    });
    let mut all: Vec<_> = opened.chain(withheld).collect();
    all.sort_by(|a, b| (a.provider, a.name).cmp(&(b.provider, b.name)));
    all
}
