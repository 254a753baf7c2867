//! The rules of a binding: `conditions_json` read once into what must hold of a call and what follows
//! if it does, and asked per call.
//!
//! Rules are whole or invalid: nothing that is not understood is passed over. Asking them allocates
//! nothing and waits for nothing.

#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;

use jiff::tz::TimeZone;
use oxilangtag::LanguageTag;
use serde_json::Value;

/// Most keys of one `conditions_json`, conditions and effects together.
pub const MAX_KEYS: usize = 64;

/// Most values of one list.
pub const MAX_LIST: usize = 1000;

/// Most bytes of a key.
pub const MAX_KEY_BYTES: usize = 128;

/// Most bytes of a string to compare with: what the value of a call's attribute may have.
pub const MAX_VALUE_BYTES: usize = 256;

/// Characters of `tenant_phone_numbers.default_language`.
pub const LANGUAGE_CHARS: usize = 10;

/// Characters of `tenant_phone_numbers.default_voice`.
pub const VOICE_CHARS: usize = 50;

/// Characters of `tenant_phone_numbers.timezone`.
pub const TIMEZONE_CHARS: usize = 50;

/// Characters of `tenant_settings.model`.
pub const MODEL_CHARS: usize = 100;

/// Characters of `tenant_settings.transcription_provider`.
pub const TRANSCRIPTION_PROVIDER_CHARS: usize = 50;

/// The attribute that is worked out from the tenant's hours when the caller does not give it.
pub const OUTSIDE_BUSINESS_HOURS: &str = "outside_business_hours";

/// What the caller says of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// The account called about, the attribute `account_ref`. Not looked for in `attributes`.
    pub account_ref: Option<String>,
    /// What happened, the attribute `event_type`. Not looked for in `attributes`.
    pub event_type: Option<String>,
    /// Every other attribute by its name without `attr.`, also `zone` and
    /// [`OUTSIDE_BUSINESS_HOURS`], each with its values as given. One without values is missing; an
    /// empty value is a value.
    pub attributes: BTreeMap<String, Vec<String>>,
}

impl Call {
    /// The values of an attribute, none when it is missing.
    fn values(&self, attribute: &Attribute) -> &[String] {
        match attribute {
            Attribute::AccountRef => self.account_ref.as_slice(),
            Attribute::EventType => self.event_type.as_slice(),
            Attribute::Other(name) => self.other(name),
        }
    }

    fn other(&self, name: &str) -> &[String] {
        self.attributes.get(name).map_or(&[], Vec::as_slice)
    }
}

/// What a binding asks of a call, and what it changes in the answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// All must hold; none holds always. In the order of the keys.
    pub conditions: Vec<Condition>,
    /// What follows if they do.
    pub effects: Effects,
}

impl Rules {
    /// Whether every condition holds of the call. `outside_business_hours` is what the tenant's hours
    /// say, false without any; the caller's own word goes before it.
    pub fn holds(&self, call: &Call, outside_business_hours: bool) -> bool {
        self.first_failing(call, outside_business_hours).is_none()
    }

    /// The first condition that does not hold of the call, for explaining why the rules do not.
    pub fn first_failing(&self, call: &Call, outside_business_hours: bool) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| !condition.holds(call, outside_business_hours))
    }
}

/// What an answer has instead of the number's and the tenant's own values. Every value fits its
/// column and is free of control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// `language_override`: a well-formed BCP 47 tag, as written.
    pub language: Option<String>,
    /// `voice_override`; empty for no voice of ours.
    pub voice: Option<String>,
    /// `timezone_override`: a zone of the IANA database, in its spelling there.
    pub timezone: Option<String>,
    /// `model_override`; empty for no model of ours.
    pub model: Option<String>,
    /// `transcription_provider_override`; empty for no transcription of ours.
    pub transcription_provider: Option<String>,
    /// `recording_enabled_override`.
    pub recording_enabled: Option<bool>,
}

/// The attribute of a call that a condition tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// [`Call::account_ref`]
    AccountRef,
    /// [`Call::event_type`]
    EventType,
    /// One of [`Call::attributes`].
    Other(Box<str>),
}

/// One key of `conditions_json` that must hold. Shown as explain names it: `zone_in [Z1, Z2]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// `<name>`: a value of the attribute equals this one.
    Equals {
        /// What is tested.
        attribute: Attribute,
        /// What for.
        value: Wanted,
    },
    /// `<name>_in`: a value of the attribute is in the list, so never with an empty list.
    In {
        /// What is tested.
        attribute: Attribute,
        /// What for.
        values: Vec<Wanted>,
    },
    /// `<name>_not_in`: the attribute is given and none of its values is in the list. Of
    /// `zone=Z1&zone=Z2`, one zone in the list is enough to keep a binding out that excludes it.
    NotIn {
        /// What is tested.
        attribute: Attribute,
        /// What for.
        values: Vec<Wanted>,
    },
    /// `outside_business_hours`: the caller's attribute, or else the tenant's hours, say this. A
    /// caller's value that is no boolean says neither.
    OutsideBusinessHours(bool),
}

