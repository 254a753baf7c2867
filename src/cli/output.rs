//! Tables for people. Colours only on terminals, and not with NO_COLOR.
//!
//! What comes from the database is never written to a terminal raw: control characters are shown as escapes.

use std::io::Write;

use comfy_table::{
    Attribute, Cell, Color, ContentArrangement, LineStyle, Table, TableStyle, presets,
};
use serde_json::Value;

use super::CliError;

/// Writes text to standard output, colours removed where nobody sees them.
///
/// # Errors
/// When standard output is closed or full.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

/// Writes a body as the daemon sent it, and a newline.
///
/// # Errors
/// When standard output is closed or full.
pub fn print_body(body: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(body)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

/// The text with control characters but line breaks and tabs shown as escapes.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Bidirectional controls reorder what a reader sees.
        let hidden = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\n' && c != '\t') || hidden {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A heading above a table.
#[must_use]
pub fn heading(text: &str) -> String {
    format!("\n\u{1b}[1m{text}\u{1b}[0m\n")
}

/// How a cell looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Well.
    Good,
    /// Needs a look.
    Warn,
    /// Wrong.
    Bad,
    /// Beside the point.
    Dim,
}

/// One cell.
#[must_use]
pub fn cell(text: &str, tone: Tone) -> Cell {
    let cell = Cell::new(printable(text));
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Tone::Dim => cell.add_attribute(Attribute::Dim),
    }
}

/// A table with a line under its header; wrapped on terminals, as wide as it is elsewhere.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = bare();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(
        header
            .iter()
            .map(|name| Cell::new(name).add_attribute(Attribute::Bold)),
    );
    table.add_rows(rows);
    lines(&mut table)
}

/// Name and value, a line each.
#[must_use]
pub fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, Cell)>) -> String {
    self::rows(
        rows.into_iter()
            .map(|(name, value)| vec![cell(name, Tone::Dim), value])
            .collect(),
    )
}

/// A table without header.
#[must_use]
pub fn rows(rows: Vec<Vec<Cell>>) -> String {
    let mut table = bare();
    table.load_style(presets::NOTHING).add_rows(rows);
    lines(&mut table)
}

fn bare() -> Table {
    let mut table = Table::new();
    // anstream takes the colours out again where they do not belong.
    table.enforce_styling();
    table.style_text_only();
    let arrangement = if table.is_tty() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    };
    table.set_content_arrangement(arrangement);
    table
}

/// The table with two columns of space between its columns and none around.
fn lines(table: &mut Table) -> String {
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A JSON value in a cell: strings without quotes, nothing as a dash.
#[must_use]
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.is_empty() => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(items)
            if items
                .iter()
                .all(|item| !item.is_object() && !item.is_array()) =>
        {
            if items.is_empty() {
                "–".to_owned()
            } else {
                items.iter().map(plain).collect::<Vec<_>>().join(", ")
            }
        }
        other => other.to_string(),
    }
}

/// A duration in the unit that suits it.
#[must_use]
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// Whether standard error is seen by a person, who wants to see progress.
#[must_use]
pub fn progress_is_seen() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colourless(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_table_has_a_line_under_its_header_and_no_padding_around() {
        let rows = vec![
            vec![cell("global", Tone::Plain), cell("100", Tone::Good)],
            vec![cell("account", Tone::Plain), cell("5", Tone::Dim)],
        ];
        assert_eq!(
            colourless(&table(&["scope", "priority"], rows)),
            "scope     priority\n──────────────────\nglobal    100\naccount   5\n"
        );
    }

    #[test]
    fn facts_are_aligned() {
        let text = facts([
            ("number", cell("+14155550100", Tone::Plain)),
            ("to", cell("x", Tone::Good)),
        ]);
        assert_eq!(colourless(&text), "number  +14155550100\nto      x\n");
    }

    #[test]
    fn an_escape_sequence_from_the_database_does_not_reach_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[2Jb\u{202e}c\nd"),
            "a\\u{1b}[2Jb\\u{202e}c\nd"
        );
        assert!(
            !cell("\u{1b}]0;x\u{7}", Tone::Plain)
                .content()
                .contains('\u{1b}')
        );
    }

    #[test]
    fn durations_choose_their_unit() {
        let shown: Vec<String> = [412, 1_400, 90_000, 600_000, 7_200_000, 864_000_000]
            .map(duration)
            .into();
        assert_eq!(
            shown,
            ["412 ms", "1.4 s", "90.0 s", "10 min", "2 h", "10 days"]
        );
    }
}
