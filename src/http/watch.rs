//! `/v1/watch`: server-sent events about a number or a tenant, from when it is asked until either side ends it.
//!
//! Always true: one task finds out how each number or tenant that is watched stands, once, however many watch it; a
//! watcher holds at most one event of each name that it has not taken, the newest; a watcher takes no place of those who
//! ask; who may not know of a tenant is told the same of its numbers as of numbers that nobody has, at every moment.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::{Body, Frame};
use hyper::{Method, header};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lookup::{Asking, may_ask_at_all};
use super::params;
use super::wire::{Asked, Endless, Fail, Form, Reply};
use super::{App, Who};
use crate::access::{Caller, Rights};
use crate::engine::watched::{NumberNow, TenantNow, Touches};
use crate::health::{FeedState, Health, Staleness};
use crate::metrics::{Event, Metrics, Outcome};
use crate::number::{self, E164};
use crate::watch::{self, About, STOPPING, Standing, State, Upstream};

/// Longest time between two heartbeats of a stream, however seldom the feed has one: by them a stream is known to live.
const MOST_SILENCE: Duration = Duration::from_secs(15);

/// Watchers get their heartbeats in so many groups, one after the other, so that calls are answered in between.
const GROUPS: u64 = 16;

/// Shortest time between two groups.
const LEAST_STEP: Duration = Duration::from_millis(1);

/// Numbers and tenants that are read at once; what changes meanwhile waits.
const NUMBERS_AT_ONCE: usize = 256;
const TENANTS_AT_ONCE: usize = 32;

/// After a failed read of the replica.
const AGAIN: Duration = Duration::from_millis(250);

/// Longest `Last-Event-ID` that is read. None of ours is longer.
const MOST_ID_BYTES: usize = 64;

/// Opens a stream.
pub(super) fn open(asking: Asking<'_>, asked: &Asked) -> Result<Reply, Fail> {
    let Asking {
        app,
        audit,
        hub,
        dialling,
        caller,
        rights,
    } = asking;
    may_ask_at_all(caller, rights, false, false).inspect_err(|_| audit.refused(caller, "watch"))?;
    let bad = |message| Fail::new(Outcome::BadRequest, message);
    let watched = match params::only(&asked.query, ["to", "tenant"])? {
        [Some(to), None] => {
            let readings = number::readings(&to, dialling)
                .map_err(|err| Fail::new(Outcome::InvalidNumber, err.to_string()))?;
            Watched::Number(readings.iter().collect())
        }
        [None, Some(tenant)] if !tenant.is_empty() => match tenant.parse() {
            Ok(id) => Watched::Tenant(id),
            Err(_) => Watched::Slug(tenant),
        },
        [None, Some(_)] => return Err(bad("tenant must be a slug or an id")),
        [Some(_), Some(_)] => return Err(bad("give either to or tenant, not both")),
        [None, None] => {
            return Err(bad(
                "to or tenant is missing: which number or tenant is to be watched",
            ));
        }
    };
    let who = match caller {
        Caller::Unix(peer) | Caller::Own(peer) => Some(peer.uid),
        Caller::Tcp => None,
    };
    let last = asked
        .headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .filter(|id| id.len() <= MOST_ID_BYTES);
    let body: Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>> =
        if asked.method == Method::HEAD {
            Box::pin(Empty::new())
        } else {
            let watcher = Arc::new(Watcher::new(rights.clone(), last, app));
            Box::pin(hub.join(who, watched, watcher)?)
        };
    let cut_off = app.metrics.watchers_cut_off.clone();
    let reply = Reply::endless(Form::Events, Endless { body, cut_off });
    Ok(reply.with(header::CACHE_CONTROL, "no-store"))
}

/// What a stream is about.
#[derive(Debug, Clone)]
enum Watched {
    /// What the spelling may mean: the first that the watcher may know of counts.
    Number(Vec<E164>),
    Tenant(Uuid),
    Slug(String),
}

/// Everything that is to be told to one caller and was not taken yet.
#[derive(Debug)]
struct Mail {
    opening: bool,
    /// The id that the caller has: that of the last event it took, or brought along.
    has: Option<String>,
    change: Option<Change>,
    upstream: Option<Bytes>,
    beat: Option<Bytes>,
    end: bool,
    ended: bool,
    waker: Option<Waker>,
}

