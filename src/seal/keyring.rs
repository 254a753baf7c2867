//! The keyring: the keys that open sealed values, the one that seals new ones, and their TOML text.
//!
//! Key bytes live in the prepared keys alone, which the library wipes when it frees them. What
//! would be a key id is shown only if it is spelled like one, for a key and its id may be swapped in
//! the file.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, AES_256_GCM_SIV, LessSafeKey, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::random;

/// Most keys a keyring may hold.
pub const MAX_KEYS: usize = 64;
/// Most characters of a key id.
const MAX_ID: usize = 64;
/// Bytes of a key, and characters of its base64.
const KEY_BYTES: usize = 32;
const KEY_CHARS: usize = 44;
/// Room for one more key and a longer `seal` in a keyring's text.
const LINE_ROOM: usize = 512;

type KeyBytes = Zeroizing<[u8; KEY_BYTES]>;

/// What is wrong with the text of a keyring, or with a change to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringFault {
    /// The bytes are not text.
    #[error("not UTF-8 text; write it as TOML")]
    NotText,
    /// Not TOML.
    #[error("line {line}: not TOML, or a name given twice; correct the line")]
    Syntax {
        /// Where, counted from 1.
        line: usize,
    },
    /// Something other than `seal`, `[open]` and `[expires]`.
    #[error(
        "line {line}: only `seal = \"id\"` and the tables `[open]` and `[expires]` belong here; remove the rest"
    )]
    Unknown {
        /// Where, counted from 1.
        line: usize,
    },
    /// No `seal`.
    #[error("no `seal`; add `seal = \"id\"` above `[open]`, naming one of its keys")]
    NoSeal,
    /// `seal` names no key that is there.
    #[error("`seal` names {id}, which is not in `[open]`; add that key or name another")]
    SealNotOpen {
        /// The key id that `seal` names.
        id: String,
    },
    /// No keys.
    #[error("no key in `[open]`; make one with `sidetone keygen`")]
    NoKeys,
    /// Too many keys.
    #[error("more than {MAX_KEYS} keys; remove those that seal nothing any more")]
    TooManyKeys,
    /// A key id in the file that is not spelled like one.
    #[error(
        "line {line}: a key id is 1 to {MAX_ID} of A-Z a-z 0-9 . _ - (in quotes when it has a dot); \
         correct it"
    )]
    IdInFile {
        /// Where, counted from 1.
        line: usize,
    },
    /// A key id asked for that is not spelled like one.
    #[error("a key id is 1 to {MAX_ID} of A-Z a-z 0-9 . _ -; choose another")]
    Id,
    /// A value that is no key.
    #[error(
        "key {id}: not the standard base64, padded, of exactly {KEY_BYTES} bytes ({KEY_CHARS} \
         characters; the url-safe and unpadded forms are not read); make one with `sidetone keygen`"
    )]
    Key {
        /// The key's id.
        id: String,
    },
    /// Something in `[expires]` that says of no key here when it expires.
    #[error(
        "line {line}: `[expires]` gives each key of `[open]` at most one date such as 2027-01-01, or time such as \
         2027-01-01T00:00:00Z; correct it"
    )]
    Expiry {
        /// Where, counted from 1.
        line: usize,
    },
    /// The id to add is taken.
    #[error("key {id}: already in the keyring; choose another id")]
    Taken {
        /// The key's id.
        id: String,
    },
    /// The library refused to make or prepare a key.
    #[error("key {id}: cannot be made ready; the system gave no random bytes or no memory")]
    NotReady {
        /// The key's id.
        id: String,
    },
}

/// One key, ready for both of its uses.
pub(super) struct Key {
    /// Opens and seals credentials: AES-256-GCM under the key itself.
    pub(super) values: LessSafeKey,
    /// Wraps the replica's data key: AES-256-GCM-SIV under a key derived from this one.
    pub(super) data_keys: LessSafeKey,
}

impl Key {
    fn prepare(bytes: &[u8; KEY_BYTES]) -> Result<Self, Unspecified> {
        let mut derived: KeyBytes = Zeroizing::new([0; KEY_BYTES]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(bytes)
            .expand(&[b"sidetone replica data key v1"], Derived)?
            .fill(derived.as_mut_slice())?;
        Ok(Self {
            values: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes)?),
            data_keys: LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, derived.as_slice())?),
        })
    }
}

