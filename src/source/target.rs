//! Where Postgres is and how it is reached: one place from which both clients are configured.
//!
//! Always true: TLS is verify-full unless the URL itself says `sslmode=disable` or names a Unix socket. Nothing falls
//! back to plaintext. No environment variable and no password file of libpq is read.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::SourceError;
use super::shown::{Noting, Shown};
use crate::certificate;
use crate::config::PostgresConfig;

/// Which server of several is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that takes writes: only there LISTEN works.
    Writable,
    /// Whichever answers.
    Any,
}

/// Why the settings do not say where Postgres is.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Neither a URL nor a file.
    #[error("postgres.url is not set; set it or postgres.url_file")]
    Missing,
    /// The file cannot be read.
    #[error(
        "postgres.url_file {path}: cannot be read; it must hold one URL and be readable by the daemon's user"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a URL for Postgres. What stands in it is not told: it may hold a password.
    #[error(
        "the Postgres URL cannot be read: {0}; it must look like postgres://user@host:5432/database?sslmode=verify-full"
    )]
    Url(String),
    /// The file of authorities cannot be used.
    #[error("postgres.tls_ca {path}: {what}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// How to reach Postgres. Its `Debug` shows hosts and database only.
#[derive(Clone)]
pub struct Target {
    config: tokio_postgres::Config,
    /// How TLS is made, where it is wanted.
    pub tls: MakeRustlsConnect,
    authorities: Vec<u8>,
    /// When the first certificate of `postgres.tls_ca` ends.
    pub authorities_expiry: Option<Timestamp>,
    shown: Arc<Shown>,
    /// Hosts, ports and database, for messages: never user or password.
    pub place: String,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Whether every host is a Unix socket or a loopback address.
    pub local: bool,
    /// Longest time for everything until a session is usable.
    pub connect_timeout: Duration,
    /// Longest time of one statement.
    pub statement_timeout: Duration,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("place", &self.place)
            .field("encrypted", &self.encrypted)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Reads `postgres.url` or `postgres.url_file`.
    ///
    /// # Errors
    /// [`TargetError`], which never repeats the URL.
    pub fn new(settings: &PostgresConfig, node: &str) -> Result<Self, TargetError> {
        Self::from_url(
            &read_url(&settings.url, &settings.url_file)?,
            settings,
            node,
        )
    }

    /// Reads `postgres.read_url` or `postgres.read_url_file`; `None` where neither is set.
    ///
    /// # Errors
    /// [`TargetError`], which never repeats the URL.
    pub fn to_read_from(
        settings: &PostgresConfig,
        node: &str,
    ) -> Result<Option<Self>, TargetError> {
        if settings.read_url.is_empty() && settings.read_url_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let url = read_url(&settings.read_url, &settings.read_url_file)?;
        Self::from_url(&url, settings, node).map(Some)
    }

