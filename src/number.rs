//! A phone number in its one spelling, and how the spellings callers send become it.
//!
//! An [`E164`] is `+` and 7 to 15 digits, the first of them 1 to 9: no other value of the type
//! exists. Reading a spelling takes time linear in its length, never panics, and no error says what
//! was read.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fewest digits of a number.
pub const MIN_DIGITS: usize = 7;

/// Most digits of a number: what E.164 allows.
pub const MAX_DIGITS: usize = 15;

/// Most digits of a prefix that callers dial in front of a number.
pub const MAX_PREFIX_DIGITS: usize = 7;

/// Most digits of a country code.
pub const MAX_COUNTRY_CODE_DIGITS: usize = 3;

/// How often a spelling is percent-decoded here. A query arrives decoded once already, so one round
/// opens double encoding; the second does the same for a JSON body, which arrives as it was sent.
const DECODINGS: usize = 2;

/// The sign and the most digits.
const BYTES: usize = 16;

/// Why a spelling is no phone number. Says nothing of the spelling itself: numbers belong to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNumber {
    /// Nothing to dial is left once the decoration is gone.
    #[error("number: holds no digit; send E.164, such as +14155550100")]
    Empty,
    /// A letter, a `*`, a second `+`, bytes that are no UTF-8.
    #[error("number: holds a character that no number has; send E.164, such as +14155550100")]
    Character,
    /// A `<` that is not closed, or more than parameters after `>`.
    #[error("number: is not one address; send one number, or one sip, sips or tel URI")]
    Address,
    /// Too few or too many digits, or a leading zero that no dialling rule explains.
    #[error("number: needs 7 to 15 digits after the +, the first of them 1 to 9")]
    Digits,
}

/// A phone number: `+` and 7 to 15 digits, the first of them 1 to 9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct E164([u8; BYTES]); // ASCII, padded with zero bytes, so that bytes order as the text does

impl E164 {
    /// The number as text, the `+` included.
    pub fn as_str(&self) -> &str {
        let text = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default() // ASCII since `from_digits`
    }

    /// The number whose digits are these pieces, one after the other.
    fn from_digits(pieces: &[&str]) -> Result<Self, InvalidNumber> {
        let mut bytes = [0; BYTES];
        let mut free = bytes.iter_mut();
        let mut digits = 0_usize;
        if let Some(sign) = free.next() {
            *sign = b'+';
        }
        for byte in pieces.iter().flat_map(|piece| piece.bytes()) {
            let first_is_zero = digits == 0 && byte == b'0';
            if !byte.is_ascii_digit() || first_is_zero {
                return Err(InvalidNumber::Digits);
            }
            *free.next().ok_or(InvalidNumber::Digits)? = byte;
            digits = digits.saturating_add(1);
        }
        if digits < MIN_DIGITS {
            return Err(InvalidNumber::Digits);
        }
        Ok(Self(bytes))
    }
}

impl FromStr for E164 {
    type Err = InvalidNumber;

    /// Reads the one spelling and no other: `^\+[1-9][0-9]{6,14}$`.
    fn from_str(text: &str) -> Result<Self, InvalidNumber> {
        let digits = text.strip_prefix('+').ok_or(InvalidNumber::Digits)?;
        Self::from_digits(&[digits])
    }
}

impl TryFrom<&str> for E164 {
    type Error = InvalidNumber;

    fn try_from(text: &str) -> Result<Self, InvalidNumber> {
        text.parse()
    }
}

impl AsRef<str> for E164 {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for E164 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for E164 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for E164 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for E164 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text {
            expecting: "a number such as \"+14155550100\"",
            read: |text| text.parse().map_err(|err: InvalidNumber| err.to_string()),
        })
    }
}

/// How numbers are dialled at this node, for callers that do not send `+`.
///
/// A spelling with a leading `+` means the same under every rule here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dialling {
    /// What is dialled in front of a country code: digits that begin with it are read as `+` and the
    /// rest. Up to 7 digits in quotes, `"00"` unless set. Empty: no digits are read that way.
    pub international_prefix: Prefix,
    /// The country of numbers dialled without one, 1 to 3 digits without `+`. Unset (`""`) unless
    /// set: digits are then read only as a number with its country code. Set: digits that are no
    /// number of the platform that way are tried as a number of this country.
    pub country_code: CountryCode,
    /// What is dialled in front of a number within the country, dropped once before `country_code`
    /// is put there. Up to 7 digits in quotes, `"0"` unless set. Empty: nothing is dropped. Without
    /// `country_code` it has no effect.
    pub trunk_prefix: Prefix,
}

impl Default for Dialling {
    fn default() -> Self {
        Self {
            international_prefix: Prefix("00".into()),
            country_code: CountryCode::default(),
            trunk_prefix: Prefix("0".into()),
        }
    }
}

