//! Builds the parts, binds, spawns, drains. No decisions: it only connects.
//!
//! Order at start: settings, keys, replica, sockets, then the feed: a node with a replica answers before Postgres is
//! asked for anything. A part that ends by itself ends the daemon: there are no half-dead nodes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::admit::AdmissionLimits;
use crate::cause::chain;
use crate::config::{Config, Sources};
use crate::engine::{Engine, Parts};
use crate::feed::handle::FeedHandle;
use crate::feed::{self, Feed};
use crate::health::Health;
use crate::http::{self, App, Gate};
use crate::log::LogControl;
use crate::manager::{self, Watchdog};
use crate::metrics::{Certificate, Metrics};
use crate::replica::{Opened, Replica, ReplicaError};
use crate::seal::{Keyring, KeyringError, is_credential};
use crate::source::migrate::SCHEMA_VERSION;
use crate::source::{ReadThrough, Target, TargetError};
use crate::trace::{Traces, TracesError};

/// Why the daemon does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// `keys.file`
    #[error("keys.file")]
    Keys(#[from] KeyringError),
    /// `keys.raw` names no key.
    #[error("keys.raw: the keyring has no key {0}; name one of its keys, or leave it empty")]
    RawKey(String),
    /// `replica.dir`
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// `postgres.*`
    #[error(transparent)]
    Target(#[from] TargetError),
    /// `http.*` and `admin.*`
    #[error(transparent)]
    Bind(#[from] http::BindError),
    /// `log.otlp_endpoint`
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// Two metrics share a name.
    #[error("metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// Signals cannot be awaited.
    #[error("signals cannot be awaited")]
    Signals(#[source] std::io::Error),
    /// A part ended that must not.
    #[error("the {0} ended by itself; see the log above")]
    Ended(&'static str),
}

/// Runs a node until `stop`, then drains within `http.drain_timeout`. SIGHUP reads the keyring and the files of
/// operators over TCP again, and with `sources` the log filter.
///
/// # Errors
/// [`DaemonError`]; before the sockets are bound nothing was answered.
pub async fn run(
    config: Config,
    log: LogControl,
    sources: Option<Sources>,
    stop: CancellationToken,
) -> Result<(), DaemonError> {
    keep_to_ourselves();
    // Before anybody can know that we are here: unheard, it would end the process.
    let mut hangups = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    let node = config.node_name();
    let keyring = Keyring::load(&config.keys.file)?;
    let raw_key = Some(config.keys.raw.clone()).filter(|id| !id.is_empty());
    if let Some(id) = &raw_key
        && !keyring.ids().any(|known| known == id)
    {
        return Err(DaemonError::RawKey(id.clone()));
    }
    let target = Target::new(&config.postgres, &node)?;
    let read_target = Target::to_read_from(&config.postgres, &node)?;
    for target in [Some(&target), read_target.as_ref()].into_iter().flatten() {
        if !target.encrypted && !target.local {
            tracing::warn!(postgres = %target.place, "the connection to Postgres is not encrypted");
        }
    }
    let metrics = Arc::new(Metrics::new()?);
    let traces = Traces::new(&config.log.otlp_endpoint, &node, &metrics)?;
    let health = Arc::new(Health::new(
        config.feed.stale_after,
        config.feed.refuse_credentials_after,
        SCHEMA_VERSION,
    ));
    let (replica, opened) = Replica::open(&config.replica.dir, &keyring)?;
    match &opened {
        Opened::Kept => tracing::info!(dir = %config.replica.dir.display(), "replica opened"),
        Opened::New => tracing::info!(dir = %config.replica.dir.display(), "replica begun"),
        Opened::ReadOnly { why } => {
            tracing::error!(dir = %config.replica.dir.display(), why, "replica opened, but it cannot be written: answers go on from the rows that are there and grow old; make room or make it writable again");
        }
        Opened::SetAside { to, why } => {
            tracing::error!(to = %to.display(), why, "the replica was set aside and a new one begun; everything is copied from Postgres");
        }
    }
    if let Err(err) = replica.fit_to(&keyring) {
        tracing::warn!(error = %chain(&err), "the replica is still sealed for the keys of before; keep those in keys.file until it can be written and the keys are reloaded");
    }
    let held = Some(config.replica.tenants.clone()).filter(|tenants| !tenants.is_empty());
    let engine = Arc::new(Engine::new(Parts {
        replica,
        keyring,
        keys_file: config.keys.file.clone(),
        raw_key,
        cache_bytes: config.cache.max_bytes.as_u64(),
        limits: AdmissionLimits {
            prompt_bytes: size(config.limits.prompt_bytes),
            credential_bytes: size(config.limits.credential_bytes),
            rows_per_tenant: usize::try_from(config.limits.rows_per_tenant).unwrap_or(usize::MAX),
        },
        read_through: Some(ReadThrough::new(&target, held.clone())),
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
    })?);
    let (feed_handle, orders) = FeedHandle::new();
    let app = Arc::new(App {
        engine: Arc::clone(&engine),
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
        feed: feed_handle,
        config: Arc::new(config.clone()),
        traces: traces.clone(),
        log: log.clone(),
        node,
        started: Timestamp::now(),
    });
    let doors = http::bind(&config)?;
    let watchdog = Watchdog::of_process(doors.address(), Arc::clone(&engine));
    let gate = doors.gate();
    if let Some(gate) = &gate {
        gate.tell_expiry(&metrics);
    }
    metrics
        .certificate_expiry
        .set_time(Certificate::PostgresCa, target.authorities_expiry);
    let feed = Feed {
        target,
        read_target,
        held,
        config: config.feed.clone(),
        engine: Arc::clone(&engine),
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
        traces: traces.clone(),
        orders,
    };

    let mut parts: JoinSet<&'static str> = JoinSet::new();
    // The feed goes on while the last requests are answered; the sockets go first.
    let (stop_doors, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let serving = {
        let (app, stop) = (Arc::clone(&app), stop_doors.clone());
        tokio::spawn(async move { http::serve(app, doors, stop).await })
    };
    parts.spawn({
        let stop = stop_rest.clone();
        async move {
            feed::run(feed, stop).await;
            "feed"
        }
    });
    if let Some(watchdog) = watchdog {
        let (draining, stop) = (stop_doors.clone(), stop_rest.clone());
        parts.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = watchdog.feed(draining) => {}
            }
            "watchdog"
        });
    }
    parts.spawn({
        let (engine, stop) = (Arc::clone(&engine), stop_rest.clone());
        async move {
            tick(&engine, stop).await;
            "clock"
        }
    });
    let judged = {
        let engine = Arc::clone(&engine);
        tokio::task::spawn_blocking(move || engine.judge_all())
    };
    manager::tell(NotifyState::Ready);
    tracing::info!(node = %app.node, version = env!("CARGO_PKG_VERSION"), "answering");

    let mut serving = std::pin::pin!(serving);
    let ended = loop {
        tokio::select! {
            () = stop.cancelled() => break None,
            _ = &mut serving => break Some("call listener"),
            Some(part) = parts.join_next() => break Some(part.unwrap_or("feed, by a panic,")),
            Some(()) = hangups.recv() => {
                reload(&engine, &log, sources.as_ref()).await;
                reload_gate(gate.as_ref(), &metrics).await;
                if is_credential(&config.keys.file) {
                    tracing::warn!("the service manager shows the keyring as it was when the service started; restart the service for one that has changed since");
                }
            }
        }
    };
    manager::tell(NotifyState::Stopping);
    tracing::info!("draining");
    stop_doors.cancel();
    if ended != Some("call listener") {
        let limit = config
            .http
            .drain_timeout
            .saturating_add(Duration::from_secs(1));
        let _ = tokio::time::timeout(limit, &mut serving).await;
    }
    stop_rest.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(2), async {
        while parts.join_next().await.is_some() {}
    })
    .await;
    let _ = judged.await;
    traces.shut_down().await;
    tracing::info!("stopped");
    ended.map_or(Ok(()), |part| Err(DaemonError::Ended(part)))
}

/// What is due each second: what the cache postpones, ages for the metrics.
async fn tick(engine: &Engine, stop: CancellationToken) {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = second.tick() => engine.tidy(),
        }
    }
}

