//! The command line from outside: how commands end, what they print where, and what they leave behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt as _;
use rustix::process::{Pid, Signal};

use crate::cluster::{Cluster, scratch};
use crate::node::{Node, SECRET};

/// The program without this process's settings.
fn sidetone() -> Command {
    let mut command = Command::cargo_bin("sidetone").unwrap();
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIDETONE_"))
    {
        if name != "SIDETONE_PG_BIN" {
            command.env_remove(name);
        }
    }
    command
}

fn ended(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = sidetone().args(args).stdin(Stdio::null()).output().unwrap();
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

#[test]
fn wrong_usage_ends_with_2_and_says_so_on_standard_error_alone() {
    for args in [
        &[][..],
        &["no-such-command"],
        &["lookup"],
        &[
            "lookup",
            "+14155550100",
            "--outside-business-hours",
            "maybe",
        ],
        &["lookup", "+14155550100", "--attr", "novalue"],
        &["lookup", "+14155550100", "--at", "yesterday"],
        &["lookup", "+14155550100", "--field", "language", "--json"],
        &["resolve", "+14155550100", "--reveal"],
        &["refresh", "--tenant", "a", "--number", "b"],
        &[
            "seal",
            "--tenant",
            "not-a-uuid",
            "--provider",
            "p",
            "--name",
            "n",
        ],
        &["migrate", "--url", "a", "--url-file", "b"],
        &["check", "--set", "novalue"],
    ] {
        let (code, stdout, stderr) = ended(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(!stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_settings_file_with_three_mistakes_is_told_at_once_and_ends_with_2() {
    let file = scratch("settings").join("sidetone.toml");
    fs::write(
        &file,
        "[http]\nunix_mod = \"1\"\nmax_connections = \"x\"\n[feed]\nstale_after = \"1s\"\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for command in ["check", "run"] {
        let (code, _, stderr) = ended(&[command, "--config", file]);
        assert_eq!(code, 2, "{stderr}");
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 3, "{stderr}");
        assert!(
            lines
                .iter()
                .all(|line| line.starts_with(&format!("sidetone: {file}: "))),
            "{stderr}"
        );
    }
}

#[test]
fn a_daemon_that_is_not_there_ends_with_3_and_the_socket_is_named() {
    for command in [
        &["lookup", "+14155550100"][..],
        &["explain", "+14155550100"],
        &["status"],
        &["refresh"],
        &["verify"],
    ] {
        let (code, stdout, stderr) =
            ended(&[command, &["--socket", "/nonexistent/s.sock"]].concat());
        assert_eq!((code, stdout.as_str()), (3, ""), "{command:?}: {stderr}");
        assert!(
            stderr.contains("cannot reach the daemon at /nonexistent/s.sock: no such file"),
            "{stderr}"
        );
    }
}

#[test]
fn a_secret_goes_in_and_out_over_standard_input_alone() {
    let keys = scratch("keys").join("keyring.toml");
    let keys = keys.to_str().unwrap();
    assert_eq!(ended(&["keygen", "--file", keys]).0, 0);
    assert_eq!(
        ended(&["keygen", "--file", keys]).0,
        1,
        "a keyring is never overwritten"
    );
    assert_eq!(ended(&["keygen", "--file", keys, "--add"]).0, 0);
    let row = [
        "--keys",
        keys,
        "--tenant",
        "6f717b5a-1a2b-4c3d-9e8f-112233445566",
        "--provider",
        "openai",
        "--name",
    ];
    let piped = |command: &str, name: &str, input: &str| {
        assert_cmd::Command::from_std(sidetone())
            .arg(command)
            .args(row)
            .arg(name)
            .write_stdin(input)
            .output()
            .unwrap()
    };
    let sealed = String::from_utf8(piped("seal", "default", "sk-top-secret\n").stdout).unwrap();
    assert!(!sealed.contains("secret"));
    let opened = piped("open", "default", &sealed);
    assert_eq!(String::from_utf8(opened.stdout).unwrap(), "sk-top-secret\n");
    assert_eq!(
        piped("open", "other", &sealed).status.code(),
        Some(1),
        "sealed for another row"
    );
    assert_eq!(
        piped("seal", "default", "").status.code(),
        Some(2),
        "nothing to seal"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = sidetone()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap().as_str()
        ),
        (Some(0), "")
    );
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = scratch("man");
    let (code, _, stderr) = ended(&["man", "--dir", dir.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let pages = fs::read_dir(&dir).unwrap().count();
    let (_, help, _) = ended(&["--help"]);
    let commands = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    // The last one listed is `help`, which has no page; the first page is the program's own.
    let listed = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .count();
    assert_eq!(pages, listed, "{help}");
}

/// A demo that does not outlive its test.
#[derive(Debug)]
struct Demo {
    child: Child,
    dir: PathBuf,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a demo, and reads what it says up to a line.
fn demo(until: &str) -> Demo {
    let mut child = sidetone()
        .arg("demo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    let mut demo = Demo {
        child,
        dir: PathBuf::new(),
    };
    for line in said.lines() {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once("--unix-socket ") {
            let socket = rest.split(' ').next().unwrap();
            demo.dir = Path::new(socket).ancestors().nth(3).unwrap().to_owned();
        }
        if line.contains(until) {
            break;
        }
    }
    assert!(demo.dir.join("pg/.s.PGSQL.5432").exists(), "{demo:?}");
    demo
}

fn gone_in_time(dir: &Path) -> bool {
    let since = Instant::now();
    while dir.exists() && since.elapsed() < Duration::from_secs(15) {
        std::thread::sleep(Duration::from_millis(20));
    }
    !dir.exists()
}

#[test]
fn a_demo_that_is_told_to_stop_ends_well_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut demo = demo("Running until");
        rustix::process::kill_process(Pid::from_child(&demo.child), signal).unwrap();
        assert_eq!(demo.child.wait().unwrap().code(), Some(0), "{signal:?}");
        assert!(!demo.dir.exists(), "{signal:?}");
    }
}

#[test]
fn a_demo_that_is_killed_leaves_nothing_behind() {
    let mut demo = demo("http://localhost/");
    demo.child.kill().unwrap();
    assert!(gone_in_time(&demo.dir), "{demo:?}");
}

#[test]
fn the_calls_of_the_demo_are_answered_as_the_platform_expects() {
    let (code, shown, stderr) = ended(&["demo", "--once"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{shown}");
    for expected in [
        r#"{"status":"ok","number":"+14155550100""#,
        "status=ok&number=%2B541150000002",
        "\nes-419\n",
        r#""credentials":{"openai":{"default":"sk-demo-"#,
        r#"{"status":"unknown_number""#,
        r#"{"status":"tenant_suspended""#,
        "\npt-BR   seen within ",
        "nothing is left behind",
    ] {
        assert!(shown.contains(expected), "{expected} in\n{shown}");
    }
}

/// Exit code and standard output of a command against a node.
fn asked(node: &Node, args: &[&str]) -> (i32, String) {
    let output = node.cli(args);
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_learns_the_answer_from_the_exit_code() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    assert_eq!(
        asked(&node, &["lookup", "+14155550100", "--field", "language"]),
        (0, "es-AR\n".to_owned())
    );
    for (args, code) in [
        (&["lookup", "+1 (415) 555-0100"][..], 0),
        (&["lookup", "+15005550006"], 1),
        (&["lookup", "+15005550006", "--json"], 1),
        (&["lookup", "+15005550006", "--field", "language"], 1),
        (&["lookup", "+542994000003"], 1),
        (&["lookup", "12"], 2),
        (&["lookup", "+14155550100", "--field", "no_such"], 2),
        (&["explain", "+14155550100"], 0),
        (&["status"], 0),
        (&["refresh"], 0),
        (&["refresh", "--tenant", "seguridad-acme-sa"], 0),
        (&["refresh", "--tenant", "no-such"], 1),
        (&["refresh", "--no-wait"], 0),
        (&["verify"], 0),
    ] {
        assert_eq!(asked(&node, args).0, code, "{args:?}");
    }
    let (_, json) = asked(&node, &["lookup", "+14155550100", "--json"]);
    assert!(
        json.starts_with(r#"{"status":"ok","number":"+14155550100""#),
        "{json}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_shown_only_to_who_asks_twice() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let shown = |args: &[&str]| asked(&node, &[&["resolve", "+14155550100"], args].concat()).1;
    for hidden in [&[][..], &["--json"], &["--credentials"]] {
        let text = shown(hidden);
        assert!(!text.contains(SECRET), "{hidden:?}");
        assert!(text.contains("Base Global Español"), "{hidden:?}: {text}");
    }
    for asked_for in [&["--credentials", "--reveal"], &["--credentials", "--json"]] {
        assert!(shown(asked_for).contains(SECRET), "{asked_for:?}");
    }
}

/// The subjects of a check's findings at a level.
fn subjects(json: &str, level: &str) -> Vec<String> {
    let report: serde_json::Value = serde_json::from_str(json).unwrap();
    let findings = report["checks"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["level"] == level)
        .map(|finding| finding["subject"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_nothing_wrong_with_a_running_node_and_names_what_is() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let (code, json) = asked(&node, &["check", "--json"]);
    assert_eq!(code, 0, "{json}");
    assert!(json.contains("in use by a running daemon"), "{json}");
    db.sql("alter table public.prompts disable trigger sidetone_update; update sidetone.meta set doorbell = false")
        .await;
    db.sql(
        "revoke select on public.tenants from sidetone; grant insert on public.prompts to sidetone",
    )
    .await;
    let (code, json) = asked(&node, &["check", "--json"]);
    assert_eq!(code, 1, "{json}");
    // Role and rights belong to this database's tables alone.
    assert!(json.contains("prompts.sidetone_update"), "{json}");
    assert!(
        subjects(&json, "problem").contains(&"grants".to_owned()),
        "{json}"
    );
    assert!(
        subjects(&json, "problem").contains(&"triggers".to_owned()),
        "{json}"
    );
    assert!(
        subjects(&json, "warning").contains(&"doorbell".to_owned()),
        "{json}"
    );
    assert!(
        json.contains("can write to prompts"),
        "a role that can write: {json}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_tells_what_it_would_do_does_it_once_and_check_asks_for_it() {
    let db = Cluster::shared().empty_database().await;
    let owner = Cluster::shared().url("postgres", db.name());
    let node = Node::prepare(&owner, "");
    let (code, json) = asked(&node, &["check", "--json"]);
    assert_eq!(code, 1, "{json}");
    assert!(json.contains("sidetone migrate"), "{json}");
    let (code, would) = asked(&node, &["migrate", "--dry-run"]);
    assert_eq!(code, 0);
    assert!(
        would.contains("would be applied") && would.contains("0001"),
        "{would}"
    );
    let (code, done) = asked(&node, &["migrate"]);
    assert_eq!(
        (code, done.contains(": applied") && done.contains("0001")),
        (0, true),
        "{done}"
    );
    let (code, again) = asked(&node, &["migrate"]);
    assert_eq!(
        (code, again.contains("nothing to do")),
        (0, true),
        "{again}"
    );
    let nobody = Cluster::shared().url("no_such_role", db.name());
    assert_eq!(asked(&node, &["migrate", "--url", &nobody]).0, 4);
    assert_eq!(
        asked(
            &node,
            &["migrate", "--url", "postgres://x@%2Fnonexistent/x"]
        )
        .0,
        3
    );
}
