//! What a node needs in order to start, what it says when it cannot, and what it makes of a damaged replica
//! (design sections 6 to 9).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::node::{ACME, AWAY, Node, PATIENCE, SECRET};

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
const RESOLVE: &str = "/v1/resolve?to=%2B14155550100&include=credentials&account_ref=ACME-001234&event_type=door_open&zone=Z1";

/// Nobody answers on any of the sockets. A listener of this process may live a moment longer, in a child of another
/// test between fork and exec.
fn nothing_listens(node: &Node) {
    let listens = || {
        let sockets = [node.unix(), node.path("admin/admin.sock")];
        let listening = sockets
            .into_iter()
            .filter(|socket| UnixStream::connect(socket).is_ok());
        let mut found: Vec<String> = listening
            .map(|socket| socket.display().to_string())
            .collect();
        found.extend(
            TcpStream::connect(("127.0.0.1", node.tcp))
                .is_ok()
                .then(|| node.tcp.to_string()),
        );
        found
    };
    let began = Instant::now();
    while !listens().is_empty() && began.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(listens(), [""; 0], "something listens");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_settings_file_with_three_mistakes_is_told_three_mistakes() {
    let node = Node::prepare(
        AWAY,
        "feed.heartbeat_evry = '1s'\nhttp.unix_mode = 'rw-rw----'\nlimits.rows_per_tenant = 0",
    );
    let file = node.path("sidetone.toml").display().to_string();
    let (code, told) = node.refused();
    assert_eq!(code, Some(2), "{told:?}");
    assert_eq!(told.len(), 3, "{told:?}");
    for (key, remedy) in [
        ("feed.heartbeat_evry", "did you mean heartbeat_every?"),
        ("http.unix_mode", "0660"),
        ("limits.rows_per_tenant", "between 1 and 10000"),
    ] {
        let line = told
            .iter()
            .find(|line| line.contains(&format!("{file}: {key}: ")));
        assert!(
            line.is_some_and(|line| line.starts_with("sidetone: ") && line.contains(remedy)),
            "{key}: {told:?}"
        );
    }
    nothing_listens(&node);
    assert!(
        !node.path("replica").exists() && !node.path("call").exists(),
        "made before the settings were right"
    );
    let check = node.cli(&["check"]);
    assert_eq!(
        (
            check.status.code(),
            String::from_utf8(check.stderr).unwrap().lines().count()
        ),
        (Some(2), 3)
    );
}

#[test]
fn a_variable_of_the_environment_goes_over_the_file_and_its_mistake_is_told_with_its_name() {
    let node = Node::prepare(AWAY, "");
    let output = node
        .command(&["run"])
        .env("SIDETONE_FEED__STALE_AFTER", "soon")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("SIDETONE_FEED__STALE_AFTER: feed.stale_after: "),
        "{told}"
    );
}

