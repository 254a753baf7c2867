//! Hot profiles: what was resolved, until its rows change. Postgres and the disk are not known here.
//!
//! Always true: what is served from memory was built from the rows that are in the replica now. Each number and each
//! tenant falls on a generation; it is odd while a batch that touches it is being committed, and another even number
//! afterwards. An entry remembers the generations from before its rows were read and is good only while they stand.
//! A change to a tenant costs one store and one removal, however many numbers it has: a tenant's entry holds opened
//! credentials, which must not stay in memory until somebody calls. Numbers that share a generation by chance are
//! built anew without need, never served wrongly. A number's entry knows its tenant's, which saves the look for it, and
//! keeps a pointer's worth of it in memory.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use moka::notification::RemovalCause;
use moka::sync::Cache as Moka;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::number::E164;
use crate::profile::{NumberProfile, TenantProfile};

/// Generations of numbers and of tenants; memory, not correctness, depends on how many. Of numbers about half as
/// many as entries fit by default: each change costs those that share its generation a look into the replica.
const NUMBER_STRIPES: usize = 64 * 1024;
const TENANT_STRIPES: usize = 4 * 1024;

/// Of so many answers one looks for its tenant: what is never looked for is the first to be evicted.
const LOOKS_OF: u32 = 16;

/// What an entry was built under. Odd: a change was being committed, keep nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(u64);

