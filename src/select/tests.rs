#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use jiff::civil::date;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hours::BusinessHours;
use crate::row::{Binding, Prompt};
use crate::sample::{
    ACME, ACME_NUMBER, GUARDIANES_NUMBER, STACK_BYTES, SUSPENDED_NUMBER, acme, admit_number,
    admit_tenant, binding, call, closed, number_document, open, profile, profile_of, prompt,
    tenant_document,
};

/// The ids' last bytes of the prompts a call gets.
fn stack(profile: &Profile, said: &[(&str, &str)], at: Timestamp) -> Vec<u8> {
    let call = call(said);
    let selection = select(profile, &call, at, STACK_BYTES).unwrap();
    selection
        .prompts
        .iter()
        .map(|chosen| chosen.prompt.id.as_bytes()[15])
        .collect()
}

/// A tenant of these prompts alone.
fn with_prompts(prompts: Value) -> Profile {
    acme(|document| document["prompts"] = prompts)
}

/// Whether a global prompt with one binding of these columns applies.
fn matches(columns: Value, said: &[(&str, &str)], at: Timestamp) -> bool {
    let profile = with_prompts(json!([prompt(
        1,
        "global",
        0,
        json!([binding(1, columns)])
    )]));
    !stack(&profile, said, at).is_empty()
}

/// What one field of the answer is and where it came from: the binding's last byte.
fn from_binding<T: Copy>(field: Effective<'_, T>) -> (T, Option<u8>) {
    match field.from {
        Origin::Binding(_, binding) => (field.value, Some(binding.id.as_bytes()[15])),
        Origin::Number | Origin::Settings => (field.value, None),
    }
}

#[test]
fn an_inactive_number_and_a_suspended_tenant_get_no_answer_in_this_order() {
    let call = Call::default();
    let refused = |profile: &Profile| select(profile, &call, open(), STACK_BYTES).err();
    assert_eq!(
        refused(&profile(SUSPENDED_NUMBER)),
        Some(Refusal::TenantSuspended)
    );
    let mut number = number_document(SUSPENDED_NUMBER);
    number["active"] = json!(false);
    let tenant = tenant_document(number["tenant_id"].as_str().unwrap());
    assert_eq!(
        refused(&profile_of(&number, &tenant)),
        Some(Refusal::InactiveNumber)
    );
    assert_eq!(refused(&profile(ACME_NUMBER)), None);
}

#[test]
fn a_number_never_answers_with_another_tenants_rows() {
    let mixed = profile_of(&number_document(GUARDIANES_NUMBER), &tenant_document(ACME));
    let refused = select(&mixed, &Call::default(), open(), STACK_BYTES).err();
    assert_eq!(refused, Some(Refusal::NoGoodRow));
}

#[test]
fn the_base_is_the_number_and_the_settings() {
    let profile = profile(ACME_NUMBER);
    let call = Call::default();
    let selection = select(&profile, &call, open(), STACK_BYTES).unwrap();
    assert_eq!(from_binding(selection.language), ("es-AR", None));
    assert_eq!(from_binding(selection.voice), ("es-AR-Standard-A", None));
    assert_eq!(
        from_binding(selection.timezone),
        ("America/Argentina/Buenos_Aires", None)
    );
    assert_eq!(from_binding(selection.model), ("gpt-4o-mini", None));
    assert_eq!(
        from_binding(selection.transcription_provider),
        ("google", None)
    );
    assert_eq!(from_binding(selection.recording_enabled), (true, None));
}

#[test]
fn without_settings_the_base_is_empty() {
    let profile = profile(GUARDIANES_NUMBER);
    let call = Call::default();
    let selection = select(&profile, &call, open(), STACK_BYTES).unwrap();
    assert_eq!(
        (
            selection.model.value,
            selection.transcription_provider.value
        ),
        ("", "")
    );
    assert_eq!(
        (selection.voice.value, selection.recording_enabled.value),
        ("", false)
    );
    assert_eq!(selection.hours, Hours::NotConfigured);
}

