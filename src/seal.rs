//! Sealed and opened secrets: the keyring, the two sealed forms of a credential, the data key of
//! the replica's records.
//!
//! Always true here: nothing prints key material, plaintext or ciphertext, neither in `Debug` nor in
//! an error; key bytes and opened values are wiped when dropped; only [`Keyring::load`],
//! [`read_keyring`] and [`write_keyring`] touch the disk.

mod envelope;
mod file;
mod keyring;
mod record;

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

pub use envelope::{Context, MAX_SEALED_BYTES, OpenError, Opened, SealError};
pub use file::{KeyringError, Write, is_credential, lets_others_in, read_keyring, write_keyring};
pub use keyring::{KeyStatus, Keyring, KeyringFault, MAX_KEYS, expiry};
pub use record::{DataKey, RecordError, WrappedKey};

/// An opened value: text that is wiped when dropped and is never printed by accident.
///
/// It is not `Clone`; share it behind an `Arc`.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over `text`, which is wiped from then on.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The value itself. Every use of it is a place where it could leak.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Bytes of the value: what it weighs in a cache.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the value is the empty text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// `bytes` as text in the same memory, or nothing when they are not UTF-8.
fn into_text(mut bytes: Zeroizing<Vec<u8>>) -> Option<Zeroizing<String>> {
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(not_text) => {
            not_text.into_bytes().zeroize();
            None
        }
    }
}

/// `N` bytes from the system's generator.
fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, aws_lc_rs::error::Unspecified> {
    let mut bytes = Zeroizing::new([0; N]);
    aws_lc_rs::rand::fill(bytes.as_mut_slice())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_printed_by_expose_alone() {
        let secret = Secret::new("sk-live-1".to_owned());
        assert_eq!(
            format!("{secret} {secret:?}"),
            "(redacted) Secret(redacted)"
        );
        assert_eq!(secret.expose(), "sk-live-1");
        assert_eq!(secret.len(), 9);
        assert!(!secret.is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_become_no_text() {
        assert!(into_text(Zeroizing::new(vec![b'a', 0xff])).is_none());
        let text = into_text(Zeroizing::new("é".into()));
        assert_eq!(text.as_ref().map(|text| text.as_str()), Some("é"));
    }
}
