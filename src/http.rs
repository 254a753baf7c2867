//! Where calls and operators ask: listen, accept, answer, drain.
//!
//! Always true: a socket that cannot be had fails in [`bind`], before anything else begins; connections are bounded
//! in number, and one that waits for its caller gives way to a new one; a request that was sent before the daemon stops is answered
//! within `http.drain_timeout`.

mod acceptor;
mod admin;
mod audit;
mod events;
mod host;
mod lane;
mod line;
mod listen;
mod lookup;
mod page;
mod params;
mod swift;
#[cfg(test)]
mod tests;
mod token;
mod unit;
mod watch;
mod wire;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::audit::Audit;
use self::events::Listeners;
use self::lane::Lanes;
use self::line::{Begun, Ends, Progress, Stream};
use self::listen::{Arrival, Door};
use self::swift::Plain;
use self::watch::Hub;
use self::wire::{Asked, Fail, Form, Handler, Limits, Reply};
use crate::access::{Access, Caller, Names, Peer, Rights};
use crate::config::{Config, HttpConfig, Problem, Right};
use crate::engine::Engine;
use crate::feed::handle::FeedHandle;
use crate::health::Health;
use crate::log::LogControl;
use crate::metrics::{Metrics, Outcome};
use crate::number::Dialling;
use crate::trace::Traces;

pub use self::listen::{Address, BindError};
#[doc(hidden)]
pub use self::params::{Said, read};
pub use self::token::Gate;

/// Most connections of operators at once, on each door of theirs.
const ADMIN_CONNECTIONS: usize = 32;

/// Descriptors that callers never get: those of operators twice, and as many again for the feed, the replica and files.
const KEPT_DESCRIPTORS: u64 = 128;

/// How long to wait before trying again when there is no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// Most connections that are accepted after `stop`; more never wait in a backlog.
const MOST_WAITING: usize = 8192;

/// What the routes answer from.
#[derive(Debug)]
pub struct App {
    /// Numbers and keys.
    pub engine: Arc<Engine>,
    /// What is true of this node.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where pulls are ordered.
    pub feed: FeedHandle,
    /// Every setting.
    pub config: Arc<Config>,
    /// Where slow answers are traced.
    pub traces: Traces,
    /// The log's filter.
    pub log: LogControl,
    /// Name of this node.
    pub node: String,
    /// When the daemon began.
    pub started: Timestamp,
}

/// Listening sockets, and who may ask on them.
#[derive(Debug)]
pub struct Doors {
    call: Vec<Door>,
    admin: Option<Door>,
    admin_tcp: Option<Door>,
    access: Access,
}

impl Doors {
    /// Where calls are answered, for people.
    pub fn call(&self) -> impl Iterator<Item = &str> {
        self.call.iter().map(|door| door.name.as_str())
    }

    /// Where a caller of this host connects, the Unix socket first.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        let all: Vec<_> = self.call.iter().filter_map(Door::address).collect();
        let unix = all.iter().find(|one| matches!(one, Address::Unix(_)));
        unix.or(all.first()).cloned()
    }

    /// What lets operators over TCP in, where there is such a listener.
    #[must_use]
    pub fn gate(&self) -> Option<Arc<Gate>> {
        self.admin_tcp.as_ref()?.gate.clone()
    }

    /// Where operators are answered, for people.
    #[must_use]
    pub fn admin(&self) -> Option<&str> {
        self.admin.as_ref().map(|door| door.name.as_str())
    }
}

/// Takes over the sockets that systemd passes under the names `sidetone` and `sidetone-admin`, makes the others, and
/// reads the access rules. Callers may connect from now on; they are answered by [`serve`].
///
/// Must be called within a runtime.
///
/// # Errors
/// [`BindError`]: a socket in use, a place where none can be made, a rule about nobody.
pub fn bind(config: &Config) -> Result<Doors, BindError> {
    let names = Names::of_host();
    let opened = listen::open(config, &names)?;
    let group = opened.call.iter().find_map(|door| door.group);
    let daemon = rustix::process::geteuid().as_raw();
    let access = Access::new(&config.access, &names, daemon, group)
        .map_err(BindError::Access)?
        .with_tcp_rate(config.http.tcp_rate);
    if let Some(why) = units_cannot_be_told(config) {
        tracing::warn!(why, "rules of access about units match nobody");
    }
    Ok(Doors {
        call: opened.call,
        admin: opened.admin,
        admin_tcp: opened.admin_tcp,
        access,
    })
}

