//! What a number's configuration is right now: from memory, else from the replica, else (once, before the first
//! complete copy) from Postgres. And the other way: a batch goes to the replica, and what it touched is forgotten.
//!
//! Always true: number and tenant of an answer are of one commit; a number's answers follow commit order; the age of
//! an answer is taken before its rows are read, and so never understated.

pub mod watched;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::admit::{self, AdmissionLimits};
use crate::cache::{Cache, Touched, Which};
use crate::change::Cursor;
use crate::health::{FeedState, Health, Staleness, since_boot};
use crate::metrics::{KeyRole, Kind, Metrics};
use crate::number::E164;
use crate::profile::{NumberProfile, Profile, Refusal, TenantProfile};
use crate::replica::{
    Applied, Hand, InHand, Incoming, Key, Replica, ReplicaError, Size, Terms, Version, View,
    poison, unpanicked,
};
use crate::resolve;
use crate::row::{Fault, Reason, Table, Tenant, TenantRecord};
use crate::seal::{KeyStatus, Keyring, KeyringError};
use crate::source::ReadThrough;

/// How often an answer from memory is tried again when a batch gets in between, before the replica is asked.
const TRIES: usize = 3;
/// Between two tries to read from a disk that fails: twice as long each time, up to this long. The file is opened anew
/// meanwhile.
const BREATH: Duration = Duration::from_millis(1);
const BREATH_MOST: Duration = Duration::from_millis(128);

/// An answer's configuration and its age.
#[derive(Debug, Clone)]
pub struct Found {
    /// Everything that does not depend on the call.
    pub profile: Profile,
    /// How old it may be.
    pub staleness: Staleness,
}

/// How much is held, for `status`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stats {
    /// On disk.
    pub replica: Size,
    /// Profiles in memory.
    pub cache_entries: u64,
    /// Their estimated size.
    pub cache_bytes: u64,
}

/// Whether the caller may know of a tenant's numbers.
type MayKnow<'a> = &'a (dyn Fn(&Tenant) -> bool + Sync);

/// Replica, cache and keys as one.
#[derive(Debug)]
pub struct Engine {
    replica: Replica,
    cache: Cache,
    keyring: ArcSwap<Keyring>,
    keys_file: PathBuf,
    raw_key: Option<String>,
    limits: AdmissionLimits,
    read_through: ArcSwapOption<ReadThrough>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// Key reloads and batches change the replica one at a time.
    writing: Mutex<()>,
    ahead: ArcSwap<Ahead>,
    bell: watched::Bell,
    /// Until every row was looked at after a start: level as it was proved meanwhile.
    unjudged: Mutex<Option<Option<Duration>>>,
}

/// Tenants that Postgres calls not active, known ahead of their rows.
#[derive(Debug, Default)]
struct Ahead {
    tenants: BTreeSet<Uuid>,
    /// When the answer that named them was here, since boot.
    known: Duration,
}

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// Rows on disk.
    pub replica: Replica,
    /// Opens credentials.
    pub keyring: Keyring,
    /// Where the keyring is read again from.
    pub keys_file: PathBuf,
    /// Key of the second sealed form, if allowed.
    pub raw_key: Option<String>,
    /// `cache.max_bytes`.
    pub cache_bytes: u64,
    /// Limits on rows.
    pub limits: AdmissionLimits,
    /// Asked while the replica is not complete.
    pub read_through: Option<ReadThrough>,
    /// Where the state of this node is told.
    pub health: Arc<Health>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

impl Engine {
    /// Puts the parts together and takes over what an earlier process proved.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`] when the replica cannot be read.
    pub fn new(parts: Parts) -> Result<Self, ReplicaError> {
        if let Err(err) = parts.replica.set_convicted_aside() {
            tracing::error!(error = %err, "rows that the process died on cannot be set aside");
        }
        let complete = parts.replica.is_complete()?;
        if complete {
            parts.health.set_synced();
            parts.metrics.synced.set(1);
        }
        if let Some(age) = parts.replica.level_age() {
            parts.health.proven_before(age);
        }
        tell_expiry(&parts.metrics, &parts.keyring.status());
        Ok(Self {
            cache: Cache::new(parts.cache_bytes, &parts.metrics),
            replica: parts.replica,
            keyring: ArcSwap::from_pointee(parts.keyring),
            keys_file: parts.keys_file,
            raw_key: parts.raw_key,
            limits: parts.limits,
            read_through: ArcSwapOption::from_pointee(parts.read_through),
            health: parts.health,
            metrics: parts.metrics,
            writing: Mutex::new(()),
            ahead: ArcSwap::default(),
            bell: watched::Bell::default(),
            unjudged: Mutex::new(complete.then_some(None)),
        })
    }

