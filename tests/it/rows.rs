//! What a bad row costs: its own answer only what it must, counted and named, and nothing else (design section 3).

use serde_json::{Value, json};

use crate::cluster::{Cluster, Db};
use crate::desk::{Desk, MONDAY};
use crate::node::{Node, until};

/// Small enough to go over.
const LIMITS: &str = "limits.prompt_bytes = '100 B'\nlimits.credential_bytes = '600 B'\nlimits.rows_per_tenant = 5\nfeed.hold_if_lost_percent = 100";

/// A node with small limits, and two tenants: one to spoil and one to leave alone.
struct Scene {
    node: Node,
    db: Db<'static>,
}

impl Scene {
    async fn set() -> Self {
        let db = Cluster::shared().database().await;
        let node = Node::on(&db, LIMITS).await;
        Self { node, db }
    }

    async fn desk(&self) -> Desk<'_> {
        Desk::on(&self.node, self.db.name()).await
    }
}

/// What is the same in two answers unless rows differ.
fn rows_of(mut answer: Value) -> Value {
    let fields = answer.as_object_mut().unwrap();
    fields.remove("staleness_ms");
    fields.remove("stale");
    answer
}

async fn counted(node: &Node, table: &str, reason: &str) -> f64 {
    node.metric(&format!(
        r#"sidetone_quarantined_rows{{reason="{reason}",table="{table}"}}"#
    ))
    .await
}

/// The bad rows of a node: those that metrics count, and those that `status` names, as `table reason key`.
async fn bad_rows(node: &Node) -> Vec<String> {
    // Answers change a moment before the bad rows are told: what the feed does next comes after both.
    node.admin(
        "POST",
        "/v1/admin/refresh",
        r#"{"scope":"all","wait":true}"#,
    )
    .await;
    let metrics = node.get("/metrics").await.body;
    let counts = metrics.lines().filter_map(|line| {
        line.strip_prefix("sidetone_quarantined_rows{")?
            .rsplit(' ')
            .next()?
            .parse::<f64>()
            .ok()
    });
    let status = node.admin("GET", "/v1/admin/status", "").await.json();
    let named = status["quarantined"].as_array().unwrap();
    assert_eq!(counts.sum::<f64>(), named.len() as f64, "{status}");
    assert_eq!(status["quarantined_rows"], named.len());
    let text = |fault: &Value, field: &str| fault[field].as_str().unwrap().to_owned();
    named
        .iter()
        .map(|fault| {
            format!(
                "{} {} {}",
                text(fault, "table"),
                text(fault, "reason"),
                text(fault, "key")
            )
        })
        .collect()
}

/// Exactly one row is bad: counted, named by `status` and named by explain, with words about what is wrong.
async fn is_the_one_bad_row(
    desk: &Desk<'_>,
    table: &str,
    reason: &str,
    key: &str,
    last_good: bool,
) {
    assert_eq!(
        bad_rows(desk.node).await,
        [format!("{table} {reason} {key}")]
    );
    assert_eq!(counted(desk.node, table, reason).await, 1.0);
    let explained = desk.reply("explain", "").await.json();
    let [fault] = explained["faults"].as_array().unwrap().as_slice() else {
        panic!("{explained}")
    };
    assert_eq!(
        (&fault["table"], &fault["reason"], &fault["key"]),
        (&json!(table), &json!(reason), &json!(key))
    );
    assert_eq!(fault["last_good"], last_good, "{fault}");
    assert!(fault["detail"].as_str().unwrap().len() > 10, "{fault}");
}

