//! A number's document, written here from its columns: the very text that `json_build_object` gives, so that the hash
//! of it is the one that Postgres computes.

use std::fmt::Write as _;

use tokio_postgres::types::Type;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

/// Texts of `sql::Numbers::columns`, in the document's order.
const TEXTS: [(usize, &str); 5] = [
    (1, "e164"),
    (3, "label"),
    (4, "default_language"),
    (5, "default_voice"),
    (6, "timezone"),
];

/// Whether the columns are of the platform's types, whose JSON is known here. An adopted table may have others.
pub(super) fn is_of_the_model(statement: &Statement) -> bool {
    let text = [Type::TEXT, Type::VARCHAR];
    statement.columns().len() == 8
        && statement
            .columns()
            .iter()
            .enumerate()
            .all(|(at, column)| match at {
                0 | 2 => *column.type_() == Type::UUID,
                7 => *column.type_() == Type::BOOL,
                _ => text.contains(column.type_()),
            })
}

/// The document of a row whose columns [are of the model](is_of_the_model).
pub(super) fn of_number(row: &Row) -> Result<String, tokio_postgres::Error> {
    let mut text = String::with_capacity(320);
    let uuid = |text: &mut String, name: &str, id: Option<Uuid>| {
        let _ = match id {
            Some(id) => write!(text, "\"{name}\" : \"{}\", ", id.as_hyphenated()),
            None => write!(text, "\"{name}\" : null, "),
        };
    };
    text.push('{');
    uuid(&mut text, "id", row.try_get(2)?);
    uuid(&mut text, "tenant_id", row.try_get(0)?);
    for (at, name) in TEXTS {
        member(&mut text, name, row.try_get(at)?);
    }
    text.push_str(match row.try_get(7)? {
        Some(true) => "\"active\" : true}",
        Some(false) => "\"active\" : false}",
        None => "\"active\" : null}",
    });
    Ok(text)
}

fn member(text: &mut String, name: &str, value: Option<&str>) {
    text.push('"');
    text.push_str(name);
    text.push_str("\" : ");
    match value {
        Some(value) => quote(text, value),
        None => text.push_str("null"),
    }
    text.push_str(", ");
}

/// `escape_json` of Postgres's `json.c`, the same in 14 to 18.
fn quote(text: &mut String, value: &str) {
    text.push('"');
    if value
        .bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
    {
        text.push_str(value);
    } else {
        for char in value.chars() {
            match char {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                control if control < ' ' => {
                    let _ = write!(text, "\\u{:04x}", u32::from(control));
                }
                other => text.push(other),
            }
        }
    }
    text.push('"');
}