/// A value that an attribute is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// Equals a text that is the same ignoring ASCII case and the white space around it. Trimmed.
    Text(Box<str>),
    /// Equals a text that reads as the same number.
    Number(Number),
    /// Equals `true` or `1`, `false` or `0`, ignoring ASCII case and the white space around it.
    Bool(bool),
}

/// A number as it is compared: integers of 64 bits exactly, in whichever way they are written, all else as the nearest
/// double: JSON's larger integers are read as such. So `1`, `01`, `+1`, `1.0` and `1e0` are one number, and
/// 9007199254740993 is not 9007199254740992.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A whole number.
    Integer(i128),
    /// A finite one with a fraction, or of more than 64 bits.
    Real(f64),
}

/// Why `conditions_json` makes its binding invalid. Names the key, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConditions {
    /// Something other than an object or null.
    #[error("conditions_json: must be an object")]
    NotAnObject,
    /// More than [`MAX_KEYS`].
    #[error("conditions_json: has more than {MAX_KEYS} keys; split the binding")]
    TooManyKeys,
    /// A key longer than [`MAX_KEY_BYTES`].
    #[error("conditions_json: has a key of more than {MAX_KEY_BYTES} bytes")]
    KeyTooLong,
    /// A key that names no attribute.
    #[error("conditions_json.{key}: must name an attribute")]
    NoName {
        /// The key met.
        key: Key,
    },
    /// A key that ends in `_override` and is no effect.
    #[error(
        "conditions_json.{key}: must be language_override, voice_override, timezone_override, \
         model_override, transcription_provider_override or recording_enabled_override"
    )]
    UnknownOverride {
        /// The key met.
        key: Key,
    },
    /// A key that ends in `_in`, and its value is no list, or holds a list, an object or null.
    #[error("conditions_json.{key}: must be a list of strings, numbers or booleans")]
    NotAList {
        /// The key meant.
        key: Key,
    },
    /// A list of more than [`MAX_LIST`] values.
    #[error("conditions_json.{key}: has more than {MAX_LIST} values")]
    ListTooLong {
        /// The key meant.
        key: Key,
    },
    /// A value that is a list, an object or null.
    #[error("conditions_json.{key}: must be a string, a number or a boolean")]
    NotAScalar {
        /// The key meant.
        key: Key,
    },
    /// A value of a key that is true or false, and this is something else.
    #[error("conditions_json.{key}: must be true or false")]
    NotABool {
        /// The key meant.
        key: Key,
    },
    /// An effect that is a string, and this is something else.
    #[error("conditions_json.{key}: must be a string")]
    NotAString {
        /// The key meant.
        key: Key,
    },
    /// A string to compare with that is longer than [`MAX_VALUE_BYTES`].
    #[error("conditions_json.{key}: has a string of more than {MAX_VALUE_BYTES} bytes")]
    ValueTooLong {
        /// The key meant.
        key: Key,
    },
    /// An effect that does not fit the column it stands in for.
    #[error("conditions_json.{key}: must have at most {chars} characters")]
    EffectTooLong {
        /// The key meant.
        key: Key,
        /// What the column holds.
        chars: usize,
    },
    /// A control character in a key or a string.
    #[error("conditions_json.{key}: has a control character; remove it")]
    ControlCharacter {
        /// The key meant.
        key: Key,
    },
    /// A language that is no BCP 47 tag.
    #[error("conditions_json.{key}: must be a BCP 47 language tag such as es-AR")]
    NotALanguage {
        /// The key meant.
        key: Key,
    },
    /// A timezone that the IANA database does not have.
    #[error("conditions_json.{key}: must be an IANA timezone such as America/Santiago")]
    NotATimezone {
        /// The key meant.
        key: Key,
    },
}

