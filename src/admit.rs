//! What Postgres says → the rows in force: every check that a row must pass, and what becomes of one that does not.
//!
//! A document is text from outside. Nothing in it can make this panic, and nothing in it costs more than its own row:
//! each row is cut out of the document before it is read, so that a number no machine can hold or a value nested
//! beyond reading is the fault of the row it stands in alone.
//!
//! A bad prompt, version, binding or credential is left out; a bad number, settings or tenant row keeps the last good
//! one of the same key in force. Each is named by a [`Fault`], whose text names the column and what is wrong with it,
//! and never holds a secret, prompt content or a long piece of what was read.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use oxilangtag::LanguageTag;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::condition;
use crate::hours::BusinessHours;
use crate::number::E164;
use crate::row::{
    Binding, Bundle, Credential, DocHash, Fault, Number, NumberRecord, Prompt, Reason, Scope,
    Settings, Table, Tenant, TenantRecord, Version, Withheld,
};

/// Most faults one document keeps; the rest is counted in one more.
pub const MAX_FAULTS: usize = 1000;

/// Most bytes of `conditions_json` and of `business_hours`, as Postgres writes them.
pub const MAX_JSON_BYTES: usize = 64 * 1024;

/// Most characters of a text from outside that a fault repeats.
const SHOWN_CHARS: usize = 32;

/// Files of the system's zone database that stand for something other than a place.
const NO_ZONES: [&str; 4] = ["localtime", "posixrules", "Factory", "Etc/Unknown"];

/// What is wrong with a zone that a binding names.
pub(crate) const UNKNOWN_OVERRIDE_ZONE: &str =
    "conditions_json.timezone_override: must be an IANA timezone such as America/Santiago";

/// Limits on rows, from the settings; a row over its limit is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Most bytes of a prompt version's content.
    pub prompt_bytes: usize,
    /// Most bytes of a sealed credential.
    pub credential_bytes: usize,
    /// Most prompts of a tenant, credentials of a tenant and bindings of a prompt, each.
    pub rows_per_tenant: usize,
}

/// A zone of the IANA database by its name, in any case; nothing else is a zone here, POSIX rules included.
///
/// The system's database comes first, the one in the binary where the system's lacks the zone.
#[must_use]
pub fn zone(name: &str) -> Option<TimeZone> {
    if NO_ZONES.iter().any(|no| no.eq_ignore_ascii_case(name)) {
        return None;
    }
    let known = |database: &TimeZoneDatabase| {
        let zone = database.get(name).ok()?;
        zone.iana_name()?;
        Some(zone)
    };
    known(jiff::tz::db()).or_else(|| known(&TimeZoneDatabase::bundled()))
}

/// The number's row in force after `document` was read; `previous` is what was in force before.
///
/// The last good row stays only with the tenant it names: a number that moved to another tenant and is bad there
/// has no last good row, for the old one would answer with the old tenant's prompts and credentials.
#[must_use]
pub fn number(e164: &str, document: &str, previous: Option<&NumberRecord>) -> NumberRecord {
    let hash = DocHash::of(document);
    let usual = &mut Usual::default();
    number_of_hash(
        e164,
        hash,
        None,
        || Cow::Borrowed(document),
        previous,
        usual,
    )
}