#[test]
fn the_examples_calls_get_their_prompts() {
    let profile = profile(ACME_NUMBER);
    let account = ("account_ref", "ACME-001234");
    let door = ("event_type", "door_open");
    assert_eq!(stack(&profile, &[], open()), [0x11, 0x44]);
    assert_eq!(stack(&profile, &[door], open()), [0x11, 0x44]);
    assert_eq!(stack(&profile, &[door], closed()), [0x11, 0x22, 0x44]);
    assert_eq!(stack(&profile, &[account], open()), [0x11, 0x33, 0x44]);
    assert_eq!(
        stack(&profile, &[account, door, ("zone", "Z1")], open()),
        [0x11, 0x22, 0x33, 0x44]
    );
    assert_eq!(
        stack(&profile, &[account, door, ("zone", "Z3")], open()),
        [0x11, 0x33, 0x44]
    );
    let says = ("outside_business_hours", "true");
    assert_eq!(stack(&profile, &[door, says], open()), [0x11, 0x22, 0x44]);
}

#[test]
fn a_global_prompt_applies_unless_it_has_bindings_and_none_matches() {
    let bound = json!([binding(1, json!({"account_ref": "A"}))]);
    let profile = with_prompts(json!([
        prompt(1, "global", 0, json!([])),
        prompt(2, "global", 0, bound)
    ]));
    assert_eq!(stack(&profile, &[], open()), [1]);
    assert_eq!(stack(&profile, &[("account_ref", "A")], open()), [1, 2]);
}

#[test]
fn a_global_prompt_that_lost_its_only_binding_to_a_bad_row_never_applies() {
    let bad = json!([binding(
        1,
        json!({"account_ref": "A", "conditions_json": {"mood_override": 1}})
    )]);
    let profile = with_prompts(json!([prompt(1, "global", 0, bad)]));
    assert_eq!(stack(&profile, &[("account_ref", "A")], open()), [0_u8; 0]);
}

#[test]
fn a_scoped_prompt_needs_a_matching_binding_that_names_its_column() {
    let number = "f1a2b3c4-0001-4000-8000-000000000001";
    let said = [("account_ref", "A"), ("event_type", "E")];
    for (scope, own) in [
        ("event_type", json!({"event_type": "E"})),
        ("account", json!({"account_ref": "A"})),
        ("phone-number", json!({"phone_number_id": number})),
    ] {
        let applies = |bindings: Value| {
            !stack(
                &with_prompts(json!([prompt(1, scope, 0, bindings)])),
                &said,
                open(),
            )
            .is_empty()
        };
        assert!(!applies(json!([])), "{scope} without bindings");
        assert!(
            !applies(json!([binding(1, json!({}))])),
            "{scope} with an empty binding"
        );
        assert!(applies(json!([binding(1, own.clone())])), "{scope}");
        for other in [
            json!({"event_type": "E"}),
            json!({"account_ref": "A"}),
            json!({"phone_number_id": number}),
        ] {
            assert_eq!(
                applies(json!([binding(1, other.clone())])),
                other == own,
                "{scope} {other}"
            );
            assert!(
                applies(json!([binding(1, other), binding(2, own.clone())])),
                "{scope}"
            );
        }
    }
}

#[test]
fn inactive_prompts_and_those_without_a_version_do_not_apply() {
    let mut inactive = prompt(1, "global", 0, json!([]));
    inactive["active"] = json!(false);
    let mut unwritten = prompt(2, "global", 0, json!([]));
    unwritten["version"] = json!(null);
    let profile = with_prompts(json!([
        inactive,
        unwritten,
        prompt(3, "global", 0, json!([]))
    ]));
    assert_eq!(stack(&profile, &[], open()), [3]);
}