/// A key of `conditions_json` as an error shows it: printable and at most [`MAX_KEY_BYTES`] before
/// that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(Box<str>);

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self(key.escape_debug().to_string().into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the column; null is the same as `{}`.
///
/// # Errors
/// [`InvalidConditions`] for the first key that is not understood in full.
pub fn compile(json: &Value) -> Result<Rules, InvalidConditions> {
    let keys = match json {
        Value::Null => return Ok(Rules::default()),
        Value::Object(keys) => keys,
        _ => return Err(InvalidConditions::NotAnObject),
    };
    if keys.len() > MAX_KEYS {
        return Err(InvalidConditions::TooManyKeys);
    }
    let mut rules = Rules::default();
    for (key, value) in keys {
        if key.len() > MAX_KEY_BYTES {
            return Err(InvalidConditions::KeyTooLong);
        }
        if key.contains(char::is_control) {
            return Err(InvalidConditions::ControlCharacter {
                key: key.as_str().into(),
            });
        }
        if key.ends_with("_override") {
            rules.effects.read(key, value)?;
        } else {
            rules.conditions.push(Condition::read(key, value)?);
        }
    }
    Ok(rules)
}

impl Effects {
    fn read(&mut self, key: &str, value: &Value) -> Result<(), InvalidConditions> {
        match key {
            "language_override" => {
                let tag = effect(key, value, LANGUAGE_CHARS)?;
                LanguageTag::parse(tag)
                    .map_err(|_| InvalidConditions::NotALanguage { key: key.into() })?;
                self.language = Some(tag.to_owned());
            }
            "voice_override" => self.voice = Some(effect(key, value, VOICE_CHARS)?.to_owned()),
            "timezone_override" => {
                let name = zone_name(effect(key, value, TIMEZONE_CHARS)?)
                    .ok_or_else(|| InvalidConditions::NotATimezone { key: key.into() })?;
                self.timezone = Some(name);
            }
            "model_override" => self.model = Some(effect(key, value, MODEL_CHARS)?.to_owned()),
            "transcription_provider_override" => {
                let provider = effect(key, value, TRANSCRIPTION_PROVIDER_CHARS)?;
                self.transcription_provider = Some(provider.to_owned());
            }
            "recording_enabled_override" => self.recording_enabled = Some(boolean(key, value)?),
            _ => return Err(InvalidConditions::UnknownOverride { key: key.into() }),
        }
        Ok(())
    }
}

impl Condition {
    fn read(key: &str, value: &Value) -> Result<Self, InvalidConditions> {
        if key == OUTSIDE_BUSINESS_HOURS {
            return boolean(key, value).map(Self::OutsideBusinessHours);
        }
        if let Some(name) = key.strip_suffix("_not_in") {
            let attribute = Attribute::read(key, name)?;
            return Ok(Self::NotIn {
                attribute,
                values: list(key, value)?,
            });
        }
        if let Some(name) = key.strip_suffix("_in") {
            let attribute = Attribute::read(key, name)?;
            return Ok(Self::In {
                attribute,
                values: list(key, value)?,
            });
        }
        let attribute = Attribute::read(key, key)?;
        let value = Wanted::read(key, value)?
            .ok_or_else(|| InvalidConditions::NotAScalar { key: key.into() })?;
        Ok(Self::Equals { attribute, value })
    }

    /// Whether this holds of the call; [`Rules::holds`] for all of them.
    pub fn holds(&self, call: &Call, outside_business_hours: bool) -> bool {
        match self {
            Self::Equals { attribute, value } => {
                any_in(call.values(attribute), std::slice::from_ref(value))
            }
            Self::In { attribute, values } => any_in(call.values(attribute), values),
            Self::NotIn { attribute, values } => {
                let given = call.values(attribute);
                !given.is_empty() && !any_in(given, values)
            }
            Self::OutsideBusinessHours(wanted) => match call.other(OUTSIDE_BUSINESS_HOURS) {
                [] => *wanted == outside_business_hours,
                given => any_in(given, &[Wanted::Bool(*wanted)]),
            },
        }
    }
}

/// Whether one of the values given is one of those wanted.
fn any_in(given: &[String], wanted: &[Wanted]) -> bool {
    given.iter().any(|text| {
        let given = Given {
            text: text.trim(),
            number: OnceCell::new(),
        };
        wanted.iter().any(|wanted| given.equals(wanted))
    })
}

/// A value of a call's attribute, read as a number at most once.
struct Given<'a> {
    text: &'a str,
    number: OnceCell<Option<Number>>,
}

impl Given<'_> {
    fn equals(&self, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::Text(text) => self.text.eq_ignore_ascii_case(text),
            Wanted::Number(number) => {
                let said = self.number.get_or_init(|| Number::parse(self.text));
                said.is_some_and(|said| number.is(said))
            }
            Wanted::Bool(true) => self.text == "1" || self.text.eq_ignore_ascii_case("true"),
            Wanted::Bool(false) => self.text == "0" || self.text.eq_ignore_ascii_case("false"),
        }
    }
}

impl Attribute {
    /// The attribute that `name`, the part of `key` before its suffix, stands for.
    fn read(key: &str, name: &str) -> Result<Self, InvalidConditions> {
        match name {
            "" => Err(InvalidConditions::NoName { key: key.into() }),
            "account_ref" => Ok(Self::AccountRef),
            "event_type" => Ok(Self::EventType),
            _ => Ok(Self::Other(name.into())),
        }
    }
}

