//! Rows in force → a profile: conditions and hours compiled, credentials opened, prompts and bindings in order.
//!
//! Pure: the same rows and the same keyring make the same profile. What cannot be used costs itself alone and is named
//! by a fault; only a tenant or number that was never good makes no profile.

#[cfg(test)]
mod tests;

mod json;

use std::cmp::Reverse;
use std::mem::size_of;

use serde::Serialize;

use crate::admit;
use crate::condition;
use crate::hours::BusinessHours;
use crate::profile::{
    CompiledBinding, CompiledPrompt, CompiledVersion, ENTRY_OVERHEAD, NumberProfile, Once,
    OpenedCredential, Refusal, RowRevision, TenantParts, TenantProfile, WithheldCredential,
};
use crate::row::{
    Binding, Bundle, Credential, Fault, NumberRecord, Prompt, Reason, Settings, Table, TenantRecord,
};
use crate::seal::{Context, Keyring};
use crate::stack::{Layer, Stacks};

/// Hashes of different things differ: each starts with one of these.
const TENANT: &[u8] = b"sidetone tenant 1\0";
const ROW: &[u8] = b"sidetone row 1\0";

/// What the stacks of a tenant may take in memory, as a multiple of its prompts: two of all prompts, each with the
/// texts once more, or more stacks of fewer.
const STACKS: usize = 4;

/// Everything that the numbers of a tenant share. `raw_key` names the key of the second sealed form (`keys.raw`).
///
/// # Errors
/// [`Refusal::NoGoodRow`] when there is no good row of the tenant.
pub fn tenant(
    record: &TenantRecord,
    keyring: &Keyring,
    raw_key: Option<&str>,
) -> Result<TenantProfile, Refusal> {
    let Bundle {
        tenant,
        settings,
        credentials,
        prompts,
        withheld,
    } = &record.bundle;
    let tenant = tenant.clone().ok_or(Refusal::NoGoodRow)?;
    let mut faults = record.faults.clone();

    let hours = settings
        .as_ref()
        .and_then(|settings| hours(settings, &tenant.id.to_string(), &mut faults));
    let mut prompts = prompts
        .iter()
        .map(|prompt| compile_prompt(prompt, &mut faults))
        .collect::<Result<Vec<CompiledPrompt>, Refusal>>()?;
    prompts.sort_by(|a, b| stack_key(a).cmp(&stack_key(b)));

    let mut opened = Vec::with_capacity(credentials.len());
    let mut withheld: Vec<WithheldCredential> = withheld
        .iter()
        .map(|row| WithheldCredential {
            id: row.id,
            provider: row.provider.clone(),
            name: row.name.clone(),
            why: row.reason.sentence().to_owned(),
        })
        .collect();
    for row in credentials {
        let context = Context {
            tenant: tenant.id,
            provider: &row.provider,
            name: &row.name,
        };
        match keyring.open(&row.data_ciphertext, &context, raw_key) {
            // Nobody is answered with it: it is opened only to know whether it opens.
            Ok(_) if !tenant.is_active() => opened.push(open_credential(row, "")),
            Ok(value) => opened.push(open_credential(row, value.secret.expose())),
            Err(err) => {
                let why = err.to_string();
                faults.push(Fault {
                    table: Table::TenantCredentials,
                    key: row.id.to_string(),
                    reason: Reason::Ciphertext,
                    detail: format!("data_ciphertext: {why}"),
                    last_good: false,
                });
                let (provider, name) = (row.provider.clone(), row.name.clone());
                withheld.push(WithheldCredential {
                    id: row.id,
                    provider,
                    name,
                    why,
                });
            }
        }
    }
    opened.sort_by(|a, b| (&a.provider, &a.name).cmp(&(&b.provider, &b.name)));
    withheld.sort_by(|a, b| (&a.provider, &a.name).cmp(&(&b.provider, &b.name)));

    let mut profile = TenantParts {
        owner: Once::default(),
        models: Once::default(),
        tenant_revision: revision(&tenant)?,
        tenant,
        model: settings
            .as_ref()
            .map(|row| row.model.clone())
            .unwrap_or_default(),
        transcription_provider: settings
            .as_ref()
            .and_then(|row| row.transcription_provider.clone())
            .unwrap_or_default(),
        recording_enabled: settings.as_ref().is_some_and(|row| row.recording_enabled),
        settings_revision: settings.as_ref().map(revision).transpose()?,
        hours,
        stacks: Stacks::new(STACKS.saturating_mul(layers(&prompts))),
        gates: prompts.iter().map(CompiledPrompt::gate).collect(),
        prompts,
        credentials: opened,
        withheld,
        faults,
        hash: tenant_hash(record)?,
        bytes: 0,
    };
    profile.bytes = weigh(&profile, &record.bundle);
    Ok(profile.into())
}

