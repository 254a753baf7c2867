//! What a watcher is told: the state of a number or a tenant and its id, and the events as they stand in the stream
//! (WHATWG HTML, "Server-sent events").
//!
//! Pure. An id is made of status and revision alone, and so it is the same after a restart and on every node that holds
//! the same rows. What is told is state, never history.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::health::{FeedState, Staleness};
use crate::number::E164;
use crate::profile::RowRevision;
use crate::row::Tenant;

/// How long a client is asked to wait before it connects again.
pub const RETRY: Duration = Duration::from_secs(2);

/// What a call comes to, whatever its context is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is answered.
    Ok,
    /// The tenant's status is not `active`.
    TenantSuspended,
    /// The number's `active` is false.
    InactiveNumber,
    /// No such number, or none that the watcher may know of.
    UnknownNumber,
    /// No such tenant, or none that the watcher may know of.
    UnknownTenant,
    /// This node has no complete copy yet, or no good row.
    NotReady,
}

impl Standing {
    /// Every standing.
    pub const ALL: [Self; 6] = [
        Self::Ok,
        Self::TenantSuspended,
        Self::InactiveNumber,
        Self::UnknownNumber,
        Self::UnknownTenant,
        Self::NotReady,
    ];

    /// As `status` says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::TenantSuspended => "tenant_suspended",
            Self::InactiveNumber => "inactive_number",
            Self::UnknownNumber => "unknown_number",
            Self::UnknownTenant => "unknown_tenant",
            Self::NotReady => "not_ready",
        }
    }
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// A number.
    Number(E164),
    /// A tenant, with how many numbers it has.
    Tenant(u64),
}

/// How a number or a tenant stands.
#[derive(Debug, Clone)]
pub struct State {
    /// Which.
    pub about: About,
    /// What calls come to.
    pub standing: Standing,
    /// Of the rows that calls are answered from; `None` where there are none.
    pub revision: Option<RowRevision>,
    /// Whose it is. Where it was never good, only its id.
    pub tenant: Option<Arc<Tenant>>,
}

impl State {
    /// Nobody's.
    #[must_use]
    pub fn of_nobody(about: About, standing: Standing) -> Self {
        Self {
            about,
            standing,
            revision: None,
            tenant: None,
        }
    }

    /// What a watcher is told who may know of no tenant but those: another's is as if it were not there.
    #[must_use]
    pub fn known_to(&self, may_know: impl FnOnce(&Tenant) -> bool) -> Option<&Self> {
        match &self.tenant {
            Some(tenant) if !may_know(tenant) => None,
            _ => Some(self),
        }
    }

    /// The id of the event that tells it: `ok:5f0c9e1a7b3d2846`.
    #[must_use]
    pub fn id(&self) -> String {
        let revision = self.revision.map(|revision| revision.to_string());
        format!(
            "{}:{}",
            self.standing.as_str(),
            revision.unwrap_or_default()
        )
    }

    /// The event that tells it.
    #[must_use]
    pub fn event(&self, id: &str, age: Staleness) -> String {
        #[derive(Serialize)]
        struct Owner<'a> {
            id: String,
            slug: &'a str,
            name: &'a str,
        }
        #[derive(Serialize)]
        struct Data<'a> {
            status: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            number: Option<&'a E164>,
            tenant: Owner<'a>,
            #[serde(skip_serializing_if = "Option::is_none")]
            numbers: Option<u64>,
            revision: String,
            stale: bool,
            staleness_ms: u64,
        }
        let owner = self.tenant.as_deref();
        let (number, numbers) = match &self.about {
            About::Number(number) => (Some(number), None),
            About::Tenant(numbers) => (None, Some(*numbers)),
        };
        let data = Data {
            status: self.standing.as_str(),
            number,
            tenant: Owner {
                id: owner.map_or_else(String::new, |tenant| tenant.id.to_string()),
                slug: owner.map_or("", |tenant| &tenant.slug),
                name: owner.map_or("", |tenant| &tenant.name),
            },
            numbers,
            revision: self
                .revision
                .map_or_else(String::new, |revision| revision.to_string()),
            stale: age.stale,
            staleness_ms: age.ms,
        };
        event("revision", Some(id), &data)
    }
}