impl Wanted {
    /// The value of `key`, or one value of its list; none if it is a list, an object or null.
    fn read(key: &str, value: &Value) -> Result<Option<Self>, InvalidConditions> {
        Ok(match value {
            Value::String(text) => {
                let text = text.trim();
                if text.len() > MAX_VALUE_BYTES {
                    return Err(InvalidConditions::ValueTooLong { key: key.into() });
                }
                if text.contains(char::is_control) {
                    return Err(InvalidConditions::ControlCharacter { key: key.into() });
                }
                Some(Self::Text(text.into()))
            }
            Value::Number(number) => Number::of_json(number).map(Self::Number),
            Value::Bool(value) => Some(Self::Bool(*value)),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        })
    }
}

/// Integers that JSON is read with exactly.
const EXACT: std::ops::RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

impl Number {
    fn of_json(number: &serde_json::Number) -> Option<Self> {
        let integer = number.as_i128().map(Self::Integer);
        integer.or_else(|| number.as_f64().and_then(Self::of_double))
    }

    /// The number that a text without white space around it is, if it is one.
    fn parse(text: &str) -> Option<Self> {
        let integer = text.parse().ok().map(Self::Integer);
        integer.or_else(|| text.parse().ok().and_then(Self::of_double))
    }

    /// Whether a text that reads as that number says this one.
    fn is(self, said: Self) -> bool {
        match (self, said) {
            // JSON's larger integers were rounded when they were read.
            (Self::Real(real), Self::Integer(integer)) => real == integer as f64,
            (number, said) => number == said,
        }
    }

    /// None for what is not finite: texts such as `inf` and `nan` are no numbers here.
    fn of_double(double: f64) -> Option<Self> {
        let whole = double as i128; // exact where the next line says so, saturated elsewhere
        if !double.is_finite() {
            None
        } else if double.fract() == 0.0 && EXACT.contains(&whole) {
            Some(Self::Integer(whole))
        } else {
            Some(Self::Real(double))
        }
    }
}

fn list(key: &str, value: &Value) -> Result<Vec<Wanted>, InvalidConditions> {
    let not_a_list = || InvalidConditions::NotAList { key: key.into() };
    let values = value.as_array().ok_or_else(not_a_list)?;
    if values.len() > MAX_LIST {
        return Err(InvalidConditions::ListTooLong { key: key.into() });
    }
    values
        .iter()
        .map(|value| Wanted::read(key, value)?.ok_or_else(not_a_list))
        .collect()
}

fn boolean(key: &str, value: &Value) -> Result<bool, InvalidConditions> {
    value
        .as_bool()
        .ok_or_else(|| InvalidConditions::NotABool { key: key.into() })
}

/// The string of an effect, if the column it stands in for could hold it.
fn effect<'a>(key: &str, value: &'a Value, chars: usize) -> Result<&'a str, InvalidConditions> {
    let text = value
        .as_str()
        .ok_or_else(|| InvalidConditions::NotAString { key: key.into() })?;
    if text.chars().nth(chars).is_some() {
        return Err(InvalidConditions::EffectTooLong {
            key: key.into(),
            chars,
        });
    }
    if text.contains(char::is_control) {
        return Err(InvalidConditions::ControlCharacter { key: key.into() });
    }
    Ok(text)
}

/// The name of a zone in the spelling of the IANA database, which is searched ignoring ASCII case.
fn zone_name(text: &str) -> Option<String> {
    let zone = TimeZone::get(text).ok()?;
    if zone.is_unknown() {
        None
    } else {
        zone.iana_name().map(str::to_owned)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equals { attribute, value } => write!(f, "{attribute} = {value}"),
            Self::In { attribute, values } => {
                write!(f, "{attribute}_in ")?;
                write_list(f, values)
            }
            Self::NotIn { attribute, values } => {
                write!(f, "{attribute}_not_in ")?;
                write_list(f, values)
            }
            Self::OutsideBusinessHours(value) => write!(f, "{OUTSIDE_BUSINESS_HOURS} = {value}"),
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, values: &[Wanted]) -> fmt::Result {
    let mut separator = "[";
    for value in values {
        write!(f, "{separator}{value}")?;
        separator = ", ";
    }
    f.write_str(if values.is_empty() { "[]" } else { "]" })
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccountRef => "account_ref",
            Self::EventType => "event_type",
            Self::Other(name) => name,
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(Number::Integer(integer)) => write!(f, "{integer}"),
            Self::Number(Number::Real(real)) => write!(f, "{real:?}"), // 1e300, not 301 digits
            Self::Bool(value) => write!(f, "{value}"),
        }
    }
}
