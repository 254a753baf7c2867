//! What a question says: the parameters of a query or a form, or a JSON object, read strictly.
//!
//! A `+` is a plus, never a space; text is percent-decoded once and is UTF-8; a parameter stands once, `zone` and
//! `attr.*` excepted; values have at most 256 bytes and no control characters. Parameters that nobody knows are
//! passed over. No error repeats what was sent.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::wire::{Fail, Form};
use crate::condition::{Call, MAX_KEY_BYTES, OUTSIDE_BUSINESS_HOURS};
use crate::metrics::Outcome;

/// Most bytes of a value.
const MOST_VALUE_BYTES: usize = 256;

/// Most parameters of one question, repetitions and unknown ones included.
const MOST_PARAMETERS: usize = 64;

/// What the parameter of an attribute without a name of its own begins with.
const ATTRIBUTE: &str = "attr.";

/// A question, before anybody is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Question {
    /// The called number as it was sent.
    pub(super) to: Option<String>,
    pub(super) call: Call,
    /// The instant; now, where it is not given.
    pub(super) at: Option<Timestamp>,
    /// Whether the answer is to hold the credentials.
    pub(super) credentials: bool,
    /// The only provider whose credentials are wanted.
    pub(super) provider: Option<String>,
    /// Whether the answer is wanted as `key=value&…`.
    pairs: bool,
    /// Parameters of [`KNOWN`] that were given, a bit for each.
    seen: u16,
    count: usize,
}

/// The question of a query.
pub(super) fn query(text: &str) -> Result<Question, Fail> {
    let mut question = Question::default();
    question.pairs(text)?;
    Ok(question)
}

/// How errors of a query are told, also when it cannot be read.
pub(super) fn form_of(text: &str) -> Form {
    if text.split('&').any(|pair| pair == "format=form") {
        Form::Pairs
    } else {
        Form::Json
    }
}

/// The values of these parameters of a query, each at most once, and nothing of any other.
pub(super) fn only<const N: usize>(
    text: &str,
    names: [&str; N],
) -> Result<[Option<String>; N], Fail> {
    let mut found = [const { None }; N];
    let mut count: usize = 0;
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        count = count.saturating_add(1);
        if count > MOST_PARAMETERS {
            return Err(bad(format!("more than {MOST_PARAMETERS} parameters")));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(name)?, decoded(value)?);
        let known = names
            .iter()
            .zip(&mut found)
            .find(|(known, _)| **known == name);
        let Some((name, place)) = known else {
            continue;
        };
        bounded(name, &value)?;
        if place.replace(value.into_owned()).is_some() {
            return Err(bad(format!("{name} is given twice")));
        }
    }
    Ok(found)
}

/// A value that is not too long and holds no control character.
fn bounded(name: &str, value: &str) -> Result<(), Fail> {
    if value.len() > MOST_VALUE_BYTES {
        return Err(bad(format!(
            "{} is longer than {MOST_VALUE_BYTES} bytes",
            shown(name)
        )));
    }
    if value.chars().any(char::is_control) {
        return Err(bad(format!("{} holds a control character", shown(name))));
    }
    Ok(())
}

/// The question of a query and a body: a form, or a JSON object.
pub(super) fn query_and_body(
    text: &str,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<Question, Fail> {
    let mut question = query(text)?;
    if body.is_empty() {
        return Ok(question);
    }
    let essence = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if essence.eq_ignore_ascii_case("application/json") {
        question.json(body)?;
    } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let body = std::str::from_utf8(body).map_err(|_| bad("the body is not UTF-8"))?;
        question.pairs(body)?;
    } else {
        return Err(bad(
            "Content-Type must be application/json or application/x-www-form-urlencoded",
        ));
    }
    Ok(question)
}

/// What a question says, whichever way it was spelled: number, call, instant, whether with credentials, of which
/// provider, whether as pairs. For the fuzzer and what it found; handlers read a [`Question`].
pub type Said = (
    Option<String>,
    Call,
    Option<Timestamp>,
    bool,
    Option<String>,
    bool,
);

/// Reads a query and a body, or says what the caller would be told.
#[doc(hidden)]
pub fn read(query: &str, content_type: Option<&str>, body: &[u8]) -> Result<Said, String> {
    let question = query_and_body(query, content_type, body).map_err(|fail| fail.message)?;
    let Question {
        to,
        call,
        at,
        credentials,
        provider,
        pairs,
        ..
    } = question;
    Ok((to, call, at, credentials, provider, pairs))
}

fn bad(message: impl Into<String>) -> Fail {
    Fail::new(Outcome::BadRequest, message)
}