    /// The configuration of a number and how old it may be. Never waits for Postgres once the replica is complete.
    ///
    /// # Errors
    /// [`Refusal`]: unknown, never good, not synchronised, unreadable. Inactive numbers and suspended tenants are
    /// found here; `select` refuses them.
    pub async fn find(&self, number: &E164) -> Result<Found, Refusal> {
        self.find_known(number, &|_: &Tenant| true).await
    }

    /// As [`find`](Self::find), for a caller that may know only of some tenants: another's number is unknown, and
    /// neither kept in memory nor counted, for what is counted is told to callers.
    ///
    /// # Errors
    /// As [`find`](Self::find). Bad rows of a tenant that was never good are told: [`never_good`](Self::never_good).
    pub async fn find_known(&self, number: &E164, may_know: MayKnow<'_>) -> Result<Found, Refusal> {
        if !self.health.is_synced() {
            return self.read_through(number, may_know).await;
        }
        let staleness = self.health.staleness();
        // Before the rows are read: once it is forgotten, they say the same.
        let ahead = self.ahead.load();
        let mut profile = self.local(number, may_know).await?;
        profile.suspended_ahead = ahead.tenants.contains(&profile.tenant.tenant.id);
        Ok(Found { profile, staleness })
    }

    /// As [`find_known`](Self::find_known), where that takes nothing but memory; else nothing has happened.
    pub fn at_hand(&self, number: &E164, may_know: MayKnow<'_>) -> Option<Found> {
        if !self.health.is_synced() {
            return None;
        }
        let staleness = self.health.staleness();
        let ahead = self.ahead.load();
        let (number, tenant) = self.cache.get(number)?;
        if !may_know(&tenant.tenant) {
            return None;
        }
        self.metrics.cache_hits.inc();
        let mut profile = Profile::new(number, tenant);
        profile.suspended_ahead = ahead.tenants.contains(&profile.tenant.tenant.id);
        Some(Found { profile, staleness })
    }

    /// Tenants that Postgres calls not active, known while a batch is on its way that may take long. None of them is
    /// answered for until rows asked for [later](Self::rows_of) are in force, not even one that is active again
    /// meanwhile: its rows here are from before.
    pub fn suspended_ahead(&self, mut tenants: BTreeSet<Uuid>) {
        let known = since_boot();
        let named = tenants.clone();
        // Answers of Postgres itself say so too, at the same time.
        self.ahead.rcu(|ahead| {
            tenants.extend(&ahead.tenants);
            Ahead {
                tenants: tenants.clone(),
                known,
            }
        });
        self.bell.ring_tenants(&named);
    }

    /// Rows that were asked for at this time since boot are in force: what was known ahead of them is forgotten.
    pub fn rows_of(&self, asked: Duration) {
        let ahead = self.ahead.load();
        if !ahead.tenants.is_empty() && ahead.known <= asked {
            // What came in between stays.
            self.ahead.compare_and_swap(&ahead, Arc::default());
            self.bell.ring_tenants(&ahead.tenants);
        }
    }

    /// A read that a failing disk spoiled is done again, for the replica is opened anew then.
    async fn local(&self, number: &E164, may_know: MayKnow<'_>) -> Result<Profile, Refusal> {
        let mut breath = BREATH;
        loop {
            match self.local_once(number, may_know) {
                Ok(profile) => return Ok(profile),
                Err(Missed::Refused(refusal)) => return Err(refusal),
                Err(Missed::Unread(err))
                    if breath > BREATH_MOST || matches!(err, ReplicaError::Record { .. }) =>
                {
                    tracing::error!(error = %err, "a question could not be answered from the replica");
                    return Err(Refusal::Unreadable);
                }
                Err(Missed::Unread(_)) => tokio::time::sleep(breath).await,
            }
            breath = breath.saturating_mul(2);
        }
    }