/// A state that is told with the age it has when it is taken.
#[derive(Debug)]
struct Change {
    id: String,
    state: Arc<State>,
    age: Staleness,
    since: Instant,
}

impl Change {
    fn text(&self, stale_after: Duration) -> String {
        let waited = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let ms = self.age.ms.saturating_add(waited);
        let stale = self.age.stale || u128::from(ms) > stale_after.as_millis();
        let age = Staleness {
            ms,
            stale,
            ..self.age
        };
        self.state.event(&self.id, age)
    }
}

/// One who watches.
#[derive(Debug)]
struct Watcher {
    rights: Rights,
    stale_after: Duration,
    metrics: Arc<Metrics>,
    mail: Mutex<Mail>,
}

impl Watcher {
    fn new(rights: Rights, has: Option<&str>, app: &App) -> Self {
        Self {
            rights,
            stale_after: app.config.feed.stale_after,
            metrics: app.metrics.clone(),
            mail: Mutex::new(Mail {
                opening: true,
                has: has.map(str::to_owned),
                change: None,
                upstream: None,
                beat: None,
                end: false,
                ended: false,
                waker: None,
            }),
        }
    }

    fn put(&self, put: impl FnOnce(&mut Mail)) {
        let mut mail = lock(&self.mail);
        put(&mut mail);
        if let Some(waker) = mail.waker.take() {
            drop(mail);
            waker.wake();
        }
    }

    /// Whether this says anything new to the caller.
    fn tell(&self, state: &Arc<State>, age: Staleness) -> bool {
        let id = state.id();
        let mut new = false;
        self.put(|mail| {
            new = mail.has.as_ref() != Some(&id);
            mail.change = new.then(|| Change {
                id,
                state: state.clone(),
                age,
                since: Instant::now(),
            });
        });
        new
    }

    /// What is to be written now; `None` once everything is.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut mail = lock(&self.mail);
        if mail.ended {
            return Poll::Ready(None);
        }
        let mut text = String::new();
        if std::mem::take(&mut mail.opening) {
            text.push_str(&watch::opening());
        }
        let count = |event| self.metrics.watch_events.inc(event);
        if let Some(change) = mail.change.take() {
            text.push_str(&change.text(self.stale_after));
            mail.has = Some(change.id);
            count(Event::Revision);
        }
        let upstream = mail.upstream.take().inspect(|_| count(Event::Upstream));
        let beat = mail.beat.take().inspect(|_| count(Event::Heartbeat));
        let end = mail.end.then(|| Bytes::from_static(STOPPING.as_bytes()));
        if mail.end {
            count(Event::End);
            mail.ended = true;
        }
        let shared: Vec<Bytes> = [upstream, beat, end].into_iter().flatten().collect();
        match (text.is_empty(), shared.as_slice()) {
            (true, []) => {
                mail.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            // Written once for all who watch.
            (true, [one]) => Poll::Ready(Some(one.clone())),
            (_, pieces) => {
                let own = text.into_bytes();
                Poll::Ready(Some([own, pieces.concat()].concat().into()))
            }
        }
    }
}

/// The body of a stream. Dropped, nobody watches any more.
struct Letters {
    watcher: Arc<Watcher>,
    hub: Arc<Hub>,
    key: u64,
}

