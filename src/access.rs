//! Who may ask what: rules and the kernel's word about a caller in, rights out. No rule, no right.
//!
//! A caller on a Unix socket is known by its user and groups; a caller on TCP by nothing, so it gets
//! `config` and never credentials. Names are looked up once, when the rules are loaded, in the
//! system's files of users and groups; an unknown name is a problem of the configuration.
//!
//! Each caller may ask only so often, and no other's questions count against it. A bucket that nobody uses and that
//! is full again is forgotten, which changes nothing: a new one is full too.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{AccessRule, Problem, Rate, Right, is_unit};
use crate::row::Tenant;

/// Longest file of users or groups that is read.
const MOST_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A process on the other end of a Unix socket, as the kernel knew it when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Process, where the kernel can name it here.
    pub pid: Option<i32>,
    /// Systemd unit of the process, where it was asked for and is beyond doubt.
    pub unit: Option<String>,
}

impl Peer {
    /// Whether the process is of this group.
    #[must_use]
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Over a Unix socket.
    Unix(Peer),
    /// Over loopback TCP.
    Tcp,
    /// The daemon, over its own Unix socket: it asks in order to know that it answers. Not counted.
    Own(Peer),
}

/// The users and groups of this host.
#[derive(Debug, Clone, Default)]
pub struct Names {
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Names {
    /// Reads `/etc/passwd` and `/etc/group`. A file that cannot be read holds no name.
    #[must_use]
    pub fn of_host() -> Self {
        Self {
            users: ids(&read(Path::new("/etc/passwd"))),
            groups: ids(&read(Path::new("/etc/group"))),
        }
    }

    /// The id of a user, given by name or number.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| self.users.get(name).copied())
    }

    /// The id of a group, given by name or number.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        name.parse().ok().or_else(|| self.groups.get(name).copied())
    }
}

fn read(path: &Path) -> String {
    match std::fs::metadata(path) {
        Ok(file) if file.len() <= MOST_FILE_BYTES => std::fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default(),
        _ => String::new(),
    }
}

/// `name:x:id:…`, the shape that both files share.
fn ids(text: &str) -> HashMap<String, u32> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name.to_owned(), id.parse().ok()?)).filter(|_| !name.is_empty())
        })
        .collect()
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    User(u32),
    Group(u32),
    Unit(String),
}

impl Who {
    fn is(&self, peer: &Peer) -> bool {
        match self {
            Self::User(uid) => peer.uid == *uid,
            Self::Group(gid) => peer.is_in(*gid),
            Self::Unit(unit) => peer.unit.as_ref() == Some(unit),
        }
    }
}

#[derive(Debug)]
struct Rule {
    who: Who,
    allow: BTreeSet<Right>,
    /// Slugs and ids; empty: all.
    tenants: BTreeSet<String>,
    /// Empty: all.
    providers: BTreeSet<String>,
    rate: Option<Rate>,
}

impl Rule {
    fn covers(&self, tenant: &Tenant) -> bool {
        self.tenants.is_empty()
            || self.tenants.contains(&tenant.slug)
            || self
                .tenants
                .iter()
                .any(|given| given.parse() == Ok(tenant.id))
    }

    fn everything(who: Who, allow: &[Right]) -> Self {
        Self {
            who,
            allow: allow.iter().copied().collect(),
            tenants: BTreeSet::new(),
            providers: BTreeSet::new(),
            rate: None,
        }
    }
}

/// Most callers whose rates are kept apart. Those beyond share one bucket until others have been idle.
const MOST_CALLERS: usize = 4096;

/// How soon what a caller took comes back, and how much it may take at once; in nanoseconds of its own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    /// What one request takes.
    each: u64,
    /// What a pause gives back at most.
    most: u64,
}

impl Pace {
    fn of(rate: Rate) -> Option<Self> {
        let Rate::Limited {
            requests,
            seconds,
            burst,
        } = rate
        else {
            return None;
        };
        let period = u64::from(seconds).saturating_mul(1_000_000_000);
        let each = period.checked_div(u64::from(requests)).unwrap_or(period);
        Some(Self {
            each,
            most: each.saturating_mul(u64::from(burst)),
        })
    }
}

/// A caller is refused at most so often; nanoseconds from one refusal to the next.
const REFUSAL: u64 = 10_000_000;

/// Refusals that are told at once: who asks only a little too often is not kept waiting for its "no".
const SWIFT_REFUSALS: u64 = 16;

/// Longest time for which a refusal, or a connection of who is refused, is held back.
const MOST_HELD: Duration = Duration::from_secs(1);

