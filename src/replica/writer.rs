//! One batch on its way into the replica: rows admitted one by one, what did not come removed or held back.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::ReadableTable;
use uuid::Uuid;

use super::suspect::{Hand, InHand, Marker, Version};
use super::{
    Applied, HeldLoss, Key, NAMED, REPORTED, ReplicaError, Terms, What, index_key, number_value,
    open_number, open_tenant, seal, split_index, tenant_aad,
};
use crate::admit;
use crate::change;
use crate::number::E164;
use crate::row::{DocHash, Fault, NumberRecord, Reason, Table, TenantRecord};
use crate::seal::DataKey;
use crate::source::Row;

type WriteTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// One batch being written.
pub(super) struct Writer<'t, 'r> {
    pub(super) numbers: WriteTable<'t>,
    pub(super) tenants: WriteTable<'t>,
    pub(super) index: WriteTable<'t>,
    pub(super) faulty: WriteTable<'t>,
    pub(super) key: &'r DataKey,
    pub(super) marker: &'r Marker,
    /// Whether each row is noted while it is in hand.
    pub(super) names_each: bool,
    pub(super) terms: &'r Terms,
    /// Where no number was here before this batch and they come in byte order: the last one.
    pub(super) last_new: Option<String>,
    pub(super) applied: Applied,
    /// The tenant whose numbers come now, and those that came.
    pub(super) group: Option<(Uuid, BTreeSet<String>)>,
    pub(super) finished: BTreeSet<Uuid>,
    pub(super) seen_tenants: BTreeSet<Uuid>,
    pub(super) seen_numbers: BTreeSet<String>,
    /// Numbers that are to go, with the tenant they must still belong to then.
    pub(super) gone: BTreeSet<(Option<Uuid>, String)>,
}

impl Writer<'_, '_> {
    /// Takes the rows that came together.
    pub(super) fn chunk(&mut self, rows: Vec<Row>) -> Result<(), ReplicaError> {
        self.names_each = self.marker.names_each(Hand::Applying, rows.len());
        rows.into_iter().try_for_each(|row| self.take(row))?;
        self.marker.take(Hand::Applying, InHand::Rows);
        Ok(())
    }

    /// Says that this row is in hand. Whether it is to be set aside instead.
    fn in_hand(&self, row: &Version) -> bool {
        self.marker.forget(&row.key, Some(row.hash));
        if self.marker.holds(row, self.terms.tries_suspects) {
            return true;
        }
        if self.names_each {
            self.marker.take(Hand::Applying, InHand::Row(row.clone()));
        }
        false
    }

    /// Whether a row that is here already, with these faults, needs nothing more: it does not come to be tried, and where
    /// it is set aside, that is still to be so.
    fn is_settled(&self, row: &Version, faults: &[Fault]) -> bool {
        let tries = self.terms.tries_suspects;
        let holds = self.marker.holds(row, tries);
        let tried = tries && self.marker.suspects(row) && !holds;
        !tried && (holds || !admit::is_set_aside(faults))
    }

    fn take(&mut self, row: Row) -> Result<(), ReplicaError> {
        self.applied.read = self.applied.read.saturating_add(1);
        match row {
            Row::Tenant { id, document } => self.tenant(id, &document),
            Row::Number {
                tenant,
                e164,
                document,
            } => self.number(tenant, &e164, &document),
        }
    }

    fn tenant(&mut self, id: Uuid, document: &str) -> Result<(), ReplicaError> {
        if self.terms.cover.tenants.contains(&id) {
            self.seen_tenants.insert(id);
        }
        let was = match tried!(
            "reading a tenant",
            self.tenants.get(id.as_bytes().as_slice())
        )? {
            Some(value) => Some(open_tenant(self.key, id, value.value())),
            None => None,
        };
        let row = Version {
            key: Key::Tenant(id),
            hash: DocHash::of(document),
        };
        if let Some(Ok(was)) = &was
            && was.hash == row.hash
            && self.is_settled(&row, &was.faults)
        {
            return Ok(());
        }
        let what = if was.is_some() {
            What::Different
        } else {
            What::Missing
        };
        let was = was.and_then(Result::ok);
        let limits = &self.terms.limits;
        let record = if self.in_hand(&row) {
            admit::tenant_set_aside(id, row.hash, was.as_ref())
        } else {
            unpanicked(|| admit::tenant(id, document, was.as_ref(), limits)).unwrap_or_else(|| {
                TenantRecord {
                    hash: row.hash,
                    faults: vec![poison(Table::Tenants, id.to_string(), was.is_some())],
                    before: was.as_ref().and_then(|was| was.before.clone()),
                    bundle: was.map(|was| was.bundle).unwrap_or_default(),
                }
            })
        };
        let sealed = seal(self.key, &tenant_aad(id), &record)?;
        tried!(
            "writing a tenant",
            self.tenants
                .insert(id.as_bytes().as_slice(), sealed.as_slice())
        )?;
        self.applied.tenants.insert(id);
        self.wrote(Key::Tenant(id), what, None);
        Ok(())
    }

