#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use percent_encoding::percent_decode_str;
use proptest::prelude::*;
use serde_json::{Value as Json_, json};

use super::*;
use crate::sample::{
    ACME, ACME_NUMBER, FRESH, GUARDIANES_NUMBER, STACK_BYTES, acme, binding, call, closed,
    number_document, open, profile, profile_of, prompt, sealed, tenant_document,
};
use crate::select::{Call, select};

const ALL: &dyn Fn(&str) -> bool = &|_| true;

/// What `write` makes of the answer to a call.
fn answer<T>(
    profile: &Profile,
    call: &Call,
    at: Timestamp,
    write: impl FnOnce(Answer<'_, '_>) -> T,
) -> T {
    let selection = select(profile, call, at, STACK_BYTES).unwrap();
    write(Answer::new(&selection, FRESH))
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    String::from_utf8(bytes.as_ref().to_vec()).unwrap()
}

fn parsed(bytes: impl AsRef<[u8]>) -> Json_ {
    serde_json::from_slice(bytes.as_ref()).unwrap()
}

fn door_of_acme() -> Call {
    call(&[
        ("account_ref", "ACME-001234"),
        ("event_type", "door_open"),
        ("zone", "Z1"),
    ])
}

#[test]
fn the_full_view_of_the_example_is_this_to_the_letter() {
    let profile = profile(ACME_NUMBER);
    let resolved = answer(&profile, &door_of_acme(), closed(), |answer| {
        answer.resolve(Some(ALL))
    });
    let expected = concat!(
        r#"{"status":"ok","number":"+14155550100","label":"Salida principal AR","#,
        r#""tenant":{"id":"6f717b5a-1a2b-4c3d-9e8f-112233445566","slug":"seguridad-acme-sa","name":"Seguridad ACME S.A."},"#,
        r#""account_ref":"ACME-001234","event_type":"door_open","#,
        r#""language":"es-AR","voice":"es-AR-Standard-A","timezone":"America/Argentina/Buenos_Aires","#,
        r#""local_time":"2026-11-22T10:45:00-03:00","business_hours":"closed","#,
        r#""model":"gpt-4o-mini","transcription_provider":"google","recording_enabled":true,"#,
        r#""revision":"REVISION","stale":false,"staleness_ms":412,"#,
        r#""prompt":{"ids":"11111111-1111-4111-8111-111111111111,22222222-2222-4222-8222-222222222222,33333333-3333-4333-8333-333333333333,44444444-4444-4444-8444-444444444444","#,
        r#""system":"Actúa como agente en español, confirma horario de evento y valida clave.\n\n"#,
        r#"Evento de apertura fuera de horario. Prioriza contacto y verificación inmediata.\n\n"#,
        r#"Cliente ACME: tono formal, confirmar palabra clave 'sol rojo'.\n\n"#,
        r#"Región X: ofrecer el número de guardia local si la persona lo pide.","#,
        r#""layers":[{"id":"11111111-1111-4111-8111-111111111111","version":2,"name":"Base Global Español","scope":"global","priority":100,"#,
        r#""content":"Actúa como agente en español, confirma horario de evento y valida clave."},"#,
        r#"{"id":"22222222-2222-4222-8222-222222222222","version":1,"name":"Apertura fuera de horario","scope":"event_type","priority":10,"#,
        r#""content":"Evento de apertura fuera de horario. Prioriza contacto y verificación inmediata."},"#,
        r#"{"id":"33333333-3333-4333-8333-333333333333","version":1,"name":"Cliente VIP ACME","scope":"account","priority":5,"#,
        r#""content":"Cliente ACME: tono formal, confirmar palabra clave 'sol rojo'."},"#,
        r#"{"id":"44444444-4444-4444-8444-444444444444","version":1,"name":"Número de región X","scope":"phone-number","priority":5,"#,
        r#""content":"Región X: ofrecer el número de guardia local si la persona lo pide."}]},"#,
        r#""credentials":{"openai":{"default":"sk-example"}},"credentials_withheld":[]}"#,
    );
    let expected = expected.replace("REVISION", &profile.revision().to_string());
    assert_eq!(text(resolved.body.to_vec()), expected);
}

