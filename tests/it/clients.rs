//! The files of `clients/`, as they would be copied, against a real node: what a caller gets, and what it gets while
//! sidetone is away, hung, slow, restarted. `scripts/ensure-clients` brings the programs.

mod golden;
mod sip;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use percent_encoding::percent_decode_str;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Db, scratch};
use crate::node::{ACME, AWAY, Node, PATIENCE, SECRET, until};

/// What a question may take, and a program be late by on a busy machine.
const TOTAL: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_millis(1200);
/// And one that starts another program for each question.
const START: Duration = Duration::from_secs(2);

const LIBRARIES: [&str; 8] = [
    "bash", "python", "httpx", "aiohttp", "node", "lua5.1", "lua5.4", "go",
];

/// Where `scripts/ensure-clients` has put what it could not find installed.
pub(super) static TOOLS: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients");
    let there = |file: &str| dir.join(file).is_file();
    assert!(
        there("root/.packages") && there("venv/requirements.txt"),
        "the programs that the clients are tried with are not in {}: run scripts/ensure-clients",
        dir.display()
    );
    dir
});

/// A file of this repository.
pub(super) fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program that is installed or was unpacked, and finds its libraries.
pub(super) fn program(name: &str) -> Command {
    let root = TOOLS.join("root/usr");
    let unpacked = ["bin", "sbin"].map(|dir| root.join(dir).join(name));
    let found = unpacked.into_iter().find(|path| path.is_file());
    let mut command = Command::new(found.unwrap_or_else(|| name.into()));
    let libraries: Vec<PathBuf> = fs::read_dir(root.join("lib"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .flat_map(|path| [path.join("kamailio"), path])
        .collect();
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LD_LIBRARY_PATH", std::env::join_paths(&libraries).unwrap())
        .stdin(Stdio::null());
    command
}

/// Tells a Lua of this version where LuaSocket was unpacked; `;;` is where it stands when it is installed.
pub(super) fn with_luasocket(command: &mut Command, version: &str) {
    let root = TOOLS.join("root/usr");
    let native = fs::read_dir(root.join("lib"))
        .into_iter()
        .flatten()
        .flatten();
    let native = native
        .map(|entry| entry.path().join("lua").join(version))
        .find(|path| path.is_dir())
        .unwrap_or_default();
    command
        .env(
            "LUA_PATH",
            format!("{}/share/lua/{version}/?.lua;;", root.display()),
        )
        .env("LUA_CPATH", format!("{}/?.so;;", native.display()));
}

/// The Go driver with a copy of the client beside it.
static GO_DRIVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = scratch("go");
    fs::create_dir(dir.join("sidetone")).unwrap();
    let module =
        "module drive\n\ngo 1.18\n\nrequire sidetone v0.0.0\n\nreplace sidetone => ./sidetone\n";
    fs::write(dir.join("go.mod"), module).unwrap();
    fs::write(dir.join("sidetone/go.mod"), "module sidetone\n\ngo 1.18\n").unwrap();
    fs::copy(file("tests/it/clients/drive.go"), dir.join("drive.go")).unwrap();
    fs::copy(
        file("clients/go/sidetone.go"),
        dir.join("sidetone/sidetone.go"),
    )
    .unwrap();
    let output = program("go")
        .current_dir(&dir)
        .env("GOCACHE", TOOLS.join("go-cache"))
        .env("GOFLAGS", "-mod=mod")
        .env("GOPROXY", "off")
        .env("GOTOOLCHAIN", "local")
        .env("HOME", &dir)
        .args(["build", "-o", "drive", "."])
        .output()
        .unwrap_or_else(|err| panic!("go: {err}; run scripts/ensure-clients"));
    assert!(output.status.success(), "{output:?}");
    dir.join("drive")
});

/// A program that uses one of the clients: a question a line, an answer a line.
struct Caller {
    name: &'static str,
    child: Child,
    stdin: ChildStdin,
    told: mpsc::UnboundedReceiver<String>,
    complaints: PathBuf,
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} said\n{}", self.name, self.complaints());
        }
    }
}

