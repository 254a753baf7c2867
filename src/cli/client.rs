//! A question to the daemon over its Unix socket: HTTP/1.1, one connection each, bounded in time and size.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::{CliError, Exit, SettingsArgs};

/// Longest answer: a stack of prompts is bounded by `limits.stack_bytes`, a status by its own lists.
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// Longest wait for a question of the call side and for anything that the daemon answers from memory.
pub const QUICK: Duration = Duration::from_secs(10);

/// What stands unescaped in a query: the unreserved characters of RFC 3986.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket stands there, or nobody listens on it.
    #[error(
        "cannot reach the daemon at {}: {said}; is it running? (systemctl status sidetone)",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said; not in the chain, since it stands in the text.
        said: String,
    },
    /// The socket's permissions.
    #[error(
        "may not use {}: permission denied; ask as root or as a member of the socket's group (ls -l {})",
        path.display(), path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// Too slow.
    #[error("the daemon at {} did not answer within {} s; see its log (journalctl -u sidetone)", path.display(), after.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The limit.
        after: Duration,
    },
    /// What came is no answer.
    #[error("the daemon at {} broke off: {what}; see its log (journalctl -u sidetone)", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        what: String,
    },
}

/// The system's words without their number, lower case.
fn system(err: &io::Error) -> String {
    let text = err.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}

impl ClientError {
    /// How a command ends on it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Denied { .. } => Exit::Refused,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Broken { .. } => {
                Exit::Unreachable
            }
        }
    }
}

/// Which socket to ask on.
#[derive(Debug, clap::Args)]
pub struct CallSocket {
    /// Socket of the daemon [default: http.unix of the settings]
    #[arg(long, env = "SIDETONE_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Which admin socket to ask on.
#[derive(Debug, clap::Args)]
pub struct AdminSocket {
    /// Admin socket of the daemon [default: admin.unix of the settings]
    #[arg(long, env = "SIDETONE_ADMIN_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl CallSocket {
    /// The client.
    ///
    /// # Errors
    /// When neither flag nor settings name a socket.
    pub fn client(&self, settings: &SettingsArgs) -> Result<Client, CliError> {
        match &self.socket {
            Some(path) => Ok(Client::new(path)),
            None => configured(&settings.load()?.http.unix, "http.unix"),
        }
    }
}

impl AdminSocket {
    /// The client.
    ///
    /// # Errors
    /// When neither flag nor settings name a socket.
    pub fn client(&self, settings: &SettingsArgs) -> Result<Client, CliError> {
        match &self.socket {
            Some(path) => Ok(Client::new(path)),
            None => configured(&settings.load()?.admin.unix, "admin.unix"),
        }
    }
}

fn configured(path: &Path, key: &str) -> Result<Client, CliError> {
    if path.as_os_str().is_empty() {
        return Err(CliError::Usage(format!(
            "{key} is empty, so the daemon has no such socket; set it, or name one with --socket"
        )));
    }
    Ok(Client::new(path))
}

/// The daemon, as seen from here.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

/// What the daemon said.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub code: StatusCode,
    /// The body as it came.
    pub body: Bytes,
}

impl Client {
    /// Asks on the socket at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `GET` of a target made by [`target`].
    ///
    /// # Errors
    /// [`ClientError`]; an answer with an error status is a [`Reply`].
    pub async fn get(&self, target: &str, limit: Duration) -> Result<Reply, ClientError> {
        self.ask(Method::GET, target, Bytes::new(), limit).await
    }

