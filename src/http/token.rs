//! What operators over TCP show: a token from a file, and TLS with a certificate of theirs where that is asked for.
//! The files can be read again while connections stand: certificates are renewed more often than daemons start.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use hyper::StatusCode;
use hyper::header;
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};

use super::listen::BindError;
use super::wire::{Asked, Form, Reply, failure};
use crate::certificate::first_expiry;
use crate::config::AdminConfig;
use crate::metrics::{Certificate, Metrics};
use crate::seal::read_keyring;

/// Shortest token.
const LEAST_BYTES: usize = 16;

/// How long the answer to a wrong token is held back. Connections are few, so this bounds how many can be tried.
pub(super) const DELAY: Duration = Duration::from_millis(250);

/// What lets operators over TCP in, as the files of the settings have it.
#[derive(Debug)]
pub struct Gate {
    admin: AdminConfig,
    now: ArcSwap<Files>,
}

/// What the files hold.
#[derive(Debug)]
struct Files {
    token: Token,
    tls: Option<Tls>,
}

impl Files {
    fn read(admin: &AdminConfig) -> Result<Self, BindError> {
        Ok(Self {
            token: Token::load(&admin.token_file)?,
            tls: tls(admin)?,
        })
    }
}

impl Gate {
    pub(super) fn load(admin: &AdminConfig) -> Result<Self, BindError> {
        Ok(Self {
            admin: admin.clone(),
            now: ArcSwap::from_pointee(Files::read(admin)?),
        })
    }

    /// Reads the files again, for connections and requests from now on. Blocking.
    ///
    /// # Errors
    /// [`BindError`]: the first file that cannot be used; then all stay as they were.
    pub fn reload(&self) -> Result<(), BindError> {
        self.now.store(Arc::new(Files::read(&self.admin)?));
        Ok(())
    }

    /// Tells when the certificates end.
    pub fn tell_expiry(&self, metrics: &Metrics) {
        for (certificate, at) in self.expiries() {
            metrics.certificate_expiry.set_time(certificate, at);
        }
    }

    /// When the certificates end.
    pub fn expiries(&self) -> [(Certificate, Option<Timestamp>); 2] {
        let now = self.now.load();
        let tls = now.tls.as_ref();
        [
            (Certificate::Admin, tls.and_then(|tls| tls.expiry)),
            (
                Certificate::AdminClientCa,
                tls.and_then(|tls| tls.client_ca_expiry),
            ),
        ]
    }

    /// What is spoken below HTTP on connections that begin now.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let now = self.now.load();
        now.tls.as_ref().map(|tls| tls.config.clone())
    }

    /// Whether a request shows the token.
    pub(super) fn is_shown(&self, asked: &Asked) -> bool {
        self.now.load().token.is_shown(asked)
    }
}

/// TLS of the admin side, and when its certificates end.
#[derive(Debug)]
struct Tls {
    config: Arc<ServerConfig>,
    expiry: Option<Timestamp>,
    client_ca_expiry: Option<Timestamp>,
}

/// The token, as its hash: comparing hashes tells nothing of the token's length.
struct Token(aws_lc_rs::digest::Digest);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    fn load(path: &Path) -> Result<Self, BindError> {
        let told = |source| refused("admin.token_file", path, source);
        let text = read_keyring(path).map_err(|err| told(io::Error::other(err)))?;
        let token = text.trim_end_matches(['\r', '\n']);
        if token.len() < LEAST_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
            let what = "must be at least 16 visible ASCII characters on one line";
            return Err(told(io::Error::other(what)));
        }
        Ok(Self::of(token))
    }

    fn of(token: &str) -> Self {
        Self(digest(&SHA256, token.as_bytes()))
    }

    /// Whether a request shows the token, in exactly one `Authorization`.
    fn is_shown(&self, asked: &Asked) -> bool {
        let mut given = asked.headers.get_all(header::AUTHORIZATION).iter();
        let (Some(one), None) = (given.next(), given.next()) else {
            return false;
        };
        let Some((scheme, token)) = one.to_str().ok().and_then(|text| text.split_once(' ')) else {
            return false;
        };
        let shown = digest(&SHA256, token.trim().as_bytes());
        scheme.eq_ignore_ascii_case("bearer")
            && verify_slices_are_equal(shown.as_ref(), self.0.as_ref()).is_ok()
    }
}

