//! Traces of what a node does beside answering, and of answers that were slow: sent to a collector by OTLP over HTTP.
//!
//! Always true: names and words of a span stand in this program, everything else in it is a count. Nothing here takes
//! text, so that no number, prompt, name or secret can get into one. Without `log.otlp_endpoint` nothing is recorded
//! and nothing runs. A collector that is away, slow or hostile costs a bounded queue, a thread, and the spans that do
//! not fit: nobody waits for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{
    FutureExt, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span, SpanData,
    SpanProcessor,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::cause::chain;
use crate::config;
use crate::metrics::{Delivery, Metrics};

/// An answer that takes longer than this is traced; the alert about slow answers begins there too.
pub const SLOW: Duration = Duration::from_millis(25);
/// A pull that brings nothing is traced only when it takes longer than this: it comes every two seconds.
const SLOW_PULL: Duration = Duration::from_millis(100);
/// How long one delivery to the collector may take.
const DELIVERY: Duration = Duration::from_secs(5);
/// How long what is left may take at the end.
const LAST_DELIVERY: Duration = Duration::from_secs(2);
/// Spans that wait for the collector; more are dropped.
const MOST_WAITING: usize = 2048;
const MOST_AT_ONCE: usize = 512;
const DELIVER_EVERY: Duration = Duration::from_secs(1);
/// Longest answer of a collector that is read.
const MOST_ANSWER_BYTES: usize = 64 * 1024;

/// Declares a closed set of words.
macro_rules! words {
    ($(#[doc = $about:literal])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $name {
            fn word(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
    };
}

words! {
    /// What takes its time: the name of a span.
    Work {
        /// Reaching Postgres, up to a session that can be used.
        Connect = "connect",
        /// One pull and what follows from it.
        Pull = "pull",
        /// Reading named rows.
        Load = "load",
        /// Comparing everything, or the first copy of it.
        Compare = "compare",
        /// A batch on its way to disk and into force.
        Apply = "apply",
        /// What an operator ordered.
        Refresh = "refresh",
        /// Comparing by an operator's order.
        Verify = "verify",
        /// A question that was answered slowly.
        Question = "question",
    }
}

words! {
    /// What is told of it: the key of an attribute.
    Fact {
        /// Why a pull was made.
        Cause = "sidetone.cause",
        /// Why everything is compared.
        Why = "sidetone.why",
        /// What a refresh is about.
        Scope = "sidetone.scope",
        /// Keys that a pull found changed.
        Changed = "sidetone.changed",
        /// Rows that were read.
        Read = "sidetone.rows.read",
        /// Rows that were written.
        Written = "sidetone.rows.written",
        /// Rows that were removed.
        Removed = "sidetone.rows.removed",
        /// 1: there was no copy before.
        First = "sidetone.first_copy",
        /// 1: nothing had changed.
        Idle = "sidetone.idle",
        /// Which route was asked.
        Route = "sidetone.route",
        /// How it ended.
        Outcome = "sidetone.outcome",
        /// How it failed.
        Error = "error.type",
    }
}

/// A word of this program, or a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Of a closed set.
    Word(&'static str),
    /// How many.
    Count(u64),
}

impl From<&'static str> for Told {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<u64> for Told {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<Told> for Value {
    fn from(told: Told) -> Self {
        match told {
            Told::Word(word) => Self::from(word),
            Told::Count(count) => Self::I64(i64::try_from(count).unwrap_or(i64::MAX)),
        }
    }
}

/// Tells something of the work under way; nothing where none is traced.
pub fn note(fact: Fact, told: impl Into<Told>) {
    Context::map_current(|now| {
        if now.has_active_span() {
            let told = Value::from(told.into());
            now.span().set_attribute(KeyValue::new(fact.word(), told));
        }
    });
}

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Not a place to send to.
    #[error("log.otlp_endpoint: {0}")]
    Endpoint(&'static str),
    /// No authority for `https`.
    #[error(
        "log.otlp_endpoint: TLS cannot be set up; install ca-certificates, or send to http:// on this host"
    )]
    Tls(#[source] rustls::Error),
    /// The exporter refused its settings, which it reads from the environment too.
    #[error(
        "log.otlp_endpoint: the exporter cannot be made; look for variables OTEL_ in the environment"
    )]
    Exporter(#[from] ExporterBuildError),
}

