#![allow(clippy::arithmetic_side_effects)] // an overflow fails the test

use serde_json::json;

use super::*;
use crate::sample::{
    ACME, ACME_NUMBER, LIMITS, admit_number, admit_tenant, binding, number_document, prompt,
    sealed, tenant_document, uuid,
};

/// The faults of a record as `table key reason last_good`.
fn told(faults: &[Fault]) -> Vec<String> {
    let told = |fault: &Fault| {
        let table = fault.table.as_str();
        let kept = if fault.last_good { "kept" } else { "left out" };
        format!("{table} {} {} {kept}", fault.key, fault.reason.as_str())
    };
    faults.iter().map(told).collect()
}

/// The example's number with one column changed, admitted after the good one.
fn number_after(column: &str, value: Value) -> NumberRecord {
    let good = admit_number(&number_document(ACME_NUMBER));
    let mut document = number_document(ACME_NUMBER);
    document[column] = value;
    number(ACME_NUMBER, &document.to_string(), Some(&good))
}

/// The example's tenant with its document changed, admitted after the good one.
fn tenant_after(change: impl FnOnce(&mut Value)) -> TenantRecord {
    let good = admit_tenant(&tenant_document(ACME));
    let mut document = tenant_document(ACME);
    change(&mut document);
    tenant(uuid(ACME), &document.to_string(), Some(&good), &LIMITS)
}

#[test]
fn the_example_rows_are_all_good() {
    let record = admit_tenant(&tenant_document(ACME));
    assert_eq!(record.faults, []);
    assert_eq!(record.bundle.prompts.len(), 4);
    assert_eq!(record.bundle.credentials.len(), 1);
    let version = record.bundle.prompts[0].version.as_ref().unwrap();
    assert_eq!(version.version, 2);
    let record = admit_number(&number_document(ACME_NUMBER));
    assert_eq!(record.faults, []);
    assert_eq!(record.row.unwrap().default_language, "es-AR");
}

#[test]
fn a_number_read_in_one_pass_is_the_one_that_is_read_column_by_column() {
    let mut read = 0;
    let mut usual = Usual::default();
    for (column, value) in [
        ("active", json!(null)),
        ("active", json!(false)),
        ("active", json!("yes")),
        ("label", json!(null)),
        ("label", json!("two \"words\"")),
        ("label", json!("a\u{7}b")),
        ("label", json!("a\u{85}b")),
        ("label", json!("25 °C")),
        ("label", json!("ñ".repeat(100))),
        ("label", json!("ñ".repeat(101))),
        ("label", json!(7)),
        ("default_voice", json!("es-AR-Standard-A")),
        ("default_language", json!("not a tag")),
        ("default_language", json!(null)),
        ("timezone", json!("america/argentina/buenos_aires")),
        ("timezone", json!("Mars/Phobos")),
        ("e164", json!("14155550100")),
        ("id", json!("x")),
        ("more", json!([1, {}])),
    ] {
        let mut document = number_document(ACME_NUMBER);
        document[column] = value;
        let document = document.to_string();
        let slow = Row::read(&document).and_then(|row| read_number(ACME_NUMBER, &row));
        let row: Option<Plain<'_>> = serde_json::from_str(&document).ok();
        match row.and_then(|row| plain_number(ACME_NUMBER, &row, &mut usual)) {
            Some(number) => {
                assert_eq!(Ok(number), slow, "{document}");
                read += 1;
            }
            // It leaves to the other what is written with an escape.
            None => assert!(slow.is_err() || document.contains('\\'), "{document}"),
        }
    }
    assert_eq!(read, 8);
}