/// Why a setting of [`Dialling`] is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDialling {
    /// Something other than digits, or too many of them.
    #[error("a prefix is up to 7 digits, such as \"00\", or \"\" for none")]
    Prefix,
    /// No country has this code.
    #[error("a country code is 1 to 3 digits without +, the first 1 to 9, or \"\" for none")]
    CountryCode,
}

/// Digits dialled in front of a number: none to 7.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix(Box<str>);

/// The code of a country, 1 to 3 digits with the first 1 to 9, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountryCode(Box<str>);

impl Prefix {
    /// The digits, empty for none.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows this prefix in `digits`; nothing follows a prefix that is not set.
    fn strip<'a>(&self, digits: &'a str) -> Option<&'a str> {
        if self.0.is_empty() {
            None
        } else {
            digits.strip_prefix(&*self.0)
        }
    }
}

impl CountryCode {
    /// The digits, empty for none.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Prefix {
    type Err = InvalidDialling;

    fn from_str(text: &str) -> Result<Self, InvalidDialling> {
        let fits = text.len() <= MAX_PREFIX_DIGITS && text.bytes().all(|b| b.is_ascii_digit());
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDialling::Prefix)
        }
    }
}

impl FromStr for CountryCode {
    type Err = InvalidDialling;

    fn from_str(text: &str) -> Result<Self, InvalidDialling> {
        let fits = text.len() <= MAX_COUNTRY_CODE_DIGITS
            && text.bytes().all(|b| b.is_ascii_digit())
            && !text.starts_with('0');
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDialling::CountryCode)
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl Serialize for CountryCode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    /// Reads text only: a bare `00` has lost a digit by the time it is a number.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text {
            expecting: "digits in quotes, such as \"00\"",
            read: |text| text.parse().map_err(|err: InvalidDialling| err.to_string()),
        })
    }
}

impl<'de> Deserialize<'de> for CountryCode {
    /// Reads text, and a bare number as well: no code begins with a zero that could get lost, and an
    /// environment variable `…COUNTRY_CODE=54` arrives as a number.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl Visitor<'_> for TextOrNumber {
            type Value = CountryCode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a country code such as \"54\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CountryCode, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<CountryCode, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<CountryCode, E> {
                self.visit_str(&number.to_string())
            }
        }
        from.deserialize_any(TextOrNumber)
    }
}

/// Deserialises what is written as text, without a copy of it.
struct Text<T> {
    expecting: &'static str,
    read: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }
}

/// The numbers one spelling may mean, the likelier first. A caller looks up each until one is known.
///
/// There is a second one only for bare digits with [`Dialling::country_code`] set: `1145678901` is
/// first `+1145678901`, and if nobody has that number, `+541145678901`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// What the spelling means if that number exists.
    pub first: E164,
    /// What it means otherwise: the number within the country. Never equal to `first`.
    pub second: Option<E164>,
}

impl Readings {
    /// The readings in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = E164> {
        [Some(self.first), self.second].into_iter().flatten()
    }
}

/// The first of the [`readings`] of a spelling: all there is unless a country code is set.
///
/// # Errors
/// As [`readings`].
pub fn normalise(raw: &str, rules: &Dialling) -> Result<E164, InvalidNumber> {
    readings(raw, rules).map(|readings| readings.first)
}

/// Which numbers `raw` may mean: a number as callers write it, decoded once from a query (with `+`
/// left alone) or taken from a body.
///
/// Dropped are left-over percent-encoding, display name and `<>`, `sip:`, `sips:` or `tel:`, host,
/// `:password`, URI headers and parameters, spaces, no-break spaces and the separators `-./()`.
/// The rest is digits, and a global number if a `+` leads. Digits alone follow, in this order, a
/// global `phone-context` of the URI, the international prefix, and else the two [`Readings`].
///
/// # Errors
/// [`InvalidNumber`] when no reading is 7 to 15 digits with the first 1 to 9.
pub fn readings(raw: &str, rules: &Dialling) -> Result<Readings, InvalidNumber> {
    let text = decoded(raw)?;
    let uri = Uri::split(without_scheme(address(&text)?));
    let dialled = Dialled::read(uri.user)?;
    let digits = dialled.digits.as_str();
    if dialled.global {
        return only(E164::from_digits(&[digits]));
    }
    if let Some(context) = uri.context() {
        return only(E164::from_digits(&[&context, digits]));
    }
    if let Some(rest) = rules.international_prefix.strip(digits) {
        return only(E164::from_digits(&[rest]));
    }
    let exact = E164::from_digits(&[digits]);
    match (exact, national(digits, rules)) {
        (Ok(first), second) => Ok(Readings {
            first,
            second: second.filter(|second| *second != first),
        }),
        (Err(_), Some(first)) => Ok(Readings {
            first,
            second: None,
        }),
        (Err(err), None) => Err(err),
    }
}

