//! What the tests read of a Markdown file: fences, what a terminal shows in them, headings, links, `words`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// The repository.
pub(crate) fn repository() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A file of the repository.
pub(crate) fn file(name: &str) -> String {
    let path = repository().join(name);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The texts for people: those of the repository's root and of `docs/`, but for what a program writes or history.
pub(crate) fn documents() -> Vec<String> {
    let mut names = vec![
        "ARCHITECTURE.md".to_owned(),
        "CHANGELOG.md".to_owned(),
        "README.es.md".to_owned(),
        "README.md".to_owned(),
    ];
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names
}

/// A block between fences, or one line outside of any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Fence {
        /// What stands after the opening fence: the language, and for a block that tests do not run ` norun`.
        info: String,
        /// Of the opening fence, from 1.
        line: usize,
        lines: Vec<String>,
    },
    Line {
        line: usize,
        text: String,
    },
}

/// A text in its pieces. A fence that nothing closes fails the test.
pub(crate) fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut open: Option<(String, usize, Vec<String>)> = None;
    // A block within a list stands in as far as its fence.
    let mut indent = 0;
    for (line, text) in (1..).zip(text.lines()) {
        let fence = text.trim_start().strip_prefix("```");
        if open.is_none() {
            indent = text.len() - text.trim_start().len();
        }
        open = match (open, fence) {
            (None, Some(info)) => Some((info.trim().to_owned(), line, Vec::new())),
            (None, None) => {
                pieces.push(Piece::Line {
                    line,
                    text: text.to_owned(),
                });
                None
            }
            (Some((info, line, lines)), Some(_)) => {
                pieces.push(Piece::Fence { info, line, lines });
                None
            }
            (Some((info, line, mut lines)), None) => {
                let margin = text.len() - text.trim_start().len();
                lines.push(text[indent.min(margin)..].to_owned());
                Some((info, line, lines))
            }
        };
    }
    assert_eq!(open, None, "a fence is not closed");
    pieces
}

/// The blocks whose info begins with a language, each as one text.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<(String, usize, String)> {
    pieces(text)
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Fence { info, line, lines } => Some((info, line, lines.join("\n"))),
            Piece::Line { .. } => None,
        })
        .filter(|(info, ..)| info.split(' ').next() == Some(language))
        .collect()
}

/// The lines outside of fences.
pub(crate) fn prose(text: &str) -> Vec<String> {
    pieces(text)
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Line { text, .. } => Some(text),
            Piece::Fence { .. } => None,
        })
        .collect()
}

/// `like this` in running text and tables.
pub(crate) fn inline(text: &str) -> Vec<String> {
    prose(text)
        .iter()
        .flat_map(|line| {
            let marks = line.matches('`').count();
            assert_eq!(
                marks % 2,
                0,
                "code that is cut in two by the end of a line: {line}"
            );
            line.split('`').skip(1).step_by(2)
        })
        .map(str::to_owned)
        .collect()
}

/// What a terminal shows: a command, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) line: usize,
    pub(crate) command: String,
    pub(crate) output: String,
}

/// The commands of a `console` block that begins at a line. A command goes on while its lines end in `\`.
pub(crate) fn shown(line: usize, block: &str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    for (line, text) in (line + 1..).zip(block.lines()) {
        if let Some(command) = text.strip_prefix("$ ") {
            all.push(Shown {
                line,
                command: command.to_owned(),
                output: String::new(),
            });
            continue;
        }
        let last = all
            .last_mut()
            .unwrap_or_else(|| panic!("line {line}: a console block begins with `$ `"));
        let goes_on = last.command.ends_with('\\') && last.output.is_empty();
        let to = if goes_on {
            &mut last.command
        } else {
            &mut last.output
        };
        if !to.is_empty() {
            to.push('\n');
        }
        to.push_str(text);
    }
    all
}

/// The anchors of a text's headings, as GitHub makes them.
pub(crate) fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .iter()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Where the links of a text lead.
pub(crate) fn links(text: &str) -> Vec<String> {
    prose(text)
        .iter()
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// A shell's line in words, quotes removed. Nothing is expanded.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whether a text is as shown. `…` stands for anything; a run of spaces or of lines of a table for one of any length;
/// the digits of `staleness_ms` for any number.
pub(crate) fn is_as_shown(shown: &str, text: &str) -> bool {
    let (shown, text) = (plain(shown), plain(text));
    let mut pieces = shown.split('…');
    let first = pieces.next().unwrap();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for piece in pieces {
        if let Some(piece) = last.replace(piece) {
            match rest.split_once(piece) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(piece) => rest.ends_with(piece),
    }
}

fn plain(text: &str) -> String {
    let mut plain = String::new();
    for line in text.trim_end().lines() {
        let mut before = ' ';
        for c in line.trim_end().chars() {
            if !(matches!(c, ' ' | '─') && c == before) {
                plain.push(c);
            }
            before = c;
        }
        plain.push('\n');
    }
    let key = "\"staleness_ms\":";
    let mut pieces = plain.split(key);
    let mut masked = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        masked.push_str(key);
        masked.push('N');
        masked.push_str(piece.trim_start_matches(|c: char| c.is_ascii_digit() || c == '…'));
    }
    masked
}

#[test]
fn a_text_is_as_shown_only_if_all_of_it_is() {
    for (shown, text) in [
        ("es-AR", "es-AR\n"),
        ("a … z", "a b\nc z"),
        ("a…", "abc"),
        ("…c", "abc"),
        ("a…b…c", "a1b2c"),
        ("one  two\n────", "one      two\n───────────"),
        ("{\"staleness_ms\":412,…}", "{\"staleness_ms\":7,\"x\":1}"),
    ] {
        assert!(is_as_shown(shown, text), "{shown} {text}");
    }
    for (shown, text) in [
        ("es-AR", "es-AR more"),
        ("", "something"),
        ("a…z", "abc"),
        ("a…b…b", "a1b"),
        ("one two", "one\ntwo"),
    ] {
        assert!(!is_as_shown(shown, text), "{shown} {text}");
    }
}
