//! What a commit in Postgres becomes at a node (design sections 1 and 9, feed.md).

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::node::{ACME, Node, PATIENCE, SECRET, until};

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
const LABEL: &str = "/v1/lookup/label?to=%2B14155550100";

/// A number of the example's first tenant, made to be changed.
async fn add_numbers(db: &Db<'_>, count: u32) {
    db.sql(&format!(
        "insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
         select gen_random_uuid(), '6f717b5a-1a2b-4c3d-9e8f-112233445566', '+1650' || (1000000 + i), 'new', 'es-AR', 'UTC'
           from generate_series(1, {count}) i"
    ))
    .await;
}

async fn label_of(node: &Node, i: u32) -> String {
    node.get(&format!("/v1/lookup/label?to=%2B1650{}", 1_000_000 + i))
        .await
        .body
}

/// Replica and database are equal, and remain so.
async fn equal(node: &Node) {
    node.equals_database().await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_changes_the_answer_without_a_refresh() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(
        &db,
        "feed.heartbeat_every = '60s'\nfeed.stale_after = '90s'",
    )
    .await;
    let before = node.get(LOOKUP).await.text("/revision");
    db.sql("update public.tenant_phone_numbers set label = 'changed' where e164 = '+14155550100'")
        .await;
    let reply = node
        .until(LOOKUP, |reply| reply.text("/label") == "changed")
        .await;
    assert_ne!(reply.text("/revision"), before);
    assert!(
        node.metric(r#"sidetone_pulls_total{cause="doorbell"}"#)
            .await
            >= 1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_any_character_are_copied_as_the_database_hashes_them() {
    let db = Cluster::shared().database().await;
    db.load_example_sealed(|_| String::new()).await;
    // Every character that JSON escapes or might, alone and among others, and null.
    db.sql(
        "insert into public.tenant_phone_numbers (tenant_id, e164, label, default_language, default_voice, timezone)
           select (select id from public.tenants order by id limit 1), '+5411' || lpad(n::text, 8, '0'),
                  'x' || chr(n) || 'y' || chr(n), 'es-AR', chr(n), 'America/Argentina/Buenos_Aires'
             from generate_series(1, 1200) n;
         insert into public.tenant_phone_numbers (tenant_id, e164, label, default_language, default_voice, timezone)
           select (select id from public.tenants order by id limit 1), '+54119' || n, l, 'es-AR', null, 'UTC'
             from (values (1000001, null), (1000002, ''), (1000003, U&'\\2028 \\+01F4DE \\FFFD \\007F')) v (n, l)",
    )
    .await;
    let node = Node::on(&db, "").await;
    // A pull brings documents that the database wrote: where one differs from the copied one, it is written anew.
    db.sql(
        "select sidetone.record('number', array(select e164::text from public.tenant_phone_numbers
           where e164 <= '+541100000900' or e164 like '+54119%'))",
    )
    .await;
    until("the numbers are compared", async || {
        node.log().contains(r#""message":"applied","read":9"#)
    })
    .await;
    let log = node.log();
    let applied = log.lines().rfind(|line| line.contains(r#""applied""#));
    assert!(applied.unwrap().contains(r#""written":0"#), "{applied:?}");
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_doorbell_costs_one_heartbeat() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "feed.heartbeat_every = '300ms'").await;
    db.sql("update sidetone.meta set doorbell = false").await;
    for i in 0..3 {
        db.sql(&format!(
            "update public.tenant_phone_numbers set label = 'quiet {i}' where e164 = '+14155550100'"
        ))
        .await;
        node.until(LABEL, |reply| reply.body == format!("quiet {i}"))
            .await;
    }
    assert_eq!(node.metric("sidetone_doorbells_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_doorbells_change_nothing() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    for payload in [
        "",
        "nonsense",
        "18446744073709551615",
        "9223372036854775807",
        "-1",
    ] {
        db.sql(&format!("select pg_notify('sidetone', '{payload}')"))
            .await;
    }
    db.sql(
        "update public.tenant_phone_numbers set label = 'still heard' where e164 = '+14155550100'",
    )
    .await;
    node.until(LABEL, |reply| reply.body == "still heard").await;
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_transactions_that_commit_out_of_order_lose_nothing() {
    const WRITERS: u32 = 6;
    const EACH: u32 = 25;
    let db = Cluster::shared().database().await;
    db.load_example().await;
    add_numbers(&db, WRITERS * EACH).await;
    let node = Node::on(&db, "").await;
    let writers = (0..WRITERS).map(|writer| {
        let db = &db;
        async move {
            let session = db.session().await;
            for turn in 0..EACH {
                let i = writer * EACH + turn + 1;
                // Each number is changed once: a busy key would hide a lost change.
                let pause = f64::from((i * 7919) % 60) / 1000.0;
                let change = |label: &str| {
                    format!("update public.tenant_phone_numbers set label = '{label}' where e164 = '+1650{}';", 1_000_000 + i)
                };
                let work = match i % 5 {
                    0 => format!("begin; savepoint a; {} rollback to a; select pg_sleep({pause}); {} commit", change("no"), change("done")),
                    1 => format!("begin; {} select pg_sleep({pause}); rollback; begin; {} commit", change("no"), change("done")),
                    _ => format!("begin; {} select pg_sleep({pause}); commit", change("done")),
                };
                session.sql(&work).await;
            }
        }
    });
    futures_util::future::join_all(writers).await;
    for i in 1..=WRITERS * EACH {
        node.until(
            &format!("/v1/lookup/label?to=%2B1650{}", 1_000_000 + i),
            |reply| reply.body == "done",
        )
        .await;
    }
    equal(&node).await;
    assert_eq!(
        node.metric("sidetone_reconcile_differences_total").await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_a_tenant_is_seen_whole_or_not_at_all() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let writing = async {
        for i in 0..60 {
            db.sql(&format!(
                "begin; update public.tenant_phone_numbers set label = 'v{i}' where e164 = '+14155550100';
                 update public.tenant_settings set model = 'v{i}'; commit"
            ))
            .await;
        }
    };
    let reading = async {
        let (mut last, mut seen) = (-1, 0);
        while last < 59 {
            let reply = node.get(LOOKUP).await;
            let (label, model) = (reply.text("/label"), reply.text("/model"));
            if let Some(version) = label.strip_prefix('v').and_then(|v| v.parse::<i64>().ok()) {
                assert_eq!(label, model, "half of a transaction");
                assert!(version >= last, "went back from {last} to {version}");
                seen += i64::from(version != last);
                last = version;
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(writing, tokio::time::timeout(PATIENCE, reading)).into_parts();
    assert!(seen > 1);
}

trait IntoParts<T> {
    fn into_parts(self) -> ((), T);
}

impl<T> IntoParts<T> for ((), Result<T, tokio::time::error::Elapsed>) {
    fn into_parts(self) -> ((), T) {
        (self.0, self.1.expect("the last version never arrives"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_renamed_moved_deleted_and_come_back() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    db.sql(
        "update public.tenant_phone_numbers set e164 = '+14155550199' where e164 = '+14155550100'",
    )
    .await;
    node.until("/v1/lookup?to=%2B14155550199", |reply| reply.status == 200)
        .await;
    assert_eq!(node.get(LOOKUP).await.text("/status"), "unknown_number");
    db.sql(
        "update public.tenant_phone_numbers set tenant_id = 'd2c4a8e1-7b9f-4a6e-8a1b-77889900aabb' where e164 = '+14155550199'",
    )
    .await;
    node.until("/v1/lookup/tenant_slug?to=%2B14155550199", |reply| {
        reply.body == "guardianes-srl"
    })
    .await;
    db.sql("delete from public.tenant_phone_numbers where e164 = '+14155550199'")
        .await;
    node.until("/v1/lookup?to=%2B14155550199", |reply| reply.status == 404)
        .await;
    db.sql(
        "update public.tenant_phone_numbers set e164 = '+14155550100' where e164 = '+541150000002'",
    )
    .await;
    node.until(LOOKUP, |reply| reply.status == 200).await;
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_is_refused_and_one_that_is_active_again_is_not() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    for (status, code) in [("suspended", 403), ("active", 200)] {
        db.sql(&format!(
            "update public.tenants set status = '{status}' where slug = 'seguridad-acme-sa'"
        ))
        .await;
        node.until(LOOKUP, |reply| reply.status == code).await;
        node.until("/v1/credentials?to=%2B14155550100", |reply| {
            reply.status == code
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_rows_in_one_statement_arrive_whole() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    let node = Node::on(&db, "").await;
    add_numbers(&db, 5000).await;
    node.until("/v1/lookup?to=%2B16501005000", |reply| reply.status == 200)
        .await;
    assert_eq!(label_of(&node, 1).await, "new");
    db.sql("update public.tenant_phone_numbers set label = 'all' where e164 like '+1650%'")
        .await;
    node.until("/v1/lookup/label?to=%2B16501000001", |reply| {
        reply.body == "all"
    })
    .await;
    assert_eq!(label_of(&node, 5000).await, "all");
    // Many statements in one transaction: more keys than come with a pull.
    db.sql(
        "do $$ begin for i in 1..3000 loop
            update public.tenant_phone_numbers set label = 'each' where e164 = '+1650' || (1000000 + i);
         end loop; end $$",
    )
    .await;
    node.until("/v1/lookup/label?to=%2B16501003000", |reply| {
        reply.body == "each"
    })
    .await;
    assert_eq!(label_of(&node, 1).await, "each");
    assert_eq!(label_of(&node, 3001).await, "all");
    equal(&node).await;
}

/// Tenants `t0` to `t4`, and this many numbers of theirs, so that a change of all is no small part of them.
async fn crowd(db: &Db<'_>, numbers: u32) {
    db.sql(&format!(
        "insert into public.tenants (id, name, slug, status)
           select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 'T' || i, 't' || i, 'active'
             from generate_series(0, 4) i;
         insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
           select gen_random_uuid(), ('00000000-0000-4000-8000-' || lpad((i % 5)::text, 12, '0'))::uuid,
             '+1650' || (1000000 + 2 * i), 'old ' || i, 'es-AR', 'UTC' from generate_series(1, {numbers}) i"
    ))
    .await;
}

/// What a node answers of a number: tenant, label and zone, or that it does not know it.
async fn answered(node: &Node, e164: &str) -> String {
    let reply = node
        .get(&format!("/v1/lookup?to={}", e164.replace('+', "%2B")))
        .await;
    match reply.status {
        200 => ["/tenant/slug", "/label", "/timezone"]
            .map(|field| reply.text(field))
            .join(" "),
        _ => reply.text("/status"),
    }
}

/// Every number that there was or is, with its answer; `nth` of them are asked for.
async fn answers(
    node: &Node,
    db: &Db<'_>,
    before: &[String],
    nth: usize,
) -> Vec<(String, String, String)> {
    let rows = db
        .query(
            "select n.e164::text, case t.status when 'active' then t.slug || ' ' || coalesce(n.label, '') || ' ' || n.timezone
               else 'tenant_suspended' end from public.tenant_phone_numbers n
               join public.tenants t on t.id = n.tenant_id",
            &[],
        )
        .await;
    let mut right: std::collections::BTreeMap<String, String> = before
        .iter()
        .map(|e164| (e164.clone(), "unknown_number".to_owned()))
        .collect();
    right.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
    let mut all = Vec::new();
    for (e164, right) in right.into_iter().step_by(nth) {
        let answer = answered(node, &e164).await;
        all.push((e164, answer, right));
    }
    all
}

/// Statements that do everything at once that can become of numbers.
const EVERYTHING_AT_ONCE: &str = "
    insert into public.tenants (id, name, slug, status)
      values ('00000000-0000-4000-8000-000000000009', 'T9', 't9', 'active');
    insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
      select gen_random_uuid(), ('00000000-0000-4000-8000-00000000000' || case when i % 2 = 0 then 9 else 2 end)::uuid,
        '+1650' || (1000001 + 6 * i), 'between', 'es-AR', 'UTC' from generate_series(1, 300) i;
    update public.tenant_phone_numbers set label = 'changed' where e164 like '+1650%' and right(e164, 1) in ('2', '4');
    delete from public.tenant_phone_numbers where right(e164, 2) in ('10', '36', '58');
    update public.tenant_phone_numbers set e164 = '+1651' || right(e164, 7) where right(e164, 2) = '20';
    update public.tenant_phone_numbers set e164 = '+1649' || right(e164, 7) where right(e164, 2) = '40';
    update public.tenant_phone_numbers set tenant_id = '00000000-0000-4000-8000-000000000003'
      where right(e164, 2) in ('60', '62') and tenant_id = '00000000-0000-4000-8000-000000000001';
    update public.tenant_phone_numbers set timezone = 'Nowhere/Atlantis', label = 'bad' where right(e164, 2) = '80';
    delete from public.tenants where slug = 't4';
    update public.tenants set name = 'Changed' where slug = 't0';";

#[tokio::test(flavor = "multi_thread")]
async fn whatever_became_of_numbers_while_a_node_was_away_ends_equal_and_nothing_else_goes() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    crowd(&db, 3000).await;
    let settings = "feed.hold_if_lost_percent = 60";
    let mut node = Node::on(&db, settings).await;
    let before: Vec<String> = db
        .column("select e164::text from public.tenant_phone_numbers")
        .await;
    let old = answered(&node, "+16501000080").await;
    node.stop();
    db.sql(EVERYTHING_AT_ONCE).await;
    // Killed while it is at it: nothing of it is in force after that, and everything in the end.
    for pause in [0, 60] {
        node.start();
        let in_hand = node.path("replica/in-hand");
        until("the batch is on its way", async || {
            std::fs::read_to_string(&in_hand)
                .is_ok_and(|text| text.contains(r#""applying":"rows""#))
        })
        .await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        node.kill();
    }
    node.configure(crate::node::AWAY, settings);
    node.start();
    node.answering().await;
    let halfway = answered(&node, "+16501000002").await;
    node.stop();
    node.configure(&db.url(), settings);
    node.start();
    node.until("/v1/lookup/label?to=%2B16501000002", |reply| {
        reply.body == "changed"
    })
    .await;
    assert_eq!(halfway, "t1 old 1 UTC", "half a batch");
    assert!(
        node.log().contains("reading all numbers in order"),
        "{}",
        node.log()
    );
    for (e164, answer, right) in answers(&node, &db, &before, 5).await {
        match right.as_str() {
            // The last good row stays in force.
            bad if bad.ends_with("Atlantis") => {
                assert!(answer.contains(" old "), "{e164}: {answer}, {bad}")
            }
            right => assert_eq!(answer, right, "{e164}"),
        }
    }
    assert_eq!(
        answered(&node, "+16501000080").await,
        old,
        "a bad row keeps the last good one"
    );
    equal(&node).await;
    // The same by key, from here on: what was copied in order is understood by everything else.
    db.sql("update public.tenant_phone_numbers set timezone = 'UTC', label = 'good again' where timezone = 'Nowhere/Atlantis'")
        .await;
    node.until("/v1/lookup/label?to=%2B16501000080", |reply| {
        reply.body == "good again"
    })
    .await;
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_numbers_are_taken_in_whatever_order_the_database_has() {
    let cluster = Cluster::own(Options::default().set("log_statement", "all"));
    let sorted = || {
        let by_bytes = "from public.tenant_phone_numbers n where ";
        let log = cluster.log();
        let mut all = log.split(by_bytes).skip(1);
        all.any(|rest| {
            rest.lines()
                .next()
                .unwrap_or_default()
                .ends_with("order by n.e164 collate \"C\"")
        })
    };
    let of_bytes = cluster.database().await;
    let odd = cluster.database().await;
    // Shorter numbers first, as no byte order has them; servers that are built without ICU have no such order either.
    if odd
        .value("select exists (select from pg_collation where collprovider = 'i')")
        .await
    {
        odd.sql(
            "create collation numerically (provider = icu, locale = 'en-u-kn-true');
             alter table public.tenant_phone_numbers alter column e164 type varchar(20) collate numerically",
        )
        .await;
    }
    let of_people = cluster.database_of_locale("C.UTF-8").await;
    for (db, sorts) in [(&of_bytes, false), (&odd, false), (&of_people, true)] {
        db.load_example().await;
        crowd(db, 3000).await;
        db.sql("update public.tenant_phone_numbers set e164 = e164 || '0' where e164 like '+1650%' and right(e164, 1) = '4'")
            .await;
        let mut node = Node::on(db, "").await;
        equal(&node).await;
        node.stop();
        db.sql("update public.tenant_phone_numbers set label = 'changed' where e164 like '+1650%'")
            .await;
        node.start();
        for e164 in ["16501000006", "165010000040"] {
            node.until(&format!("/v1/lookup/label?to=%2B{e164}"), |reply| {
                reply.body == "changed"
            })
            .await;
        }
        let log = node.log();
        assert!(log.contains("reading all numbers in order"), "{log}");
        equal(&node).await;
        assert_eq!(sorted(), sorts, "who sorts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_changes_than_are_named_a_loss_is_held_and_the_rest_applied() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    crowd(&db, 3000).await;
    let mut node = Node::on(&db, "").await;
    let before: Vec<String> = db
        .column("select e164::text from public.tenant_phone_numbers")
        .await;
    node.stop();
    // More rows of the log than are read by name, a table that loses most, and a new number.
    db.sql(
        "do $$ begin for i in 1..51 loop
            insert into sidetone.change (xid, kind, id, at) select pg_current_xact_id(), 'number', '+1' || n, now()
              from generate_series(1, 1000) n;
         end loop; end $$;
         delete from public.tenant_phone_numbers where e164 like '+1650%' and right(e164, 1) in ('0', '2', '4', '6');
         update public.tenant_phone_numbers set label = 'changed' where right(e164, 1) = '8';
         insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
           values (gen_random_uuid(), '00000000-0000-4000-8000-000000000001', '+16500999999', 'first', 'es-AR', 'UTC')",
    )
    .await;
    node.start();
    node.until("/v1/lookup/label?to=%2B16500999999", |reply| {
        reply.body == "first"
    })
    .await;
    assert!(
        node.log().contains("reading all numbers in order"),
        "{}",
        node.log()
    );
    assert_eq!(answered(&node, "+16501000008").await, "t4 changed UTC");
    assert_eq!(
        answered(&node, "+16501000002").await,
        "t1 old 1 UTC",
        "the loss is not held"
    );
    let status = node.admin("GET", "/v1/admin/status", "").await;
    assert_eq!(status.text("/feed/held/numbers"), "2400", "{status:?}");
    let refresh = r#"{"scope":"all","accept_loss":true,"wait":true}"#;
    assert_eq!(
        node.admin("POST", "/v1/admin/refresh", refresh)
            .await
            .status,
        200
    );
    for (e164, answer, right) in answers(&node, &db, &before, 7).await {
        assert_eq!(answer, right, "{e164}");
    }
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_connection_loses_nothing() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    add_numbers(&db, 40).await;
    let node = Node::on(&db, "").await;
    for i in 1..=40 {
        db.sql(&format!(
            "update public.tenant_phone_numbers set label = 'kept' where e164 = '+1650{}';
             select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'sidetone/n1' and datname = current_database()",
            1_000_000 + i
        ))
        .await;
    }
    for i in 1..=40 {
        node.until(
            &format!("/v1/lookup/label?to=%2B1650{}", 1_000_000 + i),
            |reply| reply.body == "kept",
        )
        .await;
    }
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_stopped_answers_go_on_grow_old_and_come_back() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(&db, "feed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '300ms'\nfeed.stale_after = '600ms'").await;
    let name = db.name().to_owned();
    let fresh = node
        .until(LOOKUP, |reply| reply.text("/stale") == "false")
        .await;
    drop(db);
    cluster.stop(Stop::Immediate);
    let stale = node
        .until(LOOKUP, |reply| reply.text("/stale") == "true")
        .await;
    assert_eq!(stale.status, 200);
    assert_eq!(stale.text("/revision"), fresh.text("/revision"));
    let credentials = node.get(&format!("/v1/credentials?to={ACME}")).await;
    assert_eq!(credentials.text("/credentials/openai/default"), SECRET);
    let ready = node.get("/readyz").await;
    assert_eq!(
        (ready.status, ready.text("/stale")),
        (200, "true".to_owned())
    );
    cluster.start();
    let db = cluster.open(&name).await;
    db.sql("update public.tenant_phone_numbers set label = 'back' where e164 = '+14155550100'")
        .await;
    // An answer's age is taken before its rows are read: the first one with the new row may still be called stale.
    node.until(LOOKUP, |reply| {
        reply.text("/label") == "back" && reply.text("/stale") == "false"
    })
    .await;
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_restarts_and_answers_with_credentials_while_postgres_is_away() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let mut node = Node::with_example(&db, "").await;
    let before = node
        .get(&format!("/v1/resolve?to={ACME}&include=credentials"))
        .await;
    drop(db);
    cluster.stop(Stop::Immediate);
    for end in [Signal::TERM, Signal::KILL] {
        node.signal(end);
        node.ended();
        node.start();
        let after = node
            .until(
                &format!("/v1/resolve?to={ACME}&include=credentials"),
                |reply| reply.status == 200,
            )
            .await;
        for field in [
            "/revision",
            "/credentials/openai/default",
            "/prompt/system",
            "/language",
        ] {
            assert_eq!(after.text(field), before.text(field), "{field}");
        }
        assert!(after.text("/staleness_ms").parse::<u64>().unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_age_survives_a_restart_and_is_never_understated() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let mut node = Node::with_example(&db, "").await;
    drop(db);
    cluster.stop(Stop::Immediate);
    let stopped = std::time::Instant::now();
    let age =
        |reply: &crate::node::Reply| u128::from(reply.json()["staleness_ms"].as_u64().unwrap());
    for _ in 0..2 {
        node.kill();
        node.start();
        node.answering().await;
        let least = stopped.elapsed().as_millis();
        let reply = node.get(LOOKUP).await;
        assert!(age(&reply) >= least, "{reply:?} after {least} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_synchronised_and_cannot_ask_is_not_ready() {
    let mut node = Node::prepare("postgres://sidetone@127.0.0.1:1/none?sslmode=disable", "");
    node.start();
    node.answering().await;
    let reply = node.get(LOOKUP).await;
    assert_eq!(
        (reply.status, reply.text("/status")),
        (503, "not_ready".to_owned())
    );
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(node.get("/readyz").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_no_trigger_told_is_found_and_freshness_is_not_claimed_meanwhile() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "feed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '300ms'\nfeed.stale_after = '700ms'").await;
    db.sql(
        "alter table public.tenant_phone_numbers disable trigger sidetone_update;
         update public.tenant_phone_numbers set label = 'untold' where e164 = '+14155550100'",
    )
    .await;
    node.until(LOOKUP, |reply| reply.text("/stale") == "true")
        .await;
    until("the feed knows that it is not armed", async || {
        let status = node.admin("GET", "/v1/admin/status", "").await;
        status.json().pointer("/feed/armed") == Some(&json!(false))
    })
    .await;
    let report = node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(report.json()["differences"], 1, "{report:?}");
    assert_eq!(node.get(LABEL).await.body, "untold");
    db.sql("alter table public.tenant_phone_numbers enable always trigger sidetone_update")
        .await;
    node.until(LOOKUP, |reply| reply.text("/stale") == "false")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_of_most_numbers_is_held_until_an_operator_lets_it_through() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    db.sql("truncate public.tenant_phone_numbers cascade").await;
    until("the loss is held", async || {
        node.admin("GET", "/v1/admin/status", "")
            .await
            .json()
            .pointer("/feed/held/numbers")
            == Some(&json!(3))
    })
    .await;
    assert_eq!(node.get(LOOKUP).await.status, 200);
    // What is no loss is applied meanwhile, and a restart does not forget that something is held.
    db.sql("update public.tenant_settings set model = 'while held'")
        .await;
    node.until("/v1/lookup/model?to=%2B14155550100", |reply| {
        reply.body == "while held"
    })
    .await;
    node.stop();
    node.start();
    node.synced().await;
    assert_eq!(node.get(LOOKUP).await.status, 200);
    let refresh = node
        .admin(
            "POST",
            "/v1/admin/refresh",
            r#"{"scope":"all","wait":true,"accept_loss":true}"#,
        )
        .await;
    assert_eq!(refresh.status, 200, "{refresh:?}");
    assert_eq!(node.get(LOOKUP).await.text("/status"), "unknown_number");
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_a_tenant_in_common_is_refused() {
    let cluster = Cluster::shared();
    let db = cluster.database().await;
    let mut node = Node::with_example(&db, "").await;
    let other = cluster.database().await;
    other.sql("insert into public.tenants (id, name, slug, status) values (gen_random_uuid(), 'Other', 'other', 'active')").await;
    node.stop();
    node.configure(&other.url(), "");
    node.start();
    until("the database is refused", async || {
        node.try_get("/healthz").await.is_ok()
            && node
                .admin("GET", "/v1/admin/status", "")
                .await
                .json()
                .pointer("/feed/refused_database")
                == Some(&json!(true))
    })
    .await;
    assert_eq!(node.get(LOOKUP).await.status, 200);
    let refresh = node
        .admin(
            "POST",
            "/v1/admin/refresh",
            r#"{"scope":"all","wait":true,"accept_loss":true}"#,
        )
        .await;
    assert_eq!(refresh.status, 200, "{refresh:?}");
    assert_eq!(node.get(LOOKUP).await.text("/status"), "unknown_number");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_schema_version_is_told_and_answers_go_on() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "feed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '300ms'\nfeed.stale_after = '700ms'").await;
    for version in ["schema_version + 1", "1"] {
        db.sql(&format!(
            "update sidetone.meta set schema_version = {version}"
        ))
        .await;
        node.until(LOOKUP, |reply| {
            reply.status == 200 && reply.text("/stale") == "true"
        })
        .await;
    }
    assert!(
        node.log().contains("another schema version"),
        "{}",
        node.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_pruned_past_the_cursor_of_a_node_that_was_away_costs_a_comparison() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.stop();
    db.sql("update public.tenant_phone_numbers set label = 'pruned' where e164 = '+14155550100'")
        .await;
    db.sql("update sidetone.meta set keep = '0'").await;
    until("the change is pruned", async || {
        db.sql("select sidetone.prune()").await;
        db.value::<i64>("select count(*) from sidetone.change")
            .await
            == 0
    })
    .await;
    node.start();
    node.until(LABEL, |reply| reply.body == "pruned").await;
    equal(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_holds_only_its_tenants_and_follows_who_becomes_one() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "replica.tenants = ['guardianes-srl']").await;
    assert_eq!(node.get(LOOKUP).await.text("/status"), "unknown_number");
    assert_eq!(node.get("/v1/lookup?to=%2B541150000002").await.status, 200);
    db.sql("update public.tenants set slug = 'left' where slug = 'guardianes-srl'")
        .await;
    node.until("/v1/lookup?to=%2B541150000002", |reply| {
        reply.status == 404 || reply.text("/tenant/slug") != "left"
    })
    .await;
    db.sql("update public.tenants set slug = 'guardianes-srl' where slug = 'left'")
        .await;
    node.until("/v1/lookup?to=%2B541150000002", |reply| reply.status == 200)
        .await;
    node.stop();
    node.configure(&db.url(), "replica.tenants = ['seguridad-acme-sa']");
    node.start();
    node.until(LOOKUP, |reply| reply.status == 200).await;
    node.until("/v1/lookup?to=%2B541150000002", |reply| reply.status == 404)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_rest_has_one_backend_that_asks_nothing_but_the_heartbeat() {
    let cluster = Cluster::shared();
    let db = cluster.database().await;
    let node = Node::with_example(&db, "").await;
    let backends = format!(
        "select count(*) from pg_stat_activity where application_name like 'sidetone%' and datname = '{}'",
        db.name()
    );
    until("one backend is left", async || {
        db.value::<i64>(&backends).await == 1
    })
    .await;
    let pulls = node
        .metric(r#"sidetone_pulls_total{cause="heartbeat"}"#)
        .await;
    until("two heartbeats", async || {
        node.metric(r#"sidetone_pulls_total{cause="heartbeat"}"#)
            .await
            >= pulls + 2.0
    })
    .await;
    assert_eq!(db.value::<i64>(&backends).await, 1);
    let query: String = db
        .value(&format!("select query from pg_stat_activity where application_name like 'sidetone%' and datname = '{}'", db.name()))
        .await;
    assert!(query.starts_with("with log as materialized"), "{query}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_again_and_again_ends_equal_to_the_database() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    add_numbers(&db, 200).await;
    let mut node = Node::on(&db, "").await;
    for round in 0..6_u32 {
        let writing = async {
            for i in 1..=40 {
                let i = round * 30 + i;
                db.sql(&format!("update public.tenant_phone_numbers set label = 'r{round}' where e164 = '+1650{}'", 1_000_000 + i)).await;
            }
        };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(7 * u64::from(round))).await;
            node.kill();
            node.start();
        };
        tokio::join!(writing, killing);
        node.answering().await;
    }
    node.until("/v1/lookup/label?to=%2B16501000190", |reply| {
        reply.body == "r5"
    })
    .await;
    equal(&node).await;
}
