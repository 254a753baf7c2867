//! Requests and answers as the handlers see them, and one connection of them.
//!
//! A handler gets a whole request, its body within limits, and gives a whole answer. Whatever a handler
//! does, the caller gets exactly one answer with a `Content-Length`; a panic costs that one answer. Only a stream of
//! events has no length: it is chunked in HTTP/1.1, ends with the connection in HTTP/1.0, and is the last answer of either.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use prometheus::IntCounter;
use tokio_util::sync::CancellationToken;

use super::line::{Begun, Ends, Line, Progress, Stream};
use super::swift::{self, Plain};
use crate::answer::{self, Written};
use crate::metrics::{Label, Outcome};

/// Longest path and query that are read; a longer one is a bad request.
pub(super) const MOST_TARGET_BYTES: usize = 8 * 1024;

/// Longest head. A longer one is refused before any handler sees it.
const MOST_HEAD_BYTES: usize = 32 * 1024;

/// How much of a body over its limit is still read, so that the caller gets to read why it was refused.
const MOST_DISCARDED_BYTES: u64 = 1024 * 1024;

/// How an answer's body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"status":…}`
    Json,
    /// `status=…&…`
    Pairs,
    /// One value; nothing where there is none.
    Plain,
    /// Prometheus's text format.
    Metrics,
    /// Server-sent events.
    Events,
    /// A file of this media type.
    File(&'static str),
}

impl Form {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Pairs => "application/x-www-form-urlencoded",
            Self::Plain => "text/plain; charset=utf-8",
            Self::Metrics => "text/plain; version=0.0.4; charset=utf-8",
            Self::Events => "text/event-stream",
            Self::File(media_type) => media_type,
        }
    }
}

/// A whole request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Asked {
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Every value of a header that may be given in several lines.
    pub(super) fn headers(&self, name: HeaderName) -> Vec<&str> {
        self.headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect()
    }
}

/// A body without a length, written as it comes.
pub(super) struct Endless {
    pub(super) body: Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>,
    /// Counts those whose callers took nothing of it for too long.
    pub(super) cut_off: IntCounter,
}

impl std::fmt::Debug for Endless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Endless")
    }
}

/// What hyper writes after the head.
pub(super) enum ReplyBody {
    Whole(Full<Written>),
    Endless(Endless),
}

impl Body for ReplyBody {
    type Data = Written;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Written>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(cx),
            Self::Endless(endless) => {
                endless.body.as_mut().poll_frame(cx).map(|frame| {
                    frame.map(|frame| frame.map(|frame| frame.map_data(Written::from)))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Endless(endless) => endless.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Endless(endless) => endless.body.size_hint(),
        }
    }
}

/// A whole answer, or the head of an endless one.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: StatusCode,
    form: Form,
    pub(super) body: Written,
    headers: Vec<(HeaderName, HeaderValue)>,
    close: bool,
    hold: Duration,
    endless: Option<Endless>,
}

impl Reply {
    /// 200 with this body.
    pub(super) fn ok(form: Form, body: impl Into<Written>) -> Self {
        Self::new(StatusCode::OK, form, body)
    }

    pub(super) fn new(code: StatusCode, form: Form, body: impl Into<Written>) -> Self {
        Self {
            code,
            form,
            body: body.into(),
            headers: Vec::new(),
            close: false,
            hold: Duration::ZERO,
            endless: None,
        }
    }

    /// 200 with a body that goes on until it ends, and the connection with it.
    pub(super) fn endless(form: Form, endless: Endless) -> Self {
        Self {
            endless: Some(endless),
            close: true,
            ..Self::ok(form, Bytes::new())
        }
    }