#[test]
fn account_ref_equals_exactly_and_event_type_ignoring_ascii_case() {
    assert!(matches(
        json!({"account_ref": "Ab"}),
        &[("account_ref", "Ab")],
        open()
    ));
    assert!(!matches(
        json!({"account_ref": "Ab"}),
        &[("account_ref", "ab")],
        open()
    ));
    assert!(!matches(
        json!({"account_ref": "Ab"}),
        &[("account_ref", "Ab ")],
        open()
    ));
    assert!(!matches(json!({"account_ref": "Ab"}), &[], open()));
    assert!(!matches(json!({"account_ref": ""}), &[], open()));
    assert!(matches(
        json!({"event_type": "Door"}),
        &[("event_type", "dOOR")],
        open()
    ));
    assert!(!matches(
        json!({"event_type": "é"}),
        &[("event_type", "É")],
        open()
    ));
    assert!(!matches(json!({"event_type": "Door"}), &[], open()));
}

#[test]
fn phone_number_id_is_the_called_number() {
    assert!(matches(
        json!({"phone_number_id": "f1a2b3c4-0001-4000-8000-000000000001"}),
        &[],
        open()
    ));
    assert!(!matches(
        json!({"phone_number_id": "f1a2b3c4-0002-4000-8000-000000000002"}),
        &[],
        open()
    ));
}

#[test]
fn outside_business_hours_is_the_callers_word_else_the_hours_else_false() {
    let rule = |wanted: bool| json!({"conditions_json": {"outside_business_hours": wanted}});
    assert!(matches(rule(true), &[], closed()) && !matches(rule(false), &[], closed()));
    assert!(!matches(rule(true), &[], open()) && matches(rule(false), &[], open()));
    let says = |word| [("outside_business_hours", word)];
    assert!(
        matches(rule(true), &says("1"), open()) && matches(rule(false), &says("FALSE"), closed())
    );
    assert!(
        !matches(rule(true), &says("no"), open()) && !matches(rule(false), &says("no"), open())
    );
    let profile = acme(|document| {
        document["settings"]["business_hours"] = json!(null);
        let bindings = |wanted| json!([binding(1, rule(wanted))]);
        document["prompts"] = json!([
            prompt(1, "global", 0, bindings(true)),
            prompt(2, "global", 0, bindings(false))
        ]);
    });
    assert_eq!(stack(&profile, &[], closed()), [2]);
}

#[test]
fn hours_go_by_the_numbers_own_timezone_whatever_the_answers_is() {
    // 10:45 in Buenos Aires is open, 22:45 in Tokyo would not be.
    let effect = json!({"conditions_json": {"timezone_override": "Asia/Tokyo"}});
    let profile = with_prompts(json!([prompt(1, "global", 0, json!([binding(1, effect)]))]));
    let call = Call::default();
    let selection = select(&profile, &call, open(), STACK_BYTES).unwrap();
    assert_eq!(selection.hours, Hours::Open);
    assert_eq!(selection.timezone.value, "Asia/Tokyo");
    assert_eq!(
        selection.zone.to_datetime(open()),
        date(2026, 11, 23).at(22, 45, 0, 0)
    );
}

#[test]
fn of_one_prompts_bindings_the_most_special_that_matches_acts_alone() {
    let profile = with_prompts(json!([prompt(
        1,
        "global",
        0,
        json!([
            binding(
                1,
                json!({"conditions_json": {"language_override": "en", "voice_override": "v1"}})
            ),
            binding(
                2,
                json!({"account_ref": "A", "conditions_json": {"language_override": "fr"}})
            ),
            binding(
                3,
                json!({"account_ref": "A", "event_type": "E", "conditions_json": {"language_override": "de"}})
            ),
        ])
    )]));
    let language = |said: &[(&str, &str)]| {
        let call = call(said);
        let selection = select(&profile, &call, open(), STACK_BYTES).unwrap();
        (
            selection.language.value.to_owned(),
            selection.voice.value.to_owned(),
        )
    };
    assert_eq!(language(&[]), ("en".into(), "v1".into()));
    assert_eq!(
        language(&[("account_ref", "A")]),
        ("fr".into(), "es-AR-Standard-A".into())
    );
    assert_eq!(
        language(&[("account_ref", "A"), ("event_type", "e")]).0,
        "de"
    );
}

