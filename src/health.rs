//! What is true of this node, and what ready and fresh mean. The parts report; nothing is measured here.
//!
//! *Ready* (can answer) and *fresh* (level with Postgres) are two signals: a node that lost Postgres stays ready.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use crate::number::E164;
use crate::row::Fault;

/// Time since boot, suspension included (CLOCK_BOOTTIME): never goes back, never stands still.
#[must_use]
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Where the feed stands (ARCHITECTURE, "Feed").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    /// Not started yet.
    Idle,
    /// Name resolution, TCP, TLS, authentication, session checks.
    Connecting,
    /// Connected, LISTEN done, first pull under way.
    Listening,
    /// The last pull proved that nothing is missing.
    Level,
    /// A pull, full synchronisation or reconcile is under way.
    Pulling,
    /// The connection failed; waiting before the next attempt.
    Backoff,
}

impl FeedState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Idle,
        Self::Connecting,
        Self::Listening,
        Self::Level,
        Self::Pulling,
        Self::Backoff,
    ];

    /// The state as a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Listening => "listening",
            Self::Level => "level",
            Self::Pulling => "pulling",
            Self::Backoff => "backoff",
        }
    }
}

/// A batch that was held back because it would lose too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Since when.
    pub since: Timestamp,
    /// Tenants that Postgres no longer has and this node still answers for.
    pub tenants: u64,
    /// Numbers that Postgres no longer has and this node still answers for.
    pub numbers: u64,
    /// What the operator can do.
    pub remedy: String,
}

/// What the feed tells of itself.
#[derive(Debug, Clone, Serialize)]
pub struct FeedStatus {
    /// Where it stands.
    pub state: FeedState,
    /// Since when it stands there.
    pub since: Timestamp,
    /// Since when it has been level, pulls in between included; `None` while it is not.
    pub level_since: Option<Timestamp>,
    /// Whether doorbells are heard; without, changes arrive by heartbeat.
    pub listening: bool,
    /// Whether every trigger is present and enabled; without, freshness is not claimed.
    pub armed: bool,
    /// The last failure, kept after it healed.
    pub last_error: Option<LastError>,
    /// Version of the schema found in Postgres and the one this build needs.
    pub schema_version: Option<i32>,
    /// The schema version this build needs.
    pub schema_needed: i32,
    /// Postgres's version, as it calls itself.
    pub server_version: Option<String>,
    /// The snapshot up to which everything was applied (`xmin:xmax:xip`).
    pub cursor: Option<String>,
    /// Changed keys that the last pull found and that are not applied yet.
    pub behind: u64,
    /// What is held back, if anything.
    pub held: Option<Held>,
    /// A database that was refused because it has no tenant in common with the replica.
    pub refused_database: bool,
    /// When the last pull began.
    pub last_pull_started: Option<Timestamp>,
    /// When the last pull was applied.
    pub last_pull_completed: Option<Timestamp>,
    /// When the last reconcile ended.
    pub last_reconcile: Option<Timestamp>,
    /// Connections lost since start.
    pub reconnects: u64,
}

/// A failure, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// The chain of causes, without secrets.
    pub text: String,
}

/// How old an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Staleness {
    /// Milliseconds since this node last proved that it was level with Postgres; never understated.
    pub ms: u64,
    /// Past `feed.stale_after`.
    pub stale: bool,
    /// Past `feed.refuse_credentials_after`, where that is set.
    pub refuse_credentials: bool,
}

/// The shared picture of this node.
#[derive(Debug)]
pub struct Health {
    /// Boot-time milliseconds at which the last proving pull was sent; negative: before this boot.
    proven_ms: AtomicI64,
    ever_proven: AtomicBool,
    synced: AtomicBool,
    stale_after: Duration,
    refuse_credentials_after: Duration,
    feed: Mutex<FeedStatus>,
    level: watch::Sender<bool>,
    quarantine: Mutex<Quarantine>,
}

/// Rows that are not in force as they stand in Postgres.
#[derive(Debug, Default)]
struct Quarantine {
    tenants: BTreeMap<Uuid, Vec<Fault>>,
    numbers: BTreeMap<E164, Vec<Fault>>,
}

impl Health {
    /// A node that has proved nothing yet.
    #[must_use]
    pub fn new(
        stale_after: Duration,
        refuse_credentials_after: Duration,
        schema_needed: i32,
    ) -> Self {
        Self {
            proven_ms: AtomicI64::new(0),
            ever_proven: AtomicBool::new(false),
            synced: AtomicBool::new(false),
            stale_after,
            refuse_credentials_after,
            feed: Mutex::new(FeedStatus {
                state: FeedState::Idle,
                since: Timestamp::now(),
                level_since: None,
                listening: false,
                armed: false,
                last_error: None,
                schema_version: None,
                schema_needed,
                server_version: None,
                cursor: None,
                behind: 0,
                held: None,
                refused_database: false,
                last_pull_started: None,
                last_pull_completed: None,
                last_reconcile: None,
                reconnects: 0,
            }),
            level: watch::Sender::new(false),
            quarantine: Mutex::default(),
        }
    }

