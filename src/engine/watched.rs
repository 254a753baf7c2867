//! For watchers: what batches have touched, and how a number or a tenant stands now.
//!
//! Nothing is opened, kept in the cache or counted for a watcher: what is counted is told to callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::Engine;
use crate::admit;
use crate::number::E164;
use crate::profile::{self, RowRevision};
use crate::replica::{Applied, ReplicaError, View, unpanicked};
use crate::resolve;
use crate::row::{Tenant, TenantRecord};
use crate::watch::{About, Standing, State, nameless};

/// Numbers and tenants that are named; with more, everything counts as touched.
const NAMED: usize = 10_000;

const TENANT: &[u8] = b"sidetone watched tenant 1\0";

/// What was touched since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touches {
    /// More than is named.
    pub everything: bool,
    /// Numbers whose rows changed.
    pub numbers: BTreeSet<E164>,
    /// Tenants whose own rows changed.
    pub tenants: BTreeSet<Uuid>,
    /// Tenants whose numbers changed.
    pub owners: BTreeSet<Uuid>,
}

impl Touches {
    fn all() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    fn named(&self) -> usize {
        self.numbers
            .len()
            .saturating_add(self.tenants.len())
            .saturating_add(self.owners.len())
    }

    fn join(&mut self, other: Self) {
        if self.everything {
            return;
        }
        self.numbers.extend(other.numbers);
        self.tenants.extend(other.tenants);
        self.owners.extend(other.owners);
        if other.everything || self.named() > NAMED {
            *self = Self::all();
        }
    }
}

/// Rung after each change that calls may be answered with from then on. Costs one load where nobody listens.
#[derive(Debug, Default)]
pub struct Bell {
    heard: AtomicBool,
    touched: Mutex<Touches>,
    rung: Notify,
}

impl Bell {
    /// Whether anybody wants to know. What was touched while nobody did is not told.
    pub fn listen(&self, heard: bool) {
        *self.touched() = Touches::default();
        self.heard.store(heard, Ordering::SeqCst);
    }

    /// Waits until something was touched.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }

    /// What was touched since this was last asked.
    pub fn take(&self) -> Touches {
        std::mem::take(&mut *self.touched())
    }

    fn ring(&self, touches: impl FnOnce() -> Touches) {
        if self.heard.load(Ordering::SeqCst) {
            self.touched().join(touches());
            self.rung.notify_one();
        }
    }

    pub(super) fn ring_all(&self) {
        self.ring(Touches::all);
    }

    pub(super) fn ring_tenants(&self, tenants: &BTreeSet<Uuid>) {
        self.ring(|| Touches {
            tenants: tenants.clone(),
            ..Touches::default()
        });
    }

    pub(super) fn ring_applied(&self, applied: &Applied) {
        self.ring(|| {
            if applied.all_numbers {
                return Touches::all();
            }
            Touches {
                everything: false,
                numbers: applied.numbers.clone(),
                tenants: applied.tenants.clone(),
                owners: applied.owners.clone(),
            }
        });
    }

    fn touched(&self) -> MutexGuard<'_, Touches> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a number stands, and the tenant on which that depends.
#[derive(Debug)]
pub struct NumberNow {
    /// How it stands.
    pub state: State,
    /// Whose row it is.
    pub owner: Option<Uuid>,
}

/// How a tenant stands.
#[derive(Debug)]
pub struct TenantNow {
    /// `None` where only the slug was asked for.
    pub state: Option<State>,
    /// Its slug, where it is there.
    pub slug: Option<String>,
}

/// What the numbers of a tenant share.
struct Owner {
    tenant: Arc<Tenant>,
    /// `None` where none of its rows was ever good.
    hash: Option<[u8; 32]>,
}

impl Owner {
    fn of(id: Uuid, record: Option<&TenantRecord>) -> Self {
        let good = record.and_then(|record| record.bundle.tenant.clone());
        Self {
            hash: record.and_then(|record| resolve::tenant_hash(record).ok()),
            tenant: Arc::new(good.unwrap_or_else(|| nameless(id))),
        }
    }
}

impl Engine {
    /// Where watchers hear of changes.
    #[must_use]
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// How these numbers stand now, as calls would be answered from here on. Blocking.
    ///
    /// # Errors
    /// [`ReplicaError`] when nothing can be read; a record that does not open costs only the answer for itself.
    pub fn numbers_now(&self, numbers: &[E164]) -> Result<Vec<(E164, NumberNow)>, ReplicaError> {
        let nobody = |number: E164, standing| NumberNow {
            state: State::of_nobody(About::Number(number), standing),
            owner: None,
        };
        if !self.health.is_synced() {
            let not_ready = |number: &E164| (*number, nobody(*number, Standing::NotReady));
            return Ok(numbers.iter().map(not_ready).collect());
        }
        // Before the rows are read: once it is forgotten, they say the same.
        let ahead = self.ahead.load();
        let view = self.replica.view()?;
        let mut owners: BTreeMap<Uuid, Owner> = BTreeMap::new();
        let mut now = Vec::with_capacity(numbers.len());
        for number in numbers {
            let look = || number_now(&view, &mut owners, *number, &ahead.tenants);
            let found = unpanicked(look).transpose();
            let found = match found {
                Err(err @ ReplicaError::Storage { .. }) => return Err(err),
                Ok(Some(Some(found))) => found,
                Ok(Some(None)) => nobody(*number, Standing::UnknownNumber),
                Ok(None) | Err(_) => nobody(*number, Standing::NotReady),
            };
            now.push((*number, found));
        }
        Ok(now)
    }

