//! Which answer a call gets, in which bytes (design sections 3 to 5).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::Cluster;
use crate::desk::{Desk, MONDAY, SUNDAY, encoded, masked, names, shared_node};
use crate::node::{ACME, Node, Reply, SECRET, exchange, read_reply, until};

const GUARDIANES: &str = "%2B541150000002";
const SUSPENDED: &str = "%2B542994000003";
const UNKNOWN: &str = "%2B15005550006";

/// A time on Monday 2026-11-23 in Buenos Aires.
fn monday(time: &str) -> String {
    format!("at=2026-11-23T{time}:00-03:00")
}

// Section 3, rule by rule.

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_unknown_before_it_is_inactive_before_its_tenant_is_suspended() {
    let desk = Desk::open().await;
    let status = async || {
        let reply = desk.reply("lookup", "").await;
        (reply.status, reply.text("/status"))
    };
    let unknown = desk.node.get(&format!("/v1/lookup?to={UNKNOWN}")).await;
    assert_eq!(
        (unknown.status, unknown.text("/status")),
        (404, "unknown_number".to_owned())
    );
    desk.change("update public.tenants set status = 'suspended' where id = $t")
        .await;
    assert_eq!(status().await, (403, "tenant_suspended".to_owned()));
    desk.change("update public.tenant_phone_numbers set active = false where id = $n")
        .await;
    assert_eq!(status().await, (404, "inactive_number".to_owned()));
    desk.change("update public.tenants set status = 'active' where id = $t")
        .await;
    assert_eq!(status().await, (404, "inactive_number".to_owned()));
    desk.change("update public.tenant_phone_numbers set active = true where id = $n")
        .await;
    assert_eq!(status().await, (200, "ok".to_owned()));
    for other in ["trial", "ACTIVE", ""] {
        desk.change(&format!(
            "update public.tenants set status = '{other}' where id = $t"
        ))
        .await;
        assert_eq!(status().await.1, "tenant_suspended", "{other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_is_number_and_settings_and_empty_where_they_say_nothing() {
    let desk = Desk::open().await;
    let base = async || {
        let answer = desk.ask(&monday("10:00")).await;
        let fields = [
            "language",
            "voice",
            "timezone",
            "model",
            "transcription_provider",
            "recording_enabled",
            "label",
            "business_hours",
        ];
        fields.map(|field| answer[field].clone())
    };
    let given = [
        json!("es-AR"),
        json!("voice"),
        json!("America/Argentina/Buenos_Aires"),
        json!("model"),
        json!("provider"),
        json!(true),
    ];
    assert_eq!(base().await[..6], given);
    assert_eq!(base().await[6..], [json!("desk"), json!("open")]);
    desk.change(
        "update public.tenant_phone_numbers set label = null, default_voice = null where id = $n",
    )
    .await;
    desk.change("update public.tenant_settings set transcription_provider = null, business_hours = null where tenant_id = $t").await;
    let sparse = [
        json!("es-AR"),
        json!(""),
        given[2].clone(),
        json!("model"),
        json!(""),
        json!(true),
        json!(""),
        json!(""),
    ];
    assert_eq!(base().await, sparse);
    desk.change("delete from public.tenant_settings where tenant_id = $t")
        .await;
    let bare = [
        json!("es-AR"),
        json!(""),
        given[2].clone(),
        json!(""),
        json!(""),
        json!(false),
        json!(""),
        json!(""),
    ];
    assert_eq!(base().await, bare);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_prompt_applies_unless_it_has_bindings_and_none_matches() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'free');
         select make.prompt($t, 'bound', priority => -1);
         select make.bind($t, 'bound', account => 'A-1');
         select make.bind($t, 'bound', '{\"zone\":\"Z1\"}')",
    )
    .await;
    assert_eq!(desk.stack("").await, "free");
    assert_eq!(desk.stack("account_ref=A-2&zone=Z2").await, "free");
    assert_eq!(desk.stack("account_ref=A-1").await, "free bound");
    assert_eq!(desk.stack("zone=Z1").await, "free bound");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_of_another_scope_needs_a_matching_binding_that_names_its_column() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'event', 'event_type', 30);
         select make.prompt($t, 'account', 'account', 20);
         select make.prompt($t, 'number', 'phone-number', 10)",
    )
    .await;
    // Without a binding they never apply.
    assert_eq!(desk.stack("account_ref=A-1&event_type=fire").await, "");
    // Nor with one that matches and names another column, or none.
    desk.change(
        "select make.bind($t, 'event', account => 'A-1'), make.bind($t, 'event', number => $n);
         select make.bind($t, 'account', event => 'fire'), make.bind($t, 'account');
         select make.bind($t, 'number', account => 'A-1', event => 'fire')",
    )
    .await;
    assert_eq!(desk.stack("account_ref=A-1&event_type=fire").await, "");
    // One that names the column and does not match changes nothing, even beside one that matches.
    desk.change(
        "select make.bind($t, 'event', event => 'flood'), make.bind($t, 'account', account => 'A-9');
         select make.bind($t, 'number', number => id) from public.tenant_phone_numbers where e164 = '+541150000002'",
    )
    .await;
    assert_eq!(desk.stack("account_ref=A-1&event_type=fire").await, "");
    assert_eq!(
        desk.stack("account_ref=A-9&event_type=flood").await,
        "event account"
    );
    desk.change("select make.bind($t, 'number', number => $n)")
        .await;
    assert_eq!(
        desk.stack("account_ref=A-9&event_type=flood").await,
        "event account number"
    );
    assert_eq!(desk.stack("").await, "number");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_matches_when_every_column_it_sets_is_the_calls() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'account', 'account', 3), make.prompt($t, 'event', 'event_type', 2), make.prompt($t, 'all', 'account', 1);
         select make.bind($t, 'account', account => 'A-1');
         select make.bind($t, 'event', event => 'Door_Open');
         select make.bind($t, 'all', '{\"zone\":\"Z1\"}', 'A-1', 'door_open', $n)",
    )
    .await;
    for (context, stack) in [
        ("", ""),
        ("account_ref=A-1", "account"),
        ("account_ref=a-1", ""),
        ("account_ref=A-1%20", ""),
        ("account_ref=A-10", ""),
        ("event_type=door_open", "event"),
        ("event_type=DOOR_OPEN", "event"),
        ("event_type=door_open2", ""),
        ("account_ref=A-1&event_type=door_open", "account event"),
        (
            "account_ref=A-1&event_type=door_open&zone=z1",
            "account event all",
        ),
        ("account_ref=A-2&event_type=door_open&zone=z1", "event"),
        ("account_ref=A-1&zone=z1", "account"),
    ] {
        assert_eq!(desk.stack(context).await, stack, "{context}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inactive_prompts_and_prompts_without_a_version_do_not_apply_and_the_highest_version_speaks()
 {
    let desk = Desk::open().await;
    desk.change("select make.prompt($t, 'p', content => 'first')")
        .await;
    let said = async || {
        let answer = desk.ask("").await;
        (
            answer.pointer("/prompt/layers/0/version").cloned(),
            answer
                .pointer("/prompt/system")
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned(),
        )
    };
    assert_eq!(said().await, (Some(json!(1)), "first".to_owned()));
    let version = |n: i32, content: &str| {
        format!(
            "insert into public.prompt_versions (prompt_id, version, content) select id, {n}, '{content}' from public.prompts where tenant_id = $t"
        )
    };
    desk.change(&version(10, "tenth")).await;
    desk.change(&version(9, "ninth, written later")).await;
    assert_eq!(said().await, (Some(json!(10)), "tenth".to_owned()));
    desk.change("delete from public.prompt_versions where version = 10 and prompt_id in (select id from public.prompts where tenant_id = $t)").await;
    assert_eq!(
        said().await,
        (Some(json!(9)), "ninth, written later".to_owned())
    );
    desk.change("update public.prompts set active = false where tenant_id = $t")
        .await;
    assert_eq!(said().await, (None, String::new()));
    // Null means the default: active, priority 0.
    desk.change("update public.prompts set active = null, priority = null where tenant_id = $t")
        .await;
    assert_eq!(said().await.1, "ninth, written later");
    assert_eq!(
        desk.ask("").await.pointer("/prompt/layers/0/priority"),
        Some(&json!(0))
    );
    desk.change("delete from public.prompt_versions where prompt_id in (select id from public.prompts where tenant_id = $t)").await;
    assert_eq!(said().await, (None, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_condition_holds_of_the_calls_it_describes_and_of_no_other() {
    const TABLE: &[(&str, &[&str], &[&str])] = &[
        (r#"{}"#, &["", "zone=Z1"], &[]),
        (
            r#"{"zone_in":["Z1","Z2"]}"#,
            &["zone=Z1", "zone=z2", "zone=%20Z2%20", "zone=Z9&zone=Z1"],
            &["", "zone=Z3", "zone=", "zone=Z"],
        ),
        (
            r#"{"zone_not_in":["Z1"," z2 "]}"#,
            &["zone=Z3", "zone=Z3&zone=Z4"],
            &["", "zone=z1", "zone=Z2", "zone=Z3&zone=Z1"],
        ),
        (r#"{"zone_in":[]}"#, &[], &["", "zone=Z1"]),
        (r#"{"zone_not_in":[]}"#, &["zone=Z1"], &[""]),
        (
            r#"{"zone":"Z1"}"#,
            &["zone=Z1", "zone=z1&zone=Z2"],
            &["", "zone=Z2", "attr.zones=Z1"],
        ),
        (
            r#"{"vip":true}"#,
            &["attr.vip=true", "attr.vip=TRUE", "attr.vip=1"],
            &[
                "",
                "attr.vip=false",
                "attr.vip=0",
                "attr.vip=yes",
                "attr.vip=",
                "vip=true",
            ],
        ),
        (
            r#"{"vip":false}"#,
            &["attr.vip=false", "attr.vip=0", "attr.vip=False"],
            &["", "attr.vip=true", "attr.vip=no"],
        ),
        (
            r#"{"level":5}"#,
            &[
                "attr.level=5",
                "attr.level=5.0",
                "attr.level=05",
                "attr.level=%205%20",
            ],
            &["", "attr.level=5.5", "attr.level=five", "attr.level=55"],
        ),
        (
            r#"{"level":0.5}"#,
            &["attr.level=0.5", "attr.level=0.50", "attr.level=5e-1"],
            &["", "attr.level=5"],
        ),
        (r#"{"level":"5"}"#, &["attr.level=5"], &["attr.level=5.0"]),
        (
            r#"{"level":9007199254740993}"#,
            &["attr.level=9007199254740993"],
            &["attr.level=9007199254740992"],
        ),
        (
            r#"{"kind_in":[1,2.5,"High",true]}"#,
            &[
                "attr.kind=1",
                "attr.kind=2.50",
                "attr.kind=HIGH",
                "attr.kind=true",
            ],
            &["", "attr.kind=2", "attr.kind=false"],
        ),
        (
            r#"{"kind_not_in":[1,"High"]}"#,
            &["attr.kind=2", "attr.kind=low"],
            &[
                "",
                "attr.kind=1.0",
                "attr.kind=high",
                "attr.kind=low&attr.kind=high",
            ],
        ),
        (
            r#"{"street":"Straße"}"#,
            &["attr.street=stra%C3%9Fe", "attr.street=STRA%C3%9FE"],
            &["attr.street=STRASSE"],
        ),
        (
            r#"{"city":"Ñuñoa"}"#,
            &["attr.city=%C3%91u%C3%B1OA"],
            &["attr.city=%C3%B1u%C3%B1oa"],
        ),
        (
            r#"{"account_ref":"a-1"}"#,
            &["account_ref=A-1", "account_ref=%20a-1"],
            &["", "account_ref=A-2", "attr.account=a-1"],
        ),
        (
            r#"{"event_type_in":["fire","flood"]}"#,
            &["event_type=FIRE"],
            &["", "event_type=fires"],
        ),
        (
            r#"{"event_type_not_in":["fire"]}"#,
            &["event_type=flood"],
            &["", "event_type=Fire"],
        ),
        (
            r#"{"zone_in":["Z1"],"vip":true}"#,
            &["zone=Z1&attr.vip=1"],
            &["", "zone=Z1", "attr.vip=1", "zone=Z1&attr.vip=0"],
        ),
        (r#"{"Case":"x"}"#, &["attr.Case=X"], &["attr.case=x"]),
        (
            r#"{"with space":"x"}"#,
            &["attr.with%20space=x"],
            &["attr.with=x"],
        ),
        (r#"{"in":"x"}"#, &["attr.in=x"], &[""]),
    ];
    let desk = Desk::open().await;
    let rows: Vec<String> = TABLE
        .iter()
        .enumerate()
        .map(|(i, (conditions, ..))| {
            format!("select make.prompt($t, 'p{i}'), make.bind($t, 'p{i}', '{conditions}')")
        })
        .collect();
    desk.change(&rows.join(";")).await;
    for (i, (conditions, holds, fails)) in TABLE.iter().enumerate() {
        let name = format!("p{i}");
        for (contexts, wanted) in [(holds, true), (fails, false)] {
            for context in *contexts {
                let stack = desk.stack(context).await;
                assert_eq!(
                    stack.split(' ').any(|one| one == name),
                    wanted,
                    "{conditions} of a call with {context:?}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_business_hours_is_the_callers_word_or_worked_out_or_false() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'outside'), make.bind($t, 'outside', '{\"outside_business_hours\":true}');
         select make.prompt($t, 'inside'), make.bind($t, 'inside', '{\"outside_business_hours\":false}')",
    )
    .await;
    let worked_out = async |context: &str| {
        let answer = desk.ask(context).await;
        (
            answer["business_hours"].as_str().unwrap().to_owned(),
            names(&answer),
        )
    };
    let is = |hours: &str, stack: &str| (hours.to_owned(), stack.to_owned());
    // Half-open, at the number's own timezone whatever the offset of the instant.
    for (at, hours, stack) in [
        ("2026-11-23T08:59:59-03:00", "closed", "outside"),
        ("2026-11-23T09:00:00-03:00", "open", "inside"),
        ("2026-11-23T17:59:59-03:00", "open", "inside"),
        ("2026-11-23T18:00:00-03:00", "closed", "outside"),
        ("2026-11-23T12:00:00Z", "open", "inside"),
        ("2026-11-23T11:59:59Z", "closed", "outside"),
        ("2026-11-22T10:45:00-03:00", "closed", "outside"),
    ] {
        assert_eq!(
            worked_out(&format!("at={at}")).await,
            is(hours, stack),
            "{at}"
        );
        for (given, stack) in [
            ("true", "outside"),
            ("1", "outside"),
            ("TRUE", "outside"),
            ("false", "inside"),
            ("0", "inside"),
        ] {
            let said = worked_out(&format!("at={at}&outside_business_hours={given}")).await;
            assert_eq!(said, is(hours, stack), "{at} {given}");
        }
    }
    desk.change("update public.tenant_settings set business_hours = null where tenant_id = $t")
        .await;
    for at in [SUNDAY, MONDAY] {
        assert_eq!(worked_out(at).await, is("", "inside"));
        assert_eq!(
            worked_out(&format!("{at}&outside_business_hours=true")).await,
            is("", "outside")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn business_hours_know_midnight_nights_and_exceptions() {
    let desk = Desk::open().await;
    desk.change(
        r#"update public.tenant_settings set business_hours =
           '{"mon":["09:00-13:00","14:00-18:00"],"wed":["00:00-24:00"],"fri":["22:00-06:00"],
             "exceptions":{"2026-12-25":["10:00-11:00"],"12-25":[],"11-30":["20:00-24:00"],"2026-12-05":[]}}' where tenant_id = $t"#,
    )
    .await;
    for (at, hours) in [
        ("2026-11-23T12:59:59-03:00", "open"),
        ("2026-11-23T13:00:00-03:00", "closed"),
        ("2026-11-23T14:00:00-03:00", "open"),
        ("2026-11-24T10:00:00-03:00", "closed"), // Tuesday is not named
        ("2026-11-25T00:00:00-03:00", "open"),
        ("2026-11-25T23:59:59-03:00", "open"),
        ("2026-11-26T00:00:00-03:00", "closed"),
        ("2026-11-27T21:59:59-03:00", "closed"),
        ("2026-11-27T22:00:00-03:00", "open"),
        ("2026-11-28T05:59:59-03:00", "open"), // the night belongs to Friday
        ("2026-11-28T06:00:00-03:00", "closed"),
        ("2026-11-30T10:00:00-03:00", "closed"), // a Monday that an exception replaces
        ("2026-11-30T20:00:00-03:00", "open"),
        ("2026-12-05T03:00:00-03:00", "open"), // Friday's night runs into the exception's day
        ("2026-12-25T10:30:00-03:00", "open"), // that year's own goes before every year's
        ("2026-12-26T03:00:00-03:00", "closed"), // and before its Friday's night
        ("2028-12-25T10:30:00-03:00", "closed"),
    ] {
        assert_eq!(
            desk.ask(&format!("at={at}")).await["business_hours"],
            hours,
            "{at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stack_is_ordered_by_priority_scope_age_and_id_and_joined_by_one_blank_line() {
    let desk = Desk::open().await;
    let ids = [
        "00000000-0000-4000-8000-00000000000a",
        "00000000-0000-4000-8000-00000000000b",
    ];
    // Ids of prompts are unique over all tenants; no other test uses these.
    desk.change(&format!(
        "select make.prompt($t, 'high-number', 'phone-number', 7), make.bind($t, 'high-number', number => $n);
         select make.prompt($t, 'low-global', 'global', -5);
         select make.prompt($t, 'number', 'phone-number', 0), make.bind($t, 'number', number => $n);
         select make.prompt($t, 'account', 'account', 0), make.bind($t, 'account', account => 'A');
         select make.prompt($t, 'event', 'event_type', 0), make.bind($t, 'event', event => 'E');
         select make.prompt($t, 'new', created => '2026-02-01Z');
         select make.prompt($t, 'b', created => '2026-01-02Z', id => '{}');
         select make.prompt($t, 'a', created => '2026-01-02Z', id => '{}');
         select make.prompt($t, 'old', created => '2025-01-01Z', content => E'old\\n')",
        ids[1], ids[0]
    ))
    .await;
    let answer = desk.ask("account_ref=A&event_type=E").await;
    assert_eq!(
        names(&answer),
        "high-number old a b new event account number low-global"
    );
    let system = answer.pointer("/prompt/system").unwrap();
    assert_eq!(
        system,
        "high-number\n\nold\n\n\na\n\nb\n\nnew\n\nevent\n\naccount\n\nnumber\n\nlow-global"
    );
    let ids: Vec<&str> = answer
        .pointer("/prompt/layers")
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["id"].as_str().unwrap())
        .collect();
    assert_eq!(answer.pointer("/prompt/ids").unwrap(), &ids.join(","));
    let scopes: Vec<&str> = answer
        .pointer("/prompt/layers")
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["scope"].as_str().unwrap())
        .collect();
    assert_eq!(
        scopes.join(" "),
        "phone-number global global global global event_type account phone-number global"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_effect_replaces_its_field_and_no_other() {
    let desk = Desk::open().await;
    desk.change("select make.prompt($t, 'p')").await;
    let plain = desk.ask(MONDAY).await;
    for (effect, field, value) in [
        (
            r#"{"language_override":"pt-BR"}"#,
            "language",
            json!("pt-BR"),
        ),
        (r#"{"voice_override":"v2"}"#, "voice", json!("v2")),
        (
            r#"{"timezone_override":"Europe/Madrid"}"#,
            "timezone",
            json!("Europe/Madrid"),
        ),
        (r#"{"model_override":"m2"}"#, "model", json!("m2")),
        (
            r#"{"transcription_provider_override":"p2"}"#,
            "transcription_provider",
            json!("p2"),
        ),
        (
            r#"{"recording_enabled_override":false}"#,
            "recording_enabled",
            json!(false),
        ),
    ] {
        desk.change(&format!(
            "delete from public.prompt_bindings where prompt_id in (select id from public.prompts where tenant_id = $t);
             select make.bind($t, 'p', '{effect}')"
        ))
        .await;
        let answer = desk.ask(MONDAY).await;
        for (name, before) in plain.as_object().unwrap() {
            match name.as_str() {
                name if name == field => assert_eq!(answer[name], value, "{effect}"),
                "revision" => assert_ne!(answer[name], *before, "{effect}"),
                "staleness_ms" => {}
                "local_time" if field == "timezone" => {
                    assert_eq!(answer[name], "2026-11-23T14:45:00+01:00")
                }
                name => assert_eq!(answer[name], *before, "{name} after {effect}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_prompts_matching_bindings_the_most_special_acts_alone() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'p');
         select make.bind($t, 'p', '{\"voice_override\":\"none\",\"model_override\":\"none\"}', created => '2026-09-01Z');
         select make.bind($t, 'p', '{\"voice_override\":\"one-old\"}', account => 'A', created => '2026-01-01Z');
         select make.bind($t, 'p', '{\"voice_override\":\"one-new\"}', event => 'E', created => '2026-02-01Z');
         select make.bind($t, 'p', '{\"voice_override\":\"two-b\"}', account => 'A', number => $n, id => '00000000-0000-4000-8000-0000000000bb');
         select make.bind($t, 'p', '{\"voice_override\":\"two-a\"}', number => $n, event => 'F', id => '00000000-0000-4000-8000-0000000000ba');
         select make.bind($t, 'p', '{\"language_override\":\"de\",\"zone\":\"Z9\"}', 'A', 'E', $n)",
    )
    .await;
    for (context, voice, model) in [
        ("", "none", "none"),
        ("event_type=E", "one-new", "model"), // what acts says nothing of the model: nobody else speaks for it
        ("account_ref=A", "two-b", "model"),
        ("account_ref=A&event_type=F", "two-a", "model"), // equally special and old: by id
        ("account_ref=A&event_type=E&zone=Z9", "voice", "model"),
    ] {
        let answer = desk.ask(context).await;
        assert_eq!(
            (&answer["voice"], &answer["model"]),
            (&json!(voice), &json!(model)),
            "{context}"
        );
    }
    assert_eq!(
        desk.ask("account_ref=A&event_type=E&zone=Z9").await["language"],
        "de"
    );
    // The age counts before the id.
    desk.change("update public.prompt_bindings set created_at = '2027-01-01Z' where id = '00000000-0000-4000-8000-0000000000bb'").await;
    assert_eq!(
        desk.ask("account_ref=A&event_type=F").await["voice"],
        "two-b"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn across_prompts_the_one_that_stands_last_in_the_stack_wins_field_by_field() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'first', priority => 3);
         select make.bind($t, 'first', '{\"voice_override\":\"first\",\"model_override\":\"first\",\"language_override\":\"de\"}', 'A', 'E', $n);
         select make.prompt($t, 'second', priority => 2), make.bind($t, 'second', '{\"voice_override\":\"second\",\"model_override\":\"second\"}');
         select make.prompt($t, 'last', priority => 1), make.bind($t, 'last', '{\"voice_override\":\"last\"}', event => 'E');
         select make.prompt($t, 'silent', priority => 0)",
    )
    .await;
    let effects = async |context: &str| {
        let answer = desk.ask(context).await;
        ["voice", "model", "language"].map(|field| answer[field].as_str().unwrap().to_owned())
    };
    assert_eq!(
        effects("account_ref=A&event_type=E").await,
        ["last", "second", "de"]
    );
    assert_eq!(
        effects("account_ref=A").await,
        ["second", "second", "es-AR"]
    );
    desk.change("update public.prompts set priority = 9 where tenant_id = $t and name = 'last'")
        .await;
    assert_eq!(
        effects("account_ref=A&event_type=E").await,
        ["second", "second", "de"]
    );
    // An empty override is one too.
    desk.change("update public.prompt_bindings set conditions_json = '{\"voice_override\":\"\"}' where prompt_id = (select id from public.prompts where tenant_id = $t and name = 'second')").await;
    assert_eq!(
        effects("account_ref=A&event_type=E").await,
        ["", "first", "de"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timezone_override_moves_local_time_and_never_the_business_hours() {
    let desk = Desk::open().await;
    desk.change("select make.prompt($t, 'p'), make.bind($t, 'p', '{\"timezone_override\":\"Asia/Tokyo\",\"zone\":\"far\"}')").await;
    // 09:30 in Buenos Aires is 21:30 in Tokyo; 21:30 in Buenos Aires is 09:30 in Tokyo.
    for (time, hours, tokyo) in [
        ("09:30", "open", "2026-11-23T21:30:00+09:00"),
        ("21:30", "closed", "2026-11-24T09:30:00+09:00"),
    ] {
        let near = desk.ask(&monday(time)).await;
        let far = desk.ask(&format!("{}&zone=far", monday(time))).await;
        assert_eq!(
            (&near["business_hours"], &far["business_hours"]),
            (&json!(hours), &json!(hours))
        );
        assert_eq!(near["local_time"], format!("2026-11-23T{time}:00-03:00"));
        assert_eq!(
            (&far["timezone"], &far["local_time"]),
            (&json!("Asia/Tokyo"), &json!(tokyo))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_given_by_provider_and_name_as_json_or_as_a_string() {
    let desk = Desk::open().await;
    let row = |provider: &str, name: &str, sealed: &str| {
        format!(
            "insert into public.tenant_credentials (tenant_id, provider, name, data_ciphertext) values ($t, '{provider}', '{name}', '{sealed}');"
        )
    };
    let mut rows = String::new();
    for (provider, name, value) in [
        ("openai", "default", "sk-1"),
        (
            "openai",
            "backup",
            r#"{ "key" : "sk-2", "n": [1.50, true, null] }"#,
        ),
        ("google", "default", "12345"),
        ("google", "text", "línea \"1\"\nlínea 2"),
        ("azure", "list", "[\"a\"]"),
    ] {
        rows += &row(provider, name, &desk.seal(provider, name, value));
    }
    desk.change(&rows).await;
    let given = r#"{"azure":{"list":["a"]},"google":{"default":12345,"text":"línea \"1\"\nlínea 2"},"openai":{"backup":{"key":"sk-2","n":[1.50,true,null]},"default":"sk-1"}},"credentials_withheld":[]}"#;
    let number = &desk.number;
    let alone = masked(&desk.reply("credentials", "").await.body);
    assert_eq!(
        alone,
        format!(
            r#"{{"status":"ok","number":"{number}","revision":"R","stale":false,"staleness_ms":N,"credentials":{given}"#
        )
    );
    let full = desk.reply("resolve", "include=credentials").await.body;
    assert!(
        full.ends_with(&format!(r#","credentials":{given}"#)),
        "{full}"
    );
    let google = desk.reply("credentials", "provider=google").await.json();
    assert_eq!(
        google["credentials"],
        json!({"google": {"default": 12345, "text": "línea \"1\"\nlínea 2"}})
    );
    assert_eq!(
        desk.reply("credentials", "provider=nobody").await.json()["credentials"],
        json!({})
    );
    // Only when asked for.
    for route in ["lookup", "resolve"] {
        let answer = desk.reply(route, "").await.json();
        assert!(
            answer.get("credentials").is_none() && answer.get("credentials_withheld").is_none(),
            "{answer}"
        );
    }
}

// The example rows, to the letter.

/// The prompts of the example as layers of an answer.
const BASE: &str = r#"{"id":"11111111-1111-4111-8111-111111111111","version":2,"name":"Base Global Español","scope":"global","priority":100,"content":"Actúa como agente en español, confirma horario de evento y valida clave."}"#;
const DOOR: &str = r#"{"id":"22222222-2222-4222-8222-222222222222","version":1,"name":"Apertura fuera de horario","scope":"event_type","priority":10,"content":"Evento de apertura fuera de horario. Prioriza contacto y verificación inmediata."}"#;
const VIP: &str = r#"{"id":"33333333-3333-4333-8333-333333333333","version":1,"name":"Cliente VIP ACME","scope":"account","priority":5,"content":"Cliente ACME: tono formal, confirmar palabra clave 'sol rojo'."}"#;
const REGION: &str = r#"{"id":"44444444-4444-4444-8444-444444444444","version":1,"name":"Número de región X","scope":"phone-number","priority":5,"content":"Región X: ofrecer el número de guardia local si la persona lo pide."}"#;

/// The whole answer about the example's first number, with the ids in `short` and, where wanted, the rest of the prompts.
fn acme(
    account: &str,
    event: &str,
    local_time: &str,
    hours: &str,
    layers: Option<&[&str]>,
    ids: &str,
) -> String {
    let head = format!(
        concat!(
            r#"{{"status":"ok","number":"+14155550100","label":"Salida principal AR","#,
            r#""tenant":{{"id":"6f717b5a-1a2b-4c3d-9e8f-112233445566","slug":"seguridad-acme-sa","name":"Seguridad ACME S.A."}},"#,
            r#""account_ref":"{}","event_type":"{}","language":"es-AR","voice":"es-AR-Standard-A","#,
            r#""timezone":"America/Argentina/Buenos_Aires","local_time":"{}","business_hours":"{}","#,
            r#""model":"gpt-4o-mini","transcription_provider":"google","recording_enabled":true,"#,
            r#""revision":"R","stale":false,"staleness_ms":N,"prompt":{{"ids":"{}""#,
        ),
        account, event, local_time, hours, ids
    );
    let Some(layers) = layers else {
        return format!("{head}}}}}");
    };
    let contents: Vec<String> = layers
        .iter()
        .map(|layer| {
            serde_json::from_str::<Value>(layer).unwrap()["content"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    format!(
        r#"{head},"system":"{}","layers":[{}]}}}}"#,
        contents.join(r"\n\n"),
        layers.join(",")
    )
}

const IDS: [&str; 4] = [
    "11111111-1111-4111-8111-111111111111",
    "22222222-2222-4222-8222-222222222222",
    "33333333-3333-4333-8333-333333333333",
    "44444444-4444-4444-8444-444444444444",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_example_rows_are_answered_to_the_letter() {
    let node = shared_node().await;
    let (sunday, monday) = ("2026-11-22T10:45:00-03:00", "2026-11-23T10:45:00-03:00");
    for (context, expected) in [
        (
            format!("{SUNDAY}&account_ref=ACME-001234&event_type=door_open&zone=Z1"),
            acme(
                "ACME-001234",
                "door_open",
                sunday,
                "closed",
                Some(&[BASE, DOOR, VIP, REGION]),
                &IDS.join(","),
            ),
        ),
        (
            // Open, so only the zone speaks for the door.
            format!("{MONDAY}&account_ref=ACME-001234&event_type=DOOR_OPEN&zone=z2"),
            acme(
                "ACME-001234",
                "DOOR_OPEN",
                monday,
                "open",
                Some(&[BASE, DOOR, VIP, REGION]),
                &IDS.join(","),
            ),
        ),
        (
            format!("{MONDAY}&account_ref=ACME-001234&event_type=door_open&zone=Z3"),
            acme(
                "ACME-001234",
                "door_open",
                monday,
                "open",
                Some(&[BASE, VIP, REGION]),
                &[IDS[0], IDS[2], IDS[3]].join(","),
            ),
        ),
        (
            format!("{SUNDAY}&event_type=door_open"),
            acme(
                "",
                "door_open",
                sunday,
                "closed",
                Some(&[BASE, DOOR, REGION]),
                &[IDS[0], IDS[1], IDS[3]].join(","),
            ),
        ),
        (
            format!("{SUNDAY}&event_type=door_open&outside_business_hours=false&account_ref=otro"),
            acme(
                "otro",
                "door_open",
                sunday,
                "closed",
                Some(&[BASE, REGION]),
                &[IDS[0], IDS[3]].join(","),
            ),
        ),
        (
            MONDAY.to_owned(),
            acme(
                "",
                "",
                monday,
                "open",
                Some(&[BASE, REGION]),
                &[IDS[0], IDS[3]].join(","),
            ),
        ),
    ] {
        let reply = node.get(&format!("/v1/resolve?to={ACME}&{context}")).await;
        assert_eq!(masked(&reply.body), expected, "{context}");
        well_formed(&reply, "application/json");
        let short = node.get(&format!("/v1/lookup?to={ACME}&{context}")).await;
        let (head, _) = expected.split_once(r#","system":"#).unwrap();
        assert_eq!(masked(&short.body), format!("{head}}}}}"), "{context}");
        well_formed(&short, "application/json");
    }
    let reply = node
        .get(&format!(
            "/v1/resolve?to={GUARDIANES}&include=credentials&{SUNDAY}"
        ))
        .await;
    let expected = concat!(
        r#"{"status":"ok","number":"+541150000002","label":"","#,
        r#""tenant":{"id":"d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb","slug":"guardianes-srl","name":"Guardianes SRL"},"#,
        r#""account_ref":"","event_type":"","language":"es-419","voice":"","timezone":"America/Montevideo","#,
        r#""local_time":"2026-11-22T10:45:00-03:00","business_hours":"","model":"","transcription_provider":"","recording_enabled":false,"#,
        r#""revision":"R","stale":false,"staleness_ms":N,"prompt":{"ids":"","system":"","layers":[]},"credentials":{},"credentials_withheld":[]}"#,
    );
    assert_eq!(masked(&reply.body), expected);
}

/// What every answer's head says of its body.
fn well_formed(reply: &Reply, content_type: &str) {
    assert_eq!(
        reply.headers.get("content-type").map(String::as_str),
        Some(content_type),
        "{reply:?}"
    );
    assert_eq!(
        reply.headers.get("content-length"),
        Some(&reply.body.len().to_string()),
        "{reply:?}"
    );
    for absent in ["transfer-encoding", "content-encoding", "location"] {
        assert!(!reply.headers.contains_key(absent), "{absent} in {reply:?}");
    }
    assert!(!reply.body.contains('\n'), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_is_flat_pairs_byte_for_byte() {
    let node = shared_node().await;
    let reply = node.get(&format!("/v1/lookup?to={ACME}&format=form&{SUNDAY}&account_ref=A%20%26%2B%C3%B1%3D&event_type=door_open")).await;
    let expected = concat!(
        "status=ok&number=%2B14155550100&tenant_id=6f717b5a-1a2b-4c3d-9e8f-112233445566&language=es-AR",
        "&timezone=America%2FArgentina%2FBuenos_Aires&local_time=2026-11-22T10%3A45%3A00-03%3A00&business_hours=closed&recording_enabled=1",
        "&revision=R&stale=0&staleness_ms=N",
        "&prompt_ids=11111111-1111-4111-8111-111111111111%2C22222222-2222-4222-8222-222222222222%2C44444444-4444-4444-8444-444444444444",
        "&tenant_slug=seguridad-acme-sa&voice=es-AR-Standard-A&model=gpt-4o-mini&transcription_provider=google",
        "&label=Salida%20principal%20AR&tenant_name=Seguridad%20ACME%20S.A.&account_ref=A%20%26%2B%C3%B1%3D&event_type=door_open",
    );
    assert_eq!(masked(&reply.body), expected);
    well_formed(&reply, "application/x-www-form-urlencoded");
    let bare = node
        .get(&format!("/v1/lookup?to={GUARDIANES}&format=form&{SUNDAY}"))
        .await;
    let expected = concat!(
        "status=ok&number=%2B541150000002&tenant_id=d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb&language=es-419",
        "&timezone=America%2FMontevideo&local_time=2026-11-22T10%3A45%3A00-03%3A00&business_hours&recording_enabled=0",
        "&revision=R&stale=0&staleness_ms=N&prompt_ids&tenant_slug=guardianes-srl&voice&model&transcription_provider",
        "&label&tenant_name=Guardianes%20SRL&account_ref&event_type",
    );
    assert_eq!(masked(&bare.body), expected);
    let refused = node
        .get(&format!("/v1/lookup?to={UNKNOWN}&format=form"))
        .await;
    assert!(
        refused.body.starts_with("status=unknown_number&message="),
        "{refused:?}"
    );
    assert!(
        refused.body.bytes().all(|byte| byte.is_ascii_graphic()) && !refused.body.contains('+'),
        "{refused:?}"
    );
    assert_eq!(refused.status, 404);
    well_formed(&refused, "application/x-www-form-urlencoded");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_alone_is_the_value_as_plain_text() {
    let node = shared_node().await;
    let context = format!("{SUNDAY}&account_ref=%C3%B1%20%26&event_type=door_open");
    let form = node
        .get(&format!("/v1/lookup?to={ACME}&format=form&{context}"))
        .await
        .body;
    let mut fields = 0;
    for pair in form.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_encoding::percent_decode_str(value)
            .decode_utf8()
            .unwrap();
        let reply = node
            .get(&format!("/v1/lookup/{name}?to={ACME}&{context}"))
            .await;
        assert_eq!(reply.status, 200);
        if name != "staleness_ms" {
            assert_eq!(reply.body, value, "{name}");
        } else {
            assert!(reply.body.parse::<u64>().is_ok(), "{reply:?}");
        }
        well_formed(&reply, "text/plain; charset=utf-8");
        fields += 1;
    }
    assert_eq!(fields, 20, "{form}");
    let empty = node.get(&format!("/v1/lookup/voice?to={GUARDIANES}")).await;
    assert_eq!((empty.status, empty.body.as_str()), (200, ""));
    well_formed(&empty, "text/plain; charset=utf-8");
    for (to, status) in [(UNKNOWN, 404), (SUSPENDED, 403), ("abc", 400)] {
        let reply = node.get(&format!("/v1/lookup/language?to={to}")).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, ""));
        well_formed(&reply, "text/plain; charset=utf-8");
    }
    let twice = node
        .get(&format!("/v1/lookup/language?to={ACME}&to={ACME}"))
        .await;
    assert_eq!((twice.status, twice.body.as_str()), (400, ""));
    let method = node
        .post(&format!("/v1/lookup/language?to={ACME}"), "", "")
        .await;
    assert_eq!((method.status, method.body.as_str()), (405, ""));
    assert_eq!(
        node.get("/v1/lookup/nothing?to=1").await.text("/status"),
        "no_such_route"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_status_code_and_words_and_echoes_nothing() {
    let desk = Desk::open().await;
    desk.change("update public.tenant_phone_numbers set active = false where id = $n")
        .await;
    let (node, inactive) = (desk.node, encoded(&desk.number));
    for (path, code, status) in [
        (
            format!("/v1/lookup?to={SUSPENDED}"),
            403,
            "tenant_suspended",
        ),
        (format!("/v1/lookup?to={inactive}"), 404, "inactive_number"),
        (format!("/v1/lookup?to={UNKNOWN}"), 404, "unknown_number"),
        ("/v1/lookup?to=echo-me".to_owned(), 400, "invalid_number"),
        ("/v1/lookup?to=".to_owned(), 400, "invalid_number"),
        ("/v1/lookup".to_owned(), 400, "bad_request"),
        (
            format!("/v1/lookup?to={ACME}&to=echo-me"),
            400,
            "bad_request",
        ),
        (
            format!("/v1/lookup?to={ACME}&at=echo-me"),
            400,
            "bad_request",
        ),
        (
            format!("/v1/lookup?to={ACME}&account_ref={}", "echo-me".repeat(40)),
            400,
            "bad_request",
        ),
        ("/v1/echo-me".to_owned(), 404, "no_such_route"),
        ("/".to_owned(), 404, "no_such_route"),
        ("/v1/lookup/?to=1".to_owned(), 404, "no_such_route"),
        ("/v1/admin/status".to_owned(), 404, "no_such_route"),
    ] {
        // The same wherever a call can be asked about.
        let routes = if path.starts_with("/v1/lookup?") {
            &["lookup", "resolve", "credentials", "explain"][..]
        } else {
            &["lookup"]
        };
        for route in routes {
            let path = path.replacen("/v1/lookup?", &format!("/v1/{route}?"), 1);
            let reply = node.get(&path).await;
            assert_eq!(
                (reply.status, reply.text("/status")),
                (code, status.to_owned()),
                "{path}"
            );
            well_formed(&reply, "application/json");
            assert!(!reply.body.contains("echo-me"), "{reply:?}");
            assert!(!reply.headers.contains_key("retry-after"), "{reply:?}");
            if *route == "explain" && status.starts_with(['t', 'i']) && code != 400 {
                continue; // explains instead
            }
            let message = reply.text("/message");
            assert_eq!(
                reply.body,
                format!(
                    r#"{{"status":"{status}","message":{}}}"#,
                    Value::from(message.as_str())
                )
            );
            assert!(
                !message.is_empty()
                    && !message.contains(|c: char| c.is_ascii_digit() && code == 404),
                "{message}"
            );
        }
    }
    for (method, path, allow) in [
        ("DELETE", "/v1/lookup", "GET, HEAD"),
        ("POST", "/v1/lookup", "GET, HEAD"),
        ("PUT", "/v1/resolve", "GET, HEAD, POST"),
        ("POST", "/v1/credentials", "GET, HEAD"),
        ("POST", "/v1/explain", "GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
    ] {
        let reply = raw(
            node,
            &format!(
                "{method} {path}?to={ACME} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            ),
        )
        .await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (405, "method_not_allowed".to_owned()),
            "{method} {path}"
        );
        assert_eq!(
            reply.headers.get("allow").map(String::as_str),
            Some(allow),
            "{method} {path}"
        );
        well_formed(&reply, "application/json");
    }
}

/// A request over the Unix socket as it stands.
async fn raw(node: &Node, request: &str) -> Reply {
    exchange(UnixStream::connect(node.unix()).await.unwrap(), request)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_copy_an_unreachable_postgres_is_not_ready_and_a_busy_one_overloaded() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    // Whoever reads a number waits until this session lets go.
    db.sql(
        "select pg_advisory_lock(77);
         create policy wait on public.tenant_phone_numbers for select using (pg_advisory_xact_lock_shared(77) is not null);
         alter table public.tenant_phone_numbers enable row level security",
    )
    .await;
    let mut node = Node::prepare(&db.url(), "");
    node.start();
    node.answering().await;
    until("the feed is connected", async || {
        let state = node
            .admin("GET", "/v1/admin/status", "")
            .await
            .text("/feed/state");
        ["listening", "pulling"].contains(&state.as_str())
    })
    .await;
    // Four may wait for Postgres at a time; the fifth finds no place in two seconds.
    let asking = (0..12).map(|_| node.get("/v1/lookup?to=%2B14155550100"));
    let replies = futures_util::future::join_all(asking).await;
    let codes: Vec<String> = replies.iter().map(|reply| reply.text("/status")).collect();
    assert!(codes.iter().any(|code| code == "overloaded"), "{codes:?}");
    for reply in &replies {
        assert_eq!(reply.status, 503, "{reply:?}");
        assert_eq!(
            reply.headers.get("retry-after").map(String::as_str),
            Some("1"),
            "{reply:?}"
        );
        well_formed(reply, "application/json");
    }
    db.sql("select pg_advisory_unlock(77)").await;
    node.until("/v1/lookup?to=%2B14155550100", |reply| reply.status == 200)
        .await;

    let mut node = Node::prepare("postgres://sidetone@127.0.0.1:1/none?sslmode=disable", "");
    node.start();
    node.answering().await;
    // Never "unknown", whatever is asked for; what is wrong with the question is told all the same.
    for path in [
        "/v1/lookup?to=%2B15005550006",
        "/v1/resolve?to=%2B14155550100",
        "/v1/explain?to=%2B14155550100",
        "/v1/credentials?to=%2B14155550100",
    ] {
        let reply = node.get(path).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (503, "not_ready".to_owned()),
            "{path}"
        );
        assert_eq!(
            reply.headers.get("retry-after").map(String::as_str),
            Some("1")
        );
        well_formed(&reply, "application/json");
    }
    let form = node.get("/v1/lookup?to=%2B15005550006&format=form").await;
    assert!(
        form.status == 503 && form.body.starts_with("status=not_ready&message="),
        "{form:?}"
    );
    let field = node.get("/v1/lookup/language?to=%2B15005550006").await;
    assert_eq!((field.status, field.body.as_str()), (503, ""));
    assert_eq!(
        node.get("/v1/lookup?to=abc").await.text("/status"),
        "invalid_number"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_view_stays_under_4_kb_whatever_the_rows_hold() {
    let desk = Desk::open().await;
    let ids = "(select id from public.prompts where tenant_id = $t)";
    desk.change(&format!(
        "update public.tenants set name = repeat('ñ\"', 127) where id = $t;
         update public.tenant_phone_numbers set label = repeat('\\', 100) where id = $n;
         insert into public.prompts (tenant_id, name, scope) select $t, 'p' || i, 'global' from generate_series(1, 300) i;
         insert into public.prompt_versions (prompt_id, version, content) select id, 1, repeat('x', 1000) from public.prompts where id in {ids}"
    ))
    .await;
    let long = format!(
        "account_ref={}&event_type={}",
        "%22".repeat(256),
        encoded(&"ñ".repeat(128))
    );
    for (format, content_type) in [
        ("json", "application/json"),
        ("form", "application/x-www-form-urlencoded"),
    ] {
        let reply = desk
            .reply("lookup", &format!("format={format}&{long}"))
            .await;
        assert_eq!(reply.status, 200);
        assert!(reply.body.len() < 4096, "{}", reply.body.len());
        assert!(
            reply.body.len() > 3900,
            "cut too much: {}",
            reply.body.len()
        );
        well_formed(&reply, content_type);
    }
    let full = desk.reply("resolve", "").await;
    assert_eq!(
        full.json()
            .pointer("/prompt/layers")
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        300
    );
    well_formed(&full, "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_over_its_limit_loses_the_prompts_that_stand_last() {
    let db = Cluster::shared().database().await;
    let node = Node::on(&db, "limits.stack_bytes = '20 B'").await;
    let desk = Desk::on(&node, db.name()).await;
    desk.change(
        "select make.prompt($t, 'a', priority => 3, content => '123456789');
         select make.prompt($t, 'b', priority => 2, content => 'ABCDEFGHI');
         select make.prompt($t, 'c', priority => 1, content => '1'), make.bind($t, 'c', '{\"voice_override\":\"c\"}')",
    )
    .await;
    // Nine and nine, and the blank line between them.
    let answer = desk.ask("").await;
    assert_eq!(
        answer.pointer("/prompt/system").unwrap(),
        "123456789\n\nABCDEFGHI"
    );
    assert_eq!(answer["voice"], "voice");
    desk.change("update public.prompt_versions set content = '' where content = 'ABCDEFGHI'")
        .await;
    assert_eq!(desk.stack("").await, "a b c");
}

// Section 5, on the wire.

#[tokio::test(flavor = "multi_thread")]
async fn a_post_asks_the_same_as_a_get_in_json_and_as_a_form() {
    let node = shared_node().await;
    let got = node.get(&format!("/v1/resolve?to={ACME}&{SUNDAY}&account_ref=ACME-001234&event_type=door_open&zone=Z1&zone=Z9&attr.vip=true")).await;
    let json = r#"{"to":"+14155550100","at":"2026-11-22T10:45:00-03:00","account_ref":"ACME-001234","event_type":"door_open",
        "zone":["Z1","Z9"],"attr":{"vip":"true"},"unknown":[1,{"a":null}],"other":null}"#;
    let form = format!(
        "to={ACME}&{SUNDAY}&account_ref=ACME-001234&event_type=door_open&zone=Z1&zone=Z9&attr.vip=true&unknown=1"
    );
    for (content_type, body) in [
        ("application/json", json),
        ("Application/JSON; charset=utf-8", json),
        ("application/x-www-form-urlencoded", form.as_str()),
    ] {
        let reply = node
            .post(
                "/v1/resolve",
                &format!("Content-Type: {content_type}\r\n"),
                body,
            )
            .await;
        assert_eq!(masked(&reply.body), masked(&got.body), "{content_type}");
        assert_eq!(reply.headers.get("etag"), got.headers.get("etag"));
        well_formed(&reply, "application/json");
    }
    let posted = async |content_type: &str, body: &str| {
        node.post(
            "/v1/resolve",
            &format!("Content-Type: {content_type}\r\n"),
            body,
        )
        .await
    };
    for body in [
        "",
        "{",
        "[]",
        "null",
        r#"{"to":1}"#,
        r#"{"to":"+1","to":"+1"}"#,
        r#"{"account_ref":"A"}"#,
        r#"{"to":"+14155550100","attr":{"a":{}}}"#,
        r#"{"to":"+14155550100","at":"soon"}"#,
        r#"{"to":"+14155550100","attr":"a"}"#,
        "{\"to\":\"+14155550100\",\"zone\":\"\\u0000\"}",
    ] {
        let reply = posted("application/json", body).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (400, "bad_request".to_owned()),
            "{body}"
        );
    }
    assert_eq!(
        posted("application/json", r#"{"to":"+0"}"#)
            .await
            .text("/status"),
        "invalid_number"
    );
    assert_eq!(
        posted("text/plain", json).await.text("/status"),
        "bad_request"
    );
    assert_eq!(
        posted(
            "application/x-www-form-urlencoded",
            &format!("to={ACME}&to={ACME}")
        )
        .await
        .text("/status"),
        "bad_request"
    );
    // In the query and in the body is twice.
    let twice = node
        .post(
            &format!("/v1/resolve?to={ACME}"),
            "Content-Type: application/json\r\n",
            r#"{"to":"+14155550100"}"#,
        )
        .await;
    assert_eq!(twice.text("/status"), "bad_request");
    let large = posted(
        "application/json",
        &format!(r#"{{"to":"+14155550100","pad":"{}"}}"#, "x".repeat(70_000)),
    )
    .await;
    assert_eq!(
        (large.status, large.text("/status")),
        (400, "bad_request".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attribute_reads_the_same_from_a_query_and_from_json() {
    let desk = Desk::open().await;
    desk.change(
        r#"select make.prompt($t, 'vip'), make.bind($t, 'vip', '{"vip":true}');
           select make.prompt($t, 'level', priority => -1), make.bind($t, 'level', '{"level_in":[5]}');
           select make.prompt($t, 'out', priority => -2), make.bind($t, 'out', '{"outside_business_hours":true}')"#,
    )
    .await;
    for (body, stack) in [
        (r#""attr":{"vip":"true"}"#, "vip"),
        (r#""attr":{"vip":true,"level":5}"#, "vip level"),
        (
            r#""attr":{"vip":["0","1"],"level":["4","5.0"]}"#,
            "vip level",
        ),
        (
            r#""attr":{"vip":false},"outside_business_hours":true"#,
            "out",
        ),
        (r#""outside_business_hours":"1""#, "out"),
        (r#""vip":"true""#, ""),
    ] {
        let body = format!(
            r#"{{"to":"{}","at":"2026-11-23T10:00:00-03:00",{body}}}"#,
            desk.number
        );
        let reply = desk
            .node
            .post("/v1/resolve", "Content-Type: application/json\r\n", &body)
            .await;
        assert_eq!(names(&reply.json()), stack, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_is_of_the_rows_and_the_call_and_never_of_the_time() {
    let desk = Desk::open().await;
    desk.change("select make.prompt($t, 'p')").await;
    let ask = async |context: &str, head: &str| {
        raw(
            desk.node,
            &format!(
                "GET {} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n",
                desk.path("resolve", context)
            ),
        )
        .await
    };
    let first = ask(&monday("10:00"), "").await;
    let etag = first.headers["etag"].clone();
    assert!(
        etag.starts_with('"') && etag.ends_with('"') && etag.len() > 10,
        "{etag}"
    );
    for head in [
        format!("If-None-Match: {etag}\r\n"),
        format!("If-None-Match: \"other\", W/{etag}\r\n"),
        format!("If-None-Match: \"other\"\r\nIf-None-Match: {etag}\r\n"),
        "If-None-Match: *\r\n".to_owned(),
    ] {
        let reply = ask(&monday("10:00"), &head).await;
        assert_eq!(
            (reply.status, &reply.headers["etag"]),
            (304, &etag),
            "{head}"
        );
    }
    assert_eq!(
        ask(&monday("10:00"), "If-None-Match: \"other\"\r\n")
            .await
            .status,
        200
    );
    // Another local_time, another age.
    let later = ask(&monday("17:59"), &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((later.status, &later.headers["etag"]), (304, &etag));
    // Everything else makes another: hours, context, credentials, rows.
    let mut seen = vec![etag.clone()];
    for (context, change) in [
        (monday("18:00"), ""),
        (format!("{}&account_ref=A", monday("10:00")), ""),
        (format!("{}&include=credentials", monday("10:00")), ""),
        (
            monday("10:00"),
            "update public.prompt_versions set content = 'q' where prompt_id in (select id from public.prompts where tenant_id = $t)",
        ),
        (
            monday("10:00"),
            "update public.tenant_phone_numbers set default_voice = 'v3' where id = $n",
        ),
    ] {
        if !change.is_empty() {
            desk.change(change).await;
        }
        let reply = ask(&context, &format!("If-None-Match: {}\r\n", seen.join(", "))).await;
        assert_eq!(reply.status, 200, "{context} {change}");
        seen.push(reply.headers["etag"].clone());
    }
    // What was, is again.
    desk.change("update public.prompt_versions set content = 'p' where prompt_id in (select id from public.prompts where tenant_id = $t)").await;
    desk.change("update public.tenant_phone_numbers set default_voice = 'voice' where id = $n")
        .await;
    assert_eq!(ask(&monday("10:00"), "").await.headers["etag"], etag);
    // A 304 leaves the connection usable: nothing of a body follows it.
    let mut line = UnixStream::connect(desk.node.unix()).await.unwrap();
    let both = format!(
        "GET {0} HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {etag}\r\n\r\nGET {1} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        desk.path("resolve", &monday("10:00")),
        desk.path("lookup/label", ""),
    );
    tokio::io::AsyncWriteExt::write_all(&mut line, both.as_bytes())
        .await
        .unwrap();
    assert_eq!(read_reply(&mut line, true).await.unwrap().status, 304);
    assert_eq!(read_reply(&mut line, false).await.unwrap().body, "desk");
}

#[tokio::test(flavor = "multi_thread")]
async fn revision_and_etag_are_equal_on_nodes_with_the_same_rows_and_stay_when_the_answer_grows_stale()
 {
    let db = Cluster::shared().database().await;
    let settings = "feed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '300ms'\nfeed.stale_after = '600ms'";
    let one = Node::with_example(&db, settings).await;
    let other = Node::prepare(&db.url(), "");
    let other = {
        let mut other = other;
        // The same keys: the rows are the same, and so is what they open to.
        std::fs::copy(one.path("keyring.toml"), other.path("keyring.toml")).unwrap();
        other.start();
        other.synced().await;
        other
    };
    let path = format!("/v1/resolve?to={ACME}&{SUNDAY}");
    let (a, b) = (one.get(&path).await, other.get(&path).await);
    assert_eq!(a.text("/revision"), b.text("/revision"));
    assert_eq!(a.headers["etag"], b.headers["etag"]);
    // Rows of others do not matter.
    db.sql("update public.tenants set name = 'Otro' where slug = 'guardianes-srl'")
        .await;
    one.until(
        &format!("/v1/lookup/tenant_name?to={GUARDIANES}"),
        |reply| reply.body == "Otro",
    )
    .await;
    assert_eq!(one.get(&path).await.text("/revision"), a.text("/revision"));
    // Without its trigger the feed cannot prove that it is level.
    db.sql("alter table public.tenant_phone_numbers disable trigger sidetone_update")
        .await;
    let stale = one
        .until(&path, |reply| reply.text("/stale") == "true")
        .await;
    assert_eq!(stale.headers["etag"], a.headers["etag"]);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: {}\r\n\r\n",
        a.headers["etag"]
    );
    assert_eq!(raw(&one, &request).await.status, 304);
    db.sql("alter table public.tenant_phone_numbers enable always trigger sidetone_update")
        .await;
    db.sql("update public.tenant_settings set model = 'next'")
        .await;
    let (a, b) = (
        one.until(&path, |reply| reply.text("/model") == "next")
            .await,
        other
            .until(&path, |reply| reply.text("/model") == "next")
            .await,
    );
    assert_eq!(a.text("/revision"), b.text("/revision"));
    assert_ne!(a.text("/revision"), stale.text("/revision"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_with_credentials_are_not_to_be_stored() {
    let node = shared_node().await;
    for (path, stored) in [
        (format!("/v1/credentials?to={ACME}"), false),
        (format!("/v1/resolve?to={ACME}&include=credentials"), false),
        (format!("/v1/resolve?to={ACME}"), true),
    ] {
        let reply = node.get(&path).await;
        assert_eq!(reply.body.contains(SECRET), !stored, "{path}");
        let control = reply.headers.get("cache-control").map(String::as_str);
        assert_eq!(control == Some("no-store"), !stored, "{path}: {control:?}");
    }
    let credentials = node.get(&format!("/v1/credentials?to={ACME}")).await;
    assert_eq!(
        masked(&credentials.body),
        format!(
            r#"{{"status":"ok","number":"+14155550100","revision":"R","stale":false,"staleness_ms":N,"credentials":{{"openai":{{"default":"{SECRET}"}}}},"credentials_withheld":[]}}"#
        )
    );
    well_formed(&credentials, "application/json");
    assert_eq!(
        node.get(&format!("/v1/credentials?to={SUSPENDED}"))
            .await
            .text("/status"),
        "tenant_suspended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_a_number_is_answered_in_its_one_spelling() {
    const SPELLINGS: &[&str] = &[
        "+14155550100",
        "14155550100",
        "0014155550100",
        "+1 (415) 555-0100",
        "+1.415.555/0100",
        "+1\u{a0}415\u{202f}555\u{a0}0100",
        "sip:+14155550100@sip.example",
        "SIP:+14155550100@sip.example;user=phone",
        "sips:+14155550100:secret@[2001:db8::1]:5061;transport=tls?subject=x",
        "sip:14155550100;npdi@sip.example:5060",
        "tel:+1-415-555-0100",
        "TEL:5550100;phone-context=+1415",
        "tel:5550100;PHONE-CONTEXT=+1-415",
        "sip:5550100;phone-context=+1415@sip.example",
        "Recepción <sip:+14155550100@sip.example>;tag=a1b2",
        "\"A <b> \\\" c\" <tel:+14155550100>",
        "<+14155550100>",
        "%2B14155550100",
        "sip%3A%2B14155550100%40sip.example",
    ];
    const WRONG: &[&str] = &[
        "",
        " ",
        "abc",
        "+",
        "++14155550100",
        "+123456",
        "+1234567890123456",
        "+04155550100",
        "sip:alice@sip.example",
        "sip:@sip.example",
        "04155550100",
        "+1415555010O",
        "<sip:+14155550100@sip.example",
        "tel:555010;phone-context=sip.example",
        "+1415;5550100",
        "+14155550100 <+1>,<+2>",
        "\u{ff0b}14155550100",
    ];
    let node = shared_node().await;
    let get = async |spelling: &str| {
        node.get(&format!("/v1/lookup?to={}", encoded(spelling)))
            .await
    };
    for spelling in SPELLINGS {
        let reply = get(spelling).await;
        assert_eq!(
            (reply.status, reply.text("/number")),
            (200, "+14155550100".to_owned()),
            "{spelling}"
        );
        let body = json!({ "to": spelling }).to_string();
        let posted = node
            .post("/v1/resolve", "Content-Type: application/json\r\n", &body)
            .await;
        assert_eq!(posted.text("/number"), "+14155550100", "{body}");
    }
    for spelling in WRONG {
        let reply = get(spelling).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (400, "invalid_number".to_owned()),
            "{spelling:?}"
        );
        assert!(
            spelling.len() < 3 || !reply.body.contains(spelling),
            "{reply:?}"
        );
    }
    // As they come from the wire: a plus is a plus, and what was encoded twice is read.
    for raw in [
        "+14155550100",
        "%2B14155550100",
        "%2b14155550100",
        "%252B14155550100",
        "sip%253A%252B14155550100%2540x",
        "%2B1%20415%C2%A0555%200100",
    ] {
        let reply = node.get(&format!("/v1/lookup?to={raw}")).await;
        assert_eq!(reply.text("/number"), "+14155550100", "{raw}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_national_number_is_read_only_where_the_country_is_set() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(
        &db,
        "numbers.country_code = '54'\nnumbers.international_prefix = '011'",
    )
    .await;
    for (spelling, number) in [
        ("01150000002", ""), // the international prefix comes first: +50000002 is nobody's
        ("1150000002", "+541150000002"),
        ("541150000002", "+541150000002"),
        ("011541150000002", "+541150000002"),
        ("14155550100", "+14155550100"),
        ("02994000003", "tenant_suspended"), // the trunk prefix is dropped
        ("+1150000002", ""),
    ] {
        let reply = node
            .get(&format!("/v1/lookup?to={}", encoded(spelling)))
            .await
            .json();
        let said = if reply["status"] == "ok" {
            &reply["number"]
        } else {
            &reply["status"]
        };
        assert_eq!(
            said,
            if number.is_empty() {
                "unknown_number"
            } else {
                number
            },
            "{spelling}"
        );
    }
    let plain = shared_node().await;
    assert_eq!(
        plain.get("/v1/lookup?to=1150000002").await.text("/status"),
        "unknown_number"
    );
    assert_eq!(
        plain.get("/v1/lookup?to=02994000003").await.text("/status"),
        "invalid_number"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_stand_once_and_are_short_and_printable_and_unknown_ones_are_ignored() {
    let node = shared_node().await;
    let status = async |query: &str| {
        node.get(&format!("/v1/resolve?to={ACME}&{query}"))
            .await
            .text("/status")
    };
    for name in ["account_ref", "event_type"] {
        assert_eq!(
            status(&format!("{name}=a&{name}=a")).await,
            "bad_request",
            "{name}"
        );
    }
    for twice in [
        "outside_business_hours=1&outside_business_hours=1",
        &format!("{SUNDAY}&{SUNDAY}"),
        "include=credentials&include=credentials",
    ] {
        assert_eq!(status(twice).await, "bad_request", "{twice}");
    }
    for repeated in [
        "zone=Z1&zone=Z1",
        "attr.a=1&attr.a=2",
        "unknown=1&unknown=2",
        "to2=1",
        "Account_Ref=a&account_ref=b",
        "a&b=&&=c",
    ] {
        assert_eq!(status(repeated).await, "ok", "{repeated}");
    }
    for name in ["account_ref", "event_type", "zone", "attr.a"] {
        assert_eq!(
            status(&format!("{name}={}", "x".repeat(256))).await,
            "ok",
            "{name}"
        );
        assert_eq!(
            status(&format!("{name}={}", "x".repeat(257))).await,
            "bad_request",
            "{name}"
        );
        assert_eq!(
            status(&format!("{name}={}", "%C3%B1".repeat(128))).await,
            "ok",
            "{name}"
        );
        assert_eq!(
            status(&format!("{name}={}", "%C3%B1".repeat(129))).await,
            "bad_request",
            "{name}"
        );
        for control in ["%00", "%0A", "%0D%0A", "%1F", "%7F", "%C2%85", "a%09b"] {
            assert_eq!(
                status(&format!("{name}={control}")).await,
                "bad_request",
                "{name} {control}"
            );
        }
        for broken in ["%", "%2", "%zz", "%FF", "%C3"] {
            assert_eq!(
                status(&format!("{name}={broken}")).await,
                "bad_request",
                "{name} {broken}"
            );
        }
    }
    for at in [
        "2026-11-22",
        "2026-11-22T10:45",
        "2026-11-22T10:45:00",
        "10:45",
        "2026-13-01T00:00:00Z",
        "2026-11-22T25:00:00Z",
        "1795350300",
        "now",
        "",
    ] {
        assert_eq!(status(&format!("at={at}")).await, "bad_request", "{at}");
    }
    for at in [
        "2026-11-22T10:45:00Z",
        "2026-11-22T10:45:00.123456Z",
        "2026-11-22T10:45:00+05:30",
        "2026-11-22T10:45:00%2B05:30",
    ] {
        assert_eq!(status(&format!("at={at}")).await, "ok", "{at}");
    }
    // A plus is a plus and not a space.
    let answer = node
        .get(&format!(
            "/v1/resolve?to={ACME}&account_ref=a+b&event_type=a%20b"
        ))
        .await
        .json();
    assert_eq!(
        (&answer["account_ref"], &answer["event_type"]),
        (&json!("a+b"), &json!("a b"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_instant_the_answer_is_of_now() {
    let node = shared_node().await;
    let before = jiff::Timestamp::now().as_second();
    let said = node
        .get(&format!("/v1/lookup?to={ACME}"))
        .await
        .text("/local_time");
    let after = jiff::Timestamp::now().as_second();
    assert!(said.ends_with("-03:00"), "{said}");
    let said = said.parse::<jiff::Timestamp>().unwrap().as_second();
    assert!((before..=after).contains(&said), "{before} {said} {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_names_every_prompt_and_binding_with_a_reason_and_nothing_secret() {
    let node = shared_node().await;
    for context in [
        format!("{SUNDAY}&account_ref=ACME-001234&event_type=door_open&zone=Z1"),
        MONDAY.to_owned(),
        format!("{MONDAY}&event_type=door_open&zone=Z1"),
    ] {
        let reply = node.get(&format!("/v1/explain?to={ACME}&{context}")).await;
        assert_eq!(reply.status, 200);
        well_formed(&reply, "application/json");
        for secret in [
            SECRET,
            "palabra clave",
            "sol rojo",
            "confirma horario",
            "guardia local",
            "eyJ",
        ] {
            assert!(!reply.body.contains(secret), "{secret} in {reply:?}");
        }
        let explained = reply.json();
        let prompts = explained["prompts"].as_array().unwrap();
        let ids: Vec<&str> = prompts
            .iter()
            .map(|prompt| prompt["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, IDS, "the order of the stack");
        let bindings: Vec<&Value> = prompts
            .iter()
            .flat_map(|prompt| prompt["bindings"].as_array().unwrap())
            .collect();
        assert_eq!(bindings.len(), 4, "{explained}");
        for why in prompts
            .iter()
            .chain(bindings)
            .map(|one| one["why"].as_str().unwrap())
        {
            assert!(why.len() > 10, "{why}");
        }
        let answer = node
            .get(&format!("/v1/resolve?to={ACME}&{context}"))
            .await
            .json();
        let chosen: Vec<&str> = prompts
            .iter()
            .filter(|prompt| prompt["chosen"] == true)
            .map(|prompt| prompt["id"].as_str().unwrap())
            .collect();
        assert_eq!(answer.pointer("/prompt/ids").unwrap(), &chosen.join(","));
        assert_eq!(explained["revision"], answer["revision"]);
        for (field, of) in explained["fields"].as_object().unwrap() {
            assert_eq!(of["value"], answer[field], "{field}");
            assert!(
                ["tenant_phone_numbers", "tenant_settings", "prompt_bindings"]
                    .contains(&of["table"].as_str().unwrap())
            );
            assert_eq!(of["revision"].as_str().unwrap().len(), 16, "{field}");
        }
        assert_eq!(
            explained.pointer("/business_hours/value"),
            Some(&answer["business_hours"])
        );
        assert_eq!(
            explained["credentials"],
            json!([{"provider": "openai", "name": "default", "status": "ok", "why": ""}])
        );
    }
    let with = node
        .get(&format!(
            "/v1/explain?to={ACME}&{SUNDAY}&account_ref=ACME-001234"
        ))
        .await
        .json();
    assert_eq!(
        with.pointer("/fields/voice/id"),
        Some(&json!("b1d00002-0002-4002-8002-000200020002"))
    );
    assert_eq!(
        with.pointer("/fields/voice/table"),
        Some(&json!("prompt_bindings"))
    );
    assert_eq!(
        with.pointer("/fields/model/table"),
        Some(&json!("tenant_settings"))
    );
    // Why a binding misses is told in its own words.
    let miss = node
        .get(&format!(
            "/v1/explain?to={ACME}&{MONDAY}&account_ref=ACME-001234&event_type=door_open&zone=Z7"
        ))
        .await
        .body;
    assert!(
        miss.contains("Z7") && miss.contains("outside_business_hours"),
        "{miss}"
    );
    // A suspended tenant is explained with the code that its calls get.
    let suspended = node.get(&format!("/v1/explain?to={SUSPENDED}")).await;
    assert_eq!(
        (suspended.status, suspended.text("/status")),
        (403, "tenant_suspended".to_owned())
    );
    assert_eq!(suspended.text("/fields/language/value"), "es-AR");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_tells_each_way_not_to_be_chosen() {
    let desk = Desk::open().await;
    desk.change(
        "select make.prompt($t, 'inactive', priority => 6, content => 'HIDDEN'); update public.prompts set active = false where tenant_id = $t;
         insert into public.prompts (tenant_id, name, scope, priority) values ($t, 'versionless', 'global', 5);
         select make.prompt($t, 'unbound', 'account', 4, 'HIDDEN');
         select make.prompt($t, 'elsewhere', 'account', 3, 'HIDDEN'), make.bind($t, 'elsewhere', account => 'B');
         select make.prompt($t, 'unnamed', 'account', 2, 'HIDDEN'), make.bind($t, 'unnamed', event => 'E')",
    )
    .await;
    let explained = desk.reply("explain", "account_ref=A&event_type=E").await;
    assert!(!explained.body.contains("HIDDEN"));
    let explained = explained.json();
    let whys: Vec<&str> = explained["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| prompt["why"].as_str().unwrap())
        .collect();
    for (why, word) in whys.iter().zip([
        "active",
        "version",
        "no binding",
        "none of its bindings",
        "account_ref",
    ]) {
        assert!(why.contains(word), "{word} in {why}");
    }
    let mut different = whys.clone();
    different.dedup();
    assert_eq!(different.len(), 5, "{whys:?}");
    assert!(
        explained["prompts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|prompt| prompt["chosen"] == false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_the_answers_are_the_same_and_credentials_are_not_given() {
    let node = shared_node().await;
    for path in [
        format!("/v1/lookup?to={ACME}&{SUNDAY}"),
        format!("/v1/lookup?to={ACME}&{SUNDAY}&format=form"),
        format!("/v1/lookup/language?to={ACME}"),
        format!("/v1/resolve?to={ACME}&{SUNDAY}&account_ref=ACME-001234"),
        format!("/v1/explain?to={ACME}&{SUNDAY}"),
        format!("/v1/lookup?to={UNKNOWN}"),
        format!("/v1/lookup?to={SUSPENDED}"),
        "/v1/lookup?to=abc".to_owned(),
        "/v1/nothing".to_owned(),
        "/healthz".to_owned(),
    ] {
        let (unix, tcp) = (node.get(&path).await, node.get_tcp(&path).await);
        assert_eq!(
            (tcp.status, masked(&tcp.body)),
            (unix.status, masked(&unix.body)),
            "{path}"
        );
        assert_eq!(tcp.headers.get("etag"), unix.headers.get("etag"));
        assert_eq!(
            tcp.headers.get("content-type"),
            unix.headers.get("content-type")
        );
    }
    for path in [
        format!("/v1/credentials?to={ACME}"),
        format!("/v1/credentials?to={ACME}&provider=openai"),
        format!("/v1/resolve?to={ACME}&include=credentials"),
        // Whose number it is does not matter: nothing is looked up.
        format!("/v1/credentials?to={UNKNOWN}"),
        format!("/v1/credentials?to={SUSPENDED}"),
    ] {
        let reply = node.get_tcp(&path).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (403, "credentials_need_unix_socket".to_owned()),
            "{path}"
        );
        well_formed(&reply, "application/json");
        assert!(!reply.body.contains(SECRET));
    }
    let body = r#"{"to":"+14155550100","include":"credentials"}"#;
    let post = format!(
        "POST /v1/resolve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = exchange(
        TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap(),
        &post,
    )
    .await
    .unwrap();
    assert_eq!(reply.text("/status"), "credentials_need_unix_socket");
    assert_eq!(
        raw(node, &post).await.text("/credentials/openai/default"),
        SECRET
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_a_request_for_another_host_or_from_another_page_is_refused() {
    let node = shared_node().await;
    let path = format!("/v1/lookup?to={ACME}");
    let ask = async |request: String| {
        exchange(
            TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap(),
            &request,
        )
        .await
        .unwrap()
    };
    for (head, code) in [
        ("Host: localhost".to_owned(), 200),
        (format!("Host: 127.0.0.1:{}", node.tcp), 200),
        ("Host: [::1]:1".to_owned(), 200),
        (
            "Host: localhost\r\nOrigin: http://localhost:3000".to_owned(),
            200,
        ),
        ("Host: evil.example".to_owned(), 403),
        ("Host: localhost.evil.example".to_owned(), 403),
        ("Host: 127.0.0.1.nip.io".to_owned(), 403),
        ("Host: 192.168.0.1".to_owned(), 403),
        (
            "Host: localhost\r\nOrigin: https://evil.example".to_owned(),
            403,
        ),
        ("Host: localhost\r\nOrigin: null".to_owned(), 403),
        ("Host: localhost\r\nHost: localhost".to_owned(), 400),
        ("X-Host: localhost".to_owned(), 400),
    ] {
        for path in [path.as_str(), "/metrics", "/healthz"] {
            let reply = ask(format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n")).await;
            assert_eq!(reply.status, code, "{head} {path}");
            if code != 200 {
                assert_eq!(
                    reply.text("/status"),
                    if code == 403 {
                        "forbidden"
                    } else {
                        "bad_request"
                    }
                );
                well_formed(&reply, "application/json");
            }
        }
    }
    // On the Unix socket there is no browser.
    let reply = raw(
        node,
        &format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\nOrigin: null\r\n\r\n"),
    )
    .await;
    assert_eq!(reply.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_head_and_kept_connections_are_answered() {
    let node = shared_node().await;
    let path = format!("/v1/resolve?to={ACME}&{SUNDAY}");
    let full = node.get(&path).await;
    for host in ["", "Host: localhost\r\n"] {
        let request = format!(
            "GET {path} HTTP/1.0\r\n{host}Accept-Encoding: gzip, br\r\nTE: trailers\r\n\r\n"
        );
        for reply in [
            raw(node, &request).await,
            exchange(
                TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap(),
                &request,
            )
            .await
            .unwrap(),
        ] {
            assert_eq!(masked(&reply.body), masked(&full.body));
            well_formed(&reply, "application/json");
        }
    }
    let closed = node
        .raw(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await;
    assert!(
        closed.ends_with('}') && closed.starts_with("HTTP/1.0 200")
            || closed.starts_with("HTTP/1.1 200"),
        "{closed}"
    );
    let head = raw(
        node,
        &format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
    .await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.headers.get("etag"), full.headers.get("etag"));
    let mut line = UnixStream::connect(node.unix()).await.unwrap();
    for _ in 0..3 {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut line, request.as_bytes())
            .await
            .unwrap();
        let reply = tokio::time::timeout(Duration::from_secs(5), read_reply(&mut line, false))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(masked(&reply.body), masked(&full.body));
    }
}