/// As [`number`], for who has the document's hash already, and perhaps what stands in it.
#[must_use]
pub(crate) fn number_of_hash<'d>(
    e164: &str,
    hash: DocHash,
    read: Option<Plain<'_>>,
    document: impl FnOnce() -> Cow<'d, str>,
    previous: Option<&NumberRecord>,
    usual: &mut Usual,
) -> NumberRecord {
    let good = |number: Number| {
        let before =
            previous.and_then(|last| predecessor(last.row.as_ref(), &number, &last.before));
        NumberRecord {
            hash,
            row: Some(number),
            faults: Vec::new(),
            before,
        }
    };
    if let Some(number) = read.and_then(|row| plain_number(e164, &row, usual)) {
        return good(number);
    }
    let document = document();
    let plain = serde_json::from_str(&document).ok();
    if let Some(number) = plain.and_then(|row| plain_number(e164, &row, usual)) {
        return good(number);
    }
    let row = Row::read(&document);
    let bad = match row
        .as_ref()
        .map_err(Bad::clone)
        .and_then(|row| read_number(e164, row))
    {
        Ok(number) => return good(number),
        Err(bad) => bad,
    };
    let owner = row.ok().and_then(|row| row.uuid("tenant_id").ok());
    let last_good = previous
        .and_then(|record| record.row.as_ref())
        .filter(|last| last.e164.as_str() == e164)
        .filter(|last| owner.is_none_or(|owner| owner == last.tenant_id))
        .cloned();
    let fault = bad.into_fault(Table::TenantPhoneNumbers, shown(e164), last_good.is_some());
    NumberRecord {
        hash,
        before: previous
            .filter(|_| last_good.is_some())
            .and_then(|last| last.before.clone()),
        row: last_good,
        faults: vec![fault],
    }
}

/// The good one before `new`: the one in force until now, or where that is the same, the one before it.
fn predecessor<T: Clone + PartialEq>(
    last: Option<&T>,
    new: &T,
    before: &Option<Box<T>>,
) -> Option<Box<T>> {
    match last {
        Some(last) if last != new => Some(Box::new(last.clone())),
        _ => before.clone(),
    }
}

/// Whether the newest document is set aside, for the process died on it.
#[must_use]
pub fn is_set_aside(faults: &[Fault]) -> bool {
    faults.iter().any(|fault| fault.reason == Reason::Deadly)
}

/// What is in force while the newest document is set aside, and the good one before that: all as it is, or where the
/// newest is in force already, the one before it.
fn standing_in<T: Clone>(
    newest: bool,
    last: Option<&T>,
    before: &Option<Box<T>>,
) -> (Option<T>, Option<Box<T>>) {
    if newest {
        (before.as_deref().cloned(), None)
    } else {
        (last.cloned(), before.clone())
    }
}

/// The number's record while the newest document is set aside, for the process died on it.
/// Where that document is in force already, the good row before it is put in force.
#[must_use]
pub fn number_set_aside(
    e164: &str,
    hash: DocHash,
    previous: Option<&NumberRecord>,
) -> NumberRecord {
    let (row, before) = previous.map_or((None, None), |last| {
        let newest = last.hash == hash && last.faults.is_empty();
        standing_in(newest, last.row.as_ref(), &last.before)
    });
    NumberRecord {
        hash,
        faults: vec![deadly(
            Table::TenantPhoneNumbers,
            e164.to_owned(),
            row.is_some(),
        )],
        row,
        before,
    }
}

/// The same of a tenant.
#[must_use]
pub fn tenant_set_aside(id: Uuid, hash: DocHash, previous: Option<&TenantRecord>) -> TenantRecord {
    let (bundle, before) = previous.map_or((None, None), |last| {
        let newest = last.hash == hash && !is_set_aside(&last.faults);
        standing_in(newest, Some(&last.bundle), &last.before)
    });
    TenantRecord {
        hash,
        faults: vec![deadly(Table::Tenants, id.to_string(), bundle.is_some())],
        bundle: bundle.unwrap_or_default(),
        before,
    }
}

fn deadly(table: Table, key: String, last_good: bool) -> Fault {
    Bad::new(
        Reason::Deadly,
        "the process ended while this row was in hand; it is tried once more by itself, and set aside until it changes if the process ends again: then please report it",
    )
    .into_fault(table, key, last_good)
}