/// Longest time for which a new connection over TCP is held back: nobody knows there who floods, and probes come so too.
const MOST_HELD_TCP: Duration = Duration::from_millis(200);

/// A caller has asked too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over {
    /// How long until it may ask again.
    pub wait: Duration,
    /// How long the refusal is to be held back, so that a caller that asks again as soon as it is answered is slowed.
    pub hold: Duration,
}

/// What one caller took lately, as the time at which all of it has come back. Taking is one exchange in memory.
#[derive(Debug)]
struct Bucket {
    epoch: Instant,
    full_at: AtomicU64,
    /// When the last refusal so far is due.
    refused_at: AtomicU64,
}

impl Bucket {
    fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            full_at: AtomicU64::new(0),
            refused_at: AtomicU64::new(0),
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long a refusal is held back now.
    fn hold(&self, now: Instant) -> Duration {
        let due = self.refused_at.load(Ordering::Relaxed);
        let swift = REFUSAL.saturating_mul(SWIFT_REFUSALS);
        let hold = due.saturating_sub(self.nanos(now)).saturating_sub(swift);
        Duration::from_nanos(hold).min(MOST_HELD)
    }

    /// Counts a refusal, and says how long it is held back.
    fn refuse(&self, now: Instant) -> Duration {
        let most = u64::try_from(MOST_HELD.as_nanos()).unwrap_or(u64::MAX);
        let swift = REFUSAL.saturating_mul(SWIFT_REFUSALS);
        let (at, latest) = (self.nanos(now), most.saturating_add(swift));
        let hold = self.hold(now);
        let due = |due: u64| {
            Some(
                due.max(at)
                    .saturating_add(REFUSAL)
                    .min(at.saturating_add(latest)),
            )
        };
        let _ = self
            .refused_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, due);
        hold
    }

    /// Takes one request, or says how long until there is one to take.
    fn take(&self, pace: Pace, now: Instant) -> Result<(), Duration> {
        let now = self.nanos(now);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let then = full_at.max(now).saturating_add(pace.each);
            let over = then.saturating_sub(now).saturating_sub(pace.most);
            if over > 0 {
                return Err(Duration::from_nanos(over));
            }
            match self.full_at.compare_exchange_weak(
                full_at,
                then,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.load(Ordering::Relaxed) <= self.nanos(now)
    }
}

/// A user, and where it is let in as a unit, which of the rules says so: units of one user are several callers.
type Asker = (u32, Option<usize>);

/// The buckets of callers by user and unit.
#[derive(Debug)]
struct Buckets {
    of_users: HashMap<Asker, Arc<Bucket>>,
    shared: Arc<Bucket>,
    most: usize,
}

impl Buckets {
    fn new(most: usize, epoch: Instant) -> Self {
        Self {
            of_users: HashMap::new(),
            shared: Arc::new(Bucket::new(epoch)),
            most,
        }
    }

    fn of(&mut self, user: Asker, now: Instant) -> Arc<Bucket> {
        if let Some(bucket) = self.of_users.get(&user) {
            return bucket.clone();
        }
        if self.of_users.len() >= self.most {
            // One that a connection still holds must stay, or its user would get a second one.
            self.of_users
                .retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.is_full(now));
        }
        if self.of_users.len() >= self.most {
            return self.shared.clone();
        }
        let bucket = Arc::new(Bucket::new(self.shared.epoch));
        self.of_users.insert(user, bucket.clone());
        bucket
    }
}

/// The rules in force.
#[derive(Debug)]
pub struct Access {
    rules: Vec<Arc<Rule>>,
    tcp: Option<Limit>,
    buckets: Mutex<Buckets>,
}

/// How often a caller may ask, and what it has taken of that.
#[derive(Debug, Clone)]
struct Limit {
    pace: Pace,
    bucket: Arc<Bucket>,
}

impl Access {
    /// The configured rules, or without any the default ones: root and the daemon's user everything,
    /// the socket's group `config`.
    ///
    /// # Errors
    /// Every user and group that does not exist on this host.
    pub fn new(
        rules: &[AccessRule],
        names: &Names,
        daemon: u32,
        socket_group: Option<u32>,
    ) -> Result<Self, Vec<Problem>> {
        let epoch = Instant::now();
        Ok(Self {
            rules: in_force(rules, names, daemon, socket_group)?,
            tcp: Pace::of(Rate::DEFAULT).map(|pace| Limit {
                pace,
                bucket: Arc::new(Bucket::new(epoch)),
            }),
            buckets: Mutex::new(Buckets::new(MOST_CALLERS, epoch)),
        })
    }