/// Users and groups of the settings that do not exist on this host, for `check`.
#[must_use]
pub fn problems(config: &Config) -> Vec<Problem> {
    let names = Names::of_host();
    let mut problems = listen::problems(config, &names);
    problems.extend(
        Access::new(&config.access, &names, 0, None)
            .err()
            .into_iter()
            .flatten(),
    );
    problems
}

/// The files for operators over TCP as they are now, for `check`.
///
/// # Errors
/// [`BindError`]: the first thing that would keep the daemon from starting.
pub fn try_admin_tcp(config: &Config) -> Result<Option<Gate>, BindError> {
    if config.admin.tcp.is_empty() {
        return Ok(None);
    }
    Gate::load(&config.admin).map(Some)
}

/// What a daemon started from here would lack of descriptors: how many connections are left, and the limit it needs.
#[must_use]
pub fn lacks_descriptors(http: &HttpConfig) -> Option<(u64, u64)> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let (calls, watchers) = most_places(http, limit.unwrap_or(u64::MAX));
    let left = calls.saturating_add(watchers);
    (left < wanted_places(http))
        .then_some((left, wanted_places(http).saturating_add(KEPT_DESCRIPTORS)))
}

/// Why rules about units match nobody on this host, where there are such rules.
#[must_use]
pub fn units_cannot_be_told(config: &Config) -> Option<&'static str> {
    if config.access.iter().any(|rule| rule.unit.is_some()) {
        unit::cannot_be_told()
    } else {
        None
    }
}

