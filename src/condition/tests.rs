#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn rules(json: Value) -> Rules {
    compile(&json).unwrap()
}

#[track_caller]
fn refused(json: Value) -> String {
    compile(&json).unwrap_err().to_string()
}

/// A call with these attributes; `account_ref` and `event_type` go where they belong.
fn call(attributes: &[(&str, &str)]) -> Call {
    let mut call = Call::default();
    for (name, value) in attributes {
        match *name {
            "account_ref" => call.account_ref = Some((*value).to_owned()),
            "event_type" => call.event_type = Some((*value).to_owned()),
            _ => call
                .attributes
                .entry((*name).to_owned())
                .or_default()
                .push((*value).to_owned()),
        }
    }
    call
}

/// Whether the rules hold of a call with these attributes during business hours.
#[track_caller]
fn holds(json: Value, attributes: &[(&str, &str)]) -> bool {
    rules(json).holds(&call(attributes), false)
}

#[test]
fn no_conditions_hold_of_every_call() {
    assert!(holds(json!({}), &[]));
    assert!(holds(json!(null), &[("zone", "Z1")]));
    assert_eq!(rules(json!(null)), Rules::default());
}

#[test]
fn every_condition_must_hold() {
    let both = json!({"zone": "Z1", "vip": true});
    assert!(holds(both.clone(), &[("zone", "Z1"), ("vip", "1")]));
    assert!(!holds(both.clone(), &[("zone", "Z1"), ("vip", "0")]));
    assert!(!holds(both, &[("zone", "Z2"), ("vip", "1")]));
}

#[test]
fn strings_compare_trimmed_and_ignoring_ascii_case() {
    assert!(holds(
        json!({"zone": " Zone-A\t"}),
        &[("zone", "\u{a0}zONE-a ")]
    ));
    assert!(!holds(json!({"zone": "Zone-A"}), &[("zone", "zone -a")]));
    assert!(
        !holds(json!({"zone": "Ñ"}), &[("zone", "ñ")]),
        "only ASCII letters have two cases"
    );
    assert!(
        !holds(json!({"zone": "1"}), &[("zone", "1.0")]),
        "a string is no number"
    );
    assert!(
        !holds(json!({"zone": "true"}), &[("zone", "1")]),
        "a string is no boolean"
    );
    assert!(
        holds(json!({"zone": ""}), &[("zone", " ")]),
        "an empty value is a value"
    );
}

#[test]
fn a_boolean_accepts_true_false_one_and_zero() {
    for (text, is) in [
        ("true", Some(true)),
        (" TRUE ", Some(true)),
        ("1", Some(true)),
        ("False", Some(false)),
        (" 0", Some(false)),
        ("yes", None),
        ("1.0", None),
        ("01", None),
        ("", None),
    ] {
        assert_eq!(
            holds(json!({"vip": true}), &[("vip", text)]),
            is == Some(true),
            "{text}"
        );
        assert_eq!(
            holds(json!({"vip": false}), &[("vip", text)]),
            is == Some(false),
            "{text}"
        );
    }
}

#[test]
fn a_number_equals_its_own_spelling_in_the_column() {
    for text in [
        "123456789012345678901234567890123456789012345",
        "0.1234567890123456789e-300",
        "1.7976931348623157e308",
        "-0",
        "1E5",
    ] {
        let json = serde_json::from_str(&format!("{{\"level\":{text}}}")).unwrap();
        assert!(holds(json, &[("level", text)]), "{text}");
    }
}

#[test]
fn numbers_compare_as_numbers() {
    for text in ["7", " 7 ", "07", "+7", "7.0", "7.", "70e-1", "0.7E1"] {
        assert!(holds(json!({"n": 7}), &[("n", text)]), "{text}");
        assert!(holds(json!({"n": 7.0}), &[("n", text)]), "{text}");
    }
    for text in [
        "", "8", "-7", "7a", "7 0", "0x7", "7,0", "seven", "nan", "inf", "true",
    ] {
        assert!(!holds(json!({"n": 7}), &[("n", text)]), "{text}");
    }
    assert!(holds(json!({"n": 0.1}), &[("n", ".1")]));
    assert!(holds(json!({"n": -2.5}), &[("n", "-2.50")]));
    assert!(holds(json!({"n": 0}), &[("n", "-0.0")]));
    assert!(!holds(json!({"n": 1}), &[("n", "true")]));
}