    /// `POST` of a JSON body.
    ///
    /// # Errors
    /// [`ClientError`]; an answer with an error status is a [`Reply`].
    pub async fn post(
        &self,
        target: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<Reply, ClientError> {
        self.ask(Method::POST, target, body.to_string().into(), limit)
            .await
    }

    async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Reply, ClientError> {
        match tokio::time::timeout(limit, self.exchange(method, target, body)).await {
            Ok(reply) => reply,
            Err(_) => Err(ClientError::Timeout {
                path: self.path.clone(),
                after: limit,
            }),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<Reply, ClientError> {
        let stream = self.connect().await?;
        let broken = |err: hyper::Error| self.broken(crate::cause::chain(&err));
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let mut request = request(method.clone(), target);
        if method == Method::POST {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|err| self.broken(err.to_string()))?;
        let answer = async {
            let (head, body) = send
                .send_request(request)
                .await
                .map_err(broken)?
                .into_parts();
            let told = body.size_hint().exact();
            let body = Limited::new(body, MOST_BYTES)
                .collect()
                .await
                .map_err(|err| {
                    self.broken(if err.is::<LengthLimitError>() {
                        format!("its answer is longer than {MOST_BYTES} bytes ({told:?} told)")
                    } else {
                        crate::cause::chain(err.as_ref())
                    })
                })?;
            Ok(Reply {
                code: head.status,
                body: body.to_bytes(),
            })
        };
        // The connection ends by itself once the answer is whole.
        let (reply, _) = tokio::join!(answer, connection);
        reply
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.path)
            .await
            .map_err(|err| match err.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Denied {
                    path: self.path.clone(),
                },
                _ => ClientError::Unreachable {
                    path: self.path.clone(),
                    said: system(&err),
                },
            })
    }

    /// Opens a stream of events, going on after the one with this id. `limit` is for its head alone.
    ///
    /// # Errors
    /// [`ClientError`]; an answer that is no stream is a [`Followed::Answer`].
    pub async fn follow(
        &self,
        target: &str,
        after: Option<&str>,
        limit: Duration,
    ) -> Result<Followed, ClientError> {
        let broken = |err: hyper::Error| self.broken(crate::cause::chain(&err));
        let open = async {
            let stream = TokioIo::new(self.connect().await?);
            let (mut send, connection) = hyper::client::conn::http1::handshake(stream)
                .await
                .map_err(broken)?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async {
                // What went wrong is told by the body too.
                let _ = connection.await;
            }));
            let mut request =
                request(Method::GET, target).header(header::ACCEPT, "text/event-stream");
            if let Some(after) = after {
                request = request.header("last-event-id", after);
            }
            let request = request
                .body(Full::new(Bytes::new()))
                .map_err(|err| self.broken(err.to_string()))?;
            let (head, body) = send
                .send_request(request)
                .await
                .map_err(broken)?
                .into_parts();
            if head.status == StatusCode::OK {
                return Ok(Followed::Stream(Stream { body, connection }));
            }
            let body = Limited::new(body, MOST_BYTES)
                .collect()
                .await
                .map_err(|err| self.broken(crate::cause::chain(err.as_ref())))?;
            Ok(Followed::Answer(Reply {
                code: head.status,
                body: body.to_bytes(),
            }))
        };
        tokio::time::timeout(limit, open).await.unwrap_or_else(|_| {
            Err(ClientError::Timeout {
                path: self.path.clone(),
                after: limit,
            })
        })
    }

    fn broken(&self, what: String) -> ClientError {
        ClientError::Broken {
            path: self.path.clone(),
            what,
        }
    }
}

fn request(method: Method, target: &str) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, "localhost")
        .header(
            header::USER_AGENT,
            concat!("sidetone/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close")
}

/// What came of opening a stream.
#[derive(Debug)]
pub enum Followed {
    /// It goes on.
    Stream(Stream),
    /// It was not opened, and this is why.
    Answer(Reply),
}

/// An answer that goes on.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    #[expect(dead_code, reason = "ends the connection when dropped")]
    connection: AbortOnDropHandle<()>,
}

impl Stream {
    /// What came next; nothing once the daemon has ended it or broke off.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let frame = self.body.frame().await?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                return Some(bytes);
            }
        }
    }
}

/// A path with its query.
#[must_use]
pub fn target(path: &str, query: &[(String, String)]) -> String {
    let mut target = path.to_owned();
    for (index, (name, value)) in query.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        target.extend(utf8_percent_encode(name, QUERY));
        target.push('=');
        target.extend(utf8_percent_encode(value, QUERY));
    }
    target
}