/// The length HKDF is asked for. The library's own conversion into a key leaves the bytes behind.
struct Derived;

impl hkdf::KeyType for Derived {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// What may be told of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// Its id.
    pub id: String,
    /// Whether it is the one that seals.
    pub seals: bool,
    /// When it is to be out of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// When a key expires, as it is written: a date, whose first moment in UTC counts, or a time as of RFC 3339.
#[must_use]
pub fn expiry(text: &str) -> Option<Timestamp> {
    let day = || text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok();
    if text.len() == "2027-01-01".len() {
        return day().map(|day| day.timestamp());
    }
    text.parse().ok()
}

/// The keys that open sealed values, and the one that seals new ones. A key that has expired goes on opening and
/// sealing: answers come first, and who operates the node is told.
pub struct Keyring {
    seal: (String, Arc<Key>),
    open: BTreeMap<String, Arc<Key>>,
    expires: BTreeMap<String, Timestamp>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("seal", &self.seal.0)
            .field("open", &self.open.keys())
            .finish()
    }
}

impl Keyring {
    /// The keyring a TOML text describes: `seal = "k2"`, a table `[open]` of keys in base64, and where keys are to be
    /// out of use some day a table `[expires]` of dates.
    ///
    /// # Errors
    /// What is wrong with the text, naming a line or a key id.
    pub fn parse(text: &str) -> Result<Self, KeyringFault> {
        let written = Written::read(text)?;
        let mut open = BTreeMap::new();
        for (id, bytes) in written.open {
            let key =
                Key::prepare(&bytes).map_err(|_| KeyringFault::NotReady { id: id.clone() })?;
            open.insert(id, Arc::new(key));
        }
        match open.get(&written.seal) {
            Some(key) => Ok(Self {
                seal: (written.seal, Arc::clone(key)),
                open,
                expires: written.expires,
            }),
            None => Err(KeyringFault::SealNotOpen { id: written.seal }),
        }
    }

    /// The text of a new keyring with one new key in it. The text is a secret.
    ///
    /// # Errors
    /// When `id` is not spelled like a key id, or the system gives no random bytes.
    pub fn generate(id: &str) -> Result<Zeroizing<String>, KeyringFault> {
        let new = new_key(id)?;
        Ok(render(id, [(id, &new)], &BTreeMap::new()))
    }

    /// The keyring `text` with a new key that from now on seals; the old keys go on opening.
    ///
    /// The rest of the text, comments included, is kept where its layout allows it.
    ///
    /// # Errors
    /// What is wrong with `text` or `id`; when the id is taken, or there are [`MAX_KEYS`] already.
    pub fn add(text: &str, id: &str) -> Result<Zeroizing<String>, KeyringFault> {
        let new = new_key(id)?;
        let old = Written::read(text)?;
        if old.open.contains_key(id) {
            return Err(KeyringFault::Taken { id: id.to_owned() });
        }
        if old.open.len() >= MAX_KEYS {
            return Err(KeyringFault::TooManyKeys);
        }
        let edited = edit(text, &old.seal_at, id, &new);
        let kept = Written::read(&edited).is_ok_and(|now| {
            now.seal == id
                && now.open.len() == old.open.len().saturating_add(1)
                && now.open.get(id) == Some(&new)
                && now.expires == old.expires
                && old
                    .open
                    .iter()
                    .all(|(id, key)| now.open.get(id) == Some(key))
        });
        if kept {
            return Ok(edited);
        }
        let keys = old.open.iter().map(|(id, key)| (id.as_str(), key));
        Ok(render(id, keys.chain([(id, &new)]), &old.expires))
    }

