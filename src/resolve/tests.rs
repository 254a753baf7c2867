#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use serde_json::{Value, json};

use super::*;
use crate::sample::{
    ACME, ACME_NUMBER, KEYRING, SECRET, acme, admit_number, admit_tenant, binding, number_document,
    profile, prompt, sealed, tenant_document,
};

/// The example's tenant with its document changed.
fn tenant_with(change: impl FnOnce(&mut Value)) -> TenantProfile {
    let mut document = tenant_document(ACME);
    change(&mut document);
    tenant(&admit_tenant(&document), &KEYRING, None).unwrap()
}

fn credential(n: u8, provider: &str, name: &str, text: &str) -> Value {
    json!({"id": format!("00000000-0000-4000-8003-0000000000{n:02x}"), "provider": provider, "name": name,
           "bytes": text.len(), "data_ciphertext": text})
}

#[test]
fn prompts_stand_by_priority_then_scope_then_age_then_id() {
    let mut older = prompt(1, "global", 5, json!([]));
    older["created_at"] = json!("2020-01-01T00:00:00Z");
    let tenant = tenant_with(|document| {
        document["prompts"] = json!([
            prompt(9, "global", -1, json!([])),
            prompt(8, "phone-number", 5, json!([])),
            prompt(7, "account", 5, json!([])),
            prompt(6, "event_type", 5, json!([])),
            prompt(5, "global", 5, json!([])),
            prompt(4, "global", 5, json!([])),
            older,
            prompt(2, "phone-number", 6, json!([])),
        ]);
    });
    let names: Vec<_> = tenant
        .prompts
        .iter()
        .map(|prompt| prompt.name.as_str())
        .collect();
    let expected = [2, 1, 4, 5, 6, 7, 8, 9].map(|n| format!("prompt {n}"));
    assert_eq!(names, expected);
}

#[test]
fn bindings_stand_by_columns_set_then_newest_then_lowest_id() {
    let newer = "2026-01-01T00:00:00Z";
    let tenant = tenant_with(|document| {
        document["prompts"] = json!([prompt(
            1,
            "global",
            0,
            json!([
                binding(6, json!({})),
                binding(5, json!({"account_ref": "a"})),
                binding(4, json!({"account_ref": "a"})),
                binding(3, json!({"event_type": "e", "created_at": newer})),
                binding(2, json!({"account_ref": "a", "event_type": "e"})),
                binding(1, json!({"created_at": newer})),
            ])
        )]);
    });
    let ids: Vec<_> = tenant.prompts[0]
        .bindings
        .iter()
        .map(|binding| binding.id.as_bytes()[15])
        .collect();
    assert_eq!(ids, [2, 3, 4, 5, 1, 6]);
}

#[test]
fn a_credential_that_does_not_open_is_withheld_and_named() {
    let moved = sealed(ACME, "openai", "other", SECRET);
    let tenant = tenant_with(|document| {
        document["credentials"] = json!([
            credential(1, "openai", "b", &moved),
            credential(2, "openai", "a", &sealed(ACME, "openai", "a", SECRET)),
            credential(
                3,
                "azure",
                "z",
                "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHyg="
            ),
            credential(4, "deepgram", "big", &"x".repeat(20_000)),
        ]);
    });
    let named = |provider: &str, name: &str| format!("{provider}/{name}");
    let opened: Vec<_> = tenant
        .credentials
        .iter()
        .map(|one| named(&one.provider, &one.name))
        .collect();
    assert_eq!(opened, ["openai/a"]);
    assert_eq!(tenant.credentials[0].json.expose(), format!("\"{SECRET}\""));
    let withheld: Vec<_> = tenant
        .withheld
        .iter()
        .map(|one| named(&one.provider, &one.name))
        .collect();
    assert_eq!(withheld, ["azure/z", "deepgram/big", "openai/b"]);
    let reasons: Vec<_> = tenant.faults.iter().map(|fault| fault.reason).collect();
    assert_eq!(
        reasons,
        [Reason::TooLong, Reason::Ciphertext, Reason::Ciphertext]
    );
    assert!(
        tenant
            .faults
            .iter()
            .all(|fault| !fault.detail.contains(&moved))
    );
}

