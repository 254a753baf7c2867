//! Too much at once: huge transactions, the same key again and again, storms of notifications, and what must be answered
//! in time all the same (design section 9, feed.md 8 and 10).

use std::sync::Arc;
use std::time::{Duration, Instant};

use sidetone::admit::AdmissionLimits;
use sidetone::config::{Config, Sources};
use sidetone::engine::{Engine, Parts};
use sidetone::feed::handle::FeedHandle;
use sidetone::feed::{self, Feed};
use sidetone::health::Health;
use sidetone::metrics::{Disconnect, Metrics};
use sidetone::replica::Replica;
use sidetone::seal::Keyring;
use sidetone::source::Target;
use sidetone::trace::Traces;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::node::{Node, PATIENCE, until};
use crate::proxy::{Proxy, Weather};

const LABEL: &str = "/v1/lookup/label?to=%2B14155550100";
const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
/// A commit is answered within this time, with the feed up.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);
/// A suspension is answered within this time of its commit, whatever else is under way.
const SUSPENDED_WITHIN: Duration = Duration::from_secs(1);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap())
}

/// Tenants beside those of the example, each with the same number of numbers `+1650…`.
async fn crowd(db: &Db<'_>, tenants: u64, numbers: u64) {
    db.sql(&format!(
        "insert into public.tenants (id, name, slug, status)
           select ('00000000-0000-4000-8000-' || lpad(i::text, 12, '0'))::uuid, 't' || i, 't' || i, 'active'
             from generate_series(0, {tenants} - 1) i;
         insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, timezone)
           select gen_random_uuid(), ('00000000-0000-4000-8000-' || lpad((i % {tenants})::text, 12, '0'))::uuid,
             '+1650' || (1000000 + i), 'before', 'es-AR', 'UTC' from generate_series(0, {numbers} - 1) i"
    ))
    .await;
}

fn label(i: u64) -> String {
    format!("/v1/lookup/label?to=%2B1650{}", 1_000_000 + i)
}

