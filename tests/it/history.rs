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
    pub(crate) state: State,
    /// Before the transaction was sent.
    pub(crate) began: Millis,
    /// When its commit was acknowledged; `None` where that never came, so that it may or may not have happened.
    pub(crate) acknowledged: Option<Millis>,
}

/// What a version makes of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Number and tenant hold the version.
    Active,
    /// So they do, and the tenant is not active.
    Suspended,
    /// There is no such number.
    Gone,
    /// The number's row cannot be used: the version before goes on being answered.
    Bad,
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
    /// The tenant is not active.
    Suspended,
    /// Nobody has this number.
    Unknown,
    /// No answer: a status or a broken connection.
    Failed(u16),
}

/// What may be demanded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// With the feed up, a commit is answered within this time of its acknowledgement.
    pub(crate) visible_within: Millis,
    /// And a suspension within this time.
    pub(crate) suspended_within: Millis,
}

/// What is wrong with a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A version, a suspension or an absence that nobody had written.
    Invented(Read),
    /// An older version after a newer one had been answered.
    WentBack { before: Read, after: Read },
    /// Number and tenant are of two transactions.
    Half(Read),
    /// A row that cannot be used is answered from.
    NotGood(Read),
    /// The age told is younger than the change that is missing.
    Understated { read: Read, missing: Write },
    /// The feed was up, and a change was not answered in time.
    Late { read: Read, missing: Write },
    /// The feed was up, and a suspended tenant was answered for.
    NotSuspended { read: Read, missing: Write },
    /// There was no answer.
    Unavailable(Read),
    /// In the end a key is not at its last version.
    NotConverged {
        key: u32,
        answered: Outcome,
        written: Write,
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
        judge_key(writes, reads, up, bounds, &mut found);
    }
    found
}

/// The versions that an answer may be of, oldest first: an absence does not say of which.
fn versions(writes: &[Write], outcome: Outcome, by: Millis) -> Vec<u64> {
    let of = |state: State| {
        let begun = move |w: &&Write| w.state == state && w.began <= by;
        writes.iter().filter(begun).map(|w| w.version)
    };
    match outcome {
        Outcome::Answer { number, .. } => {
            let known = number == 0 || of(State::Active).any(|version| version == number);
            known.then_some(number).into_iter().collect()
        }
        Outcome::Suspended => of(State::Suspended).collect(),
        Outcome::Unknown => of(State::Gone).collect(),
        Outcome::Failed(_) => Vec::new(),
    }
}

fn judge_key(
    writes: &[Write],
    reads: &[Read],
    up: &[(Millis, Millis)],
    bounds: Bounds,
    found: &mut Vec<Violation>,
) {
    // Reads that ended, by their end, with the version that they had at least.
    let mut ended: Vec<(Read, u64)> = Vec::new();
    for read in reads {
        if matches!(read.outcome, Outcome::Failed(_)) {
            found.push(Violation::Unavailable(*read));
            continue;
        }
        if let Outcome::Answer { number, tenant, .. } = read.outcome {
            let bad = |w: &Write| w.version == number && w.state == State::Bad;
            if writes.iter().any(bad) {
                found.push(Violation::NotGood(*read));
                continue;
            }
            if number != tenant && !(number < tenant && may_be_skipped(writes, number + 1, read)) {
                found.push(Violation::Half(*read));
            }
        }
        let candidates = versions(writes, read.outcome, read.answered);
        let Some(newest) = candidates.last().copied() else {
            found.push(Violation::Invented(*read));
            continue;
        };
        judge_age(writes, read, newest, up, bounds, found);
        // Of two reads of which one ended before the other began, the second sees no less.
        let before = ended
            .iter()
            .filter(|(before, _)| before.answered < read.asked)
            .max_by_key(|(_, version)| *version)
            .copied();
        let least = before.map_or(0, |(_, version)| version);
        match candidates.iter().find(|version| **version >= least) {
            Some(version) => {
                // What an older one proves, a newer proves too: few are kept.
                ended.retain(|(old, known)| *known > *version || old.answered > read.answered);
                ended.push((*read, *version));
            }
            None => {
                if let Some((before, _)) = before {
                    found.push(Violation::WentBack {
                        before,
                        after: *read,
                    });
                }
            }
        }
    }
}

