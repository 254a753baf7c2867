//! Replica and database side by side, by hash: what differs is read anew, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use redb::ReadableTableMetadata;
use uuid::Uuid;

use super::{Cover, ReplicaError, View, index_key, split_index};
use crate::row::DocHash;
use crate::source::TenantDigest;

/// What is compared of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// Of the tenant's document; `None` where there is none, or it no longer opens.
    pub rows: Option<DocHash>,
    /// How many numbers it has.
    pub count: u64,
    /// Of the hashes of its numbers, in their byte order.
    pub numbers: DocHash,
}

/// The tenants and tenants' numbers that differ, from the hashes of both sides.
#[derive(Debug, Default)]
pub struct Comparison {
    here: BTreeMap<Uuid, Hashes>,
    seen_rows: BTreeSet<Uuid>,
    seen_numbers: BTreeSet<Uuid>,
    /// What differs.
    pub cover: Cover,
    /// Tenants compared.
    pub tenants: u64,
    /// Numbers compared.
    pub numbers: u64,
    /// Whether any tenant of Postgres is known here.
    pub common: bool,
}

impl Comparison {
    /// Begins with what is here.
    #[must_use]
    pub fn new(here: BTreeMap<Uuid, Hashes>) -> Self {
        Self {
            here,
            ..Self::default()
        }
    }

    /// Takes one hash of Postgres.
    pub fn take(&mut self, id: Uuid, digest: TenantDigest) {
        let here = self.here.get(&id);
        match digest {
            TenantDigest::Rows(hash) => {
                self.tenants = self.tenants.saturating_add(1);
                self.seen_rows.insert(id);
                self.common |= here.is_some();
                if here.and_then(|here| here.rows) != Some(hash) {
                    self.cover.tenants.insert(id);
                }
            }
            TenantDigest::Numbers { count, hash } => {
                self.numbers = self.numbers.saturating_add(count);
                self.seen_numbers.insert(id);
                if here.is_none_or(|here| (here.count, here.numbers) != (count, hash)) {
                    self.cover.numbers_of.insert(id);
                }
            }
        }
    }

    /// Adds what is here and not in Postgres.
    #[must_use]
    pub fn finish(mut self) -> Self {
        for (id, here) in &self.here {
            if !self.seen_rows.contains(id) && here.rows.is_some() {
                self.cover.tenants.insert(*id);
            }
            if !self.seen_numbers.contains(id) && here.count > 0 {
                self.cover.numbers_of.insert(*id);
            }
        }
        self.common |= self.here.is_empty();
        self
    }
}

impl View<'_> {
    /// Calls `each` with the numbers of a tenant in their byte order, the hash of each one's row, and whether that row
    /// is quarantined.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn each_number_of(
        &self,
        tenant: Uuid,
        mut each: impl FnMut(&str, &[u8], bool),
    ) -> Result<(), ReplicaError> {
        let any_faulty = !tried!("reading faults", self.faulty.is_empty())?;
        let first = index_key(tenant, "");
        for entry in tried!("reading numbers", self.index.range(first.as_slice()..))? {
            let (key, hash) = tried!("reading numbers", entry)?;
            let Some((_, e164)) = split_index(key.value()).filter(|(of, _)| *of == tenant) else {
                break;
            };
            let is_faulty =
                any_faulty && tried!("reading faults", self.faulty.get(e164.as_bytes()))?.is_some();
            each(e164, hash.value(), is_faulty);
        }
        Ok(())
    }
}