    /// From a URL given otherwise, e.g. on the command line.
    ///
    /// # Errors
    /// [`TargetError`], which never repeats the URL.
    pub fn from_url(
        url: &SecretString,
        settings: &PostgresConfig,
        node: &str,
    ) -> Result<Self, TargetError> {
        let url = url.expose_secret().trim();
        if url.is_empty() {
            return Err(TargetError::Missing);
        }
        let (url, asked) = without_ssl_mode(url)?;
        let mut config =
            tokio_postgres::Config::from_str(&url).map_err(|err| TargetError::Url(reason(&err)))?;
        if config.get_hosts().is_empty() {
            return Err(TargetError::Url("no host".to_owned()));
        }
        let sockets = config
            .get_hosts()
            .iter()
            .all(|host| matches!(host, Host::Unix(_)));
        let encrypted = match asked {
            Asked::Disable => false,
            Asked::VerifyFull => true,
            Asked::Nothing => !sockets,
        };
        config.ssl_mode(if encrypted {
            SslMode::Require
        } else {
            SslMode::Disable
        });
        config
            .connect_timeout(settings.connect_timeout)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15))
            .application_name(format!("sidetone/{node}"));
        // To plan a pull takes four times as long as to run it, and no plan depends on the parameters' values.
        // Documents are text and hashed as text: whatever shapes text is pinned.
        let given = config.get_options().unwrap_or_default().to_owned();
        config.options(format!(
            "{given} -c jit=off -c plan_cache_mode=force_generic_plan -c TimeZone=UTC -c DateStyle=ISO -c extra_float_digits=1 -c search_path=pg_catalog \
             -c idle_in_transaction_session_timeout={idle} -c statement_timeout={limit}",
            idle = settings.statement_timeout.as_millis().saturating_mul(2),
            limit = settings.statement_timeout.as_millis(),
        ));
        let place = place(&config);
        let local = config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost"
                    || name
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|ip| ip.is_loopback())
            }
        });
        let Authorities {
            roots,
            pem: authorities,
            expiry: authorities_expiry,
        } = authorities(&settings.tls_ca, encrypted)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|err| TargetError::Tls(err.to_string()))?;
        let shown = Arc::new(Shown::default());
        let builder = if encrypted {
            let verifier = Noting::new(roots, provider, shown.clone())
                .map_err(|err| TargetError::Tls(err.to_string()))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        } else {
            builder.with_root_certificates(roots)
        };
        let tls = builder.with_no_client_auth();
        Ok(Self {
            config,
            tls: MakeRustlsConnect::new(tls),
            authorities,
            authorities_expiry,
            shown,
            place,
            encrypted,
            local,
            connect_timeout: settings.connect_timeout,
            statement_timeout: settings.statement_timeout,
        })
    }

    /// For tokio-postgres, which tries several hosts.
    #[must_use]
    pub fn tokio(&self, role: Role) -> tokio_postgres::Config {
        let mut config = self.config.clone();
        config.target_session_attrs(match role {
            Role::Writable => TargetSessionAttrs::ReadWrite,
            Role::Any => TargetSessionAttrs::Any,
        });
        config
    }

    /// For sqlx, which knows one host: the first.
    #[must_use]
    pub fn sqlx(&self, _role: Role) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass()
            .application_name(self.config.get_application_name().unwrap_or("sidetone"))
            .ssl_mode(if self.encrypted {
                PgSslMode::VerifyFull
            } else {
                PgSslMode::Disable
            });
        if self.encrypted {
            options = options.ssl_root_cert_from_pem(self.authorities.clone());
        }
        options = match self.config.get_hosts().first() {
            Some(Host::Unix(path)) => options.socket(path),
            Some(Host::Tcp(name)) => options.host(name),
            None => options,
        };
        options = options.port(self.config.get_ports().first().copied().unwrap_or(5432));
        if let Some(user) = self.config.get_user() {
            options = options.username(user);
        }
        // Set even where there is none: sqlx would take the one of PGPASSWORD.
        let password = self.config.get_password().unwrap_or_default();
        options = options.password(&String::from_utf8_lossy(password));
        if let Some(name) = self.config.get_dbname().or(self.config.get_user()) {
            options = options.database(name);
        }
        options.options([
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO"),
            ("extra_float_digits", "1"),
            ("search_path", "pg_catalog"),
        ])
    }

    /// When the certificate ends that the server showed at the last connect.
    #[must_use]
    pub fn shown_expiry(&self) -> Option<Timestamp> {
        self.shown.expiry()
    }

    /// The user that connects.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.config.get_user()
    }
}

fn read_url(url: &str, file: &Path) -> Result<SecretString, TargetError> {
    if file.as_os_str().is_empty() {
        return Ok(SecretString::from(url.to_owned()));
    }
    std::fs::read_to_string(file)
        .map(SecretString::from)
        .map_err(|source| TargetError::File {
            path: file.to_path_buf(),
            source,
        })
}