    /// The keyring `text` with a key of it that expires then. The rest of the text is kept where its layout allows it.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn expiring(
        text: &str,
        id: &str,
        at: Timestamp,
    ) -> Result<Zeroizing<String>, KeyringFault> {
        let mut wanted = Written::read(text)?;
        wanted.expires.insert(id.to_owned(), at);
        let edited = edit_expiry(text, wanted.expires_end, id, at);
        let kept = Written::read(&edited).is_ok_and(|now| {
            now.seal == wanted.seal && now.open == wanted.open && now.expires == wanted.expires
        });
        if kept {
            return Ok(edited);
        }
        let keys = wanted.open.iter().map(|(id, key)| (id.as_str(), key));
        Ok(render(&wanted.seal, keys, &wanted.expires))
    }

    /// The ids of all keys, in order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.open.keys().map(String::as_str)
    }

    /// The id of the key that seals.
    pub fn seal_id(&self) -> &str {
        &self.seal.0
    }

    /// What may be told of every key.
    pub fn status(&self) -> Vec<KeyStatus> {
        let ids = self.open.keys();
        ids.map(|id| KeyStatus {
            id: id.clone(),
            seals: *id == self.seal.0,
            expires: self.expires.get(id).copied(),
        })
        .collect()
    }

    pub(super) fn key(&self, id: &str) -> Option<&Key> {
        self.open.get(id).map(Arc::as_ref)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.open
            .iter()
            .map(|(id, key)| (id.as_str(), key.as_ref()))
    }

    pub(super) fn seal_key(&self) -> (&str, &Key) {
        (&self.seal.0, &self.seal.1)
    }
}

/// Whether `id` is spelled like a key id: 1 to 64 of `A-Z a-z 0-9 . _ -`.
pub(super) fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What a keyring's text says, not yet made ready.
struct Written {
    seal: String,
    /// The bytes of the text where `seal`'s value stands, quotes included.
    seal_at: Range<usize>,
    open: BTreeMap<String, KeyBytes>,
    expires: BTreeMap<String, Timestamp>,
    /// Where the last value of `[expires]` ends in the text.
    expires_end: Option<usize>,
}

impl Written {
    fn read(text: &str) -> Result<Self, KeyringFault> {
        // The parser's own message would show the line, and the line may hold a key.
        let table = DeTable::parse(text).map_err(|err| KeyringFault::Syntax {
            line: line(text, err.span().unwrap_or_default()),
        })?;
        let mut seal = None;
        let mut open = BTreeMap::new();
        let mut expires = BTreeMap::new();
        let mut expires_end = None;
        for (name, value) in table.get_ref() {
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("seal", DeValue::String(id)) if is_id(id) => {
                    seal = Some((id.as_ref().to_owned(), value.span()));
                }
                ("seal", _) => {
                    let line = line(text, value.span());
                    return Err(KeyringFault::IdInFile { line });
                }
                ("open", DeValue::Table(keys)) => open = read_keys(text, keys)?,
                ("expires", DeValue::Table(dates)) => {
                    expires = read_expiries(text, dates)?;
                    expires_end = dates.values().map(|date| date.span().end).max();
                }
                _ => {
                    let line = line(text, name.span());
                    return Err(KeyringFault::Unknown { line });
                }
            }
        }
        if open.is_empty() {
            return Err(KeyringFault::NoKeys);
        }
        let (seal, seal_at) = seal.ok_or(KeyringFault::NoSeal)?;
        if let Some(at) = expires
            .iter()
            .find_map(|(id, (_, at))| (!open.contains_key(id)).then_some(at))
        {
            let line = line(text, at.clone());
            return Err(KeyringFault::Expiry { line });
        }
        Ok(Self {
            seal,
            seal_at,
            open,
            expires: expires.into_iter().map(|(id, (at, _))| (id, at)).collect(),
            expires_end,
        })
    }
}

fn read_keys(text: &str, keys: &DeTable<'_>) -> Result<BTreeMap<String, KeyBytes>, KeyringFault> {
    if keys.len() > MAX_KEYS {
        return Err(KeyringFault::TooManyKeys);
    }
    let mut read = BTreeMap::new();
    for (id, value) in keys {
        // A table is what `a.b = ".."` makes: a dot in an id that was not put in quotes.
        if !is_id(id.get_ref()) || matches!(value.get_ref(), DeValue::Table(_)) {
            let line = line(text, id.span());
            return Err(KeyringFault::IdInFile { line });
        }
        let key = decode(value).ok_or_else(|| KeyringFault::Key {
            id: id.get_ref().as_ref().to_owned(),
        })?;
        read.insert(id.get_ref().as_ref().to_owned(), key);
    }
    Ok(read)
}