#[test]
fn a_bad_column_of_a_number_keeps_the_last_good_row_and_names_the_column() {
    for (column, value, reason) in [
        ("timezone", json!("Mars/Phobos"), Reason::Timezone),
        (
            "timezone",
            json!("EST5EDT4,M3.2.0,M11.1.0"),
            Reason::Timezone,
        ),
        ("timezone", json!("<-03>3"), Reason::Timezone),
        ("timezone", json!("Local"), Reason::Timezone),
        ("timezone", json!("localtime"), Reason::Timezone),
        ("timezone", json!("posixrules"), Reason::Timezone),
        ("timezone", json!("Etc/Unknown"), Reason::Timezone),
        ("timezone", json!("../../etc/passwd"), Reason::Timezone),
        ("timezone", json!("-03:00"), Reason::Timezone),
        ("timezone", json!(""), Reason::Timezone),
        ("timezone", json!(null), Reason::Malformed),
        ("default_language", json!("es_AR"), Reason::Language),
        ("default_language", json!("español"), Reason::Language),
        ("default_language", json!(""), Reason::Language),
        ("default_language", json!("es-Latn-AR-x"), Reason::TooLong),
        ("label", json!("a\u{0}b"), Reason::ControlCharacter),
        ("label", json!("a\u{85}b"), Reason::ControlCharacter),
        ("label", json!("é".repeat(101)), Reason::TooLong),
        ("default_voice", json!("v".repeat(51)), Reason::TooLong),
        ("default_voice", json!("v\n"), Reason::ControlCharacter),
        ("e164", json!("+14155550101"), Reason::Number),
        ("active", json!("yes"), Reason::Malformed),
        ("id", json!("no uuid"), Reason::Malformed),
        ("tenant_id", json!(7), Reason::Malformed),
    ] {
        let record = number_after(column, value.clone());
        assert_eq!(record.faults.len(), 1, "{column} {value}");
        let fault = &record.faults[0];
        assert_eq!(
            (fault.reason, fault.last_good),
            (reason, true),
            "{column} {value}"
        );
        assert!(fault.detail.starts_with(column), "{}", fault.detail);
        assert_eq!(fault.key, ACME_NUMBER);
        assert_eq!(record.row, admit_number(&number_document(ACME_NUMBER)).row);
    }
}

#[test]
fn a_column_as_long_as_its_limit_is_good() {
    for (column, value) in [
        ("label", json!("é".repeat(100))),
        ("default_voice", json!("v".repeat(50))),
        ("default_language", json!("es-AR-x-ar")),
        ("timezone", json!("UTC")),
    ] {
        assert_eq!(number_after(column, value).faults, [], "{column}");
    }
}

#[test]
fn a_number_that_was_never_good_has_no_row() {
    let mut document = number_document(ACME_NUMBER);
    document["timezone"] = json!("Mars/Phobos");
    let record = admit_number(&document);
    assert_eq!(record.row, None);
    assert_eq!(
        told(&record.faults),
        ["tenant_phone_numbers +14155550100 timezone left out"]
    );
}

#[test]
fn a_number_of_an_adopted_table_that_is_no_e164_is_bad() {
    let mut document = number_document(ACME_NUMBER);
    for key in ["14155550100", "+0415555010", "+1 415", "sip:a\u{7}b@c"] {
        document["e164"] = json!(key);
        let record = admit_number(&document);
        assert!(record.row.is_none());
        assert!(record.faults[0].key.chars().all(|c| !c.is_control()));
    }
}

#[test]
fn the_last_good_row_of_a_number_does_not_follow_it_to_another_tenant() {
    let good = admit_number(&number_document(ACME_NUMBER));
    let mut document = number_document(ACME_NUMBER);
    document["timezone"] = json!("Mars/Phobos");
    document["tenant_id"] = json!("d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb");
    let record = number(ACME_NUMBER, &document.to_string(), Some(&good));
    assert_eq!(record.row, None);
    assert!(!record.faults[0].last_good);
}

#[test]
fn the_last_good_row_of_another_number_is_not_kept() {
    let good = admit_number(&number_document(ACME_NUMBER));
    assert_eq!(number("+14155550199", "{}", Some(&good)).row, None);
}

#[test]
fn a_bad_row_stays_at_the_last_good_one_however_often_it_is_read() {
    let once = number_after("timezone", json!("Mars/Phobos"));
    let mut document = number_document(ACME_NUMBER);
    document["timezone"] = json!("Mars/Deimos");
    let twice = number(ACME_NUMBER, &document.to_string(), Some(&once));
    assert_eq!(twice.row, once.row);
    assert_ne!(twice.hash, once.hash);
}