/// What the URL says about TLS.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Disable,
    VerifyFull,
}

/// The URL without its `sslmode`, which tokio-postgres would read in its own, weaker way.
fn without_ssl_mode(url: &str) -> Result<(String, Asked), TargetError> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(TargetError::Url(
            "it does not begin with postgres://".to_owned(),
        ));
    }
    // The password ends at the first; what follows would be taken for a host, and told.
    let place = url
        .split_once('@')
        .and_then(|(_, place)| place.split('?').next());
    if place.is_some_and(|place| place.contains('@')) {
        return Err(TargetError::Url(
            "it holds more than one @; write %40 for one in the password".to_owned(),
        ));
    }
    let Some((base, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), Asked::Nothing));
    };
    let mut asked = Asked::Nothing;
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", "disable")) => asked = Asked::Disable,
            Some(("sslmode", "verify-full")) => asked = Asked::VerifyFull,
            Some(("sslmode", other)) => {
                return Err(TargetError::Url(format!(
                    "sslmode={} is not supported: say disable or verify-full",
                    other.chars().take(20).collect::<String>()
                )));
            }
            _ => rest.push(pair),
        }
    }
    Ok((
        if rest.is_empty() {
            base.to_owned()
        } else {
            format!("{base}?{}", rest.join("&"))
        },
        asked,
    ))
}

/// Why a URL is none, without what stands in it: what is taken for an option may be the rest of a password.
fn reason(err: &tokio_postgres::Error) -> String {
    let said = super::chain(err);
    match said.find("invalid value for option") {
        Some(at) => said.split_at(at).1.to_owned(),
        None => "it is not written as a URL, or has an option that is not known; percent-encode what is special in the password".to_owned(),
    }
}

fn place(config: &tokio_postgres::Config) -> String {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{} (port {port})", path.display()),
            }
        })
        .collect();
    format!(
        "{} database {}",
        hosts.join(", "),
        config.get_dbname().or(config.get_user()).unwrap_or("?")
    )
}

/// Who may vouch for the server, for rustls and again as PEM for sqlx.
struct Authorities {
    roots: rustls::RootCertStore,
    pem: Vec<u8>,
    /// When the first ends, where a file names them.
    expiry: Option<Timestamp>,
}

fn authorities(file: &Path, encrypted: bool) -> Result<Authorities, TargetError> {
    let mut store = rustls::RootCertStore::empty();
    if !encrypted {
        return Ok(Authorities {
            roots: store,
            pem: Vec::new(),
            expiry: None,
        });
    }
    let certificates: Vec<CertificateDer<'static>> = if file.as_os_str().is_empty() {
        rustls_native_certs::load_native_certs().certs
    } else {
        let wrong = |what: String| TargetError::Authorities {
            path: file.to_path_buf(),
            what,
        };
        let text = std::fs::read(file).map_err(|err| wrong(format!("cannot be read: {err}")))?;
        CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|err| wrong(format!("is not PEM: {err}")))?
    };
    let expiry = certificate::first_expiry(&certificates).filter(|_| !file.as_os_str().is_empty());
    let mut pem = String::new();
    for certificate in certificates {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(&certificate);
        if store.add(certificate).is_ok() {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            encoded.as_bytes().chunks(64).for_each(|line| {
                pem.push_str(&String::from_utf8_lossy(line));
                pem.push('\n');
            });
            pem.push_str("-----END CERTIFICATE-----\n");
        }
    }
    if store.is_empty() {
        return Err(if file.as_os_str().is_empty() {
            TargetError::Tls("the operating system has no certificate authorities; install ca-certificates or set postgres.tls_ca".to_owned())
        } else {
            TargetError::Authorities {
                path: file.to_path_buf(),
                what: "holds no certificate".to_owned(),
            }
        });
    }
    Ok(Authorities {
        roots: store,
        pem: pem.into_bytes(),
        expiry,
    })
}

