//! Every decision of the feed: what a pull says about the cursor, and what is to be done. No await, clock or disk.
//!
//! The cursor is a snapshot, not a number: transaction ids and sequences do not commit in order, snapshots do.
//! What one snapshot does not see and the next one does is exactly what committed between them
//! (Postgres manual, "Transaction ID and Snapshot Information Functions").

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `pg_current_snapshot()`: which transactions are seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Snapshot {
    /// Everything below has ended.
    pub xmin: u64,
    /// Nothing from here on has ended.
    pub xmax: u64,
    /// In progress between the two. On a standby always empty, whatever is in progress (14 to 18 alike).
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// Whether a committed transaction is seen.
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.xip.contains(&xid))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let xip: Vec<String> = self.xip.iter().map(ToString::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, xip.join(","))
    }
}

/// A snapshot's text is not of the form `xmin:xmax:xip,xip`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of Postgres: {0}")]
pub struct NoSnapshot(String);

impl FromStr for Snapshot {
    type Err = NoSnapshot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NoSnapshot(text.chars().take(80).collect());
        let mut parts = text.split(':');
        let mut number = || {
            parts
                .next()
                .and_then(|part| part.parse::<u64>().ok())
                .ok_or_else(wrong)
        };
        let (xmin, xmax) = (number()?, number()?);
        let xip = parts.next().ok_or_else(wrong)?;
        let xip = match xip {
            "" => Vec::new(),
            list => list
                .split(',')
                .map(|xid| xid.parse().map_err(|_| wrong()))
                .collect::<Result<_, _>>()?,
        };
        if parts.next().is_some() || xmin > xmax {
            return Err(wrong());
        }
        Ok(Self { xmin, xmax, xip })
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.to_string()
    }
}

impl TryFrom<String> for Snapshot {
    type Error = NoSnapshot;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Which server, started when, in which role, which database: when one differs, transaction ids mean something else.
/// Not the timeline: after a promotion `pg_control_checkpoint()` shows the old one for minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `system_identifier` of `pg_control_system()`.
    pub system: String,
    /// `pg_postmaster_start_time()`, as text in UTC.
    pub started: String,
    /// `pg_is_in_recovery()`: a standby.
    pub recovery: bool,
    /// Oid of the database.
    pub database: u32,
}

/// Up to where everything was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// What was seen.
    pub snapshot: Snapshot,
    /// Whose transaction ids those are.
    pub identity: Identity,
    /// Slugs and ids of the tenants that were copied; `None` for all.
    #[serde(default)]
    pub tenants: Option<Vec<String>>,
    /// Whether rows are kept that Postgres no longer has, until an operator lets them go.
    #[serde(default)]
    pub held: bool,
}

/// What every pull brings beside keys and rows.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Header {
    /// Of the statement that read keys and rows.
    pub snapshot: Snapshot,
    /// Of the server that answered.
    pub identity: Identity,
    /// `sidetone.armed()`: every trigger present and enabled ALWAYS, no policy hiding rows.
    pub armed: bool,
    /// `sidetone.meta.schema_version`.
    pub schema_version: i32,
    /// `sidetone.meta.floor`: the log holds everything from this transaction id on.
    #[serde(deserialize_with = "from_text")]
    pub floor: u64,
    /// Whether the log holds transaction ids that this server has not assigned yet: restored from a dump.
    pub future: bool,
    /// `pg_notification_queue_usage()`, 0 to 1.
    pub queue_usage: f64,
}

fn from_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}

/// What a row of the change log names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// One number, in the spelling of the row.
    Number(String),
    /// A tenant with everything but its numbers.
    Tenant(Uuid),
    /// All numbers of a tenant.
    NumbersOf(Uuid),
    /// Everything: a table was truncated.
    All,
}

impl Key {
    /// Reads a row of the log. A row that nobody of ours wrote is no reason to stop: it asks for everything.
    #[must_use]
    pub fn read(kind: &str, id: &str) -> Self {
        match (kind, Uuid::parse_str(id)) {
            ("number", _) => Self::Number(id.to_owned()),
            ("tenant", Ok(id)) => Self::Tenant(id),
            ("numbers_of", Ok(id)) => Self::NumbersOf(id),
            _ => Self::All,
        }
    }
}

/// A changed key and how long ago its statement ran, by the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// What changed.
    pub key: Key,
    /// Age at the time of the pull.
    pub age: Duration,
}