/// The time until a question is answered so.
async fn time_until(
    node: &Node,
    path: &str,
    holds: impl Fn(&crate::node::Reply) -> bool,
) -> Duration {
    let began = Instant::now();
    node.until(path, holds).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_arrives_whole_and_a_suspension_does_not_wait_for_it() {
    const TENANTS: u64 = 10;
    let rows = setting("SIDETONE_STORM_ROWS", 30_000);
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    db.load_example().await;
    crowd(&db, TENANTS, rows).await;
    db.sql("vacuum analyze").await;
    let node = Node::on(&db, "").await;
    let other = db.session().await;

    db.sql("update public.tenant_phone_numbers set label = 'after' where e164 like '+1650%'")
        .await;
    let committed = Instant::now();
    until("the pull of it is under way", async || {
        let status = node.admin("GET", "/v1/admin/status", "").await;
        status.text("/feed/behind") != "0" || node.get(&label(0)).await.body == "after"
    })
    .await;
    other
        .sql("update public.tenants set status = 'suspended' where slug = 'seguridad-acme-sa'")
        .await;
    let suspended = time_until(&node, LOOKUP, |reply| reply.status == 403).await;
    let overtook = node.get(&label(0)).await.body == "before";
    // The age is honest meanwhile, and the change whole for each tenant: what comes after the first new answer is new.
    loop {
        let least = committed.elapsed().as_millis();
        let reply = node
            .get(&format!("/v1/lookup?to=%2B1650{}", 1_000_000 + TENANTS))
            .await;
        if reply.text("/label") == "after" {
            break;
        }
        let age = reply.json()["staleness_ms"].as_u64().unwrap();
        // Both are whole milliseconds.
        assert!(
            u128::from(age) + 1 >= least,
            "{age} ms, and {least} since the commit"
        );
        assert!(committed.elapsed() < PATIENCE * 3);
    }
    for i in 0..rows.min(2000) / TENANTS {
        assert_eq!(node.get(&label(i * TENANTS)).await.body, "after");
    }
    node.until(&label(rows - 1), |reply| reply.body == "after")
        .await;
    let visible = committed.elapsed();
    println!(
        "{rows} rows: answered {visible:?} after the commit; suspension {suspended:?}, before them: {overtook}"
    );
    assert_eq!(
        node.get(LOOKUP).await.status,
        403,
        "suspended, and then not"
    );
    assert!(suspended < SUSPENDED_WITHIN * 2, "{suspended:?}");
    assert!(visible < PATIENCE * 3);
    other
        .sql("update public.tenants set status = 'active' where slug = 'seguridad-acme-sa'")
        .await;
    node.until(LOOKUP, |reply| reply.status == 200).await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_large_batch_is_applied_another_server_is_not_believed_about_suspensions() {
    let rows = setting("SIDETONE_STORM_ROWS", 30_000) * 2;
    let first = Cluster::own(Options::default().tcp());
    let db = first.database().await;
    db.load_example().await;
    crowd(&db, 1, rows).await;
    db.sql("vacuum analyze").await;
    let name = db.name().to_owned();
    drop(db);
    first.stop(Stop::Fast);
    // As a server that is ahead of the one that is followed: there the tenant is suspended already.
    let other = first.copy();
    first.start();
    other.start();
    let ahead = other.open(&name).await;
    ahead
        .sql("update public.tenants set status = 'suspended' where slug = 'seguridad-acme-sa'")
        .await;
    let proxy = Proxy::before(other.port()).await;
    proxy.set(Weather::Refuse);
    let url = format!(
        "postgres://sidetone@127.0.0.1:{},127.0.0.1:{}/{name}?sslmode=disable",
        proxy.port,
        first.port()
    );
    let mut node = Node::prepare(&url, "");
    node.start();
    node.synced().await;
    assert_eq!(node.get(LOOKUP).await.status, 200);
    proxy.set(Weather::Fair);
    let db = first.open(&name).await;
    db.sql("update public.tenant_phone_numbers set label = 'after' where e164 like '+1650%'")
        .await;
    let asked = "select count(*) from pg_stat_activity where application_name like 'sidetone%'";
    let (began, mut was_asked) = (Instant::now(), false);
    while node.get(&label(0)).await.body != "after" {
        assert_eq!(node.get(LOOKUP).await.status, 200);
        was_asked |= ahead.value::<i64>(asked).await > 0;
        assert!(began.elapsed() < PATIENCE * 3);
    }
    assert!(was_asked, "the batch was through too soon");
    assert_eq!(node.get(LOOKUP).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_that_was_answered_before_the_first_copy_is_complete_stays_answered() {
    let rows = setting("SIDETONE_STORM_ROWS", 30_000) * 2;
    let db = Cluster::shared().database().await;
    db.load_example().await;
    crowd(&db, 1, rows).await;
    db.sql("update sidetone.meta set doorbell = false").await;
    // Between the copy and the next pull lies a whole heartbeat.
    let mut node = Node::prepare(&db.url(), "feed.heartbeat_every = '4s'");
    node.start();
    node.answering().await;
    node.until(LOOKUP, |reply| reply.status == 200).await;
    let synced = async || node.get("/readyz").await.json()["synced"] == true;
    assert!(!synced().await, "the copy was through too soon");
    db.sql("update public.tenants set status = 'suspended' where slug = 'seguridad-acme-sa'")
        .await;
    node.until(LOOKUP, |reply| reply.status == 403).await;
    assert!(!synced().await, "the copy was through too soon");
    let mut last = false;
    while !last {
        last = synced().await
            && node
                .metric(r#"sidetone_pulls_total{cause="heartbeat"}"#)
                .await
                > 0.0;
        assert_eq!(
            node.get(LOOKUP).await.status,
            403,
            "suspended, and then not"
        );
    }
    db.sql("update public.tenants set status = 'active' where slug = 'seguridad-acme-sa'")
        .await;
    node.until(LOOKUP, |reply| reply.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_ten_thousand_times_hides_no_change_of_a_cold_one() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let pulls = r#"sidetone_pulls_total{cause="doorbell"}"#;
    let other = db.session().await;
    for (turn, commit) in [("one by one", "commit;"), ("at once", "")] {
        let (before, began) = (node.metric(pulls).await, Instant::now());
        let hot = format!(
            "do $$ begin for i in 1..10000 loop
               update public.tenant_phone_numbers set label = '{turn} ' || i where e164 = '+14155550100'; {commit}
             end loop; end $$"
        );
        let cold = format!(
            "update public.tenant_phone_numbers set label = 'cold {turn}' where e164 = '+541150000002'"
        );
        let asking = async {
            let mut last = 0;
            while last < 10_000 {
                let label = node.get(LABEL).await.body;
                let Some(i) = label.strip_prefix(&format!("{turn} ")) else {
                    continue;
                };
                let i: u32 = i.parse().unwrap();
                assert!(i >= last, "from {last} back to {i}");
                last = i;
                assert!(began.elapsed() < PATIENCE * 3, "stays at {i}");
            }
        };
        let ((), (), ()) = tokio::join!(db.sql(&hot), other.sql(&cold), asking);
        node.until("/v1/lookup/label?to=%2B541150000002", |reply| {
            reply.body == format!("cold {turn}")
        })
        .await;
        let (pulled, took) = (node.metric(pulls).await - before, began.elapsed());
        println!("10 000 times {turn}: {took:?}, {pulled} pulls");
        // One for each burst: they lie 5 ms apart.
        assert!(
            pulled <= took.as_secs_f64() / 0.005 + 10.0,
            "{pulled} pulls"
        );
    }
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_of_notifications_commits_are_answered_in_time_and_pulls_are_bounded() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(&db, "").await;
    let pulls = r#"sidetone_pulls_total{cause="doorbell"}"#;
    let (before, began) = (node.metric(pulls).await, Instant::now());
    // Of any role: NOTIFY needs no right.
    cluster
        .admin()
        .await
        .sql("create role stranger login")
        .await;
    let stranger = db.session_as("stranger").await;
    let storming = async {
        for blow in 0..20 {
            let payload = [
                "i::text",
                "repeat('x', 500) || i",
                "(i * 1000000000000)::text",
                "chr(1000 + i % 9000)",
            ][blow % 4];
            let channel = ["'sidetone'", "'sidetone'", "'sidetone'", "'flood' || i"][blow % 4];
            stranger
                .sql(&format!(
                    "select count(pg_notify({channel}, {payload})) from generate_series({} + 1, {} + 5000) i",
                    blow * 5000,
                    blow * 5000
                ))
                .await;
        }
    };
    let committing = async {
        let mut slowest = Duration::ZERO;
        for i in 0..60 {
            db.sql(&format!(
                "update public.tenant_phone_numbers set label = 'in the storm {i}' where e164 = '+14155550100'"
            ))
            .await;
            let took = time_until(&node, LABEL, |reply| {
                reply.body == format!("in the storm {i}")
            })
            .await;
            slowest = slowest.max(took);
        }
        slowest
    };
    let ((), slowest) = tokio::join!(storming, committing);
    let (pulled, took) = (node.metric(pulls).await - before, began.elapsed());
    println!("100 000 notifications in {took:?}: slowest commit {slowest:?}, {pulled} pulls");
    assert!(slowest < 2 * VISIBLE_WITHIN, "{slowest:?}");
    // Those that look for a forged transaction again come on top: they double their pauses.
    assert!(
        pulled <= took.as_secs_f64() / 0.005 + 100.0,
        "{pulled} pulls"
    );
    assert!(node.metric("sidetone_doorbells_total").await >= 10_000.0);
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_open_during_everything_is_heard_when_it_commits_and_not_pruned_before() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(&db, "feed.heartbeat_every = '200ms'").await;
    let slow = db.session().await;
    slow.sql("begin; update public.tenant_phone_numbers set label = 'at last' where e164 = '+541150000002'")
        .await;
    db.sql("update sidetone.meta set keep = '0'").await;
    for i in 0..50 {
        db.sql(&format!(
            "update public.tenant_phone_numbers set label = 'meanwhile {i}' where e164 = '+14155550100'"
        ))
        .await;
        db.sql("select sidetone.prune()").await;
    }
    node.until(LABEL, |reply| reply.body == "meanwhile 49")
        .await;
    let reconciles = r#"sidetone_pulls_total{cause="reconcile"}"#;
    let compared = node.metric(reconciles).await;
    let kept: i64 = db.value("select count(*) from sidetone.change").await;
    assert!(kept >= 50, "only {kept} rows of the log are left");
    slow.sql("commit").await;
    node.until("/v1/lookup/label?to=%2B541150000002", |reply| {
        reply.body == "at last"
    })
    .await;
    assert_eq!(
        node.metric(reconciles).await,
        compared,
        "it was not in the log"
    );
    // Nothing is in the way any more.
    until("the log is pruned", async || {
        db.sql("select sidetone.prune()").await;
        db.value::<i64>("select count(*) from sidetone.change")
            .await
            == 0
    })
    .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tenant_takes_its_numbers_along_and_a_truncated_table_is_noticed() {
    let db = Cluster::shared().database().await;
    db.load_example().await;
    crowd(&db, 20, 200).await;
    let node = Node::on(&db, "").await;
    assert_eq!(node.get(&label(3)).await.body, "before");
    db.sql("delete from public.tenants where slug = 't3'").await;
    node.until("/v1/lookup?to=%2B16501000003", |reply| {
        reply.text("/status") == "unknown_number"
    })
    .await;
    assert_eq!(node.get("/v1/lookup?to=%2B16501000183").await.status, 404);
    assert_eq!(node.get(&label(4)).await.body, "before");
    assert_ne!(node.get(LOOKUP).await.text("/prompt/ids"), "");
    db.sql("truncate public.prompt_bindings, public.prompt_versions")
        .await;
    node.until(LOOKUP, |reply| reply.text("/prompt/ids").is_empty())
        .await;
    node.equals_database().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_panics_again_and_again_begins_anew_and_answers_go_on() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.stop();
    let mut config = Config::load(&Sources {
        file: Some(node.path("sidetone.toml")),
        ..Sources::default()
    })
    .unwrap();
    // A timer without a period panics: an error in the feed, in every session anew.
    config.feed.heartbeat_every = Duration::ZERO;
    let metrics = Arc::new(Metrics::new().unwrap());
    let health = Arc::new(Health::new(Duration::from_secs(5), Duration::ZERO, 0));
    let keyring = Keyring::load(&config.keys.file).unwrap();
    let (replica, _) = Replica::open(&config.replica.dir, &keyring).unwrap();
    let engine = Arc::new(
        Engine::new(Parts {
            replica,
            keyring,
            keys_file: config.keys.file.clone(),
            raw_key: None,
            cache_bytes: 1 << 20,
            limits: AdmissionLimits {
                prompt_bytes: 1 << 16,
                credential_bytes: 1 << 16,
                rows_per_tenant: 100,
            },
            read_through: None,
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
        })
        .unwrap(),
    );
    let (handle, orders) = FeedHandle::new();
    let stop = CancellationToken::new();
    let feed = tokio::spawn(feed::run(
        Feed {
            traces: Traces::default(),
            target: Target::new(&config.postgres, "n1").unwrap(),
            read_target: None,
            held: None,
            config: config.feed.clone(),
            engine: Arc::clone(&engine),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            orders,
        },
        stop.clone(),
    ));
    let panics = || metrics.reconnects.of(Disconnect::Panic).unwrap().get();
    until("the feed panicked three times", async || panics() >= 3).await;
    let error = health.feed().last_error.unwrap().text;
    assert!(error.contains("panicked"), "{error}");
    assert!(engine.find(&"+14155550100".parse().unwrap()).await.is_ok());
    // Whoever orders something is told, and does not wait for ever.
    assert!(handle.verify().await.is_err());
    stop.cancel();
    tokio::time::timeout(PATIENCE, feed).await.unwrap().unwrap();
}