/// Answers until `stop`, then drains: who had connected is still accepted, what had been sent is still answered, for
/// at most `http.drain_timeout`.
pub async fn serve(app: Arc<App>, doors: Doors, stop: CancellationToken) {
    let http = &app.config.http;
    let terms = Terms {
        header_timeout: http.header_timeout,
        idle_timeout: http.idle_timeout,
        drain_timeout: http.drain_timeout,
        max_body: http.max_body.as_u64(),
    };
    let (places, watchers) = places(http);
    let told = |places: usize| i64::try_from(places).unwrap_or(i64::MAX);
    app.metrics.connections_limit.set(told(places));
    app.metrics.watchers_limit.set(told(watchers));
    let hub = Arc::new(Hub::new(watchers, app.metrics.clone()));
    let watching = tokio::spawn(hub.clone().run(app.clone(), stop.clone()));
    let listeners = Arc::new(Listeners::new());
    let measuring = tokio::spawn(listeners.clone().run(app.clone(), stop.clone()));
    let node = Arc::new(Node {
        gate: doors.gate(),
        dialling: app.config.dialling(),
        access: doors.access,
        audit: Audit::default(),
        daemon: rustix::process::geteuid().as_raw(),
        own: sd_notify::watchdog_enabled()
            .map(|_| rustix::process::getpid().as_raw_nonzero().get()),
        hub,
        listeners,
        app,
    });
    let (call, admin) = (Room::new(places), Room::new(ADMIN_CONNECTIONS));
    // Of its own room: strangers who try tokens take none of those who need none.
    let remote = Room::new(ADMIN_CONNECTIONS);
    let doors = [
        (Side::Call, &call, doors.call),
        (Side::Admin, &admin, doors.admin.into_iter().collect()),
        (Side::Admin, &remote, doors.admin_tcp.into_iter().collect()),
    ];
    let entrances = doors.into_iter().flat_map(|(side, room, doors)| {
        let entrance = move |door| Entrance::new(door, side, room);
        doors.into_iter().map(entrance)
    });
    let entrances: Vec<Entrance> = entrances.collect();
    let watching = async {
        let ended = tokio::try_join!(watching, measuring);
        if ended.is_err() || !stop.is_cancelled() {
            tracing::error!("what tells watchers of changes, or pages, ended by itself");
            return;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = run(entrances, node, &terms, stop.clone()) => {}
        () = watching => {}
    }
}

/// How long things may take, and how large they may be.
#[derive(Debug, Clone)]
struct Terms {
    header_timeout: Duration,
    idle_timeout: Duration,
    drain_timeout: Duration,
    max_body: u64,
}

/// How many connections callers may have, and how many watchers besides: as many as configured, unless the limit of
/// descriptors, raised as far as it goes, leaves fewer.
fn places(http: &HttpConfig) -> (usize, usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = wanted_places(http).saturating_add(KEPT_DESCRIPTORS);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut limit = current.unwrap_or(u64::MAX);
    if limit < wanted {
        let raised = wanted.min(maximum.unwrap_or(u64::MAX));
        let limits = Rlimit {
            current: Some(raised),
            maximum,
        };
        match setrlimit(Resource::Nofile, limits) {
            Ok(()) => limit = raised,
            Err(err) => tracing::debug!(error = %err, "the limit of descriptors cannot be raised"),
        }
    }
    let (calls, watchers) = most_places(http, limit);
    if calls.saturating_add(watchers) < wanted_places(http) {
        tracing::warn!(
            descriptors = limit,
            connections = calls,
            watchers,
            "http.max_connections, http.max_watchers: the limit of descriptors leaves fewer; set LimitNOFILE of the unit to {wanted}"
        );
    }
    let size = |places| usize::try_from(places).unwrap_or(usize::MAX);
    (
        size(calls).min(Semaphore::MAX_PERMITS),
        size(watchers).min(Semaphore::MAX_PERMITS),
    )
}

/// Callers and watchers that are let in where there are descriptors enough.
fn wanted_places(http: &HttpConfig) -> u64 {
    u64::from(http.max_connections).saturating_add(u64::from(http.max_watchers))
}

/// What is left of so many descriptors for callers, never nothing, and then for watchers.
fn most_places(http: &HttpConfig, descriptors: u64) -> (u64, u64) {
    let rest = descriptors.saturating_sub(KEPT_DESCRIPTORS);
    let calls = u64::from(http.max_connections)
        .min(rest.max(descriptors / 4))
        .max(1);
    let watchers = u64::from(http.max_watchers).min(rest.saturating_sub(calls));
    (calls, watchers)
}

/// A user on a Unix socket, or everybody over TCP.
type Who = Option<u32>;

/// A bounded number of connections. Who wants in when it is full moves those to leave that wait for their callers: of
/// the caller that has most. A quarter is out of any one caller's reach.
#[derive(Debug, Clone)]
struct Room {
    places: Arc<Semaphore>,
    /// Most places of one caller.
    share: usize,
    callers: Arc<Mutex<HashMap<Who, Arc<Crowd>>>>,
}

/// The connections of one caller.
#[derive(Debug)]
struct Crowd {
    places: Arc<Semaphore>,
    /// Woken one at a time, the longest waiting first.
    waiting: Arc<Notify>,
}

/// A place in the room.
#[derive(Debug)]
struct Place {
    who: Who,
    crowd: Option<Arc<Crowd>>,
    room: Room,
    /// The room's and the caller's, given back in this order: who gets the second finds the first.
    taken: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken = None;
        let mut callers = self.room.callers();
        self.crowd = None;
        // Taken only under the lock: where there is no other, nobody is of this crowd.
        if callers
            .get(&self.who)
            .is_some_and(|crowd| Arc::strong_count(crowd) == 1)
        {
            callers.remove(&self.who);
        }
    }
}