#[test]
fn what_keeps_a_node_from_starting_is_one_line_with_its_remedy_before_anything_is_served() {
    struct Case {
        what: &'static str,
        settings: &'static str,
        arrange: fn(&Node) -> Option<Box<dyn std::any::Any>>,
        code: i32,
        told: &'static [&'static str],
    }
    fn listen(path: PathBuf) -> Option<Box<dyn std::any::Any>> {
        fs::create_dir(path.parent().unwrap()).unwrap();
        Some(Box::new(UnixListener::bind(path).unwrap()))
    }
    let cases = [
        Case {
            what: "somebody answers on the call socket",
            settings: "",
            arrange: |node| listen(node.unix()),
            code: 1,
            told: &[
                "http.unix ",
                "/call/sidetone.sock: in use by another process; stop it or choose another path",
            ],
        },
        Case {
            what: "somebody answers on the admin socket",
            settings: "",
            arrange: |node| listen(node.path("admin/admin.sock")),
            code: 1,
            told: &[
                "admin.unix ",
                "/admin/admin.sock: in use by another process; stop it or choose another path",
            ],
        },
        Case {
            what: "somebody listens on the port",
            settings: "",
            arrange: |node| {
                Some(Box::new(
                    TcpListener::bind(("127.0.0.1", node.tcp)).unwrap(),
                ))
            },
            code: 1,
            told: &[
                "http.tcp 127.0.0.1:",
                "in use by another process; stop it or choose another port",
            ],
        },
        Case {
            what: "anybody may write to the socket's directory",
            settings: "",
            arrange: |node| {
                fs::create_dir(node.path("call")).unwrap();
                chmod(&node.path("call"), 0o777);
                None
            },
            code: 1,
            told: &["http.unix ", "anyone may write to its directory"],
        },
        Case {
            what: "no such group",
            settings: "http.unix_group = 'no-such-group'",
            arrange: |_| None,
            code: 2,
            told: &["http.unix_group: no group \"no-such-group\"", "create it"],
        },
        Case {
            what: "others may read the keyring",
            settings: "",
            arrange: |node| {
                chmod(&node.path("keyring.toml"), 0o644);
                None
            },
            code: 1,
            told: &[
                "keys.file: ",
                "/keyring.toml: mode 0644 lets others than its owner at it; chmod it to 0600",
            ],
        },
        Case {
            what: "there is no keyring",
            settings: "",
            arrange: |node| {
                fs::remove_file(node.path("keyring.toml")).unwrap();
                None
            },
            code: 1,
            told: &["keys.file: ", "/keyring.toml: ", "sidetone keygen"],
        },
        Case {
            what: "keys.raw names no key",
            settings: "keys.raw = 'k9'",
            arrange: |_| None,
            code: 2,
            told: &["keys.raw: the keyring has no key k9; name one of its keys"],
        },
        Case {
            what: "others may look into the replica's directory",
            settings: "",
            arrange: |node| {
                fs::create_dir(node.path("replica")).unwrap();
                chmod(&node.path("replica"), 0o750);
                None
            },
            code: 1,
            told: &["/replica: mode 0750 lets others in; chmod 0700"],
        },
        Case {
            what: "the replica's directory is a file",
            settings: "",
            arrange: |node| {
                fs::write(node.path("replica"), "mine").unwrap();
                None
            },
            code: 1,
            told: &["/replica: "],
        },
        Case {
            what: "the URL is none",
            settings: "postgres.url = 'mysql://me@db/platform-canary'",
            arrange: |_| None,
            code: 2,
            told: &["Postgres URL", "postgres://user@host:5432/database"],
        },
        Case {
            what: "no URL at all",
            settings: "postgres.url = ''",
            arrange: |_| None,
            code: 2,
            told: &["postgres.url is not set; set it or postgres.url_file"],
        },
        Case {
            what: "the file of the URL is not there",
            settings: "postgres.url = ''\npostgres.url_file = '/nonexistent/url'",
            arrange: |_| None,
            code: 2,
            told: &["postgres.url_file /nonexistent/url: cannot be read"],
        },
    ];
    for Case {
        what,
        settings,
        arrange,
        code,
        told,
    } in cases
    {
        let node = Node::prepare(AWAY, settings);
        let held = arrange(&node);
        let (ended, lines) = node.refused();
        assert_eq!((ended, lines.len()), (Some(code), 1), "{what}: {lines:?}");
        for words in told {
            assert!(
                lines[0].starts_with("sidetone: ") && lines[0].contains(words),
                "{what}: {words}: {lines:?}"
            );
        }
        assert!(!lines[0].contains("canary"), "a URL is repeated: {lines:?}");
        drop(held);
        nothing_listens(&node);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_another_daemon_uses_is_told_and_left_alone() {
    let db = Cluster::shared().database().await;
    let first = Node::with_example(&db, "").await;
    let settings = format!("replica.dir = '{}'", first.path("replica").display());
    let second = Node::prepare(&db.url(), &settings);
    let (code, told) = second.refused();
    assert_eq!(code, Some(1), "{told:?}");
    let told = told.join("\n");
    assert!(
        told.contains("/replica: in use by another process; stop it or change replica.dir"),
        "{told}"
    );
    nothing_listens(&second);
    assert_eq!(first.get(LOOKUP).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_settings_does_not_disturb_the_first() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let (code, told) = node.refused();
    assert_eq!((code, told.len()), (Some(1), 1), "{told:?}");
    assert_eq!(node.get(LOOKUP).await.status, 200);
    assert_eq!(node.get_tcp(LOOKUP).await.status, 200);
    assert_eq!(node.admin("GET", "/v1/admin/status", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_killed_daemon_left_is_replaced() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, "").await;
    node.kill();
    for socket in [node.unix(), node.path("admin/admin.sock")] {
        assert!(
            fs::symlink_metadata(&socket)
                .unwrap()
                .file_type()
                .is_socket()
        );
        assert!(UnixStream::connect(&socket).is_err());
    }
    node.start();
    node.answering().await;
    assert_eq!(node.get(LOOKUP).await.status, 200);
    assert_eq!(node.admin("GET", "/v1/admin/status", "").await.status, 200);
    assert!(node.stop().success());
    assert!(
        !node.unix().exists() && !node.path("admin/admin.sock").exists(),
        "sockets are left after a stop"
    );
}

#[test]
fn what_is_no_socket_at_a_sockets_path_is_not_touched() {
    let node = Node::prepare(AWAY, "");
    let elsewhere = node.path("elsewhere.sock");
    let listener = UnixListener::bind(&elsewhere).unwrap();
    let dead = node.path("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    fs::write(node.path("precious"), "precious").unwrap();
    fs::create_dir(node.path("call")).unwrap();
    let here = node.unix();
    type Put = Box<dyn Fn(&Path)>;
    let link = |to: PathBuf| -> Put { Box::new(move |path| symlink(&to, path).unwrap()) };
    let things: [(&str, Put); 6] = [
        (
            "a file",
            Box::new(|path| fs::write(path, "precious").unwrap()),
        ),
        (
            "a directory",
            Box::new(|path| fs::create_dir(path).unwrap()),
        ),
        ("a link to a file", link(node.path("precious"))),
        (
            "a link to a socket that is answered",
            link(elsewhere.clone()),
        ),
        ("a link to a socket that is not", link(dead.clone())),
        ("a link to nothing", link(node.path("nothing"))),
    ];
    for (what, put) in things {
        put(&here);
        let before = fs::symlink_metadata(&here).unwrap();
        let (code, told) = node.refused();
        assert_eq!((code, told.len()), (Some(1), 1), "{what}: {told:?}");
        assert!(
            told[0].contains("http.unix ") && told[0].contains("no socket; remove it"),
            "{what}: {told:?}"
        );
        let after = fs::symlink_metadata(&here).unwrap();
        assert_eq!(
            (before.file_type(), before.modified().unwrap()),
            (after.file_type(), after.modified().unwrap()),
            "{what}"
        );
        if after.is_dir() {
            fs::remove_dir(&here).unwrap()
        } else {
            fs::remove_file(&here).unwrap()
        }
    }
    assert_eq!(
        fs::read_to_string(node.path("precious")).unwrap(),
        "precious"
    );
    assert!(dead.exists() && !node.path("nothing").exists());
    UnixStream::connect(&elsewhere).unwrap();
    drop(listener);
}

/// The files that were set aside.
fn set_aside(node: &Node) -> Vec<PathBuf> {
    let names = fs::read_dir(node.path("replica"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    names
        .filter(|path| path.to_string_lossy().contains("damaged-"))
        .collect()
}

/// An answer without what changes from call to call.
fn lasting(reply: &crate::node::Reply) -> serde_json::Value {
    let mut body = reply.json();
    let fields = body.as_object_mut().unwrap();
    for name in ["staleness_ms", "stale", "local_time"] {
        fields.remove(name);
    }
    body
}

/// A stopped node whose last commit matters, the bytes of its replica, and the right answer.
async fn stopped(db: &crate::cluster::Db<'_>) -> (Node, Vec<u8>, serde_json::Value) {
    let mut node = Node::with_example(db, "").await;
    db.sql("update public.tenant_phone_numbers set label = 'newest' where e164 = '+14155550100'")
        .await;
    node.until(LOOKUP, |reply| reply.text("/label") == "newest")
        .await;
    let right = node.get(RESOLVE).await;
    assert_eq!(right.text("/credentials/openai/default"), SECRET);
    assert!(node.stop().success());
    let bytes = fs::read(node.path("replica/replica.redb")).unwrap();
    (node, bytes, lasting(&right))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_a_flipped_byte_is_never_answered_from_wrongly() {
    const PLACES: usize = 48;
    let db = Cluster::shared().database().await;
    let (mut node, bytes, right) = stopped(&db).await;
    node.configure(AWAY, "");
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    // The first pages hold the header; after that, evenly over what is in use.
    let header = used.iter().copied().take_while(|at| *at < 512).step_by(11);
    let others = used.iter().copied().step_by(used.len() / PLACES);
    let (mut kept, mut begun_anew) = (0, 0);
    for at in header.chain(others) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x5a;
        fs::write(node.path("replica/replica.redb"), &damaged).unwrap();
        node.start();
        node.answering().await;
        let reply = node.get(RESOLVE).await;
        match reply.status {
            200 => {
                assert_eq!(lasting(&reply), right, "wrong with byte {at} flipped");
                kept += 1;
            }
            503 => {
                assert_eq!(reply.text("/status"), "not_ready", "byte {at}: {reply:?}");
                begun_anew += 1;
            }
            _ => panic!("with byte {at} flipped: {reply:?}"),
        }
        for unknown in ["%2B541150000002", "%2B542994000003"] {
            let reply = node.get(&format!("/v1/lookup?to={unknown}")).await;
            assert_ne!(reply.text("/status"), "unknown_number", "byte {at}");
        }
        node.kill();
    }
    println!("{kept} kept, {begun_anew} begun anew");
    assert!(
        begun_anew > PLACES / 4,
        "{begun_anew} of {} noticed",
        kept + begun_anew
    );
    assert!(
        set_aside(&node).len() <= 2,
        "damaged files pile up: {:?}",
        set_aside(&node)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_is_set_aside_and_rebuilt_and_without_postgres_the_node_is_not_ready() {
    let db = Cluster::shared().database().await;
    let (mut node, bytes, right) = stopped(&db).await;
    let mut flipped = bytes.clone();
    // Every page but the header's.
    flipped[4096..]
        .chunks_mut(512)
        .for_each(|sector| sector[100] ^= 0xff);
    let damages: [(&str, Vec<u8>); 6] = [
        ("flipped all over", flipped),
        ("cut in the middle", bytes[..bytes.len() / 2].to_vec()),
        ("cut within the header", bytes[..100].to_vec()),
        ("zeros", vec![0; bytes.len()]),
        (
            "zeros after the first page",
            [&bytes[..4096], &vec![0; bytes.len() - 4096]].concat(),
        ),
        ("something else", b"once upon a time\n".repeat(5000)),
    ];
    for (what, damaged) in damages {
        let file = node.path("replica/replica.redb");
        for aside in set_aside(&node) {
            fs::remove_file(aside).unwrap();
        }
        fs::write(&file, &damaged).unwrap();
        node.configure(AWAY, "");
        node.start();
        node.answering().await;
        let reply = node.get(LOOKUP).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (503, "not_ready".to_owned()),
            "{what}"
        );
        assert_eq!(node.get("/readyz").await.status, 503, "{what}");
        let aside = set_aside(&node);
        assert_eq!(aside.len(), 1, "{what}: {aside:?}");
        assert!(
            node.log().contains("the replica was set aside"),
            "{what}: {}",
            node.log()
        );
        node.kill();
        fs::write(&file, &damaged).unwrap();
        node.configure(&db.url(), "");
        node.start();
        node.synced().await;
        assert_eq!(lasting(&node.get(RESOLVE).await), right, "{what}");
        node.stop();
    }
    // Rebuilt for good.
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    assert_eq!(lasting(&node.get(RESOLVE).await), right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_foreign_keyring_is_set_aside_and_without_postgres_the_node_is_not_ready() {
    let db = Cluster::shared().database().await;
    let (mut node, ..) = stopped(&db).await;
    fs::rename(node.path("keyring.toml"), node.path("keyring.old")).unwrap();
    let keygen = node.cli(&[
        "keygen",
        "--file",
        node.path("keyring.toml").to_str().unwrap(),
        "--id",
        "k1",
    ]);
    assert!(keygen.status.success());
    node.configure(AWAY, "");
    node.start();
    node.answering().await;
    assert_eq!(node.get(LOOKUP).await.text("/status"), "not_ready");
    assert_eq!(set_aside(&node).len(), 1);
    assert!(
        node.log().contains("keys that the keyring no longer has"),
        "{}",
        node.log()
    );
    node.stop();
    node.configure(&db.url(), "");
    node.start();
    node.synced().await;
    let reply = node.get(RESOLVE).await;
    assert_eq!(
        (reply.status, reply.text("/credentials_withheld")),
        (200, r#"["openai/default"]"#.to_owned())
    );
    assert_eq!(reply.text("/credentials"), "{}");
}

/// Time from exec to the first right answer, credentials included.
fn first_answer(node: &mut Node) -> Duration {
    let began = Instant::now();
    node.start();
    let request =
        format!("GET /v1/resolve?to={ACME}&include=credentials HTTP/1.0\r\nHost: x\r\n\r\n");
    loop {
        assert!(began.elapsed() < PATIENCE, "no answer");
        if let Ok(mut stream) = UnixStream::connect(node.unix()) {
            let mut answer = String::new();
            stream.write_all(request.as_bytes()).unwrap();
            stream.read_to_string(&mut answer).unwrap();
            let took = began.elapsed();
            assert!(
                answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"),
                "{answer}"
            );
            assert!(
                answer.contains(SECRET) && answer.contains("\"label\":\"newest\""),
                "{answer}"
            );
            return took;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Promise 1 of design section 9.
const FIRST_ANSWER: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn the_first_right_answer_does_not_wait_for_a_postgres_that_is_away() {
    let db = Cluster::shared().database().await;
    let (mut node, ..) = stopped(&db).await;
    // Connections are made by the kernel, and nobody ever answers.
    let black_hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = black_hole.local_addr().unwrap().port();
    for (what, url) in [
        ("refused", AWAY.to_owned()),
        (
            "black-holed",
            format!("postgres://sidetone@127.0.0.1:{port}/none?sslmode=disable"),
        ),
        (
            "black-holed within TLS",
            format!("postgres://sidetone@127.0.0.1:{port}/none"),
        ),
        (
            "unresolvable",
            "postgres://sidetone@no-such-host.invalid/none?sslmode=disable".to_owned(),
        ),
    ] {
        node.configure(&url, "");
        let mut took: Vec<Duration> = (0..5)
            .map(|_| {
                let took = first_answer(&mut node);
                node.kill();
                took
            })
            .collect();
        took.sort();
        println!("{what}: {took:?}");
        assert!(took[2] < FIRST_ANSWER, "{what}: {took:?}");
    }
}
