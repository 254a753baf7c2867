//! Rows in whose hands the process died: what is set aside, tried once more, and set aside for good.
//!
//! A panic on a row is caught where it happens; a stack overflow, an abort or a SIGKILL is not. So a small file says
//! which row is in hand. It is written without fsync, for it has to outlive the process and not the machine, and not
//! for each row of a long copy: there it says that rows are in hand, and only after a death among them each row is named.
//!
//! A row that was in hand once is held at its last good version until the rest is applied, and is then tried again: the
//! death may have been an operator's SIGKILL. One that the process died on while it looked at every row after a start is
//! looked at first by the next process: where nothing happens then, nothing is held against it. Only a second death sets it aside until its content changes. Where what
//! stands in for it kills as well, nothing does.
//! The file holds keys and hashes of rows, nothing of their content.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Key, Terms};
use crate::row::DocHash;

/// Rows of a chunk that are named one by one in any case.
const FEW: usize = 256;
/// Most suspects remembered; beyond, the oldest is forgotten and would have to kill again.
const MOST: usize = 16;
/// The file's size from the beginning, so that a full disk does not keep it from being written.
const ROOM: usize = 4096;
/// Deaths that set a row aside until its content changes.
const CONVICTED: u8 = 2;
/// Deaths after which the rows before it are not answered from either: they kill too. As many more as convict, for one
/// may have been an operator's SIGKILL.
const HOPELESS: u8 = 2 * CONVICTED;

/// A row's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) key: Key,
    pub(crate) hash: DocHash,
}

/// What is being worked on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InHand {
    #[default]
    Nothing,
    /// Some row.
    Rows,
    Row(Version),
}

/// Who works: each has something of its own in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hand {
    /// The batch being written, and what is made of its rows right after.
    Applying,
    /// The look at every row after a start.
    Judging,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Suspect {
    row: Version,
    deaths: u8,
    /// Every one of them while it was looked at.
    #[serde(default)]
    in_a_look: bool,
}

/// What one hand does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Work {
    in_hand: InHand,
    /// Whether each row is named, after a death among rows.
    #[serde(skip)]
    careful: bool,
}

/// What is known of deaths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ledger {
    #[serde(default)]
    applying: Work,
    #[serde(default)]
    judging: Work,
    #[serde(default)]
    suspects: Vec<Suspect>,
    /// Rows that a record calls deadly and nothing above does: this file was lost, is older or had no room.
    #[serde(skip)]
    unknown: Vec<Version>,
}

impl Ledger {
    /// What an earlier process left in hand when it ended is under suspicion.
    fn after_start(mut self) -> Self {
        let mut died: Vec<(Version, bool)> = Vec::new();
        for (work, in_a_look) in [(&mut self.applying, false), (&mut self.judging, true)] {
            let left = std::mem::take(&mut work.in_hand);
            work.careful = left != InHand::Nothing;
            // One death is one, in however many hands the row was.
            died.extend(match left {
                InHand::Row(row) if died.iter().all(|(known, _)| *known != row) => {
                    Some((row, in_a_look))
                }
                _ => None,
            });
        }
        for (row, in_a_look) in died {
            match self.suspects.iter_mut().find(|known| known.row == row) {
                Some(known) => {
                    known.deaths = known.deaths.saturating_add(1);
                    known.in_a_look &= in_a_look;
                }
                None => {
                    self.suspects.retain(|known| known.row.key != row.key);
                    if self.suspects.len() >= MOST {
                        self.suspects.remove(0);
                    }
                    self.suspects.push(Suspect {
                        row,
                        deaths: 1,
                        in_a_look,
                    });
                }
            }
        }
        self
    }

    fn work(&mut self, hand: Hand) -> &mut Work {
        match hand {
            Hand::Applying => &mut self.applying,
            Hand::Judging => &mut self.judging,
        }
    }

    fn deaths(&self, row: &Version) -> u8 {
        let known = self.suspects.iter().find(|known| known.row == *row);
        known.map_or(0, |known| known.deaths)
    }

    /// Whether a row that comes is to be held at its last good version.
    fn holds(&self, row: &Version, trying: bool) -> bool {
        let deaths = self.deaths(row);
        deaths >= CONVICTED || (deaths > 0 && !trying)
    }

    fn on_trial(&self) -> Vec<Version> {
        let tried = self.suspects.iter().filter(|row| row.deaths < CONVICTED);
        let tried = tried.map(|known| &known.row).chain(&self.unknown);
        tried.cloned().collect()
    }