impl Room {
    fn new(connections: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(connections)),
            share: connections.saturating_sub(connections / 4),
            callers: Arc::default(),
        }
    }

    fn callers(&self) -> std::sync::MutexGuard<'_, HashMap<Who, Arc<Crowd>>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, as soon as there is one. None where a caller has its share and more than that is not for it: because it
    /// `floods`, or because each of its connections is being answered.
    async fn enter(&self, who: Who, floods: bool) -> Option<Place> {
        let (mut place, crowd) = self.outside(who);
        let own = match crowd.places.clone().try_acquire_owned() {
            Ok(own) => own,
            Err(_) if floods => return None,
            Err(_) => one_of(&crowd.places, || Some(crowd.ask_one_to_leave())).await?,
        };
        loop {
            if let Some(any) = one_of(&self.places, || self.make_room()).await {
                place.taken = Some((any, own));
                return Some(place);
            }
        }
    }

    /// A place, where there is one now.
    fn try_enter(&self, who: Who) -> Option<Place> {
        let (mut place, crowd) = self.outside(who);
        let own = crowd.places.clone().try_acquire_owned().ok()?;
        let any = self.places.clone().try_acquire_owned().ok()?;
        place.taken = Some((any, own));
        Some(place)
    }

    /// A place that is not taken yet, and whom it is for.
    fn outside(&self, who: Who) -> (Place, Arc<Crowd>) {
        let crowd = self.crowd(who);
        let place = Place {
            who,
            crowd: Some(crowd.clone()),
            room: self.clone(),
            taken: None,
        };
        (place, crowd)
    }

    fn crowd(&self, who: Who) -> Arc<Crowd> {
        let new = || Crowd {
            places: Arc::new(Semaphore::new(self.share)),
            waiting: Arc::new(Notify::new()),
        };
        self.callers()
            .entry(who)
            .or_insert_with(|| Arc::new(new()))
            .clone()
    }

    /// The crowd of the caller that has most connections.
    fn largest(&self) -> Option<Arc<Crowd>> {
        let callers = self.callers();
        callers
            .values()
            .min_by_key(|crowd| crowd.places.available_permits())
            .cloned()
    }

    /// Moves one of the caller that has most connections to leave, if one of those waits or soon does. Who is asked.
    fn make_room(&self) -> Option<Arc<Notify>> {
        Some(self.largest()?.ask_one_to_leave())
    }
}

impl Crowd {
    fn ask_one_to_leave(&self) -> Arc<Notify> {
        self.waiting.notify_one();
        self.waiting.clone()
    }
}

/// One of these permits, if there is one or `make_room` brings one soon.
async fn one_of(
    permits: &Arc<Semaphore>,
    make_room: impl Fn() -> Option<Arc<Notify>>,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = permits.clone().try_acquire_owned() {
        return Some(permit);
    }
    let asked = make_room();
    // Whoever was moved may have got a request in the meantime.
    let waited = tokio::time::timeout(NO_ROOM, permits.clone().acquire_owned()).await;
    // Nobody has to leave any more.
    let _ = asked.and_then(|asked| asked.notified().now_or_never());
    waited.ok()?.ok()
}

/// A listening socket with the bound on its connections.
#[derive(Clone)]
struct Entrance {
    door: Arc<Door>,
    side: Side,
    room: Room,
    /// Whose turn it is to wait for a place.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Entrance {
    fn new(door: Door, side: Side, room: &Room) -> Self {
        Self {
            door: Arc::new(door),
            side,
            room: room.clone(),
            turn: Arc::default(),
        }
    }
}

/// Who answers connections.
trait Host: Send + Sync + 'static {
    type Handler: Handler;

    /// Somebody connected. Takes no time.
    fn connect(self: &Arc<Self>, door: &Door, side: Side, arrival: &Arrival) -> Self::Handler;

    /// Whether what a caller may ask is only known once it is [known better](Self::know_better).
    fn must_know_better(&self) -> bool;

    /// Finds out what takes time of a caller that was accepted then, where it matters.
    fn know_better(
        &self,
        handler: Self::Handler,
        side: Side,
        arrival: &Arrival,
        accepted: Instant,
    ) -> Self::Handler;

    /// How long a connection of this caller is left alone because it asks far more often than it may; zero for others.
    fn pause(&self, side: Side, who: Who) -> Duration;

    /// Somebody could not be accepted.
    fn not_accepted(&self, err: &io::Error);
}

