//! `/v1/admin/events`: server-sent events for the page: what it plots each second, and the status when that changes.
//!
//! Always true: one task measures, once a second however many listen, and nothing while nobody does; a listener that
//! reads slowly finds the newest picture and no backlog; listeners are bounded in number.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::{Empty, StreamBody};
use hyper::body::{Body, Frame};
use hyper::{Method, header};
use jiff::Timestamp;
use prometheus::IntGauge;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch as newest};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::wire::{Asked, Endless, Fail, Form, Reply};
use super::{App, admin};
use crate::health::{FeedState, Staleness};
use crate::metrics::reading::Reading;
use crate::metrics::{Label, Outcome};
use crate::watch;

/// Most pages that listen at once; one more is refused.
const MOST_LISTENERS: usize = 16;

/// How often is measured.
const SECOND: Duration = Duration::from_secs(1);

/// The status is told again after so many pictures although nothing in it changed that matters.
const STATUS_AT_LEAST_EVERY: u64 = 15;

/// What of the status moves by itself: told with the next change, no change of its own. `feed/…` stands within `feed`.
const MOVES: [&str; 8] = [
    "staleness_ms",
    "connections",
    "cache_entries",
    "cache_bytes",
    "feed/cursor",
    "feed/behind",
    "feed/last_pull_started",
    "feed/last_pull_completed",
];

/// What the page plots of one second. Where nothing was measured there is nothing, not zero.
#[derive(Debug, Serialize)]
struct Sample {
    /// Milliseconds since 1970.
    at: i64,
    /// How many calls a second ended how; those alone that happened.
    calls: Map<String, Value>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    visible_p50_ms: Option<f64>,
    visible_p99_ms: Option<f64>,
    hit_ratio: Option<f64>,
    staleness_ms: u64,
    stale: bool,
    feed: FeedState,
    behind: u64,
    held: bool,
    quarantined_rows: usize,
    connections: i64,
    watchers: i64,
}

impl Sample {
    fn of(app: &App, counted: &Reading, seconds: f64) -> Self {
        let Staleness { ms, stale, .. } = app.health.staleness();
        let feed = app.health.feed();
        let milliseconds = |seconds: Option<f64>| seconds.map(|seconds| rounded(seconds * 1e3));
        let happened = counted.lookups.iter().filter(|(_, count)| *count > 0);
        #[allow(clippy::cast_precision_loss)] // calls of a second
        let rate = |count: u64| rounded(count as f64 / seconds).into();
        Self {
            at: Timestamp::now().as_millisecond(),
            calls: happened
                .map(|(outcome, count)| (outcome.label().to_owned(), rate(*count)))
                .collect(),
            p50_ms: milliseconds(counted.requests.quantile(0.5)),
            p99_ms: milliseconds(counted.requests.quantile(0.99)),
            visible_p50_ms: milliseconds(counted.visible.quantile(0.5)),
            visible_p99_ms: milliseconds(counted.visible.quantile(0.99)),
            hit_ratio: counted.hit_ratio(),
            staleness_ms: ms,
            stale,
            feed: feed.state,
            behind: feed.behind,
            held: feed.held.is_some(),
            quarantined_rows: app.health.quarantined(0).1,
            connections: app.metrics.connections.get(),
            watchers: app.metrics.watchers.get(),
        }
    }
}

/// To a thousandth: more is noise.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The status without what moves by itself.
fn settled(mut status: Value) -> Value {
    for path in MOVES {
        let (within, name) = path.rsplit_once('/').unwrap_or(("", path));
        let within = if within.is_empty() {
            status.as_object_mut()
        } else {
            status.get_mut(within).and_then(Value::as_object_mut)
        };
        within.map(|within| within.remove(name));
    }
    // A pull is no change: each heartbeat is one.
    if let Some(feed) = status.get_mut("feed").and_then(Value::as_object_mut)
        && feed
            .get("state")
            .is_some_and(|state| state == "level" || state == "pulling")
    {
        feed.remove("state");
        feed.remove("since");
    }
    status
}

/// What a listener is to know, newest only.
#[derive(Debug, Clone, Default)]
struct Picture {
    /// As it stands in the stream.
    status: Bytes,
    /// Counts the statuses that were to be told.
    edition: u64,
    /// As it stands in the stream; empty until a second was measured.
    sample: Bytes,
    stopped: bool,
}

/// A place among those who listen.
struct Seat {
    _permit: OwnedSemaphorePermit,
    taken: IntGauge,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.dec();
    }
}

/// Everybody who listens.
#[derive(Debug)]
pub(super) struct Listeners {
    seats: Arc<Semaphore>,
    newest: newest::Sender<Picture>,
    came: Notify,
}

impl Listeners {
    pub(super) fn new() -> Self {
        Self {
            seats: Arc::new(Semaphore::new(MOST_LISTENERS)),
            newest: newest::Sender::default(),
            came: Notify::new(),
        }
    }