impl Body for Letters {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.watcher
            .poll(cx)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for Letters {
    fn drop(&mut self) {
        self.hub.leave(self.key);
    }
}

/// Everybody who watches, and what is known of what they watch.
#[derive(Debug)]
pub(super) struct Hub {
    most: usize,
    /// Most of one caller.
    share: usize,
    metrics: Arc<Metrics>,
    crowd: Mutex<Crowd>,
    /// Somebody came.
    came: Notify,
}

#[derive(Debug, Default)]
struct Crowd {
    /// Key of the next one.
    next: u64,
    watchers: HashMap<u64, Entry>,
    of_callers: HashMap<Who, usize>,
    numbers: HashMap<E164, Subject>,
    tenants: HashMap<Uuid, Subject>,
    /// The numbers watched that depend on a tenant.
    numbers_of: HashMap<Uuid, HashSet<E164>>,
    slugs: Slugs,
    /// Those to whom nothing was told yet.
    new: BTreeSet<u64>,
    /// To be read anew.
    stale_numbers: BTreeSet<E164>,
    stale_tenants: BTreeSet<Uuid>,
    stopped: bool,
}

#[derive(Debug)]
struct Entry {
    watcher: Arc<Watcher>,
    watched: Watched,
    who: Who,
    /// Who watches a slug: the tenant that has it.
    bound: Option<Uuid>,
}

/// A number or tenant that is watched.
#[derive(Debug, Default)]
struct Subject {
    watchers: BTreeSet<u64>,
    /// `None` until it was read.
    now: Option<Arc<State>>,
    /// Of a number: the tenant it depends on.
    owner: Option<Uuid>,
}

/// Which tenant has which slug; known only while somebody watches one.
#[derive(Debug, Default)]
struct Slugs {
    watchers: HashMap<String, BTreeSet<u64>>,
    of: HashMap<Uuid, String>,
    tenants: HashMap<String, BTreeSet<Uuid>>,
    scan: Scan,
}

/// How far the reading of every tenant's slug is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Scan {
    #[default]
    Wanted,
    /// These are still to be read.
    Running(BTreeSet<Uuid>),
    Done,
}

impl Slugs {
    fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    fn of(&self, slug: &str) -> Option<Uuid> {
        self.tenants.get(slug)?.first().copied()
    }

    /// A tenant has this slug now. The slugs of which that is news.
    fn learn(&mut self, tenant: Uuid, slug: Option<String>) -> Vec<String> {
        if let Scan::Running(left) = &mut self.scan {
            left.remove(&tenant);
        }
        if self.of.get(&tenant) == slug.as_ref() {
            return Vec::new();
        }
        let was = match &slug {
            Some(slug) => self.of.insert(tenant, slug.clone()),
            None => self.of.remove(&tenant),
        };
        if let Some(was) = &was
            && let Some(tenants) = self.tenants.get_mut(was)
        {
            tenants.remove(&tenant);
            if tenants.is_empty() {
                self.tenants.remove(was);
            }
        }
        if let Some(slug) = &slug {
            self.tenants.entry(slug.clone()).or_default().insert(tenant);
        }
        was.into_iter().chain(slug).collect()
    }

    /// Whether every slug is known since just now.
    fn scanned(&mut self) -> bool {
        let done = self.scan == Scan::Running(BTreeSet::new());
        if done {
            self.scan = Scan::Done;
        }
        done
    }
}

/// What is to be read, as of one look at the crowd.
#[derive(Debug, Default)]
struct Work {
    numbers: Vec<E164>,
    /// With whether more than the slug is wanted.
    tenants: Vec<(Uuid, bool)>,
    every_slug: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.tenants.is_empty() && !self.every_slug
    }
}

impl Crowd {
    fn subscribe(&mut self, key: u64, watched: &Watched) {
        match watched {
            Watched::Number(readings) => {
                for number in readings {
                    let subject = self.numbers.entry(*number).or_default();
                    subject.watchers.insert(key);
                    if subject.now.is_none() {
                        self.stale_numbers.insert(*number);
                    }
                }
            }
            Watched::Tenant(id) => self.subscribe_to_tenant(key, *id),
            Watched::Slug(slug) => {
                self.slugs
                    .watchers
                    .entry(slug.clone())
                    .or_default()
                    .insert(key);
                self.bind(slug);
            }
        }
    }

    fn subscribe_to_tenant(&mut self, key: u64, id: Uuid) {
        let subject = self.tenants.entry(id).or_default();
        subject.watchers.insert(key);
        if subject.now.is_none() {
            self.stale_tenants.insert(id);
        }
    }

    fn unsubscribe_from_tenant(&mut self, key: u64, id: Uuid) {
        if let Some(subject) = self.tenants.get_mut(&id) {
            subject.watchers.remove(&key);
            if subject.watchers.is_empty() {
                self.tenants.remove(&id);
            }
        }
    }