/// Accepts and answers until `stop`, then drains. Ends before `stop` only when a listener broke.
async fn run<H: Host>(
    entrances: Vec<Entrance>,
    host: Arc<H>,
    terms: &Terms,
    stop: CancellationToken,
) {
    let kill = CancellationToken::new();
    // However this ends, no connection outlives it.
    let _kill = kill.clone().drop_guard();
    let connections = TaskTracker::new();
    let mut listeners = JoinSet::new();
    let lanes = Lanes::new();
    let answering = |side| Answering {
        host: host.clone(),
        limits: Limits {
            ends: Ends {
                header_timeout: terms.header_timeout,
                idle_timeout: terms.idle_timeout,
                crowd: Arc::default(), // each caller has its own
                stop: stop.clone(),
                lanes: (side == Side::Call).then(|| lanes.clone()),
            },
            max_body: terms.max_body,
        },
        connections: connections.clone(),
        kill: kill.clone(),
    };
    let bell = match acceptor::spawn(&mut listeners, entrances, answering) {
        Ok(bell) => bell,
        Err(err) => return tracing::error!(error = %err, "nobody can be accepted"),
    };
    tokio::select! {
        // Listeners end at `stop` too: whoever sees that first must not take it for a breakdown.
        biased;
        () = stop.cancelled() => bell.ring(),
        Some(_) = listeners.join_next() => return,
    }
    let drained = tokio::time::timeout(terms.drain_timeout, async {
        while listeners.join_next().await.is_some() {}
        connections.close();
        connections.wait().await;
    });
    if drained.await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "not drained in time; connections are closed"
        );
        kill.cancel();
        listeners.shutdown().await;
        connections.close();
        connections.wait().await;
    }
}

/// What answering a connection takes.
struct Answering<H> {
    host: Arc<H>,
    limits: Limits,
    connections: TaskTracker,
    kill: CancellationToken,
}

impl<H: Host> Answering<H> {
    /// Lets nobody else connect, and accepts everybody who had connected before.
    async fn empty(&self, entrance: &Entrance) {
        entrance.door.refuse_new();
        for _ in 0..MOST_WAITING {
            match entrance.door.waiting() {
                _ if self.kill.is_cancelled() => return,
                Ok(arrival) => self.enter(entrance, arrival).await,
                Err(err)
                    if matches!(
                        err.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::InvalidInput
                    ) =>
                {
                    return;
                }
                Err(err) => tokio::time::sleep(self.failed(&err, entrance)).await,
            }
        }
    }

    /// How long to wait after a connection could not be accepted: not at all, where it was about that one alone.
    fn failed(&self, err: &io::Error, entrance: &Entrance) -> Duration {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        self.host.not_accepted(err);
        if matches!(
            err.kind(),
            ConnectionAborted | ConnectionReset | Interrupted
        ) {
            return Duration::ZERO;
        }
        entrance.room.make_room();
        NO_ROOM
    }

    /// Lets a connection in, or closes it where its caller has too many. What more is to be known of the caller is
    /// found out beside the loop that accepts, so that a caller that connects again and again holds up no other.
    async fn enter(&self, entrance: &Entrance, arrival: Arrival) {
        let accepted = Instant::now();
        let who = arrival.user();
        let pause = self.host.pause(entrance.side, who);
        let _turn = entrance.turn.lock().await;
        let Some(place) = entrance.room.enter(who, !pause.is_zero()).await else {
            return self.host.not_accepted(&io::ErrorKind::QuotaExceeded.into());
        };
        let (host, ends) = (self.host.clone(), self.limits_of(&place).ends);
        let Entrance { door, side, .. } = entrance.clone();
        let meeting = async move {
            if ends.hold_back(pause).await {
                return None;
            }
            let handler = host.connect(&door, side, &arrival);
            Some((handler, arrival, Begun::default()))
        };
        self.go_on(entrance, accepted, place, meeting);
    }

