//! The service manager as a node knows it: sockets that outlive the process, readiness, the watchdog (promise 9).

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::cluster::Cluster;
use crate::node::{AWAY, Node, PATIENCE, until};
use crate::ops::{Door, whole_answer};

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";

/// A caller that lets so much time pass between connecting and asking is not under way any more.
const ASKS_WITHIN: Duration = Duration::from_millis(200);

/// What callers saw.
#[derive(Default)]
struct Seen {
    answered: AtomicU32,
    closed_between: AtomicU32,
}

/// Asks without end, and fails where a connection is refused or a request is lost.
async fn ask_without_end(
    door: Door,
    keep_alive: bool,
    restarts: Arc<AtomicU32>,
    enough: Arc<AtomicBool>,
    seen: Arc<Seen>,
) {
    let kind = if keep_alive { "keep-alive" } else { "close" };
    let request = format!("GET {LOOKUP} HTTP/1.1\r\nHost: localhost\r\nConnection: {kind}\r\n\r\n");
    while !enough.load(Ordering::SeqCst) {
        let mut stream = door
            .connect()
            .await
            .unwrap_or_else(|err| panic!("a connection was refused ({kind}): {err}"));
        let connected = Instant::now();
        let mut first = true;
        while !enough.load(Ordering::SeqCst) {
            let before = restarts.load(Ordering::SeqCst);
            let sent = stream.write_all(request.as_bytes()).await;
            // Sent while nobody stopped the daemon: nothing excuses.
            let excused = before % 2 == 1 || restarts.load(Ordering::SeqCst) != before;
            let slow = connected.elapsed() > ASKS_WITHIN;
            let reply = match sent {
                Ok(()) => whole_answer(&mut *stream).await,
                Err(_) => None,
            };
            let Some(reply) = reply else {
                assert!(
                    excused && (!first || slow),
                    "a request was lost ({kind}, first: {first}, stopping: {excused})"
                );
                seen.closed_between.fetch_add(1, Ordering::Relaxed);
                break;
            };
            assert_eq!(reply.status, 200, "{reply:?}");
            seen.answered.fetch_add(1, Ordering::Relaxed);
            if !keep_alive || reply.closes() {
                break;
            }
            first = false;
        }
    }
}

/// The sockets that a service manager holds for a node.
struct Sockets {
    unix: std::os::unix::net::UnixListener,
    tcp: std::net::TcpListener,
    admin: std::os::unix::net::UnixListener,
}

impl Sockets {
    fn of(node: &Node) -> Self {
        for name in ["call", "admin"] {
            std::fs::create_dir(node.path(name)).unwrap();
        }
        Self {
            unix: std::os::unix::net::UnixListener::bind(node.unix()).unwrap(),
            tcp: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            admin: std::os::unix::net::UnixListener::bind(node.path("admin/admin.sock")).unwrap(),
        }
    }

