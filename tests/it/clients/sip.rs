//! Real calls: SIPp calls through a real Kamailio, which asks a real node.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{SLACK, TOOLS, TOTAL, example, file, freeze, make_hard, program, with_luasocket};
use crate::cluster::scratch;
use crate::node::{ACME, AWAY, Node, PATIENCE, until};

/// A call of which nothing is waited for.
const PROMPT: Duration = Duration::from_millis(600);

fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// Whether somebody has this port of 127.0.0.1.
fn is_taken(port: u16) -> bool {
    let sockets = fs::read_to_string("/proc/net/udp").unwrap();
    sockets.contains(&format!(" 0100007F:{port:04X} "))
}

/// A process with its output in a file; told to end when dropped.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Self {
        let output = File::create(&log).unwrap();
        let child = command
            .current_dir(log.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|err| panic!("{command:?}: {err}; run scripts/ensure-clients"));
        Self { child, log }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Kamailio ends its workers by itself; those who work in the directory of the tests end with them in any case.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(3)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A proxy with our files as they would be copied, and who answers the calls that it lets through.
struct Proxy {
    dir: PathBuf,
    port: u16,
    kamailio: Process,
    _callee: Process,
}

/// What came of a call.
#[derive(Debug)]
struct Call {
    code: u16,
    /// The lines `X-Sidetone…` that the callee was sent.
    told: Vec<String>,
    took: Duration,
}

impl Call {
    fn told(&self, name: &str) -> Vec<&str> {
        let lines = self.told.iter().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(is, _)| *is == name)
            .map(|(_, value)| value)
            .collect()
    }
}

/// The code of the answer that ended the wait of the caller, and how long that was, out of SIPp's trace: messages, each after
/// a ruled line with the time.
fn final_answer(trace: &str) -> Option<(u16, Duration)> {
    let second = |message: &str| {
        let clock = message.split_whitespace().nth(1)?;
        let mut parts = clock.split(':').map_while(|part| part.parse::<f64>().ok());
        Some((parts.next()? * 60.0 + parts.next()?) * 60.0 + parts.next()?)
    };
    let mut messages = trace.split("----- ").skip(1);
    let asked = second(messages.next()?)?;
    messages.find_map(|message| {
        let line = message.lines().find(|line| line.starts_with("SIP/2.0 "))?;
        let code = line.get(8..11)?.parse().ok().filter(|code| *code >= 200)?;
        // Midnight may lie between the two.
        let took = (second(message)? - asked).rem_euclid(86400.0);
        Some((code, Duration::from_secs_f64(took)))
    })
}

impl Proxy {
    /// That asks in one of the ways; `more` are further definitions.
    async fn start(ask: &str, node: &Node, more: &[&str]) -> Self {
        let dir = scratch("kamailio");
        for (from, to) in [
            (format!("clients/kamailio/ask-{ask}.cfg"), "ask.cfg"),
            ("clients/kamailio/sidetone.cfg".into(), "sidetone.cfg"),
            (
                "clients/kamailio/sidetone_ask.lua".into(),
                "sidetone_ask.lua",
            ),
            ("clients/lua/sidetone.lua".into(), "sidetone.lua"),
            ("tests/it/clients/kamailio.cfg".into(), "kamailio.cfg"),
            ("tests/it/clients/uac.xml".into(), "uac.xml"),
            ("tests/it/clients/uas.xml".into(), "uas.xml"),
        ] {
            fs::copy(file(&from), dir.join(to)).unwrap();
        }
        let (port, callee_port) = (free_udp_port(), free_udp_port());
        let mut command = program("sipp");
        command
            .args([
                "-sf",
                "uas.xml",
                "-i",
                "127.0.0.1",
                "-nostdin",
                "-trace_msg",
            ])
            .args([
                "-message_file",
                "callee.trace",
                "-p",
                &callee_port.to_string(),
            ]);
        let callee = Process::start(command, dir.join("callee.log"));
        let mut command = program("kamailio");
        with_luasocket(&mut command, "5.1");
        let unpacked = fs::read_dir(TOOLS.join("root/usr/lib")).unwrap().flatten();
        let modules: Vec<String> = unpacked
            .map(|entry| entry.path())
            .chain(
                fs::read_dir("/usr/lib")
                    .unwrap()
                    .flatten()
                    .map(|entry| entry.path()),
            )
            .map(|path| path.join("kamailio/modules"))
            .filter(|path| path.is_dir())
            .map(|path| path.display().to_string())
            .collect();
        command
            .args(["-D", "-E", "-m", "32", "-M", "4", "-f", "kamailio.cfg"])
            .args(["-l", &format!("udp:127.0.0.1:{port}")])
            .args(["-L", &modules.join(":")])
            .arg("-w")
            .arg(&dir)
            .arg("-Y")
            .arg(&dir)
            .args(["-A", &format!("CALLEE=\"sip:127.0.0.1:{callee_port}\"")])
            .args([
                "-A",
                &format!(
                    "SIDETONE_HTTP=\"sidetone=>http://127.0.0.1:{}/v1\"",
                    node.tcp
                ),
            ])
            .args([
                "-A",
                &format!(
                    "SIDETONE_LUA=\"{}\"",
                    dir.join("sidetone_ask.lua").display()
                ),
            ])
            .args(more.iter().flat_map(|define| ["-A", define]))
            .env("SIDETONE_SOCKET", node.unix());
        let mut kamailio = Process::start(command, dir.join("kamailio.log"));
        until("Kamailio and the callee listen", async || {
            assert!(
                kamailio.child.try_wait().unwrap().is_none(),
                "{}",
                kamailio.log()
            );
            is_taken(port) && is_taken(callee_port)
        })
        .await;
        Self {
            dir,
            port,
            kamailio,
            _callee: callee,
        }
    }

