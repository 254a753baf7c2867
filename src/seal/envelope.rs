//! The two sealed forms of a credential: JWE compact (RFC 7516) that names its row, and raw AES-256-GCM
//! that names nothing.
//!
//! A reader of one format, not of JOSE: `alg` is `dir`, `enc` is `A256GCM`, the header's members are a
//! fixed list, and a spelling that could be read in two ways is refused. What the header says is
//! compared before the value is opened, and authenticated by opening it.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::keyring::is_id;
use super::{Keyring, Secret, into_text, random};

/// Longest sealed value there is, in bytes of its text. What a credential may weigh is a setting.
pub const MAX_SEALED_BYTES: usize = 1024 * 1024;
/// Longest protected header, decoded.
const MAX_HEADER_BYTES: usize = 4096;
/// Bytes of a tag.
const TAG_LEN: usize = 16;

const ALG: &str = "dir";
const ENC: &str = "A256GCM";

/// The row a sealed value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// Whose credential it is.
    pub tenant: Uuid,
    /// The row's provider, exactly.
    pub provider: &'a str,
    /// The row's name, exactly.
    pub name: &'a str,
}

/// A value that opened.
#[derive(Debug)]
pub struct Opened {
    /// The value.
    pub secret: Secret,
    /// The key that opened it: while there is such a value, the key must stay in the keyring.
    pub kid: String,
}

/// Why a sealed value did not open. It says nothing of what is in the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Neither form, or a JWE that is not spelled as the platform spells it.
    #[error("sealed value is not in the platform's form; seal it anew")]
    Malformed,
    /// The key it names is not in the keyring.
    #[error(
        "sealed under key {kid}, which is not in the keyring; add the key or seal the value anew"
    )]
    UnknownKey {
        /// The key id.
        kid: String,
    },
    /// It names another row.
    #[error("sealed for another tenant, provider or name; seal it anew for this row")]
    WrongContext,
    /// Altered, or sealed with another key.
    #[error(
        "sealed value does not open: altered, or sealed with another key of that id; seal it anew"
    )]
    DoesNotOpen,
    /// The form without context, when no key is set for it.
    #[error("sealed without context, which is not enabled; seal it as JWE or set keys.raw")]
    NotAllowed,
    /// Longer than a sealed value or its header may be.
    #[error(
        "sealed value is too long: over {MAX_SEALED_BYTES} bytes, or {MAX_HEADER_BYTES} of header"
    )]
    TooLong,
    /// It opened, but to bytes that are no text.
    #[error("opened value is not UTF-8 text; seal it anew as text")]
    NotText,
}

/// Why a value was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// What would come out could not be opened again.
    #[error(
        "value, provider or name is too long to be sealed: over {MAX_SEALED_BYTES} bytes sealed, or \
         {MAX_HEADER_BYTES} of header; shorten it"
    )]
    TooLong,
    /// The system gave no random bytes or no memory.
    #[error("cannot seal: the system gave no random bytes or no memory")]
    NotSealed,
}

/// The members a protected header may have. Anything else, `crit` and `zip` included, is refused,
/// and so is a member given twice.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    kid: String,
    tenant: String,
    provider: String,
    name: String,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "tolerated, not used")]
    typ: String,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "tolerated, not used")]
    cty: String,
}

impl Header {
    fn read(json: &[u8]) -> Result<Self, OpenError> {
        // A list of the members' values in order would be taken for the object.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(OpenError::Malformed);
        }
        let header: Self = serde_json::from_slice(json).map_err(|_| OpenError::Malformed)?;
        if header.alg != ALG || header.enc != ENC || !is_id(&header.kid) {
            return Err(OpenError::Malformed);
        }
        Ok(header)
    }

    fn names(&self, row: &Context<'_>) -> Result<bool, OpenError> {
        // Of the spellings of a UUID only the one with hyphens has 36 characters.
        let tenant = match Uuid::try_parse(&self.tenant) {
            Ok(tenant) if self.tenant.len() == 36 => tenant,
            _ => return Err(OpenError::Malformed),
        };
        Ok(tenant == row.tenant && self.provider == row.provider && self.name == row.name)
    }
}

