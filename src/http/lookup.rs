//! The question of a call ⇄ bytes: routes of the call side, who may ask them, and what each error is called.

#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::time::Instant;

use hyper::{Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::json;

use super::App;
use super::audit::Audit;
use super::page;
use super::params::{self, Question};
use super::swift::Plain;
use super::watch::{self, Hub};
use super::wire::{Asked, Fail, Form, Reply, names_tag, not_allowed};
use crate::access::{Caller, Providers, Rights};
use crate::answer::{self, Answer, Field};
use crate::config::Right;
use crate::engine::Found;
use crate::explain;
use crate::health::{Health, Staleness};
use crate::metrics::{Label, Outcome, Route};
use crate::number::{self, Dialling, E164};
use crate::profile::Refusal;
use crate::row::Tenant;
use crate::select::select;
use crate::trace;

/// What a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    Lookup,
    Field(Field),
    Resolve,
    Credentials,
    Explain,
}

/// One route of the call side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Question(Wants),
    Watch,
    Healthz,
    Readyz,
    Metrics,
    Description,
}

/// The route of a path, whatever the method.
fn target(path: &str) -> Option<Target> {
    let wants = match path {
        "/v1/lookup" => Wants::Lookup,
        "/v1/resolve" => Wants::Resolve,
        "/v1/credentials" => Wants::Credentials,
        "/v1/explain" => Wants::Explain,
        "/v1/watch" => return Some(Target::Watch),
        "/healthz" => return Some(Target::Healthz),
        "/readyz" => return Some(Target::Readyz),
        "/metrics" => return Some(Target::Metrics),
        page::DESCRIPTION => return Some(Target::Description),
        _ => Wants::Field(Field::named(path.strip_prefix("/v1/lookup/")?)?),
    };
    Some(Target::Question(wants))
}

impl Wants {
    fn route(self) -> Route {
        match self {
            Self::Lookup => Route::Lookup,
            Self::Field(_) => Route::Field,
            Self::Resolve => Route::Resolve,
            Self::Credentials => Route::Credentials,
            Self::Explain => Route::Explain,
        }
    }

    /// How errors are told where nothing else was asked for.
    fn form(self, query: &str) -> Form {
        match self {
            Self::Field(_) => Form::Plain,
            Self::Lookup | Self::Resolve | Self::Credentials | Self::Explain => {
                params::form_of(query)
            }
        }
    }
}

/// Who asks, and whom.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) app: &'a App,
    pub(super) audit: &'a Audit,
    pub(super) hub: &'a Arc<Hub>,
    pub(super) dialling: &'a Dialling,
    pub(super) caller: &'a Caller,
    pub(super) rights: &'a Rights,
}

/// Answers a request of the call side, and counts it.
pub(super) async fn answer(asking: Asking<'_>, asked: &Asked) -> Reply {
    let begun = Instant::now();
    counted(asking, begun, routed(asking, asked, begun).await)
}

/// The answer to a plain request of the call side from memory, counted as every other. None, and nothing done, where
/// it takes more than memory, or is for another reason better told by [`answer`].
pub(super) fn at_once(asking: Asking<'_>, asked: &Plain<'_>) -> Option<Reply> {
    let Asking {
        app,
        dialling,
        caller,
        rights,
        ..
    } = asking;
    let begun = Instant::now();
    let Target::Question(wants @ (Wants::Lookup | Wants::Field(_) | Wants::Resolve)) =
        target(asked.path)?
    else {
        return None;
    };
    let question = params::query(asked.query).ok()?;
    may_ask_at_all(
        caller,
        rights,
        asks_for_credentials(wants, &question),
        false,
    )
    .ok()?;
    let readings = number::readings(question.to.as_deref()?, dialling).ok()?;
    let may_know = |tenant: &Tenant| rights.config(tenant);
    let found = app.engine.at_hand(&readings.first, &may_know)?;
    let refused = || rights.credentials(&found.profile.tenant.tenant) == Providers::None;
    if asks_for_credentials(wants, &question) && refused() || !rights.try_take(begun) {
        return None;
    }
    let (outcome, reply) = match told(asking, &found, wants, &question, &[]) {
        Ok(reply) => (Outcome::Ok, reply),
        Err(fail) => (fail.outcome, fail.reply(wants.form(asked.query))),
    };
    Some(counted(
        asking,
        begun,
        (wants.route(), Some(outcome), reply),
    ))
}