async fn reload(engine: &Arc<Engine>, log: &LogControl, sources: Option<&Sources>) {
    let reloading = Arc::clone(engine);
    match tokio::task::spawn_blocking(move || reloading.reload_keys()).await {
        Ok(Ok(keys)) => tracing::info!(keys = keys.len(), "keyring read again"),
        Ok(Err(err)) => {
            tracing::error!(error = %err, "the keyring cannot be read again; the old one stays in force")
        }
        Err(_) => tracing::error!("reading the keyring again panicked; the old one stays in force"),
    }
    let Some(sources) = sources else { return };
    match Config::load(sources) {
        Ok(config) => match log.set(&config.log.filter) {
            Ok(()) => tracing::info!(filter = %config.log.filter, "log filter read again"),
            Err(err) => {
                tracing::error!(error = %err, "log.filter cannot be used; the old one stays in force")
            }
        },
        Err(err) => {
            tracing::error!(error = %err, "the settings cannot be read again; the old ones stay in force")
        }
    }
}

async fn reload_gate(gate: Option<&Arc<Gate>>, metrics: &Metrics) {
    let Some(gate) = gate else { return };
    let reloading = Arc::clone(gate);
    match tokio::task::spawn_blocking(move || reloading.reload()).await {
        Ok(Ok(())) => {
            gate.tell_expiry(metrics);
            tracing::info!("token and certificates of admin.tcp read again");
        }
        Ok(Err(err)) => {
            tracing::error!(error = %chain(&err), "token and certificates of admin.tcp cannot be read again; the old ones stay in force")
        }
        Err(_) => tracing::error!(
            "reading the certificates of admin.tcp again panicked; the old ones stay in force"
        ),
    }
}

/// No core dump and no debugger of another process: credentials stand in memory.
fn keep_to_ourselves() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    if let Err(err) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(error = %err, "the process stays dumpable");
    }
    if let Err(err) = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    ) {
        tracing::warn!(error = %err, "core dumps cannot be turned off");
    }
}

fn size(bytes: bytesize::ByteSize) -> usize {
    usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX)
}