    fn local_once(&self, number: &E164, may_know: MayKnow<'_>) -> Result<Profile, Missed> {
        let known = |tenant: &Tenant| may_know(tenant).then_some(()).ok_or(Refusal::UnknownNumber);
        if let Some((number, tenant)) = self.cache.get(number) {
            known(&tenant.tenant)?;
            self.metrics.cache_hits.inc();
            return Ok(Profile::new(number, tenant));
        }
        for _ in 0..TRIES {
            let number_generation = self.cache.number_generation(number);
            let found = self.replica.view()?.number(number.as_str())?;
            let found = found.ok_or(Refusal::UnknownNumber)?;
            let tenant_generation = self.cache.tenant_generation(found.tenant);
            if let Some(tenant) = self.cache.tenant(found.tenant)
                && self.cache.number_is(number, number_generation)
            {
                let profile = Arc::new(resolve::number(&found.record)?);
                known(&tenant.tenant)?;
                self.metrics.cache_fills.inc();
                self.cache.keep_number(number, &profile, number_generation);
                return Ok(Profile::new(profile, tenant));
            }
            // The tenant is not in memory: read both anew as of one commit, after both generations were taken.
            let view = self.replica.view()?;
            let Some((of, profile, record)) = Self::pair(&view, number)? else {
                return Err(Refusal::UnknownNumber.into());
            };
            let profile = Arc::new(profile?);
            let tenant = Arc::new(self.resolve_tenant(&record.ok_or(Refusal::NoGoodRow)?)?);
            known(&tenant.tenant)?;
            if of == found.tenant {
                self.metrics.cache_fills.inc();
                self.cache.keep_tenant(of, &tenant, tenant_generation);
                self.cache.keep_number(number, &profile, number_generation);
                return Ok(Profile::new(profile, tenant));
            }
        }
        let view = self.replica.view()?;
        let (_, profile, record) = Self::pair(&view, number)?.ok_or(Refusal::UnknownNumber)?;
        let tenant = self.resolve_tenant(&record.ok_or(Refusal::NoGoodRow)?)?;
        known(&tenant.tenant)?;
        self.metrics.cache_fills.inc();
        Ok(Profile::new(Arc::new(profile?), Arc::new(tenant)))
    }

    /// A number and its tenant as of one commit.
    #[allow(clippy::type_complexity)]
    fn pair(
        view: &View<'_>,
        number: &E164,
    ) -> Result<Option<(Uuid, Result<NumberProfile, Refusal>, Option<TenantRecord>)>, ReplicaError>
    {
        let Some(found) = view.number(number.as_str())? else {
            return Ok(None);
        };
        Ok(Some((
            found.tenant,
            resolve::number(&found.record),
            view.tenant(found.tenant)?,
        )))
    }

    fn resolve_tenant(&self, record: &TenantRecord) -> Result<TenantProfile, Refusal> {
        resolve::tenant(record, &self.keyring.load(), self.raw_key.as_deref())
    }

    /// Before the first complete copy: this one number, from Postgres.
    async fn read_through(&self, number: &E164, may_know: MayKnow<'_>) -> Result<Found, Refusal> {
        let Some(source) = self.read_through.load_full() else {
            // The first copy was completed right now.
            return if self.health.is_synced() {
                Ok(Found {
                    staleness: self.health.staleness(),
                    profile: self.local(number, may_know).await?,
                })
            } else {
                Err(Refusal::NeverSynced)
            };
        };
        // Where the feed just failed to connect, nobody waits for the same failure again.
        if self.health.feed().state == FeedState::Backoff {
            return Err(Refusal::NeverSynced);
        }
        let asked = Instant::now();
        let one = source.number(number.as_str()).await.map_err(|err| {
            tracing::debug!(error = %err, "a question could not be asked of Postgres");
            let connected = matches!(
                self.health.feed().state,
                FeedState::Listening | FeedState::Pulling | FeedState::Level
            );
            if connected && matches!(err, sqlx::Error::PoolTimedOut) {
                Refusal::Overloaded
            } else {
                Refusal::NeverSynced
            }
        })?;
        let one = one.ok_or(Refusal::UnknownNumber)?;
        let record = admit::number(number.as_str(), &one.number_document, None);
        let tenant = one
            .tenant_document
            .map(|document| admit::tenant(one.tenant, &document, None, &self.limits));
        let tenant = self.resolve_tenant(&tenant.ok_or(Refusal::NoGoodRow)?)?;
        if !tenant.tenant.is_active() {
            // The copy may be of before.
            self.suspended_ahead(BTreeSet::from([tenant.tenant.id]));
        }
        if !may_know(&tenant.tenant) {
            return Err(Refusal::UnknownNumber);
        }
        let profile = Profile::new(Arc::new(resolve::number(&record)?), Arc::new(tenant));
        let ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(Found {
            profile,
            staleness: Staleness {
                ms,
                stale: false,
                refuse_credentials: false,
            },
        })
    }