/// Answers an operator who asks what a call would be told, or why: as a call is answered, but not counted as one.
pub(super) async fn as_if_called(asking: Asking<'_>, explains: bool, asked: &Asked) -> Reply {
    let wants = if explains {
        Wants::Explain
    } else {
        Wants::Lookup
    };
    match question(asking, wants, asked).await {
        Ok(reply) => reply,
        Err(fail) => fail.reply(wants.form(&asked.query)),
    }
}

/// An answer, counted unless the daemon gave it to itself.
fn counted(
    Asking { app, caller, .. }: Asking<'_>,
    begun: Instant,
    (route, outcome, reply): (Route, Option<Outcome>, Reply),
) -> Reply {
    if matches!(caller, Caller::Own(_)) {
        return reply;
    }
    if let Some(outcome) = outcome {
        app.metrics.lookups.inc(outcome);
    }
    let took = begun.elapsed();
    app.metrics
        .request_duration
        .observe(route, took.as_secs_f64());
    if took > trace::SLOW {
        let outcome = outcome.map_or("", Label::label);
        app.traces.slow_question(route.label(), outcome, took);
    }
    reply
}

/// Whether the full view is to have the credentials.
fn asks_for_credentials(wants: Wants, question: &Question) -> bool {
    wants == Wants::Resolve && question.credentials
}