    /// 200 with a value as JSON.
    pub(super) fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::ok(Form::Json, body),
            Err(err) => {
                tracing::error!(error = %err, "an answer cannot be written as JSON");
                internal()
            }
        }
    }

    /// With this header, in place of one of that name.
    pub(super) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.retain(|(given, _)| *given != name);
            self.headers.push((name, value));
        }
        self
    }

    /// Ends the connection after this answer.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Given only after this time, in which nothing more is read of the connection.
    pub(super) fn held(mut self, hold: Duration) -> Self {
        self.hold = hold;
        self
    }

    pub(super) fn content_type(&self) -> &'static str {
        self.form.content_type()
    }

    pub(super) fn length(&self) -> usize {
        self.body.remaining()
    }

    /// Besides type and length of the body.
    pub(super) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// What is written of it after this head.
    pub(super) fn pieces<'a>(&'a self, head: &'a [u8]) -> [&'a [u8]; 4] {
        let [before, prompts, after] = self.body.pieces();
        [head, before, prompts, after]
    }

    /// Whether nothing but this answer follows from it.
    fn is_plain(&self) -> bool {
        !self.close && self.hold.is_zero() && self.endless.is_none()
    }

    pub(super) fn into_response(self, close: bool) -> Response<ReplyBody> {
        let length = self.endless.is_none().then_some(self.length());
        let body = match self.endless {
            None => ReplyBody::Whole(Full::new(self.body)),
            Some(endless) => ReplyBody::Endless(endless),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(self.form.content_type()),
        );
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        headers.extend(self.headers);
        if self.close || close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An error in the words of the table: its status, what it counts as, what the caller can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fail {
    pub(super) outcome: Outcome,
    pub(super) message: String,
}

impl Fail {
    pub(super) fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            outcome,
            message: message.into(),
        }
    }

    pub(super) fn code(&self) -> StatusCode {
        match self.outcome {
            Outcome::Ok => StatusCode::OK,
            Outcome::TenantSuspended | Outcome::Forbidden | Outcome::CredentialsNeedUnixSocket => {
                StatusCode::FORBIDDEN
            }
            Outcome::InactiveNumber | Outcome::UnknownNumber | Outcome::NoSuchRoute => {
                StatusCode::NOT_FOUND
            }
            Outcome::InvalidNumber | Outcome::BadRequest => StatusCode::BAD_REQUEST,
            Outcome::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Outcome::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Outcome::CredentialsStale | Outcome::NotReady | Outcome::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    pub(super) fn reply(&self, form: Form) -> Reply {
        let code = self.code();
        let reply = failure(code, form, self.outcome.label(), &self.message);
        if code == StatusCode::SERVICE_UNAVAILABLE {
            reply.with(header::RETRY_AFTER, "1")
        } else {
            reply
        }
    }
}

/// An error in any words.
pub(super) fn failure(code: StatusCode, form: Form, status: &str, message: &str) -> Reply {
    let body = match form {
        Form::Json | Form::Metrics | Form::Events | Form::File(_) => {
            answer::error_json(status, message)
        }
        Form::Pairs => answer::error_form(status, message),
        Form::Plain => Vec::new(),
    };
    Reply::new(
        code,
        match form {
            Form::Metrics | Form::Events | Form::File(_) => Form::Json,
            form => form,
        },
        body,
    )
}

pub(super) fn internal() -> Reply {
    let message = "this answer failed; the daemon's log says why";
    Fail::new(Outcome::Internal, message).reply(Form::Json)
}

/// A method that the route has not.
pub(super) fn not_allowed(allowed: &str, form: Form) -> Reply {
    Fail::new(
        Outcome::MethodNotAllowed,
        format!("this route takes {allowed}"),
    )
    .reply(form)
    .with(header::ALLOW, allowed)
}

/// Answers the requests of one connection.
pub(super) trait Handler: Send + Sync + 'static {
    fn answer(self: Arc<Self>, asked: Asked) -> BoxFuture<'static, Reply>;

    /// The answer to a request that can be given from memory. Where there is none, nothing has happened, and the
    /// request is answered in the other way.
    fn at_once(&self, asked: &Plain<'_>) -> Option<Reply>;

    /// A request that never becomes an [`Asked`], because of its head, target or body, or whose answer failed.
    fn refused(&self, outcome: Outcome);

    /// Over TCP and for operators, where `Host` and `Origin` count: the names that this node has besides those of the loopback.
    fn hosts(&self) -> Option<&[String]>;
}

/// The answer to the request that these bytes begin with, where it can be given at once, and the request's length.
pub(super) fn at_once(handler: &impl Handler, bytes: &[u8]) -> Option<(Reply, usize)> {
    let (asked, length) = swift::plain(bytes)?;
    if !super::host::is_meant(asked.host, handler.hosts()) {
        return None;
    }
    let answering = AssertUnwindSafe(|| handler.at_once(&asked));
    // The panic itself is logged by the hook.
    let reply = catch_unwind(answering).unwrap_or_else(|_| {
        handler.refused(Outcome::Internal);
        Some(internal())
    });
    Some((reply.filter(Reply::is_plain)?, length))
}

/// Keeps what follows the first so many bytes of these.
pub(super) fn keep_rest(pieces: [&[u8]; 4], sent: usize, rest: &mut Vec<u8>) {
    let mut skip = sent;
    for piece in pieces {
        rest.extend_from_slice(piece.get(skip..).unwrap_or_default());
        skip = skip.saturating_sub(piece.len());
    }
}

/// What bounds a connection.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) ends: Ends,
    pub(super) max_body: u64,
}