impl Question {
    /// The form in which the answer is wanted.
    pub(super) fn form(&self) -> Form {
        if self.pairs { Form::Pairs } else { Form::Json }
    }

    /// `name=value&…`
    fn pairs(&mut self, text: &str) -> Result<(), Fail> {
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.counted()?;
            self.take(&decoded(name)?, &decoded(value)?)?;
        }
        Ok(())
    }

    /// `{"to":"…","zone":["…"],"attr":{…},…}`
    fn json(&mut self, body: &[u8]) -> Result<(), Fail> {
        let Object(members) = serde_json::from_slice(body).map_err(|err| match err.classify() {
            serde_json::error::Category::Data => {
                bad("the body must be a JSON object that has each key once, with attr another such object")
            }
            _ => bad(format!("the body is not JSON: see line {} column {}", err.line(), err.column())),
        })?;
        for (name, value) in members {
            let Member::Plain(value) = value else {
                let Member::Attributes(Object(attributes)) = value else {
                    continue;
                };
                for (name, value) in attributes {
                    self.attribute_values(&format!("{ATTRIBUTE}{name}"), &value)?;
                }
                continue;
            };
            match (name.as_str(), value) {
                // As if it were not there: what a client makes of a variable that is not set.
                (_, Value::Null) => {}
                (_, value) if name == "zone" || name.starts_with(ATTRIBUTE) => {
                    self.attribute_values(&name, &value)?
                }
                (OUTSIDE_BUSINESS_HOURS, Value::Bool(value)) => {
                    self.counted_take(&name, &value.to_string())?
                }
                (_, Value::String(value)) => self.counted_take(&name, &value)?,
                (name, _) if is_known(name) => return Err(bad(format!("{name} must be a string"))),
                (_, _) => self.counted()?,
            }
        }
        Ok(())
    }

    /// One value, or a list of them.
    fn attribute_values(&mut self, name: &str, value: &Value) -> Result<(), Fail> {
        let wrong = || {
            bad(format!(
                "{} must be a string, a boolean, a number or a list of these",
                shown(name)
            ))
        };
        let scalar = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Bool(flag) => Ok(flag.to_string()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => Err(wrong()),
        };
        match value {
            Value::Null => Ok(()),
            Value::Array(values) => values
                .iter()
                .try_for_each(|value| self.counted_take(name, &scalar(value)?)),
            value => self.counted_take(name, &scalar(value)?),
        }
    }

    fn counted_take(&mut self, name: &str, value: &str) -> Result<(), Fail> {
        self.counted()?;
        self.take(name, value)
    }

    fn counted(&mut self) -> Result<(), Fail> {
        self.count = self.count.saturating_add(1);
        if self.count > MOST_PARAMETERS {
            Err(bad(format!("more than {MOST_PARAMETERS} parameters")))
        } else {
            Ok(())
        }
    }

    /// One parameter, decoded.
    fn take(&mut self, name: &str, value: &str) -> Result<(), Fail> {
        let attribute = name.strip_prefix(ATTRIBUTE);
        if !is_known(name) && attribute.is_none() {
            return Ok(());
        }
        if let Some(attribute) = attribute {
            if attribute.is_empty()
                || attribute.len() > MAX_KEY_BYTES
                || attribute.chars().any(char::is_control)
            {
                let most = MAX_KEY_BYTES;
                return Err(bad(format!(
                    "the name after {ATTRIBUTE} must have 1 to {most} bytes and no control characters"
                )));
            }
            if OWN_ATTRIBUTES.contains(&attribute) {
                return Err(bad(format!(
                    "{attribute} is a parameter of its own; leave {ATTRIBUTE} out"
                )));
            }
        } else if name != "zone" && !self.first(name) {
            return Err(bad(format!("{name} is given twice")));
        }
        bounded(name, value)?;
        let value = value.to_owned();
        match name {
            "to" => self.to = Some(value),
            "account_ref" => self.call.account_ref = Some(value),
            "event_type" => self.call.event_type = Some(value),
            "provider" => self.provider = Some(value),
            "zone" => self.attribute(name, value),
            OUTSIDE_BUSINESS_HOURS => {
                if !["true", "false", "1", "0"]
                    .iter()
                    .any(|known| value.eq_ignore_ascii_case(known))
                {
                    return Err(bad(format!("{name} must be true, false, 1 or 0")));
                }
                self.attribute(name, value);
            }
            "at" => {
                self.at =
                    Some(instant(&value).ok_or_else(|| {
                        bad("at must be RFC 3339, such as 2026-11-22T10:45:00-03:00")
                    })?)
            }
            "format" => match value.as_str() {
                "json" => self.pairs = false,
                "form" => self.pairs = true,
                _ => return Err(bad("format must be json or form")),
            },
            "include" => match value.as_str() {
                "credentials" => self.credentials = true,
                _ => return Err(bad("include must be credentials")),
            },
            _ => self.attribute(attribute.unwrap_or(name), value),
        }
        Ok(())
    }

    /// Whether a known parameter was not given before.
    fn first(&mut self, name: &str) -> bool {
        let mut bits = (0..u16::BITS).map(|bit| 1_u16.wrapping_shl(bit));
        let bit = KNOWN
            .iter()
            .zip(&mut bits)
            .find(|(known, _)| **known == name);
        let bit = bit.map_or(0, |(_, bit)| bit);
        let before = self.seen;
        self.seen |= bit;
        before & bit == 0
    }

    fn attribute(&mut self, name: &str, value: String) {
        self.call
            .attributes
            .entry(name.to_owned())
            .or_default()
            .push(value);
    }
}