    /// How often all TCP callers together may ask.
    #[must_use]
    pub fn with_tcp_rate(mut self, rate: Rate) -> Self {
        self.tcp = Pace::of(rate).map(|pace| Limit {
            pace,
            bucket: Arc::new(Bucket::new(Instant::now())),
        });
        self
    }

    /// Whether any rule is about a group: only then the supplementary groups of a caller matter.
    #[must_use]
    pub fn asks_for_groups(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.who, Who::Group(_)))
    }

    /// Whether any rule is about a unit: only then that of every caller matters.
    #[must_use]
    pub fn asks_for_units(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.who, Who::Unit(_)))
    }

    /// How long a new connection of a user, or of TCP, is left alone: as long as a refusal would be held back.
    #[must_use]
    pub fn pause(&self, user: Option<u32>, now: Instant) -> Duration {
        let Some(uid) = user else {
            let limit = self.tcp.as_ref();
            let hold = limit.map_or(Duration::ZERO, |limit| limit.bucket.hold(now));
            return hold.min(MOST_HELD_TCP);
        };
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let hold = |unit| Some(buckets.of_users.get(&(uid, unit))?.hold(now));
        // Who is let in as a unit may be another caller than the user's other processes: those are asked.
        let unit = |index: usize| {
            matches!(
                self.rules.get(index).map(|rule| &rule.who),
                Some(Who::Unit(_))
            )
        };
        let units = (0..self.rules.len()).filter(|index| unit(*index)).map(Some);
        std::iter::once(None)
            .chain(units)
            .filter_map(hold)
            .min()
            .unwrap_or_default()
    }

    /// What a caller may ask. Worked out once per connection.
    #[must_use]
    pub fn rights(&self, caller: &Caller, now: Instant) -> Rights {
        let peer = match caller {
            Caller::Tcp => {
                return Rights {
                    config: true,
                    rules: Vec::new(),
                    limit: self.tcp.clone(),
                };
            }
            Caller::Unix(peer) | Caller::Own(peer) => peer,
        };
        let rules: Vec<Arc<Rule>> = self
            .rules
            .iter()
            .filter(|rule| rule.who.is(peer))
            .cloned()
            .collect();
        let unit = self
            .rules
            .iter()
            .position(|rule| matches!(rule.who, Who::Unit(_)) && rule.who.is(peer));
        let limit = if rules.is_empty() { None } else { pace(&rules) }.map(|pace| Limit {
            pace,
            bucket: self
                .buckets
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .of((peer.uid, unit), now),
        });
        let own = matches!(caller, Caller::Own(_));
        Rights {
            config: own,
            rules,
            limit: limit.filter(|_| !own),
        }
    }
}

/// The most generous of the rates that rules name; the default where none does.
fn pace(rules: &[Arc<Rule>]) -> Option<Pace> {
    let mut found: Option<Pace> = None;
    for rate in rules.iter().filter_map(|rule| rule.rate) {
        let pace = Pace::of(rate)?;
        found = Some(match found {
            Some(other) if (other.each, pace.most) <= (pace.each, other.most) => other,
            _ => pace,
        });
    }
    found.or_else(|| Pace::of(Rate::DEFAULT))
}

fn in_force(
    rules: &[AccessRule],
    names: &Names,
    daemon: u32,
    socket_group: Option<u32>,
) -> Result<Vec<Arc<Rule>>, Vec<Problem>> {
    if rules.is_empty() {
        let all = [Right::Config, Right::Credentials];
        let mut rules = vec![
            Rule::everything(Who::User(0), &all),
            Rule::everything(Who::User(daemon), &all),
        ];
        rules.extend(socket_group.map(|gid| Rule::everything(Who::Group(gid), &[Right::Config])));
        return Ok(rules.into_iter().map(Arc::new).collect());
    }
    let mut known = Vec::with_capacity(rules.len());
    let mut problems = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        match who(rule, names) {
            Ok(who) => known.push(Arc::new(Rule {
                who,
                allow: rule.allow.iter().copied().collect(),
                tenants: rule.tenants.iter().cloned().collect(),
                providers: rule.providers.iter().cloned().collect(),
                rate: rule.rate,
            })),
            Err(what) => {
                problems.push(Problem {
                    place: String::new(),
                    key: format!("access.{index}"),
                    what,
                });
            }
        }
    }
    if problems.is_empty() {
        Ok(known)
    } else {
        Err(problems)
    }
}

