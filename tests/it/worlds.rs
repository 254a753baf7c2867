//! Postgres is another one than before, or no longer as it was: failover, restore, rights, schema (feed.md, "What the
//! test suite must try").

use serde_json::json;

use crate::cluster::{Cluster, Options, Stop};
use crate::node::{ACME, Node, until};
use crate::proxy::Proxy;

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
const LABEL: &str = "/v1/lookup/label?to=%2B14155550100";
const QUICK: &str =
    "feed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '500ms'\nfeed.stale_after = '900ms'";

fn relabel(label: &str) -> String {
    format!("update public.tenant_phone_numbers set label = '{label}' where e164 = '+14155550100'")
}

async fn status(node: &Node, pointer: &str) -> serde_json::Value {
    node.admin("GET", "/v1/admin/status", "")
        .await
        .json()
        .pointer(pointer)
        .cloned()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_lacks_the_last_commits_is_believed_and_so_is_the_way_back() {
    let primary = Cluster::own(Options::default().tcp());
    let db = primary.database().await;
    let proxy = Proxy::before(primary.port()).await;
    let mut node = Node::prepare(&proxy.url(db.name()), QUICK);
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, "x"))
        .await;
    let standby = primary.standby(Options::default().tcp());
    node.start();
    node.synced().await;
    // The standby hears no more: what commits now is lost with the primary.
    let there = standby.open(db.name()).await;
    until("the standby has the rows", async || {
        there
            .value::<i64>("select count(*) from public.tenant_phone_numbers")
            .await
            == 3
    })
    .await;
    there.sql("select pg_wal_replay_pause()").await;
    db.sql(&relabel("lost")).await;
    db.sql("insert into public.tenant_phone_numbers (id, tenant_id, e164, default_language, timezone)
            values (gen_random_uuid(), 'd2c4a8e1-7b9f-4a6e-8a1b-77889900aabb', '+541150000077', 'es-AR', 'UTC')").await;
    node.until(LABEL, |reply| reply.body == "lost").await;
    let name = db.name().to_owned();
    drop(db);
    primary.stop(Stop::Immediate);
    there.sql("select pg_promote(false)").await;
    there.try_sql("select pg_wal_replay_resume()").await.ok();
    until("the standby is promoted", async || {
        !there.value::<bool>("select pg_is_in_recovery()").await
    })
    .await;
    // What it had received after the pause may have been replayed: put the world as if it had not.
    there
        .sql("delete from public.tenant_phone_numbers where e164 = '+541150000077'")
        .await;
    there.sql(&relabel("other branch")).await;
    proxy.redirect(standby.port()).await;
    node.until(LABEL, |reply| reply.body == "other branch")
        .await;
    node.until("/v1/lookup?to=%2B541150000077", |reply| reply.status == 404)
        .await;
    node.equals_database().await;
    primary.start();
    let db = primary.open(&name).await;
    proxy.redirect(primary.port()).await;
    node.until(LABEL, |reply| reply.body == "lost").await;
    node.until("/v1/lookup?to=%2B541150000077", |reply| reply.status == 200)
        .await;
    drop(db);
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_data_directory_at_the_same_address_is_noticed() {
    let newer = Cluster::own(Options::default().tcp());
    let db = newer.database().await;
    let proxy = Proxy::before(newer.port()).await;
    let mut node = Node::prepare(&proxy.url(db.name()), QUICK);
    db.load_example().await;
    db.sql(&relabel("old")).await;
    let name = db.name().to_owned();
    drop(db);
    newer.stop(Stop::Fast);
    let older = newer.copy();
    newer.start();
    let db = newer.open(&name).await;
    node.start();
    node.synced().await;
    for i in 0..20 {
        db.sql(&relabel(&format!("new {i}"))).await;
    }
    node.until(LABEL, |reply| reply.body == "new 19").await;
    // On the older copy the same transaction ids come again with other content, and more of them than the node has seen:
    // the cold number's change has one that the cursor takes for known.
    older.start();
    let back = older.open(&name).await;
    back.sql("update public.tenant_phone_numbers set label = 'cold' where e164 = '+541150000002'")
        .await;
    for i in 0..40 {
        back.sql(&relabel(&format!("again {i}"))).await;
    }
    proxy.redirect(older.port()).await;
    node.until(LABEL, |reply| reply.body == "again 39").await;
    node.until("/v1/lookup/label?to=%2B541150000002", |reply| {
        reply.body == "cold"
    })
    .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_from_a_dump_is_compared_and_followed() {
    let first = Cluster::own(Options::default().tcp());
    if let Some(why) = first.cannot_be_dumped() {
        return println!(
            "skipped: a_database_restored_from_a_dump_is_compared_and_followed: {why}"
        );
    }
    let db = first.database().await;
    let proxy = Proxy::before(first.port()).await;
    let mut node = Node::prepare(&proxy.url(db.name()), QUICK);
    db.load_example().await;
    // So that the log names transactions the new server has not begun yet.
    db.sql(
        "do $$ begin for i in 1..300 loop perform pg_current_xact_id(); commit; end loop; end $$",
    )
    .await;
    db.sql(&relabel("dumped")).await;
    node.start();
    node.synced().await;
    let dump = std::process::Command::new("pg_dump")
        .args(["--dbname", &first.url("postgres", db.name())])
        .output()
        .unwrap();
    assert!(dump.status.success(), "{dump:?}");
    let second = Cluster::stranger(Options::default().tcp());
    second.admin().await.sql("create role sidetone login").await;
    second
        .admin()
        .await
        .sql(&format!("create database {}", db.name()))
        .await;
    let mut restore = std::process::Command::new("psql")
        .args(["-qX", "--dbname", &second.url("postgres", db.name())])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(restore.stdin.as_mut().unwrap(), &dump.stdout).unwrap();
    assert!(restore.wait().unwrap().success());
    let there = second.open(db.name()).await;
    there.sql(&relabel("restored")).await;
    proxy.redirect(second.port()).await;
    node.until(LABEL, |reply| reply.body == "restored").await;
    there.sql(&relabel("and followed")).await;
    node.until(LABEL, |reply| reply.body == "and followed")
        .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_columns_and_policies_that_go_away_stop_nothing_and_are_told() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, QUICK).await;
    let cases = [
        (
            "revoke select on public.tenants from sidetone",
            "grant select (id, name, slug, status) on public.tenants to sidetone",
            "permission denied",
        ),
        (
            "alter table public.tenant_phone_numbers rename column label to caption",
            "alter table public.tenant_phone_numbers rename column caption to label",
            "label",
        ),
        (
            "alter function sidetone.armed() rename to disarmed",
            "alter function sidetone.disarmed() rename to armed",
            "armed",
        ),
    ];
    for (breaks, mends, told) in cases {
        // A right may be held by the column as well as by the table.
        if breaks.starts_with("revoke") {
            db.sql("revoke select (id, name, slug, status) on public.tenants from sidetone")
                .await;
        }
        db.sql(breaks).await;
        let stale = node
            .until(LOOKUP, |reply| reply.text("/stale") == "true")
            .await;
        assert_eq!(stale.status, 200);
        let error = status(&node, "/feed/last_error/text").await;
        assert!(
            error.as_str().is_some_and(|text| text.contains(told)),
            "{breaks}: {error}"
        );
        db.sql(mends).await;
        node.until(LOOKUP, |reply| reply.text("/stale") == "false")
            .await;
    }
    db.sql("alter table public.prompts enable row level security")
        .await;
    node.until(LOOKUP, |reply| {
        reply.status == 200 && reply.text("/stale") == "true"
    })
    .await;
    until("the feed knows that it is not armed", async || {
        status(&node, "/feed/armed").await == json!(false)
    })
    .await;
    assert_ne!(
        node.get(LOOKUP).await.text("/prompt/ids"),
        "",
        "hidden rows were taken for deleted ones"
    );
    db.sql("alter table public.prompts disable row level security")
        .await;
    node.until(LOOKUP, |reply| reply.text("/stale") == "false")
        .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_write_is_heard() {
    let cluster = Cluster::own(Options::default().set("max_prepared_transactions", "5"));
    let db = cluster.database().await;
    let node = Node::with_example(&db, "").await;
    let new = |e164: &str| {
        format!(
            "'{}', 'd2c4a8e1-7b9f-4a6e-8a1b-77889900aabb', '{e164}', 'es-AR', 'UTC'",
            uuid::Uuid::new_v4()
        )
    };
    let columns = "(id, tenant_id, e164, default_language, timezone)";
    let found = async |number: &str| {
        node.until(&format!("/v1/lookup?to=%2B{number}"), |reply| {
            reply.status == 200
        })
        .await;
    };
    db.sql(&format!("set session_replication_role = replica; insert into public.tenant_phone_numbers {columns} values ({}); reset session_replication_role", new("+541150001001"))).await;
    found("541150001001").await;
    db.sql(&format!("insert into public.tenant_phone_numbers {columns} values ({}) on conflict (e164) do update set label = 'x'", new("+541150001002"))).await;
    found("541150001002").await;
    let mut session = db.session().await;
    let copy: tokio_postgres::CopyInSink<bytes::Bytes> = session
        .client()
        .copy_in(&format!(
            "copy public.tenant_phone_numbers {columns} from stdin csv"
        ))
        .await
        .unwrap();
    tokio::pin!(copy);
    futures_util::SinkExt::send(
        &mut copy,
        bytes::Bytes::from(new("+541150001003").replace('\'', "").replace(", ", ",") + "\n"),
    )
    .await
    .unwrap();
    copy.finish().await.unwrap();
    found("541150001003").await;
    if cluster.major() >= 15 {
        db.sql(&format!(
            "merge into public.tenant_phone_numbers n using (values ({})) as v {columns} on n.e164 = v.e164
             when not matched then insert {columns} values (v.id::uuid, v.tenant_id::uuid, v.e164, v.default_language, v.timezone)",
            new("+541150001004")
        ))
        .await;
        found("541150001004").await;
    }
    // A transaction that has rung cannot be prepared: without the doorbell it can, across a restart too.
    db.sql("update sidetone.meta set doorbell = false").await;
    db.sql(&format!("begin; insert into public.tenant_phone_numbers {columns} values ({}); prepare transaction 'later'", new("+541150001005"))).await;
    db.sql(&format!("begin; insert into public.tenant_phone_numbers {columns} values ({}); prepare transaction 'never'", new("+541150001006"))).await;
    db.sql(&relabel("after the prepared ones")).await;
    node.until(LABEL, |reply| reply.body == "after the prepared ones")
        .await;
    assert_eq!(node.get("/v1/lookup?to=%2B541150001005").await.status, 404);
    let name = db.name().to_owned();
    drop((db, session));
    cluster.restart(Stop::Immediate);
    let db = cluster.open(&name).await;
    db.sql("commit prepared 'later'").await;
    db.sql("rollback prepared 'never'").await;
    found("541150001005").await;
    assert_eq!(node.get("/v1/lookup?to=%2B541150001006").await.status, 404);
    db.sql("delete from public.tenants where slug = 'guardianes-srl'")
        .await;
    node.until("/v1/lookup?to=%2B541150001005", |reply| {
        reply.status == 404 || status_is_held(reply)
    })
    .await;
}

fn status_is_held(reply: &crate::node::Reply) -> bool {
    // More than half of the numbers went with their tenant: the loss is held, and they go on being answered.
    reply.status == 200
}

#[tokio::test(flavor = "multi_thread")]
async fn where_only_a_standby_is_left_it_is_polled_and_its_lag_is_told() {
    let primary = Cluster::own(Options::default().tcp());
    let db = primary.database().await;
    db.load_example().await;
    let standby = primary.standby(Options::default().tcp());
    let url = format!(
        "postgres://sidetone@127.0.0.1:{},127.0.0.1:{}/{}?sslmode=disable",
        primary.port(),
        standby.port(),
        db.name()
    );
    let mut node = Node::prepare(&url, QUICK);
    node.start();
    node.synced().await;
    db.sql(&relabel("on both")).await;
    node.until(LABEL, |reply| reply.body == "on both").await;
    let there = standby.open(db.name()).await;
    until("the standby has the row", async || {
        there
            .value::<Option<String>>(
                "select label from public.tenant_phone_numbers where e164 = '+14155550100'",
            )
            .await
            .as_deref()
            == Some("on both")
    })
    .await;
    let name = db.name().to_owned();
    drop(db);
    primary.stop(Stop::Immediate);
    until("the standby is polled", async || {
        let pulled = node
            .metric(r#"sidetone_pulls_total{cause="heartbeat"}"#)
            .await;
        status(&node, "/feed/listening").await == json!(false)
            && status(&node, "/feed/last_pull_completed").await != json!(null)
            && pulled > 1.0
            && status(&node, "/feed/server_version").await != json!(null)
            && node.log().contains(r#""standby":true"#)
    })
    .await;
    assert_eq!(node.get(&format!("/v1/lookup?to={ACME}")).await.status, 200);
    // A standby that nothing arrives at cannot prove level.
    node.until(LOOKUP, |reply| reply.text("/stale") == "true")
        .await;
    there.sql("select pg_promote(true)").await;
    let db = standby.open(&name).await;
    db.sql(&relabel("promoted")).await;
    node.until(LABEL, |reply| reply.body == "promoted").await;
    node.until(LOOKUP, |reply| reply.text("/stale") == "false")
        .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_read_from_a_standby_are_as_old_as_what_it_has_replayed() {
    let primary = Cluster::own(Options::default().tcp());
    let db = primary.database().await;
    let standby = primary.standby(Options::default().tcp());
    let more = format!(
        "{QUICK}\npostgres.read_url = '{}'",
        standby.tcp_url("sidetone", db.name())
    );
    let node = Node::with_example(&db, &more).await;
    for i in 0..5 {
        db.sql(&relabel(&format!("replayed {i}"))).await;
        node.until(LABEL, |reply| reply.body == format!("replayed {i}"))
            .await;
    }
    // An idle primary proves level as well as a busy one.
    node.until(LOOKUP, |reply| reply.text("/stale") == "false")
        .await;
    let there = standby.open(db.name()).await;
    there.sql("select pg_wal_replay_pause()").await;
    let still = if primary.major() >= 14 {
        "select pg_get_wal_replay_pause_state() = 'paused'"
    } else {
        "select pg_is_wal_replay_paused()"
    };
    until("replay stands still", async || {
        there.value::<bool>(still).await
    })
    .await;
    db.sql(&relabel("not replayed")).await;
    let stale = node
        .until(LOOKUP, |reply| reply.text("/stale") == "true")
        .await;
    assert_eq!(stale.text("/label"), "replayed 4");
    there.sql("select pg_wal_replay_resume()").await;
    node.until(LABEL, |reply| reply.body == "not replayed")
        .await;
    node.until(LOOKUP, |reply| reply.text("/stale") == "false")
        .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_idles_in_another_database_does_not_make_pulls_read_more() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(&db, "").await;
    let idle = cluster.admin().await;
    idle.sql("begin; select pg_current_xact_id()").await;
    for i in 0..30 {
        db.sql(&relabel(&format!("idle {i}"))).await;
    }
    node.until(LABEL, |reply| reply.body == "idle 29").await;
    let changes = node
        .metric(r#"sidetone_changes_total{kind="number"}"#)
        .await;
    let beats = node
        .metric(r#"sidetone_pulls_total{cause="heartbeat"}"#)
        .await;
    until("two heartbeats", async || {
        node.metric(r#"sidetone_pulls_total{cause="heartbeat"}"#)
            .await
            >= beats + 2.0
    })
    .await;
    assert_eq!(
        node.metric(r#"sidetone_changes_total{kind="number"}"#)
            .await,
        changes,
        "old changes are read again"
    );
    idle.sql("commit").await;
}