async fn routed(
    asking: Asking<'_>,
    asked: &Asked,
    now: Instant,
) -> (Route, Option<Outcome>, Reply) {
    let Asking {
        app,
        audit,
        caller,
        rights,
        ..
    } = asking;
    let other = |outcome, reply| (Route::Other, outcome, reply);
    let target = target(&asked.path);
    let probe = matches!(target, Some(Target::Healthz | Target::Readyz));
    if !probe && !rights.any() {
        audit.refused(caller, "no rule of access is about this caller");
        let fail = Fail::new(
            Outcome::Forbidden,
            "no rule of the daemon's settings lets this user ask",
        );
        let (route, form) = match target {
            Some(Target::Question(wants)) => (wants.route(), wants.form(&asked.query)),
            Some(Target::Watch) => (Route::Watch, Form::Json),
            _ => (Route::Other, Form::Json),
        };
        return (route, Some(fail.outcome), fail.reply(form));
    }
    if !probe && let Err(over) = rights.take(now) {
        audit.flooded(caller);
        let (route, form) = match target {
            Some(Target::Question(wants)) => (wants.route(), wants.form(&asked.query)),
            Some(Target::Watch) => (Route::Watch, Form::Json),
            _ => (Route::Other, Form::Json),
        };
        let fail = Fail::new(
            Outcome::Overloaded,
            "this caller asks more often than its rate allows",
        );
        let seconds = over.wait.as_secs().saturating_add(1).to_string();
        let reply = fail
            .reply(form)
            .with(header::RETRY_AFTER, &seconds)
            .held(over.hold);
        return (route, Some(fail.outcome), reply);
    }
    let Some(target) = target else {
        let fail = Fail::new(Outcome::NoSuchRoute, "no such route");
        return other(Some(fail.outcome), fail.reply(Form::Json));
    };
    let posts = target == Target::Question(Wants::Resolve);
    let read = asked.method == Method::GET || asked.method == Method::HEAD;
    let posted = posts && asked.method == Method::POST;
    if !read && !posted {
        let allowed = if posts {
            "GET, HEAD, POST"
        } else {
            "GET, HEAD"
        };
        let form = match target {
            Target::Question(wants) => wants.form(&asked.query),
            _ => Form::Json,
        };
        return other(Some(Outcome::MethodNotAllowed), not_allowed(allowed, form));
    }
    match target {
        Target::Healthz => other(None, Reply::ok(Form::Json, &br#"{"status":"ok"}"#[..])),
        Target::Readyz => other(None, readyz(&app.health)),
        Target::Metrics => other(None, metrics(app)),
        Target::Description => other(None, page::description(asked)),
        Target::Watch => match watch::open(asking, asked) {
            Ok(reply) => (Route::Watch, Some(Outcome::Ok), reply),
            Err(fail) => (Route::Watch, Some(fail.outcome), fail.reply(Form::Json)),
        },
        Target::Question(wants) => {
            let form = wants.form(&asked.query);
            match question(asking, wants, asked).await {
                Ok(reply) => (wants.route(), Some(Outcome::Ok), reply),
                Err(fail) => (wants.route(), Some(fail.outcome), fail.reply(form)),
            }
        }
    }
}

async fn question(asking: Asking<'_>, wants: Wants, asked: &Asked) -> Result<Reply, Fail> {
    let Asking {
        app,
        audit,
        dialling,
        caller,
        rights,
        ..
    } = asking;
    may_ask_at_all(
        caller,
        rights,
        wants == Wants::Credentials,
        wants == Wants::Credentials,
    )
    .inspect_err(|_| {
        audit.refused(caller, wants.route_name());
    })?;
    let question = if asked.method == Method::POST {
        params::query_and_body(
            &asked.query,
            asked.header(header::CONTENT_TYPE),
            &asked.body,
        )?
    } else {
        params::query(&asked.query)?
    };
    if asks_for_credentials(wants, &question) {
        may_ask_at_all(caller, rights, true, false)
            .inspect_err(|_| audit.refused(caller, "include=credentials"))?;
    }
    let to = question.to.as_deref().ok_or_else(|| {
        Fail::new(
            Outcome::BadRequest,
            "to is missing: which number was called",
        )
    })?;
    let readings = number::readings(to, dialling)
        .map_err(|err| Fail::new(Outcome::InvalidNumber, err.to_string()))?;
    let found = match find(app, rights, wants, readings.iter()).await? {
        Known::Found(found) => found,
        Known::NeverGood(reply) => return Ok(reply),
    };
    let none_match = if asked.method == Method::POST {
        Vec::new()
    } else {
        asked.headers(header::IF_NONE_MATCH)
    };
    told(asking, &found, wants, &question, &none_match)
}

/// A number that the caller may know of.
enum Known {
    Found(Found),
    /// None of its rows was ever good, and that is what was asked.
    NeverGood(Reply),
}

/// The first of the readings that is a number of a tenant the caller has a right to.
///
/// Who has no right to a tenant must not learn that a number is one of its: to that caller it is a number nobody has,
/// bad rows included.
async fn find(
    app: &App,
    rights: &Rights,
    wants: Wants,
    readings: impl Iterator<Item = E164>,
) -> Result<Known, Fail> {
    let may_know = |tenant: &Tenant| {
        rights.config(tenant)
            || (wants == Wants::Credentials && rights.credentials(tenant) != Providers::None)
    };
    for number in readings {
        match app.engine.find_known(&number, &may_know).await {
            Ok(found) => return Ok(Known::Found(found)),
            Err(Refusal::UnknownNumber) => {}
            Err(Refusal::NoGoodRow) => {
                let (tenant, faults) = app.engine.never_good(&number);
                if !may_know(&tenant) {
                    continue;
                }
                let fail = refused(Refusal::NoGoodRow);
                if wants != Wants::Explain {
                    return Err(fail);
                }
                let reply = Reply::new(
                    fail.code(),
                    Form::Json,
                    explain::never_good(&number, &faults),
                );
                return Ok(Known::NeverGood(reply.with(header::RETRY_AFTER, "1")));
            }
            Err(refusal) => return Err(refused(refusal)),
        }
    }
    Err(refused(Refusal::UnknownNumber))
}

impl Wants {
    fn route_name(self) -> &'static str {
        use crate::metrics::Label;
        self.route().label()
    }
}

/// What a caller is told before anything is looked up: whether it could be answered for any tenant.
pub(super) fn may_ask_at_all(
    caller: &Caller,
    rights: &Rights,
    credentials: bool,
    alone: bool,
) -> Result<(), Fail> {
    if credentials && *caller == Caller::Tcp {
        let message = "credentials are given only over the Unix socket";
        return Err(Fail::new(Outcome::CredentialsNeedUnixSocket, message));
    }
    let lacks = |right| !rights.anywhere(right);
    if (credentials && lacks(Right::Credentials)) || (!alone && lacks(Right::Config)) {
        return Err(forbidden());
    }
    Ok(())
}

fn forbidden() -> Fail {
    Fail::new(
        Outcome::Forbidden,
        "no rule of the daemon's settings lets this user ask this",
    )
}

/// What the answer is made with beside the profile and the question.
struct Terms<'a> {
    stack_bytes: usize,
    at: Timestamp,
    /// `If-None-Match`
    none_match: &'a [&'a str],
}

/// The answer to a question about a number that was found; a right that is lacking is noted.
fn told(
    asking: Asking<'_>,
    found: &Found,
    wants: Wants,
    question: &Question,
    none_match: &[&str],
) -> Result<Reply, Fail> {
    let stack_bytes = asking.app.config.limits.stack_bytes.as_u64();
    let terms = Terms {
        stack_bytes: usize::try_from(stack_bytes).unwrap_or(usize::MAX),
        at: question.at.unwrap_or_else(Timestamp::now),
        none_match,
    };
    selected(found, asking.rights, wants, question, &terms).inspect_err(|fail| {
        if fail.outcome == Outcome::Forbidden {
            asking.audit.refused(asking.caller, wants.route_name());
        }
    })
}