/// Attributes that are given without `attr.`.
const OWN_ATTRIBUTES: [&str; 4] = ["account_ref", "event_type", "zone", OUTSIDE_BUSINESS_HOURS];

/// Parameters that are no attributes, and those that are given without `attr.`.
const KNOWN: [&str; 9] = [
    "to",
    "at",
    "format",
    "include",
    "provider",
    "account_ref",
    "event_type",
    "zone",
    OUTSIDE_BUSINESS_HOURS,
];

fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

/// A parameter's name as an error shows it: attributes are the caller's own words.
fn shown(name: &str) -> &str {
    if name.starts_with(ATTRIBUTE) {
        "an attribute"
    } else {
        name
    }
}

/// A date, a time and an offset; nothing else that the library would take.
fn instant(text: &str) -> Option<Timestamp> {
    let shape = |index: usize, byte: &u8| match index {
        4 | 7 => *byte == b'-',
        10 => matches!(byte, b'T' | b't'),
        13 | 16 => *byte == b':',
        _ => byte.is_ascii_digit(),
    };
    let bytes = text.as_bytes();
    let ends_well = matches!(
        bytes.get(19..)?,
        [.., b'Z' | b'z'] | [.., b'+' | b'-', _, _, b':', _, _]
    );
    let head = bytes.get(..19)?;
    if !ends_well
        || !head
            .iter()
            .enumerate()
            .all(|(index, byte)| shape(index, byte))
    {
        return None;
    }
    text.parse().ok()
}

/// Percent-decodes once.
fn decoded(text: &str) -> Result<Cow<'_, str>, Fail> {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        if byte == b'%' && !(digit() && digit()) {
            return Err(bad(
                "a % must be followed by two hexadecimal digits; write %25 for the sign itself",
            ));
        }
    }
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| bad("a parameter is not UTF-8"))
}

/// The members of a JSON object, each key once.
struct Object<T>(Vec<(String, T)>);

/// A member of the body.
enum Member {
    Plain(Value),
    Attributes(Object<Value>),
}

/// How the value of a key is read.
trait Members: Sized {
    fn next<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error>;
}

impl Members for Value {
    fn next<'de, A: MapAccess<'de>>(_: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

impl Members for Member {
    fn next<'de, A: MapAccess<'de>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        if key != "attr" {
            return map.next_value().map(Self::Plain);
        }
        let attributes: Option<Object<Value>> = map.next_value()?;
        Ok(attributes.map_or(Self::Plain(Value::Null), Self::Attributes))
    }
}

impl<'de, T: Members> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader(std::marker::PhantomData))
    }
}

struct Reader<T>(std::marker::PhantomData<T>);