    /// Rows set aside until their content changes, and whether not even those before them are to be in force.
    fn convicted(&self) -> Vec<(Version, bool)> {
        let convicted = self.suspects.iter().filter(|row| row.deaths >= CONVICTED);
        convicted
            .map(|known| (known.row.clone(), known.deaths >= HOPELESS))
            .collect()
    }

    /// The rows on trial came and nothing happened.
    fn acquit(&mut self) {
        self.suspects.retain(|known| known.deaths >= CONVICTED);
    }

    /// The row was looked at and nothing happened. Whether that says something new.
    fn looked_at(&mut self, row: &Version) -> bool {
        let before = self.suspects.len();
        self.suspects
            .retain(|known| known.row != *row || !known.in_a_look || known.deaths >= CONVICTED);
        self.suspects.len() != before
    }

    /// A record says that this row is set aside.
    fn is_aside(&mut self, row: Version) {
        if self.deaths(&row) == 0 && !self.unknown.contains(&row) {
            self.unknown.push(row);
        }
    }
}

/// The file `in-hand` of the replica's directory.
#[derive(Debug)]
pub(super) struct Marker {
    file: Option<File>,
    ledger: Mutex<Ledger>,
}

impl Marker {
    /// Reads what an earlier process left. A file that cannot be written protects nobody and stops nobody.
    pub(super) fn open(path: &Path) -> Self {
        // Only the first line counts: what stood there before may be longer.
        let left = std::fs::read_to_string(path).ok();
        let left = left.as_deref().and_then(|text| text.lines().next());
        let left: Ledger = left
            .and_then(|line| serde_json::from_str(line).ok())
            .unwrap_or_default();
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        if let Err(err) = &file {
            tracing::warn!(path = %path.display(), error = %err, "cannot be written; a row that this process dies on will not be known");
        }
        let marker = Self {
            file: file.ok(),
            ledger: Mutex::new(left.after_start()),
        };
        if let Some(file) = &marker.file
            && file.metadata().is_ok_and(|found| found.len() == 0)
        {
            let _ = file.write_all_at(&[b'\n'; ROOM], 0);
        }
        marker.write(&marker.ledger());
        marker
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, ledger: &Ledger) {
        let (Some(file), Ok(mut line)) = (&self.file, serde_json::to_vec(ledger)) else {
            return;
        };
        line.push(b'\n');
        if let Err(err) = file.write_all_at(&line, 0) {
            tracing::debug!(error = %err, "what is in hand cannot be noted");
        }
    }

    /// From now on this is in hand.
    pub(super) fn take(&self, hand: Hand, what: InHand) {
        let mut ledger = self.ledger();
        let work = ledger.work(hand);
        if work.in_hand != what {
            work.in_hand = what;
            self.write(&ledger);
        }
    }

    /// Whether each of so many rows is to be named.
    pub(super) fn names_each(&self, hand: Hand, rows: usize) -> bool {
        rows <= FEW || self.ledger().work(hand).careful
    }

    /// Whether anything is known against any row.
    pub(super) fn knows_any(&self) -> bool {
        let ledger = self.ledger();
        !ledger.suspects.is_empty() || !ledger.unknown.is_empty()
    }

    pub(super) fn suspects(&self, row: &Version) -> bool {
        self.ledger().deaths(row) > 0
    }

    pub(super) fn holds(&self, row: &Version, trying: bool) -> bool {
        self.ledger().holds(row, trying)
    }

    pub(super) fn on_trial(&self) -> Vec<Version> {
        self.ledger().on_trial()
    }

    pub(super) fn convicted(&self) -> Vec<(Version, bool)> {
        self.ledger().convicted()
    }

    /// A record says that this row is set aside: it is tried again where nothing is known against it.
    pub(super) fn is_aside(&self, row: Version) {
        self.ledger().is_aside(row);
    }

    /// Everything came, the rows on trial too where they were tried: who is alive now was not killed by them.
    pub(super) fn done(&self, terms: &Terms) {
        let mut ledger = self.ledger();
        let before = ledger.clone();
        ledger.applying = Work::default();
        ledger.unknown.retain(|row| !terms.cover.covers(&row.key));
        if terms.tries_suspects {
            ledger.acquit();
        }
        if *ledger != before {
            self.write(&ledger);
        }
    }

    /// The row was looked at and nothing happened.
    pub(super) fn looked_at(&self, row: &Version) {
        let mut ledger = self.ledger();
        if ledger.looked_at(row) {
            self.write(&ledger);
        }
    }

