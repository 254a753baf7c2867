//! The platform's example rows as the documents Postgres would write, for the tests of the pure files.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::admit::{self, AdmissionLimits};
use crate::condition::Call;
use crate::health::Staleness;
use crate::profile::Profile;
use crate::resolve;
use crate::row::{NumberRecord, TenantRecord};
use crate::seal::{Context, Keyring};

pub(crate) const ACME: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";
pub(crate) const ACME_NUMBER: &str = "+14155550100";
pub(crate) const GUARDIANES_NUMBER: &str = "+541150000002";
pub(crate) const SUSPENDED_NUMBER: &str = "+542994000003";
pub(crate) const SECRET: &str = "sk-example";

pub(crate) const LIMITS: AdmissionLimits = AdmissionLimits {
    prompt_bytes: 262_144,
    credential_bytes: 16_384,
    rows_per_tenant: 1000,
};

pub(crate) const STACK_BYTES: usize = 1024 * 1024;

pub(crate) const FRESH: Staleness = Staleness {
    ms: 412,
    stale: false,
    refuse_credentials: false,
};

pub(crate) static KEYRING: LazyLock<Keyring> =
    LazyLock::new(|| Keyring::parse(&Keyring::generate("k1").unwrap()).unwrap());

static ROWS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../examples/platform.json")).unwrap());

fn rows(table: &str, column: &str, is: &Value) -> Vec<Value> {
    let rows = ROWS[table].as_array().unwrap().iter();
    rows.filter(|row| row[column] == *is).cloned().collect()
}

pub(crate) fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// A value sealed for a row of a tenant.
pub(crate) fn sealed(tenant: &str, provider: &str, name: &str, value: &str) -> String {
    KEYRING
        .seal_jwe(
            value,
            &Context {
                tenant: uuid(tenant),
                provider,
                name,
            },
        )
        .unwrap()
}

/// The document of a number of the example.
pub(crate) fn number_document(e164: &str) -> Value {
    rows("tenant_phone_numbers", "e164", &json!(e164)).remove(0)
}

/// The document of a tenant of the example, its credentials sealed anew as [`SECRET`].
pub(crate) fn tenant_document(tenant: &str) -> Value {
    let of_tenant = |table| rows(table, "tenant_id", &json!(tenant));
    let mut credentials = of_tenant("tenant_credentials");
    for row in &mut credentials {
        let text = |column: &str| row[column].as_str().unwrap();
        row["data_ciphertext"] = json!(sealed(tenant, text("provider"), text("name"), SECRET));
    }
    let mut prompts = of_tenant("prompts");
    for prompt in &mut prompts {
        let mut versions = rows("prompt_versions", "prompt_id", &prompt["id"]);
        versions.sort_by_key(|version| version["version"].as_i64());
        prompt["version"] = versions.pop().unwrap_or_default();
        prompt["bindings"] = json!(rows("prompt_bindings", "prompt_id", &prompt["id"]));
    }
    json!({
        "tenant": rows("tenants", "id", &json!(tenant)).remove(0),
        "settings": of_tenant("tenant_settings").pop(),
        "credentials": credentials,
        "prompts": prompts,
    })
}

pub(crate) fn admit_number(document: &Value) -> NumberRecord {
    admit::number(
        document["e164"].as_str().unwrap(),
        &document.to_string(),
        None,
    )
}

pub(crate) fn admit_tenant(document: &Value) -> TenantRecord {
    let id = uuid(document["tenant"]["id"].as_str().unwrap());
    admit::tenant(id, &document.to_string(), None, &LIMITS)
}

/// What these documents make of a number.
pub(crate) fn profile_of(number: &Value, tenant: &Value) -> Profile {
    let tenant = resolve::tenant(&admit_tenant(tenant), &KEYRING, None).unwrap();
    let number = resolve::number(&admit_number(number)).unwrap();
    Profile::new(Arc::new(number), Arc::new(tenant))
}

/// A number of the example.
pub(crate) fn profile(e164: &str) -> Profile {
    let number = number_document(e164);
    let tenant = tenant_document(number["tenant_id"].as_str().unwrap());
    profile_of(&number, &tenant)
}

/// The number +14155550100 with its tenant's document changed.
pub(crate) fn acme(change: impl FnOnce(&mut Value)) -> Profile {
    let mut tenant = tenant_document(ACME);
    change(&mut tenant);
    profile_of(&number_document(ACME_NUMBER), &tenant)
}

/// A prompt for a tenant document; `n` makes its ids.
pub(crate) fn prompt(n: u8, scope: &str, priority: i32, bindings: Value) -> Value {
    json!({
        "id": format!("00000000-0000-4000-8000-0000000000{n:02x}"),
        "name": format!("prompt {n}"), "scope": scope, "active": true, "priority": priority,
        "created_at": "2025-08-26T12:00:00+00:00",
        "version": {"id": format!("00000000-0000-4000-8001-0000000000{n:02x}"), "version": 1,
                    "bytes": 3, "content": format!("p{n}")},
        "bindings": bindings,
    })
}

/// A binding for [`prompt`]: nothing set but what `columns` says.
pub(crate) fn binding(n: u8, columns: Value) -> Value {
    let mut binding = json!({
        "id": format!("00000000-0000-4000-8002-0000000000{n:02x}"),
        "account_ref": null, "event_type": null, "phone_number_id": null, "conditions_json": {},
        "created_at": "2025-08-26T12:00:00+00:00",
    });
    for (column, value) in columns.as_object().unwrap() {
        binding[column] = value.clone();
    }
    binding
}

/// A call from `name=value` pairs as a query would carry them.
pub(crate) fn call(said: &[(&str, &str)]) -> Call {
    let mut call = Call::default();
    for (name, value) in said {
        let value = (*value).to_owned();
        match *name {
            "account_ref" => call.account_ref = Some(value),
            "event_type" => call.event_type = Some(value),
            name => call
                .attributes
                .entry(name.to_owned())
                .or_default()
                .push(value),
        }
    }
    call
}

/// Sunday at 10:45 in Buenos Aires, when the example's tenant is closed.
pub(crate) fn closed() -> Timestamp {
    "2026-11-22T13:45:00Z".parse().unwrap()
}

/// Monday at 10:45 in Buenos Aires, when it is open.
pub(crate) fn open() -> Timestamp {
    "2026-11-23T13:45:00Z".parse().unwrap()
}