fn who(rule: &AccessRule, names: &Names) -> Result<Who, String> {
    match (&rule.user, &rule.group, &rule.unit) {
        (Some(user), None, None) => names.user(user).map(Who::User).ok_or_else(|| {
            format!("no user {user:?} in /etc/passwd; create it, or name it by its number")
        }),
        (None, Some(group), None) => names.group(group).map(Who::Group).ok_or_else(|| {
            format!("no group {group:?} in /etc/group; create it, or name it by its number")
        }),
        (None, None, Some(unit)) => Ok(Who::Unit(unit.clone())),
        _ => Err("must name either a user, a group or a unit".to_owned()),
    }
}

/// What one caller may ask: the rules that are about it, their rights added up.
#[derive(Debug, Clone)]
pub struct Rights {
    /// `config` for every tenant, whatever the rules.
    config: bool,
    rules: Vec<Arc<Rule>>,
    limit: Option<Limit>,
}

impl Rights {
    /// What operators may ask: the configuration of every tenant, as often as they like, and no credentials.
    #[must_use]
    pub fn of_operators() -> Self {
        Self {
            config: true,
            rules: Vec::new(),
            limit: None,
        }
    }

    /// Whether any rule is about the caller.
    #[must_use]
    pub fn any(&self) -> bool {
        self.config || !self.rules.is_empty()
    }

    /// Takes one request of what the caller may ask now.
    ///
    /// # Errors
    /// [`Over`]: the caller has asked too often.
    pub fn take(&self, now: Instant) -> Result<(), Over> {
        let Some(Limit { bucket, pace }) = &self.limit else {
            return Ok(());
        };
        bucket.take(*pace, now).map_err(|wait| Over {
            wait,
            hold: bucket.refuse(now),
        })
    }

    /// As [`take`](Self::take), where there is one to take; else nothing has happened.
    #[must_use]
    pub fn try_take(&self, now: Instant) -> bool {
        self.limit
            .as_ref()
            .is_none_or(|Limit { bucket, pace }| bucket.take(*pace, now).is_ok())
    }

    /// Whether the caller has this right for any tenant at all.
    #[must_use]
    pub fn anywhere(&self, right: Right) -> bool {
        match right {
            Right::Config if self.config => true,
            _ => self.rules.iter().any(|rule| rule.allow.contains(&right)),
        }
    }

    /// Whether the caller may ask everything but credentials of a tenant.
    #[must_use]
    pub fn config(&self, tenant: &Tenant) -> bool {
        self.config
            || self
                .rules
                .iter()
                .any(|rule| rule.allow.contains(&Right::Config) && rule.covers(tenant))
    }

    /// Which credentials of a tenant the caller may have.
    #[must_use]
    pub fn credentials(&self, tenant: &Tenant) -> Providers {
        let mut some = BTreeSet::new();
        for rule in self
            .rules
            .iter()
            .filter(|rule| rule.allow.contains(&Right::Credentials) && rule.covers(tenant))
        {
            if rule.providers.is_empty() {
                return Providers::All;
            }
            some.extend(rule.providers.iter().cloned());
        }
        if some.is_empty() {
            Providers::None
        } else {
            Providers::Some(some)
        }
    }
}

/// Of which providers a caller may have the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Providers {
    /// Of none.
    None,
    /// Of these.
    Some(BTreeSet<String>),
    /// Of every one.
    All,
}

impl Providers {
    /// Whether this provider is among them.
    #[must_use]
    pub fn has(&self, provider: &str) -> bool {
        match self {
            Self::None => false,
            Self::Some(some) => some.contains(provider),
            Self::All => true,
        }
    }
}

/// The `Groups:` line of `/proc/<pid>/status`, if it is about this user and group.
///
/// A process that ended may have left its number to another. One of another user or group is told apart
/// here; one of the same user and group cannot be, and could act for that user anyway.
#[must_use]
pub fn groups_in_status(status: &str, uid: u32, gid: u32) -> Option<Vec<u32>> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // Real, effective, saved, file system: the kernel's word about a peer is the effective one.
    let effective = |name: &str| {
        line(name)?
            .split_ascii_whitespace()
            .nth(1)?
            .parse::<u32>()
            .ok()
    };
    if effective("Uid:")? != uid || effective("Gid:")? != gid {
        return None;
    }
    Some(
        line("Groups:")?
            .split_ascii_whitespace()
            .filter_map(|gid| gid.parse().ok())
            .collect(),
    )
}

