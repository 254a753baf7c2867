//! Traces: what a real collector gets, and what becomes of a node whose collector is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Told;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::{Cluster, Options};
use crate::node::{ACME, AWAY, Node, SECRET, until};

/// A collector on a port of its own.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Vec<u8>>>>);

impl Collector {
    async fn listen() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let bodies = collector.0.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let body = read_post(stream).await;
                bodies.lock().unwrap().push(body);
            }
        });
        (collector, endpoint)
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.0.lock().unwrap();
        let requests = bodies
            .iter()
            .map(|body| ExportTraceServiceRequest::decode(&body[..]).unwrap());
        requests
            .flat_map(|request| request.resource_spans)
            .flat_map(|resource| {
                let of = &resource.resource.as_ref().unwrap().attributes;
                let told: BTreeMap<_, _> = of
                    .iter()
                    .map(|one| (one.key.as_str(), format!("{:?}", one.value)))
                    .collect();
                assert!(told["service.name"].contains("\"sidetone\""), "{told:?}");
                assert!(told["service.instance.id"].contains("\"n1\""), "{told:?}");
                resource.scope_spans
            })
            .flat_map(|scope| scope.spans)
            .collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        until(what, async || holds(&self.spans())).await;
        self.spans()
    }
}

/// Takes one delivery, and says so.
async fn read_post(mut stream: TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    let (head, length) = loop {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        let Some(end) = memchr::memmem::find(&read, b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(read[..end].to_vec())
            .unwrap()
            .to_ascii_lowercase();
        let length = head
            .split("\r\ncontent-length: ")
            .nth(1)
            .and_then(|rest| rest.lines().next()?.parse::<usize>().ok())
            .unwrap();
        break (head, end + 4 + length);
    };
    assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
    assert!(
        head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    while read.len() < length {
        assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let at = memchr::memmem::find(&read, b"\r\n\r\n").unwrap() + 4;
    read.split_off(at)
}

/// What is told of a span.
fn told(span: &Span, key: &str) -> Option<String> {
    let told = span.attributes.iter().find(|told| told.key == key)?;
    match told.value.as_ref()?.value.as_ref()? {
        Told::StringValue(word) => Some(word.clone()),
        Told::IntValue(count) => Some(count.to_string()),
        other => panic!("neither word nor count: {other:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> impl Iterator<Item = &'a Span> {
    spans.iter().filter(move |span| span.name == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_traced_and_no_span_holds_a_number_a_name_a_prompt_or_a_secret() {
    let (collector, endpoint) = Collector::listen().await;
    let db = Cluster::shared().database().await;
    let more = format!("log.otlp_endpoint = '{endpoint}'\nfeed.heartbeat_every = '100ms'");
    let mut node = Node::with_example(&db, &more).await;
    collector
        .until("the first copy is traced", |spans| {
            named(spans, "compare").any(|span| told(span, "sidetone.first_copy").is_some())
        })
        .await;
    for path in ["lookup", "resolve", "explain"] {
        assert_eq!(node.get(&format!("/v1/{path}?to={ACME}")).await.status, 200);
    }
    assert_eq!(
        node.get(&format!("/v1/credentials?to={ACME}")).await.status,
        200
    );
    db.sql(
        "update public.tenant_phone_numbers set label = 'canary-label' where e164 = '+14155550100'",
    )
    .await;
    node.until(&format!("/v1/lookup/label?to={ACME}"), |reply| {
        reply.body == "canary-label"
    })
    .await;
    for order in [
        r#"{"number":"+14155550100","wait":true}"#,
        r#"{"tenant":"seguridad-acme-sa","wait":true}"#,
    ] {
        let done = node.admin("POST", "/v1/admin/refresh", order).await;
        assert_eq!(done.status, 200, "{done:?}");
    }
    let done = node.admin("POST", "/v1/admin/verify", "").await;
    assert_eq!(done.status, 200);
    let spans = collector
        .until("everything is traced", |spans| {
            named(spans, "refresh").count() == 2 && named(spans, "verify").count() == 1
        })
        .await;

    let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    for name in [
        "connect", "pull", "compare", "load", "apply", "refresh", "verify",
    ] {
        assert!(names.contains(name), "no {name} in {names:?}");
    }
    let scopes: Vec<_> = named(&spans, "refresh")
        .map(|span| told(span, "sidetone.scope").unwrap())
        .collect();
    assert_eq!(scopes, ["number", "tenant"]);
    let rung = named(&spans, "pull")
        .find(|span| {
            told(span, "sidetone.cause").as_deref() == Some("doorbell")
                && told(span, "sidetone.changed").as_deref() == Some("1")
        })
        .expect("the pull of the change");
    let applied = named(&spans, "apply")
        .find(|span| span.parent_span_id == rung.span_id)
        .expect("what the pull brought");
    assert_eq!(applied.trace_id, rung.trace_id);
    assert_eq!(told(applied, "sidetone.rows.written").as_deref(), Some("1"));
    for pull in named(&spans, "pull") {
        let took = pull.end_time_unix_nano - pull.start_time_unix_nano;
        let idle = told(pull, "sidetone.idle").is_some();
        assert!(
            !idle || took > 100_000_000,
            "an idle pull is traced: {pull:?}"
        );
    }

    let bodies = collector.0.lock().unwrap().concat();
    let phrase = "Base Global";
    for canary in [
        SECRET,
        "4155550100",
        "canary-label",
        "acme",
        "6f717b5a",
        "openai",
        phrase,
        "postgres:",
    ] {
        assert!(
            memchr::memmem::find(&bodies, canary.as_bytes()).is_none(),
            "{canary} was sent"
        );
    }
    assert!(
        node.metric("sidetone_trace_batches_total{outcome=\"delivered\"}")
            .await
            > 0.0
    );
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_long_is_traced_by_its_route_and_outcome() {
    let (collector, endpoint) = Collector::listen().await;
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let mut node = Node::prepare(&db.url(), &format!("log.otlp_endpoint = '{endpoint}'"));
    cluster.pause();
    node.start();
    node.answering().await;
    // Asked of a Postgres that does not answer.
    let reply = node.get(&format!("/v1/lookup/language?to={ACME}")).await;
    assert_eq!(reply.status, 503, "{reply:?}");
    let spans = collector
        .until("the answer is traced", |spans| {
            named(spans, "question").count() > 0
        })
        .await;
    cluster.resume();
    let slow = named(&spans, "question").next().unwrap();
    assert_eq!(told(slow, "sidetone.route").as_deref(), Some("field"));
    assert_eq!(told(slow, "sidetone.outcome").as_deref(), Some("not_ready"));
    assert!(slow.end_time_unix_nano - slow.start_time_unix_nano > 25_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_mute_or_hostile_costs_nothing_but_its_traces() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hostile = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [
        ("away", "http://127.0.0.1:1".to_owned()),
        ("mute", format!("http://{}", mute.local_addr().unwrap())),
        (
            "hostile",
            format!("http://{}", hostile.local_addr().unwrap()),
        ),
    ];
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = hostile.accept().await.unwrap();
            tokio::spawn(async move {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let endless = [b"8000\r\n", &[7; 0x8000][..], b"\r\n"].concat();
                let mut ended = stream.write_all(head).await;
                while ended.is_ok() {
                    ended = stream.write_all(&endless).await;
                }
            });
        }
    });
    let one = |name: &'static str, endpoint: String| async move {
        let db = Cluster::shared().database().await;
        let mut node = Node::with_example(&db, &format!("log.otlp_endpoint = '{endpoint}'")).await;
        node.level().await;
        for label in ["one", "two"] {
            db.sql(&format!(
                "update public.tenant_phone_numbers set label = '{label}' where e164 = '+14155550100'"
            ))
            .await;
            node.until(&format!("/v1/lookup/label?to={ACME}"), |reply| {
                reply.body == label
            })
            .await;
        }
        until(&format!("{name}: the failure is told"), async || {
            let failed = node.metric("sidetone_trace_batches_total{outcome=\"failed\"}");
            failed.await > 0.0 && node.log().contains("traces cannot be delivered")
        })
        .await;
        assert_eq!(node.log().matches("traces cannot be delivered").count(), 1);
        let began = Instant::now();
        assert!(node.stop().success(), "{name}");
        // What is left may take two seconds.
        assert!(
            began.elapsed() < Duration::from_secs(6),
            "{name}: {:?}",
            began.elapsed()
        );
    };
    let [away, silent, endless] = endpoints.map(|(name, endpoint)| one(name, endpoint));
    tokio::join!(away, silent, endless);
    drop(mute);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_a_collector_listens_and_a_wrong_endpoint_is_refused() {
    let (_collector, endpoint) = Collector::listen().await;
    let node = Node::prepare(AWAY, "");
    let found = |endpoint: &str| {
        node.configure(AWAY, &format!("log.otlp_endpoint = '{endpoint}'"));
        let output = node.cli(&["check", "--offline", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        let one = checks
            .into_iter()
            .find(|one| one["subject"] == "log.otlp_endpoint")
            .unwrap_or_default();
        (
            output.status.code(),
            one["level"].clone(),
            one["found"].to_string(),
        )
    };
    let (code, level, what) = found(&endpoint);
    assert_eq!((code, level), (Some(0), "ok".into()), "{what}");
    let (code, level, what) = found("");
    assert_eq!(
        (code, level, what.contains("off")),
        (Some(0), "ok".into(), true)
    );
    let (code, level, what) = found("http://127.0.0.1:1");
    assert_eq!((code, level), (Some(0), "warning".into()));
    assert!(what.contains("refused"), "{what}");
    let (code, level, what) = found("grpc://u:hunter2@127.0.0.1:4317");
    assert_eq!((code, level), (Some(2), "problem".into()));
    assert!(
        what.contains("OTLP over gRPC") && !what.contains("hunter2"),
        "{what}"
    );
}