fn only(number: Result<E164, InvalidNumber>) -> Result<Readings, InvalidNumber> {
    number.map(|first| Readings {
        first,
        second: None,
    })
}

/// The digits as a number within the country, if the node has one.
fn national(digits: &str, rules: &Dialling) -> Option<E164> {
    let country = rules.country_code.as_str();
    if country.is_empty() {
        return None;
    }
    let subscriber = rules.trunk_prefix.strip(digits).unwrap_or(digits);
    E164::from_digits(&[country, subscriber]).ok()
}

/// The spelling without the percent-encoding it may still carry.
fn decoded(raw: &str) -> Result<Cow<'_, str>, InvalidNumber> {
    let mut text = Cow::Borrowed(raw);
    for _ in 0..DECODINGS {
        if !text.contains('%') {
            break;
        }
        let plain = percent_decode_str(&text).decode_utf8();
        text = Cow::Owned(plain.map_err(|_| InvalidNumber::Character)?.into_owned());
    }
    Ok(text)
}

/// What stands between `<` and `>`, or everything when there is no `<` outside a quoted name.
fn address(text: &str) -> Result<&str, InvalidNumber> {
    let mut quoted = false;
    let mut escaped = false;
    let open = text.find(|c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '<' if !quoted => return true,
            _ => {}
        }
        false
    });
    let Some((_, from_bracket)) = open.and_then(|at| text.split_at_checked(at)) else {
        return Ok(text);
    };
    let inside = from_bracket.strip_prefix('<').unwrap_or(from_bracket);
    let (uri, after) = inside.split_once('>').ok_or(InvalidNumber::Address)?;
    match after.trim_start_matches(is_space).chars().next() {
        None | Some(';') => Ok(uri),
        Some(_) => Err(InvalidNumber::Address),
    }
}

fn without_scheme(text: &str) -> &str {
    let text = text.trim_start_matches(is_space);
    match text.split_once(':') {
        Some((scheme, rest))
            if ["sip", "sips", "tel"]
                .iter()
                .any(|known| scheme.eq_ignore_ascii_case(known)) =>
        {
            rest
        }
        _ => text,
    }
}

/// A URI behind its scheme: `user;parameters:password@host;parameters?headers`, all but the user
/// optional.
struct Uri<'a> {
    user: &'a str,
    user_parameters: &'a str,
    host_parameters: &'a str,
}

impl<'a> Uri<'a> {
    fn split(text: &'a str) -> Self {
        let (user_side, host_side) = match text.split_once('@') {
            // In front of a host, `:` begins the password, also behind the user's parameters.
            Some((user, host)) => (before(user, &[':']), host),
            // Without a host, a parameter may hold `:`.
            None => (text, ""),
        };
        Self {
            user: before(user_side, &[';', ':', '?']),
            user_parameters: parameters(user_side),
            host_parameters: parameters(host_side),
        }
    }

    /// The digits of the first global `phone-context`; a domain in its place says nothing to us.
    fn context(&self) -> Option<String> {
        let parameters = self
            .user_parameters
            .split(';')
            .chain(self.host_parameters.split(';'));
        parameters
            .filter_map(|parameter| parameter.split_once('='))
            .find_map(|(name, value)| {
                if !name
                    .trim_matches(is_space)
                    .eq_ignore_ascii_case("phone-context")
                {
                    return None;
                }
                let context = Dialled::read(value).ok()?;
                context.global.then_some(context.digits)
            })
    }
}

/// The text up to the first of these characters.
fn before<'a>(text: &'a str, ends: &[char]) -> &'a str {
    text.split(ends).next().unwrap_or_default()
}

/// What stands behind the first `;`, without the headers that a `?` begins.
fn parameters(text: &str) -> &str {
    before(text, &['?'])
        .split_once(';')
        .map_or("", |(_, parameters)| parameters)
}

/// What is left to dial once spaces and separators are gone.
struct Dialled {
    /// A `+` led the digits.
    global: bool,
    /// One at least.
    digits: String,
}

impl Dialled {
    fn read(text: &str) -> Result<Self, InvalidNumber> {
        let mut global = false;
        let mut digits = String::new();
        for c in text.chars() {
            match c {
                '0'..='9' => digits.push(c),
                '+' if !global && digits.is_empty() => global = true,
                '-' | '.' | '(' | ')' | '/' => {}
                _ if is_space(c) => {}
                _ => return Err(InvalidNumber::Character),
            }
        }
        if digits.is_empty() {
            Err(InvalidNumber::Empty)
        } else {
            Ok(Self { global, digits })
        }
    }
}

/// A space, or one of the no-break spaces that address books put between the groups of a number:
/// U+00A0, figure space, narrow no-break space, word joiner, zero width no-break space.
fn is_space(c: char) -> bool {
    matches!(
        c,
        ' ' | '\u{a0}' | '\u{2007}' | '\u{202f}' | '\u{2060}' | '\u{feff}'
    )
}