/// The unit of the system's service manager in a `/proc/<pid>/cgroup`.
///
/// It is the first part of the path that is no slice. What stands below it was named by whoever the unit's subtree was
/// given to: a user's own manager or a container may call a group there by the name of any unit. Where the path leads
/// out of this process's view, or the two hierarchies that systemd may keep do not agree, there is none.
#[must_use]
pub fn unit_in_cgroup(cgroup: &str) -> Option<&str> {
    let mut found = None;
    for line in cgroup.lines() {
        let Some((_, rest)) = line.split_once(':') else {
            continue;
        };
        let Some(path) = ["name=systemd:", ":"]
            .iter()
            .find_map(|kind| rest.strip_prefix(kind))
        else {
            continue;
        };
        if path.split('/').any(|part| part == "..") {
            return None;
        }
        let unit = path
            .split('/')
            .find(|part| !part.is_empty() && !part.ends_with(".slice"));
        // The unified hierarchy is empty where systemd keeps only its own.
        match (found, unit) {
            (_, None) => {}
            (None, Some(unit)) => found = Some(unit),
            (Some(one), Some(other)) if one == other => {}
            (Some(_), Some(_)) => return None,
        }
    }
    found.filter(|unit| is_unit(unit))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "tests may do sums")]
mod tests {
    use super::*;

    const ACME: &str = "6f717b5a-1a2b-4c3d-9e8f-112233445566";

    fn tenant(id: &str, slug: &str) -> Tenant {
        Tenant {
            id: id.parse().unwrap(),
            name: "n".into(),
            slug: slug.into(),
            status: "active".into(),
        }
    }

    fn acme() -> Tenant {
        tenant(ACME, "acme")
    }

    fn other() -> Tenant {
        tenant("00000000-0000-4000-8000-000000000000", "other")
    }

    fn names() -> Names {
        Names {
            users: ids(
                "root:x:0:0:root:/root:/bin/sh\nasterisk:x:110:115::/:/bin/false\n\nbroken\n",
            ),
            groups: ids("root:x:0:\ntelephony:x:200:alice,bob\n"),
        }
    }

    fn unix(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller::Unix(Peer {
            uid,
            gid,
            groups: groups.to_vec(),
            pid: Some(1),
            unit: None,
        })
    }

    fn defaults() -> Access {
        Access::new(&[], &names(), 500, Some(600)).unwrap()
    }

    fn rule(json: serde_json::Value) -> AccessRule {
        serde_json::from_value(json).unwrap()
    }

    fn access(rules: &[serde_json::Value]) -> Access {
        Access::new(
            &rules.iter().cloned().map(rule).collect::<Vec<_>>(),
            &names(),
            500,
            Some(600),
        )
        .unwrap()
    }

    #[test]
    fn without_rules_root_and_the_daemons_user_may_everything() {
        for uid in [0, 500] {
            let rights = defaults().rights(&unix(uid, 7, &[]), Instant::now());
            assert!(
                rights.config(&acme()) && rights.credentials(&acme()) == Providers::All,
                "uid {uid}"
            );
        }
    }

    #[test]
    fn without_rules_the_sockets_group_may_config_and_no_credentials() {
        for caller in [unix(7, 600, &[]), unix(7, 7, &[3, 600])] {
            let rights = defaults().rights(&caller, Instant::now());
            assert!(rights.config(&acme()));
            assert_eq!(rights.credentials(&acme()), Providers::None);
            assert!(!rights.anywhere(Right::Credentials));
        }
    }

    #[test]
    fn without_a_rule_about_it_a_caller_may_nothing() {
        let rights = defaults().rights(&unix(7, 7, &[8]), Instant::now());
        assert!(!rights.any() && !rights.anywhere(Right::Config) && !rights.config(&acme()));
    }

    #[test]
    fn with_rules_these_alone_hold_even_for_root() {
        let access = access(&[serde_json::json!({"user": "asterisk", "allow": ["config"]})]);
        assert!(!access.rights(&unix(0, 0, &[]), Instant::now()).any());
        assert!(!access.rights(&unix(500, 600, &[600]), Instant::now()).any());
        assert!(
            access
                .rights(&unix(110, 115, &[]), Instant::now())
                .config(&acme())
        );
    }

    #[test]
    fn a_tenant_is_named_by_slug_or_id_and_no_other_is_covered() {
        for name in ["acme", ACME, &ACME.to_uppercase()] {
            let access = access(&[
                serde_json::json!({"user": "110", "allow": ["config", "credentials"], "tenants": [name]}),
            ]);
            let rights = access.rights(&unix(110, 1, &[]), Instant::now());
            assert!(
                rights.config(&acme()) && rights.credentials(&acme()).has("openai"),
                "{name}"
            );
            assert!(
                !rights.config(&other()) && !rights.credentials(&other()).has("openai"),
                "{name}"
            );
            assert!(rights.anywhere(Right::Config));
        }
    }

