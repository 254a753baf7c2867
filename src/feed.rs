//! Doorbell or timer: pull, plan, apply. Every await of the feed and none of its decisions.
//!
//! Always true: one connection; the heartbeat is a pull through it; level is proved only by a completed pull of an
//! armed database of our schema from the identity the cursor belongs to; the cursor moves only together with the rows
//! it stands for. Work that an operator orders is done here, never in a request.

pub mod handle;

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io::IsTerminal;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use indicatif::{ProgressBar, ProgressFinish};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::change::{
    self, Changed, Cursor, Header, Identity, KEYS_PER_PULL, Key, Step, Why, Written,
};
use crate::config::FeedConfig;
use crate::engine::Engine;
use crate::health::{FeedState, Health, Held, LastError, since_boot};
use crate::metrics::{Certificate, ChangeKind, Disconnect, Label, Metrics, PullCause};
use crate::replica::{self, Applied, Comparison, Cover, Incoming, Terms, What};
use crate::row::Table;
use crate::source::migrate::SCHEMA_VERSION;
use crate::source::{Doorbell, Load, Pulled, Role, Session, SourceError, Target};
use crate::trace::{Fact, Traces, Work, note};
use handle::{Difference, Order, OrderError, Refresh, RefreshReport, Scope, VerifyReport};

/// Where it rings on while a pull is under way, the next one begins so long after it: a burst costs the pull of its first
/// doorbell and few after it. A commit by itself waits for nothing.
const JOIN: Duration = Duration::from_millis(5);
/// How long a doorbell's transaction may take to become visible before it is taken for forged.
const DOORBELL_DEADLINE: Duration = Duration::from_secs(1);
/// How long a refresh waits for `at_least`.
const AT_LEAST_DEADLINE: Duration = Duration::from_secs(10);
/// How often a long copy tells how far it is, times two.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// A batch that takes longer than this makes others wait: from then on, and so often, suspensions are asked for aside.
const ASIDE_AFTER: Duration = Duration::from_millis(300);
const ASIDE_EVERY: Duration = Duration::from_millis(250);
/// Where that failed, it is tried again after so long, and up to as much again.
const ASIDE_AGAIN: Duration = Duration::from_secs(1);
/// How often it is made sure that LISTEN still stands, and statements are planned for the tables' present size.
const LISTEN_CHECK: Duration = Duration::from_secs(30);
/// How often everything is compared while triggers are off, the schema is another or a loss is held.
const DISTRUST_EVERY: Duration = Duration::from_secs(60);
/// How often the log is pruned; each node adds up to as much again.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// How often a cursor that moved without changes is written to disk.
const KEEP_CURSOR_EVERY: Duration = Duration::from_secs(600);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Where there is no connection: level again within five seconds of healing, the wait, then connecting and comparing.
const BACKOFF_UNREACHED: Duration = Duration::from_secs(3);
/// Where Postgres lets nodes in and they get no further, hundreds of them must not keep it busy with passwords.
const BACKOFF_REFUSED: Duration = Duration::from_secs(15);
const BACKOFF_DISK: Duration = Duration::from_secs(1);
/// A session that lasted this long starts the back-off anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// A session that dies sooner after LISTEN than this, so often in a row, goes on without LISTEN.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
const KILLED_TIMES: u32 = 3;
const WITHOUT_LISTEN_FOR: Duration = Duration::from_secs(600);
/// After a restart of Postgres comparisons are spread over so many times `feed.spread`, at most a minute.
const SPREAD_FACTOR: u32 = 20;
const SPREAD_MOST: Duration = Duration::from_secs(60);

/// Everything the feed works with.
#[derive(Debug)]
pub struct Feed {
    /// Where Postgres is.
    pub target: Target,
    /// The standby that rows are read from; `None`: the same.
    pub read_target: Option<Target>,
    /// Slugs and ids of the tenants held; `None` for all.
    pub held: Option<Vec<String>>,
    /// `[feed]`
    pub config: FeedConfig,
    /// Where rows go.
    pub engine: Arc<Engine>,
    /// Where the state is told.
    pub health: Arc<Health>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Where its work is traced.
    pub traces: Traces,
    /// Orders of operators.
    pub orders: mpsc::Receiver<Order>,
}

/// The connections of one node: one, or with `postgres.read_url` two. While a large batch is on its way there is one
/// more.
struct Link {
    /// To the server that takes writes, where one is left: doorbells come from here.
    bell: Session,
    /// To the standby of `postgres.read_url`.
    reader: Option<Session>,
    /// Since when others wait for what the feed is doing.
    busy: watch::Sender<Option<Instant>>,
}

impl Link {
    fn begin(&self) {
        self.busy.send_if_modified(|busy| {
            let idle = busy.is_none();
            busy.get_or_insert_with(Instant::now);
            idle
        });
    }

    /// Where rows are read.
    fn rows(&self) -> &Session {
        self.reader.as_ref().unwrap_or(&self.bell)
    }

    async fn ended(&self) {
        match &self.reader {
            None => self.bell.ended().await,
            Some(reader) => tokio::select! {
                () = self.bell.ended() => {}
                () = reader.ended() => {}
            },
        }
    }
}

/// A reading of rows.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// When it was sent, since boot.
    at: Duration,
    /// Up to when it proves level, once applied.
    proves: Option<Duration>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Replica(#[from] replica::ReplicaError),
    #[error("the connection to Postgres ended")]
    Ended,
    #[error("the connection no longer hears doorbells; a pooler stands in between")]
    Deaf,
    #[error(
        "the database has no tenant in common with this node's replica; if that is right, refresh with accept_loss"
    )]
    OtherDatabase,
    #[error("the server went from standby to primary; connecting anew")]
    Promoted,
    #[error("a server that takes writes is back; leaving the standby")]
    PrimaryIsBack,
    #[error("the writer of the replica panicked")]
    Panicked,
    #[error(
        "the feed panicked and begins anew from what is on disk; please report the line of the log that says where"
    )]
    Bug,
}