/// Where spans go; by default nowhere.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Recording>>);

#[derive(Debug)]
struct Recording {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Traces {
    /// To the collector at `log.otlp_endpoint`; nowhere where that is empty. Within a runtime.
    ///
    /// # Errors
    /// [`TracesError`]
    pub fn new(to: &str, node: &str, metrics: &Arc<Metrics>) -> Result<Self, TracesError> {
        if to.is_empty() {
            return Ok(Self::default());
        }
        let to = config::collector(to).map_err(TracesError::Endpoint)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(&to, metrics)?)
            .with_endpoint(to.to_string())
            .with_timeout(DELIVERY)
            .build()?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING)
            .with_max_export_batch_size(MOST_AT_ONCE)
            .with_scheduled_delay(DELIVER_EVERY)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batches)
            .build();
        // Empty, and every choice made here: the environment has no say in what is told.
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", "sidetone"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_owned()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource.build())
            .with_span_processor(Worthwhile(processor))
            .build();
        Ok(Self(Some(Arc::new(Recording {
            tracer: provider.tracer("sidetone"),
            provider,
        }))))
    }

    /// Does some work, as part of what is under way here.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn during<T, E>(
        &self,
        work: Work,
        kind: impl Fn(&E) -> &'static str,
        doing: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(recording) = &self.0 else {
            return doing.await;
        };
        let span = recording.tracer.start(work.word());
        let within = Context::current_with_span(span);
        let done = doing.with_context(within.clone()).await;
        if let Err(err) = &done {
            let span = within.span();
            span.set_attribute(KeyValue::new(Fact::Error.word(), kind(err)));
            span.set_status(Status::error(""));
        }
        within.span().end();
        done
    }

    /// A question that took longer than [`SLOW`] and is answered now.
    #[cold]
    pub fn slow_question(&self, route: &'static str, outcome: &'static str, took: Duration) {
        let Some(recording) = &self.0 else { return };
        let now = SystemTime::now();
        SpanBuilder::from_name(Work::Question.word())
            .with_kind(SpanKind::Server)
            .with_start_time(now.checked_sub(took).unwrap_or(now))
            .with_attributes([
                KeyValue::new(Fact::Route.word(), route),
                KeyValue::new(Fact::Outcome.word(), outcome),
            ])
            .start_with_context(&recording.tracer, &Context::new())
            .end_with_timestamp(now);
    }

    /// Delivers what is left, for a moment at most.
    pub async fn shut_down(self) {
        let Some(recording) = self.0 else { return };
        // It waits for a thread of its own.
        let last = tokio::task::spawn_blocking(move || {
            let _ = recording.provider.shutdown_with_timeout(LAST_DELIVERY);
        });
        let _ = last.await;
    }
}

/// Lets spans through that somebody may want to look at.
#[derive(Debug)]
struct Worthwhile(BatchSpanProcessor);

impl SpanProcessor for Worthwhile {
    fn on_start(&self, span: &mut Span, parent: &Context) {
        self.0.on_start(span, parent);
    }