#[test]
fn large_integers_compare_exactly() {
    let past_doubles = json!({"n": 9_007_199_254_740_993_u64});
    assert!(holds(past_doubles.clone(), &[("n", "9007199254740993")]));
    assert!(!holds(past_doubles, &[("n", "9007199254740992")]));
    let most = json!({"n": u64::MAX});
    assert!(holds(most.clone(), &[("n", "18446744073709551615")]));
    assert!(!holds(most, &[("n", "18446744073709551616")]));
    assert!(holds(
        json!({"n": i64::MIN}),
        &[("n", "-9223372036854775808")]
    ));
    assert!(!holds(
        json!({"n": i64::MIN}),
        &[("n", "-9223372036854775809")]
    ));
    assert!(!holds(
        json!({"n": 9_007_199_254_740_992.0}),
        &[("n", "9007199254740993")]
    ));
    assert!(holds(json!({"n": 1e300}), &[("n", "1e300")]));
    assert!(holds(
        json!({"n": 1e40}),
        &[("n", &format!("1{}", "0".repeat(40)))]
    ));
    assert!(!holds(json!({"n": 1e40}), &[("n", "1e999")]));
}

#[test]
fn a_missing_attribute_makes_the_condition_false() {
    for json in [
        json!({"zone": ""}),
        json!({"zone": false}),
        json!({"zone": 0}),
        json!({"zone_in": ["Z1", ""]}),
        json!({"zone_not_in": ["Z1"]}),
        json!({"zone_not_in": []}),
        json!({"account_ref": ""}),
        json!({"account_ref_not_in": ["A"]}),
        json!({"event_type_not_in": ["door_open"]}),
        json!({"outside_business_hours_in": [true, false]}),
    ] {
        let mut call = call(&[("other", "Z2")]);
        assert!(!rules(json.clone()).holds(&call, false), "{json}");
        call.attributes.insert("zone".to_owned(), vec![]);
        assert!(!rules(json.clone()).holds(&call, false), "{json}");
    }
}

#[test]
fn an_attribute_is_in_a_list_that_has_one_of_its_values() {
    let list = json!({"zone_in": ["Z1", 7, true]});
    for given in ["z1", "7.0", "TRUE", "1"] {
        assert!(holds(list.clone(), &[("zone", given)]), "{given}");
    }
    for given in ["Z2", "8", "false", "0"] {
        assert!(!holds(list.clone(), &[("zone", given)]), "{given}");
    }
    assert!(!holds(json!({"zone_in": []}), &[("zone", "Z1")]));
}

#[test]
fn an_attribute_is_not_in_a_list_that_has_none_of_its_values() {
    let list = json!({"zone_not_in": ["Z1", 7, true]});
    for given in ["Z2", "8", "false", "0"] {
        assert!(holds(list.clone(), &[("zone", given)]), "{given}");
    }
    for given in ["z1", "7.0", "TRUE", "1"] {
        assert!(!holds(list.clone(), &[("zone", given)]), "{given}");
    }
    assert!(holds(json!({"zone_not_in": []}), &[("zone", "Z1")]));
}

#[test]
fn any_value_of_a_repeated_attribute_counts() {
    let z1_z2 = [("zone", "Z1"), ("zone", "Z2")];
    assert!(holds(json!({"zone": "Z2"}), &z1_z2));
    assert!(holds(json!({"zone_in": ["Z2", "Z3"]}), &z1_z2));
    assert!(!holds(json!({"zone_in": ["Z3"]}), &z1_z2));
    assert!(!holds(json!({"zone_not_in": ["Z2"]}), &z1_z2));
    assert!(holds(json!({"zone_not_in": ["Z3"]}), &z1_z2));
}

#[test]
fn account_and_event_are_tested_under_their_names() {
    let acme = [("account_ref", "ACME-1"), ("event_type", "door_open")];
    assert!(holds(
        json!({"account_ref": "acme-1", "event_type_in": ["DOOR_OPEN"]}),
        &acme
    ));
    assert!(!holds(json!({"account_ref_not_in": ["ACME-1"]}), &acme));
    let mut elsewhere = Call::default();
    elsewhere
        .attributes
        .insert("account_ref".to_owned(), vec!["ACME-1".to_owned()]);
    assert!(!rules(json!({"account_ref": "ACME-1"})).holds(&elsewhere, false));
}

