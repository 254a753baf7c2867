//! The short form of a number's record that has nothing unusual about it: most of the file is this.
//!
//! One byte that no JSON begins with, the row, and the row before it where there is one. A row is id and tenant, whether it
//! answers and which texts it has, then the texts, each after its length in two bytes. The number itself is the key, and
//! the hash stands beside the record; in the form before this one it came first. Everything else is kept as JSON.

use uuid::Uuid;

use crate::row::{DocHash, Number, NumberRecord};

const MARK_WITH_HASH: u8 = 1;
const MARK: u8 = 2;
const ACTIVE: u8 = 1;
const LABEL: u8 = 2;
const VOICE: u8 = 4;

/// Whether a record is of this form.
pub(super) fn is_plain(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(&(MARK | MARK_WITH_HASH)))
}

/// `None` where the record has what this form has no place for.
pub(super) fn write(e164: &str, record: &NumberRecord) -> Option<Vec<u8>> {
    let NumberRecord {
        hash: _,
        row: Some(row),
        faults,
        before,
    } = record
    else {
        return None;
    };
    if !faults.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(192);
    bytes.push(MARK);
    for row in [Some(row), before.as_deref()].into_iter().flatten() {
        write_row(e164, row, &mut bytes)?;
    }
    Some(bytes)
}

fn write_row(e164: &str, row: &Number, bytes: &mut Vec<u8>) -> Option<()> {
    let Number {
        id,
        tenant_id,
        e164: of,
        label,
        default_language,
        default_voice,
        timezone,
        active,
    } = row;
    if of.as_str() != e164 {
        return None;
    }
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    bytes.extend_from_slice(id.as_bytes());
    bytes.extend_from_slice(tenant_id.as_bytes());
    bytes.push(
        flag(*active, ACTIVE) | flag(label.is_some(), LABEL) | flag(default_voice.is_some(), VOICE),
    );
    let texts = [
        Some(default_language),
        Some(timezone),
        label.as_ref(),
        default_voice.as_ref(),
    ];
    for text in texts.into_iter().flatten() {
        bytes.extend_from_slice(&u16::try_from(text.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    Some(())
}

/// The record; `None` where the bytes are not what [`write`] writes. `hash` is what stands beside it.
pub(super) fn read(e164: &str, hash: Option<DocHash>, bytes: &[u8]) -> Option<NumberRecord> {
    let (hash, mut rest) = match (bytes.split_first()?, hash) {
        ((&MARK, rest), Some(hash)) => (hash, rest),
        ((&MARK_WITH_HASH, rest), None) => {
            let (hash, rest) = rest.split_first_chunk::<32>()?;
            (DocHash(*hash), rest)
        }
        _ => return None,
    };
    let row = read_row(e164, &mut rest)?;
    let before = if rest.is_empty() {
        None
    } else {
        Some(Box::new(read_row(e164, &mut rest)?))
    };
    rest.is_empty().then_some(NumberRecord {
        hash,
        row: Some(row),
        faults: Vec::new(),
        before,
    })
}

fn read_row(e164: &str, rest: &mut &[u8]) -> Option<Number> {
    let (id, after) = rest.split_first_chunk::<16>()?;
    let (tenant_id, after) = after.split_first_chunk::<16>()?;
    let (flags, after) = after.split_first()?;
    *rest = after;
    let mut text = || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        *rest = after;
        std::str::from_utf8(text).ok().map(str::to_owned)
    };
    let (default_language, timezone) = (text()?, text()?);
    let mut text_if = |flag: u8| match flags & flag {
        0 => Some(None),
        _ => text().map(Some),
    };
    let (label, default_voice) = (text_if(LABEL)?, text_if(VOICE)?);
    Some(Number {
        id: Uuid::from_bytes(*id),
        tenant_id: Uuid::from_bytes(*tenant_id),
        e164: e164.parse().ok()?,
        label,
        default_language,
        default_voice,
        timezone,
        active: flags & ACTIVE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{ACME_NUMBER, admit_number, number_document};

    /// The example's number, and others with and without each text.
    fn records() -> impl Iterator<Item = NumberRecord> {
        (0..8).map(|which| {
            let mut document = number_document(ACME_NUMBER);
            document["active"] = (which & 1 != 0).into();
            for (bit, column) in [(2, "label"), (4, "default_voice")] {
                document[column] = if which & bit == 0 {
                    serde_json::Value::Null
                } else {
                    "Línea 1".into()
                };
            }
            admit_number(&document)
        })
    }

    #[test]
    fn a_record_reads_back_as_it_was_written_and_cut_or_longer_it_is_none() {
        let replaced = records()
            .zip(records().skip(1))
            .map(|(mut record, before)| {
                record.before = before.row.map(Box::new);
                record
            });
        let rows = |record: &NumberRecord| 1 + usize::from(record.before.is_some());
        for record in records().chain(replaced) {
            let read = |bytes: &[u8]| read(ACME_NUMBER, Some(record.hash), bytes);
            let bytes = write(ACME_NUMBER, &record).unwrap();
            assert!(bytes.len() < 120 * rows(&record), "{}", bytes.len());
            assert!(is_plain(&bytes));
            assert_eq!(read(&bytes).as_ref(), Some(&record));
            let whole = write(
                ACME_NUMBER,
                &NumberRecord {
                    before: None,
                    ..record.clone()
                },
            );
            for end in (0..bytes.len()).filter(|end| *end != whole.as_ref().unwrap().len()) {
                assert_eq!(read(&bytes[..end]), None, "cut at {end}");
            }
            assert_eq!(read(&[bytes, vec![0]].concat()), None);
        }
    }

    #[test]
    fn the_form_before_this_one_is_read() {
        for record in records() {
            let mut bytes = write(ACME_NUMBER, &record).unwrap();
            bytes[0] = MARK_WITH_HASH;
            bytes.splice(1..1, record.hash.0);
            assert_eq!(read(ACME_NUMBER, None, &bytes).as_ref(), Some(&record));
            assert_eq!(read(ACME_NUMBER, Some(record.hash), &bytes), None);
        }
    }

    #[test]
    fn what_this_form_has_no_place_for_is_not_written_in_it() {
        let record = records().next().unwrap();
        let mut never_good = record.clone();
        never_good.row = None;
        let bad = crate::admit::number(ACME_NUMBER, "{}", Some(&record));
        assert!(!bad.faults.is_empty());
        for unusual in [&never_good, &bad] {
            assert_eq!(write(ACME_NUMBER, unusual), None);
        }
        assert_eq!(write("+14155550101", &record), None);
    }
}
