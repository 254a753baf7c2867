//! All numbers in byte order, beside those that are here in the same order: what is passed over did not come.
//!
//! Each is read once and written where the one before it was. The index stands in another order: what it gets is sorted
//! by the piece, so that memory is bounded and its pages are gone through in turn.

use std::cmp::Ordering;
use std::ops::Bound;

use redb::{AccessGuard, CursorError};
use smallvec::SmallVec;

use super::writer::WriteTable;
use super::{ReadTable, ReplicaError};

pub(super) type Bytes = AccessGuard<'static, &'static [u8]>;
type Entry = (Bytes, Bytes);

/// The numbers as they were before the batch, as far as they are not passed yet.
pub(super) struct Here {
    rest: redb::Range<'static, &'static [u8], &'static [u8]>,
    next: Option<Entry>,
    /// The last one that came.
    last: Vec<u8>,
}

/// How a number that comes stands to those before it.
pub(super) enum Place {
    /// After all that came. What is here under it, and what it passed.
    Next(Option<Bytes>),
    /// Not after all that came: what stands here is no longer told by the order.
    OutOfOrder,
}

impl Here {
    pub(super) fn new(numbers: &ReadTable) -> Result<Self, ReplicaError> {
        let mut here = Self {
            rest: tried!("reading numbers", numbers.range::<&[u8]>(..))?,
            next: None,
            last: Vec::new(),
        };
        here.step()?;
        Ok(here)
    }

    fn step(&mut self) -> Result<(), ReplicaError> {
        self.next = self
            .rest
            .next()
            .map(|entry| tried!("reading numbers", entry))
            .transpose()?;
        Ok(())
    }

    /// Goes on to a number that came; `passed` is told of those that did not.
    pub(super) fn reach(
        &mut self,
        e164: &[u8],
        mut passed: impl FnMut(&[u8], &[u8]),
    ) -> Result<Place, ReplicaError> {
        if !self.last.is_empty() && self.last.as_slice() >= e164 {
            return Ok(Place::OutOfOrder);
        }
        self.last.clear();
        self.last.extend_from_slice(e164);
        while let Some((key, value)) = &self.next {
            match key.value().cmp(e164) {
                Ordering::Less => passed(key.value(), value.value()),
                Ordering::Equal => {
                    let found = self.next.take().map(|(_, value)| value);
                    self.step()?;
                    return Ok(Place::Next(found));
                }
                Ordering::Greater => break,
            }
            self.step()?;
        }
        Ok(Place::Next(None))
    }

    /// All came.
    pub(super) fn end(mut self, mut passed: impl FnMut(&[u8], &[u8])) -> Result<(), ReplicaError> {
        while let Some((key, value)) = &self.next {
            passed(key.value(), value.value());
            self.step()?;
        }
        Ok(())
    }
}

/// An entry to be written, and whether none stands under its key; without a value it is to go.
pub(super) struct Put {
    key: SmallVec<[u8; 36]>,
    value: Option<SmallVec<[u8; 32]>>,
    is_new: bool,
}

impl Put {
    pub(super) fn new(key: &[&[u8]], value: SmallVec<[u8; 32]>, is_new: bool) -> Self {
        Self {
            value: Some(value),
            is_new,
            ..Self::gone(key)
        }
    }

    pub(super) fn gone(key: &[&[u8]]) -> Self {
        let mut joined = SmallVec::new();
        key.iter().for_each(|part| joined.extend_from_slice(part));
        Self {
            key: joined,
            value: None,
            is_new: false,
        }
    }
}

/// Writes entries of different keys in their order.
pub(super) fn put_sorted(
    table: &mut WriteTable<'_>,
    mut entries: Vec<Put>,
) -> Result<(), ReplicaError> {
    entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    put_all(table, &entries)
}

/// Writes entries, fastest where they ascend: new ones that come to stand side by side are written as one.
pub(super) fn put_all(table: &mut WriteTable<'_>, entries: &[Put]) -> Result<(), ReplicaError> {
    let mut rest = entries;
    while let [first, ..] = rest {
        let mut written = 0;
        if first.is_new {
            let at = Bound::Included(first.key.as_slice());
            let mut cursor = tried!("writing", table.lower_bound_mut(at))?;
            for put in rest.iter().take_while(|put| put.is_new) {
                let Some(value) = &put.value else { break };
                match cursor.insert_before(put.key.as_slice(), value.as_slice()) {
                    Err(CursorError::UnorderedKey) => break,
                    done => tried!("writing", done)?,
                }
                written = usize::saturating_add(written, 1);
            }
            tried!("writing", cursor.close())?;
        }
        if written == 0 {
            let key = first.key.as_slice();
            match &first.value {
                Some(value) => tried!("writing", table.insert(key, value.as_slice()))?,
                None => tried!("writing", table.remove(key))?,
            };
            written = 1;
        }
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}
