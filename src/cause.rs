//! An error with its causes as one line of text, for logs, statuses and people.

use std::error::Error;

/// The error and its causes, joined by `: `. A cause that its parent repeats is told once.
#[must_use]
pub fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}