    #[test]
    fn rights_of_several_rules_add_up_each_within_its_tenants_and_providers() {
        let access = access(&[
            serde_json::json!({"user": "asterisk", "allow": ["config"], "tenants": ["acme"]}),
            serde_json::json!({"group": "telephony", "allow": ["credentials"], "providers": ["openai"]}),
            serde_json::json!({"group": 200.to_string(), "allow": ["credentials"], "tenants": ["other"], "providers": ["google"]}),
        ]);
        let rights = access.rights(&unix(110, 1, &[200]), Instant::now());
        assert!(rights.config(&acme()) && !rights.config(&other()));
        assert!(
            rights.credentials(&acme()).has("openai") && !rights.credentials(&acme()).has("google")
        );
        assert!(
            rights.credentials(&other()).has("openai")
                && rights.credentials(&other()).has("google")
        );
        assert_eq!(
            access
                .rights(&unix(110, 1, &[]), Instant::now())
                .credentials(&acme()),
            Providers::None
        );
    }

    #[test]
    fn tcp_may_config_of_every_tenant_and_never_credentials() {
        let open = access(&[serde_json::json!({"user": "0", "allow": ["credentials"]})]);
        for access in [defaults(), open] {
            let rights = access.rights(&Caller::Tcp, Instant::now());
            assert!(rights.any() && rights.config(&acme()) && rights.anywhere(Right::Config));
            assert!(!rights.anywhere(Right::Credentials));
            assert_eq!(rights.credentials(&acme()), Providers::None);
        }
    }