#[test]
fn the_short_view_of_the_example_is_this_to_the_letter() {
    let profile = profile(ACME_NUMBER);
    let lookup = answer(&profile, &Call::default(), open(), |answer| {
        answer.lookup().to_vec()
    });
    let expected = concat!(
        r#"{"status":"ok","number":"+14155550100","label":"Salida principal AR","#,
        r#""tenant":{"id":"6f717b5a-1a2b-4c3d-9e8f-112233445566","slug":"seguridad-acme-sa","name":"Seguridad ACME S.A."},"#,
        r#""account_ref":"","event_type":"","#,
        r#""language":"es-AR","voice":"es-AR-Standard-A","timezone":"America/Argentina/Buenos_Aires","#,
        r#""local_time":"2026-11-23T10:45:00-03:00","business_hours":"open","#,
        r#""model":"gpt-4o-mini","transcription_provider":"google","recording_enabled":true,"#,
        r#""revision":"REVISION","stale":false,"staleness_ms":412,"#,
        r#""prompt":{"ids":"11111111-1111-4111-8111-111111111111,44444444-4444-4444-8444-444444444444"}}"#,
    );
    let expected = expected.replace("REVISION", &profile.revision().to_string());
    assert_eq!(text(lookup), expected);
}

#[test]
fn the_form_of_a_number_with_little_set_is_this_to_the_letter() {
    let profile = profile(GUARDIANES_NUMBER);
    let form = answer(&profile, &Call::default(), open(), |answer| answer.form());
    let expected = concat!(
        "status=ok&number=%2B541150000002&tenant_id=d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb&language=es-419",
        "&timezone=America%2FMontevideo&local_time=2026-11-23T10%3A45%3A00-03%3A00&business_hours&recording_enabled=0",
        "&revision=REVISION&stale=0&staleness_ms=412&prompt_ids&tenant_slug=guardianes-srl&voice&model",
        "&transcription_provider&label&tenant_name=Guardianes%20SRL&account_ref&event_type",
    );
    assert_eq!(
        text(form),
        expected.replace("REVISION", &profile.revision().to_string())
    );
}

#[test]
fn the_full_view_without_credentials_asked_for_has_none_of_their_fields() {
    let resolved = answer(&profile(ACME_NUMBER), &Call::default(), open(), |answer| {
        answer.resolve(None)
    });
    let json = parsed(resolved.body.to_vec());
    assert!(json.get("credentials").is_none() && json.get("credentials_withheld").is_none());
    assert!(!text(resolved.body.to_vec()).contains("sk-example"));
}

#[test]
fn a_vip_account_changes_language_and_voice_for_its_calls_alone() {
    let profile = acme(|document| {
        document["prompts"][2]["bindings"][0]["conditions_json"] = json!(
            {"vip": true, "language_override": "en-US", "voice_override": "en-US-Neural2-F", "timezone_override": "UTC"});
    });
    let fields = |call: &Call| {
        let lookup = parsed(answer(&profile, call, open(), |answer| {
            answer.lookup().to_vec()
        }));
        ["language", "voice", "timezone", "local_time"]
            .map(|field| lookup[field].as_str().unwrap().to_owned())
    };
    let vip = call(&[("account_ref", "ACME-001234"), ("vip", "1")]);
    assert_eq!(
        fields(&vip),
        [
            "en-US",
            "en-US-Neural2-F",
            "UTC",
            "2026-11-23T13:45:00+00:00"
        ]
    );
    let other = call(&[("account_ref", "ACME-001234")]);
    assert_eq!(fields(&other)[..2], ["es-AR", "es-AR-Standard-A"]);
}

