//! An opened value → how it stands in an answer.
//!
//! What is JSON is given as JSON, compact, in its own order and with its own digits; all else as a JSON string. The
//! value is read without being kept: what is made here is wiped when dropped, and never moved to a larger buffer.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use crate::seal::Secret;

/// The value as it stands in an answer. Null is the empty string: no field of an answer is null.
pub(super) fn as_json(value: &str) -> Secret {
    // No character takes more than six bytes in JSON.
    let room = value.len().saturating_mul(6).saturating_add(2);
    let mut json = Zeroizing::new(Vec::with_capacity(room));
    match serde_json::from_str(value) {
        Ok(Readable::Null) => json.extend_from_slice(b"\"\""),
        Ok(Readable::Value) => compact(value, &mut json),
        Err(_) => push_text(&mut json, value),
    }
    // Only whole pieces of text were written.
    let text = std::str::from_utf8(&json).unwrap_or("\"\"");
    Secret::new(text.to_owned())
}

fn push_text(json: &mut Vec<u8>, text: &str) {
    // Writing into memory does not fail.
    let _ = serde_json::to_writer(json, text);
}

/// Copies JSON that was found readable, without the white space between its parts and with its texts written as those
/// of an answer are: nothing escaped that need not be.
fn compact(value: &str, json: &mut Vec<u8>) {
    let mut rest = value;
    while let Some(c) = rest.chars().next() {
        let piece = if c == '"' {
            text_at_start(rest)
        } else {
            c.len_utf8()
        };
        let (piece, after) = rest.split_at_checked(piece).unwrap_or((rest, ""));
        if c == '"' && piece.contains('\\') {
            let text = serde_json::from_str(piece).map(Zeroizing::<String>::new);
            push_text(json, text.as_deref().map_or("", String::as_str));
        } else if !matches!(c, ' ' | '\t' | '\n' | '\r') {
            json.extend_from_slice(piece.as_bytes());
        }
        rest = after;
    }
}

/// Bytes of the JSON text that starts here, quotes included.
fn text_at_start(json: &str) -> usize {
    let mut escaped = false;
    let inside = json.bytes().skip(1).take_while(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        !ends
    });
    inside.count().saturating_add(2)
}

/// Reads JSON as far as a caller's parser will, every number and text of it, and keeps nothing.
enum Readable {
    Null,
    Value,
}

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Readable;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E: Error>(self) -> Result<Readable, E> {
                Ok(Readable::Null)
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<Readable, E> {
                Ok(Readable::Value)
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Readable, E> {
                Ok(Readable::Value)
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Readable, E> {
                Ok(Readable::Value)
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Readable, E> {
                Ok(Readable::Value)
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Readable, E> {
                Ok(Readable::Value)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Readable, A::Error> {
                while list.next_element::<Readable>()?.is_some() {}
                Ok(Readable::Value)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Readable, A::Error> {
                while object.next_entry::<Readable, Readable>()?.is_some() {}
                Ok(Readable::Value)
            }
        }

        from.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(value: &str) -> String {
        as_json(value).expose().to_owned()
    }

    #[test]
    fn json_is_given_as_json_compact_in_its_own_order_and_digits() {
        assert_eq!(
            given(" { \"b\" : [ 1.50 , true, \"x y\" ],\n\"a\":{} } "),
            r#"{"b":[1.50,true,"x y"],"a":{}}"#
        );
        for scalar in [
            "12345",
            "true",
            "-0.0",
            "1E5",
            "\"quoted\"",
            "[]",
            "123456789012345678901234567890",
        ] {
            assert_eq!(given(scalar), scalar);
        }
    }

    #[test]
    fn texts_inside_json_are_written_as_in_the_rest_of_the_answer() {
        assert_eq!(
            given(r#"["\u00e9\/\n\"\\","\u0022{"]"#),
            r#"["é/\n\"\\","\"{"]"#
        );
        assert_eq!(given(r#"{"\\":"a\\"}"#), r#"{"\\":"a\\"}"#);
    }

    #[test]
    fn what_is_not_json_is_given_as_a_string() {
        assert_eq!(given("sk-live-1"), "\"sk-live-1\"");
        assert_eq!(given(""), "\"\"");
        assert_eq!(given("{\"a\":1"), r#""{\"a\":1""#);
        assert_eq!(given("007"), "\"007\"");
        assert_eq!(given("línea\n\u{1}"), "\"línea\\n\\u0001\"");
    }

    #[test]
    fn json_that_a_callers_parser_would_refuse_is_given_as_a_string() {
        assert_eq!(given("1e999"), "\"1e999\"");
        assert_eq!(given(r#""\ud800""#), r#""\"\\ud800\"""#);
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        assert_eq!(given(&deep), format!("\"{deep}\""));
    }

    #[test]
    fn null_is_the_empty_string_and_null_inside_stays() {
        assert_eq!(given(" null "), "\"\"");
        assert_eq!(given("{\"a\": null}"), "{\"a\":null}");
    }
}