    fn passed(&self) -> [OwnedFd; 3] {
        [
            self.unix.try_clone().unwrap().into(),
            self.tcp.try_clone().unwrap().into(),
            self.admin.try_clone().unwrap().into(),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_started_anew_under_load_refuses_no_connection_and_loses_no_request() {
    const RESTARTS: u32 = 6;
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.stop();
    let _ = std::fs::remove_dir_all(node.path("call"));
    let _ = std::fs::remove_dir_all(node.path("admin"));
    let sockets = Sockets::of(&node);
    node.start_with_sockets(sockets.passed());
    node.answering().await;
    assert!(
        node.log().contains("another place than the settings name"),
        "nobody hears that http.tcp has no effect: {}",
        node.log()
    );
    // Odd while the daemon is started anew.
    let (restarts, enough) = <(Arc<AtomicU32>, Arc<AtomicBool>)>::default();
    let seen = Arc::new(Seen::default());
    let tcp = sockets.tcp.local_addr().unwrap().port();
    let doors = [Door::Unix(node.unix()), Door::Tcp(tcp)];
    let callers: Vec<_> = (0..16_usize)
        .map(|i| {
            tokio::spawn(ask_without_end(
                doors[i % 2].clone(),
                i % 4 < 2,
                restarts.clone(),
                enough.clone(),
                seen.clone(),
            ))
        })
        .collect();
    for round in 0..RESTARTS {
        let before = seen.answered.load(Ordering::Relaxed);
        until("callers are answered", async || {
            assert!(
                !callers.iter().any(tokio::task::JoinHandle::is_finished),
                "a caller gave up in round {round}"
            );
            seen.answered.load(Ordering::Relaxed) > before + 200
        })
        .await;
        restarts.fetch_add(1, Ordering::SeqCst);
        assert!(node.stop().success());
        assert!(
            node.unix().exists(),
            "the socket is not the node's to remove"
        );
        node.start_with_sockets(sockets.passed());
        node.answering().await;
        restarts.fetch_add(1, Ordering::SeqCst);
    }
    enough.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(
        seen.closed_between.load(Ordering::Relaxed) > 0,
        "no kept connection saw a restart"
    );
    assert_eq!(node.admin("GET", "/v1/admin/status", "").await.status, 200);
    // Without a daemon a caller waits for one.
    node.stop();
    let late = tokio::spawn({
        let socket = node.unix();
        async move {
            let stream = UnixStream::connect(socket).await.unwrap();
            let request = format!("GET {LOOKUP} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            crate::node::exchange(stream, &request).await.unwrap()
        }
    });
    node.start_with_sockets(sockets.passed());
    assert_eq!(late.await.unwrap().status, 200);
}

/// What a node tells its service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// After so long without food the watchdog bites.
const BITES_AFTER: Duration = Duration::from_secs(2);

impl Manager {
    fn of(node: &Node) -> Self {
        let path = node.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    /// Starts the node under this manager's watchdog.
    fn start(&self, node: &mut Node) {
        node.start_with(&[
            ("NOTIFY_SOCKET", self.path.to_str().unwrap()),
            ("WATCHDOG_USEC", &BITES_AFTER.as_micros().to_string()),
        ]);
    }

    /// Whether this is told within so long.
    fn hears(&self, what: &str, within: Duration) -> bool {
        let began = Instant::now();
        let mut told = [0; 4096];
        while let Some(rest) = within
            .checked_sub(began.elapsed())
            .filter(|rest| !rest.is_zero())
        {
            self.socket.set_read_timeout(Some(rest)).unwrap();
            if let Ok(length) = self.socket.recv(&mut told)
                && String::from_utf8_lossy(&told[..length])
                    .lines()
                    .any(|line| line == what)
            {
                return true;
            }
        }
        false
    }

    /// Fed twice, so once after now.
    fn is_fed(&self, when: &str) {
        for _ in 0..2 {
            assert!(self.hears("WATCHDOG=1", PATIENCE), "not fed {when}");
        }
    }

    /// Not fed for so long that the watchdog bites.
    fn is_not_fed(&self, when: &str) {
        // What was told before, and an answer that may be on its way.
        while self.hears("WATCHDOG=1", BITES_AFTER / 4) {}
        assert!(!self.hears("WATCHDOG=1", BITES_AFTER), "fed {when}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_by_answers_of_the_node_to_itself_and_by_nothing_else() {
    let db = Cluster::shared().database().await;
    // The daemon's own user has no right of its own here, and may not have one.
    let mut node = Node::with_example(
        &db,
        "http.max_connections = 4\nhttp.header_timeout = '1m'\naccess = [{user = 'nobody', allow = ['config']}]",
    )
    .await;
    node.stop();
    let manager = Manager::of(&node);
    manager.start(&mut node);
    assert!(manager.hears("READY=1", PATIENCE));
    manager.is_fed("by a healthy node");
    until("numbers are asked for", async || {
        node.log().contains("the node answers itself")
    })
    .await;
    assert!(!node.log().contains("access refused"), "{}", node.log());

    // Nobody finds the node any more.
    let (socket, away) = (node.unix(), node.path("call/away"));
    std::fs::rename(&socket, &away).unwrap();
    manager.is_not_fed("while callers find no socket");
    assert!(node.log().contains("the node does not answer itself"));
    // What stands there takes connections and answers none, as a node would that hangs.
    let hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    manager.is_not_fed("while nobody is answered");
    assert!(node.log().contains("not within 500ms"), "{}", node.log());
    drop(hangs);
    std::fs::rename(&away, &socket).unwrap();
    manager.is_fed("though callers are answered again");

    // Whoever fills the node with half a question has to give way.
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream
            .write_all(b"GET /v1/lookup HTTP/1.1\r\n")
            .await
            .unwrap();
        stalled.push(stream);
    }
    manager.is_fed("by a full node");
    drop(stalled);

    // A stop is told, and is no reason to bite.
    node.signal(rustix::process::Signal::TERM);
    assert!(manager.hears("STOPPING=1", PATIENCE));
    assert!(node.ended().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_had_a_copy_feeds_the_watchdog_over_either_door_and_counts_none_of_it() {
    for settings in ["", "http.unix = ''"] {
        let mut node = Node::prepare(AWAY, settings);
        let manager = Manager::of(&node);
        manager.start(&mut node);
        assert!(manager.hears("READY=1", PATIENCE), "{settings}");
        manager.is_fed(settings);
        if settings.is_empty() {
            // This question alone.
            assert_eq!(node.metric("sidetone_connections_total").await, 1.0);
        }
        node.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_asks_itself_is_not_counted_among_the_calls() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.stop();
    let manager = Manager::of(&node);
    manager.start(&mut node);
    manager.is_fed("by a healthy node");
    manager.is_fed("by a healthy node");
    assert_eq!(
        node.metric(r#"sidetone_lookups_total{outcome="ok"}"#).await,
        0.0
    );
    let log = node.log();
    assert!(
        log.lines()
            .any(|line| line.contains("the node answers itself") && line.contains("200")),
        "{log}"
    );
    for number in ["4155550100", "2994000003", "1150000002"] {
        assert!(!log.contains(number), "{number} in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_by_status_tells_answering_from_ready_and_ready_from_fresh() {
    let code = |node: &Node, more: &[&str]| {
        let output = node.cli(&[&["status"], more].concat());
        output.status.code()
    };
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(AWAY, "");
    for args in [&[][..], &["--ready"], &["--fresh"]] {
        assert_eq!(code(&node, args), Some(3), "{args:?}");
    }
    node.start();
    node.answering().await;
    assert_eq!(code(&node, &[]), Some(0));
    assert_eq!(code(&node, &["--ready"]), Some(1));
    assert_eq!(code(&node, &["--fresh", "--json"]), Some(1));

    let mut node = Node::with_example(&db, "").await;
    node.level().await;
    for args in [&["--ready"][..], &["--fresh"], &["--ready", "--json"]] {
        assert_eq!(code(&node, args), Some(0), "{args:?}");
    }
    node.stop();
    node.configure(
        AWAY,
        "feed.stale_after = '1s'\nfeed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '200ms'",
    );
    node.start();
    node.answering().await;
    until("the copy is stale", async || {
        code(&node, &["--fresh"]) == Some(1)
    })
    .await;
    assert_eq!(code(&node, &["--ready"]), Some(0));
}