#[test]
fn a_zone_is_taken_in_any_case_and_kept_in_its_own_spelling() {
    let record = number_after("timezone", json!("america/argentina/buenos_aires"));
    assert_eq!(
        record.row.unwrap().timezone,
        "America/Argentina/Buenos_Aires"
    );
}

#[test]
fn null_where_there_is_a_default_means_the_default() {
    assert!(number_after("active", json!(null)).row.unwrap().active);
    let record = tenant_after(|document| {
        document["prompts"][0]["active"] = json!(null);
        document["prompts"][0]["priority"] = json!(null);
        document["settings"]["recording_enabled"] = json!(null);
        document["prompts"][1]["bindings"][0]["conditions_json"] = json!(null);
    });
    assert_eq!(record.faults, []);
    let prompt = &record.bundle.prompts[0];
    assert!(prompt.active);
    assert_eq!(prompt.priority, 0);
    assert!(!record.bundle.settings.unwrap().recording_enabled);
}

#[test]
fn a_bad_tenant_row_keeps_the_last_good_one_and_nothing_else_is_touched() {
    let record = tenant_after(|document| {
        document["tenant"]["name"] = json!("a\u{1b}[2J");
        document["settings"]["model"] = json!("gpt-5");
    });
    assert_eq!(
        told(&record.faults),
        [format!("tenants {ACME} control_character kept")]
    );
    assert_eq!(record.bundle.tenant.unwrap().name, "Seguridad ACME S.A.");
    assert_eq!(record.bundle.settings.unwrap().model, "gpt-5");
}

#[test]
fn a_tenant_may_have_any_status() {
    let record = tenant_after(|document| document["tenant"]["status"] = json!("en pausa"));
    assert_eq!(record.faults, []);
    assert!(!record.bundle.tenant.unwrap().is_active());
}

#[test]
fn a_document_of_another_tenant_changes_nothing_of_this_one() {
    let other = "d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb";
    let record = tenant(
        uuid(other),
        &tenant_document(ACME).to_string(),
        None,
        &LIMITS,
    );
    assert_eq!(record.bundle.tenant, None);
    assert_eq!(
        told(&record.faults),
        [format!("tenants {other} malformed left out")]
    );
    let good = admit_tenant(&tenant_document(ACME));
    let record = tenant(uuid(other), "{}", Some(&good), &LIMITS);
    assert_eq!(record.bundle, Bundle::default());
}

#[test]
fn bad_settings_keep_the_last_good_ones() {
    for (column, value, reason) in [
        (
            "business_hours",
            json!({"mon": ["9-18"]}),
            Reason::BusinessHours,
        ),
        ("business_hours", json!("always"), Reason::BusinessHours),
        ("model", json!("m".repeat(101)), Reason::TooLong),
        ("model", json!(null), Reason::Malformed),
        (
            "transcription_provider",
            json!("a\tb"),
            Reason::ControlCharacter,
        ),
        ("recording_enabled", json!(1), Reason::Malformed),
    ] {
        let record = tenant_after(|document| document["settings"][column] = value.clone());
        let reason = reason.as_str();
        assert_eq!(
            told(&record.faults),
            [format!("tenant_settings {ACME} {reason} kept")]
        );
        assert_eq!(
            record.bundle.settings,
            admit_tenant(&tenant_document(ACME)).bundle.settings
        );
    }
}

#[test]
fn settings_that_are_gone_are_gone() {
    let record = tenant_after(|document| document["settings"] = json!(null));
    assert_eq!(record.faults, []);
    assert_eq!(record.bundle.settings, None);
}