/// A number's document with nothing unusual in it.
#[allow(missing_docs, reason = "the columns of the platform")]
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Plain<'a> {
    pub id: Uuid,
    pub tenant_id: Uuid,
    #[serde(borrow)]
    pub e164: &'a str,
    #[serde(borrow)]
    pub label: Option<&'a str>,
    #[serde(borrow)]
    pub default_language: &'a str,
    #[serde(borrow)]
    pub default_voice: Option<&'a str>,
    #[serde(borrow)]
    pub timezone: &'a str,
    pub active: Option<bool>,
}

/// What [`read_number`] says of a good document, in one pass: a copy of everything reads millions. `None` where that may
/// see more in it, or say what is wrong.
fn plain_number(key: &str, row: &Plain<'_>, usual: &mut Usual) -> Option<Number> {
    let good = row.e164 == key
        && fits(row.e164, 20)
        && row.label.is_none_or(|label| fits(label, 100))
        && fits(row.default_language, 10)
        && row.default_voice.is_none_or(|voice| fits(voice, 50))
        && fits(row.timezone, 50)
        && usual.is_language(row.default_language);
    if !good {
        return None;
    }
    Some(Number {
        id: row.id,
        tenant_id: row.tenant_id,
        e164: row.e164.parse().ok()?,
        label: row.label.map(str::to_owned),
        default_language: row.default_language.to_owned(),
        default_voice: row.default_voice.map(str::to_owned),
        timezone: usual.zone(row.timezone)?.to_owned(),
        active: row.active.unwrap_or(true),
    })
}

/// Whether a text has at most so many characters and none that controls.
fn fits(text: &str, most: usize) -> bool {
    // No byte of a control character but of U+0080 to U+009F, which begin with 0xc2.
    let seen = text.len() <= most
        && text
            .bytes()
            .all(|byte| byte >= b' ' && byte != 0x7f && byte != 0xc2);
    seen || (!text.chars().any(char::is_control) && text.chars().nth(most).is_none())
}

/// What the last good number had. Most have the same, and it takes longer to check than to compare.
#[derive(Debug, Default)]
pub(crate) struct Usual {
    language: String,
    timezone: String,
    zone: String,
}

impl Usual {
    fn is_language(&mut self, tag: &str) -> bool {
        if tag.is_empty() || self.language != tag {
            if LanguageTag::parse(tag).is_err() {
                return false;
            }
            tag.clone_into(&mut self.language);
        }
        true
    }

    /// The name of a zone as the database has it.
    fn zone(&mut self, name: &str) -> Option<&str> {
        if name.is_empty() || self.timezone != name {
            let zone = zone(name)?;
            zone.iana_name().unwrap_or(name).clone_into(&mut self.zone);
            name.clone_into(&mut self.timezone);
        }
        Some(&self.zone)
    }
}

fn read_number(key: &str, row: &Row<'_>) -> Checked<Number> {
    let e164 = row.text("e164", 20)?;
    if e164 != key {
        return Err(Bad::new(
            Reason::Number,
            "e164: is not the number this row was asked for",
        ));
    }
    let e164: E164 = e164.parse().map_err(|_| {
        Bad::new(
            Reason::Number,
            "e164: must be + and 7 to 15 digits, the first of them 1 to 9",
        )
    })?;
    let default_language = row.text("default_language", 10)?;
    if LanguageTag::parse(default_language.as_str()).is_err() {
        let what = format!(
            "default_language: {} is no BCP 47 tag",
            shown(&default_language)
        );
        return Err(Bad::new(Reason::Language, what));
    }
    let timezone = row.text("timezone", 50)?;
    let Some(zone) = zone(&timezone) else {
        let what = format!("timezone: {} is not in the IANA database", shown(&timezone));
        return Err(Bad::new(Reason::Timezone, what));
    };
    Ok(Number {
        id: row.uuid("id")?,
        tenant_id: row.uuid("tenant_id")?,
        e164,
        label: row.text_or_null("label", 100)?,
        default_language,
        default_voice: row.text_or_null("default_voice", 50)?,
        timezone: zone.iana_name().map_or(timezone, str::to_owned),
        active: row.flag("active", true)?,
    })
}