/// Why everything is compared instead of the changed keys applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The replica is empty.
    FirstSync,
    /// The log no longer reaches back to the cursor.
    BelowFloor,
    /// Another server, a restarted one, another role or database: transaction ids mean something else.
    OtherIdentity,
    /// The server is older than what was already seen: restored from a backup.
    WentBack,
    /// The log holds transaction ids of another server: restored from a dump.
    FutureLog,
    /// `replica.tenants` was changed.
    OtherTenants,
    /// A table was truncated, or more changed than is worth naming.
    Everything,
}

impl Why {
    /// For the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstSync => "first synchronisation",
            Self::BelowFloor => "the change log no longer reaches back to this node's cursor",
            Self::OtherIdentity => "another or restarted server, role or database",
            Self::WentBack => {
                "the server is older than what this node has seen; restored from a backup"
            }
            Self::FutureLog => "the change log is of another server; restored from a dump",
            Self::OtherTenants => "replica.tenants was changed",
            Self::Everything => "a table was truncated or too much changed",
        }
    }
}

/// What a pull means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing changed; the new snapshot becomes the cursor.
    Level,
    /// The rows that came with the pull are all there is; apply them.
    Apply,
    /// More changed than one statement brings; load these keys in one snapshot.
    Load(BTreeSet<Key>),
    /// Keep answering, compare everything, then take the new cursor.
    Compare(Why),
}

/// Most changed keys whose rows come with the pull itself.
pub const KEYS_PER_PULL: usize = 1000;
/// Most changed keys that are loaded by name; beyond, everything is compared.
pub const KEYS_PER_LOAD: usize = 50_000;

/// Up to so many numbers are read by name in any case.
const BY_NAME: u64 = 2_000;
/// So many numbers are passed in order for what one costs that is read by name, and written wherever it stands on disk.
const PASSED_FOR_NAMED: u64 = 8;

/// Whether all numbers are read, in the order in which they stand on disk, instead of so many that are named of those held.
#[must_use]
pub fn reads_all(named: u64, held: u64) -> bool {
    named > BY_NAME && named.saturating_mul(PASSED_FOR_NAMED) > held
}

/// What the cursor and a pull's header say, before its keys are looked at.
///
/// `tenants` are those to be held now.
///
/// # Errors
/// [`Why`] the keys mean nothing and everything has to be compared.
pub fn continues(
    cursor: Option<&Cursor>,
    header: &Header,
    tenants: Option<&[String]>,
) -> Result<(), Why> {
    let Some(cursor) = cursor else {
        return Err(Why::FirstSync);
    };
    if cursor.tenants.as_deref() != tenants {
        return Err(Why::OtherTenants);
    }
    if cursor.identity != header.identity {
        return Err(Why::OtherIdentity);
    }
    if header.future {
        return Err(Why::FutureLog);
    }
    // On a standby the in-progress list is empty and xmax may stand still; xmin never goes back on either.
    if header.snapshot.xmin < cursor.snapshot.xmin || header.snapshot.xmax < cursor.snapshot.xmax {
        return Err(Why::WentBack);
    }
    if cursor.snapshot.xmin < header.floor {
        return Err(Why::BelowFloor);
    }
    Ok(())
}

/// What is to be done with a pull whose header [`continues`] the cursor.
/// `complete` says that keys and rows came whole with it.
#[must_use]
pub fn step(changed: &[Changed], complete: bool) -> Step {
    if changed.is_empty() && complete {
        return Step::Level;
    }
    if changed.iter().any(|c| c.key == Key::All) || changed.len() > KEYS_PER_LOAD {
        return Step::Compare(Why::Everything);
    }
    if !complete || changed.iter().any(|c| matches!(c.key, Key::NumbersOf(_))) {
        return Step::Load(changed.iter().map(|c| c.key.clone()).collect());
    }
    Step::Apply
}

/// Where a pull starts reading the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Read everything from this transaction id on.
    pub xid: u64,
    /// And these, which were in progress then.
    pub also: Vec<u64>,
}

/// The exact cursor on a primary; on a standby, whose in-progress list says nothing, the floor of the snapshot.
#[must_use]
pub fn read_from(cursor: Option<&Cursor>) -> Start {
    match cursor {
        None => Start {
            xid: u64::MAX >> 1,
            also: Vec::new(),
        },
        Some(Cursor {
            snapshot, identity, ..
        }) if identity.recovery => Start {
            xid: snapshot.xmin,
            also: Vec::new(),
        },
        Some(Cursor { snapshot, .. }) => Start {
            xid: snapshot.xmax,
            also: snapshot.xip.clone(),
        },
    }
}

/// Positions that the primary's write-ahead log had reached, and when that was asked: what a standby's replay proves.
#[derive(Debug, Clone, Default)]
pub struct Written(VecDeque<(Duration, u64)>);

