//! Nothing leaks: values planted as credential, prompt, password and key are searched for wherever a node writes or
//! answers (design sections 4, 8 and 9).

use std::fs::{self, File};
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
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(
        owners,
        [0, 0, 0],
        "others of the same user may look into the process"
    );
}