impl FeedError {
    fn cause(&self, connected: bool) -> Disconnect {
        match self {
            Self::Source(err) => cause(err, connected),
            Self::OtherDatabase => Disconnect::Rejected,
            Self::Panicked | Self::Bug => Disconnect::Panic,
            _ if connected => Disconnect::Lost,
            _ => Disconnect::Connect,
        }
    }

    /// What it is called where no text may stand.
    fn kind(&self) -> &'static str {
        self.cause(true).label()
    }

    /// The longest wait after it.
    fn backoff_most(&self) -> Duration {
        match self {
            // Postgres is there; it is the disk that is waited for.
            Self::Replica(_) => BACKOFF_DISK,
            Self::Ended | Self::Promoted | Self::PrimaryIsBack => BACKOFF_UNREACHED,
            Self::Source(err) if err.is_of_the_connection() => BACKOFF_UNREACHED,
            _ => BACKOFF_REFUSED,
        }
    }
}

fn cause(err: &SourceError, connected: bool) -> Disconnect {
    match err {
        SourceError::Timeout(_) if connected => Disconnect::Timeout,
        SourceError::Rejected { .. }
        | SourceError::Untrusted { .. }
        | SourceError::NoSchema
        | SourceError::Encoding(_) => Disconnect::Rejected,
        _ if connected => Disconnect::Lost,
        _ => Disconnect::Connect,
    }
}

/// What the feed remembers between pulls.
struct State {
    cursor: Option<Cursor>,
    last_cursor_kept: Instant,
    cursor_moved: bool,
    /// When everything is to be compared next.
    compare_at: Instant,
    trusted: bool,
    /// Loss and another database are accepted until the next comparison is through.
    accept: bool,
    killed_in_a_row: u32,
    deaf_until: Option<Instant>,
    waiting: VecDeque<Order>,
    /// What a standby's replay proves.
    written: Written,
}

impl State {
    fn held(&self) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| cursor.held)
    }
}

/// Runs until told to stop. A panic costs the session in which it happens.
pub async fn run(mut feed: Feed, stop: CancellationToken) {
    let feed = &mut feed;
    let mut state = feed.state_on_disk();
    let mut backoff = BACKOFF_FIRST;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let mut connected = false;
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = unpanicked(Box::pin(feed.session(&mut state, &mut connected))) => ended,
        };
        let Err(err) = ended else { continue };
        state.accept = false;
        feed.tell_failure(&err, connected);
        for order in state.waiting.drain(..) {
            refuse(
                order,
                match &err {
                    FeedError::OtherDatabase => OrderError::OtherDatabase,
                    err => OrderError::Unreachable(err.to_string()),
                },
            );
        }
        if matches!(err, FeedError::Bug | FeedError::Panicked) {
            // What it had in mind may be half of something, and the disk may be ahead of it.
            state = feed.state_on_disk();
        }
        if began.elapsed() > HEALTHY_AFTER {
            backoff = BACKOFF_FIRST;
        }
        let most = err.backoff_most();
        backoff = backoff.min(most);
        feed.health.enter(FeedState::Backoff);
        // Full jitter: after a restart of Postgres the nodes do not come back all at once.
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(jitter(Duration::from_millis(10), backoff)) => {}
            Some(order) = feed.orders.recv() => state.waiting.push_back(order),
        }
        backoff = backoff.saturating_mul(2).min(most);
    }
    if state.cursor_moved
        && let Some(cursor) = &state.cursor
    {
        let _ = feed.engine.keep_cursor(cursor);
    }
}

async fn unpanicked(session: impl Future<Output = Result<(), FeedError>>) -> Result<(), FeedError> {
    AssertUnwindSafe(session)
        .catch_unwind()
        .await
        .unwrap_or(Err(FeedError::Bug))
}

impl Feed {
    /// What a feed remembers that begins with the replica as it is.
    fn state_on_disk(&self) -> State {
        let now = Instant::now();
        State {
            cursor: self.engine.replica().cursor().unwrap_or_default(),
            last_cursor_kept: now,
            cursor_moved: false,
            compare_at: after(
                now,
                jitter(self.config.reconcile_every, self.config.reconcile_every),
            ),
            trusted: true,
            accept: false,
            killed_in_a_row: 0,
            deaf_until: None,
            waiting: VecDeque::new(),
            written: Written::default(),
        }
    }

    /// One connection, from connecting to its end.
    async fn session(&mut self, state: &mut State, connected: &mut bool) -> Result<(), FeedError> {
        self.health.enter(FeedState::Connecting);
        let open = |role| Session::open(&self.target, role, self.held.clone());
        let opening = async {
            match open(Role::Writable).await {
                // Where only a standby is left, its rows are still newer than ours.
                Err(err) if err.only_standby() => open(Role::Any).await.map_err(|_| err),
                opened => opened,
            }
        };
        let kind = |err: &SourceError| cause(err, false).label();
        let session = self.traces.during(Work::Connect, kind, opening).await?;
        *connected = true;
        let began = Instant::now();
        let listening = self.listen(&session, state).await?;
        tracing::info!(server = %session.server_version, standby = session.recovery, listening, "connected to Postgres");
        self.health.enter(FeedState::Listening);
        self.health.update_feed(|feed| {
            feed.listening = listening;
            feed.server_version = Some(session.server_version.clone());
        });
        self.metrics.feed_listening.set(i64::from(listening));
        let reader = match &self.read_target {
            Some(target) => Some(Session::open(target, Role::Any, self.held.clone()).await?),
            None => None,
        };
        self.tell_certificate();
        let (busy, watched) = watch::channel(None);
        let link = Link {
            bell: session,
            reader,
            busy,
        };
        let aside = Aside {
            target: self.read_target.clone().unwrap_or(self.target.clone()),
            role: match (&self.read_target, link.bell.recovery) {
                (None, false) => Role::Writable,
                _ => Role::Any,
            },
            rows_of: link.rows().identity.clone(),
            held: self.held.clone(),
            engine: Arc::clone(&self.engine),
        };
        let ended = tokio::select! {
            ended = self.follow(&link, listening, state) => ended,
            never = aside.watch(watched) => match never {},
        };
        self.health.update_feed(|feed| feed.listening = false);
        self.metrics.feed_listening.set(0);
        state.killed_in_a_row = match &ended {
            Err(FeedError::Ended | FeedError::Source(SourceError::Lost(_)))
                if listening && began.elapsed() < KILLED_WITHIN =>
            {
                state.killed_in_a_row.saturating_add(1)
            }
            _ => 0,
        };
        if state.killed_in_a_row >= KILLED_TIMES {
            state.killed_in_a_row = 0;
            state.deaf_until = Some(after(Instant::now(), WITHOUT_LISTEN_FOR));
            tracing::warn!(
                "the connection is lost again and again right after LISTEN; polling without doorbells for ten minutes"
            );
        }
        ended
    }