    fn number(&mut self, tenant: Uuid, e164: &str, document: &str) -> Result<(), ReplicaError> {
        self.saw_number(tenant, e164)?;
        let hash = DocHash::of(document);
        let is_new = self.is_new(e164);
        let was = match is_new {
            true => None,
            false => tried!("reading a number", self.numbers.get(e164.as_bytes()))?
                .map(|value| open_number(self.key, e164, value.value())),
        };
        let row = Version {
            key: Key::Number(e164.to_owned()),
            hash,
        };
        if let Some(Ok(was)) = &was
            && was.tenant == tenant
            && was.record.hash == hash
            && self.is_settled(&row, &was.record.faults)
        {
            return Ok(());
        }
        let what = if was.is_some() {
            What::Different
        } else {
            What::Missing
        };
        // Last good is of the same key: a number that moved to another tenant does not take its old row along.
        let was_good = was.and_then(Result::ok);
        if let Some(was) = &was_good
            && was.tenant != tenant
        {
            self.applied.owners.insert(was.tenant);
            tried!(
                "writing a number",
                self.index.remove(index_key(was.tenant, e164).as_slice())
            )?;
        }
        let previous = was_good
            .as_ref()
            .filter(|was| was.tenant == tenant)
            .map(|was| &was.record);
        let record = if self.in_hand(&row) {
            admit::number_set_aside(e164, hash, previous)
        } else {
            unpanicked(|| admit::number_of_hash(e164, hash, document, previous)).unwrap_or_else(
                || NumberRecord {
                    hash,
                    row: previous.and_then(|was| was.row.clone()),
                    faults: vec![poison(
                        Table::TenantPhoneNumbers,
                        e164.to_owned(),
                        previous.is_some(),
                    )],
                    before: previous.and_then(|was| was.before.clone()),
                },
            )
        };
        let value = number_value(self.key, tenant, e164, &record)?;
        tried!(
            "writing a number",
            self.numbers.insert(e164.as_bytes(), value.as_slice())
        )?;
        tried!(
            "writing a number",
            self.index
                .insert(index_key(tenant, e164).as_slice(), hash.0.as_slice())
        )?;
        if !(is_new && record.faults.is_empty()) {
            self.faults(e164, record.faults)?;
        }
        self.applied.owners.insert(tenant);
        self.changed_number(e164);
        self.wrote(row.key, what, Some(tenant));
        Ok(())
    }

    /// Whether this number cannot be here: the batch began with none, and those before it in the batch are smaller.
    fn is_new(&mut self, e164: &str) -> bool {
        let Some(last) = &mut self.last_new else {
            return false;
        };
        if last.as_str() < e164 {
            e164.clone_into(last);
            return true;
        }
        self.last_new = None;
        false
    }

    /// Keeps account of which numbers of a tenant came, tenant by tenant.
    fn saw_number(&mut self, tenant: Uuid, e164: &str) -> Result<(), ReplicaError> {
        if self.terms.cover.numbers.contains(e164) {
            self.seen_numbers.insert(e164.to_owned());
        }
        match &mut self.group {
            Some((of, seen)) if *of == tenant => {
                seen.insert(e164.to_owned());
            }
            _ => {
                self.close_group()?;
                if self.terms.cover.numbers_of.contains(&tenant) && !self.finished.contains(&tenant)
                {
                    self.group = Some((tenant, BTreeSet::from([e164.to_owned()])));
                }
            }
        }
        Ok(())
    }

    fn close_group(&mut self) -> Result<(), ReplicaError> {
        if let Some((tenant, seen)) = self.group.take() {
            self.numbers_gone(tenant, &seen)?;
            self.finished.insert(tenant);
        }
        Ok(())
    }

