//! Who may ask what, by the kernel's word about the caller (design section 8).
//!
//! Another user is a child process under `setpriv` with `curl`, which only root can start: without, these tests say so
//! and pass.

use std::process::Command;

use serde_json::json;

use crate::cluster::{Cluster, Db};
use crate::desk::{SUNDAY, masked};
use crate::node::{ACME, Node, SECRET};

/// Users and groups that no host has.
const USER: u32 = 47_110;
const OTHER: u32 = 47_111;
const GROUP: u32 = 47_200;
const STRANGERS: u32 = 47_201;

const GUARDIANES: &str = "%2B541150000002";
const SUSPENDED: &str = "%2B542994000003";
const UNKNOWN: &str = "%2B15005550006";

/// Who a child process is.
#[derive(Debug, Clone, Copy)]
struct Who {
    uid: u32,
    gid: u32,
    /// A supplementary group.
    also: Option<u32>,
}

const fn who(uid: u32, gid: u32) -> Who {
    Who {
        uid,
        gid,
        also: None,
    }
}

/// An answer as `curl` printed it: head and body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Heard {
    code: u16,
    /// Without `date`.
    head: Vec<String>,
    body: String,
}

impl Heard {
    fn status(&self) -> String {
        let json: serde_json::Value =
            serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {self:?}"));
        json["status"].as_str().unwrap().to_owned()
    }

    fn is(&self) -> (u16, String) {
        (self.code, self.status())
    }
}

/// Whether other users can be had; says so where not.
fn can_be_others() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can ask as another user");
    }
    root
}

/// A question on a socket of the node as another user.
fn try_ask(
    node: &Node,
    who: Who,
    socket: &str,
    args: &[&str],
    path: &str,
) -> Result<Heard, String> {
    let mut command = Command::new("setpriv");
    command.args([
        format!("--reuid={}", who.uid),
        format!("--regid={}", who.gid),
    ]);
    match who.also {
        Some(group) => command.arg(format!("--groups={group}")),
        None => command.arg("--clear-groups"),
    };
    command
        .args([
            "curl",
            "-q",
            "-s",
            "-S",
            "-i",
            "-g",
            "--max-time",
            "20",
            "--unix-socket",
        ])
        .arg(node.path(socket));
    let output = command
        .args(args)
        .arg(format!("http://localhost{path}"))
        .current_dir("/")
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head
        .lines()
        .filter(|line| !line.starts_with("date:"))
        .map(str::to_owned)
        .collect();
    Ok(Heard {
        code,
        head,
        body: body.to_owned(),
    })
}

/// A question on the call socket as another user.
fn ask(node: &Node, who: Who, path: &str) -> Heard {
    try_ask(node, who, "call/sidetone.sock", &[], path)
        .unwrap_or_else(|err| panic!("{who:?} {path}: {err}"))
}

const LOOKUP: &str = "/v1/lookup?to=%2B14155550100";
const RESOLVE: &str = "/v1/resolve?to=%2B14155550100";
const WITH: &str = "/v1/resolve?to=%2B14155550100&include=credentials";
const CREDENTIALS: &str = "/v1/credentials?to=%2B14155550100";
const EXPLAIN: &str = "/v1/explain?to=%2B14155550100";

fn ok() -> (u16, String) {
    (200, "ok".to_owned())
}

fn forbidden() -> (u16, String) {
    (403, "forbidden".to_owned())
}

fn unknown() -> (u16, String) {
    (404, "unknown_number".to_owned())
}