impl<'de, T: Members> Visitor<'de> for Reader<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut seen = BTreeSet::new();
        let mut members = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = T::next(&key, &mut map)?;
            if !seen.insert(key.clone()) {
                return Err(de::Error::custom("a key is given twice"));
            }
            members.push((key, value));
        }
        Ok(Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Question {
        query(text).unwrap_or_else(|fail| panic!("{text}: {fail:?}"))
    }

    fn message(text: &str) -> String {
        let fail = query(text).expect_err(text);
        assert_eq!(fail.outcome, Outcome::BadRequest, "{text}");
        fail.message
    }

    fn json(body: &str) -> Result<Question, Fail> {
        query_and_body("", Some("application/json; charset=utf-8"), body.as_bytes())
    }

    fn values<'a>(question: &'a Question, name: &str) -> Vec<&'a str> {
        question
            .call
            .attributes
            .get(name)
            .map(|values| values.iter().map(String::as_str).collect())
            .unwrap_or_default()
    }

    #[test]
    fn every_parameter_is_read_to_its_place() {
        let question = read(
            "to=+14155550100&account_ref=ACME-1&event_type=door_open&zone=Z1&zone=Z2&outside_business_hours=1&attr.vip=true\
             &attr.vip=2&at=2026-11-22T10:45:00-03:00&format=form&include=credentials&provider=openai",
        );
        assert_eq!(question.to.as_deref(), Some("+14155550100"));
        assert_eq!(question.call.account_ref.as_deref(), Some("ACME-1"));
        assert_eq!(question.call.event_type.as_deref(), Some("door_open"));
        assert_eq!(values(&question, "zone"), ["Z1", "Z2"]);
        assert_eq!(values(&question, "outside_business_hours"), ["1"]);
        assert_eq!(values(&question, "vip"), ["true", "2"]);
        assert_eq!(question.at, Some("2026-11-22T13:45:00Z".parse().unwrap()));
        assert!(question.credentials && question.form() == Form::Pairs);
        assert_eq!(question.provider.as_deref(), Some("openai"));
    }

    #[test]
    fn a_plus_stays_a_plus_and_decoding_happens_once() {
        assert_eq!(read("to=%2B1415+%2520").to.as_deref(), Some("+1415+%20"));
        assert_eq!(read("t%6f=1").to.as_deref(), Some("1"));
        assert_eq!(
            read("account_ref=caf%C3%A9").call.account_ref.as_deref(),
            Some("café")
        );
    }

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for text in ["to=%", "to=%2", "to=%zz", "to=%FF", "%FF=1", "to=%C3%28"] {
            message(text);
        }
    }

    #[test]
    fn a_parameter_given_twice_is_refused_but_zone_and_attributes_may_repeat() {
        for name in [
            "to",
            "account_ref",
            "event_type",
            "outside_business_hours",
            "at",
            "format",
            "include",
            "provider",
        ] {
            let value = match name {
                "outside_business_hours" => "1",
                "at" => "2026-11-22T10:45:00Z",
                "format" => "json",
                "include" => "credentials",
                _ => "x",
            };
            assert_eq!(
                message(&format!("{name}={value}&{name}={value}")),
                format!("{name} is given twice")
            );
        }
        assert_eq!(
            values(&read("zone=a&zone=a&attr.x=1&attr.x=1"), "zone"),
            ["a", "a"]
        );
    }

    #[test]
    fn unknown_parameters_are_passed_over_even_when_repeated() {
        let question = read("unknown=1&unknown=2&&=&attribute=1&to=5&lonely");
        assert_eq!(question.to.as_deref(), Some("5"));
        assert!(question.call.attributes.is_empty());
    }

    #[test]
    fn values_are_bounded_and_free_of_control_characters() {
        assert_eq!(
            read(&format!("to={}", "x".repeat(256)))
                .to
                .map(|to| to.len()),
            Some(256)
        );
        assert_eq!(
            message(&format!("to={}", "x".repeat(257))),
            "to is longer than 256 bytes"
        );
        for text in ["to=%00", "zone=a%0Ab", "attr.x=%7F", "account_ref=%C2%85"] {
            assert!(message(text).contains("control character"), "{text}");
        }
        let many = |count: usize| vec!["x=1"; count].join("&");
        assert!(query(&many(64)).is_ok());
        assert_eq!(message(&many(65)), "more than 64 parameters");
    }

    #[test]
    fn words_outside_of_their_set_are_refused() {
        for text in [
            "format=xml",
            "format=",
            "include=prompts",
            "include=",
            "outside_business_hours=yes",
            "outside_business_hours=",
            "attr.=1",
            "attr.zone=Z1",
            "attr.account_ref=x",
            "attr.outside_business_hours=1",
        ] {
            message(text);
        }
        message(&format!("attr.{}=1", "x".repeat(129)));
        assert_eq!(
            values(
                &read("outside_business_hours=True"),
                "outside_business_hours"
            ),
            ["True"]
        );
    }

    #[test]
    fn an_instant_is_rfc_3339_and_nothing_else() {
        for (text, instant) in [
            ("2026-11-22T10:45:00Z", "2026-11-22T10:45:00Z"),
            ("2026-11-22t10:45:00.25+05:30", "2026-11-22T05:15:00.25Z"),
        ] {
            assert_eq!(
                read(&format!("at={text}")).at,
                Some(instant.parse().unwrap()),
                "{text}"
            );
        }
        for text in [
            "now",
            "2026-11-22",
            "2026-11-22T10:45:00",
            "2026-11-22T10:45Z",
            "2026-13-22T10:45:00Z",
            "2026-11-22 10:45:00Z",
            "2026-11-22T10:45:00+01:00[Europe/Paris]",
            "2026-11-22T25:45:00Z",
            "+002026-11-22T10:45:00Z",
            "1700000000",
            "",
        ] {
            message(&format!("at={text}"));
        }
    }

    #[test]
    fn errors_never_repeat_what_was_sent() {
        for text in [
            "at=SECRET",
            "format=SECRET",
            "include=SECRET",
            "outside_business_hours=SECRET",
            "attr.SECRET=%01",
            "to=%SECRET",
        ] {
            assert!(!message(text).contains("SECRET"), "{text}");
        }
        for body in [
            r#"{"to":"SECRET""#,
            r#"{"to":["SECRET"]}"#,
            r#""SECRET""#,
            r#"{"attr":"SECRET"}"#,
            r#"{"attr":{"SECRET":{}}}"#,
        ] {
            assert!(
                !json(body).unwrap_err().message.contains("SECRET"),
                "{body}"
            );
        }
    }

    #[test]
    fn a_json_body_says_the_same_as_a_query() {
        let question = json(
            r#"{"to":"+1","account_ref":"A","event_type":null,"zone":"Z1","outside_business_hours":true,
                "attr":{"vip":true,"level":3,"tags":["a",1.5]},"include":"credentials","at":"2026-11-22T10:45:00Z","other":{"a":[]}}"#,
        )
        .unwrap();
        assert_eq!(question.to.as_deref(), Some("+1"));
        assert_eq!(
            (
                question.call.account_ref.as_deref(),
                question.call.event_type.as_deref()
            ),
            (Some("A"), None)
        );
        assert_eq!(values(&question, "zone"), ["Z1"]);
        assert_eq!(values(&question, "outside_business_hours"), ["true"]);
        assert_eq!(values(&question, "vip"), ["true"]);
        assert_eq!(values(&question, "level"), ["3"]);
        assert_eq!(values(&question, "tags"), ["a", "1.5"]);
        assert!(question.credentials && question.at.is_some());
        assert_eq!(
            values(&json(r#"{"zone":["Z1","Z2"]}"#).unwrap(), "zone"),
            ["Z1", "Z2"]
        );
    }

    #[test]
    fn a_json_body_of_the_wrong_shape_is_refused() {
        for body in [
            "",
            " ",
            "[]",
            "1",
            "null",
            "{",
            r#"{"to":1}"#,
            r#"{"to":["x"]}"#,
            r#"{"zone":{}}"#,
            r#"{"zone":[["x"]]}"#,
            r#"{"attr":[]}"#,
            r#"{"attr":{"x":{}}}"#,
            r#"{"attr":{"x":[null]}}"#,
            r#"{"outside_business_hours":"maybe"}"#,
            r#"{"outside_business_hours":1}"#,
            r#"{"to":"1","to":"2"}"#,
            r#"{"attr":{"x":"1","x":"2"}}"#,
            r#"{"x":1,"x":1}"#,
            r#"{"at":true}"#,
            "{} {}",
        ] {
            if body.is_empty() {
                continue; // no body at all is no question, which is told elsewhere
            }
            assert_eq!(
                json(body).expect_err(body).outcome,
                Outcome::BadRequest,
                "{body}"
            );
        }
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(500), "]".repeat(500));
        assert!(json(&deep).is_err());
    }

    #[test]
    fn a_body_is_a_form_or_json_by_its_content_type() {
        let form = query_and_body(
            "",
            Some("Application/X-WWW-Form-Urlencoded"),
            b"to=%2B1&zone=a+b",
        )
        .unwrap();
        assert_eq!(
            (form.to.as_deref(), values(&form, "zone")),
            (Some("+1"), vec!["a+b"])
        );
        for content_type in [
            None,
            Some(""),
            Some("text/plain"),
            Some("multipart/form-data"),
        ] {
            let fail = query_and_body("", content_type, b"to=1").unwrap_err();
            assert!(
                fail.message
                    .contains("application/json or application/x-www-form-urlencoded"),
                "{}",
                fail.message
            );
        }
        assert!(query_and_body("", Some("application/x-www-form-urlencoded"), b"to=\xff").is_err());
        assert!(
            query_and_body("to=1", Some("application/x-www-form-urlencoded"), b"to=1").is_err(),
            "once in each is twice"
        );
    }
}
