//! Watchers, from outside: what they are told, when, and that nobody pays for them.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::cluster::{Cluster, Db, Options, Stop};
use crate::node::{ACME, Node, PATIENCE, exchange, read_reply, until};

const SLUG: &str = "seguridad-acme-sa";
const TENANT: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";
const OTHER: &str = "d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb";
const OTHER_NUMBER: &str = "%2B541150000002";
/// In which a change is told.
const BOUND: Duration = Duration::from_secs(2);
/// Often enough to be waited for.
const BRISK: &str = "[feed]\nheartbeat_every = \"200ms\"\n";

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

#[derive(Debug, Clone)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

/// A stream of events as a client sees it.
struct Watching {
    wire: Box<dyn Wire>,
    head: String,
    raw: Vec<u8>,
    text: String,
    ended: bool,
}

impl Watching {
    async fn over(mut wire: Box<dyn Wire>, request: &str) -> Self {
        wire.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        let end = loop {
            if let Some(end) = raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let read = tokio::time::timeout(PATIENCE, wire.read_buf(&mut raw)).await;
            assert!(read.expect("no head").unwrap() > 0, "closed without a head");
        };
        let head = String::from_utf8(raw.drain(..end).collect()).unwrap();
        Self {
            wire,
            head: head.to_ascii_lowercase(),
            raw,
            text: String::new(),
            ended: false,
        }
    }

    /// Of a node, over its Unix socket; what is asked for stands in the query.
    async fn on(node: &Node, query: &str) -> Self {
        Self::after(node, query, "").await
    }

    /// With the id of an event.
    async fn after(node: &Node, query: &str, id: &str) -> Self {
        let wire = UnixStream::connect(node.unix()).await.unwrap();
        let last = if id.is_empty() {
            String::new()
        } else {
            format!("Last-Event-ID: {id}\r\n")
        };
        let request = format!("GET /v1/watch?{query} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n");
        let watching = Self::over(Box::new(wire), &request).await;
        assert!(
            watching.head.starts_with("http/1.1 200 "),
            "{}",
            watching.head
        );
        watching
    }

    fn is_chunked(&self) -> bool {
        self.head.contains("\r\ntransfer-encoding: chunked\r\n")
    }

    /// Takes whole chunks off what was read.
    fn dechunk(&mut self) {
        if !self.is_chunked() {
            self.text
                .push_str(&String::from_utf8(std::mem::take(&mut self.raw)).unwrap());
            return;
        }
        while let Some(line) = self.raw.windows(2).position(|two| two == b"\r\n") {
            let size = std::str::from_utf8(&self.raw[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if self.raw.len() < line + 2 + size + 2 {
                return;
            }
            let chunk: Vec<u8> = self.raw.drain(..line + 2 + size + 2).collect();
            assert!(chunk.ends_with(b"\r\n"));
            self.text
                .push_str(std::str::from_utf8(&chunk[line + 2..line + 2 + size]).unwrap());
            if size == 0 {
                self.ended = true;
            }
        }
    }

    /// The next event; none once the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        let began = Instant::now();
        loop {
            self.dechunk();
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = event(block);
                self.text = rest.to_owned();
                if event.is_some() {
                    return event;
                }
            }
            if self.ended {
                return None;
            }
            let read = tokio::time::timeout(PATIENCE, self.wire.read_buf(&mut self.raw)).await;
            let read = read.unwrap_or_else(|_| panic!("nothing within {:?}", began.elapsed()));
            if !matches!(read, Ok(1..)) {
                assert!(!self.is_chunked() || self.ended, "broken off");
                self.ended = true;
            }
        }
    }

    /// The next event of a name.
    async fn named(&mut self, name: &str) -> Event {
        let began = Instant::now();
        loop {
            let event = self.next().await;
            let event = event.unwrap_or_else(|| panic!("ended without {name}"));
            if event.name == name {
                return event;
            }
            assert!(began.elapsed() < PATIENCE, "no {name}, but {event:?}");
        }
    }