/// What a client told of one question.
#[derive(Debug)]
struct Told {
    fields: BTreeMap<String, String>,
    took: Duration,
}

impl Told {
    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// `answer`, `refused` or `unavailable`, and the status.
    fn verdict(&self) -> (&str, &str) {
        (self.get("kind"), self.get("status"))
    }
}

impl Caller {
    fn start(name: &'static str, socket: &Path) -> Self {
        let dir = scratch(name);
        let drive = |extension: &str| file(&format!("tests/it/clients/drive.{extension}"));
        let mut command = match name {
            "bash" => program("bash"),
            "node" => program("node"),
            "go" => Command::new(GO_DRIVER.as_path()),
            lua if lua.starts_with("lua") => program(lua),
            _ => Command::new(TOOLS.join("venv/bin/python3")),
        };
        match name {
            "bash" => command.arg(drive("bash")),
            "node" => command.arg(drive("mjs")),
            "go" => &mut command,
            "lua5.1" | "lua5.4" => {
                with_luasocket(&mut command, name.trim_start_matches("lua"));
                command.arg(drive("lua")).arg(file("clients/lua"))
            }
            "python" => command.arg(drive("py")).arg("sidetone"),
            other => command.arg(drive("py")).arg(format!("sidetone_{other}")),
        };
        let complaints = dir.join("stderr");
        let mut child = command
            .arg(socket)
            .current_dir(&dir)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUTF8", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&complaints).unwrap())
            .spawn()
            .unwrap_or_else(|err| panic!("{name}: {err}; run scripts/ensure-clients"));
        let (tell, told) = mpsc::unbounded_channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self {
            name,
            stdin: child.stdin.take().unwrap(),
            child,
            told,
            complaints,
        }
    }

    /// Waits until it could be asked: what a program takes to start is not the client's.
    async fn ready(&mut self) {
        let line = tokio::time::timeout(PATIENCE, self.told.recv()).await;
        assert_eq!(line, Ok(Some("ready".into())), "{}", self.name);
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap_or_default()
    }

    /// `view=lookup&to=…`
    async fn ask(&mut self, question: &str) -> Told {
        let began = Instant::now();
        writeln!(self.stdin, "{question}").unwrap();
        let line = tokio::time::timeout(PATIENCE, self.told.recv()).await;
        let Ok(Some(line)) = line else {
            panic!("{} does not answer {question}", self.name);
        };
        let took = began.elapsed();
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let fields = line.split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Told {
            fields: fields.collect(),
            took,
        }
    }

    /// The question that everybody can answer.
    async fn lookup(&mut self) -> Told {
        self.ask(&format!("view=lookup&to={ACME}")).await
    }

    /// Whether it keeps its connection from one question to the next.
    fn keeps(&self) -> bool {
        self.name != "bash"
    }
}

/// Every client, each of them asking there.
async fn everybody(socket: &Path) -> Vec<Caller> {
    all_ready(LIBRARIES.map(|name| Caller::start(name, socket)).into()).await
}

async fn all_ready(mut callers: Vec<Caller>) -> Vec<Caller> {
    for caller in &mut callers {
        caller.ready().await;
    }
    callers
}

/// The same question to each at once.
async fn all(callers: &mut [Caller], question: &str) -> Vec<(&'static str, Told)> {
    join_all(
        callers
            .iter_mut()
            .map(async |caller| (caller.name, caller.ask(question).await)),
    )
    .await
}

/// Each is told so, within a time.
async fn all_told(callers: &mut [Caller], question: &str, verdict: (&str, &str), within: Duration) {
    for (name, told) in all(callers, question).await {
        assert_eq!(told.verdict(), verdict, "{name}, {question}: {told:?}");
        let start = if name == "bash" {
            START
        } else {
            Duration::ZERO
        };
        assert!(told.took < within + start, "{name}, {question}: {told:?}");
    }
}