    #[test]
    fn unknown_names_are_told_all_at_once_with_their_rule() {
        let rules = [
            rule(serde_json::json!({"user": "nobody-here", "allow": ["config"]})),
            rule(serde_json::json!({"user": "asterisk", "allow": ["config"]})),
            rule(serde_json::json!({"group": "asterisk", "allow": ["config"]})),
        ];
        let told: Vec<String> = Access::new(&rules, &names(), 1, None)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].starts_with("access.0: no user \"nobody-here\" in /etc/passwd"),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("access.2: no group \"asterisk\" in /etc/group"),
            "{told:?}"
        );
    }

    #[test]
    fn groups_are_taken_only_from_a_process_of_the_same_user_and_group() {
        let status = "Name:\tx\nUid:\t5\t110\t110\t110\nGid:\t5\t115\t115\t115\nFDSize:\t64\nGroups:\t4 200 \n";
        assert_eq!(groups_in_status(status, 110, 115), Some(vec![4, 200]));
        assert_eq!(groups_in_status(status, 5, 115), None);
        assert_eq!(groups_in_status(status, 110, 5), None);
        assert_eq!(
            groups_in_status("Uid:\t1 1\nGid: 1 1\nGroups:\t\n", 1, 1),
            Some(vec![])
        );
        assert_eq!(groups_in_status("", 0, 0), None);
    }

    const MS: Duration = Duration::from_millis(1);

    fn limited(requests: u32, seconds: u32, burst: u32) -> Pace {
        Pace::of(Rate::Limited {
            requests,
            seconds,
            burst,
        })
        .unwrap()
    }

    #[test]
    fn after_a_pause_a_burst_passes_and_then_one_at_a_time_and_the_wait_told_is_the_wait() {
        let start = Instant::now();
        let (bucket, pace) = (Bucket::new(start), limited(10, 1, 3));
        let taken = (0..9).filter(|_| bucket.take(pace, start).is_ok()).count();
        assert_eq!(taken, 3);
        assert_eq!(bucket.take(pace, start), Err(100 * MS));
        assert_eq!(bucket.take(pace, start + 99 * MS), Err(MS));
        assert_eq!(bucket.take(pace, start + 100 * MS), Ok(()));
        assert_eq!(bucket.take(pace, start + 100 * MS), Err(100 * MS));
        let later = start + Duration::from_secs(3600);
        assert_eq!(
            (0..9).filter(|_| bucket.take(pace, later).is_ok()).count(),
            3
        );
    }

    proptest::proptest! {
        #[test]
        fn no_stretch_of_time_passes_more_than_its_rate_and_one_burst(
            requests in 1_u32..2000,
            seconds in proptest::sample::select(vec![1_u32, 60]),
            burst in 1_u32..50,
            steps in proptest::collection::vec(0_u64..200_000_000, 1..300),
        ) {
            let start = Instant::now();
            let (bucket, pace) = (Bucket::new(start), limited(requests, seconds, burst));
            let mut now = start;
            let mut passed: Vec<u64> = Vec::new();
            for step in steps {
                now += Duration::from_nanos(step);
                let took = bucket.take(pace, now);
                match took {
                    Ok(()) => passed.push(bucket.nanos(now)),
                    Err(wait) => {
                        proptest::prop_assert!(wait <= Duration::from_nanos(pace.each));
                        proptest::prop_assert!(bucket.take(pace, now + wait - Duration::from_nanos(1)).is_err());
                    }
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (j, to) in passed.iter().enumerate().skip(i) {
                    let allowed = u64::from(burst) + (to - from) / pace.each;
                    proptest::prop_assert!((j - i + 1) as u64 <= allowed, "{} in {}", j - i + 1, to - from);
                }
            }
        }

        #[test]
        fn who_keeps_to_its_rate_is_never_refused(
            requests in 1_u32..100_000,
            seconds in proptest::sample::select(vec![1_u32, 60]),
            burst in 1_u32..50,
            waits in proptest::collection::vec(0_u64..1_000_000, 1..200),
        ) {
            let start = Instant::now();
            let (bucket, pace) = (Bucket::new(start), limited(requests, seconds, burst));
            let mut now = start;
            for wait in waits {
                proptest::prop_assert_eq!(bucket.take(pace, now), Ok(()));
                now += Duration::from_nanos(pace.each + wait);
            }
        }

        #[test]
        fn ones_flood_takes_nothing_of_anothers_share(floods in proptest::collection::vec(0_usize..500, 1..20)) {
            let access = access(&[
                serde_json::json!({"user": "1", "allow": ["config"], "rate": "100/s"}),
                serde_json::json!({"user": "2", "allow": ["config"], "rate": "1/s"}),
            ]);
            let mut now = Instant::now();
            for flood in floods {
                for _ in 0..flood {
                    let _ = access.rights(&unix(1, 1, &[]), now).take(now);
                    let _ = access.rights(&Caller::Tcp, now).take(now);
                }
                proptest::prop_assert_eq!(access.rights(&unix(2, 2, &[]), now).take(now), Ok(()));
                now += Duration::from_secs(1);
            }
        }
    }

    #[test]
    fn all_connections_of_a_user_share_its_rate_and_all_of_tcp_one() {
        let access =
            access(&[serde_json::json!({"user": "7", "allow": ["config"], "rate": "5/s"})])
                .with_tcp_rate("4/s".parse().unwrap());
        let now = Instant::now();
        let passed = |caller: &Caller| {
            (0..9)
                .filter(|_| access.rights(caller, now).take(now).is_ok())
                .count()
        };
        assert_eq!(passed(&unix(7, 7, &[])), 5);
        assert_eq!(passed(&unix(7, 8, &[])), 0);
        assert_eq!(passed(&Caller::Tcp), 4);
    }

    #[test]
    fn the_most_generous_rate_named_counts_and_the_default_where_none_is() {
        let access = access(&[
            serde_json::json!({"user": "1", "allow": ["config"], "rate": "2/s"}),
            serde_json::json!({"group": "9", "allow": ["config"], "rate": "3/s"}),
            serde_json::json!({"group": "8", "allow": ["config"], "rate": "off"}),
            serde_json::json!({"group": "7", "allow": ["config"]}),
        ]);
        let pace = |uid, groups: &[u32]| {
            let rights = access.rights(&unix(uid, 0, groups), Instant::now());
            rights.limit.map(|limit| limit.pace)
        };
        assert_eq!(pace(1, &[]), Some(limited(2, 1, 2)));
        assert_eq!(pace(1, &[9, 7]), Some(limited(3, 1, 3)));
        assert_eq!(pace(1, &[9, 8]), None);
        assert_eq!(pace(2, &[7]), Pace::of(Rate::DEFAULT));
        assert_eq!(
            defaults()
                .rights(&unix(0, 0, &[]), Instant::now())
                .limit
                .map(|limit| limit.pace),
            Pace::of(Rate::DEFAULT)
        );
    }

    #[test]
    fn callers_are_kept_apart_in_bounded_memory_and_only_the_idle_are_forgotten() {
        let start = Instant::now();
        let mut buckets = Buckets::new(3, start);
        let pace = limited(1, 1, 1);
        let held = buckets.of((0, None), start);
        assert_eq!(held.take(pace, start), Ok(()));
        assert_eq!(buckets.of((1, None), start).take(pace, start), Ok(()));
        let full = buckets.of((2, None), start);
        drop(full);
        // 2 is idle and full: it gives way. 0 is held and 1 has not recovered: both stay.
        assert_eq!(buckets.of((3, None), start).take(pace, start), Ok(()));
        assert_eq!(buckets.of_users.len(), 3);
        assert!(buckets.of((0, None), start).take(pace, start).is_err());
        assert!(buckets.of((1, None), start).take(pace, start).is_err());
        // Nobody gives way: newcomers share.
        assert!(Arc::ptr_eq(
            &buckets.of((4, None), start),
            &buckets.of((5, None), start)
        ));
        assert_eq!(buckets.of_users.len(), 3);
        // Later all but the held one do.
        let later = start + Duration::from_secs(2);
        assert!(!Arc::ptr_eq(
            &buckets.of((4, None), later),
            &buckets.of((5, None), later)
        ));
        assert!(Arc::ptr_eq(&held, &buckets.of((0, None), later)));
    }

    fn of_unit(uid: u32, unit: &str) -> Caller {
        let Caller::Unix(peer) = unix(uid, uid, &[]) else {
            unreachable!()
        };
        Caller::Unix(Peer {
            unit: Some(unit.to_owned()),
            ..peer
        })
    }

    #[test]
    fn a_rule_about_a_unit_is_about_its_processes_and_no_others_of_the_same_user() {
        let access = access(&[
            serde_json::json!({"unit": "voice-agent.service", "allow": ["config", "credentials"], "rate": "2/s"}),
            serde_json::json!({"unit": "other.service", "allow": ["config"], "rate": "2/s"}),
        ]);
        let now = Instant::now();
        let agent = access.rights(&of_unit(7, "voice-agent.service"), now);
        assert!(agent.config(&acme()) && agent.credentials(&acme()) == Providers::All);
        assert!(!access.rights(&of_unit(7, "voice-agent.scope"), now).any());
        assert!(!access.rights(&unix(7, 7, &[]), now).any());
        assert!(access.asks_for_units() && !defaults().asks_for_units());
        // Units of one user have a rate each.
        while agent.take(now).is_ok() {}
        assert_eq!(
            access.rights(&of_unit(7, "other.service"), now).take(now),
            Ok(())
        );
    }

    #[test]
    fn the_unit_is_the_first_part_of_the_cgroup_that_is_no_slice() {
        for (cgroup, unit) in [
            (
                "0::/system.slice/voice-agent.service\n",
                Some("voice-agent.service"),
            ),
            (
                "0::/system.slice/system-agent.slice/agent@1.service/sub/x.service",
                Some("agent@1.service"),
            ),
            (
                "1:name=systemd:/system.slice/a.service\n0::/\n",
                Some("a.service"),
            ),
            (
                "12:pids:/system.slice/p.service\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n",
                Some("a.service"),
            ),
            (
                "1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n",
                None,
            ),
            // What a user or a container calls its own groups is no unit of the system's.
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/voice-agent.service",
                Some("user@7.service"),
            ),
            (
                "0::/user.slice/user-7.slice/session-3.scope",
                Some("session-3.scope"),
            ),
            ("0::/docker/1f/system.slice/voice-agent.service", None),
            (
                "0::/machine.slice/m.scope/payload/voice-agent.service",
                Some("m.scope"),
            ),
            ("0::/../voice-agent.service", None),
            ("0::/system.slice", None),
            ("0::/\n", None),
            ("5:memory:/system.slice/a.service\n", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(unit_in_cgroup(cgroup), unit, "{cgroup}");
        }
    }

    #[test]
    fn refusals_are_told_at_once_until_they_come_too_often() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        let held: Vec<Duration> = (0..300).map(|_| bucket.refuse(start)).collect();
        assert!(held[..17].iter().all(Duration::is_zero), "{held:?}");
        assert_eq!(held[17], Duration::from_millis(10));
        assert_eq!(held[299], MOST_HELD);
        assert_eq!(
            bucket.hold(start + Duration::from_millis(1160)),
            Duration::ZERO
        );
    }

    #[test]
    fn new_connections_of_who_is_refused_too_often_are_left_alone_and_no_others() {
        let access = Access::new(&[], &names(), 110, None).unwrap();
        let now = Instant::now();
        let (root, daemon) = (unix(0, 0, &[]), unix(110, 115, &[]));
        let (rights, _other) = (access.rights(&root, now), access.rights(&daemon, now));
        for _ in 0..20_100 {
            let _ = rights.take(now);
        }
        assert!(access.pause(Some(0), now) > Duration::ZERO);
        for other in [Some(110), Some(5), None] {
            assert_eq!(access.pause(other, now), Duration::ZERO);
        }
        // Nobody knows who floods over TCP: others wait only so long.
        let tcp = access.rights(&Caller::Tcp, now);
        for _ in 0..20_100 {
            let _ = tcp.take(now);
        }
        assert_eq!(access.pause(None, now), MOST_HELD_TCP);
        assert!(access.pause(Some(0), now) > MOST_HELD_TCP);
    }
}