/// A number's own part of a profile.
///
/// # Errors
/// [`Refusal::NoGoodRow`] when there is no good row of the number.
pub fn number(record: &NumberRecord) -> Result<NumberProfile, Refusal> {
    let row = record.row.as_ref().ok_or(Refusal::NoGoodRow)?;
    let zone = admit::zone(&row.timezone).ok_or(Refusal::NoGoodRow)?;
    Ok(NumberProfile {
        called: Once::default(),
        speech: Once::default(),
        hash: number_hash(record)?,
        row: row.clone(),
        zone,
        faults: record.faults.clone(),
    })
}

/// [`TenantProfile::hash`] of what would be made of a record, with nothing opened for it.
///
/// # Errors
/// [`Refusal::NoGoodRow`] when there is no good row of the tenant.
pub fn tenant_hash(record: &TenantRecord) -> Result<[u8; 32], Refusal> {
    record.bundle.tenant.as_ref().ok_or(Refusal::NoGoodRow)?;
    hash(TENANT, &record.bundle)
}

/// [`NumberProfile::hash`] of what would be made of a record.
///
/// # Errors
/// [`Refusal::NoGoodRow`] when there is no good row of the number.
pub fn number_hash(record: &NumberRecord) -> Result<[u8; 32], Refusal> {
    hash(ROW, record.row.as_ref().ok_or(Refusal::NoGoodRow)?)
}

/// Where a prompt stands in the stack: priority descending, then from general to special, then by age, then by id.
fn stack_key(prompt: &CompiledPrompt) -> impl Ord {
    (
        Reverse(prompt.priority),
        prompt.scope,
        prompt.created_at,
        prompt.id,
    )
}

/// How special a binding is, the most special first: most columns set, then the newest, then the lowest id.
fn special_key(binding: &CompiledBinding) -> impl Ord {
    (
        Reverse(binding.columns_set()),
        Reverse(binding.created_at),
        binding.id,
    )
}

/// The hash of rows as the replica stores them.
fn hash(domain: &[u8], rows: &impl Serialize) -> Result<[u8; 32], Refusal> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(domain);
    serde_json::to_writer(&mut hasher, rows).map_err(|_| Refusal::NoGoodRow)?;
    Ok(*hasher.finalize().as_bytes())
}

fn revision(row: &impl Serialize) -> Result<RowRevision, Refusal> {
    hash(ROW, row).map(|hash| RowRevision::start_of(&hash))
}

/// Hours were read once at admission; that they are not understood now means that an older version admitted them.
fn hours(settings: &Settings, key: &str, faults: &mut Vec<Fault>) -> Option<BusinessHours> {
    let parsed = BusinessHours::parse(settings.business_hours.as_ref()?);
    parsed
        .map_err(|err| {
            faults.push(Fault {
                table: Table::TenantSettings,
                key: key.to_owned(),
                reason: Reason::BusinessHours,
                detail: err.to_string(),
                last_good: false,
            });
        })
        .ok()
}