async fn fresh() -> Db<'static> {
    Cluster::shared().database().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rules_root_may_everything_the_sockets_group_config_and_nobody_else_anything() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    let node = Node::with_example(
        &db,
        &format!("http.unix_group = '{GROUP}'\nhttp.unix_mode = '0666'\nadmin.unix_mode = '0666'"),
    )
    .await;
    for root in [who(0, 0), who(0, STRANGERS)] {
        assert!(ask(&node, root, CREDENTIALS).body.contains(SECRET));
        assert!(ask(&node, root, WITH).body.contains(SECRET));
    }
    for member in [
        who(USER, GROUP),
        Who {
            uid: USER,
            gid: STRANGERS,
            also: Some(GROUP),
        },
    ] {
        for path in [LOOKUP, RESOLVE, EXPLAIN] {
            assert_eq!(ask(&node, member, path).is(), ok(), "{member:?} {path}");
        }
        for path in [CREDENTIALS, WITH, "/v1/credentials?to=%2B15005550006"] {
            assert_eq!(
                ask(&node, member, path).is(),
                forbidden(),
                "{member:?} {path}"
            );
        }
        assert_eq!(
            ask(&node, member, &format!("/v1/lookup?to={UNKNOWN}")).is(),
            unknown()
        );
    }
    // The mode lets strangers connect; no rule is about them.
    for stranger in [
        who(USER, STRANGERS),
        Who {
            uid: USER,
            gid: STRANGERS,
            also: Some(OTHER),
        },
        who(GROUP, STRANGERS),
    ] {
        let known = ask(&node, stranger, LOOKUP);
        assert_eq!(known.is(), forbidden());
        for path in [
            RESOLVE,
            WITH,
            CREDENTIALS,
            EXPLAIN,
            "/v1/lookup?to=%2B15005550006",
            "/v1/lookup?to=abc",
            "/v1/lookup",
            "/v1/nothing",
            "/metrics",
        ] {
            assert_eq!(ask(&node, stranger, path), known, "{path}");
        }
        assert_eq!(
            ask(&node, stranger, "/v1/lookup/language?to=%2B14155550100").body,
            ""
        );
        assert!(
            ask(&node, stranger, "/v1/lookup?to=%2B14155550100&format=form")
                .body
                .starts_with("status=forbidden&message=")
        );
        // Whether the daemon lives is no secret.
        assert_eq!(ask(&node, stranger, "/healthz").code, 200);
        assert_eq!(ask(&node, stranger, "/readyz").code, 200);
    }
    // A body does not get in where a query does not.
    let post = [
        "-H",
        "Content-Type: application/json",
        "-d",
        r#"{"to":"+14155550100","include":"credentials"}"#,
    ];
    let posted = |who| try_ask(&node, who, "call/sidetone.sock", &post, "/v1/resolve").unwrap();
    assert_eq!(posted(who(USER, STRANGERS)).is(), forbidden());
    assert_eq!(posted(who(USER, GROUP)).is(), forbidden());
    assert!(posted(who(0, 0)).body.contains(SECRET));
    // The admin socket knows no group of the call socket's.
    for caller in [who(USER, GROUP), who(USER, STRANGERS)] {
        let status = try_ask(&node, caller, "admin/admin.sock", &[], "/v1/admin/status").unwrap();
        assert_eq!(status.is(), forbidden(), "{caller:?}");
    }
    assert_eq!(
        try_ask(
            &node,
            who(0, 0),
            "admin/admin.sock",
            &[],
            "/v1/admin/status"
        )
        .unwrap()
        .code,
        200
    );
    // Refusals stand in the log, by who and never by number.
    let log = node.log();
    let refusals: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("access refused"))
        .collect();
    assert!(
        refusals.iter().any(|line| line.contains(&USER.to_string())),
        "{log}"
    );
    assert!(
        refusals
            .iter()
            .all(|line| !line.contains("4155550100") && !line.contains("5005550006")),
        "{refusals:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_the_kernel_keeps_strangers_from_the_sockets() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    let node = Node::with_example(&db, &format!("http.unix_group = '{GROUP}'")).await;
    assert_eq!(ask(&node, who(USER, GROUP), LOOKUP).is(), ok());
    assert!(
        try_ask(
            &node,
            who(USER, STRANGERS),
            "call/sidetone.sock",
            &[],
            LOOKUP
        )
        .is_err()
    );
    for caller in [who(USER, GROUP), who(USER, STRANGERS)] {
        assert!(
            try_ask(&node, caller, "admin/admin.sock", &[], "/v1/admin/status").is_err(),
            "{caller:?}"
        );
    }
}