/// What the rights, the rows and the rules make of it.
fn selected(
    found: &Found,
    rights: &Rights,
    wants: Wants,
    question: &Question,
    terms: &Terms<'_>,
) -> Result<Reply, Fail> {
    let Found { profile, staleness } = found;
    let tenant = &profile.tenant.tenant;
    let with_credentials = wants == Wants::Credentials || asks_for_credentials(wants, question);
    let providers = rights.credentials(tenant);
    if with_credentials && providers == Providers::None {
        return Err(forbidden());
    }
    if let Some(provider) = question
        .provider
        .as_deref()
        .filter(|_| wants == Wants::Credentials)
        && !providers.has(provider)
    {
        return Err(forbidden());
    }
    if wants == Wants::Explain {
        let explained = explain::explain(profile, &question.call, terms.at, terms.stack_bytes);
        let code = explained
            .refusal
            .map_or(StatusCode::OK, |refusal| refused(refusal).code());
        return Ok(Reply::new(code, Form::Json, explained.body));
    }
    let selection =
        select(profile, &question.call, terms.at, terms.stack_bytes).map_err(refused)?;
    if with_credentials && staleness.refuse_credentials {
        let message = "this node has not been level with Postgres for too long to give credentials";
        return Err(Fail::new(Outcome::CredentialsStale, message));
    }
    let allowed = |provider: &str| providers.has(provider);
    let answer = Answer::new(&selection, *staleness);
    Ok(match wants {
        Wants::Lookup if question.form() == Form::Pairs => Reply::ok(Form::Pairs, answer.form()),
        Wants::Lookup | Wants::Explain => Reply::ok(Form::Json, answer.lookup()),
        Wants::Field(field) => Reply::ok(Form::Plain, answer.field(field)),
        Wants::Resolve => {
            let resolved = answer.resolve(with_credentials.then_some(&allowed));
            let unchanged = terms
                .none_match
                .iter()
                .any(|given| names_tag(given, &resolved.etag));
            // A 304 has the length of the answer that it stands for; its body is not sent.
            let code = if unchanged {
                StatusCode::NOT_MODIFIED
            } else {
                StatusCode::OK
            };
            let reply =
                Reply::new(code, Form::Json, resolved.body).with(header::ETAG, &resolved.etag);
            if with_credentials {
                no_store(reply)
            } else {
                reply
            }
        }
        Wants::Credentials => {
            let wanted = |provider: &str| {
                allowed(provider)
                    && question
                        .provider
                        .as_deref()
                        .is_none_or(|only| only == provider)
            };
            no_store(Reply::ok(
                Form::Json,
                answer::credentials(profile, *staleness, &wanted),
            ))
        }
    })
}

fn no_store(reply: Reply) -> Reply {
    reply.with(header::CACHE_CONTROL, "no-store")
}

/// The one place that says what a refusal is called.
fn refused(refusal: Refusal) -> Fail {
    let outcome = match refusal {
        Refusal::UnknownNumber => Outcome::UnknownNumber,
        Refusal::InactiveNumber => Outcome::InactiveNumber,
        Refusal::TenantSuspended => Outcome::TenantSuspended,
        Refusal::NeverSynced | Refusal::NoGoodRow | Refusal::Unreadable => Outcome::NotReady,
        Refusal::Overloaded => Outcome::Overloaded,
    };
    Fail::new(outcome, refusal.to_string())
}

/// Whether this node can answer. Ready is not fresh: how old its answers are stands in the body.
pub(super) fn readyz(health: &Health) -> Reply {
    let Staleness { ms, stale, .. } = health.staleness();
    let synced = health.is_synced();
    if synced {
        let body = json!({"status": "ok", "ready": true, "stale": stale, "staleness_ms": ms, "synced": true});
        return Reply::ok(Form::Json, body.to_string());
    }
    let message = "this node holds no complete copy yet";
    let body = json!({"status": "not_ready", "message": message, "ready": false, "stale": stale, "staleness_ms": ms, "synced": false});
    Reply::new(
        StatusCode::SERVICE_UNAVAILABLE,
        Form::Json,
        body.to_string(),
    )
    .with(header::RETRY_AFTER, "1")
}

/// Every metric, ages as of now.
pub(super) fn metrics(app: &App) -> Reply {
    app.engine.tell_ages();
    Reply::ok(Form::Metrics, app.metrics.text())
}