    /// One call, made by SIPp.
    async fn call(&self, number: &str, account: &str) -> Call {
        let heard = || {
            let bytes = fs::read(self.dir.join("callee.trace")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let before = heard().len();
        let trace = scratch("caller").join("trace");
        let mut command = program("sipp");
        command
            .current_dir(&self.dir)
            .args([
                "-sf",
                "uac.xml",
                "-i",
                "127.0.0.1",
                "-nostdin",
                "-m",
                "1",
                "-trace_msg",
                "-timeout",
                "10s",
            ])
            .args(["-s", number, "-key", "account", account])
            .args(["-p", &free_udp_port().to_string(), "-message_file"])
            .arg(&trace)
            .arg(format!("127.0.0.1:{}", self.port));
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let trace = String::from_utf8_lossy(&fs::read(&trace).unwrap_or_default()).into_owned();
        let (code, took) = final_answer(&trace)
            .unwrap_or_else(|| panic!("no answer to {number}: {trace}{output:?}"));
        let mut told = Vec::new();
        if code == 200 {
            until("the callee has noted the call", async || {
                heard()[before..].contains("BYE ")
            })
            .await;
            let heard = heard();
            let invite = heard[before..]
                .split("\n\n")
                .find(|text| text.contains("INVITE sip:"));
            let lines = invite
                .unwrap()
                .lines()
                .filter(|line| line.starts_with("X-Sidetone"));
            told = lines.map(|line| line.trim_end().to_owned()).collect();
        }
        Call { code, told, took }
    }

    /// The codes of calls that come while nothing is to be waited for.
    async fn prompt(&self, number: &str) -> u16 {
        let call = self.call(number, "ACME-001234").await;
        assert!(call.took < PROMPT, "{number}: {call:?}");
        call.code
    }
}

/// What is promised whichever way Kamailio asks.
async fn calls_are_handled(ask: &str) {
    let db = example().await;
    let mut node = Node::with_example(&db, "").await;
    make_hard(&db).await;
    let proxy = Proxy::start(ask, &node, &[]).await;
    node.until(
        &format!("/v1/lookup?to={ACME}&account_ref=%C3%91%20B%2BC%26D%3DE"),
        |reply| reply.text("/language") == "pt-BR",
    )
    .await;

    node.level().await;

    let call = proxy.call("+14155550100", "ACME-001234").await;
    assert_eq!(call.code, 200);
    for (name, value) in [
        ("X-Sidetone", "ok"),
        ("X-Sidetone-Language", "es-AR"),
        ("X-Sidetone-Voice", "es-AR-Standard-A"),
        ("X-Sidetone-Tenant", "seguridad-acme-sa"),
        ("X-Sidetone-Recording", "1"),
        ("X-Sidetone-Stale", "0"),
    ] {
        // One of each: what the caller had forged is gone.
        assert_eq!(call.told(name), [value], "{call:?}");
    }
    let call = proxy.call("+14155550100", "Ñ B+C&D=E").await;
    assert_eq!(call.told("X-Sidetone-Language"), ["pt-BR"], "{call:?}");
    // Nothing of the call before is left where this one has nothing.
    let call = proxy.call("%2B541150000002", "").await;
    assert_eq!(
        call.told("X-Sidetone-Tenant"),
        ["guardianes-srl"],
        "{call:?}"
    );
    assert_eq!(call.told("X-Sidetone-Voice"), [""; 0], "{call:?}");
    assert_eq!(call.told("X-Sidetone-Recording"), ["0"], "{call:?}");

    for (number, code) in [
        ("+15005550006", 404),
        ("+542994000003", 403),
        ("12", 484),
        ("+14155550100%26to=%2B541150000002", 484),
        ("+14155550100%0D%0AX-Forged:%20yes", 484),
        ("$(rU)", 484),
    ] {
        assert_eq!(proxy.prompt(number).await, code, "{number}");
    }

    // Gone: no call waits, and the first one after its return is answered.
    node.stop();
    for _ in 0..3 {
        assert_eq!(proxy.prompt("+14155550100").await, 503);
    }
    node.start();
    node.answering().await;
    for _ in 0..3 {
        assert_eq!(proxy.prompt("+14155550100").await, 200);
    }

    // Hung: one call waits for the second it may, those after it for nothing.
    freeze(&node).await;
    let waits = proxy.call("+14155550100", "").await;
    let again = proxy.call("+14155550100", "").await;
    node.signal(Signal::CONT);
    assert_eq!((waits.code, again.code), (503, 503));
    assert!(
        waits.took >= TOTAL && waits.took < TOTAL + SLACK,
        "{waits:?}"
    );
    assert!(again.took < PROMPT, "{again:?}");
    let began = Instant::now();
    while proxy.call("+14155550100", "").await.code != 200 {
        assert!(began.elapsed() < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_through_kamailio_are_handled_as_sidetone_says_in_json_over_tcp() {
    calls_are_handled("json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_through_kamailio_are_handled_as_sidetone_says_in_a_form_over_tcp() {
    calls_are_handled("form").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_through_kamailio_are_handled_as_sidetone_says_to_lua_over_the_unix_socket() {
    calls_are_handled("lua").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_fallback_language_calls_go_on_and_are_marked_but_a_no_stays_a_no() {
    let db = example().await;
    let mut node = Node::with_example(&db, "").await;
    let proxy = Proxy::start("form", &node, &["SIDETONE_FALLBACK_LANGUAGE=\"es-419\""]).await;
    assert_eq!(proxy.prompt("+15005550006").await, 404);
    node.stop();
    let call = proxy.call("+15005550006", "").await;
    assert_eq!(call.code, 200);
    assert!(call.took < PROMPT, "{call:?}");
    assert_eq!(call.told("X-Sidetone"), ["unreachable"], "{call:?}");
    assert_eq!(call.told("X-Sidetone-Language"), ["es-419"], "{call:?}");
    assert_eq!(call.told("X-Sidetone-Tenant"), [""; 0], "{call:?}");
    // Back without Postgres: answered, and told to be old.
    node.start_stale().await;
    let call = proxy.call("+14155550100", "").await;
    assert_eq!(call.told("X-Sidetone-Language"), ["es-AR"], "{call:?}");
    assert_eq!(call.told("X-Sidetone-Stale"), ["1"], "{call:?}");
    // A node that cannot answer yet is no "no such number" either.
    let mut unsynced = Node::prepare(AWAY, "");
    unsynced.start();
    unsynced.answering().await;
    let proxy_before = Proxy::start("json", &unsynced, &[]).await;
    for _ in 0..2 {
        assert_eq!(proxy_before.prompt("+14155550100").await, 503);
    }
    assert!(proxy.kamailio.log().contains("rows that may be old"));
}
