//! Refusals of access in the log: who, never about which number. Bounded, so that a caller who is refused
//! cannot fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::access::Caller;

/// Most lines in one window.
const MOST_LINES: u64 = 10;

/// How long a window is.
const WINDOW: Duration = Duration::from_secs(1);

/// What was written lately. A caller that asks too often does not crowd out the refusals of others.
#[derive(Debug, Default)]
pub(super) struct Audit {
    refusals: Mutex<Window>,
    floods: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    begun: Option<Instant>,
    refused: u64,
}

impl Audit {
    /// A caller was refused.
    pub(super) fn refused(&self, caller: &Caller, what: &str) {
        if let Some(unwritten) = line(&self.refusals, Instant::now()) {
            write(caller, what, unwritten);
        }
    }

    /// A caller asked more often than it may.
    pub(super) fn flooded(&self, caller: &Caller) {
        if let Some(unwritten) = line(&self.floods, Instant::now()) {
            write(caller, "asks more often than its rate allows", unwritten);
        }
    }
}

fn write(caller: &Caller, what: &str, unwritten: u64) {
    match caller {
        Caller::Unix(peer) | Caller::Own(peer) => tracing::warn!(
            uid = peer.uid,
            gid = peer.gid,
            pid = peer.pid,
            unit = peer.unit,
            what,
            unwritten,
            "access refused"
        ),
        Caller::Tcp => tracing::warn!(over = "tcp", what, unwritten, "access refused"),
    }
}

/// Whether a line may be written now, and how many were not in the window before.
fn line(window: &Mutex<Window>, now: Instant) -> Option<u64> {
    let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
    let mut unwritten = 0;
    if window
        .begun
        .is_none_or(|begun| now.saturating_duration_since(begun) >= WINDOW)
    {
        unwritten = window.refused.saturating_sub(MOST_LINES);
        *window = Window {
            begun: Some(now),
            refused: 0,
        };
    }
    window.refused = window.refused.saturating_add(1);
    (window.refused <= MOST_LINES).then_some(unwritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_ten_lines_a_second_and_a_count() {
        let audit = Mutex::default();
        let start = Instant::now();
        let lines: Vec<Option<u64>> = (0..25).map(|_| line(&audit, start)).collect();
        assert_eq!(lines.iter().flatten().count(), 10);
        assert_eq!(line(&audit, start + WINDOW), Some(15));
        assert_eq!(line(&audit, start + WINDOW), Some(0));
    }
}