#[test]
fn across_prompts_the_one_standing_last_wins_field_by_field() {
    let effects = |n: u8, rules: Value| json!([binding(n, json!({"conditions_json": rules}))]);
    let profile = with_prompts(json!([
        prompt(
            1,
            "global",
            9,
            effects(
                1,
                json!({"language_override": "en", "model_override": "m1", "recording_enabled_override": true})
            )
        ),
        prompt(
            2,
            "global",
            8,
            effects(
                2,
                json!({"language_override": "fr", "recording_enabled_override": false})
            )
        ),
        prompt(3, "global", 7, json!([])),
        prompt(
            4,
            "global",
            6,
            effects(
                4,
                json!({"transcription_provider_override": "", "zone": "Z9", "language_override": "xx"})
            )
        ),
    ]));
    let call = Call::default();
    let selection = select(&profile, &call, open(), STACK_BYTES).unwrap();
    assert_eq!(from_binding(selection.language), ("fr", Some(2)));
    assert_eq!(from_binding(selection.model), ("m1", Some(1)));
    assert_eq!(from_binding(selection.recording_enabled), (false, Some(2)));
    assert_eq!(
        from_binding(selection.transcription_provider),
        ("google", None)
    );
}

#[test]
fn an_effect_may_empty_a_field() {
    let effect = json!({"conditions_json": {"voice_override": ""}});
    let profile = with_prompts(json!([prompt(1, "global", 0, json!([binding(1, effect)]))]));
    let call = Call::default();
    let selection = select(&profile, &call, open(), STACK_BYTES).unwrap();
    assert_eq!(from_binding(selection.voice), ("", Some(1)));
}

#[test]
fn prompts_that_no_longer_fit_are_left_out_from_the_end_with_their_effects() {
    let effect = |n| {
        json!([binding(
            n,
            json!({"conditions_json": {"model_override": format!("m{n}")}})
        )])
    };
    let profile = with_prompts(json!([
        prompt(1, "global", 3, effect(1)),
        prompt(2, "global", 2, effect(2)),
        prompt(3, "global", 1, effect(3)),
    ]));
    let call = Call::default();
    // Each content is two bytes, each blank line between two more.
    for (limit, kept, model) in [
        (10, 3, "m3"),
        (9, 2, "m2"),
        (6, 2, "m2"),
        (5, 1, "m1"),
        (1, 0, "gpt-4o-mini"),
    ] {
        let selection = select(&profile, &call, open(), limit).unwrap();
        assert_eq!(
            (selection.prompts.len(), selection.left_out),
            (kept, 3 - kept),
            "{limit}"
        );
        assert_eq!(selection.model.value, model, "{limit}");
    }
}

#[test]
fn a_small_prompt_does_not_slip_past_a_large_one_that_did_not_fit() {
    let mut large = prompt(2, "global", 2, json!([]));
    large["version"]["content"] = json!("x".repeat(100));
    let profile = with_prompts(json!([
        prompt(1, "global", 3, json!([])),
        large,
        prompt(3, "global", 1, json!([]))
    ]));
    let call = Call::default();
    let selection = select(&profile, &call, open(), 50).unwrap();
    assert_eq!((selection.prompts.len(), selection.left_out), (1, 2));
}

// A second implementation: straight from the design, on the rows, without a thought for speed.

fn naive_equal(given: &str, wanted: &Value) -> bool {
    let given = given.trim().to_ascii_lowercase();
    match wanted {
        Value::String(text) => given == text.trim().to_ascii_lowercase(),
        Value::Bool(true) => given == "true" || given == "1",
        Value::Bool(false) => given == "false" || given == "0",
        number => given.parse::<f64>().ok() == number.as_f64(),
    }
}