/// Each with the bytes of the text where its id stands.
fn read_expiries(
    text: &str,
    dates: &DeTable<'_>,
) -> Result<BTreeMap<String, (Timestamp, Range<usize>)>, KeyringFault> {
    let read = |(id, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let at = match value.get_ref() {
            DeValue::String(text) => expiry(text),
            DeValue::Datetime(time) => expiry(&time.to_string()),
            _ => None,
        };
        let fault = || KeyringFault::Expiry {
            line: line(text, value.span()),
        };
        let id_text: &std::borrow::Cow<'_, str> = id.get_ref();
        Ok((
            id_text.as_ref().to_owned(),
            (at.ok_or_else(fault)?, id.span()),
        ))
    };
    dates.iter().map(read).collect()
}

fn decode(value: &Spanned<DeValue<'_>>) -> Option<KeyBytes> {
    let DeValue::String(text) = value.get_ref() else {
        return None;
    };
    let mut room = Zeroizing::new([0_u8; KEY_CHARS]);
    let bytes = STANDARD
        .decode_slice(text.as_bytes(), room.as_mut_slice())
        .ok()?;
    let key = room.get(..bytes)?.try_into().ok()?;
    Some(Zeroizing::new(key))
}

/// The line, counted from 1, on which `at` begins.
fn line(text: &str, at: Range<usize>) -> usize {
    let before = text.bytes().take(at.start);
    before
        .filter(|byte| *byte == b'\n')
        .count()
        .saturating_add(1)
}

fn new_key(id: &str) -> Result<KeyBytes, KeyringFault> {
    if !is_id(id) {
        return Err(KeyringFault::Id);
    }
    random().map_err(|_| KeyringFault::NotReady { id: id.to_owned() })
}

fn render<'a>(
    seal: &str,
    keys: impl IntoIterator<Item = (&'a str, &'a KeyBytes)>,
    expires: &BTreeMap<String, Timestamp>,
) -> Zeroizing<String> {
    // Sized for the most there can be: growing would leave copies of keys behind.
    let room = MAX_KEYS
        .saturating_mul(2)
        .saturating_add(4)
        .saturating_mul(LINE_ROOM);
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(
        "# Keys of sealed credentials. Only the owner may read this file; without it they do not open.\n\
         # `seal` names the key new values are sealed with; every key in [open] opens.\n",
    );
    text.push_str("seal = \"");
    text.push_str(seal);
    text.push_str("\"\n");
    if !expires.is_empty() {
        text.push_str(EXPIRES);
        for (id, at) in expires {
            push_expiry(&mut text, id, *at);
        }
    }
    text.push_str("\n[open]\n");
    for (id, key) in keys {
        push_key(&mut text, id, key);
    }
    text
}

/// `text` with `seal` moved to `id` and the key's line at the end, where `[open]` usually is.
fn edit(text: &str, seal_at: &Range<usize>, id: &str, key: &KeyBytes) -> Zeroizing<String> {
    let room = text.len().saturating_add(LINE_ROOM);
    let mut edited = Zeroizing::new(String::with_capacity(room));
    edited.push_str(text.get(..seal_at.start).unwrap_or_default());
    edited.push('"');
    edited.push_str(id);
    edited.push('"');
    edited.push_str(text.get(seal_at.end..).unwrap_or_default());
    if !edited.ends_with('\n') {
        edited.push('\n');
    }
    push_key(&mut edited, id, key);
    edited
}

/// `text` with one more line in `[expires]`: behind the last one that is there, else in a new table above `[open]`.
fn edit_expiry(text: &str, last: Option<usize>, id: &str, at: Timestamp) -> Zeroizing<String> {
    let open = || {
        let before = text.find("\n[open]")?;
        before.checked_add(1)
    };
    let place = match last {
        Some(end) => text
            .get(end..)
            .and_then(|rest| rest.find('\n'))
            .and_then(|line_end| end.checked_add(line_end)?.checked_add(1)),
        None => open(),
    };
    let (before, behind) = text
        .split_at_checked(place.unwrap_or(0))
        .unwrap_or(("", text));
    let room = text
        .len()
        .saturating_add(LINE_ROOM)
        .saturating_add(EXPIRES.len());
    let mut edited = Zeroizing::new(String::with_capacity(room));
    edited.push_str(before);
    if last.is_none() {
        edited.push_str(EXPIRES.trim_start());
    }
    push_expiry(&mut edited, id, at);
    if last.is_none() {
        edited.push('\n');
    }
    edited.push_str(behind);
    edited
}

/// Head of the table that says when keys expire.
const EXPIRES: &str = "\n# A key that has expired goes on opening; `sidetone check`, the metrics and an alert tell.\n[expires]\n";