impl Generation {
    /// Whether something read from here on may be kept.
    #[must_use]
    pub fn is_settled(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

#[derive(Debug)]
struct Stripes {
    cells: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Stripes {
    fn new(count: usize) -> Self {
        Self {
            cells: (0..count).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    fn of(&self, key: &impl Hash) -> usize {
        let hash = usize::try_from(self.hasher.hash_one(key) & 0xffff_ffff).unwrap_or(0);
        hash.checked_rem(self.cells.len()).unwrap_or(0)
    }

    fn get(&self, key: &impl Hash) -> Generation {
        Generation(
            self.cells
                .get(self.of(key))
                .map_or(1, |cell| cell.load(Ordering::Acquire)),
        )
    }

    /// Once for each stripe, however many fall on it.
    fn step(&self, which: &Which<impl Hash>) {
        let step = |cell: &AtomicU64| {
            cell.fetch_add(1, Ordering::AcqRel);
        };
        match which {
            Which::All => self.cells.iter().for_each(step),
            Which::These(keys) => {
                let stripes: BTreeSet<usize> = keys.iter().map(|key| self.of(key)).collect();
                let cells = stripes
                    .into_iter()
                    .filter_map(|stripe| self.cells.get(stripe));
                cells.for_each(step);
            }
        }
    }
}

#[derive(Debug, Clone)]
struct NumberEntry {
    profile: Arc<NumberProfile>,
    generation: Generation,
    tenant: Option<KnownTenant>,
}

#[derive(Debug, Clone)]
struct TenantEntry {
    profile: Arc<TenantProfile>,
    generation: Generation,
}

/// A tenant's entry as a number's knows it: gone when that is.
#[derive(Debug, Clone)]
struct KnownTenant {
    profile: Weak<TenantProfile>,
    generation: Generation,
}

/// Number and tenant of one and the same moment.
pub type Pair = (Arc<NumberProfile>, Arc<TenantProfile>);

/// What a batch is about to change or has changed.
#[derive(Debug, Clone)]
pub struct Touched {
    /// Numbers.
    pub numbers: Which<E164>,
    /// Tenants. Those whose numbers alone changed are not among them: building one anew costs far more than a number.
    pub tenants: Which<Uuid>,
}

/// All, or those that are named.
#[derive(Debug, Clone)]
pub enum Which<T> {
    /// All.
    All,
    /// These alone.
    These(Vec<T>),
}

/// A batch that is being committed, until dropped.
#[derive(Debug)]
pub struct Changing<'c>(&'c Cache, Touched);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.step(&self.1);
    }
}

/// Profiles in memory, bounded in bytes.
#[derive(Debug)]
pub struct Cache {
    numbers: Moka<E164, NumberEntry>,
    tenants: Moka<Uuid, TenantEntry>,
    number_generations: Stripes,
    tenant_generations: Stripes,
}

impl Cache {
    /// An empty cache of at most so many bytes: half for numbers, half for tenants with their prompts.
    #[must_use]
    pub fn new(max_bytes: u64, metrics: &Arc<Metrics>) -> Self {
        let half = max_bytes / 2;
        let weight = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let evicted = || {
            let metrics = Arc::clone(metrics);
            move |cause: RemovalCause| {
                if cause.was_evicted() {
                    metrics.cache_evictions.inc();
                }
            }
        };
        let (numbers_evicted, tenants_evicted) = (evicted(), evicted());
        Self {
            numbers: Moka::builder()
                .max_capacity(half)
                .weigher(move |_: &E164, entry: &NumberEntry| weight(entry.profile.bytes()))
                .eviction_listener(move |_, _, cause| numbers_evicted(cause))
                .build(),
            tenants: Moka::builder()
                .max_capacity(half)
                .weigher(move |_: &Uuid, entry: &TenantEntry| weight(entry.profile.bytes))
                .eviction_listener(move |_, _, cause| tenants_evicted(cause))
                .build(),
            number_generations: Stripes::new(NUMBER_STRIPES),
            tenant_generations: Stripes::new(TENANT_STRIPES),
        }
    }

    /// Number and tenant, where both are here and good.
    #[must_use]
    pub fn get(&self, number: &E164) -> Option<Pair> {
        let entry = self.numbers.get(number)?;
        let id = entry.profile.row.tenant_id;
        let known = entry.tenant.and_then(|known| {
            let generation = known.generation;
            let profile = known.profile.upgrade()?;
            (self.tenant_generations.get(&id) == generation).then_some(profile)
        });
        let tenant = match known {
            Some(tenant) => {
                if is_due() {
                    self.tenants.get(&id);
                }
                tenant
            }
            None => {
                let TenantEntry {
                    profile,
                    generation,
                } = self.tenant_entry(id)?;
                let tenant = KnownTenant {
                    profile: Arc::downgrade(&profile),
                    generation,
                };
                if self.number_is(number, entry.generation) {
                    let knowing = NumberEntry {
                        profile: Arc::clone(&entry.profile),
                        generation: entry.generation,
                        tenant: Some(tenant),
                    };
                    self.numbers.insert(*number, knowing);
                }
                profile
            }
        };
        // Last, so that a batch which changed both between the two reads is noticed.
        self.number_is(number, entry.generation)
            .then_some((entry.profile, tenant))
    }

    /// A tenant, where it is here and good.
    #[must_use]
    pub fn tenant(&self, id: Uuid) -> Option<Arc<TenantProfile>> {
        Some(self.tenant_entry(id)?.profile)
    }

    fn tenant_entry(&self, id: Uuid) -> Option<TenantEntry> {
        let entry = self.tenants.get(&id)?;
        let now = self.tenant_generations.get(&id);
        (now.is_settled() && now == entry.generation).then_some(entry)
    }

    /// To be taken before the rows of a number are read.
    #[must_use]
    pub fn number_generation(&self, number: &E164) -> Generation {
        self.number_generations.get(number)
    }

    /// To be taken before the rows of a tenant are read.
    #[must_use]
    pub fn tenant_generation(&self, id: Uuid) -> Generation {
        self.tenant_generations.get(&id)
    }

    /// Whether nothing touched the number since then.
    #[must_use]
    pub fn number_is(&self, number: &E164, then: Generation) -> bool {
        then.is_settled() && self.number_generations.get(number) == then
    }

    /// Keeps a number built from rows that were read after its generation was taken.
    pub fn keep_number(&self, number: &E164, profile: &Arc<NumberProfile>, generation: Generation) {
        if generation.is_settled() {
            self.numbers.insert(
                *number,
                NumberEntry {
                    profile: Arc::clone(profile),
                    generation,
                    tenant: None,
                },
            );
        }
    }

    /// Keeps a tenant built from rows that were read after its generation was taken.
    pub fn keep_tenant(&self, id: Uuid, profile: &Arc<TenantProfile>, generation: Generation) {
        if generation.is_settled() {
            self.tenants.insert(
                id,
                TenantEntry {
                    profile: Arc::clone(profile),
                    generation,
                },
            );
            // A batch that came in between has removed what was here before, not this.
            if self.tenant_generations.get(&id) != generation {
                self.tenants.invalidate(&id);
            }
        }
    }

    /// What a batch touches is neither kept nor answered from, from now until the end of its commit, however it ends.
    #[must_use]
    pub fn changing(&self, touched: Touched) -> Changing<'_> {
        self.step(&touched);
        Changing(self, touched)
    }

    fn step(&self, touched: &Touched) {
        self.number_generations.step(&touched.numbers);
        self.tenant_generations.step(&touched.tenants);
        match &touched.tenants {
            Which::All => self.tenants.invalidate_all(),
            Which::These(tenants) => tenants.iter().for_each(|id| self.tenants.invalidate(id)),
        }
    }

    /// Everything kept so far is good no longer.
    pub fn forget_all(&self) {
        drop(self.changing(Touched {
            numbers: Which::All,
            tenants: Which::All,
        }));
        self.numbers.invalidate_all();
    }

    /// Does what moka postpones; to be called each second.
    pub fn tidy(&self) {
        self.numbers.run_pending_tasks();
        self.tenants.run_pending_tasks();
    }

    /// Entries and estimated bytes.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        (
            self.numbers
                .entry_count()
                .saturating_add(self.tenants.entry_count()),
            self.numbers
                .weighted_size()
                .saturating_add(self.tenants.weighted_size()),
        )
    }
}