/// A tenant of which nothing but the id is known.
#[must_use]
pub fn nameless(id: Uuid) -> Tenant {
    Tenant {
        id,
        name: String::new(),
        slug: String::new(),
        status: String::new(),
    }
}

/// How the way from Postgres to here stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    /// The last pull proved that nothing is missing, and the connection it came by stands.
    pub level: bool,
    /// Level was proved too long ago.
    pub stale: bool,
}

impl Upstream {
    /// What a watcher takes for granted until it is told otherwise.
    pub const WELL: Self = Self {
        level: true,
        stale: false,
    };
}

#[derive(Serialize)]
struct Fresh {
    level: bool,
    feed: FeedState,
    stale: bool,
    staleness_ms: u64,
}

/// The event that tells how old answers are.
#[must_use]
pub fn heartbeat(level: bool, feed: FeedState, age: Staleness) -> String {
    fresh("heartbeat", level, feed, age)
}

/// The event that tells that the feed was lost, or is level again.
#[must_use]
pub fn upstream(level: bool, feed: FeedState, age: Staleness) -> String {
    fresh("upstream", level, feed, age)
}

fn fresh(name: &str, level: bool, feed: FeedState, age: Staleness) -> String {
    let data = Fresh {
        level,
        feed,
        stale: age.stale,
        staleness_ms: age.ms,
    };
    event(name, None, &data)
}

/// The last event of a stream that this node ends because it stops.
pub const STOPPING: &str = "event: end\ndata: {\"reason\":\"stopping\"}\n\n";

/// What a stream begins with.
#[must_use]
pub fn opening() -> String {
    format!("retry: {}\n\n", RETRY.as_millis())
}

/// An event of a stream. JSON holds no line break, so that the data are one line.
#[must_use]
pub fn event(name: &str, id: Option<&str>, data: &impl Serialize) -> String {
    let mut text = format!("event: {name}\n");
    if let Some(id) = id {
        let _ = writeln!(text, "id: {id}");
    }
    let data = serde_json::to_string(data).unwrap_or_default();
    let _ = write!(text, "data: {data}\n\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(standing: Standing, hash: u8) -> State {
        State {
            about: About::Number("+14155550100".parse().unwrap()),
            standing,
            revision: Some(RowRevision::start_of(&[hash; 32])),
            tenant: Some(Arc::new(Tenant {
                name: "A\nevent: x\n\nB".to_owned(),
                slug: "a".to_owned(),
                ..nameless(Uuid::from_u128(7))
            })),
        }
    }

    const AGE: Staleness = Staleness {
        ms: 412,
        stale: false,
        refuse_credentials: false,
    };

    #[test]
    fn an_id_says_status_and_revision_and_nothing_else() {
        let ok = state(Standing::Ok, 7);
        assert_eq!(ok.id(), "ok:0707070707070707");
        assert_ne!(ok.id(), state(Standing::Ok, 8).id());
        assert_ne!(ok.id(), state(Standing::TenantSuspended, 7).id());
        let nobody = State::of_nobody(ok.about, Standing::UnknownNumber);
        assert_eq!(nobody.id(), "unknown_number:");
    }

    #[test]
    fn an_event_is_whole_lines_whatever_stands_in_the_rows() {
        let state = state(Standing::Ok, 7);
        let text = state.event(&state.id(), AGE);
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[..2], ["event: revision", "id: ok:0707070707070707"]);
        let data: serde_json::Value =
            serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["number"], "+14155550100");
        assert_eq!(data["tenant"]["name"], "A\nevent: x\n\nB");
        assert_eq!(data["staleness_ms"], 412);
        assert_eq!(lines[3..], ["", ""]);
    }

    #[test]
    fn a_state_of_a_tenant_that_may_not_be_known_is_not_known() {
        let state = state(Standing::Ok, 7);
        assert!(state.known_to(|tenant| tenant.slug == "a").is_some());
        assert!(state.known_to(|_| false).is_none());
        let nobody = State::of_nobody(state.about, Standing::NotReady);
        assert!(nobody.known_to(|_| false).is_some());
    }
}
