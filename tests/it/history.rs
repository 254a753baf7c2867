//! What was written, what was answered, and whether both can be true: the judge of the fault tests.
//!
//! Every number has versions 0, 1, 2, …, each written by one transaction into the number's label and its tenant's
//! model together. A reader notes what it was answered. [`judge`] is pure and knows nothing of how either came about.

use std::collections::BTreeMap;

/// Milliseconds since the test began.
pub(crate) type Millis = u64;

/// A transaction that set a key to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) key: u32,
    pub(crate) version: u64,
    /// Before the transaction was sent.
    pub(crate) began: Millis,
    /// When its commit was acknowledged; `None` where that never came, so that it may or may not have happened.
    pub(crate) acknowledged: Option<Millis>,
}

/// What a reader was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) key: u32,
    pub(crate) asked: Millis,
    pub(crate) answered: Millis,
    pub(crate) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The version in the number's label and in its tenant's model, and `staleness_ms`.
    Answer {
        number: u64,
        tenant: u64,
        staleness: Millis,
    },
    /// No answer: a status or a broken connection.
    Failed(u16),
}

/// What may be demanded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// With the feed up, a commit is answered within this time of its acknowledgement.
    pub(crate) visible_within: Millis,
}

/// What is wrong with a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A version that nobody had written.
    Invented(Read),
    /// An older version after a newer one had been answered.
    WentBack { before: Read, after: Read },
    /// Number and tenant are of two transactions.
    Half(Read),
    /// The age told is younger than the change that is missing.
    Understated { read: Read, missing: Write },
    /// The feed was up, and a change was not answered in time.
    Late { read: Read, missing: Write },
    /// There was no answer.
    Unavailable(Read),
    /// In the end a key is not at its last version.
    NotConverged {
        key: u32,
        answered: u64,
        written: u64,
    },
}

/// Every violation. `up` are the spans in which the feed could reach Postgres without hindrance, long enough for it to
/// have connected before they begin.
pub(crate) fn judge(
    writes: &[Write],
    reads: &[Read],
    up: &[(Millis, Millis)],
    bounds: Bounds,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut by_key: BTreeMap<u32, (Vec<Write>, Vec<Read>)> = BTreeMap::new();
    for write in writes {
        by_key.entry(write.key).or_default().0.push(*write);
    }
    for read in reads {
        by_key.entry(read.key).or_default().1.push(*read);
    }
    for (writes, reads) in by_key.values_mut() {
        writes.sort_by_key(|write| write.version);
        reads.sort_by_key(|read| read.asked);
        for read in reads.iter() {
            judge_read(writes, read, up, bounds, &mut found);
        }
        judge_order(reads, &mut found);
    }
    found
}

fn judge_read(
    writes: &[Write],
    read: &Read,
    up: &[(Millis, Millis)],
    bounds: Bounds,
    found: &mut Vec<Violation>,
) {
    let Outcome::Answer {
        number,
        tenant,
        staleness,
    } = read.outcome
    else {
        return found.push(Violation::Unavailable(*read));
    };
    if number != tenant {
        found.push(Violation::Half(*read));
    }
    let known = |version: u64| {
        version == 0
            || writes
                .iter()
                .any(|w| w.version == version && w.began <= read.answered)
    };
    if !known(number) {
        found.push(Violation::Invented(*read));
    }
    let missing = |before: Millis| {
        writes
            .iter()
            .rev()
            .find(|w| w.acknowledged.is_some_and(|at| at < before) && w.version > number)
            .copied()
    };
    // The age was worked out after the question was asked, and rounded down by less than a millisecond.
    if let Some(missing) = missing(read.asked.saturating_sub(staleness.saturating_add(1))) {
        found.push(Violation::Understated {
            read: *read,
            missing,
        });
    }
    let reachable = |write: &Write| {
        let deadline = write
            .acknowledged
            .unwrap_or(Millis::MAX)
            .saturating_add(bounds.visible_within);
        up.iter().any(|(from, to)| {
            let begins = (*from).max(write.acknowledged.unwrap_or(Millis::MAX));
            begins.saturating_add(bounds.visible_within) <= read.asked
                && read.asked <= *to
                && deadline <= read.asked
        })
    };
    if let Some(missing) = missing(read.asked)
        && reachable(&missing)
    {
        found.push(Violation::Late {
            read: *read,
            missing,
        });
    }
}

/// Of two reads of which one ended before the other began, the second sees no less.
fn judge_order(reads: &[Read], found: &mut Vec<Violation>) {
    let version = |read: &Read| match read.outcome {
        Outcome::Answer { number, .. } => Some(number),
        Outcome::Failed(_) => None,
    };
    let mut by_end: Vec<&Read> = reads
        .iter()
        .filter(|read| version(read).is_some())
        .collect();
    by_end.sort_by_key(|read| read.answered);
    let mut ended = by_end.iter().peekable();
    let mut newest: Option<&Read> = None;
    for after in reads.iter().filter(|read| version(read).is_some()) {
        while let Some(before) = ended.next_if(|read| read.answered < after.asked) {
            if newest.is_none_or(|known| version(before) > version(known)) {
                newest = Some(before);
            }
        }
        if let Some(before) = newest
            && version(after) < version(before)
        {
            found.push(Violation::WentBack {
                before: *before,
                after: *after,
            });
        }
    }
}