/// What somebody without the token is told.
pub(super) fn unauthorized() -> Reply {
    let message = "operators over TCP show the token of admin.token_file as Authorization: Bearer";
    failure(
        StatusCode::UNAUTHORIZED,
        Form::Json,
        "unauthorized",
        message,
    )
    .with(header::WWW_AUTHENTICATE, "Bearer")
    .closing()
}

/// TLS of the admin side, where it is configured.
fn tls(admin: &AdminConfig) -> Result<Option<Tls>, BindError> {
    if admin.tls_cert.as_os_str().is_empty() {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = certificates("admin.tls_cert", &admin.tls_cert)?;
    let expiry = first_expiry(&chain);
    let mut client_ca_expiry = None;
    let (key, path) = ("admin.tls_key", &admin.tls_key);
    let pem = read_keyring(path).map_err(|err| refused(key, path, io::Error::other(err)))?;
    let private = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|err| refused(key, path, io::Error::other(err)))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|err| refused(key, path, io::Error::other(err)))?;
    let (ca, authority) = ("admin.tls_client_ca", &admin.tls_client_ca);
    let builder = if authority.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        let authorities = certificates(ca, authority)?;
        client_ca_expiry = first_expiry(&authorities);
        for certificate in authorities {
            roots
                .add(certificate)
                .map_err(|err| refused(ca, authority, io::Error::other(err)))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|err| refused(ca, authority, io::Error::other(err)))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|err| refused(key, path, io::Error::other(err)))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Tls {
        config: Arc::new(config),
        expiry,
        client_ca_expiry,
    }))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BindError> {
    let failed = |err: rustls::pki_types::pem::Error| refused(key, path, io::Error::other(err));
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        return Err(refused(key, path, io::Error::other("holds no certificate")));
    }
    Ok(found)
}

fn refused(key: &'static str, path: &Path, source: io::Error) -> BindError {
    BindError::System {
        key,
        at: path.display().to_string(),
        step: "be used",
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hyper::header::{HeaderMap, HeaderValue};

    use super::*;

    fn asked(authorization: &[&str]) -> Asked {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        Asked {
            method: hyper::Method::GET,
            path: "/".to_owned(),
            query: String::new(),
            headers,
            body: bytes::Bytes::new(),
        }
    }

    #[test]
    fn only_the_whole_token_shown_once_as_bearer_lets_in() {
        let token = Token::of("0123456789abcdef");
        for given in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef"] {
            assert!(token.is_shown(&asked(&[given])), "{given}");
        }
        for given in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789ABCDEF",
        ] {
            assert!(!token.is_shown(&asked(&[given])), "{given}");
        }
        assert!(!token.is_shown(&asked(&[])));
        let right = "Bearer 0123456789abcdef";
        assert!(!token.is_shown(&asked(&[right, right])));
    }

    #[test]
    fn a_token_file_that_others_can_read_or_that_is_short_is_refused_and_never_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let loaded = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Token::load(&path).map_err(|err| {
                let source = std::error::Error::source(&err).map(ToString::to_string);
                format!("{err}: {source:?}")
            })
        };
        let token = loaded("0123456789abcdef\n", 0o600).unwrap();
        assert!(token.is_shown(&asked(&["Bearer 0123456789abcdef"])));
        assert_eq!(format!("{token:?}"), "Token");
        for (text, mode) in [
            ("0123456789abcdef\n", 0o640),
            ("0123456789abcde\n", 0o600),
            ("0123456789 abcdef\n", 0o600),
            ("0123456789abcdef\n\nx", 0o600),
        ] {
            let told = loaded(text, mode).unwrap_err();
            assert!(
                told.starts_with("admin.token_file ") && !told.contains("0123456789"),
                "{told}"
            );
        }
    }
}