fn compile_prompt(row: &Prompt, faults: &mut Vec<Fault>) -> Result<CompiledPrompt, Refusal> {
    let mut bindings = Vec::with_capacity(row.bindings.len());
    let mut left_out = row.bindings_left_out;
    for binding in &row.bindings {
        match compile_binding(binding)? {
            Ok(binding) => bindings.push(binding),
            Err(detail) => {
                left_out = left_out.saturating_add(1);
                faults.push(Fault {
                    table: Table::PromptBindings,
                    key: binding.id.to_string(),
                    reason: Reason::Conditions,
                    detail: format!("{detail}, of prompt {}", row.id),
                    last_good: false,
                });
            }
        }
    }
    bindings.sort_by(|a, b| special_key(a).cmp(&special_key(b)));
    let columns = (
        row.id,
        &row.name,
        row.scope,
        row.active,
        row.priority,
        row.created_at,
    );
    let version = match &row.version {
        Some(version) => Some(CompiledVersion {
            id: version.id,
            version: version.version,
            layer: Layer::new(row, version).map_err(|_| Refusal::NoGoodRow)?,
            revision: revision(version)?,
        }),
        None => None,
    };
    Ok(CompiledPrompt {
        id: row.id,
        name: row.name.clone(),
        scope: row.scope,
        active: row.active,
        priority: row.priority,
        created_at: row.created_at,
        revision: revision(&columns)?,
        version,
        bindings,
        bindings_left_out: left_out,
    })
}

/// The binding, or why it is left out: it was read once at admission, perhaps by an older version.
fn compile_binding(row: &Binding) -> Result<Result<CompiledBinding, String>, Refusal> {
    let rules = match condition::compile(&row.conditions) {
        Ok(rules) => rules,
        Err(err) => return Ok(Err(err.to_string())),
    };
    let zone = match rules
        .effects
        .timezone
        .as_deref()
        .map(|name| (name, admit::zone(name)))
    {
        Some((_, None)) => return Ok(Err(admit::UNKNOWN_OVERRIDE_ZONE.to_owned())),
        Some((_, zone)) => zone,
        None => None,
    };
    Ok(Ok(CompiledBinding {
        id: row.id,
        account_ref: row.account_ref.clone(),
        event_type: row.event_type.clone(),
        phone_number_id: row.phone_number_id,
        created_at: row.created_at,
        rules,
        zone,
        revision: revision(row)?,
    }))
}

fn open_credential(row: &Credential, value: &str) -> OpenedCredential {
    OpenedCredential {
        id: row.id,
        provider: row.provider.clone(),
        name: row.name.clone(),
        json: json::as_json(value),
    }
}

/// Bytes of all prompts as they stand in an answer.
fn layers(prompts: &[CompiledPrompt]) -> usize {
    prompts
        .iter()
        .filter_map(|prompt| prompt.version.as_ref())
        .map(|version| version.layer.json().len())
        .fold(0, usize::saturating_add)
}

/// What a profile takes in memory, estimated: the texts and the structs around them. Rules are taken at the size of
/// the JSON they were read from, twice.
fn weigh(profile: &TenantParts, bundle: &Bundle) -> usize {
    let mut bytes = size_of::<TenantParts>().saturating_add(ENTRY_OVERHEAD);
    let mut add = |more: usize| bytes = bytes.saturating_add(more);
    for text in [
        &profile.tenant.name,
        &profile.tenant.slug,
        &profile.tenant.status,
    ] {
        add(text.len());
    }
    add(profile.model.len());
    add(profile.transcription_provider.len());
    let json = |value: &serde_json::Value| serde_json::to_vec(value).map_or(0, |json| json.len());
    let hours = bundle
        .settings
        .as_ref()
        .and_then(|settings| settings.business_hours.as_ref());
    add(hours.map_or(0, json).saturating_mul(2));
    for prompt in &bundle.prompts {
        add(size_of::<CompiledPrompt>().saturating_add(prompt.name.len()));
        for binding in &prompt.bindings {
            add(size_of::<CompiledBinding>());
            add(json(&binding.conditions).saturating_mul(2));
            for text in [&binding.account_ref, &binding.event_type] {
                add(text.as_ref().map_or(0, String::len));
            }
        }
    }
    // The stacks come with the calls, and are counted from the start.
    add(layers(&profile.prompts).saturating_mul(STACKS.saturating_add(1)));
    for one in &profile.credentials {
        add(size_of::<OpenedCredential>());
        add(one
            .provider
            .len()
            .saturating_add(one.name.len())
            .saturating_add(one.json.len()));
    }
    for one in &profile.withheld {
        add(size_of::<WithheldCredential>());
        add(one
            .provider
            .len()
            .saturating_add(one.name.len())
            .saturating_add(one.why.len()));
    }
    for fault in &profile.faults {
        add(size_of::<Fault>());
        add(fault.key.len().saturating_add(fault.detail.len()));
    }
    bytes
}