    /// Whose number it is that [`find`](Self::find) refuses for want of a good row, and what is wrong with its rows.
    ///
    /// Of a tenant that was never good, or is not in the replica, only the id is told, or not even that: a rule that
    /// names tenants does not cover it then.
    #[must_use]
    pub fn never_good(&self, number: &E164) -> (Tenant, Vec<Fault>) {
        let mut tenant = Tenant {
            id: Uuid::nil(),
            name: String::new(),
            slug: String::new(),
            status: String::new(),
        };
        let read = || {
            let view = self.replica.view()?;
            let Some(found) = view.number(number.as_str())? else {
                return Ok(None);
            };
            let record = view.tenant(found.tenant)?;
            Ok::<_, ReplicaError>(Some((found, record)))
        };
        let Ok(Some((found, record))) = read() else {
            return (tenant, Vec::new());
        };
        tenant.id = found.tenant;
        let mut faults = found.record.faults;
        if let Some(record) = record {
            faults.extend(record.faults);
            tenant = record.bundle.tenant.unwrap_or(tenant);
        }
        (tenant, faults)
    }

    /// Applies a batch: replica first, then memory forgets, then the state of the node is told. Blocking.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing was changed.
    pub fn apply(
        &self,
        incoming: Incoming,
        terms: &Terms,
    ) -> Result<(Applied, Cursor), ReplicaError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = self.replica.apply(incoming, terms, |applied| {
            self.cache.changing(Touched {
                numbers: if applied.all_numbers {
                    Which::All
                } else {
                    Which::These(applied.numbers.iter().copied().collect())
                },
                tenants: Which::These(applied.tenants.iter().copied().collect()),
            })
        });
        // A commit that failed may be on disk all the same: the next one would find nothing to change.
        let (applied, cursor) = applied.inspect_err(|_| {
            self.cache.forget_all();
            self.bell.ring_all();
        })?;
        let first = !self.health.is_synced();
        self.health.set_synced();
        self.metrics.synced.set(1);
        if first {
            self.bell.ring_all();
        } else {
            self.bell.ring_applied(&applied);
        }
        for (number, faults) in &applied.faults {
            self.health.quarantine_number(number, faults.clone());
        }
        self.judge_tenants(applied.tenants.iter().copied(), Hand::Applying);
        self.replica.survived(terms);
        self.tell_size();
        Ok((applied, cursor))
    }

    /// Keeps a cursor that moved although nothing changed. Blocking.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn keep_cursor(&self, cursor: &Cursor) -> Result<(), ReplicaError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.replica.keep_cursor(cursor)
    }

    /// A pull that was sent at this time since boot proved level.
    ///
    /// While a row waits to be tried again, what this node answers is older than that; so it may be until every row was
    /// [looked at](Self::judge_all).
    pub fn proven_level(&self, sent: Duration) {
        if let Some(proof) = &mut *self.unjudged() {
            *proof = Some(sent);
            return;
        }
        if !self.replica.on_trial().is_empty() {
            return;
        }
        self.health.proven_level(sent);
        if let Err(err) = self.replica.stamp_level(sent) {
            tracing::debug!(error = %err, "the proof of level cannot be written; after a restart this node looks older than it is");
        }
    }

    /// The rows on disk, for the feed.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Limits on rows, for the feed.
    #[must_use]
    pub fn limits(&self) -> &AdmissionLimits {
        &self.limits
    }

    /// The state of this node.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes the connections away that answered before the first complete copy.
    pub fn take_read_through(&self) -> Option<Arc<ReadThrough>> {
        self.read_through.swap(None)
    }

    /// Reads the keyring again: credentials are opened anew and the replica is wrapped under the new keys. Blocking.
    ///
    /// # Errors
    /// [`ReloadError`]; then the old keyring stays in force.
    pub fn reload_keys(&self) -> Result<Vec<KeyStatus>, ReloadError> {
        let keyring = Keyring::load(&self.keys_file)?;
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.replica.rewrap(&keyring)?;
        let status = keyring.status();
        tell_expiry(&self.metrics, &status);
        self.keyring.store(Arc::new(keyring));
        self.cache.forget_all();
        if let Ok(ids) = self.replica.view().and_then(|view| view.tenant_ids()) {
            self.judge_tenants(ids, Hand::Applying);
        }
        Ok(status)
    }

    /// Ids of the keys, which one seals, when they expire.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyStatus> {
        self.keyring.load().status()
    }

    /// Looks at every tenant and every faulty number once, so that quarantined rows are told after a start. Blocking.
    pub fn judge_all(&self) {
        if unpanicked(|| self.look_at_all()).is_none() {
            tracing::error!("quarantined rows cannot be told");
        }
        let proof = self.unjudged().take().flatten();
        if let Some(sent) = proof {
            self.proven_level(sent);
        }
    }

    fn unjudged(&self) -> MutexGuard<'_, Option<Option<Duration>>> {
        self.unjudged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at_all(&self) {
        let told = reread(|| {
            let view = self.replica.view()?;
            for number in view.faulty_numbers()? {
                let faults = match view.number(&number) {
                    Err(err @ ReplicaError::Record { .. }) => {
                        vec![unreadable(Table::TenantPhoneNumbers, number.clone(), &err)]
                    }
                    found => found?.map_or_else(Vec::new, |found| {
                        let row = Version {
                            key: Key::Number(number.clone()),
                            hash: found.record.hash,
                        };
                        self.replica.found(row, &found.record.faults);
                        found.record.faults
                    }),
                };
                if let Ok(e164) = number.parse::<E164>() {
                    self.health.quarantine_number(&e164, faults);
                }
            }
            view.tenant_ids()
        });
        match told {
            Ok(ids) => self.judge_tenants(ids, Hand::Judging),
            Err(err) => tracing::error!(error = %err, "quarantined rows cannot be told"),
        }
        self.tell_size();
    }

    /// What is wrong with the rows of these tenants, credentials that do not open included.
    fn judge_tenants(&self, ids: impl IntoIterator<Item = Uuid>, hand: Hand) {
        let mut ids: Vec<Uuid> = ids.into_iter().collect();
        // First, before a call has one of them in hand and dies while another row is named.
        let suspects = self.replica.suspects();
        ids.sort_by_key(|id| !suspects.contains(&Key::Tenant(*id)));
        let names_each = self.replica.names_each(hand, ids.len());
        self.replica.take_in_hand(hand, InHand::Rows);
        for id in ids {
            let faults = match reread(|| self.replica.view()?.tenant(id)) {
                Ok(Some(record)) => {
                    let row = Version {
                        key: Key::Tenant(id),
                        hash: record.hash,
                    };
                    self.replica.found(row.clone(), &record.faults);
                    if names_each || suspects.contains(&row.key) {
                        self.replica.take_in_hand(hand, InHand::Row(row.clone()));
                    }
                    let faults = judged(id, record.faults.clone(), || self.resolve_tenant(&record));
                    self.replica.looked_at(&row);
                    faults
                }
                Ok(None) => Vec::new(),
                Err(err @ ReplicaError::Record { .. }) => {
                    vec![unreadable(Table::Tenants, id.to_string(), &err)]
                }
                Err(err) => {
                    tracing::error!(error = %err, "not every quarantined row can be told");
                    break;
                }
            };
            self.health.quarantine_tenant(id, faults);
        }
        self.replica.take_in_hand(hand, InHand::Nothing);
        let mut counts: HashMap<(Table, Reason), i64> = HashMap::new();
        self.health.each_quarantined(|fault| {
            let count = counts.entry((fault.table, fault.reason)).or_default();
            *count = count.saturating_add(1);
        });
        let withheld = counts
            .get(&(Table::TenantCredentials, Reason::Ciphertext))
            .copied()
            .unwrap_or(0);
        self.metrics.credentials_withheld.set(withheld);
        self.metrics.set_quarantined(&counts);
    }

    /// Does what the cache postpones and tells sizes and ages; to be called each second.
    pub fn tidy(&self) {
        self.cache.tidy();
        let (entries, bytes) = self.cache.size();
        self.metrics.cache_entries.set(gauge(entries));
        self.metrics.cache_bytes.set(gauge(bytes));
        self.tell_ages();
    }

    /// Ages grow while nothing happens: told each second and before every scrape.
    pub fn tell_ages(&self) {
        let feed = self.health.feed();
        let now = Timestamp::now();
        let since = |then: Timestamp| now.duration_since(then).as_secs_f64().max(0.0);
        self.metrics
            .staleness
            .set(Duration::from_millis(self.health.staleness().ms).as_secs_f64());
        self.metrics.set_feed_state(feed.state, since(feed.since));
        if let Some(completed) = feed.last_pull_completed {
            self.metrics.cursor_age.set(since(completed));
        }
    }

    fn tell_size(&self) {
        if let Ok(size) = self.replica.size() {
            self.metrics
                .replica_rows
                .set(Kind::Tenant, gauge(size.tenants));
            self.metrics
                .replica_rows
                .set(Kind::Number, gauge(size.numbers));
            self.metrics.replica_bytes.set(gauge(size.bytes));
        }
    }

    /// How much is held.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (cache_entries, cache_bytes) = self.cache.size();
        Stats {
            replica: self.replica.size().unwrap_or_default(),
            cache_entries,
            cache_bytes,
        }
    }
}

