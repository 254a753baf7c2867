use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::sample::{
    ACME_NUMBER, SECRET, STACK_BYTES, SUSPENDED_NUMBER, acme, binding, call, closed, open, profile,
    prompt,
};
use crate::select::select;

fn explained(profile: &Profile, said: &[(&str, &str)], at: Timestamp) -> Value {
    let explained = explain(profile, &call(said), at, STACK_BYTES);
    serde_json::from_slice(&explained.body).unwrap()
}

/// Why the one binding of a global prompt does or does not match.
fn why(columns: Value, said: &[(&str, &str)], at: Timestamp) -> String {
    let profile = acme(|document| {
        document["prompts"] = json!([prompt(1, "global", 0, json!([binding(1, columns)]))]);
    });
    let why = explained(&profile, said, at)["prompts"][0]["bindings"][0]["why"].clone();
    let id = "binding 00000000-0000-4000-8002-000000000001: ";
    why.as_str().unwrap().strip_prefix(id).unwrap().to_owned()
}

#[test]
fn a_binding_says_the_first_thing_that_does_not_match() {
    let zones = json!({"conditions_json": {"zone_in": ["Z1", "Z2"]}});
    assert_eq!(
        why(zones.clone(), &[], open()),
        "condition zone_in [Z1, Z2] does not hold: the call has no zone"
    );
    assert_eq!(
        why(zones.clone(), &[("zone", "Z3")], open()),
        "condition zone_in [Z1, Z2] does not hold: the call's zone is Z3"
    );
    assert_eq!(
        why(zones, &[("zone", "Z3"), ("zone", "Z4")], open()),
        "condition zone_in [Z1, Z2] does not hold: the call's zone are Z3, Z4"
    );
    assert_eq!(
        why(
            json!({"account_ref": "A", "event_type": "E"}),
            &[("account_ref", "B")],
            open()
        ),
        "account_ref A is not the call's: the call's account_ref is B"
    );
    assert_eq!(
        why(json!({"event_type": "E"}), &[], open()),
        "event_type E is not the call's: the call has no event_type"
    );
    assert_eq!(
        why(
            json!({"phone_number_id": "f1a2b3c4-0002-4000-8000-000000000002"}),
            &[],
            open()
        ),
        "phone_number_id is not the called number's"
    );
    let outside = json!({"conditions_json": {"outside_business_hours": true}});
    assert_eq!(
        why(outside.clone(), &[], open()),
        "condition outside_business_hours = true does not hold: the tenant is open at this local time"
    );
    assert_eq!(
        why(
            outside.clone(),
            &[("outside_business_hours", "0")],
            closed()
        ),
        "condition outside_business_hours = true does not hold: the call's outside_business_hours is 0"
    );
    assert_eq!(
        why(outside, &[], closed()),
        "matches and acts, the most special that does"
    );
}

#[test]
fn a_prompt_says_why_it_is_chosen_or_not() {
    let mut inactive = prompt(1, "global", 9, json!([]));
    inactive["active"] = json!(false);
    let mut unwritten = prompt(2, "global", 8, json!([]));
    unwritten["version"] = json!(null);
    let bad = json!([binding(1, json!({"conditions_json": {"x": []}}))]);
    let profile = acme(|document| {
        document["prompts"] = json!([
            inactive,
            unwritten,
            prompt(3, "global", 7, json!([])),
            prompt(
                4,
                "global",
                6,
                json!([binding(2, json!({"account_ref": "A"}))])
            ),
            prompt(5, "global", 5, bad),
            prompt(6, "account", 4, json!([])),
            prompt(
                7,
                "account",
                3,
                json!([binding(3, json!({"event_type": "E"}))])
            ),
            prompt(
                8,
                "event_type",
                2,
                json!([
                    binding(4, json!({"event_type": "E"})),
                    binding(5, json!({}))
                ])
            ),
        ]);
    });
    let page = explained(&profile, &[("event_type", "e")], open());
    let prompts = page["prompts"].as_array().unwrap();
    let whys: Vec<_> = prompts
        .iter()
        .map(|prompt| prompt["why"].as_str().unwrap())
        .collect();
    assert_eq!(
        whys,
        [
            "not chosen: it is not active",
            "not chosen: it has no version",
            "chosen: it is global and has no bindings",
            "not chosen: none of its bindings matches",
            "not chosen: all of its bindings are bad rows, which never match",
            "not chosen: its scope is account and it has no binding",
            "not chosen: its scope is account and no binding that matches sets account_ref",
            "chosen: binding 00000000-0000-4000-8002-000000000004 matches",
        ]
    );
    let chosen: Vec<_> = prompts
        .iter()
        .map(|prompt| prompt["chosen"].as_bool().unwrap())
        .collect();
    assert_eq!(
        chosen,
        [false, false, true, false, false, false, false, true]
    );
    assert_eq!(prompts[4]["bindings_left_out"], 1);
    let other = &prompts[7]["bindings"][1];
    assert_eq!(
        (&other["matches"], &other["acts"]),
        (&json!(true), &json!(false))
    );
    assert!(
        other["why"]
            .as_str()
            .unwrap()
            .ends_with("matches, but does not set event_type")
    );
    assert_eq!(page["faults"][0]["table"], "prompt_bindings");
}