impl Keyring {
    /// Opens a credential in either form, told apart by shape: a JWE has dots, base64 has none.
    ///
    /// `raw_key` is the id of the key that opens the raw form; without it that form is refused.
    /// ASCII white space around the value is ignored.
    ///
    /// # Errors
    /// Why the value does not open.
    pub fn open(
        &self,
        sealed: &str,
        row: &Context<'_>,
        raw_key: Option<&str>,
    ) -> Result<Opened, OpenError> {
        let sealed = bounded(sealed)?;
        if sealed.contains('.') {
            return self.open_jwe(sealed, row);
        }
        self.open_raw(sealed, raw_key.ok_or(OpenError::NotAllowed)?)
    }

    /// Opens a JWE compact whose protected header names `row`.
    ///
    /// # Errors
    /// Why the value does not open.
    pub fn open_jwe(&self, compact: &str, row: &Context<'_>) -> Result<Opened, OpenError> {
        let mut parts = bounded(compact)?.split('.');
        let (Some(head), Some(""), Some(iv), Some(body), Some(tag), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(OpenError::Malformed);
        };
        if base64::decoded_len_estimate(head.len()) > MAX_HEADER_BYTES.saturating_add(2) {
            return Err(OpenError::TooLong);
        }
        let json = decode(head)?;
        if json.len() > MAX_HEADER_BYTES {
            return Err(OpenError::TooLong);
        }
        let header = Header::read(&json)?;
        let right_row = header.names(row)?;
        let iv: [u8; NONCE_LEN] = exactly(iv)?;
        let tag: [u8; TAG_LEN] = exactly(tag)?;

        // Room for both at once: growing after the value is open would leave a copy of it behind.
        let mut value = Zeroizing::new(Vec::with_capacity(body.len().saturating_add(TAG_LEN)));
        URL_SAFE_NO_PAD
            .decode_vec(body, &mut value)
            .map_err(|_| OpenError::Malformed)?;
        value.extend_from_slice(&tag);

        let Some(key) = self.key(&header.kid) else {
            return Err(OpenError::UnknownKey { kid: header.kid });
        };
        if !right_row {
            return Err(OpenError::WrongContext);
        }
        let secret = open_in_place(&key.values, iv, head.as_bytes(), value)?;
        Ok(Opened {
            secret,
            kid: header.kid,
        })
    }

    /// Opens the raw form, standard base64 of nonce, ciphertext and tag, with the key `kid`.
    ///
    /// Nothing ties such a value to its row: moved to another one, it opens there.
    ///
    /// # Errors
    /// Why the value does not open.
    pub fn open_raw(&self, sealed: &str, kid: &str) -> Result<Opened, OpenError> {
        let bytes = STANDARD
            .decode(bounded(sealed)?)
            .map_err(|_| OpenError::Malformed)?;
        let (iv, body) = bytes
            .split_first_chunk::<NONCE_LEN>()
            .filter(|(_, body)| body.len() >= TAG_LEN)
            .ok_or(OpenError::Malformed)?;
        let kid = kid.to_owned();
        let Some(key) = self.key(&kid) else {
            return Err(OpenError::UnknownKey { kid });
        };
        let value = Zeroizing::new(body.to_vec());
        let secret = open_in_place(&key.values, *iv, &[], value)?;
        Ok(Opened { secret, kid })
    }

