//! The routes of the call side over the platform's example rows, without sockets.

use bytes::Bytes;
use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;
use crate::access::{Access, Names, Peer};
use crate::change::{Cursor, Identity};
use crate::config::{AccessRule, Config};
use crate::engine::{Engine, Parts};
use crate::feed::handle::{FeedHandle, Order};
use crate::health::since_boot;
use crate::metrics::{Label, Metrics};
use crate::replica::{Cover, Incoming, Replica, Terms};
use crate::sample::{self, ACME, ACME_NUMBER, GUARDIANES_NUMBER, SECRET, SUSPENDED_NUMBER};
use crate::seal::{Context, Keyring};
use crate::source::Row;
use crate::trace::Traces;

const DAEMON: u32 = 500;
const GROUP: u32 = 600;

/// A node with the example's rows, and who may ask it.
pub(in crate::http) struct Node {
    pub(in crate::http) app: App,
    /// What the feed would be asked to do.
    pub(in crate::http) orders: mpsc::Receiver<Order>,
    access: Access,
    audit: Audit,
    dialling: Dialling,
    pub(in crate::http) dir: tempfile::TempDir,
}

fn node() -> Node {
    node_with(Config::default(), true)
}

pub(in crate::http) fn node_with(config: Config, synced: bool) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keyring::generate("k1").unwrap();
    let keyring = Keyring::parse(&keys).unwrap();
    let (replica, _) = Replica::open(&dir.path().join("replica"), &keyring).unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let health = Arc::new(Health::new(
        config.feed.stale_after,
        config.feed.refuse_credentials_after,
        1,
    ));
    let engine = Engine::new(Parts {
        replica,
        keyring,
        keys_file: dir.path().join("keyring.toml"),
        raw_key: None,
        cache_bytes: 1 << 20,
        limits: sample::LIMITS,
        read_through: None,
        health: health.clone(),
        metrics: metrics.clone(),
    })
    .unwrap();
    let engine = Arc::new(engine);
    if synced {
        let filled = engine.clone();
        // The replica is written by a thread of its own, as in the daemon.
        std::thread::spawn(move || fill(&filled, &Keyring::parse(&keys).unwrap()))
            .join()
            .unwrap();
        engine.proven_level(since_boot());
    }
    let (feed, orders) = FeedHandle::new();
    let access = Access::new(&config.access, &Names::default(), DAEMON, Some(GROUP)).unwrap();
    let app = App {
        engine,
        health,
        metrics,
        feed,
        config: Arc::new(config),
        traces: Traces::default(),
        log: crate::log::unused(),
        node: "test".into(),
        started: Timestamp::now(),
    };
    Node {
        app,
        orders,
        access,
        audit: Audit::default(),
        dialling: Dialling::default(),
        dir,
    }
}

/// The example's document of a tenant, its credentials sealed for this node.
fn tenant_document(tenant: uuid::Uuid, keyring: &Keyring) -> String {
    let mut document = sample::tenant_document(&tenant.to_string());
    for row in document["credentials"].as_array_mut().unwrap() {
        let (provider, name) = (
            row["provider"].as_str().unwrap(),
            row["name"].as_str().unwrap(),
        );
        let sealed = keyring
            .seal_jwe(
                SECRET,
                &Context {
                    tenant,
                    provider,
                    name,
                },
            )
            .unwrap();
        row["data_ciphertext"] = sealed.into();
    }
    document.to_string()
}

fn fill(engine: &Engine, keyring: &Keyring) {
    let mut rows = Vec::new();
    for e164 in [ACME_NUMBER, GUARDIANES_NUMBER, SUSPENDED_NUMBER] {
        let number = sample::number_document(e164);
        let tenant: uuid::Uuid = number["tenant_id"].as_str().unwrap().parse().unwrap();
        rows.push((
            tenant,
            e164,
            number.to_string(),
            tenant_document(tenant, keyring),
        ));
    }
    rows.sort();
    let cover = Cover {
        tenants: rows.iter().map(|row| row.0).collect(),
        numbers_of: rows.iter().map(|row| row.0).collect(),
        ..Cover::default()
    };
    let rows = rows
        .into_iter()
        .flat_map(|(tenant, e164, number, document)| {
            [
                Row::Tenant {
                    id: tenant,
                    document,
                },
                Row::Number {
                    tenant,
                    e164: e164.into(),
                    document: number,
                },
            ]
        })
        .collect();
    let identity = Identity {
        system: "1".into(),
        started: "now".into(),
        recovery: false,
        database: 1,
    };
    let next = Cursor {
        snapshot: "10:10:".parse().unwrap(),
        identity,
        tenants: None,
        held: false,
    };
    let terms = Terms {
        told: cover.clone(),
        cover,
        limits: sample::LIMITS,
        hold_percent: 100,
        accept_loss: false,
        settles_held: true,
        tries_suspects: false,
    };
    engine.apply(Incoming::whole(rows, next), &terms).unwrap();
}