/// What a failure to connect means and what to do about it; `said` is Postgres's code and message where it answered.
/// Errors of both clients come through here, so that both say the same. Its text is the same at every try.
pub(super) fn failure(
    place: &str,
    err: &(dyn std::error::Error + 'static),
    said: Option<(&str, &str)>,
) -> SourceError {
    let place = place.to_owned();
    if let Some((code, message)) = said {
        return SourceError::Rejected {
            place,
            what: refusal(code, message),
        };
    }
    if let Some(tls) = tls_error(err) {
        return SourceError::Untrusted {
            place,
            what: distrust(tls),
        };
    }
    let what = super::chain(err);
    let hint = if what.contains("server does not support TLS") {
        "turn TLS on there (ssl = on); if it is on, somebody in between takes it away; \
         only sslmode=disable in the URL does without"
    } else if what.contains("did not use channel binding") {
        "channel_binding=require needs scram-sha-256 in pg_hba.conf, a password kept as SCRAM, and a certificate that is \
         not signed with Ed25519 or with ECDSA and SHA-512; change that, or remove channel_binding from the URL"
    } else if what.contains("password missing") {
        return SourceError::Rejected {
            place,
            what: "the server asks for a password and the URL holds none; write it into the URL, best in postgres.url_file"
                .to_owned(),
        };
    } else if what.contains("TLS handshake") {
        "the server ended TLS before it began; look at its log"
    } else {
        let hint = if what.contains("does not allow writes") || what.contains("read-only") {
            "; only a standby is left"
        } else {
            ""
        };
        return SourceError::Connect {
            place,
            what: format!("{what}{hint}"),
        };
    };
    SourceError::Untrusted {
        place,
        what: format!("{what}; {hint}"),
    }
}

/// What Postgres's refusal means.
fn refusal(code: &str, message: &str) -> String {
    let hint = match code {
        "28P01" => {
            "; the password is wrong or the role is not there, Postgres does not tell which: correct user and password of the URL"
        }
        "28000" if message.contains("pg_hba.conf") => {
            "; add a line for this host, role and database to pg_hba.conf there, hostssl for a connection with TLS"
        }
        "28000" if message.contains("does not exist") => {
            "; correct the user of the URL, or make the role with deploy/sql/roles.sql"
        }
        "28000" if message.contains("not permitted to log in") => {
            "; alter role … login, or take another role"
        }
        "28000" if message.contains("client certificate") => {
            "; client certificates are not supported: ask for a password in pg_hba.conf"
        }
        "3D000" => "; correct the name of the database in the URL, or make the database",
        "42501" => "; grant connect on the database to the role",
        "53300" => {
            "; close other connections, or raise max_connections or the role's connection limit"
        }
        "57P03" => "; wait: the server is starting or stopping",
        _ => "",
    };
    format!("{message} (SQLSTATE {code}){hint}")
}

/// The TLS library's error among the causes: an `io::Error` hides what it holds from `source`.
fn tls_error<'a>(err: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(err);
    while let Some(err) = next {
        if let Some(tls) = err.downcast_ref() {
            return Some(tls);
        }
        next = match err
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
        {
            Some(held) => Some(held),
            None => err.source(),
        };
    }
    None
}