/// Rules about users and groups that only numbers name.
fn rules(of: &[(&str, u32, &str)]) -> String {
    let rule =
        |(kind, id, rest): &(&str, u32, &str)| format!("[[access]]\n{kind} = '{id}'\n{rest}\n");
    let rules: String = of.iter().map(rule).collect();
    format!("http.unix_mode = '0666'\n{rules}")
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_rules_alone_say_who_may_ask_what() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    let settings = rules(&[
        ("user", USER, "allow = ['config', 'credentials']"),
        ("group", GROUP, "allow = ['config']"),
        ("user", OTHER, "allow = ['credentials']"),
    ]);
    let mut node = Node::prepare(&db.url(), &settings);
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    node.start();
    wait_ready(&node).await;
    assert!(
        ask(&node, who(USER, STRANGERS), CREDENTIALS)
            .body
            .contains(SECRET)
    );
    assert!(ask(&node, who(USER, STRANGERS), WITH).body.contains(SECRET));
    for member in [
        who(STRANGERS, GROUP),
        Who {
            uid: STRANGERS,
            gid: STRANGERS,
            also: Some(GROUP),
        },
    ] {
        assert_eq!(ask(&node, member, LOOKUP).is(), ok());
        assert_eq!(ask(&node, member, CREDENTIALS).is(), forbidden());
        assert_eq!(ask(&node, member, WITH).is(), forbidden());
    }
    // Rights of several rules add up.
    assert!(ask(&node, who(OTHER, GROUP), WITH).body.contains(SECRET));
    // Credentials alone are not the rest.
    assert!(
        ask(&node, who(OTHER, STRANGERS), CREDENTIALS)
            .body
            .contains(SECRET)
    );
    for path in [LOOKUP, RESOLVE, WITH, EXPLAIN] {
        assert_eq!(
            ask(&node, who(OTHER, STRANGERS), path).is(),
            forbidden(),
            "{path}"
        );
    }
    // With rules there are no default ones: not for root, not for the socket's group.
    for caller in [who(0, 0), who(STRANGERS, 0)] {
        assert_eq!(ask(&node, caller, LOOKUP).is(), forbidden(), "{caller:?}");
    }
    // A user's number is not a group's.
    assert_eq!(ask(&node, who(GROUP, USER), LOOKUP).is(), forbidden());
    // No rule brings credentials to TCP.
    assert_eq!(node.get_tcp(LOOKUP).await.status, 200);
    for path in [CREDENTIALS, WITH] {
        assert_eq!(
            node.get_tcp(path).await.text("/status"),
            "credentials_need_unix_socket"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_may_name_its_user_or_group() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    db.load_example().await;
    for rule in ["user = 'root'", "group = 'root'"] {
        let mut node = Node::prepare(
            &db.url(),
            &format!("http.unix_mode = '0666'\n[[access]]\n{rule}\nallow = ['config']"),
        );
        node.start();
        wait_ready(&node).await;
        assert_eq!(ask(&node, who(0, 0), LOOKUP).is(), ok(), "{rule}");
        assert_eq!(
            ask(&node, who(0, 0), CREDENTIALS).is(),
            forbidden(),
            "{rule}"
        );
        let as_group = Who {
            uid: USER,
            gid: STRANGERS,
            also: Some(0),
        };
        assert_eq!(
            ask(&node, as_group, LOOKUP).code == 200,
            rule.starts_with("group"),
            "{rule}"
        );
    }
    let mut node = Node::prepare(
        &db.url(),
        "[[access]]\nuser = 'nobody-of-this-name'\nallow = ['config']",
    );
    node.start();
    assert!(!node.ended().success());
    assert!(node.log().contains("nobody-of-this-name"), "{}", node.log());
}

/// Waits over TCP, where no rule counts, for the complete copy.
async fn wait_ready(node: &Node) {
    node.answering().await;
    crate::node::until("the replica is complete", async || {
        node.get_tcp("/readyz").await.json()["synced"] == true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_right_to_a_tenant_cannot_tell_its_numbers_from_unknown_ones() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    let settings = rules(&[
        (
            "user",
            USER,
            "allow = ['config', 'credentials']\ntenants = ['guardianes-srl']",
        ),
        // By id, in capitals.
        (
            "user",
            OTHER,
            "allow = ['config']\ntenants = ['D2C4A8E1-7B9F-4A6E-8A1B-77889900AABB']",
        ),
        ("user", GROUP, "allow = ['config', 'credentials']"),
    ]);
    let mut node = Node::prepare(
        &db.url(),
        &format!("numbers.country_code = '54'\n{settings}"),
    );
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    db.sql(
        "insert into public.tenant_phone_numbers (tenant_id, e164, default_language, timezone, active) values
         ('6f717b5a-1a2b-4c3d-9e8f-112233445566', '+14155550101', 'es', 'UTC', false),
         ('6f717b5a-1a2b-4c3d-9e8f-112233445566', '+14155550102', 'es', 'Mars/Olympus', true),
         ('6f717b5a-1a2b-4c3d-9e8f-112233445566', '+1150000002', 'es', 'UTC', true),
         ('d2c4a8e1-7b9f-4a6e-8a1b-77889900aabb', '+541150000003', 'es', 'Mars/Olympus', true);
         insert into public.tenants (id, name, slug, status) values ('00000000-0000-4000-8000-0000000000aa', E'\\x01', 'never-good', 'active');
         insert into public.tenant_phone_numbers (tenant_id, e164, default_language, timezone)
         values ('00000000-0000-4000-8000-0000000000aa', '+14155550103', 'es', 'UTC')",
    )
    .await;
    node.start();
    wait_ready(&node).await;
    let (limited, by_id, all) = (
        who(USER, STRANGERS),
        who(OTHER, STRANGERS),
        who(GROUP, STRANGERS),
    );
    for caller in [limited, by_id] {
        assert_eq!(
            ask(&node, caller, &format!("/v1/lookup?to={GUARDIANES}")).is(),
            ok()
        );
        // Active, inactive, suspended, with a bad row, of a bad tenant: as if nobody had it.
        for number in [
            ACME,
            "%2B14155550101",
            SUSPENDED,
            "%2B14155550102",
            "%2B14155550103",
        ] {
            for (route, more) in [
                ("lookup", ""),
                ("lookup", "&format=form"),
                ("lookup/language", ""),
                ("resolve", ""),
                ("resolve", "&include=credentials"),
                ("credentials", ""),
                ("credentials", "&provider=openai"),
                ("explain", ""),
            ] {
                let said = ask(&node, caller, &format!("/v1/{route}?to={number}{more}"));
                let nobody = ask(&node, caller, &format!("/v1/{route}?to={UNKNOWN}{more}"));
                assert_eq!(said, nobody, "{caller:?} {route} {number}{more}");
            }
        }
        // The number as it was dialled is another tenant's; read as a national one it is the caller's own.
        assert_eq!(
            ask(&node, caller, "/v1/lookup/number?to=1150000002").body,
            "+541150000002"
        );
        // The bad row of one's own tenant is told.
        assert_eq!(
            ask(&node, caller, "/v1/lookup?to=%2B541150000003").is(),
            (503, "not_ready".to_owned())
        );
        assert!(
            ask(&node, caller, "/v1/explain?to=%2B541150000003")
                .body
                .contains("timezone")
        );
    }
    // Nor by what is counted, in memory or not: whoever may ask anything may read that.
    let counted = || {
        let text = ask(&node, limited, "/metrics").body;
        let counts = |line: &&str| {
            [
                "sidetone_cache_hits",
                "sidetone_cache_fills",
                "sidetone_cache_evictions",
            ]
            .iter()
            .any(|name| line.starts_with(name))
        };
        text.lines()
            .filter(counts)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = counted();
    assert_eq!(before.len(), 3, "{before:?}");
    for number in [UNKNOWN, ACME, ACME, "%2B14155550101", "%2B14155550102"] {
        ask(&node, limited, &format!("/v1/lookup?to={number}"));
        assert_eq!(counted(), before, "{number}");
    }
    assert_eq!(ask(&node, all, &format!("/v1/lookup?to={ACME}")).is(), ok());
    let before = counted();
    ask(&node, limited, &format!("/v1/lookup?to={ACME}"));
    assert_eq!(counted(), before, "in memory");
    // Who may know, is told what is the matter.
    for (number, is) in [
        (ACME, ok()),
        ("%2B14155550101", (404, "inactive_number".to_owned())),
        (SUSPENDED, (403, "tenant_suspended".to_owned())),
        ("%2B14155550102", (503, "not_ready".to_owned())),
        ("%2B14155550103", (503, "not_ready".to_owned())),
        (UNKNOWN, unknown()),
    ] {
        assert_eq!(
            ask(&node, all, &format!("/v1/lookup?to={number}")).is(),
            is,
            "{number}"
        );
    }
    assert_eq!(
        ask(&node, all, "/v1/lookup/number?to=1150000002").body,
        "+1150000002"
    );
    // A right follows the tenant's slug.
    db.sql("update public.tenants set slug = 'renamed' where slug = 'guardianes-srl'")
        .await;
    crate::node::until("the slug is followed", async || {
        node.get_tcp(&format!("/v1/lookup/tenant_slug?to={GUARDIANES}"))
            .await
            .body
            == "renamed"
    })
    .await;
    assert_eq!(
        ask(&node, limited, &format!("/v1/lookup?to={GUARDIANES}")).is(),
        unknown()
    );
    assert_eq!(
        ask(&node, by_id, &format!("/v1/lookup?to={GUARDIANES}")).is(),
        ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_other_providers_are_neither_given_nor_named() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    let settings = rules(&[
        (
            "user",
            USER,
            "allow = ['config', 'credentials']\nproviders = ['google']",
        ),
        (
            "user",
            OTHER,
            "allow = ['config', 'credentials']\nproviders = ['google']",
        ),
        (
            "group",
            GROUP,
            "allow = ['credentials']\nproviders = ['openai']\ntenants = ['seguridad-acme-sa']",
        ),
    ]);
    let mut node = Node::prepare(&db.url(), &settings);
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    let tenant = "6f717b5a-1a2b-4c3d-9e8f-112233445566";
    let sealed = node.seal(tenant, "google", "default", "g-1");
    db.sql(&format!(
        "insert into public.tenant_credentials (tenant_id, provider, name, data_ciphertext) values
         ('{tenant}', 'google', 'default', '{sealed}'), ('{tenant}', 'google', 'bad', 'x'), ('{tenant}', 'azure', 'bad', 'x')"
    ))
    .await;
    node.start();
    wait_ready(&node).await;
    let user = who(USER, STRANGERS);
    for path in [
        CREDENTIALS,
        WITH,
        "/v1/credentials?to=%2B14155550100&provider=google",
    ] {
        let answer: serde_json::Value = serde_json::from_str(&ask(&node, user, path).body).unwrap();
        assert_eq!(
            answer["credentials"],
            json!({"google": {"default": "g-1"}}),
            "{path}"
        );
        assert_eq!(
            answer["credentials_withheld"],
            json!(["google/bad"]),
            "{path}"
        );
    }
    for provider in ["openai", "azure", "nobody"] {
        let path = format!("/v1/credentials?to={ACME}&provider={provider}");
        assert_eq!(ask(&node, user, &path).is(), forbidden(), "{provider}");
    }
    // Rules add up, each with its own providers and tenants.
    let both: serde_json::Value =
        serde_json::from_str(&ask(&node, who(OTHER, GROUP), CREDENTIALS).body).unwrap();
    assert_eq!(
        both["credentials"],
        json!({"google": {"default": "g-1"}, "openai": {"default": SECRET}})
    );
    assert_eq!(
        ask(
            &node,
            who(OTHER, GROUP),
            &format!("/v1/credentials?to={GUARDIANES}&provider=openai")
        )
        .is(),
        forbidden()
    );
    // The right to ask for credentials of a tenant alone tells nothing of the rest of it.
    assert_eq!(ask(&node, who(STRANGERS, GROUP), LOOKUP).is(), forbidden());
    assert!(
        ask(&node, who(STRANGERS, GROUP), CREDENTIALS)
            .body
            .contains(SECRET)
    );
    assert_eq!(
        ask(
            &node,
            who(STRANGERS, GROUP),
            &format!("/v1/credentials?to={GUARDIANES}")
        )
        .is(),
        unknown()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_depend_on_who_may_have_them() {
    if !can_be_others() {
        return;
    }
    let db = fresh().await;
    let node = Node::with_example(&db, &format!("http.unix_group = '{GROUP}'")).await;
    for path in [
        format!("/v1/resolve?to={ACME}&{SUNDAY}&account_ref=ACME-001234"),
        format!("/v1/lookup?to={ACME}&{SUNDAY}&format=form"),
    ] {
        let (member, root) = (
            ask(&node, who(USER, GROUP), &path),
            ask(&node, who(0, 0), &path),
        );
        assert_eq!(
            (member.code, masked(&member.body)),
            (root.code, masked(&root.body))
        );
    }
}