/// Whether this is one of [`LOOKS_OF`], counted by each thread for itself.
fn is_due() -> bool {
    thread_local!(static TURN: Cell<u32> = const { Cell::new(0) });
    TURN.with(|turn| {
        let next = turn.get().wrapping_add(1);
        turn.set(next);
        next.is_multiple_of(LOOKS_OF)
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use serde_json::json;

    use super::*;
    use crate::admit::{self, AdmissionLimits};
    use crate::resolve;
    use crate::seal::Keyring;

    const NUMBER: &str = "+14155550100";
    const TENANT: Uuid = Uuid::from_u128(7);

    fn number() -> Arc<NumberProfile> {
        let row = json!({
            "id": Uuid::from_u128(1), "tenant_id": TENANT, "e164": NUMBER, "label": null, "default_language": "es",
            "default_voice": null, "timezone": "UTC", "active": true,
        });
        let record = admit::number(NUMBER, &row.to_string(), None);
        Arc::new(resolve::number(&record).unwrap())
    }

    fn tenant(name: &str) -> Arc<TenantProfile> {
        let rows = json!({
            "tenant": {"id": TENANT, "name": name, "slug": "acme", "status": "active"},
            "settings": null, "credentials": [], "prompts": [],
        });
        let limits = AdmissionLimits {
            prompt_bytes: 1000,
            credential_bytes: 1000,
            rows_per_tenant: 1000,
        };
        let record = admit::tenant(TENANT, &rows.to_string(), None, &limits);
        let keyring = Keyring::parse(&Keyring::generate("k1").unwrap()).unwrap();
        Arc::new(resolve::tenant(&record, &keyring, None).unwrap())
    }

    fn change(tenants: Vec<Uuid>, numbers: Vec<E164>) -> Touched {
        Touched {
            numbers: Which::These(numbers),
            tenants: Which::These(tenants),
        }
    }

    #[test]
    fn numbers_know_their_tenant_and_keep_nothing_of_it_when_it_changes() {
        let cache = Cache::new(1 << 20, &Arc::new(Metrics::new().unwrap()));
        let e164 = number().row.e164;
        let keep = |name| {
            let tenant = tenant(name);
            cache.keep_tenant(TENANT, &tenant, cache.tenant_generation(TENANT));
            Arc::downgrade(&tenant)
        };
        let named = || {
            cache
                .get(&e164)
                .map(|(_, tenant)| tenant.tenant.name.clone())
        };
        let mut old = keep("first");
        cache.keep_number(&e164, &number(), cache.number_generation(&e164));
        for name in ["second", "third"] {
            for _ in 0..40 {
                assert!(named().is_some());
            }
            drop(cache.changing(change(vec![TENANT], Vec::new())));
            assert_eq!(named(), None);
            let begun = std::time::Instant::now();
            while old.upgrade().is_some() {
                cache.tidy();
                assert!(
                    begun.elapsed().as_secs() < 20,
                    "a tenant outlives its change"
                );
            }
            old = keep(name);
            assert_eq!(named().as_deref(), Some(name));
        }
        let changing = cache.changing(change(vec![TENANT], Vec::new()));
        assert_eq!(named(), None);
        drop(changing);
        keep("last");
        assert_eq!(named().as_deref(), Some("last"));
        drop(cache.changing(change(Vec::new(), vec![e164])));
        assert_eq!(named(), None);
    }

    #[test]
    fn tenants_stay_in_memory_while_all_numbers_change() {
        let cache = Cache::new(1 << 20, &Arc::new(Metrics::new().unwrap()));
        let e164 = number().row.e164;
        let before = cache.number_generation(&e164);
        cache.keep_number(&e164, &number(), before);
        cache.keep_tenant(TENANT, &tenant("first"), cache.tenant_generation(TENANT));
        let changing = cache.changing(Touched {
            numbers: Which::All,
            tenants: Which::These(Vec::new()),
        });
        assert!(!cache.number_generation(&e164).is_settled());
        assert!(cache.tenant(TENANT).is_some());
        drop(changing);
        assert!(cache.get(&e164).is_none());
        cache.keep_number(&e164, &number(), before);
        assert!(cache.get(&e164).is_none(), "read before the change");
        cache.forget_all();
        assert!(cache.tenant(TENANT).is_none());
    }

    #[test]
    fn a_commit_that_panics_leaves_generations_settled_and_moved_on() {
        let cache = Cache::new(1 << 20, &Arc::new(Metrics::new().unwrap()));
        let id = Uuid::from_u128(7);
        let before = cache.tenant_generation(id);
        let touched = change(vec![id], Vec::new());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _changing = cache.changing(touched);
            assert!(!cache.tenant_generation(id).is_settled());
            panic!("of the test");
        }));
        assert!(panicked.is_err());
        let after = cache.tenant_generation(id);
        assert!(after.is_settled() && after != before);
    }
}
