//! What an operator does to a running node, and what the node tells of itself (design sections 5 and 9).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::node::{ACME, AWAY, Node, Reply, SECRET, read_reply, until};

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
const LABEL: &str = "/v1/lookup/label?to=%2B14155550100";
const CREDENTIALS: &str = "/v1/credentials?to=%2B14155550100";
const TENANT: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";

pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// Where a caller connects.
#[derive(Clone)]
pub(crate) enum Door {
    Unix(PathBuf),
    Tcp(u16),
}

impl Door {
    pub(crate) async fn connect(&self) -> std::io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tcp(port) => Box::new(TcpStream::connect(("127.0.0.1", *port)).await?),
        })
    }
}

/// Reads one answer: `None` when the connection was closed before its first byte. Part of an answer is a failure.
pub(crate) async fn whole_answer(stream: &mut dyn Connection) -> Option<Reply> {
    let mut first = [0];
    match stream.read(&mut first).await {
        Ok(0) | Err(_) => None,
        Ok(_) => {
            let mut rest = std::io::Cursor::new(first).chain(stream);
            Some(
                read_reply(&mut rest, false)
                    .await
                    .expect("part of an answer"),
            )
        }
    }
}

/// What callers saw.
#[derive(Default)]
struct Seen {
    answered: AtomicU32,
    after_the_signal: AtomicU32,
    closed_between: AtomicU32,
}