async fn is_clean(desk: &Desk<'_>) {
    assert_eq!(bad_rows(desk.node).await, [""; 0]);
    assert_eq!(desk.reply("explain", "").await.json()["faults"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_number_keeps_its_last_good_row_and_disturbs_no_other() {
    let scene = Scene::set().await;
    let (desk, other) = (scene.desk().await, scene.desk().await);
    let sibling = encoded_sibling(&desk).await;
    let (good, others) = (
        rows_of(desk.ask(MONDAY).await),
        rows_of(other.ask(MONDAY).await),
    );
    for (column, value, reason) in [
        ("timezone", "'Mars/Olympus_Mons'", "timezone"),
        ("timezone", "''", "timezone"),
        ("timezone", "'localtime'", "timezone"),
        ("timezone", "'<+03>-3'", "timezone"),
        ("timezone", "'../../etc/passwd'", "timezone"),
        ("timezone", "E'UTC\\n'", "control_character"),
        ("default_language", "'es_AR'", "language"),
        ("default_language", "''", "language"),
        ("default_language", "'x'", "language"),
        ("default_language", "'español'", "language"),
        ("default_language", "E'es\\t'", "control_character"),
        ("label", "E'two\\nlines'", "control_character"),
        ("default_voice", "E'v\\u0085'", "control_character"),
    ] {
        // What else changed in the row is not half in force.
        desk.change(&format!("update public.tenant_phone_numbers set active = true, label = 'newer', {column} = {value} where id = $n").replace("label = 'newer', label", "label")).await;
        assert_eq!(rows_of(desk.ask(MONDAY).await), good, "{column} {value}");
        is_the_one_bad_row(&desk, "tenant_phone_numbers", reason, &desk.number, true).await;
        // The tenant's other number follows the log all the while, and so does the other tenant.
        assert_eq!(desk.node.get(&sibling).await.status, 200);
        assert_eq!(rows_of(other.ask(MONDAY).await), others);
        assert_eq!(other.reply("explain", "").await.json()["faults"], json!([]));
    }
    desk.change(
        "update public.tenant_phone_numbers set label = 'mended', default_language = 'pt-BR', default_voice = 'v', timezone = 'utc' where id = $n",
    )
    .await;
    let mended = desk.ask(MONDAY).await;
    assert_eq!(
        [
            &mended["label"],
            &mended["language"],
            &mended["voice"],
            &mended["timezone"]
        ],
        ["mended", "pt-BR", "v", "UTC"]
    );
    is_clean(&desk).await;
}

async fn encoded_sibling(desk: &Desk<'_>) -> String {
    let e164: String = desk
        .db
        .value(&desk.words(
            "select e164::text from public.tenant_phone_numbers where tenant_id = $t and id <> $n",
        ))
        .await;
    format!("/v1/lookup?to={}", crate::desk::encoded(&e164))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_keep_the_last_good_ones() {
    let scene = Scene::set().await;
    let (desk, other) = (scene.desk().await, scene.desk().await);
    let (good, others) = (
        rows_of(desk.ask(MONDAY).await),
        rows_of(other.ask(MONDAY).await),
    );
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let long = format!(r#"{{"mon":["{}"]}}"#, "x".repeat(70_000));
    for (column, value, reason) in [
        ("business_hours", r#"'"always"'"#, "business_hours"),
        ("business_hours", "'[]'", "business_hours"),
        ("business_hours", "'7'", "business_hours"),
        ("business_hours", r#"'{"monday":[]}'"#, "business_hours"),
        (
            "business_hours",
            r#"'{"mon":"09:00-18:00"}'"#,
            "business_hours",
        ),
        ("business_hours", r#"'{"mon":null}'"#, "business_hours"),
        (
            "business_hours",
            r#"'{"mon":["9:00-18:00"]}'"#,
            "business_hours",
        ),
        (
            "business_hours",
            r#"'{"mon":["09:00-24:01"]}'"#,
            "business_hours",
        ),
        ("business_hours", r#"'{"mon":[900]}'"#, "business_hours"),
        (
            "business_hours",
            r#"'{"exceptions":{"2026-02-30":[]}}'"#,
            "business_hours",
        ),
        ("business_hours", r#"'{"exceptions":[]}'"#, "business_hours"),
        ("business_hours", "'1e400'", "business_hours"),
        ("business_hours", &format!("'{deep}'"), "business_hours"),
        ("business_hours", &format!("'{long}'"), "too_long"),
        (
            "business_hours",
            r#"'{"mon\u0001":[]}'"#,
            "control_character",
        ),
        ("model", "E'gpt\\r'", "control_character"),
        ("transcription_provider", "E'\\x1b'", "control_character"),
    ] {
        desk.change(&format!(
            "update public.tenant_settings set model = 'newer', recording_enabled = false where tenant_id = $t;
             update public.tenant_settings set {column} = {value} where tenant_id = $t"
        ))
        .await;
        assert_eq!(
            rows_of(desk.ask(MONDAY).await),
            good,
            "{column} {}",
            value.get(..40).unwrap_or(value)
        );
        is_the_one_bad_row(&desk, "tenant_settings", reason, &desk.tenant, true).await;
        assert_eq!(rows_of(other.ask(MONDAY).await), others);
        // Mended in between, so that each is bad for its own reason.
        desk.change(
            r#"update public.tenant_settings set model = 'model', transcription_provider = 'provider', recording_enabled = true, business_hours =
               '{"mon":["09:00-18:00"],"tue":["09:00-18:00"],"wed":["09:00-18:00"],"thu":["09:00-18:00"],"fri":["09:00-18:00"]}' where tenant_id = $t"#,
        )
        .await;
        is_clean(&desk).await;
    }
    // Never good is as if there were none.
    desk.change("delete from public.tenant_settings where tenant_id = $t")
        .await;
    desk.change("insert into public.tenant_settings (tenant_id, model, business_hours) values ($t, 'm', '7')").await;
    let answer = desk.ask(MONDAY).await;
    assert_eq!(
        (&answer["model"], &answer["business_hours"]),
        (&json!(""), &json!(""))
    );
    is_the_one_bad_row(
        &desk,
        "tenant_settings",
        "business_hours",
        &desk.tenant,
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_tenant_keeps_its_last_good_row() {
    let scene = Scene::set().await;
    let desk = scene.desk().await;
    let good = rows_of(desk.ask(MONDAY).await);
    for change in [
        "name = E'Two\\nlines'",
        "slug = E'de\\tsk'",
        "status = E'active\\r'",
    ] {
        desk.change(&format!("update public.tenants set {change} where id = $t"))
            .await;
        assert_eq!(rows_of(desk.ask(MONDAY).await), good, "{change}");
        is_the_one_bad_row(&desk, "tenants", "control_character", &desk.tenant, true).await;
        // The rest of the tenant is followed.
        desk.change("update public.tenant_settings set model = 'followed' where tenant_id = $t")
            .await;
        assert_eq!(desk.ask(MONDAY).await["model"], "followed");
        desk.change("update public.tenant_settings set model = 'model' where tenant_id = $t")
            .await;
        desk.change(&format!(
            "update public.tenants set name = 'Desk', slug = '{}', status = 'active' where id = $t",
            desk.slug
        ))
        .await;
        is_clean(&desk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_rows_stay_in_force_over_a_restart() {
    let mut scene = Scene::set().await;
    let desk = scene.desk().await;
    desk.change("select make.prompt($t, 'p'), make.bind($t, 'p', '{\"zone\":\"Z1\"}')")
        .await;
    let good = rows_of(desk.ask(MONDAY).await);
    desk.change(
        "update public.tenants set name = E'\\x01' where id = $t;
         update public.tenant_settings set business_hours = '7', model = 'newer' where tenant_id = $t;
         update public.tenant_phone_numbers set timezone = 'Mars/Olympus', default_voice = 'newer' where id = $n;
         update public.prompt_bindings set conditions_json = '7' where prompt_id in (select id from public.prompts where tenant_id = $t)",
    )
    .await;
    assert_eq!(rows_of(desk.ask(MONDAY).await)["model"], good["model"]);
    let path = desk.path("resolve", &format!("{MONDAY}&zone=Z1"));
    let told = bad_rows(desk.node).await;
    assert_eq!(told.len(), 4, "{told:?}");
    let before = rows_of(desk.ask(&format!("{MONDAY}&zone=Z1")).await);
    let (number, tenant) = (desk.number_id.clone(), desk.tenant.clone());
    drop(desk);
    for kill in [false, true] {
        if kill {
            scene.node.kill();
        } else {
            scene.node.stop();
        }
        scene.node.start();
        scene.node.answering().await;
        assert_eq!(rows_of(scene.node.get(&path).await.json()), before);
        until("the bad rows are told again", async || {
            bad_rows(&scene.node).await == told
        })
        .await;
    }
    // A comparison with Postgres finds bad rows where they were, and nothing to repair.
    let report = scene.node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(report.json()["differences"], 0, "{report:?}");
    assert_eq!(rows_of(scene.node.get(&path).await.json()), before);
    scene
        .db
        .sql(&format!(
            "begin; update public.tenants set name = 'Mended' where id = '{tenant}';
             update public.tenant_settings set business_hours = null where tenant_id = '{tenant}';
             update public.tenant_phone_numbers set timezone = 'UTC' where id = '{number}';
             update public.prompt_bindings set conditions_json = '{{}}' where prompt_id in (select id from public.prompts where tenant_id = '{tenant}'); commit"
        ))
        .await;
    let mended = scene
        .node
        .until(&path, |reply| reply.text("/tenant/name") == "Mended")
        .await
        .json();
    assert_eq!(
        [
            &mended["model"],
            &mended["voice"],
            &mended["timezone"],
            &mended["business_hours"]
        ],
        ["newer", "newer", "UTC", ""]
    );
    assert_eq!(bad_rows(&scene.node).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_was_never_good_is_not_ready_and_its_neighbours_are() {
    let scene = Scene::set().await;
    let desk = scene.desk().await;
    desk.change(
        "insert into public.tenant_phone_numbers (tenant_id, e164, default_language, timezone)
         values ($t, '+16509000001', 'en', 'Mars/Olympus'), ($t, '+16509000002', 'en', 'UTC')",
    )
    .await;
    let bad = "/v1/lookup?to=%2B16509000001";
    let reply = desk.node.get(bad).await;
    // An error is not an absence.
    assert_eq!(
        (reply.status, reply.text("/status")),
        (503, "not_ready".to_owned())
    );
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(
        desk.node.get("/v1/lookup?to=%2B16509000002").await.status,
        200
    );
    assert_eq!(
        bad_rows(desk.node).await,
        ["tenant_phone_numbers timezone +16509000001"]
    );
    let explained = desk.node.get("/v1/explain?to=%2B16509000001").await;
    assert_eq!(
        (explained.status, explained.text("/status")),
        (503, "not_ready".to_owned())
    );
    assert_eq!(explained.text("/faults/0/reason"), "timezone");
    desk.change(
        "update public.tenant_phone_numbers set timezone = 'UTC' where e164 = '+16509000001'",
    )
    .await;
    assert_eq!(desk.node.get(bad).await.status, 200);
    is_clean(&desk).await;
    // Bad again, it has a last good row; gone, it is unknown and not bad any more.
    desk.change("update public.tenant_phone_numbers set timezone = 'Mars/Olympus' where e164 = '+16509000001'").await;
    assert_eq!(desk.node.get(bad).await.status, 200);
    desk.change("delete from public.tenant_phone_numbers where e164 = '+16509000001'")
        .await;
    assert_eq!(desk.node.get(bad).await.text("/status"), "unknown_number");
    is_clean(&desk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_row_of_a_number_does_not_follow_it_to_another_tenant() {
    let scene = Scene::set().await;
    let (desk, other) = (scene.desk().await, scene.desk().await);
    let moved = format!(
        "update public.tenant_phone_numbers set tenant_id = '{}', timezone = 'Mars/Olympus' where id = $n",
        other.tenant
    );
    desk.change(&moved).await;
    let reply = desk.reply("lookup", "").await;
    assert_eq!(
        (reply.status, reply.text("/status")),
        (503, "not_ready".to_owned())
    );
    desk.change("update public.tenant_phone_numbers set timezone = 'UTC' where id = $n")
        .await;
    assert_eq!(
        desk.reply("lookup", "").await.text("/tenant/slug"),
        other.slug
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_prompt_is_left_out_and_the_rest_of_the_stack_stands() {
    let scene = Scene::set().await;
    let desk = scene.desk().await;
    let id = "00000000-0000-4000-8000-000000000001";
    desk.change(&format!("select make.prompt($t, 'before', priority => 2), make.prompt($t, 'p', priority => 1, id => '{id}'), make.prompt($t, 'after')")).await;
    assert_eq!(desk.stack("").await, "before p after");
    let version: String = desk
        .db
        .value(&format!(
            "select id::text from public.prompt_versions where prompt_id = '{id}'"
        ))
        .await;
    let content = |sql: &str| {
        format!("update public.prompt_versions set content = {sql} where prompt_id = '{id}'")
    };
    for (change, table, reason, key) in [
        (
            format!("update public.prompts set name = E'p\\n' where id = '{id}'"),
            "prompts",
            "control_character",
            id,
        ),
        (
            format!("update public.prompts set created_at = 'infinity' where id = '{id}'"),
            "prompts",
            "malformed",
            id,
        ),
        (
            format!("update public.prompts set created_at = '-infinity' where id = '{id}'"),
            "prompts",
            "malformed",
            id,
        ),
        (
            content("repeat('x', 101)"),
            "prompt_versions",
            "too_long",
            version.as_str(),
        ),
        (
            content("repeat('ñ', 51)"),
            "prompt_versions",
            "too_long",
            version.as_str(),
        ),
        (
            content("repeat('x', 2 * 1024 * 1024)"),
            "prompt_versions",
            "too_long",
            version.as_str(),
        ),
    ] {
        desk.change(&change).await;
        assert_eq!(desk.stack("").await, "before after", "{change}");
        is_the_one_bad_row(&desk, table, reason, key, false).await;
        desk.change(&format!("update public.prompts set name = 'p', created_at = '2026-01-01Z' where id = '{id}'; {}", content("'p'"))).await;
        assert_eq!(desk.stack("").await, "before p after");
        is_clean(&desk).await;
    }
    // At the limit, and with control characters in the content, it is good.
    desk.change(&content("repeat('x', 100)")).await;
    assert_eq!(desk.stack("").await, "before p after");
    desk.change(&content("E'a\\n\\tb\\x01'")).await;
    assert_eq!(
        desk.ask("").await.pointer("/prompt/layers/1/content"),
        Some(&json!("a\n\tb\u{1}"))
    );
    is_clean(&desk).await;
    // An older version is not what the platform says.
    desk.change(&format!("insert into public.prompt_versions (prompt_id, version, content) values ('{id}', 2, repeat('x', 101))")).await;
    assert_eq!(desk.stack("").await, "before after");
    // An effect of a prompt that is left out is none.
    assert_eq!(bad_rows(desk.node).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_binding_is_left_out_and_a_call_never_fails_for_it() {
    let scene = Scene::set().await;
    let desk = scene.desk().await;
    let id = "00000000-0000-4000-8000-000000000002";
    desk.change(&format!(
        "select make.prompt($t, 'p', 'account', 1), make.bind($t, 'p', account => 'A'), make.bind($t, 'p', account => 'B', id => '{id}');
         select make.prompt($t, 'q')"
    ))
    .await;
    let deep = format!("{}1{}", r#"{"a":"#.repeat(3000), "}".repeat(3000));
    let many = format!(
        "{{{}}}",
        (0..200)
            .map(|i| format!(r#""k{i}":1"#))
            .collect::<Vec<_>>()
            .join(",")
    );
    let list = format!(
        r#"{{"zone_in":[{}]}}"#,
        (0..3000)
            .map(|i| i.to_string())
            .collect::<Vec<_>>()
            .join(",")
    );
    let huge = format!(r#"{{"zone":"{}"}}"#, "x".repeat(300_000));
    for (conditions, reason) in [
        ("7", "conditions"),
        ("[]", "conditions"),
        (r#""zone""#, "conditions"),
        (r#"{"zone":{"in":["Z1"]}}"#, "conditions"),
        (r#"{"zone":["Z1"]}"#, "conditions"),
        (r#"{"zone":null}"#, "conditions"),
        (r#"{"zone_in":"Z1"}"#, "conditions"),
        (r#"{"zone_in":[["Z1"]]}"#, "conditions"),
        (r#"{"zone_in":[null]}"#, "conditions"),
        (r#"{"zone_not_in":{}}"#, "conditions"),
        (r#"{"outside_business_hours":"true"}"#, "conditions"),
        (r#"{"outside_business_hours":1}"#, "conditions"),
        (r#"{"volume_override":"loud"}"#, "conditions"),
        (r#"{"_override":"x"}"#, "conditions"),
        (r#"{"language_override":7}"#, "conditions"),
        (r#"{"language_override":"es_AR"}"#, "conditions"),
        (r#"{"timezone_override":"Mars/Olympus"}"#, "conditions"),
        (r#"{"recording_enabled_override":"true"}"#, "conditions"),
        (r#"{"voice_override":null}"#, "conditions"),
        (r#"{"":"x"}"#, "conditions"),
        (r#"{"_in":["x"]}"#, "conditions"),
        (r#"{"level":1e400}"#, "conditions"),
        (r#"{"level_in":[1,-1e400]}"#, "conditions"),
        (&deep, "conditions"),
        (&many, "conditions"),
        (&list, "conditions"),
        (&huge, "too_long"),
        (r#"{"zone":"a\u0007"}"#, "control_character"),
        (r#"{"zo\u0001ne":"a"}"#, "control_character"),
    ] {
        let shown = conditions.get(..40).unwrap_or(conditions);
        desk.change(&format!(
            "update public.prompt_bindings set conditions_json = '{conditions}' where id = '{id}'"
        ))
        .await;
        assert_eq!(desk.stack("account_ref=B").await, "q", "{shown}");
        assert_eq!(desk.stack("account_ref=A").await, "p q", "{shown}");
        is_the_one_bad_row(&desk, "prompt_bindings", reason, id, false).await;
    }
    for columns in [
        "account_ref = E'B\\n'",
        "event_type = E'\\x7f'",
        "created_at = 'infinity'",
    ] {
        desk.change(&format!("update public.prompt_bindings set conditions_json = '{{}}', {columns} where id = '{id}'")).await;
        assert_eq!(desk.stack("account_ref=B").await, "q", "{columns}");
        assert_eq!(bad_rows(desk.node).await.len(), 1, "{columns}");
    }
    for conditions in ["'{}'", "null", "'{\"level\":1e300}'"] {
        desk.change(&format!(
            "update public.prompt_bindings set conditions_json = {conditions}, account_ref = 'B', event_type = null, created_at = now() where id = '{id}'"
        ))
        .await;
        is_clean(&desk).await;
    }
    desk.change(&format!(
        "update public.prompt_bindings set conditions_json = null where id = '{id}'"
    ))
    .await;
    assert_eq!(desk.stack("account_ref=B").await, "p q");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_prompt_whose_only_binding_is_invalid_applies_to_no_call() {
    let scene = Scene::set().await;
    let desk = scene.desk().await;
    desk.change("select make.prompt($t, 'narrow', priority => 1), make.bind($t, 'narrow', '{\"zone\":\"Z1\"}'); select make.prompt($t, 'wide')").await;
    assert_eq!(desk.stack("zone=Z1").await, "narrow wide");
    let binding = "(select id from public.prompts where tenant_id = $t and name = 'narrow')";
    desk.change(&format!("update public.prompt_bindings set conditions_json = '{{\"zone\":{{}}}}' where prompt_id = {binding}")).await;
    for context in ["", "zone=Z1", "zone=Z2&account_ref=A&event_type=E"] {
        assert_eq!(desk.stack(context).await, "wide", "{context}");
    }
    let explained = desk.reply("explain", "").await.json();
    let narrow = &explained["prompts"][0];
    assert_eq!(
        (
            &narrow["name"],
            &narrow["chosen"],
            &narrow["bindings_left_out"]
        ),
        (&json!("narrow"), &json!(false), &json!(1))
    );
    assert!(narrow["why"].as_str().unwrap().contains("bad"), "{narrow}");
    // Without any binding it applies to all.
    desk.change(&format!(
        "delete from public.prompt_bindings where prompt_id = {binding}"
    ))
    .await;
    assert_eq!(desk.stack("").await, "narrow wide");
    is_clean(&desk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_does_not_open_for_its_row_is_withheld_and_listed() {
    let scene = Scene::set().await;
    let (desk, other) = (scene.desk().await, scene.desk().await);
    let id = "00000000-0000-4000-8000-000000000003";
    let insert = |id: &str, provider: &str, name: &str, sealed: &str| {
        format!(
            "insert into public.tenant_credentials (id, tenant_id, provider, name, data_ciphertext) values ('{id}', $t, '{provider}', '{name}', '{sealed}');"
        )
    };
    let (good, sealed) = (
        desk.seal("openai", "default", "canary-good"),
        desk.seal("google", "default", "canary-bad"),
    );
    desk.change(
        &(insert(
            "00000000-0000-4000-8000-000000000004",
            "openai",
            "default",
            &good,
        ) + &insert(id, "google", "default", &sealed)),
    )
    .await;
    assert_eq!(
        desk.reply("credentials", "")
            .await
            .text("/credentials/google/default"),
        "canary-bad"
    );
    is_clean(&desk).await;
    let mut broken = sealed.clone();
    let last = broken.pop().unwrap();
    broken.push(if last == 'A' { 'B' } else { 'A' });
    let stranger = Node::prepare("postgres://sidetone@127.0.0.1:1/none?sslmode=disable", "");
    for (sealed, reason) in [
        ("nonsense".to_owned(), "ciphertext"),
        (String::new(), "ciphertext"),
        (
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHyg=".to_owned(),
            "ciphertext",
        ), // the raw form, which is off
        (broken, "ciphertext"),
        // Sealed for another row: another provider, another name, another tenant.
        (desk.seal("openai", "default", "canary-moved"), "ciphertext"),
        (desk.seal("google", "backup", "canary-moved"), "ciphertext"),
        (
            other.seal("google", "default", "canary-moved"),
            "ciphertext",
        ),
        // Under a key of the same name that is another.
        (
            stranger.seal(&desk.tenant, "google", "default", "canary-moved"),
            "ciphertext",
        ),
        (desk.seal("google", "default", &"x".repeat(600)), "too_long"),
        ("x".repeat(100_000), "too_long"),
    ] {
        desk.change(&format!(
            "update public.tenant_credentials set data_ciphertext = '{sealed}' where id = '{id}'"
        ))
        .await;
        let reply = desk.reply("credentials", "").await;
        assert_eq!(reply.status, 200);
        let answer = reply.json();
        assert_eq!(
            answer["credentials"],
            json!({"openai": {"default": "canary-good"}}),
            "{reason} {:.60}",
            sealed
        );
        assert_eq!(answer["credentials_withheld"], json!(["google/default"]));
        let resolved = desk.reply("resolve", "include=credentials").await.json();
        assert_eq!(resolved["credentials_withheld"], json!(["google/default"]));
        is_the_one_bad_row(&desk, "tenant_credentials", reason, id, false).await;
        let explained = desk.reply("explain", "").await;
        assert!(
            !explained.body.contains("canary")
                && (sealed.len() < 20 || !explained.body.contains(&sealed)),
            "{explained:?}"
        );
        let told = explained.json();
        assert_eq!(
            (
                &told["credentials"][0]["provider"],
                &told["credentials"][0]["status"]
            ),
            (&json!("google"), &json!("withheld"))
        );
        assert!(told["credentials"][0]["why"].as_str().unwrap().len() > 10);
        assert_eq!(
            desk.reply("credentials", "provider=openai").await.json()["credentials_withheld"],
            json!([])
        );
    }
    assert_eq!(
        other.reply("credentials", "").await.json()["credentials_withheld"],
        json!([])
    );
    desk.change(&format!(
        "update public.tenant_credentials set data_ciphertext = '{sealed}' where id = '{id}'"
    ))
    .await;
    assert_eq!(
        desk.reply("credentials", "")
            .await
            .text("/credentials/google/default"),
        "canary-bad"
    );
    is_clean(&desk).await;
    // A name that cannot be told is not listed, and costs no other.
    desk.change(&format!(
        "update public.tenant_credentials set name = E'de\\nfault' where id = '{id}'"
    ))
    .await;
    let answer = desk.reply("credentials", "").await.json();
    assert_eq!(
        (&answer["credentials"], &answer["credentials_withheld"]),
        (&json!({"openai": {"default": "canary-good"}}), &json!([]))
    );
    is_the_one_bad_row(&desk, "tenant_credentials", "control_character", id, false).await;
    assert!(!scene.node.log().contains("canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_over_the_limit_of_a_tenant_are_left_out_and_counted() {
    let scene = Scene::set().await;
    let desk = scene.desk().await;
    let prompts: Vec<String> = (0..7).map(|i| format!("make.prompt($t, 'p{i}', priority => -{i}, id => '00000000-0000-4000-8000-00000000010{i}')")).collect();
    desk.change(&format!("select {}", prompts.join(","))).await;
    assert_eq!(desk.stack("").await, "p0 p1 p2 p3 p4");
    is_the_one_bad_row(&desk, "prompts", "too_many", &desk.tenant, false).await;
    desk.change("delete from public.prompts where tenant_id = $t and name in ('p1', 'p3')")
        .await;
    assert_eq!(desk.stack("").await, "p0 p2 p4 p5 p6");
    is_clean(&desk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_goes_on_whatever_the_rows_hold() {
    let scene = Scene::set().await;
    let (desk, other) = (scene.desk().await, scene.desk().await);
    let others = rows_of(other.ask(MONDAY).await);
    let deep = format!("{}{}", "[".repeat(6000), "]".repeat(6000));
    desk.change(&format!(
        "select make.prompt($t, 'p', content => repeat('x', 3 * 1024 * 1024));
         select make.bind($t, 'p', '{{\"a\":1e400}}'), make.bind($t, 'p', '{{\"a\":{deep}}}'), make.bind($t, 'p', to_jsonb(repeat('y', 5000000)));
         update public.tenant_settings set business_hours = jsonb_build_object('mon', 1e1000 * 9) where tenant_id = $t;
         insert into public.tenant_credentials (tenant_id, provider, name, data_ciphertext) values ($t, 'p', 'n', repeat('z', 4000000));
         insert into public.tenant_phone_numbers (tenant_id, e164, default_language, timezone)
         select $t, '+1651' || (1000000 + i), 'en', 'Mars/' || i from generate_series(1, 300) i;
         update public.tenants set name = repeat(E'\\x01', 255) where id = $t"
    ))
    .await;
    assert_eq!(desk.ask(MONDAY).await["tenant"]["name"], "Desk");
    // Counted a moment after the rows are answered from.
    until("all are counted", async || {
        counted(desk.node, "tenant_phone_numbers", "timezone").await == 300.0
    })
    .await;
    assert_eq!(
        desk.node.admin("GET", "/v1/admin/status", "").await.json()["quarantined_rows"],
        300 + 4
    );
    assert_eq!(rows_of(other.ask(MONDAY).await), others);
    desk.node.level().await;
    let report = desk.node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(report.json()["differences"], 0, "{report:?}");
    desk.change("delete from public.tenant_phone_numbers where e164 like '+1651%'; update public.tenants set name = 'Desk' where id = $t").await;
    until("none are counted", async || {
        counted(desk.node, "tenant_phone_numbers", "timezone").await == 0.0
    })
    .await;
    // At "info" and above the log names no number.
    let log = scene.node.log();
    let loud = log
        .lines()
        .filter(|line| !line.contains("\"DEBUG\"") && !line.contains("\"TRACE\""));
    for line in loud {
        assert!(!line.contains("+165"), "{line}");
    }
}