    /// Answers on the event loop whom this meeting brings.
    fn go_on(
        &self,
        entrance: &Entrance,
        accepted: Instant,
        place: Place,
        meeting: impl Future<Output = Option<(H::Handler, Arrival, Begun)>> + Send + 'static,
    ) {
        let limits = self.limits_of(&place);
        let (host, kill) = (self.host.clone(), self.kill.clone());
        let Entrance { door, side, .. } = entrance.clone();
        let progress = Progress::new();
        progress.keep(place);
        let riding = progress.clone();
        let connection = async move {
            let Some((handler, arrival, begun)) = meeting.await else {
                return;
            };
            let handler = Arc::new(host.know_better(handler, side, &arrival, accepted));
            let tls = door.gate.as_ref().and_then(|gate| gate.tls());
            drop(door);
            let shaken = tokio::select! {
                shaken = shake_hands(arrival, tls, limits.ends.header_timeout) => shaken,
                () = kill.cancelled() => return,
            };
            match shaken {
                Ok(stream) => wire::serve(stream, begun, handler, &limits, riding, kill).await,
                Err(err) => tracing::warn!(error = %err, "no TLS with a caller of the admin side"),
            }
        };
        let ride = lane::ride(connection.boxed(), progress, self.connections.clone());
        self.connections.spawn(ride);
    }

    /// The limits of a connection that has this place.
    fn limits_of(&self, place: &Place) -> Limits {
        let mut limits = self.limits.clone();
        if let Some(crowd) = &place.crowd {
            limits.ends.crowd = crowd.waiting.clone();
        }
        limits
    }
}

/// TLS over a connection, where its door speaks that.
async fn shake_hands(
    arrival: Arrival,
    tls: Option<Arc<rustls::ServerConfig>>,
    limit: Duration,
) -> io::Result<Stream> {
    match (arrival.into_stream()?, tls) {
        (Stream::Tcp(stream), Some(tls)) => {
            let shaken = tokio_rustls::TlsAcceptor::from(tls).accept(stream);
            let stream = tokio::time::timeout(limit, shaken)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(Stream::Tls(Box::new(stream)))
        }
        (stream, _) => Ok(stream),
    }
}

/// Which routes a socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Call,
    Admin,
}

/// What all connections share.
#[derive(Debug)]
struct Node {
    app: Arc<App>,
    access: Access,
    audit: Audit,
    dialling: Dialling,
    daemon: u32,
    /// This process, where it asks itself for the service manager's watchdog.
    own: Option<i32>,
    hub: Arc<Hub>,
    listeners: Arc<Listeners>,
    /// What lets operators over TCP in.
    gate: Option<Arc<Gate>>,
}

impl Host for Node {
    type Handler = Connection;

    /// Who is on the other end, and what that one may ask.
    fn connect(self: &Arc<Self>, door: &Door, side: Side, arrival: &Arrival) -> Connection {
        let with_groups = side == Side::Admin || self.access.asks_for_groups();
        let caller = match door.peer(arrival, with_groups) {
            Some(peer) if side == Side::Call && self.is_this_process(&peer) => Caller::Own(peer),
            Some(peer) => Caller::Unix(peer),
            None => Caller::Tcp,
        };
        let may = match (side, &caller) {
            (Side::Call, _) => May::Call(self.access.rights(&caller, Instant::now())),
            (Side::Admin, Caller::Unix(peer)) => May::Admin(self.is_operator(peer, door.group)),
            (Side::Admin, Caller::Tcp | Caller::Own(_)) => May::Token,
        };
        let connection = Connection {
            node: self.clone(),
            caller,
            may,
        };
        if connection.is_counted() {
            self.app.metrics.connections_total.inc();
            self.app.metrics.connections.inc();
        }
        connection
    }

    fn must_know_better(&self) -> bool {
        self.access.asks_for_units()
    }

    /// Asks for the caller's unit where a rule is about it, and where the log may have to tell who was refused.
    fn know_better(
        &self,
        mut connection: Connection,
        side: Side,
        arrival: &Arrival,
        accepted: Instant,
    ) -> Connection {
        let matters = self.access.asks_for_units() || connection.may.refuses();
        if let (true, Caller::Unix(peer)) = (matters, &mut connection.caller) {
            peer.unit = peer
                .pid
                .and_then(|pid| unit::of_peer(arrival, pid, accepted));
            if peer.unit.is_some() && side == Side::Call && self.access.asks_for_units() {
                connection.may = May::Call(self.access.rights(&connection.caller, Instant::now()));
            }
        }
        connection
    }

    fn pause(&self, side: Side, who: Who) -> Duration {
        match side {
            Side::Call => self.access.pause(who, Instant::now()),
            Side::Admin => Duration::ZERO,
        }
    }

