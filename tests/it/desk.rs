//! One tenant of a test's own with two numbers, and the words in which tests change and ask it.
#![allow(
    dead_code,
    reason = "a harness offers more than the tests of one day use"
)]

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::cluster::{Cluster, Db};
use crate::node::{Node, Reply, until};

/// A Sunday on which the example's tenant is closed.
pub(crate) const SUNDAY: &str = "at=2026-11-22T10:45:00-03:00";
/// The Monday after it, when it is open.
pub(crate) const MONDAY: &str = "at=2026-11-23T10:45:00-03:00";

static SERIAL: AtomicU32 = AtomicU32::new(1);

/// Short words for rows: `make.prompt($t, 'name', …)` and `make.bind($t, 'name', …)`.
const WORDS: &str = "
    create schema if not exists make;
    create or replace function make.prompt(tenant uuid, name text, scope text default 'global', priority int default 0,
            content text default null, created timestamptz default '2026-01-01Z', id uuid default gen_random_uuid())
    returns void language sql as $$
        insert into public.prompts (id, tenant_id, name, scope, priority, created_at) values ($7, $1, $2, $3, $4, $6);
        insert into public.prompt_versions (prompt_id, version, content) values ($7, 1, coalesce($5, $2));
    $$;
    create or replace function make.bind(tenant uuid, name text, conditions jsonb default '{}', account text default null,
            event text default null, number uuid default null, created timestamptz default '2026-01-01Z',
            id uuid default gen_random_uuid())
    returns void language plpgsql as $$ begin
        insert into public.prompt_bindings (id, prompt_id, conditions_json, account_ref, event_type, phone_number_id, created_at)
        select $8, p.id, $3, $4, $5, $6, $7 from public.prompts p where p.tenant_id = $1 and p.name = $2;
        if not found then raise 'no prompt %', $2; end if;
    end $$;";

/// A node with the example rows that tests share: each adds a tenant of its own and leaves the others alone.
async fn shared() -> &'static (Node, String) {
    static SHARED: OnceCell<(Node, String)> = OnceCell::const_new();
    SHARED
        .get_or_init(async || {
            let db = Cluster::shared().database().await;
            let node = Node::with_example(&db, "").await;
            (node, db.name().to_owned())
        })
        .await
}

/// The shared node.
pub(crate) async fn shared_node() -> &'static Node {
    &shared().await.0
}

/// A tenant with settings and business hours on weekdays, one number to be asked, and one that tells when a change
/// has arrived.
pub(crate) struct Desk<'a> {
    pub(crate) node: &'a Node,
    pub(crate) db: Db<'static>,
    pub(crate) tenant: String,
    /// Also the tenant's slug.
    pub(crate) slug: String,
    pub(crate) number_id: String,
    /// E.164.
    pub(crate) number: String,
    mark: String,
}

impl Desk<'static> {
    /// On the shared node.
    pub(crate) async fn open() -> Self {
        let (node, database) = shared().await;
        Desk::on(node, database).await
    }
}

impl<'a> Desk<'a> {
    /// On a node of the test's own that follows this database of the shared cluster.
    pub(crate) async fn on(node: &'a Node, database: &str) -> Self {
        let db = Cluster::shared().open(database).await;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let desk = Self {
            node,
            db,
            tenant: Uuid::new_v4().to_string(),
            slug: format!("desk-{serial}"),
            number_id: Uuid::new_v4().to_string(),
            number: format!("+1650{}", 2_000_000 + serial),
            mark: format!("+1650{}", 3_000_000 + serial),
        };
        // One lock: two tests that make the same function at once get in each other's way.
        desk.db
            .sql(&format!(
                "begin; select pg_advisory_xact_lock(7); {WORDS} commit"
            ))
            .await;
        desk.change(&format!(
            "insert into public.tenants (id, name, slug, status) values ($t, 'Desk', '{slug}', 'active');
             insert into public.tenant_settings (tenant_id, model, transcription_provider, recording_enabled, business_hours)
             values ($t, 'model', 'provider', true,
                     '{{\"mon\":[\"09:00-18:00\"],\"tue\":[\"09:00-18:00\"],\"wed\":[\"09:00-18:00\"],\"thu\":[\"09:00-18:00\"],\"fri\":[\"09:00-18:00\"]}}');
             insert into public.tenant_phone_numbers (id, tenant_id, e164, label, default_language, default_voice, timezone)
             values ($n, $t, '{number}', 'desk', 'es-AR', 'voice', 'America/Argentina/Buenos_Aires'),
                    (gen_random_uuid(), $t, '{mark}', '', 'en', null, 'UTC')",
            slug = desk.slug,
            number = desk.number,
            mark = desk.mark,
        ))
        .await;
        desk
    }

