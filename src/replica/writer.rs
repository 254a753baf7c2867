//! One batch on its way into the replica: rows admitted one by one, what did not come removed or held back.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{Scope, ScopedJoinHandle};

use redb::ReadableTable;
use uuid::Uuid;

use super::ordered::{Here, Place, Put, put_all, put_sorted};
use super::suspect::{Hand, InHand, Marker, Version};
use super::{
    Applied, FoundNumber, HeldLoss, Key, NAMED, REPORTED, ReplicaError, Terms, What, index_key,
    number_value, open_number, open_tenant, owner, seal, split_index, split_number, tenant_aad,
};
use crate::admit;
use crate::change;
use crate::number::E164;
use crate::row::{DocHash, Fault, NumberRecord, Reason, Table, TenantRecord};
use crate::seal::DataKey;
use crate::source::Row;

pub(super) type WriteTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// Entries of the index that are sorted and written at a time: about 8 MB.
const PIECE: usize = if cfg!(test) { 2 } else { 64 * 1024 };

/// One batch being written.
pub(super) struct Writer<'s, 't, 'r> {
    pub(super) numbers: WriteTable<'t>,
    pub(super) tenants: WriteTable<'t>,
    pub(super) index: Index<'s, 't>,
    /// Where a piece of the index is written while numbers come.
    pub(super) beside: &'s Scope<'s, 't>,
    pub(super) faulty: WriteTable<'t>,
    pub(super) key: &'r DataKey,
    pub(super) marker: &'r Marker,
    /// Whether each row is noted while it is in hand.
    pub(super) names_each: bool,
    pub(super) terms: &'r Terms,
    /// Where all numbers come, in byte order: those that are here, and what is still to be written.
    pub(super) here: Option<Here>,
    pub(super) numbers_to_put: Vec<Put>,
    pub(super) index_to_put: Vec<Put>,
    /// Whether no row is set aside or under suspicion: then one with the hash of its document needs nothing more.
    pub(super) at_peace: bool,
    pub(super) usual: admit::Usual,
    pub(super) applied: Applied,
    /// The tenant whose numbers come now, and those that came.
    pub(super) group: Option<(Uuid, BTreeSet<String>)>,
    pub(super) finished: BTreeSet<Uuid>,
    pub(super) seen_tenants: BTreeSet<Uuid>,
    pub(super) seen_numbers: BTreeSet<String>,
    /// Numbers that are to go, with the tenant they must still belong to then.
    pub(super) gone: BTreeSet<(Option<Uuid>, String)>,
}

impl<'s, 't: 's> Writer<'s, 't, '_> {
    /// Takes the rows that came together.
    pub(super) fn chunk(&mut self, rows: Vec<Row>) -> Result<(), ReplicaError> {
        self.names_each = self.marker.names_each(Hand::Applying, rows.len());
        rows.into_iter().try_for_each(|row| self.take(row))?;
        self.marker.take(Hand::Applying, InHand::Rows);
        self.put_numbers()
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
            } => {
                let hash = DocHash::of(&document);
                self.number((tenant, &e164, hash), None, || Cow::Borrowed(&document))
            }
            Row::Columns(row) => {
                self.number((row.tenant(), row.e164(), row.hash()), row.plain(), || {
                    Cow::Owned(row.document())
                })
            }
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