    fn not_accepted(&self, err: &io::Error) {
        self.app.metrics.accept_errors.inc();
        tracing::debug!(error = %err, "a connection could not be accepted");
    }
}

impl Node {
    /// Whether the daemon asks itself. The user is compared too: what connected may have ended, and left its number to us.
    fn is_this_process(&self, peer: &Peer) -> bool {
        peer.uid == self.daemon && self.own.is_some() && peer.pid == self.own
    }

    /// Root, the daemon's user, and the group that the socket's mode lets in.
    fn is_operator(&self, peer: &Peer, group: Option<u32>) -> bool {
        peer.uid == 0 || peer.uid == self.daemon || group.is_some_and(|gid| peer.is_in(gid))
    }
}

/// One caller.
struct Connection {
    node: Arc<Node>,
    caller: Caller,
    may: May,
}

/// What a caller may do on the side it connected to.
enum May {
    Call(Rights),
    Admin(bool),
    /// Whatever an operator may, with the token in each request.
    Token,
}

impl May {
    /// Whether there is anything that this caller would be refused.
    fn refuses(&self) -> bool {
        match self {
            Self::Call(rights) => [Right::Config, Right::Credentials]
                .into_iter()
                .any(|right| !rights.anywhere(right)),
            Self::Admin(may) => !may,
            Self::Token => false,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_counted() {
            self.node.app.metrics.connections.dec();
        }
    }
}

impl Connection {
    /// Whether it is one of callers.
    fn is_counted(&self) -> bool {
        matches!(self.may, May::Call(_)) && !matches!(self.caller, Caller::Own(_))
    }

    fn asking<'a>(&'a self, rights: &'a Rights) -> lookup::Asking<'a> {
        let Node {
            app,
            audit,
            hub,
            dialling,
            ..
        } = &*self.node;
        lookup::Asking {
            app,
            audit,
            hub,
            dialling,
            caller: &self.caller,
            rights,
        }
    }
}

impl Handler for Connection {
    fn answer(self: Arc<Self>, asked: Asked) -> BoxFuture<'static, Reply> {
        async move {
            let Node { audit, gate, .. } = &*self.node;
            match &self.may {
                May::Call(rights) => lookup::answer(self.asking(rights), &asked).await,
                May::Admin(true) | May::Token if let Some(file) = page::answer(&asked) => file,
                May::Admin(true) | May::Token
                    if let Err(fail) = host::check_same_origin(&asked.method, &asked.headers) =>
                {
                    audit.refused(&self.caller, "admin: a page of another origin");
                    fail.reply(Form::Json)
                }
                May::Admin(true) => admin::answer(&self.node, &self.caller, asked).await,
                May::Token => {
                    if gate.as_ref().is_some_and(|gate| gate.is_shown(&asked)) {
                        return admin::answer(&self.node, &self.caller, asked).await;
                    }
                    audit.refused(&self.caller, "admin: no token, or a wrong one");
                    tokio::time::sleep(token::DELAY).await;
                    token::unauthorized()
                }
                May::Admin(false) => {
                    audit.refused(&self.caller, "admin");
                    let message =
                        "only root, the daemon's user and the socket's group may ask here";
                    Fail::new(Outcome::Forbidden, message).reply(Form::Json)
                }
            }
        }
        .boxed()
    }

    fn at_once(&self, asked: &Plain<'_>) -> Option<Reply> {
        let May::Call(rights) = &self.may else {
            return None;
        };
        lookup::at_once(self.asking(rights), asked)
    }

    fn refused(&self, outcome: Outcome) {
        if let May::Call(_) = self.may {
            self.node.app.metrics.lookups.inc(outcome);
        }
    }

    fn hosts(&self) -> Option<&[String]> {
        match (&self.caller, &self.may) {
            // A browser gets to the operators' socket by a tunnel, and with it whatever page is open in it.
            (_, May::Admin(_) | May::Token) => Some(&self.node.app.config.admin.hosts),
            (Caller::Unix(_) | Caller::Own(_), _) => None,
            (Caller::Tcp, _) => Some(&[]),
        }
    }
}
