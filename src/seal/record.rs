//! The key of the replica's records: random, wrapped under every key of the keyring, and what is
//! sealed with it.
//!
//! A sealed record is one byte of format version, a random nonce of 12 bytes, the ciphertext and a tag
//! of 16 bytes: AES-256-GCM-SIV, for a nonce drawn twice must not cost more than telling that
//! two records are equal.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Keyring, random};

/// The only format there is.
const VERSION: u8 = 1;
/// Bytes of a tag.
const TAG_LEN: usize = 16;
/// What sealing adds to a record.
const OVERHEAD: usize = 1 + NONCE_LEN + TAG_LEN;
/// Bytes of a data key.
const KEY_BYTES: usize = 32;

/// Why a record was not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short, or of a format version this program does not know.
    #[error(
        "sealed record is of no known format; with Postgres up, remove the replica to pull anew"
    )]
    Format,
    /// Altered, sealed for another place, or sealed with another data key.
    #[error("sealed record does not open; with Postgres up, remove the replica to pull anew")]
    DoesNotOpen,
    /// The system gave no random bytes or no memory.
    #[error("cannot seal: the system gave no random bytes or no memory")]
    NotSealed,
}

/// A data key as one key of the keyring wraps it: safe to store beside the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The keyring's key that unwraps it.
    pub kid: String,
    /// The data key, sealed.
    pub bytes: Vec<u8>,
}

/// The key that seals the replica's records.
pub struct DataKey {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    /// Prepared once; a record is opened on the way to every answer that is not cached.
    key: LessSafeKey,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(redacted)")
    }
}

impl DataKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`RecordError::NotSealed`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, RecordError> {
        random()
            .and_then(Self::new)
            .map_err(|_| RecordError::NotSealed)
    }

    fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, Unspecified> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, bytes.as_slice())?);
        Ok(Self { bytes, key })
    }

    /// This key wrapped under every key of the ring. Any one of them unwraps it.
    ///
    /// # Errors
    /// [`RecordError::NotSealed`] when the system gives no random bytes.
    pub fn wrap(&self, ring: &Keyring) -> Result<Vec<WrappedKey>, RecordError> {
        let wrap = |(kid, key): (&str, &super::keyring::Key)| {
            Ok(WrappedKey {
                kid: kid.to_owned(),
                bytes: seal(&key.data_keys, kid.as_bytes(), self.bytes.as_slice())?,
            })
        };
        ring.keys().map(wrap).collect()
    }

    /// The data key, when some key of the ring unwraps one of `wrapped`.
    pub fn unwrap(wrapped: &[WrappedKey], ring: &Keyring) -> Option<Self> {
        wrapped.iter().find_map(|wrapped| {
            let key = ring.key(&wrapped.kid)?;
            let bytes = open(&key.data_keys, wrapped.kid.as_bytes(), &wrapped.bytes).ok()?;
            let bytes = Zeroizing::new(bytes);
            let bytes = Zeroizing::new(bytes.as_slice().try_into().ok()?);
            Self::new(bytes).ok()
        })
    }

    /// Whether every key of the ring unwraps one of `wrapped`, and nothing else does.
    #[must_use]
    pub fn is_wrapped_under(wrapped: &[WrappedKey], ring: &Keyring) -> bool {
        let opens = |(kid, key): (&str, &super::keyring::Key)| {
            wrapped.iter().any(|wrapped| {
                wrapped.kid == kid
                    && open(&key.data_keys, kid.as_bytes(), &wrapped.bytes)
                        .map(Zeroizing::new)
                        .is_ok()
            })
        };
        wrapped.len() == ring.keys().count() && ring.keys().all(opens)
    }

    /// `plaintext` sealed for the place that `aad` names (its table and key, say): it opens nowhere else.
    ///
    /// # Errors
    /// [`RecordError::NotSealed`] when the system gives no random bytes.
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RecordError> {
        seal(&self.key, aad, plaintext)
    }

    /// As [`seal`](Self::seal), appended to `to`.
    ///
    /// # Errors
    /// As [`seal`](Self::seal); then `to` is as it was, or longer.
    pub fn seal_onto(
        &self,
        aad: &[u8],
        plaintext: &[u8],
        to: &mut Vec<u8>,
    ) -> Result<(), RecordError> {
        seal_onto(&self.key, aad, plaintext, to)
    }

    /// The plaintext of a record that was sealed for the same `aad`.
    ///
    /// # Errors
    /// [`RecordError::Format`] when it is no sealed record, [`RecordError::DoesNotOpen`] when it was
    /// altered, moved or sealed with another key.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, RecordError> {
        open(&self.key, aad, sealed)
    }
}