impl Written {
    /// More are never needed: one is taken before each pull.
    const MOST: usize = 64;

    /// The primary had written so far; asked at this time since boot.
    pub fn push(&mut self, asked: Duration, wal: u64) {
        if self.0.len() >= Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back((asked, wal));
    }

    /// Up to which time everything is replayed; `None` where nothing is proved.
    #[must_use]
    pub fn proved_by(&self, replayed: u64) -> Option<Duration> {
        self.0
            .iter()
            .rev()
            .find(|(_, wal)| *wal <= replayed)
            .map(|(asked, _)| *asked)
    }
}

/// Whether a loss is too large to be believed: more than `percent` of what was there.
#[must_use]
pub fn holds_loss(lost: u64, of: u64, percent: u8) -> bool {
    percent < 100
        && u128::from(lost).saturating_mul(100) > u128::from(of).saturating_mul(u128::from(percent))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "tests may do sums")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    fn identity() -> Identity {
        Identity {
            system: "1".into(),
            started: "2026".into(),
            recovery: false,
            database: 5,
        }
    }

    fn cursor(text: &str) -> Cursor {
        Cursor {
            snapshot: snapshot(text),
            identity: identity(),
            tenants: None,
            held: false,
        }
    }

    fn header(text: &str) -> Header {
        Header {
            snapshot: snapshot(text),
            identity: identity(),
            armed: true,
            schema_version: 1,
            floor: 0,
            future: false,
            queue_usage: 0.0,
        }
    }

    fn changed(keys: &[Key]) -> Vec<Changed> {
        keys.iter()
            .map(|key| Changed {
                key: key.clone(),
                age: Duration::ZERO,
            })
            .collect()
    }

    #[test]
    fn numbers_are_read_by_name_where_they_are_few_of_many_or_few_at_all() {
        for (named, held, all) in [
            (0, 0, false),
            (2_000, 2_000, false),
            (2_001, 2_001, true),
            (2_001, 1_000_000, false),
            (125_000, 1_000_000, false),
            (125_001, 1_000_000, true),
            (u64::MAX, 1, true),
        ] {
            assert_eq!(reads_all(named, held), all, "{named} of {held}");
        }
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was_written() {
        for text in ["10:20:11,15", "10:10:"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for text in ["", "1", "1:2", "2:1:", "1:2:x", "1:2:3:4", "-1:2:"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_without_a_cursor_synchronises_everything() {
        assert_eq!(
            continues(None, &header("10:10:"), None),
            Err(Why::FirstSync)
        );
    }

    #[test]
    fn another_identity_means_a_comparison() {
        for change in [
            |h: &mut Header| h.identity.system = "2".into(),
            |h: &mut Header| h.identity.started = "2027".into(),
            |h: &mut Header| h.identity.recovery = true,
            |h: &mut Header| h.identity.database = 6,
        ] {
            let mut other = header("10:10:");
            change(&mut other);
            assert_eq!(
                continues(Some(&cursor("10:10:")), &other, None),
                Err(Why::OtherIdentity)
            );
        }
    }

    #[test]
    fn a_server_that_went_back_means_a_comparison() {
        assert_eq!(
            continues(Some(&cursor("10:10:")), &header("9:10:"), None),
            Err(Why::WentBack)
        );
        assert_eq!(
            continues(Some(&cursor("10:12:11")), &header("10:11:"), None),
            Err(Why::WentBack)
        );
        assert_eq!(
            continues(Some(&cursor("10:12:11")), &header("10:12:11"), None),
            Ok(())
        );
    }

    #[test]
    fn a_log_pruned_past_the_cursor_means_a_comparison() {
        let mut pruned = header("20:20:");
        pruned.floor = 11;
        assert_eq!(
            continues(Some(&cursor("10:20:10")), &pruned, None),
            Err(Why::BelowFloor)
        );
        assert_eq!(continues(Some(&cursor("11:20:11")), &pruned, None), Ok(()));
    }

    #[test]
    fn a_log_from_the_future_means_a_comparison() {
        let mut restored = header("20:20:");
        restored.future = true;
        assert_eq!(
            continues(Some(&cursor("10:10:")), &restored, None),
            Err(Why::FutureLog)
        );
    }

    #[test]
    fn other_tenants_to_hold_mean_a_comparison() {
        let list = ["acme".to_owned()];
        assert_eq!(
            continues(Some(&cursor("10:10:")), &header("10:10:"), Some(&list)),
            Err(Why::OtherTenants)
        );
    }

    #[test]
    fn nothing_changed_is_level_and_an_incomplete_pull_never_is() {
        assert_eq!(step(&[], true), Step::Level);
        assert_eq!(step(&[], false), Step::Load(BTreeSet::new()));
    }

    #[test]
    fn a_truncated_table_means_a_comparison_and_all_numbers_of_a_tenant_a_load() {
        let tenant = Uuid::from_u128(7);
        assert_eq!(
            step(&changed(&[Key::All]), true),
            Step::Compare(Why::Everything)
        );
        assert_eq!(step(&changed(&[Key::Tenant(tenant)]), true), Step::Apply);
        assert_eq!(
            step(&changed(&[Key::NumbersOf(tenant)]), true),
            Step::Load([Key::NumbersOf(tenant)].into_iter().collect())
        );
    }

    #[test]
    fn a_row_of_the_log_that_is_not_understood_asks_for_everything() {
        assert_eq!(Key::read("tenant", "no uuid"), Key::All);
        assert_eq!(Key::read("weather", "rain"), Key::All);
        assert_eq!(Key::read("number", "+1"), Key::Number("+1".into()));
    }

    #[test]
    fn on_a_standby_the_log_is_read_from_xmin() {
        let mut standby = cursor("10:20:");
        assert_eq!(
            read_from(Some(&standby)),
            Start {
                xid: 20,
                also: vec![]
            }
        );
        standby.identity.recovery = true;
        assert_eq!(
            read_from(Some(&standby)),
            Start {
                xid: 10,
                also: vec![]
            }
        );
    }

    #[test]
    fn a_standby_proves_the_newest_position_it_has_replayed() {
        let mut written = Written::default();
        assert_eq!(written.proved_by(9), None);
        for second in 1..=100 {
            written.push(Duration::from_secs(second), second * 10);
        }
        assert_eq!(written.proved_by(1000), Some(Duration::from_secs(100)));
        assert_eq!(written.proved_by(999), Some(Duration::from_secs(99)));
        assert_eq!(written.proved_by(100), None);
    }

    #[test]
    fn a_loss_is_held_only_beyond_the_percentage() {
        assert!(!holds_loss(1, 3, 50));
        assert!(holds_loss(2, 3, 50));
        assert!(holds_loss(1, 1, 50));
        assert!(!holds_loss(0, 0, 0));
        assert!(holds_loss(1, 1000, 0));
        assert!(!holds_loss(10, 10, 100));
    }

    // A simple second implementation: transactions with a begin and an end on a time line; a snapshot taken at an
    // instant sees what ended before it. Each pull must bring exactly what ended between two snapshots.
    proptest! {
        #[test]
        fn every_transaction_is_read_by_exactly_one_pull(
            spans in prop::collection::vec((0u32..100, 1u32..60), 1..40),
            mut instants in prop::collection::vec(0u32..200, 1..10),
        ) {
            let mut begins: Vec<u32> = spans.iter().map(|(begin, _)| *begin).collect();
            begins.sort_unstable();
            let transactions: Vec<(u64, u32, u32)> = begins
                .iter()
                .zip(&spans)
                .enumerate()
                .map(|(index, (begin, (_, length)))| (100 + index as u64, *begin, begin + length))
                .collect();
            instants.push(300);
            instants.sort_unstable();
            let take = |at: u32| {
                let xmax = 100 + transactions.iter().filter(|(_, begin, _)| *begin <= at).count() as u64;
                let xip: Vec<u64> = transactions.iter().filter(|(_, b, e)| *b <= at && *e > at).map(|(x, ..)| *x).collect();
                Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip }
            };
            let mut at = Cursor { snapshot: Snapshot { xmin: 100, xmax: 100, xip: vec![] }, identity: identity(), tenants: None, held: false };
            let mut read: Vec<u64> = Vec::new();
            for instant in instants {
                let now = take(instant);
                let from = read_from(Some(&at));
                read.extend(transactions.iter().filter(|(xid, _, end)| {
                    *end <= instant && (*xid >= from.xid || from.also.contains(xid))
                }).map(|(xid, ..)| *xid));
                let pulled = Header { snapshot: now.clone(), ..header("1:1:") };
                prop_assert!(continues(Some(&at), &pulled, None).is_ok());
                for (xid, begin, end) in &transactions {
                    if *begin <= instant {
                        prop_assert_eq!(now.sees(*xid), *end <= instant);
                    }
                }
                at.snapshot = now;
            }
            read.sort_unstable();
            let all: Vec<u64> = transactions.iter().map(|(xid, ..)| *xid).collect();
            prop_assert_eq!(read, all);
        }
    }
}