    /// The next change.
    async fn change(&mut self) -> Event {
        self.named("revision").await
    }

    async fn status(&mut self) -> String {
        text(&self.change().await.data, "/status")
    }
}

fn event(block: &str) -> Option<Event> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    Some(Event {
        name: field("event")?.to_owned(),
        id: field("id").map(str::to_owned),
        data: serde_json::from_str(field("data")?).unwrap(),
    })
}

fn text(data: &Value, pointer: &str) -> String {
    data.pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no {pointer} in {data}"))
        .to_owned()
}

async fn example(more: &str) -> (Node, Db<'static>) {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, more).await;
    node.level().await;
    (node, db)
}

fn own_rule(rest: &str) -> String {
    let uid = rustix::process::geteuid().as_raw();
    format!("[[access]]\nuser = \"{uid}\"\nallow = [\"config\"]\n{rest}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_state_comes_first_and_then_each_change_within_the_bound() {
    let (node, db) = example("").await;
    let mut watching = Watching::on(&node, &format!("to={ACME}")).await;
    let head = &watching.head;
    assert!(watching.is_chunked(), "{head}");
    assert!(head.contains("\r\ncontent-type: text/event-stream\r\n"));
    assert!(head.contains("\r\ncache-control: no-store\r\n"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    let first = watching.next().await.unwrap();
    assert_eq!(first.name, "revision");
    let lookup = async || node.get(&format!("/v1/lookup?to={ACME}")).await;
    let revision = lookup().await.text("/revision");
    assert_eq!(first.id.as_deref(), Some(format!("ok:{revision}").as_str()));
    for (pointer, value) in [
        ("/status", "ok"),
        ("/number", "+14155550100"),
        ("/revision", &revision),
        ("/tenant/slug", SLUG),
        ("/tenant/id", TENANT),
    ] {
        assert_eq!(text(&first.data, pointer), value);
    }
    assert_eq!(first.data["stale"], false);
    assert!(first.data["staleness_ms"].as_u64().unwrap() < 10_000);
    for sql in [
        "update public.tenant_phone_numbers set label = 'new' where e164 = '+14155550100'",
        "update public.prompts set priority = 77 where name = 'Cliente VIP ACME'",
        "update public.tenant_settings set model = 'other'",
    ] {
        let began = Instant::now();
        db.sql(sql).await;
        let change = watching.change().await;
        assert!(began.elapsed() < BOUND, "{:?}: {sql}", began.elapsed());
        assert_eq!(
            text(&change.data, "/revision"),
            lookup().await.text("/revision"),
            "{sql}"
        );
    }
    for (sql, status, http) in [
        (
            "update public.tenants set status = 'suspended'",
            "tenant_suspended",
            403,
        ),
        ("update public.tenants set status = 'active'", "ok", 200),
        (
            "update public.tenant_phone_numbers set active = false",
            "inactive_number",
            404,
        ),
        (
            "update public.tenant_phone_numbers set active = true",
            "ok",
            200,
        ),
    ] {
        let began = Instant::now();
        db.sql(&format!(
            "{sql} where '{TENANT}' in (id, {})",
            if sql.contains("phone") {
                "tenant_id"
            } else {
                "id"
            }
        ))
        .await;
        assert_eq!(watching.status().await, status);
        assert!(began.elapsed() < BOUND, "{:?}: {sql}", began.elapsed());
        assert_eq!(lookup().await.status, http, "{sql}");
    }
    db.sql("delete from public.prompt_bindings where phone_number_id is not null; delete from public.tenant_phone_numbers where e164 = '+14155550100'").await;
    let mut gone = watching.change().await;
    while text(&gone.data, "/status") == "ok" {
        gone = watching.change().await; // the binding went first
    }
    assert_eq!(gone.id.as_deref(), Some("unknown_number:"));
    assert_eq!(text(&gone.data, "/tenant/id"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_present_state_is_not_told_it_again_over_restarts_and_nodes() {
    let (mut node, db) = example("").await;
    let number = format!("to={ACME}");
    let tenant = format!("tenant={SLUG}");
    for query in [&number, &tenant] {
        let id = Watching::on(&node, query).await.change().await.id.unwrap();
        let mut resumed = Watching::after(&node, query, &id).await;
        let first = resumed.next().await.unwrap();
        assert_eq!(first.name, "heartbeat");
        node.stop();
        node.start();
        node.answering().await;
        node.level().await;
        let mut resumed = Watching::after(&node, query, &id).await;
        assert_eq!(resumed.next().await.unwrap().name, "heartbeat");
        let mut other = Watching::after(&node, query, "ok:0000000000000000").await;
        let told = other.next().await.unwrap();
        assert_eq!(
            (told.name.as_str(), told.id),
            ("revision", Some(id.clone()))
        );

        let mut second = Node::prepare(&db.url(), "");
        second.start();
        second.synced().await;
        second.level().await;
        let mut there = Watching::after(&second, query, &id).await;
        assert_eq!(there.next().await.unwrap().name, "heartbeat");

        // What happened meanwhile is told as what it has come to.
        drop((resumed, other, there));
        db.sql("update public.tenant_phone_numbers set label = label || '.' where e164 = '+14155550100'").await;
        let mut back = Watching::after(&node, query, &id).await;
        assert_ne!(back.change().await.id.unwrap(), id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_come_as_often_as_those_of_the_feed_and_carry_the_age() {
    let (node, _db) = example(BRISK).await;
    let mut watching = Watching::on(&node, &format!("to={ACME}")).await;
    watching.named("heartbeat").await;
    let began = Instant::now();
    for _ in 0..5 {
        let beat = watching.named("heartbeat").await;
        assert_eq!(beat.id, None);
        assert_eq!(beat.data["level"], true, "{beat:?}");
        assert_eq!(beat.data["stale"], false);
        assert!(beat.data["staleness_ms"].as_u64().unwrap() < 10_000);
        assert!(beat.data["feed"].is_string());
    }
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(500) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_postgres_and_its_return_are_events() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(
        &db,
        "[feed]\nheartbeat_every = \"200ms\"\nheartbeat_timeout = \"500ms\"\nstale_after = \"1s\"\n",
    )
    .await;
    node.level().await;
    let mut watching = Watching::on(&node, &format!("to={ACME}")).await;
    watching.change().await;
    cluster.stop(Stop::Fast);
    let lost = watching.named("upstream").await.data;
    assert_eq!(lost["level"], false, "{lost}");
    let mut stale = lost;
    while stale["stale"] == false {
        stale = watching.named("upstream").await.data;
    }
    assert!(stale["staleness_ms"].as_u64().unwrap() >= 1000, "{stale}");
    assert_eq!(watching.named("heartbeat").await.data["level"], false);
    // Who comes now is told so too.
    let mut late = Watching::on(&node, &format!("to={ACME}")).await;
    assert_eq!(late.change().await.data["stale"], true);
    assert_eq!(late.named("upstream").await.data["level"], false);
    cluster.start();
    for watching in [&mut watching, &mut late] {
        let mut back = watching.named("upstream").await.data;
        while back["level"] == false || back["stale"] == true {
            back = watching.named("upstream").await.data;
        }
        assert!(back["staleness_ms"].as_u64().unwrap() < 10_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_followed_with_its_numbers_by_id_and_by_slug() {
    let (node, db) = example("").await;
    let mut by_id = Watching::on(&node, &format!("tenant={TENANT}")).await;
    let mut by_slug = Watching::on(&node, &format!("tenant={SLUG}")).await;
    let mut other = Watching::on(&node, &format!("tenant={OTHER}")).await;
    let first = by_id.change().await;
    assert_eq!(by_slug.change().await.id, first.id);
    assert_eq!(text(&first.data, "/tenant/slug"), SLUG);
    let count: i64 = db
        .value(&format!(
            "select count(*) from public.tenant_phone_numbers where tenant_id = '{TENANT}'"
        ))
        .await;
    assert_eq!(first.data["numbers"].as_i64(), Some(count));
    let others = other.change().await;
    let mut last = first.id;
    for sql in [
        "update public.tenant_phone_numbers set label = 'x' where e164 = '+14155550100'",
        "update public.tenants set name = 'ACME' where slug = 'seguridad-acme-sa'",
    ] {
        db.sql(sql).await;
        let told = by_id.change().await;
        assert_ne!(told.id, last, "{sql}");
        assert_eq!(by_slug.change().await.id, told.id, "{sql}");
        last = told.id;
    }
    // A number that moves is a change of both.
    db.sql(&format!("delete from public.prompt_bindings where phone_number_id is not null; update public.tenant_phone_numbers set tenant_id = '{OTHER}' where e164 = '+14155550100'")).await;
    let mut told = by_id.change().await;
    if told.data["numbers"].as_i64() == Some(count) {
        told = by_id.change().await;
    }
    assert_eq!(told.data["numbers"].as_i64(), Some(count - 1));
    let got = other.change().await;
    assert_eq!(
        got.data["numbers"].as_i64(),
        others.data["numbers"].as_i64().map(|count| count + 1)
    );
    while by_slug.change().await.id != told.id {}
    // A slug that is given away is nobody's, until another has it.
    db.sql(&format!(
        "update public.tenants set slug = 'gone' where id = '{TENANT}'"
    ))
    .await;
    assert_eq!(text(&by_id.change().await.data, "/tenant/slug"), "gone");
    assert_eq!(by_slug.status().await, "unknown_tenant");
    db.sql(&format!(
        "update public.tenants set slug = '{SLUG}' where id = '{OTHER}'"
    ))
    .await;
    assert_eq!(text(&by_slug.change().await.data, "/tenant/id"), OTHER);
    let mut nobody = Watching::on(&node, "tenant=nobody").await;
    assert_eq!(nobody.status().await, "unknown_tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_may_not_be_known_is_like_one_that_nobody_has_from_the_moment_on() {
    let (node, db) = example(&own_rule(&format!("tenants = [\"{SLUG}\"]"))).await;
    let mut watching = Watching::on(&node, &format!("to={ACME}")).await;
    let mut tenant = Watching::on(&node, &format!("tenant={TENANT}")).await;
    assert_eq!(watching.status().await, "ok");
    assert_eq!(tenant.status().await, "ok");
    let mut forbidden = Watching::on(&node, &format!("to={OTHER_NUMBER}")).await;
    let mut unknown = Watching::on(&node, "to=%2B541150009999").await;
    let (mut hidden, mut nobody) = (forbidden.change().await, unknown.change().await);
    assert_eq!(forbidden.head, unknown.head);
    for told in [&mut hidden, &mut nobody] {
        told.data["number"].take();
        told.data["staleness_ms"].take();
    }
    assert_eq!((hidden.id, hidden.data), (nobody.id, nobody.data));
    let mut hidden = Watching::on(&node, &format!("tenant={OTHER}")).await;
    assert_eq!(hidden.status().await, "unknown_tenant");
    // The right is lost with the number, and with the slug that the rule names.
    db.sql(&format!(
        "update public.tenant_phone_numbers set tenant_id = '{OTHER}' where e164 = '+14155550100'"
    ))
    .await;
    assert_eq!(watching.status().await, "unknown_number");
    db.sql(&format!(
        "update public.tenants set slug = 'other' where id = '{TENANT}'"
    ))
    .await;
    let mut status = tenant.status().await;
    if status == "ok" {
        status = tenant.status().await; // the number went first
    }
    assert_eq!(status, "unknown_tenant");
    // And it comes with it.
    db.sql(&format!(
        "update public.tenants set slug = '{SLUG}' where id = '{OTHER}'"
    ))
    .await;
    assert_eq!(watching.status().await, "ok");
    assert_eq!(forbidden.status().await, "ok");
    assert_eq!(hidden.status().await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_watched_is_refused_like_any_question() {
    let (node, _db) = example("[numbers]\ncountry_code = \"1\"\n").await;
    for (query, status, said) in [
        ("", 400, "bad_request"),
        ("to=%2B14155550100&tenant=x", 400, "bad_request"),
        ("to=%2B14155550100&to=%2B14155550100", 400, "bad_request"),
        ("tenant=", 400, "bad_request"),
        ("tenant=%00", 400, "bad_request"),
        ("to=abc", 400, "invalid_number"),
    ] {
        let reply = node.get(&format!("/v1/watch?{query}")).await;
        assert_eq!(
            (reply.status, reply.text("/status").as_str()),
            (status, said),
            "{query}"
        );
    }
    let reply = node.post("/v1/watch?to=%2B14155550100", "", "{}").await;
    assert_eq!(
        (reply.status, reply.headers["allow"].as_str()),
        (405, "GET, HEAD")
    );
    let head = node
        .raw(b"HEAD /v1/watch?to=%2B14155550100 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    // Either reading of a national number.
    let mut watching = Watching::on(&node, "to=4155550100").await;
    assert_eq!(
        text(&watching.change().await.data, "/number"),
        "+14155550100"
    );

    let (node, _db) = example(&own_rule("rate = \"1/m burst 1\"")).await;
    let target = format!("/v1/watch?to={ACME}");
    let mut first = Watching::on(&node, &format!("to={ACME}")).await;
    assert_eq!(first.status().await, "ok");
    assert_eq!(node.get(&target).await.text("/status"), "overloaded");

    let strangers = "[[access]]\nuser = \"65533\"\nallow = [\"config\"]\n";
    let (node, _db) = example(strangers).await;
    let reply = node.get(&target).await;
    assert_eq!(
        (reply.status, reply.text("/status").as_str()),
        (403, "forbidden")
    );
    // Over TCP nobody is known, and the configuration is for all.
    let wire = TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut tcp = Watching::over(Box::new(wire), &request).await;
    assert_eq!(tcp.status().await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_take_no_place_of_those_who_ask_and_are_bounded_themselves() {
    let (node, db) =
        example("[http]\nmax_connections = 4\nmax_watchers = 16\nidle_timeout = \"1s\"\n").await;
    let target = format!("to={ACME}");
    let mut watching = Vec::new();
    for _ in 0..12 {
        let mut one = Watching::on(&node, &target).await;
        assert_eq!(one.status().await, "ok");
        watching.push(one);
    }
    let one_more = node.get(&format!("/v1/watch?{target}")).await;
    assert_eq!(
        (one_more.status, one_more.text("/status").as_str()),
        (503, "overloaded")
    );
    assert!(one_more.headers.contains_key("retry-after"));
    assert_eq!(node.metric("sidetone_watchers").await, 12.0);
    assert_eq!(node.metric("sidetone_watchers_limit").await, 16.0);
    // Each idle one gives way to the next, no watcher does.
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(UnixStream::connect(node.unix()).await.unwrap());
        assert_eq!(node.get(&format!("/v1/lookup?{target}")).await.status, 200);
    }
    assert!(node.metric("sidetone_connections").await <= 4.0);
    // Nor does it end by a pause that would end any other connection.
    until("idle connections are closed", async || {
        let mut byte = [0];
        let read = idle[19].read(&mut byte);
        matches!(
            tokio::time::timeout(Duration::from_millis(50), read).await,
            Ok(Ok(0) | Err(_))
        )
    })
    .await;
    db.sql("update public.tenant_phone_numbers set label = 'new'")
        .await;
    for one in &mut watching {
        assert_eq!(one.status().await, "ok");
    }
    // Who leaves makes room.
    drop(watching);
    until("the watchers are gone", async || {
        node.metric("sidetone_watchers").await == 0.0
    })
    .await;
    assert_eq!(Watching::on(&node, &target).await.status().await, "ok");
    until("connections are counted right", async || {
        node.metric("sidetone_connections").await == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_reads_nothing_is_cut_off_and_others_are_told_on() {
    let (node, db) = example("[feed]\nheartbeat_every = \"10ms\"\n").await;
    let mut slow = Watching::on(&node, &format!("to={ACME}")).await;
    slow.change().await;
    let mut swift = Watching::on(&node, &format!("to={ACME}")).await;
    swift.change().await;
    let began = Instant::now();
    while node.metric("sidetone_watchers_cut_off_total").await < 1.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "never cut off");
        for _ in 0..5 {
            swift.named("heartbeat").await;
        }
    }
    assert_eq!(node.metric("sidetone_watchers").await, 1.0);
    db.sql("update public.tenant_phone_numbers set label = 'new'")
        .await;
    swift.change().await;
    // What the slow one reads at last ends.
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, slow.wire.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "still open");
    assert_eq!(node.metric("sidetone_watchers_cut_off_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_watchers_are_each_told_of_one_change() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: Some(limit.maximum.unwrap_or(8192).min(8192)),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let (node, db) = example("").await;
    let mut watching = Vec::new();
    for n in 0..1000 {
        let query = match n % 3 {
            0 => format!("tenant={SLUG}"),
            _ => format!("to={ACME}"),
        };
        let mut one = Watching::on(&node, &query).await;
        let id = one.change().await.id;
        watching.push((one, id));
    }
    assert_eq!(node.metric("sidetone_watchers").await, 1000.0);
    let fills = node.metric("sidetone_cache_fills_total").await;
    let began = Instant::now();
    db.sql("update public.tenant_phone_numbers set label = 'new' where e164 = '+14155550100'")
        .await;
    for (one, id) in &mut watching {
        let told = one.change().await;
        assert_ne!(&told.id, id);
        *id = told.id;
    }
    println!("a thousand watchers were told after {:?}", began.elapsed());
    // One change, one event each, and nothing was built for them.
    let told = node
        .metric("sidetone_watch_events_total{event=\"revision\"}")
        .await;
    assert_eq!(told, 2000.0);
    assert_eq!(node.metric("sidetone_cache_fills_total").await, fills);
    assert_eq!(node.get(&format!("/v1/lookup?to={ACME}")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_http_1_0_ends_with_the_connection_and_stopping_ends_every_stream() {
    let (mut node, _db) = example("").await;
    let wire = UnixStream::connect(node.unix()).await.unwrap();
    let request = format!("GET /v1/watch?to={ACME} HTTP/1.0\r\n\r\n");
    let mut old = Watching::over(Box::new(wire), &request).await;
    assert!(
        old.head.starts_with("http/1.0 200 ") && !old.is_chunked(),
        "{}",
        old.head
    );
    assert!(!old.head.contains("content-length"), "{}", old.head);
    assert_eq!(old.status().await, "ok");
    let mut new = Watching::on(&node, &format!("tenant={SLUG}")).await;
    assert_eq!(new.status().await, "ok");
    let began = Instant::now();
    assert!(node.stop().success());
    // Long before `http.drain_timeout`.
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    for watching in [&mut old, &mut new] {
        let end = watching.named("end").await;
        assert_eq!(text(&end.data, "/reason"), "stopping");
        assert!(watching.next().await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_reads_nothing_does_not_hold_up_the_end() {
    let (mut node, _db) =
        example("[feed]\nheartbeat_every = \"10ms\"\n[http]\ndrain_timeout = \"20s\"\n").await;
    let mut slow = Watching::on(&node, &format!("to={ACME}")).await;
    slow.change().await;
    // Until nothing more goes into its socket.
    let beats = async || {
        node.metric("sidetone_watch_events_total{event=\"heartbeat\"}")
            .await
    };
    let (mut before, mut same) = (-1.0, 0);
    until("the socket is full", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = beats().await;
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same > 3
    })
    .await;
    let began = Instant::now();
    assert!(node.stop().success());
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_asked_without_a_pause_may_watch_on_the_same_connection() {
    let (node, db) = example("").await;
    let mut wire = UnixStream::connect(node.unix()).await.unwrap();
    let ask = format!("GET /v1/lookup?to={ACME} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for _ in 0..50 {
        wire.write_all(ask.as_bytes()).await.unwrap();
        assert_eq!(read_reply(&mut wire, false).await.unwrap().status, 200);
    }
    let request = format!("GET /v1/watch?to={ACME} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut watching = Watching::over(Box::new(wire), &request).await;
    assert_eq!(watching.status().await, "ok");
    db.sql("update public.tenant_phone_numbers set label = 'new'")
        .await;
    assert_eq!(watching.status().await, "ok");
    watching.named("heartbeat").await;
    watching.named("heartbeat").await;
    let again = UnixStream::connect(node.unix()).await.unwrap();
    let close = ask.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    assert_eq!(exchange(again, &close).await.unwrap().status, 200);
}

/// A command that goes on, and its lines.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Following {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line that holds this.
    fn line(&self, holds: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line with {holds}"));
            if line.contains(holds) {
                return line;
            }
        }
    }

    fn ended(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn interrupt(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
    }

    fn complaints(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_follows_through_a_restart_and_ends_at_an_interrupt() {
    let (mut node, db) = example("").await;
    let mut people = Following::start(node.command(&["watch", "+1 415 555-0100"]));
    let mut scripts = Following::start(node.command(&["watch", "--tenant", SLUG, "--json"]));
    let first = people.line("+14155550100  ok  revision ");
    assert!(first.ends_with(&format!("tenant {SLUG}")), "{first}");
    let event = |line: String| serde_json::from_str::<Value>(&line).unwrap();
    let told = event(scripts.line("\"revision\""));
    let id = text(&told, "/id");
    assert!(id.starts_with("ok:"), "{told}");
    assert_eq!(
        text(&event(scripts.line("heartbeat")), "/event"),
        "heartbeat"
    );
    node.stop();
    scripts.line("stopping");
    // Each comes back, and finds nobody who answers.
    let nobody = tokio::net::UnixListener::bind(node.unix()).unwrap();
    for _ in 0..4 {
        let came = tokio::time::timeout(PATIENCE, nobody.accept()).await;
        drop(came.expect("nobody comes back"));
    }
    drop(nobody);
    db.sql(
        "update public.tenant_phone_numbers set label = 'meanwhile' where e164 = '+14155550100'",
    )
    .await;
    node.start();
    node.answering().await;
    // What it knows already is not told again; what changed meanwhile is.
    let told = event(scripts.line("\"event\":\"revision\""));
    assert_ne!(text(&told, "/id"), id);
    let second = people.line("+14155550100  ok  revision ");
    assert_ne!(
        first.rsplit("revision").next(),
        second.rsplit("revision").next()
    );
    for one in [&mut people, &mut scripts] {
        one.interrupt();
        assert_eq!(one.ended(), Some(0));
        let said = one.complaints();
        assert!(
            said.contains("connecting again until Ctrl-C") && said.contains("connected again"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_ends_when_nobody_reads_it_and_says_why_it_does_not_begin() {
    let (node, _db) = example(BRISK).await;
    // Nothing changes: that nobody reads must be noticed all the same.
    let mut unread = node
        .command(&["watch", "+14155550100"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(unread.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    let mut unread = Following {
        child: unread,
        lines: mpsc::channel().1,
    };
    assert_eq!(unread.ended(), Some(0));

    let exit = |args: &[&str]| {
        let output = node.cli(args);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(exit(&["watch"]).0, Some(2));
    assert_eq!(
        exit(&["watch", "+14155550100", "--tenant", SLUG]).0,
        Some(2)
    );
    assert_eq!(exit(&["watch", "abc"]).0, Some(2));
    let (code, said) = exit(&["watch", "+14155550100", "--socket", "/nonexistent/s"]);
    assert!(
        code == Some(3) && said.contains("cannot reach the daemon"),
        "{said}"
    );
    let (node, _db) = example("[[access]]\nuser = \"65533\"\nallow = [\"config\"]\n").await;
    let output = node.cli(&["watch", "+14155550100"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}