    /// A pull that was sent at this time since boot proved that the replica is level.
    /// An earlier proof than the one known changes nothing.
    pub fn proven_level(&self, sent: Duration) {
        let ms = i64::try_from(sent.as_millis()).unwrap_or(i64::MAX);
        if self.ever_proven.swap(true, Ordering::AcqRel) {
            self.proven_ms.fetch_max(ms, Ordering::AcqRel);
        } else {
            self.proven_ms.store(ms, Ordering::Release);
        }
    }

    /// What an earlier process proved, as an age now.
    pub fn proven_before(&self, age: Duration) {
        let now = i64::try_from(since_boot().as_millis()).unwrap_or(i64::MAX);
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        if !self.ever_proven.swap(true, Ordering::AcqRel) {
            self.proven_ms
                .store(now.saturating_sub(age), Ordering::Release);
        }
    }

    /// How old answers are now. A node that never proved anything is older than its own boot.
    #[must_use]
    pub fn staleness(&self) -> Staleness {
        let now = i64::try_from(since_boot().as_millis()).unwrap_or(i64::MAX);
        let proven = if self.ever_proven.load(Ordering::Acquire) {
            self.proven_ms.load(Ordering::Acquire)
        } else {
            0
        };
        let ms = u64::try_from(now.saturating_sub(proven)).unwrap_or(0);
        let past = |limit: Duration| u128::from(ms) > limit.as_millis();
        Staleness {
            ms,
            stale: past(self.stale_after),
            refuse_credentials: !self.refuse_credentials_after.is_zero()
                && past(self.refuse_credentials_after),
        }
    }

    /// The replica holds a complete copy: from now on it answers alone.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Whether the replica holds a complete copy.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// The feed's picture, copied.
    #[must_use]
    pub fn feed(&self) -> FeedStatus {
        lock(&self.feed).clone()
    }

    /// Changes the feed's picture.
    pub fn update_feed(&self, change: impl FnOnce(&mut FeedStatus)) {
        change(&mut lock(&self.feed));
    }

    /// The feed went to another state.
    pub fn enter(&self, state: FeedState) {
        self.update_feed(|feed| {
            if feed.state != state {
                feed.state = state;
                feed.since = Timestamp::now();
            }
        });
        let level = match state {
            FeedState::Level => true,
            // Of a connection that was level or not.
            FeedState::Pulling => return,
            _ => false,
        };
        let changed = self
            .level
            .send_if_modified(|was| std::mem::replace(was, level) != level);
        if changed {
            self.update_feed(|feed| feed.level_since = level.then(Timestamp::now));
        }
    }

    /// Where the feed stands.
    #[must_use]
    pub fn feed_state(&self) -> FeedState {
        lock(&self.feed).state
    }

    /// Whether the feed is level, and when that changes. A pull alone changes nothing.
    #[must_use]
    pub fn level(&self) -> watch::Receiver<bool> {
        self.level.subscribe()
    }

    /// What is wrong with the rows of a tenant, replacing what was said before.
    pub fn quarantine_tenant(&self, id: Uuid, faults: Vec<Fault>) {
        let mut quarantine = lock(&self.quarantine);
        if faults.is_empty() {
            quarantine.tenants.remove(&id);
        } else {
            quarantine.tenants.insert(id, faults);
        }
    }

    /// What is wrong with the row of a number, replacing what was said before.
    pub fn quarantine_number(&self, number: &E164, faults: Vec<Fault>) {
        let mut quarantine = lock(&self.quarantine);
        if faults.is_empty() {
            quarantine.numbers.remove(number);
        } else {
            quarantine.numbers.insert(*number, faults);
        }
    }

    /// Every quarantined row with the tenant it belongs to, where known; at most `most`, and how many there are.
    #[must_use]
    pub fn quarantined(&self, most: usize) -> (Vec<Fault>, usize) {
        let quarantine = lock(&self.quarantine);
        let all = || {
            quarantine
                .tenants
                .values()
                .chain(quarantine.numbers.values())
                .flatten()
        };
        (all().take(most).cloned().collect(), all().count())
    }

    /// Calls `each` with every quarantined row.
    pub fn each_quarantined(&self, each: impl FnMut(&Fault)) {
        let quarantine = lock(&self.quarantine);
        quarantine
            .tenants
            .values()
            .chain(quarantine.numbers.values())
            .flatten()
            .for_each(each);
    }
}

/// A panic while the lock was held leaves a picture that is still true enough to show.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