/// Asks again and again until the daemon is gone, and fails where a request was lost.
async fn ask_until_gone(
    door: Door,
    path: &'static str,
    keep_alive: bool,
    signalled: Arc<AtomicBool>,
    seen: Arc<Seen>,
) {
    let kind = if keep_alive { "keep-alive" } else { "close" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {kind}\r\n\r\n");
    loop {
        let mut stream = match door.connect().await {
            Ok(stream) => stream,
            Err(err) => {
                assert!(
                    signalled.load(Ordering::SeqCst),
                    "refused while nobody stops the daemon: {err}"
                );
                return;
            }
        };
        let mut first = true;
        loop {
            if let Err(err) = stream.write_all(request.as_bytes()).await {
                assert!(
                    signalled.load(Ordering::SeqCst),
                    "closed while nobody stops the daemon: {err}"
                );
                break;
            }
            // From here on the request was sent; if that was before the signal, nothing excuses.
            let before = !signalled.load(Ordering::SeqCst);
            let Some(reply) = whole_answer(&mut *stream).await else {
                assert!(
                    !before,
                    "a request that was sent before the signal was lost ({kind}, first: {first})"
                );
                // A connection to a Unix socket was accepted or refused; between requests it may be closed.
                assert!(
                    !(first && matches!(door, Door::Unix(_))),
                    "a connection was made and its request lost ({kind})"
                );
                seen.closed_between.fetch_add(1, Ordering::Relaxed);
                break;
            };
            assert_eq!(reply.status, 200, "{reply:?}");
            seen.answered.fetch_add(1, Ordering::Relaxed);
            if !before {
                seen.after_the_signal.fetch_add(1, Ordering::Relaxed);
            }
            if !keep_alive || reply.closes() {
                break;
            }
            first = false;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_request() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    // An answer that does not go into a socket's buffer at once.
    db.sql(
        "insert into public.prompt_versions (id, prompt_id, version, content)
         values (gen_random_uuid(), '11111111-1111-4111-8111-111111111111', 3, repeat('Buenas noches. ', 15000))",
    )
    .await;
    const LARGE: &str = "/v1/resolve?to=%2B14155550100";
    node.until(LARGE, |reply| reply.body.len() > 200_000).await;
    let (signalled, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let doors = [Door::Unix(node.unix()), Door::Tcp(node.tcp)];
    let callers: Vec<_> = (0..40_usize)
        .map(|i| {
            let path = if i % 8 < 2 { LARGE } else { LOOKUP };
            tokio::spawn(ask_until_gone(
                doors[i % 2].clone(),
                path,
                i % 4 < 2,
                signalled.clone(),
                seen.clone(),
            ))
        })
        .collect();
    // Connections that wait, and one that is answered slowly by its own fault.
    let mut idle = Vec::new();
    for door in &doors {
        let mut stream = door.connect().await.unwrap();
        stream
            .write_all(format!("GET {LOOKUP} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .await
            .unwrap();
        assert_eq!(whole_answer(&mut *stream).await.unwrap().status, 200);
        idle.push(stream);
    }
    let mut begun = UnixStream::connect(node.unix()).await.unwrap();
    begun
        .write_all(format!("GET {LOOKUP} HTTP/1.1\r\n").as_bytes())
        .await
        .unwrap();
    until("callers are answered", async || {
        seen.answered.load(Ordering::Relaxed) > 200
    })
    .await;

    signalled.store(true, Ordering::SeqCst);
    let before = Instant::now();
    node.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(100)).await;
    begun.write_all(b"Host: localhost\r\n\r\n").await.unwrap();
    let reply = whole_answer(&mut begun)
        .await
        .expect("a request that was being sent when the signal came is answered");
    assert_eq!(reply.status, 200);
    assert!(node.ended().success());
    let took = before.elapsed();
    for caller in callers {
        caller.await.unwrap();
    }
    for stream in &mut idle {
        assert!(
            whole_answer(&mut **stream).await.is_none(),
            "an answer without a question"
        );
    }
    assert!(took < Duration::from_secs(5), "drained in {took:?}");
    assert!(
        seen.after_the_signal.load(Ordering::Relaxed) > 0,
        "nothing was under way when the signal came"
    );
    assert!(!node.unix().exists());
    let after = node.log();
    assert!(
        after.contains("draining")
            && after.contains("stopped")
            && !after.contains("not drained in time"),
        "{after}"
    );
}

/// A connection that never finishes its request.
async fn stalled(node: &Node) -> UnixStream {
    let mut stream = UnixStream::connect(node.unix()).await.unwrap();
    stream
        .write_all(b"GET /v1/lookup HTTP/1.1\r\nX-Slow: ")
        .await
        .unwrap();
    // The daemon has read it when it has answered somebody who came later.
    node.get(LOOKUP).await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_bounded_and_idle_connections_do_not_use_the_bound() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(
        &db,
        "http.drain_timeout = '700ms'\nhttp.header_timeout = '30s'",
    )
    .await;
    let mut idle = UnixStream::connect(node.unix()).await.unwrap();
    idle.write_all(format!("GET {LOOKUP} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .await
        .unwrap();
    whole_answer(&mut idle).await.unwrap();
    let began = Instant::now();
    assert!(node.stop().success());
    assert!(
        began.elapsed() < Duration::from_millis(700),
        "idle connections hold a stop up: {:?}",
        began.elapsed()
    );
    node.start();
    node.answering().await;
    let mut slow = stalled(&node).await;
    let began = Instant::now();
    assert!(node.stop().success());
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(600) && took < Duration::from_millis(2500),
        "{took:?}"
    );
    assert!(whole_answer(&mut slow).await.is_none());
    assert!(node.log().contains("not drained in time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_at_once_and_costs_nothing() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(
        &db,
        "http.drain_timeout = '15s'\nhttp.header_timeout = '30s'",
    )
    .await;
    let _slow = stalled(&node).await;
    node.signal(Signal::TERM);
    until("it drains", async || node.log().contains("draining")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        !node.log().contains("stopped"),
        "it did not wait for the request under way"
    );
    let began = Instant::now();
    node.signal(Signal::TERM);
    let status = node.ended();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(status.code(), Some(1));
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    assert_eq!(node.get(LOOKUP).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_keyring_and_the_log_filter_again_and_a_broken_file_changes_nothing() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "log.filter = 'info'").await;
    let add = node.cli(&[
        "keygen",
        "--file",
        node.path("keyring.toml").to_str().unwrap(),
        "--add",
    ]);
    assert!(add.status.success(), "{add:?}");
    node.configure(&db.url(), "log.filter = 'warn,sidetone=debug'");
    let status = async || node.admin("GET", "/v1/admin/status", "").await.json();
    assert_eq!(status().await["keys"], json!([{"id": "k1", "seals": true}]));
    assert_eq!(status().await["log_filter"], "info");
    node.signal(Signal::HUP);
    until("the filter is read again", async || {
        status().await["log_filter"] == "sidetone=debug,warn"
    })
    .await;
    assert_eq!(
        status().await["keys"],
        json!([{"id": "k1", "seals": false}, {"id": "k2", "seals": true}])
    );

    fs::write(node.path("keyring.toml"), "seal = 'none'").unwrap();
    fs::write(node.path("sidetone.toml"), "log.filter = 7").unwrap();
    node.signal(Signal::HUP);
    until("both are refused", async || {
        let log = node.log();
        log.contains("the keyring cannot be read again")
            && log.contains("the settings cannot be read again")
    })
    .await;
    assert_eq!(status().await["log_filter"], "sidetone=debug,warn");
    assert_eq!(status().await["keys"].as_array().unwrap().len(), 2);
    assert_eq!(
        node.get(CREDENTIALS)
            .await
            .text("/credentials/openai/default"),
        SECRET
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_filter_is_changed_while_the_node_runs_and_a_wrong_one_is_refused() {
    const LOST: &str = "sidetone_reconnects_total{cause=\"connect\"}";
    let mut node = Node::prepare(AWAY, "log.filter = 'warn'");
    node.start();
    node.answering().await;
    let put = async |body: &str| node.admin("PUT", "/v1/admin/log", body).await;
    let debug_lines = || {
        node.log()
            .lines()
            .filter(|line| line.contains(r#""level":"DEBUG""#))
            .count()
    };
    assert_eq!(debug_lines(), 0);
    let reply = put(r#"{"filter":"warn,sidetone=debug"}"#).await;
    assert_eq!(
        (reply.status, reply.text("/filter")),
        (200, "sidetone=debug,warn".to_owned())
    );
    // Postgres is asked for again and again, and that is told at debug.
    until("debug lines are written", async || debug_lines() > 0).await;
    for wrong in [
        r#"{"filter":"sidetone=loud"}"#,
        r#"{"filter":7}"#,
        r#"{"level":"info"}"#,
        r#"{"filter":""}"#,
        "",
        "info",
    ] {
        let reply = put(wrong).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (400, "bad_request".to_owned()),
            "{wrong}"
        );
    }
    assert_eq!(
        node.admin("GET", "/v1/admin/status", "")
            .await
            .text("/log_filter"),
        "sidetone=debug,warn"
    );
    assert_eq!(
        node.admin("POST", "/v1/admin/log", r#"{"filter":"info"}"#)
            .await
            .status,
        405
    );
    // A reload goes back to what is configured, and the lines are no more.
    node.signal(Signal::HUP);
    until("the configured filter is back", async || {
        let status = node.admin("GET", "/v1/admin/status", "").await;
        status.text("/log_filter") == "warn"
    })
    .await;
    let (lines, failures) = (debug_lines(), node.metric(LOST).await);
    until("Postgres was asked for again", async || {
        node.metric(LOST).await > failures
    })
    .await;
    assert_eq!(debug_lines(), lines);
}

/// Changes that no trigger tells: label of the first number, model of the first tenant.
async fn untold(db: &Db<'_>, value: &str) {
    for (table, change) in [
        (
            "tenant_phone_numbers",
            format!("set label = '{value}' where e164 = '+14155550100'"),
        ),
        (
            "tenant_settings",
            format!("set model = '{value}' where tenant_id = '{TENANT}'"),
        ),
    ] {
        db.sql(&format!(
            "alter table public.{table} disable trigger sidetone_update; update public.{table} {change}"
        ))
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_brings_what_it_names_and_says_what_it_did() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let refresh = async |body: &str| node.admin("POST", "/v1/admin/refresh", body).await;
    let now = async || {
        let reply = node.get(LOOKUP).await;
        (reply.text("/label"), reply.text("/model"))
    };
    let is = |label: &str, model: &str| (label.to_owned(), model.to_owned());
    // (order, label afterwards, model afterwards): a number brings its tenant along.
    for (round, (body, written)) in [
        (r#"{"number":"tel:+1-415-555-0100","wait":true}"#, 2),
        (r#"{"tenant":"seguridad-acme-sa","wait":true}"#, 2),
        (
            r#"{"tenant":"6f717b5a-1a2b-4c3d-9e8f-112233445566","wait":true}"#,
            2,
        ),
        (r#"{"scope":"all","wait":true}"#, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let (before, value) = (now().await, format!("round {round}"));
        untold(&db, &value).await;
        // Another number and tenant do not bring it.
        if round < 3 {
            for body in [
                r#"{"number":"+541150000002","wait":true}"#,
                r#"{"tenant":"guardianes-srl","wait":true}"#,
            ] {
                assert_eq!(refresh(body).await.status, 200);
            }
            assert_eq!(now().await, before, "{body}");
        }
        let reply = refresh(body).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (200, "ok".to_owned()),
            "{body}: {reply:?}"
        );
        // Answered with it as soon as the refresh is.
        assert_eq!(now().await, is(&value, &value), "{body}");
        assert_eq!(
            (&reply.json()["written"], &reply.json()["removed"]),
            (&json!(written), &json!(0)),
            "{body}: {reply:?}"
        );
        assert!(reply.json()["read"].as_u64().unwrap() >= 2, "{reply:?}");
        assert_eq!(reply.text("/cursor").split(':').count(), 3, "{reply:?}");
    }
    untold(&db, "later").await;
    let reply = refresh(r#"{"scope":"all"}"#).await;
    assert_eq!(
        (reply.status, reply.text("/status")),
        (202, "accepted".to_owned())
    );
    node.until(LABEL, |reply| reply.body == "later").await;

    // A deleted number is removed, a new one comes.
    db.sql(
        "alter table public.tenant_phone_numbers disable trigger sidetone_delete;
         delete from public.tenant_phone_numbers where e164 = '+541150000002'",
    )
    .await;
    let reply = refresh(r#"{"number":"+541150000002","wait":true}"#).await;
    assert_eq!(
        (reply.status, &reply.json()["removed"]),
        (200, &json!(1)),
        "{reply:?}"
    );
    assert_eq!(
        node.get("/v1/lookup?to=%2B541150000002")
            .await
            .text("/status"),
        "unknown_number"
    );

    for (body, status, code) in [
        (r#"{"tenant":"nobody","wait":true}"#, 404, "unknown_tenant"),
        (
            r#"{"tenant":"00000000-0000-4000-8000-000000000000","wait":true}"#,
            404,
            "unknown_tenant",
        ),
        (r#"{"number":"+1650999999999","wait":true}"#, 200, "ok"),
        (r#"{"number":"nobody","wait":true}"#, 400, "invalid_number"),
        (r#"{"scope":"some"}"#, 400, "bad_request"),
        (
            r#"{"scope":"all","number":"+14155550100"}"#,
            400,
            "bad_request",
        ),
        (r#"{"scope":"all","wiat":true}"#, 400, "bad_request"),
        ("", 400, "bad_request"),
    ] {
        let reply = refresh(body).await;
        assert_eq!(
            (reply.status, reply.text("/status").as_str()),
            (status, code),
            "{body}: {reply:?}"
        );
    }
    let reply = node.admin("GET", "/v1/admin/refresh", "").await;
    assert_eq!(
        (reply.status, reply.headers["allow"].as_str()),
        (405, "POST")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_with_at_least_answers_when_that_transaction_is_answered_with() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    for as_text in [true, false] {
        let session = db.session().await;
        let label = format!("in time {as_text}");
        session.sql("begin").await;
        session.sql(&format!("update public.tenant_phone_numbers set label = '{label}' where e164 = '+14155550100'")).await;
        let xid: String = session.value("select pg_current_xact_id()::text").await;
        let at_least = if as_text {
            json!(xid)
        } else {
            json!(xid.parse::<u64>().unwrap())
        };
        let body =
            json!({"number": "+14155550100", "wait": true, "at_least": at_least}).to_string();
        let refreshed = node.admin("POST", "/v1/admin/refresh", &body);
        let mut refreshed = std::pin::pin!(refreshed);
        let early = tokio::time::timeout(Duration::from_millis(400), &mut refreshed).await;
        assert!(early.is_err(), "answered before the commit: {early:?}");
        session.sql("commit").await;
        let reply = refreshed.await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(node.get(LABEL).await.body, label);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_to_a_node_without_postgres_are_refused_and_say_so() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.stop();
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    for (path, body) in [
        ("/v1/admin/refresh", r#"{"scope":"all","wait":true}"#),
        (
            "/v1/admin/refresh",
            r#"{"number":"+14155550100","wait":true}"#,
        ),
        ("/v1/admin/verify", ""),
    ] {
        let reply = node.admin("POST", path, body).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (503, "not_ready".to_owned()),
            "{reply:?}"
        );
        assert!(
            reply.headers.contains_key("retry-after")
                && reply.text("/message").contains("Postgres"),
            "{reply:?}"
        );
    }
    assert_eq!(
        node.admin("POST", "/v1/admin/refresh", r#"{"scope":"all"}"#)
            .await
            .status,
        202
    );
    assert_eq!(node.get(LOOKUP).await.status, 200);
    let status = node.admin("GET", "/v1/admin/status", "").await;
    assert!(
        status.text("/feed/last_error/text").contains("127.0.0.1:1"),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_and_repairs_every_difference_that_no_trigger_told() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    db.sql(&format!(
        "alter table public.tenant_phone_numbers disable trigger user;
         alter table public.prompt_versions disable trigger user;
         alter table public.tenants disable trigger user;
         delete from public.tenant_phone_numbers where e164 = '+541150000002';
         update public.tenant_phone_numbers set label = 'other' where e164 = '+14155550100';
         insert into public.tenant_phone_numbers (id, tenant_id, e164, default_language, timezone)
             values (gen_random_uuid(), '{TENANT}', '+14155550101', 'en', 'UTC');
         insert into public.prompt_versions (id, prompt_id, version, content)
             values (gen_random_uuid(), '11111111-1111-4111-8111-111111111111', 9, 'Nueva');
         insert into public.tenants (id, name, slug, status)
             values ('aaaaaaaa-0000-4000-8000-000000000001', 'New', 'new', 'active')"
    ))
    .await;
    until("the feed is disarmed", async || {
        node.metric("sidetone_feed_armed").await == 0.0
    })
    .await;
    assert_eq!(node.get("/v1/lookup?to=%2B14155550101").await.status, 404);
    let report = node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(report.status, 200, "{report:?}");
    let body = report.json();
    let found: BTreeSet<(String, String)> = body["first"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["key"].as_str().unwrap().to_owned(),
                one["what"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let expected = [
        ("+541150000002", "surplus"),
        ("+14155550100", "different"),
        ("+14155550101", "missing"),
        (TENANT, "different"),
        ("aaaaaaaa-0000-4000-8000-000000000001", "missing"),
    ];
    assert_eq!(
        found,
        expected
            .map(|(key, what)| (key.to_owned(), what.to_owned()))
            .into(),
        "{body}"
    );
    assert_eq!(
        (&body["differences"], &body["repaired"], &body["held"]),
        (&json!(5), &json!(5), &json!(false)),
        "{body}"
    );
    assert_eq!(
        (&body["tenants"], &body["numbers"]),
        (&json!(4), &json!(3)),
        "{body}"
    );
    assert_eq!(node.get(LABEL).await.body, "other");
    assert_eq!(node.get("/v1/lookup?to=%2B14155550101").await.status, 200);
    assert_eq!(
        node.get("/v1/lookup?to=%2B541150000002")
            .await
            .text("/status"),
        "unknown_number"
    );
    assert!(
        node.get("/v1/resolve?to=%2B14155550100")
            .await
            .text("/prompt/system")
            .starts_with("Nueva")
    );
    assert_eq!(
        node.metric("sidetone_reconcile_differences_total").await,
        5.0
    );
    let again = node.admin("POST", "/v1/admin/verify", "").await.json();
    assert_eq!(
        (&again["differences"], &again["repaired"]),
        (&json!(0), &json!(0)),
        "{again}"
    );
    assert_eq!(
        node.metric("sidetone_reconcile_differences_total").await,
        5.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_one_snapshot_of_everything_an_operator_asks_for() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    db.sql("update public.tenant_phone_numbers set timezone = 'Mars/Olympus' where e164 = '+14155550100'").await;
    db.sql("update public.prompt_bindings set conditions_json = '{\"zone\":{}}' where id = 'b1d00003-0003-4003-8003-000300030003'").await;
    until("bad rows are told", async || {
        node.admin("GET", "/v1/admin/status", "").await.json()["quarantined_rows"] == json!(2)
    })
    .await;
    node.level().await;
    node.get(LOOKUP).await;
    until("the cache is counted", async || {
        node.admin("GET", "/v1/admin/status", "").await.json()["cache_entries"] != 0
    })
    .await;
    let began = std::time::SystemTime::now();
    let status = node.admin("GET", "/v1/admin/status", "").await;
    assert_eq!(status.status, 200);
    let status = status.json();
    let at = |pointer: &str| {
        status
            .pointer(pointer)
            .unwrap_or_else(|| panic!("no {pointer} in {status}"))
            .clone()
    };
    for (pointer, expected) in [
        ("/status", json!("ok")),
        ("/node", json!("n1")),
        ("/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/ready", json!(true)),
        ("/synced", json!(true)),
        ("/stale", json!(false)),
        ("/feed/state", json!("level")),
        ("/feed/listening", json!(true)),
        ("/feed/armed", json!(true)),
        ("/feed/last_error", Value::Null),
        ("/feed/held", Value::Null),
        ("/feed/behind", json!(0)),
        ("/feed/refused_database", json!(false)),
        ("/feed/schema_version", at("/feed/schema_needed")),
        ("/replica/tenants", json!(3)),
        ("/replica/numbers", json!(3)),
        ("/keys", json!([{"id": "k1", "seals": true}])),
        ("/log_filter", json!("sidetone=debug,info")),
    ] {
        assert_eq!(at(pointer), expected, "{pointer}");
    }
    for instant in [
        "/started",
        "/feed/since",
        "/feed/last_pull_started",
        "/feed/last_pull_completed",
        "/feed/last_reconcile",
    ] {
        let then: jiff::Timestamp = at(instant).as_str().unwrap().parse().unwrap();
        let now = jiff::Timestamp::try_from(began).unwrap();
        assert!(
            then <= now && now.duration_since(then) < jiff::SignedDuration::from_secs(60),
            "{instant} {then}"
        );
    }
    assert!(at("/staleness_ms").as_u64().unwrap() < 10_000);
    assert_eq!(at("/feed/cursor").as_str().unwrap().split(':').count(), 3);
    assert!(
        at("/feed/server_version")
            .as_str()
            .unwrap()
            .starts_with(|c: char| c.is_ascii_digit())
    );
    assert!(at("/replica/bytes").as_u64().unwrap() > 1000);
    assert!(at("/cache_bytes").as_u64().unwrap() > 100);
    let quarantined: BTreeSet<(String, String, bool)> = at("/quarantined")
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |name: &str| {
                row[name]
                    .as_str()
                    .unwrap_or_else(|| panic!("no {name} in {row}"))
                    .to_owned()
            };
            (
                text("table"),
                text("key"),
                row["last_good"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        quarantined,
        BTreeSet::from([
            (
                "tenant_phone_numbers".to_owned(),
                "+14155550100".to_owned(),
                true
            ),
            (
                "prompt_bindings".to_owned(),
                "b1d00003-0003-4003-8003-000300030003".to_owned(),
                false
            ),
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_without_a_failed_answer_and_the_old_one_is_needed_no_more() {
    let cluster = Cluster::shared();
    let db = cluster.database().await;
    let mut node = Node::with_example(&db, "").await;
    let ring = node.path("keyring.toml");
    let stop = Arc::new(AtomicBool::new(false));
    // Somebody asks all the time.
    let asking = tokio::spawn({
        let (stop, socket) = (stop.clone(), node.unix());
        async move {
            let mut asked = 0;
            let request = format!(
                "GET {CREDENTIALS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            );
            while !stop.load(Ordering::Relaxed) {
                let stream = UnixStream::connect(&socket).await.unwrap();
                let reply = crate::node::exchange(stream, &request).await.unwrap();
                assert_eq!(reply.status, 200, "{reply:?}");
                assert_eq!(
                    reply.text("/credentials/openai/default"),
                    SECRET,
                    "{reply:?}"
                );
                assert_eq!(reply.text("/credentials_withheld"), "[]", "{reply:?}");
                asked += 1;
            }
            asked
        }
    });
    let reload = async || node.admin("POST", "/v1/admin/keys/reload", "").await;
    let sealed_by = async || -> String {
        db.value("select data_ciphertext from public.tenant_credentials")
            .await
    };

    let add = node.cli(&[
        "keygen",
        "--file",
        ring.to_str().unwrap(),
        "--id",
        "k2",
        "--add",
    ]);
    assert!(add.status.success(), "{add:?}");
    let reply = reload().await;
    assert_eq!(
        reply.json(),
        json!({"status": "ok", "keys": [{"id": "k1", "seals": false}, {"id": "k2", "seals": true}]})
    );
    let before = sealed_by().await;
    let anew = node.seal(TENANT, "openai", "default", SECRET);
    db.sql(&format!(
        "update public.tenant_credentials set data_ciphertext = '{anew}'"
    ))
    .await;
    assert_ne!(before, sealed_by().await);
    let refreshed = node
        .admin(
            "POST",
            "/v1/admin/refresh",
            r#"{"tenant":"seguridad-acme-sa","wait":true}"#,
        )
        .await;
    assert_eq!(refreshed.status, 200);
    // Without k1.
    let text = fs::read_to_string(&ring).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.starts_with("k1"))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_ne!(text, without);
    fs::write(&ring, &without).unwrap();
    assert_eq!(
        reload().await.json()["keys"],
        json!([{"id": "k2", "seals": true}])
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(asking.await.unwrap() > 20);

    // A keyring that is none changes nothing; one that opens nothing withholds, and says so.
    fs::write(&ring, "seal = 'k3'").unwrap();
    let reply = reload().await;
    assert_eq!(
        (reply.status, reply.text("/status")),
        (409, "bad_keyring".to_owned())
    );
    assert_eq!(
        node.get(CREDENTIALS)
            .await
            .text("/credentials/openai/default"),
        SECRET
    );
    fs::write(&ring, &without).unwrap();
    assert_eq!(reload().await.status, 200);

    node.stop();
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    assert_eq!(
        node.get(CREDENTIALS)
            .await
            .text("/credentials/openai/default"),
        SECRET
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_change_while_no_daemon_runs_open_the_replica_by_themselves_from_the_next_start_on()
 {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.level().await;
    let language = async |node: &Node| {
        node.answering().await;
        node.get(&format!("/v1/lookup?to={ACME}")).await.status
    };
    let ring = node.path("keyring.toml");
    let old = fs::read_to_string(&ring).unwrap();
    node.stop();
    let file = ring.to_str().unwrap();
    let add = node.cli(&["keygen", "--file", file, "--id", "k2", "--add"]);
    assert!(add.status.success(), "{add:?}");
    node.configure(AWAY, "");
    node.start();
    assert_eq!(language(&node).await, 200);
    node.stop();

    let new: String = fs::read_to_string(&ring)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with("k1"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&ring, &new).unwrap();
    node.start();
    assert_eq!(language(&node).await, 200, "k2 alone opens the replica");
    node.stop();

    fs::write(&ring, &old).unwrap();
    node.start();
    assert_eq!(
        language(&node).await,
        503,
        "the key that went opens the replica no more"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_still_needed_withholds_its_credentials_by_name_and_heals_when_it_is_back() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let ring = node.path("keyring.toml");
    let old = fs::read_to_string(&ring).unwrap();
    fs::remove_file(&ring).unwrap();
    assert!(
        node.cli(&["keygen", "--file", ring.to_str().unwrap(), "--id", "k9"])
            .status
            .success()
    );
    assert_eq!(
        node.admin("POST", "/v1/admin/keys/reload", "").await.status,
        200
    );
    let reply = node.get(CREDENTIALS).await;
    assert_eq!(
        (reply.status, reply.text("/credentials_withheld")),
        (200, r#"["openai/default"]"#.to_owned())
    );
    assert_eq!(node.metric("sidetone_credentials_withheld").await, 1.0);
    let status = node.admin("GET", "/v1/admin/status", "").await.json();
    assert_eq!(
        (
            &status["quarantined_rows"],
            &status["quarantined"][0]["table"]
        ),
        (&json!(1), &json!("tenant_credentials"))
    );
    assert_eq!(node.get(LOOKUP).await.status, 200);
    fs::write(&ring, old).unwrap();
    assert_eq!(
        node.admin("POST", "/v1/admin/keys/reload", "").await.status,
        200
    );
    assert_eq!(
        node.get(CREDENTIALS)
            .await
            .text("/credentials/openai/default"),
        SECRET
    );
    assert_eq!(node.metric("sidetone_credentials_withheld").await, 0.0);
}

/// Every kind of question and order once, bad ones included.
async fn a_busy_life(node: &Node, db: &Db<'_>) {
    for path in [
        LOOKUP,
        LABEL,
        CREDENTIALS,
        "/v1/lookup?to=%2B14155550100&format=form",
        "/v1/resolve?to=%2B14155550100&include=credentials&account_ref=ACME-001234&event_type=door_open&zone=Z1",
        "/v1/explain?to=%2B14155550100&account_ref=ACME-001234",
        "/v1/lookup?to=%2B16505550199",
        "/v1/lookup?to=%2B542994000003",
        "/v1/lookup?to=0415555010",
        "/v1/lookup?to=%2B14155550100&to=%2B14155550100",
        "/v1/lookup?to=%2B14155550100&account_ref=%00",
        "/v1/nowhere/%2B14155550100",
        "/metrics",
        "/healthz",
        "/readyz",
    ] {
        node.get(path).await;
        node.get_tcp(path).await;
    }
    node.post(
        "/v1/resolve",
        "Content-Type: application/json\r\n",
        r#"{"to":"+14155550100","attr":[]}"#,
    )
    .await;
    node.post("/v1/lookup", "", "to=%2B14155550100").await;
    node.raw(b"GET /v1/lookup?to=+14155550100 HTTP/9.9\r\n\r\n")
        .await;
    node.admin(
        "POST",
        "/v1/admin/refresh",
        r#"{"number":"+14155550100","wait":true}"#,
    )
    .await;
    node.admin(
        "POST",
        "/v1/admin/refresh",
        r#"{"number":"+14155550100","what":1}"#,
    )
    .await;
    node.admin(
        "POST",
        "/v1/admin/refresh",
        r#"{"tenant":"nobody","wait":true}"#,
    )
    .await;
    node.admin("POST", "/v1/admin/verify", "").await;
    node.admin("POST", "/v1/admin/keys/reload", "").await;
    node.admin("GET", "/v1/admin/status", "").await;
    db.sql(
        "update public.tenant_phone_numbers set timezone = 'Mars/Olympus' where e164 = '+14155550100';
         update public.tenant_credentials set data_ciphertext = data_ciphertext || 'x'",
    )
    .await;
    until("bad rows are told", async || {
        node.admin("GET", "/v1/admin/status", "").await.json()["quarantined_rows"] == json!(2)
    })
    .await;
    db.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'sidetone%'")
        .await;
    node.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_are_one_json_object_each_and_hold_no_number_prompt_or_secret_above_debug() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "log.filter = 'info'").await;
    a_busy_life(&node, &db).await;
    node.signal(Signal::HUP);
    until("the keyring is read again", async || {
        node.log().matches("keyring read again").count() >= 2
    })
    .await;
    // A replica of no use, and Postgres away.
    node.stop();
    fs::write(node.path("replica/replica.redb"), vec![7; 100_000]).unwrap();
    node.configure(AWAY, "log.filter = 'info'");
    node.start();
    node.answering().await;
    until("Postgres is missed", async || {
        node.log().contains("127.0.0.1:1")
    })
    .await;
    node.get(LOOKUP).await;
    node.stop();
    let log = node.log();
    let mut levels = BTreeMap::new();
    for line in log.lines() {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"));
        for name in ["timestamp", "level", "target"] {
            assert!(object[name].is_string(), "no {name}: {line}");
        }
        assert!(
            object["timestamp"]
                .as_str()
                .unwrap()
                .parse::<jiff::Timestamp>()
                .is_ok(),
            "{line}"
        );
        *levels
            .entry(object["level"].as_str().unwrap().to_owned())
            .or_insert(0) += 1;
    }
    assert_eq!(
        levels.keys().map(String::as_str).collect::<Vec<_>>(),
        ["ERROR", "INFO", "WARN"],
        "{levels:?}"
    );
    let digits: String = log
        .chars()
        .filter(|c| c.is_ascii_digit() || c.is_ascii_alphabetic())
        .collect();
    for number in [
        "4155550100",
        "6505550199",
        "2994000003",
        "0415555010",
        "1150000002",
    ] {
        assert!(!log.contains(number), "{number} in the log");
        assert!(!digits.contains(number), "{number} in the log, in pieces");
    }
    for words in [
        SECRET,
        "palabra clave",
        "sol rojo",
        "ACME-001234",
        "door_open",
    ] {
        assert!(!log.contains(words), "{words} in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_log_is_for_people_and_holds_a_line_per_event() {
    let mut node = Node::prepare(AWAY, "log.format = 'text'\nlog.filter = 'info'");
    node.start();
    node.answering().await;
    assert!(node.stop().success());
    let log = node.log();
    assert!(log.lines().count() >= 4, "{log}");
    for line in log.lines() {
        let (instant, rest) = line.split_once(' ').unwrap();
        assert!(instant.parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert!(
            ["INFO ", "WARN ", "ERROR "]
                .iter()
                .any(|level| rest.trim_start().starts_with(level)),
            "{line}"
        );
    }
    assert!(!log.contains('\u{1b}'), "colours in a file: {log}");
}

/// Series as name with labels, and what is said of each metric: type and help.
struct Scrape {
    series: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
}

async fn scrape(node: &Node) -> Scrape {
    let reply = node.get("/metrics").await;
    assert_eq!(
        reply.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let mut scrape = Scrape {
        series: BTreeMap::new(),
        types: BTreeMap::new(),
        helps: BTreeMap::new(),
    };
    for line in reply.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(
                scrape
                    .types
                    .insert(name.to_owned(), kind.to_owned())
                    .is_none(),
                "{name} twice"
            );
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            scrape.helps.insert(name.to_owned(), help.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(
                scrape
                    .series
                    .insert(series.to_owned(), value.parse().unwrap())
                    .is_none(),
                "{series} twice"
            );
        }
    }
    scrape
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_there_from_the_first_scrape_with_help_and_base_unit_and_no_label_of_a_tenant()
 {
    let db = Cluster::shared().database().await;
    let busy = Node::with_example(&db, "").await;
    a_busy_life(&busy, &db).await;
    let mut fresh = Node::prepare(AWAY, "");
    fresh.start();
    fresh.answering().await;
    let (first, later) = (scrape(&fresh).await, scrape(&busy).await);
    assert_eq!(first.series["sidetone_synced"], 0.0);
    assert_eq!(later.series["sidetone_synced"], 1.0);
    assert_eq!(
        first.series.keys().collect::<Vec<_>>(),
        later.series.keys().collect::<Vec<_>>()
    );
    assert!(first.types.len() > 40, "{:?}", first.types);

    for (name, kind) in &later.types {
        assert!(
            later.helps.get(name).is_some_and(|help| help.len() > 5),
            "{name} has no help"
        );
        assert!(
            name.starts_with("sidetone_") || name.starts_with("process_"),
            "{name}"
        );
        assert_eq!(
            kind == "counter",
            name.ends_with("_total"),
            "{name} is a {kind}"
        );
        for unit in [
            "_ms",
            "_millis",
            "_milliseconds",
            "_us",
            "_micros",
            "_minutes",
            "_kb",
            "_mb",
            "_kib",
            "_mib",
            "_percent",
        ] {
            assert!(
                !name.ends_with(unit) && !name.contains(&format!("{unit}_")),
                "{name}"
            );
        }
        if kind == "histogram" {
            assert!(
                name.ends_with("_seconds") || name.ends_with("_bytes"),
                "{name}"
            );
        }
    }
    let labels: BTreeSet<&str> = later
        .series
        .keys()
        .filter_map(|series| series.split_once('{'))
        .flat_map(|(_, labels)| {
            labels
                .trim_end_matches('}')
                .split("\",")
                .map(|pair| pair.split('=').next().unwrap())
        })
        .collect();
    let allowed = BTreeSet::from([
        "cause",
        "certificate",
        "event",
        "kind",
        "le",
        "outcome",
        "reason",
        "role",
        "route",
        "state",
        "table",
        "version",
    ]);
    assert_eq!(labels, allowed);
    for known in ["seguridad", "6f717b5a", "4155550100", "openai"] {
        assert!(
            !later.series.keys().any(|series| series.contains(known)),
            "{known} is a label"
        );
    }
    for process in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(
            later.series[process] > 0.0 || process.contains("cpu"),
            "{process}"
        );
    }
    let build = format!(
        r#"sidetone_build_info{{version="{}"}}"#,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(later.series[&build], 1.0);
    let state = |scrape: &Scrape| {
        scrape
            .series
            .iter()
            .filter(|(name, _)| name.starts_with("sidetone_feed_state{"))
            .map(|(_, v)| v)
            .sum::<f64>()
    };
    assert_eq!(
        (state(&first), state(&later)),
        (1.0, 1.0),
        "not in exactly one state"
    );
    for (series, least) in [
        (r#"sidetone_lookups_total{outcome="ok"}"#, 10.0),
        (r#"sidetone_lookups_total{outcome="unknown_number"}"#, 2.0),
        (r#"sidetone_lookups_total{outcome="tenant_suspended"}"#, 2.0),
        (
            r#"sidetone_lookups_total{outcome="credentials_need_unix_socket"}"#,
            2.0,
        ),
        (r#"sidetone_lookups_total{outcome="bad_request"}"#, 4.0),
        (
            r#"sidetone_lookups_total{outcome="method_not_allowed"}"#,
            1.0,
        ),
        (r#"sidetone_lookups_total{outcome="no_such_route"}"#, 2.0),
        (
            r#"sidetone_request_duration_seconds_count{route="explain"}"#,
            2.0,
        ),
        (r#"sidetone_pulls_total{cause="refresh"}"#, 1.0),
        (
            r#"sidetone_quarantined_rows{reason="timezone",table="tenant_phone_numbers"}"#,
            1.0,
        ),
        (r#"sidetone_reconnects_total{cause="lost"}"#, 1.0),
        ("sidetone_commit_to_visible_seconds_count", 1.0),
        ("sidetone_credentials_withheld", 1.0),
    ] {
        let value = later
            .series
            .get(series)
            .unwrap_or_else(|| panic!("no {series} in {:?}", later.series.keys()));
        assert!(*value >= least, "{series} is {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_never_tells_an_age_younger_than_the_answer_before_it() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(&db, "").await;
    drop(db);
    cluster.stop(Stop::Immediate);
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(90)).await;
        let told = node.get(LOOKUP).await.json()["staleness_ms"]
            .as_f64()
            .unwrap()
            / 1000.0;
        let scraped = node.metric("sidetone_staleness_seconds").await;
        assert!(scraped >= told, "{scraped} s after {told} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_calls_and_of_operators_have_their_own_routes_and_modes() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut node = Node::prepare(AWAY, "");
    node.start();
    node.answering().await;
    let mode = |path: &str| fs::metadata(node.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (
            mode("call/sidetone.sock"),
            mode("admin/admin.sock"),
            mode("admin")
        ),
        (0o660, 0o600, 0o700)
    );
    assert_eq!(mode("replica"), 0o700);
    for path in ["/v1/admin/status", "/v1/admin/log"] {
        assert_eq!(node.get(path).await.text("/status"), "no_such_route");
        assert_eq!(node.get_tcp(path).await.text("/status"), "no_such_route");
    }
    assert_eq!(
        node.admin("GET", &format!("/v1/lookup?to={ACME}"), "")
            .await
            .text("/status"),
        "no_such_route"
    );
    for path in ["/healthz", "/metrics"] {
        assert_eq!(node.admin("GET", path, "").await.status, 200);
    }
}