    fn unsubscribe(&mut self, key: u64, entry: &Entry) {
        match &entry.watched {
            Watched::Number(readings) => {
                for number in readings {
                    self.unsubscribe_from_number(key, number);
                }
            }
            Watched::Tenant(id) => self.unsubscribe_from_tenant(key, *id),
            Watched::Slug(slug) => {
                if let Some(watchers) = self.slugs.watchers.get_mut(slug) {
                    watchers.remove(&key);
                    if watchers.is_empty() {
                        self.slugs.watchers.remove(slug);
                    }
                }
                if let Some(id) = entry.bound {
                    self.unsubscribe_from_tenant(key, id);
                }
                if !self.slugs.is_watched() {
                    self.slugs = Slugs::default();
                }
            }
        }
    }

    fn unsubscribe_from_number(&mut self, key: u64, number: &E164) {
        let Some(subject) = self.numbers.get_mut(number) else {
            return;
        };
        subject.watchers.remove(&key);
        if subject.watchers.is_empty() {
            let owner = subject.owner;
            self.numbers.remove(number);
            self.depends(*number, owner, None);
        }
    }

    /// On which tenant a number depends.
    fn depends(&mut self, number: E164, was: Option<Uuid>, now: Option<Uuid>) {
        if was == now {
            return;
        }
        if let Some(was) = was
            && let Some(numbers) = self.numbers_of.get_mut(&was)
        {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.numbers_of.remove(&was);
            }
        }
        if let Some(now) = now {
            self.numbers_of.entry(now).or_default().insert(number);
        }
    }

    /// Who watches a slug follows the tenant that has it.
    fn bind(&mut self, slug: &str) -> Vec<u64> {
        let tenant = self.slugs.of(slug);
        let watchers = self.slugs.watchers.get(slug).cloned().unwrap_or_default();
        let mut moved = Vec::new();
        for key in watchers {
            let Some(entry) = self.watchers.get_mut(&key) else {
                continue;
            };
            let was = std::mem::replace(&mut entry.bound, tenant);
            if was == tenant {
                continue;
            }
            if let Some(was) = was {
                self.unsubscribe_from_tenant(key, was);
            }
            if let Some(tenant) = tenant {
                self.subscribe_to_tenant(key, tenant);
            }
            moved.push(key);
        }
        moved
    }

    /// What was touched is to be read anew, as far as somebody watches it.
    fn touch(&mut self, touches: &Touches) {
        if touches.everything {
            self.stale_numbers.extend(self.numbers.keys());
            self.stale_tenants.extend(self.tenants.keys());
            self.slugs.scan = Scan::Wanted;
            return;
        }
        let watched = |number: &&E164| self.numbers.contains_key(*number);
        let numbers = touches.numbers.iter().filter(watched);
        self.stale_numbers.extend(numbers);
        for tenant in &touches.tenants {
            if let Some(numbers) = self.numbers_of.get(tenant) {
                self.stale_numbers.extend(numbers);
            }
            if self.slugs.is_watched() || self.tenants.contains_key(tenant) {
                self.stale_tenants.insert(*tenant);
            }
        }
        let watched = |tenant: &&Uuid| self.tenants.contains_key(*tenant);
        let owners = touches.owners.iter().filter(watched);
        self.stale_tenants.extend(owners);
    }

    /// What is to be read next; numbers first, for a tenant may have many.
    fn work(&mut self) -> Work {
        let mut work = Work::default();
        while work.numbers.len() < NUMBERS_AT_ONCE
            && let Some(number) = self.stale_numbers.pop_first()
        {
            if self.numbers.contains_key(&number) {
                work.numbers.push(number);
            }
        }
        if !work.numbers.is_empty() {
            return work;
        }
        if self.slugs.is_watched() && self.slugs.scan == Scan::Wanted {
            work.every_slug = true;
            return work;
        }
        while work.tenants.len() < TENANTS_AT_ONCE
            && let Some(tenant) = self.stale_tenants.pop_first()
        {
            let whole = self.tenants.contains_key(&tenant);
            if whole || self.slugs.is_watched() {
                work.tenants.push((tenant, whole));
            }
        }
        work
    }

    /// Puts back what could not be read.
    fn put_back(&mut self, work: &Work) {
        self.stale_numbers.extend(&work.numbers);
        self.stale_tenants
            .extend(work.tenants.iter().map(|(id, _)| *id));
    }

    fn take_number(&mut self, number: E164, now: NumberNow) -> Vec<u64> {
        let Some(subject) = self.numbers.get_mut(&number) else {
            return Vec::new();
        };
        subject.now = Some(Arc::new(now.state));
        let was = std::mem::replace(&mut subject.owner, now.owner);
        let watchers = subject.watchers.iter().copied().collect();
        self.depends(number, was, now.owner);
        watchers
    }

    fn take_tenant(&mut self, tenant: Uuid, now: TenantNow) -> Vec<u64> {
        let mut concerned = Vec::new();
        if self.slugs.is_watched() {
            for slug in self.slugs.learn(tenant, now.slug) {
                concerned.extend(self.bind(&slug));
            }
            if self.slugs.scanned() {
                concerned.extend(self.slugs.watchers.values().flatten());
            }
        }
        if let Some(state) = now.state
            && let Some(subject) = self.tenants.get_mut(&tenant)
        {
            subject.now = Some(Arc::new(state));
            concerned.extend(&subject.watchers);
        }
        concerned
    }

    /// The ids of every tenant, whose slugs are to be read.
    fn take_ids(&mut self, ids: Vec<Uuid>) -> Vec<u64> {
        if !self.slugs.is_watched() {
            return Vec::new();
        }
        // One that is gone is found to be so.
        let ids: BTreeSet<Uuid> = ids
            .into_iter()
            .chain(self.slugs.of.keys().copied())
            .collect();
        self.stale_tenants.extend(&ids);
        self.slugs.scan = Scan::Running(ids);
        if self.slugs.scanned() {
            self.slugs.watchers.values().flatten().copied().collect()
        } else {
            Vec::new()
        }
    }

    /// How a number stands; `None` while that is not known, or may be so no longer.
    fn number(&self, number: &E164) -> Option<&Arc<State>> {
        let known = !self.stale_numbers.contains(number);
        known.then_some(self.numbers.get(number)?.now.as_ref())?
    }

    /// How a tenant stands; `None` while that is not known, or may be so no longer.
    fn tenant(&self, id: &Uuid) -> Option<&Arc<State>> {
        let known = !self.stale_tenants.contains(id);
        known.then_some(self.tenants.get(id)?.now.as_ref())?
    }

    /// How what one watches stands, as far as it may know; `None` while that is not known here.
    fn state_for(&self, entry: &Entry, synced: bool) -> Option<Arc<State>> {
        let may_know = |tenant: &crate::row::Tenant| entry.watcher.rights.config(tenant);
        let nobody = |about, standing| Arc::new(State::of_nobody(about, standing));
        match &entry.watched {
            Watched::Number(readings) => {
                for number in readings {
                    let state = self.number(number)?;
                    if state.standing != Standing::UnknownNumber
                        && state.known_to(may_know).is_some()
                    {
                        return Some(state.clone());
                    }
                }
                let first = readings.first()?;
                Some(nobody(About::Number(*first), Standing::UnknownNumber))
            }
            Watched::Tenant(_) | Watched::Slug(_) if !synced => {
                Some(nobody(About::Tenant(0), Standing::NotReady))
            }
            Watched::Tenant(_) | Watched::Slug(_) => {
                let id = match &entry.watched {
                    Watched::Tenant(id) => Some(*id),
                    _ => entry.bound,
                };
                let Some(id) = id else {
                    let unknown = || nobody(About::Tenant(0), Standing::UnknownTenant);
                    return (self.slugs.scan == Scan::Done).then(unknown);
                };
                let state = self.tenant(&id)?;
                if state.known_to(may_know).is_some() {
                    Some(state.clone())
                } else {
                    Some(nobody(About::Tenant(0), Standing::UnknownTenant))
                }
            }
        }
    }
}