    /// Opens a stream.
    pub(super) fn open(&self, app: &App, asked: &Asked) -> Reply {
        let body: Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>> =
            if asked.method == Method::HEAD {
                Box::pin(Empty::new())
            } else {
                let Ok(permit) = self.seats.clone().try_acquire_owned() else {
                    let message = format!("{MOST_LISTENERS} pages listen already; close one");
                    return Fail::new(Outcome::Overloaded, message).reply(Form::Json);
                };
                let taken = app.metrics.page_listeners.clone();
                taken.inc();
                let seat = Seat {
                    _permit: permit,
                    taken,
                };
                let newest = self.newest.subscribe();
                self.came.notify_one();
                Box::pin(StreamBody::new(frames(newest, seat)))
            };
        let cut_off = app.metrics.page_listeners_cut_off.clone();
        Reply::endless(Form::Events, Endless { body, cut_off })
            .with(header::CACHE_CONTROL, "no-store")
    }

    /// Measures while somebody listens, until `stop`; then every stream ends.
    pub(super) async fn run(self: Arc<Self>, app: Arc<App>, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.came.notified() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.measure(&app) => {}
            }
        }
        self.newest.send_modify(|picture| picture.stopped = true);
    }

    /// Once a second, until nobody listens.
    async fn measure(&self, app: &App) {
        let mut second = interval(SECOND);
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before: Option<(Instant, Reading)> = None;
        let mut told = (Value::Null, 0_u64);
        loop {
            second.tick().await;
            if self.newest.receiver_count() == 0 {
                // Who comes next is told nothing old.
                self.newest.send_replace(Picture::default());
                if self.newest.receiver_count() == 0 {
                    return;
                }
            }
            let (now, counted) = (Instant::now(), Reading::of(&app.metrics));
            let sample = before
                .replace((now, counted.clone()))
                .map(|(then, earlier)| {
                    let seconds = now.duration_since(then).as_secs_f64().max(1e-3);
                    watch::event(
                        "sample",
                        None,
                        &Sample::of(app, &counted.since(&earlier), seconds),
                    )
                });
            let status = serde_json::to_value(admin::status(app)).unwrap_or_default();
            let (was, pictures_ago) = &mut told;
            let settled = settled(status.clone());
            *pictures_ago = pictures_ago.saturating_add(1);
            let news = *was != settled || *pictures_ago > STATUS_AT_LEAST_EVERY;
            if news {
                told = (settled, 0);
            }
            self.newest.send_modify(|picture| {
                if news {
                    picture.status = watch::event("status", None, &status).into();
                    picture.edition = picture.edition.saturating_add(1);
                }
                picture.sample = sample.unwrap_or_default().into();
            });
        }
    }
}

/// What a listener is told: the opening at once, then each picture as far as it is new to it.
fn frames(
    newest: newest::Receiver<Picture>,
    seat: Seat,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
    /// Nothing told yet, or the edition of the status that was.
    enum Told {
        Nothing,
        Opening,
        Edition(u64),
        End,
    }
    stream::unfold(
        (newest, seat, Told::Nothing),
        |(mut newest, seat, told)| async move {
            let known = match told {
                Told::Nothing => {
                    let opening = Bytes::from(watch::opening());
                    return Some((Ok(Frame::data(opening)), (newest, seat, Told::Opening)));
                }
                // There may be a picture already.
                Told::Opening if !newest.borrow().status.is_empty() => None,
                Told::Opening => {
                    newest.changed().await.ok()?;
                    None
                }
                Told::Edition(known) => {
                    newest.changed().await.ok()?;
                    Some(known)
                }
                Told::End => return None,
            };
            let picture = newest.borrow_and_update().clone();
            if picture.stopped {
                let end = Bytes::from_static(watch::STOPPING.as_bytes());
                return Some((Ok(Frame::data(end)), (newest, seat, Told::End)));
            }
            let text = if known == Some(picture.edition) {
                picture.sample
            } else {
                [picture.status, picture.sample].concat().into()
            };
            let told = Told::Edition(picture.edition);
            Some((Ok(Frame::data(text)), (newest, seat, told)))
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(state: &str, staleness_ms: u64, behind: u64) -> Value {
        json!({"node": "n", "staleness_ms": staleness_ms, "stale": false, "feed": {
            "state": state, "since": state, "behind": behind, "last_error": null}})
    }

    #[test]
    fn a_status_is_news_when_something_happened_and_not_when_time_went_by() {
        let level = settled(status("level", 3, 0));
        assert_eq!(level, settled(status("pulling", 900, 7)));
        assert_ne!(level, settled(status("backoff", 3, 0)));
        let mut stale = status("level", 3, 0);
        stale["stale"] = json!(true);
        assert_ne!(level, settled(stale));
        let mut failed = status("level", 3, 0);
        failed["feed"]["last_error"] = json!({"text": "x"});
        assert_ne!(level, settled(failed));
        assert_eq!(settled(json!({"feed": 7})), json!({"feed": 7}));
    }
}
