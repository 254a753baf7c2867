//! The server over real sockets, byte by byte, with a handler that needs no engine.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::config::FileMode;
use crate::feed::handle::Order;

/// Answers with method, path and body; waits on `/slow`, panics on `/panic`.
struct Echo(Arc<Shared>);

#[derive(Default)]
struct Shared {
    go: Notify,
    begun: Notify,
    refused: AtomicUsize,
    not_accepted: AtomicUsize,
    at_once: AtomicUsize,
}

struct Echoes(Arc<Shared>);

impl Host for Echoes {
    type Handler = Echo;

    fn connect(self: &Arc<Self>, _: &Door, _: Side, _: &Arrival) -> Echo {
        Echo(self.0.clone())
    }

    fn must_know_better(&self) -> bool {
        false
    }

    fn know_better(&self, echo: Echo, _: Side, _: &Arrival, _: Instant) -> Echo {
        echo
    }

    fn pause(&self, _: Side, _: Who) -> Duration {
        Duration::ZERO
    }

    fn not_accepted(&self, _: &io::Error) {
        self.0.not_accepted.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for Echo {
    fn answer(self: Arc<Self>, asked: Asked) -> BoxFuture<'static, Reply> {
        async move {
            match asked.path.as_str() {
                "/slow" => {
                    self.0.begun.notify_one();
                    self.0.go.notified().await;
                }
                "/panic" => panic!("on purpose"),
                "/unchanged" => {
                    return Reply::new(
                        hyper::StatusCode::NOT_MODIFIED,
                        Form::Plain,
                        "unchanged".to_owned(),
                    );
                }
                "/thread" => {
                    return Reply::ok(Form::Plain, format!("{:?}", std::thread::current().id()));
                }
                path if path.starts_with("/at-once/") => return told_at_once(path),
                "/large" => return Reply::ok(Form::Plain, vec![b'x'; 4 * 1024 * 1024]),
                _ => {}
            }
            let body = String::from_utf8_lossy(&asked.body).into_owned();
            Reply::ok(
                Form::Plain,
                format!("{} {} {body}", asked.method, asked.path),
            )
        }
        .boxed()
    }

    fn at_once(&self, asked: &Plain<'_>) -> Option<Reply> {
        if asked.path == "/at-once/panic" {
            panic!("on purpose");
        }
        let ours = asked.path.starts_with("/at-once/");
        let reply = ours.then(|| told_at_once(asked.path))?;
        self.0.at_once.fetch_add(1, Ordering::SeqCst);
        Some(reply)
    }

    fn refused(&self, _: Outcome) {
        self.0.refused.fetch_add(1, Ordering::SeqCst);
    }

    fn hosts(&self) -> Option<&[String]> {
        None
    }
}

/// The answer below `/at-once/`, whichever way it is given.
fn told_at_once(path: &str) -> Reply {
    let reply = match path {
        "/at-once/large" => Reply::ok(Form::Plain, vec![b'x'; 4 * 1024 * 1024]),
        "/at-once/wrong" => Fail::new(Outcome::InvalidNumber, "no number").reply(Form::Json),
        "/at-once/thread" => Reply::ok(Form::Plain, format!("{:?}", std::thread::current().id())),
        "/at-once/overloaded" => Fail::new(Outcome::Overloaded, "too much").reply(Form::Pairs),
        _ => Reply::ok(Form::Json, format!("GET {path} ")),
    };
    reply.with(hyper::header::ETAG, "\"1\"")
}

/// A server in a directory of its own.
struct Server {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    tcp: Option<String>,
}

struct Given {
    terms: Terms,
    connections: usize,
    tcp: bool,
}

fn given() -> Given {
    let long = Duration::from_secs(20);
    let terms = Terms {
        header_timeout: long,
        idle_timeout: long,
        drain_timeout: long,
        max_body: 1024,
    };
    Given {
        terms,
        connections: 64,
        tcp: false,
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.http.unix = dir.join("http.sock");
    config.http.tcp = String::new();
    config.admin.unix = PathBuf::new();
    config
}

fn open(config: &Config) -> Result<listen::Opened, BindError> {
    listen::open(config, &Names::default())
}

fn start(given: Given) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    if given.tcp {
        config.http.tcp = "127.0.0.1:0".to_owned();
    }
    let opened = open(&config).unwrap();
    let tcp = opened.call.get(1).map(|door| door.name.clone());
    let room = Room::new(given.connections);
    let entrances = opened
        .call
        .into_iter()
        .map(|door| Entrance::new(door, Side::Call, &room))
        .collect();
    let shared = Arc::new(Shared::default());
    let stop = CancellationToken::new();
    let host = Arc::new(Echoes(shared.clone()));
    let task = {
        let stop = stop.clone();
        tokio::spawn(async move { run(entrances, host, &given.terms, stop).await })
    };
    Server {
        dir,
        shared,
        stop,
        task,
        tcp,
    }
}

impl Server {
    fn path(&self) -> PathBuf {
        self.dir.path().join("http.sock")
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    /// Everything the server says to these bytes until it closes.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        rest(&mut stream).await
    }

    async fn stopped(self) {
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .expect("drained")
            .unwrap();
    }
}

async fn rest(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes))
        .await
        .expect("the server closes")
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