#[test]
fn a_prompt_that_no_longer_fits_says_so() {
    let profile = acme(|document| {
        document["prompts"] = json!([
            prompt(1, "global", 1, json!([])),
            prompt(2, "global", 0, json!([]))
        ]);
    });
    let explained = explain(&profile, &call(&[]), open(), 3);
    let page: Value = serde_json::from_slice(&explained.body).unwrap();
    assert_eq!(page["prompts"][0]["chosen"], true);
    assert_eq!(page["prompts"][1]["chosen"], false);
    assert_eq!(
        page["prompts"][1]["why"],
        "left out: it applies, but does not fit into limits.stack_bytes after those before it"
    );
}

#[test]
fn each_field_names_the_row_and_column_it_came_from() {
    let profile = profile(ACME_NUMBER);
    let page = explained(&profile, &[("account_ref", "ACME-001234")], open());
    let language = &page["fields"]["language"];
    let acting = &profile.tenant.prompts[2].bindings[0];
    assert_eq!(language["value"], "es-AR");
    assert_eq!(language["table"], "prompt_bindings");
    assert_eq!(language["id"], "b1d00002-0002-4002-8002-000200020002");
    assert_eq!(language["column"], "language_override");
    assert_eq!(language["revision"], acting.revision.to_string());
    let timezone = &page["fields"]["timezone"];
    assert_eq!(timezone["table"], "tenant_phone_numbers");
    assert_eq!(timezone["column"], "timezone");
    let model = &page["fields"]["model"];
    assert_eq!(
        (&model["table"], &model["value"]),
        (&json!("tenant_settings"), &json!("gpt-4o-mini"))
    );
    assert_eq!(model["revision"].as_str().unwrap().len(), 16);
    assert_eq!(page["fields"]["recording_enabled"]["value"], true);
    assert_eq!(page["revision"], profile.revision().to_string());
    assert_eq!(page["at"], "2026-11-23T13:45:00+00:00");
    assert_eq!(page["status"], "ok");
}

#[test]
fn the_reckoning_of_business_hours_is_told_at_the_numbers_own_timezone() {
    let profile = profile(ACME_NUMBER);
    let page = explained(&profile, &[], closed());
    assert_eq!(
        page["business_hours"],
        json!({"value": "closed", "timezone": "America/Argentina/Buenos_Aires",
               "local_time": "2026-11-22T10:45:00-03:00", "outside_business_hours": true,
               "why": "the tenant is closed at this local time"})
    );
    let page = explained(&profile, &[("outside_business_hours", "false")], closed());
    assert_eq!(page["business_hours"]["outside_business_hours"], false);
}

#[test]
fn a_refused_call_is_explained_all_the_same() {
    let profile = profile(SUSPENDED_NUMBER);
    let explained = explain(&profile, &call(&[]), open(), STACK_BYTES);
    assert_eq!(explained.refusal, Some(Refusal::TenantSuspended));
    let page: Value = serde_json::from_slice(&explained.body).unwrap();
    assert_eq!(page["status"], "tenant_suspended");
    assert_eq!(page["message"], "the tenant is not active");
    assert_eq!(page["tenant"]["status"], "suspended");
}