fn naive_matches(binding: &Binding, call: &Call, number: Uuid, outside: bool) -> bool {
    if binding.account_ref.is_some() && binding.account_ref != call.account_ref {
        return false;
    }
    if let Some(event) = &binding.event_type {
        let given = call
            .event_type
            .as_ref()
            .map(|given| given.to_ascii_lowercase());
        if given != Some(event.to_ascii_lowercase()) {
            return false;
        }
    }
    if binding.phone_number_id.is_some_and(|id| id != number) {
        return false;
    }
    let given = |name: &str| -> Vec<String> {
        match name {
            "account_ref" => call.account_ref.clone().into_iter().collect(),
            "event_type" => call.event_type.clone().into_iter().collect(),
            name => call.attributes.get(name).cloned().unwrap_or_default(),
        }
    };
    binding
        .conditions
        .as_object()
        .unwrap()
        .iter()
        .all(|(key, wanted)| {
            if key.ends_with("_override") {
                return true;
            }
            if key == "outside_business_hours" && given(key).is_empty() {
                return wanted.as_bool().unwrap() == outside;
            }
            let (name, negative) = match (key.strip_suffix("_not_in"), key.strip_suffix("_in")) {
                (Some(name), _) => (name, true),
                (None, Some(name)) => (name, false),
                (None, None) => (key.as_str(), false),
            };
            let list = wanted
                .as_array()
                .cloned()
                .unwrap_or_else(|| vec![wanted.clone()]);
            let has = given(name)
                .iter()
                .any(|given| list.iter().any(|wanted| naive_equal(given, wanted)));
            if negative {
                !given(name).is_empty() && !has
            } else {
                has
            }
        })
}

/// The fields of an answer that bindings may change, prompt ids first.
fn naive(
    number: &crate::row::Number,
    bundle: &crate::row::Bundle,
    call: &Call,
    at: Timestamp,
) -> Value {
    let settings = bundle.settings.as_ref();
    let zone = TimeZone::get(&number.timezone).unwrap();
    let hours = settings.and_then(|row| row.business_hours.as_ref());
    let outside =
        hours.is_some_and(|hours| !BusinessHours::parse(hours).unwrap().is_open(at, &zone));
    let columns = |b: &Binding| {
        usize::from(b.account_ref.is_some())
            + usize::from(b.event_type.is_some())
            + usize::from(b.phone_number_id.is_some())
    };
    let mut applying: Vec<(&Prompt, Vec<&Binding>)> = Vec::new();
    for prompt in &bundle.prompts {
        let matching: Vec<&Binding> = prompt
            .bindings
            .iter()
            .filter(|b| naive_matches(b, call, number.id, outside))
            .collect();
        let applies = match prompt.scope {
            Scope::Global => {
                prompt.bindings.is_empty() && prompt.bindings_left_out == 0 || !matching.is_empty()
            }
            Scope::EventType => matching.iter().any(|b| b.event_type.is_some()),
            Scope::Account => matching.iter().any(|b| b.account_ref.is_some()),
            Scope::PhoneNumber => matching.iter().any(|b| b.phone_number_id.is_some()),
        };
        if prompt.active && prompt.version.is_some() && applies {
            applying.push((prompt, matching));
        }
    }
    let rank = |scope| match scope {
        Scope::Global => 0,
        Scope::EventType => 1,
        Scope::Account => 2,
        Scope::PhoneNumber => 3,
    };
    applying.sort_by(|(a, _), (b, _)| {
        b.priority
            .cmp(&a.priority)
            .then(rank(a.scope).cmp(&rank(b.scope)))
            .then(a.created_at.cmp(&b.created_at))
            .then(a.id.cmp(&b.id))
    });
    let mut answer = json!({
        "ids": applying.iter().map(|(prompt, _)| prompt.id).collect::<Vec<_>>(),
        "language": number.default_language,
        "voice": number.default_voice.clone().unwrap_or_default(),
        "timezone": number.timezone,
        "model": settings.map(|s| s.model.clone()).unwrap_or_default(),
        "transcription_provider": settings.and_then(|s| s.transcription_provider.clone()).unwrap_or_default(),
        "recording_enabled": settings.is_some_and(|s| s.recording_enabled),
    });
    for (_, mut matching) in applying {
        matching.sort_by(|a, b| {
            columns(b)
                .cmp(&columns(a))
                .then(b.created_at.cmp(&a.created_at))
                .then(a.id.cmp(&b.id))
        });
        let Some(acting) = matching.first() else {
            continue;
        };
        for (key, value) in acting.conditions.as_object().unwrap() {
            if let Some(field) = key.strip_suffix("_override") {
                answer[field] = value.clone();
            }
        }
    }
    answer
}