    /// Seals `value` for `row` as JWE compact, under the key that seals.
    ///
    /// The nonce is random: one key must seal fewer than 2^32 values.
    ///
    /// # Errors
    /// When what would come out is too long, or the system gives no random bytes.
    pub fn seal_jwe(&self, value: &str, row: &Context<'_>) -> Result<String, SealError> {
        let (kid, key) = self.seal_key();
        let header = Header {
            alg: ALG.to_owned(),
            enc: ENC.to_owned(),
            kid: kid.to_owned(),
            tenant: row.tenant.to_string(),
            provider: row.provider.to_owned(),
            name: row.name.to_owned(),
            typ: String::new(),
            cty: String::new(),
        };
        let json = serde_json::to_vec(&header).map_err(|_| SealError::NotSealed)?;
        if json.len() > MAX_HEADER_BYTES || value.len() > MAX_SEALED_BYTES {
            return Err(SealError::TooLong);
        }
        let mut compact = URL_SAFE_NO_PAD.encode(json);
        let iv = random::<NONCE_LEN>().map_err(|_| SealError::NotSealed)?;
        let mut body = Zeroizing::new(value.as_bytes().to_vec());
        let nonce = Nonce::assume_unique_for_key(*iv);
        let tag = key
            .values
            .seal_in_place_separate_tag(nonce, Aad::from(compact.as_bytes()), &mut body)
            .map_err(|_| SealError::NotSealed)?;
        compact.push('.');
        for part in [iv.as_slice(), &body, tag.as_ref()] {
            compact.push('.');
            URL_SAFE_NO_PAD.encode_string(part, &mut compact);
        }
        if compact.len() > MAX_SEALED_BYTES {
            return Err(SealError::TooLong);
        }
        Ok(compact)
    }
}

fn bounded(sealed: &str) -> Result<&str, OpenError> {
    if sealed.len() > MAX_SEALED_BYTES {
        return Err(OpenError::TooLong);
    }
    match sealed.trim_ascii() {
        "" => Err(OpenError::Malformed),
        sealed => Ok(sealed),
    }
}

fn decode(part: &str) -> Result<Vec<u8>, OpenError> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| OpenError::Malformed)
}

fn exactly<const N: usize>(part: &str) -> Result<[u8; N], OpenError> {
    // Measured first: a long part is not decoded only to find it too long.
    if base64::encoded_len(N, false) != Some(part.len()) {
        return Err(OpenError::Malformed);
    }
    decode(part)?.try_into().map_err(|_| OpenError::Malformed)
}