    /// How these tenants stand now; those marked with everything that is theirs, of the others only the slug.
    /// Blocking, for as long as it takes to read the index of their numbers.
    ///
    /// # Errors
    /// As [`numbers_now`](Self::numbers_now).
    pub fn tenants_now(
        &self,
        tenants: &[(Uuid, bool)],
    ) -> Result<Vec<(Uuid, TenantNow)>, ReplicaError> {
        let nobody = |standing| State::of_nobody(About::Tenant(0), standing);
        if !self.health.is_synced() {
            let not_ready = || TenantNow {
                state: Some(nobody(Standing::NotReady)),
                slug: None,
            };
            return Ok(tenants.iter().map(|(id, _)| (*id, not_ready())).collect());
        }
        let ahead = self.ahead.load();
        let view = self.replica.view()?;
        let mut now = Vec::with_capacity(tenants.len());
        for (id, whole) in tenants {
            let look = || tenant_now(&view, *id, *whole, ahead.tenants.contains(id));
            let found = unpanicked(look).transpose();
            let found = match found {
                Err(err @ ReplicaError::Storage { .. }) => return Err(err),
                Ok(Some(Some(found))) => found,
                Ok(Some(None)) => TenantNow {
                    state: Some(nobody(Standing::UnknownTenant)),
                    slug: None,
                },
                Ok(None) | Err(_) => TenantNow {
                    state: Some(nobody(Standing::NotReady)),
                    slug: None,
                },
            };
            now.push((*id, found));
        }
        Ok(now)
    }
}

fn number_now(
    view: &View<'_>,
    owners: &mut BTreeMap<Uuid, Owner>,
    number: E164,
    ahead: &BTreeSet<Uuid>,
) -> Result<Option<NumberNow>, ReplicaError> {
    let Some(found) = view.number(number.as_str())? else {
        return Ok(None);
    };
    let id = found.tenant;
    let owner = match owners.entry(id) {
        std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::btree_map::Entry::Vacant(new) => {
            new.insert(Owner::of(id, view.tenant(id)?.as_ref()))
        }
    };
    let row = found.record.row.as_ref();
    let row = row.filter(|row| row.tenant_id == id && admit::zone(&row.timezone).is_some());
    let hash = resolve::number_hash(&found.record).ok();
    let (standing, revision) = match (row, hash, &owner.hash) {
        (Some(row), Some(number), Some(tenant)) => {
            let standing = if !row.active {
                Standing::InactiveNumber
            } else if ahead.contains(&id) || !owner.tenant.is_active() {
                Standing::TenantSuspended
            } else {
                Standing::Ok
            };
            (standing, Some(profile::revision(&number, tenant)))
        }
        _ => (Standing::NotReady, None),
    };
    Ok(Some(NumberNow {
        state: State {
            about: About::Number(number),
            standing,
            revision,
            tenant: Some(owner.tenant.clone()),
        },
        owner: Some(id),
    }))
}

fn tenant_now(
    view: &View<'_>,
    id: Uuid,
    whole: bool,
    ahead: bool,
) -> Result<Option<TenantNow>, ReplicaError> {
    let Some(record) = view.tenant(id)? else {
        return Ok(None);
    };
    let slug = record
        .bundle
        .tenant
        .as_ref()
        .map(|tenant| tenant.slug.clone());
    if !whole {
        return Ok(Some(TenantNow { state: None, slug }));
    }
    let owner = Owner::of(id, Some(&record));
    let mut hasher = blake3::Hasher::new();
    hasher.update(TENANT);
    hasher.update(owner.hash.as_ref().map_or(&[][..], |hash| hash));
    let mut count: u64 = 0;
    let mut faulty = Vec::new();
    view.each_number_of(id, |number, hash, is_faulty| {
        count = count.saturating_add(1);
        hasher.update(number.as_bytes());
        hasher.update(hash);
        if is_faulty {
            faulty.push(number.to_owned());
        }
    })?;
    // Of these another row is in force than the one the index stands for, or none.
    for number in faulty {
        let in_force = view.number(&number)?;
        let in_force = in_force.and_then(|found| resolve::number_hash(&found.record).ok());
        hasher.update(in_force.as_ref().map_or(&[][..], |hash| hash));
    }
    let revision = RowRevision::start_of(hasher.finalize().as_bytes());
    let standing = match owner.hash {
        None => Standing::NotReady,
        Some(_) if ahead || !owner.tenant.is_active() => Standing::TenantSuspended,
        Some(_) => Standing::Ok,
    };
    Ok(Some(TenantNow {
        state: Some(State {
            about: About::Tenant(count),
            standing,
            revision: owner.hash.map(|_| revision),
            tenant: Some(owner.tenant),
        }),
        slug,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_number(last: u64) -> Touches {
        Touches {
            numbers: BTreeSet::from([format!("+1415{:07}", last).parse().unwrap()]),
            ..Touches::default()
        }
    }

    #[test]
    fn touches_add_up_until_there_are_too_many_to_name() {
        let bell = Bell::default();
        bell.listen(true);
        bell.ring(|| of_number(1));
        bell.ring(|| of_number(2));
        assert_eq!(bell.take().numbers.len(), 2);
        assert_eq!(bell.take(), Touches::default());
        for last in 0..=10_000 {
            bell.ring(|| of_number(last));
        }
        bell.ring(|| of_number(7));
        assert_eq!(bell.take(), Touches::all());
    }

    #[test]
    fn what_nobody_wants_to_know_is_not_kept() {
        let bell = Bell::default();
        bell.ring(|| panic!("is not even made"));
        bell.listen(true);
        bell.ring(|| of_number(1));
        bell.listen(false);
        assert_eq!(bell.take(), Touches::default());
    }
}
