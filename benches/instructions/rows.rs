//! The number that instructions and allocations are counted with.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use sidetone::admit::{self, AdmissionLimits};
use sidetone::condition::Call;
use sidetone::profile::Profile;
use sidetone::resolve;
use sidetone::seal::Keyring;

/// The called number.
pub(crate) const NUMBER: &str = "+56225550100";
/// As `limits.stack_bytes`.
pub(crate) const STACK_BYTES: usize = 1024 * 1024;

const TENANT: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";
const CREATED: &str = "2025-08-26T12:00:00+00:00";
const LIMITS: AdmissionLimits = AdmissionLimits {
    prompt_bytes: 262_144,
    credential_bytes: 16_384,
    rows_per_tenant: 1000,
};

/// A number of a tenant with so many prompts of two bindings each. Four of five prompts apply to [`call`], in turn by
/// their first binding and by their second.
pub(crate) fn profile(prompts: usize) -> Profile {
    let number = json!({
        "id": "f1a2b3c4-0001-4000-8000-000000000001", "tenant_id": TENANT, "e164": NUMBER, "label": "Reception",
        "default_language": "es-CL", "default_voice": "es-CL-Standard-A", "timezone": "America/Santiago",
        "active": true,
    });
    let open = json!(["09:00-13:00", "14:00-18:00"]);
    let tenant = json!({
        "tenant": {"id": TENANT, "name": "Acme", "slug": "acme", "status": "active"},
        "settings": {
            "model": "gpt-4o-mini", "transcription_provider": "google", "recording_enabled": true,
            "business_hours": {"mon": open, "tue": open, "wed": open, "thu": open, "fri": open, "exceptions": {"12-25": []}},
        },
        "credentials": [],
        "prompts": (0..prompts).map(prompt).collect::<Vec<Value>>(),
    });
    let number = admit::number(NUMBER, &number.to_string(), None);
    let id = TENANT.parse().expect("an id");
    let tenant = admit::tenant(id, &tenant.to_string(), None, &LIMITS);
    assert_eq!((&number.faults[..], &tenant.faults[..]), (&[][..], &[][..]));
    let keyring = Keyring::generate("k1").expect("random bytes");
    let keyring = Keyring::parse(&keyring).expect("a keyring");
    Profile::new(
        Arc::new(resolve::number(&number).expect("a number")),
        Arc::new(resolve::tenant(&tenant, &keyring, None).expect("a tenant")),
    )
}

fn prompt(n: usize) -> Value {
    let (account, event) = match n % 5 {
        0 => ("ACME-000000", "door_open"),
        _ => ("ACME-001234", "alarm"),
    };
    let binding = |which: usize, account: Value, event: Value, conditions: Value| {
        json!({
            "id": format!("00000000-0000-4000-8002-{:012}", 2 * n + which), "created_at": CREATED,
            "account_ref": account, "event_type": event, "phone_number_id": null, "conditions_json": conditions,
        })
    };
    let content = format!("Prompt {n} says \"good morning\".\n").repeat(16);
    json!({
        "id": format!("00000000-0000-4000-8000-{n:012}"), "name": format!("prompt {n}"),
        "scope": if n.is_multiple_of(2) { "account" } else { "global" },
        "active": true, "priority": 1000 - n, "created_at": CREATED,
        "version": {
            "id": format!("00000000-0000-4000-8001-{n:012}"), "version": 3, "bytes": content.len(), "content": content,
        },
        "bindings": [
            binding(0, json!(account), json!(null), json!({
                "zone_in": ["Z1", "Z2"], "vip": n.is_multiple_of(2), "language_override": "en",
            })),
            binding(1, json!(null), json!(event), json!({
                "outside_business_hours": false, "voice_override": format!("voice {n}"),
            })),
        ],
    })
}

/// A call with context.
pub(crate) fn call() -> Call {
    let one = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
    Call {
        account_ref: Some("ACME-001234".to_owned()),
        event_type: Some("ALARM".to_owned()),
        attributes: [
            one("vip", "true"),
            one("zone", "Z2"),
            one("caller", "+56912345678"),
        ]
        .into(),
    }
}

/// Monday at 10:45 in Santiago, when the tenant is open.
pub(crate) fn at() -> Timestamp {
    "2026-11-23T13:45:00Z".parse().expect("an instant")
}