/// Answers a connection's requests until either side ends it, or `kill` does. After `stop`, requests that
/// were sent already are answered and the connection is closed.
pub(super) async fn serve<H: Handler>(
    stream: Stream,
    begun: Begun,
    handler: Arc<H>,
    limits: &Limits,
    progress: Progress,
    kill: CancellationToken,
) {
    let stop = limits.ends.stop.clone();
    let mut line = Line::new(
        stream,
        begun,
        handler.clone(),
        progress.clone(),
        limits.ends.clone(),
    );
    let service = {
        let (stop, limits, handler) = (stop.clone(), limits.clone(), handler.clone());
        service_fn(move |request: Request<Incoming>| {
            let (handler, progress, limits) = (handler.clone(), progress.clone(), limits.clone());
            let stop = stop.clone();
            progress.begin(request.body().is_end_stream());
            async move {
                let length = request.body().size_hint().exact();
                let reply = AssertUnwindSafe(respond(request, &handler, &limits))
                    .catch_unwind()
                    .await;
                // The panic itself is logged by the hook.
                let reply = reply.unwrap_or_else(|_| {
                    handler.refused(Outcome::Internal);
                    internal()
                });
                let gives_way = limits.ends.hold_back(reply.hold).await;
                let last = match &reply.endless {
                    None => progress.end(length),
                    Some(endless) => progress.goes_on(endless.cut_off.clone()),
                };
                Ok::<_, Infallible>(reply.into_response(gives_way || (last && stop.is_cancelled())))
            }
        })
    };
    let mut connection = std::pin::pin!(async move {
        match std::future::poll_fn(|cx| line.poll_until_other(cx)).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(err) => {
                tracing::debug!(error = %err, "connection ended");
                return Ok(());
            }
        }
        http1::Builder::new()
            .half_close(true)
            .header_read_timeout(None) // `Line` keeps the time
            .max_buf_size(MOST_HEAD_BYTES)
            .serve_connection(TokioIo::new(line), service)
            .await
    });
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(err) = ended {
                    if err.is_parse() {
                        handler.refused(Outcome::BadRequest);
                    }
                    tracing::debug!(error = %err, "connection ended");
                }
                return;
            }
            () = kill.cancelled() => return,
            // Polls the connection once more, which sees that it is over.
            () = stop.cancelled(), if !stopping => stopping = true,
        }
    }
}

async fn respond<H: Handler>(
    request: Request<Incoming>,
    handler: &Arc<H>,
    limits: &Limits,
) -> Reply {
    let (head, body) = request.into_parts();
    if let Some(names) = handler.hosts()
        && let Err(fail) = super::host::check(&head.headers, &head.uri, head.version, names)
    {
        handler.refused(fail.outcome);
        return fail.reply(Form::Json).closing();
    }
    let target = head.uri.path_and_query();
    if target.is_some_and(|target| target.as_str().len() > MOST_TARGET_BYTES) {
        handler.refused(Outcome::BadRequest);
        let message = format!("path and query are longer than {MOST_TARGET_BYTES} bytes");
        return Fail::new(Outcome::BadRequest, message)
            .reply(Form::Json)
            .closing();
    }
    let body = match tokio::time::timeout(
        limits.ends.header_timeout,
        whole(body, &head.headers, limits.max_body),
    )
    .await
    {
        Ok(Ok(body)) => body,
        Ok(Err(message)) => {
            handler.refused(Outcome::BadRequest);
            return Fail::new(Outcome::BadRequest, message)
                .reply(Form::Json)
                .closing();
        }
        Err(_) => {
            handler.refused(Outcome::BadRequest);
            let message = "the body did not arrive in time";
            return Fail::new(Outcome::BadRequest, message)
                .reply(Form::Json)
                .closing();
        }
    };
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    handler.clone().answer(asked).await
}

/// A whole body, or why there is none.
async fn whole(mut body: Incoming, headers: &HeaderMap, most: u64) -> Result<Bytes, String> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let too_large = || format!("the body is longer than {most} bytes");
    let declared = body.size_hint().lower();
    let waits = headers.contains_key(header::EXPECT);
    if declared > most && (waits || declared > most.saturating_add(MOST_DISCARDED_BYTES)) {
        return Err(too_large());
    }
    let mut kept = Vec::with_capacity(usize::try_from(declared.min(most)).unwrap_or(0));
    let mut length: u64 = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err("the body broke off".to_owned());
        };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        length = length.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if length > most.saturating_add(MOST_DISCARDED_BYTES) {
            break;
        }
        if length <= most {
            kept.extend_from_slice(data);
        }
    }
    if length > most {
        Err(too_large())
    } else {
        Ok(kept.into())
    }
}

/// Whether one of the listed tags is this one, or any will do.
pub(super) fn names_tag(given: &str, etag: &str) -> bool {
    given
        .split(',')
        .map(str::trim)
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// Whether a caller may leave `Host` out.
pub(super) fn is_old(version: Version) -> bool {
    version < Version::HTTP_11
}