/// What is true of the node, for those who watch.
#[derive(Debug, Clone, Copy)]
struct Node {
    synced: bool,
    feed: FeedState,
    level: bool,
    age: Staleness,
}

impl Node {
    fn of(health: &Health, level: bool) -> Self {
        Self {
            synced: health.is_synced(),
            feed: health.feed_state(),
            level,
            age: health.staleness(),
        }
    }

    fn upstream(&self) -> Upstream {
        Upstream {
            level: self.level,
            stale: self.age.stale,
        }
    }

    fn upstream_event(&self) -> Bytes {
        watch::upstream(self.level, self.feed, self.age).into()
    }

    fn heartbeat(&self) -> Bytes {
        watch::heartbeat(self.level, self.feed, self.age).into()
    }
}

impl Hub {
    /// For so many watchers.
    pub(super) fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            most,
            share: most.saturating_sub(most / 4),
            metrics,
            crowd: Mutex::default(),
            came: Notify::new(),
        }
    }

    fn join(
        self: &Arc<Self>,
        who: Who,
        watched: Watched,
        watcher: Arc<Watcher>,
    ) -> Result<Letters, Fail> {
        let mut crowd = lock(&self.crowd);
        let own = crowd.of_callers.get(&who).copied().unwrap_or(0);
        if crowd.watchers.len() >= self.most || own >= self.share {
            let message = "too many watchers; watch a tenant in place of its numbers, or raise http.max_watchers";
            return Err(Fail::new(Outcome::Overloaded, message));
        }
        crowd.of_callers.insert(who, own.saturating_add(1));
        let key = crowd.next;
        crowd.next = key.saturating_add(1);
        if crowd.stopped {
            watcher.put(|mail| mail.end = true);
        }
        let entry = Entry {
            watcher: watcher.clone(),
            watched: watched.clone(),
            who,
            bound: None,
        };
        crowd.watchers.insert(key, entry);
        crowd.new.insert(key);
        crowd.subscribe(key, &watched);
        drop(crowd);
        self.metrics.watchers.inc();
        self.metrics.connections.dec();
        self.came.notify_one();
        Ok(Letters {
            watcher,
            hub: self.clone(),
            key,
        })
    }

    fn leave(&self, key: u64) {
        let mut crowd = lock(&self.crowd);
        let Some(entry) = crowd.watchers.remove(&key) else {
            return;
        };
        crowd.new.remove(&key);
        crowd.unsubscribe(key, &entry);
        if let Some(own) = crowd.of_callers.get_mut(&entry.who) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                crowd.of_callers.remove(&entry.who);
            }
        }
        drop(crowd);
        self.metrics.watchers.dec();
        // Until the connection is dropped, which counts it out.
        self.metrics.connections.inc();
    }

    /// Tells everybody what happens, until `stop`.
    pub(super) async fn run(self: Arc<Self>, app: Arc<App>, stop: CancellationToken) {
        let bell = app.engine.bell();
        let mut level = app.health.level();
        let beat = app.config.feed.heartbeat_every.min(MOST_SILENCE);
        let step = beat
            .checked_div(u32::try_from(GROUPS).unwrap_or(1))
            .unwrap_or(beat)
            .max(LEAST_STEP);
        let mut next = Instant::now();
        let mut group = 0;
        let mut told = Upstream::WELL;
        let mut heard = false;
        let mut again: Option<Instant> = None;
        loop {
            let anybody = !lock(&self.crowd).watchers.is_empty();
            if heard != anybody {
                heard = anybody;
                bell.listen(heard);
                if heard {
                    // Nothing was heard of what was read before.
                    self.touch(&Touches {
                        everything: true,
                        ..Touches::default()
                    });
                    next = Instant::now().checked_add(step).unwrap_or(next);
                }
            }
            let due = again.unwrap_or(next).min(next);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.came.notified() => {}
                () = bell.rung() => {}
                changed = level.changed(), if heard => if changed.is_err() { break },
                () = sleep_until(due), if heard => {}
            }
            let node = Node::of(&app.health, *level.borrow_and_update());
            if told != node.upstream() {
                told = node.upstream();
                let event = node.upstream_event();
                self.each(|_| true, |mail| mail.upstream = Some(event.clone()));
            }
            if next <= Instant::now() {
                let event = node.heartbeat();
                let due = |key: u64| key.checked_rem(GROUPS) == Some(group);
                self.each(due, |mail| mail.beat = Some(event.clone()));
                group = group.saturating_add(1).checked_rem(GROUPS).unwrap_or(0);
                next = next.checked_add(step).unwrap_or(next);
                if next <= Instant::now() {
                    next = Instant::now().checked_add(step).unwrap_or(next);
                }
            }
            if again.is_none_or(|again| again <= Instant::now()) {
                again = self.read(&app, &stop, told).await;
            }
        }
        let mut crowd = lock(&self.crowd);
        crowd.stopped = true;
        for entry in crowd.watchers.values() {
            entry.watcher.put(|mail| mail.end = true);
        }
    }

    fn touch(&self, touches: &Touches) {
        lock(&self.crowd).touch(touches);
    }

    /// Puts something into the mail of those, who were told how things stand.
    fn each(&self, which: impl Fn(u64) -> bool, put: impl Fn(&mut Mail)) {
        let crowd = lock(&self.crowd);
        for (key, entry) in &crowd.watchers {
            if which(*key) && !crowd.new.contains(key) {
                entry.watcher.put(&put);
            }
        }
    }

    /// Reads what was touched, and tells it, until nothing is left or the replica cannot be read; then when to try again.
    async fn read(
        &self,
        app: &Arc<App>,
        stop: &CancellationToken,
        told: Upstream,
    ) -> Option<Instant> {
        let mut first = true;
        while !stop.is_cancelled() {
            // Taken before it is asked what was touched, and so before rows are read: it is never understated.
            let node = Node::of(&app.health, told.level);
            let touches = app.engine.bell().take();
            let work = {
                let mut crowd = lock(&self.crowd);
                crowd.touch(&touches);
                crowd.work()
            };
            if work.is_empty() {
                if first {
                    self.tell_new(node);
                }
                return None;
            }
            first = false;
            let engine = app.engine.clone();
            let read = tokio::task::spawn_blocking(move || {
                let ids = || engine.replica().view()?.tenant_ids();
                let found = (
                    engine.numbers_now(&work.numbers),
                    engine.tenants_now(&work.tenants),
                    work.every_slug.then(ids).transpose(),
                );
                (found, work)
            });
            let Ok((found, work)) = read.await else {
                return Instant::now().checked_add(AGAIN); // the runtime ends
            };
            let (Ok(numbers), Ok(tenants), Ok(ids)) = found else {
                lock(&self.crowd).put_back(&work);
                self.tell_new(node);
                return Instant::now().checked_add(AGAIN);
            };
            let mut crowd = lock(&self.crowd);
            let mut concerned: Vec<u64> = Vec::new();
            for (number, now) in numbers {
                concerned.extend(crowd.take_number(number, now));
            }
            for (tenant, now) in tenants {
                concerned.extend(crowd.take_tenant(tenant, now));
            }
            if let Some(ids) = ids {
                concerned.extend(crowd.take_ids(ids));
            }
            crowd.tell(concerned, node);
            drop(crowd);
            self.tell_new(node);
        }
        None
    }

    /// Tells those who came how things stand, as far as that is known.
    fn tell_new(&self, node: Node) {
        let mut crowd = lock(&self.crowd);
        let new = crowd.new.iter().copied().collect();
        crowd.tell(new, node);
    }
}

impl Crowd {
    fn tell(&mut self, concerned: Vec<u64>, node: Node) {
        for key in concerned {
            let Some(entry) = self.watchers.get(&key) else {
                continue;
            };
            let Some(state) = self.state_for(entry, node.synced) else {
                continue;
            };
            let told = entry.watcher.tell(&state, node.age);
            if self.new.remove(&key) {
                entry.watcher.put(|mail| {
                    // Who has it already learns by this that it still is so.
                    if !told {
                        mail.beat = Some(node.heartbeat());
                    }
                    if node.upstream() != Upstream::WELL {
                        mail.upstream = Some(node.upstream_event());
                    }
                });
            }
        }
    }
}

/// A panic while the lock was held leaves what is read anew at the next change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