#[test]
fn business_hours_are_the_callers_word_or_else_the_tenants() {
    for wanted in [true, false] {
        let rules = rules(json!({"outside_business_hours": wanted}));
        for outside in [true, false] {
            assert_eq!(rules.holds(&Call::default(), outside), wanted == outside);
            for (given, says) in [
                ("true", Some(true)),
                ("1", Some(true)),
                (" False", Some(false)),
                ("maybe", None),
                ("", None),
            ] {
                let call = call(&[("outside_business_hours", given)]);
                assert_eq!(
                    rules.holds(&call, outside),
                    says == Some(wanted),
                    "{given} {wanted}"
                );
            }
        }
    }
}

#[test]
fn a_name_may_look_like_a_suffix() {
    assert!(holds(json!({"in": "x"}), &[("in", "x")]));
    assert!(holds(json!({"not_in": ["x"]}), &[("not", "x")]));
    assert!(holds(json!({"override": "x"}), &[("override", "x")]));
    assert!(holds(
        json!({"zone_not_in_in": ["x"]}),
        &[("zone_not_in", "x")]
    ));
}

#[test]
fn effects_are_read_and_are_no_conditions() {
    let all = rules(json!({
        "language_override": "pt-BR", "voice_override": "", "timezone_override": "america/SANTIAGO",
        "model_override": "gpt-4o", "transcription_provider_override": "google",
        "recording_enabled_override": false,
    }));
    assert!(all.conditions.is_empty());
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        all.effects,
        Effects {
            language: text("pt-BR"),
            voice: text(""),
            timezone: text("America/Santiago"),
            model: text("gpt-4o"),
            transcription_provider: text("google"),
            recording_enabled: Some(false),
        }
    );
    assert_eq!(rules(json!({"zone": "Z1"})).effects, Effects::default());
}

#[test]
fn an_effect_must_fit_its_column() {
    for (key, chars) in [
        ("voice_override", 50),
        ("model_override", 100),
        ("transcription_provider_override", 50),
    ] {
        rules(json!({key: "é".repeat(chars)}));
        let error = refused(json!({key: "é".repeat(chars + 1)}));
        assert_eq!(
            error,
            format!("conditions_json.{key}: must have at most {chars} characters")
        );
    }
    rules(json!({"language_override": "es-AR-1abc"}));
    assert!(refused(json!({"language_override": "es-Latn-AR-x"})).contains("at most 10"));
    assert!(refused(json!({"timezone_override": "x".repeat(51)})).contains("at most 50"));
}

#[test]
fn what_is_not_understood_is_refused_with_its_key() {
    let scalar = "must be a string, a number or a boolean";
    let list = "must be a list of strings, numbers or booleans";
    let language = "must be a BCP 47 language tag such as es-AR";
    let zone = "must be an IANA timezone such as America/Santiago";
    let control = "has a control character; remove it";
    for (key, value, error) in [
        ("zone", json!(null), scalar),
        ("zone", json!({}), scalar),
        ("zone", json!({"not": "Z1"}), scalar),
        ("zone", json!(["Z1"]), scalar),
        ("zone", json!("Z\u{0}1"), control),
        (
            "zone",
            json!("x".repeat(257)),
            "has a string of more than 256 bytes",
        ),
        ("zone_in", json!("Z1"), list),
        ("zone_in", json!(null), list),
        ("zone_in", json!({}), list),
        ("zone_in", json!([null]), list),
        ("zone_in", json!(["Z1", ["Z2"]]), list),
        ("zone_in", json!(["Z1", "a\nb"]), control),
        ("zone_not_in", json!([{}]), list),
        ("zone_not_in", json!(true), list),
        ("zone_in", json!(vec![1; 1001]), "has more than 1000 values"),
        ("", json!("x"), "must name an attribute"),
        ("_in", json!(["x"]), "must name an attribute"),
        ("_not_in", json!(["x"]), "must name an attribute"),
        (
            "outside_business_hours",
            json!("true"),
            "must be true or false",
        ),
        ("outside_business_hours", json!(1), "must be true or false"),
        (
            "outside_business_hours",
            json!(null),
            "must be true or false",
        ),
        (
            "recording_enabled_override",
            json!("true"),
            "must be true or false",
        ),
        (
            "recording_enabled_override",
            json!(null),
            "must be true or false",
        ),
        ("voice_override", json!(null), "must be a string"),
        ("voice_override", json!(1), "must be a string"),
        ("voice_override", json!("a\u{7f}"), control),
        ("language_override", json!(""), language),
        ("language_override", json!("es_AR"), language),
        ("language_override", json!("es-"), language),
        ("language_override", json!(" es"), language),
        ("timezone_override", json!(""), zone),
        ("timezone_override", json!("Mars/Olympus"), zone),
        ("timezone_override", json!("Etc/Unknown"), zone),
        ("timezone_override", json!("<-03>3"), zone),
        ("timezone_override", json!("../../etc/passwd"), zone),
        ("timezone_override", json!("-03:00"), zone),
    ] {
        assert_eq!(
            refused(json!({key: value})),
            format!("conditions_json.{key}: {error}")
        );
    }
    for key in [
        "_override",
        "zone_override",
        "Voice_override",
        "recording_override",
    ] {
        let error = refused(json!({key: "x"}));
        assert!(
            error.contains(key) && error.contains("must be language_override"),
            "{error}"
        );
    }
    for top in [json!([]), json!("{}"), json!(true), json!(0)] {
        assert_eq!(refused(top), "conditions_json: must be an object");
    }
    assert_eq!(
        refused(json!({"a\u{1b}b": 1})),
        format!("conditions_json.a\\u{{1b}}b: {control}")
    );
    assert!(refused(json!({"x".repeat(129): 1})).contains("more than 128 bytes"));
}