/// Whether an answer may never have known a version: a row that cannot be used came after it, and whoever looked only
/// then keeps an older one in force.
fn may_be_skipped(writes: &[Write], version: u64, read: &Read) -> bool {
    writes
        .iter()
        .any(|w| w.state == State::Bad && w.version >= version && w.began <= read.answered)
}

/// `version` is the newest that the answer may be of.
fn judge_age(
    writes: &[Write],
    read: &Read,
    version: u64,
    up: &[(Millis, Millis)],
    bounds: Bounds,
    found: &mut Vec<Violation>,
) {
    let missing = |acknowledged_before: Millis| {
        writes
            .iter()
            .rev()
            .filter(|w| w.version > version && !may_be_skipped(writes, w.version, read))
            .find(|w| w.acknowledged.is_some_and(|at| at < acknowledged_before))
            .copied()
    };
    // The age was worked out after the question was asked, and rounded down by less than a millisecond.
    if let Outcome::Answer { staleness, .. } = read.outcome
        && let Some(missing) = missing(read.asked.saturating_sub(staleness.saturating_add(1)))
    {
        found.push(Violation::Understated {
            read: *read,
            missing,
        });
    }
    let up_since = up
        .iter()
        .find(|(from, to)| *from <= read.asked && read.asked <= *to)
        .map(|(from, _)| *from);
    // The first that is missing, and how long ago it could have been heard.
    let overdue = |within: Millis, counts: &dyn Fn(&Write) -> bool| {
        writes.iter().copied().find(|w| {
            let heard = up_since.zip(w.acknowledged).map(|(up, at)| up.max(at));
            w.version > version
                && counts(w)
                && heard.is_some_and(|at| at.saturating_add(within) <= read.asked)
        })
    };
    let answered = matches!(read.outcome, Outcome::Answer { .. });
    let begun_after = |version: u64| {
        writes
            .iter()
            .any(|w| w.version > version && w.began <= read.answered && w.state == State::Active)
    };
    if let Some(missing) = overdue(bounds.suspended_within, &|w| {
        w.state == State::Suspended && !begun_after(w.version)
    }) && answered
    {
        found.push(Violation::NotSuspended {
            read: *read,
            missing,
        });
    } else if let Some(missing) = overdue(bounds.visible_within, &|w| {
        !may_be_skipped(writes, w.version, read)
    }) {
        found.push(Violation::Late {
            read: *read,
            missing,
        });
    }
}

/// Keys whose last answer is not of their last acknowledged version or a later one.
pub(crate) fn not_converged(writes: &[Write], last: &BTreeMap<u32, Outcome>) -> Vec<Violation> {
    let mut by_key: BTreeMap<u32, Vec<Write>> = BTreeMap::new();
    for write in writes {
        by_key.entry(write.key).or_default().push(*write);
    }
    by_key
        .into_iter()
        .filter_map(|(key, writes)| {
            let read = Read {
                key,
                asked: Millis::MAX,
                answered: Millis::MAX,
                outcome: last.get(&key).copied().unwrap_or(Outcome::Failed(0)),
            };
            let written = writes
                .iter()
                .filter(|w| w.acknowledged.is_some() && !may_be_skipped(&writes, w.version, &read))
                .max_by_key(|w| w.version)?;
            let candidates = versions(&writes, read.outcome, read.answered);
            let arrived = candidates.iter().any(|version| *version >= written.version);
            (!arrived).then_some(Violation::NotConverged {
                key,
                answered: read.outcome,
                written: *written,
            })
        })
        .collect()
}

mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        visible_within: 2000,
        suspended_within: 1000,
    };

    fn write(version: u64, began: Millis, acknowledged: Millis) -> Write {
        Write {
            key: 1,
            version,
            state: State::Active,
            began,
            acknowledged: Some(acknowledged),
        }
    }

    fn makes(state: State, version: u64, began: Millis, acknowledged: Millis) -> Write {
        Write {
            state,
            ..write(version, began, acknowledged)
        }
    }

    fn answered(asked: Millis, outcome: Outcome) -> Read {
        Read {
            outcome,
            ..read(asked, 0, 0)
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
        let failed = answered(3000, Outcome::Failed(503));
        assert!(matches!(
            verdict(&[], &[failed], &[])[..],
            [Violation::Unavailable(_)]
        ));
    }

    #[test]
    fn a_suspended_tenant_that_is_answered_for_is_found_after_one_second() {
        let writes = [makes(State::Suspended, 1, 100, 110)];
        let up = [(0, 9000)];
        let found = verdict(&writes, &[read(1200, 0, 1150)], &up);
        assert!(
            matches!(found[..], [Violation::NotSuspended { .. }]),
            "{found:?}"
        );
        assert_eq!(verdict(&writes, &[read(1000, 0, 950)], &up), []);
        assert_eq!(verdict(&writes, &[read(1200, 0, 1150)], &[]), []);
        let back = [writes[0], write(2, 1100, 1500)];
        assert_eq!(verdict(&back, &[read(1200, 2, 5)], &up), []);
        // It is active again, and perhaps nobody ever saw it suspended.
        assert_eq!(verdict(&back, &[read(1200, 0, 1150)], &up), []);
    }

    #[test]
    fn an_invented_suspension_and_an_invented_absence_are_found() {
        let writes = [
            makes(State::Gone, 1, 500, 510),
            makes(State::Suspended, 2, 600, 610),
        ];
        for (outcome, at) in [(Outcome::Unknown, 400), (Outcome::Suspended, 550)] {
            let found = verdict(&writes, &[answered(at, outcome)], &[]);
            assert!(matches!(found[..], [Violation::Invented(_)]), "{found:?}");
            assert_eq!(verdict(&writes, &[answered(700, outcome)], &[]), []);
        }
    }

    #[test]
    fn a_number_that_comes_back_after_it_was_gone_is_found() {
        let writes = [makes(State::Gone, 1, 100, 110), write(2, 5000, 5010)];
        let gone = answered(300, Outcome::Unknown);
        let found = verdict(&writes, &[gone, read(320, 0, 900)], &[]);
        assert!(
            matches!(found[..], [Violation::WentBack { .. }]),
            "{found:?}"
        );
        let late = answered(8000, Outcome::Unknown);
        let found = verdict(&writes, &[gone, read(5100, 2, 9), late], &[]);
        assert!(
            matches!(found[..], [Violation::WentBack { .. }]),
            "{found:?}"
        );
        assert!(matches!(
            verdict(&writes, &[late], &[(0, 9000)])[..],
            [Violation::Late { .. }]
        ));
        assert_eq!(verdict(&writes, &[gone, read(5100, 2, 9)], &[]), []);
    }

    #[test]
    fn a_bad_row_that_is_answered_from_is_found_and_the_last_good_one_is_not() {
        let writes = [write(1, 100, 110), makes(State::Bad, 2, 200, 210)];
        assert!(matches!(
            verdict(&writes, &[read(5000, 2, 5)], &[(0, 9000)])[..],
            [Violation::NotGood(_)]
        ));
        assert_eq!(verdict(&writes, &[read(5000, 1, 5)], &[(0, 9000)]), []);
        assert!(matches!(
            verdict(&writes, &[answered(5000, Outcome::Unknown)], &[])[..],
            [Violation::Invented(_)]
        ));
        let last = BTreeMap::from([(1, read(0, 1, 0).outcome)]);
        assert_eq!(not_converged(&writes, &last), []);
        // Who looked only after the bad row came knows an older good one, with the tenant as it is.
        let older = Outcome::Answer {
            number: 0,
            tenant: 1,
            staleness: 5,
        };
        assert_eq!(verdict(&writes, &[answered(5000, older)], &[(0, 9000)]), []);
        let again = [writes[0], writes[1], write(3, 300, 310)];
        let found = verdict(&again, &[answered(5000, older)], &[(0, 9000)]);
        assert!(
            matches!(
                found[..],
                [Violation::Understated { .. }, Violation::Late { .. }]
            ),
            "{found:?}"
        );
    }

    #[test]
    fn a_key_that_never_arrives_is_found_and_an_unacknowledged_write_is_not_demanded() {
        let at_0 = BTreeMap::from([(1, read(0, 0, 0).outcome)]);
        for writes in [
            [write(1, 100, 110)],
            [makes(State::Gone, 1, 100, 110)],
            [makes(State::Suspended, 1, 100, 110)],
        ] {
            assert!(matches!(
                not_converged(&writes, &at_0)[..],
                [Violation::NotConverged { .. }]
            ));
        }
        assert_eq!(
            not_converged(
                &[Write {
                    acknowledged: None,
                    ..write(1, 100, 110)
                }],
                &at_0
            ),
            []
        );
        let gone = BTreeMap::from([(1, Outcome::Unknown)]);
        assert_eq!(not_converged(&[makes(State::Gone, 1, 100, 110)], &gone), []);
    }
}