/// The tenant's rows in force after `document` was read; `previous` is what was in force before.
#[must_use]
pub fn tenant(
    id: Uuid,
    document: &str,
    previous: Option<&TenantRecord>,
    limits: &AdmissionLimits,
) -> TenantRecord {
    let last = previous
        .map(|record| &record.bundle)
        .filter(|bundle| bundle.tenant.as_ref().is_none_or(|tenant| tenant.id == id));
    let mut admission = Admission {
        id,
        limits,
        last,
        faults: Faults::default(),
    };
    let bundle = match Row::read(document) {
        Ok(row) => admission.bundle(&row),
        Err(bad) => {
            // No row can be told from another: all stay as they were.
            let fault = bad.into_fault(Table::Tenants, id.to_string(), last.is_some());
            admission.faults.push(fault);
            last.cloned().unwrap_or_default()
        }
    };
    let before = previous.and_then(|record| predecessor(last, &bundle, &record.before));
    TenantRecord {
        hash: DocHash::of(document),
        bundle,
        faults: admission.faults.finish(id),
        before,
    }
}

/// One tenant document on its way in.
struct Admission<'a> {
    id: Uuid,
    limits: &'a AdmissionLimits,
    /// What was in force before.
    last: Option<&'a Bundle>,
    faults: Faults,
}

