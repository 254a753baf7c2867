//! Callers that are broken, slow, many or hostile: what they get, and that nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::cluster::Cluster;
use crate::node::{ACME, Node, exchange, read_reply, until};

/// Times short enough to be waited for.
const SHORT: &str = "[http]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";

/// In which a connection whose caller does nothing more must be over, two noisy cores allowed for.
const BOUND: Duration = Duration::from_secs(15);

const LABEL: &str = "/v1/lookup/label?to=%2B14155550100";

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Unix,
    Tcp,
    Admin,
}

impl Door {
    const ALL: [Self; 3] = [Self::Unix, Self::Tcp, Self::Admin];

    /// A path that is answered with 200 there.
    fn target(self) -> &'static str {
        match self {
            Self::Unix | Self::Tcp => LABEL,
            Self::Admin => "/v1/admin/status",
        }
    }

    async fn connect(self, node: &Node) -> Box<dyn Connection> {
        match self {
            Self::Unix => Box::new(UnixStream::connect(node.unix()).await.unwrap()),
            Self::Tcp => Box::new(TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap()),
            Self::Admin => Box::new(
                UnixStream::connect(node.path("admin/admin.sock"))
                    .await
                    .unwrap(),
            ),
        }
    }
}

/// The statuses of the answers in what a daemon said.
fn statuses(mut said: &[u8]) -> Vec<u16> {
    let mut found = Vec::new();
    while !said.is_empty() {
        let end = said
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(said)));
        let head = std::str::from_utf8(&said[..end]).unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if status >= 200 {
            found.push(status);
        }
        said = said.get(end + 4 + length..).unwrap_or_default();
    }
    found
}

/// Sends bytes, all at once or one by one, closes its half or not, and reads until the daemon closes.
async fn provoke(stream: &mut dyn Connection, bytes: &[u8], half_close: bool) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        // The daemon may have closed already.
        let _ = writer.write_all(bytes).await;
        if half_close {
            let _ = writer.shutdown().await;
        }
    };
    let read = async {
        let (mut said, mut some) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = reader.read(&mut some).await {
            said.extend_from_slice(&some[..read]);
        }
        said
    };
    let both = async { tokio::join!(write, read).1 };
    tokio::time::timeout(BOUND, both).await.unwrap_or_else(|_| {
        let shown = &bytes[..bytes.len().min(300)];
        panic!("not over in {BOUND:?}: {}", String::from_utf8_lossy(shown))
    })
}

