//! Where operators ask and act: status and its changes, what a call would be told and why, refresh, verify, keys, log
//! filter. No secret and no prompt's content stands in any answer.

use std::time::Duration;

use futures_util::FutureExt;
use hyper::{Method, StatusCode, header};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::wire::{Asked, Fail, Form, Reply, failure, not_allowed};
use super::{App, Node, lookup};
use crate::access::{Caller, Rights};
use crate::cause::chain;
use crate::engine::Stats;
use crate::feed::handle::{OrderError, Refresh, RefreshReport, Scope};
use crate::health::FeedStatus;
use crate::metrics::{Certificate, Label, Outcome};
use crate::number::{self, Dialling};
use crate::row::Fault;
use crate::seal::KeyStatus;

/// Most quarantined rows that are listed; all are counted.
const MOST_LISTED: usize = 100;

/// Longest wait for one tenant or number, and for anything that tells how it stands.
const QUICK: Duration = Duration::from_secs(60);

/// Longest wait for a comparison of everything.
const LONG: Duration = Duration::from_secs(590);

/// Answers a request of the admin side.
pub(super) async fn answer(node: &Node, caller: &Caller, asked: Asked) -> Reply {
    let (app, dialling) = (&*node.app, &node.dialling);
    let read = asked.method == Method::GET || asked.method == Method::HEAD;
    match asked.path.as_str() {
        "/healthz" | "/readyz" | "/metrics" | "/v1/admin/status" | "/v1/admin/events"
        | "/v1/admin/lookup" | "/v1/admin/explain"
            if !read =>
        {
            not_allowed("GET, HEAD", Form::Json)
        }
        "/healthz" => Reply::ok(Form::Json, &br#"{"status":"ok"}"#[..]),
        "/readyz" => lookup::readyz(&app.health),
        "/metrics" => lookup::metrics(app),
        "/v1/admin/status" => Reply::json(&status(app)),
        "/v1/admin/events" => node.listeners.open(app, &asked),
        "/v1/admin/lookup" => as_if_called(node, caller, false, &asked).await,
        "/v1/admin/explain" => as_if_called(node, caller, true, &asked).await,
        "/v1/admin/refresh" | "/v1/admin/verify" | "/v1/admin/keys/reload"
            if asked.method != Method::POST =>
        {
            not_allowed("POST", Form::Json)
        }
        "/v1/admin/refresh" => refresh(app, dialling, &asked).await,
        "/v1/admin/verify" => verify(app).await,
        "/v1/admin/keys/reload" => reload_keys(app).await,
        "/v1/admin/log" if asked.method != Method::PUT => not_allowed("PUT", Form::Json),
        "/v1/admin/log" => set_log(app, &asked),
        _ => Fail::new(Outcome::NoSuchRoute, "no such route").reply(Form::Json),
    }
}

/// What a call with this question would be told, or why.
async fn as_if_called(node: &Node, caller: &Caller, explains: bool, asked: &Asked) -> Reply {
    let asking = lookup::Asking {
        app: &node.app,
        audit: &node.audit,
        hub: &node.hub,
        dialling: &node.dialling,
        caller,
        rights: &Rights::of_operators(),
    };
    lookup::as_if_called(asking, explains, asked).await
}

/// An answer with `status` before its own fields.
#[derive(Serialize)]
struct Done<T> {
    status: &'static str,
    #[serde(flatten)]
    what: T,
}

/// One picture of the node.
#[derive(Serialize)]
pub(super) struct Status {
    status: &'static str,
    node: String,
    version: &'static str,
    started: Timestamp,
    ready: bool,
    synced: bool,
    stale: bool,
    staleness_ms: u64,
    refuse_credentials: bool,
    feed: FeedStatus,
    #[serde(flatten)]
    holds: Stats,
    connections: i64,
    connections_limit: i64,
    quarantined_rows: usize,
    quarantined: Vec<Fault>,
    keys: Vec<KeyStatus>,
    certificates: Vec<Expiring>,
    log_filter: String,
    settings: serde_json::Value,
}

#[derive(Serialize)]
struct Expiring {
    certificate: &'static str,
    expires: Timestamp,
}

/// The certificates in use, as far as they are known.
fn certificates(app: &App) -> Vec<Expiring> {
    let known = |certificate: &Certificate| {
        Some(Expiring {
            certificate: certificate.label(),
            expires: app.metrics.certificate_expiry.time(*certificate)?,
        })
    };
    Certificate::ALL.iter().filter_map(known).collect()
}

pub(super) fn status(app: &App) -> Status {
    let staleness = app.health.staleness();
    let synced = app.health.is_synced();
    let (quarantined, quarantined_rows) = app.health.quarantined(MOST_LISTED);
    Status {
        status: "ok",
        node: app.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: app.started,
        ready: synced,
        synced,
        stale: staleness.stale,
        staleness_ms: staleness.ms,
        refuse_credentials: staleness.refuse_credentials,
        feed: app.health.feed(),
        holds: app.engine.stats(),
        connections: app.metrics.connections.get(),
        connections_limit: app.metrics.connections_limit.get(),
        quarantined_rows,
        quarantined,
        keys: app.engine.keys(),
        certificates: certificates(app),
        log_filter: app.log.current(),
        settings: settings(&app.config),
    }
}

/// What of the settings helps to understand a node from afar. Nothing that says how to get in anywhere.
fn settings(config: &crate::config::Config) -> serde_json::Value {
    json!({
        "http_unix": config.http.unix,
        "http_tcp": config.http.tcp,
        "access_rules": config.access.len(),
        "replica_dir": config.replica.dir,
        "replica_tenants": config.replica.tenants,
        "cache_max_bytes": config.cache.max_bytes.as_u64(),
        "heartbeat_every": shown(config.feed.heartbeat_every),
        "heartbeat_timeout": shown(config.feed.heartbeat_timeout),
        "stale_after": shown(config.feed.stale_after),
        "reconcile_every": shown(config.feed.reconcile_every),
        "refuse_credentials_after": shown(config.feed.refuse_credentials_after),
        "hold_if_lost_percent": config.feed.hold_if_lost_percent,
    })
}

/// As the settings would have it.
fn shown(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// The body of a refresh. Exactly one of `scope`, `tenant` and `number`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshBody {
    scope: Option<Everything>,
    tenant: Option<String>,
    number: Option<String>,
    #[serde(default)]
    wait: bool,
    at_least: Option<Xid>,
    #[serde(default)]
    accept_loss: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Everything {
    All,
}

/// A transaction id, as Postgres writes it or as a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Xid {
    Text(String),
    Number(u64),
}

/// What a refresh is to do, and whether the caller waits.
fn order(body: &[u8], dialling: &Dialling) -> Result<(Refresh, bool), Fail> {
    let body: RefreshBody = read(body, r#"{"scope":"all"}, {"tenant":"…"} or {"number":"…"}"#)?;
    let scope = match (body.scope, body.tenant, body.number) {
        (Some(Everything::All), None, None) => Scope::All,
        (None, Some(tenant), None) if (1..=256).contains(&tenant.len()) => Scope::Tenant(tenant),
        (None, Some(_), None) => return Err(bad("tenant must be a slug or an id")),
        (None, None, Some(number)) => Scope::Number(
            number::normalise(&number, dialling)
                .map_err(|err| Fail::new(Outcome::InvalidNumber, err.to_string()))?,
        ),
        _ => {
            return Err(bad(
                "exactly one of scope, tenant and number says what to refresh",
            ));
        }
    };
    let at_least = match body.at_least {
        None => None,
        Some(Xid::Number(xid)) => Some(xid),
        Some(Xid::Text(xid)) => Some(
            Some(&xid)
                .filter(|xid| xid.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|xid| xid.parse().ok())
                .ok_or_else(|| {
                    bad("at_least must be a transaction id as pg_current_xact_id() tells it")
                })?,
        ),
    };
    Ok((
        Refresh {
            scope,
            at_least,
            accept_loss: body.accept_loss,
        },
        body.wait,
    ))
}

fn bad(message: impl Into<String>) -> Fail {
    Fail::new(Outcome::BadRequest, message)
}

fn read<T: DeserializeOwned>(body: &[u8], shape: &str) -> Result<T, Fail> {
    serde_json::from_slice(body).map_err(|err| bad(format!("the body is not {shape}: {err}")))
}

async fn refresh(app: &App, dialling: &Dialling, asked: &Asked) -> Reply {
    let (refresh, wait) = match order(&asked.body, dialling) {
        Ok(order) => order,
        Err(fail) => return fail.reply(Form::Json),
    };
    let limit = if refresh.scope == Scope::All {
        LONG
    } else {
        QUICK
    };
    tracing::info!(
        scope = match refresh.scope {
            Scope::All => "all",
            Scope::Tenant(_) => "tenant",
            Scope::Number(_) => "number",
        },
        accept_loss = refresh.accept_loss,
        "refresh ordered"
    );
    let report = app.feed.refresh(refresh);
    if !wait {
        // The first poll places the order; what becomes of it is the feed's own.
        return match report.now_or_never() {
            Some(Err(err)) => refused(&err),
            Some(Ok(_)) | None => {
                let body = &br#"{"status":"accepted"}"#[..];
                Reply::new(StatusCode::ACCEPTED, Form::Json, body)
            }
        };
    }
    match tokio::time::timeout(limit, report).await {
        Ok(Ok(what)) => Reply::json(&Done::<RefreshReport> { status: "ok", what }),
        Ok(Err(err)) => refused(&err),
        Err(_) => late(limit),
    }
}

async fn verify(app: &App) -> Reply {
    tracing::info!("verify ordered");
    match tokio::time::timeout(LONG, app.feed.verify()).await {
        Ok(Ok(what)) => Reply::json(&Done { status: "ok", what }),
        Ok(Err(err)) => refused(&err),
        Err(_) => late(LONG),
    }
}

/// Reads a file and writes the replica, so not on a thread that answers calls.
async fn reload_keys(app: &App) -> Reply {
    let engine = app.engine.clone();
    match tokio::task::spawn_blocking(move || engine.reload_keys()).await {
        Ok(Ok(now)) => {
            tracing::info!(keys = now.len(), "keyring read again");
            Reply::json(&json!({"status": "ok", "keys": now}))
        }
        Ok(Err(err)) => failure(
            StatusCode::CONFLICT,
            Form::Json,
            "bad_keyring",
            &chain(&err),
        ),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            Form::Json,
            "internal",
            "the daemon's log says why",
        ),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogBody {
    filter: String,
}

fn set_log(app: &App, asked: &Asked) -> Reply {
    let body: LogBody = match read(&asked.body, r#"{"filter":"…"}"#) {
        Ok(body) => body,
        Err(fail) => return fail.reply(Form::Json),
    };
    match app.log.set(&body.filter) {
        Ok(()) => {
            tracing::info!(filter = body.filter, "log filter changed");
            Reply::json(&json!({"status": "ok", "filter": app.log.current()}))
        }
        Err(err) => bad(format!("filter: {err}")).reply(Form::Json),
    }
}

/// The one place that says what an order that was not carried out is called.
fn refused(err: &OrderError) -> Reply {
    let (code, status) = match err {
        OrderError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        OrderError::Unreachable(_) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        OrderError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        OrderError::NoSuchTenant => (StatusCode::NOT_FOUND, "unknown_tenant"),
        OrderError::NotReached(_) => (StatusCode::CONFLICT, "not_reached"),
        OrderError::OtherDatabase => (StatusCode::CONFLICT, "other_database"),
    };
    let reply = failure(code, Form::Json, status, &err.to_string());
    if code == StatusCode::SERVICE_UNAVAILABLE {
        reply.with(header::RETRY_AFTER, "1")
    } else {
        reply
    }
}

fn late(limit: Duration) -> Reply {
    let message = format!(
        "not done within {} s; it goes on, see the status",
        limit.as_secs()
    );
    failure(StatusCode::GATEWAY_TIMEOUT, Form::Json, "timeout", &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(body: &str) -> Result<(Refresh, bool), Outcome> {
        order(body.as_bytes(), &Dialling::default()).map_err(|fail| fail.outcome)
    }

    #[test]
    fn a_refresh_names_one_thing_and_waits_only_when_asked() {
        let all = Refresh {
            scope: Scope::All,
            at_least: None,
            accept_loss: false,
        };
        assert_eq!(ordered(r#"{"scope":"all"}"#), Ok((all.clone(), false)));
        let tenant = Refresh {
            scope: Scope::Tenant("acme".into()),
            at_least: Some(77),
            accept_loss: true,
        };
        assert_eq!(
            ordered(r#"{"tenant":"acme","wait":true,"at_least":"77","accept_loss":true}"#),
            Ok((tenant, true))
        );
        assert_eq!(
            ordered(r#"{"scope":"all","at_least":5}"#),
            Ok((
                Refresh {
                    at_least: Some(5),
                    ..all
                },
                false
            ))
        );
        let number = crate::number::normalise("+14155550100", &Dialling::default()).unwrap();
        let number = Refresh {
            scope: Scope::Number(number),
            at_least: None,
            accept_loss: false,
        };
        assert_eq!(
            ordered(r#"{"number":"tel:+1-415-555-0100"}"#),
            Ok((number, false))
        );
    }

    #[test]
    fn a_refresh_that_is_not_understood_in_full_is_refused() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"scope":"some"}"#,
            r#"{"scope":"all","tenant":"acme"}"#,
            r#"{"tenant":""}"#,
            r#"{"tenant":"a","number":"+1"}"#,
            r#"{"scope":"all","at_least":"soon"}"#,
            r#"{"scope":"all","at_least":-1}"#,
            r#"{"scope":"all","at_least":"+7"}"#,
            r#"{"scope":"all","wait":"yes"}"#,
            r#"{"scope":"all","acept_loss":true}"#,
        ] {
            assert_eq!(ordered(body), Err(Outcome::BadRequest), "{body}");
        }
        assert_eq!(ordered(r#"{"number":"x"}"#), Err(Outcome::InvalidNumber));
    }

    #[test]
    fn each_refused_order_has_a_code_of_its_own() {
        let errors = [
            OrderError::Busy,
            OrderError::Unreachable("x".into()),
            OrderError::NoSuchTenant,
            OrderError::NotReached(7),
            OrderError::OtherDatabase,
            OrderError::Stopping,
        ];
        let told: Vec<(u16, String)> = errors
            .iter()
            .map(|err| {
                let reply = refused(err);
                let body: serde_json::Value = serde_json::from_slice(&reply.body.to_vec()).unwrap();
                (
                    reply.code.as_u16(),
                    body["status"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let expected = [
            (503, "overloaded"),
            (503, "not_ready"),
            (404, "unknown_tenant"),
            (409, "not_reached"),
            (409, "other_database"),
            (503, "stopping"),
        ];
        assert_eq!(
            told,
            expected.map(|(code, status)| (code, status.to_owned()))
        );
    }
}