fn unix(uid: u32, gid: u32) -> Caller {
    Caller::Unix(Peer {
        uid,
        gid,
        groups: Vec::new(),
        pid: Some(1),
        unit: None,
    })
}

fn root() -> Caller {
    unix(0, 0)
}

fn asked(method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> Asked {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    Asked {
        method,
        path: path.into(),
        query: query.into(),
        headers: map,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

impl Node {
    async fn ask(&self, caller: &Caller, asked: Asked) -> Told {
        let rights = self.access.rights(caller, Instant::now());
        let Self {
            app,
            audit,
            dialling,
            ..
        } = self;
        let reply = answer(
            Asking {
                hub: &Arc::new(Hub::new(16, self.app.metrics.clone())),
                app,
                audit,
                dialling,
                caller,
                rights: &rights,
            },
            &asked,
        )
        .await;
        let code = reply.code.as_u16();
        let response = reply.into_response(false);
        let headers = response.headers().clone();
        let body = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        Told {
            code,
            headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn get(&self, caller: &Caller, target: &str) -> Told {
        self.ask(caller, asked(Method::GET, target, &[], "")).await
    }
}

#[derive(Debug, PartialEq)]
struct Told {
    code: u16,
    headers: HeaderMap,
    body: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {}", self.body))
    }

    fn status(&self) -> (u16, String) {
        (
            self.code,
            self.json()["status"].as_str().unwrap().to_owned(),
        )
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn is(code: u16, status: &str) -> (u16, String) {
    (code, status.to_owned())
}

fn rules(rules: Value) -> Config {
    let access: Vec<AccessRule> = serde_json::from_value(rules).unwrap();
    Config {
        access,
        ..Config::default()
    }
}

#[tokio::test]
async fn every_route_answers_the_example_number() {
    let node = node();
    let lookup = node
        .get(
            &root(),
            "/v1/lookup?to=%2B14155550100&account_ref=ACME-001234",
        )
        .await;
    assert_eq!(lookup.status(), is(200, "ok"));
    assert_eq!(lookup.header("content-type"), Some("application/json"));
    assert_eq!(lookup.json()["account_ref"], "ACME-001234");
    assert!(lookup.json().get("credentials").is_none());
    let form = node
        .get(&root(), "/v1/lookup?to=+14155550100&format=form")
        .await;
    assert!(
        form.code == 200 && form.body.starts_with("status=ok&number=%2B14155550100&"),
        "{form:?}"
    );
    assert_eq!(
        form.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    let field = node
        .get(&root(), "/v1/lookup/tenant_id?to=sip:+14155550100@x")
        .await;
    assert_eq!((field.code, field.body.as_str()), (200, ACME));
    assert_eq!(
        field.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    let resolve = node.get(&root(), "/v1/resolve?to=+14155550100").await;
    assert_eq!(resolve.status(), is(200, "ok"));
    assert!(
        resolve.json()["prompt"]["system"].is_string()
            && resolve.json().get("credentials").is_none()
    );
    assert!(resolve.header("cache-control").is_none());
    let explain = node
        .get(
            &root(),
            "/v1/explain?to=+14155550100&at=2026-11-22T10:45:00-03:00",
        )
        .await;
    assert_eq!(explain.status(), is(200, "ok"));
    assert!(!explain.body.contains(SECRET));
    for (route, count) in [
        (Route::Lookup, 2),
        (Route::Field, 1),
        (Route::Resolve, 1),
        (Route::Explain, 1),
    ] {
        assert_eq!(
            node.app
                .metrics
                .request_duration
                .of(route)
                .unwrap()
                .get_sample_count(),
            count,
            "{}",
            route.label()
        );
    }
    assert_eq!(node.app.metrics.lookups.get(Outcome::Ok), 5);
}

#[tokio::test]
async fn post_asks_the_same_as_get() {
    let node = node();
    let get = node
        .get(
            &root(),
            "/v1/resolve?to=+14155550100&zone=Z1&at=2026-11-22T10:45:00Z&attr.vip=true",
        )
        .await;
    let json =
        r#"{"to":"+14155550100","zone":"Z1","at":"2026-11-22T10:45:00Z","attr":{"vip":true}}"#;
    let form = "to=+14155550100&zone=Z1&at=2026-11-22T10:45:00Z&attr.vip=true";
    for (content_type, body) in [
        ("application/json", json),
        ("application/x-www-form-urlencoded", form),
    ] {
        let headers = [("content-type", content_type), ("if-none-match", "*")];
        let post = node
            .ask(&root(), asked(Method::POST, "/v1/resolve", &headers, body))
            .await;
        assert_eq!(
            (post.code, post.header("etag")),
            (200, get.header("etag")),
            "{content_type}"
        );
    }
    let plain = node
        .ask(
            &root(),
            asked(
                Method::POST,
                "/v1/resolve",
                &[("content-type", "text/plain")],
                json,
            ),
        )
        .await;
    assert_eq!(plain.status(), is(400, "bad_request"));
}

#[tokio::test]
async fn an_unchanged_answer_is_304_whatever_the_time() {
    let node = node();
    let first = node
        .get(
            &root(),
            "/v1/resolve?to=+14155550100&at=2026-11-22T10:45:00Z",
        )
        .await;
    let etag = first.header("etag").unwrap().to_owned();
    assert!(
        etag.starts_with('"') && etag.ends_with('"'),
        "strong: {etag}"
    );
    let later = "/v1/resolve?to=+14155550100&at=2026-11-22T10:46:00Z";
    for given in [
        etag.clone(),
        format!("W/{etag}"),
        format!("\"x\" , {etag}"),
        "*".to_owned(),
    ] {
        let same = node
            .ask(
                &root(),
                asked(Method::GET, later, &[("if-none-match", &given)], ""),
            )
            .await;
        assert_eq!(
            (same.code, same.header("etag")),
            (304, Some(etag.as_str())),
            "{given}"
        );
    }
    for given in ["\"x\"", "", &etag[1..]] {
        let other = node
            .ask(
                &root(),
                asked(Method::GET, later, &[("if-none-match", given)], ""),
            )
            .await;
        assert_eq!(other.code, 200, "{given}");
    }
}

#[tokio::test]
async fn each_case_of_the_table_has_its_code_and_status() {
    let node = node();
    let suspended = SUSPENDED_NUMBER;
    for (target, code, status) in [
        ("/v1/lookup", 400, "bad_request"),
        ("/v1/lookup?to=", 400, "invalid_number"),
        ("/v1/lookup?to=abc", 400, "invalid_number"),
        ("/v1/lookup?to=1&to=2", 400, "bad_request"),
        ("/v1/lookup?to=+14155550100&at=now", 400, "bad_request"),
        ("/v1/lookup?to=+14155559999", 404, "unknown_number"),
        (
            &format!("/v1/lookup?to={suspended}"),
            403,
            "tenant_suspended",
        ),
        (
            &format!("/v1/resolve?to={suspended}"),
            403,
            "tenant_suspended",
        ),
        (
            &format!("/v1/explain?to={suspended}"),
            403,
            "tenant_suspended",
        ),
        (
            &format!("/v1/credentials?to={suspended}"),
            403,
            "tenant_suspended",
        ),
        ("/v1/lookup/nonsense?to=+14155550100", 404, "no_such_route"),
        ("/v1/lookup/", 404, "no_such_route"),
        ("/v1/nonsense", 404, "no_such_route"),
        ("/", 404, "no_such_route"),
    ] {
        let told = node.get(&root(), target).await;
        assert_eq!(told.status(), is(code, status), "{target}");
        assert!(
            !told.json()["message"].as_str().unwrap().is_empty()
                && !told.body.contains("4155559999"),
            "{target}"
        );
    }
    let form = node.get(&root(), "/v1/lookup?to=abc&format=form").await;
    assert!(
        form.code == 400 && form.body.starts_with("status=invalid_number&message="),
        "{form:?}"
    );
    let field = node.get(&root(), "/v1/lookup/language?to=abc").await;
    assert_eq!((field.code, field.body.as_str()), (400, ""));
    assert_eq!(node.app.metrics.lookups.get(Outcome::InvalidNumber), 4);
}

#[tokio::test]
async fn a_method_that_a_route_has_not_is_405_and_head_is_get() {
    let node = node();
    for (method, target, allow) in [
        (Method::POST, "/v1/lookup?to=+14155550100", "GET, HEAD"),
        (Method::DELETE, "/v1/resolve", "GET, HEAD, POST"),
        (Method::OPTIONS, "/healthz", "GET, HEAD"),
    ] {
        let told = node.ask(&root(), asked(method, target, &[], "")).await;
        assert_eq!(
            (told.status(), told.header("allow")),
            (is(405, "method_not_allowed"), Some(allow)),
            "{target}"
        );
    }
    assert_eq!(
        node.ask(
            &root(),
            asked(Method::HEAD, "/v1/lookup?to=+14155550100", &[], "")
        )
        .await
        .code,
        200
    );
}

#[tokio::test]
async fn a_node_without_a_copy_says_not_ready_and_never_unknown() {
    let node = node_with(Config::default(), false);
    for target in ["/v1/lookup?to=+14155550100", "/readyz"] {
        let told = node.get(&root(), target).await;
        assert_eq!(told.status(), is(503, "not_ready"), "{target}");
        assert!(told.header("retry-after").is_some(), "{target}");
    }
    assert_eq!(node.get(&root(), "/healthz").await.status(), is(200, "ok"));
}

#[tokio::test]
async fn ready_and_fresh_are_two_signals() {
    let mut config = Config::default();
    config.feed.stale_after = std::time::Duration::from_millis(1);
    let node = node_with(config, true);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let told = node.get(&root(), "/readyz").await;
    assert_eq!(told.status(), is(200, "ok"));
    let body = told.json();
    assert_eq!(
        (&body["ready"], &body["stale"], &body["synced"]),
        (&true.into(), &true.into(), &true.into())
    );
    assert!(body["staleness_ms"].as_u64().unwrap() >= 5);
    let stale = node.get(&root(), "/v1/lookup?to=+14155550100").await;
    assert_eq!(
        (stale.status(), &stale.json()["stale"]),
        (is(200, "ok"), &true.into())
    );
}

#[tokio::test]
async fn credentials_are_given_to_who_may_have_them_and_not_to_be_kept() {
    let node = node();
    for target in [
        "/v1/credentials?to=+14155550100",
        "/v1/resolve?to=+14155550100&include=credentials",
    ] {
        let told = node.get(&unix(DAEMON, 1), target).await;
        assert_eq!(told.status(), is(200, "ok"), "{target}");
        assert!(told.body.contains(SECRET), "{target}");
        assert_eq!(told.header("cache-control"), Some("no-store"), "{target}");
        assert_eq!(
            node.get(&unix(7, GROUP), target).await.status(),
            is(403, "forbidden"),
            "{target}"
        );
        assert_eq!(
            node.get(&Caller::Tcp, target).await.status(),
            is(403, "credentials_need_unix_socket"),
            "{target}"
        );
    }
    assert_eq!(
        node.get(&unix(7, GROUP), "/v1/resolve?to=+14155550100")
            .await
            .status(),
        is(200, "ok")
    );
    let body = r#"{"to":"+14155550100","include":"credentials"}"#;
    let post = asked(
        Method::POST,
        "/v1/resolve",
        &[("content-type", "application/json")],
        body,
    );
    assert_eq!(
        node.ask(&Caller::Tcp, post).await.status(),
        is(403, "credentials_need_unix_socket")
    );
}

#[tokio::test]
async fn credentials_are_refused_by_a_node_that_was_cut_off_too_long() {
    let mut config = Config::default();
    config.feed.refuse_credentials_after = std::time::Duration::from_millis(1);
    let node = node_with(config, true);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    for target in [
        "/v1/credentials?to=+14155550100",
        "/v1/resolve?to=+14155550100&include=credentials",
    ] {
        let told = node.get(&root(), target).await;
        assert_eq!(told.status(), is(503, "credentials_stale"), "{target}");
        assert!(told.header("retry-after").is_some());
    }
    assert_eq!(
        node.get(&root(), "/v1/resolve?to=+14155550100")
            .await
            .status(),
        is(200, "ok")
    );
}

#[tokio::test]
async fn only_the_providers_of_the_rule_are_given() {
    let rule = |provider: &str| {
        rules(
            serde_json::json!([{"user": "7", "allow": ["config", "credentials"], "providers": [provider]}]),
        )
    };
    let all = node()
        .get(&root(), "/v1/credentials?to=+14155550100")
        .await
        .json();
    let one = node()
        .get(&root(), "/v1/credentials?to=+14155550100&provider=other")
        .await;
    assert_eq!(
        one.json()["credentials"],
        serde_json::json!({}),
        "only the one asked for"
    );
    let known: Vec<String> = all["credentials"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let provider = known.first().unwrap();
    let node = node_with(rule(provider), true);
    let told = node
        .get(&unix(7, 7), "/v1/credentials?to=+14155550100")
        .await
        .json();
    assert_eq!(
        told["credentials"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        [provider]
    );
    let other = node
        .get(
            &unix(7, 7),
            "/v1/credentials?to=+14155550100&provider=other",
        )
        .await;
    assert_eq!(other.status(), is(403, "forbidden"));
    let none = node_with(rule("other"), true)
        .get(
            &unix(7, 7),
            "/v1/resolve?to=+14155550100&include=credentials",
        )
        .await;
    assert_eq!(none.json()["credentials"], serde_json::json!({}));
    assert!(!none.body.contains(SECRET));
}

#[tokio::test]
async fn a_tenant_without_the_right_to_it_looks_exactly_like_no_tenant() {
    let rules = rules(serde_json::json!([
        {"user": "7", "allow": ["config", "credentials"], "tenants": [ACME]},
        {"user": "8", "allow": ["credentials"], "tenants": [ACME]},
    ]));
    let node = node_with(rules, true);
    assert_eq!(
        node.get(&unix(7, 7), "/v1/lookup?to=+14155550100")
            .await
            .status(),
        is(200, "ok")
    );
    assert_eq!(
        node.get(&unix(8, 8), "/v1/credentials?to=+14155550100")
            .await
            .status(),
        is(200, "ok")
    );
    assert_eq!(
        node.get(&unix(8, 8), "/v1/lookup?to=+14155550100")
            .await
            .status(),
        is(403, "forbidden")
    );
    for route in [
        "lookup",
        "lookup/language",
        "resolve",
        "credentials",
        "explain",
        "resolve?include=credentials",
    ] {
        let sep = if route.contains('?') { '&' } else { '?' };
        let unknown = node
            .get(&unix(7, 7), &format!("/v1/{route}{sep}to=+14155559999"))
            .await;
        assert_eq!(unknown.code, 404);
        for number in [GUARDIANES_NUMBER, SUSPENDED_NUMBER] {
            let hidden = node
                .get(&unix(7, 7), &format!("/v1/{route}{sep}to={number}"))
                .await;
            assert_eq!(hidden, unknown, "{route} {number}");
        }
    }
}

#[tokio::test]
async fn without_a_rule_there_is_no_answer_but_that_the_node_lives() {
    let node = node();
    let stranger = unix(7, 7);
    for target in [
        "/v1/lookup?to=+14155550100",
        "/v1/lookup?to=+14155559999",
        "/v1/resolve",
        "/v1/explain",
        "/metrics",
        "/nonsense",
    ] {
        assert_eq!(
            node.get(&stranger, target).await.status(),
            is(403, "forbidden"),
            "{target}"
        );
    }
    let field = node
        .get(&stranger, "/v1/lookup/language?to=+14155550100")
        .await;
    assert_eq!((field.code, field.body.as_str()), (403, ""));
    assert_eq!(node.get(&stranger, "/healthz").await.code, 200);
    assert_eq!(node.get(&stranger, "/readyz").await.code, 200);
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let node = node();
    let told = node.get(&Caller::Tcp, "/metrics").await;
    assert_eq!(told.code, 200);
    assert_eq!(
        told.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(
        told.body
            .contains("\nsidetone_lookups_total{outcome=\"ok\"} 0\n"),
        "{}",
        told.body
    );
}

#[tokio::test]
async fn who_asks_too_often_is_told_to_wait_and_counted_and_can_still_ask_for_health() {
    let rate = json!([
        {"user": "7", "allow": ["config"], "rate": "1/m"},
        {"user": "8", "allow": ["config"]},
    ]);
    let node = node_with(rules(rate), true);
    let (flooder, other) = (unix(7, 7), unix(8, 8));
    let target = "/v1/lookup?to=%2B14155550100";
    node.get(&flooder, target).await;
    let told = node.get(&flooder, target).await;
    assert_eq!(told.status(), is(503, "overloaded"));
    let wait: u64 = told.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
    assert_eq!(told.headers.get_all("retry-after").iter().count(), 1);
    assert_eq!(node.app.metrics.lookups.get(Outcome::Overloaded), 1);
    assert_eq!(node.get(&flooder, "/v1/nowhere").await.code, 503);
    assert_eq!(node.get(&flooder, "/metrics").await.code, 503);
    assert_eq!(node.get(&flooder, "/healthz").await.code, 200);
    assert_eq!(node.get(&flooder, "/readyz").await.code, 200);
    assert_ne!(
        node.get(&other, target).await.status(),
        is(503, "overloaded")
    );
    assert_ne!(
        node.get(&Caller::Tcp, target).await.status(),
        is(503, "overloaded")
    );
}
