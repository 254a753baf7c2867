//! A number's document, written here from its columns: the very text that `json_build_object` gives, so that the hash
//! of it is the one that Postgres computes.

use std::fmt::Write as _;

use tokio_postgres::types::Type;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use crate::admit;
use crate::row::DocHash;

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

/// A number as its columns, which [are of the model](is_of_the_model): its document is written for its hash, and again
/// for who has to know it.
#[derive(Debug, Clone)]
pub struct Columns {
    tenant: Uuid,
    id: Option<Uuid>,
    active: Option<bool>,
    hash: DocHash,
    /// One after the other, and how long each of [`TEXTS`] is.
    texts: Box<str>,
    lengths: [Option<usize>; TEXTS.len()],
}

impl Columns {
    /// Takes the columns of a row. What stands in `text` is lost: it saves an allocation.
    pub(super) fn of(row: &Row, text: &mut String) -> Result<Self, tokio_postgres::Error> {
        row.try_get::<_, &str>(1)?;
        text.clear();
        let mut lengths = [None; TEXTS.len()];
        for (length, (at, _)) in lengths.iter_mut().zip(TEXTS) {
            let column: Option<&str> = row.try_get(at)?;
            text.push_str(column.unwrap_or_default());
            *length = column.map(str::len);
        }
        let mut columns = Self {
            tenant: row.try_get(0)?,
            id: row.try_get(2)?,
            active: row.try_get(7)?,
            hash: DocHash([0; 32]),
            texts: text.as_str().into(),
            lengths,
        };
        columns.write(text);
        columns.hash = DocHash::of(text);
        Ok(columns)
    }

    /// Its tenant.
    #[must_use]
    pub fn tenant(&self) -> Uuid {
        self.tenant
    }

    /// Of the document.
    #[must_use]
    pub fn hash(&self) -> DocHash {
        self.hash
    }

    /// The column `e164`.
    #[must_use]
    pub fn e164(&self) -> &str {
        self.texts().next().flatten().unwrap_or_default()
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>().saturating_add(self.texts.len())
    }

    /// What a document says that holds nothing unusual; `None` where a column is null that must not be.
    #[must_use]
    pub fn plain(&self) -> Option<admit::Plain<'_>> {
        let mut texts = self.texts();
        let mut text = || texts.next().flatten();
        let (e164, label, language, voice, zone) = (text(), text(), text(), text(), text());
        Some(admit::Plain {
            id: self.id?,
            tenant_id: self.tenant,
            e164: e164?,
            label,
            default_language: language?,
            default_voice: voice,
            timezone: zone?,
            active: self.active,
        })
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// Each of [`TEXTS`].
    fn texts(&self) -> impl Iterator<Item = Option<&str>> {
        let mut rest = &*self.texts;
        self.lengths.iter().map(move |length| {
            let (text, after) = rest.split_at_checked((*length)?)?;
            rest = after;
            Some(text)
        })
    }

    /// Writes the document in place of what stands in `text`.
    fn write(&self, text: &mut String) {
        let mut buffer = Uuid::encode_buffer();
        let mut uuid = |text: &mut String, id: Uuid| {
            text.push('"');
            text.push_str(id.as_hyphenated().encode_lower(&mut buffer));
            text.push('"');
        };
        text.clear();
        text.push_str("{\"id\" : ");
        match self.id {
            Some(id) => uuid(text, id),
            None => text.push_str("null"),
        }
        text.push_str(", \"tenant_id\" : ");
        uuid(text, self.tenant);
        text.push_str(", ");
        for ((_, name), value) in TEXTS.into_iter().zip(self.texts()) {
            member(text, name, value);
        }
        text.push_str(match self.active {
            Some(true) => "\"active\" : true}",
            Some(false) => "\"active\" : false}",
            None => "\"active\" : null}",
        });
    }
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