#[test]
fn each_field_is_given_as_plain_text() {
    let profile = profile(ACME_NUMBER);
    let field = |field| {
        text(answer(&profile, &Call::default(), open(), |answer| {
            answer.field(field)
        }))
    };
    assert_eq!(field(Field::Status), "ok");
    assert_eq!(field(Field::TenantName), "Seguridad ACME S.A.");
    assert_eq!(field(Field::AccountRef), "");
    assert_eq!(field(Field::RecordingEnabled), "1");
    assert_eq!(field(Field::Stale), "0");
    assert_eq!(field(Field::StalenessMs), "412");
    assert_eq!(field(Field::LocalTime), "2026-11-23T10:45:00-03:00");
    assert_eq!(
        field(Field::PromptIds),
        "11111111-1111-4111-8111-111111111111,44444444-4444-4444-8444-444444444444"
    );
}

#[test]
fn every_field_is_found_by_its_flat_name_and_explained() {
    for field in Field::ALL {
        assert_eq!(Field::named(field.name()), Some(*field));
        assert!(
            field
                .name()
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        );
        assert!(field.doc().ends_with('.') && !field.doc().starts_with(' '));
    }
    assert_eq!(Field::named("tenant.slug"), None);
    assert_eq!(Field::named(""), None);
}

#[test]
fn errors_are_a_status_and_a_message() {
    assert_eq!(
        text(error_json("bad_request", "to: given \"twice\"")),
        r#"{"status":"bad_request","message":"to: given \"twice\""}"#
    );
    assert_eq!(
        text(error_form("unknown_number", "no such number")),
        "status=unknown_number&message=no%20such%20number"
    );
}

#[test]
fn local_time_has_an_offset_in_whole_minutes_and_whole_seconds() {
    let shown = |at: &str, zone: &str| {
        let zone = crate::admit::zone(zone).unwrap();
        LocalTime::new(at.parse().unwrap(), &zone).to_string()
    };
    assert_eq!(
        shown("2026-11-22T13:45:00.999Z", "UTC"),
        "2026-11-22T13:45:00+00:00"
    );
    assert_eq!(
        shown("2026-11-22T13:45:00Z", "Asia/Kolkata"),
        "2026-11-22T19:15:00+05:30"
    );
    assert_eq!(
        shown("2026-11-22T01:00:00Z", "America/St_Johns"),
        "2026-11-21T21:30:00-03:30"
    );
    // Amsterdam was 19 minutes and 32 seconds ahead.
    assert_eq!(shown("1920-01-01T00:00:00Z", "Europe/Amsterdam").len(), 25);
    assert_eq!(
        shown("0001-01-01T00:00:00Z", "UTC"),
        "0001-01-01T00:00:00+00:00"
    );
}