#[test]
fn keys_and_lists_have_limits() {
    let keys =
        |count: usize| Value::Object((0..count).map(|key| (key.to_string(), json!(1))).collect());
    assert_eq!(rules(keys(MAX_KEYS)).conditions.len(), MAX_KEYS);
    assert!(refused(keys(MAX_KEYS + 1)).contains("more than 64 keys"));
    rules(json!({"zone_in": vec![1; MAX_LIST]}));
    rules(json!({"zone": "x".repeat(MAX_VALUE_BYTES)}));
    rules(json!({"x".repeat(MAX_KEY_BYTES): 1}));
}

#[test]
fn a_condition_is_shown_by_its_key_and_values() {
    for (json, shown) in [
        (json!({"zone_in": ["Z1", "Z2"]}), "zone_in [Z1, Z2]"),
        (
            json!({"zone_not_in": [1, 2.5, true]}),
            "zone_not_in [1, 2.5, true]",
        ),
        (json!({"zone_in": []}), "zone_in []"),
        (json!({"account_ref": " A 1 "}), "account_ref = A 1"),
        (json!({"event_type": "door_open"}), "event_type = door_open"),
        (json!({"n": 1e300}), "n = 1e300"),
        (
            json!({"outside_business_hours": true}),
            "outside_business_hours = true",
        ),
    ] {
        assert_eq!(rules(json).conditions[0].to_string(), shown);
    }
}

#[test]
fn the_first_condition_that_fails_is_named() {
    let rules = rules(json!({"a": 1, "b": 2, "c": 3}));
    let failing = |attributes: &[(&str, &str)]| {
        rules
            .first_failing(&call(attributes), false)
            .map(Condition::to_string)
    };
    assert_eq!(
        failing(&[("a", "1"), ("b", "0"), ("c", "0")]),
        Some("b = 2".to_owned())
    );
    assert_eq!(failing(&[("a", "1"), ("b", "2"), ("c", "3")]), None);
}

/// The rules a second time: straight from the JSON on every question, everything copied, numbers
/// compared as decimal text.
mod naive {
    use super::*;

    /// None when the rules are invalid.
    pub(super) fn holds(json: &Value, call: &Call, outside: bool) -> Option<bool> {
        let mut given = call.attributes.clone();
        given.remove("account_ref");
        given.remove("event_type");
        given.extend(
            call.account_ref
                .clone()
                .map(|v| ("account_ref".to_owned(), vec![v])),
        );
        given.extend(
            call.event_type
                .clone()
                .map(|v| ("event_type".to_owned(), vec![v])),
        );
        if json.is_null() {
            return Some(true);
        }
        let mut all = true;
        for (key, value) in json.as_object()? {
            if key.chars().any(char::is_control) {
                return None;
            }
            let parts: Vec<&str> = key.split('_').collect();
            let name = |suffix: usize| Some(parts[..parts.len() - suffix].join("_"));
            all &= match parts.as_slice() {
                [.., "override"] if parts.len() > 1 => effect(&name(1)?, value)?,
                ["outside", "business", "hours"] => {
                    let mut given = given.get(key).cloned().unwrap_or_default();
                    if given.is_empty() {
                        given.push(outside.to_string());
                    }
                    value.as_bool()?;
                    given.iter().any(|given| same(value, given))
                }
                [.., "not", "in"] if parts.len() > 2 => {
                    let found = find(&name(2)?, value.as_array()?, &given)?;
                    found.contains(&false) && !found.contains(&true)
                }
                [.., "in"] if parts.len() > 1 => {
                    find(&name(1)?, value.as_array()?, &given)?.contains(&true)
                }
                _ => find(key, std::slice::from_ref(value), &given)?.contains(&true),
            };
        }
        Some(all)
    }