/// One segment of a path.
#[must_use]
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

impl Reply {
    /// Whether the answer is yes.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.code.is_success()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none: whatever listens there is not this daemon.
    pub fn json(&self, client: &Client) -> Result<Value, CliError> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let what = format!(
                "what answers there is no sidetone of this version (HTTP {})",
                self.code.as_u16()
            );
            CliError::Client(client.broken(what))
        })
    }

    /// How a command ends on this answer.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let status = self.said("status");
        Status::ALL
            .iter()
            .find(|known| Some(known.name) == status.as_deref())
            .map_or_else(|| exit_of_code(self.code), |known| known.exit)
    }

    /// The daemon's no, as an error for people.
    #[must_use]
    pub fn refusal(&self) -> CliError {
        let message = self
            .said("message")
            .or_else(|| self.said("status"))
            .unwrap_or_else(|| {
                let code = self.code.as_u16();
                match code {
                    404 => "no such number, or it is not active".to_owned(),
                    403 => "not allowed, or the tenant is not active".to_owned(),
                    _ => format!("the daemon answered HTTP {code}"),
                }
            });
        CliError::Answer {
            message,
            exit: self.exit(),
        }
    }

    /// A text of the body, where it has one of this name.
    pub(super) fn said(&self, field: &str) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        body.get(field)?
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    }
}

fn exit_of_code(code: StatusCode) -> Exit {
    match code.as_u16() {
        200..=299 => Exit::Ok,
        401 | 403 => Exit::Refused,
        404 | 409 | 410 => Exit::No,
        400..=499 => Exit::Usage,
        _ => Exit::Unreachable,
    }
}

/// Which sockets give a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Calls.
    Call,
    /// Operators.
    Admin,
}

/// A `status` of the daemon, and what it means.
#[derive(Debug)]
pub struct Status {
    /// Where it is given.
    pub side: Side,
    /// As it stands in the answer.
    pub name: &'static str,
    /// HTTP status it comes with.
    pub http: u16,
    /// How a command ends on it.
    pub exit: Exit,
    /// When it is given.
    pub meaning: &'static str,
}