fn selected(profile: &Profile, call: &Call, at: Timestamp) -> Value {
    let selection = select(profile, call, at, STACK_BYTES).unwrap();
    json!({
        "ids": selection.prompts.iter().map(|chosen| chosen.prompt.id).collect::<Vec<_>>(),
        "language": selection.language.value,
        "voice": selection.voice.value,
        "timezone": selection.timezone.value,
        "model": selection.model.value,
        "transcription_provider": selection.transcription_provider.value,
        "recording_enabled": selection.recording_enabled.value,
    })
}

fn any_condition() -> impl Strategy<Value = (&'static str, Value)> {
    let zone = prop::sample::select(vec![json!("Z1"), json!(" z2 "), json!(3), json!(true)]);
    let zones = prop::collection::vec(zone.clone(), 0..3);
    prop_oneof![
        zone.prop_map(|value| ("zone", value)),
        zones.clone().prop_map(|values| ("zone_in", json!(values))),
        zones.prop_map(|values| ("zone_not_in", json!(values))),
        any::<bool>().prop_map(|value| ("outside_business_hours", json!(value))),
        any::<bool>().prop_map(|value| ("vip", json!(value))),
        Just(("event_type_in", json!(["E1", "e2"]))),
        Just(("account_ref", json!("a1"))),
    ]
}

fn any_effect() -> impl Strategy<Value = (&'static str, Value)> {
    prop_oneof![
        prop::sample::select(vec!["en", "fr", "pt-BR"])
            .prop_map(|v| ("language_override", json!(v))),
        prop::sample::select(vec!["", "v1"]).prop_map(|v| ("voice_override", json!(v))),
        prop::sample::select(vec!["Asia/Tokyo", "UTC"])
            .prop_map(|v| ("timezone_override", json!(v))),
        prop::sample::select(vec!["m1", "m2"]).prop_map(|v| ("model_override", json!(v))),
        Just(("transcription_provider_override", json!("deepgram"))),
        any::<bool>().prop_map(|v| ("recording_enabled_override", json!(v))),
    ]
}

prop_compose! {
    fn any_binding()(
        account in prop::option::weighted(0.3, prop::sample::select(vec!["A1", "A2"])),
        event in prop::option::weighted(0.3, prop::sample::select(vec!["E1", "e2"])),
        number in prop::option::weighted(0.2, prop::sample::select(vec![
            "f1a2b3c4-0001-4000-8000-000000000001", "f1a2b3c4-0002-4000-8000-000000000002"])),
        conditions in prop::collection::vec(any_condition(), 0..2),
        effects in prop::collection::vec(any_effect(), 0..3),
        age in 0..2_u8,
    ) -> Value {
        let rules: serde_json::Map<String, Value> =
            conditions.into_iter().chain(effects).map(|(key, value)| (key.to_owned(), value)).collect();
        json!({"account_ref": account, "event_type": event, "phone_number_id": number,
               "conditions_json": rules, "created_at": format!("202{age}-01-01T00:00:00+00:00")})
    }
}

prop_compose! {
    fn any_prompt()(
        scope in prop::sample::select(vec!["global", "event_type", "account", "phone-number"]),
        priority in 0..3_i32,
        active in prop::option::weighted(0.9, Just(true)),
        written in prop::bool::weighted(0.9),
        bindings in prop::collection::vec(any_binding(), 0..4),
        age in 0..2_u8,
    ) -> (Value, Vec<Value>) {
        let mut prompt = prompt(0, scope, priority, json!([]));
        prompt["active"] = json!(active.unwrap_or(false));
        prompt["created_at"] = json!(format!("202{age}-01-01T00:00:00+00:00"));
        if !written {
            prompt["version"] = json!(null);
        }
        (prompt, bindings)
    }
}

