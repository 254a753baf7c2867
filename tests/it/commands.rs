//! The command line as people and scripts use it: what it prints, how it ends, what it leaves (design section 6).

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::cluster::{Cluster, scratch};
use crate::node::{ACME, AWAY, Node, PATIENCE, SECRET, until};

const NUMBER: &str = "+14155550100";
const TENANT: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";

/// How a command ended, and what it wrote.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("not UTF-8");
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Ran {
    /// It ended so, and told nothing on standard error.
    #[track_caller]
    fn silent(self, code: i32) -> Self {
        assert!(self.code == Some(code) && self.err.is_empty(), "{self:?}");
        self
    }

    /// It ended so with one line on standard error that holds these words, and nothing on standard output.
    #[track_caller]
    fn refused(self, code: i32, words: &str) {
        assert_eq!(
            (self.code, self.err.lines().count(), self.out.as_str()),
            (Some(code), 1, ""),
            "{self:?}"
        );
        assert!(
            self.err.starts_with("sidetone: ") && self.err.contains(words),
            "{words}: {self:?}"
        );
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// The value beside a name in a table of facts.
    fn fact(&self, name: &str) -> &str {
        let line = self
            .out
            .lines()
            .find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {name} in {self:?}"))
            .trim()
    }
}

fn run(node: &Node, args: &[&str]) -> Ran {
    node.cli(args).into()
}

fn run_reading(node: &Node, args: &[&str], input: &str) -> Ran {
    node.cli_reading(args, input).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_asked_about_as_tables_for_people_and_as_the_daemons_json_for_scripts() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;

    let table = run(&node, &["lookup", NUMBER]).silent(0);
    for (name, value) in [
        ("number", NUMBER),
        ("label", "Salida principal AR"),
        (
            "tenant",
            "Seguridad ACME S.A. (seguridad-acme-sa, 6f717b5a-1a2b-4c3d-9e8f-112233445566)",
        ),
        ("language", "es-AR"),
        ("timezone", "America/Argentina/Buenos_Aires"),
        ("recording_enabled", "yes"),
        ("stale", "no"),
        ("account_ref", "–"),
    ] {
        assert_eq!(table.fact(name), value, "{name}");
    }
    assert!(
        !table.out.contains('\u{1b}'),
        "colours where nobody sees them: {table:?}"
    );
    let lookup = run(
        &node,
        &[
            "lookup",
            "--json",
            NUMBER,
            "--account-ref",
            "ACME-001234",
            "--zone",
            "Z1",
            "--zone",
            "Z2",
        ],
    )
    .silent(0);
    assert!(
        lookup.out.ends_with("}\n") && lookup.out.lines().count() == 1,
        "{lookup:?}"
    );
    let asked = node
        .get("/v1/lookup?to=%2B14155550100&account_ref=ACME-001234&zone=Z1&zone=Z2")
        .await;
    assert_eq!(lookup.json()["revision"], asked.json()["revision"]);
    assert_eq!(lookup.json()["account_ref"], "ACME-001234");
    assert_eq!(
        run(
            &node,
            &[
                "lookup",
                "--field",
                "language",
                "sip:+541150000002@sip.example"
            ]
        )
        .silent(0)
        .out,
        "es-419\n"
    );
    assert!(
        run(&node, &["lookup", "--format", "form", NUMBER])
            .silent(0)
            .out
            .starts_with("status=ok&")
    );

    let context = [
        "--event-type",
        "door_open",
        "--outside-business-hours",
        "true",
        "--attr",
        "vip=true",
        "--at",
        "2026-11-22T13:45:00Z",
    ];
    let resolve = run(&node, &[&["resolve", NUMBER][..], &context].concat()).silent(0);
    assert!(
        resolve.out.contains("Apertura fuera de horario")
            && resolve.out.contains("Evento de apertura"),
        "{resolve:?}"
    );
    assert_eq!(resolve.fact("local_time"), "2026-11-22T10:45:00-03:00");
    let resolve = run(
        &node,
        &[&["resolve", "--json", NUMBER][..], &context].concat(),
    )
    .silent(0);
    assert_eq!(
        resolve.json()["prompt"]["layers"].as_array().unwrap().len(),
        3,
        "{resolve:?}"
    );
    assert!(resolve.json().get("credentials").is_none());
    let masked = run(&node, &["resolve", "--credentials", NUMBER]).silent(0);
    assert!(
        masked.out.contains("openai") && !masked.out.contains(SECRET),
        "{masked:?}"
    );
    let shown = run(&node, &["resolve", "--credentials", "--reveal", NUMBER]).silent(0);
    assert!(shown.out.contains(SECRET), "{shown:?}");
    let shown = run(&node, &["resolve", "--credentials", "--json", NUMBER]).silent(0);
    assert_eq!(
        shown.json().pointer("/credentials/openai/default"),
        Some(&json!(SECRET))
    );

    let explain = run(&node, &["explain", NUMBER, "--event-type", "window_open"]).silent(0);
    assert!(
        explain.out.contains('✓')
            && explain.out.contains('✗')
            && explain.out.contains("Apertura fuera de horario"),
        "{explain:?}"
    );
    let explain = run(&node, &["explain", "--json", NUMBER]).silent(0);
    assert_eq!(explain.json()["prompts"].as_array().unwrap().len(), 4);
    assert!(!explain.out.contains("palabra clave"));
    assert!(!explain.out.contains(SECRET));

    for (number, code, words) in [
        ("+15005550006", 1, "no such number"),
        ("+542994000003", 1, "active"),
        ("no number", 2, "number"),
    ] {
        for command in ["lookup", "resolve"] {
            run(&node, &[command, number]).refused(code, words);
            let scripted = run(&node, &[command, "--json", number]).silent(code);
            assert!(
                scripted.json()["status"].is_string() && scripted.json()["message"].is_string(),
                "{scripted:?}"
            );
        }
        run(&node, &["lookup", "--field", "language", number]).refused(code, words);
    }
    // Why a suspended tenant is refused is an answer; that a number is unknown leaves nothing to explain.
    assert_eq!(run(&node, &["explain", "+15005550006"]).code, Some(1));
    run(&node, &["lookup", "--field", "no_such_field", NUMBER])
        .refused(2, "no field no_such_field; there are status, number,");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_commands_tell_what_was_done_and_end_accordingly() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;

    let status = run(&node, &["status"]).silent(0);
    assert_eq!(status.fact("node"), "n1");
    assert_eq!(status.fact("synced"), "yes");
    assert_eq!(status.fact("replica.numbers"), "3");
    assert!(
        status.out.contains("keys (1)") && status.out.contains("k1"),
        "{status:?}"
    );
    assert_eq!(
        run(&node, &["status", "--json"]).silent(0).json()["replica"]["numbers"],
        3
    );

    let untold = async |label: &str| {
        db.sql(&format!(
            "alter table public.tenant_phone_numbers disable trigger sidetone_update;
             update public.tenant_phone_numbers set label = '{label}' where e164 = '{NUMBER}'"
        ))
        .await;
    };
    let label = || run(&node, &["lookup", "--field", "label", NUMBER]).out;
    for (i, args) in [
        &["refresh", "--number", NUMBER][..],
        &["refresh", "--tenant", "seguridad-acme-sa"],
        &["refresh", "--tenant", TENANT],
        &["refresh"],
    ]
    .iter()
    .enumerate()
    {
        untold(&format!("label {i}")).await;
        let refresh = run(&node, args);
        assert_eq!(
            (refresh.code, refresh.fact("written")),
            (Some(0), "1"),
            "{refresh:?}"
        );
        assert_eq!(refresh.err, "sidetone: pulling\n");
        assert_eq!(label(), format!("label {i}\n"));
    }
    let xid: String = db.value("select pg_current_xact_id()::text").await;
    let refresh = run(
        &node,
        &["refresh", "--json", "--number", NUMBER, "--at-least", &xid],
    );
    assert_eq!(
        (refresh.code, refresh.json()["status"].clone()),
        (Some(0), json!("ok")),
        "{refresh:?}"
    );
    untold("not waited for").await;
    let refresh = run(&node, &["refresh", "--no-wait", "--json"]);
    assert_eq!(
        (refresh.code, refresh.json()),
        (Some(0), json!({"status": "accepted"})),
        "{refresh:?}"
    );
    node.until("/v1/lookup/label?to=%2B14155550100", |reply| {
        reply.body == "not waited for"
    })
    .await;
    let unknown = run(&node, &["refresh", "--tenant", "nobody"]);
    assert!(
        unknown.code == Some(1) && unknown.err.contains("sidetone: no such tenant\n"),
        "{unknown:?}"
    );
    assert_eq!(run(&node, &["refresh", "--number", "nobody"]).code, Some(2));

    let verify = run(&node, &["verify"]);
    assert_eq!(
        (
            verify.code,
            verify.fact("differences"),
            verify.fact("numbers")
        ),
        (Some(0), "0", "3"),
        "{verify:?}"
    );
    for json in [false, true] {
        untold(&format!("found {json}")).await;
        let verify = run(
            &node,
            if json {
                &["verify", "--json"]
            } else {
                &["verify"]
            },
        );
        assert_eq!(verify.code, Some(1), "{verify:?}");
        if json {
            assert_eq!(verify.json()["differences"], 1, "{verify:?}");
            assert_eq!(verify.json()["first"][0]["key"], NUMBER, "{verify:?}");
        } else {
            assert!(
                verify.out.contains(NUMBER) && verify.err.contains("1 rows differed"),
                "{verify:?}"
            );
        }
        assert_eq!(label(), format!("found {json}\n"));
    }

    db.sql("truncate public.tenant_phone_numbers cascade").await;
    until("the loss is held", async || {
        run(&node, &["status", "--json"])
            .json()
            .pointer("/feed/held/numbers")
            == Some(&json!(3))
    })
    .await;
    let held = run(&node, &["refresh"]);
    assert!(
        held.code == Some(1) && held.err.contains("--accept-loss"),
        "{held:?}"
    );
    assert_eq!(run(&node, &["refresh", "--json"]).code, Some(1));
    assert_eq!(run(&node, &["lookup", NUMBER]).code, Some(0));
    assert_eq!(run(&node, &["refresh", "--accept-loss"]).code, Some(0));
    assert_eq!(run(&node, &["lookup", NUMBER]).code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_cannot_be_reached_is_3_and_one_that_refuses_is_4() {
    let node = Node::prepare(AWAY, "");
    let asking: [&[&str]; 6] = [
        &["lookup", NUMBER],
        &["resolve", NUMBER],
        &["explain", NUMBER],
        &["status"],
        &["refresh", "--no-wait"],
        &["verify"],
    ];
    for args in asking {
        for more in [&[][..], &["--json"]] {
            let args = [args, more].concat();
            let ran = run(&node, &args);
            assert_eq!(
                (ran.code, ran.out.as_str()),
                (Some(3), ""),
                "{args:?}: {ran:?}"
            );
            assert!(
                ran.err.contains("cannot reach the daemon at ")
                    && ran.err.contains("is it running?"),
                "{args:?}: {ran:?}"
            );
        }
    }
    let dead = node.path("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    run(
        &node,
        &["lookup", NUMBER, "--socket", dead.to_str().unwrap()],
    )
    .refused(3, "connection refused");

    // One that answers and cannot know.
    let mut node = node;
    node.start();
    node.answering().await;
    run(&node, &["lookup", NUMBER]).refused(3, "Postgres");
    assert_eq!(run(&node, &["refresh"]).code, Some(3));
    assert_eq!(run(&node, &["verify", "--json"]).code, Some(3));

    // One whose rules give us everything but credentials, and one whose rules give us nothing.
    let me = rustix::process::geteuid().as_raw();
    let db = Cluster::shared().database().await;
    let some = Node::with_example(
        &db,
        &format!("access = [{{user = '{me}', allow = ['config']}}]"),
    )
    .await;
    run(&some, &["lookup", NUMBER]).silent(0);
    run(&some, &["resolve", "--credentials", NUMBER]).refused(4, "no rule");
    assert_eq!(
        run(&some, &["resolve", "--credentials", "--json", NUMBER])
            .silent(4)
            .json()["status"],
        "forbidden"
    );
    let none = Node::on(&db, "access = [{user = '4242', allow = ['config']}]").await;
    for args in [
        &["lookup", NUMBER][..],
        &["resolve", NUMBER],
        &["explain", NUMBER],
    ] {
        run(&none, args).refused(4, "no rule");
    }
    // The owner's socket of another user; root is refused by nobody.
    if me != 0 {
        fs::set_permissions(none.unix(), fs::Permissions::from_mode(0o000)).unwrap();
        run(&none, &["lookup", NUMBER]).refused(4, "permission denied");
    }
}

#[test]
fn wrong_arguments_are_2_and_help_is_0() {
    let node = Node::prepare(AWAY, "");
    let wrong: [&[&str]; 16] = [
        &["frobnicate"],
        &["lookup"],
        &["lookup", NUMBER, "--json", "--format", "form"],
        &["lookup", NUMBER, "--format", "xml"],
        &["lookup", NUMBER, "--at", "noon"],
        &["lookup", NUMBER, "--attr", "vip"],
        &["lookup", NUMBER, "--outside-business-hours", "maybe"],
        &["resolve", NUMBER, "--reveal"],
        &["refresh", "--tenant", "a", "--number", "+1"],
        &["refresh", "--at-least", "soon"],
        &["run", "now"],
        &["seal"],
        &[
            "open",
            "--tenant",
            "no-uuid",
            "--provider",
            "p",
            "--name",
            "n",
        ],
        &["completions", "tcsh-2"],
        &["status", "--set", "feed.nothing=1"],
        &["status", "--set", "feed"],
    ];
    for args in wrong {
        let ran = run(&node, args);
        assert!(
            ran.code == Some(2) && ran.out.is_empty() && !ran.err.is_empty(),
            "{args:?}: {ran:?}"
        );
    }
    let none: Ran = Command::new(env!("CARGO_BIN_EXE_sidetone"))
        .output()
        .unwrap()
        .into();
    assert_eq!(none.code, Some(2), "{none:?}");
    let missing: Ran = Command::new(env!("CARGO_BIN_EXE_sidetone"))
        .args(["status", "--config", "/nonexistent.toml"])
        .output()
        .unwrap()
        .into();
    missing.refused(2, "/nonexistent.toml: cannot be read");
    for command in [
        "run",
        "check",
        "migrate",
        "lookup",
        "resolve",
        "explain",
        "status",
        "refresh",
        "verify",
        "keygen",
        "seal",
        "open",
        "demo",
        "completions",
        "man",
    ] {
        let help: Ran = Command::new(env!("CARGO_BIN_EXE_sidetone"))
            .args([command, "--help"])
            .output()
            .unwrap()
            .into();
        assert!(
            help.code == Some(0) && help.out.contains("--config"),
            "{command}: {help:?}"
        );
    }
    let version: Ran = Command::new(env!("CARGO_BIN_EXE_sidetone"))
        .arg("--version")
        .output()
        .unwrap()
        .into();
    assert_eq!(
        (version.code, version.out),
        (Some(0), format!("sidetone {}\n", env!("CARGO_PKG_VERSION")))
    );
}

/// The findings of `check --json`: level, subject, found with its remedy.
fn check(node: &Node, code: i32) -> Vec<(String, String, String)> {
    let ran = run(node, &["check", "--json"]).silent(code);
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    let json = ran.json();
    let findings: Vec<_> = json["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            (
                text(f, "level"),
                text(f, "subject"),
                format!("{}: {}", text(f, "found"), text(f, "remedy")),
            )
        })
        .collect();
    // People are told the same.
    let table = run(node, &["check"]).silent(code);
    assert_eq!(table.out.lines().count(), findings.len(), "{table:?}");
    let worst = ["problem", "warning", "ok"]
        .iter()
        .find(|level| findings.iter().any(|f| f.0 == **level))
        .unwrap();
    assert_eq!(json["result"], **worst, "{json}");
    assert_eq!(code == 1, *worst == "problem", "{json}");
    findings
}

#[track_caller]
fn found(findings: &[(String, String, String)], level: &str, subject: &str, words: &[&str]) {
    let hit = findings
        .iter()
        .any(|f| f.0 == level && f.1 == subject && words.iter().all(|words| f.2.contains(words)));
    assert!(
        hit,
        "no {level} of {subject} with {words:?} in {findings:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_nothing_wrong_with_a_good_system_before_and_while_its_daemon_runs() {
    let db = Cluster::shared().database().await;
    let mut node = Node::prepare(&db.url(), "");
    let findings = check(&node, 0);
    assert!(findings.iter().all(|f| f.0 == "ok"), "{findings:#?}");
    let subjects: BTreeSet<&str> = findings.iter().map(|f| f.1.as_str()).collect();
    let expected = [
        "settings",
        "access",
        "keys.file",
        "replica.dir",
        "http.unix",
        "admin.unix",
        "admin.tcp",
        "http.tcp",
        "TLS",
        "postgres.url",
        "grants",
        "schema",
        "triggers",
        "doorbell",
        "feed",
        "log.otlp_endpoint",
    ];
    assert_eq!(subjects, expected.into());
    assert!(
        !node.path("replica").exists() && !node.path("call").exists(),
        "a check makes nothing"
    );
    node.start();
    node.synced().await;
    let findings = check(&node, 0);
    assert!(findings.iter().all(|f| f.0 == "ok"), "{findings:#?}");
    found(&findings, "ok", "http.unix", &["a daemon answers there"]);
    let offline = run(&node, &["check", "--offline", "--json"])
        .silent(0)
        .json();
    assert!(!offline.to_string().contains("postgres"), "{offline}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_is_wrong_with_a_database_and_what_to_do() {
    let cluster = Cluster::shared();
    let db = cluster.database().await;
    let node = Node::prepare(&db.url(), "");
    let name = db.name().to_owned();

    // A role that reads too little, and one that may too much.
    db.sql(&format!("create role poor_{name} login; create role rich_{name} login; grant sidetone to rich_{name}")).await;
    db.sql(&format!(
        "grant usage on schema public, sidetone to poor_{name}, rich_{name};
         grant select on public.tenants to poor_{name};
         grant select on all tables in schema public to rich_{name}; grant update on public.prompts to rich_{name}"
    ))
    .await;
    node.configure(&cluster.url(&format!("poor_{name}"), &name), "");
    let findings = check(&node, 1);
    found(
        &findings,
        "problem",
        "grants",
        &["tenant_phone_numbers", "deploy/sql/roles.sql"],
    );
    found(&findings, "problem", "grants", &["sidetone.change"]);
    assert!(
        !findings
            .iter()
            .any(|f| f.0 == "problem" && f.2.contains("tenants.slug")),
        "{findings:#?}"
    );
    node.configure(&cluster.url(&format!("rich_{name}"), &name), "");
    let findings = check(&node, 0);
    found(
        &findings,
        "warning",
        "grants",
        &["users.hash_password", "deploy/sql/roles.sql"],
    );
    found(&findings, "warning", "grants", &["prompts"]);
    node.configure(&cluster.url("postgres", &name), "");
    found(&check(&node, 0), "warning", "grants", &["superuser"]);

    // No schema.
    let empty = cluster.empty_database().await;
    node.configure(&empty.url(), "");
    let findings = check(&node, 1);
    found(&findings, "problem", "schema", &["sidetone migrate"]);
    found(
        &findings,
        "problem",
        "tables",
        &["tenants", "sidetone migrate"],
    );

    // A trigger that is off, another version, no doorbell: told at once.
    node.configure(&db.url(), "");
    db.sql(
        "alter table public.prompts disable trigger sidetone_update;
         alter table public.tenants enable replica trigger sidetone_insert;
         update sidetone.meta set schema_version = schema_version + 1, doorbell = false",
    )
    .await;
    let findings = check(&node, 1);
    found(
        &findings,
        "problem",
        "triggers",
        &[
            "prompts.sidetone_update",
            "tenants.sidetone_insert",
            "enable always trigger",
        ],
    );
    found(&findings, "problem", "schema", &["needed"]);
    found(&findings, "warning", "doorbell", &["off"]);

    // No such database, no such role, nobody there, a plaintext connection elsewhere.
    node.configure(&cluster.url("sidetone", "no_such_database"), "");
    found(
        &check(&node, 1),
        "problem",
        "postgres.url",
        &["no_such_database"],
    );
    node.configure(&cluster.url("no_such_role", &name), "");
    found(
        &check(&node, 1),
        "problem",
        "postgres.url",
        &["no_such_role"],
    );
    node.configure(AWAY, "");
    found(
        &check(&node, 1),
        "problem",
        "postgres.url",
        &["127.0.0.1:1", "is the server up"],
    );
    node.configure(
        "postgres://sidetone@db.invalid/platform?sslmode=disable",
        "postgres.connect_timeout = '2s'",
    );
    let findings = check(&node, 1);
    found(
        &findings,
        "warning",
        "TLS",
        &["in the clear", "remove sslmode=disable"],
    );
    found(&findings, "problem", "postgres.url", &["db.invalid"]);
    node.configure(
        "postgres://sidetone@db.invalid/platform",
        "postgres.connect_timeout = '2s'",
    );
    let findings = check(&node, 1);
    assert!(
        findings.iter().all(|f| f.1 != "TLS"),
        "nobody was there to be verified: {findings:#?}"
    );
    for role in ["poor", "rich"] {
        db.sql(&format!(
            "drop owned by {role}_{name}; drop role {role}_{name}"
        ))
        .await;
    }
}

#[test]
fn check_tells_every_problem_of_the_host_at_once() {
    let node = Node::prepare(
        "mysql://me:canary@db/x",
        "http.unix_group = 'no-such-group'\nkeys.raw = 'k9'",
    );
    let url_file = node.path("url");
    fs::write(&url_file, "mysql://me:canary@db/x").unwrap();
    fs::set_permissions(&url_file, fs::Permissions::from_mode(0o644)).unwrap();
    node.configure(
        "",
        &format!(
            "postgres.url_file = '{}'\nhttp.unix_group = 'no-such-group'\nkeys.raw = 'k9'",
            url_file.display()
        ),
    );
    fs::create_dir(node.path("call")).unwrap();
    fs::write(node.unix(), "a file").unwrap();
    fs::create_dir(node.path("replica")).unwrap();
    let holder = std::net::TcpListener::bind(("127.0.0.1", node.tcp)).unwrap();
    let findings = check(&node, 1);
    found(
        &findings,
        "problem",
        "http.unix",
        &["no socket", "remove it"],
    );
    found(
        &findings,
        "problem",
        "http.unix_group",
        &["no group no-such-group"],
    );
    found(&findings, "problem", "http.tcp", &["in use"]);
    found(&findings, "problem", "keys.raw", &["k9"]);
    found(
        &findings,
        "warning",
        "replica.dir",
        &["mode 0755", "chmod 0700"],
    );
    found(
        &findings,
        "problem",
        "postgres.url_file",
        &["mode 0644", "chmod 0600"],
    );
    found(&findings, "problem", "postgres.url_file", &["postgres://"]);
    assert!(!format!("{findings:?}").contains("canary"));
    drop(holder);
    fs::set_permissions(node.path("keyring.toml"), fs::Permissions::from_mode(0o640)).unwrap();
    found(
        &check(&node, 1),
        "problem",
        "keys.file",
        &["mode 0640", "chmod it to 0600"],
    );
}

#[test]
fn the_settings_file_that_check_prints_is_the_one_that_is_shipped_and_is_accepted() {
    let node = Node::prepare(AWAY, "");
    let printed = run(&node, &["check", "--print-defaults"]).silent(0);
    assert_eq!(printed.out, include_str!("../../config/sidetone.toml"));
    fs::write(node.path("sidetone.toml"), &printed.out).unwrap();
    assert_ne!(run(&node, &["check", "--offline"]).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_makes_an_empty_database_ready_for_a_node_and_the_second_time_does_nothing() {
    let cluster = Cluster::shared();
    let db = cluster.empty_database().await;
    let mut node = Node::prepare(&db.url(), "");
    let owner = cluster.url("postgres", db.name());
    let dry = run(&node, &["migrate", "--url", &owner, "--dry-run"]).silent(0);
    assert!(
        dry.out.contains("would be applied") && dry.out.contains("0001 "),
        "{dry:?}"
    );
    assert_eq!(
        db.value::<i64>(
            "select count(*) from pg_tables where schemaname in ('public', 'sidetone')"
        )
        .await,
        0
    );

    // The daemon's role may not.
    let refused = run(&node, &["migrate"]);
    assert!(
        matches!(refused.code, Some(1 | 4)) && refused.err.contains("permission denied"),
        "{refused:?}"
    );

    let url_file = node.path("owner");
    fs::write(&url_file, &owner).unwrap();
    fs::set_permissions(&url_file, fs::Permissions::from_mode(0o600)).unwrap();
    let first = run(
        &node,
        &["migrate", "--url-file", url_file.to_str().unwrap()],
    );
    assert!(
        first.code == Some(0) && first.out.contains("applied") && first.out.contains("0001 "),
        "{first:?}"
    );
    let second = run(&node, &["migrate", "--url", &owner]).silent(0);
    assert!(
        second.out.contains("nothing to do") && second.out.lines().count() == 1,
        "{second:?}"
    );
    db.sql(include_str!("../../deploy/sql/roles.sql")).await;
    found(&check(&node, 0), "ok", "schema", &["version"]);
    db.load_example().await;
    node.start();
    node.synced().await;
    run(&node, &["lookup", NUMBER]).silent(0);

    let away = run(&node, &["migrate", "--url", AWAY]);
    assert!(
        away.code == Some(3) && away.err.contains("127.0.0.1:1"),
        "{away:?}"
    );
    run(&node, &["migrate", "--url", "mysql://x"]).refused(2, "postgres://");
    assert_eq!(
        run(&node, &["migrate", "--url", "postgres://me:canary@db/x"]).code,
        Some(2)
    );
    assert_eq!(
        run(&node, &["migrate", "--url", &owner, "--url-file", "x"]).code,
        Some(2)
    );
}

#[test]
fn a_sealed_value_opens_for_its_row_and_keyring_alone() {
    let node = Node::prepare(AWAY, "");
    let row = [
        "--tenant",
        TENANT,
        "--provider",
        "openai",
        "--name",
        "default",
    ];
    let seal = |input: &str| run_reading(&node, &[&["seal"][..], &row].concat(), input);
    let open =
        |row: &[&str], input: &str| run_reading(&node, &[&["open"][..], row].concat(), input);
    for (value, opened) in [
        ("sk-canary", "sk-canary\n"),
        ("sk-canary\n", "sk-canary\n"),
        ("{\"key\": \"ñ €\"}", "{\"key\": \"ñ €\"}\n"),
        (" two\nlines ", " two\nlines \n"),
    ] {
        let sealed = seal(value).silent(0);
        assert_eq!(sealed.out.trim_end().split('.').count(), 5, "{sealed:?}");
        assert_eq!(open(&row, &sealed.out).silent(0).out, opened);
        // Never the same twice.
        assert_ne!(seal(value).out, sealed.out);
    }
    let sealed = seal("sk-canary").out;
    for other in [
        [
            "--tenant",
            "d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb",
            "--provider",
            "openai",
            "--name",
            "default",
        ],
        [
            "--tenant",
            TENANT,
            "--provider",
            "google",
            "--name",
            "default",
        ],
        [
            "--tenant",
            TENANT,
            "--provider",
            "openai",
            "--name",
            "other",
        ],
    ] {
        open(&other, &sealed).refused(1, "standard input");
    }
    let mut damaged = sealed.trim_end().to_owned();
    let last = damaged.pop().unwrap();
    damaged.push(if last == 'A' { 'Q' } else { 'A' });
    open(&row, &damaged).refused(1, "standard input");
    open(&row, "no such form").refused(1, "standard input");
    open(&row, "").refused(2, "standard input is empty");
    seal("").refused(2, "standard input is empty");
    seal("\n").refused(2, "standard input is empty");

    // Another keyring opens it not, and one to which a key was added still does.
    let other = node.path("other.toml");
    let other = other.to_str().unwrap();
    let made: Ran = node.cli(&["keygen", "--file", other]).into();
    let made = made.silent(0);
    run_reading(
        &node,
        &[&["open", "--keys", other][..], &row].concat(),
        &sealed,
    )
    .refused(1, "another key");
    let text = fs::read_to_string(other).unwrap();
    assert!(
        made.out.contains(other)
            && !text
                .lines()
                .any(|line| line.len() > 40 && made.out.contains(line)),
        "{made:?}"
    );
    let metadata = fs::metadata(other).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let again: Ran = node.cli(&["keygen", "--file", other]).into();
    again.refused(1, "exists already");
    assert_eq!(
        fs::read_to_string(other).unwrap(),
        text,
        "a keyring was overwritten"
    );
    let ring = node.path("keyring.toml");
    let ring = ring.to_str().unwrap();
    for id in ["k2", "k3"] {
        let added: Ran = node.cli(&["keygen", "--file", ring, "--add"]).into();
        assert!(
            added
                .silent(0)
                .out
                .contains(&format!("{id} is in and seals")),
            "{id}"
        );
    }
    assert_eq!(open(&row, &sealed).silent(0).out, "sk-canary\n");
    assert_eq!(open(&row, &seal("anew").out).silent(0).out, "anew\n");
    let taken: Ran = node
        .cli(&["keygen", "--file", ring, "--add", "--id", "k2"])
        .into();
    taken.refused(1, "k2");
    let nowhere: Ran = node
        .cli(&[
            "keygen",
            "--file",
            node.path("none/k.toml").to_str().unwrap(),
        ])
        .into();
    nowhere.refused(1, "none/k.toml: its directory is not there; make it first");
    let absent: Ran = node
        .cli(&[
            "keygen",
            "--file",
            node.path("none.toml").to_str().unwrap(),
            "--add",
        ])
        .into();
    assert_eq!(absent.code, Some(1), "{absent:?}");
    fs::set_permissions(ring, fs::Permissions::from_mode(0o644)).unwrap();
    seal("sk-canary").refused(1, "chmod it to 0600");
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    const COMMANDS: [&str; 16] = [
        "run",
        "check",
        "migrate",
        "lookup",
        "resolve",
        "explain",
        "status",
        "refresh",
        "verify",
        "watch",
        "keygen",
        "seal",
        "open",
        "demo",
        "completions",
        "man",
    ];
    let sidetone = |args: &[&str]| -> Ran {
        Command::new(env!("CARGO_BIN_EXE_sidetone"))
            .args(args)
            .output()
            .unwrap()
            .into()
    };
    for shell in ["bash", "zsh", "fish"] {
        let script = sidetone(&["completions", shell]).silent(0);
        for command in COMMANDS {
            assert!(script.out.contains(command), "{shell}: {command}");
        }
    }
    let bash = scratch("completions").join("sidetone.bash");
    fs::write(&bash, sidetone(&["completions", "bash"]).out).unwrap();
    assert!(
        Command::new("bash")
            .arg("-n")
            .arg(&bash)
            .status()
            .unwrap()
            .success()
    );
    assert!(sidetone(&["man"]).silent(0).out.contains(".TH sidetone 1"));
    let dir = scratch("man").join("pages");
    sidetone(&["man", "--dir", dir.to_str().unwrap()]).silent(0);
    for command in COMMANDS {
        let page = fs::read_to_string(dir.join(format!("sidetone-{command}.1"))).unwrap();
        assert!(
            page.contains(&format!(".TH sidetone-{command} 1")),
            "{command}: {page}"
        );
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), COMMANDS.len() + 1);
}

/// A demonstration whose files lie below a directory of the test's own.
struct Demo {
    dir: PathBuf,
    child: Child,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let dir = scratch("demo");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidetone"));
        command
            .arg("demo")
            .args(args)
            .current_dir("/")
            .env("TMPDIR", &dir)
            .stdin(Stdio::null());
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    /// What is printed until a line holds these words.
    fn until(&mut self, words: &str) -> String {
        let mut printed = String::new();
        let mut out = BufReader::new(self.child.stdout.take().unwrap());
        while !printed.contains(words) {
            if out.read_line(&mut printed).unwrap() == 0 {
                let mut err = String::new();
                self.child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut err)
                    .unwrap();
                panic!("ended before {words}: {printed}{err}");
            }
        }
        self.child.stdout = Some(out.into_inner());
        printed
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(),
            signal,
        )
        .unwrap();
    }

    /// Processes that work below the directory or are called with it.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.to_str().unwrap();
        let inside = |pid: &Path| {
            let cwd = fs::read_link(pid.join("cwd")).unwrap_or_default();
            let command = fs::read(pid.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            (cwd.starts_with(dir) || command.contains(dir)).then_some(command)
        };
        let pids = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|entry| entry.path());
        pids.filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        })
        .filter_map(|pid| inside(&pid))
        .collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_demo_prints_the_sample_answers_and_leaves_nothing() {
    let mut demo = Demo::start(&["--once"]);
    let printed = demo.until("nothing is left behind");
    assert!(demo.child.wait().unwrap().success(), "{printed}");
    for words in [
        "$ curl -s --unix-socket ",
        "'http://localhost/v1/lookup?to=%2B14155550100'\n{\"status\":\"ok\",\"number\":\"+14155550100\"",
        "\nstatus=ok&number=%2B541150000002&",
        "\nes-419\n",
        "\"prompt\":{\"ids\":\"11111111-1111-4111-8111-111111111111,",
        "\"credentials\":{\"openai\":{\"default\":\"sk-demo-",
        "✓",
        "HTTP 404\n{\"status\":\"unknown_number\"",
        "HTTP 403\n{\"status\":\"tenant_suspended\"",
        "\npt-BR   seen within ",
    ] {
        assert!(printed.contains(words), "no {words} in {printed}");
    }
    assert!(
        !printed.contains('\u{1b}'),
        "colours where nobody sees them"
    );
    assert_eq!((demo.processes(), demo.files()), (vec![], vec![]));
}

#[test]
fn a_demo_that_is_interrupted_or_killed_leaves_nothing() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut demo = Demo::start(&[]);
        let printed = demo.until("Running until Ctrl-C.");
        assert!(!demo.files().is_empty() && !demo.processes().is_empty());
        // The lines that it invites to are right.
        let invited = printed
            .lines()
            .find(|line| line.contains("export SIDETONE_SOCKET="))
            .unwrap();
        let output = Command::new("sh")
            .args([
                "-c",
                &format!(
                    "{}; {} lookup --field language +541150000002",
                    invited.trim_start_matches("$ "),
                    env!("CARGO_BIN_EXE_sidetone")
                ),
            ])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "pt-BR\n");
        demo.signal(signal);
        let status = demo.child.wait().unwrap();
        assert_eq!(status.success(), signal == Signal::INT, "{status}");
        let began = Instant::now();
        // The watchdog of a killed one needs a moment.
        while signal == Signal::KILL
            && !(demo.processes().is_empty() && demo.files().is_empty())
            && began.elapsed() < PATIENCE
        {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(
            (demo.processes(), demo.files()),
            (vec![], vec![]),
            "{signal:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_expired_opens_and_is_told_everywhere() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let ring = node.path("keyring.toml");
    let keygen = |more: &[&str]| -> Ran {
        let args = ["keygen", "--file", ring.to_str().unwrap(), "--add"];
        node.cli(&[&args[..], more].concat()).into()
    };
    for (wrong, why) in [("2001-01-01", "in the past"), ("soon", "2027-01-01")] {
        let refused = keygen(&["--expires", wrong]);
        assert!(
            refused.code == Some(2) && refused.err.contains(why),
            "{refused:?}"
        );
    }
    keygen(&["--expires", "2099-01-01"]).silent(0);
    // The first key, which seals the example's credential, expired long ago.
    let text = fs::read_to_string(&ring).unwrap();
    assert!(
        text.contains("[expires]\nk2 = \"2099-01-01T00:00:00Z\"\n"),
        "{}",
        text.len()
    );
    fs::write(
        &ring,
        text.replacen("[expires]\n", "[expires]\nk1 = 2001-01-01\n", 1),
    )
    .unwrap();

    let reload = node.admin("POST", "/v1/admin/keys/reload", "").await;
    let keys = serde_json::json!([
        {"id": "k1", "seals": false, "expires": "2001-01-01T00:00:00Z"},
        {"id": "k2", "seals": true, "expires": "2099-01-01T00:00:00Z"},
    ]);
    assert_eq!(reload.json()["keys"], keys);
    let status = node.admin("GET", "/v1/admin/status", "").await;
    assert_eq!(status.json()["keys"], keys);
    let metric = async |role: &str| {
        let name = format!("sidetone_key_expiry_timestamp_seconds{{role=\"{role}\"}}");
        node.metric(&name).await
    };
    assert_eq!(metric("open").await, 978_307_200.0);
    assert_eq!(metric("seal").await, 4_070_908_800.0);
    let answer = node.get(&format!("/v1/credentials?to={ACME}")).await;
    assert_eq!(answer.text("/credentials/openai/default"), SECRET);

    let checked: Ran = node.cli(&["check", "--offline"]).into();
    let line = |word: &str| {
        checked
            .out
            .lines()
            .find(|line| line.contains(word))
            .unwrap_or_default()
            .to_owned()
    };
    let expired = line("key k1 expires at 2001-01-01");
    assert!(
        expired.contains("warning") && expired.contains("seal anew"),
        "{checked:?}"
    );
    assert!(
        line("key k2 expires at 2099-01-01").contains("ok"),
        "{checked:?}"
    );
}