fn open_in_place(
    key: &LessSafeKey,
    iv: [u8; NONCE_LEN],
    aad: &[u8],
    mut value: Zeroizing<Vec<u8>>,
) -> Result<Secret, OpenError> {
    let length = key
        .open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut value)
        .map_err(|_| OpenError::DoesNotOpen)?
        .len();
    value.truncate(length);
    into_text(value).map(Secret).ok_or(OpenError::NotText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::uuid;

    use super::*;

    const ROW: Context<'_> = Context {
        tenant: uuid!("6f717b5a-1a2b-4c3d-9e8f-112233445566"),
        provider: "openai",
        name: "default",
    };
    const VALUE: &str = r#"{"api_key":"sk-prüfung-0001"}"#;

    /// Written by Python's jwcrypto 1.6.1 under the key 00 01 .. 1f, with its default JSON spacing.
    const JWCRYPTO: &str = "eyJhbGciOiAiZGlyIiwgImVuYyI6ICJBMjU2R0NNIiwgImtpZCI6ICJrMSIsICJ0ZW5hbnQiOiAiNmY3MTdiNWEtMWEyYi00YzNkLTllOGYtMTEyMjMzNDQ1NTY2IiwgInByb3ZpZGVyIjogIm9wZW5haSIsICJuYW1lIjogImRlZmF1bHQifQ..M8FFSPEs7zByEiIg.g6xQeX8UqZ-_V1pC123aHAVGKCed73ucXwbiU_8T.EkSBwp_bQSPoOGBEwUC08g";
    /// Written by Python's joserfc 1.8.0 under the same key, with `typ`, `cty` and the tenant in capitals.
    const JOSERFC: &str = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiazEiLCJ0ZW5hbnQiOiI2RjcxN0I1QS0xQTJCLTRDM0QtOUU4Ri0xMTIyMzM0NDU1NjYiLCJwcm92aWRlciI6Im9wZW5haSIsIm5hbWUiOiJkZWZhdWx0IiwidHlwIjoiSldFIiwiY3R5IjoianNvbiJ9.._5FQnCr0VHT25xpq.b29yMD5ScZQQ2rTtupAEPs20-hrnGCbZz7brhsQu.557awYc8ZnOaqaOI7kvXuA";
    /// Written by Python's jwcrypto 1.6.1, with the value compressed: `"zip":"DEF"`.
    const ZIPPED: &str = "eyJhbGciOiAiZGlyIiwgImVuYyI6ICJBMjU2R0NNIiwgImtpZCI6ICJrMSIsICJ0ZW5hbnQiOiAiNmY3MTdiNWEtMWEyYi00YzNkLTllOGYtMTEyMjMzNDQ1NTY2IiwgInByb3ZpZGVyIjogIm9wZW5haSIsICJuYW1lIjogImRlZmF1bHQiLCAiemlwIjogIkRFRiJ9..Dg7PoOsSWXkfsFFq.MIi7GWNoUNiTTh7KMRisgxigGf0ZHe3r5FJW1E9hG48.BFdZVJOUNRBzQ27ImUksGg";
    /// Written by Python's cryptography 50.0.2 (AESGCM) under the same key.
    const RAW: &str =
        "ZGVmZ2hpamtsbW5vMzm/FhC2PftHQGXKqQ5HjTABumz+ApRfl+GcedneuKJaoZw6pmyi1oiFcCKJ7w==";

    const RING: &str =
        "seal = \"k1\"\n[open]\nk1 = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n";

    fn ring() -> Keyring {
        Keyring::parse(RING).expect("a keyring")
    }

    fn opened(result: Result<Opened, OpenError>) -> String {
        result.expect("it opens").secret.expose().to_owned()
    }

    fn refused(result: Result<Opened, OpenError>) -> OpenError {
        result.expect_err("it does not open")
    }

    /// A JWE with this header and the right ciphertext for it, whatever the header says.
    fn sealed_with(header: impl AsRef<[u8]>, value: &[u8]) -> String {
        let ring = ring();
        let mut body = value.to_vec();
        let head = URL_SAFE_NO_PAD.encode(header);
        let tag = ring
            .seal_key()
            .1
            .values
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key([9; NONCE_LEN]),
                Aad::from(head.as_bytes()),
                &mut body,
            )
            .expect("sealed");
        let [iv, body, tag] =
            [&[9; NONCE_LEN][..], &body, tag.as_ref()].map(|b| URL_SAFE_NO_PAD.encode(b));
        format!("{head}..{iv}.{body}.{tag}")
    }

    /// The platform's header, with `more` before its closing brace.
    fn header(more: &str) -> String {
        format!(
            r#"{{"alg":"dir","enc":"A256GCM","kid":"k1","tenant":"{}","provider":"openai","name":"default"{more}}}"#,
            ROW.tenant
        )
    }

    fn open_header(header: impl AsRef<[u8]>) -> Result<Opened, OpenError> {
        ring().open_jwe(&sealed_with(header, b"v"), &ROW)
    }

    #[test]
    fn what_other_jose_libraries_seal_opens() {
        for sealed in [JWCRYPTO, JOSERFC] {
            assert_eq!(opened(ring().open(sealed, &ROW, None)), VALUE);
        }
    }

    #[test]
    fn what_is_sealed_opens_under_the_key_that_sealed_it() {
        let sealed = ring().seal_jwe(VALUE, &ROW).expect("sealed");
        let opened = ring().open_jwe(&sealed, &ROW).expect("opened");
        assert_eq!(opened.secret.expose(), VALUE);
        assert_eq!(opened.kid, "k1");
        let head = sealed.split('.').next().unwrap();
        assert_eq!(decode(head).unwrap(), header("").into_bytes());
    }

    #[test]
    fn equal_values_are_sealed_to_different_texts() {
        let ring = ring();
        assert_ne!(ring.seal_jwe(VALUE, &ROW), ring.seal_jwe(VALUE, &ROW));
    }

    #[test]
    fn after_a_rotation_old_values_open_and_new_ones_use_the_new_key() {
        let old = ring().seal_jwe(VALUE, &ROW).expect("sealed");
        let rotated = Keyring::parse(&Keyring::add(RING, "k2").expect("added")).expect("a keyring");
        let new = rotated.seal_jwe(VALUE, &ROW).expect("sealed");
        assert_eq!(rotated.open_jwe(&old, &ROW).expect("opened").kid, "k1");
        assert_eq!(rotated.open_jwe(&new, &ROW).expect("opened").kid, "k2");
        let unknown = OpenError::UnknownKey {
            kid: "k2".to_owned(),
        };
        assert_eq!(refused(ring().open_jwe(&new, &ROW)), unknown);
    }

    #[test]
    fn a_value_moved_to_another_row_does_not_open() {
        let sealed = ring().seal_jwe(VALUE, &ROW).expect("sealed");
        let rows = [
            Context {
                tenant: Uuid::nil(),
                ..ROW
            },
            Context {
                provider: "google",
                ..ROW
            },
            Context {
                provider: "OpenAI",
                ..ROW
            },
            Context {
                name: "other",
                ..ROW
            },
            Context {
                name: "default ",
                ..ROW
            },
            Context {
                provider: "default",
                name: "openai",
                ..ROW
            },
        ];
        for row in rows {
            assert_eq!(
                refused(ring().open(&sealed, &row, None)),
                OpenError::WrongContext
            );
        }
    }

    #[test]
    fn a_header_taken_from_the_right_row_does_not_open_the_value_of_another() {
        let other = Context {
            name: "other",
            ..ROW
        };
        let mine = ring().seal_jwe("mine", &ROW).expect("sealed");
        let theirs = ring().seal_jwe("theirs", &other).expect("sealed");
        let (head, _) = mine.split_once('.').unwrap();
        let (_, rest) = theirs.split_once('.').unwrap();
        let swapped = format!("{head}.{rest}");
        assert_eq!(
            refused(ring().open_jwe(&swapped, &ROW)),
            OpenError::DoesNotOpen
        );
    }

    #[test]
    fn a_value_sealed_with_another_key_of_the_same_id_does_not_open() {
        let other = Keyring::parse(&Keyring::generate("k1").expect("a text")).expect("a keyring");
        let sealed = other.seal_jwe(VALUE, &ROW).expect("sealed");
        assert_eq!(
            refused(ring().open_jwe(&sealed, &ROW)),
            OpenError::DoesNotOpen
        );
    }

    #[test]
    fn a_value_cut_at_any_byte_does_not_open() {
        for (sealed, raw) in [(JWCRYPTO, None), (RAW, Some("k1"))] {
            for end in 0..sealed.len() {
                assert!(
                    ring().open(&sealed[..end], &ROW, raw).is_err(),
                    "cut to {end}"
                );
                assert!(
                    ring().open(&sealed[end + 1..], &ROW, raw).is_err(),
                    "cut from {end}"
                );
            }
        }
    }

    #[test]
    fn a_value_with_any_bit_flipped_does_not_open() {
        for (sealed, raw) in [(JWCRYPTO, None), (RAW, Some("k1"))] {
            for bit in 0..sealed.len() * 8 {
                let mut bytes = sealed.as_bytes().to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                // The eighth bit makes it no text at all.
                let Ok(flipped) = String::from_utf8(bytes) else {
                    continue;
                };
                assert!(ring().open(&flipped, &ROW, raw).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn white_space_around_a_value_is_ignored_and_within_it_refused() {
        for (sealed, raw) in [(JWCRYPTO, None), (RAW, Some("k1"))] {
            let spaced = format!(" \r\n\t{sealed}\n");
            assert_eq!(opened(ring().open(&spaced, &ROW, raw)), VALUE);
            for at in 1..sealed.len() {
                let spaced = format!("{}\n{}", &sealed[..at], &sealed[at..]);
                assert_eq!(
                    refused(ring().open(&spaced, &ROW, raw)),
                    OpenError::Malformed
                );
            }
            let spaced = format!("{sealed}\u{a0}");
            assert_eq!(
                refused(ring().open(&spaced, &ROW, raw)),
                OpenError::Malformed
            );
        }
    }

    #[test]
    fn a_jwe_has_five_parts_and_no_encrypted_key() {
        let (head, rest) = JWCRYPTO.split_once("..").unwrap();
        let texts = [
            format!("{head}.{rest}"),
            format!("{head}.AAAA.{rest}"),
            format!("{JWCRYPTO}."),
            format!("{JWCRYPTO}.AAAA"),
            format!(".{JWCRYPTO}"),
            "....".to_owned(),
            ".".to_owned(),
            ".".repeat(MAX_SEALED_BYTES),
        ];
        for text in texts {
            assert_eq!(
                refused(ring().open(&text, &ROW, None)),
                OpenError::Malformed
            );
        }
    }

    #[test]
    fn the_iv_has_96_bits_and_the_tag_128() {
        let parts: Vec<_> = JWCRYPTO.split('.').collect();
        for (part, bytes) in [
            (2, 11),
            (2, 13),
            (2, 16),
            (2, 0),
            (4, 15),
            (4, 12),
            (4, 17),
            (4, 0),
        ] {
            let mut parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
            parts[part] = URL_SAFE_NO_PAD.encode(vec![0; bytes]);
            let text = parts.join(".");
            assert_eq!(
                refused(ring().open_jwe(&text, &ROW)),
                OpenError::Malformed,
                "{part} {bytes}"
            );
        }
    }

    #[test]
    fn padding_and_the_standard_alphabet_are_refused_in_a_jwe() {
        let parts: Vec<_> = JWCRYPTO.split('.').collect();
        for part in [0, 2, 3, 4] {
            for pad in ["=", "==", "+", "/"] {
                let mut parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
                parts[part].push_str(pad);
                let text = parts.join(".");
                assert_eq!(refused(ring().open_jwe(&text, &ROW)), OpenError::Malformed);
            }
        }
        // The ciphertext holds a `-` and a `_`.
        let text = JWCRYPTO.replace('-', "+").replace('_', "/");
        assert_eq!(refused(ring().open_jwe(&text, &ROW)), OpenError::Malformed);
    }

    #[test]
    fn a_header_may_carry_typ_and_cty_and_nothing_else() {
        for more in ["", r#","typ":"JWE","cty":"x""#] {
            assert_eq!(opened(open_header(header(more))), "v");
        }
        let more = [
            r#","zip":"DEF""#,
            r#","crit":["exp"],"exp":1"#,
            r#","crit":[]"#,
            r#","jku":"http://127.0.0.1/""#,
            r#","apu":"""#,
            r#","":1"#,
            r#","typ":null"#,
            r#","cty":7"#,
        ];
        for more in more {
            assert_eq!(
                refused(open_header(header(more))),
                OpenError::Malformed,
                "{more}"
            );
        }
        assert_eq!(
            refused(ring().open(ZIPPED, &ROW, None)),
            OpenError::Malformed
        );
    }

    #[test]
    fn a_header_with_a_member_twice_is_refused_however_it_is_spelled() {
        let more = [
            r#","kid":"k1""#,
            r#","tenant":"00000000-0000-0000-0000-000000000000""#,
            r#","k\u0069d":"k1""#,
            r#","typ":"a","typ":"a""#,
        ];
        for more in more {
            assert_eq!(
                refused(open_header(header(more))),
                OpenError::Malformed,
                "{more}"
            );
        }
    }

    #[test]
    fn a_header_without_one_of_its_members_is_refused() {
        let whole: serde_json::Value = serde_json::from_str(&header("")).unwrap();
        for member in ["alg", "enc", "kid", "tenant", "provider", "name"] {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(member);
            assert_eq!(
                refused(open_header(less.to_string())),
                OpenError::Malformed,
                "{member}"
            );
            less[member] = serde_json::Value::Null;
            assert_eq!(
                refused(open_header(less.to_string())),
                OpenError::Malformed,
                "{member}"
            );
        }
    }

    #[test]
    fn other_algorithms_and_ill_spelled_key_ids_are_refused() {
        let changes = [
            (r#""dir""#, r#""DIR""#),
            (r#""dir""#, r#""A256KW""#),
            (r#""dir""#, r#""none""#),
            ("A256GCM", "A128GCM"),
            ("A256GCM", "A256CBC-HS512"),
            ("A256GCM", "a256gcm"),
            (r#""k1""#, r#""""#),
            (r#""k1""#, r#""k\n1""#),
            (r#""k1""#, r#""sk-live 1""#),
        ];
        for (from, to) in changes {
            let header = header("").replace(from, to);
            assert_eq!(
                refused(open_header(&header)),
                OpenError::Malformed,
                "{header}"
            );
        }
    }

    #[test]
    fn a_header_is_one_json_object() {
        let list = format!(
            r#"["dir","A256GCM","k1","{}","openai","default","",""]"#,
            ROW.tenant
        );
        let texts = [
            list,
            String::new(),
            "null".to_owned(),
            "{}".to_owned(),
            header("") + "{}",
        ];
        for text in texts {
            assert_eq!(refused(open_header(&text)), OpenError::Malformed, "{text}");
        }
        assert_eq!(
            refused(open_header(b"{\"alg\":\"\xff\"}")),
            OpenError::Malformed
        );
        assert_eq!(opened(open_header(format!(" \n{}\n", header("")))), "v");
    }

    #[test]
    fn the_tenant_is_a_uuid_with_hyphens_in_any_case() {
        let tenant = ROW.tenant.to_string();
        let upper = header("").replace(&tenant, &tenant.to_uppercase());
        assert_eq!(opened(open_header(upper)), "v");
        for other in [
            ROW.tenant.simple().to_string(),
            ROW.tenant.braced().to_string(),
            ROW.tenant.urn().to_string(),
            format!("{tenant} "),
            String::new(),
        ] {
            let header = header("").replace(&tenant, &other);
            assert_eq!(
                refused(open_header(header)),
                OpenError::Malformed,
                "{other}"
            );
        }
    }

    #[test]
    fn a_header_of_4_kib_is_read_and_a_longer_one_refused() {
        let filled = |length: usize| {
            let typ = "x".repeat(length - header(r#","typ":"""#).len());
            header(&format!(r#","typ":"{typ}""#))
        };
        assert_eq!(opened(open_header(filled(4096))), "v");
        for length in [4097, 4098, 4099, 4100, 100_000] {
            assert_eq!(
                refused(open_header(filled(length))),
                OpenError::TooLong,
                "{length}"
            );
        }
    }

    #[test]
    fn a_value_over_a_mebibyte_is_neither_sealed_nor_opened() {
        let ring = ring();
        let most = "x".repeat(780_000);
        let sealed = ring.seal_jwe(&most, &ROW).expect("sealed");
        assert_eq!(opened(ring.open(&sealed, &ROW, None)), most);
        let more = "x".repeat(790_000);
        assert_eq!(ring.seal_jwe(&more, &ROW), Err(SealError::TooLong));
        let long = "A".repeat(MAX_SEALED_BYTES + 1);
        assert_eq!(
            refused(ring.open(&long, &ROW, Some("k1"))),
            OpenError::TooLong
        );
        assert_eq!(refused(ring.open_jwe(&long, &ROW)), OpenError::TooLong);
        assert_eq!(refused(ring.open_raw(&long, "k1")), OpenError::TooLong);
        let name = "x".repeat(4096);
        let row = Context { name: &name, ..ROW };
        assert_eq!(ring.seal_jwe("v", &row), Err(SealError::TooLong));
    }

    #[test]
    fn a_value_that_is_no_text_is_refused_and_an_empty_one_is_not() {
        let sealed = sealed_with(header(""), b"\xff\xfe");
        assert_eq!(refused(ring().open_jwe(&sealed, &ROW)), OpenError::NotText);
        let sealed = sealed_with(header(""), b"");
        assert_eq!(opened(ring().open_jwe(&sealed, &ROW)), "");
    }

    #[test]
    fn the_raw_form_opens_only_with_the_key_that_is_named_for_it() {
        let ring = Keyring::parse(&Keyring::add(RING, "k2").expect("added")).expect("a keyring");
        let one = ring.open(RAW, &ROW, Some("k1")).expect("opened");
        assert_eq!((one.secret.expose(), one.kid.as_str()), (VALUE, "k1"));
        assert_eq!(refused(ring.open(RAW, &ROW, None)), OpenError::NotAllowed);
        assert_eq!(
            refused(ring.open(RAW, &ROW, Some("k2"))),
            OpenError::DoesNotOpen
        );
        let unknown = OpenError::UnknownKey {
            kid: "k3".to_owned(),
        };
        assert_eq!(refused(ring.open(RAW, &ROW, Some("k3"))), unknown);
    }

    #[test]
    fn the_raw_form_is_padded_standard_base64_of_at_least_nonce_and_tag() {
        let texts = [
            RAW.trim_end_matches('=').to_owned(),
            RAW.replace('+', "-").replace('/', "_"),
            STANDARD.encode([0; 27]),
        ];
        for text in texts {
            assert_eq!(
                refused(ring().open(&text, &ROW, Some("k1"))),
                OpenError::Malformed
            );
        }
        let least = STANDARD.encode([0; 28]);
        assert_eq!(
            refused(ring().open(&least, &ROW, Some("k1"))),
            OpenError::DoesNotOpen
        );
    }

    #[test]
    fn a_jwe_stripped_of_its_header_does_not_open_as_the_raw_form() {
        let parts: Vec<_> = JWCRYPTO
            .split('.')
            .skip(2)
            .map(|part| decode(part).unwrap())
            .collect();
        let raw = STANDARD.encode(parts.concat());
        assert_eq!(
            refused(ring().open(&raw, &ROW, Some("k1"))),
            OpenError::DoesNotOpen
        );
    }

    #[test]
    fn an_empty_value_is_malformed_even_where_the_raw_form_is_off() {
        for text in ["", " \n"] {
            assert_eq!(refused(ring().open(text, &ROW, None)), OpenError::Malformed);
        }
    }

    #[test]
    fn an_opened_value_is_not_printed() {
        let opened = ring().open_jwe(JWCRYPTO, &ROW).expect("opened");
        assert!(!format!("{opened:?}").contains("sk-"));
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens_again(value: String, provider in "\\PC{0,50}", name: String, tenant: u128) {
            let row = Context { tenant: Uuid::from_u128(tenant), provider: &provider, name: &name };
            let sealed = ring().seal_jwe(&value, &row).unwrap();
            prop_assert_eq!(opened(ring().open(&sealed, &row, None)), value);
        }

        #[test]
        fn whatever_was_not_sealed_does_not_open(text: String) {
            prop_assert!(ring().open(&text, &ROW, Some("k1")).is_err());
        }

        #[test]
        fn whatever_looks_like_a_jwe_but_is_none_does_not_open(
            text in "[A-Za-z0-9_=-]{0,40}(\\.[A-Za-z0-9_=-]{0,24}){0,6}",
            head in "[ -~]{0,40}",
        ) {
            prop_assert!(ring().open(&text, &ROW, Some("k1")).is_err());
            prop_assert!(open_header(&head).is_err());
            prop_assert!(open_header(header(&head)).is_err() || head.trim().is_empty());
        }
    }
}