    /// For each value of the attribute whether it is among those wanted.
    fn find(
        name: &str,
        wanted: &[Value],
        given: &BTreeMap<String, Vec<String>>,
    ) -> Option<Vec<bool>> {
        let known = wanted.iter().all(|value| match value {
            Value::String(text) => !text.trim().chars().any(char::is_control),
            value => value.is_number() || value.is_boolean(),
        });
        if name.is_empty() || !known {
            return None;
        }
        let given = given.get(name).cloned().unwrap_or_default();
        Some(
            given
                .iter()
                .map(|given| wanted.iter().any(|w| same(w, given)))
                .collect(),
        )
    }

    fn same(wanted: &Value, given: &str) -> bool {
        let given = given.trim().to_ascii_lowercase();
        match wanted {
            Value::Bool(true) => ["true", "1"].contains(&given.as_str()),
            Value::Bool(false) => ["false", "0"].contains(&given.as_str()),
            Value::String(text) => text.trim().to_ascii_lowercase() == given,
            number => decimal(&given) == decimal(&number.to_string().to_ascii_lowercase()),
        }
    }

    /// Sign, digits without zeros around them, and the power of ten of the last digit.
    fn decimal(text: &str) -> Option<(bool, String, i64)> {
        let (mantissa, exponent) = match text.split_once('e') {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let unsigned = mantissa.strip_prefix(['+', '-']).unwrap_or(mantissa);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit()) {
            return None;
        }
        let significant = digits.trim_end_matches('0');
        if significant.trim_start_matches('0').is_empty() {
            return Some((false, String::new(), 0));
        }
        let dropped = (digits.len() - significant.len()) as i64;
        let power = exponent - fraction.len() as i64 + dropped;
        Some((
            mantissa.starts_with('-'),
            significant.trim_start_matches('0').to_owned(),
            power,
        ))
    }

    /// True if this is an effect that can be; effects fail no call.
    fn effect(name: &str, value: &Value) -> Option<bool> {
        let fits = match (name, value) {
            ("recording_enabled", value) => value.is_boolean(),
            ("voice", Value::String(text)) => text.len() <= 50 && !text.contains(char::is_control),
            // RFC 5646, 2.1: a primary subtag of 2 to 8 letters is a tag, "nan" (Min Nan Chinese) included.
            ("language", Value::String(text)) => {
                let letters = text.bytes().all(|b| b.is_ascii_alphabetic());
                text == "es-AR" || (letters && (2..=8).contains(&text.len()))
            }
            ("timezone", Value::String(text)) => text == "Asia/Tokyo",
            _ => false,
        };
        fits.then_some(true)
    }
}

fn word() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "Z1",
        "z1",
        " Z1 ",
        "Z2",
        "",
        " ",
        "true",
        "TRUE",
        "false",
        "False ",
        "0",
        "1",
        "-1",
        "01",
        "+1",
        "1.0",
        "1e0",
        "10e-1",
        "-0.0",
        "2.5",
        "25e-1",
        "1.",
        ".5",
        "1e3",
        "1000",
        "nan",
        "inf",
        "9007199254740993",
        "9007199254740992",
        "18446744073709551615",
        "-9223372036854775808",
        "e",
    ]);
    prop_oneof![4 => words.prop_map(str::to_owned), 1 => any::<i64>().prop_map(|n| n.to_string())]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => word().prop_map(Value::from),
        2 => any::<bool>().prop_map(Value::from),
        2 => prop::sample::select(vec![
            json!(0), json!(1), json!(-1), json!(1.0), json!(-0.0), json!(2.5), json!(0.5),
            json!(1e3), json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992_u64),
            json!(u64::MAX), json!(i64::MIN), json!(1e300),
        ]),
        1 => any::<i64>().prop_map(Value::from),
    ]
}

fn list_of_scalars() -> impl Strategy<Value = Value> {
    prop::collection::vec(scalar(), 0..5).prop_map(Value::from)
}

fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        scalar(),
        list_of_scalars(),
        Just(json!(null)),
        Just(json!({})),
        Just(json!({"zone": "Z1"})),
        Just(json!([null])),
        Just(json!(["Z1", []])),
        Just(json!("a\u{1}b")),
        Just(json!("x".repeat(51))),
        Just(json!("es-AR")),
        Just(json!("Asia/Tokyo")),
    ]
}

const NAMES: [&str; 7] = [
    "zone",
    "vip",
    "n",
    "account_ref",
    "event_type",
    OUTSIDE_BUSINESS_HOURS,
    "in",
];

/// One key with a value that mostly suits it.
fn entry() -> impl Strategy<Value = (String, Value)> {
    let name = || prop::sample::select(NAMES.to_vec());
    let suffixed = |suffix: &'static str| name().prop_map(move |name| format!("{name}{suffix}"));
    let any_key = prop::sample::select(vec![
        "",
        "_in",
        "_not_in",
        "_override",
        "zone",
        "zone_in",
        "zone_not_in",
        "zone_override",
        "outside_business_hours",
        "language_override",
        "voice_override",
        "timezone_override",
        "recording_enabled_override",
        "a\u{1}",
        "not_in",
    ]);
    prop_oneof![
        6 => (suffixed(""), scalar()),
        6 => (suffixed("_in"), list_of_scalars()),
        6 => (suffixed("_not_in"), list_of_scalars()),
        4 => (Just("outside_business_hours".to_owned()), any::<bool>().prop_map(Value::from)),
        1 => (Just("voice_override".to_owned()), Just(json!("es-AR-Standard-A"))),
        2 => (any_key.prop_map(str::to_owned), anything()),
    ]
}

fn conditions() -> impl Strategy<Value = Value> {
    let object = prop::collection::vec(entry(), 0..4)
        .prop_map(|entries| Value::Object(entries.into_iter().collect()));
    prop_oneof![30 => object, 1 => anything()]
}

fn some_call() -> impl Strategy<Value = Call> {
    let attributes = prop::collection::btree_map(
        prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned),
        prop::collection::vec(word(), 0..3),
        0..7,
    );
    (
        prop::option::of(word()),
        prop::option::of(word()),
        attributes,
    )
        .prop_map(|(account_ref, event_type, attributes)| Call {
            account_ref,
            event_type,
            attributes,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn rules_hold_when_the_naive_ones_do(
        json in conditions(), call in some_call(), outside in any::<bool>(),
    ) {
        let ours = compile(&json).map(|rules| rules.holds(&call, outside));
        prop_assert_eq!(ours.clone().ok(), naive::holds(&json, &call, outside), "{:?}", ours);
    }

    #[test]
    fn rules_hold_when_each_key_alone_does(
        entries in prop::collection::btree_map(
            prop::sample::select(NAMES.to_vec()).prop_map(|name| format!("{name}_in")),
            list_of_scalars(), 0..4),
        call in some_call(),
    ) {
        let together = rules(json!(entries)).holds(&call, false);
        let apart = entries.iter().all(|(key, list)| rules(json!({key: list})).holds(&call, false));
        prop_assert_eq!(together, apart);
    }

    #[test]
    fn in_and_not_in_are_opposites_for_a_given_attribute(
        list in list_of_scalars(), values in prop::collection::vec(word(), 1..3),
    ) {
        let mut call = Call::default();
        call.attributes.insert("zone".to_owned(), values);
        let within = rules(json!({"zone_in": list})).holds(&call, false);
        let without = rules(json!({"zone_not_in": list})).holds(&call, false);
        prop_assert_ne!(within, without);
    }

    #[test]
    fn no_json_makes_it_panic(key in any::<String>(), suffix in "(_in|_not_in|_override)?", text in any::<String>()) {
        for value in [json!(&text), json!([&text]), json!({&text: &text})] {
            if let Err(err) = compile(&json!({format!("{key}{suffix}"): value})) {
                prop_assert!(!err.to_string().contains(char::is_control));
            }
        }
    }

    #[test]
    fn integers_of_any_spelling_equal_only_themselves(a in any::<i64>(), b in any::<i64>(), zeros in 0..4_usize) {
        let spell = |n: i64| {
            let sign = if n < 0 { "-" } else { "" };
            format!("{sign}{}{}", "0".repeat(zeros), n.unsigned_abs())
        };
        for other in [a, b, a.wrapping_add(1)] {
            let is = holds(json!({"n": a}), &[("n", &spell(other))]);
            prop_assert_eq!(is, other == a);
        }
    }
}