impl Admission<'_> {
    fn bundle(&mut self, row: &Row<'_>) -> Bundle {
        let (credentials, withheld) = self.credentials(row);
        Bundle {
            tenant: self.tenant(row),
            settings: self.settings(row),
            credentials,
            prompts: self.prompts(row),
            withheld,
        }
    }

    fn tenant(&mut self, row: &Row<'_>) -> Option<Tenant> {
        let read = row
            .raw("tenant")
            .and_then(Row::read)
            .and_then(|row| self.read_tenant(&row));
        let last = self.last.and_then(|last| last.tenant.clone());
        self.or_last(Table::Tenants, read, last)
    }

    fn read_tenant(&self, row: &Row<'_>) -> Checked<Tenant> {
        let id = row.uuid("id")?;
        if id != self.id {
            return Err(Bad::new(
                Reason::Malformed,
                "id: is not the tenant this row was asked for",
            ));
        }
        Ok(Tenant {
            id,
            name: row.text("name", 255)?,
            slug: row.text("slug", 255)?,
            status: row.text("status", 20)?,
        })
    }

    fn settings(&mut self, row: &Row<'_>) -> Option<Settings> {
        let raw = row.raw_or_null("settings")?;
        let read = Row::read(raw).and_then(|row| read_settings(&row));
        let last = self.last.and_then(|last| last.settings.clone());
        self.or_last(Table::TenantSettings, read, last)
    }

    /// The row just read, or the last good one and a fault.
    fn or_last<T>(&mut self, table: Table, read: Checked<T>, last: Option<T>) -> Option<T> {
        match read {
            Ok(row) => Some(row),
            Err(bad) => {
                self.faults
                    .push(bad.into_fault(table, self.id.to_string(), last.is_some()));
                last
            }
        }
    }

    /// Credentials in force, and those that are only named.
    fn credentials(&mut self, row: &Row<'_>) -> (Vec<Credential>, Vec<Withheld>) {
        let rows = match row.list("credentials") {
            Ok(rows) => rows,
            Err(bad) => {
                let last = self.last;
                let fault = bad.into_fault(
                    Table::TenantCredentials,
                    self.id.to_string(),
                    last.is_some(),
                );
                self.faults.push(fault);
                return last
                    .map(|last| (last.credentials.clone(), last.withheld.clone()))
                    .unwrap_or_default();
            }
        };
        let owner = self.id.to_string();
        let rows = self
            .ordered(rows, Table::TenantCredentials, &owner, "")
            .rows;
        let mut good: BTreeMap<(String, String), Credential> = BTreeMap::new();
        let mut withheld = BTreeMap::new();
        for (id, row) in rows {
            let names = row
                .text("provider", 50)
                .and_then(|p| Ok((p, row.text("name", 100)?)));
            let (provider, name) = match names {
                Ok(names) => names,
                Err(bad) => {
                    self.left_out(bad, Table::TenantCredentials, id);
                    continue;
                }
            };
            let key = (provider.clone(), name.clone());
            match self.read_ciphertext(&row) {
                Ok(data_ciphertext) => {
                    let row = Credential {
                        id,
                        provider,
                        name,
                        data_ciphertext,
                    };
                    if let Some(other) = good.insert(key, row) {
                        let what = format!("provider, name: row {id} has the same and is in force");
                        let bad = Bad::new(Reason::Malformed, what);
                        self.left_out(bad, Table::TenantCredentials, other.id);
                    }
                }
                Err(bad) => {
                    withheld.insert(
                        key,
                        Withheld {
                            id,
                            provider,
                            name,
                            reason: bad.reason,
                        },
                    );
                    self.left_out(bad, Table::TenantCredentials, id);
                }
            }
        }
        withheld.retain(|key, _| !good.contains_key(key));
        (
            good.into_values().collect(),
            withheld.into_values().collect(),
        )
    }

    fn read_ciphertext(&self, row: &Row<'_>) -> Checked<String> {
        let text = row.sized("data_ciphertext")?;
        row.within(
            "data_ciphertext",
            &text,
            "limits.credential_bytes",
            self.limits.credential_bytes,
        )
        .map(|()| text)
    }

    fn prompts(&mut self, row: &Row<'_>) -> Vec<Prompt> {
        let rows = match row.list("prompts") {
            Ok(rows) => rows,
            Err(bad) => {
                let last = self.last;
                let fault = bad.into_fault(Table::Prompts, self.id.to_string(), last.is_some());
                self.faults.push(fault);
                return last.map(|last| last.prompts.clone()).unwrap_or_default();
            }
        };
        let owner = self.id.to_string();
        let rows = self.ordered(rows, Table::Prompts, &owner, "").rows;
        let mut prompts = Vec::with_capacity(rows.len());
        for (id, row) in rows {
            match self.read_prompt(id, &row) {
                Ok(prompt) => prompts.push(prompt),
                Err((table, key, bad)) => {
                    self.faults.push(bad.into_fault(table, key, false));
                }
            }
        }
        prompts
    }

    fn read_prompt(&mut self, id: Uuid, row: &Row<'_>) -> Result<Prompt, (Table, String, Bad)> {
        let of_prompt = |bad| (Table::Prompts, id.to_string(), bad);
        let version = match row.raw_or_null("version") {
            None => None,
            Some(raw) => Some(self.read_version(id, raw)?),
        };
        let scope = row.text("scope", 50).map_err(of_prompt)?;
        let scope = [
            Scope::Global,
            Scope::EventType,
            Scope::Account,
            Scope::PhoneNumber,
        ]
        .into_iter()
        .find(|known| known.as_str() == scope)
        .ok_or_else(|| {
            let what = format!(
                "scope: {} is none of global, event_type, account, phone-number",
                shown(&scope)
            );
            of_prompt(Bad::new(Reason::Malformed, what))
        })?;
        let mut prompt = Prompt {
            id,
            name: row.text("name", 255).map_err(of_prompt)?,
            scope,
            active: row.flag("active", true).map_err(of_prompt)?,
            priority: row.integer("priority", Some(0)).map_err(of_prompt)?,
            created_at: row.instant("created_at").map_err(of_prompt)?,
            version,
            bindings: Vec::new(),
            bindings_left_out: 0,
        };
        let bindings = row.list("bindings").map_err(of_prompt)?;
        let there = bindings.len();
        let of = format!("of prompt {id}");
        let rows = self
            .ordered(bindings, Table::PromptBindings, &id.to_string(), &of)
            .rows;
        for (binding, row) in rows {
            match read_binding(binding, &row) {
                Ok(binding) => prompt.bindings.push(binding),
                Err(bad) => self.left_out(bad.and(&of), Table::PromptBindings, binding),
            }
        }
        let left_out = there.saturating_sub(prompt.bindings.len());
        prompt.bindings_left_out = u32::try_from(left_out).unwrap_or(u32::MAX);
        Ok(prompt)
    }

    /// A prompt whose highest version is bad is left out: an older version is not what the platform says.
    fn read_version(&self, prompt: Uuid, raw: &str) -> Result<Version, (Table, String, Bad)> {
        let malformed = |bad: Bad| {
            (
                Table::Prompts,
                prompt.to_string(),
                bad.and("in the highest version"),
            )
        };
        let row = Row::read(raw).map_err(malformed)?;
        let id = row.uuid("id").map_err(malformed)?;
        let read = || {
            let content = row.sized("content")?;
            row.within(
                "content",
                &content,
                "limits.prompt_bytes",
                self.limits.prompt_bytes,
            )?;
            Ok(Version {
                id,
                version: row.integer("version", None)?,
                content,
            })
        };
        read().map_err(|bad: Bad| {
            let bad = bad.and(&format!("so prompt {prompt} is left out"));
            (Table::PromptVersions, id.to_string(), bad)
        })
    }

    /// The rows of a list by id, as many as a tenant may have. What is over, or has no id, is a fault.
    fn ordered<'r>(
        &mut self,
        list: Vec<&'r RawValue>,
        table: Table,
        owner: &str,
        of: &str,
    ) -> Ordered<'r> {
        let mut rows = Vec::with_capacity(list.len());
        for raw in list {
            match Row::read(raw.get()).and_then(|row| Ok((row.uuid("id")?, row))) {
                Ok(row) => rows.push(row),
                Err(bad) => {
                    let bad = bad.and("in a row whose key cannot be told");
                    self.faults
                        .push(bad.and(of).into_fault(table, owner.to_owned(), false));
                }
            }
        }
        rows.sort_by_key(|(id, _)| *id);
        let most = self.limits.rows_per_tenant;
        if rows.len() > most {
            rows.truncate(most);
            let what = format!(
                "more than limits.rows_per_tenant = {most} rows; the first {most} by id are in force"
            );
            let bad = Bad::new(Reason::TooMany, what).and(of);
            self.faults
                .push(bad.into_fault(table, owner.to_owned(), false));
        }
        Ordered { rows }
    }

    fn left_out(&mut self, bad: Bad, table: Table, id: Uuid) {
        self.faults
            .push(bad.into_fault(table, id.to_string(), false));
    }
}