    /// Numbers of a tenant that are here and did not come.
    fn numbers_gone(&mut self, tenant: Uuid, seen: &BTreeSet<String>) -> Result<(), ReplicaError> {
        let first = index_key(tenant, "");
        for entry in tried!("reading numbers", self.index.range(first.as_slice()..))? {
            let (key, _) = tried!("reading numbers", entry)?;
            match split_index(key.value()) {
                Some((of, e164)) if of == tenant => {
                    if !seen.contains(e164) {
                        self.gone.insert((Some(tenant), e164.to_owned()));
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, before: (u64, u64)) -> Result<Applied, ReplicaError> {
        self.close_group()?;
        let none = BTreeSet::new();
        let cover = &self.terms.cover;
        let mut gone_tenants = Vec::new();
        for id in cover.tenants.difference(&self.seen_tenants.clone()) {
            if tried!(
                "reading a tenant",
                self.tenants.get(id.as_bytes().as_slice())
            )?
            .is_some()
            {
                gone_tenants.push(*id);
                // No number answers without its tenant; one that moved on belongs to another by now.
                self.numbers_gone(*id, &none)?;
            }
        }
        for id in cover.numbers_of.difference(&self.finished.clone()) {
            self.numbers_gone(*id, &none)?;
        }
        for e164 in cover.numbers.difference(&self.seen_numbers.clone()) {
            self.gone.insert((None, e164.clone()));
        }
        let gone = self.still_there()?;
        let lost = (count(gone_tenants.len()), count(gone.len()));
        let held = change::holds_loss(lost.0, before.0, self.terms.hold_percent)
            || change::holds_loss(lost.1, before.1, self.terms.hold_percent);
        if held && !self.terms.accept_loss {
            self.applied.held = Some(HeldLoss {
                tenants: lost.0,
                numbers: lost.1,
            });
            return Ok(self.applied);
        }
        for (tenant, e164) in gone {
            tried!("removing a number", self.numbers.remove(e164.as_bytes()))?;
            tried!(
                "removing a number",
                self.index.remove(index_key(tenant, &e164).as_slice())
            )?;
            self.faults(&e164, Vec::new())?;
            self.marker.forget(&Key::Number(e164.clone()), None);
            self.applied.owners.insert(tenant);
            self.changed_number(&e164);
            self.removed(Key::Number(e164), Some(tenant));
        }
        for id in gone_tenants {
            tried!(
                "removing a tenant",
                self.tenants.remove(id.as_bytes().as_slice())
            )?;
            self.marker.forget(&Key::Tenant(id), None);
            self.applied.tenants.insert(id);
            self.removed(Key::Tenant(id), None);
        }
        Ok(self.applied)
    }

    /// The numbers that are to go and are here, under the tenant they are to go from.
    fn still_there(&mut self) -> Result<BTreeSet<(Uuid, String)>, ReplicaError> {
        let mut there = BTreeSet::new();
        for (from, e164) in std::mem::take(&mut self.gone) {
            let tenant = match tried!("reading a number", self.numbers.get(e164.as_bytes()))? {
                Some(value) => value
                    .value()
                    .get(..16)
                    .and_then(|id| Uuid::from_slice(id).ok()),
                None => None,
            };
            match (tenant, from) {
                (Some(tenant), None) => {
                    there.insert((tenant, e164));
                }
                (Some(tenant), Some(from)) if tenant == from => {
                    there.insert((tenant, e164));
                }
                // It moved on: only its old place in the index goes.
                (_, Some(from)) => {
                    tried!(
                        "removing a number",
                        self.index.remove(index_key(from, &e164).as_slice())
                    )?;
                }
                (None, None) => {}
            }
        }
        Ok(there)
    }

    fn faults(&mut self, e164: &str, faults: Vec<Fault>) -> Result<(), ReplicaError> {
        let was_faulty = tried!("reading faults", self.faulty.get(e164.as_bytes()))?.is_some();
        if faults.is_empty() && !was_faulty {
            return Ok(());
        }
        if faults.is_empty() {
            tried!("writing faults", self.faulty.remove(e164.as_bytes()))?;
        } else {
            tried!(
                "writing faults",
                self.faulty.insert(e164.as_bytes(), [].as_slice())
            )?;
        }
        self.applied
            .faults
            .extend(e164.parse().ok().map(|number| (number, faults)));
        Ok(())
    }

    fn changed_number(&mut self, e164: &str) {
        if self.applied.numbers.len() < NAMED {
            self.applied.numbers.extend(e164.parse::<E164>().ok());
        } else {
            self.applied.everything = true;
        }
    }

    fn wrote(&mut self, key: Key, what: What, tenant: Option<Uuid>) {
        self.applied.written = self.applied.written.saturating_add(1);
        self.report(key, what, tenant);
    }

    fn removed(&mut self, key: Key, tenant: Option<Uuid>) {
        self.applied.removed = self.applied.removed.saturating_add(1);
        self.report(key, What::Surplus, tenant);
    }

    fn report(&mut self, key: Key, what: What, tenant: Option<Uuid>) {
        let told = &self.terms.told;
        let was_told = match &key {
            Key::Tenant(id) => told.tenants.contains(id),
            Key::Number(e164) => {
                told.numbers.contains(e164)
                    || tenant.is_some_and(|id| told.numbers_of.contains(&id))
            }
        };
        if !was_told {
            self.applied.untold = self.applied.untold.saturating_add(1);
        }
        if self.applied.differences.len() < REPORTED {
            self.applied.differences.push((key, what));
        }
    }
}

/// Poison stays in its row, even one that we do not foresee.
pub(crate) fn unpanicked<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

pub(crate) fn poison(table: Table, key: String, last_good: bool) -> Fault {
    let detail =
        "reading the row failed in a way that is an error of sidetone; please report it".to_owned();
    Fault {
        table,
        key,
        reason: Reason::Malformed,
        detail,
        last_good,
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
