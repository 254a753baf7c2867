//! The short form of a number's record that has nothing unusual about it: most of the file is this.
//!
//! One byte that no JSON begins with, the hash, id and tenant, whether it answers and which texts it has, then the texts, each
//! after its length in two bytes. The number itself is the key. Everything else is kept as JSON.

use uuid::Uuid;

use crate::row::{DocHash, Number, NumberRecord};

const MARK: u8 = 1;
const ACTIVE: u8 = 1;
const LABEL: u8 = 2;
const VOICE: u8 = 4;

/// Whether a record is of this form.
pub(super) fn is_plain(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MARK)
}

/// `None` where the record has what this form has no place for.
pub(super) fn write(e164: &str, record: &NumberRecord) -> Option<Vec<u8>> {
    let NumberRecord {
        hash,
        row: Some(row),
        faults,
        before: None,
    } = record
    else {
        return None;
    };
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
    if !faults.is_empty() || of.as_str() != e164 {
        return None;
    }
    let flag = |is: bool, flag: u8| if is { flag } else { 0 };
    let mut bytes = Vec::with_capacity(192);
    bytes.push(MARK);
    bytes.extend_from_slice(&hash.0);
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
    Some(bytes)
}

/// The record; `None` where the bytes are not what [`write`] writes.
pub(super) fn read(e164: &str, bytes: &[u8]) -> Option<NumberRecord> {
    let (&MARK, rest) = bytes.split_first()? else {
        return None;
    };
    let (hash, rest) = rest.split_first_chunk::<32>()?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let (tenant_id, rest) = rest.split_first_chunk::<16>()?;
    let (flags, mut rest) = rest.split_first()?;
    let mut text = || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        rest = after;
        std::str::from_utf8(text).ok().map(str::to_owned)
    };
    let (default_language, timezone) = (text()?, text()?);
    let mut text_if = |flag: u8| match flags & flag {
        0 => Some(None),
        _ => text().map(Some),
    };
    let (label, default_voice) = (text_if(LABEL)?, text_if(VOICE)?);
    rest.is_empty().then_some(())?;
    Some(NumberRecord {
        hash: DocHash(*hash),
        row: Some(Number {
            id: Uuid::from_bytes(*id),
            tenant_id: Uuid::from_bytes(*tenant_id),
            e164: e164.parse().ok()?,
            label,
            default_language,
            default_voice,
            timezone,
            active: flags & ACTIVE != 0,
        }),
        faults: Vec::new(),
        before: None,
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
        for record in records() {
            let bytes = write(ACME_NUMBER, &record).unwrap();
            assert!(is_plain(&bytes) && bytes.len() < 160, "{}", bytes.len());
            assert_eq!(read(ACME_NUMBER, &bytes).as_ref(), Some(&record));
            for end in 0..bytes.len() {
                assert_eq!(read(ACME_NUMBER, &bytes[..end]), None, "cut at {end}");
            }
            assert_eq!(read(ACME_NUMBER, &[bytes, vec![0]].concat()), None);
        }
    }

    #[test]
    fn what_this_form_has_no_place_for_is_not_written_in_it() {
        let record = records().next().unwrap();
        let mut replaced = record.clone();
        replaced.before = record.row.clone().map(Box::new);
        let mut never_good = record.clone();
        never_good.row = None;
        let bad = crate::admit::number(ACME_NUMBER, "{}", Some(&record));
        assert!(!bad.faults.is_empty());
        for unusual in [&replaced, &never_good, &bad] {
            assert_eq!(write(ACME_NUMBER, unusual), None);
        }
        assert_eq!(write("+14155550101", &record), None);
    }
}