fn seal(key: &LessSafeKey, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, RecordError> {
    let mut sealed = Vec::with_capacity(plaintext.len().saturating_add(OVERHEAD));
    seal_onto(key, aad, plaintext, &mut sealed)?;
    Ok(sealed)
}

fn seal_onto(
    key: &LessSafeKey,
    aad: &[u8],
    plaintext: &[u8],
    to: &mut Vec<u8>,
) -> Result<(), RecordError> {
    let nonce = random::<NONCE_LEN>().map_err(|_| RecordError::NotSealed)?;
    to.push(VERSION);
    to.extend_from_slice(nonce.as_slice());
    let head = to.len();
    to.extend_from_slice(plaintext);
    let body = to.get_mut(head..).ok_or(RecordError::NotSealed)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(aad), body)
        .map_err(|_| RecordError::NotSealed)?;
    to.extend_from_slice(tag.as_ref());
    Ok(())
}

fn open(key: &LessSafeKey, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, RecordError> {
    let Some((&VERSION, rest)) = sealed.split_first() else {
        return Err(RecordError::Format);
    };
    let Some((nonce, body)) = rest.split_first_chunk::<NONCE_LEN>() else {
        return Err(RecordError::Format);
    };
    if body.len() < TAG_LEN {
        return Err(RecordError::Format);
    }
    let mut plain = body.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = key
        .open_in_place(nonce, Aad::from(aad), &mut plain)
        .map_err(|_| RecordError::DoesNotOpen)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const B: &str = "/////////////////////////////////////////v8=";

    fn ring(keys: &[(&str, &str)]) -> Keyring {
        let lines = keys.iter().map(|(id, key)| format!("{id} = \"{key}\"\n"));
        let text = format!(
            "seal = \"{}\"\n[open]\n{}",
            keys[0].0,
            lines.collect::<String>()
        );
        Keyring::parse(&text).expect("a keyring")
    }

    fn key() -> DataKey {
        DataKey::generate().expect("a key")
    }

    #[test]
    fn a_record_opens_to_what_was_sealed() {
        let key = key();
        for plain in [&b""[..], b"x", &[7; 40_000]] {
            let sealed = key.seal(b"tenants/1", plain).expect("sealed");
            assert_eq!(sealed.len(), plain.len() + 29);
            assert_eq!(key.open(b"tenants/1", &sealed).expect("opened"), plain);
        }
    }

    #[test]
    fn a_record_moved_to_another_place_or_opened_with_another_key_does_not_open() {
        let data = key();
        let sealed = data.seal(b"tenants/1", b"secret").expect("sealed");
        assert_eq!(
            data.open(b"tenants/2", &sealed),
            Err(RecordError::DoesNotOpen)
        );
        assert_eq!(data.open(b"", &sealed), Err(RecordError::DoesNotOpen));
        assert_eq!(
            key().open(b"tenants/1", &sealed),
            Err(RecordError::DoesNotOpen)
        );
    }

    #[test]
    fn a_record_cut_at_any_byte_or_with_any_bit_flipped_does_not_open() {
        let key = key();
        let sealed = key.seal(b"a", b"secret").expect("sealed");
        for end in 0..sealed.len() {
            assert!(key.open(b"a", &sealed[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(b"a", &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_version_is_told_apart_from_an_altered_one() {
        let key = key();
        let mut sealed = key.seal(b"a", b"secret").expect("sealed");
        sealed[0] = 2;
        assert_eq!(key.open(b"a", &sealed), Err(RecordError::Format));
        assert_eq!(key.open(b"a", &[]), Err(RecordError::Format));
    }

    #[test]
    fn equal_records_are_sealed_to_different_bytes() {
        let key = key();
        assert_ne!(key.seal(b"a", b"secret"), key.seal(b"a", b"secret"));
    }

    #[test]
    fn any_one_key_of_the_ring_unwraps_the_data_key() {
        let data = key();
        let wrapped = data.wrap(&ring(&[("k1", A), ("k2", B)])).expect("wrapped");
        let kids: Vec<_> = wrapped.iter().map(|wrapped| wrapped.kid.as_str()).collect();
        assert_eq!(kids, ["k1", "k2"]);
        let sealed = data.seal(b"a", b"secret").expect("sealed");
        for ring in [ring(&[("k1", A)]), ring(&[("k2", B), ("k3", A)])] {
            let again = DataKey::unwrap(&wrapped, &ring).expect("unwrapped");
            assert_eq!(again.open(b"a", &sealed).expect("opened"), b"secret");
        }
    }

    #[test]
    fn a_damaged_wrap_does_not_keep_another_from_unwrapping() {
        let data = key();
        let both = ring(&[("k1", A), ("k2", B)]);
        let mut wrapped = data.wrap(&both).expect("wrapped");
        wrapped[0].bytes[20] ^= 1;
        assert!(DataKey::unwrap(&wrapped, &both).is_some());
        assert!(DataKey::unwrap(&wrapped[..1], &both).is_none());
    }

    #[test]
    fn a_ring_without_the_key_or_with_another_of_its_name_unwraps_nothing() {
        let wrapped = key().wrap(&ring(&[("k1", A)])).expect("wrapped");
        assert!(DataKey::unwrap(&wrapped, &ring(&[("k2", A)])).is_none());
        assert!(DataKey::unwrap(&wrapped, &ring(&[("k1", B)])).is_none());
        assert!(DataKey::unwrap(&[], &ring(&[("k1", A)])).is_none());
    }

    #[test]
    fn a_wrap_given_to_another_key_id_does_not_unwrap() {
        let ring = ring(&[("k1", A), ("k2", A)]);
        let mut wrapped = key().wrap(&ring).expect("wrapped");
        wrapped.truncate(1);
        wrapped[0].kid = "k2".to_owned();
        assert!(DataKey::unwrap(&wrapped, &ring).is_none());
    }

    #[test]
    fn a_data_key_is_wrapped_under_a_derived_key_and_never_under_the_keyrings_own() {
        let ring = ring(&[("k1", A)]);
        let wrapped = key().wrap(&ring).expect("wrapped").remove(0);
        let own: [u8; 32] = std::array::from_fn(|n| n as u8);
        let own = DataKey::new(Zeroizing::new(own)).expect("a key");
        assert!(own.open(b"k1", &wrapped.bytes).is_err());
        // HKDF-SHA256 of the key 00..1f without salt, worked out with Python's `cryptography` 50.0.2.
        let derived = DataKey::new(Zeroizing::new(DERIVED)).expect("a key");
        assert_eq!(
            derived.open(b"k1", &wrapped.bytes).expect("opened").len(),
            32
        );
    }

    const DERIVED: [u8; 32] = [
        84, 252, 220, 154, 22, 132, 23, 122, 118, 192, 161, 206, 250, 4, 153, 119, 108, 202, 137,
        238, 95, 171, 176, 165, 219, 13, 195, 178, 101, 64, 42, 111,
    ];

    #[test]
    fn neither_a_data_key_nor_an_error_shows_what_it_holds() {
        let key = key();
        assert_eq!(format!("{key:?}"), "DataKey(redacted)");
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens_again(aad: Vec<u8>, plain: Vec<u8>) {
            let key = key();
            prop_assert_eq!(key.open(&aad, &key.seal(&aad, &plain).unwrap()).unwrap(), plain);
        }

        #[test]
        fn whatever_was_not_sealed_does_not_open(mut bytes: Vec<u8>) {
            let key = key();
            prop_assert!(key.open(b"", &bytes).is_err());
            bytes.insert(0, VERSION);
            prop_assert!(key.open(b"", &bytes).is_err());
        }
    }
}