#[test]
fn a_raw_credential_opens_only_with_a_key_named_for_it() {
    let record = admit_tenant(&{
        let mut document = tenant_document(ACME);
        document["credentials"] = json!([credential(
            1,
            "p",
            "n",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHyg="
        )]);
        document
    });
    let why = |raw| {
        tenant(&record, &KEYRING, raw).unwrap().withheld[0]
            .why
            .clone()
    };
    assert!(why(None).contains("not enabled"));
    assert!(!why(Some("k1")).contains("not enabled"));
}

#[test]
fn a_tenant_without_settings_has_empty_ones() {
    let tenant = tenant_with(|document| document["settings"] = json!(null));
    assert_eq!(
        (
            tenant.model.as_str(),
            tenant.transcription_provider.as_str()
        ),
        ("", "")
    );
    assert!(
        !tenant.recording_enabled && tenant.hours.is_none() && tenant.settings_revision.is_none()
    );
}

#[test]
fn a_tenant_or_number_that_was_never_good_makes_no_profile() {
    let mut document = tenant_document(ACME);
    document["tenant"]["name"] = json!("\u{1}");
    assert_eq!(
        tenant(&admit_tenant(&document), &KEYRING, None).err(),
        Some(Refusal::NoGoodRow)
    );
    let mut document = number_document(ACME_NUMBER);
    document["timezone"] = json!("");
    assert_eq!(
        number(&admit_number(&document)).err(),
        Some(Refusal::NoGoodRow)
    );
}

#[test]
fn what_an_older_version_admitted_and_this_one_does_not_understand_costs_only_itself() {
    let mut record = admit_tenant(&tenant_document(ACME));
    record.bundle.prompts[1].bindings[0].conditions = json!({"zone": []});
    record.bundle.settings.as_mut().unwrap().business_hours = json!("always").into();
    let tenant = tenant(&record, &KEYRING, None).unwrap();
    assert!(tenant.hours.is_none());
    let prompt = tenant
        .prompts
        .iter()
        .find(|prompt| prompt.scope == crate::row::Scope::EventType);
    let prompt = prompt.unwrap();
    assert_eq!((prompt.bindings.len(), prompt.bindings_left_out), (1, 1));
    let reasons: Vec<_> = tenant.faults.iter().map(|fault| fault.reason).collect();
    assert_eq!(reasons, [Reason::BusinessHours, Reason::Conditions]);
}

#[test]
fn equal_rows_have_one_revision_and_any_other_row_another() {
    let document = tenant_document(ACME);
    let revision = |tenant: &Value, number: &Value| {
        crate::sample::profile_of(number, tenant)
            .revision()
            .to_string()
    };
    let number = number_document(ACME_NUMBER);
    let base = revision(&document, &number);
    assert_eq!(base, revision(&document.clone(), &number.clone()));
    assert_eq!(base.len(), 16);
    for (place, value) in [
        ("/tenant/slug", json!("other")),
        ("/settings/model", json!("other")),
        ("/settings/business_hours", json!(null)),
        ("/credentials/0/data_ciphertext", json!("x.y")),
        ("/prompts/0/name", json!("other")),
        ("/prompts/0/version/content", json!("other")),
        ("/prompts/1/bindings/0/conditions_json", json!({})),
        ("/prompts/1/active", json!(false)),
    ] {
        let mut changed = document.clone();
        *changed.pointer_mut(place).unwrap() = value;
        assert_ne!(base, revision(&changed, &number), "{place}");
    }
    for (column, value) in [("label", json!("other")), ("active", json!(false))] {
        let mut changed = number.clone();
        changed[column] = value;
        assert_ne!(base, revision(&document, &changed), "{column}");
    }
}

#[test]
fn a_profile_weighs_at_least_its_contents() {
    let small = profile(ACME_NUMBER).tenant.bytes;
    let large = acme(|document| {
        document["prompts"][0]["version"]["content"] = json!("x".repeat(100_000));
    });
    let more = (large.tenant.bytes - small) / (STACKS + 1);
    assert!(more > 99_000 && more < 101_000, "{more}");
}