prop_compose! {
    fn any_call()(
        account in prop::option::of(prop::sample::select(vec!["A1", "a1", "A2"])),
        event in prop::option::of(prop::sample::select(vec!["E1", "E2", "e1"])),
        zones in prop::collection::vec(prop::sample::select(vec!["Z1", "z2", "3.0", "1", ""]), 0..3),
        outside in prop::option::weighted(0.2, prop::sample::select(vec!["true", "0", "maybe"])),
        vip in prop::option::of(prop::sample::select(vec!["TRUE", "0"])),
    ) -> Call {
        let mut said: Vec<(&str, &str)> = zones.into_iter().map(|zone| ("zone", zone)).collect();
        said.extend(account.map(|v| ("account_ref", v)));
        said.extend(event.map(|v| ("event_type", v)));
        said.extend(outside.map(|v| ("outside_business_hours", v)));
        said.extend(vip.map(|v| ("vip", v)));
        call(&said)
    }
}

/// Ids in a mixed order, so that no order of the list is the right one by itself.
fn documents(prompts: &[(Value, Vec<Value>)]) -> Value {
    let mixed = |n: usize| u8::try_from(n * 37 % 101).unwrap();
    let mut list = Vec::new();
    for (n, (prompt, bindings)) in prompts.iter().enumerate() {
        let mut prompt = prompt.clone();
        prompt["id"] = json!(format!(
            "00000000-0000-4000-8000-0000000000{:02x}",
            mixed(n)
        ));
        let bindings: Vec<_> = bindings
            .iter()
            .enumerate()
            .map(|(m, binding)| {
                let mut binding = binding.clone();
                let id = mixed(n * 4 + m);
                binding["id"] = json!(format!("00000000-0000-4000-8002-0000000000{id:02x}"));
                binding
            })
            .collect();
        prompt["bindings"] = json!(bindings);
        list.push(prompt);
    }
    json!(list)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn every_call_gets_what_the_design_says(
        prompts in prop::collection::vec(any_prompt(), 0..6),
        call in any_call(),
        is_open in any::<bool>(),
        has_hours in prop::bool::weighted(0.8),
    ) {
        let mut tenant = tenant_document(ACME);
        tenant["prompts"] = documents(&prompts);
        if !has_hours {
            tenant["settings"]["business_hours"] = json!(null);
        }
        let number = number_document(ACME_NUMBER);
        let record = admit_tenant(&tenant);
        prop_assert_eq!(&record.faults, &[]);
        let at = if is_open { open() } else { closed() };
        let expected = naive(&admit_number(&number).row.unwrap(), &record.bundle, &call, at);
        prop_assert_eq!(selected(&profile_of(&number, &tenant), &call, at), expected);
    }

    #[test]
    fn the_order_in_which_rows_are_listed_decides_nothing(
        prompts in prop::collection::vec(any_prompt(), 0..6),
        call in any_call(),
    ) {
        let number = number_document(ACME_NUMBER);
        let mut tenant = tenant_document(ACME);
        tenant["prompts"] = documents(&prompts);
        let once = profile_of(&number, &tenant);
        tenant["prompts"].as_array_mut().unwrap().reverse();
        for prompt in tenant["prompts"].as_array_mut().unwrap() {
            prompt["bindings"].as_array_mut().unwrap().reverse();
        }
        let again = profile_of(&number, &tenant);
        prop_assert_eq!(selected(&once, &call, open()), selected(&again, &call, open()));
        let priorities: Vec<_> = once.tenant.prompts.iter().map(|prompt| prompt.priority).collect();
        prop_assert!(priorities.is_sorted_by(|a, b| a >= b));
    }
}
