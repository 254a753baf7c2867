//! Nothing leaks: values planted as credential, prompt, password and key are searched for wherever a node writes or
//! answers (design sections 4, 8 and 9).

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustix::process::Signal;
use serde_json::json;

use crate::cluster::{Cluster, scratch};
use crate::node::{AWAY, Node, SECRET, until};

const PASSWORD: &str = "pw-canary-91f3";
const PHRASE: &str = "canary luna verde";
const TENANT: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";

/// A value as it may be written: itself, and in the ways bytes are usually written as text.
fn spellings(value: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal = format!("{value:?}");
    vec![
        value.to_vec(),
        STANDARD.encode(value).into_bytes(),
        URL_SAFE_NO_PAD.encode(value).into_bytes(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        decimal.trim_matches(['[', ']']).as_bytes().to_vec(),
    ]
}

/// Bytes as a text of one character each, in which a search is quick.
fn as_text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Everything that must not be found, by name.
struct Canaries(Vec<(&'static str, String)>);

impl Canaries {
    fn of(node: &Node) -> Self {
        let ring: toml::Table =
            toml::from_str(&fs::read_to_string(node.path("keyring.toml")).unwrap()).unwrap();
        let key = STANDARD
            .decode(ring["open"]["k1"].as_str().unwrap())
            .unwrap();
        assert_eq!(key.len(), 32);
        let named = [
            ("credential", SECRET.as_bytes()),
            ("prompt", PHRASE.as_bytes()),
            ("password", PASSWORD.as_bytes()),
            ("key", &key),
        ];
        Self(
            named
                .into_iter()
                .flat_map(|(name, value)| {
                    spellings(value)
                        .into_iter()
                        .map(move |spelt| (name, as_text(&spelt)))
                })
                .collect(),
        )
    }

    fn in_bytes(&self, bytes: &[u8]) -> Option<&'static str> {
        let text = as_text(bytes);
        self.0
            .iter()
            .find(|(_, spelt)| text.contains(spelt))
            .map(|(name, _)| *name)
    }

    /// Files below a directory that hold one, but those that are meant to.
    fn in_files(&self, dir: &Path) -> Vec<(&'static str, PathBuf)> {
        let mut found = Vec::new();
        for path in files_below(dir) {
            if !["keyring.toml", "url"]
                .iter()
                .any(|meant| path.ends_with(meant))
            {
                found.extend(
                    self.in_bytes(&fs::read(&path).unwrap())
                        .map(|name| (name, path)),
                );
            }
        }
        found
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files_below(&path));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_to_disk_log_or_metrics_nor_told_where_it_was_not_asked_for() {
    let cluster = Cluster::shared();
    let db = cluster.database().await;
    let mut node = Node::prepare("", "");
    let url = db
        .url()
        .replacen("sidetone@", &format!("sidetone:{PASSWORD}@"), 1);
    assert!(url.contains(PASSWORD));
    fs::write(node.path("url"), url).unwrap();
    fs::set_permissions(node.path("url"), fs::Permissions::from_mode(0o600)).unwrap();
    let settings = format!(
        "postgres.url_file = '{}'\nlog.filter = 'debug'",
        node.path("url").display()
    );
    node.configure("", &settings);
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    let json_secret = node.seal(TENANT, "google", "tts", &json!({"key": SECRET}).to_string());
    db.sql(&format!(
        "update public.prompt_versions set content = '{PHRASE}: ' || content;
         update public.prompts set description = '{PHRASE}';
         insert into public.tenant_credentials (id, tenant_id, provider, name, data_ciphertext)
             values (gen_random_uuid(), '{TENANT}', 'google', 'tts', '{json_secret}')"
    ))
    .await;
    let canaries = Canaries::of(&node);
    node.start();
    node.synced().await;

    // The search finds what is there.
    let full = node
        .get("/v1/resolve?to=%2B14155550100&include=credentials")
        .await;
    assert_eq!(canaries.in_bytes(full.body.as_bytes()), Some("credential"));
    assert_eq!(full.text("/credentials/google/tts/key"), SECRET);
    assert!(full.text("/prompt/system").contains(PHRASE));
    assert_eq!(
        canaries.in_bytes(&fs::read(node.path("url")).unwrap()),
        Some("password")
    );
    assert!(
        files_below(&node.dir)
            .iter()
            .any(|path| path.ends_with("replica/replica.redb"))
    );

    // Rows that are wrong in every way that could be told with their content.
    let other_row = node.seal(TENANT, "openai", "another", SECRET);
    for change in [
        format!(
            "update public.tenant_credentials set data_ciphertext = '{SECRET}' where provider = 'google'"
        ),
        format!(
            "update public.tenant_credentials set data_ciphertext = '{other_row}' where provider = 'google'"
        ),
        format!(
            "update public.prompt_versions set content = repeat('{PHRASE}', 40000) where version = 2"
        ),
        format!(
            "update public.prompt_bindings set conditions_json = '{{\"zone\": {{\"x\": 1}}}}' where event_type is null; \
                 update public.prompt_versions set content = '{PHRASE} ' || chr(7) where version = 1"
        ),
        "update public.tenant_settings set business_hours = '[]'".to_owned(),
    ] {
        db.sql(&change).await;
        let xid: String = db.value("select pg_current_xact_id()::text").await;
        let body = json!({"scope": "all", "wait": true, "at_least": xid}).to_string();
        assert_eq!(
            node.admin("POST", "/v1/admin/refresh", &body).await.status,
            200
        );
        told_nothing(&node, &canaries).await;
    }
    // The connection is lost; keys are read again, wrong ones too; the daemon is killed and starts again, alone.
    db.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like 'sidetone%'")
        .await;
    node.level().await;
    let ring = fs::read_to_string(node.path("keyring.toml")).unwrap();
    for wrong in [
        ring.replace("seal", "seel"),
        ring.replace("[open]", ""),
        ring.replacen("k1 =", "k2 =", 1),
        format!("{ring}{ring}"),
        ring.replace('=', ""),
    ] {
        fs::write(node.path("keyring.toml"), wrong).unwrap();
        let reply = node.admin("POST", "/v1/admin/keys/reload", "").await;
        assert_eq!(
            (reply.status, canaries.in_bytes(reply.body.as_bytes())),
            (409, None),
            "{reply:?}"
        );
        node.signal(Signal::HUP);
    }
    until("a wrong keyring is told", async || {
        node.log().contains("the keyring cannot be read again")
    })
    .await;
    fs::write(node.path("keyring.toml"), &ring).unwrap();
    node.kill();
    assert_eq!(canaries.in_files(&node.dir), []);
    node.configure(AWAY, "log.filter = 'debug'");
    node.start();
    node.answering().await;
    told_nothing(&node, &canaries).await;
    node.stop();
    // Password refused, unknown host, not a URL: said without it.
    for url in [
        format!("postgres://sidetone:{PASSWORD}@127.0.0.1:1/x?sslmode=disable"),
        format!("postgres://sidetone:p?{PASSWORD}@db.invalid/x"),
    ] {
        fs::write(node.path("url"), url).unwrap();
        node.configure("", &settings);
        node.start();
        until("Postgres is missed", async || {
            node.try_get("/healthz").await.is_ok()
                && !node
                    .admin("GET", "/v1/admin/status", "")
                    .await
                    .json()
                    .pointer("/feed/last_error")
                    .unwrap()
                    .is_null()
        })
        .await;
        told_nothing(&node, &canaries).await;
        node.kill();
    }
    for url in [
        format!("postgres://sidetone:{PASSWORD}@[bad/x"),
        PASSWORD.to_owned(),
        format!("postgres://h/d?{PASSWORD}=1"),
        format!("postgres://sidetone:p@{PASSWORD}@h/d"),
        format!("postgres://sidetone:p@p/{PASSWORD}@h/d"),
    ] {
        fs::write(node.path("url"), &url).unwrap();
        let (code, told) = node.refused();
        assert_eq!(
            (code, canaries.in_bytes(told.join("\n").as_bytes())),
            (Some(2), None),
            "{told:?}"
        );
        let check = node.cli(&["check"]);
        assert_eq!(
            (
                canaries.in_bytes(&check.stdout),
                canaries.in_bytes(&check.stderr)
            ),
            (None, None),
            "{check:?}"
        );
    }
    assert_eq!(canaries.in_files(&node.dir), []);
}

/// Asks whatever gives no secret, badly too, and looks into the answers and the files.
async fn told_nothing(node: &Node, canaries: &Canaries) {
    let mut replies = Vec::new();
    for path in [
        "/metrics",
        "/readyz",
        "/v1/lookup?to=%2B14155550100",
        "/v1/lookup?to=%2B14155550100&format=form",
        "/v1/explain?to=%2B14155550100&account_ref=ACME-001234&event_type=door_open&zone=Z1",
        "/v1/explain?to=%2B542994000003",
        "/v1/resolve?to=%2B542994000003&include=credentials",
        "/v1/credentials?to=%2B542994000003",
        "/v1/credentials?to=%2B14155550100&provider=nobody",
        "/v1/credentials?to=1",
        "/v1/resolve?to=%2B14155550100&at=never&include=credentials",
        "/v1/resolve?include=credentials",
        "/v1/nowhere",
    ] {
        replies.push(node.get(path).await);
        if !path.contains("metrics") {
            replies.push(node.get_tcp(path).await);
        }
    }
    for path in [
        "/v1/credentials?to=%2B14155550100",
        "/v1/resolve?to=%2B14155550100&include=credentials",
    ] {
        let reply = node.get_tcp(path).await;
        assert_eq!(reply.text("/status"), "credentials_need_unix_socket");
        replies.push(reply);
    }
    replies.push(
        node.post(
            "/v1/resolve",
            "Content-Type: application/json\r\n",
            r#"{"to":7,"include":"credentials"}"#,
        )
        .await,
    );
    replies.push(node.post("/v1/credentials", "", "to=%2B14155550100").await);
    replies.push(node.admin("GET", "/v1/admin/status", "").await);
    replies.push(
        node.admin("PUT", "/v1/admin/log", r#"{"filter":"no=no=no"}"#)
            .await,
    );
    for reply in &replies {
        assert_eq!(
            canaries.in_bytes(format!("{reply:?}").as_bytes()),
            None,
            "{reply:?}"
        );
    }
    for args in [
        &["status"][..],
        &["explain", "+14155550100"],
        &["lookup", "+14155550100"],
        &["resolve", "--credentials", "+14155550100"],
    ] {
        let output = node.cli(args);
        let shows_prompts = args[0] == "resolve";
        let hit = canaries
            .in_bytes(&output.stdout)
            .filter(|name| !(shows_prompts && *name == "prompt"));
        assert_eq!(
            (hit, canaries.in_bytes(&output.stderr)),
            (None, None),
            "{args:?}: {output:?}"
        );
    }
    assert_eq!(canaries.in_files(&node.dir), []);
    for place in ["cmdline", "environ"] {
        if let Ok(bytes) = fs::read(format!("/proc/{}/{place}", node.pid())) {
            assert_eq!(canaries.in_bytes(&bytes), None, "/proc/…/{place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_dumps_no_core_and_lets_no_other_look_into_it() {
    let mut node = Node::prepare(AWAY, "");
    node.start();
    node.answering().await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().take(2).collect::<Vec<_>>(),
        ["0", "0"],
        "{limits}"
    );
    drop(node);

    // The kernel gives the files of a process that is not dumpable to root: to be seen on a process that is not root's.
    let node = Node::prepare(AWAY, "");
    let mut command = node.command(&["run"]);
    if rustix::process::geteuid().is_root() {
        let nobody = 65_534;
        // It must be able to reach the program.
        let program = scratch("program").join("sidetone");
        fs::copy(env!("CARGO_BIN_EXE_sidetone"), &program).unwrap();
        command = std::process::Command::new(&program);
        command
            .current_dir(&node.dir)
            .arg("run")
            .arg("--config")
            .arg(node.path("sidetone.toml"));
        for path in [
            node.dir.clone(),
            node.path("keyring.toml"),
            node.path("sidetone.toml"),
        ] {
            chown(path, Some(nobody), Some(nobody)).unwrap();
        }
        command.uid(nobody).gid(nobody);
    }
    let log = File::create(node.path("log")).unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    node.answering().await;
    let owner = |file: &str| {
        fs::metadata(format!("/proc/{}/{file}", child.id()))
            .unwrap()
            .uid()
    };
    let owners = [owner("mem"), owner("environ"), owner("maps")];
    let seen: Vec<&str> = PROC_VIEWS
        .into_iter()
        .filter(|view| {
            let mut look = std::process::Command::new("cat");
            look.arg(format!("/proc/{}/{view}", child.id()));
            if rustix::process::geteuid().is_root() {
                look.uid(65_534).gid(65_534);
            }
            look.output().unwrap().status.success()
        })
        .collect();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(
        owners,
        [0, 0, 0],
        "others of the same user may look into the process"
    );
    assert!(
        seen.is_empty(),
        "others of the same user see /proc/…/{seen:?}"
    );
}

/// What `/proc` shows of a process to those that may look into it, and to nobody else.
const PROC_VIEWS: [&str; 9] = [
    "environ", "maps", "smaps", "mem", "auxv", "io", "stack", "syscall", "fd/1",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_crashes_leaves_no_core_even_where_cores_are_wanted() {
    use std::os::unix::process::ExitStatusExt as _;
    let cores = |dir: &Path| -> Vec<PathBuf> {
        files_below(dir)
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("core"))
            .collect()
    };
    let wanting_cores = |program: &std::process::Command, dir: &Path| {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\""])
            .arg(program.get_program())
            .args(program.get_args())
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        shell
    };
    // Where not even a shell leaves one, nothing is shown by the daemon's leaving none.
    let dir = scratch("cores");
    let mut crash = std::process::Command::new("sh");
    crash.args(["-c", "kill -ABRT $$"]);
    let crashed = wanting_cores(&crash, &dir).status().unwrap();
    if !crashed.core_dumped() {
        println!("SKIPPED in part: this machine dumps no cores at all: {crashed:?}");
    }
    for signal in [Signal::ABORT, Signal::SEGV] {
        let node = Node::prepare(AWAY, "");
        let mut child = wanting_cores(&node.command(&["run"]), &node.dir)
            .spawn()
            .unwrap();
        node.answering().await;
        let pid = rustix::process::Pid::from_child(&child);
        // The first SIGSEGV only ends the runtime's own handler of it, for no address was at fault.
        let mut ended = None;
        until("it crashes", async || {
            let _ = rustix::process::kill_process(pid, signal);
            ended = child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        let ended = ended.unwrap();
        assert_eq!(ended.signal(), Some(signal.as_raw()), "{ended:?}");
        assert!(!ended.core_dumped(), "{ended:?}");
        assert_eq!(cores(&node.dir), [] as [PathBuf; 0]);
    }
}

/// A value and the piece of it that is looked for: the start of freed memory is the allocator's.
fn canary(name: &str) -> (String, Vec<u8>) {
    let tail = format!("-{name}-{}", uuid::Uuid::new_v4().simple());
    (format!("sk-{}{tail}", "x".repeat(32)), tail.into_bytes())
}

/// Where in the memory of a process some bytes stand, by the name of the mapping.
fn in_memory(pid: u32, wanted: &[u8]) -> Vec<String> {
    const AT_ONCE: usize = 4 * 1024 * 1024;
    let finder = memchr::memmem::Finder::new(wanted);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    let mut room = vec![0; AT_ONCE];
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let (mut at, to) = (
            u64::from_str_radix(from, 16).unwrap(),
            u64::from_str_radix(to, 16).unwrap(),
        );
        while at < to {
            let length = usize::try_from(to - at).unwrap().min(AT_ONCE);
            memory.seek(SeekFrom::Start(at)).unwrap();
            // A mapping may have gone since it was listed.
            let Ok(read) = memory.read(&mut room[..length]) else {
                break;
            };
            found.extend(finder.find_iter(&room[..read]).map(|offset| {
                let around = &room[offset.saturating_sub(96)..(offset + 64).min(read)];
                format!("{line}: …{}…", String::from_utf8_lossy(around))
            }));
            if read < length || at + read as u64 == to {
                break;
            }
            // What stands across two pieces is seen whole in the second.
            at += (read - wanted.len()) as u64;
        }
    }
    found
}

/// Waits until memory holds none of these bytes; says where they are if it does not come to that.
async fn wiped(node: &Node, what: &str, wanted: &[u8]) {
    let begun = std::time::Instant::now();
    loop {
        let found = in_memory(node.pid(), wanted);
        if found.is_empty() {
            return;
        }
        assert!(
            begun.elapsed() < crate::node::PATIENCE,
            "{what}: {}",
            found.join("\n")
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opened_credential_is_wiped_from_memory_when_it_is_changed_removed_or_its_tenant_suspended()
 {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root may look into the memory of a process that is not dumpable");
        return;
    }
    let cluster = Cluster::shared();
    let db = cluster.database().await;
    let mut node = Node::prepare(&db.url(), "");
    let (first, first_seen) = canary("first");
    let (second, second_seen) = canary("second");
    // JSON, and its texts have to be read to be written.
    let (third, third_seen) = canary("third");
    let third = format!("\\\"é{third}");
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, &first))
        .await;
    node.start();
    node.synced().await;
    let put = async |value: &str| {
        let sealed = node.seal(TENANT, "openai", "default", value);
        db.sql(&format!(
            "update public.tenant_credentials set data_ciphertext = '{sealed}'
                 where tenant_id = '{TENANT}' and provider = 'openai' and name = 'default'"
        ))
        .await;
    };
    let answered = async |value: &str| {
        for path in [
            "/v1/credentials?to=%2B14155550100",
            "/v1/resolve?to=%2B14155550100&include=credentials",
        ] {
            node.until(path, |reply| {
                reply.status == 200 && reply.text("/credentials/openai/default") == value
            })
            .await;
        }
    };
    // A caller that keeps its connection, as they do.
    let mut kept = tokio::net::UnixStream::connect(node.unix()).await.unwrap();
    let request = "GET /v1/credentials?to=%2B14155550100 HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut ask = async || {
        use tokio::io::AsyncWriteExt as _;
        kept.write_all(request.as_bytes()).await.unwrap();
        crate::node::read_reply(&mut kept, false).await.unwrap()
    };

    put(&first).await;
    answered(&first).await;
    assert_eq!(ask().await.text("/credentials/openai/default"), first);
    assert!(
        !in_memory(node.pid(), &first_seen).is_empty(),
        "the search finds what is there"
    );

    put(&second).await;
    db.sql(&format!(
        "delete from public.tenant_credentials where tenant_id = '{TENANT}' and provider <> 'openai'"
    ))
    .await;
    answered(&second).await;
    wiped(&node, "a changed credential", &first_seen).await;

    // Without any further call.
    assert_eq!(ask().await.text("/credentials/openai/default"), second);
    db.sql(&format!(
        "update public.tenants set status = 'suspended' where id = '{TENANT}'"
    ))
    .await;
    wiped(&node, "a credential of a suspended tenant", &second_seen).await;
    node.until("/v1/credentials?to=%2B14155550100", |reply| {
        reply.status == 403
    })
    .await;
    assert_eq!(ask().await.status, 403);
    wiped(
        &node,
        "a credential of a suspended tenant that is asked about",
        &second_seen,
    )
    .await;

    db.sql(&format!(
        "update public.tenants set status = 'active' where id = '{TENANT}'"
    ))
    .await;
    put(&format!(
        r#"{{"key": {}}}"#,
        json!(third).to_string().replace('é', "\\u00e9")
    ))
    .await;
    let third = json!({"key": third}).to_string();
    answered(&third).await;
    assert_eq!(ask().await.text("/credentials/openai/default"), third);
    db.sql(&format!(
        "delete from public.tenant_credentials where tenant_id = '{TENANT}'"
    ))
    .await;
    wiped(&node, "a removed credential", &third_seen).await;
    drop(kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_of_the_keyring_is_wiped_from_memory_and_a_key_that_is_taken_out_too() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root may look into the memory of a process that is not dumpable");
        return;
    }
    let mut node = Node::prepare(AWAY, "");
    let file = node.path("keyring.toml");
    let add = node.cli(&[
        "keygen",
        "--file",
        file.to_str().unwrap(),
        "--id",
        "k2",
        "--add",
    ]);
    assert!(add.status.success(), "{add:?}");
    let text = fs::read_to_string(&file).unwrap();
    let ring: toml::Table = toml::from_str(&text).unwrap();
    let spelt = ring["open"]["k1"].as_str().unwrap();
    let key = STANDARD.decode(spelt).unwrap();
    node.start();
    node.answering().await;
    wiped(&node, "the text of a key", &spelt.as_bytes()[16..]).await;
    assert!(
        !in_memory(node.pid(), &key).is_empty(),
        "the search finds a key in use"
    );
    let without: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("k1"))
        .collect();
    fs::write(&file, without.join("\n")).unwrap();
    let reply = node.admin("POST", "/v1/admin/keys/reload", "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    wiped(&node, "a key that is no longer in the keyring", &key[16..]).await;
    wiped(&node, "the text of a key", &spelt.as_bytes()[16..]).await;
}