/// Why a number's configuration was not found.
enum Missed {
    Refused(Refusal),
    Unread(ReplicaError),
}

impl From<Refusal> for Missed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ReplicaError> for Missed {
    fn from(err: ReplicaError) -> Self {
        Self::Unread(err)
    }
}

/// When the key that seals expires, and the first of all.
fn tell_expiry(metrics: &Metrics, keys: &[KeyStatus]) {
    let first =
        |keys: &mut dyn Iterator<Item = &KeyStatus>| keys.filter_map(|key| key.expires).min();
    let told = &metrics.key_expiry;
    told.set_time(
        KeyRole::Seal,
        first(&mut keys.iter().filter(|key| key.seals)),
    );
    told.set_time(KeyRole::Open, first(&mut keys.iter()));
}

/// What fails for the file's sake is read again: the file may have been opened anew in between.
fn reread<T>(read: impl Fn() -> Result<T, ReplicaError>) -> Result<T, ReplicaError> {
    let mut found = read();
    for _ in 1..TRIES {
        if matches!(found, Ok(_) | Err(ReplicaError::Record { .. })) {
            break;
        }
        found = read();
    }
    found
}

/// A record that does not open.
fn unreadable(table: Table, key: String, err: &ReplicaError) -> Fault {
    Fault {
        table,
        key,
        reason: Reason::Malformed,
        detail: err.to_string(),
        last_good: false,
    }
}