    fn on_end(&self, span: SpanData) {
        let idle = span
            .attributes
            .iter()
            .any(|told| told.key.as_str() == Fact::Idle.word());
        let took = span.end_time.duration_since(span.start_time);
        if !idle || took.is_ok_and(|took| took > SLOW_PULL) {
            self.0.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// The way to the collector. The exporter's thread has no runtime of its own: each delivery runs on the daemon's.
#[derive(Debug)]
struct Collector {
    runtime: Handle,
    place: Arc<Place>,
    metrics: Arc<Metrics>,
    failing: AtomicBool,
}

struct Place {
    host: String,
    port: u16,
    authority: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Collector {
    fn new(to: &Uri, metrics: &Arc<Metrics>) -> Result<Self, TracesError> {
        let nowhere = || TracesError::Endpoint("must name a host");
        let host = to.host().ok_or_else(nowhere)?;
        let encrypted = to.scheme_str() == Some("https");
        let authority = to.authority().ok_or_else(nowhere)?.as_str();
        // An address of IPv6 stands in brackets in a URL only.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tls = if encrypted {
            let name = ServerName::try_from(bare.to_owned()).map_err(|_| nowhere())?;
            Some((
                TlsConnector::from(Arc::new(tls().map_err(TracesError::Tls)?)),
                name,
            ))
        } else {
            None
        };
        Ok(Self {
            runtime: Handle::current(),
            place: Arc::new(Place {
                host: bare.to_owned(),
                port: to.port_u16().unwrap_or(if encrypted { 443 } else { 80 }),
                authority: HeaderValue::from_str(authority).map_err(|_| nowhere())?,
                tls,
            }),
            metrics: metrics.clone(),
            failing: AtomicBool::new(false),
        })
    }

    /// Counts, and says once that it fails and once that it works again.
    fn tell(&self, failure: Option<&str>) {
        let failed = failure.is_some();
        self.metrics.trace_batches.inc(if failed {
            Delivery::Failed
        } else {
            Delivery::Delivered
        });
        let failed_before = self.failing.swap(failed, Ordering::Relaxed);
        let collector = &self.place;
        match failure {
            Some(error) if !failed_before => {
                tracing::warn!(
                    ?collector,
                    error,
                    "traces cannot be delivered; those that do not fit into the queue are lost"
                );
            }
            Some(error) => tracing::debug!(?collector, error, "traces still cannot be delivered"),
            None if failed_before => tracing::info!(?collector, "traces are delivered again"),
            None => {}
        }
    }
}

/// TLS as to a Postgres without `postgres.tls_ca`: the authorities of the operating system.
fn tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

impl HttpClient for Collector {
    fn send_bytes<'life, 'sending>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'sending>>
    where
        'life: 'sending,
        Self: 'sending,
    {
        let place = self.place.clone();
        let sending = self.runtime.spawn(async move {
            // Within the runtime, which has the clock.
            tokio::time::timeout(DELIVERY, deliver(place, request)).await
        });
        Box::pin(async move {
            let answer = match sending.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(late)) => Err(late.into()),
                Err(stopped) => Err(stopped.into()),
            };
            match &answer {
                Ok(answer) if answer.status().is_success() => self.tell(None),
                Ok(answer) => self.tell(Some(answer.status().as_str())),
                Err(err) => self.tell(Some(&chain(err.as_ref()))),
            }
            answer
        })
    }
}

async fn deliver(place: Arc<Place>, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
    match &place.tls {
        None => post(stream, &place, request).await,
        Some((tls, name)) => post(tls.connect(name.clone(), stream).await?, &place, request).await,
    }
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: &Place,
    mut request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let path = request.uri().path().parse()?;
    *request.uri_mut() = path;
    request.headers_mut().insert(HOST, place.authority.clone());
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let (head, body) = send
        .send_request(request.map(Full::new))
        .await?
        .into_parts();
    let body = Limited::new(body, MOST_ANSWER_BYTES).collect().await?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_an_endpoint_work_is_done_and_nothing_recorded() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let traces = Traces::new("", "n1", &metrics).unwrap();
        let work = async {
            note(Fact::Changed, 7);
            assert!(!Context::current().has_active_span());
            Ok::<_, ()>(7)
        };
        let done = traces.during(Work::Pull, |()| "none", work).await;
        assert_eq!(done, Ok(7));
        traces.slow_question("lookup", "ok", SLOW);
        traces.shut_down().await;
    }
}