/// What stands between a client and the node does with the next questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Pass,
    /// Ends the connection when one question comes, as sidetone does that closes an idle connection in that moment.
    CutOnce,
    /// The same with every question.
    Cut,
    /// Passes the answer on a byte at a time, each in time for itself.
    Drip,
}

/// Between one client and the node: counts, and does as it is told.
struct Tap {
    path: PathBuf,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

struct Seen {
    manner: Mutex<Manner>,
    connections: AtomicUsize,
    open: AtomicUsize,
    questions: AtomicUsize,
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tap {
    fn before(node: &Node) -> Self {
        let path = scratch("tap").join("sidetone.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let seen = Arc::new(Seen {
            manner: Mutex::new(Manner::Pass),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            questions: AtomicUsize::new(0),
        });
        let (upstream, sees) = (node.unix(), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (upstream, sees) = (upstream.clone(), sees.clone());
                tokio::spawn(async move {
                    sees.connections.fetch_add(1, Ordering::SeqCst);
                    sees.open.fetch_add(1, Ordering::SeqCst);
                    let _ = sees.carry(client, &upstream).await;
                    sees.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { path, seen, task }
    }

    fn set(&self, manner: Manner) {
        *self.seen.manner.lock().unwrap() = manner;
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    fn questions(&self) -> usize {
        self.seen.questions.load(Ordering::SeqCst)
    }
}

impl Seen {
    /// Until one side ends the connection.
    async fn carry(&self, mut client: UnixStream, upstream: &Path) -> std::io::Result<()> {
        let mut node = UnixStream::connect(upstream).await?;
        let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
        loop {
            tokio::select! {
                read = client.read(&mut asked) => {
                    let question = &asked[..read?];
                    if question.is_empty() {
                        return Ok(());
                    }
                    self.questions.fetch_add(1, Ordering::SeqCst);
                    let manner = {
                        let mut manner = self.manner.lock().unwrap();
                        let now = *manner;
                        if now == Manner::CutOnce {
                            *manner = Manner::Pass;
                        }
                        now
                    };
                    if matches!(manner, Manner::Cut | Manner::CutOnce) {
                        return Ok(());
                    }
                    node.write_all(question).await?;
                }
                read = node.read(&mut answered) => {
                    let answer = &answered[..read?];
                    if answer.is_empty() {
                        return Ok(());
                    }
                    if *self.manner.lock().unwrap() == Manner::Drip {
                        for byte in answer.chunks(1) {
                            client.write_all(byte).await?;
                            tokio::time::sleep(Duration::from_millis(12)).await;
                        }
                    } else {
                        client.write_all(answer).await?;
                    }
                }
            }
        }
    }
}

/// A tap before the node for each client, and the client behind it.
async fn everybody_tapped(node: &Node) -> (Vec<Tap>, Vec<Caller>) {
    let taps = LIBRARIES.map(|_| Tap::before(node));
    let callers = LIBRARIES.iter().zip(&taps);
    let callers = callers
        .map(|(name, tap)| Caller::start(name, &tap.path))
        .collect();
    (taps.into(), all_ready(callers).await)
}

/// Stops every thread of the daemon until SIGCONT.
pub(super) async fn freeze(node: &Node) {
    node.signal(Signal::STOP);
    let threads = format!("/proc/{}/task", node.pid());
    until("every thread is stopped", async || {
        fs::read_dir(&threads).unwrap().flatten().all(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" T"))
        })
    })
    .await;
}

/// The example's rows, with a label that is hard to encode, and bindings for an account and an attribute that are.
async fn example() -> Db<'static> {
    Cluster::shared().database().await
}

const LABEL: &str = "Ñandú & Cía = 100 %+";

async fn make_hard(db: &Db<'_>) {
    let session = db.session().await;
    session
        .sql(
            "update tenant_phone_numbers set label = 'Ñandú & Cía = 100 %+' where e164 = '+14155550100';
             insert into prompt_bindings (id, prompt_id, account_ref, phone_number_id, conditions_json) values
             (gen_random_uuid(), '33333333-3333-4333-8333-333333333333', 'Ñ B+C&D=E', null,
              '{\"language_override\": \"pt-BR\"}'),
             (gen_random_uuid(), '44444444-4444-4444-8444-444444444444', null,
              'f1a2b3c4-0001-4000-8000-000000000001', '{\"vip\": true, \"language_override\": \"fr-FR\"}')",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_gives_the_answer_for_the_call_and_tells_no_secret_elsewhere() {
    let db = example().await;
    let node = Node::with_example(&db, "").await;
    make_hard(&db).await;
    node.until(&format!("/v1/lookup/label?to={ACME}"), |reply| {
        reply.body == LABEL
    })
    .await;
    node.level().await;
    let mut callers = everybody(&node.unix()).await;
    for (name, told) in all(&mut callers, &format!("view=lookup&to={ACME}")).await {
        assert_eq!(told.verdict(), ("answer", "ok"), "{name}");
        let fields = ["language", "label", "stale", "secret"].map(|field| told.get(field));
        assert_eq!(fields, ["es-AR", LABEL, "0", ""], "{name}");
    }
    // The number as it comes from a SIP header; the context of the call, a repeated and a made-up attribute.
    let number = "sip%3A%2B14155550100%40sip.example%3Buser%3Dphone";
    let call = "account_ref=ACME-001234&event_type=door_open&zone=Z9&zone=Z1&attr.vip=true";
    let question = format!("view=resolve&to={number}&{call}&include=credentials");
    let ids = [1, 2, 3, 4].map(|n| {
        format!(
            "{n}{n}{n}{n}{n}{n}{n}{n}-{n}{n}{n}{n}-4{n}{n}{n}-8{n}{n}{n}-{}",
            n.to_string().repeat(12)
        )
    });
    for (name, told) in all(&mut callers, &question).await {
        assert_eq!(told.verdict(), ("answer", "ok"), "{name}");
        let fields = ["language", "prompt_ids", "secret"].map(|field| told.get(field));
        assert_eq!(fields, ["fr-FR", &ids.join(","), SECRET], "{name}");
        assert!(
            told.get("system").starts_with("Actúa como agente"),
            "{name}: {told:?}"
        );
    }
    let account = "account_ref=%C3%91%20B%2BC%26D%3DE";
    for (name, told) in all(&mut callers, &format!("view=lookup&to={ACME}&{account}")).await {
        assert_eq!(told.get("language"), "pt-BR", "{name}: {told:?}");
    }
    for caller in &callers {
        assert!(
            !caller.complaints().contains(SECRET),
            "{}: {}",
            caller.name,
            caller.complaints()
        );
    }
    assert!(!node.log().contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_tells_a_no_as_it_is_whatever_the_number_holds() {
    let db = example().await;
    let node = Node::with_example(&db, "").await;
    db.session()
        .await
        .sql("update tenant_phone_numbers set active = false where e164 = '+541150000002'")
        .await;
    node.until("/v1/lookup?to=%2B541150000002", |reply| reply.status == 404)
        .await;
    let mut callers = everybody(&node.unix()).await;
    let long = "1".repeat(5000);
    for (number, status) in [
        ("%2B15005550006", "unknown_number"),
        ("%2B541150000002", "inactive_number"),
        ("%2B542994000003", "tenant_suspended"),
        ("12", "invalid_number"),
        ("", "invalid_number"),
        ("null", "invalid_number"),
        ("%F0%9F%93%9E%F0%9F%93%9E", "invalid_number"),
        ("%2B14155550100%26to%3D%2B14155550100", "invalid_number"),
        ("%2B14155550100%20HTTP%2F1.1", "invalid_number"),
        (
            "%2B14155550100%0D%0AX-Forged%3A%20yes%0D%0A%0D%0A",
            "bad_request",
        ),
        (
            "%27%3B%20rm%20-rf%20%24%28id%29%20%60id%60%20%22",
            "invalid_number",
        ),
        (&long, "bad_request"),
    ] {
        all_told(
            &mut callers,
            &format!("view=lookup&to={number}"),
            ("refused", status),
            TOTAL,
        )
        .await;
        all_told(
            &mut callers,
            &format!("view=resolve&to={number}"),
            ("refused", status),
            TOTAL,
        )
        .await;
    }
    all_told(
        &mut callers,
        &format!("view=lookup&to={ACME}"),
        ("answer", "ok"),
        TOTAL,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_takes_an_error_for_a_no() {
    let db = example().await;
    let unsynced = {
        let mut node = Node::prepare(AWAY, "");
        node.start();
        node.answering().await;
        node
    };
    let forbidding =
        Node::with_example(&db, "[[access]]\nuser = \"65534\"\nallow = [\"config\"]\n").await;
    let nowhere = scratch("nowhere").join("sidetone.sock");
    let question = format!("view=lookup&to={ACME}");
    let soon = Duration::from_millis(250) + SLACK;
    all_told(
        &mut everybody(&nowhere).await,
        &question,
        ("unavailable", "unreachable"),
        soon,
    )
    .await;
    all_told(
        &mut everybody(&unsynced.unix()).await,
        &question,
        ("unavailable", "not_ready"),
        TOTAL + SLACK,
    )
    .await;
    all_told(
        &mut everybody(&forbidding.unix()).await,
        &question,
        ("unavailable", "forbidden"),
        TOTAL + SLACK,
    )
    .await;
    // Somebody else on that socket.
    let strange = scratch("strange").join("sidetone.sock");
    let listener = UnixListener::bind(&strange).unwrap();
    let stranger = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let page = "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found";
            let _ = stream.write_all(page.as_bytes()).await;
        }
    });
    all_told(
        &mut everybody(&strange).await,
        &question,
        ("unavailable", "unreachable"),
        TOTAL + SLACK,
    )
    .await;
    stranger.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_is_quiet_for_as_long_as_retry_after_says() {
    let db = example().await;
    let uid = rustix::process::geteuid().as_raw();
    let rules =
        format!("[[access]]\nuser = \"{uid}\"\nallow = [\"config\"]\nrate = \"1/m burst 1\"\n");
    let node = Node::with_example(&db, &rules).await;
    node.until(&format!("/v1/lookup?to={ACME}"), |reply| {
        reply.status == 503
    })
    .await;
    let (taps, mut callers) = everybody_tapped(&node).await;
    for (tap, caller) in taps.iter().zip(&mut callers) {
        let told = caller.lookup().await;
        assert_eq!(
            told.verdict(),
            ("unavailable", "overloaded"),
            "{}",
            caller.name
        );
        assert_eq!(tap.questions(), 1, "{}", caller.name);
        if caller.keeps() {
            let wait: f64 = told.get("wait").parse().unwrap();
            assert!((0.5..=60.0).contains(&wait), "{}: {told:?}", caller.name);
            let again = caller.lookup().await;
            assert_eq!(
                again.verdict(),
                ("unavailable", "overloaded"),
                "{}",
                caller.name
            );
            assert_eq!(tap.questions(), 1, "{} does not wait", caller.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_or_slow_sidetone_costs_every_client_a_second_and_no_more() {
    let db = example().await;
    let node = Node::with_example(&db, "").await;
    let (taps, mut tapped) = everybody_tapped(&node).await;
    let (mut used, mut fresh) = (everybody(&node.unix()).await, everybody(&node.unix()).await);
    let question = format!("view=lookup&to={ACME}");
    all_told(&mut tapped, &question, ("answer", "ok"), PATIENCE).await;
    all_told(&mut used, &question, ("answer", "ok"), PATIENCE).await;
    // Slow: each byte comes in time, the answer does not.
    for tap in &taps {
        tap.set(Manner::Drip);
    }
    all_told(
        &mut tapped,
        &question,
        ("unavailable", "timeout"),
        TOTAL + SLACK,
    )
    .await;
    for tap in &taps {
        tap.set(Manner::Pass);
    }
    all_told(&mut tapped, &question, ("answer", "ok"), TOTAL).await;
    // Hung: on a connection that stands, and on a new one.
    freeze(&node).await;
    all_told(
        &mut used,
        &question,
        ("unavailable", "timeout"),
        TOTAL + SLACK,
    )
    .await;
    for _ in 0..2 {
        all_told(
            &mut fresh,
            &question,
            ("unavailable", "timeout"),
            TOTAL + SLACK,
        )
        .await;
    }
    node.signal(Signal::CONT);
    for callers in [&mut used, &mut fresh] {
        all_told(callers, &question, ("answer", "ok"), TOTAL + SLACK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_keeps_its_connection_and_asks_once_more_where_it_was_closed() {
    let db = example().await;
    let node = Node::with_example(&db, "[http]\nidle_timeout = \"400ms\"\n").await;
    let (taps, mut callers) = everybody_tapped(&node).await;
    let question = format!("view=lookup&to={ACME}");
    all_told(&mut callers, &question, ("answer", "ok"), PATIENCE).await;
    for (tap, caller) in taps.iter().zip(&mut callers) {
        // Closed by the daemon while nothing was asked.
        until("the idle connection is closed", async || tap.open() == 0).await;
        assert_eq!(
            caller.lookup().await.verdict(),
            ("answer", "ok"),
            "{}",
            caller.name
        );
        let before = tap.connections();
        for _ in 0..4 {
            assert_eq!(
                caller.lookup().await.verdict(),
                ("answer", "ok"),
                "{}",
                caller.name
            );
        }
        if !caller.keeps() {
            continue;
        }
        assert_eq!(
            tap.connections(),
            before,
            "{} opens connections",
            caller.name
        );
        // Closed in the moment of the question.
        let before = tap.questions();
        tap.set(Manner::CutOnce);
        assert_eq!(
            caller.lookup().await.verdict(),
            ("answer", "ok"),
            "{}",
            caller.name
        );
        assert_eq!(tap.questions(), before + 2, "{}", caller.name);
        // Closed again and again: no storm.
        tap.set(Manner::Cut);
        let told = caller.lookup().await;
        assert_eq!(
            told.verdict(),
            ("unavailable", "unreachable"),
            "{}",
            caller.name
        );
        assert!(
            tap.questions() <= before + 4,
            "{} asked {} times",
            caller.name,
            tap.questions() - before - 2
        );
        tap.set(Manner::Pass);
        assert_eq!(
            caller.lookup().await.verdict(),
            ("answer", "ok"),
            "{}",
            caller.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_goes_on_over_a_restart_and_shows_that_answers_are_stale() {
    let db = example().await;
    let mut node = Node::with_example(&db, "").await;
    let mut callers = everybody(&node.unix()).await;
    let question = format!("view=lookup&to={ACME}");
    all_told(&mut callers, &question, ("answer", "ok"), PATIENCE).await;
    node.kill();
    all_told(
        &mut callers,
        &question,
        ("unavailable", "unreachable"),
        TOTAL + SLACK,
    )
    .await;
    node.start();
    node.answering().await;
    all_told(&mut callers, &question, ("answer", "ok"), TOTAL + SLACK).await;
    // In mid-use: nothing was asked while it was away. It comes back without Postgres.
    node.stop();
    node.start_stale().await;
    for (name, told) in all(&mut callers, &question).await {
        assert_eq!(told.verdict(), ("answer", "ok"), "{name}");
        assert_eq!(told.get("stale"), "1", "{name}");
    }
}

#[test]
fn the_readme_names_every_file_and_no_other() {
    let readme = fs::read_to_string(file("clients/README.md")).unwrap();
    let linked: std::collections::BTreeSet<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(path, _)| path)
        .collect();
    let mut there = std::collections::BTreeSet::new();
    for dir in fs::read_dir(file("clients")).unwrap().flatten() {
        let name = dir.file_name().into_string().unwrap();
        for entry in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            there.insert(format!(
                "{name}/{}",
                entry.file_name().into_string().unwrap()
            ));
        }
    }
    assert_eq!(linked, there.iter().map(String::as_str).collect());
}