/// Requests, each with how many of its parts are answered with 200; everything else is 4xx or a close.
///
/// `TARGET` is a path that is answered with 200, `MARKER` a whole request for it that stands where none may be read.
fn cases() -> Vec<(String, Vec<u8>, usize)> {
    let mut cases: Vec<(String, Vec<u8>, usize)> = Vec::new();
    let mut add = |name: &str, bytes: &[u8], ok| cases.push((name.to_owned(), bytes.to_vec(), ok));
    let host = "Host: localhost\r\n";

    for line in [
        "GET",
        "GET TARGET",
        "GET TARGET HTTP/1.1 HTTP/1.1",
        "GET  HTTP/1.1",
        "GET TARGET HTTP/1.2",
        "GET TARGET HTTP/2.0",
        "GET TARGET HTTP/0.9",
        "GET TARGET http/1.1",
        "GET TARGET HTTP/1.1x",
        "GET\tTARGET HTTP/1.1",
        " GET TARGET HTTP/1.1",
        "G(T TARGET HTTP/1.1",
        "G\0T TARGET HTTP/1.1",
        "get TARGET HTTP/1.1",
        "GETS TARGET HTTP/1.1",
        "DELETE TARGET HTTP/1.1",
        "TRACE TARGET HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET * HTTP/1.1",
        "CONNECT localhost:80 HTTP/1.1",
        "CONNECT TARGET HTTP/1.1",
        "GET evil.example:80 HTTP/1.1",
        "GET ../../etc/passwd HTTP/1.1",
        "GET /../v1/nothing HTTP/1.1",
        "GET //v1/nothing HTTP/1.1",
        "GET /v1/lookup?to=%zz HTTP/1.1",
        "GET /v1/lookup?to=%ff%fe HTTP/1.1",
        "GET /v1/lookup?to=%C0%80 HTTP/1.1",
        "GET /v1/lookup?to=%00 HTTP/1.1",
        "GET /v1/lookup?%zz=1 HTTP/1.1",
        "GET /v1/%6cookup?to=1 HTTP/1.1",
        "GET /v1/look%ffup HTTP/1.1",
        "GET /v1/lookup?to=1\0 HTTP/1.1",
        "GET /v1/lookup?to=1\x7f HTTP/1.1",
    ] {
        add(line, format!("{line}\r\n{host}\r\n").as_bytes(), 0);
    }
    add(
        "no UTF-8",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        0,
    );
    add(
        "HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        0,
    );
    add(
        "TLS",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
        0,
    );
    add("nothing", b"", 0);
    add("blank lines", b"\r\n\r\n\r\n\r\n", 0);
    add("nothing but NUL", &[0; 4096], 0);
    add("half a line", b"GET /v1/loo", 0);
    add("half a head", b"GET TARGET HTTP/1.1\r\nHost: local", 0);

    for header in [
        "X",
        "X y",
        "X : y",
        "X\t: y",
        ": y",
        "X\0: y",
        "X: a\0b",
        "X: a\x01b",
        "X: a\rb",
        "X: a\r\n b",
        "X: a\r\n\tb",
        " X: a",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5, 6",
        "Content-Length: ",
        "Content-Length: 99999999999999999999999",
        "Content-Length : 5",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding : chunked",
    ] {
        let bytes = format!("POST TARGET HTTP/1.1\r\n{host}{header}\r\n\r\nhelloMARKER");
        add(header, bytes.as_bytes(), 0);
    }
    add(
        "TE in 1.0",
        b"GET TARGET HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nMARKER",
        0,
    );
    for chunks in [
        "MARKER",
        "-1\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffffff\r\nhello",
        "5\r\nhelloX\r\n0\r\n\r\nMARKER",
        "5\nhello\n0\n\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "5\r\nhel",
        "",
    ] {
        let head = format!("POST TARGET HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
        add(
            &format!("chunks {chunks}"),
            format!("{head}{chunks}").as_bytes(),
            0,
        );
    }
    let chunked = |rest: &str| {
        format!("GET TARGET HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n{rest}")
    };
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\nMARKER", "x".repeat(100_000));
    add("huge chunk extension", chunked(&extension).as_bytes(), 0);
    let trailers = format!("0\r\n{}\r\nMARKER", "X: y\r\n".repeat(100_000));
    add("endless trailers", chunked(&trailers).as_bytes(), 0);
    let crumbs = format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(80_000));
    add(
        "a body over its limit in crumbs",
        chunked(&crumbs).as_bytes(),
        0,
    );

    for (name, size) in [("long", 9_000), ("longer", 100_000), ("longest", 2_000_000)] {
        let line = format!("GET /{} HTTP/1.1\r\n{host}\r\nMARKER", "x".repeat(size));
        add(&format!("a {name} line"), line.as_bytes(), 0);
        if size > 9_000 {
            let head = format!(
                "GET TARGET HTTP/1.1\r\n{host}X: {}\r\n\r\n",
                "x".repeat(size)
            );
            add(&format!("a {name} header"), head.as_bytes(), 0);
        }
    }
    let many: String = (0..150).map(|n| format!("X-{n}: y\r\n")).collect();
    add(
        "many headers",
        format!("GET TARGET HTTP/1.1\r\n{host}{many}\r\n").as_bytes(),
        0,
    );
    let few: String = "X: y\r\n".repeat(50_000);
    add(
        "too many headers",
        format!("GET TARGET HTTP/1.1\r\n{host}{few}\r\n").as_bytes(),
        0,
    );
    let parameters = "a=b&".repeat(100_000);
    add(
        "100 000 parameters",
        format!("GET /v1/lookup?{parameters} HTTP/1.1\r\n{host}\r\n").as_bytes(),
        0,
    );

    let mut post = |name: &str, kind: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "POST /v1/resolve HTTP/1.1\r\n{host}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        add(name, &[head.as_bytes(), body].concat(), 0);
    };
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    post("deep lists", json, "[".repeat(60_000).as_bytes());
    post("deep objects", json, "{\"a\":".repeat(12_000).as_bytes());
    post(
        "deep attributes",
        json,
        format!(
            "{{\"to\":\"+14155550100\",\"attr\":{{\"a\":{}1{}}}}}",
            "[".repeat(20_000),
            "]".repeat(20_000)
        )
        .as_bytes(),
    );
    post(
        "a key twice",
        json,
        br#"{"to":"+14155550100","to":"+14155550100"}"#,
    );
    post(
        "an attribute twice",
        json,
        br#"{"to":"+14155550100","attr":{"a":"1","a":"2"}}"#,
    );
    post("a number no machine holds", json, br#"{"to":1e999999}"#);
    post("half a surrogate", json, br#"{"to":"\ud800"}"#);
    post("NUL in JSON", json, br#"{"to":"\u0000"}"#);
    post("no UTF-8 in JSON", json, b"{\"to\":\"\xff\"}");
    post("another kind", "text/xml", b"<to>+14155550100</to>");
    post("100 000 in a form", form, "a=b&".repeat(16_000).as_bytes());
    post("a large body", json, &vec![b' '; 65_537]);
    post("a larger body", json, &vec![b' '; 3_000_000]);
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xabV*\xc9W\xb2R\xd26417!\x0200Pj\x01\0";
    let head = format!(
        "POST /v1/resolve HTTP/1.1\r\n{host}Content-Type: {json}\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        gzip.len()
    );
    add("a packed body", &[head.as_bytes(), gzip].concat(), 0);
    add(
        "a body that breaks off",
        format!("POST /v1/resolve HTTP/1.1\r\n{host}Content-Length: 500\r\n\r\nMARKER").as_bytes(),
        0,
    );
    add("a large body is announced", format!("POST /v1/resolve HTTP/1.1\r\n{host}Expect: 100-continue\r\nContent-Length: 70000\r\n\r\n").as_bytes(), 0);

    // What the rules let through is read by one reading only.
    add(
        "GET with a body",
        format!("GET TARGET HTTP/1.1\r\n{host}Content-Length: LENGTH\r\n\r\nMARKER").as_bytes(),
        1,
    );
    add("the same length twice", format!("GET TARGET HTTP/1.1\r\n{host}Content-Length: LENGTH\r\nContent-Length: LENGTH\r\n\r\nMARKER").as_bytes(), 1);
    for te in ["chunked", "CHUNKED", "\tchunked "] {
        let bytes = format!(
            "GET TARGET HTTP/1.1\r\n{host}Transfer-Encoding:{te}\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
        );
        add(&format!("TE{te}"), bytes.as_bytes(), 1);
    }
    // Two lengths, of which a proxy may believe the other: what follows is nobody's (RFC 9112, 6.1).
    for both in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: cHuNkEd\r\nContent-Length: 5",
    ] {
        let bytes = format!("GET TARGET HTTP/1.1\r\n{host}{both}\r\n\r\n0\r\n\r\nMARKER");
        add(both, bytes.as_bytes(), 1);
    }
    add("bare LF", b"GET TARGET HTTP/1.1\nHost: localhost\n\n", 1);
    add("HTTP/1.0", b"GET TARGET HTTP/1.0\r\n\r\nMARKER", 1);
    add(
        "absolute form",
        format!("GET http://localhostTARGET HTTP/1.1\r\n{host}\r\n").as_bytes(),
        1,
    );
    add(
        "blank lines before",
        format!("\r\n\r\nGET TARGET HTTP/1.1\r\n{host}\r\n").as_bytes(),
        1,
    );
    add("Upgrade", format!("GET TARGET HTTP/1.1\r\n{host}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n").as_bytes(), 1);
    add("two", b"MARKERMARKER", 2);
    add("one and nonsense", b"MARKER\0\0\r\n\r\nMARKER", 1);
    add(
        "one, a closing one, and one",
        format!("MARKERGET TARGET HTTP/1.1\r\n{host}Connection: close\r\n\r\nMARKER").as_bytes(),
        2,
    );
    cases
}

/// What a case says at a door.
fn said_at(door: Door, bytes: &[u8]) -> Vec<u8> {
    let marker = MARKER.replace("TARGET", door.target());
    // Only texts hold the words.
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .replace("MARKER", &marker)
            .replace("LENGTH", &marker.len().to_string())
            .replace("TARGET", door.target())
            .into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

const MARKER: &str = "GET TARGET HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A caller that asks all the time, over new connections and a kept one, and must be answered right.
struct Neighbour {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Neighbour {
    fn of(node: &Arc<Node>) -> Self {
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let task = tokio::spawn({
            let (node, stop, asked) = (node.clone(), stop.clone(), asked.clone());
            async move {
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    ask_once(&node, &mut kept).await;
                    asked.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        Self { stop, asked, task }
    }

    /// Ends it; how often it was answered.
    async fn ended(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.asked.load(Ordering::Relaxed)
    }
}

/// One question over a new connection and one over a kept one, which a caller makes anew where it was closed.
async fn ask_once(node: &Node, kept: &mut Option<UnixStream>) {
    let reply = node.get(LABEL).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, "Salida principal AR")
    );
    for _ in 0..100 {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => UnixStream::connect(node.unix()).await.unwrap(),
        };
        let request = MARKER.replace("TARGET", LABEL);
        if stream.write_all(request.as_bytes()).await.is_err() {
            continue;
        }
        match read_reply(&mut stream, false).await {
            Ok(reply) => {
                assert_eq!(
                    (reply.status, reply.body.as_str()),
                    (200, "Salida principal AR")
                );
                *kept = Some(stream);
                return;
            }
            Err(err) if err.kind() == std::io::ErrorKind::TimedOut => panic!("not answered"),
            Err(_) => {}
        }
    }
    panic!("a kept connection is closed again and again");
}

/// Questions that were not answered with 200, as the node counts them.
async fn refusals(node: &Node) -> f64 {
    let text = node.get("/metrics").await.body;
    let counts = text
        .lines()
        .filter(|line| line.starts_with("sidetone_lookups_total{") && !line.contains("\"ok\""));
    counts
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Nothing that is wrong with a request is the daemon's fault.
fn no_panic(node: &Node) {
    let log = node.log();
    let panic = log.lines().find(|line| line.contains("panic"));
    assert_eq!(panic, None);
}

async fn example(settings: &str) -> Arc<Node> {
    let db = Cluster::shared().database().await;
    Arc::new(Node::with_example(&db, settings).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_request_is_refused_in_time_and_no_other_is_read_out_of_it() {
    let node = example(SHORT).await;
    let neighbour = Neighbour::of(&node);
    let before = refusals(&node).await;
    let mut running = JoinSet::new();
    for door in Door::ALL {
        // Fewer than the admin side has room for: no case is to give way to another.
        let at_once = Arc::new(Semaphore::new(12));
        for (name, bytes, ok) in cases() {
            for half_close in [true, false] {
                let (node, name, at_once) = (node.clone(), name.clone(), at_once.clone());
                let bytes = said_at(door, &bytes);
                running.spawn(async move {
                    let _turn = at_once.acquire().await.unwrap();
                    let mut stream = door.connect(&node).await;
                    let statuses = statuses(&provoke(&mut *stream, &bytes, half_close).await);
                    let (found, refused) = statuses
                        .iter()
                        .partition::<Vec<u16>, _>(|status| **status == 200);
                    let right = found.len() == ok
                        && refused.iter().all(|status| (400..500).contains(status));
                    let what =
                        format!("{door:?}, {name:?}, half-closed {half_close}: {statuses:?}");
                    let counts = if door == Door::Admin {
                        0
                    } else {
                        refused.len()
                    };
                    (counts, (!right).then_some(what))
                });
            }
        }
    }
    let (counts, wrong): (Vec<usize>, Vec<_>) = running.join_all().await.into_iter().unzip();
    let told: usize = counts.iter().sum();
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let counted = refusals(&node).await - before;
    assert!(
        told > 300 && counted >= told as f64,
        "{told} refused, {counted} counted"
    );
    assert!(neighbour.ended().await > 50);
    no_panic(&node);
}

/// A sequence of numbers that is the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_and_damaged_requests_never_cost_more_than_their_connection() {
    let node = example(SHORT).await;
    let neighbour = Neighbour::of(&node);
    let mut dice = Dice(0x5f0c_9e1a_7b3d_2846);
    let whole = said_at(
        Door::Unix,
        b"POST /v1/resolve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 54\r\n\r\n{\"to\":\"+14155550100\",\"attr\":{\"vip\":[\"true\",1,null]}}  MARKER",
    );
    for round in 0..600 {
        let mut bytes = if round % 3 == 0 {
            (0..dice.roll(400))
                .map(|_| u8::try_from(dice.roll(256)).unwrap())
                .collect()
        } else {
            whole.clone()
        };
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(bytes.len() + 1);
            match dice.roll(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, u8::try_from(dice.roll(256)).unwrap()),
                2 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
                _ => drop(bytes.drain(..at.min(bytes.len()) / 8)),
            }
        }
        let door = Door::ALL[dice.roll(3)];
        let mut stream = door.connect(&node).await;
        let said = provoke(&mut *stream, &bytes, true).await;
        let statuses = statuses(&said);
        assert!(
            statuses.iter().all(|status| *status < 500),
            "round {round}, {door:?}: {statuses:?} {}",
            String::from_utf8_lossy(&bytes)
        );
    }
    assert!(neighbour.ended().await > 10);
    no_panic(&node);
}

/// A thousand requests, each with a word of its own that its answer repeats.
fn pipelined(count: usize) -> String {
    (0..count)
        .map(|n| format!("GET /v1/lookup/account_ref?to={ACME}&account_ref=n{n} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pipelined_requests_are_answered_in_order_and_none_behind_a_bad_one() {
    let node = example("").await;
    for door in [Door::Unix, Door::Tcp] {
        for bad in [None, Some(500)] {
            let mut bytes = pipelined(bad.unwrap_or(1000));
            if bad.is_some() {
                bytes += "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n";
                bytes += &pipelined(500);
            }
            let mut stream = door.connect(&node).await;
            let said = provoke(&mut *stream, bytes.as_bytes(), true).await;
            let mut said = &said[..];
            for n in 0..bad.unwrap_or(1000) {
                let reply = read_reply(&mut said, false).await.unwrap();
                assert_eq!((reply.status, reply.body), (200, format!("n{n}")));
            }
            let rest = statuses(said);
            assert_eq!(
                rest,
                if bad.is_some() { vec![400] } else { vec![] },
                "{door:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_sends_or_reads_byte_by_byte_is_given_its_time_and_no_more() {
    let node = example(SHORT).await;
    let neighbour = Neighbour::of(&node);
    let mut slow = JoinSet::new();
    for door in Door::ALL {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n",
            door.target(),
            "y".repeat(300)
        );
        let body = format!("{head}Content-Length: 300\r\n\r\n{}", "z".repeat(300));
        for (at_once, bytes) in [(0, head), (body.find("zzz").unwrap(), body)] {
            let node = node.clone();
            slow.spawn(async move {
                let mut stream = door.connect(&node).await;
                stream
                    .write_all(&bytes.as_bytes()[..at_once])
                    .await
                    .unwrap();
                let (mut reader, mut writer) = tokio::io::split(stream);
                let began = Instant::now();
                let drip = async {
                    for byte in &bytes.as_bytes()[at_once..] {
                        if writer.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                let mut said = Vec::new();
                tokio::select! {
                    _ = reader.read_to_end(&mut said) => {}
                    () = drip => panic!("{door:?}: all of it was read"),
                }
                let took = began.elapsed();
                assert!(
                    took >= Duration::from_millis(900) && took < BOUND,
                    "{door:?}: {took:?}"
                );
                assert!(
                    statuses(&said)
                        .iter()
                        .all(|status| (400..500).contains(status))
                );
            });
        }
    }
    // Answers that nobody takes fill the socket; taken slowly at last, they are all there.
    let mut lazy = Door::Unix.connect(&node).await;
    let request =
        format!("GET /v1/resolve?to={ACME} HTTP/1.1\r\nHost: localhost\r\n\r\n").repeat(400);
    let _ = tokio::time::timeout(
        Duration::from_millis(500),
        lazy.write_all(request.as_bytes()),
    )
    .await;
    while let Some(ended) = slow.join_next().await {
        ended.unwrap();
    }
    for _ in 0..50 {
        assert_eq!(read_reply(&mut lazy, false).await.unwrap().status, 200);
    }
    assert!(neighbour.ended().await > 20);
    no_panic(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_caller_is_answered_unless_its_request_is_not_whole() {
    let node = example("").await;
    for door in Door::ALL {
        let whole = said_at(door, MARKER.as_bytes());
        for (length, is) in [
            (whole.len(), vec![200]),
            (whole.len() - 1, vec![]),
            (20, vec![]),
        ] {
            let mut stream = door.connect(&node).await;
            let said = provoke(&mut *stream, &whole[..length], true).await;
            assert_eq!(statuses(&said), is, "{door:?} {length}");
        }
    }
}

/// Lets this process have as many descriptors; those it gets.
fn descriptors(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map_or(wanted, |maximum| maximum.max(wanted));
    let raised = Rlimit {
        current: Some(wanted),
        maximum: Some(maximum),
    };
    let _ = setrlimit(Resource::Nofile, raised);
    let got = getrlimit(Resource::Nofile).current.unwrap_or(wanted);
    got.min(wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_leave_calls_and_operators_answered() {
    let count = descriptors(12_000).saturating_sub(2_000);
    let node = example("").await;
    let (mut idle, mut kept) = (Vec::new(), None);
    for n in 0..count {
        let door = if n % 4 == 0 { Door::Tcp } else { Door::Unix };
        idle.push(door.connect(&node).await);
        if n % 200 == 0 {
            ask_once(&node, &mut kept).await;
        }
    }
    ask_once(&node, &mut kept).await;
    let status = node.admin("GET", "/v1/admin/status", "").await.json();
    let (open, most) = (
        status["connections"].as_u64().unwrap(),
        status["connections_limit"].as_u64().unwrap(),
    );
    assert!(most == 1024 && open <= most, "{status}");
    assert!(count >= 10_000, "only {count} descriptors here");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_256_descriptors_calls_operators_and_the_feed_go_on_under_thousands_of_connections() {
    descriptors(12_000);
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(&db.url(), "");
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, "x"))
        .await;
    node.start_with_descriptors(256);
    node.synced().await;
    let (mut flood, mut kept) = (Vec::new(), None);
    for n in 0..3000 {
        let door = if n % 4 == 0 { Door::Tcp } else { Door::Unix };
        let mut stream = door.connect(&node).await;
        // Some say half of something; either kind stays.
        if n % 2 == 0 {
            let _ = stream.write_all(b"GET /v1/lo").await;
        }
        flood.push(stream);
        if n < 200 {
            let operator = UnixStream::connect(node.path("admin/admin.sock"))
                .await
                .unwrap();
            flood.push(Box::new(operator));
        }
        if n % 100 == 0 {
            ask_once(&node, &mut kept).await;
        }
    }
    // The feed finds descriptors for a new connection, and rows for calls come through.
    let lost = node
        .metric("sidetone_reconnects_total{cause=\"lost\"}")
        .await;
    db.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()").await;
    until("the feed notices", async || {
        node.metric("sidetone_reconnects_total{cause=\"lost\"}")
            .await
            > lost
    })
    .await;
    db.sql("update public.tenant_phone_numbers set label = 'Nueva' where e164 = '+14155550100'")
        .await;
    node.until(LABEL, |reply| reply.body == "Nueva").await;
    node.level().await;

    let status = node.admin("GET", "/v1/admin/status", "").await.json();
    assert_eq!(status["connections_limit"], 128);
    assert!(status["connections"].as_u64().unwrap() <= 128, "{status}");
    assert_eq!(node.metric("sidetone_connections_limit").await, 128.0);
    assert_eq!(node.metric("process_max_fds").await, 256.0);
    assert!(node.metric("process_open_fds").await < 250.0);
    assert_eq!(node.metric("sidetone_accept_errors_total").await, 0.0);
    let log = node.log();
    assert!(
        log.contains("LimitNOFILE"),
        "what is missing is not told: {log}"
    );
    assert!(!log.contains("Too many open files"), "{log}");
    let loud = log
        .lines()
        .filter(|line| !line.contains("\"DEBUG\""))
        .count();
    assert!(loud < 100, "{loud} lines: {log}");
    let request = MARKER
        .replace("TARGET", LABEL)
        .replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let tcp = TcpStream::connect(("127.0.0.1", node.tcp)).await.unwrap();
    assert_eq!(exchange(tcp, &request).await.unwrap().body, "Nueva");
    no_panic(&node);
}