#[test]
fn a_bad_prompt_is_left_out_and_the_others_stay() {
    let id = "11111111-1111-4111-8111-111111111111";
    for (column, value, reason) in [
        ("scope", json!("planet"), Reason::Malformed),
        ("scope", json!(null), Reason::Malformed),
        ("name", json!("a\nb"), Reason::ControlCharacter),
        ("name", json!("n".repeat(256)), Reason::TooLong),
        ("priority", json!(1.5), Reason::Malformed),
        ("priority", json!(3_000_000_000_u32), Reason::Malformed),
        ("created_at", json!("infinity"), Reason::Malformed),
        ("bindings", json!("none"), Reason::Malformed),
    ] {
        let record = tenant_after(|document| document["prompts"][0][column] = value.clone());
        let reason = reason.as_str();
        assert_eq!(
            told(&record.faults),
            [format!("prompts {id} {reason} left out")],
            "{column}"
        );
        assert_eq!(record.bundle.prompts.len(), 3);
    }
}

#[test]
fn a_prompt_whose_highest_version_is_over_the_limit_is_left_out() {
    let version = "aaaaaaa2-aaaa-4aaa-8aaa-aaaaaaaaaaa2";
    for (content, bytes) in [
        (
            json!("x".repeat(LIMITS.prompt_bytes + 1)),
            LIMITS.prompt_bytes + 1,
        ),
        (json!(null), 1_048_577),
    ] {
        let record = tenant_after(|document| {
            document["prompts"][0]["version"]["content"] = content;
            document["prompts"][0]["version"]["bytes"] = json!(bytes);
        });
        assert_eq!(
            told(&record.faults),
            [format!("prompt_versions {version} too_long left out")]
        );
        assert_eq!(record.bundle.prompts.len(), 3);
        assert!(record.faults[0].detail.len() < 200);
    }
    let record = tenant_after(|document| {
        document["prompts"][0]["version"]["content"] = json!("x".repeat(LIMITS.prompt_bytes));
    });
    assert_eq!(record.faults, []);
}

#[test]
fn prompt_content_may_hold_control_characters() {
    let record = tenant_after(|document| {
        document["prompts"][0]["version"]["content"] = json!("uno\r\n\tdos\u{7}");
    });
    assert_eq!(record.faults, []);
}

#[test]
fn a_prompt_without_a_version_is_kept() {
    let record = tenant_after(|document| document["prompts"][0]["version"] = json!(null));
    assert_eq!(record.faults, []);
    assert_eq!(record.bundle.prompts[0].version, None);
}

#[test]
fn a_bad_binding_is_left_out_and_counted_in_its_prompt() {
    for (columns, reason) in [
        (json!({"conditions_json": {"zone": {}}}), "conditions"),
        (
            json!({"conditions_json": {"mood_override": "x"}}),
            "conditions",
        ),
        (
            json!({"conditions_json": {"timezone_override": "Mars/Phobos"}}),
            "conditions",
        ),
        (
            json!({"conditions_json": {"timezone_override": "localtime"}}),
            "conditions",
        ),
        (json!({"conditions_json": [1]}), "conditions"),
        (
            json!({"conditions_json": {"zone": "a\u{1}"}}),
            "control_character",
        ),
        (json!({"account_ref": "a\u{1}"}), "control_character"),
        (json!({"account_ref": "a".repeat(101)}), "too_long"),
        (json!({"event_type": "e".repeat(51)}), "too_long"),
        (json!({"phone_number_id": "+1415"}), "malformed"),
        (json!({"created_at": null}), "malformed"),
        (
            json!({"conditions_json": {"zone_in": vec!["z".repeat(250); 300]}}),
            "too_long",
        ),
    ] {
        let record = tenant_after(|document| {
            document["prompts"] =
                json!([prompt(1, "global", 0, json!([binding(1, columns.clone())]))]);
        });
        let id = "00000000-0000-4000-8002-000000000001";
        assert_eq!(
            told(&record.faults),
            [format!("prompt_bindings {id} {reason} left out")]
        );
        assert!(
            record.faults[0]
                .detail
                .contains("of prompt 00000000-0000-4000-8000-000000000001")
        );
        let prompt = &record.bundle.prompts[0];
        assert_eq!((prompt.bindings.len(), prompt.bindings_left_out), (0, 1));
    }
}

