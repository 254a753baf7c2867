//! Everything this node measures, in one place: name, help, labels. Passed in, never global.
//!
//! Labels are enums whose children are made once, so that every series is there from the first scrape
//! and counting never allocates; a number or a tenant is no label. Base units: seconds and bytes.

pub mod reading;

use std::collections::HashMap;
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::health::FeedState;
use crate::row::{Reason, Table};

/// A closed set of label values.
pub trait Label: Copy + Eq + Hash + 'static {
    /// Every value.
    const ALL: &'static [Self];
    /// The value as it stands in the text format.
    fn label(self) -> &'static str;
}

/// Declares a label: the enum, its values and their spelling, once.
macro_rules! label {
    ($(#[doc = $about:literal])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[doc = $doc])* $variant,)* }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            fn label(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
    };
}

label! {
    /// How a question on the call side ended: the `status` of design section 4.
    Outcome {
        /// Found.
        Ok = "ok",
        /// Tenant not active.
        TenantSuspended = "tenant_suspended",
        /// Number not active.
        InactiveNumber = "inactive_number",
        /// No such number.
        UnknownNumber = "unknown_number",
        /// Not a number.
        InvalidNumber = "invalid_number",
        /// Not a question.
        BadRequest = "bad_request",
        /// The caller may not ask this.
        Forbidden = "forbidden",
        /// Credentials over TCP.
        CredentialsNeedUnixSocket = "credentials_need_unix_socket",
        /// Credentials on a node that has been cut off for too long.
        CredentialsStale = "credentials_stale",
        /// No such route.
        NoSuchRoute = "no_such_route",
        /// The route has no such method.
        MethodNotAllowed = "method_not_allowed",
        /// Never synchronised and Postgres unreachable, or rows never good.
        NotReady = "not_ready",
        /// Too many questions at once.
        Overloaded = "overloaded",
        /// The node failed at this one answer, by a panic.
        Internal = "internal",
    }
}

label! {
    /// A route of the call side.
    Route {
        /// `/v1/lookup`
        Lookup = "lookup",
        /// `/v1/lookup/{field}`
        Field = "field",
        /// `/v1/resolve`
        Resolve = "resolve",
        /// `/v1/credentials`
        Credentials = "credentials",
        /// `/v1/explain`
        Explain = "explain",
        /// `/v1/watch`, up to the head of the answer.
        Watch = "watch",
        /// Health, metrics and what does not exist.
        Other = "other",
    }
}

label! {
    /// What a watcher is told.
    Event {
        /// Status or revision of what is watched, at first and at each change.
        Revision = "revision",
        /// The age of answers.
        Heartbeat = "heartbeat",
        /// The feed was lost, or is level again.
        Upstream = "upstream",
        /// The node stops.
        End = "end",
    }
}

label! {
    /// Why a pull was made.
    PullCause {
        /// A notification.
        Doorbell = "doorbell",
        /// Time.
        Heartbeat = "heartbeat",
        /// The first pull of a connection.
        Connect = "connect",
        /// An operator.
        Refresh = "refresh",
        /// Comparison of everything, or the first copy of it.
        Reconcile = "reconcile",
    }
}

label! {
    /// What kind of key a change named.
    ChangeKind {
        /// One number.
        Number = "number",
        /// A tenant but its numbers.
        Tenant = "tenant",
        /// All numbers of a tenant.
        NumbersOf = "numbers_of",
        /// Everything.
        All = "all",
    }
}

label! {
    /// Why the connection to Postgres ended or was not made.
    Disconnect {
        /// Not reached: refused, unresolved, timed out, TLS.
        Connect = "connect",
        /// Reached and refused: authentication, missing right, wrong schema.
        Rejected = "rejected",
        /// Lost while in use.
        Lost = "lost",
        /// A pull took longer than `feed.heartbeat_timeout`.
        Timeout = "timeout",
        /// An error of sidetone.
        Panic = "panic",
    }
}

label! {
    /// How a delivery of traces ended.
    Delivery {
        /// The collector has them.
        Delivered = "delivered",
        /// It may be tried again; in the end they are lost.
        Failed = "failed",
    }
}

label! {
    /// Certificates whose end is watched.
    Certificate {
        /// `admin.tls_cert`
        Admin = "admin",
        /// `admin.tls_client_ca`
        AdminClientCa = "admin_client_ca",
        /// `postgres.tls_ca`
        PostgresCa = "postgres_ca",
        /// What Postgres showed at the last connect.
        PostgresServer = "postgres_server",
    }
}

label! {
    /// What keys of the keyring are for.
    KeyRole {
        /// The one that seals.
        Seal = "seal",
        /// Every one: all open.
        Open = "open",
    }
}

label! {
    /// What stands in the replica.
    Kind {
        /// Tenants.
        Tenant = "tenants",
        /// Numbers.
        Number = "numbers",
    }
}

/// One child per value of a label.
#[derive(Debug)]
pub struct Per<L, M>(HashMap<L, M>);

impl<L: Label, M> Per<L, M> {
    /// The child of a value.
    #[allow(clippy::missing_panics_doc)]
    pub fn of(&self, label: L) -> Option<&M> {
        self.0.get(&label)
    }
}

impl<L: Label> Per<L, IntCounter> {
    /// Counts one.
    pub fn inc(&self, label: L) {
        self.inc_by(label, 1);
    }

    /// Counts several.
    pub fn inc_by(&self, label: L, by: u64) {
        if let Some(counter) = self.0.get(&label) {
            counter.inc_by(by);
        }
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self, label: L) -> u64 {
        self.0.get(&label).map_or(0, IntCounter::get)
    }
}

impl<L: Label> Per<L, IntGauge> {
    /// Sets the child of a value.
    pub fn set(&self, label: L, to: i64) {
        if let Some(gauge) = self.0.get(&label) {
            gauge.set(to);
        }
    }
}

impl<L: Label> Per<L, Gauge> {
    /// Tells when something ends; 0 where nothing is there that ends.
    pub fn set_time(&self, label: L, at: Option<Timestamp>) {
        if let Some(gauge) = self.0.get(&label) {
            gauge.set(at.map_or(0.0, |at| at.as_duration().as_secs_f64()));
        }
    }

    /// When it ends.
    #[must_use]
    pub fn time(&self, label: L) -> Option<Timestamp> {
        let seconds = self.0.get(&label)?.get();
        let at =
            Timestamp::UNIX_EPOCH.checked_add(SignedDuration::try_from_secs_f64(seconds).ok()?);
        at.ok().filter(|_| seconds != 0.0)
    }
}

impl<L: Label> Per<L, Histogram> {
    /// Observes seconds.
    pub fn observe(&self, label: L, seconds: f64) {
        if let Some(histogram) = self.0.get(&label) {
            histogram.observe(seconds);
        }
    }
}

/// Every metric of the node.
#[derive(Debug)]
#[allow(missing_docs)] // the help text of each stands in `new`
pub struct Metrics {
    registry: Registry,
    pub lookups: Per<Outcome, IntCounter>,
    pub request_duration: Per<Route, Histogram>,
    pub connections: IntGauge,
    pub connections_limit: IntGauge,
    pub connections_total: IntCounter,
    pub accept_errors: IntCounter,
    pub watchers: IntGauge,
    pub watchers_limit: IntGauge,
    pub watch_events: Per<Event, IntCounter>,
    pub watchers_cut_off: IntCounter,
    pub page_listeners: IntGauge,
    pub page_listeners_cut_off: IntCounter,
    pub cache_hits: IntCounter,
    pub cache_fills: IntCounter,
    pub cache_evictions: IntCounter,
    pub cache_entries: IntGauge,
    pub cache_bytes: IntGauge,
    pub replica_rows: Per<Kind, IntGauge>,
    pub replica_bytes: IntGauge,
    pub feed_state: GaugeVec,
    pub feed_state_seconds: Gauge,
    pub feed_listening: IntGauge,
    pub feed_armed: IntGauge,
    pub feed_held: IntGauge,
    pub feed_behind: IntGauge,
    pub synced: IntGauge,
    pub staleness: Gauge,
    pub last_pull_started: Gauge,
    pub last_pull_completed: Gauge,
    pub cursor_age: Gauge,
    pub commit_to_visible: Histogram,
    pub pull_duration: Per<PullCause, Histogram>,
    pub pulls: Per<PullCause, IntCounter>,
    pub changes: Per<ChangeKind, IntCounter>,
    pub reconnects: Per<Disconnect, IntCounter>,
    pub reconcile_differences: IntCounter,
    pub doorbells: IntCounter,
    quarantined: IntGaugeVec,
    pub credentials_withheld: IntGauge,
    pub notification_queue_usage: Gauge,
    pub trace_batches: Per<Delivery, IntCounter>,
    pub certificate_expiry: Per<Certificate, Gauge>,
    pub key_expiry: Per<KeyRole, Gauge>,
    _build_info: IntGaugeVec,
}

/// Microseconds to seconds, for a request answered from memory up to one that waited for Postgres.
const REQUEST_BUCKETS: &[f64] = &[
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 500e-3, 2.5,
];
/// A doorbell's usual way takes milliseconds, a lost one `feed.heartbeat_every`.
const VISIBLE_BUCKETS: &[f64] = &[
    1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.0, 5.0, 30.0, 300.0,
];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Only when two metrics share a name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let r = &Registry::new_custom(Some("sidetone".into()), None)?;
        let metrics = Self {
            lookups: counters(
                r,
                "lookups_total",
                "Questions answered on the call side, by outcome",
                "outcome",
            )?,
            request_duration: histograms(
                r,
                "request_duration_seconds",
                "Time from a request's head to its whole answer, by route",
                "route",
                REQUEST_BUCKETS,
            )?,
            connections: gauge(
                r,
                "connections",
                "Connections open on the call listeners, watchers left out",
            )?,
            connections_limit: gauge(
                r,
                "connections_limit",
                "Most connections on the call listeners: http.max_connections, or what the limit of descriptors leaves",
            )?,
            connections_total: counter(
                r,
                "connections_total",
                "Connections accepted on the call listeners",
            )?,
            accept_errors: counter(
                r,
                "accept_errors_total",
                "Connections that could not be accepted",
            )?,
            watchers: gauge(r, "watchers", "Callers that watch a number or a tenant")?,
            watchers_limit: gauge(
                r,
                "watchers_limit",
                "Most watchers: http.max_watchers, or what the limit of descriptors leaves",
            )?,
            watch_events: counters(
                r,
                "watch_events_total",
                "Events told to watchers, by name",
                "event",
            )?,
            watchers_cut_off: counter(
                r,
                "watchers_cut_off_total",
                "Watchers that were cut off because they took nothing of their stream for 10 s",
            )?,
            page_listeners: gauge(
                r,
                "page_listeners",
                "Open pages that listen to /v1/admin/events",
            )?,
            page_listeners_cut_off: counter(
                r,
                "page_listeners_cut_off_total",
                "Pages that were cut off because they took nothing of their stream for 10 s",
            )?,
            cache_hits: counter(r, "cache_hits_total", "Profiles served from memory")?,
            cache_fills: counter(r, "cache_fills_total", "Profiles built from the replica")?,
            cache_evictions: counter(
                r,
                "cache_evictions_total",
                "Profiles removed from memory for room or replaced",
            )?,
            cache_entries: gauge(r, "cache_entries", "Profiles in memory")?,
            cache_bytes: gauge(r, "cache_bytes", "Estimated size of the profiles in memory")?,
            replica_rows: gauges(r, "replica_rows", "Rows in the replica, by kind", "kind")?,
            replica_bytes: gauge(r, "replica_bytes", "Size of the replica's file")?,
            feed_state: float_gauges(
                r,
                "feed_state",
                "1 for the state the feed is in, 0 for the others",
                "state",
                FeedState::ALL.map(FeedState::as_str).as_slice(),
            )?,
            feed_state_seconds: float_gauge(
                r,
                "feed_state_seconds",
                "Time since the feed entered its state",
            )?,
            feed_listening: gauge(r, "feed_listening", "1 while doorbells are heard")?,
            feed_armed: gauge(
                r,
                "feed_armed",
                "1 while every trigger is present and enabled",
            )?,
            feed_held: gauge(
                r,
                "feed_held",
                "1 while a loss is held back for an operator",
            )?,
            feed_behind: gauge(
                r,
                "feed_behind",
                "Changed keys that the last pull found and that are not applied yet",
            )?,
            synced: gauge(r, "synced", "1 once the replica holds a complete copy")?,
            staleness: float_gauge(
                r,
                "staleness_seconds",
                "Time since this node last proved that it was level with Postgres",
            )?,
            last_pull_started: float_gauge(
                r,
                "last_pull_started_timestamp_seconds",
                "When the last pull began",
            )?,
            last_pull_completed: float_gauge(
                r,
                "last_pull_completed_timestamp_seconds",
                "When the last pull was applied",
            )?,
            cursor_age: float_gauge(r, "cursor_age_seconds", "Time since the cursor last moved")?,
            commit_to_visible: histogram(
                r,
                "commit_to_visible_seconds",
                "Time from a change's statement in Postgres to its answer here; clock skew clamps at 0",
                VISIBLE_BUCKETS,
            )?,
            pull_duration: histograms(
                r,
                "pull_duration_seconds",
                "Time from sending a pull to its being applied, by cause",
                "cause",
                VISIBLE_BUCKETS,
            )?,
            pulls: counters(r, "pulls_total", "Pulls completed, by cause", "cause")?,
            changes: counters(r, "changes_total", "Changed keys applied, by kind", "kind")?,
            reconnects: counters(
                r,
                "reconnects_total",
                "Connections to Postgres lost or not made, by cause",
                "cause",
            )?,
            reconcile_differences: counter(
                r,
                "reconcile_differences_total",
                "Rows that a reconcile found different although the feed was level; must stay 0",
            )?,
            doorbells: counter(r, "doorbells_total", "Notifications received")?,
            quarantined: {
                let vec = IntGaugeVec::new(
                    Opts::new(
                        "quarantined_rows",
                        "Rows not in force as they stand in Postgres, by table and reason",
                    ),
                    &["table", "reason"],
                )?;
                for table in Table::ALL {
                    for reason in Reason::ALL {
                        vec.with_label_values(&[table.as_str(), reason.as_str()])
                            .set(0);
                    }
                }
                r.register(Box::new(vec.clone()))?;
                vec
            },
            credentials_withheld: gauge(r, "credentials_withheld", "Credentials that do not open")?,
            notification_queue_usage: float_gauge(
                r,
                "postgres_notification_queue_usage_ratio",
                "How full Postgres's notification queue is; above 0.5 doorbells stop",
            )?,
            trace_batches: counters(
                r,
                "trace_batches_total",
                "Deliveries of traces to log.otlp_endpoint that were tried, by outcome",
                "outcome",
            )?,
            certificate_expiry: times(
                r,
                "certificate_expiry_timestamp_seconds",
                "When the first certificate of a file ends, or the one that Postgres showed at the last connect; 0: none",
                "certificate",
            )?,
            key_expiry: times(
                r,
                "key_expiry_timestamp_seconds",
                "When the key that seals, and the first of all that open, expires by the keyring's [expires]; 0: never",
                "role",
            )?,
            _build_info: {
                let vec = IntGaugeVec::new(
                    Opts::new("build_info", "Always 1; the version this node runs"),
                    &["version"],
                )?;
                vec.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
                r.register(Box::new(vec.clone()))?;
                vec
            },
            registry: r.clone(),
        };
        Ok(metrics)
    }

    /// Replaces the counts of quarantined rows.
    pub fn set_quarantined(&self, counts: &HashMap<(Table, Reason), i64>) {
        for table in Table::ALL {
            for reason in Reason::ALL {
                let count = counts.get(&(table, reason)).copied().unwrap_or(0);
                self.quarantined
                    .with_label_values(&[table.as_str(), reason.as_str()])
                    .set(count);
            }
        }
    }

    /// Tells which state the feed is in and for how long.
    pub fn set_feed_state(&self, state: FeedState, seconds: f64) {
        for each in FeedState::ALL {
            self.feed_state
                .with_label_values(&[each.as_str()])
                .set(f64::from(u8::from(each == state)));
        }
        self.feed_state_seconds.set(seconds);
    }

    /// Every metric in Prometheus's text format 0.0.4, process metrics included.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * 1024);
        let mut families = self.registry.gather();
        // The default registry holds the process metrics alone, which have no prefix of ours.
        families.extend(prometheus::gather());
        if let Err(err) = TextEncoder::new().encode(&families, &mut out) {
            tracing::error!(error = %err, "metrics cannot be encoded");
        }
        out
    }

    /// Name, type and help of every metric, for the reference.
    #[must_use]
    pub fn reference(&self) -> Vec<(String, String, String)> {
        let mut families = self.registry.gather();
        families.extend(prometheus::gather());
        families
            .iter()
            .map(|f| {
                (
                    f.name().to_owned(),
                    format!("{:?}", f.get_field_type()).to_lowercase(),
                    f.help().to_owned(),
                )
            })
            .collect()
    }
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::new(name, help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let metric = IntGauge::new(name, help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn float_gauge(r: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    let metric = Gauge::new(name, help)?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(
    r: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
    r.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn float_gauges(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> Result<GaugeVec, prometheus::Error> {
    let vec = GaugeVec::new(Opts::new(name, help), &[label])?;
    values
        .iter()
        .for_each(|value| vec.with_label_values(&[value]).set(0.0));
    r.register(Box::new(vec.clone()))?;
    Ok(vec)
}

fn counters<L: Label>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> Result<Per<L, IntCounter>, prometheus::Error> {
    let vec = IntCounterVec::new(Opts::new(name, help), &[label])?;
    r.register(Box::new(vec.clone()))?;
    Ok(Per(L::ALL
        .iter()
        .map(|value| (*value, vec.with_label_values(&[value.label()])))
        .collect()))
}

fn gauges<L: Label>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> Result<Per<L, IntGauge>, prometheus::Error> {
    let vec = IntGaugeVec::new(Opts::new(name, help), &[label])?;
    r.register(Box::new(vec.clone()))?;
    Ok(Per(L::ALL
        .iter()
        .map(|value| (*value, vec.with_label_values(&[value.label()])))
        .collect()))
}

fn times<L: Label>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> Result<Per<L, Gauge>, prometheus::Error> {
    let vec = GaugeVec::new(Opts::new(name, help), &[label])?;
    r.register(Box::new(vec.clone()))?;
    Ok(Per(L::ALL
        .iter()
        .map(|value| (*value, vec.with_label_values(&[value.label()])))
        .collect()))
}

fn histograms<L: Label>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    buckets: &[f64],
) -> Result<Per<L, Histogram>, prometheus::Error> {
    let vec = HistogramVec::new(
        HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        &[label],
    )?;
    r.register(Box::new(vec.clone()))?;
    Ok(Per(L::ALL
        .iter()
        .map(|value| (*value, vec.with_label_values(&[value.label()])))
        .collect()))
}