#[test]
fn a_credential_that_opens_to_json_is_given_as_json_and_only_of_allowed_providers() {
    let profile = acme(|document| {
        let row = |n: u8, provider: &str, name: &str, value: &str| {
            json!({"id": format!("00000000-0000-4000-8003-0000000000{n:02x}"), "provider": provider, "name": name,
                   "bytes": 1, "data_ciphertext": sealed(ACME, provider, name, value)})
        };
        document["credentials"] = json!([
            row(1, "openai", "default", "sk-1"),
            row(2, "azure", "b\"", r#"{ "key": "k", "list": [1, 2.50] }"#),
            row(3, "azure", "a", "12345"),
            row(4, "azure", "n", "null"),
            json!({"id": "00000000-0000-4000-8003-000000000005", "provider": "azure", "name": "z",
                   "bytes": 1, "data_ciphertext": "x"}),
        ]);
    });
    let given = |allowed: &dyn Fn(&str) -> bool| text(&*credentials(&profile, FRESH, allowed));
    let head = format!(
        r#"{{"status":"ok","number":"+14155550100","revision":"{}","stale":false,"staleness_ms":412,"#,
        profile.revision()
    );
    assert_eq!(
        given(ALL),
        head.clone()
            + r#""credentials":{"azure":{"a":12345,"b\"":{"key":"k","list":[1,2.50]},"n":""},"openai":{"default":"sk-1"}},"credentials_withheld":["azure/z"]}"#
    );
    assert_eq!(
        given(&|provider| provider == "openai"),
        head.clone() + r#""credentials":{"openai":{"default":"sk-1"}},"credentials_withheld":[]}"#
    );
    assert_eq!(
        given(&|_| false),
        head + r#""credentials":{},"credentials_withheld":[]}"#
    );
}

#[test]
fn credentials_never_outgrow_the_room_that_was_made_for_them() {
    let profile = acme(|document| {
        let row = |n: u8, name: &str, text: &str| {
            json!({"id": format!("00000000-0000-4000-8003-0000000000{n:02x}"), "provider": "\"\\".repeat(25),
                   "name": name, "bytes": 1, "data_ciphertext": text})
        };
        let provider = "\"\\".repeat(25);
        let name = "\\".repeat(100);
        document["credentials"] = json!([
            row(
                1,
                &name,
                &sealed(ACME, &provider, &name, &"\u{1}".repeat(2000))
            ),
            row(2, "", &sealed(ACME, &provider, "", "")),
            row(3, "withheld", "x"),
        ]);
    });
    let counts = (
        profile.tenant.credentials.len(),
        profile.tenant.withheld.len(),
    );
    assert_eq!(counts, (2, 1), "{:?}", profile.tenant.faults);
    let mut json = Json::with_capacity(16);
    json.open(None);
    json.out.reserve(credentials_room(&profile, ALL));
    let (at, room) = (json.out.as_ptr(), json.out.capacity());
    write_credentials(&mut json, &profile, ALL);
    json.close();
    assert_eq!((json.out.as_ptr(), json.out.capacity()), (at, room));
    parsed(&*json.out);
}

#[test]
fn the_etag_is_blind_to_the_time_and_to_nothing_else() {
    let profile = profile(ACME_NUMBER);
    let etag = |call: &Call, at: Timestamp, staleness, credentials| {
        let selection = select(&profile, call, at, STACK_BYTES).unwrap();
        Answer::new(&selection, staleness).resolve(credentials).etag
    };
    let none = Call::default();
    let base = etag(&none, open(), FRESH, None);
    assert_eq!(base.len(), 34);
    assert!(base.starts_with('"') && base.ends_with('"'));
    let later = open() + std::time::Duration::from_secs(60);
    let stale = Staleness {
        ms: 99_999,
        stale: true,
        ..FRESH
    };
    assert_eq!(base, etag(&none, later, stale, None));
    assert_ne!(base, etag(&none, closed(), FRESH, None), "closed");
    assert_ne!(base, etag(&door_of_acme(), open(), FRESH, None));
    assert_ne!(base, etag(&none, open(), FRESH, Some(ALL)));
}

/// A tenant whose every call gets so many prompts.
fn with_prompts(count: u8) -> Profile {
    let prompts: Vec<_> = (0..count)
        .map(|n| prompt(n, "global", 0, json!([])))
        .collect();
    acme(|document| document["prompts"] = json!(prompts))
}

#[test]
fn prompt_ids_are_cut_to_whole_ids_that_fit() {
    let profile = with_prompts(200);
    let call = Call::default();
    let lookup = answer(&profile, &call, open(), |answer| answer.lookup().to_vec());
    let form = answer(&profile, &call, open(), |answer| answer.form());
    let field = answer(&profile, &call, open(), |answer| {
        answer.field(Field::PromptIds)
    });
    for (bytes, id_bytes) in [(&lookup, 37), (&form, 39), (&field, 37)] {
        assert!(
            bytes.len() < SHORT_BYTES && bytes.len() >= SHORT_BYTES - 1 - id_bytes,
            "{}",
            bytes.len()
        );
    }
    let json = parsed(&lookup);
    let ids: Vec<_> = json["prompt"]["ids"].as_str().unwrap().split(',').collect();
    let all: Vec<_> = profile
        .tenant
        .prompts
        .iter()
        .map(|prompt| prompt.id.to_string())
        .collect();
    assert_eq!(ids, all[..ids.len()]);
    assert_eq!(
        json["tenant"]["name"], "Seguridad ACME S.A.",
        "nothing else is cut"
    );
    assert_eq!(text(field).split(',').count(), 110);
    let resolved = answer(&profile, &call, open(), |answer| answer.resolve(None));
    assert_eq!(
        parsed(resolved.body.to_vec())["prompt"]["ids"]
            .as_str()
            .unwrap()
            .split(',')
            .count(),
        200
    );
}

#[test]
fn what_is_too_long_without_prompt_ids_loses_the_end_of_the_name_then_of_the_label() {
    let mut number = number_document(ACME_NUMBER);
    number["label"] = json!("ñ".repeat(100));
    let mut tenant = tenant_document(ACME);
    tenant["tenant"]["name"] = json!("🏠".repeat(255));
    tenant["tenant"]["slug"] = json!("s".repeat(255));
    let profile = profile_of(&number, &tenant);
    let long = call(&[
        ("account_ref", &"&".repeat(256)),
        ("event_type", &"é".repeat(128)),
    ]);
    let form = text(answer(&profile, &long, open(), |answer| answer.form()));
    assert!(form.len() < SHORT_BYTES, "{}", form.len());
    let pairs = unform(&form);
    assert!(
        "🏠".repeat(255).starts_with(&pairs["tenant_name"]) && pairs["tenant_name"].len() < 1020
    );
    assert_eq!(pairs["label"], "ñ".repeat(100));
    assert_eq!(pairs["prompt_ids"], "");
    assert_eq!(pairs["account_ref"], "&".repeat(256));
}

#[test]
fn even_the_longest_rows_and_words_give_a_short_view_below_its_limit() {
    let long = |chars: usize| json!("🏠".repeat(chars));
    let mut number = number_document(ACME_NUMBER);
    number["label"] = long(100);
    number["default_voice"] = long(50);
    let mut tenant = tenant_document(ACME);
    tenant["tenant"]["name"] = long(255);
    tenant["tenant"]["slug"] = long(255);
    tenant["settings"]["model"] = long(100);
    tenant["settings"]["transcription_provider"] = long(50);
    let many: Vec<_> = (0..200)
        .map(|n| prompt(n, "global", 0, json!([])))
        .collect();
    tenant["prompts"] = json!(many);
    let profile = profile_of(&number, &tenant);
    let words = "🏠".repeat(64);
    let call = call(&[("account_ref", &words), ("event_type", &words)]);
    let form = answer(&profile, &call, open(), |answer| answer.form());
    let lookup = answer(&profile, &call, open(), |answer| answer.lookup().to_vec());
    assert!(form.len() < SHORT_BYTES && lookup.len() < SHORT_BYTES);
    assert_eq!(unform(&text(form))["model"], "🏠".repeat(100));
    parsed(lookup);
}

/// Reads a form back; a bare key is empty.
fn unform(form: &str) -> std::collections::BTreeMap<String, String> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
    let pair = |pair: &str| {
        let (key, value) = pair
            .split_once('=')
            .map_or((pair, None), |(key, value)| (key, Some(value)));
        assert_ne!(value, Some(""), "an empty value is a bare key");
        (key.to_owned(), decoded(value.unwrap_or_default()))
    };
    form.split('&').map(pair).collect()
}