    /// SQL with `$t` and `$n` for the ids of tenant and number.
    pub(crate) fn words(&self, sql: &str) -> String {
        let id = |id: &str| format!("'{id}'::uuid");
        sql.replace("$t", &id(&self.tenant))
            .replace("$n", &id(&self.number_id))
    }

    /// Commits statements as one transaction and waits until the node answers with them.
    pub(crate) async fn change(&self, sql: &str) {
        let mark = SERIAL.fetch_add(1, Ordering::Relaxed).to_string();
        let sql = self.words(sql);
        let told = format!(
            "update public.tenant_phone_numbers set label = '{mark}' where e164 = '{}'",
            self.mark
        );
        self.db.sql(&format!("begin; {sql}; {told}; commit")).await;
        // An explanation is given of suspended tenants too.
        let explain = format!("/v1/explain?to={}", encoded(&self.mark));
        until("the change is answered", async || {
            let reply = self.node.get(&explain).await;
            reply
                .json()
                .pointer("/fields/label/value")
                .is_some_and(|label| *label == *mark)
        })
        .await;
    }

    /// The path of a question about the number.
    pub(crate) fn path(&self, route: &str, context: &str) -> String {
        let and = if context.is_empty() { "" } else { "&" };
        format!("/v1/{route}?to={}{and}{context}", encoded(&self.number))
    }

    /// Whatever a route answers.
    pub(crate) async fn reply(&self, route: &str, context: &str) -> Reply {
        self.node.get(&self.path(route, context)).await
    }

    /// The full view, which has no null in it.
    pub(crate) async fn ask(&self, context: &str) -> Value {
        let reply = self.reply("resolve", context).await;
        assert_eq!(reply.status, 200, "{context}: {reply:?}");
        assert!(!holds_null(&reply.json()), "{reply:?}");
        reply.json()
    }

    /// The names of the prompts that apply, in the order of the stack.
    pub(crate) async fn stack(&self, context: &str) -> String {
        names(&self.ask(context).await)
    }

    /// A sealed value for a credential of the tenant.
    pub(crate) fn seal(&self, provider: &str, name: &str, value: &str) -> String {
        self.node.seal(&self.tenant, provider, name, value)
    }

    /// What the node says of a bad row of this table: the faults of `status` whose key is given.
    pub(crate) async fn faults(&self, table: &str, key: &str) -> Vec<Value> {
        let status = self.node.admin("GET", "/v1/admin/status", "").await.json();
        let all = status["quarantined"].as_array().unwrap().clone();
        all.into_iter()
            .filter(|fault| fault["table"] == table && fault["key"] == key)
            .collect()
    }
}

/// The names of an answer's prompts, in the order of the stack.
pub(crate) fn names(answer: &Value) -> String {
    let layers = answer
        .pointer("/prompt/layers")
        .unwrap()
        .as_array()
        .unwrap();
    let names: Vec<&str> = layers
        .iter()
        .map(|layer| layer["name"].as_str().unwrap())
        .collect();
    names.join(" ")
}

/// A value of a query with everything but letters and digits encoded.
pub(crate) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn holds_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(holds_null),
        Value::Object(members) => members.values().any(holds_null),
        _ => false,
    }
}

/// A body with the age and the revision, which differ from run to run, written as `N` and `R`. Both must look as
/// they should.
pub(crate) fn masked(body: &str) -> String {
    let json = body.starts_with('{');
    let (age, revision) = if json {
        ("\"staleness_ms\":", "\"revision\":\"")
    } else {
        ("staleness_ms=", "revision=")
    };
    let digits = |c: char| c.is_ascii_digit();
    let body = mask(
        body,
        age,
        |value| value.chars().take_while(|c| digits(*c)).count(),
        "N",
    );
    mask(
        &body,
        revision,
        |value| {
            let hex = value
                .chars()
                .take_while(|c| c.is_ascii_digit() || ('a'..='f').contains(c))
                .count();
            assert_eq!(hex, 16, "revision in {value}");
            hex
        },
        "R",
    )
}

fn mask(body: &str, before: &str, length: impl Fn(&str) -> usize, with: &str) -> String {
    let Some((head, tail)) = body.split_once(before) else {
        return body.to_owned();
    };
    let length = length(tail);
    assert!(length > 0, "nothing behind {before} in {body}");
    format!("{head}{before}{with}{}", &tail[length..])
}