#[test]
fn what_no_parser_can_hold_costs_its_own_row_alone() {
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    for poison in [
        "1e400",
        "-1e400",
        deep.as_str(),
        r#""\ud800""#,
        r#"{"\udfff":1}"#,
    ] {
        let mut document = tenant_document(ACME);
        document["prompts"][1]["bindings"][0]["conditions_json"] = json!("POISON");
        let text = document
            .to_string()
            .replace("\"POISON\"", &format!("{{\"zone\":{poison}}}"));
        let record = tenant(uuid(ACME), &text, None, &LIMITS);
        let id = "b1d00001-0001-4001-8001-000100010001";
        assert_eq!(
            told(&record.faults),
            [format!("prompt_bindings {id} conditions left out")]
        );
        assert_eq!(record.bundle.prompts.len(), 4);
        assert_eq!(record.bundle.prompts[1].bindings.len(), 1);

        for (table, place) in [
            ("tenants", "/tenant/name"),
            ("tenant_settings", "/settings/business_hours"),
            ("tenant_credentials", "/credentials/0/data_ciphertext"),
            ("prompts", "/prompts/0/name"),
            ("prompt_versions", "/prompts/0/version/content"),
            ("prompts", "/prompts/0/version/id"),
        ] {
            let mut document = tenant_document(ACME);
            *document.pointer_mut(place).unwrap() = json!("POISON");
            let text = document.to_string().replace("\"POISON\"", poison);
            let record = tenant(uuid(ACME), &text, None, &LIMITS);
            assert_eq!(record.faults.len(), 1, "{place}");
            assert_eq!(record.faults[0].table.as_str(), table, "{place}");
        }
    }
}

#[test]
fn a_document_that_cannot_be_read_keeps_everything() {
    let good = admit_tenant(&tenant_document(ACME));
    for text in ["", "null", "[]", "{", "{\"tenant\":1", "\u{0}"] {
        let record = tenant(uuid(ACME), text, Some(&good), &LIMITS);
        assert_eq!(record.bundle, good.bundle);
        assert_eq!(
            told(&record.faults),
            [format!("tenants {ACME} malformed kept")]
        );
        let record = number(ACME_NUMBER, text, None);
        assert_eq!((record.row, record.faults.len()), (None, 1));
    }
    // Lists that are missing are no empty lists.
    let record = tenant(uuid(ACME), "{}", Some(&good), &LIMITS);
    assert_eq!(record.bundle.prompts, good.bundle.prompts);
    assert_eq!(record.bundle.credentials, good.bundle.credentials);
}

#[test]
fn a_credential_over_its_limit_is_left_out_and_listed_as_withheld() {
    for (text, bytes) in [(json!("x".repeat(16_385)), 16_385), (json!(null), 70_000)] {
        let record = tenant_after(|document| {
            document["credentials"][0]["data_ciphertext"] = text;
            document["credentials"][0]["bytes"] = json!(bytes);
        });
        let id = "d8d1a1a4-3c55-4f44-9a1a-223344556677";
        assert_eq!(
            told(&record.faults),
            [format!("tenant_credentials {id} too_long left out")]
        );
        assert_eq!(record.bundle.credentials, []);
        let withheld = &record.bundle.withheld[0];
        assert_eq!(
            (withheld.provider.as_str(), withheld.name.as_str()),
            ("openai", "default")
        );
    }
}

#[test]
fn of_two_credentials_of_one_name_the_last_by_id_is_in_force() {
    let row = |id: &str, text: &str| json!({"id": id, "provider": "p", "name": "n", "bytes": 1, "data_ciphertext": text});
    let (first, last) = (
        "00000000-0000-4000-8000-000000000001",
        "00000000-0000-4000-8000-000000000002",
    );
    let record = tenant_after(|document| {
        document["credentials"] = json!([row(last, "b"), row(first, "a")]);
    });
    assert_eq!(record.bundle.credentials.len(), 1);
    assert_eq!(record.bundle.credentials[0].data_ciphertext, "b");
    assert_eq!(
        told(&record.faults),
        [format!("tenant_credentials {first} malformed left out")]
    );
}

