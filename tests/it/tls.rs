//! The link to Postgres over TCP: who is trusted, what is sent, and what is told when it does not come about.
//!
//! Certificates are made here. What goes wrong is looked at from both clients: the daemon's feed in `status`, and
//! `check`, which begins with the one that reads single numbers. Neither ever tells the password.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    SignatureAlgorithm, date_time_ymd,
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Db, Options};
use crate::node::{ACME, Node, SECRET, until};
use crate::proxy::{Proxy, Weather};

const PASSWORD: &str = "canary-pw-81f3";
const QUICK: &str =
    "feed.heartbeat_every = '200ms'\nfeed.heartbeat_timeout = '500ms'\nfeed.stale_after = '900ms'";
const BY_PASSWORD: &str = "hostssl all all 127.0.0.1/32 scram-sha-256";

/// Who signs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a server shows, PEM.
pub(crate) struct Shown {
    certificate: String,
    key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::signing_by(name, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn signing_by(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(
            CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap())
                .unwrap(),
        )
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, params: &CertificateParams) -> Shown {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Shown {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A certificate for the address that the tests connect to.
    pub(crate) fn for_loopback(&self) -> Shown {
        self.sign(&params("127.0.0.1"))
    }
}

/// A certificate for the address that the tests connect to, which ends on the first of January of a year.
fn ending(authority: &Authority, year: i32) -> Shown {
    let mut params = params("127.0.0.1");
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    authority.sign(&params)
}

fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

/// A cluster that shows it.
pub(crate) fn options(shown: &Shown) -> Options {
    Options::default().tcp().tls(&shown.certificate, &shown.key)
}

/// The role's password, kept as SCRAM.
async fn set_password(db: &Db<'_>) {
    db.sql(&format!(
        "set password_encryption = 'scram-sha-256'; alter role sidetone password '{PASSWORD}'"
    ))
    .await;
}

fn url(user: &str, port: u16, database: &str, query: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{port}/{database}{query}")
}

/// A node's settings with `more` appended, its authority and the URL in files beside them: a URL with a password may stand nowhere else.
pub(crate) fn settle(node: &Node, authority: Option<&Authority>, url: &str, more: &str) {
    let (address, ca) = (node.path("postgres.url"), node.path("ca.pem"));
    fs::write(&address, url).unwrap();
    fs::set_permissions(&address, fs::Permissions::from_mode(0o600)).unwrap();
    let mut more = format!("{more}\npostgres.url_file = '{}'", address.display());
    if let Some(authority) = authority {
        fs::write(&ca, authority.pem()).unwrap();
        more += &format!("\npostgres.tls_ca = '{}'", ca.display());
    }
    node.configure("", &more);
}

/// A node that is not started.
fn node_trusting(authority: &Authority, url: &str) -> Node {
    let node = Node::prepare("", QUICK);
    settle(&node, Some(authority), url, QUICK);
    node
}

async fn last_error(node: &Node) -> String {
    let status = node.admin("GET", "/v1/admin/status", "").await;
    assert!(!status.body.contains(PASSWORD), "{}", status.body);
    status
        .json()
        .pointer("/feed/last_error/text")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// What `check` found: level, subject, and finding and remedy in one.
fn check(node: &Node) -> Vec<(String, String, String)> {
    let output = node.cli(&["check", "--json"]);
    let all = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!all.contains(PASSWORD), "{all}");
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {all}"));
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    let findings = report["checks"].as_array().unwrap().iter();
    findings
        .map(|f| {
            (
                text(f, "level"),
                text(f, "subject"),
                format!("{}; {}", text(f, "found"), text(f, "remedy")),
            )
        })
        .collect()
}

#[track_caller]
fn found(findings: &[(String, String, String)], level: &str, subject: &str, words: &[&str]) {
    assert!(
        findings.iter().any(|(l, s, text)| l == level
            && s == subject
            && words.iter().all(|word| text.contains(word))),
        "no {level} {subject} with {words:?} in {findings:#?}"
    );
}

/// Waits until the feed tells this, and makes sure that `check` does too, that answers go on, and that no log has the
/// password.
async fn told(node: &Node, words: &[&str]) {
    until(&format!("the feed tells {words:?}"), async || {
        let error = last_error(node).await;
        words.iter().all(|word| error.contains(word))
    })
    .await;
    found(&check(node), "problem", "postgres.url_file", words);
    let answer = node
        .get(&format!("/v1/lookup?to={ACME}&credentials=true"))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!node.log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_authority_of_its_own_the_feed_follows_encrypted_and_check_says_so() {
    let authority = Authority::new("own");
    let cluster = Cluster::own(options(&authority.for_loopback()).hba(BY_PASSWORD));
    let db = cluster.database().await;
    set_password(&db).await;
    // Once as it stands by itself, once asked for by name.
    for query in ["", "?sslmode=verify-full"] {
        let url = url(
            &format!("sidetone:{PASSWORD}"),
            cluster.port(),
            db.name(),
            query,
        );
        let mut node = node_trusting(&authority, &url);
        if query.is_empty() {
            db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
                .await;
        }
        node.start();
        node.synced().await;
        let plain: i64 = db
            .value(
                "select count(*) filter (where not s.ssl) from pg_stat_ssl s join pg_stat_activity a using (pid)
                 where a.application_name like 'sidetone%' having count(*) > 0",
            )
            .await;
        assert_eq!(plain, 0);
        db.sql(
            "update public.tenant_phone_numbers set label = 'over TLS' where e164 = '+14155550100'",
        )
        .await;
        node.until(&format!("/v1/lookup/label?to={ACME}"), |reply| {
            reply.body == "over TLS"
        })
        .await;
        let findings = check(&node);
        found(&findings, "ok", "TLS", &["encrypted, server verified"]);
        found(&findings, "ok", "feed", &["hears doorbells"]);
        assert!(!node.log().contains(PASSWORD));
        db.sql(
            "update public.tenant_phone_numbers set label = 'again' where e164 = '+14155550100'",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_binding_can_be_required_where_the_certificate_allows_it() {
    let authority = Authority::new("binds");
    let cluster = Cluster::own(options(&authority.for_loopback()).hba(BY_PASSWORD));
    let db = cluster.database().await;
    set_password(&db).await;
    let url = url(
        &format!("sidetone:{PASSWORD}"),
        cluster.port(),
        db.name(),
        "?channel_binding=require",
    );
    let mut node = node_trusting(&authority, &url);
    node.start();
    node.synced().await;
    found(&check(&node), "ok", "feed", &["hears doorbells"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_certificate_allows_no_channel_binding_requiring_it_fails_and_says_why() {
    for (name, algorithm) in [
        ("ed25519", &rcgen::PKCS_ED25519),
        ("ecdsa-sha512", &rcgen::PKCS_ECDSA_P521_SHA512),
    ] {
        let authority = Authority::signing_by(name, algorithm);
        let cluster = Cluster::own(options(&authority.for_loopback()).hba(BY_PASSWORD));
        let db = cluster.database().await;
        set_password(&db).await;
        let user = format!("sidetone:{PASSWORD}");
        let mut node = node_trusting(
            &authority,
            &url(&user, cluster.port(), db.name(), "?channel_binding=require"),
        );
        node.start();
        node.answering().await;
        let words = ["channel_binding=require", "Ed25519", "SHA-512"];
        until(&format!("{name}: the feed says why"), async || {
            let error = last_error(&node).await;
            words.iter().all(|word| error.contains(word))
        })
        .await;
        found(&check(&node), "problem", "feed", &words);
        node.stop();
        // Not required, the password is still proved without being told.
        settle(
            &node,
            Some(&authority),
            &url(&user, cluster.port(), db.name(), ""),
            QUICK,
        );
        node.start();
        node.synced().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_gets_no_password_unless_the_url_disables_tls() {
    // Method `password`: whoever speaks in the clear shows it in the clear.
    let cluster = Cluster::own(
        Options::default()
            .tcp()
            .hba("host all all 127.0.0.1/32 password"),
    );
    let db = cluster.database().await;
    set_password(&db).await;
    let proxy = Proxy::before(cluster.port()).await;
    let user = format!("sidetone:{PASSWORD}");
    let authority = Authority::new("unused");
    let mut node = node_trusting(&authority, &url(&user, proxy.port, db.name(), ""));
    node.start();
    node.answering().await;
    let words = ["does not support TLS", "ssl = on", "sslmode=disable"];
    until("the feed says that there is no TLS", async || {
        let error = last_error(&node).await;
        words.iter().all(|word| error.contains(word))
    })
    .await;
    found(&check(&node), "problem", "postgres.url_file", &words);
    // Nor does the one that reads single numbers send any.
    assert_eq!(node.get(&format!("/v1/lookup?to={ACME}")).await.status, 503);
    node.stop();
    let heard = proxy.heard();
    assert!(
        !heard.is_empty()
            && heard
                .chunks(8)
                .all(|said| said == [0, 0, 0, 8, 4, 210, 22, 47]),
        "{heard:?}"
    );

    settle(
        &node,
        None,
        &url(&user, proxy.port, db.name(), "?sslmode=disable"),
        QUICK,
    );
    node.start();
    node.synced().await;
    found(
        &check(&node),
        "ok",
        "TLS",
        &["off, and nothing leaves this host"],
    );
    let heard = proxy.heard();
    assert!(
        heard
            .windows(PASSWORD.len())
            .any(|said| said == PASSWORD.as_bytes()),
        "the proxy hears no password at all"
    );
}

#[test]
fn plaintext_that_leaves_the_host_is_warned_of() {
    let node = Node::prepare(
        "postgres://sidetone@192.0.2.1/x?sslmode=disable",
        "postgres.connect_timeout = '200ms'",
    );
    found(
        &check(&node),
        "warning",
        "TLS",
        &["in the clear", "remove sslmode=disable"],
    );
    for quiet in [
        "postgres://sidetone@%2Fnowhere/x",
        "postgres://sidetone@127.0.0.1:1/x?sslmode=disable",
    ] {
        node.configure(quiet, "postgres.connect_timeout = '200ms'");
        found(&check(&node), "ok", "TLS", &["nothing leaves this host"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_certificate_ends_the_link_is_told_and_stops_no_answer() {
    let authority = Authority::new("right");
    let right = authority.for_loopback();
    let cluster = Cluster::own(
        options(&right)
            .hba("hostssl all all 127.0.0.1/32 password")
            .set("log_connections", "on"),
    );
    let db = cluster.database().await;
    set_password(&db).await;
    let proxy = Proxy::before(cluster.port()).await;
    let mut node = node_trusting(
        &authority,
        &url(&format!("sidetone:{PASSWORD}"), proxy.port, db.name(), ""),
    );
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    node.start();
    node.synced().await;

    let mut expired = params("127.0.0.1");
    (expired.not_before, expired.not_after) =
        (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 2, 3));
    let mut early = params("127.0.0.1");
    early.not_before = date_time_ymd(2190, 4, 5);
    let itself = KeyPair::generate().unwrap();
    let itself = Shown {
        certificate: params("127.0.0.1").self_signed(&itself).unwrap().pem(),
        key: itself.serialize_pem(),
    };
    let own_key = KeyPair::generate().unwrap();
    let mut own = params("127.0.0.1");
    own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = Shown {
        certificate: own.self_signed(&own_key).unwrap().pem(),
        key: own_key.serialize_pem(),
    };
    let cases: [(Shown, &[&str]); 7] = [
        (
            authority.sign(&expired),
            &["expired on 2020-02-03", "renew it"],
        ),
        (
            authority.sign(&early),
            &["not valid before 2190-04-05", "clock"],
        ),
        (
            authority.sign(&params("other.example")),
            &[
                "not for 127.0.0.1 but for",
                "other.example",
                "connect by a name it holds",
            ],
        ),
        (
            Authority::new("another").for_loopback(),
            &["no authority known here", "set postgres.tls_ca"],
        ),
        (
            Authority::new("right").for_loopback(),
            &["no authority known here", "set postgres.tls_ca"],
        ),
        (itself, &["no authority known here", "set postgres.tls_ca"]),
        (own, &["an authority's own", "set postgres.tls_ca"]),
    ];
    for (wrong, (shown, words)) in cases.iter().enumerate() {
        cluster.present(&shown.certificate, &shown.key).await;
        let said = cluster.log().len();
        if wrong == 0 {
            proxy.cut().await;
        } else {
            node.stop();
            node.start();
            node.answering().await;
        }
        told(&node, words).await;
        // Neither client went on to who it is.
        let log = cluster.log()[said..].to_owned();
        assert!(
            !log.contains("connection authorized: user=sidetone"),
            "{words:?}: {log}"
        );
        if wrong == 0 {
            cluster.present(&right.certificate, &right.key).await;
            node.level().await;
        }
    }
    node.stop();
    cluster.present(&right.certificate, &right.key).await;
    node.start();
    node.answering().await;
    node.level().await;
    // The same failure told twice would be two lines.
    let lines = node
        .log()
        .lines()
        .filter(|line| line.contains("expired on 2020") && line.contains("WARN"))
        .count();
    assert_eq!(lines, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_synchronised_reads_nothing_through_an_untrusted_link() {
    let cluster = Cluster::own(
        options(&Authority::new("theirs").for_loopback()).set("log_connections", "on"),
    );
    let db = cluster.database().await;
    db.load_example().await;
    let mut node = node_trusting(
        &Authority::new("ours"),
        &url("sidetone", cluster.port(), db.name(), ""),
    );
    node.start();
    node.answering().await;
    let answer = node.get(&format!("/v1/lookup?to={ACME}")).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    // In the log's words for a client that ends TLS, which are the same in every version.
    until("connections were tried and given up", async || {
        cluster
            .log()
            .matches("could not accept SSL connection")
            .count()
            >= 2
    })
    .await;
    assert!(
        !cluster.log().contains("user=sidetone"),
        "{}",
        cluster.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_taken_away_in_between_ends_the_link_before_anything_is_said() {
    let authority = Authority::new("stripped");
    // The server would take plaintext: only the node can refuse.
    let cluster =
        Cluster::own(options(&authority.for_loopback()).hba("host all all 127.0.0.1/32 password"));
    let db = cluster.database().await;
    set_password(&db).await;
    let proxy = Proxy::before(cluster.port()).await;
    let mut node = node_trusting(
        &authority,
        &url(&format!("sidetone:{PASSWORD}"), proxy.port, db.name(), ""),
    );
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    node.start();
    node.synced().await;
    proxy.cut().await;
    proxy.set(Weather::StripTls);
    until("the old connections are gone", async || {
        last_error(&node).await.contains("TLS")
    })
    .await;
    proxy.heard();
    told(
        &node,
        &[
            "does not support TLS",
            "somebody in between",
            "sslmode=disable",
        ],
    )
    .await;
    let heard = proxy.heard();
    assert!(
        !heard.is_empty()
            && heard
                .chunks(8)
                .all(|said| said == [0, 0, 0, 8, 4, 210, 22, 47]),
        "{heard:?}"
    );
    proxy.set(Weather::Fair);
    node.level().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_told_with_its_remedy_and_without_the_password() {
    let authority = Authority::new("refuses");
    let hba = format!("{BY_PASSWORD}\nhostssl all all 127.0.0.2/32 trust");
    let cluster = Cluster::own(options(&authority.for_loopback()).hba(&hba));
    let db = cluster.database().await;
    set_password(&db).await;
    let right = url(
        &format!("sidetone:{PASSWORD}"),
        cluster.port(),
        db.name(),
        "",
    );
    let mut node = node_trusting(&authority, &right);
    db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, SECRET))
        .await;
    node.start();
    node.synced().await;
    let cases: [(String, &[&str]); 4] = [
        (
            right.replace(PASSWORD, &format!("{PASSWORD}-not")),
            &[
                "password authentication failed",
                "28P01",
                "correct user and password",
            ],
        ),
        (
            right.replace("sidetone:", "nobody_known:"),
            &[
                "password authentication failed",
                "role is not there",
                "correct user and password",
            ],
        ),
        (
            right.replace(db.name(), "nowhere"),
            &[
                "database \"nowhere\" does not exist",
                "correct the name of the database",
            ],
        ),
        (
            right.replace("127.0.0.1", "localhost"),
            &["not for localhost", "connect by a name it holds"],
        ),
    ];
    for (wrong, words) in cases {
        node.stop();
        settle(&node, Some(&authority), &wrong, QUICK);
        node.start();
        node.answering().await;
        told(&node, words).await;
    }
    node.stop();
    settle(&node, Some(&authority), &right, QUICK);
    node.start();
    node.answering().await;
    node.level().await;
    for (breaks, mends, words) in [
        (
            "alter role sidetone nologin",
            "alter role sidetone login",
            ["not permitted to log in", "alter role"],
        ),
        (
            "alter role sidetone connection limit 0",
            "alter role sidetone connection limit -1",
            ["too many connections", "connection limit"],
        ),
    ] {
        db.sql(breaks).await;
        db.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'sidetone%'").await;
        told(&node, &words).await;
        db.sql(mends).await;
        node.level().await;
    }
    assert_eq!(
        node.get(&format!("/v1/lookup?to={ACME}")).await.json()["stale"],
        json!(false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_every_certificate_in_use_is_told() {
    let authority = Authority::new("own");
    let shown = ending(&authority, 2051);
    let cluster = Cluster::own(options(&shown).hba(BY_PASSWORD));
    let db = cluster.database().await;
    set_password(&db).await;
    let url = url(
        &format!("sidetone:{PASSWORD}"),
        cluster.port(),
        db.name(),
        "",
    );
    let mut node = node_trusting(&authority, &url);
    node.start();
    node.synced().await;
    let status =
        async || node.admin("GET", "/v1/admin/status", "").await.json()["certificates"].clone();
    // The authority's own is by default far away.
    let ca = "4096-01-01T00:00:00Z";
    let both = |server: &str| {
        serde_json::json!([
            {"certificate": "postgres_ca", "expires": ca},
            {"certificate": "postgres_server", "expires": server},
        ])
    };
    assert_eq!(status().await, both("2051-01-01T00:00:00Z"));
    let metric = "sidetone_certificate_expiry_timestamp_seconds{certificate=\"postgres_server\"}";
    assert_eq!(node.metric(metric).await, 2_556_144_000.0);
    found(&check(&node), "ok", "postgres.tls_ca", &["ca.pem", ca]);

    // The server's was renewed: told from the next connection on.
    let renewed = ending(&authority, 2061);
    cluster.present(&renewed.certificate, &renewed.key).await;
    db.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'sidetone%'")
        .await;
    until("the new one is told", async || {
        status().await == both("2061-01-01T00:00:00Z")
    })
    .await;

    // One that has ended is refused, and the file of authorities that is about to end is told.
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(3 * 86_400);
    params.not_after = soon.into();
    let ending = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let ca = format!("{}{}", authority.pem(), ending.pem());
    fs::write(node.path("ca.pem"), ca).unwrap();
    found(
        &check(&node),
        "warning",
        "postgres.tls_ca",
        &["ends at", "renew it"],
    );
}