    async fn listen(&self, session: &Session, state: &mut State) -> Result<bool, FeedError> {
        if session.recovery || state.deaf_until.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        state.deaf_until = None;
        match session.listen().await {
            Ok(()) => Ok(true),
            Err(SourceError::Statement { what, .. }) => {
                tracing::warn!(error = %what, "LISTEN was refused; polling");
                Ok(false)
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Pulls at every doorbell, heartbeat and order until the connection ends.
    async fn follow(
        &mut self,
        link: &Link,
        listening: bool,
        state: &mut State,
    ) -> Result<(), FeedError> {
        let doorbell = link.bell.doorbell();
        let mut heartbeat = interval(self.config.heartbeat_every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listen_check = interval(LISTEN_CHECK);
        let mut prune = tokio::time::interval_at(
            after(Instant::now(), jitter(PRUNE_EVERY, PRUNE_EVERY)),
            PRUNE_EVERY,
        );
        let mut again: Option<(Instant, Duration, u64, Instant)> = None;
        state.accept |= state
            .waiting
            .iter()
            .any(|order| matches!(order, Order::Refresh(refresh, _) if refresh.accept_loss));
        self.pull(link, state, PullCause::Connect).await?;
        if state.held() {
            state.compare_at = state.compare_at.min(after(Instant::now(), DISTRUST_EVERY));
        }
        heartbeat.reset();
        loop {
            link.busy.send_replace(None);
            if let Some(order) = state.waiting.pop_front() {
                self.carry_out(link, state, order).await?;
                continue;
            }
            let next_try = again.map(|(at, ..)| at);
            tokio::select! {
                biased;
                () = link.ended() => return Err(FeedError::Ended),
                () = doorbell.rung() => {
                    self.metrics.doorbells.inc_by(doorbell.take_count());
                    self.spread(self.config.spread).await;
                    let began = Instant::now();
                    self.pull(link, state, PullCause::Doorbell).await?;
                    again = self.not_seen_yet(&doorbell, state, JOIN, after(began, DOORBELL_DEADLINE));
                    heartbeat.reset();
                    if doorbell.rang() {
                        // The next pull of a burst brings everything that rings meanwhile.
                        sleep_until(after(began, JOIN)).await;
                    }
                }
                () = wait_until(next_try) => {
                    let Some((_, pause, xid, deadline)) = again.take() else { continue };
                    self.pull(link, state, PullCause::Doorbell).await?;
                    if Instant::now() < deadline {
                        again = self.not_seen_yet(&doorbell, state, pause.saturating_mul(2), deadline);
                    } else {
                        tracing::debug!(xid, "a doorbell's transaction never became visible");
                        doorbell.forget(xid);
                    }
                }
                Some(order) = self.orders.recv() => state.waiting.push_back(order),
                _ = heartbeat.tick() => {
                    self.pull(link, state, PullCause::Heartbeat).await?;
                }
                () = sleep_until(state.compare_at) => {
                    self.compare(link, state, None).await?;
                }
                _ = listen_check.tick() => {
                    self.in_time(link.rows().plan_anew()).await?;
                    if link.bell.recovery {
                        if Session::open(&self.target, Role::Writable, None).await.is_ok() {
                            return Err(FeedError::PrimaryIsBack);
                        }
                    } else if listening && !self.in_time(link.bell.still_listens()).await? {
                        return Err(FeedError::Deaf);
                    }
                }
                _ = prune.tick(), if !link.bell.recovery => {
                    match link.bell.prune().await {
                        Ok(rows) => tracing::debug!(rows, "pruned the change log"),
                        Err(SourceError::Statement { what, .. }) => tracing::warn!(error = %what, "the change log cannot be pruned"),
                        Err(err) => return Err(err.into()),
                    }
                }
            }
        }
    }

    /// Many nodes do not all ask at once.
    async fn spread(&self, most: Duration) {
        if !most.is_zero() {
            sleep(jitter(Duration::ZERO, most)).await;
        }
    }

    fn cursor_at(&self, header: &Header, state: &State) -> Cursor {
        Cursor {
            snapshot: header.snapshot.clone(),
            identity: header.identity.clone(),
            tenants: self.held.clone(),
            held: state.held(),
        }
    }

    /// When a doorbell's transaction is not seen yet: when to look again.
    fn not_seen_yet(
        &self,
        doorbell: &Doorbell,
        state: &State,
        pause: Duration,
        deadline: Instant,
    ) -> Option<(Instant, Duration, u64, Instant)> {
        let xid = doorbell.newest();
        let seen = xid == 0
            || state
                .cursor
                .as_ref()
                .is_some_and(|cursor| cursor.snapshot.sees(xid));
        (!seen).then(|| (after(Instant::now(), pause), pause, xid, deadline))
    }

    /// One pull and what follows from it.
    async fn pull(
        &mut self,
        link: &Link,
        state: &mut State,
        cause: PullCause,
    ) -> Result<Applied, FeedError> {
        let traces = self.traces.clone();
        let pulling = Box::pin(self.pull_now(link, state, cause));
        traces.during(Work::Pull, FeedError::kind, pulling).await
    }

    async fn pull_now(
        &mut self,
        link: &Link,
        state: &mut State,
        cause: PullCause,
    ) -> Result<Applied, FeedError> {
        note(Fact::Cause, cause.label());
        self.health.enter(FeedState::Pulling);
        self.tell_pull_started();
        link.begin();
        let began = Instant::now();
        let asked = self.ask(link, state).await?;
        let start = change::read_from(state.cursor.as_ref());
        let pulled = self
            .in_time(link.rows().pull(&start, KEYS_PER_PULL))
            .await?;
        if pulled.header.identity.recovery != link.rows().recovery {
            return Err(FeedError::Promoted);
        }
        let found = pulled.changed.len();
        let applied = self.digest_pull(link, state, pulled, asked).await?;
        let tried = self.try_suspects(link, state).await?;
        if found == 0 && !tried && applied.read == 0 {
            note(Fact::Idle, 1);
        } else {
            note(Fact::Changed, u64::try_from(found).unwrap_or(u64::MAX));
        }
        self.metrics.pulls.inc(cause);
        self.metrics
            .pull_duration
            .observe(cause, began.elapsed().as_secs_f64());
        self.enter_level(state);
        Ok(applied)
    }

    /// Rows that an earlier process died on are tried once more when everything else is applied.
    /// Says whether there were any.
    async fn try_suspects(&mut self, link: &Link, state: &mut State) -> Result<bool, FeedError> {
        let keys: BTreeSet<Key> = self
            .engine
            .replica()
            .on_trial()
            .into_iter()
            .map(|key| match key {
                replica::Key::Tenant(id) => Key::Tenant(id),
                replica::Key::Number(number) => Key::Number(number),
            })
            .collect();
        if !keys.is_empty() {
            tracing::warn!(
                rows = keys.len(),
                "an earlier process ended with these rows in hand; trying them again"
            );
            self.load(link, state, keys, true).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// To be called before rows are read: when they were asked for, and up to when they will be level with the primary.
    /// A standby is as level as what it has replayed by now.
    async fn ask(&self, link: &Link, state: &mut State) -> Result<Asked, FeedError> {
        let at = since_boot();
        let rows = link.rows();
        if !rows.recovery {
            return Ok(Asked {
                at,
                proves: Some(at),
            });
        }
        if !link.bell.recovery {
            state
                .written
                .push(at, self.in_time(link.bell.written()).await?);
        }
        let (replayed, newest) = self.in_time(rows.replayed()).await?;
        let proves = if link.bell.recovery {
            newest.map(|age| at.saturating_sub(age))
        } else {
            state.written.proved_by(replayed)
        };
        Ok(Asked { at, proves })
    }

    /// Level is only what is also trusted.
    fn enter_level(&self, state: &State) {
        self.health.enter(if state.trusted && !state.held() {
            FeedState::Level
        } else {
            FeedState::Listening
        });
    }

    async fn digest_pull(
        &mut self,
        link: &Link,
        state: &mut State,
        pulled: Pulled,
        asked: Asked,
    ) -> Result<Applied, FeedError> {
        self.tell_header(&pulled.header, state);
        if let Err(why) =
            change::continues(state.cursor.as_ref(), &pulled.header, self.held.as_deref())
        {
            if why == Why::OtherIdentity {
                // Nothing is under way, and this is not the moment for another connection of every node.
                link.busy.send_replace(None);
                self.spread(
                    self.config
                        .spread
                        .saturating_mul(SPREAD_FACTOR)
                        .min(SPREAD_MOST),
                )
                .await;
            }
            return Ok(self.compare(link, state, Some(why)).await?.0);
        }
        let next = self.cursor_at(&pulled.header, state);
        let behind = i64::try_from(pulled.changed.len()).unwrap_or(i64::MAX);
        self.metrics.feed_behind.set(behind);
        self.health
            .update_feed(|feed| feed.behind = behind.unsigned_abs());
        let step =
            self.with_new_tenants(change::step(&pulled.changed, pulled.complete), &pulled)?;
        let applied = match step {
            Step::Level => {
                self.moved(state, next);
                Applied::default()
            }
            Step::Apply => {
                let cover = cover_of(pulled.changed.iter().map(|changed| &changed.key));
                let terms = self.terms(cover, state.accept);
                let (applied, cursor) = self
                    .write(Incoming::whole(pulled.rows, next), terms)
                    .await?;
                self.applied(state, cursor, &applied, &pulled.changed, asked);
                applied
            }
            Step::Load(keys) => self.load(link, state, keys, false).await?,
            Step::Compare(why) => return Ok(self.compare(link, state, Some(why)).await?.0),
        };
        self.prove(state, asked);
        Ok(applied)
    }

    /// With `replica.tenants` set, a tenant that becomes one of them has numbers that no log row names.
    fn with_new_tenants(&self, step: Step, pulled: &Pulled) -> Result<Step, FeedError> {
        if self.held.is_none() || step != Step::Apply {
            return Ok(step);
        }
        let view = self.engine.replica().view()?;
        let mut new = BTreeSet::new();
        for row in &pulled.rows {
            if let crate::source::Row::Tenant { id, .. } = row
                && !view.has_tenant(*id)?
            {
                new.insert(Key::NumbersOf(*id));
            }
        }
        if new.is_empty() {
            return Ok(step);
        }
        new.extend(pulled.changed.iter().map(|changed| changed.key.clone()));
        Ok(Step::Load(new))
    }

    /// Reads what changed since the cursor, and these keys in any case, in one snapshot, and applies it as one commit.
    async fn load(
        &mut self,
        link: &Link,
        state: &mut State,
        keys: BTreeSet<Key>,
        tries_suspects: bool,
    ) -> Result<Applied, FeedError> {
        let traces = self.traces.clone();
        let loading = Box::pin(self.load_now(link, state, keys, tries_suspects));
        traces.during(Work::Load, FeedError::kind, loading).await
    }

    async fn load_now(
        &mut self,
        link: &Link,
        state: &mut State,
        keys: BTreeSet<Key>,
        tries_suspects: bool,
    ) -> Result<Applied, FeedError> {
        let asked = self.ask(link, state).await?;
        let header = self.in_time(link.rows().begin()).await?;
        self.tell_header(&header, state);
        if let Err(why) = change::continues(state.cursor.as_ref(), &header, self.held.as_deref()) {
            link.rows().end().await?;
            return Ok(self.compare(link, state, Some(why)).await?.0);
        }
        let changed = link
            .rows()
            .keys(&change::read_from(state.cursor.as_ref()))
            .await?;
        if let Step::Compare(why) = change::step(&changed, true) {
            link.rows().end().await?;
            return Ok(self.compare(link, state, Some(why)).await?.0);
        }
        let told = cover_of(changed.iter().map(|changed| &changed.key).chain(&keys));
        let next = self.cursor_at(&header, state);
        let terms = Terms {
            tries_suspects,
            cover: self.to_read(told.clone()).await?,
            ..self.terms(told, state.accept)
        };
        let (applied, cursor) = self
            .stream(link, load_of(&terms.cover), terms, next)
            .await?;
        self.applied(state, cursor, &applied, &changed, asked);
        self.prove(state, asked);
        Ok(applied)
    }

    /// What a batch is to speak for that must cover this: where it names much of what is here, all numbers.
    async fn to_read(&self, named: Cover) -> Result<Cover, FeedError> {
        let engine = Arc::clone(&self.engine);
        blocking(move || {
            let is_most = engine.replica().view()?.is_most(&named)?;
            Ok(if is_most { all_numbers(named) } else { named })
        })
        .await?
    }

    /// Compares everything by hash and applies the difference. Without a replica: copies everything.
    async fn compare(
        &mut self,
        link: &Link,
        state: &mut State,
        why: Option<Why>,
    ) -> Result<(Applied, Comparison), FeedError> {
        let traces = self.traces.clone();
        let comparing = Box::pin(self.compare_now(link, state, why));
        traces
            .during(Work::Compare, FeedError::kind, comparing)
            .await
    }

    async fn compare_now(
        &mut self,
        link: &Link,
        state: &mut State,
        why: Option<Why>,
    ) -> Result<(Applied, Comparison), FeedError> {
        self.health.enter(FeedState::Pulling);
        link.begin();
        let began = Instant::now();
        let asked = self.ask(link, state).await?;
        if let Some(why) = why {
            tracing::info!(why = why.as_str(), "comparing everything with Postgres");
            note(Fact::Why, why.as_str());
        }
        let header = self.in_time(link.rows().begin()).await?;
        self.tell_header(&header, state);
        let next = self.cursor_at(&header, state);
        // What the log names since the last pull is no difference that went unnoticed.
        let told = match change::continues(state.cursor.as_ref(), &header, self.held.as_deref()) {
            Ok(()) => cover_of(
                link.rows()
                    .keys(&change::read_from(state.cursor.as_ref()))
                    .await?
                    .iter()
                    .map(|changed| &changed.key),
            ),
            Err(_) => Cover::default(),
        };
        let accept = state.accept || why == Some(Why::OtherTenants);
        let held = self.engine.stats().replica;
        let empty = held.tenants == 0 && held.numbers == 0;
        // Where the log says that much changed, hashes of numbers would say the same.
        let by_hash = why != Some(Why::Everything);
        let comparison = if empty {
            note(Fact::First, 1);
            Comparison::default()
        } else {
            let engine = Arc::clone(&self.engine);
            let here = blocking(move || engine.replica().view()?.digests(by_hash)).await??;
            let mut comparison = Comparison::new(here);
            link.rows()
                .digests(by_hash, |id, digest| comparison.take(id, digest))
                .await?;
            let comparison = comparison.finish();
            // An empty database loses everything and is held as such; another one is refused.
            if !comparison.common && comparison.tenants > 0 && !accept {
                self.health.update_feed(|feed| feed.refused_database = true);
                return Err(FeedError::OtherDatabase);
            }
            comparison
        };
        let cover = if empty || !by_hash {
            all_numbers(comparison.cover.clone())
        } else {
            self.to_read(comparison.cover.clone()).await?
        };
        let load = if empty {
            Load::Everything
        } else {
            load_of(&cover)
        };
        let terms = Terms {
            told,
            settles_held: true,
            ..self.terms(cover, accept)
        };
        let (applied, cursor) = self.stream(link, load, terms, next).await?;
        self.health.update_feed(|feed| {
            feed.refused_database = false;
            feed.last_reconcile = Some(Timestamp::now());
        });
        if why.is_none() {
            self.metrics.reconcile_differences.inc_by(applied.untold);
        }
        state.accept = false;
        self.applied(state, cursor, &applied, &[], asked);
        self.prove(state, asked);
        let every = if state.trusted && !state.held() {
            self.config.reconcile_every
        } else {
            DISTRUST_EVERY.min(self.config.reconcile_every)
        };
        state.compare_at = after(
            Instant::now(),
            jitter(every, every.checked_div(10).unwrap_or_default()),
        );
        self.metrics.pulls.inc(PullCause::Reconcile);
        self.metrics
            .pull_duration
            .observe(PullCause::Reconcile, began.elapsed().as_secs_f64());
        tracing::info!(
            read = applied.read,
            written = applied.written,
            removed = applied.removed,
            elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "compared everything with Postgres"
        );
        self.enter_level(state);
        if let Some(read_through) = self.engine.take_read_through() {
            read_through.close().await;
        }
        Ok((applied, comparison))
    }

    /// Rows from the session to the replica, with a short queue in between; committed only when all came.
    async fn stream(
        &self,
        link: &Link,
        load: Load,
        terms: Terms,
        next: Cursor,
    ) -> Result<(Applied, Cursor), FeedError> {
        if terms.cover.all_numbers {
            tracing::debug!("reading all numbers in order");
        }
        let (send_rows, rows) = mpsc::channel(4);
        let (send_next, take_next) = oneshot::channel();
        let writing = self.write(
            Incoming {
                rows,
                next: take_next,
            },
            terms,
        );
        let reading = async {
            let sent = link.rows().load(&load, &send_rows).await;
            drop(send_rows);
            match sent {
                Ok(()) => {
                    link.rows().end().await?;
                    let _ = send_next.send(next);
                    Ok(())
                }
                Err(err) => {
                    drop(send_next);
                    Err(err)
                }
            }
        };
        let done = tokio::select! {
            done = async { tokio::join!(reading, writing) } => done,
            never = tell_progress(link.rows()) => match never {},
        };
        match done {
            // The writer's own error says more than that nobody reads.
            (Err(SourceError::NobodyReads), Err(err)) | (Ok(()), Err(err)) => Err(err),
            (Err(err), _) => Err(err.into()),
            (Ok(()), Ok(done)) => Ok(done),
        }
    }

    async fn write(
        &self,
        incoming: Incoming,
        terms: Terms,
    ) -> Result<(Applied, Cursor), FeedError> {
        let engine = Arc::clone(&self.engine);
        let applying = async {
            let (applied, cursor) = blocking(move || engine.apply(incoming, &terms)).await??;
            note(Fact::Read, applied.read);
            note(Fact::Written, applied.written);
            note(Fact::Removed, applied.removed);
            Ok((applied, cursor))
        };
        self.traces
            .during(Work::Apply, FeedError::kind, applying)
            .await
    }

    fn terms(&self, cover: Cover, accept_loss: bool) -> Terms {
        Terms {
            told: cover.clone(),
            cover,
            limits: *self.engine.limits(),
            hold_percent: self.config.hold_if_lost_percent,
            accept_loss,
            settles_held: false,
            tries_suspects: false,
        }
    }

    /// A pull has the heartbeat's limit of time: past it the connection is taken for dead.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let limit = self.config.heartbeat_timeout;
        timeout(limit, work)
            .await
            .unwrap_or(Err(SourceError::Timeout(limit)))
    }

    async fn carry_out(
        &mut self,
        link: &Link,
        state: &mut State,
        order: Order,
    ) -> Result<(), FeedError> {
        match order {
            Order::Verify(back) => {
                let began = Instant::now();
                let traces = self.traces.clone();
                let verifying = self.compare(link, state, None);
                match traces
                    .during(Work::Verify, FeedError::kind, verifying)
                    .await
                {
                    Ok((applied, comparison)) => {
                        let _ = back.send(Ok(verify_report(&applied, &comparison, began)));
                        Ok(())
                    }
                    Err(err) => {
                        let _ = back.send(Err(order_error(&err)));
                        Err(err)
                    }
                }
            }
            Order::Refresh(refresh, back) => {
                let traces = self.traces.clone();
                let refreshing = Box::pin(self.refresh(link, state, &refresh));
                let done = traces.during(Work::Refresh, FeedError::kind, refreshing);
                match done.await {
                    Ok(report) => {
                        let _ = back.send(report);
                        Ok(())
                    }
                    Err(err) => {
                        let _ = back.send(Err(order_error(&err)));
                        Err(err)
                    }
                }
            }
        }
    }

    async fn refresh(
        &mut self,
        link: &Link,
        state: &mut State,
        refresh: &Refresh,
    ) -> Result<Result<RefreshReport, OrderError>, FeedError> {
        let began = Instant::now();
        let scope = match refresh.scope {
            Scope::All => "all",
            Scope::Tenant(_) => "tenant",
            Scope::Number(_) => "number",
        };
        note(Fact::Scope, scope);
        state.accept = refresh.accept_loss;
        let mut sum = RefreshReport::default();
        let mut pause = JOIN;
        loop {
            add(&mut sum, &self.pull(link, state, PullCause::Refresh).await?);
            let reached = refresh.at_least.is_none_or(|xid| {
                state
                    .cursor
                    .as_ref()
                    .is_some_and(|cursor| cursor.snapshot.sees(xid))
            });
            if reached {
                break;
            }
            if began.elapsed() > AT_LEAST_DEADLINE {
                return Ok(Err(OrderError::NotReached(
                    refresh.at_least.unwrap_or_default(),
                )));
            }
            sleep(pause).await;
            pause = pause.saturating_mul(2).min(Duration::from_millis(500));
        }
        match &refresh.scope {
            Scope::All => add(&mut sum, &self.compare(link, state, None).await?.0),
            Scope::Number(number) => {
                let mut keys = BTreeSet::from([Key::Number(number.to_string())]);
                keys.extend(self.tenant_of(number.as_str())?.map(Key::Tenant));
                add(&mut sum, &self.load(link, state, keys, false).await?);
            }
            Scope::Tenant(name) => {
                let here = Uuid::parse_str(name).ok().filter(|id| {
                    self.engine
                        .replica()
                        .view()
                        .is_ok_and(|v| v.has_tenant(*id).unwrap_or(false))
                });
                let Some(id) = self.in_time(link.rows().tenant_id(name)).await?.or(here) else {
                    return Ok(Err(OrderError::NoSuchTenant));
                };
                add(
                    &mut sum,
                    &self
                        .load(
                            link,
                            state,
                            BTreeSet::from([Key::Tenant(id), Key::NumbersOf(id)]),
                            false,
                        )
                        .await?,
                );
            }
        }
        state.accept = false;
        sum.cursor = state
            .cursor
            .as_ref()
            .map(|cursor| cursor.snapshot.to_string())
            .unwrap_or_default();
        sum.elapsed_ms = millis(began.elapsed());
        Ok(Ok(sum))
    }

    fn tenant_of(&self, number: &str) -> Result<Option<Uuid>, FeedError> {
        Ok(self
            .engine
            .replica()
            .view()?
            .number(number)
            .ok()
            .flatten()
            .map(|found| found.tenant))
    }

    /// The cursor moved and nothing changed: it is kept in memory, and on disk now and then.
    fn moved(&self, state: &mut State, next: Cursor) {
        let moved = state.cursor.as_ref() != Some(&next);
        state.cursor_moved |= moved;
        self.tell_cursor(&next);
        state.cursor = Some(next);
        if state.cursor_moved && state.last_cursor_kept.elapsed() > KEEP_CURSOR_EVERY {
            state.last_cursor_kept = Instant::now();
            if let Some(cursor) = &state.cursor
                && let Err(err) = self.engine.keep_cursor(cursor)
            {
                tracing::warn!(error = %err, "the cursor cannot be kept");
                return;
            }
            state.cursor_moved = false;
        }
    }

    fn applied(
        &self,
        state: &mut State,
        cursor: Cursor,
        applied: &Applied,
        changed: &[Changed],
        asked: Asked,
    ) {
        self.tell_cursor(&cursor);
        state.cursor = Some(cursor);
        state.cursor_moved = false;
        state.last_cursor_kept = Instant::now();
        let since_sent = since_boot().saturating_sub(asked.at);
        for Changed { key, age } in changed {
            self.metrics.changes.inc(match key {
                Key::Number(_) => ChangeKind::Number,
                Key::Tenant(_) => ChangeKind::Tenant,
                Key::NumbersOf(_) => ChangeKind::NumbersOf,
                Key::All => ChangeKind::All,
            });
            self.metrics
                .commit_to_visible
                .observe(age.saturating_add(since_sent).as_secs_f64());
        }
        self.metrics.feed_behind.set(0);
        if let Some(loss) = applied.held {
            state.compare_at = state.compare_at.min(after(Instant::now(), DISTRUST_EVERY));
            tracing::error!(
                tenants = loss.tenants,
                numbers = loss.numbers,
                "Postgres no longer has rows that this node answers for; the loss is held back: if it is right, `sidetone refresh --accept-loss`"
            );
            self.health.update_feed(|feed| {
                feed.held.get_or_insert_with(|| Held {
                    since: Timestamp::now(),
                    tenants: loss.tenants,
                    numbers: loss.numbers,
                    remedy: "if the loss is right: sidetone refresh --accept-loss".to_owned(),
                });
            });
        }
        if !changed.is_empty() || applied.written > 0 || applied.removed > 0 {
            tracing::debug!(
                read = applied.read,
                written = applied.written,
                removed = applied.removed,
                "applied"
            );
        }
    }

    /// Level is proved, unless something says that the log cannot be believed.
    fn prove(&self, state: &mut State, asked: Asked) {
        self.engine.rows_of(asked.at);
        if !state.held() {
            self.health.update_feed(|feed| feed.held = None);
        }
        self.metrics.feed_held.set(i64::from(state.held()));
        self.health.update_feed(|feed| {
            feed.behind = 0;
            feed.last_pull_completed = Some(Timestamp::now());
        });
        self.metrics.last_pull_completed.set(now_seconds());
        if let Some(proves) = asked.proves
            && state.trusted
            && !state.held()
        {
            self.engine.proven_level(proves);
        }
    }

    /// When the first ends of those that were shown.
    fn tell_certificate(&self) {
        let targets = [Some(&self.target), self.read_target.as_ref()];
        let shown = targets
            .into_iter()
            .flatten()
            .filter_map(Target::shown_expiry);
        let told = &self.metrics.certificate_expiry;
        told.set_time(Certificate::PostgresServer, shown.min());
    }

    fn tell_pull_started(&self) {
        self.health
            .update_feed(|feed| feed.last_pull_started = Some(Timestamp::now()));
        self.metrics.last_pull_started.set(now_seconds());
    }

    fn tell_cursor(&self, cursor: &Cursor) {
        self.health
            .update_feed(|feed| feed.cursor = Some(cursor.snapshot.to_string()));
    }

    /// What a header says of the database, and since when it cannot be trusted.
    fn tell_header(&self, header: &Header, state: &mut State) {
        let trusted = header.armed && header.schema_version == SCHEMA_VERSION;
        if state.trusted && !trusted {
            if header.schema_version == SCHEMA_VERSION {
                tracing::error!(
                    "triggers of schema sidetone are missing or disabled, or a policy hides rows; answers go on, freshness is not claimed; see `sidetone check`"
                );
            } else {
                tracing::error!(
                    found = header.schema_version,
                    needed = SCHEMA_VERSION,
                    "the database has another schema version; answers go on, freshness is not claimed; run `sidetone migrate` or upgrade this node"
                );
            }
            state.compare_at = state.compare_at.min(after(Instant::now(), DISTRUST_EVERY));
        } else if !state.trusted && trusted {
            tracing::info!("triggers and schema are right again");
            // What happened meanwhile stands in no log.
            state.compare_at = Instant::now();
        }
        state.trusted = trusted;
        self.health.update_feed(|feed| {
            feed.armed = header.armed;
            feed.schema_version = Some(header.schema_version);
        });
        self.metrics.feed_armed.set(i64::from(header.armed));
        self.metrics
            .notification_queue_usage
            .set(header.queue_usage);
    }

    fn tell_failure(&self, err: &FeedError, connected: bool) {
        self.metrics.reconnects.inc(err.cause(connected));
        let text = err.to_string();
        let mut news = true;
        self.health.update_feed(|feed| {
            news = feed
                .last_error
                .as_ref()
                .is_none_or(|last| last.text != text)
                || connected;
            feed.last_error = Some(LastError {
                at: Timestamp::now(),
                text: text.clone(),
            });
            feed.reconnects = feed.reconnects.saturating_add(1);
        });
        // The same failure again and again is one line, and a metric.
        if news {
            tracing::warn!(error = %text, "Postgres is not followed; answers go on from the replica");
        } else {
            tracing::debug!(error = %text, "Postgres is still not followed");
        }
    }
}

/// A suspension does not wait until a batch is applied that takes long: its tenant is asked for on a connection aside.
struct Aside {
    target: Target,
    role: Role,
    /// The server that rows are read from. Another one may be newer, and answers would go back.
    rows_of: Identity,
    held: Option<Vec<String>>,
    engine: Arc<Engine>,
}

impl Aside {
    async fn watch(&self, mut busy: watch::Receiver<Option<Instant>>) -> Infallible {
        loop {
            let Ok(Some(since)) = busy.wait_for(Option::is_some).await.map(|since| *since) else {
                return std::future::pending().await;
            };
            let mut over = std::pin::pin!(async {
                let _ = busy.wait_for(|now| *now != Some(since)).await;
            });
            if timeout_at(after(since, ASIDE_AFTER), &mut over)
                .await
                .is_ok()
            {
                continue;
            }
            tokio::select! {
                // First: what is heard after the batch is through may be older than what comes next.
                biased;
                () = over => {}
                Err(err) = self.ask() => {
                    tracing::debug!(error = %err, "suspensions wait for the batch");
                    sleep(jitter(ASIDE_AGAIN, ASIDE_AGAIN)).await;
                }
            }
        }
    }

    async fn ask(&self) -> Result<Infallible, SourceError> {
        let session = Session::open(&self.target, self.role, self.held.clone()).await?;
        loop {
            let (server, tenants) = session.not_active().await?;
            if server != self.rows_of {
                return Err(SourceError::OtherServer);
            }
            self.engine.suspended_ahead(tenants);
            sleep(ASIDE_EVERY).await;
        }
    }
}

/// A long copy shows that it goes on: on a terminal by a bar, otherwise by a line in the log every few seconds.
async fn tell_progress(rows: &Session) -> Infallible {
    let bar = std::io::stderr()
        .is_terminal()
        .then(|| ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear));
    let mut tick = interval(PROGRESS_EVERY);
    loop {
        // The first tick is at once: a short copy says nothing.
        tick.tick().await;
        tick.tick().await;
        match &bar {
            Some(bar) => bar.set_message(format!("{} rows copied from Postgres", rows.loaded())),
            None => tracing::info!(rows = rows.loaded(), "copying from Postgres"),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FeedError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| FeedError::Panicked)
}

fn refuse(order: Order, why: OrderError) {
    match order {
        Order::Refresh(_, back) => {
            let _ = back.send(Err(why));
        }
        Order::Verify(back) => {
            let _ = back.send(Err(why));
        }
    }
}

fn order_error(err: &FeedError) -> OrderError {
    match err {
        FeedError::OtherDatabase => OrderError::OtherDatabase,
        err => OrderError::Unreachable(err.to_string()),
    }
}

fn cover_of<'k>(keys: impl Iterator<Item = &'k Key>) -> Cover {
    let mut cover = Cover::default();
    for key in keys {
        match key {
            Key::Number(number) => {
                cover.numbers.insert(number.clone());
            }
            Key::Tenant(id) => {
                cover.tenants.insert(*id);
            }
            Key::NumbersOf(id) => {
                cover.numbers_of.insert(*id);
            }
            Key::All => {}
        }
    }
    cover
}

/// The same tenants, and all numbers instead of those named.
fn all_numbers(named: Cover) -> Cover {
    Cover {
        tenants: named.tenants,
        all_numbers: true,
        ..Cover::default()
    }
}

fn load_of(cover: &Cover) -> Load {
    if cover.all_numbers {
        return Load::AllNumbers {
            tenants: cover.tenants.iter().copied().collect(),
        };
    }
    Load::Some {
        tenants: cover.tenants.iter().copied().collect(),
        numbers_of: cover.numbers_of.iter().copied().collect(),
        numbers: cover.numbers.iter().cloned().collect(),
    }
}

fn add(sum: &mut RefreshReport, applied: &Applied) {
    sum.read = sum.read.saturating_add(applied.read);
    sum.written = sum.written.saturating_add(applied.written);
    sum.removed = sum.removed.saturating_add(applied.removed);
    sum.held |= applied.held.is_some();
}

fn verify_report(applied: &Applied, comparison: &Comparison, began: Instant) -> VerifyReport {
    let repaired = applied.written.saturating_add(applied.removed);
    let held = applied
        .held
        .map_or(0, |loss| loss.tenants.saturating_add(loss.numbers));
    VerifyReport {
        tenants: comparison.tenants,
        numbers: comparison.numbers,
        differences: applied.untold.saturating_add(held),
        first: applied
            .differences
            .iter()
            .map(|(key, what)| {
                let (table, key) = match key {
                    replica::Key::Tenant(id) => (Table::Tenants, id.to_string()),
                    replica::Key::Number(number) => (Table::TenantPhoneNumbers, number.clone()),
                };
                let what = match what {
                    What::Missing => "missing",
                    What::Different => "different",
                    What::Surplus => "surplus",
                };
                Difference {
                    table,
                    key,
                    what: what.to_owned(),
                }
            })
            .collect(),
        repaired,
        held: applied.held.is_some(),
        elapsed_ms: millis(began.elapsed()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn now_seconds() -> f64 {
    Duration::from_millis(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0))
        .as_secs_f64()
}

fn after(instant: Instant, duration: Duration) -> Instant {
    instant.checked_add(duration).unwrap_or(instant)
}

async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// `least`, and up to `more` on top, by chance: many nodes do not do the same at the same moment.
fn jitter(least: Duration, more: Duration) -> Duration {
    let bits = Uuid::new_v4().as_u128() & 0xffff_ffff;
    let share = f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX);
    least.saturating_add(more.mul_f64(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_let_in_and_gets_no_further_waits_longer_than_who_finds_nobody() {
        let rejected = |what: &str| SourceError::Rejected {
            place: "db".to_owned(),
            what: what.to_owned(),
        };
        let (place, what) = ("db".to_owned(), "Connection refused".to_owned());
        for soon in [
            FeedError::Ended,
            SourceError::Connect { place, what }.into(),
            SourceError::Lost("reset".to_owned()).into(),
            SourceError::Timeout(Duration::ZERO).into(),
            // Before any password: a server that is starting.
            rejected("the database system is starting up (SQLSTATE 57P03); wait").into(),
        ] {
            assert_eq!(soon.backoff_most(), BACKOFF_UNREACHED, "{soon}");
        }
        for late in [
            FeedError::OtherDatabase,
            FeedError::Panicked,
            FeedError::Bug,
            SourceError::NoSchema.into(),
            rejected("password authentication failed (SQLSTATE 28P01)").into(),
        ] {
            assert_eq!(late.backoff_most(), BACKOFF_REFUSED, "{late}");
        }
    }
}