#[test]
fn rows_over_the_limit_are_left_out_from_the_end_with_one_fault_a_kind() {
    let limits = AdmissionLimits {
        rows_per_tenant: 2,
        ..LIMITS
    };
    let mut document = tenant_document(ACME);
    let bindings = json!([
        binding(3, json!({})),
        binding(1, json!({})),
        binding(2, json!({}))
    ]);
    document["prompts"] = json!([
        prompt(4, "global", 0, json!([])),
        prompt(3, "global", 0, json!([])),
        prompt(1, "global", 0, bindings),
        prompt(2, "global", 0, json!([])),
    ]);
    let credential = document["credentials"][0].clone();
    for n in 0..3 {
        let mut more = credential.clone();
        more["id"] = json!(format!("00000000-0000-4000-8000-00000000000{n}"));
        more["name"] = json!(format!("n{n}"));
        document["credentials"].as_array_mut().unwrap().push(more);
    }
    let record = tenant(uuid(ACME), &document.to_string(), None, &limits);
    assert_eq!(
        told(&record.faults),
        [
            format!("tenant_credentials {ACME} too_many left out"),
            format!("prompts {ACME} too_many left out"),
            "prompt_bindings 00000000-0000-4000-8000-000000000001 too_many left out".to_owned(),
        ]
    );
    let names: Vec<_> = record
        .bundle
        .credentials
        .iter()
        .map(|row| row.name.as_str())
        .collect();
    assert_eq!(names, ["n0", "n1"]);
    let prompts: Vec<_> = record
        .bundle
        .prompts
        .iter()
        .map(|row| row.name.as_str())
        .collect();
    assert_eq!(prompts, ["prompt 1", "prompt 2"]);
    let first = &record.bundle.prompts[0];
    assert_eq!((first.bindings.len(), first.bindings_left_out), (2, 1));
}

#[test]
fn the_faults_of_a_document_are_bounded() {
    let bad = binding(1, json!({"conditions_json": []}));
    let list: Vec<_> = (0..1000).map(|_| bad.clone()).collect();
    let record = tenant_after(|document| {
        document["prompts"] = json!([
            prompt(1, "global", 0, json!(list)),
            prompt(2, "global", 0, json!(list))
        ]);
    });
    assert_eq!(record.faults.len(), MAX_FAULTS + 1);
    assert_eq!(
        record.faults[MAX_FAULTS].detail,
        "1000 more bad rows are not listed"
    );
}

#[test]
fn no_fault_repeats_a_secret_prompt_content_or_a_long_text() {
    let ciphertext = sealed(ACME, "openai", "default", "sk");
    let long = "hostile ".repeat(5000);
    let record = tenant_after(|document| {
        document["tenant"]["name"] = json!(long);
        document["settings"]["model"] = json!(long);
        document["credentials"][0]["name"] = json!(format!("{ciphertext}\u{1}"));
        document["prompts"][0]["scope"] = json!(long);
        document["prompts"][1]["version"]["content"] = json!({"palabra": "clave secreta"});
        document["prompts"][2]["bindings"][0]["conditions_json"] = json!({long.clone(): {}});
    });
    assert_eq!(record.faults.len(), 6);
    for fault in &record.faults {
        assert!(fault.detail.len() < 300, "{}", fault.detail);
        assert!(!fault.detail.contains("clave secreta") && !fault.detail.contains(&ciphertext));
    }
    let record = number_after("timezone", json!("Ze\u{301}e".repeat(12)));
    assert!(record.faults[0].detail.len() < 300);
}

#[test]
fn instants_without_a_zone_are_utc() {
    let record = tenant_after(|document| {
        document["prompts"][0]["created_at"] = json!("2025-08-26T12:00:00.5");
    });
    assert_eq!(record.faults, []);
    assert_eq!(
        record.bundle.prompts[0].created_at,
        "2025-08-26T12:00:00.5Z".parse().unwrap()
    );
}