#[test]
fn credentials_are_named_with_their_state_and_never_shown_nor_is_prompt_content() {
    let profile = acme(|document| {
        document["credentials"].as_array_mut().unwrap().push(json!({
            "id": "00000000-0000-4000-8003-000000000001", "provider": "azure", "name": "b",
            "bytes": 1, "data_ciphertext": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHyg="}));
    });
    let body = explain(&profile, &call(&[]), open(), STACK_BYTES).body;
    let page: Value = serde_json::from_slice(&body).unwrap();
    let states: Vec<_> = page["credentials"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["status"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["withheld", "ok"]);
    assert!(
        page["credentials"][0]["why"]
            .as_str()
            .unwrap()
            .contains("keys.raw")
    );
    let text = String::from_utf8(body).unwrap();
    for hidden in [SECRET, "AAECAwQFBg", "sol rojo", "Actúa como agente"] {
        assert!(!text.contains(hidden), "{hidden}");
    }
}

#[test]
fn the_bindings_listed_are_bounded_and_the_rest_is_counted() {
    let many = |first: u8| -> Vec<_> {
        (0..240)
            .map(|n| binding(n, json!({"account_ref": first.to_string()})))
            .collect()
    };
    let prompts: Vec<_> = (0..6)
        .map(|n| prompt(n, "account", 0, json!(many(n))))
        .collect();
    let profile = acme(|document| document["prompts"] = json!(prompts));
    let page = explained(&profile, &[], open());
    let listed: Vec<_> = page["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| {
            (
                prompt["bindings"].as_array().unwrap().len(),
                prompt["bindings_not_listed"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        listed,
        [(240, 0), (240, 0), (240, 0), (240, 0), (40, 200), (0, 240)]
    );
}

#[test]
fn what_the_call_says_is_repeated_only_so_far() {
    let long = "z".repeat(256);
    let zones: Vec<_> = (0..50).map(|_| ("zone", long.as_str())).collect();
    let why = why(
        json!({"conditions_json": {"zone_in": vec!["y".repeat(200); 100]}}),
        &zones,
        open(),
    );
    assert!(why.len() < 500, "{}", why.len());
}

fn has_null(json: &Value) -> bool {
    match json {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(members) => members.values().any(has_null),
        _ => false,
    }
}

proptest! {
    #[test]
    fn an_explanation_agrees_with_the_answer_and_is_never_null(
        account in prop::sample::select(vec!["", "ACME-001234", "other"]),
        event in prop::sample::select(vec!["", "door_open", "DOOR_OPEN"]),
        zone in prop::sample::select(vec!["Z1", "Z9"]),
        limit in prop::sample::select(vec![0_usize, 80, 200, 1000]),
        is_open in any::<bool>(),
    ) {
        let profile = profile(ACME_NUMBER);
        let call = call(&[("account_ref", account), ("event_type", event), ("zone", zone)]);
        let at = if is_open { open() } else { closed() };
        let page: Value = serde_json::from_slice(&explain(&profile, &call, at, limit).body).unwrap();
        prop_assert!(!has_null(&page));
        let selection = select(&profile, &call, at, limit).unwrap();
        let chosen: Vec<_> = page["prompts"].as_array().unwrap().iter()
            .filter(|prompt| prompt["chosen"] == true)
            .map(|prompt| prompt["id"].as_str().unwrap().to_owned()).collect();
        let ids: Vec<_> = selection.prompts.iter().map(|chosen| chosen.prompt.id.to_string()).collect();
        prop_assert_eq!(chosen, ids);
        let acting = selection.prompts.iter().filter(|chosen| chosen.acting.is_some()).count();
        let acts = page["prompts"].as_array().unwrap().iter()
            .flat_map(|prompt| prompt["bindings"].as_array().unwrap())
            .filter(|binding| binding["acts"] == true).count();
        prop_assert_eq!(acting, acts);
    }
}