/// Why TLS did not come about.
fn distrust(err: &rustls::Error) -> String {
    use rustls::CertificateError as Wrong;
    let wrong = match err {
        rustls::Error::InvalidCertificate(wrong) => wrong,
        rustls::Error::AlertReceived(alert) => {
            return format!("the server ended TLS ({alert:?}); look at its log");
        }
        err => {
            return format!("TLS failed: {err}; is it Postgres 13 or newer with TLS 1.2 or newer?");
        }
    };
    match wrong {
        Wrong::Expired => "the server's certificate has expired; renew it".to_owned(),
        Wrong::ExpiredContext { not_after, .. } => format!(
            "the server's certificate expired on {}; renew it, or set this host's clock right",
            day(not_after.as_secs())
        ),
        Wrong::NotValidYet => {
            "the server's certificate is not valid yet; set this host's clock right".to_owned()
        }
        Wrong::NotValidYetContext { not_before, .. } => format!(
            "the server's certificate is not valid before {}; set this host's clock right",
            day(not_before.as_secs())
        ),
        Wrong::NotValidForName => {
            "the server's certificate is for another name; connect by a name it holds".to_owned()
        }
        Wrong::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "the server's certificate is not for {} but for {}; connect by a name it holds, or make it one for this name",
            expected.to_str(),
            names(presented)
        ),
        // A bad signature is one of an authority that was made anew under its old name.
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "no authority known here vouches for the server's certificate; set postgres.tls_ca to the file of the one that \
             signed it"
                .to_owned()
        }
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the server's certificate is an authority's own, which no server may show; make one that an authority signed, \
             and set postgres.tls_ca to that authority"
                .to_owned()
        }
        other => format!("the server's certificate is refused: {other}; make a new one"),
    }
}

fn day(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "a day far away".to_owned(), |at| at.to_string())
}