    /// The content of this row is another, or the row is gone.
    pub(super) fn forget(&self, key: &Key, but: Option<DocHash>) {
        let stays = |row: &Version| row.key != *key || Some(row.hash) == but;
        let mut ledger = self.ledger();
        ledger.suspects.retain(|known| stays(&known.row));
        ledger.unknown.retain(stays);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: &str, content: &str) -> Version {
        Version {
            key: Key::Number(number.to_owned()),
            hash: DocHash::of(content),
        }
    }

    fn died_with(mut ledger: Ledger, row: &Version) -> Ledger {
        ledger.applying.in_hand = InHand::Row(row.clone());
        ledger.after_start()
    }

    #[test]
    fn a_row_in_hand_at_a_death_is_held_until_it_is_tried_and_for_good_after_a_second_death() {
        let (bad, other) = (row("+1", "bad"), row("+2", "good"));
        let once = died_with(Ledger::default(), &bad);
        assert!(once.holds(&bad, false) && !once.holds(&bad, true) && once.applying.careful);
        assert!(!once.holds(&other, false) && !once.holds(&row("+1", "put right"), false));
        let mut acquitted = once.clone();
        acquitted.acquit();
        assert!(!acquitted.holds(&bad, false));
        let mut twice = died_with(once, &bad);
        assert!(twice.holds(&bad, true) && twice.convicted() == [(bad.clone(), false)]);
        twice.acquit();
        assert!(
            twice.holds(&bad, true),
            "a conviction outlives other trials"
        );
        assert!(
            twice.clone().after_start().holds(&bad, true),
            "and restarts"
        );
        let hopeless = died_with(died_with(twice, &bad), &bad);
        assert_eq!(hopeless.convicted(), [(bad, true)]);
    }

    #[test]
    fn a_look_that_nothing_happens_in_clears_a_row_of_looks_and_of_nothing_else() {
        let looked = |mut ledger: Ledger, row: &Version| {
            ledger.judging.in_hand = InHand::Row(row.clone());
            ledger.after_start()
        };
        let good = row("+1", "good");
        let mut once = looked(Ledger::default(), &good);
        assert!(once.holds(&good, false));
        assert!(once.looked_at(&good) && !once.holds(&good, false));
        let mut applied = died_with(looked(Ledger::default(), &good), &good);
        assert!(!applied.looked_at(&good) && applied.holds(&good, true));
        let mut twice = looked(looked(Ledger::default(), &good), &good);
        assert!(!twice.looked_at(&good) && twice.holds(&good, true));
    }

    #[test]
    fn a_row_in_two_hands_at_a_death_died_once() {
        let bad = row("+1", "bad");
        let mut ledger = Ledger::default();
        ledger.judging.in_hand = InHand::Row(bad.clone());
        assert_eq!(died_with(ledger, &bad).deaths(&bad), 1);
    }

    #[test]
    fn a_row_that_only_its_record_calls_deadly_is_on_trial_and_one_known_already_is_not_twice() {
        let (lost, known) = (row("+1", "lost"), row("+2", "known"));
        let mut ledger = died_with(Ledger::default(), &known);
        for row in [&known, &lost, &lost] {
            ledger.is_aside(row.clone());
        }
        assert_eq!(ledger.on_trial(), [known, lost.clone()]);
        assert!(!ledger.holds(&lost, false), "nothing is known against it");
    }

    #[test]
    fn a_death_among_rows_accuses_none_and_makes_the_next_process_name_each() {
        let ledger = Ledger {
            applying: Work {
                in_hand: InHand::Rows,
                careful: false,
            },
            ..Ledger::default()
        };
        let next = ledger.after_start();
        assert!(next.suspects.is_empty() && next.applying.careful && !next.judging.careful);
        assert!(
            !next.after_start().applying.careful,
            "one quiet life and it is over"
        );
    }

    #[test]
    fn what_was_in_hand_is_read_back_whatever_stood_there_before_and_never_outgrows_its_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in-hand");
        for number in 0..40 {
            let row = row(&format!("+1650{number:011}"), "x");
            let marker = Marker::open(&path);
            marker.take(Hand::Applying, InHand::Row(row.clone()));
            marker.take(Hand::Judging, InHand::Row(row.clone()));
            drop(marker);
            assert!(Marker::open(&path).suspects(&row), "{number}");
            assert_eq!(path.metadata().unwrap().len(), ROOM as u64);
        }
        std::fs::write(&path, "once upon a time").unwrap();
        assert_eq!(Marker::open(&path).on_trial(), []);
    }
}