impl Status {
    /// Every status. One that both sides give stands once.
    pub const ALL: &'static [Self] = &[
        Self::new("ok", 200, Exit::Ok, "found, stale or not"),
        Self::new(
            "tenant_suspended",
            403,
            Exit::No,
            "the tenant's status is not `active`",
        ),
        Self::new(
            "inactive_number",
            404,
            Exit::No,
            "the number's `active` is false",
        ),
        Self::new("unknown_number", 404, Exit::No, "no such number"),
        Self::new("invalid_number", 400, Exit::Usage, "not a phone number"),
        Self::new(
            "bad_request",
            400,
            Exit::Usage,
            "a parameter given twice, too long, or wrong",
        ),
        Self::new(
            "forbidden",
            403,
            Exit::Refused,
            "no rule of `access` allows the caller this",
        ),
        Self::new(
            "credentials_need_unix_socket",
            403,
            Exit::Refused,
            "credentials asked for over TCP",
        ),
        Self::new(
            "credentials_stale",
            503,
            Exit::Refused,
            "cut off from Postgres for longer than `feed.refuse_credentials_after`",
        ),
        Self::new("no_such_route", 404, Exit::Usage, "no such route"),
        Self::new(
            "method_not_allowed",
            405,
            Exit::Usage,
            "the route has no such method",
        ),
        Self::new(
            "not_ready",
            503,
            Exit::Unreachable,
            "never synchronised and Postgres unreachable",
        ),
        Self::new(
            "overloaded",
            503,
            Exit::Unreachable,
            "too many questions at once, or by this caller (`rate`)",
        ),
        Self::new(
            "internal",
            500,
            Exit::Unreachable,
            "the node failed at this one answer; its log says where",
        ),
        Self::admin(
            "unauthorized",
            401,
            Exit::Refused,
            "over TCP without the token of `admin.token_file`",
        ),
        Self::admin("accepted", 202, Exit::Ok, "ordered without `wait`"),
        Self::admin("unknown_tenant", 404, Exit::No, "no such tenant"),
        Self::admin(
            "not_reached",
            409,
            Exit::No,
            "the transaction of `at_least` did not complete in time",
        ),
        Self::admin(
            "other_database",
            409,
            Exit::Refused,
            "the database has no tenant in common with the replica; `accept_loss` lets it in",
        ),
        Self::admin(
            "bad_keyring",
            409,
            Exit::No,
            "the keyring cannot be read again; the old one stays in force",
        ),
        Self::admin("stopping", 503, Exit::Unreachable, "the daemon is stopping"),
        Self::admin(
            "timeout",
            504,
            Exit::Unreachable,
            "not done in time; it goes on",
        ),
        Self::admin("internal", 500, Exit::No, "the daemon's log says why"),
    ];

    const fn new(name: &'static str, http: u16, exit: Exit, meaning: &'static str) -> Self {
        Self {
            side: Side::Call,
            name,
            http,
            exit,
            meaning,
        }
    }

    const fn admin(name: &'static str, http: u16, exit: Exit, meaning: &'static str) -> Self {
        Self {
            side: Side::Admin,
            name,
            http,
            exit,
            meaning,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Label, Outcome};

    fn reply(code: u16, body: &str) -> Reply {
        Reply {
            code: StatusCode::from_u16(code).unwrap(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn every_outcome_of_the_call_side_has_an_exit_code() {
        for outcome in Outcome::ALL {
            let known = Status::ALL
                .iter()
                .find(|status| status.name == outcome.label());
            assert!(
                known.is_some_and(|known| known.side == Side::Call),
                "{}",
                outcome.label()
            );
        }
        assert_eq!(
            Status::ALL
                .iter()
                .filter(|status| status.side == Side::Call)
                .count(),
            Outcome::ALL.len()
        );
    }

    #[test]
    fn a_suspended_tenant_is_a_no_and_a_forbidden_caller_is_refused_though_both_are_403() {
        assert_eq!(
            reply(403, r#"{"status":"tenant_suspended","message":"x"}"#).exit(),
            Exit::No
        );
        assert_eq!(
            reply(403, r#"{"status":"forbidden","message":"x"}"#).exit(),
            Exit::Refused
        );
        assert_eq!(reply(403, "").exit(), Exit::Refused);
        assert_eq!(
            reply(503, r#"{"status":"not_ready"}"#).exit(),
            Exit::Unreachable
        );
        assert_eq!(
            reply(400, r#"{"status":"invalid_number"}"#).exit(),
            Exit::Usage
        );
    }

    #[test]
    fn a_plus_and_an_ampersand_survive_the_query() {
        let query = [
            ("to".to_owned(), "+1 415".to_owned()),
            ("attr.a&b".to_owned(), "c=d".to_owned()),
        ];
        assert_eq!(
            target("/v1/lookup", &query),
            "/v1/lookup?to=%2B1%20415&attr.a%26b=c%3Dd"
        );
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_what_to_look_at() {
        let err = Client::new(Path::new("/nonexistent/s.sock"))
            .get("/healthz", QUICK)
            .await
            .unwrap_err();
        assert_eq!(
            crate::cause::chain(&err),
            "cannot reach the daemon at /nonexistent/s.sock: no such file or directory; is it running? (systemctl status sidetone)"
        );
        assert_eq!(err.exit(), Exit::Unreachable);
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let err = Client::new(&path)
            .get("/healthz", Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(matches!(err, ClientError::Timeout { .. }), "{err}");
    }

    #[tokio::test]
    async fn what_is_no_http_is_told_as_broken() {
        use tokio::io::AsyncWriteExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-x\r\n\r\n").await.unwrap();
        });
        let err = Client::new(&path).get("/healthz", QUICK).await.unwrap_err();
        assert!(matches!(err, ClientError::Broken { .. }), "{err}");
    }
}