fn push_expiry(text: &mut String, id: &str, at: Timestamp) {
    push_id(text, id);
    text.push_str(&at.to_string());
    text.push_str("\"\n");
}

fn push_key(text: &mut String, id: &str, key: &KeyBytes) {
    push_id(text, id);
    STANDARD.encode_string(key.as_slice(), text);
    text.push_str("\"\n");
}

fn push_id(text: &mut String, id: &str) {
    let quote = if id.contains('.') { "\"" } else { "" };
    for part in [quote, id, quote, " = \""] {
        text.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const B: &str = "/////////////////////////////////////////v8=";

    fn fault(text: &str) -> KeyringFault {
        Keyring::parse(text).expect_err("the text is refused")
    }

    fn told(ring: &Keyring) -> Vec<(String, bool)> {
        let keys = ring.status().into_iter();
        keys.map(|key| (key.id, key.seals)).collect()
    }

    fn ring(text: &str) -> Keyring {
        Keyring::parse(text).expect("the text is a keyring")
    }

    #[test]
    fn a_keyring_tells_its_ids_and_which_of_them_seals() {
        let ring = ring(&format!(
            "seal = \"k2\"\n[open]\nk1 = \"{A}\"\nk2 = \"{B}\"\n"
        ));
        assert_eq!(ring.ids().collect::<Vec<_>>(), ["k1", "k2"]);
        assert_eq!(ring.seal_id(), "k2");
        assert_eq!(
            told(&ring),
            [("k1".to_owned(), false), ("k2".to_owned(), true)]
        );
    }

    #[test]
    fn a_key_expires_at_the_first_moment_of_a_date_or_at_a_time_and_goes_on_opening() {
        let texts = [
            ("\"2027-01-01\"", "2027-01-01T00:00:00Z"),
            ("2027-01-01", "2027-01-01T00:00:00Z"),
            ("\"2027-01-01T12:00:00+02:00\"", "2027-01-01T10:00:00Z"),
            ("2027-01-01T10:00:00Z", "2027-01-01T10:00:00Z"),
            ("\"2001-01-01\"", "2001-01-01T00:00:00Z"),
        ];
        for (written, at) in texts {
            let ring = ring(&format!(
                "seal = \"k2\"\n[open]\nk1 = \"{A}\"\nk2 = \"{B}\"\n[expires]\nk2 = {written}\n"
            ));
            let expires: Vec<_> = ring.status().into_iter().map(|key| key.expires).collect();
            assert_eq!(expires, [None, Some(at.parse().unwrap())], "{written}");
            assert!(ring.key("k2").is_some());
        }
    }

    #[test]
    fn what_is_no_date_or_of_no_key_is_refused_by_its_line() {
        for line in [
            "k1 = \"soon\"",
            "k1 = \"2027-02-30\"",
            "k1 = 2027",
            "k1 = 2027-01-01T00:00:00",
            "k1 = \"2027-01-01T00:00:00\"",
            "k9 = \"2027-01-01\"",
        ] {
            let text = format!("seal = \"k1\"\n[open]\nk1 = \"{A}\"\n[expires]\n{line}\n");
            assert_eq!(fault(&text), KeyringFault::Expiry { line: 5 }, "{line}");
        }
        assert_eq!(fault("expires = 3\n"), KeyringFault::Unknown { line: 1 });
    }

    #[test]
    fn an_expiry_is_added_whatever_the_layout_and_kept_when_a_key_is_added() {
        let at: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
        let texts = [
            Keyring::generate("k1").unwrap().to_string(),
            format!("# ours\nseal = \"k1\"\n\n[open]\nk1 = \"{A}\"\n"),
            format!(
                "seal = \"k1\"\n[open]\nk1 = \"{A}\"\nk0 = \"{B}\"\n[expires]\nk0 = 2026-01-01"
            ),
            format!("seal = \"k1\"\n[expires]\nk1 = 2026-01-01\n[open]\nk1 = \"{A}\"\n"),
            format!(
                "seal = \"k1\"\nexpires.k0 = 2026-01-01 # old\nopen.k1 = \"{A}\"\nopen.k0 = \"{B}\"\n"
            ),
            format!("open = {{ k1 = \"{A}\" }}\nseal = \"k1\"\n"),
        ];
        for text in texts {
            let before = Written::read(&text).unwrap();
            let dated = Keyring::expiring(&text, "k1", at).expect("a keyring");
            let after = Written::read(&dated).unwrap();
            assert_eq!(after.expires.get("k1"), Some(&at), "{text}");
            assert_eq!((&after.seal, &after.open), (&before.seal, &before.open));
            assert_eq!(after.expires.get("k0"), before.expires.get("k0"), "{text}");
            assert!(!text.contains("# ours") || dated.contains("# ours"));
            let added = Written::read(&Keyring::add(&dated, "k2").expect("a keyring")).unwrap();
            assert_eq!(added.expires, after.expires, "{text}");
            assert_eq!(added.seal, "k2");
        }
    }

    #[test]
    fn a_keyring_prints_its_ids_and_no_key() {
        let ring = ring(&format!(
            "seal = \"k2\"\n[open]\nk1 = \"{A}\"\nk2 = \"{B}\"\n"
        ));
        assert_eq!(
            format!("{ring:?}"),
            r#"Keyring { seal: "k2", open: ["k1", "k2"] }"#
        );
    }

    #[test]
    fn an_id_is_up_to_64_letters_digits_dots_underscores_and_dashes() {
        let long = "a".repeat(64);
        for id in ["k", "2026.01_a-B", long.as_str()] {
            let text = format!("seal = \"{id}\"\n[open]\n\"{id}\" = \"{A}\"\n");
            assert_eq!(ring(&text).seal_id(), id);
        }
        for id in ["", "k 1", "k/1", "clé", &"a".repeat(65)] {
            let text = format!("seal = \"k1\"\n[open]\nk1 = \"{A}\"\n\"{id}\" = \"{A}\"\n");
            assert_eq!(fault(&text), KeyringFault::IdInFile { line: 4 });
            assert_eq!(Keyring::generate(id), Err(KeyringFault::Id));
        }
    }

    #[test]
    fn a_dotted_id_without_quotes_is_told_by_its_line() {
        let text = format!("seal = \"a.b\"\n[open]\na.b = \"{A}\"\n");
        assert_eq!(fault(&text), KeyringFault::IdInFile { line: 3 });
    }

    #[test]
    fn seal_must_be_there_and_name_an_open_key() {
        assert_eq!(
            fault(&format!("[open]\nk1 = \"{A}\"\n")),
            KeyringFault::NoSeal
        );
        let text = format!("seal = \"k2\"\n[open]\nk1 = \"{A}\"\n");
        assert_eq!(
            fault(&text),
            KeyringFault::SealNotOpen {
                id: "k2".to_owned()
            }
        );
        let text = format!("seal = 2\n[open]\nk1 = \"{A}\"\n");
        assert_eq!(fault(&text), KeyringFault::IdInFile { line: 1 });
    }

    #[test]
    fn a_keyring_without_keys_is_refused() {
        assert_eq!(fault(""), KeyringFault::NoKeys);
        assert_eq!(fault("seal = \"k1\"\n"), KeyringFault::NoKeys);
        assert_eq!(fault("seal = \"k1\"\n[open]\n"), KeyringFault::NoKeys);
    }

    #[test]
    fn sixty_four_keys_are_read_and_one_more_is_refused() {
        let keys = |count: usize| {
            let lines = (0..count).map(|n| format!("k{n} = \"{A}\"\n"));
            format!("seal = \"k0\"\n[open]\n{}", lines.collect::<String>())
        };
        assert_eq!(ring(&keys(64)).ids().len(), 64);
        assert_eq!(fault(&keys(65)), KeyringFault::TooManyKeys);
        assert_eq!(
            Keyring::add(&keys(64), "new"),
            Err(KeyringFault::TooManyKeys)
        );
        Keyring::add(&keys(63), "new").expect("the 64th key has room");
    }

    #[test]
    fn a_key_is_padded_standard_base64_of_32_bytes_and_nothing_else() {
        let url_safe = B.replace('/', "_");
        let bad = [
            A.trim_end_matches('=').to_owned(),
            url_safe,
            format!("{A} "),
            STANDARD.encode([7; 31]),
            STANDARD.encode([7; 33]),
            // 44 characters whose last symbol carries bits of no byte.
            A.replace("h8=", "h9="),
            String::new(),
        ];
        for key in bad {
            let text = format!("seal = \"k1\"\n[open]\nk1 = \"{key}\"\n");
            assert_eq!(
                fault(&text),
                KeyringFault::Key {
                    id: "k1".to_owned()
                },
                "{key}"
            );
        }
        let number = "seal = \"k1\"\n[open]\nk1 = 5\n";
        assert_eq!(
            fault(number),
            KeyringFault::Key {
                id: "k1".to_owned()
            }
        );
    }

    #[test]
    fn what_does_not_belong_is_refused_by_its_line() {
        let text = format!("seal = \"k1\"\nseel = \"k1\"\n[open]\nk1 = \"{A}\"\n");
        assert_eq!(fault(&text), KeyringFault::Unknown { line: 2 });
        assert_eq!(
            fault("seal = \"k1\"\nopen = 3\n"),
            KeyringFault::Unknown { line: 2 }
        );
        let twice = format!("seal = \"k1\"\n[open]\nk1 = \"{A}\"\nk1 = \"{B}\"\n");
        assert_eq!(fault(&twice), KeyringFault::Syntax { line: 4 });
        assert_eq!(
            fault("seal = \"k1\"\n[open\n"),
            KeyringFault::Syntax { line: 2 }
        );
    }

    #[test]
    fn no_fault_shows_a_key_wherever_it_was_put_by_mistake() {
        let texts = [
            format!("seal = \"{A}\"\n[open]\nk1 = \"{A}\"\n"),
            format!("seal = \"k1\"\n[open]\n\"{A}\" = \"k1\"\n"),
            format!("seal = \"k1\"\n\"{A}\" = 1\n[open]\nk1 = \"{A}\"\n"),
            format!("seal = \"k1\"\n[open]\nk1 = {A}\n"),
            format!("seal = \"k1\"\n[open]\nk1 = \"{A}{A}\"\n"),
        ];
        for text in texts {
            let fault = fault(&text);
            assert!(
                !format!("{fault} {fault:?}").contains("AAECAwQF"),
                "{fault}"
            );
        }
    }

    #[test]
    fn a_generated_keyring_is_read_back_and_its_key_is_new_each_time() {
        let one = Keyring::generate("2026.01").expect("a keyring");
        let two = Keyring::generate("2026.01").expect("a keyring");
        assert_eq!(told(&ring(&one)), [("2026.01".to_owned(), true)]);
        assert_ne!(one, two);
    }

    #[test]
    fn an_added_key_seals_while_the_old_ones_and_the_comments_stay() {
        let old = format!("# ours\nseal = 'k1' # now\n\n[open]\nk1 = \"{A}\" # first");
        let new = Keyring::add(&old, "k.2").expect("a keyring");
        assert!(
            new.starts_with("# ours\nseal = \"k.2\" # now\n\n[open]\nk1 = "),
            "kept"
        );
        assert!(new.contains("# first\n\"k.2\" = \""), "appended");
        let (before, after) = (Written::read(&old).unwrap(), Written::read(&new).unwrap());
        assert_eq!(after.seal, "k.2");
        assert_eq!(after.open.len(), 2);
        assert_eq!(after.open.get("k1"), before.open.get("k1"));
    }

    #[test]
    fn a_key_is_added_whatever_the_layout_of_the_text() {
        let texts = [
            format!("open = {{ k1 = \"{A}\" }}\nseal = \"k1\"\n"),
            format!("open.k1 = \"{A}\"\nseal = \"k1\"\n"),
            format!("seal = \"\"\"k1\"\"\"\r\n[open]\r\nk1 = \"{A}\"\r\n"),
        ];
        for text in texts {
            let new = Keyring::add(&text, "k2").expect("a keyring");
            let (before, after) = (Written::read(&text).unwrap(), Written::read(&new).unwrap());
            assert_eq!(after.seal, "k2");
            assert_eq!(after.open.keys().collect::<Vec<_>>(), ["k1", "k2"]);
            assert_eq!(after.open.get("k1"), before.open.get("k1"));
        }
    }

    #[test]
    fn an_id_that_is_taken_is_not_added_again() {
        let text = format!("seal = \"k1\"\n[open]\nk1 = \"{A}\"\n");
        let taken = KeyringFault::Taken {
            id: "k1".to_owned(),
        };
        assert_eq!(Keyring::add(&text, "k1"), Err(taken));
    }
}