fn has_null(json: &Json_) -> bool {
    match json {
        Json_::Null => true,
        Json_::Array(items) => items.iter().any(has_null),
        Json_::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

/// The fields of a short view by their flat names, as text.
fn flat(lookup: &Json_) -> std::collections::BTreeMap<String, String> {
    let plain = |value: &Json_| match value {
        Json_::String(text) => text.clone(),
        Json_::Bool(flag) => u8::from(*flag).to_string(),
        other => other.to_string(),
    };
    let mut flat = std::collections::BTreeMap::new();
    for (key, value) in lookup.as_object().unwrap() {
        match value {
            Json_::Object(inner) => {
                flat.extend(
                    inner
                        .iter()
                        .map(|(name, value)| (format!("{key}_{name}"), plain(value))),
                );
            }
            value => {
                flat.insert(key.clone(), plain(value));
            }
        }
    }
    flat
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_the_rows_and_the_call_hold_the_answer_is_whole(
        label in prop::option::of("\\PC{0,100}"),
        name in "\\PC{0,255}",
        slug in "[\"\\\\&=%+/a-z é]{0,40}",
        model in "\\PC{0,60}",
        content in "(?s).{0,200}",
        prompt_name in "\\PC{0,80}",
        account in prop::option::of("\\PC{0,60}"),
        secret in "(?s).{0,60}",
        count in 0_u8..150,
    ) {
        let mut number = number_document(ACME_NUMBER);
        number["label"] = json!(label);
        let mut tenant = tenant_document(ACME);
        tenant["tenant"]["name"] = json!(name);
        tenant["tenant"]["slug"] = json!(slug);
        tenant["settings"]["model"] = json!(model);
        tenant["settings"]["transcription_provider"] = json!(null);
        tenant["credentials"][0]["data_ciphertext"] = json!(sealed(ACME, "openai", "default", &secret));
        let mut prompts: Vec<_> = (0..count).map(|n| prompt(n, "global", 0, json!([]))).collect();
        if let Some(first) = prompts.first_mut() {
            first["version"]["content"] = json!(content);
            first["name"] = json!(prompt_name);
            first["bindings"] = json!([binding(1, json!({}))]);
        }
        tenant["prompts"] = json!(prompts);
        let profile = profile_of(&number, &tenant);
        let call = Call { account_ref: account.clone(), ..Call::default() };
        let resolved = answer(&profile, &call, open(), |answer| answer.resolve(Some(ALL)));
        let full = parsed(resolved.body.to_vec());
        prop_assert!(!has_null(&full["prompt"]) && !has_null(&full["tenant"]));
        prop_assert!(!full.as_object().unwrap().values().any(Json_::is_null));
        prop_assert!(!resolved.body.to_vec().contains(&b'\n'));
        prop_assert_eq!(full["tenant"]["name"].as_str(), Some(name.as_str()));
        prop_assert_eq!(full["label"].as_str(), Some(label.as_deref().unwrap_or_default()));
        prop_assert_eq!(full["account_ref"].as_str(), Some(account.as_deref().unwrap_or_default()));
        if count > 0 {
            prop_assert_eq!(full["prompt"]["layers"][0]["content"].as_str(), Some(content.as_str()));
            let contents: Vec<_> = full["prompt"]["layers"].as_array().unwrap().iter()
                .map(|layer| layer["content"].as_str().unwrap()).collect();
            prop_assert_eq!(full["prompt"]["system"].as_str().unwrap(), contents.join("\n\n"));
        }
        let given = &full["credentials"]["openai"]["default"];
        match serde_json::from_str::<Json_>(&secret) {
            Ok(Json_::Null) => prop_assert_eq!(given, &json!("")),
            Ok(json) => prop_assert_eq!(given, &json),
            Err(_) => prop_assert_eq!(given, &json!(secret)),
        }

        let lookup = answer(&profile, &call, open(), |answer| answer.lookup().to_vec());
        let form = answer(&profile, &call, open(), |answer| answer.form());
        prop_assert!(lookup.len() < SHORT_BYTES && form.len() < SHORT_BYTES);
        let short = parsed(&lookup);
        prop_assert!(!has_null(&short));
        let (json, form) = (flat(&short), unform(&text(&form)));
        let names: std::collections::BTreeSet<_> = Field::ALL.iter().map(|field| field.name()).collect();
        prop_assert_eq!(json.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), names.clone());
        prop_assert_eq!(form.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), names);
        for (key, value) in &form {
            // Only these are ever cut, and not at the same place in both forms.
            let cut = ["prompt_ids", "tenant_name", "label"].contains(&key.as_str());
            prop_assert!(*value == json[key] || cut && (json[key].starts_with(value.as_str()) || value.starts_with(&json[key])));
        }
    }
}