/// One answer with its body.
async fn answer(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut bytes))
            .await
            .expect("an answer")
            .unwrap();
        assert!(read > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length: usize = header(head, "content-length")
                .expect("a length")
                .parse()
                .unwrap();
            if body.len() >= length {
                return text;
            }
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        line.split_once(": ")
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    })
}

const CLOSE: &str = "Connection: close\r\n\r\n";

#[tokio::test]
async fn an_answer_has_a_length_and_a_type_and_says_nothing_of_the_server() {
    let server = start(given());
    let text = server
        .exchange(format!("GET /a HTTP/1.1\r\nHost: x\r\n{CLOSE}").as_bytes())
        .await;
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nGET /a "),
        "{text}"
    );
    assert_eq!(header(&text, "content-length"), Some("7"));
    assert_eq!(
        header(&text, "content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert!(header(&text, "server").is_none() && header(&text, "transfer-encoding").is_none());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let server = start(given());
    let mut bytes = String::new();
    for n in 0..20 {
        bytes.push_str(&format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n"));
    }
    bytes.push_str(&format!(
        "POST /last HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{CLOSE}hi"
    ));
    let text = server.exchange(bytes.as_bytes()).await;
    let mut from = 0;
    for n in 0..20 {
        let at = text[from..]
            .find(&format!("\r\n\r\nGET /{n} "))
            .unwrap_or_else(|| panic!("no {n} in {text}"));
        from += at;
    }
    assert!(text[from..].ends_with("POST /last hi"), "{text}");
}

#[tokio::test]
async fn an_answer_given_at_once_has_the_bytes_that_hyper_writes() {
    let server = start(given());
    let mut stream = server.connect().await;
    for path in ["/at-once/a?b=%20c", "/at-once/wrong", "/at-once/overloaded"] {
        let mut both = Vec::new();
        for (other, more) in [("", 1), ("X-Other: 1\r\n", 0)] {
            let before = server.shared.at_once.load(Ordering::SeqCst);
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{other}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let text = answer(&mut stream).await;
            let at_once = server.shared.at_once.load(Ordering::SeqCst) - before;
            assert_eq!(at_once, more, "{request}");
            let date = header(&text, "date").expect("a date").to_owned();
            assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
            both.push(text.replace(&date, "now"));
        }
        assert_eq!(both[0], both[1]);
    }
}

#[tokio::test]
async fn what_is_not_plain_is_not_answered_at_once() {
    let server = start(given());
    let close = "Host: x\r\nConnection: close\r\n";
    for request in [
        format!("GET /at-once/a HTTP/1.1\r\n{close}\r\n"),
        "GET /at-once/a HTTP/1.0\r\n\r\n".to_owned(),
        format!("HEAD /at-once/a HTTP/1.1\r\n{close}\r\n"),
        format!("GET http://x/at-once/a HTTP/1.1\r\n{close}\r\n"),
        format!("POST /at-once/a HTTP/1.1\r\nContent-Length: 2\r\n{close}\r\nhi"),
        format!("GET /at-once/a HTTP/1.1\r\nContent-Length: 2\r\n{close}\r\nhi"),
        format!("GET /at-once/a HTTP/1.1\r\nIf-None-Match: *\r\n{close}\r\n"),
    ] {
        let text = server.exchange(request.as_bytes()).await;
        assert!(text.contains(" 200 OK\r\n"), "{text}");
        assert_eq!(server.shared.at_once.load(Ordering::SeqCst), 0, "{request}");
    }
}

#[tokio::test]
async fn requests_of_both_ways_are_answered_in_their_order_however_they_are_cut() {
    let server = start(given());
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        (request, format!("GET {path} "))
    };
    let one = |n: usize| match n % 4 {
        0 | 1 => get(&format!("/at-once/{n}")),
        2 => get(&format!("/{n}")),
        _ => {
            let head = format!("POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 2");
            (format!("{head}\r\n\r\nhi"), format!("POST /{n} hi"))
        }
    };
    let (requests, answers): (Vec<_>, Vec<_>) = (0..100).map(one).unzip();
    let bytes = requests.concat();
    for piece in [1, 7, 64, 1000, bytes.len()] {
        let mut stream = server.connect().await;
        let (mut reads, mut writes) = stream.split();
        let write = async {
            for piece in bytes.as_bytes().chunks(piece) {
                writes.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            writes.shutdown().await.unwrap();
        };
        let mut text = String::new();
        let both = async { tokio::join!(write, reads.read_to_string(&mut text)).1 };
        tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .expect("the server closes")
            .unwrap();
        let bodies: Vec<_> = text
            .split("HTTP/1.1 200 OK\r\n")
            .skip(1)
            .map(|one| one.split_once("\r\n\r\n").unwrap().1)
            .collect();
        assert_eq!(bodies, answers, "pieces of {piece}");
    }
    assert!(server.shared.at_once.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn an_answer_at_once_that_there_is_no_room_for_is_sent_whole_and_before_the_next() {
    let server = start(given());
    for warm in [0, 200] {
        let mut stream = server.connect().await;
        // Often enough in a row to be on a lane.
        for _ in 0..warm {
            let ask = b"GET /at-once/a HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(ask).await.unwrap();
            answer(&mut stream).await;
        }
        let ask = "GET /at-once/large HTTP/1.1\r\nHost: x\r\n\r\nGET /at-once/b HTTP/1.1\r\nHost: x\r\n\r\n\
                   GET /c HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let text = rest(&mut stream).await;
        assert!(text.len() > 4 * 1024 * 1024 && text.ends_with("GET /c "));
        assert!(text.find("GET /at-once/b ").unwrap() > 4 * 1024 * 1024);
    }
}

#[tokio::test]
async fn an_answer_at_once_waits_for_the_end_of_the_answer_before_it() {
    let server = start(given());
    let mut stream = server.connect().await;
    let large = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(large).await.unwrap();
    // Begun, and far more than there is room for.
    let mut first = [0; 1];
    stream.read_exact(&mut first).await.unwrap();
    let next = b"GET /at-once/b HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(next).await.unwrap();
    stream.shutdown().await.unwrap();
    let text = rest(&mut stream).await;
    assert!(text.len() > 4 * 1024 * 1024 && text.ends_with("GET /at-once/b "));
}

#[tokio::test]
async fn a_panic_at_once_costs_one_answer() {
    let server = start(given());
    let mut stream = server.connect().await;
    for (path, code) in [("/at-once/panic", "500"), ("/at-once/a", "200")] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = answer(&mut stream).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {code} ")), "{text}");
    }
    assert_eq!(server.shared.refused.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let server = start(given());
    let mut stream = server.connect().await;
    for n in 0..3 {
        stream
            .write_all(format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        assert!(answer(&mut stream).await.ends_with(&format!("GET /{n} ")));
    }
}

#[tokio::test]
async fn a_caller_that_closed_its_half_still_gets_the_answer() {
    let server = start(given());
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    server.shared.begun.notified().await;
    server.shared.go.notify_one();
    assert!(rest(&mut stream).await.ends_with("GET /slow "));
}

#[tokio::test]
async fn http_1_0_is_answered_and_closed_and_head_has_no_body() {
    let server = start(given());
    let text = server.exchange(b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(
        text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("GET /old "),
        "{text}"
    );
    assert_eq!(header(&text, "content-length"), Some("9"));
    let text = server
        .exchange(format!("HEAD /a HTTP/1.1\r\nHost: x\r\n{CLOSE}").as_bytes())
        .await;
    assert!(text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(header(&text, "content-length"), Some("8"));
}

#[tokio::test]
async fn a_304_has_the_length_of_what_it_stands_for_and_no_body() {
    let server = start(given());
    let bytes = format!(
        "GET /unchanged HTTP/1.1\r\nHost: x\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n{CLOSE}"
    );
    let text = server.exchange(bytes.as_bytes()).await;
    let (first, second) = text.split_once("\r\n\r\n").unwrap();
    assert!(
        first.starts_with("HTTP/1.1 304 ") && second.starts_with("HTTP/1.1 200 "),
        "{text}"
    );
    assert_eq!(header(first, "content-length"), Some("9"));
}

#[tokio::test]
async fn what_is_no_http_gets_a_client_error_with_a_length() {
    let server = start(given());
    for bytes in [
        &b"nonsense\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        let text = server.exchange(bytes).await;
        assert!(text.starts_with("HTTP/1.1 4"), "{bytes:?}: {text}");
        assert_eq!(header(&text, "content-length"), Some("0"), "{text}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_and_says_so() {
    let server = start(given());
    let text = server
        .exchange(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(9000)).as_bytes())
        .await;
    assert!(
        text.starts_with("HTTP/1.1 400 ")
            && text.contains(r#"{"status":"bad_request","message":"path and query"#),
        "{text}"
    );
    let mut stream = server.connect().await;
    let _ = stream
        .write_all(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)).as_bytes())
        .await;
    let text = rest_despite_reset(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    for body in [1025, 300_000, 5_000_000] {
        let mut stream = server.connect().await;
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {body}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(&vec![b'x'; body]).await;
        let text = rest_despite_reset(&mut stream).await;
        assert!(
            text.contains("the body is longer than 1024 bytes")
                && text.starts_with("HTTP/1.1 400 "),
            "{body}: {text}"
        );
        assert_eq!(header(&text, "connection"), Some("close"));
    }
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{}\r\n0\r\n\r\n",
        "x".repeat(4096)
    );
    assert!(
        server
            .exchange(chunked.as_bytes())
            .await
            .contains("longer than 1024 bytes")
    );
    // A head that hyper refuses is counted when its connection ends, a moment after the caller saw the end.
    let counted = async {
        while server.shared.refused.load(Ordering::SeqCst) < 6 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), counted)
        .await
        .unwrap();
    assert_eq!(server.shared.refused.load(Ordering::SeqCst), 6);
}

/// What came before the server closed on a body that it did not read.
async fn rest_despite_reset(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(read) = stream.read(&mut bytes).await {
        if read == 0 {
            break;
        }
        text.extend_from_slice(&bytes[..read]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_body_is_read_whole_chunked_or_announced() {
    let server = start(given());
    let chunked = format!(
        "POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{CLOSE}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    );
    assert!(
        server
            .exchange(chunked.as_bytes())
            .await
            .ends_with("POST /c abcde")
    );
    let mut stream = server.connect().await;
    let head = "POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").await.unwrap();
    assert!(rest(&mut stream).await.ends_with("POST /e hi"));
}

#[tokio::test]
async fn a_panic_costs_one_answer() {
    let server = start(given());
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let text = answer(&mut stream).await;
    assert!(
        text.starts_with("HTTP/1.1 500 ") && text.contains(r#"{"status":"internal","message":""#),
        "{text}"
    );
    stream
        .write_all(b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(answer(&mut stream).await.ends_with("GET /after "));
    assert_eq!(server.shared.refused.load(Ordering::SeqCst), 1, "counted");
}

#[tokio::test]
async fn a_head_must_be_whole_in_time_and_a_pause_is_no_head() {
    let mut given = given();
    given.terms.header_timeout = Duration::from_millis(100);
    let server = start(given);
    // A pause longer than a head may take, before and between requests.
    let mut patient = server.connect().await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        patient
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        answer(&mut patient).await;
    }
    // Byte by byte does not buy time.
    let mut slow = server.connect().await;
    let begun = Instant::now();
    let dripping = async {
        while slow.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), dripping)
        .await
        .expect("the head is given up");
    assert!(begun.elapsed() >= Duration::from_millis(100));
    // Nor does a head that began behind another request.
    let text = server
        .exchange(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2")
        .await;
    assert!(text.ends_with("GET /1 "), "{text}");
    // Nor does a body.
    let text = server
        .exchange(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        .await;
    assert!(
        text.starts_with("HTTP/1.1 400 ") && text.contains("did not arrive in time"),
        "{text}"
    );
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_the_idle_time() {
    let mut given = given();
    given.terms.idle_timeout = Duration::from_millis(100);
    let server = start(given);
    let begun = Instant::now();
    assert_eq!(server.exchange(b"").await, "");
    assert!(begun.elapsed() >= Duration::from_millis(100));
    let text = server.exchange(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(text.ends_with("GET / "), "{text}");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_after_stop_and_nothing_is_left_behind() {
    let server = start(given());
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.shared.begun.notified().await;
    server.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        UnixStream::connect(server.path()).await.is_err(),
        "nobody new is let in"
    );
    assert!(!server.path().exists());
    server.shared.go.notify_one();
    let text = rest(&mut stream).await;
    assert!(
        text.ends_with("GET /slow ") && header(&text, "connection") == Some("close"),
        "{text}"
    );
    server.stopped().await;
}

#[tokio::test]
async fn requests_that_were_sent_before_stop_are_answered_after_it() {
    let server = start(Given {
        connections: 128,
        ..given()
    });
    let mut busy = server.connect().await;
    busy.write_all(
        b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET /pipelined HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .await
    .unwrap();
    server.shared.begun.notified().await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /idle HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    answer(&mut idle).await;
    let mut sent = server.connect().await;
    sent.write_all(b"GET /warm HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    answer(&mut sent).await;
    // From here to the stop the server gets no turn: what is sent waits in the kernel, fifty connections in the backlog.
    sent.try_write(b"GET /sent HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut waiting = Vec::new();
    for n in 0..50 {
        let mut stream = std::os::unix::net::UnixStream::connect(server.path()).unwrap();
        std::io::Write::write_all(
            &mut stream,
            format!("GET /waiting{n} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
        )
        .unwrap();
        stream.set_nonblocking(true).unwrap();
        waiting.push(UnixStream::from_std(stream).unwrap());
    }
    server.stop.cancel();
    server.shared.go.notify_one();
    assert_eq!(rest(&mut idle).await, "");
    assert!(rest(&mut sent).await.ends_with("GET /sent "));
    let text = rest(&mut busy).await;
    assert!(
        text.contains("GET /slow ") && text.ends_with("GET /pipelined "),
        "{text}"
    );
    for (n, stream) in waiting.iter_mut().enumerate() {
        assert!(
            rest(stream).await.ends_with(&format!("GET /waiting{n} ")),
            "{n}"
        );
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_no_request_that_was_sent() {
    for path in ["/x", "/at-once/x"].repeat(8) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let server = start(given());
        let mut callers = Vec::new();
        for caller in 0..8 {
            let (path, request) = (server.path(), request.clone());
            callers.push(tokio::spawn(async move {
                let mut answered = 0u32;
                'connect: loop {
                    let Ok(mut stream) = UnixStream::connect(&path).await else {
                        return answered;
                    };
                    loop {
                        if stream.write_all(request.as_bytes()).await.is_err() {
                            continue 'connect; // refused, and told so
                        }
                        let text = answer(&mut stream).await;
                        answered += 1;
                        if header(&text, "connection") == Some("close") || caller % 2 == 0 {
                            continue 'connect;
                        }
                    }
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        server.stop.cancel();
        for caller in callers {
            assert!(
                caller
                    .await
                    .expect("every request that was sent got its answer")
                    > 0
            );
        }
        server.stopped().await;
    }
}

/// Asks, and takes the answer's body.
async fn ask(stream: &mut UnixStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = answer(stream).await;
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A caller that asked so briskly that it has a lane, where one is free.
async fn brisk(server: &Server) -> UnixStream {
    let mut stream = server.connect().await;
    for _ in 0..4 {
        ask(&mut stream, "/x").await;
    }
    stream
}

#[tokio::test]
async fn a_brisk_caller_is_answered_by_a_thread_of_its_own_and_a_slow_one_by_the_event_loop() {
    let server = start(given());
    let event_loop = format!("{:?}", std::thread::current().id());
    let mut stream = server.connect().await;
    assert_eq!(ask(&mut stream, "/thread").await, event_loop);
    let lane = async { while ask(&mut stream, "/thread").await == event_loop {} };
    tokio::time::timeout(Duration::from_secs(20), lane)
        .await
        .unwrap();
    let back = async {
        let mut pause = lane::LINGER;
        loop {
            pause += Duration::from_millis(50);
            tokio::time::sleep(pause).await;
            if ask(&mut stream, "/thread").await == event_loop {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back)
        .await
        .unwrap();
    server.stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn who_connects_anew_is_answered_by_an_acceptor_and_who_stays_is_not() {
    let server = start(Given {
        tcp: true,
        ..given()
    });
    let event_loop = format!("{:?}", std::thread::current().id());
    async fn over(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> String {
        let request = b"GET /at-once/thread HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes[..read].to_vec()).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
    for _ in 0..20 {
        assert_ne!(over(server.connect().await).await, event_loop);
        let tcp = TcpStream::connect(server.tcp.clone().unwrap()).await;
        assert_ne!(over(tcp.unwrap()).await, event_loop);
    }
    let mut stays = server.connect().await;
    assert_ne!(ask(&mut stays, "/at-once/thread").await, event_loop);
    assert_eq!(ask(&mut stays, "/at-once/thread").await, event_loop);
    server.stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn silent_and_slow_callers_hold_no_acceptor() {
    let server = start(Given {
        connections: 2048,
        ..given()
    });
    let event_loop = format!("{:?}", std::thread::current().id());
    let mut silent = Vec::new();
    for n in 0..600 {
        let mut stream = server.connect().await;
        let begun: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /at-once/th",
            _ => b"GET /at-once/x HTTP/1.1\r\nHost: x\r\n\r\nGET",
        };
        stream.write_all(begun).await.unwrap();
        silent.push(stream);
        if n % 50 == 0 {
            let mut quick = server.connect().await;
            assert_ne!(ask(&mut quick, "/at-once/thread").await, event_loop);
        }
    }
    tokio::time::sleep(acceptor::STAYS * 2).await;
    for (n, stream) in silent.iter_mut().enumerate() {
        let rest = match n % 3 {
            0 => "GET /at-once/thread HTTP/1.1\r\nHost: x\r\n\r\n",
            1 => "read HTTP/1.1\r\nHost: x\r\n\r\n",
            _ => " /at-once/thread HTTP/1.1\r\nHost: x\r\n\r\n",
        };
        if n % 3 == 2 {
            assert!(answer(stream).await.ends_with("GET /at-once/x "));
        }
        stream.write_all(rest.as_bytes()).await.unwrap();
        assert!(answer(stream).await.ends_with(&event_loop), "{n}");
    }
    server.stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn who_closes_one_half_after_its_request_reads_the_answer_to_its_end() {
    let server = start(given());
    for _ in 0..100 {
        let mut stream = server.connect().await;
        stream
            .write_all(b"GET /at-once/x HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        assert!(rest(&mut stream).await.ends_with("GET /at-once/x "));
    }
}

#[tokio::test]
async fn over_tcp_no_answer_waits_for_an_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.http.tcp = "127.0.0.1:0".to_owned();
    let opened = open(&config).unwrap();
    let door = &opened.call[1];
    let _caller = TcpStream::connect(&door.name).await.unwrap();
    let accepted = door.waiting().unwrap();
    assert!(rustix::net::sockopt::tcp_nodelay(&accepted).unwrap());
}

#[tokio::test]
async fn more_brisk_callers_than_lanes_are_all_answered_in_order() {
    let server = start(Given {
        connections: 256,
        ..given()
    });
    let mut callers = JoinSet::new();
    for caller in 0..100 {
        let mut stream = server.connect().await;
        callers.spawn(async move {
            for n in 0..30 {
                let path = format!("/{caller}/{n}");
                assert_eq!(ask(&mut stream, &path).await, format!("GET {path} "));
            }
        });
    }
    callers.join_all().await;
    server.stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn what_has_to_wait_leaves_its_lane_and_comes_back_whole() {
    let server = start(Given {
        connections: 256,
        ..given()
    });
    // Answers that wait for somebody else, more than there are lanes.
    let mut waiting = Vec::new();
    for _ in 0..80 {
        let mut stream = brisk(&server).await;
        stream
            .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        server.shared.begun.notified().await;
        waiting.push(stream);
    }
    // An answer that its caller does not take.
    let mut unread = brisk(&server).await;
    unread
        .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    // A head and a body in pieces, several requests in one piece, and one that is half closed after it.
    let mut pieces = brisk(&server).await;
    for piece in [
        "POST /p HTTP/1.1\r\nHo",
        "st: x\r\nContent-Length: 4\r\n\r\nab",
        "cd",
    ] {
        pieces.write_all(piece.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(answer(&mut pieces).await.ends_with("POST /p abcd"));
    let both = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut pipelined = brisk(&server).await;
    pipelined.write_all(both.as_bytes()).await.unwrap();
    pipelined.shutdown().await.unwrap();
    let text = rest(&mut pipelined).await;
    assert!(
        text.contains("GET /1 ") && text.ends_with("GET /2 "),
        "{text}"
    );

    for stream in &mut waiting {
        server.shared.go.notify_one();
        assert!(answer(stream).await.ends_with("GET /slow "));
        assert_eq!(ask(stream, "/after").await, "GET /after ");
    }
    let mut large = Vec::new();
    while large.len() < 4 * 1024 * 1024 {
        let read = unread.read_buf(&mut large).await.unwrap();
        assert!(read > 0, "closed after {} bytes", large.len());
    }
    server.stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn the_drain_ends_in_time_whatever_callers_do() {
    let mut given = Given {
        tcp: true,
        ..given()
    };
    given.terms.drain_timeout = Duration::from_millis(300);
    let server = start(given);
    let mut half_a_head = server.connect().await;
    half_a_head.write_all(b"GET / HT").await.unwrap();
    let mut never = TcpStream::connect(server.tcp.clone().unwrap())
        .await
        .unwrap();
    never
        .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.shared.begun.notified().await;
    let mut takes_nothing = server.connect().await;
    takes_nothing
        .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let begun = Instant::now();
    server.stop.cancel();
    server.stopped().await;
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

#[tokio::test]
async fn callers_that_keep_the_server_waiting_give_way_to_others() {
    let server = start(Given {
        connections: 8,
        ..given()
    });
    let mut crowd = Vec::new();
    for n in 0..40 {
        let mut stream = server.connect().await;
        let _ = match n % 4 {
            0 => Ok(()),
            1 => stream.write_all(b"GET /half HT").await,
            2 => {
                stream
                    .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
                    .await
            }
            _ => {
                stream
                    .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
            }
        };
        crowd.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        let text = server
            .exchange(format!("GET /quick HTTP/1.1\r\nHost: x\r\n{CLOSE}").as_bytes())
            .await;
        assert!(text.ends_with("GET /quick "), "{text}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn one_caller_never_gets_every_place() {
    let room = Room::new(8);
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(room.enter(Some(1), true).await.unwrap());
    }
    assert!(room.enter(Some(1), true).await.is_none());
    for other in [Some(2), None] {
        held.push(room.enter(other, true).await.unwrap());
    }
    let leaving = room.callers().get(&Some(1)).unwrap().waiting.clone();
    let asked_to_leave = leaving.notified();
    let entering = room.enter(None, false);
    tokio::select! {
        () = asked_to_leave => {}
        _ = entering => panic!("there was no place"),
    }
    held.clear();
    assert!(room.callers().is_empty());
}

#[test]
fn descriptors_are_kept_from_callers_and_a_few_places_are_left() {
    for (configured, descriptors, places) in [
        (1024, 4096, 1024),
        (1024, 1152, 1024),
        (1024, 256, 128),
        (1024, 100, 25),
        (1, 0, 1),
    ] {
        let http = HttpConfig {
            max_connections: configured,
            max_watchers: 0,
            ..HttpConfig::default()
        };
        assert_eq!(most_places(&http, descriptors), (places, 0));
    }
}

#[tokio::test]
async fn a_caller_that_waits_for_its_answer_does_not_give_way() {
    let server = start(Given {
        connections: 2,
        ..given()
    });
    let mut waiting = server.connect().await;
    waiting
        .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    server.shared.begun.notified().await;
    for _ in 0..10 {
        let mut idle = server.connect().await;
        idle.write_all(b"GET /warm HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        answer(&mut idle).await;
        std::mem::forget(idle);
    }
    server.shared.go.notify_one();
    assert!(answer(&mut waiting).await.ends_with("GET /slow "));
}

#[tokio::test]
async fn a_socket_that_systemd_passes_is_taken_for_what_it_is() {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let door = listen::adopt(UnixListener::bind(&path).unwrap().into(), "sidetone").unwrap();
    assert_eq!(door.name, path.display().to_string());
    let connected = UnixStream::connect(&path).await.unwrap();
    assert!(matches!(door.waiting().unwrap(), Arrival::Unix(..)));
    drop((door, connected));
    assert!(path.exists(), "the file is systemd's");
    assert!(listen::adopt(TcpListener::bind("127.0.0.1:0").unwrap().into(), "sidetone").is_ok());
    assert!(listen::adopt(TcpListener::bind("0.0.0.0:0").unwrap().into(), "sidetone").is_err());
    assert!(listen::adopt(UdpSocket::bind("127.0.0.1:0").unwrap().into(), "sidetone").is_err());
    assert!(listen::adopt(UnixDatagram::unbound().unwrap().into(), "sidetone").is_err());
}

#[tokio::test]
async fn tcp_answers_too() {
    let server = start(Given {
        tcp: true,
        ..given()
    });
    let mut stream = TcpStream::connect(server.tcp.clone().unwrap())
        .await
        .unwrap();
    stream
        .write_all(format!("GET /tcp HTTP/1.1\r\nHost: x\r\n{CLOSE}").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with("GET /tcp "), "{text}");
}

#[tokio::test]
async fn a_socket_has_its_mode_and_its_directory_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.http.unix = dir.path().join("new/http.sock");
    config.http.unix_mode = FileMode(0o622);
    config.admin.unix = dir.path().join("admin/admin.sock");
    let opened = open(&config).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&config.http.unix), 0o622);
    assert_eq!(mode(&config.admin.unix), 0o600);
    assert_eq!(mode(&dir.path().join("new")), 0o755);
    assert_eq!(mode(&dir.path().join("admin")), 0o700);
    drop(opened);
    assert!(
        !config.http.unix.exists() && !config.admin.unix.exists(),
        "sockets are removed at the end"
    );
}

#[tokio::test]
async fn a_socket_in_use_is_told_and_a_left_over_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let path = config.http.unix.display().to_string();
    let first = open(&config).unwrap();
    let told = open(&config).unwrap_err().to_string();
    assert_eq!(
        told,
        format!("http.unix {path}: in use by another process; stop it or choose another path")
    );
    drop(first);
    // Somebody who knows nothing of the lock.
    let stranger = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(open(&config).unwrap_err().to_string(), told);
    drop(stranger);
    assert!(Path::new(&path).exists(), "left over");
    let again = open(&config).unwrap();
    assert!(
        std::fs::symlink_metadata(&path)
            .unwrap()
            .file_type()
            .is_socket()
    );
    drop(again);
}

#[tokio::test]
async fn nothing_but_a_socket_is_ever_removed_or_followed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let file = dir.path().join("precious");
    std::fs::write(&file, "x").unwrap();
    std::os::unix::fs::symlink(&file, &config.http.unix).unwrap();
    assert!(matches!(open(&config), Err(BindError::NoSocket { .. })));
    std::fs::remove_file(&config.http.unix).unwrap();
    std::fs::write(&config.http.unix, "x").unwrap();
    assert!(matches!(open(&config), Err(BindError::NoSocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    std::fs::remove_file(&config.http.unix).unwrap();
    std::fs::remove_file(dir.path().join("http.sock.lock")).unwrap();
    std::os::unix::fs::symlink(&file, dir.path().join("http.sock.lock")).unwrap();
    assert!(
        open(&config).is_err(),
        "nor is the lock a link to elsewhere"
    );
}

#[tokio::test]
async fn a_closed_door_lets_nobody_new_in_and_keeps_who_had_connected() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let door = open(&config).unwrap().call.remove(0);
    // A second name keeps the socket within reach when its own is gone: as for a caller that had just looked it up.
    let looked_up = dir.path().join("looked-up");
    std::fs::hard_link(&config.http.unix, &looked_up).unwrap();
    let connected = std::os::unix::net::UnixStream::connect(&config.http.unix).unwrap();
    door.refuse_new();
    assert!(!config.http.unix.exists());
    let late = std::os::unix::net::UnixStream::connect(&looked_up).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::ConnectionRefused);
    assert!(matches!(door.waiting(), Ok(Arrival::Unix(..))));
    assert!(door.waiting().is_err());
    drop(connected);
}

#[tokio::test]
async fn a_directory_that_anyone_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        open(&config),
        Err(BindError::OpenDirectory { .. })
    ));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(open(&config).is_ok());
}

#[tokio::test]
async fn a_directory_of_a_stranger_or_below_one_that_anyone_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("above/of/ours");
    std::fs::create_dir_all(&below).unwrap();
    let config = config(&below);
    let set = |mode| {
        let above = dir.path().join("above");
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o777);
    assert!(matches!(
        open(&config),
        Err(BindError::OpenDirectory { .. })
    ));
    set(0o1777);
    assert!(open(&config).is_ok());
    if !rustix::process::geteuid().is_root() {
        return; // Only root can give a directory away.
    }
    std::os::unix::fs::chown(&below, Some(65_533), None).unwrap();
    let told = open(&config).unwrap_err().to_string();
    assert!(told.contains("belongs to user 65533"), "{told}");
}

#[tokio::test]
async fn a_port_in_use_and_an_unknown_group_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(dir.path());
    config.http.tcp = taken.local_addr().unwrap().to_string();
    let told = open(&config).unwrap_err().to_string();
    assert_eq!(
        told,
        format!(
            "http.tcp {}: in use by another process; stop it or choose another port",
            config.http.tcp
        )
    );
    config.http.unix_group = "nobody-here".to_owned();
    assert!(
        open(&config)
            .unwrap_err()
            .to_string()
            .starts_with("http.unix_group: no group \"nobody-here\"")
    );
    assert!(!problems(&config).is_empty());
}

#[tokio::test]
async fn the_kernel_says_who_connected() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let opened = open(&config).unwrap();
    let door = &opened.call[0];
    let _caller = UnixStream::connect(&config.http.unix).await.unwrap();
    let accepted = door.waiting().unwrap();
    let peer = door.peer(&accepted, true).unwrap();
    assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid, rustix::process::getegid().as_raw());
    assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
    let mut mine: Vec<u32> = rustix::process::getgroups()
        .unwrap()
        .into_iter()
        .map(|gid| gid.as_raw())
        .collect();
    let mut told = peer.groups.clone();
    mine.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, mine);
}

/// A whole node on sockets of its own.
struct Whole {
    node: lookup::tests::Node,
    config: Config,
    call: Vec<String>,
}

fn whole() -> (Whole, Doors) {
    let dir = tempfile::tempdir().unwrap().keep();
    let mut config = config(&dir);
    config.http.tcp = "127.0.0.1:0".to_owned();
    config.admin.unix = dir.join("admin/admin.sock");
    let doors = bind(&config).unwrap();
    let call = doors.call().map(str::to_owned).collect();
    let node = lookup::tests::node_with(config.clone(), true);
    (Whole { node, config, call }, doors)
}

async fn say(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_whole_node_answers_calls_and_operators_and_stops() {
    let (Whole { node, config, call }, doors) = whole();
    let lookup::tests::Node {
        app,
        mut orders,
        dir: _rows,
        ..
    } = node;
    let (app, stop) = (Arc::new(app), CancellationToken::new());
    let serving = tokio::spawn(serve(Arc::clone(&app), doors, stop.clone()));
    let unix = || UnixStream::connect(&config.http.unix);
    let admin = || UnixStream::connect(&config.admin.unix);
    let request = |line: &str, host: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{CLOSE}{body}",
            body.len()
        )
    };

    let lookup = request("GET /v1/lookup?to=+14155550100", "anything", "");
    let text = say(unix().await.unwrap(), &lookup).await;
    assert!(
        text.starts_with("HTTP/1.1 200 ")
            && text.contains(r#"{"status":"ok","number":"+14155550100""#),
        "{text}"
    );
    // Over TCP only under a name of this host, and without credentials.
    let tcp = || TcpStream::connect(call[1].clone());
    let text = say(tcp().await.unwrap(), &lookup).await;
    assert!(
        text.starts_with("HTTP/1.1 403 ") && text.contains(r#"{"status":"forbidden""#),
        "{text}"
    );
    let text = say(
        tcp().await.unwrap(),
        &request("GET /v1/lookup?to=+14155550100", "localhost", ""),
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    let text = say(
        tcp().await.unwrap(),
        &request("GET /v1/credentials?to=+14155550100", "localhost", ""),
    )
    .await;
    assert!(
        text.contains(r#"{"status":"credentials_need_unix_socket""#),
        "{text}"
    );

    let text = say(
        admin().await.unwrap(),
        &request("GET /v1/admin/status", "localhost", ""),
    )
    .await;
    let body: serde_json::Value =
        serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        (&body["status"], &body["node"], &body["ready"]),
        (&"ok".into(), &"test".into(), &true.into())
    );
    assert_eq!(
        body["keys"],
        serde_json::json!([{"id": "k1", "seals": true}])
    );
    assert!(
        body["replica"].is_object()
            && body["feed"]["state"] == "idle"
            && body["quarantined"].is_array(),
        "{body}"
    );
    let text = say(
        admin().await.unwrap(),
        &request("GET /v1/lookup?to=+14155550100", "localhost", ""),
    )
    .await;
    assert!(
        text.starts_with("HTTP/1.1 404 "),
        "calls are not answered there: {text}"
    );
    let text = say(
        unix().await.unwrap(),
        &request("GET /v1/admin/status", "localhost", ""),
    )
    .await;
    assert!(
        text.starts_with("HTTP/1.1 404 "),
        "nor operators here: {text}"
    );

    // An order is placed although nobody waits for it; one that is waited for is reported.
    let refresh = |body: &str| request("POST /v1/admin/refresh", "localhost", body);
    let text = say(admin().await.unwrap(), &refresh(r#"{"scope":"all"}"#)).await;
    assert!(
        text.starts_with("HTTP/1.1 202 ") && text.ends_with(r#"{"status":"accepted"}"#),
        "{text}"
    );
    assert!(matches!(orders.try_recv(), Ok(Order::Refresh(..))));
    let feed = async {
        let Some(Order::Refresh(_, back)) = orders.recv().await else {
            panic!("another order")
        };
        back.send(Ok(crate::feed::handle::RefreshReport {
            read: 7,
            ..Default::default()
        }))
        .unwrap();
    };
    let body = refresh(r#"{"tenant":"acme","wait":true}"#);
    let (text, ()) = tokio::join!(async { say(admin().await.unwrap(), &body).await }, feed);
    assert!(
        text.starts_with("HTTP/1.1 200 ")
            && text.contains(r#"{"status":"ok","cursor":"","read":7"#),
        "{text}"
    );
    let text = say(
        admin().await.unwrap(),
        &request(
            "PUT /v1/admin/log",
            "localhost",
            r#"{"filter":"sidetone=loud"}"#,
        ),
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    let text = say(
        admin().await.unwrap(),
        &request("POST /v1/admin/keys/reload", "localhost", ""),
    )
    .await;
    assert!(
        text.starts_with("HTTP/1.1 409 ") && text.contains(r#"{"status":"bad_keyring""#),
        "{text}"
    );

    assert_eq!(
        app.metrics.connections_total.get(),
        5,
        "operators are not counted"
    );
    assert_eq!(app.metrics.lookups.get(Outcome::Forbidden), 1);
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving)
        .await
        .expect("stops")
        .unwrap();
    assert_eq!(app.metrics.connections.get(), 0);
    assert!(unix().await.is_err() && admin().await.is_err());
    std::fs::remove_dir_all(config.http.unix.parent().unwrap()).unwrap();
}

#[test]
fn watchers_get_the_descriptors_that_callers_leave() {
    let http = HttpConfig {
        max_connections: 1000,
        max_watchers: 500,
        ..HttpConfig::default()
    };
    for (descriptors, places) in [
        (u64::MAX, (1000, 500)),
        (1628, (1000, 500)),
        (1627, (1000, 499)),
        (1128, (1000, 0)),
        (256, (128, 0)),
    ] {
        assert_eq!(most_places(&http, descriptors), places, "{descriptors}");
    }
}