    /// `read` is what the document says, where that is known already.
    fn number<'d>(
        &mut self,
        (tenant, e164, hash): (Uuid, &str, DocHash),
        read: Option<admit::Plain<'_>>,
        document: impl FnOnce() -> Cow<'d, str>,
    ) -> Result<(), ReplicaError> {
        self.saw_number(tenant, e164)?;
        let was = match self.standing(tenant, e164, hash)? {
            Standing::Same => return Ok(()),
            Standing::New => None,
            Standing::Other(was) => Some(was),
        };
        let row = || Version {
            key: Key::Number(e164.to_owned()),
            hash,
        };
        if let Some(Ok(was)) = &was
            && was.tenant == tenant
            && was.record.hash == hash
            && self.is_settled(&row(), &was.record.faults)
        {
            return Ok(());
        }
        let is_new = was.is_none();
        let what = if is_new {
            What::Missing
        } else {
            What::Different
        };
        // Last good is of the same key: a number that moved to another tenant does not take its old row along.
        let was_good = was.and_then(Result::ok);
        let stays = was_good.as_ref().is_some_and(|was| was.tenant == tenant);
        if let Some(was) = &was_good
            && !stays
        {
            self.applied.owners.insert(was.tenant);
            let key = [was.tenant.as_bytes().as_slice(), e164.as_bytes()];
            self.index_to_put.push(Put::gone(&key));
        }
        let previous = was_good.as_ref().filter(|_| stays).map(|was| &was.record);
        // Of many rows with nothing known against any, none is named.
        let is_named = self.names_each || !self.at_peace;
        let record = if is_named && self.in_hand(&row()) {
            admit::number_set_aside(e164, hash, previous)
        } else {
            let usual = &mut self.usual;
            unpanicked(|| admit::number_of_hash(e164, hash, read, document, previous, usual))
                .unwrap_or_else(|| NumberRecord {
                    hash,
                    row: previous.and_then(|was| was.row.clone()),
                    faults: vec![poison(
                        Table::TenantPhoneNumbers,
                        e164.to_owned(),
                        previous.is_some(),
                    )],
                    before: previous.and_then(|was| was.before.clone()),
                })
        };
        let value = number_value(self.key, tenant, e164, &record)?;
        self.put_number(tenant, e164, value, hash, (is_new, !stays))?;
        if !(is_new && record.faults.is_empty()) {
            self.faults(e164, record.faults)?;
        }
        self.applied.owners.insert(tenant);
        self.changed_number(e164);
        self.wrote(row().key, what, Some(tenant));
        Ok(())
    }

    /// What is here under a number that came.
    fn standing(
        &mut self,
        tenant: Uuid,
        e164: &str,
        hash: DocHash,
    ) -> Result<Standing, ReplicaError> {
        let found = match &mut self.here {
            None => return self.looked_up(e164),
            Some(here) => {
                let gone = &mut self.gone;
                here.reach(e164.as_bytes(), |key, value| {
                    gone.extend(passed(key, value));
                })?
            }
        };
        match found {
            Place::Next(None) => Ok(Standing::New),
            Place::Next(Some(value)) => {
                let known = split_number(value.value());
                let same = known.is_some_and(|(of, is, _)| (of, is) == (tenant, Some(hash)));
                if same && self.is_at_peace(e164)? {
                    return Ok(Standing::Same);
                }
                Ok(Standing::Other(open_number(self.key, e164, value.value())))
            }
            // Who sorts them otherwise is believed as well, only slower.
            Place::OutOfOrder => {
                self.put_numbers()?;
                self.put_index()?;
                if let Some(was) = tried!("reading a number", self.numbers.get(e164.as_bytes()))? {
                    self.gone.remove(&(owner(was.value()), e164.to_owned()));
                }
                self.looked_up(e164)
            }
        }
    }

    fn looked_up(&self, e164: &str) -> Result<Standing, ReplicaError> {
        Ok(
            match tried!("reading a number", self.numbers.get(e164.as_bytes()))? {
                Some(value) => Standing::Other(open_number(self.key, e164, value.value())),
                None => Standing::New,
            },
        )
    }

    /// Whether nothing is known against a number's row.
    fn is_at_peace(&self, e164: &str) -> Result<bool, ReplicaError> {
        Ok(self.at_peace && tried!("reading faults", self.faulty.get(e164.as_bytes()))?.is_none())
    }

    /// Whether numbers and index have none under the key.
    fn put_number(
        &mut self,
        tenant: Uuid,
        e164: &str,
        value: Vec<u8>,
        hash: DocHash,
        (new_number, new_in_index): (bool, bool),
    ) -> Result<(), ReplicaError> {
        let number = Put::new(&[e164.as_bytes()], value.into(), new_number);
        let key = [tenant.as_bytes().as_slice(), e164.as_bytes()];
        self.numbers_to_put.push(number);
        self.index_to_put
            .push(Put::new(&key, hash.0.into(), new_in_index));
        if self.here.is_none() {
            // What comes next may be the same number again.
            self.put_numbers()?;
            self.put_index()?;
        } else if self.index_to_put.len() >= PIECE {
            self.put_index_beside()?;
        }
        Ok(())
    }

    fn put_numbers(&mut self) -> Result<(), ReplicaError> {
        put_all(&mut self.numbers, &self.numbers_to_put)?;
        self.numbers_to_put.clear();
        Ok(())
    }

    fn put_index(&mut self) -> Result<(), ReplicaError> {
        let puts = take(&mut self.index_to_put);
        put_sorted(self.index.here()?, puts)
    }

    /// The index stands in another order than numbers come: it gets them by the piece, while the next ones come.
    fn put_index_beside(&mut self) -> Result<(), ReplicaError> {
        let puts = take(&mut self.index_to_put);
        self.index.here()?;
        if let Index::Here(mut table) = std::mem::replace(&mut self.index, Index::Lost) {
            let write = move || put_sorted(&mut table, puts).map(|()| table);
            self.index = Index::Beside(self.beside.spawn(write));
        }
        Ok(())
    }

    /// Keeps account of which numbers of a tenant came, tenant by tenant.
    fn saw_number(&mut self, tenant: Uuid, e164: &str) -> Result<(), ReplicaError> {
        if self.here.is_some() {
            return Ok(());
        }
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
        for entry in tried!(
            "reading numbers",
            self.index.here()?.range(first.as_slice()..)
        )? {
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
        self.put_numbers()?;
        self.put_index()?;
        if let Some(here) = self.here.take() {
            let gone = &mut self.gone;
            here.end(|key, value| gone.extend(passed(key, value)))?;
        }
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
                self.index
                    .here()?
                    .remove(index_key(tenant, &e164).as_slice())
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
        for (from, e164) in take(&mut self.gone) {
            let tenant = match tried!("reading a number", self.numbers.get(e164.as_bytes()))? {
                Some(value) => owner(value.value()),
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
                        self.index.here()?.remove(index_key(from, &e164).as_slice())
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
            self.applied.all_numbers = true;
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

/// The table `index`, and who has it.
pub(super) enum Index<'s, 't> {
    Here(WriteTable<'t>),
    Beside(ScopedJoinHandle<'s, Result<WriteTable<'t>, ReplicaError>>),
    /// Writing it failed, and the batch with it.
    Lost,
}

impl<'t> Index<'_, 't> {
    /// The table, once it is written to by nobody.
    fn here(&mut self) -> Result<&mut WriteTable<'t>, ReplicaError> {
        *self = match std::mem::replace(self, Self::Lost) {
            Self::Beside(writing) => Self::Here(
                writing
                    .join()
                    .unwrap_or_else(|panic| resume_unwind(panic))?,
            ),
            known => known,
        };
        match self {
            Self::Here(table) => Ok(table),
            _ => Err(ReplicaError::Abandoned),
        }
    }
}

/// How a number that came stands to what is here.
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, and most of a catch-up are of the large one"
)]
enum Standing {
    New,
    /// Here already, and nothing is known against it.
    Same,
    Other(Result<FoundNumber, ReplicaError>),
}

/// A number that did not come where all do, with its tenant.
fn passed(key: &[u8], value: &[u8]) -> Option<(Option<Uuid>, String)> {
    let e164 = std::str::from_utf8(key).ok()?;
    Some((Some(owner(value)?), e164.to_owned()))
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