/// Rows of one list, by id.
struct Ordered<'a> {
    rows: Vec<(Uuid, Row<'a>)>,
}

fn read_settings(row: &Row<'_>) -> Checked<Settings> {
    let business_hours = row.json("business_hours", Reason::BusinessHours)?;
    if let Some(hours) = &business_hours {
        BusinessHours::parse(hours)
            .map_err(|err| Bad::new(Reason::BusinessHours, err.to_string()))?;
    }
    Ok(Settings {
        model: row.text("model", 100)?,
        transcription_provider: row.text_or_null("transcription_provider", 50)?,
        recording_enabled: row.flag("recording_enabled", false)?,
        business_hours,
    })
}

fn read_binding(id: Uuid, row: &Row<'_>) -> Checked<Binding> {
    let conditions = row
        .json("conditions_json", Reason::Conditions)?
        .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    check_rules(&conditions)?;
    Ok(Binding {
        id,
        account_ref: row.text_or_null("account_ref", 100)?,
        event_type: row.text_or_null("event_type", 50)?,
        phone_number_id: row.uuid_or_null("phone_number_id")?,
        conditions,
        created_at: row.instant("created_at")?,
    })
}

fn check_rules(conditions: &Value) -> Checked<()> {
    let rules = condition::compile(conditions)
        .map_err(|err| Bad::new(Reason::Conditions, err.to_string()))?;
    match rules.effects.timezone {
        Some(name) if zone(&name).is_none() => {
            Err(Bad::new(Reason::Conditions, UNKNOWN_OVERRIDE_ZONE))
        }
        _ => Ok(()),
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bad {
    reason: Reason,
    what: String,
}

type Checked<T> = Result<T, Bad>;

impl Bad {
    fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self {
            reason,
            what: what.into(),
        }
    }

    /// The same with one more thing to know.
    fn and(mut self, more: &str) -> Self {
        if !more.is_empty() {
            self.what.push_str(", ");
            self.what.push_str(more);
        }
        self
    }

    fn into_fault(self, table: Table, key: String, last_good: bool) -> Fault {
        Fault {
            table,
            key,
            reason: self.reason,
            detail: self.what,
            last_good,
        }
    }
}

/// The faults of one document, at most [`MAX_FAULTS`] and one that counts the rest.
#[derive(Debug, Default)]
struct Faults {
    listed: Vec<Fault>,
    more: usize,
}

impl Faults {
    fn push(&mut self, fault: Fault) {
        if self.listed.len() < MAX_FAULTS {
            self.listed.push(fault);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn finish(mut self, tenant: Uuid) -> Vec<Fault> {
        if self.more > 0 {
            let what = format!("{} more bad rows are not listed", self.more);
            let bad = Bad::new(Reason::TooMany, what);
            self.listed
                .push(bad.into_fault(Table::Tenants, tenant.to_string(), false));
        }
        self.listed
    }
}

/// A text from outside as a fault may show it: short and printable.
fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// One row: its columns, each still unread.
#[derive(Debug, Clone)]
struct Row<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Row<'a> {
    fn read(raw: &'a str) -> Checked<Self> {
        serde_json::from_str(raw).map(Self).map_err(|_| {
            Bad::new(
                Reason::Malformed,
                "the row cannot be read: it is no JSON object",
            )
        })
    }

    /// The text of a column's value; `None` where it is null or missing.
    fn raw_or_null(&self, column: &str) -> Option<&'a str> {
        self.0
            .get(column)
            .map(|raw| raw.get())
            .filter(|raw| *raw != "null")
    }

    fn raw(&self, column: &str) -> Checked<&'a str> {
        self.raw_or_null(column)
            .map_or_else(|| self.missing(column), Ok)
    }

    /// The column as this type.
    fn read_as<T: Deserialize<'a>>(
        &self,
        column: &str,
        wants: impl fmt::Display,
    ) -> Checked<Option<T>> {
        let Some(raw) = self.raw_or_null(column) else {
            return Ok(None);
        };
        serde_json::from_str(raw)
            .map(Some)
            .map_err(|_| Bad::new(Reason::Malformed, format!("{column}: is not {wants}")))
    }

    fn uuid_or_null(&self, column: &str) -> Checked<Option<Uuid>> {
        self.read_as(column, "a UUID")
    }

    fn uuid(&self, column: &str) -> Checked<Uuid> {
        self.uuid_or_null(column)?
            .map_or_else(|| self.missing(column), Ok)
    }

    fn flag(&self, column: &str, default: bool) -> Checked<bool> {
        Ok(self.read_as(column, "a boolean")?.unwrap_or(default))
    }

    fn integer(&self, column: &str, default: Option<i32>) -> Checked<i32> {
        self.read_as(column, "a 32-bit integer")?
            .or(default)
            .map_or_else(|| self.missing(column), Ok)
    }

    fn instant(&self, column: &str) -> Checked<Timestamp> {
        let wants = "an instant of the years to 9999";
        let text: String = self
            .read_as(column, wants)?
            .map_or_else(|| self.missing(column), Ok)?;
        // An adopted table may have a column without a timezone: then it is UTC.
        let utc = |local: DateTime| TimeZone::UTC.to_timestamp(local).ok();
        text.parse::<Timestamp>()
            .ok()
            .or_else(|| text.parse::<DateTime>().ok().and_then(utc))
            .ok_or_else(|| Bad::new(Reason::Malformed, format!("{column}: is not {wants}")))
    }

    /// A text of at most this many characters, none of them a control character.
    fn text_or_null(&self, column: &str, most: usize) -> Checked<Option<String>> {
        let text: Option<String> = self.read_as(column, "text")?;
        if let Some(text) = &text {
            if text.chars().any(char::is_control) {
                let what = format!("{column}: holds a control character");
                return Err(Bad::new(Reason::ControlCharacter, what));
            }
            if text.chars().nth(most).is_some() {
                let what = format!("{column}: has more than {most} characters");
                return Err(Bad::new(Reason::TooLong, what));
            }
        }
        Ok(text)
    }

    fn text(&self, column: &str, most: usize) -> Checked<String> {
        self.text_or_null(column, most)?
            .map_or_else(|| self.missing(column), Ok)
    }

    /// A text that Postgres was told not to send when it is very long: then only `bytes` says that there is one.
    fn sized(&self, column: &str) -> Checked<String> {
        if let Some(text) = self.read_as(column, "text")? {
            return Ok(text);
        }
        match self.read_as::<u64>("bytes", "a number of bytes")? {
            Some(bytes) if bytes > 0 => Err(Bad::new(
                Reason::TooLong,
                format!("{column}: {bytes} bytes are more than are ever read"),
            )),
            _ => self.missing(column),
        }
    }

    fn within(&self, column: &str, text: &str, setting: &str, most: usize) -> Checked<()> {
        if text.len() <= most {
            return Ok(());
        }
        let what = format!("{column}: {} bytes, {setting} allows {most}", text.len());
        Err(Bad::new(Reason::TooLong, what))
    }

    /// A JSON column.
    fn json(&self, column: &str, reason: Reason) -> Checked<Option<Value>> {
        let Some(raw) = self.raw_or_null(column) else {
            return Ok(None);
        };
        if raw.len() > MAX_JSON_BYTES {
            let what = format!(
                "{column}: {} bytes, {MAX_JSON_BYTES} are allowed",
                raw.len()
            );
            return Err(Bad::new(Reason::TooLong, what));
        }
        let value = serde_json::from_str(raw).map_err(|_| {
            let what =
                format!("{column}: holds a number too large or is nested too deep to be read");
            Bad::new(reason, what)
        })?;
        if holds_control(&value) {
            let what = format!("{column}: holds a control character");
            return Err(Bad::new(Reason::ControlCharacter, what));
        }
        Ok(Some(value))
    }

    /// A list of rows; each is cut out and not yet read.
    fn list(&self, column: &str) -> Checked<Vec<&'a RawValue>> {
        self.read_as(column, "a list")?
            .map_or_else(|| self.missing(column), Ok)
    }

    fn missing<T>(&self, column: &str) -> Checked<T> {
        Err(Bad::new(
            Reason::Malformed,
            format!("{column}: is null or missing"),
        ))
    }
}

/// Whether a text in the value, a key included, holds a control character. Values nest at most as deep as the
/// parser goes.
fn holds_control(value: &Value) -> bool {
    let in_text = |text: &str| text.chars().any(char::is_control);
    match value {
        Value::String(text) => in_text(text),
        Value::Array(items) => items.iter().any(holds_control),
        Value::Object(members) => members
            .iter()
            .any(|(key, value)| in_text(key) || holds_control(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