/// A few of the names in a certificate that nobody vouches for: cut, and without what a terminal would obey.
fn names(presented: &[String]) -> String {
    const MOST: usize = 3;
    let mut told: Vec<String> = presented
        .iter()
        .take(MOST)
        .map(|name| {
            let (_, bare) = name.split_once('(').unwrap_or(("", name));
            bare.trim_matches(['(', ')', '"'])
                .chars()
                .filter(|c| c.is_ascii_graphic())
                .take(80)
                .collect()
        })
        .collect();
    if told.is_empty() {
        return "no name at all".to_owned();
    }
    if presented.len() > MOST {
        told.push("others".to_owned());
    }
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, TargetError> {
        Target::from_url(
            &SecretString::from(url.to_owned()),
            &PostgresConfig::default(),
            "n1",
        )
    }

    #[test]
    fn tls_is_verified_unless_the_url_says_otherwise() {
        assert!(target("postgres://u@db.example/x").unwrap().encrypted);
        assert!(
            target("postgres://u@db.example/x?sslmode=verify-full")
                .unwrap()
                .encrypted
        );
        assert!(
            !target("postgres://u@db.example/x?sslmode=disable")
                .unwrap()
                .encrypted
        );
        assert!(
            !target("postgres://u@%2Frun%2Fpostgresql/x")
                .unwrap()
                .encrypted
        );
    }

    #[test]
    fn weaker_modes_of_libpq_are_refused_by_name() {
        for mode in ["prefer", "allow", "require", "verify-ca"] {
            let err = target(&format!("postgres://u@db/x?sslmode={mode}"))
                .unwrap_err()
                .to_string();
            assert!(err.contains(mode) && err.contains("verify-full"), "{err}");
        }
    }

    #[test]
    fn an_error_never_repeats_the_url() {
        for url in [
            "mysql://u:hunter2@db/x",
            "postgres://u:hunter2@db:notaport/x",
            "postgres://u:hunter2@db/x?nonsense=hunter2",
            "postgres://u:a@hunter2@db/x",
            "postgres://u:a?b@hunter2@db/x",
            "postgres://u:a@b/hunter2@db/x",
            "postgres://u:[hunter2",
            "hunter2",
        ] {
            let err = target(url).unwrap_err();
            assert!(!format!("{err} {err:?}").contains("hunter2"), "{err}");
        }
        assert!(!format!("{:?}", target("postgres://u:hunter2@db/x").unwrap()).contains("hunter2"));
    }

    #[test]
    fn several_hosts_are_kept_and_named() {
        let target = target("postgres://u@a:1,b:2/x").unwrap();
        assert_eq!(target.place, "a:1, b:2 database x");
        assert_eq!(target.tokio(Role::Any).get_hosts().len(), 2);
    }

    #[test]
    fn a_loopback_address_and_a_socket_are_local() {
        assert!(
            target("postgres://u@127.0.0.1/x?sslmode=disable")
                .unwrap()
                .local
        );
        assert!(target("postgres://u@%2Frun/x").unwrap().local);
        assert!(
            !target("postgres://u@10.0.0.1/x?sslmode=disable")
                .unwrap()
                .local
        );
    }

    fn of_certificate(wrong: rustls::CertificateError) -> String {
        // As tokio-postgres and sqlx hand it on: inside an io::Error.
        let err = std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            rustls::Error::InvalidCertificate(wrong),
        );
        failure("db:5432 database x", &err, None).to_string()
    }

    #[test]
    fn a_wrong_certificate_is_told_by_what_is_wrong_with_it_and_what_to_do() {
        use rustls::CertificateError as Wrong;
        use rustls::pki_types::{ServerName, UnixTime};
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = of_certificate(Wrong::ExpiredContext {
            time: at(1_700_000_000),
            not_after: at(1_600_000_000),
        });
        assert!(expired.contains("expired on 2020-09-13") && expired.contains("renew"));
        assert!(
            !expired.contains("1700000000"),
            "differs at every try: {expired}"
        );
        let early = of_certificate(Wrong::NotValidYetContext {
            time: at(0),
            not_before: at(1_600_000_000),
        });
        assert!(early.contains("not valid before 2020") && early.contains("clock"));
        let named = of_certificate(Wrong::NotValidForNameContext {
            expected: ServerName::try_from("db.example").unwrap(),
            presented: vec![
                format!("DnsName(\"\u{1b}[31m{}\")", "x".repeat(500)),
                "b".into(),
                "c".into(),
                "d".into(),
            ],
        });
        assert!(
            named.contains("not for db.example but for [31mxxx"),
            "{named}"
        );
        assert!(
            named.contains("b, c, others") && named.len() < 400,
            "{named}"
        );
        assert!(!named.contains('\u{1b}'));
        for unknown in [Wrong::UnknownIssuer, Wrong::BadSignature] {
            assert!(of_certificate(unknown).contains("set postgres.tls_ca"));
        }
        assert!(of_certificate(Wrong::Revoked).contains("Revoked"));
    }

    #[test]
    fn a_refusal_keeps_the_words_of_postgres_and_adds_what_to_do() {
        for (code, message, hint) in [
            (
                "28P01",
                "password authentication failed for user \"u\"",
                "correct user and password",
            ),
            ("28000", "role \"u\" does not exist", "roles.sql"),
            (
                "28000",
                "no pg_hba.conf entry for host \"10.0.0.1\"",
                "hostssl",
            ),
            ("28000", "role \"u\" is not permitted to log in", "login"),
            (
                "3D000",
                "database \"x\" does not exist",
                "name of the database",
            ),
            (
                "42501",
                "permission denied for database \"x\"",
                "grant connect",
            ),
            (
                "53300",
                "too many connections for role \"u\"",
                "max_connections",
            ),
            ("57P03", "the database system is starting up", "wait"),
        ] {
            let err = failure("db", &std::fmt::Error, Some((code, message)));
            assert!(matches!(err, SourceError::Rejected { .. }));
            let text = err.to_string();
            assert!(
                text.contains(message) && text.contains(code) && text.contains(hint),
                "{text}"
            );
        }
    }

    #[test]
    fn a_server_without_tls_is_told_apart_from_one_that_is_not_reached() {
        let stripped = std::io::Error::other("server does not support TLS");
        let text = failure("db", &stripped, None).to_string();
        assert!(
            text.contains("no trusted connection to db") && text.contains("sslmode=disable"),
            "{text}"
        );
        let refused = std::io::Error::other("Connection refused");
        let text = failure("db", &refused, None).to_string();
        assert_eq!(text, "cannot connect to db: Connection refused");
    }
}
