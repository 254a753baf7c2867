//! Operators over TCP: the token, the names, TLS with client certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::{Cluster, free_port};
use crate::node::{Node, Reply, exchange, until};

const TOKEN: &str = "a-token-of-these-tests-0123456789";

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A node that operators can reach on a port; not started.
async fn prepared(more: &str) -> (Node, u16) {
    let db = Cluster::shared().database().await;
    let (port, node) = (free_port(), Node::prepare(&db.url(), ""));
    let token = node.path("token");
    secret(&token, &format!("{TOKEN}\n"));
    let more = more.replace("DIR", &node.dir.display().to_string());
    let admin = format!(
        "[admin]\ntcp = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n{more}",
        token.display()
    );
    node.configure(&db.url(), &admin);
    (node, port)
}

fn request(head: &str) -> String {
    format!("GET /v1/admin/status HTTP/1.1\r\nConnection: close\r\n{head}\r\n")
}

async fn ask(port: u16, head: &str) -> Reply {
    exchange(
        TcpStream::connect(("127.0.0.1", port)).await.unwrap(),
        &request(head),
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_over_tcp_shows_the_token_and_others_are_refused_slowly_and_told_in_the_log() {
    let (mut node, port) = prepared("").await;
    node.start();
    node.answering().await;
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    let reply = ask(port, &format!("Host: localhost\r\n{right}")).await;
    assert_eq!((reply.status, reply.text("/node")), (200, "n1".to_owned()));
    assert!(
        !reply
            .headers
            .keys()
            .any(|name| name.starts_with("access-control")),
        "{reply:?}"
    );

    for wrong in [
        "",
        "Authorization: Bearer x\r\n",
        "Authorization: Basic eDp5\r\n",
    ] {
        let began = Instant::now();
        let reply = ask(port, &format!("Host: localhost\r\n{wrong}")).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (401, "unauthorized".to_owned()),
            "{wrong}"
        );
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
        assert!(began.elapsed() >= Duration::from_millis(200), "{wrong}");
    }
    for head in [
        "Host: evil.example\r\n",
        "Host: localhost\r\nOrigin: http://evil.example\r\n",
    ] {
        let reply = ask(port, &format!("{head}{right}")).await;
        assert_eq!(
            (reply.status, reply.text("/status")),
            (403, "forbidden".to_owned()),
            "{head}"
        );
    }
    // What calls ask is not answered here, nor what operators ask on the port for calls.
    let call = format!(
        "GET /v1/lookup?to=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{right}\r\n"
    );
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert_eq!(
        exchange(stream, &call).await.unwrap().text("/status"),
        "no_such_route"
    );
    assert_eq!(
        node.get_tcp("/v1/admin/status").await.text("/status"),
        "no_such_route"
    );

    let log = node.log();
    assert!(log.contains("admin: no token, or a wrong one"));
    assert!(!log.contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_others_can_read_keeps_the_node_from_starting_and_check_says_so() {
    let (mut node, _) = prepared("").await;
    fs::set_permissions(node.path("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = node.cli(&["check", "--offline"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        told.contains("admin.token_file") && told.contains("0644"),
        "{told}"
    );
    node.start();
    assert!(!node.ended().success());
    assert!(node.log().contains("admin.token_file"));
}

fn openssl(dir: &Path, args: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(args)
        .output()
        .expect("openssl is installed");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An authority `name.pem`, and what it vouches for: `name-{leaf}.pem` with its key.
fn authority(dir: &Path, name: &str, leaf: &str) {
    let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let ca = [
        "req",
        "-x509",
        "-days",
        "2",
        "-subj",
        "/CN=authority",
        "-keyout",
        &key,
        "-out",
        &cert,
    ];
    openssl(dir, &[&ca[..], &curve[..]].concat());
    let leaf = format!("{name}-{leaf}");
    let (request, leaf_key, leaf_cert) = (
        format!("{leaf}.csr"),
        format!("{leaf}.key"),
        format!("{leaf}.pem"),
    );
    let asked = [
        "req",
        "-subj",
        "/CN=localhost",
        "-keyout",
        &leaf_key,
        "-out",
        &request,
    ];
    openssl(dir, &[&asked[..], &curve[..]].concat());
    fs::write(dir.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        dir,
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &request,
            "-CA",
            &cert,
            "-CAkey",
            &key,
            "-CAcreateserial",
            "-extfile",
            "names",
            "-out",
            &leaf_cert,
        ],
    );
    fs::set_permissions(dir.join(leaf_key), fs::Permissions::from_mode(0o600)).unwrap();
}

/// A connection that trusts `server.pem`, with the certificate of a client or none.
async fn over_tls(
    dir: &Path,
    port: u16,
    client: Option<&str>,
    head: &str,
) -> std::io::Result<Reply> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(dir.join("server.pem")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain =
                vec![CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    exchange(stream, &request(head)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_client_certificates_who_has_none_of_the_authority_is_not_answered() {
    let tls = "tls_cert = \"DIR/server-n1.pem\"\ntls_key = \"DIR/server-n1.key\"\ntls_client_ca = \"DIR/people.pem\"\nhosts = [\"n1.example\"]\n";
    let (mut node, port) = prepared(tls).await;
    authority(&node.dir, "server", "n1");
    authority(&node.dir, "people", "anna");
    authority(&node.dir, "strangers", "eve");
    node.start();
    node.answering().await;
    let token = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let known = Some("people-anna");
    let reply = over_tls(&node.dir, port, known, &token).await.unwrap();
    assert_eq!((reply.status, reply.text("/node")), (200, "n1".to_owned()));
    let named = over_tls(
        &node.dir,
        port,
        known,
        &token.replace("localhost", "n1.example:8378"),
    )
    .await
    .unwrap();
    assert_eq!(named.status, 200);
    let other = over_tls(
        &node.dir,
        port,
        known,
        &token.replace("localhost", "n2.example"),
    )
    .await
    .unwrap();
    assert_eq!(other.text("/status"), "forbidden");
    let without = over_tls(&node.dir, port, known, "Host: localhost\r\n")
        .await
        .unwrap();
    assert_eq!(without.status, 401);
    for stranger in [None, Some("strangers-eve")] {
        assert!(
            over_tls(&node.dir, port, stranger, &token).await.is_err(),
            "{stranger:?}"
        );
    }
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(exchange(stream, &request(&token)).await.is_err());
    assert!(
        node.log()
            .contains("no TLS with a caller of the admin side")
    );
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_and_token_are_taken_over_without_a_restart() {
    let tls = "tls_cert = \"DIR/server-n1.pem\"\ntls_key = \"DIR/server-n1.key\"\ntls_client_ca = \"DIR/people.pem\"\n";
    let (mut node, port) = prepared(tls).await;
    authority(&node.dir, "server", "n1");
    authority(&node.dir, "people", "anna");
    node.start();
    node.answering().await;
    let head = |token: &str| format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n");
    let known = Some("people-anna");
    let told = async |token: &str| over_tls(&node.dir, port, known, &head(token)).await;
    assert_eq!(told(TOKEN).await.unwrap().status, 200);
    let first = node
        .metric("sidetone_certificate_expiry_timestamp_seconds{certificate=\"admin\"}")
        .await;
    assert!(first > 0.0);

    // Another authority, and its certificate: nobody who trusts only that gets in before the files are read again.
    authority(&node.dir, "server", "n1");
    let other = "another-token-of-these-tests-987654";
    secret(&node.path("token"), other);
    assert!(told(TOKEN).await.is_err());
    node.signal(Signal::HUP);
    until("the files are read again", async || {
        node.log().contains("certificates of admin.tcp read again")
    })
    .await;
    assert_eq!(told(other).await.unwrap().status, 200);
    assert_eq!(told(TOKEN).await.unwrap().status, 401);
    let renewed = node
        .metric("sidetone_certificate_expiry_timestamp_seconds{certificate=\"admin\"}")
        .await;
    assert!(renewed >= first, "{renewed} after {first}");

    // A renewal that went wrong changes nothing, and is told.
    fs::write(node.path("server-n1.pem"), "not a certificate").unwrap();
    node.signal(Signal::HUP);
    until("the failure is told", async || {
        node.log()
            .contains("cannot be read again; the old ones stay")
    })
    .await;
    assert_eq!(told(other).await.unwrap().status, 200);
    assert!(node.stop().success());
}