#[test]
fn a_record_reads_back_as_it_was_written_and_older_ones_too() {
    let record = admit_tenant(&tenant_document(ACME));
    let mut json = serde_json::to_value(&record).unwrap();
    assert_eq!(
        serde_json::from_value::<TenantRecord>(json.clone()).unwrap(),
        record
    );
    json["bundle"].as_object_mut().unwrap().remove("withheld");
    json["bundle"]["prompts"][0]
        .as_object_mut()
        .unwrap()
        .remove("bindings_left_out");
    assert_eq!(
        serde_json::from_value::<TenantRecord>(json).unwrap(),
        record
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_admission_panic(text in ".{0,200}") {
        let (number, tenant) = (number(ACME_NUMBER, &text, None), tenant(uuid(ACME), &text, None, &LIMITS));
        proptest::prop_assert!(number.row.is_none() && tenant.bundle.tenant.is_none());
        proptest::prop_assert!(!number.faults.is_empty() && !tenant.faults.is_empty());
    }

    #[test]
    fn no_single_change_to_a_document_makes_admission_panic(at in 0_usize..6000, with in ".{0,6}") {
        let text = tenant_document(ACME).to_string();
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let after = (at + 1..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
        let changed = format!("{}{with}{}", &text[..at], &text[after..]);
        let good = admit_tenant(&tenant_document(ACME));
        let record = tenant(uuid(ACME), &changed, Some(&good), &LIMITS);
        proptest::prop_assert!(record.bundle.tenant.is_some());
    }
}

#[test]
fn of_a_row_in_force_the_good_one_before_it_is_kept_and_steps_in_when_it_is_set_aside() {
    let admit = |label: &str, zone: &str, last: Option<&NumberRecord>| {
        let mut document = number_document(ACME_NUMBER);
        document["label"] = json!(label);
        document["timezone"] = json!(zone);
        number(ACME_NUMBER, &document.to_string(), last)
    };
    let label = |row: Option<&Number>| row.and_then(|row| row.label.clone()).unwrap_or_default();
    let first = admit("first", "UTC", None);
    assert_eq!(
        first.before, None,
        "nothing is kept of a row that never changed"
    );
    let second = admit("second", "UTC", Some(&first));
    let bad = admit("third", "Mars/Phobos", Some(&second));
    let again = admit("second", "UTC", Some(&bad));
    for record in [&second, &bad, &again] {
        let both = (label(record.row.as_ref()), label(record.before.as_deref()));
        assert_eq!(both, ("second".to_owned(), "first".to_owned()));
    }
    // In force, its predecessor takes over, once; not in force, what is stays.
    let aside = number_set_aside(ACME_NUMBER, again.hash, Some(&again));
    assert_eq!(label(aside.row.as_ref()), "first");
    assert_eq!(
        told(&aside.faults),
        [format!("tenant_phone_numbers {ACME_NUMBER} deadly kept")]
    );
    assert_eq!(
        number_set_aside(ACME_NUMBER, aside.hash, Some(&aside)).row,
        aside.row
    );
    let held = number_set_aside(ACME_NUMBER, DocHash::of("deadly"), Some(&second));
    assert_eq!(
        (held.row, held.before),
        (second.row.clone(), second.before.clone())
    );
    assert_eq!(number_set_aside(ACME_NUMBER, first.hash, None).row, None);

    let changed = tenant_after(|document| document["settings"]["model"] = json!("other"));
    let good = changed.before.as_deref().unwrap();
    let settings = admit_tenant(&tenant_document(ACME)).bundle.settings;
    assert_eq!(good.settings, settings);
    assert_ne!(changed.bundle.settings, settings);
    let aside = tenant_set_aside(uuid(ACME), changed.hash, Some(&changed));
    assert_eq!(aside.bundle, *good);
    assert_eq!(
        tenant_set_aside(uuid(ACME), aside.hash, Some(&aside)).bundle,
        *good
    );
}

#[test]
fn a_record_of_an_older_version_without_a_row_before_is_read() {
    let mut record = serde_json::to_value(admit_number(&number_document(ACME_NUMBER))).unwrap();
    assert_eq!(record.as_object_mut().unwrap().remove("before"), None);
    assert!(
        serde_json::from_value::<NumberRecord>(record)
            .unwrap()
            .before
            .is_none()
    );
}