/// Keys whose last answer is not their last acknowledged version.
pub(crate) fn not_converged(writes: &[Write], last: &BTreeMap<u32, u64>) -> Vec<Violation> {
    let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
    for write in writes.iter().filter(|write| write.acknowledged.is_some()) {
        let known = newest.entry(write.key).or_default();
        *known = write.version.max(*known);
    }
    newest
        .into_iter()
        .filter_map(|(key, written)| {
            let answered = last.get(&key).copied().unwrap_or(0);
            (answered < written).then_some(Violation::NotConverged {
                key,
                answered,
                written,
            })
        })
        .collect()
}

mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        visible_within: 2000,
    };

    fn write(version: u64, began: Millis, acknowledged: Millis) -> Write {
        Write {
            key: 1,
            version,
            began,
            acknowledged: Some(acknowledged),
        }
    }

    fn read(asked: Millis, version: u64, staleness: Millis) -> Read {
        Read {
            key: 1,
            asked,
            answered: asked + 1,
            outcome: Outcome::Answer {
                number: version,
                tenant: version,
                staleness,
            },
        }
    }

    fn verdict(writes: &[Write], reads: &[Read], up: &[(Millis, Millis)]) -> Vec<Violation> {
        judge(writes, reads, up, BOUNDS)
    }

    #[test]
    fn a_true_history_is_acquitted() {
        let writes = [write(1, 100, 110), write(2, 5000, 5010)];
        let reads = [
            read(90, 0, 5),
            read(105, 1, 50),
            read(4000, 1, 10),
            read(5005, 2, 100),
            read(9000, 2, 100),
        ];
        assert_eq!(verdict(&writes, &reads, &[(0, 10_000)]), []);
    }

    #[test]
    fn an_invented_version_is_found() {
        assert!(matches!(
            verdict(&[write(1, 100, 110)], &[read(50, 1, 0)], &[])[..],
            [Violation::Invented(_)]
        ));
        assert!(matches!(
            verdict(&[], &[read(50, 7, 0)], &[])[..],
            [Violation::Invented(_)]
        ));
    }

    #[test]
    fn a_history_that_goes_back_is_found() {
        let writes = [write(1, 100, 110), write(2, 200, 210)];
        let found = verdict(&writes, &[read(300, 2, 500), read(310, 1, 500)], &[]);
        assert!(
            matches!(found[..], [Violation::WentBack { .. }]),
            "{found:?}"
        );
        let overlapping = [
            Read {
                answered: 320,
                ..read(300, 2, 500)
            },
            read(310, 1, 500),
        ];
        assert_eq!(verdict(&writes, &overlapping, &[]), []);
    }

    #[test]
    fn half_a_transaction_is_found() {
        let half = Read {
            outcome: Outcome::Answer {
                number: 1,
                tenant: 0,
                staleness: 900,
            },
            ..read(300, 1, 0)
        };
        assert!(matches!(
            verdict(&[write(1, 100, 110)], &[half], &[])[..],
            [Violation::Half(_)]
        ));
    }

    #[test]
    fn an_understated_age_is_found() {
        let writes = [write(1, 100, 110)];
        let found = verdict(&writes, &[read(1000, 0, 800)], &[]);
        assert!(
            matches!(found[..], [Violation::Understated { .. }]),
            "{found:?}"
        );
        assert_eq!(verdict(&writes, &[read(1000, 0, 890)], &[]), []);
    }

    #[test]
    fn a_late_answer_is_found_only_while_the_feed_was_up() {
        let writes = [write(1, 100, 110)];
        let found = verdict(&writes, &[read(3000, 0, 2950)], &[(0, 5000)]);
        assert!(matches!(found[..], [Violation::Late { .. }]), "{found:?}");
        assert_eq!(verdict(&writes, &[read(3000, 0, 2950)], &[]), []);
        assert_eq!(
            verdict(&writes, &[read(3000, 0, 2950)], &[(2000, 5000)]),
            []
        );
    }

    #[test]
    fn a_question_without_an_answer_is_found() {
        let failed = Read {
            outcome: Outcome::Failed(503),
            ..read(3000, 0, 0)
        };
        assert!(matches!(
            verdict(&[], &[failed], &[])[..],
            [Violation::Unavailable(_)]
        ));
    }

    #[test]
    fn a_key_that_never_arrives_is_found_and_an_unacknowledged_write_is_not_demanded() {
        let last = BTreeMap::from([(1, 0)]);
        assert!(matches!(
            not_converged(&[write(1, 100, 110)], &last)[..],
            [Violation::NotConverged { .. }]
        ));
        assert_eq!(
            not_converged(
                &[Write {
                    acknowledged: None,
                    ..write(1, 100, 110)
                }],
                &last
            ),
            []
        );
    }
}