/// What is wrong with a tenant's rows, `known` before a profile is made of them. Making it may panic.
fn judged(
    id: Uuid,
    known: Vec<Fault>,
    resolve: impl FnOnce() -> Result<TenantProfile, Refusal>,
) -> Vec<Fault> {
    match unpanicked(resolve) {
        Some(Ok(profile)) => profile.faults.clone(),
        Some(Err(_)) => known,
        None => [known, vec![poison(Table::Tenants, id.to_string(), false)]].concat(),
    }
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Why the keyring was not read again.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file is not a keyring.
    #[error("{0}")]
    Keyring(#[from] KeyringError),
    /// The replica could not be wrapped under it.
    #[error("{0}")]
    Replica(#[from] ReplicaError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_while_a_tenant_is_judged_is_a_fault_of_its_own_beside_those_known() {
        let id = Uuid::from_u128(7);
        let known = poison(Table::Prompts, "prompt".to_owned(), true);
        let faults = judged(id, vec![known.clone()], || panic!("of the test"));
        assert_eq!(faults.len(), 2);
        assert_eq!(faults[0], known);
        assert_eq!(faults[1].key, id.to_string());
        assert_eq!(
            judged(id, faults.clone(), || Err(Refusal::NoGoodRow)),
            faults
        );
    }

    #[test]
    fn a_read_that_a_reopened_file_spoils_is_done_again_and_one_of_a_bad_record_is_not() {
        let fails = |times: usize, err: fn() -> ReplicaError| {
            let tried = std::cell::Cell::new(0);
            let found = reread(|| {
                tried.set(tried.get() + 1);
                if tried.get() > times {
                    Ok(())
                } else {
                    Err(err())
                }
            });
            (found.is_ok(), tried.get())
        };
        assert_eq!(fails(1, || ReplicaError::Seal), (true, 2));
        assert_eq!(fails(9, || ReplicaError::Seal), (false, TRIES));
        let record = || ReplicaError::Record { key: String::new() };
        assert_eq!(fails(1, record), (false, 1));
    }
}
